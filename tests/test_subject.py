"""DreamBooth from end to end on a tiny random Stable Diffusion: same bits after a resume, same noise for every method."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from subjects import METHODS, write_subjects

from ether import check, hub, run, training
from ether.config import RunSpec
from ether.diffusion import dataset
from ether.diffusion.losses import DreamBoothLoss
from ether.diffusion.sampler import Sampler
from ether.errors import ConfigurationError, MissingResourceError
from ether.experiments import perturbation, subject
from ether.experiments.common import Experiment
from ether.methods import adapt as methods
from ether.standins import __main__ as standins
from ether.standins import diffusion as tiny_pipeline

HUB = Path(__file__).resolve().parent.parent.parent / "shared" / "hub"


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with the tiny models and a data set of made pictures in google/dreambooth's layout."""
    folder = tmp_path_factory.mktemp("mirror")
    tiny_pipeline.write_mirror(folder)
    write_subjects(folder / "datasets" / "google" / "dreambooth" / "dataset")
    gc.freeze()  # as ether.run does: the Trainer collects garbage after every run, over all that was imported
    return folder


def spec(mirror: Path, method: str = "ether", task: str = "dog", **changes: Any) -> RunSpec:
    """A run of four steps; `changes` go into its hyperparameters."""
    return RunSpec(
        "subject", "smoke", method, method, task, 0, METHODS[method],
        {
            "learning_rate": 1e-2, "batch_size": 2, "accumulation": 1, "max_steps": 4, "warmup": 0.0,
            "schedule": "constant", "weight_decay": 0.01, "max_grad_norm": 1.0, "evaluations": 2, "checkpoint_steps": None,
            "precision": "float32", "dropout": 0.0, "evaluation_batch_size": 1, "group_by_length": False,
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
            "drift": {"prompts": ["a photo of a dog at sea", "a red bus", "a chair in the snow"], "images_per_prompt": 2},
        },
        {"mirror": str(mirror), "foundation": "shipped", "device": "cpu"},
    )  # fmt: skip


def carry_out(
    wanted: RunSpec, results: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Experiment = subject.EXPERIMENT
) -> tuple[dict[str, Any], dict[tuple[int, str, str], float]]:
    """A run through the one path; its row, and its values by step, split and metric."""
    monkeypatch.setattr(run, "experiment", lambda _: benchmark)
    check.check_run(wanted, results)
    row, values = run.run(wanted, results, folder)
    found = {(v["step"], v["split"], v["metric"]): v["value"] for v in values}
    assert len(found) == len(values)
    return row, found


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
            measured = judged | ({"drift"} if split == "validation" else set())
            assert {metric for step, where, metric in values if (step, where) == (last, split)} == measured, (method, split)
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


def test_drift_is_exactly_zero_without_tuning_and_that_of_unrelated_prompts_otherwise(finished: Any, mirror: Path) -> None:
    drift = {m: [v for (_, split, name), v in values.items() if name == "drift"] for m, (_, values) in finished.runs.items()}
    assert drift["none"] == [0.0]
    assert all(len(values) == 2 and min(values) > 0 for method, values in drift.items() if method != "none"), drift
    loaded = subject.EXPERIMENT.load(spec(mirror), finished.results, "cpu")
    evaluation = loaded.data.evaluation
    assert evaluation.drift is not None
    assert evaluation.drift.texts == ["a red bus"] * 2 + ["a chair in the snow"] * 2  # not the prompt that names the class
    assert len(list((finished.results / "cache" / "drift-images").iterdir())) == 1  # one set for all methods
    sampler, noise = evaluation.sampler, evaluation.sampler.noise(evaluation.drift.names)
    before = sampler.generate(sampler.encode(evaluation.drift.texts), noise)
    with torch.no_grad():
        next(loaded.model.parameters()).mul_(1.5)
    after = sampler.generate(sampler.encode(evaluation.drift.texts), noise)
    features = [evaluation.judges.dino.features(pictures.float() / 255) for pictures in (before, after)]
    cosines = torch.nn.functional.cosine_similarity(*features, dim=-1)
    assert evaluation.drift.measure() == pytest.approx(1 - float(cosines.mean()), abs=1e-4)
    everything = spec(mirror)
    everything.settings["drift"] = {"prompts": ["a dog"]}
    with pytest.raises(ConfigurationError, match=r"subject\.drift\.prompts"):
        check.check_run(everything, finished.results)


