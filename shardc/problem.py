"""What every pass works on: tables, shards, options and devices as arrays.

A *block* is what has to be decided about: one table, or a group of tables that must share a device. A block has
*options*, one for each way to shard it, and an option is a number of *units*, each at a *site*: a table-wise option is
one unit on one device, a column-wise one in four pieces is four units on four devices; a table-row-wise one is one unit
at a host, with a shard on each of its devices; a row-wise one is one unit at the only site that holds all devices.
Units of an option that are alike are one *kind*: a table of 128 columns in three pieces is two units of 44 columns and
one of 40.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound=np.generic)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class ShardingType(StrEnum):
    """TorchRec's names for the ways to shard a table."""

    TABLE_WISE = "table_wise"
    COLUMN_WISE = "column_wise"
    TABLE_COLUMN_WISE = "table_column_wise"
    ROW_WISE = "row_wise"
    TABLE_ROW_WISE = "table_row_wise"
    GRID_SHARD = "grid_shard"
    DATA_PARALLEL = "data_parallel"


class Kernel(StrEnum):
    """TorchRec's names for how a device looks up a shard; `cached` of `Shards` tells the two fused ones apart."""

    DENSE = "dense"
    FUSED = "fused"
    FUSED_UVM_CACHING = "fused_uvm_caching"


class Memory(IntEnum):
    """Kinds of memory that a shard takes: the device's own, and its share of the memory of its host."""

    DEVICE = 0
    HOST = 1


class Site(IntEnum):
    """What a unit takes up: a device, every device of a host, or every device there is."""

    DEVICE = 0
    HOST = 1
    CLUSTER = 2


class Optimizer(StrEnum):
    """Sparse optimizers, fused into the backward operator."""

    SGD = "sgd"
    ROWWISE_ADAGRAD = "rowwise_adagrad"
    ADAGRAD = "adagrad"
    ADAM = "adam"


class Collective(StrEnum):
    """What devices do together in a training step."""

    ALL_TO_ALL = "all_to_all"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    ALL_REDUCE = "all_reduce"


BYTES_PER_ELEMENT = {"fp32": 4, "fp16": 2, "bf16": 2}
INDEX_BYTES = 8
ACCESS_BINS = 17


@dataclass(frozen=True, slots=True)
class Link:
    """What a collective takes that sends bytes over one kind of link.

    Attributes:
        latency_ms: fixed time.
        bandwidth: bytes/s that one device sends over the link.
    """

    latency_ms: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class HostKind:
    """Hosts that are alike: their devices and links.

    Attributes:
        device: name of the devices' hardware profile.
        memory_bytes: memory of one device.
        reserve_bytes: part of it kept for the dense model and activations.
        intra_host_bandwidth: bytes/s that one device sends to the other devices of its host.
        inter_host_bandwidth: bytes/s that one device sends to other hosts.
        latency_ms: fixed time of one collective within a host.
        network_latency_ms: what it takes longer when it crosses hosts.
        intra_host: measured collectives between devices of one host.
        inter_host: measured collectives between several hosts; bandwidths are of what crosses hosts.
        host_memory_bytes: memory of the host that tables of one device may take; None where no table is cached.
        host_bandwidth: bytes/s between a device and the memory of its host, in one direction; None where tables may not
            use it, or nobody knows.
    """

    device: str
    memory_bytes: int
    reserve_bytes: int
    intra_host_bandwidth: float
    inter_host_bandwidth: float
    latency_ms: float
    network_latency_ms: float = 0.0
    intra_host: Mapping[Collective, Link] = field(default_factory=dict)
    inter_host: Mapping[Collective, Link] = field(default_factory=dict)
    host_memory_bytes: int | None = None
    host_bandwidth: float | None = None

    def within_host(self, collective: Collective) -> Link:
        """What a collective takes between devices of one host: as measured, or else the links' figures."""
        return self.intra_host.get(collective) or Link(self.latency_ms, self.intra_host_bandwidth)

    def between_hosts(self, collective: Collective) -> Link:
        """What a collective takes that crosses hosts: as measured, or else the links' figures."""
        usual = Link(self.latency_ms + self.network_latency_ms, self.inter_host_bandwidth)
        return self.inter_host.get(collective) or usual


