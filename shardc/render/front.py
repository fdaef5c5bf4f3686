"""Trades of step time against moved bytes, for people."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shardc.passes.replan import Migration
from shardc.placers.migrate import Point
from shardc.render.layout import Glyphs, filled, glyphs_of, rendered, table
from shardc.units import format_bytes

_POINTS = 10  # that are shown


def front_text(migration: Migration, *, width: int, color: bool, unicode: bool) -> str:
    """Trades of step time against moved bytes, the chosen one marked, and the plan without a base."""
    glyphs = glyphs_of(unicode)
    chosen, total = migration.chosen, max(migration.total_bytes, 1)
    share = f"{format_bytes(chosen.moved_bytes)}, {chosen.moved_bytes / total:.2%} of the model's bytes"
    limit = "" if migration.most_bytes is None else f"; up to {format_bytes(migration.most_bytes)} were allowed"
    sections: list[RenderableType] = [Text(f"moves {share}{limit}", "bold"), _front(migration, glyphs, filled(width))]
    return rendered(sections, width=width, color=color)


def _front(migration: Migration, glyphs: Glyphs, width: int) -> Table:
    """A row a point; bars show the step time beyond the fastest one."""
    points = _some(migration)
    rows = table(("moves", "right"), ("", "right"), ("step time", "right"), ("", "right"), ("", "left"), ("", "left"))
    fastest = min(point.step_time_ms for point in points)
    most = max(max(point.step_time_ms for point in points) - fastest, 1e-300)
    total, free = max(migration.total_bytes, 1), width - 62
    for point in points:
        over = point.step_time_ms - fastest
        bar = glyphs.forward * (round(free * over / most) if over > 0 else 0)
        words = []
        if point is migration.chosen:
            words.append("chosen")
        if point is migration.alone:
            words.append("without a base")
        rows.add_row(
            format_bytes(point.moved_bytes),
            f"{point.moved_bytes / total:.2%}",
            f"{point.step_time_ms:.5g} ms",
            f"+{over / fastest:.2%}" if fastest and over else "",
            Text(bar, "yellow"),
            " and ".join(words),
            style="bold green" if point is migration.chosen else "",
        )
    return rows


def _some(migration: Migration) -> list[Point]:
    """Points to show, the fewest bytes first: some of the front, what was chosen, and what was found without a base."""
    front = list(migration.front)
    step = max(1, -(-len(front) // _POINTS))
    shown = [*front[::step], front[-1], migration.chosen, migration.alone]
    return sorted({id(point): point for point in shown}.values(), key=lambda p: (p.moved_bytes, p.step_time_ms))
