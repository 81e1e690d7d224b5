"""Deviations in Table 1: sequence lengths, what is counted, and weights against activations."""

from __future__ import annotations

from ether import config
from ether.measures import flops
from ether.paper import efficiency, published
from ether.paper.deviations.point import Point, percent, table


def _operations(model: str, method: str, tokens: int, adapted: str = "qv") -> int:
    rule, size = flops.weight_side_rule(efficiency.adapt(method))
    return flops.closed_form(model, rule, size, tokens, adapted)


def lengths() -> Point:
    """Table 1 measures its two models at different sequence lengths."""
    rows = []
    for method in ("ether-n4", "ether-n32", "ether-plus-n4", "ether-plus-n32"):
        whole, n = efficiency.one_block(method), efficiency.adapt(method)["config"]["n_blocks"]
        drops = [
            _operations(name, method, tokens) / _operations(name, whole, tokens) - 1
            for name, _ in efficiency.MODELS.values()
            for tokens in efficiency.LENGTHS
        ]
        rows.append([config.label(method).split()[0], n, *[percent(drop, 0) for drop in drops]])
    return Point(
        "Table 1: two sequence lengths",
        "The caption says that the gain from blocks grows with the model. Its Phi-1.5 numbers are those of 1044 tokens, its "
        "Llama-2-7B numbers those of 256. At equal length the order is the same, but most of the printed difference comes from "
        "the length: the products that blocks make cheaper do not depend on it, all others grow with it.",
        table(["", "n", "Phi-1.5, 256", "Phi-1.5, 1044", "Llama-2-7B, 256", "Llama-2-7B, 1044"], rows),
    )


def what_is_counted() -> Point:
    """The caption's backward pass, OFT's dense matrix, the two cells of 9.13, and two drops."""
    paper = published.load()["table1"]
    name, tokens = efficiency.MODELS["Llama-2-7B"]
    lora = flops.weight_side_step(name, *flops.weight_side_rule(efficiency.adapt(efficiency.REFERENCE)), tokens)
    dense, blocks = (efficiency.tflops(name, efficiency.DENSE, tokens, dense=dense) for dense in (True, False))
    llama, relaxed = (
        {n: _operations(name, f"{family}-n{n}", tokens) / 1e12 for n in (1, 32)} for family in ("ether", "ether-plus")
    )
    phi = {n: _operations("phi-1.5", f"ether-n{n}", 1044) / 1e12 for n in (1, 4, 32)}
    three = _operations("phi-1.5", "ether-n1", 1044, "qkv") / 1e12
    drops = {
        model: [paper.printed(m, f"{model} rel. drop") for m in ("ether-n4", "ether-n32", "ether-plus-n32")]
        for model in efficiency.MODELS
    }
    rows = [
        ["passes", "a single backward pass", f"both: LoRA on Llama {lora.forward / 1e12:.2f} + {lora.backward / 1e12:.2f}"],
        [
            "OFT n=256, Llama",
            f"block-diagonal, {paper.printed(efficiency.DENSE, 'Llama-2-7B TFLOPs')}",
            f"its matrix with all zeros: {dense:.2f}; in blocks {blocks:.2f}, below ETHER n=32's {llama[32]:.2f}",
        ],
        [
            "ETHER n=1, Phi",
            paper.printed("ether-n1", "Phi-1.5 TFLOPs"),
            f"query, key, value: {three:.2f}; query and value, as in the other cells: {phi[1]:.2f}",
        ],
        [
            "ETHER drops, Phi",
            ", ".join(drops["Phi-1.5"][:2]),
            f"against that {three:.2f}; else {percent(phi[4] / phi[1] - 1)}, {percent(phi[32] / phi[1] - 1)}",
        ],
        [
            "drops at n=32, Llama",
            ", ".join(drops["Llama-2-7B"][1:]),
            f"{percent(llama[32] / llama[1] - 1, 2)} (ETHER), {percent(relaxed[32] / relaxed[1] - 1, 2)} (ETHER+)",
        ],
    ]
    return Point(
        "Table 1: what is counted",
        "One convention gives the printed digits. Where it differs from the text:",
        table(["", "text", "what the digits need"], rows),
    )


def activations() -> Point:
    """What the weight side costs compared with activations."""
    name, tokens = efficiency.MODELS["Llama-2-7B"]
    lora = efficiency.tflops(name, efficiency.REFERENCE, tokens, "activations")
    rows = []
    for method in [m for m in efficiency.methods() if m.startswith("ether")]:
        weight_side = efficiency.tflops(name, method, tokens)
        here = efficiency.tflops(name, method, tokens, "activations")
        rows.append(
            [config.label(method), f"{weight_side:.2f}", f"{here:.2f}", percent(here / weight_side - 1, 0), f"{here / lora:.3f}"]
        )
    return Point(
        "Table 1: weights or activations",
        "The paper and its code compute HW in every step; then n blocks are n times cheaper than one. But (HW)ᵀx = Wᵀ(Hx), "
        "and Hx takes two vector operations for each token. So this suite reflects activations: there is no matrix H, no dense "
        f"gradient of the weight, and no saving by blocks. TFLOPs of a step of Llama-2-7B with {tokens} tokens.",
        table(["", "weight side", "activations", "saved", "divided by LoRA r=8"], rows),
    )  # fmt: skip


POINTS = (lengths, what_is_counted, activations)
