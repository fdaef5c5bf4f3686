"""The one judge: every placer proposes, and every placement is weighed here by the same function.

Latents are rounded once to a power-of-two grid on which all sums that can occur are exact in float64, and which is far
coarser than what processors and libraries differ by in exp or a matrix product. So a device's sum does not depend on
the order of addition, on threads or, but for the rarest coincidence, on the processor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardc.cost.model import CostModel, PhasedCost
from shardc.problem import Bools, Floats, Ints, Placement, Problem, Site

_EXACT_BITS = 32  # of the largest sum there can be; float64 has 53, and the last dozen differ between processors
SHARPNESS = 1000.0  # of soft maxima: two devices that differ by a thousandth of the step time count as 1 to e
LIKELY = 48  # exchanges of two devices that are scored, out of thousands
_MOST_EXPONENT = 600.0
_LOST = 1e-6
_LEAST_SHARE = 1e-4  # of a soft maximum: a device with less cannot lower it
_HUGE = 1e30  # a number of single precision; estimates above it are equally bad
_LEAST_PROMISE = 1e-6  # relative: what looks better by less is not looked at


@dataclass(frozen=True)
class Judgement:
    """What a placement costs.

    Attributes:
        step_time_ms: predicted step time.
        feasible: whether memory, pins and exclusions are kept.
        z: float[D, K], summed latents.
        memory: int[M, D], bytes of each device, by kind of memory.
    """

    step_time_ms: float
    feasible: bool
    z: Floats
    memory: Ints


@dataclass(frozen=True)
class Judge:
    """A problem under a cost model.

    Attributes:
        problem: the problem.
        cost: the cost model.
    """

    problem: Problem
    cost: CostModel

    @cached_property
    def latents(self) -> Floats:
        """float[G, U, K]: what one unit of each kind adds to each of its devices, by the kind of host, on the grid."""
        problem, kinds = self.problem, range(len(self.problem.cluster.kinds))
        if isinstance(self.cost, PhasedCost):
            by_kind = [self.cost.encode_on(kind, problem.shards) for kind in kinds]
        else:
            by_kind = [self.cost.encode(problem.shards)] * len(kinds)
        encoded = np.asarray(by_kind, dtype=np.float64)
        if encoded.ndim != 3 or encoded.shape[1] != len(problem.shards) or not np.isfinite(encoded).all():
            raise ValueError(f"cost.encode must return finite latents, float[{len(problem.shards)}, K]")
        count = [len(shards) for shards in problem.unit_shards]
        pieces = encoded[:, np.concatenate(problem.unit_shards)]
        latents = np.add.reduceat(pieces, np.cumsum([0, *count[:-1]]), axis=1)
        # The largest sum there can be is all units of the costliest options on one device.
        most = np.add.reduceat(np.abs(latents).max(axis=0) * problem.unit_count[:, None], problem.first_unit)
        peak = np.maximum.reduceat(most, problem.first_option)
        _, exponent = np.frexp(peak.sum(axis=0))
        grid = np.ldexp(1.0, exponent - _EXACT_BITS)
        return np.asarray(np.rint(latents / grid) * grid)

    @cached_property
    def single_ms(self) -> Floats:
        """float[U]: step time if nothing but one unit were on one device, of the first kind of hosts."""
        return self.device_ms(self.latents[0])

    @cached_property
    def option_ms(self) -> Floats:
        """float[O]: single costs of all units of an option, each on all its devices, added up."""
        problem = self.problem
        work = self.single_ms * problem.unit_count * problem.site_size[problem.option_site][problem.unit_option]
        return np.add.reduceat(work, problem.first_unit)

    def device_ms(self, z: Floats) -> Floats:
        """What loads cost a device, float[...] ms for float[..., K]: the step time if it were the only device."""
        return self.step_ms(z[..., None, :])

    def phase_ms(self, z: Floats) -> Floats:
        """What loads cost a device by phase, float[..., P] ms; one phase for a cost model that has none."""
        if isinstance(self.cost, PhasedCost):
            return self.rounded(self.cost.device_ms(z))
        return self.device_ms(z)[..., None]

    def step_ms(self, z: Floats) -> Floats:
        """Step time of placements, float[...] ms, from summed latents float[..., D, K]."""
        ms = np.asarray(self.cost.score(z), dtype=np.float64)
        if ms.shape != z.shape[:-2] or not (np.isfinite(ms) & (ms >= 0)).all():
            raise ValueError(
                "cost.score must return one finite, non-negative time for each placement, float[...] for z[..., D, K]"
            )
        return self.rounded(ms)

    @staticmethod
    def rounded(ms: Floats) -> Floats:
        """Times to a millionth of a microsecond: what differs by less is equal, on every machine."""
        return np.round(ms, 9)

    def loads(self, placement: Placement) -> tuple[Floats, Ints]:
        """Summed latents float[D, K] and memory int[M, D] of every device."""
        problem = self.problem
        _, unit, device = problem.holdings(placement)
        z = np.zeros((problem.cluster.devices, self.latents.shape[2]))
        np.add.at(z, device, self.latents[problem.cluster.kind[device], unit])
        memory = np.zeros_like(problem.cluster.memory_limit)
        for of_devices, of_units in zip(memory, problem.unit_memory, strict=True):
            np.add.at(of_devices, device, of_units[unit])
        return z, memory

    def judge(self, placement: Placement) -> Judgement:
        """Weigh a placement."""
        z, memory = self.loads(placement)
        feasible = bool((memory <= self.problem.cluster.memory_limit).all()) and self.keeps_constraints(placement)
        return Judgement(float(self.step_ms(z)), feasible, z, memory)

    def keeps_constraints(self, placement: Placement) -> bool:
        """Say whether every block is where it may be, on one host if it has to, and apart from others if it has to."""
        problem, local = self.problem, self.problem.cluster.devices_per_host
        holdings = problem.holdings(placement)
        block, unit, device = holdings
        if not problem.allowed[block, device].all():
            return False
        one_host = problem.option_one_host[problem.unit_option[unit]]
        of_block, host = block[one_host], device[one_host] // local
        if ((np.diff(of_block) == 0) & (np.diff(host) != 0)).any():
            return False
        return bool((problem.labelled(holdings) <= 1).all())


class Changes(ABC):
    """One placement under change, and candidates that change few of its devices.

    Candidates are compared by a *guide* in ms, which is what a search lowers.

    Attributes:
        z: float[D, K], summed latents of the placement as it is.
        guide: its guide.
    """

    z: Floats
    guide: float

    @staticmethod
    def of(judge: Judge, z: Floats, targets: Floats | None = None, sharpness: float = SHARPNESS) -> Changes:
        """Changes of a placement float[D, K], guided by what its cost model tells of itself.

        Args:
            judge: the problem and its costs.
            z: summed latents.
            targets: float[P] ms, times of the phases beyond fixed costs that the guide aims at; None if there are none.
            sharpness: of soft maxima: devices that differ by its reciprocal of the step time count as 1 to e.
        """
        if isinstance(judge.cost, PhasedCost):
            return PhasedChanges(judge.cost, z, targets, sharpness)
        return WholeChanges(judge, z)

    @abstractmethod
    def costly(self) -> Ints:
        """Devices that have to do with the guide, those that have most to do with it first."""

    @abstractmethod
    def pressure(self, z: Floats) -> Floats:
        """How much a device with summed latents float[..., K] would have to do with the guide, float[...]."""

    @abstractmethod
    def some_devices(self, devices: Ints, loads: Floats) -> Floats:
        """Guide of candidates, float[N], in which devices int[N, M] hold loads float[N, M, K] instead."""

    @abstractmethod
    def whole(self, z: Floats) -> Floats:
        """Guide of whole placements, float[N], from summed latents float[N, D, K]."""

    @abstractmethod
    def likely(
        self, pair: Ints, given: Floats, taken: Floats, possible: Bools | None, rng: np.random.Generator
    ) -> Ints:
        """Exchanges between two devices that deserve a look, `LIKELY` at most.

        Args:
            pair: int[2], the devices.
            given: float[2, M, K], loads that may go from the first to the second, as either device has them.
            taken: float[2, N, K], loads that may go from the second to the first.
            possible: bool[M, N], exchanges to choose from; None for all.
            rng: for a choice where nothing better is known.

        Returns:
            Ascending indices into the M x N exchanges.
        """

    @abstractmethod
    def put(self, devices: Ints, loads: Floats) -> None:
        """Change the placement: devices int[M] hold loads float[M, K] from now on."""


class PhasedChanges(Changes):
    """Changes by a cost model in phases: only the devices that change are looked at.

    The step time is flat wherever several devices share the maximum of a phase. The guide takes a soft maximum instead
    (the logarithm of a sum of exponentials), which falls whenever any costly device gets cheaper: of every phase, added
    up like the step time; or, where there are targets, of what any device exceeds any of them by. Targets that a lower
    bound has found possible for all phases at once point to placements that no sum of maxima slopes towards.
    """

    def __init__(self, cost: PhasedCost, z: Floats, targets: Floats | None, sharpness: float) -> None:
        self._cost = cost
        self._targets = targets
        self.z = z.copy()
        self._ms = cost.varying_ms(z)  # [D, P]
        self._slopes: dict[int, Floats] = {}
        self._rate = sharpness / max(float(self._ms.max(axis=0).sum()), 1e-9)  # 1/ms
        self._summarise()

    def costly(self) -> Ints:
        """Devices that have a noticeable share of a soft maximum, beyond what all devices have; largest first."""
        share = ((self._powers - self._powers.min(axis=0)) / self._share).sum(axis=1)
        order = np.argsort(-share, kind="stable")
        return np.asarray(order[share[order] > _LEAST_SHARE])

    def pressure(self, z: Floats) -> Floats:
        """The share of the soft maxima that a device would have, float[...] for float[..., K]."""
        return np.asarray((self._power(self._cost.varying_ms(z)) / self._share).sum(axis=-1))

    def some_devices(self, devices: Ints, loads: Floats) -> Floats:
        """Guide of candidates, float[N], in which devices int[N, M] hold loads float[N, M, K] instead."""
        rest = self._sum - self._powers[devices].sum(axis=1)
        # The difference loses digits where the two have nearly all of the sum.
        if len(lost := np.flatnonzero((rest < _LOST * self._sum).any(axis=1))):
            others = np.ones((len(lost), len(self.z)))
            np.put_along_axis(others, devices[lost], 0.0, axis=1)
            rest[lost] = (others[..., None] * self._powers).sum(axis=1)
        return self._guide(rest + self._power(self._cost.varying_ms(loads)).sum(axis=1)) + self._fixed

    def whole(self, z: Floats) -> Floats:
        """Guide of whole placements, float[N], from summed latents float[N, D, K]."""
        return self._guide(self._power(self._cost.varying_ms(z)).sum(axis=1)) + self._fixed_ms(z)

    def likely(
        self, pair: Ints, given: Floats, taken: Floats, possible: Bools | None, rng: np.random.Generator
    ) -> Ints:
        """The exchanges that are best to first order.

        Along tangents the exponentials of an exchange are those of what is given times those of what is taken, so all
        exchanges are one product of two small matrices.
        """
        factors_given, factors_taken = [], []
        for which, sign, device in zip((0, 1), (-1.0, 1.0), map(int, pair), strict=True):
            if device not in self._slopes:
                self._slopes[device] = self._rate * self._cost.slopes(self.z[device])
            slopes = sign * self._slopes[device][self._used]
            level = self._rate * (self._ms[device] - self._zero) - np.log(self._share)
            # Unlike a matrix product, einsum treats equal loads alike wherever they stand.
            factors_given.append(_bounded_exp(np.einsum("pk,nk->pn", slopes, given[which]) + level[self._used, None]))
            factors_taken.append(_bounded_exp(np.einsum("pk,nk->pn", -slopes, taken[which])))
        with np.errstate(over="ignore"):
            estimate = np.concatenate(factors_given).T @ np.concatenate(factors_taken)
        if possible is not None:
            estimate[~possible] = np.inf
        # In single precision equal exchanges are equal again, whatever order their products were added up in.
        single = np.minimum(estimate.ravel(), _HUGE).astype(np.float32)
        now = (self._powers[pair] / self._share)[:, self._used].sum()
        found = np.flatnonzero(single < now * (1.0 - _LEAST_PROMISE))
        if len(found) > LIKELY:
            found = found[single[found] <= np.partition(single[found], LIKELY)[LIKELY]][:LIKELY]
        return found

    def put(self, devices: Ints, loads: Floats) -> None:
        """Change the placement: devices int[M] hold loads float[M, K] from now on."""
        self.z[devices] = loads
        self._ms[devices] = self._cost.varying_ms(loads)
        for device in map(int, devices):
            self._slopes.pop(device, None)
        self._summarise()

    def _summarise(self) -> None:
        largest = self._ms.max(axis=0)
        self._used = np.flatnonzero(largest > 0)
        # What the exponentials are counted from, float[P] ms: the largest of them is about 1.
        self._zero = largest if self._targets is None else self._targets + (largest - self._targets).max()
        self._powers = self._power(self._ms)
        self._sum = self._powers.sum(axis=0)
        self._share = self._sum if self._targets is None else np.full_like(self._sum, self._sum.sum())
        self._fixed = float(self._fixed_ms(self.z))
        self.guide = float(self._guide(self._sum)) + self._fixed

    def _power(self, ms: Floats) -> Floats:
        return _bounded_exp(self._rate * (ms - self._zero))

    def _guide(self, sums: Floats) -> Floats:
        """Guide beyond fixed costs, float[...] ms, from sums of exponentials float[..., P]."""
        if self._targets is None:
            return Judge.rounded(self._zero.sum() + np.log(sums).sum(axis=-1) / self._rate)
        return Judge.rounded((self._zero - self._targets).max() + np.log(sums.sum(axis=-1)) / self._rate)

    def _fixed_ms(self, z: Floats) -> Floats:
        """Fixed costs of the phases that any device takes part in, float[...] ms for float[..., D, K]."""
        return np.asarray(self._cost.present(z).max(axis=-2) @ self._cost.constants)


class WholeChanges(Changes):
    """Changes by a cost model that says nothing of itself: the guide is the step time, of all devices every time."""

    def __init__(self, judge: Judge, z: Floats) -> None:
        self._judge = judge
        self.z = z.copy()
        self.guide = float(judge.step_ms(z))

    def costly(self) -> Ints:
        """All devices, those that would cost most alone first."""
        return np.argsort(-self.pressure(self.z), kind="stable")

    def pressure(self, z: Floats) -> Floats:
        """What a device would cost alone, float[...] ms for float[..., K]."""
        return self._judge.device_ms(z)

    def some_devices(self, devices: Ints, loads: Floats) -> Floats:
        """Step time of candidates, float[N], in which devices int[N, M] hold loads float[N, M, K] instead."""
        z = np.repeat(self.z[None], len(devices), axis=0)
        z[np.arange(len(devices))[:, None], devices] = loads
        return self._judge.step_ms(z)

    def whole(self, z: Floats) -> Floats:
        """Step time of whole placements, float[N], from summed latents float[N, D, K]."""
        return self._judge.step_ms(z)

    def likely(
        self, pair: Ints, given: Floats, taken: Floats, possible: Bools | None, rng: np.random.Generator
    ) -> Ints:
        """Any exchanges."""
        found = np.arange(given.shape[1] * taken.shape[1]) if possible is None else np.flatnonzero(possible)
        return np.sort(rng.choice(found, LIKELY, replace=False)) if len(found) > LIKELY else found

    def put(self, devices: Ints, loads: Floats) -> None:
        """Change the placement: devices int[M] hold loads float[M, K] from now on."""
        self.z[devices] = loads
        self.guide = float(self._judge.step_ms(self.z))


def _bounded_exp(exponent: Floats) -> Floats:
    """Exponentials that neither overflow nor vanish, nor do products of two."""
    return np.exp(np.minimum(np.maximum(exponent, -_MOST_EXPONENT), _MOST_EXPONENT))


class Partial:
    """A placement under construction: what the devices hold so far. Placers add to it unit by unit."""

    def __init__(self, judge: Judge, options: Sequence[int]) -> None:
        """Start with what has only one place: options of `options` (one a block) that take up all devices."""
        problem = judge.problem
        self.judge = judge
        self.options = tuple(options)
        self.z = np.zeros((problem.cluster.devices, judge.latents.shape[2]))
        self.memory = np.zeros_like(problem.cluster.memory_limit)
        self.places: list[list[int]] = [[] for _ in options]
        self._taken = np.zeros((problem.label_count, problem.cluster.devices), dtype=bool)
        for block in np.flatnonzero(problem.option_site[list(self.options)] == Site.CLUSTER):
            self.add(int(block), int(problem.first_unit[self.options[block]]), 0)

    def fits(self, block: int, unit: int) -> Bools:
        """bool[D or hosts]: the places that may take one more unit of a block; the mask of every placer."""
        problem, option = self.judge.problem, self.options[block]
        room = (self.memory + problem.unit_memory[:, unit, None] <= problem.cluster.memory_limit).all(axis=0)
        blocked = self._taken[problem.labels[block]].any(axis=0)
        fits = problem.allowed[block] & room & ~blocked
        local = problem.cluster.devices_per_host
        if problem.option_one_host[option]:
            if self.places[block]:
                fits &= np.arange(len(fits)) // local == self.places[block][0] // local
            else:
                enough = fits.reshape(-1, local).sum(axis=1) >= problem.option_units[option]
                fits &= np.repeat(enough, local)
        return np.asarray(fits.reshape(-1, problem.site_size[problem.option_site[option]]).all(axis=1))

    def after(self, block: int, unit: int) -> Floats:
        """float[D, K]: what devices would hold with a unit of a block."""
        latents = self.judge.latents
        return np.asarray(self.z + latents[self.judge.problem.cluster.kind, unit])

    def add(self, block: int, unit: int, place: int) -> None:
        """Put one unit of a block at a place."""
        problem, option = self.judge.problem, self.options[block]
        devices = problem.devices_of(option, place)
        self.z[devices] += self.judge.latents[problem.cluster.kind[devices], unit]
        self.memory[:, devices] += problem.unit_memory[:, unit, None]
        self._taken[problem.labels[block], devices] = True
        self.places[block].append(place)

    def placement(self) -> Placement:
        """The finished placement."""
        problem = self.judge.problem
        return Placement(
            self.options, tuple(problem.sorted_places(o, p) for o, p in zip(self.options, self.places, strict=True))
        )
