"""The page of deviations as Markdown: its sections in order, and what is left open."""

from __future__ import annotations

from collections.abc import Callable

from ether.paper.deviations import adapter, baselines, computation, control, counting, subject, text, training, vtab
from ether.paper.deviations.point import Point

SECTIONS: dict[str, tuple[Callable[[], Point], ...]] = {
    "The adapter": adapter.POINTS,
    "Training": training.POINTS,
    "Subject-driven generation": subject.POINTS,
    "Controllable generation": control.POINTS,
    "Image classification": vtab.POINTS,
    "Parameters": counting.POINTS,
    "Computation": computation.POINTS,
    "The text": text.POINTS,
    "The baselines in PEFT": baselines.POINTS,
}

OPEN = (
    "AdaLoRA's 1.27M: which triplets remain depends on the run.",
    "That 1044 tokens are the longest Alpaca sample under Phi's tokenizer: inferred from the digits, not measured.",
    "That the two further numbers for each output in Table 4's OFT and BOFT are a scale and a bias: inferred from the digits.",
    "What the released script sets and the paper does not mention (AdamW's betas 0.9 and 0.95, no gradient clipping, the loss on "
    "the prompt too, the cleaned Alpaca data with 2,000 samples held out): its effect can only be measured by training.",
    "Which of the two sides the one-sided ETHER+ of Table 11 uses: both print as 0.2M.",
)


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Where the paper, its released code and this suite differ",
        "",
        "`python -m ether.paper.deviations --write docs/deviations.md` generates this page, and a test compares the two: every "
        "number is computed, by the functions of this package or by arithmetic on the paper's architectures. \"The released "
        "code\" is the authors' repository; statements on it were found by running it, and its formulas are rewritten here where "
        "a number needs them.",
        "",
    ]  # fmt: skip
    for section, points in SECTIONS.items():
        lines += [f"## {section}", ""]
        for make in points:
            point = make()
            lines += [f"### {point.title}", "", point.text, ""]
            if point.table:
                header, *rows = point.table
                lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
                lines += ["| " + " | ".join(row) + " |" for row in rows]
                lines.append("")
    lines += ["## Left open", "", *[f"- {line}" for line in OPEN], ""]
    return "\n".join(lines)
