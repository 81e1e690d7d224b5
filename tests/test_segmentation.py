"""Label maps against scikit-learn, edge maps and landmarks against scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from ether.errors import ConfigurationError
from ether.measures.segmentation import IGNORED, SegmentationScores, edge_scores, landmark_distance

CLASSES = 5


def maps(seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and target label maps that agree in about half of the pixels; a tenth of the target pixels is ignored."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count, 9, 7), generator=random)
    other = torch.randint(CLASSES, target.shape, generator=random)
    predicted = torch.where(torch.rand(target.shape, generator=random) < 0.5, target, other)
    target[torch.rand(target.shape, generator=random) < 0.1] = IGNORED
    return predicted, target


def test_label_maps_are_scored_as_scikit_learn_does_whatever_the_batches() -> None:
    predicted, target = maps(0)
    counted = (target != IGNORED).numpy()
    a, b = predicted.numpy()[counted], target.numpy()[counted]
    for size in (1, 4, 6):
        scores = SegmentationScores(CLASSES)
        for start in range(0, len(target), size):
            scores.update(predicted[start : start + size], target[start : start + size])
        found = scores.compute()
        assert np.array_equal(scores.confusion.numpy(), confusion_matrix(b, a, labels=range(CLASSES)))
        expected = jaccard_score(b, a, labels=list(range(CLASSES)), average=None)
        assert found.class_iou == pytest.approx(tuple(expected), rel=1e-12)
        assert found.miou == pytest.approx(expected.mean(), rel=1e-12)
        assert found.accuracy == pytest.approx((a == b).mean(), rel=1e-12)
        assert found.pixels == counted.sum()


def test_the_mean_is_over_all_pixels_and_not_over_images() -> None:
    """One image of class 0 that is right, one of which a quarter is class 1 and wholly predicted as class 0."""
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[1, 0] = 1
    scores = SegmentationScores(2, None)
    scores.update(torch.zeros_like(target), target)
    found = scores.compute()
    assert found.class_iou == (28 / 32, 0) and found.miou == 14 / 32 and found.accuracy == 28 / 32


def test_a_class_that_does_not_occur_is_left_out_of_the_mean() -> None:
    target = torch.tensor([[[0, 0, 1, IGNORED]]])
    scores = SegmentationScores(4)
    scores.update(torch.tensor([[[0, 0, 1, 3]]]), target)  # class 3 is predicted in an ignored pixel only
    found = scores.compute()
    assert found.miou == found.accuracy == 1 and found.pixels == 3
    assert found.class_iou[:2] == (1, 1) and all(math.isnan(value) for value in found.class_iou[2:])
    scores.update(torch.tensor([[[2, 0, 0, 0]]]), torch.tensor([[[0, IGNORED, IGNORED, IGNORED]]]))
    assert scores.compute().class_iou[2] == 0  # predicted, but never right: it counts


def test_nothing_counted_and_wrong_labels() -> None:
    scores = SegmentationScores(3)
    scores.update(torch.zeros(1, 2, 2), torch.full((1, 2, 2), IGNORED))
    found = scores.compute()
    assert math.isnan(found.miou) and math.isnan(found.accuracy) and found.pixels == 0
    with pytest.raises(ConfigurationError, match="predicted label maps have labels from 3 to 3"):
        scores.update(torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2))
    with pytest.raises(ConfigurationError, match="target label maps have labels from -1 to 0"):
        scores.update(torch.zeros(1, 1, 2), torch.tensor([[[0, -1]]]))
    with pytest.raises(ConfigurationError, match=r"\(1, 2\).*\(2, 1\)"):
        scores.update(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(ConfigurationError, match="at least 2"):
        SegmentationScores(1)


def test_edge_maps_are_scored_image_by_image() -> None:
    random = np.random.default_rng(1)
    target = random.random((5, 8, 8)) < 0.3
    predicted = target ^ (random.random((5, 8, 8)) < 0.2)
    found = edge_scores(torch.from_numpy(predicted), torch.from_numpy(target))
    each = [(a.ravel(), b.ravel()) for a, b in zip(target, predicted, strict=True)]
    assert found["iou"] == pytest.approx(np.mean([jaccard_score(a, b) for a, b in each]), rel=1e-12)
    assert found["f1"] == pytest.approx(np.mean([f1_score(a, b) for a, b in each]), rel=1e-12)
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert edge_scores(empty, empty) == {"iou": 1, "f1": 1}
    assert edge_scores(~empty, empty) == {"iou": 0, "f1": 0}
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        edge_scores(empty, empty[0])


def test_landmarks_are_compared_in_pixels() -> None:
    target = torch.rand(4, 20, 2, generator=torch.Generator().manual_seed(0)) * 64
    assert landmark_distance(target, target).distance == 0
    moved = target + torch.tensor([3.0, 4.0])
    moved[1] = target[1]
    found = landmark_distance(moved, target)
    assert found.distance == pytest.approx(5 * 3 / 4, rel=1e-6) and found.found == 1
    moved[0, 7] = torch.nan  # no face was found in the first image
    found = landmark_distance(moved, target)
    assert found.distance == pytest.approx(5 * 2 / 3, rel=1e-6) and found.found == 0.75
    none = landmark_distance(torch.full_like(target, torch.nan), target)
    assert math.isnan(none.distance) and none.found == 0
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        landmark_distance(target[..., :1], target[..., :1])
