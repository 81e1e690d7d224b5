"""The settings of ``--config``: their names, and their values as text or as Python's callers give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, EtherError, MissingResourceError, collecting, one_of

# Settings of `--config` in addition to `scale`. Each of them except `complete` and `replay` replaces the setting of that name.
OVERRIDES = ("mirror", "foundation", "methods", "tasks", "seeds", "complete", "device", "processes", "replay")


LISTS = ("methods", "tasks", "seeds")


def read(overrides: Mapping[str, Any], errors: list[EtherError]) -> dict[str, Any]:
    """The values of settings: lists of `LISTS`, with whole numbers as seeds; a number of processes; `complete` as true or false.

    Args:
        overrides: as given. A setting other than a list that has no value is left out.
        errors: an unknown name, and a value that cannot be meant, are appended.
    """
    values: dict[str, Any] = {}
    for key, value in overrides.items():
        with collecting(errors):
            if key not in OVERRIDES:
                raise one_of("setting", key, ("scale", *OVERRIDES), "--config")
            if key in LISTS or value not in (None, ""):
                values[key] = _value(key, value)
    return values


def _value(key: str, value: object) -> Any:
    if key in LISTS:
        names = as_list(value)
        if key == "seeds" and not (names and all(re.fullmatch(r"[0-9]{1,10}", seed) for seed in names)):
            raise ConfigurationError(f"--config seeds={text(value)}: give whole numbers, as seeds=0,1,2.")
        if not names:
            raise ConfigurationError(f"--config {key}={text(value)}: give at least one name, or leave {key} out for all.")
        return [int(seed) for seed in names] if key == "seeds" else names
    if key == "processes":
        if not re.fullmatch(r"[1-9][0-9]{0,3}", str(value)):
            raise ConfigurationError(f"--config processes={value}: give a whole number, as processes=4.")
        return int(str(value))
    if key == "complete":
        return flag(key, value)
    return str(value)


def text(value: object) -> str:
    """A value as on the command line."""
    return "" if value is None else str(value)


def as_list(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable):
        return [str(part) for part in value]
    return [str(value)]


def flag(key: str, value: object) -> bool:
    """True or false, as Snakemake or Python's callers give it."""
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ConfigurationError(f"--config {key}={value}: give true or false.")
    return text == "true"


def check_folder(key: str, folder: str, inside: str) -> None:
    """Checks a folder given by --config: `mirror`, or `replay`, which has a folder of the name `inside`.

    Raises:
        ConfigurationError: not a possible path, or one with a brace, which Snakemake interprets as a wildcard.
        MissingResourceError: the folder does not exist, or the replay folder has no metrics.
    """
    if re.search(r"[{}]", folder):
        raise ConfigurationError(
            f"--config {key}={folder}: a path with braces cannot be used, because Snakemake interprets the text between "
            "them as a wildcard. Rename the folder, or create a link to it without braces."
        )
    try:
        found = "\0" not in folder and (Path(folder).expanduser() / inside).is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~user of an unknown user, not encodable
        raise ConfigurationError(f"--config {key}={folder[:200]!r} is not a path: {error}.") from error
    if key == "mirror" and not found:
        raise MissingResourceError(
            f"The mirror folder {folder} does not exist. Set --config mirror=FOLDER to a folder with the layout "
            "datasets/<hub id>/<config>/<split>.parquet and models/<hub id>/, or omit it to use the hub."
        )
    if not found:
        raise MissingResourceError(
            f"There is nothing to replay in {folder}: it has no folder `metrics`. Set --config replay=FOLDER to a folder with "
            "the layout of results/published/small: metrics/<experiment>.parquet, metrics/<experiment>.runs.parquet and samples/."
        )
