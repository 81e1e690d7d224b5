"""Evaluation of a model with a control signal: images from fixed hints, prompts and noise, and the scores of the task's judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ether.diffusion.control_judges import ControlJudges, judged
from ether.diffusion.evaluation import Drift
from ether.diffusion.sampler import Sampler
from ether.diffusion.signal import ControlledUNet, controlled_pictures
from ether.errors import ConfigurationError
from ether.measures import geometry
from ether.measures.frechet import FrechetJudge
from ether.measures.segmentation import SegmentationScores, edge_scores, landmark_distance
from ether.worlds.control import edge_map

__all__ = ["ControlEvaluation", "hint_scores"]


def hint_scores(
    images: torch.Tensor, targets: Sequence[torch.Tensor], task: str, judges: ControlJudges, names: Sequence[str]
) -> dict[str, float]:
    """How well images agree with the signals that they were to follow, in percent but for the distance.

    Args:
        images: (N, 3, H, W), uint8, or in [0, 1].
        targets: N targets of `ether.diffusion.control_data.ControlPairs`.
        task: semantic | edges | landmarks.
        judges: read the images.
        names: of the classes, for semantic maps.

    Returns:
        semantic    ``miou``, ``accuracy`` and ``iou <class>`` of every class that occurs
        edges       ``edge_iou`` and ``edge_f1``
        landmarks   ``distance`` in pixels of the image, ``distance_share`` (of the image's side) and ``found``

        and the ``score``, the higher the better: mean IoU, F1, or 100 minus the distance in percent of the side (a face that is
        not found counts as a whole side).
    """
    if task == "semantic":
        assert judges.segmenter is not None
        scores = SegmentationScores(len(names))
        scores.update(judged(judges.segmenter, images), torch.stack(list(targets)))
        whole = scores.compute()
        by_class = {f"iou {name}": 100 * iou for name, iou in zip(names, whole.class_iou, strict=True) if not math.isnan(iou)}
        return {"score": 100 * whole.miou, "miou": 100 * whole.miou, "accuracy": 100 * whole.accuracy, **by_class}
    if task == "edges":
        pixels = images if images.dtype == torch.uint8 else (images * 255).round().byte()
        shown = pixels.permute(0, 2, 3, 1).cpu().numpy()
        found = edge_scores(torch.stack([torch.from_numpy(edge_map(image)) for image in shown]), torch.stack(list(targets)))
        return {"score": 100 * found["f1"], "edge_iou": 100 * found["iou"], "edge_f1": 100 * found["f1"]}
    assert judges.landmarks is not None
    places = judged(judges.landmarks, images)
    if places.shape[1] != len(targets[0]):
        raise ConfigurationError(
            f"The landmark detector finds {places.shape[1]} landmarks, and the data have {len(targets[0])}: change "
            "`control.judges.landmarks` in workflow/scales/."
        )
    result = landmark_distance(places, torch.stack(list(targets)))
    share = 100 * result.distance / images.shape[-1]
    missed = 1 - result.found
    score = 100 - ((share * result.found if result.found else 0.0) + 100 * missed)
    return {"score": score, "distance": result.distance, "distance_share": share, "found": 100 * result.found}


class ControlEvaluation:
    """Generates images from the hints of examples and measures them; hints, prompts and noise are the same for all runs.

    The interface is that of `ether.diffusion.evaluation.Evaluation`. An evaluation within the training has the first `between`
    examples, its split is ``progress``. The last one has all of them; it also gives the split ``validation``, with the Fréchet
    distance (``fid``).

    Args:
        sampler: its pipeline contains the evaluated UNet.
        examples: of `ether.diffusion.control_data.ControlPairs`.
        task: its kind.
        judges: of the task.
        names: of the classes, for semantic maps.
        frechet: compares images, uint8, with real ones.
        between: number of examples within the training.
        guided: see `ControlledUNet.given`.
    """

    drift: Drift | None = None  # unrelated prompts have no hint

    def __init__(
        self,
        sampler: Sampler,
        examples: Any,
        task: str,
        judges: ControlJudges,
        names: Sequence[str],
        frechet: FrechetJudge,
        between: int,
        guided: bool = False,
    ) -> None:
        self.sampler, self.task, self.judges, self.names, self.frechet = sampler, task, judges, list(names), frechet
        self.between, self.guided = min(between, len(examples)), guided
        found = [examples[index] for index in range(len(examples))]
        self.texts = [example["caption"] for example in found]
        self.hints = torch.stack([example["hint"] for example in found])  # (N, 3, H, W), uint8
        self.real = torch.stack([example["image"] for example in found])
        self.targets = [example["target"] for example in found]
        self.controlled: ControlledUNet | None = None  # of the run
        self.reference: dict[str, torch.Tensor] | None = None
        self.whole = True  # whether the next evaluation has all examples
        self._energies: dict[str, dict[str, float]] = {}  # of the pretrained weights, once computed

    def generate(self) -> torch.Tensor:
        """Images (N, 3, H, W), uint8, of the first `between` examples, or of all.

        Raises:
            FloatingPointError: the model's output is not finite.
        """
        assert self.controlled is not None
        count = len(self.texts) if self.whole else self.between
        names = [f"{self.task}/{number}" for number in range(count)]
        return controlled_pictures(
            self.sampler, self.controlled, self.texts[:count], names, self.hints[:count], guided=self.guided
        )

    def _scores(self, images: torch.Tensor) -> dict[str, float]:
        return hint_scores(images, self.targets[: len(images)], self.task, self.judges, self.names)

    def measure(self, pictures: torch.Tensor) -> Mapping[str, dict[str, float]]:
        """{split: {metric: value}} of images from `generate`."""
        values = {"progress": self._scores(pictures[: self.between])}
        if self.whole:
            distance = self.frechet.score(pictures)
            values["validation"] = self._scores(pictures) | {
                "fid": distance.distance,
                "fid_bias": distance.bias,
                "fid_bias_deviation": distance.bias_deviation,
                "fid_samples": float(distance.samples),
                "fid_reference": float(distance.reference),
            }
        return values

    def measure_real(self) -> dict[str, float]:
        """The scores of the real images in place of generated ones: the ceiling of the judge."""
        return self._scores(self.real)

    def geometry(self, model: nn.Module) -> dict[str, float]:
        """See `ether.measures.geometry.summary`; empty if a transformation of the model is singular."""
        try:
            return geometry.summary(model, self.reference, self._energies)
        except torch.linalg.LinAlgError:
            return {}
