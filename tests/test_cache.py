"""Stored counts: found again by request, code and library versions, and by nothing less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest

from ether.measures import cache

CODE = ("ether.measures.parameters",)


@pytest.fixture
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Calls of the computation; the store is empty, and so is what this process has read from it."""
    monkeypatch.setattr(cache, "FOLDER", tmp_path)
    monkeypatch.setattr(cache, "_known", {})
    monkeypatch.setattr(cache.sources, "text_of", lambda files: "\n".join(files))
    cache._environment.cache_clear()
    yield []
    cache._environment.cache_clear()


def ask(computed: list[int], request: Mapping[str, object], value: float = 3.0, code: tuple[str, ...] = CODE) -> float:
    def compute() -> dict[str, float]:
        computed.append(1)
        return {"value": value}

    return cache.cached("counts", code, request, compute)["value"]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would start from: the files alone."""
    monkeypatch.setattr(cache, "_known", {})
    cache._environment.cache_clear()


def test_a_result_is_computed_once_and_found_by_another_process(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(computed, {"a": 1, "b": [2]}) == ask(computed, {"b": [2], "a": 1}) == 3.0
    forget(monkeypatch)
    assert ask(computed, {"a": 1, "b": [2]}, value=4.0) == 3.0 and len(computed) == 1


def test_another_request_another_code_or_another_library_is_computed_anew(
    computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(computed, {"a": 1}, 1.0) == 1.0
    assert ask(computed, {"a": 2}, 2.0) == 2.0
    assert ask(computed, {"a": 1}, 3.0, ("ether.measures.flops",)) == 3.0
    versions = cache.importlib.metadata.version
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: versions(name) + ("+other" if name == "peft" else ""))
    forget(monkeypatch)
    assert ask(computed, {"a": 1}, 4.0) == 4.0
    assert len(computed) == 4


def test_the_code_behind_counts_includes_the_adapters() -> None:
    from ether.paper import counts, efficiency

    for modules in (counts._CODE, efficiency._CODE):
        files = cache.sources.closure(*modules)
        assert {"ether/tuners/layer.py", "ether/methods/layer_sets.py", "ether/measures/architectures.py"} <= set(files)


def test_an_edit_of_the_code_makes_what_is_stored_out_of_date(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(computed, {"a": 1}, 1.0) == 1.0
    monkeypatch.setattr(cache.sources, "text_of", lambda files: "\n".join(files) + "# edited")
    forget(monkeypatch)
    assert ask(computed, {"a": 1}, 2.0) == 2.0
    assert len(pd.read_parquet(cache.FOLDER / "counts.parquet")) == 1  # the outdated row is gone


def test_results_that_another_process_stores_meanwhile_are_kept(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ask(computed, {"a": 1}, 1.0)
    mine = cache._known
    monkeypatch.setattr(cache, "_known", {})
    ask(computed, {"a": 2}, 2.0)  # the other process
    monkeypatch.setattr(cache, "_known", mine)
    ask(computed, {"a": 3}, 3.0)
    assert sorted(pd.read_parquet(cache.FOLDER / "counts.parquet")["value"]) == [1.0, 2.0, 3.0]


def test_large_counts_and_missing_numbers_are_stored_exactly(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ask(computed, {"a": 1}, 2**53 - 1)
    ask(computed, {"a": 2}, float("nan"))
    forget(monkeypatch)
    assert ask(computed, {"a": 1}) == 2**53 - 1
    assert pd.isna(ask(computed, {"a": 2})) and len(computed) == 2
