import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.cost.roofline import Roofline
from shardc.problem import Optimizer, ShardingType, Shards

ROOFLINE = Roofline(memory_bandwidth=2e12, cache_bytes=4e7)


def shard(**values) -> Shards:
    """One shard: 100,000 rows of 64 values, read 20 times by each of 4096 samples."""
    usual = {
        "rows": 100_000,
        "dim": 64,
        "pooling": 20.0,
        "bags": 4096,
        "unique": 50_000.0,
        "weight_bytes": 4,
        "output_bytes": 4,
        "optimizer": list(Optimizer).index(Optimizer.SGD),
        "type": list(ShardingType).index(ShardingType.TABLE_WISE),
        "cached": 1.0,
    }
    arrays = {name: np.array([value]) for name, value in (usual | values).items()}
    return Shards(bins=np.eye(17)[:1], **arrays)


def ms(**values) -> np.ndarray:
    return ROOFLINE.heads(ROOFLINE.encode(shard(**values))[0])


def test_latents_are_positive_and_finite_for_extreme_shards():
    for values in (
        {"rows": 1, "dim": 4, "pooling": 1e-6, "bags": 1, "unique": 1e-12},
        {"rows": 10**12, "dim": 8192, "pooling": 1e6, "bags": 2**31, "unique": 1e12},
    ):
        latents = ROOFLINE.encode(shard(**values))
        assert np.isfinite(latents).all()
        assert (latents > 0).all()


@pytest.mark.parametrize(
    ("field", "larger"),
    [("dim", 128), ("pooling", 40.0), ("bags", 8192), ("unique", 100_000.0), ("output_bytes", 8)],
)
def test_more_work_takes_longer(field, larger):
    more, usual = ms(**{field: larger}), ms()
    assert (more >= usual).all()
    assert more.sum() > usual.sum()


def test_half_precision_moves_fewer_bytes():
    assert (ms(weight_bytes=2) <= ms()).all()
    assert ms(weight_bytes=2).sum() < ms().sum()


def test_optimizers_with_more_state_have_a_slower_backward_pass_only():
    times = [ms(optimizer=list(Optimizer).index(o), unique=80_000.0, pooling=1.0) for o in Optimizer]
    by_name = dict(zip(Optimizer, times, strict=True))
    order = [Optimizer.SGD, Optimizer.ROWWISE_ADAGRAD, Optimizer.ADAGRAD, Optimizer.ADAM]
    backward = [by_name[o][1] for o in order]
    assert backward == sorted(backward)
    assert len(set(backward)) == 4
    assert len({by_name[o][0] for o in order}) == 1


def test_rows_that_stay_in_the_cache_are_not_read_again():
    small_cache, large_cache = (Roofline(2e12, cache) for cache in (1e3, 1e12))
    z_small, z_large = (roofline.encode(shard(unique=1000.0))[0] for roofline in (small_cache, large_cache))
    assert z_large[0] < z_small[0]


def test_twice_the_bandwidth_takes_half_the_time():
    fast = Roofline(memory_bandwidth=4e12, cache_bytes=4e7)
    assert fast.encode(shard())[0] * 2 == pytest.approx(ROOFLINE.encode(shard())[0])


def test_an_empty_device_costs_exactly_nothing():
    assert (ROOFLINE.heads(np.zeros((3, 4))) == 0).all()
    assert (ROOFLINE.constants > 0).all()


vectors = st.lists(st.floats(0, 1e6), min_size=4, max_size=4).map(np.array)


@given(vectors, vectors, st.floats(0, 1))
def test_heads_are_convex_monotone_and_slopes_lie_below(a, b, share):
    between = ROOFLINE.heads(share * a + (1 - share) * b)
    tolerance = 1e-9 * (1 + a.sum() + b.sum())
    assert (between <= share * ROOFLINE.heads(a) + (1 - share) * ROOFLINE.heads(b) + tolerance).all()
    assert (ROOFLINE.heads(a + b) >= ROOFLINE.heads(a)).all()
    assert (ROOFLINE.heads(b) >= ROOFLINE.heads(a) + ROOFLINE.slopes(a) @ (b - a) - tolerance).all()
    assert ROOFLINE.slopes(a) @ a == pytest.approx(ROOFLINE.heads(a))


def test_the_optimizer_index_is_that_of_the_enumeration():
    """`Shards.optimizer` is an index: a reordered enumeration would silently change all costs."""
    mixed = dataclasses.replace(
        shard(),
        **{name: np.repeat(getattr(shard(), name), 4, axis=0) for name in Shards.__slots__ if name != "optimizer"},
        optimizer=np.arange(4),
    )
    latents = ROOFLINE.encode(mixed)
    for index, optimizer in enumerate(Optimizer):
        single = ROOFLINE.encode(shard(optimizer=list(Optimizer).index(optimizer)))[0]
        assert np.array_equal(latents[index], single)
