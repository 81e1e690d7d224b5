"""Deviations in the numbers of parameters: ratios between methods, ways to count OFT, and rows that print something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ether.measures import parameters
from ether.measures.architectures import LLAMA_2_7B
from ether.paper.counts import by_convention, counted_method, counted_rows
from ether.paper.deviations.point import Point, table


class Place(NamedTuple):
    """A table with OFT and ETHER, by the stems of their files, and with LoRA where it has one."""

    table: str
    oft: str
    lora: str | None
    ether: str = "ether"
    ether_plus: str = "ether-plus"


PLACES = {
    "Subject-driven (Table 2)": Place("table2", "oft-n4", "lora-r4"),
    "Semantic map (Table 3)": Place("table3", "oft-n4", None),
    "GLUE (Table 4)": Place("table4", "oft", "lora"),
    "Instructions (Table 5)": Place("table5", "oft-n256", "lora", "ether-n32", "ether-plus-n32"),
    "VTAB (Table 12)": Place("table12", "oft-n256", "lora"),
}


def ratios() -> Point:
    """How many times fewer parameters than OFT and LoRA."""

    def rows() -> Iterator[Sequence[object]]:
        for name, place in PLACES.items():
            oft = counted_method(place.table, place.oft).exact
            lora = counted_method(place.table, place.lora).exact if place.lora else None
            cells = []
            for method, term in ((place.ether, "reflection"), (place.ether_plus, "relaxed-reflection")):
                ours = by_convention(place.table, method, term)  # without the classifier that Table 4's ETHER counts
                cells += [f"{oft / ours:.1f}", f"{lora / ours:.1f}" if lora else "–"]
            yield name, *cells

    attention = counted_method("table2", "ether-plus").exact
    oft = counted_method("table3", "oft-n4").exact
    return Point(
        "How many times fewer parameters",
        "The abstract says about 10 to 100 times fewer than LoRA or OFT; Sec. 4 says 120 (ETHER) and 30 (ETHER+) times "
        "fewer than OFT with Stable Diffusion. The second is right in round numbers, except for ETHER+ on semantic maps, where "
        f"it uses the count of the attention layers alone ({oft / attention:.1f}). The first is roughly right for ETHER, and for "
        "ETHER+ with Stable Diffusion against OFT; on VTAB, where App. E speaks of a fraction of the parameters, ETHER+ has "
        "more than OFT.",
        table(["", "ETHER: OFT", "ETHER: LoRA", "ETHER+: OFT", "ETHER+: LoRA"], rows()),
    )


def oft_conventions() -> Point:
    """Three ways to count OFT."""

    def rows() -> Iterator[Sequence[object]]:
        for name, place in PLACES.items():
            terms = ("orthogonal-half", "orthogonal-skew", "block-diagonal")
            counts = [f"{by_convention(place.table, place.oft, term):,}" for term in terms]
            yield name, *counts, counted_method(place.table, place.oft).printed

    return Point(
        "Counting OFT",
        "App. C counts half of what official OFT trains. A skew-symmetric block has a little less than half, its strict "
        "upper triangle, which is what PEFT's OFT trains; official OFT trains whole blocks. The printed digits need the "
        "triangle in Table 2 and half in Tables 3, 5 (truncated) and 12. In Table 4 they need the triangle and two more "
        "numbers for each output, and a *block size* of 16 where the label says n = 16.",
        table(["", "half", "triangle", "whole blocks", "paper"], rows()),
    )


def other_counts() -> Point:
    """Rows whose digits do not follow from the method."""
    ether, relaxed, vera = (
        counted_method(*row) for row in (("table4", "ether"), ("table3", "ether-plus"), ("table5", "vera-r256"))
    )
    alone = by_convention("table4", "ether", "reflection")
    attention = counted_method("table2", "ether-plus").exact
    [encoder] = counted_rows("encoder")
    timestep = parameters.count({"adapt": {"kind": "full"}}, "control-time-embedding").trained
    frozen = 256 * LLAMA_2_7B["hidden_size"]
    rows = [
        ["Table 4, ETHER", alone, ether.printed, f"{ether.exact:,} with MNLI's classifier, which no other row counts"],
        ["Table 3, ETHER+", relaxed.exact, relaxed.printed, f"{attention:,} on the attention layers alone"],
        ["Table 5, VeRA r=256", vera.exact, vera.printed, f"{frozen:,}, the size of one of its frozen matrices"],
        [
            "App. C.2, control encoder",
            encoder.exact,
            encoder.printed,
            f"{encoder.exact + timestep:,} with a timestep MLP that no convolution uses",
        ],
    ]
    return Point(
        "Other counts",
        "Rows that print another number than the method has on the layers that the other rows imply. All rows: `snakemake "
        "--cores 1 parameters`.",
        table(["row", "exact", "paper", "what gives the printed digits"], [[a, f"{b:,}", c, d] for a, b, c, d in rows]),
    )


POINTS = (ratios, oft_conventions, other_counts)
