"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021), which PEFT does not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ether.errors import one_of
from ether.methods.layer_sets import BLOCK_OUTPUTS


class Bottleneck(nn.Module):
    """Wraps the output projection of a sub-layer: ``y = W x + b`` becomes ``y + up(act(down(y)))``.

    Shapes: input (..., d_in), output (..., d_out). ``down`` maps d_out to size, ``up`` maps size to d_out and starts at
    zero, so that the wrapped model initially equals the pretrained one (Houlsby et al. 2019, Sec. 2.1: near-identity).
    """

    def __init__(self, base: nn.Linear, size: int, activation: str) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.down = nn.Linear(base.out_features, size, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(size, base.out_features, device=weight.device, dtype=weight.dtype)
        self.act: nn.Module = nn.GELU() if activation == "gelu" else nn.ReLU()
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the frozen projection plus the bottleneck's correction."""
        y = self.base(x)
        return y + self.up(self.act(self.down(y)))


def add_bottlenecks(model: nn.Module, how: Mapping[str, Any], model_type: str) -> None:
    """Wraps the outputs of the sub-layers named in ``how["after"]`` (attention | feed-forward) of every block, in place.

    Args:
        model: a transformers model.
        how: the ``adapt`` section of a method: ``size``, ``after`` and, by default "gelu", ``activation``.
        model_type: the architecture, a key of `ether.methods.layer_sets.BLOCK_OUTPUTS`.

    Raises:
        ConfigurationError: the block outputs of this architecture are not known.
    """
    outputs = BLOCK_OUTPUTS.get(model_type)
    if outputs is None:
        raise one_of("architecture", model_type, BLOCK_OUTPUTS, "ether/methods/layer_sets.py, BLOCK_OUTPUTS")
    patterns = [re.compile(outputs[place]) for place in how["after"]]
    # "output.dense" is also the end of "attention.output.dense"; the attention pattern distinguishes them.
    attention = re.compile(outputs["attention"])
    for name, module in list(model.named_modules()):
        if not any(pattern.fullmatch(name) for pattern in patterns):
            continue
        if "attention" not in how["after"] and attention.fullmatch(name):
            continue
        parent, _, child = name.rpartition(".")
        wrapped = Bottleneck(module, how["size"], how.get("activation", "gelu"))  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), child, wrapped)
