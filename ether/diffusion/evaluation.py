"""Evaluation of a run's model: images of fixed prompts from fixed noise, their metrics, and the model's geometry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import transformers
from torch import nn
from torch.nn import functional

from ether.diffusion.dataset import HALVES, Prompt
from ether.diffusion.judges import Reader
from ether.diffusion.sampler import Sampler, frozen_pictures
from ether.errors import one_of
from ether.measures import geometry, images
from ether.results import write_text
from ether.training import Rows


class Drift:
    """How far a model's images of unrelated prompts have moved from those of the frozen model.

    Args:
        sampler: with the pipeline before adaptation.
        prompts: texts without the subject and its class.
        each: number of images per prompt.
        judge: the model that compares images.
        fingerprint: fingerprint of the pipeline.
        folder: cache of the frozen model's images.
    """

    def __init__(
        self, sampler: Sampler, prompts: Sequence[str], each: int, judge: images.VisionJudge, fingerprint: str, folder: Path
    ) -> None:
        self.sampler, self.judge = sampler, judge
        self.texts = [text for text in prompts for _ in range(each)]
        self.names = [f"drift/{text}/{image}" for text in prompts for image in range(each)]
        self.base = self._features(frozen_pictures(sampler, self.texts, self.names, fingerprint, folder))

    def _features(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.judge.features(pictures.float() / 255).double(), dim=-1)

    def measure(self) -> float:
        """One minus the cosine of the frozen and the current model's image, mean over prompts and images.

        Exactly 0 if the images are equal. Raises a FloatingPointError if the model's output is not finite.
        """
        moved = self._features(self.sampler.pictures(self.texts, self.names))
        return float((moved - self.base).square().sum(-1).mean() / 2)  # of unit vectors, and without rounding at 0


@dataclass
class Evaluation:
    """Generates and measures images. Prompts and noise are the same for every method and seed.

    Args:
        sampler: its pipeline contains the evaluated model.
        prompts: prompts of the subject.
        each: number of images per prompt.
        judges: models that score the images.
        real: features of the subject's photographs.
        selection: the metrics whose mean is the ``score``.
        reader: classifies the attributes of an image; None if the attributes are not known.
        drift: measures images of unrelated prompts; None if they are not measured.
        altered: numbers of the prompts whose images are not compared with the photographs (`ether.measures.images.measure`).
        reference: for methods that train weights in place, the pretrained weights (`ether.measures.geometry.weight_pairs`).
    """

    sampler: Sampler
    prompts: list[Prompt]
    each: int
    judges: images.Judges
    real: images.Real
    selection: list[str]
    reader: Reader | None = None
    drift: Drift | None = None
    altered: Sequence[int] = ()
    reference: dict[str, torch.Tensor] | None = None
    energies: dict[str, dict[str, float]] = field(default_factory=dict)  # of the pretrained weights, once computed

    def __post_init__(self) -> None:
        self.numbers = [prompt.number for prompt in self.prompts for _ in range(self.each)]
        self.embeddings = self.sampler.encode([prompt.text for prompt in self.prompts]).repeat_interleave(self.each, 0)
        self.noise = self.sampler.noise([f"{p.number}/{image}" for p in self.prompts for image in range(self.each)])

    def generate(self) -> torch.Tensor:
        """Images (prompts * each, 3, H, W), uint8, in the order of the prompts.

        Raises:
            FloatingPointError: the model's output is not finite.
        """
        return self.sampler.generate(self.embeddings, self.noise)

    def measure(self, pictures: torch.Tensor) -> dict[str, dict[str, float]]:
        """{split: {metric: value}} of images from `generate`, for the splits validation, selection and report.

        Raises:
            ConfigurationError: ``selection`` names a metric that is not measured.
        """
        texts = {prompt.number: prompt.plain for prompt in self.prompts}
        floats = pictures.float() / 255
        generated = images.Generated.of(floats, self.numbers, texts, self.real, self.judges)
        values = {}
        readings = self.reader(floats) if self.reader else []
        for split in ("validation", *HALVES):
            among = [prompt for prompt in self.prompts if split in ("validation", prompt.half)]
            found = images.measure(generated, self.real, [prompt.number for prompt in among], self.altered)
            found |= attribute_shares(readings, self.numbers, among)
            if missing := [name for name in self.selection if name not in found]:
                raise one_of("metric", missing[0], found, "subject.selection.metrics")
            found["score"] = sum(found[name] for name in self.selection) / len(self.selection)
            values[split] = found
        return values

    def geometry(self, model: nn.Module) -> dict[str, float]:
        """See `ether.measures.geometry.summary`; empty if a transformation of the model is singular."""
        try:
            return geometry.summary(model, self.reference, self.energies)
        except torch.linalg.LinAlgError:
            return {}


def attribute_shares(readings: Sequence[Mapping[str, str]], numbers: Sequence[int], among: Sequence[Prompt]) -> dict[str, float]:
    """Shares of images in which the reader predicts an attribute as their prompt describes it, for each attribute.

    Args:
        readings: predicted attributes of each image; empty without a reader.
        numbers: the prompt number of each image.
        among: prompts whose images are included.
    """
    if not readings:
        return {}
    correct: dict[str, list[bool]] = {}
    expected = {prompt.number: dict(prompt.attributes) for prompt in among}
    for number, reading in zip(numbers, readings, strict=True):
        for key, value in expected.get(number, {}).items():
            correct.setdefault(key, []).append(reading[key] == value)
    return {key: sum(values) / len(values) for key, values in sorted(correct.items())}


class Evaluating(Protocol):
    """What an `EvaluationCallback` evaluates with: an `Evaluation`, or one of another experiment."""

    drift: Drift | None

    def generate(self) -> torch.Tensor:
        """Images (N, 3, H, W), uint8; raises a FloatingPointError if the model's output is not finite."""

    def measure(self, pictures: torch.Tensor) -> Mapping[str, dict[str, float]]:
        """{split: {metric: value}} of images from `generate`."""

    def geometry(self, model: nn.Module) -> dict[str, float]:
        """See `ether.measures.geometry.summary`."""


