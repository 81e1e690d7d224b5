"""Exhibits on subject-driven generation: Tables 2, 6 and 11, and Figures 4, 7, 8 and 9.

The right half of Table 6 and the lower half of Figure 7 are of controllable generation; they are shown if it has been run.

Columns of the tables are measured after the last step on all prompts (split `validation`). For columns that end in ", best",
the evaluation is selected by the score on one half of the prompts, and measured on the other half (split `best`).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ether import config, targets
from ether.analysis import runs
from ether.analysis.cells import Cell
from ether.analysis.claims import MetricInfo
from ether.analysis.separation import separation
from ether.config import Scale
from ether.errors import MissingResourceError
from ether.exhibits import common, energy, learning_rates
from ether.exhibits.common import caption as caption
from ether.exhibits.energy import CONTROL, CONTROL_RATES
from ether.exhibits.exact import parameter_cells
from ether.paper import published
from ether.paper.claims.subject import AT_SAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAST, CHOSEN, REAL = "validation", "best", "real"  # splits
PHOTOGRAPHS = "real-images"  # the row that compares the photographs with one another
DRIFT = "Drift"  # a column
COLLAPSED = 0.5  # below this share of images with the prompt's background, the model no longer follows the prompt

# Of Table 6: OFT and Naive at the same learning rate, by experiment: its grid, the metrics, and the split and score by which the
# rate is selected.
SAME = {
    "subject": ("subject_rates", ("dino", "clip_i", "clip_t", "lpips_real"), ("selection", "score")),
    CONTROL: (CONTROL_RATES, ("miou", "accuracy", "fid"), ("validation", "miou")),
}

# Metrics of the claims that are columns of no table.
METRICS = {
    **energy.METRICS,
    **{
        f"{metric}{AT_SAME}": MetricInfo(f"{name}, same learning rate", better, form)
        for metric, (name, better, form) in {
            "dino": ("DINO", "higher", ".3f"),
            "clip_i": ("CLIP-I", "higher", ".3f"),
            "clip_t": ("CLIP-T", "higher", ".3f"),
            "lpips_real": ("LPIPS", "higher", ".3f"),
            "miou": ("mIoU", "higher", ".2f"),
            "accuracy": ("accuracy", "higher", ".2f"),
            "fid": ("FID", "lower", ".2f"),
        }.items()
    },
    "transformation_distance": MetricInfo("‖T − I‖", format=".2f"),
    "weight_distance": MetricInfo("‖W′ − W‖", format=".2f"),
}


# --- tables ----------------------------------------------------------------------------------------------------


def _photographs(scale: Scale, experiment: str, metrics: list[str]) -> pd.DataFrame:
    """The photographs of each subject compared with one another. Equal for all runs: one row per subject and metric."""
    values = common.last_values(scale, experiment, REAL, metrics).dropna(subset="value")
    once = values.drop_duplicates(["task", "metric"])
    return once.assign(method=PHOTOGRAPHS, adapt_kind="none", seed=0, status="finished", reason="")


def _values(exhibit: str, scale: Scale, experiment: str) -> pd.DataFrame:
    """The values of a table's columns after the last step, and those of the photographs if the table has this row."""
    paper = published.load()[exhibit]
    metrics = list(common.metric_columns(paper))
    found = common.last_values(scale, experiment, LAST, metrics, or_published=experiment == CONTROL)
    return pd.concat([_photographs(scale, experiment, metrics), found]) if PHOTOGRAPHS in paper.references else found


def _experiments(exhibit: str, scale: Scale) -> list[str]:
    """The experiments whose columns a table has: those that it requires, and `CONTROL` if it has been run."""
    entry = config.exhibits()[exhibit]
    return [*entry.experiments, *common.present(scale, [name for name in entry.optional if name == CONTROL])]


