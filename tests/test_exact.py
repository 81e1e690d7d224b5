"""The exhibits that need no training: Table 1, every #params column, Tables 7 and 8, Figures 1 and 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from ether import config
from ether.analysis.cells import CELL_COLUMNS
from ether.errors import ConfigurationError
from ether.exhibits import exact, illustrations, report
from ether.measures import cache, layer_time
from ether.measures.flops import closed_form, weight_side_rule
from ether.notebook import parameters_of
from ether.paper import efficiency, published

ROOT = Path(__file__).resolve().parent.parent
FEW = ("lora", "ether-n1", "ether-n4")  # all methods at both lengths take a minute


@pytest.fixture(scope="module", autouse=True)
def counted_anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Counts stored by earlier runs are not used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def scale() -> config.Scale:
    return config.load("smoke")


@pytest.fixture(scope="module")
def table1(scale: config.Scale) -> pd.DataFrame:
    """Table 1 as the workflow makes it, but for the number of methods at equal length and the size of what is timed."""
    lengths, times = efficiency.at_equal_length, layer_time.layer_times
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficiency, "at_equal_length", lambda tokens, only: lengths(tokens, FEW))
        patch.setattr(layer_time, "layer_times", lambda width, tokens, *a, **k: times(256, 8, *a, **{**k, "rounds": 3}))
        return exact.table1(scale)


@pytest.fixture(scope="module")
def counted(scale: config.Scale) -> pd.DataFrame:
    return exact.parameters(scale)


def at(table: pd.DataFrame, method: str, column: str) -> Any:
    [row] = table[(table["method"] == method) & (table["column"] == column)].itertuples()
    return row


# --- Table 1 -----------------------------------------------------------------------------------------------------------


def test_table1_has_the_suites_columns_and_every_cell_of_the_papers(table1: pd.DataFrame) -> None:
    assert list(table1.columns) == CELL_COLUMNS
    assert not table1.duplicated(["method", "column"]).any()
    for cell in published.load()["table1"].cells():
        if cell.value is not None:
            ours = at(table1, cell.method, cell.column)
            assert (ours.paper, ours.printed, ours.label) == (cell.value, cell.printed, config.label(cell.method))


def test_fourteen_of_sixteen_tflops_print_as_the_papers_and_two_by_their_second_reading(table1: pd.DataFrame) -> None:
    off = []
    for cell in published.load()["table1"].cells():
        if cell.column.endswith("TFLOPs"):
            ours = at(table1, cell.method, cell.column).ours
            if published.prints_as(round(ours, 6), cell.printed) != "match":
                off.append((cell.method, cell.column))
                second = at(table1, cell.method, f"{cell.column}, second reading").ours
                assert published.prints_as(round(second, 6), cell.printed) == "match"
    assert off == [("oft-n256", "Phi-1.5 TFLOPs"), ("ether-n1", "Phi-1.5 TFLOPs")]


@pytest.mark.parametrize(
    ("method", "column", "parts"),
    [
        (
            "ether-n1",
            "Phi-1.5 TFLOPs",
            ["does not print as the paper's 9.13", "Second reading, query, key and value adapted: 9.13"],
        ),
        ("oft-n256", "Llama-2-7B TFLOPs", ["prints as the paper's 25.26", "block by block: 7.74", "as a dense matrix"]),
        ("ether-plus-n32", "Llama-2-7B rel. drop", ["does not print as the paper's -83%", "smaller by one"]),
        ("ether-n32", "Llama-2-7B TFLOPs", ["prints as the paper's 8.22 (T = 256"]),
    ],
)
def test_the_notes_give_both_readings_and_the_reason(table1: pd.DataFrame, method: str, column: str, parts: list[str]) -> None:
    note = at(table1, method, column).note
    assert all(part in note for part in parts), note


def test_the_closed_form_agrees_with_the_tables_tflops(table1: pd.DataFrame) -> None:
    for method in efficiency.methods():
        rule, n = weight_side_rule(efficiency.adapt(method))
        rule = f"{rule}-dense" if method == efficiency.DENSE else rule
        for model, (name, tokens) in efficiency.MODELS.items():
            ours = at(table1, method, f"{model} TFLOPs").ours
            assert closed_form(name, rule, n, tokens) / 1e12 == pytest.approx(ours, rel=1e-3)


def test_equal_lengths_activations_and_memory_are_there_too(table1: pd.DataFrame) -> None:
    for tokens in (256, 1044):
        for model, (name, printed_tokens) in efficiency.MODELS.items():
            where = f"{model} T={tokens}"
            weight_side = at(table1, "ether-n4", f"{where} weight-side TFLOPs").ours
            assert weight_side == pytest.approx(closed_form(name, "reflection", 4, tokens) / 1e12, rel=1e-3)
            if tokens == printed_tokens:
                assert weight_side == at(table1, "ether-n4", f"{model} TFLOPs").ours
            assert at(table1, "ether-n4", f"{where} TFLOPs").ours < weight_side
            assert 1 < at(table1, "ether-n4", f"{where} TFLOPs / LoRA").ours < 1.0025
            assert at(table1, "ether-n4", f"{where} GiB").ours < at(table1, "ether-n4", f"{where} weight-side GiB").ours
    drop = at(table1, "ether-n4", "Phi-1.5 T=256 weight-side rel. drop").ours
    assert round(drop) == -39  # at Llama's length Phi's gain is far from the -23 % that the paper prints


def test_measured_columns_are_called_so_and_name_the_machine(table1: pd.DataFrame) -> None:
    from ether.results import hardware

    measured = table1[table1["column"].str.contains("measured")]
    assert len(measured) == 2 * len(efficiency.methods())
    assert measured["note"].str.startswith("measured").all() and measured["note"].str.contains(hardware(), regex=False).all()
    assert (measured.loc[measured["method"] == "lora", ["ours", "low", "high"]] == 1).all(axis=None)
    assert (measured["ours"] > 0).all() and table1.loc[~table1.index.isin(measured.index), "low"].isna().all()


def test_table1_reads_in_sections(table1: pd.DataFrame) -> None:
    sections = exact.sections("table1", table1)
    assert sum(frame.shape[1] for frame in sections.values()) == table1["column"].nunique()  # each column in one section
    assert list(sections["As the paper counts"].index) == [config.label(m) for m in efficiency.methods()]
    assert "8.31 (paper 9.13)" in set(sections["As the paper counts"]["Phi-1.5 TFLOPs"])
    page = exact.markdown("table1", table1)
    assert page.startswith("# Table 1: TFLOPs of one") and "## Both models at T = 1044" in page
    assert "**ETHER n=1, Phi-1.5 TFLOPs**: does not print" in page


def test_layer_times_are_of_every_method_and_refuse_an_unknown_reference() -> None:
    methods = {"LoRA": {"type": "LORA", "config": {"r": 2}}, "ETHER": {"type": "ETHER", "config": {"n_blocks": 2}}}
    times = layer_time.layer_times(16, 4, methods, "LoRA", seconds=0.0, rounds=2)
    assert list(times["method"]) == ["LoRA", "ETHER"] and (times["rounds"] == 2).all()
    assert (times["seconds"] > 0).all() and (times["low"] <= times["ratio"]).all()
    with pytest.raises(ConfigurationError, match="LoRA"):
        layer_time.layer_times(16, 4, methods, "LORA")


# --- #params -----------------------------------------------------------------------------------------------------------


def test_parameters_has_every_printed_count(counted: pd.DataFrame) -> None:
    assert list(counted.columns[: len(CELL_COLUMNS)]) == CELL_COLUMNS
    assert not counted.duplicated(["method", "column"]).any()
    assert (counted.loc[counted["method"] == "full", "label"] == ["Full fine-tuning", "Full fine-tuning", "Signal encoder"]).all()
    for name, table in published.load().items():
        if "#params" in [column.name for column in table.columns]:
            for method in table.methods:
                if table.value(method, "#params") is not None:
                    row = at(counted, method, f"Table {name.removeprefix('table')} #params")
                    assert row.paper == table.value(method, "#params") and row.printed == table.printed(method, "#params")
    assert {"Table 6 #params (attention)", "Table 6 #params (attention-geglu)", "App. C.2 #params"} <= set(counted["column"])


def test_every_row_of_parameters_has_a_verdict_a_convention_and_a_reason(counted: pd.DataFrame) -> None:
    mismatches = {(r.column.split(" #")[0], r.label) for r in counted.itertuples() if r.verdict == "mismatch"}
    assert mismatches == {
        ("Table 3", "ETHER+"),
        ("Table 4", "H-Adapter"),
        ("Table 4", "AdaLoRA"),
        ("Table 5", "VeRA r=256"),
        ("App. C.2", "Signal encoder"),
    }
    for row in counted.itertuples():
        assert row.ours == int(row.ours) and row.convention in row.note and row.architecture in row.note
        if row.verdict in ("match", "truncated", "mismatch"):
            assert published.prints_as(int(row.ours), row.printed) == row.verdict
        if row.verdict in ("truncated", "mismatch"):
            assert row.why and row.why in row.note
    page = exact.markdown("parameters", counted)
    assert "| Table 5 | VeRA r=256 | 278,528 | 1.05M | mismatch |" in page and "**Table 5, VeRA r=256**" in page


# --- Tables 7 and 8 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cells"), [("table7", 80), ("table8", 14)])
def test_hyperparameters_of_the_paper_scale_equal_the_papers(
    name: str, cells: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = report.make(name, "smoke").data
    assert list(table.columns) == CELL_COLUMNS and len(table) == cells
    assert (table["ours"] == table["paper"]).all() and table["note"].str.contains("equals the paper's").all()
    for cell in published.load()[name].cells():
        label = config.label(cell.method) + (f", {cell.setting}" if cell.setting else "")
        [row] = table[(table["label"] == label) & (table["column"] == cell.column)].itertuples()
        assert (row.method, row.ours, row.printed) == (cell.method, cell.value, cell.printed)
    for ending in ("parquet", "csv", "md"):
        assert Path(f"results/smoke/tables/{name}.{ending}").stat().st_size > 300
    pd.testing.assert_frame_equal(pd.read_parquet(f"results/smoke/tables/{name}.parquet"), table)


def test_tables_7_and_8_are_read_from_the_methods_files(scale: config.Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    every = config.methods()
    every["lora"]["training"]["instruct"]["paper"]["learning_rate"] = 0.25
    every["ether"]["training"]["glue"]["paper"]["tasks"]["rte"]["epochs"] = 99
    monkeypatch.setattr(config, "methods", lambda: every)
    changed = at(exact.table8(scale), "lora", "Learning Rate")
    assert changed.ours == 0.25 and "lora.yaml; differs from the paper's 5e-4" in changed.note
    epochs = exact.table7(scale).set_index(["label", "column"]).loc[("ETHER, Num. Epochs", "RTE")]
    assert epochs["ours"] == 99 and epochs["method"] == "ether"


def test_instruction_tuning_settings_are_appendix_c4s_and_stay_out_of_glue() -> None:
    paper = config.load("paper")
    runs = {run.method: run for run in config.runs(paper, "instruct") if run.adapt["kind"] != "none"}
    instruct = [stem for stem in runs if "tables" not in config.methods()[stem]]
    assert instruct == list(published.load()["table8"].methods)  # in the table's order
    for stem in instruct:
        assert runs[stem].hyperparameters["weight_decay"] == (0.0 if stem.startswith("ether") else 0.01)
        adapt = config.methods()[stem]["adapt"]
        if adapt["type"] == "LORA":
            assert adapt["config"]["lora_alpha"] == adapt["config"]["r"]  # alpha equals the rank
    glue = set(config.chosen_methods(paper, "glue"))
    assert glue & set(instruct) == {"lora"}
    assert glue - {"linear-probe"} == set(published.load()["table4"].methods)


# --- columns of other tables -------------------------------------------------------------------------------------------


def test_parameter_cells_have_the_papers_cell_verbatim_and_follow_its_convention() -> None:
    dreambooth, lora = exact.parameter_cells("table2", ["dreambooth", "lora-r4"])
    assert (dreambooth.ours, dreambooth.paper, dreambooth.printed) == (859_520_964, 859.5e6, "859.5M")
    assert (lora.label, lora.column, lora.n, lora.comparable) == ("LoRA r=4", "#params", 0, True)
    ether, probe = exact.parameter_cells("table4", ["ether", "linear-probe"])
    assert ether.ours == 85_251 and "counted as reflection-with-head; trained, classifier included: 85,251" in ether.note
    assert probe.printed == "" and np.isnan(probe.paper) and probe.note == "trained, classifier included: 2,307"
    [plain] = exact.parameter_cells("table2", ["ether"])
    assert plain.ours == 99_456  # without a head in the same method elsewhere
    with pytest.raises(ConfigurationError, match="table13"):
        exact.parameter_cells("table13", ["ether"])


def test_tflops_cells_are_those_of_table_1_with_the_activations_beside() -> None:
    one, here, more, other = exact.tflops_cells("table10", ["ether-plus-n1", "ether-n128"])
    assert (one.column, one.printed, round(one.ours, 2)) == ("TFLOPs", "51.65", 51.65)
    assert (here.column, here.printed) == ("TFLOPs, activations", "") and here.ours < one.ours
    assert more.method == "ether-n128" and more.printed == "" and np.isnan(more.paper)
    assert other.ours < more.ours < one.ours


def test_stored_counts_open_without_torch(tmp_path: Path) -> None:
    """A notebook of a table whose parameters were counted before does not import torch."""
    code = (
        "import sys\n"
        "from ether.exhibits import exact\n"
        "cells = exact.parameter_cells('table11', ['ether-plus']) + exact.tflops_cells('table10', ['ether-plus-n4'])\n"
        "print([cell.ours for cell in cells], 'torch' in sys.modules)"
    )

    def run() -> str:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    counted, stored = run(), run()
    assert counted.endswith("True\n") and stored.endswith("False\n")
    assert counted.partition("]")[0] == stored.partition("]")[0]


# --- figures -----------------------------------------------------------------------------------------------------------


def test_figure1_keeps_the_length_only_in_ethers_panel() -> None:
    arrows = illustrations.reflected_vectors().set_index(["panel", "name"])
    x, u, v = (arrows.loc[("ETHER+", name), ["x1", "y1"]].to_numpy(float) for name in "xuv")
    expected = {"ETHER": x - 2 * u * (u @ x), "ETHER+": x - u * (u @ x) + v * (v @ x)}
    for panel, tip in expected.items():
        np.testing.assert_allclose(arrows.loc[(panel, "Hx"), ["x1", "y1"]].to_numpy(float), tip, atol=1e-12)
    assert arrows.loc[("ETHER", "Hx"), "length"] == pytest.approx(1)
    assert abs(arrows.loc[("ETHER+", "Hx"), "length"] - 1) > 0.1
    for panel, step in (("ETHER", "step -2u(ux)"), ("ETHER+", "step +v(vx)")):  # the last step ends at the result
        np.testing.assert_allclose(arrows.loc[(panel, step), ["x1", "y1"]].to_numpy(float), expected[panel], atol=1e-12)


def test_figure2_shows_equal_products_of_real_numbers() -> None:
    data = illustrations.block_scheme()
    parts = {part: illustrations._matrix(data, part) for part in ("H", "W", "HW", "blocks", "reflect")}
    np.testing.assert_allclose(parts["H"] @ parts["W"], parts["HW"], atol=1e-14)
    np.testing.assert_allclose(parts["blocks"], parts["HW"], atol=1e-14)
    np.testing.assert_allclose(parts["reflect"], parts["HW"], atol=1e-14)
    np.testing.assert_allclose(parts["H"] @ parts["H"], np.eye(illustrations.SCHEME["d"]), atol=1e-14)
    outside = data[(data["part"] == "H") & (data["block"] == -1)]
    assert (
        len(outside) == illustrations.SCHEME["d"] ** 2 * (illustrations.SCHEME["n"] - 1) // illustrations.SCHEME["n"]
        and (outside["value"] == 0).all()
    )
    assert any("2,304; in blocks 2 d² f / n = 768" in line for line in illustrations.block_scheme_summary(data))


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_figures_leave_a_picture_for_screen_and_print_and_their_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import image

    monkeypatch.chdir(tmp_path)
    data = report.make(name, "smoke").data
    folder = Path("results/smoke/figures")
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and (folder / f"{name}.pdf").read_bytes().startswith(
        b"%PDF"
    )
    assert min(image.imread(folder / f"{name}.png").shape[:2]) > 900
    pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{name}.parquet"), data)


@pytest.mark.parametrize("name", ["figure1", "figure2"])
def test_no_text_of_a_figure_lies_on_another(name: str, scale: config.Scale) -> None:
    figure, _ = getattr(illustrations, name)(scale)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [(t.get_text(), t.get_window_extent()) for t in axes.texts if t.get_text()]
        for i, (text, a) in enumerate(boxes):
            for other, b in boxes[:i]:
                apart = a.x1 < b.x0 + 1 or b.x1 < a.x0 + 1 or a.y1 < b.y0 + 1 or b.y1 < a.y0 + 1
                assert apart, (text, other)


# --- the workflow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table1", "parameters", "table7", "table8", "figure1", "figure2"])
def test_every_exact_exhibit_has_a_notebook_and_a_function(name: str) -> None:
    source = ROOT / "notebooks" / f"{name}.ipynb"
    assert parameters_of(source) == {"scale", "overrides"}
    book = nbformat.read(source, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert json.dumps(name) in "\n".join(cell.source for cell in code)
    entry = config.exhibits()[name]
    assert not entry.experiments and callable(getattr({"exact": exact, "illustrations": illustrations}[entry.module], name))
