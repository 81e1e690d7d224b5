"""The Fréchet distance against its closed form, and its bias at a sample size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ether.errors import ConfigurationError
from ether.measures.frechet import FrechetJudge, frechet_distance


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """A sample with exactly this mean and this covariance (with N - 1 in the denominator)."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(0)
    whitened = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T)).T)
    return torch.from_numpy(whitened @ np.linalg.cholesky(covariance).T + mean)


def covariance(seed: int, dimensions: int = 4) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(dimensions, dimensions))
    return factor @ factor.T + 0.1 * np.eye(dimensions)


def closed_form(m1: np.ndarray, c1: np.ndarray, m2: np.ndarray, c2: np.ndarray) -> float:
    return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2))))


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    m1, m2 = np.arange(4.0), np.array([1.0, 1.0, 5.0, 3.0])
    c1, c2 = covariance(0), covariance(1)
    found = frechet_distance(gaussian(m1, c1, 50, 2), gaussian(m2, c2, 80, 3))
    assert found == pytest.approx(closed_form(m1, c1, m2, c2), rel=1e-9)
    # Commuting covariances: the sum of squared differences of means and of standard deviations.
    d1, d2 = np.array([1.0, 4.0, 9.0, 2.25]), np.array([4.0, 1.0, 9.0, 0.25])
    found = frechet_distance(gaussian(m1, np.diag(d1), 50, 2), gaussian(m2, np.diag(d2), 80, 3))
    assert found == pytest.approx(((m1 - m2) ** 2).sum() + ((np.sqrt(d1) - np.sqrt(d2)) ** 2).sum(), rel=1e-9)


def test_equal_sets_have_distance_zero_also_far_from_the_origin_and_with_few_images() -> None:
    sample = gaussian(np.zeros(4), covariance(0), 30, 1)
    for shift in (0.0, 1e4):
        assert frechet_distance(sample + shift, (sample + shift).flip(0)) == pytest.approx(0, abs=1e-5)
    wide = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))  # singular covariances
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(wide, wide + 2) == pytest.approx(40 * 4, rel=1e-5)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ConfigurationError, match="same dimension"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(FloatingPointError):
        frechet_distance(torch.zeros(5, 3), torch.full((5, 3), torch.nan))
    with pytest.raises(ConfigurationError, match="two real images"):
        FrechetJudge(lambda images: images.flatten(1), torch.zeros(1, 3, 1, 1))


def pooled(images: torch.Tensor) -> torch.Tensor:
    """A feature function: means over quarters of the image."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def pictures(count: int, seed: int, low: float = 0.0) -> torch.Tensor:
    return low + (1 - low) * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_bias_decreases_with_the_sample_size_and_a_good_model_has_it() -> None:
    judge = FrechetJudge(pooled, pictures(2000, 0), pictures(2000, 1))
    small, large = judge.bias(50), judge.bias(1000)
    assert small[0] > 4 * large[0] > 0 and small[1] < small[0]
    scored = judge.score(pictures(50, 2))  # "generated" by a perfect model
    assert (scored.samples, scored.reference, scored.dimensions) == (50, 2000, 12)
    assert (scored.bias, scored.bias_deviation) == small
    assert scored.distance == pytest.approx(scored.bias, rel=0.3)
    assert judge.score(pictures(50, 2, low=0.5)).distance > 10 * scored.bias
    with pytest.raises(ConfigurationError, match="at 2001 images"):
        judge.bias(2001)
    assert judge.bias(2000)[0] == pytest.approx(frechet_distance(judge.real, pooled(pictures(2000, 1))), rel=1e-6)
    assert math.isnan(judge.bias(2000)[1])


def test_without_spare_images_there_is_no_bias() -> None:
    scored = FrechetJudge(pooled, pictures(20, 0)).score(pictures(20, 0))
    assert scored.distance == pytest.approx(0, abs=1e-6) and math.isnan(scored.bias) and math.isnan(scored.bias_deviation)


def test_the_features_of_a_vision_judge_serve() -> None:
    from transformers import RegNetConfig, RegNetModel

    from ether.measures.images import VisionJudge
    from ether.preprocessing import Preprocessing

    config = RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8, layer_type="x")
    network = VisionJudge(RegNetModel(config), Preprocessing((16, 16), None, (0.5,) * 3, (0.5,) * 3))
    scored = FrechetJudge(network.features, pictures(12, 0), pictures(12, 1)).score(pictures(8, 2))
    assert scored.dimensions == 16 and scored.samples == 8 and scored.bias > 0
