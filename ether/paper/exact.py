"""The tables that need no training: Table 1, every #params column, and the hyperparameters of Tables 7 and 8.

Their rows have the columns of every table of the suite (`ether.tables.COLUMNS`). They are the same at every scale,
because they are counted on the paper's real architectures or read from the paper scale's settings; only the measured
times of Table 1 depend on the machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ether import config, results
from ether.config import Scale
from ether.paper import counts, published

# --- rows --------------------------------------------------------------------------------------------------------------


def _row(method: str, column: str, ours: float, paper: float | None, note: str, **interval: float) -> dict[str, Any]:
    return {
        "method": method,
        "column": column,
        "ours": float(ours),
        "low": interval.get("low", np.nan),
        "high": interval.get("high", np.nan),
        "seeds": 0,  # nothing here is random
        "paper": np.nan if paper is None else paper,
        "comparable": True,
        "note": note,
    }


def _said(verdict: str, printed: str) -> str:
    return {
        "match": f"prints as the paper's {printed}",
        "truncated": f"the paper's {printed} is this, cut off instead of rounded",
        "mismatch": f"does not print as the paper's {printed}",
        counts.NOT_PRINTED: "not printed in the paper",
    }[verdict]


# --- Table 1 -----------------------------------------------------------------------------------------------------------

LENGTHS = (256, 1044)  # the sequence lengths at which the paper's Llama-2-7B and Phi-1.5 columns were measured


def printed_cells() -> Iterator[dict[str, Any]]:
    """Every cell that Table 1 prints, counted as the paper counts; and a second reading where a cell has one."""
    from ether.paper import efficiency

    for cell in efficiency.published_tflops().itertuples():
        unit = "" if cell.column.endswith("TFLOPs") else " %"
        note = [f"{_said(cell.verdict, cell.printed)} (T = {cell.tokens}, weight side)"]
        if cell.alternative_reading:
            second = f"{cell.alternative:.2f}{unit}"
            verdict = _said(cell.alternative_verdict, cell.printed)
            note.append(f"Second reading, {cell.alternative_reading}: {second}, which {verdict}")
        paper = published.number(cell.printed)
        text = ". ".join(filter(None, [*note, cell.why]))
        yield _row(cell.method, cell.column, cell.exact, paper, text)
        if cell.alternative_reading:
            yield _row(cell.method, f"{cell.column}, second reading", cell.alternative, paper, text)


def equal_length_cells(tokens: int, methods: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Both models at one sequence length: the paper's weight side and this package's activation side, TFLOPs and GiB."""
    from ether.paper import efficiency

    frame = efficiency.at_equal_length(tokens, *([methods] if methods else []))
    first = "one sequence a step; query and value adapted"
    memory = "what a step holds beside a bfloat16 model: gradients, AdamW's states, saved activations"
    for model, rows in frame.groupby("model", sort=False):
        weight_side = rows.set_index("method")["weight_side_tflops"]
        for row in rows.itertuples():
            where = f"{model} T={tokens}"
            yield _row(row.method, f"{where} weight-side TFLOPs", row.weight_side_tflops, None, first)
            whole = f"{row.method.split()[0]} n=1"
            if row.method.startswith("ETHER") and row.method != whole and whole in weight_side:
                drop = 100 * (row.weight_side_tflops / weight_side[whole] - 1)
                yield _row(row.method, f"{where} weight-side rel. drop", drop, None, f"per cent, against {whole}")
            yield _row(row.method, f"{where} TFLOPs", row.tflops, None, f"{first}, on activations, as this package and PEFT do")
            yield _row(row.method, f"{where} TFLOPs / LoRA", row.over_lora, None, "on activations")
            if not np.isnan(row.weight_side_gib):
                yield _row(row.method, f"{where} weight-side GiB", row.weight_side_gib, None, memory)
            yield _row(row.method, f"{where} GiB", row.gib, None, f"{memory}; on activations")


def measured_cells(device: str, seconds: float = 6.0) -> Iterator[dict[str, Any]]:
    """One query or value layer of each model, timed here at Table 1's sequence length, in relation to LoRA."""
    from ether.measures.flops import stack
    from ether.measures.layer_time import layer_times
    from ether.paper.efficiency import METHODS, MODELS

    adapters = {method: peft for method, (_, _, peft) in METHODS.items()}
    for model, (name, tokens) in MODELS.items():
        width = stack(name).width
        for row in layer_times(width, tokens, adapters, "LoRA r=8", device=device, seconds=seconds).itertuples():
            note = (
                f"measured: forward and backward of one {width} x {width} layer on {tokens} tokens, {row.seconds:.2g} s "
                f"here; median of {row.rounds} rounds against LoRA in the same round, low and high are the quartiles; "
                f"{results.hardware(device)}, {'bfloat16' if device == 'cuda' else 'float32'}"
            )
            column = f"{model} measured layer time / LoRA"
            yield _row(row.method, column, row.ratio, None, note, low=row.low, high=row.high)


