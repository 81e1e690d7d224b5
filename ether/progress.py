"""Terminal output of the workflow: one plain line for each finished run and each finished job.

``attach`` (called by the Snakefile) replaces Snakemake's report of each job on the terminal by lines such as::

    14 jobs: 12 experiment, 1 collect, 1 table
    [glue 37/264] ETHER+, rte, seed 0: 71.20 (3.1 s), about 6 min left
    [5/14] experiment glue/ether-plus done in 42 s, about 3 min left

Lines with an experiment in brackets are printed by the jobs (``RunProgress``), all others are made from Snakemake's log
records. Snakemake's original output is printed with ``--verbose``, in a dry run, and with ``ETHER_PROGRESS=off`` in the
environment; its log file always has the complete output.

The module uses a filter and a handler of ``logging`` instead of a logger plugin of Snakemake. Plugins are found by the name of
an installed distribution (``snakemake-logger-plugin-…``), so a package of another name, or a checkout that is not installed,
cannot provide one. ``snakemake-logger-plugin-rich`` counts jobs by rule; it reports neither runs nor scores, and prints control
codes.
"""

from __future__ import annotations

import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# The values of Snakemake's `LogEvent`, an enumeration of strings. It is not imported, because every run would load Snakemake.
JOB_INFO, JOB_FINISHED, JOB_ERROR, ERROR = "job_info", "job_finished", "job_error", "error"
RUN_INFO, PROGRESS = "run_info", "progress"
REPLACED = {JOB_INFO, JOB_FINISHED, JOB_ERROR, RUN_INFO, PROGRESS, "job_started", "resources_info", "workflow_started"}
# Messages without an event that are not printed. All others are printed, including those of later versions.
NOISE = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Elapsed time:",
    "Removing output files of failed job",
    "Select jobs to execute",
    "Using shell:",
)
COMMAND_FAILED = re.compile(r"Command .* (?:returned non-zero exit status (\d+)|died with <Signals\.(\w+))", re.DOTALL)


def duration(seconds: float) -> str:
    """Seconds as text of about two digits: "4.2 s", "42 s", "6 min", "1 h 20 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class RunProgress:
    """Formats the line that reports a finished run, with the number of finished runs and the remaining time.

    The remaining time is that of all unfinished runs of the experiment. It assumes the rate at which all parallel jobs
    finished runs since this object was created.

    Args:
        experiment: name of the experiment, such as ``glue``.
        total: number of runs of the experiment, over all its jobs.
        count_done: returns the number of finished runs.
        clock: returns the time in seconds.
    """

    def __init__(
        self, experiment: str, total: int, count_done: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.experiment = experiment
        self.total = total
        self.count_done = count_done
        self.clock = clock
        self.started = clock()
        self.done_before = count_done()

    def line(self, label: str, task: str, seed: int, score: float | None, seconds: float, ending: str = "") -> str:
        """The line of one finished run.

        Args:
            label: the method, as printed.
            task: the task's name.
            seed: the run's seed.
            score: the score, or None.
            seconds: duration of the run.
            ending: status and reason of a run that did not finish, such as "diverged: the loss is not finite".
        """
        done = min(self.count_done(), self.total)
        value = "-" if score is None else f"{score:.2f}"
        parts = [f"{label}, {task}, seed {seed}: {value} ({seconds:.1f} s)", ending, self.left(done)]
        return f"[{self.experiment} {done}/{self.total}] " + ", ".join(part for part in parts if part)

    def left(self, done: int) -> str:
        """ "about 6 min left"; '' if all runs are done, or none was finished since this object was created."""
        finished = done - self.done_before
        if finished <= 0 or done >= self.total:
            return ""
        return f"about {duration((self.total - done) * (self.clock() - self.started) / finished)} left"


def attach(workflow: Any) -> None:
    """Replaces Snakemake's terminal output by the lines of this module.

    Args:
        workflow: Snakemake's ``Workflow``, the variable ``workflow`` of a Snakefile.
    """
    settings = workflow.output_settings
    manager = workflow.logger_manager
    terminal = next((handler for handler in manager.logger.handlers if handler.name == "DefaultStreamHandler"), None)
    if (
        terminal is None  # a logger plugin is used
        or {kind.name for kind in settings.quiet or ()} & {"ALL", "PROGRESS"}
        or settings.verbose
        or settings.dryrun
        or settings.debug_dag
        or not workflow.is_main_process  # a job on a cluster node: its output is written to the log of that job
        or os.environ.get("ETHER_PROGRESS") == "off"
    ):
        return
    terminal.addFilter(is_printed)
    manager.logger.addHandler(JobLines(terminal.stream, lambda: workflow.dag.needrun_jobs()))


def is_printed(record: logging.LogRecord) -> bool:
    """Whether a log record is printed in Snakemake's own format."""
    event = getattr(record, "event", None)
    if event == ERROR:
        return COMMAND_FAILED.search(record.getMessage()) is None
    if event is None:
        return not str(record.msg or "").startswith(NOISE)
    return event not in REPLACED


