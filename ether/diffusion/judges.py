"""Loads the models that score images: DINO, CLIP, LPIPS's network (`ether.measures.images`), and the attribute reader."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ether import hub
from ether.errors import ConfigurationError, one_of
from ether.measures.images import (
    LPIPS_NETWORKS,
    AlexDistance,
    ClipJudge,
    Judges,
    PerceptualDistance,
    VisionJudge,
    ViTDistance,
    need_torchvision,
)
from ether.preprocessing import Preprocessing, of_checkpoint
from ether.silence import quiet

Reader = Callable[[torch.Tensor], list[dict[str, str]]]  # (N, 3, H, W) in [0, 1] -> predicted attributes of each image

ROLES = ("dino", "clip")
CONVOLUTIONAL_SIDE = 224  # of a convolutional judge's input, if its preprocessor_config.json contains none


def _setting(role: str) -> str:
    return f"subject.judges.{role}.path"  # setting named in error messages


def check_judges(judges: Mapping[str, Any], resources: Mapping[str, Any], results: Path) -> None:
    """Checks that a scale's judge models exist, without loading them.

    Raises:
        MissingResourceError: a judge model is missing, or torchvision for ``alex``.
        ConfigurationError: unknown perceptual distance.
    """
    if judges["lpips"] not in LPIPS_NETWORKS:
        raise one_of("perceptual distance", judges["lpips"], LPIPS_NETWORKS, "subject.judges.lpips")
    if judges["lpips"] == "alex":
        need_torchvision()
    for role in ROLES:
        hub.model_source(judges[role], resources, results)


def load_judges(judges: Mapping[str, Any], resources: Mapping[str, Any], results: Path, device: str) -> Judges:
    """Loads a scale's judge models.

    Args:
        judges: ``dino`` and ``clip``, each with ``path``, ``revision`` and ``weights`` (safetensors | bin) as in a scale's
            ``model`` section, and ``subfolder`` if several models share a path; ``lpips``: judge | alex.
        resources: mirror and foundation.
        results: ``results/<scale>``.
        device: cpu | cuda.

    Raises:
        MissingResourceError: a judge model is missing, or torchvision for ``alex``.
        ConfigurationError: unknown perceptual distance; a checkpoint without patches or without a class token.
    """
    import transformers

    check_judges(judges, resources, results)
    dino_source, clip_source = (hub.model_source(judges[role], resources, results) for role in ROLES)
    dino = load_vision_judge(dino_source, judges["dino"], _setting("dino"), device)
    model, prepare, location = _loaded(clip_source, judges["clip"], transformers.CLIPModel, _setting("clip"), device)
    with quiet(), hub.explained(clip_source, "model", _setting("clip")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(clip_source.location, **location)
    clip = ClipJudge(model, tokenizer, prepare, _name(clip_source, judges["clip"]))
    distance: PerceptualDistance = AlexDistance(device) if judges["lpips"] == "alex" else ViTDistance(dino)
    return Judges(dino, clip, distance, LPIPS_NETWORKS[judges["lpips"]])


def load_vision_judge(source: hub.Source, settings: Mapping[str, Any], setting: str, device: str) -> VisionJudge:
    """A vision model that gives features of images.

    Args:
        source: location of the model.
        settings: ``weights`` and ``subfolder`` (see `load_judges`).
        setting: the key of the scale that names the model, for messages.
        device: cpu | cuda.

    Raises:
        MissingResourceError: the model cannot be loaded.
        ConfigurationError: a checkpoint without patches or without a class token.
    """
    import transformers

    model, prepare, _ = _loaded(source, settings, transformers.AutoModel, setting, device)
    return VisionJudge(model, prepare, _name(source, settings))


def _name(source: hub.Source, settings: Mapping[str, Any]) -> str:
    return "/".join(filter(None, (source.name, settings.get("subfolder") or "")))


def _loaded(
    source: hub.Source, settings: Mapping[str, Any], loader: Any, setting: str, device: str
) -> tuple[Any, Preprocessing, dict[str, Any]]:
    """A judge model, its preprocessing, and the arguments that locate its other files."""
    subfolder = settings.get("subfolder") or ""
    location: dict[str, Any] = {"subfolder": subfolder, **source.pin}
    # Initialising a missing head must not advance the run's generator.
    with quiet(), torch.random.fork_rng(devices=[]), hub.explained(source, "model", setting):
        model = loader.from_pretrained(
            source.location, dtype=torch.float32, use_safetensors=source.safetensors(settings), **location
        ).to(device)
    config = model.config
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    convolutional = hasattr(config, "hidden_sizes") and hasattr(config, "depths")
    if not isinstance(side, int) and not convolutional:
        raise ConfigurationError(
            f"The configuration of the model {source.name!r} has no image size: `{setting}` must be a vision transformer with a "
            "class token (ViT, DINO, DINOv2), a convolutional network with a pooled output (RegNet, ResNet) or, for clip, a "
            "CLIP model."
        )
    return model, of_checkpoint(source, side or CONVOLUTIONAL_SIDE, setting, subfolder), location


def load_reader(reader: Mapping[str, Any] | None, resources: Mapping[str, Any], results: Path) -> Reader | None:
    """The attribute classifier of `ether.foundation.image_judges` for images of the world of pictures.

    Args:
        reader: ``path`` and ``subfolder``; None at scales with other images.
        resources: mirror and foundation.
        results: ``results/<scale>``.

    Raises:
        MissingResourceError: the model is missing.
    """
    if reader is None:
        return None
    from ether.foundation import image_judges
    from ether.worlds.pictures import SIZE

    source = hub.model_source(reader, resources, results)
    with quiet(), hub.explained(source, "model", _setting("reader")):
        model = image_judges.load_reader(Path(source.location) / (reader.get("subfolder") or ""))

    def read(pictures: torch.Tensor) -> list[dict[str, str]]:
        if pictures.shape[-1] != SIZE:
            pictures = functional.interpolate(pictures, SIZE, mode="bicubic", antialias=True).clamp(0, 1)
        found = image_judges.read(model, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy())
        return [dict(zip(found, words, strict=True)) for words in zip(*found.values(), strict=True)]

    return read


# --- shared by the runs of a job -------------------------------------------------------------------------------


def shared_judges(settings: Mapping[str, Any], resources: Mapping[str, Any], results: Path, device: str) -> Judges:
    """`load_judges`, cached by settings."""
    return _judges(json.dumps([settings, resources], sort_keys=True), results, device)


def shared_reader(settings: Mapping[str, Any] | None, resources: Mapping[str, Any], results: Path) -> Reader | None:
    """`load_reader`, cached by settings."""
    return _reader(json.dumps([settings, resources], sort_keys=True), results)


@functools.lru_cache(maxsize=2)
def _judges(key: str, results: Path, device: str) -> Judges:
    settings, resources = json.loads(key)
    return load_judges(settings, resources, results, device)


@functools.lru_cache(maxsize=2)
def _reader(key: str, results: Path) -> Reader | None:
    settings, resources = json.loads(key)
    return load_reader(settings, resources, results)
