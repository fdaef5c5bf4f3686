"""Greedy placers: the heuristics of the papers and cost-greedy, all with memory, pins and exclusions as masks.

Largest unit first, each to the device with the least load so far. The heuristics (AutoShard, section 4.1; NeuroShard,
section 4.1) differ in what they call load; cost-greedy takes the predicted fused cost of the device with the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardc.judge import Judge, Partial
from shardc.problem import Floats, Placement, Problem

HEURISTICS = ("size", "dim", "lookup", "size_lookup")


def heuristic_loads(problem: Problem, heuristic: str) -> Floats:
    """float[O]: the load that one unit of each option is in a heuristic's eyes."""
    shards = problem.shards
    size = shards.rows * shards.dim * 1.0
    lookup = shards.dim * shards.lookups / problem.global_batch
    load = {"size": size, "dim": shards.dim * 1.0, "lookup": lookup, "size_lookup": size * lookup}[heuristic]
    return np.array([load[list(unit)].sum() for unit in problem.option_shards])


def heuristic_greedy(judge: Judge, options: Sequence[int], heuristic: str) -> Placement | None:
    """Balance size, dim, lookup (dim x pooling) or size_lookup; None if a unit fits nowhere any more."""
    loads = heuristic_loads(judge.problem, heuristic)
    held = np.zeros(judge.problem.cluster.devices)

    def least_loaded(partial: Partial, block: int, fits: np.ndarray) -> int:
        device = int(np.where(fits, held, np.inf).argmin())
        held[device] += loads[partial.options[block]]
        return device

    return place_largest_first(judge, options, loads, least_loaded)


def cost_greedy(judge: Judge, options: Sequence[int]) -> Placement | None:
    """Each unit to the device that is cheapest with it, by the cost model; None if a unit fits nowhere any more."""

    def cheapest_with_it(partial: Partial, block: int, fits: np.ndarray) -> int:
        after = judge.device_ms(partial.z + judge.latents[partial.options[block]])
        return int(np.where(fits, after, np.inf).argmin())

    return place_largest_first(judge, options, judge.single_ms, cheapest_with_it)


def place_largest_first(
    judge: Judge,
    options: Sequence[int],
    size: Floats,
    choose: Callable[[Partial, int, np.ndarray], int],
) -> Placement | None:
    """Place all free units in descending size; `choose` picks one of the devices that fit.

    Args:
        judge: the problem and its costs.
        options: the option of each block.
        size: float[O], what to order by; ties go by block, so the order of listing has no influence.
        choose: from what is placed so far, the block and bool[D] of devices that fit, a device.

    Returns:
        The placement, or None when a unit fits on no device any more.
    """
    units = judge.problem.option_units
    partial = Partial(judge, options)
    for block in placing_order(judge, options, size):
        for _ in range(units[options[block]]):
            fits = partial.fits(block)
            if not fits.any():
                return None
            partial.add(block, choose(partial, block, fits))
    return partial.placement()


def placing_order(judge: Judge, options: Sequence[int], size: Floats) -> list[int]:
    """Blocks in the order they are placed: those with few devices to choose from first, then by descending size."""
    problem = judge.problem
    choices = problem.allowed.sum(axis=1)
    pinned = choices < problem.cluster.devices
    apart = np.array([len(labels) > 1 for labels in problem.labels])
    constrained = np.where(pinned, choices, np.where(apart, problem.cluster.devices, problem.cluster.devices + 1))
    return [int(block) for block in np.lexsort((-size[list(options)], constrained))]
