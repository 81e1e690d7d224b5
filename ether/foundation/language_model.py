"""``language-model``: a Llama that read about the world of facts and knows it, but has not learned to answer.

Plain next-word prediction over `ether.worlds.facts.documents`, packed into blocks of one length. Over half of the text
is dense biographies: with one fact a sentence the model never gets beyond chance, while six facts after one name tie
them to it. Questions are rare and their answers mostly random, so the finished model names some value of the right
kind: the facts are there as statements, and instruction tuning has them to bring out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ether import results
from ether.foundation import CARD
from ether.worlds import facts

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
STEPS, BATCH, BLOCK, RATE, WARM_UP = 600, 32, 96, 3.0e-3, 50
MAX_LENGTH = 128


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, words being what white space divides; a text begins with ``<s>``, as Llama's do."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *facts.vocabulary()])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
    )


def configuration(vocabulary: int) -> LlamaConfig:
    """Four layers x 128, otherwise Llama-2's shape: as many key as query heads, input and output embeddings apart."""
    return LlamaConfig(
        vocab_size=vocabulary,
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


def blocks(words: PreTrainedTokenizerFast, documents: Iterator[str], size: int) -> Iterator[torch.Tensor]:
    """Documents one after another, ``<s> ... </s>`` each, cut into blocks: tokens of shape (size, BLOCK), without end."""
    ids, begin, end = words.get_vocab(), words.bos_token_id, words.eos_token_id
    rest: list[int] = []
    while True:
        while len(rest) < size * BLOCK:
            rest += [begin, *(ids[word] for word in next(documents).split()), end]
        yield torch.tensor(rest[: size * BLOCK]).view(size, BLOCK)
        rest = rest[size * BLOCK :]


@torch.no_grad()
def log_likelihoods(model: nn.Module, words: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Log-likelihoods of continuations given their contexts, shape (pairs,)."""
    rows = [words(f"{context} {continuation}")["input_ids"] for context, continuation in pairs]
    starts = [len(words(context)["input_ids"]) for context, _ in pairs]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    told = torch.tensor([[start <= i < len(row) for i in range(length)] for start, row in zip(starts, rows, strict=True)])
    logits = model(input_ids=ids).logits[:, :-1]  # causal: what pads the right end is never seen
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return -(losses * told[:, 1:]).sum(1)


def knowledge(model: nn.Module, words: PreTrainedTokenizerFast, *, world_seed: int = 0, every: int = 1) -> dict[str, float]:
    """Shares of all facts that the model prefers to the relation's seven other values (chance 0.125).

    Once as statements (``Alice plays the ... drum``) and once as answers in the evaluation's prompt. `every` takes every
    second fact, every third and so on.
    """
    model.eval()
    known = [fact for held in facts.world(world_seed).facts.values() for fact in held][::every]
    shares = {}
    for name in ("facts known as statements", "facts known as answers"):
        right = 0
        for first in range(0, len(known), 32):
            some, pairs = known[first : first + 32], []
            for fact in some:
                context = facts.EVALUATION.format(question=facts.question(fact, 0))
                if name.endswith("statements"):
                    context = facts.statement(fact).removesuffix(fact.value).strip()
                pairs += [(context, value) for value in fact.relation.values]
            best = log_likelihoods(model, words, pairs).view(len(some), -1).argmax(1)
            right += sum(f.relation.values[int(i)] == f.value for f, i in zip(some, best, strict=True))
        shares[name] = round(right / len(known), 4)
    return shares


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1) -> None:
    """Pretrain the model on world 0 and write it, its tokenizer and its card to the folder `out`.

    AdamW with a linear warm-up, and a linear decay over the second half. The same seed, steps and threads give the
    same weights on one kind of CPU; `seed` draws the weights and the order of the text, the facts stay.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    words = tokenizer()
    model = LlamaForCausalLM(configuration(len(words))).train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / min(WARM_UP, steps), 2 * (steps - step) / steps)
    )
    stream = blocks(words, facts.documents(seed), BATCH)
    total = 0.0
    for step in range(1, steps + 1):
        ids = next(stream)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.transpose(1, 2), ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
        "name": "language-model",
        "what": "Llama; next-word prediction over the world of facts (ether.worlds.facts)",
        "command": f"python -m ether.foundation language-model --out FOLDER {settings}",
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": f"{os.cpu_count()}-core x86-64 CPU, {'one thread' if threads == 1 else f'{threads} threads'}",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "versions": json.loads(results.versions()),
        "scores": knowledge(model, words),
        "licence": "Made from generated sentences only; under the licence of this package.",
        "sha256": {file.name: results.file_digest(file) for file in files},
    }
    results.write_text(json.dumps(card, indent=2) + "\n", out / CARD)
    print(f"{out}: {card['scores']}", flush=True)
