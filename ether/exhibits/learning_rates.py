"""Scores against the learning rate: the grid of an experiment, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ether.analysis import runs
from ether.config import Scale
from ether.exhibits import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(scale: Scale, experiment: str, split: str, metrics: Sequence[str], or_published: bool) -> pd.DataFrame:
    """The last values of every run of a grid, in table order, with the columns `split` and `configured`.

    Args:
        scale: the scale.
        experiment: an experiment with ``learning_rates``.
        split, metrics: the measured values; metrics without a value are left out.
        or_published: whether the committed grid is read where none was run.
    """
    found = runs.measured(scale, experiment, split, list(metrics), or_published)
    found = common.in_order(found[found["metric"].isin(found.dropna(subset="value")["metric"])])
    configured = common.configured_rates(scale, experiment)
    return found.assign(split=split, configured=found["learning_rate"] == found["method"].map(configured))


def figure(data: pd.DataFrame, panels: Mapping[str, str], main: str, unit: str, title: str, columns: int = 4) -> Figure:
    """A large panel for the main metric and small ones for the others, with one line per method.

    Args:
        data: from `grid`, labelled; the mean of the runs without tuning is a dotted line.
        panels: titles by metric; those without values are left out.
        main: the metric of the large panel.
        unit: unit of the intervals.
        title: title of the figure, up to an opening parenthesis that the seeds close.
        columns: number of small panels in a row.
    """
    from ether.exhibits.plots import curves, legend_beside
    from ether.exhibits.style import GREY, new_figure

    metrics = [metric for metric in panels if metric in set(data["metric"])]
    small = [metric for metric in metrics if metric != main]
    rows = [small[start : start + columns] for start in range(0, len(small), columns)]
    width = len(rows[0]) if rows else 1
    layout = [[main] * width, *([*row, *["."] * (width - len(row))] for row in rows)]
    drawn = new_figure(9.5, 4.2 + 2.4 * len(rows))
    axes: dict[str, Any] = drawn.subplot_mosaic(layout, height_ratios=[1.7, *[1] * len(rows)])  # type: ignore[arg-type]
    for metric, panel in axes.items():
        of_metric = data[data["metric"] == metric]
        untrained = of_metric[of_metric["adapt_kind"] == "none"]["value"].dropna()
        if len(untrained):
            panel.axhline(untrained.mean(), color=GREY, linestyle=":", linewidth=1.2, label="Base model", zorder=1)
        curves(panel, of_metric[of_metric["adapt_kind"] != "none"], "learning_rate", unit)
        panel.set(xscale="log", xlabel="learning rate", title=panels[metric])
        panel.grid(alpha=0.25)
        if metric == main or any(metric == row[0] for row in rows):
            panel.set_ylabel("score, %")
    legend_beside(axes[main])
    seeds = ", ".join(map(str, sorted(data["seed"].unique())))
    drawn.suptitle(f"{title}, tuning splits, seed {seeds})", fontsize=11)
    return drawn
