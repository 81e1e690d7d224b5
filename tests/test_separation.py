"""The F test over methods, against other ways to compute it, and its error rate."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ether.analysis.separation import separation


def frame(table: np.ndarray, seeds: int = 1) -> pd.DataFrame:
    """Runs with the values of a table (blocks, methods); with several seeds, their mean is the table's value."""
    return pd.DataFrame(
        [
            {"method": f"m{j}", "task": f"t{i}", "seed": seed, "value": value + (seed - (seeds - 1) / 2) / 10}
            for (i, j), value in np.ndenumerate(table)
            for seed in range(seeds)
        ]
    )


def test_with_two_methods_it_is_the_paired_t_test() -> None:
    table = np.random.default_rng(0).normal(size=(7, 2)) + np.array([0, 0.5])
    found, paired = separation(frame(table)), stats.ttest_rel(table[:, 0], table[:, 1])
    assert found.f == pytest.approx(paired.statistic**2) and found.p == pytest.approx(paired.pvalue)
    assert found.p_corrected == pytest.approx(found.p)  # two methods have one difference only


def test_it_compares_two_linear_models() -> None:
    n, k = 6, 4
    table = np.random.default_rng(1).normal(size=(n, k)) + np.arange(k) / 3 + 10 * np.arange(n)[:, None]
    blocks = np.kron(np.eye(n), np.ones((k, 1)))
    both = np.hstack([blocks, np.kron(np.ones((n, 1)), np.eye(k))])
    small, large = (float(np.square(table.ravel() - d @ np.linalg.pinv(d) @ table.ravel()).sum()) for d in (blocks, both))
    expected = (small - large) / (k - 1) / (large / ((n - 1) * (k - 1)))
    found = separation(frame(table, seeds=3))
    assert found.f == pytest.approx(expected) and (found.methods, found.blocks) == (k, n)
    assert found.p == pytest.approx(stats.f.sf(expected, k - 1, (n - 1) * (k - 1)))
    assert found.p <= found.p_corrected


@pytest.mark.parametrize("spread", [(1, 1, 1, 1), (0.1, 0.1, 0.1, 3)])
def test_equal_methods_are_separated_as_rarely_as_the_level_says(spread: tuple[float, ...]) -> None:
    random = np.random.default_rng(2)
    tables = random.normal(size=(400, 8, 1)) + random.normal(size=(400, 8, 4)) * spread
    found = [separation(frame(table)) for table in tables]
    assert np.mean([one.p_corrected < 0.05 for one in found]) < 0.08
    if len(set(spread)) == 1:
        assert 0.02 < np.mean([one.p < 0.05 for one in found]) < 0.08


def test_incomplete_blocks_are_left_out_and_too_few_have_no_result() -> None:
    values = frame(np.random.default_rng(3).normal(size=(5, 3)))
    missing = values[(values["task"] != "t2") | (values["method"] != "m1")]
    complete = values[values["task"] != "t2"]
    assert separation(missing) == separation(complete) and separation(missing).blocks == 4
    assert math.isnan(separation(values[values["task"] == "t0"]).p) and math.isnan(separation(values[values["method"] == "m0"]).p)
    assert math.isnan(separation(values[:0]).p)
