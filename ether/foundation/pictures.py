"""The input format of the image models of this package, and the disturbance of pictures in their training."""

from __future__ import annotations

import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, pad

from ether.worlds.pictures import SIZE

__all__ = ["Pictures", "disturb", "preprocessor", "to_input"]

Pictures = NDArray[np.uint8]  # (count, 64, 64, 3), RGB


def to_input(pictures: Pictures | torch.Tensor) -> torch.Tensor:
    """Pictures (uint8) of shape (count, 64, 64, 3) as float32 of shape (count, 3, 64, 64) with values in -1 ... 1."""
    if not isinstance(pictures, torch.Tensor):
        pictures = torch.from_numpy(np.ascontiguousarray(pictures))
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def disturb(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures with noise and another contrast and brightness, as generated ones have; every other picture is also blurred.

    Args:
        inputs: (count, 3, 64, 64).
        generator: on the device of `inputs`.
    """

    def share(*shape: int) -> torch.Tensor:
        return torch.rand(len(inputs), *shape, generator=generator, device=inputs.device)

    blurred = avg_pool2d(pad(inputs, (2, 2, 2, 2), mode="replicate"), 3, 1)
    blurred = avg_pool2d(blurred, 3, 1)
    inputs = inputs.lerp(blurred, share(1, 1, 1) * (share(1, 1, 1) < 0.5))
    inputs = inputs * (0.85 + 0.3 * share(1, 1, 1)) + 0.2 * (share(3, 1, 1) - 0.5)
    return inputs + torch.randn(inputs.shape, generator=generator, device=inputs.device) * 0.1 * share(1, 1, 1)


def preprocessor(kind: str) -> str:
    """The content of a ``preprocessor_config.json``: 64 x 64, mean and standard deviation 0.5."""
    side = {"height": SIZE, "width": SIZE}
    return json.dumps(
        {
            "image_processor_type": kind,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": side,
            "resample": 3,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        indent=2,
    )
