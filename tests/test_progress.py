"""The terminal's output of a workflow: one plain line for each run and job; Snakemake's own with --verbose."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ether import progress
from ether.progress import JobLines, RunProgress, duration

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """Seconds that pass only when a test lets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.95, "10 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1 h 40 min"),
     (7199, "2 h 0 min")],
)  # fmt: skip
def test_durations_have_two_digits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_s_line_has_the_count_of_all_jobs_and_the_time_left_at_their_rate() -> None:
    clock, done = Clock(), 30
    runs = RunProgress("glue", 264, lambda: done, clock)
    clock.now, done = 14.0, 37  # two jobs side by side finished seven runs in 14 s: 227 runs are left
    line = runs.line("ETHER+", "rte", 0, 71.2, 3.14)
    assert line == "[glue 37/264] ETHER+, rte, seed 0: 71.20 (3.1 s), about 8 min left"
    assert runs.line("LoRA r=8", "stsb", 2, None, 0.5, "diverged: the loss is nan") == (
        "[glue 37/264] LoRA r=8, stsb, seed 2: - (0.5 s), diverged: the loss is nan, about 8 min left"
    )
    done = 264
    assert runs.line("ETHER+", "rte", 0, 71.2, 3.14) == "[glue 264/264] ETHER+, rte, seed 0: 71.20 (3.1 s)"


def test_no_time_is_left_where_nothing_was_finished_or_more_than_all_is_there() -> None:
    runs = RunProgress("glue", 4, lambda: 2, Clock())
    assert "left" not in runs.line("ETHER", "rte", 0, 1.0, 1.0)
    assert RunProgress("glue", 4, lambda: 9, Clock()).line("ETHER", "rte", 0, 1.0, 1.0).startswith("[glue 4/4] ")


# --- jobs ----------------------------------------------------------------------------------------------------------------


class Log:
    """Snakemake's logger with this module's handler, and records as Snakemake makes them."""

    def __init__(self, unfinished: list[Any]) -> None:
        self.clock, self.stream = Clock(), io.StringIO()
        self.handler = JobLines(self.stream, lambda: unfinished, self.clock)

    def send(self, event: str | None, message: str = "", **fields: Any) -> bool:
        """Logs a record; whether Snakemake itself prints it, too."""
        level = logging.ERROR if event in ("error", "job_error") else logging.INFO
        record = logging.makeLogRecord({"msg": message, "levelno": level, "event": event, **fields})
        self.handler.handle(record)
        return progress.is_printed(record)

    def start(self, number: int, rule: str, **wildcards: str) -> None:
        shell = None if rule == "table4" else "python -m …"
        self.send("job_info", jobid=number, rule_name=rule, wildcards=wildcards, shellcmd=shell)

    def finish(self, number: int, done: int, total: int) -> str:
        before = len(self.stream.getvalue())
        self.send("job_finished", job_id=number)
        self.send("progress", done=done, total=total)
        return self.stream.getvalue()[before:]


def job(number: int, rule: str, **wildcards: str) -> Any:
    shell = None if rule == "table4" else "python -m …"
    return SimpleNamespace(jobid=number, rule=SimpleNamespace(name=rule, shellcmd=shell), wildcards_dict=wildcards)


def test_each_finished_job_is_a_line_with_the_time_left() -> None:
    jobs = [
        job(1, "check", experiment="glue"),
        *(job(n, "experiment", experiment="glue", job=f"m{n}") for n in range(2, 6)),
        job(6, "table", exhibit="table4"),
        job(7, "table4"),
    ]
    log = Log(jobs)
    assert not log.send("run_info", "Job stats: …", stats={"check": 1, "experiment": 4, "table": 1, "table4": 1, "total": 7})
    assert log.stream.getvalue() == "7 jobs: 1 check, 4 experiment, 1 table, 1 table4\n"

    log.start(1, "check", experiment="glue")
    log.clock.now = 5
    assert log.finish(1, 1, 7) == "[1/7] check glue done in 5.0 s\n"  # gives no estimate for experiments
    log.start(2, "experiment", experiment="glue", job="m2")
    log.start(3, "experiment", experiment="glue", job="m3")
    log.clock.now = 45
    # left: 40 s of the job that runs are spent; two of 40 s and a table, of (5 + 40) / 2 s as far as known; two at a time
    assert log.finish(2, 2, 7) == "[2/7] experiment glue/m2 done in 40 s, about 51 s left\n"
    for number in (3, 4, 5, 6):
        log.start(number, "experiment" if number < 6 else "table", **jobs[number - 1].wildcards_dict)
        log.clock.now += 1
        last = log.finish(number, number, 7)
    assert last == "[6/7] table4 done in 1.0 s\n"  # all that is left collects targets
    log.start(7, "table4")
    assert log.finish(7, 7, 7) == "[7/7] all done in 49 s\n"