@dataclass(frozen=True)
class Cluster:
    """The devices a plan is for; ranks are numbered host by host.

    Attributes:
        device_type: cpu or cuda.
        devices_per_host: devices of each host.
        kinds: the G kinds of hosts.
        host_kind: for each host its kind.
        rank_limit: bytes that tables may take of single ranks that differ from their kind's.
    """

    device_type: str
    devices_per_host: int
    kinds: tuple[HostKind, ...]
    host_kind: tuple[int, ...]
    rank_limit: Mapping[int, int] = field(default_factory=dict)

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return len(self.host_kind)

    @property
    def devices(self) -> int:
        """Number of devices (ranks)."""
        return self.hosts * self.devices_per_host

    @cached_property
    def kind(self) -> Ints:
        """int[D], the kind of each device's host."""
        return np.repeat(np.array(self.host_kind), self.devices_per_host)

    @cached_property
    def memory_limit(self) -> Ints:
        """int[M, D], bytes that embedding tables may take of each device and, where they may, of its host (`Memory`).

        Kinds of memory come first: there is one or there are two of them, and numpy is slow at short last axes.
        """
        limits = np.array([max(0, kind.memory_bytes - kind.reserve_bytes) for kind in self.kinds])[self.kind]
        for rank, limit in self.rank_limit.items():
            limits[rank] = limit
        host = [kind.host_memory_bytes for kind in self.kinds]
        return np.stack([limits, np.array(host)[self.kind]]) if None not in host else limits[None]


