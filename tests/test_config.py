"""Scales and methods: what is written in workflow/ is valid, says what the paper says, and wrong input is explained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ether import config, registry, scales, yamlfiles
from ether.errors import ConfigurationError, MissingResourceError
from ether.methods import adapt as methods
from ether.paper import published


@pytest.mark.parametrize("name", config.scale_names())
def test_every_scale_validates_and_has_jobs(name):
    scale = config.load(name)
    experiment = "glue" if "glue" in scale.experiments() else scale.experiments()[0]
    runs = config.runs(scale, experiment)
    assert len({run.run_id for run in runs}) == len(runs)
    jobs = config.jobs(scale, experiment)
    assert sorted(r.run_id for job in jobs.values() for r in job.runs) == sorted(r.run_id for r in runs)
    needed = {"learning_rate", "batch_size", "warmup", "schedule", "evaluations", "dropout"}
    needed |= {"max_length"} if experiment == "glue" else set()
    assert all(needed <= run.hyperparameters.keys() for run in runs)
    assert all(r.hyperparameters["max_steps"] or r.hyperparameters["epochs"] for r in runs)


def test_every_method_names_parameters_its_config_has():
    for key, method in config.methods().items():
        methods.check_arguments(key, method["adapt"])


def test_table4_methods_all_have_a_file():
    paper = published.load()["table4"].methods
    assert [stem for stem in config.methods() if stem in paper] == list(paper), "table order is the paper's"


def test_paper_scale_uses_table_7_cell_by_cell():
    table = published.load()["table7"]
    settings = {
        "Learning Rate": "learning_rate",
        "Batch Size": "batch_size",
        "Num. Epochs": "epochs",
        "Dropout": "dropout",
        "Max Seq. Len.": "max_length",
    }
    by_key = {(run.method, run.task): run for run in config.runs(config.load("paper"), "glue") if run.seed == 0}
    tasks = {"MNLI": "mnli", "SST-2": "sst2", "CoLA": "cola", "QQP": "qqp", "QNLI": "qnli", "RTE": "rte", "MRPC": "mrpc",
             "STS-B": "stsb"}  # fmt: skip
    checked = 0
    for row in table.rows:
        for column, task in tasks.items():
            value = by_key[row.method, task].hyperparameters[settings[row.setting]]
            assert value == pytest.approx(table.value(row.method, column, row.setting)), (row, column)
            checked += 1
    assert checked == 80


def test_baselines_have_the_values_of_table_7_of_the_boft_paper():
    """Its lines as printed; its order of the tasks is not that of Table 4."""
    order = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
    printed = {
        "oft": ("5 2 14 5 4 9 34 11", "8E-05 2E-04 9E-04 4E-04 2E-04 3E-04 3E-04 7E-04",
                "1E-01 1E-01 1E-01 5E-02 1E-01 1E-01 5E-02 1E-01"),
        "boft": ("10 11 16 15 4 10 6 8", "7E-05 5E-05 8E-04 5E-04 2E-04 3E-04 4E-04 7E-04",
                 "15E-02 15E-02 1E-01 15E-02 5E-02 5E-02 5E-02 5E-02"),
    }  # fmt: skip
    lengths = "256 128 320 64 512 320 320 128"
    scale = config.load("paper")
    by_key = {(run.method, run.task): run.hyperparameters for run in config.runs(scale, "glue")}
    for method, lines in printed.items():
        assert config.source(scale, "glue", method).startswith("BOFT")
        for key, line in zip(("epochs", "learning_rate", "dropout", "max_length"), (*lines, lengths), strict=True):
            assert [by_key[method, task][key] for task in order] == [float(value) for value in line.split()], (method, key)
        assert all(by_key[method, task]["batch_size"] == 32 for task in order)
    assert not any("source" in values for values in by_key.values())
    assert config.source(scale, "glue", "lora") == "" and config.source(config.load("small"), "glue", "oft") == ""


def test_job_grouping_follows_the_scale():
    assert list(config.jobs(config.load("smoke"), "glue")) == ["all"]
    assert set(config.jobs(config.load("small"), "glue")) == {k for k, m in config.methods().items() if "glue" in m["training"]}
    assert "ether-plus-rte-seed2" in config.jobs(config.load("paper"), "glue")


def test_changing_one_method_changes_only_its_job(monkeypatch):
    before = {name: job.digest for name, job in config.jobs(config.load("small"), "glue").items()}
    every = config.methods()
    every["lora"]["training"]["glue"]["default"]["learning_rate"] = 0.123
    monkeypatch.setattr(config, "methods", lambda: every)
    after = {name: job.digest for name, job in config.jobs(config.load("small"), "glue").items()}
    assert [name for name in before if before[name] != after[name]] == ["lora"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"methods": "lorra"}, "Did you mean 'lora'"),
        ({"tasks": "mnlii"}, "Did you mean 'mnli'"),
        ({"method": "lora"}, "Did you mean 'methods'"),
        ({"seeds": "one"}, "whole numbers"),
        ({"complete": "maybe"}, "true or false"),
        ({"device": "tpu"}, "device"),
        ({"foundation": "download"}, "foundation"),
        ({"device": "gpu"}, "--config device=gpu: 'gpu' is not one of"),
        ({"foundation": "x"}, "--config foundation=x: 'x' is not one of"),
        ({"seeds": "0,0"}, "--config seeds=0,0: "),
        ({"methods": "lora,lora"}, "--config methods=lora,lora: "),
        ({"methods": None}, "--config methods=: give at least one name"),
        ({"tasks": ""}, "--config tasks=: give at least one name"),
        ({"seeds": None}, "--config seeds=: give whole numbers"),
    ],
)
def test_wrong_overrides_are_explained(overrides, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        config.load("small", overrides)
    assert "small.yaml" not in str(caught.value)


def test_every_error_of_a_command_line_is_reported(tmp_path):
    given = {
        "methods": "loar,ehter",
        "tasks": "rtee",
        "seeds": "x",
        "device": "gpu",
        "taskz": "rte",
        "mirror": str(tmp_path / "no"),
    }
    with pytest.raises(ConfigurationError) as caught:
        config.load("small", given)
    said = str(caught.value).split("\n\n")
    expected = ("'lora'?", "'ether'?", "'rte'?", "seeds=x: give whole", "device=gpu", "'tasks'?", "no does not exist")
    assert len(said) == 7 and all(any(part in line for line in said) for part in expected)
    with pytest.raises(ConfigurationError, match="(?s)seeds=x.*Did you mean 'small'"):
        config.load("smal", {"seeds": "x"})


def test_complete_adds_to_a_scale_and_is_not_inherited():
    default, complete = (config.load("small", overrides) for overrides in ({}, {"complete": "true"}))
    for experiment in default.experiments():
        few, all_ = ({run.run_id for run in config.runs(scale, experiment)} for scale in (default, complete))
        assert few <= all_, experiment
        assert ("complete" in default.experiment(experiment)) == (few < all_), experiment
    grid = {run.hyperparameters["learning_rate"] for run in config.runs(complete, "glue_rates")}
    assert grid == {1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0}
    assert {run.seed for run in config.runs(complete, "instruct")} == set(range(10))
    fewer = config.runs(config.load("small", {"complete": True, "seeds": "4", "tasks": "rte"}), "glue")
    assert {(run.task, run.seed) for run in fewer} == {("rte", 4)}
    for experiment in complete.experiments():
        # Otherwise a method's setting has changed since its runs were published: run and publish them again.
        published = pd.read_parquet(config.ROOT / f"results/published/small/metrics/{experiment}.runs.parquet")["run_id"]
        assert set(published) <= {run.run_id for run in config.runs(complete, experiment)}, experiment
    for other in config.scale_names():
        if other != "small":
            assert not any("complete" in config.load(other).experiment(name) for name in config.load(other).experiments())
    assert {run.seed for run in config.runs(config.load("smoke", {"complete": True}), "glue")} == {0, 1}


def test_wrong_scale_and_mirror_are_explained(tmp_path):
    with pytest.raises(ConfigurationError, match="Unknown scale 'smal'.*Did you mean 'small'"):
        config.load("smal")
    with pytest.raises(MissingResourceError, match="mirror folder .* does not exist"):
        config.load("laptop", {"mirror": str(tmp_path / "nowhere")})


def _method(**change):
    base = {"label": "X", "adapt": {"kind": "peft", "type": "HRA", "config": {"r": 2}}, "training": {"glue": {"default": {}}}}
    return {**base, **change}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_method(adapt={"kind": "magic"}), "adapt"),
        (_method(training={"glue": {"default": {"learningrate": 1.0}}}), "learning_rate"),
        (_method(training={"glue": {"default": {"learning_rate": "1e-3"}}}), "write it with a dot"),
        (_method(colour="red"), "colour"),
        ({"adapt": {"kind": "full"}, "training": {}}, "label"),
    ],
)
def test_schema_names_the_key(content, said):
    with pytest.raises(ConfigurationError, match=said):
        config.validate(content, "method", Path("workflow/methods/x.yaml"), config.modules())
    config.validate(_method(), "method", Path("x.yaml"), config.modules())


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"kind": "peft", "typ": "HRA"}, "unknown key 'typ'. Did you mean 'type'"),
        ({"kind": "peft", "type": "hra"}, "adapt/type: 'hra' is not a PEFT type in capitals"),
        ({"kind": "peftt", "type": "HRA"}, "adapt/kind: 'peftt' is not one of .*Did you mean 'peft'?"),
        ({"type": "HRA"}, "adapt: the key 'kind' must be given"),
        ({"kind": "bottleneck", "size": 0, "after": []}, "adapt/size: 0 is less than"),
        ({"kind": "full", "size": 3}, "unknown key 'size'. Known keys there: kind"),
        (3, "adapt: 3 is not of type 'object'"),
    ],
)
def test_an_error_in_adapt_is_one_of_its_kind(adapt, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        config.validate(_method(adapt=adapt), "method", Path("x.yaml"), config.modules())
    assert "schemas" not in str(caught.value)


def test_every_error_of_a_file_is_reported():
    content = {"lable": "X", "adapt": {"kind": "peftt"}, "training": {"gleu": {}, "glue": {"default": {"learning_rat": 1.0}}}}
    with pytest.raises(ConfigurationError) as caught:
        config.validate(content, "method", Path("x.yaml"), config.modules())
    for near in ("label", "peft", "glue", "learning_rate"):
        assert f"Did you mean {near!r}?" in str(caught.value)
    assert str(caught.value).count("x.yaml, at ") == 5 and "the key 'label' must be given" in str(caught.value)


@pytest.fixture
def scale_file(tmp_path, monkeypatch):
    """Writes a file workflow/scales/mine.yaml, in a copy of the folder `workflow`."""
    shutil.copytree(config.WORKFLOW, tmp_path / "workflow")
    for module in (config, registry, yamlfiles):
        monkeypatch.setattr(module, "WORKFLOW", tmp_path / "workflow")
    return (tmp_path / "workflow/scales/mine.yaml").write_text


@pytest.mark.parametrize("experiment", ["glue", "vtab"])
def test_a_wrong_key_of_a_section_is_reported_there_and_not_where_it_is_inherited(experiment, scale_file):
    scale_file(f"over: smoke\n{experiment}: {{seedss: [0]}}\n")
    with pytest.raises(ConfigurationError) as caught:
        config.load("mine")
    said = str(caught.value)
    assert f"mine.yaml, at {experiment}: unknown key 'seedss'. Did you mean 'seeds'?" in said
    assert f"{experiment}_rates" not in said and {"seeds", "tasks", "model"} <= set(
        said.split("there: ")[1].rstrip(".").split(", ")
    )


@pytest.mark.parametrize(
    ("content", "said", "not_said"),
    [
        ("ovr: smoke", "unknown key 'ovr'. Did you mean 'over'?", "Traceback"),
        (
            "over: small\nhyperparameters: [smal]",
            r"Unknown section .*'smal' in .*mine\.yaml, hyperparameters\. .*'small'\?",
            "training",
        ),
        (
            "over: small\ninstruct_rates: {methods: [full]}",
            r"full\.yaml .* 'instruct_rates' .*: give training\.instruct a section",
            "training.instruct_rates",
        ),
        (
            "over: small\nglue: {training: {tasks: {rtee: {max_length: 8}}}}",
            r"Unknown task 'rtee' in glue of scale 'mine'.*'rte'\?",
            "vtab",
        ),
    ],
)
def test_names_in_a_scales_file_are_known(content, said, not_said, scale_file):
    scale_file(f"{content}\n")
    with pytest.raises(ConfigurationError, match=said) as caught:
        config.load("mine")
    assert not_said not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"glue": {"smal": {}}}}, r"section 'smal' in .*mine\.yaml, training\.glue .*Did you mean 'small'"),
        ({"training": {"glue": {"default": {"tasks": {"rtee": {}}}}}}, r"'rtee' in .*training\.glue\.default\.tasks\. .*'rte'\?"),
        ({"tables": ["table44"]}, r"table 'table44' in .*mine\.yaml, tables\. Did you mean 'table4'"),
    ],
)
def test_names_in_a_methods_file_are_known(change, said, scale_file):
    methods_folder = registry.WORKFLOW / "methods"
    caches = (registry._methods, scales.known_names)
    (methods_folder / "mine.yaml").write_text(yaml.safe_dump(_method(**change)))
    (methods_folder / "other.yml").write_text("")
    for cached in caches:
        cached.cache_clear()
    try:
        with pytest.raises(ConfigurationError, match=said if "tables" in change else r"other\.yml would not be read: rename it"):
            config.load("small")
        (methods_folder / "other.yml").unlink()
        with pytest.raises(ConfigurationError, match=said):
            config.load("small")
    finally:
        for cached in caches:
            cached.cache_clear()


def test_leaving_out_an_experiment_means_its_grid_too(scale_file):
    scale_file("over: small\ninstruct: null\n")
    with pytest.raises(
        ConfigurationError, match=r"leaves out 'instruct', .*leave out 'instruct_rates', too \(instruct_rates: null\)"
    ):
        config.load("mine")
    scale_file("over: small\ninstruct: null\ninstruct_rates: null\n")
    assert "instruct" not in config.load("mine").experiments()


def test_peft_parameters_are_checked_by_name():
    with pytest.raises(ConfigurationError, match="Unknown ETHER parameter 'n_block'.*Did you mean 'n_blocks'"):
        methods.check_arguments("mine", {"kind": "peft", "type": "ETHER", "config": {"n_block": 4}})
    with pytest.raises(ConfigurationError, match="Unknown PEFT type 'ETHR'.*Did you mean 'ETHER'"):
        methods.check_arguments("mine", {"kind": "peft", "type": "ETHR"})
    with pytest.raises(ConfigurationError, match="the experiment sets"):
        methods.check_arguments("mine", {"kind": "peft", "type": "LORA", "config": {"modules_to_save": ["x"]}})


def test_where_things_are_is_not_part_of_what_a_run_is(tmp_path):
    here, there = (config.runs(config.load("laptop", {"mirror": mirror}), "glue") for mirror in ("", str(tmp_path)))
    assert [run.run_id for run in here] == [run.run_id for run in there]
    cpu = config.runs(config.load("laptop", {"device": "cpu"}), "glue")
    assert [run.run_id for run in here] == [run.run_id for run in cpu]
    shipped, rebuilt = (config.runs(config.load("small", {"foundation": f}), "glue")[0] for f in ("shipped", "rebuild"))
    assert shipped.run_id != rebuilt.run_id  # another model, not another place


def test_a_method_that_is_not_swept_is_not_in_experiments_over_learning_rates(monkeypatch):
    every = config.methods()
    every["lora"]["sweep"] = False
    monkeypatch.setattr(config, "methods", lambda: every)
    scale = config.load("small", {"complete": True})  # whose grid has all methods
    assert "lora" in config.chosen_methods(scale, "instruct") and "lora" not in config.chosen_methods(scale, "instruct_rates")


def test_factors_and_rates_are_recorded_with_the_run():
    runs = config.runs(config.load("small"), "subject_factors")
    rates = {run.method: run.hyperparameters["learning_rate"] for run in config.runs(config.load("small"), "subject")}
    assert {run.rate_factor for run in runs} == {0.1, 1.0, 10.0, 100.0}
    assert all(r.hyperparameters["learning_rate"] == pytest.approx(r.rate_factor * rates[r.method]) for r in runs)
    assert all(run.rate_factor is None for run in config.runs(config.load("small"), "subject_rates"))


def test_registries_name_what_is_there():
    root = config.ROOT
    for entry in config.experiments().values():
        assert (root / f"ether/experiments/{entry.module}.py").is_file() and (root / entry.notebook).is_file()
        assert (root / f"workflow/schemas/experiments/{entry.module}.schema.yaml").is_file()
    for exhibit in config.exhibits().values():
        assert (root / f"ether/exhibits/{exhibit.module}.py").is_file() and (root / exhibit.notebook).is_file()
        assert exhibit.title or exhibit.id in published.load()


def test_duplicate_keys_and_bad_yaml_are_errors(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigurationError, match="'a' is given twice"):
        config.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        config.read_yaml(tmp_path / "b.yaml")


def test_overlay_merges_mappings_and_replaces_the_rest():
    assert config.overlay({"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}, "d": 0}


def test_no_scale_sets_a_value_its_base_already_has_without_need():
    """Overlays stay overlays: a top-level scalar repeated from the base scale is a sign of a copy."""
    for name in config.scale_names():
        content = yaml.safe_load((config.WORKFLOW / "scales" / f"{name}.yaml").read_text())
        if "over" in content:
            base = scales.read_scale(content["over"])
            own = {k: v for k, v in content.items() if k not in ("over", "threads", "seeds", "hyperparameters")}
            repeated = [k for k, v in own.items() if base.get(k) == v]
            assert not repeated, (name, repeated)
