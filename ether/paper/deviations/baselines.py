"""Deviations of the baselines as PEFT has them: BOFT, OFT and VeRA."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ether import config
from ether.measures import parameters
from ether.methods.adapt import peft_config_class, trainable
from ether.paper.deviations.point import Point, random, rounded, table


def _identity_under(type_: str, size: int, settings: dict[str, Any]) -> nn.Module:
    """A linear layer with the identity as its weight under a PEFT adapter: its outputs are the adapter's transformation."""
    import peft

    base = nn.Linear(size, size, bias=False)
    nn.init.eye_(base.weight)
    sequential: Any = nn.Sequential(base)
    configuration: Any = peft_config_class(type_)
    return peft.get_peft_model(sequential, configuration(target_modules=["0"], **settings))


def boft_factors() -> Point:
    """PEFT's BOFT without its CUDA extension."""
    settings = parameters.settings(config.method("boft")["adapt"])
    several, size = settings["boft_n_butterfly_factor"], 64

    def row(factors: int) -> list[object]:
        """Trained numbers of the layer, and inputs that one output depends on once the factors differ from the identity."""
        torch.manual_seed(0)
        model = _identity_under("BOFT", size, {**settings, "boft_n_butterfly_factor": factors})
        for name, parameter in model.named_parameters():
            if "boft_R" in name:
                nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            matrix = model(torch.eye(size))
        return [factors, f"{trainable(model):,}", int((matrix.abs() > 1e-6).sum(0).max())]

    return Point(
        "BOFT in PEFT",
        "PEFT multiplies BOFT's blocks with a CUDA extension that it compiles at first use. Without a compiler it continues "
        f"with ONE butterfly factor where {several} are configured, with no more than a warning, and becomes block-diagonal: "
        "another method under the same name. `ether/methods/boft.py` gives PEFT the two functions in plain torch. On a "
        f"{size} x {size} layer:",
        table(["butterfly factors", "trained", "inputs that an output depends on"], [row(several), row(1)]),
    )


def cayley() -> Point:
    """PEFT's OFT approximates the Cayley map by default."""

    def error(scale: float, neumann: bool) -> float:
        model = _identity_under("OFT", 64, {"r": 0, "oft_block_size": 16, "use_cayley_neumann": neumann}).double()
        for name, parameter in model.named_parameters():
            if "oft_R" in name:
                parameter.data = scale * random(*parameter.shape)
        with torch.no_grad():
            q = model(torch.eye(64, dtype=torch.float64))
        return float((q @ q.T - torch.eye(64, dtype=torch.float64)).abs().max())

    return Point(
        "OFT in PEFT",
        "By default PEFT's OFT sums five terms of a Neumann series instead of the inverse in the Cayley map. That is "
        "orthogonal only near the identity; the paper speaks of orthogonal matrices, so this suite uses the exact map. "
        "Largest entry of QQᵀ - I by the size of the trained numbers:",
        table(
            ["size", "default", "exact (here)"],
            [[s, f"{error(s, True):.1g}", rounded(error(s, False))] for s in (0.01, 0.03, 0.1)],
        ),
    )  # fmt: skip


def vera_start() -> Point:
    """VeRA's scaling vector at the start."""
    rows = []
    for method in ("vera-r64", "vera-r256"):
        settings = config.method(method)["adapt"]["config"]
        initial = settings["d_initial"]
        rows.append([config.label(method), f"{initial:g}", f"{initial * math.sqrt(settings['r']):.1f}"])
    return Point(
        "VeRA in PEFT",
        "App. C.4 starts VeRA's vector with a single entry of 0.1, all others zero, and says that this follows VeRA's "
        "paper. PEFT starts with 0.1 everywhere; this suite uses PEFT's start. Lengths of the vector at the start:",
        table(["", "App. C.4", "PEFT (here)"], rows),
    )


def constraint() -> Point:
    """COFT's radius in the official code and in PEFT."""
    eps = config.runs(config.load("paper", {"methods": "oft-n4", "tasks": "teapot", "seeds": "0"}), "subject")[0].adapt["config"][
        "eps"
    ]
    blocks = parameters.settings(config.method("oft-n4")["adapt"])["r"]
    rows = []
    for width in (320, 640, 768, 1280):
        size = width // blocks
        official, in_peft = eps * size**2 / math.sqrt(blocks), eps / math.sqrt(blocks)
        rows.append([width, size, f"{official:.2f}", f"{in_peft:.1e}", f"{official / in_peft:,.0f}"])
    return Point(
        "COFT in PEFT",
        "OFT's scripts for DreamBooth, which App. C.1 follows, constrain the rotations (COFT, eps 6e-5): the Frobenius norm of a "
        "skew-symmetric block of size b is kept below eps b² / √r. PEFT copies the projection without the factor b², so the same "
        "eps leaves next to no rotation. At the paper's scale OFT of Table 2 has the official radius (`ether/methods/oft.py`; a "
        "test trains it beside the official formulas); the small scale has no constraint, and neither has Naive.",
        table(["width", "b", "official radius", "PEFT", "ratio"], rows),
    )


POINTS = (boft_factors, cayley, constraint, vera_start)
