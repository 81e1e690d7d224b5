"""Instruction tuning (Sec. 5.2.2, App. C.4 and D.1; Tables 5 and 10): Alpaca, then zero-shot multiple choice.

A causal language model is tuned on instructions in Alpaca's format with transformers' Trainer and evaluated with
lm-evaluation-harness. Settings of the section in addition to those of every experiment:

    loss_on     prompt-and-response (as in the authors' released code; not stated in the paper) or response
    evaluation  suite: harness (its shipped prompts, on the data sets named under `benchmarks`) or facts (those of the world
                of facts); tasks; split: reported or tuning; batch_size; second_batch_size: a model that is not trained is
                evaluated a second time with this batch size, to show that it does not change the score; held_out: 0, number
                of the last examples of the tuning data on which no run is trained and the loss is measured

Rows: the scores of `ether.measures.language.measurements` at the last step, in the split of `evaluation` (and
`second batch size`), and the loss in the split `train`. With `held_out`, also held_out_loss (of a token, in nats) and
likelihood, 100 exp(-held_out_loss): the geometric mean of the tokens' probabilities in percent. Without benchmarks
(``tasks: []``) this is the score.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ether import hub, machine
from ether.config import RunSpec
from ether.errors import ConfigurationError, one_of
from ether.experiments.common import Fitted, Loaded, Rows, Skeleton, splits_fingerprint
from ether.measures import language, language_tasks
from ether.results import digest
from ether.silence import quiet
from ether.training import Trained, steps_in_all, train, training_arguments

MODEL, DATA = "instruct.model.path", "instruct.data.path"  # settings named in error messages
COLUMNS = ("instruction", "input", "output")
# Alpaca's two prompts (Taori et al. 2023), verbatim: they are part of the data format.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
LOSSES = ("prompt-and-response", "response")
SUITES = ("harness", "facts")


def prompt(example: Mapping[str, str]) -> str:
    """The text before the response."""
    return (WITH_INPUT if example["input"] else WITHOUT_INPUT).format(**{key: example[key] for key in ("instruction", "input")})


@dataclasses.dataclass
class InstructData:
    """The tokenised instructions, and the harness's tasks."""

    train: Any
    tokenizer: Any
    tasks: dict[str, Any]  # empty if there are no benchmarks
    held_out: Any = None  # examples that are not trained on


