"""Drawn faces with 20 landmarks, for landmark-conditioned generation (Figure 11).

A face is a function of its landmarks, two colours and nothing else. Coordinates are fractions of the face's square, x to the
right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["HAIR", "LANDMARKS", "SKIN", "Face", "draw_face", "random_face"]

LANDMARKS = (  # left and right are those of the picture
    "left brow outer", "left brow inner", "right brow inner", "right brow outer",
    "left eye outer", "left eye inner", "left pupil", "right eye inner", "right eye outer", "right pupil",
    "nose bridge", "nose tip", "mouth left", "mouth top", "mouth right", "mouth bottom",
    "left cheek", "right cheek", "left jaw", "right jaw",
)  # fmt: skip
SKIN = ((250, 214, 184), (226, 172, 130), (166, 112, 76), (108, 70, 48))
HAIR = ((52, 38, 32), (128, 76, 38), (236, 190, 84), (196, 78, 40))
FINE = 6  # sub-pixels along a side of a pixel


@dataclass(frozen=True)
class Face:
    """A face: `landmarks` are the 20 points (x, y) in the order of `LANDMARKS`."""

    landmarks: tuple[tuple[float, float], ...]
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]


def random_face(rng: np.random.Generator) -> Face:
    """A random face: width, distance of the eyes, brows, nose, mouth and colours vary."""
    wide, apart, eye = rng.uniform(0.33, 0.43), rng.uniform(0.14, 0.19), rng.uniform(0.055, 0.08)
    eyes, lift, tilt = rng.uniform(0.46, 0.5), rng.uniform(0.09, 0.15), rng.uniform(-0.03, 0.04)
    nose, mouth, half = rng.uniform(0.6, 0.65), rng.uniform(0.74, 0.8), rng.uniform(0.09, 0.17)
    curve, opening, gaze = rng.uniform(-0.05, 0.05), rng.uniform(0.02, 0.1), rng.uniform(-0.02, 0.02)
    jaw = wide * rng.uniform(0.6, 0.85)
    left, right, brow = 0.5 - apart, 0.5 + apart, eyes - lift
    points = (
        (left - 0.09, brow + tilt), (left + 0.07, brow - tilt), (right - 0.07, brow - tilt), (right + 0.09, brow + tilt),
        (left - eye, eyes), (left + eye, eyes), (left + gaze, eyes), (right - eye, eyes), (right + eye, eyes),
        (right + gaze, eyes), (0.5, eyes + 0.03), (0.5, nose), (0.5 - half, mouth - curve), (0.5, mouth - opening * 0.4),
        (0.5 + half, mouth - curve), (0.5, mouth + opening * 0.6 + max(curve, 0)), (0.5 - wide, 0.55), (0.5 + wide, 0.55),
        (0.5 - jaw, 0.82), (0.5 + jaw, 0.82),
    )  # fmt: skip
    return Face(
        tuple((round(float(x), 3), round(float(y), 3)) for x, y in points),
        SKIN[int(rng.integers(len(SKIN)))],
        HAIR[int(rng.integers(len(HAIR)))],
    )


def draw_face(face: Face, size: int) -> NDArray[np.uint8]:
    """The face in a square, RGBA, (size, size, 4)."""
    from PIL import Image, ImageDraw

    scale = size * FINE
    image = Image.new("RGBA", (scale, scale))
    pen = ImageDraw.Draw(image)
    at = {name: (x * scale, y * scale) for name, (x, y) in zip(LANDMARKS, face.landmarks, strict=True)}
    dark = tuple(round(channel * 0.55) for channel in face.skin)

    def oval(centre: tuple[float, float], wide: float, high: float, fill: tuple[int, ...]) -> None:
        x, y = centre
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=fill)

    (cheek, height), (other, _) = at["left cheek"], at["right cheek"]
    half, middle = (other - cheek) / 2, (cheek + other) / 2
    oval((middle, 0.42 * scale), half * 1.12, 0.4 * scale, face.hair)  # hair
    for side in ("left", "right"):  # ears
        oval(at[f"{side} cheek"], 0.05 * scale, 0.07 * scale, face.skin)
    oval((middle, height), half, 0.36 * scale, face.skin)  # the upper head
    jaw = [at["left cheek"], at["right cheek"], at["right jaw"], (middle, 0.98 * scale), at["left jaw"]]
    pen.polygon(jaw, fill=face.skin)
    pen.pieslice((cheek, 0.12 * scale, other, 0.66 * scale), 180, 360, fill=face.hair)  # a fringe
    oval((middle, 0.45 * scale), half * 0.9, 0.12 * scale, face.skin)
    for side in ("left", "right"):
        pupil = at[f"{side} pupil"]
        a, b = sorted(x for x, _ in (at[f"{side} eye outer"], at[f"{side} eye inner"]))
        oval(((a + b) / 2, pupil[1]), (b - a) / 2, (b - a) * 0.36, (252, 252, 252))
        oval(pupil, (b - a) * 0.24, (b - a) * 0.3, (30, 26, 30))
        pen.line((at[f"{side} brow outer"], at[f"{side} brow inner"]), fill=face.hair, width=round(0.045 * scale))
    pen.line((at["nose bridge"], at["nose tip"]), fill=dark, width=round(0.035 * scale))
    oval(at["nose tip"], 0.045 * scale, 0.025 * scale, dark)
    lips = [at[f"mouth {part}"] for part in ("left", "top", "right", "bottom")]
    pen.polygon(lips, fill=(176, 48, 52))
    pen.line([lips[0], lips[3], lips[2]], fill=(176, 48, 52), width=round(0.03 * scale), joint="curve")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))
