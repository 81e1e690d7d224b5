"""The executed notebooks of a scale as a static site: ``python -m ether.site small``.

Writes ``results/<scale>/site``: a page for each executed notebook of a table, a figure, the claims, a world and a job, and
``index.html``, which lists them by table and figure. A page needs no network and has no script; pictures are part of it. Its HTML
is reduced to harmless elements (`harmless`), all other text is escaped. One further page, ``tables.html``, has every table with
columns that can be sorted and searched; its only script is the library that does this (itables).

``results/<scale>/report.rst``, written beside it, is the first page of Snakemake's report.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ether import config, results
from ether.config import Scale
from ether.errors import EtherError, MissingResourceError, json_object
from ether.exhibits import common, verdicts

TABLES = "tables.html"  # the page of sortable tables
CLAIMS = "claims"  # stem of the notebook and page of the claims
# What a page may contain: the elements and properties of nbconvert's basic template, of `ether.exhibits.render` and of pandas.
TAGS = {
    "a", "abbr", "b", "blockquote", "br", "code", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol",
    "p", "pre", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
PROPERTIES = {
    "background-color", "border-bottom", "border-collapse", "color", "font-size", "line-height", "padding", "text-align",
    "vertical-align", "white-space",
}  # fmt: skip
ATTRIBUTES = {"class", "id", "style", "title", "alt", "width", "colspan", "rowspan"}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: auto; padding: 0 1rem; }
nav { padding: .8rem 0; border-bottom: 1px solid #ddd; margin-bottom: 1.5rem; display: flex; gap: 1.5rem; flex-wrap: wrap; }
nav .place { color: #666; }
a { color: #1f618d; }
a.anchor-link { visibility: hidden; text-decoration: none; margin-left: .3rem; }
:is(h1, h2, h3):hover > a.anchor-link { visibility: visible; }
table { border-collapse: collapse; font-size: 90%; }
th, td { padding: 4px 9px; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
.output_area, .output { overflow-x: auto; }
.input { font-size: 85%; }
.prompt { display: none; }
.highlight { background: #f6f8fa; border-left: 3px solid #d0d7de; margin: .8rem 0; }
.highlight pre, .output_text pre, .output_stderr pre { margin: 0; padding: .5rem .8rem; overflow-x: auto; white-space: pre-wrap; }
img { max-width: 100%; height: auto; }
.undecided { color: #777; } .contradicted { color: #b03a2e; } .reproduced { color: #1e8449; }
"""


# --- pages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """One page of the site."""

    notebook: Path
    name: str  # path below the site's folder, without ending: 'table4', 'runs/glue/ether'
    title: str

    @property
    def href(self) -> str:
        """Address relative to the site's folder."""
        return f"{self.name}.html"


def pages(scale: Scale) -> list[Page]:
    """The pages of a scale in the order of the index: claims, tables, figures, worlds, jobs.

    Raises:
        MissingResourceError: no notebook has been executed.
    """
    folder = scale.results / "notebooks"
    found = [Page(folder / f"{CLAIMS}.ipynb", CLAIMS, "The paper's claims")]
    known = sorted(config.exhibits().values(), key=lambda entry: entry.kind == "figure")
    found += [Page(folder / f"{entry.id}.ipynb", entry.id, common.title(entry)) for entry in known]
    for file in sorted(folder.glob("foundation_*.ipynb")):
        found.append(Page(file, file.stem, f"World and models: {file.stem.removeprefix('foundation_')}"))
    for file in sorted(folder.glob("runs/*/*.ipynb")):
        name = f"{file.parent.name}/{file.stem}"
        found.append(Page(file, f"runs/{name}", name))
    found = [page for page in found if page.notebook.is_file() and not page.notebook.name.startswith(".")]
    if not found:
        raise MissingResourceError(
            f"There are no executed notebooks under {folder}: run a target first, as `snakemake --cores 1 table4 --config "
            f"scale={scale.name}`."
        )
    return found


def _allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute may stay. Links lead to the same page or to the web, pictures are part of the page."""
    if name == "href":
        return tag == "a" and value.startswith(("#", "https://", "http://"))
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    return name in ATTRIBUTES


def harmless(text: str) -> str:
    """HTML without scripts, style sheets, and all but the elements, attributes and properties listed in this module."""
    from bleach import Cleaner
    from bleach.css_sanitizer import CSSSanitizer

    text = re.sub(r"<(style|script)\b.*?</\1\s*>", "", text, flags=re.S | re.I)  # their text would be left
    properties = CSSSanitizer(allowed_css_properties=PROPERTIES)
    protocols = {"http", "https", "data"}
    return Cleaner(tags=TAGS, attributes=_allowed, protocols=protocols, css_sanitizer=properties, strip=True).clean(text)


def body_of(notebook: Path) -> str:
    """The body of a notebook's page."""
    import nbformat
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.read(notebook, as_version=4))
    return harmless(body)


