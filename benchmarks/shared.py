"""Shared code of the benchmarks: the methods, timing, peak memory, and printing and writing of tables."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler, which measures memory

import pandas as pd
import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, PeftConfig, VeraConfig
from torch import nn

import ether.methods.boft  # noqa: F401 - all of BOFT's butterfly factors, also where its CUDA extension is not compiled
from ether import EtherConfig
from ether.errors import HardwareError, one_of
from ether.measures.weight_side import WeightSideLinear
from ether.results import atomic

BLOCKS = 32  # the paper's n for language models (Table 5)
REFERENCE = "LoRA r=8"

# The caller sets `target_modules`.
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    REFERENCE: lambda: LoraConfig(r=8, lora_alpha=8),
    "ETHER n=1": lambda: EtherConfig(),
    f"ETHER n={BLOCKS}": lambda: EtherConfig(n_blocks=BLOCKS),
    "ETHER+ n=1": lambda: EtherConfig(relaxed=True),
    f"ETHER+ n={BLOCKS}": lambda: EtherConfig(relaxed=True, n_blocks=BLOCKS),
    "VeRA r=64": lambda: VeraConfig(r=64),
    "OFT b=32": lambda: OFTConfig(oft_block_size=32, r=0, use_cayley_neumann=False),
    "BOFT m=2 b=8": lambda: BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2),
    "HRA r=8": lambda: HRAConfig(r=8),
}
# ETHER evaluated on the weight, block by block, as in the authors' released code.
WEIGHT_SIDE = {f"ETHER n={BLOCKS} weight side": "reflection", f"ETHER+ n={BLOCKS} weight side": "relaxed-reflection"}


def weight_side(base: nn.Linear, kind: str) -> WeightSideLinear:
    """A frozen layer with randomly initialised weight-side reflections."""
    layer = WeightSideLinear(base, kind, BLOCKS)
    layer.base.requires_grad_(False)
    for parameter in layer.multiplier.parameters():
        nn.init.normal_(parameter)
    return layer


class Clock:
    """Seconds per call, with enough repetitions for a measurable duration."""

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
    """Peak memory allocated by a call, in bytes, beyond the memory allocated before."""
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


def ratio(samples: Sequence[float], to: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(samples, to, strict=True))


def common_arguments(parser: argparse.ArgumentParser, known: Mapping[str, object], rounds: int) -> None:
    """The options of all benchmarks."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default float32 on the CPU, else bfloat16")
    parser.add_argument("--methods", nargs="+", help=f"default all of: {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--output", type=Path, help="parquet file to write")


def prepare(args: argparse.Namespace) -> tuple[torch.device, torch.dtype, str]:
    """Device, dtype and the machine's name; device and dtype are set as torch's defaults where possible.

    Raises:
        HardwareError: CUDA was requested and is not available.
    """
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise HardwareError("--device cuda was requested, but torch finds no GPU. Use --device cpu.")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.set_default_device(device)
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}, {args.rounds} rounds")
    return device, dtype, machine


def chosen(given: Sequence[str] | None, known: Mapping[str, object], always: Sequence[str]) -> list[str]:
    """The methods to measure, in the order of their definition.

    Raises:
        ConfigurationError: an unknown method.
    """
    for method in given or ():
        if method not in known:
            raise one_of("method", method, known, "--methods")
    return [m for m in known if not given or m in {*given, *always}]


def show(rows: pd.DataFrame) -> None:
    """Prints a table."""
    print(rows.to_string(index=False, float_format="%.3f", na_rep=""))


def write(rows: pd.DataFrame, output: Path | None, machine: str, dtype: torch.dtype) -> None:
    """Writes all rows as parquet, with a description of the machine and settings."""
    if output:
        table = rows.assign(
            device=machine,
            threads=torch.get_num_threads(),
            dtype=str(dtype).removeprefix("torch."),
            torch=torch.__version__,
        )
        with atomic(output) as path:
            table.to_parquet(path, index=False)
