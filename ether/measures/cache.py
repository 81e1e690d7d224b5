"""Results of exact counting kept on disk, so that a table of counts that are already known opens without torch.

A result is found again by its request, and only while the source files of the modules that computed it and the versions of the
libraries it counts with are the same.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ether import results, sources

FOLDER = Path("results/cache")
PACKAGES = ("torch", "transformers", "peft", "diffusers")
COLUMNS = {"environment": "string", "request": "string", "quantity": "string", "value": "float64"}

# What is on disk, by file and environment: {request: {quantity: value}}.
_known: dict[tuple[Path, str], dict[str, dict[str, float]]] = {}


def cached(
    kind: str, modules: Sequence[str], request: Mapping[str, Any], compute: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """The result of `compute`, from ``results/cache/<kind>.parquet`` where it is there, else computed and stored.

    Args:
        kind: name of the file.
        modules: the modules whose code decides the result, with all that they import.
        request: what the result depends on beside the code; anything JSON can hold.
        compute: gives the quantities by name; counts of up to 2^53 are stored exactly. Called on a miss only.
    """
    environment = _environment(tuple(modules))
    file = (FOLDER / f"{kind}.parquet").absolute()
    key = json.dumps(request, sort_keys=True)
    known = _known.setdefault((file, environment), {})
    if key not in known:
        known.update(_read(file, environment))
    if key not in known:
        known[key] = {name: float(value) for name, value in compute().items()}
        _write(file, environment, known | _read(file, environment))  # another process may have added results meanwhile
    return known[key]


@functools.cache
def _environment(modules: tuple[str, ...]) -> str:
    """A digest of the sources of `modules` and of all that they import, and of the versions of PACKAGES."""
    text = sources.text_of(sources.closure(*modules))
    return results.digest([text, {name: importlib.metadata.version(name) for name in PACKAGES}], length=16)


def _read(file: Path, environment: str) -> dict[str, dict[str, float]]:
    if not file.is_file():
        return {}
    found: dict[str, dict[str, float]] = {}
    stored = pd.read_parquet(file)
    for row in stored[stored["environment"] == environment].itertuples():
        found.setdefault(row.request, {})[row.quantity] = row.value
    return found


def _write(file: Path, environment: str, known: Mapping[str, Mapping[str, float]]) -> None:
    """Replaces the file by the results of this environment: those of other code or other libraries are out of date."""
    rows = [(environment, key, name, value) for key, found in known.items() for name, value in found.items()]
    results.write_parquet(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS), file)
