"""ETHER and ETHER+ for PEFT, and the reproduction of the paper that introduced them (ICML 2024).

Importing this package registers the adapters with PEFT and needs nothing but torch and peft:

    from ether import EtherConfig
    model = peft.get_peft_model(model, EtherConfig(relaxed=True, target_modules=["q_proj", "v_proj"]))
"""

from .tuners import EtherConfig, EtherModel, NaiveConfig, NaiveModel

__all__ = ["EtherConfig", "EtherModel", "NaiveConfig", "NaiveModel"]
__version__ = "0.1.0"
