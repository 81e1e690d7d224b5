"""TFLOPs and memory of a step: against the paper's Table 1, arithmetic, and dense formulas on small tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch

from ether import config
from ether.dense import dense_reflection
from ether.errors import ConfigurationError
from ether.measures import cache, flops, weight_side
from ether.measures.flops import closed_form, language_model_loss, package_step, stack, weight_side_rule, weight_side_step
from ether.measures.memory import _saved, step_memory
from ether.paper import efficiency
from ether.paper.efficiency import MODELS, at_equal_length, published_tflops
from ether.paper.published import load, prints_as

GRID = [
    (rule, size)
    for rule, sizes in {
        "low-rank": (8,),
        "reflection": (1, 4, 32),
        "relaxed-reflection": (1, 4, 32),
        "orthogonal": (256,),
        "orthogonal-dense": (256,),
    }.items()
    for size in sizes
]


def peft(kind: str, **config: Any) -> dict[str, Any]:
    return {"kind": "peft", "type": kind, "config": config}


@pytest.fixture(scope="module", autouse=True)
def counted_anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Counts stored by earlier runs are not used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))
        yield


# --- Table 1 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table1() -> pd.DataFrame:
    return published_tflops().set_index(["method", "column"])


def test_fourteen_of_the_sixteen_tflops_print_as_the_papers(table1: pd.DataFrame) -> None:
    cells = table1[table1.index.get_level_values("column").str.endswith("TFLOPs")]
    assert len(cells) == 16
    off = set(cells.index[cells["verdict"] != "match"])
    assert off == {("oft-n256", "Phi-1.5 TFLOPs"), ("ether-n1", "Phi-1.5 TFLOPs")}


def test_the_other_two_match_with_the_key_adapted_too(table1: pd.DataFrame) -> None:
    for method in ("oft-n256", "ether-n1"):
        cell = table1.loc[(method, "Phi-1.5 TFLOPs")]
        assert (cell["printed"], cell["alternative_verdict"]) == ("9.13", "match")
        assert cell["exact"] == pytest.approx(8.3087, abs=1e-4)
        # One dense 2048^3 product for each of the 24 layers' query and value: nothing else differs.
        assert cell["alternative"] - cell["exact"] == pytest.approx(48 * 2 * 2048**3 / 1e12, rel=1e-4)


def test_oft_on_llama_matches_only_as_a_dense_matrix(table1: pd.DataFrame) -> None:
    cell = table1.loc[("oft-n256", "Llama-2-7B TFLOPs")]
    assert (cell["verdict"], cell["alternative_verdict"]) == ("match", "mismatch")
    assert cell["alternative"] == pytest.approx(7.737, abs=1e-3)
    assert cell["alternative"] < table1.loc[("ether-n32", "Llama-2-7B TFLOPs"), "exact"]


def test_relative_drops(table1: pd.DataFrame) -> None:
    drops = table1[table1.index.get_level_values("column").str.endswith("drop")]
    assert len(drops) == 8
    misprints = drops[(drops["verdict"] != "match") & (drops["alternative_verdict"] != "match")]
    assert set(misprints.index) == {("ether-n32", "Llama-2-7B rel. drop"), ("ether-plus-n32", "Llama-2-7B rel. drop")}
    through_the_key = drops[drops["alternative_verdict"] == "match"]
    assert set(through_the_key.index.get_level_values("column")) == {"Phi-1.5 rel. drop"}
    assert set(through_the_key.index.get_level_values("method")) == {"ether-n4", "ether-n32"}


def test_every_cell_off_says_why(table1: pd.DataFrame) -> None:
    assert table1.loc[table1["verdict"] != "match", "why"].str.endswith(".").all()


@pytest.mark.parametrize("tokens", [1043, 1045])
def test_phis_sequence_length_is_determined_by_the_digits(tokens: int) -> None:
    fits = []
    for method in ("lora", "ether-n4", "ether-n32", "ether-plus-n1", "ether-plus-n4", "ether-plus-n32"):
        rule, n = weight_side_rule(config.method(method)["adapt"])
        tflops = closed_form("phi-1.5", rule, n, tokens) / 1e12
        fits.append(prints_as(round(tflops, 6), load()["table1"].printed(method, "Phi-1.5 TFLOPs")))
    assert fits.count("match") < len(fits) - 1


# --- the methods' files decide what is counted ---


@pytest.mark.parametrize(
    ("method", "rule", "size"),
    [
        ("lora", "low-rank", 8),
        ("oft-n256", "orthogonal", 256),
        ("ether", "reflection", 1),
        ("ether-n32", "reflection", 32),
        ("ether-plus-n4", "relaxed-reflection", 4),
    ],
)
def test_rule_and_size_on_the_weight_side_come_from_the_methods_file(method: str, rule: str, size: int) -> None:
    assert weight_side_rule(config.method(method)["adapt"]) == (rule, size)


@pytest.mark.parametrize("method", ["boft", "vera-r64", "full", "oft"])  # the last is given by its block size
def test_methods_without_a_counted_weight_side_are_refused(method: str) -> None:
    with pytest.raises(ConfigurationError, match="weight side is counted for LORA, ETHER, and OFT"):
        weight_side_rule(config.method(method)["adapt"])


def test_costs_by_method_are_those_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert efficiency.tflops("phi-1.5", "ether-n4", 64) == weight_side_step("phi-1.5", "reflection", 4, 64).tflops
    dense = weight_side_step("phi-1.5", "orthogonal-dense", 256, 64).tflops
    assert efficiency.tflops("phi-1.5", "oft-n256", 64, dense=True) == dense > efficiency.tflops("phi-1.5", "oft-n256", 64)
    assert efficiency.tflops("phi-1.5", "ether-n4", 64, "activations") == package_step("phi-1.5", peft("ETHER"), 64).tflops
    assert (
        efficiency.gib("phi-1.5", "lora", 16, "activations")
        == step_memory("phi-1.5", peft("LORA", r=8), 16).beside_the_model / 2**30
    )
    every = config.methods()
    every["ether-n4"]["adapt"]["config"]["n_blocks"] = 8
    monkeypatch.setattr(config, "method", lambda stem: every[stem])
    assert efficiency.tflops("phi-1.5", "ether-n4", 64) == weight_side_step("phi-1.5", "reflection", 8, 64).tflops
    with pytest.raises(ConfigurationError, match="activations"):
        efficiency.tflops("phi-1.5", "lora", 64, "activation")  # type: ignore[arg-type]


# --- counted against arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "size"), GRID)
@pytest.mark.parametrize("name", ["llama-2-7b", "phi-1.5"])
@pytest.mark.parametrize("tokens", [256, 1044])
def test_closed_form_agrees_with_the_count(name: str, rule: str, size: int, tokens: int) -> None:
    counted = weight_side_step(name, rule, size, tokens).total
    assert closed_form(name, rule, size, tokens) == pytest.approx(counted, rel=1e-4)
    if not rule.startswith("orthogonal"):  # the Cayley map is left out of the arithmetic; nothing else is
        assert closed_form(name, rule, size, tokens) == counted


def test_the_known_number_of_weights() -> None:
    assert stack("llama-2-7b").linear == 6_607_077_376
    assert stack("phi-1.5").linear == 1_312_817_152


def test_two_layers_extended_equal_all_layers_counted() -> None:
    full = weight_side_step("phi-1.5", "relaxed-reflection", 4, 64, layers=24)
    assert weight_side_step("phi-1.5", "relaxed-reflection", 4, 64) == full


def test_forward_and_backward_split_of_lora_on_llama() -> None:
    step = weight_side_step("llama-2-7b", "low-rank", 8, 256)
    assert (round(step.forward / 1e12, 3), round(step.backward / 1e12, 2)) == (3.419, 3.43)
    assert step.elementwise == 0


# --- this package's adapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-2-7b", "phi-1.5"])
def test_ether_on_activations_costs_what_lora_costs(name: str) -> None:
    lora = package_step(name, peft("LORA", r=8), 256).total
    ether = package_step(name, peft("ETHER"), 256).total
    relaxed = package_step(name, peft("ETHER", relaxed=True), 256).total
    assert 1 < ether / lora < 1.0025
    assert 1 < relaxed / lora < 1.0025


def test_ether_is_a_frozen_model_plus_reflections() -> None:
    """Beside the reflections it takes the frozen products and layer 0's input gradient through query and value."""
    s, tokens = stack("llama-2-7b"), 256
    step = package_step("llama-2-7b", peft("ETHER"), tokens)
    frozen = 4 * s.linear * tokens + 12 * tokens**2 * s.width * s.layers
    # Query, key and value read an input that is not trained, but the reflected ones pass a gradient on to the adapter.
    key = 2 * tokens * s.width**2 + 2 * tokens**2 * s.width  # layer 0's: neither its input nor the key itself needs one
    assert step.forward + step.backward == frozen - key
    reflections = 2 * s.layers * 12 * tokens * s.width - 2 * 2 * tokens * s.width  # no input gradient in layer 0
    assert step.elementwise == reflections


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_number_of_blocks_costs_nothing(relaxed: bool) -> None:
    steps = {package_step("phi-1.5", peft("ETHER", n_blocks=n, relaxed=relaxed), 256) for n in (1, 4, 32)}
    assert len(steps) == 1


