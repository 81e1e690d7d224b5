"""The mini-language world: GLUE's formats, balance, determinism, and splits that share nothing they should not."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from ether.errors import ConfigurationError
from ether.worlds import language

# The columns and numbers of labels of GLUE, repeated here by hand.
COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
LABELS = {"cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2}
SIZES = {"train": 300, "validation": 120, "tuning": 60}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    language.write(folder, sizes=SIZES)
    return folder


def frames(world: Path, task: str) -> dict[str, pd.DataFrame]:
    validation = "validation_matched" if task == "mnli" else "validation"
    folder = world / "datasets" / "world" / "glue" / task
    assert sorted(f.name for f in folder.iterdir()) == sorted(f"{s}.parquet" for s in ("train", "tuning", validation))
    return {split: pd.read_parquet(folder / f"{split}.parquet") for split in ("train", validation, "tuning")}


def words(frame: pd.DataFrame, task: str) -> set[str]:
    return {word for column in COLUMNS[task] for text in frame[column] for word in text.split()}


@pytest.mark.parametrize("task", COLUMNS)
def test_format_and_balance(world: Path, task: str) -> None:
    assert tuple(language.TASKS) == tuple(COLUMNS)
    for frame, size in zip(frames(world, task).values(), (300, 120, 60), strict=True):
        assert list(frame.columns) == [*COLUMNS[task], "label", "idx"]
        assert list(frame["idx"]) == list(range(size))
        if task == "stsb":
            assert frame["label"].between(0, 5).all()
            assert frame["label"].std() > 1.2 and frame["label"].nunique() > 15
        else:
            assert set(Counter(frame["label"]).values()) == {size // LABELS[task]}


@pytest.mark.parametrize("task", COLUMNS)
def test_splits_share_no_example_and_training_lacks_the_held_out_words(world: Path, task: str) -> None:
    train, validation, tuning = frames(world, task).values()
    texts = [set(map(tuple, frame[list(COLUMNS[task])].to_numpy())) for frame in (train, validation, tuning)]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 480
    unseen = language.held_out()
    assert not words(train, task) & unseen
    assert len(words(validation, task) & unseen) > 20
    assert words(train, task) | words(validation, task) <= set(language.vocabulary())


def test_a_quarter_of_the_concepts_is_held_out() -> None:
    concepts = language.lexicon().concepts()
    gone = [c for c in concepts if set(c.names) <= language.held_out()]
    assert 0.2 < len(gone) / len(concepts) < 0.3
    assert language.held_out(0) != language.held_out(1)


def test_no_word_means_two_things() -> None:
    forms = [w for c in language.lexicon().concepts() for w in c.names]
    forms += [language.inflect(w) for c in language.lexicon().concepts() if c.kind in ("noun", "verb") for w in c.names]
    assert [w for w, n in Counter(forms).items() if n > 1] == []
    assert not set(forms) & {*language.FUNCTION_WORDS, *language.INTENSIFIERS, *language.PREPOSITIONS}


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    language.write(tmp_path / "again", sizes=SIZES)
    language.write(tmp_path / "other", seed=1, sizes=SIZES)
    files = sorted(p.relative_to(world) for p in world.rglob("*.parquet"))
    assert len(files) == 24 and not list(world.rglob("*.tmp"))
    assert files == sorted(Path(f) for f in language.files({"seed": 0, "sizes": SIZES}))
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (world / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (world / file).read_bytes()


def test_loads_with_datasets(world: Path) -> None:
    from datasets import load_dataset

    file = world / "datasets" / "world" / "glue" / "rte" / "train.parquet"
    data = load_dataset("parquet", data_files={"train": str(file)}, cache_dir=str(world / "cache"))["train"]
    assert data.features["label"].names == ["entailment", "not_entailment"]


CONCEPT = {
    form: concept
    for concept in language.lexicon().concepts()
    for name in concept.names
    for form in (name, language.inflect(name))
}


def meant(text: str) -> Counter[tuple[str, ...]]:
    """The concepts of a sentence, whichever of their names it uses."""
    return Counter(CONCEPT[w].names for w in text.split() if w in CONCEPT)


def said(text: str) -> Counter[frozenset[tuple[tuple[str, ...], int]]]:
    """The concepts of each clause of a compound sentence; the order of the clauses does not matter."""
    return Counter(frozenset(meant(clause).items()) for clause in text.split(" and "))


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_paraphrases_keep_every_concept_in_its_clause(world: Path, task: str) -> None:
    first, second = COLUMNS[task]
    exchanged = 0
    for row in frames(world, task)["train"].to_dict("records"):
        assert (said(row[first]) == said(row[second])) == (row["label"] == 1)
        exchanged += row["label"] == 0 and meant(row[first]) == meant(row[second])
    assert exchanged > 0.2 * 150  # of the other pairs: the same words, said of each other


CLASS_OF = {form: noun.family for nouns in language.lexicon().nouns.values() for noun in nouns for form in noun.names}
CLASS_OF |= {language.inflect(form): family for form, family in CLASS_OF.items()}
CLASS_NAMES = {form: name for name in language.NOUNS for form in (name, language.inflect(name))}


def follows(clause: list[str], sentence: list[str]) -> bool:
    """Whether a clause without adverb and negation entails a sentence: noun by noun, and no verb or adjective that is new."""
    nouns = [word for word in clause if word in CLASS_OF]
    general = [word for word in sentence if word in CLASS_OF or word in CLASS_NAMES]
    others = {CONCEPT[word].names for word in clause if word in CONCEPT and word not in CLASS_OF}
    return len(nouns) == len(general) and all(
        CLASS_NAMES[g] == CLASS_OF[n] if g in CLASS_NAMES else CONCEPT[g] == CONCEPT[n]
        for n, g in zip(nouns, general, strict=True)
    ) and {CONCEPT[word].names for word in sentence if word in CONCEPT and word not in CLASS_OF} <= others  # fmt: skip


def test_a_sentence_follows_from_one_clause_of_a_compound(world: Path) -> None:
    for row in frames(world, "rte")["train"].to_dict("records"):
        clauses = [clause.split() for clause in row["sentence1"].split(" and ")]
        assert len(clauses) == 2
        assert any(follows(clause, row["sentence2"].split()) for clause in clauses) == (row["label"] == 0), row


def test_every_example_fits_the_encoder(world: Path) -> None:
    for task, columns in COLUMNS.items():
        for frame in frames(world, task).values():
            tokens = sum(frame[column].str.split().str.len() for column in columns) + len(columns) + 1
            assert tokens.max() <= 40


def test_similarity_falls_with_what_is_changed(world: Path) -> None:
    frame = frames(world, "stsb")["train"]
    shared = [(meant(a) & meant(b)).total() / meant(a).total() for a, b in zip(frame.sentence1, frame.sentence2, strict=True)]
    assert frame["label"].corr(pd.Series(shared)) > 0.9


def test_a_third_person_verb_follows_a_singular_subject(world: Path) -> None:
    """Number agreement of first noun and verb holds in acceptable sentences and is often broken in the others."""
    broken = Counter[int]()
    for row in frames(world, "cola")["train"].to_dict("records"):
        kinds = [(CONCEPT[w].kind, w not in CONCEPT[w].names) for w in row["sentence"].split() if w in CONCEPT]
        nouns, verbs = ([s for kind, s in kinds if kind == k] for k in ("noun", "verb"))
        if nouns and verbs and "not" not in row["sentence"].split():
            broken[row["label"]] += nouns[0] == verbs[0]
    assert broken[1] == 0
    assert broken[0] > 30


def test_corpus_is_endless_deterministic_and_within_the_vocabulary() -> None:
    documents = list(itertools.islice(language.documents(3), 2000))
    assert documents == list(itertools.islice(language.documents(3), 2000))
    assert documents != list(itertools.islice(language.documents(4), 2000))
    used = {word for pair in documents for text in pair for word in text.split()}
    assert used <= set(language.vocabulary())
    openings = {second.split()[0] for _, second in documents}
    assert openings == {word for pair in language.CONNECTIVES.values() for word in pair}


def test_unknown_split_and_task_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'test'"):
        language.write(tmp_path, sizes={"test": 10})
    with pytest.raises(ConfigurationError, match="wnli"):
        language.examples("wnli")
