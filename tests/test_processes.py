"""Runs that several processes share: the numbers of one process, and no process that is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ether import check, config, processes
from ether import run as runner
from ether.errors import ConfigurationError, HardwareError
from ether.worlds import facts


def spec_of(experiment: str, number: int, **overrides: Any) -> config.RunSpec:
    (spec,) = config.runs(config.load("smoke", {"seeds": "0", "device": "cpu", "processes": number, **overrides}), experiment)
    values = spec.hyperparameters | {"batch_size": 8, "max_steps": 4, "evaluations": 1, "learning_rate": 1e-2}
    values["evaluation_batch_size"] = 16  # divides the 32 examples: the Trainer's mean loss counts none of them twice
    return dataclasses.replace(spec, hyperparameters=values)


def values(rows: list[dict[str, Any]]) -> dict[tuple[int, str, str], float]:
    return {(r["step"], r["split"], r["metric"]): r["value"] for r in rows}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["nowhere"]])
def test_a_process_started_by_hand_says_how_runs_are_started(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    assert "Runs are started by snakemake." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "chosen"),
    [("glue", {"methods": "lora", "tasks": "rte"}), ("instruct", {"methods": "ether-plus-n32"})],
)
def test_two_processes_have_the_numbers_of_one(workplace: Path, tmp_path: Path, experiment: str, chosen: dict[str, str]) -> None:
    if experiment == "instruct":
        facts.write(Path("results/smoke/world"), **config.load("smoke").settings["world"]["facts"])
    alone = spec_of(experiment, 1, **chosen)
    shared = spec_of(experiment, 2, **chosen)
    shared.resources["memory"] = {"0GB": {"micro_batch": 2}}  # a batch of 8: two processes with two parts of two examples
    first, expected = runner.run(alone, Path("results/smoke"), tmp_path / "alone")
    second, found = runner.run(shared, Path("results/smoke"), tmp_path / "shared")
    assert second["run_id"] == first["run_id"] and second["status"] == "finished"
    assert json.loads(second["limits"])["processes"] == 2 and "processes" not in json.loads(first["limits"])
    for column in ("steps", "trainable_parameters", "total_parameters", "base_model_fingerprint", "data_fingerprint", "dtype"):
        assert second[column] == first[column]
    assert values(found).keys() == values(expected).keys()
    assert any(metric == "loss" for *_, metric in values(found))
    for key, value in values(expected).items():
        # One of the few questions may be decided by rounding; the losses are not.
        assert values(found)[key] == pytest.approx(value, rel=1e-4, abs=0 if key[2] == "loss" else 26), key


def test_processes_go_on_from_a_checkpoint_to_the_same_numbers(workplace: Path, tmp_path: Path) -> None:
    spec = spec_of("glue", 2, methods="lora", tasks="rte")
    # The checkpoint lies between two logs of the loss, which is a mean over the steps since the last one, of all processes.
    spec.hyperparameters.update(max_steps=6, evaluations=2, checkpoint_steps=4)
    whole = runner.run(spec, Path("results/smoke"), tmp_path)[1]
    (checkpoint,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.name != "checkpoint-6")
    shutil.rmtree(tmp_path / "checkpoints/checkpoint-6", ignore_errors=True)
    written = {file.name: file.stat().st_mtime_ns for file in checkpoint.iterdir()}
    resumed = runner.run(spec, Path("results/smoke"), tmp_path)[1]
    assert checkpoint.name == "checkpoint-4" and {f.name: f.stat().st_mtime_ns for f in checkpoint.iterdir()} == written
    assert values(resumed) == values(whole)

    # With another number of processes it goes on as well; a sum in another order is not equal to the bit.
    shutil.rmtree(tmp_path / "checkpoints/checkpoint-6", ignore_errors=True)
    alone = dataclasses.replace(spec, resources=spec.resources | {"processes": 1})
    assert alone.processes == 1
    of_one = values(runner.run(alone, Path("results/smoke"), tmp_path)[1])
    assert {f.name: f.stat().st_mtime_ns for f in checkpoint.iterdir()} == written
    for key, value in values(whole).items():
        if key[2] == "loss":
            assert of_one[key] == pytest.approx(value, rel=1e-4), key


def test_an_error_in_a_process_is_the_run_s(workplace: Path, tmp_path: Path) -> None:
    spec = spec_of("glue", 2, methods="lora", tasks="rte")
    spec.settings["model"] = {**spec.settings["model"], "path": "foundation/no-such-model"}
    with pytest.raises(ConfigurationError, match="no-such-model"):
        runner.run(spec, Path("results/smoke"), tmp_path)


def test_what_cannot_be_divided_is_refused(workplace: Path) -> None:
    with pytest.raises(ConfigurationError, match="batches of 8, which 3 processes cannot share"):
        check.check_run(spec_of("glue", 3, methods="lora", tasks="rte"), Path("results/smoke"))
    with pytest.raises(ConfigurationError, match="a step draws its images as a whole"):
        check.check_run(spec_of("subject", 2, methods="lora-r4", tasks="fluent_octopus"), Path("results/smoke"))
    with pytest.raises(ConfigurationError, match="processes=0"):
        config.load("smoke", {"processes": "0"})


def test_the_number_of_processes_is_no_part_of_what_a_run_is() -> None:
    one, two = (spec_of("glue", number, methods="lora", tasks="rte") for number in (1, 2))
    assert one.run_id == two.run_id and (one.processes, two.processes) == (1, 2)


SLEEPER = """
import os, sys, time
from ether import processes
processes.end_with_parent()
open(os.path.join(sys.argv[1], f"{processes.rank()} of {processes.count()}, {os.getpid()}"), "w").close()
time.sleep(600)
"""


def test_processes_end_with_the_one_that_launched_them(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "started").mkdir()
    code = (
        f"from pathlib import Path; from ether import processes; processes.launch(2, 'sleeper', [{str(tmp_path / 'started')!r}], "
    )
    code += f"Path({str(tmp_path / 'log')!r}))"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    launching = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    until = time.time() + 120
    while len(started := sorted(file.name for file in (tmp_path / "started").iterdir())) < 2 and time.time() < until:
        time.sleep(0.2)
    assert [name.split(",")[0] for name in started] == ["0 of 2", "1 of 2"], (tmp_path / "log").read_text()
    launching.send_signal(signal.SIGKILL)
    launching.wait()
    while any(map(running, started)) and time.time() < until:
        time.sleep(0.2)
    assert not any(map(running, started))


def running(name: str) -> bool:
    try:
        os.kill(int(name.split(", ")[1]), 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_without_a_result_are_an_error_with_their_output(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(map(str, range(40))))
    error = processes.stopped("LoRA on rte", 2, tmp_path / "log")
    assert isinstance(error, HardwareError) and "one of its 2 processes stopped" in str(error) and "\n39" in str(error)
