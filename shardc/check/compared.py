"""SH410: there is no older plan to compare with, or none that can be used."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic

_COMPARED = ("moved", "device_time", "device_memory")
"""Budgets of what changes."""

_REPAIR = "compare with another plan; for a change that repairs this one, this is as it should be"


def compared(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding for each reason why a budget of what changes is not checked, and for a base that is of no use."""
    skipped: dict[tuple[str, str], list[str]] = {}
    for name in _COMPARED:
        if context.has_limit(name) and (why := _why_not(name, context)):
            skipped.setdefault(why, []).append(name)
    for (reason, fix), names in skipped.items():
        verb = "is" if len(names) == 1 else "are"
        message = f"{', '.join(names)} {verb} not checked for {context.path}: {reason}"
        yield Diagnostic("SH410", message, context.at(names[0]), help=fix)
    if not skipped and context.base and context.base.fault:
        yield Diagnostic("SH410", context.base.fault, context.loaded.at(), help=_REPAIR)


def _why_not(name: str, context: Context) -> tuple[str, str] | None:
    """Why a budget is not checked, and what to do about it; None where it is."""
    before, figures = context.before, context.figures
    if context.base is None:
        return (
            "there is no --base",
            "compare with the plan of another revision: --base origin/main, or a file or folder",
        )
    if context.base.fault:
        return context.base.fault, _REPAIR
    if before is None:
        return f"there is no {context.base.name}", "for a plan that is new, this is as it should be"
    if name == "moved":
        return None
    counts = len(before.score.devices), len(figures.score.devices)
    if counts[0] != counts[1]:
        return f"{context.base.name} is for {counts[0]} devices, not {counts[1]}", "compare by hand: shardc diff"
    if name == "device_time" and before.digests.cost != context.digests.cost:
        costs = f"by other costs ({before.digests.cost}, now {context.digests.cost})"
        return f"{context.base.name} states its times {costs}", "compare with a plan that was compiled with these costs"
    return None
