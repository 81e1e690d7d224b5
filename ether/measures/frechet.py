"""The Fréchet distance between two sets of images (FID, Heusel et al. 2017; Table 3, Figure 5), over any feature function.

FID is the squared Fréchet distance between two Gaussians with the means and covariances of the features of two sets::

    ||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

It is computed by torchmetrics' ``FrechetInceptionDistance`` in double precision. The paper's features are those of an
Inception network; a scale without it uses the pooled features of its judge (`ether.measures.images.VisionJudge.features`).
Values of two feature functions are not comparable.

**Sample size.** The estimate is biased: it is positive for two samples of the same distribution, and decreases with their size
(Chong and Forsyth, 2020). Values of different sizes are not comparable either, so a `Frechet` contains the sizes, and beside
the value the bias at these sizes: the distance of further real images, as many as were generated, from the same reference.
A model that generates the real distribution is expected to have this value and not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ether.errors import ConfigurationError

__all__ = ["Features", "Frechet", "FrechetJudge", "frechet_distance"]

Features = Callable[[torch.Tensor], torch.Tensor]  # images (N, 3, H, W) in [0, 1] -> (N, D)


class _Given(nn.Module):
    """torchmetrics' feature extractor for features that are already computed."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features themselves."""
        return features


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The squared Fréchet distance of two sets of features, (N, D) and (M, D).

    Raises:
        ConfigurationError: the dimensions differ, or a set has fewer than two rows.
        FloatingPointError: a feature is not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ConfigurationError(
            "The Fréchet distance needs two sets of at least two features of the same dimension, not shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        raise FloatingPointError("the features of an image are not finite")
    # The distance does not depend on the origin. torchmetrics subtracts sums of squares, which is exact only near it.
    origin = a.double().mean(0)
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1]))
    metric.update(a.cpu().double() - origin.cpu(), real=True)
    metric.update(b.cpu().double() - origin.cpu(), real=False)
    return max(0.0, float(metric.compute()))  # equal sets: rounding may give a tiny negative number


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance with what is needed to read it."""

    distance: float
    samples: int  # scored images
    reference: int  # real images they are compared with
    dimensions: int  # of the features; with fewer images than dimensions the covariances are singular, and the bias is large
    bias: float  # distance of as many real images from the same reference; NaN if there are no further real images
    bias_deviation: float  # standard deviation of `bias` over random choices of these images; NaN for fewer than two choices


class FrechetJudge:
    """Compares sets of images with the same real images; features and bias of the latter are computed once.

    Args:
        features: the feature function.
        real: the reference, (M, 3, H, W) in [0, 1].
        spare: further real images for the bias, disjoint from the reference; None for no bias.
        choices: number of random choices of the spare images, if there are more than needed; their mean is the bias.
        seed: of the choices.

    Raises:
        ConfigurationError: fewer than two real images.
    """

    def __init__(
        self, features: Features, real: torch.Tensor, spare: torch.Tensor | None = None, *, choices: int = 5, seed: int = 0
    ) -> None:
        if len(real) < 2:
            raise ConfigurationError(f"The Fréchet distance needs at least two real images, not {len(real)}.")
        self.features, self.choices, self.seed = features, choices, seed
        self.real = features(real).cpu().double()
        self.spare = None if spare is None else features(spare).cpu().double()
        self._biases: dict[int, tuple[float, float]] = {}

    def bias(self, samples: int) -> tuple[float, float]:
        """Mean and standard deviation of the distance of `samples` further real images from the reference.

        With exactly `samples` spare images there is one choice, and the deviation is NaN. Choices overlap unless there are many
        more spare images than needed, so the deviation is a lower limit.

        Raises:
            ConfigurationError: there are fewer than `samples` spare images.
        """
        if self.spare is None:
            return math.nan, math.nan
        if len(self.spare) < samples:
            raise ConfigurationError(
                f"The bias of the Fréchet distance at {samples} images needs as many further real images, but there are "
                f"{len(self.spare)}."
            )
        if samples not in self._biases:
            random = torch.Generator().manual_seed(self.seed)
            count = self.choices if len(self.spare) > samples else 1
            chosen = [torch.randperm(len(self.spare), generator=random)[:samples] for _ in range(count)]
            values = torch.tensor([frechet_distance(self.real, self.spare[rows]) for rows in chosen], dtype=torch.float64)
            deviation = float(values.std()) if count > 1 else math.nan
            self._biases[samples] = float(values.mean()), deviation
        return self._biases[samples]

    def score(self, images: torch.Tensor) -> Frechet:
        """The distance of images (N, 3, H, W) in [0, 1] from the reference, and the bias at their number.

        Raises:
            ConfigurationError: fewer than two images, or fewer spare images than images.
            FloatingPointError: a feature is not finite.
        """
        distance = frechet_distance(self.real, self.features(images).cpu().double())
        return Frechet(distance, len(images), len(self.real), self.real.shape[1], *self.bias(len(images)))
