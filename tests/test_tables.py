"""Tables: intervals, averages, and the columns every table of the suite has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from ether import config, results, tables
from ether.errors import MissingResourceError
from ether.paper import published


def test_interval_agrees_with_scipys_bootstrap():
    values = [70.1, 73.4, 71.9, 74.8, 69.5]
    mean, low, high = tables.interval(values)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15)
    assert np.isnan(tables.interval([3.0])[1]) and np.isnan(tables.interval([])[0])


def _made_up(tmp_path, missing=(), diverged=()):
    """Runs of every method with a known score: task number + seed, ETHER+ ten higher."""
    scale = config.load("smoke")
    object.__setattr__(scale, "settings", {**scale.settings, "seeds": [0, 1, 2]})
    rows, metrics = [], []
    for spec in config.runs(scale, "glue"):
        if (spec.method_id, spec.task) in missing:
            continue
        bad = (spec.method_id, spec.task, spec.seed) in diverged
        row = dict.fromkeys(results.RUN_COLUMNS, 0)
        row |= {
            "run_id": spec.run_id, "experiment": "glue", "scale": "smoke", "method": spec.label,
            "method_id": spec.method_id, "task": spec.task, "seed": spec.seed, "device": "a machine",
            "status": "diverged" if bad else "finished", "reason": "loss is nan" if bad else "",
        }  # fmt: skip
        rows.append(row)
        value = list(tables.GLUE_COLUMNS).index(spec.task) + spec.seed + 10 * (spec.method_id == "ether-plus")
        for step, v in ((2, value + 50), (4, value)):
            metrics.append(
                {"run_id": spec.run_id, "step": step, "split": "validation", "task": spec.task, "metric": "score", "value": v}
            )
    results.write_parquet(results.runs_frame(rows), tmp_path / "results/smoke/metrics/glue.runs.parquet")
    results.write_parquet(results.metrics_frame(metrics), tmp_path / "results/smoke/metrics/glue.parquet")
    return scale


def _at(table, method, column):
    return table[(table["method"] == method) & (table["column"] == column)].iloc[0]


def test_table4_means_averages_and_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tables.write("table4", _made_up(tmp_path))
    assert list(table.columns) == ["method", "column", "ours", "low", "high", "seeds", "paper", "comparable", "note"]
    assert _at(table, "ETHER", "RTE").ours == 6 and _at(table, "ETHER", "RTE").seeds == 3  # 5 + mean seed 1, last step
    assert (_at(table, "ETHER", "RTE").low, _at(table, "ETHER", "RTE").high) == (5, 7)
    assert _at(table, "ETHER+", "Avg").ours == pytest.approx(3.5 + 1 + 10)
    assert not _at(table, "ETHER", "RTE").comparable and "mean nothing" in _at(table, "ETHER", "RTE").note
    paper = published.load()["table4"]
    for method in paper.methods:
        for column in paper.columns:
            assert _at(table, method, column.name).paper == paper.value(method, column.name)
    written = pd.read_parquet("results/smoke/tables/table4.parquet")
    pd.testing.assert_frame_equal(written, table)
    markdown = (tmp_path / "results/smoke/tables/table4.md").read_text()
    assert "| ETHER+ | ours | 331,776 |" in markdown and "paper | 0.33M | 90.52 |" in markdown


def test_params_are_whole_numbers_and_print_as_the_paper_where_they_can(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tables.write("table4", _made_up(tmp_path))
    paper = published.load()["table4"]
    for method in paper.methods:
        cell = _at(table, method, "#params")
        assert cell.ours == int(cell.ours) and cell.comparable
        verdict = published.prints_as(int(cell.ours), paper.printed(method, "#params"))
        assert verdict == ("mismatch" if method in ("H-Adapter", "AdaLoRA") else "match"), method


def test_diverged_runs_are_marked_and_not_averaged_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = _made_up(tmp_path, missing=[("lora", "cola")], diverged=[("ether", "rte", 2)])
    table = tables.write("table4", scale)
    cell = _at(table, "ETHER", "RTE")
    assert cell.ours == 5.5 and cell.seeds == 2 and "seed 2 diverged (loss is nan)" in cell.note
    assert _at(table, "ETHER", "Avg").seeds == 2  # the seed that lacks a task has no average
    missing = _at(table, "LoRA r=8", "CoLA")
    assert np.isnan(missing.ours) and "not run" in missing.note
    assert np.isnan(_at(table, "LoRA r=8", "Avg").ours)


def test_best_instead_of_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, metrics = tables.read(_made_up(tmp_path), "glue")
    last, best = (tables.scores(runs, metrics, select)["value"] for select in ("last", "best"))
    assert ((best - last) == 50).all()


def test_a_missing_experiment_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingResourceError, match="glue.runs.parquet is missing: run"):
        tables.write("table4", config.load("smoke"))


def test_html_marks_the_best_and_shows_the_papers_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = tables.to_html(tables.write("table4", _made_up(tmp_path)))
    assert "<b>14.50</b>" in shown and "paper 90.10" in shown and "paper 0.33M" in shown


def test_figure_draws_every_method(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from ether import plots

    monkeypatch.chdir(tmp_path)
    scale = _made_up(tmp_path)
    figure = plots.score_against_parameters(tables.write("table4", scale), scale)
    texts = list(figure.axes[0].texts)
    assert {t.get_text() for t in texts} == {m["label"] for m in config.chosen_methods(scale, "glue").values()}
    figure.canvas.draw()
    boxes = [matplotlib.text.Text.get_window_extent(t) for t in texts]  # an annotation's own includes its arrow
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1]
    assert not overlaps, "labels lie on each other"
