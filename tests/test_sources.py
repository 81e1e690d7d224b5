"""The code inputs of the workflow's rules: held against what Python really imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ether import config, sources
from ether.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent

# Imports every module of the package that is imported by others, function bodies aside, and prints the files that were loaded.
LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
importlib.import_module("ether.tuners")  # what a lazy `ether` loads as soon as PEFT is used
print(json.dumps(sorted(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "ether" and m.__file__)))
"""


@pytest.mark.parametrize("module", sorted({entry.module for entry in config.experiments().values()}))
def test_the_closure_contains_everything_that_is_imported(module):
    names = ["ether.run", f"ether.experiments.{module}"]
    done = subprocess.run([sys.executable, "-c", LOADED, *names], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {str(Path(file).resolve().relative_to(ROOT)) for file in json.loads(done.stdout.splitlines()[-1])}
    without_numbers = {f"{name.replace('.', '/')}.py" for name in sources.WITHOUT_NUMBERS}
    missing = loaded - set(sources.closure(*names)) - without_numbers - {"ether/__init__.py"}
    assert not missing


def test_what_earlier_lists_forgot_is_in_the_closure():
    every = set(sources.closure("ether.run", "ether.experiments.subject"))
    assert {
        "ether/kernels.py", "ether/reflection.py", "ether/tuners/layer.py", "ether/methods/boft.py",
        "ether/methods/layer_sets.py", "ether/training.py", "ether/foundation/image_judges.py", "ether/measures/geometry.py",
    } <= every  # fmt: skip
    assert not any(name.startswith(("ether/exhibits", "ether/paper", "ether/analysis")) for name in every)
    assert not {"ether/progress.py", "ether/check.py", "ether/errors.py"} & every  # a message changes no number


def test_imports_are_followed_into_functions_packages_and_relative_names(tmp_path, monkeypatch):
    package = tmp_path / "ether"
    (package / "inner").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "a.py": "def f():\n    from ether.inner import b\n",
        "inner/__init__.py": "from ..d import x\n",
        "inner/b.py": "from . import c\nDATA = 'numbers.yaml'\n",
        "inner/c.py": "",
        "inner/numbers.yaml": "",
        "d.py": "x = 1\n",
        "unrelated.py": "",
    }.items():
        (package / name).write_text(text)
    caches = (sources.closure, sources._nodes, sources.imports, sources.data_files)
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for cached in caches:
        cached.cache_clear()
    expected = {"a.py", "d.py", "inner/__init__.py", "inner/b.py", "inner/c.py", "inner/numbers.yaml"}
    try:
        assert {name.removeprefix("ether/") for name in sources.closure("ether.a")} == expected
        with pytest.raises(ConfigurationError, match="no module ether.nothing"):
            sources.closure("ether.nothing")
    finally:
        for cached in caches:
            cached.cache_clear()