class Instruct:
    """The instruction-tuning experiment."""

    divisible = True  # a batch, among several processes

    def check(self, spec: RunSpec, results: Path) -> None:
        """Checks that model, data, columns, benchmarks and splits exist, and that every question has an answer."""
        settings = spec.settings
        hub.model_source(settings["model"], spec.resources, results)
        data = hub.data_source(settings["data"], spec.resources, results)
        if data.folder is not None:
            hub.check_columns(data, "default", "train", COLUMNS, DATA)
        if settings["loss_on"] not in LOSSES:
            raise one_of("loss", settings["loss_on"], LOSSES, "instruct.loss_on")
        evaluation = settings["evaluation"]
        if evaluation["suite"] not in SUITES:
            raise one_of("suite", evaluation["suite"], SUITES, "instruct.evaluation.suite")
        if not evaluation["tasks"] and not evaluation.get("held_out"):
            raise ConfigurationError(
                "Nothing is measured: `instruct.evaluation.tasks` is empty and there is no `held_out`. Name tasks, or the number "
                "of held-out examples."
            )
        if evaluation["suite"] == "facts" and evaluation["tasks"]:
            _tasks((), tuple(evaluation["tasks"]), evaluation["split"], results)
        if evaluation["suite"] == "facts":
            return
        for name, source in _benchmarks(spec, results).items():
            split = language.split_of(name, evaluation["split"])
            if source.folder is not None:
                language.check_questions(name, source, split, f"instruct.evaluation.benchmarks.{name}.path")

    def skeleton(self, spec: RunSpec, results: Path) -> Skeleton:
        """The causal language model."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)

        def build() -> nn.Module:
            with hub.explained(source, "model", MODEL), quiet():
                config = transformers.AutoConfig.from_pretrained(source.location, **source.pin)
                model = transformers.AutoModelForCausalLM.from_config(config)
            model.config.use_cache = False  # as `load` sets it
            return model

        return Skeleton(digest(["instruct", source.location, source.pin], 32), build, "CAUSAL_LM")

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded[InstructData]:
        """The pretrained model, the tokenised instructions, and the harness's tasks."""
        settings, hyper, evaluation = spec.settings, spec.hyperparameters, spec.settings["evaluation"]
        source = hub.model_source(settings["model"], spec.resources, results)
        data = hub.data_source(settings["data"], spec.resources, results)
        held_out = evaluation.get("held_out") or 0
        examples, kept_back = _tokenised(
            source, data, settings["loss_on"], hyper["max_length"], settings["limits"]["train"], held_out
        )
        dtype = settings["model"].get("dtype", "float32")
        with hub.explained(source, "model", MODEL), quiet():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                source.location,
                output_loading_info=True,
                dtype=getattr(torch, dtype),
                use_safetensors=source.safetensors(settings["model"]),
                **source.pin,
            )
        model = hub.complete(loaded, source, MODEL)
        model.config.use_cache = False  # not used in training and evaluation
        sources = _benchmarks(spec, results) if evaluation["suite"] == "harness" else {}
        tasks: dict[str, Any] = {}
        if evaluation["tasks"]:
            tasks = _tasks(tuple(sources.items()), tuple(evaluation["tasks"]), evaluation["split"], results)
        return Loaded(
            model=model.to(torch.device(device)),  # type: ignore[arg-type]
            task_type="CAUSAL_LM",
            total_steps=steps_in_all(hyper, len(examples)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=data.name,
            data_fingerprint=splits_fingerprint(data, "default", ["train"]),
            dtype=dtype,
            data=InstructData(examples, _tokenizer(source), tasks, kept_back),
        )

    def fit(self, loaded: Loaded[InstructData], model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer if the model has trainable parameters, and evaluates the result with the harness."""
        evaluation = spec.settings["evaluation"]
        trained: Trained | None = None
        if any(p.requires_grad for p in model.parameters()):
            arguments = training_arguments(
                spec.hyperparameters,
                loaded.total_steps,
                spec.seed,
                folder / "checkpoints",
                device,
                eval_strategy="no",
                logging_steps=max(1, loaded.total_steps // 20),
            )
            trained = train(
                model,
                arguments,
                train_dataset=loaded.data.train,
                data_collator=transformers.DataCollatorForSeq2Seq(loaded.data.tokenizer, label_pad_token_id=-100),
            )
            if trained.reason:
                return Fitted(trained.losses, trained.steps, trained.seconds, trained.status, trained.reason)
        steps, seconds = (trained.steps, trained.seconds) if trained else (0, 0.0)
        rows: Rows = list(trained.losses) if trained else []
        scores = self._scores(loaded.data, model, spec, evaluation["batch_size"])
        rows += [(steps, evaluation["split"], name, value) for name, value in scores.items()]
        if trained is None and evaluation.get("second_batch_size"):
            again = self._scores(loaded.data, model, spec, evaluation["second_batch_size"])
            rows += [(steps, "second batch size", name, value) for name, value in again.items()]
        return Fitted(rows, steps, seconds)

    def _scores(self, data: InstructData, model: nn.Module, spec: RunSpec, batch_size: int) -> dict[str, float]:
        at_once = machine.limits().evaluated_at_once(batch_size)
        scores: dict[str, float] = {}
        if data.held_out is not None:
            collator = transformers.DataCollatorForSeq2Seq(data.tokenizer, label_pad_token_id=-100)
            loss = language.loss_of(model, data.held_out, collator, at_once)
            likelihood = 100 * math.exp(-loss)
            scores = {"held_out_loss": loss, "likelihood": likelihood, "score": likelihood}
        if data.tasks:
            limit = spec.settings["limits"]["evaluation"]
            scores |= language.measurements(language.evaluate(model, data.tokenizer, data.tasks, batch_size=at_once, limit=limit))
        return scores


def _is_one_of(task: Any, names: Collection[str]) -> bool:
    name = task["task"] if isinstance(task, dict) else task.name  # a group is an object of the harness
    return str(name).removeprefix(language.FACTS) in names


@functools.lru_cache(maxsize=4)
def _tasks(sources: tuple[tuple[str, hub.Source], ...], names: tuple[str, ...], split: str, results: Path) -> dict[str, Any]:
    """The loaded tasks of the harness: those of the given data sets or, if there are none, of the world of facts."""
    if sources:
        folder = language.tasks_folder(results / "harness", dict(sources), split)
        return language.load_tasks(language.write_tasks(dict(sources), split, folder), folder)
    return language.load_tasks([t for t in language_tasks.tasks(results / "world", split) if _is_one_of(t, names)])


def _benchmarks(spec: RunSpec, results: Path) -> dict[str, hub.Source]:
    evaluation = spec.settings["evaluation"]
    found = {}
    for name in evaluation["tasks"]:
        if name not in evaluation["benchmarks"]:
            raise one_of("benchmark", name, evaluation["benchmarks"], "instruct.evaluation.tasks")
        found[name] = hub.data_source(evaluation["benchmarks"][name], spec.resources, results)
    return found


# --- cached helpers, shared by the runs of a job --------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _tokenizer(source: hub.Source) -> Any:
    with hub.explained(source, "model", MODEL), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.location, **source.pin)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"The tokenizer of {source.name} has no end-of-sequence token, which ends a response. Choose another model."
        )
    if tokenizer.pad_token_id is None:  # Llama's has none; padding is masked, so any token can be used
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@functools.lru_cache(maxsize=8)
def _tokenised(
    source: hub.Source, data: hub.Source, loss_on: str, max_length: int, limit: int | None, held_out: int = 0
) -> tuple[Any, Any]:
    """Token ids and labels of the examples to train on, and of the last ``held_out`` examples (None for 0).

    To train on are the first ``limit`` of the other examples after a fixed shuffle, identical for all runs.

    Raises:
        ConfigurationError: there are no more examples than are held out.
    """
    import datasets

    datasets.disable_progress_bars()
    examples = hub.load_split(data, "default", "train", COLUMNS, DATA)
    last = None
    if held_out:
        if held_out >= len(examples):
            raise ConfigurationError(
                f"{held_out} examples are to be held out of the {len(examples)} of {data.name}: reduce "
                "`instruct.evaluation.held_out`."
            )
        last = examples.select(range(len(examples) - held_out, len(examples)))
        examples = examples.select(range(len(examples) - held_out))
    if limit is not None and limit < len(examples):
        examples = examples.shuffle(seed=0).select(range(limit))
    tokenizer = _tokenizer(source)

    def encode(example: Mapping[str, str]) -> dict[str, Any]:
        before = tokenizer(prompt(example), add_special_tokens=True)["input_ids"]
        if before and before[-1] == tokenizer.eos_token_id:  # some tokenizers append it to every text
            before = before[:-1]
        after = tokenizer(example["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = (before + after)[:max_length]
        labels = ids if loss_on == "prompt-and-response" else ([-100] * len(before) + after)[:max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(labels)}

    def encoded(rows: Any) -> Any:
        found = rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=False)
        # Examples without targets are removed: their prompt fills the whole length.
        return found.filter(lambda e: any(label != -100 for label in e["labels"]), load_from_cache_file=False)

    with quiet():
        return encoded(examples), None if last is None else encoded(last)


EXPERIMENT = Instruct()
