"""Claims on Figure 3: images under random transformations, at the greatest distance of each method on the grid."""

from __future__ import annotations

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "Random transformations"
ROUNDING = 1e-3  # of a distance in single precision
MORE_THAN_HALF = 0.5  # of the images have the background of their prompt
NOTICEABLE = 0.99  # similarity (DINO) below which an image has changed noticeably

CLAIMS = (
    Claim(
        "perturbation-bounded-methods-keep-content",
        "figure3",
        "Sec. 4",
        "At their greatest distance, ETHER and ETHER+ stay closer to the unperturbed image than OFT and Naive at theirs.",
        "every",
        compare_all(["ether", "ether-plus"], ["oft-n4", "naive-n4"], ["dino_same"]),
    ),
    Claim(
        "perturbation-ether-has-distance-2",
        "figure3",
        "Sec. 3.2, Eq. 2",
        "The distance of ETHER's transformation from the identity is always 2.",
        "every",
        (
            Bound("ether", "transformation_distance", above=2 - ROUNDING),
            Bound("ether", "transformation_distance", below=2 + ROUNDING),
        ),
        by_construction=True,
    ),
    Claim(
        "perturbation-ether-plus-at-most-2",
        "figure3",
        "Sec. 3.3",
        "The distance of ETHER+'s transformation from the identity is at most that of ETHER, 2.",
        "every",
        (Bound("ether-plus", "transformation_distance", below=2 + ROUNDING),),
        by_construction=True,
    ),
    Claim(
        "perturbation-ether-plus-at-most-root-2",
        "figure3",
        ADDED,
        "The distance of ETHER+'s transformation from the identity is at most the square root of 2.",
        "every",
        (Bound("ether-plus", "transformation_distance", below=2**0.5 + ROUNDING),),
        by_construction=True,
    ),
    Claim(
        "perturbation-others-exceed-the-bound",
        "figure3",
        "Figure 3, caption",
        "OFT and Naive reach greater distances from the identity than ETHER and ETHER+ can.",
        "every",
        tuple(Bound(method, "transformation_distance", above=2 + ROUNDING) for method in ("oft-n4", "naive-n4")),
        by_construction=True,
    ),
    Claim(
        "perturbation-ether-noticeable-but-kept",
        "figure3",
        "Sec. 4",
        "ETHER's fixed distance changes images noticeably (here: similarity below 0.99) and keeps their content (here: more than "
        "half have the background of their prompt).",
        "every",
        (Bound("ether", "dino_same", below=NOTICEABLE), Bound("ether", "background", above=MORE_THAN_HALF)),
    ),
    Claim(
        "perturbation-bounded-methods-do-not-deteriorate",
        "figure3",
        "Figure 3, caption",
        "At their greatest distance, ETHER and ETHER+ do not deteriorate catastrophically (here: more than half of the images "
        "have the background of their prompt).",
        "every",
        tuple(Bound(method, "background", above=MORE_THAN_HALF) for method in ("ether", "ether-plus")),
    ),
    Claim(
        "perturbation-others-deteriorate",
        "figure3",
        "Sec. 4",
        "OFT and Naive deteriorate catastrophically as the distance grows (here: fewer than half of the images have the "
        "background of their prompt at the greatest distance).",
        "every",
        tuple(Bound(method, "background", below=MORE_THAN_HALF) for method in ("oft-n4", "naive-n4")),
    ),
    Claim(
        "perturbation-ether-plus-fine-and-strong",
        "figure3",
        "Sec. 4",
        "ETHER+ can change images less than ETHER, at its smallest distance, and more, at its greatest.",
        "every",
        (Comparison("ether-plus", "ether", "dino_same_smallest"), Comparison("ether", "ether-plus", "dino_same")),
    ),
)
