"""The shared cells of the experiments' notebooks: measured values, cost and provenance of a job's runs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ether.exhibits.render import number_table, text_table

if TYPE_CHECKING:
    from IPython.display import HTML, Image, Markdown

# Columns that distinguish the runs of a job, in the order of the tables' index; constant ones are omitted.
KEYS = ("label", "task", "learning_rate", "rate_factor", "seed")


def _identified(runs: pd.DataFrame, always: Iterable[str] = ("label", "seed")) -> list[str]:
    """The columns of KEYS in which the runs differ, and those in `always`."""
    return [key for key in KEYS if key in always or (runs[key].notna().all() and runs[key].nunique() > 1)]


def measured(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    split: str,
    first: Sequence[str] = (),
    columns: str = "metric",
    by_step: bool = False,
) -> pd.DataFrame:
    """The values of a split: one row per run, one column per metric.

    Args:
        runs: as `ether.run.run_job` returns them.
        metrics: the same.
        split: name of the split in the experiment.
        first: metrics that come first, in this order.
        columns: metric | task; for `task` the values are those of the metric `score`.
        by_step: one row per run and step, instead of the last step of the split.
    """
    keys = [key for key in _identified(runs) if key != columns]
    values = metrics[metrics["split"] == split].drop(columns="task").sort_values("step", kind="stable")
    if columns == "task":
        values = values[values["metric"] == "score"]
    values = values.merge(runs[["run_id", "task", *(key for key in keys if key != "task")]], on="run_id")
    index = [*keys, "step"] if by_step else keys
    wide = values.pivot_table(index=index, columns=columns, values="value", sort=False, aggfunc="last")
    head = [name for name in first if name in wide]
    return wide[[*head, *(name for name in wide if name not in head)]]


def unfinished(runs: pd.DataFrame) -> pd.DataFrame | Markdown:
    """The runs that did not finish, with their reasons."""
    from IPython.display import Markdown

    found = runs.loc[runs["status"] != "finished", [*_identified(runs, ("label", "task", "seed")), "status", "reason"]]
    return found if len(found) else Markdown("Every run finished.")


def losses(runs: pd.DataFrame, metrics: pd.DataFrame) -> Image | Markdown:
    """The training loss of every run against the step."""
    from IPython.display import Image, Markdown

    from ether.exhibits.style import new_figure

    values = metrics[(metrics["split"] == "train") & (metrics["metric"] == "loss")]
    if values.empty:
        return Markdown("No training loss was recorded.")
    keys = _identified(runs, ("seed",))
    figure = new_figure(7, 3.2)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for run in runs.itertuples():
        of_run = values[values["run_id"] == run.run_id].sort_values("step")
        name = ", ".join(f"{key.replace('_', ' ')} {getattr(run, key)}" for key in keys)
        axes.plot(of_run["step"], of_run["value"], linewidth=1, label=name)
    if len(runs) < 9:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return Image(data=stream.getvalue(), format="png", width=round(figure.get_figwidth() * 80))


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Cost of the runs of each method: number of runs, parameters with a gradient in this scale's model (including the head),
    steps, seconds per run in total and in training, and peak memory in MiB."""
    found = runs.groupby("label", sort=False).agg(
        runs=("run_id", "size"),
        trainable_parameters=("trainable_parameters", "max"),
        steps=("steps", "max"),
        seconds_a_run=("wall_seconds", "mean"),
        training_seconds=("train_seconds", "mean"),
        minutes_in_all=("wall_seconds", lambda seconds: seconds.sum() / 60),
        peak_memory_MiB=("peak_memory_bytes", lambda size: size.max() / 2**20),
    )
    return found.round(2).rename_axis("method")


def shown(frame: pd.DataFrame, digits: int = 3) -> HTML:
    """A frame of numbers for a notebook, with `digits` significant digits (`ether.exhibits.render.number_table`)."""
    from IPython.display import HTML

    return HTML(number_table(frame, digits))


def origin(runs: pd.DataFrame) -> HTML:
    """Provenance of the numbers: model, data, machine, versions and commit of the first run."""
    from IPython.display import HTML

    first = runs.iloc[0]
    versions = json.loads(first["versions"])
    lines = {
        "base model": f"{first['base_model']} ({first['base_model_fingerprint'][:12]})",
        "data": ", ".join(sorted(runs["data"].unique())),
        "device": first["device"],
        "threads": first["threads"],
        "dtype": first["dtype"],
        "git commit": first["git_commit"][:12] + ("+" if first["git_commit"].endswith("+") else ""),
        "versions": "\n".join(f"{name} {version}" for name, version in versions.items()),
        "started": first["started"],
    }
    return HTML(text_table(pd.DataFrame({"": lines.keys(), " ": lines.values()})))
