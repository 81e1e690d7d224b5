"""House numbers, for SVHN: the real handwritten digits that scikit-learn ships, in colour and with neighbours."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ether.worlds.vision_tasks.canvas import SPLITS, Canvas, Picture, blend, blurred, field, finish, pixels

__all__ = ["CLASSES", "draw", "originals"]

SIDES = (32.0, 42.0)  # range of the height of a digit, in pixels
SHIFT = 3.0  # greatest displacement of the central digit, in pixels
NEIGHBOURS = 0.5  # share of the digits with a neighbour, on either side; more are harder
CONTRAST = 70.0  # smallest distance of the colours of digit and background (length of the RGB vector)
NOISE = 8.0  # standard deviation of the pixels' noise
ANGLE = 8.0  # greatest rotation, in degrees

CLASSES = tuple("0123456789")
SHARES = {"train": 0.6, "tuning": 0.15, "test": 0.25}


@functools.cache
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 1,797 digits, (1797, 8, 8) in 0 ... 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


@functools.cache
def originals(split: str, label: int) -> tuple[int, ...]:
    """The indices of the digits of one label that a split shows. No digit is in two splits; the seed does not matter."""
    indices = np.flatnonzero(_digits()[1] == label)
    mixed = np.random.default_rng([label, 8]).permutation(indices)
    ends = np.round(np.cumsum([0, *(SHARES[s] for s in SPLITS)]) * len(mixed)).astype(int)
    place = SPLITS.index(split)
    return tuple(int(i) for i in mixed[ends[place] : ends[place + 1]])


def _opacity(index: int, side: float, x: float, y: float, degrees: float, slant: float) -> Canvas:
    """A digit of a height in pixels with its centre at (x, y), pixels from the picture's centre; opacity (64, 64)."""
    from scipy.ndimage import map_coordinates

    right, down = pixels()
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = (cos * (right - x) + sin * (down - y)) / side * 8
    v = (cos * (down - y) - sin * (right - x)) / side * 8
    bordered = np.pad(_digits()[0][index], 2)
    ink = map_coordinates(bordered, np.stack([v + 5.5, u + slant * v + 5.5]), order=3, mode="constant")
    return np.clip((ink - 0.28) / 0.34, 0, 1).astype(np.float32)


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3) with these digits in the middle."""
    found = []
    right, down = pixels()
    for label in labels:
        while True:
            back, front = rng.uniform(15, 240, (2, 3))
            if np.linalg.norm(back - front) > CONTRAST * 1.6 or abs(np.mean(back - front)) > CONTRAST / 1.6:
                break
        canvas = np.empty((64, 64, 3), np.float32)
        canvas[:] = back
        slope = rng.normal(0, 0.5, 2)
        canvas += (slope[0] * right + slope[1] * down + 6 * field(rng, 4))[..., None].astype(np.float32)
        side, degrees, slant = rng.uniform(*SIDES), rng.uniform(-ANGLE, ANGLE), rng.uniform(-0.25, 0.25)
        x, y = rng.uniform(-SHIFT, SHIFT, 2)
        shown = [(int(label), x, y)]
        for direction in (-1, 1):
            if rng.random() < NEIGHBOURS:
                distance = side * rng.uniform(0.72, 0.95) * direction
                across = np.sin(np.radians(degrees)) * distance + rng.normal(0, 1)
                shown.append((int(rng.integers(10)), x + distance, y + across))
        for digit, across, below in reversed(shown):
            choices = originals(split, digit)
            ink = _opacity(choices[int(rng.integers(len(choices)))], side, across, below, degrees, slant)
            blend(canvas, ink, front)
        found.append(finish(blurred(canvas, rng.uniform(0.2, 1.2)), rng, NOISE))
    return np.stack(found)
