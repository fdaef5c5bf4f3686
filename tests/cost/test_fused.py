import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.cost.fused import BASES, FEATURES, FusedCost, bases, features, operator_kind
from shardc.measure.campaign import Measurement
from shardc.measure.workload import Load, Timing, Workload
from shardc.problem import Optimizer, Shards
from shardc.spec import Zipf

seeds = st.integers(0, 10**6)


def taken(shards: Shards, index: np.ndarray) -> Shards:
    """The shards at `index`, in that order."""
    return Shards(*(getattr(shards, name)[index] for name in Shards.__slots__))


def random_cost(seed: int, latents: int = 5, groups: int = 6, pieces: int = 3, members: int = 1) -> FusedCost:
    """Weights of three models that keep the constraints and are otherwise arbitrary."""
    rng = np.random.default_rng(seed)
    return FusedCost(
        {
            "mean": rng.normal(5, 3, FEATURES),
            "std": rng.uniform(0.1, 5, FEATURES),
            "encoder.0.weight": rng.normal(0, 0.5, (3, 7, FEATURES)),
            "encoder.0.bias": rng.normal(0, 1, (3, 7)),
            "encoder.1.weight": rng.normal(0, 0.5, (3, 7, 7)),
            "encoder.1.bias": rng.normal(0, 1, (3, 7)),
            "encoder.2.weight": rng.normal(0, 0.5, (3, 2 * latents, 7)),
            "encoder.2.bias": rng.normal(0, 1, (3, 2 * latents)),
            "scale": rng.exponential(1, (3, 2, BASES)),
            "pieces": rng.exponential(1, (3, 2, groups, pieces, latents))
            * (rng.random((3, 2, groups, pieces, latents)) < 0.7),
            "offsets": rng.normal(0, 3, (3, 2, groups, pieces)),
            "fixed": rng.exponential(0.1, (3, 4, 2)),
        },
        kind=seed % 4,
        members=members,
        margin=(1.0, 1.0) if members == 1 else (1.1, 1.3),
    )


def random_shards(seed: int, count: int = 10) -> Shards:
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.uniform(0, 16, count)).astype(np.int64)
    pooling, batch = rng.uniform(0.01, 30, count), rng.integers(1, 5000, count)
    return Shards(
        rows=rows,
        dim=4 * rng.integers(1, 64, count),
        pooling=pooling,
        bags=batch,
        bins=rng.dirichlet(np.full(17, 0.3), count),
        unique=np.minimum(rows, batch * pooling) * rng.uniform(0.1, 1, count),
        weight_bytes=rng.choice([2, 4], count),
        output_bytes=rng.choice([2, 4], count),
        optimizer=rng.integers(0, 4, count),
        type=np.zeros(count, dtype=np.int64),
        cached=np.ones(count),
    )


def test_features_are_the_papers_and_more():
    shards = random_shards(3)
    x = features(shards)
    assert x.shape == (10, FEATURES)
    assert np.array_equal(x[:, 4:21], shards.bins)
    assert x[:, 0] == pytest.approx(np.log2(shards.dim))
    assert x[:, 3] == pytest.approx(np.log2(shards.rows * shards.dim * shards.weight_bytes))
    assert np.isfinite(features(random_shards(3, 0))).all()


def test_features_are_finite_for_extreme_shards():
    shards = random_shards(0, 1)
    tiny = Shards(
        *(np.array([v]) for v in (1, 4, 1e-9, 1)), shards.bins, *(np.array([v]) for v in (1e-12, 2, 2, 0, 0, 1.0))
    )
    for found in (features(tiny), bases(tiny), random_cost(0).encode(tiny)):
        assert np.isfinite(found).all()


def test_bases_grow_with_the_work():
    one = random_shards(1, 1)
    twice = Shards(*(getattr(one, name) for name in ("rows", "dim", "pooling")), 2 * one.bags, one.bins, one.unique,
                   one.weight_bytes, one.output_bytes, one.optimizer, one.type, one.cached)  # fmt: skip
    assert (bases(twice) >= bases(one)).all()
    assert bases(one).shape == (1, BASES)


members = st.sampled_from([1, 3])


