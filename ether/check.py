"""Checks before training: ``python -m ether.check SCALE EXPERIMENT … [--overrides '{…}'] [--output FILE]``.

Checks the arguments of the methods, block counts against the model's dimensions, files and columns of the mirror, the GPU that
a scale requires, and free disk space. All errors are reported together on standard error, one paragraph each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ether import results
from ether.config import RunSpec, experiments, load, methods, runs
from ether.errors import ConfigurationError, EtherError, HardwareError, combined, json_object

FREE_SPACE = 2 * 1024**3  # bytes; the small scale's results take a few MB, checkpoints of larger models far more
# A method that reads the values of the weights (SHiRA) cannot be built on the meta device. Models up to this many parameters
# are then initialised on the CPU for the check; larger models are checked only when the run loads them.
SMALL_MODEL = 200_000_000


def device_of(spec: RunSpec) -> str:
    """The device of a run, cpu or cuda: the device of the scale, where ``auto`` selects a GPU if one is available.

    Raises:
        HardwareError: the scale requires CUDA and no GPU is available.
    """
    import torch

    requested = spec.resources["device"]
    if requested == "cuda" and not torch.cuda.is_available():
        raise HardwareError(
            f"The scale {spec.scale!r} needs a CUDA GPU, and torch finds no GPU on this machine. Run it on a machine with a GPU, "
            "choose another scale (--config scale=small needs no GPU), or set --config device=cpu."
        )
    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


# --- one run ---------------------------------------------------------------------------------------------------

_checked: dict[str, EtherError | None] = {}


def check_run(spec: RunSpec, scale_results: Path) -> None:
    """Checks one run: device, method's arguments, model, data and settings, and the method on the model's architecture.

    Raises:
        EtherError: the first error found.
    """
    from ether.experiments.common import experiment
    from ether.measures.parameters import terms_of
    from ether.methods.adapt import check_arguments

    benchmark = experiment(experiments()[spec.experiment].module)
    _check_processes(spec, getattr(benchmark, "divisible", False))
    check_arguments(spec.method, spec.adapt)
    if convention := methods().get(spec.method, {}).get("parameters", {}).get("convention"):  # counted after training
        terms_of(convention, f"workflow/methods/{spec.method}.yaml, parameters.convention")
    benchmark.check(spec, scale_results)
    skeleton = benchmark.skeleton(spec, scale_results)
    # A learning rate or a seed changes no shape; any other hyperparameter may be the value of a $name in the method's config.
    values = {key: value for key, value in spec.hyperparameters.items() if key != "learning_rate"}
    key = results.digest([skeleton.key, spec.adapt, spec.settings["layers"], spec.settings["head"], values], 32)
    if key not in _checked:
        try:
            _check_adaptable(spec, skeleton, values)
            _checked[key] = None
        except EtherError as error:
            _checked[key] = error
    if (failure := _checked[key]) is not None:
        raise failure


def _check_processes(spec: RunSpec, divisible: bool) -> None:
    """Checks the device, and that so many processes can share the run.

    Raises:
        ConfigurationError: the experiment's batches cannot be divided, or not by this number.
        HardwareError: there is no GPU where one is required, or there are fewer GPUs than processes.
    """
    import torch

    device, number, size = device_of(spec), spec.processes, spec.hyperparameters["batch_size"]
    if number == 1:
        return
    if not divisible:
        raise ConfigurationError(
            f"{spec.experiment} cannot be run by several processes (processes={number}): a step draws its images as a whole. Run "
            "several jobs at a time instead, each on its GPU (--resources gpu=4)."
        )
    if size % number:
        raise ConfigurationError(
            f"{spec.label} of {spec.experiment} has batches of {size}, which {number} processes cannot share equally: set "
            "--config processes to a divisor."
        )
    if device == "cuda" and torch.cuda.device_count() < number:
        raise HardwareError(
            f"processes={number} needs as many GPUs; torch finds {torch.cuda.device_count()}. Reduce --config processes."
        )


def _check_adaptable(spec: RunSpec, skeleton: Any, values: Mapping[str, Any]) -> None:
    """Applies the method to the model's architecture on the meta device: shapes are checked, no weights are loaded.

    Raises:
        ConfigurationError: the method cannot be applied to the model, or no parameter is trainable.
    """
    import torch

    from ether.methods import adapt
    from ether.silence import quiet

    where = f"workflow/methods/{spec.method}.yaml on {spec.experiment} of scale {spec.scale!r}"

    def trainable_parameters(device: str) -> int:
        with torch.device(device), quiet("diffusers"), torch.random.fork_rng(devices=[]):
            adapted = adapt.adapt(
                skeleton.build(),
                spec.adapt,
                layers=spec.settings["layers"],
                head=spec.settings["head"],
                task_type=skeleton.task_type,
                values={"learning_rate": spec.hyperparameters.get("learning_rate"), **values, **adapt.step_values(100)},
            )
        return adapt.trainable(adapted)

    try:
        count = trainable_parameters("meta")
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise ConfigurationError(f"{where}: the method cannot be applied to the model: {error}") from error
        with torch.device("meta"), quiet("diffusers"):
            size = adapt.total(skeleton.build())
        if size > SMALL_MODEL:
            warnings.warn(f"{where}: the method reads weights, so it is checked only when the model is loaded.", stacklevel=2)
            return
        try:
            count = trainable_parameters("cpu")
        except (RuntimeError, NotImplementedError) as again:
            raise ConfigurationError(f"{where}: the method cannot be applied to the model: {again}") from again
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    if count == 0 and spec.adapt["kind"] not in ("none", "frozen"):
        raise ConfigurationError(f"{where}: the method has no trainable parameters. Check `adapt` in the method's file.")


def check_runs(specs: Iterable[RunSpec], scale_results: Path) -> int:
    """Checks runs, one per method, task and adaptation; seeds and learning rates do not affect the checks.

    Returns:
        The number of runs.

    Raises:
        EtherError: all errors found, one paragraph each.
    """
    errors: list[EtherError] = []
    seen: set[str] = set()
    count = 0
    for spec in specs:
        count += 1
        key = results.digest([spec.experiment, spec.method, spec.task, spec.adapt])
        if key in seen:
            continue
        seen.add(key)
        try:
            check_run(spec, scale_results)
        except EtherError as error:
            errors.append(error)
    if errors:
        raise combined(errors)
    return count


# --- the command line ------------------------------------------------------------------------------------------


def check(scale_name: str, experiment_names: Sequence[str], overrides: Mapping[str, Any] | None = None) -> int:
    """Checks every run of the given experiments without starting any.

    Returns:
        The number of runs.

    Raises:
        EtherError: all errors found, one paragraph each.
    """
    scale = load(scale_name, overrides)
    free = shutil.disk_usage(Path.cwd()).free
    if free < FREE_SPACE:
        raise HardwareError(
            f"Only {free / 1024**3:.1f} GiB are free on the disk that holds {Path.cwd()}; {FREE_SPACE / 1024**3:.0f} GiB are "
            "needed to start. Free some space and start again."
        )
    return check_runs((spec for name in experiment_names for spec in runs(scale, name)), scale.results)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.check", description=__doc__)
    parser.add_argument("scale")
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--overrides", default="{}", help="a JSON object")
    parser.add_argument("--output", type=Path, help="report file, written if no error is found")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # raised between libraries; a user cannot act on them
    try:
        overrides = json_object(options.overrides, "--overrides")
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
