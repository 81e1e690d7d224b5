"""Scales, methods, experiments and exhibits: the YAML files under ``workflow/``, validated and resolved into runs.

``experiments.yaml`` and ``exhibits.yaml`` are the only lists of experiments, tables and figures. ``paper.yaml`` is the base of
the scales; every other scale is an overlay on it (``over: paper``). A method is one file. This module does not depend on the
implementation of methods and experiments, and no other module depends on the name of the scale.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ether import scales
from ether.errors import ConfigurationError, EtherError, collecting, combined, one_of
from ether.overrides import OVERRIDES, check_folder
from ether.overrides import read as read_overrides
from ether.registry import ExhibitEntry, ExperimentEntry, exhibits, experiments, label, method, methods, modules
from ether.results import digest
from ether.scales import scale_names
from ether.yamlfiles import ROOT, WORKFLOW, overlay, read_yaml, validate

__all__ = [
    "OVERRIDES",
    "ROOT",
    "WORKFLOW",
    "ExhibitEntry",
    "ExperimentEntry",
    "Job",
    "RunSpec",
    "Scale",
    "chosen_methods",
    "drawn",
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
    "source",
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
    "search",
    "seeds",
    "complete",
    "like",
    "protocol",
    "select",
    "memory",
)
# What a table reports, by the `select` of an experiment.
_SELECT = {
    "last": "Reported is the last of {} evaluations of a run.",
    "best": "Reported is the best of {} evaluations of a run, which is selected on what it reports.",
    "half": "Reported is one half of the evaluation split, at the one of {} evaluations of a run that is best on the other half.",
}


# --- scales ----------------------------------------------------------------------------------------------------


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
        return {key: self.settings[key] for key in ("mirror", "foundation", "device", "processes")}

    def protocol(self, *experiments: str) -> list[str]:
        """Differences from the paper's protocol: those of the scale, those of the given experiments, and what they report."""
        lines = list(self.settings.get("protocol", []))
        for name in experiments:
            section = self.experiment(name)
            lines += section.get("protocol", [])
            if rule := _SELECT.get(section.get("select", "")):
                lines.append(rule.format(section["training"]["evaluations"]))
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
        ConfigurationError: unknown scale, override, method or task, or a value that the schema does not allow; all in one.
        MissingResourceError: the mirror or replay folder does not exist.
    """
    errors: list[EtherError] = []
    given = read_overrides(overrides or {}, errors)
    settings: dict[str, Any] = {}
    with collecting(errors):
        settings = scales.resolved(name)
    if not settings:
        raise combined(errors)
    raw = {key: value for key, value in (overrides or {}).items() if key in given}
    # A replay shows everything that is stored.
    if given.get("complete") or "replay" in given:
        for experiment in experiments():
            more = settings.get(experiment, {}).pop("complete", {})
            if more:
                settings[experiment] = overlay(settings[experiment], more)
    settings |= {key: given[key] for key in ("mirror", "foundation", "device", "processes", "seeds") if key in given}
    for key in ("methods", "tasks"):
        if key in given:
            errors += _choose(settings, key, given[key], name)
    errors += scales.wrong(settings, scales.file_of(name), raw)
    for key, folder, inside in (("mirror", settings["mirror"], ""), ("replay", given.get("replay"), "metrics")):
        if folder:
            with collecting(errors):
                check_folder(key, str(folder), inside)
    scale = Scale(name, settings, raw)
    for experiment in scale.experiments():
        with collecting(errors):
            chosen_methods(scale, experiment)
        section = settings[experiment]
        where = f"{experiment} of scale {name!r}"
        for task in dict.fromkeys((*section["tasks"], *section["training"].get("tasks", {}))):
            if task not in section["known_tasks"]:
                errors.append(one_of("task", task, section["known_tasks"], where))
    if errors:
        raise combined(errors)
    return scale


def _choose(settings: dict[str, Any], key: str, chosen: list[str], scale: str) -> list[EtherError]:
    """Restricts each experiment to the chosen methods or tasks; an experiment that has none of them is removed.

    Returns:
        An error for each name that no experiment of the scale has as a method or task; then nothing is changed.
    """
    sections = [experiment for experiment in experiments() if experiment in settings]
    known = {e: settings[e]["known_tasks"] if key == "tasks" else list(_eligible(settings, e)) for e in sections}
    errors: list[EtherError] = []
    for name in chosen:
        if not any(name in names for names in known.values()):
            every = methods() if key == "methods" else dict.fromkeys(t for names in known.values() for t in names)
            if name in every:
                modules_ = dict.fromkeys(_trained_as(settings, experiment) for experiment in sections)
                errors.append(_no_hyperparameters(name, f"an experiment of scale {scale!r}", modules_, settings))
            else:
                errors.append(one_of(key.removesuffix("s"), name, every, f"--config {key}=…"))
    for experiment in sections if not errors else ():
        if selected := [name for name in chosen if name in known[experiment]]:
            settings[experiment][key] = selected
        else:
            del settings[experiment]
    return errors


def _no_hyperparameters(stem: str, what: str, trained_as: Iterable[str], settings: Mapping[str, Any]) -> ConfigurationError:
    places = " or ".join(f"training.{name}" for name in trained_as)
    return ConfigurationError(
        f"workflow/methods/{stem}.yaml has no hyperparameters for {what}: give {places} a section `default` or "
        f"{' or '.join(settings['hyperparameters'])}."
    )


def _trained_as(settings: Mapping[str, Any], experiment: str) -> str:
    """The key of a method's ``training`` that holds its hyperparameters for an experiment."""
    return experiments()[settings[experiment].get("like", experiment)].module


