"""Figures of the language experiments, from their tidy tables."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ether import tables
from ether.config import Scale
from ether.plots import new_figure, style

SCORES = {"score": "mean of the benchmarks", "mmlu": "MMLU", "arc": "ARC", "tru1": "Tru-1", "tru2": "Tru-2"}


def rate_scores(scale: Scale, or_published: bool = False) -> pd.DataFrame:
    """Scores of the learning-rate grid of instruction tuning (`or_published`: see `ether.tables.read`).

    Columns: `method`, `rate` (NaN for the base model), `seed`, `metric` (a key of SCORES), `value` in percent (NaN for a
    run that diverged), `status`, `split`, `chosen`: whether the method's file names this rate for this scale.
    """
    from ether import config

    runs, metrics = tables.read(scale, "instruct_rates", or_published)
    split = scale.experiment("instruct_rates")["evaluation"]["split"]
    own = metrics[metrics["split"] == split]
    named = {
        run.label: run.hyperparameters["learning_rate"] for run in config.runs(scale, "instruct") if run.adapt["kind"] != "none"
    }
    rows = []
    for run in runs.itertuples():
        told = json.loads(run.config)
        rate = told["hyperparameters"]["learning_rate"] if told["adapt"]["kind"] != "none" else float("nan")
        values = own[own["run_id"] == run.run_id].set_index("metric")["value"]
        for metric in SCORES:
            if metric in set(own["metric"]):
                rows.append(
                    {
                        "method": run.method,
                        "rate": rate,
                        "seed": run.seed,
                        "metric": metric,
                        "value": values.get(metric, float("nan")),
                        "status": run.status,
                        "split": split,
                        "chosen": rate == named.get(run.method),
                    }
                )
    return pd.DataFrame(rows)


def rate_choice(data: pd.DataFrame) -> pd.DataFrame:
    """For each method the grid's best rate by mean score, the rate its file names, and how far apart they are in score."""
    score = data[(data["metric"] == "score") & data["rate"].notna()]
    rows = []
    for method, own in score.groupby("method", sort=False):
        by_rate = own.groupby("rate")["value"].mean()
        named = own[own["chosen"]]
        rate = named["rate"].iloc[0] if len(named) else float("nan")
        rows.append(
            {
                "method": method,
                "best rate of the grid": by_rate.idxmax() if by_rate.notna().any() else float("nan"),
                "its score": by_rate.max(),
                "rate in the method's file": rate,
                "that rate's score": by_rate.get(rate, float("nan")),
                "spread over the grid": by_rate.max() - by_rate.min(),
                "worst": by_rate.min(),
            }
        )
    return pd.DataFrame(rows)


def figure_instruct_rates(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Score on the tuning splits against the learning rate, for every method of Table 5; the paper has no such figure."""
    data = rate_scores(scale)
    there = [metric for metric in SCORES if metric in set(data["metric"])]
    figure = new_figure(9.5, 6.6)
    small = there[1:]
    axes: dict[str, Any] = figure.subplot_mosaic([["score"] * len(small), small], height_ratios=[1.7, 1])  # type: ignore[list-item]
    seeds = ", ".join(map(str, sorted(data["seed"].unique())))
    for metric, panel in axes.items():
        own = data[data["metric"] == metric]
        base = own[own["rate"].isna()]["value"]
        if len(base):
            panel.axhline(base.mean(), color="#555", linestyle=":", linewidth=1.2, label="Base model", zorder=1)
        for method, rows in own[own["rate"].notna()].groupby("method", sort=False):
            colour, marker = style(str(method))
            mean = rows.groupby("rate")["value"].mean()
            lighter = str(method) in ("LoRA r=1", "VeRA r=256")
            panel.plot(
                mean.index,
                mean.values,
                color=colour,
                marker=marker,
                markersize=6 if metric == "score" else 4,
                linewidth=1.6 if metric == "score" else 1.1,
                linestyle="--" if lighter else "-",
                label=method,
            )
        panel.set_xscale("log")
        panel.set_title(SCORES[metric], fontsize=11 if metric == "score" else 10)
        panel.grid(alpha=0.25)
        if metric in ("score", small[0]):
            panel.set_ylabel("score, %")
        panel.set_xlabel("learning rate")
    axes["score"].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.suptitle(
        f"Instruction tuning, score against learning rate (scale {scale.name}, tuning splits, seed {seeds})", fontsize=11
    )
    return figure, data
