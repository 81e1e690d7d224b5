"""Time of one adapted layer, forward and backward, on this machine; all methods are measured in interleaved rounds.

This is a short measurement for Table 1. `benchmarks/layer.py` measures more shapes, memory, and the weight side.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from ether.errors import one_of

MOST_ROUNDS = 30


def layer_times(
    width: int,
    tokens: int,
    methods: Mapping[str, Mapping[str, Any]],
    reference: str,
    *,
    device: str = "cpu",
    seconds: float = 10.0,
    rounds: int = 3,
) -> pd.DataFrame:
    """Times a frozen `width` x `width` linear layer under each method; the input requires a gradient, as in a network.

    Args:
        width: inputs and outputs of the layer.
        tokens: number of rows of the input.
        methods: name -> {type, config} of a PEFT adapter, as in the `adapt` section of a method's YAML.
        reference: the method by whose time the other times are divided in each round.
        device: "cpu" (float32) or "cuda" (frozen layer and input in bfloat16, adapters in float32, PEFT's default).
        seconds: no further round starts after this time.
        rounds: but there are at least so many.

    Returns:
        Columns `method`, `seconds` (median over rounds), `ratio` (median of the ratios to `reference` within a round),
        `low` and `high` (quartiles of those ratios), `rounds`.

    Raises:
        ConfigurationError: `reference` is not one of the methods, or unknown PEFT type.
    """
    if reference not in methods:
        raise one_of("reference method", reference, methods)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    gradient = torch.randn(tokens, width, generator=generator).to(device, dtype)
    weight = (torch.randn(width, width, generator=generator) / width**0.5).to(device, dtype)
    layers = {method: _adapted(weight, how) for method, how in methods.items()}

    def once(layer: nn.Module) -> float:
        _wait(device)
        start = time.perf_counter()
        layer(x).backward(gradient.to(x.dtype))
        _wait(device)
        x.grad = None
        layer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    for layer in layers.values():
        once(layer)
    measured: list[dict[str, float]] = []
    started = time.perf_counter()
    while len(measured) < rounds or (len(measured) < MOST_ROUNDS and time.perf_counter() - started < seconds):
        measured.append({method: once(layer) for method, layer in layers.items()})
    taken = pd.DataFrame(measured)
    ratios = taken.div(taken[reference], axis=0)
    return pd.DataFrame(
        {
            "method": list(methods),
            "seconds": [taken[m].median() for m in methods],
            "ratio": [ratios[m].median() for m in methods],
            "low": [ratios[m].quantile(0.25) for m in methods],
            "high": [ratios[m].quantile(0.75) for m in methods],
            "rounds": len(measured),
        }
    )


def _adapted(weight: torch.Tensor, how: Mapping[str, Any]) -> nn.Module:
    """A bias-free linear layer that shares `weight`, inside PEFT's wrapper."""
    import peft

    from ether.measures.parameters import settings
    from ether.methods.adapt import peft_config_class

    outputs, inputs = weight.shape
    base = nn.Linear(inputs, outputs, bias=False, device="meta")
    base.weight = nn.Parameter(weight, requires_grad=False)
    config: Any = peft_config_class(how["type"])
    model: Any = nn.Sequential(base)
    return peft.get_peft_model(model, config(target_modules=["0"], **settings(how))).train()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
