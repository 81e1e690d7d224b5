"""DreamBooth from end to end on a tiny random Stable Diffusion: same bits after a resume, same noise for every method."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ether import hub, run
from ether.methods import adapt as methods
from ether.config import RunSpec
from ether.errors import ConfigurationError, MissingResourceError
from ether.experiments import Experiment, perturbation, subject
from ether.measures import geometry
from ether.standins import __main__ as standins
from ether.standins import diffusion as tiny_pipeline

HUB = Path(__file__).resolve().parent.parent.parent / "shared" / "hub"
PROMPTS = """Classes

subject_name,class
dog,dog
vase,flower vase

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} on "pink" fabric'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a {0} {1} at sea'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""
ETHER = {"kind": "peft", "type": "ETHER", "config": {"n_blocks": 1}}
METHODS: dict[str, dict[str, Any]] = {
    "ether": ETHER,
    "ether-plus": {"kind": "peft", "type": "ETHER", "config": {"relaxed": True, "n_blocks": 2}},
    "oft": {"kind": "peft", "type": "OFT", "config": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}},
    "naive": {"kind": "peft", "type": "NAIVE", "config": {"n_blocks": 2}},
    "lora": {"kind": "peft", "type": "LORA", "config": {"r": 2}},
    "full": {"kind": "full"},
    "none": {"kind": "none"},
}


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with the tiny models and a data set of drawn pictures in google/dreambooth's layout."""
    folder = tmp_path_factory.mktemp("mirror")
    tiny_pipeline.write_mirror(folder)
    dataset = folder / "datasets" / "google" / "dreambooth" / "dataset"
    random = np.random.default_rng(0)
    for name, colour in (("dog", (200, 90, 40)), ("vase", (40, 90, 200))):
        (dataset / name).mkdir(parents=True)
        for number in range(3):
            picture = np.full((40, 48, 3), random.integers(0, 255, 3), dtype=np.uint8)
            picture[8 + number : 30, 12:36] = colour
            Image.fromarray(picture).save(dataset / name / f"{number:02d}.png")
    (dataset / subject.PROMPT_FILE).write_text(PROMPTS)
    gc.freeze()  # as ether.run does: the Trainer collects garbage after every run, over all that was imported
    return folder


def spec(mirror: Path, method: str = "ether", task: str = "dog", **changes: Any) -> RunSpec:
    """A run of four steps; `changes` go into its hyperparameters."""
    return RunSpec(
        "subject", "smoke", method, method, task, 0, METHODS[method],
        {
            "learning_rate": 1e-2, "batch_size": 2, "accumulation": 1, "max_steps": 4, "warmup": 0.0,
            "schedule": "constant", "weight_decay": 0.01, "max_grad_norm": 1.0, "evaluations": 2, "checkpoint_steps": None,
            "precision": "float32", "dropout": 0.0,
        } | changes,
        {
            "model": {"path": tiny_pipeline.PIPELINE, "revision": None},
            "data": {"path": "google/dreambooth", "revision": None},
            "judges": {
                "dino": {"path": tiny_pipeline.DINO, "revision": None},
                "clip": {"path": tiny_pipeline.CLIP, "revision": None},
                "lpips": "judge",
            },
            "layers": "attention", "head": [], "prompts": {"token": "qwe", "limit": None},
            "sampling": {"steps": 2, "guidance": 2.0, "images_per_prompt": 2, "batch": 8},
            "selection": {"metrics": ["dino", "clip_t"]}, "prior": {"images": 3, "weight": 1.0},
        },
        {"mirror": str(mirror), "foundation": "shipped", "device": "cpu"},
    )  # fmt: skip


def carry_out(
    wanted: RunSpec, results: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Experiment = subject.EXPERIMENT
) -> tuple[dict[str, Any], dict[tuple[int, str, str], float]]:
    """A run through the one path; its row, and its values by step, split and metric."""
    monkeypatch.setattr(run, "experiment", lambda _: benchmark)
    benchmark.check(wanted, results)
    row, values = run.run(wanted, results, folder)
    found = {(v["step"], v["split"], v["metric"]): v["value"] for v in values}
    assert len(found) == len(values)
    return row, found


