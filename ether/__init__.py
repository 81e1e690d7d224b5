"""ETHER and ETHER+ for PEFT, and the reproduction of the paper that introduced them (ICML 2024).

    from ether import EtherConfig
    model = peft.get_peft_model(model, EtherConfig(relaxed=True, target_modules=["q_proj", "v_proj"]))

Importing this package registers the adapters with PEFT. It imports neither torch nor peft itself: where peft is not
imported yet, the adapters are registered as soon as it is. The suite's command line programs, most of which train
nothing, therefore start without the seconds that peft and transformers take.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tuners import EtherConfig, EtherModel, NaiveConfig, NaiveModel

__all__ = ["EtherConfig", "EtherModel", "NaiveConfig", "NaiveModel"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(".tuners", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Imports ``ether.tuners``, which registers the adapters, unless that is done or being done.

    It is being done where importing ``ether.tuners`` is what imported peft, in this thread or in another one.
    """
    if f"{__name__}.tuners" not in sys.modules:
        importlib.import_module(".tuners", __name__)


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Waits for the import of peft: has the other finders find it, and the adapters registered after its execution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    self._register_after(spec.loader)
                return spec
        return None

    def _register_after(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # of this instance, which was made for this one import
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = exec_module


def _register_or_wait() -> None:
    """Registers the adapters now, if peft is imported, or as soon as it is."""
    if sys.modules.get("peft") is not None:
        _register()
    else:
        sys.meta_path.insert(0, _PeftFinder())


# a reload replaces the finder that is there; its class is another one
sys.meta_path[:] = [finder for finder in sys.meta_path if repr(type(finder)) != repr(_PeftFinder)]
_register_or_wait()
