"""Time and memory of one adapted linear layer, every method side by side in one run.

    python benchmarks/layer.py --device cpu --threads 2
    python benchmarks/layer.py --device cuda --shapes 4096x4096 --tokens 8192 --output layer.parquet

A shape is IN x OUT. For each shape and number of tokens the methods take turns, round after round, so that a machine
that slows down slows all of them; a time is the median over the rounds, a ratio the median of the ratios within a round
(to the frozen layer alone, and to PEFT's LoRA of rank 8). The layer's input wants a gradient, as inside a network.

Columns: forward and forward + backward in milliseconds, the latter's ratios; the peak of what a forward and backward
pass allocates beyond what was there before, in MB and against LoRA's; and the time of the merged layer without gradients
against the frozen one's (nothing where the method was not merged). `weight side` is ETHER evaluated on the weight, block
by block, as the authors' released code does. `--output` writes the same numbers as parquet, one row a line.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, is talkative

import pandas as pd
import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn

from ether import EtherConfig
from ether.errors import HardwareError, one_of
from ether.measures.weight_side import WeightSideLinear
from ether.results import atomic

BLOCKS = 32  # the paper's n for language models (Table 5)
FROZEN, REFERENCE = "frozen layer", "LoRA r=8"


def _peft(config: Callable[[], PeftConfig]) -> Callable[[nn.Linear], nn.Module]:
    def build(base: nn.Linear) -> nn.Module:
        adapted = config()
        adapted.target_modules = {"0"}
        return get_peft_model(nn.Sequential(base), adapted).base_model.model[0]

    return build


METHODS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    FROZEN: lambda base: base.requires_grad_(False),
    REFERENCE: _peft(lambda: LoraConfig(r=8, lora_alpha=8)),
    "ETHER n=1": _peft(lambda: EtherConfig()),
    f"ETHER n={BLOCKS}": _peft(lambda: EtherConfig(n_blocks=BLOCKS)),
    "ETHER+ n=1": _peft(lambda: EtherConfig(relaxed=True)),
    f"ETHER+ n={BLOCKS}": _peft(lambda: EtherConfig(relaxed=True, n_blocks=BLOCKS)),
    f"ETHER n={BLOCKS} weight side": lambda base: _initialised(WeightSideLinear(base, "reflection", BLOCKS)),
    f"ETHER+ n={BLOCKS} weight side": lambda base: _initialised(WeightSideLinear(base, "relaxed-reflection", BLOCKS)),
    "VeRA r=64": _peft(lambda: VeraConfig(r=64)),
    "OFT b=32": _peft(lambda: OFTConfig(oft_block_size=32, r=0, use_cayley_neumann=False)),
    "BOFT m=2 b=8": _peft(lambda: BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2)),
    "HRA r=8": _peft(lambda: HRAConfig(r=8)),
}


def _initialised(layer: WeightSideLinear) -> nn.Module:
    layer.base.requires_grad_(False)
    for parameter in layer.multiplier.parameters():
        nn.init.normal_(parameter)
    return layer


@dataclass
class Row:
    """One method at one shape: times in ms, memory in MB, ratios as described at the top."""

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


class Clock:
    """Seconds that a call takes, repeated until the sample is long enough to be measured."""

    def __init__(self, device: torch.device, least: float) -> None:
        self.device, self.least = device, least

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - start) / repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def repeats(self, call: Callable[[], object]) -> int:
        call()
        return max(1, round(self.least / max(self(call, 1), 1e-6)))


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call has allocated at its peak, beyond what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


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
    """All methods at one shape, taking turns."""
    inputs, outputs = shape
    x = torch.randn(tokens, inputs, dtype=dtype).requires_grad_()
    gradient = torch.randn(tokens, outputs, dtype=dtype)
    clock = Clock(device, args.sample)
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    layers: dict[str, nn.Module] = {}
    for method in methods:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about initialisations that do not matter here
            layer = METHODS[method](nn.Linear(inputs, outputs, bias=False, dtype=dtype))

        def forward(layer: nn.Module = layer) -> torch.Tensor:
            return layer(x)

        def both(layer: nn.Module = layer) -> None:
            forget_gradients(x, layer)
            layer(x).backward(gradient)

        layers[method], calls[method] = layer, (forward, both)

    repeats = {m: tuple(clock.repeats(call) for call in calls[m]) for m in methods}
    samples: dict[str, list[tuple[float, float]]] = {m: [] for m in methods}
    for _ in range(args.rounds):
        for m in methods:
            samples[m].append(tuple(clock(c, r) for c, r in zip(calls[m], repeats[m], strict=True)))  # type: ignore[arg-type]
    memory = {}
    for m in methods:
        forget_gradients(x, layers[m])  # else those of the last call would be freed in mid-measurement
        memory[m] = peak_memory(calls[m][1], device)

    def ratio(m: str, to: str) -> float:
        return statistics.median(a[1] / b[1] for a, b in zip(samples[m], samples[to], strict=True))

    merged = merged_ratios(layers, x, clock, args.rounds)
    return [
        Row(
            shape=f"{inputs}x{outputs}",
            tokens=tokens,
            method=m,
            forward=1e3 * statistics.median(s[0] for s in samples[m]),
            both=1e3 * statistics.median(s[1] for s in samples[m]),
            to_frozen=ratio(m, FROZEN),
            to_lora=ratio(m, REFERENCE),
            memory=memory[m] / 1e6,
            memory_to_lora=memory[m] / memory[REFERENCE],
            merged_to_frozen=merged.get(m),
        )
        for m in methods
    ]


@torch.no_grad()
def merged_ratios(layers: dict[str, nn.Module], x: torch.Tensor, clock: Clock, rounds: int) -> dict[str, float]:
    """Time of a merged layer against the frozen one, for the methods that PEFT can merge."""
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
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default float32 on the CPU, else bfloat16")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[(768, 768), (320, 1280), (4096, 4096), (4096, 11008)])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 2048], help="256 to 8192 in the README's tables")
    parser.add_argument("--methods", nargs="+", help=f"default all of: {', '.join(METHODS)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sample", type=float, default=0.05, help="seconds a sample should last at least")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--output", type=Path, help="parquet file to write")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise HardwareError("--device cuda was asked for, but torch sees no GPU here. Use --device cpu.")
    methods = args.methods or list(METHODS)
    for method in methods:
        if method not in METHODS:
            raise one_of("method", method, METHODS, "--methods")
    methods = [m for m in METHODS if m in {*methods, FROZEN, REFERENCE}]
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.set_default_device(device)
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}, {args.rounds} rounds")
    rows: list[Row] = []
    for shape in args.shapes:
        for tokens in args.tokens:
            rows += measure(shape, tokens, methods, device, dtype, args)
            part = pd.DataFrame([asdict(row) for row in rows[-len(methods) :]])
            print(f"\n{shape[0]}x{shape[1]}, {tokens} tokens")
            print(part.drop(columns=["shape", "tokens"]).to_string(index=False, float_format="%.3f", na_rep=""))
    if args.output:
        table = pd.DataFrame([asdict(row) for row in rows]).assign(
            device=machine,
            threads=torch.get_num_threads(),
            dtype=str(dtype).removeprefix("torch."),
            torch=torch.__version__,
        )
        with atomic(args.output) as path:
            table.to_parquet(path, index=False)


if __name__ == "__main__":
    main()
