"""Shared fixtures: a folder in which the smoke scale's data lie, so that runs can be tried without the workflow."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub; those of its errors raise them themselves
os.environ["ETHER_THREADS"] = "1"

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def smoke_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the smoke scale's generated data under ``results/smoke/world``."""
    from ether import config
    from ether.worlds import language

    folder = tmp_path_factory.mktemp("work")
    settings = config.load("smoke").settings["world"]["language"]
    language.write(folder / "results" / "smoke" / "world", **settings)
    return folder


@pytest.fixture
def workplace(smoke_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder."""
    monkeypatch.chdir(smoke_world)
    return smoke_world
