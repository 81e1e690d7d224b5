"""``vision-encoder``: a vision transformer that names drawings, for image classification (`ether.experiments.vtab`).

It is trained on two kinds of pictures, disturbed by noise, blur and changes of contrast.

- *Scenes of one thing* (`ether.worlds.pictures`) of random size, place and rotation. The model predicts which of the named
  drawings of the first artist it is, the background, the colour if the thing is recoloured, and its place, size and rotation.
- *Letters* in several fonts and random colours, with neighbours. The model predicts the letter in the middle. No digit occurs.

The things of `ether.worlds.vision.held_out_names`, from which the task `caltech101` is made, and the drawings of the second
artist are left out.

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
from torch.nn.functional import cross_entropy, mse_loss
from transformers import ViTConfig, ViTForImageClassification

from ether.foundation import card
from ether.foundation.pictures import Pictures, disturb, preprocessor, to_input
from ether.foundation.pretraining import MuonWithAdam, optimise, warm_up_and_decay
from ether.results import write_text
from ether.worlds import drawings, pictures, vision

STEPS, BATCH = 4_000, {"things": 144, "letters": 80}
MATRIX_RATE, RATE, WARM_UP, WEIGHT_DECAY = 4.0e-3, 1.0e-3, 100, 0.02
CORPUS = {"things": 80_000, "letters": 24_000}  # pictures; every epoch disturbs them differently
WIDTH, LAYERS, HEADS, PATCH = 128, 4, 4, 16
SIDES = (28, 56)  # of a thing in pixels: the smallest and the largest
RECOLOURED, ANGLE = 0.3, 25.0
SEEN, OTHER = "noto", "fluent"  # artists
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabdefghkmnpqrty"  # without those that look like a digit
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "STIXGeneral",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
)  # of matplotlib


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


def geometry(found: list[pictures.Scene]) -> torch.Tensor:
    """Targets (scenes, 4) of about unit size: the thing's centre (x, y), its side and its rotation."""
    rows = []
    for scene in found:
        [thing] = scene.things
        centre = [(at + thing.side / 2) / pictures.SIZE * 4 - 2 for at in (thing.x, thing.y)]
        rows.append([*centre, (thing.side - 42) / 8, thing.angle / ANGLE * 1.5])
    return torch.tensor(rows)


def letters(seed: int, count: int) -> tuple[Pictures, torch.Tensor]:
    """Pictures (count, 64, 64, 3) of a letter in the middle, most with parts of others beside it, and targets (count,)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng([seed, 12])
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {(font, size): ImageFont.truetype(folder / f"{font}.ttf", size) for font in FONTS for size in range(34, 58, 4)}
    kinds, found, targets = list(fonts), [], rng.integers(0, len(LETTERS), count)
    for target in targets:
        while True:
            back, front = rng.integers(10, 246, (2, 3))
            if np.linalg.norm(back - front) > 110:
                break
        font = fonts[kinds[int(rng.integers(len(kinds)))]]
        picture = Image.new("RGB", (pictures.SIZE, pictures.SIZE), tuple(int(v) for v in back))
        draw, middle = ImageDraw.Draw(picture), pictures.SIZE / 2 + rng.normal(0, 2, 2)
        ink = tuple(int(v) for v in front)
        draw.text(tuple(middle), LETTERS[target], ink, font, anchor="mm")
        width = draw.textlength(LETTERS[target], font)
        for side in (-1, 1):
            if rng.random() < 0.6:
                other = LETTERS[int(rng.integers(len(LETTERS)))]
                draw.text((middle[0] + side * (width / 2 + 1), middle[1]), other, ink, font, anchor="rm" if side < 0 else "lm")
        angle = float(rng.uniform(-15, 15))
        turned = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=tuple(int(v) for v in back))
        found.append(np.asarray(turned))
    return np.stack(found), torch.from_numpy(targets)


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


def train(seed: int, steps: int, device: str) -> ViTForImageClassification:
    """Trains the model; all heads but that for the names are dropped."""
    torch.manual_seed(seed)
    known = names()
    counts = {kind: min(CORPUS[kind], BATCH[kind] * steps) for kind in CORPUS}
    expected = scenes(seed, counts["things"], known)
    images = torch.from_numpy(pictures.render_many(expected)).to(device)
    targets, places = attributes(expected, known).to(device), geometry(expected).to(device)
    shown, written = letters(seed, counts["letters"])
    glyphs, written = torch.from_numpy(shown).to(device), written.to(device)
    model, generator = new_model(known).train().to(device), torch.Generator(device).manual_seed(seed)
    sizes = [len(pictures.BACKGROUNDS), len(pictures.COLOURS) + 1, places.shape[1], len(LETTERS)]
    others = nn.Linear(WIDTH, sum(sizes)).to(device)

    def losses() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(images), (BATCH["things"],), generator=generator, device=device)
            read = torch.randint(len(glyphs), (BATCH["letters"],), generator=generator, device=device)
            batch = disturb(to_input(torch.cat([images[chosen], glyphs[read]])), generator)
            state = model.vit(pixel_values=batch).last_hidden_state[:, 0]
            things, letter = state.split([len(chosen), len(read)])
            name, background, colour = targets[chosen].unbind(1)
            parts = others(things).split(sizes, dim=1)
            yield (
                cross_entropy(model.classifier(things), name, label_smoothing=0.05)
                + 0.5 * cross_entropy(parts[0], background)
                + 0.5 * cross_entropy(parts[1], colour)
                + 0.5 * mse_loss(parts[2], places[chosen])
                + 0.7 * cross_entropy(others(letter).split(sizes, dim=1)[3], written[read])
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
    return model.cpu().eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, artist: str, seed: int, count: int = 1_000) -> float:
    """Share of new scenes of an artist's drawings that the model names correctly."""
    known = names()
    expected = scenes(seed, count, known, artist)
    logits = torch.cat([model(pixel_values=part).logits for part in to_input(pictures.render_many(expected)).split(250)])
    return float((logits.argmax(-1) == attributes(expected, known)[:, 0]).float().mean())


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1, device: str = "cpu") -> None:
    """Train the model and write it to the folder `out`. The same arguments give the same weights on one kind of CPU."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    model = train(seed, steps, device)
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
        device=device,
        batch=BATCH,
        models=model,
        minutes=minutes,
        scores={
            "name_accuracy": round(accuracy(model, SEEN, seed + 1), 4),
            "name_accuracy_other_artist": round(accuracy(model, OTHER, seed + 1), 4),
        },
        made_from="pictures of drawings under free licences (ether/worlds/drawings/NOTICE) and of letters in free fonts",
    )
