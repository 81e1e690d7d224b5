"""Markdown and HTML of a table follow what published.yaml says of its columns."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import hostile
import pandas as pd
import pytest
from hypothesis import given
from nbconvert.filters.markdown_mistune import markdown2html_mistune as markdown2html

from ether import config
from ether.analysis import cells
from ether.analysis.cells import Cell
from ether.errors import ConfigurationError
from ether.exhibits import render, report
from ether.paper import published
from ether.paper.published import Column, PublishedTable, Row

COLUMNS = (
    Column("#params", "parameters", "lower", "parameters", 0),
    Column("FID", "distance", "lower", "fid", 1, group="Images"),
    Column("DINO", "score", "higher", "dino", 3, group="Images"),
)
BESIDE = (Column("Background", "score", "higher", "background", 3),)
PAPER = PublishedTable(
    "table3",
    "Made up",
    COLUMNS,
    (Row("photographs", ("-", "1.0", "0.9"), "Photographs"), Row("lora", ("859.5M", "31.10", "0.640"), "LoRA")),
    BESIDE,
    {"photographs": "Real photographs", "lora": "LoRA", "oft": "OFT", "ether": "ETHER <n>"},
    ("photographs",),
)


def cell(method: str, column: str, ours: float, low: float = float("nan"), high: float = float("nan"), n: int = 3) -> Cell:
    paper, printed = PAPER.paper(method, column)
    return Cell(method, PAPER.label(method), column, ours, low, high, n, "task" if n else "", paper, printed, True, "a note")


@pytest.fixture
def table() -> pd.DataFrame:
    # The columns are in another order than the paper's, and the photographs have the best value of each.
    return cells.frame(
        [
            cell("photographs", "DINO", 0.95),
            cell("photographs", "FID", 0.5),
            cell("lora", "DINO, best", 0.72),
            cell("lora", "Background", 1.0),
            cell("lora", "DINO", 0.7001, 0.65, 0.75),
            cell("lora", "FID", 32.0, 31.04, 33.0),
            cell("lora", "FID, best", 30.0),
            cell("lora", "#params", 859_520_964, n=0),
            cell("oft", "DINO", 0.7004, 0.6, 0.8),
            cell("oft", "FID", 30.5),
            cell("oft", "Background", 1.0),
            cell("oft", "FID, best", 31.0),
            cell("oft", "#params", 100, n=0),
            cell("ether", "DINO", 0.5),
            cell("ether", "Background", float("nan"), n=0),
            cell("ether", "FID", 40.0),
        ]
    )


def bold(text: str) -> list[str]:
    """The numbers in bold type."""
    return re.findall(r"\*\*([\d.,]+)\*\*", text) or re.findall(r"<b>([\d.,]+)</b>", text)


def test_the_columns_are_in_the_papers_order_then_ours_then_the_chosen_checkpoint(table: pd.DataFrame) -> None:
    expected = ["#params", "FID", "DINO", "Background", "FID, best", "DINO, best"]
    assert render.column_order(PAPER, table) == expected
    assert "| method | | " + " | ".join(expected) + " |" in render.to_markdown(PAPER, table, "A title")
    head = render.to_html(PAPER, table).split("<tbody>")[0]
    assert re.findall(r">([^<>]+)</th>", head)[-6:] == expected


def test_the_best_of_a_column_follows_its_direction_and_is_never_a_reference_or_a_cost(table: pd.DataFrame) -> None:
    top = render.best(PAPER, table)
    assert top["FID"] == {"oft"} and top["FID, best"] == {"lora"}  # lower is better, and the photographs do not compete
    assert top["DINO"] == {"lora", "oft"}  # equal as printed
    assert "#params" not in top and "Background" not in top  # a cost; equal for all methods
    assert bold(render.to_markdown(PAPER, table, "A title")) == ["0.700", "30.0", "30.5", "0.700"]
    assert bold(render.to_html(PAPER, table)) == ["0.700", "30.0", "30.5", "0.700"]


def test_one_method_with_a_value_is_not_bold_unless_others_have_one() -> None:
    assert render.best(PAPER, cells.frame([cell("lora", "FID", 3.0)])) == {}


def test_numbers_have_the_columns_decimals_and_the_papers_are_verbatim(table: pd.DataFrame) -> None:
    markdown = render.to_markdown(PAPER, table, "A title", ["A note."])
    assert "| LoRA | ours | 859,520,964 | 32.0 [31.0, 33.0] | **0.700** [0.650, 0.750] |" in markdown
    assert "| | paper | 859.5M | 31.10 | 0.640 | – | – | – |" in markdown  # not 860M, and with its last zero
    assert "| ETHER &lt;n&gt; | ours | – | 40.0 | 0.500 | – | – | – |" in markdown and markdown.endswith("- A note.\n")
    html = render.to_html(PAPER, table)
    assert "paper 859.5M" in html and "paper 31.10" in html and "ETHER &lt;n&gt;" in html
    lines = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert len(set(lines)) == 1 and len(lines) == 2 + 2 * 4


def test_numbers_that_cannot_be_compared_are_grey(table: pd.DataFrame) -> None:
    comparable = render.to_html(PAPER, table)
    grey = render.to_html(PAPER, table.assign(comparable=False, note="another model"))
    assert "color:#999'>paper 859.5M" in grey and "title='n = 3; another model'" in grey
    assert "color:#333'>paper 859.5M" in comparable and "#999" not in comparable


def test_headings_above_several_columns_span_them(table: pd.DataFrame) -> None:
    html = render.to_html(PAPER, table)
    assert re.search(r"<th colspan='2'[^>]*>Images</th>", html)
    assert "colspan" not in render.to_html(PAPER, table[table["column"].isin(["#params", "Background"])])


def test_the_reading_guide_names_interval_unit_and_number_of_units(table: pd.DataFrame) -> None:
    guide = "\n".join(render.reading_guide(PAPER, table))
    assert "95 % Student t interval of the mean] over n = 3 subjects (the seeds of a subject are averaged first)." in guide
    assert "Lower is better: FID, FID, best." in guide and "costs and Real photographs excepted" in guide
    assert "bootstrap" not in guide
    seeds = table.assign(unit="seed", n=table["n"].where(table["method"] != "oft", 2))
    assert "over n = 3 seeds; fewer where runs are missing or are the same for every seed: OFT n = 2." in "\n".join(
        render.reading_guide(PAPER, seeds)
    )
    # Two experiments in one table: each unit is said with its columns.
    two = table.assign(unit=table["unit"].where(~table["column"].str.startswith("FID"), "seed"))
    lines = render.reading_guide(PAPER, two)
    assert any("3 subjects" in line and "in the columns" in line and "FID" not in line for line in lines)
    assert any("3 seeds" in line and line.endswith("in the columns FID, FID, best.") for line in lines)


def test_a_column_that_published_yaml_does_not_have_is_an_error() -> None:
    made_up = cells.frame([cell("lora", "Nonsense", 1.0)])
    with pytest.raises(ConfigurationError, match=r"Nonsense.*columns or beside"):
        render.to_markdown(PAPER, made_up, "A title")


def test_table2_has_clip_t_before_lpips() -> None:
    paper = published.load()["table2"]
    names = ("LPIPS", "LPIPS, best", "LPIPS within a prompt", "CLIP-T, best", "CLIP-T", "DINO")
    table = cells.frame(Cell("lora-r4", "LoRA r=4", name, 0.5) for name in names)
    expected = ["DINO", "CLIP-T", "LPIPS", "LPIPS within a prompt", "CLIP-T, best", "LPIPS, best"]
    assert render.column_order(paper, table) == expected


def test_a_text_table_escapes_and_keeps_line_feeds() -> None:
    text = render.text_table(pd.DataFrame({"a < b": ["one\ntwo & three"]}))
    assert "a &lt; b" in text and "one<br>two &amp; three" in text


# --- escaping ------------------------------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """Collects elements, attributes and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_table_of_numbers_keeps_small_ones_and_long_texts() -> None:
    values = {f"a{number}": [1e-5 / 3, 77.375, 123_456.0, math.nan] for number in range(40)}
    frame = pd.DataFrame(values | {"text": ["word " * 59 + "word"] * 4, "count": [5, 12345, 6, 7]})
    text = render.number_table(frame)
    cells_ = re.findall(r"<td>(.*?)</td>", text)
    assert len(cells_) == 4 * 42 and cells_[0] == "3.33e-06" and cells_[40] == "word " * 59 + "word"
    assert set(cells_) == {"3.33e-06", "77.4", "123,456", "–", "word " * 59 + "word", "5", "12345", "6", "7"}
    edge = render.number_table(pd.DataFrame({"x": [999.4, 999.5, -999.7, 1000.4]}))
    assert re.findall(r"<td>(.*?)</td>", edge) == ["999", "1,000", "-1,000", "1,000"]
    assert "<th>second</th>" in render.number_table(pd.DataFrame({"x": [1.0, 2.0]}, index=["first", "second"]))


