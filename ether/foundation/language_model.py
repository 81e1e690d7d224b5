"""``language-model``: a Llama pretrained on text about the world of facts (`ether.worlds.facts`).

The objective is next-word prediction over `ether.worlds.facts.documents`, packed into blocks of one length. More than half of
the text is dense biographies: with one fact per sentence the model remains at chance, while six facts after one name associate
them with that name. Questions are rare and most of their answers are random, so the pretrained model answers a question with a
random value of the correct kind. It has learned the facts as statements, and answers correctly only after instruction tuning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ether.foundation import card
from ether.foundation.pretraining import decay_groups, optimise, warm_up_and_decay
from ether.foundation.word_tokenizer import word_tokenizer
from ether.worlds import facts

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
STEPS, BATCH, BLOCK, RATE, WARM_UP = 600, 32, 96, 3.0e-3, 50  # BLOCK: tokens of a training example
MAX_LENGTH = 128


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, where words are separated by white space; a text begins with ``<s>``, as for Llama."""
    return word_tokenizer(
        facts.vocabulary(),
        special=SPECIAL,
        unknown="<unk>",
        single="<s> $A",
        pair="<s> $A $B",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
    )


def configuration(vocabulary_size: int) -> LlamaConfig:
    """Four layers of width 128, otherwise as Llama-2: as many key as query heads, input and output embeddings not tied."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,  # at this width the usual 0.02 learns several times more slowly
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )


def blocks(tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], size: int) -> Iterator[torch.Tensor]:
    """An endless stream of tokens of shape (size, BLOCK): documents, each as ``<s> ... </s>``, concatenated and cut."""
    ids, begin, end = tokenizer.get_vocab(), tokenizer.bos_token_id, tokenizer.eos_token_id
    rest: list[int] = []
    while True:
        while len(rest) < size * BLOCK:
            rest += [begin, *(ids[word] for word in next(documents).split()), end]
        yield torch.tensor(rest[: size * BLOCK]).view(size, BLOCK)
        rest = rest[size * BLOCK :]


@torch.no_grad()
def log_likelihoods(model: nn.Module, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Log-likelihoods (natural logarithm, summed over tokens) of continuations given their contexts, of shape (pairs,)."""
    rows = [tokenizer(f"{context} {continuation}")["input_ids"] for context, continuation in pairs]
    starts = [len(tokenizer(context)["input_ids"]) for context, _ in pairs]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    scored = torch.tensor([[start <= i < len(row) for i in range(length)] for start, row in zip(starts, rows, strict=True)])
    logits = model(input_ids=ids).logits[:, :-1]  # causal: the padding on the right has no influence
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return -(losses * scored[:, 1:]).sum(1)


def knowledge(model: nn.Module, tokenizer: PreTrainedTokenizerFast, *, world_seed: int = 0, every: int = 1) -> dict[str, float]:
    """Shares of the facts for which the model prefers the true value to the relation's seven other values (chance: 0.125).

    Measured for the facts as statements (``Alice plays the ... drum``) and as answers to the evaluation's prompt.

    Args:
        model: a causal language model.
        tokenizer: of `build_tokenizer`.
        world_seed: seed of the facts; the shipped model was trained on those of 0.
        every: evaluate every second fact, every third and so on.
    """
    model.eval()
    evaluated = [fact for entity in facts.world(world_seed).facts.values() for fact in entity][::every]
    shares = {}
    for name in ("facts known as statements", "facts known as answers"):
        right = 0
        for first in range(0, len(evaluated), 32):
            chunk, pairs = evaluated[first : first + 32], []
            for fact in chunk:
                context = facts.EVALUATION.format(question=facts.question(fact, 0))
                if name.endswith("statements"):
                    context = facts.statement(fact).removesuffix(fact.value).strip()
                pairs += [(context, value) for value in fact.relation.values]
            best = log_likelihoods(model, tokenizer, pairs).view(len(chunk), -1).argmax(1)
            right += sum(fact.relation.values[int(i)] == fact.value for fact, i in zip(chunk, best, strict=True))
        shares[name] = round(right / len(evaluated), 4)
    return shares


def _losses(model: nn.Module, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    for ids in blocks(tokenizer, facts.documents(seed), BATCH):
        ids = ids.to(next(model.parameters()).device)
        logits = model(input_ids=ids).logits[:, :-1]
        yield cross_entropy(logits.transpose(1, 2), ids[:, 1:])


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Pretrain the model on world 0 and write it, its tokenizer and its card to the folder `out`.

    AdamW with a linear warm-up, and a linear decay over the second half. The same seed, steps and threads give the
    same weights on one kind of CPU; `seed` determines the initial weights and the order of the text, not the facts.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model: Any = LlamaForCausalLM(configuration(len(tokenizer))).train()
    model.to(device)
    parameters = list(model.parameters())
    optimise(
        _losses(model, tokenizer, seed),
        torch.optim.AdamW(decay_groups(parameters), lr=RATE, betas=(0.9, 0.98)),
        parameters,
        warm_up_and_decay(steps, min(WARM_UP, steps)),
        steps=steps,
        label="language-model",
    )
    model.cpu()
    minutes = (time.monotonic() - began) / 60
    card.start(out)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    card.write(
        out,
        name="language-model",
        what="Llama; next-word prediction over the world of facts (ether.worlds.facts)",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCH,
        models=model,
        minutes=minutes,
        scores=knowledge(model, tokenizer),
        made_from="sentences",
    )
