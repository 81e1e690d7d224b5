"""Colours, markers and the canvas of the figures. A method has the same style in all figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, ALERT = "#333333", "#777777", "#c0392b"

# Prefix of a method's stem -> colour and marker; the longest prefix applies. A family has one colour for all ranks and numbers
# of blocks, and its marker identifies it without colour.
FAMILIES = {
    "ether-plus-one-sided": ("#f1948a", "d"),
    "ether-plus": ("#c0392b", "D"),
    "ether": ("#e67e22", "o"),
    "boft": ("#1f618d", "v"),
    "oft": ("#2e86c1", "^"),
    "naive": ("#76448a", "P"),
    "adalora": ("#117864", "h"),
    "lora": ("#27ae60", "s"),
    "vera": ("#b7950b", "<"),
    "full": ("#2c3e50", "X"),
    "dreambooth": ("#2c3e50", "X"),
    "bitfit": ("#935116", "*"),
    "h-adapter": ("#566573", "p"),
    "p-adapter": ("#c2185b", "H"),
    "linear-probe": ("#95a5a6", "x"),
}
OTHER = ("#7f8c8d", ".")


def _family(stem: str) -> str:
    """The longest key of FAMILIES that equals a stem or its beginning up to a hyphen; '' if there is none."""
    known = [prefix for prefix in FAMILIES if stem == prefix or stem.startswith(f"{prefix}-")]
    return max(known, key=len, default="")


def style(stem: str) -> tuple[str, str]:
    """Colour and marker of a method, given the stem of its file."""
    return FAMILIES.get(_family(stem), OTHER)


def lines(stems: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colour and the line style of each method of a figure with curves.

    The first of a family has its colour and a solid line; the others are lighter, and dashed, dotted and dash-dotted. Methods of
    no family count as one.
    """
    from matplotlib.colors import to_hex, to_rgb

    styles = ("-", "--", ":", "-.")
    seen: dict[str, int] = {}
    found = {}
    for stem in stems:
        family = _family(stem)
        place = seen.get(family, 0)
        white = 1 - 0.75**place  # the share of white
        red, green, blue = (part + white * (1 - part) for part in to_rgb(style(stem)[0]))
        found[stem] = (to_hex((red, green, blue)), styles[place % len(styles)])
        seen[family] = place + 1
    return found


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the common style; width and height in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "mathtext.fontset": "stix"}
    )
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, so that a notebook displays a figure only where a cell returns it
    return figure
