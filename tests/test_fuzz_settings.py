"""Scales, methods, --config values, parameters and adapter configurations of any content: refused with a message, or working."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hostile
import nbformat
import pytest
import yaml
from hostile import CANARY, few, more
from hypothesis import example, given
from hypothesis import strategies as st
from test_workflow import project, snakemake
from torch import nn

from ether import EtherConfig, NaiveConfig, check, config, notebook, registry, scales, site, yamlfiles
from ether.errors import ConfigurationError, EtherError
from ether.methods import adapt

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "work"


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the folder `workflow`, used by the package instead of the project's own."""
    copy = tmp_path_factory.mktemp("project") / "workflow"
    shutil.copytree(ROOT / "workflow", copy)
    with pytest.MonkeyPatch.context() as patch:
        for module in (config, registry, yamlfiles):
            patch.setattr(module, "WORKFLOW", copy)
        yield copy
    _forget()


def _forget() -> None:
    for module in (registry, scales, yamlfiles):
        for function in vars(module).values():
            getattr(function, "cache_clear", lambda: None)()


@contextmanager
def _file(path: Path, content: Any) -> Iterator[Path]:
    _forget()
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    try:
        yield path
    finally:
        path.unlink()
        _forget()


def _tried(scale: config.Scale) -> None:
    """Everything that is done with a scale before a job starts; the names in it are parts of commands and paths."""
    for experiment in scale.experiments():
        for name, job in config.jobs(scale, experiment).items():
            assert re.fullmatch(r"[A-Za-z0-9._+-]+", name)
            assert job.digest and all(re.fullmatch(r"[A-Za-z0-9._+-]+", run.run_id) for run in job.runs)


# --- files under workflow/ -----------------------------------------------------------------------------------------------


@given(st.one_of(st.text(), st.binary()))
@example("{[1]: 2}")
@example("? {a: 1}\n: 2")
@example("a: &x [*x]")
@example("a: 2020-99-99")
@example("a: 2020-01-01")
@example("a: " + "1" * 5000)
@example("a: .nan")
@example("a: " + "[" * 100_000)
@example("a: " + "[" * 60 + "]" * 60)
@example(f"a: !!python/object/apply:os.system ['touch {CANARY}']")
@example(
    "a: &a [x, x]\nb: &b [*a, *a]\n"
    + "".join(f"c{i}: &c{i} [*{p}, *{p}]\n" for i, p in enumerate(["b", *[f"c{n}" for n in range(30)]]))
)
@more
def test_any_file_is_a_mapping_of_plain_values_or_refused(folder, content):
    folder.mkdir(exist_ok=True)
    file = folder / "file.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with hostile.no_code_runs(folder):
        try:
            read = yamlfiles.read_yaml(file)
        except EtherError as error:
            assert "file.yaml" in str(error)
        else:
            assert json.loads(json.dumps(read, allow_nan=False)) == read


SCALE = yaml.safe_load((ROOT / "workflow/scales/smoke.yaml").read_text())
SCALE["glue"] |= {"tasks": ["rte"], "known_tasks": ["rte"], "methods": ["lora", "ether"], "jobs": ["method", "task"]}


@given(hostile.changed({**SCALE, "glue": SCALE["glue"]}))
@example({**SCALE, "glue": {**SCALE["glue"], "known_tasks": [f"x'; touch {CANARY}; '"], "tasks": [f"x'; touch {CANARY}; '"]}})
@example({**SCALE, "glue": {"like": ["instruct"]}})
@example({**SCALE, "glue": "none"})
@example({**SCALE, "seeds": [2**33]})
@example({**SCALE, "world": {"language": {"seed": 0, "sizes": {"../../x": 3}}}})
@few
def test_any_scale_has_jobs_or_is_refused(workflow, content):
    with _file(workflow / "scales/mine.yaml", content):
        try:
            scale = config.load("mine")
            _tried(scale)
        except EtherError:
            return
        assert all(
            re.fullmatch(r"[A-Za-z0-9._+-]+", name)
            for world in scale.settings["world"].values()
            for name in world.get("sizes", {})
        )


def test_the_name_of_a_scale_is_no_command(workflow):
    with (
        _file(workflow / f"scales/x; touch {CANARY}.yaml", SCALE),
        pytest.raises(ConfigurationError, match="identifies the scale"),
    ):
        config.load(f"x; touch {CANARY}")


METHOD = yaml.safe_load((ROOT / "workflow/methods/ether.yaml").read_text())
METHOD["label"] = "Mine"


