"""`shardc measure`: run what a plan puts on each device, compare that with the predictions, say what it would change.

The predictions are those of today's costs; a plan that was compiled with measurements of its shards is weighed by
these. What follows from the measurements is found by correcting the costs (`shardc.cost.calibrated`) and placing the
tables again: both plans are then compared under the corrected costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from shardc.check.checks import misfits, restate
from shardc.cost.calibrated import calibrate_devices
from shardc.cost.model import StepCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.measure.own import DISTURBED, measure_shards, require_device
from shardc.measure.plan import MeasuredDevices, measure_devices
from shardc.measure.workload import Timing, Workload
from shardc.passes.restore import placement_of
from shardc.pipeline import device_of, place_again, run
from shardc.plan import Plan
from shardc.problem import Floats, Optimizer, Placement, Problem
from shardc.spec import LoadedSpec


class Progress(Protocol):
    """Shows how much of a stage is done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A plan's devices as they were measured, and what follows.

    Attributes:
        plan: the plan, with the figures that today's costs predict.
        device: name of the local device.
        measured_ms: float[D, 2], forward and backward; NaN for a device that was too large to measure.
        predicted_steps_ms: step time by today's costs, of the plan and of the one that a new compile makes by them.
        corrected_steps_ms: the same by the corrected costs.
        improves: whether the new compile by corrected costs is better by more than the spec's budget lets pass.
        moved: names of the tables that it puts elsewhere or shards in another way.
        timed: every operator that was measured, and its times.
        warnings: how far to trust the predictions.
        notes: what has changed since the plan was compiled, and what disturbed the measurements.
    """

    plan: Plan
    device: str
    measured_ms: Floats
    predicted_steps_ms: tuple[float, float]
    corrected_steps_ms: tuple[float, float]
    improves: bool
    moved: tuple[str, ...]
    timed: tuple[tuple[Workload, Timing], ...]
    warnings: tuple[Diagnostic, ...]
    notes: tuple[str, ...]

    @property
    def predicted_ms(self) -> Floats:
        """What today's costs predict of every device, float[D, 2], forward and backward."""
        return np.array([(device.forward_ms, device.backward_ms) for device in self.plan.score.devices])


def calibrate_plan(plan: Plan, loaded: LoadedSpec, *, progress: Progress) -> Calibration:
    """Measure what a plan puts on each device, on the local one, and correct the costs by it.

    Raises:
        DiagnosticError: SH304 to SH309 when the plan does not fit its spec, SH503 when the local device is of another
            kind than the plan's, SH504 when no device of the plan fits in local memory, SH505 when costs are TorchRec's
            estimates; and what makes the spec impossible to compile.
        ModuleNotFoundError: without torch and FBGEMM.
    """
    hardware, at = device_of(loaded), loaded.at("cluster", "device")
    local = require_device(hardware, {Optimizer(loaded.spec.model.optimizer)}, at)
    shards_too = partial(measure_shards, hardware=hardware, at=at, progress=partial(progress, "measure shards"))
    compiled = run(loaded, measure=shards_too if plan.digests.measurements else None)
    if faults := misfits(plan, loaded, compiled):
        raise DiagnosticError(*faults)
    judge = compiled.choice.judge
    problem, cost = judge.problem, judge.cost
    if not isinstance(cost, StepCost):
        message = "TorchRec's estimates are of lookups and communication together: no measurement compares with them"
        fix = 'cost = "profile" takes what is known of the device'
        raise DiagnosticError(Diagnostic("SH505", message, loaded.at("compile", "cost"), help=fix), exit_code=2)
    placement = placement_of(plan, problem)
    held = problem.held(placement)
    measured = measure_devices(problem, held, hardware, progress=partial(progress, "measure devices"))
    if not (measured.ms > 0).any():
        why = f"does not fit in the memory of {local.name}" + ", or is in host memory" * bool(loaded.cached_tables)
        message = f"no device of the plan could be measured: what each holds {why}"
        raise DiagnosticError(Diagnostic("SH504", message), exit_code=2)
    compute = calibrate_devices(cost.compute, problem.shards, problem.shard_table, held, measured.ms)
    choice = place_again(compiled, loaded, StepCost(compute, problem.cluster))
    corrected, best = choice.judge.judge(placement).step_time_ms, choice.judgement.step_time_ms
    today = restate(plan, loaded, compiled)
    return Calibration(
        plan=today,
        device=local.name,
        measured_ms=measured.ms,
        predicted_steps_ms=(today.score.step_time_ms, compiled.choice.judgement.step_time_ms),
        corrected_steps_ms=(corrected, best),
        improves=best < corrected * (1 - (loaded.spec.budget.limit("improvement") or 0.0)),
        moved=tuple(_moved(problem, placement, choice.placement)),
        timed=measured.timed,
        warnings=compiled.warnings,
        notes=(*plan.digests.changes(today.digests), *_disturbed(measured)),
    )


def _disturbed(measured: MeasuredDevices) -> Iterator[str]:
    if measured.disturbance > DISTURBED:
        slower = f"{measured.disturbance:.1f} times as long as when the device was profiled"
        yield f"the reference set took up to {slower}: measure again when nothing else runs here"


def _moved(problem: Problem, old: Placement, new: Placement) -> list[str]:
    """Names of the tables whose option or devices differ."""
    where = [list(zip(placement.option, placement.places, strict=True)) for placement in (old, new)]
    blocks = [members for members, before, after in zip(problem.blocks, *where, strict=True) if before != after]
    return [problem.tables[table].name for members in blocks for table in members]
