"""Claims on what is counted and not trained: parameters (the exhibit `parameters`) and operations (Table 1).

The values are exact, so every test supports or contradicts (`ether.analysis.claims.EXACT`). Where the paper gives a rounded
number, the claim allows `NEAR` to either side. Metrics are described in `ether.exhibits.exact_evidence`.
"""

from __future__ import annotations

import itertools

from ether.analysis.claims import Bound, Claim, Comparison, compare_all
from ether.paper.claims import ADDED

BENCHMARK = "Parameters and operations"
NEAR = 0.05  # relative tolerance for "120 times", "30 times", "one-ninth", ...
FEWER = 5  # the least factor that "around 10 to 100 times" allows here
ETHERS = ("ether", "ether-plus")
MODELS = ("Phi-1.5", "Llama-2-7B")
# The rows of the tables with #params: (table, ETHER or ETHER+, LoRA or OFT).
PAIRS = tuple(
    (table, method, other)
    for table, methods, others in (
        ("table2", ETHERS, ("lora-r4", "oft-n4")),
        ("table3", ETHERS, ("oft-n4",)),
        ("table4", ETHERS, ("lora", "oft")),
        ("table5", ("ether-n32", "ether-plus-n32"), ("lora", "oft-n256")),
        ("table12", ETHERS, ("lora", "oft-n256")),
    )
    for method in methods
    for other in others
)
ABSTRACT = tuple(pair for pair in PAIRS if pair[0] != "table12")  # "image synthesis and natural language tasks"
BASELINES = {
    "table4": ("full", "bitfit", "h-adapter", "p-adapter", "lora", "adalora", "oft", "boft"),
    "table5": ("vera-r64", "vera-r256", "lora-r1", "lora", "oft-n256"),
}


def parameters(table: str) -> str:
    """The metric: number of parameters in a table."""
    return f"parameters_{table}"


def times(table: str, other: str) -> str:
    """The metric: number of parameters of another method of a table, divided by the method's own."""
    return f"parameters_{table}_{other}"


def tflops(model: str) -> str:
    """The metric: TFLOPs of a step of a model as Table 1 counts them, on the weight side."""
    return f"{model}_tflops"


def over_lora(model: str, side: str) -> str:
    """The metric: TFLOPs divided by those of LoRA r=8 on a side, weight | activations, at the model's length in Table 1."""
    return f"{model}_over_lora_{side}"


def greater_drop(tokens: int) -> str:
    """The metric: drop by blocks of Llama-2-7B less that of Phi-1.5, in points, both with sequences of so many tokens."""
    return f"greater_drop_{tokens}"


def _about(table: str, method: str, other: str, factor: float) -> tuple[Bound, Bound]:
    metric = times(table, other)
    return Bound(method, metric, above=factor * (1 - NEAR)), Bound(method, metric, below=factor * (1 + NEAR))


def _blocks(methods: tuple[str, ...], metric: str) -> tuple[Comparison, ...]:
    """More blocks have a lower value: each method has one block or fewer than the next."""
    return tuple(Comparison(more, fewer, metric) for fewer, more in itertools.pairwise(methods))


BLOCKS = (("ether-n1", "ether-n4", "ether-n32"), ("ether-plus-n1", "ether-plus-n4", "ether-plus-n32"))
MULTIPLICATIVE = ("oft-n256", *BLOCKS[0], *BLOCKS[1])

