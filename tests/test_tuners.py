"""`EtherConfig` and `NaiveConfig` in PEFT: the layer against dense weights, PEFT's HRA, and what a PEFT user does.

PEFT's own tests for a tuner are run by tests/peft_conformance.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, HRAConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import PeftType
from torch import nn
from torch.autograd import forward_ad
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import ether
from ether import EtherConfig, NaiveConfig
from ether.dense import dense_blocks, dense_reflection
from ether.errors import ConfigurationError
from ether.tuners import layer as ether_layer
from ether.tuners import register
from ether.tuners.layer import EtherLayer

D, F = 64, 32

CONFIGS = {
    "ETHER": EtherConfig(target_modules=["lin"], n_blocks=4),
    "ETHER output": EtherConfig(target_modules=["lin"], n_blocks=4, sides="output"),
    "ETHER both": EtherConfig(target_modules=["lin"], n_blocks=4, sides="both"),
    "ETHER release": EtherConfig(target_modules=["lin"], n_blocks=4, layout="release"),
    "ETHER+": EtherConfig(target_modules=["lin"], n_blocks=4, relaxed=True, init_weights=False),
    "ETHER+ input": EtherConfig(target_modules=["lin"], n_blocks=4, relaxed=True, init_weights=False, sides="input"),
    "ETHER+ release": EtherConfig(target_modules=["lin"], n_blocks=4, relaxed=True, init_weights=False, layout="release"),
    "Naive": NaiveConfig(target_modules=["lin"], n_blocks=4, init_weights=False),
}
EVERY = pytest.mark.parametrize("name", CONFIGS)


class Net(nn.Module):
    """One linear layer `lin` (torch's Linear or transformers' Conv1D) and a fixed nonlinearity around it."""

    def __init__(self, bias: bool = True, conv1d: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = Conv1D(F, D) if conv1d else nn.Linear(D, F, bias=bias)
        if conv1d:
            nn.init.normal_(self.lin.bias)
        self.head = nn.Linear(F, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.lin(x)))


def adapted(config: PeftConfig, seed: int = 0, **net: bool) -> PeftModel:
    torch.manual_seed(seed)
    return get_peft_model(Net(**net), copy.deepcopy(config)).eval()


def layer_of(model: Any) -> Any:
    return model.base_model.model.lin


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*(shape or (2, 5)), D, generator=torch.Generator().manual_seed(7)).to(dtype)


def dense_weight(layer: Any, name: str = "default") -> torch.Tensor:
    """The adapted weight (f, d), by dense matrices alone, differentiable in the adapter's parameters."""
    weight = layer.get_base_layer().weight
    weight = weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight
    if not isinstance(layer, EtherLayer):
        return weight @ dense_blocks(layer.naive_blocks[name]).T
    config = layer.ether_settings[name]
    if name in layer.ether_u:
        u, v = layer.ether_u[name], layer.ether_v[name] if config.relaxed else None
        if config.layout == "diagonal":
            weight = weight @ dense_reflection(u, v)
        else:
            groups = [
                rows @ torch.block_diag(*[dense_reflection(u[r : r + 1], None if v is None else v[r : r + 1])] * len(u))
                for r, rows in enumerate(weight.chunk(len(u)))
            ]
            weight = torch.cat(groups)
    if name in layer.ether_u_out:
        weight = dense_reflection(layer.ether_u_out[name], layer.ether_v_out[name] if config.relaxed else None) @ weight
    return weight


