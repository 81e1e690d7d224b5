"""Makes `ether.patch`, which adds ETHER to PEFT's own source, from this package's adapter.

    python docs/upstream/make.py SOURCE                # writes docs/upstream/ether.patch
    python docs/upstream/make.py SOURCE --check        # status 1 if the patch is not what would be written
    python docs/upstream/make.py SOURCE --test         # applies it to a copy of SOURCE and runs PEFT's tests of ETHER there

SOURCE is the unpacked source distribution of the PEFT version that this package requires
(`pip download peft==0.21.2 --no-binary :all: --no-deps`). Needs git and ruff. The adapter's text is changed as little as
possible: errors are ValueErrors, the control Naive and the Triton kernels are left out, and the formatting is PEFT's.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.21.2"  # of PEFT, for whose source the patch is made
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATCH = HERE / "ether.patch"
TUNER = "src/peft/tuners/ether"
LICENCE = """\
# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""
INIT = """\
from peft.utils import register_peft_method

from .config import EtherConfig
from .layer import EtherLayer
from .model import EtherModel


__all__ = ["EtherConfig", "EtherLayer", "EtherModel"]

register_peft_method(name="ether", config_cls=EtherConfig, model_cls=EtherModel)
"""
# method_comparison/MetaMathQA/experiments/ether/<name>: (arguments of the configuration, of the training).
# Default: the configuration's own. Optimised: the paper's for instruction tuning (Table 8, App. C.4).
EXPERIMENTS: dict[str, tuple[dict[str, object], dict[str, object] | None]] = {
    "llama-3.2-3B-default": ({}, None),
    "llama-3.2-3B-relaxed-blocks32-lr_0.005": (
        {"relaxed": True, "n_blocks": 32},
        {"optimizer_kwargs": {"lr": 5e-3, "weight_decay": 0.0}},
    ),
}
# The tests of PEFT that need neither its checkpoints on the hub nor a GPU.
TESTS = ("tests/test_custom_models.py", "tests/test_config.py", "tests/test_initialization.py")
SELECTED = "(ether or ETHER or Ether) and not (from_pretrained or save_pretrained_with_runtime_config)"


class Changed(Exception):
    """A text is not where it is expected: PEFT's source or this package has changed; the message names the place."""


# --- the adapter ---------------------------------------------------------------------------------------------------------


def replaced(text: str, where: str, *changes: tuple[str, str]) -> str:
    """`text` with each old text, which must be there exactly once, replaced by the new one."""
    for old, new in changes:
        if text.count(old) != 1:
            raise Changed(f"{where} has {text.count(old)} times instead of once: {old!r}")
        text = text.replace(old, new)
    return text


def without(text: str, where: str, *names: str) -> str:
    """The source of a module without some of its functions and classes."""
    lines = text.splitlines(keepends=True)
    nodes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name in names:
        if name not in nodes:
            raise Changed(f"{where} has no {name}")
        node = nodes[name]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        lines[first - 1 : node.end_lineno] = [""] * ((node.end_lineno or first) - first + 1)
    return "".join(lines)


def reflection() -> str:
    """`ether/reflection.py` without the fused kernels, and without what only Naive uses."""
    name = "ether/reflection.py"
    text = (ROOT / name).read_text(encoding="utf-8")
    text = without(text, name, "_kernels", "_fused", "block_multiply")
    text = replaced(
        text,
        name,
        ('    "block_multiply",\n', ""),
        ("import functools\nimport importlib\n", ""),
        ("from types import ModuleType\n", ""),
        ("    if (fused := _fused(rows, b)) is not None:\n        return fused.rank_update(rows, a, b, offset), None\n", ""),
    )
    return re.sub(
        r"    if \(fused := _fused\(rows, b\)\) is not None:\n        return fused\.rank_update_backward\(.*\)\n", "", text
    )


