"""Local search on summed latents: moves, swaps and changes of sharding option, from the devices that decide.

Only work on a costliest device can lower the step time, so every candidate touches one. Candidates are scored many
in one call; the best is taken while it improves, and a local optimum is left by a few random moves (iterated
local search). The effort is counted in scored candidates: one seed, one result, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shardc.judge import Changes, Judge
from shardc.problem import Floats, Ints, Placement

_CHUNK = 256  # candidates scored in one call, drawn at random where there are more: many small steps beat few best ones
_LEAST_GAIN = 1e-6  # ms: above what rounding could make of two equal placements
_PATIENCE = 60  # kicks without a better placement before the search ends early
_KICK = 3  # random moves that leave a local optimum


def improve(judge: Judge, start: Placement, *, evaluations: int, seed: int) -> Placement:
    """The best placement found from a feasible `start` by scoring about `evaluations` candidates."""
    search = _Search(judge, start, np.random.default_rng(seed), evaluations)
    best, best_ms = start, search.step_ms
    idle_kicks = 0
    while search.budget > 0 and idle_kicks < _PATIENCE:
        for _ in search.descend():
            if search.step_ms < best_ms:
                best, best_ms, idle_kicks = search.placement(), search.step_ms, 0
        if search.step_ms > best_ms:
            search.reset(best)
        idle_kicks += 1
        if not search.kick():
            break
    return best


class _Search:
    """One placement being changed in place. Sums are exact (see `shardc.judge`), so adding and removing is lossless."""

    def __init__(self, judge: Judge, start: Placement, rng: np.random.Generator, budget: int) -> None:
        self._judge = judge
        self._problem = judge.problem
        self._rng = rng
        self.budget = budget
        self.reset(start)

    def reset(self, placement: Placement) -> None:
        """Start again from a placement."""
        problem = self._problem
        self._option = np.array(placement.option)
        count = problem.option_units[self._option]
        self._block = np.repeat(np.arange(len(count)), count)  # int[U]: the block of every free unit
        self._device = np.array([d for devices in placement.devices for d in devices], dtype=np.int64)  # int[U]
        self._z, self._memory = self._judge.loads(placement)
        labels = 1 + max(label for of_block in problem.labels for label in of_block)
        self._taken = np.zeros((labels, problem.cluster.devices), dtype=np.int64)
        for block, device in zip(self._block, self._device, strict=True):
            self._taken[list(problem.labels[block]), device] += 1
        self.step_ms = float(self._judge.step_ms(self._z))

    def placement(self) -> Placement:
        """The placement as it is now."""
        devices: list[list[int]] = [[] for _ in self._option]
        for block, device in zip(self._block, self._device, strict=True):
            devices[block].append(int(device))
        return Placement(tuple(map(int, self._option)), tuple(tuple(sorted(d)) for d in devices))

    def descend(self) -> Iterator[None]:
        """Take improvements of a costliest device, yielding after each, until none is left or the budget is used up."""
        while self.budget > 0 and (self._improve_by_units() or self._improve_by_options()):
            yield

    def kick(self) -> bool:
        """Leave a local optimum: another option for a random block, or a few random moves. False if nothing can."""
        options_first = self._rng.random() < 0.5
        kicked = (options_first and self._kick_option()) or self._kick_units() or self._kick_option()
        self.step_ms = float(self._judge.step_ms(self._z))
        self.budget -= 1
        return kicked

    def _kick_units(self) -> bool:
        moved = 0
        for unit in self._rng.permutation(len(self._block))[: 4 * _KICK]:
            targets = np.flatnonzero(self._may_enter(np.array([unit]))[0])
            if len(targets) and moved < _KICK:
                self._move(int(unit), int(self._rng.choice(targets)))
                moved += 1
        return moved > 0

    def _kick_option(self) -> bool:
        problem = self._problem
        for block in map(int, self._rng.permutation(len(self._option))[: 4 * _KICK]):
            others = [o for o in problem.options_of(block) if o != self._option[block]]
            if not others:
                continue
            option = int(self._rng.choice(others))
            fits = np.flatnonzero(self._without(block, option)[1])
            units = int(problem.option_units[option])
            if len(fits) >= (units or len(self._z)):
                self._set_option(block, option, self._rng.choice(fits, units, replace=False))
                return True
        return False

    def _improve_by_units(self) -> bool:
        changes = Changes(self._judge, self._z)
        return any(self._best_move_or_swap(changes, int(device)) for device in changes.critical())

    def _best_move_or_swap(self, changes: Changes, device: int) -> bool:
        here = np.flatnonzero(self._device == device)
        if not len(here):
            return False
        unit, target = np.nonzero(self._may_enter(here))
        mine, theirs = np.nonzero(self._may_swap(here, device))
        units = np.concatenate([here[unit], here[mine]])
        targets = np.concatenate([target, self._device[theirs]])
        swap = np.arange(len(units)) >= len(unit)
        partners = np.concatenate([here[unit], theirs])  # of a swap; a move has none, and its entry is not looked at
        if len(units) > _CHUNK:
            chosen = np.sort(self._rng.choice(len(units), _CHUNK, replace=False))
            units, partners, targets, swap = units[chosen], partners[chosen], targets[chosen], swap[chosen]
        if not len(units):
            return False
        given = self._unit_latents(units)
        taken = np.where(swap[:, None], self._unit_latents(partners), 0.0)
        loads = np.stack([self._z[device] - given + taken, self._z[targets] + given - taken], axis=1)
        pair = np.stack([np.full(len(units), device), targets], axis=1)
        scores = changes.two_devices(pair, loads)
        self.budget -= len(scores)
        best = int(scores.argmin())
        if scores[best] >= changes.guide - _LEAST_GAIN:
            return False
        if swap[best]:
            self._move(int(partners[best]), device)
        self._move(int(units[best]), int(targets[best]))
        self.step_ms = float(self._judge.step_ms(self._z))
        return True

    def _improve_by_options(self) -> bool:
        """Another sharding option for a block that a costliest device holds, or that is spread over all."""
        problem, judge = self._problem, self._judge
        changes = Changes(judge, self._z)
        held = np.unique(self._block[np.isin(self._device, changes.critical())])
        spread = np.flatnonzero(problem.option_units[self._option] == 0)
        blocks = np.union1d(held, spread)
        pairs = [(int(b), o) for b in blocks for o in problem.options_of(int(b)) if o != self._option[b]]
        if not pairs:
            return False
        devices = len(self._z)
        if len(pairs) > (most := max(1, _CHUNK * 8 // devices)):
            pairs = [pairs[i] for i in np.sort(self._rng.choice(len(pairs), most, replace=False))]
        self.budget -= len(pairs) * (1 + devices // 2)
        option = np.array([o for _, o in pairs])
        z, fits = map(np.stack, zip(*(self._without(b, o) for b, o in pairs), strict=True))
        latents, units = judge.latents[option], problem.option_units[option]
        after = np.where(fits, judge.device_ms(z + latents[:, None]), np.inf)
        # A free unit goes where it is cheapest: rank devices by their cost with it, take as many as there are units.
        order = after.argsort(axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(devices)[None], axis=1)
        takes = (rank < units[:, None]) | (units == 0)[:, None]
        possible = (fits | ~takes).all(axis=1)
        guide = np.where(possible, Changes.guides(judge, z + takes[..., None] * latents[:, None]), np.inf)
        best = int(guide.argmin())
        if guide[best] >= changes.guide - _LEAST_GAIN:
            return False
        where = np.flatnonzero(takes[best]) if units[best] else np.empty(0, dtype=np.int64)
        self._set_option(pairs[best][0], int(option[best]), where)
        return True

    def _set_option(self, block: int, option: int, devices: Ints) -> None:
        """Give a block another option, its units on `devices` (none if it is spread)."""
        now = self.placement()
        where = tuple(sorted(map(int, devices)))
        self.reset(
            Placement(
                (*now.option[:block], option, *now.option[block + 1 :]),
                (*now.devices[:block], where, *now.devices[block + 1 :]),
            )
        )

    def _without(self, block: int, option: int) -> tuple[Floats, np.ndarray]:
        """Loads float[D, K] of the devices without a block, and bool[D] where a unit of `option` would then fit."""
        problem, old = self._problem, int(self._option[block])
        z, memory = self._z.copy(), self._memory.copy()
        where = self._device[self._block == block] if problem.option_units[old] else np.arange(len(z))
        z[where] -= self._judge.latents[old]
        memory[where] -= problem.option_memory[old]
        fits = memory + problem.option_memory[option] <= problem.cluster.memory_limit
        if problem.option_units[option] == 0:
            return z, fits
        labels = list(problem.labels[block])
        taken = self._taken[labels]
        if problem.option_units[old]:
            taken[:, where] -= 1
        return z, fits & problem.allowed[block] & (taken == 0).all(axis=0)

    def _unit_latents(self, units: Ints) -> Floats:
        return np.asarray(self._judge.latents[self._option[self._block[units]]])

    def _unit_memory(self, units: Ints) -> Ints:
        return np.asarray(self._problem.option_memory[self._option[self._block[units]]])

    def _may_enter(self, units: Ints) -> np.ndarray:
        """bool[N, D]: devices that each unit may move to."""
        room = self._memory[None] + self._unit_memory(units)[:, None] <= self._problem.cluster.memory_limit
        return np.asarray(room & self._admits(units))

    def _may_swap(self, here: Ints, device: int) -> np.ndarray:
        """bool[N, U]: units elsewhere that each unit of a device may change places with."""
        limit = self._problem.cluster.memory_limit
        everyone = np.arange(len(self._block))
        mine, theirs = self._unit_memory(here)[:, None], self._unit_memory(everyone)[None]
        room = (self._memory[device] - mine + theirs <= limit) & (self._memory[self._device] + mine - theirs <= limit)
        welcome = self._admits(here)[:, self._device] & self._admits(everyone)[:, device]
        return np.asarray(room & welcome & (self._device != device)[None])

    def _admits(self, units: Ints) -> np.ndarray:
        """bool[N, D]: devices that pins and exclusions leave open to each unit, where it is not yet."""
        blocks = self._block[units]
        free = self._taken[blocks] == 0  # a block's own label keeps its units on distinct devices
        for row, block in enumerate(blocks):
            if len(self._problem.labels[block]) > 1:
                free[row] &= (self._taken[list(self._problem.labels[block])] == 0).all(axis=0)
        return np.asarray(self._problem.allowed[blocks] & free)

    def _move(self, unit: int, target: int) -> None:
        source, block = int(self._device[unit]), int(self._block[unit])
        option, labels = self._option[block], list(self._problem.labels[block])
        latents, memory = self._judge.latents[option], self._problem.option_memory[option]
        self._z[source] -= latents
        self._z[target] += latents
        self._memory[source] -= memory
        self._memory[target] += memory
        self._taken[labels, source] -= 1
        self._taken[labels, target] += 1
        self._device[unit] = target
