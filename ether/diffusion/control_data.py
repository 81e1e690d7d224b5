"""Data sets of controllable generation: pictures with captions and annotations, as pairs of files.

Three layouts are read:

- ADEChallengeData2016's, in which files are matched by their names. Its captions are a file of their own, since ADE20K has none::

    images/{training,validation}/ADE_train_00000001.jpg ...
    annotations/{training,validation}/ADE_train_00000001.png ...

- one file for each split with the pictures in it, as the hub has it and the control world (`ether.worlds.control`) writes it::

    <split>.parquet, with the columns image, annotation, caption, and landmarks

- a listed one, whose lines name image, annotation and caption::

    captions_<split>.jsonl, or pairs.jsonl for a data set of one split
    {"image": "images/a.jpg", "annotation": "annotations/a.png", "caption": "a bedroom"}

Annotations of semantic maps are ADE20K's: 0 for "no class", then the class plus one. In memory a class is counted from 0, and
`ether.measures.segmentation.IGNORED` stands for "no class", as in mmsegmentation.

**Size.** Official OFT downloads ADE20K in 512 x 512 pixels; how that copy was made is not documented. Here the centre square of
an image is resized (Lanczos), and its annotation in the same way without interpolation (nearest). Official OFT gives the hint in
0 ... 1 and the image in -1 ... 1; here both are uint8, and whoever encodes them does that.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ether.diffusion.dataset import PICTURES
from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.measures.segmentation import IGNORED
from ether.results import digest
from ether.worlds import control

__all__ = [
    "ADE_CLASSES",
    "Classes",
    "ControlPairs",
    "Pair",
    "Stored",
    "ade_pairs",
    "caption_lines",
    "classes",
    "fingerprint",
    "listed_pairs",
    "pairs",
    "stored_pairs",
]

ADE_CLASSES = 150
FOLDERS = {"train": "training"}  # the splits of ADEChallengeData2016 that have another name there


# --- pairs -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture in a file of many: its name, for messages, and the bytes of an image file."""

    name: str
    content: bytes = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Pair:
    """An example: pictures, caption, and landmarks (x, y) in pixels of the picture if they are known."""

    image: Path | Stored
    annotation: Path | Stored | None
    caption: str
    landmarks: tuple[tuple[float, float], ...] | None = None


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise MissingResourceError(f"{file} cannot be read as JSON lines: {error}. Restore it.") from error
    if not found or not all(isinstance(line, dict) for line in found):
        raise MissingResourceError(f"{file} has no lines of JSON objects, one for each image. Restore it.")
    return found


def _caption(line: Mapping[str, Any], file: Path) -> str:
    """The caption of a line: ``caption``, ``prompt`` (as in official OFT's files), or the first of ``captions`` (COCO)."""
    found = line.get("caption", line.get("prompt", next(iter(line.get("captions", ())), None)))
    if not isinstance(found, str):
        raise MissingResourceError(
            f"A line of {file} has no caption: it needs `caption`, `prompt` or `captions`, and has {line}."
        )
    return found


def caption_lines(file: Path, split: str) -> dict[str, str]:
    """{stem of the image's name: its caption} of a file of captions.

    A line names its image by ``image`` or ``source`` (a path), or by ``index``, which counts the images of ADEChallengeData2016
    from 0: 0 is ADE_val_00000001.

    Args:
        file: JSON lines.
        split: "validation", or another one for the training images.

    Raises:
        MissingResourceError: the file cannot be read, or a line has no caption or names no image.
    """
    prefix, found = "ADE_val" if split == "validation" else "ADE_train", {}
    for line in _lines(file):
        named = line.get("image", line.get("source"))
        if named is None and "index" not in line:
            raise MissingResourceError(f"A line of {file} names no image: it needs `image`, `source` or `index`, and has {line}.")
        stem = Path(named).stem if named is not None else f"{prefix}_{int(line['index']) + 1:08d}"
        found[stem] = _caption(line, file)
    return found


