"""The autoencoder of ``text-to-image``: 32 x 32 x 3 pixels to latents of 8 x 8 x 16, and its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from ether.foundation.pictures import Pictures, to_input
from ether.foundation.pretraining import optimise
from ether.worlds import scenes

__all__ = ["CHANNELS", "GRID", "encode", "finish_decoder", "new_autoencoder", "reconstruction_error", "standardise", "train"]

CHANNELS, GRID = 16, 8  # of the latents, and side of their grid
STEPS, DECODER_STEPS, BATCH, RATE = 2_400, 1_000, 8, 2.0e-3


def new_autoencoder() -> AutoencoderKL:
    """32 x 32 x 3 to 8 x 8 x 16, randomly initialised; no attention, since patterns are local."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def _factor(steps: int) -> Callable[[int], float]:
    """Of the learning rate: a warm-up of 30 steps, 1 until 41 % of the steps, then a linear decay to 2 %."""
    return lambda step: min(1.0, (step + 1) / 30, max(0.02, 1.7 * (1 - step / steps)))


def _error(error: torch.Tensor) -> torch.Tensor:
    return error.abs().mean() + error.square().mean()


def train(pictures: Pictures, steps: int, generator: torch.Generator) -> AutoencoderKL:
    """Fit an autoencoder to pictures: absolute and squared error, and a very small weight on the KL divergence."""
    model = new_autoencoder().train()
    into: Any = model.quant_conv
    with torch.no_grad():  # start with very little noise on the latents; with the usual amount, colours are learned late
        into.weight[CHANNELS:] = 0
        into.bias[CHANNELS:] = -6

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
            batch = to_input(pictures[chosen.numpy()])
            posterior = model.encode(batch).latent_dist
            error = model.decode(posterior.sample(generator=generator)).sample - batch
            yield _error(error) + 1e-4 * posterior.kl().mean() / (CHANNELS * GRID * GRID)

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    optimise(losses(), optimizer, model.parameters(), _factor(steps), steps=steps, label="autoencoder")
    return model.eval()


def finish_decoder(
    model: AutoencoderKL, latents: torch.Tensor, pictures: Pictures, steps: int, generator: torch.Generator
) -> AutoencoderKL:
    """Train the decoder further, on latents (count, 16, 8, 8) with a little noise, as those of the UNet have.

    The encoder, and therefore what the UNet has learned, does not change: this can be the last part of the training.
    """
    model.train()
    parameters = [*model.decoder.parameters(), *cast(nn.Module, model.post_quant_conv).parameters()]

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
            noise = torch.randn(BATCH, CHANNELS, GRID, GRID, generator=generator)
            share = 0.15 * torch.rand(BATCH, 1, 1, 1, generator=generator)
            yield _error(model.decode(latents[chosen] + share * noise).sample - to_input(pictures[chosen.numpy()]))

    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99))
    optimise(losses(), optimizer, parameters, _factor(steps), steps=steps, label="decoder")
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: Pictures) -> torch.Tensor:
    """Latents (count, 16, 8, 8) of pictures: the means of the posteriors."""
    parts = [model.encode(to_input(pictures[i : i + 256])).latent_dist.mean for i in range(0, len(pictures), 256)]
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
def reconstruction_error(model: AutoencoderKL, pictures: Pictures) -> float:
    """Mean absolute error of decoded latents of pictures, in 0 ... 255."""
    decoded = model.decode(encode(model, pictures)).sample.clamp(-1, 1)
    return float((decoded - to_input(pictures)).abs().mean()) * 127.5
