import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.cost.model import PHASES, CostModel, StepCost
from shardc.cost.roofline import Roofline
from shardc.problem import Cluster, Shards

CLUSTER = Cluster(
    device="gpu",
    device_type="cuda",
    hosts=2,
    devices_per_host=4,
    memory_bytes=10**10,
    reserve_bytes=0,
    intra_host_bandwidth=4e9,
    inter_host_bandwidth=1e9,
    latency_ms=0.5,
)
COST = StepCost(Roofline(memory_bandwidth=1e12, cache_bytes=4e7), CLUSTER)


def random_shards(seed: int, count: int = 12) -> Shards:
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.uniform(0, 16, count)).astype(np.int64)
    pooling, batch = rng.uniform(0.01, 30, count), rng.integers(1, 5000, count)
    bins = rng.dirichlet(np.full(17, 0.3), count)
    return Shards(
        rows=rows,
        dim=4 * rng.integers(1, 64, count),
        pooling=pooling,
        bags=batch,
        bins=bins,
        unique=np.minimum(rows, batch * pooling) * rng.uniform(0.1, 1, count),
        weight_bytes=rng.choice([2, 4], count),
        output_bytes=rng.choice([2, 4], count),
        optimizer=rng.integers(0, 4, count),
        exchanged=rng.random(count) < 0.8,
    )


def one(**values) -> Shards:
    shard = random_shards(0, 1)
    return dataclasses.replace(shard, **{name: np.array([value]) for name, value in values.items()})


@given(st.integers(0, 10**6))
def test_a_shard_more_never_makes_a_step_cheaper(seed):
    rng = np.random.default_rng(seed)
    latents = COST.encode(random_shards(seed))
    z = np.zeros((8, latents.shape[1]))
    before = 0.0
    for latent in latents:
        z[rng.integers(8)] += latent
        after = float(COST.score(z))
        assert after >= before
        before = after


def test_nothing_costs_nothing():
    z = np.zeros((8, COST.encode(random_shards(0)).shape[1]))
    assert COST.score(z) == 0
    assert (COST.device_ms(z) == 0).all()


@given(st.integers(0, 10**6))
def test_devices_and_candidates_are_judged_alike_in_any_order(seed):
    rng = np.random.default_rng(seed)
    latents = COST.encode(random_shards(seed, 40))
    z = latents[rng.integers(0, 40, (5, 8))]  # five placements on eight devices
    scores = COST.score(z)
    assert scores.shape == (5,)
    assert np.array_equal(COST.score(z[:, rng.permutation(8)]), scores)
    assert np.array_equal([COST.score(placement) for placement in z], scores)
    assert scores == pytest.approx(COST.device_ms(z).max(axis=1).sum(axis=1))


@given(st.integers(0, 10**6))
def test_slopes_are_subgradients_and_heads_are_convex(seed):
    rng = np.random.default_rng(seed)
    latents = COST.encode(random_shards(seed))
    a, b = (rng.random(12) ** 3 @ latents for _ in range(2))
    tolerance = 1e-9 * (1 + COST.heads(a + b).sum())
    assert (COST.heads(b) >= COST.heads(a) + COST.slopes(a) @ (b - a) - tolerance).all()
    assert (COST.heads((a + b) / 2) <= (COST.heads(a) + COST.heads(b)) / 2 + tolerance).all()
    assert COST.slopes(a).shape == (len(PHASES), latents.shape[1])
    assert (COST.slopes(a) >= 0).all()


def test_a_step_is_the_sum_of_the_costliest_device_of_each_phase():
    latents = COST.encode(random_shards(1))
    z = latents[:8]
    by_phase = COST.device_ms(z)
    assert by_phase.shape == (8, len(PHASES))
    assert COST.score(z) == pytest.approx(sum(max(column) for column in by_phase.T))


def test_bytes_that_travel_take_their_time():
    """Eight devices on two hosts: 3/8 of the bytes go to the own host at 4 GB/s, 4/8 to the other at 1 GB/s."""
    batch, dim, rows = 1000, 32, 500
    base = {"bags": batch, "dim": dim, "rows": rows, "pooling": 2.0, "output_bytes": 2, "weight_bytes": 4}
    held = dict(zip(PHASES, COST.device_ms(COST.encode(one(**base, exchanged=True)))[0], strict=True))
    assert held["input_all_to_all"] == pytest.approx(0.5 + 1e3 * batch * (2 + 1) * 8 / 2 / 1e9)
    assert held["forward_all_to_all"] == pytest.approx(0.5 + 1e3 * batch * dim * 2 / 2 / 1e9)
    assert held["backward_all_to_all"] == held["forward_all_to_all"]
    assert held["all_reduce"] == 0
    replica = dict(zip(PHASES, COST.device_ms(COST.encode(one(**base, exchanged=False)))[0], strict=True))
    # A ring passes the gradients twice; the slower link is the one between hosts, which four devices share.
    ring = 2 * 7 / 8 * rows * dim * 4 * max(1 / 4e9, 1 / (4 * 1e9))
    assert replica["all_reduce"] == pytest.approx(0.5 + 1e3 * ring)
    assert replica["input_all_to_all"] == replica["forward_all_to_all"] == replica["backward_all_to_all"] == 0


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_single_device_talks_to_nobody(exchanged):
    alone = StepCost(COST.compute, dataclasses.replace(CLUSTER, hosts=1, devices_per_host=1))
    ms = dict(zip(PHASES, alone.device_ms(alone.encode(one(exchanged=exchanged)))[0], strict=True))
    assert {name for name, value in ms.items() if value > 0} == {"forward", "backward"}


def test_one_device_a_host_uses_only_the_network():
    cluster = dataclasses.replace(CLUSTER, hosts=8, devices_per_host=1)
    slow, fast = (
        StepCost(COST.compute, dataclasses.replace(cluster, intra_host_bandwidth=speed)) for speed in (1.0, 1e12)
    )
    for exchanged in (True, False):
        z = slow.encode(one(exchanged=exchanged))
        assert slow.score(z) == fast.score(z)


def test_the_protocol_is_two_methods():
    class Own:
        def encode(self, shards):
            return np.ones((len(shards), 1))

        def score(self, z):
            return z.max(axis=(-1, -2))

    assert isinstance(Own(), CostModel)
    assert isinstance(COST, CostModel)
    assert not isinstance(object(), CostModel)
