"""Figures of subject-driven generation (3, 4, 7 left, 8 and 9), from the runs' tables and the pictures they left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ether import config, tables
from ether.config import Scale
from ether.plots import new_figure, style
from ether.tables import interval

EXPERIMENT = {
    "figure3": "perturbation",
    "figure4": "subject_rates",
    "figure7": "subject",
    "figure8": "subject_factors",
    "figure9": "subject",
}
UNCHANGED = 1e-5  # a relative change of hyperspherical energy below this is none
COLLAPSED = 0.5  # below this share of pictures with the background asked for, the model no longer follows the prompt


def _hyper(runs: pd.DataFrame, name: str) -> list[Any]:
    return [json.loads(config)["hyperparameters"].get(name) for config in runs["config"]]


def _last(metrics: pd.DataFrame, split: str, metric: str) -> pd.Series:
    own = metrics[(metrics["split"] == split) & (metrics["metric"] == metric)].sort_values("step")
    return own.groupby("run_id")["value"].last()


def _samples(scale: Scale, experiment: str, run_id: str, inner: str = "") -> tuple[Path, list[dict[str, str]]]:
    """The folder of a run's pictures and what is in it; an empty list where the run drew none."""
    folder = scale.results / "samples" / experiment / run_id / inner
    file = folder / "samples.json"
    return folder, (json.loads(file.read_text(encoding="utf-8"))["images"] if file.is_file() else [])


def _show(axes: Any, file: Path | None, frame: str = "#bbb", width: float = 0.8) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=width)
    if file is None or not file.is_file():
        axes.set_facecolor("#eee")
        axes.set_box_aspect(1)
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=8, color="#777", transform=axes.transAxes)
        return
    picture = Image.open(file).convert("RGB")
    axes.imshow(np.asarray(picture), interpolation="nearest" if picture.width <= 64 else "antialiased")


def caption(name: str, scale: Scale) -> str:
    """Scale, seeds, subjects and settings behind a figure, as one paragraph."""
    runs, _ = tables.read(scale, EXPERIMENT[name])
    section = scale.experiment(EXPERIMENT[name])
    sampling = section["sampling"]
    rates = ", ".join(
        f"{method} {min(own):g}" if min(own) == max(own) else f"{method} {min(own):g} to {max(own):g}"
        for method, own in runs.assign(rate=_hyper(runs, "learning_rate")).groupby("method", sort=False)["rate"]
    )
    trained = (
        "nothing is trained"
        if name == "figure3"
        else f"{section['training']['max_steps']} steps of batch {section['training']['batch_size']}; learning rates: {rates}"
    )
    return (
        f"Scale `{scale.name}` ({scale.settings['description']}). Subjects: {', '.join(sorted(runs['task'].unique()))}; seeds "
        f"{', '.join(map(str, sorted(runs['seed'].unique())))}; {len(runs)} runs. {trained[0].upper()}{trained[1:]}. Pictures: "
        f"{sampling['steps']} sampling steps, guidance {sampling['guidance']:g}, the same prompts and starting noise throughout."
    )


def _curves(axes: Any, data: pd.DataFrame, x: str, order: Sequence[str]) -> None:
    """Mean and interval of `value` against x for every method."""
    for method in order:
        own = data[data["method"] == method]
        if own.empty:
            continue
        colour, marker = style(method)
        told = own.groupby(x)["value"].apply(lambda v: pd.Series(interval(v.dropna().tolist()), index=["mean", "low", "high"]))
        wide = told.unstack()
        axes.plot(wide.index, wide["mean"], color=colour, marker=marker, markersize=5, linewidth=1.5, label=method)
        axes.fill_between(wide.index.to_numpy(dtype=float), wide["low"], wide["high"], color=colour, alpha=0.15, linewidth=0)


# --- Figure 3 --------------------------------------------------------------------------------------------------


def perturbations(scale: Scale) -> pd.DataFrame:
    """Columns `method`, `seed`, `run_id`, `step`, `distance` (||T - I||_F a layer and side), `metric`, `value`."""
    runs, metrics = tables.read(scale, "perturbation")
    own = metrics[metrics["split"] == "perturbation"].merge(runs[["run_id", "method", "seed"]])
    asked = own[own["metric"] == "distance"].set_index(["run_id", "step"])["value"].rename("distance")
    data = own[own["metric"] != "distance"].join(asked, on=["run_id", "step"])
    return data[["method", "seed", "run_id", "step", "distance", "metric", "value"]].reset_index(drop=True)


