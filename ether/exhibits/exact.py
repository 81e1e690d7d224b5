"""The exhibits that need no training: Table 1, every #params column, and the hyperparameters of Tables 7 and 8.

They are equal at all scales, because they are counted on the paper's architectures or read from the settings of the paper scale.
Only the measured times of Table 1 depend on the machine.

    python -m ether.exhibits.exact

counts the parameters and operations that the tables print and stores them in ``results/cache`` for the notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ether import config, results
from ether.analysis import cells
from ether.analysis.cells import Cell
from ether.config import Scale
from ether.exhibits.exact_page import markdown, notes, reasons, sections
from ether.paper import counts, efficiency, published

__all__ = [
    "markdown",
    "notes",
    "parameter_cells",
    "parameters",
    "reasons",
    "sections",
    "table1",
    "table7",
    "table8",
    "tflops_cells",
]


def _compared(verdict: str, printed: str) -> str:
    return {
        "match": f"prints as the paper's {printed}",
        "truncated": f"the paper's {printed} is this value truncated instead of rounded",
        "mismatch": f"does not print as the paper's {printed}",
        counts.NOT_PRINTED: "not printed in the paper",
    }[verdict]


def _sentences(*parts: str) -> str:
    return ". ".join(part for part in parts if part)


def _paper(printed: str) -> float:
    number = published.number(printed)
    return math.nan if number is None else number


# --- columns of other tables -------------------------------------------------------------------------------------------


def parameter_cells(table: str, methods: Iterable[str]) -> list[Cell]:
    """The column #params of a table: exact counts at the paper's architecture, equal at all scales.

    `ours` uses the paper's counting convention for the row, so that the digits can be compared. The note gives the verdict, the
    convention, the number of trained parameters, and the reason for a difference.

    Args:
        table: a table of ether/paper/counts.yaml.
        methods: stems, in the order of the rows.

    Raises:
        ConfigurationError: unknown table or method, or a method that cannot be applied to the architecture.
    """
    found = []
    for method in methods:
        row = counts.counted_method(table, method)
        note = f"trained, classifier included: {row.trained:,}"
        if row.verdict != counts.NOT_PRINTED:
            note = f"{_compared(row.verdict, row.printed)}; counted as {row.convention}; {note}"
        printed = "" if row.printed == published.EMPTY else row.printed
        extra = (config.method(method).get("parameters") or {}).get("note", "")
        note = _sentences(note, row.why, extra)
        found.append(
            Cell(method, row.label, counts.COLUMN, float(row.exact), paper=_paper(row.printed), printed=printed, note=note)
        )
    return found


def tflops_cells(table: str, methods: Iterable[str]) -> list[Cell]:
    """The TFLOPs columns of Table 10: a step of Llama-2-7B on the weight side, as in Table 1, and on activations.

    Arguments and errors as for `parameter_cells`.
    """
    paper = published.load()[table]
    name, tokens = efficiency.MODELS["Llama-2-7B"]
    found = []
    for method in methods:
        number, printed = paper.paper(method, "TFLOPs")
        weight_side = f"Llama-2-7B, one step of {tokens} tokens, weight side, as in Table 1"
        activations = "the same step on activations, as this package runs"
        cost = efficiency.tflops(name, method, tokens)
        here = efficiency.tflops(name, method, tokens, "activations")
        label = paper.label(method)
        found.append(Cell(method, label, "TFLOPs", cost, paper=number, printed=printed, note=weight_side))
        found.append(Cell(method, label, "TFLOPs, activations", here, note=activations))
    return found


# --- Table 1 -----------------------------------------------------------------------------------------------------------


def printed_cells() -> Iterator[Cell]:
    """Every printed cell of Table 1, counted with the paper's convention, and with a second interpretation if there is one."""
    for cell in efficiency.published_tflops().itertuples():
        label, unit = config.label(cell.method), "" if cell.column.endswith("TFLOPs") else " %"
        first = f"{_compared(cell.verdict, cell.printed)} (T = {cell.tokens}, weight side)"
        second = ""
        if cell.alternative_reading:
            verdict = _compared(cell.alternative_verdict, cell.printed)
            second = f"Second reading, {cell.alternative_reading}: {cell.alternative:.2f}{unit}, which {verdict}"
        paper, note = _paper(cell.printed), _sentences(first, second, cell.why)
        yield Cell(cell.method, label, cell.column, cell.exact, paper=paper, printed=cell.printed, note=note)
        if second:
            column = f"{cell.column}, second reading"
            yield Cell(cell.method, label, column, cell.alternative, paper=paper, printed=cell.printed, note=note)


