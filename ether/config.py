"""Scales, methods, experiments and exhibits: the YAML files under ``workflow/`` checked and resolved into runs.

``experiments.yaml`` and ``exhibits.yaml`` are the only lists of experiments, tables and figures. ``paper.yaml`` is the source
of truth of the scales; every other scale is an overlay on it (``over: paper``). A method is one file. Nothing here knows what a
method or an experiment does; nothing elsewhere asks which scale it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.registry import ExhibitEntry, ExperimentEntry, exhibits, experiments, label, method, methods, modules
from ether.results import digest
from ether.yamlfiles import ROOT, WORKFLOW, overlay, read_yaml, validate

__all__ = [
    "ROOT",
    "WORKFLOW",
    "ExhibitEntry",
    "ExperimentEntry",
    "Job",
    "RunSpec",
    "Scale",
    "chosen_methods",
    "exhibits",
    "experiments",
    "hyperparameters",
    "job",
    "jobs",
    "label",
    "load",
    "method",
    "methods",
    "modules",
    "overlay",
    "read_yaml",
    "runs",
    "scale_names",
    "validate",
]

# Keys of an experiment's section that say which runs there are and how they are read; all others decide a run's numbers.
_SELECTION = (
    "known_tasks",
    "tasks",
    "methods",
    "jobs",
    "training",
    "learning_rates",
    "rate_factors",
    "seeds",
    "like",
    "protocol",
    "select",
)


# --- scales ----------------------------------------------------------------------------------------------------


def scale_names() -> list[str]:
    """The scales there are: the files under ``workflow/scales``."""
    return sorted(path.stem for path in (WORKFLOW / "scales").glob("*.yaml"))


def _read_scale(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if name not in scale_names():
        raise one_of("scale", name, scale_names(), "--config scale=…")
    if name in seen:
        raise ConfigurationError(f"The scales {' -> '.join((*seen, name))} are overlays on each other in a circle.")
    content = read_yaml(WORKFLOW / "scales" / f"{name}.yaml")
    base = content.pop("over", None)
    return overlay(_read_scale(base, (*seen, name)), content) if base else content


# What `--config` may set beside `scale`. Each but `replay` replaces the setting of that name.
OVERRIDES = ("mirror", "foundation", "methods", "tasks", "seeds", "device", "replay")


def _as_list(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable):
        return [str(part) for part in value]
    return [str(value)]


@dataclass(frozen=True)
class Scale:
    """A scale as it will run: the YAML overlays and the command line's overrides, merged and checked."""

    name: str
    settings: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """Where this scale's results go."""
        return Path("results") / self.name

    @property
    def replay(self) -> Path | None:
        """The folder of stored metrics and samples that ``--config replay=FOLDER`` reads instead of running experiments."""
        folder = self.overrides.get("replay")
        return Path(folder).expanduser() if folder else None

    @property
    def metrics_folder(self) -> Path:
        """Where collected metrics are read."""
        return (self.replay or self.results) / "metrics"

    @property
    def samples_folder(self) -> Path:
        """Where generated images are read."""
        return (self.replay or self.results) / "samples"

    @property
    def resources(self) -> dict[str, Any]:
        """Where models and data are and what runs them; not part of what a run is."""
        return {key: self.settings[key] for key in ("mirror", "foundation", "device")}

    def protocol(self, *experiments: str) -> list[str]:
        """What differs from the paper's protocol: in general, and in some experiments."""
        lines = list(self.settings.get("protocol", []))
        for name in experiments:
            lines += self.experiment(name).get("protocol", [])
        return list(dict.fromkeys(lines))

    def experiment(self, name: str) -> dict[str, Any]:
        """The settings of one experiment.

        Raises:
            ConfigurationError: this scale has no such experiment.
        """
        if name not in experiments() or name not in self.settings:
            raise one_of("experiment", name, self.experiments(), f"scale {self.name!r}")
        return self.settings[name]

    def experiments(self) -> list[str]:
        """The experiments that this scale has, after the command line's overrides."""
        return [name for name in experiments() if name in self.settings]


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Scale:
    """Reads a scale, applies the command line's overrides and checks every name in it.

    Args:
        name: a file under ``workflow/scales`` without its ending.
        overrides: any of ``OVERRIDES``; lists may be given as comma-separated text.

    Raises:
        ConfigurationError: unknown scale, override, method, task, or a value the schema does not allow.
        MissingResourceError: the mirror or replay folder does not exist.
    """
    given = {key: value for key, value in (overrides or {}).items() if value not in (None, "")}
    for key in given:
        if key not in OVERRIDES:
            raise one_of("setting", key, ("scale", *OVERRIDES), "--config")
    settings = _read_scale(name)
    for experiment in experiments():
        if like := settings.get(experiment, {}).get("like"):
            if like not in settings:
                raise one_of("experiment", like, settings, f"{experiment}.like of scale {name!r}")
            settings[experiment] = overlay(settings[like], settings[experiment])
    for key in ("mirror", "foundation", "device"):
        if key in given:
            settings[key] = str(given[key])
    if "seeds" in given:
        seeds = _as_list(given["seeds"])
        if not seeds or not all(seed.isdigit() for seed in seeds):
            raise ConfigurationError(f"--config seeds={given['seeds']}: give whole numbers, as seeds=0,1,2.")
        settings["seeds"] = [int(seed) for seed in seeds]
    for key in ("methods", "tasks"):
        if key in given:
            _choose(settings, key, _as_list(given[key]), name)
    validate(settings, "scale", WORKFLOW / "scales" / f"{name}.yaml", modules())
    _check_folders(settings["mirror"], given.get("replay"))
    scale = Scale(name, settings, dict(given))
    for experiment in scale.experiments():
        chosen_methods(scale, experiment)
        known = settings[experiment]["known_tasks"]
        for task in settings[experiment]["tasks"]:
            if task not in known:
                raise one_of("task", task, known, f"{experiment} of scale {name!r} (or --config tasks=…)")
    return scale


