"""SH409: a device's memory differs too much from the base's plan."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_bytes


def device_memory(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if what tables take of a device changes by more than `device_memory` of its limit."""
    allowed, base = context.limit("device_memory"), context.before
    if allowed is None or base is None or len(base.score.devices) != len(context.figures.score.devices):
        return
    pairs = zip(base.score.devices, context.figures.score.devices, strict=True)
    changes = [
        (abs(new.memory_bytes - old.memory_bytes) / new.memory_limit_bytes, -new.rank, old, new)
        for old, new in pairs
        if new.memory_limit_bytes
    ]
    if not changes:
        return
    share, _, old, new = max(changes, key=lambda change: change[:2])
    if share > allowed:
        message = (
            f"device {new.rank} holds {format_bytes(new.memory_bytes)}, {format_bytes(old.memory_bytes)} in "
            f"{context.base_name}: a change by {share:.1%} of its limit, {context.allowed('device_memory')} is allowed"
        )
        yield Diagnostic("SH409", message, context.at("device_memory"), help="see what moved, or raise the budget")
