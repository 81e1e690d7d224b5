"""What the paper says about its tables, as comparisons that can be held against any run of them.

A statement is a list of comparisons, "this row above that row in these columns". It holds where every difference's 95 %
interval over seeds lies on the claimed side, does not hold where one lies on the other side, and is inconclusive
otherwise; it cannot be tested where a row was not run. The same comparisons are made on the paper's own digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ether.errors import one_of
from ether.paper import published

Verdict = Literal["holds", "does not hold", "inconclusive", "not testable at this scale"]
Interval = Callable[[Sequence[float]], tuple[float, float, float]]
LANGUAGE = ("MMLU", "ARC", "Tru-1", "Tru-2")
QUALITY = ("DINO", "CLIP-I")
TUNED = ("VeRA r=64", "VeRA r=256", "LoRA r=1", "LoRA r=8", "OFT n=256", "ETHER n=32", "ETHER+ n=32")


@dataclass(frozen=True)
class Comparison:
    """`above` has the better score than `below`, or, where `within` is given, differs from it by no more than that."""

    above: str
    below: str
    columns: tuple[str, ...]
    within: float | None = None


@dataclass(frozen=True)
class Statement:
    """One statement: where it stands, in our words, and what has to be true."""

    table: str
    place: str
    text: str
    comparisons: tuple[Comparison, ...]


def _all(above: Iterable[str], below: Iterable[str], columns: tuple[str, ...]) -> tuple[Comparison, ...]:
    return tuple(Comparison(a, b, columns) for a in above for b in below if a != b)


STATEMENTS = (
    Statement("table2", "Sec. 5.1.1", "ETHER+ has better image quality than OFT.", _all(["ETHER+"], ["OFT n=4"], QUALITY)),
    Statement("table2", "Table 2", "ETHER+ has the best image quality of all methods.",
              _all(["ETHER+"], ["DreamBooth", "LoRA r=4", "OFT n=4", "ETHER"], QUALITY)),
    Statement("table2", "Sec. 5.1.1", "ETHER falls short of every other method in image quality.",
              _all(["DreamBooth", "LoRA r=4", "OFT n=4", "ETHER+"], ["ETHER"], QUALITY)),
    Statement("table2", "Sec. 5.1.1", "ETHER has the best text-prompt fidelity and diversity.",
              _all(["ETHER"], ["DreamBooth", "LoRA r=4", "OFT n=4", "ETHER+"], ("CLIP-T", "LPIPS"))),
    Statement("table6", "Sec. 5.3", "OFT and Naive do not differ significantly (here: by no more than 0.05).",
              (Comparison("OFT n=4", "Naive n=4", (*QUALITY, "CLIP-T", "LPIPS"), within=0.05),)),
    Statement("table11", "App. D.2", "Two-sided ETHER+ does better than one-sided.",
              _all(["ETHER+"], ["ETHER+ (one-sided)"], QUALITY)),
    Statement("table5", "Sec. 5.2.2", "Every tuned model surpasses the base model on every benchmark.",
              _all(TUNED, ["Base model"], LANGUAGE)),
    Statement("table5", "Sec. 5.2.2", "ETHER outperforms the baselines of comparable size, VeRA r=64 and LoRA r=1.",
              _all(["ETHER n=32"], ["VeRA r=64", "LoRA r=1"], LANGUAGE)),
    Statement("table5", "Sec. 5.2.2", "Raising VeRA's rank from 64 to 256 lowers the scores.",
              _all(["VeRA r=64"], ["VeRA r=256"], LANGUAGE)),
    Statement("table5", "Sec. 5.2.2", "LoRA r=8 does better than LoRA r=1.", _all(["LoRA r=8"], ["LoRA r=1"], LANGUAGE)),
    Statement("table5", "Sec. 5.2.2", "ETHER outperforms LoRA r=8 on MMLU.", _all(["ETHER n=32"], ["LoRA r=8"], ("MMLU",))),
    Statement("table5", "caption", "ETHER outperforms LoRA r=8 and OFT.",
              _all(["ETHER n=32"], ["LoRA r=8", "OFT n=256"], LANGUAGE)),
    Statement("table5", "Sec. 5.2.2", "ETHER+ surpasses all other methods on all benchmarks.",
              _all(["ETHER+ n=32"], [m for m in TUNED if m != "ETHER+ n=32"], LANGUAGE)),
    Statement("table10", "App. D.1", "The number of blocks hardly matters (no score of n = 1, 4, 32 moves by more than 1.5).",
              tuple(Comparison(f"ETHER+ n={a}", f"ETHER+ n={b}", LANGUAGE, within=1.5) for a, b in ((1, 4), (4, 32), (1, 32)))),
    Statement("table10", "App. D.1", "The same for the ladder above: n = 32, 64, 128.",
              tuple(Comparison(f"ETHER+ n={a}", f"ETHER+ n={b}", LANGUAGE, within=1.5)
                    for a, b in ((32, 64), (64, 128), (32, 128)))),
    Statement("table10", "App. D.1", "ETHER+ with n = 32 does better than with fewer blocks.",
              _all(["ETHER+ n=32"], ["ETHER+ n=1", "ETHER+ n=4"], LANGUAGE)),
)  # fmt: skip


def _verdict(low: float, high: float, within: float | None) -> Verdict:
    if within is not None:
        if -within <= low and high <= within:
            return "holds"
        return "does not hold" if low > within or high < -within else "inconclusive"
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 else "inconclusive"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    for verdict in ("not testable at this scale", "does not hold", "inconclusive"):
        if verdict in verdicts:
            return verdict  # type: ignore[return-value]
    return "holds"


def _of_the_paper(statement: Statement) -> str:
    table = published.load()[statement.table]
    verdicts: list[Verdict] = []
    for c in statement.comparisons:
        for column in c.columns:
            if c.above not in table.methods or c.below not in table.methods:
                return "–"
            above, below = table.value(c.above, column), table.value(c.below, column)
            if above is None or below is None:
                return "–"
            difference = (above - below) * (-1 if table.column(column).better == "lower" else 1)
            verdicts.append(_verdict(difference, difference, c.within))
    broken = sum(v != "holds" for v in verdicts)
    return "holds" if not broken else f"{broken} of {len(verdicts)} comparisons fail"


def judge(table: str, scores: pd.DataFrame, interval: Interval) -> pd.DataFrame:
    """Every statement on a table, judged by a run of it.

    Args:
        table: "table5", ….
        scores: columns `method` (label), `column`, `seed`, `task`, `value`; one row a score. Differences are taken within
            a task and seed.
        interval: mean and 95 % interval of values over seeds.

    Returns:
        Columns `statement`, `place`, `verdict`, `evidence` (for each comparison that decides, the difference and its
        interval), `paper` (whether the paper's own digits bear it out).

    Raises:
        ConfigurationError: nothing is said about this table here.
    """
    if table not in {s.table for s in STATEMENTS}:
        raise one_of("table", table, {s.table for s in STATEMENTS}, "ether/paper/statements.py")
    if "task" not in scores:
        scores = scores.assign(task="")
    values = {key: group.set_index(["task", "seed"])["value"] for key, group in scores.groupby(["method", "column"])}
    rows = []
    for statement in (s for s in STATEMENTS if s.table == table):
        found: list[tuple[Verdict, str]] = []
        for c in statement.comparisons:
            for column in c.columns:
                found.append(_compare(c, column, table, values, interval))
        verdict = _together([v for v, _ in found])
        deciding = list(dict.fromkeys(text for v, text in found if v == verdict))
        shown = deciding if verdict != "holds" else deciding[:1] + ([f"and {len(deciding) - 1} more"] if deciding[1:] else [])
        shown = shown[:6] + ([f"and {len(shown) - 6} more"] if len(shown) > 6 else [])
        holding = sum(v == "holds" for v, _ in found)
        rows.append(
            {
                "statement": statement.text,
                "place": statement.place,
                "verdict": verdict,
                "evidence": f"{holding} of {len(found)} comparisons hold; {verdict}: " + "; ".join(shown),
                "paper": _of_the_paper(statement),
            }
        )
    return pd.DataFrame(rows)


def _compare(
    c: Comparison, column: str, table: str, values: dict[tuple[str, str], pd.Series], interval: Interval
) -> tuple[Verdict, str]:
    above, below = values.get((c.above, column)), values.get((c.below, column))
    name = f"{c.above} – {c.below}, {column}"
    if above is None or below is None:
        return "not testable at this scale", f"{c.above if above is None else c.below} was not run"
    if len(below) == 1:  # the base model: not trained, so the same for every seed
        below = pd.Series(below.iloc[0], index=above.index)
    difference = (above - below).dropna()
    if difference.empty:
        return "not testable at this scale", f"{name}: no seed in common"
    columns = {column.name: column for column in published.load()[table].columns}
    sign = -1 if column in columns and columns[column].better == "lower" else 1
    digits = 1 if table in ("table5", "table10") else 3  # percentages, or cosines
    mean, low, high = interval((sign * difference).tolist())
    if np.isnan(low):  # one seed has no interval, so nothing is decided
        return "inconclusive", f"{name}: {mean:+.{digits}f} (one run)"
    return _verdict(low, high, c.within), f"{name}: {mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
