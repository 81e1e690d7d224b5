"""``python -m ether.worlds FOLDER --settings '{"seed": 0, "sizes": {…}}'``: generates a world's data sets as a hub mirror."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import datasets

from ether.errors import EtherError
from ether.worlds import language


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.worlds", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", default="{}", help="JSON: seed, sizes")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    try:
        language.write(options.folder, **json.loads(options.settings))
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
