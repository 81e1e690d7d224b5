"""GLUE (Sec. 5.2.1, Table 4): eight sentence-understanding tasks, by transformers' Trainer.

Each task's own metric, as the paper reports it: MNLI matched accuracy, CoLA Matthews correlation, STS-B the average of
Pearson and Spearman correlation, accuracy elsewhere. Values are percentages.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef
from torch import nn

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError
from ether.experiments import Fitted, Loaded
from ether.silence import quiet
from ether.training import (
    DivergenceStop,
    RankAllocation,
    Trainer,
    latest_checkpoint,
    steps_in_all,
    training_arguments,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One GLUE task: its columns, labels, evaluation split and metric."""

    columns: tuple[str, ...]
    labels: int  # 1 for regression
    metric: str = "accuracy"
    evaluation_split: str = "validation"


TASKS = {
    "mnli": Task(("premise", "hypothesis"), 3, evaluation_split="validation_matched"),
    "sst2": Task(("sentence",), 2),
    "cola": Task(("sentence",), 2, "matthews"),
    "qqp": Task(("question1", "question2"), 2),
    "qnli": Task(("question", "sentence"), 2),
    "rte": Task(("sentence1", "sentence2"), 2),
    "mrpc": Task(("sentence1", "sentence2"), 2),
    "stsb": Task(("sentence1", "sentence2"), 1, "pearson_spearman"),
}


