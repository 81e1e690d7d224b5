"""What one example costs in training and inference: operations and saved activations, counted from shapes.

For the models of every experiment of the paper's scale (`ether.measures.architectures`), which have different inputs: token ids,
images, or latents with a prompt. `ether.measures.flops` and `memory` count adapted decoders in more detail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ether.errors import one_of
from ether.measures.architectures import architecture, meta_model
from ether.measures.memory import saved_by
from ether.methods.layer_sets import layer_set
from ether.silence import quiet

RANK = 8  # of the LoRA adapters that stand for all adapters
PROMPT_TOKENS = 77  # of Stable Diffusion's text encoder


@dataclass(frozen=True)
class Example:
    """Costs of one more example (a text of so many tokens, an image, a latent) in a batch.

    What a model computes once a batch, such as DeBERTa's projections of relative positions, is not included.
    """

    forward: int  # operations of one forward pass
    backward: int  # of the backward pass
    saved: int  # bytes that autograd saves between the two, without parameters
    parameters: int  # of the model
    trained: int


def _inputs(name: str, size: int, dtype: torch.dtype, batch: int) -> dict[str, Any]:
    """Inputs of a batch on the current device. size: tokens of a text, or the side of an image, hint or latent."""
    kind = architecture(name).model_type
    if name == "control-encoder":
        return {"conditioning": torch.empty(batch, 3, size, size, dtype=dtype)}
    if kind == "unet":
        prompt = torch.empty(batch, PROMPT_TOKENS, 768, dtype=dtype)
        return {
            "sample": torch.empty(batch, 4, size, size, dtype=dtype),
            "timestep": torch.ones(batch),
            "encoder_hidden_states": prompt,
        }
    if kind == "vit":
        return {"pixel_values": torch.empty(batch, 3, size, size, dtype=dtype)}
    ids = torch.zeros(batch, size, dtype=torch.long)
    if kind == "deberta-v2":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "llama":  # given explicitly: the model would read values to build a mask
        return {"input_ids": ids, "attention_mask": torch.zeros(batch, 1, size, size, dtype=dtype), "use_cache": False}
    raise one_of("model type", kind, ("unet", "vit", "deberta-v2", "llama"), "ether/measures/steps.py")


def _model(name: str, kind: str, checkpointing: bool, layers: int, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    entry = architecture(name)
    size: dict[str, Any] = {"num_labels": 10} if entry.model_type == "vit" else {}
    if layers:
        size["layers"] = layers
    model: Any = meta_model(name, **size)
    if dtype != torch.float32:
        model = model.to(dtype)
    if checkpointing and entry.model_type == "unet":
        model.enable_gradient_checkpointing()
    elif checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if kind == "adapted":
        with torch.device("meta"), quiet():
            pattern = layer_set(entry.model_type, entry.layer_set)
            model = get_peft_model(model, LoraConfig(r=RANK, target_modules=pattern))
    return model.train()


def _output(model: Callable[[dict[str, Any]], Any], inputs: dict[str, Any]) -> torch.Tensor:
    found = model(inputs)
    output: torch.Tensor = found if isinstance(found, torch.Tensor) else found.get("sample", found.get("logits"))
    return output.float().sum()


@functools.lru_cache(maxsize=256)
def example(name: str, kind: str, size: int, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Example:
    """Counts one example.

    Args:
        name: a model of `ether.measures.architectures` with texts, images or latents as its input, or control-encoder.
        kind: adapted (LoRA of rank `RANK` on the paper's layers; other adapters are as small) | full (all weights are trained).
        size: tokens, or the side of an image, hint or latent.
        dtype: of the model; adapters are float32.
        checkpointing: blocks keep their inputs only, and are computed again in the backward pass.

    Transformers are counted with one and two layers and extrapolated, which is exact.
    """
    layers = architecture(name).layers
    if not layers:
        return Example(*_counted(name, kind, size, dtype, checkpointing, 0, 1))
    one, two = (_one_more(name, kind, size, dtype, checkpointing, depth) for depth in (1, 2))
    return Example(*(a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True)))


def _one_more(name: str, kind: str, size: int, dtype: torch.dtype, checkpointing: bool, layers: int) -> tuple[int, ...]:
    """The costs of a second example in a batch, and the sizes of the model."""
    one, two = (_counted(name, kind, size, dtype, checkpointing, layers, batch) for batch in (1, 2))
    return (*(b - a for a, b in zip(one[:3], two[:3], strict=True)), *one[3:])


def _counted(
    name: str, kind: str, size: int, dtype: torch.dtype, checkpointing: bool, layers: int, batch: int
) -> tuple[int, ...]:
    model = _model(name, kind, checkpointing, layers, dtype)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.parameters())
    plain = _model(name, kind, False, layers, dtype)
    with torch.device("meta"), quiet():
        with FlopCounterMode(display=False) as forward:
            output = _output(lambda inputs: plain(**inputs), _inputs(name, size, dtype, batch))
        with FlopCounterMode(display=False) as backward:
            output.backward()
    again = forward.get_total_flops() if checkpointing else 0  # up to the part outside blocks

    def call(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = _inputs(name, size, dtype, batch)  # fake tensors here
        return _output(lambda given: torch.func.functional_call(model, dict(state), (), given), inputs)

    return forward.get_total_flops(), backward.get_total_flops() + again, saved_by(model, call), parameters, trained
