"""Confidence intervals of means over independent units, by Student's t distribution.

The model. A run's value is ``y[t, s] = mean + a[t] + e[t, s]`` for task t and seed s. The unit depends on what is sampled:

unit ``task``   Tasks are a sample of a larger population (the subjects of subject-driven generation). Seeds of one task
                share ``a[t]``, so they are not independent: they are averaged within the task, and the interval is taken
                over the task means. More seeds make the task means more precise; only more tasks add degrees of freedom.
unit ``seed``   Tasks are fixed (the benchmarks of GLUE, the questions of MMLU), so ``a[t]`` is not random. Several tasks are
                averaged within a seed, and the interval is taken over the seeds.

With n units of mean m and standard deviation s (n - 1 degrees of freedom) the 95 % interval is
``m +- t(0.975, n - 1) s / sqrt(n)``. If the unit values are normally distributed it covers the true mean in 95 % of
repetitions for any n >= 2; a percentile bootstrap does not (75 % at n = 3). Differences between two methods are paired: taken
within a task and seed first, then averaged within the unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from ether.errors import one_of

LEVEL = 0.95
Unit = Literal["seed", "task"]


class Interval(NamedTuple):
    """A mean with its 95 % interval; `low` and `high` are NaN for fewer than two units, `mean` for none."""

    mean: float
    low: float
    high: float
    n: int
    unit: str


def quantile(degrees: int, probability: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit  # scipy.stats takes more than a second to import

    return float(stdtrit(degrees, probability))


def p_greater(values: Sequence[float], bound: float = 0.0) -> float:
    """One-sided p-value of a t test of "the mean is greater than `bound`"; NaN for fewer than two values.

    If all values are equal, the p-value is 0 or 1, and 0.5 if the mean equals the bound.
    """
    from scipy.special import stdtr

    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return math.nan
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    distance = float(array.mean()) - bound
    if error <= 1e-12 * max(1.0, float(np.abs(array).max())):
        return 0.5 if abs(distance) <= error else float(distance < 0)
    return float(1 - stdtr(len(array) - 1, distance / error))


def mean_interval(values: Sequence[float], unit: str = "seed") -> Interval:
    """Mean and 95 % Student's t interval of independent values.

    Args:
        values: one value per unit, without NaN; a NaN value makes the result NaN.
        unit: seed | task, stored in the result.
    """
    array = np.asarray(values, dtype=float)
    n = len(array)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, unit)
    mean = float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, unit)
    half = quantile(n - 1, (1 + LEVEL) / 2) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, unit)


def unit_means(frame: pd.DataFrame, unit: str) -> pd.Series:
    """One value per unit: `value` averaged over seeds within each task, or over tasks within each seed.

    Args:
        frame: columns task, seed, value; one row per run. Rows whose value is NaN are left out.
        unit: task | seed.

    Raises:
        ConfigurationError: unknown unit.
    """
    if unit not in get_args(Unit):
        raise one_of("unit", unit, get_args(Unit), "workflow/experiments.yaml")
    return frame.dropna(subset="value").groupby(unit, sort=True)["value"].mean()


def summarise(frame: pd.DataFrame, unit: str) -> Interval:
    """Mean and 95 % interval of a frame with columns task, seed and value, over its units (see the module's docstring)."""
    return mean_interval(unit_means(frame, unit).tolist(), unit)


def paired_differences(first: pd.DataFrame, second: pd.DataFrame, unit: str) -> pd.Series:
    """first - second, one value per unit, paired by task and seed.

    A method without training has one run per task. Its value is compared with every seed of the other method.

    Args:
        first: columns task, seed, value, and optionally adapt_kind, which is "none" for a method without training.
        second: the same columns.
        unit: task | seed.
    """
    first, second = (frame.dropna(subset="value") for frame in (first, second))
    fixed = ["adapt_kind" in frame and len(frame) > 0 and bool(frame["adapt_kind"].eq("none").all()) for frame in (first, second)]
    keys = ["task"] if fixed[0] != fixed[1] else ["task", "seed"]
    columns = ["task", "seed", "value"]
    pairs = first[columns].merge(second[columns], on=keys, suffixes=("", "_second"))
    if keys == ["task"] and fixed[0]:
        pairs = pairs.assign(seed=pairs["seed_second"])
    return unit_means(pairs.assign(value=pairs["value"] - pairs["value_second"])[columns], unit)


def units_to_decide(values: Sequence[float], bound: float = 0.0, alpha: float = 0.025, most: int = 10_000) -> int | None:
    """Number of units at which a one-sided t test separates the mean from `bound`, at the observed mean and standard deviation.

    Returns:
        The smallest such number, at least 2; None if more than `most` are needed, or for fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return None
    distance, spread = abs(float(array.mean()) - bound), float(array.std(ddof=1))
    if distance == 0:
        return None
    if spread == 0:
        return 2
    low, high = 2, 2
    while distance <= quantile(high - 1, 1 - alpha) * spread / math.sqrt(high):
        low, high = high, 2 * high
        if low > most:
            return None
    while low < high:  # the condition is monotone in the number of units
        middle = (low + high) // 2
        if distance > quantile(middle - 1, 1 - alpha) * spread / math.sqrt(middle):
            high = middle
        else:
            low = middle + 1
    return high if high <= most else None
