"""The learning-rate schedule and optimisation loop for pretraining the foundation models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["decay_groups", "optimise", "warm_up_and_decay"]

REPORTS = 20  # number of lines printed during a training


def warm_up_and_decay(steps: int, warm_up: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step (from 0): a linear warm-up, then 1, then a linear decay over the second half.

    Args:
        steps: optimiser steps of the training.
        warm_up: steps until the factor is 1.
    """
    return lambda step: min(1.0, (step + 1) / warm_up, 2 * (steps - step) / steps)


def decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: weight decay for matrices and embeddings, none for biases and norms."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def optimise(
    losses: Iterator[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    factor: Callable[[int], float],
    *,
    steps: int,
    label: str,
) -> None:
    """Take `steps` optimiser steps, with gradients clipped to a norm of 1, and print the mean loss about 20 times.

    Args:
        losses: yields the scalar loss of the next batch, with its graph.
        optimizer: its learning rates are multiplied by `factor`.
        parameters: those whose joint gradient norm is clipped. Their order matters: the norm is a sum of floats.
        factor: factor of the learning rate at a step (from 0), such as `warm_up_and_decay`.
        steps: number of steps.
        label: beginning of the printed lines.
    """
    parameters = list(parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    began, total, interval = time.monotonic(), 0.0, max(1, steps // REPORTS)
    for step in range(1, steps + 1):
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % interval == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{label}, step {step}/{steps}: loss {total / interval:.3f}, {minutes:.1f} min", flush=True)
            total = 0.0
