import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.cost.model import StepCost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.placers.greedy import HEURISTICS, cost_greedy, heuristic_greedy, heuristic_loads, placing_order
from shardc.spec import parse_spec


def judge_of(*tables: dict, devices: int = 2, **cluster) -> Judge:
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 8192},
        "cluster": {"device": "h100-80gb", "devices_per_host": devices} | cluster,
        "defaults": {"rows": 1000, "dim": 16, "pooling": 2.0, "sharding": ["table_wise"]},
        "table": [{"name": f"t{index:02}"} | table for index, table in enumerate(tables)],
    }
    problem = lower(parse_spec(spec), [load_hardware("h100-80gb")])
    return Judge(problem, StepCost(Roofline(3e12, 5e7), problem.cluster))


def first_options(judge: Judge) -> list[int]:
    return [judge.problem.options_of(block)[0] for block in range(len(judge.problem.blocks))]


def devices_of(judge: Judge, placement) -> list[int]:
    assert placement is not None
    return [places[0] for places in placement.places]


def test_loads_are_those_of_the_papers():
    judge = judge_of({"rows": 10, "dim": 8, "pooling": 3.0}, {"rows": 100, "dim": 4, "pooling": 0.5})
    loads = {name: heuristic_loads(judge.problem, name).tolist() for name in HEURISTICS}
    assert loads == {"size": [80, 400], "dim": [8, 4], "lookup": [24, 2], "size_lookup": [1920, 800]}


def test_a_group_is_the_sum_of_its_tables():
    judge = judge_of({"dim": 8, "group": "g"}, {"dim": 20, "group": "g"})
    assert heuristic_loads(judge.problem, "dim").tolist() == [28]


@pytest.mark.parametrize(
    ("heuristic", "key", "values"),
    [
        ("size", "rows", [700, 600, 500, 400, 200]),
        ("dim", "dim", [28, 24, 20, 16, 8]),
        ("lookup", "pooling", [7.0, 6.0, 5.0, 4.0, 2.0]),
    ],
)
def test_the_largest_goes_first_to_the_least_loaded(heuristic, key, values):
    judge = judge_of(*({key: value} for value in values))
    # 7 | 6, then 5 joins the 6, 4 the 7, and 2 goes to the first: 11 | 11.
    assert devices_of(judge, heuristic_greedy(judge, first_options(judge), heuristic)) == [0, 1, 1, 0, 0]


def test_cost_greedy_balances_cost_not_size():
    judge = judge_of(*[{"pooling": 60.0}] * 2, *[{"rows": 10**6, "pooling": 0.1}] * 2)
    by_cost = cost_greedy(judge, first_options(judge))
    assert devices_of(judge, by_cost)[0] != devices_of(judge, by_cost)[1]
    by_size = heuristic_greedy(judge, first_options(judge), "size")
    assert judge.judge(by_cost).step_time_ms <= judge.judge(by_size).step_time_ms


def test_a_full_device_is_passed_over():
    tables = [{"rows": 100_000, "pooling": 1.0}, {"rows": 100_000, "pooling": 1.0}, {"rows": 10, "pooling": 100.0}]
    one = int(judge_of(*tables).problem.unit_memory[0, 0])
    judge = judge_of(*tables, memory=f"{int(one * 1.1)}B", reserve="0%", devices=3)
    for name in HEURISTICS:
        placement = heuristic_greedy(judge, first_options(judge), name)
        assert placement is not None
        assert judge.judge(placement).feasible


def test_no_room_is_no_placement():
    tables = [{"rows": 100_000}] * 3
    one = int(judge_of(*tables).problem.unit_memory[0, 0])
    judge = judge_of(*tables, memory=f"{int(one * 1.5)}B", reserve="0%")
    assert cost_greedy(judge, first_options(judge)) is None
    assert all(heuristic_greedy(judge, first_options(judge), name) is None for name in HEURISTICS)


