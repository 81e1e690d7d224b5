"""Our cases for PEFT's tests, written as PEFT writes those of its own tuners, and what cannot pass, with why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ether import EtherConfig, NaiveConfig

CONFIGS = [EtherConfig, NaiveConfig]

ETHER: dict[str, Any] = {"target_modules": ["lin0"]}
BOTH_LAYERS: dict[str, Any] = {"target_modules": ["lin0", "lin1"]}
PLUS: dict[str, Any] = {**ETHER, "relaxed": True}
RELEASE: dict[str, Any] = {"layout": "release", "n_blocks": 2}
SAVED: dict[str, Any] = {"modules_to_save": ["lin1"]}

# (name, model, configuration, its arguments). The models are PEFT's: MLP has lin0 (10 -> 20) and lin1 (20 -> 2);
# EmbConv1D an embedding, a transformers Conv1D (5 -> 1) and lin0 (10 -> 2). Some of the tests want every parameter to
# change in training, and a block of one entry has nothing to learn (its unit vector is +-1): no such blocks here.
CUSTOM_MODELS = [
    ("MLP 1 ETHER", "MLP", EtherConfig, {"target_modules": "lin0"}),
    ("MLP 2 ETHER", "MLP", EtherConfig, BOTH_LAYERS),
    ("MLP 3 ETHER blocks", "MLP", EtherConfig, {**BOTH_LAYERS, "n_blocks": 2}),
    ("MLP 4 ETHER saved", "MLP", EtherConfig, {**ETHER, **SAVED}),
    ("MLP 5 ETHER both", "MLP", EtherConfig, {**ETHER, "sides": "both", "n_blocks": 5}),
    ("MLP 6 ETHER output", "MLP", EtherConfig, {**BOTH_LAYERS, "sides": "output"}),
    ("MLP 7 ETHER dropout", "MLP", EtherConfig, {**ETHER, "sides": "both", "dropout": 0.1}),
    ("MLP 8 ETHER release", "MLP", EtherConfig, {**BOTH_LAYERS, **RELEASE}),
    ("EmbConv1D 1 ETHER", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"]}),
    ("EmbConv1D 2 ETHER", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"], "modules_to_save": ["emb"]}),
    ("MLP 1 ETHER+", "MLP", EtherConfig, {"target_modules": "lin0", "relaxed": True}),
    ("MLP 2 ETHER+", "MLP", EtherConfig, {**BOTH_LAYERS, "relaxed": True}),
    ("MLP 3 ETHER+ blocks", "MLP", EtherConfig, {**PLUS, "n_blocks": 2}),
    ("MLP 4 ETHER+ saved", "MLP", EtherConfig, {**PLUS, **SAVED}),
    ("MLP 5 ETHER+ input", "MLP", EtherConfig, {**BOTH_LAYERS, "sides": "input", "relaxed": True}),
    ("MLP 6 ETHER+ dropout", "MLP", EtherConfig, {**PLUS, "dropout": 0.1}),
    ("MLP 7 ETHER+ release", "MLP", EtherConfig, {**PLUS, **RELEASE}),
    ("EmbConv1D 1 ETHER+", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"], "relaxed": True, "sides": "input"}),
    ("MLP 1 Naive", "MLP", NaiveConfig, {"target_modules": "lin0"}),
    ("MLP 2 Naive", "MLP", NaiveConfig, {**BOTH_LAYERS, "n_blocks": 2}),
    ("MLP 3 Naive saved", "MLP", NaiveConfig, {"target_modules": ["lin0"], **SAVED}),
    ("EmbConv1D 1 Naive", "EmbConv1D", NaiveConfig, {"target_modules": ["conv1d"]}),
]


def _pair(name: str, config: type, **kwargs: object) -> list[tuple[object, ...]]:
    first = {**ETHER, "init_weights": False, **kwargs}
    return [
        (f"{name} Same", name, config, first, first),
        (f"{name} Different", name, config, first, {**first, "target_modules": ["lin1"]}),
    ]


# (name, tuner, configuration, arguments of the first adapter, arguments of the second)
PAIRS = [
    *_pair("ETHER", EtherConfig),
    *_pair("ETHER release", EtherConfig, **RELEASE),
    *_pair("ETHER+", EtherConfig, relaxed=True),
    *_pair("Naive", NaiveConfig),
]

# What replaces the values of a test's `parametrize`, by its argument names as PEFT writes them.
REPLACEMENTS: dict[str, list[Any]] = {
    "test_name, model_id, config_cls, config_kwargs": CUSTOM_MODELS,
    "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2": PAIRS,
    "config_cls": CONFIGS,
    "config_class": CONFIGS,
    "config_class, mandatory_kwargs": [(config, {}) for config in CONFIGS],
    "config0": [
        EtherConfig(**ETHER, init_weights=False),
        EtherConfig(**PLUS, init_weights=False),
        NaiveConfig(**ETHER, init_weights=False),
    ],
}

# Causal language models built here, from transformers' own classes: Llama has Linear layers, GPT-2 Conv1D.
DECODERS = [
    ("llama", EtherConfig, {"task_type": "CAUSAL_LM"}),
    ("llama", EtherConfig, {"task_type": "CAUSAL_LM", "relaxed": True, "n_blocks": 4}),
    ("llama", EtherConfig, {"task_type": "CAUSAL_LM", "layout": "release", "n_blocks": 2}),
    ("llama", NaiveConfig, {"task_type": "CAUSAL_LM", "n_blocks": 4}),
    ("conv1d", EtherConfig, {"task_type": "CAUSAL_LM", "sides": "both"}),
    ("conv1d", EtherConfig, {"task_type": "CAUSAL_LM", "relaxed": True}),
    ("conv1d", NaiveConfig, {"task_type": "CAUSAL_LM", "n_blocks": 2}),
]


def _is_plain_ether(parameters: dict[str, Any]) -> bool:
    arguments = parameters.get("config_kwargs", {})
    return parameters.get("config_cls") is EtherConfig and not arguments.get("relaxed", False)


_NOT_THE_IDENTITY = "needs the identity at the start; a plain ETHER reflection never is (paper, eq. 2)"

# Test function: (for which of our cases, why it cannot pass). Everything else must pass. PEFT asks for it first
# in these tests; what they go on to check is in tests/test_tuners.py.
EXPECTED_FAILURES: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "test_disable_adapters": (_is_plain_ether, _NOT_THE_IDENTITY),
    "test_disable_adapters_with_merging": (_is_plain_ether, _NOT_THE_IDENTITY),
}

# Tests of PEFT's that read a checkpoint of PEFT's from the hub; nothing in them depends on the tuner.
NEEDS_HUB = {"test_from_pretrained", "test_from_pretrained_cache_dir", "test_save_pretrained_with_runtime_config"}
