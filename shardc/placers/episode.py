"""The environment of the placement policies: many partial placements at once, one block after the other.

In the spirit of DreamShard's estimated MDP (2210.02023, section 3.3): what an action leads to is asked of the cost
model. N tasks are played R times each, in step. An action is a *candidate*: an option of the block at hand with the
place of its first unit; further units of the option take the next best of its places. A candidate that has no room,
or that pins and exclusions forbid, is masked.

Every candidate is described by features that are ratios to what the costliest device takes at least: as much as with a
perfectly even load, or with the largest block alone. So one policy serves any number of tables and devices and any cost
model. Features do not depend on the order of devices or of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.judge import Judge
from shardc.problem import Bools, Floats, Ints, Placement, Problem, Site

FEATURES = (
    *(
        "total_after",
        "total_before",
        "total_added",
        "step_after",
        "step_added",
        "overload",
        "square",
        "lighter_than_mean",
    ),
    *("memory_after", "memory_needed", "left", "work", "later_work", "square_added", "steep_added", "work_added"),
    *("forward_after", "backward_after", "exchange_after", "compute_above_least", "pieces", "opened"),
    *("square_rate", "steep_rate", "step_rate"),
)
"""What a policy sees of each candidate; see `_describe`."""

SHORTLIST, HOST_SHORTLIST = 32, 4
"""Devices and hosts that are candidates, the lightest that have room, where there are more."""

_PIECES = (1, 2, 4, 8, 16)  # units of an option that are offered for any block; others only where these do not fit
_MOST = {Site.DEVICE: 4, Site.HOST: 2, Site.CLUSTER: 2}  # options of a block that are offered
_STEEPNESS = 4.0  # of an exponential in place of a square: e to that where a device takes twice the least
_STRAIGHT = 5.0  # exponents beyond which the potential rises along its tangent
_WITNESSES = 16  # devices: of more, those that are largest in a phase speak for all
_LEAST_LEVEL = 0.05  # of all phases together: a phase that an even load has no part in is no reason to avoid it
_NEVER = 1e12  # ms
_LIMIT = 20.0  # of a feature, which beyond it grows with the logarithm


class Slots(NamedTuple):
    """Options with one kind of site, O at most for each of T steps. Their units are of two kinds at most.

    Attributes:
        option: int[T, O], -1 where there are fewer.
        units: int[T, O, 2], how many units there are of each kind.
        latents: float[T, O, 2, G, K], what a unit adds to each of its devices, by the kind of host.
        memory: float[T, O, 2, M], bytes of a unit on one device, by kind of memory.
        one_host: bool[T, O], whether all units have to be on one host.
    """

    option: Ints
    units: Ints
    latents: Floats
    memory: Floats
    one_host: Bools


@dataclass(frozen=True)
class Task:
    """A problem as it is played.

    Attributes:
        judge: the problem and its costs.
        order: int[T], blocks in the order that they are placed.
        level_ms: float[P], what the costliest device takes at least, by phase, beyond fixed costs: as much as one with
            an equal share of everything, or with the largest block alone. The scale of all features.
        slots: the options of each step, by `Site`.
        allowed: bool[T, D], devices that units of the block may go to.
        apart: int[T, A], exclusion labels that the block shares with others; -1 where there are fewer.
        work: float[T], ms that the block takes of all devices together, in the option that takes least.
        need: float[T, M], bytes that it takes of all devices together in that option.
    """

    judge: Judge
    order: Ints
    level_ms: Floats
    slots: tuple[Slots, Slots, Slots]
    allowed: Bools
    apart: Ints
    work: Floats
    need: Floats

    @staticmethod
    def of(judge: Judge, options: Sequence[Sequence[int]]) -> Task:
        """A task in which each block may be sharded by any of its options in `options`.

        Blocks that have few places to choose from come first: pins, exclusions; then by descending work.
        """
        problem, size = judge.problem, judge.problem.site_size[judge.problem.option_site]
        single_ms = varying_ms(judge, judge.latents[0]).sum(axis=-1)
        work_of_option = np.add.reduceat(single_ms * problem.unit_count, problem.first_unit) * size
        need_of_unit = _by_kind(problem.unit_memory) * problem.unit_count[:, None]
        need_of_option = np.add.reduceat(need_of_unit, problem.first_unit) * size[:, None]
        least = np.array([min(offered, key=lambda o: (work_of_option[o], o)) for offered in options], dtype=np.int64)
        smallest = np.array([min(offered, key=lambda o: (need_of_option[o].sum(), o)) for offered in options])
        work = work_of_option[least]
        free = problem.allowed.sum(axis=1)
        constrained = np.where(free < problem.cluster.devices, free, problem.cluster.devices + 1)
        together = np.array([len(labels) > 1 for labels in problem.labels])
        constrained = np.where(together, np.minimum(constrained, problem.cluster.devices), constrained)
        order = np.lexsort((np.arange(len(work)), -work, constrained))
        site_of = problem.option_site.tolist()  # numpy compares its numbers to an enum's members slowly
        by_site = [[[o for o in options[b] if site_of[o] == site] for b in order] for site in Site]
        most = max(1, max(len(labels) for labels in problem.labels) - 1)
        labels = [[*problem.labels[b][1:], *[-1] * most][:most] for b in order]
        return Task(
            judge,
            order,
            np.maximum(_even_load_ms(judge, least), _largest_ms(judge, options)),
            tuple(_slots(judge, of_site) for of_site in by_site),  # type: ignore[arg-type]
            allowed=problem.allowed[order],
            apart=np.array(labels, dtype=np.int64).reshape(len(order), most),
            work=np.asarray(work[order], dtype=np.float64),
            need=np.asarray(need_of_option[smallest][order], dtype=np.float64),
        )


def offered_options(problem: Problem) -> list[list[int]]:
    """For each block the options that a policy chooses from: few of each site, whole and in halves of halves."""
    offered = []
    sites, units = problem.option_site.tolist(), problem.option_units.tolist()
    for block in range(len(problem.blocks)):
        chosen: list[int] = []
        for site, most in _MOST.items():
            of_site = [o for o in problem.options_of(block) if sites[o] == site]
            usual = [o for o in of_site if units[o] in _PIECES]
            # Where memory is tight, only the smallest pieces may fit.
            chosen += dict.fromkeys([*(usual or of_site)[: most - 1], *of_site[-1:]])
        offered.append(chosen)
    return offered


def _even_load_ms(judge: Judge, options: Ints) -> Floats:
    """What a device with an equal share of everything would cost by phase, float[P] ms."""
    problem = judge.problem
    chosen = np.isin(problem.unit_option, options)
    sizes = problem.site_size[problem.option_site[problem.unit_option[chosen]]]
    share = problem.unit_count[chosen] * sizes / problem.cluster.devices
    by_kind = np.einsum("guk,u->gk", judge.latents[:, chosen], share)
    return np.asarray(np.maximum(1e-9, varying_ms(judge, by_kind).mean(axis=0)))


def _largest_ms(judge: Judge, options: Sequence[Sequence[int]]) -> Floats:
    """The most that a device has to take of any one block, if it is cut as small as it can be, float[P] ms."""
    first, by_unit = judge.problem.first_unit, varying_ms(judge, judge.latents[0])
    of_option = by_unit.sum(axis=-1)[first]
    smallest = [min(offered, key=lambda o: (of_option[o], o)) for offered in options]
    return np.asarray(by_unit[first[smallest]].max(axis=0))


def varying_ms(judge: Judge, z: Floats) -> Floats:
    """What loads cost a device by phase beyond fixed costs, float[..., P] ms for float[..., K]."""
    return np.asarray(judge.cost.varying_ms(z) if isinstance(judge.cost, PhasedCost) else judge.phase_ms(z))


class Scorer(Protocol):
    """What chooses: scores of all candidates, the higher the likelier."""

    def start(self, tasks: Sequence[Task], rollouts: int) -> None:
        """A new game."""
        ...

    def scores(self, step: int, features: Floats, mask: Bools, devices: Ints) -> Floats:
        """Scores float[N, R, C].

        Args:
            step: number of the step.
            features: float[N, R, C, F].
            mask: bool[N, R, C], candidates that are possible.
            devices: int[N, R, C], the first device of each candidate's place.
        """
        ...

    def placed(self, step: int, devices: Bools) -> None:
        """Told which devices bool[N, R, D] hold a part of the block now."""
        ...


@dataclass(frozen=True)
class Played:
    """What N tasks came to in R rollouts, in T steps.

    Attributes:
        placement: of a task and a rollout; None where pins and exclusions left no place.
        stuck: bool[N, R], whether no candidate had room at some step; from there on memory was disregarded.
        z: float[N, R, D, K], summed latents.
        fullest: float[N, R], share of its memory that the fullest device would need.
        features, masks, choices, counted: of every step, if recorded: float32[T, N, R, C, F], bool[T, N, R, C],
            int[T, N, R], and bool[T, N, R], whether the rollout had room until then.
        devices: bool[T, N, R, D], where the blocks went, if recorded.
    """

    placement: Callable[[int, int], Placement | None]
    stuck: Bools
    z: Floats
    fullest: Floats
    features: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    masks: Bools
    choices: Ints
    counted: Bools
    devices: Bools


def play(
    tasks: Sequence[Task],
    scorer: Scorer,
    *,
    rollouts: int = 1,
    rng: np.random.Generator | None = None,
    record: bool = False,
) -> Played:
    """Play all tasks at once.

    Args:
        tasks: tasks that have the cost model and the devices in common, though not the tables.
        scorer: what chooses.
        rollouts: how many times each is played.
        rng: of samples by the softmax of the scores; None to take the best candidate always.
        record: whether to keep what learning needs.
    """
    return _Game(tasks, scorer, rollouts, rng, record).play()


@dataclass(frozen=True)
class _Part:
    """The candidates of one site among those of a step: O options at C places each, looked at by W devices each.

    Attributes:
        site: which.
        slots: the options, with steps first: arrays [T, N, O, ...].
        size: devices of a place.
        places: C; fewer than there are where only the lightest are candidates.
        width: W: all devices of a place, or those that are largest in a phase and speak for all.
        columns: where they are among all candidates.
        rows: where their devices are among all devices that are looked at.
        alone: bool[T], whether all options have one unit, which may be anywhere.
    """

    site: Site
    slots: Slots
    size: int
    places: int
    width: int
    columns: slice
    rows: slice
    alone: Bools

    @property
    def options(self) -> int:
        """O."""
        return int(self.slots.option.shape[2])

    def by_place(self, of_columns: Any) -> Any:
        """Of an array [N, R, all candidates] those of this site, [N, R, O, C]."""
        return of_columns[..., self.columns].reshape(*of_columns.shape[:2], self.options, self.places)


class _Game:
    """Partial placements of N tasks in R rollouts, being filled: G = N R games of D devices.

    A step is few numpy calls over all its candidates, whatever their site, since in small games the calls take the
    time. What is known of each device is kept in one array and brought up to date where something was placed; phases
    come first in all arrays, candidates or devices last, which numpy reduces fastest.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        scorer: Scorer,
        rollouts: int,
        rng: np.random.Generator | None,
        record: bool,
    ) -> None:
        judge = tasks[0].judge
        self._tasks, self._scorer, self._rng, self._record = tasks, scorer, rng, record
        self._judge, cluster = judge, judge.problem.cluster
        self._kind, self._local, self._devices = cluster.kind, cluster.devices_per_host, cluster.devices
        self._steps = max(len(task.order) for task in tasks)
        self._shape = shape = (len(tasks), rollouts)
        games = shape[0] * shape[1]
        self._task = np.repeat(np.arange(shape[0]), rollouts)
        self._start = (np.arange(games) * self._devices).reshape(*shape, 1)  # of each game among all devices
        self._exists = np.array([len(task.order) for task in tasks])[:, None]
        all_slots = [_stacked([task.slots[site] for task in tasks], self._steps) for site in Site]
        self._set_phases(all_slots)
        self._parts = self._divided(all_slots)
        self._set_constraints()
        self._set_constants()
        width = 3 * self._phases + 1
        memory = len(cluster.memory_limit)
        self._z = np.zeros((games * self._devices, judge.latents.shape[2]))
        self._known = np.zeros((width + 2 * memory, games * self._devices))
        self._memory, self._limit = self._known[width : width + memory], self._known[width + memory :]
        limit = np.stack([task.judge.problem.cluster.memory_limit for task in tasks], axis=1)[:, :, None]
        self._limit[:] = np.broadcast_to(np.maximum(limit, 1), (memory, *shape, self._devices)).reshape(memory, -1)
        self._refresh(np.arange(games * self._devices))
        self._stuck, self._dead = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        self._option = np.full((self._steps, games), -1)
        self._where: list[list[tuple[Ints, Ints]]] = []

    def _set_phases(self, slots: Sequence[Slots]) -> None:
        """Which phases are looked at, those that are computing first, and the scales of all that is seen."""
        level = np.stack([task.level_ms for task in self._tasks])
        cost = self._judge.cost
        if isinstance(cost, PhasedCost):
            used = np.zeros(len(cost.constants), dtype=bool)
            for of_site in slots:
                used |= (cost.present(of_site.latents.reshape(-1, of_site.latents.shape[-1])) > 0).any(axis=0)
            used[list(cost.computing)] = False
            self._used, self._computing = np.array([*cost.computing, *np.flatnonzero(used)]), len(cost.computing)
        else:
            self._used = np.arange(level.shape[1])
            self._computing = len(self._used)
        self._phases = len(self._used)
        self._scale = level.sum(axis=-1)[:, None, None]
        level = np.maximum(level[:, self._used].T, _LEAST_LEVEL * self._scale[:, 0, 0] + 1e-12)
        self._level = level[:, :, None, None]  # [P, N, 1, 1]
        compute = level[: self._computing].sum(axis=0)
        exchange = np.maximum(level.sum(axis=0) - compute, 1e-3 * level.sum(axis=0) + 1e-12)
        self._level_compute = np.maximum(compute, 1e-9)[:, None, None]
        self._level_exchange = exchange[:, None, None]

    def _divided(self, slots: Sequence[Slots]) -> list[_Part]:
        """The sites that there are options for, and where their candidates are among all."""
        parts: list[_Part] = []
        column = row = 0
        sizes = {Site.DEVICE: 1, Site.HOST: self._local, Site.CLUSTER: self._devices}
        most = {Site.DEVICE: SHORTLIST, Site.HOST: HOST_SHORTLIST, Site.CLUSTER: 1}
        for site, of_site in zip(Site, slots, strict=True):
            if not (options := of_site.option.shape[2]):
                continue
            places = min(self._devices // sizes[site], most[site])
            width = sizes[site]
            if site is Site.CLUSTER and self._devices > _WITNESSES:
                width = self._phases
            columns = slice(column, column + options * places)
            rows = slice(row, row + options * places * width)
            units = np.where(of_site.option >= 0, of_site.units.sum(axis=-1), 1)
            alone = (units.max(axis=(1, 2)) <= 1) & ~of_site.one_host.any(axis=(1, 2))
            parts.append(_Part(site, of_site, sizes[site], places, width, columns, rows, alone))
            column, row = columns.stop, rows.stop
        self._columns, self._rows = column, row
        return parts

    def _set_constraints(self) -> None:
        """Pins and exclusions."""
        self._allowed = _padded([task.allowed for task in self._tasks], self._steps, True)
        labels = max(task.judge.problem.label_count for task in self._tasks)
        most = max(task.apart.shape[1] for task in self._tasks)
        self._apart = np.full((len(self._tasks), self._steps, most), -1)
        for apart, task in zip(self._apart, self._tasks, strict=True):
            apart[: len(task.order), : task.apart.shape[1]] = task.apart
        self._apart_used = bool((self._apart >= 0).any())
        self._constrained = self._apart_used or not self._allowed.all()
        self._taken = np.zeros((*self._shape, labels + 1, self._devices if self._apart_used else 0), dtype=bool)

    def _set_constants(self) -> None:
        """What does not depend on the game, for all steps at once."""
        parts, site = self._parts, [part.site for part in self._parts]
        # The option of each candidate and of each device that is looked at, among the options of all sites.
        first = np.cumsum([0, *(part.options for part in parts)])
        of_part = [first[i] + np.arange(part.options) for i, part in enumerate(parts)]
        self._option_of_column = np.concatenate([np.repeat(o, p.places) for o, p in zip(of_part, parts, strict=True)])
        self._option_of_row = np.concatenate(
            [np.repeat(o, p.places * p.width) for o, p in zip(of_part, parts, strict=True)]
        )
        self._first_row = np.concatenate([np.arange(p.rows.start, p.rows.stop, p.width) for p in parts])
        self._size_of_column = np.concatenate([np.full(p.options * p.places, p.size) for p in parts])
        self._whole = parts[-1] if site[-1] is Site.CLUSTER else None
        self._latents = np.concatenate([p.slots.latents[:, :, :, 0] for p in parts], axis=2)  # [T, N, O, G, K]
        needed = np.concatenate([p.slots.memory[:, :, :, 0] for p in parts], axis=2)
        self._needed = np.ascontiguousarray(np.moveaxis(needed, 3, 1))  # [T, M, N, O]

        option = np.concatenate([p.slots.option for p in parts], axis=2)
        units = np.concatenate([p.slots.units.sum(axis=-1) for p in parts], axis=2)
        room = np.concatenate([np.full(p.options, p.places) for p in parts])
        usual = (option >= 0) & (units <= room)
        self._usual = usual[:, :, None, self._option_of_column]  # [T, N, 1, C]
        self._valid = (option >= 0)[:, :, None, self._option_of_column]
        copies = units[:, :, None, self._option_of_column]
        self._pieces = np.log2(copies) / 4.0
        whole = np.array([self._devices if p.site is Site.CLUSTER else 1 for p in parts for _ in range(p.options)])
        self._times = copies * whole[self._option_of_column] / self._scale

        work = _padded([task.work for task in self._tasks], self._steps, 0.0)
        need = _padded([task.need for task in self._tasks], self._steps, 0.0)
        ahead = np.cumsum(work[:, ::-1], axis=1)[:, ::-1]
        self._left = (ahead / np.maximum(ahead[:, :1], 1e-9)).T[:, :, None, None]  # [T, N, 1, 1]
        self._need = np.cumsum(need[:, ::-1], axis=1)[:, ::-1].transpose(1, 2, 0)[..., None]  # [T, M, N, 1]
        later = np.concatenate([work[:, self._devices :], np.zeros_like(work[:, : self._devices])], axis=1)
        self._later = later.T[:, :, None, None] / self._scale
        self._work = work.T[:, :, None, None] / self._scale

        # Fixed costs of the phases that an option takes part in, as long as no device does.
        cost = self._judge.cost
        if isinstance(cost, PhasedCost):
            self._closed = np.ones((*self._shape, len(cost.constants)), dtype=bool)
            with_it = cost.present(self._latents.max(axis=-2)) > 0
            self._opening = (with_it * cost.constants)[:, :, None]  # [T, N, 1, O, phases]
            self._can_open = with_it.any(axis=(0, 1, 2))
        else:
            self._closed = np.zeros((*self._shape, 0), dtype=bool)
            self._can_open = np.zeros(0, dtype=bool)
        self._opens = bool(self._can_open.any())

        shape = (*self._shape, self._rows)
        self._listing = any(part.places < self._devices // part.size or part.width < part.size for part in self._parts)
        self._at = np.zeros(shape, dtype=np.int64)
        for part in self._parts:
            self._list(part, np.broadcast_to(np.arange(part.places), (*self._shape, part.places)))
        self._first = self._at[..., self._first_row]

    def play(self) -> Played:
        """All steps."""
        recorded: list[tuple[Floats, Bools, Ints, Bools, Bools]] = []
        self._scorer.start(self._tasks, self._shape[1])
        for step in range(self._steps):
            devices, features, mask, fits = self._candidates(step)
            exists = step < self._exists
            mask = self._possible(step, mask, fits, exists)
            scores = np.round(self._scorer.scores(step, features, mask, devices), 9)
            if self._rng is not None:
                noise = -np.log(-np.log(np.maximum(self._rng.random(scores.shape), 1e-300)))
                scores = scores + noise
            scores = np.where(mask, scores, -np.inf)
            choice = scores.argmax(axis=-1)
            holding = self._put(step, devices, choice, scores)
            self._scorer.placed(step, holding)
            if self._record:
                recorded.append((features.astype(np.float32), mask, choice, exists & ~self._stuck, holding))
        return self._played(recorded)

    # --- Candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self, step: int) -> tuple[Ints, Floats, Bools, Bools]:
        """The candidates of a step.

        Returns:
            int[N, R, C], the first device of each; float[N, R, C, F], what they look like; bool[N, R, C], whether pins
            and exclusions admit them; bool[N, R, C], whether a unit has room there.
        """
        phases = self._phases
        known = self._known.reshape(len(self._known), *self._shape, self._devices)
        total = known[3 * phases]
        admitted = self._admitted(step) if self._constrained else None
        if self._listing:
            self._list_lightest(step, known, admitted)
        devices = self._first

        # What the devices of each candidate are now, and what they would be with a unit.
        whole = self._whole
        middle = whole.options if whole else 0
        rows = self._at + self._start
        old = self._known.take(rows, axis=1)  # [Q, N, R, W]
        z = np.empty((*self._shape, bool(middle) + middle + self._rows, self._z.shape[1]))
        latents = self._latents[step]
        by_row = slice(z.shape[2] - self._rows, None)
        if latents.shape[2] == 1:
            added = latents[:, None, self._option_of_row, 0]
        else:
            added = latents[np.arange(len(latents))[:, None, None], self._option_of_row, self._kind[self._at]]
        np.add(self._z.take(rows, axis=0), added, out=z[:, :, by_row])
        if middle:  # of a device that speaks for all, before and after
            mean = self._z.reshape(*self._shape, self._devices, -1).mean(axis=2)[:, :, None]
            z[:, :, :1] = mean
            z[:, :, 1 : 1 + middle] = mean + latents[:, None, -middle:].mean(axis=3)
        new = np.empty((3 * phases + 3, *z.shape[:3]))
        self._potentials(self._phase_ms(z), self._level, new)
        memory = len(self._needed[step])
        held, limit = old[-2 * memory : -memory], old[-memory:]
        new[-2, :, :, by_row] = old[3 * phases]
        new[-1, :, :, by_row] = ((held + self._needed[step][:, :, None, self._option_of_row]) / limit).max(axis=0)

        # By candidate: what it adds, summed over its devices, and the most of any of its devices.
        gain = new[: 3 * phases, ..., by_row] - old[: 3 * phases]
        gain = gain.reshape(3, phases, *gain.shape[1:]).sum(axis=1)
        most = new[2 * phases :, ..., by_row]
        if len(self._parts) > 1 or self._parts[0].width > 1:
            gain, most = self._by_candidate(gain, most)
        if whole:
            gain_ = new[: 3 * phases, ..., 1 : 1 + middle] - new[: 3 * phases, ..., :1]
            gain[..., whole.columns] = gain_.reshape(3, phases, *gain_.shape[1:]).sum(axis=1)
            held, limit = (a[:, :, :, None] for a in (known[-2 * memory : -memory], known[-memory:]))
            share = (held + self._needed[step][:, :, None, -middle:, None]) / limit
            most[-1, ..., whole.columns] = share.max(axis=(0, -1))
        features = self._described(step, known, total, gain, most)
        mask = self._enough(step, self._admits(step, admitted), free=admitted is None)
        return devices, np.moveaxis(features, 0, -1), mask, most[-1] <= 1.0

    def _list(self, part: _Part, places: Ints) -> None:
        """Look at the places int[N, R, C] of a site."""
        devices = (places * part.size)[:, :, None, :, None] + np.arange(part.width)
        shape = (*self._shape, part.options, part.places, part.width)
        self._at[..., part.rows] = np.broadcast_to(devices, shape).reshape(*self._shape, -1)

    def _list_lightest(self, step: int, known: Floats, admitted: Bools | None) -> None:
        """Choose the candidates among many places: the lightest that have room."""
        total = known[3 * self._phases]
        memory = len(self._needed[step])
        held, limit = (a[:, :, :, None] for a in (known[-2 * memory : -memory], known[-memory:]))
        start = 0
        for part in self._parts:
            options = slice(start, start + part.options)
            start = options.stop
            if part.places == self._devices // part.size:
                if part.width < part.size:
                    ms = known[2 * self._phases : 3 * self._phases]
                    witnesses = np.moveaxis(ms.argmax(axis=-1), 0, -1)[:, :, None]
                    self._at[..., part.rows] = np.broadcast_to(
                        witnesses, (*self._shape, part.options, part.width)
                    ).reshape(*self._shape, -1)
                continue
            share = ((held + self._needed[step][:, :, None, options, None]) / limit).max(axis=0)
            load, open_ = total, admitted
            if part.size > 1:
                by_place = (-1, part.size)
                share = share.reshape(*share.shape[:3], *by_place).max(axis=-1)
                load = load.reshape(*self._shape, *by_place).max(axis=-1)
                open_ = None if open_ is None else np.asarray(open_.reshape(*self._shape, *by_place).all(axis=-1))
            fits = (share <= 1.0).any(axis=2)
            if open_ is not None:
                fits &= open_
            key = np.where(fits, load, load + _NEVER)
            self._list(part, np.sort(np.argsort(key, axis=-1, kind="stable")[..., : part.places], axis=-1))
        self._first = self._at[..., self._first_row]
        if self._whole:
            self._first[..., self._whole.columns] = 0

    def _admitted(self, step: int) -> Bools:
        """bool[N, R, D]: devices that pins and exclusions leave."""
        admitted = np.broadcast_to(self._allowed[:, None, step], (*self._shape, self._devices))
        if self._apart_used:
            n, r = np.ogrid[: self._shape[0], : self._shape[1]]
            taken = self._taken[n[..., None], r[..., None], self._apart[:, step][:, None]]
            admitted = admitted & ~taken.any(axis=2)
        return np.asarray(admitted)

    def _admits(self, step: int, admitted: Bools | None) -> Bools:
        """bool[N, R, C]: candidates whose places pins and exclusions leave."""
        valid = np.broadcast_to(self._valid[step], (*self._shape, self._columns))
        if admitted is None:
            return valid
        n, r = np.ogrid[: self._shape[0], : self._shape[1]]
        found = []
        for part in self._parts:
            by_place = np.asarray(admitted.reshape(*self._shape, -1, part.size).all(axis=-1))
            places = self._first[..., part.columns] // part.size
            found.append(by_place[n[..., None], r[..., None], places])
        return np.asarray(np.concatenate(found, axis=-1) & valid)

    def _enough(self, step: int, fits: Bools, *, free: bool = False) -> Bools:
        """Of the candidates bool[N, R, C] those beside which there are enough for all units of their option.

        Args:
            step: the step.
            fits: the candidates.
            free: whether all are possible that there are options for.
        """
        if free and not any(part.slots.one_host[step].any() for part in self._parts):
            return np.broadcast_to(self._usual[step], fits.shape)
        out = fits.copy()
        for part in self._parts:
            if part.alone[step]:
                continue
            of_part, count = part.by_place(fits), part.slots.units[step].sum(axis=-1)[:, None, :, None]
            strict = part.slots.one_host[step]
            if part.site is Site.DEVICE and strict.any():
                host = part.by_place(self._first)[:, :, 0] // self._local
                beside = (host[..., None] == host[..., None, :])[:, :, None] & of_part[..., None, :]
                of_part = of_part & ~((beside.sum(axis=-1) < count) & strict[:, None, :, None])
            of_part = of_part & (of_part.sum(axis=-1, keepdims=True) >= count)
            out[..., part.columns] = of_part.reshape(*self._shape, -1)
        return out

    def _possible(self, step: int, mask: Bools, fits: Bools, exists: Bools) -> Bools:
        """bool[N, R, C]: candidates to choose from: those with room; without any, all that are open."""
        room = mask if fits.all() else self._enough(step, mask & fits)
        none_fits = np.asarray(~room.any(axis=-1))
        if none_fits.any():
            self._dead |= ~mask.any(axis=-1) & exists
            self._stuck |= none_fits & exists
            room = np.where(none_fits[..., None], mask, room)
            room |= ~room.any(axis=-1, keepdims=True)
        return room

    def _by_candidate(self, gain: Floats, most: Floats) -> tuple[Floats, Floats]:
        """Sums and maxima over the devices of each candidate: [..., N, R, C] of [..., N, R, W]."""
        shape = (*self._shape, self._columns)
        sums, maxima = np.empty((len(gain), *shape)), np.empty((len(most), *shape))
        for part in self._parts:
            if part.width == 1:
                sums[..., part.columns], maxima[..., part.columns] = gain[..., part.rows], most[..., part.rows]
                continue
            if part.site is not Site.CLUSTER:
                of_part = gain[..., part.rows]
                sums[..., part.columns] = of_part.reshape(*of_part.shape[:-1], -1, part.width).sum(axis=-1)
            of_part = most[..., part.rows]
            maxima[..., part.columns] = of_part.reshape(*of_part.shape[:-1], -1, part.width).max(axis=-1)
        return sums, maxima

    def _described(self, step: int, known: Floats, total: Floats, gain: Floats, most: Floats) -> Floats:
        """float[F, N, R, C]: what a policy sees of each candidate.

        Args:
            step: the step.
            known: of all devices.
            total: float[N, R, D] ms, of all phases.
            gain: float[3, N, R, C] ms, what a unit adds to its devices: squares and steep potentials of phases, phases.
            most: float[P + 3, N, R, C], of the devices of the place, the most: of each phase and of all, with the unit,
                of all before, and the share of its memory that the fullest would need.
        """
        phases, computing, level, scale = self._phases, self._computing, self._level, self._scale
        ms = known[2 * phases : 3 * phases]
        memory = len(self._needed[step])
        now = ms.max(axis=-1)[..., None]
        least = ms[:computing].sum(axis=0).min(axis=-1)[..., None]
        free = np.maximum(known[-memory:] - known[-2 * memory : -memory], 0.0).sum(axis=-1)
        needed = np.minimum((self._need[step] / np.maximum(free, 1.0)).max(axis=0), 2.0)[..., None]
        step_now = now.sum(axis=0) / scale

        after = most[:phases]
        sums = np.empty((5, phases, *after.shape[1:]))
        np.maximum(after, now, out=sums[0])
        np.subtract(after, level, out=sums[1])
        np.maximum(sums[1], 0.0, out=sums[1])
        relative = after / level
        np.multiply(relative, after, out=sums[2])
        sums[3] = after
        sums[4, :computing], sums[4, computing:] = after[:computing], 0.0
        step_after, overload, square, all_phases, compute = sums.sum(axis=1)
        gain = gain * self._times[step]
        work = self._work[step]
        work_ = np.maximum(work, 1e-9)

        out = np.empty((len(FEATURES), *after.shape[1:]))
        np.divide(most[phases : phases + 2], scale, out=out[:2])
        np.subtract(out[0], out[1], out=out[2])
        np.divide(step_after, scale, out=out[3])
        opened = self._opened(step)
        if opened is not None:
            out[3] += opened
        np.subtract(out[3], step_now, out=out[4])
        np.divide(overload, scale, out=out[5])
        np.divide(square, scale, out=out[6])
        np.subtract(total.mean(axis=-1)[..., None] / scale, out[1], out=out[7])
        out[8] = most[-1]
        out[9] = needed
        out[10] = self._left[step]
        out[11] = work
        out[12] = self._later[step]
        out[13:15] = gain[:2]
        np.subtract(gain[2], work, out=out[15])
        out[16] = relative[0]
        out[17] = relative[computing - 1]
        np.divide(all_phases - compute, self._level_exchange, out=out[18])
        np.divide(compute - least, self._level_compute, out=out[19])
        out[20] = self._pieces[step]
        out[21] = 0.0 if opened is None else opened
        np.divide(gain[:2], work_, out=out[22:24])
        np.divide(out[4], work_, out=out[24])
        large = np.maximum(np.abs(out) / _LIMIT, 1.0)
        if large.max() > 1.0:
            out /= large
            out *= 1.0 + np.log(large)
        return out

    def _opened(self, step: int) -> Floats | None:
        """float[N, R, C]: fixed costs of phases that no device takes part in yet, and would; None without any."""
        if not self._opens:
            return None
        by_option = (self._opening[step] * self._closed[:, :, None]).sum(axis=-1)
        return np.asarray(by_option[..., self._option_of_column] / self._scale)

    # --- What is known of devices -------------------------------------------------------------------------------------

    def _phase_ms(self, z: Floats) -> Floats:
        """Ms of the phases that are looked at, float[P, ...] for float[..., K]."""
        return np.asarray(np.moveaxis(varying_ms(self._judge, z), -1, 0)[self._used])

    def _potentials(self, ms: Floats, level: Floats, out: Floats) -> None:
        """Of ms by phase float[P, ...]: squares, steep potentials, ms; and ms of all: float[3 P + 1, ...]."""
        phases = self._phases
        relative = ms / level
        np.multiply(relative, ms, out=out[:phases])
        relative -= 1.0
        relative *= _STEEPNESS
        beyond = relative - _STRAIGHT
        np.exp(np.minimum(relative, _STRAIGHT, out=relative), out=relative)
        if beyond.max(initial=0.0) > 0.0:
            relative *= 1.0 + np.maximum(beyond, 0.0)
        np.multiply(relative, level, out=out[phases : 2 * phases])
        out[2 * phases : 3 * phases] = ms
        ms.sum(axis=0, out=out[3 * phases])

    def _refresh(self, devices: Ints) -> None:
        """Devices int[...] of all games hold something else now."""
        z = self._z[devices]
        known = np.empty((3 * self._phases + 1, len(devices)))
        game = devices // self._devices
        self._potentials(self._phase_ms(z), self._level[:, self._task[game], 0, 0], known)
        self._known[: len(known), devices] = known
        if self._opens and isinstance(self._judge.cost, PhasedCost):
            takes_part, closed = self._judge.cost.present(z) > 0, self._closed.reshape(-1, self._closed.shape[2])
            for phase in np.flatnonzero(takes_part.any(axis=0)):
                closed[game[takes_part[:, phase]], phase] = False
            self._opens = bool(closed[:, self._can_open].any())

    # --- Choices ------------------------------------------------------------------------------------------------------

    def _put(self, step: int, devices: Ints, choice: Ints, scores: Floats) -> Bools:
        """Place the block of a step by the chosen candidates; bool[N, R, D], the devices that hold a part of it."""
        first, choice = devices.reshape(-1, self._columns), choice.ravel()
        changed: list[Ints] = []
        places: list[tuple[Ints, Ints]] = []
        for part in self._parts:
            games = np.flatnonzero((choice >= part.columns.start) & (choice < part.columns.stop))
            if not len(games):
                continue
            slots, task = part.slots, self._task[games]
            row, column = np.divmod(choice[games] - part.columns.start, part.places)
            self._option[step, games] = slots.option[step, task, row]
            place = first[games, choice[games]] // part.size
            lanes, kind = np.arange(len(games)), np.zeros(len(games), dtype=np.int64)
            changed.append(self._add(part, step, games, task, row, kind, place))
            places.append((games, place))
            if part.alone[step]:
                continue
            counts = slots.units[step, task, row]
            total = counts.sum(axis=1)
            if total.max() <= 1:
                continue
            at = part.columns.start + (row * part.places)[:, None] + np.arange(part.places)
            left, open_ = scores.reshape(len(first), -1)[games[:, None], at], first[games[:, None], at] // part.size
            host = open_ // self._local
            left[slots.one_host[step, task, row][:, None] & (host != host[lanes, column][:, None])] = -np.inf
            for unit in range(1, int(total.max())):
                left[lanes, column] = -np.inf
                lanes = lanes[(total[lanes] > unit) & np.isfinite(left[lanes]).any(axis=1)]
                if not len(lanes):
                    break
                column = left[lanes].argmax(axis=1)
                kind = (unit >= counts[lanes, 0]).astype(np.int64)
                place = open_[lanes, column]
                changed.append(self._add(part, step, games[lanes], task[lanes], row[lanes], kind, place))
                places.append((games[lanes], place))
        self._where.append(places)
        which = np.concatenate(changed) if len(changed) > 1 else changed[0]
        holding = np.zeros((*self._shape, self._devices), dtype=bool)
        holding.reshape(-1)[which] = True
        self._refresh(which)
        if self._apart_used:
            n, r = np.ogrid[: self._shape[0], : self._shape[1]]
            for label in range(self._apart.shape[2]):
                self._taken[n, r, self._apart[:, step, label][:, None]] |= holding
            self._taken[:, :, -1] = False  # where -1 points to
        return holding

    def _add(self, part: _Part, step: int, games: Ints, task: Ints, row: Ints, kind: Ints, place: Ints) -> Ints:
        """Put one unit into each of some games; the devices among those of all games that hold it."""
        devices = place[:, None] * part.size + np.arange(part.size)
        at = games[:, None] * self._devices + devices
        latents = part.slots.latents[step, task, row, kind]
        if latents.shape[1] > 1:
            latents = latents[np.arange(len(games))[:, None], self._kind[devices]]
        self._z[at] += latents
        self._memory[:, at] += part.slots.memory[step, task, row, kind].T[:, :, None]
        return at.ravel()

    # --- The end ------------------------------------------------------------------------------------------------------

    def _played(self, recorded: list[tuple[Floats, Bools, Ints, Bools, Bools]]) -> Played:
        if recorded:
            features, masks, choices, counted, devices = map(np.stack, zip(*recorded, strict=True))
        else:
            features = masks = choices = counted = devices = np.zeros(0)
        by_device = (*self._shape, self._devices, -1)
        fullest = (self._memory / self._limit).max(axis=0).reshape(by_device[:3]).max(axis=-1)
        z = self._z.reshape(by_device)
        return Played(self._placement, self._stuck, z, fullest, features, masks, choices, counted, devices)

    def _placement(self, task: int, rollout: int) -> Placement | None:
        if self._dead[task, rollout]:
            return None
        order, problem = self._tasks[task].order, self._tasks[task].judge.problem
        game = task * self._shape[1] + rollout
        option = np.empty(len(order), dtype=np.int64)
        option[order] = self._option[: len(order), game]
        places: list[list[int]] = [[] for _ in order]
        for block, of_step in zip(order.tolist(), self._where, strict=False):
            for games, where in of_step:
                places[block] += where[games == game].tolist()
        chosen = tuple(map(int, option))
        return Placement(chosen, tuple(problem.sorted_places(o, p) for o, p in zip(chosen, places, strict=True)))


def _slots(judge: Judge, options: Sequence[Sequence[int]]) -> Slots:
    """The options of T blocks as arrays."""
    problem, most = judge.problem, max(map(len, options))
    option = np.full((len(options), most), -1)
    for step, of_step in enumerate(options):
        option[step, : len(of_step)] = of_step
    known = np.maximum(option, 0)
    first = problem.first_unit[known]
    several = problem.option_units[known] > problem.unit_count[first]
    units = np.stack([first, first + several], axis=-1)
    count = problem.unit_count[units] * np.stack([np.ones_like(several), several], axis=-1)
    latents = np.moveaxis(judge.latents[:, units], 0, 3)
    return Slots(option, count, latents, _by_kind(problem.unit_memory)[units], problem.option_one_host[known])


def _stacked(slots: Sequence[Slots], steps: int) -> Slots:
    """Slots of N tasks as arrays [T, N, O, ...]; what is filled up has no option."""
    most = max(one.option.shape[1] for one in slots)

    def fill(arrays: Sequence[Any], value: float) -> Any:
        shape = (steps, len(arrays), most, *arrays[0].shape[2:])
        out = np.full(shape, value, dtype=arrays[0].dtype)
        for index, array in enumerate(arrays):
            out[: array.shape[0], index, : array.shape[1]] = array
        return out

    values = (-1, 1, 0.0, 0, False)
    return Slots(*(fill([s[i] for s in slots], value) for i, value in enumerate(values)))


def _padded(arrays: Sequence[Any], steps: int, value: float) -> Any:
    """Arrays [T, ...] of N tasks as one, [N, T, ...]."""
    out = np.full((len(arrays), steps, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    for index, array in enumerate(arrays):
        out[index, : len(array)] = array
    return out


def _by_kind(memory: Ints) -> Floats:
    """Bytes of N devices or units by kind of memory, int[M, N], as float[N, M]."""
    return np.asarray(memory.T, dtype=np.float64)
