"""Silence while models are loaded."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(*also: str) -> Iterator[None]:
    """Silences transformers' notices for a while, such as that a fresh head is fresh, and its progress bars for good.

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
        yield
    finally:
        for logger, level in loggers:
            logger.set_verbosity(level)
