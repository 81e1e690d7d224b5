"""Faults on purpose: kills, full and read-only disks, damaged files and two workflows at once, at smoke scale.

After each fault the same command is started again. It must end with the numbers of an undisturbed run, to the bit, or stop with a
message that says what to do; what it says is then done (the named file is deleted), and it must end with them.

    python benchmarks/faults.py --output faults.parquet                      # 50 kills and two of each other fault
    python benchmarks/faults.py --kills 4 --others 1 --kinds step checkpoint # a few
    python benchmarks/faults.py --show benchmarks/results/faults.parquet     # the table of stored trials

Works in a copy of the project, in a temporary folder. A full and a read-only disk are a small tmpfs, which needs the right to
mount one; without it a full disk is simulated by a limit to the size of files, and the read-only disk is left out. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "profiles", "ether", "notebooks", "pyproject.toml")
SCALE = """
over: smoke
seeds: [0, 1]
glue:
  jobs: []
  tasks: [rte]
  methods: [ether]
  training: {max_steps: 16, batch_size: 8, evaluations: 2, checkpoint_steps: 2}
"""
RESULTS = Path("results/faults")
COMPARED = ("metrics/glue.parquet", "tables/table4.parquet")
WEIGHTS = Path("ether/foundation/weights/language-encoder/model.safetensors")
TIMEOUT = 900  # seconds of one start of the workflow
MIB = 2**20

KILLS = {
    "workflow": "SIGKILL of Snakemake alone, at any moment; its job goes on without it",
    "everything": "SIGKILL of all processes at once, at any moment",
    "kernel": "SIGKILL of the notebook's kernel, at any moment of its life",
    "step": "SIGKILL of the kernel while a run trains",
}
OTHERS = {
    "full disk": "the disk of the results is full at any moment",
    "read-only": "the disk of the results is read-only",
    "two at once": "two workflows are started in one folder",
    "parquet": "a parquet file of the results is truncated",
    "checkpoint": "a run is killed, and a file of its newest checkpoint is truncated",
    "weights": "the weights of the base model are truncated",
}


@dataclass
class Trial:
    """One row of the output. Times are in seconds."""

    number: int
    kind: str
    what: str = ""  # what was done, and when
    struck: bool = False  # whether the fault met a workflow that was running (or a file that was there)
    disturbed_seconds: float = 0.0
    message: str = ""  # of a workflow that stopped
    clear: bool = True  # whether every workflow that stopped did so without a traceback
    starts: int = 0  # of the workflow after the fault, until it was complete
    seconds: float = 0.0  # of all these
    same: bool = False  # whether its numbers are those of the undisturbed run
    log: str = field(default="", repr=False)  # the end of the output of a workflow that stopped without a clear message

    @property
    def outcome(self) -> str:
        """completed | stopped with a message | FAILED | missed."""
        if not self.struck:
            return "missed"
        if not self.same or not self.clear:
            return "FAILED"
        return "completed" if self.starts == 1 else "stopped with a message"


# --- the workflow --------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How one start of the workflow ended."""

    status: int
    output: str
    seconds: float

    @property
    def clear(self) -> bool:
        """No stack trace is shown. (Those of killed processes are not: they write nothing.)"""
        return "Traceback (most recent call last)" not in self.output

    @property
    def message(self) -> str:
        """The paragraph that says what is wrong."""
        lines = [line.strip() for line in self.output.splitlines()]
        explained = r"damaged|No space left|cannot be written|was killed|stopped before|stopped while|is not the file"
        for wanted in (explained, "failed|Error"):
            if found := [line for line in lines if re.search(wanted, line)]:
                return found[0][:400]
        return ""


