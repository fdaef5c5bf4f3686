"""Placement as a mixed-integer program, solved by HiGHS: optima, certified bounds, and proofs that nothing fits.

    minimise   sum_p t_p + c_p v_p                                step time: phases, and their fixed costs
    such that  sum_o y_o = 1                                      each block has one option,
               sum_s x_us = n_u y_o                               whose units each have a place of their own,
               sum_u x_us <= y_o
               z_d = sum_us x_us l_u,  sum_us x_us m_u <= M_d     a device's summed latents, and its memory
               t_p >= g (z_d - z') + h_p(z')                      tangents of the phase costs, taken where needed
               v_p >= y_o                                         of the options that take part in a phase

and pins, hosts and sets kept apart. Where a phase's cost is linear, one tangent is all of it. Where it is convex,
tangents lie below it, so that the program's bound holds for every placement however few there are: they are first taken
at solutions of the program without integrality, then at each placement that is found, until that costs as much as the
program says (outer approximation: Duran and Grossmann, 1986). What fixed costs of some hosts are more than those of
others is left out, so that on such clusters optima are not always proven.

HiGHS runs on one thread with a fixed seed, and ends after so many nodes: the result is the same on every run, unless
the time limit, a safeguard, ends it. Its presolve and its handling of symmetry are off: with them, HiGHS 1.15.1 called
a placement optimal that was 0.05 % slower than another one, and a problem infeasible of which a placement was known.
Devices that nothing tells apart are put in an order here instead. What HiGHS proves rests on HiGHS alone, so that
no plan states it as its bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.judge import Judge
from shardc.placers.local_search import Ended, Watch
from shardc.problem import Bools, Floats, Ints, Placement, Problem, Shards, Site

INSTALL = "pip install 'highspy>=1.15'"

_TOLERANCE = 1e-5  # relative: what HiGHS's own tolerances can make of a bound, and more
_ROUNDING = 1e-9  # ms: more than the judge rounds a step time down by
_GAP = 1e-4  # relative: what is this close to its bound is optimal
_CLOSE = 2e-5  # relative to the step time: tangents this close to the cost of a phase are good enough
_LP_ROUNDS = 20  # of tangents without integrality
_MEMORY_SCALE = 1e3  # of a device's memory in a row, whose tolerance is 1e-6
_ORDERED = 12  # blocks that the order of devices is counted by: the largest; more rows cost more than they save
_FEASIBLE = 2  # HiGHS's status of a solution


class Status(StrEnum):
    """How a search ended."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Exact:
    """What a search found and proved.

    Attributes:
        status: optimal to within the gap that was asked for, proven infeasible, or neither when a limit was reached.
        placement: the best placement that is known; None if none is.
        step_time_ms: its step time; infinite if there is none.
        bound_ms: no placement is faster; infinite if there is none.
        nodes: nodes of the search trees.
    """

    status: Status
    placement: Placement | None
    step_time_ms: float
    bound_ms: float
    nodes: int


def require_highs() -> None:
    """Import what solving needs.

    Raises:
        DiagnosticError: SH604, exit code 2, when HiGHS is not installed.
    """
    try:
        import highspy  # noqa: F401
    except ImportError as error:
        message = f"the strategy exact needs highspy: {error}"
        raise DiagnosticError(Diagnostic("SH604", message, help=INSTALL), exit_code=2) from error