def assert_same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("layout", ["diagonal", "release"])
@pytest.mark.parametrize("sides", ["input", "output", "both"])
@pytest.mark.parametrize("relaxed", [False, True], ids=["ETHER", "ETHER+"])
@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
def test_layer_equals_the_dense_weight_side_formula(n: int, layout: str, sides: str, relaxed: bool, conv1d: bool) -> None:
    """(H W H~)^T x + b: values and all gradients, trainable bias included, in float64."""
    config = EtherConfig(
        n_blocks=n, layout=layout, sides=sides, relaxed=relaxed, init_weights=False, target_modules=["lin"], bias="all"
    )
    layer = layer_of(adapted(config, conv1d=conv1d).double())
    x = inputs(dtype=torch.float64).requires_grad_()
    expected = nn.functional.linear(x, dense_weight(layer), layer.get_base_layer().bias)
    actual = layer(x)
    assert_same(actual, expected)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    assert len(wanted) == 2 + (2 if relaxed else 1) * (2 if sides == "both" else 1)
    g = torch.randn(actual.shape, dtype=actual.dtype, generator=torch.Generator().manual_seed(1))
    for one, other in zip(torch.autograd.grad(actual, wanted, g), torch.autograd.grad(expected, wanted, g), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_naive_layer_equals_the_dense_weight_side_formula(n: int) -> None:
    config = NaiveConfig(n_blocks=n, init_weights=False, target_modules=["lin"])
    layer = layer_of(adapted(config).double())
    x = inputs(dtype=torch.float64).requires_grad_()
    expected = nn.functional.linear(x, dense_weight(layer), layer.get_base_layer().bias)
    wanted = [x, layer.naive_blocks["default"]]
    actual = layer(x)
    assert_same(actual, expected)
    for one, other in zip(
        torch.autograd.grad(actual.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        assert_same(one, other)


def test_one_block_on_the_input_side_is_peft_s_hra_of_rank_one() -> None:
    ours = adapted(EtherConfig(target_modules=["lin"])).double()
    with pytest.warns(UserWarning, match="symmetric initialization"):
        theirs = adapted(HRAConfig(r=1, target_modules=["lin"])).double()
    u, other = layer_of(ours).ether_u["default"], layer_of(theirs).hra_u["default"]
    other.data.copy_(u.data.T)
    x = inputs(dtype=torch.float64)
    # HRA multiplies by a float32 identity before anything else, so its own rounding is that of float32
    assert_same(ours(x), theirs(x), 1e-6)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    assert_same(u.grad, other.grad.T, 1e-6)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-2) for m in (ours, theirs)]
    for _ in range(3):
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            model(x).square().sum().backward()
            optimiser.step()
    assert_same(ours(x), theirs(x), 1e-5)
    assert_same(ours.merge_and_unload()(x), theirs.merge_and_unload()(x), 1e-5)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_number_of_parameters(n: int) -> None:
    """Sec. 4: d for ETHER, 2 (d + f) for ETHER+, whatever n; d^2 / n for Naive."""

    def count(config: PeftConfig) -> int:
        return adapted(config).get_nb_trainable_parameters()[0]

    for layout in ("diagonal", "release"):
        shared = {"target_modules": ["lin"], "n_blocks": n, "layout": layout}
        assert count(EtherConfig(**shared)) == D
        assert count(EtherConfig(**shared, sides="output")) == F
        assert count(EtherConfig(**shared, sides="both")) == D + F
        assert count(EtherConfig(**shared, relaxed=True)) == 2 * (D + F)
        assert count(EtherConfig(**shared, relaxed=True, sides="input")) == 2 * D
    assert count(NaiveConfig(target_modules=["lin"], n_blocks=n)) == D * D // n


@pytest.mark.parametrize(
    "config",
    [
        EtherConfig(target_modules=["lin"], relaxed=True, n_blocks=4),
        EtherConfig(target_modules=["lin"], relaxed=True, n_blocks=4, layout="release"),
    ],
)
def test_ether_plus_starts_as_the_base_model_to_the_bit(config: EtherConfig) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(adapted(config).to(dtype)(inputs(dtype=dtype)), Net().to(dtype)(inputs(dtype=dtype)))


def test_naive_starts_as_the_base_model() -> None:
    assert_same(adapted(NaiveConfig(target_modules=["lin"], n_blocks=2))(inputs()), Net()(inputs()), 1e-6)


@pytest.mark.parametrize("n", [1, 8])
def test_ether_starts_at_distance_two_root_n(n: int) -> None:
    layer = layer_of(adapted(EtherConfig(target_modules=["lin"], n_blocks=n)))
    h = dense_reflection(layer.ether_u["default"].detach().double())
    assert_same((h - torch.eye(D, dtype=h.dtype)).norm(), torch.tensor(2 * math.sqrt(n), dtype=h.dtype))


@pytest.mark.parametrize("n", [1, 16])
def test_initial_vectors_are_uniform_within_one_over_root_d(n: int) -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(1024, 4)), EtherConfig(target_modules=["0"], n_blocks=n))
    u = model.base_model.model[0].ether_u["default"].detach()
    assert 0.99 / 32 < u.abs().max() <= 1 / 32
    # the mean square of a uniform number within +-a is a^2 / 3, so a block has length 1 / sqrt(3 n) on average
    assert_same(u.square().sum(-1).mean().sqrt(), torch.tensor(1 / math.sqrt(3 * n)), 0.05)


