"""The claims of all exhibits on one page, and the evidence for claims that needs no training or a grid of learning rates."""

from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from made_up_runs import Run, store

from ether import config
from ether.analysis import claims
from ether.analysis.claims import Bound, Claim
from ether.errors import MissingResourceError
from ether.exhibits import common, exact_evidence, report, robustness, subject, verdicts
from ether.notebook import execute
from ether.paper import counts, efficiency, published
from ether.paper.claims import ADDED, exact

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in (ROOT / "ether/paper/claims").glob("*.py") if path.stem != "__init__")


def claims_of(module: str) -> tuple[Claim, ...]:
    return importlib.import_module(f"ether.paper.claims.{module}").CLAIMS


# --- all claims --------------------------------------------------------------------------------------------------


def test_claims_are_unique_belong_to_an_exhibit_of_their_module_and_name_methods_that_exist() -> None:
    every = [(module, claim) for module in MODULES for claim in claims_of(module)]
    ids = [claim.id for _, claim in every]
    assert len(ids) == len(set(ids)) >= 70
    for module, claim in every:
        assert config.exhibits()[claim.exhibit].module == module, claim.id
        assert claim.text.endswith(".") and claim.source, claim.id
        for test in claim.tests:
            assert set(test.methods) <= set(config.methods()), claim.id


def test_at_least_fifty_statements_of_the_paper_are_tested() -> None:
    assert sum(claim.source != ADDED for module in MODULES for claim in claims_of(module)) >= 50


# --- collecting --------------------------------------------------------------------------------------------------


def judged(exhibit: str, **claims_: tuple[str, float, str]) -> None:
    """Stores claims on an exhibit: {id: (source, value that must be above 0, text)}. The spread is 0.1; NaN: not measured."""
    rows, found = [], []
    for id_, (source, value, text) in claims_.items():
        found.append(Claim(id_, exhibit, source, text, "every", (Bound("ether", id_, above=0),)))
        values = [] if math.isnan(value) else [value - 0.1, value, value + 0.1]
        rows += [{"method": "ether", "metric": id_, "task": "t", "seed": s, "value": v} for s, v in enumerate(values)]
    evidence = pd.DataFrame(rows, columns=["method", "metric", "task", "seed", "value"])
    file = config.exhibits()[exhibit].files(Path("results/small"))[-1]
    file.parent.mkdir(parents=True, exist_ok=True)
    claims.judge(found, evidence, "seed").to_parquet(file)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> verdicts.Collected:
    monkeypatch.chdir(tmp_path)
    judged("table4", a=("Sec. 1", 5.0, "A <b> | c."), b=("Sec. 2", -5.0, "B."), c=("Sec. 3", 0.05, "C."))
    judged("table5", d=("Sec. 4", math.nan, "D."), e=("Sec. 5", 5.0, "E."), f=(ADDED, 5.0, "F."))
    judged("figure9")
    return verdicts.make("small")


def test_the_claims_of_all_exhibits_that_were_made_are_collected(made: verdicts.Collected) -> None:
    written = pd.read_parquet("results/small/claims.parquet")
    pd.testing.assert_frame_equal(written, made.frame, check_dtype=False)
    assert list(written["id"]) == ["a", "b", "c", "d", "e", "f"]
    assert list(written["benchmark"].unique()) == ["GLUE", "Instruction tuning"]


def test_there_is_one_sentence_a_verdict_with_counts_by_benchmark(made: verdicts.Collected) -> None:
    assert made.quotes() == [
        "At scale small, 2 of 5 statements of the paper are reproduced: 1 on GLUE and 1 on instruction tuning.",
        "At scale small, 1 of 5 statements of the paper is contradicted: 1 on GLUE.",
        "At scale small, 1 of 5 statements of the paper is undecided, because the tests allow for both answers (where one of "
        "several would decide, corrected for their number): 1 on GLUE.",
        "At scale small, 1 of 5 statements of the paper is not testable here, because a method, a metric or a second unit is "
        "missing: 1 on instruction tuning.",
        "Of 1 statement that this suite adds: 1 reproduced.",
    ]
    assert made.counts().loc["in all"].tolist() == [2, 1, 1, 1, 5]


