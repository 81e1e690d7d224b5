"""Intervals that cover, and claims judged from made-up values whose verdicts are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ether.analysis import claims, rates
from ether.analysis.claims import Bound, Claim, Comparison, MetricInfo, compare_all, judge
from ether.analysis.intervals import (
    mean_interval,
    p_greater,
    paired_differences,
    summarise,
    unit_means,
    units_to_decide,
)
from ether.errors import ConfigurationError

# --- intervals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 11))
def test_the_interval_covers_the_mean_in_95_per_cent_of_repetitions(n):
    values = np.random.default_rng(n).normal(3.0, 2.0, size=(4000, n))
    covered = [low <= 3.0 <= high for _, low, high, *_ in map(mean_interval, values)]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(("subjects", "seeds"), [(3, 2), (5, 3), (8, 1), (10, 5)])
def test_subjects_are_the_unit_where_they_are_sampled(subjects, seeds):
    """Seeds share their subject's effect: over subject means the interval covers, over all runs as if independent it does not."""
    random = np.random.default_rng(subjects)
    by_subject, by_run = [], []
    index = pd.MultiIndex.from_product([range(subjects), range(seeds)], names=["task", "seed"])
    for _ in range(1500):
        values = 1.0 + random.normal(0, 1.0, (subjects, 1)) + random.normal(0, 0.3, (subjects, seeds))
        frame = pd.Series(values.ravel(), index=index, name="value").reset_index()
        interval = summarise(frame, "task")
        assert interval.n == subjects
        by_subject.append(interval.low <= 1.0 <= interval.high)
        _, low, high, *_ = mean_interval(values.ravel().tolist())
        by_run.append(low <= 1.0 <= high)
    assert 0.93 <= np.mean(by_subject) <= 0.97
    assert seeds == 1 or np.mean(by_run) < 0.93


def test_interval_and_p_value_agree_with_scipy():
    values = [70.1, 73.4, 71.9, 74.8, 69.5]
    mean, low, high, n, _ = mean_interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, n) == (pytest.approx(np.mean(values)), 5) and (low, high) == pytest.approx(expected)
    for bound in (70.0, 71.94, 80.0):
        assert p_greater(values, bound) == pytest.approx(stats.ttest_1samp(values, bound, alternative="greater").pvalue)
    assert math.isnan(mean_interval([3.0]).low) and math.isnan(mean_interval([]).mean) and math.isnan(p_greater([3.0]))
    assert (p_greater([2.0, 2.0], 1.0), p_greater([2.0, 2.0], 3.0), p_greater([2.0, 2.0], 2.0)) == (0.0, 1.0, 0.5)


def _frame(**tasks):
    return pd.DataFrame([{"task": task, "seed": s, "value": v} for task, values in tasks.items() for s, v in enumerate(values)])


def test_the_other_factor_is_averaged_within_the_unit():
    frame = _frame(a=[1.0, 3.0], b=[5.0, 9.0])
    assert unit_means(frame, "task").tolist() == [2.0, 7.0] and unit_means(frame, "seed").tolist() == [3.0, 6.0]
    with pytest.raises(ConfigurationError, match="Unknown unit 'run'"):
        unit_means(frame, "run")


def test_differences_are_paired_by_task_and_seed():
    first, second = _frame(a=[1.0, 3.0], b=[5.0, 9.0]), _frame(a=[0.0, 1.0], b=[5.0, math.nan])
    assert paired_differences(first, second, "task").tolist() == [1.5, 0.0]  # b: seed 0 alone has both
    untrained = pd.DataFrame({"task": ["a", "b"], "seed": [0, 0], "value": [1.0, 2.0], "adapt_kind": "none"})
    assert paired_differences(first, untrained, "seed").tolist() == [1.5, 4.5]
    assert paired_differences(untrained, first, "seed").tolist() == [-1.5, -4.5]
    single = untrained.assign(adapt_kind="peft")  # a trained method with one seed is compared with that seed alone
    assert paired_differences(first, single, "seed").tolist() == [1.5]


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.4), (0.3, 1.0), (-0.5, 0.7)])
def test_units_needed_are_those_at_which_the_interval_excludes_zero(mean, spread):
    values = [mean - spread, mean, mean + spread]  # standard deviation: spread
    needed = units_to_decide(values)
    decided = [abs(mean) > stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) for n in (needed - 1, needed) if n > 1]
    assert decided[-1] and (needed == 2 or not decided[0])
    assert units_to_decide([0.0, 0.0]) is None and units_to_decide([1.0]) is None
    assert units_to_decide([1e-6, -1e-6 + 1e-12, 1.0, -1.0]) is None  # more than ten thousand


