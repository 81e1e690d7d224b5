"""Disk cache of exact counts, so that tables of cached counts are made without importing torch.

A cached result is valid for the same request, as long as the source files of the modules that computed it and the versions of
the libraries in PACKAGES are unchanged.
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

# Cached results by file and environment: {request: {quantity: value}}.
_known: dict[tuple[Path, str], dict[str, dict[str, float]]] = {}


def cached(
    kind: str, modules: Sequence[str], request: Mapping[str, Any], compute: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """The result of `compute` from ``results/cache/<kind>.parquet``; if it is not in the file, it is computed and stored.

    Args:
        kind: name of the file.
        modules: the modules whose code, including its imports, determines the result.
        request: the arguments that determine the result, as JSON-serialisable values.
        compute: returns quantities by name; counts of up to 2^53 are stored exactly. Called only if there is no cached result.
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
    """A digest of the source files of `modules` and their imports, and of the versions of PACKAGES."""
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
    """Replaces the file by the results of this environment; results of other code or libraries are outdated."""
    rows = [(environment, key, name, value) for key, found in known.items() for name, value in found.items()]
    results.write_parquet(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS), file)
