"""``python -m ether.exhibits EXPERIMENT [--scale NAME]``: learning rates chosen on a grid, and those in the methods' files.

For an experiment over a grid of learning rates, such as ``subject_rates``. Prints one line per method, with a warning if its best
rate is at the grid's edge or was chosen on one seed, and exits with status 1 if the best rate is not the one in its file.
"""

from __future__ import annotations

import argparse
import importlib
import math
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
        named = f"in the file {row.configured_rate:g}"
        if math.isnan(row.configured_rate):
            named = "the rate in the file is not in this grid (--config complete=true runs the complete one)"
        warnings = [", at the grid's edge"] * bool(row.at_edge) + [", on one seed"] * (row.seeds == 1)
        differs = "" if row.best_rate == row.configured_rate else "  <- differs"
        print(f"{row.method}: best {row.best_rate:g} (score {row.best_score:.4g}){''.join(warnings)}; {named}{differs}")
    return int((found["best_rate"] != found["configured_rate"]).any())


if __name__ == "__main__":
    sys.exit(main())
