"""SH401: a plan has become slower than it states."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import STATED, Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_ms


def step_time(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if a plan is slower than it states by more than `step_time`, by the same kind of costs."""
    plan, today, allowed = context.plan, context.figures, context.limit("step_time")
    if allowed is None or plan.digests.cost != today.digests.cost:
        return
    stated, now = plan.score.step_time_ms, today.score.step_time_ms
    if now > stated * (1 + allowed) * (1 + STATED):
        slower = f"{now / stated - 1:.1%} more" if stated else "more"
        message = f"{context.path} takes {format_ms(now)} a step, {slower} than the {format_ms(stated)} that it states"
        fix = f"{context.allowed('step_time')} is allowed; see what changed, or {context.recompile}"
        yield Diagnostic("SH401", message, context.at("step_time"), help=fix)
