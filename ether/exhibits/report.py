"""Creates a table or figure, and provides the cells shared by the notebooks of all exhibits.

In a notebook::

    from ether.exhibits import report

    exhibit = report.make("table4", scale, overrides)
    exhibit.banner()

Each method of `Report` returns an object that a notebook displays.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from ether import config, results, targets
from ether.analysis import claims, rates
from ether.analysis import runs as collected
from ether.config import ExhibitEntry, Scale
from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.exhibits import common, job_report, render, verdicts
from ether.exhibits.job_report import shown as shown
from ether.paper import published

if TYPE_CHECKING:
    from IPython.display import HTML, Image, Markdown
    from matplotlib.figure import Figure

# The hyperparameters shown in the table of hyperparameters, if a method has them.
HYPERPARAMETERS = (
    "learning_rate", "batch_size", "accumulation", "epochs", "max_steps", "evaluations", "schedule", "warmup", "warmup_steps",
    "weight_decay", "max_grad_norm", "dropout", "max_length",
)  # fmt: skip


# --- making ----------------------------------------------------------------------------------------------------


def make(exhibit: str, scale_name: str = "small", overrides: Mapping[str, Any] | None = None) -> Report:
    """Creates a table or figure and writes its files.

    Args:
        exhibit: an id of ``workflow/exhibits.yaml``.
        scale_name: a file of ``workflow/scales``.
        overrides: further settings of ``--config``.

    Returns:
        The exhibit. Its files ``results/<scale>/tables/<id>.{parquet,csv,md}`` or ``figures/<id>.{png,pdf,parquet}``, and
        ``<id>.claims.parquet`` in the same folder, have been written.

    Raises:
        ConfigurationError: an unknown exhibit, scale or override, or a module without the exhibit's function.
        MissingResourceError: the runs that it reads are missing.
    """
    known = config.exhibits()
    if exhibit not in known:
        raise one_of("exhibit", exhibit, known, "workflow/exhibits.yaml")
    entry, scale = known[exhibit], config.load(scale_name, overrides)
    module = importlib.import_module(f"ether.exhibits.{entry.module}")
    function: Callable[[Scale], Any] | None = getattr(module, exhibit, None)
    if function is None:
        raise ConfigurationError(
            f"workflow/exhibits.yaml names ether/exhibits/{entry.module}.py for {exhibit}, which has no function of that "
            f"name: add `def {exhibit}(scale)`, or name another module."
        )
    if error := targets.obstacle(entry, scale):
        raise error
    figure, data = function(scale) if entry.kind == "figure" else (None, function(scale))
    made = Report(entry, scale, module, data, figure, _judged(entry, scale, module))
    made.write()
    return made


def _paper_table(entry: ExhibitEntry) -> published.PublishedTable:
    name = entry.columns_of or entry.id
    if name not in published.load():
        raise one_of("table of the paper", name, published.load(), f"workflow/exhibits.yaml, {entry.id} (or its columns_of)")
    return published.load()[name]


def _judged(entry: ExhibitEntry, scale: Scale, module: ModuleType) -> pd.DataFrame:
    """The verdicts on an exhibit's claims; a frame without rows if it has none."""
    found: Sequence[claims.Claim] = ()
    if importlib.util.find_spec(f"ether.paper.claims.{entry.module}"):
        every = importlib.import_module(f"ether.paper.claims.{entry.module}").CLAIMS
        found = [claim for claim in every if claim.exhibit == entry.id]
    if not found:
        return claims.judge((), pd.DataFrame(), "seed")
    if entry.evidence:
        module = importlib.import_module(f"ether.exhibits.{entry.evidence}")
    evidence = module.evidence(entry.id, scale)
    units = {config.experiments()[name].unit for name in entry.experiments}
    if len(units) != 1 and "unit" not in evidence:
        raise ConfigurationError(
            f"The experiments {', '.join(entry.experiments)} of {entry.id} have the units "
            f"{' and '.join(sorted(units)) or 'none'}, so `evidence` of ether/exhibits/{entry.evidence_module}.py needs a column "
            "`unit`."
        )
    metrics: dict[str, claims.MetricInfo] = (
        module.metrics() if hasattr(module, "metrics") else dict(getattr(module, "METRICS", {}))
    )
    printed: dict[tuple[str, str], float] = module.printed(entry.id) if hasattr(module, "printed") else {}
    if entry.kind == "table" and entry.experiments:
        paper = _paper_table(entry)
        for column in (*paper.columns, *paper.beside):
            digits = ".3g" if column.digits is None else f".{column.digits}f"
            metrics[column.metric] = claims.MetricInfo(column.name, column.better or "higher", digits)
        for cell in paper.cells():
            if cell.value is not None:
                printed[cell.method, paper.column(cell.column).metric] = cell.value
    labels = {stem: str(method["label"]) for stem, method in config.methods().items()}
    return claims.judge(found, evidence, next(iter(units), claims.EXACT), metrics=metrics, labels=labels, paper=printed)


