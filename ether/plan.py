"""What the paper's scale costs on a GPU: ``python -m ether.plan table2 table4 … [--scale paper] [--gpu a100-40] [--detail]``.

For each exhibit: runs, GPU hours, peak memory and disk, without a GPU and without loading a model. Operations are counted from
shapes (`ether.measures.steps`) for the runs that `ether.config` makes from the scale; everything else is in `ASSUMED`, `GPUS` and
`EXAMPLES` below. GPU hours are operations divided by the GPU's peak times a stated utilisation, so they are right within a factor
of about two, and compare experiments better than that.

    --precision bf16       training and sampling in bfloat16 (autocast) instead of the scale's precision
    --evaluations N        evaluations of a run instead of the scale's
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ether.config import RunSpec, Scale, exhibits, experiments, load, runs
from ether.errors import ConfigurationError, EtherError, one_of
from ether.machine import Limits


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory in GB (10^9 bytes), and dense peak in TFLOP/s by precision, without sparsity (NVIDIA's data sheets)."""

    memory: int
    float32: float
    bf16: float


GPUS = {
    "rtx3090-24": Gpu(24, 35.6, 71.0),
    "rtx4090-24": Gpu(24, 82.6, 165.2),
    "a100-40": Gpu(40, 19.5, 312.0),
    "a100-80": Gpu(80, 19.5, 312.0),
    "h100-80": Gpu(80, 67.0, 989.0),
    "h200-141": Gpu(141, 67.0, 989.0),
}


@dataclass(frozen=True)
class Assumed:
    """What is neither counted nor in a scale."""

    utilisation_float32: float = 0.45  # share of the peak that a whole run reaches; float32 without TensorFloat-32
    utilisation_bf16: float = 0.35
    padded_share: float = 0.5  # mean length of a padded batch of texts, divided by the longest length allowed
    loading_seconds: float = 60.0  # of a job: starting, loading the model and the data
    image_bytes: int = 450_000  # of a saved image of 512 x 512 pixels
    run_bytes: int = 2_000_000  # metrics, run row and executed notebook
    memory_overhead: float = 1.15  # of allocator and temporary tensors
    context_bytes: int = 10**9  # of CUDA itself and its libraries
    prompts: int = 25  # of a subject, in google/dreambooth
    judge_share: float = 0.05  # judges and text encoder, of the operations of sampling
    question_tokens: int = 128  # of a multiple-choice request
    requests: int = 4 * 14_042 + 4 * 1_172 + 817 * (5 + 8)  # of MMLU, ARC-Challenge, TruthfulQA MC1 and MC2 (choices: means)


ASSUMED = Assumed()
BLOCKS = {"deberta-v3-base": 12, "llama-2-7b": 32, "vit-b16": 12, "sd15-unet": 4}  # that checkpointing computes one at a time
HINT = 512  # side of a hint in pixels
DECODE = 2_514_518_933_504  # operations of Stable Diffusion's VAE decoder for one image (AutoencoderKL, counted as the models)
# Training and evaluation examples of the data sets, as their cards state them.
EXAMPLES = {
    "mnli": (392_702, 9_815), "sst2": (67_349, 872), "cola": (8_551, 1_043), "qqp": (363_846, 40_430), "qnli": (104_743, 5_463),
    "rte": (2_490, 277), "mrpc": (3_668, 408), "stsb": (5_749, 1_500), "alpaca": (52_002, 0),
    "caltech101": (3_060, 6_084), "dtd": (3_760, 1_880), "flowers102": (1_020, 6_149), "svhn": (73_257, 26_032),
    "eurosat": (16_200, 5_400), "snorb_elevation": (24_300, 12_150),
    "semantic": (22_244, 2_000), "landmarks": (27_000, 2_987), "edges": (118_287, 5_000),
}  # fmt: skip
# Architecture of each experiment's module, and the size of an example (tokens: from the run).
MODELS = {
    "glue": ("deberta-v3-base", 0),
    "instruct": ("llama-2-7b", 0),
    "subject": ("sd15-unet", 64),
    "perturbation": ("sd15-unet", 64),
    "control": ("sd15-unet", 64),
    "vtab": ("vit-b16", 224),
}
PAPER_MODELS = (
    "microsoft/deberta-v3-base",
    "meta-llama/Llama-2-7b-hf",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "google/vit-base-patch16-224-in21k",
)
# Further models that are held during a run, in bytes: autoencoder, text encoder and judges of the pictures, in float32.
HELD = {"subject": 4 * (83_653_863 + 123_060_480 + 21_670_272 + 427_616_513)}
HELD["perturbation"] = HELD["subject"]
HELD["control"] = 4 * (83_653_863 + 123_060_480 + 64_143_958 + 23_885_392)  # SegFormer-B4 and Inception in place of the judges