# Merging


@EVERY
@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_is_exact_and_unmerging_restores_every_bit(name: str, conv1d: bool, safe_merge: bool) -> None:
    model = adapted(CONFIGS[name], conv1d=conv1d)
    layer = layer_of(model)
    before, expected = layer.get_base_layer().weight.data.clone(), model(inputs())
    parameter = layer.get_base_layer().weight
    keys = set(model.state_dict())
    model.merge_adapter(safe_merge=safe_merge)
    assert layer.get_base_layer().weight is parameter and set(model.state_dict()) == keys
    assert_same(model(inputs()), expected, 1e-5)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight.data, before)
    assert torch.equal(model(inputs()), expected)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged.lin) is (Conv1D if conv1d else nn.Linear)
    assert_same(merged(inputs()), expected, 1e-5)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_in_half_precision_rounds_once(name: str, dtype: torch.dtype) -> None:
    model = adapted(CONFIGS[name]).to(dtype)
    layer = layer_of(model)
    before = layer.get_base_layer().weight.data.clone()
    exact = dense_weight(copy.deepcopy(layer).double())
    model.merge_adapter()
    assert layer.get_base_layer().weight.dtype == dtype
    # half a unit in the last place, and what single precision adds
    merged = layer.get_base_layer().weight.data.double()
    torch.testing.assert_close(merged, exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight.data, before)


@EVERY
def test_weight_difference_and_conversion_to_lora(name: str) -> None:
    layer = layer_of(adapted(CONFIGS[name]))
    assert layer.supports_lora_conversion()
    assert_same(layer.get_delta_weight("default"), dense_weight(layer) - layer.get_base_layer().weight, 1e-5)


def test_safe_merge_refuses_nan_and_leaves_the_weight_alone() -> None:
    model = adapted(CONFIGS["ETHER"])
    before = layer_of(model).get_base_layer().weight.data.clone()
    layer_of(model).ether_u["default"].data[0, 0] = float("nan")
    with pytest.raises(ConfigurationError, match=r"NaNs detected.*'lin'"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer_of(model).get_base_layer().weight.data, before)
    assert not layer_of(model).merged
    model.add_adapter("sound", copy.deepcopy(CONFIGS["ETHER+"]))
    for names in (["sound", "default"], ["default", "sound"]):
        with pytest.raises(ConfigurationError, match=r"The adapter default seems to be broken.*left unchanged"):
            model.merge_adapter(names, safe_merge=True)
        assert torch.equal(layer_of(model).get_base_layer().weight.data, before)
        assert not layer_of(model).merged


@EVERY
def test_disabling_gives_the_base_model_also_while_merged(name: str) -> None:
    model, base = adapted(CONFIGS[name]), Net()(inputs())
    assert (model(inputs()) - base).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(inputs()), base)
    expected = model(inputs())
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(inputs()), base)
    assert torch.equal(model(inputs()), expected)  # disabling unmerged it


def test_one_weight_in_two_adapted_layers_is_not_merged() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight
    model = get_peft_model(net, EtherConfig(target_modules=["0", "1", "2"])).eval()
    x = torch.randn(3, 8)
    expected = model(x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ConfigurationError, match="'0' and '1' share one weight"):
            merge()
        assert torch.equal(model(x), expected)
    layer = model.base_model.model[1].get_base_layer()
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    model.merge_adapter()
    assert_same(model(x), expected, 1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)


# Offloading


