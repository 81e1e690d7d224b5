"""Preprocessing of images as a checkpoint's ``preprocessor_config.json`` describes it, in torch, without torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ether import hub
from ether.errors import MissingResourceError

__all__ = ["Preprocessing", "of_checkpoint"]


@dataclass(frozen=True)
class Preprocessing:
    """The operations of a checkpoint's image processor: resize (shortest side, or both), crop the centre, normalise."""

    size: tuple[int, int] | int  # (height, width), or the shortest side
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, h, w), normalised."""
        height, width = images.shape[-2:]
        if isinstance(self.size, int):
            short = min(height, width)
            size = (round(height * self.size / short), round(width * self.size / short))
        else:
            size = self.size
        if size != (height, width):
            images = functional.interpolate(images, size, mode=self.mode, align_corners=False, antialias=True).clamp(0, 1)
        if self.crop is not None and self.crop != size:
            top, left = (max(0, round((a - b) / 2)) for a, b in zip(size, self.crop, strict=True))
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


def of_checkpoint(source: hub.Source, size: int, setting: str, subfolder: str = "") -> Preprocessing:
    """The preprocessing in the checkpoint's ``preprocessor_config.json``.

    Args:
        source: folder or hub id.
        size: side of the model's input in pixels, used if the file does not contain it.
        setting: the key of the scale that names the checkpoint, for messages.
        subfolder: subfolder of the checkpoint in the folder or repository.

    Raises:
        MissingResourceError: no such file.
    """
    from transformers.utils.hub import cached_file

    with hub.explained(source, "model", setting):
        file = cached_file(source.location, "preprocessor_config.json", subfolder=subfolder, **source.pin)
        if file is None:
            raise MissingResourceError(
                f"The model {source.name!r} has no preprocessor_config.json, which describes the preprocessing of images. "
                f"Add the file, or change `{setting}` in workflow/scales/."
            )
        config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    resized = config.get("size", size) if config.get("do_resize", True) else size
    if isinstance(resized, Mapping):
        resized = resized["shortest_edge"] if "shortest_edge" in resized else (resized["height"], resized["width"])
    elif not config.get("do_center_crop", False):
        resized = (resized, resized)  # without a crop, a single number is the side of a square
    crop = config.get("crop_size") if config.get("do_center_crop", False) else None
    if isinstance(crop, Mapping):
        crop = (crop["height"], crop["width"])
    elif crop is not None:
        crop = (crop, crop)
    return Preprocessing(
        resized,
        crop,
        tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
        tuple(config.get("image_std", (0.5, 0.5, 0.5))),
        "bilinear" if config.get("resample", 3) == 2 else "bicubic",  # PIL's numbers
    )
