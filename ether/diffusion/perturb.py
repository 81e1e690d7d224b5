"""Random transformations of an adapted model at a chosen distance ||T - I||_F from the identity (Sec. 4, Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.oft.layer import OFTLayer
from torch import nn
from torch.nn import functional

from ether.diffusion.sampler import generator
from ether.errors import ConfigurationError
from ether.measures import geometry
from ether.tuners.layer import EtherLayer, NaiveLayer


def multiplicative_layers(model: nn.Module) -> dict[str, EtherLayer | NaiveLayer | OFTLayer]:
    """The adapted layers of a model by name.

    Raises:
        ConfigurationError: a layer's method does not multiply the weight by a transformation with a variable distance.
    """
    layers: dict[str, Any] = {}
    for name, layer in geometry.adapted_layers(model).items():
        if not isinstance(layer, EtherLayer | NaiveLayer | OFTLayer):
            raise ConfigurationError(
                f"The layer {name!r} is a {type(layer).__name__}: only ETHER, ETHER+, Naive and OFT multiply the weight by a "
                "transformation whose distance from the identity can be chosen. Remove the method from `perturbation.methods`."
            )
        layers[name] = layer
    return layers


def _sides(layer: EtherLayer, adapter: str) -> list[tuple[nn.Parameter, nn.Parameter | None]]:
    pairs = (layer._vectors(adapter, suffix) for suffix in ("", "_out"))
    return [pair for pair in pairs if pair is not None]  # type: ignore[misc]


def reachable(model: nn.Module, adapter: str = "default") -> tuple[float, float]:
    """The smallest and the largest distance ||T - I||_F that all adapted layers and sides can have; inf without a bound.

    ETHER: always 2 sqrt(n); one side of ETHER+: at most sqrt(2 n); OFT: at most 2 sqrt(d).
    """
    low, high = 0.0, math.inf
    for layer in multiplicative_layers(model).values():
        if isinstance(layer, EtherLayer):
            for u, v in _sides(layer, adapter):
                if v is None:
                    low, high = max(low, 2 * math.sqrt(len(u))), min(high, 2 * math.sqrt(len(u)))
                else:
                    high = min(high, math.sqrt(2 * len(u)))
        elif isinstance(layer, OFTLayer):
            rotation: Any = layer.oft_R[adapter]
            size = rotation.block_size
            high = min(high, 2 * math.sqrt(len(rotation.weight) * (size - size % 2)))  # an odd block has one fixed axis
    return low, high


def grid(distances: Sequence[float], low: float, high: float, end: bool = True) -> list[float]:
    """The distances of a grid between `low` and `high`. If the grid exceeds `high` and `end` is set, `high` is added.

    OFT is used without the end: there T = -I, and the signs of queries and keys, and of values and outputs, cancel.
    """
    if low == high:
        return [low]
    chosen = [distance for distance in sorted(distances) if low <= distance <= high and (end or distance < high)]
    if end and math.isfinite(high) and max(distances) > high:
        chosen = [*(distance for distance in chosen if distance < 0.98 * high), high]  # 1.41 is sqrt(2) already
    return chosen


@torch.no_grad()
def perturb(model: nn.Module, distance: float, seed: int, adapter: str = "default") -> None:
    """Sets every adapted layer and side to a random transformation at a distance from the identity, equal for its blocks.

    The random directions depend only on the seed and the layer, not on the distance. Plain ETHER gets random reflections,
    whose distance is always 2 sqrt(n).

    Raises:
        ConfigurationError: a method without such a transformation, a distance outside its range, or OFT with the truncated
            series instead of the Cayley map.
    """
    low, high = reachable(model, adapter)
    if not low * (1 - 1e-9) <= distance <= high * (1 + 1e-9):
        raise ConfigurationError(
            f"A distance of {distance:g} is out of reach: for this method it is between {low:g} and {high:g} on each side. "
            "Change `perturbation.distances` in workflow/scales/."
        )
    for name, layer in multiplicative_layers(model).items():
        random = generator("perturbation", seed, name)
        if isinstance(layer, EtherLayer):
            for u, v in _sides(layer, adapter):
                first = functional.normalize(_normal(u.shape, random), dim=-1)
                if v is not None:
                    other = _normal(u.shape, random)
                    other = functional.normalize(other - (other * first).sum(-1, keepdim=True) * first, dim=-1)
                    sine = min(1.0, distance / math.sqrt(2 * len(u)))  # ||u u^T - v v^T|| = sqrt(2) |sin| for each block
                    v.copy_(math.sqrt(1 - sine * sine) * first + sine * other)
                u.copy_(first)
        elif isinstance(layer, NaiveLayer):
            blocks = layer.naive_blocks[adapter]
            moved = _normal(blocks.shape, random)
            moved *= distance / math.sqrt(len(blocks)) / torch.linalg.matrix_norm(moved, keepdim=True)
            blocks.copy_(torch.eye(blocks.shape[-1], dtype=torch.float64) + moved)
        else:
            _perturb_oft(layer.oft_R[adapter], distance, random)


def _normal(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=random, dtype=torch.float64)


def _perturb_oft(rotation: Any, distance: float, random: torch.Generator) -> None:
    """Sets each block to a random skew matrix, scaled so that its Cayley map has the given distance.

    If +-i s are eigenvalues of S, those of R = (I - S)(I + S)^-1 are (1 -+ i s) / (1 +- i s), at a squared distance of
    4 s^2 / (1 + s^2) from 1, which increases with the scale of S.
    """
    if rotation.use_cayley_neumann:
        raise ConfigurationError(
            "OFT's series approximates the Cayley map only near the identity: set `use_cayley_neumann: false`."
        )
    vectors = _normal(rotation.weight.shape, random)
    size = rotation.block_size
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(len(vectors), size, size, dtype=torch.float64)
    skew[:, rows, columns] = vectors
    singular = torch.linalg.svdvals(skew - skew.mT)
    low, high = torch.full((len(vectors), 1), -60.0).double(), torch.full((len(vectors), 1), 60.0).double()
    for _ in range(100):  # bisection over the binary logarithm of the scale, for each block
        middle = (low + high) / 2
        squares = (singular * torch.exp2(middle)).square()
        short = (4 * squares / (1 + squares)).sum(-1, keepdim=True) < distance**2 / len(vectors)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    rotation.weight.copy_(vectors * torch.exp2((low + high) / 2) if distance else torch.zeros_like(vectors))
