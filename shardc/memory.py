"""What a shard takes of memory: of its device's, and of its host's. Every pass and the verifier count with these.

A table with the kernel `fused_uvm_caching` is in the memory of the host, with a cache on the device. What is where is
as FBGEMM has it (1.8.0, `construct_split_state` and `_apply_cache_state` of its training operator):

- The host has all weights, and optimizer state of one or more values a weight (Adagrad, Adam).
- The device has the cache, in sets of 32 rows, and 16 bytes beside each of its rows (which row it is, and when it was
  used last); 4 bytes for every row of the table; and all of an optimizer state of one value a row.

TorchRec's estimator (1.9.2, `calculate_shard_storages`) differs in optimizer state: it counts all of it on the host,
and the cached share of it on the device. It does not round to sets. Like it, this counts a cache as wide as the shard,
though the tables of one operator share a cache as wide as the widest of them: `shardc.passes.verify.wide_caches` warns
where that is more than a device has.
"""

from __future__ import annotations

import numpy as np

from shardc.problem import BYTES_PER_ELEMENT, INDEX_BYTES, Bools, Floats, Ints, Optimizer

_STATE_BYTES = 4  # FBGEMM keeps optimizer state in fp32, whatever the weights are
_CACHE_SET = 32  # rows of a cache that are taken or left together (DEFAULT_ASSOC)
_SLOT_BYTES = 16  # beside a cached row: lxu_cache_state and lxu_state
_ROW_BYTES = 4  # for a row that may be cached: cache_index_table_map


def optimizer_state_bytes(rows: Ints | int, dim: Ints | int, optimizer: str) -> Ints | int:
    """Bytes of optimizer state: one value a row (row-wise Adagrad), one (Adagrad) or two (Adam) a weight."""
    values = {
        Optimizer.SGD: 0 * rows,
        Optimizer.ROWWISE_ADAGRAD: rows,
        Optimizer.ADAGRAD: rows * dim,
        Optimizer.ADAM: 2 * rows * dim,
    }[Optimizer(optimizer)]
    return values * _STATE_BYTES


def device_bytes_for(tables: int, memory: int, reserve: int) -> int:
    """Bytes of device memory that leave `tables` bytes for tables, rounded up to the three digits people are shown.

    A reserve may be a part of the memory and grow with it, so it is kept both as a size and as a share.

    Args:
        tables: bytes that tables need on one device.
        memory: bytes of a device now.
        reserve: bytes of it that tables may not take now.
    """
    share = -(-(tables + 1) * memory // max(memory - reserve - 1, 1))  # the reserve may have been rounded down
    return rounded_up(max(tables + reserve, share))


def rounded_up(needed: int) -> int:
    """Bytes, rounded up to the three digits people are shown."""
    unit = 1
    while needed >= 999.5 * unit and unit < 1024**4:
        unit *= 1024
    digits = len(str(needed // unit))
    parts = {1: 100, 2: 10}.get(digits, 1)  # hundredths, tenths or whole units
    shown = -(-needed * parts // unit)
    return -(-shown * unit // parts)


def shard_bytes(
    rows: Ints | int,
    dim: Ints | int,
    *,
    weights: str,
    outputs: str,
    optimizer: str,
    bags: Ints | int,
    pooling: Floats | float,
    dense: Bools | bool = False,
    cached: Floats | float = 1.0,
) -> Ints:
    """Bytes of device memory that shards take, int[...].

    Weights, optimizer state, the inputs it receives (indices and offsets), its pooled output and the gradient of that
    output; a `dense` (data-parallel) shard also keeps a gradient as large as its weights. Of one that is `cached` in
    part, the cache and what belongs to it in place of the weights.

    Args:
        rows: rows of the shard.
        dim: columns of the shard.
        weights: dtype of the weights.
        outputs: dtype of the pooled outputs.
        optimizer: name of the sparse optimizer.
        bags: bags of a step that reach the shard: samples, times the features of its table.
        pooling: mean lookups of a bag that reach the shard.
        dense: whether gradients are dense, as data-parallel tables have them.
        cached: share of the rows that the cache has room for; 1.0 where all are on the device.
    """
    weight_bytes = np.asarray(rows) * dim * BYTES_PER_ELEMENT[weights]
    state = optimizer_state_bytes(rows, dim, optimizer)
    kept = np.asarray(weight_bytes * (1 + np.asarray(dense)) + state)
    if (offloaded := np.asarray(cached) < 1.0).any():
        slots = np.ceil(np.asarray(rows) * cached / _CACHE_SET).astype(np.int64) * _CACHE_SET
        cache = slots * (np.asarray(dim) * BYTES_PER_ELEMENT[weights] + _SLOT_BYTES) + np.asarray(rows) * _ROW_BYTES
        kept = np.where(offloaded, cache + state * _keeps_state(optimizer), kept)
    inputs = (np.trunc(bags * np.asarray(pooling)).astype(np.int64) + bags) * INDEX_BYTES
    activations = 2 * np.asarray(bags) * dim * BYTES_PER_ELEMENT[outputs]
    return np.asarray(kept + inputs + activations)


def host_bytes(
    rows: Ints | int, dim: Ints | int, *, weights: str, optimizer: str, cached: Floats | float = 1.0
) -> Ints:
    """Bytes of host memory that shards take, int[...]: weights, and optimizer state that the device does not keep.

    Args:
        rows: rows of the shard.
        dim: columns of the shard.
        weights: dtype of the weights.
        optimizer: name of the sparse optimizer.
        cached: as of `shard_bytes`; a shard takes nothing of the host where it is 1.0.
    """
    state = optimizer_state_bytes(rows, dim, optimizer) * (not _keeps_state(optimizer))
    return np.asarray((np.asarray(rows) * dim * BYTES_PER_ELEMENT[weights] + state) * (np.asarray(cached) < 1.0))


def _keeps_state(optimizer: str) -> bool:
    """Whether the optimizer state of a cached table is on the device: one value a row is, those of weights are not."""
    return optimizer == Optimizer.ROWWISE_ADAGRAD
