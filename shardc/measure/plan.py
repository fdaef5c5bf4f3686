"""Measuring what a placement puts on each device, as TorchRec would run it there.

TorchRec serves the tables of a device with one fused operator for each sharding type (`ShardedEmbeddingBagCollection`
makes a lookup of each type's tables, `group_tables` one operator of each lookup's). So does this, operator by operator,
and a device takes the sum of its operators. Two things are not as there:

- A benchmark's operator has one batch, so tables with several features, which have several bags a sample, are in an
  operator of their own.
- Data-parallel tables are updated sparsely, as all others. In TorchRec their gradients are dense, and an optimizer
  outside the operator updates every row.

Communication is not measured, nor is what lies between the operators. A short last block of row-wise rows is measured
as a full one, as it is charged for. As in a campaign, an operator during which the reference set was slower than usual
is measured again, and the measurement that was disturbed least counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np

from shardc.hardware import Hardware
from shardc.measure.own import disturbance, milliseconds, time_undisturbed, workload_of
from shardc.measure.workload import Timing, Workload
from shardc.problem import Bools, Floats, Problem


@dataclass(frozen=True, slots=True)
class MeasuredDevices:
    """What the devices of a placement were measured to take.

    Attributes:
        ms: float[D, 2], forward and backward; 0 for an empty device, NaN for one that does not fit in local memory, or
            has tables in the host's.
        timed: every operator that was measured, and its times.
        disturbance: the reference set's time relative to what it took when the device was profiled, at worst; 1 where
            no profile says.
    """

    ms: Floats
    timed: tuple[tuple[Workload, Timing], ...]
    disturbance: float


def device_operators(problem: Problem, held: Bools) -> list[tuple[Workload, ...]]:
    """The operators of each device, from the shards that it holds, bool[D, S]."""
    shards = problem.shards
    kind = np.stack([shards.type, shards.bags], axis=1)
    found = []
    for device in held:
        kinds = np.unique(kind[device], axis=0)
        members = [np.flatnonzero(device & (kind == one).all(axis=1)).tolist() for one in kinds]
        found.append(tuple(workload_of(shards, of_kind) for of_kind in members))
    return found


def measure_devices(
    problem: Problem,
    held: Bools,
    hardware: Hardware,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredDevices:
    """Time the devices of a placement one after the other on the local device; equal operators are timed once.

    Args:
        problem: the lowered problem.
        held: bool[D, S], the shards that each device holds.
        hardware: the profile that the problem's costs come from; the local device has to be of its kind (see
            `shardc.measure.own.require_device`).
        progress: called with operators done and in all.

    Raises:
        ModuleNotFoundError: without torch and FBGEMM.
    """
    from shardc.measure.benchmark import Bench

    cached: Bools = np.asarray((held & (problem.shards.cached < 1.0)).any(axis=1))
    operators = device_operators(problem, held & ~cached[:, None])
    distinct = list(dict.fromkeys(chain.from_iterable(operators)))
    bench = Bench()
    timings: dict[Workload, Timing] = {}
    for done, workload in enumerate(distinct, start=1):
        with suppress(MemoryError):
            timings[workload] = time_undisturbed(bench, workload, hardware)
        progress(done, len(distinct))
    times = {workload: milliseconds(timing, hardware) for workload, timing in timings.items()}
    unknown = (np.nan, np.nan)
    ms = np.array(
        [
            np.sum([times.get(workload, unknown) for workload in of_device] or [(0.0, 0.0)], axis=0)
            for of_device in operators
        ]
    )
    ms[cached] = np.nan
    worst = max((disturbance(timing, hardware) for timing in timings.values()), default=1.0)
    return MeasuredDevices(ms, tuple(timings.items()), worst)