def table1(scale: Scale) -> pd.DataFrame:
    """Table 1: TFLOPs of a fine-tuning step, as printed, at equal sequence lengths, on activations, and timed here.

    Everything but the columns called `measured` is the same on every machine.
    """
    import torch

    cells = list(printed_cells())
    for tokens in LENGTHS:
        cells += equal_length_cells(tokens)
    device = "cuda" if scale.settings["device"] != "cpu" and torch.cuda.is_available() else "cpu"
    cells += measured_cells(device)
    order = {method: i for i, method in enumerate(published.load()["table1"].methods)}
    return pd.DataFrame(sorted(cells, key=lambda cell: order[cell["method"]]))


# --- #params -----------------------------------------------------------------------------------------------------------


def parameters(scale: Scale) -> pd.DataFrame:
    """The #params of every table that has them, of Table 6's two methods, and of App. C.2's control encoder.

    Beside the usual columns: `printed`, `verdict` (match, truncated, mismatch, not printed), `convention`,
    `architecture`, `layer_set`, `trained` (what the adapter really trains there), `alternatives`, `why`.
    """
    cells = []
    for table in counts.tables():
        frame = counts.published_counts(table)
        place = f"Table {table.removeprefix('table')}" if table.startswith("table") else "App. C.2"
        several = frame["layer_set"].nunique() > 1
        whole = frame["convention"].str.match("everything|nothing|biases|bottleneck")  # these look at no layer set
        frame["layer_set"] = frame["layer_set"].mask(whole, "")
        for row in frame.itertuples():
            note = [
                f"{_said(row.verdict, row.printed)}; counted as {row.convention} on {row.architecture}"
                + (f", layer set {row.layer_set}" if row.layer_set else ""),
                f"Trained in fact: {row.trained:,}",
                f"Other conventions: {row.alternatives}" if row.alternatives else "",
                row.why,
            ]
            column = f"{place} #params" + (f" ({row.layer_set})" if several else "")
            cells.append(
                _row(row.method, column, row.exact, published.number(row.printed), ". ".join(filter(None, note)))
                | {
                    key: getattr(row, key)
                    for key in (
                        "printed",
                        "verdict",
                        "convention",
                        "architecture",
                        "layer_set",
                        "trained",
                        "alternatives",
                        "why",
                    )
                }  # fmt: skip
            )
    return pd.DataFrame(cells)


# --- Tables 7 and 8 ----------------------------------------------------------------------------------------------------

# The paper's name of a setting -> the name it has in workflow/methods.
SETTINGS = {
    "Learning Rate": "learning_rate",
    "Batch Size": "batch_size",
    "Num. Epochs": "epochs",
    "Dropout": "dropout",
    "Max Seq. Len.": "max_length",
}


def _setting(method: str, column: str, ours: float, printed: str, file: str) -> dict[str, Any]:
    paper = published.number(printed)
    verdict = "equals" if paper == ours else "differs from"
    return _row(method, column, ours, paper, f"workflow/methods/{file}.yaml; {verdict} the paper's {printed}")


def table7(scale: Scale) -> pd.DataFrame:
    """Table 7: what the runs of `scale=paper` on GLUE are really given, whatever scale this is rendered at."""
    from ether.tables import GLUE_COLUMNS

    paper = published.load()["table7"]
    runs = {(run.label, GLUE_COLUMNS[run.task]): run for run in config.runs(config.load("paper"), "glue")}
    return pd.DataFrame(
        _setting(
            f"{row.method}, {row.setting}",
            column.name,
            runs[row.method, column.name].hyperparameters[SETTINGS[row.setting]],
            paper.printed(row.method, column.name, row.setting),
            runs[row.method, column.name].method_id,
        )
        for row in paper.rows
        for column in paper.columns
    )


def instruction_settings(method: Mapping[str, Any], sections: list[str]) -> dict[str, Any]:
    """A method's own hyperparameters of instruction tuning: `default`, then the sections that a scale names."""
    merged: dict[str, Any] = {}
    for section in ("default", *sections):
        merged = config.overlay(merged, method["training"]["instruct"].get(section, {}))
    return merged


def table8(scale: Scale) -> pd.DataFrame:
    """Table 8: learning rates and batch sizes of instruction tuning, from the same files the paper scale reads."""
    paper = published.load()["table8"]
    sections = config.load("paper").settings["hyperparameters"]
    files = {m["label"]: (key, m) for key, m in config.methods().items() if "instruct" in m["training"]}
    return pd.DataFrame(
        _setting(
            label,
            column.name,
            instruction_settings(files[label][1], sections)[SETTINGS[column.name]],
            paper.printed(label, column.name),
            files[label][0],
        )
        for label in paper.methods
        for column in paper.columns
    )


# --- showing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """How an exact table is laid out: its sections (heading -> pattern of the columns in it) and number format."""

    title: str
    sections: Mapping[str, str]
    number: Callable[[float, str], str]  # a value and its column
    notes: tuple[str, ...]


