"""Placements near another one: step time against the bytes that have to move to get there.

Every table stays where it is, and only what is new, changed or has lost its place is put somewhere. From there the
search goes on in rounds: some tables are let go, so many that all of them together are within a budget of bytes; local
search places them while everything else stays; and what then moved for little or nothing goes back, the bytes that
bought least first (`_homeward`). Budgets rise from round to round. Every placement on the way is a trade of step time
against bytes; those that no other one beats in both are the front. No limit that a user sets takes part in that: of one
front, a higher limit never gives a slower plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from shardc.judge import Changes, Judge
from shardc.moves import Pieces, Weighing, holdings, transfers
from shardc.placers.greedy import cost_greedy
from shardc.placers.local_search import Ended, Watch, improve
from shardc.problem import Bools, Cluster, Floats, Ints, Placement, Problem, Site

Way = tuple[int, tuple[int, ...]]
"""An option of a block and the places of its units."""

BUDGETS = ((0.0, 0.1), (0.002, 0.1), (0.005, 0.2), (0.02, 0.45), (0.05, 0.05), (0.15, 0.05), (0.5, 0.05))
"""Shares of the model's bytes that rounds may move, and the part of the effort for each."""

_FIRST = 10  # part of the effort that placing what cannot stay has
_SCOUTING = ((0.02, 0.2),)  # as `BUDGETS`: what tells what to expect of a search
_EACH, _LEAST = 200, 3000  # candidates that a round scores for each block that it lets go, and at least
_STATED = 1e-5  # relative: plans state six digits, and what differs by less is equal
_COSTLIEST = 2  # devices whose blocks are let go more often
_PRESSING = 10.0  # times
_AT_ONCE = 1 << 21  # numbers of the loads that are scored in one call


@dataclass(frozen=True, slots=True)
class Base:
    """Where the tables of a problem are before.

    Attributes:
        pieces: for each table where it is; None for a table that is new.
        ways: for each block the option and the places by which everything, or most of it, stays where it is; None
            where the problem has none.
        weighing: what counts as a byte that moves.
    """

    pieces: tuple[Pieces | None, ...]
    ways: tuple[Way | None, ...]
    weighing: Weighing

    def sizes(self, problem: Problem) -> Ints:
        """int[B], bytes of the tables of each block: weights and optimizer state."""
        return self._bytes(problem, [(table.rows, table.dim) for table in problem.tables])

    def sizes_there(self, problem: Problem) -> Ints:
        """int[B], bytes of each block that devices already hold somewhere, and that can move."""
        before = [(0, 0) if pieces is None else pieces.extent for pieces in self.pieces]
        now = [(table.rows, table.dim) for table in problem.tables]
        return self._bytes(problem, [(min(a, c), min(b, d)) for (a, b), (c, d) in zip(before, now, strict=True)])

    def _bytes(self, problem: Problem, sizes: Sequence[tuple[int, int]]) -> Ints:
        of_table = self.weighing.bytes(np.array([(0, 0, *size) for size in sizes]))
        return np.array([int(of_table[list(members)].sum()) for members in problem.blocks])


@dataclass(frozen=True, slots=True)
class Point:
    """A placement between the base and the fastest one.

    Attributes:
        moved_bytes: what devices have to get from other devices.
        held_bytes: what all shards are, each replica counted.
        step_time_ms: predicted step time.
        placement: the placement; its column blocks are where as much of them as possible is already.
    """

    moved_bytes: int
    held_bytes: int
    step_time_ms: float
    placement: Placement

    @property
    def moved_share(self) -> float:
        """Moved bytes as a share of what all shards are (see `shardc.moves`)."""
        return self.moved_bytes / max(self.held_bytes, 1)


