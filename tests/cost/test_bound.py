"""A bound that is ever above the best placement is worse than none: it is held against brute force."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardc.cost import bound as bound_module
from shardc.cost.bound import LowerBound
from shardc.cost.fused import BASES, FEATURES, FusedCost, fits
from shardc.cost.model import PhasedCost, StepCost
from shardc.cost.roofline import Roofline
from shardc.diagnostics import DiagnosticError
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.problem import Placement, Problem
from shardc.spec import SHARDING_TYPES, parse_spec


def lower_bound(judge: Judge) -> LowerBound:
    assert isinstance(judge.cost, PhasedCost)
    return bound_module.lower_bound(judge.problem, judge.cost, judge.latents)


def random_problem(rng: np.random.Generator) -> Problem | None:
    """Two or three devices and a few tables with every kind of constraint; None if nothing can fit."""
    devices = int(rng.integers(1, 4))
    tables = []
    for index in range(int(rng.integers(1, 5))):
        table = {
            "name": f"t{index}",
            "rows": int(np.exp(rng.uniform(0, 15))),
            "dim": int(rng.choice([4, 8, 24, 64])),
            "pooling": float(rng.choice([0.1, 1.0, 5.0, 40.0])),
            "access": {"zipf": float(rng.choice([0.0, 1.0, 1.6]))},
        }
        if rng.random() < 0.4:
            table["sharding"] = [t for t in SHARDING_TYPES if t == "table_wise" or rng.random() < 0.5]
        if rng.random() < 0.2:
            table["pin"] = sorted(rng.choice(devices, int(rng.integers(1, devices + 1)), replace=False).tolist())
        if rng.random() < 0.2:
            table["group"] = "together"
        elif rng.random() < 0.2:
            table["apart"] = "hot"
        tables.append(table)
    spec = {
        "format": 1,
        "model": {
            "name": "m",
            "module": "ebc",
            "global_batch": int(rng.choice([1, 100, 20_000])),
            "optimizer": str(rng.choice(["sgd", "rowwise_adagrad", "adam"])),
        },
        "cluster": {
            "device": "a100-40gb",
            "devices_per_host": devices,
            "memory": f"{int(np.exp(rng.uniform(17, 24)))}B",
            "intra_host_bandwidth": f"{rng.choice([1, 300])}GB/s",
        },
        "table": tables,
    }
    if rng.random() < 0.3:
        spec["cluster"] |= {"hosts": devices, "devices_per_host": 1}
    try:
        return lower(parse_spec(spec), load_hardware("a100-40gb"))
    except DiagnosticError:
        return None


def random_cost(rng: np.random.Generator, problem: Problem) -> StepCost:
    """Data-sheet figures, or arbitrary weights that keep the constraints of a learned cost."""
    if rng.random() < 0.5:
        return StepCost(Roofline(float(np.exp(rng.uniform(22, 29))), 4e7), problem.cluster)
    k, groups, pieces, members = (int(rng.integers(1, 5)) for _ in range(4))
    weights = {
        "mean": rng.normal(5, 3, FEATURES),
        "std": rng.uniform(1, 5, FEATURES),
        "encoder.0.weight": rng.normal(0, 0.5, (members, 6, FEATURES)),
        "encoder.0.bias": rng.normal(0, 1, (members, 6)),
        "encoder.1.weight": rng.normal(0, 0.5, (members, 6, 6)),
        "encoder.1.bias": rng.normal(0, 1, (members, 6)),
        "encoder.2.weight": rng.normal(0, 0.5, (members, 2 * k, 6)),
        "encoder.2.bias": rng.normal(0, 1, (members, 2 * k)),
        "scale": rng.exponential(1, (members, 2, BASES)),
        "pieces": rng.exponential(1, (members, 2, groups, pieces, k)),
        "offsets": rng.normal(0, 3, (members, 2, groups, pieces)),
        "fixed": rng.exponential(1, (members, 4, 2)),
    }
    assert fits(weights)
    return StepCost(FusedCost(weights, kind=0, members=members), problem.cluster)


def placements(problem: Problem) -> Iterator[Placement]:
    """Every placement there is, with or without room for it."""
    devices = range(problem.cluster.devices)
    ways = []
    for block in range(len(problem.blocks)):
        ways.append(
            [
                (option, chosen)
                for option in problem.options_of(block)
                for chosen in itertools.combinations(devices, int(problem.option_units[option]))
            ]
        )
    for combination in itertools.product(*ways):
        options, chosen = zip(*combination, strict=True)
        yield Placement(options, chosen)


def optimum(judge: Judge) -> float:
    """Least step time of all feasible placements; infinite if there is none."""
    judged = (judge.judge(placement) for placement in placements(judge.problem))
    return min((j.step_time_ms for j in judged if j.feasible), default=np.inf)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_no_placement_beats_the_bound(seed):
    rng = np.random.default_rng(seed)
    if (problem := random_problem(rng)) is None:
        return
    judge = Judge(problem, random_cost(rng, problem))
    bound = lower_bound(judge)
    assert bound is not None
    assert 0 <= bound.step_time_ms <= optimum(judge)
    totals = np.bincount(problem.option_block, bound.mix)
    assert totals == pytest.approx(1, abs=0.01)
    assert (bound.mix >= 0).all()


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
        problem = lower(parse_spec(spec), load_hardware("v100-16gb"))
        where = np.array(list(itertools.product(range(3), repeat=5)))
        for _ in range(4):
            judge = Judge(problem, random_cost(rng, problem))
            z = np.stack([(where == d) @ judge.latents for d in range(3)], axis=1)
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
    problem = lower(parse_spec(spec), hardware)
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
