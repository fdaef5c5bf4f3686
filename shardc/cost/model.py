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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from itertools import accumulate, pairwise
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from shardc.problem import INDEX_BYTES, Cluster, Collective, Floats, HostKind, Optimizer, Problem, ShardingType, Shards


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
        """Latents of S shards, float[S, K], non-negative; on hosts of the first kind, if they differ."""

    def encode_on(self, kind: int, shards: Shards) -> Floats:
        """Latents of S shards on hosts of a kind (see `shardc.problem.Cluster`), float[S, K]."""
        return self.encode(shards)

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
        return self.varying_ms(z) + self.constants * self.present(z)

    def varying_ms(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms; `heads` at least."""
        return self.heads(z)

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
    "forward_host_reduce_scatter",
    "forward_cross_host_all_to_all",
    "backward_cross_host_all_to_all",
    "backward_host_all_gather",
    "backward_all_gather",
    "backward_all_to_all",
    "backward",
    "all_reduce",
)
FORWARD, BACKWARD = PHASES.index("forward"), PHASES.index("backward")
# Latents beside those of the compute cost, counted from the end: held, bytes of indices and lengths, of outputs that
# travel as they are, that are summed over all devices on the way, or over those of a host, of replicas' gradients.
# Before them, where tables may be in host memory: ms on the link to it, forward and backward.
_EXTRA, _HOST_LINK = 6, 2
_HELD, _INDICES, _POOLED, _SUMMED, _HOST_SUMMED, _REPLICATED = range(-_EXTRA, 0)


class _Reach(Enum):
    """Between which devices a collective is: all, those of a host, or those of the same number on every host."""

    ALL = auto()
    HOST = auto()
    CROSS_HOST = auto()


_COMMUNICATION = {
    "input_all_to_all": (Collective.ALL_TO_ALL, _Reach.ALL, _INDICES),
    "forward_all_to_all": (Collective.ALL_TO_ALL, _Reach.ALL, _POOLED),
    "forward_reduce_scatter": (Collective.REDUCE_SCATTER, _Reach.ALL, _SUMMED),
    "forward_host_reduce_scatter": (Collective.REDUCE_SCATTER, _Reach.HOST, _HOST_SUMMED),
    "forward_cross_host_all_to_all": (Collective.ALL_TO_ALL, _Reach.CROSS_HOST, _HOST_SUMMED),
    "backward_cross_host_all_to_all": (Collective.ALL_TO_ALL, _Reach.CROSS_HOST, _HOST_SUMMED),
    "backward_host_all_gather": (Collective.ALL_GATHER, _Reach.HOST, _HOST_SUMMED),
    "backward_all_gather": (Collective.ALL_GATHER, _Reach.ALL, _SUMMED),
    "backward_all_to_all": (Collective.ALL_TO_ALL, _Reach.ALL, _POOLED),
    "all_reduce": (Collective.ALL_REDUCE, _Reach.ALL, _REPLICATED),
}
"""The collective of each phase of communication, and the latent that counts the bytes of a device's message."""
_TALKING = [PHASES.index(phase) for phase in _COMMUNICATION]
_BYTES = [latent for _, _, latent in _COMMUNICATION.values()]
_PRESENCE = [_COMMUNICATION[phase][2] if phase in _COMMUNICATION else _HELD for phase in PHASES]
_HOST_STATE = {Optimizer.ADAGRAD: 4.0, Optimizer.ADAM: 8.0}  # bytes of a weight's state that are not on the device
_INPUT_COLLECTIVES = 3  # the receivers are told how much will come; then lengths are sent, then indices
_BY_ROWS = {
    ShardingType.ROW_WISE: _SUMMED,
    ShardingType.TABLE_ROW_WISE: _HOST_SUMMED,
    ShardingType.GRID_SHARD: _HOST_SUMMED,
}
"""Where the outputs of sharding types are counted whose shards each look up only some of a bag's rows."""


def host_traffic(shards: Shards) -> Floats:
    """Bytes that a step moves between a device and the memory of its host, float[S, 2] forward and backward.

    Of a cached shard, FBGEMM (1.8.0) fetches in forward each row of the step that is not in the cache, and first writes
    the row back that it evicts, one after the other, so that both directions of the link are not used at once. Rows of
    a step beyond the cache's size are not cached: they are read there forward, read and written backward. Optimizer
    state of one or more values a weight is in host memory too, and is read and written for each row of the step.

    Assumptions: each shard has its part of the cache to itself, every row fits in its set, and the rows that steps look
    up more than once are cached first. Of rows that a step looks up once, as many are found as the rest of the cache
    covers of the rest of the rows.
    """
    rows, slots = shards.rows * 1.0, shards.rows * shards.cached
    single = shards.unique * shards.bins[:, 0]
    repeated = shards.unique - single
    covered = np.maximum(slots - repeated, 0.0) / np.maximum(rows - repeated, 1.0)
    missed = single * (1.0 - np.minimum(covered, 1.0)) + np.maximum(repeated - slots, 0.0)
    beyond = np.minimum(np.maximum(shards.unique - slots, 0.0), missed)
    row_bytes = shards.dim * shards.weight_bytes
    state = np.choose(shards.optimizer, [_HOST_STATE.get(optimizer, 0.0) for optimizer in Optimizer]) * shards.dim
    traffic = [(2 * missed - beyond) * row_bytes, 2 * (beyond * row_bytes + shards.unique * state)]
    return np.where(shards.cached[:, None] < 1.0, np.stack(traffic, axis=1), 0.0)


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
    row-wise tables a reduce-scatter of partial sums, and for table-row-wise ones a reduce-scatter within each host and
    an all-to-all across; the same of their gradients in reverse; backward; all-reduce of data-parallel gradients.
    Collectives are barriers, so the maximum over devices is taken by phase. A device sends to the others of its host
    and to other hosts at the same time.

    Forward and backward also take what goes over the link to the host's memory (`host_traffic`), one after the other.

    Attributes:
        compute: the fused operator's cost.
        cluster: number of devices, and what their links take.
        kind: which kind of the cluster's hosts the costs are of.
    """

    compute: ComputeCost
    cluster: Cluster
    kind: int = 0

    phases = PHASES
    computing = (FORWARD, BACKWARD)

    @cached_property
    def constants(self) -> Floats:
        """float[P]: ms that a phase costs as soon as any device takes part in it."""
        constants = np.empty(len(PHASES))
        constants[[FORWARD, BACKWARD]] = self.compute.constants
        constants[_TALKING] = [self._latency_ms(collective, reach) for collective, reach, _ in _COMMUNICATION.values()]
        constants[0] *= _INPUT_COLLECTIVES
        return constants

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, K]: the compute cost's, ms on the link to the host, presence and the bytes of messages."""
        outputs = shards.bags * shards.dim * shards.output_bytes
        extra = np.zeros((len(shards), _EXTRA))
        extra[:, _HELD] = 1.0
        extra[:, _INDICES] = shards.exchanged * (shards.lookups + shards.bags) * INDEX_BYTES
        extra[:, _POOLED] = shards.exchanged * outputs
        for type, latent in _BY_ROWS.items():
            summed = shards.type == list(ShardingType).index(type)
            extra[summed, latent], extra[summed, _POOLED] = outputs[summed], 0.0
        extra[:, _REPLICATED] = ~shards.exchanged * shards.rows * shards.dim * shards.weight_bytes
        parts = [self.compute.encode(shards), extra]
        if (bandwidth := self._links.host_bandwidth) is not None:
            parts.insert(1, 1e3 * host_traffic(shards) / bandwidth)
        return np.concatenate(parts, axis=1)

    def heads(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms: convex, non-decreasing, 0 at 0."""
        ms = np.empty((*z.shape[:-1], len(PHASES)))
        ms[..., _TALKING] = z[..., _BYTES] * self._ms_per_byte
        ms[..., [FORWARD, BACKWARD]] = self.compute.heads(z[..., : self._computed])
        if self._offloads:
            ms[..., [FORWARD, BACKWARD]] += z[..., self._computed : -_EXTRA]
        return ms

    def slopes(self, z: Floats) -> Floats:
        """A subgradient of `heads` at one device's z: float[P, K] for float[K]."""
        slopes = np.zeros((len(PHASES), len(z)))
        slopes[[FORWARD, BACKWARD], : self._computed] = self.compute.slopes(z[: self._computed])
        if self._offloads:
            slopes[[FORWARD, BACKWARD], range(-_EXTRA - _HOST_LINK, -_EXTRA)] = 1.0
        slopes[_TALKING, _BYTES] = self._ms_per_byte
        return slopes

    def present(self, z: Floats) -> Floats:
        """1.0 where a device takes part in a phase, float[..., P]."""
        return (z[..., _PRESENCE] > 0).astype(np.float64)

    def passes(self, z: Floats) -> Floats:
        """The operator's forward and backward time on every device, without communication, float[..., 2] ms."""
        return np.asarray(self.device_ms(z)[..., [FORWARD, BACKWARD]])

    @property
    def _links(self) -> HostKind:
        return self.cluster.kinds[self.kind]

    @cached_property
    def _offloads(self) -> bool:
        return self._links.host_bandwidth is not None

    @cached_property
    def _computed(self) -> int:
        """Where the compute cost's latents end, counted from the end."""
        return -_EXTRA - _HOST_LINK * self._offloads

    @cached_property
    def _ms_per_byte(self) -> Floats:
        """Ms for each byte of a message, by phase of communication."""
        hosts, local = self.cluster.hosts, self.cluster.devices_per_host
        ms = []
        for collective, reach, _ in _COMMUNICATION.values():
            if reach is _Reach.CROSS_HOST:
                # What the devices of a host have summed up is divided among them.
                inside, outside = 0.0, shares_sent(collective, hosts, 1)[1] / local
            else:
                inside, outside = shares_sent(collective, 1 if reach is _Reach.HOST else hosts, local)
            within, between = self._links.within_host(collective), self._links.between_hosts(collective)
            ms.append(1e3 * max(inside / within.bandwidth, outside / between.bandwidth))
        return np.array(ms)

    def _latency_ms(self, collective: Collective, reach: _Reach) -> float:
        hosts = 1 if reach is _Reach.HOST else self.cluster.hosts
        devices = hosts if reach is _Reach.CROSS_HOST else hosts * self.cluster.devices_per_host
        if devices == 1:
            return 0.0
        return (self._links.between_hosts if hosts > 1 else self._links.within_host)(collective).latency_ms


@dataclass(frozen=True)
class MixedCost(PhasedCost):
    """Step time of a cluster whose hosts differ: every kind of hosts has latents, and heads, of its own.

    A device's latents are zero but for those of its kind, so that heads need not know which device they are about.

    Attributes:
        costs: the cost of each kind of hosts.
        widths: how many latents each of them has.
    """

    costs: tuple[StepCost, ...]
    widths: tuple[int, ...]

    phases = PHASES
    computing = (FORWARD, BACKWARD)

    @cached_property
    def constants(self) -> Floats:
        """float[P]: what a phase costs as soon as any device takes part in it, on hosts where that is least."""
        return np.asarray(np.min([cost.constants for cost in self.costs], axis=0))

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, K] on hosts of the first kind."""
        return self.encode_on(0, shards)

    def encode_on(self, kind: int, shards: Shards) -> Floats:
        """Latents float[S, K] on hosts of a kind: those of other kinds are zero."""
        encoded = self.costs[kind].encode(shards)
        latents = np.zeros((len(shards), sum(self.widths)))
        latents[:, self._starts[kind] : self._starts[kind + 1]] = encoded
        return latents

    @property
    def _starts(self) -> list[int]:
        return [0, *accumulate(self.widths)]

    def _parts(self, z: Floats) -> Iterator[tuple[StepCost, Floats]]:
        for cost, (start, stop) in zip(self.costs, pairwise(self._starts), strict=True):
            yield cost, z[..., start:stop]

    def heads(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, float[..., P] ms."""
        return np.asarray(sum(cost.heads(part) for cost, part in self._parts(z)))

    def slopes(self, z: Floats) -> Floats:
        """A subgradient of `heads` at one device's z: float[P, K] for float[K]."""
        return np.concatenate([cost.slopes(part) for cost, part in self._parts(z)], axis=1)

    def present(self, z: Floats) -> Floats:
        """1.0 where a device takes part in a phase, float[..., P]."""
        return np.asarray(np.max([cost.present(part) for cost, part in self._parts(z)], axis=0))

    def varying_ms(self, z: Floats) -> Floats:
        """Time of every device by phase beyond the constants, with what its own kind's are more than the least."""
        more = ((cost.constants - self.constants) * cost.present(part) for cost, part in self._parts(z))
        return np.asarray(self.heads(z) + sum(more))

    def passes(self, z: Floats) -> Floats:
        """The operator's forward and backward time on every device, without communication, float[..., 2] ms."""
        return np.asarray(self.device_ms(z)[..., [FORWARD, BACKWARD]])


def step_cost(computes: Sequence[ComputeCost], problem: Problem) -> StepCost | MixedCost:
    """The step time of a problem from the compute cost of each kind of hosts."""
    costs = tuple(StepCost(compute, problem.cluster, kind) for kind, compute in enumerate(computes))
    if len(costs) == 1:
        return costs[0]
    return MixedCost(costs, tuple(cost.encode(problem.shards).shape[1] for cost in costs))
