"""Image metrics of subject-driven generation (Sec. 5.1.1, Tables 2, 6 and 11), computed with a scale's judge models.

Images are tensors (N, 3, H, W) of floats in [0, 1]. The judge models are transformers models (loaded by
`ether.diffusion.judges`). Their preprocessing is implemented here in torch, so that torchvision is not imported.

DINO    mean cosine over all (real, generated) pairs of the class token of a self-supervised ViT;
CLIP-I  the same with CLIP's image embedding;
CLIP-T  mean cosine between each generated image and its prompt (without the subject's identifier);
LPIPS   a perceptual distance with two pairings, because the paper's description ("diversity") differs from OFT's code:
        ``lpips_real`` over all (real, generated) pairs, as in OFT's evaluation, and ``lpips_prompt`` over the pairs of
        images generated for one prompt.

In the row of real images, the real images replace the generated ones, and no image is compared with itself.

The network of LPIPS is either the published one (``alex``: AlexNet with learned weights, requires torchvision), or
LPIPS's formula is applied to the layers of the judge ViT without learned weights (``judge``). Values of the two networks are
not comparable; tables name the network.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from ether.errors import MissingResourceError
from ether.preprocessing import Preprocessing

if TYPE_CHECKING:
    import transformers

__all__ = [
    "LPIPS_NETWORKS",
    "AlexDistance",
    "ClipJudge",
    "Generated",
    "Judges",
    "PerceptualDistance",
    "Real",
    "ViTDistance",
    "VisionJudge",
    "measure",
    "measure_real",
    "need_torchvision",
    "pair_similarity",
    "same_prompt_mean",
]

LPIPS_NETWORKS = {
    "judge": "LPIPS's formula over the layers of the judge ViT, without learned weights",
    "alex": "LPIPS with AlexNet",
}
BATCH = 64


# --- judges ----------------------------------------------------------------------------------------------------


class VisionJudge:
    """A vision model that gives one vector per image, and one vector per position and layer.

    Either a transformer with a class token (ViT, DINO, DINOv2, ...), whose positions are patches, or a convolutional network with
    a pooled output (RegNet, ResNet, ConvNeXt, ...), whose positions are those of its feature maps.
    """

    def __init__(self, model: Any, prepare: Preprocessing, name: str = "") -> None:
        self.model, self.prepare, self.name = model.eval().requires_grad_(False), prepare, name

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, D): the class token after the last layer, or the pooled feature map."""
        return torch.cat([self._vector(self._run(part)) for part in images.split(BATCH)])

    @staticmethod
    def _vector(output: Any) -> torch.Tensor:
        last: torch.Tensor = output.last_hidden_state
        pooled: torch.Tensor = output.pooler_output if last.ndim == 4 else last[:, 0]
        return pooled.flatten(1)

    @torch.no_grad()
    def layers(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) -> for each layer (N, T, C): the vectors of the T positions, special tokens left out."""
        special = 1 + int(getattr(self.model.config, "num_register_tokens", 0) or 0)
        parts = [
            [
                state.flatten(2).mT if state.ndim == 4 else state[:, special:]
                for state in self._run(part, output_hidden_states=True).hidden_states[1:]
            ]
            for part in images.split(BATCH)
        ]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _run(self, images: torch.Tensor, **options: Any) -> Any:
        return self.model(pixel_values=self.prepare(images.to(self.model.device, self.model.dtype)), **options)


class ClipJudge:
    """CLIP: embeddings of images and texts in the same space."""

    def __init__(self, model: transformers.CLIPModel, tokenizer: Any, prepare: Preprocessing, name: str = "") -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.prepare, self.name = tokenizer, prepare, name

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, D)."""
        model = self.model
        parts = []
        for part in images.split(BATCH):
            pixels = self.prepare(part.to(model.device, model.dtype))
            parts.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
        return torch.cat(parts)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """N texts -> (N, D)."""
        model = self.model
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(model.device)
        pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return model.text_projection(pooled)


