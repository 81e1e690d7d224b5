"""Scales, methods, experiments and exhibits: the YAML files under ``workflow/``, validated and resolved into runs.

``experiments.yaml`` and ``exhibits.yaml`` are the only lists of experiments, tables and figures. ``paper.yaml`` is the base of
the scales; every other scale is an overlay on it (``over: paper``). A method is one file. This module does not depend on the
implementation of methods and experiments, and no other module depends on the name of the scale.
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

# Keys of an experiment's section that select runs or describe them; all other keys affect the results of a run.
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
    """Names of the scales: the files under ``workflow/scales``."""
    return sorted(path.stem for path in (WORKFLOW / "scales").glob("*.yaml"))


def _read_scale(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if name not in scale_names():
        raise one_of("scale", name, scale_names(), "--config scale=…")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):  # it is part of commands and paths
        raise ConfigurationError(
            f"workflow/scales/{name}.yaml: the file's name identifies the scale; use letters, digits, '.', '_', '+', '-'."
        )
    if name in seen:
        raise ConfigurationError(f"The scales {' -> '.join((*seen, name))} are circular overlays: change `over` in one of them.")
    content = read_yaml(WORKFLOW / "scales" / f"{name}.yaml")
    base = content.pop("over", None)
    return overlay(_read_scale(base, (*seen, name)), content) if base else content


# Settings of `--config` in addition to `scale`. Each of them except `replay` replaces the setting of that name.
OVERRIDES = ("mirror", "foundation", "methods", "tasks", "seeds", "device", "replay")


def _as_list(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable):
        return [str(part) for part in value]
    return [str(value)]


@dataclass(frozen=True)
class Scale:
    """A resolved scale: the YAML overlays and the overrides of the command line, merged and validated."""

    name: str
    settings: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """Folder of this scale's results."""
        return Path("results") / self.name

    @property
    def replay(self) -> Path | None:
        """The folder of stored metrics and samples that ``--config replay=FOLDER`` reads instead of running experiments."""
        folder = self.overrides.get("replay")
        return Path(str(folder)).expanduser() if folder else None

    @property
    def metrics_folder(self) -> Path:
        """Folder from which collected metrics are read."""
        return (self.replay or self.results) / "metrics"

    @property
    def samples_folder(self) -> Path:
        """Folder from which generated images are read."""
        return (self.replay or self.results) / "samples"

    @property
    def resources(self) -> dict[str, Any]:
        """Location of models and data, and the device; they do not affect run ids."""
        return {key: self.settings[key] for key in ("mirror", "foundation", "device")}

    def protocol(self, *experiments: str) -> list[str]:
        """Differences from the paper's protocol: those of the scale and those of the given experiments."""
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
        """Names of this scale's experiments, after the overrides of the command line."""
        return [name for name in experiments() if name in self.settings]


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Scale:
    """Reads a scale, applies the overrides of the command line and checks every name in it.

    Args:
        name: a file under ``workflow/scales`` without extension.
        overrides: any of ``OVERRIDES``; lists may be given as comma-separated text.

    Raises:
        ConfigurationError: unknown scale, override, method or task, or a value that the schema does not allow.
        MissingResourceError: the mirror or replay folder does not exist.
    """
    given = {key: value for key, value in (overrides or {}).items() if value not in (None, "")}
    for key in given:
        if key not in OVERRIDES:
            raise one_of("setting", key, ("scale", *OVERRIDES), "--config")
    settings = _read_scale(name)
    file = WORKFLOW / "scales" / f"{name}.yaml"
    for experiment in experiments():  # null: the scale leaves out an experiment of the scale that it is an overlay on
        if experiment in settings and settings[experiment] is None:
            del settings[experiment]
    sections = {experiment: settings[experiment] for experiment in experiments() if experiment in settings}
    for experiment, section in sections.items():
        if not isinstance(section, Mapping):
            raise ConfigurationError(f"{file}, at {experiment}: {section!r} is not a mapping.")
        if like := section.get("like"):
            if not isinstance(like, str) or not isinstance(sections.get(like), Mapping):
                raise one_of("experiment", like, sections, f"{experiment}.like of scale {name!r}")
            settings[experiment] = overlay(settings[like], section)
    validate(settings, "scale", file, modules())  # before names in it are looked up; the command line's values are checked below
    for key in ("mirror", "foundation", "device"):
        if key in given:
            settings[key] = str(given[key])
    if "seeds" in given:
        seeds = _as_list(given["seeds"])
        if not seeds or not all(re.fullmatch(r"[0-9]{1,10}", seed) for seed in seeds):
            raise ConfigurationError(f"--config seeds={given['seeds']}: give whole numbers, as seeds=0,1,2.")
        settings["seeds"] = [int(seed) for seed in seeds]
    for key in ("methods", "tasks"):
        if key in given:
            names = _as_list(given[key])
            if not names:
                raise ConfigurationError(f"--config {key}={given[key]}: give at least one name.")
            _choose(settings, key, names, name)
    validate(settings, "scale", file, modules())
    for key, folder, inside in (("mirror", settings["mirror"], ""), ("replay", given.get("replay"), "metrics")):
        if folder:
            _check_folder(key, str(folder), inside)
    scale = Scale(name, settings, dict(given))
    for experiment in scale.experiments():
        chosen_methods(scale, experiment)
        known = settings[experiment]["known_tasks"]
        for task in settings[experiment]["tasks"]:
            if task not in known:
                raise one_of("task", task, known, f"{experiment} of scale {name!r} (or --config tasks=…)")
    return scale