def _table(exhibit: str, scale: Scale) -> pd.DataFrame:
    """A table over all its experiments; each experiment provides the columns that it measures."""
    paper = published.load()[exhibit]
    experiments = _experiments(exhibit, scale)
    methods = {
        stem: method
        for experiment in experiments
        for stem, method in targets.printed_methods(exhibit, config.chosen_methods(scale, experiment)).items()
    }
    methods = {stem: methods[stem] for stem in config.methods() if stem in methods}
    columns = {column.name: column.metric for column in paper.columns}
    trained = [stem for stem, method in methods.items() if method["adapt"]["kind"] != "none"]
    cells: list[Cell] = parameter_cells(exhibit, trained) if "#params" in columns else []
    for experiment in experiments:
        rows = {stem: paper.label(stem) for stem in (*paper.references, *methods)}
        unit = common.unit_of(experiment)
        cells += common.measured_cells(paper, rows, _values(exhibit, scale, experiment), unit, scale)
        chosen = common.last_values(scale, experiment, CHOSEN, columns.values(), or_published=experiment == CONTROL)
        rows = {stem: paper.label(stem) for stem in methods}
        cells += common.measured_cells(paper, rows, chosen, unit, scale, published.BEST)
    cells = [_by_definition(cell) if cell.column == DRIFT and cell.method not in trained else cell for cell in cells]
    return common.table(cells, (*paper.references, *methods))


def _by_definition(cell: Cell) -> Cell:
    """The empty cell of a row without tuning in the column Drift. Its 0 would be printed as the best value."""
    return dataclasses.replace(cell, ours=math.nan, low=math.nan, high=math.nan, n=0, unit="", note="0 by definition")


def table2(scale: Scale) -> pd.DataFrame:
    """Table 2: subject-driven generation; LPIPS with both pairings of images."""
    return _table("table2", scale)


def table6(scale: Scale) -> pd.DataFrame:
    """Table 6: OFT against Naive."""
    return _table("table6", scale)


def table11(scale: Scale) -> pd.DataFrame:
    """Table 11: one-sided against two-sided ETHER+."""
    return _table("table11", scale)


def by_subject(scale: Scale, exhibit: str = "table2") -> pd.DataFrame:
    """The values of a table for each subject, averaged over seeds: one row per method, columns (table column, subject)."""
    paper = published.load()[exhibit]
    columns = common.metric_columns(paper)
    values = evidence(exhibit, scale)
    values = values[values["metric"].isin(columns)]
    values = values.assign(method=values["method"].map(paper.label), column=[columns[m].name for m in values["metric"]])
    wide = values.pivot_table(index="method", columns=["column", "task"], values="value", sort=False)
    return wide[[column.name for column in columns.values() if column.name in wide]]


def separations(scale: Scale, metrics: tuple[str, ...] = ("dino", "drift")) -> pd.DataFrame:
    """The F test of Table 2's tuned methods for each metric, with subjects as blocks (`ether.analysis.separation`)."""
    values = evidence("table2", scale)
    tuned = values[values["adapt_kind"] != "none"]
    columns = common.metric_columns(published.load()["table2"])
    found = {columns[metric].name: separation(tuned[tuned["metric"] == metric])._asdict() for metric in metrics}
    names = {"f": "F", "p": "p", "p_corrected": "p, Greenhouse-Geisser", "methods": "methods", "blocks": "subjects"}
    return pd.DataFrame.from_dict(found, orient="index")[list(names)].rename(columns=names).rename_axis("column")


def learned(scale: Scale) -> pd.DataFrame:
    """DINO of each row of Table 2, its share of the photographs' own, and its share of the best tuned method's."""
    values = evidence("table2", scale)
    dino = values[values["metric"] == "dino"]
    means = dino.groupby(["method", "task"])["value"].mean().groupby("method").mean()
    best = means.reindex(dino.loc[dino["adapt_kind"] != "none", "method"].unique()).max()
    order = [stem for stem in (PHOTOGRAPHS, *config.methods()) if stem in means.index]
    ordered, label = means[order], published.load()["table2"].label
    return pd.DataFrame(
        {
            "DINO": ordered,
            "share of the photographs'": ordered / means.get(PHOTOGRAPHS, math.nan),
            "share of the best method's": ordered / best,
        }
    ).rename(index=label)


