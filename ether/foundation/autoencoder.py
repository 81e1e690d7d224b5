"""The autoencoder of ``text-to-image``: 64 x 64 x 3 pixels to latents of 8 x 8 x 16, and its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import nn

from ether.foundation.pictures import Pictures, to_input
from ether.foundation.pretraining import MuonWithAdam, optimise
from ether.worlds import drawings, pictures

__all__ = [
    "CHANNELS", "GRID", "encode", "examples", "finish_decoder", "new_autoencoder", "object_psnr", "standardise", "train",
]  # fmt: skip

CHANNELS, GRID = 16, 8  # of the latents, and side of their grid
STEPS, DECODER_STEPS, BATCH, RATE, MATRIX_RATE = 4_600, 1_000, 8, 2.0e-3, 3.0e-3
OTHERS = 0.4  # share of training pictures whose drawing has any name of either artist, so that unseen drawings are coded well
OBJECT_WEIGHT = 3.0  # of a thing's pixels, relative to those of the background
DECODER_NOISE = 0.25  # largest standard deviation of the noise in the last part of the decoder's training
KL_WEIGHT = 1.0e-3  # pulls the latents towards a normal distribution, which the UNet learns faster


def new_autoencoder() -> AutoencoderKL:
    """64 x 64 x 3 to 8 x 8 x 16, randomly initialised; no attention, since details are local."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=pictures.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def examples(seed: int, count: int) -> tuple[Pictures, NDArray[np.bool_]]:
    """Training pictures (count, 64, 64, 3) and where things are in them (count, 64, 64).

    Most are scenes of the corpus; the others show any drawing of either artist, some mirrored or rotated, but never a subject.
    """
    rng, stream = np.random.default_rng([seed, 7]), pictures.random_scenes(seed)
    subjects = {(subject.artist, subject.noun) for subject in pictures.SUBJECTS}
    every = [(a, e.name) for a in drawings.ARTISTS for e in drawings.entries() if (a, e.name) not in subjects]
    backgrounds, scenes = tuple(pictures.BACKGROUNDS), []
    for _ in range(count):
        if rng.random() >= OTHERS:
            scenes.append(next(stream))
            continue
        artist, name = every[int(rng.integers(len(every)))]
        turned = rng.random() < 0.3
        details = {
            "artist": artist,
            "angle": round(float(rng.uniform(-10, 10))) if turned else 0,
            "mirrored": bool(rng.random() < 0.3),
        }
        scenes.append(pictures.alone(name, backgrounds[int(rng.integers(len(backgrounds)))], rng, **details))
    return pictures.render_many(scenes), np.stack([pictures.coverage(scene) > 0 for scene in scenes])


def _factor(steps: int) -> Callable[[int], float]:
    """Of the learning rate: a warm-up of 30 steps, 1 until 41 % of the steps, then a linear decay to 2 %."""
    return lambda step: min(1.0, (step + 1) / 30, max(0.02, 1.7 * (1 - step / steps)))


def _error(error: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, (count, 3, 64, 64), with a higher weight where `things` (count, 64, 64) are."""
    weight = (1 + (OBJECT_WEIGHT - 1) * things.float())[:, None]
    return ((error.abs() + error.square()) * weight).mean() / weight.mean()


def _optimizer(parameters: dict[str, nn.Parameter]) -> MuonWithAdam:
    return MuonWithAdam(parameters, matrix_rate=MATRIX_RATE, rate=RATE)


def train(shown: Pictures, things: NDArray[np.bool_], steps: int, generator: torch.Generator) -> AutoencoderKL:
    """Fit an autoencoder to pictures and to where things are in them (`examples`), with a pull to normal latents.

    The training runs on the device of the generator; the model is returned on the CPU.
    """
    device = generator.device
    model: Any = new_autoencoder().train()
    model.to(device, memory_format=torch.channels_last)  # a sixth faster
    into: Any = model.quant_conv
    with torch.no_grad():  # start with very little noise on the latents; with the usual amount, colours are learned late
        into.weight[CHANNELS:] = 0
        into.bias[CHANNELS:] = -6
    masks, images = torch.from_numpy(things).to(device), torch.from_numpy(shown).to(device)

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(images), (BATCH,), generator=generator, device=device)
            batch = to_input(images[chosen])
            posterior = model.encode(batch).latent_dist
            error = model.decode(posterior.sample(generator=generator)).sample - batch
            yield _error(error, masks[chosen]) + KL_WEIGHT * posterior.kl().mean() / (CHANNELS * GRID * GRID)

    named = dict(model.named_parameters())
    optimise(losses(), _optimizer(named), named.values(), _factor(steps), steps=steps, label="autoencoder")
    model.to("cpu", memory_format=torch.contiguous_format).eval()
    return cast(AutoencoderKL, model)


def finish_decoder(
    model: AutoencoderKL,
    latents: torch.Tensor,
    shown: Pictures,
    things: NDArray[np.bool_],
    steps: int,
    generator: torch.Generator,
) -> AutoencoderKL:
    """Train the decoder further, on latents (count, 16, 8, 8) with a little noise, as those of the UNet have.

    The encoder, and therefore what the UNet has learned, does not change: this can be the last part of the training. It runs
    on the device of the generator; the model is returned on the CPU.
    """
    device = generator.device
    moving: Any = model
    moving.to(device).train()
    parts = {"decoder": model.decoder, "post_quant_conv": cast(nn.Module, model.post_quant_conv)}
    named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    masks, images, latents = (part.to(device) for part in (torch.from_numpy(things), torch.from_numpy(shown), latents))

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(images), (BATCH,), generator=generator, device=device)
            noise = torch.randn(BATCH, CHANNELS, GRID, GRID, generator=generator, device=device)
            share = DECODER_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator, device=device)
            decoded: Any = model.decode(latents[chosen] + share * noise)
            yield _error(decoded.sample - to_input(images[chosen]), masks[chosen])

    optimise(losses(), _optimizer(named), named.values(), _factor(steps), steps=steps, label="decoder")
    moving.to("cpu").eval()
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, shown: Pictures, device: str | torch.device = "cpu") -> torch.Tensor:
    """Latents (count, 16, 8, 8) of pictures, on the CPU: the means of the posteriors, computed on a device."""
    moving: Any = model
    moving.to(device)
    parts = [model.encode(to_input(shown[i : i + 256]).to(device)).latent_dist.mean.cpu() for i in range(0, len(shown), 256)]
    moving.to("cpu")
    return torch.cat(parts)


@torch.no_grad()
def standardise(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Fold the latents' mean and standard deviation per channel into the autoencoder.

    Returns:
        The latents that the changed encoder gives, with mean 0 and standard deviation 1 per channel.
    """
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into: Any = model.quant_conv
    out_of: Any = model.post_quant_conv
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation[None, :, None, None]
    into.weight[:CHANNELS] /= deviation[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - mean) / deviation
    into.bias[CHANNELS:] -= 2 * deviation.log()  # the posteriors' log variances
    return (latents - mean[:, None, None]) / deviation[:, None, None]


@torch.no_grad()
def object_psnr(model: AutoencoderKL, shown: Pictures, things: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio of decoded latents of pictures over the pixels of things, in dB."""
    decoded: Any = model.decode(encode(model, shown))
    errors = ((decoded.sample.clamp(-1, 1) - to_input(shown)) / 2).permute(0, 2, 3, 1).numpy()[things]
    return float(-10 * np.log10((errors**2).mean()))