# --- report ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A table or figure, and its notebook cells."""

    entry: ExhibitEntry
    settings: Scale
    module: ModuleType  # of ether.exhibits
    data: pd.DataFrame  # the cells of a table (`ether.analysis.cells`), or the numbers of a figure
    figure: Figure | None
    judged: pd.DataFrame  # the judged claims, with the columns of `ether.analysis.claims.COLUMNS`

    # --- files ---

    @property
    def title(self) -> str:
        """'Table 4: GLUE'."""
        return common.title(self.entry)

    @property
    def paper(self) -> published.PublishedTable:
        """The paper's table, or the table whose columns this exhibit uses.

        Raises:
            ConfigurationError: neither is a table of the paper.
        """
        return _paper_table(self.entry)

    def write(self) -> None:
        """Writes the exhibit's files, each under a temporary name that is then renamed."""
        files = {file.name.removeprefix(f"{self.entry.id}."): file for file in self.entry.files(self.settings.results)}
        results.write_parquet(self.data, files["parquet"])
        if self.figure is not None:
            for extension, metadata in (("png", {}), ("pdf", {"CreationDate": None})):  # reproducible without a date
                with results.atomic(files[extension]) as temporary:
                    self.figure.savefig(temporary, format=extension, dpi=300, metadata=metadata)
        else:
            results.write_text(self.data.to_csv(index=False), files["csv"])
            results.write_text(self._markdown(), files["md"])
        results.write_parquet(self.judged, files["claims.parquet"])

    def _markdown(self) -> str:
        if not self.entry.experiments:
            return str(self.module.markdown(self.entry.id, self.data))
        notes = [f"Scale {self.settings.name!r}: {self.settings.settings['description']}."]
        comparable = self.settings.settings["comparable"]
        if not comparable["value"]:
            notes.append(f"The paper's numbers are for orientation only: {comparable['reason']}.")
        notes += render.reading_guide(self.paper, self.data)
        notes += [f"Protocol: {line}" for line in self.settings.protocol(*self.entry.experiments)]
        return render.to_markdown(self.paper, self.data, self.title, notes)

    # --- runs ---

    @functools.cached_property
    def _read(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        found = [collected.read(self.settings, name) for name in self.entry.experiments]
        if not found:
            raise ConfigurationError(f"{self.entry.id} is exact: it reads no runs.")
        runs, metrics = zip(*found, strict=True)
        return pd.concat(runs, ignore_index=True), pd.concat(metrics, ignore_index=True)

    @property
    def runs(self) -> pd.DataFrame:
        """The runs of all its experiments."""
        return self._read[0]

    @property
    def metrics(self) -> pd.DataFrame:
        """The measured values of all its experiments."""
        return self._read[1]

    # --- cells ---

    def banner(self) -> Markdown:
        """Scale, number of runs, seeds, machine, and whether the paper's numbers are comparable."""
        runs, scale = self.runs, self.settings
        ended = runs.loc[runs["status"] != "finished", "status"].value_counts()
        minutes = runs["wall_seconds"].sum() / 60
        text = (
            f"**Scale `{scale.name}`: {scale.settings['description']}.** {len(runs)} runs, seeds "
            f"{', '.join(map(str, sorted(runs['seed'].unique())))}; {minutes:.1f} minutes of runs in all on "
            f"{' / '.join(sorted(runs['device'].unique()))}, {runs['threads'].max()} thread(s) a run; "
            f"{', '.join(f'{count} {status}' for status, count in ended.items()) or 'all finished'}."
        )
        if scale.replay:
            text += f" Read from `{scale.replay}`."
        comparable = scale.settings["comparable"]
        if self.figure is None and not comparable["value"]:
            text += f"\n\nThe paper's numbers are greyed: {comparable['reason']}."
        return _markdown(text)

    def table(self) -> HTML:
        """The table: our numbers with intervals, and the paper's numbers."""
        return _html(render.to_html(self.paper, self.data))

    def reading_guide(self) -> Markdown:
        """Explanation of the table: interval, unit and number of units, bold type, kinds of columns."""
        return _list(render.reading_guide(self.paper, self.data))

    def picture(self, figure: Figure | None = None) -> Image:
        """The exhibit's figure, or another figure, as an image.

        Raises:
            ConfigurationError: the exhibit is a table and no figure was given.
        """
        from IPython.display import Image

        drawing = figure if figure is not None else self.figure
        if drawing is None:
            raise ConfigurationError(f"{self.entry.id} is a table: give `picture` a figure.")
        stream = io.BytesIO()
        drawing.savefig(stream, format="png", dpi=120)
        width = round(drawing.get_figwidth() * 80)
        return Image(data=stream.getvalue(), format="png", width=width)

    def claims(self) -> HTML | Markdown:
        """The verdicts on the paper's claims about the exhibit.

        For each claim: the verdict, the effect with its interval, the tests for and against, the verdict of the paper's digits,
        and the number of additional units that would decide an undecided claim.
        """
        if self.judged.empty:
            return _markdown("No claim is judged with this exhibit.")
        rows = [verdicts.claim_line(row) for row in self.judged.itertuples()]
        return _html(render.text_table(pd.DataFrame(rows)))

    def parameter_counts(self) -> HTML:
        """The counting conventions of the column #params, and the comparison with the paper's digits."""
        rows = self.data[self.data["column"] == "#params"]
        frame = pd.DataFrame(
            {
                "method": rows["label"],
                "exact": rows["ours"].map("{:,.0f}".format),
                "paper": rows["printed"].where(rows["printed"] != "", render.NOTHING),
                "counted": rows["note"],
            }
        )
        return _html(render.text_table(frame))

    def protocol(self) -> Markdown:
        """Differences from the paper's protocol at this scale."""
        return _list(self.settings.protocol(*self.entry.experiments))

    def caption(self) -> Markdown:
        """The data of a figure of images, if its module describes them."""
        return _markdown(self.module.caption(self.entry.id, self.settings))

    def hyperparameters(self) -> pd.DataFrame:
        """The hyperparameters of each method's runs; a range where they differ between runs."""
        found: dict[str, dict[str, str]] = {}
        for experiment in self.entry.experiments:
            specs = [spec for spec in config.runs(self.settings, experiment) if spec.adapt["kind"] != "none"]
            for stem in dict.fromkeys(spec.method for spec in specs):
                values = [spec.hyperparameters for spec in specs if spec.method == stem]
                row = {name: _range([v.get(name) for v in values]) for name in HYPERPARAMETERS}
                found[config.label(stem) + (f" ({experiment})" if len(self.entry.experiments) > 1 else "")] = row
        frame = pd.DataFrame.from_dict(found, orient="index")
        return frame.loc[:, (frame != render.NOTHING).any()].rename_axis("method")

    def learning_rates(self) -> HTML | Markdown:
        """The grid of learning rates from which the rates in the methods' files were chosen, run here or committed.

        Scores of the grid, then for each method the best rate, its score, whether it is at the grid's edge, and the rate in the
        method's file with its score.
        """
        try:
            grid = self.module.rate_grid(self.settings)
        except MissingResourceError as error:
            return _markdown(f"{error}")
        return _html(_grid_table(grid) + _choice_table(grid) + self._part_of_the_grid(grid))

    def _part_of_the_grid(self, grid: pd.DataFrame) -> str:
        """A sentence, where the grid lacks rates, tasks or seeds of that on which the rates in the methods' files were chosen."""
        default, complete = (config.load(self.settings.name, {"complete": whole}) for whole in (False, True))
        names = (*self.entry.optional, *self.entry.experiments)
        for name in (name for name in names if name in default.experiments()):
            section = default.experiment(name)
            if "learning_rates" not in section or "complete" not in section:
                continue
            expected = [run for run in config.runs(complete, name) if run.adapt["kind"] != "none"]
            whole = {(run.hyperparameters["learning_rate"], run.task, run.seed) for run in expected}
            if whole - set(zip(grid["learning_rate"], grid["task"], grid["seed"], strict=True)):
                size = [len(set(values)) for values in zip(*whole, strict=True)]
                return (
                    "<p>This is a part of the grid on which the rates in the methods' files were chosen. The complete one "
                    f"(learning rates: {size[0]}, tasks: {size[1]}, seeds: {size[2]}) is published; "
                    "<code>--config complete=true</code> runs it.</p>"
                )
        return ""

    def cost(self) -> pd.DataFrame:
        """Time and memory of the runs of each method, in the order of the table's rows."""
        found = job_report.cost(self.runs)
        if "label" not in self.data:
            return found
        order = {label: place for place, label in enumerate(self.data["label"].unique())}
        return found.sort_index(key=lambda labels: labels.map(lambda label: order.get(label, len(order))), kind="stable")

    def origin(self) -> HTML:
        """Provenance of the numbers: model, data, machine, versions and commit."""
        return job_report.origin(self.runs)


# --- pieces of text --------------------------------------------------------------------------------------------


def _markdown(text: str) -> Markdown:
    """Markdown without HTML: labels, descriptions, paths and messages come from files."""
    from IPython.display import Markdown

    return Markdown(render.plain(text))


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)


