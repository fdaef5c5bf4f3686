"""What FBGEMM puts where, held against FBGEMM's own layout, and against what TorchRec's estimator makes of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.memory import host_bytes, optimizer_state_bytes, shard_bytes
from shardc.problem import Optimizer

rows, dims = st.integers(1, 10**9), st.integers(1, 64).map(lambda n: 4 * n)
ratios = st.floats(0.001, 0.999)
optimizers = st.sampled_from(list(Optimizer))


def on_device(rows: int, dim: int, optimizer: str, **more) -> int:
    """Bytes of a shard that no lookup reaches."""
    return int(shard_bytes(rows, dim, weights="fp32", outputs="fp32", optimizer=optimizer, bags=0, pooling=1.0, **more))


def in_host(rows: int, dim: int, optimizer: str, cached: float) -> int:
    return int(host_bytes(rows, dim, weights="fp32", optimizer=optimizer, cached=cached))


@given(rows, dims, optimizers)
def test_a_table_that_is_not_cached_takes_nothing_of_the_host(rows, dim, optimizer):
    assert in_host(rows, dim, optimizer, 1.0) == 0
    assert on_device(rows, dim, optimizer, cached=1.0) == on_device(rows, dim, optimizer)


@given(rows, dims, ratios, st.sampled_from(["fp32", "fp16"]))
def test_a_cache_is_made_of_whole_sets_with_what_belongs_to_them(rows, dim, ratio, weights):
    size = {"fp32": 4, "fp16": 2}[weights]
    slots = 32 * math.ceil(rows * ratio / 32)
    found = shard_bytes(rows, dim, weights=weights, outputs="fp32", optimizer="sgd", bags=10, pooling=2.0, cached=ratio)
    beside = (20 + 10) * 8 + 2 * 10 * dim * 4  # indices and offsets, outputs and their gradient
    assert found == slots * (dim * size + 16) + 4 * rows + beside
    assert host_bytes(rows, dim, weights=weights, optimizer="sgd", cached=ratio) == rows * dim * size


@given(rows.map(lambda n: n % 10**6 + 1), dims, ratios, optimizers)
def test_state_is_where_fbgemm_puts_it(rows, dim, ratio, optimizer):
    """Its own function says how many elements of a cached table's weights and state go to the device and the host."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("fbgemm_gpu", reason="FBGEMM is not installed")
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, construct_split_state

    specs = [(rows, dim, EmbeddingLocation.MANAGED_CACHING, ComputeDevice.CUDA)]
    weights = construct_split_state(specs, rowwise=False, cacheable=True)
    moments = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 1, "adam": 2}[optimizer]
    state = construct_split_state(specs, rowwise=optimizer == "rowwise_adagrad", cacheable=False)
    assert weights.dev_size == 0
    element = torch.float32.itemsize
    assert in_host(rows, dim, optimizer, ratio) == element * (weights.uvm_size + moments * state.uvm_size)
    cache = on_device(rows, dim, "sgd", cached=ratio)
    assert on_device(rows, dim, optimizer, cached=ratio) - cache == element * moments * state.dev_size


@given(rows, dims, ratios, optimizers)
def test_torchrecs_estimator_says_the_same_but_for_state_and_sets(rows, dim, ratio, optimizer):
    pytest.importorskip("torchrec", reason="TorchRec is not installed")
    from torchrec.distributed.planner.shard_estimators import _calculate_cache_aux_state_sizes

    weights = rows * dim * 4
    (beside,) = _calculate_cache_aux_state_sizes([[rows, dim]], ratio)
    state = int(optimizer_state_bytes(rows, dim, optimizer))
    # TorchRec: state is cached as weights are, and all of it on the host.
    theirs_device, theirs_host = round(weights * ratio) + beside + state * ratio, weights + state
    ours_device, ours_host = on_device(rows, dim, optimizer, cached=ratio), in_host(rows, dim, optimizer, ratio)
    kept = state if optimizer == "rowwise_adagrad" else 0
    assert theirs_host - ours_host == kept
    sets = ours_device - theirs_device - (kept - state * ratio)
    assert -2 <= sets <= 32 * (dim * 4 + 16)


def test_pieces_of_a_cached_table_add_up():
    """Columns and rows in pieces: the same weights on hosts, and caches that are at most a set larger."""
    whole = in_host(10_000, 64, "adam", 0.1)
    assert sum(in_host(2500, 64, "adam", 0.1) for _ in range(4)) == whole
    assert sum(in_host(10_000, dim, "adam", 0.1) for dim in (24, 20, 20)) == whole
    rows = np.array([2500] * 4)
    pieces = shard_bytes(
        rows, 64, weights="fp32", outputs="fp32", optimizer="adam", bags=0, pooling=1.0, cached=np.full(4, 0.1)
    )
    assert 0 <= pieces.sum() - on_device(10_000, 64, "adam", cached=0.1) <= 4 * 32 * (64 * 4 + 16)
