"""Exhibits on VTAB: Table 12, its accuracy against the number of trained parameters, and the grid of learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ether import config, targets
from ether.analysis.claims import EXACT, MetricInfo
from ether.config import Scale
from ether.exhibits import by_task, common, learning_rates
from ether.exhibits.exact import parameter_cells
from ether.paper import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "mean"  # the mean accuracy over the tasks
COMPARED = {"oft-n256": "parameters_of_oft", "lora": "parameters_of_lora"}  # metrics: #params divided by those of a method
WORLD = "world/vtab"  # the generated tasks

METRICS = {
    MEAN: MetricInfo("mean accuracy", format=".2f"),
    "parameters_of_oft": MetricInfo("#params divided by OFT's", "lower", ".3f"),
    "parameters_of_lora": MetricInfo("#params divided by LoRA's", "lower", ".3f"),
}


def _values(scale: Scale) -> pd.DataFrame:
    section = scale.experiment("vtab")
    return _by_task(common.last_values(scale, "vtab", "validation", ["score"], section["select"]), ("method", "seed"))


def _by_task(values: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return by_task.with_means(values, {MEAN: list(values["task"].unique())}, keys)


def table12(scale: Scale) -> pd.DataFrame:
    """Table 12: accuracy on six tasks of VTAB."""
    methods = targets.printed_methods("table12", config.chosen_methods(scale, "vtab"))
    paper, unit = published.load()["table12"], common.unit_of("vtab")
    labels = {stem: paper.label(stem) for stem in methods}
    measured = common.measured_cells(paper, labels, _values(scale), unit, scale)
    return common.table([*parameter_cells("table12", methods), *measured], methods)


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on Table 12: the accuracy on every task (metric: the task's name), `mean`, and `COMPARED`."""
    found = common.evidence_of(_values(scale))
    counted = {cell.method: cell.ours for cell in parameter_cells("table12", config.chosen_methods(scale, "vtab"))}
    found = found.assign(unit=common.unit_of("vtab"))
    once = found[found["metric"] == MEAN].drop_duplicates("method").assign(unit=EXACT)
    shares = [
        once.assign(metric=metric, value=once["method"].map(counted) / counted[other])
        for other, metric in COMPARED.items()
        if other in counted
    ]
    return pd.concat([found, *shares], ignore_index=True)


def described(scale: Scale) -> pd.DataFrame:
    """What is real and what is drawn in the tasks that this project generates; at a scale with other data, the data sets."""
    data = scale.experiment("vtab")["data"]
    if data["path"] != WORLD:
        sets = [
            {"task": task} | {key: of_task.get(key) for key in ("path", "config", "revision")}
            for task, of_task in (data.get("tasks") or {}).items()
        ]
        return pd.DataFrame(sets).set_index("task").fillna("") if sets else pd.DataFrame()
    from ether.worlds import vision

    rows = [
        {"task": task.title, "kind": task.kind, "classes": len(task.classes), "real": task.real, "drawn": task.drawn}
        for task in vision.TASKS.values()
    ]
    return pd.DataFrame(rows).set_index("task")


def examples(scale: Scale, each: int = 9) -> Figure | None:
    """Test pictures of every generated task, one row per task, with their labels; None at a scale with other data."""
    if scale.experiment("vtab")["data"]["path"] != WORLD:
        return None
    from ether.exhibits.style import new_figure
    from ether.worlds import vision

    tasks = [name for name in scale.experiment("vtab")["tasks"] if name in vision.TASKS]
    figure = new_figure(1.15 * each, 1.35 * len(tasks))
    axes = figure.subplots(len(tasks), each, squeeze=False)
    for row, name in zip(axes, tasks, strict=True):
        pictures, labels = vision.examples(name, "test", scale.settings["world"]["vision"]["seed"], each)
        for axis, picture, label in zip(row, pictures, labels, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(vision.TASKS[name].classes[int(label)], fontsize=7)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(vision.TASKS[name].title, fontsize=8)
    return figure


def separations(scale: Scale) -> pd.DataFrame:
    """Whether each task separates the methods (`ether.exhibits.by_task.separations`)."""
    return by_task.separations(_values(scale), scale.experiment("vtab")["tasks"])


def score_against_parameters(cells: pd.DataFrame, scale: Scale) -> Figure:
    """The mean accuracy over the tasks against #params of Table 12."""
    from ether.exhibits import plots

    values = common.evidence_of(_values(scale))
    points = common.against_parameters(cells, values[values["metric"] == MEAN], common.unit_of("vtab"))
    return plots.score_against_parameters(points, f"mean accuracy at scale {scale.name!r}")


# --- learning rates --------------------------------------------------------------------------------------------


def _grid(scale: Scale, or_published: bool) -> pd.DataFrame:
    grid = learning_rates.grid(scale, "vtab_rates", "validation", ["score"], or_published)
    found = _by_task(grid, ("method", "seed", "learning_rate"))
    return found[found["learning_rate"].notna()]


def rate_grid(scale: Scale) -> pd.DataFrame:
    """Accuracies of the grid on the tuning pictures, run here or committed, for `ether.analysis.rates.choose`."""
    grid = _grid(scale, or_published=True)
    return learning_rates.for_choice(grid[grid["metric"] != MEAN].reset_index(drop=True))


def figure_vtab_rates(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Accuracy on the tuning pictures against the learning rate, for every method of Table 12; the paper has no such figure."""
    data = common.labelled(_grid(scale, or_published=False))
    columns = {column.metric: column.name for column in published.load()["table12"].columns}
    panels = {MEAN: "mean of the tasks"} | {task: columns[task] for task in scale.experiment("vtab_rates")["tasks"]}
    unit = common.unit_of("vtab_rates")
    title = f"VTAB, accuracy against learning rate (scale {scale.name}"
    return learning_rates.figure(data, panels, MEAN, unit, title, columns=3), data
