"""A bound that is ever above the best placement is worse than none: it is held against brute force."""

import itertools

import numpy as np
import pytest
from brute_force import best_of_all, random_cost, random_problem, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.cost import bound as bound_module
from shardc.cost.bound import LowerBound
from shardc.cost.fused import FusedCost, unfit
from shardc.cost.model import PhasedCost, StepCost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.problem import Placement, Problem
from shardc.spec import SHARDING_TYPES, parse_spec


def lower_bound(judge: Judge) -> LowerBound:
    assert isinstance(judge.cost, PhasedCost)
    return bound_module.lower_bound(judge.problem, judge.cost, judge.latents)


@pytest.mark.parametrize("cached", [False, True])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_no_placement_beats_the_bound(cached, seed):
    """Every sharding type on up to two hosts and three devices, that may differ in kind and memory; and caches."""
    rng = np.random.default_rng(seed)
    if (problem := random_problem(rng, cached=cached)) is None:
        return
    judge = Judge(problem, random_cost(rng, problem))
    if (found := best_of_all(judge)) is None:
        return
    best_ms, best = found
    bound = lower_bound(judge)
    assert 0 <= bound.step_time_ms <= best_ms
    totals = np.bincount(problem.option_block, bound.mix)
    assert totals == pytest.approx(1, abs=0.01)
    assert (bound.mix >= 0).all()
    if best is not None:
        judgement = judge.judge(best)
        assert judgement.feasible
        assert judgement.step_time_ms == best_ms


def test_the_bound_says_something_where_hosts_differ():
    """It would hold if it were zero; it is within a few percent of the best placement of most small problems."""
    gaps = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng)
        if problem is None or len(problem.cluster.kinds) < 2:
            continue
        judge = Judge(problem, random_cost(rng, problem))
        best_ms, _ = best_of_all(judge) or (np.inf, None)
        if best_ms < np.inf:
            gaps.append(best_ms / lower_bound(judge).step_time_ms - 1)
    assert len(gaps) >= 40
    assert min(gaps) >= 0
    assert np.median(gaps) < 0.1


def random_step_cost(rng: np.random.Generator, problem: Problem) -> StepCost:
    """Data-sheet figures, or arbitrary weights that keep the constraints of a learned cost."""
    if rng.random() < 0.5:
        return StepCost(Roofline(float(np.exp(rng.uniform(22, 29))), 4e7), problem.cluster)
    weights, members = random_weights(rng)
    assert unfit(weights) is None
    return StepCost(FusedCost(weights, kind=0, members=members), problem.cluster)


def test_the_bound_holds_on_hundreds_of_problems_scored_at_once(monkeypatch):
    """All placements of table-wise problems in one call; each step of the descent certifies, so few of them do."""
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(100):
        tables = [
            {
                "name": f"t{i}",
                "rows": int(np.exp(rng.uniform(3, 14))),
                "dim": 16,
                "pooling": float(rng.uniform(0.1, 30)),
            }
            for i in range(5)
        ]
        spec = {
            "format": 1,
            "model": {"name": "m", "module": "ebc", "global_batch": 8192},
            "cluster": {"device": "v100-16gb", "devices_per_host": 3},
            "defaults": {"access": {"zipf": 1.0}, "sharding": ["table_wise"]},
            "table": tables,
        }
        problem = lower(parse_spec(spec), [load_hardware("v100-16gb")])
        where = np.array(list(itertools.product(range(3), repeat=5)))
        for _ in range(4):
            judge = Judge(problem, random_step_cost(rng, problem))
            z = np.stack([(where == d) @ judge.latents[0] for d in range(3)], axis=1)
            best = judge.step_ms(z).min()
            bound = lower_bound(judge)
            assert bound.step_time_ms <= best
            gaps.append(best / bound.step_time_ms - 1)
    assert np.median(gaps) < 0.5  # it is a bound that says something


def spec_of(count: int, devices: int, **table) -> dict:
    usual = {"rows": 1000, "dim": 16, "pooling": 2.0, "sharding": ["table_wise"]}
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 4096},
        "cluster": {"device": "h100-80gb", "devices_per_host": devices},
        "table": [usual | table | {"name": f"t{i:02}"} for i in range(count)],
    }


def judge_of(spec: dict) -> Judge:
    hardware = load_hardware("h100-80gb")
    problem = lower(parse_spec(spec), [hardware])
    return Judge(problem, StepCost(Roofline(3e12, 5e7), problem.cluster))


@pytest.mark.parametrize(("tables", "devices"), [(1, 1), (5, 1), (8, 4), (16, 8)])
def test_the_bound_is_tight_where_equal_tables_spread_evenly(tables, devices):
    judge = judge_of(spec_of(tables, devices))
    even = Placement(
        tuple(next(iter(judge.problem.options_of(b))) for b in range(tables)),
        tuple((b % devices,) for b in range(tables)),
    )
    best = judge.judge(even).step_time_ms
    assert lower_bound(judge).step_time_ms == pytest.approx(best, rel=1e-6)
    assert lower_bound(judge).step_time_ms <= best


def test_one_large_table_is_the_bound():
    spec = spec_of(4, 4)
    spec["table"][2]["pooling"] = 500.0
    judge = judge_of(spec)
    separate = Placement(tuple(range(4)), tuple((b,) for b in range(4)))
    assert lower_bound(judge).step_time_ms == pytest.approx(judge.judge(separate).step_time_ms, rel=1e-6)


def test_more_freedom_never_raises_the_bound():
    narrow = lower_bound(judge_of(spec_of(6, 4, pooling=50.0))).step_time_ms
    wide = lower_bound(judge_of(spec_of(6, 4, pooling=50.0, sharding=list(SHARDING_TYPES)))).step_time_ms
    assert wide <= narrow * (1 + 1e-3)


def test_the_bound_is_the_same_every_time():
    first, second = (lower_bound(judge_of(spec_of(9, 4, sharding=list(SHARDING_TYPES)))) for _ in range(2))
    assert first.step_time_ms == second.step_time_ms
    assert np.array_equal(first.mix, second.mix)
