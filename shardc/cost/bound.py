"""A certified lower bound on the step time of every placement and every choice of sharding options.

What is relaxed: a block may mix its options, a share for each, and its units may be spread over devices in parts. Then
the best is to give all devices the same load, and by Jensen's inequality no placement beats it: the costliest device
costs at least what a convex, non-decreasing phase cost is at the mean load. Pins and hosts are relaxed altogether, and
memory is kept on average only. Where hosts differ, devices of each kind have a mean load of their own.

What no placement escapes makes it tighter:

- A phase lasts at least as long as any unit takes alone, or else no unit is there that takes so long. Fixed costs are
  phases of their own: they are due as soon as a unit takes part.
- A load that is counted in whole pieces (bytes of outputs, where dims have a common divisor) is a multiple of them on
  every device, so the largest is at least the mean rounded up; and it is at most n pieces everywhere, or more than n
  somewhere.
- A large unit lies on one device as a whole: on that of another large unit, or on one where none of them is, or else
  its block is sharded in another way. In each case the devices of large units have loads of their own, and all others
  a mean load.

The bound is the least over all such cases, and the case that has the least bound is split further (branch and bound).
In a case, phase costs are replaced by tangents, which lie below them; the best mix under tangents is a linear program
(`shardc.cost.minimax`), and new tangents are taken at its loads.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from shardc.cost.minimax import NO_PHASE, Minimax, solve
from shardc.cost.model import PhasedCost
from shardc.problem import Bools, Floats, Ints, Problem, Site

_WORTH = 5e-4  # relative: by how much a bound is better
_WORK = 10_000_000  # entries of all programs times their steps that patience of one stands for, at most
_ROUNDS = 6  # of tangents in one case
_TOLERANCE = 1e-4  # relative, of a program's value
_COARSE = 2e-4  # relative: smaller pieces, and tangents and times that are closer, change nothing
_LIGHTEST = 1e-12  # ms
_LARGE = 0.15  # share of a phase that a unit takes alone if it has cases of its own
_SHORT = 0.01  # share of the step time below which a phase makes no unit large
_WHOLE = 0.02  # a counted load this close to a whole number of pieces is one
_LONE_AT_ONCE = 16  # blocks and phases that are taken note of after a program is solved
# Mixes and bounds are rounded far above what processors differ by: they choose cases, and what a search starts from.
_MIX_GRID = 2.0**-10
_VALUE_GRID = 2.0**-24
_TARGET_GRID = 2.0**-12
_SAFETY = 1e-9  # relative: far more than float64 loses on the way
_ROUNDING = 1e-9  # ms: more than the judge rounds a step time down by


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A bound and the mix of options that came closest to it.

    Attributes:
        step_time_ms: no placement of the problem is faster than this.
        mix: float[O], for each block a share of each of its options, to a thousandth.
        phase_ms: float[P], what the phases take with that mix beyond fixed costs, to a few thousandths of all.
    """

    step_time_ms: float
    mix: Floats
    phase_ms: Floats


def lower_bound(problem: Problem, cost: PhasedCost, latents: Floats, *, patience: int = 2) -> LowerBound:
    """Bound the step time from below.

    Args:
        problem: the problem.
        cost: its cost model; the form of its heads is what the certificate rests on.
        latents: float[G, U, K], latents of units by kind of host (see `shardc.judge.Judge.latents`).
        patience: how many splits may leave the bound as it is before it is taken as final.
    """
    relaxation = _Relaxation(problem, cost, latents)
    best = relaxation.bound(relaxation.all_placements(), 0.0)
    cases = [best]
    value, left = best.value, patience
    while left and relaxation.work < patience * _WORK and (parts := relaxation.split(best)):
        heapq.heappop(cases)
        for part in parts:
            heapq.heappush(cases, relaxation.bound(part, best.value))
        best = cases[0]
        left -= 1
        if best.value > value * (1.0 + _WORTH):
            value, left = best.value, patience
    step_time = max(0.0, best.value * (1.0 - _SAFETY) - _ROUNDING)
    return LowerBound(step_time, best.mix, best.phase_ms[: len(cost.phases)])


