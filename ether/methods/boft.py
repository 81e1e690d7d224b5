"""PEFT's BOFT with all its butterfly factors, on every device.

PEFT builds BOFT's block-diagonal matrices with a CUDA extension that it compiles on first use. If this fails (no
compiler, no GPU), PEFT uses a single butterfly factor and warns, which is a different method under the same name. This
module implements the extension's two functions in plain torch, so nothing is compiled.
"""

from __future__ import annotations

import torch
from peft.tuners.boft import layer as peft_boft


class TorchBlockDiagonal:
    """Replaces PEFT's compiled extension ``fbd_cuda``, with the same two functions and shapes."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        """Blocks (N, D, b, b) -> block-diagonal matrices (N, D b, D b)."""
        count, number, size, _ = blocks.shape
        full = blocks.new_zeros(count, number, size, number, size)
        index = torch.arange(number, device=blocks.device)
        full[:, index, :, index, :] = blocks.transpose(0, 1)
        return [full.reshape(count, number * size, number * size)]

    @staticmethod
    def backward(gradient: torch.Tensor, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Gradient (N, D b, D b) of the matrices -> gradient (N, D, b, b) of the blocks."""
        count, number, size, _ = blocks.shape
        index = torch.arange(number, device=blocks.device)
        folded = gradient.reshape(count, number, size, number, size)
        return [folded[:, index, :, index, :].transpose(0, 1).contiguous()]


def install() -> None:
    """Makes PEFT use the plain torch functions, without compilation and with all factors."""
    peft_boft._FBD_CUDA = TorchBlockDiagonal  # type: ignore[assignment]


install()
