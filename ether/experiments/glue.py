"""GLUE (Sec. 5.2.1, Table 4): eight sentence-understanding tasks, trained with transformers' Trainer.

Rows: ``validation`` (the evaluation split) at every evaluation; ``selection`` and ``report``, the score of one half of its
examples each, the same halves in every run; ``last`` and ``best``, the values of `report` at the last evaluation and at the one
with the highest score in `selection`; and the loss in ``train``.

Metrics as in the paper: matched accuracy for MNLI, Matthews correlation for CoLA, the average of Pearson and Spearman
correlation for STS-B, accuracy for the other tasks. Values are percentages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError, one_of
from ether.experiments.common import Fitted, Loaded, Skeleton, splits_fingerprint
from ether.results import digest
from ether.silence import quiet
from ether.training import chosen_rows, steps_in_all, train_and_evaluate

MODEL, DATA = "glue.model.path", "glue.data.path"  # settings named in error messages
HALVES = ("selection", "report")  # of the evaluation split
MEASURED = ("score", "accuracy", "pearson", "spearman", "loss", *(f"{half}_score" for half in HALVES))


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
    """A task's metric in percent under the key ``score``, with its components under further keys.

    Args:
        metric: accuracy | matthews | pearson_spearman.
        outputs: logits (N, classes), or predictions (N, 1) for regression.
        labels: (N,).

    Values that are not finite count as 0, and a correlation with constant predictions is 0.
    """
    outputs = np.nan_to_num(np.asarray(outputs, dtype=np.float64))
    if metric == "pearson_spearman":
        from scipy.stats import pearsonr, spearmanr

        predictions = outputs.reshape(-1)
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return {"score": 0.0, "pearson": 0.0, "spearman": 0.0}
        pearson = 100 * float(pearsonr(predictions, labels).statistic)
        spearman = 100 * float(spearmanr(predictions, labels).statistic)
        return {"score": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
    predictions = outputs.argmax(axis=-1)
    accuracy = 100 * float((predictions == labels).mean())
    if metric == "matthews":
        from sklearn.metrics import matthews_corrcoef

        return {"score": 100 * float(matthews_corrcoef(labels, predictions)), "accuracy": accuracy}
    return {"score": accuracy}


# --- the experiment --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class GlueData:
    """Tokenised splits of one task."""

    train: Any
    evaluation: Any
    tokenizer: Any


class Glue:
    """The GLUE experiment."""

    divisible = True  # a batch, among several processes

    def _task(self, spec: RunSpec) -> Task:
        if spec.task not in TASKS:
            raise one_of("task", spec.task, TASKS, "glue.tasks")
        return TASKS[spec.task]

    def _splits(self, spec: RunSpec) -> tuple[str, str]:
        data = spec.settings["data"]
        return data.get("train_split") or "train", data.get("evaluation_split") or self._task(spec).evaluation_split

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks that the model exists, and the data with its splits and columns."""
        hub.model_source(spec.settings["model"], spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        for split in self._splits(spec):
            if data.folder is not None:
                hub.check_columns(data, spec.task, split, (*self._task(spec).columns, "label"), DATA)

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The encoder with a head for the task's number of labels."""
        source, labels = hub.model_source(spec.settings["model"], spec.resources, results), self._task(spec).labels

        def build() -> nn.Module:
            with hub.explained(source, "model", MODEL), quiet():
                config = transformers.AutoConfig.from_pretrained(source.location, num_labels=labels, **source.pin)
                return transformers.AutoModelForSequenceClassification.from_config(config)

        return Skeleton(digest(["glue", source.location, source.pin, labels], 32), build, "SEQ_CLS")

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[GlueData]:
        """The pretrained encoder with a new head, and the tokenised splits."""
        task, settings, hyper = self._task(spec), spec.settings, spec.hyperparameters
        source = hub.model_source(settings["model"], spec.resources, results)
        data = hub.data_source(settings["data"], spec.resources, results)
        limits = (settings["limits"]["train"], settings["limits"]["evaluation"])
        train, evaluation = (
            _tokenised(source, data, spec.task, split, hyper["max_length"], limit)
            for split, limit in zip(self._splits(spec), limits, strict=True)
        )
        dtype = settings["model"].get("dtype", "float32")
        transformers.set_seed(spec.seed)  # the head's initialisation
        with hub.explained(source, "model", MODEL), quiet():
            loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                source.location,
                output_loading_info=True,
                num_labels=task.labels,
                problem_type="regression" if task.labels == 1 else "single_label_classification",
                dtype=getattr(torch, dtype),  # the default of transformers 5 is the precision of the checkpoint
                use_safetensors=source.safetensors(settings["model"]),
                **source.pin,
            )
        model = hub.complete(loaded, source, MODEL)
        return Loaded(
            model=model,
            task_type="SEQ_CLS",
            total_steps=steps_in_all(hyper, len(train)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=f"{data.name}/{spec.task}",
            data_fingerprint=splits_fingerprint(data, spec.task, self._splits(spec)),
            dtype=dtype,
            data=GlueData(train, evaluation, _tokenizer(source)),
        )

    def fit(self, loaded: Loaded[GlueData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer and evaluates ``evaluations`` times at equal intervals, the last time at the end."""
        task, data = self._task(spec), loaded.data
        rows, trained = train_and_evaluate(
            model,
            spec.hyperparameters,
            loaded.total_steps,
            spec.seed,
            folder,
            device,
            measured=MEASURED,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            data_collator=transformers.DataCollatorWithPadding(data.tokenizer),
            compute_metrics=lambda p: halves(task.metric, _first(p.predictions), _first(p.label_ids)),
        )
        of_half = {f"{half}_score": half for half in HALVES}
        rows = [
            (step, of_half.get(name, split), "score" if name in of_half else name, value) for step, split, name, value in rows
        ]
        rows += chosen_rows(rows, trained.steps)
        return Fitted(rows + trained.losses, trained.steps, trained.seconds, trained.status, trained.reason)


def halves(metric: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """As `score`, and the score of each half of the examples as `selection_score` and `report_score`.

    The halves are drawn with a fixed seed: they are the same for every run of a task.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    parts = dict(zip(HALVES, np.array_split(order, len(HALVES)), strict=True))
    found = {f"{half}_score": score(metric, outputs[part], labels[part])["score"] for half, part in parts.items()}
    return score(metric, outputs, labels) | found


def _first(output: Any) -> np.ndarray:
    """The logits of a model that may return further outputs."""
    return output[0] if isinstance(output, tuple) else output


# --- cached helpers, shared by the runs of a job -------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _tokenizer(source: hub.Source) -> Any:
    with hub.explained(source, "model", MODEL), quiet():
        return transformers.AutoTokenizer.from_pretrained(source.location, **source.pin)


@functools.lru_cache(maxsize=32)
def _tokenised(source: hub.Source, data: hub.Source, task: str, split: str, max_length: int, limit: int | None) -> Any:
    """Token ids and labels of a split: the first ``limit`` examples after a fixed shuffle, identical for all runs."""
    import datasets

    datasets.disable_progress_bars()
    columns = TASKS[task].columns
    examples = hub.load_split(data, task, split, (*columns, "label"), DATA)
    if limit is not None and limit < len(examples):
        examples = examples.shuffle(seed=0).select(range(limit))
    tokenizer = _tokenizer(source)

    def encode(batch: Mapping[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=max_length)
        classes = TASKS[task].labels
        labels = [(float if classes == 1 else int)(value) for value in batch["label"]]
        if classes > 1 and not all(0 <= value < classes for value in labels):
            raise ConfigurationError(
                f"The data set {data.name!r} ({task}, {split}) has labels other than 0 to {classes - 1}, as unlabelled splits do."
            )
        return {**encoded, "labels": labels}

    with quiet():
        return examples.map(encode, batched=True, remove_columns=examples.column_names, load_from_cache_file=False)


EXPERIMENT = Glue()
