"""A certified lower bound on the step time of every placement and every choice of sharding options.

What is relaxed: a block may mix its options, a share for each, and its units may be spread over devices in parts. Then
the cheapest is to give all devices the same load, and by Jensen's inequality no placement beats it: the costliest
device costs at least what a convex, non-decreasing phase cost is at the mean load. Pins are relaxed altogether, and
memory is kept on average only.

Four things that no placement escapes make it tighter:

- A phase lasts at least as long as any unit takes alone, and its fixed cost is due as soon as any block takes part.
- A load that is counted in whole pieces (bytes of outputs, where dims have a common divisor) is a multiple of them on
  every device, so the largest is at least the mean rounded up.
- A large unit lies on some device, whole. So cases are told apart: on the device of another large unit, on a device of
  its own, or not used because its block is sharded otherwise. In each case the devices of large units and the others,
  on average, are loads of their own.
- Likewise a phase is used or not, and a counted load is at most n pieces or more than n.

The bound is the least over all cases, and the case that has the least bound is split further (branch and bound). In a
case the phase costs are replaced by tangents, which lie below them; the best mix under tangents is a linear program
(`shardc.cost.minimax`), and new tangents are taken where its loads are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from shardc.cost.minimax import NO_PHASE, Minimax, solve
from shardc.cost.model import PhasedCost
from shardc.problem import Bools, Floats, Ints, Problem

_CASES = 40  # cases that are bounded at most
_WORK = 4_000_000  # entries of all programs together, after which no case is split further
_LARGE = 0.15  # share of a phase that a unit takes alone to have cases of its own
_ROUNDS = 5  # of tangents in one case
_TOLERANCE = 1e-4  # relative, of a program's value; the first case is solved more exactly
_EXACT = 1e-7
_USED = 1e-3  # share of a block from which on an option counts as used
_SAFETY = 1e-9  # relative: far more than float64 loses on the way
_ROUNDING = 1e-9  # ms: more than the judge rounds a step time down by


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A bound and the mix of options that came closest to it.

    Attributes:
        step_time_ms: no placement of the problem is faster than this.
        mix: float[O], for each block a share of each of its options.
    """

    step_time_ms: float
    mix: Floats


def lower_bound(problem: Problem, cost: PhasedCost, latents: Floats) -> LowerBound:
    """Bound the step time from below.

    Args:
        problem: the problem.
        cost: its cost model; the form of its heads is what the certificate rests on.
        latents: float[O, K], latents of one unit of each option (see `shardc.judge.Judge.latents`).
    """
    relaxation = _Relaxation(problem, cost, latents)
    number = count()
    open_cases = []
    split: Iterator[_Case] = relaxation.first_cases()
    least = 0.0
    while True:
        for case in split:
            bounded = relaxation.bound(case)
            heapq.heappush(open_cases, (max(bounded.value, least), next(number), bounded))
        least, _, best = open_cases[0]
        if next(number) >= _CASES or relaxation.work >= _WORK:
            break
        children = list(relaxation.split(best))
        if not children:
            break
        heapq.heappop(open_cases)
        split = iter(children)
    return LowerBound(max(0.0, least * (1.0 - _SAFETY) - _ROUNDING), best.mix)


@dataclass(frozen=True, slots=True)
class _Case:
    """Some of all placements.

    Attributes:
        options: bool[O], the options that they use.
        paid: bool[P], phases that some block takes part in.
        alone: for each device that is told apart, the options whose only unit it holds.
        least: float[P] ms, times that the phases take at least, beyond fixed costs.
        most: float[K], loads that no device exceeds.
    """

    options: Bools
    paid: Bools
    alone: tuple[tuple[int, ...], ...]
    least: Floats
    most: Floats


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A case, its lower bound in ms, the mix float[O] that came close to it, and the phases' times float[P] there."""

    case: _Case
    value: float
    mix: Floats
    phase_ms: Floats
