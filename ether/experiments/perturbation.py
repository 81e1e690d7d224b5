"""Images under random transformations of increasing distance from the identity (Sec. 4, Figure 3).

Nothing is trained: every adapted layer of the frozen text-to-image model gets a random transformation at a chosen
distance ||T - I||_F, the same for all layers and sides (`ether.diffusion.perturb`), and images of the same prompts
are generated from the same noise. The distance of ETHER is always 2 sqrt(n). That of ETHER+ is at most sqrt(2 n) on each side,
that of OFT at most 2 sqrt(d); Naive has no bound.

A run's task is a subject of the data set. Its prompts are used without the subject's identifier, and its photographs are not
used. Settings and hyperparameters are those of `ether.experiments.subject` (of the hyperparameters only ``precision``; ``prior``,
``times`` and ``drift`` have no effect) and::

    perturbation: {distances: [0.25, 0.5, 1, 1.41, 2, 4, 8, 16]}

Rows: one step for each distance, 0 for the unperturbed model, in the split `perturbation` with the metrics

    distance                            of the transformation, as chosen; transformation_distance is the measured one
    dino_same, clip_same, lpips_same    comparison with the unperturbed model's image for the same prompt and noise
    clip_t, lpips_prompt                as in `ether.measures.images`; with a reader, the shares of images with the
                                        attributes of their prompt
    transformation_distance..., weight_distance..., he_...      `ether.measures.geometry.summary`
    least, most                         smallest and largest distance of the method (most is absent if there is no bound)

Samples are saved in ``results/<scale>/samples/<experiment>/<job>/<run id>/distance-<number>/``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ether.config import RunSpec, overlay
from ether.diffusion.evaluation import Evaluation
from ether.diffusion.perturb import grid, multiplicative_layers, perturb, reachable
from ether.diffusion.samples import save_samples
from ether.experiments.common import SAMPLES, Fitted, Loaded, Rows
from ether.experiments.subject import Subject, SubjectData
from ether.results import write_text
from ether.tuners.layer import EtherLayer

Encoded = tuple[torch.Tensor, torch.Tensor, Any]
OF_REAL_IMAGES = ("dino", "clip_i", "lpips_real", "score")  # metrics that compare with the photographs


class Perturbation(Subject):
    """The experiment of Figure 3: images under random transformations."""

    def _without_subject(self, spec: RunSpec) -> RunSpec:
        changed = {"prompts": {"token": ""}, "prior": {"images": 0, "weight": 0.0}, "drift": None}
        return dataclasses.replace(spec, settings=overlay(spec.settings, changed))

    def check(self, spec: RunSpec, results: Path) -> None:
        """As for the experiment on subjects."""
        super().check(self._without_subject(spec), results)

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[SubjectData]:
        """As for the experiment on subjects, without identifiers and without images of the class."""
        loaded = super().load(self._without_subject(spec), results, device)
        loaded.total_steps = len(spec.settings["perturbation"]["distances"])
        return loaded

    def fit(self, loaded: Loaded[SubjectData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Generates and measures images at every distance; distances that an interrupted run has measured are not repeated."""
        evaluation = loaded.data.evaluation
        samples = folder / SAMPLES
        low, high = reachable(model)
        reflections = all(isinstance(layer, EtherLayer) for layer in multiplicative_layers(model).values())
        distances = grid(spec.settings["perturbation"]["distances"], low, high, end=reflections)
        started = time.perf_counter()
        with model.disable_adapter():  # type: ignore[operator]
            unperturbed = evaluation.generate()
        expected = _encoded(evaluation, unperturbed)
        rows: Rows = []
        reasons = []
        for step, distance in enumerate([0.0, *distances]):
            file, target = folder / "evaluations" / f"step-{step:08d}.json", samples / f"distance-{step:02d}"
            if file.is_file() and (target / "samples.json").is_file():
                rows += [tuple(row) for row in json.loads(file.read_text(encoding="utf-8"))]
                continue
            values = {"distance": distance, "least": low} | ({"most": high} if math.isfinite(high) else {})
            pictures: torch.Tensor | None = unperturbed
            if step:
                perturb(model, distance, spec.seed)
                values |= evaluation.geometry(model)
                try:
                    pictures = evaluation.generate()
                except (FloatingPointError, torch.linalg.LinAlgError) as error:
                    pictures = None
                    reasons.append(f"no pictures at distance {distance:g}: {error}")
            if pictures is not None:
                values |= _compare(evaluation, pictures, expected)
                run_info = {
                    "run": spec.run_id,
                    "method": spec.method,
                    "label": spec.label,
                    "seed": spec.seed,
                    "scale": spec.scale,
                    "distance": distance,
                }
                save_samples(target, pictures, evaluation.prompts, evaluation.each, run_info)
            new: Rows = [(step, "perturbation", name, value) for name, value in values.items()]
            write_text(json.dumps(new), file)
            rows += new
        status = "diverged" if reasons else "finished"
        return Fitted(rows, len(distances), time.perf_counter() - started, status, "; ".join(reasons))


def _encoded(evaluation: Evaluation, pictures: torch.Tensor) -> Encoded:
    """The DINO, CLIP and LPIPS features of images (N, 3, H, W), uint8."""
    judges, floats = evaluation.judges, pictures.float() / 255
    return judges.dino.features(floats).cpu(), judges.clip.features(floats).cpu(), judges.lpips.encode(floats)


def _compare(evaluation: Evaluation, pictures: torch.Tensor, expected: Encoded) -> dict[str, float]:
    """The metrics of images that need no photographs, and the similarity to the images with the features `expected`."""
    lpips = evaluation.judges.lpips
    found = evaluation.measure(pictures)["validation"]
    dino, clip, encoded = _encoded(evaluation, pictures)
    pairs = [float(lpips.table(lpips.rows(encoded, [i]), lpips.rows(expected[2], [i]))) for i in range(len(pictures))]
    without_real = {key: value for key, value in found.items() if key not in OF_REAL_IMAGES}
    return without_real | {
        "dino_same": _same(dino, expected[0]),
        "clip_same": _same(clip, expected[1]),
        "lpips_same": sum(pairs) / len(pairs),
    }


def _same(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine of row i of a and row i of b."""
    return float(functional.cosine_similarity(a.double(), b.double(), dim=-1).mean())


EXPERIMENT = Perturbation()