def solve(
    judge: Judge,
    start: Placement | None = None,
    *,
    gap: float = _GAP,
    bound_ms: float = 0.0,
    nodes: int = 100_000,
    seconds: float = 600.0,
    seed: int = 0,
    watch: Watch | None = None,
) -> Exact:
    """Find the best placement, or bound it.

    Args:
        judge: the problem and its costs, which are in phases.
        start: a placement to start from.
        gap: how far above the bound, as a share, a placement may be to be called optimal.
        bound_ms: a lower bound that is known.
        nodes: how many nodes search trees may have, all together.
        seconds: how long it may take, about.
        seed: of HiGHS.
        watch: asked now and then whether to go on; may also raise `Ended`.

    Raises:
        DiagnosticError: SH604 when HiGHS is not installed.
    """
    require_highs()
    if not isinstance(judge.cost, PhasedCost):
        raise TypeError("the program of a cost model that is not in phases is not known")
    deadline = time.monotonic() + seconds
    program = _Program(judge, judge.cost)
    highs = _Highs(program, seed, gap / 2)
    highs.watch(lambda: watch is None or watch(1.0, best_ms))
    best, best_ms = start, judge.judge(start).step_time_ms if start else np.inf
    used = 0

    def ended(status: Status) -> Exact:
        return Exact(status, best, best_ms, bound_ms, used)

    try:
        if best:
            highs.leave_out(program.costlier(best_ms))
            highs.add_tangents(judge.judge(best).z, np.zeros(len(program.t)))
        highs.add_tangents_of_relaxation(deadline)
    except Ended:
        if watch is None:
            raise
        return ended(Status.LIMIT)
    while True:
        try:
            solved = highs.solve(best, nodes - used, deadline)
        except Ended:
            if watch is None:
                raise
            solved = highs.ended()
        used += solved.nodes
        if solved.status is Status.INFEASIBLE and best is None:
            bound_ms = np.inf
            return ended(Status.INFEASIBLE)
        grid = _TOLERANCE * program.unit_ms  # so that the last digits, which processors may differ by, do not show
        proven = float(np.floor((solved.bound_ms * (1.0 - _TOLERANCE) - _ROUNDING) / grid)) * grid
        if proven <= best_ms:  # more would be an error of HiGHS, and prove nothing
            bound_ms = max(bound_ms, proven)
        if solved.placement is None:
            return ended(Status.LIMIT)
        found = judge.judge(solved.placement)
        if found.feasible and found.step_time_ms < best_ms:
            best, best_ms = solved.placement, found.step_time_ms
        if best is not None and best_ms <= bound_ms * (1.0 + gap) + grid + 2 * _ROUNDING:
            return ended(Status.OPTIMAL)
        if solved.status is not Status.OPTIMAL or not highs.add_tangents(found.z, solved.phase_ms):
            return ended(Status.LIMIT)


def fits(problem: Problem, *, nodes: int = 20_000, seconds: float = 60.0, seed: int = 0) -> Exact:
    """Find any placement, or prove that there is none: all step times are 0.

    Args:
        problem: the problem.
        nodes: how many nodes the search tree may have.
        seconds: how long it may take, about.
        seed: of HiGHS.

    Raises:
        DiagnosticError: SH604 when HiGHS is not installed.
    """
    return solve(Judge(problem, _Free()), nodes=nodes, seconds=seconds, seed=seed)


class _Free(PhasedCost):
    """Nothing costs anything: any placement that fits is as good as another."""

    phases = ()
    computing = ()

    @property
    def constants(self) -> Floats:
        return np.zeros(0)

    def encode(self, shards: Shards) -> Floats:
        return np.zeros((len(shards), 1))

    def heads(self, z: Floats) -> Floats:
        return np.zeros((*z.shape[:-1], 0))

    def slopes(self, z: Floats) -> Floats:
        return np.zeros((0, len(z)))

    def present(self, z: Floats) -> Floats:
        return np.zeros((*z.shape[:-1], 0))

    def passes(self, z: Floats) -> Floats:
        return np.zeros((*z.shape[:-1], 2))


