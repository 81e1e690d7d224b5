"""Runs a notebook with parameters, strictly: ``python -m ether.notebook SOURCE OUTPUT --parameters '{…}'``.

papermill does the work. What it lets pass is an error here: a parameter the notebook does not have. Folders are made,
the kernel is this interpreter's, progress bars stay out of logs, and a notebook that fails is kept, with its traceback,
and named.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, EtherError, MissingResourceError, one_of

KERNEL = "python3"  # installed by ipykernel into the environment of the interpreter that runs this


class NotebookError(EtherError):
    """A notebook failed; the message names the executed notebook and what went wrong in it."""


def parameters_of(source: Path) -> set[str]:
    """Names assigned in the notebook's cell tagged ``parameters``.

    Raises:
        MissingResourceError: no such notebook.
        ConfigurationError: it has no cell tagged ``parameters``.
    """
    import ast

    import nbformat

    if not source.is_file():
        raise MissingResourceError(f"There is no notebook {source}.")
    notebook = nbformat.read(source, as_version=4)
    cells = [c for c in notebook.cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if not cells:
        raise ConfigurationError(f"{source} has no cell tagged `parameters`, so nothing can be passed to it.")
    names: set[str] = set()
    for node in ast.walk(ast.parse("\n".join(c.source for c in cells))):
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def execute(source: Path, output: Path, parameters: Mapping[str, Any]) -> None:
    """Executes ``source`` with parameters and writes the executed notebook to ``output``.

    Raises:
        ConfigurationError: a parameter the notebook does not have.
        NotebookError: a cell failed. The executed part is at ``output``.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = parameters_of(source)
    for name in parameters:
        if name not in known:
            raise one_of("parameter", name, known, str(source))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".partial.{output.name}")
    # Nobody watches the bars of an executed notebook, and a missing widget library is no news there.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found,ignore::FutureWarning"
    os.environ["TQDM_DISABLE"] = "1"  # the kernel inherits it: bars would fill the executed notebook
    try:
        papermill.execute_notebook(
            str(source),
            str(partial),
            parameters=dict(parameters),
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            log_output=False,
            cwd=str(Path.cwd()),
            autosave_cell_every=30,
            extra_arguments=["--log-level=ERROR"],  # of the kernel
        )
    except PapermillExecutionError as error:
        # An EtherError is one paragraph that says all; anything else needs its traceback.
        detail = str(error.evalue) if _is_ours(str(error.ename)) else _plain("\n".join(error.traceback))
        raise NotebookError(f"{source} failed: {detail}\nThe executed notebook is kept at {output}.") from None
    finally:
        if partial.exists():
            partial.replace(output)


def _is_ours(name: str) -> bool:
    from ether import errors

    return any(kind.__name__ == name for kind in vars(errors).values() if isinstance(kind, type))


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.notebook", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        execute(options.source, options.output, json.loads(options.parameters))
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
