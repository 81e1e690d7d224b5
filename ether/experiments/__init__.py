"""The experiments: one file a benchmark. They know data, models and metrics, and no method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ether.config import EXPERIMENTS, RunSpec
from ether.errors import one_of


@dataclass
class Loaded:
    """A task ready to be adapted: the pretrained model, the data, and what identifies both."""

    model: nn.Module
    task_type: str | None
    total_steps: int
    base_model: str
    base_model_fingerprint: str
    data_name: str
    data_fingerprint: str
    dtype: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Fitted:
    """What training leaves: measured values over time, and how it ended."""

    measurements: list[tuple[int, str, str, float]]  # (step, split, metric, value)
    steps: int
    train_seconds: float
    status: str = "finished"
    reason: str = ""


class Experiment(Protocol):
    """What ``ether.run`` asks of a benchmark."""

    def check(self, spec: RunSpec, results: Path) -> None:
        """Raises an ``EtherError`` for anything missing, before training starts."""

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded:
        """The pretrained model and the data of one run."""

    def fit(self, loaded: Loaded, model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains and evaluates an adapted model; resumes from what an interrupted run left in ``folder``."""


def experiment(name: str) -> Experiment:
    """The experiment of that name: the object ``EXPERIMENT`` of its module in ``ether.experiments``."""
    if name not in EXPERIMENTS:
        raise one_of("experiment", name, EXPERIMENTS)
    return importlib.import_module(f"ether.experiments.{EXPERIMENTS[name]}").EXPERIMENT


Metric = Callable[[Any, Any], Mapping[str, float]]
