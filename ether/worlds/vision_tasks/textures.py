"""Textures, for the Describable Textures: crops of photographs that scikit-image ships, and drawn patterns.

Every picture has two colours and their mixtures, which are random, so that only the pattern tells the class.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ether.errors import MissingResourceError
from ether.worlds.vision_tasks.canvas import SIZE, Canvas, Picture, field, finish, soft, turned

__all__ = ["CLASSES", "PHOTOGRAPHS", "Box", "crop", "draw", "region"]

SCALE = (0.5, 1.0)  # range of the detail of the drawn patterns: repeats per pixel relative to the finest; wider is harder
ANGLE = 30.0  # greatest rotation of a crop, in degrees
CONTRAST = (40.0, 130.0)  # range of the distance of the two colours
WARP = 2.0  # displacement of the drawn patterns, in pixels
NOISE = 10.0  # standard deviation of the pixels' noise

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of a photograph


@dataclass(frozen=True)
class Photograph:
    """A photograph: three boxes that do not overlap, and the range of the side of its crops in pixels."""

    file: str
    train: Box
    tuning: Box
    test: Box
    sides: tuple[int, int]


_HALVES: tuple[Box, Box, Box] = ((0, 0, 256, 512), (256, 0, 512, 256), (256, 256, 512, 512))
PHOTOGRAPHS: Mapping[str, Photograph] = {
    "brick": Photograph("brick.png", *_HALVES, (80, 180)),
    "grass": Photograph("grass.png", *_HALVES, (60, 150)),
    "gravel": Photograph("gravel.png", *_HALVES, (60, 150)),
    "tissue": Photograph("ihc.png", *_HALVES, (70, 180)),
    "stars": Photograph("hubble_deep_field.jpg", (0, 0, 500, 872), (500, 0, 1000, 436), (500, 436, 1000, 872), (80, 200)),
    "veins": Photograph("retina.jpg", (250, 250, 700, 1150), (720, 250, 1150, 690), (720, 700, 1150, 1150), (180, 320)),
    "coins": Photograph("coins.png", (0, 0, 192, 303), (192, 0, 384, 150), (192, 150, 384, 303), (80, 140)),
    "print": Photograph("page.png", (0, 10, 200, 140), (294, 45, 384, 130), (204, 45, 294, 130), (46, 90)),
    "fur": Photograph("chelsea.png", (40, 90, 135, 200), (212, 95, 292, 195), (100, 0, 300, 84), (46, 80)),
}
PATTERNS = ("striped", "dotted", "checkered", "woven", "honeycomb", "marbled", "cracked")
CLASSES = (*PHOTOGRAPHS, *PATTERNS)


# --- photographs ------------------------------------------------------------------------------------------------------


@functools.cache
def _grey(name: str) -> Picture:
    """A photograph in grey, (height, width)."""
    from PIL import Image

    package = importlib.util.find_spec("skimage")
    places = (package.submodule_search_locations if package else None) or ["skimage"]
    file = Path(next(iter(places))) / "data" / PHOTOGRAPHS[name].file
    if not file.is_file():
        raise MissingResourceError(
            f"The photograph {file.name} of scikit-image is not at {file}. Install it with: pip install 'scikit-image>=0.25,<1'."
        )
    return np.asarray(Image.open(file).convert("L"))


def region(name: str, split: str) -> Box:
    """The box from which a split takes its crops."""
    photograph = PHOTOGRAPHS[name]
    return {"train": photograph.train, "tuning": photograph.tuning, "test": photograph.test}[split]


def crop(name: str, split: str, rng: np.random.Generator) -> tuple[Canvas, tuple[tuple[float, float], ...]]:
    """A random crop of a photograph: its grey values (64, 64), and its four corners (x, y) in the photograph's pixels."""
    from PIL import Image

    left, top, right, bottom = region(name, split)
    angle = np.radians(rng.uniform(-ANGLE, ANGLE))
    cos, sin = np.cos(angle), np.sin(angle)
    spread = abs(cos) + abs(sin)  # the crop's bounding box is larger than the crop by this factor
    low, high = PHOTOGRAPHS[name].sides
    side = min(rng.uniform(low, high), (min(right - left, bottom - top) - 2) / spread)
    half = side * spread / 2
    x, y = rng.uniform(left + half, right - half), rng.uniform(top + half, bottom - half)
    step = side / SIZE  # of a pixel
    corners = tuple((x + cos * u - sin * v, y + sin * u + cos * v) for u in (-side / 2, side / 2) for v in (-side / 2, side / 2))
    fine = max(1, round(step))  # samples along a side of a pixel
    count, step = SIZE * fine, step / fine
    offset = -side / 2
    affine = (cos * step, -sin * step, x + (cos - sin) * offset, sin * step, cos * step, y + (sin + cos) * offset)
    box = Image.fromarray(_grey(name)).crop((left, top, right, bottom))  # so that no other pixel can enter
    shifted = (affine[0], affine[1], affine[2] - left, affine[3], affine[4], affine[5] - top)
    cut = box.transform((count, count), Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR)
    return np.asarray(cut, np.float32).reshape(SIZE, fine, SIZE, fine).mean((1, 3)), corners