def test_no_table_in_the_published_notebooks_is_cut_off_and_no_small_number_is_rounded_to_zero() -> None:
    """A cell of pandas that ends in dots was cut off; a learning rate or a p-value that prints as zero was rounded to it."""
    for file in sorted((config.ROOT / "results/published").glob("*/notebooks/*.ipynb")):
        for cell_ in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            for output in cell_.get("outputs", []):
                text = "".join(output.get("data", {}).get("text/html", ""))
                assert not re.search(r"<t[dh]>[^<]*\.\.\.</t[dh]>", text), (file, cell_["source"])
                for table_ in re.findall("<table.*?</table>", text, re.DOTALL):
                    for name in ("learning_rate", "p"):
                        assert not [text for text in _column(table_, name) if re.fullmatch(r"0\.0+", text)], (file, name)


def _column(table_: str, name: str) -> list[str]:
    """The cells of one column of a frame's HTML; none if its first line of headings does not have the name."""
    head, *rows = ([*re.findall("<t[dh]>(.*?)</t[dh]>", row)] for row in re.findall(r"<tr.*?</tr>", table_, re.DOTALL))
    return [row[head.index(name)] for row in rows if len(row) == len(head)] if name in head else []


TABLE_ELEMENTS = {"table", "thead", "tbody", "tr", "td", "th", "b", "br", "span"}