@given(seeds, members)
def test_latents_are_not_negative(seed, members):
    latents = random_cost(seed, members=members).encode(random_shards(seed))
    assert latents.shape == (10, 10 * members)
    assert np.isfinite(latents).all()
    assert (latents >= 0).all()


@given(seeds, members)
def test_an_empty_device_costs_exactly_nothing(seed, members):
    cost = random_cost(seed, groups=1 + seed % 17, pieces=1 + seed % 5, members=members)
    for shape in ((), (1,), (3,), (4, 8)):
        assert (cost.heads(np.zeros((*shape, 10 * members))) == 0).all()


@given(seeds, members)
def test_a_shard_more_never_lowers_the_cost(seed, members):
    rng = np.random.default_rng(seed)
    cost, shards = random_cost(seed, members=members), random_shards(seed)
    latents = cost.encode(shards)
    sums = np.cumsum(latents[rng.permutation(10)], axis=0)
    times = cost.heads(sums)
    assert times.shape == (10, 2)
    assert (np.diff(times, axis=0) >= -1e-12 * times.max()).all()


@given(seeds)
def test_the_order_of_shards_and_devices_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    cost, shards = random_cost(seed), random_shards(seed)
    order = rng.permutation(10)
    latents = cost.encode(shards)
    assert cost.encode(taken(shards, order)) == pytest.approx(latents[order], rel=1e-12)
    z = latents.reshape(2, 5, 10)
    swapped = rng.permutation(5)
    assert cost.heads(z[:, swapped]) == pytest.approx(cost.heads(z)[:, swapped], rel=1e-12)
    assert cost.heads(z)[1, 3] == pytest.approx(cost.heads(z[1, 3]), rel=1e-12)


