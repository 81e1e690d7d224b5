"""The result tables of the runs: two tidy parquet tables, written atomically.

``runs`` has one row per run (configuration, seed, fingerprints, versions, device, cost, status); ``metrics`` has one row per
measured value (run_id, step, split, task, metric, value).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ether.errors import EtherError, MissingResourceError, read_only, writing

METRIC_COLUMNS = {
    "run_id": "string",
    "step": "int64",
    "split": "string",
    "task": "string",
    "metric": "string",
    "value": "float64",
}

RUN_COLUMNS = {
    "run_id": "string",
    "experiment": "string",
    "scale": "string",
    "method": "string",  # the stem of its YAML file
    "label": "string",  # as printed in tables
    "adapt_kind": "string",  # peft | full | bitfit | linear-probe | bottleneck | none
    "task": "string",
    "seed": "int64",
    "learning_rate": "float64",  # NaN if nothing is trained
    "rate_factor": "float64",  # learning rate divided by the method's, in experiments that vary this factor; otherwise NaN
    "batch_size": "Int64",  # missing if nothing is trained
    "blocks": "Int64",  # number of diagonal blocks in this run; missing for methods without blocks
    "status": "string",  # finished | diverged | failed (out of memory; not stored)
    "reason": "string",  # reason of a run that did not finish; otherwise empty
    "config": "string",  # the full configuration of the run, as JSON
    "base_model": "string",
    "base_model_fingerprint": "string",
    "data": "string",
    "data_fingerprint": "string",
    "trainable_parameters": "int64",  # as counted by PEFT: all parameters that require a gradient, including the head
    "total_parameters": "int64",
    "steps": "int64",
    "train_seconds": "float64",
    "wall_seconds": "float64",
    "peak_memory_bytes": "int64",
    "limits": "string",  # of memory (`ether.machine.Limits`), as JSON
    "device": "string",
    "dtype": "string",
    "threads": "int64",
    "versions": "string",
    "git_commit": "string",
    "started": "string",
}


def check_writable(folder: Path) -> None:
    """Checks that files can be written to a folder, or that it can be made; makes nothing.

    Raises:
        HardwareError: the folder, or the existing one that would contain it, is read-only for this user.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise read_only(existing, "the disk or the folder is read-only")


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, which is renamed to ``path`` if the block ends without an error.

    Raises:
        HardwareError: the disk is full or read-only. No incomplete file is left under the final name.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with writing(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(final)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_parquet(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a frame to parquet under a temporary name and renames it."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes text under a temporary name and renames it."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_parquet(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A frame that was written with (at least) the given columns.

    Args:
        path: the file.
        columns: `METRIC_COLUMNS` or `RUN_COLUMNS`.

    Raises:
        MissingResourceError: the file is missing or damaged, or a column is missing or of another kind.
    """
    if not path.is_file():
        raise MissingResourceError(f"{path} is missing: run the workflow target again to make it.")
    again = _remedy(path)
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingResourceError(f"{path} is damaged or not a parquet file ({reason[:200]}). {again}") from error
    for name, kind in columns.items():
        if name not in frame.columns:
            raise MissingResourceError(f"{path} has no column {name!r}. {again}")
        if kind != "string" and not pd.api.types.is_numeric_dtype(frame[name]):
            raise MissingResourceError(f"{path}: the column {name!r} has no numbers, but {frame[name].dtype}. {again}")
    return frame


def _remedy(path: Path) -> str:
    """What to do about a damaged file: only those that the workflow makes are made again when they are deleted.

    Collected metrics are made in results/<scale>/metrics of the current folder. All others are stored: committed, or in a folder
    that --config replay=FOLDER names.
    """
    if ("results", "published") in itertools.pairwise(path.absolute().parts):
        return f"Restore the committed file (git checkout -- {path}), or copy it again."
    made = path.absolute().parent.parent.parent == Path("results").absolute()
    if path.parent.name == "metrics" and not made:
        return "Copy it there again: a replay makes no metrics, so do not delete the only copy."
    return "Delete it and start again: it is then made again."


def metrics_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of measured values as a frame with the columns and types of ``METRIC_COLUMNS``."""
    return pd.DataFrame(list(rows), columns=list(METRIC_COLUMNS)).astype(METRIC_COLUMNS)


def runs_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of runs as a frame with the columns and types of ``RUN_COLUMNS``."""
    return pd.DataFrame(list(rows), columns=list(RUN_COLUMNS)).astype(RUN_COLUMNS)


def collect(folders: Iterable[Path], destination: Path) -> None:
    """Joins the ``metrics.parquet`` and ``runs.parquet`` of many jobs into ``<destination>.parquet`` and
    ``<destination>.runs.parquet``.

    Raises:
        MissingResourceError: a file of a job is missing or damaged.
    """
    folders = sorted(folders)
    metrics = [read_parquet(folder / "metrics.parquet", METRIC_COLUMNS) for folder in folders]
    runs = [read_parquet(folder / "runs.parquet", RUN_COLUMNS) for folder in folders]
    write_parquet(pd.concat(runs, ignore_index=True), destination.with_suffix(".runs.parquet"))
    write_parquet(pd.concat(metrics, ignore_index=True), destination.with_suffix(".parquet"))


# --- provenance ------------------------------------------------------------------------------------------------

PACKAGES = ("ether-peft", "torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "numpy", "pandas", "lm_eval")


@functools.cache
def versions() -> str:
    """Versions of Python and of the packages that affect results, as JSON."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return json.dumps(found)


@functools.cache
def git_commit() -> str:
    """The commit of the checkout that contains this package, with ``+`` appended if tracked files differ; '' outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


@functools.cache
def hardware(device: str = "cpu") -> str:
    """Short description of the machine: GPU name, or processor model, number of cores and the instructions that torch uses.

    Results on a CPU are equal to the bit only where the instructions are the same (AVX2, AVX512, …).
    """
    import torch  # callers have imported it

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model or platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def digest(value: object, length: int = 10) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class PeakMemory:
    """Context manager that measures peak memory in bytes: memory allocated by torch on CUDA, resident set size on CPU.

    On Linux the kernel's peak value is reset at the start, so that runs in one process are measured separately. On other
    systems the value is the peak since the start of the process.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            import torch

            self.bytes = torch.cuda.max_memory_allocated()
            return
        with contextlib.suppress(OSError, StopIteration, ValueError):
            status = Path("/proc/self/status").read_text().splitlines()
            self.bytes = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
            return
        import resource

        self.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":  # collects jobs, as the workflow does
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m ether.results", description="Collects the metrics and runs of jobs.")
    parser.add_argument("destination", type=Path, help="DESTINATION.parquet and DESTINATION.runs.parquet are written")
    parser.add_argument("folders", type=Path, nargs="+", help="the folders of the jobs")
    options = parser.parse_args()
    try:
        collect(options.folders, options.destination)
    except EtherError as error:
        sys.exit(f"\n{error}\n")