# --- the data set ----------------------------------------------------------------------------------------------


def test_the_prompt_file_is_read_as_it_is_published(mirror: Path) -> None:
    folder = mirror / "datasets" / "google" / "dreambooth" / "dataset"
    classes, prompts = subject.read_prompt_file(PROMPTS, "here")
    assert classes == {"dog": "dog", "vase": "flower vase"} and len(prompts["object"]) == 4 and len(prompts["live"]) == 3
    found = subject.subject_prompts(folder, "vase", "qwe", None, ("dog",))
    assert [(p.text, p.plain) for p in found][1:3] == [
        ('a qwe flower vase on "pink" fabric', 'a flower vase on "pink" fabric'),
        ("a red qwe flower vase", "a red flower vase"),
    ]
    assert [p.half for p in found] == ["selection", "report"] * 2
    live = subject.subject_prompts(folder, "dog", "", 2, ("dog",))
    assert [(p.number, p.text) for p in live] == [(0, "a dog in the jungle"), (1, "a dog wearing a hat")]
    with pytest.raises(ConfigurationError, match=r"'cat'.*Known: dog, vase"):
        subject.subject_prompts(folder, "cat", "qwe", None, ())
    with pytest.raises(ConfigurationError, match="halves"):
        subject.subject_prompts(folder, "dog", "qwe", 1, ())
    with pytest.raises(MissingResourceError, match="names no prompts"):
        subject.read_prompt_file(PROMPTS.split("Prompts")[0], "here")
    with pytest.raises(MissingResourceError, match=r"'cat'.*dog, vase"):
        subject.subject_files(folder, "cat")


def test_a_metadata_file_says_the_halves_and_what_prompts_ask_for(mirror: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mirror / "datasets" / "google" / "dreambooth" / "dataset", tmp_path / "dataset"))
    _, templates = subject.read_prompt_file(PROMPTS, "here")
    said = [
        {"template": template, "split": ("report", "selection")[i % 2], **({"colour": "red"} if "red" in template else {})}
        for i, template in enumerate(templates["object"])
    ]
    (folder / "metadata.json").write_text(json.dumps({"prompts": said}))
    found = subject.subject_prompts(folder, "vase", "qwe", None, ())
    assert [p.half for p in found] == ["report", "selection"] * 2
    assert [p.asks for p in found] == [(), (), (("colour", "red"),), ()]


def test_pictures_are_the_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (subject.read_pictures([tmp_path / "wide.png"], 10) == 1).all()
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(MissingResourceError, match=r"bad\.jpg"):
        subject.read_pictures([tmp_path / "bad.jpg"], 10)


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every method's run of four steps: {method: (row, values)}, and where the results lie."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        found = {m: carry_out(spec(mirror, m), results, results / "work" / m, patch) for m in METHODS}
    return SimpleNamespace(results=results, runs=found)


def test_every_method_runs_to_the_end_with_finite_metrics(finished: Any) -> None:
    judged = {"dino", "clip_i", "clip_t", "lpips_real", "lpips_prompt", "score"}
    for method, (row, values) in finished.runs.items():
        assert (row["status"], row["reason"]) == ("finished", "")
        assert all(math.isfinite(value) for value in values.values())
        last = 0 if method == "none" else 4
        steps = {step for step, split, _ in values if split == "validation"}
        assert steps == ({0} if method == "none" else {2, 4})
        for split in ("validation", "selection", "report", "last"):
            assert {metric for step, where, metric in values if (step, where) == (last, split)} == judged, (method, split)
        assert {metric for step, split, metric in values if split == "real"} == {"dino", "clip_i", "lpips_real"}
        assert (row["trainable_parameters"] == 0) == (method == "none") and row["steps"] == last
        if method != "none":
            assert values[4, "train", "loss"] > 0 and values[4, "geometry", "weight_distance"] > 0


