"""One GPU a process, a batch in parts with the gradient of the whole, runs that are out of memory; all without a GPU."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import ether
from ether import config, machine, training
from ether import run as runner
from ether.errors import ConfigurationError, HardwareError
from ether.experiments import glue
from ether.machine import Limits

HYPER = {
    "batch_size": 8, "accumulation": 1, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0,
    "max_grad_norm": 0.0, "precision": "float32",
}  # fmt: skip


# --- one GPU ---------------------------------------------------------------------------------------------------------

PIN = """
import sys, time, torch
torch.cuda.device_count = lambda: 4
from ether import machine
print(machine.pin_one_gpu(), __import__("os").environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


def started(folder: Path, visible: str | None) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PIN], env=environment, **pipes)


@pytest.mark.parametrize("visible", [None, "4,5,MIG-a,7"])
def test_processes_at_the_same_time_take_different_gpus(tmp_path: Path, visible: str | None) -> None:
    processes = [started(tmp_path, visible) for _ in range(3)]
    answers = [process.stdout.readline().split() for process in processes if process.stdout]
    assert all(chosen == environment for chosen, environment in answers)
    chosen = {answer[0] for answer in answers}
    assert len(chosen) == 3 and chosen <= set((visible or "0,1,2,3").split(","))
    processes[0].kill()  # the lock goes with its process, however it ends
    processes[0].wait()
    two_more = [started(tmp_path, visible) for _ in range(2)]
    again = {process.stdout.readline().split()[0] for process in two_more if process.stdout}
    assert len(again) == 2 and not again & {answer[0] for answer in answers[1:]}
    fifth = started(tmp_path, visible)
    assert fifth.stdout and fifth.stdout.readline().split()[0] in set((visible or "0,1,2,3").split(","))  # shares one
    for process in [*processes[1:], *two_more, fifth]:
        process.communicate("")


def test_nothing_is_pinned_where_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, initialised in ((0, False), (1, False), (4, True)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda initialised=initialised: initialised)
        assert machine.pin_one_gpu() is None and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_trainer_replicates_no_model_on_a_node_with_four_gpus(tmp_path: Path) -> None:
    def wrapped(arguments: transformers.TrainingArguments) -> tuple[int, bool]:
        arguments._n_gpu = 4  # what `_setup_devices` finds on such a node
        trainer = training.Trainer(model=nn.Linear(2, 2), args=arguments)
        return arguments.train_batch_size, isinstance(trainer._wrap_model(trainer.model), nn.DataParallel)

    ours = training.training_arguments(HYPER, 3, 0, tmp_path, "cpu")
    theirs = transformers.TrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to=[])
    assert wrapped(ours) == (8, False)
    assert wrapped(theirs) == (32, True)  # what is prevented


# --- a batch in parts ------------------------------------------------------------------------------------------------


