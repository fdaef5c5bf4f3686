"""The learned cost of a fused operator: AutoShard's shape (encode, sum, head) with a head that certifies.

A table is described by AutoShard's 21 features (2208.06399, section 3.1: dimension, rows, pooling, size, 17 access
bins) and by batch, lookups, unique rows, dtype and optimizer, log-scaled globally. An encoder turns it into
non-negative latents, proportional to a learned mix of physical quantities so that large tables extrapolate; latents
are summed over a device. Instead of AutoShard's unconstrained 32-64-1 network, each head is a sum of maxima of
non-negative linear functions: convex and non-decreasing, zero for an empty device, and independent of order.

Trained by `shardc.learn.fit_cost`; here is its inference in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardc.problem import Floats, Optimizer, Shards

FEATURES = 21 + 6
BASES = 6


def features(shards: Shards) -> Floats:
    """float[S, 27]: AutoShard's 21, then batch, lookups, unique rows, dtype, optimizer, bytes of the unique rows."""
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


def fits(weights: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether arrays read from a file can be the weights of a `FusedCost`: names, shapes, signs, no NaN."""
    if "encoder.0.bias" not in weights or weights.get("pieces", np.empty(0)).ndim != 4:
        return False
    hidden, (_, groups, count, latents) = weights["encoder.0.bias"].size, weights["pieces"].shape
    expected = {
        "mean": (FEATURES,),
        "std": (FEATURES,),
        "encoder.0.weight": (hidden, FEATURES),
        "encoder.0.bias": (hidden,),
        "encoder.1.weight": (2 * latents, hidden),
        "encoder.1.bias": (2 * latents,),
        "scale": (2, BASES),
        "pieces": (2, groups, count, latents),
        "offsets": (2, groups, count),
        "fixed": (4, 2),
    }
    shapes = {name: array.shape for name, array in weights.items()} == expected
    finite = all(np.isfinite(array).all() for array in weights.values())
    # Without these signs the heads are not convex and non-decreasing, and no bound would hold.
    return shapes and finite and all(bool((weights[name] >= 0).all()) for name in ("scale", "pieces", "fixed"))


@dataclass(frozen=True)
class FusedCost:
    """Compute cost (see `shardc.cost.model.ComputeCost`) from trained weights.

    K latents a direction (forward first, then backward), H hidden units, G groups of J linear pieces.

    Attributes:
        kind: row of `fixed`: what the operator's launch overhead depends on, see `operator_kind`.
        weights: arrays by name: `mean`, `std` float[27]; `encoder.{0,1}.{weight,bias}`; `scale` float[2, 6];
            `pieces` float[2, G, J, K] (non-negative) and `offsets` float[2, G, J]; `fixed` float[4, 2] ms.
    """

    weights: dict[str, NDArray[np.float64]]
    kind: int

    @property
    def constants(self) -> Floats:
        """Launch overhead, ms."""
        return np.asarray(self.weights["fixed"][self.kind])

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, 2 K]."""
        w = self.weights
        x = (features(shards) - w["mean"]) / w["std"]
        hidden = np.maximum(x @ w["encoder.0.weight"].T + w["encoder.0.bias"], 0.0)
        rates = np.logaddexp(hidden @ w["encoder.1.weight"].T + w["encoder.1.bias"], 0.0)
        amount = bases(shards) @ w["scale"].T
        return (rates.reshape(len(shards), 2, -1) * amount[:, :, None]).reshape(len(shards), -1)

    def heads(self, z: Floats) -> Floats:
        """Forward and backward ms beyond the constants, float[..., 2]."""
        return np.stack([self._pieces(z, phase).max(axis=-1).sum(axis=-1) for phase in (0, 1)], axis=-1) - self._at_zero

    def slopes(self, z: Floats) -> Floats:
        """Subgradient of both heads at z, float[2, 2 K]: of each group, the slope of its largest piece."""
        slopes = np.zeros((2, 2, len(z) // 2))
        for phase in (0, 1):
            best = self._pieces(z, phase).argmax(axis=-1)
            slopes[phase, phase] = self.weights["pieces"][phase, np.arange(len(best)), best].sum(axis=0)
        return slopes.reshape(2, -1)

    @property
    def _at_zero(self) -> Floats:
        return np.asarray(self.weights["offsets"].max(axis=-1).sum(axis=-1))

    def _pieces(self, z: Floats, phase: int) -> Floats:
        """Values of all linear pieces of a head, float[..., G, J]."""
        pieces, offsets = self.weights["pieces"][phase], self.weights["offsets"][phase]
        groups, count, latents = pieces.shape
        part = z[..., phase * latents : (phase + 1) * latents]
        flat = part @ pieces.reshape(groups * count, latents).T
        return np.asarray(flat.reshape(*z.shape[:-1], groups, count) + offsets)