class _Rows:
    """Rows of a program, gathered piece by piece."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Ints, Ints, Floats]] = []
        self._limits: list[tuple[Floats, Floats]] = []

    def add(
        self, number: int, row: Ints, column: Ints, value: Floats | float, lower: Floats | float, upper: Floats | float
    ) -> None:
        """Add so many rows; entries are at row (counted from the first of them) and column."""
        self._parts.append((self.count + row, column, np.broadcast_to(np.asarray(value, dtype=np.float64), row.shape)))
        self._limits.append((np.broadcast_to(lower, number), np.broadcast_to(upper, number)))
        self.count += number

    def compressed(self) -> tuple[Floats, Floats, Ints, Ints, Floats]:
        """Lower and upper limits; where each row starts; columns and values."""
        row, column, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((column, row))
        lower, upper = (np.concatenate(part).astype(np.float64) for part in zip(*self._limits, strict=True))
        return lower, upper, np.searchsorted(row[order], np.arange(self.count)), column[order], value[order]


class _Program:
    """The columns of a problem's program, and its rows but for tangents.

    Columns are y of the O options, x of units at places, w of options that keep to one host by host, z of devices (in
    units of a power of two each), t and v of phases.
    """

    def __init__(self, judge: Judge, cost: PhasedCost) -> None:
        self.judge, self.problem, self.cost = judge, judge.problem, cost
        problem, cluster = judge.problem, judge.problem.cluster
        self.options, self.devices = len(problem.option_block), cluster.devices
        block_of_unit = problem.option_block[problem.unit_option]
        unit, place = [], []
        for u, option in enumerate(problem.unit_option):
            size = int(problem.site_size[problem.option_site[option]])
            if problem.option_site[option] != Site.CLUSTER:
                open_to = np.flatnonzero(problem.allowed[block_of_unit[u]].reshape(-1, size).all(axis=1))
                unit.append(np.full(len(open_to), u))
                place.append(open_to)
        self.unit = np.concatenate([*unit, np.empty(0, dtype=np.int64)])  # of x
        self.place = np.concatenate([*place, np.empty(0, dtype=np.int64)])
        self.x = self.options + np.arange(len(self.unit))
        one_host = np.flatnonzero(problem.option_one_host & (problem.option_units > 1))
        self.kept = one_host if cluster.hosts > 1 else one_host[:0]
        self.w = self.options + len(self.x) + np.arange(len(self.kept) * cluster.hosts)
        self.binaries = self.options + len(self.x) + len(self.w)
        self.latents = np.flatnonzero((judge.latents > 0).any(axis=(0, 1))) if self.cost.phases else np.empty(0, int)
        # About what a device holds, and takes, if blocks have their cheapest options.
        of_option = np.add.reduceat(judge.latents.max(axis=0) * problem.unit_count[:, None], problem.first_unit)
        of_option *= problem.site_size[problem.option_site][:, None] / self.devices
        ms = cost.heads(of_option).sum(axis=-1)
        cheapest = np.lexsort((ms, problem.option_block))[problem.first_option]
        usual = of_option[cheapest].sum(axis=0)
        self.unit_of_z = np.ldexp(1.0, np.frexp(np.where(usual > 0, usual, of_option.max(axis=0)))[1])
        self.unit_ms = float(np.ldexp(1.0, np.frexp(cost.heads(usual).sum() + cost.constants.sum())[1]))
        self.z = self.binaries + np.arange(self.devices * len(self.latents)).reshape(self.devices, -1)
        phases = len(self.cost.phases)
        self.t = self.binaries + self.z.size + np.arange(phases)
        self.v = self.t + phases
        self.columns = self.binaries + self.z.size + 2 * phases
        # Every unit on every device that it may be on: the column that puts it there.
        everywhere = np.flatnonzero(problem.option_site[problem.unit_option] == Site.CLUSTER)
        size = problem.site_size[problem.option_site[problem.unit_option[self.unit]]]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        self.on_unit = np.concatenate([np.repeat(self.unit, size), np.repeat(everywhere, self.devices)])
        self.on_column = np.concatenate(
            [np.repeat(self.x, size), np.repeat(problem.unit_option[everywhere], self.devices)]
        )
        self.on_device = np.concatenate(
            [np.repeat(self.place * size, size) + within, np.tile(np.arange(self.devices), len(everywhere))]
        )

    def rows(self) -> _Rows:
        """All rows but for tangents."""
        rows, problem = _Rows(), self.problem
        options, option = np.arange(self.options), problem.unit_option[self.unit]
        rows.add(len(problem.blocks), problem.option_block, options, 1.0, 1.0, 1.0)
        # As many places as there are units.
        placed = np.flatnonzero(problem.option_site[problem.unit_option] != Site.CLUSTER)
        number = np.full(len(problem.unit_option), -1)
        number[placed] = np.arange(len(placed))
        rows.add(
            len(placed),
            np.concatenate([number[self.unit], np.arange(len(placed))]),
            np.concatenate([self.x, problem.unit_option[placed]]),
            np.concatenate([np.ones(len(self.x)), -problem.unit_count[placed]]),
            0.0,
            0.0,
        )
        # Units of one option are on places of their own.
        several = np.flatnonzero(problem.option_units[option] > 1)
        pairs, which = np.unique(np.stack([option[several], self.place[several]]), axis=1, return_inverse=True)
        rows.add(
            pairs.shape[1],
            np.concatenate([which.reshape(-1), np.arange(pairs.shape[1])]),
            np.concatenate([self.x[several], pairs[0]]),
            np.concatenate([np.ones(len(several)), -np.ones(pairs.shape[1])]),
            -np.inf,
            0.0,
        )
        self._add_hosts(rows)
        self._add_apart(rows)
        self._add_memory(rows)
        self._add_order(rows)
        if self.cost.phases:
            self._add_loads(rows)
        return rows

    def _add_hosts(self, rows: _Rows) -> None:
        """Options whose units keep to one host."""
        problem, hosts = self.problem, self.problem.cluster.hosts
        if not len(self.kept):
            return
        w = self.w.reshape(len(self.kept), hosts)
        number = np.arange(len(self.kept))
        rows.add(
            len(self.kept),
            np.concatenate([np.repeat(number, hosts), number]),
            np.concatenate([w.ravel(), self.kept]),
            np.concatenate([np.ones(w.size), -np.ones(len(self.kept))]),
            0.0,
            0.0,
        )
        option = problem.unit_option[self.unit]
        mine = np.flatnonzero(np.isin(option, self.kept))
        host = self.place[mine] // problem.cluster.devices_per_host
        column = w[np.searchsorted(self.kept, option[mine]), host]
        row = np.arange(len(mine))
        rows.add(
            len(mine),
            np.concatenate([row, row]),
            np.concatenate([self.x[mine], column]),
            np.concatenate([np.ones(len(mine)), -np.ones(len(mine))]),
            -np.inf,
            0.0,
        )

    def _add_apart(self, rows: _Rows) -> None:
        """Of each set that is kept apart, a device has one unit at most."""
        block = self.problem.option_block[self.problem.unit_option[self.on_unit]]
        for label in sorted({label for labels in self.problem.labels for label in labels[1:]}):
            members = [b for b, labels in enumerate(self.problem.labels) if label in labels]
            mine = np.isin(block, members)
            rows.add(self.devices, self.on_device[mine], self.on_column[mine], 1.0, -np.inf, 1.0)

    def _add_memory(self, rows: _Rows) -> None:
        """No device holds more than it has room for."""
        for limit, memory in zip(self.problem.cluster.memory_limit, self.problem.unit_memory, strict=True):
            part = memory[self.on_unit] / np.maximum(limit[self.on_device], 1) * _MEMORY_SCALE
            most = np.where(limit > 0, _MEMORY_SCALE, 0.0)
            rows.add(self.devices, self.on_device, self.on_column, part, -np.inf, most)

    def _add_order(self, rows: _Rows) -> None:
        """Devices that nothing tells apart are used in an order: by a block only if by it, or before, the last one is.

        Any placement becomes such a one by another numbering of devices (see `_in_order`).
        """
        block = self.problem.option_block[self.problem.unit_option[self.unit]]
        for block_number, rank in enumerate(self._rank.tolist()):
            mine = (block == block_number) & self._free
            earlier = (self._rank[block] <= rank) & self._free
            if rank >= _ORDERED or not mine.any():
                continue
            for devices in self._alike:
                for first, second in pairwise(devices):
                    needs = self.x[mine & (self.place == second)]
                    given = self.x[earlier & (self.place == first)]
                    columns = np.concatenate([needs, given])
                    value = np.concatenate([np.ones(len(needs)), -np.ones(len(given))])
                    rows.add(1, np.zeros(len(columns), dtype=np.int64), columns, value, -np.inf, 0.0)

    @cached_property
    def _free(self) -> Bools:
        """Which x are of units on single devices."""
        return np.asarray(self.problem.option_site[self.problem.unit_option[self.unit]] == Site.DEVICE)

    @cached_property
    def _rank(self) -> Ints:
        """int[B], blocks by descending size."""
        size = np.maximum.reduceat(self.problem.unit_fill[self.problem.first_unit], self.problem.first_option)
        return np.argsort(np.argsort(-size, kind="stable"), kind="stable")

    @cached_property
    def _alike(self) -> list[list[int]]:
        """Devices that nothing tells apart, in ascending order."""
        problem, cluster = self.problem, self.problem.cluster
        hosts_matter = bool((problem.option_site == Site.HOST).any() or problem.option_one_host.any())
        classes: dict[tuple[object, ...], list[int]] = {}
        for device in range(self.devices):
            host = device // cluster.devices_per_host if hosts_matter else 0
            what = (
                cluster.kind[device],
                *cluster.memory_limit[:, device].tolist(),
                problem.allowed[:, device].tobytes(),
                host,
            )
            classes.setdefault(what, []).append(device)
        return list(classes.values())

    def _in_order(self, placement: Placement) -> Placement:
        """The same placement with devices numbered as `_add_order` asks for."""
        problem = self.problem
        first = np.full(self.devices, len(problem.blocks))
        for block in np.argsort(-self._rank).tolist():
            if problem.option_site[placement.option[block]] == Site.DEVICE:
                first[list(placement.places[block])] = self._rank[block]
        number = np.arange(self.devices)
        for devices in self._alike:
            number[sorted(devices, key=lambda device: (first[device], device))] = devices
        places = tuple(
            tuple(number[list(at)].tolist()) if problem.option_site[option] == Site.DEVICE else at
            for option, at in zip(placement.option, placement.places, strict=True)
        )
        return Placement(placement.option, places)

    def _add_loads(self, rows: _Rows) -> None:
        """Summed latents, and which phases have fixed costs."""
        problem, count = self.problem, len(self.latents)
        kind = problem.cluster.kind[self.on_device]
        value = self.judge.latents[kind, self.on_unit][:, self.latents] / self.unit_of_z[self.latents]
        entry, latent = np.nonzero(value)
        rows.add(
            self.z.size,
            np.concatenate([self.on_device[entry] * count + latent, np.arange(self.z.size)]),
            np.concatenate([self.on_column[entry], self.z.ravel()]),
            np.concatenate([value[entry, latent], -np.ones(self.z.size)]),
            0.0,
            0.0,
        )
        present = self.cost.present(self.judge.latents).min(axis=0) > 0  # [U, P]
        present = np.logical_or.reduceat(present, problem.first_unit, axis=0) & (self.cost.constants > 0)
        option, phase = np.nonzero(present)
        number = np.arange(len(option))
        rows.add(
            len(option),
            np.concatenate([number, number]),
            np.concatenate([self.v[phase], option]),
            np.concatenate([np.ones(len(option)), -np.ones(len(option))]),
            0.0,
            np.inf,
        )

    def costlier(self, most_ms: float) -> Ints:
        """Options with a unit that takes longer alone than a step may."""
        lone_ms = self.judge.device_ms(self.judge.latents).min(axis=0)
        return np.flatnonzero(np.maximum.reduceat(lone_ms, self.problem.first_unit) > most_ms)

    def values_of(self, placement: Placement) -> Floats:
        """float[binaries]: the columns of a placement."""
        problem = self.problem
        column = {(u, p): x for u, p, x in zip(self.unit.tolist(), self.place.tolist(), self.x.tolist(), strict=True)}
        values = np.zeros(self.binaries)
        placement = self._in_order(placement)
        for option, places in zip(placement.option, placement.places, strict=True):
            values[option] = 1.0
            if problem.option_site[option] == Site.CLUSTER:
                continue
            for unit, place in zip(problem.units_of(option).tolist(), places, strict=True):
                values[column[unit, place]] = 1.0
            if option in self.kept:
                host = places[0] // problem.cluster.devices_per_host
                number = int(np.searchsorted(self.kept, option))
                values[self.w[number * problem.cluster.hosts + host]] = 1.0
        return values

    def placement(self, values: Floats) -> Placement:
        """The placement that columns stand for."""
        problem = self.problem
        chosen = np.flatnonzero(values[: self.options] > 0.5)
        held = values[self.x] > 0.5
        places: list[tuple[int, ...]] = []
        by_option: dict[int, list[tuple[int, int]]] = {int(option): [] for option in chosen}
        for unit, place in zip(self.unit[held].tolist(), self.place[held].tolist(), strict=True):
            by_option[int(problem.unit_option[unit])].append((unit, place))
        for option, of_option in by_option.items():
            everywhere = problem.option_site[option] == Site.CLUSTER
            places.append((0,) if everywhere else tuple(place for _, place in sorted(of_option)))
        return Placement(tuple(by_option), tuple(places))


@dataclass(frozen=True, slots=True)
class _Solved:
    """What HiGHS says of one program: how it ended, the nodes it took, its bound, a placement and its phases' times."""

    status: Status
    nodes: int
    bound_ms: float
    placement: Placement | None
    phase_ms: Floats


