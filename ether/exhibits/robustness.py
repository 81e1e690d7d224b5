"""Evidence for the claims on robustness against the learning rate, from the grids of Figure 4 and of instruction tuning.

For every method, task and seed the values at all learning rates of a grid are reduced to one value a metric:

width            orders of magnitude of the learning rates around the best one with at least 90 % of its score; its ends are
                 interpolated between the rates of the grid, as in all grids (`ether.analysis.rates.width`)
best_rate        decimal logarithm of the learning rate with the best score
diverged         share of the runs of the grid that diverged
<metric>_x10     value at 10 times the learning rate in the method's file; `_x0.1`: at a tenth of it
<metric>_kept_x10, _kept_x0.1    the same, divided by the value at the rate in the method's file
<distance>_least, _greatest      smallest and largest distance over the grid, of the runs that finished
<distance>_at_highest            decimal logarithm of the distance at the highest rate of the grid
<distance>_over_<method>         its difference from that of ETHER or ETHER+ at the same rate: orders of magnitude

A run that diverged has the score 0. Its distance is beyond any that was measured, so at the highest rate it counts as the largest
distance of all finished runs of the grid, which is a lower bound. A method whose grid does not have a rate has no value there.
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
from ether.exhibits import common, learning_rates, subject

SCORE = "score"
FACTORS = (0.1, 10)
BOUNDED = {"ether": "ETHER", "ether-plus": "ETHER+"}  # the methods with bounded distances, and their names
# Of Figure 4: the measured scores, and the distances.
SCORES = (SCORE, "dino", "background")
NAMES = {SCORE: "score", "dino": "DINO", "background": "images with the prompt's background"}

METRICS = subject.METRICS | {
    "width": MetricInfo("orders of magnitude that keep 90 % of the best score", format=".2f"),
    "best_rate": MetricInfo("log10 of the best learning rate", format=".2f"),
    **learning_rates.DIVERGENCE,
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
        f"{distance}_at_highest": MetricInfo(f"log10 of {subject.METRICS[distance].name} at the highest rate", format=".2f")
        for distance in subject.PANELS
    },
    **{
        f"{distance}_over_{method}": MetricInfo(
            f"orders of magnitude of {subject.METRICS[distance].name} at the highest rate above {BOUNDED[method]}", format=".2f"
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
            reduced |= {"width": rates.width(found), "best_rate": math.log10(best)}
        rate = configured.get(keys["method"], math.nan)
        own = at_rate(found, rate)
        for factor in FACTORS:
            there = at_rate(found, factor * rate)
            reduced[f"{metric}_x{factor:g}"] = there
            reduced[f"{metric}_kept_x{factor:g}"] = there / own if own > 0 else math.nan
        rows += [{**keys, "metric": name, "value": value} for name, value in reduced.items()]
    return pd.DataFrame(rows, columns=common.EVIDENCE_COLUMNS).dropna(subset="value")


def distances(values: pd.DataFrame, distance: str) -> pd.DataFrame:
    """The evidence on a distance: its least and greatest value over the grid, and that at the highest rate of the grid, alone and
    above those of ETHER and ETHER+. Arguments as for `scores`."""
    keys, rows, highest = ["method", "adapt_kind", "task", "seed"], [], {}
    trained = values[values["learning_rate"].notna() & (values["status"] != "failed")]
    finished = trained[(trained["status"] == "finished") & trained["value"].notna()]
    for names, found in finished.groupby(keys, sort=False)["value"]:
        ends = {f"{distance}_least": found.min(), f"{distance}_greatest": found.max()}
        rows += [{**dict(zip(keys, names, strict=True)), "metric": name, "value": value} for name, value in ends.items()]
    top = trained[trained["learning_rate"] == trained["learning_rate"].max()]
    # A method without this distance (LoRA has no transformation) has no values at all.
    top = top[top["method"].isin(finished["method"])]
    farthest = finished["value"].max()
    for run in top.itertuples():
        value = run.value if run.status == "finished" else farthest
        if value > 0:
            highest[run.method, run.task, run.seed] = ({key: getattr(run, key) for key in keys}, math.log10(value))
    for (_, task, seed), (names, value) in highest.items():
        rows.append({**names, "metric": f"{distance}_at_highest", "value": value})
        for bounded in BOUNDED:
            if (bounded, task, seed) in highest:
                above = value - highest[bounded, task, seed][1]
                rows.append({**names, "metric": f"{distance}_over_{bounded}", "value": above})
    return pd.DataFrame(rows, columns=common.EVIDENCE_COLUMNS).dropna(subset="value")


def _of_grid(scale: Scale, experiment: str, split: str, metrics: Sequence[str]) -> list[pd.DataFrame]:
    configured = common.configured_rates(scale, experiment)
    values = common.last_values(scale, experiment, split, metrics)
    return [scores(values[values["metric"] == metric], configured, metric) for metric in metrics]


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for the claims on Figure 4, or on another grid of learning rates."""
    if exhibit == "figure4":
        values = common.last_values(scale, "subject_rates", "geometry", subject.PANELS)
        found = [distances(values[values["metric"] == distance], distance) for distance in subject.PANELS]
        found += [*_of_grid(scale, "subject_rates", subject.LAST, SCORES), learning_rates.divergence_evidence(values)]
    else:
        [experiment] = config.exhibits()[exhibit].experiments
        found = _of_grid(scale, experiment, scale.experiment(experiment)["evaluation"]["split"], (SCORE,))
    return pd.concat(found, ignore_index=True)
