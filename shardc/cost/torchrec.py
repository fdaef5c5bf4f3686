"""TorchRec's own estimates as a cost model: what its planner would believe of a placement.

TorchRec 1.9.2 charges every shard by itself, from the bytes it moves and fixed bandwidths (`EmbeddingPerfEstimator`),
and a plan takes as long as the device whose shards sum to most (`NoopPerfModel`). So a step is one phase, and linear.
Neither the access distribution nor the optimizer, the dtype of outputs, the kind of GPU, or what a fused operator saves
has any influence.

The formulas are restated here, since importing TorchRec takes seconds and its enumerator takes more; the tests hold
them against the installed one. What they leave out is nothing that a spec can ask for: weighted features, several
poolings of a sample, quantised communication. What a cached table misses is charged (`prefetch_compute`) only where
there are statistics of a trace, which a spec has none of; but all that it moves is charged at a tenth of a bandwidth
between that of device memory and that of the link to the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.problem import BYTES_PER_ELEMENT, INDEX_BYTES, Floats, Ints, Problem, ShardingType, Shards

VERSION = "1.9.2"

# planner/constants.py, in bytes/ms as there.
_GIB_PER_S = 1024**3 / 1000
_HBM = 897 * _GIB_PER_S
_DDR = 51 * _GIB_PER_S
_INTRA_HOST = 600 * _GIB_PER_S
_INTER_HOST = 12.5 * _GIB_PER_S
_HOST_LINK = 32 * _GIB_PER_S
_CACHED_SHARE = 0.1  # of the bandwidth of a cache and the link behind it: `kernel_bw_lookup`
_DENSE_SHARE = 0.5  # of memory bandwidth that the dense kernel reaches: `kernel_bw_lookup`
_BACKWARD = 2.0
_LEAST_WIDTH = 32  # columns that a gather of whole rows is charged for at least
_FULL_BLOCK, _HALF_BLOCK = 128, 64  # columns; narrower rows leave parts of a thread block idle
_HALF_PENALTY, _QUARTER_PENALTY = 1.15, 1.75
_BATCHED_COPY = 2.455
_DENSE_OPTIMIZER = 9.22

ASSUMPTIONS = (
    VERSION,
    (_HBM, _DDR, _INTRA_HOST, _INTER_HOST, _DENSE_SHARE),
    (_BACKWARD, _LEAST_WIDTH, _FULL_BLOCK, _HALF_BLOCK, _HALF_PENALTY, _QUARTER_PENALTY),
    (_BATCHED_COPY, _DENSE_OPTIMIZER),
)
"""What decides a cost beside spec and cluster: part of a plan's digests."""
CACHING_ASSUMPTIONS = (_HOST_LINK, _CACHED_SHARE)
"""What decides the cost of cached tables beside them."""


@dataclass(frozen=True)
class TorchRecCost(PhasedCost):
    """The estimates of a problem's shards; see `torchrec_cost`.

    A latent vector is a shard's time in ms, forward and backward, each with its communication. What TorchRec charges
    depends on the whole table that a shard is a piece of, so only the problem's own shards are known.

    Attributes:
        shards: the problem's S shards.
        latents: float[S, 2] ms.
    """

    shards: Shards
    latents: Floats

    phases = ("step",)
    computing = (0,)

    @property
    def constants(self) -> Floats:
        """Nothing is charged for taking part, float[1]."""
        return np.zeros(1)

    def encode(self, shards: Shards) -> Floats:
        """Latents float[S, 2] of the problem's own shards."""
        if shards is not self.shards:
            raise ValueError("TorchRec's estimates are those of one problem's shards")
        return self.latents

    def heads(self, z: Floats) -> Floats:
        """Time of every device, float[..., 1] ms."""
        return np.asarray(z.sum(axis=-1, keepdims=True))

    def slopes(self, z: Floats) -> Floats:
        """Every ms of a latent is one of the device, float[1, 2]."""
        return np.ones((1, len(z)))

    def present(self, z: Floats) -> Floats:
        """1.0 where a device holds anything, float[..., 1]."""
        return np.asarray(z.sum(axis=-1, keepdims=True) > 0, dtype=np.float64)

    def passes(self, z: Floats) -> Floats:
        """Forward and backward time of every device, each with its communication, float[..., 2] ms."""
        return z