def test_output_side_needs_no_gradient_for_the_first_layers_input() -> None:
    inside = package_step("llama-2-7b", peft("ETHER", sides="input"), 256)
    outside = package_step("llama-2-7b", peft("ETHER", sides="output"), 256)
    assert inside.backward - outside.backward == 2 * 2 * 256 * 4096**2  # dX through W_q and W_v of layer 0
    assert inside.forward == outside.forward


def test_the_real_reflection_is_restored_after_counting() -> None:
    from ether import reflection
    from ether.tuners import layer

    package_step("phi-1.5", peft("ETHER"), 16)
    assert layer.reflect is reflection.reflect


def test_at_equal_length_the_weight_side_is_dearer_in_operations_and_memory() -> None:
    rows = at_equal_length(256, ["lora", "ether-n32", "ether-plus-n32"])
    assert list(rows["model"].unique()) == list(MODELS)
    ether = rows[rows["method"] != "lora"]
    assert (ether["weight_side_tflops"] > 1.1 * ether["tflops"]).all()
    assert (ether["weight_side_gib"] > 1.2 * ether["gib"]).all()
    assert rows[rows["method"] == "lora"]["weight_side_gib"].isna().all()


def test_the_larger_model_gains_more_from_blocks_at_equal_length() -> None:
    """The claim of Table 1's caption, which the table itself confounds with different T."""
    for tokens in (256, 1044):
        for rule in ("reflection", "relaxed-reflection"):
            share = {m: closed_form(m, rule, 32, tokens) / closed_form(m, rule, 1, tokens) for m in flops.STACKS}
            assert share["llama-2-7b"] < share["phi-1.5"]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_of_parameters_gradients_and_optimiser_is_arithmetic() -> None:
    held = step_memory("llama-2-7b", peft("ETHER", relaxed=True), 16)
    trained = 1_048_576
    assert held.parameters == 2 * 6_738_415_616 + 4 * trained
    assert held.gradients == 4 * trained
    assert held.optimiser == 8 * trained
    assert held.total == held.parameters + held.beside_the_model


