"""The time and memory of the workflow on a fresh clone, where the time goes, and whether the numbers are the published ones.

    python benchmarks/workflow.py --output workflow.parquet              # `all` at small scale, on two cores
    python benchmarks/workflow.py table4 --config scale=smoke --cores 1  # any targets, any settings

Clones the last commit into a temporary folder and runs the targets there, twice: the second run must have nothing to do. Printed
are the total time, the time of the jobs by rule, the share of starting them, the memory, and for each experiment the time of its
runs as a ratio to that of the same runs in results/published (the speed of the machine at that time, and its load, are in both).
Nothing else should run beside it. Linux only: the memory is that of all processes, with shared pages counted once.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parent.parent
TRAINS = ("experiment", "experiment_with_samples")
KEYS = ["run_id", "step", "split", "metric"]  # of a value
GIB = 2**30


@dataclass
class Job:
    """One job of Snakemake. `seconds` are from its start to its end, to the second; `run_seconds` those of its runs."""

    rule: str
    name: str
    seconds: float
    run_seconds: float = 0.0


@dataclass
class Watched:
    """What one start of the workflow took."""

    status: int
    output: str
    seconds: float
    memory: int = 0  # bytes of all processes together, at most
    largest: int = 0  # bytes of one process, at most
    scheduler: float = 0.0  # CPU seconds of Snakemake's own process


def sample(watched: Watched, process: psutil.Popen) -> None:
    """Takes the memory of a process and its descendants, and the CPU time of the process itself."""
    sizes = []
    try:
        times = process.cpu_times()
        watched.scheduler = times.user + times.system
        processes = [process, *process.children(recursive=True)]
    except psutil.Error:
        return
    for one in processes:
        try:
            sizes.append(one.memory_full_info().pss)
        except psutil.Error:  # it has ended
            continue
    watched.memory = max(watched.memory, sum(sizes))
    watched.largest = max(watched.largest, *sizes, 0)


def run(folder: Path, arguments: Sequence[str], interval: float = 10.0) -> Watched:
    """Runs Snakemake in a folder, and samples its processes every `interval` seconds."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watched = Watched(0, "", 0.0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            sample(watched, process)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    watched.status = process.wait()
    watched.seconds = time.monotonic() - begun
    ended.set()
    watcher.join()
    watched.output = "".join(lines)
    return watched


# --- what it left --------------------------------------------------------------------------------------------------------


def jobs(log: str) -> list[Job]:
    """The finished jobs of Snakemake's log file, which has the time of each start and end to the second."""
    started: dict[str, tuple[datetime, str, str]] = {}
    found: list[Job] = []
    now, rule, name = datetime.min, "", ""
    for line in log.splitlines():
        if stamp := re.fullmatch(r"\[(\w{3} \w{3} +\d+ \d\d:\d\d:\d\d \d{4})\]", line):
            now = datetime.strptime(stamp[1], "%a %b %d %H:%M:%S %Y")
        elif begin := re.fullmatch(r"(?:local)?rule (\w+):", line):
            rule, name = begin[1], ""
        elif number := re.fullmatch(r"    jobid: (\d+)", line):
            started[number[1]] = (now, rule, name)
        elif chosen := re.fullmatch(r"    wildcards: (.*)", line):
            name = "/".join(part.split("=", 1)[1] for part in chosen[1].split(", "))
            if started and rule:  # Snakemake writes the job's number before its wildcards
                last = next(reversed(started))
                started[last] = (*started[last][:2], name)
        elif end := re.match(r"Finished jobid: (\d+)", line):
            begun, of_rule, of_name = started[end[1]]
            found.append(Job(of_rule, of_name, (now - begun).total_seconds()))
    return found


def stored(files: Iterable[Path]) -> pd.DataFrame:
    """The rows of several parquet files, none for none."""
    frames = [pd.read_parquet(file) for file in files]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def add_runs(found: Sequence[Job], results: Path) -> None:
    """Adds to every job that trains the time of its runs."""
    for job in found:
        if job.rule in TRAINS:
            job.run_seconds = float(pd.read_parquet(results / "runs" / job.name / "runs.parquet")["wall_seconds"].sum())


def by_rule(found: Sequence[Job], seconds: float, cores: int) -> pd.DataFrame:
    """Number and time of the jobs of each rule, and their share of the time of all cores."""
    rows = pd.DataFrame([asdict(job) for job in found])
    table = rows.groupby("rule").agg(jobs=("seconds", "size"), seconds=("seconds", "sum"), run_seconds=("run_seconds", "sum"))
    return table.assign(share=table["seconds"] / (seconds * cores)).sort_values("seconds", ascending=False)