@dataclass(frozen=True, slots=True)
class _Case:
    """Some of all placements.

    Attributes:
        options: bool[O], the options that they choose from.
        alone: for each device that is told apart, the options whose only unit it holds.
        least: float[P + F] ms, what phases and fixed costs take at least.
        most: float[K], load that no device exceeds.
    """

    options: Bools
    alone: tuple[tuple[int, ...], ...]
    least: Floats
    most: Floats


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A case and its lower bound.

    Attributes:
        value: the bound, ms.
        number: which case it is, in the order that they were bounded in.
        case: the case.
        mix: float[O], the mix that came closest to the bound.
        phase_ms: float[P + F], what phases beyond fixed costs, and fixed costs, take with it.
        largest: float[K], the largest load of a device with it.
    """

    value: float
    number: int
    case: _Case
    mix: Floats
    phase_ms: Floats
    largest: Floats

    def __lt__(self, other: _Bounded) -> bool:
        return (self.value, self.number) < (other.value, other.number)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the N variables of a case's program are: an option's units, all of them, on devices of one kind.

    The kinds are the devices that are told apart, one each, and all others together; or those of each kind of hosts.

    Attributes:
        option: int[N], ascending.
        load: float[J, N], how many units that puts on a device of each kind.
        latents: float[J, N, K], those of one unit there.
        memory: float[J, N, M], its bytes.
        limit: float[M, J], bytes of a device of each kind on average, or at most.
        starts: int[B], the first column of each block.
    """

    option: Ints
    load: Floats
    latents: Floats
    memory: Floats
    limit: Floats
    starts: Ints


