"""The world of scenes: pictures match their captions, held-out combinations are absent, subjects have DreamBooth's layout."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ether.errors import ConfigurationError
from ether.worlds import scenes


def test_scenes_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = (scenes.corpus(seed, 30) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and first[1:] == again[1:]
    assert first[1] != other[1] and not np.array_equal(first[0], other[0])
    longer = scenes.corpus(3, 40)
    assert np.array_equal(longer[0][:30], first[0]) and longer[1][:30] == first[1]
    assert first[0].shape == (30, 32, 32, 3) and first[0].dtype == np.uint8


def _near(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float(np.abs(pixels.astype(float).reshape(-1, 3).mean(0) - colour).max())


def test_the_background_is_the_one_named() -> None:
    for scene in itertools.islice(scenes.scenes(5), 200):
        picture = scenes.render(scene)
        yy, xx = np.mgrid[0:32, 0:32] + 0.5
        outside = (abs(xx - scene.x) > scene.radius * 1.2) | (abs(yy - scene.y) > scene.radius * 1.2)
        free = picture[outside].astype(float)
        if scene.background in scenes.PLAIN:
            assert _near(free, scenes.PLAIN[scene.background]) < 18
            assert free.std(0).max() < 2
        else:
            assert free.std(0).max() > 4  # something to see
            nearest = {
                "grass": free.mean(0).argmax() == 1,
                "sand": free.mean(0).min() > 120,
                "brick": free.mean(0).argmax() == 0,
                "water": free.mean(0).argmax() == 2,
                "wood": free.mean(0).argmax() == 0,
            }
            assert nearest[scene.background]


def test_the_object_has_the_colour_and_the_texture_named() -> None:
    rng = np.random.default_rng(0)
    for shape, (colour, rgb) in itertools.product(scenes.SHAPES, scenes.COLOURS.items()):
        for texture in scenes.TEXTURES:
            scene = scenes.shape_scene(colour, shape, texture, "gray", rng)
            picture = scenes.render(scene).astype(float)
            main, second = (np.abs(picture - c).max(-1) < 25 for c in scene.look.colours)
            assert _near(np.array(scene.look.colours[0]), rgb) <= 10
            assert main.sum() > 25, (colour, shape, texture)
            assert (second.sum() > 8) == (texture != "plain"), (colour, shape, texture)
            if texture == "outlined":  # the second colour encloses the first one
                inner, outer = np.argwhere(main), np.argwhere(second)
                assert (outer.min(0) <= inner.min(0)).all() and (outer.max(0) >= inner.max(0)).all()


def test_shapes_and_things_have_their_silhouettes() -> None:
    at = (np.arange(200) + 0.5) / 100 - 1
    u, v = np.meshgrid(at, at)
    area = {shape: scenes._shape(shape, u, v).mean() for shape in scenes.SHAPES}
    assert area["circle"] == pytest.approx(np.pi * 0.94 / 4, abs=0.02)
    assert area["square"] == pytest.approx(0.84**2, abs=0.02)
    assert area["triangle"] == pytest.approx((0.82 + 0.95) ** 2 * 0.56 / 4, abs=0.02)
    assert 0.2 < area["star"] < 0.5 and 0.4 < area["heart"] < 0.75
    for shape in scenes.SHAPES:
        mask = scenes._shape(shape, u, v)
        assert (mask == mask[:, ::-1]).mean() > 0.97  # left and right alike
    rng = np.random.default_rng(0)
    for thing in scenes.THINGS:
        masks = [scenes._thing(scenes.random_look(thing, rng), u, v) for _ in range(20)]
        assert all(0.12 < mask.mean() < 0.8 for mask in masks)
        assert min((a != b).mean() for a, b in itertools.combinations(masks, 2)) > 0.01


def test_captions_name_the_attributes_of_their_scene_and_no_others() -> None:
    rng = np.random.default_rng(1)
    known, openings = set(scenes.vocabulary()), set()
    for scene in itertools.islice(scenes.scenes(6), 500):
        for text in (scenes.caption(scene, rng), scenes.caption(scene, rng, complete=True), scenes.describe(scene)):
            words = text.replace(",", "").split()
            assert set(words) <= known
            assert scene.look.kind in words and not (set(scenes.KINDS) - {scene.look.kind}) & set(words)
            openings.add(words[0])
            for article, following in itertools.pairwise(words):
                if article in ("a", "an"):
                    assert (article == "an") == (following[0] in "aeiou")
        full = scenes.describe(scene)
        assert scenes.BACKGROUNDS[scene.background][0] in full
        assert (scene.colour is None) or scene.colour in full
        assert scene.texture is None or scene.texture in full
        complete = scenes.caption(scene, rng, complete=True)
        assert any(way in complete for way in scenes.BACKGROUNDS[scene.background])
    assert {"a", "on"} <= openings


def test_held_out_combinations_are_absent_from_training_and_their_pairs_are_not() -> None:
    gone = scenes.held_out()
    assert len(gone) == 30
    samples = [s for s in itertools.islice(scenes.scenes(0), 6000) if s.look.kind in scenes.SHAPES]
    seen = {(s.colour, s.look.kind, s.texture) for s in samples}
    assert not seen & gone and len(seen) == 6 * 6 * 5 - 30
    for i, j in itertools.combinations(range(3), 2):
        assert {(t[i], t[j]) for t in gone} <= {(t[i], t[j]) for t in seen}
    samples = scenes.held_out_scenes(1, 300)
    assert {(s.colour, s.look.kind, s.texture) for s in samples} == gone
    assert {s.background for s in samples} == set(scenes.BACKGROUNDS)
    whole = {(s.colour, s.look.kind, s.texture) for s in itertools.islice(scenes.scenes(0, 0.0, True), 3000)}
    assert gone <= whole


def test_subjects_differ_and_have_no_name_in_captions() -> None:
    looks = [subject.look for subject in scenes.SUBJECTS]
    assert len({subject.name for subject in scenes.SUBJECTS}) == len(looks) >= 6
    pictures = [scenes.render(scenes.Scene(look, "gray", 16, 16, 12, 0)).astype(float) for look in looks]
    for a, b in itertools.combinations(pictures, 2):
        assert (np.abs(a - b).max(-1) > 40).mean() > 0.15
    for look in looks:
        for colour in look.colours:
            assert min(np.abs(np.subtract(colour, named)).max() for named in scenes.COLOURS.values()) > 20
    assert not set(scenes.SPARE_TOKENS) & {*scenes.COLOURS, *scenes.TEXTURES, *scenes.KINDS}


def read_prompt_file(text: str) -> tuple[dict[str, str], list[str]]:
    """Classes by subject, and the first list of prompts, as google/dreambooth writes them."""
    head, tail = text.split("Prompts", 1)
    classes = dict(line.split(",") for line in head.splitlines() if "," in line and not line.startswith("subject_name"))
    listed = tail[tail.index("[") + 1 : tail.index("]")]
    lines = [line.strip().rstrip(",") for line in listed.splitlines() if line.strip()]
    return classes, [ast.literal_eval(line.split(".format")[0]) for line in lines]


def test_the_subjects_are_written_in_dreambooths_layout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ether.worlds", "scenes", str(tmp_path / "a"), "--settings", '{"seed": 3, "images": 4}']
    subprocess.run(command, check=True)
    scenes.write(tmp_path / "b", seed=3, images=4)
    files = {f.relative_to(tmp_path / "a"): f.read_bytes() for f in sorted((tmp_path / "a").rglob("*")) if f.is_file()}
    assert sorted(map(str, files)) == sorted(scenes.files({"seed": 3, "images": 4}))
    assert files == {f.relative_to(tmp_path / "b"): f.read_bytes() for f in (tmp_path / "b").rglob("*") if f.is_file()}

    folder = tmp_path / "a" / "datasets" / "world" / "dreambooth" / "dataset"
    classes, prompts = read_prompt_file((folder / "prompts_and_classes.txt").read_text())
    described = json.loads((folder / "metadata.json").read_text())
    assert classes == {s.name: s.noun for s in scenes.SUBJECTS} == {n: s["class"] for n, s in described["subjects"].items()}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(classes)
    assert 8 <= len(prompts) <= 12
    assert [prompt["template"] for prompt in described["prompts"]] == prompts
    assert {prompt["split"] for prompt in described["prompts"]} == {"selection", "report"}
    for prompt in described["prompts"]:
        text = prompt["template"].format("qwe", "toy")
        assert "qwe toy" in text and set(text.split()) <= set(scenes.vocabulary())
        if "background" in prompt:
            assert scenes.BACKGROUNDS[prompt["background"]][0] in text
        else:
            assert prompt["colour"] in text
    for name, subject in described["subjects"].items():
        assert [image["file"] for image in subject["images"]] == sorted(p.name for p in (folder / name).iterdir())
        backgrounds = [image["background"] for image in subject["images"]]
        assert len(set(backgrounds)) == 4
        for image in subject["images"]:
            picture = np.asarray(Image.open(folder / name / image["file"]))
            assert picture.shape == (32, 32, 3)
            x, y, radius = (image[key] for key in ("x", "y", "radius"))
            assert radius <= x <= 32 - radius and radius <= y <= 32 - radius
            if image["background"] in scenes.PLAIN:
                corner = picture[0 if y > 16 else -1, 0 if x > 16 else -1]  # the one farthest from the object
                assert _near(corner, scenes.PLAIN[image["background"]]) < 18


@pytest.mark.parametrize("settings", [{"subjects": 0}, {"subjects": 99}, {"images": 0}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="1 to 8 subjects"):
        scenes.write(tmp_path, **settings)
