"""Deviations in subject-driven generation: what is measured in addition, on which prompts, and the time steps of the loss."""

from __future__ import annotations

import torch

from ether import config
from ether.foundation.times import time_probabilities
from ether.paper.deviations.point import Point, percent, table

STEPS, FIRST, LAST = 1000, 0.00085, 0.012  # Stable Diffusion's noise schedule, linear in the square root


def additions() -> Point:
    """Rows and columns that the paper's tables do not have."""
    drifts = {name: config.load(name).experiment("subject")["drift"] for name in ("paper", "small")}
    rows = [
        ["base model", "a row of Table 2: the model without tuning, from the same noise"],
        ["one-sided ETHER+", "a row of Table 2, too; the paper has it in Table 11 only"],
        ["Background, Colour", "shares of images with the background, or the colour, that their prompt names (small scale)"],
        *[
            [
                f"Drift, scale `{name}`",
                f"{len(drift['prompts'])} unrelated prompts, {drift.get('images_per_prompt', 1)} image each",
            ]
            for name, drift in drifts.items()
        ],
    ]
    return Point(
        "What is measured in addition",
        "The paper argues that bounded transformations keep what the model knows, and shows images as evidence. Drift is a "
        "number for this: one minus the cosine similarity (DINO) of the model's images before and after tuning, for prompts "
        "without the subject and its class, from the same noise. It is 0 without tuning; PEFT's image benchmark has a "
        "similar measure. Claims on it are marked as not in the paper.",
        table(["addition", "meaning"], rows),
    )


def fidelity() -> Point:
    """The prompts of the metrics that compare with the photographs."""
    return Point(
        "Prompts that change the subject",
        "The paper's 25 prompts contain requests for another colour, and its DINO and CLIP-I average over all of them. An image "
        "that follows such a prompt is unlike the photographs, so the metric rewards a model that ignores it. The paper's scale "
        "does the same. The small scale has two such prompts of twelve. There DINO, CLIP-I and LPIPS are averages over the other "
        "ten (`prompts.fidelity: unaltered`); whether the colour is followed is a column of its own.",
    )


def time_steps() -> Point:
    """Uniform time steps against those of the small scale."""
    betas = torch.linspace(FIRST**0.5, LAST**0.5, STEPS, dtype=torch.float64).square()
    alphas = (1 - betas).cumprod(0)
    late = slice(STEPS // 2, None)
    uniform, noise = (float(time_probabilities(alphas, kind)[late].sum()) for kind in ("uniform", "noise"))
    return Point(
        "Time steps of DreamBooth's loss",
        "Stable Diffusion and DreamBooth's code draw the time step uniformly, and so does the paper's scale. The small model is "
        "pretrained with more weight on noisy time steps, where the content of an image is decided, and is tuned with the same "
        f"distribution (`times: noise`). With Stable Diffusion's noise schedule, {percent(noise, 0)} of its draws are in the "
        f"noisier half of the steps, instead of {percent(uniform, 0)}.",
    )


def latents() -> Point:
    """The mode of the autoencoder's distribution against samples of it."""
    images = config.load("paper").experiment("subject")["prior"]["images"]
    return Point(
        "Latents of the photographs",
        "The scripts of DreamBooth and OFT draw the latent of a photograph from the autoencoder's normal distribution in every "
        f"step. Here it is the mode of the distribution, computed once, for the photographs and the {images} class images. The "
        "difference is noise that is small beside that of the diffusion process; it has not been measured. One-sided ETHER+ has "
        f"weight decay {_decay('ether-plus-one-sided'):g} at the paper's scale, as ETHER+ ({_decay('ether-plus'):g}).",
    )


def _decay(method: str) -> float:
    [run] = config.runs(config.load("paper", {"methods": method, "tasks": "teapot", "seeds": "0"}), "subject")
    return float(run.hyperparameters["weight_decay"])


POINTS = (additions, fidelity, time_steps, latents)
