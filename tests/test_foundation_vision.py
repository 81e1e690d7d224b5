"""The vision encoder: intact, accurate as its card says, reproducible, and ignorant of the things held out for a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from ether import foundation
from ether.foundation import vision_encoder
from ether.foundation.pictures import to_input
from ether.preprocessing import of_checkpoint
from ether.worlds import drawings, pictures, vision


def test_the_shipped_encoder_names_drawings_as_its_card_says() -> None:
    folder = foundation.path("vision-encoder")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    scores = json.loads((folder / "card.json").read_text())["scores"]
    assert vision_encoder.accuracy(model, vision_encoder.SEEN, 77, 400) == pytest.approx(scores["name_accuracy"], abs=0.08)
    assert scores["name_accuracy"] > 0.7 > scores["name_accuracy_other_artist"] > 10 / len(vision_encoder.names())
    known = vision_encoder.names()
    [scene] = vision_encoder.scenes(5, 1, ("penguin",))
    with torch.no_grad():
        logits = model(pixel_values=to_input(pictures.render_many([scene]))).logits
    assert model.config.id2label[int(logits.argmax())] == "penguin" and logits.shape == (1, len(known))


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


def test_the_preprocessor_file_describes_the_input() -> None:
    from ether import hub

    folder = foundation.path("vision-encoder")
    prepare = of_checkpoint(hub.Source("foundation/vision-encoder", folder), 0, "vtab.model.path")
    shown = pictures.render_many(vision_encoder.scenes(2, 2, vision_encoder.names()))
    floats = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(prepare(floats), to_input(shown), atol=1e-6)


def test_training_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_encoder, "accuracy", lambda *_, **__: 0.0)
    threads = torch.get_num_threads()
    try:
        for name in "ab":
            foundation.pretrain("vision-encoder", tmp_path / name, steps=2)
    finally:
        torch.set_num_threads(threads)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
