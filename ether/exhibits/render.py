"""A table of cells as Markdown and as HTML.

The properties of a column (its position, the better direction, its decimals) are defined in `ether.paper.published`, for the
paper's columns and for our additional columns.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ether.errors import one_of
from ether.paper.published import BEST, Column, PublishedTable

# Kinds of columns that describe cost, in which no row is marked as the best.
COSTS = ("parameters", "tflops")
# Names of the units of an interval, and how values within a unit are combined.
UNIT_NAMES = {"seed": "seeds", "task": "subjects"}
COMBINED = {"seed": "", "task": " (the seeds of a subject are averaged first)"}
NOTHING = "–"


# --- layout ----------------------------------------------------------------------------------------------------


def column_order(paper: PublishedTable, cells: pd.DataFrame) -> list[str]:
    """The columns of the cells: the paper's in the paper's order, then additional ones, then those at a selected checkpoint.

    Raises:
        ConfigurationError: a column that `published.yaml` does not describe.
    """
    present = set(cells["column"])
    names = [column.name for column in (*paper.columns, *paper.beside)]
    order = [name for name in (*names, *(name + BEST for name in names)) if name in present]
    for name in cells["column"].unique():
        if name not in order:
            raise one_of("column", name, names, f"published.yaml, {paper.name}: columns or beside")
    return order


def number(value: float, column: Column) -> str:
    """Our number as text: parameters in full, all others with the column's decimals; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    if column.kind == "parameters":
        return f"{round(value):,}"
    return f"{value:g}" if column.digits is None else f"{value:.{column.digits}f}"


def best(paper: PublishedTable, cells: pd.DataFrame) -> dict[str, set[str]]:
    """{column: the methods with the best value at the printed decimals}.

    Excluded are cost columns, columns without a direction, rows that are not methods (photographs), and columns in which all
    methods are equal.
    """
    found = {}
    methods = cells[~cells["method"].isin(paper.references) & cells["ours"].notna()]
    for name, of_column in methods.groupby("column", sort=False):
        column = paper.column(str(name))
        if column.kind in COSTS or column.better not in ("higher", "lower"):
            continue
        values = of_column["ours"]
        top = number(values.max() if column.better == "higher" else values.min(), column)
        printed = values.map(lambda value, column=column: number(value, column))
        if (printed != top).any():
            found[str(name)] = set(of_column.loc[printed == top, "method"])
    return found


def spread(cell: Any, column: Column) -> str:
    """The interval of a cell, '[81.02, 82.40]'; '' if it has none."""
    return "" if math.isnan(cell.low) else f"[{number(cell.low, column)}, {number(cell.high, column)}]"


def _rows(cells: pd.DataFrame) -> list[tuple[str, str, dict[str, Any]]]:
    """(stem, label, {column: cell}) of each row, in the order of the cells."""
    return [
        (str(stem), str(rows["label"].iloc[0]), {row.column: row for row in rows.itertuples()})
        for stem, rows in cells.groupby("method", sort=False)
    ]


# --- text ------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text for Markdown without HTML and links. (nbconvert keeps scripts, and links that are scripts.)"""
    return html.escape(text, quote=False).replace("](", "]&#40;").replace("]:", "]&#58;")


def in_cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return plain(text).replace("|", "\\|").replace("\n", " ").replace("\r", " ")


def reading_guide(paper: PublishedTable, cells: pd.DataFrame) -> list[str]:
    """Notes for reading the table: the interval with its unit and number of units, bold type, and the kinds of its columns."""
    lines = []
    for unit, rows in cells[cells["n"] > 0].groupby("unit", sort=False):
        assert isinstance(unit, str)
        most = int(rows["n"].max())
        line = f"Ours: mean [95 % Student t interval of the mean] over n = {most} {UNIT_NAMES[unit]}{COMBINED[unit]}"
        if cells.loc[cells["n"] > 0, "unit"].nunique() > 1:
            line += f", in the columns {', '.join(name for name in column_order(paper, cells) if name in set(rows['column']))}"
        fewer = rows[rows["n"] < most].drop_duplicates(["label", "n"])
        if len(fewer):
            line += "; fewer where runs are missing or are the same for every seed: "
            line += ", ".join(f"{row.label} n = {row.n}" for row in fewer.itertuples())
        lines.append(f"{line}.")
    described = {name: paper.column(name) for name in column_order(paper, cells)}
    if any(column.kind == "parameters" for column in described.values()):
        lines.append("`#params`: exact, at the paper's architecture, whatever the scale.")
    references = [label for stem, label, _ in _rows(cells) if stem in paper.references]
    bold = "Bold: the best of a column"
    excluded = [*(["costs"] if any(c.kind in COSTS for c in described.values()) else []), *references]
    lines.append(f"{bold} ({' and '.join(excluded)} excepted)." if excluded else f"{bold}.")
    lower = [name for name, column in described.items() if column.better == "lower" and column.kind not in COSTS]
    if lower:
        lines.append(f"Lower is better: {', '.join(lower)}.")
    if any(name.endswith(BEST) for name in described):
        lines.append(
            f"Columns: after the last step, on all prompts; those ending in “{BEST.strip(', ')}” at the evaluation with the best "
            "score on one half of the prompts, measured on the other half."
        )
    lines.append(f"Paper: the number as the paper prints it{f', of {paper.measured_with}' if paper.measured_with else ''}.")
    if shown := [e for e in paper.elsewhere if e.column in described and e.method in set(cells["method"])]:
        lines += [f"Elsewhere: {paper.sources[name]}." for name in dict.fromkeys(e.source for e in shown)]
    return lines


