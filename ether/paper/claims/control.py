"""Claims on controllable generation: Tables 3 and 9, Figures 5, 6 and 12. Those on Table 6 and Figure 7 are in `subject`.

Control is mean IoU and pixel accuracy of the judge's maps of the generated images, image quality is FID. Figures 5 and 6 are
judged by properties of the grid of learning rates, of which each seed gives one value: the `peak` (the best rate's mIoU), the
`width` (orders of magnitude of the rates around it that keep 90 % of it), the `worst` mIoU, and the same at the first evaluation.

Claims with the source `ADDED` are not in the paper.
"""

from __future__ import annotations

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "Controllable generation"
CONTROL = ("miou", "accuracy")
ADAPTED = ("oft-n4", "oft-n4-magnitude", "naive-n4", "ether", "ether-plus")
UNBOUNDED = ("oft-n4", "naive-n4")
BOUNDED = ("ether", "ether-plus")
KEPT = 0.9  # share of the peak that counts as no loss
NEVER = 1e-3  # a share of runs below one run of any grid

CLAIMS = (
    Claim(
        "control-adaptation-beats-encoder",
        "table3",
        "Sec. 5.1.2",
        "Adapting the model gives more control, and better images, than training the signal encoder alone.",
        "every",
        compare_all(ADAPTED, ["encoder-only"], [*CONTROL, "fid"]),
    ),
    Claim(
        "control-ether-on-level-with-oft",
        "table3",
        "Sec. 5.1.2",
        "ETHER performs on the same level as OFT (here: control no more than 5 % below OFT's).",
        "every",
        compare_all(["ether"], ["oft-n4"], CONTROL, "no worse", relative_margin=0.05),
    ),
    Claim(
        "control-ether-plus-above-oft",
        "table3",
        "Sec. 5.1.2",
        "ETHER+ gives more control than OFT.",
        "every",
        compare_all(["ether-plus"], ["oft-n4"], CONTROL),
    ),
    Claim(
        "control-ether-plus-best",
        "table3",
        "Table 3",
        "ETHER+ gives the most control of all methods.",
        "every",
        compare_all(["ether-plus"], ["encoder-only", *ADAPTED], CONTROL),
    ),
    Claim(
        "control-relaxation-helps",
        "table3",
        "Sec. 5.1.2",
        "The relaxation of ETHER+ gains control over ETHER.",
        "every",
        compare_all(["ether-plus"], ["ether"], CONTROL),
    ),
    Claim(
        "control-image-alignment-kept",
        "table3",
        "Table 3, caption",
        "ETHER and ETHER+ retain good image alignment (here: FID no more than 5 % above OFT's).",
        "every",
        compare_all(BOUNDED, ["oft-n4"], ["fid"], "no worse", relative_margin=0.05),
    ),
    Claim(
        "control-magnitudes-gain-little",
        "table3",
        "Sec. 5.1.2",
        "Magnitude re-fitting yields only limited gains over OFT (here: mIoU and accuracy within 3 %).",
        "every",
        compare_all(["oft-n4-magnitude"], ["oft-n4"], CONTROL, "similar", relative_margin=0.03),
    ),
    Claim(
        "control-blocks-matter-little",
        "table9",
        "App. D.1",
        "Performance is almost unaffected by the number of blocks (here: mIoU and accuracy within 5 % of n = 1).",
        "every",
        compare_all(["ether-n4", "ether-n16"], ["ether-n1"], CONTROL, "similar", relative_margin=0.05),
    ),
    Claim(
        "control-wider-range",
        "figure5",
        "Sec. 4",
        "ETHER and ETHER+ retain strong performance over more orders of magnitude of the learning rate than OFT and Naive.",
        "every",
        compare_all(BOUNDED, UNBOUNDED, ["width"]),
    ),
    Claim(
        "control-unbounded-drop",
        "figure5",
        "Sec. 4",
        "Methods other than ETHER drop significantly at high learning rates (here: below 90 % of their peak at the highest).",
        "every",
        tuple(Bound(method, "at_highest_rate", below=KEPT) for method in UNBOUNDED),
    ),
    Claim(
        "control-bounded-do-not-drop",
        "figure5",
        "Figure 5, caption",
        "ETHER and ETHER+ keep their performance at high learning rates (here: 90 % of their peak at the highest).",
        "every",
        tuple(Bound(method, "at_highest_rate", above=KEPT) for method in BOUNDED),
    ),
    Claim(
        "control-worst-case",
        "figure5",
        ADDED,
        "At its worst learning rate of the grid, ETHER+ gives more control than OFT and Naive at theirs.",
        "every",
        compare_all(["ether-plus"], UNBOUNDED, ["worst"]),
    ),
    Claim(
        "control-robust-and-good",
        "figure5",
        ADDED,
        "The wide range of ETHER+ is not that of a bad method: its peak is no more than 5 % below those of OFT and Naive.",
        "every",
        compare_all(["ether-plus"], UNBOUNDED, ["peak"], "no worse", relative_margin=0.05),
    ),
    Claim(
        "control-ether-robust-and-good",
        "figure5",
        ADDED,
        "Nor is the wide range of ETHER: its peak is above that of the encoder alone, and no more than 5 % below that of OFT.",
        "every",
        (
            Comparison("ether", "encoder-only", "peak"),
            Comparison("ether", "oft-n4", "peak", "no worse", relative_margin=0.05),
        ),
    ),
    Claim(
        "control-oft-naive-same-working-range",
        "figure5",
        "Sec. 5.3",
        "OFT and Naive have the same optimal learning rate (here: it differs by less than half an order of magnitude).",
        "every",
        (Comparison("oft-n4", "naive-n4", "best_rate", "similar", 0.5),),
    ),
    Claim(
        "control-no-divergence",
        "figure5",
        "Sec. 3.2",
        "ETHER and ETHER+ minimise the risk of divergence: no run of the grid diverges.",
        "every",
        tuple(Bound(method, "diverged", below=NEVER) for method in BOUNDED),
    ),
    Claim(
        "control-fastest-convergence",
        "figure6",
        "Sec. 4",
        "ETHER+ converges fastest: at the first evaluation its best rate gives more control than that of OFT and Naive.",
        "every",
        compare_all(["ether-plus"], UNBOUNDED, ["early_peak"]),
    ),
    Claim(
        "control-fast-at-many-rates",
        "figure6",
        "Figure 6, caption",
        "The fastest convergence of ETHER+ is stable over more orders of magnitude of the rate than that of OFT and Naive.",
        "every",
        compare_all(["ether-plus"], UNBOUNDED, ["early_width"]),
    ),
    Claim(
        "control-competitive-after-one-epoch",
        "figure6",
        "Sec. 4",
        "ETHER+ has competitive results at the first evaluation (here: 90 % of its mIoU at the last).",
        "every",
        (Bound("ether-plus", "early_share", above=KEPT),),
    ),
    Claim(
        "control-lora-fails",
        "table3",
        "App. F",
        "No setting of LoRA gives comparable results (here: at the best learning rate of its grid it has less than 90 % of the "
        "mIoU of ETHER+, on other images).",
        "every",
        (Bound("lora-r4", "of_ether_plus_chosen", below=KEPT),),
    ),
    Claim(
        "control-lora-fails-on-average",
        "figure12",
        ADDED,
        "On average over random settings, LoRA has less than 90 % of the mIoU of ETHER+ at its best rate.",
        "every",
        (Bound("lora-r4", "of_ether_plus", below=KEPT),),
        units="settings",
    ),
    Claim(
        "control-lora-below-encoder",
        "figure12",
        ADDED,
        "On average over random settings, LoRA gives less control than the encoder alone.",
        "every",
        (Bound("lora-r4", "of_encoder_only", below=1.0),),
        units="settings",
    ),
    Claim(
        "control-lora-row",
        "table3",
        "Sec. 5.1.2",
        "LoRA, at the best rate of the grid, gives less control than OFT, ETHER and ETHER+.",
        "every",
        tuple(Comparison(method, "lora-r4", metric) for method in ("oft-n4", *BOUNDED) for metric in CONTROL),
    ),
)