# --- claims ----------------------------------------------------------------------------------------------------

SEEDS = range(5)
NOISE = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])


def _evidence(**methods):
    """methods: {stem: {metric: mean}}; five seeds around each mean, in another order for every method and metric."""
    rows = []
    for i, (method, values) in enumerate(methods.items()):
        for j, (metric, mean) in enumerate(values.items()):
            noise = np.roll(NOISE, i + 2 * j) * (1 if (i + j) % 2 else -1)
            rows += [{"method": method, "metric": metric, "task": "t", "seed": s, "value": mean + noise[s]} for s in SEEDS]
    return pd.DataFrame(rows)


def _claim(quantifier, *tests):
    return Claim("an-id", "table4", "Sec. 1", "A claim.", quantifier, tests)


def _one(claim, evidence, unit="seed", **more):
    return judge([claim], evidence, unit, **more).iloc[0]


A_OVER_B = (Comparison("a", "b", "x"), Comparison("a", "b", "y"))


@pytest.mark.parametrize(
    ("quantifier", "x", "y", "verdict"),
    [
        ("every", 5, 5, "reproduced"),
        ("every", 5, 0, "undecided"),
        ("every", 5, -5, "contradicted"),
        ("some", 5, -5, "reproduced"),
        ("some", 0, -5, "undecided"),
        ("some", -5, -5, "contradicted"),
        ("average", 5, -1, "reproduced"),
        ("average", 1, -5, "contradicted"),
        ("average", 2, -2, "undecided"),
    ],
)
def test_each_verdict_can_come_out(quantifier, x, y, verdict):
    evidence = _evidence(a={"x": 10 + x, "y": 10 + y}, b={"x": 10, "y": 10})
    judged = _one(_claim(quantifier, *A_OVER_B), evidence)
    assert judged["verdict"] == verdict, judged["evidence"]
    assert judged["tests"] == 2 and judged["n"] == 5


def test_a_metric_for_which_lower_is_better_turns_the_claim_round():
    evidence = _evidence(a={"fid": 20}, b={"fid": 30})
    claim = _claim("every", Comparison("a", "b", "fid"))
    assert _one(claim, evidence)["verdict"] == "contradicted"
    judged = _one(claim, evidence, metrics={"fid": MetricInfo("FID", "lower", ".1f")})
    assert judged["verdict"] == "reproduced" and judged["effect"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("difference", "margin", "verdict"), [(0, 1, "reproduced"), (3, 1, "contradicted"), (0.9, 1, "undecided")]
)
def test_similar_is_two_one_sided_tests_against_a_margin(difference, margin, verdict):
    evidence = _evidence(a={"x": 10 + difference}, b={"x": 10})
    judged = _one(_claim("every", Comparison("a", "b", "x", "similar", margin)), evidence)
    assert judged["verdict"] == verdict
    inside = judged["low"] > -margin and judged["high"] < margin
    assert inside == (verdict == "reproduced"), "the 95 % interval decides"
    mirrored = _one(_claim("every", Comparison("b", "a", "x", "similar", margin)), evidence)
    assert mirrored["verdict"] == verdict


def test_a_relative_margin_is_in_the_metrics_own_unit():
    evidence = _evidence(a={"lpips": 4.6}, b={"lpips": 4.5})
    wide, narrow = (_claim("every", Comparison("a", "b", "lpips", "similar", None, share)) for share in (0.1, 0.02))
    assert _one(wide, evidence)["verdict"] == "reproduced" and _one(narrow, evidence)["verdict"] == "undecided"
    assert "margin 0.45" in _one(wide, evidence)["evidence"]


@pytest.mark.parametrize(
    ("difference", "verdict"), [(9, "reproduced"), (-0.2, "reproduced"), (-5, "contradicted"), (-1, "undecided")]
)
def test_no_worse_allows_a_margin_on_one_side_only(difference, verdict):
    evidence = _evidence(a={"x": 10 + difference}, b={"x": 10})
    assert _one(_claim("every", Comparison("a", "b", "x", "no worse", 1.0)), evidence)["verdict"] == verdict


