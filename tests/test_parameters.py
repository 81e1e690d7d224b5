"""#params: closed forms against adapters applied to the paper's architectures, and both against the paper's digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from ether import config
from ether.errors import ConfigurationError
from ether.measures import cache, parameters
from ether.measures.architectures import ARCHITECTURES, meta_model
from ether.paper import counts
from ether.paper.counts import published_counts, tables
from ether.paper.published import load


@pytest.fixture(scope="module", autouse=True)
def counted_anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Counts stored by earlier runs are not used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))
        yield


def peft(kind: str, **config: Any) -> dict[str, Any]:
    return {"adapt": {"kind": "peft", "type": kind, "config": config}}


# --- the real architectures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("deberta-v3-base", 184_424_451),
        ("llama-2-7b", 6_738_415_616),
        ("phi-1.5", 1_418_270_720),
        ("vit-b16", 85_798_656),
        ("sd15-unet", 859_520_964),
        ("control-encoder", 1_086_480),
        ("control-time-embedding", 2_050_560),
    ],
)
def test_meta_models_have_the_known_size_and_no_storage(name: str, total: int) -> None:
    model = meta_model(name)
    assert sum(p.numel() for p in model.parameters()) == total
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_control_encoder_is_eight_convolutions_and_3_1m_only_with_the_timestep_mlp() -> None:
    names = [type(module).__name__ for module in meta_model("control-encoder").modules()]
    assert names.count("Conv2d") == 8
    both = sum(p.numel() for n in ("control-encoder", "control-time-embedding") for p in meta_model(n).parameters())
    assert both == 3_137_040


@pytest.mark.parametrize(
    ("architecture", "layer_set", "layers", "inputs", "outputs"),
    [
        ("sd15-unet", "attention", 128, 99_456, 99_840),
        ("sd15-unet", "attention-geglu", 144, 111_936, 199_680),
        ("deberta-v3-base", "all-linear", 72, 82_944, 82_944),
        ("vit-b16", "all-linear", 72, 82_944, 82_944),
        ("llama-2-7b", "query-value", 64, 262_144, 262_144),
    ],
)
def test_layer_sets(architecture: str, layer_set: str, layers: int, inputs: int, outputs: int) -> None:
    found = parameters.site(peft("ETHER"), architecture, layer_set).layers
    assert (len(found), sum(s.d for s in found), sum(s.f for s in found)) == (layers, inputs, outputs)


# --- closed forms against real adapters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "convention"),
    [
        (peft("LORA", r=8), "low-rank"),
        (peft("VERA", r=64), "vector-scales"),
        (peft("OFT", r=256, oft_block_size=0), "orthogonal-skew"),
        (peft("OFT", r=0, oft_block_size=32), "orthogonal-skew"),
        (peft("ADALORA", init_r=8, target_r=8, total_step=100), "adaptive-low-rank"),
        (peft("HRA", r=1), "reflection"),  # one Householder reflection on the input: ETHER by another name
        (peft("ETHER", n_blocks=1), "reflection"),
        (peft("ETHER", n_blocks=32), "reflection"),
        (peft("ETHER", n_blocks=32, relaxed=True), "relaxed-reflection"),
        (peft("ETHER", n_blocks=4, relaxed=True, sides="input"), "relaxed-reflection"),
        (peft("ETHER", n_blocks=4, relaxed=True, sides="output"), "relaxed-reflection"),
        (peft("NAIVE", n_blocks=256), "block-diagonal"),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["llama-2-7b", "vit-b16"])
def test_conventions_that_say_what_is_trained_agree_with_peft(architecture: str, method: dict[str, Any], convention: str) -> None:
    counted = parameters.count(method, architecture, convention)
    assert counted.exact == counted.trained > 0


def test_boft_trains_whole_blocks_of_both_factors_and_a_scale() -> None:
    method = peft("BOFT", boft_block_size=8, boft_n_butterfly_factor=2, boft_dropout=0)
    site = parameters.site(method, "deberta-v3-base")
    expected = 2 * parameters.by_convention(site, "block-diagonal") + parameters.by_convention(site, "outputs + head")
    assert parameters.count(method, "deberta-v3-base").trained == expected
    # One factor would also have 0.75M: the count does not distinguish it from Table 4's BOFT.
    one_factor = parameters.by_convention(site, "block-diagonal + outputs")
    assert one_factor == parameters.by_convention(site, "skew-plus-two-outputs") == 746_496


@pytest.mark.parametrize(
    ("kind", "config", "adapter"),
    [
        ("HRA", {"r": 8}, 8 * 82_944),
        ("SHIRA", {"r": 4}, 4 * (82_944 + 82_944)),  # looks at the weights' values, which a meta model has not
        ("PROMPT_TUNING", {"num_virtual_tokens": 4}, 4 * 768),  # has no target modules
    ],
)
def test_any_peft_type_is_counted(kind: str, config: dict[str, Any], adapter: int) -> None:
    """A new method is one YAML: without a convention of its own it counts as what it trains, classifier included."""
    counted = parameters.count(peft(kind, **config), "deberta-v3-base")
    assert counted.exact == counted.trained == adapter + 2_307


def test_the_block_count_changes_naive_but_not_ether() -> None:
    ether = {parameters.count(peft("ETHER", n_blocks=n), "vit-b16").trained for n in (1, 4, 16)}
    naive = [parameters.count(peft("NAIVE", n_blocks=n), "vit-b16").trained for n in (1, 4, 16)]
    assert ether == {82_944}
    assert naive[0] == 4 * naive[1] == 16 * naive[2]


def test_an_injected_adapt_is_what_gets_counted() -> None:
    def only_the_classifier(model: Any, how: Any) -> Any:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
        return model

    counted = parameters.count(peft("LORA", r=8), "deberta-v3-base", "low-rank", adapt=only_the_classifier, num_labels=5)
    assert counted.trained == 5 * 768 + 5
    assert counted.exact == 1_327_104


# --- the paper's rows ------------------------------------------------------------------------------------------------

EXACT = {  # (table, row): exact count, verdict; from the paper's formulas by hand, see the shapes tested above
    "table2": [
        (859_520_964, "match"),
        (4 * 199_296, "match"),
        (11_602_368, "match"),
        (99_456, "match"),
        (398_592, "match"),
    ],
    "table3": [(0, "match"), (13_200_896, "match"), (13_400_576, "match"), (111_936, "match"), (623_232, "mismatch")],
    "table4": [
        (184_424_451, "match"),
        (102_912, "match"),
        (1_198_848, "mismatch"),
        (1_179_648, "match"),
        (1_327_104, "match"),
        (1_327_680, "mismatch"),
        (787_968, "match"),
        (746_496, "match"),
        (85_251, "match"),
        (331_776, "match"),
    ],
    "table5": [
        (266_240, "match"),
        (278_528, "mismatch"),
        (524_288, "match"),
        (4_194_304, "match"),
        (2_097_152, "truncated"),
        (262_144, "match"),
        (1_048_576, "truncated"),
    ],
    "table6": [(n, "not printed") for n in (23_304_192, 23_304_192, 26_401_792, 26_401_792)],
    "table9": [(111_936, "match")] * 3,
    "table10": [(1_048_576, "truncated")] * 3,
    "table11": [(198_912, "match"), (398_592, "match")],
    "table12": [
        (85_798_656, "match"),
        (0, "match"),
        (1_327_104, "match"),
        (290_304, "match"),
        (82_944, "match"),
        (331_776, "match"),
    ],
    "encoder": [(1_086_480, "mismatch")],
}


@pytest.fixture(scope="module")
def counted() -> dict[str, pd.DataFrame]:
    return {table: published_counts(table) for table in tables()}


@pytest.mark.parametrize("table", EXACT)
def test_exact_counts_and_verdicts(counted: dict[str, pd.DataFrame], table: str) -> None:
    rows = counted[table]
    assert list(zip(rows["exact"], rows["verdict"], strict=True)) == EXACT[table]


def test_every_printed_count_has_a_row(counted: dict[str, pd.DataFrame]) -> None:
    for name, table in load().items():
        if "#params" in [column.name for column in table.columns]:
            printed = [method for method in table.methods if table.value(method, "#params") is not None]
            assert list(counted[name]["method"]) == printed
            assert list(counted[name]["printed"]) == [table.printed(method, "#params") for method in printed]


def test_every_row_that_does_not_match_says_why(counted: dict[str, pd.DataFrame]) -> None:
    for rows in counted.values():
        for row in rows[rows["verdict"].isin(["truncated", "mismatch"])].itertuples():
            assert row.why.endswith("."), row.method


def test_the_adapters_of_the_paper_train_what_their_rows_say(counted: dict[str, pd.DataFrame]) -> None:
    """ETHER's rows say what is trained, but for the classifier of Table 4, which only its plain ETHER row counts."""
    for name, rows in counted.items():
        head = 2_307 if name == "table4" else 0
        for row in rows[rows["method"].str.startswith("ether")].itertuples():
            assert row.trained == row.exact + (0 if row.convention == "reflection-with-head" else head)


