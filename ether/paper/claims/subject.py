"""Claims on subject-driven generation: Tables 2, 6 and 11, Figures 4 and 7; with the second halves of Table 6 and Figure 7.

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
UNBOUNDED = ("oft-n4", "naive-n4")
ETHERS = ("ether", "ether-plus")
ROUNDING = 1e-3  # of a distance in single precision
MAGNITUDE = 1  # the fewest "orders of magnitude", on a logarithmic scale
KEPT = 0.9  # the share of a score that is not "deteriorated"
NEVER = 1e-3  # a share of runs below one run of any grid
MORE_THAN_HALF = 0.5  # of the images have the background of their prompt: the prompt is followed
# Endings of metrics at other learning rates than the methods' own: energies at rates common to all, and with the paper's ratio of
# ETHER+'s rate to Naive's (App. C.1 and C.2); OFT and Naive at one rate.
AT_LOWEST, AT_EQUAL, AT_HIGHEST, AT_RATIO, AT_SAME = (
    "_lowest_rate",
    "_equal_rates",
    "_highest_rate",
    "_papers_ratio",
    "_same_rate",
)
COMMON = (AT_LOWEST, AT_EQUAL, AT_HIGHEST)
PAPERS_RATIO = 100
OTHERS = ("dreambooth", "lora-r4", "oft-n4")
MAPS = "Controllable generation"  # the heading of the claims on semantic maps
SAME = 0.05  # relative difference of OFT and Naive that is not significant
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
        "OFT and its unconstrained counterpart Naive do not differ significantly in the same setting (here: by no more than 5 % "
        "at the learning rate that is best for both).",
        "every",
        compare_all(
            ["oft-n4"],
            ["naive-n4"],
            [f"{metric}{AT_SAME}" for metric in (*QUALITY, "clip_t", "lpips_real")],
            "similar",
            relative_margin=SAME,
        ),
    ),
    Claim(
        "subject-oft-naive-similar-at-own-rates",
        "table6",
        ADDED,
        "OFT and Naive differ by no more than 5 % when each has the learning rate that is best for it.",
        "every",
        compare_all(["oft-n4"], ["naive-n4"], [*QUALITY, "clip_t", "lpips_real"], "similar", relative_margin=SAME),
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
        "At the highest learning rate of the grid, OFT and Naive are farther from the identity than ETHER and ETHER+.",
        "every",
        compare_all(["oft-n4", "naive-n4"], ["ether", "ether-plus"], ["transformation_distance_at_highest"]),
    ),
    Claim(
        "subject-weights-unbounded",
        "figure4",
        "Figure 4, caption",
        "At the highest learning rate of the grid, all other methods move the weights farther than ETHER and ETHER+.",
        "every",
        compare_all(["oft-n4", "naive-n4", "lora-r4"], ["ether", "ether-plus"], ["weight_distance_at_highest"]),
    ),
    Claim(
        "subject-energy-kept",
        "figure7",
        "Figure 7, caption",
        "OFT and ETHER leave the hyperspherical energy unchanged (input side; here: a relative change below 1e-5).",
        "every",
        tuple(Bound(method, "he_difference_input", below=UNCHANGED) for method in ("oft-n4", "ether")),
        by_construction=True,
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
        "ETHER+ changes the hyperspherical energy even more than Naive, each at its own learning rate.",
        "every",
        (Comparison("ether-plus", "naive-n4", "he_difference_input"),),
    ),
    Claim(
        "subject-ether-plus-changes-energy-most-at-equal-rates",
        "figure7",
        ADDED,
        "ETHER+ changes the hyperspherical energy more than Naive at every common learning rate (here: the lowest, the middle "
        "and the highest at which no method diverges).",
        "every",
        tuple(Comparison("ether-plus", "naive-n4", f"he_difference_input{at}") for at in COMMON),
    ),
    Claim(
        "subject-ether-plus-changes-energy-most-at-the-paper-s-ratio",
        "figure7",
        ADDED,
        f"ETHER+ changes the hyperspherical energy more than Naive when Naive has a {PAPERS_RATIO} times lower learning rate, "
        "as in the paper.",
        "every",
        (Comparison("ether-plus", "naive-n4", f"he_difference_input{AT_RATIO}"),),
    ),
    Claim(
        "control-oft-naive-similar",
        "table6",
        "Sec. 5.3",
        "On semantic maps, too, OFT and Naive do not differ significantly in the same setting (here: by no more than 5 % at the "
        "learning rate that is best for both).",
        "every",
        compare_all(
            ["oft-n4"],
            ["naive-n4"],
            [f"{metric}{AT_SAME}" for metric in ("miou", "accuracy", "fid")],
            "similar",
            relative_margin=SAME,
        ),
        benchmark=MAPS,
    ),
    Claim(
        "control-oft-naive-similar-at-own-rates",
        "table6",
        ADDED,
        "On semantic maps, OFT and Naive differ by no more than 5 % when each has the learning rate that is best for it.",
        "every",
        compare_all(["oft-n4"], ["naive-n4"], ["miou", "accuracy", "fid"], "similar", relative_margin=SAME),
        benchmark=MAPS,
    ),
    Claim(
        "control-energy-kept",
        "figure7",
        "Figure 7, caption",
        "On semantic maps, OFT and ETHER leave the hyperspherical energy unchanged (input side; here: below 1e-5).",
        "every",
        tuple(Bound(method, "control_he_difference_input", below=UNCHANGED) for method in ("oft-n4", "ether")),
        benchmark=MAPS,
        by_construction=True,
    ),
    Claim(
        "control-energy-changed",
        "figure7",
        "Figure 7, caption",
        "On semantic maps, Naive and ETHER+ change the hyperspherical energy (input side; here: by more than 1e-5).",
        "every",
        tuple(Bound(method, "control_he_difference_input", above=UNCHANGED) for method in ("naive-n4", "ether-plus")),
        benchmark=MAPS,
    ),
    Claim(
        "control-ether-plus-changes-energy-most",
        "figure7",
        "Sec. 5.3",
        "On semantic maps, ETHER+ changes the hyperspherical energy even more than Naive, each at its own learning rate.",
        "every",
        (Comparison("ether-plus", "naive-n4", "control_he_difference_input"),),
        benchmark=MAPS,
    ),
    Claim(
        "control-ether-plus-changes-energy-most-at-equal-rates",
        "figure7",
        ADDED,
        "On semantic maps, ETHER+ changes the hyperspherical energy more than Naive at every common learning rate (here: the "
        "lowest, the middle and the highest at which no method diverges).",
        "every",
        tuple(Comparison("ether-plus", "naive-n4", f"control_he_difference_input{at}") for at in COMMON),
        benchmark=MAPS,
    ),
    Claim(
        "control-ether-plus-changes-energy-most-at-the-paper-s-ratio",
        "figure7",
        ADDED,
        "On semantic maps, ETHER+ changes the hyperspherical energy more than Naive when Naive has a "
        f"{PAPERS_RATIO} times lower learning rate, as in the paper.",
        "every",
        (Comparison("ether-plus", "naive-n4", f"control_he_difference_input{AT_RATIO}"),),
        benchmark=MAPS,
    ),
    Claim(
        "subject-ether-plus-competitive",
        "table2",
        "Sec. 5.1.1",
        "ETHER+ is competitive in image quality, text-prompt fidelity and diversity (here: no more than 5 % below DreamBooth, "
        "LoRA and OFT).",
        "every",
        compare_all(["ether-plus"], OTHERS, [*QUALITY, "clip_t", "lpips_real"], "no worse", relative_margin=0.05),
    ),
    Claim(
        "subject-ether-plus-addresses-ether",
        "table2",
        "Table 2, caption",
        "ETHER+ addresses the shortcomings of ETHER: it has better image quality.",
        "every",
        compare_all(["ether-plus"], ["ether"], QUALITY),
    ),
    Claim(
        "subject-ether-distance-constant",
        "figure4",
        "Sec. 3.2, Eq. 2",
        "After fine-tuning, the distance of ETHER's transformation from the identity is 2 at every learning rate.",
        "every",
        (
            Bound("ether", "transformation_distance_least", above=2 - ROUNDING),
            Bound("ether", "transformation_distance_greatest", below=2 + ROUNDING),
        ),
        by_construction=True,
    ),
    Claim(
        "subject-ether-plus-distance-bounded",
        "figure4",
        "Sec. 3.3",
        "After fine-tuning, the distance of ETHER+'s transformation from the identity is at most 2 at every learning rate.",
        "every",
        (Bound("ether-plus", "transformation_distance_greatest", below=2 + ROUNDING),),
        by_construction=True,
    ),
    Claim(
        "subject-ether-plus-distance-below-root-2",
        "figure4",
        ADDED,
        "After fine-tuning, the distance of ETHER+'s transformation from the identity is below the square root of 2 at every "
        "learning rate.",
        "every",
        (Bound("ether-plus", "transformation_distance_greatest", below=2**0.5 + ROUNDING),),
        by_construction=True,
    ),
    Claim(
        "subject-transformation-orders-of-magnitude",
        "figure4",
        "Sec. 4",
        "At the highest learning rate of the grid the transformations of OFT and Naive are orders of magnitude farther from the "
        "identity than those of ETHER and ETHER+ (here: at least 10 times).",
        "every",
        tuple(
            Bound(method, f"transformation_distance_over_{bounded}", above=MAGNITUDE)
            for method in UNBOUNDED
            for bounded in ETHERS
        ),
    ),
    Claim(
        "subject-weights-orders-of-magnitude",
        "figure4",
        "Figure 4, caption",
        "At the highest learning rate of the grid the weights of OFT, Naive and LoRA are orders of magnitude farther from the "
        "pretrained ones than those of ETHER and ETHER+ (here: at least 10 times).",
        "every",
        tuple(
            Bound(method, f"weight_distance_over_{bounded}", above=MAGNITUDE)
            for method in (*UNBOUNDED, "lora-r4")
            for bounded in ETHERS
        ),
    ),
    Claim(
        "subject-ten-times-the-rate-collapse",
        "figure4",
        "App. A, Figure 8",
        "At ten times the learning rate OFT and Naive fail to follow the prompt (here: fewer than half of the images have its "
        "background).",
        "every",
        tuple(Bound(method, "background_x10", below=MORE_THAN_HALF) for method in UNBOUNDED),
    ),
    Claim(
        "subject-ten-times-the-rate-lora-collapse",
        "figure4",
        "App. A, Figure 8",
        "At ten times the learning rate LoRA collapses (here: fewer than half of the images have the prompt's background).",
        "every",
        (Bound("lora-r4", "background_x10", below=MORE_THAN_HALF),),
    ),
    Claim(
        "subject-ten-times-the-rate-prompt-followed",
        "figure4",
        "App. A, Figure 8",
        "At ten times the learning rate ETHER and ETHER+ follow the prompt (here: more than half of the images have its "
        "background).",
        "every",
        tuple(Bound(method, "background_x10", above=MORE_THAN_HALF) for method in ETHERS),
    ),
    Claim(
        "subject-ten-times-the-rate-score-kept",
        "figure4",
        "App. A, Figure 8",
        "ETHER and ETHER+ produce good results without deterioration at ten times the learning rate (here: they keep 90 % of "
        "their score).",
        "every",
        tuple(Bound(method, "score_kept_x10", above=KEPT) for method in ETHERS),
    ),
    Claim(
        "subject-a-tenth-of-the-rate-too-slow",
        "figure4",
        "App. A, Figure 8",
        "At a tenth of the learning rate OFT, Naive and ETHER do not learn the subject (here: they have less than 90 % of their "
        "DINO).",
        "every",
        tuple(Bound(method, "dino_kept_x0.1", below=KEPT) for method in (*UNBOUNDED, "ether")),
    ),
    Claim(
        "subject-ether-wider-learning-rates",
        "figure4",
        "Sec. 4",
        "ETHER keeps 90 % of its best score over a wider range of learning rates than OFT, Naive and LoRA.",
        "every",
        compare_all(["ether"], [*UNBOUNDED, "lora-r4"], ["width"]),
    ),
    Claim(
        "subject-ether-plus-wider-learning-rates",
        "figure4",
        "Sec. 4",
        "ETHER+ keeps 90 % of its best score over a wider range of learning rates than OFT, Naive and LoRA.",
        "every",
        compare_all(["ether-plus"], [*UNBOUNDED, "lora-r4"], ["width"]),
    ),
    Claim(
        "subject-no-divergence",
        "figure4",
        "Sec. 3.2",
        "ETHER and ETHER+ minimise the risk of divergence: no run of the grid diverges.",
        "every",
        tuple(Bound(method, "diverged", below=NEVER) for method in ETHERS),
    ),
    Claim(
        "subject-others-diverge",
        "figure4",
        ADDED,
        "DreamBooth, LoRA, OFT and Naive each diverge at some learning rate of the grid.",
        "every",
        tuple(Bound(method, "diverged", above=NEVER) for method in (*OTHERS, "naive-n4")),
    ),
    Claim(
        "subject-ether-plus-widest-learning-rates",
        "figure4",
        "Figure 8, caption",
        "ETHER+ has the widest range of learning rates (here: that keep 90 % of its best score).",
        "every",
        compare_all(["ether-plus"], [*OTHERS, "naive-n4", "ether"], ["width"]),
    ),
    Claim(
        "subject-oft-naive-same-working-range",
        "figure4",
        "Sec. 5.3",
        "OFT and Naive have the same optimal learning rate (here: it differs by less than half an order of magnitude).",
        "every",
        (Comparison("oft-n4", "naive-n4", "best_rate", "similar", 0.5),),
    ),
)