def held(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


@pytest.mark.parametrize("width", [64, 512])  # below and above the width up to which all is done in two products
@EVERY
def test_offloaded_by_accelerate_it_computes_the_same(name: str, width: int) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.target_modules = {"0"}
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(width, width)), config).eval()
    layer, x = model.base_model.model[0], torch.randn(4, width, requires_grad=True)

    def results(*wanted: torch.Tensor) -> list[torch.Tensor]:
        y = model(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *wanted])]

    vectors = [p for p in model.parameters() if p.requires_grad]
    expected = results(*vectors)
    with model.disable_adapter():
        base = model(x)
    accelerate.cpu_offload(layer.base_layer, execution_device=torch.device("cpu"))
    assert held(layer.base_layer) == {"meta"}
    for one, other in zip(results(*vectors), expected, strict=True):  # the base layer alone: the adapter is trained
        assert torch.equal(one, other)
    assert held(layer.base_layer) == {"meta"}
    accelerate.hooks.remove_hook_from_module(layer.base_layer, recurse=True)

    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for one, other in zip(results(), expected, strict=False):
        assert torch.equal(one, other)
    assert held(model) == {"meta"}
    with pytest.raises(RuntimeError, match="shape|size"):
        model(x[:, 1:])
    assert held(model) == {"meta"} and torch.equal(model(x), expected[0])
    model.merge_adapter()
    assert_same(model(x), expected[0], 1e-4)
    with model.disable_adapter():  # which unmerges
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), expected[0])


@EVERY
def test_a_tensor_without_values_is_an_error(name: str) -> None:
    model = adapted(CONFIGS[name])
    for container in ("ether_u", "ether_u_out", "naive_blocks"):
        getattr(layer_of(model), container, nn.Module()).to("meta")
    with pytest.raises(RuntimeError, match=r"on device cpu, and .* on meta"):
        model(inputs())


# Several adapters


@pytest.mark.parametrize(
    "first,second", [("ETHER", "ETHER+"), ("ETHER release", "ETHER+ release"), ("ETHER both", "ETHER release")]
)
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_active_together_is_merged_one_after_the_other(first: str, second: str, order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Net(), copy.deepcopy(CONFIGS[first]), "a").double().eval()
    model.add_adapter("b", copy.deepcopy(CONFIGS[second]))
    model.double()
    x = inputs(dtype=torch.float64)
    alone = {}
    for name in order:
        model.set_adapter(name)
        alone[name] = model(x)
    model.base_model.set_adapter(list(order))
    together = model(x)
    assert all((together - y).abs().max() > 1e-3 for y in alone.values())
    model.merge_adapter()
    assert_same(model(x), together)
    model.unmerge_adapter()
    model.delete_adapter(order[0])
    assert model.active_adapters == [order[1]]
    assert_same(model(x), alone[order[1]])


