"""Controllable generation: judges' scores against their definitions, and runs over a tiny pipeline and the control world."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from subjects import METHODS
from torch import nn

from ether import check, config, hub, run
from ether.config import RunSpec
from ether.diffusion.control_evaluation import hint_scores
from ether.diffusion.control_judges import ControlJudges
from ether.diffusion.sampler import build_unet
from ether.diffusion.signal import new_encoder, save_encoder
from ether.errors import ConfigurationError, MissingResourceError
from ether.experiments import control as experiment
from ether.foundation import control_judges
from ether.foundation.pictures import preprocessor
from ether.methods import adapt as methods
from ether.methods.magnitude import MAGNITUDE, add_magnitudes
from ether.results import write_text
from ether.standins import diffusion as tiny
from ether.worlds import control as world

HUB = Path(__file__).resolve().parent.parent.parent / "shared" / "hub"
SIZES = {"train": 12, "tuning": 3, "validation": 6}


# --- scores ----------------------------------------------------------------------------------------------------


def test_scores_of_semantic_maps_are_those_of_their_definition() -> None:
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (4, 8, 8), generator=random)
    predicted = torch.where(torch.rand(4, 8, 8, generator=random) < 0.7, targets, (targets + 1) % 3)
    judges = ControlJudges(lambda images: images.flatten(1), segmenter=lambda images: predicted)
    found = hint_scores(torch.zeros(4, 3, 8, 8), list(targets), "semantic", judges, ["a", "b", "c", "d"])
    iou = [
        float(((predicted == c) & (targets == c)).sum() / ((predicted == c) | (targets == c)).sum()) for c in range(3)
    ]  # class d occurs nowhere
    assert found["miou"] == pytest.approx(100 * np.mean(iou)) == found["score"]
    assert found["accuracy"] == pytest.approx(100 * float((predicted == targets).double().mean()))
    assert [found[f"iou {name}"] for name in "abc"] == pytest.approx([100 * value for value in iou]) and "iou d" not in found


def test_scores_of_landmarks_count_a_missing_face_as_a_whole_side() -> None:
    targets = [torch.zeros(5, 2), torch.full((5, 2), 10.0), torch.zeros(5, 2)]
    places = torch.stack([torch.tensor([3.0, 4.0]).expand(5, 2), targets[1], torch.full((5, 2), torch.nan)])
    judges = ControlJudges(lambda images: images.flatten(1), landmarks=lambda images: places)
    found = hint_scores(torch.zeros(3, 3, 50, 50), targets, "landmarks", judges, [])
    assert found["distance"] == pytest.approx(2.5) and found["found"] == pytest.approx(200 / 3)  # 5 and 0 pixels
    assert found["distance_share"] == pytest.approx(5.0)
    assert found["score"] == pytest.approx(100 - (10 + 0 + 100) / 3)
    nothing = ControlJudges(lambda images: images.flatten(1), landmarks=lambda images: places * torch.nan)
    lost = hint_scores(torch.zeros(3, 3, 50, 50), targets, "landmarks", nothing, [])
    assert lost["score"] == 0 and lost["found"] == 0 and math.isnan(lost["distance"])
    with pytest.raises(ConfigurationError, match=r"finds 5 landmarks, and the data have 4"):
        hint_scores(torch.zeros(3, 3, 50, 50), [target[:4] for target in targets], "landmarks", judges, [])


def test_edges_of_the_real_pictures_are_their_targets() -> None:
    made = world.examples("edges", "validation", 0, 4)
    images = torch.from_numpy(made.images).permute(0, 3, 1, 2).float() / 255
    found = hint_scores(images, [torch.from_numpy(t) for t in made.targets], "edges", ControlJudges(lambda x: x), [])
    assert found == {"score": 100.0, "edge_iou": 100.0, "edge_f1": 100.0}


# --- the small scale's judges ----------------------------------------------------------------------------------


def test_places_are_the_means_of_their_maps() -> None:
    maps = torch.full((1, 2, 8, 8), -100.0)
    maps[0, 0, 2, 5] = maps[0, 0, 2, 6] = 0.0  # between the centres of two pixels of a row
    maps[0, 1, 7, 0] = 0.0
    places, certainty = control_judges.expected_places(maps)
    assert torch.allclose(places[0], torch.tensor([[6.0, 2.5], [0.5, 7.5]], dtype=torch.float64))
    assert certainty.tolist() == pytest.approx([1.0])
    flat, unsure = control_judges.expected_places(torch.zeros(1, 2, 64, 64))
    assert torch.allclose(flat, torch.full((1, 2, 2), 32.0, dtype=torch.float64)) and float(unsure) < 0.05


def test_targets_of_landmarks_are_distributions_with_their_places_as_means() -> None:
    points = world.landmarks(next(world.faces(3)))
    table = control_judges.place_targets(points)
    assert torch.allclose(table.sum(-1), torch.ones(20), atol=1e-5)
    places, certainty = control_judges.expected_places(table.clamp_min(1e-30).log().reshape(1, 20, 64, 64))
    assert torch.allclose(places[0], torch.from_numpy(points), atol=0.02) and float(certainty) > 0.9
    assert torch.allclose(control_judges.place_targets(None), torch.full((20, 4096), 1 / 4096))


def test_confusion_of_the_measures_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    from ether.measures.segmentation import SegmentationScores

    random = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(len(world.CLASSES), (3, 9, 9), generator=random) for _ in range(2))
    scores = SegmentationScores(len(world.CLASSES))
    scores.update(predicted, target)
    assert torch.equal(multiclass_confusion_matrix(predicted, target, len(world.CLASSES)), scores.confusion)


def test_the_judges_are_pretrained_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control_judges.pretrain(tmp_path / "judges", steps=2, seed=1)
    card = json.loads((tmp_path / "judges" / "card.json").read_text())
    assert card["steps"] == 2 and 0 <= card["scores"]["segmenter, mean IoU"] <= 1
    model = control_judges.load(tmp_path / "judges" / "segmenter")
    made = world.examples("semantic", "validation", 0, 3)
    assert control_judges.label_maps(model, made.images).shape == (3, 64, 64)
    assert "step 2/2" in capsys.readouterr().out


# --- magnitudes ------------------------------------------------------------------------------------------------


def test_magnitudes_scale_the_adapted_neurons() -> None:
    unet = tiny.pipeline().unet
    model: Any = methods.adapt(unet, METHODS["oft"], layers="attention-geglu", head=[])
    layer = next(module for name, module in model.named_modules() if name.endswith("ff.net.0.proj"))
    with torch.no_grad():
        for parameter in layer.oft_R.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    before, bias = layer(inputs), layer.get_base_layer().bias
    count = add_magnitudes(model)
    assert torch.allclose(layer(inputs), before, atol=1e-6)  # one at first
    scale = getattr(layer.get_base_layer(), MAGNITUDE)
    with torch.no_grad():
        scale.copy_(torch.linspace(0.5, 2, len(scale)))
    assert torch.allclose(layer(inputs), (before - bias) * scale + bias, atol=1e-5)  # rows of the adapted weight, scaled
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(name.endswith(MAGNITUDE) for name in trained)
    linears = [
        m for n, m in tiny.pipeline().unet.named_modules() if isinstance(m, nn.Linear) and ("attn" in n or "ff.net.0" in n)
    ]
    assert count == sum(linear.out_features for linear in linears) == methods.trainable(model)


def test_magnitudes_need_adapted_layers() -> None:
    with pytest.raises(ConfigurationError, match="refit_steps"):
        add_magnitudes(tiny.pipeline().unet)


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``mirror`` (a tiny pipeline, judges with random weights) and ``results/smoke`` (the control world)."""
    folder = tmp_path_factory.mktemp("control")
    tiny.write_mirror(folder / "mirror")
    for name, model in (("segmenter", control_judges.new_segmenter()), ("landmarks", control_judges.new_detector())):
        target = folder / "mirror" / "models" / "tiny" / name
        model.save_pretrained(target)
        write_text(preprocessor("ViTImageProcessor"), target / "preprocessor_config.json")
    world.write(folder / "results" / "smoke" / "world", seed=1, sizes=SIZES)
    return folder


