"""Local search on summed latents: exchanges between two devices, changes of sharding option, and random kicks.

Two devices at a time trade up to two units each way. All such exchanges of a pair, thousands, are compared to first
order in one step, and the best few are scored; the best is taken if it improves. When no pair improves any more, blocks
try other sharding options; a local optimum is left by a few random moves, and what was not better is taken back
(iterated local search). The effort is counted in scored candidates: one seed, one result, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations, cycle
from typing import NamedTuple

import numpy as np

from shardc.judge import LIKELY, Changes, Judge
from shardc.problem import Bools, Floats, Ints, Placement

_LEAST_GAIN = 1e-6  # ms: above what rounding could make of two equal placements
_PATIENCE = 60  # kicks without a better placement before the search ends early
_KICK = 3  # random moves that leave a local optimum
_MOST_UNITS = 24  # of one device that one exchange chooses from
_BOTH_WAYS = np.array([[1.0], [-1.0]])  # of a load that one device takes from another
_OPTIONS = 2048  # devices that are scored when options change, over all candidates of one step


def improve(judge: Judge, start: Placement, *, evaluations: int, seed: int, targets: Floats | None = None) -> Placement:
    """The best placement found from a feasible start.

    Args:
        judge: the problem and its costs.
        start: the placement to start from.
        evaluations: how many candidates may be scored, about.
        seed: of every random choice.
        targets: float[P] ms, times of the phases that a lower bound holds possible (see `shardc.judge.Changes`). Every
            other descent aims at them.
    """
    search = _Search(judge, start, np.random.default_rng(seed), evaluations)
    best, best_ms = search.state(), search.step_ms
    idle_kicks = 0
    aims = cycle([None] if targets is None else [targets, None])
    while search.budget > 0 and idle_kicks < _PATIENCE:
        for _ in search.descend(next(aims)):
            if search.step_ms < best_ms:
                best, best_ms, idle_kicks = search.state(), search.step_ms, 0
        if search.step_ms > best_ms:
            search.restore(best)
        idle_kicks += 1
        if not search.kick():
            break
    search.restore(best)
    return search.placement()


class _State(NamedTuple):
    """A placement: the option of every block, and block and device of every free unit, with what devices hold."""

    option: Ints
    block: Ints
    device: Ints
    z: Floats
    memory: Ints
    taken: Ints


class _Search:
    """One placement being changed in place. Sums are exact (see `shardc.judge`), so adding and removing is lossless."""

    def __init__(self, judge: Judge, start: Placement, rng: np.random.Generator, budget: int) -> None:
        self._judge = judge
        self._problem = judge.problem
        self._limit = judge.problem.cluster.memory_limit
        self._rng = rng
        self.budget = budget
        self._several_labels = np.array([len(labels) > 1 for labels in judge.problem.labels])
        devices = judge.problem.cluster.devices
        self._clock = 0
        self._changed = np.zeros(devices, dtype=np.int64)  # when a device changed last
        # When exchanges between two devices were looked for last, with targets and without.
        self._tried_for = np.full((2, devices, devices), -1)
        self._take(self._state_of(start))

    def _state_of(self, placement: Placement) -> _State:
        problem = self._problem
        option = np.array(placement.option)
        count = problem.option_units[option]
        block = np.repeat(np.arange(len(count)), count)
        device = np.array([d for devices in placement.devices for d in devices], dtype=np.int64)
        labels = 1 + max(label for of_block in problem.labels for label in of_block)
        taken = np.zeros((labels, problem.cluster.devices), dtype=np.int64)
        for b, d in zip(map(int, block), map(int, device), strict=True):
            taken[self._labels(b), d] += 1
        return _State(option, block, device, *self._judge.loads(placement), taken)

    def state(self) -> _State:
        """The placement as it is now, to come back to."""
        return _State(
            self._option.copy(),
            self._block.copy(),
            self._device.copy(),
            self._changes.z.copy(),
            self._memory.copy(),
            self._taken.copy(),
        )

    def restore(self, state: _State) -> None:
        """Come back to a placement."""
        self._clock += 1
        self._changed[(self._changes.z != state.z).any(axis=1)] = self._clock
        self._take(state)

    def _take(self, state: _State) -> None:
        self._option, self._block, self._device = state.option.copy(), state.block.copy(), state.device.copy()
        self._memory, self._taken = state.memory.copy(), state.taken.copy()
        self._describe_units()
        self._changes = Changes.of(self._judge, state.z)
        self.step_ms = float(self._judge.step_ms(state.z))

    def placement(self) -> Placement:
        """The placement as it is now."""
        devices: list[list[int]] = [[] for _ in self._option]
        for block, device in zip(self._block, self._device, strict=True):
            devices[block].append(int(device))
        return Placement(tuple(map(int, self._option)), tuple(tuple(sorted(d)) for d in devices))

    def descend(self, targets: Floats | None = None) -> Iterator[None]:
        """Take improvements, yielding after each, until none is left or the budget is used up.

        Args:
            targets: see `shardc.judge.Changes`.
        """
        self._changes = Changes.of(self._judge, self._changes.z, targets)
        self._tried = self._tried_for[int(targets is None)]
        while self.budget > 0 and (self._improve_by_exchange() or self._improve_by_option()):
            self.step_ms = float(self._judge.step_ms(self._changes.z))
            yield

    def kick(self) -> bool:
        """Leave a local optimum: another option for a random block, or a few random moves. False if nothing can."""
        options_first = self._rng.random() < 0.5
        kicked = (options_first and self._kick_option()) or self._kick_units() or self._kick_option()
        self.step_ms = float(self._judge.step_ms(self._changes.z))
        self.budget -= 1
        return kicked

    def _kick_units(self) -> bool:
        moved = 0
        for unit in map(int, self._rng.permutation(len(self._block))[: 4 * _KICK]):
            targets = self._open_to(unit)
            if len(targets) and moved < _KICK:
                source, target = int(self._device[unit]), int(self._rng.choice(targets))
                self._move(unit, source, target)
                pair = np.array([source, target])
                self._put(pair, self._changes.z[pair] - self._unit_latents[unit] * _BOTH_WAYS)
                moved += 1
        return moved > 0

    def _kick_option(self) -> bool:
        for block in map(int, self._rng.permutation(len(self._option))[: 4 * _KICK]):
            others = [o for o in self._problem.options_of(block) if o != self._option[block]]
            if not others:
                continue
            option = self._rng.choice(others, 1)
            fits = np.flatnonzero(self._without(option)[1][0])
            units = int(self._problem.option_units[option[0]])
            if len(fits) >= (units or len(self._memory)):
                self._set_option(int(option[0]), self._rng.choice(fits, units, replace=False))
                return True
        return False

    def _improve_by_exchange(self) -> bool:
        """The best exchange between the first two devices that have one that helps."""
        for first, second in self._pairs():
            if self.budget <= 0:
                break
            if self._exchange(first, second):
                return True
            self._tried[first, second] = self._tried[second, first] = self._clock
        return False

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs of devices of which one has changed since they were tried, costly devices first."""
        for first in map(int, self._changes.costly()):
            stale = self._tried[first] < np.maximum(self._changed, self._changed[first])
            stale[first] = False
            for second in map(int, self._rng.permutation(np.flatnonzero(stale))):
                yield first, second

    def _exchange(self, first: int, second: int) -> bool:
        """Trade up to two units each way between two devices, if that helps."""
        changes, pair = self._changes, np.array([first, second])
        mine, theirs = self._movable(first, second), self._movable(second, first)
        given, memory_given = self._sums(mine)
        taken, memory_taken = self._sums(theirs)
        room = self._limit - self._memory[pair]
        possible = None
        if memory_taken.max() > room[0] or memory_given.max() > room[1]:
            more = memory_taken - memory_given[:, None]  # on the first device, and as much less on the second
            possible = (more <= room[0]) & (-more <= room[1])
        self.budget -= LIKELY
        likely = changes.likely(pair, given, taken, possible, self._rng)
        if not len(likely):
            return False
        out, back = np.divmod(likely, len(taken))
        change = (taken[back] - given[out])[:, None] * _BOTH_WAYS
        guide = changes.two_devices(np.broadcast_to(pair, (len(likely), 2)), changes.z[pair] + change)
        best = int(guide.argmin())
        if guide[best] >= changes.guide - _LEAST_GAIN:
            return False
        for units, sets, source, target in (
            (mine, _up_to_two(len(mine))[out[best]], first, second),
            (theirs, _up_to_two(len(theirs))[back[best]], second, first),
        ):
            for unit in sets[sets < len(units)]:
                self._move(int(units[unit]), source, target)
        self._put(pair, changes.z[pair] + change[best])
        return True

    def _movable(self, source: int, target: int) -> Ints:
        """Units of one device that pins and exclusions let another take; a random part if there are very many.

        A device is open to a unit only where none of its block is yet: a label of the block's own sees to that.
        """
        units = np.flatnonzero(self._device == source)
        blocks = self._block[units]
        admitted = self._problem.allowed[blocks, target] & (self._taken[blocks, target] == 0)
        for row in np.flatnonzero(admitted & self._several_labels[blocks]):
            admitted[row] = not self._taken[self._labels(int(blocks[row])), target].any()
        units = units[admitted]
        if len(units) > _MOST_UNITS:
            units = np.sort(self._rng.choice(units, _MOST_UNITS, replace=False))
        return units

    def _open_to(self, unit: int) -> Ints:
        """Devices that a unit may move to."""
        block = int(self._block[unit])
        room = self._memory + self._unit_memory[unit] <= self._limit
        free = ~self._taken[self._labels(block)].any(axis=0)
        return np.flatnonzero(room & free & self._problem.allowed[block])

    def _labels(self, block: int) -> Ints:
        return np.array(self._problem.labels[block])

    def _sums(self, units: Ints) -> tuple[Floats, Ints]:
        """Latents float[M, K] and memory int[M] of all sets of up to two units."""
        one, other = np.append(units, -1)[_up_to_two(len(units))].T
        return self._unit_latents[one] + self._unit_latents[other], self._unit_memory[one] + self._unit_memory[other]

    def _describe_units(self) -> None:
        """Latents float[U + 1, K] and memory int[U + 1] of the free units, and of none."""
        option = self._option[self._block]
        latents, memory = self._judge.latents[option], self._problem.option_memory[option]
        self._unit_latents = np.append(latents, np.zeros((1, latents.shape[1])), axis=0)
        self._unit_memory = np.append(memory, 0)

    def _improve_by_option(self) -> bool:
        """The best of some other sharding options for some blocks, if one helps."""
        problem, judge, changes = self._problem, self._judge, self._changes
        other = np.ones(len(problem.option_units), dtype=bool)
        other[self._option] = False
        option = np.flatnonzero(other)
        if not len(option):
            return False
        devices = len(self._memory)
        if len(option) > (most := max(1, _OPTIONS // devices)):
            option = np.sort(self._rng.choice(option, most, replace=False))
        self.budget -= len(option) * (1 + devices // 2)
        z, fits = self._without(option)
        latents, units = judge.latents[option], problem.option_units[option]
        # A free unit goes where it is cheapest: rank devices by their cost with it, take as many as there are units.
        after = np.where(fits, changes.pressure(z + latents[:, None]) - changes.pressure(z), np.inf)
        order = after.argsort(axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(devices)[None], axis=1)
        takes = (rank < units[:, None]) | (units == 0)[:, None]
        possible = (fits | ~takes).all(axis=1)
        guide = np.where(possible, changes.whole(z + takes[..., None] * latents[:, None]), np.inf)
        best = int(guide.argmin())
        if guide[best] >= changes.guide - _LEAST_GAIN:
            return False
        self._set_option(int(option[best]), np.flatnonzero(takes[best])[: units[best]])
        return True

    def _without(self, option: Ints) -> tuple[Floats, Bools]:
        """What is left without the blocks of N options, and where the options' units would fit.

        Returns:
            Loads float[N, D, K] of the devices without the option's block, and bool[N, D] whether a unit fits then.
        """
        problem = self._problem
        block = problem.option_block[option]
        old = self._option[block]
        held = np.zeros((len(problem.blocks), len(self._memory)), dtype=bool)
        held[self._block, self._device] = True
        held[problem.option_units[self._option] == 0] = True
        held = held[block]
        z = self._changes.z - held[..., None] * self._judge.latents[old][:, None]
        memory = self._memory - held * problem.option_memory[old][:, None]
        fits = memory + problem.option_memory[option][:, None] <= self._limit
        free = problem.option_units[option] > 0
        fits[free] &= problem.allowed[block[free]]
        for row in np.flatnonzero(free & self._several_labels[block]):
            here = held[row] & (problem.option_units[old[row]] > 0)
            fits[row] &= (self._taken[self._labels(int(block[row]))] == here).all(axis=0)
        return z, fits

    def _set_option(self, option: int, devices: Ints) -> None:
        """Shard a block in another way, with a free unit on each of these devices."""
        problem, block = self._problem, int(self._problem.option_block[option])
        old, labels = int(self._option[block]), self._labels(block)[:, None]
        units = self._block == block
        before = self._device[units] if problem.option_units[old] else np.arange(len(self._memory))
        after = devices if problem.option_units[option] else np.arange(len(self._memory))
        z = self._changes.z.copy()
        z[before] -= self._judge.latents[old]
        z[after] += self._judge.latents[option]
        self._memory[before] -= problem.option_memory[old]
        self._memory[after] += problem.option_memory[option]
        self._taken[labels, self._device[units]] -= 1
        self._taken[labels, devices] += 1
        self._option[block] = option
        place = np.searchsorted(self._block, block)
        self._block = np.insert(self._block[~units], place, [block] * len(devices))
        self._device = np.insert(self._device[~units], place, devices)
        self._describe_units()
        devices = np.union1d(before, after)
        self._put(devices, z[devices])

    def _move(self, unit: int, source: int, target: int) -> None:
        """Note that a unit has moved, except in the loads."""
        self._device[unit] = target
        memory = self._unit_memory[unit]
        self._memory[source] -= memory
        self._memory[target] += memory
        for label in self._problem.labels[self._block[unit]]:
            self._taken[label, source] -= 1
            self._taken[label, target] += 1

    def _put(self, devices: Ints, loads: Floats) -> None:
        self._changes.put(devices, loads)
        self._clock += 1
        self._changed[devices] = self._clock


@cache
def _up_to_two(count: int) -> Ints:
    """All sets of up to two of `count` things, int[M, 2]; `count` itself is none. First the empty set."""
    sets = [(count, count), *combinations(range(count + 1), 2)]
    return np.array(sets)
