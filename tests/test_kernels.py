"""`ether.kernels` against float64, through Triton's interpreter on the CPU or, where there is one, on a GPU."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from ether import reflection
from ether.dense import dense_reflection
from ether.reflection import reflect

# The test extra installs Triton where there are wheels: there, its absence is a failure and not a reason to skip.
if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    pytest.importorskip("triton", reason="the fused kernels need Triton, which has wheels for Linux on x86-64 only")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets, and transformers imports it: without a GPU these tests
# run in a process of their own, started by `test_in_triton_s_interpreter`.
RUNS_HERE = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"

# rows, blocks, entries a block: powers of two and none, one row, more rows than the programs take at once
SIZES = [(1, 1, 8), (5, 1, 300), (13, 3, 24), (70, 4, 64), (3, 1, 1030), (9, 8, 1), (0, 2, 4)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("ether.kernels")
        patch.setattr(module, "_TILE", 512)  # so that small inputs take several turns of the loop over rows
        yield module


def tensors(rows: int, n: int, b: int, k: int, dtype: torch.dtype, strided: bool = False) -> list[torch.Tensor]:
    """x, its result's gradient, a, b and offset."""
    generator = torch.Generator().manual_seed(rows + n + b)
    x, g = torch.randn(2, rows, 2 * n * b, generator=generator)
    x, g = ((t[:, ::2] if strided else t[:, : n * b]).to(dtype).to(DEVICE) for t in (x, g))
    a, b_ = torch.randn(2, k, n, b, generator=generator).to(DEVICE) / b**0.5
    return [x, g, a, b_, torch.randn(k, n, generator=generator).to(DEVICE)]


def close(actual: torch.Tensor | None, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual is not None
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * 2)


@pytest.mark.parametrize("rows,n,b", SIZES)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("strided", [False, True])
def test_kernels_equal_the_formula_in_float64(
    kernels: ModuleType, rows: int, n: int, b: int, k: int, dtype: torch.dtype, strided: bool
) -> None:
    x, g, a, b_, offset = tensors(rows, n, b, k, dtype, strided)
    exact = [t.double().requires_grad_() for t in (x, a, b_)]
    blocks = exact[0].view(rows, n, b)
    inner = torch.einsum("tnb,knb->ktn", blocks, exact[2])
    expected = (blocks + torch.einsum("ktn,knb->tnb", inner - offset.double()[:, None], exact[1])).flatten(1)
    y = kernels.rank_update(x, a, b_, offset)
    assert y.dtype == dtype
    close(y, expected, dtype)

    g_x, g_a, g_b, t = kernels.rank_update_backward(g, x, a, b_, offset, True, True)
    exact_x, exact_a, exact_b = torch.autograd.grad(expected, exact, g.double())
    assert g_x.dtype == dtype
    close(g_x, exact_x, dtype)
    scale = max(1.0, rows**0.5)  # sums over rows
    close(g_a / scale, exact_a / scale, torch.float32)
    close(g_b / scale, exact_b / scale, torch.float32)
    close(t / scale, torch.einsum("tnb,knb->kn", g.double().view(rows, n, b), a.double()) / scale, torch.float32)


def test_only_what_is_needed(kernels: ModuleType) -> None:
    x, g, a, b, _ = tensors(13, 3, 24, 2, torch.float32)
    expected, _ = reflection.rank_update(x.double(), a.double(), b.double(), None)
    close(kernels.rank_update(x, a, b, None), expected, torch.float32)
    before = g.clone()
    full = kernels.rank_update_backward(g, x, a, b, None, True, True)
    only_x = kernels.rank_update_backward(g, x, a, b, None, True, False)
    only_parameters = kernels.rank_update_backward(g, x, a, b, None, False, True)
    assert only_x[1:] == (None, None, None) and torch.equal(only_x[0], full[0])
    assert only_parameters[0] is None
    assert all(torch.equal(p, q) for p, q in zip(only_parameters[1:], full[1:], strict=True))
    assert torch.equal(g, before)


def test_the_same_result_every_time(kernels: ModuleType) -> None:
    x, g, a, b, _ = tensors(70, 4, 64, 2, torch.bfloat16)
    first, second = (kernels.rank_update_backward(g, x, a, b, None, True, True) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_what_fits(kernels: ModuleType) -> None:
    assert kernels.fits(torch.empty(2, 1, 16384))
    assert not kernels.fits(torch.empty(1, 1, 16385))
    assert not kernels.fits(torch.empty(1, 1, 8, dtype=torch.float64))


@pytest.mark.parametrize("relaxed", [False, True], ids=["ETHER", "ETHER+"])
@pytest.mark.parametrize("n", [1, 4])
def test_reflect_through_the_kernels(kernels: ModuleType, n: int, relaxed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "_fused", lambda rows, b: kernels)
    d = 24
    generator = torch.Generator().manual_seed(0)
    x, u, v, shift = (
        torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()
        for shape in ((2, 5, d), (n, d // n), (n, d // n), (d,))
    )
    used = [x, u, v, shift] if relaxed else [x, u, shift]
    exact = dict(zip(used, (t.detach().double().requires_grad_() for t in used), strict=True))
    h = dense_reflection(exact[u], exact[v] if relaxed else None)
    expected = exact[x] + (exact[x] - exact[shift]) @ (h - torch.eye(d, dtype=h.dtype, device=DEVICE))
    actual = reflect(x, u, v if relaxed else None, shift)
    close(actual, expected, torch.float32)
    g = torch.randn(actual.shape, generator=generator).to(DEVICE)
    for one, other in zip(
        torch.autograd.grad(actual, used, g),
        torch.autograd.grad(expected, list(exact.values()), g.double()),
        strict=True,
    ):
        close(one, other, torch.float32)


if not RUNS_HERE:
    for _name in [n for n in globals() if n.startswith("test_")]:
        del globals()[_name]

    def test_in_triton_s_interpreter() -> None:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-o", "addopts=", __file__],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr  # pytest's 5 if it found no tests
        found = re.search(r"(\d+) passed", run.stdout)
        assert found and int(found[1]) > 80 and "skipped" not in run.stdout, run.stdout
