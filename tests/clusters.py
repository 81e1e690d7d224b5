"""What the trials of the profiles for clusters share: a workflow without disturbance, and one whose training job is lost."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def copy(folder: Path) -> Path:
    """The project's tracked files."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def numbers(folder: Path) -> pd.DataFrame:
    """The measured values of the runs."""
    found = pd.read_parquet(folder / "results/smoke/metrics/glue.parquet")
    return found.sort_values(["run_id", "step", "split", "metric"], ignore_index=True)


def compare(quiet: Path, disturbed: Path, start: Callable[[Path], subprocess.Popen[bytes]], lose: Callable[[], str]) -> int:
    """Makes Table 4 at smoke scale twice, the second time with the loss of the job that trains, and compares the numbers.

    Args:
        quiet: a copy of the project for the workflow that is not disturbed.
        disturbed: another, in which the job is lost after it has finished one run.
        start: starts the workflow in a folder, with its output in ``workflow.log``.
        lose: kills the job that trains and returns its name; '' if none does.

    Returns:
        An exit status: 1 if the second workflow does not end with the numbers of the first.
    """
    started = time.time()
    status = start(quiet).wait()
    print(f"undisturbed: status {status}, {time.time() - started:.0f} s", flush=True)
    process, lost = start(disturbed), ""
    while process.poll() is None:
        time.sleep(0.5)
        done = len(list((disturbed / "results/smoke/work").rglob("runs.parquet")))
        if done and not lost and (lost := lose()):
            print(f"killed {lost} after {done} runs", flush=True)
    print(f"disturbed: status {process.returncode}", flush=True)
    if status or process.returncode or not lost:
        print(((quiet if status else disturbed) / "workflow.log").read_text()[-3000:])
        return 1
    same = numbers(quiet).equals(numbers(disturbed))
    print(f"{len(numbers(quiet))} values, {'the same' if same else 'NOT the same'} in both workflows")
    return int(not same)
