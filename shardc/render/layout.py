"""What output for people is made of: characters, tables without lines, and their rendering to text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table

LEAST, MOST = 72, 120
"""Columns that tables may have at least, as their figures are not cut, and that bars and prose fill at most."""

_MAX_SHOWN = 16
_COSTLIEST, _CHEAPEST = 12, 3  # shown where there are more


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters beyond letters that the output's encoding has."""

    forward: str
    backward: str
    track: str
    more: str
    times: str
    arrow: str


_UNICODE = Glyphs("█", "▒", "·", "…", "×", "→")
_ASCII = Glyphs("#", "=", ".", "...", "x", "->")


def glyphs_of(unicode: bool) -> Glyphs:
    """The characters of an output that shows more than ASCII, or only that."""
    return _UNICODE if unicode else _ASCII


def tabular(width: int) -> int:
    """The columns that a table may have: a narrower terminal wraps its lines."""
    return max(width, LEAST)


def filled(width: int) -> int:
    """The columns that bars and their figures fill."""
    return min(max(width, LEAST), MOST)


def shortened(text: str, length: int, glyphs: Glyphs) -> str:
    """Text of so many characters at most."""
    return text if len(text) <= length else text[: length - len(glyphs.more)] + glyphs.more


def extremes(costs: Sequence[float]) -> tuple[list[int], list[int]]:
    """Positions to show: all and none, or where they are many the costliest, by cost, and the cheapest."""
    if len(costs) <= _MAX_SHOWN:
        return list(range(len(costs))), []
    ranked = sorted(range(len(costs)), key=lambda position: (-costs[position], position))
    return ranked[:_COSTLIEST], ranked[-_CHEAPEST:]


def table(*columns: tuple[str, str]) -> Table:
    """A table without lines, from the header and the justification ("left" or "right") of each column."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in columns:
        made.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True, overflow="ellipsis")
    return made


def rendered(sections: Iterable[RenderableType], *, width: int, color: bool) -> str:
    """Sections as text: tables in the columns that there are, prose in fewer if they are many.

    Args:
        sections: one below the other.
        width: columns of the output.
        color: whether it has the codes of a terminal.
    """
    file = io.StringIO()
    console = Console(
        file=file,
        width=tabular(width),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    for section in sections:
        console.print(section, width=tabular(width) if isinstance(section, Table) else min(width, MOST))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))
