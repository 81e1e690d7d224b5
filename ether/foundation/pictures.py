"""The input format of the image models of this package."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Pictures", "to_input"]

Pictures = NDArray[np.uint8]  # (count, 64, 64, 3), RGB


def to_input(pictures: Pictures) -> torch.Tensor:
    """Pictures of shape (count, 64, 64, 3) as a float32 tensor of shape (count, 3, 64, 64) with values in -1 ... 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
