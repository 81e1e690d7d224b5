"""Cards of foundation models: written once, read back, and every damaged folder is refused with the file's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ether import foundation
from ether.errors import ConfigurationError, HardwareError, MissingResourceError
from ether.foundation import card, pretraining

SETTINGS = {
    "what": "a test",
    "seed": 3,
    "steps": 5,
    "threads": 2,
    "device": "cpu",
    "batch": 4,
    "minutes": 0.26,
    "made_from": "numbers",
}


def write(folder: Path, **changes: object) -> Path:
    """A model folder of two parts with its card; `changes` are other arguments of `card.write` than `SETTINGS`."""
    card.start(folder)
    (folder / "part").mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights.safetensors").write_bytes(b"weights")
    (folder / ".config.json.1.tmp").write_text("left by a process that was killed")
    models = {"first": nn.Linear(2, 3), "second": nn.Linear(4, 1, bias=False)}
    card.write(folder, name="test", models=models, scores={"accuracy": 0.5}, **(SETTINGS | changes))  # type: ignore[arg-type]
    return folder


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    content = card.read(card.verify(folder))
    assert set(content["sha256"]) == {"config.json", "part/weights.safetensors"}
    assert content["parameters"] == {"first": 9, "second": 4}
    assert content["command"] == "python -m ether.foundation test --out FOLDER --steps 5 --seed 3 --threads 2"
    assert (content["minutes"], content["scores"], content["batch"]) == (0.3, {"accuracy": 0.5}, 4)
    assert content["hardware"].endswith("CPU, 2 threads")
    assert content["licence"] == "Made from generated numbers only; under the licence of this package."


def test_a_card_names_the_gpu_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    content = card.read(write(tmp_path / "model", device="cuda"))
    assert content["hardware"] == "a GPU"
    assert content["command"] == "python -m ether.foundation test --out FOLDER --steps 5 --seed 3 --threads 2 --device cuda"


def test_a_device_that_is_not_there_is_refused_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="finds no GPU"):
        foundation.pretrain("vision-encoder", tmp_path / "model", device="cuda")
    with pytest.raises(ConfigurationError, match="tpu"):
        foundation.pretrain("vision-encoder", tmp_path / "model", device="tpu")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", foundation.MODELS)
def test_shipped_cards_have_the_keys_that_are_written_today(name: str, tmp_path: Path) -> None:
    content = card.read(foundation.path(name))
    details = {"text-to-image": {"sampling", "precision"}}.get(name, {"precision"} if name.startswith("control") else set())
    assert set(content) == set(card.read(write(tmp_path / "model"))) | details
    assert content["name"] == name


@pytest.mark.parametrize("harm", ["corrupt", "remove"])
@pytest.mark.parametrize("file", ["config.json", "part/weights.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, harm: str) -> None:
    folder = write(tmp_path / "model")
    if harm == "corrupt":
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    else:
        (folder / file).unlink()
    with pytest.raises(MissingResourceError, match=rf"{file}.*foundation=rebuild"):
        foundation.verify(folder)


def test_a_damaged_copy_of_a_shipped_model_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(foundation.path("language-encoder"), tmp_path / "model"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(MissingResourceError, match=r"model\.safetensors is not the file.*foundation=rebuild"):
        foundation.verify(folder)


def test_a_folder_without_a_valid_card_is_not_a_finished_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    card.start(folder)  # a new training
    with pytest.raises(MissingResourceError, match=r"has no card\.json.*foundation=rebuild"):
        foundation.verify(folder)
    for text, message in (("{", "is not valid JSON"), ("[]", "does not list the SHA-256"), ('{"name": "x"}', "does not list")):
        (folder / "card.json").write_text(text)
        with pytest.raises(MissingResourceError, match=rf"card\.json {message}"):
            card.read(folder)


def test_the_learning_rate_warms_up_and_decays_over_the_second_half() -> None:
    factor = pretraining.warm_up_and_decay(100, 10)
    assert [factor(step) for step in (0, 4, 9, 50, 75, 99)] == [0.1, 0.5, 1.0, 1.0, 0.5, 0.02]


def test_optimise_takes_the_steps_of_the_optimiser_with_clipped_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    weight = nn.Parameter(torch.zeros(1))
    losses = (-30 * weight.sum() for _ in range(3))  # the gradient is -30, clipped to -1
    factor = {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.0}.__getitem__
    pretraining.optimise(losses, torch.optim.SGD([weight], lr=1.0), [weight], factor, steps=3, label="test")
    assert float(weight.detach()) == pytest.approx(1.75, abs=1e-4)
    lines = [line.split(", ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["step 1/3: loss 0.000", "step 2/3: loss -30.000", "step 3/3: loss -45.000"]


def test_weight_decay_is_for_matrices_only() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    decayed, others = pretraining.decay_groups(list(model.parameters()), 0.1)
    assert [p.ndim for p in decayed["params"]] == [2, 2] and decayed["weight_decay"] == 0.1
    assert [p.ndim for p in others["params"]] == [1, 1, 1] and others["weight_decay"] == 0.0


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, ether.foundation, ether.standins; print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_every_registered_model_can_be_pretrained_by_its_module() -> None:
    names = {path.name for path in foundation.WEIGHTS.iterdir() if path.is_dir()}
    assert names == set(foundation.MODELS)
    for name in names:
        assert json.loads((foundation.WEIGHTS / name / "card.json").read_text())["command"].split()[3] == name
