"""The adapted linear layer: ETHER, ETHER+ and Naive around a frozen base layer that is only ever called.

All three multiply the frozen weight, W -> H W H~ (Sec. 3.1; torch's `weight` is the transpose), and do it on
activations: what goes into the base layer and what comes out of it is transformed instead of W. So training needs
neither the weight's values nor its gradient, and any frozen layer will do, quantised ones included. Merging writes the
transformed weight into the base layer, with the same functions.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge, onload_layer
from peft.utils.quantization_utils import (
    ForwardOnlyQuantizationBackend,
    quantization_extra_repr,
    resolve_quantization_backend,
)
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.pytorch_utils import Conv1D

from ether.errors import ConfigurationError
from ether.reflection import (
    block_multiply,
    plain_operations_only,
    reflect,
    reflect_row_groups,
    reflected_linear,
    reflected_linear_pays,
    row_group_correction,
)

from .config import EtherConfig, MultiplicativeConfig, NaiveConfig


class MultiplicativeLayer(nn.Module, BaseTunerLayer):
    """Everything about a multiplicative adapter except the transformation itself, which subclasses give.

    With several active adapters a, b the weight becomes what merging a and then b makes of it.
    """

    # Name of the dictionary {adapter name: configuration}; which adapters this layer has.
    settings_name: str

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: MultiplicativeConfig,
        layer_name: str = "",
        get_apply_tensor_subclass: Any = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layer_name = layer_name
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # What the base layer was before merging: its weight, or the whole layer if quantised. Unmerging puts it back.
        # Keeping it is exact to the bit for every method; inverting the map is not, and ETHER+ and Naive can be
        # singular. In a list, so that it is neither saved nor counted among the model's parameters.
        self._unmerged: list[Any] = []
        self.quantization_backend = _quantization_backend(self.get_base_layer(), get_apply_tensor_subclass)
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if not in_features or not out_features:
            raise ConfigurationError(
                f"Layer {layer_name!r} is a {type(base_layer).__name__}, whose dimensions PEFT cannot tell. Leave it "
                "out with `exclude_modules`, or adapt the linear layers inside it."
            )
        self.in_features: int = in_features
        self.out_features: int = out_features
        # nn.Linear keeps its weight as (out, in), transformers' Conv1D as (in, out).
        self.weight_is_transposed = isinstance(self.get_base_layer(), Conv1D)
        self._make_containers()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    # What a subclass gives

    def _make_containers(self) -> None:
        raise NotImplementedError

    def _make_parameters(self, adapter_name: str, config: Any) -> None:
        raise NotImplementedError

    def _before(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., in): what the base layer gets instead of x."""
        raise NotImplementedError

    def _after(self, adapter_name: str, y: torch.Tensor, x: torch.Tensor, earlier: list[str]) -> torch.Tensor:
        """(..., out) -> (..., out): y is what the layer with the earlier adapters returned, x what went in."""
        return y

    def _merged_weight(self, adapter_name: str, weight: torch.Tensor) -> torch.Tensor:
        """(out, in) -> (out, in): the weight that does the same."""
        raise NotImplementedError

    # Adding adapters

    @property
    def settings(self) -> dict[str, Any]:
        return getattr(self, self.settings_name)

    def update_layer(self, adapter_name: str, config: MultiplicativeConfig) -> None:
        """Add an adapter, or make the adapter of this name anew.

        Raises ConfigurationError if the number of blocks does not divide a dimension it splits; the layer is then as before.
        """
        self._make_parameters(adapter_name, config)
        self.settings[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _drop_earlier(self, adapter_name: str) -> None:
        """Removes the parameters of an earlier adapter of this name, which the new configuration may not have."""
        for name in self.adapter_layer_names:
            container = getattr(self, name)
            if adapter_name in container:
                del container[adapter_name]

    def _check_blocks(self, config: MultiplicativeConfig, *sides: str) -> None:
        for side in sides:
            size = self.in_features if side == "input" else self.out_features
            if size % config.n_blocks:
                common = math.gcd(*(self.in_features if s == "input" else self.out_features for s in sides))
                working = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
                raise ConfigurationError(
                    f"n_blocks={config.n_blocks} does not divide the {side} dimension {size} of layer "
                    f"{self.layer_name!r}. For this layer n_blocks can be {working}; or leave the layer out with "
                    "`exclude_modules`."
                )

    # The forward pass

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (..., in) -> (..., out). Raises RuntimeError if x and the adapter are on different devices."""
        if self.disable_adapters:
            if self.merged:
                with onload_layer(self):
                    self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        active = [name for name in self.active_adapters if name in self.settings]
        if any("_hf_hook" in vars(module) for module in self._modules.values()):  # accelerate dispatched the model
            with _loaded(self) as device:
                return self._adapted(active, x if device is None else x.to(device), *args, **kwargs)
        return self._adapted(active, x, *args, **kwargs)

    def _adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # The adapter merged last is the outermost factor on both sides: first to see x, last to see y.
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        *earlier, last = adapters
        y = self._adapted(earlier, self._before(last, x), *args, **kwargs)
        return self._after(last, y, x, earlier)

    # Merging

    def _readable_weight(self, purpose: str) -> torch.Tensor:
        """The base weight as a plain floating-point tensor (out, in), dequantised if need be."""
        backend = self.quantization_backend
        if backend is not None and isinstance(backend, ForwardOnlyQuantizationBackend):
            raise ConfigurationError(
                f"{purpose} needs the values of the weight of layer {self.layer_name!r}, and {backend.backend_name} "
                "layers do not give them. Load the base model without quantisation for this; layout 'diagonal' trains "
                "and runs unmerged without them."
            )
        base_layer = self.get_base_layer()
        if getattr(getattr(getattr(base_layer, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            # In evaluation on some CPUs bitsandbytes reorders a 4-bit weight in place, and dequantising it then gives
            # nonsense without an error. Asking for the state dict makes the layer put the usual order back.
            base_layer.state_dict()
        weight = self.get_base_weight()
        return weight.T if self.weight_is_transposed else weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the transformed weight into the base layer; what was there is kept for `unmerge`, as long as merged.

        safe_merge: refuse a result that is not finite, leaving the base layer as it was. adapter_names: the active ones
        if None. A quantised base layer is quantised again after the change, which rounds it: outputs move a little.
        Raises ConfigurationError where the layer's quantisation lets its weight be neither read nor written, and for the
        first adapter whose result `safe_merge` refuses; nothing is merged then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.settings]
        if not names:
            return
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise ConfigurationError(
                f"Layer {self.layer_name!r} is quantised with {backend.backend_name}, whose weights cannot be "
                f"rewritten, so the adapter {names[0]!r} cannot be merged into it. Keep the adapter unmerged, or load "
                "the base model without quantisation."
            )
        with torch.no_grad():
            weight = self._readable_weight("Merging")
            dtype = weight.dtype
            weight = weight.to(torch.promote_types(dtype, torch.float32))  # rounded once, at the end
            for name in names:
                weight = self._merged_weight(name, weight)
                if safe_merge and not torch.isfinite(weight.to(dtype)).all():
                    raise ConfigurationError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken (layer "
                        f"{self.layer_name!r}); the base layer was left unchanged."
                    )
            weight = (weight.T if self.weight_is_transposed else weight).to(dtype).contiguous()
        if not self._unmerged:
            # The weight's tensor is replaced, not written into, so that the old one can be kept without copying it.
            self._unmerged.append(self.base_layer if backend is not None else self.get_base_layer().weight.data)
            if backend is not None:
                self.base_layer = copy.deepcopy(self.base_layer)
        self.set_base_weight(weight)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put back what the base layer was before the first merge, to the bit; anything written to it since then is lost.

        Exact also if another layer has the same weight, as long as only this one is merged: PEFT's `merge_adapter` refuses
        two adapted layers with one weight.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        before = self._unmerged.pop()
        weight: Any = getattr(self.get_base_layer(), "weight", None)
        if not isinstance(before, nn.Module):
            weight.data = before.to(device=weight.device, dtype=weight.dtype)
        elif weight is None or weight.device == before.weight.device:
            self.base_layer = before
        else:  # the model was moved while merged
            self.base_layer = before.to(weight.device)
        self.merged_adapters.clear()

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """What merging this adapter alone would add to the base weight, in the base weight's own orientation."""
        weight = self._readable_weight("The weight difference")
        delta = self._merged_weight(adapter_name, weight) - weight
        return delta.T if self.weight_is_transposed else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    # Reflections have no strength to scale: neither PEFT nor diffusers may pretend they had.

    def scale_layer(self, scale: float) -> None:
        """Part of PEFT's layer interface; a scale other than 1 is refused with a warning."""
        if scale != 1:
            warnings.warn(f"{type(self).__name__} multiplies the weight and has no scale; {scale} is ignored.", stacklevel=2)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Part of PEFT's layer interface; nothing to undo."""

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


def _quantization_backend(base_layer: nn.Module, get_apply_tensor_subclass: Any) -> Any:
    try:
        return resolve_quantization_backend(base_layer, get_apply_tensor_subclass=get_apply_tensor_subclass)
    except ValueError:
        # A torchao weight in a model that transformers did not quantise: how to quantise again is not known.
        return ForwardOnlyQuantizationBackend("torchao (quantised outside transformers)")


@contextmanager
def _loaded(layer: nn.Module) -> Iterator[Any]:
    """Keeps what accelerate has offloaded of a layer on the device that computes, and gives that device, or None.

    accelerate loads a module's tensors for the module's own call only. But the adapter's are in dictionaries, which are
    never called, and the base layer's bias and weight are read outside the base layer's call. PEFT's `onload_layer` is
    for merging: it also writes the base weight back, to the disk if it is there.
    """
    loaded: list[tuple[nn.Module, AlignDevicesHook]] = []
    try:
        for module in layer.modules():
            outer = getattr(module, "_hf_hook", None)
            for hook in getattr(outer, "hooks", (outer,)):  # a SequentialHook has several
                if isinstance(hook, AlignDevicesHook) and hook.offload:
                    hook.pre_forward(module)
                    hook.offload = False  # the base layer's own call neither loads it again nor sends it back
                    loaded.append((module, hook))
        yield loaded[0][1].execution_device if loaded else None
    finally:
        for module, hook in loaded:
            hook.offload = True
            hook.post_forward(module, torch.empty(0))


class EtherLayer(MultiplicativeLayer):
    """ETHER or ETHER+ around a linear layer.

    Parameters of adapter `name`, each (n_blocks, side / n_blocks): `ether_u[name]` and, for ETHER+, `ether_v[name]` for
    the input side; `ether_u_out[name]`, `ether_v_out[name]` for the output side.
    """

    adapter_layer_names = ("ether_u", "ether_v", "ether_u_out", "ether_v_out")
    other_param_names = ("ether_dropout", "ether_settings")
    settings_name = "ether_settings"

    def _make_containers(self) -> None:
        self.ether_settings: dict[str, EtherConfig] = {}
        self.ether_dropout = nn.ModuleDict({})
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))

    def _make_parameters(self, adapter_name: str, config: EtherConfig) -> None:
        sides = [side for side in ("input", "output") if config.sides in (side, "both")]
        release = config.layout == "release" and config.n_blocks > 1 and "input" in sides
        self._check_blocks(config, *(("input", "output") if release else sides))
        if release:
            self._readable_weight("Layout 'release'")  # fails now rather than in the first forward pass
        self._drop_earlier(adapter_name)
        self.ether_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        for side, suffix in (("input", ""), ("output", "_out")):
            if side not in sides:
                continue
            size = self.in_features if side == "input" else self.out_features
            for letter in "uv" if config.relaxed else "u":
                container = getattr(self, f"ether_{letter}{suffix}")
                container[adapter_name] = nn.Parameter(torch.empty(config.n_blocks, size // config.n_blocks))
                if letter == "v" and config.init_weights:
                    with torch.no_grad():
                        container[adapter_name].copy_(getattr(self, f"ether_u{suffix}")[adapter_name])
                else:
                    # Only directions matter to the result, but lengths set how far one optimiser step turns them.
                    # This bound gives blocks of length 1 / sqrt(3 n), as the released code does; the paper's learning
                    # rates assume it.
                    nn.init.uniform_(container[adapter_name], -1 / math.sqrt(size), 1 / math.sqrt(size))

    def _vectors(self, adapter_name: str, suffix: str = "") -> tuple[torch.Tensor, torch.Tensor | None] | None:
        u = getattr(self, "ether_u" + suffix)
        if adapter_name not in u:
            return None
        v = getattr(self, "ether_v" + suffix)
        return u[adapter_name], v.get(adapter_name, None)

    def _is_release(self, adapter_name: str) -> bool:
        config = self.ether_settings[adapter_name]
        return config.layout == "release" and config.n_blocks > 1

    def _adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(adapters) == 1 and not args and not kwargs and self._is_plain(adapters[0], x):
            base_layer: Any = self.base_layer
            inputs, outputs = self._vectors(adapters[0]), self._vectors(adapters[0], "_out")
            if reflected_linear_pays(x.numel() // x.shape[-1], self.in_features, self.out_features, inputs, outputs):
                return reflected_linear(x, base_layer.weight, base_layer.bias, inputs, outputs)
        return super()._adapted(adapters, x, *args, **kwargs)

    def _is_plain(self, adapter_name: str, x: torch.Tensor) -> bool:
        """Whether calling the base layer is nothing but a product with a frozen weight on the CPU, in x's own precision.

        On CUDA the fused kernels around the untouched layer are the faster way; a compiler sees plain operations there.
        """
        base, config = self.base_layer, self.ether_settings[adapter_name]
        if type(base) is not nn.Linear or self._is_release(adapter_name) or (self.training and config.dropout):
            return False
        if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
            return False
        if "forward" in vars(base) or _has_any_global_hook():
            return False  # someone, perhaps accelerate or a profiler, has the layer do more
        weight, bias = base.weight, base.bias
        vectors = self._vectors(adapter_name) or self._vectors(adapter_name, "_out")
        return (
            type(weight) is nn.Parameter
            and x.device.type == weight.device.type == "cpu"
            and vectors is not None
            and x.dtype == weight.dtype == vectors[0].dtype
            and x.dtype in (torch.float32, torch.float64)
            and not weight.requires_grad
            and not (bias is not None and bias.requires_grad)
            and not torch.is_autocast_enabled("cpu")
            and not plain_operations_only()
        )

    def _before(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        vectors = self._vectors(adapter_name)
        if vectors is None or self._is_release(adapter_name):
            return x
        if self.training and self.ether_settings[adapter_name].dropout:
            dropped = self.ether_dropout[adapter_name](x)
            return x + (reflect(dropped, *vectors) - dropped)
        return reflect(x, *vectors)

    def _after(self, adapter_name: str, y: torch.Tensor, x: torch.Tensor, earlier: list[str]) -> torch.Tensor:
        dropout = self.ether_dropout[adapter_name]
        vectors = self._vectors(adapter_name)
        if vectors is not None and self._is_release(adapter_name):
            weight = self._readable_weight("Layout 'release'")
            for name in earlier:
                weight = self._merged_weight(name, weight)
            y = y + row_group_correction(dropout(x), weight, *vectors).to(y.dtype)
        vectors = self._vectors(adapter_name, "_out")
        if vectors is None:
            return y
        bias = getattr(self.get_base_layer(), "bias", None)  # y carries it, and H~ must not touch it
        if self.training and self.ether_settings[adapter_name].dropout:
            dropped = dropout(y if bias is None else y - bias.to(y.dtype))
            return y + (reflect(dropped, *vectors) - dropped)
        return reflect(y, *vectors, bias)

    def _merged_weight(self, adapter_name: str, weight: torch.Tensor) -> torch.Tensor:
        vectors = self._vectors(adapter_name)
        if vectors is not None:
            weight = (reflect_row_groups if self._is_release(adapter_name) else reflect)(weight, *vectors)
        vectors = self._vectors(adapter_name, "_out")
        return weight if vectors is None else reflect(weight.T, *vectors).T

    def __repr__(self) -> str:
        return "ether." + super().__repr__()


class NaiveLayer(MultiplicativeLayer):
    """Naive around a linear layer; adapter `name` has `naive_blocks[name]`, (n_blocks, d/n_blocks, d/n_blocks)."""

    adapter_layer_names = ("naive_blocks",)
    other_param_names = ("naive_dropout", "naive_settings")
    settings_name = "naive_settings"

    def _make_containers(self) -> None:
        self.naive_settings: dict[str, NaiveConfig] = {}
        self.naive_dropout = nn.ModuleDict({})
        self.naive_blocks = nn.ParameterDict({})

    def _make_parameters(self, adapter_name: str, config: NaiveConfig) -> None:
        self._check_blocks(config, "input")
        self._drop_earlier(adapter_name)
        size = self.in_features // config.n_blocks
        self.naive_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.naive_blocks[adapter_name] = nn.Parameter(torch.empty(config.n_blocks, size, size))
        blocks = self.naive_blocks[adapter_name]
        with torch.no_grad():
            blocks.copy_(torch.eye(size, device=blocks.device).expand_as(blocks))
            if not config.init_weights:
                blocks.add_(torch.randn_like(blocks), alpha=1 / math.sqrt(size))

    def _before(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        blocks = self.naive_blocks[adapter_name]
        if self.training and self.naive_settings[adapter_name].dropout:
            dropped = self.naive_dropout[adapter_name](x)
            return x + (block_multiply(dropped, blocks) - dropped)
        return block_multiply(x, blocks)

    def _merged_weight(self, adapter_name: str, weight: torch.Tensor) -> torch.Tensor:
        return block_multiply(weight, self.naive_blocks[adapter_name].transpose(1, 2))

    def __repr__(self) -> str:
        return "naive." + super().__repr__()
