"""Configurations of the two adapters: `EtherConfig` (ETHER and ETHER+) and `NaiveConfig` (the paper's control)."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from peft.config import PeftConfig
from peft.utils import PeftType

from ether.errors import ConfigurationError, one_of

SIDES = ("input", "output", "both")
LAYOUTS = ("diagonal", "release")


def _all_are(kind: type, values: object) -> bool:
    """Whether `values` is a list, set or tuple of objects of one type; a truth value is no number."""
    return isinstance(values, list | set | tuple) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


@dataclass
class MultiplicativeConfig(PeftConfig):
    """What `EtherConfig` and `NaiveConfig` share: which layers are adapted, in how many blocks, and how it starts.

    Args:
        n_blocks: number n of diagonal blocks (Sec. 3.4). Must divide every adapted dimension. ETHER's parameter count
            does not depend on it; Naive's is d^2 / n.
        target_modules: names of the modules to adapt: a list of names or suffixes, a regular expression, or
            "all-linear". None takes PEFT's defaults for the architecture (those of LoRA).
        exclude_modules: names or a regular expression of modules to leave alone.
        layers_to_transform: index or indices of the layers to adapt, None for all.
        layers_pattern: name of the `nn.ModuleList` that `layers_to_transform` indexes, such as "layers" or "h".
        modules_to_save: modules besides the adapter that are trained and saved, such as a new classifier.
        bias: which biases of the base model are trained: "none", "all", or "<adapter>_only" (of the adapted layers).
        dropout: probability, in training, of zeroing an entry of what the adapter's correction reads, as LoRA does: the
            layer computes with x + (H - I) dropout(x). The frozen path never sees the dropout. (The authors' released
            code drops entries of x itself, so that the frozen weight gets noise too; the paper does not say.)
        init_weights: see the subclasses.

    Raises:
        ConfigurationError: a value is not allowed. (A `ValueError` as well.)
    """

    n_blocks: int = field(default=1, metadata={"help": "Number of diagonal blocks; must divide every adapted dimension."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names, suffixes or a regular expression of the modules to adapt, or 'all-linear'."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, suffixes or a regular expression of the modules not to adapt."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Index or indices of the layers to adapt; all if not given."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the ModuleList that `layers_to_transform` indexes, e.g. 'layers' or 'h'."},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules besides the adapter to train and save, e.g. a new classifier."}
    )
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or '<adapter>_only'."})
    dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout on what the adapter's correction reads, x + (H - I) dropout(x); not on the frozen path."},
    )

    # Not a field: the prefix of the adapter's parameter names, without the underscore.
    _kind: ClassVar[str] = ""

    def _check_types(self, name: str) -> None:
        """Refuses values of another type, which a configuration file may have, before they reach PEFT's code."""
        for key in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, key)
            text = isinstance(value, str) and key != "modules_to_save"
            if not (value is None or text or _all_are(str, value)):
                raise ConfigurationError(f"{name}.{key} is {value!r}; it is a list of names.")
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, str):
                try:
                    re.compile(value)
                except (re.error, OverflowError, RecursionError) as error:
                    raise ConfigurationError(f"{name}.{key} is {value!r}, which is not a regular expression: {error}.") from error
        layers = self.layers_to_transform
        if not (layers is None or _all_are(int, layers if isinstance(layers, Iterable) else [layers])):
            raise ConfigurationError(f"{name}.layers_to_transform is {layers!r}; it is an index or a list of indices.")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise ConfigurationError(f"{name}.dropout is {self.dropout!r}; it is a probability in [0, 1).")
        for key in ("init_weights", "relaxed"):
            if not isinstance(value := getattr(self, key, False), bool):
                raise ConfigurationError(f"{name}.{key} is {value!r}; it is true or false.")

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._check_types(name)
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:  # an unknown task type
            raise ConfigurationError(f"{name}: {error}") from error
        self.peft_type = PeftType[self._kind.upper()]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # what PEFT's matching expects
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        try:
            n_blocks = 0 if isinstance(self.n_blocks, bool) else operator.index(self.n_blocks)
        except TypeError:
            n_blocks = 0
        if n_blocks < 1:
            raise ConfigurationError(f"{name}.n_blocks is {self.n_blocks!r}; it is a whole number of at least 1.")
        self.n_blocks = n_blocks  # a plain number, which JSON takes, also where NumPy's was given
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"{name}.dropout is {self.dropout!r}; it is a probability in [0, 1).")
        if self.bias not in (allowed := ("none", "all", f"{self._kind}_only")):
            raise one_of("bias", self.bias, allowed, name)
        for given in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, given) is not None:
                raise ConfigurationError(
                    f"{name}: `{given}` cannot be combined with `target_modules` given as a regular expression "
                    f"({self.target_modules!r}); write the layer indices into the expression, or give a list of names."
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigurationError(f"{name}: `layers_pattern` means nothing without `layers_to_transform`; give both.")


@dataclass
class EtherConfig(MultiplicativeConfig):
    """ETHER (relaxed=False) and ETHER+ (relaxed=True), Sec. 3.2-3.4 of the paper; used as any PEFT configuration.

    Plain ETHER cannot start as the identity: every reflection is at distance 2 sqrt(n) from it (eq. 2), so the adapted
    model differs from the base model before the first step. ETHER+ starts exactly at the identity.

    Args:
        relaxed: False for ETHER, H = I - 2uu^T; True for ETHER+, H+ = I - uu^T + vv^T.
        sides: the sides of the weight that are transformed: "input" (the paper's H), "output" (its H~, applied before
            the bias) or "both"; None means "input" for ETHER and "both" for ETHER+, as in the paper. Parameters: d for
            the input, f for the output, twice that for ETHER+; the same for any `n_blocks`.
        layout: what n > 1 blocks mean on the input side. "diagonal" is the paper's block-diagonal H^B (Sec. 3.4);
            "release" is what the authors' released code computes, where each of n groups of output rows has its own
            (d/n)-dimensional reflection, repeated n times. The same for n = 1 and on the output side. "release" needs
            the weight's values in the forward pass, and n_blocks must divide the output dimension too.
        init_weights: True (default) draws u uniformly in +-1/sqrt(d) and, for ETHER+, sets v = u (identity). False
            draws v by itself, so that ETHER+ does not start as the identity either; ETHER is random either way.

    Other arguments: see `MultiplicativeConfig`.
    """

    relaxed: bool = field(default=False, metadata={"help": "False: ETHER, I - 2uu^T. True: ETHER+, I - uu^T + vv^T."})
    sides: str | None = field(
        default=None,
        metadata={"help": "'input', 'output' or 'both'. Default: 'input' for ETHER, 'both' for ETHER+."},
    )
    layout: str = field(
        default="diagonal",
        metadata={"help": "What n_blocks > 1 means on the input side: 'diagonal' (paper) or 'release' (the released code)."},
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "True: random u and, for ETHER+, v = u, so that ETHER+ starts as the identity. Plain ETHER is a "
            "reflection and can never be the identity, whatever this says. False: v random too."
        },
    )

    _kind: ClassVar[str] = "ether"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sides is None:
            self.sides = "both" if self.relaxed else "input"
        if self.sides not in SIDES:
            raise one_of("sides", self.sides, SIDES, type(self).__name__)
        if self.layout not in LAYOUTS:
            raise one_of("layout", self.layout, LAYOUTS, type(self).__name__)


@dataclass
class NaiveConfig(MultiplicativeConfig):
    """Naive: an unconstrained block-diagonal matrix N^B on the input side, the paper's control (Sec. 3.2, footnote 1).

    Trained as n full (d/n) x (d/n) matrices: d^2 / n parameters a layer.

    Args:
        init_weights: True (default) starts at the identity; False adds noise to it.

    Other arguments: see `MultiplicativeConfig`.
    """

    init_weights: bool = field(default=True, metadata={"help": "True: start at the identity. False: identity plus noise."})

    _kind: ClassVar[str] = "naive"
