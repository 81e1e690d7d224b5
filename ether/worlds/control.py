"""Three tasks of controllable generation on the world of pictures (Table 3, Figures 5, 6, 10 and 11).

Each example has a picture of 64 x 64, its caption, and a control signal that is derived from the same scene without error:

``semantic``    semantic map to image, in place of ADE20K. The classes (`CLASSES`) are the ground and the group of each thing
                (`ether.worlds.pictures.group`), straight from the opacity of the drawings. The hint is the map in colours.
``landmarks``   landmarks to face, in place of CelebA-HQ. All scenes are faces. The hint shows the 20 landmarks of
                `ether.worlds.faces` as dots and lines on black.
``edges``       edges to image, in place of COCO. The hint is white on black.

**Splits.** ``train``; ``tuning``, for choosing learning rates; and ``validation``, for the reported numbers. All have the
distribution of `ether.worlds.pictures.random_scenes`, so their captions contain only the pairs of name and background that a
base model was trained on; the held-out pairs are in no split. A picture belongs to the split that the digest of its pixels
determines, so no picture is in two splits, whatever their sizes and seeds.

`write` makes a hub mirror, with the columns ``image``, ``annotation`` and ``caption``, and ``landmarks`` for their task::

    <root>/datasets/world/control/<task>/<split>.parquet
    <root>/datasets/world/control/semantic/classes.csv       number, name and colour of each class

An annotation of ``semantic`` contains the class plus one, since 0 means "no class" in ADE20K; one of ``edges`` is 0 or 255; one
of ``landmarks`` is the hint. Coordinates are pixels, x to the right and y downwards, with 0 at the outer edge of the first pixel.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ether.errors import ConfigurationError, one_of
from ether.results import write_parquet, write_text
from ether.worlds import drawings, pictures
from ether.worlds.faces import LANDMARKS, random_face

__all__ = [
    "CLASSES", "LINES", "NO_CLASS", "PALETTE", "SIZES", "SPLITS", "TASKS", "Examples", "coloured", "draw_landmarks", "edge_map",
    "examples", "faces", "files", "label_map", "landmarks", "split_of", "write", "write_classes", "write_split",
]  # fmt: skip

Picture = NDArray[np.uint8]

SPLITS = ("train", "tuning", "validation")
SIZES = {"train": 1200, "tuning": 128, "validation": 256}  # examples by split that `write` makes
STREAM = 3_000_000  # added to seeds, so that the streams of scenes are not those of the pretraining

CLASSES = ("ground", *drawings.GROUPS, pictures.FACE)
PALETTE: tuple[tuple[int, int, int], ...] = (  # colours of the classes in a hint
    (110, 110, 110), (230, 60, 60), (245, 200, 50), (60, 170, 75), (60, 110, 235), (170, 70, 200), (70, 220, 220),
    (250, 160, 190),
)  # fmt: skip
NO_CLASS = 255  # label of pixels without a class; they do not occur in this world

# The lines between landmarks, as chains of names, and their colours.
LINES: tuple[tuple[tuple[int, int, int], tuple[str, ...]], ...] = (
    ((255, 160, 0), ("left brow outer", "left brow inner")),
    ((255, 160, 0), ("right brow inner", "right brow outer")),
    ((0, 160, 255), ("left eye outer", "left pupil", "left eye inner")),
    ((0, 160, 255), ("right eye inner", "right pupil", "right eye outer")),
    ((0, 220, 90), ("nose bridge", "nose tip")),
    ((255, 60, 90), ("mouth left", "mouth top", "mouth right", "mouth bottom", "mouth left")),
    ((150, 90, 255), ("left cheek", "left jaw", "right jaw", "right cheek")),
)
FINE = 8  # sub-pixels along a side of a pixel, for drawing landmarks


# --- control signals --------------------------------------------------------------------------------------------------


def label_map(scene: pictures.Scene) -> Picture:
    """The class of each pixel, an index in `CLASSES`, (64, 64); a thing counts where it covers more than half of a pixel."""
    numbers = [0, *(CLASSES.index(pictures.group(thing.name)) for thing in scene.things)]
    return np.asarray(numbers, np.uint8)[pictures.coverage(scene)]


def coloured(labels: NDArray[np.integer[Any]], palette: Sequence[Sequence[int]] = PALETTE) -> Picture:
    """Label maps (..., H, W) in the colours of a palette, (..., H, W, 3); pixels without a class are black.

    Raises:
        ConfigurationError: a label has no colour.
    """
    table = np.zeros((NO_CLASS + 1, 3), np.uint8)
    table[: len(palette)] = palette
    found = np.unique(labels)
    unknown = found[(found >= len(palette)) & (found != NO_CLASS)]
    if len(unknown):
        raise ConfigurationError(f"The label {unknown[0]} has no colour: the palette has {len(palette)} colours.")
    return table[labels]


def landmarks(scene: pictures.Scene) -> NDArray[np.float64]:
    """The places of the `LANDMARKS` of a scene of one face, in pixels, (20, 2).

    Raises:
        ConfigurationError: the scene is not one face.
    """
    if len(scene.things) != 1 or scene.things[0].face is None:
        raise ConfigurationError(f"A scene of {' and '.join(thing.name for thing in scene.things)} has no landmarks of one face.")
    [thing] = scene.things
    assert thing.face is not None
    return np.asarray(thing.face.landmarks, np.float64) * thing.side + (thing.x, thing.y)


def draw_landmarks(points: NDArray[np.floating[Any]], size: int = pictures.SIZE) -> Picture:
    """Landmarks (20, 2), in pixels, as white dots joined by coloured lines on black, (size, size, 3)."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size * FINE, size * FINE))
    pen = ImageDraw.Draw(image)
    at = {name: (float(x) * FINE, float(y) * FINE) for name, (x, y) in zip(LANDMARKS, points, strict=True)}
    thick = FINE * size / pictures.SIZE  # one pixel of a picture of the usual size
    for colour, names in LINES:
        pen.line([at[name] for name in names], fill=colour, width=round(thick), joint="curve")
    for x, y in at.values():
        pen.ellipse((x - thick, y - thick, x + thick, y + thick), fill=(255, 255, 255))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def edge_map(picture: Picture, low: float = 100, high: float = 200, sigma: float = 1.0) -> NDArray[np.bool_]:
    """Canny's edges of an RGB picture (H, W, 3), boolean, (H, W): the union of those of the three channels.

    In the grey picture, things would have no outline where they are as bright as their background. The thresholds are those of
    official OFT, in units of OpenCV: of the gradient by Sobel's filter, for values of 0 ... 255. Unlike OpenCV, scikit-image
    measures the gradient by its Euclidean length and smooths the picture first, with `sigma` in pixels, which removes the finest
    texture. Pixels at the picture's rim are never edges.
    """
    from skimage.feature import canny

    channels = np.moveaxis(picture.astype(np.float64), -1, 0)
    edges = [canny(channel / 255, sigma, low / 255, high / 255, mode="nearest") for channel in channels]
    return np.any(edges, axis=0)


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Examples of a task."""

    images: Picture  # (n, 64, 64, 3)
    hints: Picture  # (n, 64, 64, 3)
    captions: list[str]
    targets: NDArray[Any]  # (n, 64, 64) uint8 classes | (n, 20, 2) float64 landmarks in pixels | (n, 64, 64) bool edges
    scenes: list[pictures.Scene]


@dataclass(frozen=True)
class Task:
    """A control task."""

    scenes: Callable[[int], Iterator[pictures.Scene]]  # an endless stream, of a seed
    target: Callable[[pictures.Scene, Picture], NDArray[Any]]  # of a scene and its picture: an element of `Examples.targets`
    hint: Callable[[NDArray[Any]], Picture]  # of a target


def faces(seed: int) -> Iterator[pictures.Scene]:
    """An endless stream of scenes of one face."""
    rng, backgrounds = np.random.default_rng([seed, 5]), tuple(pictures.BACKGROUNDS)
    while True:
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        yield pictures.alone(pictures.FACE, background, rng, face=random_face(rng))


def _white(edges: NDArray[np.bool_]) -> Picture:
    return np.repeat(np.where(edges, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


TASKS: Mapping[str, Task] = {
    "semantic": Task(pictures.random_scenes, lambda scene, _: label_map(scene), coloured),
    "landmarks": Task(faces, lambda scene, _: landmarks(scene), draw_landmarks),
    "edges": Task(pictures.random_scenes, lambda _, picture: edge_map(picture), _white),
}


def split_of(picture: Picture) -> str:
    """The split to which a picture belongs: a tenth of all are ``tuning``, a tenth ``validation``, the others ``train``."""
    number = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest()[0] / 256
    return "tuning" if number < 0.1 else "validation" if number < 0.2 else "train"


def examples(task: str, split: str, seed: int, count: int) -> Examples:
    """`count` different examples of a split. Fewer examples of the same seed are the first of more.

    Raises:
        ConfigurationError: there is no task or split of this name, or `count` is below 1.
    """
    if task not in TASKS:
        raise one_of("task", task, TASKS, "the control world")
    if split not in SPLITS:
        raise one_of("split", split, SPLITS, "the control world")
    if count < 1:
        raise ConfigurationError(f"The control world has no {count} examples: ask for at least 1.")
    spec, number = TASKS[task], SPLITS.index(split)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), number])
    scenes: list[pictures.Scene] = []
    shown: list[Picture] = []
    seen: set[bytes] = set()
    for scene in spec.scenes(STREAM + len(SPLITS) * seed + number):
        if len(scenes) == count:
            break
        picture = pictures.render(scene)
        if split_of(picture) == split and picture.tobytes() not in seen:
            seen.add(picture.tobytes())
            scenes.append(scene)
            shown.append(picture)
    targets = [spec.target(scene, picture) for scene, picture in zip(scenes, shown, strict=True)]
    captions = [pictures.caption(scene, rng) for scene in scenes]
    return Examples(np.stack(shown), np.stack([spec.hint(target) for target in targets]), captions, np.stack(targets), scenes)


# --- files ------------------------------------------------------------------------------------------------------------


def _settings(settings: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """Tasks and examples by split, checked."""
    tasks, sizes = settings.get("tasks") or tuple(TASKS), settings.get("sizes") or {}
    for task in tasks:
        if task not in TASKS:
            raise one_of("task", task, TASKS, "the settings of the control world")
    for split, size in sizes.items():
        if split not in SIZES:
            raise one_of("split", split, SIZES, "the sizes of the control world")
        if not 1 <= size <= 100_000:
            raise ConfigurationError(f"The split {split!r} of the control world must have 1 to 100000 examples, not {size}.")
    return list(dict.fromkeys(tasks)), {**SIZES, **sizes}


def _folder(task: str) -> Path:
    return Path("datasets") / "world" / "control" / task


CLASSES_FILE = "classes.csv"


def files(settings: Mapping[str, Any]) -> list[str]:
    """The paths, relative to the folder given to `write`, of all files that it writes with these settings.

    Raises:
        ConfigurationError: there is no task or split of this name, or a size is out of range.
    """
    tasks, sizes = _settings(settings)
    found = []
    for task in tasks:
        found += [_folder(task) / f"{split}.parquet" for split in sizes]
        if task == "semantic":
            found.append(_folder(task) / CLASSES_FILE)
    return [path.as_posix() for path in found]


def _annotation(task: str, target: NDArray[Any], hint: Picture) -> Picture:
    """What the annotation's file shows."""
    if task == "semantic":
        return (target + 1).astype(np.uint8)
    return hint if task == "landmarks" else np.where(target, 255, 0).astype(np.uint8)


