"""The small models that the suite makes for itself, shipped with the package, and how each is made again.

`path` gives the folder of a shipped model once every file's SHA-256 has been checked against the model's card;
`pretrain` makes one anew, as does ``python -m ether.foundation NAME --out FOLDER``. Each model is a module of this
package with a function ``pretrain(out, *, seed, steps, threads)``; the registry below names them.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

from ether.errors import MissingResourceError, one_of
from ether.results import file_digest

__all__ = ["CARD", "MODELS", "path", "pretrain", "verify"]

MODELS = {  # name: the module that makes it
    "image-judges": "ether.foundation.image_judges",
    "language-encoder": "ether.foundation.language_encoder",
    "language-model": "ether.foundation.language_model",
    "text-to-image": "ether.foundation.text_to_image",
}
CARD = "card.json"
WEIGHTS = Path(__file__).parent / "weights"


@functools.cache
def path(name: str) -> Path:
    """The folder of a shipped model, for ``from_pretrained``; its files are checked once a process.

    Raises:
        ConfigurationError: no model has this name.
        MissingResourceError: a file is missing or is not the one that the card describes.
    """
    if name not in MODELS:
        raise one_of("foundation model", name, MODELS)
    return verify(WEIGHTS / name)


def verify(folder: Path) -> Path:
    """Check every file of a model's folder against the SHA-256 in its card; returns the folder.

    Raises:
        MissingResourceError: names the file that is missing or differs, and the remedy.
    """
    remedy = f"Make the model anew with `--config foundation=rebuild`, or restore {folder} from the package."
    if not (folder / CARD).is_file():
        raise MissingResourceError(f"The model folder {folder} has no {CARD}. {remedy}")
    for name, expected in json.loads((folder / CARD).read_text())["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise MissingResourceError(f"{file} is missing though the model's card lists it. {remedy}")
        if (found := file_digest(file)) != expected:
            raise MissingResourceError(
                f"{file} is not the file that the model's card describes: SHA-256 {found}, not {expected}. {remedy}"
            )
    return folder


def pretrain(name: str, out: Path, **settings: Any) -> None:
    """Make a model anew and write it, with its card, to the folder `out` (settings: seed, steps, threads).

    Raises:
        ConfigurationError: no model has this name.
    """
    if name not in MODELS:
        raise one_of("foundation model", name, MODELS)
    importlib.import_module(MODELS[name]).pretrain(Path(out), **settings)
