"""Loads the judges of controllable generation: feature network of FID, segmenter and landmark detector.

All are named in a scale, since scores of different judges are not comparable. Official OFT uses SegFormer-B4 and face-alignment,
the paper names UperNet-101, whose weights are not on the hub.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ether import hub
from ether.diffusion.judges import load_vision_judge
from ether.errors import MissingResourceError
from ether.measures.frechet import Features
from ether.preprocessing import of_checkpoint
from ether.silence import quiet

__all__ = ["FACE_ALIGNMENT", "INCEPTION", "ControlJudges", "check_control_judges", "judged", "shared_control_judges"]

INCEPTION, FACE_ALIGNMENT = "inception", "face-alignment"  # judges that are libraries
SIDE = 512  # of a segmenter's input, if its preprocessor_config.json contains none
PART = 16  # images judged together
GIVEN = 64  # images given to a judge together

Segmenter = Callable[[torch.Tensor], torch.Tensor]  # (N, 3, H, W) in [0, 1] -> (N, H, W) classes
Detector = Callable[[torch.Tensor], torch.Tensor]  # (N, 3, H, W) in [0, 1] -> (N, L, 2) pixels, NaN where no face is found


@dataclass(frozen=True)
class ControlJudges:
    """The judges that a task needs; None for the others."""

    features: Features  # of FID
    segmenter: Segmenter | None = None
    landmarks: Detector | None = None


def judged(judge: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """A judge's result for images (N, 3, H, W), uint8, or in [0, 1]; few of them at a time are in floating point."""
    parts = images.split(GIVEN)
    return torch.cat([judge(part.float() / 255 if part.dtype == torch.uint8 else part).cpu() for part in parts])


def _need(package: str, judge: str, role: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingResourceError(
            f"The judge {judge!r} needs the package {package}: install it with `pip install {package.replace('_', '-')}`, or "
            f"change `control.judges.{role}` in workflow/scales/."
        )


def check_control_judges(judges: Mapping[str, Any], task: str, resources: Mapping[str, Any], results: Path) -> None:
    """Checks that the judges of a task exist, without loading them.

    Args:
        judges: ``features``, ``segmenter`` and ``landmarks``: a model as in a scale's ``model`` section, or the name of a library
            (inception for ``features``, face-alignment for ``landmarks``).
        task: semantic | landmarks | edges.
        resources: mirror and foundation.
        results: ``results/<scale>``.

    Raises:
        MissingResourceError: a model or a package is missing.
    """
    for role in _roles(task):
        if judges[role] == INCEPTION:
            _need("torch_fidelity", INCEPTION, role)
        elif judges[role] == FACE_ALIGNMENT:
            _need("face_alignment", FACE_ALIGNMENT, role)
        else:
            hub.model_source(judges[role], resources, results)


def _roles(task: str) -> tuple[str, ...]:
    return ("features", *{"semantic": ("segmenter",), "landmarks": ("landmarks",)}.get(task, ()))


def inception_features(device: str) -> Features:
    """The features of FID's Inception network (torch-fidelity's port of the original weights), 2048 dimensions."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device).eval()

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        parts = [network((part.to(device) * 255).round().byte()).flatten(1).cpu() for part in images.split(PART)]
        return torch.cat(parts)

    return features


def _upernet(source: hub.Source, settings: Mapping[str, Any], role: str, device: str) -> tuple[Any, Any]:
    """A model for semantic segmentation and its preprocessing."""
    import transformers

    setting, subfolder = f"control.judges.{role}.path", settings.get("subfolder") or ""
    with quiet(), torch.random.fork_rng(devices=[]), hub.explained(source, "model", setting):
        model: Any = transformers.AutoModelForSemanticSegmentation.from_pretrained(
            source.location,
            subfolder=subfolder,
            dtype=torch.float32,
            use_safetensors=source.safetensors(settings),
            **source.pin,
        )
    return model.to(device).eval().requires_grad_(False), of_checkpoint(source, SIDE, setting, subfolder)


def load_segmenter(source: hub.Source, settings: Mapping[str, Any], device: str) -> Segmenter:
    """A segmenter whose label maps have the size of the images; its logits are resized bilinearly.

    Raises:
        MissingResourceError: the model cannot be loaded.
    """
    model, prepare = _upernet(source, settings, "segmenter", device)

    @torch.no_grad()
    def segment(images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.split(PART):
            logits = model(pixel_values=prepare(part.to(device))).logits
            if logits.shape[-2:] != images.shape[-2:]:
                logits = functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
            parts.append(logits.argmax(1).cpu())
        return torch.cat(parts)

    return segment


def load_detector(source: hub.Source, settings: Mapping[str, Any], device: str) -> Detector:
    """The landmark detector of `ether.foundation.control_judges`.

    Raises:
        MissingResourceError: the model cannot be loaded.
    """
    from ether.foundation.control_judges import detect

    model, prepare = _upernet(source, settings, "landmarks", device)

    def find(images: torch.Tensor) -> torch.Tensor:
        prepared = torch.cat([prepare(part.to(device)) for part in images.split(PART)])
        places: torch.Tensor = detect(model, prepared).cpu()
        return places * (images.shape[-1] / prepared.shape[-1])

    return find


def face_alignment_detector(device: str) -> Detector:
    """The 68 landmarks of the first face that the package face-alignment finds, as in official OFT's evaluation."""
    import face_alignment  # an optional package of the paper's scale

    network = face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, flip_input=False, device=device)

    def find(images: torch.Tensor) -> torch.Tensor:
        found = []
        for image in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
            faces = network.get_landmarks(image)
            found.append(torch.as_tensor(faces[0]) if faces else torch.full((68, 2), torch.nan))
        return torch.stack(found)

    return find


@functools.lru_cache(maxsize=4)
def _judges(key: str, results: Path, device: str) -> ControlJudges:
    settings, task, resources = json.loads(key)
    check_control_judges(settings, task, resources, results)
    loaded: dict[str, Any] = {}
    for role in _roles(task):
        given = settings[role]
        if given == INCEPTION:
            loaded[role] = inception_features(device)
        elif given == FACE_ALIGNMENT:
            loaded[role] = face_alignment_detector(device)
        else:
            source = hub.model_source(given, resources, results)
            if role == "features":
                loaded[role] = load_vision_judge(source, given, f"control.judges.{role}.path", device).features
            else:
                loaded[role] = (load_segmenter if role == "segmenter" else load_detector)(source, given, device)
    return ControlJudges(**loaded)


def shared_control_judges(
    settings: Mapping[str, Any], task: str, resources: Mapping[str, Any], results: Path, device: str
) -> ControlJudges:
    """The judges of a task, cached by settings; for the arguments, see `check_control_judges`.

    Raises:
        MissingResourceError: a model or a package is missing.
    """
    return _judges(json.dumps([settings, task, resources], sort_keys=True), results, device)
