"""Making an exhibit, its files and claims, and the cells that all notebooks share."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from made_up_runs import Run, counted, store

from ether import config
from ether.analysis import claims
from ether.errors import ConfigurationError, MissingResourceError
from ether.exhibits import glue, instruct, job_report, report, subject
from ether.notebook import parameters_of

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = ("fluent_teapot", "fluent_penguin", "fluent_mushroom")


@pytest.fixture(autouse=True)
def without_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (glue, instruct, subject):
        monkeypatch.setattr(module, "parameter_cells", counted)


def subject_runs(ahead: float = 0.1) -> list[Run]:
    """ETHER+ is ahead of one-sided ETHER+ in DINO and CLIP-I, by a little more or less for each subject and seed."""
    return [
        Run(
            method,
            {
                ("validation", metric): 0.5 + (method == "ether-plus") * (ahead + number / 1000 + seed / 10_000)
                for metric in ("dino", "clip_i")
            },
            task,
            seed,
            columns={"wall_seconds": 60.0, "peak_memory_bytes": 2**20, "trainable_parameters": 7, "steps": 120},
        )
        for method in ("ether-plus", "ether-plus-one-sided")
        for number, task in enumerate(SUBJECTS)
        for seed in (0, 1)
    ]


def table11(ahead: float = 0.1, overrides: dict[str, Any] | None = None) -> report.Report:
    store(config.load("small").results, "subject", subject_runs(ahead))
    return report.make("table11", "small", overrides or {})


def text_of(cell: Any) -> str:
    return str(cell.data)


# --- making ------------------------------------------------------------------------------------------------------


def test_making_a_table_writes_its_files_and_claims() -> None:
    made = table11()
    folder = Path("results/small/tables")
    assert sorted(file.name for file in folder.iterdir()) == [
        "table11.claims.parquet", "table11.csv", "table11.md", "table11.parquet",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "table11.parquet"), made.data)
    assert list(pd.read_csv(folder / "table11.csv").columns) == list(made.data.columns)
    markdown = (folder / "table11.md").read_text()
    assert markdown.startswith("# Table 11: One-sided against two-sided ETHER+")
    assert "| ETHER+ | ours | 1,000,000 | **0.601** [" in markdown and "| | paper | 0.4M | 0.666 | 0.800 |" in markdown
    assert "n = 3 subjects" in markdown and "Protocol: " in markdown and "for orientation only" in markdown


def test_making_a_figure_writes_its_files_and_an_empty_frame_of_claims_where_there_are_none() -> None:
    store(config.load("small").results, "subject", subject_runs())
    made = report.make("figure9", "small")
    folder = Path("results/small/figures")
    assert sorted(file.suffix for file in folder.iterdir()) == [".parquet", ".parquet", ".pdf", ".png"]
    written = pd.read_parquet(folder / "figure9.claims.parquet")
    assert written.empty and list(written.columns) == claims.COLUMNS
    assert made.figure is not None and b"CreationDate" not in (folder / "figure9.pdf").read_bytes()
    first = (folder / "figure9.pdf").read_bytes()
    report.make("figure9", "small")
    assert (folder / "figure9.pdf").read_bytes() == first  # reproducible


@pytest.mark.parametrize(("ahead", "verdict"), [(0.1, "reproduced"), (-0.1, "contradicted"), (-0.001, "undecided")])
def test_claims_are_judged_from_what_the_runs_measured(ahead: float, verdict: str) -> None:
    made = table11(ahead)
    assert made.judged.set_index("id").loc["subject-two-sides-better", "verdict"] == verdict
    row = made.judged.iloc[0]
    assert row["n"] == 3 and row["unit"] == "task" and row["paper"].startswith("holds: 2 of 2")
    text = text_of(made.claims())
    assert verdict in text and "n = 3" in text and "Two-sided ETHER+ does better than one-sided." in text
    assert ("with the same mean and spread it would be" in text) == (verdict == "undecided")
    assert "DINO" in row["evidence"] and "ETHER+ (one-sided)" in row["evidence"]  # labels and names of columns


def test_without_claims_the_cell_says_so() -> None:
    store(config.load("small").results, "subject", subject_runs())
    assert "No claim" in text_of(report.make("figure9", "small").claims())


def test_a_replay_has_the_runs_that_config_names_and_none_of_another_scale(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    store(stored, "subject", subject_runs())
    runs = report.make("table11", "small", {"replay": str(stored), "seeds": "0", "methods": "ether-plus"}).runs
    assert set(runs["method"]) == {"ether-plus"} and set(runs["seed"]) == {0}
    with pytest.raises(ConfigurationError, match="runs of subject at scale small, and this is scale 'smoke'"):
        report.make("table11", "smoke", {"replay": str(stored)})
    with pytest.raises(
        ConfigurationError, match="table11 needs the experiment 'subject', which has no run with --config methods=bitfit"
    ):
        report.make("table11", "small", {"replay": str(stored), "methods": "bitfit"})
    with pytest.raises(ConfigurationError, match="give at least one name"):
        config.load("small", {"methods": ","})


def test_a_replay_reads_its_folder_and_writes_to_the_scales_results(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    store(stored, "subject", subject_runs())
    made = report.make("table11", "small", {"replay": str(stored)})
    assert len(made.runs) == 12 and f"Read from `{stored}`" in text_of(made.banner())
    assert Path("results/small/tables/table11.md").is_file() and not Path("results/small/metrics").exists()


def test_missing_runs_an_unknown_exhibit_and_a_missing_function_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingResourceError, match=r"subject\.runs\.parquet is missing: run"):
        report.make("table11", "small")
    with pytest.raises(ConfigurationError, match="table99"):
        report.make("table99", "small")
    monkeypatch.delattr(subject, "table11")
    with pytest.raises(ConfigurationError, match=r"def table11\(scale\)"):
        report.make("table11", "small")


def test_claims_over_experiments_with_two_units_need_the_unit_of_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    known = config.exhibits()
    entry = dataclasses.replace(known["table11"], experiments=("subject", "glue"))
    monkeypatch.setattr(config, "exhibits", lambda: known | {"table11": entry})
    rows = [
        {"method": method, "metric": metric, "task": task, "seed": 0, "value": value}
        for method, value in (("ether-plus", 0.6), ("ether-plus-one-sided", 0.5))
        for metric in ("dino", "clip_i")
        for task in ("a", "b")
    ]
    evidence = pd.DataFrame(rows)
    monkeypatch.setattr(subject, "evidence", lambda *_: evidence)
    with pytest.raises(ConfigurationError, match="seed and task, so `evidence` .* needs a column `unit`"):
        report._judged(entry, config.load("small"), subject)
    evidence = evidence.assign(unit="task")
    assert report._judged(entry, config.load("small"), subject)[["n", "unit"]].to_numpy().tolist() == [[2, "task"]]


# --- cells -------------------------------------------------------------------------------------------------------


def test_the_banner_names_scale_seeds_machine_and_runs_that_did_not_finish() -> None:
    runs = subject_runs()
    runs[0] = dataclasses.replace(runs[0], status="diverged", reason="loss is nan")
    store(config.load("small").results, "subject", runs)
    banner = text_of(report.make("table11", "small").banner())
    assert "Scale `small`" in banner and "12 runs, seeds 0, 1; 12.0 minutes of runs in all on a machine" in banner
    assert "1 diverged" in banner and "The paper's numbers are greyed: other models" in banner


def test_hyperparameters_are_values_or_ranges() -> None:
    made = table11()
    text = made.hyperparameters()
    rate = config.method("ether-plus")["training"]["subject"]["small"]["learning_rate"]
    assert text.loc["ETHER+", "learning_rate"] == f"{rate:g}" and text.loc["ETHER+", "max_steps"] == "300"
    assert "epochs" not in text  # no method has any
    entry = config.exhibits()["figure4"]
    rates = report.Report(entry, made.settings, types.ModuleType("none"), pd.DataFrame(), None, pd.DataFrame()).hyperparameters()
    assert rates.loc["ETHER", "learning_rate"] == "0.001 to 1"


def test_cost_is_in_the_order_of_the_table_and_in_megabytes() -> None:
    cost = table11().cost()
    assert list(cost.index) == ["ETHER+ (one-sided)", "ETHER+"]
    assert cost.loc["ETHER+", "seconds_a_run"] == 60 and cost.loc["ETHER+", "peak_memory_MiB"] == 1
    assert cost.loc["ETHER+", "minutes_in_all"] == 6 and cost.loc["ETHER+", "runs"] == 6


def test_learning_rates_show_the_grid_that_was_run_here() -> None:
    named = next(r.hyperparameters["learning_rate"] for r in config.runs(config.load("small"), "subject") if r.method == "ether")
    runs = [
        Run("ether", {("selection", "score"): value}, "fluent_crab", rate=rate)
        for rate, value in ((named, 0.25), (10 * named, 0.125))
    ]
    store(config.load("small").results, "subject_rates", runs)
    text = text_of(table11().learning_rates())
    assert "0.25" in text and "0.125" in text and f"{named:g}" in text and "ETHER" in text


def test_a_part_of_a_grid_is_called_that() -> None:
    scale = config.load("small", {"complete": True})
    section, nothing = scale.experiment("glue_rates"), pd.DataFrame()
    made = report.Report(config.exhibits()["table4"], scale, glue, nothing, None, nothing)
    whole = [
        Run("ether", {("validation", "score"): 1.0}, task, seed, rate)
        for task in section["tasks"]
        for seed in section["seeds"]
        for rate in section["learning_rates"]
    ]
    left_out = {"rate": 3e-3, "task": "qnli", "seed": 2}
    parts = [[run for run in whole if getattr(run, key) != value] for key, value in left_out.items()]
    for runs, said in (*((part, True) for part in parts), (whole, False)):
        store(scale.results, "glue_rates", runs)
        assert ("complete one (learning rates: 7, tasks: 8, seeds: 3)" in text_of(made.learning_rates())) == said


def test_learning_rates_without_a_grid_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table11()
    monkeypatch.setattr("ether.analysis.runs.published_metrics", lambda scale: Path("nowhere"))
    assert "subject_rates.runs.parquet is missing" in text_of(made.learning_rates())


@pytest.mark.parametrize("experiment", ["glue_rates", "instruct_rates", "subject_rates"])
def test_the_committed_grid_is_read_where_none_was_run(experiment: str) -> None:
    from ether.analysis import rates

    committed = config.ROOT / f"results/published/small/metrics/{experiment}.runs.parquet"
    if not committed.is_file() or "learning_rate" not in pd.read_parquet(committed):
        pytest.skip("no grid is committed in this copy")
    module = {"glue_rates": glue, "instruct_rates": instruct, "subject_rates": subject}[experiment]
    choice = rates.choose(module.rate_grid(config.load("small")))
    assert len(choice) >= 5 and (choice["best_rate"] == choice["configured_rate"]).all()


def test_counts_and_pictures() -> None:
    made = table11()
    counts = text_of(made.parameter_counts())
    assert "1,000,000" in counts and "0.4M" in counts
    with pytest.raises(ConfigurationError, match="is a table"):
        made.picture()
    from ether.exhibits.style import new_figure

    assert made.picture(new_figure(2, 1)).data[:8] == b"\x89PNG\r\n\x1a\n"


# --- notebooks of jobs -------------------------------------------------------------------------------------------


@pytest.fixture
def job() -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = [
        Run(
            "ether",
            {
                ("validation", "score"): {1: 1.0, 2: 10 * rate + seed},
                ("validation", "loss"): {2: 0.5},
                ("train", "loss"): {1: 2.0},
            },
            task,
            seed,
            rate,
            columns={"versions": json.dumps({"torch": "2.0"}), "git_commit": "0123456789abcdef+", "data": task},
        )
        for task in ("rte", "mrpc")
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    store(Path("job"), "glue", runs)
    return pd.read_parquet("job/metrics/glue.runs.parquet"), pd.read_parquet("job/metrics/glue.parquet")


def test_measured_values_have_a_row_a_run_and_only_the_keys_that_differ(job: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    wide = job_report.measured(*job, "validation", ("loss",))
    assert wide.index.names == ["label", "task", "learning_rate", "seed"] and list(wide.columns) == ["loss", "score"]
    assert wide.loc[("ETHER", "rte", 0.2, 1), "score"] == 3  # the last step
    tasks = job_report.measured(*job, "validation", columns="task")
    assert list(tasks.columns) == ["rte", "mrpc"] and tasks.loc[("ETHER", 0.1, 0), "mrpc"] == 1
    steps = job_report.measured(*job, "validation", by_step=True)
    assert steps.loc[("ETHER", "rte", 0.2, 1, 1), "score"] == 1


def test_unfinished_runs_losses_and_origin(job: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, metrics = job
    assert text_of(job_report.unfinished(runs)) == "Every run finished."
    bad = runs.assign(status=["failed", *runs["status"][1:]], reason=["out of memory", *runs["reason"][1:]])
    found = job_report.unfinished(bad)
    assert isinstance(found, pd.DataFrame) and found["reason"].tolist() == ["out of memory"]
    assert job_report.losses(runs, metrics).data[:4] == b"\x89PNG"
    assert "No training loss" in text_of(job_report.losses(runs, metrics[metrics["split"] != "train"]))
    origin = text_of(job_report.origin(runs))
    assert "torch 2.0" in origin and "0123456789ab+" in origin and "mrpc, rte" in origin


# --- notebooks ---------------------------------------------------------------------------------------------------

NOTEBOOKS = {
    **{entry.notebook: {"scale", "overrides"} for entry in config.exhibits().values()},
    **{entry.notebook: {"scale", "experiment", "job", "overrides"} for entry in config.experiments().values()},
}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_a_source_with_a_title_parameters_and_stable_cells(notebook: str) -> None:
    file = ROOT / notebook
    content = nbformat.read(file, as_version=4)
    nbformat.validate(content)
    assert parameters_of(file) == NOTEBOOKS[notebook]
    assert content.cells[0].cell_type == "markdown" and content.cells[0].source.startswith("# ")
    assert [cell.id for cell in content.cells] == [f"{file.stem.replace('_', '-')}-{i:02d}" for i in range(len(content.cells))]
    for cell in content.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            compile(cell.source, notebook, "exec")
    if Path(notebook).stem in config.exhibits():
        assert f'report.make("{Path(notebook).stem}", scale, overrides)' in "\n".join(cell.source for cell in content.cells)


def test_exhibits_import_no_heavy_library() -> None:
    modules = sorted({entry.module for entry in config.exhibits().values()})
    heavy = ("torch", "transformers", "peft", "diffusers", "datasets", "sklearn", "scipy.stats", "matplotlib", "IPython")
    code = (
        f"import sys, importlib; [importlib.import_module('ether.exhibits.' + m) for m in {['report', *modules]!r}];"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "[]"
