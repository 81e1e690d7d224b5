"""What random transformations of growing distance from the identity do to pictures (Sec. 4, Figure 3).

Nothing is trained: every adapted layer of the frozen text-to-image model gets a random transformation at a chosen
distance ||T - I||_F, the same for all layers and sides, and the same prompts are drawn from the same noise. ETHER has
only one distance, 2 sqrt(n); ETHER+ reaches sqrt(2 n) on each side; OFT 2 sqrt(d); Naive has no bound.

A run's task is a subject of the data set: its prompts are drawn without the made-up word, and its photographs play no
part. Settings and hyperparameters are those of ``ether.experiments.subject`` (of the latter only ``precision``) and::

    perturbation: {distances: [0.25, 0.5, 1, 1.41, 2, 4, 8, 16]}

Rows: one step a distance, 0 for the unperturbed model, in the split `perturbation` with the metrics

    distance                            asked for; transformation_distance is what was measured
    dino_same, clip_same, lpips_same    each picture against the unperturbed model's from the same prompt and noise
    clip_t, lpips_prompt                as in ``ether.measures.images``; with a reader, the shares of its readings that
                                        are what was asked for
    transformation_distance..., weight_distance..., he_...      ``ether.measures.geometry.summary``
    least, most                         the distances the method can have (most is left out where there is no bound)

Samples lie under ``results/<scale>/samples/<experiment>/<run id>/distance-<number>/``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.oft.layer import OFTLayer
from torch import nn
from torch.nn import functional

from ether.config import RunSpec, overlay
from ether.errors import ConfigurationError
from ether.experiments import Fitted, Loaded
from ether.experiments.subject import Evaluation, Rows, Subject, generator, save_samples
from ether.measures import geometry
from ether.results import write_text
from ether.tuners.layer import EtherLayer, NaiveLayer

# --- random transformations ------------------------------------------------------------------------------------


def _supported(model: nn.Module) -> dict[str, EtherLayer | NaiveLayer | OFTLayer]:
    layers: dict[str, Any] = {}
    for name, layer in geometry.adapted_layers(model).items():
        if not isinstance(layer, EtherLayer | NaiveLayer | OFTLayer):
            raise ConfigurationError(
                f"The layer {name!r} is a {type(layer).__name__}: only ETHER, ETHER+, Naive and OFT multiply the weight by a "
                "transformation whose distance from the identity can be chosen. Remove the method from `perturbation.methods`."
            )
        layers[name] = layer
    return layers


def _sides(layer: EtherLayer, adapter: str) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
    pairs = (layer._vectors(adapter, suffix) for suffix in ("", "_out"))
    return [pair for pair in pairs if pair is not None]  # type: ignore[misc]


def reachable(model: nn.Module, adapter: str = "default") -> tuple[float, float]:
    """The least and the greatest distance ||T - I||_F that every adapted layer and side can have; inf without a bound."""
    low, high = 0.0, math.inf
    for layer in _supported(model).values():
        if isinstance(layer, EtherLayer):
            for u, v in _sides(layer, adapter):
                if v is None:
                    low, high = max(low, 2 * math.sqrt(len(u))), min(high, 2 * math.sqrt(len(u)))
                else:
                    high = min(high, math.sqrt(2 * len(u)))
        elif isinstance(layer, OFTLayer):
            rotation: Any = layer.oft_R[adapter]
            size = rotation.block_size
            high = min(high, 2 * math.sqrt(len(rotation.weight) * (size - size % 2)))  # an odd block keeps one axis
    return low, high


@torch.no_grad()
def perturb(model: nn.Module, distance: float, seed: int, adapter: str = "default") -> None:
    """Gives every adapted layer and side a random transformation at a distance from the identity, equal over its blocks.

    The random directions follow from the seed and the layer alone: another distance means the same turn, further.
    Plain ETHER takes random reflections, whatever the distance asked for: its own is always 2 sqrt(n).

    Raises:
        ConfigurationError: a method without such a transformation, a distance it cannot have, or OFT with the truncated
            series in place of the Cayley map.
    """
    low, high = reachable(model, adapter)
    if not low * (1 - 1e-9) <= distance <= high * (1 + 1e-9):
        raise ConfigurationError(
            f"A distance of {distance:g} is out of reach: this method's lie between {low:g} and {high:g} a layer and side."
        )
    for name, layer in _supported(model).items():
        random = generator("perturbation", seed, name)
        if isinstance(layer, EtherLayer):
            for u, v in _sides(layer, adapter):
                first = functional.normalize(_normal(u.shape, random), dim=-1)
                if v is not None:
                    other = _normal(u.shape, random)
                    other = functional.normalize(other - (other * first).sum(-1, keepdim=True) * first, dim=-1)
                    sine = min(1.0, distance / math.sqrt(2 * len(u)))  # ||u u^T - v v^T|| = sqrt(2) |sin| a block
                    v.copy_(math.sqrt(1 - sine * sine) * first + sine * other)
                u.copy_(first)
        elif isinstance(layer, NaiveLayer):
            blocks = layer.naive_blocks[adapter]
            moved = _normal(blocks.shape, random)
            moved *= distance / math.sqrt(len(blocks)) / torch.linalg.matrix_norm(moved, keepdim=True)
            blocks.copy_(torch.eye(blocks.shape[-1], dtype=torch.float64) + moved)
        else:
            _perturb_oft(layer.oft_R[adapter], distance, random)


def _normal(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=random, dtype=torch.float64)


def _perturb_oft(rotation: Any, distance: float, random: torch.Generator) -> None:
    """A random skew matrix a block, scaled until its Cayley map is at the distance.

    With +-i s the eigenvalues of S, those of R = (I - S)(I + S)^-1 are (1 -+ i s) / (1 +- i s), at a squared distance of
    4 s^2 / (1 + s^2) from 1, which grows with the scale of S.
    """
    if rotation.use_cayley_neumann:
        raise ConfigurationError("OFT's series is no Cayley map far from the identity: set `use_cayley_neumann: false`.")
    vectors = _normal(rotation.weight.shape, random)
    size = rotation.block_size
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(len(vectors), size, size, dtype=torch.float64)
    skew[:, rows, columns] = vectors
    singular = torch.linalg.svdvals(skew - skew.mT)
    low, high = torch.full((len(vectors), 1), -60.0).double(), torch.full((len(vectors), 1), 60.0).double()
    for _ in range(100):  # bisection of the scale's binary logarithm, block by block
        middle = (low + high) / 2
        squares = (singular * torch.exp2(middle)).square()
        short = (4 * squares / (1 + squares)).sum(-1, keepdim=True) < distance**2 / len(vectors)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    rotation.weight.copy_(vectors * torch.exp2((low + high) / 2) if distance else torch.zeros_like(vectors))


# --- the experiment --------------------------------------------------------------------------------------------


def grid(distances: Sequence[float], low: float, high: float, end: bool = True) -> list[float]:
    """The distances of a grid that can be had; where the grid goes beyond the greatest and `end` is set, that one too.

    OFT has no use for its end: there T = -I, and signs cancel between queries and keys, and between values and outputs.
    """
    if low == high:
        return [low]
    chosen = [distance for distance in sorted(distances) if low <= distance <= high and (end or distance < high)]
    if end and math.isfinite(high) and max(distances) > high:
        chosen = [*(distance for distance in chosen if distance < 0.98 * high), high]  # 1.41 is sqrt(2) already
    return chosen


class Perturbation(Subject):
    """Figure 3: pictures under random transformations."""

    def _without_subject(self, spec: RunSpec) -> RunSpec:
        changed = {"prompts": {"token": ""}, "prior": {"images": 0, "weight": 0.0}}
        return dataclasses.replace(spec, settings=overlay(spec.settings, changed))

    def check(self, spec: RunSpec, results: Path) -> None:
        """As for the subjects."""
        super().check(self._without_subject(spec), results)

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded:
        """As for the subjects, without the made-up word and without the class's pictures."""
        loaded = super().load(self._without_subject(spec), results, device)
        loaded.data["samples"] = results / "samples" / spec.experiment / spec.run_id
        loaded.total_steps = len(spec.settings["perturbation"]["distances"])
        return loaded

    def fit(self, loaded: Loaded, model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Draws at every distance; what an interrupted run has measured is kept and not repeated."""
        evaluation = Evaluation(loaded, spec)
        judges = evaluation.judges
        low, high = reachable(model)
        reflections = all(isinstance(layer, EtherLayer) for layer in _supported(model).values())
        distances = grid(spec.settings["perturbation"]["distances"], low, high, end=reflections)
        started = time.perf_counter()
        with model.disable_adapter():  # type: ignore[operator]
            plain = evaluation.draw()
        shown = plain.float() / 255
        expected = (judges.dino.features(shown).cpu(), judges.clip.features(shown).cpu(), judges.lpips.encode(shown))
        rows: Rows = []
        reasons = []
        for step, distance in enumerate([0.0, *distances]):
            file = folder / "evaluations" / f"step-{step:08d}.json"
            if file.is_file() and (loaded.data["samples"] / f"distance-{step:02d}" / "samples.json").is_file():
                rows += [tuple(row) for row in json.loads(file.read_text(encoding="utf-8"))]
                continue
            values = {"distance": distance, "least": low} | ({"most": high} if math.isfinite(high) else {})
            pictures: torch.Tensor | None = plain
            if step:
                perturb(model, distance, spec.seed)
                values |= evaluation.geometry(model)
                try:
                    pictures = evaluation.draw()
                except (FloatingPointError, torch.linalg.LinAlgError) as error:
                    pictures = None
                    reasons.append(f"no pictures at distance {distance:g}: {error}")
            if pictures is not None:
                values |= self._compare(evaluation, pictures, expected)
                about = {"run": spec.run_id, "method": spec.label, "seed": spec.seed, "scale": spec.scale, "distance": distance}
                save_samples(
                    loaded.data["samples"] / f"distance-{step:02d}", pictures, evaluation.prompts, evaluation.each, about
                )
            new: Rows = [(step, "perturbation", name, value) for name, value in values.items()]
            write_text(json.dumps(new), file)
            rows += new
        status = "diverged" if reasons else "finished"
        return Fitted(rows, len(distances), time.perf_counter() - started, status, "; ".join(reasons))

    def _compare(self, evaluation: Evaluation, pictures: torch.Tensor, expected: tuple[Any, Any, Any]) -> dict[str, float]:
        judges, shown = evaluation.judges, pictures.float() / 255
        found = evaluation.judge(pictures)["validation"]
        encoded = judges.lpips.encode(shown)
        pairs = [
            float(judges.lpips.table(judges.lpips.rows(encoded, [i]), judges.lpips.rows(expected[2], [i])))
            for i in range(len(shown))
        ]
        kept = {key: value for key, value in found.items() if key not in ("dino", "clip_i", "lpips_real", "score")}
        return kept | {
            "dino_same": _same(judges.dino.features(shown).cpu(), expected[0]),
            "clip_same": _same(judges.clip.features(shown).cpu(), expected[1]),
            "lpips_same": sum(pairs) / len(pairs),
        }


def _same(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine of row i of a and row i of b."""
    return float(functional.cosine_similarity(a.double(), b.double(), dim=-1).mean())


EXPERIMENT = Perturbation()
