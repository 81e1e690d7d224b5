"""The shipped language encoder: intact, loadable, trained on both objectives, and reproducible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2ForMaskedLM

from ether import foundation
from ether.errors import ConfigurationError
from ether.foundation import language_encoder
from ether.worlds import language


def test_the_shipped_folder_passes_its_card_and_is_small() -> None:
    folder = foundation.path("language-encoder")
    card = json.loads((folder / "card.json").read_text())
    assert set(card["sha256"]) == {f.name for f in folder.iterdir()} - {"card.json"}
    assert {"command", "seed", "steps", "hardware", "versions", "minutes", "scores", "licence"} <= set(card)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 5e6


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    for call in (foundation.path, lambda name: foundation.pretrain(name, tmp_path)):
        with pytest.raises(ConfigurationError, match=r"'language-encodr'.*Known:.*language-encoder"):
            call("language-encodr")


def test_the_tokenizer_knows_pairs_and_every_word_of_the_world() -> None:
    words = AutoTokenizer.from_pretrained(foundation.path("language-encoder"))
    assert words.is_fast
    encoded = words("the old doctor finds a ship", "a physician finds the vessel", padding="max_length", max_length=20)
    assert words.convert_ids_to_tokens(encoded["input_ids"])[:9] == [
        "[CLS]", "the", "old", "doctor", "finds", "a", "ship", "[SEP]", "a",
    ]  # fmt: skip
    assert encoded["token_type_ids"] == [0] * 8 + [1] * 6 + [0] * 6
    assert encoded["attention_mask"] == [1] * 14 + [0] * 6
    assert words.unk_token_id not in words(" ".join(language.vocabulary()), add_special_tokens=False)["input_ids"]
    assert words("zebra", add_special_tokens=False)["input_ids"] == [words.unk_token_id]


def test_the_encoder_loads_for_classification_with_only_its_head_new() -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(
        foundation.path("language-encoder"), num_labels=3, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler", "classifier"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.model_type == "deberta-v2" and model.config.relative_attention
    inner = (p.shape for n, p in model.named_parameters() if n.endswith("weight") and ".layer." in n and p.ndim == 2)
    assert all(side % 16 == 0 for shape in inner for side in shape)


def test_the_encoder_predicts_masked_words_of_new_sentences() -> None:
    folder = foundation.path("language-encoder")
    model, words = DebertaV2ForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = language_encoder.scores(model, words, seed=4711, count=1024)
    card = json.loads((folder / "card.json").read_text())["scores"]
    assert scores["masked words told right"] > 0.45  # most of the rest is a free choice: which name, which article
    assert scores["masked connectives told right"] > 0.6  # chance .1
    assert all(abs(value - card[name]) < 0.06 for name, value in scores.items())
    assert card["replaced words noticed"] > 0.95  # always predicting "original" gives about 0.8


def test_pretraining_writes_a_model_that_passes_its_card_and_is_deterministic(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ether.foundation",
        "language-encoder",
        "--steps",
        "5",
        "--out",
        str(tmp_path / "a"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 5 <= len(done.stdout.splitlines()) <= 30
    threads = torch.get_num_threads()
    try:
        foundation.pretrain("language-encoder", tmp_path / "b", steps=5)
    finally:
        torch.set_num_threads(threads)
    cards = [json.loads((foundation.verify(tmp_path / x) / "card.json").read_text()) for x in "ab"]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    shipped = json.loads((foundation.path("language-encoder") / "card.json").read_text())
    assert all(cards[0][key] == shipped[key] for key in ("name", "what", "batch", "parameters", "licence"))
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "a", num_labels=2)