def _check_folders(mirror: str | None, replay: str | None) -> None:
    """The folders given by --config exist, and their names do not confuse Snakemake.

    Raises:
        ConfigurationError: a brace in the path, which Snakemake reads as a wildcard.
        MissingResourceError: no such folder, or nothing to replay in it.
    """
    for key, folder in (("mirror", mirror), ("replay", replay)):
        if folder and re.search(r"[{}]", str(folder)):
            raise ConfigurationError(
                f"--config {key}={folder}: a path with braces cannot be used, since Snakemake reads what is between them as a "
                "wildcard. Rename the folder, or make a link to it without braces."
            )
    if mirror and not Path(mirror).expanduser().is_dir():
        raise MissingResourceError(
            f"The mirror folder {mirror} does not exist. Give --config mirror=FOLDER a folder laid out as "
            "datasets/<hub id>/<config>/<split>.parquet and models/<hub id>/, or leave it out to use the hub."
        )
    if replay and not (Path(replay).expanduser() / "metrics").is_dir():
        raise MissingResourceError(
            f"There is nothing to replay in {replay}: it has no folder `metrics`. Give --config replay=FOLDER a folder laid out "
            "as results/published/small: metrics/<experiment>.parquet, metrics/<experiment>.runs.parquet and samples/."
        )


def _choose(settings: dict[str, Any], key: str, wanted: list[str], scale: str) -> None:
    """Narrows each experiment to the methods or tasks asked for; one that knows none of them is left out altogether.

    Raises:
        ConfigurationError: a name that no experiment of the scale knows.
    """
    there = [experiment for experiment in experiments() if experiment in settings]
    known = {e: settings[e]["known_tasks"] if key == "tasks" else list(_eligible(settings, e)) for e in there}
    for one in wanted:
        if not any(one in names for names in known.values()):
            every = methods() if key == "methods" else dict.fromkeys(t for names in known.values() for t in names)
            if one in every:
                raise ConfigurationError(
                    f"workflow/methods/{one}.yaml has no hyperparameters for an experiment of scale {scale!r}: add "
                    f"training.<experiment> with a section `default` or {' or '.join(settings['hyperparameters'])}."
                )
            raise one_of(key.removesuffix("s"), one, every, f"--config {key}=…")
    for experiment in there:
        if mine := [one for one in wanted if one in known[experiment]]:
            settings[experiment][key] = mine
        else:
            del settings[experiment]


def _trained_as(settings: Mapping[str, Any], experiment: str) -> str:
    """The key of a method's ``training`` that holds its hyperparameters for an experiment."""
    return experiments()[settings[experiment].get("like", experiment)].module


