"""The workflow itself, in a copy of the project: dry runs of every target, and the smoke scale for real."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ether import config, sources
from ether.analysis.cells import CELL_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "profiles", "ether", "notebooks", "pyproject.toml")

# A scale is data: this one keeps a job to seconds, and gives each method its own, as `small` does.
TINY = """
over: smoke
seeds: [0]
glue: {jobs: [method], tasks: [rte, stsb], methods: [lora, ether]}
"""


def project(folder: Path) -> Path:
    """A copy of what a clone would hold of the workflow."""
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignore)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / part)
    (folder / "workflow/scales/tiny.yaml").write_text(TINY)
    return folder


def share_counts(folder: Path) -> None:
    """Lets a copy use and extend this checkout's cache of exact counts (of this code), which take a minute of a core."""
    counts = ROOT / "results/cache"
    counts.mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir()
    (folder / "results/cache").symlink_to(counts)


def command(*arguments: str) -> list[str]:
    cores = () if "--cores" in arguments else ("--cores", "1")
    return [sys.executable, "-m", "snakemake", *cores, *arguments]


def snakemake(folder: Path, *arguments: str, expect: int = 0, progress: str = "off") -> str:
    """The output of a run of the workflow; by default Snakemake's own account of it, which `ran` reads."""
    environment = os.environ | {"ETHER_PROGRESS": progress}
    done = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=3600, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == expect, "\n".join(readable(output))[-6000:]
    return output


def readable(output: str) -> list[str]:
    """The lines of an output, without the long lists of files."""
    return [line if len(line) < 500 else f"{line[:100]} […]" for line in output.splitlines()]


def ran(output: str) -> list[str]:
    """Names of the rules that ran, with the job's name where it has one."""
    names = []
    for line in output.splitlines():
        if line.startswith(("rule ", "localrule ")):
            names.append(line.split()[1].rstrip(":"))
        elif line.strip().startswith("wildcards:") and "job=" in line:
            names[-1] += ":" + line.split("job=")[1]
    return names


def inputs(output: str) -> dict[str, set[str]]:
    """{rule, with the exhibit or experiment it is for: its input files} of a dry run."""
    found: dict[str, set[str]] = {}
    rule, files = "", set()
    for line in output.splitlines():
        if line.startswith(("rule ", "localrule ")):
            rule, files = line.split()[1].rstrip(":"), set()
        elif line.strip().startswith("input:"):
            files = set(line.split("input: ")[1].split(", "))
        elif line.strip().startswith("wildcards:"):
            wildcards = dict(part.split("=") for part in line.split("wildcards: ")[1].split(", "))
            found[f"{rule} {wildcards.get('exhibit') or wildcards.get('experiment')}"] = files
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return project(tmp_path_factory.mktemp("clone"))


def exhibits_of(scale):
    """The exhibits whose experiments a scale has."""
    return {id_: entry for id_, entry in config.exhibits().items() if set(entry.experiments) <= set(scale.experiments())}


@pytest.mark.parametrize("scale", config.scale_names())
def test_dry_run_of_every_target(scale, clone):
    first = next(id_ for id_, entry in exhibits_of(config.load(scale)).items() if entry.experiments)
    targets = (first, "tables", "figures", "claims", "all", "foundation", "site", "report", "publish")
    said = snakemake(clone, "--dry-run", "--quiet", "rules", "--config", f"scale={scale}", "--", *targets)
    lines = [line.split() for line in said.splitlines()]
    for rule, samples in (("experiment", False), ("experiment_with_samples", True)):
        of_scale = config.load(scale)
        names = [name for name in of_scale.experiments() if config.experiments()[name].samples == samples]
        count = sum(len(config.jobs(of_scale, name)) for name in names)
        counted = {line[1] for line in lines if len(line) == 2 and line[0] == rule and line[1].isdigit()}
        assert counted == ({str(count)} if count else set())