def rate_grid(scale: Scale) -> pd.DataFrame:
    """Scores of the grid of Figure 4 on the half of the prompts that is never reported, for `ether.analysis.rates.choose`.

    The score is the mean of the scale's selection metrics. It is read from the runs of this scale, or from the committed runs.
    """
    return learning_rates.for_choice(learning_rates.grid(scale, "subject_rates", "selection", ["score"], or_published=True))


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on an exhibit of this module.

    Tables: the columns' metrics after the last step on all prompts. Table 6 also has those of OFT and Naive at the same learning
    rate, with the suffix `AT_SAME`. Figure 7: see `ether.exhibits.energy`. The evidence on Figure 4 is in
    `ether.exhibits.robustness`.
    """
    if exhibit == "figure7":
        return pd.concat([energy.evidence(scale, half) for half in energy.halves(scale)], ignore_index=True)
    frames = [
        common.evidence_of(_values(exhibit, scale, experiment)).assign(unit=common.unit_of(experiment))
        for experiment in _experiments(exhibit, scale)
    ]
    if exhibit == "table6":
        grids = [SAME[experiment][0] for experiment in _experiments(exhibit, scale)]
        known = common.present(scale, grids)
        frames += [_same_setting(scale, name) for name in _experiments(exhibit, scale) if SAME[name][0] in known]
    return pd.concat(frames, ignore_index=True)


def _same_setting(scale: Scale, experiment: str) -> pd.DataFrame:
    """Evidence on OFT and Naive at the same learning rate of a grid: metrics that end in `AT_SAME`.

    The rate is the common one with the highest score, averaged over both methods.
    """
    name, metrics, (split, score) = SAME[experiment]
    grids = [
        learning_rates.grid(scale, name, of_split, of_metrics, or_published=True)
        for of_split, of_metrics in ((LAST, list(metrics)), (split, [score]))
    ]
    grids = [grid[grid["method"].isin(("oft-n4", energy.NAIVE))] for grid in grids]
    rates = energy.common_rates(grids[1])
    if not rates or grids[1]["method"].nunique() < 2:
        return pd.DataFrame(columns=common.EVIDENCE_COLUMNS)
    means = grids[1].groupby("learning_rate")["value"].mean()[rates]
    found = grids[0][grids[0]["learning_rate"] == means.idxmax()]
    return common.evidence_of(found.assign(metric=found["metric"] + AT_SAME)).assign(unit=common.unit_of(name))


# --- figures ---------------------------------------------------------------------------------------------------


PANELS = {"transformation_distance": "‖T − I‖, mean over layers and sides", "weight_distance": "‖W′ − W‖, all layers"}


def figure4(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: distance of the transformations from the identity (left) and of the weights (right) against the learning rate."""
    from ether.exhibits.plots import curves, legend_beside
    from ether.exhibits.style import new_figure

    values = [
        common.last_values(scale, "subject_rates", split, metrics)
        for split, metrics in (("geometry", PANELS), (LAST, ("dino", "clip_t", "background", "drift")))
    ]
    found = pd.concat(values, ignore_index=True)
    data = common.labelled(found.dropna(subset="value"))
    diverged = found[found["status"] == "diverged"].drop_duplicates(["method", "learning_rate"])
    figure = new_figure(9.4, 3.8)
    panels = figure.subplots(1, 2)
    for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
        curves(axes, data[data["metric"] == metric], "learning_rate", common.unit_of("subject_rates"))
        axes.set(xscale="log", yscale="log", xlabel="learning rate")
        axes.set_title(title, fontsize=11, pad=18)
        axes.grid(alpha=0.25, which="major")
        _diverged(axes, diverged[diverged["method"].isin(data.loc[data["metric"] == metric, "method"])])
    legend_beside(panels[1])
    return figure, data


def _diverged(axes: Any, runs_: pd.DataFrame) -> None:
    """A cross at the upper edge of a panel for every method and learning rate at which a run diverged, and has no distance."""
    from ether.exhibits.style import INK, style

    above = axes.get_xaxis_transform()
    for place, of_method in enumerate(runs_.groupby("method", sort=False)):
        stem, rows = of_method
        heights = [1.02 + 0.035 * place] * len(rows)
        axes.plot(rows["learning_rate"], heights, "x", color=style(str(stem))[0], markersize=6, transform=above, clip_on=False)
    if len(runs_):
        axes.plot([], [], "x", color=INK, markersize=6, label="a run diverged")


