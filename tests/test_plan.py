"""The planner: operations against closed forms and the paper's Table 1, costs of runs by hand, and README's table."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from ether import config, plan
from ether.measures.steps import example
from ether.paper import published

ROOT = Path(__file__).resolve().parent.parent
A100 = plan.GPUS["a100-40"]


@pytest.fixture(scope="module")
def scale() -> config.Scale:
    return config.load("paper")


def one(scale: config.Scale, experiment: str, method: str, task: str) -> config.RunSpec:
    return next(run for run in config.runs(scale, experiment) if (run.method, run.task) == (method, task))


# --- operations --------------------------------------------------------------------------------------------------------


def test_a_step_of_llama_has_the_operations_of_table_1() -> None:
    counted = example("llama-2-7b", "adapted", 256, torch.bfloat16)
    printed = published.load()["table1"].value("lora", "Llama-2-7B TFLOPs")
    assert round((counted.forward + counted.backward) / 1e12, 2) == printed == 6.85
    assert counted.trained == 8 * 2 * 32 * (4096 + 4096) and counted.parameters > 6.7e9


def test_vit_has_the_operations_of_its_matrix_products() -> None:
    tokens, d, layers = 197, 768, 12
    products = layers * (tokens * 12 * d * d + 2 * tokens * tokens * d) + 196 * 3 * 16 * 16 * d + d * 10
    assert example("vit-b16", "full", 224).forward == 2 * products
    assert example("vit-b16", "full", 224).backward == pytest.approx(2 * 2 * products, rel=0.01)  # no gradient of the picture


def test_deberta_grows_with_the_length_and_training_all_of_it_costs_most() -> None:
    short, long = (example("deberta-v3-base", "adapted", tokens) for tokens in (64, 256))
    linear = 2 * 12 * 12 * 768**2  # of a token, in a forward pass
    assert 64 * linear < short.forward < 1.2 * 64 * linear  # the rest: attention
    assert (
        256 * linear < long.forward < 1.4 * 256 * linear and long.forward > 4 * short.forward and long.saved > 3.5 * short.saved
    )
    full = example("deberta-v3-base", "full", 64)
    assert full.trained == full.parameters and full.backward > 1.5 * short.backward


def test_checkpointing_trades_operations_for_memory() -> None:
    for name, size in (("deberta-v3-base", 64), ("vit-b16", 224)):
        usual, less = (example(name, "adapted", size, torch.float32, checkpointing) for checkpointing in (False, True))
        assert less.saved < 0.3 * usual.saved and less.backward == usual.backward + usual.forward


# --- costs of runs -----------------------------------------------------------------------------------------------------


def test_a_glue_run_by_hand(scale: config.Scale) -> None:
    run = one(scale, "glue", "oft", "rte")  # 34 epochs of 2,490 examples in batches of 32
    counted = example("deberta-v3-base", "adapted", 160)
    found = plan.cost(run, A100)
    steps = 34 * math.ceil(2490 / 32)
    assert found.training == steps * 32 * (counted.forward + counted.backward)
    assert found.evaluation == 10 * 277 * counted.forward
    assert found.hours == pytest.approx((found.training + found.evaluation) / (19.5e12 * 0.45) / 3600 + 60 / 3600)


def test_a_subject_run_by_hand(scale: config.Scale) -> None:
    run = one(scale, "subject", "ether", "teapot")
    unet = example("sd15-unet", "adapted", 64)
    found, fewer = plan.cost(run, A100), plan.cost(run, A100, evaluations=1)
    assert found.training == 1400 * 2 * (unet.forward + unet.backward)  # a photograph and a class image a step
    images = 25 * 4 + 8
    assert found.evaluation == pytest.approx(7 * images * (25 * 2 * unet.forward + plan.DECODE) * 1.05)
    assert fewer.evaluation == pytest.approx(found.evaluation / 7) and fewer.training == found.training
    base = plan.cost(one(scale, "subject", "base", "teapot"), A100)
    assert base.training == 0 and base.evaluation == pytest.approx(found.evaluation / 7)


def test_the_hint_encoder_has_the_operations_of_its_convolutions() -> None:
    convolutions = [(3, 16, 512), (16, 16, 512), (16, 32, 256), (32, 32, 256), (32, 96, 128), (96, 96, 128), (96, 256, 64)]
    products = sum(9 * into * out * side**2 for into, out, side in [*convolutions, (256, 320, 64)])
    counted = example("control-encoder", "full", 512)
    assert counted.forward == 2 * products and counted.trained == counted.parameters
    assert counted.backward == 4 * products - 2 * 9 * 3 * 16 * 512**2  # no gradient of the hint


def test_a_control_run_by_hand(scale: config.Scale) -> None:
    unet, hint = example("sd15-unet", "adapted", 64), example("control-encoder", "full", 512)
    passes = unet.forward + unet.backward + hint.forward + hint.backward
    found = plan.cost(one(scale, "control", "oft-n4", "semantic"), A100)
    assert found.training == 10 * math.ceil(22_244 / 10) * 10 * passes
    image = 50 * 2 * unet.forward + plan.DECODE + hint.forward
    assert found.evaluation == pytest.approx((2_000 + 9 * 500) * image * 1.05)
    again = plan.cost(one(scale, "control", "oft-n4-magnitude", "semantic"), A100)  # one more epoch, encoder frozen
    assert again.training - found.training == 2_224 * 10 * (passes - hint.backward)
    assert again.evaluation == pytest.approx(2 * found.evaluation)


def test_hours_follow_the_gpu_and_the_precision(scale: config.Scale) -> None:
    run = one(scale, "glue", "lora", "rte")
    start = plan.ASSUMED.loading_seconds / 3600
    usual = plan.cost(run, A100).hours - start
    assert plan.cost(run, dataclasses.replace(A100, float32=39.0)).hours - start == pytest.approx(usual / 2)
    assert plan.cost(run, A100, precision="bf16").hours - start == pytest.approx(usual * 19.5 * 0.45 / (312 * 0.35))


def test_the_memory_profiles_of_the_scale_fit_their_gpus(scale: config.Scale) -> None:
    for experiment in ("glue", "instruct", "vtab", "control", "control_lora"):
        every = {
            (run.adapt["kind"] == "full", run.hyperparameters.get("max_length"), run.hyperparameters["batch_size"]): run
            for run in config.runs(scale, experiment)
        }
        for size in (24, 40, 80):
            gpu = plan.Gpu(size, 19.5, 312.0)
            peaks = [plan.cost(run, gpu).memory for run in every.values()]
            assert 3e9 < max(peaks) < 0.95 * size * 1e9, (experiment, size)


def test_an_experiment_with_seven_billion_parameters_does_not_fit_without_a_profile(scale: config.Scale) -> None:
    run = next(r for r in config.runs(scale, "instruct") if r.hyperparameters["batch_size"] == 32)
    whole = plan.cost(dataclasses.replace(run, resources=run.resources | {"memory": None}), A100).memory
    assert whole > 60e9 > 40e9 > plan.cost(run, A100).memory


# --- the command ---------------------------------------------------------------------------------------------------------


def test_what_is_unknown_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["table4", "--gpu", "a100"]) == 1
    assert "a100-40" in capsys.readouterr().err
    assert (
        plan.main(["table7"]) == 1
        and "table7 trains nothing and costs nothing. Exhibits that train: table2" in capsys.readouterr().err
    )
    assert plan.main(["tabel4"]) == 1 and "Unknown exhibit 'tabel4'. Did you mean 'table4'?" in capsys.readouterr().err
    for number in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            plan.main(["table4", f"--evaluations={number}"])
        assert f"{number} is not a whole number from 1 up" in capsys.readouterr().err
    assert plan.main(["table4", "--scale", "small"]) == 1


def test_readme_has_the_planners_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([]) == 0
    table = capsys.readouterr().out.split("\n\n")[0]
    exhibits = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert {"table2", "table4", "table5", "table12", "figure4", "figure8"} <= set(exhibits)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), "python -m ether.plan"
