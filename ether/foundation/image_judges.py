"""``image-judges``: three small networks that evaluate pictures of the world of pictures (`ether.worlds.pictures`).

- ``clip``: a `CLIPModel` (with its tokenizer) for CLIP-I and CLIP-T, trained contrastively on pictures and captions.
- ``dino``: a `RegNetModel` that replaces DINO. Its pooled features are similar for two pictures of the same drawing, independent
  of place, size, mirroring, slight rotation and background, and dissimilar for different drawings, also for two artists' drawings
  of the same thing. It is trained to tell the drawings of both artists apart, without those of `pictures.SUBJECTS`.
- ``reader``: a `RegNetForImageClassification` whose logits are three classifiers side by side (`HEADS`): background, colour of a
  recoloured thing, and thing. It is trained on rendered scenes only, never on generated pictures; some blur and noise during
  training make it tolerant of those.

**Input.** All three take RGB pictures of 64 x 64 as float32 of shape (count, 3, 64, 64), normalised with mean 0.5 and standard
deviation 0.5 per channel, that is to -1 ... 1. `ether.foundation.pictures.to_input` does so for uint8 pictures of shape
(count, 64, 64, 3), and the ``preprocessor_config.json`` of each folder makes the image processors of transformers do the same.
Pictures of another size have to be resized to 64 x 64 first.

**Output.** `image_features`, `text_features` and `subject_features` give vectors of length 1, so that similarities are
inner products; `read` gives words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    RegNetConfig,
    RegNetForImageClassification,
    RegNetModel,
)

from ether.foundation.caption_tokenizer import LENGTH, encode
from ether.foundation.pictures import Pictures, to_input
from ether.worlds import drawings, pictures

NO_COLOUR = "none"  # of a thing that is not recoloured
HEADS: dict[str, tuple[str, ...]] = {
    "background": tuple(pictures.BACKGROUNDS),
    "colour": (NO_COLOUR, *pictures.COLOURS),
    "thing": (*pictures.NAMES, pictures.FACE),
}
WIDTH = 128  # of the transformers
Drawing = tuple[str, str]  # artist and name

# --- models -----------------------------------------------------------------------------------------------------------


def _regnet(**settings: Any) -> RegNetConfig:
    """Feature maps of 16 x 16, 8 x 8 and 4 x 4."""
    shape: dict[str, Any] = {"embedding_size": 32, "hidden_sizes": [48, 96, 160], "depths": [1, 2, 2], "groups_width": 16}
    return RegNetConfig(layer_type="x", downsample_in_first_stage=True, **shape, **settings)


def new_reader() -> RegNetForImageClassification:
    """A small RegNet, randomly initialised."""
    names = [f"{head}: {label}" for head, labels in HEADS.items() for label in labels]
    settings: dict[str, Any] = {  # known to every configuration, but not parameters of the class
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return RegNetForImageClassification(_regnet(**settings))


def new_dino() -> RegNetModel:
    """A small RegNet without a classifier, randomly initialised; its pooled features have 160 dimensions."""
    return RegNetModel(_regnet())


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two towers of width 128: four layers over patches of 8 x 8 pixels, two layers over words; randomly initialised."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": pictures.SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def load_reader(folder: Path | str) -> RegNetForImageClassification:
    """The reader of a folder, in float32 and evaluation mode."""
    return RegNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def load_clip(folder: Path | str) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP, in float32 and evaluation mode, and its tokenizer."""
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder)


def load_dino(folder: Path | str) -> RegNetModel:
    """The replacement for DINO, in float32 and evaluation mode."""
    return RegNetModel.from_pretrained(folder, dtype=torch.float32).eval()


# --- features and attributes ------------------------------------------------------------------------------------------


def image_embeddings(model: CLIPModel, inputs: torch.Tensor) -> torch.Tensor:
    """CLIP's image features, with gradients: inputs (pictures, 3, 64, 64) to (pictures, 64), length 1."""
    return normalize(model.visual_projection(model.vision_model(pixel_values=inputs).pooler_output), dim=-1)


