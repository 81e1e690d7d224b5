"""Looks before anything is trained: ``python -m ether.check SCALE EXPERIMENT … [--overrides '{…}'] [--output FILE]``.

Methods' parameters, block counts against the model's dimensions, the mirror's files and columns, the GPU a scale asks
for, and room on the disk. The first thing that is wrong is one paragraph on standard error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ether import results
from ether.config import load, runs
from ether.errors import EtherError, HardwareError

ROOM = 2 * 1024**3  # bytes; the small scale's results take a few MB, checkpoints of larger models far more


def check(scale_name: str, experiments: Sequence[str], overrides: Mapping[str, Any] | None = None) -> int:
    """Checks every run of some experiments without starting one.

    Returns:
        The number of runs.

    Raises:
        EtherError: the first thing found wrong.
    """
    from ether.methods import adapt as methods
    from ether.experiments import experiment
    from ether.run import device_of

    scale = load(scale_name, overrides)
    free = shutil.disk_usage(Path.cwd()).free
    if free < ROOM:
        raise HardwareError(
            f"Only {free / 1024**3:.1f} GiB are free on the disk that holds {Path.cwd()}; {ROOM / 1024**3:.0f} GiB are "
            "needed to start. Free some and start again."
        )
    seen: set[str] = set()
    count = 0
    for name in experiments:
        for spec in runs(scale, name):
            count += 1
            device_of(spec)
            methods.check_arguments(spec.method_id, spec.adapt)
            key = results.digest([spec.method_id, spec.task])
            if key not in seen:  # seeds change nothing here
                seen.add(key)
                experiment(name).check(spec, scale.results)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.check", description=__doc__)
    parser.add_argument("scale")
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--overrides", default="{}", help="a JSON object")
    parser.add_argument("--output", type=Path, help="written when all is well")
    options = parser.parse_args(arguments)
    overrides = json.loads(options.overrides)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries: nothing a user could act on
    try:
        count = check(options.scale, options.experiments, overrides)
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    if options.output:
        report = {"scale": options.scale, "experiments": options.experiments, "overrides": overrides, "runs": count}
        results.write_text(json.dumps(report, indent=1) + "\n", options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