def test_bounds_on_one_method():
    evidence = _evidence(a={"x": 10})
    for bound, verdict in ((Bound("a", "x", below=11), "reproduced"), (Bound("a", "x", above=11), "contradicted")):
        assert _one(_claim("every", bound), evidence)["verdict"] == verdict
    assert _one(_claim("every", Bound("a", "x", above=10)), evidence)["verdict"] == "undecided"
    with pytest.raises(ConfigurationError, match="either `below` or `above`"):
        Bound("a", "x")


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        (Comparison("a", "b", "x"), "reproduced"),
        (Comparison("b", "a", "x"), "contradicted"),
        (Comparison("a", "c", "x"), "contradicted"),  # equal is not better
        (Comparison("a", "c", "x", "similar", 0.0), "reproduced"),
        (Bound("a", "x", above=9), "reproduced"),
        (Bound("a", "x", above=10), "contradicted"),
    ],
)
def test_exact_values_are_decided_without_a_spread(test, verdict):
    rows = [{"method": m, "metric": "x", "task": "", "seed": 0, "value": v} for m, v in (("a", 10), ("b", 5), ("c", 10))]
    for evidence, unit in ((pd.DataFrame(rows), claims.EXACT), (pd.DataFrame(rows).assign(unit=claims.EXACT), "seed")):
        row = _one(_claim("every", test), evidence, unit)
        assert row["verdict"] == verdict and row["unit"] == "exact" and math.isnan(row["low"]) and pd.isna(row["units_needed"])
    assert _one(_claim("every", test), pd.DataFrame(rows))["verdict"] == "not testable here"  # one seed of a sample


def test_what_was_not_run_cannot_be_reproduced_but_can_be_contradicted():
    evidence = _evidence(a={"x": 15, "y": 5}, b={"x": 10, "y": 10})
    missing = Comparison("a", "c", "x")
    assert _one(_claim("every", Comparison("a", "b", "x"), missing), evidence)["verdict"] == "not testable here"
    assert _one(_claim("every", Comparison("a", "b", "y"), missing), evidence)["verdict"] == "contradicted"
    assert _one(_claim("some", Comparison("a", "b", "x"), missing), evidence)["verdict"] == "reproduced"
    assert _one(_claim("every", missing), evidence)["missing"] == "c was not run"
    assert _one(_claim("every", Comparison("a", "b", "z")), evidence)["missing"] == "no value of a for: z"


def test_one_unit_tests_nothing_and_untrained_methods_pair_with_every_seed():
    one = _evidence(a={"x": 15}, b={"x": 10}).query("seed == 0")
    judged = _one(_claim("every", Comparison("a", "b", "x")), one)
    assert judged["verdict"] == "not testable here" and judged["missing"] == "one seed only"
    assert judged["effect"] == pytest.approx(5, abs=0.5) and pd.isna(judged["units_needed"])
    base = pd.DataFrame([{"method": "base", "metric": "x", "task": "t", "seed": 0, "value": 10.0, "adapt_kind": "none"}])
    evidence = pd.concat([_evidence(a={"x": 15}).assign(adapt_kind="peft"), base])
    assert _one(_claim("every", Comparison("a", "base", "x")), evidence)["n"] == 5


def test_the_unit_decides_how_many_values_there_are():
    evidence = _evidence(a={"x": 15}, b={"x": 10})
    assert _one(_claim("every", Comparison("a", "b", "x")), evidence, unit="task")["missing"] == "one task only"


def test_equal_differences_are_ties_and_no_certainty():
    """Two methods that differ by exactly one question in each of two seeds: their spread is not estimated by zero."""
    rows = [
        {"method": m, "metric": "x", "task": "t", "seed": s, "value": v} for m, v in (("a", 80.25), ("b", 80.0)) for s in (0, 1)
    ]
    assert _one(_claim("every", Comparison("a", "b", "x")), pd.DataFrame(rows))["verdict"] == "undecided"
    assert _one(_claim("every", Bound("a", "x", above=80.0)), pd.DataFrame(rows))["verdict"] == "reproduced"  # an exact quantity


def test_an_average_is_taken_within_the_units_that_have_every_test():
    evidence = _evidence(a={"x": 15, "y": 15}, b={"x": 10, "y": 10})
    partial = evidence[(evidence["metric"] == "x") | (evidence["seed"] > 0)]
    assert _one(_claim("average", *A_OVER_B), partial)["n"] == 4
    apart = evidence[(evidence["metric"] == "x") == (evidence["seed"] < 2)]
    assert _one(_claim("average", *A_OVER_B), apart)["verdict"] == "not testable here"


