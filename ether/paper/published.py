"""The numbers of the paper's Tables 1-12 as data: `published.yaml` read into typed tables.

A row is named by the stem of its method's file, or by the stem of a reference row, which is not a method.

>>> from ether.paper.published import load
>>> load()["table4"].value("ether-plus", "Avg")
90.1
>>> load()["table4"].printed("ether", "#params")
'0.09M'
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from ether import config
from ether.errors import ConfigurationError, one_of

FILE = Path(__file__).with_name("published.yaml")
# Kinds of columns, with the decimals of our values; None: the shortest exact representation.
DIGITS: dict[str, int | None] = {
    "parameters": 0,
    "tflops": 2,
    "percent": 2,
    "score": 3,
    "distance": 1,
    "change": 0,
    "setting": None,
}
EMPTY = "-"
BEST = ", best"  # suffix of a column with the same metric at the chosen checkpoint
_UNITS = {"K": Decimal(10**3), "M": Decimal(10**6), "B": Decimal(10**9)}

Verdict = Literal["match", "truncated", "mismatch"]


@dataclass(frozen=True)
class Column:
    """One column: its metric, the better direction, and its format."""

    name: str
    kind: str  # a key of DIGITS
    better: str = ""  # higher | lower; empty for hyperparameters
    metric: str = ""  # the name of the measured value, as in the collected metrics
    digits: int | None = None  # decimals of our values; None: as many as the value needs
    printed: str = ""  # the paper's heading if it differs from the name
    group: str = ""  # the paper's heading above several columns


@dataclass(frozen=True)
class Row:
    """One row of the paper: the stem of its method, its label in the paper, and its cells as printed."""

    method: str
    values: tuple[str, ...]  # in the order of the columns
    printed: str
    setting: str = ""  # the hyperparameter of the row, in Table 7


@dataclass(frozen=True)
class PublishedCell:
    """One cell of a published table; `value` is None if the paper prints a dash."""

    table: str
    method: str
    setting: str
    column: str
    printed: str
    value: float | None


@dataclass(frozen=True)
class Elsewhere:
    """A number of another paper for one of our cells."""

    method: str
    column: str  # of the paper or of this suite
    printed: str
    source: str  # a key of the table's `sources`


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper, and the additional columns of this suite."""

    name: str
    title: str
    columns: tuple[Column, ...]  # the paper's, in its order
    rows: tuple[Row, ...]
    beside: tuple[Column, ...] = ()  # our additional columns, in the order of printing
    labels: Mapping[str, str] = field(default_factory=dict)  # stem -> label, of every method and reference
    references: tuple[str, ...] = ()  # stems of the rows that are not methods
    elsewhere: tuple[Elsewhere, ...] = ()  # numbers of other papers
    sources: Mapping[str, str] = field(default_factory=dict)  # name of another paper -> reference and what differs
    measured_with: str = ""  # the paper's model, and when it was evaluated, for numbers that are measured

    @property
    def stems(self) -> tuple[str, ...]:
        """Stems of all rows in the paper's order, without duplicates."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """Stems of the rows that are methods, in the paper's order, without duplicates."""
        return tuple(stem for stem in self.stems if stem not in self.references)

    def paper(self, method: str, column: str) -> tuple[float, str]:
        """The paper's number for one of our cells, and the cell as printed; (NaN, '') if the paper has no such cell."""
        if column not in [c.name for c in self.columns] or method not in self.stems:
            return math.nan, ""
        printed = self.printed(method, column)
        found = number(printed)
        return (math.nan, "") if found is None else (found, printed)

    def third(self, method: str, column: str) -> str:
        """The numbers of other papers for one of our cells, 'PSOFT 87.30'; empty if there is none."""
        found = [e for e in self.elsewhere if (e.method, e.column) == (method, column)]
        return ", ".join(f"{e.source} {e.printed}" for e in found)

    def column(self, name: str) -> Column:
        """The column `name` of the paper or of this suite; with the suffix ", best" at the chosen checkpoint.

        Raises ConfigurationError for an unknown name.
        """
        every = {column.name: column for column in (*self.columns, *self.beside)}
        if name.removesuffix(BEST) not in every:
            raise one_of("column", name, every, self.name)
        found = every[name.removesuffix(BEST)]
        return dataclasses.replace(found, name=name) if name != found.name else found

    def label(self, method: str) -> str:
        """The label of any method, or of a reference row of this table, as printed by this suite.

        Raises ConfigurationError for an unknown stem.
        """
        if method not in self.labels:
            raise one_of("method", method, self.labels, self.name)
        return self.labels[method]

    def printed(self, method: str, column: str, setting: str = "") -> str:
        """The cell exactly as printed, e.g. '0.09M' or '-'.

        `setting` selects the hyperparameter of Table 7 ('Learning Rate', ...). Raises ConfigurationError for an unknown
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

    def cells(self) -> Iterator[PublishedCell]:
        """Every cell of the paper's columns, row by row."""
        for row in self.rows:
            for column, printed in zip(self.columns, row.values, strict=True):
                yield PublishedCell(self.name, row.method, row.setting, column.name, printed, number(printed))

    def _column_index(self, name: str) -> int:
        names = [column.name for column in self.columns]
        if name not in names:
            raise one_of("column", name, names, f"{self.name} of the paper")
        return names.index(name)


