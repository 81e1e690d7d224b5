"""Evaluation of a paper's claims from measured values, for all tables and figures.

A claim is a quantifier over tests. A test compares two methods in one metric (`Comparison`), or one method's metric with a
bound (`Bound`). Every test has an effect, which is positive if it agrees with the claim, with the 95 % Student t interval
of `ether.analysis.intervals`, and two one-sided p-values: for the claim and against it. "Similar" is a comparison with a
margin in the metric's unit, tested by two one-sided tests against the margin in both directions. All tests have a level of
2.5 % on each side, so that an uncorrected test is decided if and only if its 95 % interval excludes the bound. Where one test of
many would decide the claim, the p-values in that direction are corrected by Holm's method: those against a claim with the
quantifier every, and those for a claim with the quantifier some. Where all tests must agree, the level of the whole is that of a
single test (an intersection-union test: the probability that all of them err is at most that of one), and nothing is corrected.

The verdict of a claim:

quantifier   reproduced                 contradicted                     otherwise
every        every test supports        some test contradicts            undecided
some         some test supports         every test contradicts           undecided
average      decided by one test of the mean over the tests, which is taken within each unit

A claim is "not testable here" if a method or metric has no measured values, unless the remaining tests decide it.

Values with the unit ``exact`` are counted, not sampled: there is one per method and metric, without uncertainty, and a test on
them supports or contradicts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from ether.analysis.intervals import mean_interval, p_greater, paired_differences, unit_means, units_to_decide
from ether.errors import ConfigurationError, one_of

ALPHA = 0.025  # on each side
EXACT = "exact"  # the unit of values that are counted, not sampled
Verdict = Literal["reproduced", "contradicted", "undecided", "not testable here"]
Quantifier = Literal["every", "average", "some"]
Relation = Literal["better", "similar", "no worse"]
COLUMNS = [
    "id", "exhibit", "source", "claim", "quantifier", "verdict", "effect", "low", "high", "n", "unit", "supporting",
    "contradicting", "tests", "missing", "paper", "units_needed", "would_be", "units", "kind", "benchmark", "evidence",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two methods in a metric, in the metric's direction (`MetricInfo.better`).

    Args:
        first, second: stems of the methods.
        metric: name of the measured value.
        relation: better: `first` has a better value than `second`; similar: they differ by no more than the margin; no worse:
            `first` is not worse than `second` by more than the margin.
        margin: in the metric's unit.
        relative_margin: margin as a fraction of the second method's mean.

    Raises:
        ConfigurationError: a relation without its margin, or a margin without its relation.
    """

    first: str
    second: str
    metric: str
    relation: Relation = "better"
    margin: float | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        if self.relation not in get_args(Relation):
            raise one_of("relation", self.relation, get_args(Relation), f"a comparison of {self.first!r} and {self.second!r}")
        if (self.relation == "better") == (self.margin is not None or self.relative_margin is not None):
            raise ConfigurationError(
                f"The comparison of {self.first!r} and {self.second!r} in {self.metric!r}: `similar` and `no worse` need a "
                "margin, `better` has none."
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """Stems of the compared methods."""
        return self.first, self.second

    def margin_at(self, second_mean: float) -> float | None:
        """The margin in the metric's unit, given the second method's mean."""
        return self.margin if self.relative_margin is None else self.relative_margin * abs(second_mean)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A method's `metric` is below, or above, a bound in the metric's unit."""

    method: str
    metric: str
    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ConfigurationError(f"A bound on {self.metric!r} of {self.method!r} needs either `below` or `above`.")

    @property
    def methods(self) -> tuple[str, ...]:
        """Stem of the method."""
        return (self.method,)


Test = Comparison | Bound


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Args:
        id: unique, in words joined by hyphens.
        exhibit: id of the table or figure whose values are used.
        source: section, figure or caption of the paper.
        text: the claim in our words.
        quantifier: every | average | some of the tests.
        tests: the tests. Under `average` they must be differences in the same unit.
        benchmark: the heading under which the claim is counted; "" for that of its module.
        by_construction: whether the method's definition implies the claim, so that a measurement can only confirm it.
        units: what the units are called, if they are neither subjects nor seeds.
    """

    id: str
    exhibit: str
    source: str
    text: str
    quantifier: Quantifier
    tests: tuple[Test, ...]
    benchmark: str = dataclasses.field(default="", kw_only=True)
    by_construction: bool = dataclasses.field(default=False, kw_only=True)
    units: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.quantifier not in get_args(Quantifier):
            raise one_of("quantifier", self.quantifier, get_args(Quantifier), f"the claim {self.id!r}")
        if not self.tests:
            raise ConfigurationError(f"The claim {self.id!r} has no tests. Add at least one.")
        if self.quantifier == "average" and any(isinstance(test, Bound) or test.relation != "better" for test in self.tests):
            raise ConfigurationError(
                f"The claim {self.id!r} averages over tests: all must be comparisons with relation `better`."
            )


@dataclasses.dataclass(frozen=True)
class MetricInfo:
    """Name, direction and number format of a metric."""

    name: str
    better: str = "higher"  # higher | lower
    format: str = ".3f"

    @property
    def sign(self) -> int:
        return -1 if self.better == "lower" else 1


def compare_all(
    first: Sequence[str],
    second: Sequence[str],
    metrics: Sequence[str],
    relation: Relation = "better",
    *,
    relative_margin: float | None = None,
) -> tuple[Comparison, ...]:
    """Comparisons of every method in `first` with every other method in `second`, in every metric."""
    return tuple(
        Comparison(a, b, metric, relation, None, relative_margin) for a in first for b in second if a != b for metric in metrics
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method. NaN, the p-value of a test without enough values, counts as 1."""
    values = [_p_or_1(p) for p in p_values]
    adjusted, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


# --- one test --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Result:
    """A test with its effects, one per unit; an effect is positive if it agrees with the claim."""

    test: Test
    effects: list[float]
    margin: float | None = None
    missing: str = ""
    unit: str = ""
    units: list[object] = dataclasses.field(default_factory=list)  # which unit each effect is of
    verdict: str = "undecided"  # supporting | contradicting | undecided

    def p_values(self) -> tuple[float, float]:
        """One-sided p-values for and against the claim; 0 and 1 for exact values."""
        if self.unit == EXACT:
            return (0.0, 1.0) if self.holds else (1.0, 0.0)
        if isinstance(self.test, Comparison) and len(set(self.effects)) == 1:
            return math.nan, math.nan  # equal differences, such as ties of discrete scores, do not estimate a spread
        negative = [-value for value in self.effects]
        if self.margin is None:
            return p_greater(self.effects), p_greater(negative)
        if not self.two_sided:
            return p_greater(self.effects, -self.margin), p_greater(negative, self.margin)
        inside = max(p_greater(self.effects, -self.margin), p_greater(negative, -self.margin))
        outside = min(p_greater(self.effects, self.margin), p_greater(negative, self.margin))
        return inside, outside

    @property
    def two_sided(self) -> bool:
        """Whether a large effect in either direction is against the claim."""
        return isinstance(self.test, Comparison) and self.test.relation == "similar"

    def _distance(self) -> float:
        """Distance of the mean effect from the boundary of the claim; negative if it contradicts the claim."""
        mean, margin = float(np.mean(self.effects)), self.margin or 0.0
        return margin - abs(mean) if self.two_sided else mean + margin

    @property
    def holds(self) -> bool:
        """Whether the mean effect agrees with the claim, regardless of its uncertainty."""
        distance = self._distance()
        return distance > 0 or (distance == 0 and self.margin is not None)

    @property
    def strength(self) -> float:
        """The distance of the mean effect from the boundary of the claim in standard errors; negative contradicts the claim."""
        distance = self._distance()
        spread = float(np.std(self.effects, ddof=1)) / math.sqrt(len(self.effects)) if len(self.effects) > 1 else 0.0
        return distance / spread if spread > 0 else math.copysign(math.inf, distance) if distance else 0.0

    def units_to_decide(self, alpha: float) -> int | None:
        """Total number of units at which this test would be decided, at the observed mean and standard deviation."""
        mean, margin = float(np.mean(self.effects)), self.margin or 0.0
        return units_to_decide(self.effects, math.copysign(margin, mean) if self.two_sided else -margin, alpha)


def _values(evidence: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    rows = evidence[(evidence["method"] == method) & (evidence["metric"] == metric)]
    return rows.dropna(subset="value")


def _measure(test: Test, evidence: pd.DataFrame, default_unit: str, metrics: Mapping[str, MetricInfo]) -> _Result:
    values = {method: _values(evidence, method, test.metric) for method in test.methods}
    for method, rows in values.items():
        if rows.empty:
            was_run = (evidence["method"] == method).any()
            name = metrics[test.metric].name if test.metric in metrics else test.metric
            return _Result(test, [], missing=f"no value of {method} for: {name}" if was_run else f"{method} was not run")
    unit = str(values[test.methods[0]]["unit"].iloc[0]) if "unit" in evidence else default_unit
    by = "seed" if unit == EXACT else unit
    if isinstance(test, Bound):
        of_units = unit_means(values[test.method], by)
        if test.below is not None:
            return _Result(test, (test.below - of_units).tolist(), unit=unit, units=list(of_units.index))
        assert test.above is not None
        return _Result(test, (of_units - test.above).tolist(), unit=unit, units=list(of_units.index))
    sign = metrics[test.metric].sign if test.metric in metrics else 1
    differences = sign * paired_differences(values[test.first], values[test.second], by)
    if differences.empty:
        return _Result(test, [], missing=f"{test.first} and {test.second} have no {unit} in common")
    margin = test.margin_at(float(unit_means(values[test.second], by).mean()))
    return _Result(test, differences.tolist(), margin, unit=unit, units=list(differences.index))


# --- a claim ---------------------------------------------------------------------------------------------------


def judge(
    claims: Sequence[Claim],
    evidence: pd.DataFrame,
    unit: str,
    *,
    metrics: Mapping[str, MetricInfo] | None = None,
    labels: Mapping[str, str] | None = None,
    paper: Mapping[tuple[str, str], float] | None = None,
) -> pd.DataFrame:
    """Evaluates claims on measured values, and the same tests on the numbers printed in the paper.

    Args:
        claims: the claims.
        evidence: one row per run and metric, with columns method, metric, task, seed, value, optionally adapt_kind ("none" for
            a method without training), and optionally unit if the metrics come from experiments with different units.
        unit: task | seed, see `ether.analysis.intervals`, or `EXACT`; used if `evidence` has no column unit.
        metrics: direction and format of the metrics; by default higher is better.
        labels: names of the methods for the evidence column.
        paper: {(method, metric): printed number}.

    Returns:
        One row per claim with the columns of ``COLUMNS``. `effect`, `low`, `high`: of the average, or of the test with the
        smallest (quantifier every) or largest (some) distance from the boundary of the claim in standard errors. `supporting`,
        `contradicting` of `tests`: numbers after the correction that the quantifier asks for. `paper`: the result of the printed
        numbers. `units_needed`: for an undecided claim, the number of additional units that would decide it at the observed
        mean and standard deviation; NA if more than 10,000 are needed, or if a test has one unit only. `would_be`: the verdict
        it would then have. `units`, `benchmark`: from the claim. `kind`: counted (values of the unit ``exact``), construction,
        or measured.
    """
    rows = [_judge(claim, evidence, unit, metrics or {}, labels or {}, paper or {}) for claim in claims]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"units_needed": "Int64"})


def _judge(
    claim: Claim,
    evidence: pd.DataFrame,
    unit: str,
    metrics: Mapping[str, MetricInfo],
    labels: Mapping[str, str],
    paper: Mapping[tuple[str, str], float],
) -> dict[str, object]:
    results = [_measure(test, evidence, unit, metrics) for test in claim.tests]
    made = [result for result in results if not result.missing]
    missing = [result.missing for result in results if result.missing]
    for_each, against_each = ([_p_or_1(r.p_values()[side]) for r in made] for side in (0, 1))
    if claim.quantifier == "every":
        against_each = holm(against_each)
    elif claim.quantifier == "some":
        for_each = holm(for_each)
    for result, for_claim, against in zip(made, for_each, against_each, strict=True):
        result.verdict = "supporting" if for_claim <= ALPHA else "contradicting" if against <= ALPHA else "undecided"
    counts = {kind: sum(result.verdict == kind for result in made) for kind in ("supporting", "contradicting", "undecided")}
    reported = made
    if claim.quantifier == "average":
        verdict, reported = _average(made, missing)
    else:
        verdict = _quantified(claim.quantifier, counts, len(made), bool(missing))
    if made and all(len(result.effects) == 1 and result.unit != EXACT for result in made):
        missing.append(f"one {unit} only")
        verdict = "not testable here"
    chosen = min(reported, key=lambda r: r.strength, default=None)
    if claim.quantifier == "some":
        chosen = max(reported, key=lambda r: r.strength, default=None)
    interval = mean_interval(chosen.effects if chosen else [], chosen.unit if chosen else unit)
    needed, would_be = _units_needed(claim.quantifier, reported) if verdict == "undecided" else (None, "")
    counted = bool(made) and all(result.unit == EXACT for result in made)
    return {
        "id": claim.id,
        "exhibit": claim.exhibit,
        "source": claim.source,
        "claim": claim.text,
        "quantifier": claim.quantifier,
        "verdict": verdict,
        "effect": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "unit": interval.unit,
        "supporting": counts["supporting"],
        "contradicting": counts["contradicting"],
        "tests": len(results),
        "missing": "; ".join(dict.fromkeys(missing)),
        "paper": _of_the_paper(claim, metrics, paper),
        "units_needed": needed,
        "would_be": would_be,
        "units": claim.units,
        "kind": "counted" if counted else "construction" if claim.by_construction else "measured",
        "benchmark": claim.benchmark,
        "evidence": _evidence(made, missing, verdict, metrics, labels),
    }


def _quantified(quantifier: str, counts: Mapping[str, int], made: int, missing: bool) -> Verdict:
    if quantifier == "every":
        if counts["contradicting"]:
            return "contradicted"
        if missing:
            return "not testable here"
        return "reproduced" if counts["supporting"] == made else "undecided"
    if counts["supporting"]:
        return "reproduced"
    if missing:
        return "not testable here"
    return "contradicted" if counts["contradicting"] == made else "undecided"


def _average(made: Sequence[_Result], missing: Sequence[str]) -> tuple[Verdict, list[_Result]]:
    """The verdict of the mean effect over the tests, and that mean as one result."""
    if missing or not made or len({result.unit for result in made}) > 1:
        return "not testable here", []
    effects = pd.DataFrame({number: pd.Series(r.effects, index=r.units) for number, r in enumerate(made)}).dropna()
    if effects.empty:
        return "not testable here", []  # no unit has all tests
    mean = _Result(made[0].test, effects.mean(axis=1).tolist(), unit=made[0].unit, units=list(effects.index))
    for_claim, against = mean.p_values()
    return "reproduced" if for_claim <= ALPHA else "contradicted" if against <= ALPHA else "undecided", [mean]


def _p_or_1(p_value: float) -> float:
    """A p-value; 1 for NaN, that of a test without enough values."""
    return 1.0 if math.isnan(p_value) else p_value


def _units_needed(quantifier: str, results: Sequence[_Result]) -> tuple[int | None, str]:
    """Number of additional units that would decide a claim, and the verdict that it would then have.

    Where one test decides, it is taken at the smallest of Holm's levels; where all must agree, each at the level of a single one.
    """
    undecided = [result for result in results if result.verdict == "undecided"]
    one_decides = [r for r in undecided if r.holds == (quantifier == "some")]
    one, all_agree = ("reproduced", "contradicted") if quantifier == "some" else ("contradicted", "reproduced")
    if quantifier == "average":
        one_decides, all_agree = [], "reproduced" if undecided and undecided[0].holds else "contradicted"
    if one_decides:  # a single test in this direction decides the claim
        totals = [(r.units_to_decide(ALPHA / len(results)), len(r.effects)) for r in one_decides]
        found = [n - measured for n, measured in totals if n is not None]
        return (max(1, min(found)), one) if found else (None, "")
    totals = [(r.units_to_decide(ALPHA), len(r.effects)) for r in undecided]
    if not totals or any(n is None for n, _ in totals):
        return None, ""
    return max(1, max(n - measured for n, measured in totals if n is not None)), all_agree


def _of_the_paper(claim: Claim, metrics: Mapping[str, MetricInfo], paper: Mapping[tuple[str, str], float]) -> str:
    """The result of the claim for the printed numbers, which have no uncertainty."""
    effects: list[float] = []
    holds: list[bool] = []
    for test in claim.tests:
        found = [paper.get((method, test.metric)) for method in test.methods]
        if any(value is None or math.isnan(value) for value in found):
            continue
        numbers = [float(value) for value in found if value is not None]
        if isinstance(test, Bound):
            effect = test.below - numbers[0] if test.below is not None else numbers[0] - (test.above or 0.0)
            holds.append(effect > 0)
        else:
            effect = (metrics[test.metric].sign if test.metric in metrics else 1) * (numbers[0] - numbers[1])
            margin = test.margin_at(numbers[1])
            if margin is None:
                holds.append(effect > 0)
            else:
                holds.append((-effect if test.relation == "no worse" else abs(effect)) <= margin)
        effects.append(effect)
    if not holds:
        return "no printed numbers"
    printed = "" if len(holds) == len(claim.tests) else f" ({len(claim.tests) - len(holds)} without printed numbers)"
    if claim.quantifier == "average":
        return ("holds" if float(np.mean(effects)) > 0 else "fails") + f": mean difference {np.mean(effects):+.3g}{printed}"
    verdict = all(holds) if claim.quantifier == "every" else any(holds)
    return f"{'holds' if verdict else 'fails'}: {sum(holds)} of {len(holds)}{printed}"


# --- evidence in words -----------------------------------------------------------------------------------------

_ORDER: dict[str, tuple[str, ...]] = {
    "contradicted": ("contradicting", "undecided", "supporting"),
    "undecided": ("undecided", "contradicting", "supporting"),
    "not testable here": ("undecided", "contradicting", "supporting"),
    "reproduced": ("supporting", "undecided", "contradicting"),
}
_LINES = 6  # maximum number of tests in the text


def _evidence(
    made: Sequence[_Result], missing: Sequence[str], verdict: str, metrics: Mapping[str, MetricInfo], labels: Mapping[str, str]
) -> str:
    """Text with the tests, each with its effect and 95 % interval; those that decide the claim come first."""
    order = _ORDER[verdict]
    results = sorted(made, key=lambda r: (order.index(r.verdict), r.strength if verdict != "reproduced" else -r.strength))
    lines = [f"{_line(result, metrics, labels)}: {result.verdict}" for result in results[:_LINES]]
    if len(results) > _LINES:
        lines.append(f"and {len(results) - _LINES} more")
    names = [" ".join(labels.get(word, word) for word in text.split(" ")) for text in dict.fromkeys(missing)]
    return "; ".join([*lines, *names])


def _line(result: _Result, metrics: Mapping[str, MetricInfo], labels: Mapping[str, str]) -> str:
    test = result.test
    info = metrics.get(test.metric, MetricInfo(test.metric, format=".3g"))
    mean, low, high, *_ = mean_interval(result.effects)
    if isinstance(test, Bound):
        sign, bound = (-1, test.below) if test.below is not None else (1, test.above)
        assert bound is not None
        ends = sorted((bound + sign * low, bound + sign * high))
        between = "" if math.isnan(low) else f" [{ends[0]:{info.format}}, {ends[1]:{info.format}}]"
        relation = f"{'<' if sign < 0 else '>'} {bound:.3g}"
        return f"{labels.get(test.method, test.method)}, {info.name} {relation}: {bound + sign * mean:{info.format}}{between}"
    between = "" if math.isnan(low) else f" [{low:+{info.format}}, {high:+{info.format}}]"
    names = f"{labels.get(test.first, test.first)} – {labels.get(test.second, test.second)}, {info.name}"
    margin = "" if result.margin is None else f" ({test.relation}, margin {result.margin:{info.format}})"
    return f"{names}: {mean:+{info.format}}{between}{margin}"