@given(seeds, st.floats(0, 1), members)
def test_heads_are_convex_and_slopes_are_subgradients(seed, share, members):
    rng = np.random.default_rng(seed)
    cost, size = random_cost(seed, members=members), 10 * members
    a, b = rng.exponential(1, size) * (rng.random(size) < 0.6), rng.exponential(3, size)
    at_a, at_b = cost.heads(a), cost.heads(b)
    tolerance = 1e-9 * (1 + at_a.sum() + at_b.sum())
    assert (cost.heads(share * a + (1 - share) * b) <= share * at_a + (1 - share) * at_b + tolerance).all()
    assert (at_b >= at_a + cost.slopes(a) @ (b - a) - tolerance).all()
    assert (cost.slopes(a) >= 0).all()
    # Each direction has latents of its own.
    assert (cost.slopes(a)[0, size // 2 :] == 0).all()
    assert (cost.slopes(a)[1, : size // 2] == 0).all()


@given(seeds)
def test_the_pessimist_takes_the_largest_model_and_its_margin(seed):
    pessimist, shards = random_cost(seed, members=3), random_shards(seed)
    total = pessimist.heads(pessimist.encode(shards).sum(axis=0)) + pessimist.constants
    single = []
    for member in range(3):
        own = {name: a if name in ("mean", "std") else a[member : member + 1] for name, a in pessimist.weights.items()}
        model = FusedCost(own, pessimist.kind)
        single.append(model.heads(model.encode(shards).sum(axis=0)) + model.constants)
    assert total == pytest.approx(np.max(single, axis=0) * (1.1, 1.3))


# --- Trained in torch, used in numpy ----------------------------------------------------------------------------------


def measurements(count: int = 60) -> list[Measurement]:
    """A device whose times follow from lookups and bytes, with a saturating second term and no noise."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        tables = tuple(
            Load(int(np.exp(rng.uniform(2, 12))), int(rng.choice([4, 16, 64])), float(rng.uniform(0.5, 20)), Zipf(0.9))
            for _ in range(rng.integers(1, 6))
        )
        workload = Workload(tables, int(rng.integers(64, 2048)), optimizer=str(rng.choice(["sgd", "rowwise_adagrad"])))
        moved = sum(t.pooling * (10 + t.dim) for t in tables) * workload.batch / 1e5
        times = (0.1 + moved, 0.2 + max(moved, 2 * moved - 3))
        found.append(Measurement(index, workload, Timing(9, times[0] / 2, times[1] / 4, 0.0, 0.0, 2.0, 4.0)))
    return found


EPOCHS, MEMBERS = 60, 4


@pytest.fixture(scope="module")
def fitted():
    from shardc.learn.fit_cost import fit_cost

    errors = []
    weights, report = fit_cost(measurements(), seed=1, epochs=EPOCHS, progress=lambda *done: errors.append(done[2]))
    return weights, report, errors


def test_training_lowers_the_error(fitted):
    _, report, errors = fitted
    assert len(errors) == MEMBERS * EPOCHS
    assert errors[EPOCHS - 1] < 0.35 * errors[0]
    assert max(report.mean_relative_error) < 0.5
    assert report.kendall_tau > 0.7
    assert report.train_sets + report.test_sets == 57  # three of sixty are repeats


def test_a_trained_model_keeps_the_constraints(fitted):
    weights, _, _ = fitted
    assert (weights["pieces"] >= 0).all()
    assert (weights["fixed"] > 0).all()
    assert (FusedCost(weights, kind=0).heads(np.zeros((2, weights["pieces"].shape[-1] * 2))) == 0).all()


def test_one_seed_trains_one_model(fitted):
    from shardc.learn.fit_cost import fit_cost

    again, report = fit_cost(measurements(), seed=1, epochs=EPOCHS)
    other, _ = fit_cost(measurements(), seed=2, epochs=1)
    for name, array in fitted[0].items():
        assert np.array_equal(array, again[name]), name
    assert report == fitted[1]
    assert not np.array_equal(other["pieces"], again["pieces"])


def test_numpy_gives_the_numbers_that_torch_was_trained_with():
    import torch

    from shardc.learn import fit_cost

    torch.manual_seed(0)
    shards = random_shards(8, 40)
    owner, kind = np.random.default_rng(8).integers(0, 6, 40), np.array([0, 1, 2, 3, 0, 3])
    x, amounts = features(shards), bases(shards)
    network = fit_cost.Network(torch.from_numpy(x.mean(axis=0)), torch.from_numpy(x.std(axis=0) + 1e-3)).double()
    with torch.no_grad():
        for parameter in network.parameters():  # far from the symmetric start
            parameter += 0.5 * torch.randn_like(parameter)
        expected = network(
            torch.from_numpy(x), torch.from_numpy(amounts), torch.from_numpy(owner), torch.from_numpy(kind)
        ).numpy()
    for device in range(6):
        weights = {name: a if name in ("mean", "std") else a[None] for name, a in network.exported().items()}
        model = FusedCost(weights, kind=int(kind[device]))
        z = model.encode(shards)[owner == device].sum(axis=0)
        assert model.heads(z) + model.constants == pytest.approx(expected[device], rel=1e-9)


def test_each_kind_of_operator_has_its_own_overhead():
    kinds = [operator_kind(o, w) for o in (Optimizer.SGD, Optimizer.ROWWISE_ADAGRAD) for w in ("fp32", "fp16")]
    assert sorted(kinds) == [0, 1, 2, 3]
    assert operator_kind(Optimizer.ADAM, "bf16") == operator_kind(Optimizer.ROWWISE_ADAGRAD, "fp16")
    weights = random_cost(0).weights
    assert [FusedCost(weights, kind).constants.tolist() for kind in kinds] == weights["fixed"][0, kinds].tolist()


def test_shards_of_workloads_are_their_tables():
    from shardc.learn.fit_cost import workload_shards

    some = [m.workload for m in measurements(5)]
    shards = workload_shards(some)
    tables = [(w, t) for w in some for t in w.tables]
    assert shards.rows.tolist() == [t.rows for _, t in tables]
    assert shards.lookups == pytest.approx([t.pooling * w.batch for w, t in tables])
    assert [list(Optimizer)[i] for i in shards.optimizer] == [w.optimizer for w, _ in tables]
    assert shards.bins.sum(axis=1) == pytest.approx(1)


def test_kendall_tau_counts_pairs():
    from shardc.learn.fit_cost import kendall_tau

    actual = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(actual, actual) == 1
    assert kendall_tau(-actual, actual) == -1
    assert kendall_tau(np.array([1.0, 2.0, 4.0, 3.0]), actual) == pytest.approx(4 / 6)