def spec(place: Path, method: str = "ether", task: str = "semantic", **changes: Any) -> RunSpec:
    """A run of four steps with two evaluations."""
    adapt = {"kind": "frozen"} if method == "encoder-only" else METHODS[method]
    hyper = {
        "learning_rate": 1e-2, "batch_size": 2, "accumulation": 1, "max_steps": 4, "epochs": None, "warmup": 0.0,
        "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "evaluations": 2, "checkpoint_steps": None,
        "precision": "float32", "dropout": 0.0,
    } | changes.pop("hyper", {})  # fmt: skip
    settings = {
        "model": {"path": tiny.PIPELINE, "revision": "abc", "resolution": 32},
        "data": {"path": "world/control"},
        "judges": {
            "features": {"path": tiny.DINO}, "segmenter": {"path": "tiny/segmenter"}, "landmarks": {"path": "tiny/landmarks"},
        },
        "layers": "attention-geglu", "head": [], "limits": {"train": None, "evaluation": None},
        "signal": {"cap": 1e-3, "block_channels": [4, 8, 8]},
        "sampling": {"steps": 2, "guidance": 2.0, "batch": 4, "between": 2, "saved": 3, "scheduler": "ddim"},
    } | changes  # fmt: skip
    resources = {"mirror": str(place / "mirror"), "foundation": "shipped", "device": "cpu"}
    return RunSpec("control", "smoke", method, method, task, 0, adapt, hyper, settings, resources)


