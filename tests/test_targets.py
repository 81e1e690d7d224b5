"""The targets of a command line: those that cannot be made are errors before the first job, with the reason and the remedy."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_runs import counted

from ether import config, targets
from ether.errors import ConfigurationError, EtherError, MissingResourceError

PUBLISHED = config.ROOT / "results/published/small"
RULES = ["all", "tables", "table4", "table6", "table12", "world_language"]


@pytest.fixture
def replay(tmp_path: Path) -> Path:
    """A copy of the published metrics."""
    shutil.copytree(PUBLISHED / "metrics", tmp_path / "stored/metrics")
    return tmp_path / "stored"


def test_help_names_every_target():
    text = subprocess.run(["make", "help"], cwd=config.ROOT, capture_output=True, text=True, check=True).stdout
    words = set(re.findall(r"\w+", text))
    numbered = {f"{kind}{number}" for kind in ("table", "figure") for number in range(1, 13)}
    assert numbered <= set(config.exhibits()) and {"table1", "table12", "figure1", "figure12"} <= words
    assert {*config.exhibits(), *targets.OF_A_KIND, *targets.OF_ALL_EXHIBITS, *targets.OTHERS} - numbered <= words


def check(*names: str, **settings: object) -> targets.Checked:
    return targets.check(names, RULES, config.load("small", settings))


def test_an_unknown_target_is_explained_and_rules_and_paths_are_not():
    with pytest.raises(ConfigurationError, match="Unknown target 'tabel4'. Did you mean 'table4'?"):
        check("tabel4")
    with pytest.raises(ConfigurationError, match="(?s)'tabel4'.*'figurs'. Did you mean 'figures'"):
        check("tabel4", "figurs")
    assert not check("world_language", "results/small/metrics/glue.parquet").exhibits


def test_a_target_names_exhibits_by_id_by_file_and_by_kind():
    scale = config.load("small")
    of_kind = {id_ for id_, exhibit in config.exhibits().items() if exhibit.kind == "figure"}
    assert set(targets.wanted(["figures"], scale)) == of_kind
    assert set(targets.wanted(["table4", "results/small/tables/table5.csv"], scale)) == {"table4", "table5"}
    assert set(targets.wanted(["all"], scale)) == set(config.exhibits())
    assert set(check("figures", "table4").exhibits) == of_kind | {"table4"}


@pytest.mark.parametrize("target", ["table12", "results/small/tables/table12.csv"])
def test_a_replay_without_an_exhibits_metrics_is_refused(replay, target):
    (replay / "metrics/vtab.parquet").unlink()
    assert check("table4", replay=replay).exhibits
    with pytest.raises(MissingResourceError, match=r"table12 .*metrics/vtab\.parquet is missing\. Copy it there, or leave out"):
        check(target, replay=replay)


def test_all_of_a_replay_leaves_out_what_the_folder_does_not_have_and_says_so(replay):
    (replay / "metrics/vtab.parquet").unlink()
    with pytest.raises(MissingResourceError, match=r"vtab\.parquet is missing"):  # but vtab.runs.parquet is there
        check("all", replay=replay)
    (replay / "metrics/vtab.runs.parquet").unlink()
    checked = check("all", replay=replay)
    assert set(checked.left_out) == {"table12"} and "table4" in checked.exhibits
    notice = checked.notice(config.load("small", {"replay": replay}))
    assert str(replay) in notice and notice.endswith(": table12.")
    assert check("table4", replay=replay).notice(config.load("small")) == ""
    with pytest.raises(MissingResourceError, match="table12"):
        check("all", "table12", replay=replay)


@pytest.mark.parametrize("settings", [{}, {"replay": PUBLISHED}])
def test_a_table_without_a_row_is_refused_and_names_the_methods(settings):
    with pytest.raises(ConfigurationError, match=r"table5 prints none of the methods ether-n64\. It prints base, .*lora"):
        check("table5", methods="ether-n64", **settings)
    with pytest.raises(ConfigurationError, match=r"table2 needs .*'subject'.* methods=ether-n64\. .*lora-r4"):
        check("table2", methods="ether-n64", **settings)
    assert {"table2", "table5"} <= set(check("tables", methods="ether-n64", **settings).left_out)


def test_an_experiment_that_the_scale_leaves_out_is_named():
    scale = config.load("photographs")
    with pytest.raises(EtherError, match="table4 needs the experiment 'glue', which scale 'photographs' leaves out"):
        targets.check(["table4"], RULES, scale)
    assert "table4" in targets.check(["all"], RULES, scale).left_out


def test_a_file_of_an_experiment_without_runs_is_refused():
    with pytest.raises(
        ConfigurationError, match="(?s)Unknown experiment 'gleu' in results/small/metrics/gleu.parquet. Did you mean 'glue'"
    ):
        check("results/small/metrics/gleu.parquet")
    with pytest.raises(ConfigurationError, match=r"subject\.runs\.parquet needs the experiment 'subject', which has no run with"):
        check("results/small/metrics/subject.runs.parquet", methods="bitfit")
    scale = config.load("photographs")
    with pytest.raises(ConfigurationError, match="'glue', which scale 'photographs' leaves out"):
        targets.check(["results/photographs/runs/glue/all/metrics.parquet"], RULES, scale)
    assert not check("results/small/metrics/glue.runs.parquet", "results/small/notebooks/table4.ipynb", "results/small").exhibits


def test_a_table_of_the_papers_rows_only_is_not_made_empty(tmp_path, monkeypatch):
    from ether.exhibits import report

    settings = {"replay": str(PUBLISHED), "methods": "ether,lora-r4"}
    refused = r"table6 prints none of the methods .*ether.*\. It prints oft-n4, naive-n4: choose others"
    with pytest.raises(ConfigurationError, match=refused):
        check("table6", **settings)
    assert {"table6", "table11"} <= set(check("tables", **settings).left_out)
    assert "table2" in check("tables", **settings).exhibits
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=refused):
        report.make("table6", "small", settings)
    assert not list(tmp_path.rglob("table6*"))


TRAINED = [id_ for id_, exhibit in config.exhibits().items() if exhibit.kind == "table" and exhibit.experiments]


@pytest.mark.parametrize("table", TRAINED)
def test_the_check_refuses_every_table_without_a_row_and_none_with_a_value(table, monkeypatch):
    """Against the tables themselves, one method at a time. Tables 9 and 10 show the paper's rows also where nothing was run."""
    exhibit = config.exhibits()[table]
    module = importlib.import_module(f"ether.exhibits.{exhibit.module}")
    for name in ("parameter_cells", "tflops_cells"):
        monkeypatch.setattr(module, name, lambda table, methods: counted(table, methods), raising=False)
    for method in config.chosen_methods(config.load("small"), exhibit.experiments[0]):
        scale = config.load("small", {"replay": str(PUBLISHED), "methods": method})
        made = getattr(module, table)(scale)
        measured = made[(made["n"] > 0) & (made["method"] == method)]
        if targets.obstacle(exhibit, scale):
            assert measured.empty, method
        else:
            assert len(measured) or table in ("table9", "table10"), method


def test_a_table_that_is_not_in_the_paper_may_have_the_rows_of_the_table_whose_columns_it_has(monkeypatch):
    entry = config.ExhibitEntry("table13", "glue", "Another", columns_of="table4", rows="paper", experiments=("glue",))
    monkeypatch.setattr(config, "exhibits", lambda: {"table13": entry})
    methods = config.chosen_methods(config.load("small"), "glue")
    assert "linear-probe" in methods  # which the paper's Table 4 does not have
    assert set(targets.printed_methods("table13", methods)) == set(methods) - {"linear-probe"}
