"""The registries of experiments, exhibits and methods: one YAML entry or file each."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, EtherError, combined, one_of
from ether.yamlfiles import WORKFLOW, read_yaml, validate

# --- experiments and exhibits ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentEntry:
    """One entry of ``workflow/experiments.yaml``."""

    name: str
    module: str
    unit: str
    world: str | None = None
    data: tuple[str, ...] = ()
    samples: bool = False

    @property
    def notebook(self) -> str:
        """Path of the notebook's source."""
        return f"notebooks/{self.module}.ipynb"

    def data_files(self, root: Path) -> list[str]:
        """The files given by `data`, including those in folders, relative to the project's root."""
        found: list[Path] = []
        for name in self.data:
            path = root / name
            found += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        return sorted(str(file.relative_to(root)) for file in found)


@dataclass(frozen=True)
class ExhibitEntry:
    """One entry of ``workflow/exhibits.yaml``."""

    id: str
    module: str
    title: str = ""  # empty for a table of the paper, whose title is in published.yaml
    columns_of: str = ""  # for a table that is not in the paper: the paper's table with the same columns
    rows: str = ""  # `paper`: only the rows of the paper's table
    experiments: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    evidence: str = ""  # the module with the evidence for its claims, if it is not `module`

    @property
    def evidence_module(self) -> str:
        """The module of `ether.exhibits` whose function `evidence` returns the values that its claims are judged by."""
        return self.evidence or self.module

    @property
    def kind(self) -> str:
        """table | figure."""
        return "figure" if self.id.startswith("figure") else "table"

    @property
    def notebook(self) -> str:
        """Path of the notebook's source."""
        return f"notebooks/{self.id}.ipynb"

    def files(self, results: Path) -> list[Path]:
        """The output files under ``results/<scale>``, including the claims."""
        extensions = ("png", "pdf", "parquet") if self.kind == "figure" else ("parquet", "csv", "md")
        return [results / f"{self.kind}s" / f"{self.id}.{extension}" for extension in (*extensions, "claims.parquet")]


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
    """All experiments of ``workflow/experiments.yaml`` by name.

    Raises:
        ConfigurationError: the file does not match its schema.
    """
    return _entries("experiments", ExperimentEntry)


@functools.cache
def exhibits() -> dict[str, ExhibitEntry]:
    """All tables and figures of ``workflow/exhibits.yaml`` by id.

    Raises:
        ConfigurationError: the file does not match its schema, or names an unknown experiment.
    """
    found = _entries("exhibits", ExhibitEntry)
    for exhibit in found.values():
        for name in (*exhibit.experiments, *exhibit.optional):
            if name not in experiments():
                raise one_of("experiment", name, experiments(), f"workflow/exhibits.yaml, {exhibit.id}")
    return found


def modules() -> dict[str, str]:
    """{experiment: its module}."""
    return {name: entry.module for name, entry in experiments().items()}


# --- methods ---------------------------------------------------------------------------------------------------


@functools.cache
def _methods() -> str:
    found: dict[str, Any] = {}
    labels: dict[str, Path] = {}
    errors: list[EtherError] = []
    for path in sorted((WORKFLOW / "methods").glob("*.yml")):
        errors.append(ConfigurationError(f"{path} would not be read: rename it to {path.stem}.yaml."))
    for path in sorted((WORKFLOW / "methods").glob("*.yaml")):
        try:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", path.stem):
                raise ConfigurationError(
                    f"{path}: the file's name identifies the method; use letters, digits, '.', '_', '+', '-'."
                )
            content = read_yaml(path)
            validate(content, "method", path, modules())
        except EtherError as error:
            errors.append(error)
            continue
        tables = [id_ for id_, exhibit in exhibits().items() if exhibit.kind == "table"]
        errors += [one_of("table", name, tables, f"{path}, tables") for name in content.get("tables", ()) if name not in tables]
        if content["label"] in labels:
            errors.append(
                ConfigurationError(
                    f"{path} and {labels[content['label']]} have the same label {content['label']!r}: labels name the rows "
                    "of the tables, so they must be unique. Change one of them."
                )
            )
        labels[content["label"]] = path
        found[path.stem] = content
    if errors:
        raise combined(errors)
    return json.dumps(found)


def methods() -> dict[str, dict[str, Any]]:
    """All methods under ``workflow/methods`` by stem, in the order of their ``order`` key.

    Raises:
        ConfigurationError: files do not match the schema, name an unknown table, or have the same label. The message names all.
    """
    found = json.loads(_methods())
    return dict(sorted(found.items(), key=lambda item: (item[1].get("order", 1000), item[0])))


def method(stem: str) -> dict[str, Any]:
    """One method by the stem of its file.

    Raises:
        ConfigurationError: no such file.
    """
    every = methods()
    if stem not in every:
        raise one_of("method", stem, every, "workflow/methods")
    return every[stem]


def label(stem: str) -> str:
    """A method's label, as printed in tables.

    Raises:
        ConfigurationError: no such file.
    """
    return str(method(stem)["label"])