def equal_length_cells(tokens: int, methods: Sequence[str] = ()) -> Iterator[Cell]:
    """TFLOPs and GiB of both models at one sequence length, on the weight side (paper) and on activations (this package)."""
    frame = efficiency.at_equal_length(tokens, methods)
    step = "one sequence a step; query and value adapted"
    memory = "held by a step beside a bfloat16 model: gradients, AdamW's states, saved activations"
    for model, rows in frame.groupby("model", sort=False):
        weight_side, where = rows.set_index("method")["weight_side_tflops"], f"{model} T={tokens}"
        for row in rows.itertuples():
            whole = efficiency.one_block(row.method)
            values = {"weight-side TFLOPs": (row.weight_side_tflops, step)}
            if row.method.startswith("ether") and row.method != whole and whole in weight_side:
                drop = 100 * (row.weight_side_tflops / weight_side[whole] - 1)
                values["weight-side rel. drop"] = (drop, f"per cent, against {config.label(whole)}")
            values["TFLOPs"] = (row.tflops, f"{step}, on activations, as in this package and PEFT")
            values["TFLOPs / LoRA"] = (row.over_lora, "on activations")
            if not math.isnan(row.weight_side_gib):
                values["weight-side GiB"] = (row.weight_side_gib, memory)
            values["GiB"] = (row.gib, f"{memory}; on activations")
            for name, (value, note) in values.items():
                yield Cell(row.method, config.label(row.method), f"{where} {name}", value, note=note)


def measured_cells(device: str, timing: Mapping[str, Any]) -> Iterator[Cell]:
    """Time of one query or value layer of each model on this machine at Table 1's sequence length, divided by LoRA's time.

    `timing` is the scale's: the arguments `seconds` and `rounds` of `layer_times`.
    """
    from ether.measures.flops import stack
    from ether.measures.layer_time import layer_times

    adapters = {method: efficiency.adapt(method) for method in efficiency.methods()}
    for model, (name, tokens) in efficiency.MODELS.items():
        width = stack(name).width
        for row in layer_times(width, tokens, adapters, efficiency.REFERENCE, device=device, **timing).itertuples():
            note = (
                f"measured: forward and backward of one {width} x {width} layer on {tokens} tokens, {row.seconds:.2g} s "
                f"here; median of {row.rounds} rounds, divided by LoRA's in the same round; low and high are the quartiles; "
                f"{results.hardware(device)}, {'bfloat16' if device == 'cuda' else 'float32'}"
            )
            column = f"{model} measured layer time / LoRA"
            yield Cell(row.method, config.label(row.method), column, row.ratio, row.low, row.high, note=note)


def table1(scale: Scale) -> pd.DataFrame:
    """Table 1: TFLOPs of a fine-tuning step, as printed, at equal sequence lengths, on activations, and measured times.

    All columns except those named `measured` are equal on all machines.
    """
    import torch

    found = list(printed_cells())
    for tokens in efficiency.LENGTHS:
        found += equal_length_cells(tokens)
    device = "cuda" if scale.settings["device"] != "cpu" and torch.cuda.is_available() else "cpu"
    found += measured_cells(device, scale.settings["timing"])
    order = {method: i for i, method in enumerate(efficiency.methods())}
    return cells.frame(sorted(found, key=lambda cell: order[cell.method]))


# --- #params -----------------------------------------------------------------------------------------------------------