class _Layers(nn.Module):
    """A model with the names of a DeBERTa encoder's adapted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"model_type": "deberta-v2", "to_dict": lambda self: {"model_type": "deberta-v2"}})()
        self.query_proj = nn.Linear(8, 8)
        self.value_proj = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 2)

    @property
    def base_model(self) -> nn.Module:
        return self


@given(hostile.changed(METHOD), st.data())
@few
def test_any_method_can_be_applied_or_is_refused(workflow, content, data):
    if data.draw(st.booleans()) and isinstance(content.get("adapt"), dict):
        names = ("n_blocks", "dropout", "sides", "target_modules", "layers_to_transform", "init_weights", "relaxed")
        content["adapt"]["config"] = data.draw(st.dictionaries(st.sampled_from(names), hostile.value, max_size=3))
    with _file(workflow / "methods/mine.yaml", content):
        try:
            scale = config.load("smoke", {"methods": "mine", "tasks": "rte"})
            _tried(scale)
            for run in config.runs(scale, "glue"):
                adapt.check_arguments(run.method, run.adapt)
                values = dict(run.hyperparameters) | adapt.step_values(4)
                adapt.adapt(_Layers(), run.adapt, layers="query-value", head=["classifier"], values=values)
        except EtherError as error:
            assert str(error)


# --- command lines -------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(config.OVERRIDES) | hostile.text, hostile.value, max_size=2), hostile.value)
@example({"seeds": "²"}, "smoke")
@example({"mirror": "a" * 5000}, "smoke")
@example({"mirror": "~nobody-here/x"}, "smoke")
@example({"replay": "a\0b"}, "smoke")
@example({"replay": ["x"]}, "smoke")
@few
def test_any_value_of_config_is_used_or_refused(overrides, scale):
    for name in ("smoke", str(scale)):
        try:
            _tried(config.load(name, overrides))
        except EtherError as error:
            assert str(error)


@pytest.mark.parametrize("given_text", ["", "[]", "1", "{", "{'a': 1}", "[" * 100_000, "\0"])
def test_options_that_are_no_json_object_are_refused(given_text, tmp_path, capsys):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]})])
    nbformat.write(book, tmp_path / "n.ipynb")
    assert check.main(["smoke", "glue", f"--overrides={given_text}"]) == 1
    assert notebook.main([str(tmp_path / "n.ipynb"), str(tmp_path / "out.ipynb"), f"--parameters={given_text}"]) == 1
    assert site.main(["smoke", f"--overrides={given_text}"]) == 1
    said = capsys.readouterr().err
    assert said.count("JSON") >= 3 and "Traceback" not in said


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"nbformat": 4, "nbformat_minor": 5, "cells": [{"x": 1}]}', "\0"])
def test_a_file_that_is_no_notebook_is_refused(content, tmp_path):
    (tmp_path / "n.ipynb").write_text(content)
    with pytest.raises(ConfigurationError, match="parameters"):
        notebook.parameters_of(tmp_path / "n.ipynb")


@given(st.dictionaries(st.sampled_from(["scale", "job"]), hostile.value, min_size=1))
@more
def test_parameters_of_a_notebook_are_values_and_not_code(parameters):
    from papermill.parameterize import parameterize_notebook

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("scale = job = 1", metadata={"tags": ["parameters"]})])
    book.metadata |= {"kernelspec": {"name": "python3", "language": "python", "display_name": ""}, "papermill": {}}
    made = parameterize_notebook(book, json.loads(json.dumps(parameters, allow_nan=True)))
    (cell,) = [c for c in made.cells if "injected-parameters" in c.metadata.get("tags", [])]
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        calls = [n for n in ast.walk(statement.value) if isinstance(n, ast.Call)]
        assert all(ast.unparse(call) in ("float('nan')", "float('inf')", "float('-inf')") for call in calls)
        name = statement.targets[0].id
        if not calls:
            assert ast.literal_eval(statement.value) == json.loads(json.dumps(parameters[name]))


def test_values_of_config_stay_one_word_of_the_shell(tmp_path):
    """The commands that the workflow would run for a folder whose name is full of the shell's own characters."""
    clone = project(tmp_path / "clone")
    name = f"a'b\"$(touch {CANARY})`touch {CANARY}`;touch {CANARY};&& touch {CANARY} *"
    (clone / name / "metrics").mkdir(parents=True)
    arguments = ("--config", "scale=smoke", "tasks=rte", f"mirror={name}", f"replay={name}")
    said = snakemake(clone, "--dry-run", "--printshellcmds", "results/smoke/runs/glue/all/runs.parquet", *arguments)
    commands = [line.split("Shell command: ")[-1].strip() for line in said.splitlines() if " -m ether." in line]
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        for option in ("--overrides", "--parameters"):
            if option in words:
                content = json.loads(words[words.index(option) + 1])
                assert content.get("overrides", content)["mirror"] == name
        harmless = command.replace(sys.executable, "true")
        subprocess.run(["bash", "-c", harmless], cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob(CANARY))


# --- adapter configurations ----------------------------------------------------------------------------------------------

FIELDS = ("n_blocks", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
          "dropout", "init_weights", "task_type", "inference_mode")  # fmt: skip
USUAL = [["lin0"], "lin0", "(", 1, True, "both", "release"]


@given(
    st.sampled_from([EtherConfig, NaiveConfig]),
    st.dictionaries(st.sampled_from(FIELDS), hostile.value | st.sampled_from(USUAL), max_size=3),
    st.dictionaries(st.sampled_from(["relaxed", "sides", "layout"]), hostile.value | st.sampled_from(USUAL), max_size=2),
)
@example(EtherConfig, {"target_modules": "("}, {})
@example(EtherConfig, {"dropout": "0.1"}, {})
@example(EtherConfig, {"dropout": float("nan")}, {})
@example(EtherConfig, {"init_weights": "no"}, {"relaxed": "no"})
@example(EtherConfig, {"layers_to_transform": [[0]]}, {})
@example(NaiveConfig, {"task_type": "'; import os"}, {})
@more
def test_any_configuration_of_an_adapter_is_usable_or_refused(kind, arguments, own):
    try:
        made = kind(**arguments, **(own if kind is EtherConfig else {}))
    except ConfigurationError as error:
        assert str(error)
        return
    assert made.n_blocks >= 1 and 0 <= made.dropout < 1 and repr(made)
