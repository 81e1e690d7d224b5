"""Selection of a learning rate from a grid, and the sensitivity of the score to it."""

from __future__ import annotations

import math

import pandas as pd

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
        width                      orders of magnitude between the smallest and the largest rate of the contiguous range around
                                   the best rate in which scores are at least ``KEPT`` times the best score
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
                "width": width(scores, best) if len(finite) else math.nan,
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


def width(scores: pd.Series, best: float) -> float:
    """Orders of magnitude of the contiguous range around the best rate with at least ``KEPT`` times the best score."""
    good = scores >= KEPT * scores.loc[best] if scores.loc[best] > 0 else scores >= scores.loc[best]
    low = high = list(scores.index).index(best)
    while low > 0 and good.iloc[low - 1]:
        low -= 1
    while high < len(scores) - 1 and good.iloc[high + 1]:
        high += 1
    return math.log10(scores.index[high] / scores.index[low])
