"""``image-judges``: three small networks that look at pictures of the world of scenes and say what is in them.

- ``clip``: a `CLIPModel` (with its tokenizer) for CLIP-I and CLIP-T, trained contrastively on pictures and captions.
- ``dino``: a `ViTModel` in DINO's place: its CLS feature is alike for two pictures of the same object, wherever it is,
  and unlike for others. Supervised contrastive learning over 600 made-up subjects, none of them one of
  `scenes.SUBJECTS`.
- ``reader``: a `RegNetForImageClassification` whose 30 logits are four classifiers side by side (`HEADS`): background,
  colour, shape and texture. It has only seen rendered scenes, never what a generative model draws; a little blur and
  noise make it tolerant of that.

**Input.** All three take RGB pictures of 32 x 32 as float32 of shape (count, 3, 32, 32), with mean 0.5 and standard
deviation 0.5 a channel, so -1 ... 1: `to_input` does that for bytes of shape (count, 32, 32, 3), and each folder's
``preprocessor_config.json`` tells transformers' image processors to do the same. Pictures of another size are to be
resized to 32 x 32 first.

**Output.** `image_features`, `text_features` and `subject_features` give vectors of length 1, so that similarities are
inner products; `read` gives words.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    RegNetConfig,
    RegNetForImageClassification,
    ViTConfig,
    ViTModel,
)

from ether import results
from ether.foundation import CARD
from ether.worlds import scenes

Pictures = NDArray[np.uint8]  # (count, 32, 32, 3)

STEPS = 1_000  # of the reader; the other two take half
BATCHES = {"reader": 64, "clip": 96, "dino": 48}
RATES = {"reader": 4.0e-3, "clip": 1.0e-3, "dino": 1.0e-3}
WARM_UP = 60
CORPUS, SUBJECTS, VIEWS = 16_000, 600, 16
HEADS: dict[str, tuple[str, ...]] = {
    "background": tuple(scenes.BACKGROUNDS),
    "colour": tuple(scenes.COLOURS),
    "shape": scenes.KINDS,
    "texture": tuple(scenes.TEXTURES),
}
WIDTH, LENGTH = 128, 20  # of the transformers, of captions in tokens
TEMPERATURE = 0.1  # of the subjects' similarities in training
IGNORED = -100

# --- models -----------------------------------------------------------------------------------------------------------


def new_reader() -> RegNetForImageClassification:
    """A small RegNet: 16 x 16, 8 x 8 and 4 x 4."""
    names = [f"{head}: {label}" for head, labels in HEADS.items() for label in labels]
    settings: dict[str, Any] = {  # known to every configuration, not to the class's signature
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return RegNetForImageClassification(
        RegNetConfig(
            **settings,
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[1, 2, 2],
            groups_width=16,
            layer_type="x",
            downsample_in_first_stage=False,
        )
    )


def new_clip(words: CLIPTokenizer) -> CLIPModel:
    """Two towers: four layers x 128 over patches of 8 pixels, two layers x 128 over words."""
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": scenes.SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def new_dino() -> ViTModel:
    """Four layers x 128 over patches of 8 pixels."""
    return ViTModel(
        ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=scenes.SIZE,
            patch_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


def load_reader(folder: Path | str) -> RegNetForImageClassification:
    """The reader of a folder, in float32, ready to read."""
    return RegNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def load_clip(folder: Path | str) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP and its tokenizer, in float32."""
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder)


def load_dino(folder: Path | str) -> ViTModel:
    """The stand-in for DINO, in float32."""
    return ViTModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()


# --- use --------------------------------------------------------------------------------------------------------------


def to_input(pictures: Pictures) -> torch.Tensor:
    """Bytes (count, 32, 32, 3) as a tensor (count, 3, 32, 32) in -1 ... 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def tokens_of(words: CLIPTokenizer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Token numbers and mask of texts, each of shape (texts, 20)."""
    encoded = words(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def _image_features(model: CLIPModel, pictures: torch.Tensor) -> torch.Tensor:
    return normalize(model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output), dim=-1)


