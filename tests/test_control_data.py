"""Readers of control data: made-up files in both layouts, the control world, and the real files if they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ether.diffusion import control_data
from ether.diffusion.control_data import ControlPairs
from ether.errors import ConfigurationError, MissingResourceError
from ether.measures.segmentation import IGNORED, SegmentationScores
from ether.worlds import control

HUB = Path(__file__).resolve().parent.parent.parent / "shared" / "hub"
real = pytest.mark.skipif(not (HUB / "datasets" / "local").is_dir(), reason="the real data are not on this machine")

THREE = control_data.Classes(("wall", "floor", "bed"), ((10, 20, 30), (250, 0, 0), (0, 0, 250)))


def write_lines(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """Two pictures for each split of ADEChallengeData2016's layout: 40 x 20, the left half of class 1, the right half of class 3,
    but for its lower rows, which are unlabelled."""
    labels = np.ones((20, 40), np.uint8)
    labels[:, 20:] = 3
    labels[15:, 20:] = 0
    shown = np.zeros((20, 40, 3), np.uint8)
    shown[labels == 1], shown[labels == 3] = (200, 200, 200), (60, 60, 60)
    for folder, prefix in (("training", "train"), ("validation", "val")):
        for kind in ("images", "annotations"):
            (tmp_path / kind / folder).mkdir(parents=True)
        for number in (2, 1):
            stem = f"ADE_{prefix}_{number:08d}"
            Image.fromarray(shown).save(tmp_path / "images" / folder / f"{stem}.jpg", quality=95)
            Image.fromarray(labels).save(tmp_path / "annotations" / folder / f"{stem}.png")
    write_lines(tmp_path / "captions_validation.jsonl", [{"index": 1, "caption": "second"}, {"index": 0, "caption": "first"}])
    lines = [{"source": f"source/ADE_train_{n:08d}.png", "target": "x", "prompt": f"training {n}"} for n in (1, 2)]
    write_lines(tmp_path / "captions_train.jsonl", lines)
    return tmp_path


def test_ade20ks_layout_is_read_in_order_with_captions_by_index_or_name(ade: Path) -> None:
    found = control_data.pairs(ade, "validation")
    assert [(pair.image.name, pair.caption) for pair in found] == [
        ("ADE_val_00000001.jpg", "first"),
        ("ADE_val_00000002.jpg", "second"),
    ]
    assert [pair.caption for pair in control_data.pairs(ade, "train")] == ["training 1", "training 2"]
    named = write_lines(ade / "x.jsonl", [{"image": f"images/ADE_val_0000000{n}.jpg", "caption": f"{n}"} for n in (1, 2)])
    assert [pair.caption for pair in control_data.ade_pairs(ade, "validation", named)] == ["1", "2"]


def test_maps_and_pictures_are_the_same_centre_square(ade: Path) -> None:
    data = ControlPairs(control_data.pairs(ade, "validation"), "semantic", 10, THREE)
    example = data[0]
    assert len(data) == 2 and example["caption"] == "first"
    expected = torch.full((10, 10), 0, dtype=torch.uint8)  # class 1 of the file is class 0
    expected[:, 5:] = 2
    expected[-3:, 5:] = IGNORED  # rows 15 to 19 of 20, at half the size: the centres of rows 7 to 9
    assert torch.equal(example["target"][:7], expected[:7]) and torch.equal(example["target"][8:], expected[8:])
    hint, image = example["hint"], example["image"].float()
    assert hint.shape == (3, 10, 10) and hint.dtype == torch.uint8
    assert hint[:, 0, 0].tolist() == [10, 20, 30] and hint[:, 0, 9].tolist() == [0, 0, 250] and hint[:, 9, 9].tolist() == [0] * 3
    for label, grey in ((0, 200), (2, 60), (IGNORED, 0)):  # the picture shows the classes in grey
        there = example["target"] == label
        assert abs(float(image.mean(0)[there].median()) - grey) < 6
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["image"].shape == (2, 3, 10, 10) and batch["caption"] == ["first", "second"]
    scores = SegmentationScores(3)
    scores.update(batch["target"].masked_fill(batch["target"] == IGNORED, 0), batch["target"])
    assert scores.compute().miou == 1


def test_a_map_at_its_own_size_is_unchanged(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (24, 24), dtype=np.uint8)
    shown = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(shown).save(tmp_path / "b.png")
    listed = write_lines(tmp_path / "pairs.jsonl", [{"image": "b.png", "annotation": "a.png", "caption": "noise"}])
    example = ControlPairs(control_data.listed_pairs(listed), "semantic", 24, THREE)[0]
    assert np.array_equal(example["target"].numpy().astype(int), np.where(labels == 0, IGNORED, labels.astype(int) - 1))
    assert np.array_equal(example["image"].permute(1, 2, 0).numpy(), shown)
    large = ControlPairs(control_data.listed_pairs(listed), "semantic", 48, THREE)[0]["target"]
    assert torch.equal(large[::2, ::2], example["target"]) and torch.equal(large[1::2, 1::2], example["target"])


def test_incomplete_data_are_named(ade: Path, tmp_path: Path) -> None:
    missing = MissingResourceError
    with pytest.raises(missing, match=r"images/testing.*captions_testing\.jsonl"):
        control_data.pairs(ade, "testing")
    with pytest.raises(missing, match="'semantic'"):
        ControlPairs([control_data.Pair(ade / "x.jpg", None, "")], "semantic", 8, THREE)
    with pytest.raises(missing, match="no landmarks"):
        ControlPairs([control_data.Pair(ade / "x.jpg", ade / "x.png", "")], "landmarks", 8)
    with pytest.raises(ConfigurationError, match=r"'edge'.*'edges'"):
        ControlPairs([], "edge", 8)
    with pytest.raises(ConfigurationError, match="need the classes"):
        ControlPairs([], "semantic", 8)
    few = control_data.Classes(THREE.names[:2], THREE.palette[:2])
    with pytest.raises(missing, match="has the class 3, but the classes are 1 to 2"):
        ControlPairs(control_data.pairs(ade, "validation"), "semantic", 10, few)[0]
    Image.new("L", (20, 20)).save(ade / "annotations" / "validation" / "ADE_val_00000001.png")
    with pytest.raises(missing, match="20 x 20 pixels, but its picture .* has 40 x 20"):
        ControlPairs(control_data.pairs(ade, "validation"), "semantic", 10, THREE)[0]
    Image.new("RGB", (40, 20)).save(ade / "annotations" / "validation" / "ADE_val_00000001.png")
    with pytest.raises(missing, match="one channel"):
        ControlPairs(control_data.pairs(ade, "validation"), "semantic", 10, THREE)[0]
    (ade / "annotations" / "validation" / "ADE_val_00000001.png").write_text("no picture")
    with pytest.raises(missing, match="cannot be read as a picture"):
        ControlPairs(control_data.pairs(ade, "validation"), "semantic", 10, THREE)[0]
    (ade / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    with pytest.raises(missing, match=r"00000002\.jpg has no annotation"):
        control_data.pairs(ade, "validation")
    write_lines(ade / "captions_train.jsonl", [{"index": 0, "caption": "one"}])
    with pytest.raises(missing, match=r"00000002\.jpg has no caption"):
        control_data.pairs(ade, "train")
    for line, message in (({"caption": "a"}, "names no image"), ({"index": 0}, "no caption"), ([1], "no lines of JSON objects")):
        with pytest.raises(missing, match=message):
            control_data.caption_lines(write_lines(ade / "y.jsonl", [line]), "validation")  # type: ignore[list-item]
    with pytest.raises(missing, match="does not exist"):
        control_data.listed_pairs(write_lines(ade / "z.jsonl", [{"image": "nothing.jpg", "caption": "a"}]))
    with pytest.raises(missing, match="cannot be read as JSON lines"):
        control_data.listed_pairs(ade / "nothing.jsonl")


def test_classes_come_from_the_files_that_are_there(tmp_path: Path) -> None:
    bare = control_data.classes(tmp_path)
    assert len(bare.names) == len(set(bare.palette)) == 150 and (0, 0, 0) not in bare.palette
    assert bare.palette[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))  # Pascal VOC's first classes
    assert bare.palette[19] == (0, 64, 128)  # and its last, tvmonitor
    rows = "".join(f"{n}\t0.1\t1\t1\t0\tthing {n}, other\n" for n in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tStuff\tName\n{rows}")
    assert control_data.classes(tmp_path).names[4] == "thing 5, other"
    (tmp_path / "color150.csv").write_text("idx,r,g,b\n2,1,2,3\n1,4,5,6\n")
    with pytest.raises(MissingResourceError, match="2 rows"):
        control_data.classes(tmp_path)
    (tmp_path / "classes.csv").write_text("idx,name,r,g,b\n2,b,1,2,3\n1,a,4,5,6\n")
    assert control_data.classes(tmp_path) == control_data.Classes(("a", "b"), ((4, 5, 6), (1, 2, 3)))
    (tmp_path / "classes.csv").write_text("number,name\n1,a\n")
    with pytest.raises(MissingResourceError, match=r"classes\.csv is no table of classes"):
        control_data.classes(tmp_path)


def test_the_control_world_is_read_back(tmp_path: Path) -> None:
    sizes = {"train": 2, "tuning": 2, "validation": 3}
    control.write(tmp_path, seed=1, sizes=sizes)
    for task in control.TASKS:
        folder = tmp_path / "datasets" / "world" / "control" / task
        known = control_data.classes(folder) if task == "semantic" else None
        for split, count in sizes.items():
            made = control.examples(task, split, 1, count)
            data = ControlPairs(control_data.pairs(folder, split), task, 64, known)
            assert [data[i]["caption"] for i in range(count)] == made.captions
            for i in range(count):
                assert np.array_equal(data[i]["image"].permute(1, 2, 0).numpy(), made.images[i])
                assert np.array_equal(data[i]["hint"].permute(1, 2, 0).numpy(), made.hints[i])
                assert np.allclose(data[i]["target"].numpy(), made.targets[i], atol=1e-3)
        assert known is None or (known.names == control.CLASSES and known.palette == control.PALETTE)
    assert IGNORED == control.NO_CLASS


def test_landmarks_follow_the_crop(tmp_path: Path) -> None:
    shown = np.zeros((20, 40, 3), np.uint8)
    shown[4:8, 24:28] = 255  # a dot at (26, 6)
    for name in ("a.png", "b.png"):
        Image.fromarray(shown).save(tmp_path / name)
    line = {"image": "a.png", "annotation": "b.png", "caption": "dot", "landmarks": [[26, 6]]}
    example = ControlPairs(control_data.listed_pairs(write_lines(tmp_path / "l.jsonl", [line])), "landmarks", 40)[0]
    bright = (example["hint"][0] > 127).nonzero().float().mean(0).flip(0) + 0.5  # centre of the dot, x and y
    assert torch.allclose(bright, example["target"][0], atol=0.1) and example["target"][0].tolist() == [32, 12]


# --- real files --------------------------------------------------------------------------------------------------------


@real
def test_real_ade20k_pairs() -> None:
    folder = HUB / "datasets" / "local" / "ade20k"
    found, known = control_data.pairs(folder, "validation"), control_data.classes(folder)
    assert len(found) == 30 and len(known.names) == 150 and known.names[0] == "wall" and known.palette[0] == (120, 120, 120)
    texts = control_data.caption_lines(folder / "oft_blip_captions_validation.jsonl", "validation")
    assert len(texts) == 2000 and all(texts[pair.image.stem] == pair.caption for pair in found)
    data = ControlPairs(found, "semantic", 512, known)
    bedrooms = 0
    for index, pair in enumerate(found[:8]):
        example = data[index]
        assert example["image"].shape == example["hint"].shape == (3, 512, 512)
        labels = example["target"]
        seen = labels[labels != IGNORED]
        assert int(seen.max()) < 150
        row, column = ((labels != IGNORED).nonzero()[1234]).tolist()
        assert tuple(example["hint"][:, row, column].tolist()) == known.palette[int(labels[row, column])]
        if "bedroom" in pair.caption:
            bedrooms += 1
            assert (labels == known.names.index("bed")).float().mean() > 0.05
    assert bedrooms >= 3


@real
def test_real_coco_pictures_with_edges() -> None:
    found = control_data.listed_pairs(HUB / "datasets" / "local" / "coco" / "captions.jsonl")
    assert len(found) == 21 and found[0].caption == "a group of people sit around a big table"
    example = ControlPairs(found, "edges", 256)[0]
    assert 0.01 < example["target"].float().mean() < 0.3
    assert torch.equal(example["hint"][1] == 255, example["target"])