@pytest.mark.parametrize("name", ["llama-2-7b", "phi-1.5"])
def test_ether_saves_no_more_than_lora(name: str) -> None:
    lora, ether, relaxed = (
        step_memory(name, how, 128).beside_the_model for how in (peft("LORA", r=8), peft("ETHER"), peft("ETHER", relaxed=True))
    )
    assert ether < relaxed < lora


def test_the_weight_side_keeps_a_rebuilt_weight_a_layer() -> None:
    """Two bfloat16 4096 x 4096 weights in every layer but the first, whose input needs no gradient."""
    how = {"kind": "weight-side", "rule": "reflection", "size": 32}
    extra = step_memory("llama-2-7b", how, 16).activations - step_memory("llama-2-7b", peft("ETHER"), 16).activations
    assert extra == pytest.approx(31 * 2 * 2 * 4096**2, rel=0.01)


@pytest.mark.parametrize("how", [peft("LORA", r=2), peft("ETHER", relaxed=True)], ids=str)
def test_activations_are_those_that_a_real_step_saves(how: dict[str, Any]) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        attn_implementation="eager",
    )  # fmt: skip
    adapter = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(how["type"])](target_modules=["q_proj", "v_proj"], **how["config"])
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    of_model = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in of_model:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = language_model_loss(model, 5, 3)
    assert _saved(model.to("meta"), 5, 3) == sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert loss.isfinite()