def text_embeddings(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """CLIP's text features, with gradients: tokens of `caption_tokenizer.encode` to (texts, 64), length 1."""
    return normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def subject_embeddings(model: RegNetModel, inputs: torch.Tensor) -> torch.Tensor:
    """Pooled features, with gradients: inputs (pictures, 3, 64, 64) to (pictures, 160), length 1."""
    return normalize(model(pixel_values=inputs).pooler_output.flatten(1), dim=-1)


@torch.no_grad()
def image_features(model: CLIPModel, shown: Pictures) -> torch.Tensor:
    """CLIP's features of pictures, of shape (pictures, 64) and length 1."""
    return image_embeddings(model, to_input(shown))


@torch.no_grad()
def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """CLIP's features of texts, of shape (texts, 64) and length 1."""
    return text_embeddings(model, encode(tokenizer, texts))


@torch.no_grad()
def subject_features(model: RegNetModel, shown: Pictures) -> torch.Tensor:
    """The pooled features of pictures, of shape (pictures, 160) and length 1."""
    return subject_embeddings(model, to_input(shown))


@torch.no_grad()
def read(model: RegNetForImageClassification, shown: Pictures) -> dict[str, list[str]]:
    """The reader's prediction for each picture: background, colour and thing (keys and words of `HEADS`)."""
    logits = model(pixel_values=to_input(shown)).logits.split([len(labels) for labels in HEADS.values()], dim=1)
    return {
        head: [labels[i] for i in part.argmax(1).tolist()] for (head, labels), part in zip(HEADS.items(), logits, strict=True)
    }


def attributes(scene: pictures.Scene) -> dict[str, str]:
    """The true attributes of a scene of one thing, by head of the reader."""
    [thing] = scene.things
    return {"background": scene.background, "colour": thing.colour or NO_COLOUR, "thing": thing.name}


def agreement(model: RegNetForImageClassification, shown: Pictures, expected: Sequence[pictures.Scene]) -> dict[str, float]:
    """Shares of pictures for which the reader predicts the attributes of the expected scene: each attribute, and all three."""
    predictions, every, shares = read(model, shown), np.ones(len(expected), dtype=bool), {}
    for head in HEADS:
        targets = [attributes(scene)[head] for scene in expected]
        right = np.array([a == b for a, b in zip(predictions[head], targets, strict=True)])
        shares[head] = round(float(right.mean()), 4)
        every &= right
    return {**shares, "all of them": round(float(every.mean()), 4)}


# --- validation -------------------------------------------------------------------------------------------------------


def retrieval(model: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int = 1, count: int = 100) -> dict[str, float]:
    """Top-1 retrieval among `count` new pictures of held-out pairs and their captions, in both directions."""
    samples = pictures.held_out_scenes(seed, count)
    captions = [pictures.describe(scene) for scene in samples]
    similarity = image_features(model, pictures.render_many(samples)) @ text_features(model, tokenizer, captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions])  # two scenes may have the same caption
    index = torch.arange(count)
    return {
        "image to text": round(float(same[index, similarity.argmax(1)].float().mean()), 4),
        "text to image": round(float(same[similarity.argmax(0), index].float().mean()), 4),
    }


def known_drawings() -> list[Drawing]:
    """The drawings that the replacement for DINO is trained on: all of both artists, except for those of the subjects."""
    subjects = {(subject.artist, subject.noun) for subject in pictures.SUBJECTS}
    every = [(artist, entry.name) for artist in drawings.ARTISTS for entry in drawings.entries()]
    return [drawing for drawing in every if drawing not in subjects]


def view(drawing: Drawing, rng: np.random.Generator) -> pictures.Scene:
    """A drawing at a random place and size before a random background, some mirrored, slightly rotated."""
    artist, name = drawing
    backgrounds = tuple(pictures.BACKGROUNDS)
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    angle, mirrored = round(float(rng.uniform(-12, 12))), bool(rng.random() < 0.5)
    return pictures.alone(name, background, rng, artist=artist, angle=angle, mirrored=mirrored)


def views(drawn: Sequence[Drawing], count: int, seed: int) -> Pictures:
    """`count` pictures of each drawing, as `view` arranges them: (drawings * count, 64, 64, 3), drawing by drawing."""
    rng = np.random.default_rng([seed, 5])
    return pictures.render_many([view(drawing, rng) for drawing in drawn for _ in range(count)])


def discrimination(model: RegNetModel, drawn: Sequence[Drawing], *, seed: int = 1, count: int = 12) -> dict[str, float]:
    """How well the similarity separates pairs of pictures of the same drawing from pairs of different drawings.

    Args:
        model: of `load_dino`.
        drawn: the drawings; several artists' drawings of the same name are compared separately.
        seed: of the views.
        count: pictures of each drawing.

    Returns:
        ``AUC`` (the probability that a pair of the same drawing is more similar than a pair of different drawings) and the mean
        similarities of pairs of the same drawing, of different artists' drawings of the same name, and of different names.
    """
    features = subject_features(model, views(drawn, count, seed))
    similarity = (features @ features.T).numpy()
    drawing, name = (np.repeat(part, count) for part in (np.arange(len(drawn)), [name for _, name in drawn]))
    upper = np.triu(np.ones_like(similarity, dtype=bool), 1)
    same_drawing, same_name = drawing[:, None] == drawing, name[:, None] == name
    same = similarity[same_drawing & upper]
    other = np.sort(similarity[~same_drawing & upper])
    below = (np.searchsorted(other, same, "left") + np.searchsorted(other, same, "right")) / 2
    found = {
        "AUC": below.mean() / len(other),
        "same drawing": same.mean(),
        "other names": similarity[~same_name & upper].mean(),
    }
    if (between := same_name & ~same_drawing & upper).any():
        found["the other artist's drawing"] = similarity[between].mean()
    return {key: round(float(value), 4) for key, value in found.items()}


def validate(folder: Path, *, seed: int = 1) -> dict[str, float]:
    """The scores of all three judges on newly rendered pictures."""
    plain = pictures.held_out_scenes(seed, 300)
    coloured = pictures.held_out_scenes(seed + 1, 300, coloured=True)
    reader = load_reader(folder / "reader")
    model, tokenizer = load_clip(folder / "clip")
    dino = load_dino(folder / "dino")
    found: dict[str, float] = {}
    for kind, scenes in (("held-out pairs", plain), ("recoloured", coloured)):
        shares = agreement(reader, pictures.render_many(scenes), scenes)
        found |= {f"reader, {kind}, {key}": value for key, value in shares.items()}
    found |= {f"CLIP, {k} among 100": v for k, v in retrieval(model, tokenizer, seed=seed).items()}
    unseen = [(artist, subject.noun) for subject in pictures.SUBJECTS for artist in drawings.ARTISTS]
    found |= {f"DINO, the subjects, {k}": v for k, v in discrimination(dino, unseen, seed=seed).items()}
    return found
