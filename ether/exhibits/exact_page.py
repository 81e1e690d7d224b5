"""Layout of the exact tables: sections, each a frame of text with our number and the paper's in one cell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ether import config
from ether.errors import one_of
from ether.exhibits import common
from ether.exhibits.render import in_cell
from ether.paper import efficiency, published


@dataclass(frozen=True)
class Page:
    """The layout of an exact table."""

    sections: Mapping[str, str]  # heading -> pattern of the columns in the section
    number: Callable[[float, str], str]  # (value, column) -> text
    notes: tuple[str, ...]


def _two_decimals(value: float, column: str) -> str:
    if "rel. drop" in column:
        return f"{round(value, 2):g}"  # the paper's values have no decimals
    return f"{value:.4f}" if column.endswith("TFLOPs / LoRA") else f"{value:.2f}"


def _shortest(value: float, column: str) -> str:
    return f"{value:g}"


PAGES = {
    "table1": Page(
        {
            "As the paper counts": r"\S+ (TFLOPs|rel\. drop)",
            "A second reading of the cells that have one": r".*second reading",
            **{f"Both models at T = {tokens}": rf".* T={tokens} .*(TFLOPs|LoRA|drop)" for tokens in efficiency.LENGTHS},
            "Memory of both models": r".* GiB",
            "Measured on this machine": r".* measured .*",
        },
        _two_decimals,
        (
            "As the paper counts: forward, loss and backward of one sequence, T = 1044 for Phi-1.5 and 256 for "
            "Llama-2-7B, query and value adapted in one fused weight that is rebuilt in every step (weight side), "
            "OFT with its block-diagonal matrix written out in full.",
            "Without `weight-side`: on activations, as in this package and PEFT; the number of blocks has almost no effect.",
            "GiB: gradients, AdamW's states and saved activations of one step beside a bfloat16 model.",
            "Drops are in per cent, against n = 1 of the same method.",
            "All but the measured section is counted on shapes alone and is the same on every machine.",
        ),
    ),
    "parameters": Page({}, _shortest, ()),
    "table7": Page(
        {"Hyperparameters of `scale=paper`": ".*"},
        _shortest,
        ("Read from the runs of `scale=paper`, not from the paper; the note of each cell names its file.",),
    ),
    "table8": Page(
        {"Hyperparameters of `scale=paper`": ".*"},
        _shortest,
        ("Read from the runs of `scale=paper`, not from the paper; the note of each cell names its file.",),
    ),
}


def _page(exhibit: str) -> Page:
    if exhibit not in PAGES:
        raise one_of("exact table", exhibit, PAGES, "ether/exhibits/exact_page.py")
    return PAGES[exhibit]


def _text(row: Any, number: Callable[[float, str], str]) -> str:
    ours, low, high = (number(value, row.column) for value in (row.ours, row.low, row.high))
    interval = "" if np.isnan(row.low) else f" [{low}, {high}]"
    return f"{ours}{interval}" + (f" (paper {row.printed})" if row.printed else "")


def sections(exhibit: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The sections of a table by heading: frames of text, one row per method, our number with the paper's cell in brackets.

    Raises:
        ConfigurationError: no such exact table.
    """
    page = _page(exhibit)
    if exhibit == "parameters":
        return {"": _parameter_lines(table)}
    found = {}
    fullest = max((list(rows["column"]) for _, rows in table.groupby("label", sort=False)), key=len)
    order = dict.fromkeys([*fullest, *table["column"]])
    for heading, pattern in page.sections.items():
        columns = [c for c in order if re.fullmatch(pattern, c)]
        rows = table[table["column"].isin(columns)]
        text = pd.Series([_text(row, page.number) for row in rows.itertuples()], index=rows.index, dtype="string")
        wide = rows.assign(text=text).pivot(index="label", columns="column", values="text")
        wide = wide.reindex(index=pd.Index(rows["label"].unique(), name="method"), columns=columns).fillna("")
        found[heading] = wide.rename_axis(columns=None)
    return found


def _parameter_lines(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "table": table["column"].str.split(" #").str[0],
            "method": table["label"],
            "exact": table["ours"].map(lambda value: f"{int(value):,}"),
            "paper": table["printed"].where(table["printed"] != "", published.EMPTY),
            "verdict": table["verdict"],
            "convention": table["convention"],
            "layers": table["architecture"] + table["layer_set"].map(lambda name: f", {name}" if name else ""),
            "trained": table["trained"].map(lambda value: f"{int(value):,}"),
        }
    )


def reasons(table: pd.DataFrame) -> list[str]:
    """The reasons given for individual cells: one line per note with a reason."""
    if "why" in table:
        rows = [(f"{r.column.split(' #')[0]}, {r.label}", r.why) for r in table.itertuples() if r.why]
    else:  # the first sentence is the verdict, a second one is the reason
        rows = [(f"{r.label}, {r.column}", r.note) for r in table.itertuples() if ". " in r.note]
    return [f"**{where}**: {note}" for where, note in rows if "second reading" not in where]


def notes(exhibit: str, table: pd.DataFrame) -> list[str]:
    """How the table was computed, and the reasons for individual cells. Raises ConfigurationError as `sections` does."""
    return [*_page(exhibit).notes, *reasons(table)]


def markdown(exhibit: str, table: pd.DataFrame) -> str:
    """The table as Markdown, with its sections and notes. Raises ConfigurationError as `sections`."""
    lines = [f"# {common.title(config.exhibits()[exhibit])}", ""]
    for heading, frame in sections(exhibit, table).items():
        if heading:
            lines += [f"## {heading}", ""]
        flat = frame.reset_index() if frame.index.name else frame
        lines += ["| " + " | ".join(in_cell(str(name)) for name in flat.columns) + " |", "|" + "---|" * len(flat.columns)]
        lines += ["| " + " | ".join(in_cell(str(value)) for value in row) + " |" for row in flat.itertuples(index=False)]
        lines.append("")
    lines += [f"- {note}" for note in notes(exhibit, table)]
    return "\n".join([*lines, ""])
