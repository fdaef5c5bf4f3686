"""The environment of the placement policies: many partial placements at once, one block after the other.

In the spirit of DreamShard's estimated MDP (2210.02023, section 3.3): what an action leads to is asked of the cost
model. N tasks are played R times each, in step. An action is a *candidate*: an option of the block at hand with the
place of its first unit; further units of the option take the next best of its places. A candidate that has no room,
or that pins and exclusions forbid, is masked.

Every candidate is described by features that are ratios to the cost of a perfectly even load, so that one policy serves
any number of tables and devices and any cost model. They do not depend on the order of devices or of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
_STEEPNESS = 4.0  # of an exponential in place of a square: e to that where a device exceeds an even load twofold
_WITNESSES = 16  # devices: of more, those that are largest in a phase speak for all
_LEAST_EVEN = 0.05  # of all phases together: a phase that an even load has no part in is no reason to avoid it
_NEVER = 1e12  # ms
_LIMIT = 20.0  # of any feature


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
        even_ms: float[P], what a device with an equal share of everything would cost by phase, beyond fixed costs.
        slots: the options of each step, by `Site`.
        allowed: bool[T, D], devices that units of the block may go to.
        apart: int[T, A], exclusion labels that the block shares with others; -1 where there are fewer.
        work: float[T], ms that the block takes of all devices together, in the option that takes least.
        need: float[T, M], bytes that it takes of all devices together in that option.
    """

    judge: Judge
    order: Ints
    even_ms: Floats
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
        by_site = [[[o for o in options[b] if problem.option_site[o] == site] for b in order] for site in Site]
        most = max(1, max(len(labels) for labels in problem.labels) - 1)
        labels = [[*problem.labels[b][1:], *[-1] * most][:most] for b in order]
        return Task(
            judge,
            order,
            even_load_ms(judge, least),
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


def even_load_ms(judge: Judge, options: Sequence[int] | Ints) -> Floats:
    """What a device with an equal share of everything would cost, float[P] ms: the scale of all features."""
    problem = judge.problem
    chosen = np.isin(problem.unit_option, options)
    sizes = problem.site_size[problem.option_site[problem.unit_option[chosen]]]
    share = problem.unit_count[chosen] * sizes / problem.cluster.devices
    by_kind = np.einsum("guk,u->gk", judge.latents[:, chosen], share)
    return np.asarray(np.maximum(1e-9, varying_ms(judge, by_kind).mean(axis=0)))


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


class Rest(NamedTuple):
    """Choices of further units of an option, M of them.

    Attributes:
        at: int[M, 3], step, task and rollout.
        mask: bool[M, C], candidates that were left.
        choice: int[M], the candidate that was chosen.
    """

    at: Ints
    mask: Bools
    choice: Ints


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
        rests: choices of further units, if recorded.
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
    rests: Rest
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


class _Group(NamedTuple):
    """Candidates of one step and site: O options at C places each.

    Attributes:
        site: which.
        places: int[N, R, C], devices or hosts.
        share: float[N, R, O, C], of its memory that the fullest device of a place would need with a unit.
        mask: bool[N, R, O, C].
        features: float[N, R, O, C, F].
    """

    site: Site
    places: Ints
    share: Floats
    mask: Bools
    features: Floats


class _Now(NamedTuple):
    """Partial placements before a step.

    Attributes:
        phases: float[N, R, P] ms, of the costliest device by phase.
        total: float[N, R, D] ms, of all phases.
        least_compute: float[N, R] ms, least of all devices.
        needed: float[N, R], what is still to be placed over the memory that is free, 2 at most.
    """

    phases: Floats
    total: Floats
    least_compute: Floats
    needed: Floats


class _Game:
    """Partial placements of N tasks in R rollouts, being filled."""

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
        self._slots = [_stacked([task.slots[site] for task in tasks], self._steps) for site in Site]
        self._allowed = _padded([task.allowed for task in tasks], self._steps, True)
        labels = max(task.judge.problem.label_count for task in tasks)
        most = max(task.apart.shape[1] for task in tasks)
        self._apart = np.full((len(tasks), self._steps, most), -1)
        for apart, task in zip(self._apart, tasks, strict=True):
            apart[: len(task.order), : task.apart.shape[1]] = task.apart
        self._apart_used = bool((self._apart >= 0).any())  # otherwise there are no exclusions to keep
        even = np.stack([task.even_ms for task in tasks])
        cost = judge.cost
        self._used = self._phases_used(cost) if isinstance(cost, PhasedCost) else np.arange(even.shape[1])
        self._scale = even.sum(axis=-1)[:, None, None, None]
        self._even = np.maximum(even[:, self._used], _LEAST_EVEN * self._scale[:, 0, 0] + 1e-12)
        shape = (len(tasks), rollouts)
        self._shape = shape
        self._n, self._r = np.arange(shape[0])[:, None, None], np.arange(shape[1])[None, :, None]
        limit = np.stack([_by_kind(task.judge.problem.cluster.memory_limit) for task in tasks])[:, None]
        self._z = np.zeros((*shape, self._devices, judge.latents.shape[2]))
        self._limit = np.broadcast_to(np.maximum(limit, 1.0), (*shape, *limit.shape[2:]))
        self._memory = np.zeros(self._limit.shape)
        self._ms = self._phase_ms(self._z)
        self._open = np.zeros((*shape, len(tasks[0].even_ms)), dtype=bool)  # phases that any device takes part in
        self._taken = np.zeros((*shape, labels + 1, self._devices if self._apart_used else 0), dtype=bool)
        self._stuck, self._dead = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        work = _padded([task.work for task in tasks], self._steps, 0.0)
        need = _padded([task.need for task in tasks], self._steps, 0.0)
        ahead = np.cumsum(work[:, ::-1], axis=1)[:, ::-1]
        self._work, self._left = work, ahead / np.maximum(ahead[:, :1], 1e-9)
        self._need = np.cumsum(need[:, ::-1], axis=1)[:, ::-1]
        self._later = np.concatenate([work[:, self._devices :], np.zeros_like(work[:, : self._devices])], axis=1)
        self._option = np.full((self._steps, *shape), -1)
        self._where: list[list[tuple[Ints, Ints, Ints]]] = []

    def play(self) -> Played:
        """All steps."""
        recorded: list[tuple[Floats, Bools, Ints, Bools, Bools]] = []
        rests: list[Rest] = []
        self._scorer.start(self._tasks, self._shape[1])
        for step in range(self._steps):
            self._now = self._look(step)
            groups = [self._candidates(step, site) for site in Site if self._slots[site].option.shape[2]]
            mask = np.concatenate([g.mask.reshape(*self._shape, -1) for g in groups], axis=-1)
            features = np.concatenate([g.features.reshape(*self._shape, -1, len(FEATURES)) for g in groups], axis=-2)
            exists = np.array([step < len(task.order) for task in self._tasks])[:, None]
            open_, mask = mask, mask & self._room(step, groups)
            none_fits = np.asarray(~mask.any(axis=-1))
            self._dead |= ~open_.any(axis=-1) & exists
            self._stuck |= none_fits & exists
            mask = np.asarray(np.where(none_fits[..., None], open_, mask))
            mask |= ~mask.any(axis=-1, keepdims=True)
            scores = np.round(self._scorer.scores(step, features, mask, self._first_devices(groups)), 9)
            if self._rng is not None:
                noise = -np.log(-np.log(np.maximum(self._rng.random(scores.shape), 1e-300)))
                scores = scores + noise
            scores = np.where(mask, scores, -np.inf)
            choice = scores.argmax(axis=-1)
            counted = exists & ~self._stuck
            devices = self._put(step, groups, choice, scores, mask, counted, rests)
            self._scorer.placed(step, devices)
            if self._record:
                recorded.append((features.astype(np.float32), mask, choice, counted, devices))
        return self._played(recorded, rests)

    def _look(self, step: int) -> _Now:
        """What all candidates of a step have in common."""
        free = np.maximum(self._limit - self._memory, 0.0).sum(axis=2)
        needed = (self._need[:, step][:, None] / np.maximum(free, 1.0)).max(axis=-1)
        compute = self._ms[..., self._computing].sum(axis=-1)
        return _Now(self._ms.max(axis=2), self._ms.sum(axis=-1), compute.min(axis=-1), np.minimum(needed, 2.0))

    def _at(self, array: Any, places: Ints) -> Any:
        """Of an array [N, R, places, ...] those of some places int[N, R, C]: [N, R, C, ...]."""
        return array[self._n, self._r, places]

    # --- Candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self, step: int, site: Site) -> _Group:
        """The candidates of a site: who they are, whether pins and exclusions admit them, and what they look like."""
        slots = self._slots[site]
        admitted: Bools = np.broadcast_to(self._allowed[:, None, step], (*self._shape, self._devices))
        if self._apart_used:
            taken = self._at(self._taken, self._apart[:, step][:, None])
            admitted = admitted & ~np.asarray(taken.any(axis=2))
        admitted = np.asarray(admitted.reshape(*self._shape, -1, self._size(site)).all(axis=-1))
        total = self._now.total.reshape(*self._shape, -1, self._size(site)).max(axis=-1)
        places = self._listed(step, site, total, admitted)
        admitted = self._at(admitted, places)
        share = self._share(step, site, places)
        look = {Site.DEVICE: self._devices_of, Site.HOST: self._hosts, Site.CLUSTER: self._cluster}[site]
        features = look(step, slots, places, share)
        valid = (slots.option[:, step] >= 0)[:, None, :, None]
        mask = self._enough(step, site, places, admitted[:, :, None] & valid)
        return _Group(site, places, share, mask, features)

    def _size(self, site: Site) -> int:
        """Devices that a unit takes up."""
        return {Site.DEVICE: 1, Site.HOST: self._local, Site.CLUSTER: self._devices}[site]

    def _listed(self, step: int, site: Site, total: Floats, admitted: Bools) -> Ints:
        """int[N, R, C]: ascending numbers of the places that are candidates: all; of many, the lightest that fit."""
        most = SHORTLIST if site is Site.DEVICE else HOST_SHORTLIST
        everywhere = np.broadcast_to(np.arange(total.shape[-1]), total.shape)
        if total.shape[-1] <= most:
            return everywhere
        fits = admitted & (self._share(step, site, everywhere) <= 1.0).any(axis=2)
        key = np.where(fits, total, total + _NEVER)
        return np.asarray(np.sort(np.argsort(key, axis=-1, kind="stable")[..., :most], axis=-1))

    def _share(self, step: int, site: Site, places: Ints) -> Floats:
        """float[N, R, O, C], of its memory that the fullest device of a place would need with a unit."""
        by_place = (*self._shape, -1, self._size(site), self._need.shape[-1])
        held, limit = (self._at(a.reshape(by_place), places) for a in (self._memory, self._limit))
        needed = held[:, :, None] + self._slots[site].memory[:, step, None, :, 0, None, None]
        return np.asarray((needed / limit[:, :, None]).max(axis=(-1, -2)))

    def _enough(self, step: int, site: Site, places: Ints, fits: Bools) -> Bools:
        """Of the candidates bool[N, R, O, C] those beside which there are enough for all units of the option."""
        slots = self._slots[site]
        count = slots.units[:, step].sum(axis=-1)[:, None, :, None]
        if site is Site.DEVICE and slots.one_host[:, step].any():
            host = places // self._local
            beside = (host[..., None] == host[..., None, :])[:, :, None] & fits[..., None, :]
            fits = fits & ~((beside.sum(axis=-1) < count) & slots.one_host[:, step][:, None, :, None])
        return np.asarray(fits & (fits.sum(axis=-1, keepdims=True) >= count))

    def _devices_of(self, step: int, slots: Slots, places: Ints, share: Floats) -> Floats:
        """Features of single devices."""
        if places.shape[-1] == self._devices:
            z, before = self._z, self._ms
        else:
            z, before = self._at(self._z, places), self._at(self._ms, places)
        after = self._phase_ms(z[:, :, None] + self._added(slots, step, self._kind[places]))
        copies = slots.units[:, step].sum(axis=-1)
        return self._describe(step, Site.DEVICE, before[:, :, None, :, None], after[..., None, :], share, copies)

    def _hosts(self, step: int, slots: Slots, places: Ints, share: Floats) -> Floats:
        """Features of hosts."""
        by_host = (*self._shape, -1, self._local)
        z, before = (self._at(a.reshape(*by_host, a.shape[-1]), places) for a in (self._z, self._ms))
        added = self._added(slots, step, self._kind[:: self._local][places])
        after = self._phase_ms(z[:, :, None] + added[..., None, :])
        return self._describe(step, Site.HOST, before[:, :, None], after, share, slots.units[:, step].sum(axis=-1))

    def _cluster(self, step: int, slots: Slots, places: Ints, share: Floats) -> Floats:
        """Features of the one place that is all devices. Of many, those that are largest in a phase are looked at."""
        few = self._devices <= _WITNESSES
        which = np.broadcast_to(np.arange(self._devices), self._ms.shape[:3]) if few else self._ms.argmax(axis=2)
        z, before = self._at(self._z, which), self._at(self._ms, which)
        after = self._phase_ms(z[:, :, None] + self._added(slots, step, self._kind[which]))[:, :, :, None]
        mean = self._z.mean(axis=2)[:, :, None]
        middle = self._phase_ms(mean), self._phase_ms(mean + slots.latents[:, step, None, :, 0].mean(axis=3))
        copies = slots.units[:, step].sum(axis=-1)
        return self._describe(step, Site.CLUSTER, before[:, :, None, None], after, share, copies, middle)

    def _added(self, slots: Slots, step: int, kinds: Ints) -> Floats:
        """What the first unit of each option adds to devices of some kinds int[N, R, C]: float[N, R, O, C, K]."""
        latents = slots.latents[:, step, :, 0]  # [N, O, G, K]
        if latents.shape[2] == 1:
            return latents[:, None]
        n, o = np.ogrid[: latents.shape[0], : latents.shape[1]]
        return np.moveaxis(latents[n[:, :, None, None], o[:, :, None, None], kinds[:, None]], 1, 2)

    def _first_devices(self, groups: Sequence[_Group]) -> Ints:
        """int[N, R, C]: the first device of each candidate's place."""
        first = (np.broadcast_to((g.places * self._size(g.site))[:, :, None], g.share.shape) for g in groups)
        return np.concatenate([of_group.reshape(*self._shape, -1) for of_group in first], axis=-1)

    def _room(self, step: int, groups: Sequence[_Group]) -> Bools:
        """bool[N, R, C]: candidates whose option has room for all its units, the first at the candidate's place."""
        found = (self._enough(step, g.site, g.places, g.mask & (g.share <= 1.0)) for g in groups)
        return np.concatenate([fits.reshape(*self._shape, -1) for fits in found], axis=-1)

    def _describe(
        self,
        step: int,
        site: Site,
        before: Floats,
        after: Floats,
        share: Floats,
        copies: Ints,
        middle: tuple[Floats, Floats] | None = None,
    ) -> Floats:
        """float[N, R, O, C, F]: what a policy sees of each candidate.

        Args:
            step: the step.
            site: of the candidates.
            before: float[N, R, 1, C, W, P] ms, what W devices of the place cost by phase.
            after: float[N, R, O, C, W, P] ms, what they would cost with the unit.
            share: float[N, R, O, C], of its memory that the fullest of them would need.
            copies: int[N, O], units that the option has.
            middle: float[N, R, O, P] ms before and after, of a device that speaks for all; None where the W devices do.
        """
        even = self._even[:, None, None, None]  # [N, 1, 1, 1, P]
        scale = self._scale
        now = self._now.phases[:, :, None, None]  # [N, R, 1, 1, P]
        most_after = after.max(axis=-2)
        total_before, total_after = before.sum(axis=-1).max(axis=-1) / scale, after.sum(axis=-1).max(axis=-1) / scale
        step_now = now.sum(axis=-1) / scale
        opened = (self._opened(step, site) / scale[..., 0])[:, :, :, None]
        step_after = np.maximum(most_after, now).sum(axis=-1) / scale + opened
        if middle is None:
            old, new, times = before, after, copies[:, None, :, None]
        else:
            old, new = (ms[:, :, :, None, None] for ms in middle)
            times = copies[:, None, :, None] * self._devices
        even_ = even[..., None, :]
        x, y = old / even_, new / even_
        square_added = ((y * y - x * x) * even_).sum(axis=(-1, -2)) * times / scale
        steep = np.exp(np.minimum(_STEEPNESS * (y - 1.0), 5.0)) - np.exp(np.minimum(_STEEPNESS * (x - 1.0), 5.0))
        steep_added = (steep * even_).sum(axis=(-1, -2)) * times / scale
        added = (new - old).sum(axis=(-1, -2)) * times / scale
        work = self._work[:, step][:, None, None, None] / scale
        work_ = np.maximum(work, 1e-9)
        even_compute = np.maximum(self._even[:, self._computing].sum(axis=-1), 1e-9)[:, None, None, None]
        compute_after = most_after[..., self._computing].sum(axis=-1) / even_compute
        relative = most_after / even
        exchange = (most_after.sum(axis=-1) - compute_after * even_compute) / self._even_exchange
        least = self._now.least_compute[:, :, None, None] / even_compute
        mean = self._now.total.mean(axis=-1)[:, :, None, None] / scale
        columns = (
            total_after,
            total_before,
            total_after - total_before,
            step_after,
            step_after - step_now,
            np.maximum(most_after - even, 0.0).sum(axis=-1) / scale,
            (most_after * most_after / even).sum(axis=-1) / scale,
            mean - total_before,
            share,
            self._now.needed[:, :, None, None],
            self._left[:, step][:, None, None, None],
            work,
            self._later[:, step][:, None, None, None] / scale,
            square_added,
            steep_added,
            added - work,
            relative[..., self._computing[0]],
            relative[..., self._computing[-1]],
            exchange,
            compute_after - least,
            np.log2(copies)[:, None, :, None] / 4.0,
            opened,
            square_added / work_,
            steep_added / work_,
            (step_after - step_now) / work_,
        )
        features = np.empty((*after.shape[:4], len(FEATURES)))
        for index, column in enumerate(columns):
            features[..., index] = column
        return np.clip(features, -_LIMIT, _LIMIT, out=features)

    @cached_property
    def _computing(self) -> Ints:
        """Which of the used phases are computing; all where the cost model does not say."""
        cost = self._judge.cost
        if not isinstance(cost, PhasedCost):
            return np.arange(len(self._used))
        return np.flatnonzero(np.isin(self._used, cost.computing))

    @cached_property
    def _even_exchange(self) -> Floats:
        """Ms of an even load in phases that are not computing, float[N, 1, 1, 1]."""
        even = self._even.sum(axis=-1) - self._even[:, self._computing].sum(axis=-1)
        return np.asarray(np.maximum(even, 1e-3 * self._even.sum(axis=-1) + 1e-12)[:, None, None, None])

    def _phases_used(self, cost: PhasedCost) -> Ints:
        """Numbers of the phases that any option of any task takes part in, and of those that are computing."""
        used = np.zeros(len(cost.constants), dtype=bool)
        used[list(cost.computing)] = True
        for slots in self._slots:
            used |= (cost.present(slots.latents.reshape(-1, slots.latents.shape[-1])) > 0).any(axis=0)
        return np.flatnonzero(used)

    def _opened(self, step: int, site: Site) -> Floats:
        """float[N, R, O] ms: fixed costs of the phases that no device takes part in yet, and would with an option."""
        cost, slots = self._judge.cost, self._slots[site]
        if not isinstance(cost, PhasedCost):
            return np.zeros((*self._shape, slots.option.shape[2]))
        with_it = cost.present(slots.latents[:, step, :, 0].max(axis=-2))[:, None] > 0
        return np.asarray((with_it & ~self._open[:, :, None]) @ cost.constants)

    def _phase_ms(self, z: Floats) -> Floats:
        """Ms of the phases that are used, float[..., P] for float[..., K]."""
        return np.asarray(varying_ms(self._judge, z)[..., self._used])

    # --- Choices ------------------------------------------------------------------------------------------------------

    def _put(
        self,
        step: int,
        groups: Sequence[_Group],
        choice: Ints,
        scores: Floats,
        mask: Bools,
        counted: Bools,
        rests: list[Rest],
    ) -> Bools:
        """Place the block of a step by the chosen candidates; bool[N, R, D], the devices that hold a part of it."""
        first, holding = 0, np.zeros((*self._shape, self._devices), dtype=bool)
        places: list[tuple[Ints, Ints, Ints]] = []
        for group in groups:
            options, width = group.mask.shape[2:]
            stop = first + options * width
            n, r = np.nonzero((choice >= first) & (choice < stop))
            if not len(n):
                first = stop
                continue
            row, column = np.divmod(choice[n, r] - first, width)
            slots = self._slots[group.site]
            self._option[step, n, r] = slots.option[n, step, row]
            counts = slots.units[n, step, row]
            total = np.maximum(counts.sum(axis=1), 1)
            left = scores[n, r][np.arange(len(n))[:, None], (first + row * width)[:, None] + np.arange(width)]
            lanes = np.arange(len(n))
            for unit in range(int(total.max())):
                if unit:
                    left[lanes, column] = -np.inf
                    if unit == 1:
                        strict = slots.one_host[n, step, row]
                        host = group.places[n, r] // self._local
                        left[strict[:, None] & (host != host[lanes, column][:, None])] = -np.inf
                    going = (total > unit) & np.isfinite(left).any(axis=1)
                    lanes = lanes[going[lanes]]
                    if not len(lanes):
                        break
                    column = left[lanes].argmax(axis=1)
                    if self._record:
                        open_ = np.zeros((len(lanes), mask.shape[2]), dtype=bool)
                        at = (first + row[lanes] * width)[:, None] + np.arange(width)
                        open_[np.arange(len(lanes))[:, None], at] = np.isfinite(left[lanes])
                        keep = counted[n[lanes], r[lanes]] & (open_.sum(axis=1) > 1)
                        where = np.stack([np.full(len(lanes), step), n[lanes], r[lanes]], axis=1)
                        chosen = first + row[lanes] * width + column
                        rests.append(Rest(where[keep], open_[keep], chosen[keep]))
                kind = (unit >= counts[lanes, 0]).astype(np.int64)
                place = group.places[n[lanes], r[lanes], column]
                self._add(group.site, step, n[lanes], r[lanes], row[lanes], kind, place)
                places.append((n[lanes], r[lanes], place))
                size = self._size(group.site)
                for offset in range(size):
                    holding[n[lanes], r[lanes], place * size + offset] = True
            first = stop
        self._where.append(places)
        changed = np.nonzero(holding)
        self._ms[changed] = self._phase_ms(self._z[changed])
        if isinstance(self._judge.cost, PhasedCost):
            np.logical_or.at(self._open, changed[:2], self._judge.cost.present(self._z[changed]) > 0)
        if self._apart_used:
            for label in range(self._apart.shape[2]):
                n, r = np.ogrid[: self._shape[0], : self._shape[1]]
                self._taken[n, r, self._apart[:, step, label][:, None]] |= holding
            self._taken[:, :, -1] = False  # where -1 points to
        return holding

    def _add(self, site: Site, step: int, n: Ints, r: Ints, row: Ints, kind: Ints, place: Ints) -> None:
        slots = self._slots[site]
        size = self._size(site)
        devices = place[:, None] * size + np.arange(size)
        latents = slots.latents[n[:, None], step, row[:, None], kind[:, None], self._kind[devices]]
        self._z[n[:, None], r[:, None], devices] += latents
        self._memory[n[:, None], r[:, None], devices] += slots.memory[n, step, row, kind][:, None]

    # --- The end ------------------------------------------------------------------------------------------------------

    def _played(self, recorded: list[tuple[Floats, Bools, Ints, Bools, Bools]], rests: list[Rest]) -> Played:
        if recorded:
            features, masks, choices, counted, devices = map(np.stack, zip(*recorded, strict=True))
        else:
            features = masks = choices = counted = devices = np.zeros(0)
        rest = (
            Rest(*map(np.concatenate, zip(*rests, strict=True))) if rests else Rest(*np.zeros((3, 0), dtype=np.int64))
        )
        fullest = (self._memory / self._limit).max(axis=(-1, -2))
        return Played(self._placement, self._stuck, self._z, fullest, features, masks, choices, counted, rest, devices)

    def _placement(self, task: int, rollout: int) -> Placement | None:
        if self._dead[task, rollout]:
            return None
        order, problem = self._tasks[task].order, self._tasks[task].judge.problem
        option = np.empty(len(order), dtype=np.int64)
        option[order] = self._option[: len(order), task, rollout]
        places: list[list[int]] = [[] for _ in order]
        for block, of_step in zip(order.tolist(), self._where, strict=False):
            for n, r, where in of_step:
                places[block] += where[(n == task) & (r == rollout)].tolist()
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
    """Slots of N tasks as arrays [N, T, O, ...]; what is filled up has no option."""
    most = max(one.option.shape[1] for one in slots)

    def fill(arrays: Sequence[Any], value: float) -> Any:
        shape = (len(arrays), steps, most, *arrays[0].shape[2:])
        out = np.full(shape, value, dtype=arrays[0].dtype)
        for index, array in enumerate(arrays):
            out[index, : array.shape[0], : array.shape[1]] = array
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
