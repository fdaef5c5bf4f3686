"""`shardc devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardc.cli.console import echo

if TYPE_CHECKING:
    from shardc.hardware import Hardware


def devices() -> None:
    """List the hardware profiles that shardc ships."""
    from shardc.hardware import hardware_names, load_hardware

    header = ("name", "costs", "memory", "within a host", "between hosts", "error forward, backward")
    rows = [header, *(_row(load_hardware(name)) for name in hardware_names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(hardware: Hardware) -> tuple[str, ...]:
    from shardc.units import format_bytes

    forward, backward = hardware.measured.errors.mean_relative_error if hardware.measured else (None, None)
    return (
        hardware.name,
        "measured" if hardware.measured else "data sheet",
        format_bytes(hardware.memory_bytes),
        f"{hardware.intra_host_bandwidth / 1e9:.4g} GB/s",
        f"{hardware.inter_host_bandwidth / 1e9:.4g} GB/s",
        "unknown" if forward is None or backward is None else f"{forward:.1%}, {backward:.1%}",
    )
