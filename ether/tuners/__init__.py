"""PEFT plug-ins: ETHER and ETHER+ (`EtherConfig`), and the control Naive (`NaiveConfig`). Importing registers them."""

from .register import add_peft_type, register

for _name in ("ETHER", "NAIVE"):
    add_peft_type(_name)  # before the configurations, which name their member

from .config import EtherConfig, NaiveConfig  # noqa: E402
from .layer import EtherLayer, NaiveLayer  # noqa: E402
from .model import EtherModel, NaiveModel  # noqa: E402

register("ether", EtherConfig, EtherModel)
register("naive", NaiveConfig, NaiveModel)

__all__ = ["EtherConfig", "EtherLayer", "EtherModel", "NaiveConfig", "NaiveLayer", "NaiveModel"]
