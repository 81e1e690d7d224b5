"""`ether.reflection`'s two inner functions as fused Triton kernels, for CUDA.

The forward kernel reads x once and writes y once; the backward kernel reads x and the gradient once, writes the input's
gradient, and sums the parameters' gradients on the way (the inner products are made again, since x is there anyway).
Each program keeps its sums in registers over the rows it goes through and writes them once, and the few partial sums
are added up afterwards, in a fixed order: the result is the same in every run. Everything is computed in float32
whatever the dtype of x.

`ether.reflection` calls these where `fits` allows and Triton is installed, as it is with torch for CUDA; its own plain
operations are their reference and their fallback. Triton's interpreter runs them on the CPU (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["fits", "rank_update", "rank_update_backward"]

# Numbers that a program holds of one tensor at a time: sixteen a thread with 512 numbers a warp.
_TILE = 4096
# The longest block: a program holds whole rows of a block, and has at most 32 warps.
_LONGEST = 16384
# Programs a multiprocessor gets: enough to hide the latency of memory, few enough for partial sums to be cheap.
_FORWARD_WAVES, _BACKWARD_WAVES = 8, 2


@triton.jit
def _update_kernel(  # type: ignore[no-untyped-def]
    x, y, a, b, offset, rows, x_stride, n, width,
    HAS_OFFSET: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x + sum_k a_k (b_k . x - offset_k) for one block of every row, ROWS rows at a time."""
    block = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    in_block = column < width
    parameter = block * width + column
    b0 = tl.load(b + parameter, mask=in_block, other=0.0)[None, :]
    a0 = tl.load(a + parameter, mask=in_block, other=0.0)[None, :]
    if K == 2:
        b1 = tl.load(b + n * width + parameter, mask=in_block, other=0.0)[None, :]
        a1 = tl.load(a + n * width + parameter, mask=in_block, other=0.0)[None, :]
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & in_block[None, :]
        piece = tl.load(x + row[:, None] * x_stride + parameter[None, :], mask=inside, other=0.0).to(tl.float32)
        s0 = tl.sum(piece * b0, axis=1)
        if HAS_OFFSET:
            s0 -= tl.load(offset + block)
        out = piece + s0[:, None] * a0
        if K == 2:
            s1 = tl.sum(piece * b1, axis=1)
            if HAS_OFFSET:
                s1 -= tl.load(offset + n + block)
            out += s1[:, None] * a1
        tl.store(y + row[:, None] * (n * width) + parameter[None, :], out, mask=inside)