class Project:
    """A copy of the project in which the workflow is started and disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source, target = ROOT / part, folder / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
            else:
                shutil.copy2(source, target)
        (folder / "workflow/scales/faults.yaml").write_text(SCALE, encoding="utf-8")
        self.running: list[subprocess.Popen[str]] = []
        self.results = folder / RESULTS

    def clear(self) -> None:
        """Back to the state of a fresh clone: without files, and without jobs that go on after the loss of their workflow."""
        kill([process for process in psutil.process_iter() if _works_in(process, self.folder)])
        for path in (self.folder / "results", self.folder / ".snakemake"):
            if path.is_mount():  # a tmpfs of a trial: its contents only
                for inner in path.iterdir():
                    shutil.rmtree(inner)
            elif path.exists():
                shutil.rmtree(path)

    def start(self, limit: int | None = None) -> subprocess.Popen[str]:
        """Starts the workflow; its output is in a file. `limit`: maximum size of a file in bytes."""
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "table4", "--config", "scale=faults"]
        environment = {**os.environ, "ETHER_PROGRESS": "on", "PYTHONPATH": str(self.folder)}
        limited = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
        output = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115 - read when it has ended
        process = subprocess.Popen(
            command, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment,
            start_new_session=True, preexec_fn=limited,
        )  # fmt: skip
        process.log, process.begun = Path(output.name), time.monotonic()  # type: ignore[attr-defined]
        output.close()
        self.running.append(process)
        return process

    def ended(self, process: subprocess.Popen[str]) -> Ended:
        """Waits for the end of a workflow."""
        try:
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            kill(everything(process))
            status = process.wait()
        self.running.remove(process)
        log: Path = process.log  # type: ignore[attr-defined]
        output = log.read_text(errors="replace")
        log.unlink()
        return Ended(status, output, time.monotonic() - process.begun)  # type: ignore[attr-defined]

    def stop(self) -> None:
        """Ends the workflows that are still running."""
        for process in self.running:
            kill(everything(process))

    def numbers(self) -> list[pd.DataFrame]:
        """The numbers that are compared."""
        return [pd.read_parquet(self.results / name) for name in COMPARED]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


def everything(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A workflow's process and its descendants."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kernels(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The kernels of a workflow's notebooks."""
    found = []
    for one in everything(process):
        try:
            if any("ipykernel_launcher" in part for part in one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process]) -> bool:
    """SIGKILL; whether any of them was still running."""
    met = False
    for one in processes:
        try:
            one.send_signal(signal.SIGKILL)
            met = True
        except psutil.NoSuchProcess:
            continue
    return met


def wait_for(process: subprocess.Popen[str], happened: Callable[[], object]) -> bool:
    """Waits until something has happened; False if the workflow ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A tmpfs of `size` bytes at a folder; yields a function that mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True, capture_output=True)

    def change(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def can_mount() -> bool:
    """Whether a tmpfs can be mounted here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", MIB):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# --- trials --------------------------------------------------------------------------------------------------------------


@dataclass
class Undisturbed:
    """The undisturbed run: its numbers, the seconds until its kernel and its training began, and its sizes in bytes."""

    numbers: list[pd.DataFrame]
    seconds: float
    kernel: tuple[float, float]  # from the start of the kernel to the end of the job
    step: tuple[float, float]  # from the first checkpoint to the end of the job
    size: int
    largest: int


def undisturbed(project: Project) -> Undisturbed:
    """Runs the workflow once without a fault."""
    project.clear()
    process = project.start()
    moments = []
    for happened in (
        lambda: kernels(process),
        lambda: list(project.results.glob("work/glue/all/*/checkpoints/checkpoint-*")),
        lambda: (project.results / "runs/glue/all/runs.parquet").exists(),
    ):
        if not wait_for(process, happened):
            raise SystemExit(project.ended(process).output)
        moments.append(time.monotonic() - process.begun)  # type: ignore[attr-defined]
    sizes = []
    while process.poll() is None:
        time.sleep(0.1)
    ended = project.ended(process)
    if ended.status:
        raise SystemExit(ended.output)
    sizes = [file.stat().st_size for file in (project.folder / "results").rglob("*") if file.is_file()]
    kernel, step, end = moments
    return Undisturbed(project.numbers(), ended.seconds, (0.0, end - kernel), (0.0, end - step), sum(sizes), max(sizes))


