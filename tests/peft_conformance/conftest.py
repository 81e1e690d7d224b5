"""Keeps, of PEFT's tests, only those that run one of our configurations, and marks the expected failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cases import CONFIGS, EXPECTED_FAILURES, NEEDS_HUB

HERE = Path(__file__).parent


def _is_ours(value: object) -> bool:
    return value in CONFIGS or type(value) in CONFIGS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = set()
    for item in items:
        if HERE not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if not any(_is_ours(value) for value in parameters.values()):
            dropped.add(item)
        elif item.originalname in NEEDS_HUB:
            item.add_marker(pytest.mark.skip(reason="reads a checkpoint of PEFT's from the hub"))
        elif item.originalname in EXPECTED_FAILURES:
            applies, reason = EXPECTED_FAILURES[item.originalname]
            if applies(parameters):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]
