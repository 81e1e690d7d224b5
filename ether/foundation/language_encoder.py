"""``language-encoder``: a DeBERTa-v2 encoder that learned the mini-language world without labels.

Two objectives at once. *Masked words*: with words masked evenly over a document, a masked word's neighbours give most
of it away and the model never compares the two sentences; so many documents lose many words of *one* sentence, to be
read off the other one and the connective, and many lose the connective alone. *Replaced words*, DeBERTaV3's own
objective: the second of two sentences that say the same has some words replaced, and the last layer but one has to tell
which. Telling a masked word takes copying, telling a replaced one takes comparing; measured here, masked words alone
left the model blind to a single changed word after 3,000 steps (0.45 of paraphrases ranked above sentences with one
thing changed, chance is 0.5), while with replaced words comparing was learned within a few hundred. One layer is left
above it, to gather what was noticed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, PreTrainedTokenizerFast

from ether import results
from ether.foundation import CARD
from ether.worlds import language

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A batch of each objective's documents. After 4,000 steps a linear probe is within 3 points of full fine-tuning on
# paraphrases (98 of 100): half as many leave something to adapt.
STEPS, BATCH, RATE, WARM_UP = 2_000, 48, 1.0e-3, 200
SHARES = (0.4, 0.5)  # documents losing words of one sentence, the connective; rest: few words
REPLACED, WEIGHT = 0.2, 2.0  # share of words replaced, and the weight of noticing them in the loss
MAX_LENGTH = 40
IGNORED = -100


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, ``[CLS] first [SEP] second [SEP]``, the second sentence with token type 1."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *language.vocabulary()])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def configuration(vocabulary: int) -> DebertaV2Config:
    """Three layers x 128 with DeBERTa's content-to-position attention; no dropout, for the corpus is endless."""
    settings: dict[str, Any] = {  # known to the model, not to the configuration class's signature
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 128,
    }
    return DebertaV2Config(
        **settings,
        vocab_size=vocabulary,
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

    ids: torch.Tensor  # tokens, some masked
    types: torch.Tensor  # 1 in the second sentence
    mask: torch.Tensor  # 0 at padding
    targets: torch.Tensor  # the token where a word is to be told, else `IGNORED`
    connective: torch.Tensor  # true where the word to be told is a connective that is masked alone


class Masker:
    """Turns documents into batches with words to be told."""

    def __init__(self, words: PreTrainedTokenizerFast, seed: int) -> None:
        self.ids = words.get_vocab()
        groups = language.interchangeable()
        self.order = torch.tensor([self.ids[word] for group in groups for word in group])  # groups one after another
        self.start, self.count = (torch.zeros(len(words), dtype=torch.long) for _ in range(2))
        for i, group in enumerate(groups):
            members = torch.tensor([self.ids[word] for word in group])
            self.start[members], self.count[members] = sum(map(len, groups[:i])), len(group)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, documents: list[tuple[str, str]]) -> Batch:
        return self.masked(*self.encoded(documents))

    def encoded(self, documents: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and token types of documents, padded, each of shape (documents, length)."""
        rows, types = [], []
        for first, second in documents:
            a, b = ([self.ids[w] for w in sentence.split()] for sentence in (first, second))
            rows.append([self.ids["[CLS]"], *a, self.ids["[SEP]"], *b, self.ids["[SEP]"]])
            types.append([0] * (len(a) + 2) + [1] * (len(b) + 1))
        length = max(map(len, rows))
        ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
        kinds = torch.tensor([t + [0] * (length - len(t)) for t in types])
        return ids, kinds

    def another(self, ids: torch.Tensor) -> torch.Tensor:
        """For each token, some word of its kind (now and then itself)."""
        chosen = self.start[ids] + (torch.rand(ids.shape, generator=self.generator) * self.count[ids]).long()
        return self.order[chosen.clamp(max=len(self.order) - 1)]

    def replaced(self, documents: list[tuple[str, str]]) -> Batch:
        """Documents whose second sentence has words replaced; targets are 1 there, 0 at its other words."""
        ids, types = self.encoded(documents)
        told = (types == 1) & (self.count[ids] > 1)
        chosen = told & (torch.rand(ids.shape, generator=self.generator) < REPLACED)
        shown = torch.where(chosen, self.another(ids), ids)
        return Batch(shown, types, (ids != 0).long(), torch.where(told, (shown != ids).long(), IGNORED), told & False)

    def masked(self, ids: torch.Tensor, types: torch.Tensor) -> Batch:
        count, length = ids.shape
        word = ids >= len(SPECIAL)
        second = types == 1
        connective = second & (second.cumsum(1) == 1)
        clause = word & ~connective

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=self.generator)

        many_share, alone_share = SHARES
        kind = draw(count, 1)
        side = clause & (second == (draw(count, 1) < 0.5))
        chance = draw(count, length)
        many = (kind < many_share) & side & (chance < 0.4)  # many words of one sentence
        alone = (kind >= many_share) & (kind < many_share + alone_share) & connective  # the connective
        few = (kind >= many_share + alone_share) & word & (chance < 0.15)  # any word
        chosen = many | alone | few
        # A quarter of the words to be told stays and a quarter becomes another word of its kind, BERT takes tenths:
        # whether a word that stands there is right can only be told by a look at the other sentence.
        fate = draw(count, length)
        shown = torch.where((fate < 0.5) | alone, self.ids["[MASK]"], torch.where(fate < 0.75, self.another(ids), ids))
        return Batch(torch.where(chosen, shown, ids), types, (ids != 0).long(), torch.where(chosen, ids, IGNORED), alone)


def batches(make: Callable[[list[tuple[str, str]]], Batch], documents: Iterator[tuple[str, str]], size: int) -> Iterator[Batch]:
    """Batches of documents, without end; two at a time, the shorter and the longer half, to spend less on padding."""
    while True:
        drawn = sorted((next(documents) for _ in range(2 * size)), key=lambda pair: len(" ".join(pair).split()))
        yield make(drawn[:size])
        yield make(drawn[size:])


def logits(model: DebertaV2ForMaskedLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (words to be told, vocabulary) and what those words are."""
    hidden = model.deberta(batch.ids, attention_mask=batch.mask, token_type_ids=batch.types)[0]
    told = batch.targets != IGNORED
    return model.cls(hidden[told]), batch.targets[told]


def noticed(model: DebertaV2ForMaskedLM, head: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of "this word was replaced", read off the last layer but one, and whether it was."""
    hidden = model.deberta(
        batch.ids, attention_mask=batch.mask, token_type_ids=batch.types, output_hidden_states=True
    ).hidden_states[-2]
    told = batch.targets != IGNORED
    return head(hidden[told])[..., 0], batch.targets[told].float()


@torch.no_grad()
def scores(model: DebertaV2ForMaskedLM, words: PreTrainedTokenizerFast, *, seed: int, count: int = 4096) -> dict[str, float]:
    """Shares of masked words and of lone masked connectives told right (either word of a connective counts).

    Measured on at least `count` documents of the given seed.
    """
    model.eval()
    ids, meaning = words.get_vocab(), torch.arange(len(words))
    for pair in language.CONNECTIVES.values():
        meaning[ids[pair[1]]] = ids[pair[0]]
    told = {False: [0, 0], True: [0, 0]}  # lone connective? right, all
    stream = batches(Masker(words, seed), language.documents(seed), 256)
    for _ in range(math.ceil(count / 256)):
        batch = next(stream)
        predicted, target = logits(model, batch)
        right = torch.eq(meaning[predicted.argmax(-1)], meaning[target])
        alone = batch.connective[batch.targets != IGNORED]
        for which in told:
            told[which][0] += int(right[alone == which].sum())
            told[which][1] += int((alone == which).sum())
    return {
        "masked words told right": round(told[False][0] / told[False][1], 4),
        "masked connectives told right": round(told[True][0] / told[True][1], 4),
    }


@torch.no_grad()
def _noticed(model: DebertaV2ForMaskedLM, head: nn.Module, words: PreTrainedTokenizerFast, seed: int) -> float:
    """Share of words told right as replaced or not, on 1,024 fresh pairs (always "not" is right for about 0.8)."""
    stream = batches(Masker(words, seed).replaced, language.restatements(seed), 256)
    right = [((logit > 0) == (target > 0.5)) for logit, target in (noticed(model, head, next(stream)) for _ in range(4))]
    return round(float(torch.cat(right).float().mean()), 4)


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1) -> None:
    """Pretrain the encoder and write it, its tokenizer and its card to the folder `out`.

    AdamW with a linear warm-up, and a linear decay over the second half. The same seed, steps and threads give the
    same weights on one kind of CPU.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    words = tokenizer()
    model = DebertaV2ForMaskedLM(configuration(len(words))).train()
    width = model.config.hidden_size
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))  # of no use later, so not kept
    trained = [*model.parameters(), *head.parameters()]
    decay = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / min(WARM_UP, steps), 2 * (steps - step) / steps)
    )
    masker = Masker(words, seed)
    stream = batches(masker, language.documents(seed), BATCH)
    restated = batches(masker.replaced, language.restatements(seed), BATCH)
    total = 0.0
    for step in range(1, steps + 1):
        loss = cross_entropy(*logits(model, next(stream)))
        loss = loss + WEIGHT * binary_cross_entropy_with_logits(*noticed(model, head, next(restated)))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % max(1, steps // 20) == 0:  # twenty lines, however long it takes
            minutes = (time.monotonic() - began) / 60
            print(f"step {step}/{steps}: loss {total / max(1, steps // 20):.3f}, {minutes:.1f} min", flush=True)
            total = 0.0
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)  # a folder without a card is not a finished model
    model.eval().save_pretrained(out)
    words.save_pretrained(out)
    files = sorted(file for file in out.iterdir() if file.is_file())
    settings = f"--steps {steps} --seed {seed} --threads {threads}"
    card: dict[str, Any] = {
        "name": "language-encoder",
        "what": "DeBERTa-v2 encoder; masked and replaced words of the mini-language world (ether.worlds.language)",
        "command": f"python -m ether.foundation language-encoder --out FOLDER {settings}",
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": f"{os.cpu_count()}-core x86-64 CPU, {'one thread' if threads == 1 else f'{threads} threads'}",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "versions": json.loads(results.versions()),
        "scores": scores(model, words, seed=seed + 1) | {"replaced words noticed": _noticed(model, head, words, seed + 1)},
        "licence": "Made from generated sentences only; under the licence of this package.",
        "sha256": {file.name: results.file_digest(file) for file in files},
    }
    results.write_text(json.dumps(card, indent=2) + "\n", out / CARD)
    print(f"{out}: {card['scores']}", flush=True)
