"""Time and memory of one adapted linear layer, for all methods in one run.

    python benchmarks/layer.py --device cpu --threads 2
    python benchmarks/layer.py --device cuda --shapes 4096x4096 --tokens 8192 --output layer.parquet

A shape is IN x OUT. For each shape and number of tokens, every round times all methods once, so that changes in the
machine's speed affect all methods equally. A time is the median over the rounds; a ratio is the median of the ratios
within a round (to the frozen layer alone, and to PEFT's LoRA of rank 8). The layer's input requires a gradient, as
inside a network.

Columns: forward and forward + backward in milliseconds, with the ratios of the latter; peak memory allocated by a
forward and backward pass, in MB and relative to LoRA's; and the time of the merged layer without gradients relative to
the frozen layer's (empty for methods that were not merged). `weight side` is ETHER evaluated on the weight, block by
block, as in the authors' released code. `--output` writes the same numbers as parquet, one row per line.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from peft import get_peft_model
from shared import (
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

FROZEN = "frozen layer"


def _peft(method: str) -> Callable[[nn.Linear], nn.Module]:
    def build(base: nn.Linear) -> nn.Module:
        adapted = CONFIGS[method]()
        adapted.target_modules = {"0"}
        with torch.device("cpu"):  # some methods draw their initial values with a generator of the CPU
            model = get_peft_model(nn.Sequential(base), adapted)
        return model.to(base.weight.device).base_model.model[0]

    return build


METHODS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    FROZEN: lambda base: base.requires_grad_(False),
    **{method: _peft(method) for method in CONFIGS},
    **{method: lambda base, kind=kind: weight_side(base, kind) for method, kind in WEIGHT_SIDE.items()},  # type: ignore[misc]
}


@dataclass
class Row:
    """One method at one shape: times in ms, memory in MB, ratios as described in the module's docstring."""

    shape: str
    tokens: int
    method: str
    forward: float
    both: float
    to_frozen: float
    to_lora: float
    memory: float
    memory_to_lora: float | None
    merged_to_frozen: float | None


def forget_gradients(x: torch.Tensor, layer: nn.Module) -> None:
    for tensor in (x, *layer.parameters()):
        tensor.grad = None


def measure(
    shape: tuple[int, int],
    tokens: int,
    methods: list[str],
    device: torch.device,
    dtype: torch.dtype,
    args: argparse.Namespace,
) -> list[Row]:
    """Measures all methods at one shape; every round times each method once."""
    inputs, outputs = shape
    x = torch.randn(tokens, inputs, dtype=dtype).requires_grad_()
    gradient = torch.randn(tokens, outputs, dtype=dtype)
    clock = Clock(device, args.sample)
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    layers: dict[str, nn.Module] = {}
    for method in methods:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's warnings about initialisations, which have no effect here
            layer = METHODS[method](nn.Linear(inputs, outputs, bias=False, dtype=dtype))

        def forward(layer: nn.Module = layer) -> torch.Tensor:
            return layer(x)

        def forward_and_backward(layer: nn.Module = layer) -> None:
            forget_gradients(x, layer)
            layer(x).backward(gradient)

        layers[method], calls[method] = layer, (forward, forward_and_backward)

    repeats = {m: tuple(clock.repeats(call) for call in calls[m]) for m in methods}
    samples: dict[str, list[tuple[float, float]]] = {m: [] for m in methods}
    for _ in range(args.rounds):
        for m in methods:
            samples[m].append(tuple(clock(c, r) for c, r in zip(calls[m], repeats[m], strict=True)))  # type: ignore[arg-type]
    memory = {}
    for m in methods:
        forget_gradients(x, layers[m])  # otherwise those of the last call would be freed during the measurement
        memory[m] = peak_memory(calls[m][1], device)

    both = {m: [s[1] for s in samples[m]] for m in methods}
    merged = merged_ratios(layers, x, clock, args.rounds)
    return [
        Row(
            shape=f"{inputs}x{outputs}",
            tokens=tokens,
            method=m,
            forward=1e3 * statistics.median(s[0] for s in samples[m]),
            both=1e3 * statistics.median(s[1] for s in samples[m]),
            to_frozen=ratio(both[m], both[FROZEN]),
            to_lora=ratio(both[m], both[REFERENCE]),
            memory=memory[m] / 1e6,
            memory_to_lora=memory[m] / memory[REFERENCE],
            merged_to_frozen=merged.get(m),
        )
        for m in methods
    ]


@torch.no_grad()
def merged_ratios(layers: dict[str, nn.Module], x: torch.Tensor, clock: Clock, rounds: int) -> dict[str, float]:
    """Time of a merged layer relative to the frozen layer, for the methods that PEFT can merge."""
    for layer in layers.values():
        if hasattr(layer, "merge"):
            layer.merge()
    ready = {m: layer for m, layer in layers.items() if m == FROZEN or hasattr(layer, "merge")}
    repeats = clock.repeats(lambda: layers[FROZEN](x))
    samples: dict[str, list[float]] = {m: [] for m in ready}
    for _ in range(rounds):
        for m, layer in ready.items():
            samples[m].append(clock(lambda layer=layer: layer(x), repeats))  # type: ignore[misc]
    return {m: statistics.median(a / b for a, b in zip(samples[m], samples[FROZEN], strict=True)) for m in ready}


def shape_of(text: str) -> tuple[int, int]:
    inputs, _, outputs = text.partition("x")
    return int(inputs), int(outputs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser, METHODS, rounds=15)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[(768, 768), (320, 1280), (4096, 4096), (4096, 11008)])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 2048], help="256 to 8192 in the README's tables")
    parser.add_argument("--sample", type=float, default=0.05, help="seconds a sample should last at least")
    return parser.parse_args()


def main() -> None:
    args = parse()
    methods = chosen(args.methods, METHODS, (FROZEN, REFERENCE))
    device, dtype, machine = prepare(args)
    rows: list[Row] = []
    for shape in args.shapes:
        for tokens in args.tokens:
            rows += measure(shape, tokens, methods, device, dtype, args)
            print(f"\n{shape[0]}x{shape[1]}, {tokens} tokens")
            show(pd.DataFrame([asdict(row) for row in rows[-len(methods) :]]).drop(columns=["shape", "tokens"]))
    write(pd.DataFrame([asdict(row) for row in rows]), args.output, machine, dtype)


if __name__ == "__main__":
    main()
