import dataclasses
import itertools

import numpy as np
import pytest
from brute_force import best_of_all, broken, random_cost, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.cost.model import StepCost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.pipeline import load, run
from shardc.placers.greedy import cost_greedy, heuristic_greedy
from shardc.placers.local_search import _Search, improve
from shardc.problem import Placement
from shardc.spec import parse_spec
from shardc.suites import problems


class Spread:
    """A cost that is not a `StepCost`: how unevenly lookups and dims lie."""

    def encode(self, shards):
        return np.stack([shards.lookups / 1e4, shards.dim / 10], axis=1)

    def score(self, z):
        return (z**2).sum(axis=(-1, -2))


def judge_of(*tables: dict, devices: int = 4, own: bool = False, **cluster) -> Judge:
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 8192},
        "cluster": {"device": "v100-16gb", "devices_per_host": devices} | cluster,
        "defaults": {"rows": 1000, "dim": 16, "pooling": 2.0, "access": {"zipf": 1.0}},
        "table": [{"name": f"t{index:02}"} | table for index, table in enumerate(tables)],
    }
    problem = lower(parse_spec(spec), [load_hardware("v100-16gb")])
    return Judge(problem, Spread() if own else StepCost(Roofline(9e11, 6e6), problem.cluster))


def random_judge(seed: int, count: int = 14, own: bool = False, **more) -> Judge:
    rng = np.random.default_rng(seed)
    tables = [
        {
            "rows": int(np.exp(rng.uniform(2, 14))),
            "dim": int(rng.choice([8, 32, 64])),
            "pooling": float(rng.uniform(0.1, 40)),
        }
        for _ in range(count)
    ]
    tables[0] |= {"group": "g"}
    tables[1] |= {"group": "g"}
    tables[2] |= {"pin": [0, 2]}
    tables[3] |= {"apart": "a"}
    tables[4] |= {"apart": "a"}
    return judge_of(*(table | more for table in tables), own=own)


def all_on_few(judge: Judge) -> Placement:
    """A poor start: every block whole, on the first device that its constraints leave."""
    problem, taken, devices = judge.problem, set(), []
    for block in range(len(problem.blocks)):
        labels = problem.labels[block][1:]
        device = next(
            d
            for d in range(problem.cluster.devices)
            if problem.allowed[block, d] and not {(label, d) for label in labels} & taken
        )
        taken |= {(label, device) for label in labels}
        devices.append((device,))
    return Placement(tuple(problem.options_of(b)[0] for b in range(len(problem.blocks))), tuple(devices))


@pytest.mark.parametrize("own", [False, True], ids=["step cost", "own cost"])
@given(seed=st.integers(0, 2**32), evaluations=st.integers(0, 3000))
@settings(max_examples=20, deadline=None)
def test_never_worse_than_its_start_and_as_feasible(own, seed, evaluations):
    judge = random_judge(seed, own=own)
    for start in (all_on_few(judge), cost_greedy(judge, all_on_few(judge).option)):
        before = judge.judge(start)
        assert before.feasible
        after = judge.judge(improve(judge, start, evaluations=evaluations, seed=seed % 7))
        assert after.feasible
        assert after.step_time_ms <= before.step_time_ms


@pytest.mark.parametrize("own", [False, True], ids=["step cost", "own cost"])
def test_a_poor_start_becomes_as_good_as_greedy(own):
    for seed in range(5):
        judge = random_judge(seed, own=own, sharding=["table_wise"])
        start = all_on_few(judge)
        found = judge.judge(improve(judge, start, evaluations=20_000, seed=0)).step_time_ms
        assert found <= judge.judge(cost_greedy(judge, start.option)).step_time_ms
        assert found < 0.8 * judge.judge(start).step_time_ms


def test_one_seed_one_result():
    judge = random_judge(11, count=30)
    start = all_on_few(judge)
    first, second = (improve(judge, start, evaluations=4000, seed=5) for _ in range(2))
    assert first == second


def test_the_start_is_not_changed_and_no_effort_returns_it():
    judge = random_judge(0)
    start = all_on_few(judge)
    copy = Placement(start.option, start.places)
    improve(judge, start, evaluations=2000, seed=0)
    assert start == copy
    assert improve(judge, start, evaluations=0, seed=0) == start


