"""The one judge: every placer proposes, and every placement is weighed here by the same function.

Latents are rounded once to a power-of-two grid on which all sums that can occur are exact in float64. So a device's
sum does not depend on the order of addition, on threads or on the processor, and neither does a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardc.cost.model import CostModel, StepCost
from shardc.problem import Bools, Floats, Ints, Placement, Problem

_EXACT_BITS = 50  # of float64's 53: the rest is room for rounding up


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
        return self.rounded(self.cost.score(z[..., None, :]))

    def step_ms(self, z: Floats) -> Floats:
        """Step time of placements, float[...] ms, from summed latents float[..., D, K]."""
        return self.rounded(self.cost.score(z))

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
    """Scores candidates that change few devices of one placement, without summing all devices again."""

    def __init__(self, judge: Judge, z: Floats) -> None:
        self._judge = judge
        self._z = z
        self._cost = judge.cost if isinstance(judge.cost, StepCost) else None
        if self._cost:
            self.phase_ms = self._cost.device_ms(z)  # [D, P]
            order = np.argsort(-self.phase_ms, axis=0, kind="stable")[:3]
            self._top, self._top_ms = order, np.take_along_axis(self.phase_ms, order, axis=0)

    def critical(self) -> Ints:
        """Devices that determine the step time: the costliest of each phase, the one that decides most first."""
        if not self._cost:
            return np.argsort(-self._judge.device_ms(self._z), kind="stable")[:1]
        lead = self._top_ms[0] - self._top_ms[min(1, len(self._top_ms) - 1)]
        phases = np.argsort(-(self._top_ms[0] + lead), kind="stable")
        return np.array(list(dict.fromkeys(int(self._top[0, p]) for p in phases if self._top_ms[0, p] > 0)), dtype=int)

    def two_devices(self, devices: Ints, loads: Floats) -> Floats:
        """Step time, float[N] ms, when devices int[N, 2] hold loads float[N, 2, K] instead."""
        if not self._cost:
            z = np.repeat(self._z[None], len(devices), axis=0)
            z[np.arange(len(devices))[:, None], devices] = loads
            return self._judge.step_ms(z)
        changed = self._cost.device_ms(loads).max(axis=1)  # [N, P]
        untouched = (self._top[None] != devices[:, 0, None, None]) & (self._top[None] != devices[:, 1, None, None])
        others = np.where(untouched, self._top_ms[None], 0.0).max(axis=1)
        return self._judge.rounded(np.maximum(changed, others).sum(axis=-1))


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
