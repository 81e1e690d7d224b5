"""Claims on Tables 5 and 10 and the learning rates of instruction tuning. Those with the source `ADDED` are not in the paper."""

from __future__ import annotations

import itertools

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "Instruction tuning"
BENCHMARKS = ("mmlu", "arc", "tru1", "tru2")
OTHERS = ("vera-r64", "vera-r256", "lora-r1", "lora", "oft-n256")
TUNED = (*OTHERS, "ether-n32", "ether-plus-n32")
KEPT = 0.9  # the share of a score that is not "deteriorated"
SIMILAR = 0.05  # as a share of the score; the paper states "almost unaffected" without a number


def _similar_blocks(*numbers: int) -> tuple[Comparison, ...]:
    """ETHER+ with each two of these numbers of blocks has similar scores on every benchmark."""
    return tuple(
        test
        for a, b in itertools.combinations(numbers, 2)
        for test in compare_all([f"ether-plus-n{a}"], [f"ether-plus-n{b}"], BENCHMARKS, "similar", relative_margin=SIMILAR)
    )


CLAIMS = (
    Claim(
        "instruct-tuned-above-base",
        "table5",
        "Sec. 5.2.2",
        "Every tuned model surpasses the base model on every benchmark.",
        "every",
        compare_all(TUNED, ["base"], BENCHMARKS),
    ),
    Claim(
        "instruct-ether-above-comparable-size",
        "table5",
        "Sec. 5.2.2",
        "ETHER outperforms the baselines of comparable size, VeRA r=64 and LoRA r=1.",
        "every",
        compare_all(["ether-n32"], ["vera-r64", "lora-r1"], BENCHMARKS),
    ),
    Claim(
        "instruct-vera-rank-lowers",
        "table5",
        "Sec. 5.2.2",
        "Raising VeRA's rank from 64 to 256 lowers the scores.",
        "every",
        compare_all(["vera-r64"], ["vera-r256"], BENCHMARKS),
    ),
    Claim(
        "instruct-lora-rank-raises",
        "table5",
        "Sec. 5.2.2",
        "LoRA r=8 does better than LoRA r=1.",
        "every",
        compare_all(["lora"], ["lora-r1"], BENCHMARKS),
    ),
    Claim(
        "instruct-ether-above-lora-on-mmlu",
        "table5",
        "Sec. 5.2.2",
        "ETHER outperforms LoRA r=8 on MMLU.",
        "every",
        compare_all(["ether-n32"], ["lora"], ["mmlu"]),
    ),
    Claim(
        "instruct-ether-above-lora-and-oft",
        "table5",
        "Table 5, caption",
        "ETHER outperforms LoRA r=8 and OFT.",
        "every",
        compare_all(["ether-n32"], ["lora", "oft-n256"], BENCHMARKS),
    ),
    Claim(
        "instruct-ether-plus-above-all",
        "table5",
        "Sec. 5.2.2",
        "ETHER+ surpasses all other methods on all benchmarks.",
        "every",
        compare_all(["ether-plus-n32"], TUNED, BENCHMARKS),
    ),
    Claim(
        "instruct-blocks-hardly-matter",
        "table10",
        "App. D.1",
        "The number of blocks (1, 4, 32) hardly matters (here: scores differ by no more than 5 %).",
        "every",
        _similar_blocks(1, 4, 32),
    ),
    Claim(
        "instruct-more-blocks-hardly-matter",
        "table10",
        ADDED,
        "The number of blocks hardly matters for more of them than the paper has (32, 64, 128), either.",
        "every",
        _similar_blocks(32, 64, 128),
    ),
    Claim(
        "instruct-blocks-hardly-matter-at-this-width",
        "table10",
        ADDED,
        "The number of blocks hardly matters for 1, 4 and 32 blocks at the width of the small scale (n = 32, 128 and 1024: "
        "blocks of 128, 32 and 4 rows).",
        "every",
        _similar_blocks(32, 128, 1024),
    ),
    Claim(
        "instruct-32-blocks-better",
        "table10",
        "App. D.1",
        "ETHER+ with n = 32 does better than with fewer blocks.",
        "every",
        compare_all(["ether-plus-n32"], ["ether-plus-n1", "ether-plus-n4"], BENCHMARKS),
    ),
    Claim(
        "instruct-ether-wider-learning-rates",
        "figure_instruct_rates",
        "Sec. 1",
        "ETHER keeps 90 % of its best score over a wider range of learning rates than the other methods.",
        "every",
        compare_all(["ether-n32"], OTHERS, ["width"]),
    ),
    Claim(
        "instruct-ether-plus-wider-learning-rates",
        "figure_instruct_rates",
        "Sec. 1",
        "ETHER+ keeps 90 % of its best score over a wider range of learning rates than the other methods.",
        "every",
        compare_all(["ether-plus-n32"], OTHERS, ["width"]),
    ),
    Claim(
        "instruct-ten-times-the-rate",
        "figure_instruct_rates",
        ADDED,
        "ETHER and ETHER+ keep 90 % of their score at ten times the learning rate.",
        "every",
        tuple(Bound(method, "score_kept_x10", above=KEPT) for method in ("ether-n32", "ether-plus-n32")),
    ),
)
