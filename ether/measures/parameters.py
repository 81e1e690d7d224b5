"""Trainable parameters, counted on models of the real architectures without weights.

`count` returns two numbers for a method: the number of trainable parameters of the adapted model (as counted by PEFT), and
the count under a named convention. A convention is a name in `CONVENTIONS` or a sum of `TERMS` written as text ("low-rank",
"reflection + head"). Each term is a closed form over the shapes of the adapted layers; a layer `d -> f` has a weight W of
d x f, as in the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ether.errors import ConfigurationError, one_of
from ether.measures.architectures import architecture, meta_model
from ether.methods import adapt as methods
from ether.methods.layer_sets import layer_set as layer_set_pattern
from ether.silence import quiet


class Shape(NamedTuple):
    """One adapted layer: `d` inputs, `f` outputs (the paper's W is d x f)."""

    d: int
    f: int


def shapes(model: nn.Module, pattern: str) -> tuple[Shape, ...]:
    """Shapes of the linear layers whose full name matches `pattern`, as for PEFT's target_modules."""
    return tuple(
        Shape(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)
    )


# --- terms: closed forms over the adapted layers ----------------------------------------------------------------------


def low_rank(layers: Sequence[Shape], rank: int) -> int:
    """LoRA: sum of r(d + f) (Hu et al., 2022; Sec. 4 of the paper)."""
    return sum(rank * (d + f) for d, f in layers)


def adaptive_low_rank(layers: Sequence[Shape], rank: int) -> int:
    """AdaLoRA with its budget spread evenly: sum of r(d + f + 1), one singular value per triplet (Zhang et al., 2023)."""
    return sum(rank * (d + f + 1) for d, f in layers)


def vector_scales(layers: Sequence[Shape], rank: int) -> int:
    """VeRA: sum of f + r, two scaling vectors; its random matrices are shared and frozen (Kopiczko et al., 2023)."""
    return sum(f + rank for _, f in layers)


def reflection(layers: Sequence[Shape]) -> int:
    """ETHER: sum of d, one vector of d entries per layer for any number of blocks (Sec. 3.2, 3.4)."""
    return sum(d for d, _ in layers)


def relaxed_reflection(layers: Sequence[Shape], sides: str = "both") -> int:
    """ETHER+: two vectors u, v per side; sum of 2d on the input, 2f on the output, 2(d + f) on both (Sec. 3.3)."""
    per_layer = {"input": lambda d, f: 2 * d, "output": lambda d, f: 2 * f, "both": lambda d, f: 2 * (d + f)}
    if sides not in per_layer:
        raise one_of("sides", sides, per_layer)
    return sum(per_layer[sides](d, f) for d, f in layers)


def orthogonal_half(layers: Sequence[Shape], block: Callable[[int], int]) -> int:
    """OFT as counted in App. C, half of the trained tensors: sum of n b^2 / 2 with b = d / n."""
    return sum(d * block(d) // 2 for d, _ in layers)


def orthogonal_skew(layers: Sequence[Shape], block: Callable[[int], int], factors: int = 1) -> int:
    """OFT's degrees of freedom, the strict upper triangle of each skew-symmetric block: sum of n b(b - 1) / 2.

    BOFT has `factors` (its m) such block-diagonal matrices per layer (Liu et al., 2023).
    """
    return factors * sum(d * (block(d) - 1) // 2 for d, _ in layers)


def block_diagonal(layers: Sequence[Shape], block: Callable[[int], int]) -> int:
    """Full square blocks: sum of n b^2. The trained tensors of official OFT and of Naive (Sec. 5.3)."""
    return sum(d * block(d) for d, _ in layers)


def outputs(layers: Sequence[Shape]) -> int:
    """One scalar per output neuron: sum of f (OFT's magnitude re-fitting; a scale or a bias)."""
    return sum(f for _, f in layers)


def bottleneck(hidden: int, size: int, places: int, bias: bool = True) -> int:
    """Adapters of `places` bottlenecks hidden -> size -> hidden: 2 x hidden x size weights and size + hidden biases."""
    return places * (2 * hidden * size + (size + hidden if bias else 0))


@dataclass(frozen=True)
class Site:
    """The arguments of a term: the model, the shapes of its adapted layers, and the method's settings."""

    model: nn.Module
    layers: tuple[Shape, ...]
    config: Mapping[str, Any]
    head: tuple[str, ...]

    def setting(self, *names: str, default: Any = None) -> Any:
        """The first of these settings in the method's config, or the default; raises ConfigurationError if there is neither."""
        for name in names:
            if self.config.get(name):
                return self.config[name]
        if default is None:
            raise ConfigurationError(
                f"This counting convention needs the setting {' or '.join(names)} in the method's config; it has "
                f"{', '.join(self.config) or 'none'}."
            )
        return default

    def block(self, d: int) -> int:
        """Side length of the diagonal blocks of a d x d transformation, from a block size or a number of blocks."""
        size = next((self.config[k] for k in ("oft_block_size", "boft_block_size") if self.config.get(k)), 0)
        if size:
            return int(size)
        blocks = self.setting("n_blocks", "boft_block_num", "r")
        if d % blocks:
            raise ConfigurationError(f"{blocks} blocks do not divide a dimension of {d}; choose a divisor of it.")
        return int(d // blocks)

    def backbone(self) -> nn.Module:
        """The model without head and pooler (transformers' `base_model`)."""
        return getattr(self.model, "base_model", self.model)

    def in_head(self) -> int:
        modules = dict(self.model.named_modules())
        return sum(p.numel() for name in self.head if name in modules for p in modules[name].parameters())

    def layer_norms(self) -> int:
        """One LayerNorm, weight and bias, in every transformer layer."""
        config: Any = self.backbone().config
        return 2 * config.hidden_size * config.num_hidden_layers

    def bottleneck(self, bias: bool) -> int:
        config: Any = self.backbone().config
        return bottleneck(
            config.hidden_size,
            self.setting("size"),
            len(self.setting("after")) * config.num_hidden_layers,
            bias,
        )


TERMS: dict[str, Callable[[Site], int]] = {
    "nothing": lambda site: 0,
    "everything": lambda site: sum(p.numel() for p in site.model.parameters()),
    "backbone": lambda site: sum(p.numel() for p in site.backbone().parameters()),
    "head": Site.in_head,
    "biases": lambda site: sum(p.numel() for name, p in site.backbone().named_parameters() if name.rpartition(".")[2] == "bias"),
    "bottleneck": lambda site: site.bottleneck(bias=True),
    "bottleneck-without-biases": lambda site: site.bottleneck(bias=False),
    "layer-norms": Site.layer_norms,
    "low-rank": lambda site: low_rank(site.layers, site.setting("r")),
    "adaptive-low-rank": lambda site: adaptive_low_rank(site.layers, site.setting("target_r", "init_r")),
    "vector-scales": lambda site: vector_scales(site.layers, site.setting("r")),
    "reflection": lambda site: reflection(site.layers),
    "relaxed-reflection": lambda site: relaxed_reflection(site.layers, site.setting("sides", default="both")),
    "orthogonal-half": lambda site: orthogonal_half(site.layers, site.block),
    "orthogonal-skew": lambda site: orthogonal_skew(site.layers, site.block, site.setting("boft_n_butterfly_factor", default=1)),
    "block-diagonal": lambda site: block_diagonal(site.layers, site.block),
    "outputs": lambda site: outputs(site.layers),
}

# Named sums of terms, used for rows of the paper's tables.
CONVENTIONS: dict[str, str] = {
    "reflection-with-head": "reflection + head",
    "skew-plus-outputs": "orthogonal-skew + outputs",
    "half-plus-outputs": "orthogonal-half + outputs",
    "skew-plus-two-outputs": "orthogonal-skew + outputs + outputs",
}


def by_convention(site: Site, convention: str) -> int:
    """The count under a convention: a name in CONVENTIONS, or names in TERMS joined by " + "."""
    return sum(TERMS[term](site) for term in terms_of(convention))


def terms_of(convention: str, where: str = "") -> list[str]:
    """The terms of a convention (see `by_convention`).

    Args:
        convention: its name, or its terms.
        where: the setting that names it, for the message.

    Raises:
        ConfigurationError: an unknown term.
    """
    terms = CONVENTIONS.get(convention, convention).split(" + ")
    for term in terms:
        if term not in TERMS:
            raise one_of("term", term, [*TERMS, *CONVENTIONS], where or f"the counting convention {convention!r}")
    return terms


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """The number of a method's parameters: under a convention, and as trained (including the head)."""

    exact: int  # under the convention
    trained: int
    convention: str
    note: str = ""


# Step counts that a `$name` in a method's config may refer to. They change no shape, so any valid number can be used.
_STEPS = 100


def settings(adapt: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` of a method's `adapt` section with a valid number for each `$name`, a hyperparameter of the run.

    These hyperparameters change no shape: step counts are those of a run of 100 steps, all others (dropout) are 0.
    """
    neutral = methods.step_values(_STEPS)
    found = (adapt.get("config") or {}).items()
    return {k: neutral.get(v[1:], 0) if isinstance(v, str) and v.startswith("$") else v for k, v in found}


def site(method: Mapping[str, Any], architecture_name: str, layer_set: str | None = None, **head: int) -> Site:
    """The arguments of the terms for a method and an architecture. Arguments as for `count`."""
    entry = architecture(architecture_name)
    how = {key: value for key, value in method["adapt"].items() if key != "config"}
    set_name = layer_set or how.get("layers") or entry.layer_set
    model = _reference(architecture_name, tuple(head.items()))
    pattern = layer_set_pattern(entry.model_type, set_name) if entry.model_type else ""
    return Site(model, shapes(model, pattern) if pattern else (), {**how, **settings(method["adapt"])}, entry.head)


def count(
    method: Mapping[str, Any],
    architecture_name: str,
    convention: str | None = None,
    *,
    layer_set: str | None = None,
    adapt: Callable[[nn.Module, Mapping[str, Any]], nn.Module] | None = None,
    **head: int,
) -> Count:
    """Counts a method's parameters for an architecture.

    Args:
        method: content of a method's YAML: `adapt: {kind, type, config}`, and optionally
            `parameters: {convention, note}`.
        architecture_name: a key of ARCHITECTURES.
        convention: counting convention; by default the method's `parameters.convention` or, without one, the number of trained
            parameters.
        layer_set: a name in ether.methods.layer_sets; by default the layer set that the paper adapts in that architecture.
        adapt: (model, the method's `adapt` section) -> adapted model, used instead of `ether.methods.adapt`; it is
            called with the meta model and the meta device as default device.
        head: passed to `meta_model`.

    Raises:
        ConfigurationError: unknown architecture, layer set, kind, PEFT type, setting or term.
    """
    entry = architecture(architecture_name)
    here = site(method, architecture_name, layer_set, **head)
    how = method["adapt"]
    set_name = layer_set or how.get("layers") or entry.layer_set

    if adapt is not None:
        trained = _trained(lambda bare: adapt(bare, how), architecture_name, head)
    elif how["kind"] == "peft":
        pattern = layer_set_pattern(entry.model_type, set_name)
        config = json.dumps(settings(how), sort_keys=True)
        trained = _peft_count(architecture_name, how["type"], config, pattern, tuple(head.items()))
    elif how["kind"] in ("full", "frozen", "none"):
        trained = by_convention(here, "everything" if how["kind"] == "full" else "nothing")
    else:

        def apply(bare: nn.Module) -> nn.Module:
            return methods.adapt(bare, how, layers=set_name, head=entry.head)

        trained = _trained(apply, architecture_name, head)

    declared = method.get("parameters") or {}
    named = convention or declared.get("convention") or ""
    return Count(
        exact=by_convention(here, named) if named else trained,
        trained=trained,
        convention=named or "trained",
        note=declared.get("note", ""),
    )


@functools.cache
def _reference(name: str, head: tuple[tuple[str, int], ...]) -> nn.Module:
    """The meta model without adapters, cached for functions that only read its shapes."""
    return meta_model(name, **dict(head))


@functools.lru_cache(maxsize=256)
def _peft_count(name: str, peft_type: str, config: str, pattern: str, head: tuple[tuple[str, int], ...]) -> int:
    """`get_nb_trainable_parameters` of the adapted meta model (cached)."""
    from peft import get_peft_model

    config_class = methods.peft_config_class(peft_type)
    arguments = {**dict(architecture(name).peft_options), **json.loads(config)}
    if "target_modules" in {field.name for field in dataclasses.fields(config_class)}:
        arguments["target_modules"] = pattern
    try:
        peft_config = config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"PEFT's {peft_type} does not take the settings {arguments}: {error}") from error

    def apply(bare: Any) -> nn.Module:
        return get_peft_model(bare, peft_config)

    return _trained(apply, name, dict(head), lambda adapted: adapted.get_nb_trainable_parameters()[0])


def _trained(
    adapt: Callable[[nn.Module], nn.Module],
    name: str,
    head: Mapping[str, int],
    measure: Callable[[Any], int] = methods.trainable,
) -> int:
    """`measure` of a new meta model after `adapt`, with the adapter's tensors on the meta device if that is possible."""

    def on(device: str, values: bool = False, **layers: int) -> int:
        bare = architecture(name).build(**head, **layers) if values else meta_model(name, **head, **layers)
        with torch.device(device), quiet():
            return measure(adapt(bare))

    try:
        return on("meta")
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
    total = architecture(name).layers
    if not total:
        return on("cpu")
    # BOFT reads the values of its d x d permutations, and SHiRA those of the weight, so they must be allocated. All transformer
    # layers are identical: the total is extrapolated from the counts of one and two layers.
    try:
        one, two = (on("cpu", layers=count) for count in (1, 2))
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        one, two = (on("cpu", values=True, layers=count) for count in (1, 2))
    return one + (total - 1) * (two - one)
