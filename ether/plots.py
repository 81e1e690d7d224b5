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
    _label_points(axes, rows)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters at the paper's architecture")
    axes.set_ylabel(f"{column} at scale {scale.name!r}")
    axes.margins(x=0.12, y=0.15)
    axes.grid(alpha=0.25)
    return figure


def _label_points(axes: matplotlib.axes.Axes, rows: pd.DataFrame) -> None:
    """Names beside the points; neighbours that would overlap are pushed apart vertically and tied by a thin line."""
    if rows.empty:
        return
    span = max(rows["score"].max() - rows["score"].min(), 1e-6)
    least = 0.06 * span
    placed: list[tuple[float, float]] = []
    for label, row in rows.sort_values("score").iterrows():
        x, y = np.log10(max(row.parameters, 1.0)), float(row.score)
        clashes = [py for px, py in placed if abs(px - x) < 0.9]
        while any(abs(y - py) < least for py in clashes):
            y += least / 4
        placed.append((x, y))
        colour, _ = style(str(label))
        axes.annotate(
            str(label), (row.parameters, row.score), xytext=(row.parameters * 1.18, y), textcoords="data",
            color=colour, fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour, "alpha": 0.6} if y - row.score > least else None,
        )  # fmt: skip