def test_an_interval_outside_the_margin_contradicts_similarity():
    rows = [
        {"method": m, "metric": "x", "task": "t", "seed": s, "value": v}
        for m, values in (("a", (12, 13, 14)), ("b", (10, 10, 10)))
        for s, v in enumerate(values)
    ]
    judged = _one(_claim("every", Comparison("a", "b", "x", "similar", 0.5)), pd.DataFrame(rows))
    assert judged["low"] > 0.5 and judged["verdict"] == "contradicted"


def test_metrics_of_experiments_with_different_units():
    """As in a table whose halves come from two experiments: seeds in one, subjects in the other."""
    by_seed = _evidence(a={"x": 15}, b={"x": 10}).assign(unit="seed")
    by_task = _evidence(a={"y": 15}, b={"y": 10}).assign(unit="task")
    by_task = pd.concat([by_task, by_task.assign(task="u")])
    evidence = pd.concat([by_seed, by_task])
    assert _one(_claim("every", Comparison("a", "b", "x")), evidence)[["n", "unit"]].tolist() == [5, "seed"]
    assert _one(_claim("every", Comparison("a", "b", "y")), evidence)[["n", "unit"]].tolist() == [2, "task"]


def test_holms_correction():
    assert claims.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert claims.holm([0.01, math.nan]) == pytest.approx([0.02, 1.0])
    # twenty true null hypotheses: without correction one of them would count as supporting in 40 % of the cases
    random = np.random.default_rng(0)
    tests = compare_all(["a"], [f"b{i}" for i in range(20)], ["x"])
    hits = 0
    for _ in range(60):
        rows = [
            {"method": m, "metric": "x", "task": "t", "seed": s, "value": random.normal()}
            for m in ("a", *(f"b{i}" for i in range(20)))
            for s in range(4)
        ]
        hits += _one(_claim("some", *tests), pd.DataFrame(rows))["verdict"] == "reproduced"
    assert hits <= 6


def test_where_all_tests_must_agree_no_p_value_is_corrected():
    """An intersection-union test: its level is that of one test, and Holm's correction would only take power from it."""

    def evidence(*effects):
        return pd.DataFrame(
            [
                {"method": m, "metric": metric, "task": "t", "seed": s, "value": v if m == "a" else 0.0}
                for metric, values in zip("xyz", effects, strict=False)
                for m in ("a", "b")
                for s, v in enumerate(values)
            ]
        )

    barely = (1.0, 1.7, 2.3)  # one-sided p = 0.0236
    assert 0.02 < claims.p_greater(barely) < 0.025
    both = evidence(barely, barely)
    assert _one(_claim("every", *A_OVER_B), both)[["verdict", "supporting"]].tolist() == ["reproduced", 2]
    assert _one(_claim("some", *A_OVER_B), both)[["verdict", "supporting"]].tolist() == ["undecided", 0]  # one would decide
    against = evidence(*[[-value for value in barely]] * 2)
    assert _one(_claim("every", *A_OVER_B), against)[["verdict", "contradicting"]].tolist() == ["undecided", 0]
    assert _one(_claim("some", *A_OVER_B), against)[["verdict", "contradicting"]].tolist() == ["contradicted", 2]
    # The worst case: one test is true beyond doubt, and the other is at the boundary of the null hypothesis.
    random = np.random.default_rng(0)
    drawn = [evidence(random.normal(10, 1, size=4), random.normal(size=4)) for _ in range(400)]
    hits = sum(_one(_claim("every", *A_OVER_B), frame)["verdict"] == "reproduced" for frame in drawn)
    assert hits <= 400 * 0.025 + 2.5 * (400 * 0.025 * 0.975) ** 0.5


def test_an_undecided_claim_says_which_verdict_more_units_would_give_it():
    rows = [
        {"method": m, "metric": "x", "task": "t", "seed": s, "value": v if m == "a" else 0.0}
        for m in ("a", "b")
        for s, v in enumerate((1.0, 2.0, -0.5))
    ]
    below = [row | {"value": -row["value"]} for row in rows]
    claim = {quantifier: _claim(quantifier, Comparison("a", "b", "x")) for quantifier in ("every", "some", "average")}
    for quantifier in claim:
        assert _one(claim[quantifier], pd.DataFrame(rows))["would_be"] == "reproduced", quantifier
        assert _one(claim[quantifier], pd.DataFrame(below))["would_be"] == "contradicted", quantifier


