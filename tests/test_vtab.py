"""VTAB: accuracies, splits of data sets in several layouts, and runs over a mirror with tiny models and with real images."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_runs import Run, store
from PIL import Image

from ether import check, config, run
from ether.analysis import rates
from ether.config import RunSpec
from ether.errors import ConfigurationError, MissingResourceError
from ether.exhibits import by_task, report
from ether.exhibits import vtab as exhibits
from ether.experiments import vtab
from ether.preprocessing import Preprocessing
from ether.standins import __main__ as standins
from ether.standins import vision as tiny

HUB = Path(__file__).resolve().parent.parent.parent / "shared" / "hub"


def test_accuracies_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=(50, 4)), random.integers(0, 3, 50)  # class 3 does not occur
    found = vtab.accuracies(outputs, labels)
    assert found["score"] == pytest.approx(100 * accuracy_score(labels, outputs.argmax(1)))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["class_mean"] == pytest.approx(100 * balanced_accuracy_score(labels, outputs.argmax(1)))


# --- data ------------------------------------------------------------------------------------------------------


def write_class_folders(folder: Path, each: int = 5) -> Path:
    """Three classes of images of one colour each, in different sizes."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture = np.full((20 + number, 30, 3), 80 * label + number, np.uint8)
            Image.fromarray(picture).save(folder / name / f"image_{number:04d}.png")
    return folder


