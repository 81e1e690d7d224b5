"""Figures, drawn from the tidy tables. Plotting never trains and knows no experiment's insides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ether import reflection, results
from ether.config import Scale

# One colour a family, so that a method keeps its colour through all figures; readable without colour by its marker.
STYLE = {
    "ETHER+ (one-sided)": ("#f1948a", "d"),
    "ETHER+": ("#c0392b", "D"),
    "ETHER": ("#e67e22", "o"),
    "BOFT": ("#1f618d", "v"),
    "OFT": ("#2e86c1", "^"),
    "Naive": ("#76448a", "P"),
    "AdaLoRA": ("#117864", "h"),
    "LoRA": ("#27ae60", "s"),
    "VeRA": ("#b7950b", "<"),
    "Full": ("#2c3e50", "X"),
    "DreamBooth": ("#2c3e50", "X"),
}
OTHER = ("#7f8c8d", ".")


def style(label: str) -> tuple[str, str]:
    """Colour and marker of a method by its label."""
    return next((look for name, look in STYLE.items() if label.startswith(name)), OTHER)


def new_figure(width: float, height: float) -> Figure:
    matplotlib.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "mathtext.fontset": "stix"}
    )
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), dpi=120, layout="constrained")


def score_against_parameters(table: pd.DataFrame, scale: Scale, column: str = "Avg") -> Figure:
    """A column of a table against ``#params`` on a logarithmic axis, with intervals over seeds.

    Where there is no such column, or no method has it (an average, when only some tasks were run), the plain mean of
    the columns that every method has stands in, and the axis says so.
    """
    wide = table.pivot_table(index="method", columns="column", values=["ours", "low", "high"], sort=False, dropna=False)
    what = column
    nothing = pd.Series(np.nan, index=wide.index)
    chosen = {part: wide[part].get(column, nothing) for part in ("ours", "low", "high")}
    if chosen["ours"].isna().all():
        complete = [name for name in wide["ours"].columns if name != "#params" and wide["ours"][name].notna().all()]
        mean = wide["ours"][complete].mean(axis=1)
        chosen = {"ours": mean, "low": mean * np.nan, "high": mean * np.nan}
        what = f"mean of {', '.join(complete)}"
    rows = pd.DataFrame(
        {"parameters": wide["ours"]["#params"], "score": chosen["ours"], "low": chosen["low"], "high": chosen["high"]}
    ).dropna(subset=["score"])
    figure = new_figure(8.0, 4.4)
    axes = figure.add_subplot()
    for label, row in rows.iterrows():
        colour, marker = style(str(label))
        spread = [[max(row.score - row.low, 0)], [max(row.high - row.score, 0)]] if np.isfinite(row.low) else None
        axes.errorbar(row.parameters, row.score, yerr=spread, color=colour, marker=marker, ms=7, capsize=3, lw=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters at the paper's architecture")
    axes.set_ylabel(f"{what} at scale {scale.name!r}")
    axes.margins(x=0.08, y=0.12)
    axes.grid(alpha=0.25)
    _label_points(axes, rows)
    return figure


def _label_points(axes: matplotlib.axes.Axes, rows: pd.DataFrame) -> None:
    """Names in a column at the right edge, in the order of the scores, each tied to its point by a thin line: points
    that lie on each other stay legible."""
    if rows.empty:
        return
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ordered = rows.sort_values("score")
    least = (high - low) / max(len(ordered) + 1, 16)
    heights: list[float] = []
    for score in ordered["score"]:
        heights.append(max(float(score), heights[-1] + least if heights else low + least / 2))
    overflow = heights[-1] - (high - least / 2)
    if overflow > 0:  # push the column down again, from the top
        limit = high - least / 2
        for i in range(len(heights) - 1, -1, -1):
            heights[i] = min(heights[i], limit)
            limit = heights[i] - least
    edge = right * (right / left) ** 0.03
    for (label, row), height in zip(ordered.iterrows(), heights, strict=True):
        colour, _ = style(str(label))
        axes.annotate(
            str(label), (row.parameters, row.score), xytext=(edge, height), textcoords="data", color=colour, fontsize=9,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.5, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


# --- Figure 1 ----------------------------------------------------------------------------------------------------

INK, GREY = "#2c3e50", "#8a949c"
U, V, RESULT = "#2e86c1", "#27ae60", "#c0392b"
# Angles in degrees of the vector x, and of the unit normals u and v; x has length 1.
ANGLES = {"x": 60, "u": 35, "v": -85}


def _unit(degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def reflected_vectors() -> pd.DataFrame:
    """The arrows of Figure 1: `panel`, `name`, start `x0, y0`, end `x1, y1`, `length`.

    What becomes of x is computed by `ether.reflection.reflect`; the two steps of ETHER+ are its two rank-one terms.
    """
    x, u, v = (_unit(ANGLES[name]) for name in ("x", "u", "v"))
    zero = torch.zeros(2, dtype=torch.float64)
    half_way = x - u * (u @ x)
    arrows = [
        ("ETHER", "x", zero, x),
        ("ETHER", "u", zero, u),
        ("ETHER", "Hx", zero, reflection.reflect(x, u.view(1, 2))),
        ("ETHER", "step -2u(ux)", x, x - 2 * u * (u @ x)),
        ("ETHER+", "x", zero, x),
        ("ETHER+", "u", zero, u),
        ("ETHER+", "v", zero, v),
        ("ETHER+", "Hx", zero, reflection.reflect(x, u.view(1, 2), v.view(1, 2))),
        ("ETHER+", "step -u(ux)", x, half_way),
        ("ETHER+", "step +v(vx)", half_way, half_way + v * (v @ x)),
    ]
    return pd.DataFrame(
        [
            {
                "panel": panel, "name": name, "x0": float(start[0]), "y0": float(start[1]), "x1": float(end[0]),
                "y1": float(end[1]), "length": float((end - start).norm()),
            }
            for panel, name, start, end in arrows
        ]
    )  # fmt: skip


def figure1(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 1: a vector reflected by ETHER, and moved by the two hyperplanes of ETHER+, with the arrows as data."""
    data = reflected_vectors()
    figure = new_figure(9.0, 5.4)
    for axes, panel in zip(figure.subplots(1, 2), ("ETHER", "ETHER+"), strict=True):
        arrows = data[data["panel"] == panel].set_index("name")
        axes.add_patch(matplotlib.patches.Circle((0, 0), arrows["length"]["x"], fill=False, ls=":", lw=1, ec=GREY))
        for name, colour in (("u", U), ("v", V)):
            if name in arrows.index:
                _hyperplane(axes, arrows.loc[name], colour, name)
                _arrow(axes, arrows.loc[name], colour)
                _at_tip(axes, arrows.loc[name], f"${name}$", colour)
        for name, said, colour in STEPS:
            if name in arrows.index:
                _arrow(axes, arrows.loc[name], colour, 1.3, "--")
                _along(axes, arrows.loc[name], said, colour)
        _arrow(axes, arrows.loc["x"], INK, 2.2)
        _at_tip(axes, arrows.loc["x"], "$x$", INK)
        _arrow(axes, arrows.loc["Hx"], RESULT, 2.2)
        formula, name, kept = PANELS[panel]
        _at_tip(axes, arrows.loc["Hx"], name, RESULT)
        axes.text(*(1.09 * _unit(-35).numpy()), "$L$", color=GREY, ha="center", va="center")
        axes.text(0, 1.52, formula, fontsize=14, color=INK, ha="center", va="center")
        said = f"{kept}: $|{name[1:-1]}|$ = {arrows['length']['Hx']:.2f} $L$"
        axes.text(0, -1.28, said, color=INK, ha="center", va="center")
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.38, 1.62), aspect="equal")
        axes.axis("off")
    return figure, data


