"""The learned cost of a fused operator: AutoShard's shape (encode, sum, head) with a head that certifies.

A table is described by AutoShard's 21 features (2208.06399, section 3.1: dimension, rows, pooling, size, 17 access
bins) and by batch, lookups, unique rows, dtype and optimizer, log-scaled globally. An encoder turns it into
non-negative latents, proportional to a learned mix of physical quantities so that large tables extrapolate; latents
are summed over a device. Instead of AutoShard's unconstrained 32-64-1 network, each head is a sum of maxima of
non-negative linear functions: convex and non-decreasing, zero for an empty device, and independent of order.

A profile holds several such models, trained alike from different starts. The first one is the estimate; where it has
seen little the others disagree, and the largest of all, convex as well, is what a pessimist plans with.

Trained by `shardc.learn.fit_cost`; here is its inference in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from shardc.problem import Floats, Optimizer, Shards

FEATURES = 21 + 8
BASES = 6
_VECTOR = 16  # elements of the widest vector registers: a narrower rest of a row costs as much as a whole one
_AT_ONCE = 2048  # loads whose pieces stay in the cache while their largest are looked for
_LARGEST = 1e4  # absolute value of a weight; the shipped ones reach 18
_RADIX_BITS = 8  # of a row index that one pass of the backward's sort looks at


def features(shards: Shards) -> Floats:
    """float[S, 29]: AutoShard's 21, then batch, lookups, unique rows, dtype, optimizer, and as follows.

    Bytes of the unique rows, the share of vector registers that rows leave empty, passes of a radix sort by row.
    """
    tiny = 1e-3
    row_bytes = shards.dim * shards.weight_bytes
    columns = [
        np.log2(shards.dim),
        np.log2(np.maximum(shards.rows, 1)),
        np.log2(np.maximum(shards.pooling, tiny)),
        np.log2(np.maximum(shards.rows, 1) * row_bytes),
        *shards.bins.T,
        np.log2(np.maximum(shards.bags, 1)),
        np.log2(np.maximum(shards.lookups, tiny)),
        np.log2(np.maximum(shards.unique, tiny)),
        (shards.weight_bytes == 2).astype(np.float64),
        (shards.optimizer == list(Optimizer).index(Optimizer.SGD)).astype(np.float64),
        np.log2(np.maximum(shards.unique, tiny) * row_bytes),
        np.ceil(shards.dim / _VECTOR) * _VECTOR / shards.dim - 1.0,
        np.ceil(np.log2(np.maximum(shards.rows, 2)) / _RADIX_BITS),
    ]
    return np.stack(columns, axis=1)


def bases(shards: Shards) -> Floats:
    """float[S, 6]: quantities that time is proportional to, each in a unit of roughly a millisecond on a CPU core.

    Lookups, bytes gathered, bytes of pooled output, bytes of distinct rows, samples, and one for the table itself.
    """
    row_bytes = shards.dim * shards.weight_bytes
    lookups = shards.lookups
    columns = [
        lookups / 1e5,
        lookups * row_bytes / 1e7,
        shards.bags * shards.dim * shards.output_bytes / 1e7,
        shards.unique * row_bytes / 1e7,
        shards.bags / 1e5,
        np.full(len(shards), 1e-2),
    ]
    return np.stack(columns, axis=1)


def operator_kind(optimizer: Optimizer, weights: str) -> int:
    """Which of four fixed costs an operator has: by optimizer (SGD or one with state) and dtype (32 or 16 bits)."""
    return 2 * (optimizer is not Optimizer.SGD) + (weights != "fp32")


def unfit(weights: Mapping[str, NDArray[np.float64]]) -> str | None:
    """Why arrays read from a file cannot be the weights of a `FusedCost`, in words that follow the file's name."""
    other = "does not hold a cost model of this version"
    if weights.get("encoder.0.bias", np.empty(0)).ndim != 2 or weights.get("pieces", np.empty(0)).ndim != 5:
        return other
    (members, hidden), (_, _, groups, count, latents) = weights["encoder.0.bias"].shape, weights["pieces"].shape
    expected = {
        "mean": (FEATURES,),
        "std": (FEATURES,),
        "encoder.0.weight": (members, hidden, FEATURES),
        "encoder.0.bias": (members, hidden),
        "encoder.1.weight": (members, hidden, hidden),
        "encoder.1.bias": (members, hidden),
        "encoder.2.weight": (members, 2 * latents, hidden),
        "encoder.2.bias": (members, 2 * latents),
        "scale": (members, 2, BASES),
        "pieces": (members, 2, groups, count, latents),
        "offsets": (members, 2, groups, count),
        "fixed": (members, 4, 2),
    }
    if {name: array.shape for name, array in weights.items()} != expected or not members:
        return other
    # Without these signs the heads are not convex and non-decreasing, and no bound would hold.
    if not all((weights[name] >= 0).all() for name in ("scale", "pieces", "fixed")):
        return other
    # NaN is not at most anything.
    within = all((np.abs(array) <= _LARGEST).all() for array in weights.values())
    if not (within and (weights["std"] >= 1 / _LARGEST).all()):
        return f"holds weights beyond {_LARGEST:g}, which no training ends with"
    return None