def _eligible(settings: Mapping[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """The methods with hyperparameters for an experiment: a section `default`, or a section that the scale names."""
    sections = {"default", *settings["hyperparameters"]}
    trained_as = _trained_as(settings, experiment)
    swept = {"learning_rates", "rate_factors", "search"} & set(settings[experiment])
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
            trained_as = _trained_as(scale.settings, experiment)
            raise _no_hyperparameters(key, f"{experiment!r} of scale {scale.name!r}", [trained_as], scale.settings)
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
    resources: dict[str, Any]  # mirror, foundation, device, processes, memory: of the machine, not part of the run id
    rate_factor: float | None = None  # learning rate divided by the method's

    @property
    def processes(self) -> int:
        """Number of processes that execute the run, each on a GPU."""
        return int(self.resources.get("processes", 1))

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
    merged: dict[str, Any] = {}
    for layer in (scale.experiment(experiment)["training"], *_sections(scale, experiment, method)):
        flat = {key: value for key, value in layer.items() if key not in ("tasks", "source")}
        merged = overlay(overlay(merged, flat), (layer.get("tasks") or {}).get(task, {}))
    return merged


def _sections(scale: Scale, experiment: str, method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A method's sections that hold at a scale: `default` and those that the scale names, in increasing order of precedence."""
    sections = method["training"][_trained_as(scale.settings, experiment)] or {}
    return [sections[name] for name in ("default", *scale.settings["hyperparameters"]) if name in sections]


def source(scale: Scale, experiment: str, stem: str) -> str:
    """Where a method's hyperparameters at a scale are published; empty if they are a choice of this project."""
    sections = _sections(scale, experiment, method(stem))
    return str(sections[-1].get("source", "")) if sections else ""


def runs(scale: Scale, experiment: str) -> list[RunSpec]:
    """Every run of an experiment, in the order method, task, learning rate, seed."""
    section = scale.experiment(experiment)
    settings: dict[str, Any] = {key: value for key, value in section.items() if key not in _SELECTION}
    seeds = scale.settings["seeds"] if "seeds" in scale.overrides else section.get("seeds", scale.settings["seeds"])
    found = []
    for stem, entry in chosen_methods(scale, experiment).items():
        for task in section["tasks"]:
            given = hyperparameters(scale, experiment, entry, task)
            trains = entry["adapt"]["kind"] != "none"  # without training, results do not depend on learning rate and seed
            for changed, factor in _variants(section if trains else {}, given):
                values, adapt = overlay(given, changed), entry["adapt"]
                if config := values.pop("config", None):
                    adapt = overlay(adapt, {"config": config})
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
                            hyperparameters=values,
                            settings=settings,
                            resources=scale.resources | {"memory": section.get("memory")},
                            rate_factor=factor,
                        )
                    )
    return found


def _variants(section: Mapping[str, Any], values: Mapping[str, Any]) -> list[tuple[dict[str, Any], float | None]]:
    """The hyperparameters that the runs of a method change, and the factor of its learning rate where it is one."""
    if "search" in section:
        return [(changed, None) for changed in drawn(section["search"])]
    if "rate_factors" in section:
        return [({"learning_rate": float(f"{f * values['learning_rate']:.6g}")}, float(f)) for f in section["rate_factors"]]
    return [({"learning_rate": rate}, None) for rate in section.get("learning_rates", [values.get("learning_rate")])]


def drawn(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The combinations of a random search: different ones, drawn from all with equal probabilities.

    Args:
        search: ``choices``, a list of lists of hyperparameters, one of each of which a combination has; ``draws`` and ``seed``.
    """
    every: list[dict[str, Any]] = [{}]
    for choices in search["choices"]:
        every = [overlay(before, choice) for before in every for choice in choices]
    chosen = random.Random(search["seed"]).sample(range(len(every)), min(search["draws"], len(every)))
    return [every[number] for number in chosen]


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