def test_an_added_adapter_is_frozen_until_it_is_made_active() -> None:
    model = adapted(CONFIGS["ETHER"])
    model.add_adapter("other", copy.deepcopy(CONFIGS["ETHER+"]))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"base_model.model.lin.ether_u.default"}
    model.set_adapter("other")
    trainable = {n.rpartition("lin.")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{p}.other" for p in ("ether_u", "ether_v", "ether_u_out", "ether_v_out")}


@pytest.mark.parametrize("name", ["ETHER", "ETHER output", "ETHER release", "Naive"])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_adapter_made_anew_has_nothing_of_the_one_before(name: str) -> None:
    twice, once = Net().eval(), Net().eval()
    first = NaiveConfig(target_modules=["lin"], n_blocks=2) if name == "Naive" else CONFIGS["ETHER+"]
    for config in (first, CONFIGS[name]):
        torch.manual_seed(0)
        inject_adapter_in_model(copy.deepcopy(config), twice)
    torch.manual_seed(0)
    inject_adapter_in_model(copy.deepcopy(CONFIGS[name]), once)
    assert {n: p.shape for n, p in twice.named_parameters()} == {n: p.shape for n, p in once.named_parameters()}
    assert torch.equal(twice(inputs()), once(inputs()))


def test_an_adapter_that_does_not_fit_one_layer_leaves_the_model_as_it_was() -> None:
    net = Net()  # 64 -> 32 -> 3
    modules, trainable = dict(net.named_modules()), [p.requires_grad for p in net.parameters()]
    with pytest.raises(ConfigurationError, match="output dimension 3 of layer 'head'"):
        get_peft_model(net, EtherConfig(target_modules=["lin", "head"], n_blocks=4, relaxed=True))
    assert dict(net.named_modules()) == modules and [p.requires_grad for p in net.parameters()] == trainable
    # as a second adapter, also in a layer that has one already
    model = adapted(CONFIGS["ETHER+"])
    parameters, output = [n for n, _ in model.named_parameters()], model(inputs())
    with pytest.raises(ConfigurationError, match="output dimension 3 of layer 'head'"):
        model.add_adapter("b", EtherConfig(target_modules=["lin", "head"], n_blocks=4, relaxed=True))
    assert [n for n, _ in model.named_parameters()] == parameters and set(model.peft_config) == {"default"}
    assert torch.equal(model(inputs()), output)
    # the adapter that is there stays when its replacement is refused
    with pytest.raises(ConfigurationError, match="n_blocks=5"):
        layer_of(model).update_layer("default", EtherConfig(n_blocks=5))
    assert torch.equal(model(inputs()), output)


# Saving and loading


@EVERY
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saving_and_loading(name: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = adapted(CONFIGS[name])
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == ("NAIVE" if name == "Naive" else "ETHER")
    assert not list(tmp_path.glob("*.bin"))
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert type(config) is type(CONFIGS[name]) and config.n_blocks == 4
    loaded = PeftModel.from_pretrained(Net(), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded(inputs()), model(inputs()))
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_auto_peft_model(llama: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32), EtherConfig(task_type="CAUSAL_LM", n_blocks=2)
    ).eval()
    assert model.targeted_module_names == [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(6)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_all_linear_layers_indexed_layers_and_excluded_modules(llama: Path) -> None:
    def targeted(**kwargs: Any) -> list[str]:
        model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
        return get_peft_model(model, EtherConfig(**kwargs)).targeted_module_names

    assert len(targeted(target_modules="all-linear", task_type="CAUSAL_LM")) == 14
    assert targeted(target_modules=["q_proj"], layers_to_transform=[1]) == ["model.layers.1.self_attn.q_proj"]
    assert targeted(target_modules=["q_proj"], exclude_modules=r".*\.0\..*") == ["model.layers.1.self_attn.q_proj"]
    assert targeted(target_modules=r".*\.1\..*k_proj") == ["model.layers.1.self_attn.k_proj"]


@pytest.mark.parametrize("name", ["ETHER", "ETHER+", "Naive"])
def test_meta_device_counts_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = get_peft_model(Net(), copy.deepcopy(CONFIGS[name]))
    assert all(p.is_meta for p in model.parameters())
    assert model.get_nb_trainable_parameters()[0] == adapted(CONFIGS[name]).get_nb_trainable_parameters()[0]
    assert model(torch.empty(2, D, device="meta")).shape == (2, 3)


# Precision, training, compiling


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_are_single_precision_over_a_half_precision_model(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Net().to(dtype), copy.deepcopy(CONFIGS[name]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    y = model(inputs(dtype=dtype))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    torch.manual_seed(0)
    model = get_peft_model(Net().to(dtype), copy.deepcopy(CONFIGS[name]), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(inputs(dtype=dtype)).dtype == dtype


@EVERY
def test_autocast(name: str) -> None:
    model = adapted(CONFIGS[name])
    expected = model(inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(inputs())
        y.float().square().sum().backward()
    assert_same(y.float(), expected, 0.05)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@EVERY
def test_training_lowers_the_loss_and_moves_nothing_but_the_adapter(name: str) -> None:
    model = adapted(CONFIGS[name]).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    x, target = inputs(64), torch.randn(64, 3, generator=torch.Generator().manual_seed(3))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())


def test_dropout_acts_on_the_correction_only_and_only_in_training() -> None:
    """With v = u the correction is zero whatever it reads: dropout must then change nothing at all."""
    identity = adapted(EtherConfig(target_modules=["lin"], relaxed=True, dropout=0.5)).train()
    assert_same(identity(inputs()), Net()(inputs()), 1e-6)
    for name in ("ETHER both", "ETHER release", "Naive"):
        config = copy.deepcopy(CONFIGS[name])
        config.dropout = 0.5
        model = adapted(config)
        quiet = adapted(CONFIGS[name])(inputs())
        assert torch.equal(model(inputs()), quiet)
        model.train()
        torch.manual_seed(1)
        noisy = model.base_model.model.lin(inputs().expand(2000, 2, 5, D))
        assert noisy.std(0).min() > 1e-3
        # the correction is linear in what it reads, and dropout keeps the mean
        if name != "ETHER both":  # there the output side reads what the input side made
            assert_same(noisy.mean(0), adapted(CONFIGS[name]).base_model.model.lin(inputs()), 0.1)


@pytest.mark.parametrize("name", ["ETHER", "ETHER both", "ETHER+", "Naive"])
def test_layer_compiles_without_graph_breaks(name: str) -> None:
    model = adapted(CONFIGS[name])
    expected = model(inputs())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled(inputs()), expected, 1e-5)
    compiled(inputs()).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rows", [2, 128])  # around the layer, and through its weight
@pytest.mark.parametrize("width", [64, 512])
@EVERY
def test_transformations_of_functions(name: str, width: int, rows: int) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.target_modules = {"0"}
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(width, width)), config).double().eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    x, dx = (torch.randn(rows, width, dtype=torch.float64) for _ in range(2))
    y = model(x.requires_grad_())

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (row,)).square().sum()

    # per-sample gradients
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(trained, x.detach()[:, None])
    whole = dict(zip(trained, torch.autograd.grad(y.square().sum(), list(trained.values()), retain_graph=True), strict=True))
    for key, gradient in whole.items():
        assert each[key].shape == (rows, *gradient.shape)
        assert_same(each[key].sum(0), gradient, 1e-9)
    # forward mode: the layer is affine in x
    expected = (model(x + dx) - y).detach()
    assert_same(torch.func.jvp(model, (x.detach(),), (dx,))[1], expected, 1e-9)
    with forward_ad.dual_level():
        assert_same(forward_ad.unpack_dual(model(forward_ad.make_dual(x.detach(), dx))).tangent, expected, 1e-9)
    # batched gradients
    several = torch.randn(3, *y.shape, dtype=y.dtype)
    wanted = [x, *trained.values()]
    together = torch.autograd.grad(y, wanted, several, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(several):
        for one, other in zip(together, torch.autograd.grad(y, wanted, g, retain_graph=True), strict=True):
            assert_same(one[i], other, 1e-9)
    # a trace
    with torch.no_grad():
        traced = torch.jit.trace(model.base_model.model, (x,))
        torch.jit.save(traced, io.BytesIO())
        assert_same(traced(2 * x[1:]), model(2 * x[1:]), 1e-9)  # also for another number of rows


def test_diffusers_add_adapter() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    given = torch.randn(1, 4, 8, 8), 3, torch.randn(1, 2, 8)
    with torch.no_grad():
        base = unet(*given).sample
        unet.add_adapter(EtherConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], relaxed=True, init_weights=False))
        assert (unet(*given).sample - base).abs().max() > 1e-4
        unet.disable_adapters()
        assert torch.equal(unet(*given).sample, base)
        unet.enable_adapters()
    unet(*given).sample.sum().backward()
    trained = [n for n, p in unet.named_parameters() if p.grad is not None]
    assert trained and all(".ether_" in n for n in trained)