@dataclass(frozen=True)
class FusedCost:
    """Compute cost (see `shardc.cost.model.ComputeCost`) from trained weights: the largest of some of its models.

    M models of K latents a direction (forward first, then backward), H hidden units, G groups of J linear pieces.

    Attributes:
        weights: arrays by name: `mean`, `std` float[29]; `encoder.{0,1,2}.{weight,bias}` float[M, ...]; `scale`
            float[M, 2, 6]; `pieces` float[M, 2, G, J, K] (non-negative) and `offsets` float[M, 2, G, J]; `fixed`
            float[M, 4, 2] ms.
        kind: row of `fixed`: what the operator's launch overhead depends on, see `operator_kind`.
        members: how many of the M models take part: one for the estimate.
        margin: factors of forward and backward time.
    """

    weights: dict[str, NDArray[np.float64]]
    kind: int
    members: int = 1
    margin: tuple[float, float] = (1.0, 1.0)

    @property
    def constants(self) -> Floats:
        """Launch overhead, float[2] ms."""
        return np.asarray(self._fixed.max(axis=0) * self.margin)

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, 2 K M'], forward's first, for the M' models that take part."""
        x = (features(shards) - self.weights["mean"]) / self.weights["std"]
        amount = bases(shards)
        latents = [self._encode(member, x, amount) for member in range(self.members)]
        return np.stack(latents, axis=2).reshape(len(shards), -1)

    def _encode(self, member: int, x: Floats, amount: Floats) -> Floats:
        """Latents of one model, float[S, 2, K]."""
        w = {name: array[member] for name, array in self.weights.items() if name not in ("mean", "std")}
        hidden = np.maximum(x @ w["encoder.0.weight"].T + w["encoder.0.bias"], 0.0)
        hidden = np.maximum(hidden @ w["encoder.1.weight"].T + w["encoder.1.bias"], 0.0)
        rates = np.logaddexp(hidden @ w["encoder.2.weight"].T + w["encoder.2.bias"], 0.0)
        return np.asarray(rates.reshape(len(x), 2, -1) * (amount @ w["scale"].T)[:, :, None])

    def heads(self, z: Floats) -> Floats:
        """Forward and backward ms beyond the constants, float[..., 2]."""
        loads = z.reshape(-1, z.shape[-1]).T
        ms = np.empty((loads.shape[1], 2))
        for part in (slice(start, start + _AT_ONCE) for start in range(0, len(ms), _AT_ONCE)):
            for phase in (0, 1):
                totals = (self._total(self._pieces(loads[:, part], phase, m), phase, m) for m in range(self.members))
                ms[part, phase] = reduce(np.maximum, totals) * self.margin[phase]
        return ms.reshape(*z.shape[:-1], 2)

    def slopes(self, z: Floats) -> Floats:
        """Subgradient of both heads at z, float[2, 2 K M']: in the largest model, of each group its largest piece."""
        slopes = np.zeros((2, 2, self.members, len(z) // 2 // self.members))
        for phase in (0, 1):
            values = [self._pieces(z[:, None], phase, member) for member in range(self.members)]
            largest = int(np.argmax([self._total(pieces, phase, m)[0] for m, pieces in enumerate(values)]))
            best = values[largest][..., 0].argmax(axis=0)
            chosen = self.weights["pieces"][largest, phase, np.arange(len(best)), best]
            slopes[phase, phase, largest] = chosen.sum(axis=0) * self.margin[phase]
        return slopes.reshape(2, -1)

    def _total(self, pieces: Floats, phase: int, member: int) -> Floats:
        """Ms of one model beyond the largest constant of all: at most 0 on an empty device, and 0 for one of them."""
        lacking = self._fixed[member, phase] - self._fixed[:, phase].max()
        return np.asarray(pieces.max(axis=0).sum(axis=0) + lacking)

    def _pieces(self, loads: Floats, phase: int, member: int) -> Floats:
        """Values of all linear pieces of a model's head beyond those of an empty device, float[J, G, N].

        Args:
            loads: float[2 K M', N].
            phase: 0 forward, 1 backward.
            member: which model.
        """
        slopes, offsets = self._rows[member][phase]
        groups, count, latents = self.weights["pieces"].shape[2:]
        start = (phase * self.members + member) * latents
        values = slopes @ loads[start : start + latents]
        values += offsets
        return values.reshape(count, groups, -1)

    @cached_property
    def _rows(self) -> list[list[tuple[Floats, Floats]]]:
        """By model and phase, slopes float[J G, K] and offsets float[J G, 1] of all pieces.

        The pieces of a group come apart, so that the largest of them is taken along long rows. Without load the largest
        of each group is exactly 0.
        """
        pieces, offsets = self.weights["pieces"], self.weights["offsets"]
        offsets = offsets - offsets.max(axis=-1, keepdims=True)
        pieces = np.ascontiguousarray(np.moveaxis(pieces, 3, 2)).reshape(*pieces.shape[:2], -1, pieces.shape[-1])
        offsets = np.ascontiguousarray(np.moveaxis(offsets, 3, 2)).reshape(*offsets.shape[:2], -1, 1)
        return [list(zip(*of_member, strict=True)) for of_member in zip(pieces, offsets, strict=True)]

    @property
    def _fixed(self) -> Floats:
        """Launch overhead of the models that take part, float[M', 2] ms."""
        return np.asarray(self.weights["fixed"][: self.members, self.kind])
