"""Reading the YAML files under ``workflow/``: strict parsing, schemas, overlays."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ether.errors import ConfigurationError, MissingResourceError, combined, suggestion
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


# A process reads the same scale many times, and a validation of it takes a tenth of a second.
_known_problems: dict[tuple[Any, ...], list[tuple[tuple[str, ...], str]]] = {}


def problems(
    content: Mapping[str, Any], schema: str, experiments: Mapping[str, str] | None = None
) -> list[tuple[tuple[str, ...], str]]:
    """All that does not match ``workflow/schemas/<schema>.schema.yaml``: (the place of a value, a sentence on what is wrong).

    Args:
        content: the content of a file.
        schema: scale | method | experiments | exhibits.
        experiments: {experiment: module}, for the schemas of scales and methods.
    """
    key = (schema, tuple((experiments or {}).items()))
    text = repr(content)
    if (*key, text) not in _known_problems:
        if len(_known_problems) >= 100:
            _known_problems.clear()
        _known_problems[*key, text] = _problems(content, _schema(*key))
    return list(_known_problems[*key, text])


def _problems(content: Mapping[str, Any], definition: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    found: dict[tuple[tuple[str, ...], str], None] = {}  # without duplicates: a missing key is an error for every one
    for error in jsonschema.Draft202012Validator(definition).iter_errors(content):
        best = jsonschema.exceptions.best_match([error])
        message = _explained(best)
        found[tuple(map(str, best.absolute_path)), message if message.endswith("?") else f"{message}."] = None
    return list(found)


def _explained(error: jsonschema.ValidationError) -> str:
    """What is wrong with a value, with the allowed ones and the most similar of them."""
    value, rule = error.instance, error.validator_value
    if error.validator in ("additionalProperties", "unevaluatedProperties") and isinstance(value, dict):
        known = _keys(error.schema)
        if unknown := sorted(set(value) - known if known else ()):
            near = "".join(suggestion(key, known) for key in unknown)
            keys = f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
            return f"{keys}.{near} Known keys there: {', '.join(sorted(known))}"
    if error.validator == "required":
        missing = [key for key in rule if key not in value]
        return f"the key{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} must be given"
    if error.validator == "enum" and isinstance(value, str):
        near = suggestion(value, map(str, rule))
        return f"{error.message}.{near}" if near else str(error.message)
    if error.validator == "pattern" and "description" in error.schema:
        return f"{value!r:.80} is not {error.schema['description']}"
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", value, re.I):
        return f"{error.message} (YAML reads {value} as text: write it with a dot and a sign, as 1.0e-3)"
    return str(error.message)


def _keys(schema: Mapping[str, Any]) -> set[str]:
    """The properties of a schema, and of the shared definitions that it refers to."""
    found = set(schema.get("properties", {}))
    if reference := schema.get("$ref"):
        found |= _keys(_definitions()[reference.removeprefix("#/$defs/")])
    return found


def validate(content: Mapping[str, Any], schema: str, where: Path, experiments: Mapping[str, str] | None = None) -> None:
    """Checks a mapping against a schema (see `problems`); `where` is the file, for the message.

    Raises:
        ConfigurationError: the content does not match the schema. The message names the file, the keys and the allowed values.
    """
    if found := problems(content, schema, experiments):
        raise combined([misplaced(where, place, message) for place, message in found])


def misplaced(where: Path, place: Sequence[str], message: str) -> ConfigurationError:
    """The error for one of the `problems` of a file."""
    return ConfigurationError(f"{where}, at {'/'.join(place) or 'the top level'}: {message}")


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` updated with ``over``: mappings are merged recursively, other values are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
