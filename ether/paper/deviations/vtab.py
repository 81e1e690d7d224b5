"""Deviations in image classification: what App. E leaves open, and what is chosen here."""

from __future__ import annotations

from ether import config
from ether.paper.deviations.point import Point, table


def choices() -> Point:
    """What the paper does not state, and this suite's choice at the paper's scale."""
    paper, subset = (config.load(name).experiment("vtab") for name in ("paper", "paper-vtab1k"))
    training, preprocessing = paper["training"], paper["preprocessing"]
    sides = " x ".join(map(str, preprocessing["size"]))
    rows = [
        [
            "training images",
            f"the full training splits (Caltech101: {paper['data']['train_per_class']} for each class, if it comes as folders); "
            f"{subset['limits']['train']:,} for each task with `scale=paper-vtab1k`",
        ],
        ["checkpoint", f'`{paper["model"]["path"]}`; "ViT-B/16 pretrained on ImageNet-21k" names no file'],
        [
            "training",
            f"{training['epochs']} epochs ({subset['training']['epochs']} of the small training sets) of batch "
            f"{training['batch_size']}, {training['schedule']} schedule, warm-up {training['warmup']}, no weight decay",
        ],
        ["learning rates", "those of the method files, marked as not from the paper; `vtab_rates` is the grid to replace them"],
        ["preprocessing", f"resized to {sides} without a crop, {preprocessing['mode']}, mean and standard deviation 0.5"],
        ["adapted layers", "all linear layers of the blocks, as the parameter counts of Table 12 require"],
        ["score", "accuracy over images at the last step; the mean over classes is among the metrics"],
    ]
    return Point(
        "VTAB: what App. E does not state",
        "Table 12 gives accuracies and parameter counts, and App. E neither splits nor hyperparameters. Accuracies on VTAB "
        "depend on both, and on how an image is cropped.",
        table(["open in the paper", "here"], rows),
    )


POINTS = (choices,)