def executed(place: Path, given: RunSpec, folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], dict[int, float]]]:
    """A run's row, and {(split, metric): {step: value}}."""
    check.check_run(given, place / "results" / "smoke")
    row, measured = run.run(given, place / "results" / "smoke", folder)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for entry in measured:
        found.setdefault((entry["split"], entry["metric"]), {})[entry["step"]] = entry["value"]
    return row, found


@pytest.mark.parametrize("method", ["encoder-only", "ether", "naive", "lora"])
def test_a_run_measures_progress_the_last_step_and_the_ceiling(place: Path, tmp_path: Path, method: str) -> None:
    row, found = executed(place, spec(place, method), tmp_path)
    assert row["status"] == "finished" and row["steps"] == 4 and row["learning_rate"] == 1e-2
    assert set(found["progress", "miou"]) == {2, 4} and set(found["validation", "miou"]) == {4}
    assert found["validation", "fid_samples"] == {4: 6.0} and found["validation", "fid_bias"][4] > 0
    assert set(found["real", "miou"]) == {0}
    assert (row["trainable_parameters"] == 0) == (method == "encoder-only")
    assert (("geometry", "weight_distance") in found) == (method != "encoder-only")
    described = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [set(image) for image in described["images"]] == [{"file", "hint", "real", "prompt", "half"}] * 3
    hint = np.asarray(Image.open(tmp_path / "samples" / described["images"][0]["hint"]))
    assert hint.shape == (32, 32, 3)


def test_the_encoders_rate_is_capped_and_it_alone_changes_without_an_adapter(place: Path, tmp_path: Path) -> None:
    """With a cap of 0 rate above the smallest number, encoder-only generates the frozen model's images."""
    values = [
        executed(place, spec(place, "encoder-only", signal={"cap": cap, "block_channels": [4, 8, 8]}), tmp_path / str(cap))[1]
        for cap in (1e-12, 1e-1)
    ]
    images = [[np.asarray(Image.open(tmp_path / cap / "samples" / f"{n:02d}.png")) for n in range(3)] for cap in ("1e-12", "0.1")]
    assert values[0]["train", "loss"][4] != values[1]["train", "loss"][4]
    assert any(not np.array_equal(a, b) for a, b in zip(*images, strict=True))