@dataclass(frozen=True)
class Cost:
    """Of one run, or the sum (peak memory: the largest) of several."""

    runs: int
    training: float  # operations
    evaluation: float  # operations
    hours: float
    memory: float  # bytes
    disk: float  # bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.runs + other.runs,
            self.training + other.training,
            self.evaluation + other.evaluation,
            self.hours + other.hours,
            max(self.memory, other.memory),
            self.disk + other.disk,
        )


NOTHING = Cost(0, 0.0, 0.0, 0.0, 0.0, 0.0)


def cost(run: RunSpec, gpu: Gpu, precision: str = "", evaluations: int = 0) -> Cost:
    """The cost of a run.

    Args:
        run: of a scale with the paper's models.
        gpu: determines peak, and the profile of the scale's `memory`.
        precision: float32 | bf16, instead of the run's.
        evaluations: instead of the run's.

    Raises:
        ConfigurationError: an experiment or a data set whose size is not known here.
    """
    import torch

    from ether.measures.steps import example
    from ether.training import steps_in_all

    module, hyper, settings = experiments()[run.experiment].module, run.hyperparameters, run.settings
    if run.settings["model"]["path"] not in PAPER_MODELS:
        raise ConfigurationError(
            f"The planner counts the paper's models ({', '.join(PAPER_MODELS)}), and {run.experiment} of scale {run.scale!r} has "
            f"{run.settings['model']['path']}. Choose --scale paper, or an overlay on it with its models."
        )
    if module not in MODELS:
        raise ConfigurationError(f"The planner does not know the experiment {run.experiment!r}: add its model to ether/plan.py.")
    name, size = MODELS[module]
    kind = "full" if run.adapt["kind"] == "full" else "adapted"
    trains = run.adapt["kind"] != "none" and module != "perturbation"
    longest = size or hyper["max_length"]
    usual = size or max(8, round(ASSUMED.padded_share * longest))
    half = settings["model"].get("dtype") == "bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    limits = Limits.of(run.resources.get("memory"), gpu.memory * 10**9)
    batch = hyper["batch_size"]
    micro = batch // limits.parts(batch)
    times = evaluations or hyper["evaluations"]

    one = example(name, kind, usual, dtype, limits.checkpointing)
    train, test = _examples(run, module)
    if module in ("subject", "perturbation"):
        passes = 2 if settings["prior"]["images"] and settings["prior"]["weight"] else 1
        steps = int(hyper["max_steps"] or 0) if trains else 0
        training = steps * batch * hyper["accumulation"] * passes * (one.forward + one.backward)
        images = (settings["prompts"].get("limit") or ASSUMED.prompts) * settings["sampling"]["images_per_prompt"]
        drift = settings.get("drift") or {"prompts": []}
        images += len(drift["prompts"]) * drift.get("images_per_prompt", 1)
        rounds = (times if trains else 1) if module == "subject" else len(settings["perturbation"]["distances"])
        each = settings["sampling"]["steps"] * 2 * one.forward + DECODE  # two passes a step: with and without the prompt
        evaluation = rounds * images * each * (1 + ASSUMED.judge_share)
        disk = ASSUMED.run_bytes + images * ASSUMED.image_bytes
    elif module == "control":
        hint = example("control-encoder", "full", HINT)
        steps = steps_in_all(hyper, train)
        refit = int(hyper.get("refit_steps") or 0)
        count = batch * hyper["accumulation"]
        training = steps * count * (one.forward + one.backward + hint.forward + hint.backward)
        training += refit * count * (one.forward + one.backward + hint.forward)
        each = settings["sampling"]["steps"] * 2 * one.forward + DECODE + hint.forward
        rounds = 2 if refit else 1
        images = rounds * (test + (times - 1) * min(settings["sampling"]["between"], test))
        evaluation = images * each * (1 + ASSUMED.judge_share)
        disk = ASSUMED.run_bytes + 3 * settings["sampling"]["saved"] * ASSUMED.image_bytes
    else:
        steps = steps_in_all(hyper, train) if trains else 0
        training = steps * batch * hyper["accumulation"] * (one.forward + one.backward)
        if module == "instruct":
            asked = example(name, kind, ASSUMED.question_tokens, dtype).forward
            evaluation = ASSUMED.requests * asked * (1 if trains else 2)  # a model without training is evaluated twice
        else:
            evaluation = (times if trains else 1) * test * one.forward
        disk = float(ASSUMED.run_bytes)
    chosen = precision or ("bf16" if half else hyper["precision"])
    peak, share = (gpu.float32, ASSUMED.utilisation_float32) if chosen == "float32" else (gpu.bf16, ASSUMED.utilisation_bf16)
    hours = (training + evaluation) / (peak * 1e12 * share) / 3600 + ASSUMED.loading_seconds / 3600

    largest = example(name, kind, longest, dtype, limits.checkpointing)
    weights = largest.parameters * (2 if half else 4) + HELD.get(module, 0)
    memory = float(weights)
    if trains:
        copies = micro * (2 if module == "subject" and settings["prior"]["images"] else 1)
        saved = largest.saved * copies
        if module == "control":
            saved += example("control-encoder", "full", HINT).saved * copies
        if limits.checkpointing:  # one block at a time is computed again
            saved += example(name, kind, longest, dtype).saved * copies // BLOCKS[name]
        memory += largest.trained * 12 + saved + _logits(name, longest) * copies  # gradient and two moments in float32
    return Cost(1, training, evaluation, hours, memory * ASSUMED.memory_overhead + ASSUMED.context_bytes, disk)


