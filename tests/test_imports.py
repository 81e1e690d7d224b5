"""How the package's modules import one another and the libraries: no circle, only downhill, and light where it must be.

Also how `import ether` registers the adapters with PEFT without importing it.
"""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ether.silence import hidden

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ether"

# --- the graph of imports ------------------------------------------------------------------------------------------------

# From the bottom up. A part may import parts of earlier lines and itself. Parts are named below `ether`; the longest name that
# fits a module counts.
ORDER = (
    ("errors", "everything raises them"),
    (
        "silence reflection dense kernels results sources progress machine processes",
        "tools that know nothing of the paper or the workflow",
    ),
    ("tuners worlds yamlfiles", "the adapters for PEFT; made-up data; the workflow's files, read and validated"),
    ("__init__ registry overrides", "the package's public names; the lists of experiments, exhibits and methods; --config"),
    ("scales", "the files of scales"),
    ("config foundation methods", "scales and runs; small models, which learn from worlds; methods, which use the adapters"),
    ("hub training", "loads any model, those of `foundation` included; trains any model"),
    ("preprocessing", "prepares images as a checkpoint requires"),
    ("measures analysis standins", "measures adapted models; analyses stored metrics; imitates models of the hub"),
    ("diffusion paper", "what the text-to-image experiments share; the paper's numbers, beside ours"),
    ("targets", "the exhibits that a command line asks for"),
    ("experiments exhibits", "train; show what was measured: neither knows the other"),
    ("publish site readme", "copy and show what was made"),
    ("check plan", "tries methods on an experiment's model before anything is trained; counts what the runs would cost"),
    ("run", "the only module that knows both experiments and methods"),
    ("notebook", "executes a notebook, whatever is in it"),
)
# Downhill, but not allowed: (importing part, imported part, why).
FORBIDDEN = (
    ("experiments", "methods.adapt", "an experiment knows no method"),
    ("exhibits", "training", "an exhibit never trains"),
    ("exhibits", "diffusion", "an exhibit never trains"),
    ("exhibits", "methods.adapt", "an exhibit never trains"),
    ("analysis", "hub", "analysis knows metrics, and no model or data"),
    ("analysis", "foundation", "analysis knows metrics, and no model or data"),
    ("analysis", "worlds", "analysis knows metrics, and no model or data"),
    ("notebook", "config", "each notebook job starts with it"),
    ("notebook", "results", "each notebook job starts with it"),
)


def modules() -> dict[str, Path]:
    """{name below `ether`: file}; a package is named as its folder, and `ether` itself `__init__`."""
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return names


def imported(name: str, file: Path) -> Iterator[str]:
    """The full names of what a module imports, at any place in its text; of `from a import b`, both `a` and `a.b`."""
    package = ["ether", *name.split(".")] if file.name == "__init__.py" else ["ether", *name.split(".")[:-1]]
    package = ["ether"] if name == "__init__" else package
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}"
            yield base


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """{module: the modules of this package that it imports}.

    `from ether.paper import published` is an import of the module `paper.published`, and not of the package `paper`, which is
    imported on the way to any of its modules.
    """
    edges: dict[str, set[str]] = {}
    for name, file in files.items():
        edges[name] = set()
        found = list(imported(name, file))
        for full in found:
            below = full.removeprefix("ether.") if full != "ether" else "__init__"
            inner = any(other != full and other.startswith(f"{full}.") and other[6:] in files for other in found)
            if full.split(".")[0] == "ether" and below in files and below != name and not inner:
                edges[name].add(below)
    return edges


def part_of(module: str) -> str | None:
    """The longest name in ORDER that fits a module."""
    known = {part for parts, _ in ORDER for part in parts.split()}
    fitting = [part for part in known if module == part or module.startswith(f"{part}.")]
    return max(fitting, key=len, default=None)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module: those that reach one another."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for other in edges[pending.pop()] - seen:
                seen.add(other)
                pending.append(other)
        return seen

    reach = {name: reachable(name) for name in edges}
    found = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in edges if a in reach[a]}
    return sorted(map(list, found))


def uphill(edges: dict[str, set[str]]) -> list[str]:
    """The imports against ORDER or in FORBIDDEN, and the modules that ORDER does not have."""
    level = {part: number for number, (parts, _) in enumerate(ORDER) for part in parts.split()}
    reason = {part: why for parts, why in ORDER for part in parts.split()}
    found = []
    for name, others in edges.items():
        part = part_of(name)
        if part is None:
            found.append(f"ether.{name} is in no line of ORDER")
            continue
        for other in sorted(others):
            above = part_of(other)
            if above is not None and above != part and level[above] >= level[part]:
                found.append(f"ether.{name} imports ether.{other}; {above}: {reason[above]}")
            for importing, never, why in FORBIDDEN:
                if part == importing and (other == never or other.startswith(f"{never}.")):
                    found.append(f"ether.{name} imports ether.{other}: {why}")
    return found


