"""Execution of runs and jobs: load the model, adapt it, train, evaluate, and write the rows of the result tables.

This module combines experiments with methods (`ether.check` also does, for checks only). A run that diverges is recorded as a
row with the reason. One that is out of memory is tried again with half of the batch at a time (`ether.machine`). If that does
not help, the job goes on with its other runs and fails at the end, so that a later start tries the run again. Any other
failure stops the job; finished runs are kept and not repeated.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import fcntl
import gc
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from ether import hub, machine, processes, results, sources
from ether.check import check_runs, device_of
from ether.config import Job, RunSpec, Scale, experiments, job, jobs, load
from ether.errors import ConfigurationError, EtherError, HardwareError, MissingResourceError, writing
from ether.experiments.common import SAMPLES, Rows, experiment
from ether.machine import Limits
from ether.methods import adapt as methods
from ether.progress import RunProgress
from ether.training import OutOfMemoryInTraining

STAMP = "made-by.txt"  # in a job's working folder
ORDER, ERROR = "order.json", "error.txt"  # between the processes of a run


def threads() -> int:
    """Number of threads of a run: the threads that Snakemake assigns to the job (``ETHER_THREADS``), or torch's default."""
    return int(os.environ.get("ETHER_THREADS", torch.get_num_threads()))


# --- one run ---------------------------------------------------------------------------------------------------


@dataclass
class _Attempt:
    """What became of a run under given limits of memory; plain values, so that a process can hand it to another."""

    status: str = "failed"
    reason: str = ""
    steps: int = 0
    seconds: float = 0.0
    measurements: Rows = field(default_factory=list)
    out_of_memory: bool = False
    in_training: bool = False  # out of memory in a forward or backward pass of training
    peak_memory: int = 0  # bytes
    facts: dict[str, Any] = field(default_factory=dict)  # columns of the run's row on its model and data


NO_FACTS: dict[str, Any] = {
    "base_model": "",
    "base_model_fingerprint": "",
    "data": "",
    "data_fingerprint": "",
    "trainable_parameters": 0,
    "total_parameters": 0,
    "dtype": "",
}


def _attempt(spec: RunSpec, scale_results: Path, folder: Path, device: str) -> _Attempt:
    """Loads, adapts, trains and evaluates once."""
    benchmark = experiment(experiments()[spec.experiment].module)
    tried = _Attempt(facts=dict(NO_FACTS))
    with results.PeakMemory(device) as peak:
        try:
            with _unusable_inputs_explained(spec):
                loaded = benchmark.load(spec, scale_results, device)
            tried.facts |= {
                "base_model": loaded.base_model,
                "base_model_fingerprint": loaded.base_model_fingerprint,
                "data": loaded.data_name,
                "data_fingerprint": loaded.data_fingerprint,
                "dtype": loaded.dtype,
            }
            torch.manual_seed(spec.seed)  # the adapter's initialisation does not depend on how the model was loaded
            model = methods.adapt(
                loaded.model,
                spec.adapt,
                layers=spec.settings["layers"],
                head=spec.settings["head"],
                task_type=loaded.task_type,
                values=dict(spec.hyperparameters) | methods.step_values(loaded.total_steps),
            )
            tried.facts |= {"trainable_parameters": methods.trainable(model), "total_parameters": methods.total(model)}
            fitted = benchmark.fit(loaded, model, spec, folder, device)
            # Again, because training may change them (AdaLoRA); those above are of a run that does not finish.
            tried.facts |= {"trainable_parameters": methods.trainable(model), "total_parameters": methods.total(model)}
            tried.status, tried.reason, tried.steps = fitted.status, fitted.reason, fitted.steps
            tried.seconds, tried.measurements = fitted.train_seconds, fitted.measurements
        except (torch.OutOfMemoryError, MemoryError) as error:
            tried.out_of_memory, tried.in_training = True, isinstance(error, OutOfMemoryInTraining)
            tried.reason = f"out of memory on {device}: {(str(error) or repr(error)).splitlines()[0]}"
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            tried.status, tried.reason = "diverged", f"{error}" or repr(error)
    tried.peak_memory = peak.bytes
    return tried


