"""Time and memory of a whole fine-tuning step of a Llama, for all methods in one run.

    python benchmarks/step.py --size 15m --threads 2
    python benchmarks/step.py --device cuda --size 7b --tokens 1024 --batch 4 --output step.parquet

The model has Llama-2's architecture at the given size and is randomly initialised, since the cost of a step does not
depend on the values of the weights. All methods share one copy of the frozen weights. Each adapts q_proj and v_proj (the
paper's layers for language models) and has its own AdamW optimizer. A step is forward, loss, backward and update on one
batch of random tokens. Every round times each method once. A time is the median over the rounds; a ratio is the median
of the ratios to PEFT's LoRA of rank 8 within a round.

Memory is the peak memory that a step allocates beyond weights and optimizer state, in MB and relative to LoRA's.
`weight side` is ETHER evaluated on the weight, block by block, as in the authors' released code.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from peft import get_peft_model
from shared import (
    BLOCKS,
    CONFIGS,
    REFERENCE,
    WEIGHT_SIDE,
    Clock,
    chosen,
    common_arguments,
    peak_memory,
    prepare,
    ratio,
    show,
    weight_side,
    write,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ether.errors import ConfigurationError

TARGETS = ("q_proj", "v_proj")
# hidden size, feed-forward size, layers, heads, vocabulary; 7b is Llama-2-7B.
SIZES = {
    "15m": (384, 1024, 6, 6, 4096),
    "110m": (768, 2048, 12, 12, 16000),
    "1b": (2048, 5632, 22, 32, 32000),
    "7b": (4096, 11008, 32, 32, 32000),
}


@dataclass
class Row:
    """One method: milliseconds per step, MB, ratios to LoRA, and the number of trained parameters."""

    method: str
    parameters: int
    step: float
    to_lora: float
    memory: float
    memory_to_lora: float


def base_model(size: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A randomly initialised Llama with frozen weights."""
    hidden, feed_forward, layers, heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        use_cache=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def adapted(base: LlamaForCausalLM, method: str) -> nn.Module:
    """The model adapted with one method; its frozen weights are the tensors of the base model, not copies.

    Raises:
        ConfigurationError: the block count does not divide the model's width.
    """
    shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
    model = copy.deepcopy(base, shared)
    if method in WEIGHT_SIDE:
        for parent in list(model.modules()):
            for name in TARGETS:
                if isinstance(getattr(parent, name, None), nn.Linear):
                    setattr(parent, name, weight_side(getattr(parent, name), WEIGHT_SIDE[method]))
        return model
    config = CONFIGS[method]()
    config.target_modules = set(TARGETS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's warnings about initialisations, which have no effect here
        with torch.device("cpu"):  # some methods draw their initial values with a generator of the CPU
            return get_peft_model(model, config).to(base.device)


def stepper(model: nn.Module, tokens: torch.Tensor) -> Callable[[], None]:
    """A function that takes one optimizer step, always on the same batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser, METHODS, rounds=9)
    parser.add_argument("--size", choices=SIZES, default="15m", help="7b is that of Llama-2-7B and needs a large GPU")
    parser.add_argument("--tokens", type=int, default=256, help="length of a sequence (the paper's maximum)")
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step")
    args = parser.parse_args()
    if SIZES[args.size][0] % BLOCKS:
        raise ConfigurationError(f"{BLOCKS} blocks do not divide the width {SIZES[args.size][0]} of size {args.size}.")
    return args


METHODS = {**CONFIGS, **WEIGHT_SIDE}


def main() -> None:
    args = parse()
    methods = chosen(args.methods, METHODS, (REFERENCE,))
    device, dtype, machine = prepare(args)
    base = base_model(args.size, dtype)
    tokens = torch.randint(base.config.vocab_size, (args.batch, args.tokens))
    models = {method: adapted(base, method) for method in methods}
    steps = {method: stepper(model, tokens) for method, model in models.items()}
    clock = Clock(device, least=0.0)
    for step in steps.values():  # creates the optimizer's state before the measurement
        step()
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(args.rounds):
        for method, step in steps.items():
            times[method].append(clock(step, 1))
    memory = {method: peak_memory(step, device) for method, step in steps.items()}
    rows = pd.DataFrame(
        asdict(
            Row(
                method=method,
                parameters=sum(p.numel() for p in models[method].parameters() if p.requires_grad),
                step=1e3 * statistics.median(times[method]),
                to_lora=ratio(times[method], times[REFERENCE]),
                memory=memory[method] / 1e6,
                memory_to_lora=memory[method] / memory[REFERENCE],
            )
        )
        for method in methods
    )
    print(f"\nLlama {args.size}, {args.batch} x {args.tokens} tokens")
    show(rows)
    write(rows.assign(size=args.size, tokens=args.tokens, batch=args.batch), args.output, machine, dtype)


if __name__ == "__main__":
    main()