def test_the_geometry_is_that_of_the_method(finished: Any) -> None:
    got = {m: {k[2]: v for k, v in values.items() if k[:2] == (4, "geometry")} for m, (_, values) in finished.runs.items()}
    assert got["ether"]["transformation_distance"] == pytest.approx(2, abs=1e-6)
    assert 0 < got["ether-plus"]["transformation_distance"] <= math.sqrt(2 * 2)
    assert max(got["ether"]["he_difference_input"], got["oft"]["he_difference_input"]) < 1e-5
    assert min(got["naive"]["he_difference_input"], got["ether-plus"]["he_difference_input"]) > 1e-6
    assert "transformation_distance" not in got["lora"] and "transformation_distance" not in got["full"]
    assert got["full"]["weight_norm"] == pytest.approx(got["lora"]["weight_norm"])  # the same layers are measured


def test_last_and_best_are_of_the_half_that_was_not_chosen_on(finished: Any) -> None:
    _, values = finished.runs["lora"]
    best = max((2, 4), key=lambda step: values[step, "selection", "score"])
    for metric in ("dino", "clip_t", "score"):
        assert values[4, "last", metric] == values[4, "report", metric]
        assert values[best, "best", metric] == values[best, "report", metric]
    scores = {(1, "selection"): 0.4, (1, "report"): 0.1, (2, "selection"): 0.4, (2, "report"): 0.2, (3, "selection"): math.nan}
    rows = [(step, split, "score", value) for (step, split), value in scores.items()]
    assert subject.chosen_rows(rows, 3) == [(1, "best", "score", 0.1)]  # no pictures of the last step: no row for it


def test_samples_are_saved_and_their_sheet_shows_them(finished: Any, mirror: Path) -> None:
    folder = finished.results / "samples" / "subject" / spec(mirror, "lora").run_id
    about = json.loads((folder / "samples.json").read_text())
    assert len(about["images"]) == 3 * 2 and about["step"] == 4
    assert about["images"][3] == {"file": "01-1.png", "prompt": "a qwe dog wearing a hat", "half": "report"}
    with Image.open(folder / "01-1.png") as one, Image.open(folder / "sheet.png") as sheet:
        enlarged = one.resize((96, 96), Image.Resampling.NEAREST)
        corner = (4 + 100, 4 + 118 + 18)
        assert sheet.crop((*corner, corner[0] + 96, corner[1] + 96)).tobytes() == enlarged.tobytes()


