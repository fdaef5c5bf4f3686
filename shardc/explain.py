"""Why a plan is as it is: what its tables would cost elsewhere, what a step waits for, and what would help.

Every step time that is stated is the judge's own, of a whole placement: of the plan with one table changed, or of what
a search reached from the plan after a change of the spec. So what is offered has been tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from shardc.cost.bound import LowerBound, lower_bound
from shardc.cost.model import PhasedCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.judge import Changes, Judge, Judgement
from shardc.memory import device_bytes_for
from shardc.passes.lower import unavailable
from shardc.passes.place import EVALUATIONS
from shardc.passes.restore import placement_of
from shardc.passes.verify import verify
from shardc.pipeline import Prepared, prepare, run
from shardc.placers.local_search import improve
from shardc.plan import Plan
from shardc.problem import Bools, Floats, Ints, Memory, Placement, Problem, ShardingType, Site
from shardc.settings import parse_setting, setting_text
from shardc.shares import critical_ms
from shardc.spec import SHARDING_TYPES, LoadedSpec, Table
from shardc.units import format_bytes

EVALUATED = EVALUATIONS["balanced"]
"""Candidates that are scored to find out what a change is worth."""

_HARMLESS = {"SH307", "SH308", "SH310"}  # faults of a plan that does not fit its spec any more, and can be explained
_NOTICED = 1e-6  # relative: what differs by less is equal
_WORTH = 1e-4  # relative: what helps by less is not offered
_NEXT = 2  # devices that are named after the slowest
_NAMED = 3  # tables of a phase that are named
_CHANGED = 8  # tables whose other places are looked at, those that a step waits for most
_RELEASED = 4  # tables whose own constraints are lifted in turn
_ALONE = 0.9  # of the bound: a table that takes as much by itself makes it
_AT_ONCE = 1 << 22  # numbers of one array
_MORE_MEMORY = 4  # times what there is, to see whether more would help


class Lifted(StrEnum):
    """What can keep a table from a place. JSON format: added to, never renamed."""

    PIN = "pin"
    GROUP = "group"
    APART = "apart"
    SHARDING = "sharding"
    MEMORY = "memory"


class Cause(StrEnum):
    """What makes a lower bound. JSON format: added to, never renamed."""

    LARGEST_TABLE = "largest_table"
    TOTAL_WORK = "total_work"


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to place a table, all others being where they are.

    Attributes:
        sharding_type: its type.
        pieces: how many pieces the table is in.
        ranks: where they are.
        cached: whether the table is in host memory.
        step_time_ms: step time of the whole plan with it; None where no device may hold the table so.
        obstacle: why it cannot be had; None if it can.
    """

    sharding_type: str
    pieces: int
    ranks: tuple[int, ...]
    cached: bool
    step_time_ms: float | None
    obstacle: str | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What limits where a table may be.

    Attributes:
        kind: what it is.
        what: as the spec says it.
        setting: lifts it, for `--set`; None where no single setting does.
        best: the best way to place the table, all others being where they are, if it were lifted; None if there is
            no other.
        binding: whether that is faster than whatever is allowed.
    """

    kind: Lifted
    what: str
    setting: str | None
    best: Alternative | None
    binding: bool


@dataclass(frozen=True, slots=True)
class TableExplained:
    """Why a table is where it is.

    Attributes:
        name, rows, dim, pooling: of the table.
        with_tables: the others of its group, which go where it goes.
        step_time_ms: of the plan.
        here: how the plan places it.
        memory_bytes: what it takes of the device on which it takes most.
        memory_limit_bytes: what tables may take of that device.
        share: its share of the time that the slowest devices compute.
        phases_ms: what it takes of the slowest device of each phase, by phase; zeros are left out.
        elsewhere: for each other place of one of its pieces, sharded as it is; the fastest first.
        otherwise: every other way to shard it, each at the best place that was found; the fastest first.
        missing: why there is no way of a sharding type, by type.
        constraints: what limits it.
    """

    name: str
    rows: int
    dim: int
    pooling: float
    with_tables: tuple[str, ...]
    step_time_ms: float
    here: Alternative
    memory_bytes: int
    memory_limit_bytes: int
    share: float
    phases_ms: Mapping[str, float]
    elsewhere: tuple[Alternative, ...]
    otherwise: tuple[Alternative, ...]
    missing: Mapping[str, str]
    constraints: tuple[Constraint, ...]

    @property
    def runner_up(self) -> Alternative | None:
        """The best of all other ways that are allowed."""
        return _fastest([*self.elsewhere, *self.otherwise])


@dataclass(frozen=True, slots=True)
class PhaseExplained:
    """What one phase of a step waits for.

    Attributes:
        name: of the phase.
        ms: how long it takes: what its slowest device takes.
        slowest: devices and their times, the slowest first, and the next.
        mean_ms: what devices take on average.
        tables: what makes up the slowest device's time, by table; the largest few.
    """

    name: str
    ms: float
    slowest: tuple[tuple[int, float], ...]
    mean_ms: float
    tables: tuple[tuple[str, float], ...]

    @property
    def slack_ms(self) -> float:
        """How much faster the phase could be without its slowest device."""
        return self.ms - self.slowest[1][1] if len(self.slowest) > 1 else self.ms


@dataclass(frozen=True, slots=True)
class BoundExplained:
    """What no plan can be faster than, and why.

    Attributes:
        step_time_ms: the bound.
        gap: how far the plan is above it, as a share of it.
        cause: what makes it.
        table: the table that takes longest by itself, however it is sharded.
        table_ms: how long a step of it alone takes.
        phase: the phase that takes most of the bound.
        phase_ms: how much.
        fixed_ms: what phases take as soon as there is anything to do.
    """

    step_time_ms: float
    gap: float
    cause: Cause
    table: str
    table_ms: float
    phase: str
    phase_ms: float
    fixed_ms: float


@dataclass(frozen=True, slots=True)
class Help:
    """A change that was tried.

    Attributes:
        what: the change, in words.
        arguments: of `shardc compile`, which make it; none for a change of the plan itself.
        step_time_ms: what a search reached with it, from the plan.
    """

    what: str
    arguments: tuple[str, ...]
    step_time_ms: float


@dataclass(frozen=True, slots=True)
class PlanExplained:
    """What determines the step time of a plan, and what would help.

    Attributes:
        model: name of the model.
        devices: how many there are.
        device: name of their hardware profile.
        step_time_ms: of the plan, under today's costs.
        feasible: whether it keeps to the spec's limits, under today's spec.
        phases: the phases that take any time, in their order.
        bound: the lower bound.
        helps: changes that make steps faster, the best first.
        idle: changes that were tried and do not.
    """

    model: str
    devices: int
    device: str
    step_time_ms: float
    feasible: bool
    phases: tuple[PhaseExplained, ...]
    bound: BoundExplained
    helps: tuple[Help, ...]
    idle: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """A plan under a spec and today's costs.

    Attributes:
        plan: the plan document.
        loaded: the spec.
        prepared: the problem and its costs.
        placement: the plan's.
        warnings: in what the plan and the spec differ, and how far to trust the costs.
    """

    plan: Plan
    loaded: LoadedSpec
    prepared: Prepared
    placement: Placement
    warnings: tuple[Diagnostic, ...]

    @property
    def judge(self) -> Judge:
        """What placements are weighed by."""
        return self.prepared.judge

    @property
    def problem(self) -> Problem:
        """What is to be placed."""
        return self.judge.problem

    @cached_property
    def judgement(self) -> Judgement:
        """What the plan costs today."""
        return self.judge.judge(self.placement)

    @cached_property
    def cost(self) -> PhasedCost:
        """The costs.

        Raises:
            ValueError: they say nothing of phases.
        """
        if not isinstance(self.judge.cost, PhasedCost):
            raise ValueError("only a cost model in phases can be explained")
        return self.judge.cost

    @cached_property
    def tables_ms(self) -> Floats:
        """float[P, T] ms: what each table takes of the slowest device of each phase."""
        return critical_ms(self.problem, self.cost, self.placement, self.judgement.z)

    def changed(self, settings: Sequence[str]) -> Situation | None:
        """The same plan under the spec with settings; None if it is none of that spec."""
        try:
            loaded = self.loaded.changed([parse_setting(setting) for setting in settings])
            prepared = prepare(loaded)
            return Situation(self.plan, loaded, prepared, placement_of(self.plan, prepared.judge.problem), ())
        except DiagnosticError:
            return None


def situate(plan: Plan, loaded: LoadedSpec) -> Situation:
    """A plan under its spec, as it is today.

    Raises:
        DiagnosticError: SH304 to SH309 where the plan is none of the spec; what makes the spec impossible.
    """
    prepared = prepare(loaded)
    problem = prepared.judge.problem
    faults = verify(plan, loaded, problem.cluster)
    if any(fault.code not in _HARMLESS for fault in faults):
        raise DiagnosticError(*(fault for fault in faults if fault.code not in _HARMLESS))
    placement = placement_of(plan, problem)
    warnings = [*prepared.warnings]
    notes = list(plan.digests.changes(prepared.digests))
    if notes:
        fix = "compile the spec again for a plan of its own"
        message = f"{'; '.join(notes)}: explained by what they are now"
        warnings.append(Diagnostic("SH334", message, help=fix, severity="warning"))
    warnings += [replace(fault, severity="warning") for fault in faults if fault.code != "SH310" or not notes]
    return Situation(plan, loaded, prepared, placement, tuple(warnings))


# --- A table ----------------------------------------------------------------------------------------------------------


def explain_table(situation: Situation, name: str) -> TableExplained:
    """Why a table is where it is.

    Raises:
        DiagnosticError: SH333, exit code 2, for a table that there is not.
    """
    problem, loaded = situation.problem, situation.loaded
    index = next((i for i, table in enumerate(problem.tables) if table.name == name), None)
    if index is None:
        from difflib import get_close_matches

        close = get_close_matches(name, [table.name for table in problem.tables], n=1)
        some = ", ".join(f'"{table.name}"' for table in problem.tables[:_NAMED])
        more = f" and {len(problem.tables) - _NAMED} more" * (len(problem.tables) > _NAMED)
        fix = f'did you mean "{close[0]}"?' if close else f"there are: {some}{more}"
        raise DiagnosticError(Diagnostic("SH333", f'the plan has no table "{name}"', help=fix), exit_code=2)
    block = next(b for b, members in enumerate(problem.blocks) if index in members)
    others = _Others(situation, block)
    here = others.alternative(situation.placement.option[block], situation.placement.places[block])
    elsewhere, otherwise = others.elsewhere(), others.otherwise()
    best = _fastest([here, *elsewhere, *otherwise])
    table = loaded.tables[index]
    computing = list(situation.cost.computing)
    slowest = situation.cost.device_ms(situation.judgement.z)[:, computing].max(axis=0).sum()
    taken, rank = others.memory_taken()
    phases = zip(situation.cost.phases, situation.tables_ms[:, index].tolist(), strict=True)
    return TableExplained(
        name=name,
        rows=table.rows,
        dim=table.dim,
        pooling=table.pooling,
        with_tables=tuple(problem.tables[t].name for t in problem.blocks[block] if t != index),
        step_time_ms=situation.judgement.step_time_ms,
        here=here,
        memory_bytes=taken,
        memory_limit_bytes=int(problem.cluster.memory_limit[Memory.DEVICE, rank]),
        share=float(situation.tables_ms[computing, index].sum() / max(float(slowest), 1e-300)),
        phases_ms={phase: ms for phase, ms in phases if ms > 0},
        elsewhere=tuple(elsewhere),
        otherwise=tuple(otherwise),
        missing=_missing(situation, block, table),
        constraints=tuple(_constraints(situation, block, table, best)),
    )


def _fastest(found: Sequence[Alternative]) -> Alternative | None:
    allowed = [way for way in found if way.obstacle is None and way.step_time_ms is not None]
    return min(allowed, key=lambda way: way.step_time_ms or 0.0, default=None)


def _missing(situation: Situation, block: int, table: Table) -> dict[str, str]:
    """Why a table has no way of a sharding type."""
    problem = situation.problem
    reasons = unavailable(table, situation.loaded.spec.model, problem.cluster)
    has = {problem.option_type[option] for option in problem.options_of(block)}
    too_large = "puts more on a device than any has room for"
    return {str(type): reasons.get(type, too_large) for type in ShardingType if type not in has}


def _constraints(situation: Situation, block: int, table: Table, best: Alternative | None) -> Iterator[Constraint]:
    """What limits a table, and what each limit costs."""
    members = [situation.loaded.tables[t] for t in situation.problem.blocks[block]]

    def constraint(kind: Lifted, what: str, settings: Sequence[str]) -> Constraint:
        lifted = situation.changed(settings)
        found = _best_of(lifted, table.name) if lifted else None
        return Constraint(kind, what, settings[0] if len(settings) == 1 else None, found, _faster(found, best))

    if pinned := [t for t in members if t.pin is not None]:
        ranks = ", ".join(map(str, (table.pin or pinned[0].pin) or ()))
        settings = [setting_text(("table", t.name, "pin")) for t in pinned]
        yield constraint(Lifted.PIN, f"pin = [{ranks}]", settings)
    if table.group is not None and len(members) > 1:
        yield constraint(Lifted.GROUP, f'group = "{table.group}"', [setting_text(("table", table.name, "group"))])
    if any(t.apart is not None for t in members):
        apart = [t for t in members if t.apart is not None]
        settings = [setting_text(("table", t.name, "apart")) for t in apart]
        yield constraint(Lifted.APART, f'apart = "{apart[0].apart}"', settings)
    if set(table.sharding) != set(SHARDING_TYPES) and len(members) == 1:
        what = f"sharding = [{', '.join(table.sharding)}]"
        yield constraint(Lifted.SHARDING, what, [setting_text(("table", table.name, "sharding"), list(SHARDING_TYPES))])
    roomy = _fastest([replace(way, obstacle=None) for way in _Others(situation, block).ignoring_memory()])
    if _faster(roomy, best):
        yield Constraint(Lifted.MEMORY, "memory of devices", None, roomy, True)


def _best_of(situation: Situation, name: str) -> Alternative | None:
    """The best way to place a table, all others being where they are; None if it can only stay."""
    problem = situation.problem
    block = next(b for b, members in enumerate(problem.blocks) if any(problem.tables[t].name == name for t in members))
    others = _Others(situation, block)
    return _fastest([*others.elsewhere(), *others.otherwise()])


def _faster(one: Alternative | None, other: Alternative | None) -> bool:
    if one is None or one.step_time_ms is None:
        return False
    return other is None or other.step_time_ms is None or one.step_time_ms < other.step_time_ms * (1 - _NOTICED)


class _Others:
    """A plan without one of its blocks, and what it costs to put that back in some way."""

    def __init__(self, situation: Situation, block: int) -> None:
        self._judge, self._cost = situation.judge, situation.cost
        self._problem, self._block = situation.problem, block
        self._placement = situation.placement
        self._z, self._memory = self._judge.loads(self._placement)
        problem = self._problem
        taken: Bools = problem.labelled(problem.holdings(self._placement)) > 0
        self._full = self._z.copy()
        option = self._placement.option[block]
        self._held: dict[int, int] = {}  # kind of unit by device
        for unit, place in zip(problem.units_of(option).tolist(), self._placement.places[block], strict=True):
            of_place = problem.devices_of(option, place)
            self._z[of_place] -= self._judge.latents[problem.cluster.kind[of_place], unit]
            self._memory[:, of_place] -= problem.unit_memory[:, unit, None]
            taken[problem.labels[block], of_place] = False
            self._held |= dict.fromkeys(range(of_place.start, of_place.stop), unit)
        self._blocked: Bools = np.logical_or.reduce(taken[problem.labels[block]], axis=0)

    def memory_taken(self) -> tuple[int, int]:
        """The most bytes that the block takes of a device, and that device."""
        memory = self._problem.unit_memory[Memory.DEVICE]
        rank = max(self._held, key=lambda rank: int(memory[self._held[rank]]))
        return int(memory[self._held[rank]]), rank

    def alternative(self, option: int, places: Sequence[int], obstacle: str | None = None) -> Alternative:
        """What it costs to put the block back in this way."""
        problem, z = self._problem, self._z.copy()
        ranks: set[int] = set()
        for unit, place in zip(problem.units_of(option).tolist(), places, strict=True):
            of_place = problem.devices_of(option, place)
            z[of_place] += self._judge.latents[problem.cluster.kind[of_place], unit]
            ranks |= set(range(of_place.start, of_place.stop))
        return self._described(option, tuple(sorted(ranks)), float(self._judge.step_ms(z)), obstacle)

    def _described(
        self, option: int, ranks: tuple[int, ...], step_ms: float | None, obstacle: str | None
    ) -> Alternative:
        problem = self._problem
        site = int(problem.site_size[problem.option_site[option]])
        cached = min(problem.cached_of(option)) < 1.0
        pieces = int(problem.option_units[option]) * site
        return Alternative(str(problem.option_type[option]), pieces, ranks, cached, step_ms, obstacle)

    def elsewhere(self) -> list[Alternative]:
        """For each place that holds no piece, one piece there instead, the one of which that is best; fastest first.

        Pieces that keep to one host go to another one all together.
        """
        problem, block = self._problem, self._block
        option, places = self._placement.option[block], self._placement.places[block]
        site = problem.option_site[option]
        if site == Site.CLUSTER:
            return []
        if problem.option_one_host[option]:
            hosts = self._host_sets(option, memory=True)
            now = places[0] // problem.cluster.devices_per_host
            return _ranked(self.alternative(option, of_host) for host, of_host in hosts.items() if host != now)
        size, units = int(problem.site_size[site]), problem.units_of(option).tolist()
        free = [place for place in range(problem.cluster.devices // size) if place not in places]
        pairs = np.array([(piece, target) for target in free for piece in range(len(units))]).reshape(-1, 2)
        if not len(pairs):
            return []
        sources = np.array(places)[pairs[:, 0]]
        devices = (np.stack([sources, pairs[:, 1]], axis=1)[..., None] * size + np.arange(size)).reshape(len(pairs), -1)
        latents = self._judge.latents[problem.cluster.kind[devices], np.array(units)[pairs[:, 0], None]]
        sign = np.repeat([-1.0, 1.0], size)[None, :, None]
        ms = self._step_ms(self._full, devices, self._full[devices] + sign * latents)
        found = []
        for number, target in enumerate(free):
            of_target = slice(target * size, (target + 1) * size)
            obstacles = {unit: self._obstacle(unit, of_target) for unit in dict.fromkeys(units)}
            of_pieces = ms[number * len(units) : (number + 1) * len(units)].tolist()
            keys = [(obstacles[unit] is not None, of_piece) for unit, of_piece in zip(units, of_pieces, strict=True)]
            piece = keys.index(min(keys))
            moved = [target if n == piece else place for n, place in enumerate(places)]
            found.append(self.alternative(option, moved, obstacles[units[piece]]))
        return _ranked(found)

    def otherwise(self) -> list[Alternative]:
        """Every other option at the best place that was found for it; fastest first, those that cannot be had last."""
        found = []
        for option in self._problem.options_of(self._block):
            if option == self._placement.option[self._block]:
                continue
            places = self._best_places(option, memory=True)
            if places is not None:
                found.append(self.alternative(option, places))
                continue
            places = self._best_places(option, memory=False)
            if places is None:
                found.append(self._described(option, (), None, "pins and tables kept apart leave it no place"))
            else:
                found.append(self.alternative(option, places, "devices have too little memory left"))
        return _ranked(found)

    def ignoring_memory(self) -> list[Alternative]:
        """Every option at the best place that was found for it if devices had more memory."""
        ways = ((option, self._best_places(option, memory=False)) for option in self._problem.options_of(self._block))
        return [self.alternative(option, places) for option, places in ways if places is not None]

    def _best_places(self, option: int, *, memory: bool) -> tuple[int, ...] | None:
        """Places for the units of an option: where each is disliked least."""
        problem = self._problem
        units = problem.units_of(option)
        size = int(problem.site_size[problem.option_site[option]])
        if problem.option_site[option] == Site.CLUSTER:
            return (0,) if self._fits(int(units[0]), memory=memory).all() else None
        if problem.option_one_host[option]:
            hosts = self._host_sets(option, memory=memory)
            ways = {places: self.alternative(option, places).step_time_ms or 0.0 for places in hosts.values()}
            return min(ways, key=lambda places: (ways[places], places), default=None)
        step_ms, guide = self._dislike(int(units[0]), size)
        order = np.lexsort((guide, step_ms if len(units) == 1 else guide)).tolist()
        return self._first_that_fit(option, order, memory=memory)

    def _host_sets(self, option: int, *, memory: bool) -> dict[int, tuple[int, ...]]:
        """For each host the best places of an option whose units keep to one host."""
        local, unit = self._problem.cluster.devices_per_host, int(self._problem.first_unit[option])
        _, guide = self._dislike(unit, 1)
        sets = {}
        for host in range(self._problem.cluster.hosts):
            order = sorted(range(host * local, (host + 1) * local), key=lambda rank: (float(guide[rank]), rank))
            if (places := self._first_that_fit(option, order, memory=memory)) is not None:
                sets[host] = places
        return sets

    def _first_that_fit(self, option: int, order: Sequence[int], *, memory: bool) -> tuple[int, ...] | None:
        """The first places in an order that have room for the units of an option, the largest first; None if too few.

        Where a large unit has room a smaller one has, so none is in the way of another that has no other place.
        """
        problem, chosen = self._problem, []
        size = int(problem.site_size[problem.option_site[option]])
        units = problem.units_of(option).tolist()
        fits = {u: np.logical_and.reduce(self._fits(u, memory=memory).reshape(-1, size), axis=1) for u in set(units)}
        for unit in units:
            place = next((place for place in order if fits[unit][place] and place not in chosen), None)
            if place is None:
                return None
            chosen.append(place)
        return problem.sorted_places(option, chosen)

    def _dislike(self, unit: int, size: int) -> tuple[Floats, Floats]:
        """Step time with one unit at each place, and what a search would be guided by, float[places]."""
        problem = self._problem
        devices = np.arange(problem.cluster.devices).reshape(-1, size)
        loads: Floats = self._z[devices] + self._judge.latents[problem.cluster.kind[devices], unit]
        return self._step_ms(self._z, devices, loads), Changes.of(self._judge, self._z).some_devices(devices, loads)

    def _step_ms(self, z: Floats, devices: Ints, loads: Floats) -> Floats:
        """Step time, float[N], of what holds z otherwise, with loads float[N, M, K] on devices int[N, M]."""
        usual = self._cost.device_ms(z)
        found = []
        for start in range(0, len(devices), max(1, _AT_ONCE // usual.size)):
            part = slice(start, start + max(1, _AT_ONCE // usual.size))
            ms = np.repeat(usual[None], len(devices[part]), axis=0)
            ms[np.arange(len(ms))[:, None], devices[part]] = self._cost.device_ms(loads[part])
            found.append(ms.max(axis=1).sum(axis=-1))
        return Judge.rounded(np.concatenate(found))

    def _fits(self, unit: int, *, memory: bool) -> Bools:
        """bool[D]: devices that may hold a unit of the block."""
        problem = self._problem
        fits: Bools = np.logical_and(problem.allowed[self._block], ~self._blocked)
        if memory:
            room = self._memory + problem.unit_memory[:, unit, None] <= problem.cluster.memory_limit
            fits &= room.all(axis=0)
        return fits

    def _obstacle(self, unit: int, devices: slice) -> str | None:
        """Why devices may not hold a unit of the block; None if they may."""
        problem = self._problem
        if not problem.allowed[self._block, devices].all():
            return "pin"
        if self._blocked[devices].any():
            return "apart"
        over = self._memory[:, devices] + problem.unit_memory[:, unit, None] - problem.cluster.memory_limit[:, devices]
        return f"memory: lacks {format_bytes(int(over.max()))}" if over.max() > 0 else None


def _ranked(found: Iterator[Alternative] | Sequence[Alternative]) -> list[Alternative]:
    """Those that can be had first, and the fastest of them."""

    def key(way: Alternative) -> tuple[bool, float]:
        return way.obstacle is not None, float("inf") if way.step_time_ms is None else way.step_time_ms

    return sorted(found, key=key)


# --- A plan -----------------------------------------------------------------------------------------------------------


def explain_plan(situation: Situation, *, helps: bool = True) -> PlanExplained:
    """What determines the step time of a plan.

    Args:
        situation: the plan under its spec.
        helps: whether to try what would help.
    """
    problem, judge, judgement = situation.problem, situation.judge, situation.judgement
    bound = lower_bound(problem, situation.cost, judge.latents)
    found, idle = _helps(situation, bound) if helps and judgement.feasible else ([], [])
    return PlanExplained(
        model=situation.loaded.spec.model.name,
        devices=problem.cluster.devices,
        device=", ".join(situation.loaded.spec.cluster.device_names),
        step_time_ms=judgement.step_time_ms,
        feasible=judgement.feasible,
        phases=tuple(_phases(situation)),
        bound=_bound(situation, bound),
        helps=tuple(sorted(found, key=lambda help: help.step_time_ms)),
        idle=tuple(idle),
    )


def _phases(situation: Situation) -> Iterator[PhaseExplained]:
    ms = situation.cost.device_ms(situation.judgement.z)
    for phase, name in enumerate(situation.cost.phases):
        of_devices = ms[:, phase]
        if of_devices.max() <= 0:
            continue
        order = np.argsort(-of_devices, kind="stable")[: 1 + _NEXT].tolist()
        of_tables = situation.tables_ms[phase]
        tables = [int(t) for t in np.argsort(-of_tables, kind="stable")[:_NAMED] if of_tables[t] > 0]
        yield PhaseExplained(
            name,
            float(of_devices.max()),
            tuple((device, float(of_devices[device])) for device in order),
            float(of_devices.mean()),
            tuple((situation.problem.tables[t].name, float(of_tables[t])) for t in tables),
        )


def _bound(situation: Situation, bound: LowerBound) -> BoundExplained:
    problem, judge, plan = situation.problem, situation.judge, situation.plan
    step_ms = bound.step_time_ms
    if plan.bound and plan.digests.of_costs == situation.prepared.digests.of_costs:
        step_ms = max(step_ms, plan.bound.step_time_ms)
    alone = np.min([judge.device_ms(latents) for latents in judge.latents], axis=0)
    of_block = np.minimum.reduceat(alone[problem.first_unit], problem.first_option)
    block = int(of_block.argmax())
    used = situation.cost.present(situation.judgement.z).max(axis=0)
    phase = int(bound.phase_ms.argmax())
    return BoundExplained(
        step_time_ms=step_ms,
        gap=situation.judgement.step_time_ms / max(step_ms, 1e-300) - 1.0,
        cause=Cause.LARGEST_TABLE if of_block[block] >= _ALONE * step_ms else Cause.TOTAL_WORK,
        table=problem.tables[problem.blocks[block][0]].name,
        table_ms=float(of_block[block]),
        phase=situation.cost.phases[phase],
        phase_ms=float(bound.phase_ms[phase] + situation.cost.constants[phase]),
        fixed_ms=float(situation.cost.constants @ used),
    )


@dataclass(frozen=True, slots=True)
class _Try:
    """A change of the spec to be tried, and what it is called."""

    what: str
    settings: tuple[str, ...]


def _helps(situation: Situation, bound: LowerBound) -> tuple[list[Help], list[str]]:
    """What makes steps faster, and what was tried and does not.

    Every change starts from the best that a search finds without one, so that what it gains is its own.
    """
    step_ms = situation.judgement.step_time_ms
    searched = [_improved(situation, targets) for targets in (bound.phase_ms, None)]
    searched_ms = min(situation.judge.judge(placement).step_time_ms for placement in searched)
    found, idle = [], []

    def note(help: Help, than_ms: float) -> None:
        if help.step_time_ms < than_ms * (1 - _WORTH):
            found.append(help)
        else:
            idle.append(help.what)

    note(Help("search on from this plan", ("--effort", "thorough"), searched_ms), step_ms)
    note(_one_change(situation), step_ms)
    for change in _tries(situation):
        lifted = situation.changed(change.settings)
        if lifted is None or not lifted.judgement.feasible:
            continue
        better = _improved(lifted, None)
        arguments = tuple(part for setting in change.settings for part in ("--set", setting))
        note(Help(change.what, arguments, lifted.judge.judge(better).step_time_ms), min(step_ms, searched_ms))
    if memory := _more_memory(situation):
        note(memory, min(step_ms, searched_ms))
    for change in _more_devices(situation):
        compiled = _compiled(situation, change)
        if compiled is not None:
            note(compiled, min(step_ms, searched_ms))
    return found, idle


def _improved(situation: Situation, targets: Floats | None) -> Placement:
    seed = situation.loaded.spec.compile.seed
    return improve(situation.judge, situation.placement, evaluations=EVALUATED, seed=seed, targets=targets)


def _waited_for(situation: Situation) -> list[int]:
    """Tables that a step waits for, those first that it waits for longest."""
    of_tables = situation.tables_ms.sum(axis=0)
    return [int(t) for t in np.argsort(-of_tables, kind="stable")]


def _one_change(situation: Situation) -> Help:
    """The best change of one of the tables that a step waits for."""
    problem = situation.problem
    block_of = {t: block for block, members in enumerate(problem.blocks) for t in members}
    blocks = list(dict.fromkeys(block_of[t] for t in _waited_for(situation)))[:_CHANGED]
    found: list[tuple[float, str]] = []
    for block in blocks:
        others = _Others(situation, block)
        best = _fastest([*others.elsewhere(), *others.otherwise()])
        if best is not None and best.step_time_ms is not None:
            name = problem.tables[problem.blocks[block][0]].name
            where = ", ".join(map(str, best.ranks)) if len(best.ranks) <= _CHANGED else f"{len(best.ranks)} ranks"
            found.append((best.step_time_ms, f'"{name}" {best.sharding_type} on {where}'))
    step_ms, what = min(found, default=(situation.judgement.step_time_ms, ""))
    if step_ms < situation.judgement.step_time_ms * (1 - _WORTH):
        return Help(f"place {what}", (), step_ms)
    return Help(f"another place or split of one of the {len(blocks)} tables that a step waits for most", (), step_ms)


def _tries(situation: Situation) -> Iterator[_Try]:
    """Changes of constraints: of the tables that a step waits for most, and of all."""
    tables = [situation.loaded.tables[t] for t in _waited_for(situation)]
    pinned = [t for t in tables if t.pin is not None]
    for table in pinned[:_RELEASED]:
        yield _Try(f'remove the pin of "{table.name}"', (setting_text(("table", table.name, "pin")),))
    if len(pinned) > 1:
        yield _Try(f"remove all {len(pinned)} pins", (setting_text(("table", "*", "pin")).replace('"*"', "*"),))
    for name in list(dict.fromkeys(t.group for t in tables if t.group is not None))[:_RELEASED]:
        members = [t for t in tables if t.group == name]
        if len(members) > 1:
            settings = tuple(setting_text(("table", t.name, "group")) for t in members)
            yield _Try(f'dissolve the group "{name}"', settings)
    for name in list(dict.fromkeys(t.apart for t in tables if t.apart is not None))[:_RELEASED]:
        settings = tuple(setting_text(("table", t.name, "apart")) for t in tables if t.apart == name)
        yield _Try(f'let tables of "{name}" share devices', settings)
    limited = [t for t in tables if t.group is None and set(t.sharding) != set(SHARDING_TYPES)]
    every = list(SHARDING_TYPES)
    for table in limited[:_RELEASED]:
        setting = setting_text(("table", table.name, "sharding"), every)
        yield _Try(f'allow every sharding type for "{table.name}"', (setting,))
    if len(limited) > 1:
        setting = setting_text(("table", "*", "sharding"), every).replace('"*"', "*")
        yield _Try("allow every sharding type for all tables", (setting,))


def _more_memory(situation: Situation) -> Help | None:
    """What more memory of all devices would gain, and how much of it is needed for that."""
    cluster = situation.problem.cluster
    if len(cluster.kinds) > 1 or cluster.rank_limit:
        return None  # there is no one setting for devices that differ
    kind = cluster.kinds[0]

    def with_bytes(size: int) -> str:
        return setting_text(("cluster", "memory"), f"{-(-size // 1024)}KiB")

    roomy = situation.changed([with_bytes(_MORE_MEMORY * kind.memory_bytes)])
    if roomy is None or not roomy.judgement.feasible:
        return None
    better = roomy.judge.judge(_improved(roomy, None))
    most = int(better.memory[Memory.DEVICE].max())
    if most <= int(cluster.memory_limit[Memory.DEVICE].max()):
        return Help("more memory", (), situation.judgement.step_time_ms)
    size = device_bytes_for(most, kind.memory_bytes, kind.reserve_bytes)
    return Help(f"give devices {format_bytes(size)}", ("--set", with_bytes(size)), better.step_time_ms)


def _more_devices(situation: Situation) -> Iterator[_Try]:
    cluster = situation.loaded.spec.cluster
    if cluster.hosts == 1:
        devices = cluster.devices_per_host + 1
        yield _Try(f"{devices} devices on the host", (setting_text(("cluster", "devices_per_host"), devices),))
    hosts = f"{cluster.hosts + 1} hosts of {cluster.devices_per_host} device{'s' * (cluster.devices_per_host > 1)}"
    yield _Try(hosts, (setting_text(("cluster", "hosts"), cluster.hosts + 1),))


def _compiled(situation: Situation, change: _Try) -> Help | None:
    """What a compile makes of a spec with other devices; as it is, but never for long."""
    try:
        loaded = situation.loaded.changed([parse_setting(setting) for setting in change.settings])
        effort = loaded.spec.compile.effort
        step_ms = run(loaded, effort="balanced" if effort == "thorough" else effort).choice.judgement.step_time_ms
    except DiagnosticError:
        return None
    return Help(change.what, ("--set", *change.settings), step_ms)
