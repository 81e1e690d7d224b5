"""The change of the hyperspherical energy: Figure 7's values, its bars, and the evidence for its claims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from ether import config
from ether.analysis.claims import MetricInfo
from ether.config import Scale
from ether.exhibits import common
from ether.paper.claims.subject import AT_EQUAL, AT_HIGHEST, AT_LOWEST, AT_RATIO, PAPERS_RATIO
from ether.paper.claims.subject import UNCHANGED as UNCHANGED

CONTROL, CONTROL_RATES = "control", "control_rates"  # experiments of the second halves of Table 6 and Figure 7
NAIVE = "naive-n4"
# The learning rates at which Figure 7's claims compare the methods: endings of the metrics, and what they are called.
RATES = {
    "": "",
    AT_LOWEST: ", lowest common learning rate",
    AT_EQUAL: ", equal learning rates",
    AT_HIGHEST: ", highest common learning rate",
    AT_RATIO: f", Naive with a {PAPERS_RATIO} times lower learning rate",
}
SIDES = {"input": "neurons on the input side", "output": "neurons on the output side"}
OWN, EQUAL = "own", "equal"  # of Figure 7: the learning rates of the methods' files, and one rate for all methods
METRICS = {
    f"{prefix}he_difference_{side}{ending}": MetricInfo(f"relative change of energy, {side} side{where}{at}", format=".1e")
    for prefix, where in (("", ""), ("control_", ", semantic maps"))
    for side in ("input", "output")
    for ending, at in RATES.items()
}


def common_rates(values: pd.DataFrame) -> list[float]:
    """The learning rates at which every method has finished runs of every task and seed of the grid, in increasing order.

    Args:
        values: one row per run, with the columns method, task, seed, learning_rate, status and value.
    """
    finished = values[(values["status"] == "finished") & values["value"].notna()]
    runs_of_all = len(values[["method", "task", "seed"]].drop_duplicates())
    counts = finished.drop_duplicates(["method", "task", "seed", "learning_rate"])["learning_rate"].value_counts()
    return sorted(float(rate) for rate in counts.index[counts == runs_of_all])


def equal_rate(values: pd.DataFrame) -> float:
    """The learning rate at which methods are compared at equal rates.

    Of the `common_rates`, the one nearest to the middle of the grid on a logarithmic scale, the smaller in case of a tie. NaN if
    there is no such rate. Arguments as for `common_rates`.
    """
    common_to_all = common_rates(values)
    if not common_to_all:
        return math.nan
    rates = sorted(values["learning_rate"].dropna().unique())
    middle = (math.log(rates[0]) + math.log(rates[-1])) / 2
    return float(min(common_to_all, key=lambda rate: (round(abs(math.log(rate) - middle), 9), rate)))


def halves(scale: Scale) -> list[tuple[str, str]]:
    """The experiments of Figure 7's halves: (at the methods' own learning rates, grid of rates)."""
    right = common.present(scale, [CONTROL, CONTROL_RATES])
    return [("subject", "subject_rates"), *([(CONTROL, CONTROL_RATES)] if len(right) == 2 else [])]


def _values(scale: Scale, half: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """|HE' - HE| / HE, mean over layers, after the last step: metrics `he_difference_input` and `he_difference_output`.

    At the methods' own learning rates, and over the grid. Models without adapted layers are left out.
    """
    metrics = [f"he_difference_{side}" for side in SIDES]
    published_too = half[0] == CONTROL
    found = [common.last_values(scale, name, "geometry", metrics, or_published=published_too) for name in half]
    own, grid = (frame[~frame["adapt_kind"].isin(("none", "frozen"))].assign(value=frame["value"].abs()) for frame in found)
    return own, grid


def energies(scale: Scale, half: tuple[str, str]) -> pd.DataFrame:
    """The values of Figure 7. The column `rates` is `OWN` for the methods' own learning rates, and `EQUAL` for the rate that
    `equal_rate` selects from the grid."""
    own, grid = _values(scale, half)
    metrics = [f"he_difference_{side}" for side in SIDES]
    equal = grid[grid["learning_rate"] == equal_rate(grid[grid["metric"] == metrics[0]])]
    return pd.concat([own.assign(rates=OWN), equal.assign(rates=EQUAL)], ignore_index=True)


def evidence(scale: Scale, half: tuple[str, str]) -> pd.DataFrame:
    """Evidence for Figure 7's claims: the relative changes of energy, `he_difference_input` and `he_difference_output`.

    With a suffix of `RATES` for runs of the grid, and the prefix `control_` for controllable generation.
    """
    own, grid = _values(scale, half)
    of_one_side = grid[grid["metric"] == "he_difference_input"]
    frames = {"": own}
    if found := common_rates(of_one_side):
        middle = equal_rate(of_one_side)
        for ending, rate in ((AT_LOWEST, found[0]), (AT_EQUAL, middle), (AT_HIGHEST, found[-1])):
            frames[ending] = grid[grid["learning_rate"] == rate]
        of_naive = np.where(grid["method"] == NAIVE, middle / PAPERS_RATIO, middle)
        frames[AT_RATIO] = grid[np.isclose(grid["learning_rate"], of_naive, rtol=1e-6, atol=0)]
    energies = pd.concat([frame.assign(metric=frame["metric"] + ending) for ending, frame in frames.items()])
    if half[0] == CONTROL:
        energies["metric"] = "control_" + energies["metric"]
    return common.evidence_of(energies).assign(unit=common.unit_of(half[0]))


def bars(axes: Any, data: pd.DataFrame, metric: str) -> None:
    """A bar for the mean of each method, with its runs as points; rounding errors are drawn at the lower edge."""
    from ether.exhibits.plots import in_two_lines
    from ether.exhibits.style import GREY, style

    floor, rounding = 1e-8, 1e-16  # the lower edge of the axis; the precision of the energies, which are in double precision
    stems = list(data["method"].unique())
    for place, stem in enumerate(stems):
        values = data[(data["method"] == stem) & (data["metric"] == metric)]["value"]
        if values.empty:
            continue
        mean, points = float(values.mean()), values.clip(lower=floor)
        axes.bar(place, max(mean, floor), color=style(stem)[0], width=0.62, alpha=0.85)
        axes.scatter(np.full(len(points), place), points, color="#222", s=9, zorder=3)
        text = f"{mean:.0e}" if mean >= rounding else f"< {rounding:.0e}"
        axes.text(place, points.max() * 1.6, text, ha="center", va="bottom", fontsize=8 if len(stems) < 8 else 6.5)
    axes.axhline(UNCHANGED, color=GREY, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(floor, 10)
    names = [in_two_lines(config.label(stem)) for stem in stems]
    axes.set_xticks(range(len(stems)), names, rotation=35, ha="right", fontsize=9)
