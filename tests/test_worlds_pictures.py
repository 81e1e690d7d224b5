"""The world of pictures: scenes match their captions, held-out pairs are absent, subjects have DreamBooth's layout."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from ether.errors import ConfigurationError, MissingResourceError
from ether.worlds import drawings, faces, pictures
from ether.worlds.drawings.rebuild import PACKAGES, rebuild


def test_scenes_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = (pictures.corpus(seed, 30) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and first[1:] == again[1:]
    assert first[1] != other[1] and not np.array_equal(first[0], other[0])
    longer = pictures.corpus(3, 40)
    assert np.array_equal(longer[0][:30], first[0]) and longer[1][:30] == first[1]
    assert first[0].shape == (30, 64, 64, 3) and first[0].dtype == np.uint8


def test_the_background_is_the_one_named() -> None:
    for scene in itertools.islice(pictures.random_scenes(5), 200):
        free = pictures.render(scene)[pictures.coverage(scene) == 0].astype(float)
        if scene.background in pictures.PLAIN:
            assert np.abs(np.median(free, axis=0) - pictures.PLAIN[scene.background]).max() <= 1
            continue
        assert free.std(0).max() > 4  # something to see
        middle = np.median(free, axis=0)
        nearest = {
            "grass": middle.argmax() == 1,
            "sand": middle.min() > 120,
            "brick": middle.argmax() == 0 and middle[1] < 100,
            "water": middle.argmax() == 2,
            "wood": middle.argmax() == 0 and middle[1] > 100,
        }
        assert nearest[scene.background]


def test_a_thing_is_its_artists_drawing_at_its_place() -> None:
    rng = np.random.default_rng(0)
    for name in pictures.NAMES:
        scene = pictures.alone(name, "gray", rng)
        [thing] = scene.things
        shown = pictures.render(scene)[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side].astype(float)
        tile = Image.fromarray(drawings.drawing("noto", name)).resize((thing.side, thing.side), Image.Resampling.BOX)
        opaque = np.asarray(tile)[..., 3] == 255
        assert np.abs(shown - np.asarray(tile)[..., :3])[opaque].mean() < 12, name
        covered = pictures.coverage(scene)[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        assert covered[opaque].mean() > 0.97 and covered.sum() == pictures.coverage(scene).sum()


def test_things_lie_on_the_grid_and_do_not_overlap() -> None:
    seen = set()
    for scene in itertools.islice(pictures.random_scenes(8), 2000):
        assert 1 <= len(scene.things) <= 2
        for thing in scene.things:
            assert thing.x % 8 == thing.y % 8 == 0 and max(thing.x, thing.y) + thing.side <= 64
            assert thing.artist == "noto"  # the model never sees the other artist's drawings
            seen.add((len(scene.things), thing.side))
        if len(scene.things) == 2:
            assert scene.things[0].x + scene.things[0].side <= scene.things[1].x
    assert seen == {(1, 40), (1, 48), (2, 32)}


@pytest.mark.parametrize(("colour", "strongest"), [("red", 0), ("green", 1), ("blue", 2)])
def test_recoloured_things_have_the_colour_and_keep_their_light_and_dark(colour: str, strongest: int) -> None:
    for name in pictures.NAMES:
        tile = drawings.drawing("noto", name)
        changed = pictures.recolour(tile, pictures.COLOURS[colour])
        visible = tile[..., 3] > 200
        assert np.array_equal(tile[..., 3], changed[..., 3])
        assert changed[visible][:, :3].mean(0).argmax() == strongest, name
        before, after = (np.asarray(Image.fromarray(t[..., :3]).convert("L"), float)[visible] for t in (tile, changed))
        assert spearmanr(before, after).statistic > 0.85, name  # ties by rounding


def test_captions_name_what_is_in_their_scene_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    known, openings, without = set(pictures.vocabulary()), set(), 0
    nouns = {*pictures.NAMES, pictures.FACE}
    for scene in itertools.islice(pictures.random_scenes(6), 1000):
        full = pictures.describe(scene)
        for text in (pictures.caption(scene, rng), full):
            words = text.replace(",", "").split()
            assert set(words) <= known and not set(words) & set(pictures.SPARE_TOKENS)
            assert [word for word in words if word in nouns] == [thing.name for thing in scene.things]
            openings.add(words[0])
            for article, following in itertools.pairwise(words):
                if article in ("a", "an"):
                    assert (article == "an") == (following[0] in "aeiou")
        without += pictures.BACKGROUNDS[scene.background] not in text and pictures.BACKGROUNDS[scene.background] in full
        assert pictures.BACKGROUNDS[scene.background] in full
        for thing in scene.things:
            assert not thing.colour or f"{thing.colour} {thing.name}" in full
    assert {"a", "on"} <= openings


def test_held_out_pairs_are_absent_from_training() -> None:
    gone = pictures.held_out()
    assert {name for name, _ in gone} == set(pictures.NAMES) and len(gone) == len(pictures.NAMES)
    assert {background for _, background in gone} == set(pictures.BACKGROUNDS)
    seen = {(t.name, s.background) for s in itertools.islice(pictures.random_scenes(0), 20_000) for t in s.things}
    assert not seen & gone
    assert len({pair for pair in seen if pair[0] != pictures.FACE}) == len(pictures.NAMES) * len(pictures.BACKGROUNDS) - len(gone)
    asked = {(s.things[0].name, s.background) for s in pictures.held_out_scenes(1, len(gone))}
    assert asked == gone
    assert all(s.things[0].colour for s in pictures.held_out_scenes(1, 20, coloured=True))


def test_faces_have_their_landmarks_where_they_are_drawn() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        face = faces.random_face(rng)
        at = dict(zip(faces.LANDMARKS, face.landmarks, strict=True))
        assert len(at) == 20 and all(0 < coordinate < 1 for point in at.values() for coordinate in point)
        drawn = faces.draw_face(face, 96).astype(float)

        def colour(point: tuple[float, float], drawn: np.ndarray = drawn) -> np.ndarray:
            x, y = (round(c * 96) for c in point)
            return drawn[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 4).mean(0)

        for side in ("left", "right"):
            assert colour(at[f"{side} pupil"])[:3].max() < 110  # dark
        middle = tuple(np.mean([at["mouth top"], at["mouth bottom"]], axis=0))
        assert np.abs(colour(middle)[:3] - (176, 48, 52)).max() < 60  # lips
        assert colour((0.02, 0.02))[3] == 0  # nothing in the corners


def test_both_artists_drew_every_name() -> None:
    names = [entry.name for entry in drawings.entries()]
    assert len(names) == len(set(names)) == 485 and set(pictures.NAMES) <= set(names)
    assert {entry.group for entry in drawings.entries()} == set(drawings.GROUPS)
    for name in names:
        for artist in drawings.ARTISTS:
            assert (drawings.drawing(artist, name)[..., 3] > 128).mean() > 0.05, (artist, name)
    assert {pictures.group(name) for name in pictures.NAMES} == set(drawings.GROUPS)
    with pytest.raises(ConfigurationError, match="'octopuss'.*'octopus'"):
        drawings.drawing("noto", "octopuss")


def test_a_changed_or_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="npm pack emoji-datasource-google@16.0.0"):
        rebuild(tmp_path / "out", tmp_path)
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(MissingResourceError, match="damaged or was changed"):
        rebuild(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("ETHER_NPM_PACKAGES" not in os.environ, reason="ETHER_NPM_PACKAGES names no folder with the npm packages")
def test_the_drawings_are_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ether.worlds", "pictures", str(tmp_path), "--rebuild", os.environ["ETHER_NPM_PACKAGES"]]
    subprocess.run(command, check=True)
    for name in (drawings.INDEX, *(f"{artist}.png" for artist in PACKAGES)):
        made, shipped = ((folder / name).read_bytes() for folder in (tmp_path, drawings.FOLDER))
        assert hashlib.sha256(made).hexdigest() == hashlib.sha256(shipped).hexdigest(), name


def test_subjects_are_drawings_that_no_scene_has() -> None:
    names = [subject.name for subject in pictures.SUBJECTS]
    assert len(names) == len(set(names)) == 10
    for subject in pictures.SUBJECTS:
        assert subject.noun in pictures.NAMES
        own, known = (drawings.drawing(artist, subject.noun).astype(float) for artist in (subject.artist, "noto"))
        assert (np.abs(own - known).max(-1) > 40).mean() > 0.15  # clearly another drawing


def read_prompt_file(text: str) -> tuple[dict[str, str], list[str]]:
    """Classes by subject, and the first list of prompts, as google/dreambooth writes them."""
    head, tail = text.split("Prompts", 1)
    classes = dict(line.split(",") for line in head.splitlines() if "," in line and not line.startswith("subject_name"))
    listed = tail[tail.index("[") + 1 : tail.index("]")]
    lines = [line.strip().rstrip(",") for line in listed.splitlines() if line.strip()]
    return classes, [ast.literal_eval(line.split(".format")[0]) for line in lines]


def test_the_subjects_are_written_in_dreambooths_layout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ether.worlds", "pictures", str(tmp_path / "a"), "--settings", '{"seed": 3, "images": 4}']
    subprocess.run(command, check=True)
    pictures.write(tmp_path / "b", seed=3, images=4)
    files = {f.relative_to(tmp_path / "a"): f.read_bytes() for f in sorted((tmp_path / "a").rglob("*")) if f.is_file()}
    assert sorted(map(str, files)) == sorted(pictures.files({"seed": 3, "images": 4}))
    assert files == {f.relative_to(tmp_path / "b"): f.read_bytes() for f in (tmp_path / "b").rglob("*") if f.is_file()}

    folder = tmp_path / "a" / "datasets" / "world" / "dreambooth" / "dataset"
    classes, prompts = read_prompt_file((folder / "prompts_and_classes.txt").read_text())
    described = json.loads((folder / "metadata.json").read_text())
    assert classes == {s.name: s.noun for s in pictures.SUBJECTS} == {n: s["class"] for n, s in described["subjects"].items()}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(classes)
    assert len(prompts) == 12
    assert [prompt["template"] for prompt in described["prompts"]] == prompts
    assert [prompt["split"] for prompt in described["prompts"]].count("report") == 6
    photographed = {image["background"] for subject in described["subjects"].values() for image in subject["images"]}
    for prompt in described["prompts"]:
        text = prompt["template"].format("qwe", "teapot")
        assert "qwe teapot" in text and set(text.split()) <= set(pictures.vocabulary())
        assert pictures.BACKGROUNDS[prompt["background"]] in text and prompt["background"] not in photographed
        assert prompt.get("colour", "qwe") in text
    for name, subject in described["subjects"].items():
        assert [image["file"] for image in subject["images"]] == sorted(p.name for p in (folder / name).iterdir())
        assert len({image["background"] for image in subject["images"]}) == 4
        for image in subject["images"]:
            picture = np.asarray(Image.open(folder / name / image["file"]))
            assert picture.shape == (64, 64, 3)
            x, y, side = (image[key] for key in ("x", "y", "side"))
            outside = np.ones((64, 64), bool)
            outside[y : y + side, x : x + side] = False
            if image["background"] in pictures.PLAIN:
                assert (picture[outside] == pictures.PLAIN[image["background"]]).all()


@pytest.mark.parametrize("settings", [{"subjects": 0}, {"subjects": 99}, {"images": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="1 to 10 subjects"):
        pictures.write(tmp_path, **settings)