def _smaller(limits: Limits, spec: RunSpec, in_training: bool) -> Limits | None:
    """The limits of the next attempt after one that was out of memory; None if there is nothing left to halve."""
    hyper, settings = spec.hyperparameters, spec.settings
    evaluated = (
        hyper.get("evaluation_batch_size", hyper["batch_size"]),
        (settings.get("sampling") or {}).get("batch", 1),
        (settings.get("evaluation") or {}).get("batch_size", 1),
    )
    return limits.halved(hyper["batch_size"] // spec.processes, max(evaluated), in_training)


def _free(device: str) -> None:
    """Returns the memory of a failed attempt."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def run(spec: RunSpec, scale_results: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Executes one run; again with smaller parts of a batch, as long as it is out of memory and there is something to halve.

    Args:
        spec: the run. With ``processes`` above 1 among its resources, it is executed by so many processes, each on a GPU
            (`ether.processes`).
        scale_results: ``results/<scale>``, the folder of generated data and rebuilt models.
        folder: the working folder of the run, for the Trainer's checkpoints. An interrupted run resumes from them.

    Returns:
        The run's row (``results.RUN_COLUMNS``) and its measured values (``results.METRIC_COLUMNS``).

    Raises:
        EtherError: a resource is missing or a setting is wrong.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    device = device_of(spec)
    torch.set_num_threads(threads())
    limits: Limits | None = Limits.of(spec.resources.get("memory"), machine.gpu_bytes() if device == "cuda" else 0)
    while limits is not None:
        used = limits
        if spec.processes > 1:
            tried = _attempt_in_processes(spec, scale_results, folder, device, used)
        else:
            with machine.within(used):
                tried = _attempt(spec, scale_results, folder, device)
        limits = _smaller(used, spec, tried.in_training) if tried.out_of_memory else None
        if limits is not None:
            _free(device)
            print(f"{spec.label} on {spec.task}: {tried.reason}; again with {limits}.", flush=True)
    rows = [
        {"run_id": spec.run_id, "step": step, "split": split, "task": spec.task, "metric": name, "value": value}
        for step, split, name, value in tried.measurements
    ]
    several = {"processes": spec.processes} if spec.processes > 1 else {}
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
        "status": tried.status,
        "reason": tried.reason,
        "config": json.dumps(spec.config, sort_keys=True),
        **tried.facts,
        "steps": tried.steps,
        "train_seconds": tried.seconds,
        "wall_seconds": time.perf_counter() - clock,
        "peak_memory_bytes": tried.peak_memory,
        "limits": json.dumps(dataclasses.asdict(used) | several, sort_keys=True),
        "device": results.hardware(device),
        "threads": torch.get_num_threads(),
        "versions": results.versions(),
        "git_commit": results.git_commit(),
        "started": started.isoformat(timespec="seconds"),
    }
    return row, rows


def _attempt_in_processes(spec: RunSpec, scale_results: Path, folder: Path, device: str, limits: Limits) -> _Attempt:
    """As `_attempt`, by several processes; what each of them has to do is in a file.

    Raises:
        EtherError: a process stopped.
    """
    exchange = folder / "processes"
    shutil.rmtree(exchange, ignore_errors=True)
    order = {
        "spec": dataclasses.asdict(spec),
        "results": str(scale_results),
        "folder": str(folder),
        "device": device,
        "limits": dataclasses.asdict(limits),
    }
    with writing(exchange):
        results.write_text(json.dumps(order), exchange / ORDER)
    processes.launch(spec.processes, "ether.run", [str(exchange)], exchange / "log.txt")
    answers = [_Attempt(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(exchange.glob("answer-*.json"))]
    answers.sort(key=lambda answer: not answer.out_of_memory)
    if (exchange / ERROR).is_file():
        raise ConfigurationError((exchange / ERROR).read_text(encoding="utf-8"))
    if not answers:
        raise processes.stopped(f"{spec.label} on {spec.task}", spec.processes, exchange / "log.txt")
    return answers[0]


def main(arguments: Sequence[str]) -> int:
    """One of the processes of a run, started by `ether.processes.launch`: ``python -m ether.run FOLDER``.

    The first process writes what `_attempt` returns, and so does one that is out of memory. The status 1 of the latter ends the
    others, which wait for it.
    """
    if len(arguments) != 1 or not (Path(arguments[0]) / ORDER).is_file():
        print("python -m ether.run is started by a run of several processes. Runs are started by snakemake.", file=sys.stderr)
        return 2
    processes.end_with_parent()
    exchange = Path(arguments[0])
    order = json.loads((exchange / ORDER).read_text(encoding="utf-8"))
    rank = processes.rank()
    spec = RunSpec(**order["spec"])
    torch.set_num_threads(max(1, threads() // spec.processes))
    if order["device"] == "cuda":
        torch.cuda.set_device(processes.local_rank())
    try:
        with machine.within(Limits(**order["limits"])):
            tried = _attempt(spec, Path(order["results"]), Path(order["folder"]), order["device"])
    except EtherError as error:
        results.write_text(str(error), exchange / ERROR)
        return 1
    if rank == 0 or tried.out_of_memory:
        results.write_text(json.dumps(dataclasses.asdict(tried)), exchange / f"answer-{rank}.json")
    return int(tried.out_of_memory)


@contextlib.contextmanager
def _unusable_inputs_explained(spec: RunSpec) -> Iterator[None]:
    """Converts errors that a library raises for a model or data of another form than the experiment expects.

    Raises:
        ConfigurationError: names the run and the library's reason. The executed notebook has the complete traceback.
    """
    try:
        yield
    except EtherError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise ConfigurationError(
            f"Run {spec.run_id}: the model or the data cannot be used ({type(error).__name__}: {error}). The most frequent cause "
            "is a column with missing values or values of another type. Check the sections `data` and `model` of "
            f"{spec.experiment!r} in workflow/scales/ and the files that they name."
        ) from error


def _discard_damaged_checkpoints(folder: Path) -> None:
    """Removes checkpoints of an interrupted run that have an incomplete file, so that it resumes from an earlier one.

    The Trainer writes the files of a checkpoint one after the other; after a crash of the machine a file may be incomplete.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            for file in checkpoint.iterdir():
                if file.suffix == ".safetensors":
                    with safe_open(file, framework="pt"):  # compares the sizes in the header with the file's
                        pass
                elif file.suffix in (".pt", ".pth"):
                    with zipfile.ZipFile(file) as archive:
                        damaged = archive.testzip()
                    if damaged:
                        raise zipfile.BadZipFile(damaged)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, NotImplementedError):
            shutil.rmtree(checkpoint, ignore_errors=True)