CLAIMS = (
    Claim(
        "parameters-ether-120-times-fewer",
        "parameters",
        "Sec. 4",
        "When fine-tuning Stable Diffusion, ETHER has 120 times fewer parameters than OFT (here: within 5 %).",
        "every",
        _about("table2", "ether", "oft-n4", 120),
    ),
    Claim(
        "parameters-ether-plus-30-times-fewer",
        "parameters",
        "Sec. 4",
        "When fine-tuning Stable Diffusion, ETHER+ has 30 times fewer parameters than OFT (here: within 5 %).",
        "every",
        _about("table2", "ether-plus", "oft-n4", 30),
    ),
    Claim(
        "parameters-ether-100-times-fewer-in-control",
        "parameters",
        "Sec. 5.1.2",
        "In controllable generation ETHER has over 100 times fewer parameters than OFT.",
        "every",
        (Bound("ether", times("table3", "oft-n4"), above=100),),
    ),
    Claim(
        "parameters-ether-around-10-to-100-times-fewer",
        "parameters",
        "Abstract",
        "ETHER has around 10 to 100 times fewer parameters than LoRA and OFT in image synthesis and language (here: at least "
        "5 times fewer in Tables 2 to 5).",
        "every",
        tuple(Bound(method, times(table, other), above=FEWER) for table, method, other in ABSTRACT if "plus" not in method),
    ),
    Claim(
        "parameters-ether-plus-around-10-to-100-times-fewer",
        "parameters",
        "Abstract",
        "ETHER+ has around 10 to 100 times fewer parameters than LoRA and OFT in image synthesis and language (here: at least "
        "5 times fewer in Tables 2 to 5).",
        "every",
        tuple(Bound(method, times(table, other), above=FEWER) for table, method, other in ABSTRACT if "plus" in method),
    ),
    Claim(
        "parameters-fewer-than-lora-and-oft",
        "parameters",
        "Sec. 6",
        "ETHER and ETHER+ have fewer parameters than LoRA and OFT in every table.",
        "every",
        tuple(Bound(method, times(table, other), above=1) for table, method, other in PAIRS),
    ),
    Claim(
        "parameters-constant-in-blocks",
        "parameters",
        "Sec. 3.4",
        "The number of parameters of ETHER and ETHER+ is the same for any number of blocks.",
        "every",
        tuple(
            Comparison(first, second, parameters(table), "similar", 0.0)
            for table, methods in (
                ("table9", ("ether-n1", "ether-n4", "ether-n16")),
                ("table10", ("ether-plus-n1", "ether-plus-n4", "ether-plus-n32")),
            )
            for first, second in itertools.pairwise(methods)
        ),
    ),
    Claim(
        "parameters-naive-as-many-as-oft",
        "parameters",
        "Sec. 3.2, footnote 1",
        "Naive has as many trainable parameters as OFT (here: whole blocks, as the official code of OFT trains them).",
        "every",
        (Comparison("naive-n4", "oft-n4", parameters("table6"), "similar", 0.0),),
    ),
    Claim(
        "parameters-ether-a-ninth-of-boft",
        "parameters",
        "Sec. 5.2.1",
        "ETHER has one-ninth of the parameters of BOFT (here: within 5 %).",
        "every",
        _about("table4", "ether", "boft", 9),
    ),
    Claim(
        "parameters-ether-plus-less-than-half-of-boft",
        "parameters",
        "Sec. 5.2.1",
        "ETHER+ has less than half of the parameters of BOFT.",
        "every",
        (Bound("ether-plus", times("table4", "boft"), above=2),),
    ),
    Claim(
        "parameters-glue-fewer",
        "parameters",
        "Table 4, caption",
        "On GLUE, ETHER and ETHER+ have fewer parameters than every other method.",
        "every",
        compare_all(ETHERS, BASELINES["table4"], [parameters("table4")]),
    ),
    Claim(
        "parameters-instruct-ether-most-efficient",
        "parameters",
        "Sec. 5.2.2",
        "In instruction tuning ETHER is the method with the fewest parameters.",
        "every",
        compare_all(["ether-n32"], BASELINES["table5"], [parameters("table5")]),
    ),
    Claim(
        "parameters-lora-16-times-ether",
        "parameters",
        "Sec. 5.2.2",
        "LoRA r=8 has 16 times the parameters of ETHER in instruction tuning (here: within 5 %).",
        "every",
        _about("table5", "ether-n32", "lora", 16),
    ),
    Claim(
        "parameters-lora-4-times-ether-plus",
        "parameters",
        "Sec. 5.2.2",
        "LoRA r=8 has 4 times the parameters of ETHER+ in instruction tuning (here: within 5 %).",
        "every",
        _about("table5", "ether-plus-n32", "lora", 4),
    ),
    Claim(
        "parameters-two-sides-double",
        "parameters",
        "App. D.2",
        "Two-sided ETHER+ has twice the parameters of one-sided (here: within 5 %).",
        "every",
        _about("table11", "ether-plus-one-sided", "ether-plus", 2),
    ),
    Claim(
        "operations-fall-with-blocks",
        "table1",
        "Table 1, caption",
        "The TFLOPs of a step fall as the number of blocks grows, for ETHER and ETHER+ on both models.",
        "every",
        tuple(test for model in MODELS for methods in BLOCKS for test in _blocks(methods, tflops(model))),
    ),
    Claim(
        "operations-larger-model-gains-more",
        "table1",
        "Table 1, caption",
        "The larger the model, the larger the gain by blocks (here: both models at the same sequence length, 256 and 1044).",
        "every",
        tuple(
            Bound(method, greater_drop(tokens), above=0) for tokens in (256, 1044) for methods in BLOCKS for method in methods[1:]
        ),
    ),
    Claim(
        "operations-multiplicative-cost-more",
        "table1",
        "Sec. 6",
        "OFT, ETHER and ETHER+ need more operations in training than LoRA (as the paper counts: the weight is rebuilt).",
        "every",
        tuple(Bound(method, over_lora(model, "weight"), above=1) for model in MODELS for method in MULTIPLICATIVE),
    ),
    Claim(
        "operations-multiplicative-cost-more-on-activations",
        "table1",
        ADDED,
        "Applied to activations, as in this package, OFT, ETHER and ETHER+ need more operations in training than LoRA.",
        "every",
        tuple(Bound(method, over_lora(model, "activations"), above=1) for model in MODELS for method in MULTIPLICATIVE),
    ),
)