# Quantised base layers


class Opaque(nn.Linear):
    """A linear layer whose weight cannot be read, as with some quantised layers."""


@pytest.fixture
def opaque(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend

    from ether.tuners import layer

    def resolve(base_layer: nn.Module, **_: Any) -> Any:
        return ForwardOnlyQuantizationBackend("opaque") if isinstance(base_layer, Opaque) else None

    monkeypatch.setattr(layer, "resolve_quantization_backend", resolve)


def test_layers_whose_weight_cannot_be_read_train_but_do_not_merge(opaque: None) -> None:
    model = nn.Sequential(Opaque(D, F))
    trained = get_peft_model(model, EtherConfig(target_modules=["0"], relaxed=True, n_blocks=2))
    trained(inputs()).sum().backward()
    with pytest.raises(ConfigurationError, match=r"'0' is quantised with opaque.*Keep the adapter unmerged"):
        trained.merge_adapter()
    with pytest.raises(ConfigurationError, match="Layout 'release' needs the values of the weight of layer '0'"):
        get_peft_model(nn.Sequential(Opaque(D, F)), EtherConfig(target_modules=["0"], layout="release", n_blocks=2))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("bits", [4, 8])
@EVERY
def test_bitsandbytes(name: str, bits: int, training: bool) -> None:
    """An adapter over a frozen quantised layer is the adapter over its dequantised weight."""
    bnb = pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    net, plain, x = Net(), Net(), inputs()
    quantised = bnb.nn.Linear4bit(D, F) if bits == 4 else bnb.nn.Linear8bitLt(D, F, has_fp16_weights=False)
    quantised.load_state_dict(net.lin.state_dict())
    net.lin = quantised.to("cpu")
    weight = quantised.weight
    plain.lin.weight.data = (
        dequantize_4bit(weight.data, weight.quant_state) if bits == 4 else int8_vectorwise_dequant(weight.data, weight.SCB)
    ).float()
    net(x)
    models = []
    for base in (net, plain):
        torch.manual_seed(0)
        models.append(get_peft_model(base, copy.deepcopy(CONFIGS[name])).train(training))
    model, reference = models
    # 8-bit layers quantise their input too, and some CPUs evaluate 4-bit layers in bfloat16
    tolerance = 1e-4 if bits == 4 and training else 0.05
    y = model(x)
    assert_same(y, reference(x), tolerance)
    for m in models:
        m(x).square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in models]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    model.merge_adapter()
    assert_same(model(x), y, 0.3)  # quantised anew
    model.unmerge_adapter()
    assert torch.equal(model(x), y)


