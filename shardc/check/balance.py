"""SH404: the devices are not balanced."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import STATED, Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_ms


def balance(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the degree of balance is less than `balance`."""
    score, least = context.figures.score, context.limit("balance")
    if least is None or score.balance >= least - STATED:
        return
    message = (
        f"{context.path} has a degree of balance of {score.balance:.1%}, {context.allowed('balance')} is asked for"
    )
    times = [
        (device.forward_ms + device.backward_ms, device.rank)
        for device in score.devices
        if device.forward_ms is not None and device.backward_ms is not None
    ]
    notes: tuple[str, ...] = ()
    if times:
        (most, busiest), (fewest, idlest) = max(times), min(times)
        notes = (f"device {busiest} computes for {format_ms(most)}, device {idlest} for {format_ms(fewest)}",)
    fix = "allow the largest tables to be split (column_wise, row_wise), release pins, or lower the budget"
    yield Diagnostic("SH404", message, context.at("balance"), help=fix, notes=notes)
