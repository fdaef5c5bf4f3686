"""A cost model corrected by measurements, of single shards or of whole devices.

Latents are scaled, forward and backward apart, until the model predicts what was measured of a shard alone, or of all
that a device holds, or by a factor of ten at most; how costs combine on a device stays as the model learned it. Scaling
keeps latents non-negative, so the heads stay convex and non-decreasing and bounds stay certified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardc.cost.model import ComputeCost
from shardc.problem import Bools, Floats, Ints, Shards

_LIMITS = (0.1, 10.0)  # a larger correction would mean that the fixed cost, not the load, is off
_HALVINGS = 50
_ROUNDS = 30


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
    logs = _corrections(base, latents, measured)
    known: Bools = np.asarray(np.isfinite(measured).all(axis=1))
    # What a shard that was not measured has to go by: shards whose time is mostly load, not the operator's fixed cost.
    telling = known[:, None] & (base.heads(latents) > base.constants)
    usual = np.array([np.median(logs[telling[:, p], p]) if telling[:, p].any() else 0.0 for p in (0, 1)])
    return CalibratedCost(base, _scaled(latents, np.where(known[:, None], logs, usual)), shards)


def calibrate_devices(base: ComputeCost, shards: Shards, tables: Ints, held: Bools, measured: Floats) -> CalibratedCost:
    """Scale the latents of tables until devices cost what was measured of all that they hold.

    One measurement of a device says nothing about which of its tables is to blame, so all of them take the same
    factor; a table on several devices takes the mean of theirs, and those that are on one only make up for the
    difference. A factor is that of all shards of its table, of those that are placed nowhere too: a change of sharding
    must not look better only because it was not measured.

    Args:
        base: the model to correct, as of `calibrate`.
        shards: S shards.
        tables: int[S], the table that each shard is a piece of.
        held: bool[D, S], the shards that each device holds.
        measured: float[D, 2] ms, forward and backward; devices with NaN say nothing. Tables on such devices only take
            the median factor of the others.
    """
    latents = base.encode(shards)
    telling = held.any(axis=1) & np.isfinite(measured).all(axis=1)
    held, measured = held[telling], measured[telling]
    on = np.zeros((int(tables.max()) + 1, len(held)), dtype=bool)  # [tables, devices]
    np.logical_or.at(on, tables, held.T)
    devices = on.sum(axis=1, keepdims=True)
    logs = np.zeros((len(on), 2))
    for _ in range(_ROUNDS):
        loads = held @ _scaled(latents, logs[tables])
        logs += on @ _corrections(base, loads, measured) / np.maximum(devices, 1)
        logs = np.clip(logs, *np.log(_LIMITS))
    seen: Bools = np.asarray(devices > 0)
    usual = np.median(logs[seen[:, 0]], axis=0) if seen.any() else np.zeros(2)
    return CalibratedCost(base, _scaled(latents, np.where(seen, logs, usual)[tables]), shards)


def _corrections(base: ComputeCost, latents: Floats, measured: Floats) -> Floats:
    """Logarithms of the factors of latents float[N, K] that make the heads meet what was measured, float[N, 2] ms.

    They are the lower limit where even that costs more than was measured, and the upper one where NaN was.
    """
    low = np.full((len(latents), 2), np.log(_LIMITS[0]))
    high = np.full((len(latents), 2), np.log(_LIMITS[1]))
    # Each head grows with its factor: bisection, for all of them at once.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = base.heads(_scaled(latents, middle)) + base.constants > np.nan_to_num(measured, nan=np.inf)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low


def _scaled(latents: Floats, logs: Floats) -> Floats:
    """Latents float[N, K] times factors with logarithms float[N, 2], for their forward and their backward half."""
    return np.asarray(latents * np.repeat(np.exp(logs), latents.shape[1] // 2, axis=1))
