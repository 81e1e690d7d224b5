"""Zero-shot multiple choice with lm-evaluation-harness: MMLU, ARC, TruthfulQA MC1 and MC2 (Sec. 5.2.2, Table 5).

The prompts are those shipped with the harness. This module sets the source of the questions (a hub revision, a folder with
the layout of the hub, or another split for choosing learning rates). At the small scale the harness runs the tasks of
`ether.measures.language_tasks`, which use the small model's vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ether import hub
from ether.errors import MissingResourceError, one_of
from ether.results import atomic, digest, write_text

# For each benchmark: the shipped file of the harness, the data set's configuration, splits (reported, tuning) and columns.
BENCHMARKS: dict[str, dict[str, Any]] = {
    "mmlu": {
        "config": "all",
        "splits": {"reported": "test", "tuning": "validation"},
        "columns": ("question", "subject", "choices", "answer"),
    },
    "arc_challenge": {
        "file": "arc/arc_challenge.yaml",
        "config": "ARC-Challenge",
        "splits": {"reported": "test", "tuning": "validation"},
        "columns": ("question", "choices", "answerKey"),
    },
    # TruthfulQA has one split only, so settings cannot be chosen on a split that is not reported.
    "truthfulqa_mc1": {
        "file": "truthfulqa/truthfulqa_mc1.yaml",
        "config": "multiple_choice",
        "splits": {"reported": "validation"},
        "columns": ("question", "mc1_targets"),
    },
    "truthfulqa_mc2": {
        "file": "truthfulqa/truthfulqa_mc2.yaml",
        "config": "multiple_choice",
        "splits": {"reported": "validation"},
        "columns": ("question", "mc2_targets"),
    },
}
FACTS = "facts_"  # prefix of the task names for the world of facts, followed by the names of the harness
SUBJECT = "mmlu_"  # every MMLU subject is a task of this name


def shipped_folder() -> Path:
    """The folder of the installed harness's task files."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


def split_of(benchmark: str, which: str) -> str:
    """The data set's split for `which` (reported | tuning).

    Raises:
        ConfigurationError: no such benchmark, or it has no such split.
    """
    if benchmark not in BENCHMARKS:
        raise one_of("benchmark", benchmark, BENCHMARKS, "instruct.evaluation.tasks")
    splits = BENCHMARKS[benchmark]["splits"]
    if which not in splits:
        raise one_of("split", which, splits, f"instruct.evaluation.split for {benchmark}")
    return splits[which]


def check_questions(benchmark: str, source: hub.Source, split: str, setting: str) -> None:
    """Checks that every question of a folder's file has choices, and an answer among them.

    The harness would stop at such a question, after the training.

    Args:
        benchmark: one of `BENCHMARKS`.
        source: its data set, in a folder.
        split: the data set's split.
        setting: named in the error message.

    Raises:
        MissingResourceError: no such file, a missing column, or questions that cannot be scored.
    """
    entry = BENCHMARKS[benchmark]
    hub.check_columns(source, entry["config"], split, entry["columns"], setting)
    rows = hub.load_split(source, entry["config"], split, entry["columns"], setting)
    bad = [number for number, row in enumerate(rows) if not _has_answer(benchmark, row)]
    if bad:
        file, more = hub.split_file(source, entry["config"], split), " ..." if len(bad) > 5 else ""
        raise MissingResourceError(
            f"{len(bad)} of {len(rows)} questions in {file} have no choices, or an answer that is not among them (rows "
            f"{', '.join(map(str, bad[:5]))}{more}, counted from 0). Remove or mend these rows: the benchmark cannot be "
            "scored with them."
        )


def _has_answer(benchmark: str, row: Mapping[str, Any]) -> bool:
    if benchmark == "mmlu":
        return isinstance(row["answer"], int) and 0 <= row["answer"] < len(row["choices"] or ())
    if benchmark == "arc_challenge":
        choices = row["choices"] or {}
        labels, texts = list(choices.get("label") or ()), list(choices.get("text") or ())
        return len(labels) == len(texts) and row["answerKey"] in labels
    targets = row[f"{benchmark.removeprefix('truthfulqa_')}_targets"] or {}
    labels, texts = list(targets.get("labels") or ()), list(targets.get("choices") or ())
    return len(labels) == len(texts) and 1 in labels


