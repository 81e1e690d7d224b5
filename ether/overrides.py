"""The settings of ``--config``: their names, and their values as text or as Python's callers give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ether.errors import ConfigurationError, MissingResourceError

# Settings of `--config` in addition to `scale`. Each of them except `complete` and `replay` replaces the setting of that name.
OVERRIDES = ("mirror", "foundation", "methods", "tasks", "seeds", "complete", "device", "processes", "replay")


def as_list(value: object) -> list[str]:
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