def test_every_claim_without_a_decision_says_what_would_decide_it(made: verdicts.Collected) -> None:
    found = made.undecided().set_index("claim")["what would decide it"]
    needed = made.frame.set_index("id").loc["c", "units_needed"]
    assert list(found.index) == ["C.", "D."]
    assert found["C."] == f"{needed} further seeds; with the same mean and spread it would be reproduced"
    assert found["D."] == "missing: no value of ETHER for: d"
    row = made.frame.iloc[2]
    single = row.to_frame().T.assign(verdict="not testable here", missing="one task only").iloc[0]
    assert verdicts.decided_by(single) == "missing: a second task"
    for change, text in (
        ({"units_needed": pd.NA}, "more than 10,000"),
        ({"n": 1}, "a second seed"),
        ({"n": 2}, "the spread of 2 says too little"),
        ({"units_needed": 1}, "1 further seed;"),
        ({"units_needed": 1, "units": "settings"}, "1 further setting;"),
    ):
        assert text in verdicts.decided_by(row.to_frame().T.assign(**change).iloc[0])


def test_text_from_claims_is_escaped_on_the_page(made: verdicts.Collected) -> None:
    page, text = made.page().data, made.markdown()
    assert "A &lt;b&gt; | c." in page and "A <b>" not in page
    assert "| A &lt;b&gt; \\| c. | Sec. 1 | table4 | reproduced | 1 / 0 / 1 |  |" in text
    assert text.index("## GLUE") < text.index("B.") < text.index("## Instruction tuning")
    assert Path("results/small/claims.md").read_text() == text


def test_without_any_exhibit_the_error_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingResourceError, match="snakemake --cores 1 claims --config scale=small"):
        verdicts.make("small")


def test_the_notebook_collects_and_does_not_train(made: verdicts.Collected) -> None:
    execute(ROOT / "notebooks/claims.ipynb", Path("claims.ipynb"), {"scale": "small", "overrides": {}})
    book = nbformat.read("claims.ipynb", as_version=4)
    text = "".join(str(cell.get("outputs", "")) for cell in book.cells)
    assert "2 of 5 statements of the paper are reproduced" in text and "further seeds" in text
    imported = [cell.source for cell in book.cells if cell.cell_type == "code" and "import" in cell.source]
    assert imported and all("ether.exhibits import verdicts" in source for source in imported)


# --- exact values ------------------------------------------------------------------------------------------------


def test_parameters_and_their_ratios_are_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(table: str) -> list[Any]:
        row = {"exact": 100, "label": "", "printed": "", "convention": "", "trained": 0, "verdict": "", "alternatives": ""}
        row |= {"architecture": "", "layer_set": "", "why": ""}
        sizes = {"ether": 100, "oft-n4": 11_600, "ether-plus": 400} if table == "table2" else {}
        return [counts.CountedRow(**row | {"method": method, "exact": size}) for method, size in sizes.items()]

    monkeypatch.setattr(counts, "counted_rows", rows)
    evidence = exact_evidence.evidence("parameters", config.load("small"))
    values = evidence.set_index(["method", "metric"])["value"]
    assert set(evidence["unit"]) == {claims.EXACT}
    assert values["ether", exact.parameters("table2")] == 100 and values["ether", exact.times("table2", "oft-n4")] == 116
    known = [claim for claim in exact.CLAIMS if "Stable Diffusion" in claim.text]
    assert list(claims.judge(known, evidence, "seed")["verdict"]) == ["reproduced", "reproduced"]
    printed = exact_evidence.printed("parameters")
    assert printed["ether", exact.times("table2", "oft-n4")] == pytest.approx(116)  # 11.6M / 0.1M


