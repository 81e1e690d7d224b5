"""Memory of one fine-tuning step, in bytes, counted from shapes on the meta device."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ether.measures.architectures import architecture
from ether.measures.flops import adapted_decoder, full_depth, language_model_loss
from ether.silence import quiet


@dataclass(frozen=True)
class Memory:
    """Peak memory of one step in bytes, by purpose, without allocator overhead and temporary tensors."""

    parameters: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimiser + self.activations

    @property
    def beside_the_model(self) -> int:
        """Memory of fine-tuning in addition to the model: gradients, optimiser state and saved activations."""
        return self.gradients + self.optimiser + self.activations


def step_memory(name: str, how: Mapping[str, Any], tokens: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> Memory:
    """Memory of one step of transformers' model `name` with AdamW, which has two float32 states per trained parameter.

    Arguments as for `ether.measures.flops.adapted_decoder`; `dtype` is that of the frozen model, adapters are float32, PEFT's
    default. Activations are the tensors that autograd saves for the backward pass, without weights and counting each storage
    once. Attention uses plain matrix products, without gradient checkpointing. A weight that is rebuilt in every step is saved
    by autograd and counted.
    """
    return _step_memory(name, json.dumps(how, sort_keys=True), tokens, batch, dtype)


@functools.lru_cache(maxsize=256)
def _step_memory(name: str, how: str, tokens: int, batch: int, dtype: torch.dtype) -> Memory:
    def at(depth: int) -> tuple[int, ...]:
        model = adapted_decoder(name, json.loads(how), depth, dtype)
        trained = [p for p in model.parameters() if p.requires_grad]
        return (
            sum(p.numel() * p.element_size() for p in model.parameters()),
            sum(p.numel() * p.element_size() for p in trained),
            sum(2 * 4 * p.numel() for p in trained),
            _saved(model, tokens, batch),
        )

    return Memory(*full_depth(at, architecture(name).layers))


def _saved(model: nn.Module, tokens: int, batch: int) -> int:
    """Bytes that autograd saves in a step of a decoder, without the model's parameters and buffers."""
    return saved_by(model, lambda state: language_model_loss(model, tokens, batch, state))


def saved_by(model: nn.Module, call: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> int:
    """Bytes that autograd saves in a call, each storage once and without the model's parameters and buffers.

    Args:
        model: on the meta device.
        call: computes a loss from tensors in place of the model's parameters and buffers, {name: tensor}.
    """
    with FakeTensorMode(), quiet():
        # Fake tensors without values whose device is the CPU: unlike meta tensors they pass device checks.
        state = {
            key: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for key, t in [*model.named_parameters(), *model.named_buffers()]
        }
        model_storages = {t.untyped_storage()._cdata for t in state.values()}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in model_storages:
                saved[storage._cdata] = storage  # the reference prevents reuse of the address by a later storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            call(state)
        return sum(storage.nbytes() for storage in saved.values())
