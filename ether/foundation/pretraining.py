"""Optimisers, learning-rate schedule and optimisation loop for pretraining the foundation models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["MuonWithAdam", "decay_groups", "optimise", "warm_up_and_decay"]

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


def _matrix(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor as a matrix of its first by all other dimensions; for `like` itself, whose memory layout is used, a view."""
    if like.ndim == 4 and not like.is_contiguous():  # channels last
        return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.reshape(len(tensor), -1)


class MuonWithAdam:
    """Muon for matrices and AdamW for the other parameters, with one factor for both learning rates.

    Muon steps along the nearest orthogonal matrix to a weight's momentum, so that rare directions (which word belongs to
    which drawing) are learned as fast as frequent ones. A convolution is treated as a matrix of output channels by all other
    dimensions. Embeddings have no weight decay: a word that does not occur keeps its initial vector.

    Args:
        named: the parameters by name.
        matrix_rate: learning rate of Muon.
        rate: learning rate of AdamW.
        apart: parts of the names of matrices that AdamW trains.
        weight_decay: of both.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        *,
        matrix_rate: float,
        rate: float,
        apart: Sequence[str] = ("embedding",),
        weight_decay: float = 0.0,
    ) -> None:
        self.named, self.rates = dict(named), (matrix_rate, rate)
        self.matrices = {  # two-dimensional views that share the memory of the parameters
            name: nn.Parameter(_matrix(parameter.detach(), like=parameter))
            for name, parameter in self.named.items()
            if parameter.ndim > 1 and not any(word in name for word in apart)
        }
        others = {name: parameter for name, parameter in self.named.items() if name not in self.matrices}
        groups = [
            {"params": [p for n, p in others.items() if "embedding" not in n], "weight_decay": weight_decay},
            {"params": [p for n, p in others.items() if "embedding" in n], "weight_decay": 0.0},
        ]
        self.muon = torch.optim.Muon(
            self.matrices.values(), lr=matrix_rate, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.99), foreach=True)

    def step(self, factor: float) -> None:
        """Clip the gradients to a joint norm of 1, take a step with both rates multiplied by `factor`, and drop the gradients."""
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        for name, matrix in self.matrices.items():
            gradient = self.named[name].grad
            matrix.grad = None if gradient is None else _matrix(gradient, like=self.named[name])
        self.muon.step()
        self.adam.step()
        for parameter in self.named.values():
            parameter.grad = None

    def states(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """The optimiser's state of each parameter."""
        for name, parameter in self.named.items():
            matrix = self.matrices.get(name)
            yield name, self.adam.state[parameter] if matrix is None else self.muon.state[matrix]


def optimise(
    losses: Iterator[torch.Tensor],
    optimizer: torch.optim.Optimizer | MuonWithAdam,
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
    schedule = None if isinstance(optimizer, MuonWithAdam) else torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    began, total, interval = time.monotonic(), torch.zeros(()), max(1, steps // REPORTS)
    for step in range(1, steps + 1):
        loss = next(losses)
        loss.backward()
        if isinstance(optimizer, MuonWithAdam):
            optimizer.step(factor(step - 1))
        else:
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if schedule:
            schedule.step()
        total = total.to(loss.device) + loss.detach()  # a tensor: reading it at every step would make a GPU wait
        if step % interval == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{label}, step {step}/{steps}: loss {float(total) / interval:.3f}, {minutes:.1f} min", flush=True)
            total = torch.zeros(())
