"""The transformations as full matrices, for checking and for small figures: they cost O(d^2) numbers each."""

from __future__ import annotations

import torch

__all__ = ["dense_blocks", "dense_reflection"]


def dense_reflection(u: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    """The full (d, d) matrix H^B or H^B+ (Sec. 3.4), for checking and for small figures only; u, v: (n, b)."""

    def one(u_i: torch.Tensor, v_i: torch.Tensor | None) -> torch.Tensor:
        u_i = u_i / u_i.norm()
        eye = torch.eye(len(u_i), dtype=u_i.dtype, device=u_i.device)
        if v_i is None:
            return eye - 2 * torch.outer(u_i, u_i)
        v_i = v_i / v_i.norm()
        return eye - torch.outer(u_i, u_i) + torch.outer(v_i, v_i)

    return torch.block_diag(*[one(u_i, None if v is None else v[i]) for i, u_i in enumerate(u)])


def dense_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """The full (d, d) matrix N^B of `Naive`, for checking only; blocks: (n, b, b)."""
    return torch.block_diag(*blocks)