def whole(title: str, body: str, above: str = "", links: Iterable[tuple[str, str]] = (), style: str = STYLE) -> str:
    """A page as HTML.

    Args:
        title: plain text.
        body: HTML.
        above: path from the page's folder to the site's, '' or '../../'.
        links: further links of the first line, (address, plain text).
        style: style sheet.
    """
    first = "".join(f"<a href='{html.escape(address, quote=True)}'>{html.escape(text)}</a>" for address, text in links)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<link rel='icon' href='data:,'><title>{html.escape(title)}</title><style>{style}</style></head>\n"
        f"<body><nav><a href='{above}index.html'>Index</a>{first}</nav>\n<main>{body}</main></body></html>\n"
    )


def write_pages(found: Sequence[Page], folder: Path) -> None:
    """Writes the page of every notebook, with links to the page before and after it."""
    from pygments.formatters import HtmlFormatter

    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    for place, page in enumerate(found):
        above = "../" * page.name.count("/")
        links = [(f"{above}{other.href}", f"{arrow} {other.title}") for arrow, other in _beside(found, place)]
        text = whole(page.title, body_of(page.notebook), above, links, style)
        results.write_text(text, folder / page.href)


def _beside(found: Sequence[Page], place: int) -> list[tuple[str, Page]]:
    before = [("←", found[place - 1])] if place else []
    return before + ([("→", found[place + 1])] if place + 1 < len(found) else [])


# --- sortable tables -------------------------------------------------------------------------------------------


def _shown(value: float) -> float | str:
    """A number with four digits, a count with all of them, or '' for NaN."""
    if math.isnan(value):
        return ""
    return round(value) if abs(value) >= 1e3 else float(f"{value:.4g}")


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """A table's cells with one row per method and, for each column, its mean and the paper's number (`ether.exhibits.common`)."""
    labels = cells.drop_duplicates("method").set_index("method")["label"]
    parts = {"method": labels}
    for column, of_column in cells.groupby("column", sort=False):
        by_method = of_column.drop_duplicates("method").set_index("method").reindex(labels.index)
        for name, source in ((str(column), "ours"), (f"{column}, the paper", "paper")):
            values = pd.to_numeric(by_method[source], errors="coerce")
            if values.notna().any():
                parts[name] = pd.Series([_shown(value) for value in values], index=values.index, dtype=object)
    return pd.DataFrame(parts).reset_index(drop=True)


def _tables(scale: Scale) -> list[tuple[str, Path]]:
    """Title and file of every table that has been made."""
    files = ((entry, scale.results / "tables" / f"{entry.id}.parquet") for entry in config.exhibits().values())
    return [(common.title(entry), file) for entry, file in files if entry.kind == "table" and file.is_file()]


def sortable(scale: Scale) -> str | None:
    """The page with all tables of a scale, sortable by every column; None if no table has been made."""
    if not (made := _tables(scale)):
        return None
    from itables import options, to_html_datatable
    from itables.javascript import generate_init_offline_itables_html

    parts = [
        "<h1>All tables</h1><p>A click on a column's title sorts by it. Means of the runs here, and the paper's numbers; "
        "intervals and notes are on the page of each table.</p>",
        generate_init_offline_itables_html(options.dt_bundle),
    ]
    nothing: Any = dict.fromkeys(("topStart", "topEnd", "bottomStart", "bottomEnd"))  # around a table
    for title, file in made:
        table = to_html_datatable(
            wide(pd.read_parquet(file)), connected=False, paging=False, showIndex=False, allow_html=False, layout=nothing
        )
        parts.append(f"<h2>{html.escape(title)}</h2><div class='output_area'>{table}</div>")
    return whole(f"All tables at scale {scale.name}", "\n".join(parts))


# --- index -----------------------------------------------------------------------------------------------------


def index(scale: Scale, found: Sequence[Page]) -> str:
    """The index: sentences on the claims, tables and figures with the number of claims by verdict, then the other pages."""
    parts = [
        f"<h1>ETHER: tables and figures</h1><p>Scale {html.escape(scale.name)}: {html.escape(scale.settings['description'])}.</p>"
    ]
    judged = pd.DataFrame()
    if (file := scale.results / "claims.parquet").is_file():
        judged = pd.read_parquet(file)
        quotes = verdicts.Collected(scale.name, judged).quotes()
        parts.append("<h2>Claims</h2><ul>" + "".join(f"<li>{html.escape(quote)}</li>" for quote in quotes) + "</ul>")
    by_name = {page.name: page for page in found}
    if CLAIMS in by_name:
        parts.append(f"<p>{_link(by_name[CLAIMS])}</p>")
    for kind, heading in (("table", "Tables"), ("figure", "Figures")):
        entries = [entry for entry in config.exhibits().values() if entry.kind == kind and entry.id in by_name]
        if entries:
            rows = "".join(f"<tr><td>{_link(by_name[e.id])}</td><td>{_counted(judged, e.id)}</td></tr>" for e in entries)
            parts.append(f"<h2>{heading}</h2><table><tr><th></th><th>claims</th></tr>{rows}</table>")
        if kind == "table" and _tables(scale):
            parts.append(f"<p><a href='{TABLES}'>All tables on one page, with sortable columns</a></p>")
    worlds = [page for page in found if page.name.startswith("foundation_")]
    if worlds:
        parts.append("<h2>Worlds and their models</h2><ul>" + "".join(f"<li>{_link(page)}</li>" for page in worlds) + "</ul>")
    jobs = [page for page in found if page.name.startswith("runs/")]
    for name in dict.fromkeys(page.name.split("/")[1] for page in jobs):
        of_experiment = [page for page in jobs if page.name.split("/")[1] == name]
        items = ", ".join(f"<a href='{html.escape(page.href)}'>{html.escape(page.notebook.stem)}</a>" for page in of_experiment)
        parts.append(f"<h2>Runs of {html.escape(name)}</h2><p>{items}</p>")
    return whole(f"Results at scale {scale.name}", "\n".join(parts))


