"""profile: a hardware profile becomes the cost model that every placement of a problem is judged by.

The fused operator's cost comes from the profile: learned from measurements, or a roofline over data-sheet figures. On
request the problem's own shards are measured on the local device, and the profile's predictions corrected by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shardc.cost.calibrated import calibrate
from shardc.cost.model import StepCost
from shardc.diagnostics import Diagnostic
from shardc.hardware import Hardware
from shardc.problem import Floats, Problem, Shards
from shardc.spec import LoadedSpec

Measure = Callable[[Shards], Floats]
"""Measures S shards one by one: forward and backward ms, float[S, 2]; NaN for a shard that could not be measured."""


@dataclass(frozen=True, slots=True)
class Profiled:
    """A cost model and how far to trust it.

    Attributes:
        cost: the cost model.
        warnings: what the profile did not measure.
        measured: float[S, 2] ms of the problem's own shards, if they were measured.
    """

    cost: StepCost
    warnings: tuple[Diagnostic, ...]
    measured: Floats | None


def profile(problem: Problem, hardware: Hardware, loaded: LoadedSpec, measure: Measure | None = None) -> Profiled:
    """Build the cost model of a problem.

    Args:
        problem: the lowered problem.
        hardware: the device's profile.
        loaded: the spec, for the place of warnings.
        measure: measures the problem's own shards; None to rely on the profile alone.
    """
    compute = hardware.compute(problem.optimizer, problem.weights)
    warnings = tuple(_unmeasured(hardware, problem, loaded, measuring=measure is not None))
    if measure is None:
        return Profiled(StepCost(compute, problem.cluster), warnings, None)
    measured = measure(problem.shards)
    missing = int(np.isnan(measured).any(axis=1).sum())
    if missing:
        message = f"{missing} of {len(measured)} shards were too large to measure here: their cost is predicted"
        warnings = (*warnings, Diagnostic("SH504", message, severity="warning"))
    calibrated = calibrate(compute, problem.shards, measured)
    return Profiled(StepCost(calibrated, problem.cluster), warnings, measured)


def _unmeasured(hardware: Hardware, problem: Problem, loaded: LoadedSpec, *, measuring: bool) -> list[Diagnostic]:
    """Warnings about what the profile never saw."""
    if hardware.measured is None:
        if measuring:
            return []
        message = f"costs of {hardware.name} are computed from its data sheet, not measured"
        fix = "run `shardc profile` on such a device and name the folder it makes"
        return [Diagnostic("SH501", message, loaded.at("cluster", "device"), help=fix, severity="warning")]
    found = []
    seen = {"optimizer": hardware.measured.optimizers, "weights": hardware.measured.weights, "outputs": ("fp32",)}
    asked = {"optimizer": str(problem.optimizer), "weights": problem.weights, "outputs": problem.outputs}
    for key, value in asked.items():
        if value not in seen[key]:
            message = f'{hardware.name} was not measured with {key} "{value}": costs are extrapolated'
            fix = f"measured: {', '.join(seen[key])}"
            found.append(Diagnostic("SH502", message, loaded.at("model", key), help=fix, severity="warning"))
    low, high = hardware.measured.batch
    fewest, most = int(problem.shards.bags.min()), int(problem.shards.bags.max())
    if fewest < low or most > high:
        asked_for = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        message = (
            f"{hardware.name} was measured with batches of {low} to {high}, here they are {asked_for}: extrapolated"
        )
        found.append(Diagnostic("SH502", message, loaded.at("model", "global_batch"), severity="warning"))
    return found
