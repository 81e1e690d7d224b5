"""Experiments whose tasks are separate benchmarks (GLUE, VTAB): means over tasks, and whether a task separates the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ether import config
from ether.analysis.separation import separation

PROBE, FULL = "linear-probe", "full"


def with_means(
    values: pd.DataFrame, means: Mapping[str, Sequence[str]], keys: Sequence[str] = ("method", "seed")
) -> pd.DataFrame:
    """Values with the task as the metric, and means over tasks of the runs of each method and seed.

    Args:
        values: one row per run, as `ether.exhibits.common.last_values` returns them.
        means: the tasks of each mean, by its name. A method and seed that did not finish one of the tasks has no mean.
        keys: columns in which the runs of a mean agree; of a grid, the learning rate as well.
    """
    by = list(keys)
    values = values.assign(metric=values["task"])
    finished = values[values["status"] == "finished"]
    wide = finished.pivot_table(index=by, columns="task", values="value", dropna=False)
    first = finished.drop_duplicates(by).drop(columns=["value", "metric", "task"])
    found = [values]
    for name, tasks in means.items():
        mean = wide.reindex(columns=list(tasks)).dropna().mean(axis=1).rename("value").reset_index()
        found.append(mean.merge(first, on=by).assign(metric=name, task=name))
    return pd.concat(found, ignore_index=True)


def separations(values: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Whether a task separates the methods: one row per task.

    Args:
        values: from `with_means`.
        tasks: metrics of `values`.

    Returns:
        The scores of linear probing, of full fine-tuning and of the best method, and the p-value of the F test over all methods
        but linear probing (`ether.analysis.separation`, corrected), with seeds as blocks.
    """
    rows = []
    for task in tasks:
        of_task = values[(values["metric"] == task) & (values["status"] == "finished")]
        means = of_task.groupby("method")["value"].mean()
        tested = separation(of_task[of_task["method"] != PROBE], "seed")
        rows.append(
            {
                "task": task,
                "linear probing": means.get(PROBE),
                "full fine-tuning": means.get(FULL),
                "highest": means.max() if len(means) else None,
                "highest of": config.label(str(means.idxmax())) if len(means) else "",
                "F, all but linear probing": tested.f,
                "p": tested.p_corrected,
            }
        )
    return pd.DataFrame(rows)
