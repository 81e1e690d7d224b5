"""Shared parts of figures: curves over runs, labelled points, and images saved by runs."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ether.analysis.intervals import summarise
from ether.config import Scale, label
from ether.exhibits.style import GREY, INK, lines, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# --- curves ----------------------------------------------------------------------------------------------------


BAND = 3  # units for which an interval is drawn
CROWDED = 10  # methods in a panel whose intervals cover one another


def curves(axes: Any, data: pd.DataFrame, x: str, unit: str, unconnected: Collection[str] = ()) -> None:
    """Mean and 95 % interval of `value` against `x` for every method, with the individual runs as faint points.

    With fewer than `BAND` units there is no interval: that of two is 3.6 times as wide as that of three, and hides the lines.
    Neither is there with `CROWDED` or more methods.

    Args:
        axes: the axes to plot on.
        data: columns method, task, seed, value and the column `x`.
        x: the column on the horizontal axis.
        unit: of the interval, task | seed.
        unconnected: methods that have no values between their points: they are drawn without a line.
    """
    styles = lines(data["method"].unique())
    crowded = data["method"].nunique() >= CROWDED
    for stem, of_method in data.dropna(subset=["value", x]).groupby("method", sort=False):
        (colour, dash), marker = styles[stem], style(str(stem))[1]
        rows = [(at, *summarise(at_x, unit)[:4]) for at, at_x in of_method.groupby(x)]
        at, mean, low, high, units = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        low, high = (np.where(crowded | (units < BAND), np.nan, end) for end in (low, high))
        apart = stem in unconnected
        axes.plot(
            at, mean, color=colour, marker=marker, markersize=7 if apart else 5, linewidth=1.5, linestyle="" if apart else dash,
            label=label(str(stem)),
        )  # fmt: skip
        if not apart:
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        if len(of_method) > len(at):
            axes.scatter(of_method[x], of_method["value"], color=colour, s=7, alpha=0.4, linewidth=0)


def legend_beside(axes: Any) -> None:
    """A legend to the right of a panel."""
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))


# --- scores against parameters ---------------------------------------------------------------------------------


def score_against_parameters(points: pd.DataFrame, score: str) -> Figure:
    """Scores against the number of trained parameters on a logarithmic axis, with intervals and names of methods.

    Args:
        points: columns method (stem), parameters, score, low and high; methods without a score or a count are omitted. A method
            whose count is 0 has no place on the axis and is a dotted line.
        score: label of the vertical axis.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = new_figure(8.0, 4.4)
    axes = figure.add_subplot()
    points = points.dropna(subset=["parameters", "score"])
    for row in points.itertuples():
        colour, marker = style(str(row.method))
        if row.parameters == 0:
            axes.axhline(row.score, color=colour, linestyle=":", lw=1.2)
            continue
        spread = [[row.score - row.low], [row.high - row.score]] if math.isfinite(row.low) else None
        axes.errorbar(row.parameters, row.score, yerr=spread, color=colour, marker=marker, ms=7, capsize=3, lw=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trainable parameters at the paper's architecture")
    axes.set_ylabel(score)
    axes.margins(x=0.08, y=0.12)
    axes.grid(alpha=0.25)
    _label_points(axes, points)
    return figure


def _label_points(axes: Any, points: pd.DataFrame) -> None:
    """Names in a column at the right edge, in the order of the scores, each connected to its point by a thin line. The names
    remain legible if points overlap."""
    if points.empty:
        return
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ordered = points.sort_values("score")
    step = (high - low) / max(len(ordered) + 1, 16)
    heights = spread_out(ordered["score"].tolist(), step, low + step / 2, high - step / 2)
    edge = right * (right / left) ** 0.03
    for row, height in zip(ordered.itertuples(), heights, strict=True):
        colour, _ = style(str(row.method))
        axes.annotate(
            label(str(row.method)), (row.parameters or right, row.score), xytext=(edge, height), textcoords="data", color=colour,
            fontsize=9, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.5, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


def spread_out(heights: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Heights in the same order, at least `step` apart and as near to the given ones as possible, moved into [low, high].

    The result minimises the sum of squared displacements: neighbours that are too close form a group centred on its members.

    Args:
        heights: in ascending order, and few enough to fit between low and high.
        step: the least distance.
        low, high: the range.
    """
    groups: list[tuple[float, int]] = []  # (mean of height - rank * step, members)
    for rank, height in enumerate(heights):
        mean, members = height - rank * step, 1
        while groups and groups[-1][0] > mean:
            before, count = groups.pop()
            mean, members = (before * count + mean * members) / (count + members), members + count
        groups.append((mean, members))
    bases = [mean for mean, members in groups for _ in range(members)]
    last = len(heights) - 1
    return [min(max(base, low), high - last * step) + rank * step for rank, base in enumerate(bases)]


# --- images ----------------------------------------------------------------------------------------------------


def samples(scale: Scale, experiment: str, run_id: str, inner: str = "") -> tuple[Path, list[dict[str, str]]]:
    """The images that a run saved in ``samples/<experiment>/<job>/<run id>``.

    Args:
        scale: its `Scale.samples_folder` contains the images.
        experiment, run_id: of the run.
        inner: a folder in the run's.

    Returns:
        Their folder, and for each image `file`, `prompt` and `half` (selection | report); no image if the run saved none.
    """
    base = scale.samples_folder / experiment
    folder = next(base.glob(f"*/{run_id}"), base / run_id) / inner
    file = folder / "samples.json"
    return folder, (json.loads(file.read_text(encoding="utf-8"))["images"] if file.is_file() else [])


def reported_prompts(files: Sequence[dict[str, str]]) -> list[str]:
    """The prompts that are not used for selection, in their order, each once."""
    return list(dict.fromkeys(file["prompt"] for file in files if file["half"] == "report"))


def show_image(axes: Any, image: Path | np.ndarray | None, frame: str = "#bbb", width: float = 0.8) -> None:
    """An image file, or an image (H, W, 3), in a frame; a grey square with "no image" if there is none."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=width)
    if image is None or (isinstance(image, Path) and not image.is_file()):
        axes.set_facecolor("#eee")
        axes.set_box_aspect(1)
        axes.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=8, color=GREY, transform=axes.transAxes)
        return
    if isinstance(image, Path):
        from PIL import Image

        image = np.asarray(Image.open(image).convert("RGB"))
    axes.imshow(image, interpolation="nearest" if image.shape[1] <= 64 else "antialiased")


def row_name(axes: Any, text: str, colour: str = INK, size: float = 10) -> None:
    """Writes a name to the left of a row of images."""
    axes.annotate(text, (-0.1, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=size, color=colour)


def in_two_lines(label: str) -> str:
    """'ETHER+ (one-sided)' with the text in brackets on a second line."""
    return label.replace(" (", "\n(")
