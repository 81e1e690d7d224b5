"""What a run leaves behind: two tidy tables, written atomically, with everything needed to judge them.

``runs`` has a row a run (configuration, seed, fingerprints, versions, device, cost, status); ``metrics`` has a row a
measured value (run_id, step, split, task, metric, value). Both are parquet.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ether.errors import HardwareError, MissingResourceError

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
    "label": "string",  # as tables print it
    "adapt_kind": "string",  # peft | full | bitfit | linear-probe | bottleneck | none
    "task": "string",
    "seed": "int64",
    "learning_rate": "float64",  # NaN for what is not trained
    "rate_factor": "float64",  # the learning rate as a multiple of the method's, where an experiment varies it so; else NaN
    "batch_size": "Int64",  # missing for what is not trained
    "blocks": "Int64",  # diagonal blocks as run; missing for methods without them
    "status": "string",  # finished | diverged | failed
    "reason": "string",  # why it did not finish; empty when it did
    "config": "string",  # the full configuration of the run, as JSON
    "base_model": "string",
    "base_model_fingerprint": "string",
    "data": "string",
    "data_fingerprint": "string",
    "trainable_parameters": "int64",  # as PEFT counts them: everything that gets a gradient, head included
    "total_parameters": "int64",
    "steps": "int64",
    "train_seconds": "float64",
    "wall_seconds": "float64",
    "peak_memory_bytes": "int64",
    "device": "string",
    "dtype": "string",
    "threads": "int64",
    "versions": "string",
    "git_commit": "string",
    "started": "string",
}


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its name once the block has ended without an error.

    Raises:
        HardwareError: the disk is full; nothing half-written is left under the final name.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(final) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(path: Path) -> HardwareError:
    """The error for a disk without room, wherever it is noticed."""
    return HardwareError(
        f"No space left on the disk that holds {path}. Free some (finished runs under results/<scale>/work and the "
        "checkpoints in them can go once their job is done) and start again: finished runs are kept and not repeated."
    )


def write_parquet(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a frame to parquet under a temporary name and renames it."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes text under a temporary name and renames it."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
        MissingResourceError: a job has not left its files.
    """
    metrics: list[pd.DataFrame] = []
    runs: list[pd.DataFrame] = []
    for folder in sorted(folders):
        for name, frames in (("metrics", metrics), ("runs", runs)):
            file = folder / f"{name}.parquet"
            if not file.is_file():
                raise MissingResourceError(f"{file} is missing: run the workflow target again to make it.")
            frames.append(pd.read_parquet(file))
    write_parquet(pd.concat(runs, ignore_index=True), destination.with_suffix(".runs.parquet"))
    write_parquet(pd.concat(metrics, ignore_index=True), destination.with_suffix(".parquet"))


# --- provenance ------------------------------------------------------------------------------------------------

PACKAGES = ("ether-peft", "torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "numpy", "pandas", "lm_eval")


@functools.cache
def versions() -> str:
    """Versions of Python and of the packages a result depends on, as JSON."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return json.dumps(found)


@functools.cache
def git_commit() -> str:
    """The commit of the checkout this package runs from, with ``+`` appended where tracked files differ; '' outside git."""
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
    """The machine in a few words: GPU name, or processor architecture and core count."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def digest(value: object, length: int = 10) -> str:
    """A short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class PeakMemory:
    """Peak memory of a block, in bytes: allocated by torch on CUDA, the process's resident set on CPU.

    On Linux the kernel's high-water mark is reset first, so that runs sharing a process are distinguished; where that
    is not possible the value is the process's peak so far.
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


if __name__ == "__main__":  # python -m ether.results DESTINATION FOLDER …: collects jobs, as the workflow does
    import sys

    collect([Path(folder) for folder in sys.argv[2:]], Path(sys.argv[1]))
