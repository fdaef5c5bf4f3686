"""The analytic cost of a GPU nobody has measured yet: a roofline over data-sheet figures.

Per device and phase: the larger of the time to move its bytes through device memory and the time to gather its rows
through the second-level cache. The figures of the device come from `profiles/gpus.toml`; the constants below are
assumptions about FBGEMM's kernels, not measurements, and every plan made with them says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardc.problem import INDEX_BYTES, Floats, Optimizer, Shards

_EFFICIENCY = 0.75  # of data-sheet bandwidth that row gathers reach
_CACHE_SPEEDUP = 2.0  # second-level cache bandwidth over device-memory bandwidth
_SECTOR = 32  # bytes: the least that a GPU reads of a row
_LINE = 128  # bytes: one warp's request, which a gather pays for at least
_SORT_BYTES = 128  # per lookup: radix sort of (row, sample) pairs before the backward pass
_LAUNCH_MS = (0.02, 0.08)  # kernel launches of a forward and of a backward pass

ASSUMPTIONS = (_EFFICIENCY, _CACHE_SPEEDUP, _SECTOR, _LINE, _SORT_BYTES, _LAUNCH_MS)
"""What decides a cost beside the data sheet: part of a profile's digest."""


@dataclass(frozen=True)
class Roofline:
    """Compute cost (see `shardc.cost.model.ComputeCost`) from bandwidth and cache size.

    Attributes:
        memory_bandwidth: bytes/s of device memory, from the data sheet.
        cache_bytes: size of the second-level cache.
    """

    memory_bandwidth: float
    cache_bytes: float

    @property
    def constants(self) -> Floats:
        """Launch overhead, ms."""
        return np.array(_LAUNCH_MS)

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, 4]: ms of device memory and of cache, forward; the same, backward."""
        row_bytes = shards.dim * shards.weight_bytes
        sectors = np.ceil(row_bytes / _SECTOR) * _SECTOR
        lookups, outputs = shards.lookups, shards.bags * shards.dim * shards.output_bytes
        # A row read again is in the cache if the rows of the step fit there together.
        hit = np.minimum(1.0, self.cache_bytes / np.maximum(shards.unique * sectors, 1.0))
        repeated = np.maximum(lookups - shards.unique, 0.0) * (1.0 - hit)
        inputs = (lookups + shards.bags) * INDEX_BYTES
        forward = (shards.unique + repeated) * sectors + inputs + outputs
        gathered = lookups * np.maximum(row_bytes, _LINE) + outputs
        # One value for a row costs a sector of its own; Adagrad and Adam keep one and two values a weight.
        state_bytes = {
            Optimizer.SGD: np.zeros_like(sectors),
            Optimizer.ROWWISE_ADAGRAD: np.full_like(sectors, _SECTOR),
            Optimizer.ADAGRAD: shards.dim * 4.0,
            Optimizer.ADAM: shards.dim * 8.0,
        }
        state = np.choose(shards.optimizer, [state_bytes[optimizer] for optimizer in Optimizer])
        # A replica's gradient is dense: all its rows are written and read, and all weights and states updated.
        touched = np.where(shards.exchanged, shards.unique, shards.rows)
        updated = 2 * touched * (sectors + state) + np.where(shards.exchanged, 0.0, 2.0 * shards.rows * row_bytes)
        backward = updated + lookups * _SORT_BYTES + outputs
        per_ms = _EFFICIENCY * self.memory_bandwidth / 1e3
        through_cache = per_ms * _CACHE_SPEEDUP
        return np.stack(
            [
                forward / per_ms,
                gathered / through_cache,
                backward / per_ms,
                (gathered + updated) / through_cache,
            ],
            axis=1,
        )

    def heads(self, z: Floats) -> Floats:
        """Forward and backward ms, float[..., 2]: the larger of memory and cache time."""
        return np.maximum(z[..., 0::2], z[..., 1::2])

    def slopes(self, z: Floats) -> Floats:
        """Subgradient of both maxima at z, float[2, 4]."""
        slopes = np.zeros((2, 4))
        slopes[0, int(z[1] > z[0])] = 1.0
        slopes[1, 2 + int(z[3] > z[2])] = 1.0
        return slopes
