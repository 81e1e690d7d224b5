"""The numbers of the paper's Tables 1-12 as data: `published.yaml` read into typed tables.

>>> from ether.paper.published import load
>>> load()["table4"].value("ETHER+", "Avg")
90.1
>>> load()["table4"].printed("ETHER", "#params")
'0.09M'
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ether.errors import ConfigurationError, one_of

FILE = Path(__file__).with_name("published.yaml")
KINDS = ("parameters", "tflops", "percent", "score", "distance", "change", "setting")
EMPTY = "-"
_UNITS = {"K": Decimal(10**3), "M": Decimal(10**6), "B": Decimal(10**9)}

Verdict = Literal["match", "truncated", "mismatch"]


@dataclass(frozen=True)
class Column:
    """One column: what it measures and which direction is better ('' for hyperparameters)."""

    name: str
    kind: str
    better: str = ""
    printed: str = ""
    group: str = ""


@dataclass(frozen=True)
class Row:
    """One row: the suite's label, the paper's, and the cells as printed, in the order of the columns."""

    method: str
    values: tuple[str, ...]
    printed: str
    setting: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a published table; `value` is None where the paper prints a dash."""

    table: str
    method: str
    setting: str
    column: str
    printed: str
    value: float | None


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Method labels in the paper's order, each once."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def column(self, name: str) -> Column:
        """The column called `name`; raises ConfigurationError where there is none."""
        return self.columns[self._column_index(name)]

    def printed(self, method: str, column: str, setting: str = "") -> str:
        """The cell exactly as printed, e.g. '0.09M' or '-'.

        `setting` picks the hyperparameter of Table 7 ('Learning Rate', ...). Raises ConfigurationError for an unknown
        method, setting or column.
        """
        for row in self.rows:
            if row.method == method and row.setting == setting:
                return row.values[self._column_index(column)]
        known = [f"{row.method} {row.setting}".strip() for row in self.rows]
        raise one_of("row", f"{method} {setting}".strip(), known, f"{self.name} of the paper")

    def value(self, method: str, column: str, setting: str = "") -> float | None:
        """The cell as a number (parameters as a count, percentages as 0-100), or None for a dash."""
        return number(self.printed(method, column, setting))

    def cells(self) -> Iterator[Cell]:
        """Every cell, row by row."""
        for row in self.rows:
            for column, printed in zip(self.columns, row.values, strict=True):
                yield Cell(self.name, row.method, row.setting, column.name, printed, number(printed))

    def _column_index(self, name: str) -> int:
        names = [column.name for column in self.columns]
        if name not in names:
            raise one_of("column", name, names, f"{self.name} of the paper")
        return names.index(name)


@cache
def load() -> dict[str, PublishedTable]:
    """All twelve tables by name, 'table1' to 'table12'. Raises ConfigurationError where the file contradicts itself."""
    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: _table(name, content) for name, content in raw.items()}


def number(printed: str) -> float | None:
    """'0.09M' -> 90000.0, '-23%' -> -23.0, '6e-3' -> 0.006, '-' -> None."""
    if printed == EMPTY:
        return None
    return float(_scaled(printed)[0])


def prints_as(exact: int | float | Decimal, printed: str) -> Verdict:
    """Does `exact` give the `printed` digits: by rounding (match), only by cutting off (truncated), or not at all?

    >>> prints_as(85_251, "0.09M"), prints_as(1_048_576, "1.04M"), prints_as(82_944, "0.09M")
    ('match', 'truncated', 'mismatch')
    """
    target, step = _scaled(printed)
    scaled = Decimal(str(exact)) / step  # in units of the last printed digit
    if scaled.quantize(Decimal(1), ROUND_HALF_UP) * step == target:
        return "match"
    if scaled.quantize(Decimal(1), ROUND_DOWN) * step == target:
        return "truncated"
    return "mismatch"


def _scaled(printed: str) -> tuple[Decimal, Decimal]:
    """The value a printed number stands for, and the size of one unit of its last digit."""
    text = printed.removesuffix("%")
    unit = _UNITS.get(text[-1:], Decimal(1))
    try:
        mantissa = Decimal(text[:-1] if text[-1:] in _UNITS else text)
    except InvalidOperation:
        raise ConfigurationError(
            f"{printed!r} is not a number as the paper prints them; write digits with an optional K, M, B or %."
        ) from None
    return mantissa * unit, Decimal(1).scaleb(cast(int, mantissa.as_tuple().exponent)) * unit


def _table(name: str, content: dict[str, Any]) -> PublishedTable:
    columns = tuple(Column(**column) for column in content["columns"])
    rows = []
    for entry in content["rows"]:
        values = tuple(entry["values"].split())
        if len(values) != len(columns):
            raise ConfigurationError(
                f"{FILE.name}, {name}, row {entry['method']!r} has {len(values)} values for {len(columns)} columns; "
                "write one for each."
            )
        rows.append(Row(entry["method"], values, entry.get("printed", entry["method"]), entry.get("setting", "")))
        for value in values:
            number(value)
    for column in columns:
        if column.kind not in KINDS or column.better not in ("higher", "lower", ""):
            raise ConfigurationError(
                f"{FILE.name}, {name}, column {column.name!r}: kind must be one of {', '.join(KINDS)}, "
                "and better higher or lower."
            )
    return PublishedTable(name, content["title"], columns, tuple(rows))
