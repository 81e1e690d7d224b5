"""The registry of worlds and its command line: `files` lists what `write` leaves, and wrong settings are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ether import config, worlds
from ether.errors import ConfigurationError
from ether.worlds import __main__ as command

SMALL: dict[str, dict[str, Any]] = {
    "control": {"seed": 1, "tasks": ["semantic", "edges"], "sizes": {"train": 3, "tuning": 2, "validation": 2}},
    "facts": {"seed": 1, "world_seed": 2, "sizes": {"alpaca/train": 50}},
    "language": {"seed": 1, "sizes": {"train": 8, "validation": 4, "tuning": 4}},
    "pictures": {"seed": 1, "images": 2, "subjects": 3},
    "vision": {"seed": 1, "sizes": {"train": 6, "tuning": 4, "test": 3}},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ether.worlds", *arguments])
    command.main()


def written(root: Path) -> list[str]:
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_the_command_leaves_the_files_that_are_listed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, name, str(tmp_path / "a"), "--settings", json.dumps(SMALL[name]))
    assert written(tmp_path / "a") == sorted(worlds.files(name, SMALL[name]))
    worlds.write(name, tmp_path / "b", SMALL[name])
    assert written(tmp_path / "b") == written(tmp_path / "a")
    for file in written(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_every_scales_settings_are_accepted(name: str) -> None:
    for scale in ("small", "smoke"):
        assert worlds.files(name, config.load(scale).settings["world"][name])
    assert len(set(worlds.files(name, {}))) == len(worlds.files(name, {}))


def test_files_are_listed_without_slow_libraries() -> None:
    code = (
        "import sys; from ether import worlds; [worlds.files(name, {}) for name in worlds.WORLDS];"
        "print({'torch', 'transformers', 'datasets', 'peft', 'PIL'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fact"], "Unknown world 'fact'. Did you mean 'facts'"),
        (["facts", "--settings", '{"size": {}}'], "'size' in the settings of the world 'facts'. Did you mean 'sizes'"),
        (["pictures", "--settings", "{seed: 0}"], "not valid JSON"),
        (["pictures", "--settings", "[0]"], "must be a JSON object"),
        (["pictures", "--settings", '{"subjects": 11}'], "1 to 10 subjects"),
        (["language", "--settings", '{"sizes": {"test": 4}}'], "Unknown split 'test'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as failure:
        run(monkeypatch, arguments[0], str(tmp_path / "out"), *arguments[1:])
    assert message in str(failure.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_world_is_named_by_both_functions(tmp_path: Path) -> None:
    for call in (lambda: worlds.files("picture", {}), lambda: worlds.write("picture", tmp_path, {})):
        with pytest.raises(ConfigurationError, match="'picture'.*'pictures'"):
            call()
