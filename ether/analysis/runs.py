"""Reads the collected metrics and runs of an experiment, and selects one value per run and metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ether import config, results
from ether.config import Scale
from ether.errors import ConfigurationError, MissingResourceError

RUN_INFO = [
    "run_id", "method", "label", "adapt_kind", "task", "seed", "learning_rate", "rate_factor", "status", "reason",
]  # fmt: skip


def published_metrics(scale: Scale) -> Path:
    """The folder of a scale's committed metrics."""
    return config.ROOT / "results" / "published" / scale.name / "metrics"


def read(scale: Scale, experiment: str, or_published: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Collected runs and metrics of an experiment.

    Args:
        scale: determines the folder: ``results/<scale>/metrics``, or the folder given by ``--config replay=FOLDER``.
        experiment: a section of the scale.
        or_published: read the committed metrics if the experiment has not been run.

    Returns:
        Runs, with the columns of ``results.RUN_COLUMNS``, and metrics, with those of ``results.METRIC_COLUMNS``.

    Raises:
        MissingResourceError: the experiment has not been run at this scale, or not with the methods, tasks and seeds given; or
            a file is damaged.
        ConfigurationError: a run's method has no file under ``workflow/methods``, or the folder is one of another scale.
    """
    folders = [scale.metrics_folder, *([published_metrics(scale)] if or_published else [])]
    names = [f"{experiment}.runs.parquet", f"{experiment}.parquet"]
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            runs = results.read_parquet(folder / names[0], results.RUN_COLUMNS)
            metrics = results.read_parquet(folder / names[1], results.METRIC_COLUMNS)
            for stem in runs["method"].unique():
                config.method(stem)
            return _selected(scale, experiment, runs, metrics, folder)
    missing = next(folders[0] / name for name in names if not (folders[0] / name).is_file())
    raise MissingResourceError(
        f"{missing} is missing: run `snakemake --cores 1 {scale.metrics_folder}/{experiment}.parquet --config "
        f"scale={scale.name}`, or the target of a table or figure that reads it, first."
    )


def _selected(
    scale: Scale, experiment: str, runs: pd.DataFrame, metrics: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of the scale and, in a replay, those of the methods, tasks and seeds given by --config."""
    others = sorted(set(runs["scale"].unique()) - {scale.name})
    if others:
        raise ConfigurationError(
            f"{folder} holds runs of {experiment} at scale {', '.join(others)}, and this is scale {scale.name!r}: give --config "
            f"scale={others[0]}, or another replay folder."
        )
    if scale.replay is not None:
        section = scale.experiment(experiment)
        runs = runs[runs["method"].isin(config.chosen_methods(scale, experiment)) & runs["task"].isin(section["tasks"])]
        if "seeds" in scale.overrides:
            runs = runs[runs["seed"].isin(scale.settings["seeds"]) | runs["adapt_kind"].eq("none")]
        if runs.empty:
            raise MissingResourceError(f"{folder} has no runs of {experiment} with the methods, tasks and seeds of --config.")
        runs, metrics = runs.reset_index(drop=True), metrics[metrics["run_id"].isin(runs["run_id"])].reset_index(drop=True)
    return runs, metrics


def measured(
    scale: Scale, experiment: str, split: str, metrics: Sequence[str], or_published: bool = False, select: str = "last"
) -> pd.DataFrame:
    """One value per run and metric: the last value of a split, or the highest.

    Args:
        scale: see `read`.
        experiment: a section of the scale.
        split: name of the split in the experiment: validation, best, geometry, ...
        metrics: names of measured values.
        or_published: see `read`.
        select: last | best.

    Returns:
        The columns of ``RUN_INFO``, `metric` and `value`; `value` is NaN if a run has no such value.
    """
    runs, values = read(scale, experiment, or_published)
    return select_values(runs, values, split, metrics, select)


def select_values(
    runs: pd.DataFrame, values: pd.DataFrame, split: str, metrics: Sequence[str], select: str = "last"
) -> pd.DataFrame:
    """As `measured`, for frames that have been read already."""
    of_split = values[values["split"] == split].sort_values("step", kind="stable")
    frames = []
    for metric in metrics:
        groups = of_split[of_split["metric"] == metric].groupby("run_id")["value"]
        chosen = groups.max() if select == "best" else groups.last()
        frames.append(runs[RUN_INFO].join(chosen, on="run_id").assign(metric=metric))
    if not frames:
        return pd.DataFrame(columns=[*RUN_INFO, "value", "metric"])
    return pd.concat(frames, ignore_index=True)