def _two_digits(value: float, column: str) -> str:
    if "rel. drop" in column:
        return f"{round(value, 2):g}"  # the paper's have no decimals
    return f"{value:.4f}" if column.endswith("TFLOPs / LoRA") else f"{value:.2f}"


def _shortest(value: float, column: str) -> str:
    return f"{value:g}"


PAGES = {
    "table1": Page(
        "Table 1: TFLOPs of one fine-tuning step",
        {
            "As the paper counts": r"\S+ (TFLOPs|rel\. drop)",
            "A second reading of the cells that have one": r".*second reading",
            **{f"Both models at T = {tokens}": rf".* T={tokens} .*(TFLOPs|LoRA|drop)" for tokens in LENGTHS},
            "Memory of both models": r".* GiB",
            "Measured on the machine at hand": r".* measured .*",
        },
        _two_digits,
        (
            "As the paper counts: forward, loss and backward of one sequence, T = 1044 for Phi-1.5 and 256 for "
            "Llama-2-7B, query and value adapted in one fused weight that is rebuilt in every step (weight side), "
            "OFT with its block-diagonal matrix written out in full.",
            "Without `weight-side`: on activations, as this package and PEFT compute; the number of blocks hardly matters.",
            "GiB: gradients, AdamW's states and saved activations of one step beside a bfloat16 model.",
            "Drops are per cent against n = 1 of the same method.",
            "All but the measured section is counted on shapes alone and the same on every machine.",
        ),
    ),
    "parameters": Page("#params of the paper's tables", {}, _shortest, ()),
    "table7": Page(
        "Table 7: hyperparameters of the GLUE runs",
        {"What `scale=paper` runs with": ".*"},
        _shortest,
        ("Read from the runs that `scale=paper` would make, not from the paper; each cell's note gives its file.",),
    ),
    "table8": Page(
        "Table 8: hyperparameters of the instruction-tuning runs",
        {"What `scale=paper` runs with": ".*"},
        _shortest,
        ("Read from the methods' files that `scale=paper` reads, not from the paper; each cell's note gives its file.",),
    ),
}


def _shown(row: Any, number: Callable[[float, str], str]) -> str:
    ours, low, high, paper = (number(value, row.column) for value in (row.ours, row.low, row.high, row.paper))
    spread = "" if np.isnan(row.low) else f" [{low}, {high}]"
    return f"{ours}{spread}" + ("" if np.isnan(row.paper) else f" (paper {paper})")


def sections(name: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table as it is read: for each section a frame of text, a row a method, ours with the paper's in brackets."""
    page = PAGES[name]
    if name == "parameters":
        return {"": _parameter_lines(table)}
    found = {}
    fullest = max((list(rows["column"]) for _, rows in table.groupby("method", sort=False)), key=len)
    order = dict.fromkeys([*fullest, *table["column"]])
    for heading, pattern in page.sections.items():
        columns = [c for c in order if re.fullmatch(pattern, c)]
        rows = table[table["column"].isin(columns)]
        text = pd.Series([_shown(row, page.number) for row in rows.itertuples()], index=rows.index, dtype="string")
        wide = rows.assign(text=text).pivot(index="method", columns="column", values="text")
        found[heading] = wide.reindex(index=dict.fromkeys(rows["method"]), columns=columns).fillna("")
    return found


def _parameter_lines(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "table": table["column"].str.split(" #").str[0],
            "method": table["method"],
            "exact": table["ours"].map(lambda value: f"{int(value):,}"),
            "paper": table["printed"],
            "verdict": table["verdict"],
            "convention": table["convention"],
            "layers": table["architecture"] + table["layer_set"].map(lambda name: f", {name}" if name else ""),
            "trained": table["trained"].map(lambda value: f"{int(value):,}"),
        }
    )


def reasons(table: pd.DataFrame) -> list[str]:
    """What is to be said of single cells: a line for each note that gives a reason."""
    if "why" in table:
        rows = [(f"{r.column.split(' #')[0]}, {r.method}", r.why) for r in table.itertuples() if r.why]
    else:  # a reason is a further sentence; a verdict alone is one
        rows = [(f"{r.method}, {r.column}", r.note) for r in table.itertuples() if ". " in r.note]
    return [f"**{where}**: {note}" for where, note in rows if "second reading" not in where]


def markdown(name: str, table: pd.DataFrame) -> str:
    """The table as Markdown, in its sections, with the reasons of single cells below."""
    lines = [f"# {PAGES[name].title}", ""]
    for heading, frame in sections(name, table).items():
        if heading:
            lines += [f"## {heading}", ""]
        shown = frame.reset_index() if frame.index.name else frame
        lines += ["| " + " | ".join(map(str, shown.columns)) + " |", "|" + "---|" * len(shown.columns)]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)]
        lines.append("")
    lines += [f"- {note}" for note in (*PAGES[name].notes, *reasons(table))]
    return "\n".join([*lines, ""])


TABLES: dict[str, Callable[[Scale], pd.DataFrame]] = {
    "table1": table1,
    "parameters": parameters,
    "table7": table7,
    "table8": table8,
}
