import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.cost.model import PHASES, CostModel, MixedCost, StepCost, host_traffic, shares_sent
from shardc.cost.roofline import Roofline
from shardc.problem import Cluster, Collective, HostKind, Link, Optimizer, ShardingType, Shards

KIND = HostKind(
    device="gpu",
    memory_bytes=10**10,
    reserve_bytes=0,
    intra_host_bandwidth=4e9,
    inter_host_bandwidth=1e9,
    latency_ms=0.5,
)


def cluster_of(hosts: int = 2, devices_per_host: int = 4, **kind) -> Cluster:
    kinds = (dataclasses.replace(KIND, **kind),)
    return Cluster(device_type="cuda", devices_per_host=devices_per_host, kinds=kinds, host_kind=(0,) * hosts)


CLUSTER = cluster_of()
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
        type=rng.integers(0, len(ShardingType), count),
        cached=np.ones(count),
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


TABLE_WISE, COLUMN_WISE, TABLE_COLUMN_WISE, ROW_WISE, TABLE_ROW_WISE, GRID_SHARD, DATA_PARALLEL = range(7)
BAGS, DIM, ROWS = 1000, 32, 500
INPUTS = BAGS * (2 + 1) * 8  # bytes: two indices and a length a bag
OUTPUTS = BAGS * DIM * 2


def phases(cost: StepCost, *types: int) -> dict[str, float]:
    """What a device that holds a shard of each type takes by phase."""
    values = {"bags": BAGS, "dim": DIM, "rows": ROWS, "pooling": 2.0, "output_bytes": 2, "weight_bytes": 4}
    z = sum(cost.encode(one(**values, type=type))[0] for type in types)
    return dict(zip(PHASES, cost.device_ms(z), strict=True))


def talking(ms: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in ms.items() if value > 0 and name not in ("forward", "backward")}


def test_outputs_of_whole_tables_and_columns_travel_by_all_to_all():
    """Eight devices on two hosts: 3/8 of the bytes go to the own host at 4 GB/s, 4/8 to the other at 1 GB/s."""
    for type in (TABLE_WISE, COLUMN_WISE, TABLE_COLUMN_WISE):
        assert talking(phases(COST, type)) == pytest.approx(
            {
                "input_all_to_all": 3 * 0.5 + 1e3 * INPUTS * 4 / 8 / 1e9,  # sizes, lengths and indices
                "forward_all_to_all": 0.5 + 1e3 * OUTPUTS * 4 / 8 / 1e9,
                "backward_all_to_all": 0.5 + 1e3 * OUTPUTS * 4 / 8 / 1e9,
            }
        )


def test_partial_sums_of_rows_are_reduce_scattered():
    """A ring passes 7/8 of the bytes; four devices share the link between hosts, each is alone on its own at 4 GB/s."""
    ring = 1e3 * OUTPUTS * 7 / 8 / 4e9
    assert talking(phases(COST, ROW_WISE)) == pytest.approx(
        {
            "input_all_to_all": 3 * 0.5 + 1e3 * INPUTS * 4 / 8 / 1e9,
            "forward_reduce_scatter": 0.5 + ring,
            "backward_all_gather": 0.5 + ring,
        }
    )


def test_partial_sums_within_a_host_are_reduce_scattered_there_and_then_cross_hosts():
    """A ring of four passes 3/4 of the bytes at 4 GB/s; a device's quarter of them goes to the other host by half."""
    ring, across = 1e3 * OUTPUTS * 3 / 4 / 4e9, 1e3 * OUTPUTS / 4 / 2 / 1e9
    for type in (TABLE_ROW_WISE, GRID_SHARD):
        assert talking(phases(COST, type)) == pytest.approx(
            {
                "input_all_to_all": 3 * 0.5 + 1e3 * INPUTS * 4 / 8 / 1e9,
                "forward_host_reduce_scatter": 0.5 + ring,
                "forward_cross_host_all_to_all": 0.5 + across,
                "backward_cross_host_all_to_all": 0.5 + across,
                "backward_host_all_gather": 0.5 + ring,
            }
        )


