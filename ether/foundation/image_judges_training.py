"""Training of the image judges (`ether.foundation.image_judges`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel, CLIPTokenizer, RegNetForImageClassification, RegNetModel

from ether.foundation import card, image_judges
from ether.foundation.caption_tokenizer import build_tokenizer, encode
from ether.foundation.image_judges import HEADS
from ether.foundation.pictures import disturb, preprocessor, to_input
from ether.foundation.pretraining import decay_groups, optimise, warm_up_and_decay
from ether.results import write_text
from ether.worlds import pictures

STEPS = 1_200  # of the reader; CLIP takes half as many, and the replacement for DINO, which tells 960 drawings apart, 2.5 times
BATCHES = {"reader": 64, "clip": 96, "dino": 64}
RATES = {"reader": 4.0e-3, "clip": 1.0e-3, "dino": 2.0e-3}
WARM_UP = 60
CORPUS = 16_000  # scenes for the reader and for CLIP
OTHER_ARTIST = 0.3  # share of CLIP's scenes with the second artist's drawing of the caption's noun
SCALE = 16.0  # of the cosine classifier over drawings


def _fit(model: nn.Module, parameters: list[nn.Parameter], steps: int, losses: Iterator[torch.Tensor], name: str) -> None:
    """AdamW with a short warm-up, and a linear decay over the second half."""
    optimizer = torch.optim.AdamW(decay_groups(parameters), lr=RATES[name])
    optimise(losses, optimizer, parameters, warm_up_and_decay(steps, WARM_UP), steps=steps, label=name)
    model.cpu().eval()


def _scenes(seed: int, count: int, other_artist: float = 0.0) -> list[pictures.Scene]:
    """Scenes of one thing: every pair of name and background, some recoloured; a share of them by the second artist."""
    rng, backgrounds, colours = np.random.default_rng([seed, 8]), tuple(pictures.BACKGROUNDS), tuple(pictures.COLOURS)
    subjects = {subject.noun for subject in pictures.SUBJECTS}
    names, found = HEADS["thing"], []
    for _ in range(count):
        name, background = names[int(rng.integers(len(names)))], backgrounds[int(rng.integers(len(backgrounds)))]
        colour = colours[int(rng.integers(len(colours)))] if rng.random() < 0.3 else None
        if name == pictures.FACE:
            found.append(pictures.alone(name, background, rng, face=pictures.random_face(rng)))
        elif rng.random() < other_artist and name not in subjects:
            found.append(pictures.alone(name, background, rng, artist="fluent", colour=colour))
        else:
            found.append(pictures.alone(name, background, rng, colour=colour))
    return found


def train_reader(seed: int, steps: int, device: str) -> RegNetForImageClassification:
    """The reader, on all pairs of name and background: it has to recognise those held out from the generative model."""
    torch.manual_seed(seed)
    expected = _scenes(seed + 500, min(CORPUS, 64 * steps))
    inputs, generator = to_input(pictures.render_many(expected)).to(device), torch.Generator(device).manual_seed(seed)
    targets = torch.tensor([[HEADS[h].index(word) for h, word in image_judges.attributes(s).items()] for s in expected]).to(
        device
    )
    model, sizes = image_judges.new_reader().train().to(device), [len(labels) for labels in HEADS.values()]

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(inputs), (BATCHES["reader"],), generator=generator, device=device)
            parts = model(pixel_values=disturb(inputs[chosen], generator)).logits.split(sizes, dim=1)
            yield torch.stack([cross_entropy(part, targets[chosen, i]) for i, part in enumerate(parts)]).sum()

    _fit(model, list(model.parameters()), steps, losses(), "reader")
    return model


def train_clip(seed: int, steps: int, tokenizer: CLIPTokenizer, device: str) -> CLIPModel:
    """CLIP, on all pairs of name and background; the second artist's drawings (none of a subject) have the same captions."""
    torch.manual_seed(seed + 1)
    expected, rng = _scenes(seed + 501, min(CORPUS, 64 * steps), OTHER_ARTIST), np.random.default_rng([seed, 9])
    inputs, generator = to_input(pictures.render_many(expected)).to(device), torch.Generator(device).manual_seed(seed + 1)
    encoded = encode(tokenizer, [pictures.caption(scene, rng) for scene in expected])
    tokens = {key: value.to(device) for key, value in encoded.items()}
    model, target = image_judges.new_clip(tokenizer).train().to(device), torch.arange(BATCHES["clip"], device=device)

    def losses() -> Iterator[torch.Tensor]:
        """The symmetric contrastive loss between pictures and captions."""
        while True:
            chosen = torch.randint(len(inputs), (BATCHES["clip"],), generator=generator, device=device)
            image = image_judges.image_embeddings(model, disturb(inputs[chosen], generator))
            text = image_judges.text_embeddings(model, {key: value[chosen] for key, value in tokens.items()})
            similarity = image @ text.T * model.logit_scale.exp()
            yield (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2

    _fit(model, list(model.parameters()), steps, losses(), "clip")
    return model


def train_dino(seed: int, steps: int, device: str) -> RegNetModel:
    """The replacement for DINO: it tells drawings apart, by a classifier over cosines that is not kept."""
    torch.manual_seed(seed + 2)
    known, rng = image_judges.known_drawings(), np.random.default_rng([seed, 6])
    model, generator = image_judges.new_dino().train().to(device), torch.Generator(device).manual_seed(seed + 2)
    heads = nn.Parameter(0.1 * torch.randn(len(known), model.config.hidden_sizes[-1]).to(device))

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = rng.integers(len(known), size=BATCHES["dino"])
            shown = to_input(pictures.render_many([image_judges.view(known[int(i)], rng) for i in chosen])).to(device)
            features = image_judges.subject_embeddings(model, disturb(shown, generator))
            yield cross_entropy(SCALE * features @ normalize(heads, dim=-1).T, torch.from_numpy(chosen).to(device))

    _fit(model, [*model.parameters(), heads], steps, losses(), "dino")
    return model


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Train the three judges (the reader for `steps`, see `STEPS` for the others) and write them to the folder `out`.

    Their random numbers are independent of each other. The same seed, steps and threads give the same weights on one kind of CPU.
    """
    began = time.monotonic()
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    models: dict[str, Any] = {
        "reader": train_reader(seed, steps, device),
        "clip": train_clip(seed, max(1, steps // 2), tokenizer, device),
        "dino": train_dino(seed, 5 * steps // 2, device),
    }
    minutes = (time.monotonic() - began) / 60
    card.start(out)
    processors = {"reader": "ViTImageProcessor", "clip": "CLIPImageProcessor", "dino": "ViTImageProcessor"}
    for name, model in models.items():
        model.save_pretrained(out / name)
        write_text(preprocessor(processors[name]) + "\n", out / name / "preprocessor_config.json")
    tokenizer.save_pretrained(out / "clip")
    card.write(
        out,
        name="image-judges",
        what="CLIP, a stand-in for DINO and an attribute reader for the world of pictures (ether.worlds.pictures)",
        seed=seed,
        steps=steps,
        threads=threads,
        device=device,
        batch=BATCHES,
        models=models,
        minutes=minutes,
        scores=image_judges.validate(out, seed=seed + 1),
        made_from="captions and pictures of drawings under free licences (ether/worlds/drawings/NOTICE)",
    )