@given(hostile.text, hostile.text)
@hostile.more
def test_what_a_table_shows_is_text_and_never_html(label: str, note: str) -> None:
    shown = cells.frame([Cell("lora", label, "FID", 1.0, 0.5, 1.5, 3, "task", 1.0, note, True, note)])
    frame = pd.DataFrame({label: [note], "b": [label]})
    for text in (render.to_html(PAPER, shown), render.text_table(frame), render.number_table(frame)):
        found = _Elements(text)
        assert found.elements <= TABLE_ELEMENTS and found.attributes <= {"style", "title", "colspan", "class"}
    plain = "".join(_Elements(render.text_table(pd.DataFrame({"a": [label]}))).text)
    assert plain == "a" + label.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "") or "\0" in label or "\r" in label


@given(hostile.text)
@hostile.more
def test_markdown_shows_text_and_never_html(text: str) -> None:
    """As nbconvert shows an executed notebook, which unlike JupyterLab removes no scripts."""
    shown = cells.frame([Cell("lora", text, "FID", 1.0, 0.5, 1.5, 3, "task", 1.0, text, True, text)])
    # nbconvert adds a link to every heading.
    usual = ("a", "h1", "h2", "h3", "p", "ul", "ol", "li", "strong", "em", "code", "pre", "hr", "blockquote", "div", "del")
    ours = {*usual, *TABLE_ELEMENTS}
    for markdown in (render.to_markdown(PAPER, shown, text, [text]), report._markdown(text).data, report._list([text]).data):
        found = _Elements(markdown2html(markdown))
        assert found.elements <= ours and not {name for name in found.attributes if name.startswith("on")}
    rows = [line for line in render.to_markdown(PAPER, shown, "A title").split("\n") if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_a_link_in_a_description_runs_no_script() -> None:
    for text in ("[a](javascript:alert(1))", "![a](javascript:alert(1))", "<javascript:alert(1)>", "[a][b]\n\n[b]: javascript:x"):
        found = _Elements(markdown2html(report._markdown(text).data))
        assert found.elements == {"p"} and "javascript:" in "".join(found.text)