def test_a_run_repeats_to_the_bit_and_so_does_one_resumed(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 4, "evaluations": 4, "checkpoint_steps": 2}
    wanted = spec(mirror, "ether-plus", **settings)
    _, whole = carry_out(wanted, finished.results, tmp_path / "whole", monkeypatch)
    forward, seen = subject.DreamBooth.forward, []

    def interrupted(self: subject.DreamBooth, index: torch.Tensor) -> dict[str, torch.Tensor]:
        if 6 in index.tolist():  # the fourth step
            raise KeyboardInterrupt
        return forward(self, index)

    def counted(self: subject.DreamBooth, index: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(index.tolist())
        return forward(self, index)

    monkeypatch.setattr(subject.DreamBooth, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out(wanted, finished.results, tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(subject.DreamBooth, "forward", counted)
    _, resumed = carry_out(wanted, finished.results, tmp_path / "cut", monkeypatch)
    assert seen == [[4, 5], [6, 7]]
    assert resumed == whole


def test_all_methods_draw_from_the_same_noise(finished: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    draw = subject.Studio.draw

    def watched(self: subject.Studio, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        starts.append((embeddings, noise))
        return draw(self, embeddings, noise)

    monkeypatch.setattr(subject.Studio, "draw", watched)
    for method, seed in (("ether", 0), ("lora", 1)):
        wanted = dataclasses.replace(spec(mirror, method), seed=seed)
        loaded = subject.EXPERIMENT.load(wanted, finished.results, "cpu")
        subject.Evaluation(loaded, wanted).draw()
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
    assert len({tuple(start.flatten().tolist()) for start in starts[0][1]}) == 6  # and every picture from its own


def test_a_prompts_picture_does_not_depend_on_its_company(finished: Any, mirror: Path) -> None:
    wanted = spec(mirror)
    studio = subject.EXPERIMENT.load(wanted, finished.results, "cpu").data["studio"]
    noise, texts = studio.noise(["a", "b", "c"]), studio.encode(["a dog", "a cat", "a vase"])
    together = studio.draw(texts, noise)
    assert (together[1:2].int() - studio.draw(texts[1:2], noise[1:2]).int()).abs().max() <= 1  # rounding of 8 bits


def test_class_pictures_are_drawn_once_by_the_frozen_model(finished: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list((finished.results / "cache" / "class-images").iterdir())
    assert len(files) == 1  # all methods of one class
    monkeypatch.setattr(subject.Studio, "draw", lambda *_: pytest.fail("drawn again"))
    latents, _ = subject.EXPERIMENT.load(spec(mirror, "oft"), finished.results, "cpu").data["prior"]
    assert latents.shape == (3, 4, 8, 8)


def test_a_run_that_diverges_is_a_row_with_its_reason(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(mirror, "lora", learning_rate=1e30, max_grad_norm=0.0)
    row, values = carry_out(wanted, finished.results, tmp_path, monkeypatch)
    assert row["status"] == "diverged" and "loss is nan" in row["reason"] and "no pictures" in row["reason"]
    assert not any(split == "last" for _, split, _ in values)


def test_training_lowers_the_loss_it_is_for(finished: Any, mirror: Path, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    wanted = spec(mirror, "ether-plus", max_steps=16, evaluations=1, learning_rate=5e-2)
    wanted.settings["prompts"] = {"token": "qwe", "limit": 2}
    loaded = subject.EXPERIMENT.load(wanted, finished.results, "cpu")
    scheduler = DDPMScheduler.from_config(loaded.data["studio"].pipeline.scheduler.config)

    def loss(model: torch.nn.Module) -> float:
        module = subject.DreamBooth(model, scheduler, 99, loaded.data["instances"], loaded.data["prior"], 1.0)
        with torch.no_grad():
            return float(module(torch.arange(48))["loss"])

    model = methods.adapt(loaded.model, wanted.adapt, layers="attention", head=())
    before = loss(model)
    subject.EXPERIMENT.fit(loaded, model, wanted, tmp_path, "cpu")
    assert loss(model) < 0.97 * before


def test_what_is_missing_or_wrong_is_told_before_training(mirror: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, method: str = "ether", task: str = "dog", **settings: Any) -> None:
        wanted = spec(mirror, method, task)
        with pytest.raises(error, match=match):
            subject.EXPERIMENT.check(dataclasses.replace(wanted, settings=wanted.settings | settings), tmp_path)

    refused(MissingResourceError, r"'cat'.*dog, vase", task="cat")
    refused(MissingResourceError, "no/model", model={"path": "no/model", "revision": None})
    refused(MissingResourceError, r"datasets/no/data", data={"path": "no/data", "revision": None})
    refused(ConfigurationError, r"layer set 'al'", layers="al")
    refused(ConfigurationError, r"'euler'.*Known: ddim", sampling={"scheduler": "euler"})
    wanted = dataclasses.replace(spec(mirror), adapt={"kind": "peft", "type": "ETHER", "config": {"n_blocks": 3}})
    with pytest.raises(ConfigurationError, match="n_blocks=3 does not divide"):
        subject.EXPERIMENT.check(wanted, tmp_path)


def test_a_reader_is_asked_for_what_each_prompt_asks_for() -> None:
    evaluation = subject.Evaluation.__new__(subject.Evaluation)
    evaluation.noun, evaluation.numbers = "vase", [0, 0, 3, 3]
    prompts = [
        subject.Prompt(0, "", "", "report", (("background", "sand"),)),
        subject.Prompt(3, "", "", "selection", (("background", "grass"), ("colour", "red"))),
    ]
    said = [("sand", "red", "vase"), ("grass", "red", "toy"), ("grass", "blue", "vase"), ("grass", "red", "fish")]
    readings = [dict(zip(("background", "colour", "shape"), words, strict=True)) for words in said]
    assert evaluation._read(readings, prompts) == {"background": 0.75, "class": 0.5, "colour": 0.5}
    assert evaluation._read(readings, prompts[:1]) == {"background": 0.5, "class": 0.5}
    assert evaluation._read([], prompts) == {}


def test_the_worlds_own_reader_is_loaded_and_read(tmp_path: Path) -> None:
    from ether.foundation import image_judges

    image_judges.new_reader().save_pretrained(tmp_path / "reader")
    wanted = json.dumps(
        [{"path": str(tmp_path), "revision": None, "subfolder": "reader"}, {"mirror": None, "foundation": "shipped"}]
    )
    read = subject._reader(wanted, tmp_path, "cpu")
    found = read(torch.rand(3, 3, 64, 64))
    assert len(found) == 3 and {"background", "colour", "shape"} <= set(found[0])
    assert subject._reader(json.dumps([None, {}]), tmp_path, "cpu") is None


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
    module = subject.DreamBooth(Echo(), scheduler, 3, (instances, texts[0]), (prior, texts[1]), 0.5)
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
    own = subject.generator(seed, name, "draw", number)
    torch.randint(1000, (), generator=own)
    return own


def test_every_picture_is_seen_once_an_epoch() -> None:
    module = subject.DreamBooth(Echo(), SimpleNamespace(config=SimpleNamespace(num_train_timesteps=9)), 0,
                                (torch.arange(5.0).view(5, 1, 1, 1), torch.zeros(1, 1)), None, 0.0)  # fmt: skip
    latents = module.parts[0][1]
    epochs = [module._batch("instance", latents, range(5 * e, 5 * e + 5))[0].flatten().tolist() for e in range(3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1


# --- perturbation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ether", "ether-plus", "oft", "naive"])
def test_random_transformations_have_the_distance_asked_for(mirror: Path, method: str) -> None:
    model = methods.adapt(tiny_pipeline.pipeline().unet, METHODS[method], layers="attention", head=())
    low, high = perturbation.reachable(model)
    assert (low, high) == pytest.approx(
        {"ether": (2, 2), "ether-plus": (0, 2), "oft": (0, 8), "naive": (0, math.inf)}[method]
    )  # OFT: 2 sqrt(16), the narrowest input
    turned = []
    for distance in perturbation.grid([0.1, 1.5, 5.0], low, high):
        perturbation.perturb(model, distance, seed=0)
        assert all(d.value == pytest.approx(distance, rel=1e-4) for d in geometry.transformation_distances(model))
        turned.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        perturbation.perturb(model, distance, seed=0)
        again = [p for p in model.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(turned[-1], again, strict=True))
    if math.isfinite(high):
        with pytest.raises(ConfigurationError, match="out of reach"):
            perturbation.perturb(model, 9.0, seed=0)


def test_grids_end_where_the_method_does() -> None:
    assert perturbation.grid([1, 2, 4], 2, 2) == [2]
    assert perturbation.grid([1, 2, 4], 0, 3) == [1, 2, 3]
    assert perturbation.grid([1, 1.41, 2], 0, math.sqrt(2)) == [1, math.sqrt(2)]
    assert perturbation.grid([1, 2, 3, 4], 0, 3, end=False) == [1, 2]
    assert perturbation.grid([1, 2, 4], 0, math.inf) == [1, 2, 4]


def test_methods_without_a_transformation_are_refused(mirror: Path) -> None:
    model = methods.adapt(tiny_pipeline.pipeline().unet, METHODS["lora"], layers="attention", head=())
    with pytest.raises(ConfigurationError, match="only ETHER"):
        perturbation.perturb(model, 1.0, seed=0)
    series = {"kind": "peft", "type": "OFT", "config": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": True}}
    model = methods.adapt(tiny_pipeline.pipeline().unet, series, layers="attention", head=())
    with pytest.raises(ConfigurationError, match="use_cayley_neumann"):
        perturbation.perturb(model, 1.0, seed=0)


def test_the_perturbation_experiment_measures_a_growing_change(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(mirror, "naive")
    wanted = dataclasses.replace(
        wanted, experiment="perturbation", settings=wanted.settings | {"perturbation": {"distances": [0.1, 8]}}
    )
    row, values = carry_out(wanted, finished.results, tmp_path, monkeypatch, perturbation.EXPERIMENT)
    got = {(step, metric): value for (step, _, metric), value in values.items()}
    assert row["status"] == "finished" and [got[step, "distance"] for step in range(3)] == [0, 0.1, 8]
    assert got[0, "dino_same"] == pytest.approx(1) and got[0, "lpips_same"] == pytest.approx(0, abs=1e-9)
    assert 0 < got[1, "lpips_same"] < got[2, "lpips_same"]
    assert got[2, "transformation_distance"] == pytest.approx(8, rel=1e-4)
    folder = finished.results / "samples" / "perturbation" / wanted.run_id
    said = json.loads((folder / "distance-02" / "samples.json").read_text())
    assert said["distance"] == 8 and said["images"][0]["prompt"] == "a dog in the jungle"
    _, again = carry_out(wanted, finished.results, tmp_path, monkeypatch, perturbation.EXPERIMENT)
    assert again == values


# --- the tiny pipeline ---------------------------------------------------------------------------------------------


def test_the_command_writes_the_same_bytes_for_a_seed_and_others_for_another(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    tiny_pipeline.write_mirror(tmp_path / "a")
    standins.main(["diffusion", str(tmp_path / "b"), "--pipeline", "some/one", "--seed", "1"])
    assert contents(tmp_path / "a") == {f"models/{k}": v for k, v in contents(mirror / "models").items()}
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {tmp_path / 'b' / 'models' / 'some' / 'one'}"
    weights = "unet/diffusion_pytorch_model.safetensors"
    other = (tmp_path / "b" / "models" / "some" / "one" / weights).read_bytes()
    assert other != (mirror / "models" / tiny_pipeline.PIPELINE / weights).read_bytes()
    with pytest.raises(ConfigurationError, match="multiple of 16"):
        tiny_pipeline.pipeline(size=40)


# --- real photographs ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HUB.is_dir(), reason=f"the real photographs are not here: no folder {HUB}")
def test_real_subjects_through_the_papers_loading_code(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "mirror"
    real.mkdir()
    (real / "models").symlink_to(mirror / "models")
    (real / "datasets").symlink_to(HUB / "datasets")
    folder = subject.dataset_folder(hub.Source("google/dreambooth", real / "datasets" / "google" / "dreambooth"))
    classes, prompts = subject.read_prompt_file((folder / subject.PROMPT_FILE).read_text(), "here")
    assert len(classes) == 30 and {len(listed) for listed in prompts.values()} == {25}
    assert all(4 <= len(subject.subject_files(folder, name)) <= 6 for name in classes)
    for task, third in (("dog6", "a qwe dog on the beach"), ("pink_sunglasses", "a qwe glasses on the beach")):
        wanted = spec(real, "ether-plus", task, evaluations=1)
        wanted.settings["prompts"] = {"token": "qwe", "limit": 5}
        assert subject.subject_prompts(folder, task, "qwe", None, ("cat", "dog"))[2].text == third
        row, values = carry_out(wanted, tmp_path / "results", tmp_path / task, monkeypatch)
        assert row["status"] == "finished" and all(math.isfinite(value) for value in values.values())
        assert 0 < values[0, "real", "dino"] <= 1
