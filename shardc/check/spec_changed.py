"""SH311: a spec has changed since its plan was compiled, and nothing says what the plan is worth now."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic


def spec_changed(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the plan is frozen and of another spec; else its placement is weighed under today's."""
    if context.frozen and context.plan.digests.spec != context.digests.spec:
        message = f"{context.loaded.path} has changed since {context.path} was compiled"
        fix = f"{context.recompile}; without --frozen, shardc check says whether the plan may stay"
        yield Diagnostic("SH311", message, help=fix)
