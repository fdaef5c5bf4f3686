"""Which parts of which tables go where, for people and for scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shardc.diagnostics import shown
from shardc.plan import canonical_json
from shardc.plan_diff import Movement
from shardc.render.layout import glyphs_of, rendered, table
from shardc.render.shards import plain
from shardc.units import format_bytes


class Move(NamedTuple):
    """A rectangle of a table that goes somewhere.

    Attributes:
        action: move, or new for what no rank has yet.
        table: name of the table.
        row: its first row.
        column: its first column.
        rows: how many.
        columns: how many.
        source: the rank that has it; None for what is new.
        target: the rank that gets it.
        bytes: weights and optimizer state.
    """

    action: str
    table: str
    row: int
    column: int
    rows: int
    columns: int
    source: int | None
    target: int
    bytes: int


def moves_csv(movements: Sequence[Movement]) -> str:
    """CSV (RFC 4180, lines end in a line feed): a header, and one row a rectangle."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Move._fields)
    for move in _moves(movements):
        writer.writerow("" if value is None else value for value in move._replace(table=plain(move.table)))
    return text.getvalue()


def moves_json(movements: Sequence[Movement]) -> str:
    """JSON. Members are added, never renamed."""
    moves = list(_moves(movements))
    total = {action: sum(move.bytes for move in moves if move.action == action) for action in ("move", "new")}
    document = {"format": 1, "moved_bytes": total["move"], "new_bytes": total["new"]}
    return canonical_json({**document, "moves": [move._asdict() for move in moves]})


def moves_text(movements: Sequence[Movement], *, width: int, color: bool, unicode: bool) -> str:
    """A list for people, table by table, and the sums."""
    glyphs, moves = glyphs_of(unicode), list(_moves(movements))
    if not moves:
        return "nothing moves"
    rows = table(("table", "left"), ("rows", "left"), ("columns", "left"), ("rank", "left"), ("", "right"))
    before = None
    for move in moves:
        source = "new" if move.source is None else str(move.source)
        rows.add_row(
            shown(move.table) if move.table != before else "",
            _range(move.row, move.rows),
            _range(move.column, move.columns),
            f"{source} {glyphs.arrow} {move.target}",
            format_bytes(move.bytes),
            style="green" if move.source is None else "",
        )
        before = move.table
    moved = [move for move in moves if move.source is not None]
    fresh = len(moves) - len(moved)
    parts = [f"{_count(len(moved), 'piece')} of {format_bytes(sum(move.bytes for move in moved))} to move"]
    if fresh:
        size = format_bytes(sum(move.bytes for move in moves) - sum(move.bytes for move in moved))
        parts.append(f"{_count(fresh, 'piece')} of {size} to initialize")
    return rendered([rows, "", ", ".join(parts)], width=width, color=color)


def _moves(movements: Sequence[Movement]) -> Iterator[Move]:
    for name, (moves, moved_bytes), (added, added_bytes) in movements:
        for (source, target, area), sizes, action in ((moves, moved_bytes, "move"), (added, added_bytes, "new")):
            listed = (source.tolist(), target.tolist(), area.tolist(), sizes.tolist())
            for giver, taker, (row, column, rows, columns), size in zip(*listed, strict=True):
                yield Move(action, name, row, column, rows, columns, giver if action == "move" else None, taker, size)


def _range(first: int, count: int) -> str:
    return f"{first:,}-{first + count - 1:,}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
