"""PEFT's BOFT with all its butterfly factors, on every device.

PEFT puts BOFT's blocks on the diagonal with a CUDA extension that it compiles on first use, and where that fails
(no compiler, no GPU) it falls back to ONE butterfly factor with only a warning: another method under the same name.
The extension's two functions are a few lines of plain torch, so they are given here and nothing is compiled.
"""

from __future__ import annotations

import torch
from peft.tuners.boft import layer as peft_boft


class TorchBlockDiagonal:
    """Stands in for PEFT's compiled extension ``fbd_cuda``: same two functions, same shapes."""

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
    """Makes PEFT use the plain torch functions; nothing is compiled, and no factor is dropped."""
    peft_boft._FBD_CUDA = TorchBlockDiagonal  # type: ignore[assignment]


install()