def test_runs_start_from_the_encoder_that_the_scale_names(place: Path, tmp_path: Path) -> None:
    """At a rate of almost 0: an encoder of zeros is a new one, another encoder changes the images."""
    unet = build_unet(hub.Source("tiny", place / "mirror" / "models" / tiny.PIPELINE))
    encoder = new_encoder(unet, (4, 8, 8), seed=3)
    shown = {}
    for name in ("new", "zeros", "other"):
        signal: dict[str, Any] = {"cap": 1e-12, "block_channels": [4, 8, 8]}
        if name != "new":
            torch.nn.init.constant_(encoder.conv_out.bias, 0.0 if name == "zeros" else 2.0)
            save_encoder(encoder.half(), place / "mirror" / "models" / "tiny" / name / "semantic.safetensors")
            signal["start"] = {"path": f"tiny/{name}"}
        executed(place, spec(place, "encoder-only", signal=signal), tmp_path / name)
        shown[name] = np.stack([np.asarray(Image.open(tmp_path / name / "samples" / f"{n:02d}.png")) for n in range(3)])
    assert np.array_equal(shown["new"], shown["zeros"]) and not np.array_equal(shown["new"], shown["other"])
    absent = spec(place, "encoder-only", "edges", signal={"cap": 1e-12, "start": {"path": "tiny/other"}})
    with pytest.raises(MissingResourceError, match=r"edges\.safetensors does not contain a signal encoder"):
        check.check_run(absent, place / "results" / "smoke")


def test_refitting_continues_the_run(place: Path, tmp_path: Path) -> None:
    row, found = executed(place, spec(place, "oft", hyper={"refit_steps": 2}), tmp_path / "refit")
    _, plain = executed(place, spec(place, "oft"), tmp_path / "plain")
    assert row["status"] == "finished" and row["steps"] == 6
    assert set(found["progress", "miou"]) == {2, 4, 5, 6} and set(found["validation", "miou"]) == {4, 6}
    assert found["validation", "fid"][4] == plain["validation", "fid"][4]
    assert found["validation", "fid"][6] != plain["validation", "fid"][4]


@pytest.mark.parametrize("task", ["landmarks", "edges"])
def test_other_hints(place: Path, tmp_path: Path, task: str) -> None:
    _, found = executed(place, spec(place, "ether", task), tmp_path)
    metrics = {metric for split, metric in found if split == "validation"}
    expected = {"landmarks": {"found", "score"}, "edges": {"edge_iou", "edge_f1", "score"}}[task]
    assert expected <= metrics and "miou" not in metrics
    if task == "edges":  # Canny's edges of the resized pictures themselves
        assert found["real", "edge_f1"] == {0: 100.0}


def test_an_interrupted_run_ends_as_an_uninterrupted_one(place: Path, tmp_path: Path) -> None:
    given = spec(place, "ether-plus", hyper={"checkpoint_steps": 2})
    _, whole = executed(place, given, tmp_path / "whole")
    _, half = executed(place, dataclasses.replace(given, hyperparameters={**given.hyperparameters}), tmp_path / "half")
    assert whole["validation", "fid"] == half["validation", "fid"]
    for file in (tmp_path / "half" / "evaluations").glob("step-00000004.json"):
        file.unlink()
    last = tmp_path / "half" / "checkpoints" / "checkpoint-4"
    if last.is_dir():
        import shutil

        shutil.rmtree(last)
    _, resumed = executed(place, given, tmp_path / "half")
    assert resumed["validation", "fid"] == whole["validation", "fid"]
    assert resumed["progress", "miou"] == whole["progress", "miou"]


