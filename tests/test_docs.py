"""The documents: links and paths exist, examples are valid, and what is stated twice is equal."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ether import config
from ether.analysis.claims import Claim, Comparison
from ether.registry import modules

ROOT = Path(__file__).resolve().parent.parent
PATCH = (ROOT / "docs" / "upstream" / "ether.patch").read_text(encoding="utf-8")  # names files of PEFT
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "results/README.md"])


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:ether|workflow|tests|notebooks|docs|benchmarks|profiles)/[\w./-]+)`", text):
        to_be_written = name in ("workflow/methods/hra.yaml", "workflow/scales/mine.yaml")  # by the reader
        if not to_be_written and f" b/{name}\n" not in PATCH:
            assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


@pytest.mark.parametrize("page", ["README.md", "docs/add-a-method.md"])
def test_the_method_in_the_example_is_valid(page: str) -> None:
    [text] = [block for block in blocks(page, "yaml") if "HRA" in block]
    content = yaml.safe_load(text)
    config.validate(content, "method", Path("hra.yaml"), modules())
    assert content["label"] == "HRA r=8"


def test_the_scale_in_the_example_is_valid() -> None:
    [text] = blocks("docs/own-model.md", "yaml")
    content: dict[str, Any] = yaml.safe_load(text)
    base = config.load(content.pop("over")).settings
    merged = config.overlay(base, content)
    config.validate(merged, "scale", Path("mine.yaml"), modules())
    assert merged["glue"]["tasks"] == ["rte", "mrpc"] and merged["glue"]["model"]["path"] == "models/my-encoder"


def test_the_claim_in_the_example_is_one_of_the_suite() -> None:
    from ether.paper.claims import glue

    [text] = blocks("docs/add-a-table.md", "python")
    assert eval(text, {"Claim": Claim, "Comparison": Comparison}) in glue.CLAIMS


def test_the_rule_graph_has_the_rules_of_the_workflow() -> None:
    text = (ROOT / "docs/rulegraph.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r">([a-z_]+)</text>", text))
    rules = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules |= set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", file.read_text(encoding="utf-8"), re.M))
    worlds = {name for name in shown if name.startswith("world_")}
    assert shown - worlds <= rules and {"experiment", "table", "claims", "report"} <= shown
    assert {name.removeprefix("world_") for name in worlds} <= set(config.load("small").settings["world"])


def test_citation_and_hooks_agree_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["project"]["version"] and citation["license"] == project["project"]["license"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    [ruff] = {dependency for hook in hooks for dependency in hook["additional_dependencies"] if dependency.startswith("ruff")}
    assert ruff in project["project"]["optional-dependencies"]["test"]
    [snakefmt] = [hook["entry"] for hook in hooks if hook["id"] == "snakefmt"]
    assert f"--line-length {project['tool']['ruff']['line-length']}" in snakefmt


def test_readme_shows_the_published_results() -> None:
    from ether import readme

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.written(text, ROOT) == text, "python -m ether.readme"
    shown = readme.section(ROOT)
    assert "| ETHER+ |" in shown and "figures/figure8.png" in shown and "are reproduced" in shown


def test_readme_counts_the_runs_of_its_commands() -> None:
    rows = re.findall(
        r"^\| `make ([^`]+)`[^|]*\| ([\d,]+|none) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 6
    for command, said in rows:
        words = command.split(" CONFIG=")
        settings = dict([words[1].strip('"').split("=")]) if len(words) > 1 else {}
        scale = config.load("small", settings)
        wanted = [config.exhibits()[name] for name in words[0].split() if name != "all"] or config.exhibits().values()
        names = {name for exhibit in wanted for name in exhibit.experiments} if "replay" not in settings else ()
        assert f"{sum(len(list(config.runs(scale, name))) for name in names):,}" == said.replace("none", "0"), command
