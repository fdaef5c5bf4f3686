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
from shardc.problem import Floats, Ints, Memory, Placement, Problem, Shards

_FULL = 1.0 - 1e-9  # of a device's memory; what judges round a share by is less
_ANY_MEMORY = 2**62


@dataclass(frozen=True, slots=True)
class Fit:
    """The placement whose fullest device was least full.

    Attributes:
        placement: the placement.
        fits: whether every device has room for what it holds.
        fullest: share of its memory that the fullest device would need, of the kind that it needs most of.
        memory: that kind.
    """

    placement: Placement
    fits: bool
    fullest: float
    memory: Memory


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
    limits = problem.cluster.memory_limit
    judge = _FillJudge(_without_limits(problem), _Fill(), limits)
    best: Fit | None = None
    for options in choices:
        start = cost_greedy(judge, options)
        if start is None:
            continue
        found = improve(judge, start, evaluations=evaluations, seed=seed, enough_ms=_FULL)
        fill, memory = judge.loads(found)
        fullest = judge.judge(found).step_time_ms
        if best is None or fullest < best.fullest:
            kind = Memory(int(fill.max(axis=0).argmax()))
            best = Fit(found, bool((memory <= limits).all()), fullest, kind)
        if best.fits:
            break
    return best


def repair(problem: Problem, start: Placement, *, evaluations: int, seed: int) -> Placement | None:
    """A placement that fits, by changing one that does not, or else anywhere, with its options or as whole as may be.

    None if none was found.

    Args:
        problem: the problem.
        start: a placement that keeps pins and exclusions, if not memory.
        evaluations: how many candidates may be scored each time, about.
        seed: of every random choice.
    """
    judge = _FillJudge(_without_limits(problem), _Fill(), problem.cluster.memory_limit)
    found = improve(judge, start, evaluations=evaluations, seed=seed, enough_ms=_FULL, refine=True)
    if judge.judge(found).step_time_ms <= _FULL:
        return found
    choices = dict.fromkeys([start.option, tuple(map(int, problem.first_option))])
    anew = fit(problem, choices, evaluations=evaluations, seed=seed)
    return anew.placement if anew and anew.fits else None


def _without_limits(problem: Problem) -> Problem:
    """The problem, if memory were no limit."""
    kinds = tuple(
        replace(
            kind,
            memory_bytes=_ANY_MEMORY,
            reserve_bytes=0,
            host_memory_bytes=None if kind.host_memory_bytes is None else _ANY_MEMORY,
        )
        for kind in problem.cluster.kinds
    )
    return replace(problem, cluster=replace(problem.cluster, kinds=kinds, rank_limit={}))


class _Fill(PhasedCost):
    """How full a device is, in place of the time that it takes; its latents are the shares of its kinds of memory."""

    phases = ("memory",)
    computing = (0,)

    @property
    def constants(self) -> Floats:
        return np.zeros(1)

    def encode(self, shards: Shards) -> Floats:
        raise NotImplementedError("units have memory, shards by themselves do not")

    def heads(self, z: Floats) -> Floats:
        return np.asarray(z.max(axis=-1, keepdims=True))

    def slopes(self, z: Floats) -> Floats:
        return np.asarray(np.arange(len(z)) == z.argmax(), dtype=np.float64)[None]

    def present(self, z: Floats) -> Floats:
        return np.asarray(self.heads(z) > 0, dtype=np.float64)

    def passes(self, z: Floats) -> Floats:
        return np.repeat(self.heads(z), 2, axis=-1)


@dataclass(frozen=True)
class _FillJudge(Judge):
    """Judges how full devices are.

    Attributes:
        limits: int[M, D], bytes that each device has room for.
    """

    limits: Ints

    @cached_property
    def latents(self) -> Floats:
        """float[G, U, M]: the shares of a largest device's memory that a unit takes."""
        share = self.problem.unit_memory / self._largest
        return np.broadcast_to(share.T, (len(self.problem.cluster.kinds), *share.T.shape))

    @property
    def _largest(self) -> Ints:
        """int[M, 1]: what the largest device has room for."""
        return np.asarray(np.maximum(self.limits.max(axis=1, keepdims=True), 1))

    def loads(self, placement: Placement) -> tuple[Floats, Ints]:
        """As of any judge; a device that is smaller than the largest is partly full from the start."""
        z, memory = super().loads(placement)
        return z + np.minimum(1.0 - self.limits / self._largest, _FULL).T, memory
