"""Magnitude re-fitting of OFT (Qiu et al. 2023; Table 3): one scale per output of every adapted layer, trained after the adapter.

An orthogonal transformation does not change the length of a neuron. Re-fitting trains the lengths afterwards, with everything
else frozen: the adapted layer y = W' x + b becomes y = s * (W' x) + b, with s = 1 at first.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ether.errors import ConfigurationError

__all__ = ["MAGNITUDE", "add_magnitudes"]

MAGNITUDE = "magnitude"  # name of the parameter of a layer


def _scaled(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """A hook: the output of a linear layer with every neuron scaled."""
    scale: torch.Tensor = getattr(layer, MAGNITUDE).to(output.dtype)
    return output * scale if layer.bias is None else (output - layer.bias) * scale + layer.bias


def add_magnitudes(model: nn.Module) -> int:
    """Freezes a model and adds the scales to its adapted linear layers, in place.

    Args:
        model: adapted by PEFT with a method that transforms the input of a layer (OFT, NAIVE), so that the scale of the frozen
            layer's output is that of the adapted neuron.

    Returns:
        The number of scales.

    Raises:
        ConfigurationError: the model has no adapted linear layer.
    """
    model.requires_grad_(False)
    count = 0
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            continue
        base.register_parameter(MAGNITUDE, nn.Parameter(torch.ones(base.out_features, device=base.weight.device)))
        base.register_forward_hook(_scaled)
        count += base.out_features
    if not count:
        raise ConfigurationError("Magnitude re-fitting needs a model with adapted linear layers: remove `refit_steps`.")
    return count
