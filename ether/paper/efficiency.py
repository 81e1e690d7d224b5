"""Table 1 recomputed: the paper's TFLOPs under the convention that gives them, and the cost of the same adapters in this package.

A method is defined in its file under workflow/methods. `ether.measures.flops` and `ether.measures.memory` count, and
`ether.measures.cache` stores the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from ether import config
from ether.errors import one_of
from ether.measures.cache import cached
from ether.paper.published import EMPTY, load, prints_as

# Column prefix in published.yaml -> decoder, and the sequence length T that gives the printed digits. The paper only states
# "longest sequence length": 256 is its truncation for Llama (Sec. 5.2.2); Phi's 1044 is inferred, since 1043 and 1045 do not
# give all printed digits.
MODELS = {"Phi-1.5": ("phi-1.5", 1044), "Llama-2-7B": ("llama-2-7b", 256)}
LENGTHS = tuple(sorted({tokens for _, tokens in MODELS.values()}))
REFERENCE = "lora"  # costs are divided by those of this method
DENSE = "oft-n256"  # in Table 1 with its matrix written out and multiplied as a whole, as in its official code
GIB = 2**30

Side = Literal["weight", "activations"]
_CODE = ("ether.measures.memory", "ether.tuners")  # the code that determines a count; memory imports flops

_NINE = (
    "9.13 is exactly the cost of adapting query and value plus one more product of two 2048 x 2048 matrices per adapted "
    "weight: either query, key and value are adapted, or there is a third dense pass; the count does not decide which."
)
_DENSE = (
    "Only if the block-diagonal matrix is multiplied as a dense matrix, as in official OFT. If it is multiplied block by "
    "block, as ETHER in the same table, OFT with 256 blocks costs less than any ETHER row."
)
_DROP = "Recomputed from the TFLOPs of the table, the rounded drop is smaller by one."


def methods() -> tuple[str, ...]:
    """The stems of the methods of Table 1, in its order."""
    return load()["table1"].methods


def adapt(method: str) -> dict[str, Any]:
    """The `adapt` section of a method's file."""
    return config.method(method)["adapt"]


def one_block(method: str) -> str:
    """The one-block method to which a drop in Table 1 refers: 'ether-plus-n32' -> 'ether-plus-n1'."""
    return f"{method.rpartition('-')[0]}-n1"


def tflops(model: str, method: str, tokens: int, side: Side = "weight", *, adapted: str = "qv", dense: bool = False) -> float:
    """TFLOPs of one step of a decoder on one sequence, query and value adapted.

    Args:
        model: a key of `ether.measures.flops.STACKS`.
        method: stem of the method's file: LORA, ETHER or OFT.
        tokens: length of the sequence.
        side: "weight": the adapted weights are rebuilt in every step, as in the paper; "activations": the adapters of
            PEFT and of this package.
        adapted, dense: for the weight side, the adapted projections (subset of "qkv"), and whether OFT's matrix is dense.

    Raises:
        ConfigurationError: unknown model or method, or a method without a weight side.
    """

    def compute() -> dict[str, float]:
        from ether.measures import flops

        if side == "activations":
            step = flops.package_step(model, adapt(method), tokens)
        else:
            rule, size = flops.weight_side_rule(adapt(method))
            step = flops.weight_side_step(model, f"{rule}-dense" if dense else rule, size, tokens, adapted)
        return {"operations": step.total}

    request = {"model": model, "adapt": adapt(method), "tokens": tokens, "side": _known(side), "adapted": adapted, "dense": dense}
    return cached("operations", _CODE, request, compute)["operations"] / 1e12


def gib(model: str, method: str, tokens: int, side: Side = "weight", *, dense: bool = False) -> float:
    """Memory of one step in GiB, in addition to a bfloat16 model: gradients, AdamW's states and saved activations.

    Arguments and errors as for `tflops`; NaN for LoRA on the weight side, because LoRA does not rebuild the weight.
    """

    def compute() -> dict[str, float]:
        from ether.measures import flops, memory

        how = adapt(method)
        if side == "weight":
            rule, size = flops.weight_side_rule(how)
            if rule == "low-rank":
                return {"bytes": float("nan")}
            how = {"kind": "weight-side", "rule": f"{rule}-dense" if dense else rule, "size": size}
        return {"bytes": memory.step_memory(model, how, tokens).beside_the_model}

    request = {"model": model, "adapt": adapt(method), "tokens": tokens, "side": _known(side), "dense": dense}
    return cached("memory", _CODE, request, compute)["bytes"] / GIB


