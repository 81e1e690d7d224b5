"""The shipped judges and encoders of controllable generation: what they are trusted for, and that pretraining is reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ether import foundation
from ether.diffusion import control_encoders
from ether.diffusion.signal import BLOCK_CHANNELS, ControlledUNet, load_encoder, new_encoder
from ether.foundation import control_judges
from ether.results import file_digest
from ether.worlds import control


def test_the_shipped_judges_read_new_pictures() -> None:
    found = control_judges.validate(foundation.path("control-judges"), seed=99, count=48)
    assert found["segmenter, mean IoU"] > 0.85 and found["segmenter, pixel accuracy"] > 0.95
    assert found["landmarks, mean distance in pixels"] < 0.5 and found["landmarks, faces found"] == 1.0
    assert found["landmarks, found in pictures without a face"] == 0.0


@pytest.mark.parametrize("kind", list(control.TASKS))
def test_the_frozen_model_follows_a_shipped_encoder(kind: str) -> None:
    """Much better than without a hint: a new encoder adds zeros."""
    scores = {}
    for name in ("new", "shipped"):
        sampler = control_encoders.base()
        unet = sampler.pipeline.unet
        file = control_encoders.file_of(foundation.path("control-encoders"), kind)
        encoder = new_encoder(unet, BLOCK_CHANNELS) if name == "new" else load_encoder(file).float()
        _, images, scores[name] = control_encoders.evaluate(kind, sampler, ControlledUNet(unet, encoder), seed=40, count=12)
        assert images.shape == (12, 3, 64, 64) and images.dtype == torch.uint8
    margin = {"semantic": 8, "landmarks": 8, "edges": 8}[kind]
    assert scores["shipped"]["score"] > scores["new"]["score"] + margin


def test_the_encoders_are_pretrained_again_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_encoders, "BATCH", 2)
    monkeypatch.setattr(control_encoders, "SAMPLING", control_encoders.SAMPLING | {"steps": 1})
    monkeypatch.setattr(control_encoders.evaluate, "__kwdefaults__", {"count": 2})
    for name in "ab":
        foundation.pretrain("control-encoders", tmp_path / name, steps=2)
    foundation.verify(tmp_path / "a")
    for kind in control.TASKS:
        first, second = (control_encoders.file_of(tmp_path / name, kind) for name in "ab")
        assert file_digest(first) == file_digest(second)
        assert load_encoder(first).conv_out.weight.abs().max() > 0  # it was trained
