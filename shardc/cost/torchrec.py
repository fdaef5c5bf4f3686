"""TorchRec's own estimates as a cost model: what its planner would believe of a placement.

TorchRec 1.9.2 charges every shard by itself, from the bytes it moves and fixed bandwidths (`EmbeddingPerfEstimator`),
and a plan takes as long as the device whose shards sum to most (`NoopPerfModel`). So a step is one phase, and linear.
Neither the access distribution nor the optimizer, the dtype of outputs, the kind of GPU, or what a fused operator saves
has any influence.

The formulas are restated here, since importing TorchRec takes seconds and its enumerator takes more; the tests hold
them against the installed one. What a spec has no words for (bandwidths of single collectives, weighted features,
sequence embeddings, several poolings of a sample, quantised communication) is asked for with `Machine` and `Inputs`.
What a cached table misses is charged (`prefetch_compute`) only where there are statistics of a trace, which a spec has
none of; but all that it moves is charged at a tenth of a bandwidth between that of device memory and that of the link
to the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shardc.cost.model import PhasedCost
from shardc.problem import (
    BYTES_PER_ELEMENT,
    INDEX_BYTES,
    Bools,
    Cluster,
    Floats,
    Ints,
    Problem,
    ShardingType,
    Shards,
)

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
_WEIGHTED_GRADIENT = 1.1  # of the forward compute: gradients of the lookups' weights
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


@dataclass(frozen=True, slots=True)
class Machine:
    """TorchRec's `Topology`; bandwidths in bytes/ms, of each collective as `GeneralizedCommsBandwidth.get_bw` has it.

    Attributes:
        devices: ranks.
        devices_per_host: ranks of one host.
        group: ranks that table-row-wise spreads a table over: those of a host, or of a pod of hosts.
        memory: of a device.
        all_to_all: among all devices, as are `reduce_scatter`, `all_gather` and `all_reduce`.
        reduce_scatter: of row-wise outputs.
        all_gather: of their gradients.
        all_reduce: of data-parallel gradients.
        group_reduce_scatter: within a group.
        group_all_gather: within a group.
        between_groups: all-to-all of one device of each group.
        backward: backward compute over forward compute.
        weighted_backward: the same again where lookups are weighted.
    """

    devices: int
    devices_per_host: int
    group: int
    memory: float
    all_to_all: float
    reduce_scatter: float
    all_gather: float
    all_reduce: float
    group_reduce_scatter: float
    group_all_gather: float
    between_groups: float
    backward: float = _BACKWARD
    weighted_backward: float = 1.0

    @staticmethod
    def of(cluster: Cluster, *, intra_host: float | None = None, inter_host: float | None = None) -> Machine:
        """What TorchRec assumes of a cluster (`BasicCommsBandwidths`).

        Args:
            cluster: the devices.
            intra_host: bytes/s from a device to the others of its host; None for TorchRec's default (600 GiB/s).
            inter_host: bytes/s from a device to other hosts; None for TorchRec's default (12.5 GiB/s).
        """
        within = _INTRA_HOST if intra_host is None else intra_host / 1e3
        between = _INTER_HOST if inter_host is None else inter_host / 1e3
        slowest = within if cluster.hosts == 1 else between
        return Machine(
            devices=cluster.devices,
            devices_per_host=cluster.devices_per_host,
            group=cluster.devices_per_host,
            memory=_DDR if cluster.device_type == "cpu" else _HBM,
            all_to_all=slowest,
            reduce_scatter=slowest,
            all_gather=slowest,
            all_reduce=between * cluster.devices_per_host,  # a network card for each device of a host
            group_reduce_scatter=within,
            group_all_gather=within,
            between_groups=between,
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """What reaches a table from the samples of one device, and in what size its outputs travel.

    Attributes:
        lookups: rows that are looked up (`batch_inputs`).
        bags: outputs, counted in part where the mean bag has less than one lookup (`batch_outputs`).
        pooled: False where every lookup is an output of its own.
        weighted: whether lookups have weights.
        exchanged: bytes of an element in the all-to-all, forward and backward; None for those of a weight.
        reduced: the same of the reduce-scatter and all-gather.
    """

    lookups: float
    bags: float
    pooled: bool = True
    weighted: bool = False
    exchanged: tuple[float, float] | None = None
    reduced: tuple[float, float] | None = None


def torchrec_cost(
    problem: Problem, machine: Machine | None = None, inputs: Sequence[Inputs] | None = None
) -> TorchRecCost:
    """Estimate a problem's shards as TorchRec does.

    Args:
        problem: the lowered problem.
        machine: the devices; None for what TorchRec assumes of them.
        inputs: for each table what reaches it; None for the problem's poolings, spread evenly over a table's features.
            TorchRec's batch is a device's: the samples of a step are divided among the devices, rounded up.
    """
    machine = machine or Machine.of(problem.cluster)
    samples = -(-problem.global_batch // problem.cluster.devices)
    inputs = inputs or [_even(table.pooling, len(table.features), samples) for table in problem.tables]
    weight_bytes = BYTES_PER_ELEMENT[problem.weights]
    own = (float(weight_bytes), float(weight_bytes))
    lookups, bags = np.array([(each.lookups, each.bags) for each in inputs]).T
    pooled, weighted = np.array([(each.pooled, each.weighted) for each in inputs]).T
    exchanged = np.array([each.exchanged or own for each in inputs])
    reduced = np.array([each.reduced or own for each in inputs])
    shards = problem.shards
    types = np.array(problem.shard_type)
    memory = _bandwidth(machine.memory, shards)
    latents = np.empty((len(shards), 2))
    for type in dict.fromkeys(problem.shard_type):
        of_type = types == type
        table = problem.shard_table[of_type]
        pieces = _Pieces(
            rows=shards.rows[of_type],
            dim=shards.dim[of_type],
            weight_bytes=weight_bytes,
            lookups=lookups[table],
            bags=bags[table],
            pooled=pooled[table],
            weighted=weighted[table],
            exchanged=exchanged[table].T,
            reduced=reduced[table].T,
            memory=memory[of_type],
        )
        latents[of_type] = np.stack(_FORMULAS[type](pieces, machine), axis=1)
    return TorchRecCost(shards, latents)


def _bandwidth(memory: float, shards: Shards) -> Floats:
    """Bytes/ms that the kernels of shards reach, float[S], on devices whose memory has so many (`kernel_bw_lookup`)."""
    behind_cache = (shards.cached * memory + (1.0 - shards.cached) * _HOST_LINK) * _CACHED_SHARE
    whole = np.where(shards.exchanged, memory, _DENSE_SHARE * memory)
    return np.where(shards.cached < 1.0, behind_cache, whole)


def _even(pooling: float, features: int, samples: int) -> Inputs:
    """Inputs of a table whose lookups of a sample are spread evenly over its features."""
    each = pooling / features
    return Inputs(lookups=each * samples * features, bags=min(1.0, each) * samples * features)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """N shards of one sharding type, as TorchRec sees them (`ShardPerfContext`).

    Attributes:
        rows: of the shard.
        dim: columns of the shard.
        weight_bytes: bytes of one weight.
        lookups: what the samples of one device look up in the whole table.
        bags: outputs of one device's samples.
        pooled: see `Inputs`.
        weighted: see `Inputs`.
        exchanged: float[2, N], see `Inputs`.
        reduced: float[2, N], see `Inputs`.
        memory: bytes/ms of what the shard is in, as its kernel reaches it.
    """

    rows: Ints
    dim: Ints
    weight_bytes: int
    lookups: Floats
    bags: Floats
    pooled: Bools
    weighted: Bools
    exchanged: Floats
    reduced: Floats
    memory: Floats

    def outputs(self, devices: int, element: Floats | int, blocks: int = 1) -> Floats:
        """Bytes of the outputs for the samples of so many devices (`_get_output_write_size`).

        A sequence's outputs are spread over the blocks of rows that its table is in.
        """
        bags = np.where(self.pooled, self.bags, self.bags / blocks)
        return np.asarray(bags * devices * self.dim * element)

    def moved(self, lookups: Floats, outputs: Floats, width: Ints) -> Floats:
        """Bytes of the forward pass: indices and rows read, outputs written (`_default_fwd_comp`)."""
        indices = np.ceil(lookups * INDEX_BYTES) * np.where(self.weighted, 2, 1)
        return np.asarray(indices + lookups * width * self.weight_bytes + outputs)

    def backward(self, forward: Floats, machine: Machine) -> Floats:
        """Time of the backward compute from that of the forward one (`_default_bwd_comp`)."""
        weighted = forward * machine.backward * machine.weighted_backward + forward * _WEIGHTED_GRADIENT
        return np.where(self.weighted, weighted, forward * machine.backward)


def _whole_rows(pieces: _Pieces, machine: Machine) -> tuple[Floats, Floats]:
    """Table-wise and column-wise (`TableWiseEvaluator`): every device's lookups reach the shard, by all-to-all."""
    forth, back = (pieces.outputs(machine.devices, element) for element in pieces.exchanged)
    moved = pieces.moved(pieces.lookups * machine.devices, forth, np.maximum(pieces.dim, _LEAST_WIDTH))
    narrow = np.where(pieces.dim >= _HALF_BLOCK, _HALF_PENALTY, _QUARTER_PENALTY)  # `compute_block_usage_penalty`
    compute = moved * np.where(pieces.dim >= _FULL_BLOCK, 1.0, narrow) / pieces.memory
    return compute + forth / machine.all_to_all, pieces.backward(compute, machine) + back / machine.all_to_all


