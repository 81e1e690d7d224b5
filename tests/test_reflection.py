"""`ether.reflection` against dense matrices, closed forms of the paper, and what it promises about cost."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ether import reflection
from ether.dense import dense_blocks, dense_reflection
from ether.reflection import (
    block_multiply,
    reflect,
    reflect_row_groups,
    reflected_linear,
    reflected_linear_pays,
    row_group_correction,
)

D, F = 64, 48
BLOCKS = [1, 4, 16]


@pytest.fixture(params=["small", "in pieces"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs both ways of computing a reflection, which the width of the vectors would choose between."""
    monkeypatch.setattr(reflection, "_SMALL", 10**9 if request.param == "small" else 0)


METHODS = pytest.mark.parametrize("relaxed", [False, True], ids=["ETHER", "ETHER+"])


def vectors(n: int, relaxed: bool, d: int = D, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, n, d // n, dtype=torch.float64, generator=generator)
    return u.requires_grad_(), v.requires_grad_() if relaxed else None


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def same_gradients(actual: torch.Tensor, expected: torch.Tensor, *inputs: torch.Tensor | None, seed: int = 2) -> None:
    close(actual, expected)
    wanted = [t for t in inputs if t is not None]
    g = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(seed))
    for one, other in zip(torch.autograd.grad(actual, wanted, g), torch.autograd.grad(expected, wanted, g), strict=True):
        close(one, other)


@METHODS
@pytest.mark.parametrize("n", BLOCKS)
def test_values_and_gradients_are_those_of_the_dense_matrix(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed)
    x = normal(3, 5, D)
    same_gradients(reflect(x, u, v), x @ dense_reflection(u, v), x, u, v)


@METHODS
@pytest.mark.parametrize("n", BLOCKS)
def test_shift_leaves_a_bias_alone(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed, F)
    x, weight, bias = normal(7, D), normal(F, D, seed=3), normal(F, seed=4)
    expected = x @ (dense_reflection(u, v) @ weight).T + bias
    same_gradients(reflect(torch.nn.functional.linear(x, weight, bias), u, v, bias), expected, x, u, v, bias, weight)


