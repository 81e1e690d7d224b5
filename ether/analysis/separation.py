"""Whether several methods differ at all: a one-way analysis of variance with repeated measures."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd


class Separation(NamedTuple):
    """Result of `separation`. All numbers but the two counts are NaN for fewer than two methods or blocks."""

    f: float  # mean square of the methods over the mean square of the residuals
    p: float  # of the F distribution
    p_corrected: float  # the same with Greenhouse and Geisser's correction for unequal variances of differences
    methods: int
    blocks: int


def separation(values: pd.DataFrame, block: str = "task") -> Separation:
    """F test of "all methods have the same mean", with each block measured with every method.

    Differences between blocks (subjects) do not count as differences between methods, nor as noise. The values of a method in a
    block (its seeds) are averaged first. A block without a value of one of the methods is left out.

    Args:
        values: one row per run, with the columns method, value and `block`.
        block: the column with the blocks.
    """
    from scipy.special import fdtrc  # scipy.stats takes more than a second to import

    table = values.dropna(subset="value").pivot_table(index=block, columns="method", values="value").dropna().to_numpy()
    n, k = table.shape if table.ndim == 2 else (0, 0)
    if n < 2 or k < 2:
        return Separation(math.nan, math.nan, math.nan, k, n)
    grand, methods, blocks = table.mean(), table.mean(axis=0), table.mean(axis=1, keepdims=True)
    between = n * float(np.square(methods - grand).sum()) / (k - 1)
    noise = float(np.square(table - methods - blocks + grand).sum()) / ((n - 1) * (k - 1))
    if noise == 0:
        return Separation(math.inf if between else math.nan, 0.0 if between else math.nan, math.nan, k, n)
    # Greenhouse and Geisser: how evenly the covariance of the methods, without their mean, fills its k - 1 dimensions.
    centre = np.eye(k) - 1 / k
    covariance = centre @ np.cov(table, rowvar=False) @ centre
    share = float(np.trace(covariance) ** 2 / ((k - 1) * np.square(covariance).sum()))
    f, degrees = between / noise, (k - 1, (n - 1) * (k - 1))
    p, corrected = (float(fdtrc(part * degrees[0], part * degrees[1], f)) for part in (1.0, share))
    return Separation(f, p, corrected, k, n)
