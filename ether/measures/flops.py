"""Floating-point operations of one fine-tuning step, counted from shapes on the meta device.

A step is forward, loss and backward of one batch. Matrix products are counted by torch's FlopCounterMode, 2 m n k each.
No weights are allocated, so counting Llama-2-7B takes seconds on a laptop. There are two ways to compute an adapted layer:

* `weight_side_step`: the transformed weight is built from H and W and then used, as in Sec. 3.4 and the released code.
  This is the convention of Table 1: query, key and value in one fused weight that is rebuilt as a whole (so that it
  also gets a dense gradient), query and value adapted, attention by plain matrix products, nothing trained before layer 0.
  `closed_form` gives the same number in closed form.
* `package_step`: the adapters of PEFT and of this package, in the models of transformers.

All transformer layers after the first have the same cost. Models with one and two layers are counted and extrapolated to the
full depth, which is exact.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ether.errors import ConfigurationError, one_of
from ether.measures.architectures import LLAMA_2_7B, PHI_1_5, architecture, meta_model
from ether.measures.parameters import settings
from ether.measures.weight_side import multiplier_class, put_on
from ether.methods.adapt import peft_config_class
from ether.methods.layer_sets import layer_set as layer_set_pattern
from ether.silence import quiet


@dataclass(frozen=True)
class Step:
    """Floating-point operations of one step; `elementwise` are operations of adapters outside matrix products."""

    forward: int
    backward: int
    elementwise: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.elementwise

    @property
    def tflops(self) -> float:
        """The total in units of 10^12."""
        return self.total / 1e12


def _count(loss: Callable[[], torch.Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as forward:
        value = loss()
    with FlopCounterMode(display=False) as backward:
        value.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def full_depth(at: Callable[[int], tuple[int, ...]], layers: int) -> tuple[int, ...]:
    """Counts at `layers` layers from those at one and two: every layer but the first costs the same."""
    return tuple(one + (layers - 1) * (two - one) for one, two in zip(at(1), at(2), strict=True))


# --- weight side, as in Table 1 ---------------------------------------------------------------------------------------


class Stack(NamedTuple):
    """The dimensions that determine a decoder's matrix products: width, feed-forward width, depth, heads, vocabulary, layout."""

    width: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    gated: bool  # three feed-forward matrices (Llama) instead of two (Phi)
    parallel: bool  # attention and feed-forward read the same normalised input (Phi)

    @property
    def linear(self) -> int:
        """Entries of all weights that multiply every token, output head included."""
        return self.layers * self.width * (4 * self.width + (2 + self.gated) * self.hidden) + self.width * self.vocabulary


def _stack(config: Mapping[str, Any], layers: int, gated: bool, parallel: bool) -> Stack:
    width, hidden, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    return Stack(width, hidden, layers, heads, config["vocab_size"], gated, parallel)


STACKS: dict[str, Stack] = {
    "llama-2-7b": _stack(LLAMA_2_7B, architecture("llama-2-7b").layers, gated=True, parallel=False),
    "phi-1.5": _stack(PHI_1_5, architecture("phi-1.5").layers, gated=False, parallel=True),
}


def stack(name: str) -> Stack:
    """The entry of STACKS; raises ConfigurationError for an unknown name."""
    if name not in STACKS:
        raise one_of("decoder", name, STACKS, "ether/measures/flops.py")
    return STACKS[name]


def weight_side_rule(adapt: Mapping[str, Any]) -> tuple[str, int]:
    """The arguments `rule` and `size` of `weight_side_step` and `closed_form`, from the `adapt` section of a method's file.

    LORA: "low-rank" and the rank; ETHER: "reflection" or "relaxed-reflection" and the number of blocks; OFT: "orthogonal" and
    the number of blocks.

    Raises:
        ConfigurationError: a method of another kind, or OFT configured by its block size.
    """
    config = adapt.get("config") or {}
    if adapt.get("type") == "LORA":
        return "low-rank", config["r"]
    if adapt.get("type") == "ETHER":
        return ("relaxed-reflection" if config.get("relaxed") else "reflection"), config.get("n_blocks", 1)
    if adapt.get("type") == "OFT" and config.get("r"):
        return "orthogonal", config["r"]
    raise ConfigurationError(
        f"The weight side is counted for LORA, ETHER, and OFT with a number of blocks (adapt.config.r), not for {dict(adapt)}."
    )


