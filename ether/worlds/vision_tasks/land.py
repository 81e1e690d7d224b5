"""Land seen from above, for EuroSAT: ten kinds of land use, drawn. A pixel stands for about 10 metres.

Season, light and haze change the colours of every kind, so that the structure is needed to tell them apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ether.worlds.vision_tasks.canvas import Canvas, Picture, blend, blurred, field, finish, soft, turned

__all__ = ["CLASSES", "draw"]

TINT = 0.08  # standard deviation of the gain of a colour channel; larger is harder
HAZE = 0.35  # greatest share of haze in a picture
NOISE = 6.0  # standard deviation of the pixels' noise

CLASSES = (
    "annual crop", "forest", "herbaceous vegetation", "highway", "industrial", "pasture", "permanent crop", "residential",
    "river", "sea or lake",
)  # fmt: skip

GREEN, DRY, SOIL, DARK = (84, 126, 62), (164, 152, 98), (150, 116, 84), (44, 78, 46)
ROOFS = ((172, 96, 76), (150, 120, 104), (128, 128, 134), (196, 188, 178), (110, 84, 72))
SHEDS = ((206, 208, 212), (168, 172, 178), (120, 140, 172), (150, 150, 150), (186, 176, 160))
WATERS = ((38, 70, 104), (48, 92, 96), (84, 92, 76), (30, 50, 76))


def _mix(rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> Canvas:
    """A colour between green and dry vegetation, (3,)."""
    share = rng.uniform(low, high)
    return (np.asarray(GREEN) * (1 - share) + np.asarray(DRY) * share + rng.normal(0, 6, 3)).astype(np.float32)


def _pick(rng: np.random.Generator, colours: tuple[tuple[int, int, int], ...], spread: float = 8) -> Canvas:
    return (np.asarray(colours[int(rng.integers(len(colours)))]) + rng.normal(0, spread, 3)).astype(np.float32)


def _plain(colour: Canvas, texture: Canvas) -> Canvas:
    """A canvas of one colour with a texture (64, 64) added."""
    return colour + texture[..., None] * np.ones(3, np.float32)


def _dots(canvas: Canvas, rng: np.random.Generator, count: int, radius: tuple[float, float]) -> None:
    """Scatter dark trees with shadows."""
    for _ in range(count):
        x, y = rng.uniform(-33, 33, 2)
        u, v = turned(0, x, y)
        blend(canvas, soft(rng.uniform(*radius) - np.hypot(u, v)), np.asarray(DARK) + rng.normal(0, 10, 3))


def _rectangle(canvas: Canvas, u: Canvas, v: Canvas, half: tuple[float, float], colour: Canvas, height: float) -> None:
    """A roof with two halves of different brightness and a shadow `height` pixels wide."""
    shadow = np.minimum(half[0] - np.abs(u - height), half[1] - np.abs(v - height))
    blend(canvas, soft(shadow) * 0.55, (30, 32, 36))
    roof = np.minimum(half[0] - np.abs(u), half[1] - np.abs(v))
    ridge = v if half[0] > half[1] else u
    blend(canvas, soft(roof), colour * (1 + 0.1 * np.sign(ridge))[..., None])


def _fields(rng: np.random.Generator) -> Canvas:
    """Parcels of arable land with fine furrows."""
    u, v = turned(rng.uniform(0, 180), *rng.uniform(-20, 20, 2))
    wide, high = rng.uniform(16, 40), rng.uniform(14, 34)
    column = np.floor(u / np.float32(wide)).astype(int)
    row = np.floor((v + 9 * (column % 3)) / np.float32(high)).astype(int)
    parcel = (column * 7 + row * 13) % 16
    colours = np.stack([_mix(rng) if rng.random() < 0.6 else _pick(rng, (SOIL, DRY), 14) for _ in range(16)])
    canvas = colours[parcel] * (1 + rng.normal(0, 0.08, 16).astype(np.float32))[parcel][..., None]
    period, strength = rng.uniform(2.4, 5, 16).astype(np.float32), rng.uniform(1, 9, 16).astype(np.float32)
    furrows = np.sin(2 * np.pi * np.where(parcel % 2 == 0, u, v) / period[parcel]) * strength[parcel]
    edge = np.minimum(np.abs((u / wide) % 1 - 0.5), np.abs(((v + 9 * (column % 3)) / high) % 1 - 0.5))
    canvas = canvas * np.where(edge > 0.48, rng.uniform(0.8, 1.1), 1)[..., None]
    return canvas + (furrows + 3 * field(rng, 8))[..., None]


def _forest(rng: np.random.Generator) -> Canvas:
    crowns = np.maximum(field(rng, 20), field(rng, 26)) * rng.uniform(8, 15) + 6 * field(rng, 5)
    return _plain(np.asarray(DARK, np.float32) + rng.normal(0, 8, 3) + _mix(rng) * rng.uniform(0, 0.4), crowns)


def _herbs(rng: np.random.Generator) -> Canvas:
    patches = 9 * field(rng, 4) + 9 * field(rng, 9) + 7 * field(rng, 18)
    canvas = _plain(_mix(rng, 0.1), patches)
    _dots(canvas, rng, int(rng.integers(6, 26)), (0.8, 2.2))
    return canvas


def _pasture(rng: np.random.Generator) -> Canvas:
    canvas = _plain(_mix(rng, 0, 0.6) * rng.uniform(1, 1.15), 6 * field(rng, 3) + 2.5 * field(rng, 14))
    angle = rng.uniform(0, 180)
    for turn in (0, 90):
        if rng.random() < 0.65:  # a hedge
            _, v = turned(angle + turn, 0, rng.uniform(-22, 22))
            blend(canvas, soft(rng.uniform(0.6, 1.6) - np.abs(v + 0.6 * field(rng, 10))) * 0.85, DARK)
    _dots(canvas, rng, int(rng.integers(0, 6)), (1, 2))
    return canvas


def _countryside(rng: np.random.Generator) -> Canvas:
    """What surrounds a road or a river."""
    kinds = (_fields, _herbs, _pasture, _forest)
    return kinds[int(rng.integers(len(kinds)))](rng)


def _band(rng: np.random.Generator, bends: float) -> Canvas:
    """Signed distance in pixels to the middle of a line that crosses the picture, with bends of so many pixels."""
    u, v = turned(rng.uniform(0, 180), 0, 0)
    curve = rng.uniform(-14, 14) + rng.normal(0, 0.006) * u**2
    curve = curve + bends * np.sin(2 * np.pi * (u / np.float32(rng.uniform(40, 80)) + rng.random()))
    slope = np.gradient(curve, axis=1) if abs(bends) > 0 else np.zeros_like(u)
    return (v - curve) / np.sqrt(1 + slope**2)


def _highway(rng: np.random.Generator) -> Canvas:
    canvas = _countryside(rng)
    distance, half = _band(rng, rng.uniform(0, 2)), rng.uniform(1.6, 3.6)
    blend(canvas, soft(half + 1.5 - np.abs(distance)) * 0.6, _mix(rng, 0.3) * 1.1)
    blend(canvas, soft(half - np.abs(distance)), np.full(3, rng.uniform(90, 190)) + rng.normal(0, 7, 3))
    if half > 2.4:  # two carriageways
        blend(canvas, soft(0.6 - np.abs(distance)), _mix(rng))
    if rng.random() < 0.35:  # a smaller road that crosses
        blend(canvas, soft(1.1 - np.abs(_band(rng, 1))), np.full(3, rng.uniform(120, 190)))
    return canvas


def _river(rng: np.random.Generator) -> Canvas:
    canvas = _countryside(rng)
    distance, half = _band(rng, rng.uniform(2, 9)) + 0.8 * field(rng, 8), rng.uniform(2.2, 7)
    blend(canvas, soft(half + rng.uniform(1, 3) - np.abs(distance), 2) * 0.7, DARK if rng.random() < 0.6 else SOIL)
    water = _pick(rng, WATERS, 10) + rng.uniform(-5, 45)
    blend(canvas, soft(half - np.abs(distance), 1.5), _plain(water, 2 * field(rng, 8)))
    return canvas


def _industrial(rng: np.random.Generator) -> Canvas:
    canvas = _plain(_pick(rng, ((136, 132, 126), (120, 118, 112), (150, 136, 116)), 8), 6 * field(rng, 10))
    blend(canvas, soft(field(rng, 3) - rng.uniform(0.4, 1.2), 0.4), _mix(rng))
    angle = rng.uniform(0, 90)
    for _ in range(int(rng.integers(3, 8))):
        u, v = turned(angle, *rng.uniform(-30, 30, 2))
        half = (rng.uniform(5, 13), rng.uniform(4, 9))
        _rectangle(canvas, u, v, half, _pick(rng, SHEDS, 8), rng.uniform(0.8, 2))
        if rng.random() < 0.5:  # a ribbed roof
            inside = soft(np.minimum(half[0] - np.abs(u), half[1] - np.abs(v)))
            blend(canvas, inside * (np.sin(u * np.float32(1.6)) > 0.6) * 0.25, (90, 90, 95))
    return canvas


def _residential(rng: np.random.Generator) -> Canvas:
    canvas = _plain(_mix(rng, 0, 0.8), 7 * field(rng, 8) + 6 * field(rng, 20))
    angle, step = rng.uniform(0, 90), rng.uniform(8, 11)
    x, y = rng.uniform(-20, 20, 2)
    _, v = turned(angle, x, y)
    street = np.abs((v / (3 * step) + 0.5) % 1 - 0.5) * 3 * step
    blend(canvas, soft(1.4 - street) * 0.9, np.full(3, rng.uniform(120, 170)))
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    for row in range(-8, 9):
        for column in range(-8, 9):
            du, dv = column * step + rng.normal(0, 1), row * step * 1.5 + step * 0.75 + rng.normal(0, 0.7)
            px, py = x + cos * du - sin * dv, y + sin * du + cos * dv
            if max(abs(px), abs(py)) < 34 and rng.random() < 0.85:
                u, w = turned(angle, px, py)
                half = (rng.uniform(1.7, 3), rng.uniform(1.6, 2.6))
                _rectangle(canvas, u, w, half, _pick(rng, ROOFS, 10), 0.8)
    _dots(canvas, rng, int(rng.integers(5, 20)), (0.8, 1.6))
    return canvas


def _orchard(rng: np.random.Generator) -> Canvas:
    """Rows of vines or a lattice of trees, on one or several parcels."""
    canvas = _fields(rng) if rng.random() < 0.5 else _pasture(rng)
    angle = rng.uniform(0, 180)
    u, v = turned(angle, *rng.uniform(-5, 5, 2))
    part = soft(field(rng, 2) * 12 + 14) if rng.random() < 0.5 else np.ones_like(u)
    blend(canvas, part * 0.9, _pick(rng, (SOIL, DRY, GREEN), 12) * rng.uniform(0.9, 1.15))
    across, along = rng.uniform(4.4, 7.5), rng.uniform(4, 7)
    row = np.abs((v / across) % 1 - 0.5) * across
    if rng.random() < 0.5:  # trees
        near = np.abs((u / along) % 1 - 0.5) * along
        plants = soft(rng.uniform(1.2, 1.9) - np.hypot(row, near))
    else:
        plants = soft(rng.uniform(0.7, 1.4) - row + 0.25 * field(rng, 24))
    blend(canvas, part * plants * rng.uniform(0.6, 0.95), np.asarray(DARK) + rng.normal(0, 10, 3))
    return canvas


def _water(rng: np.random.Generator) -> Canvas:
    u, _ = turned(rng.uniform(0, 180), 0, 0)
    ripples = np.sin(2 * np.pi * (u / np.float32(rng.uniform(4, 9)) + 0.4 * field(rng, 4))) * rng.uniform(0, 4)
    canvas = _plain(_pick(rng, WATERS, 10) + rng.uniform(-5, 45), ripples + 4 * field(rng, 3))
    if rng.random() < 0.5:  # a shore
        v, _ = turned(rng.uniform(0, 360), 0, 0)
        land = v - rng.uniform(10, 28) + 4 * field(rng, 4)
        blend(canvas, soft(land + 2, 2), DRY)
        blend(canvas, soft(land, 2), _countryside(rng))
    return canvas


KINDS = (_fields, _forest, _herbs, _highway, _industrial, _pasture, _orchard, _residential, _river, _water)


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3) of land with these labels."""
    found = []
    for label in labels:
        canvas = KINDS[label](rng).astype(np.float32)
        canvas = canvas * rng.normal(1, TINT, 3).astype(np.float32) * np.float32(rng.uniform(0.75, 1.2))
        haze = rng.uniform(0, HAZE)
        canvas = canvas * np.float32(1 - haze) + np.float32(haze) * np.asarray((150, 158, 168), np.float32)
        found.append(finish(blurred(canvas, rng.uniform(0.2, 0.9)), rng, NOISE))
    return np.stack(found)
