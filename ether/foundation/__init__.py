"""The small foundation models that this project pretrains. They are shipped with the package and can be pretrained again.

`path` returns the folder of a shipped model after every file has been checked against the model's card
(`ether.foundation.card`). `pretrain`, or ``python -m ether.foundation NAME --out FOLDER``, pretrains a model again. `MODELS`
names, for each model, the module with its function ``pretrain(out, *, seed, steps, threads, device)``.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from ether.errors import HardwareError, one_of
from ether.foundation.card import CARD, verify
from ether.silence import quiet

__all__ = ["CARD", "MODELS", "path", "pretrain", "verify"]

MODELS = {  # name: the module that pretrains it
    "control-encoders": "ether.diffusion.control_encoders",
    "control-judges": "ether.foundation.control_judges",
    "image-judges": "ether.foundation.image_judges_training",
    "language-encoder": "ether.foundation.language_encoder",
    "language-model": "ether.foundation.language_model",
    "text-to-image": "ether.foundation.text_to_image_training",
    "vision-encoder": "ether.foundation.vision_encoder",
}
DEVICES = ("cpu", "cuda")
WEIGHTS = Path(__file__).parent / "weights"


@functools.cache
def path(name: str) -> Path:
    """The folder of a shipped model, for ``from_pretrained``; its files are checked once per process.

    Raises:
        ConfigurationError: there is no model of this name.
        MissingResourceError: a file is missing or differs from the one that the card describes.
    """
    if name not in MODELS:
        raise one_of("foundation model", name, MODELS)
    return verify(WEIGHTS / name)


def _check_device(device: str) -> None:
    import torch

    if device not in DEVICES:
        raise one_of("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise HardwareError("Pretraining on cuda was requested, but torch finds no GPU. Use the device cpu.")


def pretrain(name: str, out: Path, **settings: Any) -> None:
    """Pretrain a model and write it, with its card, to the folder `out`.

    Args:
        name: a key of `MODELS`.
        out: the folder; an existing model in it is replaced.
        settings: ``seed``, ``steps``, ``threads``, ``device``; the defaults are those of the shipped model, except for
            ``threads`` (1) and ``device`` (cpu).

    Raises:
        ConfigurationError: there is no model of this name.
        HardwareError: CUDA was requested and is not available.
    """
    if name not in MODELS:
        raise one_of("foundation model", name, MODELS)
    _check_device(settings.get("device", "cpu"))
    with quiet():  # also at import, where transformers warns about image processors that are not used here
        importlib.import_module(MODELS[name]).pretrain(Path(out), **settings)
