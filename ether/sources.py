"""The source files that a module depends on, from the import statements in its text.

Snakemake does not track the modules of an imported package. The rules of the workflow therefore take their code inputs from
this module: all modules of this package that a module imports, at module level or inside a function, and the data files in
its folder that it names. Results become outdated when any of these files is edited.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

from ether.errors import ConfigurationError

# Modules that cannot change a number: they print, or raise. Editing a message does not make results outdated.
WITHOUT_NUMBERS = ("ether.errors", "ether.progress", "ether.check")

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent


def module_file(name: str) -> Path | None:
    """The file of a module of this package, or None if there is no such module."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@functools.cache
def _nodes(file: Path) -> tuple[ast.AST, ...]:
    """The nodes of a source file's syntax tree that `imports` and `data_files` read."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call, ast.Constant)
    return tuple(node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, kinds))


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The modules of this package that a module imports, at module level or inside functions.

    ``import_module("ether.x")`` counts as an import. A call with a computed name does not: the workflow adds that module.
    """
    file = module_file(name)
    assert file is not None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and _called(node.func) == "import_module":
            found |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return frozenset(n for n in found if n.split(".")[0] == PACKAGE.name and module_file(n) is not None)


def _called(function: ast.expr) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@functools.cache
def data_files(name: str) -> frozenset[Path]:
    """The data files in a module's folder whose names occur in its text, such as ``published.yaml``."""
    file = module_file(name)
    assert file is not None
    texts = (node.value for node in _nodes(file) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    names = {text for text in texts if text and len(text) < 80 and not set(text) & set("/\\\n*") and "." in text[1:]}
    return frozenset(path for text in names if (path := file.parent / text).is_file() and path.suffix != ".py")


@functools.cache
def closure(*names: str) -> tuple[str, ...]:
    """All source and data files that modules depend on, including their own, relative to the project's root and sorted.

    Raises:
        ConfigurationError: no such module.
    """
    pending, seen, files = list(names), set(), set()
    for name in names:
        if module_file(name) is None:
            raise ConfigurationError(
                f"There is no module {name}: looked for ether/{name.partition('.')[2].replace('.', '/')}.py."
            )
    while pending:
        name = pending.pop()
        if name in seen or (name in WITHOUT_NUMBERS and name not in names):
            continue
        seen.add(name)
        file = module_file(name)
        assert file is not None
        files |= {file, *data_files(name)}
        parents = [".".join(name.split(".")[:depth]) for depth in range(2, name.count(".") + 1)]
        pending += [*imports(name), *parents]  # parent packages are imported, too, except `ether`, which imports lazily
    return tuple(sorted(str(file.relative_to(ROOT)) for file in files))


def text_of(files: Iterable[str]) -> str:
    """The concatenated contents of files, given relative to the project's root, for a digest."""
    return "\0".join(f"{name}\0{(ROOT / name).read_text(encoding='utf-8')}" for name in files)
