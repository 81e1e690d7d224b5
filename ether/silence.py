"""Silence and economy while libraries are imported and models are loaded."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(*also: str) -> Iterator[None]:
    """Silences transformers' notices for a while, such as that a fresh head is fresh, and its progress bars for good.

    Warnings of a library that another one uses what will be removed (FutureWarning) are silenced with them.

    Args:
        also: libraries of its family to silence with it: ``diffusers``, at whose import transformers has notices too.
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
    """Makes modules unimportable for a while, unless they are imported already.

    For optional dependencies that another library would import together with itself, slowly and for nothing: jsonschema
    (and with it nbformat) takes 1 s to build a parser for IRIs by ``rfc3987_syntax`` where that is installed, which it is
    with JupyterLab, and uses it only in schemas that have the format ``iri``.

    Args:
        modules: names of top-level modules. Importing them raises ``ModuleNotFoundError`` meanwhile.
    """
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python marks a module as absent
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
