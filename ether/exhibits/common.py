"""Shared code of the exhibits: the rows of a table, its measured cells, and the evidence for claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from ether import config
from ether.analysis import cells, runs
from ether.analysis.cells import Cell
from ether.analysis.intervals import summarise
from ether.config import ExhibitEntry, Scale
from ether.errors import MissingResourceError
from ether.paper import published
from ether.paper.published import Column, PublishedTable

# Columns of the evidence for claims: one row per run and metric.
EVIDENCE_COLUMNS = ["method", "adapt_kind", "metric", "task", "seed", "value"]


def title(exhibit: ExhibitEntry) -> str:
    """'Table 4: GLUE'; the title in exhibits.yaml if the exhibit has no number in the paper."""
    number = exhibit.id.removeprefix(exhibit.kind)
    text = exhibit.title or published.load()[exhibit.id].title
    return f"{exhibit.kind.capitalize()} {number}: {text}" if number.isdigit() else text


def unit_of(experiment: str) -> str:
    """The unit of an experiment's intervals: seed | task (see `ether.analysis.intervals`)."""
    return config.experiments()[experiment].unit


def metric_columns(paper: PublishedTable) -> dict[str, Column]:
    """{name of a measured value: its column}, for the paper's columns and then our additional columns."""
    return {column.metric: column for column in (*paper.columns, *paper.beside) if column.metric}


def last_values(
    scale: Scale, experiment: str, split: str, metrics: Iterable[str], select: str = "last", or_published: bool = False
) -> pd.DataFrame:
    """The values of an experiment's runs in a split, as returned by `runs.measured`, without metrics that no run has."""
    found = runs.measured(scale, experiment, split, list(metrics), or_published, select)
    return found[found["metric"].isin(found.dropna(subset="value")["metric"])]


def evidence_of(values: pd.DataFrame) -> pd.DataFrame:
    """The values of finished runs as evidence for claims."""
    return values.loc[values["status"] == "finished", EVIDENCE_COLUMNS].dropna(subset="value").reset_index(drop=True)


def measured_cell(
    paper: PublishedTable,
    stem: str,
    label: str,
    column: str,
    of_cell: pd.DataFrame,
    unit: str,
    scale: Scale,
    missing: str = "not run at this scale",
    source: str = "",
) -> Cell:
    """The cell of a method and column from its runs.

    Only finished runs are used; the note lists the others. If the scale's numbers cannot be compared with the paper's, the note
    gives the reason.

    Args:
        paper: the published table.
        stem, label: the method.
        column: the name of the column.
        of_cell: the runs, with the columns task, seed, status, reason and value.
        unit: task | seed.
        scale: states whether its numbers can be compared with the paper's.
        missing: the note of a cell without runs.
        source: a note on the runs' hyperparameters, given where the scale can be compared with the paper.
    """
    notes = [missing] if of_cell.empty else []
    unfinished = of_cell[of_cell["status"] != "finished"]
    notes += [f"{row.task}, seed {row.seed} {row.status} ({row.reason})" for row in unfinished.itertuples()]
    comparable = scale.settings["comparable"]
    if not comparable["value"]:
        notes.append(comparable["reason"])
    elif source:
        notes.append(source)
    value, printed = paper.paper(stem, column)
    return Cell.from_interval(
        stem,
        label,
        column,
        summarise(of_cell[of_cell["status"] == "finished"], unit),
        paper=value,
        printed=printed,
        comparable=comparable["value"],
        note="; ".join(notes),
    )


def measured_cells(
    paper: PublishedTable, rows: Mapping[str, str], values: pd.DataFrame, unit: str, scale: Scale, suffix: str = ""
) -> list[Cell]:
    """A cell for each row and each metric of `values` with a column in the table.

    Args:
        paper: the published table.
        rows: stem -> label.
        values: from `last_values`.
        unit: task | seed.
        scale: see `measured_cell`.
        suffix: appended to the columns' names; such a column is not the paper's.
    """
    columns = metric_columns(paper)
    return [
        measured_cell(paper, stem, label, columns[metric].name + suffix, of_metric[of_metric["method"] == stem], unit, scale)
        for metric, of_metric in values.groupby("metric", sort=False)
        if metric in columns
        for stem, label in rows.items()
    ]