def test_rebuilding_the_foundation_is_part_of_the_graph_when_asked(clone):
    said = snakemake(clone, "--dry-run", "table4", "--config", "scale=tiny", "foundation=rebuild")
    assert "foundation_model" in ran(said)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scale=smal"], "Unknown scale 'smal'"),
        (["scale="], "Unknown scale ''"),
        (["scale=smoke", "methods=ethr"], "Did you mean 'ether'"),
        (["scale=smoke", "taskz=rte"], "Did you mean 'tasks'"),
        (["scale=laptop", "mirror=nowhere"], "mirror folder nowhere does not exist"),
        (["scale=laptop", "mirror=a{b}c"], "a path with braces cannot be used"),
        (["replay=nowhere"], "nothing to replay in nowhere"),
    ],
)
def test_wrong_config_ends_before_the_first_job_in_one_paragraph(clone, arguments, expected):
    said = snakemake(clone, "table4", "--config", *arguments, expect=1)
    assert expected in said and "Traceback" not in said and not ran(said)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tabel4"], "Did you mean 'table4'"),
        (["table12", "--config", "replay=stored"], "stored/metrics/vtab.parquet is missing. Copy it there"),
        (["table2", "--config", "methods=ether-n64"], "table2 needs the experiment 'subject', which has no run with"),
    ],
)
def test_a_target_that_cannot_be_made_ends_before_the_first_job_in_one_paragraph(clone, arguments, expected):
    if not (clone / "stored").exists():
        shutil.copytree(ROOT / "results/published/small/metrics", clone / "stored/metrics")
        (clone / "stored/metrics/vtab.parquet").unlink()
        for file in config.exhibits()["table12"].files(clone / "results/small"):  # as made before, from a complete folder
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    said = snakemake(clone, *arguments, expect=1)
    assert expected in said and "Traceback" not in said and not ran(said) and said.count("Using workflow specific profile") <= 1


def test_wrong_method_files_are_all_named_before_training(tmp_path):
    folder = project(tmp_path / "clone")
    for name, old, new in (("ether", "n_blocks: 1", "n_blocks: 7"), ("lora", "r: 8", "rank: 8")):
        file = folder / f"workflow/methods/{name}.yaml"
        file.write_text(file.read_text().replace(old, new))
    output = snakemake(folder, "table4", "--config", "scale=tiny", expect=1)
    assert "ether.yaml" in output and "7" in output and "Unknown LORA parameter 'rank'" in output
    assert "Traceback" not in output and not any(rule.startswith("experiment") for rule in ran(output))


def test_schema_errors_of_several_method_files_are_reported_at_once(tmp_path):
    folder = project(tmp_path / "clone")
    for name in ("ether", "lora"):
        file = folder / f"workflow/methods/{name}.yaml"
        file.write_text(file.read_text() + "colour: red\n")
    output = snakemake(folder, "table4", "--config", "scale=tiny", expect=1)
    assert output.count("colour") >= 2 and "ether.yaml" in output and "lora.yaml" in output and "Traceback" not in output


def test_an_exhibit_waits_for_metrics_that_it_shows_if_the_same_command_makes_them(clone):
    alone = inputs(snakemake(clone, "--dry-run", "table4", "--config", "scale=tiny"))
    both = inputs(snakemake(clone, "--dry-run", "table4", "figure_glue_rates", "--config", "scale=tiny"))
    shown = {f"results/tiny/metrics/glue_rates.{ending}" for ending in ("parquet", "runs.parquet")}
    assert not shown & alone["table table4"] and both["table table4"] == alone["table table4"] | shown
    assert shown <= inputs(snakemake(clone, "--dry-run", "claims", "--config", "scale=tiny"))["table table4"]


# --- what makes a number outdated ------------------------------------------------------------------------------


def test_rules_declare_everything_their_output_depends_on(clone):
    declared = inputs(snakemake(clone, "--dry-run", "all", "--config", "scale=smoke"))
    scale = config.load("smoke")
    for name in scale.experiments():
        entry = config.experiments()[name]
        rule = "experiment_with_samples" if entry.samples else "experiment"
        files = declared[f"{rule} {name}"]
        assert set(sources.closure("ether.run", f"ether.experiments.{entry.module}")) <= files
        weights = scale.experiment(name)["model"]["path"].removeprefix("foundation/")
        shipped = {str(f.relative_to(ROOT)) for f in (ROOT / "ether/foundation/weights" / weights).rglob("*") if f.is_file()}
        assert shipped and shipped <= files
        for folder in entry.data:
            assert {str(f.relative_to(ROOT)) for f in (ROOT / folder).rglob("*") if f.is_file()} <= files
        assert not any(f.startswith(("ether/exhibits", "ether/analysis", "ether/paper")) for f in files)
    for id_, exhibit in exhibits_of(scale).items():
        files = declared[f"{exhibit.kind} {id_}"]
        assert set(sources.closure("ether.exhibits.report", f"ether.exhibits.{exhibit.module}")) <= files
        assert {f"results/smoke/metrics/{name}.parquet" for name in exhibit.experiments} <= files


