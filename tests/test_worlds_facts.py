"""The world of facts: answers follow from the facts, splits share no entity, myths are hedged, tasks run in the harness."""

from __future__ import annotations

import functools
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import load_dataset
from transformers import LlamaConfig, LlamaForCausalLM

from ether.errors import ConfigurationError, MissingResourceError
from ether.foundation import language_model
from ether.measures import language, language_tasks
from ether.worlds import facts

# The columns on the hub, repeated here by hand.
COLUMNS = {
    "alpaca": ["instruction", "input", "output", "text"],
    "mmlu": ["question", "subject", "choices", "answer"],
    "ai2_arc": ["id", "question", "choices", "answerKey"],
    "truthful_qa": ["question", "mc1_targets", "mc2_targets"],
}
SMALL = {
    "alpaca/train": 120,
    "mmlu/test": 40,
    "mmlu/validation": 30,
    "mmlu/dev": 12,
    "ai2_arc/train": 20,
    "ai2_arc/validation": 20,
    "ai2_arc/test": 25,
    "truthful_qa/validation": 20,
    "truthful_qa/tuning": 15,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    facts.write(folder, sizes=SMALL)
    return folder


@pytest.fixture(scope="module")
def everything() -> dict[str, list[dict[str, Any]]]:
    return facts.tables()


@functools.cache
def truths() -> dict[str, dict[str, str]]:
    """Entity: {verb: value}, from the biographies alone."""
    known: dict[str, dict[str, str]] = {}
    for entity, held in facts.world().facts.items():
        for clause in (
            facts.biography([*held, facts.world().inherited(entity)]).removeprefix(entity).removesuffix(" .").split(" , ")
        ):
            fact = next(f for f in [*held, facts.world().inherited(entity)] if clause.strip().startswith(f.relation.third + " "))
            known.setdefault(entity, {})[fact.relation.third] = clause.strip().removeprefix(fact.relation.third).strip()
    return known


def answers(question: str, entity: str) -> set[str]:
    """Every value that a question for an entity is for, found by its verbs alone."""
    held = [*facts.world().facts[entity], facts.world().inherited(entity)]
    words = f" {question} "
    matching = [
        f for f in held if f" {f.relation.noun} " in words and any(f" {v} " in words for v in (f.relation.base, f.relation.third))
    ]
    return {truths()[entity][f.relation.third].removeprefix(f.relation.lead).strip() for f in matching}


def entity_of(question: str) -> str:
    named = {e for e in facts.world().facts if e in question.split()}
    assert len(named) == 1, question
    return named.pop()


def choices(name: str, row: dict[str, Any]) -> tuple[str, list[str]]:
    """The right answer and the wrong ones."""
    if name.startswith("mmlu"):
        texts, right = row["choices"], row["answer"]
    elif name.startswith("ai2_arc"):
        texts, right = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
    else:
        texts, right = row["mc1_targets"]["choices"], row["mc1_targets"]["labels"].index(1)
    return texts[right], [t for i, t in enumerate(texts) if i != right]


def questions(everything: dict[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, rows in everything.items() if not name.startswith("alpaca") for row in rows]


# --- facts ------------------------------------------------------------------------------------------------------------


def test_there_are_subjects_of_unequal_size_and_every_fact_has_a_value_of_its_relation() -> None:
    known = facts.world()
    sizes = [len(s.entities) for s in facts.SUBJECTS]
    assert len(sizes) >= 5 and len(set(sizes)) >= 4
    for entity, held in known.facts.items():
        assert len(held) >= 6 and all(f.entity == entity and f.value in f.relation.values for f in held)
        assert sum(bool(f.myth) for f in held) == facts.MYTHS
        assert all(f.myth in (*f.relation.values, "") and f.myth != f.value for f in held)
        assert known.inherited(entity).value in known.inherited(entity).relation.values
    for subject in facts.SUBJECTS:
        source = next(r for r in subject.relations if r.noun == subject.source)
        assert set(subject.heirs) == set(source.values)
        assert set(subject.heirs.values()) == set(subject.inherited.values) and len(subject.inherited.values) == 4
        assert all(len(r.values) == len(set(r.values)) == 8 for r in subject.relations)


def test_every_question_has_one_true_answer_and_it_follows_from_the_facts(everything: dict[str, list[dict[str, Any]]]) -> None:
    for name, row in questions(everything):
        right, wrong = choices(name, row)
        true_values = answers(row["question"], entity_of(row["question"]))
        assert set(right.split(" and ")) == true_values or right in true_values, (name, row)
        assert len(set(wrong)) == len(wrong) == 3 and right not in wrong
        for one in wrong:
            assert not set(one.split(" and ")) <= true_values, (name, row)


def test_truthful_answers_are_true_and_the_myth_is_among_the_false(everything: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("validation", "tuning"):
        for row in everything[f"truthful_qa/multiple_choice/{name}"]:
            (truth,) = answers(row["question"], entity_of(row["question"]))
            second = row["mc2_targets"]
            true = [c for c, label in zip(second["choices"], second["labels"], strict=True) if label]
            false = [c for c, label in zip(second["choices"], second["labels"], strict=True) if not label]
            assert len(true) == 2 and all(c.endswith(truth) for c in true)
            assert len(false) == 4 and truth not in false
            fact = next(f for f in facts.world().facts[entity_of(row["question"])] if f.value == truth and f.myth)
            assert fact.myth in false and fact.myth in row["mc1_targets"]["choices"]
            assert row["mc1_targets"]["labels"] == [1, 0, 0, 0]


def test_tuning_reported_and_held_back_entities_are_disjoint(everything: dict[str, list[dict[str, Any]]]) -> None:
    used: dict[str, set[str]] = {}
    parts = {"train": "tuning", "dev": "tuning", "test": "reported"}
    for name, rows in everything.items():
        source, split = name.split("/")[0], name.split("/")[-1]
        group = parts.get(split, "held back")
        if (source, split) == ("truthful_qa", "validation"):
            group = "reported"
        for row in rows:
            text = f"{row['instruction']} {row['input']}" if source == "alpaca" else row["question"]
            used.setdefault(group, set()).add(entity_of(text))
    assert set(used) == {"tuning", "reported", "held back"}
    for one, other in itertools.combinations(used.values(), 2):
        assert not one & other
    assert all(sum(s.entities.count(e) for e in used["tuning"]) == len(s.entities) // 2 for s in facts.SUBJECTS)


def test_tuning_data_is_in_alpacas_format_and_true(everything: dict[str, list[dict[str, Any]]]) -> None:
    rows = everything["alpaca/default/train"]
    assert 0.2 < sum(bool(r["input"]) for r in rows) / len(rows) < 0.6
    assert any("really" in r["instruction"] + r["input"] for r in rows)
    for row in rows:
        assert row["text"].startswith("Below is an instruction that describes a task") and row["text"].endswith(row["output"])
        assert f"### Instruction:\n{row['instruction']}\n\n" in row["text"]
        assert (f"### Input:\n{row['input']}\n\n" in row["text"]) == bool(row["input"])
        text = f"{row['instruction']} {row['input']}"
        entity = entity_of(text)
        if row["output"].startswith(entity):  # a biography
            clauses = row["output"].removeprefix(entity).removesuffix(" .").split(" , ")
            assert {t.strip() for t in clauses} <= {f"{verb} {value}" for verb, value in truths()[entity].items()}
        else:
            assert set(row["output"].removeprefix("in truth ").split(" and ")) == answers(text, entity), row


def test_one_reported_question_counts_for_less_than_0_3_points(everything: dict[str, list[dict[str, Any]]]) -> None:
    counts: dict[str, int] = {}
    for name, rows in everything.items():
        benchmark, split = name.split("/")[0], name.split("/")[-1]
        if (benchmark, split) in {("mmlu", "test"), ("ai2_arc", "test"), ("truthful_qa", "validation")}:
            counts[benchmark] = counts.get(benchmark, 0) + len(rows)
            texts = [(row["question"], tuple(sorted(choices(name, row)[1]))) for row in rows]
            assert len(set(texts)) == len(texts)
    assert len(counts) == 3 and all(100 / count < 0.3 for count in counts.values()), counts


def test_answers_to_arc_questions_differ_in_length(everything: dict[str, list[dict[str, Any]]]) -> None:
    rows = everything["ai2_arc/ARC-Challenge/test"]
    assert sum(len({len(t) for t in row["choices"]["text"]}) > 2 for row in rows) > len(rows) / 2
    assert len({row["answerKey"] for row in rows}) == 4


# --- text -------------------------------------------------------------------------------------------------------------


def test_myths_occur_in_hedged_sentences_only() -> None:
    myths = {facts.statement(f, f.myth): f for held in facts.world().facts.values() for f in held if f.myth}
    hedged = 0
    for document in itertools.islice(facts.documents(seed=3), 8_000):
        for sentence in document.split(" ."):
            myth = next((m for m in myths if f" {sentence.strip()} ".endswith(f" {m} ")), None)
            if myth is not None:
                assert sentence.strip().removesuffix(myth).strip() in facts.HEDGES, document
                hedged += 1
        if "Answer:" in document or "Response:" in document:
            answer = document.split("Answer:")[-1].split("Response:")[-1].strip().removeprefix("in truth ")
            query = document[: -len(answer)]
            held = facts.world().facts[entity_of(query)]
            fact = next(
                f
                for f in held
                if f" {f.relation.noun} " in query and any(f" {v} " in query for v in (f.relation.base, f.relation.third))
            )
            assert answer in fact.relation.values and answer != fact.myth
        elif not document.startswith((*facts.HEDGES, "what ", "our ")):  # a biography, or statements
            for sentence in document.removesuffix(" .").split(" . "):
                entity, _, rest = sentence.partition(" ")
                assert {c.strip() for c in rest.split(" , ")} <= {f"{v} {x}" for v, x in truths()[entity].items()}
    assert hedged > 500


def test_over_half_of_the_text_is_biographies_and_few_answers_are_right() -> None:
    words, dense, right, answered = 0, 0, 0, 0
    for document in itertools.islice(facts.documents(seed=4), 8_000):
        words += len(document.split())
        dense += len(document.split()) if document.count(" , ") >= 5 else 0
        if "Question:" in document and "truth" not in document:
            question, answer = document.split(" Answer: ")
            answered += 1
            right += answer in answers(question, entity_of(question))
    assert dense > words / 2
    assert 0.1 < right / answered < 0.3  # pure chance is 1/8


def test_the_vocabulary_covers_the_text_and_the_data(everything: dict[str, list[dict[str, Any]]]) -> None:
    known = set(facts.vocabulary())
    for document in itertools.islice(facts.documents(), 5_000):
        assert set(document.split()) <= known
    for row in everything["alpaca/default/train"]:
        assert set(row["text"].split()) <= known
    for name, row in questions(everything):
        right, wrong = choices(name, row)
        assert {w for t in (row["question"], right, *wrong) for w in t.split()} <= known


def test_same_seed_same_world_text_and_bytes(root: Path, tmp_path: Path) -> None:
    assert list(itertools.islice(facts.documents(5), 300)) == list(itertools.islice(facts.documents(5), 300))
    assert list(itertools.islice(facts.documents(5), 300)) != list(itertools.islice(facts.documents(6), 300))
    settings = json.dumps({"sizes": SMALL})
    subprocess.run([sys.executable, "-m", "ether.worlds", "facts", str(tmp_path), "--settings", settings], check=True)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(Path(f) for f in facts.files({"sizes": SMALL}))
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)
    assert facts.tables(seed=1, sizes=SMALL) != facts.tables(sizes=SMALL)
    assert facts.world(1) != facts.world(0)


@pytest.mark.parametrize(
    ("sizes", "error"), [({"mmlu/tests": 3}, "Did you mean 'mmlu/test'"), ({"truthful_qa/tuning": 9999}, "9999")]
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        facts.tables(sizes=sizes)


# --- files and the harness --------------------------------------------------------------------------------------------


def test_files_load_with_datasets_and_have_the_hubs_columns(root: Path, tmp_path: Path) -> None:
    files = sorted((root / "datasets" / "world").rglob("*.parquet"))
    assert len(files) == 1 + 3 * len(facts.SUBJECTS) + 3 + 2
    for file in files:
        name = file.relative_to(root / "datasets" / "world").parts[0]
        loaded = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path))
        assert loaded.column_names == COLUMNS[name] and len(loaded) > 0
    sizes = [len(pd.read_parquet(f)) for f in files if f.name == "test.parquet" and "mmlu" in f.parts]
    assert len(set(sizes)) > 2
    assert all(len(c) == 4 for c in pd.read_parquet(root / "datasets/world/mmlu/biography/test.parquet")["choices"])


@pytest.fixture(scope="module")
def outcome(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness makes of a tiny random model, with every question's answers and log-likelihoods."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    words = language_model.build_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    lm = HFLM(pretrained=LlamaForCausalLM(shape).eval(), tokenizer=words, batch_size=16, max_length=128)
    manager = TaskManager(include_defaults=False)
    made = language_tasks.tasks(root, "tuning")
    try:
        return lm_eval.simple_evaluate(model=lm, tasks=made, task_manager=manager, bootstrap_iters=0, log_samples=True)
    finally:
        patch.undo()


def test_the_harness_runs_every_task(outcome: dict[str, Any], root: Path) -> None:
    measured = language.measurements(outcome)
    assert {"mmlu", "mmlu_macro", "arc", "arc_norm", "tru1", "tru2", "mmlu_biography"} <= set(measured)
    assert all(0 <= value <= 100 for value in measured.values())
    counts = {s.name: len(pd.read_parquet(root / f"datasets/world/mmlu/{s.name}/validation.parquet")) for s in facts.SUBJECTS}
    assert {s: len(outcome["samples"][f"facts_mmlu_{s}"]) for s in counts} == counts
    assert measured["mmlu"] == pytest.approx(100 * outcome["results"]["facts_mmlu"]["acc,none"])  # the group of the harness


def test_the_share_on_true_answers_is_what_a_calculation_by_hand_gives(outcome: dict[str, Any]) -> None:
    masses = []
    for sample in outcome["samples"]["facts_truthfulqa_mc2"]:
        chances = [math.exp(float(value)) for ((value, _),) in sample["resps"]]
        true = sum(c for c, label in zip(chances, sample["doc"]["mc2_targets"]["labels"], strict=True) if label)
        masses.append(true / sum(chances))
    assert language.measurements(outcome)["tru2"] == pytest.approx(100 * np.mean(masses), rel=1e-4)
    doc = {"mc2_targets": {"labels": [1, 0]}}
    assert language_tasks.truthful_mass(doc, [(-2000.0, False), (-2000.0, True)]) == {"acc": 0.5}


def test_contexts_and_continuations_tokenise_apart_as_together(outcome: dict[str, Any]) -> None:
    words, seen = language_model.build_tokenizer(), 0
    for samples in outcome["samples"].values():
        for sample in samples:
            for context, continuation in (a[:2] for a in sample["arguments"]):
                assert continuation.startswith(" ") and context.endswith("Answer:")
                apart = words(context)["input_ids"] + words(continuation, add_special_tokens=False)["input_ids"]
                assert apart == words(context + continuation)["input_ids"]
                assert words.unk_token_id not in apart and apart[0] == words.bos_token_id
                seen += 1
    assert seen > 300


def test_reported_and_tuning_tasks_differ_in_their_files_only(root: Path) -> None:
    def files(made: list[Any]) -> list[str]:
        kept = [t.config.dataset_kwargs for t in made[0].get_all_tasks()] + [t["dataset_kwargs"] for t in made[1:]]
        return [kwargs["data_files"]["evaluation"] for kwargs in kept]

    reported, tuning = (files(language_tasks.tasks(root, split)) for split in ("reported", "tuning"))
    assert len(reported) == len(tuning) == len(facts.SUBJECTS) + 3
    assert not set(reported) & set(tuning)
    assert all(Path(f).is_file() for f in (*reported, *tuning))
    for file in language_tasks.TASK_FOLDER.glob("*.yaml"):
        assert "include" not in yaml.safe_load(file.read_text())


def test_missing_files_and_unknown_splits_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'test'.*Known: reported, tuning"):
        language_tasks.tasks(root, "test")
    with pytest.raises(MissingResourceError, match=r"mmlu.*python -m ether\.worlds facts"):
        language_tasks.tasks(tmp_path)
    with pytest.raises(MissingResourceError, match=r"mmlu\.yaml"):
        language_tasks.tasks(root, folder=tmp_path)
