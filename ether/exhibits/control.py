"""Exhibits on controllable generation: Tables 3 and 9, and Figures 5, 6, 10, 11 and 12.

The second halves of Table 6 and Figure 7 are in `ether.exhibits.subject`. Columns of the tables are measured after the last step
on all images (split `validation`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ether import config, targets
from ether.analysis import rates, runs
from ether.analysis.claims import MetricInfo
from ether.config import Scale
from ether.exhibits import common, learning_rates
from ether.exhibits.exact import parameter_cells
from ether.paper import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAST, REAL, PROGRESS = "validation", "real", "progress"  # splits
IMAGES = "real-images"  # the row of the judge's scores on real images
FIRST = ("score", "miou", "accuracy", "fid", "fid_bias")  # metrics in this order
SAME_RUNS = {"ether-n1": "ether"}  # rows of Table 9 that are the same adapter as another method
ENCODER, LORA, BEST = "encoder-only", "lora-r4", "ether-plus"
NAMES = {"semantic": "semantic map", "landmarks": "landmarks", "edges": "edges"}
SHOWN = 4  # examples in Figures 10 and 11

# Metrics of the figures' claims that are columns of no table.
METRICS = learning_rates.robustness_metrics("mIoU") | {
    "early_peak": MetricInfo("highest mIoU at the first evaluation", format=".1f"),
    "early_width": MetricInfo("orders of magnitude with 90 % of the peak at the first evaluation", format=".2f"),
    "early_share": MetricInfo("highest mIoU at the first evaluation divided by that at the last", format=".2f"),
    "of_ether_plus": MetricInfo("mIoU divided by that of ETHER+", format=".2f"),
    "of_ether_plus_chosen": MetricInfo("mIoU at the chosen rate divided by that of ETHER+", format=".2f"),
    "of_encoder_only": MetricInfo("mIoU divided by that of the encoder alone", format=".2f"),
}


# --- tables ----------------------------------------------------------------------------------------------------


def _real(scale: Scale, experiment: str, paper: published.PublishedTable) -> pd.DataFrame:
    """The judge's scores on real images, and the Fréchet distance of real images: one row per task and metric."""
    ceilings = common.last_values(scale, experiment, REAL, common.metric_columns(paper))
    bias = common.last_values(scale, experiment, LAST, ["fid_bias"]).assign(metric="fid")
    found = pd.concat([ceilings, bias]).dropna(subset="value").drop_duplicates(["task", "metric"])
    return found.assign(method=IMAGES, adapt_kind="none", seed=0, status="finished", reason="")


def _values(exhibit: str, scale: Scale) -> pd.DataFrame:
    """The values of a table's columns of every method that it prints, and those of real images."""
    paper = published.load()[exhibit]
    found = common.last_values(scale, "control", LAST, common.metric_columns(paper))
    if exhibit == "table9":
        named = {same: stem for stem, same in SAME_RUNS.items()}
        found = found.assign(method=found["method"].replace(named))
    printed = targets.printed_methods(exhibit, config.methods())
    found = found[found["method"].isin(paper.methods if exhibit == "table9" else printed)]
    return pd.concat([_real(scale, "control", paper), found], ignore_index=True)


def _table(exhibit: str, scale: Scale) -> pd.DataFrame:
    paper, values = published.load()[exhibit], _values(exhibit, scale)
    measured = set(values["method"])
    methods = [stem for stem in config.methods() if stem in measured or stem in paper.methods]
    rows = {stem: paper.label(stem) for stem in (*paper.references, *methods)}
    cells = [
        *parameter_cells(exhibit, methods),
        *common.measured_cells(paper, rows, values, common.unit_of("control"), scale),
    ]
    return common.table(cells, rows)


def table3(scale: Scale) -> pd.DataFrame:
    """Table 3: semantic map to image, with the judge's scores on real images."""
    return _table("table3", scale)


def table9(scale: Scale) -> pd.DataFrame:
    """Table 9: semantic map to image by number of diagonal blocks; the row n=1 is the method ETHER of Table 3."""
    return _table("table9", scale)


