"""Which tables a device's time, and that of a step, goes to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.judge import Judge
from shardc.problem import Floats, Ints, Placement, Problem

_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Shares of N shards in the time of the devices that hold them.

    Attributes:
        table: int[N], the table that a shard is a piece of.
        device: int[N], the device that holds it.
        share: float[N, C], its share of what the device takes in each of the cost model's C `computing` phases.
    """

    table: Ints
    device: Ints
    share: Floats


def time_shares(judge: Judge, cost: PhasedCost, placement: Placement, devices: Iterable[int]) -> TimeShares:
    """Divide the time of devices among their shards, in proportion to the slopes of the phases at a device's load.

    Args:
        judge: the problem.
        cost: its cost model.
        placement: what the devices hold.
        devices: the devices to look at.
    """
    problem = judge.problem
    z, _ = judge.loads(placement)
    held = problem.held(placement)
    latents: dict[int, Floats] = {}
    tables, ranks, shares = [], [], []
    for device in devices:
        kind = int(problem.cluster.kind[device])
        if kind not in latents:
            latents[kind] = cost.encode_on(kind, problem.shards)
        here = np.flatnonzero(held[device])
        slopes = cost.slopes(z[device])[list(cost.computing)]
        shares.append(latents[kind][here] @ slopes.T / np.maximum(slopes @ z[device], _LEAST))
        tables.append(problem.shard_table[here])
        ranks.append(np.full(len(here), device))
    return TimeShares(np.concatenate(tables), np.concatenate(ranks), np.concatenate(shares))


def critical_ms(problem: Problem, cost: PhasedCost, placement: Placement, z: Floats) -> Floats:
    """What each table takes of the slowest device of each phase, float[P, T] ms.

    A device's time is divided among its shards in proportion to the slopes at its load.

    Args:
        problem: the problem.
        cost: its costs.
        placement: where everything is.
        z: float[D, K], summed latents of the placement.
    """
    ms, held = cost.device_ms(z), problem.held(placement)
    found = np.zeros((ms.shape[1], len(problem.tables)))
    for phase, device in enumerate(ms.argmax(axis=0).tolist()):
        slopes = cost.slopes(z[device])[phase]
        load = max(float(slopes @ z[device]), _LEAST)
        here = np.flatnonzero(held[device])
        latents = cost.encode_on(int(problem.cluster.kind[device]), problem.shards)[here]
        np.add.at(found[phase], problem.shard_table[here], ms[device, phase] * (latents @ slopes) / load)
    return found
