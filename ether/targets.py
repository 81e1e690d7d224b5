"""The targets of a command line: the exhibits that they ask for, and the reasons why one of these cannot be made.

The workflow checks them before the first job: a target that ends without its file, or shows an old one, is an error at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ether import config
from ether.config import ExhibitEntry, Scale
from ether.errors import ConfigurationError, EtherError, MissingResourceError, combined, one_of
from ether.paper import published

OF_ALL_EXHIBITS = ("all", "claims", "site", "report")
OF_A_KIND = {"tables": "table", "figures": "figure"}
OTHERS = ("foundation", "publish")


def metrics_of(experiment: str, folder: Path) -> list[Path]:
    """The files of an experiment's collected metrics in a folder."""
    return [folder / f"{experiment}.{ending}" for ending in ("parquet", "runs.parquet")]


def named(target: str, scale: Scale) -> ExhibitEntry | None:
    """The exhibit that a target names, by its id or by one of its files."""
    files = {str(file): exhibit for exhibit in config.exhibits().values() for file in exhibit.files(scale.results)}
    return config.exhibits().get(target) or files.get(str(Path(target)))


def wanted(targets: Iterable[str], scale: Scale) -> dict[str, ExhibitEntry]:
    """The exhibits that targets ask for, by name or as all of a kind."""
    targets = set(targets)
    kinds = {OF_A_KIND[target] for target in targets & OF_A_KIND.keys()}
    by_name = {exhibit.id for target in targets if (exhibit := named(target, scale))}
    return {
        id_: exhibit
        for id_, exhibit in config.exhibits().items()
        if targets & set(OF_ALL_EXHIBITS) or exhibit.kind in kinds or id_ in by_name
    }