def _known(side: str) -> str:
    if side not in ("weight", "activations"):
        raise one_of("side", side, ("weight", "activations"))
    return side


def published_tflops() -> pd.DataFrame:
    """Every cell of Table 1 with its count: T = 256 for Llama-2-7B, 1044 for Phi-1.5, weight side, query and value.

    Columns: `method`, `column` (as in published.yaml), `tokens`, `printed`, `exact` (TFLOPs or per cent), `verdict`
    (match, truncated, mismatch), `alternative` (the value under a second reading of the cell, or NaN),
    `alternative_reading` and `alternative_verdict`, `why`. Cells that the paper leaves empty are left out.
    """
    table = load()["table1"]
    rows: list[dict[str, Any]] = []
    for model, (name, tokens) in MODELS.items():
        counted = {m: tflops(name, m, tokens, dense=m == DENSE) for m in methods()}
        second = dict(counted)
        readings: dict[str, tuple[str, str]] = {}
        if model == "Phi-1.5":
            for method in (DENSE, "ether-n1"):
                second[method] = tflops(name, method, tokens, adapted="qkv", dense=method == DENSE)
                readings[method] = ("query, key and value adapted", _NINE)
        else:
            second[DENSE] = tflops(name, DENSE, tokens)
            readings[DENSE] = ("block by block", _DENSE)
        for method in methods():
            reading, why = readings.get(method, ("", ""))
            column = f"{model} TFLOPs"
            rows.append(_row(method, column, tokens, counted[method], second[method], reading, why))
            column = f"{model} rel. drop"
            if table.printed(method, column) != EMPTY:
                whole = one_block(method)
                drop, other = (100 * (values[method] / values[whole] - 1) for values in (counted, second))
                reading = "query, key and value adapted at n = 1" if whole in readings else ""
                verdict = prints_as(round(drop, 6), table.printed(method, column))
                why = "" if verdict == "match" else readings[whole][1] if whole in readings else _DROP
                rows.append(_row(method, column, tokens, drop, other, reading, why))
    return pd.DataFrame(rows)


def _row(method: str, column: str, tokens: int, exact: float, second: float, reading: str, why: str) -> dict[str, Any]:
    printed = load()["table1"].printed(method, column)
    return {
        "method": method,
        "column": column,
        "tokens": tokens,
        "printed": printed,
        "exact": exact,
        "verdict": prints_as(round(exact, 6), printed),
        "alternative": second if reading else float("nan"),
        "alternative_reading": reading,
        "alternative_verdict": prints_as(round(second, 6), printed) if reading else "",
        "why": why,
    }


def at_equal_length(tokens: int, only: Sequence[str] = ()) -> pd.DataFrame:
    """Both models at one sequence length T, on weights and on activations: one row per model and method, one sequence per step.

    Columns: `method`, `model`, `tokens`; `weight_side_tflops` under Table 1's convention; `tflops` with the adapters of
    PEFT and of this package on activations (including reflections, by formula); `over_lora`, tflops divided by LoRA's;
    `weight_side_gib` and `gib`, see the function `gib`. LoRA differs by 0.1 % between the two tflops columns because query,
    key and value are one matrix in the first and three in the second.

    Args:
        tokens: the length T.
        only: methods by stem; by default all of Table 1.
    """
    rows = []
    for model, (name, _) in MODELS.items():
        lora = tflops(name, REFERENCE, tokens, "activations")
        for method in only or methods():
            here = tflops(name, method, tokens, "activations")
            rows.append(
                {
                    "method": method,
                    "model": model,
                    "tokens": tokens,
                    "weight_side_tflops": tflops(name, method, tokens, dense=method == DENSE),
                    "tflops": here,
                    "over_lora": here / lora,
                    "weight_side_gib": gib(name, method, tokens, dense=method == DENSE),
                    "gib": gib(name, method, tokens, "activations"),
                }
            )
    return pd.DataFrame(rows)