def to_markdown(paper: PublishedTable, cells: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> str:
    """The table as Markdown: ours, the paper's and, if there are any, other papers' numbers; then the notes as a list."""
    columns = column_order(paper, cells)
    top = best(paper, cells)
    head = " | ".join(map(in_cell, columns))
    lines = [f"# {plain(title)}", "", f"| method | | {head} |", "|---|---|" + "---|" * len(columns)]
    for stem, label, row in _rows(cells):
        ours, papers, others = [], [], []
        for name in columns:
            cell, column = row.get(name), paper.column(name)
            text = NOTHING if cell is None else number(cell.ours, column)
            if stem in top.get(name, ()):
                text = f"**{text}**"
            ours.append(text if cell is None else f"{text} {spread(cell, column)}".strip())
            papers.append(NOTHING if cell is None else in_cell(cell.printed) or NOTHING)
            others.append(in_cell(paper.third(stem, name) or NOTHING))
        lines += [f"| {in_cell(label)} | ours | {' | '.join(ours)} |", f"| | paper | {' | '.join(papers)} |"]
        if set(others) != {NOTHING}:
            lines.append(f"| | elsewhere | {' | '.join(others)} |")
    return "\n".join([*lines, "", *[f"- {plain(note)}" for note in notes], ""])


_CELL = "text-align:center;padding:5px 9px;border-bottom:1px solid #ddd;white-space:nowrap;line-height:1.25"


def _small(text: str, colour: str) -> str:
    return f"<br><span style='font-size:75%;color:{colour}'>{html.escape(text) or '&nbsp;'}</span>"


def _groups(paper: PublishedTable, columns: Sequence[str]) -> str:
    """A first header row with the headings that span several columns; '' if there are none."""
    groups = [("" if name.endswith(BEST) else paper.column(name).group) for name in columns]
    if not any(groups):
        return ""
    spans = [(group, len(list(run))) for group, run in itertools.groupby(groups)]
    cells = "".join(f"<th colspan='{width}' style='{_CELL}'>{html.escape(group)}</th>" for group, width in spans)
    return f"<tr><th style='{_CELL}'></th>{cells}</tr>"


def to_html(paper: PublishedTable, cells: pd.DataFrame) -> str:
    """The table for a notebook: our mean, its interval below, then the paper's number, in grey if it cannot be compared.

    A cell's note and its number of units are its tooltip.
    """
    columns = column_order(paper, cells)
    top = best(paper, cells)
    body = []
    for stem, label, row in _rows(cells):
        line = [f"<td style='{_CELL};text-align:left'><b>{html.escape(label)}</b></td>"]
        for name in columns:
            cell, column = row.get(name), paper.column(name)
            if cell is None:
                line.append(f"<td style='{_CELL}'>{NOTHING}</td>")
                continue
            text = number(cell.ours, column)
            if stem in top.get(name, ()):
                text = f"<b>{text}</b>"
            printed = f"paper {cell.printed}" if cell.printed else ""
            note = html.escape("; ".join(filter(None, [f"n = {cell.n}" if cell.n else "", cell.note])), quote=True)
            line.append(
                f"<td style='{_CELL}' title='{note}'>{text}{_small(spread(cell, column), '#555')}"
                f"{_small(printed, '#333' if cell.comparable else '#999')}"
                f"{_small(third, '#999') if (third := paper.third(stem, name)) else ''}</td>"
            )
        body.append(f"<tr>{''.join(line)}</tr>")
    head = "".join(f"<th style='{_CELL}'>{html.escape(name)}</th>" for name in columns)
    return (
        f"<table style='border-collapse:collapse;font-size:90%'><thead>{_groups(paper, columns)}"
        f"<tr><th style='{_CELL}'></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


# --- frames of text --------------------------------------------------------------------------------------------

_TEXT = "text-align:left;vertical-align:top;padding:4px 9px;border-bottom:1px solid #ddd"


def number_table(frame: pd.DataFrame, digits: int = 3) -> str:
    """A frame of numbers as an HTML table: every row and column, numbers with `digits` significant digits, and text in full."""

    def number(value: float) -> str:
        as_whole = abs(value) >= 10**digits - 0.5  # which `g` would print with an exponent
        return f"{value:,.0f}" if as_whole else f"{value:.{digits}g}"

    with pd.option_context("display.max_colwidth", None):
        return str(frame.to_html(float_format=number, na_rep=NOTHING, border=0, index=not isinstance(frame.index, pd.RangeIndex)))


def text_table(frame: pd.DataFrame) -> str:
    """A frame of text as a left-aligned HTML table without index; line feeds become line breaks."""
    head = "".join(f"<th style='{_TEXT}'>{html.escape(str(name))}</th>" for name in frame.columns)
    rows = [
        "".join(f"<td style='{_TEXT}'>{html.escape(str(value)).replace(chr(10), '<br>')}</td>" for value in row)
        for row in frame.itertuples(index=False)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table style='border-collapse:collapse;font-size:90%'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