def by_class(scale: Scale) -> pd.DataFrame:
    """IoU of each class in percent, averaged over seeds: one row per method of Table 3 and for real images."""
    of_runs, metrics = runs.read(scale, "control")
    found = metrics[metrics["metric"].str.startswith("iou ") & metrics["split"].isin([LAST, REAL])]
    found = found.merge(of_runs[["run_id", "method"]], on="run_id")
    found.loc[found["split"] == REAL, "method"] = IMAGES
    wide = found.pivot_table(index="method", columns="metric", values="value", sort=False)
    order = [stem for stem in (IMAGES, *config.methods()) if stem in wide.index]
    return wide.loc[order].rename(index=published.load()["table3"].label, columns=lambda name: name.removeprefix("iou "))


def sample_sizes(scale: Scale) -> pd.DataFrame:
    """The numbers of images behind the Fréchet distance, and its value for real images with its spread over choices of them."""
    named = {
        "fid_samples": "images",
        "fid_reference": "real images",
        "fid_bias": "FID of as many real images",
        "fid_bias_deviation": "its standard deviation",
    }
    values = common.last_values(scale, "control", LAST, list(named)).dropna(subset="value")
    once = values.drop_duplicates("metric").set_index("metric")["value"]
    return pd.DataFrame({"": once.reindex(list(named)).rename(index=named)})


# --- the grid of learning rates --------------------------------------------------------------------------------


def rate_grid(scale: Scale) -> pd.DataFrame:
    """mIoU of the grid on examples that are never reported, run here or committed, for `ether.analysis.rates.choose`."""
    return learning_rates.for_choice(learning_rates.grid(scale, "control_rates", LAST, ["miou"], or_published=True))


def robustness(scale: Scale) -> pd.DataFrame:
    """Robustness of every method to the learning rate (`ether.analysis.rates.robustness`)."""
    return rates.robustness(learning_rates.counted(rate_grid(scale)))


def _first_evaluations(scale: Scale) -> pd.DataFrame:
    """As `rate_grid`, with the mIoU at the first and at the last evaluation of each run: columns `value` and `last`."""
    data = _progress(scale)
    keys = ["method", "adapt_kind", "task", "seed", "learning_rate", "status"]
    ordered = data.sort_values("step", kind="stable").groupby(keys, sort=False, dropna=False)["value"]
    return ordered.agg(["first", "last"]).reset_index().rename(columns={"first": "value"}).assign(configured=False)


def _rows(chosen: pd.DataFrame, values: dict[str, pd.Series]) -> pd.DataFrame:
    """Evidence of several metrics with one value per method and seed."""
    base = chosen[["method", "seed"]].assign(adapt_kind="peft", task="semantic", status="finished")
    return pd.concat([base.assign(metric=metric, value=series) for metric, series in values.items()], ignore_index=True)


def _progress_evidence(scale: Scale) -> pd.DataFrame:
    first = _first_evaluations(scale)
    early, late = rates.per_seed(first), rates.per_seed(first.assign(value=first["last"]))
    peaks = late.set_index(["method", "seed"])["peak"].rename("late")
    share = early["peak"] / early.join(peaks, on=["method", "seed"])["late"]
    return _rows(early, {"early_peak": early["peak"], "early_width": early["width"], "early_share": share})


def evidence(exhibit: str, scale: Scale) -> pd.DataFrame:
    """Evidence for claims on an exhibit of this module.

    Tables: the columns' metrics; Table 3 also has LoRA's mIoU as a share of ETHER+'s. Figures 5 and 6: properties of the grid for
    every method and seed (`METRICS`). Figure 12: for each of LoRA's combinations, its mIoU as a share of ETHER+'s and of the
    encoder's alone; the combinations are the units.
    """
    if exhibit == "figure5":
        return learning_rates.robustness_evidence(rate_grid(scale))
    if exhibit == "figure6":
        return common.evidence_of(_progress_evidence(scale))
    if exhibit == "figure12":
        return _lora_evidence(scale)
    found = common.evidence_of(_values(exhibit, scale))
    if exhibit == "table3":  # LoRA's best against ETHER+, on images by which neither was chosen
        of_best = found[(found["method"] == BEST) & (found["metric"] == "miou")].set_index(["task", "seed"])["value"]
        lora = found[(found["method"] == LORA) & (found["metric"] == "miou")]
        shares = lora["value"] / lora.join(of_best.rename("best"), on=["task", "seed"])["best"]
        found = pd.concat([found, lora.assign(metric="of_ether_plus_chosen", value=shares).dropna(subset="value")])
    return found.reset_index(drop=True)


