"""Comparison of the paper's #params column with exact counts: match, match by truncation or mismatch, with the reason.

A method and its counting convention are defined in its file under workflow/methods. `counts.yaml` adds the properties of a
printed row: the architecture and the layers, a convention that only this row uses, and the reason. `ether.measures.parameters`
counts, the printed digits are in `published.yaml`, and `ether.measures.cache` stores the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ether import config
from ether.errors import ConfigurationError, one_of
from ether.measures.cache import cached
from ether.paper import published
from ether.paper.published import EMPTY, prints_as

FILE = Path(__file__).with_name("counts.yaml")
COLUMN = "#params"
NOT_PRINTED = "not printed"
ROW_KEYS = ("method", "convention", "alternatives", "layer_set", "label", "printed", "why")
_CODE = ("ether.measures.parameters", "ether.tuners")  # the code that determines a count; PEFT uses the tuners for ETHER


@dataclass(frozen=True)
class CountedRow:
    """One row of a #params column: method, counting convention and result."""

    method: str  # the stem of its file
    label: str
    printed: str  # the paper's digits; '-' if it prints none
    convention: str  # "trained" if the method's file has no convention
    exact: int  # the count under the convention
    trained: int  # number of trained parameters when the method is applied to the architecture, including the head
    verdict: str  # match | truncated | mismatch | not printed
    alternatives: str  # other conventions with their counts and verdicts
    architecture: str
    layer_set: str
    why: str


@cache
def _tables() -> dict[str, dict[str, Any]]:
    content = config.read_yaml(FILE)
    for table, spec in content.items():
        for row in spec["rows"]:
            where = f"{FILE.name}, {table}"
            if row["method"] not in config.methods():
                raise one_of("method", row["method"], config.methods(), where)
            for key in row:
                if key not in ROW_KEYS:
                    raise one_of(f"key of row {row['method']}", key, ROW_KEYS, where)
    return content


def tables() -> tuple[str, ...]:
    """The table names of `counted_rows`: the tables with a #params column, table 6, and the "encoder" of App. C.2."""
    return tuple(_tables())


def _spec(table: str) -> dict[str, Any]:
    if table not in _tables():
        raise one_of("table", table, _tables(), FILE.name)
    return _tables()[table]


def counted_rows(table: str) -> list[CountedRow]:
    """The counts of a table's rows in counts.yaml. Raises ConfigurationError for an unknown table or method."""
    return [_counted(table, row) for row in _spec(table)["rows"]]


def counted_method(table: str, method: str) -> CountedRow:
    """The count of a method for a table: by its row, or, if the paper has no such row, by the convention of the method's file.

    Raises ConfigurationError for an unknown table or method, or a method that cannot be applied to the architecture.
    """
    rows = [row for row in _spec(table)["rows"] if row["method"] == method]
    return _counted(table, rows[0] if rows else {"method": method})


def by_convention(table: str, method: str, convention: str) -> int:
    """The count of a method at a table's architecture and layers under a convention (`ether.measures.parameters`).

    Raises ConfigurationError for an unknown table, method or convention.
    """
    spec = _spec(table)
    return _counts(config.method(method)["adapt"], spec["architecture"], spec.get("layer_set", ""), [convention])[convention]


def published_counts(table: str) -> pd.DataFrame:
    """`counted_rows` as a frame, with one column per field of CountedRow."""
    return pd.DataFrame([dataclasses.asdict(row) for row in counted_rows(table)])


def _counted(table: str, row: Mapping[str, Any]) -> CountedRow:
    spec, method = _spec(table), config.method(row["method"])
    declared = (method.get("parameters") or {}).get("convention", "")
    convention, alternatives = row.get("convention", declared), row.get("alternatives", [])
    layer_set = row.get("layer_set", spec.get("layer_set", ""))
    counts = _counts(
        method["adapt"], spec["architecture"], layer_set, [convention, *alternatives] if convention else alternatives
    )
    exact = counts[convention or "trained"]
    printed = row.get("printed", EMPTY)
    if table in published.load():
        printed = published.load()[table].paper(row["method"], COLUMN)[1] or EMPTY
    return CountedRow(
        method=row["method"],
        label=row.get("label", method["label"]),
        printed=printed,
        convention=convention or "trained",
        exact=exact,
        trained=counts["trained"],
        verdict=_verdict(exact, printed),
        alternatives="; ".join(f"{k} {counts[k]:,} ({_verdict(counts[k], printed)})" for k in alternatives),
        architecture=spec["architecture"],
        layer_set=layer_set,
        why=row.get("why", ""),
    )


def _counts(adapt: Mapping[str, Any], architecture: str, layer_set: str, conventions: Sequence[str]) -> dict[str, int]:
    """The number of trained parameters, under "trained", and the counts under the conventions."""

    def compute() -> dict[str, float]:
        from ether.measures import parameters

        site = parameters.site({"adapt": adapt}, architecture, layer_set or None)
        trained = parameters.count({"adapt": adapt}, architecture, layer_set=layer_set or None).trained
        return {"trained": trained, **{name: parameters.by_convention(site, name) for name in conventions}}

    request = {"adapt": adapt, "architecture": architecture, "layer_set": layer_set, "conventions": list(conventions)}
    return {name: int(value) for name, value in cached("parameters", _CODE, request, compute).items()}


def _verdict(exact: int, printed: str) -> str:
    return NOT_PRINTED if printed == EMPTY else prints_as(exact, printed)


def fill(methods: Mapping[str, Sequence[str]]) -> list[str]:
    """Counts and stores every row of counts.yaml and further methods of its tables: {table: methods}.

    Returns one line, with the reason, for each method that cannot be counted.
    """
    failed = []
    for table in tables():
        counted_rows(table)
        for method in methods.get(table, ()):
            try:
                counted_method(table, method)
            except ConfigurationError as error:
                failed.append(f"{table}, {method}: {error}")
    return failed
