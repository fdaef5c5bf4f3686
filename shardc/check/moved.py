"""SH407: too much would have to move from the base's plan to this one."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_bytes

_NAMED = 3  # tables


def moved(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if more has to move from the base than `moved` allows: a share of all shards, or bytes."""
    allowed, base = context.loaded.spec.budget.may_move, context.before
    if allowed is None or base is None:
        return
    from shardc.plan_diff import diff  # few checks have a base

    found = diff(base, context.plan)
    if not allowed.allows(found.moved_bytes, found.held_bytes):
        message = (
            f"{found.moved_share:.1%} of all shards ({format_bytes(found.moved_bytes)}) would have to move from "
            f"{context.base_name} to {context.path}, {context.allowed('moved')} is allowed"
        )
        largest = sorted(found.tables, key=lambda table: (-table.moved_bytes, table.name))[:_NAMED]
        notes = tuple(
            f'table "{table.name}" moves {format_bytes(table.moved_bytes)}' for table in largest if table.moved_bytes
        )
        fix = f"{context.recompile}; or raise the budget for this change"
        yield Diagnostic("SH407", message, context.at("moved"), help=fix, notes=notes)