@cache
def load() -> dict[str, PublishedTable]:
    """All twelve tables by name, 'table1' to 'table12'.

    Raises:
        ConfigurationError: the file is inconsistent, or a row is neither a file of workflow/methods nor a reference.
    """
    return read(FILE)


def read(file: Path) -> dict[str, PublishedTable]:
    """The tables of a file such as published.yaml, in its order. Raises ConfigurationError as `load`."""
    methods = {stem: str(method["label"]) for stem, method in config.methods().items()}
    return {name: _table(name, content, methods, file.name) for name, content in config.read_yaml(file).items()}


def number(printed: str) -> float | None:
    """'0.09M' -> 90000.0, '-23%' -> -23.0, '6e-3' -> 0.006, '-' -> None."""
    if printed == EMPTY:
        return None
    return float(_scaled(printed)[0])


def prints_as(exact: int | float | Decimal, printed: str) -> Verdict:
    """Whether `exact` gives the `printed` digits by rounding (match), only by truncation (truncated), or not (mismatch).

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
    """The value that a printed number represents, and the size of one unit of its last digit."""
    text = printed.removesuffix("%")
    unit = _UNITS.get(text[-1:], Decimal(1))
    try:
        mantissa = Decimal(text[:-1] if text[-1:] in _UNITS else text)
    except InvalidOperation:
        raise ConfigurationError(
            f"{printed!r} is not a number as the paper prints them; write digits with an optional K, M, B or %."
        ) from None
    return mantissa * unit, Decimal(1).scaleb(cast(int, mantissa.as_tuple().exponent)) * unit


def _column(where: str, content: dict[str, Any]) -> Column:
    column = Column(**{"digits": DIGITS.get(content.get("kind", "")), **content})
    if column.kind not in DIGITS or column.better not in ("higher", "lower", "") or not column.metric:
        raise ConfigurationError(
            f"{where}, column {column.name!r}: kind must be one of {', '.join(DIGITS)}, better higher or lower, and metric "
            "the name of the measured value."
        )
    return column


def _table(name: str, content: dict[str, Any], methods: dict[str, str], file: str) -> PublishedTable:
    where = f"{file}, {name}"
    columns = tuple(_column(where, column) for column in content["columns"])
    beside = tuple(_column(where, column) for column in content.get("beside", []))
    references: dict[str, str] = content.get("references", {})
    known = {**methods, **references}
    rows: list[Row] = []
    for entry in content["rows"]:
        stem = entry["method"]
        if stem not in known:
            raise one_of("method", stem, known, f"{where} (a row is a file of workflow/methods, or is listed in `references`)")
        values = tuple(entry["values"].split())
        if len(values) != len(columns):
            raise ConfigurationError(
                f"{where}, row {stem!r} has {len(values)} values for {len(columns)} columns; write one for each."
            )
        for value in values:
            number(value)
        row = Row(stem, values, entry.get("printed", known[stem]), entry.get("setting", ""))
        if (row.method, row.setting) in [(other.method, other.setting) for other in rows]:
            raise ConfigurationError(f"{where} has the row {f'{stem} {row.setting}'.strip()!r} twice; remove one of them.")
        rows.append(row)
    sources: dict[str, str] = content.get("sources", {})
    elsewhere = tuple(Elsewhere(**entry) for entry in content.get("elsewhere", []))
    names = [column.name for column in (*columns, *beside)]
    for other in elsewhere:
        for kind, value, every in (
            ("source", other.source, sources),
            ("column", other.column, names),
            ("method", other.method, known),
        ):
            if value not in every:
                raise one_of(kind, value, every, f"{where}, elsewhere")
        number(other.printed)
    measured_with = content.get("measured_with", "")
    return PublishedTable(
        name, content["title"], columns, tuple(rows), beside, known, tuple(references), elsewhere, sources, measured_with
    )
