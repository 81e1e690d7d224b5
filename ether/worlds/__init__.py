"""Procedural data for the offline scales: small worlds whose examples are generated from a seed.

A world is a module of this package with two functions:

- ``write(folder, **settings)`` writes its data sets below `folder`, in the layout of a hub mirror;
- ``files(settings)`` lists the paths, relative to that folder, of all files that ``write`` creates.

`WORLDS` is the list of worlds. A new world requires a module and an entry in this list. ``python -m ether.worlds NAME FOLDER``
writes the data sets of a world.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ether.errors import one_of

__all__ = ["WORLDS", "files", "write"]

WORLDS = {  # name: module
    "control": "ether.worlds.control",
    "facts": "ether.worlds.facts",
    "language": "ether.worlds.language",
    "pictures": "ether.worlds.pictures",
    "vision": "ether.worlds.vision",
}


def _module(name: str) -> Any:
    if name not in WORLDS:
        raise one_of("world", name, WORLDS)
    return importlib.import_module(WORLDS[name])


def _check(name: str, settings: Mapping[str, Any]) -> None:
    known = [p.name for p in inspect.signature(_module(name).write).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in settings:
        if key not in known:
            raise one_of("setting", key, known, f"the settings of the world {name!r}")


def files(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The files that `write` creates, as paths relative to its folder; does not import slow libraries.

    Raises:
        ConfigurationError: there is no world or setting of this name.
    """
    _check(name, settings)
    return _module(name).files(settings)


def write(name: str, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the data sets of a world below `folder`, in the layout of a hub mirror.

    Raises:
        ConfigurationError: there is no world or setting of this name, or a setting is out of range.
    """
    _check(name, settings)
    _module(name).write(Path(folder), **settings)
