"""README's section on results, from what is published: ``python -m ether.readme`` writes it.

The verdicts on the paper's claims, the averages of Table 4, and Figures 5 and 8 of ``results/published/small``. A test compares
README with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ether.config import exhibits
from ether.results import write_text

__all__ = ["BEGIN", "END", "PUBLISHED", "section", "written"]

BEGIN, END = "<!-- python -m ether.readme -->", "<!-- end of python -m ether.readme -->"
PUBLISHED = Path("results") / "published" / "small"
FIGURES = ("figure5", "figure8")


def _verdicts(folder: Path) -> Iterator[str]:
    """The sentences with which the page of the claims begins."""
    for line in (folder / "claims.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("- "):
            yield line
        elif line.startswith("|"):
            return


def _averages(folder: Path) -> Iterator[str]:
    cells = pd.read_parquet(folder / "tables" / "table4.parquet")
    yield "| method | #params | average, ours | average, the paper |"
    yield "|---|---|---|---|"
    for label, of_method in cells.groupby("label", sort=False):
        row = of_method.set_index("column")
        ours, paper = row.loc["Avg", ["ours", "low", "high"]], row.loc["Avg", "paper"]
        interval = f"{ours['ours']:.1f} [{ours['low']:.1f}, {ours['high']:.1f}]" if pd.notna(ours["ours"]) else "–"
        printed = f"{paper:.2f}" if pd.notna(paper) else "–"
        yield f"| {label} | {row.loc['#params', 'ours']:,.0f} | {interval} | {printed} |"


def section(root: Path = Path()) -> str:
    """The text between the markers, of the published results below the repository's root."""
    folder, known = root / PUBLISHED, exhibits()
    lines = [
        *_verdicts(folder),
        "",
        f"Every claim with its evidence: [`{PUBLISHED}/claims.md`]({PUBLISHED}/claims.md).",
        "",
        "Table 4 (GLUE), the average over eight tasks with its 95 % interval over seeds. Models and tasks of the small scale are",
        "the project's own, so only the order of the methods can be compared with the paper.",
        "",
        *_averages(folder),
    ]
    for name in FIGURES:
        file = PUBLISHED / "figures" / f"{name}.png"
        if (root / file).is_file():
            title = f"Figure {name.removeprefix('figure')}: {known[name].title}"
            lines += ["", f"![{title}]({file.as_posix()})", "", f"*{title}, at the small scale.*"]
    return "\n".join(lines)


def written(readme: str, root: Path = Path()) -> str:
    """README's text with the section in place of what is between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{section(root)}\n{END}{after}"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m ether.readme", description=__doc__).parse_args()  # takes no argument
    write_text(written(Path("README.md").read_text(encoding="utf-8")), Path("README.md"))
