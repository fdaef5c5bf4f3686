import numpy as np
import pytest
from brute_force import best_of_all, broken, random_cost, random_problem

from shardc.cost.model import StepCost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.placers.beam import neuroshard_beam
from shardc.placers.greedy import cost_greedy
from shardc.placers.random import place_at_random
from shardc.problem import ShardingType
from shardc.spec import parse_spec


def judge_of(*tables: dict, devices: int = 4, **cluster) -> Judge:
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 8192},
        "cluster": {"device": "h100-80gb", "devices_per_host": devices} | cluster,
        "defaults": {"rows": 100_000, "dim": 16, "pooling": 2.0, "sharding": ["table_wise", "column_wise"]},
        "table": [{"name": f"t{index:02}"} | table for index, table in enumerate(tables)],
    }
    problem = lower(parse_spec(spec), [load_hardware("h100-80gb")])
    return Judge(problem, StepCost(Roofline(3e12, 5e7), problem.cluster))


def whole(judge: Judge) -> list[int]:
    return [int(option) for option in judge.problem.first_option]


def sharded(judge: Judge, placement) -> list[tuple[ShardingType, int]]:
    """Sharding type and number of pieces of each block."""
    assert placement is not None
    assert judge.judge(placement).feasible
    return [(judge.problem.option_type[o], len(p)) for o, p in zip(placement.option, placement.places, strict=True)]


def test_a_table_that_takes_longer_than_all_others_is_halved():
    judge = judge_of({"dim": 512, "pooling": 50.0}, {}, {}, {})
    placement = neuroshard_beam(judge, whole(judge))
    (type, pieces), *_ = sharded(judge, placement)
    assert (type, pieces) == (ShardingType.COLUMN_WISE, 4)
    greedy = cost_greedy(judge, whole(judge))
    assert judge.judge(placement).step_time_ms < 0.5 * judge.judge(greedy).step_time_ms


@pytest.mark.parametrize("dim", [4, 12, 20])
def test_a_half_is_a_multiple_of_four_columns(dim):
    judge = judge_of({"dim": dim, "pooling": 500.0})
    assert sharded(judge, neuroshard_beam(judge, whole(judge))) == [(ShardingType.TABLE_WISE, 1)]


def test_tables_that_may_not_be_halved_keep_the_option_they_start_from():
    judge = judge_of(
        {"sharding": ["row_wise"], "pooling": 500.0},
        {"sharding": ["table_wise"], "dim": 256, "pooling": 500.0},
        {"sharding": ["data_parallel"]},
        {"dim": 256, "pooling": 500.0, "pin": [1, 2]},
    )
    assert [type for type, _ in sharded(judge, neuroshard_beam(judge, whole(judge)))] == [
        ShardingType.ROW_WISE,
        ShardingType.TABLE_WISE,
        ShardingType.DATA_PARALLEL,
        ShardingType.TABLE_WISE,
    ]


def test_tables_are_halved_until_they_fit():
    # Two devices with room for three quarters of the two tables each.
    judge = judge_of(*[{"dim": 64, "rows": 1_000_000}] * 3, devices=2, memory="420MB", reserve="0%")
    assert cost_greedy(judge, whole(judge)) is None
    assert (ShardingType.COLUMN_WISE, 2) in sharded(judge, neuroshard_beam(judge, whole(judge)))


def test_nothing_is_proposed_where_nothing_fits():
    judge = judge_of(*[{"rows": 1_000_000, "sharding": ["table_wise"]}] * 3, devices=2, memory="100MB", reserve="0%")
    assert neuroshard_beam(judge, whole(judge)) is None
    assert place_at_random(judge, whole(judge), 0) is None


@pytest.mark.parametrize("seed", range(60))
def test_every_constraint_is_kept_and_the_best_placement_not_beaten(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    if problem is None:
        return
    judge = Judge(problem, random_cost(rng, problem))
    best = best_of_all(judge)
    for propose in (neuroshard_beam, lambda j, options: place_at_random(j, options, seed)):
        placement = propose(judge, whole(judge))
        assert placement == propose(judge, whole(judge))
        if placement is not None and not (problem.option_site[list(placement.option)] == 2).any():
            assert not broken(problem, placement)
        if placement is not None and best is not None and judge.judge(placement).feasible:
            assert judge.judge(placement).step_time_ms >= best[0] * (1 - 1e-9)


def test_random_placements_differ_by_seed_and_stay_within_memory():
    judge = judge_of(*[{"rows": 1_000_000}] * 11, devices=4, memory="210MB", reserve="0%")
    placements = [place_at_random(judge, whole(judge), seed) for seed in range(8)]
    assert all(placement and judge.judge(placement).feasible for placement in placements)
    assert len(set(placements)) > 1
