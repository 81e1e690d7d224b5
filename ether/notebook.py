"""Executes a notebook with parameters through papermill: ``python -m ether.notebook SOURCE OUTPUT --parameters '{…}'``.

In addition to papermill, a parameter that the notebook does not define is an error, missing folders are created, the kernel
uses the current interpreter, progress bars are disabled, and lines that report a run are printed during execution. If a
notebook fails, the executed notebook with its traceback is kept and named in the error message.
"""

from __future__ import annotations

import argparse
import ast
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ether.errors import ConfigurationError, EtherError, MissingResourceError, json_object, one_of, writing
from ether.silence import hidden

KERNEL = "python3"  # installed by ipykernel into the environment of the current interpreter
RUN_LINE = re.compile(r"\[([\w-]+ )?\d+/\d+\] ")  # beginning of a line that reports a finished run: "[glue 3/24] "
# jupyter_client chooses free ports before the kernel binds them. If another kernel takes one meanwhile, this one dies while it
# starts, before any cell is executed, and is started again.
STARTS = 3
# Optional dependencies of papermill and jsonschema that are not used here: Hadoop's file system, a parser for IRIs.
UNUSED = ("pyarrow", "rfc3987_syntax")


class NotebookError(EtherError):
    """A notebook failed; the message names the executed notebook and the error."""


def parameters_of(source: Path) -> set[str]:
    """Names assigned in the notebook's cell tagged ``parameters``.

    Raises:
        MissingResourceError: no such notebook.
        ConfigurationError: it is not a notebook, or has no cell tagged ``parameters``.
    """
    if not source.is_file():
        raise MissingResourceError(f"There is no notebook {source}.")
    with hidden(*UNUSED):
        import nbformat

    try:
        notebook = nbformat.read(source, as_version=4)
        cells = [c for c in notebook.cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        tree = ast.parse("\n".join(c.source for c in cells))
    except (OSError, ValueError, SyntaxError, AttributeError, TypeError, RecursionError, nbformat.ValidationError) as error:
        raise ConfigurationError(f"{source} is not a notebook whose parameters can be read: {error}") from error
    if not cells:
        raise ConfigurationError(f"{source} has no cell tagged `parameters`, so nothing can be passed to it.")
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


class RunLines(io.TextIOBase):
    """Writes only the lines that report a run to ``stream``. Text may be written in parts of any length."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.incomplete = ""  # text after the last line feed

    def write(self, text: str) -> int:
        *lines, self.incomplete = (self.incomplete + text).split("\n")
        for line in lines:
            if RUN_LINE.match(line):
                self.stream.write(f"{line}\n")  # in one call, so that lines of parallel jobs are not interleaved
                self.stream.flush()
        return len(text)


def execute(source: Path, output: Path, parameters: Mapping[str, Any]) -> None:
    """Executes ``source`` with parameters and writes the executed notebook to ``output``.

    Lines of its output that report a run (``RUN_LINE``) are printed while it is executed.

    Raises:
        ConfigurationError: the notebook does not define a parameter.
        NotebookError: a cell failed, or the kernel stopped. The executed part is written to ``output``.
        HardwareError: the disk of ``output`` is full or read-only.
    """
    with hidden(*UNUSED):
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

    known = parameters_of(source)
    for name in parameters:
        if name not in known:
            raise one_of("parameter", name, known, str(source))
    partial = output.with_name(f".partial.{output.name}")
    # Progress bars are not displayed in an executed notebook, so a missing widget library is no reason for a warning.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found,ignore::FutureWarning"
    os.environ["TQDM_DISABLE"] = "1"  # inherited by the kernel: no progress bars in the executed notebook

    def start() -> None:
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
            # Arguments of the kernel. It logs an error whenever it is interrupted, which always precedes its shutdown. The
            # history would be written to a file that all kernels of the user share.
            extra_arguments=["--log-level=CRITICAL", "--HistoryManager.enabled=False"],
        )

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in reversed(range(STARTS)):
            try:
                start()
                break
            except RuntimeError as error:
                if not left or not _died_while_starting(error):
                    raise
                print(f"The kernel of {source} died while it was starting ({error}); it is started again.", file=sys.stderr)
    except PapermillExecutionError as error:
        # The message of an EtherError is complete; any other error needs its traceback.
        detail = str(error.evalue) if _is_ours(str(error.ename)) else _plain("\n".join(error.traceback))
        raise NotebookError(f"{source} failed: {detail}\nThe executed notebook is kept at {output}.") from None
    except DeadKernelError:
        raise NotebookError(
            _stopped(source, "before the notebook was finished", f" The executed part is kept at {output}.")
        ) from None
    except RuntimeError as error:
        if not _died_while_starting(error):
            raise
        raise NotebookError(_stopped(source, f"while it was starting ({error})", "")) from None
    except OSError as error:  # of papermill, which saves the notebook after each cell
        with writing(output):
            raise error from None
    finally:
        if partial.exists():
            partial.replace(output)


def _died_while_starting(error: RuntimeError) -> bool:
    """jupyter_client has no class of its own for a kernel that dies, or does not answer, while it starts."""
    return bool(re.match(r"Kernel (died before replying|didn't respond)", str(error)))


def _stopped(source: Path, when: str, kept: str) -> str:
    return (
        f"The kernel of {source} stopped {when}. The most frequent cause is lack of memory: the operating system then stops the "
        f"process. Run fewer jobs in parallel (--cores).{kept}"
    )


def _is_ours(name: str) -> bool:
    from ether import errors

    return any(kind.__name__ == name for kind in vars(errors).values() if isinstance(kind, type))


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


INTERRUPTED = 130  # the exit status of a command that SIGINT ends, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ether.notebook", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        execute(options.source, options.output, json_object(options.parameters, "--parameters"))
    except EtherError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C reaches every process of the terminal
        print(f"{options.source} was interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
