"""``control-judges``: the networks that evaluate controllable generation on the world of pictures (`ether.worlds.control`).

- ``segmenter``: the class of every pixel (`ether.worlds.control.CLASSES`), in place of the paper's UperNet-101 on ADE20K.
- ``landmarks``: the places of the 20 landmarks of a drawn face, in place of face-alignment. One map per landmark; the softmax of
  a map over all pixels is the distribution of the landmark's place.

Both are transformers' `UperNetForSemanticSegmentation` over a small ResNet, trained on rendered scenes only, never on
generated pictures; `ether.foundation.pictures.disturb` makes them tolerant of blur and noise. They depend on no other model.

**Input.** RGB pictures of 64 x 64, normalised to -1 ... 1 (`ether.foundation.pictures.to_input`), (count, 3, 64, 64).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_confusion_matrix
from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

from ether.foundation import card
from ether.foundation.pictures import Pictures, disturb, preprocessor, to_input
from ether.foundation.pretraining import MuonWithAdam, optimise, warm_up_and_decay
from ether.results import write_text
from ether.worlds import control, pictures
from ether.worlds.faces import LANDMARKS

STEPS = 2_000  # of the segmenter; the landmark detector takes half as many
BATCH, RATE, MATRIX_RATE, WARM_UP = 32, 2.0e-3, 3.0e-3, 50
DECAY = 0.01
FACES = 0.1  # share of scenes of one face in the segmenter's training, beside those of the world's own distribution
WITHOUT = 0.3  # share of scenes without a face in the landmark detector's training
SHARPNESS = 1.0  # standard deviation of a landmark's target distribution, in pixels
NEAR, FOUND = 3.0, 0.5  # a face is found if on average half of a landmark's probability lies within 3 pixels of its mean
PART = 64  # pictures evaluated together

# --- models -----------------------------------------------------------------------------------------------------------


def _upernet(names: Sequence[str]) -> UperNetForSemanticSegmentation:
    """A UperNet of 1.3 million parameters, randomly initialised; its features are 16 x 16, 8 x 8 and 4 x 4."""
    stages: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3"]}
    backbone = ResNetConfig(embedding_size=32, hidden_sizes=[48, 96, 160], depths=[1, 2, 2], layer_type="basic", **stages)
    settings: dict[str, Any] = {  # known to every configuration, but not parameters of the class
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=32, pool_scales=[1, 2], use_auxiliary_head=False, **settings)
    )


def new_segmenter() -> UperNetForSemanticSegmentation:
    """The segmenter, randomly initialised."""
    return _upernet(control.CLASSES)


def new_detector() -> UperNetForSemanticSegmentation:
    """The landmark detector, randomly initialised."""
    return _upernet(LANDMARKS)


def load(folder: Path | str) -> UperNetForSemanticSegmentation:
    """One of the two networks, in float32 and evaluation mode."""
    return UperNetForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()


# --- maps and landmarks -----------------------------------------------------------------------------------------------


def expected_places(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the distributions that are the softmax of maps (N, L, H, W) over all pixels.

    Returns:
        places: (N, L, 2), x and y in pixels, 0 at the outer edge of the first pixel.
        certainty: (N,), the probability within `NEAR` pixels of the mean, averaged over the L maps.
    """
    count, landmarks, height, width = maps.shape
    probability = maps.double().flatten(2).softmax(-1)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=maps.device) + 0.5,
        torch.arange(width, dtype=torch.float64, device=maps.device) + 0.5,
        indexing="ij",
    )
    points = torch.stack([x.flatten(), y.flatten()], dim=-1)  # (H W, 2)
    places = probability @ points
    near = torch.cdist(places.reshape(-1, 2), points).reshape(count, landmarks, -1) <= NEAR
    return places, (probability * near).sum(-1).mean(-1)


@torch.no_grad()
def detect(model: UperNetForSemanticSegmentation, inputs: torch.Tensor) -> torch.Tensor:
    """Landmarks (N, 20, 2) in pixels of inputs (N, 3, 64, 64); NaN where no face is found."""
    parts = []
    for part in inputs.split(PART):
        places, certainty = expected_places(model(pixel_values=part).logits)
        places[certainty < FOUND] = torch.nan
        parts.append(places)
    return torch.cat(parts)


def place_targets(points: NDArray[np.floating[Any]] | None) -> torch.Tensor:
    """The target distributions of landmarks (20, 2) over the pixels, (20, 64 * 64): normal; uniform if there is no face."""
    centres = torch.arange(pictures.SIZE, dtype=torch.float32) + 0.5
    if points is None:
        return torch.full((len(LANDMARKS), pictures.SIZE**2), 1 / pictures.SIZE**2)
    at = torch.from_numpy(points.astype(np.float32))
    x, y = (torch.exp(-((centres - at[:, i, None]) ** 2) / (2 * SHARPNESS**2)) for i in (0, 1))
    table = y[:, :, None] * x[:, None, :]
    return (table / table.sum((1, 2), keepdim=True)).flatten(1)


# --- training ---------------------------------------------------------------------------------------------------------


def _mixed(first: Iterator[Any], second: Iterator[Any], share: float, seed: int) -> Iterator[Any]:
    """Elements of the first stream, and a share of the second's, in random order."""
    rng = np.random.default_rng([seed, 11])
    while True:
        yield next(second if rng.random() < share else first)


def _on(model: Any, device: str) -> UperNetForSemanticSegmentation:
    """A network on a device, in training mode."""
    return model.to(device).train()