def _stored(picture: Picture, number: int) -> dict[str, Any]:
    """A picture as the hub stores it in a column: the bytes of a PNG file and its name."""
    from PIL import Image  # only writing and drawing need it

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number:05d}.png"}


def write_classes(root: Path) -> None:
    """Write the table of the classes and their colours of a data set of semantic maps."""
    table = [f"{i + 1},{name},{r},{g},{b}" for i, (name, (r, g, b)) in enumerate(zip(CLASSES, PALETTE, strict=True))]
    write_text("\n".join(["idx,name,r,g,b", *table]) + "\n", root / CLASSES_FILE)


def write_split(root: Path, task: str, split: str, made: Examples) -> None:
    """Write the file of a split."""
    shown = [_annotation(task, target, hint) for target, hint in zip(made.targets, made.hints, strict=True)]
    rows: dict[str, list[Any]] = {
        "image": [_stored(picture, i) for i, picture in enumerate(made.images)],
        "annotation": [_stored(picture, i) for i, picture in enumerate(shown)],
        "caption": made.captions,
    }
    if task == "landmarks":
        rows["landmarks"] = made.targets.round(3).tolist()
    write_parquet(pd.DataFrame(rows), root / f"{split}.parquet")


def write(folder: Path, *, seed: int = 0, tasks: Sequence[str] | None = None, sizes: Mapping[str, int] | None = None) -> None:
    """Write the tasks as a hub mirror (for the layout, see the docstring of the module).

    The same settings give the same bytes.

    Args:
        folder: root of the mirror.
        seed: of scenes and captions.
        tasks: names of the tasks; all of `TASKS` if None.
        sizes: examples by split, where they differ from `SIZES`.

    Raises:
        ConfigurationError: there is no task or split of this name, or a size is out of range.
    """
    chosen, counts = _settings({"tasks": tasks, "sizes": sizes})
    for task in chosen:
        root = Path(folder) / _folder(task)
        if task == "semantic":
            write_classes(root)
        for split, count in counts.items():
            write_split(root, task, split, examples(task, split, seed, count))
