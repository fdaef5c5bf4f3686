"""A cost model corrected by measurements of single shards.

A measured shard's latents are scaled, forward and backward apart, until the model predicts what was measured for it
alone, or by a factor of ten at most; how costs combine on a device stays as the model learned it. Scaling keeps
latents non-negative, so the heads stay convex and non-decreasing and bounds stay certified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardc.cost.model import ComputeCost
from shardc.problem import Bools, Floats, Shards

_LIMITS = (0.1, 10.0)  # a larger correction would mean that the fixed cost, not the load, is off
_HALVINGS = 50


@dataclass(frozen=True)
class CalibratedCost:
    """Compute cost (see `shardc.cost.model.ComputeCost`) with factors for known shards.

    Attributes:
        base: the model that is corrected.
        latents: float[S, K], the corrected latents of the shards it was calibrated for.
        shards: those shards.
    """

    base: ComputeCost
    latents: Floats
    shards: Shards

    @property
    def constants(self) -> Floats:
        """Launch overhead, ms."""
        return self.base.constants

    def encode(self, shards: Shards) -> Floats:
        """Corrected latents float[S, K] of the shards it was calibrated for."""
        if shards is not self.shards:
            raise ValueError("a calibrated cost knows only the shards it was measured with")
        return self.latents

    def heads(self, z: Floats) -> Floats:
        """Forward and backward ms beyond the constants, float[..., 2]."""
        return self.base.heads(z)

    def slopes(self, z: Floats) -> Floats:
        """Subgradient of both heads at z, float[2, K]."""
        return self.base.slopes(z)


def calibrate(base: ComputeCost, shards: Shards, measured: Floats) -> CalibratedCost:
    """Scale the latents of `shards` to what was measured of each one alone.

    Args:
        base: the model to correct. The first half of its latents decides the forward head, the rest the backward one.
        shards: S shards.
        measured: float[S, 2] ms, forward and backward; rows with NaN take the median correction of the
            others whose time is mostly load.
    """
    latents = base.encode(shards)
    half = latents.shape[1] // 2
    low = np.full((len(shards), 2), np.log(_LIMITS[0]))
    high = np.full((len(shards), 2), np.log(_LIMITS[1]))

    def scaled(logs: Floats) -> Floats:
        return np.asarray(latents * np.repeat(np.exp(logs), half, axis=1))

    # Each head grows with its factor: bisection, for all shards at once.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = base.heads(scaled(middle)) + base.constants > np.nan_to_num(measured, nan=np.inf)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    known: Bools = np.asarray(np.isfinite(measured).all(axis=1))
    # What a shard that was not measured has to go by: shards whose time is mostly load, not the operator's fixed cost.
    telling = known[:, None] & (base.heads(latents) > base.constants)
    usual = np.array([np.median(low[telling[:, p], p]) if telling[:, p].any() else 0.0 for p in (0, 1)])
    return CalibratedCost(base, scaled(np.where(known[:, None], low, usual)), shards)