def test_samples_are_saved_and_their_sheet_shows_them(finished: Any, mirror: Path) -> None:
    folder = finished.results / "work" / "lora" / "samples"
    info = json.loads((folder / "samples.json").read_text())
    assert len(info["images"]) == 3 * 2 and (info["step"], info["method"]) == (4, "lora")
    assert info["images"][3] == {"file": "01-1.png", "prompt": "a qwe dog wearing a hat", "half": "report"}
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
    forward, seen = DreamBoothLoss.forward, []

    def interrupted(self: DreamBoothLoss, index: torch.Tensor) -> dict[str, torch.Tensor]:
        if 6 in index.tolist():  # the fourth step
            raise KeyboardInterrupt
        return forward(self, index)

    def counted(self: DreamBoothLoss, index: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(index.tolist())
        return forward(self, index)

    monkeypatch.setattr(DreamBoothLoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out(wanted, finished.results, tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(DreamBoothLoss, "forward", counted)
    _, resumed = carry_out(wanted, finished.results, tmp_path / "cut", monkeypatch)
    assert seen == [[4, 5], [6, 7]]
    assert resumed == whole


def test_all_methods_start_from_the_same_noise(finished: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    generate = Sampler.generate

    def watched(self: Sampler, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        starts.append((embeddings, noise))
        return generate(self, embeddings, noise)

    monkeypatch.setattr(Sampler, "generate", watched)
    for method, seed in (("ether", 0), ("lora", 1)):
        wanted = dataclasses.replace(spec(mirror, method), seed=seed)
        loaded = subject.EXPERIMENT.load(wanted, finished.results, "cpu")
        loaded.data.evaluation.generate()
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
    assert len({tuple(start.flatten().tolist()) for start in starts[0][1]}) == 6  # and every picture from its own


def test_a_prompts_picture_does_not_depend_on_the_others_in_its_batch(finished: Any, mirror: Path) -> None:
    wanted = spec(mirror)
    sampler = subject.EXPERIMENT.load(wanted, finished.results, "cpu").data.evaluation.sampler
    noise, texts = sampler.noise(["a", "b", "c"]), sampler.encode(["a dog", "a cat", "a vase"])
    together = sampler.generate(texts, noise)
    assert (together[1:2].int() - sampler.generate(texts[1:2], noise[1:2]).int()).abs().max() <= 1  # rounding of 8 bits


def test_class_pictures_are_generated_once_by_the_frozen_model(
    finished: Any, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list((finished.results / "cache" / "class-images").iterdir())
    assert len(files) == 1  # all methods of one class
    monkeypatch.setattr(Sampler, "generate", lambda *_: pytest.fail("generated again"))
    prior = subject.EXPERIMENT.load(spec(mirror, "oft"), finished.results, "cpu").data.prior
    assert prior is not None
    latents, _ = prior
    assert latents.shape == (3, 4, 8, 8)


def test_a_run_that_diverges_is_a_row_with_its_reason(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(mirror, "lora", learning_rate=1e30, max_grad_norm=0.0)
    row, values = carry_out(wanted, finished.results, tmp_path, monkeypatch)
    assert row["status"] == "diverged" and "loss is nan" in row["reason"] and "no pictures" in row["reason"]
    assert not any(split == "last" for _, split, _ in values)


def test_warm_up_and_adam_s_betas_are_the_runs(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[training.Trained, list[float]]] = []

    def watched(*arguments: Any, callbacks: Any, **options: Any) -> training.Trained:
        rates: list[float] = []

        class Rates(transformers.TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                rates.append(given["optimizer"].param_groups[0]["lr"])

        trained = training.train(*arguments, callbacks=[*callbacks, Rates()], **options)
        kept.append((trained, rates))
        return trained

    monkeypatch.setattr(subject, "train", watched)
    settings = {"schedule": "linear", "learning_rate": 0.04, "max_steps": 8, "warmup": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.95}
    for warmup_steps, expected in (
        (None, [0, 0.01, 0.02, 0.03, 0.04, 0.03, 0.02, 0.01]),  # a share of one half
        (2, [0, 0.02, 0.04, 0.04 * 5 / 6, 0.04 * 4 / 6, 0.02, 0.04 * 2 / 6, 0.04 / 6]),
    ):
        wanted = spec(mirror, "ether-plus", evaluations=1, warmup_steps=warmup_steps, **settings)
        row, _ = carry_out(wanted, finished.results, tmp_path / str(warmup_steps), monkeypatch)
        trained, rates = kept.pop()
        assert row["status"] == "finished" and rates == pytest.approx(expected)
        group = trained.trainer.optimizer.param_groups[0]
        assert group["betas"] == (0.8, 0.95)


def test_every_hyperparameter_can_be_used_in_a_methods_config(
    finished: Any, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"kind": "peft", "type": "LORA", "config": {"r": 2, "lora_dropout": "$weight_decay"}}
    wanted = dataclasses.replace(spec(mirror, "lora", weight_decay=0.25, evaluations=1), adapt=how)
    seen = []
    fit = subject.Subject.fit

    def kept(self: subject.Subject, loaded: Any, model: Any, *rest: Any) -> Any:
        seen.append(model.peft_config["default"].lora_dropout)
        return fit(self, loaded, model, *rest)

    monkeypatch.setattr(subject.Subject, "fit", kept)
    row, _ = carry_out(wanted, finished.results, tmp_path, monkeypatch)
    assert row["status"] == "finished" and seen == [0.25]


def test_the_skeleton_is_the_model_that_is_loaded(finished: Any, mirror: Path) -> None:
    skeleton = subject.EXPERIMENT.skeleton(spec(mirror), finished.results)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in skeleton.build().named_parameters()}
    loaded = subject.EXPERIMENT.load(spec(mirror), finished.results, "cpu")
    assert shapes == {name: p.shape for name, p in loaded.model.named_parameters()}
    assert skeleton.task_type == loaded.task_type
    assert skeleton.key == perturbation.EXPERIMENT.skeleton(spec(mirror, "oft", "vase"), finished.results).key


def test_training_lowers_the_loss_it_is_for(finished: Any, mirror: Path, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    wanted = spec(mirror, "ether-plus", max_steps=16, evaluations=1, learning_rate=5e-2)
    wanted.settings["prompts"] = {"token": "qwe", "limit": 2}
    loaded = subject.EXPERIMENT.load(wanted, finished.results, "cpu")
    scheduler = DDPMScheduler.from_config(loaded.data.evaluation.sampler.pipeline.scheduler.config)

    def loss(model: torch.nn.Module) -> float:
        module = DreamBoothLoss(model, scheduler, 99, loaded.data.instances, loaded.data.prior, 1.0)
        with torch.no_grad():
            return float(module(torch.arange(48))["loss"])

    model = methods.adapt(loaded.model, wanted.adapt, layers="attention", head=())
    before = loss(model)
    subject.EXPERIMENT.fit(loaded, model, wanted, tmp_path, "cpu")
    assert loss(model) < 0.97 * before


def test_what_is_missing_or_wrong_is_reported_before_training(mirror: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, method: str = "ether", task: str = "dog", **settings: Any) -> None:
        wanted = spec(mirror, method, task)
        with pytest.raises(error, match=match):
            check.check_run(dataclasses.replace(wanted, settings=wanted.settings | settings), tmp_path)

    refused(MissingResourceError, r"'cat'.*dog, vase", task="cat")
    refused(MissingResourceError, "no/model", model={"path": "no/model", "revision": None})
    refused(MissingResourceError, r"datasets/no/data", data={"path": "no/data", "revision": None})
    refused(ConfigurationError, r"layer set 'al'", layers="al")
    refused(ConfigurationError, r"'euler'.*Known: ddim", sampling={"scheduler": "euler"})
    unaltered = {"token": "qwe", "limit": None, "fidelity": "unaltered"}
    refused(ConfigurationError, "does not say which prompts change the subject's appearance", prompts=unaltered)
    wanted = dataclasses.replace(spec(mirror), adapt={"kind": "peft", "type": "ETHER", "config": {"n_blocks": 3}})
    with pytest.raises(ConfigurationError, match="n_blocks=3 does not divide"):
        check.check_run(wanted, tmp_path)


def test_prompts_for_another_colour_are_left_out_of_the_comparison_with_the_photographs(mirror: Path) -> None:
    wanted = spec(mirror)
    wanted = dataclasses.replace(wanted, settings=wanted.settings | {"prompts": {"fidelity": "unaltered"}})
    grass, red = (("background", "grass"),), (("colour", "red"),)

    def prompts(*attributes: tuple[tuple[str, str], ...]) -> list[dataset.Prompt]:
        return [dataset.Prompt(3 * i, "", "", dataset.HALVES[i % 2], these) for i, these in enumerate(attributes)]

    assert subject.EXPERIMENT._altered(wanted, prompts(grass, grass, red, grass)) == [6]
    assert subject.EXPERIMENT._altered(spec(mirror), prompts(grass, grass, red, grass)) == []
    with pytest.raises(ConfigurationError, match="every prompt of a half"):
        subject.EXPERIMENT._altered(wanted, prompts(grass, red, grass, red))


# --- perturbation ---------------------------------------------------------------------------------------------


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
    folder = tmp_path / "samples"
    info = json.loads((folder / "distance-02" / "samples.json").read_text())
    assert info["distance"] == 8 and info["images"][0]["prompt"] == "a dog in the jungle"
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
    folder = dataset.dataset_folder(hub.Source("google/dreambooth", real / "datasets" / "google" / "dreambooth"))
    classes, prompts = dataset.read_prompt_file((folder / dataset.PROMPT_FILE).read_text(), "here")
    assert len(classes) == 30 and {len(listed) for listed in prompts.values()} == {25}
    assert all(4 <= len(dataset.subject_files(folder, name)) <= 6 for name in classes)
    for task, third in (("dog6", "a qwe dog on the beach"), ("pink_sunglasses", "a qwe glasses on the beach")):
        wanted = spec(real, "ether-plus", task, evaluations=1)
        wanted.settings["prompts"] = {"token": "qwe", "limit": 5}
        assert dataset.subject_prompts(folder, task, "qwe", None, ("cat", "dog"))[2].text == third
        row, values = carry_out(wanted, tmp_path / "results", tmp_path / task, monkeypatch)
        assert row["status"] == "finished" and all(math.isfinite(value) for value in values.values())
        assert 0 < values[0, "real", "dino"] <= 1
