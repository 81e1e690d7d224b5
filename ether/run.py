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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ether import results
from ether.methods import adapt as methods
from ether.config import Job, RunSpec, Scale, job, load
from ether.errors import EtherError, HardwareError
from ether.experiments import Loaded, experiment


def device_of(spec: RunSpec) -> str:
    """The device a run uses: the scale's, with ``auto`` taking a GPU where there is one.

    Raises:
        HardwareError: the scale asks for CUDA and there is none.
    """
    wanted = spec.resources["device"]
    if wanted == "cuda" and not torch.cuda.is_available():
        raise HardwareError(
            f"The scale {spec.scale!r} needs a CUDA GPU and torch sees none here. Run it on a machine with one, choose "
            "another scale (--config scale=small needs no GPU), or insist with --config device=cpu."
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def threads() -> int:
    """Threads a run may use: what Snakemake gave the job (``ETHER_THREADS``), or torch's own choice."""
    return int(os.environ.get("ETHER_THREADS", torch.get_num_threads()))


# --- one run ---------------------------------------------------------------------------------------------------


def run(spec: RunSpec, scale_results: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carries out one run.

    Args:
        spec: what to run.
        scale_results: ``results/<scale>``, where generated data and rebuilt models lie.
        folder: the run's own folder, for the Trainer's checkpoints; an interrupted run goes on from them.

    Returns:
        The run's row (``results.RUN_COLUMNS``) and its measured values (``results.METRIC_COLUMNS``).

    Raises:
        EtherError: something is missing or misconfigured.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    device = device_of(spec)
    torch.set_num_threads(threads())
    benchmark = experiment(spec.experiment)
    loaded: Loaded | None = None
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
        "method": spec.label,
        "method_id": spec.method_id,
        "task": spec.task,
        "seed": spec.seed,
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
        for spec in this.runs:
            experiment(experiment_name).check(spec, scale.results)
        rows, metrics = [], []
        for number, spec in enumerate(this.runs, 1):
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
                if number == 1:
                    # The Trainer collects garbage after each run, half a second over all that torch and transformers
                    # have imported: put what lives now out of the collector's sight.
                    gc.freeze()
                kept = run_frame, metric_frame
                _report(number, len(this.runs), row, values)
            rows.append(kept[0])
            metrics.append(kept[1])
        runs_table = pd.concat(rows, ignore_index=True)
        metrics_table = pd.concat(metrics, ignore_index=True)
        results.write_parquet(metrics_table, out / "metrics.parquet")
        results.write_parquet(runs_table, out / "runs.parquet")
        for spec in this.runs:
            shutil.rmtree(work / spec.run_id, ignore_errors=True)
    return runs_table, metrics_table


def _report(number: int, count: int, row: Mapping[str, Any], values: list[dict[str, Any]]) -> None:
    scores = [v["value"] for v in values if v["split"] != "train" and v["metric"] == "score"]
    shown = f"{scores[-1]:6.2f}" if scores else "     -"
    ending = "" if row["status"] == "finished" else f"  {row['status']}: {row['reason']}"
    print(
        f"[{number}/{count}] {row['method']}, {row['task']}, seed {row['seed']}: {shown}  ({row['wall_seconds']:.1f} s){ending}",
        flush=True,
    )
