"""Local search on summed latents: exchanges between two devices, changes of sharding option, and random kicks.

Two devices at a time trade up to two units each way. All such exchanges of a pair, thousands, are compared to first
order in one step, and the best few are scored; the best is taken if it improves. When no pair improves any more,
blocks are taken out and put back, sharded in another way or on other hosts; a local optimum is left by a few random
moves, and what was not better is taken back (iterated local search). The maxima that exchanges lower are soft at
first, so that all devices count and not the costliest alone, and sharper as the effort is spent. The effort is counted
in scored candidates: one seed, one result, on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, cycle
from typing import NamedTuple

import numpy as np

from shardc.judge import LIKELY, SHARPNESS, Changes, Judge
from shardc.problem import Bools, Floats, Ints, Placement, Site, distinct, ranges

_LEAST_GAIN = 1e-6  # ms: above what rounding could make of two equal placements
_PATIENCE = 60  # kicks without a better placement before the search ends early
_HEAT = 1 / 3  # of the effort: what the first descent with each aim takes at most
_SOFTER = 0.1  # of the sharpness of maxima: where the search begins
_KICK = 3  # random moves that leave a local optimum
_MOST_UNITS = 24  # of one device that one exchange chooses from
_OPTIONS = 2048  # devices that are scored when options change, over all candidates of one step
_ALL_LOOKED_AT = 64  # devices: where there are more, a block that is put back looks at some of the lightest
_PARTNERS = 32  # devices that one tries to trade with, and devices that try, before blocks are put back
_COSTLIEST = 8  # devices whose blocks are tried first
_LIGHTEST, _LIGHTEST_HOSTS = 16, 3  # devices, or hosts, that it looks at beyond as many as it has units
_REBUILDS, _REBUILT = 64, 4  # tries to take blocks out and put them back, and the most blocks of one
_MOST_LEFT = 8  # blocks of a type that are all sharded in another way at once
_REBUILT_AT_ONCE = 8192  # devices that are scored for a block of each try
_MOST_COSTLY = 2  # devices whose blocks every other try chooses from
_TRIES = 4  # steps that look at such options before those of all devices are looked at


Watch = Callable[[float, float], bool]
"""Told what share of its effort a search has spent, and the best step time so far in ms; says whether it may go on."""


class Ended(BaseException):
    """Raised by who watches, once, to end a search at once, wherever it is; from then on nothing may go on."""


def improve(
    judge: Judge,
    start: Placement,
    *,
    evaluations: int,
    seed: int,
    targets: Floats | None = None,
    enough_ms: float = 0.0,
    refine: bool = False,
    watch: Watch | None = None,
) -> Placement:
    """The best placement found from a feasible start.

    Args:
        judge: the problem and its costs.
        start: the placement to start from.
        evaluations: how many candidates may be scored, about.
        seed: of every random choice.
        targets: float[P] ms, times of the phases that a lower bound holds possible (see `shardc.judge.Changes`). A
            descent that aims at them races against one that does not, and they take turns from the winner on.
        enough_ms: step time from which on no better one is looked for.
        refine: whether the start is near the best there is: options are changed only where no exchange helps any more,
            not the other way round, and maxima are sharp from the beginning.
        watch: told of the search as it goes on, and may end it, also by raising `Ended`.
    """
    search = _Search(judge, start, np.random.default_rng(seed), evaluations, refine)
    best, best_ms = search.state(), search.step_ms
    idle_kicks = 0

    def goes_on() -> bool:
        done = 1.0 - search.budget / max(evaluations, 1)
        return search.budget > 0 and best_ms > enough_ms and (watch is None or watch(done, best_ms))

    def descend(aim: Floats | None, least_budget: float | None = None) -> None:
        nonlocal best, best_ms, idle_kicks
        racing = least_budget is not None
        left = 1.0 if racing else search.budget / evaluations
        sharpness = SHARPNESS * (1.0 if refine else round(_SOFTER**left, 2))
        for _ in search.descend(aim, sharpness, leave=not racing):
            if search.step_ms < best_ms:
                best, best_ms, idle_kicks = search.state(), search.step_ms, 0
            if search.budget <= (least_budget or 0.0) or not goes_on():
                break

    try:
        aims: list[Floats | None] = [None]
        if targets is not None:
            aims = _race(search, [targets, None], descend, evaluations * _HEAT)
        for aim in cycle(aims):
            if idle_kicks >= _PATIENCE or not goes_on():
                break
            descend(aim)
            if search.step_ms > best_ms:
                search.restore(best)
            idle_kicks += 1
            if not search.kick():
                break
    except Ended:
        if watch is None:  # nobody here would know
            raise
    search.restore(best)
    return search.placement()


def _race(
    search: _Search,
    aims: list[Floats | None],
    descend: Callable[[Floats | None, float], None],
    evaluations: float,
) -> list[Floats | None]:
    """Descend from where a search is with each of some aims, and leave it where the best of them led.

    Returns:
        The aims, that one first.
    """
    start, ends = search.state(), []
    for number, aim in enumerate(aims):
        search.restore(start)
        descend(aim, search.budget - evaluations)
        ends.append((search.step_ms, number, search.state()))
    _, first, end = min(ends, key=lambda end: end[:2])
    search.restore(end)
    return aims[first:] + aims[:first]


class _State(NamedTuple):
    """A placement: the option of every block, what kind of unit it has on every device, and what devices hold."""

    option: Ints
    unit: Ints
    z: Floats
    memory: Ints
    taken: Ints


class _Way(NamedTuple):
    """An option of a block, kinds of its units for some devices, -1 for none, and the guide with them."""

    guide: float
    option: int
    devices: Ints
    put: Ints


class _Search:
    """One placement being changed in place. Sums are exact (see `shardc.judge`), so adding and removing is lossless.

    Attributes:
        budget: candidates that may still be scored.
        step_ms: step time of the placement as it is.
    """

    def __init__(self, judge: Judge, start: Placement, rng: np.random.Generator, budget: int, refine: bool) -> None:
        problem = judge.problem
        self._refine = refine
        self._judge, self._problem, self._rng = judge, problem, rng
        self.budget = budget
        self._limit, self._host_kind = problem.cluster.memory_limit, problem.cluster.kind
        self._devices, self._local = problem.cluster.devices, problem.cluster.devices_per_host
        self._options_of_block = np.bincount(problem.option_block)
        self._several_labels = np.array([len(labels) > 1 for labels in problem.labels])
        # None is the last kind of unit, so that -1 finds it.
        self._latents = np.append(judge.latents, np.zeros((len(judge.latents), 1, judge.latents.shape[2])), axis=1)
        self._unit_memory = np.append(problem.unit_memory, np.zeros((len(problem.unit_memory), 1), np.int64), axis=1)
        self._free = np.append(problem.option_site[problem.unit_option] == Site.DEVICE, False)
        self._type = np.unique(np.array(problem.option_type), return_inverse=True)[1]  # of each option
        # Units of an option are of two kinds at most: columns in pieces differ by one vector.
        counts = np.zeros((len(problem.option_block), 2), dtype=np.int64)
        counts[:, 0] = problem.unit_count[problem.first_unit]
        counts[:, 1] = problem.option_units - counts[:, 0]
        self._counts = counts
        self._sharpness = SHARPNESS
        self._clock = 0
        self._changed = np.zeros(self._devices, dtype=np.int64)  # when a device changed last
        # When exchanges between two devices were looked for last, with targets and without: rows by the first of them.
        self._tried_for: tuple[dict[int, Ints], ...] = ({}, {})
        self._take(self._state_of(start))

    def _state_of(self, placement: Placement) -> _State:
        problem = self._problem
        holdings = problem.holdings(placement)
        unit = np.full((len(problem.blocks), self._devices), -1)
        unit[holdings.block, holdings.device] = holdings.unit
        taken = problem.labelled(holdings)
        return _State(np.array(placement.option), unit, *self._judge.loads(placement), taken)

    def state(self) -> _State:
        """The placement as it is now, to come back to."""
        return _State(
            self._option.copy(), self._unit.copy(), self._changes.z.copy(), self._memory.copy(), self._taken.copy()
        )

    def restore(self, state: _State) -> None:
        """Come back to a placement."""
        self._clock += 1
        self._changed[(self._changes.z != state.z).any(axis=1)] = self._clock
        self._take(state)

    def _take(self, state: _State) -> None:
        self._option, self._unit = state.option.copy(), state.unit.copy()
        self._memory, self._taken = state.memory.copy(), state.taken.copy()
        self._changes = Changes.of(self._judge, state.z, sharpness=self._sharpness)
        self.step_ms = float(self._judge.step_ms(state.z))

    def placement(self) -> Placement:
        """The placement as it is now."""
        problem, places = self._problem, []
        for option, units in zip(self._option, self._unit, strict=True):
            size = int(problem.site_size[problem.option_site[option]])
            of_place = units[::size]
            held = np.flatnonzero(of_place >= 0)
            places.append(tuple(map(int, held[np.argsort(of_place[held], kind="stable")])))
        return Placement(tuple(map(int, self._option)), tuple(places))

    def descend(self, targets: Floats | None, sharpness: float, *, leave: bool) -> Iterator[None]:
        """Take improvements, yielding after each, until none is left or the budget is used up.

        Args:
            targets: see `shardc.judge.Changes`.
            sharpness: likewise.
            leave: whether types that few blocks have are left too.
        """
        self._sharpness = sharpness
        self._changes = Changes.of(self._judge, self._changes.z, targets, sharpness)
        self._tried = self._tried_for[int(targets is None)]
        first = [self._change_option, self._exchange_some]
        ways = [*(reversed(first) if self._refine else first), self._rebuild_some]
        if leave:
            ways.append(self._leave_type)
        while self.budget > 0 and any(way() for way in ways):
            self.step_ms = float(self._judge.step_ms(self._changes.z))
            yield

    def kick(self) -> bool:
        """Leave a local optimum: some blocks rebuilt, another option for one, or random moves. False if nothing can."""
        dice = self._rng.random()
        kicked = (dice < 0.5 and self._rebuild(self._sets_to_rebuild(1), np.inf)) or (
            dice < 0.75 and self._kick_option()
        )
        kicked = kicked or self._kick_units() or self._kick_option()
        self.step_ms = float(self._judge.step_ms(self._changes.z))
        self.budget -= 1
        return kicked

    def _kick_units(self) -> bool:
        moved = 0
        blocks, devices = np.nonzero(self._free[self._unit])
        for number in map(int, self._rng.permutation(len(blocks))[: 4 * _KICK]):
            block, source = int(blocks[number]), int(devices[number])
            targets = self._open_to(block, source)
            if len(targets) and moved < _KICK:
                pair = np.array([source, int(self._rng.choice(targets))])
                latents = self._latents[self._host_kind[pair], self._unit[block, source]]
                self._move(block, source, int(pair[1]))
                self._put(pair, self._changes.z[pair] + latents * [[-1.0], [1.0]])
                moved += 1
        return moved > 0

    def _kick_option(self) -> bool:
        some = self._some_blocks(4 * _KICK, np.arange(len(self._option)))
        for block in map(int, some):
            others = self._others(np.array(self._problem.options_of(block)))
            if not len(others):
                continue
            option = self._rng.choice(others, 1)
            everywhere = np.arange(self._devices)[None]
            _, fits = self._without(option, everywhere)
            dislike = self._rng.random((1, self._devices))
            put, possible = self._choose(option, everywhere, np.where(fits, dislike, np.inf))
            if possible[0]:
                self._set_option(int(option[0]), everywhere[0], put[0])
                return True
        return False

    def _some_blocks(self, count: int, blocks: Ints) -> Ints:
        """So many of the blocks: costly ones more often, but not only them."""
        if not len(blocks):
            return blocks
        weight = np.sqrt(self._judge.single_ms[self._problem.first_unit[self._option[blocks]]]) + _LEAST_GAIN
        return self._rng.choice(blocks, min(count, len(blocks)), replace=False, p=weight / weight.sum())

    def _exchange_some(self) -> bool:
        """The best exchange between the first two devices that have one that helps."""
        for first, second in self._pairs():
            if self.budget <= 0:
                break
            if self._exchange(first, second):
                return True
            self._tried_with(first)[second] = self._clock
            if second in self._tried:
                self._tried[second][first] = self._clock
        return False

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs of devices of which one has changed since they were tried, costly devices first; of many, some."""
        firsts = 0
        for first in map(int, self._changes.costly()):
            stale = self._tried_with(first) < np.maximum(self._changed, self._changed[first])
            stale[first] = False
            seconds = self._rng.permutation(np.flatnonzero(stale))[:_PARTNERS]
            for second in map(int, seconds):
                yield first, second
            firsts += len(seconds) > 0
            if firsts == _PARTNERS:
                break

    def _tried_with(self, device: int) -> Ints:
        """int[D]: when exchanges between one device and others were looked for last."""
        if device not in self._tried:
            row = np.full(self._devices, -1)
            for other, of_other in self._tried.items():
                row[other] = of_other[device]
            self._tried[device] = row
        return self._tried[device]

    def _exchange(self, first: int, second: int) -> bool:
        """Trade up to two units each way between two devices, if that helps."""
        changes, pair = self._changes, np.array([first, second])
        mine, theirs = self._movable(first, second), self._movable(second, first)
        given, memory_given = self._sums(mine, first, pair)
        taken, memory_taken = self._sums(theirs, second, pair)
        possible = None
        for given_of, taken_of, limit, memory in zip(
            memory_given, memory_taken, self._limit, self._memory, strict=True
        ):
            room = limit[pair] - memory[pair]
            if taken_of.max() > room[0] or given_of.max() > room[1]:
                more = taken_of - given_of[:, None]  # on the first device, and as much less on the second
                fits = (more <= room[0]) & (-more <= room[1])
                possible = fits if possible is None else possible & fits
        self.budget -= LIKELY
        likely = changes.likely(pair, given, taken, possible, self._rng)
        if not len(likely):
            return False
        out, back = np.divmod(likely, taken.shape[1])
        change = np.stack([taken[0, back] - given[0, out], given[1, out] - taken[1, back]], axis=1)
        guide = changes.some_devices(np.broadcast_to(pair, (len(likely), 2)), changes.z[pair] + change)
        best = int(guide.argmin())
        if guide[best] >= changes.guide - _LEAST_GAIN:
            return False
        for blocks, sets, source, target in (
            (mine, _up_to_two(len(mine))[out[best]], first, second),
            (theirs, _up_to_two(len(theirs))[back[best]], second, first),
        ):
            for which in sets[sets < len(blocks)]:
                self._move(int(blocks[which]), source, target)
        self._put(pair, changes.z[pair] + change[best])
        return True

    def _movable(self, source: int, target: int) -> Ints:
        """Blocks whose unit on one device pins and exclusions let another take; a random part if there are very many.

        A device is open to a unit only where none of its block is yet: a label of the block's own sees to that.
        """
        blocks = np.flatnonzero(self._free[self._unit[:, source]])
        admitted = self._problem.allowed[blocks, target] & (self._taken[blocks, target] == 0)
        if source // self._local != target // self._local:
            admitted &= ~self._problem.option_one_host[self._option[blocks]]
        for row in np.flatnonzero(admitted & self._several_labels[blocks]):
            admitted[row] = not self._taken[self._problem.labels[blocks[row]], target].any()
        blocks = blocks[admitted]
        if len(blocks) > _MOST_UNITS:
            blocks = np.sort(self._rng.choice(blocks, _MOST_UNITS, replace=False))
        return blocks

    def _open_to(self, block: int, source: int) -> Ints:
        """Devices that a block's unit on one device may move to."""
        room = (self._memory + self._unit_memory[:, self._unit[block, source], None] <= self._limit).all(axis=0)
        free = ~self._taken[self._problem.labels[block]].any(axis=0)
        if self._problem.option_one_host[self._option[block]]:
            free &= np.arange(self._devices) // self._local == source // self._local
        return np.flatnonzero(room & free & self._problem.allowed[block])

    def _sums(self, blocks: Ints, source: int, pair: Ints) -> tuple[Floats, list[Ints]]:
        """Latents float[2, N, K] on either device, and memory by kind int[N], of all sets of up to two of its units."""
        units = np.append(self._unit[blocks, source], -1)
        first, second = _up_to_two(len(blocks)).T
        memory, kinds = [bytes[units] for bytes in self._unit_memory], self._host_kind[pair]
        latents = [self._latents[kind, units] for kind in kinds[: 1 + (kinds[0] != kinds[1])]]
        sums = np.stack([of_kind[first] + of_kind[second] for of_kind in latents])
        return np.broadcast_to(sums, (2, *sums.shape[1:])), [of_kind[first] + of_kind[second] for of_kind in memory]

    def _change_option(self) -> bool:
        """The best of some other ways to shard and place some blocks, if one helps."""
        option = self._others(np.arange(len(self._problem.option_block)))
        if self._devices <= _ALL_LOOKED_AT:
            return self._put_back(option, far=True)
        # What takes up all devices, now or then, is looked at apart.
        near = self._site(option) != Site.CLUSTER
        near &= self._site(self._option[self._problem.option_block[option]]) != Site.CLUSTER
        return any(self._put_back(option[near], far=False) for _ in range(_TRIES)) or self._put_back(
            option[~near], far=True
        )

    def _site(self, option: Ints) -> Ints:
        return self._problem.option_site[option]

    def _others(self, option: Ints) -> Ints:
        """The options of those given that would change anything: others than now, or on other hosts."""
        other = self._option[self._problem.option_block[option]] != option
        return np.asarray(option[other | (self._site(option) == Site.HOST) & (self._local < self._devices)])

    def _put_back(self, option: Ints, *, far: bool) -> bool:
        """The best of some of the options given, each where it is cheapest, if one helps."""
        way = self._best_way(option, far=far)
        if way is None or way.guide >= self._changes.guide - _LEAST_GAIN:
            return False
        self._set_option(way.option, way.devices, way.put)
        return True

    def _best_way(self, option: Ints, *, far: bool) -> _Way | None:
        """The best of some of the options given, each where it is cheapest; None if none fits."""
        if not len(option):
            return None
        changes, everywhere = self._changes, np.arange(self._devices)
        most = self._devices if far else 3 * _LIGHTEST
        option = self._some(option, max(2, _OPTIONS // most))
        pool = np.broadcast_to(everywhere, (len(option), self._devices)) if far else self._pool(option)
        self.budget -= max(LIKELY, len(option) * (1 + pool.shape[1] // 2))
        z, fits = self._without(option, pool)
        with_unit = z + self._latents[self._host_kind[pool], self._problem.first_unit[option][:, None]]
        dislike = np.where(fits, changes.pressure(with_unit) - changes.pressure(z), np.inf)
        put, possible = self._choose(option, pool, dislike)
        if not possible.any():
            return None
        z += self._latents[self._host_kind[pool], put]
        guide = np.where(possible, changes.whole(z) if far else changes.some_devices(pool, z), np.inf)
        best = int(guide.argmin())
        return _Way(float(guide[best]), int(option[best]), pool[best], put[best])

    def _rebuild_some(self) -> bool:
        """Rebuild a few blocks, in the best of several tries, if that helps."""
        options = len(self._problem.option_block) / len(self._option)
        tries = max(1, min(_REBUILDS, int(_REBUILT_AT_ONCE / (self._devices * options))))
        return self._rebuild(self._sets_to_rebuild(tries), self._changes.guide - _LEAST_GAIN)

    def _leave_type(self) -> bool:
        """Shard all blocks of one type in other ways, if there are few and that helps.

        Phases that no block takes part in cost nothing, but each block by itself is better off in one that is there.
        """
        problem, types = self._problem, self._type[self._option]
        work = self._judge.single_ms[problem.first_unit[self._option]]
        for left in map(int, distinct(types)):
            blocks = np.flatnonzero(types == left)
            others = np.bincount(problem.option_block[self._type != left], minlength=len(types))
            if len(blocks) > _MOST_LEFT or not others[blocks].all():
                continue
            blocks = blocks[np.argsort(-work[blocks], kind="stable")]
            if self._rebuild(blocks[None], self._changes.guide - _LEAST_GAIN, left):
                return True
        return False

    def _rebuild(self, blocks: Ints, below: float, left: int = -1) -> bool:
        """Take a few blocks out and put them back one after the other, where each is cheapest then.

        That changes several blocks at once where changing one alone does not help.

        Args:
            blocks: int[R, M], sets of blocks that are tried.
            below: what the guide has to be less than.
            left: a type that they may not have afterwards.

        Returns:
            Whether it is in the best of the tries, which then is taken.
        """
        problem, changes, kinds = self._problem, self._changes, self._host_kind
        tries = len(blocks)
        old = self._unit[blocks]  # [R, M, D]
        z = changes.z - self._latents[kinds, old].sum(axis=1)
        memory = self._memory[:, None] - self._unit_memory[:, old].sum(axis=2)  # of each kind, [R, D]
        options, units = np.empty_like(blocks), np.full_like(old, -1)
        guide = np.zeros(tries)
        for step in range(blocks.shape[1]):
            start = problem.first_option[blocks[:, step]]
            each = self._options_of_block[blocks[:, step]]
            attempt, option = np.repeat(np.arange(tries), each), ranges(start, each)
            other = self._type[option] != left
            attempt, option = attempt[other], option[other]
            each = np.bincount(attempt, minlength=tries)
            largest = problem.first_unit[option][:, None]
            block = blocks[attempt, step]
            fits = problem.allowed[block]
            for limit, used, bytes in zip(self._limit, memory, self._unit_memory, strict=True):
                fits &= used[attempt] + bytes[largest] <= limit
            for row in np.flatnonzero(self._several_labels[block]):
                fits[row] &= self._apart(blocks[attempt[row]], step, units[attempt[row]])
            without = z[attempt]  # [N, D, K]
            more = changes.pressure(without + self._latents[kinds, largest]) - changes.pressure(without)
            pool = np.broadcast_to(np.arange(self._devices), fits.shape)
            put, possible = self._choose(option, pool, np.where(fits, more, np.inf))
            after = without + self._latents[kinds, put]
            found = np.where(possible, changes.whole(after), np.inf)
            self.budget -= max(LIKELY, len(option) * (1 + self._devices // 2) // 2)
            ends = np.cumsum(each)
            best = np.array([first + found[first:end].argmin() for first, end in zip(ends - each, ends, strict=True)])
            guide = np.maximum(found[best], np.where(np.isinf(guide), np.inf, 0.0))
            z, options[:, step], units[:, step] = after[best], option[best], put[best]
            memory += self._unit_memory[:, put[best]]
        winner = int(guide.argmin())
        if not guide[winner] < below:
            return False
        for option, put in zip(options[winner], units[winner], strict=True):
            self._set_option(int(option), np.arange(self._devices), put)
        return True

    def _sets_to_rebuild(self, tries: int) -> Ints:
        """Sets of some blocks, int[R, M]."""
        count = int(self._rng.integers(2, _REBUILT + 1))
        return np.stack([self._some_to_rebuild(count) for _ in range(tries)])

    def _some_to_rebuild(self, count: int) -> Ints:
        """Some blocks, every other time of those that the costliest devices hold."""
        if self._rng.random() < 0.5:
            costliest = self._changes.costly()[:_MOST_COSTLY]
            held = np.flatnonzero((self._unit[:, costliest] >= 0).any(axis=1))
            if len(held) >= count:
                return self._some_blocks(count, held)
        return self._some_blocks(count, np.arange(len(self._option)))

    def _apart(self, blocks: Ints, step: int, units: Ints) -> Bools:
        """bool[D]: devices without what a block must not share them with, when `blocks` int[M] are taken out.

        Those before it are back already, as units int[M, D].
        """
        labels = self._problem.labels[blocks[step]]
        taken = self._taken[labels].copy()
        for other, put in zip(blocks, units, strict=True):
            shared = np.isin(labels, self._problem.labels[other])
            taken[shared] += (put >= 0) * 1 - (self._unit[other] >= 0)
        return np.asarray(~taken.any(axis=0))

    def _some(self, option: Ints, count: int) -> Ints:
        """Some of many options: half of them of blocks on the costliest devices, ascending."""
        if len(option) <= count:
            return option
        costliest = self._changes.costly()[:_COSTLIEST]
        pressing = (self._unit[:, costliest] >= 0).any(axis=1) & (self._site(self._option) != Site.CLUSTER)
        urgent = pressing[self._problem.option_block[option]]
        first = self._rng.permutation(option[urgent])[: count // 2]
        rest = self._rng.choice(option[~urgent], min(count - len(first), len(option[~urgent])), replace=False)
        return np.sort(np.concatenate([first, rest]))

    def _pool(self, option: Ints) -> Ints:
        """Devices that blocks may be put back on, int[N, M]: those that have them now, and the lightest ones."""
        problem, pressures = self._problem, self._changes.pressure(self._changes.z)
        devices = np.argsort(pressures, kind="stable")
        hosts = np.argsort(pressures.reshape(-1, self._local).sum(axis=1), kind="stable")
        blocks, units = problem.option_block[option], problem.option_units[option]
        on_hosts = (self._site(option) == Site.HOST) | problem.option_one_host[option]
        now = (self._unit[blocks] >= 0).sum(axis=1)
        size = now + np.where(on_hosts, (units + _LIGHTEST_HOSTS) * self._local, units + _LIGHTEST)
        pool = np.empty((len(option), min(int(size.max()), self._devices)), dtype=np.int64)
        for row, block in enumerate(blocks):
            parts = [np.flatnonzero(self._unit[block] >= 0), devices[: pool.shape[1]]]
            if on_hosts[row]:
                some = hosts[: units[row] + _LIGHTEST_HOSTS, None] * self._local
                parts.insert(1, (some + np.arange(self._local)).ravel())
            found = np.concatenate(parts)
            first = np.sort(np.unique(found, return_index=True)[1])
            pool[row] = found[first[: pool.shape[1]]]
        return pool

    def _without(self, option: Ints, pool: Ints) -> tuple[Floats, Bools]:
        """What devices int[N, M] hold without the blocks of N options, and where the options' units would fit.

        Returns:
            Loads float[N, M, K] without the option's block, and bool[N, M] whether its largest unit fits then.
        """
        problem = self._problem
        block = problem.option_block[option]
        old = self._unit[block[:, None], pool]
        z = self._changes.z[pool] - self._latents[self._host_kind[pool], old]
        fits = problem.allowed[block[:, None], pool]
        for limit, memory, bytes in zip(self._limit, self._memory, self._unit_memory, strict=True):
            fits &= memory[pool] - bytes[old] + bytes[problem.first_unit[option]][:, None] <= limit[pool]
        for row in np.flatnonzero(self._several_labels[block]):
            fits[row] &= (self._taken[problem.labels[block[row]]][:, pool[row]] == (old[row] >= 0)).all(axis=0)
        return z, fits

    def _choose(self, option: Ints, pool: Ints, dislike: Floats) -> tuple[Ints, Bools]:
        """Kinds of units to put on devices int[N, M], -1 for none: where they are disliked least, the largest first.

        Args:
            option: int[N].
            pool: int[N, M].
            dislike: float[N, M]; infinite where nothing may be put.

        Returns:
            int[N, M] kinds, and bool[N] whether there is room for all units.
        """
        problem, site = self._problem, self._site(option)
        dislike = dislike.copy()
        for row in np.flatnonzero(problem.option_one_host[option]):
            units, host = problem.option_units[option[row]], pool[row] // self._local
            by_host = {h: np.sort(dislike[row, host == h])[:units] for h in sorted(set(host.tolist()))}
            sums = {h: float(least.sum()) if len(least) == units else np.inf for h, least in by_host.items()}
            dislike[row, host != min(sums, key=sums.__getitem__)] = np.inf
        rank = np.empty(pool.shape, dtype=np.int64)
        np.put_along_axis(rank, dislike.argsort(axis=1, kind="stable"), np.arange(pool.shape[1])[None], axis=1)
        rank[site == Site.CLUSTER] = 0
        for row in np.flatnonzero(site == Site.HOST):  # a host is as bad as all its devices together
            host = pool[row] // self._local
            total = np.bincount(host, dislike[row], minlength=self._devices // self._local)
            total[np.bincount(host, minlength=len(total)) < self._local] = np.inf
            dislike[row], rank[row] = total[host], total.argsort(kind="stable").argsort()[host]
        first, counts = problem.first_unit[option][:, None], self._counts[option]
        put = np.where(rank < counts[:, :1], first, first + 1)
        put[rank >= counts.sum(axis=1, keepdims=True)] = -1
        enough = (put >= 0).sum(axis=1) == counts.sum(axis=1) * problem.site_size[site]
        return put, enough & np.isfinite(np.where(put >= 0, dislike, 0.0)).all(axis=1)

    def _set_option(self, option: int, devices: Ints, put: Ints) -> None:
        """Shard a block in another way, with units of these kinds on these devices, -1 for none."""
        block = int(self._problem.option_block[option])
        kinds = self._host_kind[devices]
        old = self._unit[block, devices]
        z = self._changes.z[devices] + self._latents[kinds, put] - self._latents[kinds, old]
        self._memory[:, devices] += self._unit_memory[:, put] - self._unit_memory[:, old]
        for label in self._problem.labels[block]:
            self._taken[label, devices] += (put >= 0) * 1 - (old >= 0)
        self._option[block] = option
        self._unit[block, devices] = put
        changed = (put >= 0) | (old >= 0)
        self._put(devices[changed], z[changed])

    def _move(self, block: int, source: int, target: int) -> None:
        """Note that a block's unit has moved, except in the loads."""
        kind = self._unit[block, source]
        self._unit[block, target], self._unit[block, source] = kind, -1
        self._memory[:, source] -= self._unit_memory[:, kind]
        self._memory[:, target] += self._unit_memory[:, kind]
        labels = self._problem.labels[block]
        self._taken[labels, source] -= 1
        self._taken[labels, target] += 1

    def _put(self, devices: Ints, loads: Floats) -> None:
        self._changes.put(devices, loads)
        self._clock += 1
        self._changed[devices] = self._clock


@cache
def _up_to_two(count: int) -> Ints:
    """All sets of up to two of `count` things, int[M, 2]; `count` itself is none. First the empty set."""
    sets = [(count, count), *combinations(range(count + 1), 2)]
    return np.array(sets)