def parameters(scale: Scale) -> pd.DataFrame:
    """The #params of every table with this column, of Table 6's two methods, and of App. C.2's control encoder.

    Additional columns: `verdict` (match, truncated, mismatch, not printed), `convention`, `architecture`, `layer_set`,
    `trained` (the number of parameters that the adapter trains), `alternatives`, `why`.
    """
    found, further = [], []
    for table in counts.tables():
        rows = counts.counted_rows(table)
        place = f"Table {table.removeprefix('table')}" if table.startswith("table") else "App. C.2"
        several = len({row.layer_set for row in rows}) > 1
        for row in rows:
            # Counts of the full model, of biases or of bottlenecks do not depend on a layer set.
            whole = row.convention.startswith(("everything", "nothing", "biases", "bottleneck"))
            layers = "" if whole else row.layer_set
            note = _sentences(
                f"{_compared(row.verdict, row.printed)}; counted as {row.convention} on {row.architecture}"
                + (f", layer set {layers}" if layers else ""),
                f"Trained: {row.trained:,}",
                f"Other conventions: {row.alternatives}" if row.alternatives else "",
                row.why,
            )
            column = f"{place} {counts.COLUMN}" + (f" ({layers})" if several else "")
            printed = "" if row.printed == published.EMPTY else row.printed
            found.append(
                Cell(row.method, row.label, column, float(row.exact), paper=_paper(row.printed), printed=printed, note=note)
            )
            further.append((row.verdict, row.convention, row.architecture, layers, row.trained, row.alternatives, row.why))
    names = ["verdict", "convention", "architecture", "layer_set", "trained", "alternatives", "why"]
    return pd.concat([cells.frame(found), pd.DataFrame(further, columns=names)], axis=1)


# --- Tables 7 and 8 ----------------------------------------------------------------------------------------------------

# The paper's name of a setting of Table 7 -> the name of the hyperparameter.
SETTINGS = {
    "Learning Rate": "learning_rate",
    "Batch Size": "batch_size",
    "Num. Epochs": "epochs",
    "Dropout": "dropout",
    "Max Seq. Len.": "max_length",
}


def _setting(method: str, label: str, column: str, ours: float, printed: str) -> Cell:
    paper = _paper(printed)
    note = f"workflow/methods/{method}.yaml; {'equals' if paper == ours else 'differs from'} the paper's {printed}"
    return Cell(method, label, column, float(ours), paper=paper, printed=printed, note=note)


def table7(scale: Scale) -> pd.DataFrame:
    """Table 7: the hyperparameters of the GLUE runs of `scale=paper`, equal at all scales."""
    paper = published.load()["table7"]
    runs = {(run.method, run.task): run for run in config.runs(config.load("paper"), "glue")}
    return cells.frame(
        _setting(
            row.method,
            f"{paper.label(row.method)}, {row.setting}",
            column.name,
            runs[row.method, column.metric].hyperparameters[SETTINGS[row.setting]],
            paper.printed(row.method, column.name, row.setting),
        )
        for row in paper.rows
        for column in paper.columns
    )


def table8(scale: Scale) -> pd.DataFrame:
    """Table 8: learning rates and batch sizes of instruction tuning at `scale=paper`, equal at all scales."""
    paper = published.load()["table8"]
    runs = {run.method: run for run in config.runs(config.load("paper"), "instruct")}
    return cells.frame(
        _setting(
            method,
            paper.label(method),
            column.name,
            runs[method].hyperparameters[column.metric],
            paper.printed(method, column.name),
        )
        for method in paper.methods
        for column in paper.columns
    )


# --- command line ------------------------------------------------------------------------------------------------------


def main() -> int:
    """Counts the printed parameters and operations; returns the exit status."""
    printed = {}
    for exhibit in config.exhibits().values():
        modules = {config.experiments()[name].module for name in exhibit.experiments}
        printed[exhibit.id] = [
            stem
            for stem, method in config.methods().items()
            if modules & set(method["training"])
            and exhibit.id in method.get("tables", [exhibit.id])
            and method["adapt"]["kind"] != "none"
        ]
    failed = counts.fill(printed)
    for line in failed:
        print(line)
    tflops_cells("table10", [stem for stem in printed["table10"] if config.method(stem)["adapt"].get("type") == "ETHER"])
    list(printed_cells())
    for tokens in efficiency.LENGTHS:
        list(equal_length_cells(tokens))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
