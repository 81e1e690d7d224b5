"""``python -m ether.foundation NAME --out FOLDER``: pretrain a foundation model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ether.errors import EtherError
from ether.foundation import DEVICES, MODELS, pretrain


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.foundation", description="Pretrain a foundation model.")
    parser.add_argument("name", help=f"one of: {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: those of the shipped model)")
    parser.add_argument("--seed", type=int, help="seed of weights, corpus and batches (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 1; another number rounds differently)")
    parser.add_argument("--device", choices=DEVICES, help="default: cpu; the weights of a GPU differ by rounding")
    arguments = vars(parser.parse_args())
    name, out = arguments.pop("name"), arguments.pop("out")
    try:
        pretrain(name, out, **{key: value for key, value in arguments.items() if value is not None})
    except EtherError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
