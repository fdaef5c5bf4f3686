"""NeuroShard's search (2305.01868): a beam over column-wise halvings, greedy placement inside.

The outer loop halves one table of a candidate at a time and keeps the candidates whose placement is cheapest. The inner
loop places tables in descending predicted cost, each on the device whose fused cost is least with it, under a cap on
the device's total dim, which is what all-to-all sends; several caps are tried. It differs from the paper's in what a
`Problem` offers: halving a table again halves all of its pieces, memory limits are kept, and a candidate that does not
fit costs infinitely much instead of being given up.

All candidates of a step and all their caps are placed together, array by array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.judge import Judge, Partial
from shardc.placers.greedy import placing_order
from shardc.problem import Bools, Floats, Ints, Placement, ShardingType, Site

BEAM = 3  # candidates that are kept
HALVED = 10  # tables of a candidate that are halved in turn: the largest, and as many of the costliest
STEPS = 10
CAPS: Floats = np.linspace(1.0, 1.5, 11)
"""Caps on a device's total dim, in means over devices."""

_LOADS_AT_ONCE = 1 << 13  # devices of all candidates and caps that are scored in one call


def neuroshard_beam(judge: Judge, options: Sequence[int]) -> Placement | None:
    """The cheapest placement that the beam comes across; None if it comes across none that fits.

    Args:
        judge: the problem and its costs.
        options: the option of each block to start from. A block is halved if it is whole or in columns there, may be
            sharded in columns, and is free to go anywhere.
    """
    greedy = _CappedGreedy(judge, tuple(options))
    beam = [tuple(options)]
    seen = set(beam)
    best_ms, best = greedy.place_all(beam)[0]
    for _ in range(STEPS):
        halved = []
        for candidate in beam:
            for after in greedy.halvings(candidate):
                if after not in seen:
                    seen.add(after)
                    halved.append(after)
        if not halved:
            break
        placed = greedy.place_all(halved)
        # Stable: among equals, which is all of them while nothing fits, the largest table is halved first.
        order = sorted(range(len(halved)), key=lambda i: placed[i][0])[:BEAM]
        beam = [halved[i] for i in order]
        if placed[order[0]][0] < best_ms:
            best_ms, best = placed[order[0]]
    return best


