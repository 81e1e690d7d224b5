"""Figures, drawn from the tidy tables. Plotting never trains and knows no experiment's insides."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ether.config import Scale

# One colour a family, so that a method keeps its colour through all figures; readable without colour by its marker.
STYLE = {
    "ETHER+": ("#c0392b", "D"),
    "ETHER": ("#e67e22", "o"),
    "BOFT": ("#1f618d", "v"),
    "OFT": ("#2e86c1", "^"),
    "Naive": ("#76448a", "P"),
    "AdaLoRA": ("#117864", "h"),
    "LoRA": ("#27ae60", "s"),
    "Full": ("#2c3e50", "X"),
}
OTHER = ("#7f8c8d", ".")


def style(label: str) -> tuple[str, str]:
    """Colour and marker of a method by its label."""
    return next((look for name, look in STYLE.items() if label.startswith(name)), OTHER)


def _new(width: float, height: float) -> Figure:
    matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), dpi=120, layout="constrained")


def score_against_parameters(table: pd.DataFrame, scale: Scale, column: str = "Avg") -> Figure:
    """A column of a table against ``#params`` on a logarithmic axis, with intervals over seeds."""
    wide = table.pivot_table(index="method", columns="column", values=["ours", "low", "high"], sort=False, dropna=False)
    rows = pd.DataFrame(
        {
            "parameters": wide["ours"]["#params"],
            "score": wide["ours"][column],
            "low": wide["low"][column],
            "high": wide["high"][column],
        }
    ).dropna(subset=["score"])
    figure = _new(8.0, 4.4)
    axes = figure.add_subplot()
    for label, row in rows.iterrows():
        colour, marker = style(str(label))
        spread = [[max(row.score - row.low, 0)], [max(row.high - row.score, 0)]] if np.isfinite(row.low) else None
        axes.errorbar(row.parameters, row.score, yerr=spread, color=colour, marker=marker, ms=7, capsize=3, lw=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters at the paper's architecture")
    axes.set_ylabel(f"{column} at scale {scale.name!r}")
    axes.margins(x=0.08, y=0.12)
    axes.grid(alpha=0.25)
    _label_points(axes, rows)
    return figure


def _label_points(axes: matplotlib.axes.Axes, rows: pd.DataFrame) -> None:
    """Names in a column at the right edge, in the order of the scores, each tied to its point by a thin line: points
    that lie on each other stay legible."""
    if rows.empty:
        return
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ordered = rows.sort_values("score")
    least = (high - low) / max(len(ordered) + 1, 16)
    heights: list[float] = []
    for score in ordered["score"]:
        heights.append(max(float(score), heights[-1] + least if heights else low + least / 2))
    overflow = heights[-1] - (high - least / 2)
    if overflow > 0:  # push the column down again, from the top
        limit = high - least / 2
        for i in range(len(heights) - 1, -1, -1):
            heights[i] = min(heights[i], limit)
            limit = heights[i] - least
    edge = right * (right / left) ** 0.03
    for (label, row), height in zip(ordered.iterrows(), heights, strict=True):
        colour, _ = style(str(label))
        axes.annotate(
            str(label), (row.parameters, row.score), xytext=(edge, height), textcoords="data", color=colour, fontsize=9,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.5, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
