"""The placement pass against brute force, and every placer against the constraints."""

import re

import numpy as np
import pytest
from brute_force import best_of_all, broken, random_cost, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

import shardc
from shardc.cost.model import step_cost
from shardc.cost.roofline import Roofline
from shardc.diagnostics import DiagnosticError
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.passes.place import EVALUATIONS, Outcome, Why, place
from shardc.placers.episode import offered_options
from shardc.placers.greedy import HEURISTICS, cost_greedy, heuristic_greedy
from shardc.placers.local_search import improve
from shardc.placers.policy import Policy, initial, place_by_policy
from shardc.problem import Site
from shardc.spec import SHARDING_TYPES, parse_size, parse_spec

HARDWARE = load_hardware("a100-40gb")
UNEVEN = [{"sharding": ["table_wise"]}] * 5
"""Tables that no placement on four devices brings near the lower bound."""


def spec_of(*tables: dict, devices: int = 4, batch: int = 20_000, **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": batch},
        "cluster": {"device": "a100-40gb", "devices_per_host": devices} | cluster,
        "defaults": {"rows": 1000, "dim": 16, "pooling": 2.0, "access": {"zipf": 1.0}},
        "table": [{"name": f"t{index:02}"} | table for index, table in enumerate(tables)],
    }


def judge_of(spec: dict) -> Judge:
    problem = lower(parse_spec(spec), [HARDWARE])
    return Judge(problem, step_cost([Roofline(1.5e12, 4e7)] * len(problem.cluster.kinds), problem))


