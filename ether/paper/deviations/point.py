"""A point of the page, and the formatting that its sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Table = list[list[str]]  # a header and rows


@dataclass(frozen=True)
class Point:
    """One deviation: what differs, and the numbers that show its effect."""

    title: str
    text: str
    table: Table | None = None


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of text."""
    return [list(header), *[[str(cell) for cell in row] for row in rows]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64; NumPy's generator gives the same ones on every machine."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def percent(value: float, digits: int = 1) -> str:
    """0.125 -> '12.5 %'."""
    return f"{100 * value:.{digits}f} %"


def rounded(value: float, digits: str = ".1e") -> str:
    """`value` with a format specification, or 0 where it is rounding error."""
    return "0" if abs(value) < 1e-9 else f"{value:{digits}}"
