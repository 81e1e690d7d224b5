"""Copies the results of a scale to ``results/published/<scale>``: ``python -m ether.publish small``.

Copied are metrics and runs, tables, figures, judged claims, executed notebooks, and the images that figures open (found by
drawing the figures once more and recording the files they open). Experiments and exhibits that have not been run or made here
keep what was published before. ``manifest.json`` describes the published runs: commits, versions, machines, dates.

Published is the complete scale (``--config complete=true``). Further seeds, methods or rates are published in two steps.
``--add`` joins the runs made here to the published ones. Then the tables and figures of all of them are made with ``--config
replay=results/published/small`` and copied with ``--replay`` (the target ``publish`` with the same ``--config``).

Nothing is copied if runs are from a tree with changes that were not committed (unless ``--allow-dirty`` is given), if a table or
figure is older than the metrics it shows, or if an executed notebook contains an error.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import functools
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ether import config, results
from ether.config import ExhibitEntry, Scale
from ether.errors import ConfigurationError, EtherError, MissingResourceError, combined
from ether.exhibits import verdicts

PUBLISHED = Path("results") / "published"


# --- the images that figures open ------------------------------------------------------------------------------

_recorders: list[set[Path]] = []


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _recorders and isinstance(arguments[0], str | os.PathLike):
        _recorders[-1].add(Path(os.path.abspath(arguments[0])))  # noqa: PTH100 (without following links)


@functools.cache
def _install() -> None:
    sys.addaudithook(_record)  # cannot be removed, and records nothing outside a block of `opened`


@contextlib.contextmanager
def opened() -> Iterator[set[Path]]:
    """Yields a set to which the absolute path of every file is added that Python opens within the block."""
    _install()
    files: set[Path] = set()
    _recorders.append(files)
    try:
        yield files
    finally:
        _recorders.pop()


def images(scale: Scale, figures: Sequence[ExhibitEntry]) -> list[Path]:
    """The files under ``samples`` that figures open while they are drawn, relative to the folder that ``samples`` is in."""
    with opened() as files:
        for entry in figures:
            getattr(importlib.import_module(f"ether.exhibits.{entry.module}"), entry.id)(scale)
    samples = Path(os.path.abspath(scale.samples_folder))  # noqa: PTH100
    return sorted(file.relative_to(samples.parent) for file in files if file.is_relative_to(samples))


# --- what is published -----------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What has been run and made at a scale, and the files to copy, relative to the folder of its results."""

    scale: Scale
    experiments: list[str]  # those with collected metrics
    exhibits: list[ExhibitEntry]  # those with all their files
    files: list[Path] = field(default_factory=list)  # see `source`
    replaced: list[Path] = field(default_factory=list)  # folders in which files that are not copied are outdated
    removed: dict[str, int] = field(default_factory=dict)  # experiment: published runs that the scale no longer has

    def source(self, file: Path) -> Path:
        """Where a file is: metrics and images may be in the replay folder."""
        replayed = self.scale.replay if file.parts[0] in ("metrics", "samples") else None
        return (replayed or self.scale.results) / file


def metrics_files(experiment: str) -> list[Path]:
    """The collected metrics and runs of an experiment."""
    return [Path("metrics") / f"{experiment}.parquet", Path("metrics") / f"{experiment}.runs.parquet"]


def plan(scale: Scale) -> Plan:
    """What there is to publish.

    Raises:
        MissingResourceError: nothing.
    """
    folder, measured = scale.results, scale.metrics_folder.parent
    experiments = [name for name in config.experiments() if all((measured / file).is_file() for file in metrics_files(name))]
    exhibits = [entry for entry in config.exhibits().values() if all(file.is_file() for file in entry.files(folder))]
    if not experiments and not exhibits:
        raise MissingResourceError(
            f"There is nothing to publish under {folder}: run a target first, as `snakemake --cores 1 table4 --config "
            f"scale={scale.name}`."
        )
    found = Plan(scale, experiments, exhibits)
    for name in experiments:
        found.files += metrics_files(name)
        if scale.replay is None:  # else they are not from here
            found.files += _notebooks(folder, f"runs/{name}/*.ipynb")
            found.replaced.append(Path("notebooks", "runs", name))
    for entry in exhibits:
        found.files += [file.relative_to(folder) for file in entry.files(folder)]
        found.files += _notebooks(folder, f"{entry.id}.ipynb")
    found.files += _notebooks(folder, "foundation_*.ipynb")
    return found


def _notebooks(folder: Path, pattern: str) -> list[Path]:
    return sorted(file.relative_to(folder) for file in (folder / "notebooks").glob(pattern) if not file.name.startswith("."))


def _with_images(found: Plan) -> None:
    """Adds the images of the figures whose experiments have all been run here."""
    known = config.experiments()
    figures = [
        entry
        for entry in config.exhibits().values()
        if entry.kind == "figure"
        and any(known[name].samples for name in entry.experiments)
        and set(entry.experiments) <= set(found.experiments)
    ]
    found.files += images(found.scale, figures)
    shown = {name for entry in figures for name in entry.experiments if known[name].samples}
    found.replaced += [Path("samples") / name for name in sorted(shown)]