def write_tasks(sources: Mapping[str, hub.Source], which: str, folder: Path) -> list[str]:
    """Writes task files for the harness with its shipped prompts and the given data, one file for each task.

    Args:
        sources: benchmark name -> data set.
        which: reported | tuning.
        folder: output folder; if MMLU's data are in a folder, it also gets one parquet file for each subject and split.

    Returns:
        The names of the tasks.

    Raises:
        ConfigurationError: unknown benchmark, or a benchmark without such a split.
        MissingResourceError: a file is missing.
    """
    shipped, names = shipped_folder(), []
    for benchmark, source in sources.items():
        split, entry = split_of(benchmark, which), BENCHMARKS[benchmark]
        if benchmark == "mmlu":
            for file in sorted((shipped / "mmlu" / "default").glob("mmlu_*.yaml")):
                subject = file.stem.removeprefix(SUBJECT)
                data = _subject_files(source, folder, split).get(subject) if source.folder else None
                if source.folder and data is None:
                    continue  # the folder contains only some of the subjects
                names.append(_write_task(folder, file.stem, file, source, subject, data, test_split=split))
            continue
        if source.folder is not None:
            files = {split: hub.split_file(source, entry["config"], split)}
            if benchmark == "arc_challenge" and split != "test":
                files["test"] = files[split]
        else:
            files = None
        splits = {} if benchmark.startswith("truthfulqa") else {"test_split": split, "training_split": None}
        if benchmark == "arc_challenge" and source.folder is not None:
            splits["validation_split"] = None
        names.append(_write_task(folder, benchmark, shipped / entry["file"], source, entry["config"], files, **splits))
    return names


def _write_task(
    folder: Path,
    name: str,
    include: Path,
    source: hub.Source,
    config: str,
    files: Mapping[str, Path] | None,
    **more: Any,
) -> str:
    content: dict[str, Any] = {"include": str(include), "task": name, **more}
    if files is None:
        content |= {"dataset_path": source.name, "dataset_name": config, "dataset_kwargs": source.pin}
    else:
        kind = "parquet" if next(iter(files.values())).suffix == ".parquet" else "json"
        places = {split: str(file.resolve()) for split, file in files.items()}
        content |= {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": places}}
    write_text(yaml.safe_dump(content), folder / f"{name}.yaml")
    return name


@functools.lru_cache(maxsize=8)
def _subject_files(source: hub.Source, folder: Path, split: str) -> dict[str, dict[str, Path]]:
    """subject -> {split: file}. The harness requires one file for each subject; the hub has one file for all subjects."""
    import pyarrow.compute
    import pyarrow.parquet

    assert source.folder is not None
    found: dict[str, dict[str, Path]] = {}
    for part in (split, "dev"):
        whole = hub.split_file(source, "all", part)
        table = pyarrow.parquet.read_table(whole)
        for subject in sorted(set(table["subject"].to_pylist())):
            file = folder / "mmlu" / subject / f"{part}.parquet"
            if not file.is_file():
                with atomic(file) as temporary:
                    pyarrow.parquet.write_table(table.filter(pyarrow.compute.equal(table["subject"], subject)), temporary)
            found.setdefault(subject, {})[part] = file
    return {subject: files for subject, files in found.items() if split in files}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the harness's log messages for every request."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _compile_templates_once() -> None:
    """The harness compiles a task's templates for every question again, which takes longer than answering it."""
    from lm_eval.utils import env

    compiled = functools.lru_cache(maxsize=256)(env.from_string)  # a task's choices may be templates, too, one for each question
    setattr(env, "from_string", compiled)  # noqa: B010 (a method)


def load_tasks(tasks: Sequence[Any], folder: Path | None = None) -> dict[str, Any]:
    """The harness's zero-shot task objects with loaded data, which can be used for many runs.

    Args:
        tasks: names of tasks whose files `write_tasks` wrote to `folder`, or complete task and group dictionaries.
        folder: folder of the task files.

    Raises:
        MissingResourceError: the harness finds none of the tasks.
    """
    import datasets

    datasets.disable_progress_bars()
    with _quiet():
        from lm_eval.tasks import TaskManager

        _compile_templates_once()
        loaded = TaskManager(include_path=str(folder) if folder else None, include_defaults=False).load(list(tasks))
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=0)
    if not loaded["tasks"]:
        raise MissingResourceError(f"The harness found none of the tasks {', '.join(map(str, tasks))[:200]}.")
    return dict(loaded)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    batch_size: int,
    max_length: int | None = None,
    limit: int | None = None,
    samples: bool = False,
) -> dict[str, Any]:
    """The harness's results for a causal language model, zero-shot.

    Args:
        model: the model on its device, including adapters. It is set to evaluation mode.
        tasks: from `load_tasks`.
        batch_size: answer choices in one forward pass; affects the scores by rounding only.
        max_length: maximum number of tokens of a prompt; the model's limit if None.
        limit: number of questions of each task; all if None.
        samples: also return the log-likelihoods of every question, under ``samples``.

    Returns:
        The harness's results: ``results`` by task, ``n-samples``, ``versions``, and ``samples`` if requested.
    """
    with _quiet():
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        class WithoutProgressBars(HFLM):
            """The harness's model without progress bars, which no environment variable disables."""

            def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
                return super().loglikelihood(requests, disable_tqdm=True)

        model.eval()
        wrapped = WithoutProgressBars(
            pretrained=model,  # type: ignore[arg-type]
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            add_bos_token=tokenizer.bos_token_id is not None,
        )
        found = lm_eval.evaluate(
            lm=wrapped, task_dict=dict(tasks), limit=limit, bootstrap_iters=0, log_samples=samples, verbosity="ERROR"
        )
    assert found is not None  # None is returned only by secondary processes of a distributed run
    return dict(found)


