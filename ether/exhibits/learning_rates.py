"""Scores against the learning rate: the grid of an experiment, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ether.analysis import rates, runs
from ether.analysis.claims import MetricInfo
from ether.config import Scale
from ether.exhibits import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DIVERGENCE = {"diverged": MetricInfo("share of the grid's runs that diverged", "lower", format=".2f")}


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


def for_choice(grid: pd.DataFrame) -> pd.DataFrame:
    """A grid in which a run that did not finish has no value, so that its rate cannot be chosen."""
    return grid.assign(value=grid["value"].where(grid["status"] == "finished"))


def counted(grid: pd.DataFrame) -> pd.DataFrame:
    """A grid in which a run that did not finish has the value 0, for the sensitivity to the rate."""
    return grid.assign(value=grid["value"].where(grid["status"] == "finished", 0.0))


def robustness_metrics(score: str) -> dict[str, MetricInfo]:
    """Name and format of the metrics of `robustness_evidence`, for a score of this name."""
    return {
        "width": MetricInfo(f"orders of magnitude with {rates.KEPT:.0%} of the peak", format=".2f"),
        "peak": MetricInfo(f"highest {score} of the grid", format=".1f"),
        "worst": MetricInfo(f"lowest {score} of the grid", format=".1f"),
        "at_highest_rate": MetricInfo(f"{score} at the highest rate divided by the peak", format=".2f"),
        "best_rate": MetricInfo("log10 of the best learning rate", format=".2f"),
        **DIVERGENCE,
    }


def robustness_evidence(grid: pd.DataFrame) -> pd.DataFrame:
    """Evidence on a grid, one value per method, seed and metric of `robustness_metrics`, over the means of the tasks.

    A run that diverged counts as 0.

    Args:
        grid: as for `ether.analysis.rates.choose`, with the column `status`.
    """
    found = rates.per_seed(counted(grid))
    values = {name: found[name] for name in ("width", "peak", "worst", "best_rate")}
    values["at_highest_rate"] = found["highest"] / found["peak"]
    task = grid["task"].iloc[0] if grid["task"].nunique() == 1 else "mean"
    kinds = found["method"].map(grid.drop_duplicates("method").set_index("method")["adapt_kind"])
    base = found[["method", "seed"]].assign(adapt_kind=kinds, task=task)
    frames = [base.assign(metric=metric, value=series) for metric, series in values.items()]
    return pd.concat([*frames, divergence_evidence(grid)], ignore_index=True)


def divergence_evidence(values: pd.DataFrame) -> pd.DataFrame:
    """The share of runs of a grid that diverged, for every trained method, task and seed: the metric `diverged`.

    Args:
        values: one or more rows per run, with the columns method, adapt_kind, task, seed, learning_rate and status.
    """
    keys = ["method", "adapt_kind", "task", "seed"]
    once = values[values["learning_rate"].notna() & (values["status"] != "failed")].drop_duplicates([*keys, "learning_rate"])
    shares = once.assign(value=(once["status"] == "diverged").astype(float)).groupby(keys, sort=False)["value"].mean()
    return shares.reset_index().assign(metric="diverged")


def figure(data: pd.DataFrame, panels: Mapping[str, str], main: str, unit: str, title: str, columns: int = 4) -> Figure:
    """A large panel for the main metric and small ones for the others, with one line per method.

    Intervals are cut off at the range of the measured values.

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
        # The axis has the range of the measured values: intervals are several times as wide where the seeds differ.
        low, high = of_metric["value"].min(), of_metric["value"].max()
        margin = 0.06 * max(high - low, 1.0)
        panel.set(xscale="log", xlabel="learning rate", title=panels[metric], ylim=(low - margin, high + margin))
        panel.grid(alpha=0.25)
        if metric == main or any(metric == row[0] for row in rows):
            panel.set_ylabel("score, %")
    legend_beside(axes[main])
    seeds = [str(seed) for seed in sorted(data["seed"].unique())]
    drawn.suptitle(f"{title}, tuning splits, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})", fontsize=11)
    return drawn
