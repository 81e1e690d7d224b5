"""published.yaml against the paper's text, against the methods' files, and against itself."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest

from ether import config
from ether.analysis.cells import frame
from ether.errors import ConfigurationError
from ether.exhibits import render
from ether.paper import published
from ether.paper.published import PublishedTable, load, number, prints_as

TABLES = [f"table{i}" for i in range(1, 13)]
ARROWS = {"↑": "higher", "↓": "lower", r"\uparrow": "higher", r"\downarrow": "lower"}


# --- the paper's text ------------------------------------------------------------------------------------------------


def paper_text() -> str:
    default = Path(__file__).resolve().parents[2] / "shared" / "paper" / "paper.txt"
    path = Path(os.environ.get("ETHER_PAPER", default))
    if not path.is_file():
        pytest.skip("the paper's text is not here: set ETHER_PAPER to a text version with tab-separated tables")
    return path.read_text(encoding="utf-8")


def plain(cell: str) -> str:
    """A heading or label without its markup: 'LoRA $_{r=8}$' -> 'LoRA r=8'."""
    cell = re.sub(r"</?i>|\*|\\text|\\uparrow|\\downarrow|[↑↓]", "", cell)
    cell = re.sub(r"[$_^{}]", " ", cell)
    return re.sub(r"\s*=\s*", "=", " ".join(cell.split()))


def printed_table(text: str, name: str) -> tuple[list[list[str]], list[tuple[str, str, list[str]]]]:
    """Heading lines, and body rows (label, setting, cells) of one table, as the text has them."""
    lines = text.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"Table {name.removeprefix('table')}. ")]
    block = []
    for line in lines[start + 2 :]:
        if not line.strip():
            break
        block.append(line.split("\t"))
    first_body = next(i for i, cells in enumerate(block) if re.fullmatch(r"[-\d.]+(e-\d|M|%)?", cells[-1].strip()))
    with_setting = name == "table7"
    label = ""
    body = []
    for cells in block[first_body:]:
        label = plain(cells[0]) or label  # Table 7 prints the method once for its five lines
        setting, values = (cells[1], cells[2:]) if with_setting else ("", cells[1:])
        body.append((label, setting, [value.strip() for value in values]))
    headings = [cells[2 if with_setting else 1 :] for cells in block[:first_body]]
    for i, above in enumerate(headings[0]):
        if not headings[-1][i].strip():  # a heading that spans both lines (Table 12's "#params") is no group
            headings[-1][i], headings[0][i] = above, "none"
    return headings, body


def as_printed(table: PublishedTable) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Our data in the paper's layout: column headings and body rows."""
    headings = [column.printed or column.name for column in table.columns]
    body = [(row.printed, row.setting, list(row.values)) for row in table.rows]
    if table.name == "table8":  # printed with the methods as columns
        transposed = [(h, "", [values[i] for _, _, values in body]) for i, h in enumerate(headings)]
        return [label for label, _, _ in body], transposed
    return headings, body


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_equals_the_papers(name: str) -> None:
    headings, body = printed_table(paper_text(), name)
    our_headings, our_body = as_printed(load()[name])
    assert our_headings == [plain(cell) for cell in headings[-1]]
    assert our_body == body  # labels, settings, every cell, in order: nothing missing and nothing extra


@pytest.mark.parametrize("name", TABLES)
def test_directions_and_groups_equal_the_papers(name: str) -> None:
    headings, _ = printed_table(paper_text(), name)
    table = load()[name]
    if name == "table8":
        pytest.skip("Table 8's headings are methods")
    for column, cell in zip(table.columns, headings[-1], strict=True):
        printed = [better for mark, better in ARROWS.items() if mark in cell]
        assert printed in ([], [column.better])
    if len(headings) > 1:
        group, groups = "", []
        for cell in headings[0]:
            group = cell.strip() or group
            groups.append("" if group == "none" else group)
        assert [column.group for column in table.columns] == groups


def test_the_text_holds_exactly_twelve_tables() -> None:
    found = re.findall(r"^Table (\d+)\. ", paper_text(), re.MULTILINE)
    assert [f"table{i}" for i in sorted(map(int, found))] == sorted(load(), key=lambda name: int(name[5:]))


# --- without the paper's text ----------------------------------------------------------------------------------------


def test_same_metric_has_the_same_direction_everywhere() -> None:
    directions: dict[str, set[str]] = {}
    for table in load().values():
        for column in table.columns:
            directions.setdefault(column.printed or column.name, set()).add(column.better)
    tasks = {column.name for column in load()["table7"].columns}  # hyperparameters there, scores in Table 4
    assert all(len(found) == 1 for name, found in directions.items() if name not in tasks)


