"""What a step waits for: which tables make up the time of the slowest device of each phase."""

from __future__ import annotations

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.problem import Floats, Placement, Problem


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
        load = max(float(slopes @ z[device]), 1e-300)
        here = np.flatnonzero(held[device])
        latents = cost.encode_on(int(problem.cluster.kind[device]), problem.shards)[here]
        np.add.at(found[phase], problem.shard_table[here], ms[device, phase] * (latents @ slopes) / load)
    return found
