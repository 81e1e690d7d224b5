"""Scales and methods: the YAML files under ``workflow/`` read, overlaid, checked and resolved into runs.

``paper.yaml`` is the source of truth; every other scale is an overlay on it (``over: paper``). A method is one file.
Nothing here knows what a method or an experiment does; nothing elsewhere asks which scale it is.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from ether.errors import ConfigurationError, MissingResourceError, one_of
from ether.results import digest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
# The sections of a scale that hold an experiment, and the module of `ether.experiments` and notebook each runs in.
EXPERIMENTS = {
    "glue": "glue",
    "instruct": "instruct",
    "instruct_rates": "instruct",  # the same over a grid of learning rates
    "subject": "subject",
    "subject_rates": "subject",
    "subject_factors": "subject",  # each method's own rate, divided and multiplied
    "perturbation": "perturbation",
}
# Keys of such a section that say which runs there are; everything else in it is passed to the run.
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
)


# --- reading ---------------------------------------------------------------------------------------------------


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which a key given twice is an error rather than silently the last one."""


def _mapping_without_duplicates(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ConfigurationError(f"{node.start_mark.name}: the key {sorted(map(str, twice))[0]!r} is given twice.")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
        MissingResourceError: no such file.
        ConfigurationError: not YAML, a duplicate key, or not a mapping.
    """
    if not path.is_file():
        raise MissingResourceError(f"{path} does not exist.")
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a mapping, not {type(content).__name__}.")
    return content


@functools.cache
def _schema(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema with the definitions of ``scale.schema.yaml``, which the two share, and those definitions."""
    shared = read_yaml(WORKFLOW / "schemas" / "scale.schema.yaml")["$defs"]
    definition = read_yaml(WORKFLOW / "schemas" / f"{name}.schema.yaml")
    return definition | {"$defs": shared | definition.get("$defs", {})}, shared


def validate(content: Mapping[str, Any], schema: str, where: Path) -> None:
    """Checks a mapping against ``workflow/schemas/<schema>.schema.yaml``.

    Raises:
        ConfigurationError: names the file, the key and what is allowed there.
    """
    definition, shared = _schema(schema)
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(definition).iter_errors(content))
    if error is None:
        return
    key = "/".join(map(str, error.absolute_path)) or "the top level"
    message = error.message
    if isinstance(error.instance, str) and re.fullmatch(r"\d+(\.\d*)?e[+-]?\d+", error.instance, re.I):
        message += f" (YAML reads {error.instance} as text: write it with a dot and a sign, as 1.0e-3)"
    allowed = (error.schema.get("properties") or {}) if isinstance(error.schema, dict) else {}
    if error.validator == "unevaluatedProperties":
        allowed = {**shared["values"]["properties"], **allowed}
    if error.validator in ("additionalProperties", "unevaluatedProperties") and allowed:
        message += f". Known keys there: {', '.join(sorted(allowed))}"
    raise ConfigurationError(f"{where}, at {key}: {message}.")


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``: mappings are merged key by key, everything else is replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


# --- methods ---------------------------------------------------------------------------------------------------


@functools.cache
def _methods() -> str:
    found: dict[str, Any] = {}
    labels: dict[str, Path] = {}
    for path in sorted((WORKFLOW / "methods").glob("*.yaml")):
        content = read_yaml(path)
        validate(content, "method", path)
        if content["label"] in labels:
            raise ConfigurationError(
                f"{path} and {labels[content['label']]} have the same label {content['label']!r}: labels name the rows "
                "of the tables, so give one of them another."
            )
        labels[content["label"]] = path
        found[path.stem] = content
    return json.dumps(found)


def methods() -> dict[str, dict[str, Any]]:
    """Every method under ``workflow/methods``, by file name, in the order of their ``order`` key.

    Raises:
        ConfigurationError: a file does not fit the schema, or two share a label.
    """
    found = json.loads(_methods())
    return dict(sorted(found.items(), key=lambda item: (item[1].get("order", 1000), item[0])))


# --- scales ----------------------------------------------------------------------------------------------------


def scale_names() -> list[str]:
    """The scales there are: the files under ``workflow/scales``."""
    return sorted(path.stem for path in (WORKFLOW / "scales").glob("*.yaml"))


