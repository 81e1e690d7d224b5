"""The patch that adds ETHER to PEFT's own source is up to date, applies, and PEFT's tests of ETHER pass there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import peft
import pytest
from peft_conformance import source

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_patch", ROOT / "docs/upstream/make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peft_source(make: ModuleType) -> Path:
    if peft.__version__ != make.VERSION:
        pytest.skip(f"the patch is for PEFT {make.VERSION}")
    try:
        return source.find()
    except source.Unavailable as reason:
        pytest.skip(str(reason))


def test_the_patch_is_made_from_this_packages_adapter(make, peft_source):
    assert make.make(peft_source) == make.PATCH.read_text(encoding="utf-8"), "run docs/upstream/make.py"


@pytest.mark.dag(minutes=1)
def test_the_patch_applies_and_pefts_tests_pass(make, peft_source):
    select = "TestEtherInitialization or (EtherConfig and (disable_adapters or merge_layers or from_json_file))"
    assert make.test(peft_source, select=select) == 0


def test_the_adapter_for_peft_knows_nothing_of_this_package(make):
    for name, text in make.adapter().items():
        assert name.startswith(make.TUNER) and not re.search(r"^\s*(from|import) ether\b", text, re.MULTILINE)
        assert "type: ignore" not in text and "Naive" not in text


def test_a_change_that_the_script_does_not_expect_is_named(make):
    with pytest.raises(make.Changed, match=r"x\.py has 2 times instead of once: 'a'"):
        make.replaced("a a", "x.py", ("a", "b"))
    with pytest.raises(make.Changed, match=r"x\.py has no gone"):
        make.without("def here(): pass\n", "x.py", "gone")
