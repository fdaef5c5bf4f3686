"""Minimax linear programs over mixes, solved by an interior-point method and certified whatever it reaches.

    minimise sum_p t_p  with  rows @ x + levels <= t[phase of the row],  or <= 0 for a row of no phase,
                              x >= 0, and the x of every block add up to one

There are few rows and many columns, so blocks and columns are eliminated and every step solves a system as large as the
number of rows (Mehrotra's predictor and corrector, 1992). The certificate does not need convergence. Any weights >= 0 of
the rows that add up to one by phase give a lower bound: the weighted mean of rows is below their maximum, and its least
value over all mixes is reached by one column a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shardc.problem import Floats, Ints

NO_PHASE = -1
"""The phase of a row that is a limit: nothing may exceed it."""

_ITERATIONS = 40
_TO_THE_BOUNDARY = 0.98  # of the longest step that keeps everything positive
_REGULAR = 1e-10  # keeps the system solvable where rows of a phase are all alike
# Weights are rounded far above what processors differ by, so that the bound is the same everywhere.
_WEIGHT_GRID = 2.0**-20


@dataclass(frozen=True, slots=True)
class Minimax:
    """One program: C rows, N columns, P phases.

    Attributes:
        rows: float[C, N].
        levels: float[C].
        phase: int[C], the phase of each row, or `NO_PHASE`. Every phase has a row.
        starts: int[B], first column of each block; ascending from 0.
    """

    rows: Floats
    levels: Floats
    phase: Ints
    starts: Ints

    @property
    def block(self) -> Ints:
        """int[N], the block of each column."""
        count = np.diff(np.append(self.starts, self.rows.shape[1]))
        return np.repeat(np.arange(len(self.starts)), count)

    def phases(self, mix: Floats) -> Floats:
        """float[P], the largest row of every phase at a mix."""
        largest = np.full(int(self.phase.max()) + 1, -np.inf)
        member = self.phase != NO_PHASE
        np.maximum.at(largest, self.phase[member], (self.rows[member] @ mix) + self.levels[member])
        return largest

    def value(self, weights: Floats) -> float:
        """What weights float[C] certify: no mix is below it. They may be off; they are made to fit first."""
        weights = np.rint(np.maximum(weights, 0.0) / _WEIGHT_GRID) * _WEIGHT_GRID
        member = self.phase != NO_PHASE
        total = np.zeros(int(self.phase.max()) + 1)
        np.add.at(total, self.phase[member], weights[member])
        uniform = 1.0 / np.bincount(self.phase[member])
        weights[member] = np.where(
            total[self.phase[member]] > 0,
            weights[member] / np.maximum(total[self.phase[member]], _WEIGHT_GRID),
            uniform[self.phase[member]],
        )
        return float(weights @ self.levels + np.minimum.reduceat(weights @ self.rows, self.starts).sum())


@dataclass(frozen=True, slots=True)
class Solution:
    """What was reached: a certified lower bound, and a mix float[N] that is close to it."""

    value: float
    mix: Floats


def solve(program: Minimax, tolerance: float, enough: float = np.inf) -> Solution:
    """Solve a program.

    Args:
        program: the program; it may have no solution, then the value grows until the method ends.
        tolerance: relative difference between bound and mix at which to end.
        enough: a bound that needs no improvement.
    """
    uniform = 1.0 / np.bincount(program.block)[program.block]
    scale = float(program.phases(uniform).sum())
    if not scale > 0:
        return Solution(0.0, uniform)
    state = _Iterate(Minimax(program.rows / scale, program.levels / scale, program.phase, program.starts), uniform)
    best = -np.inf
    for _ in range(_ITERATIONS):
        best = max(best, program.value(state.w))
        if best >= enough or state.residual() < tolerance or not state.advance():
            break
    return Solution(best, state.mix())


class _Iterate:
    """The method's variables: x, s (slack of rows), t; and their duals z of x, w of rows, v of blocks."""

    def __init__(self, program: Minimax, uniform: Floats) -> None:
        self._p = program
        self._block = program.block
        phases = int(program.phase.max()) + 1
        self._pick = (program.phase[:, None] == np.arange(phases)).astype(np.float64)  # [C, P]
        load = program.rows @ uniform + program.levels
        self.x = uniform
        self.t = program.phases(uniform) + 0.1 / phases
        self.s = np.maximum(self._pick @ self.t - load, 0.02)
        self.w = np.where(program.phase == NO_PHASE, 0.05, self._pick @ (1.0 / self._pick.sum(axis=0)))
        reduced = self.w @ program.rows
        self.v = np.minimum.reduceat(reduced, program.starts) - 0.05 / len(program.starts)
        self.z = reduced - self.v[self._block]

    def residual(self) -> float:
        """How far the mix's value is from the bound, and from keeping the rows: relative, all together."""
        missing = np.abs(self._p.rows @ self.x + self._p.levels - self._pick @ self.t + self.s).max()
        return float(self.x @ self.z + self.s @ self.w + 100.0 * missing)

    def mix(self) -> Floats:
        """The mix, made to add up to one."""
        return np.asarray(self.x / np.add.reduceat(self.x, self._p.starts)[self._block])

    def advance(self) -> bool:
        """One step; False if rounding leaves no way on."""
        p, block, starts = self._p, self._block, self._p.starts
        rows, count, phases = p.rows, len(p.levels), self._pick.shape[1]
        missing_one = 1.0 - np.add.reduceat(self.x, starts)
        missing_row = self._pick @ self.t - (rows @ self.x + p.levels) - self.s
        missing_cost = self.w @ rows - self.v[block] - self.z
        missing_weight = 1.0 - self.w @ self._pick
        theta = self.x / self.z
        scaled = rows * theta
        held = np.add.reduceat(theta, starts)
        by_block = np.add.reduceat(scaled, starts, axis=1)
        share = by_block / held
        system = np.zeros((count + phases, count + phases))
        system[:count, :count] = scaled @ rows.T - share @ by_block.T
        system[np.arange(count), np.arange(count)] += self.s / self.w
        system[:count, count:], system[count:, :count] = self._pick, self._pick.T
        system[np.arange(count, count + phases), np.arange(count, count + phases)] = -_REGULAR
        try:
            inverse = np.linalg.inv(system)
        except np.linalg.LinAlgError:
            return False

        def direction(target_x: Floats, target_s: Floats) -> tuple[Floats, ...]:
            """Changes of x, s, t, w, v, z for which x z and s w change by the targets, to first order."""
            known = target_x / self.z - theta * missing_cost
            open_one = missing_one - np.add.reduceat(known, starts)
            right = rows @ known + target_s / self.w - missing_row + share @ open_one
            solved = inverse @ np.concatenate([right, missing_weight])
            dw, dt = solved[:count], solved[count:]
            dv = (open_one + dw @ by_block) / held
            dz = dw @ rows - dv[block] + missing_cost
            return (target_x - self.x * dz) / self.z, (target_s - self.s * dw) / self.w, dt, dw, dv, dz

        dx, ds, _, dw, _, dz = direction(-self.x * self.z, -self.s * self.w)
        primal, dual = _longest((self.x, dx), (self.s, ds)), _longest((self.z, dz), (self.w, dw))
        now = self.x @ self.z + self.s @ self.w
        then = (self.x + primal * dx) @ (self.z + dual * dz) + (self.s + primal * ds) @ (self.w + dual * dw)
        centre = (then / now) ** 3 * now / (len(self.x) + count)
        changes = direction(centre - self.x * self.z - dx * dz, centre - self.s * self.w - ds * dw)
        if not all(np.isfinite(change).all() for change in changes):
            return False
        dx, ds, dt, dw, dv, dz = changes
        primal = min(1.0, _TO_THE_BOUNDARY * _longest((self.x, dx), (self.s, ds)))
        dual = min(1.0, _TO_THE_BOUNDARY * _longest((self.z, dz), (self.w, dw)))
        self.x, self.s, self.t = self.x + primal * dx, self.s + primal * ds, self.t + primal * dt
        self.w, self.v, self.z = self.w + dual * dw, self.v + dual * dv, self.z + dual * dz
        return True


def _longest(*pairs: tuple[Floats, Floats]) -> float:
    """The longest step, up to 1, along which positive values stay so."""
    steepest = min(float((change / value).min()) for value, change in pairs)
    return 1.0 if steepest > -1.0 else -1.0 / steepest
