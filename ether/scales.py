"""The files of scales: overlays on other scales, sections that inherit from others (`like`), and what is wrong in them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ether import yamlfiles
from ether.errors import ConfigurationError, EtherError, collecting, combined, one_of
from ether.registry import experiments, methods, modules
from ether.yamlfiles import misplaced, overlay, problems, read_yaml


def scale_names() -> list[str]:
    """Names of the scales: the files under ``workflow/scales``."""
    return sorted(path.stem for path in (yamlfiles.WORKFLOW / "scales").glob("*.yaml"))


def read_scale(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A scale with the settings of the scales below it, not validated."""
    if name not in scale_names():
        raise one_of("scale", name, scale_names(), "--config scale=…")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):  # it is part of commands and paths
        raise ConfigurationError(
            f"workflow/scales/{name}.yaml: the file's name identifies the scale; use letters, digits, '.', '_', '+', '-'."
        )
    if name in seen:
        raise ConfigurationError(f"The scales {' -> '.join((*seen, name))} are circular overlays: change `over` in one of them.")
    content = read_yaml(yamlfiles.WORKFLOW / "scales" / f"{name}.yaml")
    base = content.pop("over", None)
    if not base:
        return content
    below = read_scale(base, (*seen, name))
    for section in below.values():  # what a scale publishes is not what a scale over it does
        if isinstance(section, dict):
            section.pop("complete", None)
    return overlay(below, content)


def file_of(name: str) -> Path:
    """The file of a scale."""
    return yamlfiles.WORKFLOW / "scales" / f"{name}.yaml"


def resolved(name: str) -> dict[str, Any]:
    """A scale with the settings of the scales and sections below it, validated.

    Raises:
        EtherError: everything that is wrong in the files of scales and methods.
    """
    settings = read_scale(name)
    # null: the scale leaves out an experiment of the scale that it is an overlay on
    left_out = {experiment for experiment in experiments() if experiment in settings and settings[experiment] is None}
    for experiment in left_out:
        del settings[experiment]
    sections = {experiment: settings[experiment] for experiment in experiments() if experiment in settings}
    errors: list[EtherError] = []
    for experiment, section in sections.items():
        if not isinstance(section, Mapping):
            errors.append(ConfigurationError(f"{file_of(name)}, at {experiment}: {section!r} is not a mapping."))
        elif (like := section.get("like")) and isinstance(like, str) and like in left_out:
            errors.append(
                ConfigurationError(
                    f"{file_of(name)} leaves out {like!r}, and {experiment!r} has its settings (like: {like}): leave out "
                    f"{experiment!r}, too ({experiment}: null)."
                )
            )
        elif like and (not isinstance(like, str) or not isinstance(sections.get(like), Mapping)):
            errors.append(one_of("experiment", like, sections, f"{experiment}.like of scale {name!r}"))
        elif like:
            inherited = {key: value for key, value in settings[like].items() if key != "complete"}
            settings[experiment] = overlay(inherited, section)
    with collecting(errors):
        methods()
    errors = errors or wrong(settings, file_of(name))
    errors = errors or [*_unknown_sections(settings, name), *_unknown_in_methods()]
    if errors:
        raise combined(errors)
    return settings


def _unknown_sections(settings: Mapping[str, Any], name: str) -> list[EtherError]:
    """Sections of hyperparameters that a scale names and no method has."""
    known = {section for entry in methods().values() for of_module in entry["training"].values() for section in of_module or ()}
    where = f"{file_of(name)}, hyperparameters"
    return [
        one_of("section of the methods' files", section, known - {"default"}, where)
        for section in settings["hyperparameters"]
        if section not in known
    ]


@functools.cache
def known_names() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """Names that a method's file may use: sections of hyperparameters, and tasks by module, of all scales.

    A scale that cannot be read has none; its errors are reported when it is used.
    """
    sections: set[str] = {"default"}
    tasks: dict[str, set[str]] = {}
    for name in scale_names():
        with collecting([]):
            settings = read_scale(name)
            sections |= _texts(settings.get("hyperparameters"))
            for experiment, module in modules().items():
                section = settings.get(experiment)
                if isinstance(section, Mapping):
                    tasks.setdefault(module, set()).update(_texts(section.get("known_tasks")))
    return frozenset(sections), {module: frozenset(names) for module, names in tasks.items()}


def _texts(value: object) -> set[str]:
    return {text for text in value if isinstance(text, str)} if isinstance(value, list) else set()


def _unknown_in_methods() -> list[EtherError]:
    """Sections and tasks in the methods' files that no scale has: they would be ignored."""
    known_sections, known_tasks = known_names()
    errors: list[EtherError] = []
    for stem, entry in methods().items():
        for module, sections in entry["training"].items():
            where = f"{yamlfiles.WORKFLOW / 'methods' / stem}.yaml, training.{module}"
            tasks = known_tasks.get(module, frozenset())
            for name, section in (sections or {}).items():
                if name not in known_sections:
                    errors.append(one_of("section", name, known_sections, f"{where} (`hyperparameters` of the scales)"))
                errors += [
                    one_of("task", task, tasks, f"{where}.{name}.tasks") for task in section.get("tasks", {}) if task not in tasks
                ]
    return errors


def wrong(settings: Mapping[str, Any], file: Path, given: Mapping[str, Any] | None = None) -> list[EtherError]:
    """What does not match the schema of scales; what a section inherits (`like`) is reported at the other one only.

    Args:
        settings: of the scale.
        file: its file, which is named.
        given: settings of the command line, which are named instead where a value is theirs.
    """
    found = problems(settings, "scale", modules())

    def inherited(place: tuple[str, ...], message: str) -> bool:
        section = settings.get(place[0]) if place else None
        like = section.get("like") if isinstance(section, Mapping) else None
        return ((like, *place[1:]), message) in found

    def error(place: tuple[str, ...], message: str) -> EtherError:
        for key in place[:2]:  # a setting of the scale, or of an experiment's section
            if given and key in given:
                return ConfigurationError(f"--config {key}={given[key]}: {message}")
        return misplaced(file, place, message)

    return [error(place, message) for place, message in found if not inherited(place, message)]
