"""Claims on Figure 3: images under random transformations, at the greatest distance of each method on the grid."""

from __future__ import annotations

from ether.analysis.claims import Claim, compare_all

BENCHMARK = "Random transformations"

CLAIMS = (
    Claim(
        "perturbation-bounded-methods-keep-content",
        "figure3",
        "Sec. 4",
        "At their greatest distance, ETHER and ETHER+ stay closer to the unperturbed image than OFT and Naive at theirs.",
        "every",
        compare_all(["ether", "ether-plus"], ["oft-n4", "naive-n4"], ["dino_same"]),
    ),
)
