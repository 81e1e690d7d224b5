"""Exhibits on instruction tuning: Tables 5 and 10, and the score against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ether import config, targets
from ether.analysis import runs
from ether.analysis.cells import Cell
from ether.config import Scale
from ether.exhibits import common, learning_rates
from ether.exhibits.exact import parameter_cells, tflops_cells
from ether.paper import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORE = "score"  # the metric with the mean of the benchmarks
# The panels of the figure of learning rates, by metric.
PANELS = {SCORE: "mean of the benchmarks", "mmlu": "MMLU", "arc": "ARC", "tru1": "Tru-1", "tru2": "Tru-2"}
LIKELIHOOD = "likelihood of a held-out token"  # the score of runs without benchmarks


def _values(scale: Scale, exhibit: str) -> pd.DataFrame:
    split = scale.experiment("instruct")["evaluation"]["split"]
    return common.last_values(scale, "instruct", split, common.metric_columns(published.load()[exhibit]))


def _measured(exhibit: str, scale: Scale, rows: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    paper = published.load()[exhibit]
    labels = {stem: paper.label(stem) for stem in rows}
    return common.measured_cells(paper, labels, _values(scale, exhibit), common.unit_of("instruct"), scale)


# --- tables ----------------------------------------------------------------------------------------------------


def table5(scale: Scale) -> pd.DataFrame:
    """Table 5: MMLU over all questions and as a mean over subjects, ARC plain and length-normalised, TruthfulQA."""
    methods = targets.printed_methods("table5", config.chosen_methods(scale, "instruct"))
    counted = {stem: method for stem, method in methods.items() if method["adapt"]["kind"] != "none"}
    return common.table([*parameter_cells("table5", counted), *_measured("table5", scale, methods)], methods)


def table10(scale: Scale) -> pd.DataFrame:
    """Table 10: ETHER+ and, as named in its caption, ETHER by number of blocks; TFLOPs as in Table 1.

    Rows of the paper that cannot be run at this scale (a block is wider than the layer) have a dash.
    """
    of_the_paper = published.load()["table10"].methods
    chosen = config.chosen_methods(scale, "instruct")
    methods = {
        stem: method
        for stem, method in targets.printed_methods("table10", config.methods()).items()
        if method["adapt"].get("type") == "ETHER" and (stem in chosen or stem in of_the_paper)
    }
    exact = [*parameter_cells("table10", methods), *tflops_cells("table10", methods)]
    return common.table([*_blocks_cells(scale), *exact, *_measured("table10", scale, methods)], methods)


def _blocks_cells(scale: Scale) -> list[Cell]:
    """The numbers of diagonal blocks of this scale's runs; a row's n is the number in the paper's model."""
    here, _ = runs.read(scale, "instruct")
    found = here[here["method"].isin(config.methods())].dropna(subset="blocks").drop_duplicates("method")
    note = "blocks of the model of this scale; n of the row is their number in Llama-2-7B, with the same block size"
    paper = published.load()["table10"]
    return [
        Cell(run.method, paper.label(run.method), "Blocks", run.blocks, note=note)
        for run in found.itertuples()
        if config.methods()[run.method]["adapt"]["type"] == "ETHER"
    ]


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on Tables 5 and 10: the columns' metrics on the reported split."""
    return common.evidence_of(_values(scale, exhibit))


def batch_size_check(scale: Scale) -> pd.DataFrame:
    """Scores of the untrained model at two batch sizes of the evaluation: one row per metric, columns `first` and `second`.

    Empty where the base model was not run.
    """
    here, metrics = runs.read(scale, "instruct")
    evaluation = scale.experiment("instruct")["evaluation"]
    of_base = metrics[metrics["run_id"].isin(here.loc[here["adapt_kind"] == "none", "run_id"])]
    parts = {"first": evaluation["split"], "second": "second batch size"}
    scores = {name: of_base[of_base["split"] == split].set_index("metric")["value"] for name, split in parts.items()}
    return pd.DataFrame(scores).dropna()


def score_against_parameters(cells: pd.DataFrame, scale: Scale) -> Figure:
    """The mean of the benchmarks of the methods of Table 5 against #params."""
    from ether.exhibits import plots

    split = scale.experiment("instruct")["evaluation"]["split"]
    values = common.evidence_of(common.last_values(scale, "instruct", split, [SCORE]))
    points = common.against_parameters(cells, values, common.unit_of("instruct"))
    return plots.score_against_parameters(points, f"{PANELS[SCORE]} at scale {scale.name!r}")


# --- learning rates --------------------------------------------------------------------------------------------


def _grid(scale: Scale, or_published: bool) -> pd.DataFrame:
    split = scale.experiment("instruct_rates")["evaluation"]["split"]
    return learning_rates.grid(scale, "instruct_rates", split, list(PANELS), or_published)


def rate_grid(scale: Scale) -> pd.DataFrame:
    """Scores of the grid of learning rates on the tuning splits, run here or committed, for `ether.analysis.rates.choose`."""
    grid = _grid(scale, or_published=True)
    return learning_rates.for_choice(grid[grid["metric"] == SCORE].reset_index(drop=True))


def figure_instruct_rates(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Score on the tuning splits against the learning rate, for every method of Table 5; the paper has no such figure."""
    data = common.labelled(_grid(scale, or_published=False))
    unit = common.unit_of("instruct_rates")
    title = f"Instruction tuning, score against learning rate (scale {scale.name}"
    panels = PANELS if scale.experiment("instruct_rates")["evaluation"]["tasks"] else {SCORE: LIKELIHOOD}
    return learning_rates.figure(data, panels, SCORE, unit, title), data
