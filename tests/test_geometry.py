"""Distances and hyperspherical energy against dense matrices, closed forms and sums written out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import peft
import pytest
import torch
from torch import nn

import ether
import ether.methods.boft
from ether.dense import dense_blocks, dense_reflection
from ether.errors import ConfigurationError
from ether.measures import geometry

WIDE, NARROW = 24, 12


class Net(nn.Module):
    """Two linear layers of unequal sides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(NARROW, WIDE)
        self.down = nn.Linear(WIDE, NARROW)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


LAYERS = ["up", "down"]


def adapted(config: Any, noise: float = 0.3) -> nn.Module:
    """A small network adapted and moved away from where it starts."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def ether_config(**settings: Any) -> Any:
    return ether.EtherConfig(target_modules=LAYERS, **settings)


def oft_config() -> Any:
    return peft.OFTConfig(target_modules=LAYERS, oft_block_size=3, r=0, use_cayley_neumann=False)


def naive_config(**settings: Any) -> Any:
    return ether.NaiveConfig(target_modules=LAYERS, **settings)


# --- transformation distance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ether_is_exactly_two_a_block_and_two_root_n_a_layer(n: int) -> None:
    found = geometry.transformation_distances(adapted(ether_config(n_blocks=n)))
    assert [(d.layer, d.side) for d in found] == [("up", "input"), ("down", "input")]
    for d in found:
        assert d.blocks == pytest.approx([2.0] * n, abs=1e-14)
        assert d.value == pytest.approx(2 * math.sqrt(n), abs=1e-13)


@pytest.mark.parametrize("n", [1, 3])
def test_ether_plus_matches_the_dense_formula_and_its_bound(n: int) -> None:
    model = adapted(ether_config(relaxed=True, n_blocks=n))
    found = {(d.layer, d.side): d for d in geometry.transformation_distances(model)}
    assert set(found) == set(itertools.product(LAYERS, geometry.SIDES))
    for (name, side), distance in found.items():
        layer: Any = geometry.adapted_layers(model)[name]
        suffix = "" if side == "input" else "_out"
        u, v = (getattr(layer, f"ether_{letter}{suffix}")["default"].detach().double() for letter in "uv")
        dense = dense_reflection(u, v)
        assert distance.value == pytest.approx(float((dense - torch.eye(len(dense))).norm()), rel=1e-12)
        assert 0 < distance.value <= math.sqrt(2 * n) + 1e-12
    perpendicular = geometry.reflection_distances(torch.eye(4)[:1], torch.eye(4)[1:2])
    assert float(perpendicular) == pytest.approx(math.sqrt(2), abs=1e-15)


def test_a_tiny_angle_of_ether_plus_loses_no_digits() -> None:
    angle = 1e-9
    u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert float(geometry.reflection_distances(u, v)) == pytest.approx(math.sqrt(2) * math.sin(angle), rel=1e-12)


@pytest.mark.parametrize("side", ["input", "output"])
def test_one_sided_ether_plus_has_one_side(side: str) -> None:
    found = geometry.transformation_distances(adapted(ether_config(relaxed=True, sides=side)))
    assert {d.side for d in found} == {side}


def test_naive_matches_its_dense_matrix() -> None:
    model = adapted(naive_config(n_blocks=2))
    for distance in geometry.transformation_distances(model):
        layer: Any = geometry.adapted_layers(model)[distance.layer]
        dense = dense_blocks(layer.naive_blocks["default"].detach().double())
        assert distance.value == pytest.approx(float((dense - torch.eye(len(dense))).norm()), rel=1e-12)


def test_oft_blocks_are_rotations_that_peft_itself_merges() -> None:
    model = adapted(oft_config())
    for (name, before, after), distance in zip(
        geometry.weight_pairs(model), geometry.transformation_distances(model), strict=True
    ):
        layer: Any = geometry.adapted_layers(model)[name]
        blocks = geometry.rotation_blocks(layer, "default")
        assert torch.allclose(blocks @ blocks.mT, torch.eye(3, dtype=torch.float64).expand_as(blocks), atol=1e-12)
        dense = torch.block_diag(*blocks)
        assert torch.allclose(before @ dense.T, after, atol=1e-12)  # x R goes into W, so W becomes W R^T
        assert distance.value == pytest.approx(float((dense - torch.eye(len(dense))).norm()), rel=1e-12)
        assert len(distance.blocks) == before.shape[1] // 3


def test_additive_methods_have_no_transformation() -> None:
    assert geometry.transformation_distances(adapted(peft.LoraConfig(r=2, target_modules=LAYERS))) == []
    assert "transformation_distance" not in geometry.summary(adapted(peft.LoraConfig(r=2, target_modules=LAYERS)))


def test_with_several_adapters_one_must_be_chosen() -> None:
    model: Any = adapted(ether_config())
    model.add_adapter("second", ether_config(relaxed=True))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ConfigurationError, match=r"default, second.*adapter="):
        geometry.transformation_distances(model)
    assert {d.side for d in geometry.transformation_distances(model, "second")} == {"input", "output"}


# --- weight distance -------------------------------------------------------------------------------------------

CONFIGS = {
    "ether": ether_config(n_blocks=2),
    "ether-release": ether_config(n_blocks=2, layout="release"),
    "ether+": ether_config(relaxed=True),
    "naive": naive_config(n_blocks=2),
    "oft": oft_config(),
    "lora": peft.LoraConfig(r=2, target_modules=LAYERS),
    "boft": peft.BOFTConfig(target_modules=LAYERS, boft_block_size=2),
    "vera": peft.VeraConfig(r=2, target_modules=["up"]),
    "hra": peft.HRAConfig(r=2, target_modules=LAYERS),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_with_which_the_adapted_layer_computes(name: str) -> None:
    model = adapted(CONFIGS[name], noise=0.1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for layer_name, before, after in geometry.weight_pairs(model):
        layer: Any = geometry.adapted_layers(model)[layer_name]
        eye = torch.eye(layer.in_features)
        with torch.no_grad():
            columns = layer(eye) - layer(torch.zeros(1, layer.in_features))
            plain = layer.get_base_layer().weight.double()
        assert torch.equal(before, plain)
        assert torch.allclose(columns.T.double(), after, atol=2e-5), layer_name
        assert geometry.weight_distance(before, after) == pytest.approx(float((after - plain).norm()), rel=1e-12)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # measuring changes nothing


def test_lora_has_the_norm_of_its_product() -> None:
    model = adapted(peft.LoraConfig(r=2, lora_alpha=6, target_modules=LAYERS))
    found = geometry.weight_distances(model)
    for name, layer in geometry.adapted_layers(model).items():
        a, b = (getattr(layer, f"lora_{letter}")["default"].weight.detach().double() for letter in "AB")
        assert found[name] == pytest.approx(float((b @ a).norm()) * 3, rel=1e-10)


def test_full_fine_tuning_is_measured_against_a_reference() -> None:
    model = Net()
    reference = {name: getattr(model, name).weight.detach().clone() for name in LAYERS}
    with torch.no_grad():
        model.up.weight.add_(0.5)
    assert geometry.weight_distances(model, reference) == pytest.approx({"up": 0.5 * math.sqrt(WIDE * NARROW), "down": 0.0})
    with pytest.raises(ConfigurationError, match=r"'middle'.*Known:.*down"):
        geometry.weight_distances(model, {"middle": reference["up"]})


# --- hyperspherical energy -------------------------------------------------------------------------------------


def by_hand(weight: torch.Tensor) -> float:
    rows = [[float(x) for x in row] for row in weight]
    units = [[x / math.hypot(*row) for x in row] for row in rows]
    return sum(1 / math.dist(a, b) for i, a in enumerate(units) for j, b in enumerate(units) if i != j)


def test_energy_of_known_arrangements() -> None:
    corners = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [0.0, -1.0]])
    # each corner: two neighbours at sqrt 2 and one opposite at 2
    assert geometry.hyperspherical_energy(corners) == pytest.approx(4 * (2 / math.sqrt(2) + 1 / 2), rel=1e-14)
    assert geometry.hyperspherical_energy(torch.eye(5)) == pytest.approx(20 / math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 1000])
def test_energy_is_the_written_out_sum_whatever_the_chunks(chunk: int | None) -> None:
    weight = torch.randn(17, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert geometry.hyperspherical_energy(weight, "input", chunk) == pytest.approx(by_hand(weight), rel=1e-13)
    assert geometry.hyperspherical_energy(weight, "output", chunk) == pytest.approx(by_hand(weight.T), rel=1e-13)


def test_energy_of_near_and_same_neurons_and_of_none() -> None:
    angle = 1e-7
    close = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert geometry.hyperspherical_energy(close) == pytest.approx(2 / (2 * math.sin(angle / 2)), rel=1e-8)
    assert geometry.hyperspherical_energy(torch.ones(2, 3)) == math.inf
    with_zero = torch.cat([torch.eye(3), torch.zeros(1, 3)])
    assert geometry.hyperspherical_energy(with_zero) == geometry.hyperspherical_energy(torch.eye(3))
    assert math.isnan(geometry.hyperspherical_energy(torch.full((2, 2), math.nan)))
    with pytest.raises(ConfigurationError, match="left"):
        geometry.hyperspherical_energy(torch.eye(2), "left")
    with pytest.raises(ConfigurationError, match="matrix"):
        geometry.hyperspherical_energy(torch.ones(3))


@pytest.mark.parametrize("name", ["ether", "oft"])
def test_orthogonal_transformations_of_the_input_keep_the_input_sides_energy(name: str) -> None:
    found = geometry.summary(adapted(CONFIGS[name]))
    assert found["he_difference_input"] < 1e-12
    assert found["he_difference_output"] > 1e-5


def test_an_output_side_reflection_keeps_the_output_sides_energy() -> None:
    found = geometry.summary(adapted(ether_config(sides="output")))
    assert found["he_difference_output"] < 1e-12 < 1e-5 < found["he_difference_input"]


@pytest.mark.parametrize("name", ["ether+", "naive", "lora", "ether-release"])
def test_other_transformations_change_both_energies(name: str) -> None:
    found = geometry.summary(adapted(CONFIGS[name]))
    assert min(found["he_difference_input"], found["he_difference_output"]) > 1e-6


def test_the_summary_adds_up_and_remembers_the_energies_before() -> None:
    model = adapted(ether_config(relaxed=True, n_blocks=3))
    known: dict[str, dict[str, float]] = {}
    found = geometry.summary(model, before=known)
    distances = geometry.transformation_distances(model)
    assert found["transformation_distance_total"] == pytest.approx(math.sqrt(sum(d.value**2 for d in distances)))
    sides = (found["transformation_distance_input"], found["transformation_distance_output"])
    assert found["transformation_distance"] == pytest.approx(sum(sides) / 2)
    layers = geometry.weight_distances(model)
    assert found["weight_distance"] == pytest.approx(math.hypot(*layers.values()))
    assert found["weight_distance_layer"] == pytest.approx(sum(layers.values()) / 2)
    plain = {name: layer.get_base_layer().weight for name, layer in geometry.adapted_layers(model).items()}
    expected = geometry.energies(plain)
    assert known == expected
    assert geometry.summary(model, before=known) == found
