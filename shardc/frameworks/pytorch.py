"""Writes a plan in plain PyTorch's terms: a device mesh and DTensor placements for each table.

A DTensor chunks each sharded dimension over one dimension of its mesh, as `torch.chunk` does: n blocks of ceil(size/n),
the last one short. TorchRec's blocks of rows are the same, so most tables can be said with a mesh of their own ranks:

- a whole table: a mesh of its rank, `Replicate()`; a data-parallel one: a mesh of all ranks, `Replicate()`;
- blocks of rows: a mesh of their ranks, `Shard(0)`; columns of equal widths: `Shard(1)`;
- columns on hosts, rows within them: a mesh of hosts x ranks, `Shard(1)` and `Shard(0)`.

What is cut otherwise (columns of different widths) is listed shard by shard, and so are chunks against the order of
ranks: `distribute_tensor` scatters over a process group, whose ranks torch sorts, whatever their order in the mesh.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from shardc.diagnostics import Diagnostic, DiagnosticError, quoted_tables
from shardc.plan import Plan, TablePlan, canonical_json

FORMAT = 1


def pytorch_placements(plan: Plan) -> str:
    """Return module path -> table -> how it lies, as JSON.

    A table has `mesh` (ranks, nested for two dimensions) and `placements` (one a mesh dimension, in the words of
    `torch.distributed.tensor`), or else `shards` (rank, offsets and sizes as [row, column]). `shape` is [rows,
    columns]; null for a data-parallel table of an older plan, which does not say it.

    Raises:
        DiagnosticError: SH703 for tables that are not all in device memory, which plain PyTorch cannot cache.
    """
    kernels = {name: table.compute_kernel for tables in plan.plan.values() for name, table in tables.items()}
    if cached := [name for name, kernel in kernels.items() if kernel not in ("dense", "fused")]:
        message = f"plain PyTorch cannot run tables that are not all in device memory: {quoted_tables(cached)}"
        raise DiagnosticError(Diagnostic("SH703", message, help="plan them for device memory"))
    modules = {module: {name: _table(table) for name, table in tables.items()} for module, tables in plan.plan.items()}
    return canonical_json({"format": FORMAT, "ranks": plan.cluster.devices, "modules": modules})


def _table(table: TablePlan) -> dict[str, Any]:
    if not table.shards:
        return {"shape": table.shape and list(table.shape), "mesh": list(table.ranks), "placements": ["Replicate()"]}
    shape = [max(shard.shard_offsets[axis] + shard.shard_sizes[axis] for shard in table.shards) for axis in (0, 1)]
    return {"shape": shape, **(_chunked(table, *shape) or {"shards": _listed(table)})}


def _chunked(table: TablePlan, rows: int, columns: int) -> dict[str, Any] | None:
    """The mesh and placements of shards that are a grid of chunks; None if they are not."""
    blocks: dict[int, list[int]] = {}
    for rank, shard in zip(table.ranks, table.shards, strict=True):
        blocks.setdefault(shard.shard_offsets[1], []).append(rank)
    mesh = list(blocks.values())
    wide, high = len(mesh), len(mesh[0])
    expected = [
        ((row, column), (height, width))
        for column, width in _chunks(columns, wide)
        for row, height in _chunks(rows, high)
    ]
    ascending = all(low < high for low, high in pairwise(table.ranks))
    if not ascending or [(shard.shard_offsets, shard.shard_sizes) for shard in table.shards] != expected:
        return None
    if wide == 1:
        return {"mesh": mesh[0], "placements": ["Shard(0)" if high > 1 else "Replicate()"]}
    if high == 1:
        return {"mesh": [rank for (rank,) in mesh], "placements": ["Shard(1)"]}
    return {"mesh": mesh, "placements": ["Shard(1)", "Shard(0)"]}


def _chunks(size: int, count: int) -> list[tuple[int, int]]:
    """Offset and size of each chunk."""
    block = -(-size // count)
    starts = [min(number * block, size) for number in range(count + 1)]
    return [(start, end - start) for start, end in pairwise(starts)]


def _listed(table: TablePlan) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "offsets": list(shard.shard_offsets), "sizes": list(shard.shard_sizes)}
        for rank, shard in zip(table.ranks, table.shards, strict=True)
    ]
