"""``image-judges``: three small networks that evaluate pictures of the world of scenes (`ether.worlds.scenes`).

- ``clip``: a `CLIPModel` (with its tokenizer) for CLIP-I and CLIP-T, trained contrastively on pictures and captions.
- ``dino``: a `ViTModel` that replaces DINO. Its CLS features are similar for two pictures of the same object, independent of
  position and background, and dissimilar for different objects. It is trained with a supervised contrastive loss on 600 random
  subjects, none of which is one of `scenes.SUBJECTS`.
- ``reader``: a `RegNetForImageClassification` whose 30 logits are four classifiers side by side (`HEADS`): background,
  colour, shape and texture. It is trained on rendered scenes only, never on generated pictures; some blur and noise during
  training make it tolerant of those.

**Input.** All three take RGB pictures of 32 x 32 as float32 of shape (count, 3, 32, 32), normalised with mean 0.5 and standard
deviation 0.5 per channel, that is to -1 ... 1. `ether.foundation.pictures.to_input` does so for uint8 pictures of shape
(count, 32, 32, 3), and the ``preprocessor_config.json`` of each folder makes the image processors of transformers do the same.
Pictures of another size have to be resized to 32 x 32 first.

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
    ViTConfig,
    ViTModel,
)

from ether.foundation.caption_tokenizer import LENGTH, encode
from ether.foundation.pictures import Pictures, to_input
from ether.worlds import scenes

HEADS: dict[str, tuple[str, ...]] = {
    "background": tuple(scenes.BACKGROUNDS),
    "colour": tuple(scenes.COLOURS),
    "shape": scenes.KINDS,
    "texture": tuple(scenes.TEXTURES),
}
WIDTH = 128  # of the transformers

# --- models -----------------------------------------------------------------------------------------------------------


def new_reader() -> RegNetForImageClassification:
    """A small RegNet with feature maps of 16 x 16, 8 x 8 and 4 x 4, randomly initialised."""
    names = [f"{head}: {label}" for head, labels in HEADS.items() for label in labels]
    settings: dict[str, Any] = {  # known to every configuration, but not parameters of the class
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
        "image_size": scenes.SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def new_dino() -> ViTModel:
    """Four layers of width 128 over patches of 8 x 8 pixels, randomly initialised."""
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
    """The reader of a folder, in float32 and evaluation mode."""
    return RegNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def load_clip(folder: Path | str) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP, in float32 and evaluation mode, and its tokenizer."""
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder)


def load_dino(folder: Path | str) -> ViTModel:
    """The replacement for DINO, in float32 and evaluation mode."""
    return ViTModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()


# --- features and attributes ------------------------------------------------------------------------------------------


def image_embeddings(model: CLIPModel, inputs: torch.Tensor) -> torch.Tensor:
    """CLIP's image features, with gradients: inputs (pictures, 3, 32, 32) to (pictures, 64), length 1."""
    return normalize(model.visual_projection(model.vision_model(pixel_values=inputs).pooler_output), dim=-1)


def text_embeddings(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """CLIP's text features, with gradients: tokens of `caption_tokenizer.encode` to (texts, 64), length 1."""
    return normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def subject_embeddings(model: ViTModel, inputs: torch.Tensor) -> torch.Tensor:
    """CLS features, with gradients: inputs (pictures, 3, 32, 32) to (pictures, 128), length 1."""
    return normalize(model(pixel_values=inputs).last_hidden_state[:, 0], dim=-1)


@torch.no_grad()
def image_features(model: CLIPModel, pictures: Pictures) -> torch.Tensor:
    """CLIP's features of pictures, of shape (pictures, 64) and length 1."""
    return image_embeddings(model, to_input(pictures))


@torch.no_grad()
def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """CLIP's features of texts, of shape (texts, 64) and length 1."""
    return text_embeddings(model, encode(tokenizer, texts))


@torch.no_grad()
def subject_features(model: ViTModel, pictures: Pictures) -> torch.Tensor:
    """The CLS features of pictures, of shape (pictures, 128) and length 1."""
    return subject_embeddings(model, to_input(pictures))


@torch.no_grad()
def read(model: RegNetForImageClassification, pictures: Pictures) -> dict[str, list[str]]:
    """The reader's prediction for each picture: background, colour, shape and texture (keys and words of `HEADS`)."""
    logits = model(pixel_values=to_input(pictures)).logits.split([len(labels) for labels in HEADS.values()], dim=1)
    return {
        head: [labels[i] for i in part.argmax(1).tolist()] for (head, labels), part in zip(HEADS.items(), logits, strict=True)
    }


def attributes(scene: scenes.Scene) -> dict[str, str | None]:
    """The true attributes of a scene, by head of the reader; None if captions have no word for an attribute."""
    return {
        "background": scene.background,
        "colour": scene.colour,
        "shape": scene.look.kind,
        "texture": scene.texture,
    }


def agreement(model: RegNetForImageClassification, pictures: Pictures, expected: Sequence[scenes.Scene]) -> dict[str, float]:
    """Shares of pictures for which the reader predicts the attributes of the expected scene: each attribute, and all four.

    An attribute that the scene has no word for is left out, and counts as correct for ``all of them``.
    """
    predictions, every = read(model, pictures), np.ones(len(expected), dtype=bool)
    shares = {}
    for head in HEADS:
        targets = [attributes(scene)[head] for scene in expected]
        known = np.array([target is not None for target in targets])
        right = np.array([a == b for a, b in zip(predictions[head], targets, strict=True)])
        shares[head] = round(float(right[known].mean()), 4)
        every &= right | ~known
    return {**shares, "all of them": round(float(every.mean()), 4)}


# --- validation -------------------------------------------------------------------------------------------------------


def retrieval(model: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int = 1, count: int = 100) -> dict[str, float]:
    """Top-1 retrieval among `count` new pictures of held-out combinations and their captions, in both directions."""
    samples = scenes.held_out_scenes(seed, count)
    captions = [scenes.describe(scene) for scene in samples]
    similarity = image_features(model, scenes.render_many(samples)) @ text_features(model, tokenizer, captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions])  # two scenes may have the same caption
    index = torch.arange(count)
    return {
        "image to text": round(float(same[index, similarity.argmax(1)].float().mean()), 4),
        "text to image": round(float(same[similarity.argmax(0), index].float().mean()), 4),
    }