class _Relaxation:
    """The relaxed problem: bounds cases, and splits them. What was found for one case serves all.

    Attributes:
        work: entries of all programs so far times their steps.
    """

    def __init__(self, problem: Problem, cost: PhasedCost, latents: Floats) -> None:
        self._problem, self._cost = problem, cost
        self._block, self._starts = problem.option_block, problem.first_option
        self._devices, self._kinds = problem.cluster.devices, len(latents)
        first, size = problem.first_unit, problem.site_size[problem.option_site]
        self._everywhere = problem.option_site == Site.CLUSTER
        self._whole = (problem.option_units == 1) & (problem.option_site == Site.DEVICE)
        self._on_all = problem.option_units * size  # [O], devices that have a unit, over all units
        alone = cost.heads(latents).min(axis=0)  # [U, P]
        memory = np.broadcast_to(problem.unit_memory.T * 1.0, (*latents.shape[:2], len(problem.unit_memory)))
        self._latents = latents.shape[2]
        # [G, O, K + M], latents and bytes of an option's units: of their mean, and of the worth of one at least.
        amounts = np.concatenate([latents, memory], axis=2)
        self._mean = np.add.reduceat(amounts * problem.unit_count[:, None], first, axis=1)
        self._mean /= problem.option_units[:, None]
        self._least = self._least_share(amounts, alone.sum(axis=1))
        self._largest = np.maximum.reduceat(latents.max(axis=0), first)  # [O, K], of one unit
        # [O, P + F] ms of the largest unit: by phase, and the fixed costs of phases that the same units take part in.
        users: dict[bytes, Floats] = {}
        for present, constant in zip((cost.present(latents[0, first]) > 0).T, cost.constants, strict=True):
            users[present.tobytes()] = users.get(present.tobytes(), np.zeros(len(present))) + present * constant
        self._lone_ms = np.column_stack([np.maximum.reduceat(alone, first), *users.values()])
        # A load that every device might have, and about the step time in ms: a power of two, the same everywhere.
        each = self._lone_ms[:, : len(cost.phases)].sum(axis=1) * self._on_all
        cheapest = each == np.minimum.reduceat(each, self._starts)[self._block]
        usual = (cheapest * self._on_all / self._devices) @ self._mean[..., : self._latents]  # [G, K]
        self._scale = float(np.ldexp(0.5, np.frexp(cost.heads(usual[0]).sum())[1]))
        self._tangents: list[list[tuple[Floats, float]]] = [[] for _ in cost.phases]
        for load in usual:
            self._add_tangents(load)
        self._lone: list[tuple[int, int]] = []  # blocks, and phases that they may take longer than all else
        self._counted = self._find_counted(latents)
        of_options = self._mean[0, :, self._latents :].T * self._on_all
        most_memory = np.maximum.reduceat(of_options, self._starts, axis=1).sum(axis=1)
        self._binding = np.flatnonzero(most_memory > problem.cluster.memory_limit.sum(axis=1))  # kinds of memory
        self._bounded = 0
        self.work = 0

    def _least_share(self, amounts: Floats, weight: Floats) -> Floats:
        """What a device has at least of an option of which it has the worth of one unit, float[G, O, K + M].

        Where units are of several kinds, they may be divided among devices in any way. If each counts in proportion to
        a weight of its own float[U], the worth of one has at least the least that any kind has for its weight.
        """
        problem, first = self._problem, self._problem.first_unit
        weight = np.maximum(weight, _LIGHTEST)
        worth = np.add.reduceat(weight * problem.unit_count, first) / problem.option_units
        return np.asarray(np.minimum.reduceat(amounts / weight[:, None], first, axis=1) * worth[:, None])

    def all_placements(self) -> _Case:
        """The case that all others are parts of."""
        return _Case(
            options=np.ones(len(self._block), dtype=bool),
            alone=(),
            least=np.zeros(self._lone_ms.shape[1]),
            most=np.full(self._largest.shape[1], np.inf),
        )

    def bound(self, case: _Case, at_least: float) -> _Bounded:
        """Bound a case, of which a bound in ms is known."""
        columns = self._columns(case)
        value, news = 0.0, True
        for _ in range(_ROUNDS):
            program = self._program(case, columns)
            solution = solve(program, _TOLERANCE)
            self.work += program.rows.size * solution.steps
            value = max(value, solution.value)
            mix = np.bincount(columns.option, solution.mix, minlength=len(self._block)).astype(np.float64)
            phase_ms = program.phases(solution.mix)
            loads = np.einsum("jn,n,jnk->jk", columns.load, solution.mix, columns.latents, optimize=True)
            news = self._add_lone(mix, phase_ms)
            for load in loads:
                news |= self._add_tangents(load)
            if not news:
                break
        self._bounded += 1
        return _Bounded(
            value=max(at_least, float(_to_grid(value, _VALUE_GRID * self._scale, np.floor))),
            number=self._bounded,
            case=case,
            mix=_to_grid(mix, _MIX_GRID, np.rint),
            phase_ms=_to_grid(phase_ms, _TARGET_GRID * self._scale, np.rint),
            largest=loads.max(axis=0),
        )

    def split(self, bounded: _Bounded) -> list[_Case]:
        """Cases that together make up one, with better bounds if all goes well; none if nothing is left to do."""
        return self._split_by_time(bounded) or self._split_by_place(bounded) or self._split_by_count(bounded)

    def _split_by_time(self, bounded: _Bounded) -> list[_Case]:
        """By whether a phase lasts as long as some unit takes alone, or there is no unit that takes so long."""
        case = bounded.case
        excess = np.maximum(self._lone_ms - bounded.phase_ms, 0.0) * bounded.mix[:, None]
        option, phase = np.unravel_index(int(excess.argmax()), excess.shape)
        if excess[option, phase] < _COARSE * self._scale:
            return []
        least = case.least.copy()
        least[phase] = self._lone_ms[option, phase]
        shorter = case.options & (self._lone_ms[:, phase] < least[phase])
        return [replace(case, least=least), *self._if_possible(replace(case, options=shorter))]

    def _split_by_place(self, bounded: _Bounded) -> list[_Case]:
        """By the device that the largest unit is on, of those that are not told apart yet."""
        case, phases = bounded.case, np.arange(len(self._tangents))
        if self._kinds > 1 or len(case.alone) >= self._devices - 1:
            return []
        phases = phases[bounded.phase_ms[phases] > _SHORT * bounded.phase_ms.sum()]
        told = np.isin(self._block, self._block[[option for group in case.alone for option in group]])
        part = (self._lone_ms[:, phases] / bounded.phase_ms[phases]).max(axis=1, initial=0.0) * bounded.mix
        part = np.where(self._whole & ~told, part, 0.0)
        option = int(part.argmax())
        if part[option] < _LARGE:
            return []
        chosen = case.options & (self._block != self._block[option])
        chosen[option] = True
        groups = [*case.alone, ()]
        cases = []
        for j, group in enumerate(groups):
            if self._may_share((*group, option)):
                joined = (*groups[:j], (*group, option), *groups[j + 1 :])
                cases.append(replace(case, options=chosen, alone=tuple(filter(None, joined))))
        others = case.options.copy()
        others[option] = False
        return [*cases, *self._if_possible(replace(case, options=others))]

    def _split_by_count(self, bounded: _Bounded) -> list[_Case]:
        """By the number of pieces of a counted load: at most what the mix has, rounded down, or more."""
        case, best, cases = bounded.case, _COARSE * self._scale, []
        for latent, (piece, _, ms) in self._counted.items():
            pieces = bounded.largest[latent] / piece
            fewer = np.floor(pieces)
            if not _WHOLE < pieces - fewer < 1 - _WHOLE or (gain := (fewer + 1 - pieces) * ms.sum()) < best:
                continue
            most = case.most.copy()
            most[latent] = fewer * piece
            fitting = case.options & (self._largest[:, latent] <= most[latent])
            more = replace(case, least=np.maximum(case.least, ms * (fewer + 1)))
            best, cases = gain, [more, *self._if_possible(replace(case, options=fitting, most=most))]
        return cases

    def _if_possible(self, case: _Case) -> list[_Case]:
        """The case, unless it leaves a block no option."""
        return [case] if np.logical_or.reduceat(case.options, self._starts).all() else []

    def _may_share(self, options: tuple[int, ...]) -> bool:
        """Whether memory, pins and exclusions let one device hold units of all these options."""
        problem, chosen = self._problem, list(options)
        blocks = self._block[chosen]
        labels = [label for block in blocks for label in problem.labels[block]]
        return bool(
            (self._mean[0, chosen, self._latents :].sum(axis=0) <= problem.cluster.memory_limit.max(axis=1)).all()
            and problem.allowed[blocks].all(axis=0).any()
            and len(set(labels)) == len(labels)
        )

    def _find_counted(self, latents: Floats) -> dict[int, tuple[float, Ints, Floats]]:
        """Latents that come in whole pieces which phases take time for; none where hosts differ.

        Returns:
            By latent: the piece, int[O] pieces that an option has on all devices, and float[P + F] ms that each takes.
        """
        # A head is zero at zero and convex, so it is nowhere below its tangent there.
        problem = self._problem
        slopes = self._cost.slopes(np.zeros(latents.shape[2]))
        counted: dict[int, tuple[float, Ints, Floats]] = {}
        for latent in np.flatnonzero((slopes > 0).any(axis=0) & (self._kinds == 1)):
            piece, pieces = _pieces(latents[0, :, latent])
            ms = np.zeros(self._lone_ms.shape[1])
            ms[: len(slopes)] = slopes[:, latent] * piece
            if ms.sum() > _COARSE * self._scale:
                of_option = np.add.reduceat(pieces * problem.unit_count, problem.first_unit)
                counted[int(latent)] = piece, of_option * problem.site_size[problem.option_site], ms
        return counted

    def _add_tangents(self, load: Floats) -> bool:
        """Take tangents at a load, of the phases whose tangents so far are too far below. False if there is none."""
        known = np.array([max((s @ load + level for s, level in found), default=-np.inf) for found in self._tangents])
        ms = self._cost.heads(load)
        new = np.flatnonzero((ms > 0) & (ms > known + _COARSE * self._scale / len(known)))
        slopes = self._cost.slopes(load) if len(new) else np.empty(0)
        for phase in new:
            self._tangents[phase].append((slopes[phase], float(ms[phase] - slopes[phase] @ load)))
        return len(new) > 0

    def _add_lone(self, mix: Floats, phase_ms: Floats) -> bool:
        """Take note of the blocks whose mix alone takes longer than a phase does. False if there is none.

        Fixed costs are left to be told apart in cases, which decides them at once.
        """
        phases = len(self._tangents)
        excess = np.add.reduceat(mix[:, None] * self._lone_ms[:, :phases], self._starts) - phase_ms[:phases]
        largest = np.argsort(-excess, axis=None, kind="stable")[:_LONE_AT_ONCE]
        largest = largest[excess.ravel()[largest] > _COARSE * self._scale]
        found = [pair for pair in zip(*np.divmod(largest, phases), strict=True) if pair not in self._lone]
        self._lone.extend(found)
        return len(found) > 0

    def _columns(self, case: _Case) -> _Columns:
        """The variables of a case's program."""
        kinds = max(len(case.alone) + 1, self._kinds)
        options = np.flatnonzero(case.options)
        device = np.full(len(self._block), -1)
        for number, group in enumerate(case.alone):
            device[list(group)] = number
        placed = (device[options] >= 0) | self._everywhere[options]
        option = np.repeat(options, np.where(placed, 1, kinds))
        kind = np.where(device[option] >= 0, device[option], np.arange(len(option)) - np.searchsorted(option, option))
        limits = np.sort(self._problem.cluster.memory_limit, axis=1)
        if self._kinds > 1:
            of_kind = self._problem.cluster.kind == np.arange(kinds)[:, None]
            devices, host_kind = of_kind.sum(axis=1), np.arange(kinds)
            limit = self._problem.cluster.memory_limit @ of_kind.T / devices
        else:
            alone = len(case.alone)
            devices, host_kind = np.array([*[1] * alone, self._devices - alone]), np.zeros(kinds, dtype=np.int64)
            limit = np.stack([np.array([*[of[-1]] * alone, of[alone:].mean()]) for of in limits])
        load = (kind == np.arange(kinds)[:, None]) * self._on_all[option] / devices[:, None]
        load[:, self._everywhere[option]] = 1.0
        amounts = (self._mean if kinds == 1 else self._least)[host_kind][:, option]
        starts = np.searchsorted(self._block[option], np.arange(len(self._starts)))
        return _Columns(option, load, amounts[..., : self._latents], amounts[..., self._latents :], limit, starts)

    def _program(self, case: _Case, columns: _Columns) -> Minimax:
        """The program of a case."""
        option, load, starts = columns.option, columns.load, columns.starts
        lone_ms = self._lone_ms[option]
        least = np.maximum(case.least, np.minimum.reduceat(lone_ms, starts).max(axis=0))
        for _, pieces, ms in self._counted.values():
            fewest = int(np.minimum.reduceat(pieces[option], starts).sum())
            least = np.maximum(least, ms * -(-fewest // self._devices))
        rows, levels, phase = [np.zeros((len(least), len(option)))], [least], [np.arange(len(least))]
        for p, tangents in enumerate(self._tangents):
            if not tangents:
                continue
            slopes = np.array([slope for slope, _ in tangents])
            rows += [load[j] * (slopes @ latents.T) for j, latents in enumerate(columns.latents)]
            levels.append(np.tile([level for _, level in tangents], len(load)))
            phase.append(np.full(len(levels[-1]), p))
        if self._lone:
            blocks, phases = np.array(self._lone).T
            rows.append(np.where(self._block[option] == blocks[:, None], lone_ms[:, phases].T, 0.0))
            levels.append(np.zeros(len(phases)))
            phase.append(phases)
        limits = [
            columns.latents[..., k] / case.most[k] for k in np.flatnonzero((case.most > 0) & (case.most < np.inf))
        ]
        limits += [columns.memory[..., m] / np.maximum(columns.limit[m], 1)[:, None] for m in self._binding]
        for part_of_limit in limits:
            rows.append(load * part_of_limit * self._scale)
            levels.append(np.full(len(load), -self._scale))
            phase.append(np.full(len(load), NO_PHASE))
        return Minimax(np.concatenate(rows), np.concatenate(levels), np.concatenate(phase), starts)


def _pieces(loads: Floats) -> tuple[float, Ints]:
    """The largest piece that loads float[O] are whole multiples of, and the multiples; 0 and zeros if there is none."""
    mantissa, exponent = np.frexp(loads[loads > 0])
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest_bit = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    unit = int((exponent - 53 + lowest_bit).min(initial=0))
    in_units = np.ldexp(loads, -unit)
    if not len(whole) or in_units.max() > 2.0**53:
        return 0.0, np.zeros(len(loads), dtype=np.int64)
    multiples = in_units.astype(np.int64)
    divisor = int(np.gcd.reduce(multiples))
    return float(np.ldexp(float(divisor), unit)), multiples // divisor


def _to_grid(values: Floats | float, grid: float, rounding: np.ufunc) -> Floats:
    return np.asarray(rounding(values / grid) * grid)