@EVERY
def test_torchao(name: str) -> None:
    """Weights quantised by torchao outside transformers: trains as over the dequantised weight; cannot merge."""
    torchao = pytest.importorskip("torchao")
    net, plain, x = Net(), Net(), inputs()
    torchao.quantize_(net, torchao.quantization.Int8WeightOnlyConfig(version=2), lambda m, n: n == "lin")
    plain.lin.weight.data = net.lin.weight.dequantize()
    models = []
    for base in (net, plain):
        torch.manual_seed(0)
        if "release" in name and base is net:
            with pytest.raises(ConfigurationError, match="torchao"):
                get_peft_model(base, copy.deepcopy(CONFIGS[name]))
            return
        models.append(get_peft_model(base, copy.deepcopy(CONFIGS[name])).eval())
    assert_same(models[0](x), models[1](x), 1e-5)
    for m in models:
        m(x).square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in models]
    assert_same(*gradients, 1e-4)
    with pytest.raises(ConfigurationError, match=r"torchao.*cannot be merged"):
        models[0].merge_adapter()


# Refusals


def test_errors_name_the_thing_and_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"n_blocks=5 does not divide the input dimension 64 of layer 'lin'.*1, 2, 4"):
        adapted(EtherConfig(n_blocks=5, target_modules=["lin"]))
    with pytest.raises(ConfigurationError, match=r"output dimension 32 of layer 'lin'.*can be 1, 2, 4, 8, 16, 32;"):
        adapted(EtherConfig(n_blocks=64, relaxed=True, target_modules=["lin"]))
    with pytest.raises(ConfigurationError, match="output dimension 32"):
        adapted(EtherConfig(n_blocks=64, layout="release", target_modules=["lin"]))
    with pytest.raises(ConfigurationError, match="n_blocks=3 does not divide"):
        adapted(NaiveConfig(n_blocks=3, target_modules=["lin"]))
    with pytest.raises(ConfigurationError, match=r"Unknown sides 'left'.*both, input, output"):
        EtherConfig(sides="left")
    with pytest.raises(ConfigurationError, match=r"Unknown layout 'diag'.*Did you mean 'diagonal'"):
        EtherConfig(layout="diag")
    for n in (0, -1, 1.5, True, "2", None, np.float64(2), np.bool_(True)):
        with pytest.raises(ConfigurationError, match="n_blocks"):
            EtherConfig(n_blocks=n)
    with pytest.raises(ConfigurationError, match="dropout is 1"):
        NaiveConfig(dropout=1)
    with pytest.raises(ConfigurationError, match=r"Unknown bias 'lora_only'.*ether_only"):
        EtherConfig(bias="lora_only")
    with pytest.raises(ConfigurationError, match="Layer '0' is a Conv2d"):
        get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 1)), EtherConfig(target_modules=["0"]))
    with pytest.raises(ConfigurationError, match="layers_to_transform"):
        EtherConfig(target_modules="lin", layers_to_transform=1)
    with pytest.raises(ConfigurationError, match="no weighted sum"):
        adapted(CONFIGS["ETHER"]).add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(ConfigurationError, match="cannot mix adapters"):
        adapted(CONFIGS["ETHER"])(inputs(), adapter_names=["default"] * 2)


