"""Where the paper, its released code and this suite part, and what each choice costs: the page `docs/deviations.md`.

    python -m ether.paper.deviations --write docs/deviations.md

Every number on the page is computed here, from the package's own functions, closed forms over the real architectures,
`published.yaml` and the methods' files, and rounded so far that it is the same on every machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ether import config
from ether.measures import flops, parameters
from ether.paper import exact, published
from ether.reflection import dense_reflection, reflect, reflect_row_groups

Table = list[list[str]]  # a header and rows


@dataclass(frozen=True)
class Point:
    """One deviation: what parts from what, and the numbers that say what it costs."""

    title: str
    text: str
    table: Table | None = None


# --- building blocks ---------------------------------------------------------------------------------------------------


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64; NumPy's generator gives the same ones everywhere."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _about_zero(value: float, digits: str = ".1e") -> str:
    """`value`, or 0 where it is rounding error."""
    return "0" if abs(value) < 1e-9 else f"{value:{digits}}"


def cosines(weight: torch.Tensor) -> torch.Tensor:
    """(f, d) -> (f, f): cosines of the angles between neurons, the rows of torch's weight."""
    unit = weight / weight.norm(dim=1, keepdim=True)
    return unit @ unit.T


def hyperspherical_energy(weight: torch.Tensor) -> float:
    """Sum over pairs of neurons of 1 / distance of their directions (Liu et al., 2018), which OFT sets out to keep."""
    unit = weight / weight.norm(dim=1, keepdim=True)
    return float((1 / torch.pdist(unit)).sum())


