"""The cost protocol: encode shards into latents, sum them by device, score whole placements.

    encode(shards)        -> float[S, K]   a latent vector a shard, computed once
    z[d] = sum of the latents of the shards on device d
    score(z[..., D, K])   -> float[...]    step time of placements in ms, vectorised over candidates

Any object with these two methods can drive `shardc.compile`. `StepCost` is the model shardc itself uses: a step is a
sequence of phases with a barrier after each, so its time is the sum over phases of the costliest device's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from shardc.problem import INDEX_BYTES, Cluster, Floats, Shards


@runtime_checkable
class CostModel(Protocol):
    """What the placement pass needs to know about costs."""

    def encode(self, shards: Shards) -> Floats:
        """Latents of S shards, float[S, K]."""
        ...

    def score(self, z: Floats) -> Floats:
        """Step time in ms of placements, float[...], from summed latents float[..., D, K]."""
        ...


class ComputeCost(Protocol):
    """Time of the fused embedding operator on one device: the part of a step that a hardware profile models.

    Each head is `constants[p] * (not empty) + heads(z)[p]` with `heads` convex, non-decreasing and zero at zero: the
    form that lets `shardc.cost.bound` certify a lower bound by Jensen's inequality.
    """

    @property
    def constants(self) -> Floats:
        """float[2]: launch overhead in ms, forward and backward, of a device that holds anything."""
        ...

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, K], non-negative."""
        ...

    def heads(self, z: Floats) -> Floats:
        """Forward and backward ms beyond the constants, float[..., 2], from summed latents float[..., K]."""
        ...

    def slopes(self, z: Floats) -> Floats:
        """A subgradient of both heads at one z: float[2, K] for float[K]."""
        ...


PHASES = ("input_all_to_all", "forward", "forward_all_to_all", "backward_all_to_all", "backward", "all_reduce")
FORWARD, BACKWARD = PHASES.index("forward"), PHASES.index("backward")
_EXTRA = 5  # latents beside those of the compute cost: held, exchanged, index bytes, output bytes, replicated bytes
_PRESENCE = [-4, -5, -4, -4, -5, -1]  # the latent that says whether a device takes part, by phase


@dataclass(frozen=True)
class StepCost:
    """Step time from a compute cost and the cluster's communication.

    The phases are: all-to-all of the indices, forward, all-to-all of the pooled outputs, the same of their gradients,
    backward, all-reduce of data-parallel gradients. Collectives are barriers, so the maximum over devices is taken by
    phase. A device sends its share to the others of its host and to other hosts at the same time.

    Attributes:
        compute: the fused operator's cost.
        cluster: bandwidths, latency and number of devices.
    """

    compute: ComputeCost
    cluster: Cluster

    phases = PHASES

    @cached_property
    def constants(self) -> Floats:
        """float[P]: ms that a phase costs as soon as any device takes part in it."""
        latency = self.cluster.latency_ms if self.cluster.devices > 1 else 0.0
        forward, backward = self.compute.constants
        return np.array([latency, forward, latency, latency, backward, latency])

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, K]: the compute cost's, then presence and bytes to send."""
        exchanged = shards.exchanged.astype(np.float64)
        extra = np.stack(
            [
                np.ones(len(shards)),
                exchanged,
                exchanged * (shards.lookups + shards.bags) * INDEX_BYTES,
                exchanged * shards.bags * shards.dim * shards.output_bytes,
                (1.0 - exchanged) * shards.rows * shards.dim * shards.weight_bytes,
            ],
            axis=1,
        )
        return np.concatenate([self.compute.encode(shards), extra], axis=1)

    def heads(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms: convex, non-decreasing, 0 at 0."""
        index_ms, output_ms, reduce_ms = self._ms_per_byte
        ms = np.empty((*z.shape[:-1], len(PHASES)))
        ms[..., [0, 2, 3, 5]] = z[..., [-3, -2, -2, -1]] * (index_ms, output_ms, output_ms, reduce_ms)
        ms[..., [FORWARD, BACKWARD]] = self.compute.heads(z[..., :-_EXTRA])
        return ms

    def slopes(self, z: Floats) -> Floats:
        """A subgradient of `heads` at one device's z: float[P, K] for float[K]."""
        index_ms, output_ms, reduce_ms = self._ms_per_byte
        slopes = np.zeros((len(PHASES), len(z)))
        slopes[[FORWARD, BACKWARD], :-_EXTRA] = self.compute.slopes(z[:-_EXTRA])
        slopes[0, -3], slopes[2, -2], slopes[3, -2], slopes[5, -1] = index_ms, output_ms, output_ms, reduce_ms
        return slopes

    def present(self, z: Floats) -> Floats:
        """1.0 where a device takes part in a phase, float[..., P]."""
        return (z[..., _PRESENCE] > 0).astype(np.float64)

    def device_ms(self, z: Floats) -> Floats:
        """Time of every device by phase, float[..., P] ms, from summed latents float[..., K]."""
        return self.heads(z) + self.constants * self.present(z)

    def score(self, z: Floats) -> Floats:
        """Step time in ms, float[...], from float[..., D, K]: the sum over phases of the costliest device."""
        return np.asarray(self.device_ms(z).max(axis=-2).sum(axis=-1))

    @cached_property
    def _ms_per_byte(self) -> tuple[float, float, float]:
        """Ms for each byte of indices, of pooled outputs and of replicated weights."""
        c = self.cluster
        others_here = (c.devices_per_host - 1) / c.devices
        elsewhere = (c.devices - c.devices_per_host) / c.devices
        exchange = 1e3 * max(others_here / c.intra_host_bandwidth, elsewhere / c.inter_host_bandwidth)
        # A ring all-reduce passes all data twice; between hosts all devices of a host share the work.
        links = [1 / c.intra_host_bandwidth] * (c.devices_per_host > 1)
        links += [1 / (c.inter_host_bandwidth * c.devices_per_host)] * (c.hosts > 1)
        reduce = 1e3 * 2 * (c.devices - 1) / c.devices * max(links, default=0.0)
        return exchange, exchange, reduce
