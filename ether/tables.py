"""The paper's tables from the collected metrics: our number, its interval over seeds, and the paper's beside it.

A table is tidy: a row a cell, with the columns ``method, column, ours, low, high, seeds, paper, comparable, note``.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ether import config, results
from ether.config import Scale
from ether.errors import MissingResourceError
from ether.measures import flops
from ether.paper import exact, published

COLUMNS = ["method", "column", "ours", "low", "high", "seeds", "paper", "comparable", "note"]
RESAMPLES = 10_000
COSTS = ("#params", "TFLOPs", "TFLOPs, here")  # columns in which no row is the best


@functools.cache
def _resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, size=(RESAMPLES, count))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % percentile-bootstrap interval of the mean, over seeds. One value has no interval (NaN)."""
    array = np.asarray(values, dtype=float)
    if len(array) == 0:
        return np.nan, np.nan, np.nan
    if len(array) == 1:
        return float(array[0]), np.nan, np.nan
    means = array[_resamples(len(array))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def read(scale: Scale, experiment: str, or_published: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Collected runs and metrics of an experiment; if asked, those committed for reading where it has not been run here.

    Raises:
        MissingResourceError: the experiment has not been run at this scale.
    """
    frames = []
    for suffix in (".runs.parquet", ".parquet"):
        file = scale.results / "metrics" / f"{experiment}{suffix}"
        committed = config.ROOT / "results" / "published" / scale.name / "metrics" / file.name
        if or_published and not file.is_file() and committed.is_file():
            file = committed
        if not file.is_file():
            raise MissingResourceError(
                f"{file} is missing: run `snakemake --cores 1 {experiment} --config scale={scale.name}` or a table that "
                "needs it first."
            )
        frames.append(pd.read_parquet(file))
    return frames[0], frames[1]


def scores(runs: pd.DataFrame, metrics: pd.DataFrame, select: str = "last", metric: str = "score") -> pd.DataFrame:
    """One reported value a run: the last evaluation, or the best (``select``), joined to the run's row."""
    wanted = metrics[(metrics["metric"] == metric) & (metrics["split"] == "validation")].sort_values("step")
    value = wanted.groupby("run_id")["value"].max() if select == "best" else wanted.groupby("run_id")["value"].last()
    return runs.merge(value.rename("value"), left_on="run_id", right_index=True, how="left")


def _cell(
    method: str, column: str, values: Sequence[float], paper: float | None, comparable: bool, note: str = ""
) -> dict[str, Any]:
    ours, low, high = interval(values)
    return {
        "method": method, "column": column, "ours": ours, "low": low, "high": high, "seeds": len(values),
        "paper": np.nan if paper is None else paper, "comparable": comparable, "note": note,
    }  # fmt: skip


def _published(table: str, method: str, column: str) -> float | None:
    paper = published.load()[table]
    return paper.value(method, column) if method in paper.methods else None


def parameter_cells(table: str, methods: Mapping[str, Mapping[str, Any]], architecture: str) -> list[dict[str, Any]]:
    """The ``#params`` column: exact counts at the paper's own architecture, whatever the scale.

    ``ours`` follows the convention the paper counts that row by (``parameters.convention`` of the method's YAML), since
    that is what its digits can be held against; the note says how the digits compare and why, and what is trained in
    fact.
    """
    from ether.measures import parameters
    from ether.paper import counts

    paper = published.load()[table]
    known = counts.published_counts(table).set_index("method")
    cells = []
    for method in methods.values():
        label = method["label"]
        convention = str(known["convention"][label]) if label in known.index else None
        count = parameters.count(method, architecture, convention)
        note = f"trained in fact, classifier included: {count.peft:,}"
        printed = paper.printed(label, "#params") if label in paper.methods else ""
        if printed:
            verdict = {
                "match": f"prints as the paper's {printed}",
                "truncated": f"the paper's {printed} is this, cut off instead of rounded",
                "mismatch": f"does not print as the paper's {printed}",
            }[published.prints_as(count.paper_convention, printed)]
            note = f"{verdict}; counted as {count.convention}; {note}"
        note = ". ".join(filter(None, [note, known["why"].get(label, ""), count.note]))
        cells.append(
            {
                "method": label,
                "column": "#params",
                "ours": float(count.paper_convention),
                "low": np.nan,
                "high": np.nan,
                "seeds": 0,
                "paper": _nan(published.number(printed) if printed else None),
                "comparable": True,
                "note": note,
            }  # fmt: skip
        )
    return cells


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


# --- Table 4 ---------------------------------------------------------------------------------------------------

GLUE_COLUMNS = {
    "mnli": "MNLI", "sst2": "SST-2", "cola": "CoLA", "qqp": "QQP", "qnli": "QNLI", "rte": "RTE", "mrpc": "MRPC",
    "stsb": "STS-B",
}  # fmt: skip


def table4(scale: Scale) -> pd.DataFrame:
    """Table 4: GLUE. The average is taken over the eight tasks within a seed, then over seeds; a method that lacks a
    task has none."""
    runs, metrics = read(scale, "glue")
    section = scale.experiment("glue")
    chosen = config.chosen_methods(scale, "glue")
    reported = scores(runs, metrics, section["select"])
    comparable, reason = scale.settings["comparable"]["value"], scale.settings["comparable"]["reason"]
    cells = parameter_cells("table4", chosen, "deberta-v3-base")
    for method in chosen.values():
        label = method["label"]
        own = reported[reported["method"] == label]
        for task, column in GLUE_COLUMNS.items():
            of_task = own[own["task"] == task]
            finished = of_task[of_task["status"] == "finished"]
            ended = [f"seed {r.seed} {r.status} ({r.reason})" for r in of_task[of_task["status"] != "finished"].itertuples()]
            notes = [*ended, *([] if comparable else [reason])]
            if of_task.empty:
                notes = ["not run", *notes]
            cells.append(
                _cell(label, column, finished["value"].tolist(), _published("table4", label, column), comparable,
                      "; ".join(notes))
            )  # fmt: skip
        finished = own[own["status"] == "finished"].pivot_table(index="seed", columns="task", values="value")
        complete = finished.reindex(columns=list(GLUE_COLUMNS)).dropna()
        note = "" if comparable else reason
        if complete.empty:
            note = "; ".join(filter(None, ["not every task was run", note]))
        cells.append(_cell(label, "Avg", complete.mean(axis=1).tolist(), _published("table4", label, "Avg"), comparable, note))
    return pd.DataFrame(cells, columns=COLUMNS)


# --- Tables 5 and 10 -------------------------------------------------------------------------------------------

# column: the measured value (`ether.measures.language.measurements`)
LANGUAGE_COLUMNS = {"MMLU": "mmlu", "ARC": "arc", "Tru-1": "tru1", "Tru-2": "tru2"}
LANGUAGE_BESIDE = {"MMLU, mean over subjects": "mmlu_macro", "ARC, normalised": "arc_norm"}


def shown_in(table: str, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The methods a table shows: all but those whose file names other tables."""
    return {key: method for key, method in methods.items() if table in method.get("tables", [table])}


def measured(scale: Scale, experiment: str, split: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """What an experiment's runs measured last in a split: columns `method`, `task`, `seed`, `status`, `reason`, `value` and
    `column`, for each {column: metric}; `value` is NaN where a run has none."""
    runs, metrics = read(scale, experiment)
    own = metrics[metrics["split"] == split].sort_values("step")
    frames = []
    for column, metric in columns.items():
        values = own[own["metric"] == metric].groupby("run_id")["value"].last()
        about = runs.join(values, on="run_id")[["method", "task", "seed", "status", "reason", "value"]]
        frames.append(about.assign(column=column))
    return pd.concat(frames, ignore_index=True)


def language_scores(scale: Scale, columns: Mapping[str, str]) -> pd.DataFrame:
    """Scores of the instruction-tuning runs, as `measured` gives them."""
    return measured(scale, "instruct", scale.experiment("instruct")["evaluation"]["split"], columns)


def _measured_cells(
    table: str, methods: Mapping[str, Mapping[str, Any]], scale: Scale, values: pd.DataFrame
) -> list[dict[str, Any]]:
    """A cell for each method and column of what was measured, the paper's number beside it where it has that column."""
    comparable, reason = scale.settings["comparable"]["value"], scale.settings["comparable"]["reason"]
    known = {column.name for column in published.load()[table].columns}
    cells = []
    for method in methods.values():
        label = method["label"]
        for column in values["column"].unique():
            own = values[(values["method"] == label) & (values["column"] == column)]
            ended = [f"{r.task}, seed {r.seed} {r.status} ({r.reason})" for r in own[own["status"] != "finished"].itertuples()]
            notes = [*(["not run at this scale"] if own.empty else []), *ended, *([] if comparable else [reason])]
            paper = _published(table, label, column) if column in known else None
            finished = own[own["status"] == "finished"]["value"].dropna().tolist()
            cells.append(_cell(label, column, finished, paper, comparable, "; ".join(notes)))
    return cells


def table5(scale: Scale) -> pd.DataFrame:
    """Table 5: instruction tuning; MMLU by question and by subject, ARC plain and length-normalised, TruthfulQA."""
    chosen = shown_in("table5", config.chosen_methods(scale, "instruct"))
    counted = {key: method for key, method in chosen.items() if method["adapt"]["kind"] != "none"}
    scores = language_scores(scale, LANGUAGE_COLUMNS | LANGUAGE_BESIDE)
    cells = parameter_cells("table5", counted, "llama-2-7b") + _measured_cells("table5", chosen, scale, scores)
    return _in_order(cells, chosen)


def table10(scale: Scale) -> pd.DataFrame:
    """Table 10: ETHER+, and ETHER that its caption names, by number of blocks; TFLOPs by Table 1's counter.

    Rows that the paper has and this scale cannot run (a block wider than the layer) stand there with a dash.
    """
    every = {key: method for key, method in config.methods().items() if "instruct" in method["training"]}
    chosen = config.chosen_methods(scale, "instruct")
    rows = {
        key: method
        for key, method in shown_in("table10", every).items()
        if method["adapt"].get("type") == "ETHER" and (key in chosen or method["label"] in published.load()["table10"].methods)
    }
    cells = parameter_cells("table10", rows, "llama-2-7b")
    for method in rows.values():
        config_ = method["adapt"]["config"]
        rule = "relaxed-reflection" if config_.get("relaxed") else "reflection"
        weight_side = flops.weight_side_step("llama-2-7b", rule, config_["n_blocks"], 256).tflops
        here = flops.package_step("llama-2-7b", method["adapt"] | {"config": {**config_, "dropout": 0.0}}, 256).tflops
        paper = _published("table10", method["label"], "TFLOPs")
        note = "Llama-2-7B, one step of 256 tokens, on the weight as the paper counts"
        cells.append(_cell(method["label"], "TFLOPs", [weight_side], paper, True, note))
        cells.append(
            _cell(method["label"], "TFLOPs, here", [here], None, True, "the same step on activations, as this package runs")
        )
    scores = language_scores(scale, LANGUAGE_COLUMNS | LANGUAGE_BESIDE)
    return _in_order(cells + _measured_cells("table10", rows, scale, scores), rows)


def _in_order(cells: list[dict[str, Any]], methods: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The cells method by method, so that a row missing from one column keeps its place."""
    order = {method["label"]: i for i, method in enumerate(methods.values())}
    table = pd.DataFrame(cells, columns=COLUMNS)
    return table.sort_values("method", key=lambda labels: labels.map(order), kind="stable", ignore_index=True)


# --- Tables 2, 6 and 11 ----------------------------------------------------------------------------------------

# column: the measured value (`ether.experiments.subject`). OFT's code takes LPIPS between real and generated pictures.
IMAGE_COLUMNS = {"DINO": "dino", "CLIP-I": "clip_i", "CLIP-T": "clip_t", "LPIPS": "lpips_real"}
IMAGE_BESIDE = {"LPIPS within a prompt": "lpips_prompt", "background drawn": "background"}
REAL = "Real images"


def image_scores(scale: Scale, columns: Mapping[str, str] = IMAGE_COLUMNS, split: str = "last") -> pd.DataFrame:
    """Scores of the subject-driven runs, as `measured` gives them, and of the photographs themselves (method REAL).

    split: `last` for the last evaluation, `best` for the one chosen on the other half of the prompts; both on the half
    of the prompts that is reported.
    """
    values = measured(scale, "subject", split, columns)
    real = measured(scale, "subject", "real", columns).dropna(subset="value")
    photographs = real.drop_duplicates(["task", "column"]).assign(method=REAL, seed=0, status="finished", reason="")
    return pd.concat([photographs, values], ignore_index=True)


def _image_table(table: str, scale: Scale, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of subject-driven runs: the paper's columns at the last evaluation, then those at the chosen one."""
    chosen = shown_in(table, config.chosen_methods(scale, "subject"))
    if labels is not None:
        chosen = {key: method for key, method in chosen.items() if method["label"] in labels}
    names = [column.name for column in published.load()[table].columns if column.name in IMAGE_COLUMNS]
    columns = {name: IMAGE_COLUMNS[name] for name in names}
    values = image_scores(scale, columns | (IMAGE_BESIDE if table == "table2" else {}))
    best = image_scores(scale, columns, "best")
    values = pd.concat([values, best.assign(column=best["column"] + ", best")], ignore_index=True)
    rows: dict[str, Mapping[str, Any]] = dict(chosen)
    if REAL in published.load()[table].methods:
        rows = {"real": {"label": REAL}, **rows}
    values = values[values["column"].isin(values.dropna(subset="value")["column"])]  # no reader, no such column
    cells = _measured_cells(table, rows, scale, values)
    if "#params" in [column.name for column in published.load()[table].columns]:
        cells = parameter_cells(table, chosen, "sd15-unet") + cells
    return _in_order(cells, rows)


def table2(scale: Scale) -> pd.DataFrame:
    """Table 2: subject-driven generation; LPIPS with both pairings, each value also at the chosen checkpoint."""
    return _image_table("table2", scale)


def table6(scale: Scale) -> pd.DataFrame:
    """Table 6, left half: OFT against Naive."""
    return _image_table("table6", scale, published.load()["table6"].methods)


def table11(scale: Scale) -> pd.DataFrame:
    """Table 11: one-sided against two-sided ETHER+."""
    return _image_table("table11", scale, published.load()["table11"].methods)


TABLES = {
    "table2": table2,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table10": table10,
    "table11": table11,
    **exact.TABLES,
}
# The experiments behind a table, for what is said of its protocol.
EXPERIMENTS = {
    "table2": ["subject"],
    "table4": ["glue"],
    "table5": ["instruct"],
    "table6": ["subject"],
    "table10": ["instruct"],
    "table11": ["subject"],
}


# --- writing and showing ---------------------------------------------------------------------------------------


def pretty_count(value: float) -> str:
    """A parameter count as the paper prints them: 85251 -> 0.09M."""
    return f"{value / 1e6:.0f}M" if value >= 1e8 else f"{value / 1e6:.2f}M"


def _digits(row: Any) -> str:
    """Cosines and distances between pictures have three digits in the paper, percentages two."""
    return ".3f" if str(row.column).removesuffix(", best") in (*IMAGE_COLUMNS, *IMAGE_BESIDE) else ".2f"


def _ours(row: Any) -> str:
    if row.column == "#params":
        return f"{int(row.ours):,}"
    if np.isnan(row.ours):
        return "–"
    if np.isnan(row.low):
        return f"{row.ours:{_digits(row)}}"
    return f"{row.ours:{_digits(row)}} [{row.low:{_digits(row)}}, {row.high:{_digits(row)}}]"


def _papers(row: Any) -> str:
    if np.isnan(row.paper):
        return ""
    return pretty_count(row.paper) if row.column == "#params" else f"{row.paper:{_digits(row)}}"


def _column_order(table: pd.DataFrame) -> list[str]:
    """The columns as the fullest row has them, then whatever only others have."""
    by_row = sorted((list(rows["column"]) for _, rows in table.groupby("method", sort=False)), key=len, reverse=True)
    return list(dict.fromkeys(column for columns in by_row for column in columns))


def to_markdown(table: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> str:
    """The table as Markdown: two lines a method, ours and the paper's."""
    columns = _column_order(table)
    lines = [f"# {title}", "", "| method | | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for method, rows in table.groupby("method", sort=False):
        by_column = {row.column: row for row in rows.itertuples()}
        ours = [_ours(by_column[c]) if c in by_column else "–" for c in columns]
        paper = [(_papers(by_column[c]) if c in by_column else "") or "–" for c in columns]
        lines += [f"| {method} | ours | {' | '.join(ours)} |", f"| | paper | {' | '.join(paper)} |"]
    return "\n".join([*lines, "", *[f"- {note}" for note in notes], ""])


def to_html(table: pd.DataFrame) -> str:
    """The table for a notebook: our mean, its interval in small, the paper's number under it, grey where it cannot be
    compared."""
    columns = _column_order(table)
    numbers = {c: table[table["column"] == c].set_index("method")["ours"] for c in columns if c not in COSTS}
    best = {c: series.idxmax() for c, series in numbers.items() if series.notna().any()}
    style = "text-align:center;padding:5px 9px;border-bottom:1px solid #ddd;white-space:nowrap;line-height:1.25"
    head = "".join(f"<th style='{style}'>{html.escape(c)}</th>" for c in columns)
    body = []
    for method, rows in table.groupby("method", sort=False):
        cells = [f"<td style='{style};text-align:left'><b>{html.escape(str(method))}</b></td>"]
        by_column = {row.column: row for row in rows.itertuples()}
        for column in columns:
            row = by_column.get(column)
            if row is None:
                cells.append(f"<td style='{style}'>–</td>")
                continue
            if row.column == "#params":
                shown, spread = f"{int(row.ours):,}", ""
            else:
                shown = "–" if np.isnan(row.ours) else f"{row.ours:{_digits(row)}}"
                small = _digits(row) if _digits(row) == ".3f" else ".1f"
                spread = "" if np.isnan(row.low) else f"{row.low:{small}} – {row.high:{small}}"
            if best.get(row.column) == method:
                shown = f"<b>{shown}</b>"
            colour = "#333" if row.comparable else "#999"
            paper = f"paper {_papers(row)}" if _papers(row) else "&nbsp;"
            cells.append(
                f"<td style='{style}' title='{html.escape(row.note, quote=True)}'>{shown}"
                f"<br><span style='font-size:75%;color:#555'>{spread or '&nbsp;'}</span>"
                f"<br><span style='font-size:75%;color:{colour}'>{paper}</span></td>"
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<table style='border-collapse:collapse;font-size:90%'><thead><tr><th style='{style}'></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def seeds_and_hardware(runs: pd.DataFrame) -> str:
    """One line on where the numbers come from."""
    seeds = ", ".join(map(str, sorted(runs["seed"].unique())))
    machines = " / ".join(sorted(runs["device"].unique()))
    hours = runs["wall_seconds"].sum() / 60
    ended = runs["status"].value_counts()
    bad = ", ".join(f"{count} {status}" for status, count in ended.items() if status != "finished")
    return (
        f"{len(runs)} runs, seeds {seeds}; {hours:.1f} minutes of runs in all on {machines}, "
        f"{runs['threads'].max()} thread(s) a run" + (f"; {bad}" if bad else "; all finished") + "."
    )


def write(name: str, scale: Scale) -> pd.DataFrame:
    """Makes a table and leaves ``results/<scale>/tables/<name>.{parquet,csv,md}``."""
    table = TABLES[name](scale)
    folder = scale.results / "tables"
    results.write_parquet(table, folder / f"{name}.parquet")
    results.write_text(table.to_csv(index=False), folder / f"{name}.csv")
    results.write_text(_page(name, table, scale), folder / f"{name}.md")
    return table


def _page(name: str, table: pd.DataFrame, scale: Scale) -> str:
    if name in exact.TABLES:
        return exact.markdown(name, table)
    notes = [f"Scale {scale.name!r}: {scale.settings['description']}.", *scale.protocol(*EXPERIMENTS[name])]
    if not scale.settings["comparable"]["value"]:
        notes.append(f"The paper's numbers stand beside ours for orientation only: {scale.settings['comparable']['reason']}.")
    notes.append("Ours: mean over seeds [95 % bootstrap interval]. #params: exact, at the paper's architecture.")
    return to_markdown(table, f"Table {name.removeprefix('table')}: {published.load()[name].title}", notes)