@METHODS
@pytest.mark.parametrize("sides", ["input", "output", "both"])
@pytest.mark.parametrize("n", BLOCKS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_reflected_linear_layer_is_the_dense_formula(n: int, relaxed: bool, sides: str, with_bias: bool) -> None:
    inputs = vectors(n, relaxed) if sides != "output" else None
    outputs = vectors(n, relaxed, F, seed=5) if sides != "input" else None
    x, weight = normal(2, 7, D), normal(F, D, seed=3).detach()
    bias = normal(F, seed=4).detach() if with_bias else None
    dense = weight
    if inputs is not None:
        dense = dense @ dense_reflection(*inputs)
    if outputs is not None:
        dense = dense_reflection(*outputs) @ dense
    expected = torch.nn.functional.linear(x, dense, bias)
    parameters = [p for side in (inputs, outputs) if side is not None for p in side]
    same_gradients(reflected_linear(x, weight, bias, inputs, outputs), expected, x, *parameters)


@METHODS
def test_a_reflected_linear_layer_has_second_derivatives(relaxed: bool) -> None:
    inputs, outputs = vectors(2, relaxed, 8), vectors(2, relaxed, 6, seed=5)
    weight, given = normal(6, 8, seed=3).detach(), [p for p in (*inputs, *outputs) if p is not None]

    def layer(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return reflected_linear(x, weight, None, inputs, outputs)

    assert torch.autograd.gradgradcheck(layer, (normal(3, 8), *given))


def test_a_relaxed_reflection_at_its_start_leaves_a_linear_layer_as_it_was_to_the_bit() -> None:
    u, _ = vectors(4, True)
    x, weight = normal(7, D).detach(), normal(F, D, seed=3).detach()
    assert torch.equal(reflected_linear(x, weight, None, (u, u), None), torch.nn.functional.linear(x, weight))


def test_factors_of_a_linear_layer_pay_only_for_many_vectors_and_few_blocks() -> None:
    wide = (torch.zeros(1, 4096), torch.zeros(1, 4096))
    assert reflected_linear_pays(1024, 4096, 4096, wide, wide) == (reflection._SMALL < 4096)
    assert not reflected_linear_pays(8, 4096, 4096, wide, wide)  # generating a word at a time
    many = (torch.zeros(512, 8), torch.zeros(512, 8))
    assert not reflected_linear_pays(8192, 4096, 4096, many, many)


def dense_row_groups(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None) -> torch.Tensor:
    """Layout `release` from its definition: W_r (I_n (x) H_r) for each group r of rows."""
    n = len(u)
    transformed = []
    for r, rows in enumerate(weight.chunk(n)):
        one = dense_reflection(u[r : r + 1], None if v is None else v[r : r + 1])
        transformed.append(rows @ torch.kron(torch.eye(n, dtype=weight.dtype), one))
    return torch.cat(transformed)


@METHODS
@pytest.mark.parametrize("n", BLOCKS)
def test_release_layout_on_weights_and_on_activations(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed)
    x, weight = normal(2, 5, D), normal(F, D, seed=3)
    same_gradients(reflect_row_groups(weight, u, v), dense_row_groups(weight, u, v), weight, u, v)
    expected = x @ dense_row_groups(weight, u, v).T
    same_gradients(x @ weight.T + row_group_correction(x, weight, u, v), expected, x, weight, u, v)


def test_the_two_layouts_agree_for_one_block_and_differ_for_more() -> None:
    weight = normal(F, D)
    u, _ = vectors(1, False)
    close(reflect_row_groups(weight, u), reflect(weight, u))
    u, _ = vectors(4, False)
    assert (reflect_row_groups(weight, u) - reflect(weight, u)).abs().max() > 0.1


@pytest.mark.parametrize("n", BLOCKS)
def test_only_the_paper_s_layout_keeps_the_angles_between_neurons(n: int) -> None:
    weight = normal(F, D).detach()
    u, _ = vectors(n, False)
    gram = weight @ weight.T
    moved = reflect(weight, u)
    close(moved @ moved.T, gram)
    moved = reflect_row_groups(weight, u)
    assert n == 1 or (moved @ moved.T - gram).abs().max() > 0.1


@pytest.mark.parametrize("n", BLOCKS)
def test_block_multiply_is_the_dense_product(n: int) -> None:
    blocks, x = normal(n, D // n, D // n), normal(2, 3, D, seed=2)
    same_gradients(block_multiply(x, blocks), x @ dense_blocks(blocks), x, blocks)


@pytest.mark.parametrize("n", BLOCKS)
def test_closed_forms_of_ether(n: int) -> None:
    """Eq. 2 for n blocks: the distance is 2 sqrt(n); H is an orthogonal involution of determinant (-1)^n."""
    u, _ = vectors(n, False)
    h = dense_reflection(u.detach())
    eye = torch.eye(D, dtype=h.dtype)
    close((h - eye).norm(), torch.tensor(2 * math.sqrt(n), dtype=h.dtype))
    close(h @ h.T, eye)
    close(torch.linalg.det(h), torch.tensor((-1.0) ** n, dtype=h.dtype))
    x = normal(5, D)
    close(reflect(reflect(x, u), u), x)


@pytest.mark.parametrize("n", BLOCKS)
def test_closed_forms_of_ether_plus(n: int) -> None:
    """At most sqrt(2 n) from the identity, reached for u orthogonal to v, where H+ is singular."""
    u, v = (t.detach() for t in vectors(n, True))
    eye = torch.eye(D, dtype=u.dtype)
    cosine = torch.cosine_similarity(u, v, dim=-1)
    close((dense_reflection(u, v) - eye).norm(), (2 * (1 - cosine**2)).sum().sqrt())
    assert (dense_reflection(u, v) - eye).norm() < math.sqrt(2 * n)
    block = torch.linalg.eigvalsh(dense_reflection(u[:1], v[:1]))
    close(block[[0, -1]], 1 + torch.stack((-1 * (1 - cosine[0] ** 2).sqrt(), (1 - cosine[0] ** 2).sqrt())))
    v = v - u * (u * v).sum(-1, keepdim=True) / u.square().sum(-1, keepdim=True)
    h = dense_reflection(u, v)
    close((h - eye).norm(), torch.tensor(math.sqrt(2 * n), dtype=u.dtype))
    assert torch.linalg.svdvals(h)[-1] < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ether_plus_with_equal_vectors_is_the_identity_to_the_bit(dtype: torch.dtype) -> None:
    u, _ = vectors(4, False)
    x = normal(9, D).to(dtype)
    u = u.to(dtype)
    assert torch.equal(reflect(x, u, u.clone()), x)
    weight = normal(F, D).to(dtype)
    assert torch.equal(reflect_row_groups(weight, u, u.clone()), weight)
    assert not row_group_correction(x, weight, u, u.clone()).any()


@METHODS
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3), (2, 3, 4)])
def test_all_leading_shapes(shape: tuple[int, ...], relaxed: bool) -> None:
    u, v = vectors(4, relaxed)
    x = normal(*shape, D)
    assert reflect(x, u, v).shape == x.shape
    same_gradients(reflect(x, u, v), x @ dense_reflection(u, v), x, u, v)


@METHODS
@pytest.mark.parametrize("n", [1, 4])
def test_inputs_and_gradients_that_are_not_contiguous(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed)
    base = normal(D, 6, 4)
    strided = normal(5, 3 * D, seed=5)
    for x in (base.permute(2, 1, 0), strided[:, ::3], strided[:1, :D].expand(5, D)):
        assert not x.is_contiguous()
        same_gradients(reflect(x, u, v), x @ dense_reflection(u, v), x, u, v)
        # the gradient of a sum is one number expanded over all entries
        for a, b in zip(
            torch.autograd.grad(reflect(x, u, v).sum(), (x, u)),
            torch.autograd.grad((x @ dense_reflection(u, v)).sum(), (x, u)),
            strict=True,
        ):
            close(a, b)


