"""Errors with a message for the user: one paragraph that states the error, its location, and the remedy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class EtherError(Exception):
    """Base class of the errors that this package raises."""


class ConfigurationError(EtherError, ValueError):
    """A setting is wrong: an unknown name, a value out of range, a block count that does not divide a dimension."""


class MissingResourceError(EtherError, FileNotFoundError):
    """A required resource is missing on disk or on the hub: a model, a data set, a split, a column, a file."""

    def __str__(self) -> str:  # FileNotFoundError would print "[Errno ...]" or a bare tuple
        return str(self.args[0]) if self.args else ""


class HardwareError(EtherError, RuntimeError):
    """The machine does not meet the requirements of a scale: GPU, memory, disk space."""


def combined(errors: Sequence[EtherError]) -> EtherError:
    """Combines several errors into one with all their messages, in order and without duplicates. A single error is returned."""
    messages = list(dict.fromkeys(str(error) for error in errors))
    return errors[0] if len(messages) == 1 else ConfigurationError("\n\n".join(messages))


def json_object(text: str, option: str) -> dict[str, Any]:
    """The value of an option of a command line that is a JSON object.

    Raises:
        ConfigurationError: the text is something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{option} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{option} must be a JSON object, such as '{{\"name\": 1}}', not {text[:80]!r}.")
    return value


def one_of(what: str, name: object, known: object, where: str = "") -> ConfigurationError:
    """The error for an unknown name. The message suggests the most similar known name."""
    names = sorted(str(k) for k in known)  # type: ignore[attr-defined]
    place = f" in {where}" if where else ""
    return ConfigurationError(f"Unknown {what} {name!r}{place}.{suggestion(name, names)} Known: {', '.join(names)}.")


def suggestion(name: object, known: Iterable[str]) -> str:
    """A question after the most similar known name, with a space before it; empty if none is similar."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextlib.contextmanager
def collecting(errors: list[EtherError]) -> Iterator[None]:
    """Appends an error that is raised in the block to a list, so that further ones can be found (see `combined`)."""
    try:
        yield
    except EtherError as error:
        errors.append(error)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Explains a full or read-only disk while files are written at or below `path`.

    Raises:
        HardwareError: the disk is full or read-only. Every other error is passed on.
    """
    try:
        yield
    except EtherError:
        raise
    except Exception as error:
        number, text = getattr(error, "errno", None), str(error)  # safetensors and torch wrap the operating system's error
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text:
            raise HardwareError(
                f"No space left on the disk that holds {path}. Free some space (runs under results/<scale>/work can be deleted "
                "when their job is done) and start again: finished runs are kept and not repeated."
            ) from error
        if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "Read-only file system" in text:
            raise read_only(path, getattr(error, "strerror", None) or text) from error
        raise


def read_only(path: str | os.PathLike[str], reason: str) -> HardwareError:
    """The error of a path that this user cannot write, for a reason in words."""
    return HardwareError(
        f"{path} cannot be written: {reason}. Make the folder `results` writable for this user and start again: finished runs "
        "are kept and not repeated."
    )
