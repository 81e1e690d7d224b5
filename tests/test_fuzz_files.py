"""Weights, data sets, checkpoints and results of any content: refused with a message, and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile
import pandas as pd
import peft
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from ether import EtherConfig, config, foundation, hub, results
from ether import run as runner
from ether.analysis import runs as collected
from ether.errors import EtherError, HardwareError, MissingResourceError, writing
from ether.experiments.glue import EXPERIMENT

WEIGHTS = "model.safetensors"


def _spec(path: Path | str, **model: Any) -> config.RunSpec:
    spec = config.runs(config.load("smoke", {"methods": "ether", "tasks": "rte", "seeds": "0"}), "glue")[0]
    return replace(spec, settings={**spec.settings, "model": {**spec.settings["model"], "path": str(path), **model}})


# --- weights -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped encoder without its card, as a user's own folder."""
    copy = tmp_path / "own" / "encoder"
    shutil.copytree(foundation.WEIGHTS / "language-encoder", copy, ignore=shutil.ignore_patterns("card.json"))
    return copy


def _header(size: int, text: bytes = b"{}") -> Callable[[Path], None]:
    return lambda folder: _write(folder / WEIGHTS, struct.pack("<Q", size) + text)


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _truncated(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _wrong_shapes(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def _other_names(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def _pickle_as_safetensors(folder: Path) -> None:
    _write(folder / WEIGHTS, hostile.pickled(folder))


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    _write(folder / "pytorch_model.bin", hostile.pickled(folder))


def _pickle_in_zip(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"weight": hostile.Payload(folder)}, folder / "pytorch_model.bin")


def _own_code(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "mine.py").write_text(f"open({str(folder / hostile.CANARY)!r}, 'w')\nclass Mine: pass\n")


def _configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


HOSTILE_WEIGHTS: dict[str, Callable[[Path], None]] = {
    "pickle in a safetensors file": _pickle_as_safetensors,
    "pickle": _pickle,
    "pickle in torch's archive": _pickle_in_zip,
    "code of the model's own": _own_code,
    "truncated": _truncated,
    "shapes of another model": _wrong_shapes,
    "names of another model": _other_names,
    "header larger than the file": _header(2**40),
    "header larger than memory": _header(2**63 - 1),
    "header that is no JSON": _header(4, b"\xff\xff\xff\xff"),
    "tensor outside the file": _header(*(lambda h: (len(h), h))(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')),
    "tensor of negative size": _header(*(lambda h: (len(h), h))(b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}')),
    "empty": lambda folder: _write(folder / WEIGHTS, b""),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "configuration that is no JSON": lambda folder: _write(folder / "config.json", b"{"),
    "configuration with text for a number": _configured(hidden_size=f"$(touch {hostile.CANARY})"),
    "configuration with a negative size": _configured(hidden_size=-4),
    "configuration of an unknown model": _configured(model_type="../../x"),
    "tokenizer that is no JSON": lambda folder: _write(folder / "tokenizer.json", b"\0"),
}


@pytest.mark.parametrize("kind", HOSTILE_WEIGHTS)
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_hostile_weights_are_refused_and_execute_nothing(kind, weights, model, workplace):
    HOSTILE_WEIGHTS[kind](model)
    with hostile.no_code_runs(model):
        pass  # the test's own preparation has not executed anything
    with pytest.raises(EtherError) as refused:
        EXPERIMENT.load(_spec(model, weights=weights), Path("results/smoke"), "cpu")
    assert str(refused.value)
    assert not list(model.parent.rglob(hostile.CANARY)) and not list(workplace.rglob(hostile.CANARY))


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=8))
@hostile.few
def test_safetensors_with_changed_bytes_load_or_are_refused(tmp_path_factory, place, change):
    folder = tmp_path_factory.mktemp("changed")
    save_file({"a": torch.zeros(4, 4), "b": torch.zeros(3)}, folder / WEIGHTS)
    content = bytearray((folder / WEIGHTS).read_bytes())
    place %= len(content)
    content[place : place + len(change)] = change
    (folder / WEIGHTS).write_bytes(bytes(content))
    try:
        with hub.explained(hub.Source("mine", folder), "model", "glue.model.path"):
            load_file(folder / WEIGHTS)
    except MissingResourceError as error:
        assert str(folder) in str(error)


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin0(x)


@pytest.mark.parametrize("kind", ["pickle", "archive", "shapes", "header", "configuration"])
def test_hostile_adapters_execute_nothing(kind, tmp_path):
    """PEFT loads adapters by itself and raises its own errors; what counts is that it loads and executes nothing."""
    folder = tmp_path / "adapters" / "mine"
    peft.get_peft_model(_Tiny(), EtherConfig(target_modules=["lin0"])).save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    if kind in ("pickle", "archive"):
        file.unlink()
        content = {"base_model.model.lin0.ether_u": hostile.Payload(folder)}
        other = folder / "adapter_model.bin"
        other.write_bytes(pickle.dumps(content)) if kind == "pickle" else torch.save(content, other)
    elif kind == "shapes":
        save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)
    elif kind == "header":
        file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    else:
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "n_blocks": f"$(touch {hostile.CANARY})"}))
    with hostile.no_code_runs(folder), pytest.raises(Exception):  # noqa: B017 - PEFT's, torch's or safetensors' own
        peft.PeftModel.from_pretrained(_Tiny(), folder)


