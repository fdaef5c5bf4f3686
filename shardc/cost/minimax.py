"""Minimax linear programs over mixes, solved by an interior-point method and certified whatever it reaches.

    minimise sum_p t_p  with  rows @ x + levels <= t[phase of the row],  or <= 0 for a row of no phase,
                              x >= 0, and the x of every block add up to one

There are few rows and many columns, so blocks and columns are eliminated, and each step solves a system as large as the
number of rows (Mehrotra's predictor and corrector, 1992). The certificate does not rest on convergence: any weights of
the rows, non-negative and adding up to one by phase, give a lower bound. The weighted mean of rows is below their
maximum, and its least value over all mixes is reached by one column a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardc.problem import Bools, Floats, Ints

NO_PHASE = -1
"""The phase of a row that is a limit: nothing may exceed it."""

_STEPS = 25  # what has not converged by then hardly moves any more
_TO_THE_BOUNDARY = 0.98  # of the longest step that keeps everything positive
_REGULAR = 1e-10  # keeps the system solvable where all rows of a phase are alike
_LITTLE = 1e-3
_IMPOSSIBLE = 2.0
# Weights are rounded far above what processors differ by, so that the bound is the same everywhere.
_WEIGHT_GRID = 2.0**-14


@dataclass(frozen=True)
class Minimax:
    """One program: C rows, N columns, B blocks, P phases.

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

    @cached_property
    def block(self) -> Ints:
        """int[N], the block of each column."""
        count = np.diff(np.append(self.starts, self.rows.shape[1]))
        return np.repeat(np.arange(len(self.starts), dtype=np.int64), count)

    @cached_property
    def members(self) -> Floats:
        """float[C, P], 1.0 where a row is of a phase."""
        return np.asarray(self.phase[:, None] == np.arange(int(self.phase.max()) + 1), dtype=np.float64)

    def phases(self, mix: Floats) -> Floats:
        """float[P], the largest row of every phase at a mix float[N]."""
        rows = self.rows @ mix + self.levels
        return np.asarray(np.where(self.members > 0, rows[:, None], -np.inf).max(axis=0))

    def value(self, weights: Floats) -> float:
        """What weights float[C] certify: no mix is below it. They need not be exact, they are made to add up first."""
        weights = np.rint(np.maximum(weights, 0.0) / _WEIGHT_GRID) * _WEIGHT_GRID
        total = weights @ self.members
        even = 1.0 / self.members.sum(axis=0)
        factor = 1.0 / np.where(total > 0, total, 1.0)
        weights = np.where(
            self.phase == NO_PHASE, weights, weights * (self.members @ factor) + self.members @ (even * (total == 0))
        )
        return float(weights @ self.levels + np.minimum.reduceat(weights @ self.rows, self.starts).sum())


@dataclass(frozen=True, slots=True)
class Solution:
    """What was reached: a certified lower bound, a mix float[N] that is close to it, and in how many steps."""

    value: float
    mix: Floats
    steps: int


def solve(program: Minimax, tolerance: float) -> Solution:
    """Solve a program.

    Args:
        program: the program; if no mix keeps its limits, every value is a lower bound, and a large one is returned.
        tolerance: relative difference between bound and mix at which to end.
    """
    kept = _undominated(program)
    mix, whole = np.zeros(len(kept)), program
    starts = np.concatenate([[0], np.cumsum(np.add.reduceat(kept, whole.starts))[:-1]])
    program = Minimax(whole.rows[:, kept], whole.levels, whole.phase, starts)
    even = 1.0 / np.bincount(program.block)[program.block]
    scale = float(program.phases(even).sum())
    if not scale > 0:
        mix[kept] = even
        return Solution(0.0, mix, 0)
    state = _Iterate(Minimax(program.rows / scale, program.levels / scale, program.phase, program.starts), even)
    steps = 0
    while steps < _STEPS and state.residual() > tolerance and state.advance():
        steps += 1
        # So many times what an even mix costs: there is no mix.
        if program.value(state.w) > _IMPOSSIBLE * scale:
            break
    # Rows that do not matter keep a little weight on the way; without it the value is often exact.
    value = max(program.value(state.w), program.value(np.where(state.w < _LITTLE, 0.0, state.w)))
    mix[kept] = state.mix()
    return Solution(value, mix, steps)


