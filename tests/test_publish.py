"""Publishing: what is copied, what is left as it is, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from made_up_runs import Run, counted, save_images, store

from ether import config, publish
from ether.errors import ConfigurationError, MissingResourceError
from ether.exhibits import report, subject, verdicts

SMALL, PUBLISHED = Path("results/small"), Path("results/published/small")
PROMPTS = {"a vase in the snow": "selection", "a vase at the beach": "report", "a red vase": "report", "a blue vase": "report"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def runs(commit: str = COMMIT) -> list[Run]:
    columns = {"git_commit": commit, "versions": '{"torch": "2.0"}', "started": "2026-01-02T03:04:05"}
    return [
        Run(
            method,
            {("validation", "dino"): 0.5 + number / 10, ("validation", "clip_i"): 0.6},
            task,
            columns=columns,
        )
        for method in ("ether", "ether-plus", "ether-plus-one-sided")
        for number, task in enumerate(config.load("small").experiment("subject")["tasks"][:3])
    ]


def notebook(file: Path, error: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    if error:
        book.cells[0].outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]
    nbformat.write(book, file)


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of subject-driven generation, Table 11, Figure 9 and the claims, as the workflow leaves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subject, "parameter_cells", counted)
    make(runs())


def make(of_runs: list[Run]) -> None:
    store(SMALL, "subject", of_runs)
    for run in of_runs:
        save_images(SMALL / "samples/subject" / run.method / run.run_id, PROMPTS)
    for id_ in ("table11", "figure9"):
        report.make(id_, "small")
        notebook(SMALL / f"notebooks/{id_}.ipynb")
    verdicts.make("small")
    notebook(SMALL / "notebooks/claims.ipynb")
    for method in ("ether", "ether-plus", "ether-plus-one-sided"):
        notebook(SMALL / f"notebooks/runs/subject/{method}.ipynb")


def published() -> set[str]:
    return {str(file.relative_to(PUBLISHED)) for file in PUBLISHED.rglob("*") if file.is_file()}


def test_everything_that_was_made_is_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main(["small"]) == 0
    found = published()
    for part in ("tables/table11", "figures/figure9"):
        assert {f"{part}.parquet", f"{part}.claims.parquet"} <= found
    assert {
        "metrics/subject.parquet", "metrics/subject.runs.parquet", "tables/table11.md", "tables/table11.csv",
        "figures/figure9.png", "figures/figure9.pdf", "claims.parquet", "claims.md", "manifest.json",
        "notebooks/table11.ipynb", "notebooks/figure9.ipynb", "notebooks/claims.ipynb", "notebooks/runs/subject/ether.ipynb",
    } <= found  # fmt: skip
    for name in ("tables/table11.md", "figures/figure9.png", "metrics/subject.parquet"):
        assert (PUBLISHED / name).read_bytes() == (SMALL / name).read_bytes()
    assert "table11" in capsys.readouterr().out


def test_the_images_that_figures_open_are_copied_and_no_others() -> None:
    publish.publish("small")
    images = {name for name in published() if name.startswith("samples/") and name.endswith(".png")}
    of_run = {Path(name).name for name in images if runs()[0].run_id in name}
    assert of_run == {"01-0.png", "02-0.png"}  # two prompts of the half that no selection used, one image of each
    every = list((SMALL / "samples").rglob("*.png"))
    assert len(images) == 2 * 9 < len(every)
    assert sum(name.endswith("samples.json") for name in published()) == 9


def test_what_is_published_can_be_shown_again() -> None:
    publish.publish("small")
    before = pd.read_parquet(SMALL / "figures/figure9.parquet")
    for folder in (SMALL / "metrics", SMALL / "samples"):
        folder.rename(folder.with_name(f"gone-{folder.name}"))
    made = report.make("figure9", "small", {"replay": str(PUBLISHED)})
    assert len(made.data) == len(before)
    assert made.figure is not None and not any(t.get_text() == "no image" for a in made.figure.axes[1:4] for t in a.texts)


def test_the_manifest_has_commits_versions_machines_and_dates() -> None:
    publish.publish("small")
    manifest = json.loads((PUBLISHED / "manifest.json").read_text())
    assert manifest["scale"] == "small"
    assert manifest["experiments"]["subject"] == {
        "runs": 9, "finished": 9, "seeds": [0], "commits": [COMMIT], "uncommitted": "", "devices": ["a machine"],
        "versions": [{"torch": "2.0"}], "first_started": "2026-01-02T03:04:05", "last_started": "2026-01-02T03:04:05",
    }  # fmt: skip


@pytest.mark.parametrize("commit", [f"{COMMIT}+", ""])
def test_runs_of_a_dirty_tree_are_refused_unless_allowed(commit: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(
        [
            dataclasses.replace(run, columns=run.columns | {"git_commit": commit}) if run.method == "ether" else run
            for run in runs()
        ]
    )
    assert publish.main(["small"]) == 1
    said = capsys.readouterr().err
    assert "subject: 3 of 9 runs (ether)" in said and "--allow-dirty" in said and "Traceback" not in said
    assert not PUBLISHED.exists()
    assert publish.main(["small", "--allow-dirty"]) == 0
    manifest = json.loads((PUBLISHED / "manifest.json").read_text())
    assert manifest["experiments"]["subject"]["uncommitted"] == "subject: 3 of 9 runs (ether)"


def test_what_is_not_here_stays_as_it_was_published() -> None:
    store(PUBLISHED, "glue", [Run("ether", {("validation", "score"): 1.0}, "rte", columns={"git_commit": COMMIT})])
    kept = PUBLISHED / "notebooks/runs/glue/ether.ipynb", PUBLISHED / "samples/perturbation/job/run/00-0.png"
    for file in kept:
        notebook(file)
    claims = pd.read_parquet(SMALL / "tables/table11.claims.parquet").assign(id="of-table-4", exhibit="table4")
    for name, frame in (("tables/table4.claims.parquet", claims), ("tables/table4.parquet", claims)):
        (PUBLISHED / name).parent.mkdir(exist_ok=True)
        frame.to_parquet(PUBLISHED / name)
    publish.publish("small")
    assert all(file.is_file() for file in kept) and (PUBLISHED / "metrics/glue.parquet").is_file()
    assert set(json.loads((PUBLISHED / "manifest.json").read_text())["experiments"]) == {"glue", "subject"}
    assert set(pd.read_parquet(PUBLISHED / "claims.parquet")["exhibit"]) == {"table4", "table11"}
    assert not (PUBLISHED / "notebooks/claims.ipynb").exists()  # the one here does not show the claims on Table 4


def test_files_of_an_earlier_publication_of_the_same_experiment_are_replaced() -> None:
    old = PUBLISHED / "samples/subject/job/run/00-0.png", PUBLISHED / "notebooks/runs/subject/gone.ipynb"
    for file in old:
        notebook(file)
    publish.publish("small")
    assert not any(file.exists() for file in old) and not old[0].parent.exists()
    first = {name: (PUBLISHED / name).stat().st_mtime_ns for name in published()}
    publish.publish("small")
    written = {"manifest.json", "claims.parquet", "claims.md"}
    assert {n: t for n, t in first.items() if n not in written} == {
        n: (PUBLISHED / n).stat().st_mtime_ns for n in published() if n not in written
    }


def test_an_exhibit_older_than_its_metrics_and_a_failed_notebook_are_refused_together() -> None:
    past = (SMALL / "tables/table11.md").stat().st_mtime - 100
    os.utime(SMALL / "tables/table11.md", (past, past))
    notebook(SMALL / "notebooks/runs/subject/ether.ipynb", error=True)
    with pytest.raises(ConfigurationError) as error:
        publish.publish("small")
    text = str(error.value)
    assert "table11 is older than the metrics of subject" in text and "notebooks/runs/subject/ether.ipynb" in text


def test_nothing_to_publish_and_an_unknown_scale(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingResourceError, match="nothing to publish under results/smoke"):
        publish.publish("smoke")
    assert publish.main(["smal"]) == 1 and "Did you mean 'small'" in capsys.readouterr().err


def test_only_files_opened_within_the_block_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with publish.opened() as outer:
        (tmp_path / "a").read_text()
    (tmp_path / "b").read_text()
    assert tmp_path / "a" in outer and tmp_path / "b" not in outer


def test_figures_of_experiments_that_were_not_run_here_are_not_drawn() -> None:
    entries = config.exhibits()
    found = publish.plan(config.load("small"))
    assert found.experiments == ["subject"] and {entry.id for entry in found.exhibits} == {"table11", "figure9"}
    publish._with_images(found)
    assert not any("subject_factors" in str(file) for file in found.files) and "figure8" in entries


def test_further_seeds_are_joined_and_then_published_from_the_replay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_of_scale", lambda *_: {run.run_id for run in runs()})  # of made-up runs
    outdated = dataclasses.replace(runs()[0], rate=0.5)  # as if its method had had another rate
    store(SMALL, "subject", [*runs(), outdated])
    for id_ in ("table11", "figure9"):
        report.make(id_, "small")
    publish.publish("small")
    assert len(pd.read_parquet(PUBLISHED / "metrics/subject.runs.parquet")) == 10
    first = pd.read_parquet(PUBLISHED / "metrics/subject.parquet")
    tables = (PUBLISHED / "tables/table11.md").read_bytes()
    again = [dataclasses.replace(run, seed=1) for run in runs()] + [
        dataclasses.replace(run, values={("validation", "dino"): 0.25}) for run in runs()[-1:]
    ]
    store(SMALL, "subject", again)
    for run in again:
        save_images(SMALL / "samples/subject" / run.method / run.run_id, PROMPTS)
    capsys.readouterr()
    assert publish.main(["small", "--add"]) == 0
    said = capsys.readouterr().out
    assert f"all --config scale=small replay={PUBLISHED}" in said and "removed:     1 published runs of subject" in said
    joined = pd.read_parquet(PUBLISHED / "metrics/subject.parquet")
    seeds = pd.read_parquet(PUBLISHED / "metrics/subject.runs.parquet")["seed"]
    assert seeds.value_counts().to_dict() == {0: 9, 1: 9}
    replaced = joined[joined["run_id"].eq(runs()[-1].run_id) & joined["metric"].eq("dino")]
    assert replaced["value"].tolist() == [0.25]
    kept = first[~first["run_id"].isin([runs()[-1].run_id, outdated.run_id])]
    assert joined.merge(kept, how="inner").equals(kept.reset_index(drop=True))  # the others, to the bit
    assert (PUBLISHED / "tables/table11.md").read_bytes() == tables
    assert json.loads((PUBLISHED / "manifest.json").read_text())["experiments"]["subject"]["seeds"] == [0, 1]

    (SMALL / "metrics").rename(SMALL / "elsewhere")
    report.make("table11", "small", {"replay": str(PUBLISHED)})
    report.make("figure9", "small", {"replay": str(PUBLISHED)})
    notebooks = {name for name in published() if name.startswith("notebooks/runs")}
    assert publish.main(["small", "--replay", str(PUBLISHED)]) == 0
    assert (PUBLISHED / "tables/table11.md").read_bytes() == (SMALL / "tables/table11.md").read_bytes() != tables
    assert pd.read_parquet(PUBLISHED / "metrics/subject.parquet").equals(joined)
    assert notebooks <= published()
    images = [name for name in published() if name.startswith("samples/") and name.endswith(".png")]
    assert len(images) == 2 * 9  # only those that the figure opens are left


def test_a_dirty_tree_is_not_joined_either() -> None:
    make([dataclasses.replace(run, columns=run.columns | {"git_commit": f"{COMMIT}+"}) for run in runs()])
    with pytest.raises(ConfigurationError, match="9 of 9 runs"):
        publish.add("small")
    assert not PUBLISHED.exists()