class LowRank(nn.Module):
    """LoRA's correction of a layer's output: x -> B A x."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(rank, size)), nn.Parameter(torch.empty(size, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, self.a), self.b)


def _frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class FusedLayer(nn.Module):
    """A transformer layer with one weight for query, key and value, of which `adapted` ("qv") are transformed.

    Norms, rotary embeddings, masks and biases have no matrix products and are omitted. The module is for counting only.
    """

    def __init__(self, s: Stack, rule: str, size: int, adapted: str) -> None:
        super().__init__()
        self.s = s
        self.additive = rule == "low-rank"
        adapter = LowRank if self.additive else multiplier_class(rule)
        self.qkv = _frozen(3, s.width, s.width)
        self.out = _frozen(s.width, s.width)
        self.up = nn.ParameterList(_frozen(s.hidden, s.width) for _ in range(1 + s.gated))
        self.down = _frozen(s.width, s.hidden)
        self.adapters = nn.ModuleDict({letter: adapter(s.width, size) for letter in adapted})

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(T, width) -> (T, 3 width)."""
        if self.additive:
            plain = functional.linear(x, self.qkv.flatten(0, 1)).chunk(3, dim=-1)
            adapters = [dict(self.adapters).get(letter) for letter in "qkv"]
            return torch.cat([y + a(x) if a else y for y, a in zip(plain, adapters, strict=True)], dim=-1)
        parts = [self.adapters[k](w) if k in self.adapters else w for k, w in zip("qkv", self.qkv, strict=True)]
        return functional.linear(x, torch.cat(parts))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (self.s.heads, -1)).transpose(0, 1) for y in self.project(x).chunk(3, dim=-1))
        mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
        return functional.linear(mixed.transpose(0, 1).flatten(1), self.out)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        up = [functional.linear(x, weight) for weight in self.up]
        return functional.linear(functional.silu(up[0]) * up[-1] if self.s.gated else functional.gelu(up[0]), self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.s.parallel:
            return x + self.attention(x) + self.feed_forward(x)
        x = x + self.attention(x)
        return x + self.feed_forward(x)


@functools.lru_cache(maxsize=256)
def weight_side_step(name: str, rule: str, size: int, tokens: int, adapted: str = "qv", layers: int = 0) -> Step:
    """One step of decoder `name` with every adapted weight rebuilt from its factors, counted on the meta device.

    Args:
        name: a key of STACKS.
        rule: a key of MULTIPLIERS, or "low-rank" for LoRA, which rebuilds nothing, in the same layers.
        size: rank of "low-rank", number of blocks n of the others.
        tokens: length T of the sequence (batch size 1).
        adapted: the adapted projections, a subset of "qkv".
        layers: number of layers of the counted model; 0 extrapolates to the full depth.

    Raises:
        ConfigurationError: unknown decoder or rule, or blocks that do not divide the width.
    """
    s = stack(name)

    def at(depth: int) -> tuple[int, ...]:
        with torch.device("meta"):
            blocks = [FusedLayer(s, rule, size, adapted) for _ in range(depth)]
            head = _frozen(s.vocabulary, s.width)
            x = torch.empty(tokens, s.width)  # the frozen embedding's output: nothing before layer 0 is trained

            def loss() -> torch.Tensor:
                hidden = x
                for block in blocks:
                    hidden = block(hidden)
                logits = functional.linear(hidden, head)
                return functional.cross_entropy(logits, torch.zeros(tokens, dtype=torch.long))

            return _count(loss)

    return Step(*(at(layers) if layers else full_depth(at, s.layers)))


def closed_form(name: str, rule: str, size: int, tokens: int, adapted: str = "qv") -> int:
    """The operations of `weight_side_step` in closed form, without the Cayley map, the norms and all sums.

    4 N T for the frozen weights (forward and input gradient), minus the input gradient of layer 0, plus 12 T^2 d L
    for attention, plus for weight-side rules the dense gradient of the fused weight, 6 T d^2 L, and p products of a
    block-diagonal with a dense matrix, 2 d^3 / n each: p = 2 for one side (forward; gradient of the blocks), 5 for two.
    """
    s = stack(name)
    d, layers, matrices = s.width, s.layers, len(adapted)
    flops = 4 * s.linear * tokens - 6 * tokens * d**2 + 12 * tokens**2 * d * layers
    if s.parallel:
        flops -= 2 * tokens * (2 + s.gated) * d * s.hidden
    if rule == "low-rank":
        return flops + matrices * 2 * tokens * size * d * (6 * layers - 1)
    products, n = {
        "reflection": (2, size),
        "relaxed-reflection": (5, size),
        "orthogonal": (2, size),
        "orthogonal-dense": (2, 1),
    }[rule]
    return flops + 6 * tokens * d**2 * layers + products * matrices * layers * 2 * d**3 // n


# --- adapters of PEFT and of this package -----------------------------------------------------------------------------


def reflection_work(tokens: int, d: int, terms: int, input_gradient: bool = True) -> tuple[int, int]:
    """Operations, forward and backward, of transforming `tokens` vectors of d entries with `terms` rank-one terms per block.

    ETHER has one term, ETHER+ two per side. Forward: an inner product and an update, 4 d per term. Backward: an inner
    product with the incoming gradient, 2 d; the gradients of the outer product's two vectors, 4 d; and 2 d for the
    gradient of the input if it is required. The count does not depend on the number of blocks. Normalising the vectors, O(d)
    per step, is omitted.
    """
    return 4 * tokens * d * terms, (6 + 2 * input_gradient) * tokens * d * terms


class _CountedReflection(torch.autograd.Function):
    """Replaces `ether.reflection.reflect` during counting, with the same inputs and the same shapes of outputs and gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, u: torch.Tensor, v: Any, shift: Any, work: list[int]) -> torch.Tensor:
        ctx.save_for_backward(x, u, v)
        ctx.work = work
        ctx.count = reflection_work(x.numel() // u.numel(), u.numel(), 1 if v is None else 2, ctx.needs_input_grad[0])
        work.append(ctx.count[0])
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, u, v = ctx.saved_tensors
        ctx.work.append(ctx.count[1])
        g_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        return g_x, torch.empty_like(u), None if v is None else torch.empty_like(v), None, None


@contextlib.contextmanager
def _reflections_counted() -> Iterator[list[int]]:
    """In this context ETHER's layers append the operation counts of their reflections to a list instead of computing them."""
    from ether.tuners import layer

    work: list[int] = []
    original = layer.reflect
    layer.reflect = lambda x, u, v=None, shift=None: _CountedReflection.apply(x, u, v, shift, work)  # type: ignore[assignment]
    try:
        yield work
    finally:
        layer.reflect = original


def adapted_decoder(name: str, how: Mapping[str, Any], layers: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Transformers' model `name` on the meta device, with `layers` layers, adapted according to `how`.

    `how`: {kind: peft, type, config} as in a method's YAML, or {kind: weight-side, rule, size}. Adapters are applied to the
    layer set of the paper. Raises ConfigurationError for an unknown kind, type or rule.
    """
    from peft import get_peft_model

    entry = architecture(name)
    pattern = layer_set_pattern(entry.model_type, entry.layer_set)
    model = meta_model(name, layers=layers).to(dtype)
    with torch.device("meta"), quiet():
        if how["kind"] == "weight-side":
            return put_on(model, pattern, how["rule"], how["size"])
        if how["kind"] == "peft":
            config: Any = peft_config_class(how["type"])
            return get_peft_model(model, config(target_modules=pattern, **settings(how)))  # type: ignore[arg-type]
    raise one_of("kind", how["kind"], ("peft", "weight-side"), "ether/measures/flops.py")


def language_model_loss(
    model: nn.Module, tokens: int, batch: int, state: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Next-token loss of `batch` sequences of `tokens`, on the default device, optionally with other parameters."""
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    inputs = {
        "input_ids": ids,
        "labels": ids,
        "use_cache": False,
        # Given explicitly, because the model would read tensor values to build a mask.
        "attention_mask": torch.zeros(batch, 1, tokens, tokens, dtype=dtype),
    }
    return (model(**inputs) if state is None else torch.func.functional_call(model, dict(state), (), inputs)).loss


def package_step(name: str, how: Mapping[str, Any], tokens: int, batch: int = 1) -> Step:
    """One step of transformers' model `name` with an adapter on query and value, which are separate matrices.

    Arguments as for `adapted_decoder`; `batch` sequences of `tokens`. ETHER's reflections are counted by
    `reflection_work`, independent of the implementation, so the count does not depend on the number of blocks. Operations of
    other adapters outside matrix products (LoRA's scaling and addition) are not counted.
    """
    return _package_step(name, json.dumps(how, sort_keys=True), tokens, batch)


@functools.lru_cache(maxsize=256)
def _package_step(name: str, how: str, tokens: int, batch: int) -> Step:
    def at(depth: int) -> tuple[int, ...]:
        model = adapted_decoder(name, json.loads(how), depth)
        with torch.device("meta"), quiet(), _reflections_counted() as work:
            forward, backward = _count(lambda: language_model_loss(model, tokens, batch))
        return forward, backward, sum(work)

    return Step(*full_depth(at, architecture(name).layers))
