"""Several processes for one run, each on a GPU of its own (or on the CPU): data parallelism of transformers' Trainer.

    launch(4, "ether.run", [str(folder)], folder / "log.txt")      torch's launcher starts `python -m ether.run` four times

The Trainer finds the others by the launcher's environment variables and accelerate divides the batches: each process has
1 / `count()` of every batch, and the gradient is that of the whole batch (`ether.training.Trainer`). Predictions are gathered for
the scores; the Trainer's mean evaluation loss counts a few examples twice if the processes' batches do not divide their number.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ether.errors import EtherError, HardwareError

__all__ = ["count", "end_with_parent", "launch", "local_rank", "rank", "stopped"]


def count() -> int:
    """Number of processes of the run that this process belongs to; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those on the same machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launch(number: int, module: str, arguments: Sequence[str], log: Path) -> int:
    """Runs a module in several processes on this machine and waits for all of them; if one fails, the others are stopped.

    Args:
        number: of processes.
        module: as for ``python -m``.
        arguments: of the module.
        log: file for the output of all processes.

    Returns:
        The launcher's exit status, 0 if every process succeeded.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    # The processes inherit the end of a pipe that is closed when this process ends, however it ends (`end_with_parent`).
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            [*command, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        ) as launcher,
    ):
        return launcher.wait()


def end_with_parent() -> None:
    """Ends this process when the process that called `launch` has ended; returns at once."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def stopped(what: str, number: int, log: Path) -> EtherError:
    """The error for processes that ended without a result, with the end of their output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    end = "\n".join(lines[-15:])
    return HardwareError(f"{what}: one of its {number} processes stopped. Their output is in {log}; it ends with\n{end}")
