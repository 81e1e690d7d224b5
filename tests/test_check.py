"""Checks before training: everything that is wrong at once, each in one paragraph that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from ether import check, config
from ether.errors import ConfigurationError, EtherError


def with_methods(monkeypatch: pytest.MonkeyPatch, **methods: dict[str, Any]) -> config.Scale:
    """The smoke scale with methods of a test's own, given by their `adapt`."""
    every = config.methods()
    for stem, adapt in methods.items():
        training: dict[str, Any] = {name: {"default": {"learning_rate": 1.0e-3}} for name in ("glue", "instruct", "subject")}
        every[stem] = {"label": stem, "adapt": adapt, "training": training}
    monkeypatch.setattr(config, "methods", lambda: every)
    return config.load("smoke", {"methods": ",".join(methods)})


def peft(type_: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "peft", "type": type_, "config": settings}


def check_all(scale: config.Scale, experiment: str) -> int:
    return check.check_runs(config.runs(scale, experiment), scale.results)


def test_all_faulty_methods_are_reported_at_once(workplace, monkeypatch):
    scale = with_methods(
        monkeypatch, good=peft("LORA", r=2), typo=peft("LORA", rank=2), seven=peft("ETHER", n_blocks=7), unknown=peft("LORRA")
    )
    with pytest.raises(EtherError) as error:
        check_all(scale, "glue")
    paragraphs = str(error.value).split("\n\n")
    assert len(paragraphs) == 3 and "good" not in str(error.value)
    assert "Unknown LORA parameter 'rank'" in paragraphs[0] and "typo.yaml" in paragraphs[0]
    assert "seven.yaml" in paragraphs[1] and "7" in paragraphs[1]
    assert "Did you mean 'LORA'" in paragraphs[2]


@pytest.mark.parametrize("relaxed", [False, True])
def test_blocks_of_one_entry_are_refused(workplace, monkeypatch, relaxed):
    scale = with_methods(monkeypatch, fine=peft("ETHER", n_blocks=128, relaxed=relaxed))
    with pytest.raises(ConfigurationError, match="block"):
        check_all(scale, "glue")


def test_a_method_that_reads_weights_is_checked_on_the_cpu(workplace, monkeypatch):
    assert check_all(with_methods(monkeypatch, shira=peft("SHIRA", r=2)), "glue") > 0


def test_prompt_learning_is_run_where_it_can_be_and_explained_elsewhere(workplace, monkeypatch):
    assert check_all(with_methods(monkeypatch, prompts=peft("PROMPT_TUNING", num_virtual_tokens=4)), "glue") > 0
    scale = with_methods(monkeypatch, prefix=peft("PREFIX_TUNING", num_virtual_tokens=4))
    with pytest.raises(ConfigurationError, match="PREFIX_TUNING") as error:
        check_all(scale, "glue")
    assert "prefix.yaml" in str(error.value) and "\n" not in str(error.value).strip()


def test_every_hyperparameter_may_stand_in_a_methods_config(workplace, monkeypatch):
    scale = with_methods(monkeypatch, decayed=peft("LORA", r=2, lora_dropout="$weight_decay"), bad=peft("LORA", r="$rank"))
    with pytest.raises(ConfigurationError, match=r"\$rank") as error:
        check_all(scale, "glue")
    assert "decayed" not in str(error.value)


def test_every_shipped_method_of_the_smoke_scale_passes(workplace):
    scale = config.load("smoke")
    assert check_all(scale, "glue") == len(config.runs(scale, "glue"))


def test_an_unknown_counting_convention_is_refused_before_training(workplace, monkeypatch):
    every = config.methods()
    every["lora"]["parameters"] = {"convention": "low-rnk"}
    monkeypatch.setattr(check, "methods", lambda: every)
    scale = config.load("smoke", {"methods": "lora", "tasks": "rte"})
    with pytest.raises(EtherError, match=r"'low-rnk' in workflow/methods/lora\.yaml, parameters\.convention\. .*'low-rank'"):
        check_all(scale, "glue")