def test_rows_within_the_only_host_cross_nothing():
    cost = StepCost(COST.compute, cluster_of(hosts=1, network_latency_ms=9.0))
    assert talking(phases(cost, TABLE_ROW_WISE)) == pytest.approx(
        {
            "input_all_to_all": 3 * 0.5 + 1e3 * INPUTS * 3 / 4 / 4e9,
            "forward_host_reduce_scatter": 0.5 + 1e3 * OUTPUTS * 3 / 4 / 4e9,
            "backward_host_all_gather": 0.5 + 1e3 * OUTPUTS * 3 / 4 / 4e9,
        }
    )


def test_rows_on_hosts_of_one_device_are_summed_by_nobody():
    cost = StepCost(COST.compute, cluster_of(hosts=8, devices_per_host=1))
    rows, whole = (talking(phases(cost, type)) for type in (TABLE_ROW_WISE, TABLE_WISE))
    assert set(rows) == {"input_all_to_all", "forward_cross_host_all_to_all", "backward_cross_host_all_to_all"}
    assert rows["forward_cross_host_all_to_all"] == pytest.approx(whole["forward_all_to_all"])


def test_gradients_of_replicas_are_all_reduced():
    ring = 1e3 * 2 * 7 / 8 * ROWS * DIM * 4 / 4e9  # there and back
    assert talking(phases(COST, DATA_PARALLEL)) == pytest.approx({"all_reduce": 0.5 + ring})


def test_messages_of_one_collective_are_added_and_share_its_latency():
    both, rows = phases(COST, TABLE_WISE, COLUMN_WISE), phases(COST, TABLE_WISE, COLUMN_WISE, ROW_WISE)
    assert both["forward_all_to_all"] == pytest.approx(0.5 + 1e3 * 2 * OUTPUTS / 2 / 1e9)
    assert rows["forward_all_to_all"] == both["forward_all_to_all"]
    assert rows["forward_reduce_scatter"] == phases(COST, ROW_WISE)["forward_reduce_scatter"]
    assert rows["input_all_to_all"] == pytest.approx(3 * 0.5 + 1e3 * 3 * INPUTS / 2 / 1e9)


def test_within_one_host_only_its_links_count():
    cost = StepCost(COST.compute, cluster_of(hosts=1, network_latency_ms=9.0))
    assert phases(cost, TABLE_WISE)["forward_all_to_all"] == pytest.approx(0.5 + 1e3 * OUTPUTS * 3 / 4 / 4e9)
    assert phases(cost, ROW_WISE)["backward_all_gather"] == pytest.approx(0.5 + 1e3 * OUTPUTS * 3 / 4 / 4e9)


def test_crossing_hosts_takes_longer():
    cost = StepCost(COST.compute, cluster_of(network_latency_ms=0.25))
    near, far = phases(COST, TABLE_WISE), phases(cost, TABLE_WISE)
    assert far["forward_all_to_all"] == pytest.approx(near["forward_all_to_all"] + 0.25)
    assert far["input_all_to_all"] == pytest.approx(near["input_all_to_all"] + 3 * 0.25)


def test_measured_collectives_count_for_themselves_only():
    """The all-to-all between hosts and the reduce-scatter within one were measured; others are as the links say."""
    measured = {
        "inter_host": {Collective.ALL_TO_ALL: Link(0.1, 0.5e9)},
        "intra_host": {Collective.REDUCE_SCATTER: Link(0.2, 1e8), Collective.ALL_TO_ALL: Link(0.3, 1e8)},
    }
    both, alone = (StepCost(COST.compute, cluster_of(hosts, **measured)) for hosts in (2, 1))
    assert phases(both, TABLE_WISE)["forward_all_to_all"] == pytest.approx(0.1 + 1e3 * OUTPUTS * 3 / 8 / 1e8)
    assert phases(both, ROW_WISE)["forward_reduce_scatter"] == pytest.approx(0.5 + 1e3 * OUTPUTS * 7 / 8 / 1e8)
    assert phases(both, ROW_WISE)["backward_all_gather"] == phases(COST, ROW_WISE)["backward_all_gather"]
    assert phases(both, DATA_PARALLEL) == phases(COST, DATA_PARALLEL)
    assert phases(alone, ROW_WISE)["forward_reduce_scatter"] == pytest.approx(0.2 + 1e3 * OUTPUTS * 3 / 4 / 1e8)


