"""The cost protocol: encode shards into latents, sum them by device, score whole placements.

    encode(shards)        -> float[S, K]   a latent vector a shard, computed once
    z[d] = sum of the latents of the shards on device d
    score(z[..., D, K])   -> float[...]    step time of placements in ms, vectorised over candidates

Any object with these two methods can drive `shardc.compile`. A `PhasedCost` says more of itself: a step is a sequence
of phases with a barrier after each, so its time is the sum over phases of the costliest device's time. `StepCost` is
the one that shardc makes from a hardware profile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from shardc.problem import INDEX_BYTES, Cluster, Collective, Floats, ShardingType, Shards


@runtime_checkable
class CostModel(Protocol):
    """What the placement pass needs to know about costs."""

    def encode(self, shards: Shards) -> Floats:
        """Latents of S shards, float[S, K]."""
        ...

    def score(self, z: Floats) -> Floats:
        """Step time in ms of placements, float[...], from summed latents float[..., D, K]."""
        ...


class PhasedCost(ABC):
    """A cost model in phases, whose form certifies a lower bound.

    In phase p a device takes `constants[p] * present(z)[p] + heads(z)[p]`, with `heads` convex, non-decreasing and zero
    at zero. To be a subclass is to promise that form: `shardc.cost.bound` applies Jensen's inequality to it, and a
    search looks only at the devices that it changes.

    Attributes:
        phases: names of the P phases, in their order.
        computing: indices of the phases that tables are held to account for in a summary.
    """

    phases: ClassVar[tuple[str, ...]]
    computing: ClassVar[tuple[int, ...]]

    @property
    @abstractmethod
    def constants(self) -> Floats:
        """float[P]: ms that a phase costs as soon as any device takes part in it."""

    @abstractmethod
    def encode(self, shards: Shards) -> Floats:
        """Latents of S shards, float[S, K], non-negative."""

    @abstractmethod
    def heads(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms: convex, non-decreasing, 0 at 0."""

    @abstractmethod
    def slopes(self, z: Floats) -> Floats:
        """A subgradient of `heads` at one device's z: float[P, K] for float[K]."""

    @abstractmethod
    def present(self, z: Floats) -> Floats:
        """1.0 where a device takes part in a phase, float[..., P]."""

    @abstractmethod
    def passes(self, z: Floats) -> Floats:
        """What a plan states of every device: its forward and its backward pass, float[..., 2] ms."""

    def device_ms(self, z: Floats) -> Floats:
        """Time of every device by phase, float[..., P] ms, from summed latents float[..., K]."""
        return self.heads(z) + self.constants * self.present(z)

    def score(self, z: Floats) -> Floats:
        """Step time in ms, float[...], from float[..., D, K]: the sum over phases of the costliest device."""
        return np.asarray(self.device_ms(z).max(axis=-2).sum(axis=-1))


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


PHASES = (
    "input_all_to_all",
    "forward",
    "forward_all_to_all",
    "forward_reduce_scatter",
    "backward_all_gather",
    "backward_all_to_all",
    "backward",
    "all_reduce",
)
FORWARD, BACKWARD = PHASES.index("forward"), PHASES.index("backward")
# Latents beside those of the compute cost, counted from the end: held, bytes of indices and lengths, of outputs that
# travel as they are, of outputs that are summed on the way, of replicas' gradients.
_EXTRA = 5
_HELD, _INDICES, _POOLED, _SUMMED, _REPLICATED = range(-_EXTRA, 0)
_COMMUNICATION = {
    "input_all_to_all": (Collective.ALL_TO_ALL, _INDICES),
    "forward_all_to_all": (Collective.ALL_TO_ALL, _POOLED),
    "forward_reduce_scatter": (Collective.REDUCE_SCATTER, _SUMMED),
    "backward_all_gather": (Collective.ALL_GATHER, _SUMMED),
    "backward_all_to_all": (Collective.ALL_TO_ALL, _POOLED),
    "all_reduce": (Collective.ALL_REDUCE, _REPLICATED),
}
"""The collective of each phase of communication, and the latent that counts the bytes of a device's message."""
_TALKING = [PHASES.index(phase) for phase in _COMMUNICATION]
_BYTES = [latent for _, latent in _COMMUNICATION.values()]
_PRESENCE = [_COMMUNICATION[phase][1] if phase in _COMMUNICATION else _HELD for phase in PHASES]
_INPUT_COLLECTIVES = 3  # the receivers are told how much will come; then lengths are sent, then indices


