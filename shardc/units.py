"""Sizes and times as people read them."""

from __future__ import annotations

from collections.abc import Collection


def format_bytes(count: float) -> str:
    """Bytes with a binary unit and three digits: 13.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def format_ms(ms: float) -> str:
    """Milliseconds with three significant digits: 1.23 ms."""
    digits = f"{ms:#.3g}".rstrip(".") if ms < 999.5 else f"{ms:,.0f}"
    return f"{digits} ms"


def compact(count: int) -> str:
    """A count with three digits: 39.1k, 40M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def compact_beside(count: int, others: Collection[int]) -> str:
    """A count in its short form, or with all digits where another count would look the same."""
    short = compact(count)
    return str(count) if any(other != count and compact(other) == short for other in others) else short