class Gradients(transformers.TrainerCallback):
    """The gradient of every optimiser step; the weights stay as they are."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        self.steps.append(torch.cat([p.grad.flatten().clone() for p in trained if p.grad is not None]))
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)


def deberta(labels: int) -> nn.Module:
    how = transformers.DebertaV2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=labels,
        pos_att_type=["c2p", "p2c"], relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        problem_type="regression" if labels == 1 else "single_label_classification",
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(how)


def llama() -> nn.Module:
    how = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    return transformers.LlamaForCausalLM(how)


def vit() -> nn.Module:
    how = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ViTForImageClassification(how)


def texts(labels: str) -> list[dict[str, Any]]:
    """22 examples of very different lengths: batches of 8, 8 and 6."""
    random = torch.Generator().manual_seed(1)
    found = []
    for number in range(22):
        ids = torch.randint(1, 40, (3 + (number * 7) % 19,), generator=random).tolist()
        label: Any = {"class": number % 2, "value": float(number) / 7, "tokens": [-100] * (number % 3) + ids[number % 3 :]}[
            labels
        ]
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label})
    return found


def pictures() -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=random, dtype=torch.float64), "labels": n % 5} for n in range(22)]


def padded(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    if "pixel_values" in examples[0]:
        return {key: torch.stack([torch.as_tensor(e[key]) for e in examples]) for key in examples[0]}
    longest = max(len(e["input_ids"]) for e in examples)
    batch = {
        key: torch.tensor([e[key] + [0] * (longest - len(e[key])) for e in examples]) for key in ("input_ids", "attention_mask")
    }
    label = examples[0]["labels"]
    if isinstance(label, list):
        batch["labels"] = torch.tensor([e["labels"] + [-100] * (longest - len(e["labels"])) for e in examples])
    else:
        batch["labels"] = torch.tensor([e["labels"] for e in examples], dtype=torch.float64 if isinstance(label, float) else None)
    return batch


CASES: dict[str, Any] = {
    "classification": (functools.partial(deberta, 2), functools.partial(texts, "class"), "SEQ_CLS", ["query_proj", "value_proj"]),
    "regression": (functools.partial(deberta, 1), functools.partial(texts, "value"), "SEQ_CLS", ["query_proj", "value_proj"]),
    "language": (llama, functools.partial(texts, "tokens"), "CAUSAL_LM", ["q_proj", "v_proj"]),
    "images": (vit, pictures, None, ["q_proj", "v_proj"]),
}


def adapted(case: str) -> tuple[nn.Module, list[dict[str, Any]]]:
    build, data, task_type, layers = CASES[case]
    torch.manual_seed(0)
    model = build().double()
    how = ether.EtherConfig(relaxed=True, n_blocks=2, target_modules=layers, task_type=task_type)
    return peft.get_peft_model(model, how, autocast_adapter_dtype=False), data()


def gradients(case: str, folder: Path, limits: Limits) -> tuple[list[torch.Tensor], list[int], list[float]]:
    """The gradient of each step, the number of items in each call of the collator, and the logged losses."""
    model, data = adapted(case)
    items: list[int] = []

    def collated(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded(examples)
        labels = batch["labels"][..., 1:] if case == "language" else batch["labels"]
        items.append(int((labels != -100).sum()))
        return batch

    kept = Gradients()
    with machine.within(limits):
        arguments = training.training_arguments(HYPER, 3, 0, folder, "cpu", logging_steps=1, remove_unused_columns=False)
        trained = training.train(model, arguments, callbacks=[kept], train_dataset=data, data_collator=collated)
    assert trained.steps == 3 and not trained.reason
    return kept.steps, items, [value for *_, value in trained.losses]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(case: str, checkpointing: bool, tmp_path: Path) -> None:
    whole, items, losses = gradients(case, tmp_path / "whole", Limits())
    assert len(items) == 3
    for micro in (4, 1):
        parts, some, part_losses = gradients(case, tmp_path / f"{micro}", Limits(micro, None, checkpointing))
        assert len(some) > 5 and sum(some) == sum(items)
        for one, other in zip(whole, parts, strict=True):
            assert (one - other).norm() <= 1e-6 * one.norm()
        assert part_losses == pytest.approx(losses, rel=1e-4)  # the Trainer rounds them

    # Independent of the Trainer: the gradients of the steps, weighted by their items, are that of the sum over all examples.
    model, data = adapted(case)
    batch = padded(data)
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    labels = batch["labels"]
    if case == "language":
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    elif case == "regression":
        total = ((logits[:, 0] - labels) ** 2).sum()
    else:
        total = F.cross_entropy(logits, labels, reduction="sum")
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trained)])
    actual = torch.stack([step * count for step, count in zip(whole, items, strict=True)]).sum(0)
    assert (actual - expected).norm() <= 1e-6 * expected.norm()


def test_checkpointing_keeps_less(tmp_path: Path) -> None:
    def kept(checkpointing: bool) -> int:
        model, data = adapted("language")
        if checkpointing:
            training.recompute_activations(model)
        model.train()
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(**padded(data))
        return total

    assert kept(True) < 0.6 * kept(False)
    with pytest.raises(ConfigurationError, match="Linear has no gradient checkpointing.*`memory`"):
        training.recompute_activations(nn.Linear(2, 2))


def test_a_batch_is_divided_into_equal_parts() -> None:
    assert [Limits(limit).parts(32) for limit in (None, 64, 32, 31, 16, 5, 1)] == [1, 1, 1, 2, 2, 8, 32]
    assert [Limits(limit).parts(6) for limit in (4, 3, 2)] == [2, 2, 3]
    assert Limits(evaluation_batch=4).evaluated_at_once(64) == 4 and Limits(evaluation_batch=4).evaluated_at_once(1) == 1


def test_the_profile_of_a_scale_that_fits_the_gpu() -> None:
    profiles = {"24GB": {"micro_batch": 1, "checkpointing": True}, "40GB": {"micro_batch": 4}, "80GB": {}}
    # Memory as torch reports it for an RTX 3090, an L4, an A100-40, an A100-80, an H200; and a smaller GPU; and none.
    sizes = (25_438_126_080, 23_609_475_072, 42_298_834_944, 84_974_239_744, 150_109_880_320, 8_000_000_000, 0)
    found = [Limits.of(profiles, size) for size in sizes]
    small, none = Limits(1, None, True), Limits()
    assert found == [small, small, Limits(4), none, none, small, none]
    assert Limits.of(None, 10**11) == none


def test_memory_is_no_part_of_what_a_run_is() -> None:
    scale = config.load("smoke", {"methods": "lora", "tasks": "rte", "seeds": "0"})
    (before,) = config.runs(scale, "glue")
    scale.settings["glue"]["memory"] = {"24GB": {"micro_batch": 1}}
    (after,) = config.runs(scale, "glue")
    assert after.run_id == before.run_id and after.resources["memory"] == {"24GB": {"micro_batch": 1}}


# --- out of memory -----------------------------------------------------------------------------------------------------


def spec_of(**hyper: Any) -> config.RunSpec:
    (spec,) = config.runs(config.load("smoke", {"methods": "lora", "tasks": "rte", "seeds": "0"}), "glue")
    values = spec.hyperparameters | {"batch_size": 16, "evaluation_batch_size": 16, "evaluations": 1} | hyper
    return dataclasses.replace(spec, hyperparameters=values)


def small_gpu(monkeypatch: pytest.MonkeyPatch, examples: int) -> list[int]:
    """A model that is out of memory with more than so many examples at a time; the sizes that were tried."""
    sizes: list[int] = []
    forward = transformers.DebertaV2ForSequenceClassification.forward

    @functools.wraps(forward)  # the Trainer keeps the columns that it names
    def limited(self: nn.Module, input_ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore lines")
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(transformers.DebertaV2ForSequenceClassification, "forward", limited)
    return sizes


def test_out_of_memory_is_tried_again_with_half_and_gives_the_same_numbers(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_row, whole = runner.run(spec_of(), Path("results/smoke"), tmp_path / "whole")
    profile = {"memory": {"24GB": {"micro_batch": 4, "evaluation_batch": 4}}}
    with monkeypatch.context() as patch:
        patch.setattr(Limits, "of", classmethod(lambda cls, profiles, memory: cls(**profile["memory"]["24GB"])))
        expected = runner.run(spec_of(), Path("results/smoke"), tmp_path / "profile")[1]
    sizes = small_gpu(monkeypatch, 4)
    row, rows = runner.run(spec_of(), Path("results/smoke"), tmp_path / "parts")
    assert row["status"] == "finished" and row["reason"] == "" and row["run_id"] == whole_row["run_id"]
    assert json.loads(row["limits"]) == {"micro_batch": 4, "evaluation_batch": 4, "checkpointing": False}
    assert json.loads(whole_row["limits"]) == {"micro_batch": None, "evaluation_batch": None, "checkpointing": False}
    assert [size for size in sizes if size > 4][:2] == [16, 8]  # training, before the first evaluation
    assert [size for size in sizes if size > 4][2:] == [16, 8]  # the evaluation

    def values(found: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
        return {(r["step"], r["metric"]): r["value"] for r in found if r["metric"] in ("score", "loss")}

    assert values(rows) == values(expected)  # to the bit: nothing is left of the attempts
    assert values(rows).keys() == values(whole).keys()


def test_a_run_without_enough_memory_is_no_finished_row_and_is_tried_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"methods": "lora,ether", "tasks": "cola", "seeds": "0"}
    work = Path("results/smoke/work/glue/all")
    with monkeypatch.context() as patch:
        small_gpu(patch, 0)
        with pytest.raises(HardwareError, match=r"(?s)Out of memory.*LoRA r=8 on cola.*Tried to allocate 9 GiB.*ETHER on cola"):
            runner.run_job("smoke", "glue", "all", overrides)
        assert not list(work.glob("*/runs.parquet")) and not Path("results/smoke/runs/glue/all/runs.parquet").exists()
    runs, _ = runner.run_job("smoke", "glue", "all", overrides)
    assert list(runs["status"]) == ["finished", "finished"]


def test_an_error_that_is_not_of_memory_is_not_tried_again(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(glue.Glue, "fit", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        runner.run(spec_of(), Path("results/smoke"), tmp_path)
    assert calls == [1]
