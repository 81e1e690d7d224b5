"""The mathematics of ETHER and ETHER+ (paper, Sec. 3.2-3.4), as functions of tensors; no `nn.Module` here.

A transformation acts on a d-dimensional side of a weight and is block-diagonal with n blocks of b = d / n entries. Its
parameters are tensors of shape (n, b); every block is normalised by itself, so only directions matter:

    ETHER    H  = diag(I - 2 u_1 u_1^T, ..., I - 2 u_n u_n^T)                      (eq. 1; blocks: Sec. 3.4)
    ETHER+   H+ = diag(I - u_1 u_1^T + v_1 v_1^T, ...)                             (Sec. 3.3)

Both are symmetric and differ from the identity by one or two outer products a block. So `reflect` moves *vectors*
through H at O(d) a vector, with neither H nor a dense weight gradient ever built. The same function serves the
forward pass (the vectors are activations) and merging (they are the weight's rows or columns):
(H W H~)^T x = H~^T W^T H^T x, and H = H^T.

ETHER+ is evaluated as v v^T - u u^T = e h^T + h e^T with e = v - u and h = (u + v) / 2: the correction is then exactly
zero for v = u, whatever the precision, and does not suffer from cancellation while v is near u.

Where the weight W (torch's f x d) can be read, `reflected_linear` goes one step further. The transformed weight differs
from W by a matrix of rank R = k n (k = 1 for each side of ETHER, 2 for each of ETHER+), whose two factors cost O(R d f)
once a call whatever the number of vectors, so neither the input nor the output is ever copied: that is LoRA's
arithmetic with factors that follow from the reflections, and less memory traffic than PEFT's LoRA.

For n > 1 the authors' released code computes something else on the input side, here called layout `release`: the
rows of W (torch's f x d) fall into n groups, and group r sees its own reflection repeated over all blocks,
W_r (I_n (x) H_r). `reflect_row_groups` and `row_group_correction` are this map on weights and on activations.

Everything is computed in at least float32 and returned in the dtype of the input.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = [
    "block_multiply",
    "plain_operations_only",
    "reflect",
    "reflect_row_groups",
    "reflected_linear",
    "reflected_linear_pays",
    "row_group_correction",
]

# Rows are processed in pieces of about this many numbers: small enough for a core's L2 cache, so that the second and
# third look at the same piece does not go back to memory, large enough for the interpreter's overhead to vanish.
_PIECE_CPU = 2**17
_PIECE_OTHER = 2**25
# Up to this width the number of operations matters and their size does not: see `_small_update`.
_SMALL = 256


def reflect(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Apply H (v is None; eq. 1) or H+ (Sec. 3.3) with n diagonal blocks (Sec. 3.4) to the last dimension of x.

    x: (..., d), any strides. u, v: (n, b) with n * b = d, any length but zero. shift: (d,) or None; with it the result
    is x + (H - I)(x - shift), which is how H~ acts on a linear layer's output without touching the bias it carries.
    Returns a tensor like x. Differentiable in all four, twice where asked for. Cost O(d) a vector for any n.
    Raises RuntimeError if they are on different devices.
    """
    _check_devices(x, u, v, shift)
    if plain_operations_only():
        return _reflect_plain(x, u, v, shift)
    return _Reflection.apply(x, u, v, shift)


def _check_devices(x: torch.Tensor, *others: torch.Tensor | None) -> None:
    # Some of torch's operations accept a CPU tensor beside one of the meta device and return uninitialised memory.
    device = x.device
    for tensor in others:
        if tensor is not None and tensor.device != device:
            raise RuntimeError(
                f"The input is on device {device}, and a tensor of the adapter or of the layer on {tensor.device}. Move the "
                "model and its input to the same device; a tensor on 'meta' has no values (not loaded yet, or offloaded)."
            )


def plain_operations_only() -> bool:
    """Whether someone looks at single operations, and would not get through the functions with their own backward pass.

    A compiler (which fuses plain operations itself, with no graph break), `torch.jit.trace`, the transformations of
    `torch.func` and batched gradients, or forward-mode differentiation.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def _directions(
    u: torch.Tensor, v: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A and B, each (k, n, b), with H - I = sum_k A_k B_k^T a block; the unit vectors, and their lengths before.

    k = 1 for ETHER and 2 for ETHER+. A zero vector has no direction; it gives a zero correction rather than NaN.
    """
    raw = (u.unsqueeze(0) if v is None else torch.stack((u, v))).to(dtype)
    length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    unit = raw / length
    if v is None:
        return -2 * unit, unit, unit, length
    e, h = unit[1] - unit[0], (unit[1] + unit[0]) / 2
    return torch.stack((h, e)), torch.stack((e, h)), unit, length