class EvaluationCallback(transformers.TrainerCallback):
    """Evaluates at regular intervals and stores the values of each step in a file, so that a run can be resumed.

    The callback also makes the Trainer log the loss at every checkpoint, because a resumed Trainer does not have the losses
    accumulated before the checkpoint.

    Args:
        evaluation: the evaluation of the run.
        model: the adapted model.
        every: steps between evaluations; the last step is always evaluated.
        checkpoint: steps between checkpoints, or None.
        folder: the folder of the files.
    """

    def __init__(self, evaluation: Evaluating, model: nn.Module, every: int, checkpoint: int | None, folder: Path) -> None:
        self.evaluation, self.model, self.every, self.checkpoint = evaluation, model, every, checkpoint
        self.folder = folder
        self.pictures: torch.Tensor | None = None  # of the last evaluation
        self.failure = ""

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: object,
    ) -> None:
        """Evaluates and logs after the optimiser steps at which this is due."""
        if self.checkpoint and state.global_step % self.checkpoint == 0:
            control.should_log = True
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.evaluate(state.global_step)

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.json"

    def evaluate(self, step: int) -> None:
        """Generates images with the current model and measures them and the model.

        If the images are not finite, only the geometry is measured.
        """
        rows: Rows = [(step, "geometry", name, value) for name, value in self.evaluation.geometry(self.model).items()]
        self.pictures, self.failure = None, ""
        try:
            self.pictures = self.evaluation.generate()
            for split, values in self.evaluation.measure(self.pictures).items():
                rows += [(step, split, name, value) for name, value in values.items()]
            if self.evaluation.drift:
                rows.append((step, "validation", "drift", self.evaluation.drift.measure()))
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            self.failure = str(error)
        write_text(json.dumps(rows), self._file(step))

    def rows(self, last: int) -> Rows:
        """All values measured up to a step, including those of an interrupted process."""
        found: Rows = []
        for file in sorted(self.folder.glob("step-*.json")):
            if int(file.stem.rpartition("-")[2]) <= last:
                found += [tuple(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        return found

    def has(self, step: int) -> bool:
        """Whether this process evaluated the step, so that its images are in memory."""
        return self._file(step).is_file() and (self.pictures is not None or bool(self.failure))
