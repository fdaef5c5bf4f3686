"""Local search on summed latents: moves, swaps and changes of sharding option, from the devices that decide.

Only work on a costliest device can lower the step time, so every candidate touches one. All candidates of a device are
scored in one call; the best is taken while it improves, and a local optimum is left by a few random moves (iterated
local search). The effort is counted in scored candidates: one seed, one result, on any machine.
"""

from __future__ import annotations

import numpy as np

from shardc.judge import Changes, Judge
from shardc.problem import Floats, Ints, Placement

_CHUNK = 4096  # candidates scored in one call
_KICK = 3  # random moves that leave a local optimum


def improve(judge: Judge, start: Placement, *, evaluations: int, seed: int) -> Placement:
    """The best placement found from a feasible `start` by scoring about `evaluations` candidates."""
    search = _Search(judge, start, np.random.default_rng(seed), evaluations)
    best, best_ms = start, search.step_ms
    while True:
        search.descend()
        if search.step_ms < best_ms:
            best, best_ms = search.placement(), search.step_ms
        if search.budget <= 0:
            return best
        if search.step_ms > best_ms:
            search.reset(best)
        if not search.kick():
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

    def descend(self) -> None:
        """Take the best improvement of a costliest device until none is left or the budget is used up."""
        while self.budget > 0 and (self._improve_by_units() or self._improve_by_options()):
            pass

    def kick(self) -> bool:
        """Move a few random units to random devices; False if nothing can move."""
        moved = 0
        for unit in self._rng.permutation(len(self._block))[: 4 * _KICK]:
            targets = np.flatnonzero(self._may_enter(np.array([unit]))[0])
            if len(targets) and moved < _KICK:
                self._move(int(unit), int(self._rng.choice(targets)))
                moved += 1
        self.step_ms = float(self._judge.step_ms(self._z))
        self.budget -= 1
        return moved > 0

    def _improve_by_units(self) -> bool:
        changes = Changes(self._judge, self._z)
        for device in changes.critical():
            if self._best_move_or_swap(changes, int(device)):
                return True
        return False

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
        if scores[best] >= self.step_ms:
            return False
        if swap[best]:
            self._move(int(partners[best]), device)
        self._move(int(units[best]), int(targets[best]))
        self.step_ms = float(scores[best])
        return True

    def _improve_by_options(self) -> bool:
        """Another sharding option for a block that a costliest device holds, or that is spread over all."""
        problem, judge = self._problem, self._judge
        critical = Changes(judge, self._z).critical()
        held = np.unique(self._block[np.isin(self._device, critical)])
        spread = np.flatnonzero(problem.option_units[self._option] == 0)
        best_ms, best = self.step_ms, None
        for block in np.union1d(held, spread):
            z, memory, taken = self._without(int(block))
            for option in problem.options_of(int(block)):
                if option == self._option[block] or self.budget <= 0:
                    continue
                devices = self._cheapest_devices(int(block), option, z, memory, taken)
                if devices is None:
                    continue
                changed = z.copy()
                changed[devices] += judge.latents[option]
                ms = float(judge.step_ms(changed))
                self.budget -= 1 + problem.cluster.devices // 2
                if ms < best_ms:
                    best_ms, best = ms, (int(block), option, devices)
        if best is None:
            return False
        block, option, devices = best
        current = self.placement()
        where = tuple(sorted(map(int, devices))) if problem.option_units[option] else ()
        self.reset(
            Placement(
                (*current.option[:block], option, *current.option[block + 1 :]),
                (*current.devices[:block], where, *current.devices[block + 1 :]),
            )
        )
        return True

    def _without(self, block: int) -> tuple[Floats, Ints, Ints]:
        """Loads, memory and labels of the devices without a block."""
        option = self._option[block]
        z, memory, taken = self._z.copy(), self._memory.copy(), self._taken.copy()
        spread = self._problem.option_units[option] == 0
        where = np.arange(len(z)) if spread else self._device[self._block == block]
        z[where] -= self._judge.latents[option]
        memory[where] -= self._problem.option_memory[option]
        if not spread:
            taken[np.ix_(self._problem.labels[block], where)] -= 1
        return z, memory, taken

    def _cheapest_devices(self, block: int, option: int, z: Floats, memory: Ints, taken: Ints) -> Ints | None:
        """Where units of an option would go: the devices that are cheapest with them; None if they do not fit."""
        problem = self._problem
        units = int(problem.option_units[option])
        fits = memory + problem.option_memory[option] <= problem.cluster.memory_limit
        if units == 0:
            return np.arange(len(z)) if fits.all() else None
        fits &= problem.allowed[block] & (taken[list(problem.labels[block])] == 0).all(axis=0)
        if fits.sum() < units:
            return None
        after = np.where(fits, self._judge.device_ms(z + self._judge.latents[option]), np.inf)
        return np.sort(np.argsort(after, kind="stable")[:units])

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