def table(found: Iterable[Cell], rows: Iterable[str]) -> pd.DataFrame:
    """Cells as a frame, in the order of `rows`; a row without some of the columns keeps its place."""
    order = {stem: place for place, stem in enumerate(rows)}
    return cells.frame(sorted(found, key=lambda cell: order[cell.method]))


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by method, in the order of methods in tables and figures."""
    order = {stem: place for place, stem in enumerate(config.methods())}
    return frame.sort_values("method", key=lambda stems: stems.map(order), kind="stable", ignore_index=True)


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """A figure's data: a frame with the column `method` (stem), an additional column `label`, and sorted by method."""
    data = in_order(frame.drop(columns="label", errors="ignore"))
    labels = data["method"].map({stem: method["label"] for stem, method in config.methods().items()})
    data.insert(list(data.columns).index("method") + 1, "label", labels)
    return data


def configured_rates(scale: Scale, experiment: str) -> dict[str, float]:
    """{stem: learning rate in the method's file}, for the experiment whose learning rates the grid is used to choose."""
    whole = config.load(scale.name)  # without the command line's selection of methods and tasks
    trained = config.runs(whole, whole.experiment(experiment)["like"])
    return {run.method: run.hyperparameters["learning_rate"] for run in trained if run.adapt["kind"] != "none"}


def present(scale: Scale, names: Iterable[str]) -> list[str]:
    """The experiments of a list that the scale has and that have been run, here or in the committed results."""
    found = []
    for name in names:
        if name in scale.experiments():
            try:
                runs.read(scale, name, or_published=True)
            except MissingResourceError:
                continue
            found.append(name)
    return found


def _counted(number: float, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def caption(exhibit: str, scale: Scale, tasks: str = "subjects") -> str:
    """Tasks, seeds, training and sampling of a figure of generated images, as one paragraph.

    Args:
        exhibit: its id.
        scale: the scale of the runs.
        tasks: what a task is called.
    """
    experiments = config.exhibits()[exhibit].experiments
    parts = []
    for experiment in experiments:
        of_runs, _ = runs.read(scale, experiment)
        training = scale.experiment(experiment)["training"]
        length = _counted(training["max_steps"], "step") if training.get("max_steps") else _counted(training["epochs"], "epoch")
        steps = f"{length} of batch {training['batch_size']}"
        names, seeds = (", ".join(map(str, sorted(of_runs[column].unique()))) for column in ("task", "seed"))
        name = f"{experiment}: " if len(experiments) > 1 else ""
        trained = steps if of_runs["steps"].max() else "nothing is trained"
        parts.append(f"{name}{tasks} {names}; seeds {seeds}; {len(of_runs)} runs, {trained}.")
    sampling = scale.experiment(experiments[0])["sampling"]
    return (
        f"{' '.join(parts)} Images: {sampling['steps']} sampling steps, guidance {sampling['guidance']:g}, the same prompts and "
        "starting noise for every run."
    )


def against_parameters(cells: pd.DataFrame, values: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The score of each method beside its number of parameters, for `ether.exhibits.plots.score_against_parameters`.

    Args:
        cells: of a table with the column `#params`.
        values: of one metric, as `evidence_of` returns them.
        unit: of the intervals (see `ether.analysis.intervals`).
    """
    rows = []
    for cell in cells[cells["column"] == "#params"].itertuples():
        interval = summarise(values[values["method"] == cell.method], unit)
        rows.append((cell.method, cell.ours, interval.mean, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["method", "parameters", "score", "low", "high"])
