"""Greedy placers: the heuristics of the papers and cost-greedy, all with memory, pins and exclusions as masks.

Largest unit first, each to the device (or host) with the least load so far. The heuristics (AutoShard, section 4.1;
NeuroShard, section 4.1) differ in what they call load; cost-greedy takes the predicted fused cost of the device with
the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardc.judge import Judge, Partial
from shardc.problem import Bools, Floats, Placement, Problem, Site

HEURISTICS = ("size", "dim", "lookup", "size_lookup")


def heuristic_loads(problem: Problem, heuristic: str) -> Floats:
    """float[U]: the load that one unit is in a heuristic's eyes."""
    shards = problem.shards
    size = shards.rows * shards.dim * 1.0
    lookup = shards.dim * shards.lookups / problem.global_batch
    load = {"size": size, "dim": shards.dim * 1.0, "lookup": lookup, "size_lookup": size * lookup}[heuristic]
    shards_of = problem.unit_shards
    starts = np.cumsum([0, *map(len, shards_of[:-1])])
    return np.add.reduceat(load[np.concatenate(shards_of)], starts)


def heuristic_greedy(judge: Judge, options: Sequence[int], heuristic: str) -> Placement | None:
    """Balance size, dim, lookup (dim x pooling) or size_lookup; None if a unit fits nowhere any more."""
    problem = judge.problem
    loads = heuristic_loads(problem, heuristic)
    held = np.zeros(problem.cluster.devices)

    def least_loaded(partial: Partial, block: int, unit: int, fits: Bools) -> int:
        option = partial.options[block]
        size = problem.site_size[problem.option_site[option]]
        place = int(np.where(fits, held.reshape(-1, size).max(axis=1), np.inf).argmin())
        held[problem.devices_of(option, place)] += loads[unit]
        return place

    return place_largest_first(judge, options, loads, least_loaded)


def cost_greedy(judge: Judge, options: Sequence[int]) -> Placement | None:
    """Each unit to where its costliest device is cheapest with it; None if a unit fits nowhere any more."""
    problem = judge.problem

    def cheapest_with_it(partial: Partial, block: int, unit: int, fits: Bools) -> int:
        after = judge.device_ms(partial.after(block, unit))
        size = problem.site_size[problem.option_site[partial.options[block]]]
        return int(np.where(fits, after.reshape(-1, size).max(axis=1), np.inf).argmin())

    return place_largest_first(judge, options, judge.single_ms, cheapest_with_it)


def place_largest_first(
    judge: Judge,
    options: Sequence[int],
    size: Floats,
    choose: Callable[[Partial, int, int, Bools], int],
) -> Placement | None:
    """Place all units in descending size; `choose` picks one of the places that fit.

    Args:
        judge: the problem and its costs.
        options: the option of each block.
        size: float[U], what to order by; ties go by block, so the order of listing has no influence.
        choose: from what is placed so far, the block, the kind of unit, and bool[places] of those that fit, a place.

    Returns:
        The placement, or None when a unit fits at no place any more.
    """
    problem = judge.problem
    partial = Partial(judge, options)
    for block in placing_order(judge, options, size):
        for unit in map(int, problem.units_of(options[block])):
            fits = partial.fits(block, unit)
            if not fits.any():
                return None
            partial.add(block, unit, choose(partial, block, unit, fits))
    return partial.placement()


def placing_order(judge: Judge, options: Sequence[int], size: Floats) -> list[int]:
    """Blocks that have a choice of places, in the order that they are placed.

    Those with few places to choose from come first: whole hosts, pins, exclusions; then by descending size.
    """
    problem, chosen = judge.problem, np.array(options)
    site = problem.option_site[chosen]
    choices = problem.allowed.sum(axis=1)
    pinned = choices < problem.cluster.devices
    apart = np.array([len(labels) > 1 for labels in problem.labels])
    constrained = np.where(pinned, choices, np.where(apart, problem.cluster.devices, problem.cluster.devices + 1))
    by_host = problem.allowed.reshape(len(site), problem.cluster.hosts, -1)
    constrained = np.where(site == Site.HOST, by_host.all(axis=2).sum(axis=1) - problem.cluster.hosts, constrained)
    order = np.lexsort((-size[problem.first_unit[chosen]], constrained))
    return [int(block) for block in order[site[order] != Site.CLUSTER]]