# --- the weight-side modules compute what they are counted for -------------------------------------------------------


def filled(rule: str, n: int, size: int = 12) -> Any:
    module = weight_side.multiplier_class(rule)(size, n).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("n", [1, 3])
def test_weight_side_reflections_equal_the_dense_formula(n: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 12, dtype=torch.float64)
    ether, relaxed = filled("reflection", n), filled("relaxed-reflection", n)
    torch.testing.assert_close(ether(weight), dense_reflection(ether.u) @ weight)
    left, right = (dense_reflection(side.u, side.v) for side in (relaxed.left, relaxed.right))
    torch.testing.assert_close(relaxed(weight), left @ weight @ right)


@pytest.mark.parametrize("n", [1, 3])
def test_weight_side_oft_is_orthogonal_and_the_same_dense_or_in_blocks(n: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 12, dtype=torch.float64)
    blocks, dense = filled("orthogonal", n), filled("orthogonal-dense", n)
    dense.load_state_dict(blocks.state_dict())
    torch.testing.assert_close(blocks(weight), dense(weight))
    torch.testing.assert_close(blocks(weight).norm(dim=0), weight.norm(dim=0))


def test_the_fused_layer_adapts_the_configured_letters() -> None:
    torch.manual_seed(0)
    s = flops.Stack(width=8, hidden=12, layers=1, heads=2, vocabulary=5, gated=True, parallel=False)
    layer = flops.FusedLayer(s, "reflection", 2, "qv")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 8)
    q, k, v = layer.project(x).chunk(3, dim=-1)
    for letter, index, y in (("q", 0, q), ("v", 2, v)):
        torch.testing.assert_close(y, x @ (dense_reflection(layer.adapters[letter].u) @ layer.qkv[index]).T)
    torch.testing.assert_close(k, x @ layer.qkv[1].T)
    torch.nn.functional.cross_entropy(layer(x) @ torch.randn(8, 5), torch.zeros(4, dtype=torch.long)).backward()
    assert {n for n, p in layer.named_parameters() if p.grad is not None} == {"adapters.q.u", "adapters.v.u"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weight_side_step("llama-3", "reflection", 1, 8), "llama-2-7b"),
        (lambda: weight_side_step("llama-2-7b", "reflections", 1, 8), "relaxed-reflection"),
        (lambda: weight_side_step("llama-2-7b", "reflection", 3, 8), "4096"),
        (lambda: package_step("llama-2-7b", peft("ETHRE"), 8), "ETHER"),
        (lambda: package_step("llama-2-7b", {"kind": "full"}, 8), "weight-side"),
    ],
)
def test_wrong_names_are_errors_that_help(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()
