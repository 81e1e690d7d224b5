"""GPU time by kernel of one adapted linear layer: what a forward and backward pass spends where.

    python benchmarks/kernel_times.py --shape 4096x4096 --tokens 8192

`benchmarks/layer.py` measures the time that passes, which for small layers is the time the CPU takes to start the
kernels; this program shows the time that the GPU is busy. Both are needed to tell what bounds a method. For each method:
the total in microseconds, its ratio to the frozen layer's, the number of kernels, and the longest kernels.
"""

from __future__ import annotations

import argparse

import torch
from layer import FROZEN, METHODS, forget_gradients, shape_of
from shared import chosen, common_arguments, prepare
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ether.errors import HardwareError

PASSES = 5  # profiled, after as many without


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser, METHODS, rounds=PASSES)
    parser.set_defaults(device="cuda")
    parser.add_argument("--shape", type=shape_of, default=(4096, 4096), help="IN x OUT")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--longest", type=int, default=4, help="kernels to print for each method")
    return parser.parse_args()


def main() -> None:
    args = parse()
    methods = chosen(args.methods, METHODS, (FROZEN,))
    device, dtype, _ = prepare(args)
    if device.type != "cuda":
        raise HardwareError("This program times the kernels of a GPU. Use --device cuda, or benchmarks/layer.py on the CPU.")
    inputs, outputs = args.shape
    x = torch.randn(args.tokens, inputs, dtype=dtype).requires_grad_()
    gradient = torch.randn(args.tokens, outputs, dtype=dtype)
    frozen = 0.0
    for method in methods:
        layer = METHODS[method](nn.Linear(inputs, outputs, bias=False, dtype=dtype))

        def passes(count: int, layer: nn.Module = layer) -> None:
            for _ in range(count):
                forget_gradients(x, layer)
                layer(x).backward(gradient)
            torch.cuda.synchronize(device)

        passes(args.rounds)
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
            passes(args.rounds)
        kernels = [event for event in recorded.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in kernels) / args.rounds
        frozen = total if method == FROZEN else frozen
        count = sum(event.count for event in kernels) / args.rounds
        print(f"\n{method}: {total:.0f} us, {total / frozen:.2f} x the frozen layer, {count:.0f} kernels")
        for event in kernels[: args.longest]:
            print(f"  {event.self_device_time_total / args.rounds:8.1f} us  {event.count / args.rounds:4.0f} x  {event.key[:80]}")


if __name__ == "__main__":
    main()