def test_alternatives_show_what_other_conventions_would_print(counted: dict[str, pd.DataFrame]) -> None:
    alternatives = {(name, row.method): row.alternatives for name, rows in counted.items() for row in rows.itertuples()}
    assert "orthogonal-half 11,652,096 (truncated)" in alternatives["table2", "oft-n4"]
    assert "orthogonal-skew 13,144,928 (mismatch)" in alternatives["table3", "oft-n4"]
    assert "bottleneck + layer-norms 1,217,280 (match)" in alternatives["table4", "h-adapter"]
    assert "reflection 82,944 (mismatch)" in alternatives["table4", "ether"]
    assert "outputs + outputs 199,680 (match)" in alternatives["table11", "ether-plus-one-sided"]


@pytest.mark.parametrize("stem", list(config.methods()))
def test_every_method_is_counted_on_table4s_model_and_as_its_row_where_it_has_one(
    counted: dict[str, pd.DataFrame], stem: str
) -> None:
    method = config.method(stem)
    blocks = (method["adapt"].get("config") or {}).get("n_blocks", 1)
    if 768 % blocks:  # the encoder's width
        with pytest.raises(ConfigurationError, match=f"n_blocks={blocks} does not divide the input dimension 768"):
            parameters.count(method, "deberta-v3-base")
        return
    trained = parameters.count(method, "deberta-v3-base").trained
    row = counts.counted_method("table4", stem)
    assert row.trained == trained and (trained > 0) == (method["adapt"]["kind"] not in ("frozen", "none"))
    rows = counted["table4"].set_index("method")
    if stem in rows.index:
        assert (row.exact, row.convention) == (rows.loc[stem, "exact"], rows.loc[stem, "convention"])
    else:  # a row of ours: counted by the convention of its file
        assert row.exact == parameters.count(method, "deberta-v3-base").exact and row.why == ""


