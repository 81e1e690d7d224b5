"""A tiny random vision transformer in the format of google/vit-base-patch16-224-in21k, to try loading code without the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

from ether.standins.diffusion import write_complete

HUB_ID = "google/vit-base-patch16-224-in21k"


def write_mirror(mirror: Path, *, hub_id: str = HUB_ID, size: int = 224, width: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """Write the model to ``<mirror>/models/<hub id>``; returns the folder.

    Args:
        mirror: root of the hub mirror.
        hub_id: the model to replace.
        size: side of its input in pixels; patches have 16.
        width, layers: of the transformer.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTModel(
            ViTConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                image_size=size,
                patch_size=16,
            )
        )
    folder = mirror / "models" / hub_id
    write_complete(folder, model.save_pretrained)
    return folder
