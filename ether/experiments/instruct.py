"""Instruction tuning (Sec. 5.2.2, App. C.4 and D.1; Tables 5 and 10): Alpaca, then zero-shot multiple choice.

A causal language model is tuned on instructions in Alpaca's format by transformers' Trainer and scored by
lm-evaluation-harness. Settings of the section beside those every experiment has:

    loss_on     prompt-and-response (what the authors' released code does; the paper's text is silent) or response
    evaluation  suite: harness (its shipped prompts, on the data sets named under `benchmarks`) or facts (the small
                world's); tasks; split: reported or tuning; batch_size; second_batch_size: where the model is not trained
                it is scored a second time with this one, to show that the batch size does not move the score
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ether import hub
from ether.config import RunSpec
from ether.errors import ConfigurationError, one_of
from ether.experiments import Fitted, Loaded
from ether.measures import language, language_tasks
from ether.silence import quiet
from ether.training import DivergenceStop, RankAllocation, Trainer, latest_checkpoint, steps_in_all, training_arguments

COLUMNS = ("instruction", "input", "output")
# Alpaca's two prompts (Taori et al. 2023), word for word: they are part of the data's format.
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
    """What stands before the response."""
    return (WITH_INPUT if example["input"] else WITHOUT_INPUT).format(**{key: example[key] for key in ("instruction", "input")})


class Instruct:
    """The instruction-tuning experiment."""

    # --- before training ---

    def check(self, spec: RunSpec, results: Path) -> None:
        """Model, data, columns, benchmarks and splits are there, and every block count divides its dimensions."""
        source = hub.model_source(spec.settings["model"], spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        if data.folder is not None:
            hub.check_columns(data, "default", "train", COLUMNS, "instruct.data.path")
        if spec.settings["loss_on"] not in LOSSES:
            raise one_of("loss", spec.settings["loss_on"], LOSSES, "instruct.loss_on")
        wanted = spec.settings["evaluation"]
        if wanted["suite"] not in SUITES:
            raise one_of("suite", wanted["suite"], SUITES, "instruct.evaluation.suite")
        if wanted["suite"] == "facts":
            _tasks((), tuple(wanted["tasks"]), wanted["split"], results)
        else:
            for name, benchmark in _benchmarks(spec, results).items():
                split, about = language.split_of(name, wanted["split"]), language.BENCHMARKS[name]
                if benchmark.folder is not None:
                    place = f"instruct.evaluation.benchmarks.{name}.path"
                    hub.check_columns(benchmark, about["config"], split, about["columns"], place)
        _adaptable(
            source,
            json.dumps(spec.adapt, sort_keys=True),
            spec.settings["layers"],
            json.dumps({key: value for key, value in spec.hyperparameters.items() if key != "learning_rate"}, sort_keys=True),
        )

    # --- loading ---

    def load(self, spec: RunSpec, results: Path, device: str) -> Loaded:
        """The pretrained model, the tokenised instructions, and the harness's tasks."""
        wanted, hyper, evaluation = spec.settings["model"], spec.hyperparameters, spec.settings["evaluation"]
        source = hub.model_source(wanted, spec.resources, results)
        data = hub.data_source(spec.settings["data"], spec.resources, results)
        train = _tokenised(source, data, spec.settings["loss_on"], hyper["max_length"], spec.settings["limits"]["train"])
        dtype = wanted.get("dtype", "float32")
        with hub.explained(source, "model", "instruct.model.path"), quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source.location,
                dtype=getattr(torch, dtype),
                use_safetensors=source.safetensors(wanted),
                **source.pin,
            )
        model.config.use_cache = False  # of no use in training and in scoring
        sources = _benchmarks(spec, results) if evaluation["suite"] == "harness" else {}
        tasks = _tasks(tuple(sources.items()), tuple(evaluation["tasks"]), evaluation["split"], results)
        return Loaded(
            model=model.to(torch.device(device)),  # type: ignore[arg-type]
            task_type="CAUSAL_LM",
            total_steps=steps_in_all(hyper, len(train)),
            base_model=source.name,
            base_model_fingerprint=hub.fingerprint(source),
            data_name=data.name,
            data_fingerprint=train._fingerprint,
            dtype=dtype,
            data={"train": train, "tokenizer": _tokenizer(source), "tasks": tasks},
        )

    # --- training ---

    def fit(self, loaded: Loaded, model: nn.Module, spec: RunSpec, folder: Path, device: str) -> Fitted:
        """Trains with the Trainer, unless there is nothing to train, and has the harness score the result."""
        evaluation, hyper = spec.settings["evaluation"], spec.hyperparameters
        rows: list[tuple[int, str, str, float]] = []
        steps, seconds, reason = 0, 0.0, ""
        trained = any(p.requires_grad for p in model.parameters())
        if trained:
            divergence = DivergenceStop()
            every = max(1, loaded.total_steps // 20)
            trainer = Trainer(
                model=model,
                args=training_arguments(
                    hyper, loaded.total_steps, spec.seed, folder / "checkpoints", device, eval_strategy="no", logging_steps=every
                ),
                train_dataset=loaded.data["train"],
                data_collator=transformers.DataCollatorForSeq2Seq(loaded.data["tokenizer"], label_pad_token_id=-100),
                callbacks=[divergence, RankAllocation(model)],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            started = time.perf_counter()
            outcome = trainer.train(resume_from_checkpoint=latest_checkpoint(folder / "checkpoints"))
            seconds, steps, reason = time.perf_counter() - started, int(outcome.global_step), divergence.reason
            for entry in trainer.state.log_history:
                if "loss" in entry:
                    rows.append((int(entry["step"]), "train", "loss", float(entry["loss"])))
        if reason:
            return Fitted(rows, steps, seconds, "diverged", reason)
        for name, value in self._scores(loaded, model, spec, evaluation["batch_size"]).items():
            rows.append((steps, evaluation["split"], name, value))
        if not trained and evaluation.get("second_batch_size"):
            again = self._scores(loaded, model, spec, evaluation["second_batch_size"])
            rows += [(steps, "second batch size", name, value) for name, value in again.items()]
        return Fitted(rows, steps, seconds)

    def _scores(self, loaded: Loaded, model: nn.Module, spec: RunSpec, batch_size: int) -> dict[str, float]:
        found = language.evaluate(
            model,
            loaded.data["tokenizer"],
            loaded.data["tasks"],
            batch_size=batch_size,
            limit=spec.settings["limits"]["evaluation"],
        )
        return language.measurements(found)


def _in(wanted: Collection[str], task: Any) -> bool:
    name = task["task"] if isinstance(task, dict) else task.name  # a group is an object of the harness
    return str(name).removeprefix("facts_") in wanted


@functools.lru_cache(maxsize=4)
def _tasks(sources: tuple[tuple[str, hub.Source], ...], names: tuple[str, ...], split: str, results: Path) -> dict[str, Any]:
    """The harness's tasks, loaded: of the data sets given or, where there are none, of the world of facts."""
    if sources:
        folder = language.tasks_folder(results / "harness", dict(sources), split)
        return language.load_tasks(language.write_tasks(dict(sources), split, folder), folder)
    return language.load_tasks([t for t in language_tasks.tasks(results / "world", split) if _in(names, t)])


def _benchmarks(spec: RunSpec, results: Path) -> dict[str, hub.Source]:
    evaluation = spec.settings["evaluation"]
    found = {}
    for name in evaluation["tasks"]:
        if name not in evaluation["benchmarks"]:
            raise one_of("benchmark", name, evaluation["benchmarks"], "instruct.evaluation.tasks")
        found[name] = hub.data_source(evaluation["benchmarks"][name], spec.resources, results)
    return found


# --- cached helpers: a job's runs share tokenizer and tokenised data ------------------------------------------------


@functools.lru_cache(maxsize=4)
def _tokenizer(source: hub.Source) -> Any:
    with hub.explained(source, "model", "instruct.model.path"), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.location, **source.pin)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"The tokenizer of {source.name} has no end-of-sequence token, so no response could end.")
    if tokenizer.pad_token_id is None:  # Llama's has none; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@functools.lru_cache(maxsize=8)