def _check_folder(key: str, folder: str, inside: str) -> None:
    """Checks a folder given by --config: `mirror`, or `replay`, which has a folder of the name `inside`.

    Raises:
        ConfigurationError: not a possible path, or one with a brace, which Snakemake interprets as a wildcard.
        MissingResourceError: the folder does not exist, or the replay folder has no metrics.
    """
    if re.search(r"[{}]", folder):
        raise ConfigurationError(
            f"--config {key}={folder}: a path with braces cannot be used, because Snakemake interprets the text between "
            "them as a wildcard. Rename the folder, or create a link to it without braces."
        )
    try:
        found = "\0" not in folder and (Path(folder).expanduser() / inside).is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~user of an unknown user, not encodable
        raise ConfigurationError(f"--config {key}={folder[:200]!r} is not a path: {error}.") from error
    if key == "mirror" and not found:
        raise MissingResourceError(
            f"The mirror folder {folder} does not exist. Set --config mirror=FOLDER to a folder with the layout "
            "datasets/<hub id>/<config>/<split>.parquet and models/<hub id>/, or omit it to use the hub."
        )
    if not found:
        raise MissingResourceError(
            f"There is nothing to replay in {folder}: it has no folder `metrics`. Set --config replay=FOLDER to a folder with "
            "the layout of results/published/small: metrics/<experiment>.parquet, metrics/<experiment>.runs.parquet and samples/."
        )


def _choose(settings: dict[str, Any], key: str, chosen: list[str], scale: str) -> None:
    """Restricts each experiment to the chosen methods or tasks; an experiment that has none of them is removed.

    Raises:
        ConfigurationError: no experiment of the scale has a method or task of this name.
    """
    sections = [experiment for experiment in experiments() if experiment in settings]
    known = {e: settings[e]["known_tasks"] if key == "tasks" else list(_eligible(settings, e)) for e in sections}
    for name in chosen:
        if not any(name in names for names in known.values()):
            every = methods() if key == "methods" else dict.fromkeys(t for names in known.values() for t in names)
            if name in every:
                raise ConfigurationError(
                    f"workflow/methods/{name}.yaml has no hyperparameters for an experiment of scale {scale!r}: add "
                    f"training.<experiment> with a section `default` or {' or '.join(settings['hyperparameters'])}."
                )
            raise one_of(key.removesuffix("s"), name, every, f"--config {key}=…")
    for experiment in sections:
        if selected := [name for name in chosen if name in known[experiment]]:
            settings[experiment][key] = selected
        else:
            del settings[experiment]


def _trained_as(settings: Mapping[str, Any], experiment: str) -> str:
    """The key of a method's ``training`` that holds its hyperparameters for an experiment."""
    return experiments()[settings[experiment].get("like", experiment)].module


def _eligible(settings: Mapping[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """The methods with hyperparameters for an experiment: a section `default`, or a section that the scale names."""
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
    """The methods of an experiment, in table order: those that it lists, or all that have hyperparameters for it.

    Raises:
        ConfigurationError: a listed method has no file, or no hyperparameters for this experiment.
    """
    listed: Sequence[str] | str = scale.experiment(experiment)["methods"]
    every, eligible = methods(), _eligible(scale.settings, experiment)
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
    """One fully resolved run: model and data, method, task, seed and hyperparameters."""

    experiment: str
    scale: str
    method: str  # the stem of its file
    label: str
    task: str
    seed: int
    adapt: dict[str, Any]
    hyperparameters: dict[str, Any]
    settings: dict[str, Any]  # the experiment's model, data, limits, layers, head
    resources: dict[str, Any]  # mirror, foundation, device: locations, not part of the run id
    rate_factor: float | None = None  # learning rate divided by the method's

    @property
    def config(self) -> dict[str, Any]:
        """The settings that determine the results. Locations are not included; a rebuilt foundation model is."""
        decisive = {
            "experiment": self.experiment, "scale": self.scale, "method": self.method, "task": self.task, "seed": self.seed,
            "adapt": self.adapt, "hyperparameters": self.hyperparameters, "settings": self.settings,
        }  # fmt: skip
        return decisive | ({"foundation": "rebuild"} if self.resources.get("foundation") == "rebuild" else {})

    @property
    def run_id(self) -> str:
        """Identifies the run; it contains a hash of all settings that determine the results."""
        return f"{self.experiment}-{self.method}-{self.task}-seed{self.seed}-{digest(self.config)}"


@dataclass(frozen=True)
class Job:
    """The runs that share one notebook, one kernel and one base model."""

    name: str
    experiment: str
    runs: tuple[RunSpec, ...]

    @property
    def digest(self) -> str:
        """Hash of the configurations of all runs. Snakemake repeats the job if it changes."""
        return digest([run.config for run in self.runs])


def hyperparameters(scale: Scale, experiment: str, method: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Hyperparameters of a run, in increasing order of precedence: those of the scale, of the method's section ``default``,
    and of the method's sections that the scale names. In each of them, the values for the task take precedence."""
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
            trains = adapt["kind"] != "none"  # without training, results do not depend on learning rate and seed
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
    """The jobs of an experiment: its runs grouped by the keys in ``jobs`` of the scale (method, task, rate, seed).

    At the small scales a job has all runs of one method, so that a new method is run without repeating others. At the paper
    scale every run is a job.
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