def printed_methods(exhibit: str, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The methods that a table prints: those whose file has no `tables`, or lists this table there. A table with `rows: paper`
    prints only those of the paper."""
    entry = config.exhibits()[exhibit]
    of_paper = published.load()[entry.columns_of or exhibit].methods if entry.rows == "paper" else methods
    return {stem: method for stem, method in methods.items() if stem in of_paper and exhibit in method.get("tables", [exhibit])}


# --- why an exhibit cannot be made -----------------------------------------------------------------------------


def obstacle(exhibit: ExhibitEntry, scale: Scale) -> EtherError | None:
    """Why an exhibit cannot be made with the scale and the command line's settings; None if it can."""
    for experiment in exhibit.experiments:
        if experiment not in scale.experiments():
            return _no_runs(exhibit.id, experiment, scale)
    if exhibit.kind == "table" and exhibit.experiments:
        chosen = config.chosen_methods(scale, exhibit.experiments[0])
        if not printed_methods(exhibit.id, chosen):
            return _nothing_printed(exhibit, scale)
    missing = _missing(exhibit, scale)
    if missing:
        return MissingResourceError(
            f"{exhibit.id} cannot be replayed from {scale.replay}: {', '.join(map(str, missing))} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Copy {'it' if len(missing) == 1 else 'them'} there, or leave out "
            "--config replay=… to run the experiment."
        )
    return None


def _nothing_printed(exhibit: ExhibitEntry, scale: Scale) -> ConfigurationError:
    """The error of a table that would have no row."""
    experiment = exhibit.experiments[0]
    whole = config.chosen_methods(config.load(scale.name), experiment)
    printed = ", ".join(printed_methods(exhibit.id, whole)) or "no method of this scale"
    if exhibit.rows != "paper":
        printed += f", and methods whose file in workflow/methods has no `tables` or lists {exhibit.id} there"
    return ConfigurationError(
        f"{exhibit.id} prints none of the methods {', '.join(config.chosen_methods(scale, experiment))}. It prints "
        f"{printed}: choose others by --config methods=…"
    )


def _no_runs(target: str, experiment: str, scale: Scale) -> ConfigurationError:
    whole = config.load(scale.name)
    if experiment not in whole.experiments():
        return ConfigurationError(
            f"{target} needs the experiment {experiment!r}, which scale {scale.name!r} leaves out: choose another scale."
        )
    given = ", ".join(f"{key}={scale.overrides[key]}" for key in ("methods", "tasks") if key in scale.overrides)
    return ConfigurationError(
        f"{target} needs the experiment {experiment!r}, which has no run with --config {given}. Its methods at scale "
        f"{scale.name!r} are {', '.join(config.chosen_methods(whole, experiment))}; its tasks are "
        f"{', '.join(whole.experiment(experiment)['known_tasks'])}."
    )


def _of_no_experiment(target: str, scale: Scale) -> list[EtherError]:
    """The error of a target that is a file of collected metrics, or the results of a run, of an experiment without runs."""
    try:
        kind, name, *_ = Path(target).relative_to(scale.results).parts
    except ValueError:  # another folder, or the file of no experiment
        return []
    if kind not in ("metrics", "runs", "samples", "checked"):
        return []
    name = name.removesuffix(".parquet").removesuffix(".json").removesuffix(".runs")
    if name not in config.experiments():
        return [one_of("experiment", name, config.experiments(), target)]
    return [] if name in scale.experiments() else [_no_runs(target, name, scale)]


def _missing(exhibit: ExhibitEntry, scale: Scale) -> list[Path]:
    """The files that a replay of an exhibit reads and the folder does not have."""
    if scale.replay is None:
        return []
    files = [file for experiment in exhibit.experiments for file in metrics_of(experiment, scale.metrics_folder)]
    return [file for file in files if not file.is_file()]


def _incomplete(exhibit: ExhibitEntry, scale: Scale) -> bool:
    """Whether a replay folder has one of an experiment's files of metrics and not the other."""
    missing = set(_missing(exhibit, scale))
    pairs = [metrics_of(experiment, scale.metrics_folder) for experiment in exhibit.experiments]
    return any(missing & set(pair) and not missing >= set(pair) for pair in pairs)


# --- the check -------------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """The exhibits that the targets ask for."""

    exhibits: dict[str, ExhibitEntry] = field(default_factory=dict)  # those that can be made
    left_out: dict[str, EtherError] = field(default_factory=dict)  # those of an aggregate that cannot, and why

    def notice(self, scale: Scale) -> str:
        """One line on the exhibits that are left out; empty if there is none."""
        if not self.left_out:
            return ""
        why = f"the replay folder {scale.replay} or " if scale.replay else ""
        return f"Left out, because {why}the scale with these settings has no runs for it: {', '.join(self.left_out)}."


def check(targets: Iterable[str], rules: Iterable[str], scale: Scale) -> Checked:
    """Checks the targets of a command line before the first job.

    Exhibits that are part of an aggregate target (`all`, `tables`, …) and have no runs are left out.

    Args:
        targets: as given.
        rules: the names of the workflow's rules. A target that is one of them, or a path, is left to Snakemake otherwise.
        scale: with the command line's settings.

    Raises:
        EtherError: an unknown target, or an exhibit given by its name that cannot be made; all of them in one message.
    """
    targets, rules = list(targets), set(rules)
    errors: list[EtherError] = []
    known = [*config.exhibits(), *OF_A_KIND, *OF_ALL_EXHIBITS, *OTHERS]
    for target in targets:
        if target not in {*rules, *known} and "/" not in target and not Path(target).exists():
            errors.append(one_of("target", target, known))
        errors += _of_no_experiment(target, scale)
    explicit = {exhibit.id for target in targets if (exhibit := named(target, scale))}
    checked = Checked()
    for id_, exhibit in wanted(targets, scale).items():
        error = obstacle(exhibit, scale)
        if error is None:
            checked.exhibits[id_] = exhibit
        elif id_ in explicit or _incomplete(exhibit, scale):
            errors.append(error)
        else:
            checked.left_out[id_] = error
    if errors:
        raise combined(errors)
    return checked
