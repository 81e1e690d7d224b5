"""``text-to-image``: a small Stable Diffusion for the captions and pictures of the world of pictures (`ether.worlds.pictures`).

``diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)`` loads the folder. All parts are classes of
diffusers and transformers, so this model can be used in the same way as Stable Diffusion:

- ``vae``: an `AutoencoderKL` from 64 x 64 x 3 to 8 x 8 x 16, trained first (`ether.foundation.autoencoder`). The latents' means
  and standard deviations are folded into its two 1 x 1 convolutions, so that every channel of a latent is standardised and
  ``scaling_factor`` is 1.
- ``text_encoder`` and ``tokenizer``: a `CLIPTextModel` of two layers of width 128 over byte-pair tokens, where each word of
  the captions is one token; it is trained together with the UNet. Some spare tokens (`pictures.SPARE_TOKENS`) occur in no
  caption and keep their initial embedding, so that they can be used as identifiers of subjects.
- ``unet``: a `UNet2DConditionModel` with self- and cross-attention at 8 x 8 and 4 x 4, as Stable Diffusion has it at its
  finer resolutions. Most methods adapt only the attention layers. Without attention at 8 x 8, this hardly changes the generated
  pictures.
- ``scheduler``: DDIM with the squared-cosine noise schedule and velocity prediction.

`generate` uses the recommended settings: 25 steps, guidance 2.5. `ether.foundation.text_to_image_training` pretrains the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ether import foundation
from ether.foundation import image_judges
from ether.foundation.autoencoder import CHANNELS, GRID
from ether.foundation.caption_tokenizer import LENGTH
from ether.foundation.pictures import Pictures
from ether.silence import quiet
from ether.worlds import pictures

WIDTH = 128  # of the text encoder
SAMPLING_STEPS, GUIDANCE = 25, 2.5

# --- parts ------------------------------------------------------------------------------------------------------------


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 128, randomly initialised."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_factor=1.0,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Channels (64, 128), with attention at 8 x 8 and 4 x 4, randomly initialised."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, despite its name: 32 dimensions each
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Squared-cosine noise, velocity prediction, no clipping (latents are unbounded); sampling starts from pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # has no effect here, but diffusers warns about any other value
    )


# --- use --------------------------------------------------------------------------------------------------------------


def load(folder: Path | str) -> StableDiffusionPipeline:
    """The pipeline of a folder, in float32, on the CPU; it generates without progress bars."""
    with quiet("diffusers"):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = SAMPLING_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 64,
) -> Pictures:
    """A picture for each prompt, of shape (prompts, 64, 64, 3). The noise of each is independent of the rest of its batch."""
    generated = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        images = pipeline(
            chunk,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(100_003 * seed + start + i) for i in range(len(chunk))],
            output_type="np",
        ).images
        generated.append(np.clip(np.round(images * 255), 0, 255).astype(np.uint8))
    return np.concatenate(generated)


def scores(pipeline: StableDiffusionPipeline, *, seed: int = 1, count: int = 200) -> dict[str, float]:
    """Shares of generated pictures in which the shipped reader finds what the caption asks for.

    The reader was trained on rendered scenes only.

    Args:
        pipeline: of `load`.
        seed: of captions and noise.
        count: number of pictures of each of three kinds: pairs of name and background that are held out of training, pairs that
            are not, and recoloured things before held-out backgrounds.
    """
    stream = pictures.random_scenes(seed + 1_000_000)
    plain = (s for s in stream if len(s.things) == 1 and not s.things[0].colour and not s.things[0].face)
    kinds = {
        "held-out pairs": pictures.held_out_scenes(seed, count),
        "training's pairs": [next(plain) for _ in range(count)],
        "recoloured": pictures.held_out_scenes(seed + 1, count, coloured=True),
    }
    reader = image_judges.load_reader(foundation.path("image-judges") / "reader")
    found: dict[str, float] = {}
    for kind, expected in kinds.items():
        generated = generate(pipeline, [pictures.describe(scene) for scene in expected], seed=seed)
        read = image_judges.read(reader, generated)
        wanted: dict[str, list[str | None]] = {
            "thing": [scene.things[0].name for scene in expected],
            "background": [scene.background for scene in expected],
            "colour": [scene.things[0].colour for scene in expected],
        }
        for head in ("thing", "background", *(["colour"] if kind == "recoloured" else [])):
            right = np.mean([a == b for a, b in zip(read[head], wanted[head], strict=True)])
            found[f"{head}, {kind}"] = round(float(right), 4)
    return found
