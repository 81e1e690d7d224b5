"""The distribution of time steps that a denoising loss is averaged over: one place for pretraining and for tuning."""

from __future__ import annotations

import torch

from ether.errors import one_of

__all__ = ["TIMES", "time_probabilities"]

TIMES = ("uniform", "noise")


def time_probabilities(alphas_cumprod: torch.Tensor, kind: str) -> torch.Tensor:
    """The probability of each time step.

    Args:
        alphas_cumprod: (T,) of a scheduler: the squared level of the signal.
        kind: ``uniform``, as Stable Diffusion is trained; ``noise``: half of the steps uniformly, and half in proportion to the
            squared level of the noise, where the content of a picture is decided.

    Returns:
        (T,), float64, with sum 1.

    Raises:
        ConfigurationError: unknown kind.
    """
    if kind not in TIMES:
        raise one_of("distribution of time steps", kind, TIMES)
    uniform = torch.full((len(alphas_cumprod),), 1 / len(alphas_cumprod), dtype=torch.float64)
    if kind == "uniform":
        return uniform
    noise = 1 - alphas_cumprod.double()
    return uniform / 2 + noise / noise.sum() / 2
