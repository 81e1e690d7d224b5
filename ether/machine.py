"""What a process may use of the machine: one GPU, and how much of a batch at a time.

Neither is a setting of an experiment, and neither belongs to what a run is: a batch that is processed in parts has the same
gradient (`ether.training`), so a run on a small GPU can be compared with a run on a large one.

    pin_one_gpu()                                                before CUDA is initialised
    limits = Limits.of(section.get("memory"), gpu_bytes())       the profile of a scale that fits this GPU
    with within(limits):                                         training and evaluation keep to the limits
        fit(...)
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

# --- one GPU ---------------------------------------------------------------------------------------------------

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[IO[str]] = []  # the lock of this process's GPU; the operating system releases it when the process ends


def _locks() -> Path:
    return Path(tempfile.gettempdir()) / f"ether-gpus-{os.getuid()}"


def pin_one_gpu() -> str | None:
    """Makes one GPU the only one that this process sees, and of several the first that no other process of this user has taken.

    With more than one visible GPU, transformers' Trainer replicates the model on all of them and multiplies the batch, while
    other parts of an experiment stay on the first. If every GPU is taken, the process shares one of them.

    Returns:
        The GPU's entry in CUDA_VISIBLE_DEVICES, or None if there was nothing to choose or CUDA has been initialised already.
    """
    import torch

    count = torch.cuda.device_count()  # asks the driver's management library, and does not initialise CUDA
    if count < 2 or torch.cuda.is_initialized():
        return None
    listed = [part.strip() for part in os.environ.get(_VISIBLE, "").split(",") if part.strip()]
    names = listed[:count] or [str(number) for number in range(count)]
    chosen = names[os.getpid() % len(names)]
    _locks().mkdir(parents=True, exist_ok=True)
    for name in names:
        stream = (_locks() / f"{name.replace('/', '-')}.lock").open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            continue
        _held.append(stream)
        chosen = name
        break
    os.environ[_VISIBLE] = chosen
    return chosen


def gpu_bytes() -> int:
    """Memory of the GPU in bytes; 0 without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


# --- memory ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Limits of one process. None: no limit."""

    micro_batch: int | None = None  # examples in one forward and backward pass of training
    evaluation_batch: int | None = None  # examples in one forward pass of an evaluation
    checkpointing: bool = False  # activations of a block are computed again in the backward pass instead of being kept

    @classmethod
    def of(cls, profiles: Mapping[str, Mapping[str, Any]] | None, memory: int) -> Limits:
        """The limits of the largest profile that a GPU has the memory for.

        Args:
            profiles: {"40GB": {micro_batch, evaluation_batch, checkpointing}, ...}, the `memory` of a scale's experiment.
            memory: of the GPU, in bytes; 0 without a GPU, which has no limits unless there is a profile for 0 GB.

        A GPU with less memory than the smallest profile gets the smallest.
        """
        sizes = {int(name.removesuffix("GB")): dict(values) for name, values in (profiles or {}).items()}
        if not sizes or (not memory and 0 not in sizes):
            return cls()
        fitting = [size for size in sizes if size * 10**9 <= memory]
        return cls(**sizes[max(fitting, default=min(sizes))])

    def halved(self, batch: int, evaluation_batch: int, in_training: bool) -> Limits | None:
        """Limits with half of what was too large, after a run was out of memory; None if it is 1 already.

        Args:
            batch, evaluation_batch: the run's own sizes, where there is no limit.
            in_training: whether a forward or backward pass of training was too large, and not an evaluation.
        """
        size = min(self.micro_batch or batch, batch) if in_training else self.evaluated_at_once(evaluation_batch)
        if size == 1:
            return None
        return replace(self, micro_batch=size // 2) if in_training else replace(self, evaluation_batch=size // 2)

    def parts(self, batch: int) -> int:
        """The smallest number of equal parts of a batch that are not above the limit."""
        limit = self.micro_batch or batch
        return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= limit)

    def evaluated_at_once(self, batch: int) -> int:
        """The batch of an evaluation within the limit."""
        return min(batch, self.evaluation_batch or batch)


NONE = Limits()
_current: contextvars.ContextVar[Limits] = contextvars.ContextVar("limits", default=NONE)


def limits() -> Limits:
    """The limits that hold here."""
    return _current.get()


@contextlib.contextmanager
def within(new: Limits) -> Iterator[None]:
    """The limits hold for everything inside the block."""
    token = _current.set(new)
    try:
        yield
    finally:
        _current.reset(token)
