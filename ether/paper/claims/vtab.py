"""Claims on Table 12 (VTAB). Those with the source `ADDED` are not in the paper.

Metrics: the tasks by name, `mean` over the tasks that were run, and the number of parameters divided by that of OFT and of LoRA.
"""

from __future__ import annotations

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "VTAB"
TASKS = ("caltech101", "dtd", "flowers102", "svhn", "eurosat", "snorb_elevation")

CLAIMS = (
    Claim(
        "vtab-comparable",
        "table12",
        "App. E",
        "ETHER and ETHER+ perform comparably to OFT and LoRA (here: the mean accuracy is no more than 2 % below that of each).",
        "every",
        compare_all(["ether", "ether-plus"], ["oft-n256", "lora"], ["mean"], "no worse", relative_margin=0.02),
    ),
    Claim(
        "vtab-comparable-on-each-task",
        "table12",
        "App. E",
        "ETHER and ETHER+ perform comparably to OFT and LoRA on each task (here: no more than 2 % below the accuracy of each).",
        "every",
        compare_all(["ether", "ether-plus"], ["oft-n256", "lora"], TASKS, "no worse", relative_margin=0.02),
    ),
    Claim(
        "vtab-ether-plus-beats-full",
        "table12",
        "Table 12",
        "ETHER+ is more accurate than full fine-tuning on each task.",
        "every",
        compare_all(["ether-plus"], ["full"], TASKS),
    ),
    Claim(
        "vtab-adapters-beat-probe",
        "table12",
        ADDED,
        "LoRA, OFT, ETHER and ETHER+ are more accurate on average than linear probing.",
        "every",
        tuple(Comparison(method, "linear-probe", "mean") for method in ("lora", "oft-n256", "ether", "ether-plus")),
    ),
    Claim(
        "vtab-fraction-of-parameters",
        "table12",
        "App. E",
        "ETHER and ETHER+ use a fraction of the parameters of OFT and LoRA (here: fewer).",
        "every",
        tuple(
            Bound(method, f"parameters_of_{other}", below=1) for method in ("ether", "ether-plus") for other in ("oft", "lora")
        ),
    ),
)
