"""Claims on subject-driven generation: Tables 2, 6 and 11, Figures 4 and 7.

Image quality is DINO and CLIP-I, fidelity to the prompt CLIP-T. Diversity is the distance between the images of one prompt
(`lpips_prompt`), according to the meaning of the word. The tables also have the distance between real and generated images,
which the baselines' code measures under the same name.

Claims with the source `ADDED` are not in the paper. They test what this suite measures in addition.
"""

from __future__ import annotations

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "Subject-driven generation"
QUALITY = ("dino", "clip_i")
OTHERS = ("dreambooth", "lora-r4", "oft-n4")
UNCHANGED = 1e-5  # smaller relative changes of hyperspherical energy are rounding errors in single precision

CLAIMS = (
    Claim(
        "subject-ether-plus-above-oft",
        "table2",
        "Sec. 5.1.1",
        "ETHER+ has better image quality than OFT.",
        "every",
        compare_all(["ether-plus"], ["oft-n4"], QUALITY),
    ),
    Claim(
        "subject-ether-plus-best-quality",
        "table2",
        "Table 2",
        "ETHER+ has the best image quality of all methods.",
        "every",
        compare_all(["ether-plus"], [*OTHERS, "ether"], QUALITY),
    ),
    Claim(
        "subject-ether-worst-quality",
        "table2",
        "Sec. 5.1.1",
        "ETHER falls short of every other method in image quality.",
        "every",
        compare_all([*OTHERS, "ether-plus"], ["ether"], QUALITY),
    ),
    Claim(
        "subject-ether-fidelity-and-diversity",
        "table2",
        "Sec. 5.1.1",
        "ETHER has the best text-prompt fidelity and the most diverse images.",
        "every",
        compare_all(["ether"], [*OTHERS, "ether-plus"], ["clip_t", "lpips_prompt"]),
    ),
    Claim(
        "subject-tuning-teaches",
        "table2",
        ADDED,
        "Every method is closer to the subject (DINO) than the base model without tuning.",
        "every",
        compare_all([*OTHERS, "naive-n4", "ether", "ether-plus-one-sided", "ether-plus"], ["base"], ["dino"]),
    ),
    Claim(
        "subject-bounded-drift",
        "table2",
        ADDED,
        "The bounded methods ETHER and ETHER+ change images of unrelated prompts less than all other methods.",
        "every",
        compare_all(["ether", "ether-plus"], [*OTHERS, "naive-n4"], ["drift"]),
    ),
    Claim(
        "subject-oft-naive-similar",
        "table6",
        "Sec. 5.3",
        "OFT and its unconstrained counterpart Naive do not differ significantly (here: by no more than 5 %).",
        "every",
        compare_all(["oft-n4"], ["naive-n4"], [*QUALITY, "clip_t", "lpips_real"], "similar", relative_margin=0.05),
    ),
    Claim(
        "subject-two-sides-better",
        "table11",
        "App. D.2",
        "Two-sided ETHER+ does better than one-sided.",
        "every",
        compare_all(["ether-plus"], ["ether-plus-one-sided"], QUALITY),
    ),
    Claim(
        "subject-distances-unbounded",
        "figure4",
        "Sec. 4",
        "At the highest learning rate, OFT and Naive are farther from the identity than ETHER and ETHER+.",
        "every",
        compare_all(["oft-n4", "naive-n4"], ["ether", "ether-plus"], ["transformation_distance"]),
    ),
    Claim(
        "subject-weights-unbounded",
        "figure4",
        "Figure 4, caption",
        "At the highest learning rate, all other methods move the weights farther than ETHER and ETHER+.",
        "every",
        compare_all(["oft-n4", "naive-n4", "lora-r4"], ["ether", "ether-plus"], ["weight_distance"]),
    ),
    Claim(
        "subject-energy-kept",
        "figure7",
        "Figure 7, caption",
        "OFT and ETHER leave the hyperspherical energy unchanged (input side; here: a relative change below 1e-5).",
        "every",
        tuple(Bound(method, "he_difference_input", below=UNCHANGED) for method in ("oft-n4", "ether")),
    ),
    Claim(
        "subject-energy-changed",
        "figure7",
        "Figure 7, caption",
        "Naive and ETHER+ change the hyperspherical energy (input side; here: by more than 1e-5).",
        "every",
        tuple(Bound(method, "he_difference_input", above=UNCHANGED) for method in ("naive-n4", "ether-plus")),
    ),
    Claim(
        "subject-ether-plus-changes-energy-most",
        "figure7",
        "Sec. 5.3",
        "ETHER+ changes the hyperspherical energy even more than Naive.",
        "every",
        (Comparison("ether-plus", "naive-n4", "he_difference_input"),),
    ),
    Claim(
        "subject-ether-plus-changes-energy-most-at-equal-rates",
        "figure7",
        ADDED,
        "ETHER+ changes the hyperspherical energy more than Naive when both have the same learning rate.",
        "every",
        (Comparison("ether-plus", "naive-n4", "he_difference_input_equal_rates"),),
    ),
)
