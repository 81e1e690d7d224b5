"""The training of the vision encoder: reproducible, and without the things held out for a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ether.foundation import vision_encoder
from ether.worlds import drawings, pictures, vision


def test_what_a_task_is_made_of_was_left_out_of_the_pretraining() -> None:
    known, held_out = set(vision_encoder.names()), set(vision.held_out_names())
    assert known | held_out == {entry.name for entry in drawings.entries()} and not known & held_out
    shown = vision_encoder.scenes(3, 2_000, vision_encoder.names())
    assert {scene.things[0].artist for scene in shown} == {"noto"}
    assert not {scene.things[0].name for scene in shown} & held_out


def test_scenes_lie_within_the_picture_and_targets_are_theirs() -> None:
    known = vision_encoder.names()
    found = vision_encoder.scenes(1, 200, known)
    for scene, (name, background, colour) in zip(found, vision_encoder.attributes(found, known).tolist(), strict=True):
        [thing] = scene.things
        assert min(thing.x, thing.y) >= 0 and max(thing.x, thing.y) + thing.side <= pictures.SIZE
        assert known[name] == thing.name and list(pictures.BACKGROUNDS)[background] == scene.background
        assert [None, *pictures.COLOURS][colour] == thing.colour
    coloured = sum(scene.things[0].colour is not None for scene in found) / len(found)
    assert coloured == pytest.approx(vision_encoder.RECOLOURED, abs=0.12)


def test_training_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_encoder, "accuracy", lambda *_, **__: 0.0)
    threads = torch.get_num_threads()
    try:
        for name in "ab":
            vision_encoder.pretrain(tmp_path / name, steps=2)
    finally:
        torch.set_num_threads(threads)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
