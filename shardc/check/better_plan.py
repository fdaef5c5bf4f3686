"""SH403: a newly compiled plan is better."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import STATED, Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_ms


def better_plan(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if compiling again gives a plan that is better by more than `improvement`."""
    allowed = context.limit("improvement")
    if context.compiled is None or allowed is None:
        return
    committed, compiled = context.figures.score.step_time_ms, context.compiled.score.step_time_ms
    if committed - compiled > committed * (allowed + STATED):
        better = f"{1 - compiled / committed:.1%} less than the {format_ms(committed)} of {context.path}"
        within = ""
        if context.compiled.migration and context.has_limit("moved"):
            within = f" that moves no more than {context.allowed('moved')} from {context.base_name}"
        message = f"a newly compiled plan{within} takes {format_ms(compiled)} a step, {better}"
        yield Diagnostic("SH403", message, context.at("improvement"), help=context.recompile)
