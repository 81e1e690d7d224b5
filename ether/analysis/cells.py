"""Cells of tables: our value with its interval, and the paper's number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import pandas as pd

from ether.analysis.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table, in tidy form."""

    method: str  # the stem of the method's file, or of a reference row
    label: str  # printed name of the row
    column: str
    ours: float
    low: float = math.nan  # bounds of the 95 % interval; NaN if there is none
    high: float = math.nan
    n: int = 0  # number of units of the interval; 0 for exact values
    unit: str = ""  # seed | task; empty for exact values
    paper: float = math.nan  # the paper's number; NaN if it has none
    printed: str = ""  # the paper's cell exactly as printed
    comparable: bool = True  # whether the two may be compared
    note: str = ""

    @classmethod
    def from_interval(
        cls,
        method: str,
        label: str,
        column: str,
        interval: Interval,
        *,
        paper: float | None = None,
        printed: str = "",
        comparable: bool = True,
        note: str = "",
    ) -> Cell:
        """A cell of measured values."""
        unit = interval.unit if interval.n else ""
        number = math.nan if paper is None else paper
        return cls(
            method, label, column, interval.mean, interval.low, interval.high, interval.n, unit, number, printed, comparable, note
        )


CELL_COLUMNS = [field.name for field in dataclasses.fields(Cell)]


def frame(cells: Iterable[Cell]) -> pd.DataFrame:
    """Cells as a frame with the columns of ``CELL_COLUMNS``, one row per cell, in the given order."""
    return pd.DataFrame([dataclasses.asdict(cell) for cell in cells], columns=CELL_COLUMNS)