# One file of each kind, what it makes outdated (a rule and an experiment or exhibit) and what it leaves as it is.
EDITS = {
    "ether/kernels.py": ("experiment glue", None),
    "ether/methods/boft.py": ("experiment glue", None),
    "ether/methods/layer_sets.py": ("experiment_with_samples subject", None),
    "ether/foundation/image_judges.py": ("experiment_with_samples subject", "experiment glue"),
    "ether/foundation/weights/language-model/model.safetensors": ("experiment instruct", "experiment glue"),
    "workflow/tasks/facts/mmlu.yaml": ("experiment instruct", "experiment glue"),
    "ether/analysis/claims.py": ("table table2", "experiment glue"),
    "ether/paper/claims/subject.py": ("table table2", "table table4"),
    "ether/paper/published.yaml": ("table table4", "experiment glue"),
    "ether/exhibits/glue.py": ("table table4", "table table2"),
    "notebooks/glue.ipynb": (None, "experiment glue"),
}


@pytest.mark.dag(minutes=2)
def test_editing_a_file_makes_outdated_what_depends_on_it_and_nothing_else(tmp_path):
    folder = project(tmp_path / "clone")
    said = snakemake(folder, "--dry-run", "all", "--config", "scale=smoke")
    past = time.time() - 3600
    for file in folder.rglob("*"):
        os.utime(file, (past, past))
    for line in said.splitlines():  # as if everything had been made: Snakemake looks at names and times
        if line.strip().startswith("output:"):
            for name in line.split("output: ")[1].split(", "):
                file = folder / name
                if "/samples/" in name:
                    file.mkdir(parents=True)
                else:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
                os.utime(file, (past + 60, past + 60))
    assert "Nothing to be done" in snakemake(folder, "--dry-run", "all", "--config", "scale=smoke", "--rerun-triggers", "mtime")
    for name, (outdated, kept) in EDITS.items():
        file = folder / name
        os.utime(file, None)
        again = inputs(snakemake(folder, "--dry-run", "all", "--config", "scale=smoke", "--rerun-triggers", "mtime"))
        assert outdated is None or outdated in again, name
        assert kept is None or kept not in again, name
        os.utime(file, (past, past))


@pytest.mark.dag(minutes=4)
def test_runs_again_only_what_must_and_a_new_method_is_one_file(tmp_path):
    folder = project(tmp_path / "clone")
    first = snakemake(folder, "table4", "--config", "scale=tiny")
    assert {"experiment:lora", "experiment:ether", "collect", "table"} <= set(ran(first))
    assert "results/tiny/tables/table4.parquet" in first and "results/tiny/notebooks/table4.ipynb" in first
    metrics = pd.read_parquet(folder / "results/tiny/metrics/glue.parquet")

    assert "Nothing to be done" in snakemake(folder, "table4", "--config", "scale=tiny")

    (folder / "results/tiny/metrics/glue.parquet").unlink()
    said = snakemake(folder, "table4", "--verbose", "--config", "scale=tiny")
    assert ran(said) == ["collect", "table", "table4"]
    assert f"'_job_count': {sys.maxsize}" in said and "'_job_count': 100" not in said  # no limit whose timers multiply

    (folder / "results/tiny/runs/glue/lora/metrics.parquet").unlink()
    assert [r for r in ran(snakemake(folder, "table4", "--config", "scale=tiny")) if "experiment" in r] == ["experiment:lora"]
    again = pd.read_parquet(folder / "results/tiny/metrics/glue.parquet")
    pd.testing.assert_frame_equal(metrics, again, check_exact=True)

    (folder / "workflow/methods/hra.yaml").write_text(
        "label: HRA r=2\nadapt: {kind: peft, type: HRA, config: {r: 2}}\ntraining: {glue: {default: {learning_rate: 1.0e-3}}}\n"
    )
    said = snakemake(folder, "table4", "--config", "scale=tiny", "methods=lora,ether,hra")
    assert [r for r in ran(said) if "experiment" in r] == ["experiment:hra"]
    table = pd.read_parquet(folder / "results/tiny/tables/table4.parquet")
    row = table[table["method"] == "hra"].set_index("column")
    assert row.loc["RTE", "n"] == 1 and row.loc["#params", "ours"] > 2 * 82_944


