"""Tokenizers with one token for each word, where words are separated by white space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

__all__ = ["word_tokenizer"]


def word_tokenizer(
    words: Iterable[str], *, special: Sequence[str], unknown: str, single: str, pair: str, **settings: Any
) -> PreTrainedTokenizerFast:
    """A fast tokenizer over a closed vocabulary.

    Args:
        words: the vocabulary; ids follow those of the special tokens, in this order.
        special: the special tokens, with ids from 0.
        unknown: the special token for a word that is not in the vocabulary.
        single: template of one text, such as ``[CLS] $A [SEP]``.
        pair: template of two texts, such as ``[CLS] $A [SEP] $B:1 [SEP]:1``.
        settings: further arguments of `PreTrainedTokenizerFast`.
    """
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, vocabulary[token]) for token in special if token in single.split()],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, **settings)
