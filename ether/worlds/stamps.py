"""Semantic maps of photographed things: a transfer check of controllable generation, whose base model knows drawings only.

Debian's package tuxpaint-stamps-default (GPL-2 or later) has some 700 cut-outs with an alpha channel, most of them photographs.
They are no part of this project and nothing depends on them. With the package unpacked (``dpkg-deb -x``)::

    python -m ether.worlds.stamps FOLDER/usr/share/tuxpaint/stamps MIRROR
    snakemake --cores 2 table3 figure10 --config scale=photographs mirror=MIRROR

Scenes are those of `ether.worlds.pictures` (64 x 64 pixels, the same backgrounds, places and sizes) with one cut-out instead of
a drawing; classes, hints and layout are those of `ether.worlds.control`. No cut-out of one split occurs in another. A caption
names the thing by a word of its description that the base model knows, and otherwise by its class, which is no word of the model.
"""

from __future__ import annotations

import argparse
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ether.errors import EtherError, MissingResourceError
from ether.worlds import control, pictures

__all__ = ["DATA_SET", "GROUPS", "CutOut", "cut_outs", "scenes", "write"]

DATA_SET = "local/stamps"
SIZES = {"train": 1600, "tuning": 64, "validation": 128}
TILE = 96  # side of a cut-out in pixels
LEAST = 40  # pixels of the longer side of a cut-out that is used
GROUPS = {  # folders of the package: the class of what they contain
    "animals": "animal",
    "food": "food",
    "plants": "plant",
    "vehicles": "vehicle",
    "military/vehicles": "vehicle",
    "clothes": "clothing",
    "household": "object",
    "hobbies": "object",
    "sports": "object",
}


@dataclass(frozen=True)
class CutOut:
    """A photographed thing: the word for it, its class, and its picture with opacity, (96, 96, 4)."""

    name: str
    group: str
    tile: NDArray[np.uint8]
    split: str


def _name(file: Path, group: str) -> str:
    """The word for a thing; see the docstring of the module."""
    described = file.with_suffix(".txt")
    text = described.read_text(encoding="utf-8", errors="replace").splitlines()[0] if described.is_file() else ""
    words = re.findall("[a-z]+", text.lower())
    singular = [word.removesuffix("s") for word in words]
    known = [word for word in (*words, *singular) if word in pictures.NAMES]
    return known[0] if known else group


def _tile(file: Path) -> NDArray[np.uint8] | None:
    """The cut-out, cropped to what is visible and centred on a square; None if it is small, sheer, or has no transparent part."""
    image = Image.open(file).convert("RGBA")
    box = image.getchannel("A").point(lambda value: 255 if value > 127 else 0).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < LEAST:
        return None
    visible = image.crop(box).convert("RGBa")  # premultiplied, so that invisible pixels do not bleed into edges
    scale = TILE / max(visible.size)
    visible = visible.resize(
        (max(1, round(visible.width * scale)), max(1, round(visible.height * scale))), Image.Resampling.LANCZOS
    )
    square = Image.new("RGBa", (TILE, TILE))
    square.paste(visible, ((TILE - visible.width) // 2, (TILE - visible.height) // 2))
    pixels = np.asarray(square.convert("RGBA"))
    return pixels if 0.05 < (pixels[..., 3] > 127).mean() < 0.95 else None


def cut_outs(folder: Path) -> list[CutOut]:
    """The usable cut-outs of the package's folder ``stamps``, sorted by file; drawings (folders ``cartoon``) are left out.

    Raises:
        MissingResourceError: the folder has none.
    """
    found = []
    for place, group in GROUPS.items():
        for file in sorted((folder / place).rglob("*.png")):
            inner = file.relative_to(folder).as_posix()
            if "cartoon" in inner or (tile := _tile(file)) is None:
                continue
            share = zlib.crc32(inner.encode()) / 2**32
            split = "tuning" if share < 0.1 else "validation" if share < 0.25 else "train"
            found.append(CutOut(_name(file, group), group, tile, split))
    if not {cut.split for cut in found} == set(SIZES):
        raise MissingResourceError(
            f"{folder} has no cut-outs: give the folder usr/share/tuxpaint/stamps of Debian's package tuxpaint-stamps-default, "
            "unpacked with dpkg-deb -x."
        )
    return found


def _placed(cut: CutOut, side: int, mirrored: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours (side, side, 3) and opacity (side, side, 1)."""
    image = Image.fromarray(cut.tile).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image.convert("RGBA")).astype(np.float32)
    return pixels[..., :3], pixels[..., 3:] / np.float32(255)


def scenes(cuts: list[CutOut], split: str, seed: int, count: int) -> control.Examples:
    """`count` examples of a split; every class is as frequent as the others."""
    rng = np.random.default_rng([seed, list(SIZES).index(split)])
    by_group = {
        group: [cut for cut in cuts if (cut.group, cut.split) == (group, split)] for group in dict.fromkeys(GROUPS.values())
    }
    groups, backgrounds = [group for group, members in by_group.items() if members], tuple(pictures.BACKGROUNDS)
    images, targets, captions, shown = [], [], [], []
    for _ in range(count):
        members = by_group[groups[int(rng.integers(len(groups)))]]
        cut = members[int(rng.integers(len(members)))]
        scene = pictures.alone(cut.name, backgrounds[int(rng.integers(len(backgrounds)))], rng, mirrored=bool(rng.integers(2)))
        [thing] = scene.things
        colours, opacity = _placed(cut, thing.side, thing.mirrored)
        picture = pictures.render(pictures.Scene((), scene.background, scene.shift)).astype(np.float32)
        labels = np.zeros((pictures.SIZE, pictures.SIZE), np.uint8)
        part = slice(thing.y, thing.y + thing.side), slice(thing.x, thing.x + thing.side)
        picture[part] += opacity * (colours - picture[part])
        labels[part][opacity[..., 0] > 0.5] = control.CLASSES.index(cut.group)
        images.append(np.clip(np.round(picture), 0, 255).astype(np.uint8))
        targets.append(labels)
        captions.append(pictures.caption(scene, rng))
        shown.append(scene)
    return control.Examples(np.stack(images), control.coloured(np.stack(targets)), captions, np.stack(targets), shown)


def write(folder: Path, stamps: Path, *, seed: int = 0) -> None:
    """Write the data set as a hub mirror, ``<folder>/datasets/local/stamps/semantic``. The same package gives the same bytes.

    Args:
        folder: root of the mirror.
        stamps: the package's folder ``stamps``.
        seed: of the scenes.

    Raises:
        MissingResourceError: `stamps` has no cut-outs.
    """
    cuts, root = cut_outs(stamps), Path(folder) / "datasets" / DATA_SET / "semantic"
    control.write_classes(root)
    for split, count in SIZES.items():
        control.write_split(root, "semantic", split, scenes(cuts, split, seed, count))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.worlds.stamps", description="Write the scenes of photographed things.")
    parser.add_argument("stamps", type=Path, help="the folder usr/share/tuxpaint/stamps of the unpacked package")
    parser.add_argument("folder", type=Path, help="root of the mirror")
    options = parser.parse_args()
    try:
        write(options.folder, options.stamps)
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