def ade_pairs(folder: Path, split: str, captions: Path) -> list[Pair]:
    """The pairs of a split in ADEChallengeData2016's layout, sorted by name.

    Args:
        folder: contains ``images`` and ``annotations``.
        split: "validation", "train" or "training".
        captions: a file for `caption_lines`.

    Raises:
        MissingResourceError: there are no images, or one has no annotation or no caption.
    """
    inner = FOLDERS.get(split, split)
    root = folder / "images" / inner
    files = sorted(file for file in root.glob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise MissingResourceError(f"No picture in {root}: the data set must have the layout of ADEChallengeData2016.")
    texts, found = caption_lines(captions, split), []
    for file in files:
        annotation = folder / "annotations" / inner / f"{file.stem}.png"
        if not annotation.is_file():
            raise MissingResourceError(f"The picture {file} has no annotation: looked for {annotation}.")
        if file.stem not in texts:
            raise MissingResourceError(f"The picture {file} has no caption in {captions}. Add one, or remove the picture.")
        found.append(Pair(file, annotation, texts[file.stem]))
    return found


def listed_pairs(file: Path) -> list[Pair]:
    """The pairs of a file whose lines have ``image``, a caption, and perhaps ``annotation`` and ``landmarks``; in its order.

    Paths are relative to the file's folder.

    Raises:
        MissingResourceError: the file cannot be read, a line is incomplete, or a file that it names does not exist.
    """
    found = []
    for line in _lines(file):
        if "image" not in line:
            raise MissingResourceError(f"A line of {file} names no image: it needs `image`, and has {line}.")
        named = [file.parent / line[key] if line.get(key) else None for key in ("image", "annotation")]
        for path in named:
            if path is not None and not path.is_file():
                raise MissingResourceError(f"{file} names {path}, which does not exist.")
        points = line.get("landmarks")
        image, annotation = named
        assert image is not None
        landmarks = None if points is None else tuple((float(x), float(y)) for x, y in points)
        found.append(Pair(image, annotation, _caption(line, file), landmarks))
    return found


def stored_pairs(file: Path) -> list[Pair]:
    """The pairs of a Parquet file with pictures in its columns ``image`` and perhaps ``annotation``, in its order.

    Raises:
        MissingResourceError: the file cannot be read, or a column is missing.
    """
    import pyarrow
    import pyarrow.parquet

    def stored(value: Any, column: str, number: int) -> Stored:
        content = value["bytes"] if isinstance(value, Mapping) else value
        return Stored(f"{column} {number} of {file}", bytes(content))

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
        return [
            Pair(
                stored(row["image"], "image", number),
                None if row.get("annotation") is None else stored(row["annotation"], "annotation", number),
                _caption(row, file),
                None if row.get("landmarks") is None else tuple((float(x), float(y)) for x, y in row["landmarks"]),
            )
            for number, row in enumerate(rows)
        ]
    except (OSError, pyarrow.ArrowException, KeyError, TypeError) as error:
        raise MissingResourceError(
            f"{file} cannot be read as pictures with captions: {type(error).__name__}: {error}. Restore it."
        ) from error


def pairs(folder: Path, split: str, captions: Path | None = None) -> list[Pair]:
    """The pairs of a split in whichever layout the folder has. A ``pairs.jsonl`` has no splits: it is read for each of them.

    Args:
        folder: of the data set.
        split: name of the split.
        captions: the file of captions of a data set in ADEChallengeData2016's layout, by default the folder's
            ``captions_<split>.jsonl``; of a data set without this layout, the file that lists its pairs.

    Raises:
        MissingResourceError: the folder has none of the layouts, or is incomplete.
    """
    if (stored := folder / f"{split}.parquet").is_file():
        return stored_pairs(stored)
    by_split = folder / f"captions_{split}.jsonl"
    if (folder / "images" / FOLDERS.get(split, split)).is_dir():
        file = captions or by_split
        if captions is None and file.is_file() and "annotation" in _lines(file)[0]:
            return listed_pairs(file)
        return ade_pairs(folder, split, file)
    for file in (captions or by_split, folder / "pairs.jsonl"):
        if file.is_file():
            return listed_pairs(file)
    raise MissingResourceError(
        f"{folder} has no pictures of the split {split!r}: neither {split}.parquet, nor images/{FOLDERS.get(split, split)} as "
        f"ADEChallengeData2016, nor {by_split.name}, nor pairs.jsonl."
    )


def fingerprint(examples: Sequence[Pair]) -> str:
    """Identifies the contents of examples: of their captions and pictures, those in files of their own by name and size."""

    def mark(picture: Path | Stored | None) -> Any:
        if isinstance(picture, Stored):
            return hashlib.sha256(picture.content).hexdigest()
        return None if picture is None else [picture.name, picture.stat().st_size]

    return digest([[mark(pair.image), mark(pair.annotation), pair.caption, pair.landmarks] for pair in examples], 32)


# --- classes ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of semantic maps, counted from 0: their names, and the colours that a hint shows them in."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


def _table(file: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [
            {key.strip().lower(): value.strip() for key, value in row.items()}
            for row in csv.DictReader(stream, delimiter=delimiter)
        ]
    return sorted(rows, key=lambda row: int(row["idx"]))


def _default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Different colours for up to 255 classes: those of Pascal VOC, made of the bits of a class's number, counted from 1."""
    return tuple(
        (
            sum(((label >> (3 * bit)) & 1) << (7 - bit) for bit in range(8)),
            sum(((label >> (3 * bit + 1)) & 1) << (7 - bit) for bit in range(8)),
            sum(((label >> (3 * bit + 2)) & 1) << (7 - bit) for bit in range(8)),
        )
        for label in range(1, count + 1)
    )


def classes(folder: Path) -> Classes:
    """The classes of a data set.

    Read are ``classes.csv`` (idx, name, r, g, b), as the control world writes it; or ``color150.csv`` (idx, r, g, b) for colours
    and ``objectInfo150.csv`` or ADEChallengeData2016's ``objectInfo150.txt`` (Idx, ..., Name) for names. What is missing is
    replaced by ADE20K's number of classes, numbers for names, and the colours of Pascal VOC. Colours matter only in that they
    must be the same in training and evaluation.

    Raises:
        MissingResourceError: a file has other columns, or not one row for each class.
    """
    file = folder
    try:
        file = folder / "classes.csv"
        if file.is_file():
            rows = _table(file)
            return _classes([row["name"] for row in rows], rows, file)
        names = [str(number) for number in range(1, ADE_CLASSES + 1)]
        for name, delimiter in (("objectInfo150.csv", ","), ("objectInfo150.txt", "\t")):
            file = folder / name
            if file.is_file():
                names = [row["name"] for row in _table(file, delimiter)]
                break
        file = folder / "color150.csv"
        return _classes(names, _table(file) if file.is_file() else None, file)
    except (KeyError, ValueError, AttributeError, OSError) as error:
        raise MissingResourceError(f"{file} is no table of classes: {type(error).__name__}: {error}. Restore it.") from error


def _classes(names: Sequence[str], colours: Sequence[Mapping[str, str]] | None, file: Path) -> Classes:
    if colours is None:
        return Classes(tuple(names), _default_palette(len(names)))
    if [int(row["idx"]) for row in colours] != list(range(1, len(names) + 1)):
        raise MissingResourceError(
            f"{file} has {len(colours)} rows, which are not those of the {len(names)} classes. Restore it."
        )
    return Classes(tuple(names), tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in colours))


# --- examples --------------------------------------------------------------------------------------------------


class ControlPairs(Dataset):
    """Examples of one kind of control signal, read when they are asked for.

    An example is ``{"image": (3, size, size) uint8, "hint": (3, size, size) uint8, "target": ..., "caption": text}``, with the
    target

    semantic    (size, size) uint8: the classes, or `IGNORED`; from the annotation. The hint shows them in the classes' colours.
    edges       (size, size) bool: Canny's edges of the image (`ether.worlds.control.edge_map`), the hint in white on black.
    landmarks   (L, 2) float32: the landmarks, in pixels of the resized image. The hint is the annotation.

    Args:
        examples: from `pairs`.
        kind: semantic | edges | landmarks.
        size: side of the images in pixels.
        known: the classes, for semantic maps.

    Raises:
        ConfigurationError: unknown kind, or semantic maps without classes.
        MissingResourceError: an example has no annotation or no landmarks, which its kind needs.
    """

    KINDS = ("semantic", "edges", "landmarks")

    def __init__(self, examples: Sequence[Pair], kind: str, size: int, known: Classes | None = None) -> None:
        if kind not in self.KINDS:
            raise one_of("kind of control signal", kind, self.KINDS)
        if kind == "semantic" and known is None:
            raise ConfigurationError("Semantic maps need the classes and their colours (`ether.diffusion.control_data.classes`).")
        for pair in examples:
            if kind != "edges" and pair.annotation is None:
                raise MissingResourceError(f"The picture {pair.image} has no annotation, which the kind {kind!r} needs.")
            if kind == "landmarks" and pair.landmarks is None:
                raise MissingResourceError(f"The picture {pair.image} has no landmarks.")
        self.examples, self.kind, self.size, self.known = list(examples), kind, size, known

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example.

        Raises:
            MissingResourceError: a file cannot be read, the sizes of image and annotation differ, or a map has unknown classes.
        """
        pair = self.examples[index]
        opened = _open(pair.image).convert("RGB")
        image = self._square(opened, Image.Resampling.LANCZOS)
        target: torch.Tensor
        if self.kind == "edges":
            edges = control.edge_map(image)
            hint, target = np.repeat(np.where(edges, 255, 0).astype(np.uint8)[..., None], 3, axis=-1), torch.from_numpy(edges)
        else:
            assert pair.annotation is not None
            annotation = _open(pair.annotation)
            if annotation.size != opened.size:
                raise MissingResourceError(
                    f"{pair.annotation} has {annotation.size[0]} x {annotation.size[1]} pixels, but its picture {pair.image} has "
                    f"{opened.size[0]} x {opened.size[1]}."
                )
            if self.kind == "semantic":
                labels = self._labels(annotation, pair.annotation)
                assert self.known is not None
                hint, target = control.coloured(labels, self.known.palette), torch.from_numpy(labels)
            else:
                hint = self._square(annotation.convert("RGB"), Image.Resampling.LANCZOS)
                target = self._points(pair, opened.size)
        return {"image": _tensor(image), "hint": _tensor(hint), "target": target, "caption": pair.caption}

    def _square(self, image: Image.Image, resampling: Image.Resampling) -> NDArray[np.uint8]:
        return np.array(ImageOps.fit(image, (self.size, self.size), resampling), dtype=np.uint8)

    def _labels(self, annotation: Image.Image, file: Path | Stored) -> NDArray[np.uint8]:
        """The classes of an annotation, counted from 0."""
        assert self.known is not None
        values = np.asarray(annotation)
        if values.ndim != 2 or values.dtype != np.uint8:
            raise MissingResourceError(f"{file} is no map of classes, which has one channel of 8 bits.")
        if values.max() > len(self.known.names):
            raise MissingResourceError(f"{file} has the class {values.max()}, but the classes are 1 to {len(self.known.names)}.")
        values = np.where(values == 0, IGNORED, values - 1).astype(np.uint8)
        return self._square(Image.fromarray(values), Image.Resampling.NEAREST)

    def _points(self, pair: Pair, size: tuple[int, int]) -> torch.Tensor:
        """Landmarks in pixels of the resized centre square."""
        side = min(size)
        offset = torch.tensor([(length - side) / 2 for length in size])
        return (torch.tensor(pair.landmarks) - offset) * (self.size / side)


def _open(file: Path | Stored) -> Image.Image:
    try:
        with Image.open(io.BytesIO(file.content) if isinstance(file, Stored) else file) as opened:
            opened.load()
            return opened.copy()
    except OSError as error:
        raise MissingResourceError(f"{file} cannot be read as a picture: {error}. Restore it, or remove it.") from error


def _tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
