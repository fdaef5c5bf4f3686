"""The one judge: every placer proposes, and every placement is weighed here by the same function.

Latents are rounded once to a power-of-two grid on which all sums that can occur are exact in float64, and which is far
coarser than what processors and libraries differ by in exp or a matrix product. So a device's sum does not depend on
the order of addition, on threads or, but for the rarest coincidence, on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardc.cost.model import CostModel, PhasedCost
from shardc.problem import Bools, Floats, Ints, Placement, Problem

_EXACT_BITS = 32  # of the largest sum there can be; float64 has 53, and the last dozen differ between processors
_SOFT_POWER = 8.0
_SOFT_SHARE = 0.3


@dataclass(frozen=True)
class Judgement:
    """What a placement costs.

    Attributes:
        step_time_ms: predicted step time.
        feasible: whether memory, pins and exclusions are kept.
        z: float[D, K], summed latents.
        memory: int[D], bytes on each device.
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
        """float[O, K]: latents of one unit of each option (of every device's share, if spread), on the grid."""
        problem = self.problem
        encoded = np.asarray(self.cost.encode(problem.shards), dtype=np.float64)
        if encoded.ndim != 2 or len(encoded) != len(problem.shards) or not np.isfinite(encoded).all():
            raise ValueError(f"cost.encode must return finite latents, float[{len(problem.shards)}, K]")
        count = [len(shards) for shards in problem.option_shards]
        owner = np.repeat(np.arange(len(count)), count)
        latents = np.zeros((len(count), encoded.shape[1]))
        np.add.at(latents, owner, encoded[np.concatenate(problem.option_shards)])
        # The largest sum there can be is all units of the costliest options on one device.
        most = np.maximum(problem.option_units, 1)[:, None] * np.abs(latents)
        peak = np.zeros((len(problem.blocks), latents.shape[1]))
        np.maximum.at(peak, problem.option_block, most)
        _, exponent = np.frexp(peak.sum(axis=0))
        grid = np.ldexp(1.0, exponent - _EXACT_BITS)
        return np.asarray(np.rint(latents / grid) * grid)

    @cached_property
    def single_ms(self) -> Floats:
        """float[O]: step time if nothing but one unit of the option were on one device."""
        return self.device_ms(self.latents)

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
        """Summed latents float[D, K] and memory int[D] of every device."""
        problem = self.problem
        z = np.zeros((problem.cluster.devices, self.latents.shape[1]))
        memory = np.zeros(problem.cluster.devices, dtype=np.int64)
        for option, devices in zip(placement.option, placement.devices, strict=True):
            where = list(devices) if problem.option_units[option] else slice(None)
            z[where] += self.latents[option]
            memory[where] += problem.option_memory[option]
        return z, memory

    def judge(self, placement: Placement) -> Judgement:
        """Weigh a placement."""
        z, memory = self.loads(placement)
        feasible = bool((memory <= self.problem.cluster.memory_limit).all()) and self._keeps_constraints(placement)
        return Judgement(float(self.step_ms(z)), feasible, z, memory)

    def _keeps_constraints(self, placement: Placement) -> bool:
        problem = self.problem
        seen: set[tuple[int, int]] = set()
        for block, devices in enumerate(placement.devices):
            for device in devices:
                marks = {(label, device) for label in problem.labels[block]}
                if not problem.allowed[block, device] or marks & seen:
                    return False
                seen |= marks
        return True