def test_numbers_of_blocks_from_numpy(tmp_path: Path) -> None:
    config = EtherConfig(n_blocks=np.int64(2))
    assert type(config.n_blocks) is int and config.n_blocks == 2
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(str(tmp_path)).n_blocks == 2


def test_a_failed_configuration_is_an_error_for_peft_too() -> None:
    with pytest.raises(ValueError):
        EtherConfig(sides="left")


def test_a_scale_is_ignored_with_a_warning() -> None:
    layer = layer_of(adapted(CONFIGS["ETHER"]))
    with pytest.warns(UserWarning, match="has no scale"):
        layer.scale_layer(0.5)


# Registration


def test_registration_survives_a_reload() -> None:
    """The classes are made anew, as in a notebook with autoreload, and PEFT knows the new ones."""
    code = (
        "import importlib, sys, ether, peft\n"
        "old = ether.EtherConfig\n"
        "for name in [n for n in sys.modules if n.split('.')[0] == 'ether']: del sys.modules[name]\n"
        "import ether as again\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "assert again.EtherConfig is not old and known[peft.PeftType.ETHER] is again.EtherConfig\n"
        "assert peft.PeftType('ETHER') is peft.PeftType.ETHER and list(peft.PeftType).count('ETHER') == 1\n"
        "assert peft.PeftType.ETHER.value == 'ETHER' and peft.PeftType.ETHER.name == 'ETHER'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ether.__file__).parents[1])


def test_a_name_that_peft_ships_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"already has a method called 'lora'.*Use peft's method"):
        register("lora", EtherConfig, ether.EtherModel)
    assert PeftType.LORA in importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING


@pytest.mark.parametrize("sides", ["input", "both"])
@pytest.mark.parametrize("relaxed", [False, True], ids=["ETHER", "ETHER+"])
def test_a_plain_frozen_layer_is_computed_through_its_weight(relaxed: bool, sides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = ether_layer.reflected_linear
    monkeypatch.setattr(ether_layer, "reflected_linear", lambda *a: calls.append(1) or original(*a))
    torch.manual_seed(0)
    config = EtherConfig(target_modules=["0"], relaxed=relaxed, sides=sides, n_blocks=4, init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(320, 384, dtype=torch.float64)), config)
    model.base_model.model[0].to(torch.float64)
    x = torch.randn(3, 150, 320, dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        y = model(inputs)
        y.square().sum().backward()
        return [y, inputs.grad, *(p.grad for p in model.parameters() if p.requires_grad)]

    through_weight = results()
    assert len(calls) == 1
    hook = model.base_model.model[0].base_layer.register_forward_hook(lambda *_: None)
    around = results()  # a layer with a hook is called as it is
    assert len(calls) == 1
    hook.remove()
    for one, other in zip(through_weight, around, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for refuse in (
        lambda: model(x[:1, :4]),  # too few vectors
        lambda: model.to(torch.float16)(x.half()),  # no half precision
    ):
        refuse()
        assert len(calls) == 1


@pytest.mark.parametrize("rows", [2, 150])
def test_every_hook_sees_the_base_layer(rows: int) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(320, 384)), EtherConfig(target_modules=["0"]))
    base, x = model.base_model.model[0].base_layer, torch.randn(rows, 320, requires_grad=True)

    def seen(add: Any) -> int:
        calls = []
        handle = add(lambda module, *_: calls.append(1) if module is base else None)
        model(x).sum().backward()
        handle.remove()
        return len(calls)

    everywhere = torch.nn.modules.module
    for add in (
        base.register_forward_pre_hook,
        base.register_forward_hook,
        base.register_full_backward_pre_hook,
        base.register_full_backward_hook,
        everywhere.register_module_forward_pre_hook,
        everywhere.register_module_forward_hook,
        everywhere.register_module_full_backward_pre_hook,
        everywhere.register_module_full_backward_hook,
    ):
        assert seen(add) == 1, add


def test_autocast_and_dropout_go_around_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ether_layer, "reflected_linear", lambda *a: pytest.fail("must not be used here"))
    model = get_peft_model(nn.Sequential(nn.Linear(320, 384)), EtherConfig(target_modules=["0"], dropout=0.5))
    model.train()(torch.randn(300, 320))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.eval()(torch.randn(300, 320))
