"""The workflow itself, in a copy of the project: dry runs of every target, and the smoke scale for real."""

from __future__ import annotations

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

from ether import config

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


def command(*arguments: str) -> list[str]:
    cores = () if "--cores" in arguments else ("--cores", "1")
    return [sys.executable, "-m", "snakemake", *cores, *arguments]


def snakemake(folder: Path, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=3600)
    said = done.stdout + done.stderr
    assert done.returncode == expect, said[-6000:]
    return said


def ran(said: str) -> list[str]:
    """Names of the rules that ran, with the job's name where it has one."""
    names = []
    for line in said.splitlines():
        if line.startswith(("rule ", "localrule ")):
            names.append(line.split()[1].rstrip(":"))
        elif line.strip().startswith("wildcards:") and "job=" in line:
            names[-1] += ":" + line.split("job=")[1]
    return names


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return project(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize("scale", config.scale_names())
def test_dry_run_of_every_target(scale, clone):
    said = snakemake(clone, "--dry-run", "table4", "tables", "figures", "all", "foundation", "--config", f"scale={scale}")
    count = sum(len(config.jobs(config.load(scale), name)) for name in config.EXPERIMENTS)
    assert f"experiment {count:>9}".split() in [line.split() for line in said.splitlines()]


def test_rebuilding_the_foundation_is_part_of_the_graph_when_asked(clone):
    said = snakemake(clone, "--dry-run", "table4", "--config", "scale=tiny", "foundation=rebuild")
    assert "foundation_model" in ran(said)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scale=smal"], "Unknown scale 'smal'"),
        (["scale=smoke", "methods=ethr"], "Did you mean 'ether'"),
        (["scale=smoke", "taskz=rte"], "Did you mean 'tasks'"),
        (["scale=laptop", "mirror=nowhere"], "mirror folder nowhere does not exist"),
    ],
)
def test_wrong_config_ends_before_the_first_job_in_one_paragraph(clone, arguments, expected):
    said = snakemake(clone, "table4", "--config", *arguments, expect=1)
    assert expected in said and "Traceback" not in said and not ran(said)


def test_a_wrong_method_file_stops_the_workflow_before_training(tmp_path):
    folder = project(tmp_path / "clone")
    file = folder / "workflow/methods/ether.yaml"
    file.write_text(file.read_text().replace("n_blocks: 1", "n_blocks: 7"))
    said = snakemake(folder, "table4", "--config", "scale=tiny", expect=1)
    assert "7" in said and "blocks" in said and "Traceback" not in said
    assert not any(rule.startswith("experiment") for rule in ran(said))


@pytest.mark.dag
def test_runs_again_only_what_must_and_a_new_method_is_one_file(tmp_path):
    folder = project(tmp_path / "clone")
    first = snakemake(folder, "table4", "--config", "scale=tiny")
    assert {"experiment:lora", "experiment:ether", "collect", "table"} <= set(ran(first))
    assert "results/tiny/tables/table4.parquet" in first and "results/tiny/notebooks/table4.ipynb" in first
    metrics = pd.read_parquet(folder / "results/tiny/metrics/glue.parquet")

    assert "Nothing to be done" in snakemake(folder, "table4", "--config", "scale=tiny")

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
    row = table[table["method"] == "HRA r=2"].set_index("column")
    assert row.loc["RTE", "seeds"] == 1 and row.loc["#params", "ours"] > 2 * 82_944


@pytest.mark.dag
def test_a_killed_workflow_goes_on_and_ends_with_the_same_metrics(tmp_path):
    whole, cut = project(tmp_path / "whole"), project(tmp_path / "cut")
    snakemake(whole, "table4", "--config", "scale=tiny", "seeds=0,1")

    process = subprocess.Popen(
        command("table4", "--config", "scale=tiny", "seeds=0,1"), cwd=cut, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((cut / "results").glob("tiny/work/glue/*/*/runs.parquet")):  # one run of a job is finished
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "results/tiny/tables/table4.parquet").exists()

    snakemake(cut, "table4", "--config", "scale=tiny", "seeds=0,1")
    for name in ("metrics/glue.parquet", "tables/table4.parquet"):
        first, second = (pd.read_parquet(folder / "results/tiny" / name) for folder in (whole, cut))
        pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.dag
def test_smoke_scale_for_real(tmp_path):
    folder = project(tmp_path / "clone")
    snakemake(folder, "--cores", "2", "all", "--config", "scale=smoke")
    table = pd.read_parquet(folder / "results/smoke/tables/table4.parquet")
    assert list(table.columns) == ["method", "column", "ours", "low", "high", "seeds", "paper", "comparable", "note"]
    assert (
        table["method"].nunique() == len(config.chosen_methods(config.load("smoke"), "glue")) and table["column"].nunique() == 10
    )
    scores = table[table["column"] != "#params"]
    assert scores["ours"].notna().all() and (scores["seeds"] == 2).all() and not scores["comparable"].any()
    steps = {
        "glue": {4},
        "instruct": {0, 4},
        "instruct_rates": {0, 2},
        "subject": {2},
        "perturbation": {1, 2},  # distances
    }
    for experiment in config.EXPERIMENTS:
        runs = pd.read_parquet(folder / f"results/smoke/metrics/{experiment}.runs.parquet")
        assert len(runs) == len(config.runs(config.load("smoke"), experiment))
        assert (runs["status"] == "finished").all() and set(runs["steps"]) == steps.get(experiment, {2})
        assert runs["run_id"].is_unique
    notebooks = sorted((folder / "results/smoke/notebooks").rglob("*.ipynb"))
    assert {"table2", "table5", "table10", "figure3", "figure8", "figure_instruct_rates"} <= {file.stem for file in notebooks}
    for file in notebooks:
        book = nbformat.read(file, as_version=4)
        outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
        assert outputs and not any(o.output_type == "error" for o in outputs)
    figures = sorted((folder / "results/smoke/figures").glob("figure*.png"))
    assert len(figures) == 8 and all(file.with_suffix(".pdf").is_file() for file in figures)
    assert not (folder / "results/smoke/work/glue/all").exists() or not any(
        p.is_dir() for p in (folder / "results/smoke/work/glue/all").iterdir()
    )
