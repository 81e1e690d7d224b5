"""Figures 1 and 2: illustrations of the transformations, computed with `ether.reflection`. They are equal at all scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ether.config import Scale
from ether.exhibits.style import new_figure

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

# --- Figure 1 ----------------------------------------------------------------------------------------------------

INK, GREY = "#2c3e50", "#8a949c"
U, V, RESULT = "#2e86c1", "#27ae60", "#c0392b"
# Angles, in degrees, of the vector x and of the unit normals u and v; x has length 1.
ANGLES = {"x": 60, "u": 35, "v": -85}


def _unit(degrees: float) -> torch.Tensor:
    """The unit vector at an angle, of shape (2,)."""
    import torch

    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def reflected_vectors() -> pd.DataFrame:
    """The arrows of Figure 1: `panel`, `name`, start `x0, y0`, end `x1, y1`, `length`.

    The transformed x is computed by `ether.reflection.reflect`; the two steps of ETHER+ are its two rank-one terms.
    """
    import torch

    from ether import reflection

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
    """Figure 1: a vector transformed by ETHER and by ETHER+; the data are its arrows."""
    from matplotlib.patches import Circle

    data = reflected_vectors()
    figure = new_figure(9.0, 5.4)
    for axes, panel in zip(figure.subplots(1, 2), ("ETHER", "ETHER+"), strict=True):
        arrows = data[data["panel"] == panel].set_index("name")
        axes.add_patch(Circle((0, 0), arrows["length"]["x"], fill=False, ls=":", lw=1, ec=GREY))
        for name, colour in (("u", U), ("v", V)):
            if name in arrows.index:
                _hyperplane(axes, arrows.loc[name], colour, name)
                _arrow(axes, arrows.loc[name], colour)
                _at_tip(axes, arrows.loc[name], f"${name}$", colour)
        for name, formula, colour in STEPS:
            if name in arrows.index:
                _arrow(axes, arrows.loc[name], colour, 1.3, "--")
                _along(axes, arrows.loc[name], formula, colour, middle="2" not in formula)
        _arrow(axes, arrows.loc["x"], INK, 2.2)
        _at_tip(axes, arrows.loc["x"], "$x$", INK)
        _arrow(axes, arrows.loc["Hx"], RESULT, 2.2)
        formula, name, kept = PANELS[panel]
        _at_tip(axes, arrows.loc["Hx"], name, RESULT)
        axes.text(*(1.09 * _unit(-35).numpy()), "$L$", color=GREY, ha="center", va="center")
        axes.text(0, 1.52, formula, fontsize=14, color=INK, ha="center", va="center")
        length = f"{kept}: $|{name[1:-1]}|$ = {arrows['length']['Hx']:.2f} $L$"
        axes.text(0, -1.28, length, color=INK, ha="center", va="center")
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.38, 1.62), aspect="equal")
        axes.axis("off")
    return figure, data


# Panel -> formula, name of the result, and whether its length is that of x.
PANELS = {
    "ETHER": (r"ETHER:  $H = I - 2\,uu^\top$", "$Hx$", "length kept"),
    "ETHER+": (r"ETHER+:  $H^+ = I - uu^\top + vv^\top$", "$H^+x$", "length not kept"),
}
# Name of an arrow, its formula, its colour.
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


def _at_tip(axes: Any, row: Any, text: str, colour: str) -> None:
    """A label beyond the tip of an arrow that starts at the origin."""
    beyond = 1 + 0.11 / row.length
    axes.text(row.x1 * beyond, row.y1 * beyond, text, color=colour, ha="center", va="center", fontsize=13)


def _along(axes: Any, row: Any, text: str, colour: str, middle: bool) -> None:
    """A label beside an arrow and parallel to it, never upside down: at its middle, or at its first third."""
    start, end = np.array([row.x0, row.y0]), np.array([row.x1, row.y1])
    direction = (end - start) / row.length
    if direction[0] < -0.2:
        direction = -direction
    # A reflection crosses its hyperplane half-way: there the label would overlap the hyperplane.
    place = (start + end) / 2 if middle else start * 0.68 + end * 0.32
    place = place + 0.085 * np.array([-direction[1], direction[0]])
    angle = math.degrees(math.atan2(direction[1], direction[0]))
    axes.text(*place, text, color=colour, rotation=angle, rotation_mode="anchor", ha="center", va="center", fontsize=10)


def _hyperplane(axes: Any, normal: Any, colour: str, name: str) -> None:
    """The line through the origin that is orthogonal to `normal`."""
    along = np.array([-normal.y1, normal.x1])
    ends = np.stack([-1.12 * along, 1.12 * along])
    axes.plot(*ends.T, color=colour, lw=5, alpha=0.18, solid_capstyle="round")
    axes.plot(*ends.T, color=colour, lw=0.8, alpha=0.8)
    axes.text(*(1.22 * along), rf"${name}^\perp$", color=colour, ha="center", va="center", fontsize=12)


# --- Figure 2 ----------------------------------------------------------------------------------------------------

SCHEME = {"d": 12, "f": 8, "n": 3}
BLOCK_COLOURS = ("#2e86c1", "#27ae60", "#c0392b")


def block_scheme() -> pd.DataFrame:
    """The numbers of Figure 2, one row per entry: `part`, `block` (-1 outside the n blocks), `row`, `column`, `value`.

    Parts: `H`, the dense block-diagonal matrix; `W`; `HW`, their product; `blocks`, the separate products H_i W_i; `reflect`,
    the same computed with `ether.reflection.reflect`, which builds no matrix.
    """
    import torch

    from ether import reflection
    from ether.dense import dense_reflection

    d, f, n = (SCHEME[key] for key in "dfn")
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(n, d // n, generator=generator, dtype=torch.float64)
    w = torch.randn(d, f, generator=generator, dtype=torch.float64)
    h = dense_reflection(u)
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
    """A summary of Figure 2: the products are equal up to rounding, and the number of operations of each."""
    d, f, n = (SCHEME[key] for key in "dfn")
    whole = _matrix(data, "HW")
    differences = [np.abs(_matrix(data, part) - whole).max() for part in ("blocks", "reflect")]
    return [
        f"Largest difference of the {n} blocks' products from the dense product: {differences[0]:.0e}.",
        f"Largest difference of `reflect`, which builds no matrix, from the dense product: {differences[1]:.0e}.",
        f"Operations: dense 2 d² f = {2 * d * d * f:,}; in blocks 2 d² f / n = {2 * d * d * f // n:,}.",
    ]


def figure2(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 2: a block-diagonal matrix times W, as one dense product and block by block; the data are its numbers."""
    from matplotlib.patches import Rectangle

    data = block_scheme()
    d, f, n = (SCHEME[key] for key in "dfn")
    b = d // n
    h, w, product, blocks = (_matrix(data, part) for part in ("H", "W", "HW", "blocks"))
    limit = float(max(np.abs(matrix).max() for matrix in (h, w, product)))
    figure = new_figure(10.6, 4.0)
    axes = figure.add_subplot()
    gap, top = 1.8, 0.0

    def show(matrix: np.ndarray, left: float, upper: float, edges: list[str | None]) -> Any:
        rows, columns = matrix.shape
        image = axes.imshow(
            matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(left, left + columns, upper + rows, upper),
            interpolation="nearest",
        )  # fmt: skip
        for i, colour in enumerate(edges):
            height = rows / len(edges)
            axes.add_patch(
                Rectangle((left, upper + i * height), columns, height, fill=False, ec=colour or INK, lw=1.8 if colour else 0.8)
            )
        return image

    def label(text: str, x: float, y: float, colour: str = INK, size: float = 12) -> None:
        axes.text(x, y, text, color=colour, ha="center", va="center", fontsize=size)

    # One dense product
    at = {"H": 0.0, "W": d + gap, "HW": d + f + 2 * gap}
    image = show(h, at["H"], top, [None])
    for i, colour in enumerate(BLOCK_COLOURS):
        axes.add_patch(Rectangle((i * b, top + i * b), b, b, fill=False, ec=colour, lw=1.8))
    show(w, at["W"], top, list(BLOCK_COLOURS))
    show(product, at["HW"], top, list(BLOCK_COLOURS))
    label("·", d + gap / 2, d / 2, size=18)
    label("=", d + f + 1.5 * gap, d / 2, size=16)
    for name, left, columns in (("$H^B$", at["H"], d), ("$W$", at["W"], f), ("$H^B W$", at["HW"], f)):
        label(name, left + columns / 2, -2.2)

    # The same, block by block
    start = d + 2 * f + 2 * gap + 3.6
    spread = 1.0
    offset = -spread * (n - 1) / 2
    for i, colour in enumerate(BLOCK_COLOURS):
        upper, rows = offset + i * (b + spread), slice(i * b, (i + 1) * b)
        show(h[rows, rows], start, upper, [colour])
        show(w[rows], start + b + gap, upper, [colour])
        show(blocks[rows], start + b + f + 2 * gap, upper, [colour])
        label("·", start + b + gap / 2, upper + b / 2, size=18)
        label("=", start + b + f + 1.5 * gap, upper + b / 2, size=16)
    for name, left, columns in (("$H_i$", 0, b), ("$W_i$", b + gap, f), ("$H_i W_i$", b + f + 2 * gap, f)):
        label(name, start + left + columns / 2, -2.2)
    label("≡", start - 1.8, d / 2, size=22)

    middle_left, middle_right = (at["HW"] + f) / 2, start + (b + 2 * f + 2 * gap) / 2
    label(f"one dense product: $2d^2f$ = {2 * d * d * f:,} operations", middle_left, d + 2.3, size=11)
    label(f"$n = {n}$ blocks: $2d^2f/n$ = {2 * d * d * f // n:,} operations", middle_right, d + 2.3, size=11)
    axes.set(xlim=(-0.4, start + b + 2 * f + 2 * gap + 0.4), ylim=(d + 3.2, -3.2), aspect="equal")
    axes.axis("off")
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", fraction=0.04, pad=0.02, aspect=60, shrink=0.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("value of the entry", fontsize=9)
    return figure, data