def _row_wise(pieces: _Pieces, machine: Machine) -> tuple[Floats, Floats]:
    """Row-wise (`RowWiseEvaluator`): lookups spread evenly; reduce-scatter forward, all-gather and a copy backward."""
    elements = np.where(pieces.pooled, pieces.reduced, pieces.exchanged)
    forth, back = (pieces.outputs(machine.devices, element, machine.devices) for element in elements)
    lookups = pieces.lookups / machine.devices * machine.devices  # rounded as there: the bytes are rounded up
    compute = pieces.moved(lookups, forth, pieces.dim) / pieces.memory
    returned = back / machine.all_gather + back * _BATCHED_COPY / pieces.memory
    return compute + forth / machine.reduce_scatter, pieces.backward(compute, machine) + returned


def _table_row_wise(pieces: _Pieces, machine: Machine) -> tuple[Floats, Floats]:
    """Table-row-wise and grid (`TableRowWiseEvaluator`): as row-wise on the devices of a host, then between hosts."""
    forth, back = (pieces.outputs(machine.devices, element, machine.group) for element in pieces.reduced)
    lookups = pieces.lookups / machine.group * machine.devices
    compute = pieces.moved(lookups, forth, pieces.dim) / pieces.memory
    sent = forth / machine.group_reduce_scatter
    returned = back / machine.group_all_gather + back * _BATCHED_COPY / pieces.memory
    if (groups := machine.devices // machine.group) > 1:
        across = [pieces.bags * groups * pieces.dim * element / machine.between_groups for element in pieces.exchanged]
        sent, returned = sent + across[0], returned + across[1]
    return compute + sent, pieces.backward(compute, machine) + returned


def _data_parallel(pieces: _Pieces, machine: Machine) -> tuple[Floats, Floats]:
    """Data-parallel (`DataParallelEvaluator`): the device's own samples; all-reduce and dense update of all rows."""
    compute = pieces.moved(pieces.lookups, pieces.outputs(1, pieces.weight_bytes), pieces.dim) / pieces.memory
    table = pieces.rows * pieces.dim * pieces.weight_bytes
    hosts = min(machine.devices / machine.devices_per_host, 2)
    reduce = table * (2 * hosts - 1) / hosts / machine.all_reduce
    if machine.devices > 2 * machine.devices_per_host:
        reduce = reduce * 2
    return compute, pieces.backward(compute, machine) + reduce + table * _DENSE_OPTIMIZER / pieces.memory


_FORMULAS: dict[ShardingType, Callable[[_Pieces, Machine], tuple[Floats, Floats]]] = {
    ShardingType.TABLE_WISE: _whole_rows,
    ShardingType.COLUMN_WISE: _whole_rows,
    ShardingType.TABLE_COLUMN_WISE: _whole_rows,
    ShardingType.ROW_WISE: _row_wise,
    ShardingType.TABLE_ROW_WISE: _table_row_wise,
    ShardingType.GRID_SHARD: _table_row_wise,
    ShardingType.DATA_PARALLEL: _data_parallel,
}
"""Forward and backward ms of shards, by sharding type."""