def _logits(name: str, tokens: int) -> int:
    """Bytes of a language model's logits in float32, with their gradient and the loss's own copy."""
    from ether.measures.architectures import LLAMA_2_7B

    return 3 * 4 * tokens * int(LLAMA_2_7B["vocab_size"]) if name == "llama-2-7b" else 0


def _examples(run: RunSpec, module: str) -> tuple[int, int]:
    """Training and evaluation examples of a run, within the scale's limits."""
    if module in ("subject", "perturbation"):
        return 0, 0
    if run.task not in EXAMPLES:
        raise one_of("data set", run.task, EXAMPLES, "ether/plan.py")
    limits = run.settings.get("limits") or {}
    train, test = EXAMPLES[run.task]
    return min(train, limits.get("train") or train), min(test, limits.get("evaluation") or test)


def class_images(scale: Scale, experiment: str, gpu: Gpu, precision: str = "") -> Cost:
    """Generating the class images of the prior, once a subject (subjects of one class share them; this is the upper bound)."""
    from ether.measures.steps import example

    section = scale.experiment(experiment)
    if experiments()[experiment].module != "subject" or not section["prior"]["images"]:
        return NOTHING
    images = section["prior"]["images"] * len(section["tasks"])
    work = images * (section["sampling"]["steps"] * 2 * example("sd15-unet", "adapted", 64).forward + DECODE)
    chosen = precision or section["training"]["precision"]
    rate = gpu.float32 * ASSUMED.utilisation_float32 if chosen == "float32" else gpu.bf16 * ASSUMED.utilisation_bf16
    return Cost(0, 0.0, float(work), work / (rate * 1e12) / 3600, 0.0, float(images * 3 * 512 * 512))


