"""A world of six small image classifications, for the tasks of VTAB (Table 12).

**Tasks.** Each entry of `TASKS` stands in for one task of VTAB and says what is real and what is drawn. All pictures are
64 x 64 RGB. Two tasks have real pictures: textures cut from the photographs that scikit-image ships, and the handwritten digits
that scikit-learn ships. The others are drawn.

**Splits.** ``train`` and ``test`` are those of the experiment; ``tuning`` takes the place of ``test`` when learning rates are
chosen. All splits of a task have the same distribution, except that real digits are never shared between splits, and real
textures come from separate parts of their photographs. Labels are balanced.

**Held out.** `held_out_names` are the things of ``caltech101``, whose drawings a pretraining must leave out.

`write` makes a hub mirror with the columns ``image`` and ``label``:

    <root>/datasets/world/vtab/<task>/<split>.parquet
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ether.errors import ConfigurationError, one_of
from ether.results import atomic
from ether.worlds.vision_tasks import digits, elevation, flowers, land, objects, textures
from ether.worlds.vision_tasks.canvas import SIZE, SPLITS, Picture
from ether.worlds.vision_tasks.objects import held_out_names

__all__ = ["SIZE", "SIZES", "TASKS", "Task", "examples", "files", "held_out_names", "write"]

SIZES = {"train": 1200, "tuning": 500, "test": 1000}  # examples by split


@dataclass(frozen=True)
class Task:
    """A task: `draw` makes pictures (n, 64, 64, 3) of labels (n,) for a split."""

    title: str
    kind: str  # natural, specialized or structured
    classes: tuple[str, ...]
    real: str
    drawn: str
    draw: Callable[[NDArray[np.int64], str, np.random.Generator], Picture]


TASKS: Mapping[str, Task] = {
    "caltech101": Task(
        "Caltech101",
        "natural",
        objects.CLASSES,
        "Nothing is a photograph; the things are an artist's drawings (Fluent) that no pretraining has seen.",
        "Backgrounds, place, size, rotation, colour, covering strips and noise are drawn at random.",
        objects.draw,
    ),
    "dtd": Task(
        "DTD",
        "natural",
        textures.CLASSES,
        f"{len(textures.PHOTOGRAPHS)} of the {len(textures.CLASSES)} textures are crops of the photographs of scikit-image.",
        f"The other {len(textures.PATTERNS)} textures are drawn, and the colours of all are random.",
        textures.draw,
    ),
    "flowers102": Task(
        "Flowers102",
        "natural",
        flowers.CLASSES,
        f"Nothing is a photograph; {len(flowers.DRAWN)} of the {len(flowers.CLASSES)} flowers are an artist's drawings (Fluent).",
        f"The other {len(flowers.FLOWERS)} flowers, which differ in petals and centre, leaves and ground are drawn.",
        flowers.draw,
    ),
    "svhn": Task(
        "SVHN",
        "natural",
        digits.CLASSES,
        "The shapes of all digits are the handwritten ones of scikit-learn.",
        "Their colours, the background, the neighbouring digits' places, blur and noise are drawn at random.",
        digits.draw,
    ),
    "eurosat": Task(
        "EuroSAT",
        "specialized",
        land.CLASSES,
        "Nothing is real.",
        "Land seen from above is drawn by rules for each of EuroSAT's ten classes.",
        land.draw,
    ),
    "snorb_elevation": Task(
        "sNORB-Elevation",
        "structured",
        elevation.CLASSES,
        "Nothing is real.",
        "Random toys of ellipsoids and boxes are rendered by ray casting from SmallNORB's nine elevations.",
        elevation.draw,
    ),
}


def _task(name: str) -> Task:
    if name not in TASKS:
        raise one_of("task", name, TASKS, "the vision world")
    return TASKS[name]


def examples(task: str, split: str, seed: int, count: int) -> tuple[Picture, NDArray[np.int64]]:
    """Pictures (count, 64, 64, 3) and labels (count,) of one split: balanced, in random order.

    Raises:
        ConfigurationError: there is no task or split of this name.
        MissingResourceError: scikit-image's photographs are not installed.
    """
    spec = _task(task)
    if split not in SPLITS:
        raise one_of("split", split, SPLITS, "the vision world")
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), SPLITS.index(split)])
    labels = rng.permutation(np.arange(count) % len(spec.classes))
    return spec.draw(labels, split, rng), labels


def _sizes(sizes: Mapping[str, int] | None) -> dict[str, int]:
    """Examples by split, checked."""
    for split, size in (sizes or {}).items():
        if split not in SIZES:
            raise one_of("split", split, SIZES, "the sizes of the vision world")
        if size < 1:
            raise ConfigurationError(f"The split {split!r} of the vision world must have at least 1 example, not {size}.")
    return {**SIZES, **(sizes or {})}


def _file(task: str, split: str) -> str:
    """The path of a split, relative to the root of the mirror."""
    return f"datasets/world/vtab/{task}/{split}.parquet"


def files(settings: Mapping[str, Any]) -> list[str]:
    """The paths, relative to the folder given to `write`, of all files that it writes; they do not depend on the settings."""
    return [_file(task, split) for task in TASKS for split in SIZES]


def _png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def write(folder: Path, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> None:
    """Write the six tasks as a hub mirror (for the layout, see the docstring of the module).

    The same settings give the same bytes.

    Args:
        folder: root of the mirror.
        seed: of the pictures.
        sizes: examples by split, where they differ from `SIZES`.

    Raises:
        ConfigurationError: `sizes` has an unknown split or a number below 1.
        MissingResourceError: scikit-image's photographs are not installed.
    """
    from datasets import ClassLabel, Dataset, Features, Image  # takes a second to import, and only writing needs it

    chosen = _sizes(sizes)
    for name, task in TASKS.items():
        features = Features({"image": Image(), "label": ClassLabel(names=list(task.classes))})
        for split, count in chosen.items():
            pictures, labels = examples(name, split, seed, count)
            rows = {"image": [{"bytes": _png(p), "path": None} for p in pictures], "label": labels.tolist()}
            with atomic(Path(folder) / _file(name, split)) as partial:
                Dataset.from_dict(rows, features=features).to_parquet(partial)
