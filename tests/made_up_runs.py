"""Collected runs and images with known values, as the workflow would have left them, for the tests of exhibits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ether import config, results
from ether.analysis import runs as analysis_runs
from ether.analysis.cells import Cell
from ether.paper import published


@dataclass
class Run:
    """One run: what it is, and {(split, metric): value, or {step: value}}."""

    method: str
    values: Mapping[tuple[str, str], float | Mapping[int, float]]
    task: str = "alpaca"
    seed: int = 0
    rate: float = 0.01
    factor: float | None = None
    status: str = "finished"
    reason: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return f"{self.method}-{self.task}-{self.rate:g}-seed{self.seed}"


def store(folder: Path, experiment: str, runs: Iterable[Run]) -> None:
    """Writes ``<folder>/metrics/<experiment>.parquet`` and ``.runs.parquet``."""
    rows, metrics = [], []
    scale = folder.name if folder.parent.name == "results" else "small"
    for run in runs:
        kind = config.method(run.method)["adapt"]["kind"]
        row: dict[str, Any] = {name: "" if dtype == "string" else 0 for name, dtype in results.RUN_COLUMNS.items()}
        row |= {
            "run_id": run.run_id, "experiment": experiment, "scale": scale, "method": run.method,
            "label": config.label(run.method), "adapt_kind": kind, "task": run.task, "seed": run.seed,
            "learning_rate": np.nan if kind == "none" else run.rate, "rate_factor": np.nan if run.factor is None else run.factor,
            "blocks": None, "status": run.status, "reason": run.reason, "device": "a machine", "versions": "{}", "threads": 1,
        }  # fmt: skip
        rows.append(row | run.columns)
        for (split, metric), value in run.values.items():
            steps = value if isinstance(value, Mapping) else {100: value}
            for step, number in steps.items():
                metrics.append((run.run_id, step, split, run.task, metric, number))
    names = list(results.METRIC_COLUMNS)
    base = folder / "metrics" / experiment
    results.write_parquet(results.runs_frame(rows), base.with_suffix(".runs.parquet"))
    results.write_parquet(results.metrics_frame(dict(zip(names, m, strict=True)) for m in metrics), base.with_suffix(".parquet"))


def save_images(folder: Path, prompts: Mapping[str, str], each: int = 2) -> None:
    """Images of one colour and their ``samples.json``; {prompt: selection | report}."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (prompt, half) in enumerate(prompts.items()):
        for copy in range(each):
            files.append({"file": f"{number:02d}-{copy}.png", "prompt": prompt, "half": half})
            Image.new("RGB", (8, 8), (40 * number, 90, 30 * copy)).save(folder / files[-1]["file"])
    (folder / "samples.json").write_text(json.dumps({"images": files}), encoding="utf-8")


def counted(table: str, methods: Iterable[str]) -> list[Cell]:
    """In place of `ether.exhibits.exact.parameter_cells`, which builds the architectures: 1,000,000 for every method."""
    paper = published.load()[table]
    return [
        Cell(
            stem,
            paper.label(stem),
            "#params",
            1e6,
            paper=paper.paper(stem, "#params")[0],
            printed=paper.paper(stem, "#params")[1],
        )
        for stem in methods
    ]


def at(table: pd.DataFrame, method: str, column: str) -> Any:
    """The one cell of a method and column."""
    [row] = table[(table["method"] == method) & (table["column"] == column)].itertuples()
    return row


def nothing_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exhibits find no committed metrics of other experiments."""
    monkeypatch.setattr(analysis_runs, "published_metrics", lambda scale: Path("nowhere"))