class PerceptualDistance(Protocol):
    """A distance between images, computed from the features of a network."""

    def encode(self, images: torch.Tensor) -> Any:
        """The features of images (N, 3, H, W), arguments of ``table``."""

    def table(self, a: Any, b: Any) -> torch.Tensor:
        """(N, M), float64: the distance of every image of a to every image of b."""

    def rows(self, a: Any, indices: Sequence[int]) -> Any:
        """The features of some of the images, as returned by ``encode``."""


class ViTDistance:
    """LPIPS's formula (Zhang et al., 2018, eq. 1) over a judge's layers, with all weights equal to one.

    The sum over layers of the mean over positions of ||x^ - y^||^2, where x^, y^ are the layer's vectors at a position,
    normalised to length 1. For unit vectors this is 2 - 2 x^ . y^, so the distances of a layer are one matrix product.
    """

    def __init__(self, judge: VisionJudge) -> None:
        self.judge = judge

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit vectors of each layer, (N, T, C)."""
        return [functional.normalize(layer.double(), dim=-1).cpu() for layer in self.judge.layers(images)]

    def table(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        """See `PerceptualDistance`."""
        tables = [2 - 2 * (x.flatten(1) @ y.flatten(1).T) / x.shape[1] for x, y in zip(a, b, strict=True)]
        return torch.stack(tables).sum(0).clamp_min(0)

    def rows(self, a: list[torch.Tensor], indices: Sequence[int]) -> list[torch.Tensor]:
        """See `PerceptualDistance`."""
        return [layer[list(indices)] for layer in a]


def need_torchvision() -> None:
    """Checks that the published LPIPS can be computed.

    Raises:
        MissingResourceError: torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise MissingResourceError(
            'LPIPS with AlexNet needs torchvision, which is not installed. Install it with `pip install "ether-peft[paper]"`, '
            "or set `subject.judges.lpips: judge` in workflow/scales/ for LPIPS's formula over the scale's judge."
        )