@dataclass(frozen=True)
class _CappedGreedy:
    """The inner loop, for candidates that differ in how often tables are halved.

    Attributes:
        judge: the problem and its costs.
        start: the option of each block before any halving.
    """

    judge: Judge
    start: tuple[int, ...]

    @cached_property
    def _free(self) -> Bools:
        """bool[B]: blocks whose units may go to any device, whatever else is there; others are placed before them."""
        problem, start = self.judge.problem, np.array(self.start)
        alone = np.array([len(labels) == 1 for labels in problem.labels])
        anywhere = (problem.option_site[start] == Site.DEVICE) & ~problem.option_one_host[start]
        return np.asarray(anywhere & alone & problem.allowed.all(axis=1))

    @cached_property
    def _next_halving(self) -> dict[int, int]:
        """The option that each option becomes when its pieces are halved."""
        problem, after = self.judge.problem, {}
        for block in np.flatnonzero(self._free):
            option = self.start[block]
            for finer in problem.options_of(int(block)):
                count, kinds = int(problem.option_units[finer]), len(np.unique(problem.units_of(finer)))
                even = problem.option_type[finer] is ShardingType.COLUMN_WISE and kinds == 1
                even &= problem.cached_of(finer) == problem.cached_of(option)
                if even and count & (count - 1) == 0 and count > problem.option_units[option]:
                    after[option] = option = finer
        return after

    @cached_property
    def _dim(self) -> Floats:
        """float[U]: columns of one unit whose outputs travel."""
        shards = self.judge.problem.shards
        exchanged = shards.dim * shards.exchanged
        return np.array([float(exchanged[list(unit)].sum()) for unit in self.judge.problem.unit_shards])

    @cached_property
    def _fixed(self) -> Partial | None:
        """What is not free, each unit where its costliest device is cheapest; None if a unit fits nowhere."""
        judge, problem = self.judge, self.judge.problem
        partial = Partial(judge, self.start)
        for block in placing_order(judge, self.start, judge.single_ms):
            if self._free[block]:
                continue
            size = problem.site_size[problem.option_site[self.start[block]]]
            for unit in map(int, problem.units_of(self.start[block])):
                fits = partial.fits(block, unit)
                if not fits.any():
                    return None
                cost = self._compute_ms(partial.after(block, unit)).reshape(-1, size).max(axis=1)
                partial.add(block, unit, int(np.where(fits, cost, np.inf).argmin()))
        return partial

    def halvings(self, candidate: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The candidates with one more table halved: the largest first, then the costliest."""
        problem, options = self.judge.problem, np.array(candidate)
        blocks = np.array([b for b, option in enumerate(candidate) if option in self._next_halving], dtype=np.int64)
        units = problem.first_unit[options[blocks]]
        by_size = blocks[np.argsort(-problem.unit_fill[units], kind="stable")][:HALVED]
        by_cost = blocks[np.argsort(-self.judge.single_ms[units], kind="stable")][:HALVED]
        for block in dict.fromkeys([*by_size.tolist(), *by_cost.tolist()]):
            yield (*candidate[:block], self._next_halving[candidate[block]], *candidate[block + 1 :])

    def place_all(self, candidates: Sequence[tuple[int, ...]]) -> list[tuple[float, Placement | None]]:
        """For each candidate the step time and the placement of the cap that does best."""
        at_once = max(1, _LOADS_AT_ONCE // (len(CAPS) * self.judge.problem.cluster.devices))
        parts = [candidates[i : i + at_once] for i in range(0, len(candidates), at_once)]
        return [placed for part in parts for placed in self._place(part)]

    def _place(self, candidates: Sequence[tuple[int, ...]]) -> list[tuple[float, Placement | None]]:
        """As `place_all`, in arrays of N candidates, C caps and D devices."""
        judge, problem, fixed = self.judge, self.judge.problem, self._fixed
        if fixed is None:
            return [(float("inf"), None)] * len(candidates)
        cluster = problem.cluster
        blocks, units = self._sequences(candidates)  # [N, L]
        shape = (len(candidates), len(CAPS), cluster.devices)
        z = np.broadcast_to(fixed.z, (*shape, fixed.z.shape[1])).copy()
        memory = np.broadcast_to(fixed.memory[:, None, None], (len(fixed.memory), *shape)).copy()
        dims = np.zeros(shape)
        holds = np.zeros(shape, dtype=bool)  # a piece of the block that is being placed
        # A unit that is wider than the cap by itself would fit nowhere.
        dim = np.where(units < 0, 0.0, self._dim[units])
        cap = np.maximum(
            CAPS * dim.sum(axis=1, keepdims=True) / cluster.devices, dim.max(axis=1, keepdims=True, initial=0.0)
        )
        possible = np.ones(shape[:2], dtype=bool)
        where = np.full((*blocks.shape, len(CAPS)), -1)
        n, c = np.ogrid[: shape[0], : shape[1]]
        for step in range(units.shape[1]):
            unit = units[:, step]
            given = (unit >= 0)[:, None] & possible
            holds &= (step > 0) & (blocks[:, step] == blocks[:, step - 1])[:, None, None]
            after = z + judge.latents[cluster.kind[None], unit[:, None]][:, None]
            grown = memory + problem.unit_memory[:, unit, None, None]
            fits = (grown <= cluster.memory_limit[:, None, None]).all(axis=0) & ~holds
            fits &= dims + dim[:, step, None, None] <= cap[..., None] * (1.0 + 1e-12)
            device = np.where(fits, self._compute_ms(after), np.inf).argmin(axis=2)
            possible &= fits.any(axis=2) | ~given
            given &= possible
            taken = (n[:, 0][given.nonzero()[0]], c[0][given.nonzero()[1]], device[given])
            z[taken], memory[:, *taken] = after[taken], grown[:, *taken]
            dims[taken] += dim[taken[0], step]
            holds[taken] = True
            where[:, step][given] = device[given]
        ms = np.where(possible, judge.step_ms(z), np.inf)
        best = ms.argmin(axis=1)
        return [
            (float(ms[i, k]), self._placement(candidate, fixed, blocks[i], where[i, :, k]))
            if possible[i, k]
            else (float("inf"), None)
            for i, (candidate, k) in enumerate(zip(candidates, best, strict=True))
        ]

    def _sequences(self, candidates: Sequence[tuple[int, ...]]) -> tuple[Ints, Ints]:
        """Free blocks and kinds of units in the order that they are placed, int[N, L] each; -1 after the last unit."""
        problem, free = self.judge.problem, np.flatnonzero(self._free)
        sequences = []
        for candidate in candidates:
            options = np.array(candidate)[free]
            order = np.argsort(-self.judge.single_ms[problem.first_unit[options]], kind="stable")
            counts = problem.option_units[options[order]]
            of_options = [problem.units_of(int(option)) for option in options[order]]
            sequences.append((np.repeat(free[order], counts), np.concatenate([np.zeros(0, np.int64), *of_options])))
        longest = max(len(units) for _, units in sequences)
        blocks, units = np.full((2, len(candidates), longest), -1)
        for i, (of_blocks, of_units) in enumerate(sequences):
            blocks[i, : len(of_blocks)], units[i, : len(of_units)] = of_blocks, of_units
        return blocks, units

    def _compute_ms(self, z: Floats) -> Floats:
        """Fused cost of devices, float[...] ms for float[..., K]: forward and backward without communication."""
        cost = self.judge.cost
        if not isinstance(cost, PhasedCost):
            return self.judge.device_ms(z)
        return Judge.rounded(cost.passes(z).sum(axis=-1))

    def _placement(self, candidate: tuple[int, ...], fixed: Partial, blocks: Ints, where: Ints) -> Placement:
        """The placement of a candidate whose free units, of these blocks, are on these devices."""
        places: list[list[int]] = [list(of_block) for of_block in fixed.places]
        for block, device in zip(blocks.tolist(), where.tolist(), strict=True):
            if block >= 0:
                places[block].append(device)
        problem = self.judge.problem
        return Placement(candidate, tuple(problem.sorted_places(o, p) for o, p in zip(candidate, places, strict=True)))
