"""Copies the results of a scale to ``results/published/<scale>``: ``python -m ether.publish small``.

Copied are metrics and runs, tables, figures, judged claims, executed notebooks, and the images that figures open (found by
drawing the figures once more and recording the files they open). Experiments and exhibits that have not been run or made here
keep what was published before. ``manifest.json`` describes the published runs: commits, versions, machines, dates.

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
    """The files under ``samples`` that figures open while they are drawn, relative to the folder of the scale's results."""
    with opened() as files:
        for entry in figures:
            getattr(importlib.import_module(f"ether.exhibits.{entry.module}"), entry.id)(scale)
    root = Path(os.path.abspath(scale.results))  # noqa: PTH100
    samples = Path(os.path.abspath(scale.samples_folder))  # noqa: PTH100
    return sorted(file.relative_to(root) for file in files if file.is_relative_to(samples))


# --- what is published -----------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What has been run and made at a scale, and the files to copy, relative to the folder of its results."""

    scale: Scale
    experiments: list[str]  # those with collected metrics
    exhibits: list[ExhibitEntry]  # those with all their files
    files: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)  # folders in which files that are not copied are outdated


def metrics_files(experiment: str) -> list[Path]:
    """The collected metrics and runs of an experiment."""
    return [Path("metrics") / f"{experiment}.parquet", Path("metrics") / f"{experiment}.runs.parquet"]


def plan(scale: Scale) -> Plan:
    """What there is to publish.

    Raises:
        MissingResourceError: nothing.
    """
    folder = scale.results
    experiments = [name for name in config.experiments() if all((folder / file).is_file() for file in metrics_files(name))]
    exhibits = [entry for entry in config.exhibits().values() if all(file.is_file() for file in entry.files(folder))]
    if not experiments and not exhibits:
        raise MissingResourceError(
            f"There is nothing to publish under {folder}: run a target first, as `snakemake --cores 1 table4 --config "
            f"scale={scale.name}`."
        )
    found = Plan(scale, experiments, exhibits)
    for name in experiments:
        found.files += metrics_files(name)
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
                measured = max((found.scale.results / file).stat().st_mtime for file in metrics_files(name))
                if measured > made:
                    yield f"{entry.id} is older than the metrics of {name}"


def failed(notebook: Path) -> bool:
    """Whether an executed notebook contains an error."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))


def check(found: Plan, allow_dirty: bool = False) -> None:
    """Checks that the files of a plan belong together and can be made again.

    Raises:
        ConfigurationError: runs of a tree with changes, an exhibit older than its metrics, or a notebook with an error. All are
            named together.
    """
    folder, errors = found.scale.results, []
    dirty = [line for name in found.experiments if (line := uncommitted(folder, name))]
    if dirty and not allow_dirty:
        errors.append(
            "These runs were made with code that is not in a commit (their commit ends with `+` or is not known), so nobody "
            f"could make them again: {'; '.join(dirty)}. Commit, delete them under {folder}/runs and run the workflow again; or "
            f"publish them as they are with `python -m ether.publish {found.scale.name} --allow-dirty`."
        )
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


def publish(scale_name: str, allow_dirty: bool = False) -> Plan:
    """Copies what a scale has to ``results/published/<scale>``, and writes its manifest and the page of its claims.

    Args:
        scale_name: a file of ``workflow/scales``.
        allow_dirty: also runs of a tree with changes that were not committed.

    Returns:
        What was copied.

    Raises:
        ConfigurationError: unknown scale, or something that must not be published (see `check`).
        MissingResourceError: there is nothing to publish.
    """
    scale = config.load(scale_name)
    found = plan(scale)
    check(found, allow_dirty)
    _with_images(found)
    destination = PUBLISHED / scale.name
    for file in found.files:
        _copy(scale.results / file, destination / file)
    for folder in found.replaced:
        _remove_others(destination / folder, {destination / file for file in found.files})
    with contextlib.suppress(MissingResourceError):  # no exhibit with claims is published
        verdicts.Collected(scale.name, verdicts.collect(destination, scale.name)).write(destination)
    _claims_notebook(found, destination)
    text = json.dumps(manifest(destination, scale.name), indent=2, ensure_ascii=False)
    results.write_text(f"{text}\n", destination / "manifest.json")
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
    options = parser.parse_args(arguments)
    try:
        found = publish(options.scale, options.allow_dirty)
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    size = sum((found.scale.results / file).stat().st_size for file in found.files) / 2**20
    print(f"{len(found.files)} files, {size:.1f} MiB, are in {PUBLISHED / found.scale.name}.")
    print(f"  experiments: {', '.join(found.experiments) or 'none'}")
    print(f"  exhibits:    {', '.join(entry.id for entry in found.exhibits) or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