@pytest.mark.dag(minutes=5)
def test_a_killed_workflow_goes_on_and_ends_with_the_same_metrics_and_their_replay_with_the_same_tables(tmp_path):
    whole, cut = project(tmp_path / "whole"), project(tmp_path / "cut")
    target = ("table4", "table7", "--config", "scale=tiny", "seeds=0,1")
    # The terminal shows runs with their scores, and no list of paths.
    output = snakemake(whole, *target, progress="on")
    assert "\x1b[" not in output and "\r" not in output  # not a terminal: plain lines
    assert len([line for line in output.splitlines() if line.startswith("[glue ") and " LoRA r=8, stsb, seed 0: " in line]) == 1
    assert any(line.startswith("[glue 8/8] ") for line in output.splitlines())
    assert "ether/kernels.py" not in output and "reason:" not in output
    assert "table4" in output and "results/tiny/tables/table4.parquet" in output

    process = subprocess.Popen(
        command(*target), cwd=cut, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list((cut / "results").glob("tiny/work/glue/*/*/runs.parquet")):  # one run of a job is finished
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "results/tiny/tables/table4.parquet").exists()

    snakemake(cut, *target)
    for name in ("metrics/glue.parquet", "tables/table4.parquet"):
        first, second = (pd.read_parquet(folder / "results/tiny" / name) for folder in (whole, cut))
        pd.testing.assert_frame_equal(first, second, check_exact=True)

    # `--config replay=FOLDER`: the tables from what a run left, without training, equal to those that the run made.
    stored = whole / "stored"
    shutil.copytree(whole / "results/tiny/metrics", stored / "metrics")
    made = {f: f.read_bytes() for f in sorted((whole / "results/tiny/tables").glob("*")) if f.suffix in (".csv", ".md")}
    shutil.rmtree(whole / "results")
    output = snakemake(whole, *target, "replay=stored")
    assert not any(rule.startswith(("experiment", "collect", "check", "world")) for rule in ran(output))
    assert made and all(file.read_bytes() == content for file, content in made.items())


def test_a_workflow_killed_in_its_check_goes_on_to_the_end(tmp_path):
    """Snakemake's mark of an unfinished job beside a file that is there: the check is made again, and then everything else."""
    folder = project(tmp_path / "clone")
    checked = "results/tiny/checked/glue.json"
    for line in snakemake(folder, "--dry-run", checked, "--config", "scale=tiny").splitlines():
        if line.strip().startswith("output:"):  # of the data, and of the check
            for name in line.split("output: ")[1].split(", "):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
    mark = folder / ".snakemake/incomplete" / base64.b64encode(checked.encode()).decode()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    said = ran(snakemake(folder, "--dry-run", "table4", "--config", "scale=tiny"))
    assert "check" in said and "experiment:lora" in said and "table" in said