def _fit(model: UperNetForSemanticSegmentation, losses: Iterator[torch.Tensor], steps: int, label: str) -> None:
    named = dict(model.named_parameters())
    optimizer = MuonWithAdam(named, matrix_rate=MATRIX_RATE, rate=RATE, apart=("classifier",), weight_decay=DECAY)
    factor = warm_up_and_decay(steps, min(WARM_UP, max(1, steps // 4)))
    optimise(losses, optimizer, named.values(), factor, steps=steps, label=label)
    model.eval()


def train_segmenter(seed: int, steps: int, device: str = "cpu") -> UperNetForSemanticSegmentation:
    """The segmenter, on scenes of the world of pictures with more faces than it has."""
    torch.manual_seed(seed)
    model, generator = _on(new_segmenter(), device), torch.Generator().manual_seed(seed)
    scenes = _mixed(pictures.random_scenes(seed + 700), control.faces(seed + 700), FACES, seed)

    def losses() -> Iterator[torch.Tensor]:
        while True:
            batch = [next(scenes) for _ in range(BATCH)]
            inputs = disturb(to_input(pictures.render_many(batch)), generator).to(device)
            labels = torch.from_numpy(np.stack([control.label_map(scene) for scene in batch])).long().to(device)
            yield cross_entropy(model(pixel_values=inputs).logits, labels)

    _fit(model, losses(), steps, "segmenter")
    return model


def train_detector(seed: int, steps: int, device: str = "cpu") -> UperNetForSemanticSegmentation:
    """The landmark detector, on scenes of one face, and on scenes without a face, for which all its maps are to be constant."""
    torch.manual_seed(seed + 1)
    model, generator = _on(new_detector(), device), torch.Generator().manual_seed(seed + 1)
    without = (scene for scene in pictures.random_scenes(seed + 701) if all(thing.face is None for thing in scene.things))
    scenes = _mixed(control.faces(seed + 701), without, WITHOUT, seed + 1)

    def losses() -> Iterator[torch.Tensor]:
        while True:
            batch = [next(scenes) for _ in range(BATCH)]
            inputs = disturb(to_input(pictures.render_many(batch)), generator).to(device)
            points = [control.landmarks(scene) if scene.things[0].face else None for scene in batch]
            targets = torch.stack([place_targets(of_scene) for of_scene in points]).to(device)
            logits = model(pixel_values=inputs).logits.flatten(2)
            yield -(targets * logits.log_softmax(-1)).sum(-1).mean()

    _fit(model, losses(), steps, "landmarks")
    return model


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Train the segmenter for `steps` and the landmark detector for half as many, and write them to the folder `out`.

    The same seed, steps and threads give the same weights on one kind of machine.

    Args:
        out: the folder.
        seed: of weights and scenes.
        steps: see `STEPS`.
        threads: CPU threads.
        device: cpu | cuda.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    models: dict[str, Any] = {
        "segmenter": train_segmenter(seed, steps, device).cpu(),
        "landmarks": train_detector(seed, max(1, steps // 2), device).cpu(),
    }
    _write(out, models, seed, steps, threads, device, minutes=(time.monotonic() - began) / 60)


def _write(out: Path, models: dict[str, Any], seed: int, steps: int, threads: int, device: str, *, minutes: float) -> None:
    """Write the networks in half precision, with their card; the scores are of what was written."""
    card.start(out)
    for name, model in models.items():
        model.half().save_pretrained(out / name)
        write_text(preprocessor("ViTImageProcessor") + "\n", out / name / "preprocessor_config.json")
    card.write(
        out,
        name="control-judges",
        what="a segmenter and a landmark detector for the world of pictures (ether.worlds.control)",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCH,
        models=models,
        minutes=minutes,
        scores=validate(out, seed=seed + 1),
        details={"precision": "stored in float16 and loaded in float32"},
        made_from="pictures of drawings under free licences (ether/worlds/drawings/NOTICE)",
    )


# --- validation -------------------------------------------------------------------------------------------------------


def validate(folder: Path, *, seed: int = 1, count: int = 256) -> dict[str, float]:
    """The scores of both networks on newly rendered pictures, without disturbance."""
    segmenter, detector = load(folder / "segmenter"), load(folder / "landmarks")
    maps, shown = (control.examples(task, "validation", seed + 50, count) for task in ("semantic", "landmarks"))
    predicted, target = label_maps(segmenter, maps.images), torch.from_numpy(maps.targets).long()
    table = multiclass_confusion_matrix(predicted, target, len(control.CLASSES)).double()  # rows: true classes
    right = table.diagonal()
    iou = right / (table.sum(0) + table.sum(1) - right)
    places = detect(detector, to_input(shown.images))
    found = places.isfinite().flatten(1).all(1)
    distances = (places - torch.from_numpy(shown.targets)).norm(dim=-1).mean(-1)
    faceless = [i for i, scene in enumerate(maps.scenes) if all(thing.face is None for thing in scene.things)]
    elsewhere = detect(detector, to_input(maps.images[faceless])).isfinite().flatten(1).all(1)
    return {
        "segmenter, mean IoU": round(float(iou.nanmean()), 4),
        "segmenter, pixel accuracy": round(float(right.sum() / table.sum()), 4),
        **{f"segmenter, IoU of {name}": round(float(value), 4) for name, value in zip(control.CLASSES, iou, strict=True)},
        "landmarks, mean distance in pixels": round(float(distances[found].mean()), 4),
        "landmarks, faces found": round(float(found.double().mean()), 4),
        "landmarks, found in pictures without a face": round(float(elsewhere.double().mean()), 4),
    }


@torch.no_grad()
def label_maps(model: UperNetForSemanticSegmentation, shown: Pictures) -> torch.Tensor:
    """The class of every pixel of pictures (N, 64, 64, 3), (N, 64, 64)."""
    return torch.cat([model(pixel_values=part).logits.argmax(1) for part in to_input(shown).split(PART)])