def test_constrained_blocks_are_placed_before_free_ones():
    judge = judge_of(
        {"dim": 64},
        {"dim": 4, "apart": "a"},
        {"dim": 8, "pin": [0, 2]},
        {"dim": 12, "pin": [1]},
        {"dim": 32},
        devices=4,
    )
    order = placing_order(judge, first_options(judge), heuristic_loads(judge.problem, "dim"))
    assert order == [3, 2, 1, 0, 4]


def test_pieces_of_a_table_go_to_distinct_devices():
    judge = judge_of({"dim": 64, "sharding": ["column_wise"]}, {"dim": 4}, devices=4)
    four = next(o for o in judge.problem.options_of(0) if judge.problem.option_units[o] == 4)
    placement = cost_greedy(judge, [four, judge.problem.options_of(1)[0]])
    assert placement is not None
    assert placement.places[0] == (0, 1, 2, 3)


def test_spread_options_are_on_every_device_from_the_start():
    judge = judge_of({"sharding": ["row_wise"]}, {"sharding": ["data_parallel"]}, {})
    placement = cost_greedy(judge, first_options(judge))
    assert placement is not None
    assert placement.places == ((0,), (0,), (0,))


HOSTS = {"devices": 2, "hosts": 2}


def test_units_of_whole_hosts_go_to_the_least_loaded_host():
    judge = judge_of(*({"dim": dim, "sharding": ["table_row_wise"]} for dim in (28, 24, 20, 16, 8)), **HOSTS)
    for name in ("dim", "lookup"):
        assert devices_of(judge, heuristic_greedy(judge, first_options(judge), name)) == [0, 1, 1, 0, 0]
    by_cost = cost_greedy(judge, first_options(judge))
    assert {len({places[0] for places in by_cost.places})} == {2}


def test_blocks_of_a_grid_go_to_distinct_hosts_the_widest_first():
    judge = judge_of(*({"dim": dim, "sharding": ["grid_shard"]} for dim in (44, 20)), **HOSTS)
    placement = heuristic_greedy(judge, first_options(judge), "dim")
    assert placement is not None
    assert placement.places == ((0, 1), (1, 0))  # 24 and 20 columns, then 12 and 8


def test_pieces_that_keep_to_one_host_do():
    """Two of the first host's devices are free enough for two pieces, one of the second host's is not."""
    tables = [{"rows": 100_000, "dim": 64, "sharding": ["table_column_wise"]}, {"rows": 100_000, "dim": 32, "pin": [2]}]
    half = int(judge_of(*tables, **HOSTS).problem.unit_memory[0, 0])
    judge = judge_of(*tables, **HOSTS, memory=f"{int(1.2 * half)}B", reserve="0%")
    for placement in (cost_greedy(judge, first_options(judge)), heuristic_greedy(judge, first_options(judge), "dim")):
        assert placement is not None
        assert placement.places == ((0, 1), (2,))
        assert judge.judge(placement).feasible


def test_the_ranks_that_are_smaller_are_passed_over():
    judge = judge_of(*[{"rows": 100_000}] * 3, rank=[{"ranks": [0], "memory": "1MB"}])
    assert devices_of(judge, cost_greedy(judge, first_options(judge))) == [1, 1, 1]


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=10, unique=True), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_order_of_listing_does_not_matter(rows, seed):
    shuffled = np.random.default_rng(seed).permutation(rows).tolist()
    one, other = (judge_of(*({"name": f"n{r}", "rows": r} for r in order)) for order in (rows, shuffled))
    assert one.problem.tables == other.problem.tables
    for name in HEURISTICS:
        assert heuristic_greedy(one, first_options(one), name) == heuristic_greedy(other, first_options(other), name)
    assert cost_greedy(one, first_options(one)) == cost_greedy(other, first_options(other))


def test_nothing_is_changed_in_place():
    judge = judge_of({}, {}, {})
    before = {f.name: getattr(judge.problem, f.name) for f in dataclasses.fields(judge.problem)}
    arrays = {name: value.copy() for name, value in before.items() if isinstance(value, np.ndarray)}
    options = first_options(judge)
    cost_greedy(judge, options)
    assert options == first_options(judge)
    assert all(np.array_equal(before[name], array) for name, array in arrays.items())
