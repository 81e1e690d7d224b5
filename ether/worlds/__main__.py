"""``python -m ether.worlds NAME FOLDER --settings '{"seed": 0}'``: write the data sets of a world as a hub mirror.

``python -m ether.worlds pictures FOLDER --rebuild PACKAGES`` writes the drawings of the world of pictures, as they are shipped in
``ether/worlds/drawings``, from the npm packages in the folder PACKAGES.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ether import worlds
from ether.errors import ConfigurationError, EtherError


def _settings(text: str) -> dict[str, object]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--settings is not valid JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"--settings must be a JSON object, such as '{{\"seed\": 0}}', not {text!r}.")
    return settings


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.worlds", description="Write the data sets of a world as a hub mirror.")
    parser.add_argument("name", help=f"one of: {', '.join(worlds.WORLDS)}")
    parser.add_argument("folder", type=Path, help="root of the mirror; files are written below its folder `datasets`")
    parser.add_argument("--settings", default="{}", help="JSON object: the keyword arguments of the world's function `write`")
    parser.add_argument(
        "--rebuild",
        type=Path,
        metavar="PACKAGES",
        help="pictures only: write the shipped drawings to FOLDER, from the two npm packages in this folder",
    )
    options = parser.parse_args()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when `datasets` is imported
    try:
        if options.rebuild is not None:
            if options.name != "pictures":
                raise ConfigurationError(f"--rebuild is for the drawings of the world 'pictures', not for {options.name!r}.")
            from ether.worlds.drawings.rebuild import rebuild

            rebuild(options.folder, options.rebuild)
            return
        worlds.write(options.name, options.folder, _settings(options.settings))
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
