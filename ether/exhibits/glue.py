"""Exhibits on GLUE: Table 4, its average against the number of trained parameters, and the grid of learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ether import config, targets
from ether.config import Scale
from ether.exhibits import by_task, common, learning_rates
from ether.exhibits.exact import parameter_cells
from ether.paper import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGE = "average"  # the metric of the column Avg
LARGE = ("mnli", "qqp")  # left out by independent papers, for their size
AVERAGE_OF_SMALL = "average_of_small"  # the mean of the other tasks
METRICS = learning_rates.robustness_metrics("average")
GUESSED = "hyperparameters not from a paper"


def _values(scale: Scale) -> pd.DataFrame:
    """The score of every run, with the task as the metric, and the average of every seed that finished all eight tasks."""
    section = scale.experiment("glue")
    split, select = ("best", "last") if section["select"] == "half" else ("validation", section["select"])
    values = common.last_values(scale, "glue", split, ["score"], select)
    return _with_averages(scale, values)


def _with_averages(scale: Scale, values: pd.DataFrame, keys: Sequence[str] = ("method", "seed")) -> pd.DataFrame:
    tasks = scale.experiment("glue")["known_tasks"]
    return by_task.with_means(values, {AVERAGE: tasks, AVERAGE_OF_SMALL: [t for t in tasks if t not in LARGE]}, keys)


def table4(scale: Scale) -> pd.DataFrame:
    """Table 4: GLUE. The average is the mean over the eight tasks within a seed, with an interval over seeds. A method that lacks
    a task has no average. At a scale that is comparable with the paper, a cell's note names the source of its hyperparameters."""
    paper, values, unit = published.load()["table4"], _values(scale), common.unit_of("glue")
    methods = targets.printed_methods("table4", config.chosen_methods(scale, "glue"))
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
    """Evidence for claims on Table 4: the score of every task (metric: the task's name) and `average`; on the grid of learning
    rates: properties of the average (`ether.exhibits.learning_rates.robustness_evidence`)."""
    if exhibit == "figure_glue_rates":
        return learning_rates.robustness_evidence(_grid(scale, or_published=False))
    return common.evidence_of(_values(scale))


def separations(scale: Scale) -> pd.DataFrame:
    """Whether each task, and their average, separates the methods (`ether.exhibits.by_task.separations`)."""
    return by_task.separations(_values(scale), [*scale.experiment("glue")["tasks"], AVERAGE])


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


# --- learning rates --------------------------------------------------------------------------------------------


def rate_grid(scale: Scale) -> pd.DataFrame:
    """Scores of the grid on the tuning splits, run here or committed, for `ether.analysis.rates.choose`."""
    return learning_rates.for_choice(_grid(scale, or_published=True))


def _grid(scale: Scale, or_published: bool) -> pd.DataFrame:
    return learning_rates.grid(scale, "glue_rates", "validation", ["score"], or_published)


def figure_glue_rates(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Score on the tuning splits against the learning rate, for every method of Table 4; the paper has no such figure."""
    tasks = scale.experiment("glue_rates")["tasks"]
    grid = by_task.with_means(_grid(scale, or_published=False), {AVERAGE: tasks}, ("method", "seed", "learning_rate"))
    columns = {column.metric: column.name for column in published.load()["table4"].columns}
    panels = {AVERAGE: "mean of the tasks"} | {task: columns[task] for task in tasks}
    title = f"GLUE, score against learning rate (scale {scale.name}"
    data = common.labelled(grid)
    return learning_rates.figure(data, panels, AVERAGE, common.unit_of("glue_rates"), title), data
