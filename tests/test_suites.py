import numpy as np
import pytest

from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.passes.profile import profile
from shardc.pipeline import devices_of
from shardc.problem import Placement, Problem
from shardc.spec import parse_spec
from shardc.suites import (
    BIN_MEANS,
    BIN_SDS,
    MEAN_POOLING,
    MEAN_ROWS,
    MOST_POOLING,
    MOST_ROWS,
    POOL_TABLES,
    POOLING_SD,
    SUITES,
    metasyn_pool,
    metasyn_split,
    packed,
    problems,
)


def problem_of(spec: dict) -> Problem:
    loaded = parse_spec(spec)
    return lower(loaded, devices_of(loaded))


def test_the_pool_has_the_published_statistics():
    """Sizes and pooling within a percent, shares of the bins within 0.002."""
    pool = metasyn_pool()
    assert len(pool.rows) == POOL_TABLES
    assert pool.rows.max() == MOST_ROWS
    assert pool.rows.mean() == pytest.approx(MEAN_ROWS, rel=0.01)
    assert pool.pooling.max() == MOST_POOLING
    assert pool.pooling.mean() == pytest.approx(MEAN_POOLING, rel=0.01)
    assert pool.pooling.std() == pytest.approx(POOLING_SD, rel=0.01)
    assert pool.bins.sum(axis=1) == pytest.approx(1.0)
    assert pool.bins.mean(axis=0) == pytest.approx(np.array(BIN_MEANS) / sum(BIN_MEANS), abs=0.002)
    assert pool.bins.std(axis=0) == pytest.approx(np.array(BIN_SDS), abs=0.002)


def test_training_and_test_tables_are_apart_and_alike():
    train, test = metasyn_split("train"), metasyn_split("test")
    assert len(train.rows) + len(test.rows) == POOL_TABLES
    assert not {*map(tuple, train.bins)} & {*map(tuple, test.bins)}
    assert train.rows.mean() == pytest.approx(test.rows.mean(), rel=0.2)
    for spec in problems("metasyn", count=2):
        drawn = [(table["rows"], *table["access"]["bins"]) for table in spec["table"]]
        assert len(set(drawn)) == 80
        assert set(drawn) <= {(rows, *bins) for rows, bins in zip(test.rows, test.bins, strict=True)}
        assert {table["dim"] for table in spec["table"]} == {16, 32}


def test_the_suites_hold_what_they_say():
    shapes = {
        name: [(len(spec["table"]), parse_spec(spec).spec.cluster.devices) for spec in problems(name)]
        for name in SUITES
        if name != "tight"
    }
    assert shapes["dlrm-dcnv2"] == [(26, 8), (26, 16), (26, 128)]
    assert shapes["metasyn"] == [(80, 8)] * 20
    assert len(shapes["metasyn-varied"]) == 50
    assert {min(shapes["metasyn-varied"]), max(shapes["metasyn-varied"])} == {(20, 4), (800, 80)}
    assert shapes["large"] == [(1000, 1024)]
    types = [
        {tuple(t["sharding"]) for t in problems(name, count=1)[0]["table"]} for name in ("metasyn", "metasyn-types")
    ]
    assert types[0] == {("table_wise",)}
    assert all(len(of_table) == 7 for of_table in types[1])


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"large"}))
def test_every_table_fits_somewhere_and_one_seed_is_one_suite(name):
    assert problems(name, seed=1, count=2) == problems(name, seed=1, count=2)
    assert name == "dlrm-dcnv2" or problems(name, seed=1, count=1) != problems(name, seed=2, count=1)
    problem_of(problems(name, count=1)[0])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("fill", [0.95, 0.995])
def test_a_tight_problem_has_a_placement_that_fills_the_memory(fill, mixed):
    spec, ranks = packed("packed", np.random.default_rng(3), fill, mixed=mixed)
    loaded = parse_spec(spec)
    hardware = devices_of(loaded)
    problem = lower(loaded, hardware)
    options, places = [], []
    for block, (table,) in enumerate(problem.blocks):
        on = ranks[problem.tables[table].name]
        everywhere = (
            len(on) == problem.cluster.devices and problem.option_type[problem.first_option[block]] == "row_wise"
        )
        wanted = 1 if everywhere else len(on)
        options.append(next(o for o in problem.options_of(block) if problem.option_units[o] == wanted))
        places.append((0,) if everywhere else tuple(on))
    judge = Judge(problem, profile(problem, hardware, loaded).cost)
    judgement = judge.judge(Placement(tuple(options), tuple(places)))
    assert judgement.feasible
    filled = judgement.memory / problem.cluster.memory_limit
    assert filled.max() <= fill
    assert filled.min() == pytest.approx(fill, abs=0.001)


def test_few_huge_tables_are_larger_than_most_devices():
    for spec in problems("few-huge", count=3):
        problem = problem_of(spec)
        limits = problem.cluster.memory_limit
        sizes = [t.rows * t.dim * 4 for t in problem.tables if t.name.startswith("huge")]
        assert all((limits < size).mean() >= 0.5 for size in sizes)


def test_the_mixed_suite_mixes_devices_and_memories():
    problem = problem_of(problems("mixed", count=1)[0])
    assert len(problem.cluster.kinds) == 2
    assert len(set(problem.cluster.memory_limit[0].tolist())) > 2