# --- what must not be published --------------------------------------------------------------------------------


def uncommitted(folder: Path, experiment: str) -> str:
    """A sentence on the runs of an experiment without a commit that has their code; '' if there are none."""
    runs = pd.read_parquet(folder / metrics_files(experiment)[1])
    commits = runs["git_commit"].fillna("")
    bad = runs[commits.str.endswith("+") | commits.eq("")]
    if bad.empty:
        return ""
    names = ", ".join(sorted(bad["method"].unique()))
    return f"{experiment}: {len(bad)} of {len(runs)} runs ({names})"


def _outdated(found: Plan) -> Iterator[str]:
    for entry in found.exhibits:
        made = min(file.stat().st_mtime for file in entry.files(found.scale.results))
        for name in entry.experiments:
            if name in found.experiments:
                measured = max(found.source(file).stat().st_mtime for file in metrics_files(name))
                if measured > made:
                    yield f"{entry.id} is older than the metrics of {name}"


def failed(notebook: Path) -> bool:
    """Whether an executed notebook contains an error."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))


def _dirty(found: Plan, allowed: bool) -> list[str]:
    dirty = [line for name in found.experiments if (line := uncommitted(found.scale.metrics_folder.parent, name))]
    if allowed or not dirty:
        return []
    return [
        "These runs were made with code that is not in a commit (their commit ends with `+` or is not known), so nobody could "
        f"make them again: {'; '.join(dirty)}. Commit, delete them under {found.scale.results}/runs and run the workflow again; "
        f"or publish them as they are with `python -m ether.publish {found.scale.name} --allow-dirty`."
    ]


def check(found: Plan, allow_dirty: bool = False) -> None:
    """Checks that the files of a plan belong together and can be made again.

    Raises:
        ConfigurationError: runs of a tree with changes, an exhibit older than its metrics, or a notebook with an error. All are
            named together.
    """
    folder, errors = found.scale.results, _dirty(found, allow_dirty)
    if outdated := list(_outdated(found)):
        errors.append(f"{'; '.join(outdated)}: run `snakemake --cores 1 all --config scale={found.scale.name}` first.")
    if broken := [str(file) for file in found.files if file.suffix == ".ipynb" and failed(folder / file)]:
        errors.append(f"These notebooks ended with an error: {', '.join(broken)}. Run the workflow again.")
    if errors:
        raise combined([ConfigurationError(error) for error in errors])


# --- publishing ------------------------------------------------------------------------------------------------


def _copy(source: Path, destination: Path) -> None:
    if destination.is_file() and filecmp.cmp(source, destination, shallow=False):
        return
    with results.atomic(destination) as temporary:
        shutil.copyfile(source, temporary)


def _remove_others(folder: Path, kept: set[Path]) -> None:
    """Removes the files below a folder that are not in `kept`, and folders left empty."""
    for file in sorted(folder.rglob("*"), reverse=True):
        if file.is_dir():
            with contextlib.suppress(OSError):
                file.rmdir()
        elif file not in kept:
            file.unlink()


def manifest(folder: Path, scale_name: str) -> dict[str, Any]:
    """Describes the runs published in a folder: their number, seeds, commits, versions, machines and dates by experiment."""
    experiments = {}
    for name in config.experiments():
        file = folder / metrics_files(name)[1]
        if not file.is_file():
            continue
        runs = pd.read_parquet(file)
        experiments[name] = {
            "runs": len(runs),
            "finished": int((runs["status"] == "finished").sum()),
            "seeds": sorted(int(seed) for seed in runs["seed"].unique()),
            "commits": sorted(runs["git_commit"].fillna("").unique()),
            "uncommitted": uncommitted(folder, name),
            "devices": sorted(runs["device"].unique()),
            "versions": [json.loads(text) for text in sorted(runs["versions"].unique())],
            "first_started": str(runs["started"].min()),
            "last_started": str(runs["started"].max()),
        }
    return {"scale": scale_name, "experiments": experiments}


def publish(scale_name: str, allow_dirty: bool = False, replay: str | None = None) -> Plan:
    """Copies what a scale has to ``results/published/<scale>``, and writes its manifest and the page of its claims.

    Args:
        scale_name: a file of ``workflow/scales``.
        allow_dirty: also runs of a tree with changes that were not committed.
        replay: the folder of metrics and images that the tables and figures were made from, as with ``--config replay=FOLDER``.

    Returns:
        What was copied.

    Raises:
        ConfigurationError: unknown scale, or something that must not be published (see `check`).
        MissingResourceError: there is nothing to publish.
    """
    scale = config.load(scale_name, {"replay": replay} if replay else {})
    found = plan(scale)
    check(found, allow_dirty)
    _with_images(found)
    destination = PUBLISHED / scale.name
    for file in found.files:
        _copy(found.source(file), destination / file)
    for folder in found.replaced:
        _remove_others(destination / folder, {destination / file for file in found.files})
    with contextlib.suppress(MissingResourceError):  # no exhibit with claims is published
        verdicts.Collected(scale.name, verdicts.collect(destination, scale.name)).write(destination)
    _claims_notebook(found, destination)
    _write_manifest(destination, scale.name)
    return found


def _write_manifest(destination: Path, scale_name: str) -> None:
    text = json.dumps(manifest(destination, scale_name), indent=2, ensure_ascii=False)
    results.write_text(f"{text}\n", destination / "manifest.json")


def _of_scale(scale_name: str, experiment: str, destination: Path) -> set[str]:
    """The ids of the runs that a scale has when it is complete, with the seeds that are published in a folder."""
    file = destination / metrics_files(experiment)[1]
    if not file.is_file():
        return set()
    seeds = sorted(int(seed) for seed in pd.read_parquet(file)["seed"].unique())
    return {spec.run_id for spec in config.runs(config.load(scale_name, {"complete": True, "seeds": seeds}), experiment)}


def add(scale_name: str, allow_dirty: bool = False) -> Plan:
    """Joins the runs made here, with all their images, to those in ``results/published/<scale>``.

    A run that is published already is replaced, and one that the scale no longer has is removed, since a table would average
    over both: the rate of its method has changed, for example. Tables, figures and notebooks stay as they were published.

    Args:
        scale_name: a file of ``workflow/scales``.
        allow_dirty: also runs of a tree with changes that were not committed.

    Returns:
        What was joined or copied.

    Raises:
        ConfigurationError: unknown scale, or runs of a tree with changes.
        MissingResourceError: there is nothing to publish.
    """
    scale = config.load(scale_name)
    made = plan(scale)
    if errors := _dirty(made, allow_dirty):
        raise combined([ConfigurationError(error) for error in errors])
    found = Plan(scale, made.experiments, [])
    destination = PUBLISHED / scale.name
    for name in found.experiments:
        made_here = pd.read_parquet(scale.results / metrics_files(name)[1])
        here, of_scale = set(made_here["run_id"]), _of_scale(scale_name, name, destination)
        for file, columns in zip(metrics_files(name), (results.METRIC_COLUMNS, results.RUN_COLUMNS), strict=True):
            rows = results.read_parquet(scale.results / file, columns)
            if (destination / file).is_file():
                before = results.read_parquet(destination / file, columns)
                found.removed[name] = len(set(before["run_id"]) - of_scale - here)
                rows = pd.concat([before[before["run_id"].isin(of_scale - here)], rows], ignore_index=True)
            results.write_parquet(rows, destination / file)
            found.files.append(file)
        samples = (file for folder in (scale.results / "samples" / name).glob("*/*") for file in folder.rglob("*"))
        for file in sorted(file.relative_to(scale.results) for file in samples if file.is_file()):
            _copy(scale.results / file, destination / file)
            found.files.append(file)
    _write_manifest(destination, scale.name)
    return found


def _claims_notebook(found: Plan, destination: Path) -> None:
    """Copies the notebook of the claims if it shows all published claims, and removes an earlier one that does not."""
    name, table = Path("notebooks") / "claims.ipynb", Path("claims.parquet")
    source = found.scale.results
    whole = all((folder / table).is_file() for folder in (source, destination)) and pd.read_parquet(source / table).equals(
        pd.read_parquet(destination / table)
    )
    if whole and (source / name).is_file():
        _copy(source / name, destination / name)
        found.files.append(name)
    else:
        (destination / name).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.publish", description="Copies results to results/published.")
    parser.add_argument("scale", help="a file of workflow/scales")
    parser.add_argument("--allow-dirty", action="store_true", help="also runs whose code is not in a commit")
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--add", action="store_true", help="join the runs made here to the published ones, and nothing else")
    step.add_argument("--replay", metavar="FOLDER", help="the tables and figures were made with --config replay=FOLDER")
    options = parser.parse_args(arguments)
    try:
        if options.add:
            found = add(options.scale, options.allow_dirty)
        else:
            found = publish(options.scale, options.allow_dirty, options.replay)
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    size = sum(found.source(file).stat().st_size for file in found.files) / 2**20
    print(f"{len(found.files)} files, {size:.1f} MiB, are in {PUBLISHED / found.scale.name}.")
    print(f"  experiments: {', '.join(found.experiments) or 'none'}")
    print(f"  exhibits:    {', '.join(entry.id for entry in found.exhibits) or 'none'}")
    for name, number in found.removed.items():
        if number:
            print(f"  removed:     {number} published runs of {name} that the scale no longer has")
    if options.add:
        setting = f"--config scale={options.scale} replay={PUBLISHED / options.scale}"
        print(f"Then make their tables and figures: snakemake --cores 1 all {setting} && snakemake --cores 1 publish {setting}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