@triton.jit
def _update_backward_kernel(  # type: ignore[no-untyped-def]
    g, x, a, b, offset, g_x, g_a, g_b, t_sum, rows, g_stride, x_stride, n, width,
    NEEDS_X: tl.constexpr, NEEDS_PARAMETERS: tl.constexpr, HAS_OFFSET: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g_x = g + sum_k b_k (a_k . g), and this program's share of the sums over rows for a, b and a . g."""
    block = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    in_block = column < width
    parameter = block * width + column
    b0 = tl.load(b + parameter, mask=in_block, other=0.0)[None, :]
    a0 = tl.load(a + parameter, mask=in_block, other=0.0)[None, :]
    sum_a0 = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_b0 = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_t0 = tl.zeros((ROWS,), dtype=tl.float32)
    if K == 2:
        b1 = tl.load(b + n * width + parameter, mask=in_block, other=0.0)[None, :]
        a1 = tl.load(a + n * width + parameter, mask=in_block, other=0.0)[None, :]
        sum_a1 = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        sum_b1 = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        sum_t1 = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & in_block[None, :]
        g_piece = tl.load(g + row[:, None] * g_stride + parameter[None, :], mask=inside, other=0.0).to(tl.float32)
        t0 = tl.sum(g_piece * a0, axis=1)
        out = g_piece + t0[:, None] * b0
        if NEEDS_PARAMETERS:
            x_piece = tl.load(x + row[:, None] * x_stride + parameter[None, :], mask=inside, other=0.0).to(tl.float32)
            s0 = tl.sum(x_piece * b0, axis=1)
            if HAS_OFFSET:  # in rows past the end the gradient is zero, so the offset does no harm there
                s0 -= tl.load(offset + block)
            sum_a0 += s0[:, None] * g_piece
            sum_b0 += t0[:, None] * x_piece
            sum_t0 += t0
        if K == 2:
            t1 = tl.sum(g_piece * a1, axis=1)
            out += t1[:, None] * b1
            if NEEDS_PARAMETERS:
                s1 = tl.sum(x_piece * b1, axis=1)
                if HAS_OFFSET:
                    s1 -= tl.load(offset + n + block)
                sum_a1 += s1[:, None] * g_piece
                sum_b1 += t1[:, None] * x_piece
                sum_t1 += t1
        if NEEDS_X:
            tl.store(g_x + row[:, None] * (n * width) + parameter[None, :], out, mask=inside)
    if NEEDS_PARAMETERS:  # partial sums: (programs, K, n, width) and (programs, K, n)
        first = tl.program_id(0).to(tl.int64) * K * n
        tl.store(g_a + first * width + parameter, tl.sum(sum_a0, axis=0), mask=in_block)
        tl.store(g_b + first * width + parameter, tl.sum(sum_b0, axis=0), mask=in_block)
        tl.store(t_sum + first + block, tl.sum(sum_t0, axis=0))
        if K == 2:
            tl.store(g_a + (first + n) * width + parameter, tl.sum(sum_a1, axis=0), mask=in_block)
            tl.store(g_b + (first + n) * width + parameter, tl.sum(sum_b1, axis=0), mask=in_block)
            tl.store(t_sum + first + n + block, tl.sum(sum_t1, axis=0))


def fits(b: torch.Tensor) -> bool:
    """Whether the kernels can take these parameters, (k, n, b): float32, one or two vectors, blocks not too long."""
    return b.dtype == torch.float32 and len(b) <= 2 and b.shape[2] <= _LONGEST


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    # The interpreter runs one program after another; a few keep the loops over rows in play.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _plan(rows: torch.Tensor, b: torch.Tensor, waves: int) -> tuple[int, dict[str, int]]:
    """Programs along the rows, and the kernel's sizes."""
    block = triton.next_power_of_2(b.shape[2])
    tile = max(1, _TILE // block)
    at_once = min(tile, triton.next_power_of_2(max(1, len(rows))))
    programs = max(1, min(triton.cdiv(len(rows), at_once), waves * _multiprocessors(rows.device) // b.shape[1]))
    warps = min(32, max(4, block * at_once // 512))
    return programs, {"K": len(b), "ROWS": at_once, "BLOCK": block, "num_warps": warps}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _readable(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def rank_update(rows: torch.Tensor, a: torch.Tensor, b: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """As `ether.reflection.rank_update`, the first result."""
    rows, a, b = _readable(rows), a.contiguous(), b.contiguous()
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    programs, sizes = _plan(rows, b, _FORWARD_WAVES)
    if len(rows):
        with _on(rows.device):
            _update_kernel[(programs, b.shape[1])](
                rows, y, a, b, b if offset is None else offset.contiguous(), len(rows), rows.stride(0), *b.shape[1:],
                HAS_OFFSET=offset is not None, **sizes,
            )  # fmt: skip
    return y


def rank_update_backward(
    g_rows: torch.Tensor,
    rows: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    offset: torch.Tensor | None,
    needs_x: bool,
    needs_parameters: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """As `ether.reflection.rank_update_backward`."""
    g_rows, rows, a, b = _readable(g_rows), _readable(rows), a.contiguous(), b.contiguous()
    g_x = torch.empty_like(g_rows, memory_format=torch.contiguous_format) if needs_x else None
    programs, sizes = _plan(rows, b, _BACKWARD_WAVES)
    shares = (programs, *b.shape) if needs_parameters else (0, 0, 0, 0)
    g_a = torch.zeros(shares, dtype=b.dtype, device=b.device)
    g_b = torch.zeros_like(g_a)
    t_sum = torch.zeros(shares[:3], dtype=b.dtype, device=b.device)
    if len(rows):
        with _on(rows.device):
            _update_backward_kernel[(programs, b.shape[1])](
                g_rows, rows, a, b, b if offset is None else offset.contiguous(),
                g_rows if g_x is None else g_x, g_a, g_b, t_sum,
                len(rows), g_rows.stride(0), rows.stride(0), *b.shape[1:],
                NEEDS_X=needs_x, NEEDS_PARAMETERS=needs_parameters, HAS_OFFSET=offset is not None, **sizes,
            )  # fmt: skip
    return (g_x, g_a.sum(0), g_b.sum(0), t_sum.sum(0)) if needs_parameters else (g_x, None, None, None)