class Trials:
    """Makes trials, one after the other, with moments drawn from one seed."""

    def __init__(self, project: Project, reference: Undisturbed, seed: int) -> None:
        self.project = project
        self.reference = reference
        self.random = random.Random(seed)
        self.mounts = can_mount()

    def make(self, number: int, kind: str) -> Trial:
        """One trial; a kill that meets no process is tried again at another moment, twice at most."""
        maker: Callable[[Trial], None] = getattr(self, f"_{kind.replace(' ', '_').replace('-', '_')}")
        for _ in range(3 if kind in KILLS else 1):
            self.project.clear()
            trial = Trial(number, kind)
            maker(trial)
            if trial.struck:
                break
        return trial

    def _stopped(self, trial: Trial, ended: Ended) -> None:
        trial.disturbed_seconds += round(ended.seconds, 1)
        if ended.status > 0:  # it stopped by itself, not by our signal
            self._note(trial, ended)

    def _note(self, trial: Trial, ended: Ended) -> None:
        trial.message = trial.message or ended.message
        if not ended.clear or not ended.message:
            trial.clear, trial.log = False, ended.output[-4000:]

    def _goes_on(self, trial: Trial) -> None:
        """Starts the workflow until it is complete, doing what its messages say."""
        for _ in range(3):
            trial.starts += 1
            ended = self.project.ended(self.project.start())
            trial.seconds += round(ended.seconds, 1)
            if ended.status == 0:
                break
            self._note(trial, ended)
            if damaged := re.search(r"(\S+\.parquet) is damaged", ended.output):
                (self.project.folder / damaged.group(1)).unlink(missing_ok=True)
        else:
            trial.log = trial.log or ended.output[-4000:]
            return
        try:
            for made, expected in zip(self.project.numbers(), self.reference.numbers, strict=True):
                pd.testing.assert_frame_equal(made, expected, check_exact=True)
            trial.same = True
        except (AssertionError, OSError, ValueError) as error:
            trial.log = str(error)[:4000]

    # SIGKILL

    def _kill(self, trial: Trial, victims: Callable[[subprocess.Popen[str]], list[psutil.Process]], after: str) -> None:
        process = self.project.start()
        begins: dict[str, Callable[[], object]] = {
            "start": lambda: True,
            "kernel": lambda: kernels(process),
            "step": lambda: list(self.project.results.glob("work/glue/all/*/checkpoints/checkpoint-*")),
        }
        longest = {"start": self.reference.seconds, "kernel": self.reference.kernel[1], "step": self.reference.step[1]}[after]
        moment = self.random.uniform(0, longest)
        if wait_for(process, begins[after]):
            time.sleep(moment)
            trial.struck = process.poll() is None and kill(victims(process))
        trial.what = f"{moment:.2f} s after the beginning of the {after}"
        self._stopped(trial, self.project.ended(process))
        self._goes_on(trial)

    def _workflow(self, trial: Trial) -> None:
        self._kill(trial, lambda process: everything(process)[:1], "start")

    def _everything(self, trial: Trial) -> None:
        self._kill(trial, everything, "start")

    def _kernel(self, trial: Trial) -> None:
        self._kill(trial, kernels, "kernel")

    def _step(self, trial: Trial) -> None:
        done = self.project.results / "runs/glue/all/runs.parquet"  # then the kernel is that of the table
        self._kill(trial, lambda process: [] if done.exists() else kernels(process), "step")

    # disks

    def _full_disk(self, trial: Trial) -> None:
        if not self.mounts:
            limit = self.random.randrange(1024, self.reference.largest)
            trial.what = f"no file may have more than {limit:,} bytes"
            ended = self.project.ended(self.project.start(limit))
            trial.struck = ended.status != 0
            self._stopped(trial, ended)
            self._goes_on(trial)
            return
        size = self.random.randrange(4096, self.reference.size)
        trial.what = f"a disk of {size:,} bytes"
        with small_disk(self.project.folder / "results", size) as change:
            ended = self.project.ended(self.project.start())
            trial.struck = ended.status != 0
            self._stopped(trial, ended)
            change("size=512m")
            self._goes_on(trial)

    def _read_only(self, trial: Trial) -> None:
        if not self.mounts:
            trial.what = "left out: no right to mount a disk"
            return
        with small_disk(self.project.folder / "results", 512 * MIB) as change:
            process = self.project.start()
            moment = self.random.uniform(0, self.reference.seconds)
            time.sleep(moment)
            kill(everything(process))
            self.project.ended(process)
            trial.what = f"after {moment:.2f} s"
            change("ro")
            ended = self.project.ended(self.project.start())
            trial.struck = ended.status != 0
            self._stopped(trial, ended)
            change("rw")
            self._goes_on(trial)

    # two workflows

    def _two_at_once(self, trial: Trial) -> None:
        first = self.project.start()
        delay = self.random.uniform(0, 5)
        time.sleep(delay)
        second = self.project.start()
        trial.what = f"the second {delay:.2f} s after the first"
        for process in (first, second):
            ended = self.project.ended(process)
            trial.struck = True
            self._stopped(trial, ended)
        self._goes_on(trial)

    # damaged files

    def _truncate(self, file: Path) -> str:
        size = self.random.randrange(file.stat().st_size)
        os.truncate(file, size)
        return f"{file.relative_to(self.project.folder)} truncated to {size:,} bytes"

    def _parquet(self, trial: Trial) -> None:
        self._stopped(trial, self.project.ended(self.project.start()))
        # Not the tables: nothing is made from them.
        files = [file for folder in ("world", "runs", "metrics") for file in (self.project.results / folder).rglob("*.parquet")]
        used = [file for file in files if "world" not in file.parts or "rte" in file.parts]
        trial.what = self._truncate(self.random.choice(sorted(used)))
        trial.struck = True
        self._goes_on(trial)

    def _checkpoint(self, trial: Trial) -> None:
        process = self.project.start()
        checkpoints = f"{RESULTS}/work/glue/all/*/checkpoints/checkpoint-*"
        wait_for(process, lambda: list(self.project.folder.glob(f"{checkpoints}/trainer_state.json")))
        kill(everything(process))
        self._stopped(trial, self.project.ended(process))
        found = sorted(self.project.folder.glob(checkpoints), key=lambda path: int(path.name.rpartition("-")[2]))
        files = sorted(file for file in found[-1].iterdir() if file.stat().st_size) if found else []
        if files:
            trial.what = self._truncate(self.random.choice(files))
            trial.struck = True
        self._goes_on(trial)

    def _weights(self, trial: Trial) -> None:
        file = self.project.folder / WEIGHTS
        content, times = file.read_bytes(), file.stat()
        trial.what = self._truncate(file)
        try:
            ended = self.project.ended(self.project.start())
        finally:
            file.write_bytes(content)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        trial.struck = ended.status != 0
        self._stopped(trial, ended)
        self._goes_on(trial)