@dataclass(frozen=True, slots=True)
class Shards:
    """What a cost model sees of S shards; every array has S entries.

    Attributes:
        rows: rows of the shard.
        dim: columns of the shard.
        pooling: mean lookups of one bag that reach the shard.
        bags: bags of a step that reach the shard: samples (of the global batch, or of a device's share of it when
            data-parallel) times the features of its table.
        bins: float[S, 17], share of the unique indices whose access count lies in (0,1], (1,2], (2,4] ... (32768,inf)
            (AutoShard, section 3.1).
        unique: expected number of distinct rows that a step touches.
        weight_bytes: bytes of one weight.
        output_bytes: bytes of one element of the pooled output.
        optimizer: index into `list(Optimizer)`.
        type: index into `list(ShardingType)`.
        cached: share of the rows that a cache on the device has room for, while all of them are in the memory of the
            host; 1.0 where all are on the device.
    """

    rows: Ints
    dim: Ints
    pooling: Floats
    bags: Ints
    bins: Floats
    unique: Floats
    weight_bytes: Ints
    output_bytes: Ints
    optimizer: Ints
    type: Ints
    cached: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def exchanged(self) -> Bools:
        """False for a replica, whose gradients are all-reduced; inputs and outputs of all others travel."""
        return np.asarray(self.type != list(ShardingType).index(ShardingType.DATA_PARALLEL))

    @property
    def lookups(self) -> Floats:
        """Mean number of rows that one step reads."""
        return self.bags * self.pooling


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table as the plan has to name, split and account for it."""

    name: str
    features: tuple[str, ...]
    rows: int
    dim: int
    pooling: float


@dataclass(frozen=True)
class Problem:
    """A sharding problem, lowered from a spec. T tables, B blocks, O options, U kinds of units, S shards, D devices.

    Of the M kinds of memory (`Memory`) there is only the first where no table may use the memory of its host.

    Tables are sorted by name and blocks by their first table, so that the order of listing has no influence.

    Attributes:
        cluster: the devices.
        global_batch: samples of one step over all devices.
        optimizer: the sparse optimizer.
        weights: dtype of the weights.
        outputs: dtype of the pooled outputs.
        tables: the T tables.
        blocks: for each block the indices of its tables (several: a group that shares a device).
        shards: the S distinct shards that options are made of.
        shard_table: int[S], the table that a shard is a piece of.
        shard_type: for each shard the sharding type that makes it.
        option_block: int[O], the block that an option belongs to; ascending.
        option_type: sharding type of each option.
        option_site: int[O], the `Site` that each unit of the option takes up.
        option_one_host: bool[O], whether all units of the option keep to one host.
        unit_option: int[U], the option that a kind of unit belongs to; ascending, and the largest unit of each first.
        unit_count: int[U], how many such units the option has.
        unit_shards: for each kind the shards of one unit on one device (one, or one for each table of a group).
        unit_memory: int[M, U], bytes of one unit on one device, of each kind of memory.
        allowed: bool[B, D], devices that units of the block may go to.
        labels: for each block the exclusion labels it carries, its own first: no two units with a common label share a
            device.
    """

    cluster: Cluster
    global_batch: int
    optimizer: Optimizer
    weights: str
    outputs: str
    tables: tuple[TableInfo, ...]
    blocks: tuple[tuple[int, ...], ...]
    shards: Shards
    shard_table: Ints
    shard_type: tuple[ShardingType, ...]
    option_block: Ints
    option_type: tuple[ShardingType, ...]
    option_site: Ints
    option_one_host: Bools
    unit_option: Ints
    unit_count: Ints
    unit_shards: tuple[tuple[int, ...], ...]
    unit_memory: Ints
    allowed: Bools
    labels: tuple[list[int], ...]

    @cached_property
    def first_option(self) -> Ints:
        """int[B], the first option of each block."""
        return np.searchsorted(self.option_block, np.arange(len(self.blocks)))

    @cached_property
    def first_unit(self) -> Ints:
        """int[O], the first kind of unit of each option, and the largest."""
        return np.searchsorted(self.unit_option, np.arange(len(self.option_block)))

    @cached_property
    def _stop_unit(self) -> Ints:
        """int[O], the kind of unit after the last of each option."""
        return np.append(self.first_unit[1:], len(self.unit_option))

    @cached_property
    def option_units(self) -> Ints:
        """int[O], number of units of each option."""
        return np.add.reduceat(self.unit_count, self.first_unit)

    @cached_property
    def site_size(self) -> Ints:
        """int[3], devices that a unit takes up, by `Site`."""
        return np.array([1, self.cluster.devices_per_host, self.cluster.devices])

    @cached_property
    def label_count(self) -> int:
        """Number of exclusion labels."""
        return 1 + max(label for of_block in self.labels for label in of_block)

    @cached_property
    def unit_fill(self) -> Floats:
        """float[U]: the share that a unit takes of a largest device's memory, of the kind that it takes most of."""
        limits = np.maximum(self.cluster.memory_limit.max(axis=1, keepdims=True), 1)
        return np.asarray((self.unit_memory / limits).max(axis=0))

    def cached_of(self, option: int) -> tuple[float, ...]:
        """For each table of an option's block the share of its rows that is cached; see `Shards.cached`."""
        return tuple(float(self.shards.cached[shard]) for shard in self.unit_shards[self.first_unit[option]])

    def options_of(self, block: int) -> range:
        """Indices of the options of a block."""
        start, stop = np.searchsorted(self.option_block, [block, block + 1])
        return range(int(start), int(stop))

    def units_of(self, option: int) -> Ints:
        """The kind of each unit of an option, those of one kind next to each other."""
        kinds = np.arange(self.first_unit[option], self._stop_unit[option])
        return np.repeat(kinds, self.unit_count[kinds])

    def devices_of(self, option: int, place: int) -> slice:
        """The devices that a unit of an option takes up at a place: a device, a host, or 0 for all devices."""
        size = int(self.site_size[self.option_site[option]])
        return slice(place * size, (place + 1) * size)

    def holdings(self, placement: Placement) -> Holdings:
        """What each device holds."""
        option = np.array(placement.option, dtype=np.int64)
        first = self.first_unit[option]
        kinds = ranges(first, self._stop_unit[option] - first)
        unit = np.repeat(kinds, self.unit_count[kinds])
        place = np.fromiter(chain.from_iterable(placement.places), dtype=np.int64)
        size = self.site_size[self.option_site[self.unit_option[unit]]]
        block = np.repeat(self.option_block[self.unit_option[unit]], size)
        return Holdings(block, np.repeat(unit, size), ranges(place * size, size))

    def labelled(self, holdings: Holdings) -> Ints:
        """int[labels, D]: units with each exclusion label on each device; more than one are not allowed."""
        count = np.array([len(labels) for labels in self.labels])
        each = count[holdings.block]
        label = np.concatenate(self.labels)[ranges((np.cumsum(count) - count)[holdings.block], each)]
        units = np.zeros((self.label_count, self.cluster.devices), dtype=np.int64)
        np.add.at(units, (label, np.repeat(holdings.device, each)), 1)
        return units

    def held(self, placement: Placement) -> Bools:
        """bool[D, S]: the shards that each device holds."""
        held = np.zeros((self.cluster.devices, len(self.shards)), dtype=bool)
        for _, unit, device in zip(*self.holdings(placement), strict=True):
            held[device, list(self.unit_shards[unit])] = True
        return held

    def pieces(self, table: int, option: int, places: Sequence[int]) -> Ints:
        """What a table is in when its block's units are at places: int[N, 5], rank, row, column, rows and columns.

        Column block by column block; one on several devices is in blocks of rows there, as TorchRec has them: of equal
        size in the order of ranks, the last maybe short. A replica is the whole table on its device.
        """
        rows, size = self.tables[table].rows, int(self.site_size[self.option_site[option]])
        replicas = self.option_type[option] is ShardingType.DATA_PARALLEL
        widths = {
            int(unit): next(int(self.shards.dim[s]) for s in self.unit_shards[unit] if self.shard_table[s] == table)
            for unit in range(self.first_unit[option], self._stop_unit[option])
        }
        width = np.repeat([widths[int(unit)] for unit in self.units_of(option)], size)
        number = np.tile(np.arange(size), len(places))
        block = rows if replicas else -(-rows // size)
        first = np.minimum(number * (not replicas) * block, rows)
        column = np.repeat((np.cumsum(width[::size]) - width[::size]), size)
        rank = np.repeat(np.asarray(places) * size, size) + number
        return np.stack([rank, first, column, np.minimum(first + block, rows) - first, width], axis=1)

    def sorted_places(self, option: int, places: Sequence[int]) -> tuple[int, ...]:
        """Places of an option's units in the order of `units_of`, ascending among units of one kind."""
        if len(places) == 1:
            return tuple(places)
        return tuple(place for _, place in sorted(zip(self.units_of(option).tolist(), places, strict=True)))


class Holdings(NamedTuple):
    """What N units are on devices, block by block; each array is int[N].

    Attributes:
        block: the block that the unit is a part of.
        unit: its kind.
        device: a device that holds it; a unit of several devices is listed once for each.
    """

    block: Ints
    unit: Ints
    device: Ints


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision for every block.

    Attributes:
        option: int[B], the option chosen for each block.
        places: for each block the place of each unit, in the order of `Problem.units_of`: a device, a host, or 0 for
            all devices, as the option's site is; ascending among units of one kind, unless columns are to stay where
            another plan has them (see `shardc.placers.migrate`).
    """

    option: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]


def distinct(values: NDArray[_Number], axis: int | None = None) -> NDArray[_Number]:
    """The distinct values, ascending. Asked for no more than these, `np.unique` imports masked arrays, for 10 ms."""
    found: NDArray[_Number] = np.unique(values, return_index=True, axis=axis)[0]
    return found


def ranges(starts: Ints, counts: Ints) -> Ints:
    """The integers of all ranges of so many from each start, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.asarray(np.repeat(starts - before, counts) + np.arange(int(counts.sum())))