def test_no_circle() -> None:
    found = circles(graph(modules()))
    assert not found


def test_imports_go_downhill() -> None:
    found = uphill(graph(modules()))
    assert not found, "\n".join(found)


def test_a_circle_and_an_uphill_import_are_found(tmp_path: Path) -> None:
    texts = {
        "measures.flops": "from ether.paper import published\nfrom ether.methods import adapt",
        "methods.adapt": "def f():\n    import ether.hub",
        "hub": "from . import methods\nfrom .methods.adapt import g",
        "experiments.glue": "from ether.methods.adapt import adapt",
        "paper.published": "",
        "methods": "",
        "elsewhere": "",
    }
    files = {}
    for name, text in texts.items():
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
    edges = graph(files)
    assert edges["measures.flops"] == {"paper.published", "methods.adapt"}
    assert circles(edges) == [["hub", "methods.adapt"]]
    assert [line.split(":")[0].split(";")[0] for line in uphill(edges)] == [
        "ether.measures.flops imports ether.paper.published",
        "ether.methods.adapt imports ether.hub",
        "ether.experiments.glue imports ether.methods.adapt",
        "ether.elsewhere is in no line of ORDER",
    ]


def test_files_are_short_enough_to_read() -> None:
    """Worlds, which are mostly vocabulary and templates, are excepted."""
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules().items()}
    assert not {name: lines for name, lines in lengths.items() if lines > 500 and name.split(".")[0] != "worlds"}


# --- light imports -------------------------------------------------------------------------------------------------------

# What Snakemake's process and the notebooks of exhibits import: seconds of each of their jobs.
LIGHT = ("__init__", "config", "exhibits", "analysis", "notebook", "progress", "registry", "results", "sources")
HEAVY = ("accelerate", "datasets", "diffusers", "peft", "sklearn", "torch", "transformers")


