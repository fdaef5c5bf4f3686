"""A placement that fits, whatever it costs: the same local search, with memory as the only cost.

Placers that put one unit after the other give up where memory is tight: the last units find no device with enough room
left, though moving others would make some. Here units may lie anywhere at first, and the search lowers how full the
fullest device is, by the same exchanges and changes of sharding that otherwise lower the step time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.judge import Judge
from shardc.placers.greedy import cost_greedy
from shardc.placers.local_search import improve
from shardc.problem import Floats, Ints, Placement, Problem, Shards

_FULL = 1.0 - 1e-9  # of a device's memory; what judges round a share by is less
_ANY_MEMORY = 2**62


@dataclass(frozen=True, slots=True)
class Fit:
    """The placement whose fullest device was least full.

    Attributes:
        placement: the placement.
        fits: whether every device has room for what it holds.
        fullest: share of its memory that the fullest device would need.
    """

    placement: Placement
    fits: bool
    fullest: float


def fit(problem: Problem, choices: Iterable[Sequence[int]], *, evaluations: int, seed: int) -> Fit | None:
    """Look for a placement that fits.

    Args:
        problem: the problem.
        choices: options of the blocks to start from, until something fits.
        evaluations: how many candidates may be scored for each start, about.
        seed: of every random choice.

    Returns:
        The best that was found; None if pins and exclusions leave no way to place all units one after the other.
    """
    judge = _FillJudge(_without_limits(problem), _Fill(), problem.cluster.memory_limit)
    best: Fit | None = None
    for options in choices:
        start = cost_greedy(judge, options)
        if start is None:
            continue
        found = improve(judge, start, evaluations=evaluations, seed=seed, enough_ms=_FULL)
        fullest = judge.judge(found).step_time_ms
        if best is None or fullest < best.fullest:
            best = Fit(found, fullest <= _FULL, fullest)
        if best.fits:
            break
    return best


def repair(problem: Problem, start: Placement, *, evaluations: int, seed: int) -> Placement | None:
    """A placement that fits, by changing one that does not; None if none was found.

    Args:
        problem: the problem.
        start: a placement that keeps pins and exclusions, if not memory.
        evaluations: how many candidates may be scored, about.
        seed: of every random choice.
    """
    judge = _FillJudge(_without_limits(problem), _Fill(), problem.cluster.memory_limit)
    found = improve(judge, start, evaluations=evaluations, seed=seed, enough_ms=_FULL)
    return found if judge.judge(found).step_time_ms <= _FULL else None


def _without_limits(problem: Problem) -> Problem:
    """The problem, if memory were no limit."""
    kinds = tuple(replace(kind, memory_bytes=_ANY_MEMORY, reserve_bytes=0) for kind in problem.cluster.kinds)
    return replace(problem, cluster=replace(problem.cluster, kinds=kinds, rank_limit={}))


class _Fill(PhasedCost):
    """How full a device is, in place of the time that it takes; its one latent is the share of its memory."""

    phases = ("memory",)
    computing = (0,)

    @property
    def constants(self) -> Floats:
        return np.zeros(1)

    def encode(self, shards: Shards) -> Floats:
        raise NotImplementedError("units have memory, shards by themselves do not")

    def heads(self, z: Floats) -> Floats:
        return np.asarray(z)

    def slopes(self, z: Floats) -> Floats:
        return np.ones((1, 1))

    def present(self, z: Floats) -> Floats:
        return np.asarray(z > 0, dtype=np.float64)

    def passes(self, z: Floats) -> Floats:
        return np.repeat(z, 2, axis=-1)


@dataclass(frozen=True)
class _FillJudge(Judge):
    """Judges how full devices are.

    Attributes:
        limits: int[D], bytes that each device has room for.
    """

    limits: Ints

    @cached_property
    def latents(self) -> Floats:
        """float[G, U, 1]: the share of a largest device's memory that a unit takes."""
        share = self.problem.unit_memory / max(int(self.limits.max()), 1)
        return np.broadcast_to(share[:, None], (len(self.problem.cluster.kinds), len(share), 1))

    def loads(self, placement: Placement) -> tuple[Floats, Ints]:
        """As of any judge; a device that is smaller than the largest is partly full from the start."""
        z, memory = super().loads(placement)
        return z + (1.0 - self.limits / max(int(self.limits.max()), 1))[:, None], memory