# Formula, name of the result, and what becomes of its length.
PANELS = {
    "ETHER": (r"ETHER:  $H = I - 2\,uu^\top$", "$Hx$", "length kept"),
    "ETHER+": (r"ETHER+:  $H^+ = I - uu^\top + vv^\top$", "$H^+x$", "length not kept"),
}
STEPS = (
    ("step -2u(ux)", r"$-2\,u(u^\top x)$", U),
    ("step -u(ux)", r"$-\,u(u^\top x)$", U),
    ("step +v(vx)", r"$+\,v(v^\top x)$", V),
)


def _arrow(axes: Any, row: Any, colour: str, width: float = 1.6, style: str = "-") -> None:
    axes.annotate(
        "", (row.x1, row.y1), (row.x0, row.y0),
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "ls": style, "shrinkA": 0, "shrinkB": 0,
                    "mutation_scale": 13},
    )  # fmt: skip


def _at_tip(axes: Any, row: Any, said: str, colour: str) -> None:
    beyond = 1 + 0.11 / row.length
    axes.text(row.x1 * beyond, row.y1 * beyond, said, color=colour, ha="center", va="center", fontsize=13)


def _along(axes: Any, row: Any, said: str, colour: str) -> None:
    """A label beside an arrow, turned as the arrow is but never upside down."""
    way = np.array([row.x1 - row.x0, row.y1 - row.y0]) / row.length
    if way[0] < -0.2:
        way = -way
    middle = np.array([row.x0 + row.x1, row.y0 + row.y1]) / 2
    # At its own arrow's first third, so that it does not lie on the hyperplane that a reflection crosses half-way.
    place = (np.array([row.x0, row.y0]) * 0.68 + np.array([row.x1, row.y1]) * 0.32) if "2" in said else middle
    place = place + 0.085 * np.array([-way[1], way[0]])
    angle = math.degrees(math.atan2(way[1], way[0]))
    axes.text(*place, said, color=colour, rotation=angle, rotation_mode="anchor", ha="center", va="center", fontsize=10)


