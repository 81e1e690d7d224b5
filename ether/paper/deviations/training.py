"""Deviations in training: warm-up, and which evaluation is reported."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ether import config
from ether.paper import published
from ether.paper.deviations.point import Point, percent, table

SAMPLES, WARMUP = 50_000, 1_000  # the released script's samples an epoch; App. C.4's warm-up steps
SCRIPT_EPOCHS, SCRIPT_BATCH = 2, 128  # the released script's defaults
README_RATE = 1e-3  # of ETHER+ in the released README


def warm_up() -> Point:
    """The warm-up of App. C.4 as a share of an epoch at Table 8's batch sizes."""
    from transformers import get_cosine_schedule_with_warmup

    runs = {run.method: run.hyperparameters for run in config.runs(config.load("paper"), "instruct")}
    rows = []
    for method in published.load()["table8"].methods:
        batch = runs[method]["batch_size"]
        steps = SAMPLES // batch
        rows.append([config.label(method), batch, f"{steps:,}", percent(WARMUP / steps, 0)])
    steps = SAMPLES // 16
    weightless = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(weightless, WARMUP, steps).lr_lambdas[0]
    mean = float(np.mean([schedule(step) for step in range(steps)]))
    script = SCRIPT_EPOCHS * SAMPLES // SCRIPT_BATCH
    rate = runs["ether-plus-n32"]["learning_rate"]
    return Point(
        "Warm-up in instruction tuning",
        f"App. C.4 warms up for {WARMUP:,} steps and trains for one epoch, {SAMPLES:,} samples in the released script. At "
        "Table 8's batch sizes the warm-up takes up to two thirds of the training, and the mean learning rate is half the "
        f"nominal one ({mean:.2f} of it). With the script's defaults ({SCRIPT_EPOCHS} epochs, batches of {SCRIPT_BATCH}) "
        f"there are {script} steps: the whole training is warm-up, and the learning rate ends at {percent(script / WARMUP, 0)} "
        f"of its nominal value. The released README's learning rate of ETHER+, {README_RATE:g}, is {rate / README_RATE:g} times "
        f"smaller than Table 8's {rate:g}.",
        table(["method", "batch", "steps", "warm-up"], rows),
    )


def selection() -> Point:
    """Reporting the best of several evaluations."""
    iterations, every = 1400, 200
    evaluations = iterations // every
    # E[max of k standard normals] = k times the integral of z phi(z) Phi(z)^(k - 1)
    z = np.linspace(-9, 9, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.cumsum(density) * (z[1] - z[0])
    gain = float(evaluations * np.sum(z * density * below ** (evaluations - 1)) * (z[1] - z[0]))
    return Point(
        "Which evaluation is reported",
        f"App. C.1 trains for {iterations:,} iterations, evaluates every {every} and takes the best, by the metric that is "
        "reported; Fig. 4 and Table 11 refer to iteration 1200, and Table 11 has the numbers of Table 2. The best of "
        f"{evaluations} evaluations that differ by noise alone is {gain:.1f} standard deviations above their mean. As far as the "
        "text says, the grid search of App. C.4 uses the reported benchmarks, too. This suite reports the last evaluation; "
        'columns that end in "best" select an evaluation on one half of the prompts and report the other half.',
    )


POINTS = (warm_up, selection)