class _Highs:
    """A program in HiGHS, which tangents are added to."""

    def __init__(self, program: _Program, seed: int, gap: float) -> None:
        import highspy

        self._p, self._status = program, highspy.HighsModelStatus
        self._incumbent: Floats | None = None  # columns
        self._known: set[tuple[float, ...]] = set()
        self._highs = highspy.Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", seed),
            ("presolve", "off"),
            ("mip_detect_symmetry", False),
            ("mip_rel_gap", gap),
        ):
            self._highs.setOptionValue(option, value)
        rows = program.rows()
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = program.columns, rows.count
        cost, upper = np.zeros(program.columns), np.full(program.columns, np.inf)
        cost[program.t], cost[program.v] = 1.0, program.cost.constants / program.unit_ms
        upper[: program.binaries] = upper[program.v] = 1.0
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(program.columns), upper
        matrix = lp.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.num_col_, matrix.num_row_ = program.columns, rows.count
        lp.row_lower_, lp.row_upper_, starts, matrix.index_, matrix.value_ = rows.compressed()
        matrix.start_ = np.append(starts, len(matrix.value_))
        self._highs.passModel(lp)

    def watch(self, goes_on: Callable[[], bool]) -> None:
        """Ask now and then whether to go on."""

        def ask(event: Any) -> None:
            if not goes_on():
                event.interrupt()

        def note(event: Any) -> None:
            self._incumbent = np.array(event.data_out.mip_solution)

        # Signals are also handled then: Python code has to run for that.
        self._highs.cbMipInterrupt.subscribe(ask)
        self._highs.cbSimplexInterrupt.subscribe(ask)
        self._highs.cbMipImprovingSolution.subscribe(note)

    def leave_out(self, options: Ints) -> None:
        """Choose none of some options."""
        zeros = np.zeros(len(options))
        self._highs.changeColsBounds(len(options), options.astype(np.int32), zeros, zeros)

    def add_tangents(self, z: Floats, phase_ms: Floats) -> bool:
        """Take tangents at loads float[N, K], of phases that the program thinks shorter than they are there.

        Returns:
            Whether there was anything to add.
        """
        p, rows = self._p, _Rows()
        devices = np.arange(p.devices)
        ms = p.cost.heads(z)
        off = _CLOSE * max(float(ms.max(axis=0, initial=0.0).sum()), float(phase_ms.sum()))
        for load, of_load in zip(z, ms, strict=True):
            phases = np.flatnonzero(of_load > phase_ms + off / max(len(phase_ms), 1))
            for phase in phases.tolist():
                slope = p.cost.slopes(load)[phase]
                level = float(of_load[phase] - slope @ load) / p.unit_ms
                slope = (slope * p.unit_of_z)[p.latents] / p.unit_ms
                tangent = (phase, *np.round([*slope, level], 9).tolist())
                if tangent in self._known:
                    continue
                self._known.add(tangent)
                used = np.flatnonzero(slope)
                rows.add(
                    p.devices,
                    np.concatenate([np.repeat(devices, len(used)), devices]),
                    np.concatenate([p.z[:, used].ravel(), np.full(p.devices, p.t[phase])]),
                    np.concatenate([np.tile(-slope[used], p.devices), np.ones(p.devices)]),
                    level,
                    np.inf,
                )
        if not rows.count:
            return False
        lower, upper, starts, columns, values = rows.compressed()
        whole = (part.astype(np.int32) for part in (starts, columns))
        self._highs.addRows(rows.count, lower, upper, len(values), *whole, values)
        return True

    def add_tangents_of_relaxation(self, deadline: float) -> None:
        """Take tangents where the program without integrality touches too few."""
        for _ in range(_LP_ROUNDS if len(self._p.t) else 0):
            self._run(deadline)
            if self._highs.getModelStatus() != self._status.kOptimal:
                break
            values = np.array(self._highs.getSolution().col_value)
            z = np.zeros((self._p.devices, len(self._p.unit_of_z)))
            z[:, self._p.latents] = values[self._p.z] * self._p.unit_of_z[self._p.latents]
            if not self.add_tangents(z, values[self._p.t] * self._p.unit_ms):
                break

    def solve(self, start: Placement | None, nodes: int, deadline: float) -> _Solved:
        """Solve the program with integrality, from a placement if there is one."""
        p, highs = self._p, self._highs
        columns = np.arange(p.binaries, dtype=np.int32)
        highs.changeColsIntegrality(len(columns), columns, np.ones(len(columns), dtype=np.uint8))
        if start is not None:
            highs.setSolution(len(columns), columns, p.values_of(start))
        highs.setOptionValue("mip_max_nodes", max(nodes, 0))
        self._run(deadline)
        info, reached = highs.getInfo(), highs.getModelStatus()
        ends = {self._status.kOptimal: Status.OPTIMAL, self._status.kInfeasible: Status.INFEASIBLE}
        status, phase_ms, placement = ends.get(reached, Status.LIMIT), np.zeros(len(p.t)), None
        if info.primal_solution_status == _FEASIBLE:
            values = np.array(highs.getSolution().col_value)
            placement, phase_ms = p.placement(values), values[p.t] * p.unit_ms
        bound = info.mip_dual_bound * p.unit_ms
        return _Solved(status, max(0, info.mip_node_count), bound if np.isfinite(bound) else 0.0, placement, phase_ms)

    def ended(self) -> _Solved:
        """What is known of a search with integrality that an exception ended."""
        p, known = self._p, self._incumbent
        placement = None if known is None else p.placement(known)
        return _Solved(Status.LIMIT, 0, 0.0, placement, np.zeros(len(p.t)))

    def _run(self, deadline: float) -> None:
        # The limit is on the run time of all calls together.
        left = max(deadline - time.monotonic(), 0.0)
        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + left)
        self._highs.run()
