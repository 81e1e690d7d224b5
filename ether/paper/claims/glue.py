"""Claims on Table 4 (GLUE). Metrics: the tasks by name, and `average` over the eight tasks."""

from __future__ import annotations

from ether.analysis.claims import Claim, Comparison, compare_all

BENCHMARK = "GLUE"
EARLIER = ("full", "bitfit", "h-adapter", "p-adapter", "lora", "adalora", "oft", "boft")

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
)