def test_operations_are_those_of_table_1(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("lora", *exact.MULTIPLICATIVE)
    cost = dict(zip(methods, (1.0, 4.0, 4.0, 3.0, 2.0, 8.0, 6.0, 4.0), strict=True))
    cells = [(m, f"{model} TFLOPs", cost[m]) for m in methods for model in exact.MODELS]
    monkeypatch.setattr(efficiency, "published_tflops", lambda: pd.DataFrame(cells, columns=["method", "column", "exact"]))
    monkeypatch.setattr(
        efficiency,
        "at_equal_length",
        lambda tokens: pd.DataFrame(
            [(m, model, cost[m] + (model == "Phi-1.5") * 10, 0.9) for m in methods for model in exact.MODELS],
            columns=["method", "model", "weight_side_tflops", "over_lora"],
        ),
    )
    evidence = exact_evidence.evidence("table1", config.load("small"))
    found = claims.judge([c for c in exact.CLAIMS if c.exhibit == "table1"], evidence, "seed", metrics=exact_evidence.metrics())
    assert found.set_index("id")["verdict"].to_dict() == {
        "operations-fall-with-blocks": "reproduced",
        "operations-larger-model-gains-more": "reproduced",
        "operations-multiplicative-cost-more": "reproduced",
        "operations-multiplicative-cost-more-on-activations": "contradicted",
    }
    assert exact_evidence.printed("table1")["ether-n1", exact.tflops("Llama-2-7B")] == 25.26


def test_the_metrics_of_claims_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    of_module = {"exact": exact_evidence.metrics(), "figure4": robustness.METRICS}
    assert {test.metric for claim in exact.CLAIMS for test in claim.tests} <= set(of_module["exact"])
    tests = [test for claim in claims_of("subject") if claim.exhibit == "figure4" for test in claim.tests]
    assert {test.metric for test in tests} <= set(of_module["figure4"])
    of_others = [test for claim in claims_of("subject") if claim.exhibit in ("table6", "figure7") for test in claim.tests]
    named = {*subject.METRICS, *common.metric_columns(published.load()["table6"])}
    assert {test.metric for test in of_others} <= named


# --- learning rates ----------------------------------------------------------------------------------------------

GRID = (1e-4, 1e-3, 1e-2, 1e-1)


def grid(method: str, scores: tuple[float, ...], statuses: tuple[str, ...] = ("finished",) * 4) -> pd.DataFrame:
    rows = [(method, "peft", "t", 0, rate, status, score) for rate, status, score in zip(GRID, statuses, scores, strict=True)]
    return pd.DataFrame(rows, columns=["method", "adapt_kind", "task", "seed", "learning_rate", "status", "value"])


def values(evidence: pd.DataFrame) -> dict[str, float]:
    return evidence.set_index("metric")["value"].to_dict()


def test_a_grid_gives_the_range_that_keeps_the_score_and_the_values_at_multiples_of_the_rate() -> None:
    found = values(robustness.scores(grid("ether", (0.1, 1.0, 0.95, 0.5)), {"ether": 1e-2}, "score"))
    assert found == pytest.approx(
        {
            "width": 1.0 + 0.1 / 0.9 + 0.05 / 0.45, "best_rate": -3.0, "score_x0.1": 1.0, "score_kept_x0.1": 1 / 0.95,
            "score_x10": 0.5, "score_kept_x10": 0.5 / 0.95,
        }
    )  # fmt: skip
    assert set(values(robustness.scores(grid("ether", (1, 1, 1, 1)), {"ether": 1e-2}, "dino"))) == {
        "dino_x0.1", "dino_kept_x0.1", "dino_x10", "dino_kept_x10",
    }  # fmt: skip


def test_a_run_that_diverged_counts_as_0_and_a_rate_beside_the_grid_has_no_value() -> None:
    statuses = ("finished", "finished", "finished", "diverged")
    found = values(robustness.scores(grid("ether", (0.1, 1.0, 0.95, 0.9), statuses), {"ether": 1e-2}, "score"))
    assert found["score_x10"] == 0 and found["width"] == pytest.approx(1 + 0.1 / 0.9 + 0.05 / 0.95)
    assert set(values(robustness.scores(grid("ether", (1, 1, 1, 1)), {"ether": 1e-1}, "score"))) == {
        "width", "best_rate", "score_x0.1", "score_kept_x0.1",
    }  # fmt: skip


def test_distances_have_their_ends_and_the_orders_of_magnitude_between_them_at_the_highest_rate() -> None:
    both = pd.concat([grid("ether", (2, 2, 2, 2)), grid("oft-n4", (1, 5, 9, 30))], ignore_index=True)
    found = robustness.distances(both, "transformation_distance").set_index(["method", "metric"])["value"]
    assert found["oft-n4", "transformation_distance_least"] == 1
    assert found["oft-n4", "transformation_distance_greatest"] == 30
    assert found["oft-n4", "transformation_distance_at_highest"] == pytest.approx(math.log10(30))
    assert found["oft-n4", "transformation_distance_over_ether"] == pytest.approx(math.log10(15))
    assert found["ether", "transformation_distance_over_ether"] == 0


def test_a_run_that_diverged_counts_at_the_highest_rate_as_the_farthest_that_finished() -> None:
    diverged = grid("lora-r4", (1, 5, 9, 30), ("finished", "finished", "finished", "diverged"))
    both = pd.concat([grid("ether", (2, 2, 2, 2)), diverged], ignore_index=True)
    found = robustness.distances(both, "weight_distance").set_index(["method", "metric"])["value"]
    assert found["lora-r4", "weight_distance_least"] == 1
    assert found["lora-r4", "weight_distance_greatest"] == 9
    assert found["lora-r4", "weight_distance_at_highest"] == pytest.approx(math.log10(9))
    assert found["lora-r4", "weight_distance_over_ether"] == pytest.approx(math.log10(4.5))
    of_ether = robustness.distances(both[both["method"] == "ether"], "weight_distance")
    assert set(of_ether["metric"]) >= {"weight_distance_at_highest", "weight_distance_over_ether"}
    nothing = robustness.distances(both.assign(status="diverged"), "weight_distance")
    assert nothing.empty


def test_a_grid_without_scores_or_bounded_methods_leaves_claims_untested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scale = config.load("small")
    store(scale.results, "subject_rates", [Run("lora-r4", {("geometry", "weight_distance"): 1.0}, "a", 0, 1e-3)])
    entry = config.exhibits()["figure4"]
    found = report._judged(entry, scale, importlib.import_module("ether.exhibits.subject"))
    assert set(found["verdict"]) == {"not testable here"}


def test_claims_on_figure4_are_judged_over_its_whole_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configured = common.configured_rates  # ten times OFT's rate is beyond the grid of the small scale
    monkeypatch.setattr(common, "configured_rates", lambda *arguments: configured(*arguments) | {"oft-n4": 3e-3})
    scale = config.load("small")
    runs = []
    of_method = {"ether": 2.0, "ether-plus": 1.4, "oft-n4": 0.0, "naive-n4": 0.0, "lora-r4": 0.0, "dreambooth": 0.0}
    for (method, distance), task, rate in itertools.product(
        of_method.items(), ("a", "b", "c", "d", "e"), (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    ):
        noise = np.random.default_rng(len(runs)).normal(0, 0.01)
        good = distance > 0 or rate < 2e-2
        scores = {"score": 0.8 if good else 0.2, "dino": 0.7 if good else 0.2, "background": 0.95 if good else 0.1}
        measured: dict[Any, Any] = {("validation", name): value + noise for name, value in scores.items()}
        measured["geometry", "weight_distance"] = (10 if distance else 1e4 * rate) + noise
        if method not in ("lora-r4", "dreambooth"):
            measured["geometry", "transformation_distance"] = distance or 1e3 * rate
        runs.append(Run(method, measured, task, 0, rate))
    store(scale.results, "subject_rates", runs)
    entry = config.exhibits()["figure4"]
    found = report._judged(entry, scale, importlib.import_module("ether.exhibits.subject")).set_index("id")["verdict"]
    for id_ in ("ether-distance-constant", "ether-plus-distance-bounded", "transformation-orders-of-magnitude",
                "weights-orders-of-magnitude", "ten-times-the-rate-collapse", "ten-times-the-rate-lora-collapse",
                "ten-times-the-rate-prompt-followed"):  # fmt: skip
        assert found[f"subject-{id_}"] == "reproduced", id_
    assert found["subject-ten-times-the-rate-score-kept"] == "reproduced"
    assert found["subject-a-tenth-of-the-rate-too-slow"] != "reproduced"