def torchrec_cost(
    problem: Problem, *, intra_host: float | None = None, inter_host: float | None = None
) -> TorchRecCost:
    """Estimate a problem's shards as TorchRec does.

    TorchRec's batch is a device's: the samples of a step are divided among the devices, rounded up.

    Args:
        problem: the lowered problem.
        intra_host: bytes/s from a device to the others of its host; None for TorchRec's default (600 GiB/s).
        inter_host: bytes/s from a device to other hosts; None for TorchRec's default (12.5 GiB/s).
    """
    cluster, shards = problem.cluster, problem.shards
    machine = _Machine(
        devices=cluster.devices,
        devices_per_host=cluster.devices_per_host,
        intra_host=_INTRA_HOST if intra_host is None else intra_host / 1e3,
        inter_host=_INTER_HOST if inter_host is None else inter_host / 1e3,
    )
    samples = -(-problem.global_batch // cluster.devices)
    features = np.array([len(table.features) for table in problem.tables])[problem.shard_table]
    pooling = np.array([table.pooling for table in problem.tables])[problem.shard_table] / features
    types = np.array(problem.shard_type)
    memory = _bandwidth(_DDR if cluster.device_type == "cpu" else _HBM, shards)
    latents = np.empty((len(shards), 2))
    for type in dict.fromkeys(problem.shard_type):
        of_type = types == type
        pieces = _Pieces(
            rows=shards.rows[of_type],
            dim=shards.dim[of_type],
            weight_bytes=BYTES_PER_ELEMENT[problem.weights],
            lookups=(pooling * samples * features)[of_type],
            bags=(np.minimum(1.0, pooling) * samples * features)[of_type],
            memory=memory[of_type],
        )
        latents[of_type] = np.stack(_FORMULAS[type](pieces, machine), axis=1)
    return TorchRecCost(shards, latents)


def _bandwidth(memory: float, shards: Shards) -> Floats:
    """Bytes/ms that the kernels of shards reach, float[S], on devices whose memory has so many (`kernel_bw_lookup`)."""
    behind_cache = (shards.cached * memory + (1.0 - shards.cached) * _HOST_LINK) * _CACHED_SHARE
    whole = np.where(shards.exchanged, memory, _DENSE_SHARE * memory)
    return np.where(shards.cached < 1.0, behind_cache, whole)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """N shards of one sharding type, as TorchRec sees them (`ShardPerfContext`).

    Attributes:
        rows: of the shard.
        dim: columns of the shard.
        weight_bytes: bytes of one weight, and of one element that travels.
        lookups: what the samples of one device look up in the whole table (`batch_inputs`).
        bags: bags of one device's samples, counted in part where the mean bag has less than one lookup
            (`batch_outputs`).
        memory: bytes/ms of what the shard is in, as its kernel reaches it.
    """

    rows: Ints
    dim: Ints
    weight_bytes: int
    lookups: Floats
    bags: Floats
    memory: Floats

    def outputs(self, devices: int) -> Floats:
        """Bytes that are pooled for the samples of so many devices (`_get_output_write_size`)."""
        return self.bags * devices * self.dim * self.weight_bytes

    def moved(self, lookups: Floats, outputs: Floats, width: Ints) -> Floats:
        """Bytes of the forward pass: indices and rows read, outputs written (`_default_fwd_comp`)."""
        return np.ceil(lookups * INDEX_BYTES) + lookups * width * self.weight_bytes + outputs


@dataclass(frozen=True, slots=True)
class _Machine:
    """TorchRec's `Topology`; bandwidths in bytes/ms."""

    devices: int
    devices_per_host: int
    intra_host: float
    inter_host: float

    @property
    def exchange(self) -> float:
        """Bandwidth of a collective over all devices: that of the slowest link (`BasicCommsBandwidths.get_bw`)."""
        return self.intra_host if self.devices <= self.devices_per_host else self.inter_host

    @property
    def all_reduce(self) -> float:
        """Bandwidth of an all-reduce: a network card for each device of a host (`BasicCommsBandwidths.get_bw`)."""
        return self.inter_host * self.devices_per_host


def _whole_rows(pieces: _Pieces, machine: _Machine) -> tuple[Floats, Floats]:
    """Table-wise and column-wise (`TableWiseEvaluator`): every device's lookups reach the shard, by all-to-all."""
    outputs = pieces.outputs(machine.devices)
    moved = pieces.moved(pieces.lookups * machine.devices, outputs, np.maximum(pieces.dim, _LEAST_WIDTH))
    narrow = np.where(pieces.dim >= _HALF_BLOCK, _HALF_PENALTY, _QUARTER_PENALTY)  # `compute_block_usage_penalty`
    compute = moved * np.where(pieces.dim >= _FULL_BLOCK, 1.0, narrow) / pieces.memory
    exchange = outputs / machine.exchange
    return compute + exchange, _BACKWARD * compute + exchange


def _row_wise(pieces: _Pieces, machine: _Machine) -> tuple[Floats, Floats]:
    """Row-wise (`RowWiseEvaluator`): lookups spread evenly; reduce-scatter forward, all-gather and a copy backward."""
    outputs = pieces.outputs(machine.devices)
    lookups = pieces.lookups / machine.devices * machine.devices  # rounded as there: the bytes are rounded up
    compute = pieces.moved(lookups, outputs, pieces.dim) / pieces.memory
    exchange = outputs / machine.exchange
    return compute + exchange, _BACKWARD * compute + exchange + outputs * _BATCHED_COPY / pieces.memory


def _table_row_wise(pieces: _Pieces, machine: _Machine) -> tuple[Floats, Floats]:
    """Table-row-wise and grid (`TableRowWiseEvaluator`): as row-wise on the devices of a host, then between hosts."""
    outputs, hosts = pieces.outputs(machine.devices), machine.devices // machine.devices_per_host
    lookups = pieces.lookups / machine.devices_per_host * machine.devices
    compute = pieces.moved(lookups, outputs, pieces.dim) / pieces.memory
    exchange = outputs / machine.intra_host
    if hosts > 1:
        exchange = exchange + pieces.outputs(hosts) / machine.inter_host
    return compute + exchange, _BACKWARD * compute + exchange + outputs * _BATCHED_COPY / pieces.memory


def _data_parallel(pieces: _Pieces, machine: _Machine) -> tuple[Floats, Floats]:
    """Data-parallel (`DataParallelEvaluator`): the device's own samples; all-reduce and dense update of all rows."""
    compute = pieces.moved(pieces.lookups, pieces.outputs(1), pieces.dim) / pieces.memory
    table = pieces.rows * pieces.dim * pieces.weight_bytes
    hosts = min(machine.devices / machine.devices_per_host, 2)
    reduce = table * (2 * hosts - 1) / hosts / machine.all_reduce
    if machine.devices > 2 * machine.devices_per_host:
        reduce = reduce * 2
    return compute, _BACKWARD * compute + reduce + table * _DENSE_OPTIMIZER / pieces.memory


_FORMULAS: dict[ShardingType, Callable[[_Pieces, _Machine], tuple[Floats, Floats]]] = {
    ShardingType.TABLE_WISE: _whole_rows,
    ShardingType.COLUMN_WISE: _whole_rows,
    ShardingType.TABLE_COLUMN_WISE: _whole_rows,
    ShardingType.ROW_WISE: _row_wise,
    ShardingType.TABLE_ROW_WISE: _table_row_wise,
    ShardingType.GRID_SHARD: _table_row_wise,
    ShardingType.DATA_PARALLEL: _data_parallel,
}
"""Forward and backward ms of shards, by sharding type."""
