"""README's numbers on time and memory are those of the stored rows, and the rows say what they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", ROOT / "benchmarks" / "record.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_written_from_the_stored_rows(record: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    between = readme.partition(record.BEGIN)[2].partition(record.END)[0]
    assert between.strip() == record.section().strip(), "run: python benchmarks/record.py --write-only"


def test_readme_s_numbers_one_by_one() -> None:
    """Read from README's text, without the code that writes it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = pd.read_parquet(ROOT / "benchmarks" / "results" / "cpu-layer.parquet")
    line = next(line for line in text.splitlines() if line.startswith("| ETHER+ n=32 | ") and "(" in line)
    stored = rows[rows["method"] == "ETHER+ n=32"]
    numbers = [float(number) for number in re.findall(r"\d\.\d\d", line)]
    assert numbers == [round(v, 2) for _, row in stored.iterrows() for v in (row["to_lora"], row["memory_to_lora"])]
    steps = pd.read_parquet(ROOT / "benchmarks" / "results" / "cpu-step.parquet").set_index("method")
    step_line = next(line for line in text.splitlines() if line.startswith("| ETHER n=1 | ") and "(" not in line)
    assert [float(n) for n in re.findall(r"\d\.\d\d", step_line)] == [
        round(steps.loc["ETHER n=1", key], 2) for key in ("to_lora", "memory_to_lora")
    ]


def test_stored_rows_name_machine_settings_and_reference(record: ModuleType) -> None:
    # Times and memory; the trials of faults.parquet are tested in test_faults.py.
    files = [file for file in sorted(record.RESULTS.glob("*.parquet")) if file.name != "faults.parquet"]
    assert {"cpu-layer.parquet", "cpu-step.parquet"} <= {file.name for file in files}
    for file in files:
        rows = pd.read_parquet(file)
        assert {"device", "threads", "dtype", "torch", "to_lora", "memory_to_lora"} <= set(rows.columns)
        reference = rows[rows["method"] == record.REFERENCE]
        assert len(reference) and (reference[["to_lora", "memory_to_lora"]] == 1).all(axis=None)
        assert ("CPU" in rows["device"].iloc[0]) == file.name.startswith("cpu-")


def test_a_cuda_record_is_added_in_the_same_way(record: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = pd.read_parquet(record.RESULTS / "cpu-layer.parquet").assign(device="NVIDIA X", dtype="bfloat16", to_lora=0.123)
    made_up.to_parquet(tmp_path / "cuda-layer.parquet")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{record.BEGIN}\nold\n{record.END}\nafter\n", encoding="utf-8")
    record.write(readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| NVIDIA X, bfloat16, torch" in text and "0.12 (" in text and "No GPU was available" not in text
