"""Metrics of controllable generation (Sec. 5.1.2, Table 3, Figures 5, 6 and 11): label maps, edge maps and landmarks.

A frozen judge (segmenter, edge detector, landmark detector) reads the generated images. Its result is compared with the signal
from which the images were generated.

Label maps  `SegmentationScores` accumulates one confusion matrix over all pixels of all images. Mean IoU and pixel accuracy are
            computed from it, as in mmsegmentation's evaluation of ADE20K (mIoU and aAcc), which official OFT uses. They are not
            means over images. torchmetrics' ``MeanIoU`` is not used, because it averages over images.
Edge maps   `edge_scores`: IoU and F1 of each image, and then the mean over images, as in official OFT's ``eval_canny.py``.
Landmarks   `landmark_distance`: mean Euclidean distance in pixels, as in official OFT's ``eval_landmark.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ether.errors import ConfigurationError

__all__ = ["IGNORED", "Landmarks", "Segmentation", "SegmentationScores", "edge_scores", "landmark_distance"]

IGNORED = 255  # label of pixels without a class, as in mmsegmentation


# --- label maps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmentation:
    """The scores of label maps."""

    miou: float  # mean of `class_iou` without NaN; NaN if no pixel was counted
    accuracy: float  # share of the counted pixels with the right class; NaN if no pixel was counted
    class_iou: tuple[float, ...]  # by class; NaN for a class that neither the predictions nor the targets contain
    pixels: int  # counted pixels


class SegmentationScores:
    """Accumulates the confusion matrix of label maps over batches.

    Args:
        classes: number of classes; labels are 0 ... classes - 1.
        ignored: label of target pixels that are not counted, whatever is predicted there; None if there is no such label.

    Raises:
        ConfigurationError: fewer than two classes.
    """

    def __init__(self, classes: int, ignored: int | None = IGNORED) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # slow, and readers of data need only `IGNORED`

        if classes < 2:
            raise ConfigurationError(f"A segmentation needs at least 2 classes, not {classes}.")
        self.classes, self.ignored = classes, ignored
        self._matrix = MulticlassConfusionMatrix(classes, validate_args=False)  # `update` leaves out pixels and validates

    def update(self, predicted: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch of integer label maps (N, H, W).

        Raises:
            ConfigurationError: the shapes differ, or a label of a counted pixel is not a class.
        """
        if predicted.shape != target.shape:
            raise ConfigurationError(
                f"Label maps of shapes {tuple(predicted.shape)} and {tuple(target.shape)} cannot be compared."
            )
        predicted, target = predicted.cpu().long().flatten(), target.cpu().long().flatten()
        if self.ignored is not None:
            counted = target != self.ignored
            predicted, target = predicted[counted], target[counted]
        if not len(target):
            return
        for name, labels in (("predicted", predicted), ("target", target)):
            low, high = (int(value) for value in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise ConfigurationError(
                    f"The {name} label maps have labels from {low} to {high}, but the classes are 0 to {self.classes - 1}"
                    + (f" (and {self.ignored} for pixels without a class)." if self.ignored is not None else ".")
                )
        self._matrix.update(predicted, target)

    @property
    def confusion(self) -> torch.Tensor:
        """(classes, classes), int64: the number of pixels of each target class (row) and predicted class (column)."""
        return self._matrix.confmat.clone()

    def compute(self) -> Segmentation:
        """The scores of everything added so far."""
        matrix = self.confusion.double()
        right, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        iou = right / union  # 0 / 0 is NaN: a class that does not occur
        total = matrix.sum()
        return Segmentation(
            float(iou.nanmean()), float(right.sum() / total), tuple(float(value) for value in iou), round(float(total))
        )


# --- edge maps -------------------------------------------------------------------------------------------------


def edge_scores(predicted: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """``iou`` and ``f1`` of binary edge maps (N, H, W), boolean: the means over the images.

    Two maps without edges are equal, so both scores of the image are 1.

    Raises:
        ConfigurationError: the shapes differ, or there is no image.
    """
    if predicted.shape != target.shape or not len(predicted):
        raise ConfigurationError(f"Edge maps of shapes {tuple(predicted.shape)} and {tuple(target.shape)} cannot be compared.")
    predicted, target = predicted.bool().flatten(1), target.bool().flatten(1)
    both, wrong = (predicted & target).sum(1).double(), (predicted ^ target).sum(1).double()
    iou, f1 = both / (both + wrong), 2 * both / (2 * both + wrong)
    return {"iou": float(iou.nan_to_num(1.0).mean()), "f1": float(f1.nan_to_num(1.0).mean())}


# --- landmarks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landmarks:
    """The score of landmarks."""

    distance: float  # pixels: mean over the images in which a face was found; NaN if there is none
    found: float  # share of the images in which a face was found


def landmark_distance(predicted: torch.Tensor, target: torch.Tensor) -> Landmarks:
    """Mean Euclidean distance of landmarks (N, L, 2) in pixels: over the landmarks of an image, and then over the images.

    Official OFT leaves out images in which its detector finds no face. Here these are images with a predicted coordinate that is
    not finite, and `Landmarks.found` reports the share of the others. A distance must be read together with this share.

    Raises:
        ConfigurationError: the shapes differ or are not (N, L, 2), or there is no image.
    """
    if predicted.shape != target.shape or predicted.ndim != 3 or predicted.shape[-1] != 2 or not len(predicted):
        raise ConfigurationError(f"Landmarks of shapes {tuple(predicted.shape)} and {tuple(target.shape)} cannot be compared.")
    each = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1).mean(-1)
    found = predicted.isfinite().flatten(1).all(1)
    return Landmarks(float(each[found].mean()) if bool(found.any()) else math.nan, float(found.double().mean()))
