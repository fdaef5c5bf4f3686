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
    """Trades of step time against moved bytes, the chosen one marked, and the plan without a base.

    That plan is a row if it is a trade, else a line: others are faster, or as fast, and move less.
    """
    glyphs = glyphs_of(unicode)
    chosen, alone, fastest = migration.chosen, migration.alone, migration.front[-1].step_time_ms
    limit = f"; up to {migration.budget} was allowed" if migration.budget.given else ""
    moves = f"moves {format_bytes(chosen.moved_bytes)}, {chosen.moved_share:.2%} of all shards{limit}"
    sections: list[RenderableType] = [Text(moves, "bold"), _front(migration, glyphs, filled(width))]
    if alone not in migration.front:
        step = f"{alone.step_time_ms:.6g} ms  {_over(alone.step_time_ms, fastest)}".rstrip()
        moves = f"{format_bytes(alone.moved_bytes)}, {alone.moved_share:.2%}"
        sections.append(Text(f"without a base: moves {moves}; {step}", "dim"))
    return rendered(sections, width=width, color=color)


def _front(migration: Migration, glyphs: Glyphs, width: int) -> Table:
    """A row a point; bars show the step time beyond the fastest one."""
    points = _some(migration)
    rows = table(("moves", "right"), ("", "right"), ("step time", "right"), ("", "right"), ("", "left"), ("", "left"))
    fastest = points[-1].step_time_ms
    most = max(points[0].step_time_ms - fastest, 1e-300)
    free = width - 63
    for point in points:
        over = point.step_time_ms - fastest
        words = []
        if point is migration.chosen:
            words.append("chosen")
        if point == migration.alone:
            words.append("without a base")
        rows.add_row(
            format_bytes(point.moved_bytes),
            f"{point.moved_share:.2%}",
            f"{point.step_time_ms:.6g} ms",
            _over(point.step_time_ms, fastest),
            Text(glyphs.forward * (round(free * over / most) if over > 0 else 0), "yellow"),
            " and ".join(words),
            style="bold green" if point is migration.chosen else "",
        )
    return rows


def _over(step_ms: float, fastest_ms: float) -> str:
    return f"{step_ms / fastest_ms - 1.0:+.2%}" if fastest_ms and step_ms != fastest_ms else ""


def _some(migration: Migration) -> list[Point]:
    """Points of the front to show, the fewest bytes first; always the first, the last and the chosen one."""
    front = migration.front
    step = max(1, -(-len(front) // _POINTS))
    return [p for number, p in enumerate(front) if number % step == 0 or p is front[-1] or p is migration.chosen]
