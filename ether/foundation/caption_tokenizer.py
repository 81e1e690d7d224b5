"""The tokenizer of the captions, shared by the text-to-image model and by the CLIP among the image judges."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from ether.worlds import pictures

__all__ = ["LENGTH", "build_tokenizer", "encode"]

LENGTH = 20  # tokens of a caption, including begin, end and padding


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over the captions' words: each of them is one token, other words are split into letters.

    The merges are found here, the most frequent pair first and ties in order of spelling, until every word is one token;
    the trainer of the tokenizers library breaks ties at random.
    """
    letters, end = sorted(pre_tokenizers.ByteLevel.alphabet()), "</w>"
    spelled = [[*word[:-1], word[-1] + end] for word in [*pictures.vocabulary(), ","]]
    merges: list[Any] = []  # pairs of tokens
    while pairs := collections.Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in spelled:
            for i in range(len(word) - 2, -1, -1):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + end for letter in letters), *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def encode(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of captions, each of shape (captions, 20), padded as a diffusers pipeline pads."""
    encoded = tokenizer(list(captions), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