def training_columns(spec: RunSpec) -> dict[str, Any]:
    """Columns of the runs table that describe the training: learning rate, rate factor, batch size and number of blocks."""
    trains, config = spec.adapt["kind"] != "none", spec.adapt.get("config") or {}
    blocks_key = {"ETHER": "n_blocks", "NAIVE": "n_blocks", "OFT": "r", "BOFT": "boft_block_num"}.get(
        spec.adapt.get("type", ""), ""
    )
    return {
        "learning_rate": spec.hyperparameters.get("learning_rate") if trains else None,
        "rate_factor": spec.rate_factor,
        "batch_size": spec.hyperparameters.get("batch_size") if trains else None,
        "blocks": config.get(blocks_key) or None,  # OFT's r is 0 if its block size is given instead
    }


# --- a job -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _job_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a job's working folder; waits while another process holds it.

    The kernel of a killed workflow may still be training. This process then waits and uses the runs finished by that kernel.
    The operating system releases the lock when the process that holds it ends.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is using {folder}; waiting for it to finish.", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _stamp(scale: Scale, experiment_name: str) -> str:
    """A digest of all inputs of a job other than the configurations of its runs: code, data files, generated data, models."""
    entry = experiments()[experiment_name]
    code = sources.closure("ether.run", f"ether.experiments.{entry.module}")
    cards = sorted(str(card.relative_to(sources.ROOT)) for card in (sources.PACKAGE / "foundation/weights").glob("*/card.json"))
    text = sources.text_of([*code, *entry.data_files(sources.ROOT), *cards])
    rebuilt = [card.read_text(encoding="utf-8") for card in sorted((scale.results / "foundation").glob("*/card.json"))]
    local = hub.local_state(scale.experiment(experiment_name), scale.resources)
    return results.digest([text, rebuilt, scale.settings.get("world"), scale.settings["foundation"], local], 32)


def _discard_outdated(work: Path, stamp: str) -> bool:
    """Removes the runs that the job stored with other code or data, so that versions are not combined.

    Returns:
        Whether the last process that used the folder had the same code and data.
    """
    file = work / STAMP
    if file.is_file() and file.read_text(encoding="utf-8") == stamp:
        return True
    for folder in work.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    results.write_text(stamp, file)
    return False