def test_what_every_job_imports_is_light() -> None:
    names = ["ether", *(f"ether.{name}" for name in modules() if name != "__init__" and name.split(".")[0] in LIGHT)]
    code = f"""
import importlib, json, sys
blame = {{}}
for name in {names!r}:
    before = set(sys.modules)
    importlib.import_module(name)
    heavy = sorted(set({HEAVY!r}) & (set(sys.modules) - before))
    if heavy:
        blame[name] = heavy
print(json.dumps(blame))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


def test_hidden_modules_cannot_be_imported_meanwhile() -> None:
    sys.modules.pop("tabnanny", None)
    with hidden("tabnanny", "json"):
        assert importlib.import_module("json") is json  # was imported before
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("tabnanny")
    assert importlib.import_module("tabnanny").check


# --- `import ether` and PEFT ---------------------------------------------------------------------------------------------

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
    def forward(self, x):
        return self.lin(x)
"""
KNOWN = """
config = peft.get_peft_config({"peft_type": "ETHER", "n_blocks": 2})
assert type(config).__name__ == "EtherConfig" and config.n_blocks == 2
"""
# Run each in a process of its own, in which torch and transformers are imported already, which only saves time.
ORDERS = {
    "ether first": "import ether\nassert 'peft' not in sys.modules\nimport peft\n" + KNOWN,
    "peft first": "import peft\nimport ether\n" + KNOWN,
    "from ether import": "from ether import EtherConfig\nimport peft\n" + KNOWN + "assert type(config) is EtherConfig",
    "a module of the package first": "import ether.tuners.config\nimport peft\n" + KNOWN,
    "a submodule of peft first": "import ether\nfrom peft.utils import PeftType\nassert PeftType.ETHER == 'ETHER'\nimport peft\n"
    + KNOWN,
    "a saved adapter": "import ether\nfrom peft import PeftModel\n"
    + NET
    + "model = PeftModel.from_pretrained(Net(), folder)\nassert type(model.base_model) is ether.EtherModel",
    "a saved configuration": "import ether\nfrom peft import PeftConfig\n"
    + "assert type(PeftConfig.from_pretrained(folder)) is ether.EtherConfig",
    "a model of diffusers": """
import ether
from diffusers import UNet2DConditionModel
unet = UNet2DConditionModel(8, 4, 4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
                            attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
unet.add_adapter(ether.EtherConfig(target_modules=["to_q"]))
assert any(".ether_u." in name for name, _ in unet.named_parameters())
""",
    "the import of peft fails once": """
import ether
class Failing:
    def find_spec(self, name, path=None, target=None):
        if name == "peft.utils":
            sys.meta_path.remove(self)
            raise ImportError("once")
sys.meta_path.insert(0, Failing())
try:
    import peft
    raise SystemExit("peft was imported")
except ImportError as error:
    assert str(error) == "once", error
for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
    del sys.modules[name]
import peft
"""
    + KNOWN,
    "reloading": "import ether\nimportlib.reload(ether)\nimportlib.reload(ether)\n"
    + "assert sum('ether' in repr(type(f)) for f in sys.meta_path) == 1\nimport peft\n"
    + KNOWN
    + "importlib.reload(ether)\nimportlib.reload(peft)\n"
    + KNOWN,
    "looking for peft": "import ether\nfor _ in range(2):\n    assert importlib.util.find_spec('peft').name == 'peft'\n"
    + "assert 'peft' not in sys.modules\nimport peft\n"
    + KNOWN
    + "assert 'exec_module' not in vars(peft.__loader__)\nassert not any('ether' in repr(type(f)) for f in sys.meta_path)",
    "without peft": """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "peft":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path[:] = [Missing()] + sys.meta_path
import ether, ether.errors, ether.reflection
try:
    ether.EtherConfig
    raise SystemExit("no error")
except ModuleNotFoundError as error:
    assert error.name == "peft"
sys.modules["peft"] = None
importlib.reload(ether)
""",
    "two threads": """
import threading
import ether
errors = []
def work(code):
    try:
        exec(code, {})
    except BaseException as error:
        errors.append(error)
codes = ["import peft", "from ether import EtherConfig", "import ether.tuners", "from peft import PeftModel"]
threads = [threading.Thread(target=work, args=(code,)) for code in codes]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
assert not errors and not any(thread.is_alive() for thread in threads), errors
import peft
"""
    + KNOWN,
    "a pickled configuration": """
import pickle
config = pickle.loads(bytes.fromhex(pickled))
import ether
assert config == ether.EtherConfig(n_blocks=2, target_modules=["lin"]), config
""",
    "all public names": """
names = {}
exec("from ether import *", names)
import ether
assert set(ether.__all__) <= set(names) and set(ether.__all__) < set(dir(ether))
assert ether.EtherConfig is names["EtherConfig"] and ether.NaiveModel.__module__ == "ether.tuners.model"
assert not hasattr(ether, "LoraConfig")
""",
}
RUNNER = """
import importlib, importlib.machinery, importlib.util, json, os, sys, traceback
import torch, transformers, accelerate
from transformers import LlamaForCausalLM
assert "peft" not in sys.modules and "ether" not in sys.modules
task = json.load(sys.stdin)
for number, (name, code) in enumerate(task["orders"].items()):
    child = os.fork()
    if child == 0:
        with open(os.path.join(task["out"], f"{number}.txt"), "w") as stream:
            try:
                exec(code, {**globals(), "folder": task["folder"], "pickled": task["pickled"]})
            except BaseException:
                traceback.print_exc(file=stream)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{order of imports: its traceback, empty where all went well}."""
    from peft import get_peft_model

    from ether import EtherConfig

    folder, out = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("outcomes")
    space: dict[str, Any] = {}
    exec(NET, space)
    config = EtherConfig(n_blocks=2, target_modules=["lin"])
    pickled = pickle.dumps(config).hex()
    get_peft_model(space["Net"](), config).save_pretrained(str(folder))
    task = {"orders": ORDERS, "folder": str(folder), "out": str(out), "pickled": pickled}
    subprocess.run([sys.executable, "-c", RUNNER], input=json.dumps(task), text=True, check=True, cwd=ROOT, timeout=600)
    return {name: (out / f"{number}.txt").read_text() for number, name in enumerate(ORDERS)}


@pytest.mark.parametrize("order", ORDERS)
def test_the_adapters_are_registered_in_whatever_order_things_are_imported(order: str, outcomes: dict[str, str]) -> None:
    assert outcomes[order] == ""


def test_import_ether_takes_a_fraction_of_a_second() -> None:
    """It imports neither torch nor peft, so most programs of the suite start at once."""
    code = "import sys, time; t = time.process_time(); import ether; print(time.process_time() - t, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, torch = done.stdout.split()
    assert float(seconds) < 1 and torch == "False"
