"""SH312: a plan was changed after it was compiled."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.plan import Plan, is_as_written


def edited(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the plan's document is not the one that its digest is of."""
    if is_as_written(context.text) is False:
        message = f"{context.path} is not what shardc wrote: it was edited, or merged, after it was compiled"
        yield Diagnostic("SH312", message, help=context.recompile)


def unsigned(plan: Plan) -> Iterator[str]:
    """Yield a note if the plan has no digest: the first versions wrote none, and an edit may have removed it."""
    if plan.digest is None:
        yield "the plan has no digest, so it cannot be told whether it was edited: shardc check --update adds one"
