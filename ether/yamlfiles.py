"""Reading the YAML files under ``workflow/``: strict parsing, schemas, overlays."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ether.errors import ConfigurationError, MissingResourceError
from ether.silence import hidden

with hidden("rfc3987_syntax"):
    import jsonschema

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML loader that raises an error for duplicate keys instead of using the last one."""


def _mapping_without_duplicates(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    seen: set[str] = set()
    for key in keys:
        if not isinstance(key, str):
            mark = node.start_mark
            raise ConfigurationError(
                f"{mark.name}, line {mark.line + 1}: the key {str(key)[:80]!r} is not text: put it in quotes."
            )
        if key in seen:
            raise ConfigurationError(f"{node.start_mark.name}: the key {key!r} is given twice.")
        seen.add(key)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


# A file has at most so many levels and values. Aliases (`*name`) are counted each time, so they cannot stand for more.
DEPTH, VALUES = 50, 100_000


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary of text, finite numbers, truth values, null, lists and dictionaries.

    Raises:
        MissingResourceError: no such file.
        ConfigurationError: not YAML, a duplicate key, a value of another type, too large or too deep, or not a mapping.
    """
    if not path.is_file():
        raise MissingResourceError(f"{path} does not exist.")
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeyLoader)
    except ConfigurationError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, no such date, too many digits
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a mapping, not {type(content).__name__}.")
    _check_values(content, path)
    return content


def _check_values(content: dict[str, Any], path: Path) -> None:
    count = 0

    def refuse(place: tuple[str, ...], why: str) -> NoReturn:
        raise ConfigurationError(f"{path}, at {'/'.join(place)[:200]}: {why}.")

    def check(value: Any, place: tuple[str, ...]) -> None:
        nonlocal count
        count += 1
        if count > VALUES:
            refuse(place[:1], f"the file has more than {VALUES:,} values")
        if len(place) > DEPTH:
            refuse(place[:1], f"the file has more than {DEPTH} levels")
        if isinstance(value, float) and not math.isfinite(value):
            refuse(place, f"{value} is not a finite number")
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                check(inner, (*place, str(key)))
        elif not isinstance(value, str | int | float | None):
            refuse(place, f"a {type(value).__name__} is not allowed ({value!s:.40}); put it in quotes if text is meant")

    check(content, ())


# --- schemas ---------------------------------------------------------------------------------------------------


@functools.cache
def _definitions() -> dict[str, Any]:
    """The definitions of ``scale.schema.yaml``, which all schemas share."""
    return read_yaml(WORKFLOW / "schemas" / "scale.schema.yaml")["$defs"]


@functools.cache
def _schema(name: str, experiments: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """A schema with the shared definitions and the properties of each experiment.

    A scale has a section for each experiment, with the schema of its module; a method has hyperparameters for each module.
    """
    definition = copy.deepcopy(read_yaml(WORKFLOW / "schemas" / f"{name}.schema.yaml"))
    definition["$defs"] = _definitions() | definition.get("$defs", {})
    if name == "scale":
        folder = WORKFLOW / "schemas" / "experiments"
        for experiment, module in experiments:
            definition["properties"][experiment] = read_yaml(folder / f"{module}.schema.yaml")
    elif name == "method":
        for _, module in experiments:
            definition["properties"]["training"]["properties"][module] = {"$ref": "#/$defs/sections"}
    return definition


def validate(content: Mapping[str, Any], schema: str, where: Path, experiments: Mapping[str, str] | None = None) -> None:
    """Checks a mapping against ``workflow/schemas/<schema>.schema.yaml``.

    Args:
        content: the content of a file.
        schema: scale | method | experiments | exhibits.
        where: path of the file, for the message.
        experiments: {experiment: module}, for the schemas of scales and methods.

    Raises:
        ConfigurationError: the content does not match the schema. The message names the file, the key and the allowed values.
    """
    definition = _schema(schema, tuple((experiments or {}).items()))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(definition).iter_errors(content))
    if error is None:
        return
    key = "/".join(map(str, error.absolute_path)) or "the top level"
    message = error.message
    if isinstance(error.instance, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", error.instance, re.I):
        message += f" (YAML reads {error.instance} as text: write it with a dot and a sign, as 1.0e-3)"
    allowed = (error.schema.get("properties") or {}) if isinstance(error.schema, dict) else {}
    if error.validator == "unevaluatedProperties":
        allowed = {**_definitions()["values"]["properties"], **allowed}
    if error.validator in ("additionalProperties", "unevaluatedProperties") and allowed:
        message += f". Known keys there: {', '.join(sorted(allowed))}"
    raise ConfigurationError(f"{where}, at {key}: {message}.")


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` updated with ``over``: mappings are merged recursively, other values are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
