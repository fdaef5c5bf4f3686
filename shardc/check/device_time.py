"""SH408: a device's compute time differs too much from the base's plan."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import STATED, Context
from shardc.diagnostics import Diagnostic
from shardc.plan import Plan
from shardc.units import format_ms


def device_time(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if a device's time changes by more than `device_time` of the busiest device's in the base."""
    allowed, base = context.limit("device_time"), context.before
    if allowed is None or base is None or base.digests.cost != context.digests.cost:
        return
    old, new = _times(base), _times(context.figures)
    if len(old) != len(new) or max(old, default=0.0) <= 0:
        return
    change, rank = max((abs(after - before), -rank) for rank, (before, after) in enumerate(zip(old, new, strict=True)))
    rank = -rank
    if change > (allowed + STATED) * max(old):
        message = (
            f"device {rank} computes for {format_ms(new[rank])} a step, for {format_ms(old[rank])} in "
            f"{context.base_name}: a change by {change / max(old):.1%} of the busiest device's, "
            f"{context.allowed('device_time')} is allowed"
        )
        yield Diagnostic("SH408", message, context.at("device_time"), help="see what moved, or raise the budget")


def _times(plan: Plan) -> list[float]:
    """Compute times of the devices, in ms; none where they are unknown."""
    times = [(device.forward_ms, device.backward_ms) for device in plan.score.devices]
    return [forward + backward for forward, backward in times if forward is not None and backward is not None]
