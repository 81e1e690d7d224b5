"""The adapters on the weight side: W is transformed and then used, as in the paper and its released code.

The adapters of this package transform activations instead (`ether.reflection`). These modules are used for comparison:
`ether.measures.flops` counts their operations for Table 1, and benchmarks measure them. Their parameters are not initialised.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional

from ether.errors import ConfigurationError, one_of


class BlockMultiplier(nn.Module):
    """W (f, d) -> M W with M block-diagonal, n blocks of size f / n; subclasses compute the blocks from parameters.

    size: f; other_side: d, by default f.
    """

    def __init__(self, size: int, n: int, other_side: int | None = None) -> None:
        super().__init__()
        if size % n:
            raise ConfigurationError(f"{n} blocks do not divide a dimension of {size}; choose a divisor of it.")
        self.n = n
        self.make(n, size // n)

    def make(self, n: int, b: int) -> None:
        raise NotImplementedError

    def blocks(self) -> torch.Tensor:
        """(n, b, b)."""
        raise NotImplementedError

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self.blocks().to(weight.dtype), weight.unflatten(0, (self.n, -1))).flatten(0, 1)


class Reflection(BlockMultiplier):
    """ETHER on weights: blocks I - 2 u u^T (eq. 1, Sec. 3.4)."""

    def make(self, n: int, b: int) -> None:
        self.u = nn.Parameter(torch.empty(n, b))

    def blocks(self) -> torch.Tensor:
        u = functional.normalize(self.u, dim=-1)
        return torch.eye(u.shape[1]) - 2 * u.unsqueeze(2) * u.unsqueeze(1)


class RelaxedReflection(BlockMultiplier):
    """One side of ETHER+ on weights: blocks I - u u^T + v v^T (Sec. 3.3)."""

    def make(self, n: int, b: int) -> None:
        self.u = nn.Parameter(torch.empty(n, b))
        self.v = nn.Parameter(torch.empty(n, b))

    def blocks(self) -> torch.Tensor:
        u, v = (functional.normalize(p, dim=-1) for p in (self.u, self.v))
        return torch.eye(u.shape[1]) - u.unsqueeze(2) * u.unsqueeze(1) + v.unsqueeze(2) * v.unsqueeze(1)


class TwoSided(nn.Module):
    """W (f, d) -> M1 W M2, with a multiplier on each side (Sec. 3.3)."""

    def __init__(self, size: int, n: int, other_side: int | None = None) -> None:
        super().__init__()
        self.left, self.right = RelaxedReflection(size, n), RelaxedReflection(other_side or size, n)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.right(self.left(weight).T).T


class Orthogonal(BlockMultiplier):
    """OFT on weights, block by block: Cayley blocks (I - S)^-1 (I + S), S skew-symmetric (Sec. 3.1)."""

    def make(self, n: int, b: int) -> None:
        self.r = nn.Parameter(torch.empty(n, b, b))

    def blocks(self) -> torch.Tensor:
        s, eye = self.r - self.r.mT, torch.eye(self.r.shape[1])
        return torch.linalg.solve(eye - s, eye + s)


class DenseOrthogonal(Orthogonal):
    """OFT with the block-diagonal matrix multiplied as a dense matrix, as in official OFT."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.block_diag(*self.blocks().to(weight.dtype)) @ weight


MULTIPLIERS: dict[str, type[nn.Module]] = {
    "reflection": Reflection,
    "relaxed-reflection": TwoSided,
    "orthogonal": Orthogonal,
    "orthogonal-dense": DenseOrthogonal,
}


def multiplier_class(rule: str) -> type[nn.Module]:
    """The entry of MULTIPLIERS; raises ConfigurationError for an unknown name."""
    if rule not in MULTIPLIERS:
        raise one_of("rule", rule, MULTIPLIERS, "ether/measures/weight_side.py")
    return MULTIPLIERS[rule]


class WeightSideLinear(nn.Module):
    """A frozen linear layer whose weight is rebuilt by a multiplier in every forward pass."""

    def __init__(self, base: nn.Linear, rule: str, size: int) -> None:
        super().__init__()
        self.base = base
        self.multiplier = multiplier_class(rule)(base.out_features, size, base.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.multiplier(self.base.weight), self.base.bias)


def put_on(model: nn.Module, pattern: str, rule: str, size: int) -> nn.Module:
    """Freezes `model` and wraps every linear layer whose full name matches `pattern`; returns the same model."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, WeightSideLinear(module, rule, size))
    return model