def configuration() -> str:
    """`ether/tuners/config.py` without Naive."""
    name = "ether/tuners/config.py"
    text = without((ROOT / name).read_text(encoding="utf-8"), name, "NaiveConfig")
    text = replaced(
        text,
        name,
        ("the two adapters: `EtherConfig` (ETHER and ETHER+) and `NaiveConfig` (the paper's control).", "ETHER and ETHER+."),
        (
            "What `EtherConfig` and `NaiveConfig` share: which layers are adapted, in how many blocks, and how it starts.",
            "Which layers a multiplicative adapter adapts, in how many blocks, and how it starts.",
        ),
        ("does not depend on it; Naive's is d^2 / n.", "does not depend on it."),
        ("from ether.errors import ConfigurationError, one_of\n", ""),
        ("ConfigurationError: a value is not allowed. (A `ValueError` as well.)", "ValueError: a value is not allowed."),
    )
    text = re.sub(
        r"raise one_of\(\"(\w+)\", self\.\w+, (.+?), (name|type\(self\)\.__name__)\)\n",
        r'raise ValueError(f"{type(self).__name__}.\1 is {self.\1!r}; it is one of {\2}.")' "\n",
        text,
    )
    walrus = 'if self.bias not in (allowed := ("none", "all", f"{self._kind}_only")):'
    plain = 'allowed = ("none", "all", f"{self._kind}_only")\n        if self.bias not in allowed:'
    return replaced(text, name, (walrus, plain))


def layer() -> str:
    """`ether/tuners/layer.py` without Naive."""
    name = "ether/tuners/layer.py"
    text = without((ROOT / name).read_text(encoding="utf-8"), name, "NaiveLayer")
    text = re.sub(
        r"from ether\.reflection import \((.*?)\)", lambda m: f"from .reflection import ({m[1]})", text, flags=re.DOTALL
    )
    return replaced(
        text,
        name,
        ("The adapted linear layer: ETHER, ETHER+ and Naive around", "The adapted linear layer: ETHER and ETHER+ around"),
        ("All three multiply", "Both multiply"),
        ("    block_multiply,\n", ""),
        ("from ether.errors import ConfigurationError\n", ""),
        (
            "from .config import EtherConfig, MultiplicativeConfig, NaiveConfig\n",
            "from .config import EtherConfig, MultiplicativeConfig\n",
        ),
        ("ETHER+ and Naive can be", "ETHER+ can be"),
    )


def model() -> str:
    """`ether/tuners/model.py` without Naive."""
    name = "ether/tuners/model.py"
    text = without((ROOT / name).read_text(encoding="utf-8"), name, "NaiveModel")
    mapping = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
    return replaced(
        text.replace(mapping, mapping.replace("LORA", "ETHER")),
        name,
        ("from ether.errors import ConfigurationError\n", ""),
        ("import EtherLayer, MultiplicativeLayer, NaiveLayer, _quant", "import EtherLayer, MultiplicativeLayer, _quant"),
    )


def adapter() -> dict[str, str]:
    """{path in PEFT's source: content} of the new tuner."""
    modules = {"config": configuration(), "layer": layer(), "model": model(), "reflection": reflection()}
    found = {f"{TUNER}/__init__.py": LICENCE + INIT}
    for name, text in modules.items():
        text = text.replace("ConfigurationError", "ValueError")
        text = re.sub(
            r"  # type: ignore\S*(\[[^\]]*\])?(  # (?P<why>.*))?", lambda m: f"  # {m['why']}" if m["why"] else "", text
        )
        if re.search(r"\bether\.|Naive|one_of", text):
            place = re.search(r".*(\bfrom ether\.|import ether\.|Naive|one_of).*", text)
            if place:
                raise Changed(f"{name}.py still has {place[0].strip()!r}")
        found[f"{TUNER}/{name}.py"] = LICENCE + text
    return found


# --- the rest of PEFT ----------------------------------------------------------------------------------------------------


def rows() -> tuple[str, str]:
    """The rows of PEFT's test cases: custom models, and pairs of adapters; from tests/peft_conformance/cases.py."""
    sys.path.insert(0, str(ROOT))
    from ether import EtherConfig
    from tests.peft_conformance import cases

    models = [
        f"    ({name.replace('MLP', 'Vanilla MLP')!r}, {kind!r}, EtherConfig, {arguments!r}),\n"
        for name, kind, config, arguments in cases.CUSTOM_MODELS
        if config is EtherConfig
    ]
    pairs = [
        f"    ({name!r}, 'ether', EtherConfig, {first!r}, {second!r}),\n"
        for name, _, config, first, second in cases.PAIRS
        if config is EtherConfig
    ]
    return "    #########\n    # ETHER #\n    #########\n" + "".join(models), "".join(pairs)


def initialization_tests() -> str:
    """The class of `initialization_tests.py`, without its imports."""
    text = (HERE / "initialization_tests.py").read_text(encoding="utf-8")
    return text[text.index("class Test") :]


def before(anchor: str, new: str) -> tuple[str, str]:
    """The change that puts `new` before an anchor."""
    return anchor, new + anchor