def _undominated(program: Minimax) -> Bools:
    """bool[N]: columns that no other one of their block is nowhere above; of equal ones the first."""
    starts, columns = program.starts, program.rows.shape[1]
    kept = np.ones(columns, dtype=bool)
    counts = np.diff(np.append(starts, columns))
    for count in np.flatnonzero(np.bincount(counts)):
        alike = starts[counts == count][:, None] + np.arange(count)  # [B, n]
        rows = program.rows[:, alike]
        below = np.asarray((rows[..., None] <= rows[..., None, :]).all(axis=0))  # [B, n, n]
        better = below & (~below.swapaxes(1, 2) | np.triu(np.ones((count, count), dtype=bool), k=1))
        kept[alike] = ~better.any(axis=1)
    return kept


class _Iterate:
    """The method's variables: x, s (slack of rows), t; and their duals: z of x, w of rows, v of blocks."""

    def __init__(self, program: Minimax, even: Floats) -> None:
        self._p = program
        phases = program.members.shape[1]
        self.x = even
        self.t = program.phases(even) + 0.1 / phases
        self.s = np.maximum(program.members @ self.t - (program.rows @ even + program.levels), 0.02)
        self.w = np.where(program.phase == NO_PHASE, 0.05, program.members @ (1.0 / program.members.sum(axis=0)))
        reduced = self.w @ program.rows
        self.v = np.minimum.reduceat(reduced, program.starts) - 0.05 / len(program.starts)
        self.z = reduced - self.v[program.block]

    def residual(self) -> float:
        """How far the mix's value is from the bound, and from keeping the rows: relative, all together."""
        return float(self.x @ self.z + self.s @ self.w + 100.0 * np.abs(self._missing_rows()).max())

    def mix(self) -> Floats:
        """The mix, made to add up to one."""
        return np.asarray(self.x / np.add.reduceat(self.x, self._p.starts)[self._p.block])

    def advance(self) -> bool:
        """Take one step; False if rounding leaves no way on."""
        rows, members, block, starts = self._p.rows, self._p.members, self._p.block, self._p.starts
        count, phases = members.shape
        missing_ones, missing_rows = 1.0 - np.add.reduceat(self.x, starts), self._missing_rows()
        missing_costs, missing_weights = self.w @ rows - self.v[block] - self.z, 1.0 - self.w @ members
        theta = self.x / self.z
        scaled = rows * theta
        held = np.add.reduceat(theta, starts)
        by_block = np.add.reduceat(scaled, starts, axis=1)
        share = by_block / held
        system = np.zeros((count + phases, count + phases))
        system[:count, :count] = scaled @ rows.T - share @ by_block.T + np.diag(self.s / self.w)
        system[:count, count:], system[count:, :count] = members, members.T
        system[count:, count:] = -_REGULAR * np.eye(phases)
        try:
            inverse = np.linalg.inv(system)
        except np.linalg.LinAlgError:
            return False

        def direction(target_x: Floats, target_s: Floats) -> tuple[Floats, ...]:
            """Changes of x, s, t, w, v, z that make x z and s w change by the targets, to first order."""
            known = target_x / self.z - theta * missing_costs
            open_ones = missing_ones - np.add.reduceat(known, starts)
            right = rows @ known + target_s / self.w - missing_rows + share @ open_ones
            solved = inverse @ np.concatenate([right, missing_weights])
            dw, dt = solved[:count], solved[count:]
            dv = (open_ones + dw @ by_block) / held
            dz = dw @ rows - dv[block] + missing_costs
            return (target_x - self.x * dz) / self.z, (target_s - self.s * dw) / self.w, dt, dw, dv, dz

        with np.errstate(over="ignore", invalid="ignore"):
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

    def _missing_rows(self) -> Floats:
        p = self._p
        return np.asarray(p.members @ self.t - (p.rows @ self.x + p.levels) - self.s)


def _longest(*pairs: tuple[Floats, Floats]) -> float:
    """The longest step along which positive values stay so; 1 if none is limited."""
    steepest = min(float((change / value).min()) for value, change in pairs)
    return 1.0 if steepest > -1.0 else -1.0 / steepest
