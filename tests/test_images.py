"""Image metrics against values computed by hand, and judges loaded from folders without torchvision."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from ether import hub
from ether.diffusion import judges as loading
from ether.errors import ConfigurationError, MissingResourceError
from ether.measures import images
from ether.preprocessing import Preprocessing, of_checkpoint
from ether.standins import diffusion as tiny_pipeline

RESOURCES = {"mirror": None, "foundation": "shipped"}


def noise(count: int, side: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# --- similarities ----------------------------------------------------------------------------------------------


def test_pairs_of_two_sets_and_of_one_with_itself() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 3.0]])
    assert images.pair_similarity(a, b) == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert images.pair_similarity(a) == pytest.approx(0.0, abs=1e-12)  # the image itself is left out
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert images.pair_similarity(c) == pytest.approx(2 * math.sqrt(0.5) / 3, abs=1e-7)
    assert math.isnan(images.pair_similarity(a[:1]))


def test_pairs_within_a_prompt_are_averaged_prompt_by_prompt() -> None:
    table = torch.tensor([[0.0, 1.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 9.0], [9.0, 9.0, 9.0, 0.0]])
    table[2, 3] = table[3, 2] = 4.0
    assert images.same_prompt_mean(table, [0, 0, 1, 1]) == pytest.approx((1 + 4) / 2)
    assert images.same_prompt_mean(table, [0, 0, 1, 2]) == pytest.approx(1.0)
    assert math.isnan(images.same_prompt_mean(table, [0, 1, 2, 3]))


class Layers:
    """A judge whose layers are given."""

    def __init__(self, layers: list[torch.Tensor]) -> None:
        self.given = layers

    def layers(self, _: torch.Tensor) -> list[torch.Tensor]:
        return self.given


def test_the_perceptual_distance_is_lpips_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(3, 5, 4, generator=generator), torch.randn(3, 2, 6, generator=generator)]
    distance = images.ViTDistance(Layers(layers))  # type: ignore[arg-type]
    encoded = distance.encode(torch.zeros(3, 3, 8, 8))
    found = distance.table(encoded, encoded)
    for i in range(3):
        for j in range(3):
            expected = 0.0
            for layer in layers:
                x, y = (layer[k].double() / layer[k].double().norm(dim=1, keepdim=True) for k in (i, j))
                expected += float(((x - y) ** 2).sum(dim=1).mean())
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-7)
    assert torch.equal(distance.table(distance.rows(encoded, [2]), encoded), found[2:])


class Judge:
    """A judge that reads an image's mean colour, so that every value can be worked out by hand."""

    def features(self, given: torch.Tensor) -> torch.Tensor:
        return given.mean((-1, -2))

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.tensor([float(letter in text) for letter in "rgb"]) for text in texts])


class Difference:
    """|mean of one image - mean of another|."""

    def encode(self, given: torch.Tensor) -> torch.Tensor:
        return given.mean((-1, -2, -3)).double()

    def table(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.unsqueeze(1) - b).abs()

    def rows(self, a: torch.Tensor, indices: list[int]) -> torch.Tensor:
        return a[indices]


