"""Exhibit on random transformations at chosen distances from the identity: Figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ether import config
from ether.analysis import runs
from ether.analysis.claims import MetricInfo
from ether.config import Scale
from ether.exhibits import common
from ether.exhibits.subject import caption as caption  # both experiments have the same data and sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLIT = "perturbation"  # its steps are the numbers of the distances
METRICS = {
    "dino_same": MetricInfo("similarity to the unperturbed image"),
    "dino_same_smallest": MetricInfo("similarity to the unperturbed image at the smallest distance"),
    "background": MetricInfo("images with the prompt's background", format=".2f"),
    "transformation_distance": MetricInfo("‖T − I‖", format=".4f"),
}


def _perturbations(scale: Scale) -> pd.DataFrame:
    """One row per run, step and metric; `distance` is ||T - I||_F per layer and side."""
    of_runs, metrics = runs.read(scale, "perturbation")
    values = metrics[metrics["split"] == SPLIT].merge(of_runs[["run_id", "method", "adapt_kind", "seed", "status"]])
    distance = values[values["metric"] == "distance"].set_index(["run_id", "step"])["value"].rename("distance")
    data = values[values["metric"] != "distance"].join(distance, on=["run_id", "step"])
    columns = ["method", "adapt_kind", "task", "seed", "status", "run_id", "step", "distance", "metric", "value"]
    return common.labelled(data[columns].reset_index(drop=True))


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on Figure 3: every metric at the greatest distance of each run; with the suffix `_smallest`, at its
    smallest distance above 0."""
    data = _perturbations(scale)
    moved = data[data["distance"] > 0]
    ends = [moved[moved["distance"] == moved.groupby("run_id")["distance"].transform(end)] for end in ("max", "min")]
    return common.evidence_of(pd.concat([ends[0], ends[1].assign(metric=ends[1]["metric"] + "_smallest")], ignore_index=True))


def figure3(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 3: images under random transformations of increasing distance, and their similarity to the unperturbed image."""
    from ether.exhibits.plots import curves, legend_beside, row_name, samples, show_image
    from ether.exhibits.style import new_figure, style

    data = _perturbations(scale)
    first = data[data["seed"] == data["seed"].min()]
    stems = list(first["method"].unique())
    column = first["distance"].round(2)  # the same column for 1.41 and the square root of 2
    distances = sorted(column.unique())
    figure = new_figure(1.05 * len(distances) + 1.6, 1.12 * len(stems) + 3.1)
    parts: Any = figure.subfigures(2, 1, height_ratios=[len(stems), 2.2])
    images, curve = parts
    grid = images.subplots(len(stems), len(distances), squeeze=False)
    for row, stem in zip(grid, stems, strict=True):
        of_method = first[first["method"] == stem]
        for axes, distance in zip(row, distances, strict=True):
            found = of_method[column[of_method.index] == distance]
            if found.empty:  # the method cannot have this distance
                axes.axis("off")
            else:
                run, step = str(found["run_id"].iloc[0]), int(found["step"].iloc[0])
                folder, files = samples(scale, "perturbation", run, f"distance-{step:02d}")
                show_image(axes, folder / files[0]["file"] if files else None)
            if stem == stems[0]:
                axes.set_title(f"{distance:g}", fontsize=10)
        row_name(row[0], config.label(stem), style(stem)[0])
    images.suptitle("distance of T from the identity, a layer and side", fontsize=10)
    axes = curve.subplots()
    # ETHER has the distance 0 (no adapter) or 2 and nothing between.
    curves(axes, data[data["metric"] == "dino_same"], "distance", common.unit_of("perturbation"), unconnected=["ether"])
    axes.set_xlabel("distance of T from the identity")
    axes.set_ylabel("similarity to the\nunperturbed image")
    axes.set_xscale("symlog", base=2, linthresh=0.25)
    least = float(data.loc[data["metric"] == "dino_same", "value"].min())
    axes.set_ylim(min(least, 0.0) - 0.05, 1.05)  # intervals over two seeds are far wider than the range of a cosine
    ticks = [d for d in distances if abs(d - 2**0.5) > 0.01]  # the label of the square root of 2 would overlap those of 1 and 2
    axes.set_xticks(ticks, [f"{d:g}" for d in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    legend_beside(axes)
    return figure, data