def test_units_needed_decide_the_claim_when_they_are_there():
    random = np.random.default_rng(1)
    claim = _claim("every", Comparison("a", "b", "x"))

    def evidence(n, mean=0.5, spread=1.0):
        noise = random.normal(size=n)
        noise = spread * (noise - noise.mean()) / noise.std(ddof=1) + mean  # exactly this mean and spread
        pairs = [("a", noise), ("b", np.zeros(n))]
        return pd.DataFrame(
            [
                {"method": m, "metric": "x", "task": "t", "seed": s, "value": v}
                for m, values in pairs
                for s, v in enumerate(values)
            ]
        )

    judged = _one(claim, evidence(5))
    assert judged["verdict"] == "undecided"
    assert _one(claim, evidence(5 + judged["units_needed"]))["verdict"] == "reproduced"
    assert _one(claim, evidence(4 + judged["units_needed"]))["verdict"] == "undecided"
    against = _one(claim, evidence(5, mean=-0.5))
    assert _one(claim, evidence(5 + against["units_needed"], mean=-0.5))["verdict"] == "contradicted"


def test_the_papers_digits_are_judged_by_the_same_tests():
    paper = {("a", "x"): 5.0, ("b", "x"): 4.0, ("a", "y"): 1.0, ("b", "y"): 2.0}
    evidence = _evidence(a={"x": 1}, b={"x": 1})
    assert _one(_claim("every", *A_OVER_B), evidence, paper=paper)["paper"] == "fails: 1 of 2"
    assert _one(_claim("some", *A_OVER_B), evidence, paper=paper)["paper"] == "holds: 1 of 2"
    similar = _claim("every", Comparison("a", "b", "x", "similar", 1.0))
    assert _one(similar, evidence, paper=paper)["paper"] == "holds: 1 of 1"
    assert _one(similar, evidence)["paper"] == "no printed numbers"
    half = _claim("every", Comparison("a", "b", "x"), Comparison("a", "c", "x"))
    assert _one(half, evidence, paper=paper)["paper"] == "holds: 1 of 1 (1 without printed numbers)"


def test_claims_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="Unknown quantifier"):
        _claim("most", *A_OVER_B)
    with pytest.raises(ConfigurationError, match="no test"):
        _claim("every")
    with pytest.raises(ConfigurationError, match="relation `better`"):
        _claim("average", Bound("a", "x", below=1))
    with pytest.raises(ConfigurationError, match="need a margin"):
        Comparison("a", "b", "x", "similar")
    with pytest.raises(ConfigurationError, match="need a margin"):
        Comparison("a", "b", "x", "better", 1.0)


# --- learning rates --------------------------------------------------------------------------------------------


def _grid(scores, configured=None, task="t", seed=0):
    return pd.DataFrame(
        [
            {"method": "m", "learning_rate": r, "task": task, "seed": seed, "value": v, "configured": r == configured}
            for r, v in scores.items()
        ]
    )


def test_the_best_rate_its_width_and_the_edge_of_the_grid():
    grid = _grid({1e-4: 10.0, 1e-3: 48.0, 1e-2: 50.0, 1e-1: 46.0, 1.0: 20.0}, configured=1e-3)
    chosen = rates.choose(grid).iloc[0]
    assert (chosen["best_rate"], chosen["best_score"], chosen["worst"]) == (1e-2, 50.0, 10.0) and not chosen["at_edge"]
    # From 1e-3 to 1e-1 at 90 % of the best, 45, and on both sides the part of a decade in which the interpolated score is above.
    assert chosen["width"] == pytest.approx(2.0 + 3 / 38 + 1 / 26)
    assert (chosen["configured_rate"], chosen["configured_score"]) == (1e-3, 48.0)
    assert rates.choose(_grid({1e-3: 1.0, 1e-2: 2.0})).iloc[0]["at_edge"]


def test_a_rate_at_which_a_run_failed_is_not_chosen_on_those_that_did_not():
    grid = pd.concat([_grid({1e-3: 5.0, 1e-2: 9.0, 1e-1: 4.0}), _grid({1e-3: 6.0, 1e-2: math.nan, 1e-1: 4.0}, seed=1)])
    chosen = rates.choose(grid).iloc[0]
    assert chosen["best_rate"] == 1e-3 and chosen["best_score"] == 5.5 and chosen["seeds"] == 2
