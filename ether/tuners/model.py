"""The PEFT models: which layers are wrapped, and what cannot be done is refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import nn
from transformers.pytorch_utils import Conv1D

from ether.errors import ConfigurationError

from .config import MultiplicativeConfig
from .layer import EtherLayer, MultiplicativeLayer, NaiveLayer, _quantization_backend


class MultiplicativeModel(BaseTuner):
    """Wraps linear layers of a model; made by `peft.get_peft_model`, seldom by hand."""

    tuner_layer_cls: type[MultiplicativeLayer]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, but an adapter that does not fit one of its layers leaves none behind in the others.

        Raises what PEFT and the layers raise, such as ConfigurationError for a number of blocks that does not divide.
        """
        had = [id(module) for module in self._adapted_layers(model, adapter_name).values()]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            for key, layer in self._adapted_layers(model, adapter_name).items():
                if id(layer) in had:
                    continue
                if set(layer.settings) == {adapter_name}:
                    parent, _, name = key.rpartition(".")
                    setattr(model.get_submodule(parent), name, layer.base_layer)
                else:
                    layer.delete_adapter(adapter_name)
            raise

    def _adapted_layers(self, model: nn.Module, adapter_name: str) -> dict[str, MultiplicativeLayer]:
        """{name in the model: layer} of this method's layers that have an adapter of this name."""
        return {
            key: module
            for key, module in model.named_modules()
            if isinstance(module, self.tuner_layer_cls) and adapter_name in module.settings
        }

    def _create_and_replace(  # type: ignore[override]  # narrower than PEFT's signature, as in PEFT's own tuners
        self,
        peft_config: MultiplicativeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self.model)
        backend = _quantization_backend(base_layer, quantization.get("get_apply_tensor_subclass"))
        if not isinstance(base_layer, (nn.Linear, Conv1D)) and getattr(backend, "layer_type", None) != "linear":
            raise ConfigurationError(
                f"Layer {current_key!r} is a {type(base_layer).__name__}; {type(peft_config).__name__} adapts linear "
                "layers: nn.Linear, transformers' Conv1D, and quantised ones that PEFT knows. Change `target_modules` "
                "or add it to `exclude_modules`."
            )
        new = self.tuner_layer_cls(target, adapter_name, peft_config, layer_name=current_key, **quantization)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)  # an additional adapter is not trainable until it is made active
        self._replace_module(parent, target_name, new, target)

    def _check_merge_allowed(self) -> None:
        """Raises ConfigurationError if two adapted layers have the same weight: it cannot become two products at once."""
        super()._check_merge_allowed()
        first: dict[int, str] = {}
        for key, module in self.model.named_modules():
            if not isinstance(module, self.tuner_layer_cls) or not module.settings:
                continue
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is None or weight.device.type == "meta":  # offloaded: identity says nothing about the values
                continue
            if id(weight) in first:
                raise ConfigurationError(
                    f"Layers {first[id(weight)]!r} and {key!r} share one weight, and each has its own adapter. Merging would "
                    "write both adapters into it, and the model would compute something else. Keep the adapters unmerged, "
                    "or give one of the layers a copy first: `layer.weight = nn.Parameter(layer.weight.detach().clone())`."
                )
            first[id(weight)] = key

    def add_weighted_adapter(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a weighted sum of reflections is not a reflection."""
        raise ConfigurationError(
            f"{type(self).__name__} has no weighted sum of adapters: its adapters multiply the weight, and a sum of "
            "reflections is not a reflection. To compose several, make them active at once with "
            "`model.base_model.set_adapter([...])`, or merge one after the other."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT would drop `adapter_names` in silence and run every sample through the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise ConfigurationError(
                f"{type(self).__name__} cannot mix adapters within a batch (`adapter_names`). Run one batch per "
                "adapter, choosing it with `set_adapter`."
            )
        yield


class EtherModel(MultiplicativeModel):
    """A model adapted with ETHER or ETHER+ (`EtherConfig`)."""

    prefix = "ether_"
    tuner_layer_cls = EtherLayer


class NaiveModel(MultiplicativeModel):
    """A model adapted with the paper's control Naive (`NaiveConfig`)."""

    prefix = "naive_"
    tuner_layer_cls = NaiveLayer
