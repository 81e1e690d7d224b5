"""The verdicts on all claims of a scale: the claims that its exhibits have judged, collected and counted.

In a notebook::

    from ether.exhibits import verdicts

    collected = verdicts.make(scale)
    collected.sentences()

`make` reads ``results/<scale>/{tables,figures}/<id>.claims.parquet`` of every exhibit that has been made, and writes
``results/<scale>/claims.parquet`` and the page ``claims.md``. It judges nothing again.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from ether import config, results
from ether.analysis import claims
from ether.config import ExhibitEntry
from ether.errors import MissingResourceError
from ether.exhibits import render
from ether.paper.claims import ADDED

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown

VERDICTS: tuple[str, ...] = get_args(claims.Verdict)
ADDITIONAL = ["decided_by"]  # columns after those of `ether.analysis.claims.COLUMNS`
# The reason that a sentence gives for a verdict.
REASONS = {
    "undecided": ", because the tests allow for both answers (where one of several would decide, corrected for their number)",
    "not testable here": ", because a method, a metric or a second unit is missing",
}
FEW = 3  # units below which a standard deviation is too uncertain to say how many more would decide a claim
# What a sentence says on the claims of a kind (`ether.analysis.claims.judge`).
KINDS = {"counted": "counted from shapes", "construction": "true by the construction of the methods", "measured": "measured"}


# --- one claim -------------------------------------------------------------------------------------------------


def claim_line(row: Any) -> dict[str, str]:
    """A judged claim as one row of text: verdict, effect, tests, the paper's digits, evidence."""
    effect = "" if math.isnan(row.effect) else f"{row.effect:+.3g}"
    if not math.isnan(row.low):
        effect += f" [{row.low:+.3g}, {row.high:+.3g}], n = {row.n}"
    verdict = row.verdict
    if verdict == "undecided":
        verdict += f"\n({decided_by(row)})" if row.n > 1 else "\n(one unit only)"
    return {
        "claim": row.claim,
        "source": row.source,
        "verdict": verdict,
        "effect": effect,
        "tests": f"{row.supporting} for, {row.contradicting} against, of {row.tests} ({row.quantifier})",
        "the paper's digits": row.paper,
        "evidence": row.evidence.replace("; ", "\n"),
    }


def decided_by(row: Any) -> str:
    """What would decide an undecided claim, or make an untestable one testable; '' for a decided claim."""
    if row.verdict == "not testable here":
        return "missing: " + re.sub(r"one (seed|task) only", r"a second \1", row.missing)
    if row.verdict != "undecided":
        return ""
    if row.n < 2:
        return f"a second {row.unit}"
    units = row.units or render.UNIT_NAMES[row.unit]
    if row.n < FEW:
        return f"further {units}: the spread of {row.n} says too little to tell how many"
    if pd.isna(row.units_needed):
        return f"more than 10,000 further {units}: the effect is at the boundary of the claim"
    some = units.removesuffix("s") if row.units_needed == 1 else units
    return f"{row.units_needed:,} further {some}; with the same mean and spread it would be {row.would_be}"


def benchmark(entry: ExhibitEntry) -> str:
    """The heading of an exhibit's claims: ``BENCHMARK`` of the module with the claims, or the module's name."""
    name = f"ether.paper.claims.{entry.module}"
    found = getattr(importlib.import_module(name), "BENCHMARK", None) if importlib.util.find_spec(name) else None
    return found or entry.module.capitalize()


# --- collecting ------------------------------------------------------------------------------------------------


def _with_missing_in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """Stems in `missing` replaced by labels."""
    labels = {stem: str(method["label"]) for stem, method in config.methods().items()}
    words = frame["missing"].map(lambda text: " ".join(labels.get(word, word) for word in text.split(" ")))
    return frame.assign(missing=words)


def collect(folder: Path, scale_name: str) -> pd.DataFrame:
    """The judged claims of every exhibit in a folder, in the order of the exhibits.

    Args:
        folder: ``results/<scale>``, or a folder of the same layout.
        scale_name: of the scale, for the message of an error.

    Returns:
        The columns of `ether.analysis.claims.COLUMNS`, where `benchmark` is always a heading, and `decided_by`, see the function
        of that name.

    Raises:
        MissingResourceError: no exhibit with claims has been made.
    """
    frames = []
    for entry in config.exhibits().values():
        file = entry.files(folder)[-1]
        if file.is_file() and len(judged := pd.read_parquet(file)):
            headings = judged["benchmark"].where(judged["benchmark"] != "", benchmark(entry))
            frames.append(judged.assign(benchmark=headings))
    if not frames:
        raise MissingResourceError(
            f"No judged claims under {folder}: run `snakemake --cores 1 claims --config scale={scale_name}`, which makes "
            "the tables and figures first."
        )
    found = _with_missing_in_words(pd.concat(frames, ignore_index=True))
    found["decided_by"] = [decided_by(row) for row in found.itertuples()]
    return found[[*claims.COLUMNS, *ADDITIONAL]]


def make(scale_name: str = "small", overrides: dict[str, Any] | None = None) -> Collected:
    """Collects the claims of a scale and writes ``results/<scale>/claims.parquet`` and ``claims.md``.

    Raises:
        ConfigurationError: unknown scale or override.
        MissingResourceError: no exhibit with claims has been made.
    """
    scale = config.load(scale_name, overrides)
    made = Collected(scale.name, collect(scale.results, scale.name))
    made.write(scale.results)
    return made


