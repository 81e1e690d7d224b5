"""Our cases for PEFT's tests, written as PEFT writes those of its own tuners, and the tests we cannot pass, with why."""

from __future__ import annotations

from ether import EtherConfig, NaiveConfig

CONFIGS = [EtherConfig, NaiveConfig]

# (name, model, configuration, its arguments); the models are PEFT's: MLP has lin0 (10 -> 20) and lin1 (20 -> 2), EmbConv1D an
# embedding, a transformers Conv1D (5 -> 1) and lin0 (10 -> 2).
CASES = [
    ("MLP 1 ETHER", "MLP", EtherConfig, {"target_modules": "lin0"}),
    ("MLP 2 ETHER", "MLP", EtherConfig, {"target_modules": ["lin0", "lin1"]}),
    ("MLP 3 ETHER blocks", "MLP", EtherConfig, {"target_modules": ["lin0", "lin1"], "n_blocks": 2}),
    ("MLP 4 ETHER saved", "MLP", EtherConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP 5 ETHER both", "MLP", EtherConfig, {"target_modules": ["lin0"], "sides": "both", "n_blocks": 5}),
    ("MLP 6 ETHER output", "MLP", EtherConfig, {"target_modules": ["lin0", "lin1"], "sides": "output"}),
    ("MLP 7 ETHER dropout", "MLP", EtherConfig, {"target_modules": ["lin0"], "sides": "both", "dropout": 0.1}),
    (
        "MLP 8 ETHER release",
        "MLP",
        EtherConfig,
        {"target_modules": ["lin0", "lin1"], "n_blocks": 2, "layout": "release"},
    ),
    ("EmbConv1D ETHER", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"]}),
    ("EmbConv1D ETHER saved", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"], "modules_to_save": ["emb"]}),
    ("MLP 1 ETHER+", "MLP", EtherConfig, {"target_modules": "lin0", "relaxed": True}),
    ("MLP 2 ETHER+", "MLP", EtherConfig, {"target_modules": ["lin0", "lin1"], "relaxed": True}),
    ("MLP 3 ETHER+ blocks", "MLP", EtherConfig, {"target_modules": ["lin0"], "n_blocks": 2, "relaxed": True}),
    (
        "MLP 4 ETHER+ saved",
        "MLP",
        EtherConfig,
        {"target_modules": ["lin0"], "modules_to_save": ["lin1"], "relaxed": True},
    ),
    ("MLP 5 ETHER+ input", "MLP", EtherConfig, {"target_modules": ["lin0"], "sides": "input", "relaxed": True}),
    (
        "MLP 6 ETHER+ dropout",
        "MLP",
        EtherConfig,
        {"target_modules": ["lin0"], "relaxed": True, "dropout": 0.1},
    ),
    (
        "MLP 7 ETHER+ release",
        "MLP",
        EtherConfig,
        {"target_modules": ["lin0", "lin1"], "n_blocks": 2, "layout": "release", "relaxed": True},
    ),
    ("EmbConv1D ETHER+", "EmbConv1D", EtherConfig, {"target_modules": ["conv1d"], "relaxed": True}),
    ("MLP 1 Naive", "MLP", NaiveConfig, {"target_modules": "lin0"}),
    ("MLP 2 Naive", "MLP", NaiveConfig, {"target_modules": ["lin0", "lin1"], "n_blocks": 2}),
    ("MLP 3 Naive saved", "MLP", NaiveConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("EmbConv1D Naive", "EmbConv1D", NaiveConfig, {"target_modules": ["conv1d"]}),
]


def _pair(name: str, config: type, **kwargs: object) -> list[tuple[object, ...]]:
    first = {"target_modules": ["lin0"], "init_weights": False, **kwargs}
    return [
        (f"{name} Same", config._kind, config, first, {**first, "target_modules": ["lin0"]}),
        (f"{name} Different", config._kind, config, first, {**first, "target_modules": ["lin1"]}),
    ]


# (name, tuner, configuration, arguments of the first adapter, arguments of the second)
PAIRS = [
    *_pair("ETHER", EtherConfig),
    *_pair("ETHER release", EtherConfig, n_blocks=2, layout="release"),
    *_pair("ETHER+", EtherConfig, relaxed=True),
    *_pair("Naive", NaiveConfig),
]

# Parametrised by an object rather than a class: (argument name, our values).
OBJECTS = {
    "config0": [
        EtherConfig(target_modules=["lin0"], init_weights=False),
        EtherConfig(target_modules=["lin0"], init_weights=False, relaxed=True),
        NaiveConfig(target_modules=["lin0"], init_weights=False),
    ]
}

# Test function: (which of our cases by a word that must not / must be in the case's name, why it cannot pass).
EXPECTED_FAILURES: dict[str, tuple[str, str]] = {}