def views(looks: Sequence[scenes.Look], count: int, seed: int) -> Pictures:
    """`count` pictures of each look at random positions and backgrounds: (looks * count, 32, 32, 3), look by look."""
    rng = np.random.default_rng([seed, 5])
    names = list(scenes.BACKGROUNDS)
    return scenes.render_many(
        [scenes.place(look, names[int(rng.integers(len(names)))], rng) for look in looks for _ in range(count)]
    )


def random_looks(count: int, seed: int) -> list[scenes.Look]:
    """Random looks that are none of `scenes.SUBJECTS`: mostly things, one in six a shape with any two colours."""
    rng = np.random.default_rng([seed, 6])
    looks = []
    for i in range(count):
        kind = scenes.SHAPES[i // 6 % len(scenes.SHAPES)] if i % 6 == 5 else scenes.THINGS[i % 3]
        looks.append(scenes.random_look(kind, rng))
    return looks


def discrimination(model: ViTModel, looks: Sequence[scenes.Look], *, seed: int = 1, count: int = 12) -> dict[str, float]:
    """How well the similarity separates pairs of pictures of the same look from pairs of different looks.

    Returns:
        ``AUC`` (the probability that a pair of the same look is more similar than a pair of different looks) and both mean
        similarities, over `count` pictures of each look.
    """
    features = subject_features(model, views(looks, count, seed))
    similarity = (features @ features.T).numpy()
    look = np.repeat(np.arange(len(looks)), count)
    upper = np.triu(np.ones_like(similarity, dtype=bool), 1)
    same = similarity[(look[:, None] == look) & upper]
    other = np.sort(similarity[(look[:, None] != look) & upper])
    below = (np.searchsorted(other, same, "left") + np.searchsorted(other, same, "right")) / 2
    return {
        "AUC": round(float(below.mean() / len(other)), 4),
        "same subject": round(float(same.mean()), 4),
        "different subjects": round(float(other.mean()), 4),
    }


def validate(folder: Path, *, seed: int = 1) -> dict[str, float]:
    """The scores of all three judges on newly rendered pictures."""
    stream = scenes.scenes(seed + 2_000_000)
    seen = [next(stream) for _ in range(1000)]  # combinations of the generative model's training
    unseen = scenes.held_out_scenes(seed, 300)
    reader = load_reader(folder / "reader")
    model, tokenizer = load_clip(folder / "clip")
    dino = load_dino(folder / "dino")
    found = {f"reader, {k}": v for k, v in agreement(reader, scenes.render_many(seen), seen).items()}
    held_out = agreement(reader, scenes.render_many(unseen), unseen)
    found |= {f"reader, held-out combinations, {k}": v for k, v in held_out.items()}
    found |= {f"CLIP, {k} among 100": v for k, v in retrieval(model, tokenizer, seed=seed).items()}
    subjects = [subject.look for subject in scenes.SUBJECTS]
    found |= {f"DINO, the subjects, {k}": v for k, v in discrimination(dino, subjects, seed=seed).items()}
    others = random_looks(40, seed + 3_000_000)
    found |= {f"DINO, 40 others never seen, {k}": v for k, v in discrimination(dino, others, seed=seed).items()}
    return found