# --- the page --------------------------------------------------------------------------------------------------


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _inside(heading: str) -> str:
    """A heading within a sentence: 'GLUE', but 'instruction tuning'."""
    return heading if heading[1:2].isupper() else heading[:1].lower() + heading[1:]


@dataclass(frozen=True)
class Collected:
    """The claims of a scale, and the cells of their notebook."""

    scale_name: str
    frame: pd.DataFrame  # from `collect`

    def write(self, folder: Path) -> None:
        """Writes ``claims.parquet`` and ``claims.md`` to a folder."""
        results.write_parquet(self.frame, folder / "claims.parquet")
        results.write_text(self.markdown(), folder / "claims.md")

    @property
    def of_the_paper(self) -> pd.DataFrame:
        """The claims that the paper makes, without those that this suite adds."""
        return self.frame[self.frame["source"] != ADDED]

    def quotes(self) -> list[str]:
        """One sentence for each verdict, with the number of claims by benchmark, and one on our additional statements."""
        every = self.of_the_paper
        found = []
        for verdict in VERDICTS:
            rows = every[every["verdict"] == verdict]
            if rows.empty:
                continue
            counted = rows.groupby("benchmark", sort=False).size()
            places = _listed(f"{count} on {_inside(str(name))}" for name, count in counted.items())
            found.append(
                f"At scale {self.scale_name}, {len(rows)} of {len(every)} statements of the paper "
                f"{'is' if len(rows) == 1 else 'are'} {verdict}{REASONS.get(verdict, '')}: {places}."
            )
            if verdict == "reproduced" and set(rows["kind"]) != {"measured"}:
                numbers = rows["kind"].value_counts()
                parts = _listed(f"{numbers[kind]} {words}" for kind, words in KINDS.items() if kind in numbers)
                found[-1] = f"{found[-1].removesuffix('.')} ({parts})."
        added = self.frame[self.frame["source"] == ADDED]
        if len(added):
            counts = _listed(f"{count} {verdict}" for verdict, count in self._counts(added).items() if count)
            found.append(f"Of {len(added)} statement{'s' * (len(added) != 1)} that this suite adds: {counts}.")
        return found

    @staticmethod
    def _counts(frame: pd.DataFrame) -> dict[str, int]:
        return {verdict: int((frame["verdict"] == verdict).sum()) for verdict in VERDICTS}

    def counts(self) -> pd.DataFrame:
        """Numbers of the paper's claims: one row per benchmark, one column per verdict, with sums."""
        groups = self.of_the_paper.groupby("benchmark", sort=False)
        table = pd.DataFrame({name: self._counts(rows) for name, rows in groups}).T.rename_axis("benchmark")
        table["in all"] = table.sum(axis=1)
        table.loc["in all"] = table.sum()
        return table

    def undecided(self) -> pd.DataFrame:
        """For every claim without a decision: the claim and what would decide it."""
        rows = self.frame[self.frame["decided_by"] != ""]
        columns = {"benchmark": "benchmark", "claim": "claim", "verdict": "verdict", "decided_by": "what would decide it"}
        return rows[list(columns)].rename(columns=columns)

    def _groups(self) -> Iterator[tuple[str, pd.DataFrame]]:
        for name, rows in self.frame.groupby("benchmark", sort=False):
            yield str(name), rows.sort_values("verdict", key=lambda column: column.map(VERDICTS.index), kind="stable")

    def markdown(self) -> str:
        """The page as Markdown: the sentences, the counts, and the claims by benchmark. HTML in it is escaped."""
        lines = [f"# The paper's claims at scale {self.scale_name}", "", *(f"- {quote}" for quote in self.quotes()), ""]
        lines += _markdown_table(self.counts().reset_index())
        for name, rows in self._groups():
            lines += ["", f"## {name}", ""]
            lines += _markdown_table(
                pd.DataFrame(
                    {
                        "claim": rows["claim"],
                        "source": rows["source"],
                        "exhibit": rows["exhibit"],
                        "verdict": rows["verdict"],
                        "tests for / against / all": [
                            f"{r.supporting} / {r.contradicting} / {r.tests}" for r in rows.itertuples()
                        ],
                        "what would decide it": rows["decided_by"],
                    }
                )
            )
        return "\n".join([*lines, ""])

    # --- cells ---

    def sentences(self) -> Markdown:
        """The sentences of `quotes`."""
        from IPython.display import Markdown

        return Markdown("\n".join(f"- **{quote}**" for quote in self.quotes()))

    def page(self) -> HTML:
        """The claims by benchmark, with effect, tests and evidence."""
        from IPython.display import HTML

        parts = []
        for name, rows in self._groups():
            lines = [{"exhibit": row.exhibit} | claim_line(row) for row in rows.itertuples()]
            parts.append(f"<h3>{html.escape(name)}</h3>{render.text_table(pd.DataFrame(lines))}")
        return HTML("".join(parts))

    def what_would_decide(self) -> HTML | Markdown:
        """The table of `undecided`."""
        from IPython.display import HTML, Markdown

        rows = self.undecided()
        return HTML(render.text_table(rows)) if len(rows) else Markdown("Every claim is decided.")


def _markdown_table(frame: pd.DataFrame) -> list[str]:
    def text(value: object) -> str:
        return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")

    rows = [frame.columns, *frame.itertuples(index=False)]
    lines = ["| " + " | ".join(map(text, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(frame.columns), *lines[1:]]
