"""What a shard takes of a device's memory. Every pass and the verifier count with this one function."""

from __future__ import annotations

import numpy as np

from shardc.problem import BYTES_PER_ELEMENT, INDEX_BYTES, Bools, Floats, Ints, Optimizer

_STATE_BYTES = 4  # FBGEMM keeps optimizer state in fp32, whatever the weights are


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
    needed = max(tables + reserve, share)
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
) -> Ints:
    """Bytes of device memory that shards take, int[...].

    Weights, optimizer state, the inputs it receives (indices and offsets), its pooled output and the gradient of that
    output; a `dense` (data-parallel) shard also keeps a gradient as large as its weights.

    Args:
        rows: rows of the shard.
        dim: columns of the shard.
        weights: dtype of the weights.
        outputs: dtype of the pooled outputs.
        optimizer: name of the sparse optimizer.
        bags: bags of a step that reach the shard: samples, times the features of its table.
        pooling: mean lookups of a bag that reach the shard.
        dense: whether gradients are dense, as data-parallel tables have them.
    """
    weight_bytes = np.asarray(rows) * dim * BYTES_PER_ELEMENT[weights]
    state = optimizer_state_bytes(rows, dim, optimizer)
    inputs = (np.trunc(bags * np.asarray(pooling)).astype(np.int64) + bags) * INDEX_BYTES
    activations = 2 * np.asarray(bags) * dim * BYTES_PER_ELEMENT[outputs]
    return np.asarray(weight_bytes * (1 + np.asarray(dense)) + state + inputs + activations)
