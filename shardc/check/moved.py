"""SH407: too much would have to move from the base's plan to this one."""

from __future__ import annotations

from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.passes.verify import extent
from shardc.plan import Plan, TablePlan
from shardc.problem import BYTES_PER_ELEMENT
from shardc.units import format_bytes

_Block = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


def moved(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if more than `moved` of what a plan places is on other devices in the base."""
    allowed, base = context.limit("moved"), context.base
    if allowed is None or base is None:
        return
    size = BYTES_PER_ELEMENT[context.plan.model.weights]
    elements, by_table = moved_elements(base.plan, context.plan)
    total = sum(by_table.values())
    if elements and total > elements * allowed:
        message = (
            f"{total / elements:.1%} of the weights ({format_bytes(total * size)}) would have to move from {base.name} "
            f"to {context.path}, {context.allowed('moved')} is allowed"
        )
        largest = sorted(by_table.items(), key=lambda item: (-item[1], item[0]))[:3]
        notes = tuple(f'table "{name}" moves {format_bytes(count * size)}' for name, count in largest if count)
        fix = "shardc compile --base keeps what it can in its place; or raise the budget for this change"
        yield Diagnostic("SH407", message, context.at("moved"), help=fix, notes=notes)


def moved_elements(old: Plan, new: Plan) -> tuple[int, dict[str, int]]:
    """Elements that a plan places, replicas included, and by table those that no device has in the older plan.

    Tables that only one of the plans has do not move: their rows are made, or dropped.
    """
    before, after = (
        {name: placed for tables in plan.plan.values() for name, placed in tables.items()} for plan in (old, new)
    )
    placed = {name: _by_rank(table) for name, table in after.items()}
    elements = sum(_area(block) for of_rank in placed.values() for blocks in of_rank.values() for block in blocks)
    counts = {}
    for name, of_rank in placed.items():
        if name in before:
            had = _by_rank(before[name])
            counts[name] = sum(_missing(blocks, had.get(rank, [])) for rank, blocks in of_rank.items())
    return elements, counts


def _missing(blocks: list[_Block], had: list[_Block]) -> int:
    """Elements of blocks that are in none of those that a device had; the blocks of one plan do not overlap."""
    shared = ((max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])) for a in blocks for b in had)
    return sum(map(_area, blocks)) - sum(
        _area(block) for block in shared if block[0] < block[1] and block[2] < block[3]
    )


def _by_rank(table: TablePlan) -> dict[int, list[_Block]]:
    blocks: dict[int, list[_Block]] = {}
    if not table.shards:
        rows, columns = extent(table) or (0, 0)
        return {rank: [(0, rows, 0, columns)] for rank in table.ranks}
    for shard in table.shards:
        (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
        blocks.setdefault(shard.rank, []).append((row, row + rows, column, column + columns))
    return blocks


def _area(block: _Block) -> int:
    return (block[1] - block[0]) * (block[3] - block[2])