def _hyperplane(axes: Any, normal: Any, colour: str, name: str) -> None:
    along = np.array([-normal.y1, normal.x1])
    ends = np.stack([-1.12 * along, 1.12 * along])
    axes.plot(*ends.T, color=colour, lw=5, alpha=0.18, solid_capstyle="round")
    axes.plot(*ends.T, color=colour, lw=0.8, alpha=0.8)
    axes.text(*(1.22 * along), rf"${name}^\perp$", color=colour, ha="center", va="center", fontsize=12)


# --- Figure 2 ----------------------------------------------------------------------------------------------------

SCHEME = {"d": 12, "f": 8, "n": 3}
BLOCK_COLOURS = ("#2e86c1", "#27ae60", "#c0392b")


def block_scheme() -> pd.DataFrame:
    """The numbers of Figure 2, a row an entry: `part`, `block` (-1 outside the scheme's n blocks), `row`, `column`, `value`.

    Parts: `H`, the dense block-diagonal matrix; `W`; `HW`, their product; `blocks`, each H_i W_i alone; `reflect`, the
    same by `ether.reflection.reflect`, which builds no matrix at all.
    """
    d, f, n = (SCHEME[key] for key in "dfn")
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(n, d // n, generator=generator, dtype=torch.float64)
    w = torch.randn(d, f, generator=generator, dtype=torch.float64)
    h = reflection.dense_reflection(u)
    diagonal = torch.stack([h[i : i + d // n, i : i + d // n] for i in range(0, d, d // n)])
    parts = {
        "H": h,
        "W": w,
        "HW": h @ w,
        "blocks": torch.bmm(diagonal, w.view(n, d // n, f)).view(d, f),
        "reflect": reflection.reflect(w.T, u).T,
    }
    rows = []
    for part, matrix in parts.items():
        for (i, j), value in np.ndenumerate(matrix.numpy()):
            inside = part != "H" or i * n // d == j * n // d
            rows.append({"part": part, "block": i * n // d if inside else -1, "row": i, "column": j, "value": value})
    return pd.DataFrame(rows)


def _matrix(data: pd.DataFrame, part: str) -> np.ndarray:
    return data[data["part"] == part].pivot(index="row", columns="column", values="value").to_numpy()


def block_scheme_summary(data: pd.DataFrame) -> list[str]:
    """What Figure 2's numbers show: equality to rounding, and the operations that each way takes."""
    d, f, n = (SCHEME[key] for key in "dfn")
    whole = _matrix(data, "HW")
    differences = [np.abs(_matrix(data, part) - whole).max() for part in ("blocks", "reflect")]
    return [
        f"Largest difference of the {n} blocks' products from the dense product: {differences[0]:.0e}.",
        f"Largest difference of `reflect`, which builds no matrix, from the dense product: {differences[1]:.0e}.",
        f"Operations: dense 2 d² f = {2 * d * d * f:,}; in blocks 2 d² f / n = {2 * d * d * f // n:,}.",
    ]


def figure2(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 2: a block-diagonal matrix times W, as one dense product and block by block, with its numbers as data."""
    data = block_scheme()
    d, f, n = (SCHEME[key] for key in "dfn")
    b = d // n
    h, w, product, blocks = (_matrix(data, part) for part in ("H", "W", "HW", "blocks"))
    limit = float(max(np.abs(matrix).max() for matrix in (h, w, product)))
    figure = new_figure(10.6, 4.0)
    axes = figure.add_subplot()
    gap, top = 1.8, 0.0

    def draw(matrix: np.ndarray, left: float, upper: float, edges: list[str | None]) -> Any:
        rows, columns = matrix.shape
        image = axes.imshow(
            matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(left, left + columns, upper + rows, upper),
            interpolation="nearest",
        )  # fmt: skip
        for i, colour in enumerate(edges):
            height = rows / len(edges)
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (left, upper + i * height), columns, height, fill=False, ec=colour or INK, lw=1.8 if colour else 0.8
                )
            )
        return image

    def say(text: str, x: float, y: float, colour: str = INK, size: float = 12) -> None:
        axes.text(x, y, text, color=colour, ha="center", va="center", fontsize=size)

    # One dense product
    at = {"H": 0.0, "W": d + gap, "HW": d + f + 2 * gap}
    image = draw(h, at["H"], top, [None])
    for i, colour in enumerate(BLOCK_COLOURS):
        axes.add_patch(matplotlib.patches.Rectangle((i * b, top + i * b), b, b, fill=False, ec=colour, lw=1.8))
    draw(w, at["W"], top, list(BLOCK_COLOURS))
    draw(product, at["HW"], top, list(BLOCK_COLOURS))
    say("·", d + gap / 2, d / 2, size=18)
    say("=", d + f + 1.5 * gap, d / 2, size=16)
    for name, left, columns in (("$H^B$", at["H"], d), ("$W$", at["W"], f), ("$H^B W$", at["HW"], f)):
        say(name, left + columns / 2, -2.2)

    # The same, block by block
    start = d + 2 * f + 2 * gap + 3.6
    spread = 1.0
    offset = -spread * (n - 1) / 2
    for i, colour in enumerate(BLOCK_COLOURS):
        upper, rows = offset + i * (b + spread), slice(i * b, (i + 1) * b)
        draw(h[rows, rows], start, upper, [colour])
        draw(w[rows], start + b + gap, upper, [colour])
        draw(blocks[rows], start + b + f + 2 * gap, upper, [colour])
        say("·", start + b + gap / 2, upper + b / 2, size=18)
        say("=", start + b + f + 1.5 * gap, upper + b / 2, size=16)
    for name, left, columns in (("$H_i$", 0, b), ("$W_i$", b + gap, f), ("$H_i W_i$", b + f + 2 * gap, f)):
        say(name, start + left + columns / 2, -2.2)
    say("≡", start - 1.8, d / 2, size=22)

    middle_left, middle_right = (at["HW"] + f) / 2, start + (b + 2 * f + 2 * gap) / 2
    say(f"one dense product: $2d^2f$ = {2 * d * d * f:,} operations", middle_left, d + 2.3, size=11)
    say(f"$n = {n}$ blocks: $2d^2f/n$ = {2 * d * d * f // n:,} operations", middle_right, d + 2.3, size=11)
    axes.set(xlim=(-0.4, start + b + 2 * f + 2 * gap + 0.4), ylim=(d + 3.2, -3.2), aspect="equal")
    axes.axis("off")
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", fraction=0.04, pad=0.02, aspect=60, shrink=0.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("value of the entry", fontsize=9)
    return figure, data


# --- writing -----------------------------------------------------------------------------------------------------


def figures() -> dict[str, Callable[[Scale], tuple[Figure, pd.DataFrame]]]:
    """Every figure by name; a function of the scale that draws it and returns it with the data behind it."""
    from ether import plots_language, plots_subject

    return {
        "figure1": figure1,
        "figure2": figure2,
        "figure3": plots_subject.figure3,
        "figure4": plots_subject.figure4,
        "figure7": plots_subject.figure7,
        "figure8": plots_subject.figure8,
        "figure9": plots_subject.figure9,
        "figure_instruct_rates": plots_language.figure_instruct_rates,
    }


def write(name: str, scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Draws a figure and leaves ``results/<scale>/figures/<name>.{png,pdf,parquet}``: the picture and its numbers."""
    figure, data = figures()[name](scale)
    folder = scale.results / "figures"
    for ending, metadata in (("png", {}), ("pdf", {"CreationDate": None})):  # without a date the file is reproducible
        with results.atomic(folder / f"{name}.{ending}") as temporary:
            figure.savefig(temporary, format=ending, dpi=300, metadata=metadata)
    results.write_parquet(data, folder / f"{name}.parquet")
    return figure, data
