"""The vision world: balanced tasks, separate originals, an exact camera, and tasks that are neither trivial nor impossible."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ether import hub
from ether.errors import ConfigurationError
from ether.worlds import drawings, pictures, vision
from ether.worlds.vision_tasks import canvas, digits, elevation, flowers, textures

TINY = {"train": 6, "tuning": 4, "test": 3}


def contents(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_the_mirror_is_a_function_of_the_seed_and_can_be_loaded(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        vision.write(tmp_path / folder, seed=seed, sizes=TINY)
    first, again, other = (contents(tmp_path / folder) for folder in "abc")
    assert sorted(first) == sorted(vision.files({"seed": 1, "sizes": TINY})) and first == again
    assert len(first) == 18 and all(first[name] != other[name] for name in first)
    source = hub.Source("world/vtab", tmp_path / "a" / "datasets" / "world" / "vtab")
    for (name, task), (split, count) in itertools.product(vision.TASKS.items(), TINY.items()):
        loaded = hub.load_split(source, name, split, ("image", "label"), "vision.data")
        shown, labels = vision.examples(name, split, 1, count)
        assert loaded.features["label"].names == list(task.classes) and loaded["label"] == labels.tolist()
        for row, picture in zip(loaded, shown, strict=True):
            assert row["image"].format == "PNG" and np.array_equal(np.asarray(row["image"]), picture)


@pytest.mark.parametrize("sizes", [{"validation": 5}, {"train": 0}])
def test_wrong_sizes_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="vision world"):
        vision.write(tmp_path, sizes=sizes)
    assert not any(tmp_path.iterdir())


def test_unknown_tasks_and_splits_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'svnh'.*'svhn'"):
        vision.examples("svnh", "train", 0, 1)
    with pytest.raises(ConfigurationError, match="'testing'.*'test'"):
        vision.examples("svhn", "testing", 0, 1)


def test_importing_the_world_is_cheap() -> None:
    code = "import sys, ether.worlds.vision; print([m for m in ('PIL', 'skimage', 'sklearn', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", vision.TASKS)
def test_labels_are_balanced_and_in_no_order_and_splits_differ(name: str) -> None:
    task = vision.TASKS[name]
    count = 2 * len(task.classes) + 1
    drawn = {split: vision.examples(name, split, 0, count) for split in vision.SIZES}
    for shown, labels in drawn.values():
        assert shown.shape == (count, 64, 64, 3) and shown.dtype == np.uint8 and labels.dtype == np.int64
        counts = np.bincount(labels, minlength=len(task.classes))
        assert counts.min() == 2 and counts.max() == 3
        assert np.any(np.diff(labels) < 0) and labels.tolist() != sorted(labels)
        assert min(picture.std() for picture in shown.astype(float)) > 2  # nothing is empty
    everything = np.concatenate([shown for shown, _ in drawn.values()])
    assert len({picture.tobytes() for picture in everything}) == 3 * count
    assert len(set(task.classes)) == len(task.classes) and task.kind in ("natural", "specialized", "structured")
    assert task.real.endswith(".") and task.drawn.endswith(".")


# --- what is real, and what is left out -------------------------------------------------------------------------------


def test_held_out_things_are_in_no_scene_and_resemble_nothing() -> None:
    names = vision.held_out_names()
    assert len(names) == len(set(names)) == 30 == len(vision.TASKS["caltech101"].classes)
    assert not set(names) & set(pictures.NAMES) and not set(names) & set(flowers.DRAWN)
    assert {drawings.entry(name).group for name in names} == set(drawings.GROUPS)
    others = [entry.name for entry in drawings.entries()]
    for name in names:
        own = drawings.drawing("fluent", name).astype(float)
        differ = [(np.abs(own - drawings.drawing("fluent", other)).max(-1) > 40).mean() for other in others if other != name]
        assert min(differ) > 0.1, name


def test_no_digit_is_in_two_splits() -> None:
    target, seen = load_digits().target, list[int]()
    for split in vision.SIZES:
        own = [index for label in range(10) for index in digits.originals(split, label)]
        assert [target[index] for index in own] == sorted(target[index] for index in own)
        assert len(own) > 150
        seen += own
    assert sorted(seen) == list(range(1797))


def test_the_splits_of_a_photograph_do_not_overlap() -> None:
    for name in textures.PHOTOGRAPHS:
        height, width = textures._grey(name).shape
        boxes = {split: textures.region(name, split) for split in ("train", "tuning", "test")}
        for left, top, right, bottom in boxes.values():
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        for a, b in itertools.combinations(boxes.values(), 2):
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1]), name
        for split, (left, top, right, bottom) in boxes.items():
            rng = np.random.default_rng(0)
            for _ in range(25):
                shown, corners = textures.crop(name, split, rng)
                assert shown.shape == (64, 64)
                assert all(left <= x <= right and top <= y <= bottom for x, y in corners), (name, split)


def test_a_crop_shows_what_is_between_its_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.mgrid[0:512, 0:512]
    for ramp, axis in ((columns, 0), (rows, 1)):
        monkeypatch.setattr(textures, "_grey", lambda name, ramp=ramp: (ramp // 4).astype(np.uint8))
        for seed in range(5):
            shown, corners = textures.crop("brick", "train", np.random.default_rng(seed))
            at = np.asarray(corners).reshape(2, 2, 2)[..., axis] / 4  # by column and row
            assert np.abs(np.array([[shown[0, 0], shown[-1, 0]], [shown[0, -1], shown[-1, -1]]]) - at).max() < 2


def test_every_drawn_flower_differs_from_another_in_one_attribute() -> None:
    kinds = [dataclasses.astuple(flower) for flower in flowers.FLOWERS.values()]
    for kind in kinds:
        assert min(sum(a != b for a, b in zip(kind, other, strict=True)) for other in kinds if other != kind) == 1
    assert len(set(kinds)) == len(kinds)


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [3, 8, 24])
def test_fields_have_about_unit_variance(cells: int) -> None:
    rng = np.random.default_rng(cells)
    values = np.stack([canvas.field(rng, cells) for _ in range(200)])
    assert abs(values.mean()) < 0.1 and 0.8 < values.std() < 1.2
    assert np.abs(np.diff(values, axis=1)).mean() < cells / 40  # smooth


@pytest.mark.parametrize("where", [(40.0, 25.0), (60.0, 200.0)])
@pytest.mark.parametrize("radius", [0.5, 1.2])
def test_a_sphere_has_the_closed_form_radius_in_the_picture(where: tuple[float, float], radius: float) -> None:
    camera = elevation.Camera(*where, distance=5, focal=80, target=(0.3, -0.2, 2.0))
    ball = elevation.solid(False, camera.target, (radius,) * 3, tilt=20, yaw=70)
    distance, index, normals = elevation.cast([ball], *camera.rays(fine=2))
    expected = 80 * radius / np.sqrt(25 - radius**2)
    assert np.sqrt((index == 0).sum() / 4 / np.pi) == pytest.approx(expected, rel=0.01)
    covered = (index == 0).reshape(128, 128)
    assert np.array_equal(covered, covered[::-1]) and np.array_equal(covered, covered[:, ::-1])
    origin, directions = camera.rays(fine=2)
    assert distance.min() == pytest.approx(5 - radius, abs=0.001)
    points = origin + distance[index == 0, None] * directions[index == 0]
    assert np.allclose((points - camera.target) / radius, normals[index == 0], atol=2e-4)


def test_a_box_has_the_closed_form_outline_and_hides_what_is_behind_it() -> None:
    camera = elevation.Camera(90, 0, distance=8, focal=100)
    box = elevation.solid(True, (0, 0, 0), (0.5, 1.0, 1.0))
    behind = elevation.solid(False, (0, 0, -2), (0.4, 0.4, 0.4))
    distance, index, normals = elevation.cast([behind, box], *camera.rays())
    covered = (index == 1).reshape(64, 64)
    assert covered.any(0).sum() == pytest.approx(2 * 100 / 7, abs=1)  # y to the right; the upper face is 7 away
    assert covered.any(1).sum() == pytest.approx(100 / 7, abs=1)
    assert not (index == 0).any() and np.allclose(normals[index == 1], (0, 0, 1))
    assert distance[index == 1].min() == pytest.approx(7, abs=0.01)


def test_a_flat_disc_is_as_high_as_the_sine_of_the_elevation() -> None:
    heights, thin = [], 0.03
    for degrees in elevation.ELEVATIONS:
        camera = elevation.Camera(degrees, 33, distance=200, focal=200 * 25)
        disc = elevation.solid(False, (0, 0, 0), (1, 1, thin))
        covered = (elevation.cast([disc], *camera.rays(fine=4))[1] == 0).reshape(256, 256)
        sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        heights.append(covered.any(1).sum() / 4)
        assert heights[-1] == pytest.approx(50 * np.hypot(sine, thin * cosine), abs=0.6)
        assert covered.any(0).sum() / 4 == pytest.approx(50, abs=0.6)
    assert all(b > a for a, b in itertools.pairwise(heights))


def test_a_shadow_falls_away_from_the_light_and_the_plate_is_around_the_origin() -> None:
    camera = elevation.Camera(90, 0, distance=8, focal=100)
    ball = [elevation.solid(False, (0, 0, 0.5), (0.4, 0.4, 0.4))]
    light = np.array([0, np.sqrt(0.5), np.sqrt(0.5)], np.float32)  # from the right of the picture
    bright, dark = (elevation.shade(ball, camera, light, 0.6, 0.3, shadow) for shadow in (0.0, 0.9))
    rows, columns = np.nonzero(bright - dark > 0.1)
    assert len(rows) > 20 and columns.max() < 32 and abs(rows.mean() - 31.5) < 1
    assert bright[0, 0] == pytest.approx(0.6 * (0.3 + 0.7 * np.sqrt(0.5)), abs=1e-4)
    plate = elevation.shade(ball, camera, light, 0.6, 0.3, plate=(1.2, 0.5))
    changed = np.abs(plate - bright) > 0.05
    assert changed.any(0).sum() == pytest.approx(2.4 * 100 / 8, abs=1.5)
    assert plate[changed].mean() == pytest.approx(bright[0, 0] / 2, abs=0.02)


def test_toys_stand_on_the_floor_and_are_seen_whole() -> None:
    rng = np.random.default_rng(0)
    for kind in range(5):
        lowest, inside = [], []
        for _ in range(12):
            solids = elevation.toy(kind, rng)
            assert 4 <= len(solids) <= 6
            for part in solids:
                axes = np.linalg.inv(part.inverse)
                reach = np.abs(axes[2]).sum() if part.box else np.linalg.norm(axes[2])
                lowest.append(part.centre[2] - reach)
            camera = elevation.Camera(50, rng.uniform(0, 360), 6.2, 112, target=(0, 0, 0.5))
            covered = (elevation.cast(solids, *camera.rays())[1] >= 0).reshape(64, 64)
            inside.append(not (covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any()))
            assert covered.mean() > 0.02
        assert min(lowest) > -0.15 and np.mean(inside) > 0.8, kind


# --- difficulty -------------------------------------------------------------------------------------------------------


def features(shown: np.ndarray) -> np.ndarray:
    """Orientations of edges in 4 x 4 cells, a radial spectrum and the colours of 4 x 4 cells."""
    shown = shown.astype(np.float32)
    count, grey = len(shown), gaussian_filter(shown.mean(-1), (0, 1, 1))
    grey = (grey - grey.mean((1, 2), keepdims=True)) / (grey.std((1, 2), keepdims=True) + 1)
    down, right = np.gradient(grey, axis=(1, 2))
    bins = ((np.arctan2(down, right) / np.pi % 1) * 9).astype(int) % 9
    edges = [(np.hypot(down, right) * (bins == k)).reshape(count, 4, 16, 4, 16).mean((2, 4)).reshape(count, -1) for k in range(9)]
    spectrum = np.abs(np.fft.rfft2(grey))
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None]) * 32
    rings = [np.log(spectrum[:, np.minimum(radius, 15).astype(int) == k].mean(1, keepdims=True) + 1e-3) for k in range(16)]
    colours = shown.reshape(count, 4, 16, 4, 16, 3).mean((2, 4)).reshape(count, -1) / 64
    return np.concatenate([np.sqrt(np.concatenate(edges, 1)), *rings, colours], axis=1)


@pytest.mark.parametrize("name", vision.TASKS)
def test_a_simple_classifier_is_above_chance_and_not_perfect(name: str) -> None:
    shown, labels = vision.examples(name, "train", 0, 400)
    unseen, truth = vision.examples(name, "test", 0, 300)
    model = make_pipeline(StandardScaler(), SVC(C=5)).fit(features(shown), labels)
    accuracy, chance = model.score(features(unseen), truth), 1 / len(vision.TASKS[name].classes)
    assert chance + 2.5 * np.sqrt(chance * (1 - chance) / 300) < accuracy < 0.9