def figure3(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 3: pictures under random transformations of growing distance, and how faithful they stay."""
    data = perturbations(scale)
    first = data[data["seed"] == data["seed"].min()]
    methods = list(first["method"].unique())
    column = first["distance"].round(2)  # one for 1.41 and the square root of 2
    distances = sorted(column.unique())
    figure = new_figure(1.05 * len(distances) + 1.6, 1.12 * len(methods) + 3.1)
    parts: Any = figure.subfigures(2, 1, height_ratios=[len(methods), 2.2])
    pictures, curve = parts
    grid = pictures.subplots(len(methods), len(distances), squeeze=False)
    for row, method in zip(grid, methods, strict=True):
        own = first[first["method"] == method]
        for axes, distance in zip(row, distances, strict=True):
            here = own[column[own.index] == distance]
            if here.empty:  # a distance that the method cannot have
                axes.axis("off")
            else:
                step, run = int(here["step"].iloc[0]), here["run_id"].iloc[0]
                folder, files = _samples(scale, "perturbation", run, f"distance-{step:02d}")
                _show(axes, folder / files[0]["file"] if files else None)
            if method == methods[0]:
                axes.set_title(f"{distance:g}", fontsize=10)
        row[0].annotate(
            method, (-0.08, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=10, color=style(method)[0]
        )
    pictures.suptitle("distance of T from the identity, a layer and side", fontsize=10)
    axes = curve.subplots()
    _curves(axes, data[data["metric"] == "dino_same"], "distance", methods)
    axes.set_xlabel("distance of T from the identity")
    axes.set_ylabel("likeness to the\nunperturbed picture")
    axes.set_xscale("symlog", base=2, linthresh=0.25)
    ticks = [d for d in distances if abs(d - 2**0.5) > 0.01]  # the square root of 2 has no room between 1 and 2
    axes.set_xticks(ticks, [f"{d:g}" for d in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure, data


# --- Figure 4 --------------------------------------------------------------------------------------------------

DISTANCES = {"transformation_distance": "‖T − I‖, mean over layers and sides", "weight_distance": "‖W′ − W‖, all layers"}


def distances(scale: Scale) -> pd.DataFrame:
    """Columns `method`, `rate`, `task`, `seed`, `metric` (a key of DISTANCES, or a score), `value`, after the last step."""
    runs, metrics = tables.read(scale, "subject_rates")
    about = runs.assign(rate=_hyper(runs, "learning_rate"))[["run_id", "method", "rate", "task", "seed"]]
    frames = []
    for split, wanted in (("geometry", DISTANCES), ("last", ("dino", "clip_t", "background"))):
        for metric in wanted:
            frames.append(about.join(_last(metrics, split, metric).rename("value"), on="run_id").assign(metric=metric))
    return pd.concat(frames, ignore_index=True).drop(columns="run_id").dropna(subset="value")


def rate_scores(scale: Scale, or_published: bool = False) -> pd.DataFrame:
    """Scores of the learning-rate grid on the half of the prompts that is never reported, for `plots_language.rate_choice`.

    Columns: `method`, `rate`, `task`, `seed`, `metric` (``score``: the mean of what the scale selects by), `value` (NaN for
    a run that drew nothing), `chosen`: whether the method's file names this rate for this scale. `or_published`: see
    `ether.tables.read`.
    """
    runs, metrics = tables.read(scale, "subject_rates", or_published)
    named = {run.label: run.hyperparameters["learning_rate"] for run in config.runs(scale, "subject")}
    data = runs.assign(rate=_hyper(runs, "learning_rate"))[["run_id", "method", "rate", "task", "seed"]]
    data = data.join(_last(metrics, "selection", "score").rename("value"), on="run_id").assign(metric="score")
    return data.assign(chosen=data["rate"] == data["method"].map(named)).drop(columns="run_id")


def figure4(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: distance from the identity (left) and of the weights (right) against the learning rate."""
    data = distances(scale)
    figure = new_figure(9.4, 3.8)
    for axes, (metric, title) in zip(figure.subplots(1, 2), DISTANCES.items(), strict=True):
        own = data[data["metric"] == metric]
        _curves(axes, own, "rate", list(data["method"].unique()))
        axes.set(xscale="log", yscale="log", xlabel="learning rate")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.25, which="major")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure, data


# --- Figure 7, left --------------------------------------------------------------------------------------------

SIDES = {"input": "neurons on the input side", "output": "neurons on the output side"}


def energies(scale: Scale) -> pd.DataFrame:
    """Relative change of hyperspherical energy: columns `method`, `task`, `seed`, `side`, `value` (mean over layers)."""
    runs, metrics = tables.read(scale, "subject")
    about = runs[["run_id", "method", "task", "seed"]]
    frames = [
        about.join(_last(metrics, "geometry", f"he_difference_{side}").rename("value"), on="run_id").assign(side=side)
        for side in SIDES
    ]
    return pd.concat(frames, ignore_index=True).drop(columns="run_id").dropna(subset="value")