def write_rows(folder: Path, config_name: str, image: str = "image", labels: Any = (0, 1, 2, 1), split: str = "train") -> None:
    """A parquet split with one image per label, in the hub's format."""
    import datasets

    pictures = [Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(len(labels))]
    kind = datasets.Value("int64" if isinstance(labels[0], int) else "string")
    features = datasets.Features({image: datasets.Image(), "label": kind})
    rows = datasets.Dataset.from_dict({image: pictures, "label": list(labels)}, features=features)
    (folder / config_name).mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(folder / config_name / f"{split}.parquet"))


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with a tiny ViT in place of ViT-B/16 and data sets in three layouts."""
    tiny.write_mirror(tmp_path / "mirror", size=32)
    data = tmp_path / "mirror" / "datasets"
    write_class_folders(data / "some" / "folders" / "101_ObjectCategories")
    for split in ("train", "test"):
        write_rows(data / "some" / "rows", "default", split=split)
        write_rows(data / "some" / "shards", "default", "png", ("x", "z", "y", "y"), split=split)
    return tmp_path / "mirror"


def spec(mirror: Path, task: str = "folders", method: str = "ether", **data: Any) -> RunSpec:
    """A run of three steps."""
    adapt: dict[str, Any] = {
        "ether": {"kind": "peft", "type": "ETHER", "config": {"n_blocks": 1}},
        "lora": {"kind": "peft", "type": "LORA", "config": {"r": 2}},
        "full": {"kind": "full"},
        "linear-probe": {"kind": "linear-probe", "head": ["classifier"]},
    }[method]
    return RunSpec(
        "vtab", "smoke", method, method, task, 0, adapt,
        {
            "learning_rate": 1e-2, "batch_size": 2, "evaluation_batch_size": 4, "accumulation": 1, "max_steps": 3, "warmup": 0.0,
            "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "evaluations": 1, "checkpoint_steps": None,
            "precision": "float32", "dropout": 0.0, "group_by_length": False, "epochs": None,
        },
        {
            "model": {"path": tiny.HUB_ID, "revision": "abc"},
            "data": {
                "path": None, "train_per_class": 3,
                "tasks": {
                    "folders": {"path": "some/folders", "revision": "main"},
                    "rows": {"path": "some/rows", "revision": "main"},
                    "shards": {"path": "some/shards", "revision": "main", "image": ["webp", "png"]},
                },
            } | data,
            "layers": "all-linear", "head": ["classifier"], "limits": {"train": None, "evaluation": None},
            "preprocessing": {"size": [32, 32], "crop": None, "mean": [0.5] * 3, "std": [0.5] * 3, "mode": "bilinear"},
        },
        {"mirror": str(mirror), "foundation": "shipped", "device": "cpu"},
    )  # fmt: skip


def test_class_folders_are_split_class_by_class_into_disjoint_parts(mirror: Path, tmp_path: Path) -> None:
    def value(example: dict[str, Any]) -> int:
        return round(255 * (example["pixel_values"][0, 0, 0].item() / 2 + 0.5))

    data = vtab.EXPERIMENT.load(spec(mirror), tmp_path, "cpu").data
    shown = {name: [value(example) for example in part] for name, part in vars(data).items()}
    assert len(shown["train"]) == 9 and len(shown["evaluation"]) == 6
    assert sorted(shown["train"] + shown["evaluation"]) == [80 * label + number for label in range(3) for number in range(5)]
    for part in vars(data).values():
        assert [value(example) // 80 for example in part] == [i["labels"] for i in part]
    assert np.bincount([i["labels"] for i in data.train]).tolist() == [3, 3, 3]


def test_rows_keep_their_labels_and_texts_are_numbered_in_alphabetical_order(mirror: Path, tmp_path: Path) -> None:
    for task, labels in (("rows", [0, 1, 2, 1]), ("shards", [0, 2, 1, 1])):
        loaded = vtab.EXPERIMENT.load(spec(mirror, task), tmp_path, "cpu")
        assert [example["labels"] for example in loaded.data.train] == labels
        assert loaded.model.config.num_labels == 3
        values = [example["pixel_values"].unique() for example in loaded.data.train]
        assert torch.cat(values).tolist() == pytest.approx([2 * (10 * i / 255) - 1 for i in range(4)], abs=1e-6)


def test_a_limit_takes_the_same_examples_every_time() -> None:
    split = vtab.Split(np.arange(20), lambda index: index)
    first, again = split.limited(7), split.limited(7)
    assert [first.read(i) for i in range(7)] == first.labels.tolist() == again.labels.tolist()
    assert len(set(first.labels.tolist())) == 7 and first.labels.tolist() != list(range(7))
    assert split.limited(None) is split and split.limited(20) is split


def test_images_that_are_not_kept_in_memory_are_the_same(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = vtab.EXPERIMENT.load(spec(mirror), tmp_path, "cpu").data.train
    monkeypatch.setattr(vtab, "KEPT", 0)
    read = vtab.Prepared(kept.split, kept.prepare)
    assert read.kept is None and kept.kept is not None
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(kept, read, strict=True))


def test_preparation_is_pillows_resize(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 24, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    prepare = Preprocessing((16, 16), None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    [found] = vtab.Prepared(vtab._of_files([(tmp_path / "a.png", 0)]), prepare)
    expected = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR), np.float32)
    assert (found["pixel_values"].permute(1, 2, 0).numpy() + 1) * 127.5 == pytest.approx(expected, abs=1.0)


# --- runs ------------------------------------------------------------------------------------------------------


def carry_out(wanted: RunSpec, results: Path, folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """A run through the one path: its row, and its last values by split and metric."""
    check.check_run(wanted, results)
    row, values = run.run(wanted, results, folder)
    return row, {(v["split"], v["metric"]): v["value"] for v in values}


def test_every_kind_of_method_runs_to_the_end(mirror: Path, tmp_path: Path) -> None:
    trained = {}
    for method in ("ether", "lora", "full", "linear-probe"):
        row, values = carry_out(spec(mirror, method=method), tmp_path, tmp_path / method)
        assert (row["status"], row["steps"]) == ("finished", 3)
        assert {metric for split, metric in values if split == "validation"} == {"score", "class_mean", "loss"}
        assert 0 <= values["validation", "score"] <= 100 and math.isfinite(values["train", "loss"])
        trained[method] = row["trainable_parameters"]
    head, width, layers = 3 * 17, 16, 2
    assert trained["linear-probe"] == head
    assert trained["ether"] == head + layers * (4 * width + width + 2 * width)  # the inputs of q, k, v, o and of both linears
    assert trained["lora"] == head + layers * 2 * (4 * 2 * width + 2 * 3 * width)


def test_runs_repeat_to_the_bit(mirror: Path, tmp_path: Path) -> None:
    values = [carry_out(spec(mirror, "rows"), tmp_path, tmp_path / name)[1] for name in ("a", "b")]
    assert values[0] == values[1]


def test_what_is_missing_or_wrong_is_reported_before_training(mirror: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, task: str = "folders", **data: Any) -> None:
        with pytest.raises(error, match=match):
            check.check_run(spec(mirror, task, **data), tmp_path)

    refused(ConfigurationError, "no path for the task 'birds'", "birds")
    refused(ConfigurationError, "class 'ant'.*has 5 images.*lower", train_per_class=5)
    refused(MissingResourceError, "no split 'dev'.*It has: test, train", "rows", evaluation_split="dev",
            tasks={"rows": {"path": "some/rows", "revision": "main"}})  # fmt: skip
    refused(MissingResourceError, "no column 'picture'", "rows",
            tasks={"rows": {"path": "some/rows", "revision": "main", "image": "picture"}})  # fmt: skip
    wanted = spec(mirror, "shards")
    wanted.settings["data"]["tasks"]["shards"]["image"] = ["webp", "jpg"]
    with pytest.raises(MissingResourceError, match="no column webp or jpg; it has png, label"):
        vtab.EXPERIMENT.load(wanted, tmp_path, "cpu")


def test_the_stand_in_is_written_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    standins.main(["vision", str(tmp_path), "--id", "some/vit"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'models' / 'some' / 'vit'}\n"
    assert (tmp_path / "models" / "some" / "vit" / "model.safetensors").is_file()


# --- the exhibits ----------------------------------------------------------------------------------------------


def test_the_mean_is_taken_within_a_seed_that_has_every_task() -> None:
    keys = {"status": "finished", "reason": "", "adapt_kind": "peft", "learning_rate": 0.01}
    values = pd.DataFrame(
        [
            {"method": "ether", "seed": seed, "task": task, "metric": "score", "value": value, **keys}
            for seed, task, value in ((0, "dtd", 40.0), (0, "svhn", 60.0), (1, "dtd", 42.0))
        ]
    )
    found = by_task.with_means(values, {exhibits.MEAN: ["dtd", "svhn"]})
    means = found[found["metric"] == exhibits.MEAN]
    assert means[["seed", "value"]].to_numpy().tolist() == [[0, 50.0]]
    assert found[found["metric"] == "dtd"]["value"].tolist() == [40.0, 42.0]


def test_the_table_and_the_grid_from_known_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, random = tmp_path / "results" / "laptop", np.random.default_rng(0)
    tasks = config.load("laptop").experiment("vtab")["tasks"]
    levels = {"linear-probe": 50.0, "full": 70.0, "lora": 71.0, "oft-n256": 70.5, "ether": 70.2, "ether-plus": 73.0}
    found = [
        Run(method, {("validation", "score"): level + place + 0.2 * random.normal()}, task=task, seed=seed)
        for method, level in levels.items()
        for place, task in enumerate(tasks)
        for seed in range(3)
    ]
    store(folder, "vtab", found)
    grid = [
        Run(method, {("validation", "score"): level - 5 * abs(math.log10(rate) + 2)}, task=task, rate=rate)
        for method, level in levels.items()
        for task in ("flowers102", "eurosat")
        for rate in (1e-3, 1e-2, 1e-1)
    ]
    store(folder, "vtab_rates", grid)
    made = report.make("table12", "laptop", {"replay": str(folder)})
    cell = made.data[(made.data["method"] == "ether") & (made.data["column"] == "SVHN")].iloc[0]
    of_cell = [run.values["validation", "score"] for run in found if (run.method, run.task) == ("ether", "svhn")]
    assert cell["ours"] == pytest.approx(np.mean(of_cell)) and cell["n"] == 3 and cell["printed"] == "95.81"
    verdicts = made.judged.set_index("id")
    assert verdicts.loc["vtab-comparable", "verdict"] == "reproduced"
    assert verdicts.loc["vtab-ether-plus-beats-full", "verdict"] == "reproduced"
    assert verdicts.loc["vtab-adapters-beat-probe", "verdict"] == "reproduced"
    shares = verdicts.loc["vtab-fraction-of-parameters"]  # ETHER+ has 8 / 7 of OFT's, by the layers' shapes
    assert (shares["verdict"], shares["supporting"], shares["contradicting"]) == ("contradicted", 3, 1)
    assert exhibits.described(made.settings).loc["svhn"].tolist() == ["ufldl-stanford/svhn", "cropped_digits", "main"]
    separations = exhibits.separations(made.settings).set_index("task")
    assert separations.loc["dtd", "highest of"] == "ETHER+" and (separations["p"] < 0.05).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.picture(exhibits.score_against_parameters(made.data, made.settings))  # one method trains nothing that is counted
    best = rates.choose(exhibits.rate_grid(made.settings))
    assert set(best["best_rate"]) == {1e-2} and not best["at_edge"].any()
    figure = report.make("figure_vtab_rates", "laptop", {"replay": str(folder)})
    assert figure.figure is not None and set(figure.data["metric"]) == {"mean", "flowers102", "eurosat"}


def test_every_scale_lists_the_tasks_of_the_papers_table() -> None:
    from ether.paper import published

    columns = [column.metric for column in published.load()["table12"].columns if column.kind != "parameters"]
    for name in ("small", "paper", "paper-vtab1k", "laptop"):
        section = config.load(name).experiment("vtab")
        assert section["known_tasks"] == columns
        sources = section["data"]["tasks"]
        assert section["data"]["path"] == "world/vtab" if sources is None else set(sources) == set(columns)


# --- real images -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HUB.is_dir(), reason=f"the real photographs are not here: no folder {HUB}")
def test_real_caltech_through_the_papers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    tiny.write_mirror(mirror)
    (mirror / "datasets" / "mteb").mkdir(parents=True)
    (mirror / "datasets" / "mteb" / "Caltech101").symlink_to(HUB / "datasets" / "local" / "caltech101")
    paper = config.load(
        "paper", {"mirror": str(mirror), "tasks": "caltech101", "methods": "ether-plus", "device": "cpu", "seeds": "0"}
    )
    [wanted] = config.runs(paper, "vtab")
    wanted = dataclasses.replace(
        wanted,
        hyperparameters=wanted.hyperparameters | {"max_steps": 2, "batch_size": 4, "evaluations": 1},
        settings=wanted.settings | {
            "data": wanted.settings["data"] | {"train_per_class": 5},
            "limits": {"train": 20, "evaluation": 30},
        },
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="has 10 images, and 30 of each class"):
        check.check_run(config.runs(paper, "vtab")[0], tmp_path)
    row, values = carry_out(wanted, tmp_path, tmp_path / "run")
    assert row["status"] == "finished" and row["data"].startswith("mteb/Caltech101")
    loaded = vtab.EXPERIMENT.load(wanted, tmp_path, "cpu")
    assert loaded.data.train[0]["pixel_values"].shape == (3, 224, 224) and loaded.model.config.num_labels > 90
    assert 0 <= values["validation", "score"] <= 100
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "paper"
    columns = {name: value for name, value in row.items() if name != "run_id"}
    store(folder, "vtab", [Run("ether-plus", values, task="caltech101", columns=columns)])
    table = report.make("table12", "paper", {"replay": str(folder), "tasks": "caltech101", "methods": "ether-plus"}).data
    [cell] = table[table["column"] == "Caltech101"].itertuples()
    assert cell.ours == pytest.approx(values["validation", "score"]) and cell.printed == "98.27"
