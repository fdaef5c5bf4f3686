"""SH312: a plan was changed after it was compiled."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.plan import is_as_written


def edited(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the plan's document is not the one that its digest is of."""
    if is_as_written(context.text) is False:
        message = f"{context.path} is not what shardc wrote: it was edited, or merged, after it was compiled"
        yield Diagnostic("SH312", message, help=context.recompile)
