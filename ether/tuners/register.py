"""Makes PEFT know the methods ETHER and NAIVE, as if it had shipped them.

PEFT's `register_peft_method` accepts only names that are members of its enumeration `PeftType`, and much of PEFT reads
`peft_type.value`; so the member comes first, then the official function.
"""

from __future__ import annotations

from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from ether.errors import ConfigurationError


def add_peft_type(name: str) -> PeftType:
    """The member `name` of PEFT's `PeftType`, made if it is not there."""
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, name, member)  # an enumeration refuses plain assignment of a member
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


def register(name: str, config_cls: type[Any], model_cls: type[Any]) -> None:
    """Register a method under `name` (lower case). Doing it again, as after a reload, replaces it.

    Raises ConfigurationError if PEFT has a method of this name that is not from this package.
    """
    member = add_peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is not None:
        if known.__module__ != config_cls.__module__:
            raise ConfigurationError(
                f"peft {peft.__version__} already has a method called {name!r} ({known.__module__}."
                f"{known.__qualname__}), so this package cannot add its own. Use peft's method instead of `import "
                "ether`, or install a peft version that this package was made for."
            )
        for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            mapping.pop(member, None)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
