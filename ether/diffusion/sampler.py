"""Images from a Stable Diffusion pipeline with fixed prompts, initial noise and scheduler."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ether import hub, machine, sources
from ether.errors import one_of
from ether.results import atomic, digest
from ether.silence import quiet

MODEL = "subject.model.path"  # setting named in error messages
SCHEDULERS = {"ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler", "ddpm": "DDPMScheduler"}


def generator(*names: object) -> torch.Generator:
    """A random number generator seeded by `names`, independent of the machine and of other generators."""
    seed = int.from_bytes(hashlib.sha256("\0".join(map(str, names)).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


class Sampler:
    """A Stable Diffusion pipeline with fixed sampling settings: its images depend only on the UNet's weights.

    Args:
        pipeline: from `load_pipeline`.
        sampling: ``steps``, ``guidance``, ``batch`` (images at a time, fewer where memory is short) and ``seed`` (default 0).
        size: side of the images in pixels.
        device: cpu | cuda.
        precision: float32 | bf16 | fp16; the last two use autocast, on CUDA only.
    """

    def __init__(self, pipeline: Any, sampling: Mapping[str, Any], size: int, device: str, precision: str = "float32") -> None:
        self.pipeline, self.sampling, self.size, self.device = pipeline, sampling, size, device
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision) if device != "cpu" else None
        self.batch = machine.limits().evaluated_at_once(int(sampling["batch"]))
        side = size // pipeline.vae_scale_factor
        self.latent = (pipeline.unet.config.in_channels, side, side)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, L, D): the frozen text encoder's output for N texts."""
        parts = []
        for start in range(0, len(texts), 32):
            part = list(texts[start : start + 32])
            parts.append(self.pipeline.encode_prompt(part, self.device, 1, False)[0])
        return torch.cat(parts)

    @torch.no_grad()
    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] -> the VAE's latents (the mean of its distribution), scaled as the UNet expects them."""
        vae = self.pipeline.vae
        parts = [
            vae.encode((2 * part - 1).to(self.device, vae.dtype)).latent_dist.mode().float()
            for part in pictures.split(self.batch)
        ]
        return torch.cat(parts) * vae.config.scaling_factor

    def noise(self, names: Sequence[str]) -> torch.Tensor:
        """The initial noise of each image, (N, C, h, w); it depends only on the image's name and the sampling seed."""
        seed = self.sampling.get("seed", 0)
        return torch.stack([torch.randn(self.latent, generator=generator("sample", seed, name)) for name in names])

    def pictures(self, texts: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        """Images (N, 3, H, W), uint8, of N texts, from the noise of N names; raises as `generate`."""
        different = list(dict.fromkeys(texts))  # equal texts get equal embeddings, whatever their number
        embeddings = self.encode(different)[[different.index(text) for text in texts]]
        return self.generate(embeddings, self.noise(names))

    @torch.no_grad()
    def generate(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W), uint8, so that metrics are computed on the values that are saved.

        embeddings: (N, L, D), noise: (N, C, h, w), one row for each image.

        Raises:
            FloatingPointError: the model's output is not finite.
        """
        unet, count = self.pipeline.unet, self.batch
        was_training = unet.training
        unet.eval()
        empty = self.encode([""])
        context = torch.autocast("cuda", self.autocast) if self.autocast else contextlib.nullcontext()
        parts = []
        try:
            with context:
                for start in range(0, len(noise), count):
                    part = embeddings[start : start + count]
                    parts.append(
                        self.pipeline(
                            prompt_embeds=part,
                            negative_prompt_embeds=empty.expand(len(part), -1, -1),
                            latents=noise[start : start + count].to(self.device, part.dtype),
                            height=self.size,
                            width=self.size,
                            num_inference_steps=int(self.sampling["steps"]),
                            guidance_scale=float(self.sampling["guidance"]),
                            generator=generator("sampler", start),
                            output_type="pt",
                        ).images.float()
                    )
        finally:
            unet.train(was_training)
        pictures = torch.cat(parts)
        if not bool(torch.isfinite(pictures).all()):
            raise FloatingPointError("the model's images are not finite")
        return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def check_scheduler(sampling: Mapping[str, Any]) -> None:
    """Raises a ConfigurationError if ``sampling`` names an unknown scheduler; by default the pipeline's scheduler is used."""
    name = sampling.get("scheduler")
    if name is not None and name not in SCHEDULERS:
        raise one_of("scheduler", name, SCHEDULERS, "subject.sampling.scheduler")


def load_pipeline(source: hub.Source, sampling: Mapping[str, Any], device: str, safetensors: bool = True) -> Any:
    """The pipeline of a folder or hub id in single precision, without safety checker, with the scheduler named in ``sampling``.

    Raises:
        MissingResourceError: the pipeline cannot be loaded.
        ConfigurationError: unknown scheduler.
    """
    check_scheduler(sampling)
    with quiet("diffusers"):
        import diffusers

        with hub.explained(source, "model", MODEL):
            pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
                source.location,
                use_safetensors=safetensors,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                **source.pin,
            )
        if sampling.get("scheduler") is not None:
            scheduler = getattr(diffusers, SCHEDULERS[sampling["scheduler"]])
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        if any(parameter.dtype != torch.float32 for parameter in part.parameters()):
            part.float()  # a half-precision checkpoint
        part.requires_grad_(False).eval()
    pipeline = pipeline.to(device)
    return pipeline


def build_unet(source: hub.Source) -> nn.Module:
    """The architecture of a pipeline's UNet, with random weights.

    Raises:
        MissingResourceError: its configuration cannot be read.
    """
    with quiet("diffusers"):
        from diffusers import UNet2DConditionModel

        with hub.explained(source, "model", MODEL):
            config = UNet2DConditionModel.load_config(source.location, subfolder="unet", **source.pin)
        unet: Any = UNet2DConditionModel.from_config(config)
        return unet


def class_pictures(sampler: Sampler, text: str, count: int, fingerprint: str, folder: Path) -> torch.Tensor:
    """Images of a class for prior preservation, (count, 3, H, W), uint8, generated by the frozen model and cached.

    Args:
        sampler: with the pipeline before adaptation.
        text: the class prompt.
        count: number of images.
        fingerprint: fingerprint of the pipeline.
        folder: the cache folder.
    """
    return frozen_pictures(sampler, [text] * count, [f"class/{text}/{number}" for number in range(count)], fingerprint, folder)


def frozen_pictures(sampler: Sampler, texts: Sequence[str], names: Sequence[str], fingerprint: str, folder: Path) -> torch.Tensor:
    """Images (N, 3, H, W), uint8, that the frozen model generates as `Sampler.pictures` does, cached.

    Args:
        sampler: with the pipeline before adaptation.
        texts, names: see `Sampler.pictures`.
        fingerprint: fingerprint of the pipeline.
        folder: the cache folder, with one file for each combination of arguments and settings.
    """
    code = sources.text_of(sources.closure("ether.diffusion.sampler"))
    settings = [dict(sampler.sampling), sampler.size, str(sampler.autocast), sampler.device]
    file = folder / f"{digest([list(texts), list(names), fingerprint, *settings, code], 20)}.safetensors"
    if file.is_file():
        return load_file(file)["images"]
    pictures = sampler.pictures(texts, names)
    with atomic(file) as temporary:
        save_file({"images": pictures.contiguous()}, temporary)
    return pictures