def _read_scale(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if name not in scale_names():
        raise one_of("scale", name, scale_names(), "--config scale=…")
    if name in seen:
        raise ConfigurationError(f"The scales {' -> '.join((*seen, name))} are laid over each other in a circle.")
    content = read_yaml(WORKFLOW / "scales" / f"{name}.yaml")
    base = content.pop("over", None)
    return overlay(_read_scale(base, (*seen, name)), content) if base else content


# What `--config` may say beside `scale`. Each replaces the setting of that name.
OVERRIDES = ("mirror", "foundation", "methods", "tasks", "seeds", "device")


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

    def protocol(self, *experiments: str) -> list[str]:
        """What differs from the paper's protocol: in general, and in some experiments."""
        lines = list(self.settings.get("protocol", []))
        for name in experiments:
            lines += self.experiment(name).get("protocol", [])
        return lines

    def experiment(self, name: str) -> dict[str, Any]:
        """The settings of one experiment.

        Raises:
            ConfigurationError: this scale has no such experiment.
        """
        if name not in EXPERIMENTS or name not in self.settings:
            raise one_of("experiment", name, [e for e in EXPERIMENTS if e in self.settings], f"scale {self.name!r}")
        return self.settings[name]


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Scale:
    """Reads a scale, lays the command line's overrides over it and checks every name in it.

    Args:
        name: a file under ``workflow/scales`` without its ending.
        overrides: any of ``OVERRIDES``; lists may be given as comma-separated text.

    Raises:
        ConfigurationError: unknown scale, override, method, task, or a value the schema does not allow.
        MissingResourceError: the mirror folder does not exist.
    """
    given = {key: value for key, value in (overrides or {}).items() if value not in (None, "")}
    for key in given:
        if key not in OVERRIDES:
            raise one_of("setting", key, ("scale", *OVERRIDES), "--config")
    settings = _read_scale(name)
    for experiment in EXPERIMENTS:
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
    validate(settings, "scale", WORKFLOW / "scales" / f"{name}.yaml")
    if settings["mirror"] and not Path(settings["mirror"]).expanduser().is_dir():
        raise MissingResourceError(
            f"The mirror folder {settings['mirror']} does not exist. Give --config mirror=FOLDER a folder laid out as "
            "datasets/<hub id>/<config>/<split>.parquet and models/<hub id>/, or leave it out to use the hub."
        )
    scale = Scale(name, settings, dict(given))
    for experiment in EXPERIMENTS:
        if experiment in settings:
            chosen_methods(scale, experiment)
            known = settings[experiment]["known_tasks"]
            for task in settings[experiment]["tasks"]:
                if task not in known:
                    raise one_of("task", task, known, f"{experiment} of scale {name!r} (or --config tasks=…)")
    return scale


def _choose(settings: dict[str, Any], key: str, wanted: list[str], scale: str) -> None:
    """Narrows each experiment to the methods or tasks asked for; one that knows none of them is left out altogether.

    Raises:
        ConfigurationError: a name that no experiment of the scale knows.
    """
    there = [experiment for experiment in EXPERIMENTS if experiment in settings]
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


def _eligible(settings: Mapping[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """The methods with hyperparameters for an experiment at a scale: a `default`, or a section that the scale names."""
    sections = {"default", *settings["hyperparameters"]}
    trained_as = settings[experiment].get("like", experiment)
    # Variants of a method that only some table shows are not swept.
    swept = {"learning_rates", "rate_factors"} & set(settings[experiment])
    return {
        key: method
        for key, method in methods().items()
        if trained_as in method["training"]
        and sections & set(method["training"][trained_as] or {"default": {}})
        and not (swept and "tables" in method)
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
    method_id: str
    label: str
    task: str
    seed: int
    adapt: dict[str, Any]
    hyperparameters: dict[str, Any]
    settings: dict[str, Any]  # the experiment's model, data, limits, layers, head
    resources: dict[str, Any]  # mirror, foundation, device: where things are, not what they are

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        return {
            "experiment": self.experiment, "scale": self.scale, "method": self.label, "method_id": self.method_id,
            "task": self.task, "seed": self.seed, "adapt": self.adapt, "hyperparameters": self.hyperparameters,
            "settings": self.settings, "resources": self.resources,
        }  # fmt: skip

    @property
    def run_id(self) -> str:
        """Names the run and, through a hash of its configuration, everything it was asked to do."""
        return f"{self.experiment}-{self.method_id}-{self.task}-seed{self.seed}-{digest(self.config)}"


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
    each, what is said for the task comes last."""
    layers = [scale.experiment(experiment)["training"]]
    own = method["training"][scale.experiment(experiment).get("like", experiment)] or {}
    layers += [own[section] for section in ("default", *scale.settings["hyperparameters"]) if section in own]
    merged: dict[str, Any] = {}
    for layer in layers:
        flat = {key: value for key, value in layer.items() if key != "tasks"}
        merged = overlay(overlay(merged, flat), (layer.get("tasks") or {}).get(task, {}))
    return merged


def runs(scale: Scale, experiment: str) -> list[RunSpec]:
    """Every run of an experiment, in the order method, task, learning rate, seed."""
    section = scale.experiment(experiment)
    about: dict[str, Any] = {key: value for key, value in section.items() if key not in _SELECTION}
    resources = {key: scale.settings[key] for key in ("mirror", "foundation", "device")}
    seeds = scale.settings["seeds"] if "seeds" in scale.overrides else section.get("seeds", scale.settings["seeds"])
    found = []
    for key, method in chosen_methods(scale, experiment).items():
        for task in section["tasks"]:
            values = hyperparameters(scale, experiment, method, task)
            adapt = method["adapt"]
            if config := values.pop("config", None):
                adapt = overlay(adapt, {"config": config})
            trains = adapt["kind"] != "none"  # what is not trained comes out the same for every rate and seed
            rates = section.get("learning_rates") if trains else None
            if trains and "rate_factors" in section:
                rates = [float(f"{factor * values['learning_rate']:.6g}") for factor in section["rate_factors"]]
            for rate in rates or [values.get("learning_rate")]:
                for seed in seeds if trains else seeds[:1]:
                    found.append(
                        RunSpec(
                            experiment,
                            scale.name,
                            key,
                            method["label"],
                            task,
                            seed,
                            adapt,
                            values | {"learning_rate": rate},
                            about,
                            resources,
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
        named = {"method": run.method_id, "task": run.task, "rate": f"rate{rate}", "seed": f"seed{run.seed}"}
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