# --- the command line ----------------------------------------------------------------------------------------------------


def planned(kinds: list[str], kills: int, others: int) -> list[str]:
    """The kinds of all trials: `kills` spread over the kinds of kills, `others` of each other kind."""
    killing = [kind for kind in kinds if kind in KILLS]
    found = [killing[i % len(killing)] for i in range(kills)] if killing else []
    return found + [kind for kind in kinds if kind in OTHERS for _ in range(others)]


def summary(trials: pd.DataFrame) -> str:
    """A table with one line a kind of fault, as Markdown."""
    lines = [
        "| fault | trials | completed | stopped with a message, then completed | failed | seconds a trial |",
        "|---|---|---|---|---|---|",
    ]
    for kind, rows in [*trials.groupby("kind", sort=False), ("all", trials)]:
        counts = rows["outcome"].value_counts()
        of_kind = [counts.get(name, 0) for name in ("completed", "stopped with a message", "FAILED")]
        seconds = (rows["disturbed_seconds"] + rows["seconds"]).median()
        lines.append(f"| {kind} | {sum(of_kind)} | {' | '.join(map(str, of_kind))} | {seconds:.0f} |")
    missed = int((trials["outcome"] == "missed").sum())
    if missed:
        lines.append(f"\n{missed} more trial{'s' * (missed > 1)} missed: the workflow had ended before.")
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status: 1 if a trial failed."""
    parser = argparse.ArgumentParser(description="Faults on purpose, at smoke scale.")
    parser.add_argument("--kills", type=int, default=50, help="number of trials with a SIGKILL, over all their kinds")
    parser.add_argument("--others", type=int, default=2, help="number of trials of each other kind")
    parser.add_argument("--kinds", nargs="+", choices=[*KILLS, *OTHERS], default=[*KILLS, *OTHERS], metavar="KIND")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    parser.add_argument("--output", type=Path, default=Path("faults.parquet"), help="one row a trial")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print the table of the trials in a file")
    options = parser.parse_args()
    if options.show:
        print(summary(pd.read_parquet(options.show)))
        return 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that disks are unmounted
    with (
        tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as temporary,
        contextlib.ExitStack() as stack,
    ):
        project = Project(Path(temporary))
        stack.callback(project.stop)
        reference = undisturbed(project)
        print(f"undisturbed: {reference.seconds:.0f} s", flush=True)
        trials = Trials(project, reference, options.seed)
        for number, kind in enumerate(planned(options.kinds, options.kills, options.others), 1):
            trial = trials.make(number, kind)
            rows.append({**asdict(trial), "outcome": trial.outcome, "commit": commit})
            print(f"{number} {kind} ({trial.what}): {trial.outcome}. {trial.message}", flush=True)
            pd.DataFrame(rows).to_parquet(options.output, index=False)  # each time: a stopped script loses nothing
    found = pd.DataFrame(rows)
    print(f"\n{summary(found)}")
    for row in found[found["outcome"] == "FAILED"].itertuples():
        print(f"\n--- {row.number} {row.kind}: {row.what}\n{row.log}")
    return int((found["outcome"] == "FAILED").any())


if __name__ == "__main__":
    raise SystemExit(main())