# --- what is written where -------------------------------------------------------------------------------------------


def test_counts_yaml_repeats_nothing_of_the_methods_files_and_of_published_yaml() -> None:
    for name, table in config.read_yaml(counts.FILE).items():
        for row in table["rows"]:
            where = (name, row["method"])
            method = config.methods()[row["method"]]
            assert set(row) <= set(counts.ROW_KEYS) and "adapt" not in row, where
            assert row.get("convention") != method.get("parameters", {}).get("convention"), where
            assert row.get("layer_set", "") != table.get("layer_set"), where
            assert row.get("label") != method["label"], where
            if name in load():  # a row of a published table has its label and its digits there
                assert "printed" not in row and "label" not in row, where
            assert row.get("convention") not in row.get("alternatives", []), where


def test_a_method_that_is_only_counted_runs_nowhere() -> None:
    counted_only = {stem for stem, method in config.methods().items() if not method["training"]}
    for name in config.scale_names():
        scale = config.load(name)
        for experiment in scale.experiments():
            assert not counted_only & set(config.chosen_methods(scale, experiment))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "lora-r3"}, "method 'lora-r3' in counts.yaml, table4"),
        ({"method": "lora", "adapt": {}}, "key of row lora 'adapt'"),
    ],
)
def test_counts_yaml_refuses_unknown_methods_and_keys(monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], message: str) -> None:
    content = {"table4": {"architecture": "deberta-v3-base", "layer_set": "all-linear", "rows": [row]}}
    monkeypatch.setattr(counts.config, "read_yaml", lambda file: content)
    monkeypatch.setattr(counts, "_tables", counts._tables.__wrapped__)
    with pytest.raises(ConfigurationError, match=message):
        counts.tables()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "architecture", "options", "message"),
    [
        (peft("LORA", r=8), "deberta-v4", {}, "deberta-v3-base"),
        (peft("LORA", r=8), "llama-2-7b", {"layer_set": "attention-only"}, "query-value"),
        (peft("LORRA", r=8), "llama-2-7b", {}, "LORA"),
        (peft("LORA", rank=8), "llama-2-7b", {}, "rank"),
        (peft("LORA", r=8), "llama-2-7b", {"convention": "low-rang"}, "low-rank"),
        (peft("LORA", r=8), "llama-2-7b", {"convention": "bottleneck"}, "size"),
        (peft("NAIVE", n_blocks=7), "llama-2-7b", {"convention": "block-diagonal"}, "7"),
        (peft("LORA", r=8), "llama-2-7b", {"num_labels": 3}, "num_labels"),
        ({"adapt": {"kind": "prefix"}}, "deberta-v3-base", {}, "bitfit"),
    ],
    ids=str,
)
def test_wrong_names_are_errors_that_help(
    method: dict[str, Any], architecture: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parameters.count(method, architecture, **options)


def test_unknown_table() -> None:
    with pytest.raises(ConfigurationError, match="table12"):
        published_counts("table13")


def test_every_architecture_names_its_source() -> None:
    assert all(entry.source for entry in ARCHITECTURES.values())