def name_of(rule: str, wildcards: Mapping[str, str]) -> str:
    """The name of a job: "experiment glue/lora"; only "table4" for the rule ``table``."""
    values = "/".join(str(value) for value in wildcards.values())
    return values if values.startswith(rule) else f"{rule} {values}".rstrip()


class JobLines(logging.Handler):
    """Prints a line for each finished or failed job.

    Args:
        stream: output stream.
        unfinished: returns the unfinished jobs of Snakemake's graph.
        clock: returns the time in seconds.
    """

    def __init__(self, stream: Any, unfinished: Callable[[], Iterable[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self.stream = stream
        self.unfinished = unfinished
        self.clock = clock
        self.begun = clock()
        self.started: dict[int, tuple[tuple[str, str], str, float]] = {}  # running jobs: kind, name, start time
        self.seconds: dict[tuple[str, str], list[float]] = {}  # durations of finished jobs, by kind
        self.finished: set[int] = set()
        self.parallel = 1  # largest number of jobs that were running at the same time
        self.pending: list[str] = []  # lines to print at the next event PROGRESS, which has the number of finished jobs

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the line for one of Snakemake's log records, if there is one."""
        try:
            self._handle(record)
        except Exception:
            self.handleError(record)

    def _handle(self, record: Any) -> None:
        event = getattr(record, "event", None)
        if event == RUN_INFO:
            counts = {rule: n for rule, n in record.stats.items() if rule != "total"}
            jobs = "1 job" if sum(counts.values()) == 1 else f"{sum(counts.values())} jobs"
            self._print(f"{jobs}: " + ", ".join(f"{n} {rule}" for rule, n in counts.items()))
        elif event == JOB_INFO:
            kind = record.rule_name, record.wildcards.get("experiment", "")
            # A rule without a command only collects targets.
            name = name_of(record.rule_name, record.wildcards) if record.shellcmd else ""
            self.started[record.jobid] = kind, name, self.clock()
            self.parallel = max(self.parallel, len(self.started))
        elif event == JOB_FINISHED:
            self.finished.add(record.job_id)
            kind, name, begun = self.started.pop(record.job_id, (("", ""), "", self.clock()))
            if name:
                self.seconds.setdefault(kind, []).append(self.clock() - begun)
                self.pending.append(f"{name} done in {duration(self.clock() - begun)}")
        elif event == PROGRESS:
            left = self._left()
            for line in self.pending:
                self._print(f"[{record.done}/{record.total}] {line}{left}")
            self.pending.clear()
            if record.done == record.total:
                self._print(f"[{record.done}/{record.total}] all done in {duration(self.clock() - self.begun)}")
        elif event == JOB_ERROR:
            _, name, begun = self.started.pop(record.jobid, (("", ""), record.rule_name, self.clock()))
            self.finished.add(record.jobid)
            logs = f"; see {', '.join(record.log)}" if record.log else ""
            self._print(f"{name} failed after {duration(self.clock() - begun)}{logs}")
        elif event == ERROR and (ended := COMMAND_FAILED.search(record.getMessage())):
            status, signal = ended.groups()
            if signal == "SIGKILL" or status == "137":
                self._print("The process of a job was killed; the most frequent cause is lack of memory.")
            elif status not in ("1", "130"):  # with these the command has printed a message: an error, or an interruption
                self._print(f"The command of a job ended with {signal or f'exit status {status}'}.")

    def _left(self) -> str:
        """ ", about 3 min left"; '' if no job of their kind has finished yet for most of the unfinished jobs."""
        jobs = [job for job in self.unfinished() if job.rule.shellcmd and job.jobid not in self.finished]
        of_all = [seconds for kind in self.seconds.values() for seconds in kind]
        left, known = 0.0, 0
        for job in jobs:
            of_kind = self.seconds.get((job.rule.name, job.wildcards_dict.get("experiment", "")), [])
            expected = statistics.fmean(of_kind or of_all or [0.0])
            spent = self.clock() - self.started[job.jobid][2] if job.jobid in self.started else 0.0
            left += max(expected - spent, 0.0)
            known += bool(of_kind)
        return f", about {duration(left / min(self.parallel, len(jobs)))} left" if jobs and known >= len(jobs) / 2 else ""

    def _print(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()