def test_a_failed_job_is_a_line_that_names_its_log() -> None:
    log = Log([job(2, "collect", experiment="glue")])
    log.start(1, "experiment", experiment="glue", job="lora")
    log.clock.now = 12
    failed = (
        "RuleException:\nCalledProcessError in file x.smk, line 3:\nCommand 'set -e; python' returned non-zero exit status 1."
    )
    assert not log.send("error", failed, exception="RuleException")
    assert not log.send("job_error", jobid=1, rule_name="experiment", log=["results/lora.ipynb"])
    assert log.stream.getvalue() == "experiment glue/lora failed after 12 s; see results/lora.ipynb\n"


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        ("returned non-zero exit status 137.", "The process of a job was killed; the most frequent cause is lack of memory."),
        ("died with <Signals.SIGKILL: 9>.", "The process of a job was killed; the most frequent cause is lack of memory."),
        ("died with <Signals.SIGSEGV: 11>.", "The command of a job ended with SIGSEGV."),
        ("returned non-zero exit status 127.", "The command of a job ended with exit status 127."),
    ],
)
def test_a_command_that_cannot_have_printed_why_it_failed(ending: str, line: str) -> None:
    log = Log([])
    assert not log.send("error", f"RuleException:\nCommand 'a\nb' {ending}", exception="RuleException")
    assert log.stream.getvalue() == f"{line}\n"


def test_everything_else_is_printed_by_snakemake() -> None:
    log = Log([])
    for message in ("Nothing to be done (all requested files are present and up to date).", "Trying to restart job 3.", "new"):
        assert log.send(None, message)
    assert log.send("error", "MissingOutputException in rule collect", exception="MissingOutputException")
    assert log.send("shellcmd", "Shell command: …") and log.send("debug_dag")
    assert not log.send(None, "Building DAG of jobs...") and not log.send("workflow_started", "Workflow has started!")
    assert log.stream.getvalue() == ""


# --- Snakemake itself ----------------------------------------------------------------------------------------------------

SNAKEFILE = """
import sys
sys.path.insert(0, {root!r})
from ether import progress
progress.attach(workflow)

rule all:
    input: "table4.md", "table5.md"

rule table:
    input: "runs/{{exhibit}}.txt"
    output: "{{exhibit}}.md"
    shell: "touch {{output}}"

rule experiment:
    output: "runs/{{job}}.txt"
    params: command=lambda wildcards: {{"table4": "touch runs/table4.txt"}}.get(wildcards.job, "echo A paragraph. >&2; exit 1")
    log: notebook="{{job}}.ipynb"
    shell: "{{params.command}}"
"""


@pytest.fixture(scope="module")
def snakefile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("workflow") / "Snakefile"
    file.write_text(SNAKEFILE.format(root=str(ROOT)))
    return file


def snakemake(file: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--keep-going", *arguments],
        cwd=file.parent, capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_workflow_on_the_terminal(snakefile: Path) -> None:
    status, output = snakemake(snakefile)
    lines = [line for line in output.splitlines() if line]
    assert status == 1 and "\x1b" not in output
    assert lines[0] == "5 jobs: 2 experiment, 2 table, 1 all"
    assert [line.partition(" done in ")[0] for line in lines if " done in " in line] == [
        "[1/5] experiment table4",
        "[2/5] table4",
    ]
    [failed] = [line for line in lines if " failed after " in line]
    assert failed.startswith("experiment table5 failed after") and failed.endswith("; see table5.ipynb")
    assert "A paragraph." in lines
    for noise in ("rule experiment:", "input:", "Reason", "Building DAG", "Select jobs", "CalledProcessError", "SNAKEMAKE"):
        assert noise not in output
    [log] = (snakefile.parent / ".snakemake/log").glob("*.log")
    assert "rule experiment:" in log.read_text() and "CalledProcessError" in log.read_text()


@pytest.mark.parametrize("arguments", [("--dry-run",), ("--verbose", "--touch"), ("off", "--touch")])
def test_snakemake_s_own_output_where_it_is_of_use(snakefile: Path, arguments: tuple[str, ...]) -> None:
    environment = {"ETHER_PROGRESS": "off"} if arguments[0] == "off" else {}
    _, output = snakemake(snakefile, "--forceall", "table4.md", *[a for a in arguments if a != "off"], **environment)
    assert "rule experiment:" in output and "output: runs/table4.txt" in output and " done in " not in output
    assert "Job stats" in output


def test_nothing_to_be_done_is_still_reported(snakefile: Path) -> None:
    snakemake(snakefile, "table4.md")
    status, output = snakemake(snakefile, "table4.md")
    assert status == 0 and "Nothing to be done" in output