def near(
    judge: Judge,
    base: Base,
    others: Sequence[Placement],
    *,
    evaluations: Sequence[int],
    seed: int,
    targets: Floats | None = None,
    enough_ms: float = 0.0,
    watch: Watch = lambda done, step_ms: True,
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Find placements that trade step time against moved bytes.

    Args:
        judge: the problem and its costs.
        base: where tables are before.
        others: feasible placements that take part.
        evaluations: how many candidates may be scored, about, before one begins anew with the next number of them.
        seed: of every random choice.
        targets: see `shardc.placers.local_search.improve`.
        enough_ms: step time from which on no better one is looked for.
        watch: told of the search as it goes on, and may end it, also by raising `Ended`.

    Raises:
        Ended: by `watch`, before anything near the base was found.

    Returns:
        The front, placements that none found is better than in both, the fewest bytes first and the fastest last; and
        the others as points.
    """
    rng = np.random.default_rng(seed)

    def search(wanted: Mapping[int, int]) -> _Near:
        return _Near(judge, base, rng, targets, enough_ms, watch, wanted)

    compared = tuple(map(search({}).point, others))
    found = list(compared)
    try:
        for points in _explored(search, _wanted(judge, base, others), evaluations):
            found += points
    except Ended:
        if len(found) == len(compared):
            raise
    return _front(found), compared


def _explored(
    search: Callable[[Mapping[int, int]], _Near], wanted: Iterable[Mapping[int, int]], evaluations: Sequence[int]
) -> Iterator[list[Point]]:
    """What a search finds that chooses all options, or one with wanted options where scouting finds that better."""
    least = evaluations[0]
    free = search({})
    yield free.restored(least // _FIRST)
    searches = [free]
    for options in wanted:
        if not free.has(options):
            other = search(options)
            yield other.restored(least // _FIRST)
            searches.append(other)
    searches = [begun for begun in searches if begun.front]
    if len(searches) > 1:
        for scout in searches:
            yield from scout.rounds(_SCOUTING, least)
    if searches:
        best = min(searches, key=lambda scout: min(map(cost_of, scout.front)))
        for effort in evaluations:
            yield from best.rounds(BUDGETS, effort)


def _wanted(judge: Judge, base: Base, others: Sequence[Placement]) -> Iterator[dict[int, int]]:
    """The options that other placements have for blocks that are new or of another size.

    Which of them is best depends on how much room the other tables make, which local search finds out only later.
    """
    changed = np.flatnonzero(base.sizes_there(judge.problem) < base.sizes(judge.problem)).tolist()
    for placement in others:
        yield {block: placement.option[block] for block in changed}


def cost_of(point: Point) -> tuple[float, int]:
    """What weighs a percent of all bytes like a percent of step time; of equals, the fewer bytes."""
    return (point.step_time_ms * (1.0 + point.moved_share), point.moved_bytes)


def _front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other one is better than, or as good as, in both, as far as plans state times."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.moved_bytes, p.step_time_ms)):
        if not front or point.step_time_ms < front[-1].step_time_ms * (1.0 - _STATED):
            front.append(point)
    return tuple(front)


@dataclass(frozen=True)
class _Rest(Cluster):
    """What is left of a cluster beside tables that stay.

    Attributes:
        room: int[M, D], bytes that are left of each device.
    """

    room: Ints = field(default_factory=lambda: np.zeros((1, 0), dtype=np.int64))

    @cached_property
    def memory_limit(self) -> Ints:
        """int[M, D], what is left."""
        return self.room


@dataclass(frozen=True)
class _Part(Judge):
    """Judges placements of some blocks while all others stay.

    Attributes:
        whole: the judge of all of them.
        options: int[O], the options of the whole problem that the part has.
        units: int[U], the kinds of units likewise.
        beside: float[D, K], summed latents of what stays.
    """

    whole: Judge
    options: Ints
    units: Ints
    beside: Floats

    @cached_property
    def latents(self) -> Floats:
        """float[G, U, K], those of the whole problem: on its grid, so that sums remain exact."""
        return self.whole.latents[:, self.units]

    def loads(self, placement: Placement) -> tuple[Floats, Ints]:
        """Latents with those of what stays; memory without it, as the room that is left does."""
        z, memory = super().loads(placement)
        return z + self.beside, memory


class _Near:
    """A search near a base.

    Where `wanted` has an option for a block, it has no other.

    Attributes:
        size: int[B], bytes of each block.
        done: share of the rounds that are over.
        ended: whether whoever watches has ended the search.
        front: of what it has found; empty before `restored`, or if that found no way.
    """

    def __init__(
        self,
        judge: Judge,
        base: Base,
        rng: np.random.Generator,
        targets: Floats | None,
        enough_ms: float,
        watch: Watch,
        wanted: Mapping[int, int],
    ) -> None:
        self._judge, self._problem, self._base, self._rng = judge, judge.problem, base, rng
        self._targets, self._enough_ms, self._watch = targets, enough_ms, watch
        self._wanted = wanted
        self._bytes: dict[tuple[int, Way], tuple[int, int]] = {}
        self._in_order: dict[Way, tuple[int, ...]] = {}
        self._ways = [self._as_wanted(block, way) for block, way in enumerate(base.ways)]
        self._homes = self._ways
        self.size = base.sizes(judge.problem)
        self._total = int(self.size.sum())
        self._there = base.sizes_there(judge.problem)
        self._apart = any(len(labels) > 1 for labels in judge.problem.labels)
        self.done, self.ended = 0.0, False
        self.front: tuple[Point, ...] = ()

    def point(self, placement: Placement) -> Point:
        """A placement with its columns where most of them are already, and what it costs."""
        aligned = Placement(
            placement.option,
            tuple(map(self._aligned, placement.option, placement.places)),
        )
        moved, held = map(sum, zip(*map(self._bytes_of, range(len(self.size)), _ways(aligned)), strict=True))
        return Point(moved, held, self._judge.judge(aligned).step_time_ms, aligned)

    def has(self, options: Mapping[int, int]) -> bool:
        """Whether blocks have some options where fewest bytes move."""
        return bool(self.front) and all(self.front[0].placement.option[b] == o for b, o in options.items())

    def restored(self, evaluations: int) -> list[Point]:
        """What stays where it is as long as it may, and the rest where it is cheapest; empty if no way is found."""
        stay = self._staying()
        blocks = range(len(self._problem.blocks))
        free = [block for block in blocks if block not in stay]
        smallest = sorted(stay, key=lambda block: (int(self.size[block]), block))
        more = 0
        while True:
            started = self._started({b: w for b, w in stay.items() if b not in free}, free)
            if started is not None:
                break
            if more >= len(smallest):
                return []
            more = max(1, 2 * more)
            free = sorted({*free, *smallest[:more]})
        pressure = self._judge.device_ms(self._judge.loads(started)[0])
        closest = [way or self._closest(block, pressure) for block, way in enumerate(self._ways)]
        self._homes = [self._as_wanted(block, way) for block, way in enumerate(closest)]
        found = self._improved(started, free, evaluations)
        self.front = _front(found)
        return found

    def rounds(self, budgets: Sequence[tuple[float, float]], evaluations: int) -> Iterator[list[Point]]:
        """Rounds with each of some budgets (see `BUDGETS`), each from the fastest within it that there is."""
        before = 0.0
        for share, part in budgets:
            left, dense = int(part * evaluations), True
            while left > 0 and self.front and not self.ended and self.front[-1].step_time_ms > self._enough_ms:
                self.done = before + part - left / evaluations
                budget = self.front[0].moved_bytes + int(share * self._total)
                now = [point for point in self.front if point.moved_bytes <= budget][-1]
                free = self._let_go(now, budget, dense=dense)
                effort = min(left, max(_LEAST, _EACH * len(free)))
                left, dense = left - effort, False
                steps = self._improved(now.placement, free, effort)
                yield steps
                self.front = _front([*self.front, *steps])
            before += part

    def _closest(self, block: int, pressure: Floats) -> Way | None:
        """As many column blocks as a table had, on the ranks of theirs that it may still be on, and lighter others."""
        problem, (table, *others) = self._problem, self._problem.blocks[block]
        old = self._base.pieces[table]
        if others or old is None or old.replicas:
            return None
        widest_first = np.argsort(-old.area[:, 3], kind="stable")
        ranks = old.rank[widest_first].tolist()
        open_to = problem.allowed[block].copy()
        stay = [rank for rank in ranks if rank < len(open_to) and open_to[rank]]
        for option in problem.options_of(block):
            if not stay or problem.option_site[option] != Site.DEVICE or problem.option_units[option] != len(ranks):
                continue
            if problem.option_one_host[option]:
                hosts = np.arange(len(open_to)) // problem.cluster.devices_per_host
                open_to &= hosts == hosts[stay[0]]
                stay = [rank for rank in stay if open_to[rank]]
            free = iter([d for d in np.argsort(pressure, kind="stable").tolist() if open_to[d] and d not in stay])
            places = [rank if rank in stay else next(free, None) for rank in ranks]
            found = tuple(place for place in places if place is not None)
            return (option, found) if len(found) == len(ranks) else None
        return None

    def _let_go(self, now: Point, budget: int, *, dense: bool) -> list[int]:
        """Blocks that may be placed anew within a budget.

        Args:
            now: where they are.
            budget: bytes that may have moved in the end.
            dense: whether the blocks with most work for their bytes go; or those that chance prefers by it, and those
                on the costliest devices.
        """
        ways = _ways(now.placement)
        moved = np.array([self._bytes_of(block, way)[0] for block, way in enumerate(ways)])
        work = self._judge.option_ms[list(now.placement.option)]
        cost = np.maximum(self._there - moved, 1)
        free = (moved > 0) | np.array([way is None for way in self._ways])
        left = budget - now.moved_bytes
        urge = work / cost
        if not dense:
            urge = urge * self._rng.exponential(size=len(urge)) * np.where(self._pressing(now), _PRESSING, 1.0)
        for block in np.argsort(-urge, kind="stable").tolist():
            if not free[block] and cost[block] <= left:
                free[block] = True
                left -= int(cost[block])
        return [int(block) for block in np.flatnonzero(free)]

    def _pressing(self, now: Point) -> Bools:
        """bool[B]: the blocks that one of the costliest devices holds."""
        z, _ = self._judge.loads(now.placement)
        costliest = Changes.of(self._judge, z).costly()[:_COSTLIEST]
        block, _, device = self._problem.holdings(now.placement)
        pressing = np.zeros(len(self.size), dtype=bool)
        pressing[block[np.isin(device, costliest)]] = True
        return pressing

    def _improved(self, start: Placement, free: list[int], evaluations: int) -> list[Point]:
        """The best placement with some blocks free, and those on the way home from there."""
        if not free:
            return [self.point(start)]
        ways = _ways(start)
        part = self._part({b: ways[b] for b in range(len(ways)) if b not in set(free)}, free)
        number = {int(option): i for i, option in enumerate(part.options)}
        inner = Placement(
            tuple(number[start.option[block]] for block in free),
            tuple(self._problem.sorted_places(start.option[block], start.places[block]) for block in free),
        )
        found = improve(
            part,
            inner,
            evaluations=evaluations,
            seed=int(self._rng.integers(2**32)),
            targets=self._targets,
            enough_ms=self._enough_ms,
            refine=True,  # the base has the right options for most
            watch=self._goes_on,
        )
        for block, option, places in zip(free, found.option, found.places, strict=True):
            ways[block] = (int(part.options[option]), places)
        return list(self._homeward(self.point(_placement(ways))))

    def _goes_on(self, done: float, step_ms: float) -> bool:
        self.ended = self.ended or not self._watch(self.done, step_ms)
        return not self.ended

    def _homeward(self, point: Point) -> Iterator[Point]:
        """A placement, and those after it in which one block after the other is where it was before.

        First goes what adds least to the step time for the bytes that it saves.
        """
        yield point
        barred: set[int] = set()
        changes: dict[int, tuple[Floats, Ints]] = {}
        z, memory = self._judge.loads(point.placement)
        while True:
            ways = _ways(point.placement)
            homes, saved = [], []
            for block, home in enumerate(self._homes):
                if home is None or block in barred or home == ways[block]:
                    continue
                (moved, held), (at_home, held_at_home) = self._bytes_of(block, ways[block]), self._bytes_of(block, home)
                if moved > at_home:
                    homes.append(block)
                    saved.append((moved - at_home, held - held_at_home))
            if not homes:
                return
            for block in homes:
                if block not in changes:
                    changes[block] = self._change(ways[block], self._home(block))
            step_ms, fits = self._with_one_home(z, memory, [changes[block] for block in homes])
            less = np.array(saved)[:, 0]
            rate = (step_ms - point.step_time_ms) / less
            order = np.lexsort((np.array(homes), -less, np.where(fits, rate, np.inf)))
            for which in order[fits[order]].tolist():
                tried = list(ways)
                tried[homes[which]] = self._home(homes[which])
                placement = _placement(tried)
                alone = _placement([tried[homes[which]]])  # which is enough where nothing is kept apart
                if self._judge.keeps_constraints(placement if self._apart else alone):
                    more = changes[homes[which]]
                    z, memory = z + more[0], memory + more[1]  # sums of latents are exact in any order
                    moved, held = saved[which]
                    point = Point(point.moved_bytes - moved, point.held_bytes - held, float(step_ms[which]), placement)
                    yield point
                    break
                barred.add(homes[which])
            else:
                return

    def _home(self, block: int) -> Way:
        way = self._homes[block]
        if way is None:
            raise ValueError(f"block {block} was nowhere before")
        return way

    def _change(self, old: Way, new: Way) -> tuple[Floats, Ints]:
        """What one way more and one way less of a block is to devices: latents float[D, K] and memory int[M, D]."""
        (z, memory), (less, less_memory) = (self._judge.loads(_placement([way])) for way in (new, old))
        return z - less, memory - less_memory

    def _with_one_home(self, z: Floats, memory: Ints, changes: list[tuple[Floats, Ints]]) -> tuple[Floats, Bools]:
        """Step times float[N] with one of N changes of loads, and bool[N] whether memory has room for it."""
        fits = [(memory + more <= self._problem.cluster.memory_limit).all() for _, more in changes]
        chunk = max(1, _AT_ONCE // z.size)
        parts = [
            self._judge.step_ms(z + np.stack([more for more, _ in changes[first : first + chunk]]))
            for first in range(0, len(changes), chunk)
        ]
        return np.concatenate(parts), np.array(fits)

    # --- The parts of a problem ---------------------------------------------------------------------------------------

    def _as_wanted(self, block: int, way: Way | None) -> Way | None:
        """A way, unless a block is to be sharded otherwise."""
        return None if way is None or self._wanted.get(block, way[0]) != way[0] else way

    def _staying(self) -> dict[int, Way]:
        """The blocks that may stay, largest first, as long as constraints and memory let them."""
        problem, limit = self._problem, self._problem.cluster.memory_limit
        stay: dict[int, Way] = {}
        taken = np.zeros((problem.label_count, problem.cluster.devices), dtype=bool)
        used = np.zeros_like(limit)
        for block in np.argsort(-self.size, kind="stable").tolist():
            way = self._ways[block]
            if way is None:
                continue
            _, memory = self._judge.loads(_placement([way]))
            devices = problem.holdings(_placement([way])).device
            apart = problem.labels[block][1:]
            if (used + memory > limit).any() or taken[np.ix_(apart, devices)].any():
                continue
            used += memory
            taken[np.ix_(apart, devices)] = True
            stay[block] = way
        return stay

    def _started(self, stay: dict[int, Way], free: list[int]) -> Placement | None:
        """A placement in which some blocks stay, and the others are where a greedy placer puts them."""
        ways: dict[int, Way] = dict(stay)
        if free:
            part = self._part(stay, free)
            placed = next(filter(None, (cost_greedy(part, options) for options in _choices(part))), None)
            if placed is None:
                return None
            for block, option, places in zip(free, placed.option, placed.places, strict=True):
                ways[block] = (int(part.options[option]), places)
        placement = _placement([ways[block] for block in sorted(ways)])
        return placement if self._judge.judge(placement).feasible else None

    def _part(self, stay: dict[int, Way], free: list[int]) -> _Part:
        """The problem of some blocks while the others stay."""
        problem, fixed = self._problem, _placement([stay[block] for block in sorted(stay)])
        beside, memory = self._judge.loads(fixed)
        taken = problem.labelled(problem.holdings(fixed)) > 0
        chosen = np.array(free)
        wanted = np.array([self._wanted.get(block, -1) for block in free])
        options = np.flatnonzero(np.isin(problem.option_block, chosen))
        wanted = wanted[np.searchsorted(chosen, problem.option_block[options])]
        options = options[(wanted < 0) | (wanted == options)]
        units = np.flatnonzero(np.isin(problem.unit_option, options))
        allowed = problem.allowed[chosen].copy()
        for row, block in enumerate(free):
            allowed[row] &= ~taken[problem.labels[block][1:]].any(axis=0)
        cluster = problem.cluster
        shift = len(free) - len(problem.blocks)
        part = replace(
            problem,
            cluster=_Rest(
                cluster.device_type,
                cluster.devices_per_host,
                cluster.kinds,
                cluster.host_kind,
                cluster.rank_limit,
                cluster.memory_limit - memory,
            ),
            blocks=tuple(problem.blocks[block] for block in free),
            option_block=np.searchsorted(chosen, problem.option_block[options]),
            option_type=tuple(problem.option_type[option] for option in options),
            option_site=problem.option_site[options],
            option_one_host=problem.option_one_host[options],
            unit_option=np.searchsorted(options, problem.unit_option[units]),
            unit_count=problem.unit_count[units],
            unit_shards=tuple(problem.unit_shards[unit] for unit in units),
            unit_memory=problem.unit_memory[:, units],
            allowed=allowed,
            labels=tuple(
                [row, *(label + shift for label in problem.labels[block][1:])] for row, block in enumerate(free)
            ),
        )
        return _Part(part, self._judge.cost, self._judge, options, units, beside)

    # --- Bytes --------------------------------------------------------------------------------------------------------

    def _bytes_of(self, block: int, way: Way) -> tuple[int, int]:
        """Bytes that move, and of all shards, if a block is placed in a way, its places in the order of columns."""
        if (block, way) not in self._bytes:
            tables = [self._bytes_of_table(table, way) for table in self._problem.blocks[block]]
            moved, held = map(sum, zip(*tables, strict=True))
            self._bytes[block, way] = moved, held
        return self._bytes[block, way]

    def _bytes_of_table(self, table: int, way: Way) -> tuple[int, int]:
        old, new, weighing = self._base.pieces[table], self._pieces(table, way), self._base.weighing
        if old is None:
            return 0, int(weighing.bytes(new.area).sum()) * (len(new.rank) if new.replicas else 1)
        moves = transfers(old, new, self._problem.cluster.devices_per_host)
        return int(weighing.bytes(moves.area).sum()), int(weighing.bytes(holdings(old, new)).sum())

    def _pieces(self, table: int, way: Way) -> Pieces:
        option, places = way
        pieces = self._problem.pieces(table, option, places)
        if self._problem.option_type[option] == "data_parallel":
            return Pieces(pieces[:, 0], pieces[:1, 1:], True)
        return Pieces(pieces[:, 0], pieces[:, 1:], False)

    def _aligned(self, option: int, places: tuple[int, ...]) -> tuple[int, ...]:
        """Places of an option's units, those of one kind in the order that leaves most columns where they are."""
        if (option, places) not in self._in_order:
            self._in_order[option, places] = self._align(option, places)
        return self._in_order[option, places]

    def _align(self, option: int, places: tuple[int, ...]) -> tuple[int, ...]:
        problem = self._problem
        block = int(problem.option_block[option])
        old = self._base.pieces[problem.blocks[block][0]]
        places = problem.sorted_places(option, places)
        if len(places) == 1 or old is None or old.replicas:
            return places
        units, size = problem.units_of(option), int(problem.site_size[problem.option_site[option]])
        rank, *rest = problem.pieces(problem.blocks[block][0], option, places).T
        shared = self._base.weighing.bytes_shared(np.stack(rest, axis=1), old.area)  # [pieces, old pieces]
        held = np.empty((len(places), len(places)))  # bytes of a column block (first) that a place (second) has
        for which in range(len(places)):
            ranks = np.tile(rank.reshape(-1, size)[which], len(places))
            held[:, which] = np.where(ranks[:, None] == old.rank, shared, 0).sum(axis=1).reshape(-1, size).sum(axis=1)
        order = list(range(len(places)))
        open_blocks, open_places = set(order), set(order)
        for flat in np.argsort(-held, axis=None, kind="stable").tolist():
            number, which = divmod(flat, len(places))
            if number in open_blocks and which in open_places and units[number] == units[which]:
                order[number] = which
                open_blocks.remove(number)
                open_places.remove(which)
        return tuple(places[which] for which in order)


def _choices(part: Judge) -> Iterator[tuple[int, ...]]:
    """Options to start from: of least work, then in pieces as small as can be."""
    problem = part.problem
    blocks = range(len(problem.blocks))
    for dislike in (part.option_ms, problem.unit_fill[problem.first_unit]):
        ranked = [[(float(dislike[option]), option) for option in problem.options_of(block)] for block in blocks]
        yield tuple(min(of_block)[1] for of_block in ranked)


def _ways(placement: Placement) -> list[Way]:
    return list(zip(placement.option, placement.places, strict=True))


def _placement(ways: Sequence[Way]) -> Placement:
    return Placement(tuple(option for option, _ in ways), tuple(places for _, places in ways))