def _tokenised(source: hub.Source, data: hub.Source, loss_on: str, max_length: int, limit: int | None) -> Any:
    """Token ids and labels; the first ``limit`` examples after a fixed shuffle, the same for every run."""
    import datasets

    datasets.disable_progress_bars()
    examples = hub.load_split(data, "default", "train", COLUMNS, "instruct.data.path")
    if limit is not None and limit < len(examples):
        examples = examples.shuffle(seed=0).select(range(limit))
    tokenizer = _tokenizer(source)

    def encode(example: Mapping[str, str]) -> dict[str, Any]:
        before = tokenizer(prompt(example), add_special_tokens=True)["input_ids"]
        if before and before[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
            before = before[:-1]
        after = tokenizer(example["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = (before + after)[:max_length]
        labels = ids if loss_on == "prompt-and-response" else ([-100] * len(before) + after)[:max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(labels)}

    with quiet():
        encoded = examples.map(encode, remove_columns=examples.column_names, load_from_cache_file=False)
        # A prompt that fills the whole length leaves nothing to learn from.
        return encoded.filter(lambda e: any(label != -100 for label in e["labels"]), load_from_cache_file=False)


@functools.lru_cache(maxsize=256)
def _adaptable(source: hub.Source, how: str, layers: str, hyper: str) -> None:
    """Applies the method to the model's architecture on the meta device: shapes are checked, nothing is loaded."""
    from ether.methods import adapt as methods

    with hub.explained(source, "model", "instruct.model.path"), quiet():
        config = transformers.AutoConfig.from_pretrained(source.location, **source.pin)
    with torch.device("meta"), quiet():
        model = transformers.AutoModelForCausalLM.from_config(config)
    values = json.loads(hyper) | methods.step_values(100)
    adapted = methods.adapt(model, json.loads(how), layers=layers, head=(), task_type="CAUSAL_LM", values=values)
    if methods.trainable(adapted) == 0 and json.loads(how)["kind"] != "none":
        raise ConfigurationError(f"{how} leaves nothing to train on {source.name}.")


EXPERIMENT = Instruct()