def edits() -> dict[str, list[tuple[str, str]]]:
    """{existing file of PEFT: changes}."""
    models, pairs = rows()
    mapping = "TRANSFORMERS_MODELS_TO_{}_TARGET_MODULES_MAPPING"
    lora, delora, ether = (mapping.format(name) for name in ("LORA", "DELORA", "ETHER"))
    never = "ETHER is never the identity"
    config_row = "    (\n        {0}Config,\n        {{\n            {1}"
    ether_row = (
        "    (EtherConfig, {{'task_type': '{0}', 'target_modules': None}}),\n"
        "    (EtherConfig, {{'task_type': '{0}', 'target_modules': None, 'relaxed': True, 'n_blocks': 2}}),\n"
    )
    named = [(f"    {delora},\n", f"    {ether},\n"), (f'    "{delora}",\n', f'    "{ether}",\n')]
    list_of_names = [(old, old + new) for old, new in named]
    found = {
        "src/peft/utils/peft_types.py": [
            ('    - DEFT\n    """\n', '    - DEFT\n    - ETHER\n    """\n'),
            ('    DEFT = "DEFT"\n', '    DEFT = "DEFT"\n    ETHER = "ETHER"\n'),
        ],
        "src/peft/utils/constants.py": [before(f"{mapping.format('GLORA')} = {lora}.copy()\n", f"{ether} = {lora}.copy()\n")],
        "src/peft/utils/__init__.py": list_of_names,
        "src/peft/utils/other.py": list_of_names,
        "src/peft/tuners/__init__.py": [
            before("from .fourierft import", "from .ether import EtherConfig, EtherModel\n"),
            before('    "FourierFTConfig",\n', '    "EtherConfig",\n    "EtherModel",\n'),
        ],
        "src/peft/__init__.py": [
            before("    EvaConfig,\n", "    EtherConfig,\n    EtherModel,\n"),
            before('    "EvaConfig",\n', '    "EtherConfig",\n    "EtherModel",\n'),
        ],
        "tests/test_config.py": [
            before("    FourierFTConfig,\n", "    EtherConfig,\n"),
            before("    (FourierFTConfig, {}),\n", "    (EtherConfig, {}),\n"),
        ],
        "tests/test_custom_models.py": [
            ("    DeloraConfig,\n    FourierFTConfig,\n", "    DeloraConfig,\n    EtherConfig,\n    FourierFTConfig,\n"),
            before("    ########\n    # HRA #\n    ########\n", models),
            before('    (\n        "HRA Same",\n', pairs),
            (
                "            pass\n        else:\n            assert torch.allclose(outputs_base, outputs_before)\n",
                "            pass\n        elif isinstance(config, EtherConfig) and not config.relaxed:\n"
                f"            pass  # {never}; see TestEtherInitialization\n"
                "        else:\n            assert torch.allclose(outputs_base, outputs_before)\n",
            ),
            (
                "            assert torch.allclose(outputs_base, outputs_disabled)\n        else:\n"
                "            assert torch.allclose(outputs_before, outputs_disabled)\n",
                "            assert torch.allclose(outputs_base, outputs_disabled)\n"
                "        elif isinstance(config, EtherConfig) and not config.relaxed:\n"
                f"            # {never}, so disabling returns the base output (not `outputs_before`)\n"
                "            assert torch.allclose(outputs_base, outputs_disabled)\n        else:\n"
                "            assert torch.allclose(outputs_before, outputs_disabled)\n",
            ),
            (
                "        if not (isinstance(config, DeftConfig) and config.para):\n",
                f"        # (the same for ETHER without `relaxed`: {never})\n"
                "        never_identity = isinstance(config, EtherConfig) and not config.relaxed\n"
                "        if not (isinstance(config, DeftConfig) and config.para) and not never_identity:\n",
            ),
        ],
        "tests/test_initialization.py": [
            before("    EvaConfig,\n    FrodConfig,\n", "    EtherConfig,\n"),
            before(
                "class TestGraLoRAInitialization:\n",
                initialization_tests() + "\n\n",
            ),
        ],
        "tests/test_torch_compile.py": [
            before("    HRAConfig,\n", "    EtherConfig,\n"),
            before(
                '    "hra": (HRAConfig(',
                '    "ether": (EtherConfig(task_type=TaskType.CAUSAL_LM), {}),\n'
                '    "ether-relaxed": (EtherConfig(task_type=TaskType.CAUSAL_LM, relaxed=True), {}),\n',
            ),
        ],
    }
    for file, task, first in (
        ("decoder_models", "CAUSAL_LM", '"task_type"'),
        ("encoder_decoder_models", "SEQ_2_SEQ_LM", '"n_frequency"'),
        ("feature_extraction_models", "FEATURE_EXTRACTION", '"task_type"'),
        ("seq_classifier", "SEQ_CLS", '"task_type"'),
    ):
        found[f"tests/test_{file}.py"] = [
            before("    FourierFTConfig,\n    FrodConfig,\n", "    EtherConfig,\n"),
            before(config_row.format("FourierFT", first), ether_row.format(task)),
        ]
    return found


