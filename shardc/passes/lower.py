"""lower: a validated spec and a device's limits become arrays.

Every table gets its options here: which shards each sharding type would make of it, and where they may go. A new
sharding type is one function in `_WAYS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from shardc.access import histograms
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import Hardware
from shardc.memory import device_bytes_for, shard_bytes
from shardc.problem import (
    BYTES_PER_ELEMENT,
    Bools,
    Cluster,
    Collective,
    Link,
    Optimizer,
    Problem,
    ShardingType,
    Shards,
    TableInfo,
)
from shardc.spec import Bins, LoadedSpec, ModelSpec, Table
from shardc.units import format_bytes


def lower(loaded: LoadedSpec, hardware: Hardware, accesses: Mapping[str, Bins] | None = None) -> Problem:
    """Turn a spec into a problem.

    Args:
        loaded: the validated spec, its tables sorted by name.
        hardware: the device's limits.
        accesses: measured bins of the tables whose access is given as an index file, by table name.

    Raises:
        DiagnosticError: SH201 for each block that fits on no device in any allowed way.
    """
    model, cluster = loaded.spec.model, lower_cluster(loaded, hardware)
    blocks = _blocks(loaded.tables)
    offered = [
        _together([list(_options(t, loaded.tables[t], model, cluster.devices)) for t in members]) for members in blocks
    ]
    fitting = [[o for o in options if o.memory <= cluster.memory_limit] for options in offered]
    too_large = [block for block, options in enumerate(fitting) if not options]
    if too_large:
        raise DiagnosticError(*(_fits_nowhere(loaded, blocks[b], offered[b], cluster) for b in too_large))
    options = list(chain.from_iterable(fitting))
    pieces = list(dict.fromkeys(piece for option in options for piece in option.unit))
    number = {piece: i for i, piece in enumerate(pieces)}
    return Problem(
        cluster=cluster,
        global_batch=model.global_batch,
        optimizer=Optimizer(model.optimizer),
        weights=model.weights,
        outputs=model.outputs,
        tables=tuple(TableInfo(t.name, t.features, t.rows, t.dim, t.pooling) for t in loaded.tables),
        blocks=blocks,
        shards=_shards(pieces, loaded, accesses or {}),
        shard_table=np.array([piece.table for piece in pieces]),
        shard_type=tuple(piece.type for piece in pieces),
        option_block=np.repeat(np.arange(len(blocks)), [len(of_block) for of_block in fitting]),
        option_type=tuple(option.type for option in options),
        option_units=np.array([option.units for option in options]),
        option_shards=tuple(tuple(number[piece] for piece in option.unit) for option in options),
        option_memory=np.array([option.memory for option in options]),
        allowed=_allowed(loaded.tables, blocks, cluster.devices),
        labels=_labels(loaded.tables, blocks),
    )


def lower_cluster(loaded: LoadedSpec, hardware: Hardware) -> Cluster:
    """The devices of a spec: the profile's figures, or what the spec says instead.

    A bandwidth that the spec gives is every collective's; latencies remain the profile's.
    """
    spec = loaded.spec.cluster
    memory = spec.memory_bytes or hardware.memory_bytes
    return Cluster(
        device=spec.device,
        device_type=hardware.device_type,
        hosts=spec.hosts,
        devices_per_host=spec.devices_per_host,
        memory_bytes=memory,
        reserve_bytes=spec.reserve_bytes(memory),
        intra_host_bandwidth=spec.intra_bytes_per_s or hardware.intra_host_bandwidth,
        inter_host_bandwidth=spec.inter_bytes_per_s or hardware.inter_host_bandwidth,
        latency_ms=hardware.latency_ms,
        network_latency_ms=hardware.network_latency_ms,
        intra_host=_with_bandwidth(hardware.intra_host, spec.intra_bytes_per_s),
        inter_host=_with_bandwidth(hardware.inter_host, spec.inter_bytes_per_s),
    )


def _with_bandwidth(links: Mapping[Collective, Link], bandwidth: float | None) -> Mapping[Collective, Link]:
    return {c: replace(link, bandwidth=bandwidth or link.bandwidth) for c, link in links.items()}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A shard before it is a row of arrays. Pieces that are equal are one shard."""

    type: ShardingType
    table: int
    rows: int
    dim: int
    pooling: float
    bags: int

    @property
    def exchanged(self) -> bool:
        """Whether its inputs and outputs travel; a replica's do not."""
        return self.type is not ShardingType.DATA_PARALLEL


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to shard a block; see `shardc.problem.Problem`. `units` is 0 when it is spread over all devices."""

    type: ShardingType
    units: int
    unit: tuple[_Piece, ...]
    memory: int


def _table_wise(index: int, table: Table, model: ModelSpec, devices: int) -> Iterator[tuple[int, _Piece]]:
    """The whole table on one device."""
    bags = _bags(table, model.global_batch)
    yield 1, _Piece(ShardingType.TABLE_WISE, index, table.rows, table.dim, _pooling(table), bags)


def _column_wise(index: int, table: Table, model: ModelSpec, devices: int) -> Iterator[tuple[int, _Piece]]:
    """Equal column blocks on distinct devices, each serving every lookup; widths must be divisible by 4."""
    for count in range(2, min(devices, table.dim // 4) + 1):
        if table.dim % (4 * count) == 0:
            bags = _bags(table, model.global_batch)
            width = table.dim // count
            yield count, _Piece(ShardingType.COLUMN_WISE, index, table.rows, width, _pooling(table), bags)


def _row_wise(index: int, table: Table, model: ModelSpec, devices: int) -> Iterator[tuple[int, _Piece]]:
    """A block of ceil(rows / devices) rows on every device, charged as full where the last one is short."""
    rows = -(-table.rows // devices)
    if rows * (devices - 1) >= table.rows and devices > 1:
        return  # the last device would get no rows, and TorchRec fails on a device that holds empty blocks only
    pooling = _pooling(table) * rows / table.rows
    bags = _bags(table, model.global_batch)
    yield 0, _Piece(ShardingType.ROW_WISE, index, rows, table.dim, pooling, bags)


def _data_parallel(index: int, table: Table, model: ModelSpec, devices: int) -> Iterator[tuple[int, _Piece]]:
    """A replica on every device that serves the device's own samples."""
    bags = _bags(table, -(-model.global_batch // devices))
    yield 0, _Piece(ShardingType.DATA_PARALLEL, index, table.rows, table.dim, _pooling(table), bags)


def _bags(table: Table, samples: int) -> int:
    """Bags that so many samples look up: each feature of a table is pooled into an output of its own."""
    return samples * len(table.features)


def _pooling(table: Table) -> float:
    """Mean lookups of a bag: those of a sample are spread over the table's features."""
    return table.pooling / len(table.features)


_WAYS = {
    ShardingType.TABLE_WISE: _table_wise,
    ShardingType.COLUMN_WISE: _column_wise,
    ShardingType.ROW_WISE: _row_wise,
    ShardingType.DATA_PARALLEL: _data_parallel,
}


def _options(index: int, table: Table, model: ModelSpec, devices: int) -> Iterator[_Option]:
    """Every option of one table that its allowed types and its pin leave."""
    for type in map(ShardingType, table.sharding):
        for units, piece in _WAYS[type](index, table, model, devices):
            if _respects(table, units, devices):
                yield _Option(type, units, (piece,), _memory(piece, model))


def _respects(table: Table, units: int, devices: int) -> bool:
    """Whether an option of so many units can keep the table's pin, and its distance from others."""
    if units == 0:
        everywhere = table.pin is None or len(table.pin) == devices
        return everywhere and (table.apart is None or devices == 1)
    return table.pin is None or units <= len(table.pin)


def _memory(piece: _Piece, model: ModelSpec) -> int:
    return shard_bytes(
        piece.rows,
        piece.dim,
        weights=model.weights,
        outputs=model.outputs,
        optimizer=model.optimizer,
        bags=piece.bags,
        pooling=piece.pooling,
        dense=not piece.exchanged,
    )


def _together(members: list[list[_Option]]) -> list[_Option]:
    """The options of a block: of its one table, or of a group, which is one unit of whole tables."""
    if len(members) == 1:
        return members[0]
    whole = [next(o for o in options if o.type is ShardingType.TABLE_WISE) for options in members]
    unit = tuple(piece for option in whole for piece in option.unit)
    return [_Option(ShardingType.TABLE_WISE, 1, unit, sum(option.memory for option in whole))]


def _blocks(tables: tuple[Table, ...]) -> tuple[tuple[int, ...], ...]:
    """Tables that are decided about together: the members of a group, or one table."""
    members: dict[str, list[int]] = {}
    for index, table in enumerate(tables):
        key = f"group {table.group}" if table.group is not None else f"table {index}"
        members.setdefault(key, []).append(index)
    return tuple(sorted(map(tuple, members.values())))


def _allowed(tables: tuple[Table, ...], blocks: tuple[tuple[int, ...], ...], devices: int) -> Bools:
    """bool[B, D]: the devices that every table of a block is pinned to."""
    allowed = np.ones((len(blocks), devices), dtype=bool)
    for block, members in enumerate(blocks):
        for pin in (tables[t].pin for t in members):
            if pin is not None:
                allowed[block] &= np.isin(np.arange(devices), pin)
    return allowed


def _labels(tables: tuple[Table, ...], blocks: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Exclusion labels: one a block, so that its units go to distinct devices, and one for every set kept apart."""
    names = sorted({table.apart for table in tables if table.apart is not None})
    number = {name: len(blocks) + i for i, name in enumerate(names)}
    apart = [sorted({number[a] for t in members if (a := tables[t].apart) is not None}) for members in blocks]
    return tuple((block, *labels) for block, labels in enumerate(apart))


def _shards(pieces: list[_Piece], loaded: LoadedSpec, accesses: Mapping[str, Bins]) -> Shards:
    """Arrays of the pieces, with the access histogram that each one sees."""
    model = loaded.spec.model
    owner = np.array([piece.table for piece in pieces])
    bags = np.array([piece.bags for piece in pieces])
    tables = loaded.tables
    # A histogram belongs to a table and the bags that reach it: all of them, or (data-parallel) a device's share.
    keys, which = np.unique(np.stack([owner, bags]), axis=1, return_inverse=True)
    rows = np.array([float(tables[t].rows) for t in keys[0]])
    lookups = keys[1] * np.array([_pooling(tables[t]) for t in keys[0]])
    found = histograms([accesses.get(tables[t].name, tables[t].access) for t in keys[0]], rows, lookups)
    which = which.reshape(-1)
    part = np.array([piece.rows / tables[piece.table].rows for piece in pieces])
    return Shards(
        rows=np.array([piece.rows for piece in pieces]),
        dim=np.array([piece.dim for piece in pieces]),
        pooling=np.array([piece.pooling for piece in pieces]),
        bags=bags,
        bins=found.bins[which],
        unique=found.unique[which] * part,
        weight_bytes=np.full(len(pieces), BYTES_PER_ELEMENT[model.weights]),
        output_bytes=np.full(len(pieces), BYTES_PER_ELEMENT[model.outputs]),
        optimizer=np.full(len(pieces), list(Optimizer).index(Optimizer(model.optimizer))),
        type=np.array([list(ShardingType).index(piece.type) for piece in pieces]),
    )


def _fits_nowhere(loaded: LoadedSpec, members: tuple[int, ...], offered: list[_Option], cluster: Cluster) -> Diagnostic:
    """Name the table (or group), the least memory that any allowed option needs, and the least change that helps."""
    tables = [loaded.tables[t] for t in members]
    first = tables[0]
    what = f'table "{first.name}"' if len(tables) == 1 else f'group "{first.group}"'
    if not offered:
        keeping, field, more = (
            (" that keeps its pin", "pin", ", or pin more ranks") if first.pin else ("", "sharding", "")
        )
        message = f"{what}: no allowed sharding type has a way{keeping} on {cluster.devices} devices"
        return Diagnostic("SH201", message, loaded.at_table(first, field), help=f"allow table_wise{more}")
    least = min(offered, key=lambda option: option.memory)
    message = (
        f"{what} fits on no device: the least that an allowed sharding puts on one is "
        f"{format_bytes(least.memory)} ({least.type}), and a device has {format_bytes(cluster.memory_limit)} for tables"
    )
    ways = []
    if len(tables) > 1:
        ways.append("take tables out of the group")
    elif wider := _smallest_allowed_otherwise(first, members[0], loaded.spec.model, cluster):
        ways.append(wider)
    enough = device_bytes_for(least.memory, cluster.memory_bytes, cluster.reserve_bytes)
    ways.append(f"give a device {format_bytes(enough)} or more")
    return Diagnostic("SH201", message, loaded.at_table(first, "rows"), help="; or ".join(ways))


def _smallest_allowed_otherwise(table: Table, index: int, model: ModelSpec, cluster: Cluster) -> str | None:
    """The change of a table's sharding types, or else of its pin too, that would make it fit."""
    free = replace(table, sharding=tuple(ShardingType))
    for way, change in (("allow {}", free), ("allow {} and remove the pin", replace(free, pin=None))):
        fits = [o for o in _options(index, change, model, cluster.devices) if o.memory <= cluster.memory_limit]
        if fits:
            return way.format(min(fits, key=lambda option: option.memory).type)
    return None