def _finished(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    try:
        return (
            results.read_parquet(folder / "runs.parquet", results.RUN_COLUMNS),
            results.read_parquet(folder / "metrics.parquet", results.METRIC_COLUMNS),
        )
    except MissingResourceError:
        return None


def run_job(
    scale_name: str, experiment_name: str, job_name: str, overrides: Mapping[str, Any] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Executes the runs of a job and writes ``results/<scale>/runs/<experiment>/<job>/{runs,metrics}.parquet``.

    Each run is stored under ``results/<scale>/work`` when it is finished and stays there: an interrupted job does not repeat
    finished runs, nor does a job to which seeds, tasks or learning rates are added. Runs that were stored with other code or
    data are removed. To repeat a job with the same, remove its folder there.

    Returns:
        The job's runs and metrics.

    Raises:
        EtherError: a resource is missing, a setting is wrong, or the disk is full. Finished runs are kept.
    """
    scale: Scale = load(scale_name, overrides)
    current: Job = job(scale, experiment_name, job_name)
    out = scale.results / "runs" / experiment_name / job_name
    work = scale.results / "work" / experiment_name / job_name
    samples = scale.results / "samples" / experiment_name / job_name if experiments()[experiment_name].samples else None
    if scale.settings["device"] != "cpu" and scale.settings["processes"] == 1:
        machine.pin_one_gpu()
    with _job_lock(work):
        same = _discard_outdated(work, _stamp(scale, experiment_name))
        # Snakemake removes the outputs of a job before it starts: these are of the process that held the lock.
        frames = _finished(out) if same else None
        if frames and set(frames[0]["run_id"]) == {spec.run_id for spec in current.runs} and (not samples or samples.is_dir()):
            return frames
        check_runs(current.runs, scale.results)
        progress = RunProgress(experiment_name, *_counts(scale, experiment_name))
        rows, metrics = [], []
        failed: list[str] = []
        for number, spec in enumerate(current.runs):
            folder = work / spec.run_id
            frames = _finished(folder)
            if frames is None:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    _discard_damaged_checkpoints(folder / "checkpoints")
                    row, values = run(spec, scale.results, folder)
                    if row["status"] == "failed":
                        failed.append(f"{row['label']} on {row['task']}, seed {row['seed']}: {row['reason']}")
                        _report(progress, row, values)
                        continue
                    run_frame, metric_frame = results.runs_frame([row]), results.metrics_frame(values)
                    results.write_parquet(metric_frame, folder / "metrics.parquet")
                    results.write_parquet(run_frame, folder / "runs.parquet")
                for part in folder.iterdir():
                    if part.is_dir() and part.name != SAMPLES:  # checkpoints and measured values of a run to be resumed
                        shutil.rmtree(part, ignore_errors=True)
                gc.collect()
                if number == 0:
                    # The Trainer collects garbage after each run. This takes half a second, because the collector visits
                    # all objects of the imported libraries; `freeze` excludes the objects that exist now.
                    gc.freeze()
                    atexit.register(gc.unfreeze)  # extension modules report frozen objects as leaked when the process ends
                frames = run_frame, metric_frame
                _report(progress, row, values)
            rows.append(frames[0])
            metrics.append(frames[1])
        if failed:
            raise HardwareError(
                "Out of memory, even with one example at a time. The other runs of this job are kept, and the next start tries "
                "again: use a GPU with more memory, add `checkpointing` to the scale's `memory`, or leave the method out "
                "(--config methods=…).\n" + "\n".join(failed)
            )
        if samples:
            _publish_samples(current, work, samples)
        runs_table = pd.concat(rows, ignore_index=True)
        metrics_table = pd.concat(metrics, ignore_index=True)
        results.write_parquet(metrics_table, out / "metrics.parquet")
        results.write_parquet(runs_table, out / "runs.parquet")
    return runs_table, metrics_table


def _publish_samples(finished_job: Job, work: Path, out: Path) -> None:
    """Puts the images of a job's runs into the samples folder, one folder per run; it is empty if the run saved no images.

    This is done at the end of the job, because Snakemake removes the outputs of an interrupted job before it restarts it. The
    files are links to those of the working folder where the file system has links, so that they take no space twice.
    """
    shutil.rmtree(out, ignore_errors=True)
    with writing(out):
        for spec in finished_job.runs:
            source, target = work / spec.run_id / SAMPLES, out / spec.run_id
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_or_copy)
            else:
                target.mkdir(parents=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _counts(scale: Scale, experiment_name: str) -> tuple[int, Callable[[], int]]:
    """The total number of runs of an experiment, and a function that counts the finished runs of all its jobs."""
    all_jobs = jobs(scale, experiment_name)
    out, work = (scale.results / part / experiment_name for part in ("runs", "work"))

    def finished() -> int:
        count = 0
        for name, entry in all_jobs.items():
            if (out / name / "runs.parquet").is_file():
                count += len(entry.runs)
            else:
                count += sum((work / name / spec.run_id / "runs.parquet").is_file() for spec in entry.runs)
        return count

    return sum(len(entry.runs) for entry in all_jobs.values()), finished


def _report(progress: RunProgress, row: Mapping[str, Any], values: list[dict[str, Any]]) -> None:
    """Prints one line for a finished run; `ether.notebook` forwards it to the terminal."""
    parts = ("train", "selection", "report", "last", "best", "real")  # half of the prompts, or real images: not the table's score
    scores = [v["value"] for v in values if v["split"] not in parts and v["metric"] == "score"]
    ending = "" if row["status"] == "finished" else f"{row['status']}: {row['reason']}"
    line = progress.line(row["label"], row["task"], row["seed"], scores[-1] if scores else None, row["wall_seconds"], ending)
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