@pytest.mark.dag(minutes=8)
def test_smoke_scale_for_real(tmp_path):
    folder = project(tmp_path / "clone")
    share_counts(folder)
    snakemake(folder, "--cores", "2", "all", "--config", "scale=smoke")
    table = pd.read_parquet(folder / "results/smoke/tables/table4.parquet")
    assert list(table.columns) == CELL_COLUMNS
    assert set(table["method"]) == set(config.chosen_methods(config.load("smoke"), "glue")) and table["column"].nunique() == 11
    scores = table[table["column"] != "#params"]
    assert scores["ours"].notna().all() and (scores["n"] == 2).all() and not scores["comparable"].any()
    steps = {
        "glue": {4},
        "instruct": {0, 4},
        "instruct_rates": {0, 2},
        "subject": {0, 2},
        "perturbation": {1, 2},  # distances
    }
    assert set(config.load("smoke").experiments()) == set(config.experiments())
    for experiment in config.load("smoke").experiments():
        runs = pd.read_parquet(folder / f"results/smoke/metrics/{experiment}.runs.parquet")
        assert len(runs) == len(config.runs(config.load("smoke"), experiment))
        assert (runs["status"] == "finished").all() and set(runs["steps"]) == steps.get(experiment, {2})
        assert runs["run_id"].is_unique
    for exhibit in exhibits_of(config.load("smoke")).values():
        for file in exhibit.files(Path("results/smoke")):
            assert (folder / file).is_file(), file
        if exhibit.experiments:
            judged = pd.read_parquet(folder / exhibit.files(Path("results/smoke"))[-1])
            assert set(judged["verdict"]) <= {"reproduced", "contradicted", "undecided", "not testable here"}
    notebooks = sorted((folder / "results/smoke/notebooks").rglob("*.ipynb"))
    assert {"table2", "table5", "table10", "figure3", "figure8", "figure_instruct_rates"} <= {file.stem for file in notebooks}
    for file in notebooks:
        book = nbformat.read(file, as_version=4)
        outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
        assert outputs and not any(o.output_type == "error" for o in outputs)
    made = {file.stem for file in (folder / "results/smoke/figures").glob("figure*.png")}
    assert made == {id_ for id_, exhibit in exhibits_of(config.load("smoke")).items() if exhibit.kind == "figure"}
    collected = pd.read_parquet(folder / "results/smoke/claims.parquet")
    assert len(collected) >= 50 and set(collected["exhibit"]) <= set(exhibits_of(config.load("smoke")))
    assert "Nothing to be done" in snakemake(folder, "all", "--config", "scale=smoke")

    snakemake(folder, "report", "--config", "scale=smoke")
    assert "At scale smoke, " in (folder / "results/smoke/report.html").read_text()
    assert (folder / "results/smoke/site/table4.html").is_file() and (folder / "results/smoke/site/runs/glue").is_dir()
    assert "is not known" in snakemake(folder, "publish", "--config", "scale=smoke", expect=1)  # a copy without git
    kept = [run for run in (folder / "results/smoke/work/glue/all").iterdir() if run.is_dir()]
    assert len(kept) == len(config.runs(config.load("smoke"), "glue"))
    assert all({file.name for file in run.iterdir()} == {"metrics.parquet", "runs.parquet"} for run in kept)  # no checkpoints


FEWER = """
over: paper-dry
description: a rehearsal with fewer methods and tasks
glue: {jobs: [], tasks: [rte], methods: [lora, ether-plus]}
glue_rates: {methods: [ether-plus], learning_rates: [1.0e-2]}
instruct: {methods: [ether-n32]}  # with the smallest batch
instruct_rates: {methods: [ether-n32], learning_rates: [1.0e-2]}
subject: {jobs: [], tasks: [teapot], methods: [oft-n4, ether-plus]}
subject_factors: {methods: [ether-plus], rate_factors: [1]}
subject_rates: {methods: [ether], learning_rates: [1.0e-2]}
perturbation: {methods: [ether]}
control: {jobs: [], methods: [encoder-only, ether-plus]}
control_hints: {methods: [ether]}
control_rates: {methods: [ether], learning_rates: [1.0e-2]}
control_lora: {search: {draws: 1}}
vtab: {tasks: [svhn, snorb_elevation], methods: [ether-plus]}
vtab_rates: {tasks: [eurosat], methods: [ether-plus], learning_rates: [1.0e-2]}
"""


@pytest.mark.dag(minutes=10)
def test_every_experiment_of_the_papers_scale_reaches_its_tables(tmp_path):
    """With models of the real depth, accumulation and checkpointing; killed once after a checkpoint."""
    from ether.standins import paper

    mirror = tmp_path / "mirror"
    paper.write_mirror(mirror)
    folder = project(tmp_path / "clone")
    share_counts(folder)
    (folder / "workflow/scales/fewer.yaml").write_text(FEWER)
    settings = ("--config", "scale=fewer", f"mirror={mirror}")
    process = subprocess.Popen(
        command("table4", *settings), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("results/fewer/work/glue/*/*/checkpoints/checkpoint-2/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    snakemake(folder, "--cores", "2", "tables", "figures", *settings)

    scale = config.load("paper-dry")
    for experiment in scale.experiments():
        runs = pd.read_parquet(folder / f"results/fewer/metrics/{experiment}.runs.parquet")
        assert (runs["status"] == "finished").all(), experiment
        limits = [json.loads(text) for text in runs["limits"]]
        assert experiment == "perturbation" or all(limit["checkpointing"] for limit in limits), experiment
        if experiment in ("glue", "instruct", "control", "vtab"):
            assert all(limit["micro_batch"] < batch for limit, batch in zip(limits, runs["batch_size"], strict=True)), experiment
    for exhibit in exhibits_of(scale).values():
        for file in exhibit.files(Path("results/fewer")):
            assert (folder / file).is_file(), file
