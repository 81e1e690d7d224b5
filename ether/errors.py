"""Errors that a user can act on: one paragraph that names what is wrong, where it is, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class EtherError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(EtherError, ValueError):
    """A setting is wrong: an unknown name, a value out of range, a block count that does not divide a dimension."""


class MissingResourceError(EtherError, FileNotFoundError):
    """Something that should be on disk or on the hub is not: a model, a data set, a split, a column, a file."""

    def __str__(self) -> str:  # FileNotFoundError would print "[Errno ...]" or a bare tuple
        return str(self.args[0]) if self.args else ""


class HardwareError(EtherError, RuntimeError):
    """The machine lacks what a scale asks for: a GPU, memory, disk space."""


def combined(errors: Sequence[EtherError]) -> EtherError:
    """One error for several: each of their paragraphs once, in order. A single error stays what it is."""
    messages = list(dict.fromkeys(str(error) for error in errors))
    return errors[0] if len(messages) == 1 else ConfigurationError("\n\n".join(messages))


def one_of(what: str, name: object, known: object, where: str = "") -> ConfigurationError:
    """The error for a name that is not among the known ones, with the nearest known name suggested."""
    import difflib

    names = sorted(str(k) for k in known)  # type: ignore[attr-defined]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    return ConfigurationError(f"Unknown {what} {name!r}{place}.{hint} Known: {', '.join(names)}.")
