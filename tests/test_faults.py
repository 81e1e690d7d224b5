"""The plan, the judgement and the summary of `benchmarks/faults.py`; the trials themselves take minutes and are not tests."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "benchmarks/faults.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_at_least_fifty_kills_by_default_spread_over_their_kinds(faults):
    planned = faults.planned([*faults.KILLS, *faults.OTHERS], kills=50, others=2)
    counts = Counter(planned)
    assert sum(counts[kind] for kind in faults.KILLS) == 50 and min(counts[kind] for kind in faults.KILLS) == 12
    assert all(counts[kind] == 2 for kind in faults.OTHERS)
    assert faults.planned(["step", "parquet"], kills=2, others=1) == ["step", "step", "parquet"]


def test_every_kind_has_a_trial(faults):
    names = [kind.replace(" ", "_").replace("-", "_") for kind in (*faults.KILLS, *faults.OTHERS)]
    assert all(callable(getattr(faults.Trials, f"_{name}")) for name in names)


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({"struck": True, "same": True, "starts": 1}, "completed"),
        ({"struck": True, "same": True, "starts": 2, "message": "damaged"}, "stopped with a message"),
        ({"struck": True, "same": False, "starts": 1}, "FAILED"),
        ({"struck": True, "same": True, "starts": 2, "clear": False}, "FAILED"),
        ({"struck": False, "same": True, "starts": 1}, "missed"),
    ],
)
def test_a_trial_fails_if_the_numbers_differ_or_a_stack_trace_is_shown(faults, values, outcome):
    assert faults.Trial(1, "step", **values).outcome == outcome


def test_a_stack_trace_is_not_a_clear_message(faults):
    trial = faults.Trials.__new__(faults.Trials)
    made = faults.Trial(1, "weights")
    trial._note(made, faults.Ended(1, "x\ncheck failed\nmodel.safetensors is not the file of the card.\n", 1.0))
    assert made.clear and made.message == "model.safetensors is not the file of the card."
    trial._note(made, faults.Ended(1, "Traceback (most recent call last):\n  ...\nOSError: x", 1.0))
    assert not made.clear and "OSError" in made.log


def test_the_summary_counts_by_kind(faults):
    trials = [faults.Trial(n, "step", struck=True, same=True, starts=1, seconds=10.0) for n in range(3)]
    trials += [faults.Trial(3, "parquet", struck=True, same=True, starts=2), faults.Trial(4, "step", same=True, starts=1)]
    text = faults.summary(pd.DataFrame([{**asdict(t), "outcome": t.outcome} for t in trials]))
    assert "| step | 3 | 3 | 0 | 0 | 10 |" in text and "| parquet | 1 | 0 | 1 | 0 |" in text and "| all | 4 | 3 | 1 | 0 |" in text
    assert "1 more trial missed" in text


def test_readme_has_the_table_of_the_stored_trials(faults):
    stored = pd.read_parquet(ROOT / "benchmarks/results/faults.parquet")
    assert faults.summary(stored) in (ROOT / "README.md").read_text()
    assert stored["commit"].str.fullmatch("[0-9a-f]{40}").all()


def test_the_scale_of_the_trials_is_one(faults, tmp_path, monkeypatch):
    from ether import config, yamlfiles

    project = faults.Project(tmp_path / "project")
    for module in (config, yamlfiles):
        monkeypatch.setattr(module, "WORKFLOW", project.folder / "workflow")
    jobs = config.jobs(config.load("faults"), "glue")
    assert list(jobs) == ["all"] and len(jobs["all"].runs) == 2
    assert {run.hyperparameters["checkpoint_steps"] for run in jobs["all"].runs} == {2}
    (project.folder / "results").mkdir()
    project.clear()
    assert not (project.folder / "results").exists()