# --- patterns: functions of two coordinates, whose unit is a repeat, with values in 0 ... 1 ---------------------------


def _nearest(u: Canvas, v: Canvas, points: Canvas) -> tuple[Canvas, Canvas]:
    """The distances to the nearest and the second nearest of `points` (n, 2)."""
    distance = np.sqrt((u[..., None] - points[:, 0]) ** 2 + (v[..., None] - points[:, 1]) ** 2)
    two = np.partition(distance, 1, axis=-1)
    return two[..., 0], two[..., 1]


def _hexagons(u: Canvas, v: Canvas) -> tuple[Canvas, Canvas]:
    """Like `_nearest`, for the points of a hexagonal lattice with distance 1."""
    row = np.floor(v / np.float32(np.sqrt(0.75)))
    found = []
    for k in (-1, 0, 1, 2):
        shift = 0.5 * ((row + k) % 2)
        column = np.floor(u - shift)
        for j in (0, 1):
            found.append(np.hypot(u - shift - column - j, v - (row + k) * np.float32(np.sqrt(0.75))))
    two = np.partition(np.stack(found), 1, axis=0)
    return two[0], two[1]


def _pattern(name: str, rng: np.random.Generator) -> Canvas:
    """A drawn pattern, (64, 64), with values around 0 ... 1."""
    period = 8 / rng.uniform(*SCALE)  # pixels
    u, v = turned(rng.uniform(0, 360), *rng.uniform(-32, 32, 2))
    u, v = ((c + WARP * rng.uniform(0.2, 1) * field(rng, 4)) / np.float32(period) for c in (u, v))
    edge = 1.2 / period  # the width of an edge in repeats
    if name == "striped":
        return soft(np.sin(2 * np.pi * u) - rng.uniform(-0.5, 0.5), edge * 6)
    if name == "dotted":
        if rng.random() < 0.5:
            nearest, _ = _hexagons(u, v)
        else:
            nearest = np.hypot(u - np.round(u), v - np.round(v))
        return soft(rng.uniform(0.22, 0.38) - nearest, edge)
    if name == "checkered":
        return soft(np.sin(np.pi * u) * np.sin(np.pi * v), edge * 3)
    if name == "woven":
        over = (np.floor(u) + np.floor(v)) % 2
        thread = np.where(over == 1, np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v)))
        return thread**0.6 * np.where(over == 1, 1, rng.uniform(0.55, 0.9))
    if name == "honeycomb":
        nearest, second = _hexagons(u, v)
        return soft(second - nearest - rng.uniform(0.1, 0.25), edge * 2)
    if name == "marbled":
        turbulence = np.abs(field(rng, 3)) + np.abs(field(rng, 6)) / 2 + np.abs(field(rng, 12)) / 4
        return 0.5 + 0.5 * np.sin(2 * np.pi * (u / 2 + turbulence * rng.uniform(0.4, 0.9)))
    points = rng.uniform(-52, 52, (round((104 / period) ** 2 / 2.5), 2)).astype(np.float32) / np.float32(period)
    nearest, second = _nearest(u - u.mean(), v - v.mean(), points)
    return soft(second - nearest - rng.uniform(0.03, 0.12), edge * 1.5) * (0.9 + 0.1 * field(rng, 8))


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3) of textures with these labels."""
    found = []
    for label in labels:
        name = CLASSES[label]
        grey = crop(name, split, rng)[0] if name in PHOTOGRAPHS else _pattern(name, rng)
        grey = np.clip((grey - grey.mean()) / max(float(grey.std()), 1e-3), -2.5, 2.5)
        if name in PATTERNS:
            grey = grey + 0.25 * field(rng, 3) + rng.uniform(0.05, 0.3) * field(rng, 24)
        if rng.random() < 0.5 and name != "stars":
            grey = -grey  # dark and light exchanged
        direction = rng.normal(size=3)
        direction = direction / np.linalg.norm(direction) * 0.4 + 0.6
        middle = rng.uniform(80, 170) + rng.normal(0, 25, 3)
        colours = middle + grey[..., None] * direction * rng.uniform(*CONTRAST) / 2
        found.append(finish(colours.astype(np.float32), rng, NOISE))
    return np.stack(found)