class AlexDistance:
    """The published LPIPS with AlexNet, through torchmetrics.

    Raises:
        MissingResourceError: torchvision is not installed.
    """

    def __init__(self, device: str = "cpu") -> None:
        need_torchvision()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.metric: Any = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True).to(device)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        return images.float()

    @torch.no_grad()
    def table(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """See `PerceptualDistance`."""
        pairs = torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b)))
        values = []
        for part in pairs.split(BATCH):
            self.metric.update(a[part[:, 0]].to(self.metric.device), b[part[:, 1]].to(self.metric.device))
            values.append(torch.as_tensor(self.metric.compute()).reshape(-1).double().cpu())
            self.metric.reset()
        return torch.cat(values).view(len(a), len(b))

    def rows(self, a: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """See `PerceptualDistance`."""
        return a[list(indices)]


@dataclass
class Judges:
    """The models of a scale that score images."""

    dino: VisionJudge
    clip: ClipJudge
    lpips: PerceptualDistance
    lpips_name: str = ""


# --- metrics ---------------------------------------------------------------------------------------------------


def pair_similarity(a: torch.Tensor, b: torch.Tensor | None = None) -> float:
    """Mean cosine similarity over all pairs of rows, float64; without b, over the pairs i != j of a with itself.

    a: (N, D); b: (M, D). NaN if there is no pair.
    """
    from torchmetrics.functional.pairwise import pairwise_cosine_similarity

    if b is not None:
        return float(pairwise_cosine_similarity(a.double(), b.double()).mean()) if len(a) and len(b) else math.nan
    if len(a) < 2:
        return math.nan
    table = pairwise_cosine_similarity(a.double(), zero_diagonal=True)
    return float(table.sum() / (len(a) * (len(a) - 1)))


def _self_mean(table: torch.Tensor) -> float:
    """Mean of a square table without its diagonal."""
    count = len(table)
    if count < 2:
        return math.nan
    return float((table.sum() - table.diagonal().sum()) / (count * (count - 1)))


def same_prompt_mean(table: torch.Tensor, prompts: Sequence[int]) -> float:
    """Mean of a table (N, N) over the pairs of images with the same prompt, first within a prompt, then over prompts.

    NaN if no prompt has two images.
    """
    means = []
    for prompt in sorted(set(prompts)):
        same = [index for index, other in enumerate(prompts) if other == prompt]
        if len(same) > 1:
            means.append(_self_mean(table[same][:, same]))
    return sum(means) / len(means) if means else math.nan


@dataclass
class Real:
    """The features of a subject's real images, computed once."""

    dino: torch.Tensor
    clip: torch.Tensor
    lpips: Any

    @classmethod
    def of(cls, images: torch.Tensor, judges: Judges) -> Real:
        """From images (N, 3, H, W)."""
        return cls(judges.dino.features(images).cpu(), judges.clip.features(images).cpu(), judges.lpips.encode(images))


@dataclass
class Generated:
    """The features of generated images, each with the number of its prompt and the prompt's embedding."""

    prompts: list[int]
    dino: torch.Tensor
    clip: torch.Tensor
    text: torch.Tensor  # (N, D), one row for each image
    lpips: Any
    real_table: torch.Tensor  # (real, N)
    prompt_table: torch.Tensor  # (N, N), of images with the same prompt; 0 elsewhere
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # further values for each image, (N,)

    @classmethod
    def of(cls, images: torch.Tensor, prompts: Sequence[int], texts: Mapping[int, str], real: Real, judges: Judges) -> Generated:
        """From images (N, 3, H, W), the prompt number of each image, and the texts for CLIP-T by prompt number."""
        numbers = sorted(set(prompts))
        embedded = judges.clip.text_features([texts[number] for number in numbers]).cpu()
        encoded = judges.lpips.encode(images)
        within = torch.zeros(len(images), len(images), dtype=torch.float64)
        for number in numbers:  # images of different prompts are never compared with each other
            same = [index for index, prompt in enumerate(prompts) if prompt == number]
            part = judges.lpips.rows(encoded, same)
            within[torch.tensor(same).unsqueeze(1), torch.tensor(same)] = judges.lpips.table(part, part)
        return cls(
            list(prompts),
            judges.dino.features(images).cpu(),
            judges.clip.features(images).cpu(),
            embedded[[numbers.index(prompt) for prompt in prompts]],
            encoded,
            judges.lpips.table(real.lpips, encoded),
            within,
        )


def measure(
    generated: Generated, real: Real, among: Sequence[int] | None = None, altered: Sequence[int] = ()
) -> dict[str, float]:
    """dino, clip_i, clip_t, lpips_real, lpips_prompt (and the means of ``extra``) over the images of the given prompts.

    Args:
        generated, real: images of one subject.
        among: prompt numbers; all if None.
        altered: numbers of the prompts whose images are not compared with the real images (dino, clip_i, lpips_real).
    """
    kept = [i for i, prompt in enumerate(generated.prompts) if among is None or prompt in among]
    compared = [i for i in kept if generated.prompts[i] not in altered]
    text = functional.cosine_similarity(generated.clip[kept].double(), generated.text[kept].double(), dim=-1)
    values = {
        "dino": pair_similarity(real.dino, generated.dino[compared]),
        "clip_i": pair_similarity(real.clip, generated.clip[compared]),
        "clip_t": float(text.mean()) if kept else math.nan,
        "lpips_real": float(generated.real_table[:, compared].mean()) if compared else math.nan,
        "lpips_prompt": same_prompt_mean(generated.prompt_table[kept][:, kept], [generated.prompts[i] for i in kept]),
    }
    return values | {name: float(one[kept].double().mean()) for name, one in generated.extra.items()}


def measure_real(real: Real, judges: Judges) -> dict[str, float]:
    """The row "real images": dino, clip_i and lpips_real over the pairs i != j of a subject's photographs.

    CLIP-T and ``lpips_prompt`` are not defined for photographs and are omitted.
    """
    return {
        "dino": pair_similarity(real.dino),
        "clip_i": pair_similarity(real.clip),
        "lpips_real": _self_mean(judges.lpips.table(real.lpips, real.lpips)),
    }