@torch.inference_mode()
def loss_of(
    model: nn.Module, examples: Any, collate: Callable[[list[Any]], Mapping[str, torch.Tensor]], batch_size: int
) -> float:
    """The mean negative log-likelihood of a labelled token in nats, over all tokens of all examples.

    Args:
        model: a causal language model on its device, including adapters. It is set to evaluation mode.
        examples: mappings with ``input_ids``, ``attention_mask`` and ``labels`` (-100: not counted).
        collate: makes a padded batch of tensors of a list of examples.
        batch_size: number of examples in a forward pass; affects the loss by rounding only.
    """
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little padding
    for start in range(0, len(by_length), batch_size):
        batch = collate([examples[i] for i in by_length[start : start + batch_size]])
        counted = int((batch["labels"][:, 1:] != -100).sum())  # the first token is not predicted
        total += counted * float(model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss)
        tokens += counted
    return total / tokens


def measurements(found: Mapping[str, Any]) -> dict[str, float]:
    """The reported scores, in percent, from the harness's results.

    ``mmlu`` is the accuracy over all questions (as in the harness's group), ``mmlu_macro`` the mean over subjects;
    ``arc`` and ``arc_norm`` are accuracy and accuracy by length-normalised likelihood; ``tru1`` and ``tru2`` TruthfulQA's MC1
    accuracy and MC2 probability mass. ``score`` is the mean of the available ones of mmlu, arc, tru1 and tru2.
    """
    results = {name.removeprefix(FACTS): measured for name, measured in found["results"].items()}
    counts = {name.removeprefix(FACTS): count for name, count in found["n-samples"].items()}
    scores: dict[str, float] = {}
    subjects = {name: 100 * float(r["acc,none"]) for name, r in results.items() if name.startswith(SUBJECT) and name in counts}
    if subjects:
        sizes = {name: counts[name]["effective"] for name in subjects}
        scores["mmlu"] = math.fsum(subjects[n] * sizes[n] for n in subjects) / sum(sizes.values())
        scores["mmlu_macro"] = statistics.fmean(subjects.values())
    named = {"arc_challenge": "arc", "truthfulqa_mc1": "tru1", "truthfulqa_mc2": "tru2"}
    for task, name in named.items():
        if task in results:
            scores[name] = 100 * float(results[task]["acc,none"])
            if "acc_norm,none" in results[task]:
                scores[f"{name}_norm"] = 100 * float(results[task]["acc_norm,none"])
    main = [scores[name] for name in ("mmlu", "arc", "tru1", "tru2") if name in scores]
    return scores | subjects | {"score": statistics.fmean(main)}


def tasks_folder(cache: Path, sources: Mapping[str, hub.Source], which: str) -> Path:
    """The folder of task files for these sources; other sources have another folder."""
    key = {name: [source.name, str(source.folder), source.revision] for name, source in sources.items()}
    return cache / f"{which}-{digest(key)}"