# --- data sets -----------------------------------------------------------------------------------------------------------

ROWS = {"sentence1": ["a b"] * 16, "sentence2": ["c d"] * 16, "label": [0, 1] * 8}


def _table(**columns: Any) -> pa.Table:
    return pa.table({name: column for name, column in {**ROWS, **columns}.items() if column is not None})


DATA: dict[str, pa.Table | bytes] = {
    "no label": _table(label=None),
    "label of text": _table(label=["yes", "no"] * 8),
    "label missing in a row": _table(label=[0, None] * 8),
    "label of an unlabelled split": _table(label=[-1] * 16),
    "label of another task": _table(label=[0, 7] * 8),
    "label not finite": _table(label=[float("nan"), 1.0] * 8),
    "label of lists": _table(label=[[0], [1]] * 8),
    "label far too large": _table(label=[2**62, 1] * 8),
    "text of numbers": _table(sentence1=list(range(16))),
    "text missing in a row": _table(sentence1=["a", None] * 8),
    "text of lists": _table(sentence1=[["a"], ["b"]] * 8),
    "text of bytes": _table(sentence1=[b"\xff\xfe"] * 16),
    "text of dictionaries": _table(sentence1=[{"a": 1}] * 16),
    "no rows": _table().slice(0, 0),
    "two columns of one name": pa.Table.from_arrays(
        [pa.array(ROWS["sentence1"])] * 2 + [pa.array(ROWS["sentence2"]), pa.array(ROWS["label"])],
        names=["sentence1", "sentence1", "sentence2", "label"],
    ),
    "not parquet": b"PAR1 is what this is not",
    "empty": b"",
    "pickled type": b"",  # filled below
    "columns of code": _table(**{"__import__('os').system('touch x')": [1] * 16, "../../x": ["x"] * 16}),
    "text of code": _table(sentence1=(list(hostile.TEXTS[:11]) * 2)[:16]),
}
WORKS = {"columns of code", "text of code"}  # other columns are not read, and text is text


def _pickled_type(folder: Path) -> pa.Table:
    """A column whose type is a pickle: what pyarrow's PyExtensionType was, which newer versions of pyarrow do not load."""
    field = pa.field("sentence1", pa.string(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": hostile.pickled(folder).decode("latin-1"),
    })  # fmt: skip
    table = _table()
    return table.set_column(0, field, table["sentence1"])


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "glue"
    for split in ("train", "validation"):
        file = folder / "rte" / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(_table(), file)
    return folder


def _loaded(mirror: Path) -> Any:
    spec = _spec("foundation/language-encoder")
    spec = replace(spec, settings={**spec.settings, "data": {**spec.settings["data"], "path": str(mirror)}})
    EXPERIMENT.check(spec, Path("results/smoke"))
    with runner._unusable_inputs_explained(spec):
        return EXPERIMENT.load(spec, Path("results/smoke"), "cpu")


