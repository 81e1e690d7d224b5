"""From a method's YAML to an adapted model. Knows every kind of adaptation and no experiment.

``kind: peft`` covers any PEFT type, ETHER included. Beside it stand full fine-tuning, BitFit, the linear probe and the
two bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021), which PEFT does not have, and ``none``: the
pretrained model as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

import ether
import ether.methods.boft  # noqa: F401 - all of BOFT's butterfly factors on every device
from ether.errors import ConfigurationError, one_of
from ether.methods.layer_sets import BLOCK_OUTPUTS, layer_set

# --- PEFT ------------------------------------------------------------------------------------------------------

# Configs name their target argument alike; what a method's YAML may not say, since the experiment decides it:
RESERVED = ("task_type", "modules_to_save", "peft_type", "inference_mode", "base_model_name_or_path")


def peft_config_class(name: str) -> type[peft.PeftConfig]:
    """The config class of a PEFT type, ETHER and NAIVE included.

    Raises:
        ConfigurationError: PEFT has no such type.
    """
    known = {str(getattr(key, "value", key)): value for key, value in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name not in known:
        raise one_of("PEFT type", name, known, "adapt.type")
    return known[name]


def check_arguments(method_id: str, adapt: Mapping[str, Any]) -> None:
    """Checks the names a method's YAML passes to a PEFT config, before anything is loaded.

    Raises:
        ConfigurationError: unknown PEFT type or argument, or one that the experiment decides.
    """
    if adapt["kind"] != "peft":
        return
    where = f"workflow/methods/{method_id}.yaml"
    fields = [f.name for f in dataclasses.fields(peft_config_class(adapt["type"])) if f.init]
    for name in adapt.get("config", {}):
        if name in RESERVED:
            raise ConfigurationError(f"{where} sets adapt.config.{name}, which the experiment decides: remove it.")
        if name not in fields:
            raise one_of(f"{adapt['type']} parameter", name, set(fields) - set(RESERVED), where)


def resolve(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces ``$name`` in a config's values by the run's hyperparameter of that name.

    Raises:
        ConfigurationError: no such hyperparameter.
    """
    resolved = {}
    for key, value in config.items():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in values:
                raise one_of("hyperparameter", value, [f"${name}" for name in values], f"adapt.config.{key}")
            value = values[value[1:]]
        resolved[key] = value
    return resolved


def step_values(total_steps: int) -> dict[str, int]:
    """What ``$total_steps``, ``$tenth_of_steps`` and ``$half_of_steps`` stand for in a method's config."""
    return {
        "total_steps": total_steps,
        "tenth_of_steps": max(1, total_steps // 10),
        "half_of_steps": max(1, total_steps // 2),
    }


# --- bottleneck adapters ---------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Wraps a sub-layer's output projection: ``y = W x + b`` becomes ``y + up(act(down(y)))``.

    Shapes: input (..., d_in), output (..., d_out); ``down`` is d_out -> size, ``up`` size -> d_out and starts at zero,
    so that the wrapped model starts as the pretrained one (Houlsby et al. 2019, Sec. 2.1 asks for near-identity).
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
        """Output of the frozen projection with the bottleneck's correction added."""
        y = self.base(x)
        return y + self.up(self.act(self.down(y)))


def _add_bottlenecks(model: nn.Module, adapt: Mapping[str, Any], model_type: str) -> None:
    outputs = BLOCK_OUTPUTS.get(model_type)
    if outputs is None:
        raise one_of("architecture", model_type, BLOCK_OUTPUTS, "ether/methods/layer_sets.py, BLOCK_OUTPUTS")
    patterns = [re.compile(outputs[place]) for place in adapt["after"]]
    # "output.dense" also ends "attention.output.dense": the longest pattern that matches says which one it is.
    attention = re.compile(outputs["attention"])
    for name, module in list(model.named_modules()):
        wanted = any(p.fullmatch(name) for p in patterns)
        if wanted and "attention" not in adapt["after"]:
            wanted = not attention.fullmatch(name)
        if not wanted:
            continue
        parent, _, child = name.rpartition(".")
        wrapped = Bottleneck(module, adapt["size"], adapt.get("activation", "gelu"))  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), child, wrapped)