# --- figures ---------------------------------------------------------------------------------------------------

caption = functools.partial(common.caption, tasks="hints")


def figure5(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 5: mIoU and FID against the learning rate; a run that diverged has a mIoU of 0 and no FID."""
    from ether.exhibits.plots import curves, legend_beside
    from ether.exhibits.style import GREY, new_figure

    metrics = {"miou": "mIoU, %", "fid": "FID"}
    grid = learning_rates.grid(scale, "control_rates", LAST, list(metrics), or_published=False)
    lost = (grid["status"] != "finished") & (grid["metric"] == "miou")
    data = common.labelled(grid.assign(value=grid["value"].where(~lost, 0.0)))
    figure = new_figure(10.2, 4.0)
    panels = figure.subplots(1, 2)
    for axes, (metric, title) in zip(panels, metrics.items(), strict=True):
        curves(axes, data[data["metric"] == metric], "learning_rate", common.unit_of("control_rates"))
        axes.set(xscale="log", xlabel="learning rate", title=title)
        axes.grid(alpha=0.25)
    panels[0].set_ylim(0, 100)  # intervals over few seeds reach beyond what is possible
    distances = data.loc[data["metric"] == "fid", "value"].dropna()
    if len(distances):
        panels[1].set(yscale="log", ylim=(distances.min() / 1.5, distances.max() * 1.5))
    ceiling = common.last_values(scale, "control_rates", REAL, ["miou"])["value"].mean()
    bias = common.last_values(scale, "control_rates", LAST, ["fid_bias"])["value"].mean()
    for axes, value in zip(panels, (ceiling, bias), strict=True):
        axes.axhline(value, color=GREY, linestyle=":", linewidth=1.2, label="Real images")
    legend_beside(panels[1])
    return figure, data


def _progress(scale: Scale) -> pd.DataFrame:
    """mIoU at every evaluation of the grid's runs: columns method, label, task, seed, learning_rate, status, step and value."""
    of_runs, metrics = runs.read(scale, "control_rates")
    found = metrics[(metrics["split"] == PROGRESS) & (metrics["metric"] == "miou")][["run_id", "step", "value"]]
    return common.labelled(found.merge(of_runs[runs.RUN_INFO], on="run_id").drop(columns="reason"))


def figure6(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 6: mIoU by step, a panel for each method and a line for each learning rate."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    from ether.analysis.intervals import summarise
    from ether.exhibits.style import ALERT, new_figure, style

    of_runs, _ = runs.read(scale, "control_rates")
    lost = of_runs[of_runs["status"] == "diverged"]
    diverged = {str(stem): sorted(rows["learning_rate"].unique()) for stem, rows in lost.groupby("method")}
    data, unit = _progress(scale), common.unit_of("control_rates")
    stems, tried = list(data["method"].unique()), sorted(data["learning_rate"].dropna().unique())
    figure = new_figure(2.3 * len(stems) + 1.4, 3.2)
    panels = figure.subplots(1, len(stems), sharey=True, squeeze=False)[0]
    colours, norm = colormaps["viridis"], LogNorm(min(tried), max(tried))
    for axes, stem in zip(panels, stems, strict=True):
        for rate in tried:
            of_rate = data[(data["method"] == stem) & (data["learning_rate"] == rate)]
            means = [(step, *summarise(at, unit)[:3]) for step, at in of_rate.groupby("step")]
            if not means:
                continue
            steps, mean, low, high = ([float(row[i]) for row in means] for i in range(4))
            colour = colours(norm(rate))
            axes.plot(steps, mean, color=colour, marker="o", markersize=3, linewidth=1.4, label=f"{rate:g}")
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_title(config.label(stem), fontsize=10, color=style(stem)[0])
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        if lost := diverged.get(stem):
            text = f"diverged at {', '.join(f'{rate:g}' for rate in lost)}"
            axes.text(0.97, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=ALERT)
    panels[0].set_ylabel("mIoU, %")
    panels[0].set_ylim(0, 1.1 * max(data["value"].max(), 1.0))  # intervals over few seeds reach beyond what is possible
    panels[-1].legend(title="learning rate", frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure, data


def _image_grid(
    scale: Scale, experiment: str, lines: Sequence[tuple[str, int]], stems: Sequence[str], of_runs: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """A figure with the columns hint, real image and methods, and a row for each (task, number of an example)."""
    from ether.exhibits.plots import in_two_lines, row_name, samples, show_image
    from ether.exhibits.style import INK, new_figure, style

    figure = new_figure(1.25 * (len(stems) + 2) + 2.0, 1.3 * max(1, len(lines)) + 0.6)
    grid = figure.subplots(max(1, len(lines)), len(stems) + 2, squeeze=False)
    found: list[dict[str, Any]] = []
    for row, (task, number) in zip(grid, lines, strict=False):
        for column, stem in enumerate(stems):
            of_method = of_runs[(of_runs["method"] == stem) & (of_runs["task"] == task)]
            folder, files = samples(scale, experiment, str(of_method["run_id"].iloc[0])) if len(of_method) else (Path(), [])
            file = files[number] if number < len(files) else None
            show_image(row[column + 2], folder / file["file"] if file else None)
            if file is None:
                continue
            if not found or (found[-1]["task"], found[-1]["number"]) != (task, number):
                for axes, kind in zip(row[:2], ("hint", "real"), strict=True):
                    show_image(axes, folder / file[kind])
                words = file["prompt"].split()
                half = len(words) // 2
                row_name(row[0], f"{' '.join(words[:half])}\n{' '.join(words[half:])}", INK, 8)
            run_id = of_method["run_id"].iloc[0]
            found.append(
                {"task": task, "number": number, "prompt": file["prompt"], "method": stem, "run_id": run_id, "file": file["file"]}
            )
    for axes, name, colour in zip(
        grid[0],
        ["hint", "real image", *(in_two_lines(config.label(stem)) for stem in stems)],
        [INK, INK, *(style(stem)[0] for stem in stems)],
        strict=True,
    ):
        axes.set_title(name, fontsize=9, color=colour)
    for axes in grid.flat:
        if not axes.images and not axes.texts:
            show_image(axes, None)
    columns = ["task", "number", "prompt", "method", "run_id", "file"]
    return figure, common.labelled(pd.DataFrame(found, columns=columns))


def _first_seed(scale: Scale, experiment: str) -> pd.DataFrame:
    of_runs, _ = runs.read(scale, experiment)
    return common.in_order(of_runs[of_runs["seed"] == of_runs["seed"].min()])


def figure10(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 10: semantic maps and images of the methods of Table 3 from the same noise."""
    of_runs = _first_seed(scale, "control")
    printed = targets.printed_methods("table3", config.methods())
    stems = [stem for stem in of_runs["method"].unique() if stem in printed]
    lines = [("semantic", number) for number in range(SHOWN)]
    return _image_grid(scale, "control", lines, stems, of_runs)


def figure11(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 11: images from landmarks and from edges."""
    of_runs = _first_seed(scale, "control_hints")
    lines = [(str(task), number) for task in of_runs["task"].unique() for number in range(SHOWN)]
    return _image_grid(scale, "control_hints", lines, list(of_runs["method"].unique()), of_runs)


def hints_scores(scale: Scale) -> pd.DataFrame:
    """The scores of Figure 11's runs on all images, and of real images: one row per task and method."""
    of_runs, metrics = runs.read(scale, "control_hints")
    found = metrics[metrics["split"].isin([LAST, REAL])].merge(of_runs[["run_id", "method"]], on="run_id")
    found.loc[found["split"] == REAL, "method"] = IMAGES
    label = published.load()["table3"].label
    found = found.assign(label=found["method"].map(label))
    return found.pivot_table(index=["task", "label"], columns="metric", values="value", sort=False)


# --- LoRA ------------------------------------------------------------------------------------------------------


def lora_grid(scale: Scale) -> pd.DataFrame:
    """LoRA's combinations: rank, scaling factor, dropout, batch size, learning rate, status, mIoU and FID, the best first."""
    values = common.last_values(scale, "control_lora", LAST, ["miou", "fid"])
    wide = values.pivot_table(index="run_id", columns="metric", values="value", sort=False)
    specs = {spec.run_id: spec for spec in config.runs(scale, "control_lora")}
    of_runs, _ = runs.read(scale, "control_lora")
    rows = []
    for run in of_runs.itertuples():
        spec = specs.get(str(run.run_id))
        adapter = spec.adapt["config"] if spec else {}
        dropout = spec.hyperparameters.get("dropout") if spec else None
        scaling = adapter["lora_alpha"] / adapter["r"] if adapter else None
        rows.append(
            {
                "run_id": run.run_id, "method": run.method, "rank": adapter.get("r"), "scaling": scaling, "dropout": dropout,
                "batch_size": run.batch_size, "learning_rate": run.learning_rate, "status": run.status,
            }
        )  # fmt: skip
    grid = pd.DataFrame(rows).join(wide.reindex(columns=["miou", "fid"]), on="run_id")
    lost = grid["status"] != "finished"
    return grid.assign(miou=grid["miou"].where(~lost, 0.0)).sort_values("miou", ascending=False, ignore_index=True)


def _references(scale: Scale) -> dict[str, float]:
    """mIoU of the encoder alone and of ETHER+ on the same examples as LoRA's combinations, at the best rate of the grid.

    Nothing if the grid has not been run.
    """
    if not common.present(scale, ["control_rates"]):
        return {}
    grid = learning_rates.counted(rate_grid(scale))
    means = grid.groupby(["method", "learning_rate"])["value"].mean().groupby("method").max()
    return {stem: float(means[stem]) for stem in (ENCODER, BEST) if stem in means.index}


def _lora_evidence(scale: Scale) -> pd.DataFrame:
    grid, known = lora_grid(scale), _references(scale)
    base = grid[["method"]].assign(adapt_kind="peft", task=grid["run_id"], seed=0, status="finished")
    names = {BEST: "of_ether_plus", ENCODER: "of_encoder_only"}
    frames = [base.assign(metric=names[stem], value=grid["miou"] / value) for stem, value in known.items() if value]
    found = common.evidence_of(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame(columns=common.EVIDENCE_COLUMNS)
    return found.assign(unit="task")


def figure12(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 12: LoRA's combinations: mIoU against the learning rate, and images of the best and of evenly spaced others."""
    from ether.exhibits.plots import samples, show_image
    from ether.exhibits.style import GREY, new_figure, style

    data, known = lora_grid(scale), _references(scale)
    figure = new_figure(10.5, 7.0)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    axes = parts[0].subplots()
    markers = dict(zip(sorted(data["rank"].dropna().unique()), "osD^vP", strict=False))
    for (rank, batch), group in data.groupby(["rank", "batch_size"]):
        sizes = 14 + 22 * pd.Series(group["scaling"]).ge(1).to_numpy()
        axes.scatter(
            group["learning_rate"], group["miou"], s=sizes, marker=markers[rank], alpha=0.35 + 0.6 * min(1.0, batch / 64),
            color=style(LORA)[0],
        )  # fmt: skip
    for rank, marker in markers.items():
        axes.scatter([], [], marker=marker, color=style(LORA)[0], label=f"rank {rank:g}")
    for stem, value in known.items():
        axes.axhline(value, color=style(stem)[0] if stem != ENCODER else GREY, linestyle=":", label=config.label(stem))
    axes.set(xscale="log", xlabel="learning rate (small points: scaling factor below 1; pale: small batches)", ylabel="mIoU, %")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.25)
    count = min(6, len(data))
    chosen = data.iloc[[round(i * (len(data) - 1) / max(1, count - 1)) for i in range(count)]]
    grid = parts[1].subplots(2, count + 1, squeeze=False)
    for column, run in enumerate(chosen.itertuples()):
        folder, files = samples(scale, "control_lora", str(run.run_id))
        for axes, file in zip(grid[:, column + 1], [*files, None, None][:2], strict=True):
            show_image(axes, folder / file["file"] if file else None)
        for axes, file in zip(grid[:, 0], files, strict=False):
            if not axes.images:
                show_image(axes, folder / file["hint"])
        title = f"{run.learning_rate:g}, r {run.rank:g}\nmIoU {run.miou:.1f}"
        grid[0][column + 1].set_title(title, fontsize=8)
    for axes in grid[:, 0]:
        if not axes.images:
            show_image(axes, None)
    grid[0][0].set_title("hint", fontsize=8)
    return figure, common.labelled(data)
