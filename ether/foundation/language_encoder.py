"""``language-encoder``: a DeBERTa-v2 encoder pretrained without labels on the mini-language (`ether.worlds.language`).

Two objectives are trained together.

- *Masked words.* If words are masked evenly over a document, most of them follow from their neighbours, and the model never
  compares the two sentences. Therefore many documents lose many words of *one* sentence, which have to be inferred from the
  other sentence and the connective, and many lose only the connective.
- *Replaced words*, the objective of DeBERTaV3 (He et al., 2021). Some words of the second of two equivalent sentences are
  replaced, and a head on the last layer but one classifies each word as original or replaced.

Predicting a masked word mostly needs copying; detecting a replaced word needs comparing. With masked words alone the model
could not detect a single changed word after 3,000 steps (0.45 of paraphrases ranked above sentences with one change; chance is
0.5). With replaced words it learned to compare within a few hundred steps. One layer remains above the head's layer for
aggregation.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, PreTrainedTokenizerFast

from ether.foundation import card
from ether.foundation.pretraining import decay_groups, optimise, warm_up_and_decay
from ether.foundation.word_tokenizer import word_tokenizer
from ether.worlds import language

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# BATCH documents of each objective per step. After 4,000 steps a linear probe is within 3 points of full fine-tuning on
# paraphrases (98 of 100); half as many steps leave something to adapt.
STEPS, BATCH, RATE, WARM_UP = 2_000, 48, 1.0e-3, 200
MANY_SHARE, CONNECTIVE_SHARE = 0.4, 0.5  # of the documents: many words of one sentence masked, connective masked; rest: few words
REPLACED, WEIGHT = 0.2, 2.0  # share of words replaced, and the weight of that objective in the loss
MAX_LENGTH = 40
IGNORED = -100  # target of a token that is not predicted


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, ``[CLS] first [SEP] second [SEP]``, the second sentence with token type 1."""
    return word_tokenizer(
        language.vocabulary(),
        special=SPECIAL,
        unknown="[UNK]",
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def configuration(vocabulary_size: int) -> DebertaV2Config:
    """Three layers of width 128 with content-to-position attention; no dropout, because the corpus is unlimited."""
    settings: dict[str, Any] = {  # known to the model, but not parameters of the configuration class
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 128,
    }
    return DebertaV2Config(
        **settings,
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=0.06,  # at this width the usual 0.02 learns to compare sentences several times more slowly
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=2,
        relative_attention=True,
        pos_att_type=["c2p"],
        position_biased_input=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_dropout=0.0,
        pad_token_id=0,
    )


@dataclass(frozen=True)
class Batch:
    """Documents as tensors of shape (documents, length)."""

    ids: torch.Tensor  # tokens after masking or replacement
    types: torch.Tensor  # token types: 1 in the second sentence
    mask: torch.Tensor  # attention mask: 0 at padding
    targets: torch.Tensor  # what is predicted for a token, `IGNORED` elsewhere
    connective: torch.Tensor  # true where the target is a connective that is masked alone

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


class Collator:
    """Turns documents (pairs of sentences) into batches of either objective.

    Args:
        tokenizer: of `build_tokenizer`.
        seed: of the masks and replacements.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.ids = tokenizer.get_vocab()
        groups = language.interchangeable()
        self.order = torch.tensor([self.ids[word] for group in groups for word in group])  # the groups, concatenated
        self.start, self.count = (torch.zeros(len(tokenizer), dtype=torch.long) for _ in range(2))  # of each token's group
        for i, group in enumerate(groups):
            members = torch.tensor([self.ids[word] for word in group])
            self.start[members], self.count[members] = sum(map(len, groups[:i])), len(group)
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, documents: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and token types of documents, padded, each of shape (documents, length)."""
        rows, types = [], []
        for first, second in documents:
            a, b = ([self.ids[word] for word in sentence.split()] for sentence in (first, second))
            rows.append([self.ids["[CLS]"], *a, self.ids["[SEP]"], *b, self.ids["[SEP]"]])
            types.append([0] * (len(a) + 2) + [1] * (len(b) + 1))
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return ids, torch.tensor([row + [0] * (length - len(row)) for row in types])

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator)

    def substitutes(self, ids: torch.Tensor) -> torch.Tensor:
        """For each token, a random word of the same part of speech (possibly the same word)."""
        chosen = self.start[ids] + (self._uniform(*ids.shape) * self.count[ids]).long()
        return self.order[chosen.clamp(max=len(self.order) - 1)]

    def replaced(self, documents: list[tuple[str, str]]) -> Batch:
        """Documents whose second sentence has words replaced; targets are 1 there and 0 at its other words."""
        ids, types = self.encode(documents)
        candidates = (types == 1) & (self.count[ids] > 1)
        chosen = candidates & (self._uniform(*ids.shape) < REPLACED)
        inputs = torch.where(chosen, self.substitutes(ids), ids)
        targets = torch.where(candidates, (inputs != ids).long(), IGNORED)
        return Batch(inputs, types, (ids != 0).long(), targets, torch.zeros_like(candidates))

    def masked(self, documents: list[tuple[str, str]]) -> Batch:
        """Documents with words masked; targets are the original tokens."""
        ids, types = self.encode(documents)
        count, length = ids.shape
        word = ids >= len(SPECIAL)
        second = types == 1
        connective = second & (second.cumsum(1) == 1)
        clause = word & ~connective
        kind = self._uniform(count, 1)
        side = clause & (second == (self._uniform(count, 1) < 0.5))
        chance = self._uniform(count, length)
        many = (kind < MANY_SHARE) & side & (chance < 0.4)  # many words of one sentence
        alone = (kind >= MANY_SHARE) & (kind < MANY_SHARE + CONNECTIVE_SHARE) & connective
        few = (kind >= MANY_SHARE + CONNECTIVE_SHARE) & word & (chance < 0.15)  # any word
        chosen = many | alone | few
        # Of the chosen words a quarter is left and a quarter is replaced by another word of the same part of speech, where
        # BERT uses a tenth each: whether a visible word is the right one can only be inferred from the other sentence.
        treatment = self._uniform(count, length)
        inputs = torch.where(
            (treatment < 0.5) | alone, self.ids["[MASK]"], torch.where(treatment < 0.75, self.substitutes(ids), ids)
        )
        return Batch(torch.where(chosen, inputs, ids), types, (ids != 0).long(), torch.where(chosen, ids, IGNORED), alone)


