"""A tiny, randomly initialised Stable Diffusion with its judges, written as a hub mirror, to test the loading code.

The generated images are noise. Everything else is as for the real models: the folder layout of a hub checkpoint, the classes
of diffusers and transformers, tokenizers, schedulers and preprocessors. The paper scale then runs from end to end in
minutes on a CPU, on real photographs::

    python -m ether.standins diffusion MIRROR
    make table2 --config scale=paper mirror=MIRROR device=cpu

The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)

from ether.errors import ConfigurationError
from ether.results import write_text
from ether.silence import quiet

PIPELINE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dino-vits16"

TEXT_LENGTH = 77  # as CLIP's
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: every text is split into bytes, so that no text is unknown."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TEXT_LENGTH)


def _text_config(width: int) -> CLIPTextConfig:
    words = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH, projection_dim=width, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    )  # fmt: skip


# Of the UNet and the autoencoder: a few layers; or the blocks and layers of Stable Diffusion 1.5, and with them the names of its
# modules, at a fiftieth of its width.
_SHALLOW: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    {"block_out_channels": (8, 8, 16), "layers_per_block": 1},
)  # fmt: skip
_DEEP: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "block_out_channels": (16, 32, 32, 32), "layers_per_block": 2,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 2},
)  # fmt: skip


def pipeline(size: int = 32, seed: int = 0, prediction: str = "epsilon", deep: bool = False) -> Any:
    """A Stable Diffusion with approximately 0.2 million random weights.

    Args:
        size: side of the generated images, in pixels; a multiple of 16 (of a deep one, of 64).
        seed: of the weights.
        prediction: epsilon | v_prediction | sample, the scheduler's ``prediction_type``.
        deep: whether it has as many layers as Stable Diffusion 1.5, of the same names.

    Raises:
        ConfigurationError: `size` is not a multiple of 16.
    """
    multiple, (of_unet, of_vae) = (64, _DEEP) if deep else (16, _SHALLOW)
    if size < multiple or size % multiple:
        raise ConfigurationError(f"The side of the stand-in pipeline's images must be a multiple of {multiple}, not {size}.")
    levels = len(of_vae["block_out_channels"])
    with quiet("diffusers"):  # at its import, transformers warns about an image processor that is not used here
        from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(
            sample_size=size // 2 ** (levels - 1), in_channels=4, out_channels=4,
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4, **of_unet,
        )  # fmt: skip
        vae: Any = AutoencoderKL(
            latent_channels=4, norm_num_groups=4, sample_size=size,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **of_vae,
        )  # fmt: skip
        text_encoder: Any = CLIPTextModel(_text_config(16))
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    made: Any = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer(), unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def write_pipeline(folder: Path, size: int = 32, seed: int = 0, prediction: str = "epsilon", deep: bool = False) -> None:
    """Write a `pipeline` as a folder that ``StableDiffusionPipeline.from_pretrained`` loads."""
    made: Any = pipeline(size, seed, prediction, deep)
    write_complete(folder, lambda target: made.save_pretrained(target, safe_serialization=True))


def _processor(size: int, mean: list[float], std: list[float], resample: int) -> str:
    return json.dumps(
        {
            "do_resize": True, "size": {"shortest_edge": size}, "resample": resample, "do_center_crop": True,
            "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": mean, "image_std": std,
        },
        indent=2,
    )  # fmt: skip


def write_clip(folder: Path, size: int = 32, seed: int = 0) -> None:
    """Write a tiny random CLIP, its tokenizer and preprocessor, as a folder that ``CLIPModel.from_pretrained`` loads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=size,
            patch_size=8, projection_dim=16,
        )  # fmt: skip
        model = CLIPModel(CLIPConfig(text_config=_text_config(16), vision_config=vision, projection_dim=16))

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer().save_pretrained(target)
        write_text(_processor(size, _MEAN, _STD, resample=3), target / "preprocessor_config.json")

    write_complete(folder, write)


def write_dino(folder: Path, size: int = 32, seed: int = 0) -> None:
    """Write a tiny random ViT and its preprocessor, as a folder that ``AutoModel.from_pretrained`` loads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTModel(
            ViTConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=size, patch_size=8
            )
        )

    def write(target: Path) -> None:
        model.save_pretrained(target)
        write_text(
            _processor(size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], resample=3), target / "preprocessor_config.json"
        )

    write_complete(folder, write)


def write_complete(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under a temporary name and rename it, so that an incomplete model is never loaded."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        with quiet("diffusers"):
            write(made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def write_mirror(
    mirror: Path, *, models: tuple[str, str, str] = (PIPELINE, CLIP, DINO), size: int = 32, seed: int = 0
) -> list[Path]:
    """Write stand-ins for the pipeline, CLIP and DINO under ``<mirror>/models/<hub id>``.

    Args:
        mirror: root of the mirror, created if it does not exist; other models in it are not changed.
        models: hub ids of the pipeline, CLIP and DINO.
        size: side of the images that the pipeline generates and the judges take, in pixels; a multiple of 16.
        seed: of the weights.

    Returns:
        The three folders.
    """
    writers = (write_pipeline, write_clip, write_dino)
    folders = [mirror / "models" / name for name in models]
    for number, (folder, writer) in enumerate(zip(folders, writers, strict=True)):
        writer(folder, size=size, seed=seed + number)
    return folders
