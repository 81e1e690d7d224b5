"""Runs a notebook with parameters, strictly: ``python -m ether.notebook SOURCE OUTPUT --parameters '{…}'``.

papermill does the work. What it lets pass is an error here: a parameter the notebook does not have. Folders are made,
the kernel is this interpreter's, progress bars stay out of logs, the lines that report a run are printed as they appear,
and a notebook that fails is kept, with its traceback, and named.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ether.errors import ConfigurationError, EtherError, MissingResourceError, one_of
from ether.silence import hidden

KERNEL = "python3"  # installed by ipykernel into the environment of the interpreter that runs this
RUN_LINE = re.compile(r"\[([\w-]+ )?\d+/\d+\] ")  # how a line begins that reports a finished run: "[glue 3/24] "
# Optional parts of papermill and jsonschema that no notebook here needs: Hadoop's file system, a parser for IRIs.
UNUSED = ("pyarrow", "rfc3987_syntax")


class NotebookError(EtherError):
    """A notebook failed; the message names the executed notebook and what went wrong in it."""


def parameters_of(source: Path) -> set[str]:
    """Names assigned in the notebook's cell tagged ``parameters``.

    Raises:
        MissingResourceError: no such notebook.
        ConfigurationError: it has no cell tagged ``parameters``.
    """
    if not source.is_file():
        raise MissingResourceError(f"There is no notebook {source}.")
    with hidden(*UNUSED):
        import nbformat

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


class RunLines(io.TextIOBase):
    """Passes on to ``stream`` only the lines that report a run. Text arrives in pieces of any length."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if RUN_LINE.match(line):
                self.stream.write(f"{line}\n")  # at once, so that the lines of parallel jobs do not mix
                self.stream.flush()
        return len(text)


def execute(source: Path, output: Path, parameters: Mapping[str, Any]) -> None:
    """Executes ``source`` with parameters and writes the executed notebook to ``output``.

    Lines of its output that report a run (``RUN_LINE``) are printed while it is executed.

    Raises:
        ConfigurationError: a parameter the notebook does not have.
        NotebookError: a cell failed, or the kernel ended. The executed part is at ``output``.
    """
    with hidden(*UNUSED):
        import papermill
        from nbclient.exceptions import DeadKernelError
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
            stdout_file=RunLines(sys.stdout),
            # Of the kernel. Its log has, at ERROR, that it is interrupted, as it always is before it is shut down; a
            # history would be written to a file that all kernels of the user share.
            extra_arguments=["--log-level=CRITICAL", "--HistoryManager.enabled=False"],
        )
    except PapermillExecutionError as error:
        # An EtherError is one paragraph that says all; anything else needs its traceback.
        detail = str(error.evalue) if _is_ours(str(error.ename)) else _plain("\n".join(error.traceback))
        raise NotebookError(f"{source} failed: {detail}\nThe executed notebook is kept at {output}.") from None
    except DeadKernelError:
        raise NotebookError(
            f"The kernel of {source} ended before the notebook did. The most frequent cause is lack of memory: the operating "
            f"system then ends the process. Run fewer jobs side by side (--cores). The executed part is kept at {output}."
        ) from None
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