def batches(
    collate: Callable[[list[tuple[str, str]]], Batch], documents: Iterator[tuple[str, str]], size: int
) -> Iterator[Batch]:
    """An endless stream of batches. Two are made at a time, of the shorter and the longer documents, to reduce padding."""
    while True:
        pool = sorted((next(documents) for _ in range(2 * size)), key=lambda pair: len(" ".join(pair).split()))
        yield collate(pool[:size])
        yield collate(pool[size:])


def word_logits(model: DebertaV2ForMaskedLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the masked words, of shape (masked words, vocabulary), and the original words."""
    hidden = model.deberta(batch.ids, attention_mask=batch.mask, token_type_ids=batch.types)[0]
    predicted = batch.targets != IGNORED
    return model.cls(hidden[predicted]), batch.targets[predicted]


def replacement_logits(model: DebertaV2ForMaskedLM, head: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of "this word was replaced" from the last layer but one, and the targets (0. or 1.), both of shape (words,)."""
    hidden = model.deberta(
        batch.ids, attention_mask=batch.mask, token_type_ids=batch.types, output_hidden_states=True
    ).hidden_states[-2]
    predicted = batch.targets != IGNORED
    return head(hidden[predicted])[..., 0], batch.targets[predicted].float()


@torch.no_grad()
def scores(model: DebertaV2ForMaskedLM, tokenizer: PreTrainedTokenizerFast, *, seed: int, count: int = 4096) -> dict[str, float]:
    """Accuracy for masked words, and for connectives that are masked alone (either word of a connective counts as correct).

    Measured on at least `count` documents of the given seed.
    """
    model.eval()
    ids, meaning = tokenizer.get_vocab(), torch.arange(len(tokenizer))
    for pair in language.CONNECTIVES.values():
        meaning[ids[pair[1]]] = ids[pair[0]]
    correct, total = {False: 0, True: 0}, {False: 0, True: 0}  # keys: is it a connective masked alone?
    stream = batches(Collator(tokenizer, seed).masked, language.documents(seed), 256)
    for _ in range(math.ceil(count / 256)):
        batch = next(stream)
        logits, target = word_logits(model, batch)
        right = torch.eq(meaning[logits.argmax(-1)], meaning[target])
        alone = batch.connective[batch.targets != IGNORED]
        for which in correct:
            correct[which] += int(right[alone == which].sum())
            total[which] += int((alone == which).sum())
    return {
        "masked words told right": round(correct[False] / total[False], 4),
        "masked connectives told right": round(correct[True] / total[True], 4),
    }


@torch.no_grad()
def _detection_accuracy(model: DebertaV2ForMaskedLM, head: nn.Module, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Accuracy of the replacement head on 1,024 fresh pairs (always predicting "original" gives about 0.8)."""
    stream = batches(Collator(tokenizer, seed).replaced, language.restatements(seed), 256)
    predictions = (replacement_logits(model, head, next(stream)) for _ in range(4))
    right = [((logit > 0) == (target > 0.5)) for logit, target in predictions]
    return round(float(torch.cat(right).float().mean()), 4)


def _losses(
    model: DebertaV2ForMaskedLM, head: nn.Module, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[torch.Tensor]:
    collator = Collator(tokenizer, seed)
    masked = batches(collator.masked, language.documents(seed), BATCH)
    replaced = batches(collator.replaced, language.restatements(seed), BATCH)
    while True:
        loss = cross_entropy(*word_logits(model, next(masked).to(model.device)))
        noticed = replacement_logits(model, head, next(replaced).to(model.device))
        yield loss + WEIGHT * binary_cross_entropy_with_logits(*noticed)


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Pretrain the encoder and write it, its tokenizer and its card to the folder `out`.

    AdamW with a linear warm-up, and a linear decay over the second half. The same seed, steps and threads give the
    same weights on one kind of CPU.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = DebertaV2ForMaskedLM(configuration(len(tokenizer))).train()
    width = model.config.hidden_size
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))  # for pretraining only, not saved
    for part in (model, head):
        part.to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimise(
        _losses(model, head, tokenizer, seed),
        torch.optim.AdamW(decay_groups(parameters), lr=RATE),
        parameters,
        warm_up_and_decay(steps, min(WARM_UP, steps)),
        steps=steps,
        label="language-encoder",
    )
    for part in (model, head):
        part.cpu()
    minutes = (time.monotonic() - began) / 60
    card.start(out)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    card.write(
        out,
        name="language-encoder",
        what="DeBERTa-v2 encoder; masked and replaced words of the mini-language world (ether.worlds.language)",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCH,
        models=model,
        minutes=minutes,
        scores=scores(model, tokenizer, seed=seed + 1)
        | {"replaced words noticed": _detection_accuracy(model, head, tokenizer, seed + 1)},
        made_from="sentences",
    )
