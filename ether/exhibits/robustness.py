"""Evidence for the claims on robustness against the learning rate, from the grids of Figure 4 and of instruction tuning.

For every method, task and seed the values at all learning rates of a grid are reduced to one value a metric:

width            orders of magnitude of the learning rates around the best one with at least 90 % of its score
best_rate        decimal logarithm of the learning rate with the best score
<metric>_x10     value at 10 times the learning rate in the method's file; `_x0.1`: at a tenth of it
<metric>_kept_x10, _kept_x0.1    the same, divided by the value at the rate in the method's file
<distance>_least, _greatest      smallest and largest distance over the grid

A run that diverged has the score 0 and no distance. A method whose grid does not have a rate has no value there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ether import config
from ether.analysis import rates
from ether.analysis.claims import MetricInfo
from ether.config import Scale
from ether.exhibits import common, subject

SCORE = "score"
FACTORS = (0.1, 10)
BOUNDED = {"ether": "ETHER", "ether-plus": "ETHER+"}  # the methods with bounded distances, and their names
# Of Figure 4: the measured scores, and the distances.
SCORES = (SCORE, "dino", "background")
NAMES = {SCORE: "score", "dino": "DINO", "background": "images with the prompt's background"}

METRICS = subject.METRICS | {
    "width": MetricInfo("orders of magnitude that keep 90 % of the best score", format=".2f"),
    "best_rate": MetricInfo("log10 of the best learning rate", format=".2f"),
    **{
        f"{metric}_x{factor:g}": MetricInfo(f"{NAMES[metric]} at {factor:g} times the rate")
        for metric in NAMES
        for factor in FACTORS
    },
    **{
        f"{metric}_kept_x{factor:g}": MetricInfo(f"{NAMES[metric]} at {factor:g} times the rate, relative to that at the rate")
        for metric in NAMES
        for factor in FACTORS
    },
    **{
        f"{distance}_{end}": MetricInfo(f"{end} {subject.METRICS[distance].name} over the learning rates", format=".4f")
        for distance in subject.PANELS
        for end in ("least", "greatest")
    },
    **{
        f"{distance}_over_{method}": MetricInfo(
            f"{subject.METRICS[distance].name} at the highest rate, divided by that of {BOUNDED[method]}", format=".1f"
        )
        for distance in subject.PANELS
        for method in BOUNDED
    },
}


def _groups(values: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.Series]]:
    """The keys of every method, task and seed that is trained, and its values by learning rate."""
    trained = values[values["learning_rate"].notna() & (values["status"] != "failed")]
    keys = ["method", "adapt_kind", "task", "seed"]
    for names, rows in trained.groupby(keys, sort=False):
        found = rows["value"].where(rows["status"] == "finished", 0.0)
        yield dict(zip(keys, names, strict=True)), found.set_axis(rows["learning_rate"]).sort_index().dropna()


def at_rate(values: pd.Series, rate: float) -> float:
    """The value at a learning rate of the grid, the index; NaN if the grid does not have it."""
    found = values[np.isclose(values.index.to_numpy(dtype=float), rate, rtol=1e-6, atol=0)]
    return float(found.iloc[0]) if len(found) else math.nan


def scores(values: pd.DataFrame, configured: Mapping[str, float], metric: str) -> pd.DataFrame:
    """The evidence on one measured score of a grid.

    Args:
        values: one row per run, as `ether.exhibits.common.last_values` returns them for the metric.
        configured: {stem: learning rate in the method's file}.
        metric: its name; `width` and `best_rate` are of the metric `SCORE`.
    """
    rows = []
    for keys, found in _groups(values):
        reduced: dict[str, float] = {}
        if metric == SCORE and len(found):
            best = float(found.idxmax())
            reduced |= {"width": rates.width(found, best), "best_rate": math.log10(best)}
        rate = configured.get(keys["method"], math.nan)
        own = at_rate(found, rate)
        for factor in FACTORS:
            there = at_rate(found, factor * rate)
            reduced[f"{metric}_x{factor:g}"] = there
            reduced[f"{metric}_kept_x{factor:g}"] = there / own if own > 0 else math.nan
        rows += [{**keys, "metric": name, "value": value} for name, value in reduced.items()]
    return pd.DataFrame(rows, columns=common.EVIDENCE_COLUMNS).dropna(subset="value")


def distances(values: pd.DataFrame, distance: str) -> pd.DataFrame:
    """The evidence on a distance: its least and greatest value over the grid, and that at the highest rate relative to those of
    ETHER and ETHER+. Arguments as for `scores`. A run that diverged has no distance, so the highest rate is that of a run that
    finished."""
    rows, highest = [], {}
    for keys, found in _groups(values[values["status"] == "finished"]):
        if found.empty:
            continue
        rows.append({**keys, "metric": f"{distance}_least", "value": found.min()})
        rows.append({**keys, "metric": f"{distance}_greatest", "value": found.max()})
        highest[keys["method"], keys["task"], keys["seed"]] = (keys, float(found.iloc[-1]))
    for (_, task, seed), (keys, value) in highest.items():
        for bounded in BOUNDED:
            if (bounded, task, seed) in highest:
                ratio = value / highest[bounded, task, seed][1]
                rows.append({**keys, "metric": f"{distance}_over_{bounded}", "value": ratio})
    return pd.DataFrame(rows, columns=common.EVIDENCE_COLUMNS)


def _of_grid(scale: Scale, experiment: str, split: str, metrics: Sequence[str]) -> list[pd.DataFrame]:
    configured = common.configured_rates(scale, experiment)
    values = common.last_values(scale, experiment, split, metrics)
    return [scores(values[values["metric"] == metric], configured, metric) for metric in metrics]


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for the claims on Figure 4, that of `ether.exhibits.subject` included, or on another grid of learning rates."""
    if exhibit == "figure4":
        values = common.last_values(scale, "subject_rates", "geometry", subject.PANELS)
        found = [distances(values[values["metric"] == distance], distance) for distance in subject.PANELS]
        found += [subject.evidence(exhibit, scale), *_of_grid(scale, "subject_rates", subject.LAST, SCORES)]
    else:
        [experiment] = config.exhibits()[exhibit].experiments
        found = _of_grid(scale, experiment, scale.experiment(experiment)["evaluation"]["split"], (SCORE,))
    return pd.concat(found, ignore_index=True)
