"""Flowers, for Flowers102: drawn ones whose classes differ in one attribute from the next, and drawings by Fluent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ether.worlds import drawings
from ether.worlds.vision_tasks.canvas import Canvas, Picture, blend, blurred, field, finish, paste, soft, turned

__all__ = ["CLASSES", "FLOWERS", "Flower", "draw"]

RADII = (18.0, 27.0)  # range of a flower's radius, in pixels; smaller is harder
TILT = 0.75  # smallest ratio of the two axes of a flower that is seen from the side
LEAVES = 2  # greatest number of leaves in front of a flower's outer part; there are up to twice as many behind
NOISE = 5.0  # standard deviation of the pixels' noise


@dataclass(frozen=True)
class Flower:
    """The attributes of a drawn flower; neither colours nor size are among them."""

    petals: int
    shape: str  # round, pointed, notched or narrow
    centre: str = "small"  # small, large or ringed
    rings: int = 1
    striped: bool = False  # a line along the middle of every petal


FLOWERS: Mapping[str, Flower] = {
    "four round petals": Flower(4, "round"),
    "five round petals": Flower(5, "round"),
    "six round petals": Flower(6, "round"),
    "eight round petals": Flower(8, "round"),
    "five pointed petals": Flower(5, "pointed"),
    "eight pointed petals": Flower(8, "pointed"),
    "five notched petals": Flower(5, "notched"),
    "eight narrow petals": Flower(8, "narrow"),
    "thirteen narrow petals": Flower(13, "narrow"),
    "five round petals, large centre": Flower(5, "round", "large"),
    "eight round petals, large centre": Flower(8, "round", "large"),
    "eight narrow petals, large centre": Flower(8, "narrow", "large"),
    "five round petals, ringed centre": Flower(5, "round", "ringed"),
    "five round petals, two rings": Flower(5, "round", rings=2),
    "five striped petals": Flower(5, "round", striped=True),
}
DRAWN = ("tulip", "rose", "hibiscus", "sunflower", "rosette")  # by Fluent
CLASSES = (*FLOWERS, *DRAWN)

PETALS = ((240, 238, 244), (248, 208, 60), (244, 150, 190), (206, 70, 150), (150, 96, 214), (226, 66, 60), (246, 146, 60),
          (120, 150, 240))  # fmt: skip
CENTRES = ((248, 200, 50), (110, 66, 36), (236, 240, 190), (70, 30, 60), (150, 190, 80))
GROUNDS = ((66, 118, 46), (104, 138, 62), (112, 84, 58), (84, 64, 48), (140, 176, 220), (58, 84, 60))


def _pick(rng: np.random.Generator, colours: tuple[tuple[int, int, int], ...], spread: float) -> Canvas:
    return (np.asarray(colours[int(rng.integers(len(colours)))]) + rng.normal(0, spread, 3)).astype(np.float32)


def _petal(flower: Flower, x: Canvas, y: Canvas, radius: float) -> Canvas:
    """Signed distance in pixels to the edge of a petal along the axis x, which begins at 0 and ends at `radius`."""
    wide = {"round": 0.85, "pointed": 0.9, "notched": 0.9, "narrow": 0.45}[flower.shape]
    half = wide * radius * min(np.sin(np.pi / flower.petals), 0.62) * (0.95 if flower.petals < 6 else 1)
    if flower.shape == "pointed":
        along = np.clip(x / radius, 0, 1)
        return (half * np.sqrt(along) * (1 - along) * 2.4 - np.abs(y)) * 0.8
    middle, length = 0.58 * radius, 0.42 * radius
    scaled = np.hypot((x - middle) / length, y / half)
    edge = (1 - scaled) * min(length, half)
    if flower.shape == "notched":
        edge = np.minimum(edge, np.hypot(x - radius * 1.02, y) - 0.24 * radius)
    return edge


def _flower(canvas: Canvas, flower: Flower, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    """Draw a flower around (x, y), in pixels from the picture's centre."""
    u, v = turned(rng.uniform(0, 360), x, y)
    u = u / np.float32(rng.uniform(TILT, 1))
    phase = rng.uniform(0, 2 * np.pi)
    r, angle = np.hypot(u, v), np.arctan2(v, u) + np.float32(phase)
    colour, core = _pick(rng, PETALS, 18), _pick(rng, CENTRES, 16)
    turn = 2 * np.pi / flower.petals
    for ring in range(flower.rings):
        size = radius * (1 if ring == 0 else 0.64)
        nearest = (angle / turn + ring / 2 + 0.5) % 1 - 0.5  # -0.5 ... 0.5 across a petal
        px, py = r * np.cos(nearest * turn), r * np.sin(nearest * turn)
        edge = _petal(flower, px, py, size)
        light = 0.7 + 0.3 * np.clip(px / size, 0, 1) if ring == 0 else 0.95 + 0.2 * np.clip(px / size, 0, 1)
        light = light * (1 - 0.4 * np.clip(1.6 - edge, 0, 1.6) / 1.6)  # darker at the edges, which separates petals
        light = light * (1 - 0.9 * np.clip(np.abs(nearest) * 2 - 0.75, 0, 1))
        if flower.striped:
            light = light * (1 - 0.45 * soft(size * 0.06 - np.abs(py)) * (px > 0))
        blend(canvas, soft(edge), colour * light[..., None])
    centre = radius * (0.4 if flower.centre == "large" else 0.22) * rng.uniform(0.9, 1.1)
    if flower.centre == "ringed":
        blend(canvas, soft(1.55 * centre - r), _pick(rng, PETALS, 18) * 0.75)
    grain = 1 + 0.12 * field(rng, 24)
    blend(canvas, soft(centre - r), core * (grain * (1.05 - 0.25 * r / centre))[..., None])