def test_a_local_optimum_is_left():
    """Two devices, best is 3+3 | 2+2+2: no single move or swap helps a start of 3+2 | 3+2+2."""
    judge = judge_of(*({"pooling": p, "sharding": ["table_wise"]} for p in (30.0, 30.0, 20.0, 20.0, 20.0)), devices=2)
    options = all_on_few(judge).option
    best = min(
        judge.judge(Placement(options, tuple((d,) for d in where))).step_time_ms
        for where in itertools.product(range(2), repeat=5)
    )
    start = Placement(options, ((0,), (1,), (0,), (1,), (1,)))
    assert judge.judge(start).step_time_ms > best
    assert judge.judge(improve(judge, start, evaluations=5000, seed=0)).step_time_ms == best


def test_a_table_too_costly_for_one_device_is_split():
    judge = judge_of({"rows": 10**6, "dim": 256, "pooling": 100.0}, *[{}] * 6)
    start = all_on_few(judge)
    found = improve(judge, start, evaluations=5000, seed=0)
    assert judge.problem.option_type[found.option[0]] != "table_wise"
    assert judge.judge(found).step_time_ms < 0.6 * judge.judge(start).step_time_ms


def test_swaps_are_found_where_memory_leaves_no_room_for_moves():
    tables = [{"rows": 100_000, "pooling": p, "sharding": ["table_wise"]} for p in (40.0, 40.0, 1.0, 1.0)]
    two = 2 * int(judge_of(*tables, devices=2).problem.unit_memory.max())
    judge = judge_of(*tables, devices=2, memory=f"{two}B", reserve="0%")
    start = Placement((0, 1, 2, 3), ((0,), (0,), (1,), (1,)))
    assert judge.judge(start).feasible
    found = improve(judge, start, evaluations=2000, seed=0)
    assert found.places[0] != found.places[1]
    assert judge.judge(found).feasible


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_memory_is_kept_where_the_start_fills_it(seed):
    """Balanced by size, with as much memory as the fullest device needs: what lowers the time has to fit as well."""
    roomy = random_judge(seed)
    start = heuristic_greedy(roomy, all_on_few(roomy).option, "size")
    assert start is not None
    limit = int(roomy.judge(start).memory.max())
    kind = dataclasses.replace(roomy.problem.cluster.kinds[0], memory_bytes=limit, reserve_bytes=0)
    cluster = dataclasses.replace(roomy.problem.cluster, kinds=(kind,))
    problem = dataclasses.replace(roomy.problem, cluster=cluster)
    judge = Judge(problem, StepCost(Roofline(9e11, 6e6), cluster))
    found = judge.judge(improve(judge, start, evaluations=3000, seed=0))
    assert found.memory.max() <= limit
    assert found.feasible


def test_a_table_may_keep_its_device_when_it_is_split():
    judge = judge_of({"dim": 256, "pooling": 100.0, "pin": [0, 1]}, devices=3)
    found = improve(judge, Placement((judge.problem.options_of(0)[0],), ((0,),)), evaluations=1000, seed=0)
    assert found.places == ((0, 1),)


