"""What each device of a plan holds, table by table: bytes, and where the spec is at hand the time they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.moves import tables_of
from shardc.passes.restore import placement_of
from shardc.passes.verify import extent, shard_memory, verify, wide_caches
from shardc.pipeline import Prepared, prepare
from shardc.plan import Digests, Plan
from shardc.problem import BYTES_PER_ELEMENT, Memory
from shardc.shares import time_shares
from shardc.spec import LoadedSpec


@dataclass(frozen=True, slots=True)
class Held:
    """All that one device holds of one table.

    Attributes:
        table: its name.
        bytes: device memory that it takes.
        forward_ms: its share of the device's forward time; of all its time, where the costs have one phase.
        backward_ms: its share of the backward time.
    """

    table: str
    bytes: int
    forward_ms: float = 0.0
    backward_ms: float = 0.0

    @property
    def passes(self) -> tuple[float, float]:
        """Forward and backward time."""
        return self.forward_ms, self.backward_ms

    @property
    def ms(self) -> float:
        """Its share of the device's compute time."""
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Contents:
    """What the devices of a plan hold.

    Attributes:
        devices: for each rank its tables, sorted by name.
        timed: whether times are known; they are 0 otherwise, and bytes are those of the weights alone.
        split: whether times of tables are told apart by forward and backward pass.
        pooling: mean lookups of a sample by table; empty where they are not known.
        warnings: how far to trust the plan.
    """

    devices: tuple[tuple[Held, ...], ...]
    timed: bool = False
    split: bool = False
    pooling: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()


def contents_alone(plan: Plan, *warnings: Diagnostic) -> Contents:
    """What the plan alone says: where weights are.

    Args:
        plan: a plan without faults of its own.
        warnings: why no more is known.
    """
    element, bytes = BYTES_PER_ELEMENT[plan.model.weights], _Sums(plan)
    for name, table in tables_of(plan).items():
        if not table.shards:
            rows, columns = extent(table) or (0, 0)
            for rank in table.ranks:
                bytes.add(rank, name, rows * columns * element)
        for shard in table.shards:
            rows, columns = shard.shard_sizes
            bytes.add(shard.rank, name, int(rows * table.cached) * columns * element)
    return Contents(tuple(tuple(Held(name, size) for name, size in held) for held in bytes.sorted()), warnings=warnings)


def contents(plan: Plan, loaded: LoadedSpec) -> Contents:
    """What the plan and its spec say: all memory, and times.

    Times are the plan's own by device, divided among tables in proportion to today's costs. A plan that does not fit
    the spec any more is looked at alone, with the faults among the warnings.

    Args:
        plan: a plan without faults of its own.
        loaded: the spec beside it.

    Raises:
        DiagnosticError: the spec cannot be compiled any more.
    """
    prepared = prepare(loaded)
    problem = prepared.judge.problem
    unchanged = plan.digests.of_costs == prepared.digests.of_costs
    faults = [fault for fault in verify(plan, loaded, problem.cluster) if unchanged or fault.code != "SH310"]
    if faults:
        return contents_alone(plan, *faults)
    try:
        times = _times(plan, prepared)
    except DiagnosticError as error:
        return contents_alone(plan, *error.diagnostics)
    bytes, forward, backward = _Sums(plan), *times
    shards = shard_memory(plan, loaded)
    for rank, name, size in zip(shards.rank.tolist(), shards.table, shards.bytes[Memory.DEVICE].tolist(), strict=True):
        bytes.add(rank, name, size)
    devices = (
        tuple(
            Held(name, size, float(forward[rank].get(name, 0.0)), float(backward[rank].get(name, 0.0)))
            for name, size in held
        )
        for rank, held in enumerate(bytes.sorted())
    )
    warnings = (
        *_since(plan.digests, prepared.digests),
        *prepared.warnings,
        *wide_caches(plan, loaded, problem.cluster),
    )
    pooling = {table.name: table.pooling for table in loaded.tables}
    return Contents(tuple(devices), any(forward), any(backward), pooling, warnings)


class _Sums:
    """Bytes by device and table, added up."""

    def __init__(self, plan: Plan) -> None:
        self._devices: list[dict[str, int]] = [{} for _ in range(plan.cluster.devices)]

    def add(self, rank: int, name: str, size: int) -> None:
        device = self._devices[rank]
        device[name] = device.get(name, 0) + size

    def sorted(self) -> Iterator[list[tuple[str, int]]]:
        return (sorted(device.items()) for device in self._devices)


def _times(plan: Plan, prepared: Prepared) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Forward and backward ms by device and table; empty where the costs tell no phases, or the plan no times."""
    judge = prepared.judge
    problem, cost = judge.problem, judge.cost
    placement = placement_of(plan, problem)
    ranks = range(problem.cluster.devices)
    forward: list[dict[str, float]] = [{} for _ in ranks]
    backward: list[dict[str, float]] = [{} for _ in ranks]
    passes = {device.rank: (device.forward_ms, device.backward_ms) for device in plan.score.devices}
    if not isinstance(cost, PhasedCost) or any(None in passes.get(rank, (None,)) for rank in ranks):
        return forward, backward
    shares = time_shares(judge, cost, placement, ranks)
    stated = np.array([passes[rank] for rank in ranks], dtype=np.float64)
    if len(cost.computing) == 1:  # a device takes one time, which is not told apart by table
        stated = stated.sum(axis=1, keepdims=True)
    ms = (stated[shares.device] * shares.share).tolist()
    for table, device, parts in zip(shares.table.tolist(), shares.device.tolist(), ms, strict=True):
        name = problem.tables[table].name
        for of_phase, part in zip((forward, backward), parts, strict=False):
            of_phase[device][name] = of_phase[device].get(name, 0.0) + part
    return forward, backward


def _since(stated: Digests, today: Digests) -> Iterator[Diagnostic]:
    """A warning where a plan was compiled from something else than what there is now."""
    if changes := "; ".join(stated.changes(today)):
        message = f"{changes}: tables share devices' times as of now"
        yield Diagnostic("SH340", message, help="shardc check tells whether the plan may stay", severity="warning")
