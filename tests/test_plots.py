"""What the figures say in numbers, from tables made up for the purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ether import config, plots, plots_language, plots_subject, results, tables


@pytest.fixture
def scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Scale:
    monkeypatch.chdir(tmp_path)
    return config.load("small")


def leave(scale: config.Scale, experiment: str, values: dict[tuple[str, float, str, int], dict[tuple[str, str], float]]) -> None:
    """Runs {(method, rate, task, seed): {(split, metric): value}} as the workflow would have collected them."""
    runs: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    for (method, rate, task, seed), found in values.items():
        run = f"{method}-{rate}-{task}-{seed}"
        told = {"hyperparameters": {"learning_rate": rate}, "adapt": {"kind": "none" if method == "Base model" else "peft"}}
        row: dict[str, Any] = {name: "" if kind == "string" else 0 for name, kind in results.RUN_COLUMNS.items()}
        row |= {"run_id": run, "method": method, "task": task, "seed": seed, "status": "finished", "config": json.dumps(told)}
        runs.append(row)
        for (split, metric), value in found.items():
            metrics.append({"run_id": run, "step": 1, "split": split, "task": task, "metric": metric, "value": value})
    base = scale.results / "metrics" / experiment
    results.write_parquet(results.runs_frame(runs), base.with_suffix(".runs.parquet"))
    results.write_parquet(results.metrics_frame(metrics), base.with_suffix(".parquet"))


def test_the_rate_a_file_names_stands_beside_the_grids_best(scale: config.Scale) -> None:
    named = {r.label: r.hyperparameters["learning_rate"] for r in config.runs(scale, "instruct")}["LoRA r=8"]
    leave(
        scale,
        "instruct_rates",
        {
            ("Base model", named, "alpaca", 0): {("tuning", "score"): 30.0, ("tuning", "mmlu"): 31.0},
            ("LoRA r=8", named, "alpaca", 0): {("tuning", "score"): 50.0},
            ("LoRA r=8", 0.5, "alpaca", 0): {("tuning", "score"): 20.0, ("reported", "score"): 90.0},
        },
    )
    data = plots_language.rate_scores(scale)
    assert data[data["method"] == "Base model"]["rate"].isna().all()
    choice = plots_language.rate_choice(data).set_index("method").loc["LoRA r=8"]
    assert choice["best rate of the grid"] == choice["rate in the method's file"] == named
    assert choice["spread over the grid"] == 30 and choice["worst"] == 20  # the reported split plays no part
    figure, _ = plots.figures()["figure_instruct_rates"](scale)
    assert any(line.get_label() == "Base model" for line in figure.axes[0].get_lines())


@pytest.mark.parametrize("room", ["instruct", "subject"])
def test_the_committed_grid_is_read_where_none_was_run(scale: config.Scale, room: str) -> None:
    committed = config.ROOT / f"results/published/small/metrics/{room}_rates.parquet"
    if not committed.is_file():
        pytest.skip("no grid is committed in this copy")
    read = {"instruct": plots_language.rate_scores, "subject": plots_subject.rate_scores}[room]
    data = read(scale, or_published=True)
    assert set(data["metric"]) >= ({"score", "mmlu"} if room == "instruct" else {"score"})
    if room == "instruct":
        assert (data["split"] == "tuning").all()
    choice = plots_language.rate_choice(data)
    assert len(choice) >= 5
    assert (choice["best rate of the grid"] == choice["rate in the method's file"]).all()


def test_rates_for_subjects_are_chosen_on_prompts_and_a_subject_that_are_not_reported(scale: config.Scale) -> None:
    reported = {run.task for run in config.runs(scale, "subject")}
    assert reported.isdisjoint(run.task for run in config.runs(scale, "subject_rates"))
    named = {r.label: r.hyperparameters["learning_rate"] for r in config.runs(scale, "subject")}["ETHER+"]
    leave(
        scale,
        "subject_rates",
        {
            ("ETHER+", named, "mouse_toy", 0): {("selection", "score"): 0.4, ("report", "score"): 0.1},
            ("ETHER+", 0.5, "mouse_toy", 0): {("selection", "score"): 0.3, ("report", "score"): 0.9},
        },
    )
    choice = plots_language.rate_choice(plots_subject.rate_scores(scale)).set_index("method").loc["ETHER+"]
    assert choice["best rate of the grid"] == choice["rate in the method's file"] == named and choice["its score"] == 0.4


@pytest.mark.parametrize(("ether_plus", "verdict"), [(0.02, "holds"), (0.001, "does not hold")])
def test_energy_statements_are_judged_by_what_was_measured(scale: config.Scale, ether_plus: float, verdict: str) -> None:
    change = {"OFT n=4": 1e-13, "ETHER": 1e-14, "Naive n=4": 0.01, "ETHER+": ether_plus}
    leave(
        scale,
        "subject",
        {
            (method, 0.01, task, seed): {
                ("geometry", "he_difference_input"): value * (1 + 0.01 * seed),
                ("geometry", "he_difference_output"): 0.1,
            }
            for method, value in change.items()
            for task in ("a", "b")
            for seed in (0, 1)
        },
    )
    figure, data = plots.figures()["figure7"](scale)
    judged = plots_subject.energy_statements(data).set_index("statement")["verdict"]
    assert judged["OFT n=4 leaves the energy as it is (input side)."] == "holds"
    assert judged["ETHER+ changes the energy (input side)."] == "holds"
    assert judged["ETHER+ changes the energy even more than Naive."] == verdict
    assert len(figure.axes) == 2


def test_figure4_has_a_point_for_every_method_and_rate(scale: config.Scale) -> None:
    rates, methods = (1e-3, 1e-2, 1e-1), ("ETHER", "LoRA r=4")
    leave(
        scale,
        "subject_rates",
        {
            (method, rate, "slim_vase", 0): {
                ("geometry", "weight_distance"): 10 * rate,
                **({("geometry", "transformation_distance"): 2.0} if method == "ETHER" else {}),
            }
            for method in methods
            for rate in rates
        },
    )
    figure, data = plots.figures()["figure4"](scale)
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert set(lines) >= set(methods) and np.allclose(lines["ETHER"].get_ydata(), [0.01, 0.1, 1.0])
    assert (data[data["metric"] == "transformation_distance"]["value"] == 2).all()
    assert "LoRA r=4" not in {line.get_label() for line in figure.axes[0].get_lines()}  # it has no transformation


def test_real_images_are_a_row_and_both_checkpoints_are_columns(scale: config.Scale) -> None:
    leave(
        scale,
        "subject",
        {
            (method, 0.01, task, seed): {
                ("last", "dino"): 0.5,
                ("best", "dino"): 0.6,
                ("last", "clip_t"): 0.3,
                ("real", "dino"): 0.8 if task == "slim_vase" else 0.6,
            }
            for method in ("ETHER+", "OFT n=4")
            for task in ("slim_vase", "bear_toy")
            for seed in (0, 1)
        },
    )
    table = tables.table2(scale)
    cell = table.set_index(["method", "column"])
    assert cell.loc[("Real images", "DINO"), "ours"] == pytest.approx(0.7) and cell.loc[("Real images", "DINO"), "seeds"] == 2
    assert cell.loc[("ETHER+", "DINO"), "ours"] == 0.5 and cell.loc[("ETHER+", "DINO, best"), "ours"] == 0.6
    assert cell.loc[("ETHER+", "#params"), "ours"] == 398_592 and cell.loc[("OFT n=4", "#params"), "ours"] == 11_602_368
    assert "background drawn" not in set(table["column"])  # no reader measured it
    assert isinstance(pd.DataFrame(table), pd.DataFrame) and "| #params |" in tables.to_markdown(table, "Table 2")


def test_a_run_that_drew_nothing_is_a_grey_cell_in_figure8(scale: config.Scale) -> None:
    known = scale.experiment("subject_factors")["rate_factors"]
    leave(
        scale,
        "subject_factors",
        {
            ("LoRA r=4", 0.01 * factor, "slim_vase", 0): (
                {("train", "loss"): 1.0} if factor == 100 else {("last", "dino"): 0.5, ("last", "background"): 1.0}
            )
            for factor in known
        },
    )
    figure, data = plots.figures()["figure8"](scale)
    assert list(data["factor"]) == known and data["dino"].isna().tolist() == [False, False, False, True]
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "no picture" in said
