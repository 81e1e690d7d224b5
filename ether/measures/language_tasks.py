"""lm-evaluation-harness tasks over the world of facts: MMLU, ARC-Challenge and TruthfulQA MC1 and MC2, from local files.

The tasks are the YAML files of a folder (``workflow/tasks/facts``) with placeholders for the data files, MMLU's subjects, and
the function that computes MC2. `tasks` replaces the placeholders and returns the argument of
``lm_eval.simple_evaluate(tasks=...)``; neither the network nor the harness's task library is used:

    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    outcome = lm_eval.simple_evaluate(model=lm, tasks=tasks(root, "reported"), task_manager=manager, bootstrap_iters=0)
    ether.measures.language.measurements(outcome)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ether.errors import MissingResourceError, one_of

__all__ = ["SPLITS", "TASK_FOLDER", "tasks", "truthful_mass"]

TASK_FOLDER = Path(__file__).resolve().parents[2] / "workflow" / "tasks" / "facts"
SPLITS = {  # splits of each benchmark: reported, and tuning (for choosing learning rates)
    "reported": {"mmlu": "test", "ai2_arc": "test", "truthful_qa": "validation"},
    "tuning": {"mmlu": "validation", "ai2_arc": "validation", "truthful_qa": "tuning"},
}
SINGLE = {"arc_challenge": "ai2_arc", "truthfulqa_mc1": "truthful_qa", "truthfulqa_mc2": "truthful_qa"}  # YAML: data set
CONFIGURATION = {"ai2_arc": "ARC-Challenge", "truthful_qa": "multiple_choice"}


def truthful_mass(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The share of the model's probability on TruthfulQA's true answers (MC2).

    Args:
        doc: a question with ``mc2_targets.labels``, 1 for a true answer.
        results: the log-likelihood of each answer, and whether it is the greedy continuation.
    """
    logs = np.array([float(one) for one, _ in results])
    mass = np.exp(logs - logs.max())  # shifted, so that long answers do not underflow
    true = np.array(doc["mc2_targets"]["labels"]) == 1
    return {"acc": float(mass[true].sum() / mass.sum())}


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """A YAML structure with placeholders replaced: a whole string by any value, a part of a string by text."""
    if isinstance(value, dict):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, str):
        for name, new in values.items():
            if value == f"${name}":
                return new
            if isinstance(new, str):
                value = value.replace(f"${name}", new)
    return value


def _load(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise MissingResourceError(f"The evaluation task {file} is missing: restore it from the repository.")
    return _filled(yaml.safe_load(file.read_text(encoding="utf-8")), values)


def tasks(root: Path, split: str = "reported", *, folder: Path = TASK_FOLDER) -> list[Any]:
    """All four benchmarks as arguments for the harness: the group of MMLU's subjects, and three tasks as dictionaries.

    Args:
        root: the output folder of `ether.worlds.facts.write`.
        split: reported, or tuning for choosing hyperparameters; no question is in both.
        folder: the YAML files.

    Raises:
        ConfigurationError: no such split.
        MissingResourceError: a task or a data file is missing.
    """
    from lm_eval.api.group import Group, GroupConfig  # here, since it takes seconds to import
    from lm_eval.api.task import ConfigurableTask

    if split not in SPLITS:
        raise one_of("split", split, SPLITS, "the evaluation of instruction tuning")
    data = Path(root) / "datasets" / "world"

    def file(name: str, configuration: str) -> str:
        path = data / name / configuration / f"{SPLITS[split][name]}.parquet"
        if not path.is_file():
            raise MissingResourceError(
                f"{path} is missing: write the world of facts with `python -m ether.worlds facts {root}` or run the workflow."
            )
        return str(path)

    subjects = sorted(path.name for path in (data / "mmlu").glob("*") if path.is_dir())
    if not subjects:
        raise MissingResourceError(
            f"{data / 'mmlu'} has no subjects: write the world of facts with `python -m ether.worlds facts {root}`."
        )
    group = Group.from_config(GroupConfig(**_load(folder, "mmlu", subjects=[f"facts_mmlu_{s}" for s in subjects])))
    for subject in subjects:
        leaf = _load(folder, "mmlu_subject", subject=subject, data_files=file("mmlu", subject))
        group.add(ConfigurableTask(config=leaf))
    # The group is an object: if it were a dictionary, the harness would pass its fields to the tasks, which reject them.
    made: list[Any] = [group]
    for name, source in SINGLE.items():
        where = file(source, CONFIGURATION[source])
        made.append(_load(folder, name, data_files=where, truthful_mass=truthful_mass))
    return made
