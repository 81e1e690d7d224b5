"""``python -m ether.exhibits EXPERIMENT [--scale NAME]``: learning rates chosen on a grid, and those in the methods' files.

For an experiment over a grid of learning rates, such as ``subject_rates``. Prints one line per method and exits with status 1 if
the best rate of a method is not the one in its file.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import pandas as pd

from ether import config
from ether.analysis import rates
from ether.errors import ConfigurationError, EtherError


def choice(experiment: str, scale_name: str) -> pd.DataFrame:
    """The result of `ether.analysis.rates.choose` for an experiment's grid, run here or committed.

    Raises:
        ConfigurationError: unknown experiment or scale, or an experiment without a grid of learning rates.
        MissingResourceError: the grid has not been run.
    """
    scale = config.load(scale_name)
    if "learning_rates" not in scale.experiment(experiment):
        raise ConfigurationError(f"The experiment {experiment!r} has no grid of learning rates at scale {scale_name!r}.")
    return rates.choose(importlib.import_module(f"ether.exhibits.{config.modules()[experiment]}").rate_grid(scale))


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.exhibits", description="Chosen and configured learning rates.")
    parser.add_argument("experiment", help="an experiment over a grid of learning rates, such as subject_rates")
    parser.add_argument("--scale", default="small", help="a file of workflow/scales")
    options = parser.parse_args(arguments)
    try:
        found = choice(options.experiment, options.scale)
    except EtherError as error:
        sys.exit(f"\n{error}\n")
    for row in found.itertuples():
        same = row.best_rate == row.configured_rate
        line = f"{row.method}: best {row.best_rate:g} (score {row.best_score:.4g}), in the file {row.configured_rate:g}"
        print(line + (", at the grid's edge" if row.at_edge else "") + ("" if same else "  <- differs"))
    return int((found["best_rate"] != found["configured_rate"]).any())


if __name__ == "__main__":
    sys.exit(main())