def experiments() -> dict[str, str]:
    """{path: content} of the configurations for PEFT's comparison of methods."""
    sys.path.insert(0, str(ROOT))
    from ether import EtherConfig

    found = {}
    for name, (arguments, training) in EXPERIMENTS.items():
        folder = f"method_comparison/MetaMathQA/experiments/ether/{name}"
        content = {key: value for key, value in EtherConfig(**arguments).to_dict().items() if key != "peft_version"}
        found[f"{folder}/adapter_config.json"] = json.dumps(content, indent=2, sort_keys=True) + "\n"
        if training:
            found[f"{folder}/training_params.json"] = json.dumps(training, indent=2) + "\n"
    return found


# --- the patch -----------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    """The output of git in a folder; its configuration of the user plays no part."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "user.name=x", "-c", "user.email=x", "-c", "core.abbrev=10", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


def formatted(folder: Path, files: list[str]) -> None:
    """Formats files as PEFT's pyproject.toml says (its exact version of ruff is not required)."""
    options = ["--isolated", "--quiet", "--target-version", "py310", "--line-length", "119"]
    imports = ["--config", "lint.isort.lines-after-imports=2", "--config", 'lint.isort.known-first-party=["peft"]']
    subprocess.run(
        ["ruff", "check", *options, "--select", "F401,I,RUF022", "--fix-only", *imports, *files], cwd=folder, check=True
    )
    subprocess.run(["ruff", "format", *options, *files], cwd=folder, check=True)


def copied(source: Path, folder: Path) -> Path:
    """A fresh copy of PEFT's source under git."""
    copy = folder / "peft"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", ".git"))
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "as released")
    return copy


def make(source: Path) -> str:
    """The patch for an unpacked source distribution.

    Raises:
        Changed: a place that is edited is not as expected.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = copied(source, Path(temporary))
        for name, changes in edits().items():
            file = copy / name
            file.write_text(replaced(file.read_text(encoding="utf-8"), name, *changes), encoding="utf-8")
        new = adapter()
        page = "docs/source/package_reference/ether.md"
        for name, text in {**new, **experiments(), page: (HERE / "package_reference.md").read_text(encoding="utf-8")}.items():
            file = copy / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        formatted(copy, [*new, *(name for name in edits() if name.startswith("tests/"))])
        git(copy, "add", "--all")
        return git(copy, "diff", "--cached", "--no-color")


def test(source: Path, patch: Path = PATCH, select: str = SELECTED) -> int:
    """Applies the patch to a fresh copy and runs PEFT's tests of ETHER there; the status of pytest."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = copied(source, Path(temporary))
        git(copy, "apply", str(patch))
        (copy / "tests/__init__.py").touch()  # is in PEFT's repository, and not in its source distribution
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "HF_HUB_OFFLINE": "1"}
        options = ["-q", "-p", "no:cacheprovider", "--override-ini", "addopts=", "-k", select]
        return subprocess.run([sys.executable, "-m", "pytest", *options, *TESTS], cwd=copy, env=environment).returncode


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make, check or test the patch that adds ETHER to PEFT's source.")
    parser.add_argument("source", type=Path, help="unpacked source distribution of PEFT")
    parser.add_argument("--check", action="store_true", help="compare the patch instead of writing it")
    parser.add_argument("--test", action="store_true", help="apply the patch to a copy and run PEFT's tests of ETHER there")
    options = parser.parse_args()
    if not (options.source / "src" / "peft").is_dir():
        parser.error(f"{options.source} has no src/peft: give the folder of PEFT's unpacked source distribution.")
    if options.test:
        return test(options.source.resolve())
    patch = make(options.source.resolve())
    if options.check:
        return int(patch != PATCH.read_text(encoding="utf-8"))
    PATCH.write_text(patch, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