@pytest.mark.parametrize("method", load()["table4"].methods)
def test_glue_averages_recompute(method: str) -> None:
    table = load()["table4"]
    tasks = [column.name for column in table.columns if column.kind == "percent" and column.name != "Avg"]
    scores = [table.value(method, task) or 0.0 for task in tasks]
    assert len(scores) == 8
    assert sum(scores) / 8 == pytest.approx(table.value(method, "Avg"), abs=0.0051)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "copy", "method", "columns"),
    [
        ("table2", "table11", "ether-plus", ["#params", "DINO", "CLIP-I"]),
        ("table2", "table6", "oft-n4", ["DINO", "CLIP-I", "CLIP-T", "LPIPS"]),
        ("table3", "table6", "oft-n4", ["mIoU", "Acc", "FID"]),
        ("table5", "table10", "ether-plus-n32", ["#params", "MMLU", "ARC", "Tru-1", "Tru-2"]),
    ],
)
def test_results_printed_twice_agree(source: str, copy: str, method: str, columns: list[str]) -> None:
    for column in columns:
        assert load()[source].printed(method, column) == load()[copy].printed(method, column)


def test_table10_repeats_the_tflops_of_table1() -> None:
    for method in load()["table10"].methods:
        assert load()["table10"].printed(method, "TFLOPs") == load()["table1"].printed(method, "Llama-2-7B TFLOPs")


def test_relative_drops_recompute_except_two_misprints() -> None:
    table = load()["table1"]
    off = set()
    for model in ("Phi-1.5", "Llama-2-7B"):
        for method in table.methods:
            drop = table.value(method, f"{model} rel. drop")
            if drop is not None:
                whole = table.value(f"{method.rpartition('-')[0]}-n1", f"{model} TFLOPs") or 0.0
                recomputed = 100 * ((table.value(method, f"{model} TFLOPs") or 0.0) / whole - 1)
                if round(recomputed) != drop:
                    off.add((model, method, round(recomputed, 2), drop))
    assert off == {("Llama-2-7B", "ether-n32", -67.46, -68.0), ("Llama-2-7B", "ether-plus-n32", -82.5, -83.0)}


@pytest.mark.parametrize(
    ("printed", "value"),
    [("0.09M", 90_000), ("184M", 184e6), ("90.10", 90.1), ("-23%", -23), ("6e-3", 0.006), ("0", 0), ("-", None)],
)
def test_printed_strings_become_numbers(printed: str, value: float | None) -> None:
    assert number(printed) == value


@pytest.mark.parametrize(
    ("exact", "printed", "verdict"),
    [
        (85_251, "0.09M", "match"),
        (82_944, "0.09M", "mismatch"),
        (82_944, "0.08M", "match"),
        (1_048_576, "1.04M", "truncated"),
        (1_048_576, "1.05M", "match"),
        (2_097_152, "2.09M", "truncated"),
        (11_652_096, "11.6M", "truncated"),
        (11_602_368, "11.6M", "match"),
        (184_424_451, "184M", "match"),
        (95_000, "0.10M", "match"),  # a half rounds up
        (0, "0", "match"),
        (278_528, "1.05M", "mismatch"),
        (25.2598, "25.26", "match"),
        (7.737, "25.26", "mismatch"),
        (-67.46, "-68%", "mismatch"),
    ],
)
def test_prints_as(exact: float, printed: str, verdict: str) -> None:
    assert prints_as(exact, printed) == verdict


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    table = load()["table4"]
    with pytest.raises(ConfigurationError, match="ether-plus"):
        table.value("ETHER+", "Avg")
    with pytest.raises(ConfigurationError, match="MNLI"):
        table.value("ether", "MNIL")
    with pytest.raises(ConfigurationError, match="Learning Rate"):
        load()["table7"].value("ether", "MNLI")
    with pytest.raises(ConfigurationError, match="Did you mean 'ether-plus'"):
        table.label("ether-plsu")
    with pytest.raises(ConfigurationError, match="not a number"):
        number("n/a")


# --- rows are methods, columns are measured values -------------------------------------------------------------------


def test_every_row_is_a_method_or_a_listed_reference() -> None:
    for table in load().values():
        assert set(table.methods) <= set(config.methods())
        assert set(table.references) >= set(table.stems) - set(table.methods)  # a reference may be a row of ours alone
    assert load()["table2"].references == ("real-images",)
    assert load()["table2"].label("real-images") == "Real images"


