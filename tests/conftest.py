"""Shared fixtures (the smoke scale's generated data, so that runs can be tried without the workflow); order of the tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub; those of its errors raise them themselves
os.environ["ETHER_THREADS"] = "1"

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def spread(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Orders the tests such that the long ones start first, on different workers.

    pytest-xdist's `worksteal` first gives each worker a contiguous part of the list, all of about the same length. A long
    test (marked `dag`, with its rough `minutes`) comes at the head of a part, on the worker that has least to do so far.
    """
    minutes = {item: mark.kwargs.get("minutes", 2) for item in items if (mark := item.get_closest_marker("dag"))}
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for item in sorted(minutes, key=lambda item: -minutes[item]):
        min(heads, key=lambda head: sum(minutes[other] for other in head)).append(item)
    rest = [item for item in items if item not in minutes]
    ordered: list[pytest.Item] = []
    for number, head in enumerate(heads):
        length = (len(items) - len(ordered)) // (workers - number)
        filling = max(length - len(head), 0)
        ordered += [*head, *rest[:filling]]
        del rest[:filling]
    return [*ordered, *rest]


@pytest.hookimpl(trylast=True)  # after tests have been deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    worker = getattr(config, "workerinput", None)  # only in a worker of pytest-xdist
    if worker is not None:
        items[:] = spread(items, worker["workercount"])


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