@pytest.mark.parametrize("collective", list(Collective))
@pytest.mark.parametrize(("hosts", "per_host"), [(1, 1), (1, 8), (8, 1), (2, 4)])
def test_what_a_device_sends(collective, hosts, per_host):
    """A device keeps its own part; what leaves a host is at least what must get to the other hosts."""
    inside, outside = shares_sent(collective, hosts, per_host)
    passes = 2 if collective is Collective.ALL_REDUCE else 1
    assert (inside > 0) == (per_host > 1)
    assert (outside > 0) == (hosts > 1)
    if hosts == 1 or per_host == 1:
        devices = hosts * per_host
        assert inside + outside == pytest.approx(passes * (devices - 1) / devices)
    if collective is not Collective.ALL_TO_ALL:
        assert per_host * outside >= passes * (hosts - 1) / hosts


@pytest.mark.parametrize("type", range(7))
def test_a_single_device_talks_to_nobody(type):
    alone = StepCost(COST.compute, cluster_of(hosts=1, devices_per_host=1))
    assert talking(phases(alone, type)) == {}


def test_one_device_a_host_uses_only_the_network():
    slow, fast = (
        StepCost(COST.compute, cluster_of(hosts=8, devices_per_host=1, intra_host_bandwidth=speed))
        for speed in (1.0, 1e12)
    )
    assert phases(slow, *range(7)) == phases(fast, *range(7))


FAST = dataclasses.replace(KIND, intra_host_bandwidth=40e9, inter_host_bandwidth=10e9, latency_ms=0.1)
BOTH = Cluster(device_type="cuda", devices_per_host=4, kinds=(KIND, FAST), host_kind=(0, 1))


def mixed(seed: int) -> tuple[MixedCost, np.ndarray]:
    """A cost of hosts of two kinds, and latents float[2, 12, K] of shards on either."""
    costs = (StepCost(Roofline(1e12, 4e7), BOTH, 0), StepCost(Roofline(3e12, 5e7), BOTH, 1))
    shards = random_shards(seed)
    cost = MixedCost(costs, tuple(one.encode(shards).shape[1] for one in costs))
    return cost, np.stack([cost.encode_on(kind, shards) for kind in range(2)])


@given(st.integers(0, 10**6))
def test_a_device_takes_what_its_own_kind_of_host_does(seed):
    cost, latents = mixed(seed)
    shards = random_shards(seed)
    for kind, own in enumerate(cost.costs):
        assert cost.device_ms(latents[kind]) == pytest.approx(own.device_ms(own.encode(shards)))
        assert cost.passes(latents[kind]) == pytest.approx(own.passes(own.encode(shards)))
    z = np.concatenate([latents[0, :4], latents[1, 4:8]])
    by_device = np.concatenate([cost.device_ms(latents[0, :4]), cost.device_ms(latents[1, 4:8])])
    assert cost.score(z) == pytest.approx(by_device.max(axis=0).sum())
    assert cost.device_ms(np.zeros_like(z)).max() == 0


@given(st.integers(0, 10**6))
def test_heads_of_hosts_that_differ_are_convex_and_never_above_the_time(seed):
    """What the lower bound rests on."""
    cost, latents = mixed(seed)
    rng = np.random.default_rng(seed)
    a, b = (rng.random(12) ** 3 @ latents[kind] for kind in (0, 1))
    tolerance = 1e-9 * (1 + cost.heads(a + b).sum())
    assert (cost.heads(b) >= cost.heads(a) + cost.slopes(a) @ (b - a) - tolerance).all()
    assert (cost.heads((a + b) / 2) <= (cost.heads(a) + cost.heads(b)) / 2 + tolerance).all()
    for z in (a, b):
        assert (cost.heads(z) + cost.constants * cost.present(z) <= cost.device_ms(z) + tolerance).all()


