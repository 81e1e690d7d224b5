"""Toys seen from nine elevations, for SmallNORB-Elevation: figures of ellipsoids and boxes on a floor, by ray casting.

The world's axes are x and y on the floor and z upwards. A camera at elevation e and azimuth a looks from the direction
(cos e cos a, cos e sin a, sin e) at a target. Lengths are arbitrary; a toy is about 2 long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ether.worlds.vision_tasks.canvas import SIZE, Canvas, Picture, blurred, finish

__all__ = ["CLASSES", "ELEVATIONS", "Camera", "Solid", "cast", "draw", "shade", "toy"]

ELEVATIONS = (30, 35, 40, 45, 50, 55, 60, 65, 70)  # degrees
CLASSES = tuple(f"{degrees} degrees" for degrees in ELEVATIONS)

SHAPE = 0.1  # standard deviation of the logarithm of a toy's proportions; larger is harder
SHADOWS = 1.0  # share of the pictures in which the toy casts a shadow
ROLL = 0.5  # standard deviation of the rotation of the camera about its axis, in degrees
NOISE = 3.0  # standard deviation of the pixels' noise
TABLE = 1.0  # share of the pictures in which the toy is on a round plate, whose outline is an ellipse; fewer is harder
BLUR = 0.6  # standard deviation of the camera's blur, in pixels


@dataclass(frozen=True)
class Solid:
    """An ellipsoid or box: `inverse` (3, 3) takes positions relative to `centre` (3,) to the unit sphere or the cube -1 ... 1."""

    box: bool
    centre: Canvas
    inverse: Canvas
    albedo: float = 0.7


@dataclass(frozen=True)
class Camera:
    """A camera: angles in degrees, distance to the target (3,), focal length in pixels, and the target's place in pixels."""

    elevation: float
    azimuth: float = 0.0
    distance: float = 6.0
    focal: float = 120.0
    roll: float = 0.0
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def rays(self, fine: int = 1) -> tuple[Canvas, Canvas]:
        """The origin (3,) and the directions (64 fine x 64 fine, 3) of the rays through the pixels, row by row."""
        e, a, r = np.radians([self.elevation, self.azimuth, self.roll])
        back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        up = np.cross(back, right)
        right, up = np.cos(r) * right + np.sin(r) * up, np.cos(r) * up - np.sin(r) * right
        place = (np.arange(SIZE * fine) + 0.5) / fine - SIZE / 2
        x, y = np.meshgrid(place - self.offset[0], place - self.offset[1])
        directions = -self.focal * back + x[..., None] * right - y[..., None] * up
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origin = np.asarray(self.target) + self.distance * back
        return origin.astype(np.float32), directions.reshape(-1, 3).astype(np.float32)


def solid(
    box: bool, centre: Sequence[float], half: Sequence[float], albedo: float = 0.7, tilt: float = 0.0, yaw: float = 0.0
) -> Solid:
    """An ellipsoid or box with half axes `half`, tilted about y and then turned about z, both in degrees."""
    t, w = np.radians([tilt, yaw])
    about_y = np.array([[np.cos(t), 0, np.sin(t)], [0, 1, 0], [-np.sin(t), 0, np.cos(t)]])
    about_z = np.array([[np.cos(w), -np.sin(w), 0], [np.sin(w), np.cos(w), 0], [0, 0, 1]])
    inverse = (about_z @ about_y).T / np.asarray(half)[:, None]
    return Solid(box, np.asarray(centre, np.float32), inverse.astype(np.float32), albedo)


