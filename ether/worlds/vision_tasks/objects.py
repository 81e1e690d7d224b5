"""Things that the pretraining leaves out, for Caltech101: drawings by the artist Fluent before varied backgrounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ether.worlds import drawings
from ether.worlds.vision_tasks.canvas import Canvas, Picture, background, blend, blurred, finish, paste, soft, turned

__all__ = ["CLASSES", "draw", "held_out_names"]

SIDES = (26.0, 48.0)  # range of a thing's side in pixels; smaller is harder
OCCLUDED = 0.4  # share of things that something covers in part
NOISE = 10.0  # standard deviation of the pixels' noise
HUE = 25.0  # standard deviation of the rotation of the hue, in degrees

CLASSES = (
    "zebra", "giraffe", "lobster", "flamingo", "peacock", "hedgehog", "kangaroo", "bat",
    "eggplant", "avocado", "popcorn", "kiwifruit", "waffle",
    "seedling", "lotus", "hyacinth",
    "bicycle", "parachute", "anchor", "canoe", "skateboard",
    "necktie", "socks", "gloves", "kimono",
    "saxophone", "accordion", "ladder", "telescope", "maracas",
)  # fmt: skip


def held_out_names() -> tuple[str, ...]:
    """The names that a pretraining must leave out, in the drawings of both artists."""
    return CLASSES


def _recoloured(tile: Picture, rng: np.random.Generator) -> Picture:
    """A drawing with its hue rotated and its channels scaled at random."""
    angle = np.radians(rng.normal(0, HUE))
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * grey + np.sin(angle) * across
    colours = tile[..., :3] @ turn.T * rng.normal(1, 0.1, 3) * rng.uniform(0.75, 1.15)
    return np.concatenate([np.clip(np.round(colours), 0, 255).astype(np.uint8), tile[..., 3:]], axis=-1)


def _cover(canvas: Canvas, x: float, y: float, side: float, rng: np.random.Generator) -> None:
    """Hide a part of what lies around (x, y): a strip of another background over one side of the thing."""
    along, _ = turned(rng.uniform(0, 360), x, y)
    start, width = side * rng.uniform(0.05, 0.3), side * rng.uniform(0.2, 0.6)
    blend(canvas, soft(along - start) * soft(start + width - along), background(rng))


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3) of the things with these labels; all splits have the same drawings."""
    found = []
    for label in labels:
        canvas = blurred(background(rng), rng.uniform(0.1, 1))
        tile = _recoloured(drawings.drawing("fluent", CLASSES[label]), rng)
        side = rng.uniform(*SIDES)
        room = 32 - side / 2
        x, y = rng.uniform(-room, room, 2)
        paste(canvas, tile, side, x, y, rng.uniform(-30, 30), bool(rng.random() < 0.5))
        if rng.random() < OCCLUDED:
            _cover(canvas, x, y, side, rng)
        found.append(finish(canvas, rng, NOISE))
    return np.stack(found)