def plan(scale: Scale, experiment: str, gpu: Gpu, precision: str = "", evaluations: int = 0) -> Cost:
    """The cost of an experiment: of all its runs, and of the class images."""
    known: dict[str, Cost] = {}
    total = class_images(scale, experiment, gpu, precision)
    for run in runs(scale, experiment):
        # Seeds and learning rates cost the same.
        shown = {k: v for k, v in run.hyperparameters.items() if k != "learning_rate"}
        key = repr((run.adapt["kind"], run.task if experiments()[experiment].module != "subject" else "", shown))
        if key not in known:
            known[key] = cost(run, gpu, precision, evaluations)
        total += known[key]
    return total


# --- the command line ------------------------------------------------------------------------------------------


def table(scale: Scale, names: Sequence[str], gpu_name: str, precision: str = "", evaluations: int = 0) -> str:
    """The costs of exhibits as Markdown. An experiment that several exhibits read is run once, and counted in each of them.

    Raises:
        ConfigurationError: an unknown GPU or exhibit, or an exhibit without an experiment at this scale.
    """
    if gpu_name not in GPUS:
        raise one_of("GPU", gpu_name, GPUS, "--gpu")
    gpu, every = GPUS[gpu_name], exhibits()
    costs: dict[str, Cost] = {}
    lines = [
        "| exhibit | experiments | runs | GPU hours | of them evaluation | peak memory | disk |",
        "|---|---|---|---|---|---|---|",
    ]

    def line(label: str, parts: Sequence[str]) -> str:
        for part in parts:
            if part not in costs:
                costs[part] = plan(scale, part, gpu, precision, evaluations)
        total = sum((costs[part] for part in parts), NOTHING)
        work = total.training + total.evaluation
        share = total.evaluation / work if work else 0.0
        cells = (
            label, ", ".join(f"`{part}`" for part in parts), f"{total.runs:,}", f"{total.hours:,.0f}", f"{share:.0%}",
            f"{total.memory / 1e9:.0f} GB", f"{total.disk / 1e9:.1f} GB",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"

    training = [id_ for id_, entry in every.items() if entry.experiments]
    for name in names:
        if name in every and name not in training:
            raise ConfigurationError(f"{name} trains nothing and costs nothing. Exhibits that train: {', '.join(training)}.")
        if name not in every:
            raise one_of("exhibit", name, training)
        missing = [part for part in every[name].experiments if part not in scale.experiments()]
        if missing:
            raise ConfigurationError(f"Scale {scale.name!r} has no experiment {missing[0]!r}, which {name} reads.")
        lines.append(line(name, every[name].experiments))
    if len(names) > 1:
        parts = list(dict.fromkeys(part for name in names for part in every[name].experiments))
        lines.append(line("all, each experiment once", parts))
    return "\n".join(lines)


def notes(gpu_name: str, precision: str = "") -> str:
    """What the numbers rest on."""
    gpu = GPUS[gpu_name]
    return (
        f"{gpu_name}: {gpu.memory} GB, {gpu.float32:g} TFLOP/s in float32 at {ASSUMED.utilisation_float32:.0%} utilisation, "
        f"{gpu.bf16:g} in bfloat16 at {ASSUMED.utilisation_bf16:.0%}"
        f"{f'; training and sampling in {precision}' if precision else ''}. Texts: padded to {ASSUMED.padded_share:.0%} of the "
        "longest length on average. Two passes of the UNet for each sampling step. Adapters are counted as LoRA of rank 8. Model "
        "downloads are not in the disk column."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.plan", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("exhibits", nargs="*", help="ids of workflow/exhibits.yaml; all that train by default")
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--gpu", default="a100-40", help=", ".join(GPUS))
    parser.add_argument("--precision", choices=("", "float32", "bf16"), default="")
    parser.add_argument("--evaluations", type=_at_least_one, default=0, help="of a run; those of the scale by default")
    options = parser.parse_args(arguments)
    try:
        scale = load(options.scale)
        names = options.exhibits or [
            name
            for name, entry in exhibits().items()
            if entry.experiments and set(entry.experiments) <= set(scale.experiments()) and _known(entry.experiments)
        ]
        print(table(scale, names, options.gpu, options.precision, options.evaluations))
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    print(f"\n{notes(options.gpu, options.precision)}")
    return 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def _known(names: Sequence[str]) -> bool:
    return all(experiments()[name].module in MODELS for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