def colours(*values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def test_all_metrics_of_a_small_case_by_hand() -> None:
    judges = images.Judges(Judge(), Judge(), Difference())  # type: ignore[arg-type]
    real = images.Real.of(colours((1, 0, 0), (1, 1, 0)), judges)
    made = colours((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0.5))
    generated = images.Generated.of(made, [4, 4, 7, 7], {4: "r", 7: "b"}, real, judges)
    generated.extra["reader"] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    half = math.sqrt(0.5)
    found = images.measure(generated, real)
    assert found == pytest.approx(
        {
            "dino": (1 + 0 + 0 + 0 + half + half + 0 + 0) / 8,
            "clip_i": (1 + 0 + 0 + 0 + half + half + 0 + 0) / 8,
            "clip_t": (1 + 0 + 1 + 1) / 4,
            "lpips_real": (0 + 0 + 0 + 1 / 6 + 1 / 3 + 1 / 3 + 1 / 3 + 1 / 2) / 8,
            "lpips_prompt": (0 + 1 / 6) / 2,
            "reader": 0.75,
        },
        abs=1e-6,
    )
    one = images.measure(generated, real, among=[7])
    assert one["clip_t"] == pytest.approx(1.0) and one["dino"] == pytest.approx(0.0, abs=1e-7) and one["reader"] == 1.0
    without = images.measure(generated, real, altered=[7])  # the images of prompt 7 are not compared with the real ones
    kept = {"dino": (1 + 0 + half + half) / 4, "clip_i": (1 + 0 + half + half) / 4, "lpips_real": (0 + 1 / 3 + 0 + 1 / 3) / 4}
    assert without == pytest.approx(found | kept, abs=1e-6)
    assert images.measure_real(real, judges) == pytest.approx({"dino": half, "clip_i": half, "lpips_real": 1 / 3}, abs=1e-6)
    assert all(math.isnan(value) for value in images.measure(generated, real, among=[]).values())


# --- preparing images ------------------------------------------------------------------------------------------


def test_preparing_agrees_with_pillow() -> None:
    smooth = functional.interpolate(noise(1, 6), (30, 42), mode="bicubic").clamp(0, 1)
    prepare = Preprocessing(20, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    found = prepare(smooth)[0]
    assert found.shape == (3, 16, 16)
    picture = Image.fromarray((smooth[0].permute(1, 2, 0) * 255).round().byte().numpy())
    resized = np.asarray(picture.resize((28, 20), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = (torch.from_numpy(resized[2:18, 6:22]).permute(2, 0, 1) - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / (
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    )
    assert (found - expected).abs().max() < 2 / 255 / 0.2  # Pillow rounds to 8 bits on the way in and out


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": {"shortest_edge": 9}, "crop_size": 8, "do_center_crop": True}, (9, (8, 8), "bicubic")),
        ({"size": {"height": 7, "width": 5}, "resample": 2}, ((7, 5), None, "bilinear")),
        ({"size": 6}, ((6, 6), None, "bicubic")),
        ({}, ((32, 32), None, "bicubic")),
    ],
)
def test_preprocessor_files_of_several_forms(tmp_path: Path, config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = of_checkpoint(hub.Source("judge", tmp_path), 32, "subject.judges.dino.path")
    assert (found.size, found.crop, found.mode) == expected
    assert found(noise(2)).shape[0] == 2


def test_a_judge_without_a_preprocessor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"preprocessor_config\.json"):
        of_checkpoint(hub.Source("judge", tmp_path), 32, "subject.judges.dino.path")


# --- judges ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("judges")
    tiny_pipeline.write_clip(folder / "clip")
    tiny_pipeline.write_dino(folder / "dino")
    return {role: {"path": str(folder / role), "revision": None} for role in ("clip", "dino")}


def load(wanted: dict[str, Any], lpips: str = "judge") -> images.Judges:
    return loading.load_judges({**wanted, "lpips": lpips}, RESOURCES, Path(), "cpu")


def test_judges_load_from_folders_and_leave_the_random_numbers_alone(judge_folders: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    judges = load(judge_folders)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "torchvision" not in sys.modules
    pictures = noise(3)
    assert judges.dino.features(pictures).shape == (3, 16) and judges.clip.features(pictures).shape == (3, 16)
    assert [layer.shape for layer in judges.dino.layers(pictures)] == [(3, 16, 16)] * 3  # 4 x 4 patches, no class token
    assert judges.clip.text_features(["a dog", "a very long text " * 40]).shape == (2, 16)
    assert judges.lpips_name == images.LPIPS_NETWORKS["judge"]
    table = judges.lpips.table(judges.lpips.encode(pictures), judges.lpips.encode(pictures))
    assert table.diagonal().abs().max() < 1e-12 and (table + torch.eye(3) > 0).all() and torch.allclose(table, table.T)


def test_clip_features_are_those_of_the_models_methods(judge_folders: dict[str, Any]) -> None:
    clip = load(judge_folders).clip
    with torch.no_grad():
        tokens = clip.tokenizer(["a photo of a dog", "a cat"], padding=True, return_tensors="pt")
        whole = clip.model(pixel_values=clip.prepare(noise(2)), **tokens)
    assert torch.allclose(functional.normalize(clip.features(noise(2))), whole.image_embeds, atol=1e-6)
    assert torch.allclose(functional.normalize(clip.text_features(["a photo of a dog", "a cat"])), whole.text_embeds, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed here")
def test_alexnet_without_torchvision_says_what_to_install(judge_folders: dict[str, Any]) -> None:
    with pytest.raises(MissingResourceError, match=r'pip install "ether-peft\[paper\]"'):
        load(judge_folders, "alex")


def test_alexnet_compares_every_pair_once() -> None:
    class Fake:
        device = "cpu"

        def update(self, a: torch.Tensor, b: torch.Tensor) -> None:
            self.value = (a - b).flatten(1).abs().mean(1)

        def compute(self) -> torch.Tensor:
            return self.value

        def reset(self) -> None:
            pass

    distance = images.AlexDistance.__new__(images.AlexDistance)
    distance.metric = Fake()
    a, b = noise(9, 4), noise(10, 4, seed=1)  # 90 pairs: more than a batch
    expected = (a.unsqueeze(1) - b).abs().mean((-1, -2, -3)).double()
    assert torch.allclose(distance.table(distance.encode(a), distance.encode(b)), expected, atol=1e-6)
    assert torch.equal(distance.rows(a, [3]), a[3:4])


def test_unknown_or_missing_judges_are_reported(judge_folders: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'vgg'.*subject\.judges\.lpips.*Known: alex, judge"):
        load(judge_folders, "vgg")
    with pytest.raises(MissingResourceError, match=r"subject\.judges\.dino\.path"):
        load({**judge_folders, "dino": {"path": str(tmp_path), "revision": None}})


def test_register_tokens_are_no_patches() -> None:
    class Model:
        config = SimpleNamespace(num_register_tokens=4)
        device, dtype = torch.device("cpu"), torch.float32

        def eval(self) -> Model:
            return self

        def requires_grad_(self, _: bool) -> Model:
            return self

        def __call__(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> Any:
            states = torch.arange(9.0).view(1, 9, 1).expand(len(pixel_values), 9, 2)
            return SimpleNamespace(last_hidden_state=states, hidden_states=(states, states))

    judge = images.VisionJudge(Model(), Preprocessing(8, None, (0, 0, 0), (1, 1, 1)))
    assert judge.layers(noise(2, 8))[0][0, :, 0].tolist() == [5.0, 6.0, 7.0, 8.0]