def start_up(found: Sequence[Job], seconds: float, cores: int) -> float:
    """The share of the time of all cores that is spent in checks, and in jobs that train outside of their runs."""
    spent = sum(job.seconds - job.run_seconds for job in found if job.rule in (*TRAINS, "check"))
    return spent / (seconds * cores)


def compared(runs: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """For each experiment its runs, those that are published, and the ratio of their times, made here to published."""
    if published.empty:
        return pd.DataFrame()
    both = runs.merge(published[["run_id", "wall_seconds"]], on="run_id", suffixes=("", "_published"))
    grouped = both.assign(ratio=both["wall_seconds"] / both["wall_seconds_published"]).groupby("experiment")
    table = grouped.agg(published_runs=("ratio", "size"), seconds=("wall_seconds", "sum"), ratio=("ratio", "median"))
    return runs.groupby("experiment").size().rename("runs").to_frame().join(table)


def equal_values(metrics: pd.DataFrame, published: pd.DataFrame) -> tuple[int, int]:
    """How many values are equal to the published ones of the same run, to the bit, and how many were compared."""
    if published.empty:
        return 0, 0
    both = metrics.merge(published, on=KEYS, suffixes=("", "_published"))
    same = (both["value"] == both["value_published"]) | (both["value"].isna() & both["value_published"].isna())
    return int(same.sum()), len(both)


def main() -> int:
    """Runs the benchmark, prints its tables and writes the jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=["all"], help="targets of the workflow (all)")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the workflow")
    parser.add_argument("--output", type=Path, help="a parquet file for the jobs and their times")
    args = parser.parse_args()
    scale = dict(setting.split("=", 1) for setting in args.config).get("scale", "small")
    folder = Path(tempfile.mkdtemp(prefix="ether-"))
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()
    arguments = ["--cores", str(args.cores), *args.targets, *(["--config", *args.config] if args.config else [])]
    watched = run(folder, arguments)
    if watched.status:
        print(f"The workflow failed. What it made is kept in {folder}.", file=sys.stderr)
        return watched.status
    found = jobs(max((folder / ".snakemake/log").glob("*.log")).read_text())
    results = folder / "results" / scale
    add_runs(found, results)
    again = run(folder, arguments)
    names = sorted((results / "metrics").glob("*.runs.parquet"))
    runs = stored(names)
    metrics = stored(file.with_name(file.name.replace(".runs", "")) for file in names)
    old = sorted((folder / "results/published" / scale / "metrics").glob("*.runs.parquet"))
    old_runs = stored(old)
    old_metrics = stored(file.with_name(file.name.replace(".runs", "")) for file in old)
    shutil.rmtree(folder)
    print(f"\n{' '.join(args.targets)}, scale {scale}, {args.cores} cores, {platform.machine()} CPU, commit {commit[:10]}")
    print(f"{watched.seconds / 60:.1f} minutes, {len(found)} jobs, {len(runs)} runs")
    print(f"start-up: {start_up(found, watched.seconds, args.cores):.1%} of the time of {args.cores} cores")
    print(f"Snakemake itself: {watched.scheduler:.0f} s CPU ({watched.scheduler / watched.seconds:.1%} of one core)")
    print(f"memory: {watched.memory / GIB:.2f} GiB of all processes at most, {watched.largest / GIB:.2f} GiB of one")
    print(f"second run: {'nothing to be done' if 'Nothing to be done' in again.output else 'RAN JOBS'}, {again.seconds:.0f} s\n")
    print(by_rule(found, watched.seconds, args.cores).round(3).to_string(), "\n")
    if len(runs):
        print(compared(runs, old_runs).round(2).to_string())
        same, number = equal_values(metrics, old_metrics)
        print(f"{same} of {number} values are equal to the published ones, to the bit")
    if args.output:
        settings = {"targets": " ".join(args.targets), "scale": scale, "cores": args.cores, "commit": commit}
        totals = {"total_seconds": watched.seconds, "memory": watched.memory, "scheduler_seconds": watched.scheduler}
        pd.DataFrame([asdict(job) for job in found]).assign(**settings, **totals).to_parquet(args.output)
    return int("Nothing to be done" not in again.output)


if __name__ == "__main__":
    sys.exit(main())
