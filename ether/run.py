"""The one path of every number: load -> adapt -> fit -> evaluate -> rows.

Only this module knows both experiments and methods. A run that diverges or runs out of memory is a row with its
reason; any other failure stops the job, and what was finished before it is kept and not repeated.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ether import results
from ether.check import check_runs, device_of
from ether.config import Job, RunSpec, Scale, experiments, job, jobs, load
from ether.errors import EtherError
from ether.experiments.common import SAMPLES, Loaded, experiment
from ether.methods import adapt as methods
from ether.progress import RunProgress


def threads() -> int:
    """Threads a run may use: what Snakemake gave the job (``ETHER_THREADS``), or torch's own choice."""
    return int(os.environ.get("ETHER_THREADS", torch.get_num_threads()))


# --- one run ---------------------------------------------------------------------------------------------------


def run(spec: RunSpec, scale_results: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carries out one run.

    Args:
        spec: what to run.
        scale_results: ``results/<scale>``, the place of generated data and rebuilt models.
        folder: the run's own folder, for the Trainer's checkpoints; an interrupted run goes on from them.

    Returns:
        The run's row (``results.RUN_COLUMNS``) and its measured values (``results.METRIC_COLUMNS``).

    Raises:
        EtherError: something is missing or misconfigured.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    device = device_of(spec)
    torch.set_num_threads(threads())
    benchmark = experiment(experiments()[spec.experiment].module)
    loaded: Loaded[Any] | None = None
    model: torch.nn.Module | None = None
    status, reason, steps, seconds = "failed", "", 0, 0.0
    rows: list[dict[str, Any]] = []
    with results.PeakMemory(device) as peak:
        try:
            loaded = benchmark.load(spec, scale_results, device)
            torch.manual_seed(spec.seed)  # the adapter's initialisation does not depend on how the model was loaded
            model = methods.adapt(
                loaded.model,
                spec.adapt,
                layers=spec.settings["layers"],
                head=spec.settings["head"],
                task_type=loaded.task_type,
                values=dict(spec.hyperparameters) | methods.step_values(loaded.total_steps),
            )
            fitted = benchmark.fit(loaded, model, spec, folder, device)
            status, reason, steps, seconds = fitted.status, fitted.reason, fitted.steps, fitted.train_seconds
            rows = [
                {"run_id": spec.run_id, "step": step, "split": split, "task": spec.task, "metric": name, "value": value}
                for step, split, name, value in fitted.measurements
            ]
        except torch.OutOfMemoryError as error:
            reason = f"out of memory on {device}: {str(error).splitlines()[0]}"
        except (MemoryError, FloatingPointError, torch.linalg.LinAlgError) as error:
            status, reason = ("failed" if isinstance(error, MemoryError) else "diverged"), f"{error}" or repr(error)
    row = {
        "run_id": spec.run_id,
        "experiment": spec.experiment,
        "scale": spec.scale,
        "method": spec.method,
        "label": spec.label,
        "adapt_kind": spec.adapt["kind"],
        "task": spec.task,
        "seed": spec.seed,
        **training_columns(spec),
        "status": status,
        "reason": reason,
        "config": json.dumps(spec.config, sort_keys=True),
        "base_model": loaded.base_model if loaded else "",
        "base_model_fingerprint": loaded.base_model_fingerprint if loaded else "",
        "data": loaded.data_name if loaded else "",
        "data_fingerprint": loaded.data_fingerprint if loaded else "",
        "trainable_parameters": methods.trainable(model) if model else 0,
        "total_parameters": methods.total(model) if model else 0,
        "steps": steps,
        "train_seconds": seconds,
        "wall_seconds": time.perf_counter() - clock,
        "peak_memory_bytes": peak.bytes,
        "device": results.hardware(device),
        "dtype": loaded.dtype if loaded else "",
        "threads": torch.get_num_threads(),
        "versions": results.versions(),
        "git_commit": results.git_commit(),
        "started": started.isoformat(timespec="seconds"),
    }
    return row, rows


def training_columns(spec: RunSpec) -> dict[str, Any]:
    """What the runs table records of a run's training: learning rate, its factor, batch size and number of blocks."""
    trains, config = spec.adapt["kind"] != "none", spec.adapt.get("config") or {}
    counted_by = {"ETHER": "n_blocks", "NAIVE": "n_blocks", "OFT": "r", "BOFT": "boft_block_num"}.get(
        spec.adapt.get("type", ""), ""
    )
    return {
        "learning_rate": spec.hyperparameters.get("learning_rate") if trains else None,
        "rate_factor": spec.rate_factor,
        "batch_size": spec.hyperparameters.get("batch_size") if trains else None,
        "blocks": config.get(counted_by) or None,  # OFT's r is 0 where its block size is given instead
    }


# --- a job -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Waits until no other process works on this job.

    A workflow that was killed may have left a kernel behind that is still training: its runs are used, not fought
    over. The lock is the kernel's, so it goes with the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is at work in {folder}; waiting for it to finish.", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _finished(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    try:
        return pd.read_parquet(folder / "runs.parquet"), pd.read_parquet(folder / "metrics.parquet")
    except (OSError, ValueError):
        return None


def run_job(
    scale_name: str, experiment_name: str, job_name: str, overrides: Mapping[str, Any] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Carries out the runs of a job and leaves ``results/<scale>/runs/<experiment>/<job>/{runs,metrics}.parquet``.

    Each run is kept as soon as it is finished (under ``results/<scale>/work``), so a job that was interrupted repeats
    none; the work folder is removed once the job's two files stand.

    Returns:
        The job's runs and metrics.

    Raises:
        EtherError: something is missing, misconfigured, or the disk is full. Finished runs are kept.
    """
    scale: Scale = load(scale_name, overrides)
    this: Job = job(scale, experiment_name, job_name)
    out = scale.results / "runs" / experiment_name / job_name
    work = scale.results / "work" / experiment_name / job_name
    with _only_one(work):
        check_runs(this.runs, scale.results)
        progress = RunProgress(experiment_name, *_counts(scale, experiment_name))
        rows, metrics = [], []
        for number, spec in enumerate(this.runs):
            folder = work / spec.run_id
            kept = _finished(folder)
            if kept is None:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    row, values = run(spec, scale.results, folder)
                    run_frame, metric_frame = results.runs_frame([row]), results.metrics_frame(values)
                    results.write_parquet(metric_frame, folder / "metrics.parquet")
                    results.write_parquet(run_frame, folder / "runs.parquet")
                except EtherError:
                    raise
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise results.disk_full(folder) from error
                    raise
                except Exception as error:
                    if "No space left" in str(error):  # safetensors and torch wrap the operating system's error
                        raise results.disk_full(folder) from error
                    raise
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                gc.collect()
                if number == 0:
                    # The Trainer collects garbage after each run, half a second over all that torch and transformers
                    # have imported: put what lives now out of the collector's sight.
                    gc.freeze()
                kept = run_frame, metric_frame
                _report(progress, row, values)
            rows.append(kept[0])
            metrics.append(kept[1])
        if experiments()[experiment_name].samples:
            _publish_samples(this, work, scale.results / "samples" / experiment_name / job_name)
        runs_table = pd.concat(rows, ignore_index=True)
        metrics_table = pd.concat(metrics, ignore_index=True)
        results.write_parquet(metrics_table, out / "metrics.parquet")
        results.write_parquet(runs_table, out / "runs.parquet")
        for spec in this.runs:
            shutil.rmtree(work / spec.run_id, ignore_errors=True)
    return runs_table, metrics_table


def _publish_samples(this: Job, work: Path, out: Path) -> None:
    """Copies the images of a job's runs to where they are read, a folder a run; empty for a run that left none.

    They are copied only now, since Snakemake removes the outputs of a job before it starts one that was interrupted.
    """
    shutil.rmtree(out, ignore_errors=True)
    for spec in this.runs:
        source, target = work / spec.run_id / SAMPLES, out / spec.run_id
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.mkdir(parents=True)


def _counts(scale: Scale, experiment_name: str) -> tuple[int, Callable[[], int]]:
    """How many runs an experiment has in all, and a function that counts those that are finished, by all of its jobs."""
    every = jobs(scale, experiment_name)
    out, work = (scale.results / part / experiment_name for part in ("runs", "work"))

    def finished() -> int:
        count = 0
        for name, one in every.items():
            if (out / name / "runs.parquet").is_file():
                count += len(one.runs)
            else:
                count += sum((work / name / spec.run_id / "runs.parquet").is_file() for spec in one.runs)
        return count

    return sum(len(one.runs) for one in every.values()), finished


def _report(progress: RunProgress, row: Mapping[str, Any], values: list[dict[str, Any]]) -> None:
    """Prints one line on a finished run; `ether.notebook` passes it on to the terminal."""
    scores = [v["value"] for v in values if v["split"] != "train" and v["metric"] == "score"]
    ending = "" if row["status"] == "finished" else f"{row['status']}: {row['reason']}"
    line = progress.line(row["label"], row["task"], row["seed"], scores[-1] if scores else None, row["wall_seconds"], ending)
    print(line, flush=True)
