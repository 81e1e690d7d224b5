"""Optimiser, learning-rate schedule, checkpoints and divergence stop of all experiments.

`training_arguments` converts a run's hyperparameters into transformers' arguments, and `train` runs the Trainer with them:

    arguments = training_arguments(hyper, total_steps, seed, folder / "checkpoints", device, logging_steps=10)
    trained = train(model, arguments, train_dataset=data, data_collator=collator)
    trained.steps, trained.seconds, trained.losses, trained.status, trained.reason

The optimiser is the Trainer's default, AdamW. A batch is processed in parts where `ether.machine.limits` asks for it; the
gradient is that of the whole batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ether import machine, processes
from ether.errors import ConfigurationError
from ether.results import atomic

Rows = list[tuple[int, str, str, float]]  # measured values: (step, split, metric, value)


# --- hyperparameters -------------------------------------------------------------------------------------------


def latest_checkpoint(folder: Path) -> str | None:
    """The newest complete Trainer checkpoint in a folder, or None.

    The Trainer writes ``trainer_state.json`` last. A checkpoint without a readable file of this name is incomplete and is
    skipped.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def steps_in_all(hyper: Mapping[str, Any], examples: int) -> int:
    """Optimiser steps of a run: ``max_steps`` if given, otherwise ``epochs`` over the examples."""
    per_epoch = math.ceil(examples / (hyper["batch_size"] * hyper["accumulation"]))
    return int(hyper["max_steps"] or math.ceil(per_epoch * hyper["epochs"]))


def checkpoint_interval(hyper: Mapping[str, Any], total_steps: int) -> int | None:
    """Steps between checkpoints, or None if no checkpoint is written before the end of the run."""
    steps = hyper.get("checkpoint_steps")
    return int(steps) if steps and steps < total_steps else None


class OneDevice(transformers.TrainingArguments):
    """transformers' arguments for one device, whatever the process sees: the Trainer replicates no model (`nn.DataParallel`)."""

    @property
    def n_gpu(self) -> int:
        """Number of GPUs: 0 or 1."""
        return min(1, super().n_gpu)


def training_arguments(
    hyper: Mapping[str, Any], total_steps: int, seed: int, checkpoints: Path, device: str, **more: Any
) -> transformers.TrainingArguments:
    """The Trainer's arguments for the hyperparameters of a run, identical in all experiments.

    A batch is divided equally among the processes of the run (`ether.processes`), and in each of them, above
    `ether.machine.limits`, into equal parts by accumulation.

    Args:
        hyper: hyperparameters of the run, as described in ``workflow/schemas/scale.schema.yaml``. If ``warmup_steps`` is
            given, it replaces ``warmup``, which is a fraction of all steps.
        total_steps: optimiser steps of the whole run.
        seed: seed of the run.
        checkpoints: the folder of the run's checkpoints.
        device: cpu | cuda.
        more: further arguments of ``transformers.TrainingArguments``; they take precedence.
    """
    warmup = hyper.get("warmup_steps")
    interval = checkpoint_interval(hyper, total_steps)
    limits, own = machine.limits(), hyper["batch_size"] // processes.count()
    parts = limits.parts(own)
    saving: dict[str, Any] = {"save_strategy": "no"}
    if interval:
        saving = {"save_strategy": "steps", "save_steps": interval, "save_total_limit": 2}
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": total_steps,
        "per_device_train_batch_size": own // parts,
        "per_device_eval_batch_size": limits.evaluated_at_once(hyper.get("evaluation_batch_size", hyper["batch_size"])),
        "gradient_accumulation_steps": hyper["accumulation"] * parts,
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
        "train_sampling_strategy": "group_by_length" if hyper.get("group_by_length") else "random",
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": device != "cpu",
    }
    return OneDevice(**(arguments | saving | more))


class OutOfMemoryInTraining(torch.OutOfMemoryError):
    """A forward or backward pass of training was too large for the memory; an evaluation raises torch's own error."""


# --- training --------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """Result of `train`."""

    trainer: Trainer
    steps: int
    seconds: float
    losses: Rows  # the logged training losses, in the split `train`
    divergence: DivergenceStop
    failure: str = ""  # message of an operation that failed on infinite values or a singular matrix

    @property
    def reason(self) -> str:
        """Reason of the divergence, empty if there is none. An infinite loss in a later ``trainer.evaluate()`` is included."""
        return self.failure or self.divergence.reason

    @property
    def status(self) -> str:
        """finished | diverged."""
        return "diverged" if self.reason else "finished"


