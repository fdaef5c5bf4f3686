"""SH405: too little device memory is left free."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.units import format_bytes


def headroom(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if a device has less than `headroom` of what tables may take of its memory left free."""
    least = context.limit("headroom")
    if least is None:
        return
    free = [
        (1 - device.memory_bytes / device.memory_limit_bytes, device.rank)
        for device in context.figures.score.devices
        if device.memory_limit_bytes
    ]
    short = sorted((share, rank) for share, rank in free if share < least)
    if short:
        share, rank = short[0]
        device = context.figures.score.devices[rank]
        message = (
            f"device {rank} has {share:.1%} of its {format_bytes(device.memory_limit_bytes)} for tables left free, "
            f"{context.allowed('headroom')} is asked for"
        )
        more = f"and {len(short) - 1} more have too little" if len(short) > 1 else "the others have enough"
        fix = "split large tables, shard on more devices, or lower the reserve or the budget"
        yield Diagnostic("SH405", message, context.at("headroom"), help=fix, notes=(more,))
