"""Claims on Table 4 (GLUE) and on the grid of its learning rates. Those with the source `ADDED` are not in the paper.

Metrics of Table 4: the tasks by name, and `average` over the eight tasks. Of the grid, of which each seed gives one value: the
`peak` (the best rate's average), the `width` (orders of magnitude of the rates around it that keep 90 % of it), and the `worst`
average.
"""

from __future__ import annotations

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "GLUE"
EARLIER = ("full", "bitfit", "h-adapter", "p-adapter", "lora", "adalora", "oft", "boft")
BOUNDED = ("ether", "ether-plus")
KEPT = 0.9

CLAIMS = (
    Claim(
        "glue-match-earlier-methods",
        "table4",
        "Sec. 5.2.1",
        "ETHER and ETHER+ match or outperform earlier methods on average (here: no more than 1 % below the score of each).",
        "every",
        compare_all(["ether", "ether-plus"], EARLIER, ["average"], "no worse", relative_margin=0.01),
    ),
    Claim(
        "glue-ether-plus-highest-average",
        "table4",
        "Sec. 5.2.1",
        "ETHER+ has the highest overall score.",
        "every",
        compare_all(["ether-plus"], [*EARLIER, "ether"], ["average"]),
    ),
    Claim(
        "glue-ether-plus-best-stsb",
        "table4",
        "Sec. 5.2.1",
        "ETHER+ has the highest score on STS-B.",
        "every",
        compare_all(["ether-plus"], [*EARLIER, "ether"], ["stsb"]),
    ),
    Claim(
        "glue-ether-beats-boft",
        "table4",
        "Sec. 5.2.1",
        "ETHER outperforms BOFT on RTE and MRPC.",
        "every",
        (Comparison("ether", "boft", "rte"), Comparison("ether", "boft", "mrpc")),
    ),
    Claim(
        "glue-ether-wider-learning-rates",
        "figure_glue_rates",
        "Sec. 1",
        "ETHER keeps 90 % of its best average over a wider range of learning rates than the other methods.",
        "every",
        compare_all(["ether"], EARLIER, ["width"]),
    ),
    Claim(
        "glue-ether-plus-wider-learning-rates",
        "figure_glue_rates",
        "Sec. 1",
        "ETHER+ keeps 90 % of its best average over a wider range of learning rates than the other methods.",
        "every",
        compare_all(["ether-plus"], EARLIER, ["width"]),
    ),
    Claim(
        "glue-high-learning-rates",
        "figure_glue_rates",
        "Sec. 3.2",
        "ETHER and ETHER+ keep 90 % of their best average at the highest learning rate of the grid.",
        "every",
        tuple(Bound(method, "at_highest_rate", above=KEPT) for method in BOUNDED),
    ),
    Claim(
        "glue-worst-case",
        "figure_glue_rates",
        ADDED,
        "At their worst learning rate of the grid, ETHER and ETHER+ have a higher average than the other methods at theirs.",
        "every",
        compare_all(BOUNDED, EARLIER, ["worst"]),
    ),
    Claim(
        "glue-robust-and-good",
        "figure_glue_rates",
        ADDED,
        "The wide range is not that of bad methods: the best averages of ETHER and ETHER+ are at most 5 % below the others'.",
        "every",
        compare_all(BOUNDED, EARLIER, ["peak"], "no worse", relative_margin=0.05),
    ),
)