class Changes:
    """Scores candidates that change few devices of one placement, without summing all devices again.

    The step time alone is flat wherever several devices share a maximum. What guides a search is therefore the step
    time plus a share of the same sum with a soft maximum, which falls whenever any costly device gets cheaper.
    """

    def __init__(self, judge: Judge, z: Floats) -> None:
        self._judge = judge
        self._z = z
        self._cost = judge.cost if isinstance(judge.cost, PhasedCost) else None
        if self._cost:
            self._ms = self._cost.device_ms(z)  # [D, P]
            order = np.argsort(-self._ms, axis=0, kind="stable")[:3]
            self._top, self._top_ms = order, np.take_along_axis(self._ms, order, axis=0)
            self._scale = np.maximum(self._top_ms[0], 1e-9)
            self._powers = (self._ms / self._scale) ** _SOFT_POWER

    @property
    def guide(self) -> float:
        """What the placement itself scores on the scale of `two_devices`."""
        if not self._cost:
            return float(self._judge.step_ms(self._z))
        return float(_guide(self._top_ms[0], self._scale, self._powers.mean(axis=0)))

    def critical(self) -> Ints:
        """Devices that determine the step time: the costliest of each phase, of the longest phase first."""
        if not self._cost:
            return np.argsort(-self._judge.device_ms(self._z), kind="stable")[:1]
        phases = [p for p in np.argsort(-self._top_ms[0], kind="stable") if self._top_ms[0, p] > 0]
        return np.array(list(dict.fromkeys(int(self._top[0, p]) for p in phases)), dtype=np.int64)

    def two_devices(self, devices: Ints, loads: Floats) -> Floats:
        """Guide of candidates, float[N], in which devices int[N, 2] hold loads float[N, 2, K] instead."""
        if not self._cost:
            z = np.repeat(self._z[None], len(devices), axis=0)
            z[np.arange(len(devices))[:, None], devices] = loads
            return self._judge.step_ms(z)
        ms = self._cost.device_ms(loads)  # [N, 2, P]
        untouched = (self._top[None] != devices[:, 0, None, None]) & (self._top[None] != devices[:, 1, None, None])
        others = np.where(untouched, self._top_ms[None], 0.0).max(axis=1)
        # Where a candidate makes a phase far cheaper this difference loses digits, but then it is far ahead anyway.
        powers = self._powers.sum(axis=0) - self._powers[devices].sum(axis=1)
        powers = np.maximum(powers, 0.0) + ((ms / self._scale) ** _SOFT_POWER).sum(axis=1)
        return _guide(np.maximum(ms.max(axis=1), others), self._scale, powers / len(self._ms))

    @staticmethod
    def guides(judge: Judge, z: Floats) -> Floats:
        """Guide of whole placements, float[N], from summed latents float[N, D, K]."""
        if not isinstance(judge.cost, PhasedCost):
            return judge.step_ms(z)
        ms = judge.cost.device_ms(z)  # [N, D, P]
        maxima = ms.max(axis=1)
        scale = np.maximum(maxima, 1e-9)
        return _guide(maxima, scale, ((ms / scale[:, None]) ** _SOFT_POWER).mean(axis=1))


def _guide(maxima: Floats, scale: Floats, mean_power: Floats) -> Floats:
    """Step time plus a share of the soft maxima, float[...], from each phase's maximum and mean power in `scale`."""
    soft = scale * mean_power ** (1 / _SOFT_POWER)
    return Judge.rounded(maxima.sum(axis=-1) + _SOFT_SHARE * soft.sum(axis=-1))


class Partial:
    """A placement under construction: what the devices hold so far. Placers add to it unit by unit."""

    def __init__(self, judge: Judge, options: Sequence[int]) -> None:
        """Start with the spread options of `options` (one a block) in place."""
        problem = judge.problem
        self.judge = judge
        self.options = tuple(options)
        self.z = np.zeros((problem.cluster.devices, judge.latents.shape[1]))
        self.memory = np.zeros(problem.cluster.devices, dtype=np.int64)
        self.devices: list[list[int]] = [[] for _ in options]
        labels = 1 + max(label for of_block in problem.labels for label in of_block)
        self._taken = np.zeros((labels, problem.cluster.devices), dtype=bool)
        self._ahead = judge.single_ms[list(self.options)] * problem.option_units[list(self.options)]
        self._all_ms = max(float(self._ahead.sum()), 1e-9)
        for option in self.options:
            if problem.option_units[option] == 0:
                self.z += judge.latents[option]
                self.memory += problem.option_memory[option]

    def fits(self, block: int) -> Bools:
        """bool[D]: devices that may take one more unit of a block; the mask of every placer."""
        problem = self.judge.problem
        room = self.memory + problem.option_memory[self.options[block]] <= problem.cluster.memory_limit
        blocked = self._taken[list(problem.labels[block])].any(axis=0)
        return np.asarray(problem.allowed[block] & room & ~blocked)

    def add(self, block: int, device: int) -> None:
        """Put one unit of a block on a device."""
        option = self.options[block]
        self.z[device] += self.judge.latents[option]
        self.memory[device] += self.judge.problem.option_memory[option]
        self._taken[list(self.judge.problem.labels[block]), device] = True
        self._ahead[block] -= self.judge.single_ms[option]
        self.devices[block].append(device)

    def left(self) -> float:
        """Share of the units' single costs that is still to be placed."""
        return float(self._ahead.sum()) / self._all_ms

    def placement(self) -> Placement:
        """The finished placement."""
        return Placement(self.options, tuple(tuple(sorted(devices)) for devices in self.devices))