def angle_changes(changed: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Largest change of a cosine between two neurons, and the relative change of hyperspherical energy."""
    energy = hyperspherical_energy(weight)
    moved = float((cosines(changed) - cosines(weight)).abs().max())
    return moved, hyperspherical_energy(changed) / energy - 1


def _adapted(base: nn.Linear, **settings: Any) -> nn.Module:
    """A linear layer under this package's adapter."""
    from peft import get_peft_model

    from ether import EtherConfig

    model: Any = nn.Sequential(base)
    return get_peft_model(model, EtherConfig(target_modules=["0"], **settings))


def _rows(header: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> Table:
    return [list(header), *[[str(cell) for cell in row] for row in rows]]


# --- the adapter -------------------------------------------------------------------------------------------------------

SIZE = 256  # side of the square weights on which layouts are compared


def input_layouts() -> Point:
    """The paper's block-diagonal matrix against what the released code multiplies the input side with."""
    weight = _random(SIZE, SIZE)

    def rows() -> Iterator[Sequence[object]]:
        for n in (1, 4, 16, 32):
            u = _random(n, SIZE // n, seed=n)
            diagonal, release = reflect(weight, u), reflect_row_groups(weight, u)
            apart = float((release - diagonal).norm() / (diagonal - weight).norm())
            kept, energy = angle_changes(diagonal, weight)
            lost, other = angle_changes(release, weight)
            yield (
                n,
                _about_zero(apart, ".2f"),
                _about_zero(kept),
                _about_zero(lost, ".2f"),
                _about_zero(energy),
                _about_zero(other),
            )

    return Point(
        "Blocks on the input side",
        "Sec. 3.4 makes H block-diagonal. The released code splits the *outputs* into n groups instead, and gives each "
        "group its own reflection, repeated over all blocks of the input. With one block the two are the same. With more, "
        "neurons of different groups are reflected differently, so the angles between them change, which a reflection is "
        "meant to leave alone. This suite computes the paper's (`layout=\"diagonal\"`) and has the other as "
        f"`layout=\"release\"`. Below: a random {SIZE} x {SIZE} weight; the difference of the two results in relation to "
        "what ETHER changes at all; the largest change of a cosine between two neurons; the relative change of their "
        "hyperspherical energy.",
        _rows(["n", "difference", "cosines, diagonal", "cosines, release", "energy, diagonal", "energy, release"], rows()),
    )  # fmt: skip


def output_side() -> Point:
    """Query and value in the released code: the output side."""
    weight = _random(SIZE, SIZE)

    def rows() -> Iterator[Sequence[object]]:
        for n in (1, 4, 32):
            u = _random(n, SIZE // n, seed=n)
            changed = reflect(weight.T, u).T
            moved, energy = angle_changes(changed, weight)
            columns = float((changed.T @ changed - weight.T @ weight).abs().max())
            yield n, f"{moved:.2f}", f"{energy:.1e}", _about_zero(columns)

    heads = config.methods()["ether-n32"]["adapt"]["config"]["n_blocks"]
    side = parameters.site(config.methods()["ether-n32"], "llama-2-7b").layers[0].d
    return Point(
        "Query and value: which side",
        "The paper multiplies the input side, (HW)ᵀx. The released code has another class for query and value, the only "
        "layers it adapts by default, and reflects their *outputs* there. Both sides of a square matrix have equally many "
        "parameters, so the count does not tell. On the output side it is the products between inputs (WᵀW in torch's "
        f"notation) that stay, and the angles between neurons that change. With n = {heads} in Llama-2-7B a block has "
        f"{side // heads} entries: one reflection for each attention head. This suite takes the paper's side; "
        "`sides=\"output\"` is the other.",
        _rows(["n", "largest change of a cosine", "energy", "largest change in WᵀW"], rows()),
    )  # fmt: skip


def distance() -> Point:
    """The distance to the identity with blocks (eq. 2, Sec. 3.3)."""

    def rows() -> Iterator[Sequence[object]]:
        eye = torch.eye(SIZE, dtype=torch.float64)
        for n in (1, 4, 16, 32):
            u = _random(n, SIZE // n, seed=n)
            v = _random(n, SIZE // n, seed=n + 100)
            v = v - u * (u * v).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True)  # orthogonal: as far as it gets
            h, relaxed = dense_reflection(u), dense_reflection(u, v)
            determinant = float(torch.linalg.slogdet(h).sign)
            yield n, f"{(h - eye).norm():.3f}", f"{(relaxed - eye).norm():.3f}", f"{determinant:+.0f}"

    return Point(
        "Distance to the identity",
        "Eq. 2 says that H is at distance 2 from the identity, and Sec. 3.3 bounds ETHER+ by the same 2. Every block is "
        "normalised by itself, so with n blocks the distance is 2√n, and ETHER+ reaches at most √(2n), for u and v "
        "orthogonal: √2 for one block, so the bound of 2 is never attained. The determinant is -1 only for odd n; what "
        "keeps H out of the Cayley map's range for every n is its eigenvalue -1.",
        _rows(["n", "ETHER", "ETHER+ at most", "determinant of H"], rows()),
    )


def singular() -> Point:
    """ETHER+ can lose a direction."""

    def smallest(cosine: float) -> float:
        u = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
        v = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0.0]], dtype=torch.float64)
        return float(torch.linalg.eigvalsh(dense_reflection(u, v)).abs().min())

    return Point(
        "ETHER+ can be singular",
        "H+ has the eigenvalues 1 ± √(1 - (u·v)²) beside ones. So where u and v are orthogonal a direction of the weight is "
        "lost for good, and merging cannot be undone by inversion; this package keeps the base weight and puts it back.",
        _rows(["u·v", "smallest eigenvalue"], [[c, _about_zero(smallest(c), ".3f")] for c in (1.0, 0.99, 0.9, 0.5, 0.0)]),
    )


def start() -> Point:
    """Where training starts: ETHER away from the pretrained model, ETHER+ on it."""

    def change(d: int, n: int) -> float:
        weight = _random(64, d)
        return float((reflect(weight, _random(n, d // n, seed=1)) - weight).norm() / weight.norm())

    places = [("Llama-2-7B", 4096, 32), ("DeBERTaV3-base", 768, 1), ("Stable Diffusion's narrowest", 320, 1)]
    torch.manual_seed(0)
    base = nn.Linear(64, 48, dtype=torch.bfloat16)
    x = _random(8, 64).bfloat16()
    moved = float((_adapted(base, relaxed=True, n_blocks=4)(x) - base(x)).detach().abs().max())
    return Point(
        "The start",
        "LoRA and OFT start at the pretrained model. A reflection cannot: every adapted weight changes by 2√(n/d) on "
        "average, before the first step. ETHER+ starts with v = u on both sides; its correction is then zero in every "
        f"precision (largest change of an output in bfloat16: {moved:g}; there the released ETHER+ layers other than query "
        "and value stop with an error, because they build the identity in float32).",
        _rows(
            ["weight", "d", "n", "2√(n/d)", "measured"],
            [[name, d, n, f"{2 * math.sqrt(n / d):.3f}", f"{change(d, n):.2f}"] for name, d, n in places],
        ),
    )


def first_step(d: int, n: int, rate: float) -> float:
    """Mean angle, in radians, by which Adam's first step at `rate` turns the blocks of a freshly made ETHER layer."""
    torch.manual_seed(0)
    layer = _adapted(nn.Linear(d, 4), n_blocks=n)
    [u] = [p for name, p in layer.named_parameters() if "ether_u" in name]
    before = u.detach().double().clone()
    u.grad = _random(*u.shape).to(u.dtype)
    torch.optim.Adam([u], lr=rate).step()
    cosine = torch.nn.functional.cosine_similarity(before, u.detach().double(), dim=1)
    return float(torch.arccos(cosine).mean())


def initial_length() -> Point:
    """The length that vectors start with, which decides what a learning rate means."""
    instruct = config.load("paper").settings["hyperparameters"]
    cases = [
        (label, 4096, 32, exact.instruction_settings(config.methods()[key], instruct)["learning_rate"])
        for label, key in (("ETHER, Table 8", "ether-n32"), ("ETHER+, Table 8", "ether-plus-n32"))
    ]
    glue = {run.task: run for run in config.runs(config.load("paper"), "glue") if run.method_id == "ether"}
    cases.append(("ETHER, Table 7, RTE", 768, 1, glue["rte"].hyperparameters["learning_rate"]))
    return Point(
        "How long the vectors are at first",
        "Only directions matter to H, but lengths set how far a step turns them, and the paper does not give them. The "
        "released code's initialisation makes a block 1/√(3n) long. Adam's first step then turns it by about lr √(3d), "
        "whatever n. This package starts with the same length, so that the paper's learning rates mean what they meant.",
        _rows(
            ["", "d", "n", "learning rate", "lr √(3d)", "measured, rad"],
            [[name, d, n, f"{lr:g}", f"{lr * math.sqrt(3 * d):.2f}", f"{first_step(d, n, lr):.2f}"] for name, d, n, lr in cases],
        ),
    )


def dropout() -> Point:
    """Dropout on the whole input against dropout on what the correction reads."""
    p, x, weight = 0.1, _random(4096, SIZE), _random(SIZE, 16, seed=1)
    keep = torch.from_numpy(np.random.default_rng(2).random(x.shape)) >= p
    noise = float(((x * keep / (1 - p) - x) @ weight).norm() / (x @ weight).norm())
    torch.manual_seed(0)
    base = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
    layer = _adapted(base, relaxed=True, dropout=p).train()
    own = float((layer(x[:64]) - base(x[:64])).detach().norm() / base(x[:64]).detach().norm())
    zero = sum(
        published.load()["table7"].value(row.method, c.name, row.setting) == 0
        for row in published.load()["table7"].rows
        if row.setting == "Dropout"
        for c in published.load()["table7"].columns
    )
    cells = 2 * len(published.load()["table7"].columns)
    return Point(
        "Dropout",
        f"App. C says that most experiments use none; Table 7 has it in {cells - zero} of its {cells} cells. The released "
        f"code drops entries of the layer's whole input, on the frozen path too: at p = {p:g} and without any adaptation "
        f"that is noise of {_percent(noise, 0)} of the output. In this package dropout acts on what the adapter's correction "
        f"reads; the noise at the start of ETHER+ is {_percent(own, 0)}.",
    )


# --- training ----------------------------------------------------------------------------------------------------------

SAMPLES, WARMUP = 50_000, 1_000  # the released script's samples an epoch; App. C.4's warm-up steps
SCRIPT_EPOCHS, SCRIPT_BATCH = 2, 128  # the released script's own defaults
README_RATE = 1e-3  # of ETHER+ in the released README


def warm_up() -> Point:
    """The warm-up of App. C.4 in relation to an epoch at Table 8's batch sizes."""
    from transformers import get_cosine_schedule_with_warmup

    sections = config.load("paper").settings["hyperparameters"]
    rows = []
    for method in config.methods().values():
        if method["label"] not in published.load()["table8"].methods:
            continue
        batch = exact.instruction_settings(method, sections)["batch_size"]
        steps = SAMPLES // batch
        rows.append([method["label"], batch, f"{steps:,}", _percent(WARMUP / steps, 0)])
    steps = SAMPLES // 16
    weightless = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(weightless, WARMUP, steps).lr_lambdas[0]
    mean = float(np.mean([schedule(step) for step in range(steps)]))
    script = SCRIPT_EPOCHS * SAMPLES // SCRIPT_BATCH
    rate = exact.instruction_settings(config.methods()["ether-plus-n32"], sections)["learning_rate"]
    return Point(
        "Warm-up in instruction tuning",
        f"App. C.4 warms up for {WARMUP:,} steps and trains for one epoch, {SAMPLES:,} samples in the released script. At "
        "Table 8's batch sizes the warm-up is up to two thirds of the training, and the mean learning rate is half the "
        f"nominal ({mean:.2f} of it). With the script's own defaults ({SCRIPT_EPOCHS} epochs, batches of {SCRIPT_BATCH}) "
        f"there are {script} steps: the learning rate never leaves the warm-up and ends at {_percent(script / WARMUP, 0)} of "
        f"its value. The released README's learning rate of ETHER+, {README_RATE:g}, is {rate / README_RATE:g} times smaller "
        f"than Table 8's {rate:g}.",
        _rows(["method", "batch", "steps", "warm-up"], rows),
    )


def selection() -> Point:
    """Reporting the best of several evaluations."""
    iterations, every = 1400, 200
    evaluations = iterations // every
    # E[max of k standard normals] = k times the integral of z phi(z) Phi(z)^(k - 1)
    z = np.linspace(-9, 9, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.cumsum(density) * (z[1] - z[0])
    gain = float(evaluations * np.sum(z * density * below ** (evaluations - 1)) * (z[1] - z[0]))
    return Point(
        "Which evaluation is reported",
        f"App. C.1 trains for {iterations:,} iterations, evaluates every {every} and takes the best, by the metric that is "
        "reported; Fig. 4 and Table 11 speak of iteration 1200, and Table 11 has Table 2's numbers. The best of "
        f"{evaluations} evaluations that differ by noise alone lies {gain:.1f} standard deviations above their mean. The "
        "grid search of App. C.4 is, as far as the text says, on the reported benchmarks, too. This suite reports the last "
        "evaluation and keeps the others in the metrics.",
    )


# --- counting ----------------------------------------------------------------------------------------------------------


def _counted(type_: str, architecture: str, layers: str, convention: str, **settings: Any) -> int:
    method = {"adapt": {"kind": "peft", "type": type_, "config": settings}}
    return parameters.by_convention(parameters.site(method, architecture, layers), convention)


# place -> architecture, layer set, OFT's settings there, the convention that gives OFT's printed digits, LoRA's rank
PLACES: dict[str, tuple[str, str, dict[str, int], str, int | None]] = {
    "Subject-driven (Table 2)": ("sd15-unet", "attention", {"r": 4}, "orthogonal-skew", 4),
    "Semantic map (Table 3)": ("sd15-unet", "attention-geglu", {"r": 4}, "orthogonal-half", None),
    "GLUE (Table 4)": ("deberta-v3-base", "all-linear", {"oft_block_size": 16}, "skew-plus-two-outputs", 8),
    "Instructions (Table 5)": ("llama-2-7b", "query-value", {"r": 256}, "orthogonal-half", 8),
    "VTAB (Table 12)": ("vit-b16", "all-linear", {"r": 256}, "orthogonal-half", 8),
}


def ratios() -> Point:
    """How many times fewer parameters than OFT and LoRA."""

    def rows() -> Iterator[Sequence[object]]:
        for place, (architecture, layers, oft, convention, rank) in PLACES.items():
            theirs = _counted("OFT", architecture, layers, convention, **oft)
            lora = _counted("LORA", architecture, layers, "low-rank", r=rank) if rank else None
            cells = []
            for term in ("reflection", "relaxed-reflection"):
                ours = _counted("ETHER", architecture, layers, term)
                cells += [f"{theirs / ours:.1f}", f"{lora / ours:.1f}" if lora else "–"]
            yield place, *cells

    attention = _counted("ETHER", "sd15-unet", "attention", "relaxed-reflection")
    oft = _counted("OFT", "sd15-unet", "attention-geglu", "orthogonal-half", r=4)
    return Point(
        "How many times fewer parameters",
        "The abstract says about 10 to 100 times fewer than LoRA or OFT; Sec. 4 says 120 (ETHER) and 30 (ETHER+) times "
        "fewer than OFT with Stable Diffusion. The second holds in round numbers, but for ETHER+ on semantic maps, where it "
        f"takes the count of the attention layers alone ({oft / attention:.1f}). The first holds for ETHER roughly and for "
        "ETHER+ with Stable Diffusion against OFT; on VTAB, where App. E speaks of a fraction of the parameters, ETHER+ has "
        "more than OFT.",
        _rows(["", "ETHER: OFT", "ETHER: LoRA", "ETHER+: OFT", "ETHER+: LoRA"], rows()),
    )


def oft_conventions() -> Point:
    """Three ways to count OFT."""

    def rows() -> Iterator[Sequence[object]]:
        for place, (architecture, layers, oft, _, _) in PLACES.items():
            tables = {"Table 2": "OFT n=4", "Table 3": "OFT n=4", "Table 4": "OFT n=16"}
            table = place.split("(")[1].rstrip(")")
            label = tables.get(table, "OFT n=256")
            printed = published.load()[table.lower().replace(" ", "")].printed(label, "#params")
            terms = ("orthogonal-half", "orthogonal-skew", "block-diagonal")
            yield place, *[f"{_counted('OFT', architecture, layers, term, **oft):,}" for term in terms], printed

    return Point(
        "Counting OFT",
        "App. C counts half of what official OFT trains; a skew-symmetric block has a little less than half, its strict "
        "upper triangle, which is what PEFT's OFT trains; official OFT trains whole blocks. The printed digits need the "
        "triangle in Table 2 and half in Tables 3, 5 (cut off) and 12. In Table 4 they need the triangle and two more "
        "numbers an output, and a *block size* of 16 where the label says n = 16.",
        _rows(["", "half", "triangle", "whole blocks", "paper"], rows()),
    )


def other_counts() -> Point:
    """Rows whose digits do not follow from the method."""
    rows = []
    ether = _counted("ETHER", "deberta-v3-base", "all-linear", "reflection")
    with_head = _counted("ETHER", "deberta-v3-base", "all-linear", "reflection-with-head")
    rows.append(["Table 4, ETHER", f"{ether:,}", "0.09M", f"{with_head:,} with MNLI's classifier, which no other row counts"])
    relaxed = _counted("ETHER", "sd15-unet", "attention-geglu", "relaxed-reflection")
    attention = _counted("ETHER", "sd15-unet", "attention", "relaxed-reflection")
    rows.append(["Table 3, ETHER+", f"{relaxed:,}", "0.4M", f"{attention:,} on the attention layers alone"])
    vera = _counted("VERA", "llama-2-7b", "query-value", "vector-scales", r=256)
    d = parameters.site(config.methods()["vera-r256"], "llama-2-7b").layers[0].d
    rows.append(["Table 5, VeRA r=256", f"{vera:,}", "1.05M", f"{256 * d:,}, the size of one of its frozen matrices"])
    encoder, timestep = (
        parameters.count({"adapt": {"kind": "full"}}, name).peft for name in ("control-encoder", "control-time-embedding")
    )
    rows.append(
        ["App. C.2, control encoder", f"{encoder:,}", "3.1M", f"{encoder + timestep:,} with a timestep MLP no convolution uses"]
    )
    return Point(
        "Other counts",
        "Rows that print something else than the method has on the layers the other rows imply. All rows: `snakemake "
        "--cores 1 parameters`.",
        _rows(["row", "exact", "paper", "what prints so"], rows),
    )


# --- Table 1 -----------------------------------------------------------------------------------------------------------


def lengths() -> Point:
    """Table 1 measures its two models at different sequence lengths."""

    def drop(name: str, rule: str, n: int, tokens: int) -> str:
        return f"{100 * (flops.closed_form(name, rule, n, tokens) / flops.closed_form(name, rule, 1, tokens) - 1):.0f} %"

    rows = [
        [label, n, *[drop(name, rule, n, tokens) for name in ("phi-1.5", "llama-2-7b") for tokens in exact.LENGTHS]]
        for label, rule in (("ETHER", "reflection"), ("ETHER+", "relaxed-reflection"))
        for n in (4, 32)
    ]
    return Point(
        "Table 1: two sequence lengths",
        "The caption says that the gain from blocks grows with the model. Its Phi-1.5 numbers are those of 1044 tokens, its "
        "Llama-2-7B numbers those of 256. At equal length the order stays, but most of the printed difference comes from "
        "the length: the products that blocks make cheaper do not depend on it, all others grow with it.",
        _rows(["", "n", "Phi-1.5, 256", "Phi-1.5, 1044", "Llama-2-7B, 256", "Llama-2-7B, 1044"], rows),
    )


def what_is_counted() -> Point:
    """The caption's backward pass, OFT's dense matrix, the two cells of 9.13, and two drops."""
    lora = flops.weight_side_step("llama-2-7b", "low-rank", 8, 256)
    dense, blocks = (flops.weight_side_step("llama-2-7b", rule, 256, 256).tflops for rule in ("orthogonal-dense", "orthogonal"))
    llama, phi = (
        {n: flops.closed_form(name, "reflection", n, tokens) / 1e12 for n in (1, 4, 32)}
        for name, tokens in (("llama-2-7b", 256), ("phi-1.5", 1044))
    )
    relaxed = {n: flops.closed_form("llama-2-7b", "relaxed-reflection", n, 256) for n in (1, 32)}
    three = flops.closed_form("phi-1.5", "reflection", 1, 1044, "qkv") / 1e12
    return Point(
        "Table 1: what is counted",
        "The printed digits come out under one convention; where it differs from what the text says:",
        _rows(
            ["", "text", "what the digits need"],
            [
                [
                    "passes",
                    "a single backward pass",
                    f"both: LoRA on Llama {lora.forward / 1e12:.2f} + {lora.backward / 1e12:.2f}",
                ],
                [
                    "OFT n=256, Llama",
                    "block-diagonal, 25.26",
                    f"its matrix with all zeros: {dense:.2f}; in blocks {blocks:.2f}, below ETHER n=32's {llama[32]:.2f}",
                ],
                [
                    "ETHER n=1, Phi",
                    "9.13",
                    f"query, key, value: {three:.2f}; query and value, as in the other cells: {phi[1]:.2f}",
                ],
                [
                    "ETHER drops, Phi",
                    "-23 %, -27 %",
                    f"against that 9.13; else {_percent(phi[4] / phi[1] - 1)}, {_percent(phi[32] / phi[1] - 1)}",
                ],
                [
                    "drops at n=32, Llama",
                    "-68 %, -83 %",
                    f"{_percent(llama[32] / llama[1] - 1, 2)} (ETHER), {_percent(relaxed[32] / relaxed[1] - 1, 2)} (ETHER+)",
                ],
            ],
        ),
    )


def activations() -> Point:
    """What the weight side costs beside activations."""

    def tflops(kind: str, **settings: Any) -> float:
        return flops.package_step("llama-2-7b", {"kind": "peft", "type": kind, "config": settings}, 256).tflops

    lora = tflops("LORA", r=8)
    rows = []
    for label, rule, relaxed in (("ETHER", "reflection", False), ("ETHER+", "relaxed-reflection", True)):
        here = tflops("ETHER", relaxed=relaxed)
        for n in (1, 4, 32):
            weight_side = flops.closed_form("llama-2-7b", rule, n, 256) / 1e12
            rows.append(
                [
                    f"{label} n={n}",
                    f"{weight_side:.2f}",
                    f"{here:.2f}",
                    f"{100 * (here / weight_side - 1):.0f} %",
                    f"{here / lora:.3f}",
                ]
            )
    return Point(
        "Table 1: weights or activations",
        "The paper and its code build HW in every step; then n blocks are n times cheaper than one. But (HW)ᵀx = Wᵀ(Hx), "
        "and Hx takes two vector operations a token. So this suite reflects activations: no matrix H, no dense gradient of "
        "the weight, and no reason for blocks as far as cost goes. TFLOPs of a step of Llama-2-7B at 256 tokens.",
        _rows(["", "weight side", "activations", "saved", "in relation to LoRA r=8"], rows),
    )  # fmt: skip


# --- the text ----------------------------------------------------------------------------------------------------------


def block_additions() -> Point:
    """Sec. 3.4's count of additions."""
    d, f, n = 4096, 4096, 32
    b = d // n
    printed, right = (d - 1) / n * b * f * n, (b - 1) * b * f * n
    return Point(
        "Sec. 3.4: additions",
        "The block-wise product is said to take ((d-1)/n)(d/n)f additions a block. It takes (d/n - 1)(d/n)f: a block's row "
        f"is b = d/n long. At d = f = {d}, n = {n} the printed count is {_percent(printed / right - 1, 2)} too high; the "
        "order is right.",
    )


def scores() -> Point:
    """What the printed scores themselves say."""
    tables = published.load()

    def value(table: str, method: str, column: str) -> float:
        found = tables[table].value(method, column)
        assert found is not None
        return found

    glue = [c.name for c in tables["table4"].columns if c.kind == "percent" and c.name != "Avg"]
    averages = max(
        abs(np.mean([value("table4", m, c) for c in glue]) - value("table4", m, "Avg")) for m in tables["table4"].methods
    )
    mrpc, examples = value("table4", "ETHER", "MRPC"), 408
    near = [100 * k / examples for k in (math.floor(mrpc * examples / 100), math.ceil(mrpc * examples / 100))]
    best = max(value("table9", m, "mIoU") for m in tables["table9"].methods)
    rows = [
        ["averages of Table 4", "", f"all recompute within {averages:.3f}"],
        [
            "Table 4, ETHER on MRPC",
            f"{mrpc:.2f}",
            f"not a share of {examples} examples: {near[0]:.2f} or {near[1]:.2f}; so not the accuracy of one run",
        ],
        [
            "Sec. 5.2.2: ETHER beats LoRA r=1",
            f"Tru-2 {value('table5', 'ETHER n=32', 'Tru-2'):.2f}",
            f"LoRA r=1 {value('table5', 'LoRA r=1', 'Tru-2'):.2f}",
        ],
        [
            "Table 5's caption: both beat LoRA",
            f"ARC {value('table5', 'ETHER n=32', 'ARC'):.2f} (ETHER)",
            f"LoRA r=8 {value('table5', 'LoRA r=8', 'ARC'):.2f}",
        ],
        [
            "App. D.1: ETHER+ is better at n=32",
            f"ARC {value('table10', 'ETHER+ n=32', 'ARC'):.2f}",
            f"{value('table10', 'ETHER+ n=1', 'ARC'):.2f} at n=1",
        ],
        ["Table 9, best ETHER, mIoU", f"{best}", f"{value('table3', 'ETHER', 'mIoU')} in Table 3"],
        [
            "App. C.3: GLUE settings in Tab. 8",
            f"{len(list(tables['table8'].cells()))} cells, instruction tuning",
            f"Table 7: {len(list(tables['table7'].cells()))} cells",
        ],
    ]
    return Point(
        "What the printed scores say themselves",
        "Claims held against the paper's own tables. No table has seeds or standard deviations; here every number is a mean "
        "over seeds with a bootstrap interval.",
        _rows(["claim", "printed", "against"], rows),
    )


# --- PEFT --------------------------------------------------------------------------------------------------------------


def boft_factors() -> Point:
    """PEFT's BOFT without its CUDA extension."""
    import ether.methods.boft  # noqa: F401 - all factors
    from ether.methods import adapt as methods

    how = methods.resolve(config.methods()["boft"]["adapt"]["config"], {"dropout": 0.0})

    def reach(factors: int) -> tuple[int, int]:
        """Trained numbers of a 64 x 64 layer, and inputs that one output depends on once they are turned."""
        from peft import BOFTConfig, get_peft_model

        torch.manual_seed(0)
        base = nn.Linear(64, 64, bias=False)
        nn.init.eye_(base.weight)
        sequential: Any = nn.Sequential(base)
        model = get_peft_model(sequential, BOFTConfig(target_modules=["0"], **{**how, "boft_n_butterfly_factor": factors}))
        for name, parameter in model.named_parameters():
            if "boft_R" in name:
                nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            matrix = model(torch.eye(64))
        return parameters.trainable(model), int((matrix.abs() > 1e-6).sum(0).max())

    wanted, left = reach(how["boft_n_butterfly_factor"]), reach(1)
    return Point(
        "BOFT in PEFT",
        "PEFT multiplies BOFT's blocks with a CUDA extension that it compiles at first use. Without a compiler it goes on "
        f"with ONE butterfly factor where {how['boft_n_butterfly_factor']} were asked for, with no more than a warning, and "
        "becomes block-diagonal: another method under the same name. `ether/methods/boft.py` gives PEFT the two functions in plain "
        "torch. On a 64 x 64 layer:",
        _rows(
            ["butterfly factors", "trained", "inputs that an output depends on"],
            [[how["boft_n_butterfly_factor"], f"{wanted[0]:,}", wanted[1]], [1, f"{left[0]:,}", left[1]]],
        ),
    )


def cayley() -> Point:
    """PEFT's OFT approximates the Cayley map by default."""
    from peft import OFTConfig, get_peft_model

    def away(scale: float, neumann: bool) -> float:
        base = nn.Linear(64, 64, bias=False)
        nn.init.eye_(base.weight)
        sequential: Any = nn.Sequential(base)
        oft = OFTConfig(target_modules=["0"], r=0, oft_block_size=16, use_cayley_neumann=neumann)
        model = get_peft_model(sequential, oft).double()
        for name, parameter in model.named_parameters():
            if "oft_R" in name:
                parameter.data = scale * _random(*parameter.shape)
        with torch.no_grad():
            q = model(torch.eye(64, dtype=torch.float64))
        return float((q @ q.T - torch.eye(64, dtype=torch.float64)).abs().max())

    return Point(
        "OFT in PEFT",
        "PEFT's OFT sums five terms of a Neumann series in place of the Cayley map's inverse, by default. That is "
        "orthogonal only near the identity; the paper speaks of orthogonal matrices, so this suite asks for the exact map. "
        "Largest entry of QQᵀ - I by the size of the trained numbers:",
        _rows(
            ["size", "default", "exact (here)"],
            [[s, f"{away(s, True):.1g}", _about_zero(away(s, False))] for s in (0.01, 0.03, 0.1)],
        ),
    )  # fmt: skip


def vera_start() -> Point:
    """VeRA's scaling vector at the start."""
    rows = []
    for key in ("vera-r64", "vera-r256"):
        settings = config.methods()[key]["adapt"]["config"]
        initial = settings["d_initial"]
        rows.append([config.methods()[key]["label"], f"{initial:g}", f"{initial * math.sqrt(settings['r']):.1f}"])
    return Point(
        "VeRA in PEFT",
        "App. C.4 starts VeRA's vector with a single entry of 0.1, all others zero, and says that this follows VeRA's "
        "paper. PEFT starts with 0.1 everywhere; this suite uses PEFT's. Lengths of the vector at the start:",
        _rows(["", "App. C.4", "PEFT (here)"], rows),
    )


# --- the page ----------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Callable[[], Point], ...]] = {
    "The adapter": (input_layouts, output_side, distance, singular, start, initial_length, dropout),
    "Training": (warm_up, selection),
    "Parameters": (ratios, oft_conventions, other_counts),
    "Computation": (lengths, what_is_counted, activations),
    "The text": (block_additions, scores),
    "The baselines as PEFT has them": (boft_factors, cayley, vera_start),
}

OPEN = (
    "AdaLoRA's 1.27M: which triplets stay depends on the run.",
    "That 1044 tokens are the longest Alpaca sample under Phi's tokenizer: inferred from the digits, not measured.",
    "That the two further numbers an output in Table 4's OFT and BOFT are a scale and a bias: inferred from the digits.",
    "What the released script chooses without the paper saying so (AdamW's betas 0.9 and 0.95, no gradient clipping, the "
    "loss on the prompt too, the cleaned Alpaca data with 2,000 samples held out): its cost needs training.",
    "Which of the two sides the one-sided ETHER+ of Table 11 takes: both print as 0.2M.",
)


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Where paper, released code and this suite part",
        "",
        "`python -m ether.paper.deviations --write docs/deviations.md` makes this page, and a test compares the two: every "
        "number is computed, by the package's own functions or by arithmetic on the real architectures. \"The released "
        "code\" is the authors' repository; what is said of it was found by running it, and its formulas are rewritten here "
        "where a number needs them.",
        "",
    ]  # fmt: skip
    for section, points in SECTIONS.items():
        lines += [f"## {section}", ""]
        for make in points:
            point = make()
            lines += [f"### {point.title}", "", point.text, ""]
            if point.table:
                header, *rows = point.table
                lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
                lines += ["| " + " | ".join(row) + " |" for row in rows]
                lines.append("")
    lines += ["## Left open", "", *[f"- {line}" for line in OPEN], ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from ether.results import write_text

    parser = argparse.ArgumentParser(prog="python -m ether.paper.deviations", description="Makes docs/deviations.md.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there instead of printing it")
    options = parser.parse_args(arguments)
    if options.write:
        write_text(page(), options.write)
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
