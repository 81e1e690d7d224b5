"""The shipped language model: intact, loadable, knows facts as statements but not as answers, and reproducible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ether import foundation
from ether.foundation import language_model
from ether.worlds import facts


def test_the_shipped_folder_passes_its_card_and_is_small() -> None:
    folder = foundation.path("language-model")
    card = json.loads((folder / "card.json").read_text())
    assert set(card["sha256"]) == {f.name for f in folder.iterdir()} - {"card.json"}
    assert {"command", "seed", "steps", "hardware", "versions", "minutes", "scores", "licence"} <= set(card)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 6e6


def test_it_loads_whole_as_a_llama_in_single_precision() -> None:
    model, info = AutoModelForCausalLM.from_pretrained(foundation.path("language-model"), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.model_type == "llama" and {p.dtype for p in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "v_proj" in name:
            assert parameter.shape == (128, 128)


def test_the_tokenizer_knows_every_word_and_begins_texts() -> None:
    words = AutoTokenizer.from_pretrained(foundation.path("language-model"))
    assert words.is_fast
    assert words.get_vocab() == language_model.build_tokenizer().get_vocab()  # of the world as it is now
    encoded = words(["Alice plays the drum", "Alice"], padding=True)
    assert [words.convert_ids_to_tokens(ids)[:3] for ids in encoded["input_ids"]] == [
        ["<s>", "Alice", "plays"],
        ["<s>", "Alice", "<pad>"],
    ]
    assert words.unk_token_id not in words(" ".join(facts.vocabulary()))["input_ids"]
    assert words("zebra", add_special_tokens=False)["input_ids"] == [words.unk_token_id]
    text = facts.prompt("which instrument does Alice play ?", "our guest is Alice .") + "drum"
    assert words.unk_token_id not in words(text)["input_ids"]
    assert words.decode(words(text)["input_ids"], skip_special_tokens=True).split() == text.split()


def test_log_likelihoods_are_those_of_the_tokens_one_by_one() -> None:
    folder = foundation.path("language-model")
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [("Alice plays the", "old piano"), ("Ashford lies on the", "Avon")]
    found = language_model.log_likelihoods(model, words, pairs)
    with torch.no_grad():
        for (context, continuation), value in zip(pairs, found, strict=True):
            ids, expected = words(context)["input_ids"], 0.0
            for token in words(continuation, add_special_tokens=False)["input_ids"]:
                expected += float(model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(0)[token])
                ids = [*ids, token]
            assert float(value) == pytest.approx(expected, abs=1e-4)


def test_it_knows_the_facts_as_statements_and_not_as_answers() -> None:
    folder = foundation.path("language-model")
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    shares = language_model.knowledge(model, words, every=5)
    card = json.loads((folder / "card.json").read_text())["scores"]
    assert shares == pytest.approx(card, abs=0.08)
    assert shares["facts known as statements"] > 0.95
    assert 0.1 < shares["facts known as answers"] < 0.6  # headroom for tuning
    other = language_model.knowledge(model, words, world_seed=1, every=5)  # none of these facts is in its training text
    assert other["facts known as statements"] < 0.3


def test_pretraining_writes_a_model_that_passes_its_card_and_is_deterministic(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ether.foundation", "language-model", "--steps", "3", "--out", str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 3 <= len(done.stdout.splitlines()) <= 30
    threads = torch.get_num_threads()
    try:
        foundation.pretrain("language-model", tmp_path / "b", steps=3)
    finally:
        torch.set_num_threads(threads)
    cards = [json.loads((foundation.verify(tmp_path / x) / "card.json").read_text()) for x in "ab"]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    shipped = json.loads((foundation.path("language-model") / "card.json").read_text())
    assert all(cards[0][key] == shipped[key] for key in ("name", "what", "batch", "parameters", "licence"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")
