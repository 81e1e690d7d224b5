"""README's numbers on time and memory are those of the stored rows, and the rows say what they are."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


def benchmark(name: str) -> ModuleType:
    """A file of the folder `benchmarks`, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record() -> ModuleType:
    return benchmark("record")


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


SNAKEFILE = """
rule all:
    input: "sum.txt", "a.txt"
rule sum:
    input: "a.txt", "b.txt"
    output: "sum.txt"
    shell: "sleep 1; cat {input} > {output}"
rule one:
    output: "{name}.txt"
    wildcard_constraints: name="a|b"
    shell: "sleep 2; echo {wildcards.name} > {output}"
"""


def test_the_workflow_s_jobs_are_timed_from_its_own_log(tmp_path: Path) -> None:
    workflow = benchmark("workflow")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    watched = workflow.run(tmp_path, ["--cores", "2", "all"], interval=0.2)
    assert watched.status == 0 and watched.seconds > 3 and watched.memory >= watched.largest > 2**20
    assert 0 < watched.scheduler <= watched.seconds
    found = workflow.jobs(max((tmp_path / ".snakemake/log").glob("*.log")).read_text())
    assert sorted((job.rule, job.name) for job in found) == [("all", ""), ("one", "a"), ("one", "b"), ("sum", "")]
    seconds = {job.name or job.rule: job.seconds for job in found}
    assert seconds["a"] >= 1 and seconds["b"] >= 1 and sum(seconds.values()) <= 2 * watched.seconds + 4  # in whole seconds
    table = workflow.by_rule(found, 10.0, 2)
    assert table.loc["one", "jobs"] == 2 and table.loc["one", "share"] == (seconds["a"] + seconds["b"]) / 20
    assert "Nothing to be done" in workflow.run(tmp_path, ["--cores", "2", "all"]).output


def test_start_up_is_the_time_of_the_jobs_outside_of_their_runs(tmp_path: Path) -> None:
    workflow = benchmark("workflow")
    folder = tmp_path / "runs" / "glue" / "lora"
    folder.mkdir(parents=True)
    pd.DataFrame({"wall_seconds": [30.0, 12.0]}).to_parquet(folder / "runs.parquet")
    found = [workflow.Job(*row) for row in (("experiment", "glue/lora", 50.0), ("check", "glue", 6.0), ("table", "table4", 9.0))]
    workflow.add_runs(found, tmp_path)
    assert [job.run_seconds for job in found] == [42.0, 0.0, 0.0]
    assert workflow.start_up(found, seconds=70.0, cores=2) == pytest.approx((8 + 6) / 140)


def test_times_and_values_are_compared_with_the_published_runs_of_the_same_id() -> None:
    workflow = benchmark("workflow")
    runs = pd.DataFrame({"run_id": ["a", "b", "c"], "experiment": ["glue", "glue", "vtab"], "wall_seconds": [2.0, 3.0, 5.0]})
    published = pd.DataFrame({"run_id": ["b", "a", "z"], "wall_seconds": [1.0, 1.0, 1.0]})
    table = workflow.compared(runs, published)
    assert table.loc["glue", ["runs", "published_runs", "ratio"]].tolist() == [2, 2, 2.5]
    assert table.loc["vtab", "runs"] == 1 and pd.isna(table.loc["vtab", "ratio"])
    values = pd.DataFrame(
        {"run_id": ["a", "a", "b"], "step": 1, "split": "test", "metric": ["m", "n", "m"], "value": [1.0, None, 2.0]}
    )
    old = values.assign(value=[1.0, None, 2.0 + 2**-50])
    assert workflow.equal_values(values, old) == (2, 3)
    assert workflow.equal_values(values, old[:0]) == (0, 0)