def _eligible(settings: Mapping[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """The methods with hyperparameters for an experiment at a scale: a `default`, or a section that the scale names."""
    sections = {"default", *settings["hyperparameters"]}
    trained_as = _trained_as(settings, experiment)
    swept = {"learning_rates", "rate_factors"} & set(settings[experiment])
    return {
        key: method
        for key, method in methods().items()
        if trained_as in method["training"]
        and sections & set(method["training"][trained_as] or {"default": {}})
        and (method.get("sweep", True) or not swept)
    }


def chosen_methods(scale: Scale, experiment: str) -> dict[str, dict[str, Any]]:
    """The methods an experiment runs, in table order: those it lists, or all that have hyperparameters for it.

    Raises:
        ConfigurationError: a listed method has no file, or no hyperparameters for this experiment.
    """
    every, eligible = methods(), _eligible(scale.settings, experiment)
    listed: Sequence[str] | str = scale.experiment(experiment)["methods"]
    if listed == "all" or list(listed) == ["all"]:
        return eligible
    for key in listed:
        if key not in every:
            raise one_of("method", key, every, f"{experiment} of scale {scale.name!r} (the files of workflow/methods)")
        if key not in eligible:
            raise ConfigurationError(
                f"workflow/methods/{key}.yaml has no hyperparameters for {experiment!r}: add training.{experiment} with a "
                f"section `default` or {' or '.join(scale.settings['hyperparameters'])}."
            )
    return {key: method for key, method in every.items() if key in listed}


# --- runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSpec:
    """One run, fully resolved: what is adapted, how, on which task, with which seed and hyperparameters."""

    experiment: str
    scale: str
    method: str  # the stem of its file
    label: str
    task: str
    seed: int
    adapt: dict[str, Any]
    hyperparameters: dict[str, Any]
    settings: dict[str, Any]  # the experiment's model, data, limits, layers, head
    resources: dict[str, Any]  # mirror, foundation, device: where things are, not what they are
    rate_factor: float | None = None  # the learning rate as a multiple of the method's

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers. Where things are does not; that a model is pretrained anew does."""
        decisive = {
            "experiment": self.experiment, "scale": self.scale, "method": self.method, "task": self.task, "seed": self.seed,
            "adapt": self.adapt, "hyperparameters": self.hyperparameters, "settings": self.settings,
        }  # fmt: skip
        return decisive | ({"foundation": "rebuild"} if self.resources.get("foundation") == "rebuild" else {})

    @property
    def run_id(self) -> str:
        """Names the run and, through a hash of its configuration, everything that decides its numbers."""
        return f"{self.experiment}-{self.method}-{self.task}-seed{self.seed}-{digest(self.config)}"


@dataclass(frozen=True)
class Job:
    """The runs that share one notebook, one kernel and one base model."""

    name: str
    experiment: str
    runs: tuple[RunSpec, ...]

    @property
    def digest(self) -> str:
        """Changes when any run of the job does: Snakemake reruns the job then, and no other."""
        return digest([run.config for run in self.runs])


def hyperparameters(scale: Scale, experiment: str, method: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Hyperparameters of a run: the scale's, then the method's ``default``, then the sections the scale names; in
    each, what is given for the task comes last."""
    layers = [scale.experiment(experiment)["training"]]
    sections = method["training"][_trained_as(scale.settings, experiment)] or {}
    layers += [sections[name] for name in ("default", *scale.settings["hyperparameters"]) if name in sections]
    merged: dict[str, Any] = {}
    for layer in layers:
        flat = {key: value for key, value in layer.items() if key != "tasks"}
        merged = overlay(overlay(merged, flat), (layer.get("tasks") or {}).get(task, {}))
    return merged


def runs(scale: Scale, experiment: str) -> list[RunSpec]:
    """Every run of an experiment, in the order method, task, learning rate, seed."""
    section = scale.experiment(experiment)
    settings: dict[str, Any] = {key: value for key, value in section.items() if key not in _SELECTION}
    seeds = scale.settings["seeds"] if "seeds" in scale.overrides else section.get("seeds", scale.settings["seeds"])
    found = []
    for stem, entry in chosen_methods(scale, experiment).items():
        for task in section["tasks"]:
            values = hyperparameters(scale, experiment, entry, task)
            adapt = entry["adapt"]
            if config := values.pop("config", None):
                adapt = overlay(adapt, {"config": config})
            trains = adapt["kind"] != "none"  # what is not trained gives the same for every rate and seed
            rates: list[tuple[float | None, float | None]] = [(values.get("learning_rate"), None)]
            if trains and "learning_rates" in section:
                rates = [(rate, None) for rate in section["learning_rates"]]
            if trains and "rate_factors" in section:
                rates = [(float(f"{f * values['learning_rate']:.6g}"), float(f)) for f in section["rate_factors"]]
            for rate, factor in rates:
                for seed in seeds if trains else seeds[:1]:
                    found.append(
                        RunSpec(
                            experiment=experiment,
                            scale=scale.name,
                            method=stem,
                            label=entry["label"],
                            task=task,
                            seed=seed,
                            adapt=adapt,
                            hyperparameters=values | {"learning_rate": rate},
                            settings=settings,
                            resources=scale.resources,
                            rate_factor=factor,
                        )
                    )
    return found


def jobs(scale: Scale, experiment: str) -> dict[str, Job]:
    """The jobs of an experiment: its runs grouped by the parts the scale names in ``jobs`` (method, task, seed).

    One method is one job at the small scales, so that a new method runs alone; at the paper's scale every run is.
    """
    parts = scale.experiment(experiment)["jobs"]
    grouped: dict[str, list[RunSpec]] = {}
    for run in runs(scale, experiment):
        rate = f"{run.hyperparameters['learning_rate']:.0e}"
        named = {"method": run.method, "task": run.task, "rate": f"rate{rate}", "seed": f"seed{run.seed}"}
        name = "-".join(named[part] for part in ("method", "task", "rate", "seed") if part in parts) or "all"
        grouped.setdefault(name, []).append(run)
    return {name: Job(name, experiment, tuple(group)) for name, group in grouped.items()}


def job(scale: Scale, experiment: str, name: str) -> Job:
    """One job by its name.

    Raises:
        ConfigurationError: no such job.
    """
    every = jobs(scale, experiment)
    if name not in every:
        raise one_of("job", name, every, f"{experiment} of scale {scale.name!r}")
    return every[name]