def score(metric: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """A task's metric in percent, under the key ``score``, with its parts beside it.

    Args:
        metric: accuracy | matthews | pearson_spearman.
        outputs: logits (N, classes), or predictions (N, 1) for regression.
        labels: (N,).

    A model whose outputs are not finite, or constant where a correlation is asked for, scores 0 there.
    """
    outputs = np.nan_to_num(np.asarray(outputs, dtype=np.float64))
    if metric == "pearson_spearman":
        predictions = outputs.reshape(-1)
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return {"score": 0.0, "pearson": 0.0, "spearman": 0.0}
        pearson = 100 * float(pearsonr(predictions, labels).statistic)
        spearman = 100 * float(spearmanr(predictions, labels).statistic)
        return {"score": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
    predictions = outputs.argmax(axis=-1)
    accuracy = 100 * float((predictions == labels).mean())
    if metric == "matthews":
        return {"score": 100 * float(matthews_corrcoef(labels, predictions)), "accuracy": accuracy}
    return {"score": accuracy}


class Glue:
    """The GLUE experiment."""

    # --- before training ---

    def _task(self, spec: RunSpec) -> Task:
        return TASKS[spec.task]

    def _splits(self, spec: RunSpec) -> tuple[str, str]:
        task = self._task(spec)
        return "train", spec.settings["data"].get("evaluation_split") or task.evaluation_split

    def check(self, spec: RunSpec, results: Path) -> None:
        """Model, splits and columns are there, and every block count divides its dimensions."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        for split in self._splits(spec):
            if data.folder is not None:
                hub.check_columns(data, spec.task, split, (*self._task(spec).columns, "label"), "glue.data.path")
        _adaptable(source, _freeze(spec.adapt), spec.settings["layers"], tuple(spec.settings["head"]),
                   self._task(spec).labels)  # fmt: skip

    # --- loading ---

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded:
        """The pretrained encoder with a fresh head, and the tokenised splits."""
        task, wanted = self._task(spec), spec.settings["model"]
        source = hub.model_source(wanted, spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        hyper = spec.hyperparameters
        train, evaluation = (
            _tokenised(source, data, spec.task, split, hyper["max_length"], limit)
            for split, limit in zip(
                self._splits(spec),
                (spec.settings["limits"]["train"], spec.settings["limits"]["evaluation"]),
                strict=True,
            )
        )
        dtype = wanted.get("dtype", "float32")
        transformers.set_seed(spec.seed)  # the head's initialisation
        with hub.explained(source, "model", "glue.model.path"), quiet():
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                source.location,
                num_labels=task.labels,
                problem_type="regression" if task.labels == 1 else "single_label_classification",
                dtype=getattr(torch, dtype),  # transformers 5 would take a half-precision checkpoint's own
                use_safetensors=source.safetensors(wanted),
                **source.pin,
            )
        return Loaded(
            model=model,
            task_type="SEQ_CLS",
            total_steps=steps_in_all(hyper, len(train)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=f"{data.name}/{spec.task}",
            data_fingerprint=f"{train._fingerprint}-{evaluation._fingerprint}",
            dtype=dtype,
            data={"train": train, "evaluation": evaluation, "tokenizer": _tokenizer(source)},
        )

    # --- training ---

    def fit(self, loaded: Loaded, model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer; evaluates ``evaluations`` times, evenly spaced, the last at the end."""
        task, hyper = self._task(spec), spec.hyperparameters
        every = max(1, loaded.total_steps // hyper["evaluations"])
        checkpoints = folder / "checkpoints"
        arguments = training_arguments(
            hyper,
            loaded.total_steps,
            spec.seed,
            checkpoints,
            device,
            eval_strategy="steps",
            eval_steps=every,
            logging_steps=every,
            label_names=["labels"],
        )
        divergence = DivergenceStop()
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=loaded.data["train"],
            eval_dataset=loaded.data["evaluation"],
            data_collator=transformers.DataCollatorWithPadding(loaded.data["tokenizer"]),
            compute_metrics=lambda p: score(task.metric, _first(p.predictions), _first(p.label_ids)),
            callbacks=[divergence, RankAllocation(model)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        outcome = trainer.train(resume_from_checkpoint=latest_checkpoint(checkpoints))
        seconds = time.perf_counter() - started
        history = [entry for entry in trainer.state.log_history if "eval_score" in entry]
        if not history or history[-1]["step"] != trainer.state.global_step:
            history.append({**trainer.evaluate(), "step": trainer.state.global_step})
        rows: list[tuple[int, str, str, float]] = []
        for entry in history:
            for key, value in entry.items():
                name = key.removeprefix("eval_")
                if key.startswith("eval_") and name in ("score", "accuracy", "pearson", "spearman", "loss"):
                    rows.append((int(entry["step"]), "validation", name, float(value)))
        for entry in trainer.state.log_history:
            if "loss" in entry:
                rows.append((int(entry["step"]), "train", "loss", float(entry["loss"])))
        status, reason = ("diverged", divergence.reason) if divergence.reason else ("finished", "")
        return Fitted(rows, int(outcome.global_step), seconds, status, reason)


def _first(output: Any) -> np.ndarray:
    """A model's logits, where it returns more than them."""
    return output[0] if isinstance(output, tuple) else output


# --- cached helpers: a job's runs share model folder, tokenizer and tokenised data ---------------------------------


@functools.lru_cache(maxsize=4)
def _tokenizer(source: hub.Source) -> Any:
    with hub.explained(source, "model", "glue.model.path"), quiet():
        return transformers.AutoTokenizer.from_pretrained(source.location, **source.pin)


@functools.lru_cache(maxsize=32)
def _tokenised(source: hub.Source, data: hub.Source, task: str, split: str, max_length: int, limit: int | None) -> Any:
    """Token ids and labels of a split; the first ``limit`` examples after a fixed shuffle, the same for every run."""
    import datasets

    datasets.disable_progress_bars()
    columns = TASKS[task].columns
    examples = hub.load_split(data, task, split, (*columns, "label"), "glue.data.path")
    if limit is not None and limit < len(examples):
        examples = examples.shuffle(seed=0).select(range(limit))
    tokenizer = _tokenizer(source)

    def encode(batch: Mapping[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=max_length)
        label = float if TASKS[task].labels == 1 else int
        return {**encoded, "labels": [label(value) for value in batch["label"]]}

    with quiet():
        return examples.map(encode, batched=True, remove_columns=examples.column_names, load_from_cache_file=False)


def _freeze(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


@functools.lru_cache(maxsize=256)
def _adaptable(source: hub.Source, how: str, layers: str, head: tuple[str, ...], labels: int) -> None:
    """Applies the method to the model's architecture on the meta device: shapes are checked, nothing is loaded."""
    from ether.methods import adapt as methods

    with hub.explained(source, "model", "glue.model.path"), quiet():
        config = transformers.AutoConfig.from_pretrained(source.location, num_labels=labels, **source.pin)
    with torch.device("meta"), quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    values = dict.fromkeys(("dropout",), 0.0) | methods.step_values(100)
    adapted = methods.adapt(model, json.loads(how), layers=layers, head=head, task_type="SEQ_CLS", values=values)
    if methods.trainable(adapted) == 0:
        raise ConfigurationError(f"{how} leaves nothing to train on {source.name}.")


EXPERIMENT = Glue()
