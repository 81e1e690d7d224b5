"""Selection of a learning rate from a grid, and the sensitivity of the score to it."""

from __future__ import annotations

import math

import pandas as pd

from ether.analysis.intervals import mean_interval

# A learning rate counts as near-optimal if its score is at least this fraction of the best score.
KEPT = 0.9

COLUMNS = [
    "method", "best_rate", "best_score", "at_edge", "seeds", "width", "peak", "worst", "configured_rate", "configured_score",
]  # fmt: skip


def choose(grid: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of each method with the highest mean score over tasks and seeds, and a comparison with other rates.

    Args:
        grid: one row per run with the columns method, learning_rate, seed, task, value (NaN for a run without a score) and
            configured (whether this rate is the one in the method's file). Runs with the same rate are averaged over seeds
            within a task, then over tasks. A rate has no score if one of its runs failed.

    Returns:
        One row per method, in the order of the grid:

        best_rate, best_score      the rate with the highest mean score, the smallest in case of ties
        at_edge                    whether it is the smallest or the largest rate of the grid: the optimum may be outside
        seeds                      number of seeds
        width                      see the function of that name
        peak, worst                the highest and the lowest mean score
        configured_rate, configured_score    the rate in the method's file, and its score in the grid
    """
    rows = []
    for method, of_method in grid[grid["learning_rate"].notna()].groupby("method", sort=False):
        by_task = of_method.groupby(["learning_rate", "task"])["value"].apply(_mean_of_all)
        scores = by_task.groupby("learning_rate").apply(_mean_of_all).sort_index()
        finite = scores.dropna()
        configured = of_method.loc[of_method["configured"], "learning_rate"]
        rate = float(configured.iloc[0]) if len(configured) else math.nan
        best = float(finite.idxmax()) if len(finite) else math.nan
        rows.append(
            {
                "method": method,
                "best_rate": best,
                "best_score": float(finite.max()) if len(finite) else math.nan,
                "at_edge": best in (scores.index[0], scores.index[-1]) if len(finite) else False,
                "seeds": int(of_method["seed"].nunique()),
                "width": width(scores) if len(finite) else math.nan,
                "peak": float(finite.max()) if len(finite) else math.nan,
                "worst": float(finite.min()) if len(finite) else math.nan,
                "configured_rate": rate,
                "configured_score": float(scores.get(rate, math.nan)),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _mean_of_all(values: pd.Series) -> float:
    """The mean; NaN if any value is NaN, so that a failed run is not ignored."""
    return float(values.mean(skipna=False))


def width(scores: pd.Series) -> float:
    """Orders of magnitude of the contiguous range around the best rate with at least ``KEPT`` times the best score.

    Its ends are interpolated between the rates of the grid, linearly in their logarithm.

    Args:
        scores: by learning rate, in increasing order; NaN for a rate without a score.
    """
    places = [math.log10(rate) for rate in scores.index]
    best = list(scores.index).index(scores.idxmax())
    bound = KEPT * scores.iloc[best] if scores.iloc[best] > 0 else scores.iloc[best]
    ends = []
    for step in (-1, 1):
        at = best
        while 0 <= at + step < len(scores) and scores.iloc[at + step] >= bound:
            at += step
        end, beyond = places[at], at + step
        if 0 <= beyond < len(scores) and not math.isnan(scores.iloc[beyond]):
            share = (scores.iloc[at] - bound) / (scores.iloc[at] - scores.iloc[beyond])
            end += share * (places[beyond] - places[at])
        ends.append(end)
    return float(ends[1] - ends[0])


def per_seed(grid: pd.DataFrame) -> pd.DataFrame:
    """The sensitivity of each method to the learning rate in each seed of a grid.

    Args:
        grid: as for `choose`.

    Returns:
        One row per method and seed: method, seed,

        width      see the function of that name
        peak       the highest score
        worst      the lowest score
        highest    the score at the highest rate
        best_rate  decimal logarithm of the rate with the highest score
    """
    rows = []
    for (method, seed), of_run in grid[grid["learning_rate"].notna()].groupby(["method", "seed"], sort=False):
        by_task = of_run.groupby(["learning_rate", "task"])["value"].apply(_mean_of_all)
        scores = by_task.groupby("learning_rate").apply(_mean_of_all).sort_index()
        if len(scores.dropna()):
            best = math.log10(scores.idxmax())
            rows.append((method, seed, width(scores), scores.max(), scores.min(), scores.iloc[-1], best))
    return pd.DataFrame(rows, columns=["method", "seed", "width", "peak", "worst", "highest", "best_rate"])


def robustness(grid: pd.DataFrame) -> pd.DataFrame:
    """How robust each method is to the learning rate, over seeds.

    A wide range alone is no merit: a method that is bad at all rates has one. So the peak and the worst score are given, too.

    Args:
        grid: as for `choose`.

    Returns:
        One row per method and measure (width, peak, worst of `per_seed`): method, measure, and the mean over seeds with its
        95 % interval (low, high) and their number n.
    """
    found, rows = per_seed(grid), []
    for method, of_method in found.groupby("method", sort=False):
        for measure in ("width", "peak", "worst"):
            interval = mean_interval(of_method[measure].dropna().tolist())
            rows.append((method, measure, interval.mean, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "low", "high", "n"])