def architecture(model: nn.Module) -> str:
    """The name by which `ether.methods.layer_sets` knows a model: transformers' ``model_type``, or "unet" for diffusers' UNets,
    whose configuration has none.

    Raises:
        ConfigurationError: the model's configuration says neither.
    """
    config: Any = model.config
    if hasattr(config, "model_type"):
        return str(config.model_type)
    name = str(config.get("_class_name", "")) or type(model).__name__
    if not name.startswith("UNet"):
        raise ConfigurationError(f"A {name} has no `model_type`, and no layer sets are known for it in ether/methods/layer_sets.py.")
    return "unet"


# --- the one entry ---------------------------------------------------------------------------------------------


def adapt(
    model: nn.Module,
    how: Mapping[str, Any],
    *,
    layers: str,
    head: Sequence[str],
    task_type: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Prepares a pretrained model for tuning with one method: freezes what stays, adds what is trained.

    Args:
        model: a transformers or diffusers model; `architecture` chooses the layer names.
        how: the ``adapt`` section of a method's YAML.
        layers: named layer set that PEFT types adapt (``ether.methods.layer_sets``), unless ``how`` names its own.
        head: names of modules trained in full beside any adapter.
        task_type: PEFT's task type, as "SEQ_CLS".
        values: hyperparameters that ``$name`` in the method's config may stand for.

    Returns:
        The model to train; for PEFT types a ``PeftModel`` around the one given.

    Raises:
        ConfigurationError: unknown type, parameter, layer set or head; a block count that divides no dimension.
    """
    kind, head = how["kind"], how.get("head", head)
    model_type = architecture(model)
    names = dict(model.named_modules())
    for part in head:
        if part not in names:
            raise one_of("head module", part, [n for n in names if n and n.count(".") < 2], f"the {model_type} model")

    if kind == "peft":
        config_class = peft_config_class(how["type"])
        arguments = resolve(how.get("config", {}), values or {})
        fields = {f.name for f in dataclasses.fields(config_class)}
        if "target_modules" in fields:  # a method that adapts no linear layers (LN_TUNING) names its own
            arguments.setdefault("target_modules", layer_set(model_type, how.get("layers", layers)))
        if head:
            if "modules_to_save" not in fields:
                raise ConfigurationError(f"PEFT type {how['type']} cannot train the head {', '.join(head)} beside it.")
            arguments["modules_to_save"] = list(head)
        try:
            config = config_class(task_type=task_type, **arguments)
            adapted = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        except ConfigurationError:
            raise
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise ConfigurationError(f"PEFT refuses {how['type']} with {arguments}: {error}") from error
        return adapted

    model.requires_grad_(kind == "full")
    if kind == "bitfit":
        encoder: Any = model.base_model
        for name, parameter in encoder.named_parameters():  # the encoder's; the head is trained whole or not
            parameter.requires_grad_(name.endswith("bias"))
    elif kind == "bottleneck":
        _add_bottlenecks(model, how, model_type)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".down." in name or ".up." in name)
    elif kind not in ("full", "linear-probe", "none"):
        raise one_of("kind of adaptation", kind, ("peft", "full", "bitfit", "linear-probe", "bottleneck", "none"))
    for part in head if kind != "none" else ():
        model.get_submodule(part).requires_grad_(True)
    return model


def trainable(model: nn.Module) -> int:
    """Number of parameters that get a gradient, head included."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def total(model: nn.Module) -> int:
    """Number of the model's parameters, without the second copy PEFT keeps of a head that is trained in full."""
    copies = {
        id(p)
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for p in module.original_module.parameters()
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in copies)
