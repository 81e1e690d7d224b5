"""The control world: signals match their pictures, splits are disjoint, files are those listed and have the same bytes."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from ether.errors import ConfigurationError
from ether.worlds import control, drawings, faces, pictures

SMALL: dict[str, Any] = {"seed": 3, "sizes": {"train": 5, "tuning": 2, "validation": 3}}


# --- signals -----------------------------------------------------------------------------------------------------------


def test_label_maps_show_the_groups_where_the_things_are() -> None:
    """Where a label is ground, the picture is the one of the same scene without things."""
    made = control.examples("semantic", "train", 0, 60)
    assert made.targets.shape == made.images.shape[:3] == (60, 64, 64) and made.targets.dtype == np.uint8
    seen = set()
    for scene, image, labels in zip(made.scenes, made.images, made.targets, strict=True):
        empty = pictures.render(pictures.Scene((), scene.background, scene.shift)).astype(int)
        change = np.abs(image.astype(int) - empty).max(-1)
        thing = labels > 0
        assert not thing[change == 0].any()  # no thing where nothing is drawn
        assert change[~thing].max() <= 128  # no ground where a thing covers more than half of a pixel
        for part in scene.things:
            box = labels[part.y : part.y + part.side, part.x : part.x + part.side]
            group = "face" if part.face else drawings.entry(part.name).group
            assert set(np.unique(box)) == {0, control.CLASSES.index(group)}
            seen.add(group)
    assert len(seen) >= 6 and ("ground", *drawings.GROUPS, "face") == control.CLASSES


def test_colours_tell_the_classes_apart() -> None:
    assert len(set(control.PALETTE)) == len(control.CLASSES) and (0, 0, 0) not in control.PALETTE
    labels = np.array([[0, 3], [7, control.NO_CLASS]])
    assert control.coloured(labels).tolist() == [
        [list(control.PALETTE[0]), list(control.PALETTE[3])],
        [list(control.PALETTE[7]), [0, 0, 0]],
    ]
    with pytest.raises(ConfigurationError, match="label 8 has no colour"):
        control.coloured(np.array([[8]]))


def test_landmarks_are_where_the_face_is_drawn() -> None:
    made = control.examples("landmarks", "train", 1, 30)
    for scene, image, points in zip(made.scenes, made.images, made.targets, strict=True):
        at = dict(zip(faces.LANDMARKS, points, strict=True))
        for side in ("left", "right"):
            column, row = (int(c) for c in at[f"{side} pupil"])
            patch = image[row - 1 : row + 2, column - 1 : column + 2].astype(int).sum(-1)
            assert patch.min() < 330  # a dark pupil
            cheek = int(at[f"{side} cheek"][0] + (2 if side == "left" else -2)), int(at[f"{side} cheek"][1])
            assert np.abs(image[cheek[1], cheek[0]].astype(int) - scene.things[0].face.skin).max() < 30  # type: ignore[union-attr]
    assert made.targets.shape == (30, 20, 2)
    with pytest.raises(ConfigurationError, match="no landmarks of one face"):
        control.landmarks(pictures.alone("fox", "sand", np.random.default_rng(0)))


@pytest.mark.parametrize("size", [64, 128])
def test_drawn_landmarks_are_dots_at_their_places(size: int) -> None:
    points = control.examples("landmarks", "train", 2, 1).targets[0] * size / 64
    hint = control.draw_landmarks(points, size)
    assert hint.shape == (size, size, 3)
    for x, y in points:
        assert hint[int(y), int(x)].min() > 60  # white, at least in part
    far = np.ones((size, size), bool)
    for x, y in points:
        far[max(0, int(y) - size // 4) : int(y) + size // 4, max(0, int(x) - size // 4) : int(x) + size // 4] = False
    assert far.any() and not hint[far].any()  # black elsewhere
    named = {name for _, chain in control.LINES for name in chain}
    assert named == set(faces.LANDMARKS)


def test_edges_are_the_outline_of_a_shape_whatever_its_brightness() -> None:
    picture = np.full((32, 32, 3), (100, 100, 100), np.uint8)
    picture[10:22, 8:24] = (200, 50, 100)  # its grey value is about that of the ground
    assert abs(float(picture[15, 15] @ np.array([0.299, 0.587, 0.114])) - 100) < 2
    edges = control.edge_map(picture)
    inside, around = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    inside[12:20, 10:22] = around[8:24, 6:26] = True
    assert edges[around & ~inside].any() and not edges[inside].any() and not edges[~around].any()
    assert ndimage.label(~edges)[1] == 2  # a closed outline (by 4-neighbours) between the inside and the outside
    assert not control.edge_map(np.full((16, 16, 3), 77, np.uint8)).any()
    assert not control.edge_map(picture, low=500, high=900).any()


def test_edge_maps_have_details_but_are_no_noise() -> None:
    made = control.examples("edges", "train", 0, 40)
    assert made.targets.dtype == bool and 0.04 < made.targets.mean() < 0.25
    assert np.array_equal(made.hints[..., 0] == 255, made.targets) and set(np.unique(made.hints)) == {0, 255}


# --- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", control.TASKS)
def test_splits_share_no_picture_whatever_the_seed_and_have_no_held_out_pair(task: str) -> None:
    counts = {"train": 400, "tuning": 60, "validation": 60}
    if task == "edges":
        counts = dict.fromkeys(counts, 20)
    by_split: dict[str, set[bytes]] = {}
    for split, count in counts.items():
        for seed in (0, 1):
            made = control.examples(task, split, seed, count)
            found = {image.tobytes() for image in made.images}
            assert len(found) == count == len(made.captions) == len(made.hints) == len(made.targets) == len(made.scenes)
            by_split.setdefault(split, set()).update(found)
            assert not {(t.name, s.background) for s in made.scenes for t in s.things} & pictures.held_out()
            assert all(np.array_equal(pictures.render(s), image) for s, image in zip(made.scenes, made.images, strict=True))
            for scene, caption in zip(made.scenes, made.captions, strict=True):
                assert all(thing.name in caption.split() for thing in scene.things)
    assert not by_split["train"] & by_split["tuning"] and not by_split["validation"] & (by_split["train"] | by_split["tuning"])


def test_a_tenth_of_all_pictures_is_tuning_and_a_tenth_validation() -> None:
    random = np.random.default_rng(0)
    found = [control.split_of(random.integers(0, 256, (2, 2, 3), dtype=np.uint8)) for _ in range(3000)]
    for split, share in (("train", 0.8), ("tuning", 0.1), ("validation", 0.1)):
        assert found.count(split) / 3000 == pytest.approx(share, abs=0.02)


def test_examples_depend_on_the_seed_and_not_on_their_number() -> None:
    short, long, other = (control.examples("landmarks", "tuning", seed, n) for seed, n in ((0, 4), (0, 9), (1, 4)))
    assert np.array_equal(short.images, long.images[:4]) and short.captions == long.captions[:4]
    assert np.array_equal(short.hints, long.hints[:4]) and not np.array_equal(short.images, other.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("semantics", "train", 0, 1), "'semantics'.*'semantic'"),
        (("semantic", "test", 0, 1), "Unknown split 'test'"),
        (("edges", "train", 0, 0), "at least 1"),
    ],
)
def test_wrong_names_are_refused(arguments: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        control.examples(*arguments)


# --- files -------------------------------------------------------------------------------------------------------------


def test_files_are_those_listed_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        control.write(tmp_path / name, **SMALL)
    listed = control.files(SMALL)
    written = sorted(file.relative_to(tmp_path / "a").as_posix() for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert written == sorted(listed) and len(listed) == len(set(listed)) == 3 * 3 + 1
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in listed)
    for task in control.TASKS:
        root = tmp_path / "a" / "datasets" / "world" / "control" / task
        for split, count in SMALL["sizes"].items():
            made = control.examples(task, split, SMALL["seed"], count)
            lines = pd.read_parquet(root / f"{split}.parquet").to_dict("records")
            assert [line["caption"] for line in lines] == made.captions
            for i, line in enumerate(lines):
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(line["image"]["bytes"]))), made.images[i])
                annotation = np.asarray(Image.open(io.BytesIO(line["annotation"]["bytes"])))
                expected = {"semantic": made.targets[i] + 1, "landmarks": made.hints[i], "edges": made.hints[i][..., 0]}[task]
                assert np.array_equal(annotation, expected)
                if task == "landmarks":
                    assert np.allclose(np.stack(line["landmarks"]), made.targets[i], atol=1e-3)
    with (tmp_path / "a" / "datasets" / "world" / "control" / "semantic" / "classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(int(row["idx"]), row["name"]) for row in rows] == list(enumerate(control.CLASSES, 1))
    assert [tuple(int(row[c]) for c in "rgb") for row in rows] == list(control.PALETTE)


def test_wrong_settings_are_refused_and_files_need_no_slow_libraries(tmp_path: Path) -> None:
    assert len(control.files({"tasks": ["edges"], "sizes": {"train": 1, "tuning": 1, "validation": 1}})) == 3
    for settings, message in (
        ({"tasks": ["edge"]}, "'edge'.*'edges'"),
        ({"sizes": {"test": 1}}, "Unknown split 'test'"),
        ({"sizes": {"train": 0}}, "1 to 100000"),
    ):
        for call in (lambda s=settings: control.files(s), lambda s=settings: control.write(tmp_path / "out", **s)):
            with pytest.raises(ConfigurationError, match=message):
                call()
    assert not (tmp_path / "out").exists()
    code = (
        "import sys; from ether.worlds import control; control.files({});"
        "print({'torch', 'transformers', 'datasets', 'peft', 'PIL', 'skimage'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
