"""lower: a validated spec and a device's limits become arrays.

Every table gets its options here: which shards each sharding type would make of it, and where they may go. A new
sharding type is one function in `_WAYS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil
from operator import ge
from typing import NamedTuple

import numpy as np

from shardc.access import histograms
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import Hardware
from shardc.memory import device_bytes_for, host_bytes, rounded_up, shard_bytes
from shardc.problem import (
    BYTES_PER_ELEMENT,
    Bools,
    Cluster,
    Collective,
    HostKind,
    Ints,
    Kernel,
    Link,
    Memory,
    Optimizer,
    Problem,
    ShardingType,
    Shards,
    Site,
    TableInfo,
)
from shardc.spec import Bins, HostSettings, LoadedSpec, ModelSpec, Table, parse_size
from shardc.units import format_bytes
from shardc.vocabulary import MAX_DEVICES

_REPLICATED = ShardingType.DATA_PARALLEL
_TOLD = 20  # tables that fit nowhere of which each is told what would help
_MORE_HOSTS = (2, 4, 8, 16)  # times as many
_BY_STATE = (Optimizer.ADAM, Optimizer.ADAGRAD, Optimizer.ROWWISE_ADAGRAD, Optimizer.SGD)  # the most first
_VECTOR = 4  # elements: the width of a column block is a multiple of it


def lower(loaded: LoadedSpec, hardware: Sequence[Hardware], accesses: Mapping[str, Bins] | None = None) -> Problem:
    """Turn a spec into a problem.

    Args:
        loaded: the validated spec, its tables sorted by name.
        hardware: the profiles of the devices that the spec names, in the order of `ClusterSpec.device_names`.
        accesses: measured bins of the tables whose access is given as an index file, by table name.

    Raises:
        DiagnosticError: SH201 for blocks that fit on no device in any allowed way, SH112 for a cluster of CPUs
            and GPUs, SH113 for tables that may be cached on CPUs, SH114 for Adam on CPUs.
    """
    return lower_onto(loaded, lower_cluster(loaded, hardware), accesses)


def lower_onto(loaded: LoadedSpec, cluster: Cluster, accesses: Mapping[str, Bins] | None = None) -> Problem:
    """Turn a spec into a problem on these devices, whatever it says of its cluster; as `lower` otherwise."""
    model = loaded.spec.model
    blocks = _blocks(loaded.tables)
    allowed = _allowed(loaded.tables, blocks, cluster.devices)
    offered = [_together([list(_options(t, loaded.tables[t], model, cluster)) for t in members]) for members in blocks]
    units = [unit for options in offered for option in options for unit in option.units]
    memory = iter(_memory(units, model, len(cluster.memory_limit)).T.tolist())
    needed = [[[next(memory) for _ in option.units] for option in options] for options in offered]
    alike = [devices.tobytes() for devices in allowed]
    rooms = {key: _Room.of(cluster, devices) for key, devices in dict(zip(alike, allowed, strict=True)).items()}
    room = [rooms[key] for key in alike]
    fitting = [
        [(option, sizes) for option, sizes in zip(options, of_options, strict=True) if space.takes(option, sizes)]
        for options, of_options, space in zip(offered, needed, room, strict=True)
    ]
    too_large = [block for block, options in enumerate(fitting) if not options]
    if too_large:
        told = too_large[:_TOLD]
        faults = [_fits_nowhere(loaded, blocks[b], offered[b], needed[b], room[b], cluster) for b in told]
        if more := len(too_large) - len(told):
            faults.append(Diagnostic("SH201", f"{more} more tables fit on no device"))
        raise DiagnosticError(*faults)
    options = [option for of_block in fitting for option, _ in of_block]
    pieces = list(dict.fromkeys(piece for option in options for unit in option.units for piece in unit.pieces))
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
        option_site=np.array([option.site for option in options]),
        option_one_host=np.array([option.type is ShardingType.TABLE_COLUMN_WISE for option in options]),
        unit_option=np.repeat(np.arange(len(options)), [len(option.units) for option in options]),
        unit_count=np.array([unit.number for option in options for unit in option.units]),
        unit_shards=tuple(tuple(number[piece] for piece in u.pieces) for option in options for u in option.units),
        unit_memory=np.array([size for of_block in fitting for _, sizes in of_block for size in sizes]).T,
        allowed=allowed,
        labels=_labels(loaded.tables, blocks),
    )


def lower_cluster(loaded: LoadedSpec, hardware: Sequence[Hardware]) -> Cluster:
    """The devices of a spec: the profiles' figures, or what the spec says instead.

    The devices of a host share its memory equally, as each of TorchRec's ranks has a `Storage.ddr` of its own. A
    bandwidth that the spec gives is every collective's; latencies remain the profile's.
    """
    spec = loaded.spec.cluster
    types = list(dict.fromkeys(profile.device_type for profile in hardware))
    if len(types) > 1:
        message = f"a cluster cannot have devices of the types {' and '.join(types)} together"
        raise DiagnosticError(Diagnostic("SH112", message, loaded.at("cluster", "host")))
    if types == ["cpu"] and loaded.spec.model.optimizer == "adam":
        message = "FBGEMM has no adam on CPUs"
        at, fix = loaded.at("model", "optimizer"), 'use "sgd", "rowwise_adagrad" or "adagrad"'
        raise DiagnosticError(Diagnostic("SH114", message, at, help=fix))
    cached = loaded.cached_tables
    if cached and types == ["cpu"]:
        message = f'table "{cached[0].name}" may be cached on a device, and FBGEMM has such a cache on GPUs only'
        fix = 'leave out kernels = ["fused_uvm_caching"]: on CPUs all tables are in the memory of the host'
        raise DiagnosticError(Diagnostic("SH113", message, loaded.at_table(cached[0], "kernels"), help=fix))
    profiles = {profile.name: profile for profile in hardware}
    by_name = dict(zip(spec.device_names, profiles.values(), strict=True))
    kinds = tuple(_host_kind(host, by_name[host.device]) for host in spec.kinds)
    if cached:
        of_host = [host.host_memory_bytes // spec.devices_per_host for host in spec.kinds]
        links = [by_name[host.device].host_bandwidth for host in spec.kinds]
        kinds = tuple(
            replace(kind, host_memory_bytes=memory, host_bandwidth=link)
            for kind, memory, link in zip(kinds, of_host, links, strict=True)
        )
    return Cluster(
        device_type=types[0],
        devices_per_host=spec.devices_per_host,
        kinds=kinds,
        host_kind=spec.host_kind,
        rank_limit=spec.rank_limit_bytes,
    )


def _host_kind(spec: HostSettings, hardware: Hardware) -> HostKind:
    memory = spec.memory_bytes or hardware.memory_bytes
    return HostKind(
        device=spec.device,
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


class _Piece(NamedTuple):
    """A shard before it is a row of arrays. Pieces that are equal are one shard."""

    type: ShardingType
    table: int
    rows: int
    dim: int
    pooling: float
    bags: int
    cached: float = 1.0


class _Unit(NamedTuple):
    """So many equal units of an option: the pieces that one of them has on a device."""

    number: int
    pieces: tuple[_Piece, ...]


class _Option(NamedTuple):
    """One way to shard a block; see `shardc.problem.Problem`. The largest unit comes first."""

    type: ShardingType
    site: Site
    units: tuple[_Unit, ...]


def _table_wise(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """The whole table on one device."""
    type = ShardingType.TABLE_WISE
    whole = _Piece(type, index, table.rows, table.dim, _pooling(table), _bags(table, model.global_batch))
    yield _Option(type, Site.DEVICE, (_Unit(1, (whole,)),))


def _column_wise(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """Column blocks on distinct devices, each serving every lookup."""
    yield from _in_columns(ShardingType.COLUMN_WISE, Site.DEVICE, index, table, model, table.rows, cluster.devices)


def _table_column_wise(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """Column blocks on distinct devices of one host."""
    most = cluster.devices_per_host
    yield from _in_columns(ShardingType.TABLE_COLUMN_WISE, Site.DEVICE, index, table, model, table.rows, most)


def _row_wise(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """A block of rows on every device."""
    yield from _in_rows(ShardingType.ROW_WISE, Site.CLUSTER, index, table, model, cluster.devices)


def _table_row_wise(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """A block of rows on every device of one host."""
    yield from _in_rows(ShardingType.TABLE_ROW_WISE, Site.HOST, index, table, model, cluster.devices_per_host)


def _grid_shard(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """Column blocks on distinct hosts, each in blocks of rows on every device of its host."""
    if rows := _rows_of_block(table.rows, cluster.devices_per_host):
        yield from _in_columns(ShardingType.GRID_SHARD, Site.HOST, index, table, model, rows, cluster.hosts)


def _data_parallel(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """A replica on every device that serves the device's own samples."""
    type, samples = ShardingType.DATA_PARALLEL, -(-model.global_batch // cluster.devices)
    replica = _Piece(type, index, table.rows, table.dim, _pooling(table), _bags(table, samples))
    yield _Option(type, Site.CLUSTER, (_Unit(1, (replica,)),))


def _in_rows(
    type: ShardingType, site: Site, index: int, table: Table, model: ModelSpec, devices: int
) -> Iterator[_Option]:
    """A block of ceil(rows / devices) rows on each of so many devices, charged as full where the last one is short."""
    if rows := _rows_of_block(table.rows, devices):
        pooling, bags = _reaching(table, rows, model.global_batch)
        block = _Piece(type, index, rows, table.dim, pooling, bags)
        yield _Option(type, site, (_Unit(1, (block,)),))


def _in_columns(
    type: ShardingType, site: Site, index: int, table: Table, model: ModelSpec, rows: int, most: int
) -> Iterator[_Option]:
    """Options of 2 to `most` column blocks whose widths differ by one vector of four elements at most.

    More blocks whose widest is as wide as that of fewer ones are left out: they only repeat the lookups. Where lookups
    are not pooled, an operator has tables of one width, so there is one option at most.
    """
    pooling, bags = _reaching(table, rows, model.global_batch)
    vectors = table.dim // _VECTOR
    for count in range(2, min(most, vectors) + 1):
        width, wider = divmod(vectors, count)
        if -(-vectors // count) == -(-vectors // (count - 1)) or width * _VECTOR < table.least_width:
            continue
        if not table.pooled and (wider or width * _VECTOR != table.least_width):
            continue
        widths = ((wider, width + 1), (count - wider, width))
        units = tuple(
            _Unit(n, (_Piece(type, index, rows, wide * _VECTOR, pooling, bags),)) for n, wide in widths if n > 0
        )
        yield _Option(type, site, units)


def _rows_of_block(rows: int, devices: int) -> int:
    """Rows of all blocks but the last; 0 if the last device would get none.

    On CPUs, FBGEMM's backward pass takes a block without rows for a part of the next table, which then trains wrong;
    and TorchRec fails on a device that holds no other blocks.
    """
    block = -(-rows // devices)
    return 0 if block * (devices - 1) >= rows and devices > 1 else block


def _bags(table: Table, samples: int) -> int:
    """Bags that so many samples look up: each feature of a table is pooled into an output of its own."""
    return samples * len(table.features) if table.bags is None else ceil(samples * table.bags)


def _pooling(table: Table) -> float:
    """Mean lookups of a bag: those of a sample are spread over its bags."""
    return table.pooling / (len(table.features) if table.bags is None else table.bags)


def _reaching(table: Table, rows: int, samples: int) -> tuple[float, int]:
    """Mean lookups of a bag that reach a block of rows, and the bags that do.

    A bag reaches every block, with a part of its lookups; a lookup that is an output of its own reaches one.
    """
    if table.pooled:
        return _pooling(table) * rows / table.rows, _bags(table, samples)
    return _pooling(table), max(1, ceil(_bags(table, samples) * rows / table.rows))


_WAYS = {
    ShardingType.TABLE_WISE: _table_wise,
    ShardingType.COLUMN_WISE: _column_wise,
    ShardingType.TABLE_COLUMN_WISE: _table_column_wise,
    ShardingType.ROW_WISE: _row_wise,
    ShardingType.TABLE_ROW_WISE: _table_row_wise,
    ShardingType.GRID_SHARD: _grid_shard,
    ShardingType.DATA_PARALLEL: _data_parallel,
}


def _options(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """Every option of one table that its allowed types, its kernels and its pin leave: cached ones last."""
    sharded = list(_sharded(index, table, model, cluster))
    if Kernel.FUSED in table.kernels:
        yield from sharded
    if Kernel.FUSED_UVM_CACHING in table.kernels:
        yield from (_cached(option, table.cache_ratio) for option in sharded if option.type is not _REPLICATED)


def _sharded(index: int, table: Table, model: ModelSpec, cluster: Cluster) -> Iterator[_Option]:
    """Every option of one table that its allowed types and its pin leave, all of it on devices."""
    types = set(map(ShardingType, table.sharding))
    # What a freer type can do as well is left to that.
    if ShardingType.COLUMN_WISE in types:
        types.discard(ShardingType.TABLE_COLUMN_WISE)
    if ShardingType.ROW_WISE in types and cluster.hosts == 1:
        types.discard(ShardingType.TABLE_ROW_WISE)
    for type in (type for type in ShardingType if type in types):
        for option in _WAYS[type](index, table, model, cluster):
            if _respects(table, option, cluster):
                yield option


def unavailable(table: Table, model: ModelSpec, cluster: Cluster) -> dict[ShardingType, str]:
    """Why a table has no option of a sharding type, by type, in words that follow it; memory apart."""
    offered = {option.type for option in _options(0, table, model, cluster)}
    if table.group is not None:
        offered &= {ShardingType.TABLE_WISE}
    return {type: _reason(type, table, model, cluster) for type in ShardingType if type not in offered}


def _reason(type: ShardingType, table: Table, model: ModelSpec, cluster: Cluster) -> str:
    devices, local, hosts = cluster.devices, cluster.devices_per_host, cluster.hosts
    if type not in table.sharding:
        return "is not allowed"
    if type is _REPLICATED and Kernel.FUSED not in table.kernels:
        return "keeps the table on the devices, and its kernels keep it in host memory"
    if table.group is not None and type is not ShardingType.TABLE_WISE:
        return "would split the table, and tables of a group are placed whole"
    if type is ShardingType.TABLE_COLUMN_WISE and ShardingType.COLUMN_WISE in table.sharding:
        return "does no more than column_wise"
    if type is ShardingType.TABLE_ROW_WISE and ShardingType.ROW_WISE in table.sharding and hosts == 1:
        return "does no more than row_wise on one host"
    if options := list(_WAYS[type](0, table, model, cluster)):
        if table.apart is not None and options[0].site is Site.CLUSTER:
            return "uses every device, and the table is kept apart from others"
        units = min(sum(unit.number for unit in option.units) for option in options)
        needed = {
            Site.DEVICE: f"{units} devices" + " of one host" * (type is ShardingType.TABLE_COLUMN_WISE),
            Site.HOST: f"all devices of {units} host{'s' * (units > 1)}",
            Site.CLUSTER: f"all {devices} devices",
        }[options[0].site]
        return f"needs {needed}, and its pin leaves {len(table.pin or ())}"
    by_columns = {ShardingType.COLUMN_WISE: devices, ShardingType.TABLE_COLUMN_WISE: local}
    blocks = {ShardingType.ROW_WISE: devices}.get(type, local)
    if type not in by_columns and not _rows_of_block(table.rows, blocks):
        return f"would leave one of {blocks} devices without any of the {table.rows:,} rows"
    if type is ShardingType.GRID_SHARD and hosts == 1:
        return "needs several hosts"
    if by_columns.get(type) == 1:
        return "needs several devices" + " in a host" * (type is ShardingType.TABLE_COLUMN_WISE)
    if table.dim < 2 * _VECTOR:
        return f"cuts no column block narrower than {_VECTOR}, and the table has {table.dim} columns"
    return f"would cut the {table.dim} columns into blocks of another width than {table.least_width}"


def _cached(option: _Option, ratio: float) -> _Option:
    """The option with tables in the memory of the host, and that share of the rows of every piece in a cache."""
    units = (
        unit._replace(pieces=tuple(piece._replace(cached=ratio) for piece in unit.pieces)) for unit in option.units
    )
    return option._replace(units=tuple(units))


def _respects(table: Table, option: _Option, cluster: Cluster) -> bool:
    """Whether an option can keep the table's pin, and its distance from others."""
    if option.site is Site.CLUSTER and table.apart is not None and cluster.devices > 1:
        return False
    if table.pin is None:
        return True
    pinned = np.isin(np.arange(cluster.devices), table.pin)
    units = sum(unit.number for unit in option.units)
    by_host = pinned.reshape(cluster.hosts, -1)
    if option.type is ShardingType.TABLE_COLUMN_WISE:
        return bool(by_host.sum(axis=1).max() >= units)
    return bool(
        {Site.DEVICE: pinned.sum(), Site.HOST: by_host.all(axis=1).sum(), Site.CLUSTER: pinned.all()}[option.site]
        >= units
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """Bytes that the units of a block may take of each of their devices, by kind of memory.

    Few places differ, and there may be thousands: so they are counted by the room that they have.

    Attributes:
        of_site: by what a unit takes up, how many places have so much room; -1 where the block may not go.
        of_hosts: the same for the devices of one host, for every kind of hosts.
    """

    of_site: Mapping[Site, Counter[tuple[int, ...]]]
    of_hosts: tuple[Counter[tuple[int, ...]], ...]

    @staticmethod
    def of(cluster: Cluster, allowed: Bools) -> _Room:
        """The room on the devices that are allowed, bool[D]."""
        limits = np.where(allowed, cluster.memory_limit, -1)
        by_host = limits.reshape(len(limits), cluster.hosts, -1)
        places = {Site.DEVICE: limits, Site.HOST: by_host.min(axis=2), Site.CLUSTER: limits.min(axis=1, keepdims=True)}
        # Without the index it would import all of numpy.ma.
        hosts = np.unique(by_host, axis=1, return_index=True)[0].swapaxes(0, 1)
        return _Room({site: _counted(room) for site, room in places.items()}, tuple(map(_counted, hosts)))

    def takes(self, option: _Option, sizes: Sequence[Sequence[int]]) -> bool:
        """Whether there is room for all units of an option, each kind of so many bytes, largest first.

        Where the largest has room all others have, so it is enough to count places for them and those before them.
        """
        one_host = option.type is ShardingType.TABLE_COLUMN_WISE
        numbers = list(accumulate(unit.number for unit in option.units))
        return any(
            all(_having(places, size) >= number for size, number in zip(sizes, numbers, strict=True))
            for places in (self.of_hosts if one_host else (self.of_site[option.site],))
        )


def _counted(room: Ints) -> Counter[tuple[int, ...]]:
    """How many of the places int[M, places] have which room."""
    return Counter(zip(*room.tolist(), strict=True))


def _having(places: Counter[tuple[int, ...]], size: Sequence[int]) -> int:
    """How many places have room for so many bytes of each kind of memory."""
    return sum(count for room, count in places.items() if all(map(ge, room, size)))


def _memory(units: Sequence[_Unit], model: ModelSpec, kinds: int) -> Ints:
    """Bytes of one unit on a device, int[M, U], of the kinds of memory that tables may use."""
    pieces = [piece for unit in units for piece in unit.pieces]
    rows, dim = np.array([piece.rows for piece in pieces]), np.array([piece.dim for piece in pieces])
    cached = np.array([piece.cached for piece in pieces])
    sizes = [
        shard_bytes(
            rows,
            dim,
            weights=model.weights,
            outputs=model.outputs,
            optimizer=model.optimizer,
            bags=np.array([piece.bags for piece in pieces]),
            pooling=np.array([piece.pooling for piece in pieces]),
            dense=np.array([piece.type is _REPLICATED for piece in pieces]),
            cached=cached,
        ),
        host_bytes(rows, dim, weights=model.weights, optimizer=model.optimizer, cached=cached),
    ]
    starts = np.cumsum([0, *(len(unit.pieces) for unit in units)])[:-1]
    return np.add.reduceat(np.stack(sizes[:kinds]), starts, axis=1)


def _together(members: list[list[_Option]]) -> list[_Option]:
    """The options of a block: of its one table, or of a group, which is one unit of whole tables.

    As many tables of a group are on the device as may be, or as many are cached.
    """
    if len(members) == 1:
        return members[0]
    whole = [[o.units[0].pieces for o in options if o.type is ShardingType.TABLE_WISE] for options in members]
    ways = dict.fromkeys(tuple(piece for of_table in whole for piece in of_table[kernel]) for kernel in (0, -1))
    return [_Option(ShardingType.TABLE_WISE, Site.DEVICE, (_Unit(1, pieces),)) for pieces in ways]


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


def _labels(tables: tuple[Table, ...], blocks: tuple[tuple[int, ...], ...]) -> tuple[list[int], ...]:
    """Exclusion labels: one a block, so that its units go to distinct devices, and one for every set kept apart."""
    names = sorted({table.apart for table in tables if table.apart is not None})
    number = {name: len(blocks) + i for i, name in enumerate(names)}
    apart = [sorted({number[a] for t in members if (a := tables[t].apart) is not None}) for members in blocks]
    return tuple([block, *labels] for block, labels in enumerate(apart))


def _shards(pieces: list[_Piece], loaded: LoadedSpec, accesses: Mapping[str, Bins]) -> Shards:
    """Arrays of the pieces, with the access histogram that each one sees."""
    model = loaded.spec.model
    owner = np.array([piece.table for piece in pieces])
    bags = np.array([piece.bags for piece in pieces])
    tables = loaded.tables
    part = np.array([piece.rows / tables[piece.table].rows for piece in pieces])
    # A histogram belongs to a table and the bags that reach it: all of them, or (data-parallel) a device's share.
    pooled = np.array([tables[piece.table].pooled for piece in pieces])
    reaching = np.where(pooled, bags, np.rint(bags / part).astype(np.int64))
    keys, which = np.unique(np.stack([owner, reaching]), axis=1, return_inverse=True)
    rows = np.array([float(tables[t].rows) for t in keys[0]])
    lookups = keys[1] * np.array([_pooling(tables[t]) for t in keys[0]])
    found = histograms([accesses.get(tables[t].name, tables[t].access) for t in keys[0]], rows, lookups)
    which = which.reshape(-1)
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
        cached=np.array([piece.cached for piece in pieces]),
    )


def _fits_nowhere(
    loaded: LoadedSpec,
    members: tuple[int, ...],
    offered: Sequence[_Option],
    needed: Sequence[Sequence[Sequence[int]]],
    room: _Room,
    cluster: Cluster,
) -> Diagnostic:
    """Name the table (or group), the least memory that any allowed option needs, and the least change that helps.

    Args:
        loaded: the spec.
        members: the tables of the block.
        offered: its options.
        needed: for each option and kind of its units the bytes of each kind of memory.
        room: what the block may take.
        cluster: the devices.
    """
    tables = [loaded.tables[t] for t in members]
    first = tables[0]
    what = f'table "{first.name}"' if len(tables) == 1 else f'group "{first.group}"'
    if not offered:
        keeping, field, more = (
            (" that keeps its pin", "pin", ", or pin more ranks") if first.pin else ("", "sharding", "")
        )
        message = f"{what}: no allowed sharding type has a way{keeping} on {cluster.devices} devices"
        missing = unavailable(first, loaded.spec.model, cluster)
        message += ": " + "; ".join(f"{type} {missing[type]}" for type in map(ShardingType, first.sharding))
        return Diagnostic("SH201", message, loaded.at_table(first, field), help=f"allow table_wise{more}")
    on_device = [[[size[0], *[0] * len(size[1:])] for size in sizes] for sizes in needed]
    if too_much := [i for i, sizes in enumerate(on_device) if room.takes(offered[i], sizes)]:
        return _fits_in_no_host(loaded, first, what, min(needed[i][0][Memory.HOST] for i in too_much), cluster)
    least = min(range(len(offered)), key=lambda i: needed[i][0][0])
    size, limit = needed[least][0][0], max(room.of_site[offered[least].site])[0]
    kind = cluster.kinds[0]
    fix = f"give a device {format_bytes(device_bytes_for(size, kind.memory_bytes, kind.reserve_bytes))} or more"
    who = "a device has"
    # One that takes up several devices may lack some of them only.
    if (offered[least].site is Site.CLUSTER or limit >= size) and (few := _too_small(loaded, first, size, cluster)):
        limit, who, fix = few
    message = (
        f"{what} fits on no device: the least that an allowed sharding puts on one is "
        f"{format_bytes(size)} ({offered[least].type}), and {who} {format_bytes(limit)} for tables"
    )
    ways = []
    if len(tables) > 1:
        ways.append("take tables out of the group")
    elif wider := _smallest_allowed_otherwise(first, members[0], loaded.spec.model, cluster):
        ways.append(wider)
    if len(tables) == 1 and (cached := _cached_instead(first, members[0], loaded.spec.model, cluster)):
        ways.append(cached)
    if len(tables) == 1:
        ways += _changed_otherwise(first, members[0], loaded.spec.model, cluster)
    ways.append(fix)
    return Diagnostic("SH201", message, loaded.at_table(first, "rows"), help="; or ".join(ways))


def _too_small(loaded: LoadedSpec, table: Table, size: int, cluster: Cluster) -> tuple[int, str, str] | None:
    """The devices that lack room for so many bytes, if others that a table may be on have it.

    Returns:
        The most that any of them has for tables; "rank 0 has", or the like; and what helps.
    """
    limits = cluster.memory_limit[Memory.DEVICE]
    open_to = sorted(table.pin or range(cluster.devices))
    small = [rank for rank in open_to if limits[rank] < size]
    if not 0 < len(small) < len(open_to):
        return None
    own = {rank: parse_size(entry.memory) or 0 for entry in loaded.spec.cluster.rank for rank in entry.ranks}
    memory = [own.get(rank, cluster.kinds[cluster.kind[rank]].memory_bytes) for rank in small]
    has = limits[small].tolist()
    enough = max(device_bytes_for(size, all, all - free) for all, free in zip(memory, has, strict=True))
    named = f"rank{'s' * (len(small) > 1)} {', '.join(map(str, small[:_TOLD]))}{' …' * (len(small) > _TOLD)}"
    return (
        max(has),
        f"{named} {'have' if len(small) > 1 else 'has'}",
        f"give {named} {format_bytes(enough)} or more{' each' * (len(small) > 1)}",
    )


def _fits_in_no_host(loaded: LoadedSpec, first: Table, what: str, size: int, cluster: Cluster) -> Diagnostic:
    """Say how much host memory a table (or group) needs that its devices have room for, if it is cached."""
    limit, local = int(cluster.memory_limit[Memory.HOST].max()), cluster.devices_per_host
    message = (
        f"{what} fits in no host: the least that a cached table puts in the memory of one is {format_bytes(size)} for "
        f"one device, and a device has {format_bytes(limit)} of it for tables"
    )
    fix = f"give a host {format_bytes(rounded_up(size * local))} of host_memory or more"
    return Diagnostic("SH201", message, loaded.at_table(first, "rows"), help=fix)


def _cached_instead(table: Table, index: int, model: ModelSpec, cluster: Cluster) -> str | None:
    """The change of a table's kernels that would make it fit on devices, and the host memory that it needs then."""
    if cluster.device_type == "cpu" or table.may_be_cached:
        return None
    pinned = np.isin(np.arange(cluster.devices), table.pin) if table.pin else np.ones(cluster.devices, dtype=bool)
    kinds = tuple(replace(kind, host_memory_bytes=None) for kind in cluster.kinds)
    room = _Room.of(replace(cluster, kinds=kinds), pinned)
    sizes = [
        (option, _memory(option.units, model, len(Memory)))
        for option in _options(index, replace(table, kernels=(Kernel.FUSED_UVM_CACHING,)), model, cluster)
    ]
    fits = [int(size[Memory.HOST, 0]) for option, size in sizes if room.takes(option, size[:1].T.tolist())]
    if not fits:
        return None
    enough = format_bytes(rounded_up(min(fits) * cluster.devices_per_host))
    return f'let it be cached: kernels = ["fused", "fused_uvm_caching"], and host_memory of {enough} or more'


def _smallest_allowed_otherwise(table: Table, index: int, model: ModelSpec, cluster: Cluster) -> str | None:
    """The change of a table's sharding types, or else of its pin too, that would make it fit."""
    free = replace(table, sharding=tuple(ShardingType))
    for way, change in (("allow {}", free), ("allow {} and remove the pin", replace(free, pin=None))):
        pinned = np.isin(np.arange(cluster.devices), change.pin) if change.pin else np.ones(cluster.devices, dtype=bool)
        room, options = _Room.of(cluster, pinned), list(_options(index, change, model, cluster))
        sizes = [_memory(option.units, model, len(cluster.memory_limit)).T.tolist() for option in options]
        fits = [(of_option[0], i) for i, of_option in enumerate(sizes) if room.takes(options[i], of_option)]
        if fits:
            return way.format(options[min(fits)[1]].type)
    return None


def _changed_otherwise(table: Table, index: int, model: ModelSpec, cluster: Cluster) -> Iterator[str]:
    """The least other changes, each of which alone would make a table fit: hosts, optimizer, type of the weights."""

    def fits(model: ModelSpec, cluster: Cluster) -> bool:
        room = _Room.of(cluster, np.isin(np.arange(cluster.devices), table.pin or np.arange(cluster.devices)))
        options = list(_options(index, table, model, cluster))
        sizes = (_memory(option.units, model, len(cluster.memory_limit)).T.tolist() for option in options)
        return any(map(room.takes, options, sizes))

    if not table.pin and not cluster.rank_limit:
        larger = (replace(cluster, host_kind=cluster.host_kind * times) for times in _MORE_HOSTS)
        if enough_hosts := next((each for each in larger if each.devices <= MAX_DEVICES and fits(model, each)), None):
            yield f"use {enough_hosts.hosts} hosts"
    if cluster.device_type != "cpu":  # which have not all optimizers and types
        smaller = _BY_STATE[_BY_STATE.index(Optimizer(model.optimizer)) + 1 :]
        enough = (each for each in smaller if fits(model.model_copy(update={"optimizer": each.value}), cluster))
        if optimizer := next(enough, None):
            yield f'keep less state: optimizer = "{optimizer.value}"'
        if model.weights == "fp32" and fits(model.model_copy(update={"weights": "fp16"}), cluster):
            yield 'halve the weights: weights = "fp16"'
