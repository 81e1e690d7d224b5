"""``vision-encoder``: a vision transformer that names drawings, for image classification (`ether.experiments.vtab`).

It is trained on scenes of one thing (`ether.worlds.pictures`) to predict three attributes: which of the named drawings of the
first artist it is, the background, and the colour if the thing is recoloured. Size, place, rotation and mirroring are random,
and the pictures are disturbed by noise, blur and changes of contrast. The things of `ether.worlds.vision.held_out_names`, from
which the task `caltech101` is made, and the drawings of the second artist are left out.

The head for the names is kept, so that the model is an ordinary `ViTForImageClassification`; for a task it is replaced.

**Input.** RGB pictures of 64 x 64 as float32 of shape (count, 3, 64, 64), normalised to -1 ... 1.
**Output.** Logits over `names()`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from ether.foundation import card
from ether.foundation.pictures import disturb, preprocessor, to_input
from ether.foundation.pretraining import MuonWithAdam, optimise, warm_up_and_decay
from ether.results import write_text
from ether.worlds import drawings, pictures, vision

STEPS, BATCH = 4_000, 96
MATRIX_RATE, RATE, WARM_UP, WEIGHT_DECAY = 4.0e-3, 1.0e-3, 100, 0.02
CORPUS = 40_000  # scenes; every epoch disturbs them differently
WIDTH, LAYERS, HEADS, PATCH = 128, 4, 4, 16
SIDES = (28, 56)  # of a thing in pixels: the smallest and the largest
RECOLOURED, ANGLE = 0.3, 25.0
SEEN, OTHER = "noto", "fluent"  # artists


def names() -> tuple[str, ...]:
    """The names that the model knows, in the order of its logits."""
    held_out = set(vision.held_out_names())
    return tuple(entry.name for entry in drawings.entries() if entry.name not in held_out)


def scenes(seed: int, count: int, known: tuple[str, ...], artist: str = SEEN) -> list[pictures.Scene]:
    """Scenes of one thing each, with random name, background, size, place, rotation and colour."""
    rng, backgrounds, colours = np.random.default_rng([seed, 11]), tuple(pictures.BACKGROUNDS), tuple(pictures.COLOURS)
    found = []
    for _ in range(count):
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        x, y = (int(v) for v in rng.integers(0, pictures.SIZE - side + 1, 2))
        thing = pictures.Thing(
            known[int(rng.integers(len(known)))],
            x,
            y,
            side,
            artist=artist,
            colour=colours[int(rng.integers(len(colours)))] if rng.random() < RECOLOURED else None,
            mirrored=bool(rng.integers(2)),
            angle=float(rng.uniform(-ANGLE, ANGLE)),
        )
        down, right = (int(v) for v in rng.integers(0, pictures.SIZE, 2))
        found.append(pictures.Scene((thing,), backgrounds[int(rng.integers(len(backgrounds)))], (down, right)))
    return found


def attributes(found: list[pictures.Scene], known: tuple[str, ...]) -> torch.Tensor:
    """Targets (scenes, 3): name, background, and colour (0 for none)."""
    names_at, backgrounds = {name: i for i, name in enumerate(known)}, list(pictures.BACKGROUNDS)
    colours = [None, *pictures.COLOURS]
    return torch.tensor(
        [[names_at[s.things[0].name], backgrounds.index(s.background), colours.index(s.things[0].colour)] for s in found]
    )


def new_model(known: tuple[str, ...]) -> ViTForImageClassification:
    """The architecture with random weights."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=pictures.SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(known)),
        label2id={name: i for i, name in enumerate(known)},
    )
    return ViTForImageClassification(config)


def train(seed: int, steps: int) -> ViTForImageClassification:
    """Trains the model; the heads for background and colour are dropped."""
    torch.manual_seed(seed)
    known = names()
    expected = scenes(seed, min(CORPUS, BATCH * steps), known)
    inputs, targets = to_input(pictures.render_many(expected)), attributes(expected, known)
    model, generator = new_model(known).train(), torch.Generator().manual_seed(seed)
    others = nn.Linear(WIDTH, len(pictures.BACKGROUNDS) + len(pictures.COLOURS) + 1)
    sizes = [len(pictures.BACKGROUNDS), len(pictures.COLOURS) + 1]

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(inputs), (BATCH,), generator=generator)
            state = model.vit(pixel_values=disturb(inputs[chosen], generator)).last_hidden_state[:, 0]
            name, background, colour = targets[chosen].unbind(1)
            parts = others(state).split(sizes, dim=1)
            yield (
                cross_entropy(model.classifier(state), name, label_smoothing=0.05)
                + 0.5 * cross_entropy(parts[0], background)
                + 0.5 * cross_entropy(parts[1], colour)
            )

    named = dict(model.named_parameters()) | {f"others.{name}": p for name, p in others.named_parameters()}
    optimizer = MuonWithAdam(
        named,
        matrix_rate=MATRIX_RATE,
        rate=RATE,
        apart=("embedding", "classifier", "others", "cls_token"),
        weight_decay=WEIGHT_DECAY,
    )
    factor = warm_up_and_decay(steps, WARM_UP)
    optimise(losses(), optimizer, list(named.values()), factor, steps=steps, label="vision-encoder")
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, artist: str, seed: int, count: int = 1_000) -> float:
    """Share of new scenes of an artist's drawings that the model names correctly."""
    known = names()
    expected = scenes(seed, count, known, artist)
    logits = torch.cat([model(pixel_values=part).logits for part in to_input(pictures.render_many(expected)).split(250)])
    return float((logits.argmax(-1) == attributes(expected, known)[:, 0]).float().mean())


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1) -> None:
    """Train the model and write it to the folder `out`. The same arguments give the same weights on one kind of CPU."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    model = train(seed, steps)
    minutes = (time.monotonic() - began) / 60
    card.start(out)
    model.save_pretrained(out)
    write_text(preprocessor("ViTImageProcessor") + "\n", out / "preprocessor_config.json")
    card.write(
        out,
        name="vision-encoder",
        what=f"a vision transformer that names {model.config.num_labels} drawings (ether.worlds.pictures)",
        seed=seed,
        steps=steps,
        threads=threads,
        batch=BATCH,
        models=model,
        minutes=minutes,
        scores={
            "name_accuracy": round(accuracy(model, SEEN, seed + 1), 4),
            "name_accuracy_other_artist": round(accuracy(model, OTHER, seed + 1), 4),
        },
        made_from="pictures of drawings under free licences (ether/worlds/drawings/NOTICE)",
    )