def figure7(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 7: the change of the hyperspherical energy by fine-tuning, at each method's rate and at equal rates.

    Above: subject-driven generation. Below, if it has been run: semantic map to image.
    """
    from ether.exhibits.style import GREY, new_figure

    halves = energy.halves(scale)
    frames = [common.labelled(energy.energies(scale, half).dropna(subset="value")).assign(experiment=half[0]) for half in halves]
    figure = new_figure(9.8, 3.9 * 2 * len(halves))
    panels = figure.subplots(2 * len(halves), 2, sharey=True, squeeze=False)
    names = {"subject": "subject-driven generation", CONTROL: "semantic map to image"}
    for number, (half, of_half) in enumerate(zip(halves, frames, strict=True)):
        for row, rates in zip(panels[2 * number : 2 * number + 2], (energy.OWN, energy.EQUAL), strict=True):
            of_row = of_half[of_half["rates"] == rates]
            for axes, (side, title) in zip(row, energy.SIDES.items(), strict=True):
                energy.bars(axes, of_row, f"he_difference_{side}")
                found = ", ".join(f"{rate:g}" for rate in sorted(of_row["learning_rate"].unique())) or "none"
                which = "each method at its own learning rate" if rates == energy.OWN else f"learning rate {found} for all"
                where = f"{names[half[0]]}, " if len(halves) > 1 else ""
                axes.set_title(f"{where}{title}\n{which}", fontsize=10)
            row[0].set_ylabel("relative change of\nhyperspherical energy")
            edge = row[1].get_yaxis_transform()  # outside the panel, because the bars would hide it
            row[1].text(
                1.01, energy.UNCHANGED, "unchanged\nbelow", transform=edge, ha="left", va="center", fontsize=8, color=GREY
            )
    return figure, pd.concat(frames, ignore_index=True)


def _factors(scale: Scale) -> pd.DataFrame:
    """One row per run: method, learning rate, factor, task, seed and status, and the scores `dino`, `clip_t`, `background` and
    `drift`, which are NaN if the run saved no images."""
    scores = ["dino", "clip_t", "background", "drift"]
    values = runs.measured(scale, "subject_factors", LAST, scores)
    keys = [column for column in runs.RUN_INFO if column != "reason"]
    wide = values.pivot(index="run_id", columns="metric", values="value")[scores]
    return common.labelled(values.drop_duplicates("run_id")[keys].join(wide, on="run_id").reset_index(drop=True))


def factor_name(factor: float) -> str:
    """'× 10' for 10, '/ 10' for 0.1."""
    if factor == 1:
        return "configured rate"
    return f"× {factor:g}" if factor > 1 else f"/ {1 / factor:g}"


def figure8(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 8: the same prompt and noise at each method's learning rate times 0.1, 1, 10 and 100; two prompts per cell."""
    from ether.exhibits.plots import in_two_lines, reported_prompts, row_name, samples
    from ether.exhibits.style import new_figure, style

    data = _factors(scale)
    first = data[(data["task"] == data["task"].iloc[0]) & (data["seed"] == data["seed"].min())]
    stems, factors = list(first["method"].unique()), sorted(first["rate_factor"].unique())
    figure = new_figure(2.05 * len(factors) + 1.5, 1.32 * len(stems) + 1.1)
    grid = figure.subplots(len(stems), 2 * len(factors), squeeze=False)
    prompts: list[str] = []
    for row, stem in zip(grid, stems, strict=True):
        row_name(row[0], in_two_lines(config.label(stem)), style(stem)[0])
        for place, factor in enumerate(factors):
            pair = row[2 * place : 2 * place + 2]
            found = first[(first["method"] == stem) & (first["rate_factor"] == factor)]
            if found.empty:
                for axes in pair:
                    axes.axis("off")
                continue
            run = found.iloc[0]
            folder, files = samples(scale, "subject_factors", run["run_id"])
            prompts = prompts or reported_prompts(files)[:2]
            _factor_cell(pair, run, [_first_image(folder, files, prompt) for prompt in reported_prompts(files)[:2]])
    for place, factor in enumerate(factors):
        grid[0][2 * place].set_title(factor_name(factor), fontsize=11, loc="left")
    quoted = " · ".join(f"“{prompt}”" for prompt in prompts)
    figure.supxlabel(
        f"{quoted + '; the same' if quoted else 'The same'} noise for every run.\n"
        "Red frame: fewer than half of the run's images have the background of their prompt.",
        fontsize=8,
    )
    return figure, data


def _first_image(folder: Path, files: list[dict[str, str]], prompt: str) -> Path:
    return folder / next(file["file"] for file in files if file["prompt"] == prompt)


def _factor_cell(pair: Any, run: Any, images: list[Path]) -> None:
    """Two images of a run, with a red frame if the run has collapsed, and its learning rate and score below."""
    from ether.exhibits.plots import show_image
    from ether.exhibits.style import ALERT, INK

    collapsed = bool(run["background"] < COLLAPSED) or run["status"] != "finished"
    for place, axes in enumerate(pair):
        if place and len(images) == 1:
            axes.axis("off")
        else:
            frame = (ALERT, 2.2) if collapsed else ("#bbb", 0.8)
            show_image(axes, images[place] if place < len(images) else None, *frame)
    parts = [f"{run['learning_rate']:g}"]
    if not np.isnan(run["dino"]):
        parts.append(f"DINO {run['dino']:.2f}")
    if collapsed:
        parts.append("collapsed")
    pair[0].set_xlabel(" · ".join(parts), fontsize=8, loc="left", labelpad=2, color=ALERT if collapsed else INK)


def _photograph(scale: Scale, subject: str) -> Path | np.ndarray | None:
    """The first photograph of a subject; None if the data set is neither available nor generated by the project."""
    from ether import hub

    data = scale.experiment("subject")["data"]
    try:
        source = hub.data_source(data, {"mirror": scale.settings["mirror"]}, scale.results)
    except MissingResourceError:  # figures from stored runs do not need the data set
        return _generated_photograph(scale, subject) if data["path"].startswith(hub.WORLD) else None
    files = sorted((source.folder / "dataset" / subject).glob("*.*")) if source.folder else []
    return files[0] if files else None


def _generated_photograph(scale: Scale, subject: str) -> np.ndarray | None:
    """The first photograph of a subject, rendered by the world of pictures."""
    from ether.worlds import pictures

    world = scale.settings["world"]["pictures"]
    found = [known for known in pictures.SUBJECTS if known.name == subject]
    return pictures.render(pictures.photographs(found[0], world["seed"], world["images"])[0]) if found else None


SHOWN, PROMPTS_SHOWN = 4, 2  # subjects, and prompts of each, in Figure 9


def figure9(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 9: each row has one subject, prompt and noise; the columns are a photograph, the base model and the methods.

    Every subject is shown with two of the prompts that no selection used, the next two for each further subject.
    """
    from ether.exhibits.plots import in_two_lines, reported_prompts, row_name, samples, show_image
    from ether.exhibits.style import INK, new_figure, style

    of_runs, _ = runs.read(scale, "subject")
    of_runs = common.in_order(of_runs[of_runs["seed"] == of_runs["seed"].min()])
    stems = list(of_runs["method"].unique())
    rows: list[tuple[Any, ...]] = []
    for number, subject in enumerate(of_runs["task"].unique()[:SHOWN]):
        for run in of_runs[of_runs["task"] == subject].itertuples():
            folder, files = samples(scale, "subject", str(run.run_id))
            prompts = reported_prompts(files)
            start = number * PROMPTS_SHOWN % len(prompts) if prompts else 0
            for prompt in (prompts + prompts)[start : start + min(PROMPTS_SHOWN, len(prompts))]:
                rows.append((subject, prompt, run.method, run.run_id, str(_first_image(folder, files, prompt))))
    data = pd.DataFrame(rows, columns=["subject", "prompt", "method", "run_id", "file"])
    lines = list(data[["subject", "prompt"]].drop_duplicates().itertuples(index=False))
    figure = new_figure(1.25 * (len(stems) + 1) + 2.3, 1.3 * max(1, len(lines)) + 0.7)
    grid = figure.subplots(max(1, len(lines)), len(stems) + 1, squeeze=False)
    for row, line in zip(grid, lines, strict=False):
        show_image(row[0], _photograph(scale, line.subject))
        words = line.prompt.split()
        row_name(row[0], f"{' '.join(words[: len(words) // 2])}\n{' '.join(words[len(words) // 2 :])}", INK, 9)
        for axes, stem in zip(row[1:], stems, strict=True):
            found = data[(data["subject"] == line.subject) & (data["prompt"] == line.prompt) & (data["method"] == stem)]
            show_image(axes, Path(found["file"].iloc[0]) if len(found) else None)
    for axes, stem in zip(grid[0], ["", *stems], strict=True):
        name = in_two_lines(config.label(stem)) if stem else "photograph"
        axes.set_title(name, fontsize=10, color=style(stem)[0] if stem else INK)
    if not lines:
        for axes in grid[0]:
            show_image(axes, None)
    return figure, common.labelled(data)