@pytest.mark.parametrize("own", [False, True], ids=["step cost", "own cost"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_after_many_steps_the_kept_sums_are_those_of_a_fresh_count(own, seed):
    judge = random_judge(seed, own=own)
    search = _Search(judge, all_on_few(judge), np.random.default_rng(seed), 4000, refine=True)
    for _ in range(6):
        for _ in search.descend(None, 1000.0, leave=True):
            pass
        search.kick()
        placement = search.placement()
        z, memory = judge.loads(placement)
        assert np.array_equal(search._changes.z, z)
        assert np.array_equal(search._memory, memory)
        assert search.step_ms == judge.judge(placement).step_time_ms
        assert judge.judge(placement).feasible
        taken = np.zeros_like(search._taken)
        for block, (option, places) in enumerate(zip(placement.option, placement.places, strict=True)):
            for label, place in itertools.product(judge.problem.labels[block], places):
                taken[label, judge.problem.devices_of(option, place)] += 1
        assert np.array_equal(search._taken, taken)


def any_judge(seed: int, *, cached: bool = False) -> tuple[Judge, Placement] | None:
    """A small problem on hosts that may differ, and a start that keeps its constraints; None if none is found."""
    rng = np.random.default_rng(seed)
    if (problem := random_problem(rng, cached=cached)) is None:
        return None
    judge = Judge(problem, random_cost(rng, problem))
    for _ in range(10):
        options = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
        start = cost_greedy(judge, options)
        if start is not None and judge.judge(start).feasible:
            return judge, start
    return None


@pytest.mark.parametrize("cached", [False, True])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_hosts_ranks_pins_and_distances_are_kept(cached, seed):
    """And both kinds of memory, where there are two."""
    if (found := any_judge(seed, cached=cached)) is None:
        return
    judge, start = found
    better = improve(judge, start, evaluations=2000, seed=seed % 5)
    assert broken(judge.problem, better) == []
    assert judge.judge(better).feasible
    assert judge.judge(better).step_time_ms <= judge.judge(start).step_time_ms
    assert improve(judge, start, evaluations=2000, seed=seed % 5) == better


@pytest.mark.parametrize("cached", [False, True])
def test_small_problems_on_several_hosts_are_mostly_solved(cached):
    """From a random way to shard every table, with memory that binds in some, and hosts that differ."""
    ratios, gained = [], 0
    for seed in range(150):
        if (found := any_judge(seed, cached=cached)) is None or (best := best_of_all(found[0])) is None:
            continue
        judge, start = found
        before = judge.judge(start).step_time_ms
        after = judge.judge(improve(judge, start, evaluations=5000, seed=0)).step_time_ms
        assert best[0] <= after
        ratios.append(after / best[0])
        gained += after < before
    assert len(ratios) >= 80
    assert np.mean(np.array(ratios) < 1.001) >= 0.9
    assert gained >= 40


def test_nothing_to_move_ends_the_search():
    judge = judge_of({"pin": [1], "sharding": ["table_wise"]}, {"sharding": ["row_wise"]})
    start = all_on_few(judge_of({"pin": [1], "sharding": ["table_wise"]}, {"sharding": ["table_wise"]}))
    start = Placement(start.option, (start.places[0], (0,)))
    assert improve(judge, start, evaluations=10**9, seed=0) == start


def test_the_effort_is_kept_to():
    class Counting(Spread):
        scored = 0

        def score(self, z):
            Counting.scored += int(np.prod(z.shape[:-2]))
            return super().score(z)

    judge = random_judge(4, count=20)
    judge = Judge(judge.problem, Counting())
    start = all_on_few(judge)
    Counting.scored = 0
    improve(judge, start, evaluations=3000, seed=0)
    assert Counting.scored < 4 * 3000 + 2000


def test_pieces_on_many_hosts_are_looked_at_where_they_are_and_elsewhere():
    """A table on half of 16 hosts, whose other options take more hosts than the costliest leave."""
    heavy = {"rows": 1_000_000, "dim": 128, "pooling": 80.0, "sharding": ["table_row_wise"]}
    light = {"rows": 1_000_000, "dim": 128, "pooling": 0.1, "sharding": ["grid_shard"]}
    judge = judge_of(light, heavy, heavy, devices=8, hosts=16)
    problem = judge.problem
    eight = next(option for option in problem.options_of(0) if problem.option_units[option] == 8)
    start = Placement((eight, problem.options_of(1)[0], problem.options_of(2)[0]), (tuple(range(8)), (14,), (15,)))
    assert judge.judge(start).feasible
    found = judge.judge(improve(judge, start, evaluations=5000, seed=0))
    assert found.feasible
    assert found.step_time_ms <= judge.judge(start).step_time_ms


def test_tables_in_column_blocks_on_all_of_many_devices_are_put_back():
    """Where a table is, and hosts and devices that it may go to, are the same devices to a large part."""
    spec = problems("dlrm-dcnv2")[2]  # on 128 devices
    compiled = run(load(spec | {"compile": {"effort": "fast"}}))
    assert broken(compiled.choice.judge.problem, compiled.choice.placement) == []


def test_hosts_that_have_no_room_are_not_counted_as_room_for_the_pieces_of_a_grid():
    judge = judge_of({"rows": 100_000, "dim": 128, "sharding": ["grid_shard"]}, devices=2, hosts=40)
    problem = judge.problem
    start = Placement((0,), (tuple(range(int(problem.option_units[0]))),))
    search = _Search(judge, start, np.random.default_rng(0), 1000, refine=True)
    (option,) = np.flatnonzero(problem.option_units == 4)
    pool = np.arange(20, 60)[None]  # all but the first ten hosts, and the last ten
    for full, possible in ((16, True), (17, False)):
        dislike = np.where(np.arange(40) < 2 * full, np.inf, 1.0)[None]
        put, found = search._choose(np.array([option]), pool, dislike)
        assert found.tolist() == [possible]
        assert not possible or (put >= 0).sum() == 8
