"""Examples of a control signal as the inputs of the loss: latents, prompt embeddings and hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ether.diffusion.sampler import Sampler

__all__ = ["KEPT", "EncodedExamples"]

KEPT = 2 << 30  # examples whose encoded inputs take at most this many bytes are encoded once and kept in memory
PART = 32  # examples encoded together


class EncodedExamples:
    """Latents, prompt embeddings and hints of examples, encoded by the frozen VAE and text encoder.

    If all of them take at most `KEPT` bytes, they are encoded at once, in a fixed order, and kept. Otherwise they are encoded
    whenever they are asked for.

    Args:
        examples: a sequence of examples with ``image``, ``hint`` and ``caption``, such as
            `ether.diffusion.control_data.ControlPairs`.
        sampler: with the pipeline before adaptation.
        kept: see `KEPT`.
    """

    def __init__(self, examples: Any, sampler: Sampler, kept: int = KEPT) -> None:
        self.examples, self.sampler = examples, sampler
        first = self._encoded([0])
        self.shape = tuple(first[0].shape[1:])  # of a latent
        self._all: tuple[torch.Tensor, ...] | None = None
        if len(examples) * sum(part.nbytes for part in first) <= kept:
            indices = list(range(len(examples)))
            parts = [self._encoded(indices[start : start + PART]) for start in range(0, len(indices), PART)]
            self._all = tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self.examples)

    def _encoded(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents and embeddings on the sampler's device, hints as uint8 on the CPU."""
        found = [self.examples[index] for index in indices]
        latents = self.sampler.latents(torch.stack([example["image"] for example in found]).float() / 255)
        texts = self.sampler.encode([example["caption"] for example in found])
        return latents, texts, torch.stack([example["hint"] for example in found])

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Examples of the given indices: latents (B, C, h, w), prompt embeddings (B, L, D), and hints (B, 3, H, W) in [0, 1]."""
        if self._all is None:
            latents, texts, hints = self._encoded(indices)
        else:
            latents, texts, hints = (part[list(indices)] for part in self._all)
        return latents, texts, hints.to(latents.device).float() / 255
