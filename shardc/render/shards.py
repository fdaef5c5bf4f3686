"""Writes a plan as a table of its shards, for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from shardc.diagnostics import shown
from shardc.plan import Plan
from shardc.problem import BYTES_PER_ELEMENT

_HEADER = (
    "module",
    "table",
    "sharding_type",
    "kernel",
    "rank",
    "row_offset",
    "column_offset",
    "rows",
    "columns",
    "weight_bytes",
)


def shards_csv(plan: Plan) -> str:
    """Return CSV (RFC 4180, lines end in a line feed): a header, and one row a shard.

    A data-parallel table has a row for each rank; its size stays empty where an older plan does not say it.
    `weight_bytes` counts the weights alone; what a device needs in all stands in the plan's `score`. A name that a
    spreadsheet would take for a formula gets a ' in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_HEADER, *_rows(plan)])
    return text.getvalue()


def _rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    element = BYTES_PER_ELEMENT[plan.model.weights]
    for module, tables in plan.plan.items():
        for name, table in tables.items():
            head = (plain(module), plain(name), table.sharding_type, table.compute_kernel)
            if not table.shards:
                rows, columns = table.shape or (0, 0)
                whole = [0, 0, rows, columns, rows * columns * element] if table.shape else [""] * 5
                yield from ((*head, rank, *whole) for rank in table.ranks)
                continue
            for rank, shard in zip(table.ranks, table.shards, strict=True):
                rows, columns = shard.shard_sizes
                yield (*head, rank, *shard.shard_offsets, rows, columns, rows * columns * element)


def plain(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula, no terminal for a command, and no log for two lines."""
    name = shown(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name
