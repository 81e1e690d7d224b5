"""Tables from made-up runs: which values they read, and over what their intervals are taken."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_runs import Run, at, counted, nothing_published, store
from scipy import stats

from ether import config
from ether.analysis import cells
from ether.exhibits import common, glue, instruct, render, subject
from ether.paper import published

TASKS = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")
SUBJECTS = ("fluent_teapot", "fluent_penguin", "fluent_mushroom")


@pytest.fixture(autouse=True)
def without_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made-up #params and TFLOPs: the real ones are tested where they are counted."""
    monkeypatch.chdir(tmp_path)
    for module in (glue, instruct, subject):
        monkeypatch.setattr(module, "parameter_cells", counted)
    monkeypatch.setattr(instruct, "tflops_cells", lambda table, methods: [])


def by_hand(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by scipy's t distribution."""
    error = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
    return float(low), float(high)


# --- GLUE --------------------------------------------------------------------------------------------------------


def glue_runs(missing: tuple[str, str] | None = None, diverged: tuple[str, str, int] | None = None) -> list[Run]:
    """Every method: score = task number + 2 x seed, and ETHER+ 10 higher; 50 higher at the first of two evaluations."""
    found = []
    for method in config.chosen_methods(config.load("small"), "glue"):
        for number, task in enumerate(TASKS):
            for seed in (0, 1, 2):
                if (method, task) == missing:
                    continue
                value = number + 2.0 * seed + 10 * (method == "ether-plus")
                bad = (method, task, seed) == diverged
                found.append(
                    Run(
                        method,
                        {("validation", "score"): {10: value + 50, 20: value}, ("train", "loss"): {5: 999.0}},
                        task,
                        seed,
                        status="diverged" if bad else "finished",
                        reason="loss is nan" if bad else "",
                    )
                )
    return found


def table4(runs: list[Run], select: str = "last") -> pd.DataFrame:
    scale = config.load("small")
    scale.settings["glue"]["select"] = select
    store(scale.results, "glue", runs)
    return glue.table4(scale)


def test_table4_takes_the_last_score_and_its_interval_over_seeds() -> None:
    table = table4(glue_runs())
    assert list(table.columns) == cells.CELL_COLUMNS
    cell = at(table, "ether", "RTE")
    assert cell.ours == 7 and cell.n == 3 and cell.unit == "seed"  # 5 + 2 x the mean seed
    assert (cell.low, cell.high) == pytest.approx(by_hand([5, 7, 9]))
    assert not cell.comparable and "other models" in cell.note
    assert list(dict.fromkeys(table["method"])) == list(config.chosen_methods(config.load("small"), "glue"))


def test_table4_has_every_cell_of_the_paper_verbatim() -> None:
    table, paper = table4(glue_runs()), published.load()["table4"]
    for cell in paper.cells():
        ours = at(table, cell.method, cell.column)
        assert ours.printed == cell.printed and ours.paper == cell.value
    assert at(table, "linear-probe", "MNLI").printed == "" and math.isnan(at(table, "linear-probe", "MNLI").paper)


def test_the_average_is_taken_over_tasks_within_a_seed_and_then_over_seeds() -> None:
    cell = at(table4(glue_runs()), "ether-plus", "Avg")
    averages = [3.5 + 2 * seed + 10 for seed in (0, 1, 2)]
    assert cell.ours == pytest.approx(np.mean(averages)) and cell.n == 3
    assert (cell.low, cell.high) == pytest.approx(by_hand(averages))  # the spread between tasks plays no part


def test_select_best_takes_the_highest_evaluation() -> None:
    last, best = at(table4(glue_runs()), "ether", "RTE"), at(table4(glue_runs(), "best"), "ether", "RTE")
    assert best.ours - last.ours == 50


def test_select_half_takes_the_half_that_did_not_choose() -> None:
    runs = glue_runs()
    for run in runs:
        run.values[("best", "score")] = {10: 33.0}
    assert at(table4(runs, "half"), "ether", "RTE").ours == 33


def test_the_mean_without_the_two_large_tasks_and_what_other_papers_have() -> None:
    table, paper = table4(glue_runs()), published.load()["table4"]
    assert at(table, "ether", "Avg without MNLI, QQP").ours == pytest.approx(np.mean([1, 2, 4, 5, 6, 7]) + 2)
    markdown = render.to_markdown(paper, table, "A title", render.reading_guide(paper, table))
    assert "| | elsewhere | " + "– | " * 10 + "PSOFT 87.30 |" in markdown and "Elsewhere: PSOFT (ICLR 2026)" in markdown
    assert "<br>" in render.to_html(paper, table) and "PSOFT 86.83" in render.to_html(paper, table)
    assert markdown.count("| elsewhere |") == 4


def test_a_comparable_cell_names_the_source_of_its_hyperparameters() -> None:
    scale = config.load("paper")
    store(scale.results, "glue", [Run(m, {("validation", "score"): 90.0}, "rte", 0) for m in ("oft", "lora", "ether")])
    notes = {m: at(glue.table4(scale), m, "RTE").note for m in ("oft", "lora", "ether")}
    assert notes == {
        "oft": "hyperparameters: BOFT (Liu et al., ICLR 2024), Table 7",
        "lora": "hyperparameters not from a paper",
        "ether": "hyperparameters: the paper's Table 7",
    }


def test_a_run_that_diverged_is_named_and_left_out_of_cell_and_average() -> None:
    table = table4(glue_runs(missing=("lora", "cola"), diverged=("ether", "rte", 2)))
    cell = at(table, "ether", "RTE")
    assert cell.ours == 6 and cell.n == 2 and "rte, seed 2 diverged (loss is nan)" in cell.note
    assert at(table, "ether", "Avg").n == 2 and at(table, "ether", "MNLI").n == 3
    assert math.isnan(at(table, "lora", "CoLA").ours) and "not run at this scale" in at(table, "lora", "CoLA").note
    assert math.isnan(at(table, "lora", "Avg").ours) and "not every task was run" in at(table, "lora", "Avg").note
    assert at(table, "lora", "MNLI").n == 3


def test_claims_on_table4_are_judged_by_scores_of_tasks_and_their_average() -> None:
    scale = config.load("small")
    store(scale.results, "glue", glue_runs(diverged=("ether", "rte", 2)))
    evidence = glue.evidence("table4", scale)
    assert list(evidence.columns) == common.EVIDENCE_COLUMNS
    assert set(evidence["metric"]) == {*TASKS, "average", "average_of_small"}
    rows = evidence[(evidence["method"] == "ether") & (evidence["metric"] == "rte")]
    assert rows["value"].tolist() == [5, 7]  # without the run that diverged


# --- instruction tuning ------------------------------------------------------------------------------------------


def instruct_runs() -> list[Run]:
    values = {("reported", name): 40.0 for name in ("mmlu", "arc", "tru1", "tru2", "mmlu_macro", "arc_norm", "score")}
    found = [Run("base", values | {("second batch size", "mmlu"): 40.5})]
    for method in config.chosen_methods(config.load("small"), "instruct"):
        if method != "base":
            found += [Run(method, {k: v + 3 * seed for k, v in values.items()}, seed=seed) for seed in (0, 1, 2)]
    return found


@pytest.fixture
def instructed() -> config.Scale:
    scale = config.load("small")
    store(scale.results, "instruct", instruct_runs())
    return scale


def test_table5_prints_the_methods_without_a_table_of_their_own(instructed: config.Scale) -> None:
    table = instruct.table5(instructed)
    assert set(table["method"]) == set(published.load()["table5"].methods)
    assert table["method"].iloc[0] == "base"
    assert at(table, "lora", "MMLU").ours == 43 and at(table, "lora", "MMLU").n == 3
    assert at(table, "lora", "ARC, normalised").printed == ""
    base = at(table, "base", "MMLU")
    assert base.ours == 40 and base.n == 1 and math.isnan(base.low)  # not trained: one run for all seeds
    assert table[(table["method"] == "base") & (table["column"] == "#params")].empty


def test_table10_keeps_the_papers_rows_that_this_scale_cannot_run(instructed: config.Scale) -> None:
    table = instruct.table10(instructed)
    assert {"ether-plus-n1", "ether-plus-n32", "ether-plus-n128", "ether-n64"} <= set(table["method"])
    assert not {"lora", "ether", "ether-plus", "base"} & set(table["method"])
    cell = at(table, "ether-plus-n1", "MMLU")
    assert math.isnan(cell.ours) and cell.printed == "43.75" and "not run at this scale" in cell.note
    assert at(table, "ether-plus-n128", "MMLU").ours == 43
    order = list(config.methods())
    assert list(dict.fromkeys(table["method"])) == sorted(set(table["method"]), key=order.index)


def test_blocks_and_batch_sizes_of_instruction_tuning() -> None:
    scale = config.load("small")
    runs = [dataclasses.replace(run, columns={"blocks": 1 if run.method == "ether-n32" else None}) for run in instruct_runs()]
    store(scale.results, "instruct", runs)
    table = instruct.table10(scale)
    assert at(table, "ether-n32", "Blocks").ours == 1
    assert set(table.loc[table["column"] == "Blocks", "method"]) == {"ether-n32"}
    assert instruct.batch_size_check(scale).to_dict("index") == {"mmlu": {"first": 40.0, "second": 40.5}}


# --- subject-driven generation -----------------------------------------------------------------------------------


def subject_runs(methods: tuple[str, ...] = ("oft-n4", "naive-n4", "ether-plus", "ether-plus-one-sided")) -> list[Run]:
    """DINO on all prompts at the last step: 0.5 + subject number / 10 + seed / 100, after 0.1 at the step before it; other values
    on the half of the prompts that is reported, at the last step and at the chosen one."""
    return [
        Run(
            method,
            {
                ("validation", "dino"): {60: 0.1, 120: 0.5 + number / 10 + seed / 100},
                ("validation", "clip_t"): {120: 0.3},
                ("validation", "lpips_prompt"): {120: 1.5},
                ("last", "dino"): {120: 0.9},
                ("report", "dino"): {120: 0.8},
                ("best", "dino"): {60: 0.7 if seed else 0.6},
                ("real", "dino"): {0: 0.8 + number / 100},
            },
            task,
            seed,
        )
        for method in methods
        for number, task in enumerate(SUBJECTS)
        for seed in (0, 1)
    ]


@pytest.fixture
def subjects() -> config.Scale:
    scale = config.load("small")
    store(scale.results, "subject", subject_runs())
    return scale


def test_table2_is_measured_on_all_prompts_and_its_unit_is_the_subject(subjects: config.Scale) -> None:
    cell = at(subject.table2(subjects), "oft-n4", "DINO")
    means = [0.505, 0.605, 0.705]  # the two seeds of a subject averaged first
    assert cell.ours == pytest.approx(np.mean(means)) and cell.n == 3 and cell.unit == "task"
    assert (cell.low, cell.high) == pytest.approx(by_hand(means))


def test_the_chosen_checkpoint_has_columns_of_its_own_without_the_papers_number(subjects: config.Scale) -> None:
    table = subject.table2(subjects)
    chosen = at(table, "oft-n4", "DINO, best")
    assert chosen.ours == pytest.approx(0.65) and chosen.printed == ""
    assert at(table, "oft-n4", "DINO").printed == "0.652"
    assert "CLIP-T, best" not in set(table["column"])  # nothing measured it there
    assert "LPIPS within a prompt, best" not in set(table["column"]) and "LPIPS within a prompt" in set(table["column"])


def test_the_photographs_are_one_value_a_subject(subjects: config.Scale) -> None:
    table = subject.table2(subjects)
    cell = at(table, "real-images", "DINO")
    assert cell.ours == pytest.approx(0.81) and cell.n == 3 and cell.label == "Real images" and cell.printed == "0.703"
    assert table["method"].iloc[0] == "real-images"
    assert table[(table["method"] == "real-images") & table["column"].isin(["#params", "DINO, best"])].empty


def test_columns_that_nothing_measured_are_left_out(subjects: config.Scale) -> None:
    assert set(subject.table2(subjects)["column"]) == {"#params", "DINO", "CLIP-T", "LPIPS within a prompt", "DINO, best"}


def test_which_methods_a_table_prints(subjects: config.Scale) -> None:
    printed = set(subject.table2(subjects)["method"])
    assert {"base", "ether-plus-one-sided", "naive-n4"} <= printed and "ether-plus-n4" not in printed
    assert list(dict.fromkeys(subject.table11(subjects)["method"])) == ["ether-plus-one-sided", "ether-plus"]
    assert list(dict.fromkeys(subject.table6(subjects)["method"])) == ["oft-n4", "naive-n4"]
    assert "#params" not in set(subject.table6(subjects)["column"])


def test_a_table_over_two_experiments_takes_each_column_from_the_one_that_measured_it(
    subjects: config.Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_published(monkeypatch)
    runs = [Run("oft-n4", {("validation", "miou"): 20.0 + seed, ("best", "miou"): 25.0}, "a_map", seed) for seed in (0, 1)]
    store(subjects.results, "perturbation", runs)  # in place of an experiment of controllable generation
    entry = dataclasses.replace(config.exhibits()["table6"], experiments=("subject", "perturbation"))
    monkeypatch.setattr(config, "exhibits", lambda: {"table6": entry})
    table = subject.table6(subjects)
    assert at(table, "oft-n4", "mIoU").ours == 20.5 and at(table, "oft-n4", "mIoU").printed == "24.5"
    assert at(table, "oft-n4", "mIoU, best").ours == 25
    assert math.isnan(at(table, "naive-n4", "mIoU").ours) and at(table, "naive-n4", "DINO").n == 3


def test_the_base_model_has_one_run_a_subject_and_no_drift_or_parameters_of_its_own() -> None:
    scale = config.load("small")
    runs = [
        Run(method, {("validation", "dino"): dino + number / 10, ("validation", "drift"): drift}, task)
        for method, dino, drift in (("base", 0.1, 0.0), ("ether", 0.4, 0.2), ("ether-plus", 0.5, 0.3))
        for number, task in enumerate(SUBJECTS)
    ]
    store(scale.results, "subject", runs)
    table = subject.table2(scale)
    assert at(table, "base", "DINO").ours == pytest.approx(0.2) and at(table, "ether", "Drift").ours == pytest.approx(0.2)
    drift = at(table, "base", "Drift")
    assert math.isnan(drift.ours) and drift.note == "0 by definition"  # not in bold
    assert table[(table["method"] == "base") & (table["column"] == "#params")].empty
    evidence = subject.evidence("table2", scale)
    assert (evidence.loc[(evidence["method"] == "base") & (evidence["metric"] == "drift"), "value"] == 0).all()


def test_how_far_subjects_are_learned_and_whether_methods_differ() -> None:
    scale = config.load("small")
    runs = [
        Run(
            method,
            {("validation", "dino"): dino + number / 10 + seed / 100, ("real", "dino"): 0.8, ("validation", "drift"): 0.1 * dino},
            task,
            seed,
        )
        for method, dino, seeds in (("base", 0.1, (0,)), ("ether", 0.3, (0, 1)), ("ether-plus", 0.5, (0, 1)))
        for number, task in enumerate(SUBJECTS)
        for seed in seeds
    ]
    store(scale.results, "subject", runs)
    learned = subject.learned(scale)
    assert list(learned.index) == ["Real images", "Base model", "ETHER", "ETHER+"]
    assert learned.loc["ETHER+"].tolist() == pytest.approx([0.605, 0.605 / 0.8, 1.0])
    assert learned.loc["Base model", "share of the best method's"] == pytest.approx(0.2 / 0.605)
    found = subject.separations(scale)
    assert list(found.index) == ["DINO", "Drift"] and found.loc["DINO", ["methods", "subjects"]].tolist() == [
        2,
        3,
    ]  # without base


def test_values_by_subject_are_in_the_order_of_the_columns(subjects: config.Scale) -> None:
    wide = subject.by_subject(subjects)
    assert list(wide.columns.get_level_values(0).unique()) == ["DINO", "CLIP-T", "LPIPS within a prompt"]
    assert wide.loc["OFT n=4", ("DINO", "fluent_penguin")] == pytest.approx(0.605)
    assert wide.loc["Real images", ("DINO", "fluent_penguin")] == pytest.approx(0.81)


def test_evidence_of_subjects_has_the_photographs_as_one_run_a_subject(subjects: config.Scale) -> None:
    evidence = subject.evidence("table2", subjects)
    photographs = evidence[evidence["method"] == "real-images"]
    assert photographs["task"].tolist() == list(SUBJECTS) and set(photographs["adapt_kind"]) == {"none"}
    of_method = evidence[(evidence["method"] == "oft-n4") & (evidence["metric"] == "dino")]
    assert len(of_method) == 6 and of_method["value"].max() == pytest.approx(0.71)  # all prompts, the last step


# --- the rate in a method's file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "experiment", "trained", "split", "task"),
    [
        (glue, "glue_rates", "glue", "validation", "rte"),
        (instruct, "instruct_rates", "instruct", "tuning", "alpaca"),
        (subject, "subject_rates", "subject", "selection", "fluent_crab"),
    ],
)
def test_a_grid_of_learning_rates_is_scored_on_what_is_never_reported(
    module: Any, experiment: str, trained: str, split: str, task: str
) -> None:
    from ether.analysis import rates

    scale = config.load("small")
    method = "lora-r4" if trained == "subject" else "lora"
    if trained == "glue":  # the split is another one in the data, of the same name in the metrics
        assert {run.settings["data"]["evaluation_split"] for run in config.runs(scale, experiment)} == {"tuning"}
    named = next(run.hyperparameters["learning_rate"] for run in config.runs(scale, trained) if run.method == method)
    grid = [
        Run(method, {(split, "score"): 50.0, ("reported", "score"): 1.0}, task, rate=named),
        Run(method, {("reported", "score"): 99.0, ("validation", "score"): 99.0, (split, "score"): 20.0}, task, rate=0.5),
    ]
    if trained == "instruct":
        grid.append(Run("base", {(split, "score"): 90.0}, task))
    store(scale.results, experiment, grid)
    choice = rates.choose(module.rate_grid(scale)).set_index("method")
    assert list(choice.index) == [method]  # the base model has no learning rate
    assert choice.loc[method, "best_rate"] == choice.loc[method, "configured_rate"] == named
    assert choice.loc[method, "best_score"] == 50 and choice.loc[method, "worst"] == 20


def test_a_rate_with_a_run_that_diverged_is_not_chosen() -> None:
    from ether.analysis import rates

    scale = config.load("small")
    runs = [
        Run("ether", {("selection", "score"): score}, task, rate=rate, status=status, reason="loss is nan" if bad else "")
        for rate, score in ((0.01, 0.5), (0.1, 0.9))
        for task in ("fluent_crab", "fluent_teapot")
        for bad in [(rate, task) == (0.1, "fluent_teapot")]
        for status in ["diverged" if bad else "finished"]
    ]
    store(scale.results, "subject_rates", runs)
    choice = rates.choose(subject.rate_grid(scale))
    assert choice["best_rate"].tolist() == [0.01] and choice["best_score"].tolist() == [0.5]


def test_the_command_compares_chosen_and_configured_rates(capsys: pytest.CaptureFixture[str]) -> None:
    from ether.exhibits.__main__ import main

    scale = config.load("small")
    named = {run.method: run.hyperparameters["learning_rate"] for run in config.runs(scale, "subject")}
    better = {"ether": named["ether"], "lora-r4": 10 * named["lora-r4"]}
    runs = [
        Run(method, {("selection", "score"): 0.5 + 0.1 * (rate == better[method])}, "fluent_crab", rate=rate)
        for method in better
        for rate in (0.1 * named[method], named[method], 10 * named[method])
    ]
    store(scale.results, "subject_rates", runs)
    assert main(["subject_rates"]) == 1
    lines = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "differs" not in lines["ether"] and f"in the file {named['ether']:g}" in lines["ether"]
    assert "at the grid's edge, on one seed; in the file" in lines["lora-r4"] and lines["lora-r4"].endswith("<- differs")
    store(scale.results, "subject_rates", [run for run in runs if run.method == "ether"])
    assert main(["subject_rates"]) == 0
    store(scale.results, "subject_rates", [run for run in runs if run.rate != named[run.method]])
    assert main(["subject_rates"]) == 1
    assert "lora-r4: best" in (said := capsys.readouterr().out) and said.count("not in this grid") == 2 and "nan" not in said
    with pytest.raises(SystemExit, match="no grid of learning rates"):
        main(["subject"])


def test_rates_for_subjects_are_chosen_on_a_subject_that_is_not_reported() -> None:
    scale = config.load("small", {"complete": True})
    reported = {run.task for run in config.runs(scale, "subject")}
    assert reported.isdisjoint(run.task for run in config.runs(scale, "subject_rates"))
