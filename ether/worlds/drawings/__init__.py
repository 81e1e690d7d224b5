"""Drawings of 485 named things by two artists: Google's Noto and Microsoft's Fluent 3D.

Every name ("octopus", "teapot") has a drawing in either style. The drawings are cropped to what is visible, centred in a
square and reduced to 56 x 56 pixels with an alpha channel. They are stored as one PNG for each artist (tiles in the order of
``drawings.json``) beside their licences (``NOTICE``). ``python -m ether.worlds pictures --rebuild FOLDER`` makes the three files
again from the two npm packages (`ether.worlds.drawings.rebuild`).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ether.errors import MissingResourceError, one_of

__all__ = ["ARTISTS", "COLUMNS", "FOLDER", "GROUPS", "INDEX", "SIDE", "Entry", "drawing", "entries", "entry"]

FOLDER = Path(__file__).parent
ARTISTS = ("noto", "fluent")
INDEX = "drawings.json"
SIDE, COLUMNS = 56, 22  # of a tile in pixels; tiles in a row of an artist's PNG
GROUPS = ("animal", "food", "plant", "vehicle", "clothing", "object")


@dataclass(frozen=True)
class Entry:
    """A named thing that both artists drew."""

    name: str
    group: str  # one of `GROUPS`
    code: str  # its Unicode code points, as in the packages' file names


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All named things, in the order of the tiles."""
    return tuple(Entry(**line) for line in json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))["drawings"])


@functools.cache
def _positions() -> dict[str, int]:
    return {entry.name: i for i, entry in enumerate(entries())}


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ConfigurationError: there is no drawing of this name.
    """
    if name not in _positions():
        raise one_of("drawing", name, _positions())
    return entries()[_positions()[name]]


@functools.cache
def _tiles(artist: str) -> NDArray[np.uint8]:
    """All tiles of an artist, (485, 56, 56, 4)."""
    from PIL import Image

    file = FOLDER / f"{artist}.png"
    if artist not in ARTISTS:
        raise one_of("artist", artist, ARTISTS)
    if not file.is_file():
        raise MissingResourceError(f"The drawings {file.name} are missing from {FOLDER}. Install the package again.")
    sheet = np.asarray(Image.open(file).convert("RGBA"))
    rows = sheet.shape[0] // SIDE
    tiles = sheet.reshape(rows, SIDE, COLUMNS, SIDE, 4).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 4)
    return np.ascontiguousarray(tiles[: len(entries())])


def drawing(artist: str, name: str) -> NDArray[np.uint8]:
    """A drawing, RGBA, (56, 56, 4).

    Raises:
        ConfigurationError: there is no drawing of this name or no artist of this name.
        MissingResourceError: the package's drawings are missing.
    """
    entry(name)
    return _tiles(artist)[_positions()[name]]
