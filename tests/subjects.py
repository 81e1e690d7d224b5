"""Shared by the tests on text-to-image diffusion: prompts, methods, and a data set of made pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ether.diffusion.dataset import PROMPT_FILE

PROMPTS = """Classes

subject_name,class
dog,dog
vase,flower vase

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} on "pink" fabric'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a {0} {1} at sea'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""
ETHER = {"kind": "peft", "type": "ETHER", "config": {"n_blocks": 1}}
METHODS: dict[str, dict[str, Any]] = {
    "ether": ETHER,
    "ether-plus": {"kind": "peft", "type": "ETHER", "config": {"relaxed": True, "n_blocks": 2}},
    "oft": {"kind": "peft", "type": "OFT", "config": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}},
    "naive": {"kind": "peft", "type": "NAIVE", "config": {"n_blocks": 2}},
    "lora": {"kind": "peft", "type": "LORA", "config": {"r": 2}},
    "full": {"kind": "full"},
    "none": {"kind": "none"},
}


def write_subjects(dataset: Path) -> Path:
    """Writes two subjects of three pictures in google/dreambooth's layout; returns the folder."""
    random = np.random.default_rng(0)
    for name, colour in (("dog", (200, 90, 40)), ("vase", (40, 90, 200))):
        (dataset / name).mkdir(parents=True)
        for number in range(3):
            picture = np.full((40, 48, 3), random.integers(0, 255, 3), dtype=np.uint8)
            picture[8 + number : 30, 12:36] = colour
            Image.fromarray(picture).save(dataset / name / f"{number:02d}.png")
    (dataset / PROMPT_FILE).write_text(PROMPTS)
    return dataset
