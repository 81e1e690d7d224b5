"""The distance of an adapted model from the pretrained one: Frobenius distances and hyperspherical energy (Sec. 4 and 5.3).

Notation: torch's weight is W, (f, d), the transpose of the paper's. An adapter's *input side* transformation T is (d, d)
and changes W to W T^T; the *output side* T~ is (f, f) and changes W to T~ W.

**Transformation distance** (Sec. 3.2, eq. 2): ||T - I||_F. T is block-diagonal, so a layer's distance is the root of the sum
of squares over blocks. ETHER: exactly 2 per block and 2 sqrt(n) per layer; one side of ETHER+: at most sqrt(2) per block and
sqrt(2 n) per layer; OFT: at most 2 sqrt(d); Naive: no bound.

**Weight distance**: ||W' - W||_F, for any method.

**Hyperspherical energy** (Liu et al., 2018): HE = sum over i != j of 1 / ||w_i^ - w_j^||, w^ = w / |w|. *Input-side
neurons* are the rows of torch's W: f vectors in the space of the layer's input, the neurons of the paper and of OFT. An
orthogonal T transforms them all by the same rotation or reflection, so ETHER (layout `diagonal`) and OFT preserve their energy
for any n. *Output-side neurons* are the columns of torch's W: d vectors in the space of the output. Their energy is preserved
by an orthogonal T~, but not by an input-side transformation.

All values are computed in float64, and the measured model is not changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ether.errors import ConfigurationError, one_of
from ether.tuners.layer import EtherLayer, NaiveLayer

__all__ = [
    "SIDES",
    "Distance",
    "adapted_layers",
    "block_distances",
    "energies",
    "hyperspherical_energy",
    "reflection_distances",
    "rotation_blocks",
    "summary",
    "transformation_distances",
    "weight_distance",
    "weight_distances",
    "weight_pairs",
]

SIDES = ("input", "output")
_PAIRS = 2**22  # entries of one chunk of the matrix of distances between neurons: 32 MiB of float64
_CLOSE = 1e-4  # smaller squared distances are computed from differences of neurons, to avoid cancellation


# --- transformations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """One side of one layer: ||T_i - I||_F of each of its n diagonal blocks."""

    layer: str
    side: str  # input | output
    blocks: tuple[float, ...]

    @property
    def value(self) -> float:
        """||T - I||_F of the whole block-diagonal transformation."""
        return math.sqrt(sum(block * block for block in self.blocks))


def reflection_distances(u: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    """||H - I||_F of each block of ETHER (v is None) or of one side of ETHER+, in closed form.

    u, v: (n, b), of any length. Returns (n,), float64. ETHER: 2 (eq. 2). ETHER+: ||v v^T - u u^T||_F =
    sqrt(2 (1 - (u . v)^2)) = |u - v| |u + v| / sqrt(2) for unit vectors; the last form avoids cancellation near u = v.
    The term of a zero vector, which has no direction, is omitted, as in `ether.reflection`.
    """
    units = [_unit(vector.detach().double()) for vector in (u, v) if vector is not None]
    if v is None:
        return 2 * units[0].norm(dim=-1)
    lengths = [unit.norm(dim=-1) for unit in units]
    both = (units[0] - units[1]).norm(dim=-1) * (units[0] + units[1]).norm(dim=-1) / math.sqrt(2)
    return torch.where((lengths[0] > 0) & (lengths[1] > 0), both, torch.maximum(*lengths))


def block_distances(blocks: torch.Tensor) -> torch.Tensor:
    """||T_i - I||_F for blocks (n, b, b). Returns (n,), float64."""
    blocks = blocks.detach().double()
    return torch.linalg.matrix_norm(blocks - torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device))


def rotation_blocks(layer: OFTLayer, adapter: str) -> torch.Tensor:
    """The diagonal blocks R_i of PEFT's OFT, (n, b, b), float64, computed by PEFT (with its Cayley map and options)."""
    rotation: Any = copy.deepcopy(layer.oft_R[adapter]).double()
    with torch.no_grad():
        dense = rotation.get_weight()
    size = rotation.block_size
    return torch.stack([dense[i : i + size, i : i + size] for i in range(0, len(dense), size)])


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of x with length 1; zero rows stay zero."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, x / length.clamp_min(torch.finfo(x.dtype).tiny), x)


