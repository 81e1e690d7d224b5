"""Context managers that suppress messages of libraries and imports of their optional dependencies."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(*also: str) -> Iterator[None]:
    """Suppresses log messages of transformers below the level "error" in this context, and its progress bars permanently.

    FutureWarnings of all libraries are suppressed in this context, too.

    Args:
        also: further libraries with the same logging interface, such as ``diffusers``.
    """
    loggers: list[tuple[Any, int]] = []
    for name in ("transformers", *also):
        logger: Any = importlib.import_module(f"{name}.utils.logging")
        loggers.append((logger, logger.get_verbosity()))
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in loggers:
            logger.set_verbosity(level)


@contextlib.contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Makes modules unavailable for import in this context, unless they are imported already.

    This avoids slow imports of optional dependencies that are not used. For example, jsonschema (and therefore nbformat)
    takes 1 s to build a parser for IRIs if ``rfc3987_syntax`` is installed, which JupyterLab requires. The parser is used only
    for schemas with the format ``iri``.

    Args:
        modules: names of top-level modules. Importing them in this context raises ``ModuleNotFoundError``.
    """
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python marks a module as absent
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