SMALL = """\
table1:
  title: A table
  columns:
    - {name: A, metric: a, kind: percent, better: higher}
  rows:
    - {method: ether, values: "1.0"}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace("method: ether", "method: ehter"), "method 'ehter'.*Did you mean 'ether'"),
        (SMALL + "    - {method: real-images, values: '1.0'}\n", "real-images.*listed in `references`"),
        (SMALL + "    - {method: ether, values: '2.0'}\n", "'ether' twice"),
        (SMALL.replace('"1.0"', '"1.0 2.0"'), "2 values for 1 columns"),
        (SMALL.replace('"1.0"', '"n/a"'), "not a number"),
        (SMALL.replace("percent", "percentage"), "kind must be one of"),
        (SMALL.replace("metric: a, ", ""), "metric the name"),
        (SMALL.replace("better: higher", "better: more"), "better higher or lower"),
    ],
)
def test_a_file_that_contradicts_itself_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(SMALL, encoding="utf-8")
    assert published.read(file)["table1"].value("ether", "A") == 1.0
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        published.read(file)


def test_labels_are_the_methods_and_printed_labels_differ_from_them() -> None:
    """`printed` is given only where the paper's label is another one, and labels come from the methods' files."""
    raw = config.read_yaml(published.FILE)
    for name, table in load().items():
        for entry, row in zip(raw[name]["rows"], table.rows, strict=True):
            assert entry.get("printed") != table.label(row.method), (name, row.method)
        for method in table.methods:
            assert table.label(method) == config.methods()[method]["label"]
    assert load()["table10"].label("ether-n64") == "ETHER n=64"  # a row of ours, which the paper does not have


def test_a_metric_has_one_meaning_and_one_direction() -> None:
    for table in load().values():
        columns = (*table.columns, *table.beside)
        assert len({column.name for column in columns}) == len(columns)
    measured: dict[str, set[tuple[str, str]]] = {}
    for table in load().values():
        for column in (*table.columns, *table.beside):
            if column.kind not in ("setting", "change", "tflops"):
                measured.setdefault(column.metric, set()).add((column.kind, column.better))
    assert all(len(found) == 1 for found in measured.values()), measured


def test_a_measured_table_names_the_papers_model_beside_its_numbers_and_not_in_its_title() -> None:
    for name, table in load().items():
        measured = bool(config.exhibits()[name].experiments)
        assert bool(table.measured_with) == measured, name
        guide = render.reading_guide(table, frame([]))
        assert f"Paper: the number as the paper prints it{f', of {table.measured_with}' if measured else ''}." in guide
        assert not measured or table.measured_with.split(",")[0] not in table.title


def test_columns_have_the_digits_of_their_kind_unless_they_say_otherwise() -> None:
    digits = {(t.name, c.name): c.digits for t in load().values() for c in (*t.columns, *t.beside)}
    assert digits["table2", "DINO"] == digits["table2", "Background"] == 3
    assert digits["table5", "ARC, normalised"] == 2 and digits["table4", "#params"] == 0
    assert digits["table3", "mIoU"] == 1 and digits["table9", "Acc"] == 2 and digits["table3", "FID"] == 1
    assert digits["table7", "RTE"] is None
    for table in load().values():  # ours have at least the decimals of the paper's
        for column in table.columns:
            printed = [table.printed(row.method, column.name, row.setting) for row in table.rows]
            decimals = max(len(text.partition(".")[2]) for text in printed)
            assert column.kind in ("parameters", "setting") or (column.digits or 0) >= decimals, (table.name, column)


def test_columns_of_ours_and_at_the_chosen_checkpoint_are_found() -> None:
    table = load()["table2"]
    assert [column.name for column in table.beside] == ["LPIPS within a prompt", "Background", "Colour", "Drift"]
    chosen = table.column("LPIPS" + published.BEST)
    assert (chosen.name, chosen.metric, chosen.better) == ("LPIPS, best", "lpips_real", "higher")
    assert table.column("LPIPS within a prompt").metric == "lpips_prompt"
    assert table.column("Drift").better == "lower"


def test_the_papers_cell_beside_ours_is_empty_where_it_has_none() -> None:
    assert load()["table2"].paper("dreambooth", "#params") == (859.5e6, "859.5M")
    for table, method, column in [
        ("table2", "real-images", "#params"),  # printed as a dash
        ("table2", "ether", "Background"),  # a column of ours
        ("table2", "ether", "DINO, best"),
        ("table10", "ether-n64", "MMLU"),  # a row of ours
    ]:
        value, printed = load()[table].paper(method, column)
        assert math.isnan(value) and printed == ""