@METHODS
@pytest.mark.parametrize("n", [1, 8])
def test_more_rows_than_fit_one_piece(n: int, relaxed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "_PIECE_CPU", 3 * D + 1)
    u, v = vectors(n, relaxed)
    x, shift = normal(20, D), normal(D, seed=6)
    expected = x + (x - shift) @ (dense_reflection(u, v) - torch.eye(D, dtype=x.dtype))
    same_gradients(reflect(x, u, v, shift), expected, x, u, v, shift)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 4])
def test_half_precision_accumulates_in_single(n: int, dtype: torch.dtype, relaxed: bool) -> None:
    """Only the result is rounded: a sum of 2048 terms in bfloat16 would be wrong in the second digit."""
    d = 2048
    u, v = (None if t is None else t.detach().to(dtype) for t in vectors(n, relaxed, d))
    x = (normal(6, d).detach() + 1).to(dtype).requires_grad_()
    exact = x.detach().double()
    exact = exact @ dense_reflection(u.double(), None if v is None else v.double())
    y = reflect(x, u, v)
    assert y.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=unit, atol=unit * 1e-2)
    (g,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert g.dtype == dtype


def test_parameters_may_be_more_precise_than_activations_and_keep_their_gradient_dtype() -> None:
    u, v = (t.detach().float().requires_grad_() for t in vectors(4, True))
    x = normal(5, D).bfloat16()
    y = reflect(x, u, v)
    g_u, g_v = torch.autograd.grad(y.float().square().sum(), (u, v))
    assert (y.dtype, g_u.dtype, g_v.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_a_zero_vector_changes_nothing_and_gives_no_nan() -> None:
    u = torch.zeros(2, D // 2, requires_grad=True)
    x = torch.randn(3, D, requires_grad=True)
    y = reflect(x, u)
    assert torch.equal(y, x)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), (x, u)))


@METHODS
@pytest.mark.parametrize("n", [1, 2])
def test_first_and_second_derivatives(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed, 6)
    x, shift = normal(2, 6), normal(6, seed=7)
    inputs = [t for t in (x, u, v, shift) if t is not None]

    def function(*given: torch.Tensor) -> torch.Tensor:
        return reflect(given[0], given[1], given[2] if relaxed else None, given[-1])

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@METHODS
@pytest.mark.parametrize("frozen", ["x", "parameters"])
def test_only_gradients_that_are_needed(relaxed: bool, frozen: str) -> None:
    u, v = vectors(4, relaxed)
    x = normal(5, D)
    parameters = [t for t in (u, v) if t is not None]
    for t in [x] if frozen == "x" else parameters:
        t.requires_grad_(False)
    wanted = parameters if frozen == "x" else [x]
    same_gradients(reflect(x, u, v), x @ dense_reflection(u, v), *wanted)


class Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.entries = max(self.entries, t.numel())
        return result


@METHODS
@pytest.mark.parametrize("n", BLOCKS)
def test_nothing_of_size_d_by_d_is_ever_built(n: int, relaxed: bool) -> None:
    d, rows = 1024, 8
    u, v = vectors(n, relaxed, d)
    x = normal(rows, d)
    with Largest() as seen:
        reflect(x, u, v).sum().backward()
    assert seen.entries < d * d // n  # the entries of H's blocks; those of H are n times as many


@METHODS
@pytest.mark.parametrize("n", BLOCKS)
def test_what_is_kept_for_the_backward_pass(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed)
    x = normal(32, D)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        reflect(x, u, v)
    given = {t.data_ptr() for t in (x, u, v) if t is not None}
    extra = sum(t.numel() for t in kept if t.data_ptr() not in given)
    # nothing; or, for narrow x, an inner product a row, block and vector, and some copies of the parameters
    k = 2 if relaxed else 1
    assert extra <= (32 * k * n + 4 * k * D if reflection._SMALL >= D else 0)


@METHODS
@pytest.mark.parametrize("n", [1, 4])
def test_compiles_without_graph_breaks(n: int, relaxed: bool) -> None:
    u, v = vectors(n, relaxed)
    x, shift = normal(3, D), normal(D, seed=8)
    compiled = torch.compile(reflect, fullgraph=True, backend="aot_eager", dynamic=False)
    torch._dynamo.reset()
    same_gradients(compiled(x, u, v, shift), reflect(x, u, v, shift), x, u, v, shift)


@pytest.mark.parametrize("n,relaxed", itertools.product([1, 4], [False, True]))
def test_autocast_does_not_lower_the_precision(n: int, relaxed: bool) -> None:
    u, v = (None if t is None else t.detach().float() for t in vectors(n, relaxed))
    x = normal(5, D).detach().float().requires_grad_()
    expected = reflect(x, u, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = reflect(x, u, v)
        (g,) = torch.autograd.grad(actual.sum(), x)
    assert torch.equal(actual, expected)
    assert torch.equal(g, torch.autograd.grad(expected.sum(), x)[0])