def _list(lines: Sequence[str]) -> Markdown:
    return _markdown("\n".join(f"- {line}" for line in lines))


def _range(values: Sequence[Any]) -> str:
    """One value, or the minimum and maximum of several numbers, or all of several words; a dash if there is none."""
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    if not distinct:
        return render.NOTHING
    texts = [f"{value:g}" if isinstance(value, int | float) else str(value) for value in distinct]
    if len(distinct) == 1:
        return texts[0]
    if all(isinstance(value, int | float) for value in distinct):
        return f"{min(distinct):g} to {max(distinct):g}"
    return ", ".join(texts)


def _grid_table(grid: pd.DataFrame) -> str:
    """Mean scores of a grid of learning rates: one row per method, one column per rate."""
    tried = grid[grid["learning_rate"].notna()]
    wide = tried.pivot_table(index="label", columns="learning_rate", values="value", sort=False).sort_index(axis=1)
    text = wide.map(_score).rename(columns=lambda rate: f"{rate:g}").rename_axis("score at learning rate")
    return render.text_table(text.reset_index())


def _choice_table(grid: pd.DataFrame) -> str:
    chosen = rates.choose(grid)
    edges = ["yes" if edge else "no" for edge in chosen["at_edge"]]
    return render.text_table(
        pd.DataFrame(
            {
                "method": chosen["method"].map(config.label),
                "best rate": chosen["best_rate"].map(_rate),
                "its score": chosen["best_score"].map(_score),
                "at the grid's edge": edges,
                "rate in the method's file": chosen["configured_rate"].map(_rate),
                "its score ": chosen["configured_score"].map(_score),
                "worst score": chosen["worst"].map(_score),
                f"orders of magnitude that keep {rates.KEPT:.0%}": chosen["width"].map("{:.1f}".format),
                "seeds": chosen["seeds"],
            }
        )
    )


def _rate(value: float) -> str:
    return render.NOTHING if math.isnan(value) else f"{value:g}"


def _score(value: float) -> str:
    return render.NOTHING if math.isnan(value) else f"{value:.4g}"
