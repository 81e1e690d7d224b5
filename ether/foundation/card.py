"""The card of a foundation model: ``card.json``, which records how the model was made and the SHA-256 of each of its files.

A folder is a finished model only if it has a card. `start` therefore removes an earlier card before the first file is
written, and `write` adds the new card last.

Keys of a card: ``name``, ``what`` (architecture and objective), ``command`` (reproduces the model), ``seed``, ``steps``,
``batch``, ``parameters``, ``hardware``, ``minutes`` (of training), ``versions``, ``scores`` (on fresh data), ``licence`` and
``sha256`` (relative path: digest); a model may add further keys.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ether import results
from ether.errors import MissingResourceError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CARD", "read", "start", "verify", "write"]

CARD = "card.json"


def start(folder: Path) -> None:
    """Create a model's folder, or mark an existing one as unfinished by removing its card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)


def write(
    folder: Path,
    *,
    name: str,
    what: str,
    seed: int,
    steps: int,
    threads: int,
    device: str,
    batch: int | Mapping[str, int],
    models: nn.Module | Mapping[str, nn.Module],
    minutes: float,
    scores: Mapping[str, float],
    made_from: str,
    packages: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the card of a finished folder; every file that is already in the folder is hashed. Prints the scores.

    Args:
        folder: the model's folder.
        name: the model's name in `ether.foundation.MODELS`.
        what: short description of architecture and objective.
        seed, steps, threads, device: the settings of `ether.foundation.pretrain`.
        batch: examples per step, for each part if there are several.
        models: the model, or its parts by name; their parameters are counted.
        minutes: duration of the training.
        scores: measured values by name.
        made_from: the kind of generated training data, for the licence.
        packages: distributions whose versions are recorded in addition to `ether.results.PACKAGES`.
        details: additional keys; they are placed after ``batch``.
    """
    count = {part: _parameters(model) for part, model in models.items()} if isinstance(models, Mapping) else _parameters(models)
    processor, use = platform.machine().replace("_", "-"), "one thread" if threads == 1 else f"{threads} threads"
    command = f"python -m ether.foundation {name} --out FOLDER --steps {steps} --seed {seed} --threads {threads}"
    content: dict[str, Any] = {
        "name": name,
        "what": what,
        "command": command if device == "cpu" else f"{command} --device {device}",
        "seed": seed,
        "steps": steps,
        "batch": batch,
        **(details or {}),
        "parameters": count,
        "hardware": f"{os.cpu_count()}-core {processor} CPU, {use}" if device == "cpu" else results.hardware(device),
        "minutes": round(minutes, 1),
        "versions": json.loads(results.versions()) | {package: importlib.metadata.version(package) for package in packages},
        "scores": dict(scores),
        "licence": f"Made from generated {made_from} only; under the licence of this package.",
        "sha256": {file.relative_to(folder).as_posix(): results.file_digest(file) for file in _files(folder)},
    }
    results.write_text(json.dumps(content, indent=2) + "\n", folder / CARD)
    print(f"{folder}: {content['scores']}", flush=True)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _files(folder: Path) -> list[Path]:
    """The files that belong to a model: all but the card and hidden ones (temporary files)."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CARD and not file.name.startswith("."))


def read(folder: Path) -> dict[str, Any]:
    """The content of a model's card.

    Raises:
        MissingResourceError: the folder has no card, or the card is not a JSON object with the key ``sha256``.
    """
    file = folder / CARD
    if not file.is_file():
        raise MissingResourceError(f"The model folder {folder} has no {CARD}. {_remedy(folder)}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingResourceError(f"{file} is not valid JSON ({error}). {_remedy(folder)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), dict):
        raise MissingResourceError(f"{file} does not list the SHA-256 of the model's files. {_remedy(folder)}")
    return content


def verify(folder: Path) -> Path:
    """Check every file of a model's folder against the SHA-256 in its card; returns the folder.

    Raises:
        MissingResourceError: names the file that is missing or differs, and the remedy.
    """
    for name, expected in read(folder)["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise MissingResourceError(f"{file} is missing although the model's card lists it. {_remedy(folder)}")
        if (found := results.file_digest(file)) != expected:
            raise MissingResourceError(
                f"{file} is not the file that the model's card describes: its SHA-256 is {found}, expected {expected}. "
                f"{_remedy(folder)}"
            )
    return folder


def _remedy(folder: Path) -> str:
    return f"Make the model again with `--config foundation=rebuild`, or restore {folder} from the package."
