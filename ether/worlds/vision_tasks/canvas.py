"""What the six tasks share: smooth random fields, soft shapes and the last steps of every picture.

A canvas is a float array (64, 64, 3) with values in 0 ... 255. Coordinates are pixels, x to the right and y downwards; the
centre of the picture is (32, 32).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SIZE", "SPLITS", "Canvas", "Picture", "background", "blend", "blurred", "field", "finish", "paste", "pixels", "soft",
    "turned",
]  # fmt: skip

SIZE = 64  # side of a picture, in pixels
SPLITS = ("train", "tuning", "test")

Picture = NDArray[np.uint8]
Canvas = NDArray[Any]


@functools.cache
def pixels() -> tuple[Canvas, Canvas]:
    """The coordinates x and y of the pixels' centres relative to the centre of the picture, each (64, 64)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5 - SIZE / 2
    return x, y


def turned(degrees: float, x: float = 0, y: float = 0) -> tuple[Canvas, Canvas]:
    """Coordinates relative to (x, y), in pixels from the centre, along two axes that are rotated by an angle."""
    right, down = pixels()
    cos, sin = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    return cos * (right - x) + sin * (down - y), cos * (down - y) - sin * (right - x)


@functools.cache
def _spline(cells: int) -> Canvas:
    """Weights of cubic B-splines at the pixels, (64, cells + 3)."""
    at = (np.arange(SIZE) + 0.5) / SIZE * cells
    distance = np.abs(at[:, None] - np.arange(-1, cells + 2)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def field(rng: np.random.Generator, cells: int) -> Canvas:
    """A smooth random field, (64, 64), with about unit variance and details of 64 / `cells` pixels."""
    weights = _spline(cells)
    return weights @ rng.normal(size=(cells + 3, cells + 3)).astype(np.float32) @ weights.T * np.float32(2.1)


def soft(distance: Canvas, width: float = 1.0) -> Canvas:
    """Opacity of a shape from the signed distance to its edge in pixels (positive inside); the edge is `width` pixels wide."""
    return np.clip(distance / width + 0.5, 0, 1)


def blend(canvas: Canvas, opacity: Canvas, colour: Any) -> None:
    """Paint a colour (3,) or another canvas over a canvas, with an opacity (64, 64) in 0 ... 1."""
    canvas += opacity[..., None] * (np.asarray(colour, np.float32) - canvas)


def background(rng: np.random.Generator) -> Canvas:
    """A background of the world of pictures, mirrored and shifted, with random gain, tint and gradient."""
    from ether.worlds import pictures

    names = tuple(pictures.BACKGROUNDS)
    shift = tuple(int(s) for s in rng.integers(0, SIZE, 2))
    scene = pictures.Scene((), names[int(rng.integers(len(names)))], (shift[0], shift[1]))
    canvas = pictures.render(scene).astype(np.float32)
    if rng.random() < 0.5:
        canvas = canvas.transpose(1, 0, 2)
    slope = np.tensordot(rng.normal(0, 0.35, 2), np.stack(pixels()), 1).astype(np.float32)
    tint = rng.normal(1, 0.1, 3) * rng.uniform(0.65, 1.1)
    return canvas * tint.astype(np.float32) + slope[..., None]


def paste(canvas: Canvas, tile: Picture, side: float, x: float, y: float, degrees: float, mirrored: bool) -> Canvas:
    """Paint an RGBA drawing (h, w, 4) over a canvas and return its opacity (64, 64).

    Args:
        canvas: is changed.
        tile: the drawing.
        side: of the drawing in the picture, in pixels.
        x: of its centre, in pixels from the centre of the picture.
        y: likewise.
        degrees: rotation, counter-clockwise.
        mirrored: left and right are exchanged.
    """
    from PIL import Image

    image = Image.fromarray(tile).convert("RGBa")  # premultiplied, so that invisible pixels do not bleed into edges
    image = image.resize((round(side), round(side)), Image.Resampling.LANCZOS)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    sheet = Image.new("RGBa", (SIZE, SIZE))
    sheet.paste(image, (round(SIZE / 2 + x - image.width / 2), round(SIZE / 2 + y - image.height / 2)))
    drawn = np.asarray(sheet.convert("RGBA")).astype(np.float32)
    opacity = drawn[..., 3] / np.float32(255)
    blend(canvas, opacity, drawn[..., :3])
    return opacity


def blurred(canvas: Canvas, sigma: float) -> Canvas:
    """A canvas blurred by a Gaussian with a standard deviation of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(gaussian_filter1d(canvas, sigma, axis=0, mode="nearest"), sigma, axis=1, mode="nearest")


def finish(canvas: Canvas, rng: np.random.Generator, noise: float, gain: float = 0.1) -> Picture:
    """The picture of a canvas after random exposure, contrast and tint (standard deviation `gain`) and pixel noise."""
    middle = canvas.mean((0, 1))
    scale, tint = rng.normal(1, gain), rng.normal(0, 60 * gain, 3)
    result = (canvas - middle) * np.float32(scale) + middle + tint.astype(np.float32)
    result = result + rng.normal(0, noise, result.shape).astype(np.float32)
    return np.clip(np.round(result), 0, 255).astype(np.uint8)