def _text_features(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    return normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def _subject_features(model: ViTModel, pictures: torch.Tensor) -> torch.Tensor:
    return normalize(model(pixel_values=pictures).last_hidden_state[:, 0], dim=-1)


@torch.no_grad()
def image_features(model: CLIPModel, pictures: Pictures) -> torch.Tensor:
    """CLIP's features of pictures, of shape (pictures, 64) and length 1."""
    return _image_features(model, to_input(pictures))


@torch.no_grad()
def text_features(model: CLIPModel, words: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """CLIP's features of texts, of shape (texts, 64) and length 1."""
    return _text_features(model, tokens_of(words, texts))


@torch.no_grad()
def subject_features(model: ViTModel, pictures: Pictures) -> torch.Tensor:
    """The CLS features of pictures, of shape (pictures, 128) and length 1."""
    return _subject_features(model, to_input(pictures))


@torch.no_grad()
def read(model: RegNetForImageClassification, pictures: Pictures) -> dict[str, list[str]]:
    """What the reader sees in each picture: its background, colour, shape and texture (keys and words of `HEADS`)."""
    logits = model(pixel_values=to_input(pictures)).logits.split([len(labels) for labels in HEADS.values()], dim=1)
    return {
        head: [labels[i] for i in part.argmax(1).tolist()] for (head, labels), part in zip(HEADS.items(), logits, strict=True)
    }


def wanted(scene: scenes.Scene) -> dict[str, str | None]:
    """What the reader should say about a scene; None where captions have no word."""
    return {
        "background": scene.background,
        "colour": scene.colour,
        "shape": scene.look.kind,
        "texture": scene.texture,
    }


def agreement(model: RegNetForImageClassification, pictures: Pictures, shown: Sequence[scenes.Scene]) -> dict[str, float]:
    """Shares of pictures that the reader reads as the scenes they are to show, by attribute and for all four at once."""
    said, every = read(model, pictures), np.ones(len(shown), dtype=bool)
    shares = {}
    for head in HEADS:
        target = [wanted(scene)[head] for scene in shown]
        known = np.array([t is not None for t in target])
        right = np.array([a == b for a, b in zip(said[head], target, strict=True)])
        shares[head] = round(float(right[known].mean()), 4)
        every &= right | ~known
    return {**shares, "all of them": round(float(every.mean()), 4)}


# --- validation -------------------------------------------------------------------------------------------------------


def retrieval(model: CLIPModel, words: CLIPTokenizer, *, seed: int = 1, count: int = 100) -> dict[str, float]:
    """Of `count` fresh pictures of held-out combinations and their captions: how often the nearest is the right one."""
    shown = scenes.held_out_scenes(seed, count)
    texts = [scenes.describe(scene) for scene in shown]
    similar = image_features(model, scenes.draw_many(shown)) @ text_features(model, words, texts).T
    same = torch.tensor([[a == b for b in texts] for a in texts])  # two scenes may have one caption
    at = torch.arange(count)
    return {
        "image to text": round(float(same[at, similar.argmax(1)].float().mean()), 4),
        "text to image": round(float(same[similar.argmax(0), at].float().mean()), 4),
    }


def views(looks: Sequence[scenes.Look], count: int, seed: int) -> Pictures:
    """`count` pictures of each look, elsewhere and before any background: (looks * count, 32, 32, 3), look by look."""
    rng = np.random.default_rng([seed, 5])
    names = list(scenes.BACKGROUNDS)
    return scenes.draw_many(
        [scenes.place(look, names[int(rng.integers(len(names)))], rng) for look in looks for _ in range(count)]
    )


def made_up(count: int, seed: int) -> list[scenes.Look]:
    """Looks of subjects that are none of `scenes.SUBJECTS`: mostly things, one in six a shape with any two colours."""
    rng = np.random.default_rng([seed, 6])
    looks = []
    for i in range(count):
        kind = scenes.SHAPES[i // 6 % len(scenes.SHAPES)] if i % 6 == 5 else scenes.THINGS[i % 3]
        looks.append(scenes.random_look(kind, rng))
    return looks


def discrimination(model: ViTModel, looks: Sequence[scenes.Look], *, seed: int = 1, count: int = 12) -> dict[str, float]:
    """How well similarity tells pairs of pictures of the same look from pairs of different looks.

    ``AUC``: the share of (same, different) pairs of pairs in which the same are more alike; and both mean similarities.
    """
    features = subject_features(model, views(looks, count, seed))
    similar = (features @ features.T).numpy()
    owner = np.repeat(np.arange(len(looks)), count)
    upper = np.triu(np.ones_like(similar, dtype=bool), 1)
    same = similar[(owner[:, None] == owner) & upper]
    other = np.sort(similar[(owner[:, None] != owner) & upper])
    below = (np.searchsorted(other, same, "left") + np.searchsorted(other, same, "right")) / 2
    return {
        "AUC": round(float(below.mean() / len(other)), 4),
        "same subject": round(float(same.mean()), 4),
        "different subjects": round(float(other.mean()), 4),
    }


def validate(folder: Path, *, seed: int = 1) -> dict[str, float]:
    """Every judge's scores on fresh renders."""
    stream = scenes.scenes(seed + 2_000_000)
    own = [next(stream) for _ in range(1000)]
    new = scenes.held_out_scenes(seed, 300)
    reader = load_reader(folder / "reader")
    model, words = load_clip(folder / "clip")
    dino = load_dino(folder / "dino")
    found = {f"reader, {k}": v for k, v in agreement(reader, scenes.draw_many(own), own).items()}
    found |= {f"reader, held-out combinations, {k}": v for k, v in agreement(reader, scenes.draw_many(new), new).items()}
    found |= {f"CLIP, {k} among 100": v for k, v in retrieval(model, words, seed=seed).items()}
    subjects = [subject.look for subject in scenes.SUBJECTS]
    found |= {f"DINO, the subjects, {k}": v for k, v in discrimination(dino, subjects, seed=seed).items()}
    others = made_up(40, seed + 3_000_000)
    found |= {f"DINO, 40 others never seen, {k}": v for k, v in discrimination(dino, others, seed=seed).items()}
    return found


# --- training ---------------------------------------------------------------------------------------------------------


def _optimised(model: nn.Module, steps: int, losses: Iterator[torch.Tensor], name: str) -> None:
    """AdamW with a short warm-up and a linear decay over the second half, on losses as they come."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / WARM_UP, 2 * (steps - i) / steps))
    began, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += float(loss.detach())
        if step % max(1, steps // 6) == 0:
            mean, total = total / max(1, steps // 6), 0.0
            print(f"{name} {step}/{steps}: loss {mean:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    model.eval()


def _disturbed(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures with some blur and noise, as generated ones have."""
    blurred = nn.functional.avg_pool2d(nn.functional.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = 0.4 * torch.rand(len(batch), 1, 1, 1, generator=generator)
    noise = torch.randn(batch.shape, generator=generator) * 0.1 * torch.rand(len(batch), 1, 1, 1, generator=generator)
    return batch.lerp(blurred, share) + noise


def _reader_losses(
    model: RegNetForImageClassification, pictures: torch.Tensor, shown: list[scenes.Scene], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    sizes = [len(labels) for labels in HEADS.values()]
    targets = torch.tensor(
        [
            [labels.index(str(wanted(scene)[head])) if wanted(scene)[head] else IGNORED for head, labels in HEADS.items()]
            for scene in shown
        ]
    )
    while True:
        chosen = torch.randint(len(pictures), (BATCHES["reader"],), generator=generator)
        parts = model(pixel_values=_disturbed(pictures[chosen], generator)).logits.split(sizes, dim=1)
        losses = [cross_entropy(part, targets[chosen, i], ignore_index=IGNORED) for i, part in enumerate(parts)]
        yield torch.stack(losses).nan_to_num().sum()


def _clip_losses(
    model: CLIPModel, pictures: torch.Tensor, tokens: dict[str, torch.Tensor], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    target = torch.arange(BATCHES["clip"])
    while True:
        chosen = torch.randint(len(pictures), (BATCHES["clip"],), generator=generator)
        image = _image_features(model, _disturbed(pictures[chosen], generator))
        text = _text_features(model, {key: value[chosen] for key, value in tokens.items()})
        similar = image @ text.T * model.logit_scale.exp()
        yield (cross_entropy(similar, target) + cross_entropy(similar.T, target)) / 2


def _dino_losses(model: ViTModel, pictures: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Pictures of shape (subjects, views, 3, 32, 32): each of two views is to be nearest to the other, both ways."""
    count = min(BATCHES["dino"], len(pictures))
    target = torch.arange(count)
    while True:
        chosen = torch.randperm(len(pictures), generator=generator)[:count]
        first = torch.randint(VIEWS, (count,), generator=generator)
        second = (first + 1 + torch.randint(VIEWS - 1, (count,), generator=generator)) % VIEWS
        batch = torch.cat([pictures[chosen, first], pictures[chosen, second]])
        features = _subject_features(model, _disturbed(batch, generator))
        similar = features[:count] @ features[count:].T / TEMPERATURE
        yield (cross_entropy(similar, target) + cross_entropy(similar.T, target)) / 2


def _preprocessor(kind: str) -> str:
    """The content of a ``preprocessor_config.json``: 32 x 32, mean and deviation 0.5."""
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


def train_reader(seed: int, steps: int) -> RegNetForImageClassification:
    """The reader, on all combinations, also those that the generative model is not shown: it must know what it judges."""
    torch.manual_seed(seed)
    pictures, _, shown = scenes.corpus(seed + 500, min(CORPUS, 64 * steps), whole=True)
    model, generator = new_reader().train(), torch.Generator().manual_seed(seed)
    _optimised(model, steps, _reader_losses(model, to_input(pictures), shown, generator), "reader")
    return model


def train_clip(seed: int, steps: int, words: CLIPTokenizer) -> CLIPModel:
    """CLIP, on all combinations."""
    torch.manual_seed(seed + 1)
    pictures, captions, _ = scenes.corpus(seed + 501, min(CORPUS, 64 * steps), whole=True)
    model, generator = new_clip(words).train(), torch.Generator().manual_seed(seed + 1)
    _optimised(model, steps, _clip_losses(model, to_input(pictures), tokens_of(words, captions), generator), "clip")
    return model


def train_dino(seed: int, steps: int) -> ViTModel:
    """The stand-in for DINO, on made-up subjects."""
    torch.manual_seed(seed + 2)
    looks = made_up(min(SUBJECTS, 8 * steps), seed)
    pictures = to_input(views(looks, VIEWS, seed)).unflatten(0, (len(looks), VIEWS))
    model, generator = new_dino().train(), torch.Generator().manual_seed(seed + 2)
    _optimised(model, steps, _dino_losses(model, pictures, generator), "dino")
    return model


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, threads: int = 1) -> None:
    """Train the three judges (the reader for `steps`, the others for half as many) and write them to the folder `out`.

    Each has random numbers of its own. Same seed, steps and threads, same weights on one kind of CPU.
    """
    from ether.foundation.text_to_image import tokenizer

    began = time.monotonic()
    torch.set_num_threads(threads)
    words, half = tokenizer(), max(1, steps // 2)
    models = {"reader": train_reader(seed, steps), "clip": train_clip(seed, half, words), "dino": train_dino(seed, half)}
    save(out, models, words, seed=seed, steps=steps, threads=threads, minutes=(time.monotonic() - began) / 60)


def save(out: Path, models: dict[str, Any], words: CLIPTokenizer, *, seed: int, steps: int, threads: int, minutes: float) -> None:
    """Write the judges and the card that describes them."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)  # a folder without a card is not a finished model
    kinds = {"reader": "ViTImageProcessor", "clip": "CLIPImageProcessor", "dino": "ViTImageProcessor"}
    for name, model in models.items():
        model.save_pretrained(out / name)
        results.write_text(_preprocessor(kinds[name]) + "\n", out / name / "preprocessor_config.json")
    words.save_pretrained(out / "clip")
    files = sorted(file for file in out.rglob("*") if file.is_file() and file.name != CARD)
    settings = f"--steps {steps} --seed {seed} --threads {threads}"
    card: dict[str, Any] = {
        "name": "image-judges",
        "what": "CLIP, a stand-in for DINO and an attribute reader for the world of scenes (ether.worlds.scenes)",
        "command": f"python -m ether.foundation image-judges --out FOLDER {settings}",
        "seed": seed,
        "steps": steps,
        "batch": BATCHES,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "hardware": f"{os.cpu_count()}-core x86-64 CPU, {'one thread' if threads == 1 else f'{threads} threads'}",
        "minutes": round(minutes, 1),
        "versions": json.loads(results.versions()),
        "scores": validate(out, seed=seed + 1),
        "licence": "Made from generated pictures and captions only; under the licence of this package.",
        "sha256": {str(file.relative_to(out)): results.file_digest(file) for file in files},
    }
    results.write_text(json.dumps(card, indent=2) + "\n", out / CARD)
    print(f"{out}: {card['scores']}", flush=True)
