"""Training of the image judges (`ether.foundation.image_judges`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad
from transformers import CLIPModel, CLIPTokenizer, RegNetForImageClassification, ViTModel

from ether.foundation import card, image_judges
from ether.foundation.caption_tokenizer import build_tokenizer, encode
from ether.foundation.image_judges import HEADS
from ether.foundation.pictures import to_input
from ether.foundation.pretraining import optimise, warm_up_and_decay
from ether.results import write_text
from ether.worlds import scenes

STEPS = 1_000  # of the reader; the other two take half as many
BATCHES = {"reader": 64, "clip": 96, "dino": 48}
RATES = {"reader": 4.0e-3, "clip": 1.0e-3, "dino": 1.0e-3}
WARM_UP = 60
CORPUS, SUBJECTS, VIEWS = 16_000, 600, 16  # scenes; random subjects, and pictures of each
TEMPERATURE = 0.1  # of the subjects' similarities in training
IGNORED = -100  # target of an attribute for which captions have no word


def _fit(model: nn.Module, steps: int, losses: Iterator[torch.Tensor], name: str) -> None:
    """AdamW with a short warm-up, and a linear decay over the second half."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.01)
    optimise(losses, optimizer, model.parameters(), warm_up_and_decay(steps, WARM_UP), steps=steps, label=name)
    model.eval()


def _disturb(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures with some blur and noise, as generated ones have."""
    blurred = avg_pool2d(pad(inputs, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = 0.4 * torch.rand(len(inputs), 1, 1, 1, generator=generator)
    noise = torch.randn(inputs.shape, generator=generator) * 0.1 * torch.rand(len(inputs), 1, 1, 1, generator=generator)
    return inputs.lerp(blurred, share) + noise


def _target(scene: scenes.Scene, head: str) -> int:
    label = image_judges.attributes(scene)[head]
    return HEADS[head].index(label) if label else IGNORED


def _reader_losses(
    model: RegNetForImageClassification, inputs: torch.Tensor, expected: list[scenes.Scene], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """The sum of the four classifiers' cross entropies."""
    sizes = [len(labels) for labels in HEADS.values()]
    targets = torch.tensor([[_target(scene, head) for head in HEADS] for scene in expected])
    while True:
        chosen = torch.randint(len(inputs), (BATCHES["reader"],), generator=generator)
        parts = model(pixel_values=_disturb(inputs[chosen], generator)).logits.split(sizes, dim=1)
        losses = [cross_entropy(part, targets[chosen, i], ignore_index=IGNORED) for i, part in enumerate(parts)]
        yield torch.stack(losses).nan_to_num().sum()


def _clip_losses(
    model: CLIPModel, inputs: torch.Tensor, tokens: dict[str, torch.Tensor], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """CLIP's symmetric contrastive loss between pictures and captions."""
    target = torch.arange(BATCHES["clip"])
    while True:
        chosen = torch.randint(len(inputs), (BATCHES["clip"],), generator=generator)
        image = image_judges.image_embeddings(model, _disturb(inputs[chosen], generator))
        text = image_judges.text_embeddings(model, {key: value[chosen] for key, value in tokens.items()})
        similarity = image @ text.T * model.logit_scale.exp()
        yield (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2


def _dino_losses(model: ViTModel, inputs: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """The symmetric contrastive loss between two views of each subject; inputs of shape (subjects, views, 3, 32, 32)."""
    count = min(BATCHES["dino"], len(inputs))
    target = torch.arange(count)
    while True:
        chosen = torch.randperm(len(inputs), generator=generator)[:count]
        first = torch.randint(VIEWS, (count,), generator=generator)
        second = (first + 1 + torch.randint(VIEWS - 1, (count,), generator=generator)) % VIEWS
        batch = torch.cat([inputs[chosen, first], inputs[chosen, second]])
        features = image_judges.subject_embeddings(model, _disturb(batch, generator))
        similarity = features[:count] @ features[count:].T / TEMPERATURE
        yield (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2


def train_reader(seed: int, steps: int) -> RegNetForImageClassification:
    """The reader, on all combinations, including those held out from the generative model: it has to recognise them."""
    torch.manual_seed(seed)
    pictures, _, expected = scenes.corpus(seed + 500, min(CORPUS, 64 * steps), include_held_out=True)
    model, generator = image_judges.new_reader().train(), torch.Generator().manual_seed(seed)
    _fit(model, steps, _reader_losses(model, to_input(pictures), expected, generator), "reader")
    return model


def train_clip(seed: int, steps: int, tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIP, on all combinations."""
    torch.manual_seed(seed + 1)
    pictures, captions, _ = scenes.corpus(seed + 501, min(CORPUS, 64 * steps), include_held_out=True)
    model, generator = image_judges.new_clip(tokenizer).train(), torch.Generator().manual_seed(seed + 1)
    _fit(model, steps, _clip_losses(model, to_input(pictures), encode(tokenizer, captions), generator), "clip")
    return model


def train_dino(seed: int, steps: int) -> ViTModel:
    """The replacement for DINO, on random subjects."""
    torch.manual_seed(seed + 2)
    looks = image_judges.random_looks(min(SUBJECTS, 8 * steps), seed)
    inputs = to_input(image_judges.views(looks, VIEWS, seed)).unflatten(0, (len(looks), VIEWS))
    model, generator = image_judges.new_dino().train(), torch.Generator().manual_seed(seed + 2)
    _fit(model, steps, _dino_losses(model, inputs, generator), "dino")
    return model


def _preprocessor(kind: str) -> str:
    """The content of a ``preprocessor_config.json``: 32 x 32, mean and standard deviation 0.5."""
    side = {"height": scenes.SIZE, "width": scenes.SIZE}
    return json.dumps(
        {
            "image_processor_type": kind,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": side,
            "resample": 3,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        indent=2,
    )


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1) -> None:
    """Train the three judges (the reader for `steps`, the others for half as many) and write them to the folder `out`.

    Their random numbers are independent of each other. The same seed, steps and threads give the same weights on one kind of CPU.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    tokenizer, half = build_tokenizer(), max(1, steps // 2)
    models: dict[str, Any] = {
        "reader": train_reader(seed, steps),
        "clip": train_clip(seed, half, tokenizer),
        "dino": train_dino(seed, half),
    }
    minutes = (time.monotonic() - began) / 60
    card.start(out)
    processors = {"reader": "ViTImageProcessor", "clip": "CLIPImageProcessor", "dino": "ViTImageProcessor"}
    for name, model in models.items():
        model.save_pretrained(out / name)
        write_text(_preprocessor(processors[name]) + "\n", out / name / "preprocessor_config.json")
    tokenizer.save_pretrained(out / "clip")
    card.write(
        out,
        name="image-judges",
        what="CLIP, a stand-in for DINO and an attribute reader for the world of scenes (ether.worlds.scenes)",
        seed=seed,
        steps=steps,
        threads=threads,
        batch=BATCHES,
        models=models,
        minutes=minutes,
        scores=image_judges.validate(out, seed=seed + 1),
        made_from="pictures and captions",
    )
