"""The paper's #params column beside exact counts: which rows match, which only by cutting off, which not, and why.

The rows are data (`counts.yaml`); the counting is `ether.measures.parameters`; the printed digits are `published.yaml`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ether.errors import one_of
from ether.measures import parameters
from ether.paper.published import EMPTY, load, prints_as

FILE = Path(__file__).with_name("counts.yaml")
NOT_PRINTED = "not printed"


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def tables() -> tuple[str, ...]:
    """Names that `published_counts` takes: the tables with a #params column, table 6 and the "encoder" of App. C.2."""
    return tuple(_tables())


def published_counts(table: str) -> pd.DataFrame:
    """Exact parameter counts of one table's rows beside what the paper prints.

    Columns: `method`; `printed`, the paper's digits; `exact`, the count under the `convention` that the row needs;
    `verdict` (match, truncated, mismatch or not printed); `trained`, what is really trained when the method is put on
    the real architecture, head included; `alternatives`, other conventions with their counts and verdicts;
    `architecture`; `layer_set`; `why`.

    Raises:
        ConfigurationError: no such table.
    """
    if table not in _tables():
        raise one_of("table", table, _tables(), FILE.name)
    spec = _tables()[table]
    rows = []
    for row in spec["rows"]:
        method = {"label": row["method"], "adapt": row["adapt"]}
        layer_set = row.get("layer_set", spec.get("layer_set"))
        printed = row["printed"] if "printed" in row else load()[table].printed(row["method"], "#params")
        counted = parameters.count(method, spec["architecture"], row["convention"], layer_set=layer_set)
        site = parameters.site(method, spec["architecture"], layer_set)
        others = {name: parameters.by_convention(site, name) for name in row.get("alternatives", [])}
        rows.append(
            {
                "method": row["method"],
                "printed": printed,
                "exact": counted.paper_convention,
                "convention": row["convention"],
                "verdict": _verdict(counted.paper_convention, printed),
                "trained": counted.peft,
                "alternatives": "; ".join(f"{k} {v:,} ({_verdict(v, printed)})" for k, v in others.items()),
                "architecture": spec["architecture"],
                "layer_set": layer_set or "",
                "why": row.get("why", ""),
            }
        )
    return pd.DataFrame(rows)


def _verdict(exact: int, printed: str) -> str:
    return NOT_PRINTED if printed == EMPTY else prints_as(exact, printed)
