"""Deviations in the text: a count of additions, and claims that the paper's tables contradict."""

from __future__ import annotations

import math

import numpy as np

from ether.paper import published
from ether.paper.deviations.point import Point, percent, table

MRPC_EXAMPLES = 408  # of its validation split


def block_additions() -> Point:
    """Sec. 3.4's count of additions."""
    d, f, n = 4096, 4096, 32
    b = d // n
    printed, right = (d - 1) / n * b * f * n, (b - 1) * b * f * n
    return Point(
        "Sec. 3.4: additions",
        "According to the paper the block-wise product takes ((d-1)/n)(d/n)f additions a block. It takes (d/n - 1)(d/n)f: a row "
        f"of a block has b = d/n entries. At d = f = {d}, n = {n} the printed count is {percent(printed / right - 1, 2)} too "
        "high; the order is right.",
    )


def _value(name: str, method: str, column: str) -> float:
    found = published.load()[name].value(method, column)
    assert found is not None, (name, method, column)
    return found


def scores() -> Point:
    """What the printed scores themselves show."""
    tables = published.load()
    glue = [c.name for c in tables["table4"].columns if c.kind == "percent" and c.name != "Avg"]
    averages = max(
        abs(np.mean([_value("table4", m, c) for c in glue]) - _value("table4", m, "Avg")) for m in tables["table4"].methods
    )
    mrpc = _value("table4", "ether", "MRPC")
    share = mrpc * MRPC_EXAMPLES / 100
    near = [100 * k / MRPC_EXAMPLES for k in (math.floor(share), math.ceil(share))]
    best = max(_value("table9", m, "mIoU") for m in tables["table9"].methods)
    rows = [
        ["averages of Table 4", "", f"all recompute within {averages:.3f}"],
        [
            "Table 4, ETHER on MRPC",
            f"{mrpc:.2f}",
            f"not a share of {MRPC_EXAMPLES} examples: {near[0]:.2f} or {near[1]:.2f}; so not the accuracy of one run",
        ],
        [
            "Sec. 5.2.2: ETHER beats LoRA r=1",
            f"Tru-2 {_value('table5', 'ether-n32', 'Tru-2'):.2f}",
            f"LoRA r=1 {_value('table5', 'lora-r1', 'Tru-2'):.2f}",
        ],
        [
            "Table 5's caption: both beat LoRA",
            f"ARC {_value('table5', 'ether-n32', 'ARC'):.2f} (ETHER)",
            f"LoRA r=8 {_value('table5', 'lora', 'ARC'):.2f}",
        ],
        [
            "App. D.1: ETHER+ is better at n=32",
            f"ARC {_value('table10', 'ether-plus-n32', 'ARC'):.2f}",
            f"{_value('table10', 'ether-plus-n1', 'ARC'):.2f} at n=1",
        ],
        ["Table 9, best ETHER, mIoU", f"{best}", f"{_value('table3', 'ether', 'mIoU')} in Table 3"],
        [
            "App. C.3: GLUE settings in Tab. 8",
            f"{len(list(tables['table8'].cells()))} cells, instruction tuning",
            f"Table 7: {len(list(tables['table7'].cells()))} cells",
        ],
    ]
    return Point(
        "What the printed scores show",
        "Claims compared with the paper's tables. No table has seeds or standard deviations; here every number is a mean over "
        "seeds, or over tasks where these are a sample, with a 95 % interval by Student's t distribution.",
        table(["claim", "printed", "compared with"], rows),
    )


POINTS = (block_additions, scores)
