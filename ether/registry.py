"""The registries of the workflow: its experiments, exhibits and methods, one YAML entry or file each."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, EtherError, combined, one_of
from ether.yamlfiles import WORKFLOW, read_yaml, validate

# --- experiments and exhibits ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentEntry:
    """One line of ``workflow/experiments.yaml``."""

    name: str
    module: str
    unit: str
    world: str | None = None
    data: tuple[str, ...] = ()
    samples: bool = False

    @property
    def notebook(self) -> str:
        """Its notebook's source."""
        return f"notebooks/{self.module}.ipynb"


@dataclass(frozen=True)
class ExhibitEntry:
    """One line of ``workflow/exhibits.yaml``."""

    id: str
    module: str
    title: str = ""  # empty: a table of the paper, whose title published.yaml has
    columns_of: str = ""  # for a table that the paper does not have: the paper's table whose columns it has
    experiments: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """table | figure."""
        return "figure" if self.id.startswith("figure") else "table"

    @property
    def notebook(self) -> str:
        """Its notebook's source."""
        return f"notebooks/{self.id}.ipynb"

    def files(self, results: Path) -> list[Path]:
        """The files that making it leaves under ``results/<scale>``, its claims included."""
        endings = ("png", "pdf", "parquet") if self.kind == "figure" else ("parquet", "csv", "md")
        return [results / f"{self.kind}s" / f"{self.id}.{ending}" for ending in (*endings, "claims.parquet")]


def _entries(name: str, kind: type[Any]) -> dict[str, Any]:
    file = WORKFLOW / f"{name}.yaml"
    content = read_yaml(file)
    validate(content, name, file)
    first = dataclasses.fields(kind)[0].name
    return {
        key: kind(**{first: key}, **{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        for key, entry in content.items()
    }


@functools.cache
def experiments() -> dict[str, ExperimentEntry]:
    """Every experiment by name, as ``workflow/experiments.yaml`` lists them.

    Raises:
        ConfigurationError: the file does not fit its schema.
    """
    return _entries("experiments", ExperimentEntry)


@functools.cache
def exhibits() -> dict[str, ExhibitEntry]:
    """Every table and figure by id, as ``workflow/exhibits.yaml`` lists them.

    Raises:
        ConfigurationError: the file does not fit its schema, or names an unknown experiment.
    """
    found = _entries("exhibits", ExhibitEntry)
    for exhibit in found.values():
        for name in (*exhibit.experiments, *exhibit.optional):
            if name not in experiments():
                raise one_of("experiment", name, experiments(), f"workflow/exhibits.yaml, {exhibit.id}")
    return found


def modules() -> dict[str, str]:
    """{experiment: the module that carries it out}."""
    return {name: entry.module for name, entry in experiments().items()}


# --- methods ---------------------------------------------------------------------------------------------------


@functools.cache
def _methods() -> str:
    found: dict[str, Any] = {}
    labels: dict[str, Path] = {}
    errors: list[EtherError] = []
    for path in sorted((WORKFLOW / "methods").glob("*.yaml")):
        try:
            content = read_yaml(path)
            validate(content, "method", path, modules())
        except EtherError as error:
            errors.append(error)
            continue
        if content["label"] in labels:
            errors.append(
                ConfigurationError(
                    f"{path} and {labels[content['label']]} have the same label {content['label']!r}: labels name the rows "
                    "of the tables, so give one of them another."
                )
            )
        labels[content["label"]] = path
        found[path.stem] = content
    if errors:
        raise combined(errors)
    return json.dumps(found)


def methods() -> dict[str, dict[str, Any]]:
    """Every method under ``workflow/methods``, by file name, in the order of their ``order`` key.

    Raises:
        ConfigurationError: files do not fit the schema, or two share a label; all of them are named.
    """
    found = json.loads(_methods())
    return dict(sorted(found.items(), key=lambda item: (item[1].get("order", 1000), item[0])))


def method(stem: str) -> dict[str, Any]:
    """One method by the name of its file.

    Raises:
        ConfigurationError: no such file.
    """
    every = methods()
    if stem not in every:
        raise one_of("method", stem, every, "workflow/methods")
    return every[stem]


def label(stem: str) -> str:
    """A method's label, as tables print it.

    Raises:
        ConfigurationError: no such file.
    """
    return str(method(stem)["label"])