@pytest.mark.parametrize("kind", DATA)
def test_odd_data_sets_are_refused_or_used(kind, mirror, workplace):
    content = _pickled_type(mirror) if kind == "pickled type" else DATA[kind]
    for split in ("train", "validation"):
        file = mirror / "rte" / f"{split}.parquet"
        file.write_bytes(content) if isinstance(content, bytes) else pa.parquet.write_table(content, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _loaded(mirror)
    except EtherError as error:
        assert kind not in WORKS and str(error), error
    else:
        assert kind in WORKS | {"pickled type"} and set(loaded.data.train["labels"]) == {0, 1}
    assert not list(mirror.parent.rglob(hostile.CANARY)) and not list(workplace.rglob(hostile.CANARY))


# --- results -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "runs" / "glue" / "all"
    row = dict.fromkeys(results.RUN_COLUMNS, "x") | {n: 1 for n, kind in results.RUN_COLUMNS.items() if kind != "string"}
    results.write_parquet(results.runs_frame([row]), folder / "runs.parquet")
    values = {"run_id": "x", "step": 1, "split": "s", "task": "t", "metric": "m", "value": 0.5}
    results.write_parquet(results.metrics_frame([values]), folder / "metrics.parquet")
    yield folder


@given(st.integers(0, 10**6))
@hostile.few
def test_a_truncated_table_of_results_is_damaged(tmp_path_factory, place):
    file = tmp_path_factory.mktemp("results") / "metrics.parquet"
    results.write_parquet(results.metrics_frame([]), file)
    file.write_bytes(file.read_bytes()[: place % file.stat().st_size])
    with pytest.raises(MissingResourceError, match=r"metrics\.parquet is damaged .* Delete it and start again"):
        results.read_parquet(file, results.METRIC_COLUMNS)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("results/small/metrics/glue.parquet", "Delete it and start again"),
        ("results/small/runs/glue/all/metrics.parquet", "Delete it and start again"),
        ("results/published/small/metrics/glue.parquet", r"git checkout -- results/published/small/metrics/glue\.parquet"),
        ("stored/metrics/glue.parquet", "Copy it there again"),
        ("results/small/stored/metrics/glue.parquet", "Copy it there again"),
    ],
)
def test_only_a_file_that_is_made_again_is_to_be_deleted(file, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    for named in (path, path.absolute()):
        with pytest.raises(MissingResourceError, match=f"is damaged .*{remedy.replace('-- ', '-- .*')}") as caught:
            results.read_parquet(named, results.METRIC_COLUMNS)
        assert ("Delete it" in str(caught.value)) == remedy.startswith("Delete it")


@pytest.mark.parametrize("change", [{"value": None}, {"value": ["high"]}, {"step": [[1]]}, {"step": ["1"]}])
def test_a_table_of_another_form_is_refused(change, job, tmp_path):
    file = job / "metrics.parquet"
    frame = pd.read_parquet(file)
    for name, column in change.items():
        frame = frame.drop(columns=name) if column is None else frame.assign(**{name: column})
    frame.to_parquet(file)
    with pytest.raises(MissingResourceError, match=f"{next(iter(change))}"):
        results.collect([job], tmp_path / "metrics" / "glue")
    assert runner._finished(job) is None  # such a run is made again


def test_damaged_files_of_a_replay_are_named(job, tmp_path):
    (tmp_path / "metrics").mkdir()
    shutil.copy(job / "runs.parquet", tmp_path / "metrics/glue.runs.parquet")
    (tmp_path / "metrics/glue.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingResourceError, match=r"glue\.parquet is damaged"):
        collected.read(config.load("smoke", {"replay": str(tmp_path)}), "glue")


@pytest.mark.parametrize("damage", ["trained.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_with_a_damaged_file_is_discarded(damage, tmp_path):
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": torch.ones(100)}, folder / "trained.safetensors")
        for name in ("optimizer.pt", "rng_state.pth"):
            torch.save({"a": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text("{}")
    file = tmp_path / "checkpoint-4" / damage
    content = bytearray(file.read_bytes())
    if file.suffix == ".safetensors":
        del content[-4:]
    else:
        with zipfile.ZipFile(file) as archive:
            place = next(info.header_offset for info in archive.infolist() if info.filename.endswith("data/0"))
        content[place + 200] ^= 255  # within the tensor: only the checksum shows it
    file.write_bytes(bytes(content))
    runner._discard_damaged_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError(27, "File too large"), RuntimeError("wrapped: No space left on device")],
)
def test_a_full_disk_is_explained(error, tmp_path):
    with pytest.raises(HardwareError, match="No space left on the disk .* finished runs are kept"), writing(tmp_path):
        raise error


def test_a_read_only_folder_is_found_before_anything_is_written(tmp_path, monkeypatch):
    results.check_writable(tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(results.os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(HardwareError, match=rf"{tmp_path} cannot be written: .* read-only"):
        results.check_writable(tmp_path / "not" / "yet")


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")])
def test_a_read_only_disk_is_explained(error, tmp_path):
    with pytest.raises(HardwareError, match="cannot be written"), results.atomic(tmp_path / "x"):
        raise error
