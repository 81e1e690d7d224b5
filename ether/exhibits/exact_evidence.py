"""Evidence for the claims on the exact exhibits: numbers of parameters, and operations of Table 1.

The metrics are named by the functions of `ether.paper.claims.exact`. All values have the unit `ether.analysis.claims.EXACT`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from ether import config
from ether.analysis.claims import EXACT, MetricInfo
from ether.config import Scale
from ether.exhibits import common
from ether.paper import counts, efficiency, published
from ether.paper.claims import exact

Value = tuple[str, str, float]  # (method, metric, value)


def _counts() -> dict[str, dict[str, float]]:
    """{table: {method: #params by the paper's convention}}; of several layer sets, that of the first row."""
    found: dict[str, dict[str, float]] = {}
    for table in counts.tables():
        of_table = found.setdefault(table, {})
        for row in counts.counted_rows(table):
            of_table.setdefault(row.method, float(row.exact))
    return found


def _parameters(numbers: dict[str, dict[str, float]]) -> Iterator[Value]:
    """The numbers of each table, and those of every other method divided by a method's own."""
    for table, of_table in numbers.items():
        for method, number in of_table.items():
            yield method, exact.parameters(table), number
            for other, others in of_table.items():
                if other != method and number:
                    yield method, exact.times(table, other), others / number


def _operations(weight_side: dict[str, dict[str, float]]) -> Iterator[Value]:
    """TFLOPs by model, and those divided by LoRA's on the weight side."""
    for model, of_model in weight_side.items():
        for method, number in of_model.items():
            yield method, exact.tflops(model), number
            yield method, exact.over_lora(model, "weight"), number / of_model[efficiency.REFERENCE]


def _at_equal_length() -> Iterator[Value]:
    """TFLOPs on activations divided by LoRA's, and how much more the larger model's TFLOPs drop with the number of blocks."""
    blocked = [method for methods in exact.BLOCKS for method in methods]
    for tokens in efficiency.LENGTHS:
        frame = efficiency.at_equal_length(tokens)
        for model, (_, length) in efficiency.MODELS.items():
            if length == tokens:
                rows = frame[frame["model"] == model].set_index("method")["over_lora"]
                yield from ((str(method), exact.over_lora(model, "activations"), value) for method, value in rows.items())
        cost = frame.pivot(index="method", columns="model", values="weight_side_tflops")
        for method in blocked:
            if (whole := efficiency.one_block(method)) != method:
                drop = 100 * (1 - cost.loc[method] / cost.loc[whole])
                yield method, exact.greater_drop(tokens), drop["Llama-2-7B"] - drop["Phi-1.5"]


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for the claims on `parameters` or `table1`; equal at all scales."""
    if exhibit == "parameters":
        values = [*_parameters(_counts())]
    else:
        cells = efficiency.published_tflops()
        weight_side = {
            model: cells[cells["column"] == f"{model} TFLOPs"].set_index("method")["exact"].to_dict() for model in exact.MODELS
        }
        values = [*_operations(weight_side), *_at_equal_length()]
    frame = pd.DataFrame(values, columns=["method", "metric", "value"]).assign(adapt_kind="", task="", seed=0, unit=EXACT)
    return frame[[*common.EVIDENCE_COLUMNS, "unit"]]


def printed(exhibit: str) -> dict[tuple[str, str], float]:
    """{(method, metric): the value by the paper's digits}."""
    tables = published.load()
    if exhibit == "parameters":
        known = [name for name in counts.tables() if name in tables]
        counted = [name for name in known if any(column.name == counts.COLUMN for column in tables[name].columns)]
        found = _parameters({name: _digits(tables[name], counts.COLUMN) for name in counted})
    else:
        found = _operations({model: _digits(tables["table1"], f"{model} TFLOPs") for model in exact.MODELS})
    return {(method, metric): value for method, metric, value in found}


def _digits(table: published.PublishedTable, column: str) -> dict[str, float]:
    """{method: the printed number of a column}."""
    numbers = {method: table.paper(method, column)[0] for method in table.methods}
    return {method: number for method, number in numbers.items() if not math.isnan(number)}


def metrics() -> dict[str, MetricInfo]:
    """Name, direction and format of the metrics."""
    found = {}
    for table in counts.tables():
        place = f"Table {table.removeprefix('table')}" if table.startswith("table") else "App. C.2"
        found[exact.parameters(table)] = MetricInfo(f"#params of {place}", "lower", ",.0f")
        for other in config.methods():
            name = f"#params of {config.label(other)} divided by its own, {place}"
            found[exact.times(table, other)] = MetricInfo(name, format=".1f")
    for model in exact.MODELS:
        found[exact.tflops(model)] = MetricInfo(f"TFLOPs of {model}", "lower", ".2f")
        for side in ("weight", "activations"):
            found[exact.over_lora(model, side)] = MetricInfo(f"TFLOPs / LoRA, {model}, {side} side".replace("s side", "s"))
    for tokens in efficiency.LENGTHS:
        name = f"drop of Llama-2-7B less that of Phi-1.5, T = {tokens}, in points"
        found[exact.greater_drop(tokens)] = MetricInfo(name, format=".1f")
    return found
