"""What FBGEMM puts where, held against FBGEMM's own layout, and against what TorchRec's estimator makes of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.memory import device_bytes_for, host_bytes, optimizer_state_bytes, rounded_up, shard_bytes
from shardc.problem import Optimizer
from shardc.spec import parse_size
from shardc.units import format_bytes

rows, dims = st.integers(1, 10**9), st.integers(1, 64).map(lambda n: 4 * n)
ratios = st.floats(0.001, 0.999)
optimizers = st.sampled_from(list(Optimizer))


def on_device(rows: int, dim: int, optimizer: str, **more) -> int:
    """Bytes of a shard that no lookup reaches."""
    return int(shard_bytes(rows, dim, weights="fp32", outputs="fp32", optimizer=optimizer, bags=0, pooling=1.0, **more))


def in_host(rows: int, dim: int, optimizer: str, cached: float) -> int:
    return int(host_bytes(rows, dim, weights="fp32", optimizer=optimizer, cached=cached))


@given(rows, dims, optimizers, st.sampled_from(["fp32", "fp16", "bf16"]), st.sampled_from(["fp32", "fp16", "bf16"]))
def test_a_shard_takes_weights_state_inputs_outputs_and_gradients(rows, dim, optimizer, weights, outputs):
    size = {"fp32": 4, "fp16": 2, "bf16": 2}
    bags, pooling = 1000, 2.5
    state = 4 * {"sgd": 0, "rowwise_adagrad": rows, "adagrad": rows * dim, "adam": 2 * rows * dim}[optimizer]
    beside = (2500 + 1000) * 8 + 2 * bags * dim * size[outputs]
    for dense in (False, True):
        of_weights = rows * dim * size[weights] * (1 + dense)
        replicated = {"dense": True} if dense else {}
        found = shard_bytes(
            rows, dim, weights=weights, outputs=outputs, optimizer=optimizer, bags=bags, pooling=pooling, **replicated
        )
        assert (int(found), found.dtype) == (of_weights + state + beside, np.int64)


def test_shards_of_all_kinds_are_counted_at_once_and_to_the_byte():
    """Beyond 2**53, where a float would leave out single bytes."""
    rows = np.array([10**14 + 1, 10**14 + 1, 33])
    dims = np.array([251, 251, 4])
    dense, cached = np.array([False, True, False]), np.array([1.0, 1.0, 0.5])
    found = shard_bytes(
        rows,
        dims,
        weights="fp16",
        outputs="fp32",
        optimizer="rowwise_adagrad",
        bags=0,
        pooling=1.0,
        dense=dense,
        cached=cached,
    )
    whole = (10**14 + 1) * 251 * 2
    state = (10**14 + 1) * 4
    assert found.dtype == np.int64
    assert found.tolist() == [whole + state, 2 * whole + state, 32 * (4 * 2 + 16) + 33 * 4 + 33 * 4]
    assert host_bytes(rows, dims, weights="fp16", optimizer="adam", cached=cached).tolist() == [0, 0, 33 * 4 * (2 + 8)]
    of_state = optimizer_state_bytes(rows, dims, "sgd")
    assert (of_state.dtype, of_state.tolist()) == (np.int64, [0, 0, 0])


@pytest.mark.parametrize(
    ("needed", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1 KiB"),
        (1025, "1.01 KiB"),
        (10 * 1024 + 1, "10.1 KiB"),
        (100 * 1024 + 1, "101 KiB"),
        (999 * 1024, "999 KiB"),
        (999 * 1024 + 512, "0.98 MiB"),
        (1024**3 + 1, "1.01 GiB"),
        (999 * 1024**3 + 2**29, "0.98 TiB"),
        (100 * 1024**4, "100 TiB"),
    ],
)
def test_sizes_are_rounded_up_to_the_three_digits_people_are_shown(needed, text):
    assert format_bytes(rounded_up(needed)) == text


def test_beyond_tebibytes_sizes_are_whole_tebibytes():
    assert [rounded_up(count * 1024**4 + 1) for count in (1023, 1024, 2000)] == [
        count * 1024**4 for count in (1024, 1025, 2001)
    ]


@given(st.integers(1, 998 * 1024**4))
def test_the_size_that_a_message_asks_for_is_enough_when_it_is_copied(needed):
    copied = parse_size(format_bytes(rounded_up(needed)).replace(" ", ""))
    assert copied is not None
    assert needed <= copied <= max(1.011 * needed, needed + 1)


GIB = 2**30


@pytest.mark.parametrize(
    ("tables", "memory", "reserve", "enough"),
    [
        (5 * GIB, 10 * GIB, 0, 5.01 * GIB),  # a little more than what tables need, shares being rounded
        (5 * GIB, 10 * GIB, GIB, 6 * GIB),  # a reserve that stays 1 GiB needs more than one that stays a tenth
        (50 * GIB, 10 * GIB, GIB, 55.6 * GIB),  # and here it is the other way round
        (10, 1000, 990, 1.2 * 2**10),
        (1, 1000, 9, 10),
        (10, 1000, 999, 10.8 * 2**10),  # a reserve of nearly everything
    ],
)
def test_the_memory_that_tables_need_has_its_reserve_as_a_size_and_as_a_share(tables, memory, reserve, enough):
    assert device_bytes_for(tables, memory, reserve) == math.ceil(enough)


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
@settings(deadline=None)  # the first example imports FBGEMM
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


def torchrecs_storage(rows: int, dim: int, optimizer: str, ratio: float, samples: int) -> tuple[int, int]:
    """Bytes of a table on one device, of the device and of the host, by TorchRec's own estimator."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchrec", reason="TorchRec is not installed")
    from torchrec import optim
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import ParameterConstraints, Topology
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
    from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
    from torchrec.distributed.types import CacheParams
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    table = EmbeddingBagConfig(name="t", num_embeddings=rows, embedding_dim=dim, feature_names=["f"])
    collection = EmbeddingBagCollection(device=torch.device("meta"), tables=[table])
    optimizers = {
        "sgd": torch.optim.SGD,
        "rowwise_adagrad": optim.RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
    }
    optim.apply_optimizer_in_backward(optimizers[optimizer], collection.parameters(), {"lr": 0.01})
    topology = Topology(1, "cuda", local_world_size=1)
    constraints = {
        "t": ParameterConstraints(
            sharding_types=["table_wise"],
            compute_kernels=["fused_uvm_caching"],
            pooling_factors=[3.0],
            cache_params=CacheParams(load_factor=ratio),
        )
    }
    estimator = EmbeddingStorageEstimator(topology, constraints)
    enumerator = EmbeddingEnumerator(topology, batch_size=samples, constraints=constraints, estimator=estimator)
    model = torch.nn.Module()
    model.ebc = collection
    ((shard,),) = (option.shards for option in enumerator.enumerate(model, [EmbeddingBagCollectionSharder()]))
    return shard.storage.hbm, shard.storage.ddr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ratio", [0.013, 0.2, 0.75])
@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_torchrecs_estimator_says_the_same_but_for_state_sets_and_gradients(optimizer, ratio):
    rows, dim, samples = 100_003, 48, 512
    hbm, ddr = torchrecs_storage(rows, dim, optimizer, ratio, samples)
    device = shard_bytes(
        rows, dim, weights="fp32", outputs="fp32", optimizer=optimizer, bags=samples, pooling=3.0, cached=ratio
    )
    state = int(optimizer_state_bytes(rows, dim, optimizer))
    kept = state if optimizer == "rowwise_adagrad" else 0
    # TorchRec has all state on the host, and a copy of the share that is cached on the device.
    assert ddr - in_host(rows, dim, optimizer, ratio) == kept
    # It knows neither offsets nor the gradient of the output, nor that caches are made of sets of 32 rows.
    more = kept - state * ratio + samples * 8 + samples * dim * 4
    sets = 32 * math.ceil(rows * ratio / 32) - rows * ratio
    assert device - hbm == pytest.approx(more + sets * (dim * 4 + 16), abs=8)


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