def random_policy(seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    return Policy({name: rng.normal(size=array.shape) for name, array in initial(rng).items()})


def tables_of(rng: np.random.Generator, count: int, devices: int) -> list[dict]:
    """Random tables, some of them pinned, grouped, kept apart or limited to some sharding types."""
    tables = []
    for _ in range(count):
        table = {
            "rows": int(np.exp(rng.uniform(0, 15))),
            "dim": int(rng.choice([4, 8, 24, 64])),
            "pooling": float(rng.choice([0.1, 1.0, 5.0, 40.0])),
        }
        if rng.random() < 0.4:
            table["sharding"] = [t for t in SHARDING_TYPES if t == "table_wise" or rng.random() < 0.5]
        if rng.random() < 0.2:
            table["pin"] = sorted(rng.choice(devices, int(rng.integers(1, devices + 1)), replace=False).tolist())
        if rng.random() < 0.2:
            table["group"] = str(rng.choice(["g", "h"]))
        elif rng.random() < 0.2:
            table["apart"] = "hot"
        tables.append(table)
    return tables


def random_judge(seed: int, count: int, devices: int, memory: tuple[float, float] = (18, 26)) -> Judge | None:
    """A random problem; None where the spec contradicts itself or a table fits nowhere."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(*memory))
    cluster = {"memory": f"{int(size)}B"}
    if devices % 2 == 0 and rng.random() < 0.6:
        cluster |= {"hosts": 2, "devices_per_host": devices // 2}
        if rng.random() < 0.4:
            cluster["host"] = [{"hosts": [int(rng.integers(2))], "memory": f"{int(1.5 * size)}B"}]
    if rng.random() < 0.3:
        cluster["rank"] = [{"ranks": [int(rng.integers(devices))], "memory": f"{int(0.7 * size)}B"}]
    try:
        return judge_of(spec_of(*tables_of(rng, count, devices), **{"devices": devices} | cluster))
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} <= {"SH106", "SH201"}
        return None


def optimum(judge: Judge) -> float:
    """Least step time of all feasible placements; infinite if there is none."""
    found = best_of_all(judge)
    assert found is not None
    return found[0]


# --- Good placements --------------------------------------------------------------------------------------------------


def test_small_problems_are_solved_as_well_as_by_brute_force():
    ratios, missed = [], 0
    for seed in range(30):
        judge = random_judge(seed, count=3, devices=2 + seed % 2, memory=(19, 24))
        if judge is None or (best := optimum(judge)) == np.inf:
            continue
        try:
            choice = place(judge.problem, judge.cost, policy=None, effort="fast")
        except DiagnosticError:
            missed += 1
            continue
        assert choice.judgement.step_time_ms >= best
        assert choice.bound.step_time_ms <= best
        ratios.append(choice.judgement.step_time_ms / best)
    assert len(ratios) >= 12
    assert missed <= 1
    assert np.mean(np.array(ratios) < 1 + 1e-6) >= 0.8
    assert max(ratios) < 1.25


def test_small_problems_with_host_memory_are_placed_within_both_limits():
    """As brute force has them: what it finds no placement for is refused, and all else is placed nearly as well."""
    ratios, missed, cached, refused = [], 0, 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        if (problem := random_problem(rng, cached=True)) is None:
            continue
        judge = Judge(problem, random_cost(rng, problem))
        if (best := best_of_all(judge)) is None:
            continue
        try:
            choice = place(problem, judge.cost, policy=random_policy(seed), effort="fast")
        except DiagnosticError as error:
            assert {d.code for d in error.diagnostics} <= {"SH202", "SH203"}
            missed += best[0] < np.inf
            refused += best[0] == np.inf
            continue
        assert broken(problem, choice.placement) == []
        assert choice.bound.step_time_ms <= best[0] <= choice.judgement.step_time_ms
        ratios.append(choice.judgement.step_time_ms / best[0])
        cached += min(min(problem.cached_of(option)) for option in choice.placement.option) < 1
    assert len(ratios) >= 20
    assert (missed, refused > 0) == (0, True)
    assert cached >= 10
    assert np.mean(np.array(ratios) < 1 + 1e-6) >= 0.8


def test_never_costlier_than_any_heuristic():
    placed = 0
    for seed in range(12):
        judge = random_judge(seed, 25, 4, (25, 26)) if seed % 3 else random_judge(seed, 12, 3, (25, 26))
        if judge is None:
            continue
        placed += 1
        choice = place(judge.problem, judge.cost, policy=random_policy(), effort="fast", seed=seed)
        times = {p.strategy: p.step_time_ms for p, _ in choice.candidates}
        assert set(times) >= {*(f"{name}_greedy" for name in HEURISTICS), "cost_greedy", "rl_policy"}
        assert choice.judgement.step_time_ms == min(times.values())
        assert choice.judgement.step_time_ms >= choice.bound.step_time_ms
        assert choice.judgement.feasible
    assert placed >= 5


# --- Constraints ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 14), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_every_placer_keeps_every_constraint(seed, count, devices):
    judge = random_judge(seed, count, devices)
    if judge is None:
        return
    problem, rng = judge.problem, np.random.default_rng(seed)
    options = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
    offered = offered_options(problem)
    placed = [heuristic_greedy(judge, options, name) for name in HEURISTICS]
    by_policy = place_by_policy(judge, [[[o] for o in options], offered], random_policy(seed))
    assert all(placement is None or judge.judge(placement).feasible for placement in by_policy)
    placed += [cost_greedy(judge, options), *by_policy]
    for placement in placed:
        # A spread option has no free unit, so only the judge sees that it does not fit.
        if placement is None or (
            not judge.judge(placement).feasible and (problem.option_site[options] == Site.CLUSTER).any()
        ):
            continue
        assert broken(problem, placement) == []
        better = improve(judge, placement, evaluations=300, seed=seed % 100)
        assert broken(problem, better) == []
        assert judge.judge(better).feasible


@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_what_is_chosen_keeps_every_constraint(seed):
    judge = random_judge(seed, 8, 3)
    if judge is None:
        return
    try:
        choice = place(judge.problem, judge.cost, policy=None, effort="fast")
    except DiagnosticError as error:
        assert [d.code for d in error.diagnostics] in (["SH202"], ["SH203"])
        return
    assert broken(judge.problem, choice.placement) == []
    assert choice.judgement.step_time_ms == judge.judge(choice.placement).step_time_ms


def test_memory_that_is_just_enough_is_found():
    """Eight equal tables on four devices: two each is the only way."""
    judge = judge_of(spec_of(*[{"rows": 100_000, "sharding": ["table_wise"]}] * 8))
    exact = 2 * int(judge.problem.unit_memory[0, 0])
    tight = judge_of(spec_of(*[{"rows": 100_000, "sharding": ["table_wise"]}] * 8, memory=f"{exact}B", reserve="0%"))
    choice = place(tight.problem, tight.cost, policy=None, effort="fast")
    assert choice.judgement.memory[0].tolist() == [exact] * 4


def test_tables_that_fit_only_in_pieces_are_split():
    """Three tables of 64 MB whole do not go into two devices of 110 MB, in halves they do."""
    judge = judge_of(spec_of(*[{"rows": 10**6}] * 3, devices=2, batch=100, memory="110MB", reserve="0%"))
    choice = place(judge.problem, judge.cost, policy=None, effort="fast")
    assert broken(judge.problem, choice.placement) == []


def test_memory_tight_problems_that_can_be_placed_mostly_are():
    possible = found = 0
    for seed in range(200, 222):
        judge = random_judge(seed, count=4, devices=2, memory=(17, 20))
        if judge is None or optimum(judge) == np.inf:
            continue
        possible += 1
        try:
            found += place(judge.problem, judge.cost, policy=None, effort="fast").judgement.feasible
        except DiagnosticError as error:
            assert error.diagnostics[0].code == "SH203"
    assert possible >= 5
    assert found >= 0.9 * possible


# --- Nothing fits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reserve", ["0%", "40%", "10MB"])
def test_a_model_larger_than_the_cluster_is_refused_with_what_would_suffice(reserve):
    tables = [{"rows": 100_000, "sharding": ["table_wise"]}] * 8  # 6.4 MB of weights each
    judge = judge_of(spec_of(*tables, devices=2, memory="21MB", reserve=reserve))
    with pytest.raises(DiagnosticError) as caught:
        place(judge.problem, judge.cost, policy=None)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.exit_code) == ("SH202", 1)
    (size,) = re.findall(r"device ([\d.]+ [KMGT]?i?B) or more", found.help)
    enough = judge_of(spec_of(*tables, devices=2, memory=size, reserve=reserve))
    assert parse_size(size)
    assert 4 * int(enough.problem.unit_memory[0, 0]) <= enough.problem.cluster.memory_limit.min()
    assert place(enough.problem, enough.cost, policy=None, effort="fast").judgement.feasible


def test_what_fits_in_total_but_not_together_is_refused():
    """Three tables of 60 % of a device on two devices."""
    tables = [{"rows": 100_000, "sharding": ["table_wise"]}] * 3
    one = int(judge_of(spec_of(*tables)).problem.unit_memory[0, 0])
    judge = judge_of(spec_of(*tables, devices=2, memory=f"{int(one / 0.6)}B", reserve="0%"))
    with pytest.raises(DiagnosticError) as caught:
        place(judge.problem, judge.cost, policy=None)
    (found,) = caught.value.diagnostics
    assert found.code == "SH203"
    assert re.search(r"t0[012]", found.message)
    assert found.help


def test_tables_pinned_onto_one_full_device_are_refused():
    tables = [{"rows": 100_000, "pin": [1]}] * 3
    one = int(judge_of(spec_of(*tables)).problem.unit_memory[0, 0])
    judge = judge_of(spec_of(*tables, memory=f"{int(one * 2.5)}B", reserve="0%"))
    with pytest.raises(DiagnosticError) as caught:
        place(judge.problem, judge.cost, policy=None)
    assert [d.code for d in caught.value.diagnostics] == ["SH203"]


# --- Reasons ----------------------------------------------------------------------------------------------------------


def test_without_a_policy_the_ladder_goes_on_and_says_why():
    judge = judge_of(spec_of(*[{"rows": 10**i} for i in range(1, 7)]))
    choice = place(judge.problem, judge.cost, policy=None, effort="fast")
    outcomes = {p.strategy: outcome for p, outcome in choice.candidates}
    assert choice.why is Why.NO_POLICY
    assert outcomes["rl_policy"] is Outcome.NO_POLICY
    assert outcomes[choice.strategy] is Outcome.CHOSEN
    assert list(outcomes.values()).count(Outcome.CHOSEN) == 1
    for proposal, outcome in choice.candidates:
        if outcome in (Outcome.CHOSEN, Outcome.EQUAL):
            assert proposal.step_time_ms == choice.judgement.step_time_ms
        elif outcome is Outcome.COSTLIER:
            assert proposal.step_time_ms > choice.judgement.step_time_ms


def test_a_policy_that_finds_the_best_is_named_and_one_that_does_not_is_not():
    judge = judge_of(spec_of(*UNEVEN))
    for seed in range(4):
        choice = place(judge.problem, judge.cost, policy=random_policy(seed), effort="fast")
        rl = next(p for p, _ in choice.candidates if p.strategy == "rl_policy")
        assert rl.placement is not None
        if choice.strategy == "rl_policy":
            assert choice.why is Why.POLICY_BEST
        else:
            better = Why.SEARCH_BETTER if choice.strategy.endswith("+search") else Why.HEURISTIC_BETTER
            assert choice.why is better


def test_where_the_lower_bound_is_reached_soon_the_policy_is_not_asked(monkeypatch):
    monkeypatch.setattr("shardc.passes.place.place_by_policy", lambda *given: pytest.fail("it was asked"))
    judge = judge_of(spec_of(*UNEVEN[:4]))
    choice = place(judge.problem, judge.cost, policy=random_policy())
    assert choice.why is Why.BOUND_REACHED
    assert choice.judgement.step_time_ms <= choice.bound.step_time_ms * 1.0001


def test_a_policy_that_places_nothing_is_said_to_be_infeasible(monkeypatch):
    monkeypatch.setattr("shardc.passes.place.place_by_policy", lambda judge, offers, policy: [None] * len(offers))
    judge = judge_of(spec_of(*UNEVEN))
    choice = place(judge.problem, judge.cost, policy=random_policy(), effort="fast")
    outcomes = {p.strategy: outcome for p, outcome in choice.candidates}
    assert (choice.why, outcomes["rl_policy"]) == (Why.POLICY_INFEASIBLE, Outcome.INFEASIBLE)


def test_one_seed_one_choice():
    judge = judge_of(spec_of(*tables_of(np.random.default_rng(3), 20, 4)))
    choices = [place(judge.problem, judge.cost, policy=None, effort="fast", seed=7) for _ in range(2)]
    assert choices[0].placement == choices[1].placement
    assert choices[0].candidates == choices[1].candidates


def test_more_effort_is_never_worse():
    judge = judge_of(
        spec_of(*[t | {"sharding": ["table_wise"]} for t in tables_of(np.random.default_rng(9), 30, 5)], devices=5)
    )
    fast, balanced = (place(judge.problem, judge.cost, policy=None, effort=e) for e in ("fast", "balanced"))
    assert balanced.judgement.step_time_ms <= fast.judgement.step_time_ms


def test_one_table_on_one_device():
    judge = judge_of(spec_of({}, devices=1))
    choice = place(judge.problem, judge.cost, policy=random_policy(), effort="fast")
    assert choice.judgement.step_time_ms == pytest.approx(optimum(judge))
    assert choice.bound.step_time_ms == pytest.approx(optimum(judge))


# --- Anybody's cost ---------------------------------------------------------------------------------------------------


class Balance:
    """Encode and score, nothing else: the largest number of lookups on a device."""

    def encode(self, shards):
        return shards.lookups[:, None]

    def score(self, z):
        return z[..., 0].max(axis=-1)


class Imbalance:
    """A cost that no single device has: how far the devices are from one another."""

    def encode(self, shards):
        return np.stack([shards.dim, np.ones(len(shards))], axis=1)

    def score(self, z):
        return z[..., 0].std(axis=-1)


def test_an_object_with_encode_and_score_is_enough():
    poolings = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0, 1.0]  # fifteen on each of two devices
    spec = spec_of(*[{"pooling": p, "sharding": ["table_wise"]} for p in poolings], devices=2, batch=1000)
    plan = shardc.compile(spec, cost=Balance())
    assert plan.score.step_time_ms == 15_000
    assert plan.bound is None
    assert plan.digests.profile is None
    assert list(plan.score.phases) == ["step"]
    assert all(device.forward_ms is None for device in plan.score.devices)


def test_a_cost_of_the_whole_placement_drives_the_search():
    spec = spec_of(*[{"dim": d, "sharding": ["table_wise"]} for d in (4, 8, 12, 16, 20, 24, 28, 32)], devices=3)
    assert shardc.compile(spec, cost=Imbalance()).score.step_time_ms == 0


def test_any_cost_keeps_the_constraints():
    spec = spec_of({"pin": [2]}, {"group": "g"}, {"group": "g"}, {"apart": "a"}, {"apart": "a"}, {})
    plan = shardc.compile(spec, cost=Balance(), seed=3)
    placed = plan.plan["ebc"]
    assert placed["t00"].ranks == (2,)
    assert placed["t01"].ranks == placed["t02"].ranks
    assert not set(placed["t03"].ranks) & set(placed["t04"].ranks)
    assert plan.tool.seed == 3


def test_thorough_is_never_worse_than_balanced(monkeypatch):
    """Even if it searched hardly at all: it begins with what balanced finds."""
    monkeypatch.setitem(EVALUATIONS, "thorough", 1)
    tables = [{"rows": 50_000, "dim": 64, "pooling": float(1 + number % 7)} for number in range(30)]
    judge = judge_of(spec_of(*tables))
    monkeypatch.setattr("shardc.passes.place._MOST_PLACES", 0)  # HiGHS would better it
    balanced, thorough = (place(judge.problem, judge.cost, policy=None, effort=e) for e in ("balanced", "thorough"))
    assert thorough.judgement.step_time_ms == balanced.judgement.step_time_ms
    assert thorough.judgement.step_time_ms < min(
        p.step_time_ms for p, _ in balanced.candidates if "+" not in p.strategy
    )
    assert thorough.bound.step_time_ms >= balanced.bound.step_time_ms
    ended = place(judge.problem, judge.cost, policy=None, effort="thorough", watch=lambda done, step_ms: False)
    assert ended.judgement.feasible


def test_a_thorough_search_says_why_nothing_fits():
    tables = [{"rows": 100_000, "sharding": ["table_wise"]}] * 8
    judge = judge_of(spec_of(*tables, devices=2, memory="21MB"))
    with pytest.raises(DiagnosticError, match="SH202"):
        place(judge.problem, judge.cost, policy=None, effort="thorough")


def test_a_thorough_search_that_ends_before_its_first_placement_returns_what_balanced_found():
    judge = judge_of(spec_of(*[{"rows": 1000 * i, "pooling": float(i)} for i in range(1, 5)]))
    calls = []
    balanced = place(judge.problem, judge.cost, policy=None, watch=lambda done, ms: calls.append(ms) or True)
    left = iter([True] * (len(calls) + 1))
    ended = place(judge.problem, judge.cost, policy=None, effort="thorough", watch=lambda done, ms: next(left, False))
    assert ended.judgement.step_time_ms == balanced.judgement.step_time_ms
    assert ended.strategy == balanced.strategy


# --- What is known already --------------------------------------------------------------------------------------------


def test_a_plan_that_is_known_serves_where_nothing_else_is_found(monkeypatch):
    loaded = parse_spec(spec_of(*UNEVEN, memory="100MiB"))
    known = shardc.pipeline.run(loaded, effort="fast").plan
    for name in ("fit", "fits", "cost_greedy", "heuristic_greedy"):
        monkeypatch.setattr(shardc.passes.place, name, lambda *_, **__: None)
    monkeypatch.setattr(shardc.passes.place, "place_by_policy", lambda judge, offers, policy: [None] * len(offers))
    with pytest.raises(DiagnosticError, match="SH203"):
        shardc.pipeline.run(loaded)
    other = parse_spec(spec_of(*UNEVEN, {"rows": 500}, memory="100MiB"))
    with pytest.raises(DiagnosticError, match="SH203"):
        shardc.pipeline.run(other, known=known)
    assert shardc.pipeline.run(loaded, known=known).plan.score.step_time_ms <= known.score.step_time_ms
    busier = parse_spec(spec_of(*UNEVEN, memory="100MiB", batch=40_000))
    assert shardc.pipeline.run(busier, base=known).plan.plan.keys() == known.plan.keys()


def test_what_lacks_less_than_three_digits_show_is_said():
    tables = [{"rows": 50_000_000, "dim": 64, "sharding": ["table_wise"]}] * 8
    weights = sum(table["rows"] * (table["dim"] + 1) * 4 for table in tables)  # with the optimizer's state
    with pytest.raises(DiagnosticError, match=r"SH202.* need.* at least (.* GiB) on all .* have \1 for .*, [\d.]+ MiB"):
        judge = judge_of(spec_of(*tables, memory=f"{weights // 4 - 2**20}B", reserve="0%"))
        place(judge.problem, judge.cost, policy=None, effort="fast")
