"""The command line of the page: ``python -m ether.paper.deviations [--write FILE]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ether.paper.deviations.page import page
from ether.results import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page to a file or to standard output; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.paper.deviations", description="Generates docs/deviations.md.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to this file instead of printing it")
    options = parser.parse_args(arguments)
    if options.write:
        write_text(page(), options.write)
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
