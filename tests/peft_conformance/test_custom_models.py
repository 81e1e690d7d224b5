"""PEFT's tests for a tuner on custom models (its tests/test_custom_models.py), with our tuners in place of its own.

The tests are PEFT's, unchanged; only the lists of cases they are parametrised with are replaced by ours, and `conftest.py`
drops those that are about one particular tuner of PEFT's. Set PEFT_SOURCE to the unpacked source distribution of the
installed PEFT where there is no network.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from . import cases, source

try:
    _peft_tests = source.load(
        source.find(Path(__file__).parents[2] / ".pytest_cache" / "peft-source"), "test_custom_models"
    )
except source.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

# Marks hold the very lists that PEFT's module defines, so changing a list changes the tests.
_peft_tests.TEST_CASES[:] = cases.CASES
_peft_tests.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = cases.PAIRS
_peft_tests.ALL_PEFT_CONFIG_CLASSES[:] = cases.CONFIGS


def _replace_inline_lists(test_class: type) -> None:
    for _, function in inspect.getmembers(test_class, inspect.isfunction):
        for mark in getattr(function, "pytestmark", []):
            if mark.name != "parametrize":
                continue
            names, values = mark.args[:2]
            if names == "config_cls":
                values[:] = cases.CONFIGS
            elif names in cases.OBJECTS:
                values[:] = cases.OBJECTS[names]


for _name, _class in inspect.getmembers(_peft_tests, inspect.isclass):
    if _name.startswith("Test") and _class.__module__ == _peft_tests.__name__:
        _replace_inline_lists(_class)
        globals()[_name] = _class