def shares_sent(collective: Collective, hosts: int, devices_per_host: int) -> tuple[float, float]:
    """What a device sends of each byte of its message: to the others of its host, and to other hosts.

    The message is what a device brings, or in an all-gather what it ends up with. Time over these shares gives what
    nccl-tests call the bus bandwidth, which does not depend on the number of devices as long as the links limit it.
    """
    devices = hosts * devices_per_host
    if collective is Collective.ALL_TO_ALL:
        return (devices_per_host - 1) / devices, (devices - devices_per_host) / devices
    # Rings: an all-reduce is a reduce-scatter and an all-gather. The devices of a host share what crosses hosts.
    ring = (2 if collective is Collective.ALL_REDUCE else 1) * (devices - 1) / devices
    return ring * (devices_per_host > 1), ring / devices_per_host * (hosts > 1)


@dataclass(frozen=True)
class StepCost(PhasedCost):
    """Step time from a compute cost and the cluster's communication.

    The phases are those of TorchRec: all-to-all of the indices; forward; all-to-all of the pooled outputs, but for
    row-wise tables a reduce-scatter of partial sums; all-gather and all-to-all of their gradients; backward; all-reduce
    of data-parallel gradients. Collectives are barriers, so the maximum over devices is taken by phase. A device sends
    to the others of its host and to other hosts at the same time.

    Attributes:
        compute: the fused operator's cost.
        cluster: number of devices, and what its links take.
    """

    compute: ComputeCost
    cluster: Cluster

    phases = PHASES
    computing = (FORWARD, BACKWARD)

    @cached_property
    def constants(self) -> Floats:
        """float[P]: ms that a phase costs as soon as any device takes part in it."""
        constants = np.empty(len(PHASES))
        constants[[FORWARD, BACKWARD]] = self.compute.constants
        constants[_TALKING] = [self._latency_ms(collective) for collective, _ in _COMMUNICATION.values()]
        constants[0] *= _INPUT_COLLECTIVES
        return constants

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, K]: the compute cost's, then presence and the bytes of messages."""
        summed = shards.type == list(ShardingType).index(ShardingType.ROW_WISE)
        outputs = shards.bags * shards.dim * shards.output_bytes
        extra = np.zeros((len(shards), _EXTRA))
        extra[:, _HELD] = 1.0
        extra[:, _INDICES] = shards.exchanged * (shards.lookups + shards.bags) * INDEX_BYTES
        extra[:, _POOLED] = (shards.exchanged & ~summed) * outputs
        extra[:, _SUMMED] = summed * outputs
        extra[:, _REPLICATED] = ~shards.exchanged * shards.rows * shards.dim * shards.weight_bytes
        return np.concatenate([self.compute.encode(shards), extra], axis=1)

    def heads(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms: convex, non-decreasing, 0 at 0."""
        ms = np.empty((*z.shape[:-1], len(PHASES)))
        ms[..., _TALKING] = z[..., _BYTES] * self._ms_per_byte
        ms[..., [FORWARD, BACKWARD]] = self.compute.heads(z[..., :-_EXTRA])
        return ms

    def slopes(self, z: Floats) -> Floats:
        """A subgradient of `heads` at one device's z: float[P, K] for float[K]."""
        slopes = np.zeros((len(PHASES), len(z)))
        slopes[[FORWARD, BACKWARD], :-_EXTRA] = self.compute.slopes(z[:-_EXTRA])
        slopes[_TALKING, _BYTES] = self._ms_per_byte
        return slopes

    def present(self, z: Floats) -> Floats:
        """1.0 where a device takes part in a phase, float[..., P]."""
        return (z[..., _PRESENCE] > 0).astype(np.float64)

    def passes(self, z: Floats) -> Floats:
        """The operator's forward and backward time on every device, without communication, float[..., 2] ms."""
        return np.asarray(self.device_ms(z)[..., [FORWARD, BACKWARD]])

    @cached_property
    def _ms_per_byte(self) -> Floats:
        """Ms for each byte of a message, by phase of communication."""
        c = self.cluster
        ms = []
        for collective, _ in _COMMUNICATION.values():
            inside, outside = shares_sent(collective, c.hosts, c.devices_per_host)
            within, between = c.within_host(collective), c.between_hosts(collective)
            ms.append(1e3 * max(inside / within.bandwidth, outside / between.bandwidth))
        return np.array(ms)

    def _latency_ms(self, collective: Collective) -> float:
        if self.cluster.devices == 1:
            return 0.0
        link = self.cluster.between_hosts if self.cluster.hosts > 1 else self.cluster.within_host
        return link(collective).latency_ms
