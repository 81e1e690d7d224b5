"""The parts of the diffusion experiments: the data set, the loss, the reader's attributes, random transformations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from subjects import METHODS, PROMPTS, write_subjects

from ether.diffusion import dataset, perturb
from ether.diffusion.evaluation import attribute_shares
from ether.diffusion.judges import load_reader
from ether.diffusion.losses import DreamBoothLoss
from ether.diffusion.sampler import generator
from ether.errors import ConfigurationError, MissingResourceError
from ether.measures import geometry
from ether.methods import adapt as methods
from ether.standins import diffusion as tiny_pipeline
from ether.training import chosen_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_subjects(tmp_path / "subjects")


# --- the data set ----------------------------------------------------------------------------------------------


def test_the_prompt_file_is_read_as_it_is_published(folder: Path) -> None:
    classes, prompts = dataset.read_prompt_file(PROMPTS, "here")
    assert classes == {"dog": "dog", "vase": "flower vase"} and len(prompts["object"]) == 4 and len(prompts["live"]) == 3
    found = dataset.subject_prompts(folder, "vase", "qwe", None, ("dog",))
    assert [(p.text, p.plain) for p in found][1:3] == [
        ('a qwe flower vase on "pink" fabric', 'a flower vase on "pink" fabric'),
        ("a red qwe flower vase", "a red flower vase"),
    ]
    assert [p.half for p in found] == ["selection", "report"] * 2
    live = dataset.subject_prompts(folder, "dog", "", 2, ("dog",))
    assert [(p.number, p.text) for p in live] == [(0, "a dog in the jungle"), (1, "a dog wearing a hat")]
    with pytest.raises(ConfigurationError, match=r"'cat'.*Known: dog, vase"):
        dataset.subject_prompts(folder, "cat", "qwe", None, ())
    with pytest.raises(ConfigurationError, match="halves"):
        dataset.subject_prompts(folder, "dog", "qwe", 1, ())
    with pytest.raises(MissingResourceError, match="names no prompts"):
        dataset.read_prompt_file(PROMPTS.split("Prompts")[0], "here")
    with pytest.raises(MissingResourceError, match=r"'cat'.*dog, vase"):
        dataset.subject_files(folder, "cat")


def test_a_metadata_file_gives_the_halves_and_the_attributes_of_prompts(folder: Path) -> None:
    _, templates = dataset.read_prompt_file(PROMPTS, "here")
    entries = [
        {"template": template, "split": ("report", "selection")[i % 2], **({"colour": "red"} if "red" in template else {})}
        for i, template in enumerate(templates["object"])
    ]
    (folder / "metadata.json").write_text(json.dumps({"prompts": entries}))
    found = dataset.subject_prompts(folder, "vase", "qwe", None, ())
    assert [p.half for p in found] == ["report", "selection"] * 2
    assert [p.attributes for p in found] == [(), (), (("colour", "red"),), ()]
    assert [p.altered for p in found] == [False, False, True, False]


def test_prompts_that_name_the_class_as_a_word_are_not_unrelated() -> None:
    prompts = ["a photo of a hat", "Hat and coat", "a hatstand", "a flower vase", "a vase of flowers"]
    assert dataset.unrelated_prompts(prompts, "hat") == prompts[2:]
    assert dataset.unrelated_prompts(prompts, "flower vase") == [*prompts[:3], prompts[4]]
    with pytest.raises(ConfigurationError, match=r"`subject\.drift\.prompts` contains the class 'hat'"):
        dataset.unrelated_prompts(prompts[:2], "hat")


def test_templates_are_filled_with_the_right_article() -> None:
    assert dataset.filled("a photo of a {0} {1} on the grass", "qwe", "octopus") == "a photo of a qwe octopus on the grass"
    assert dataset.filled("a photo of a {0} {1} on the grass", "", "octopus") == "a photo of an octopus on the grass"
    assert dataset.filled("a photo of {1}", "", "octopus") == "a photo of octopus"
    assert dataset.filled("a {0} {1}", "", "dog") == "a dog"


def test_pictures_are_the_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (dataset.read_pictures([tmp_path / "wide.png"], 10) == 1).all()
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(MissingResourceError, match=r"bad\.jpg"):
        dataset.read_pictures([tmp_path / "bad.jpg"], 10)


# --- evaluation ------------------------------------------------------------------------------------------------


def test_the_best_step_is_the_earliest_of_the_highest_scores() -> None:
    scores = {(1, "selection"): 0.4, (1, "report"): 0.1, (2, "selection"): 0.4, (2, "report"): 0.2, (3, "selection"): math.nan}
    rows = [(step, split, "score", value) for (step, split), value in scores.items()]
    assert chosen_rows(rows, 3) == [(1, "best", "score", 0.1)]  # no pictures of the last step: no row for it


def test_a_readers_attributes_are_compared_with_those_of_each_prompt() -> None:
    numbers = [0, 0, 3, 3]
    prompts = [
        dataset.Prompt(0, "", "", "report", (("background", "sand"),)),
        dataset.Prompt(3, "", "", "selection", (("background", "grass"), ("colour", "red"))),
    ]
    words = [("sand", "red", "hat"), ("grass", "none", "cap"), ("grass", "blue", "hat"), ("grass", "red", "fox")]
    readings = [dict(zip(("background", "colour", "thing"), three, strict=True)) for three in words]
    assert attribute_shares(readings, numbers, prompts) == {"background": 0.75, "colour": 0.5}
    assert attribute_shares(readings, numbers, prompts[:1]) == {"background": 0.5}
    assert attribute_shares([], numbers, prompts) == {}


def test_the_reader_of_the_world_of_pictures_is_loaded_and_reads(tmp_path: Path) -> None:
    from ether.foundation import image_judges

    image_judges.new_reader().save_pretrained(tmp_path / "reader")
    settings = {"path": str(tmp_path), "revision": None, "subfolder": "reader"}
    read = load_reader(settings, {"mirror": None, "foundation": "shipped"}, tmp_path)
    assert read is not None
    found = read(torch.rand(3, 3, 64, 64))
    assert len(found) == 3 and {"background", "colour", "thing"} <= set(found[0])
    assert load_reader(None, {}, tmp_path) is None


# --- the loss --------------------------------------------------------------------------------------------------


class Echo(torch.nn.Module):
    """A "UNet" that returns what went in, and remembers it."""

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.seen = noisy, times, given["encoder_hidden_states"]
        return (noisy,)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_dreambooths_for_each_kind_of_prediction(kind: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind)
    instances, prior = torch.randn(2, 4, 3, 3), torch.randn(5, 4, 3, 3)
    texts = torch.zeros(7, 6), torch.ones(7, 6)
    module = DreamBoothLoss(Echo(), scheduler, 3, (instances, texts[0]), (prior, texts[1]), 0.5)
    found = float(module(torch.tensor([0, 1]))["loss"])
    noisy, times, text = module.model.seen  # type: ignore[union-attr, misc]
    assert text[:, 0, 0].tolist() == [0, 0, 1, 1]
    level = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    expected = []
    for row in range(4):
        candidates = instances if row < 2 else prior
        noises = [(noisy[row] - level[row].sqrt() * clean) / (1 - level[row]).sqrt() for clean in candidates]
        drawn = torch.randn(4, 3, 3, generator=_after_time(3, "instance" if row < 2 else "prior", row % 2))
        place = min(range(len(noises)), key=lambda i: float((noises[i] - drawn).abs().max()))
        assert torch.allclose(noises[place], drawn, atol=1e-3 / float((1 - level[row]).sqrt()))
        clean = candidates[place]
        velocity = level[row].sqrt() * drawn - (1 - level[row]).sqrt() * clean
        target = {"epsilon": drawn, "v_prediction": velocity, "sample": clean}[kind]
        expected.append(float((noisy[row] - target).square().mean()))
    assert found == pytest.approx((expected[0] + expected[1]) / 2 + 0.5 * (expected[2] + expected[3]) / 2, rel=1e-3)


def _after_time(seed: int, name: str, number: int) -> torch.Generator:
    random = generator(seed, name, "draw", number)
    torch.randint(1000, (), generator=random)
    return random


def loss_with_times(times: str) -> DreamBoothLoss:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return DreamBoothLoss(Echo(), scheduler, 3, (torch.zeros(2, 1, 1, 1), torch.zeros(1, 1)), None, 0.0, times)


def test_times_have_the_distribution_that_is_named() -> None:
    levels = loss_with_times("noise").scheduler.alphas_cumprod.double()
    noise = 1 - levels
    for times, expected in (("uniform", torch.full((1000,), 0.001)), ("noise", 0.0005 + noise / noise.sum() / 2)):
        module = loss_with_times(times)
        drawn = module._batch("instance", module.parts[0][1], range(4000))[2]
        counts = torch.bincount(drawn // 100, minlength=10).double()
        wanted = 4000 * expected.double().view(10, 100).sum(1)
        assert float(((counts - wanted).square() / wanted).sum()) < 27.9, times  # chi-squared with 9 degrees: p > .001
    again = loss_with_times("noise")
    assert torch.equal(again._batch("instance", again.parts[0][1], range(3990, 4000))[2], drawn[-10:])  # by the number alone
    with pytest.raises(ConfigurationError, match=r"'late'.*Known: noise, uniform"):
        loss_with_times("late")


def test_uniform_times_are_the_first_integer_of_each_samples_generator() -> None:
    module = loss_with_times("uniform")
    _, noise, times = module._batch("instance", module.parts[0][1], range(5))
    for number in range(5):
        random = generator(3, "instance", "draw", number)
        assert int(times[number]) == int(torch.randint(1000, (), generator=random))
        assert torch.equal(noise[number], torch.randn(1, 1, 1, generator=random))


def test_every_picture_is_seen_once_an_epoch() -> None:
    module = DreamBoothLoss(Echo(), SimpleNamespace(config=SimpleNamespace(num_train_timesteps=9)), 0,
                                (torch.arange(5.0).view(5, 1, 1, 1), torch.zeros(1, 1)), None, 0.0)  # fmt: skip
    latents = module.parts[0][1]
    epochs = [module._batch("instance", latents, range(5 * e, 5 * e + 5))[0].flatten().tolist() for e in range(3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1


# --- perturbation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ether", "ether-plus", "oft", "naive"])
def test_random_transformations_have_the_given_distance(method: str) -> None:
    model = methods.adapt(tiny_pipeline.pipeline().unet, METHODS[method], layers="attention", head=())
    low, high = perturb.reachable(model)
    assert (low, high) == pytest.approx(
        {"ether": (2, 2), "ether-plus": (0, 2), "oft": (0, 8), "naive": (0, math.inf)}[method]
    )  # OFT: 2 sqrt(16), the narrowest input
    turned = []
    for distance in perturb.grid([0.1, 1.5, 5.0], low, high):
        perturb.perturb(model, distance, seed=0)
        assert all(d.value == pytest.approx(distance, rel=1e-4) for d in geometry.transformation_distances(model))
        turned.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        perturb.perturb(model, distance, seed=0)
        again = [p for p in model.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(turned[-1], again, strict=True))
    if math.isfinite(high):
        with pytest.raises(ConfigurationError, match="out of reach"):
            perturb.perturb(model, 9.0, seed=0)


def test_grids_end_where_the_method_does() -> None:
    assert perturb.grid([1, 2, 4], 2, 2) == [2]
    assert perturb.grid([1, 2, 4], 0, 3) == [1, 2, 3]
    assert perturb.grid([1, 1.41, 2], 0, math.sqrt(2)) == [1, math.sqrt(2)]
    assert perturb.grid([1, 2, 3, 4], 0, 3, end=False) == [1, 2]
    assert perturb.grid([1, 2, 4], 0, math.inf) == [1, 2, 4]


def test_methods_without_a_transformation_are_refused() -> None:
    model = methods.adapt(tiny_pipeline.pipeline().unet, METHODS["lora"], layers="attention", head=())
    with pytest.raises(ConfigurationError, match="only ETHER"):
        perturb.perturb(model, 1.0, seed=0)
    series = {"kind": "peft", "type": "OFT", "config": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": True}}
    model = methods.adapt(tiny_pipeline.pipeline().unet, series, layers="attention", head=())
    with pytest.raises(ConfigurationError, match="use_cayley_neumann"):
        perturb.perturb(model, 1.0, seed=0)
