"""Deviations in training: warm-up, hyperparameters and their sources, which evaluation is reported, unpinned revisions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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


def baselines() -> Point:
    """The hyperparameters of Table 4's methods at the paper's scale, and where they come from."""
    scale = config.load("paper")
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in config.runs(scale, "glue"):
        if run.adapt["kind"] != "none":
            by_method.setdefault(run.method, []).append(run.hyperparameters)
    rows = []
    for method, of_tasks in by_method.items():
        ranges = [_range([values[key] for values in of_tasks]) for key in ("learning_rate", "batch_size", "epochs")]
        rows.append([config.label(method), *ranges, config.source(scale, "glue", method) or "**not from a paper**"])
    return Point(
        "Hyperparameters of the GLUE baselines",
        "The paper copies the baselines of Table 4 from the BOFT paper; here they are trained. Learning rates, batch "
        "sizes, epochs and dropout are those of a paper or of its scripts where these could be found. A range is over "
        "the eight tasks. In the text of BOFT's Table 7 the epochs of neighbouring tasks run together; they were "
        "separated by the rule that a blank follows a number of two digits, which leaves one reading. AdaLoRA's scripts "
        "have a budget of 0.3M parameters; its ranks here are those of the 1.27M of Table 4, and the shares of its "
        "phases are this project's. A cell that is not from a paper says so in its note.",
        table(["method", "learning rate", "batch", "epochs", "source"], rows),
    )


def guesses() -> Point:
    """What no paper states for the paper's scale: the values of the scale's file."""
    scale = config.load("paper")
    keys = ("schedule", "warmup", "weight_decay", "max_grad_norm", "precision", "checkpoint_steps", "evaluations")
    told = {
        "glue": (),
        "instruct": ("schedule", "warmup", "weight_decay", "precision", "evaluations"),
        "subject": ("evaluations", "schedule", "weight_decay"),
        "vtab": (),
    }
    rows = []
    for experiment, stated in told.items():
        section = scale.experiment(experiment)
        training = section["training"]
        found = {key: training[key] for key in keys if key not in stated and key not in ("checkpoint_steps",)}
        if experiment == "glue":
            tasks = {name: values["epochs"] for name, values in training["tasks"].items()}
            found |= {"learning rate, batch and epochs of methods without a source": f"{_range(tasks.values())} epochs"}
        if experiment == "subject":
            sampling = section["sampling"]
            found |= {key: sampling[key] for key in ("steps", "guidance", "scheduler", "images_per_prompt")}
        if experiment == "vtab":
            found |= {key: training[key] for key in ("epochs", "batch_size")}
        rows.append([f"`{experiment}`", "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items())])
    return Point(
        "Choices of this project at the paper's scale",
        "The paper does not state these values, and the cited papers and scripts were not found to have them for this "
        "setting. They are in `workflow/scales/paper.yaml` and the methods' files, and their effect can only be measured "
        "by training. (Weight decay 0.01, a constant schedule, 512 pixels and 200 class images with weight 1 are in "
        "BOFT's App. A.5 for DreamBooth.)",
        table(["experiment", "values"], rows),
    )


def halves() -> Point:
    """Selection on what is reported, and the other protocol."""
    protocol = "one half of the evaluation split selects an evaluation, and the other half reports it"
    paper = published.load()["table5"]
    columns = [column.name for column in paper.columns if column.kind == "percent"]
    means = {
        method: float(np.mean([paper.value(method, column) or math.nan for column in columns]))
        for method in ("ether-plus-n32", "lora")
    }
    return Point(
        "A protocol that does not select on what it reports",
        "GLUE has no labelled test sets, and Table 7's values per task were chosen on the validation sets that Table 4 "
        f"reports. Papers since then (RED, DeLoRA, PSOFT) divide the validation set: {protocol}. Every run stores both "
        "halves (`selection`, `report`; 0.5 of the examples each); `glue.select: half` in a scale makes Table 4 of them, "
        "without another run. Numbers of other papers are a third number in a cell. DeLoRA's averages over the "
        "benchmarks of Table 5 are none: its 41.07 (ETHER+) and 40.19 (LoRA) are the means of the numbers that the paper "
        f"prints ({means['ether-plus-n32']:.3f}, {means['lora']:.3f}), and not of other runs.",
    )


def unpinned() -> Point:
    """Models and data without a fixed revision."""
    rows: dict[tuple[str, str], set[str]] = {}
    for name in config.scale_names():
        scale = config.load(name)
        for experiment in scale.experiments():
            for path, revision in _revisions(scale.experiment(experiment)):
                if revision in (None, "main") and "/" in path and path.split("/")[0] not in ("foundation", "world"):
                    rows.setdefault((path, str(revision)), set()).add(name)
    return Point(
        "Without a fixed revision",
        f"These {len(rows)} models and data sets are loaded at the newest revision, because no commit could be verified without "
        "the hub. Their numbers can change with the repository; every run stores the name and revision that it asked for.",
        table(["repository", "revision", "scales"], [[*key, ", ".join(sorted(where))] for key, where in sorted(rows.items())]),
    )


def _revisions(section: Any) -> Iterator[tuple[str, str | None]]:
    """(path, revision) of everything in a section that has a path."""
    if isinstance(section, Mapping):
        if isinstance(section.get("path"), str):
            yield section["path"], section.get("revision")
        for value in section.values():
            yield from _revisions(value)


def _range(values: Iterable[float]) -> str:
    """'8e-05 to 0.0009', or the one value."""
    found = sorted(set(values))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


POINTS = (warm_up, baselines, guesses, selection, halves, unpinned)