def _leaf(canvas: Canvas, x: float, y: float, rng: np.random.Generator) -> None:
    """Draw a pointed leaf around (x, y)."""
    u, v = turned(rng.uniform(0, 360), x, y)
    length, width = rng.uniform(9, 18), rng.uniform(2.5, 5.5)
    edge = width * (1 - (u / length) ** 2) - np.abs(v)
    green = np.asarray((60, 120, 50)) + rng.normal(0, 16, 3) + rng.uniform(-20, 40)
    vein = 1 - 0.2 * soft(0.7 - np.abs(v))
    blend(canvas, soft(edge), green * (vein * (1 - 0.12 * (v > 0)))[..., None])


def _ground(rng: np.random.Generator) -> Canvas:
    """Grass, soil or sky, out of focus."""
    texture = 10 * field(rng, 5) + rng.uniform(3, 14) * field(rng, 16)
    return _pick(rng, GROUNDS, 12) + texture[..., None] * np.asarray((0.9, 1, 0.7), np.float32)


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3) of flowers with these labels."""
    found = []
    for label in labels:
        canvas = blurred(_ground(rng), rng.uniform(0.2, 1.5))
        radius = rng.uniform(*RADII)
        x, y = rng.uniform(-(31 - radius), 31 - radius, 2)
        for _ in range(int(rng.integers(LEAVES * 2 + 1))):
            _leaf(canvas, rng.uniform(-32, 32), rng.uniform(-32, 32), rng)
        name = CLASSES[label]
        if name in FLOWERS:
            _flower(canvas, FLOWERS[name], x, y, radius, rng)
        else:
            tile = drawings.drawing("fluent", name).astype(np.float32)
            tile[..., :3] = tile[..., :3] * rng.normal(1, 0.15, 3) * rng.uniform(0.75, 1.1)
            paste(
                canvas, np.clip(tile, 0, 255).astype(np.uint8), 2 * radius, x, y, rng.uniform(-40, 40), bool(rng.random() < 0.5)
            )
        for _ in range(int(rng.integers(LEAVES + 1))):
            angle = rng.uniform(0, 2 * np.pi)
            _leaf(canvas, x + np.cos(angle) * radius * 1.35, y + np.sin(angle) * radius * 1.35, rng)
        found.append(finish(canvas, rng, NOISE))
    return np.stack(found)
