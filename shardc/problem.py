"""What every pass works on: tables, shards, options and devices as arrays.

A *block* is what has to be decided about: one table, or a group of tables that must share a device. A block has
*options*, one for each way to shard it, and an option is a number of identical *units*: a table-wise option is one
unit, a column-wise one in four pieces is four units, each free to go to any allowed device. A *spread* option
(row-wise, data-parallel) has no free unit: it puts one unit on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class ShardingType(StrEnum):
    """TorchRec's names for the ways to shard a table."""

    TABLE_WISE = "table_wise"
    COLUMN_WISE = "column_wise"
    ROW_WISE = "row_wise"
    DATA_PARALLEL = "data_parallel"


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
class Cluster:
    """The devices a plan is for, as the cost of communication and the memory limit see them.

    Attributes:
        device: name of the hardware profile.
        device_type: cpu or cuda.
        hosts: number of hosts.
        devices_per_host: devices of each host; ranks are numbered host by host.
        memory_bytes: memory of one device.
        reserve_bytes: part of it kept for the dense model and activations.
        intra_host_bandwidth: bytes/s that one device sends to the other devices of its host.
        inter_host_bandwidth: bytes/s that one device sends to other hosts.
        latency_ms: fixed time of one collective within a host.
        network_latency_ms: what it takes longer when it crosses hosts.
        intra_host: measured collectives between devices of one host.
        inter_host: measured collectives between several hosts; bandwidths are of what crosses hosts.
    """

    device: str
    device_type: str
    hosts: int
    devices_per_host: int
    memory_bytes: int
    reserve_bytes: int
    intra_host_bandwidth: float
    inter_host_bandwidth: float
    latency_ms: float
    network_latency_ms: float = 0.0
    intra_host: Mapping[Collective, Link] = field(default_factory=dict)
    inter_host: Mapping[Collective, Link] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """Number of devices (ranks)."""
        return self.hosts * self.devices_per_host

    @property
    def memory_limit(self) -> int:
        """Bytes of one device that embedding tables may take."""
        return max(0, self.memory_bytes - self.reserve_bytes)

    def within_host(self, collective: Collective) -> Link:
        """What a collective takes between devices of one host: as measured, or else the links' figures."""
        return self.intra_host.get(collective) or Link(self.latency_ms, self.intra_host_bandwidth)

    def between_hosts(self, collective: Collective) -> Link:
        """What a collective takes that crosses hosts: as measured, or else the links' figures."""
        usual = Link(self.latency_ms + self.network_latency_ms, self.inter_host_bandwidth)
        return self.inter_host.get(collective) or usual


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


@dataclass(frozen=True, slots=True)
class Problem:
    """A sharding problem, lowered from a spec. T tables, B blocks, O options, S shards, D devices.

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
        option_units: int[O], number of units of the option; 0 for a spread option.
        option_shards: for each option the shards of one unit (one, or one for each table of a group).
        option_memory: int[O], bytes of one unit (of every device, if spread).
        allowed: bool[B, D], devices that units of the block may go to.
        labels: for each block the exclusion labels it carries: no two units with a common label share a device.
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
    option_units: Ints
    option_shards: tuple[tuple[int, ...], ...]
    option_memory: Ints
    allowed: Bools
    labels: tuple[tuple[int, ...], ...]

    def options_of(self, block: int) -> range:
        """Indices of the options of a block."""
        start, stop = np.searchsorted(self.option_block, [block, block + 1])
        return range(int(start), int(stop))


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision for every block.

    Attributes:
        option: int[B], the option chosen for each block.
        devices: for each block the device of each unit, ascending; empty for a spread option.
    """

    option: tuple[int, ...]
    devices: tuple[tuple[int, ...], ...]