def _link(page: Page) -> str:
    return f"<a href='{html.escape(page.href, quote=True)}'>{html.escape(page.title)}</a>"


def _counted(judged: pd.DataFrame, exhibit: str) -> str:
    """'2 reproduced, 1 undecided' of an exhibit's claims."""
    if judged.empty:
        return "–"
    counts = judged.loc[judged["exhibit"] == exhibit, "verdict"].value_counts()
    texts = [f"<span class='{name.split()[0]}'>{counts[name]} {name}</span>" for name in verdicts.VERDICTS if name in counts]
    return ", ".join(texts) or "–"


# --- the report of Snakemake -----------------------------------------------------------------------------------


def landing(scale: Scale) -> str:
    """The first page of ``snakemake --report`` as reStructuredText: sentences on the claims and their counts, then the settings
    of the scale and the origin of its runs.

    (The option ``--report-metadata`` is for the latter, but Snakemake 9.27 prints the parts of each value instead of the value.)
    """
    title = f"The paper's claims at scale {scale.name}"
    lines = [title, "=" * len(title), ""]
    if (file := scale.results / "claims.parquet").is_file():
        collected = verdicts.Collected(scale.name, pd.read_parquet(file))
        lines += [*(f"- {escaped(quote)}" for quote in collected.quotes()), "", ".. list-table::", "   :header-rows: 1", ""]
        counts = collected.counts().reset_index()
        for row in (counts.columns, *counts.itertuples(index=False)):
            first, *others = (escaped(str(value)) for value in row)
            lines += [f"   * - {first}", *(f"     - {value}" for value in others)]
        lines += ["", "Every claim with its evidence: `claims.html`_.", ""]
    lines += [f":{name}: {escaped(text)}" for name, text in origin(scale).items()]
    return "\n".join([*lines, ""])


def origin(scale: Scale) -> dict[str, str]:
    """The settings of a scale, and the origin of its runs."""
    comparable = scale.settings["comparable"]
    found = {
        "Scale": f"{scale.name}: {scale.settings['description']}",
        "Comparable with the paper": "yes" if comparable["value"] else f"no: {comparable['reason']}",
        "Configuration": json.dumps(scale.overrides) if scale.overrides else "no settings beside the scale",
    }
    files = [scale.metrics_folder / f"{name}.runs.parquet" for name in scale.experiments()]
    if frames := [pd.read_parquet(file) for file in files if file.is_file()]:
        runs = pd.concat(frames, ignore_index=True)
        commits = sorted({commit[:12] + "+" * commit.endswith("+") for commit in runs["git_commit"]})
        found["Runs"] = f"{len(runs)}, {runs['wall_seconds'].sum() / 60:.0f} minutes in all"
        found["Machines"] = ", ".join(sorted(runs["device"].unique()))
        found["Commits"] = ", ".join(commits)
    return found


def escaped(text: str) -> str:
    """Text as reStructuredText without markup. Snakemake reads it as a template first, so an opening brace, which begins an
    expression, is separated from what follows (by an escaped blank, which is not shown)."""
    return re.sub(r"([\\*`_|<>{}])", r"\\\1", text).replace("{", "{\\ ")


# --- writing ---------------------------------------------------------------------------------------------------


def write(scale_name: str, overrides: Mapping[str, Any] | None = None) -> list[Page]:
    """Writes the site of a scale, and ``report.rst``; pages whose notebooks are gone are removed.

    Raises:
        ConfigurationError: unknown scale or override.
        MissingResourceError: no notebook has been executed.
    """
    scale = config.load(scale_name, overrides)
    folder, found = scale.results / "site", pages(scale)
    kept = {folder / page.href for page in found}
    if tables := sortable(scale):
        results.write_text(tables, folder / TABLES)
        kept.add(folder / TABLES)
    for file in folder.rglob("*.html"):
        if file not in kept:
            file.unlink()
    write_pages(found, folder)
    results.write_text(index(scale, found), folder / "index.html")
    results.write_text(landing(scale), scale.results / "report.rst")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.site", description="Executed notebooks as a static site.")
    parser.add_argument("scale", help="a file of workflow/scales")
    parser.add_argument("--overrides", default="{}", help="further settings of --config, a JSON object")
    options = parser.parse_args(arguments)
    try:
        found = write(options.scale, json_object(options.overrides, "--overrides"))
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    print(f"{len(found)} pages: results/{options.scale}/site/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