def test_missing_data_and_judges_are_named(place: Path, tmp_path: Path) -> None:
    results = place / "results" / "smoke"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"data": {"path": None}}, MissingResourceError, "control.data.tasks.semantic.path"),
        ({"data": {"path": "world/control", "evaluation_split": "test"}}, MissingResourceError, "test.parquet"),
        ({"data": {"path": "world/control", "evaluation_split": "train[a]"}}, ConfigurationError, "is no split"),
        ({"data": {"path": "world/control", "evaluation_split": "train[50:]"}}, MissingResourceError, "is empty"),
        ({"judges": {"features": "inception", "segmenter": {"path": "tiny/segmenter"}}}, MissingResourceError, "torch-fidelity"),
        ({"judges": {"features": {"path": "tiny/none"}, "segmenter": {"path": "x"}}}, MissingResourceError, "tiny/none"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message.replace("[", r"\[")):
            experiment.EXPERIMENT.check(spec(place, **changes), results)
    with pytest.raises(ConfigurationError, match="Unknown task 'maps'"):
        experiment.EXPERIMENT.check(spec(place, task="maps"), results)


def test_parts_of_a_split() -> None:
    assert experiment._split("train") == ("train", None, None)
    assert experiment._split("train[:-1000]") == ("train", None, -1000)
    assert experiment._split("val2017[5:10]") == ("val2017", 5, 10)


@pytest.mark.skipif(not (HUB / "datasets" / "local").is_dir(), reason="the real data are not on this machine")
@pytest.mark.parametrize("task", ["semantic", "edges"])
def test_real_pictures(place: Path, tmp_path: Path, task: str) -> None:
    """ADE20K's pairs and COCO's pictures with Canny's edges, through the paper's path with a tiny pipeline."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = place / "mirror" / "models" / "tiny" / "segformer"
    if not model.is_dir():
        settings: dict[str, Any] = {"num_labels": 150}
        SegformerForSemanticSegmentation(
            SegformerConfig(hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=8, depths=[1, 1, 1, 1], **settings)
        ).save_pretrained(model)
        write_text(preprocessor("ViTImageProcessor"), model / "preprocessor_config.json")
    for name in ("ade20k", "coco"):
        link = place / "mirror" / "datasets" / "local" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(HUB / "datasets" / "local" / name)
    of_task = {
        "semantic": {"path": "local/ade20k", "train_split": "all[:20]", "evaluation_split": "all[20:]"},
        "edges": {"path": "local/coco", "train_split": "all[:14]", "evaluation_split": "all[14:]", "captions": "captions.jsonl"},
    }[task]
    judges = {"features": {"path": tiny.DINO}, "segmenter": {"path": "tiny/segformer"}, "landmarks": "face-alignment"}
    given = spec(place, "ether-plus", task, data={"path": None, "tasks": {task: of_task}}, judges=judges)
    row, found = executed(place, given, tmp_path)
    assert row["status"] == "finished" and found["validation", "fid_samples"][4] == {"semantic": 10, "edges": 7}[task]
    assert 0 <= found["validation", "score"][4] <= 100


# --- the random search -----------------------------------------------------------------------------------------


def test_the_random_search_draws_different_combinations_of_appendix_f() -> None:
    scale = config.load("paper")
    runs = config.runs(scale, "control_lora")
    assert len({run.run_id for run in runs}) == len(runs) >= 24
    seen: dict[str, set[Any]] = {"learning_rate": set(), "batch_size": set(), "dropout": set(), "rank": set(), "scaling": set()}
    for found in runs:
        adapter = found.adapt["config"]
        for key in ("learning_rate", "batch_size", "dropout"):
            seen[key].add(found.hyperparameters[key])
        seen["rank"].add(adapter["r"])
        seen["scaling"].add(round(adapter["lora_alpha"] / adapter["r"], 6))
    assert seen == {  # App. F's grid; 24 draws reach all of its values
        "learning_rate": {1e-5, 5e-5, 1e-4, 1e-3, 1e-2}, "batch_size": {4, 8, 16, 32, 64}, "dropout": {0.0, 0.1},
        "rank": {4, 8, 64}, "scaling": {0.1, 1.0},
    }  # fmt: skip
    search = {"seed": 3, "draws": 5, "choices": [[{"a": 1}, {"a": 2}], [{"b": {"x": 1}}, {"b": {"y": 2}}]]}
    drawn = config.drawn(search)
    assert len(drawn) == 4 and drawn == config.drawn(search)  # no more than there are
    assert all(set(one) == {"a", "b"} for one in drawn)