OFFLOADING = dataclasses.replace(
    CLUSTER, kinds=(dataclasses.replace(KIND, host_memory_bytes=2**40, host_bandwidth=1e9),)
)
WITH_HOST = StepCost(COST.compute, OFFLOADING)


def cached(share: float, **values) -> Shards:
    """1,000 rows of 64 bytes, 200 of which a step looks up, half of them once."""
    bins = np.eye(17)[:2].mean(axis=0)
    usual = {"rows": 1000, "dim": 16, "weight_bytes": 4, "unique": 200.0, "optimizer": 0, "type": 0}
    return one(**usual | {"bins": bins, "cached": share} | values)


def test_rows_that_a_step_does_not_find_in_the_cache_are_exchanged_for_others():
    """Room for half of the 900 rows that are not looked up twice: 50 of 100 are missed, 50 others written back."""
    assert host_traffic(cached(0.55))[0] == pytest.approx(np.array([2 * 50, 0]) * 64.0)
    assert host_traffic(cached(1.0)).tolist() == [[0, 0]]


def test_rows_beyond_the_caches_size_are_used_where_they_are():
    """Room for 50 of the 200 rows of a step: the others are read forward, read and written backward."""
    assert host_traffic(cached(0.05))[0] == pytest.approx(np.array([150, 2 * 150]) * 64.0)


def test_state_of_every_weight_is_read_and_written_in_host_memory():
    for name, values in (("sgd", 0), ("rowwise_adagrad", 0), ("adagrad", 1), ("adam", 2)):
        shards = cached(0.55, optimizer=list(Optimizer).index(Optimizer(name)))
        assert host_traffic(shards)[0, 1] == pytest.approx(2 * 200 * 16 * 4 * values)


@given(st.integers(0, 10**6))
def test_a_larger_cache_never_moves_more(seed):
    rng = np.random.default_rng(seed)
    shards = random_shards(seed)
    small, large = np.sort(rng.random((2, len(shards))), axis=0)
    less, more = (host_traffic(dataclasses.replace(shards, cached=share)) for share in (large, small))
    assert (less >= 0).all()
    assert (less.sum(axis=1) <= more.sum(axis=1) * (1 + 1e-9)).all()


@given(st.integers(0, 10**6))
def test_the_link_to_the_host_adds_to_both_passes_and_keeps_the_form(seed):
    """Linear latents: the heads stay convex, and at least what they are without the link."""
    rng = np.random.default_rng(seed)
    shards = dataclasses.replace(random_shards(seed), cached=rng.choice([1.0, 0.3, 0.01], 12))
    latents, plain = WITH_HOST.encode(shards), COST.encode(shards)
    assert (latents >= 0).all()
    a, b = (rng.random(12) ** 3 @ latents for _ in range(2))
    tolerance = 1e-9 * (1 + WITH_HOST.heads(a + b).sum())
    assert (WITH_HOST.heads(b) >= WITH_HOST.heads(a) + WITH_HOST.slopes(a) @ (b - a) - tolerance).all()
    assert WITH_HOST.heads(np.zeros_like(a)).max() == 0
    share = rng.random(12)
    over_link = share @ host_traffic(shards) / 1e9 * 1e3
    extra = WITH_HOST.heads(share @ latents) - COST.heads(share @ plain)
    assert extra[[PHASES.index("forward"), PHASES.index("backward")]] == pytest.approx(over_link)
    assert np.abs(np.delete(extra, [PHASES.index("forward"), PHASES.index("backward")])).max() < tolerance


def test_the_protocol_is_two_methods():
    class Own:
        def encode(self, shards):
            return np.ones((len(shards), 1))

        def score(self, z):
            return z.max(axis=(-1, -2))

    assert isinstance(Own(), CostModel)
    assert isinstance(COST, CostModel)
    assert not isinstance(object(), CostModel)