def _active(layer: BaseTunerLayer, adapter: str | None) -> str:
    active = list(layer.active_adapters)
    if adapter is None and len(active) != 1:
        raise ConfigurationError(f"{len(active)} adapters are active ({', '.join(active)}): choose one with `adapter=...`.")
    return adapter or active[0]


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """All layers adapted by PEFT, by their names in the model before PEFT wrapped it."""
    return {_plain(name): module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def transformation_distances(model: nn.Module, adapter: str | None = None) -> list[Distance]:
    """||T - I||_F for every adapted layer and side of a model with ETHER, ETHER+, Naive or OFT layers.

    Empty for methods that do not multiply the weight (LoRA, full fine-tuning). In layout `release` the n distances are
    those of the reflections of the n groups of output rows (`ether.reflection.reflect_row_groups`).

    Raises:
        ConfigurationError: several adapters are active and `adapter` is not given.
    """
    found = []
    for name, layer in adapted_layers(model).items():
        if not isinstance(layer, EtherLayer | NaiveLayer | OFTLayer):
            continue
        which = _active(layer, adapter)
        sides: list[tuple[str, torch.Tensor]] = []
        if isinstance(layer, EtherLayer):
            for side, suffix in (("input", ""), ("output", "_out")):
                vectors = layer._vectors(which, suffix)
                if vectors is not None:
                    sides.append((side, reflection_distances(*vectors)))
        elif isinstance(layer, NaiveLayer):
            sides.append(("input", block_distances(layer.naive_blocks[which])))
        else:
            sides.append(("input", block_distances(rotation_blocks(layer, which))))
        found += [Distance(name, side, tuple(values.tolist())) for side, values in sides]
    return found


# --- weights ---------------------------------------------------------------------------------------------------


def weight_pairs(
    model: nn.Module, reference: Mapping[str, torch.Tensor] | None = None
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(layer name, W, W') of every adapted layer, one at a time, in float64; W' is the weight after merging.

    Args:
        model: adapted by PEFT, or trained in full.
        reference: for weights trained in place, the weights before training: {layer name: weight}. Not needed for PEFT layers.

    PEFT's ``get_delta_weight`` has a different meaning in each tuner (OFT's is the rotation). Therefore a copy of the layer
    is merged, which is correct for all of them. Only one layer is copied at a time. For a layer that is already merged, W is
    the weight of its unmerged copy.

    Raises:
        ConfigurationError: a reference's layer is not in the model.
    """
    adapted = adapted_layers(model)
    for name, layer in adapted.items():
        double: Any = copy.deepcopy(layer)
        if _base_weight(double).is_floating_point():
            double.double()
        with torch.no_grad():
            if double.merged:
                double.unmerge()
            before = _base_weight(double).detach().clone().double()
            double.merge()
            after = _base_weight(double).detach().double()
        yield name, before, after
    modules = {_plain(name): module for name, module in model.named_modules()} if reference else {}
    for name, before in (reference or {}).items():
        if name in adapted:
            continue
        if name not in modules:
            raise one_of("layer of the reference", name, modules)
        weight: Any = modules[name].weight
        yield name, before.detach().to(weight.device).double(), weight.detach().double()


def _base_weight(layer: Any) -> torch.Tensor:
    return layer.get_base_layer().weight


def weight_distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """||W' - W||_F, in float64."""
    return float(torch.linalg.vector_norm(after.detach().double() - before.detach().double()))


def weight_distances(model: nn.Module, reference: Mapping[str, torch.Tensor] | None = None) -> dict[str, float]:
    """||W' - W||_F of each adapted layer; the model's is the root of the sum of their squares. See `weight_pairs`."""
    return {name: weight_distance(before, after) for name, before, after in weight_pairs(model, reference)}


# --- hyperspherical energy -------------------------------------------------------------------------------------


def hyperspherical_energy(weight: torch.Tensor, side: str = "input", chunk: int | None = None) -> float:
    """HE = sum over i != j of 1 / ||w_i^ - w_j^|| (Liu et al., 2018), every ordered pair counted, in float64.

    Args:
        weight: torch's (f, d).
        side: "input": the neurons are the f rows, whose energy an orthogonal transformation of the input preserves; "output":
            the d columns, whose energy an orthogonal transformation of the output preserves.
        chunk: number of neurons compared with all others at a time; by default memory is bounded (about 100 MiB). Chunks are
            summed exactly (``math.fsum``), so that the chunk size affects the last digits only.

    Neurons that are zero are omitted. Two neurons with the same direction make the energy infinite.

    Raises:
        ConfigurationError: unknown side, or `weight` is not a matrix.
    """
    if side not in SIDES:
        raise one_of("side", side, SIDES)
    if weight.dim() != 2:
        raise ConfigurationError(f"Hyperspherical energy is defined for a matrix, not for the shape {tuple(weight.shape)}.")
    neurons = weight.detach().double()
    neurons = _unit(neurons if side == "input" else neurons.T)
    if not bool(torch.isfinite(neurons).all()):
        return math.nan
    neurons = neurons[neurons.abs().amax(dim=-1) > 0]
    count = len(neurons)
    size = max(1, chunk if chunk is not None else _PAIRS // max(1, count))
    sums: list[float] = []
    for start in range(0, count, size):
        piece = neurons[start : start + size]
        squared = (2 - 2 * (piece @ neurons.T)).clamp_min(0)
        index = torch.arange(len(piece), device=piece.device)
        squared[index, index + start] = math.inf  # 1 / inf = 0: no neuron is paired with itself
        rows, columns = torch.nonzero(squared < _CLOSE, as_tuple=True)
        for part in range(0, len(rows), size):
            r, c = rows[part : part + size], columns[part : part + size]
            squared[r, c] = (piece[r] - neurons[c]).square().sum(-1)
        sums += squared.rsqrt_().sum(-1).tolist()
    return math.fsum(sums) if all(math.isfinite(value) for value in sums) else math.inf


def energies(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """{layer: {side: HE}} of named weights (f, d)."""
    return {name: {side: hyperspherical_energy(weight, side) for side in SIDES} for name, weight in weights.items()}


# --- summary --------------------------------------------------------------------------------------------------


def summary(
    model: nn.Module,
    reference: Mapping[str, torch.Tensor] | None = None,
    before: dict[str, dict[str, float]] | None = None,
) -> dict[str, float]:
    """All measures of an adapted model in one pass over its layers.

    Args:
        model, reference: see `weight_pairs`.
        before: energies of the pretrained weights; missing layers are added, so that later calls do not compute them again.

    Returns, where L is the number of layers:
        transformation_distance: mean of ||T - I||_F over layers and sides; absent for methods that do not multiply the weight;
        transformation_distance_input, _output: the same for one side; _block: mean over all blocks; _total: the root of
        the sum of all squares;
        weight_distance: root of the sum of squares of ||W' - W||_F over layers; weight_distance_layer: their mean;
        weight_norm: the root of the sum of squares of ||W||_F, for comparison;
        he_difference_input, _output: mean over layers of |HE' - HE| / HE; he_change_input, _output: |sum of HE' - sum of
        HE|, in the unit of the energy.
    """
    values: dict[str, float] = {}
    distances = transformation_distances(model)
    if distances:
        values["transformation_distance"] = _mean([d.value for d in distances])
        for side in SIDES:
            if any(d.side == side for d in distances):
                values[f"transformation_distance_{side}"] = _mean([d.value for d in distances if d.side == side])
        values["transformation_distance_block"] = _mean([b for d in distances for b in d.blocks])
        values["transformation_distance_total"] = math.sqrt(math.fsum(d.value**2 for d in distances))
    known = {} if before is None else before
    moved: list[float] = []
    squares: list[float] = []
    relative: dict[str, list[float]] = {side: [] for side in SIDES}
    change: dict[str, list[float]] = {side: [] for side in SIDES}
    for name, old, new in weight_pairs(model, reference):
        old, new = old.flatten(1), new.flatten(1)  # a convolution's neuron is its whole kernel
        moved.append(weight_distance(old, new))
        squares.append(float(old.square().sum()))
        if name not in known:
            known[name] = {side: hyperspherical_energy(old, side) for side in SIDES}
        for side in SIDES:
            difference = hyperspherical_energy(new, side) - known[name][side]
            change[side].append(difference)
            if known[name][side]:
                relative[side].append(abs(difference) / known[name][side])
    if moved:
        values["weight_distance"] = math.sqrt(math.fsum(value**2 for value in moved))
        values["weight_distance_layer"] = _mean(moved)
        values["weight_norm"] = math.sqrt(math.fsum(squares))
        for side in SIDES:
            values[f"he_difference_{side}"] = _mean(relative[side])
            values[f"he_change_{side}"] = abs(sum(change[side]))
    return values


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