def train(
    model: nn.Module,
    arguments: transformers.TrainingArguments,
    *,
    adapted: nn.Module | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    **options: Any,
) -> Trained:
    """Trains a model with transformers' Trainer, resuming from its newest checkpoint if there is one.

    Training stops at a loss that is not finite, or at an operation that fails on infinite values or a singular matrix. No
    error is raised in these cases; the reason is in ``reason`` of the result.

    Args:
        model: returns a loss; its parameters with ``requires_grad`` are trained.
        arguments: from `training_arguments`; checkpoints are in its ``output_dir``.
        adapted: the adapted model, if ``model`` is a loss module that wraps it; its tuner's rank schedule is applied.
        callbacks: further callbacks, called after those of every run.
        options: further arguments of the Trainer, such as ``train_dataset``.
    """
    divergence = DivergenceStop()
    if machine.limits().checkpointing:
        recompute_activations(model if adapted is None else adapted)
    trainer = Trainer(
        model=model,
        args=arguments,
        callbacks=[divergence, RankAllocation(model if adapted is None else adapted), *callbacks],
        **options,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    failure = ""
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=latest_checkpoint(Path(str(arguments.output_dir))))
    except (FloatingPointError, torch.linalg.LinAlgError) as error:
        failure = f"{error}" or repr(error)
    seconds = time.perf_counter() - started
    losses: Rows = [
        (int(entry["step"]), "train", "loss", float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry
    ]
    return Trained(trainer, int(trainer.state.global_step), seconds, losses, divergence, failure)


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing of a model of transformers or diffusers, adapted or not: blocks keep their inputs only.

    Raises:
        ConfigurationError: the model cannot do it.
    """
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers
        # Reentrant checkpointing needs an input with a gradient, and the embeddings of an adapted model are frozen.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif hasattr(model, "enable_gradient_checkpointing"):  # diffusers
        model.enable_gradient_checkpointing()
    else:
        raise ConfigurationError(
            f"A {type(model).__name__} has no gradient checkpointing: remove `checkpointing` from the scale's `memory`."
        )


def train_and_evaluate(
    model: nn.Module,
    hyper: Mapping[str, Any],
    total_steps: int,
    seed: int,
    folder: Path,
    device: str,
    *,
    measured: Sequence[str],
    **options: Any,
) -> tuple[Rows, Trained]:
    """Trains a model on labelled examples and evaluates it ``evaluations`` times at equal intervals, the last time at the end.

    Args:
        model: returns a loss.
        hyper, total_steps, seed, device: see `training_arguments`.
        folder: the run's folder; checkpoints are in its subfolder ``checkpoints``.
        measured: names of the values that are kept: keys of ``compute_metrics``, and ``loss``.
        options: further arguments of the Trainer: ``train_dataset``, ``eval_dataset``, ``compute_metrics``, ``data_collator``.

    Returns:
        The measured values, in the split `validation`, and the result of the training. Training losses are in the latter.
    """
    every = max(1, total_steps // hyper["evaluations"])
    arguments = training_arguments(
        hyper,
        total_steps,
        seed,
        folder / "checkpoints",
        device,
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=every,
        label_names=["labels"],
    )
    trained = train(model, arguments, **options)
    history = [entry for entry in trained.trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    if not history or history[-1]["step"] != trained.steps:
        history.append({**trained.trainer.evaluate(), "step": trained.steps})
    rows: Rows = [
        (int(entry["step"]), "validation", name, float(entry[f"eval_{name}"]))
        for entry in history
        for name in measured
        if f"eval_{name}" in entry
    ]
    return rows, trained


def chosen_rows(rows: Rows, last: int) -> Rows:
    """The rows of the splits `last` and `best`, both over the half that is reported (`report`).

    `last` has the values of the last step, if it has been evaluated; `best` those of the step with the highest score in
    `selection`, the earliest step in case of ties.
    """
    scores = {step: value for step, split, name, value in rows if (split, name) == ("selection", "score")}
    finite = {step: value for step, value in scores.items() if math.isfinite(value)}
    chosen: Rows = [(step, "last", name, value) for step, split, name, value in rows if split == "report" and step == last]
    if finite:
        best = max(finite, key=lambda step: (finite[step], -step))
        chosen += [(step, "best", name, value) for step, split, name, value in rows if split == "report" and step == best]
    return chosen


class DivergenceStop(transformers.TrainerCallback):
    """Stops a run whose loss is not finite. The divergence is recorded, because learning-rate sweeps measure it."""

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
        """Checks every logged loss."""
        for key in ("loss", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                self.reason = f"{key} is {value} at step {state.global_step}"
                control.should_training_stop = True


class Trainer(transformers.Trainer):
    """transformers' Trainer with batches in parts; its checkpoints contain the trained parameters and all buffers.

    PEFT's checkpoints do not always allow training to resume: AdaLoRA's omit the pruned ranks, so their shapes differ from the
    model's. A checkpoint of the full model would also contain the frozen weights. Buffers are included because a method may
    change them during training.
    """

    WEIGHTS = "trained.safetensors"
    LOSS = "loss-{}.safetensors"  # of each process: sum of the losses since the last log, and the step of that log
    resumed: torch.Tensor | None = None  # the same, until training goes on
    items = 0  # examples, or positions with a label, in the batch of the current step

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1:
            # The Trainer hands the number of items to every model whose `forward` takes **kwargs and leaves the weighting of the
            # parts to it. DeBERTa's takes them and ignores them: its gradient would be that of the sum over the parts.
            self.model_accepts_loss_kwargs = False

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """This process's parts of the next batch, as in the Trainer; also counts the items of the whole batch."""
        found = super().get_batch_samples(*arguments, **options)
        self.items = sum(map(self._items, found[0]))
        if self.args.world_size > 1:
            self.items = int(self.accelerator.reduce(torch.tensor([self.items], device=self.args.device), "sum"))
        return found

    def _items(self, inputs: Any) -> int:
        """The number of items that the mean loss of a batch is taken over; 0 if the batch has no labels."""
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
        if labels is None:
            return 0
        return int(((labels[..., 1:] if self._loss_shifts_labels else labels) != -100).sum())

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Forward and backward pass of a part.

        Raises:
            OutOfMemoryInTraining: it is too large for the memory.
        """
        if self.resumed is not None:  # the next log is the mean over all steps since the last one, as without an interruption
            self._tr_loss += self.resumed[0].to(self._tr_loss)
            self._globalstep_last_logged, self.resumed = int(self.resumed[1]), None
        try:
            return super().training_step(*arguments, **options)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryInTraining(str(error) or repr(error)) from error

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """The loss of a part, weighted by its items: the sum over the parts is the mean loss of the batch.

        Parts have different numbers of tokens, and those of an epoch's last batch different numbers of examples.
        """
        part = self._items(inputs)
        loss: Any = super().compute_loss(model, inputs, *arguments, **options)
        # The gradient is the mean over the processes and, of the loss that is returned here, over the parts.
        parts = self.current_gradient_accumulation_steps * self.args.world_size if model.training else 1
        return loss * (part * parts / self.items) if parts > 1 and self.items else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing: the Trainer would count the model's parameters in every step, for a number that is not used."""
        return 0

    def _trained(self) -> dict[str, torch.Tensor]:
        assert self.model is not None
        named: dict[str, torch.Tensor] = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return named | dict(self.model.named_buffers())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        with atomic(folder / self.WEIGHTS) as temporary:
            save_file({n: p.detach().cpu().contiguous().clone() for n, p in self._trained().items()}, temporary)

    def _save_rng_state(self, output_dir: str) -> None:
        """As in the Trainer, and the loss since the last log. Returns when every process has written its own."""
        super()._save_rng_state(output_dir)
        since = torch.tensor([float(self._tr_loss), self._globalstep_last_logged], dtype=torch.float64)
        with atomic(Path(output_dir) / self.LOSS.format(self.args.process_index)) as temporary:
            save_file({"since": since}, temporary)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        stored = load_file(folder / self.WEIGHTS)
        files = list(folder.glob(self.LOSS.format("*")))
        if len(files) == self.args.world_size:
            files = [folder / self.LOSS.format(self.args.process_index)]
        # With another number of processes than before, each takes the mean, which is what is logged.
        self.resumed = torch.stack([load_file(file)["since"] for file in files]).mean(0)
        with torch.no_grad():
            for name, tensor in self._trained().items():
                tensor.copy_(stored[name])


class RankAllocation(transformers.TrainerCallback):
    """Calls a tuner's ``update_and_allocate`` after each optimizer step (AdaLoRA's rank schedule).

    The averaged importance scores and the pattern of remaining ranks are not parameters. They are stored with each
    checkpoint, so that a resumed run prunes the same ranks as an uninterrupted one.
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
        """Restores the state stored with the checkpoint from which training resumes."""
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
            self._config.rank_pattern = {name: ranks.bool().tolist() for name, ranks in stored[self.PATTERN].items()}

    def on_optimizer_step(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Updates the ranks after the optimiser's step and before gradients are cleared, as PEFT requires."""
        if self.tuner is not None:
            self.tuner.update_and_allocate(state.global_step)

    def on_save(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Writes the allocator's state into the checkpoint's folder."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.tuner is None or not folder.is_dir() or not state.is_world_process_zero:
            return
        stored: dict[str, torch.Tensor] = {}
        for average in self.AVERAGES:
            for name, value in getattr(self.tuner.rankallocator, average).items():
                stored[f"{average}/{name}"] = value.detach().clone().contiguous()
        for name, ranks in (self._config.rank_pattern or {}).items():
            stored[f"{self.PATTERN}/{name}"] = torch.tensor(ranks, dtype=torch.uint8)
        with atomic(folder / self.FILE) as temporary:
            save_file(stored, temporary)