def _full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Keeps autocast from running the matrix products in here in half precision."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _work_dtype(x: torch.Tensor, u: torch.Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, u.dtype), torch.float32)


def _reflect_plain(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
    """`reflect` in a few differentiable operations: for compilers, second derivatives, and to test the other one."""
    dtype = _work_dtype(x, u)
    a, b, _, _ = _directions(u, v, dtype)
    with _full_precision(x.device.type):
        blocks = x.to(dtype).unflatten(-1, u.shape)
        moved = blocks if shift is None else blocks - shift.to(dtype).view(u.shape)
        s = torch.stack([(moved * b_k).sum(-1, keepdim=True) for b_k in b.unbind()])
        return (blocks + (s * a.view(a.shape[0], *(1,) * (x.dim() - 1), *u.shape)).sum(0)).flatten(-2).to(x.dtype)


class _Reflection(torch.autograd.Function):
    """`reflect`, forward and backward in about one pass over memory each.

    Kept for the backward pass: the inputs, and for narrow x (where it saves time and costs nothing) what was made of them.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        made = _directions(u, v, _work_dtype(x, u))
        a, b, *_ = made
        with _full_precision(x.device.type):
            y, s = rank_update(x.reshape(-1, u.numel()), a, b, _offset(b, shift))
        ctx.save_for_backward(x, u, v, shift, *(() if s is None else (s, *made)))
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, v, shift, *kept = ctx.saved_tensors
        # create_graph=True: these gradients will themselves be differentiated; or a batch of gradients at once.
        batched = torch._C._functorch.is_legacy_batchedtensor(gradient)
        if torch.is_grad_enabled() or batched or plain_operations_only():
            return _differentiable_backward(ctx, gradient, x, u, v, shift)
        s, a, b, unit, length = kept or (None, *_directions(u, v, _work_dtype(x, u)))
        needs_parameters = any(ctx.needs_input_grad[1:])
        rows, g_rows = x.reshape(-1, u.numel()), gradient.reshape(-1, u.numel())
        with _full_precision(x.device.type):
            g_x, g_a, g_b, t = rank_update_backward(
                g_rows, rows, a, b, _offset(b, shift), s, ctx.needs_input_grad[0], needs_parameters
            )
        g_x = None if g_x is None else g_x.view(x.shape)
        if g_a is None or g_b is None or t is None:
            return g_x, None, None, None
        g_shift = None
        if shift is not None:  # the inner products were b . (x - shift)
            g_b = g_b - t.unsqueeze(-1) * shift.to(b.dtype).view(u.shape)
            g_shift = -(t.unsqueeze(-1) * b).sum(0).view(shift.shape).to(shift.dtype)
        del a, b  # this is where memory peaks
        if v is None:
            g_unit = torch.add(g_b, g_a, alpha=-2)
        else:
            g_h, g_e = g_a[0] + g_b[1], g_a[1] + g_b[0]
            del g_a, g_b
            g_unit = torch.stack((g_h / 2 - g_e, g_h / 2 + g_e))
        g_raw = (g_unit - unit * (unit * g_unit).sum(-1, keepdim=True)) / length  # through u / |u|
        return g_x, g_raw[0].to(u.dtype), None if v is None else g_raw[1].to(v.dtype), g_shift


def _offset(b: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor | None:
    """(k, n): b . shift, a block and vector."""
    return None if shift is None else (b * shift.to(b.dtype).view(b.shape[1:])).sum(-1)


def _differentiable_backward(
    ctx: Any,
    gradient: torch.Tensor,
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    inputs = (x, u, v, shift)
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed and t is not None]
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        y = _reflect_plain(x, u, v, shift)
    got = iter(torch.autograd.grad(y, wanted, gradient, create_graph=twice))
    return tuple(next(got) if needed and t is not None else None for t, needed in zip(inputs, ctx.needs_input_grad, strict=True))


Vectors = tuple[torch.Tensor, torch.Tensor | None]


def reflected_linear_pays(rows: int, d: int, f: int, inputs: Vectors | None, outputs: Vectors | None) -> bool:
    """Whether `reflected_linear` beats `reflect` around the layer, for this many vectors and an f x d weight.

    Measured on a CPU (benchmarks/layer.py): the update's rank must be small against both sides, and the vectors many
    enough to pay for its factors.
    """
    rank = sum(len(u) * (1 if v is None else 2) for u, v in filter(None, (inputs, outputs)))
    return min(d, f) > _SMALL and 4 * rank <= min(d, f) and rows >= 8 * rank


def reflected_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    inputs: Vectors | None,
    outputs: Vectors | None,
) -> torch.Tensor:
    """x (H W H~) + bias for torch's weight (f, d), i.e. a linear layer with both sides reflected (Sec. 3.1, 3.3).

    x: (..., d); inputs: (u, v) of H, each (n, d / n), v None for ETHER, or None to leave that side alone; outputs: the
    same for H~, each (n, f / n). Returns (..., f). All in one floating dtype of at least float32. Differentiable in x and
    the vectors, twice where asked for; the weight and bias get no gradient. Raises RuntimeError if they are on different
    devices.

    With H = I + sum_i a_i b_i^T and H~ = I + sum_j c_j d_j^T this is x W^T + (x Q) P^T,
    P = [W A, C] and Q = [B, W'^T D] where W' = W H.
    """
    _check_devices(x, weight, bias, *(inputs or ()), *(outputs or ()))
    left: list[torch.Tensor] = []
    right: list[torch.Tensor] = []
    if inputs is not None:
        a, b, _, _ = _directions(*inputs, x.dtype)
        by_block = weight.unflatten(-1, a.shape[1:]).permute(1, 2, 0)  # (n, b, f), no copy
        left.append(torch.bmm(a.transpose(0, 1), by_block).flatten(0, 1))
        right.append(_spread(b))
    if outputs is not None:
        c, d, _, _ = _directions(*outputs, x.dtype)
        through = torch.bmm(d.transpose(0, 1), weight.unflatten(0, d.shape[1:])).flatten(0, 1)
        if inputs is not None:
            through = through + (_spread(d) @ left[0].t()) @ right[0]
        left.append(_spread(c))
        right.append(through)
    rows = x.reshape(-1, x.shape[-1])
    y: torch.Tensor = _LowRankLinear.apply(rows, weight, bias, torch.cat(left), torch.cat(right))
    return y.view(*x.shape[:-1], weight.shape[0])


class _LowRankLinear(torch.autograd.Function):
    """x W^T + bias + (x Q) P^T, with the update added in place to what the matrix product returned.

    x: (t, d); weight: (f, d), frozen; p: (R, f); q: (R, d), transposed as matrix libraries like them best.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, p: torch.Tensor, q: torch.Tensor
    ) -> torch.Tensor:
        s = torch.nn.functional.linear(x, q)
        ctx.save_for_backward(x, weight, p, q, s)
        return torch.nn.functional.linear(x, weight, bias).addmm_(s, p)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, p, q, s = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: autograd follows the operations below, so s must show its origin
            s = torch.nn.functional.linear(x, q)
        t = torch.nn.functional.linear(gradient, p)
        g_x = (gradient @ weight).addmm_(t, q) if ctx.needs_input_grad[0] else None
        g_p = s.t() @ gradient if ctx.needs_input_grad[3] else None
        g_q = t.t() @ x if ctx.needs_input_grad[4] else None
        return g_x, None, None, g_p, g_q


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        return importlib.import_module("ether.kernels")
    except ImportError:  # no Triton here; the plain operations below do the same, in more passes
        return None


def _fused(rows: torch.Tensor, b: torch.Tensor) -> Any:
    """The module with the fused kernels where they can be used, else None."""
    if rows.device.type != "cuda":
        return None
    kernels = _kernels()
    return kernels if kernels is not None and kernels.fits(b) else None


def rank_update(
    rows: torch.Tensor, a: torch.Tensor, b: torch.Tensor, offset: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y = x + sum_k a_k (b_k . x - offset_k) for each row x and block.

    rows: (t, d); a, b: (k, n, b), float32 or float64; offset: (k, n).
    Returns y like rows; and the inner products where keeping them for the backward pass is worth it.
    """
    if (fused := _fused(rows, b)) is not None:
        return fused.rank_update(rows, a, b, offset), None
    if rows.shape[1] <= _SMALL:
        return _small_update(rows, a, b, offset)
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for part in _pieces(rows):
        piece = rows[part].to(b.dtype)
        s = _inner(piece, b, offset, y[part])
        _add_outer(piece, s, a, y[part])
    return y, None


def rank_update_backward(
    g_rows: torch.Tensor,
    rows: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    offset: torch.Tensor | None,
    s: torch.Tensor | None,
    needs_x: bool,
    needs_parameters: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `rank_update` for the rows, for a, and for b as if offset were 0; and sum_rows a_k . g, (k, n).

    s: what `rank_update` returned. The first result, or the other three, are None where they are not needed.
    """
    if (fused := _fused(rows, b)) is not None:
        return fused.rank_update_backward(g_rows, rows, a, b, offset, needs_x, needs_parameters)
    if s is not None:
        return _small_update_backward(g_rows, rows, a, b, s, needs_x, needs_parameters)
    g_x = torch.empty_like(g_rows, memory_format=torch.contiguous_format) if needs_x else None
    g_a, g_b = torch.zeros_like(a), torch.zeros_like(b)
    t_sum = a.new_zeros(a.shape[:2])
    for part in _pieces(g_rows):
        g_piece = g_rows[part].to(a.dtype)
        out = torch.empty_like(g_piece) if g_x is None else g_x[part]
        t = _inner(g_piece, a, None, out)
        if needs_parameters:
            x_piece = rows[part].to(a.dtype)
            _sum_outer(g_a, _inner(x_piece, b, offset, out), g_piece, out)
            _sum_outer(g_b, t, x_piece, out)
            t_sum += t.sum(1)
        if g_x is not None:
            _add_outer(g_piece, t, b, out)
    return (g_x, g_a, g_b, t_sum) if needs_parameters else (g_x, None, None, None)


def _pieces(rows: torch.Tensor) -> Iterator[slice]:
    count, d = rows.shape
    size = max(1, (_PIECE_CPU if rows.device.type == "cpu" else _PIECE_OTHER) // d)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


# The last argument of the following is where the result of the same piece will go: until then it serves as scratch
# space, so that nothing else of a piece's size is allocated.


def _product(blocks: torch.Tensor, factor: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    if scratch.dtype != blocks.dtype:
        return blocks * factor
    return torch.mul(blocks, factor, out=scratch.unflatten(-1, blocks.shape[1:]))


def _inner(piece: torch.Tensor, b: torch.Tensor, offset: torch.Tensor | None, scratch: torch.Tensor) -> torch.Tensor:
    """(t, d), (k, n, b), (k, n) -> (k, t, n): each row's blocks times each vector, less the offset."""
    if b.shape[1] == 1:
        s = torch.stack([piece.mv(b_k[0]) for b_k in b]).unsqueeze(-1)
    else:
        blocks = piece.unflatten(-1, b.shape[1:])
        s = torch.stack([_product(blocks, b_k, scratch).sum(-1) for b_k in b])
    return s if offset is None else s - offset.unsqueeze(1)


def _add_outer(piece: torch.Tensor, s: torch.Tensor, a: torch.Tensor, out: torch.Tensor) -> None:
    """out (t, d) = piece + sum_k s_k a_k, from (t, d), (k, t, n) and (k, n, b), without a copy where dtypes allow."""
    result = out if out.dtype == piece.dtype else torch.empty_like(piece)
    blocks = result.unflatten(-1, a.shape[1:])
    torch.addcmul(piece.unflatten(-1, a.shape[1:]), s[0].unsqueeze(-1), a[0], out=blocks)
    for s_k, a_k in zip(s[1:], a[1:], strict=True):
        blocks.addcmul_(s_k.unsqueeze(-1), a_k)
    if result is not out:
        out.copy_(result)


def _sum_outer(total: torch.Tensor, s: torch.Tensor, piece: torch.Tensor, scratch: torch.Tensor) -> None:
    """total (k, n, b) += the sum over rows of s_k times the row's blocks, from (k, t, n) and (t, d)."""
    n, b = total.shape[1:]
    if n == 1:
        for total_k, s_k in zip(total, s, strict=True):
            total_k[0].addmv_(piece.t(), s_k[:, 0])
        return
    blocks = piece.unflatten(-1, (n, b))
    if b < 64:  # below that, a batch of thin matrix products is slower than plain multiplication
        for total_k, s_k in zip(total, s, strict=True):
            total_k += _product(blocks, s_k.unsqueeze(-1), scratch).sum(0)
    else:
        total.transpose(0, 1).baddbmm_(s.permute(2, 0, 1), blocks.transpose(0, 1))


def _small_update(
    rows: torch.Tensor, a: torch.Tensor, b: torch.Tensor, offset: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rank_update` for small d, in two matrix products: all k * n vectors at once, each filled up with zeros to d."""
    x = rows.to(b.dtype)
    s = x @ _spread(b).t()
    if offset is not None:
        s -= offset.t().reshape(-1)
    return torch.addmm(x, s, _spread(a)).to(rows.dtype), s


def _small_update_backward(
    g_rows: torch.Tensor,
    rows: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    needs_x: bool,
    needs_parameters: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    g = g_rows.to(a.dtype)
    t = g @ _spread(a).t()
    g_x = torch.addmm(g, t, _spread(b)).to(g_rows.dtype) if needs_x else None
    if not needs_parameters:
        return g_x, None, None, None
    return (
        g_x,
        _gather(s.t() @ g, a.shape),
        _gather(t.t() @ rows.to(a.dtype), a.shape),
        t.sum(0).view(a.shape[1], a.shape[0]).t(),
    )


def _spread(a: torch.Tensor) -> torch.Tensor:
    """(k, n, b) -> (n k, d): each vector at the place of its block, zeros elsewhere; block by block."""
    k, n, b = a.shape
    if n == 1:
        return a.view(k, b)
    return (torch.eye(n, dtype=a.dtype, device=a.device).view(n, 1, n, 1) * a.transpose(0, 1).unsqueeze(2)).reshape(n * k, n * b)


def _gather(full: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(n k, d) -> (k, n, b): what `_spread` put in place."""
    k, n, b = shape
    return full.view(n, k, n, b).diagonal(dim1=0, dim2=2).permute(0, 2, 1)


def reflect_row_groups(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    """Layout `release` on a weight (f, d): W_r (I_n (x) H_r) for each of the n groups of f / n rows.

    u, v: (n, d / n). With n = 1 this is `reflect`. It is how the authors' released code transforms the input side;
    neurons of different groups see different reflections, so for n > 1 the angles between them are not kept.
    """
    n, b = u.shape
    f, d = weight.shape
    by_group = weight.reshape(n, f // n, n, b).permute(1, 2, 0, 3).reshape(-1, d)  # block r of each row: group r
    return reflect(by_group, u, v).view(f // n, n, n, b).permute(2, 0, 1, 3).reshape(f, d)


def row_group_correction(x: torch.Tensor, weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    """Layout `release` on activations: x W'^T - x W^T for W' = `reflect_row_groups`(W, u, v).

    x: (..., d); weight: (f, d). Returns (..., f) in x's dtype. Group r of the outputs needs its own transformed input;
    instead of n copies of x, each of the n * n (group, block) pairs contributes one rank-one term,
    (x_j . b_r) (W_{r,j} a_r), which costs O(t n (d + f) + d f) for t rows. Raises RuntimeError if the tensors are on
    different devices.
    """
    _check_devices(x, weight, u, v)
    dtype = _work_dtype(x, u)
    a, b, _, _ = _directions(u, v, dtype)
    n, size = u.shape
    f = weight.shape[0]
    with _full_precision(x.device.type):
        rows = x.to(dtype).reshape(-1, n, size)
        inner = torch.einsum("tjb,krb->rtkj", rows, b).flatten(-2)  # (r, t, kj)
        moved = torch.einsum("rojb,krb->rkjo", weight.to(dtype).view(n, f // n, n, size), a).flatten(1, 2)  # (r, kj, o)
        out = torch.bmm(inner, moved).transpose(0, 1).reshape(*x.shape[:-1], f)
    return out.to(x.dtype)


def block_multiply(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Rows times a block-diagonal matrix: x diag(N_1, ..., N_n), the control `Naive` (Sec. 3.2, footnote 1).

    x: (..., n * b); blocks: (n, b, b). Returns a tensor like x. The forward pass is (N W)^T x = W^T N^T x, that is
    x_row N; merging turns each row w of torch's weight (f, d) into w N^T. Raises RuntimeError if the tensors are on
    different devices.
    """
    _check_devices(x, blocks)
    dtype = _work_dtype(x, blocks)
    n, size, _ = blocks.shape
    with _full_precision(x.device.type):
        rows = x.to(dtype).reshape(-1, n, size).transpose(0, 1)
        return torch.bmm(rows, blocks.to(dtype)).transpose(0, 1).reshape(x.shape).to(x.dtype)
