"""The interface of experiments: a module of `ether.experiments` has an object ``EXPERIMENT`` with the functions of `Experiment`.

`ether.run` calls ``load``, adapts the model, and calls ``fit``; `ether.check` calls ``check`` and ``skeleton`` before
training. An experiment does not depend on the method that adapts its model.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError, one_of
from ether.results import digest, file_digest
from ether.training import Rows

__all__ = ["SAMPLES", "Experiment", "Fitted", "Loaded", "Rows", "Skeleton", "experiment", "splits_fingerprint"]

Data = TypeVar("Data")
# The part of a run's folder for generated images; `ether.run` copies it to results/<scale>/samples when the job is done.
SAMPLES = "samples"


@dataclass
class Loaded(Generic[Data]):
    """The pretrained model and the data of a task, with the fingerprints of both."""

    model: nn.Module
    task_type: str | None  # PEFT's
    total_steps: int  # optimiser steps of the run
    base_model: str
    base_model_fingerprint: str
    data_name: str
    data_fingerprint: str
    dtype: str
    data: Data  # further inputs of the experiment's `fit`


@dataclass
class Fitted:
    """The result of `Experiment.fit`: measured values by step, and the status."""

    measurements: Rows
    steps: int
    train_seconds: float
    status: str = "finished"  # finished | diverged
    reason: str = ""  # reason of a divergence


@dataclass(frozen=True)
class Skeleton:
    """The architecture of a run's model without weights, used to check whether a method can be applied to it."""

    key: str  # identifies the architecture: runs with equal keys have the same modules with the same shapes
    build: Callable[[], nn.Module]  # called under ``torch.device("meta")``
    task_type: str | None  # PEFT's


class Experiment(Protocol[Data]):
    """The interface of an experiment module's ``EXPERIMENT``.

    Where several processes can share a run, it also has the attribute ``divisible = True``: the Trainer then divides the
    examples of a batch among them, and each of them evaluates.
    """

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks the run's model, data and settings without loading model or data.

        Args:
            spec: the run.
            results: ``results/<scale>``, the folder of generated data and rebuilt models.

        Raises:
            EtherError: a resource is missing or a setting is wrong.
        """

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The architecture of the model that `load` returns.

        Raises:
            EtherError: the model cannot be found. Its configuration is read only when ``build`` is called.
        """

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[Data]:
        """The pretrained model and the data of one run, on a device (cpu | cuda).

        Raises:
            EtherError: a resource is missing or a setting is wrong.
        """

    def fit(self, loaded: Loaded[Data], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains and evaluates an adapted model; resumes an interrupted run from the files in `folder`.

        Args:
            loaded: from `load`.
            model: the adapted model.
            spec: the run.
            folder: the run's working folder, ``…/<job>/<run id>``.
            device: cpu | cuda.
        """


def splits_fingerprint(data: hub.Source, config: str, splits: Sequence[str]) -> str:
    """Identifies the contents of a data set's splits: a hash of their files, or the hub revision.

    Raises:
        MissingResourceError: a folder lacks the file of a split.
    """
    if data.folder is None:
        return hub.fingerprint(data)
    return digest([file_digest(hub.split_file(data, config, split)) for split in splits], 32)


def experiment(module: str) -> Experiment[Any]:
    """The object ``EXPERIMENT`` of a module of `ether.experiments`.

    Raises:
        ConfigurationError: no such module, or it has no ``EXPERIMENT``.
    """
    package = importlib.import_module("ether.experiments")
    known = [found.name for found in pkgutil.iter_modules(package.__path__) if found.name != "common"]
    if module not in known:
        raise one_of("module", module, known, "workflow/experiments.yaml (the files of ether/experiments)")
    loaded = importlib.import_module(f"ether.experiments.{module}")
    if not hasattr(loaded, "EXPERIMENT"):
        raise ConfigurationError(
            f"ether/experiments/{module}.py has no object EXPERIMENT with the experiment's functions: add it."
        )
    return loaded.EXPERIMENT
