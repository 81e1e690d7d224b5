"""Exhibits on GLUE: Table 4, and its average against the number of trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ether import config
from ether.config import Scale
from ether.exhibits import common
from ether.exhibits.exact import parameter_cells
from ether.paper import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGE = "average"  # the metric of the column Avg
LARGE = ("mnli", "qqp")  # left out by independent papers, for their size
AVERAGE_OF_SMALL = "average_of_small"  # the mean of the other tasks
GUESSED = "hyperparameters not from a paper"


def _values(scale: Scale) -> pd.DataFrame:
    """The score of every run, with the task as the metric, and the average of every seed that finished all eight tasks."""
    section = scale.experiment("glue")
    split, select = ("best", "last") if section["select"] == "half" else ("validation", section["select"])
    values = common.last_values(scale, "glue", split, ["score"], select)
    values = values.assign(metric=values["task"])
    wide = values[values["status"] == "finished"].pivot_table(index=["method", "seed"], columns="task", values="value")
    tasks = section["known_tasks"]
    kinds = values.drop_duplicates("method").set_index("method")["adapt_kind"]
    averages = [
        mean.assign(metric=name, task=name, status="finished", reason="", adapt_kind=mean["method"].map(kinds))
        for name, mean in ((AVERAGE, _mean(wide, tasks)), (AVERAGE_OF_SMALL, _mean(wide, [t for t in tasks if t not in LARGE])))
    ]
    return pd.concat([values, *averages], ignore_index=True)


def _mean(wide: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """The mean over tasks of each method and seed that has them all."""
    return wide.reindex(columns=tasks).dropna().mean(axis=1).rename("value").reset_index()


def table4(scale: Scale) -> pd.DataFrame:
    """Table 4: GLUE. The average is the mean over the eight tasks within a seed, with an interval over seeds. A method that lacks
    a task has no average. At a scale that is comparable with the paper, a cell's note names the source of its hyperparameters."""
    paper, values, unit = published.load()["table4"], _values(scale), common.unit_of("glue")
    methods = common.printed_methods("table4", config.chosen_methods(scale, "glue"))
    cells = parameter_cells("table4", methods)
    for stem in methods:
        of_method = values[values["method"] == stem]
        source = f"hyperparameters: {found}" if (found := config.source(scale, "glue", stem)) else GUESSED
        for metric, column in common.metric_columns(paper).items():
            if column.kind == "parameters":
                continue
            of_cell = of_method[of_method["metric"] == metric]
            missing = "not every task was run" if metric in (AVERAGE, AVERAGE_OF_SMALL) else "not run at this scale"
            cells.append(common.measured_cell(paper, stem, paper.label(stem), column.name, of_cell, unit, scale, missing, source))
    return common.table(cells, methods)


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on Table 4: the score of every task (metric: the task's name) and `average`."""
    return common.evidence_of(_values(scale))


def score_against_parameters(cells: pd.DataFrame, scale: Scale) -> Figure:
    """The average of Table 4 against #params.

    If no method has an average, because only some tasks were run, the mean of the columns that all methods have is used instead,
    without an interval.
    """
    from ether.exhibits import plots

    wide = cells.pivot(index="method", columns="column", values="ours").reindex(cells["method"].unique())
    points = pd.DataFrame({"parameters": wide["#params"]})
    average = cells[cells["column"] == "Avg"].set_index("method")
    points[["score", "low", "high"]] = average[["ours", "low", "high"]]
    name = "Avg"
    if points["score"].isna().all():
        complete = [column for column in wide if column != "#params" and wide[column].notna().all()]
        points["score"] = wide[complete].mean(axis=1)
        name = f"mean of {', '.join(complete)}"
    return plots.score_against_parameters(points.reset_index(names="method"), f"{name} at scale {scale.name!r}")