def cast(solids: Sequence[Solid], origin: Canvas, directions: Canvas) -> tuple[Canvas, NDArray[np.int64], Canvas]:
    """Where rays first meet solids.

    Args:
        solids: at least one.
        origin: of the rays, (3,) or (rays, 3).
        directions: (rays, 3), of length 1.

    Returns:
        Distances (rays,), infinite where a ray meets nothing; the indices (rays,) of the solids that are met, -1 for none; and
        the unit normals (rays, 3) there.
    """
    count = len(directions)
    nearest, index = np.full(count, np.inf, np.float32), np.full(count, -1)
    normals = np.zeros((count, 3), np.float32)
    for i, part in enumerate(solids):
        # a sphere around the solid decides which rays are worth the rest
        reach = np.linalg.norm(np.linalg.inv(part.inverse), axis=0)
        radius = np.sqrt((reach**2).sum()) if part.box else reach.max()
        away = part.centre - origin
        along = (directions * away).sum(-1)
        near = np.flatnonzero(((away * away).sum(-1) - along**2 <= radius**2 * 1.001) & (along > -radius))
        if not len(near):
            continue
        start = (origin if origin.ndim == 1 else origin[near]) - part.centre
        o, d = start @ part.inverse.T, directions[near] @ part.inverse.T
        if part.box:
            with np.errstate(divide="ignore", invalid="ignore"):
                first, second = (-1 - o) / d, (1 - o) / d
            enter, leave = np.minimum(first, second), np.maximum(first, second)
            distance, axis = enter.max(-1), enter.argmax(-1)
            hit = (distance < leave.min(-1)) & (distance > 1e-4)
            unit = -np.sign(d[np.arange(len(d)), axis])[:, None] * np.eye(3, dtype=np.float32)[axis]
        else:
            a, b = (d * d).sum(-1), (o * d).sum(-1)
            closest = o - (b / a)[:, None] * d  # subtracting squares of distances instead would lose all digits
            inside = 1 - (closest * closest).sum(-1)
            distance = -b / a - np.sqrt(np.maximum(inside, 0) / a)
            hit = (inside > 0) & (distance > 1e-4)
            unit = o + distance[:, None] * d
        hit &= distance < nearest[near]
        chosen = near[hit]
        nearest[chosen], index[chosen] = distance[hit], i
        normal = unit[hit] @ part.inverse
        normals[chosen] = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return nearest, index, normals


def shade(
    solids: Sequence[Solid],
    camera: Camera,
    light: Canvas,
    floor: float,
    ambient: float,
    shadow: float = 0.0,
    plate: tuple[float, float] = (0.0, 1.0),
    fine: int = 1,
) -> Canvas:
    """The brightness (64, 64), about 0 ... 1, of solids on the floor z = 0.

    Args:
        solids: what is on the floor.
        camera: above the floor, looking down.
        light: unit vector (3,) towards the light.
        floor: albedo of the floor.
        ambient: share of the light that comes from everywhere.
        shadow: by how much a shadow on the floor reduces the directed light, 0 ... 1.
        plate: radius of a round plate in the floor around the origin, and its albedo relative to the floor's.
        fine: rays along a side of a pixel.
    """
    origin, directions = camera.rays(fine)
    _, index, normals = cast(solids, origin, directions)
    ground = index < 0
    facing = np.where(ground, light[2], np.clip(normals @ light, 0, None))
    points = origin - (origin[2] / directions[ground, 2])[:, None] * directions[ground]
    if shadow:
        dark = cast(solids, points, np.broadcast_to(light, points.shape))[1] >= 0
        facing[ground] = light[2] * (1 - shadow * dark)
    albedo = np.append([part.albedo for part in solids], floor)[index]
    albedo[ground] *= np.where(np.hypot(points[:, 0], points[:, 1]) < plate[0], plate[1], 1)
    bright = albedo * (ambient + (1 - ambient) * facing)
    return bright.reshape(SIZE, fine, SIZE, fine).mean((1, 3)).astype(np.float32)


