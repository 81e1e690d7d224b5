"""Deviations in the adapter: layout and side of the blocks, distance to the identity, start of training, dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ether import config
from ether.dense import dense_reflection
from ether.measures.architectures import DEBERTA_V3_BASE, LLAMA_2_7B, SD15_UNET
from ether.measures.geometry import hyperspherical_energy
from ether.paper import published
from ether.paper.deviations.point import Point, percent, random, rounded, table
from ether.reflection import reflect, reflect_row_groups

SIZE = 256  # side of the square weights on which layouts are compared


def _cosines(weight: torch.Tensor) -> torch.Tensor:
    """(f, d) -> (f, f): cosines of the angles between neurons, the rows of torch's weight."""
    unit = weight / weight.norm(dim=1, keepdim=True)
    return unit @ unit.T


def angle_changes(changed: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Largest change of a cosine between two neurons, and the relative change of hyperspherical energy."""
    moved = float((_cosines(changed) - _cosines(weight)).abs().max())
    return moved, hyperspherical_energy(changed) / hyperspherical_energy(weight) - 1


def _adapted(base: nn.Linear, **settings: Any) -> nn.Module:
    """A linear layer under this package's adapter."""
    from peft import get_peft_model

    from ether import EtherConfig

    model: Any = nn.Sequential(base)
    return get_peft_model(model, EtherConfig(target_modules=["0"], **settings))


def input_layouts() -> Point:
    """The paper's block-diagonal matrix against the input side of the released code."""
    weight = random(SIZE, SIZE)

    def rows() -> Iterator[Sequence[object]]:
        for n in (1, 4, 16, 32):
            u = random(n, SIZE // n, seed=n)
            diagonal, release = reflect(weight, u), reflect_row_groups(weight, u)
            difference = float((release - diagonal).norm() / (diagonal - weight).norm())
            cosine, energy = angle_changes(diagonal, weight)
            other_cosine, other_energy = angle_changes(release, weight)
            yield (
                n,
                rounded(difference, ".2f"),
                rounded(cosine),
                rounded(other_cosine, ".2f"),
                rounded(energy),
                rounded(other_energy),
            )

    return Point(
        "Blocks on the input side",
        "Sec. 3.4 makes H block-diagonal. The released code splits the *outputs* into n groups instead, and gives each "
        "group a reflection that is repeated over all blocks of the input. With one block the two are the same. With more, "
        "neurons of different groups are reflected differently, so the angles between them change, which a reflection is "
        "meant to preserve. This suite computes the paper's layout (`layout=\"diagonal\"`) and has the other as "
        f"`layout=\"release\"`. Below: a random {SIZE} x {SIZE} weight; the difference of the two results divided by ETHER's "
        "change of the weight; the largest change of a cosine between two neurons; the relative change of their "
        "hyperspherical energy.",
        table(["n", "difference", "cosines, diagonal", "cosines, release", "energy, diagonal", "energy, release"], rows()),
    )  # fmt: skip


def output_side() -> Point:
    """Query and value in the released code: the output side."""
    weight = random(SIZE, SIZE)

    def rows() -> Iterator[Sequence[object]]:
        for n in (1, 4, 32):
            u = random(n, SIZE // n, seed=n)
            changed = reflect(weight.T, u).T
            moved, energy = angle_changes(changed, weight)
            columns = float((changed.T @ changed - weight.T @ weight).abs().max())
            yield n, f"{moved:.2f}", f"{energy:.1e}", rounded(columns)

    heads = config.method("ether-n32")["adapt"]["config"]["n_blocks"]
    return Point(
        "Query and value: which side",
        "The paper multiplies the input side, (HW)ᵀx. The released code has another class for query and value, the only "
        "layers it adapts by default, and reflects their *outputs* there. Both sides of a square matrix have equally many "
        "parameters, so the count does not distinguish them. On the output side the products between inputs (WᵀW in torch's "
        f"notation) are preserved, and the angles between neurons change. With n = {heads} in Llama-2-7B a block has "
        f"{LLAMA_2_7B['hidden_size'] // heads} entries: one reflection for each attention head. This suite uses the paper's "
        "side; `sides=\"output\"` is the other.",
        table(["n", "largest change of a cosine", "energy", "largest change in WᵀW"], rows()),
    )  # fmt: skip


def distance() -> Point:
    """The distance to the identity with blocks (eq. 2, Sec. 3.3)."""

    def rows() -> Iterator[Sequence[object]]:
        eye = torch.eye(SIZE, dtype=torch.float64)
        for n in (1, 4, 16, 32):
            u = random(n, SIZE // n, seed=n)
            v = random(n, SIZE // n, seed=n + 100)
            v = v - u * (u * v).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True)  # orthogonal: the largest distance
            h, relaxed = dense_reflection(u), dense_reflection(u, v)
            determinant = float(torch.linalg.slogdet(h).sign)
            yield n, f"{(h - eye).norm():.3f}", f"{(relaxed - eye).norm():.3f}", f"{determinant:+.0f}"

    return Point(
        "Distance to the identity",
        "Eq. 2 says that the distance of H to the identity is 2, and Sec. 3.3 bounds ETHER+ by the same 2. Every block is "
        "normalised separately, so with n blocks the distance is 2√n, and that of ETHER+ is at most √(2n), for u and v "
        "orthogonal: √2 for one block, so the bound of 2 is never attained. The determinant is -1 only for odd n; what "
        "excludes H from the range of the Cayley map for every n is its eigenvalue -1.",
        table(["n", "ETHER", "ETHER+ at most", "determinant of H"], rows()),
    )


def singular() -> Point:
    """ETHER+ can lose a direction."""

    def smallest(cosine: float) -> float:
        u = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
        v = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0.0]], dtype=torch.float64)
        return float(torch.linalg.eigvalsh(dense_reflection(u, v)).abs().min())

    return Point(
        "ETHER+ can be singular",
        "H+ has the eigenvalues 1 ± √(1 - (u·v)²) beside ones. Where u and v are orthogonal, a direction of the weight is "
        "therefore lost, and merging cannot be undone by inversion; this package keeps the base weight and restores it.",
        table(["u·v", "smallest eigenvalue"], [[c, rounded(smallest(c), ".3f")] for c in (1.0, 0.99, 0.9, 0.5, 0.0)]),
    )


def start() -> Point:
    """Where training starts: ETHER away from the pretrained model, ETHER+ at it."""

    def change(d: int, n: int) -> float:
        weight = random(64, d)
        return float((reflect(weight, random(n, d // n, seed=1)) - weight).norm() / weight.norm())

    places = [
        ("Llama-2-7B", LLAMA_2_7B["hidden_size"], 32),
        ("DeBERTaV3-base", DEBERTA_V3_BASE["hidden_size"], 1),
        ("Stable Diffusion's narrowest", min(SD15_UNET["block_out_channels"]), 1),
    ]
    torch.manual_seed(0)
    base = nn.Linear(64, 48, dtype=torch.bfloat16)
    x = random(8, 64).bfloat16()
    moved = float((_adapted(base, relaxed=True, n_blocks=4)(x) - base(x)).detach().abs().max())
    return Point(
        "The start",
        "LoRA and OFT start at the pretrained model. A reflection cannot: before the first step every adapted weight differs "
        "from the pretrained one by 2√(n/d) of its norm on average. ETHER+ starts with v = u on both sides; its correction is "
        f"then zero in every precision (largest change of an output in bfloat16: {moved:g}; there the released ETHER+ layers "
        "other than query and value stop with an error, because they build the identity in float32).",
        table(
            ["weight", "d", "n", "2√(n/d)", "measured"],
            [[name, d, n, f"{2 * math.sqrt(n / d):.3f}", f"{change(d, n):.2f}"] for name, d, n in places],
        ),
    )


def first_step(d: int, n: int, rate: float) -> float:
    """Mean angle, in radians, by which Adam's first step at `rate` turns the blocks of a newly initialised ETHER layer."""
    torch.manual_seed(0)
    layer = _adapted(nn.Linear(d, 4), n_blocks=n)
    [u] = [p for name, p in layer.named_parameters() if "ether_u" in name]
    before = u.detach().double().clone()
    u.grad = random(*u.shape).to(u.dtype)
    torch.optim.Adam([u], lr=rate).step()
    cosine = torch.nn.functional.cosine_similarity(before, u.detach().double(), dim=1)
    return float(torch.arccos(cosine).mean())


def initial_length() -> Point:
    """The initial length of the vectors, which decides what a learning rate means."""
    paper = config.load("paper")
    instruct = {run.method: run for run in config.runs(paper, "instruct")}
    glue = {(run.method, run.task): run for run in config.runs(paper, "glue")}
    cases = [
        ("ETHER, Table 8", LLAMA_2_7B["hidden_size"], instruct["ether-n32"]),
        ("ETHER+, Table 8", LLAMA_2_7B["hidden_size"], instruct["ether-plus-n32"]),
        ("ETHER, Table 7, RTE", DEBERTA_V3_BASE["hidden_size"], glue["ether", "rte"]),
    ]
    rows = []
    for name, d, run in cases:
        n, rate = run.adapt["config"]["n_blocks"], run.hyperparameters["learning_rate"]
        rows.append([name, d, n, f"{rate:g}", f"{rate * math.sqrt(3 * d):.2f}", f"{first_step(d, n, rate):.2f}"])
    return Point(
        "Initial length of the vectors",
        "H depends on directions only, but the length of a vector sets how far a step turns it, and the paper does not give it. "
        "In the released code a block is initialised with length 1/√(3n). Adam's first step then turns it by about lr √(3d), "
        "whatever n. This package starts with the same length, so that the paper's learning rates keep their meaning.",
        table(["", "d", "n", "learning rate", "lr √(3d)", "measured, rad"], rows),
    )


def dropout() -> Point:
    """Dropout on the whole input against dropout on the input of the correction."""
    p, x, weight = 0.1, random(4096, SIZE), random(SIZE, 16, seed=1)
    keep = torch.from_numpy(np.random.default_rng(2).random(x.shape)) >= p
    noise = float(((x * keep / (1 - p) - x) @ weight).norm() / (x @ weight).norm())
    torch.manual_seed(0)
    base = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
    layer = _adapted(base, relaxed=True, dropout=p).train()
    here = float((layer(x[:64]) - base(x[:64])).detach().norm() / base(x[:64]).detach().norm())
    cells = [cell for cell in published.load()["table7"].cells() if cell.setting == "Dropout"]
    used = [cell for cell in cells if cell.value != 0]
    return Point(
        "Dropout",
        f"App. C says that most experiments use none; Table 7 has it in {len(used)} of its {len(cells)} cells. The released "
        f"code drops entries of the layer's whole input, on the frozen path too: at p = {p:g} and without any adaptation "
        f"that is noise of {percent(noise, 0)} of the output. In this package dropout acts on the input of the adapter's "
        f"correction only; the noise at the start of ETHER+ is {percent(here, 0)}.",
    )


POINTS = (input_layouts, output_side, distance, singular, start, initial_length, dropout)
