"""SH406: the hardware profile is newer than the plan."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic


def profile_changed(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the figures that a plan states rest on another state of its hardware profile."""
    plan, today = context.plan.digests, context.digests
    if plan.cost == today.cost and plan.profile != today.profile:
        message = f"the hardware profile has changed since {context.path} was compiled"
        yield Diagnostic("SH406", message, context.loaded.at("cluster", "device"), help=context.recompile)
