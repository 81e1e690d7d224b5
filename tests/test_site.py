"""The static site of executed notebooks: pages, links, and nothing in them that could run."""

from __future__ import annotations

import base64
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from made_up_runs import Run, store
from test_claims_page import judged

from ether import config, site
from ether.errors import MissingResourceError
from ether.exhibits import verdicts
from ether.exhibits.style import new_figure

SITE = Path("results/small/site")
EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>a</a><style>b{}</style>"
    "[c](javascript:alert(4)) [d](../x.ipynb) `<id>`"
)
TABLE = (
    "<table style='font-size:90%; position:fixed'><thead><tr><th colspan='2'>a</th></tr></thead>"
    "<tr><td>1 &lt; 2</td></tr></table>"
)


class Elements(HTMLParser):
    """Collects the elements of a page: links, ids, names, attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    @property
    def links(self) -> list[str]:
        return [attributes[name] for _, attributes in self.found for name in ("href", "src") if name in attributes]

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}


def picture() -> str:
    from io import BytesIO

    stream = BytesIO()
    new_figure(1, 1).savefig(stream, format="png")
    return base64.b64encode(stream.getvalue()).decode()


def notebook(file: Path, *html: str) -> None:
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(f"# {file.stem}\n\nText with `code` and **bold**. {EVIL}\n\n## Part"),
        v4.new_code_cell("x = '<b>1</b>'", outputs=[v4.new_output("stream", text="<i>printed</i>\n")]),
        v4.new_code_cell("y", outputs=[v4.new_output("display_data", {"image/png": picture(), "text/plain": "image"})]),
        *(
            v4.new_code_cell("z", outputs=[v4.new_output("display_data", {"text/html": text, "text/plain": "z"})])
            for text in html
        ),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), file)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[site.Page]:
    monkeypatch.chdir(tmp_path)
    folder = config.load("small").results / "notebooks"
    for name in ("table4", "figure8", "claims", "runs/glue/ether", "foundation_language"):
        notebook(folder / f"{name}.ipynb", TABLE, EVIL)
    (folder / ".partial.table5.ipynb").write_text("{}")
    judged("table4", a=("Sec. 1", 5.0, "A."), b=("Sec. 2", 0.05, "B <i>."))
    verdicts.make("small")
    store(
        config.load("small").results,
        "glue",
        [Run("ether", {("validation", "score"): 1.0}, "rte", columns={"git_commit": "0" * 40})],
    )
    return site.write("small")


def page(name: str) -> Elements:
    return Elements((SITE / f"{name}.html").read_text())


def test_every_executed_notebook_has_a_page_in_the_order_of_the_index(made: list[site.Page]) -> None:
    assert [p.name for p in made] == ["claims", "table4", "figure8", "foundation_language", "runs/glue/ether"]
    assert made[1].title == "Table 4: GLUE"
    assert {str(file.relative_to(SITE)) for file in SITE.rglob("*.html")} == {"index.html", *(p.href for p in made)}


def test_every_link_resolves_within_the_site(made: list[site.Page]) -> None:
    for file in SITE.rglob("*.html"):
        elements = Elements(file.read_text())
        for link in elements.links:
            if link.startswith("#"):
                assert unquote(link[1:]) in elements.ids, (file, link)
            elif not link.startswith("data:"):
                assert "//" not in link and (file.parent / link).is_file(), (file, link)
    index = page("index").links
    assert {"table4.html", "figure8.html", "claims.html", "foundation_language.html", "runs/glue/ether.html"} <= set(index)


def test_nothing_in_a_page_can_run_and_text_is_escaped(made: list[site.Page]) -> None:
    for file in SITE.rglob("*.html"):
        for tag, attributes in Elements(file.read_text()).found:
            assert tag not in ("script", "iframe", "object", "embed", "form"), file
            assert not any(name.startswith("on") for name in attributes), (file, attributes)
            assert not attributes.get("href", "").lower().strip().startswith("javascript"), (file, attributes)
    text = (SITE / "table4.html").read_text()
    assert "&lt;i&gt;printed" in text and "<i>printed" not in text
    assert "<td>1 &lt; 2</td>" in text and "font-size: 90%" in text and 'colspan="2"' in text
    assert "data:image/png;base64," in text and "b{}" not in text and "position:" not in text
    assert "<code>&lt;id&gt;</code>" in text  # of a Markdown cell, escaped once


def test_the_index_quotes_the_claims_and_counts_them_by_exhibit(made: list[site.Page]) -> None:
    text = (SITE / "index.html").read_text()
    assert "At scale small, 1 of 2 statements of the paper is reproduced: 1 on GLUE." in text
    assert "1 reproduced</span>, <span class='undecided'>1 undecided" in text


def test_pages_of_notebooks_that_are_gone_are_removed(made: list[site.Page]) -> None:
    (config.load("small").results / "notebooks/figure8.ipynb").unlink()
    site.write("small")
    assert not (SITE / "figure8.html").exists() and "figure8" not in (SITE / "index.html").read_text()


def test_the_first_page_of_the_report_is_text_without_templates(made: list[site.Page]) -> None:
    from docutils.core import publish_parts

    scale = config.load("small")
    frame = pd.read_parquet("results/small/claims.parquet").assign(benchmark="A {{ 1 + 1 }} {% set a %} *b* <c>")
    frame.to_parquet("results/small/claims.parquet")
    text = site.landing(scale)
    assert "{{" not in text and "{%" not in text
    assert (Path("results/small/report.rst")).is_file()
    body = publish_parts(f"{text}\n.. _claims.html: #\n", writer="html")["html_body"]
    assert "a {{ 1 + 1 }} {% set a %} *b* &lt;c&gt;" in body and "system-message" not in body
    assert "000000000000" in body and "a machine" in body and "1 of 2 statements of the paper is reproduced" in body


def test_without_notebooks_the_error_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingResourceError, match="no executed notebooks under results/small/notebooks"):
        site.write("small")
    assert site.main(["smal"]) == 1 and "Did you mean 'small'" in capsys.readouterr().err


def test_all_tables_are_on_one_page_with_sortable_columns(made: list[site.Page]) -> None:
    assert not (SITE / "tables.html").exists()  # no table has been made
    folder = config.load("small").results / "tables"
    cell = {"method": "ether", "label": "ETHER <b>", "low": 1.0, "high": 2.0}
    cells = [
        {**cell, "column": "#params", "ours": 85251.0, "paper": 90000.0},
        {**cell, "column": "Avg", "ours": 79.43721, "paper": None},
        {**cell, "method": "lora", "label": "LoRA", "column": "Avg", "ours": float("nan"), "paper": None},
        {**cell, "method": "full", "label": "Full", "column": "Avg", "ours": 81.5, "paper": None},
    ]
    pd.DataFrame(cells).to_parquet(folder / "table4.parquet")
    found = site.wide(pd.read_parquet(folder / "table4.parquet"))
    assert list(found) == ["method", "#params", "#params, the paper", "Avg"] and found["Avg"].tolist() == [79.44, "", 81.5]
    site.write("small")
    text = (SITE / "tables.html").read_text()
    assert "Table 4: GLUE" in text and "79.44" in text and "<b>" not in text
    assert not [link for link in page("tables").links if "//" in link and "itables.org" not in link]  # no network is needed
    assert "tables.html" in page("index").links


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("name", ["index", "table4", "tables", "runs/glue/ether"])
def test_a_browser_shows_the_page_without_a_console_message(made: list[site.Page], name: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    if name == "tables":
        cell = {"method": "ether", "label": "ETHER", "column": "Avg", "ours": 1.0, "paper": 2.0}
        pd.DataFrame([cell]).to_parquet(config.load("small").results / "tables" / "table4.parquet")
        site.write("small")
    file = (SITE / f"{name}.html").resolve()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr"]
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "<main>" in done.stdout and "CONSOLE" not in done.stderr
    assert name != "tables" or "dt-orderable" in done.stdout  # the library has run
