"""PEFT's tests for a tuner on custom models, and for a configuration, with our tuners in place of its own.

The tests are PEFT's, unchanged (tests/test_custom_models.py and tests/test_config.py of its source distribution); only
the cases they are parametrised with are replaced by ours, and `conftest.py` drops those that are about one particular
tuner of PEFT's. Set PEFT_SOURCE to the unpacked source distribution of the installed PEFT where there is no network.
"""

from __future__ import annotations

import inspect

import pytest

from . import source
from .cases import REPLACEMENTS


def with_our_cases(test_class: type) -> type:
    """The class, its parametrised tests given our values in place of PEFT's."""
    for _, function in inspect.getmembers(test_class, inspect.isfunction):
        marks = getattr(function, "pytestmark", [])
        for i, mark in enumerate(marks):
            if mark.name == "parametrize" and mark.args[0] in REPLACEMENTS:
                marks[i] = pytest.mark.parametrize(mark.args[0], REPLACEMENTS[mark.args[0]]).mark
    return test_class


try:
    for _module in ("test_custom_models", "test_config"):
        _tests = source.load(_module)
        for _name, _class in inspect.getmembers(_tests, inspect.isclass):
            if _name.startswith("Test") and _class.__module__ == _tests.__name__:
                globals()[_name] = with_our_cases(_class)
except source.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)
