"""SH402: a plan is too far above its lower bound."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_ms


def gap(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if a plan is further above its lower bound than `gap`."""
    bound, allowed = context.figures.bound, context.limit("gap")
    if allowed is not None and bound and bound.gap > allowed:
        above = f"is {bound.gap:.1%} above its lower bound of {format_ms(bound.step_time_ms)}"
        message = f"{context.path} {above}, {context.allowed('gap')} is allowed"
        fix = 'search longer (effort = "thorough"), allow more sharding types, or raise the budget'
        yield Diagnostic("SH402", message, context.at("gap"), help=fix)