def toy(kind: int, rng: np.random.Generator) -> list[Solid]:
    """A random toy of 4 to 6 parts: 0 animal, 1 human, 2 airplane, 3 truck, 4 car."""

    def size(*lengths: float) -> tuple[Any, ...]:
        return tuple(length * np.exp(rng.normal(0, SHAPE)) for length in lengths)

    body, other, third = rng.uniform(0.3, 1.0, 3)
    if kind == 0:
        long, wide, high, leg, head = size(0.75, 0.32, 0.32, 0.3, 0.27)
        top, thick = 2 * leg + high * 0.8, 0.1
        legs = [
            solid(True, (sx * long * 0.6, sy * wide * 0.55, leg), (thick, thick, leg), other) for sx in (-1, 1) for sy in (-1, 1)
        ]
        front = solid(False, (long * 1.05, 0, top + high * rng.uniform(0.2, 1)), (head * 1.2, head * 0.8, head), third)
        return [solid(False, (0, 0, top), (long, wide, high), body), front, *legs]
    if kind == 1:
        wide, deep, high, leg, head = size(0.34, 0.2, 0.42, 0.42, 0.24)
        parts = [solid(True, (0, s * wide * 0.5, leg), (deep * 0.7, wide * 0.35, leg), other) for s in (-1, 1)]
        for s in (-1, 1):
            arm = solid(False, (0.1, s * (wide + 0.1), 2 * leg + high), (0.11, 0.11, high), body, tilt=rng.uniform(-70, 70))
            parts.append(arm)
        torso = solid(True, (0, 0, 2 * leg + high), (deep, wide, high), body)
        return [torso, solid(False, (0, 0, 2 * leg + 2 * high + head), (head, head, head * 1.1), third), *parts]
    if kind == 2:
        long, thick, span, chord, fin = size(1.05, 0.2, 1.0, 0.25, 0.3)
        lift = thick + 0.15
        wing = solid(True, (0.1, 0, lift), (chord, span, 0.05), other, tilt=rng.uniform(-4, 4))
        tail = solid(True, (-0.9 * long, 0, lift + 0.05), (chord * 0.6, span * 0.35, 0.04), other)
        rudder = solid(True, (-0.9 * long, 0, lift + fin), (chord * 0.6, 0.04, fin), third)
        return [solid(False, (0, 0, lift), (long, thick, thick), body), wing, tail, rudder]
    axle, wheel = (0.16, 0.12) if kind == 4 else (0.2, 0.2)
    if kind == 3:
        long, wide, high, cab = size(0.7, 0.36, 0.42, 0.3)
        parts = [
            solid(True, (-0.25, 0, 2 * wheel + high), (long, wide, high), body),
            solid(True, (long + cab - 0.2, 0, 2 * wheel + high * 0.75), (cab, wide * 0.9, high * 0.75), third),
            solid(True, (0.1, 0, 2 * wheel), (long + cab, wide * 0.8, 0.07), other),
        ]
        places = (-long * 0.7, long)
    else:
        long, wide, high, cabin = size(0.95, 0.42, 0.2, 0.24)
        parts = [
            solid(True, (0, 0, wheel + high), (long, wide, high), body),
            solid(bool(rng.random() < 0.5), (-0.1, 0, wheel + 2 * high + cabin * 0.7), (long * 0.5, wide * 0.85, cabin), third),
        ]
        places = (-long * 0.6, long * 0.6)
    return parts + [solid(False, (x, 0, axle), (axle, wide * 1.12, axle), other * 0.4) for x in places]


def draw(labels: NDArray[np.int64], split: str, rng: np.random.Generator) -> Picture:
    """Pictures (n, 64, 64, 3), in grey, of random toys from the elevations with these labels."""
    found = []
    for label in labels:
        solids = toy(int(rng.integers(5)), rng)
        high, around = np.radians(rng.uniform(30, 75)), rng.uniform(0, 2 * np.pi)
        light = np.array([np.cos(high) * np.cos(around), np.cos(high) * np.sin(around), np.sin(high)], np.float32)
        x, y = rng.uniform(-3, 3, 2)
        camera = Camera(
            ELEVATIONS[label],
            rng.uniform(0, 360),
            rng.uniform(6.0, 6.4),
            rng.uniform(108, 116),
            rng.normal(0, ROLL),
            (0.0, 0.0, 0.5),
            (x, y),
        )
        shadow = rng.uniform(0.3, 0.8) if rng.random() < SHADOWS else 0.0
        plate = (rng.uniform(1.2, 1.5) if rng.random() < TABLE else 0.0, 1 - rng.uniform(0.3, 0.5))
        floor, ambient = rng.uniform(0.45, 0.75), rng.uniform(0.25, 0.5)
        grey = blurred(shade(solids, camera, light, floor, ambient, shadow, plate)[..., None] * 255, BLUR)[..., 0]
        grey = np.round(grey * rng.uniform(0.75, 1.1) + rng.normal(0, NOISE, grey.shape))
        found.append(finish(np.repeat(grey[..., None], 3, axis=-1), rng, 0.0, 0.0))
    return np.stack(found)
