"""What every Trainer-based experiment needs beside the Trainer: stopping on divergence, resuming, AdaLoRA's schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ether.results import atomic


def latest_checkpoint(folder: Path) -> str | None:
    """The newest complete Trainer checkpoint under a folder, or None.

    The Trainer writes ``trainer_state.json`` last: a checkpoint without a readable one was cut short and is skipped.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def training_arguments(
    hyper: Mapping[str, Any], total_steps: int, seed: int, checkpoints: Path, device: str, **more: Any
) -> transformers.TrainingArguments:
    """The Trainer's arguments from a run's hyperparameters, the same for every experiment; `more` has the last word."""
    warmup = hyper.get("warmup_steps")
    saving: dict[str, Any] = {"save_strategy": "no"}
    if hyper["checkpoint_steps"] and hyper["checkpoint_steps"] < total_steps:
        saving = {"save_strategy": "steps", "save_steps": hyper["checkpoint_steps"], "save_total_limit": 2}
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": total_steps,
        "per_device_train_batch_size": hyper["batch_size"],
        "per_device_eval_batch_size": hyper["evaluation_batch_size"],
        "gradient_accumulation_steps": hyper["accumulation"],
        "learning_rate": hyper["learning_rate"],
        "lr_scheduler_type": hyper["schedule"],
        "warmup_steps": round(hyper["warmup"] * total_steps) if warmup is None else warmup,
        "weight_decay": hyper["weight_decay"],
        "adam_beta1": hyper.get("adam_beta1", 0.9),
        "adam_beta2": hyper.get("adam_beta2", 0.999),
        "max_grad_norm": hyper["max_grad_norm"],
        "bf16": hyper["precision"] == "bf16",
        "fp16": hyper["precision"] == "fp16",
        "seed": seed,
        "use_cpu": device == "cpu",
        "logging_nan_inf_filter": False,
        "train_sampling_strategy": "group_by_length" if hyper["group_by_length"] else "random",
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": device != "cpu",
    }
    return transformers.TrainingArguments(**(arguments | saving | more))


def steps_in_all(hyper: Mapping[str, Any], examples: int) -> int:
    """Optimizer steps of a run: ``max_steps`` where it is given, else ``epochs`` over the examples."""
    per_epoch = math.ceil(examples / (hyper["batch_size"] * hyper["accumulation"]))
    return int(hyper["max_steps"] or math.ceil(per_epoch * hyper["epochs"]))


class DivergenceStop(transformers.TrainerCallback):
    """Stops a run whose loss is no longer finite: learning-rate sweeps are about divergence, so it is a result."""

    def __init__(self) -> None:
        self.reason = ""

    def on_log(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at every logged loss."""
        for key in ("loss", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                self.reason = f"{key} is {value} at step {state.global_step}"
                control.should_training_stop = True


class Trainer(transformers.Trainer):
    """transformers' Trainer whose checkpoints hold what is trained, for every method alike.

    PEFT's own checkpoint of a tuner cannot always be trained on (AdaLoRA's drops the pruned ranks, so it no longer
    fits the model), and a full copy of a frozen model is waste. Buffers are kept too: a method may train through them.
    """

    WEIGHTS = "trained.safetensors"

    def _trained(self) -> dict[str, torch.Tensor]:
        assert self.model is not None
        named: dict[str, torch.Tensor] = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return named | dict(self.model.named_buffers())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        with atomic(folder / self.WEIGHTS) as temporary:
            save_file({n: p.detach().cpu().contiguous().clone() for n, p in self._trained().items()}, temporary)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / self.WEIGHTS)
        with torch.no_grad():
            for name, tensor in self._trained().items():
                tensor.copy_(stored[name])


class RankAllocation(transformers.TrainerCallback):
    """Calls a tuner's ``update_and_allocate`` after each optimizer step (AdaLoRA's rank schedule).

    The importance scores it averages and the ranks it has kept are no parameters: they are written beside each
    checkpoint, or a resumed run would prune other ranks than an undisturbed one.
    """

    FILE = "rank_allocation.safetensors"
    AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
    PATTERN = "rank_pattern"

    def __init__(self, model: nn.Module) -> None:
        tuner = getattr(model, "base_model", None)
        self.tuner: Any = tuner if hasattr(tuner, "update_and_allocate") else None

    @property
    def _config(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Restores what the checkpoint that training resumes from had."""
        file = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / self.FILE
        if self.tuner is None or not state.global_step or not file.is_file():
            return
        stored: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in load_file(file).items():
            group, _, name = key.partition("/")
            stored.setdefault(group, {})[name] = value
        for average in self.AVERAGES:
            setattr(self.tuner.rankallocator, average, stored.get(average, {}))
        if self.PATTERN in stored:
            self._config.rank_pattern = {name: kept.bool().tolist() for name, kept in stored[self.PATTERN].items()}

    def on_optimizer_step(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer's step and before its gradients are cleared, as PEFT asks."""
        if self.tuner is not None:
            self.tuner.update_and_allocate(state.global_step)

    def on_save(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Writes the allocator's state beside the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.tuner is None or not folder.is_dir():
            return
        stored: dict[str, torch.Tensor] = {}
        for average in self.AVERAGES:
            for name, value in getattr(self.tuner.rankallocator, average).items():
                stored[f"{average}/{name}"] = value.detach().clone().contiguous()
        for name, kept in (self._config.rank_pattern or {}).items():
            stored[f"{self.PATTERN}/{name}"] = torch.tensor(kept, dtype=torch.uint8)
        with atomic(folder / self.FILE) as temporary:
            save_file(stored, temporary)