def figure7(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 7 (left): how much fine-tuning changes the hyperspherical energy."""
    data = energies(scale)
    methods = list(data["method"].unique())
    figure = new_figure(9.4, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    floor = 1e-16
    for axes, (side, title) in zip(panels, SIDES.items(), strict=True):
        for place, method in enumerate(methods):
            values = data[(data["method"] == method) & (data["side"] == side)]["value"].abs().clip(lower=floor)
            mean = float(values.mean())
            colour, _ = style(method)
            axes.bar(place, mean, color=colour, width=0.62, alpha=0.85)
            axes.scatter(np.full(len(values), place), values, color="#222", s=9, zorder=3)
            axes.text(place, mean * 1.6, f"{mean:.0e}", ha="center", va="bottom", fontsize=8)
        axes.axhline(UNCHANGED, color="#777", linestyle=":", linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(floor, 10)
        axes.set_xticks(range(len(methods)), [m.replace(" (", "\n(") for m in methods], rotation=35, ha="right", fontsize=9)
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel("relative change of\nhyperspherical energy")
    edge = panels[1].get_yaxis_transform()  # beside the panel: over the bars it could not be read
    panels[1].text(1.01, UNCHANGED, "unchanged\nbelow", transform=edge, ha="left", va="center", fontsize=8, color="#777")
    return figure, data


def energy_statements(data: pd.DataFrame) -> pd.DataFrame:
    """The paper's statements on Figure 7, judged: columns `statement`, `verdict`, `evidence`."""
    mean = data[data["side"] == "input"].groupby("method")["value"].agg(lambda v: float(v.abs().mean()))
    rows = []

    def say(statement: str, verdict: bool | None, evidence: str) -> None:
        rows.append(
            {
                "statement": statement,
                "verdict": "not testable" if verdict is None else "holds" if verdict else "does not hold",
                "evidence": evidence,
            }
        )

    for method, kept in (("OFT n=4", True), ("ETHER", True), ("Naive n=4", False), ("ETHER+", False)):
        value = mean.get(method)
        say(
            f"{method} {'leaves the energy as it is' if kept else 'changes the energy'} (input side).",
            None if value is None else (value < UNCHANGED) == kept,
            "" if value is None else f"{value:.1e}",
        )
    if {"ETHER+", "Naive n=4"} <= set(mean.index):
        wide = data[data["side"] == "input"].pivot_table(index=["task", "seed"], columns="method", values="value")
        difference = wide["ETHER+"].abs() - wide["Naive n=4"].abs()
        middle, low, high = interval(difference.dropna().tolist())
        decided = None if np.isnan(low) or low <= 0 <= high else low > 0
        say(
            "ETHER+ changes the energy even more than Naive.",
            decided,
            f"difference {middle:+.1e} [{low:+.1e}, {high:+.1e}]",
        )
    return pd.DataFrame(rows)


# --- Figure 8 --------------------------------------------------------------------------------------------------


def factors(scale: Scale) -> pd.DataFrame:
    """Columns `run_id`, `method`, `rate`, `factor`, `task`, `seed`, `status`, and the scores `dino`, `clip_t`, `background`."""
    runs, metrics = tables.read(scale, "subject_factors")
    known = sorted(scale.experiment("subject_factors")["rate_factors"])
    data = runs.assign(rate=_hyper(runs, "learning_rate"))[["run_id", "method", "rate", "task", "seed", "status"]].copy()
    data["factor"] = data.groupby(["method", "task", "seed"])["rate"].rank(method="first").astype(int).map(lambda r: known[r - 1])
    for metric in ("dino", "clip_t", "background"):
        found = data["run_id"].map(_last(metrics, "last", metric).to_dict())  # a run that drew nothing has none
        data[metric] = found.to_numpy(dtype=float, na_value=np.nan)
    return data


def figure8(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 8: one prompt and noise under each method's rate times 0.1, 1, 10 and 100; two prompts a cell."""
    data = factors(scale)
    shown = data[(data["task"] == data["task"].iloc[0]) & (data["seed"] == data["seed"].min())]
    methods, columns = list(shown["method"].unique()), sorted(shown["factor"].unique())
    figure = new_figure(2.05 * len(columns) + 1.5, 1.32 * len(methods) + 1.1)
    grid = figure.subplots(len(methods), 2 * len(columns), squeeze=False)
    asked: list[str] = []
    for row, method in zip(grid, methods, strict=True):
        for place, factor in enumerate(columns):
            here = shown[(shown["method"] == method) & (shown["factor"] == factor)]
            pair = row[2 * place : 2 * place + 2]
            if here.empty:
                for axes in pair:
                    axes.axis("off")
                continue
            run = here.iloc[0]
            folder, files = _samples(scale, "subject_factors", run["run_id"])
            prompts = list(dict.fromkeys(f["prompt"] for f in files if f["half"] == "report"))
            chosen = [next(f for f in files if f["prompt"] == prompt) for prompt in prompts[:2]]
            asked = asked or prompts[:2]
            if len(prompts) < 2:
                pair[1].axis("off")
                pair = pair[:1]
            collapsed = bool(run["background"] < COLLAPSED) or run["status"] != "finished"
            for axes, at in zip(pair, range(2), strict=False):
                file = folder / chosen[at]["file"] if at < len(chosen) else None
                _show(axes, file, "#c0392b" if collapsed else "#bbb", 2.2 if collapsed else 0.8)
            said = f"{run['rate']:g}"
            if not np.isnan(run["dino"]):
                said += f" · DINO {run['dino']:.2f}"
            pair[0].set_xlabel(said + (" · collapsed" if collapsed else ""), fontsize=8, loc="left", labelpad=2,
                               color="#c0392b" if collapsed else "#333")  # fmt: skip
        row[0].annotate(
            method.replace(" (", "\n("), (-0.12, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=10,
            color=style(method)[0],
        )  # fmt: skip
    for place, factor in enumerate(columns):
        name = "own rate" if factor == 1 else f"× {factor:g}" if factor > 1 else f"/ {1 / factor:g}"
        grid[0][2 * place].set_title(name, fontsize=11, loc="left")
    prompts_said = " · ".join(f"“{prompt}”" for prompt in asked)
    figure.supxlabel(
        f"{prompts_said}; the same noise everywhere.\n"
        "Red frame: fewer than half of the run's pictures have the background asked for.",
        fontsize=8,
    )
    return figure, data


# --- Figure 9 --------------------------------------------------------------------------------------------------


def figure9(scale: Scale) -> tuple[Figure, pd.DataFrame]:
    """Figure 9: each row one subject, prompt and noise; the columns the methods, after one of the subject's photographs."""
    from ether import hub

    runs, _ = tables.read(scale, "subject")
    runs = runs[runs["seed"] == runs["seed"].min()]
    methods, subjects = list(runs["method"].unique()), list(runs["task"].unique())[:3]
    source = hub.data_source(scale.experiment("subject")["data"], {"mirror": scale.settings["mirror"]}, scale.results)
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        of_subject = runs[runs["task"] == subject]
        for number in range(2):
            for run in of_subject.itertuples():
                folder, files = _samples(scale, "subject", run.run_id)
                prompts = list(dict.fromkeys(f["prompt"] for f in files if f["half"] == "report"))
                if number < len(prompts):
                    file = next(f for f in files if f["prompt"] == prompts[number])
                    rows.append(
                        {
                            "subject": subject,
                            "prompt": prompts[number],
                            "method": run.method,
                            "run_id": run.run_id,
                            "file": str(folder / file["file"]),
                        }
                    )
    data = pd.DataFrame(rows, columns=["subject", "prompt", "method", "run_id", "file"])
    lines = list(data[["subject", "prompt"]].drop_duplicates().itertuples(index=False))
    figure = new_figure(1.15 * (len(methods) + 1) + 1.9, 1.2 * max(1, len(lines)) + 0.6)
    grid = figure.subplots(max(1, len(lines)), len(methods) + 1, squeeze=False)
    for row, line in zip(grid, lines, strict=True):
        photographs = sorted((source.folder / "dataset" / line.subject).glob("*.*")) if source.folder else []
        _show(row[0], photographs[0] if photographs else None)
        for axes, method in zip(row[1:], methods, strict=True):
            own = data[(data["subject"] == line.subject) & (data["prompt"] == line.prompt) & (data["method"] == method)]
            _show(axes, Path(own["file"].iloc[0]) if len(own) else None)
        words = line.prompt.split()
        middle = len(words) // 2
        row[0].annotate(
            f"{' '.join(words[:middle])}\n{' '.join(words[middle:])}", (-0.08, 0.5), xycoords="axes fraction", ha="right",
            va="center", fontsize=8,
        )  # fmt: skip
    for axes, name in zip(grid[0], ["photograph", *methods], strict=True):
        axes.set_title(name.replace(" (", "\n("), fontsize=9, color="#333" if name == "photograph" else style(name)[0])
    return figure, data
