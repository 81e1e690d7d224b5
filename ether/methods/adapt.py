"""Adapts a model according to the ``adapt`` section of a method's YAML file.

``kind: peft`` covers any PEFT type, including ETHER. The other kinds are full fine-tuning, BitFit, the linear probe, the
bottleneck adapters of `ether.methods.bottleneck`, ``frozen``, where only what an experiment adds to the model is trained (the
encoder of a control signal), and ``none``, the unchanged pretrained model without training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

import ether.methods.boft
import ether.tuners  # noqa: F401 - registers ETHER and NAIVE with PEFT; boft: all butterfly factors on every device
from ether.errors import ConfigurationError, EtherError, one_of
from ether.methods.bottleneck import add_bottlenecks
from ether.methods.layer_sets import layer_set
from ether.methods.oft import official_radius
from ether.tuners.layer import EtherLayer

KINDS = ("peft", "full", "bitfit", "linear-probe", "bottleneck", "frozen", "none")

# --- PEFT ------------------------------------------------------------------------------------------------------

# Arguments that a method's YAML must not set, because the experiment sets them.
RESERVED = ("task_type", "modules_to_save", "peft_type", "inference_mode", "base_model_name_or_path")
# Types that prepend trained vectors to the tokens of a text -> the task types that PEFT supports for them
PROMPT_LEARNING = {
    "PROMPT_TUNING": ("SEQ_CLS", "CAUSAL_LM"),
    "P_TUNING": ("SEQ_CLS", "CAUSAL_LM"),
    "PREFIX_TUNING": ("CAUSAL_LM",),  # these two use the key-value cache, which encoders do not have
    "CARTRIDGE": ("CAUSAL_LM",),
}
# Types that PEFT builds but that cannot be trained on the batches of an experiment -> the data they need
NEEDS_MORE = {
    "MULTITASK_PROMPT_TUNING": "the number of a task (`task_ids`) with every example",
    "POLY": "the number of a task (`task_ids`) with every example",
    "CPT": "the kind of every token (`input_type_mask`) with every example",
}


def peft_config_class(name: str, where: str = "adapt.type") -> type[peft.PeftConfig]:
    """The config class of a PEFT type, including ETHER and NAIVE.

    Args:
        name: the type, in capitals.
        where: the setting that names it, for the message.

    Raises:
        ConfigurationError: PEFT has no such type.
    """
    known = {str(getattr(key, "value", key)): value for key, value in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name not in known:
        raise one_of("PEFT type", name, known, where)
    return known[name]


def check_arguments(method: str, adapt: Mapping[str, Any]) -> None:
    """Checks the type and the argument names that a method's YAML passes to PEFT, before anything is loaded.

    Args:
        method: stem of the method's file.
        adapt: its ``adapt`` section.

    Raises:
        ConfigurationError: unknown PEFT type or argument, an argument that the experiment sets, or a type that needs
            data that no experiment has.
    """
    if adapt["kind"] != "peft":
        return
    where = f"workflow/methods/{method}.yaml"
    config_class = peft_config_class(adapt["type"], f"{where}, adapt.type")
    if adapt["type"] in NEEDS_MORE:
        raise ConfigurationError(
            f"{where}: PEFT type {adapt['type']} needs {NEEDS_MORE[adapt['type']]}, which the data of the experiments do "
            "not have, so it cannot be trained here. Remove the file, or choose another type."
        )
    fields = [f.name for f in dataclasses.fields(config_class) if f.init]
    arguments = adapt.get("config", {})
    for name in arguments:
        if name in RESERVED:
            raise ConfigurationError(f"{where} sets adapt.config.{name}, which the experiment sets: remove it.")
        if name not in fields:
            raise one_of(f"{adapt['type']} parameter", name, set(fields) - set(RESERVED), where)
    if "num_virtual_tokens" in fields and adapt["type"] in PROMPT_LEARNING and not arguments.get("num_virtual_tokens"):
        raise ConfigurationError(
            f"{where}: PEFT type {adapt['type']} needs adapt.config.num_virtual_tokens, the number of trained vectors."
        )


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
    """The values of ``$total_steps``, ``$tenth_of_steps`` and ``$half_of_steps`` in a method's config."""
    return {
        "total_steps": total_steps,
        "tenth_of_steps": max(1, total_steps // 10),
        "half_of_steps": max(1, total_steps // 2),
    }


def _check_prompt_learning(name: str, config_class: type[peft.PeftConfig], task_type: str | None) -> None:
    """Raises a ConfigurationError for prompt-learning types on models for which PEFT does not support them."""
    if not issubclass(config_class, peft.PromptLearningConfig):
        return
    if name in NEEDS_MORE:
        raise ConfigurationError(f"PEFT type {name} needs {NEEDS_MORE[name]}, which the data of the experiments do not have.")
    possible = PROMPT_LEARNING.get(name, ())
    if task_type not in possible:
        model = f"a model with task type {task_type}" if task_type else "a model that reads no text tokens"
        raise ConfigurationError(
            f"PEFT type {name} prepends trained vectors to the tokens of a text, which PEFT supports for the task types "
            f"{' and '.join(possible) or '(none here)'} only; this experiment adapts {model}. Remove this experiment from "
            "`training` of the method's file, or leave the method out of the experiment's `methods`."
        )


def _check_block_sizes(model: nn.Module) -> None:
    """Raises a ConfigurationError for blocks of size 1: the block is -1 (ETHER) or 1 (ETHER+), independent of its vectors."""
    for name, layer in model.named_modules():
        if not isinstance(layer, EtherLayer):
            continue
        for adapter, config in layer.ether_settings.items():
            for side, size in (("input", layer.in_features), ("output", layer.out_features)):
                if config.sides in (side, "both") and size == config.n_blocks:
                    effect = "ETHER+ changes nothing there" if config.relaxed else "ETHER only flips a sign there"
                    raise ConfigurationError(
                        f"n_blocks={config.n_blocks} makes blocks of size 1 on the {side} side of layer {name!r}, whose "
                        f"dimension is {size}: {effect}, and its vectors have no effect on the output (adapter {adapter!r}). "
                        "Choose a smaller n_blocks in adapt.config of the method's file."
                    )


def _with_peft(
    model: nn.Module,
    how: Mapping[str, Any],
    layers: str,
    head: Sequence[str],
    task_type: str | None,
    values: Mapping[str, Any],
) -> nn.Module:
    name, config_class = how["type"], peft_config_class(how["type"])
    _check_prompt_learning(name, config_class, task_type)
    arguments = resolve(how.get("config", {}), values)
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "target_modules" in fields:  # a method that adapts no linear layers (LN_TUNING) sets it
        arguments.setdefault("target_modules", layer_set(architecture(model), how.get("layers", layers)))
    if head:
        if "modules_to_save" not in fields:
            raise ConfigurationError(f"PEFT type {name} cannot train the head {', '.join(head)} in addition to the adapter.")
        arguments["modules_to_save"] = list(head)
    try:
        config = config_class(task_type=task_type, **arguments)
        adapted = peft.get_peft_model(model, config)  # type: ignore[arg-type]
    except (EtherError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and any(p.is_meta for p in model.parameters()):
            raise  # SHiRA and others read the values of the weights, which the meta device does not have
        raise ConfigurationError(f"PEFT rejects {name} with {arguments}: {type(error).__name__}: {error}") from error
    _check_block_sizes(adapted)
    return official_radius(adapted)


# --- adaptation ------------------------------------------------------------------------------------------------


def architecture(model: nn.Module) -> str:
    """The key of a model in `ether.methods.layer_sets`: transformers' ``model_type``, or "unet" for diffusers' UNets, whose
    configuration has none.

    Raises:
        ConfigurationError: the model's configuration has neither.
    """
    config: Any = model.config
    if hasattr(config, "model_type"):
        return str(config.model_type)
    name = str(config.get("_class_name", "")) or type(model).__name__
    if not name.startswith("UNet"):
        raise ConfigurationError(
            f"A {name} has no `model_type`, and no layer sets are known for it in ether/methods/layer_sets.py."
        )
    return "unet"


def adapt(
    model: nn.Module,
    how: Mapping[str, Any],
    *,
    layers: str,
    head: Sequence[str],
    task_type: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Prepares a pretrained model for tuning with one method: freezes parameters and adds the adapter.

    Args:
        model: a transformers or diffusers model; `architecture` chooses the layer names.
        how: the ``adapt`` section of a method's YAML.
        layers: named layer set that PEFT types adapt (`ether.methods.layer_sets`), unless ``how`` names another one.
        head: names of modules that are trained in full in addition to the adapter.
        task_type: PEFT's task type, such as "SEQ_CLS".
        values: hyperparameters that replace ``$name`` in the method's config.

    Returns:
        The model to train; for PEFT types a ``PeftModel`` around the one given.

    Raises:
        ConfigurationError: unknown kind, type, parameter, layer set or head; a block count that does not divide a
            dimension, or gives blocks of size 1; a prompt-learning type that the model does not support; any other error
            that PEFT raises.
        RuntimeError: raised by torch if the model is on the meta device and this PEFT type reads the values of the weights.
    """
    kind, head = how["kind"], how.get("head", head)
    if kind not in KINDS:
        raise one_of("kind of adaptation", kind, KINDS, "adapt.kind")
    model_type = architecture(model)
    names = dict(model.named_modules())
    for part in head:
        if part not in names:
            raise one_of("head module", part, [n for n in names if n and n.count(".") < 2], f"the {model_type} model")
    if kind == "peft":
        return _with_peft(model, how, layers, head, task_type, values or {})

    model.requires_grad_(kind == "full")
    if kind == "bitfit":
        encoder: Any = model.base_model
        for name, parameter in encoder.named_parameters():  # biases of the encoder; the head is trained completely or not at all
            parameter.requires_grad_(name.endswith("bias"))
    elif kind == "bottleneck":
        add_bottlenecks(model, how, model_type)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".down." in name or ".up." in name)
    for part in head if kind not in ("none", "frozen") else ():
        model.get_submodule(part).requires_grad_(True)
    return model


# --- counting --------------------------------------------------------------------------------------------------


def trainable(model: nn.Module) -> int:
    """Number of parameters that get a gradient, including the head."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def total(model: nn.Module) -> int:
    """Number of the model's parameters, without PEFT's second copy of a head that is trained in full."""
    copies = {
        id(p)
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for p in module.original_module.parameters()
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in copies)
