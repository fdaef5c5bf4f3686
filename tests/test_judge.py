import dataclasses
import itertools

import numpy as np
import pytest
from brute_force import broken, random_cost, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.cost.model import StepCost, step_cost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.judge import LIKELY, Changes, Judge, Partial
from shardc.passes.lower import lower
from shardc.pipeline import devices_of
from shardc.problem import Placement, Problem, Site
from shardc.spec import parse_spec

DEVICES = 4


def problem_of(*tables: dict, **cluster) -> Problem:
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 4096},
        "cluster": {"device": "h100-80gb", "devices_per_host": DEVICES} | cluster,
        "defaults": {"rows": 1000, "dim": 16, "pooling": 2.0, "access": {"zipf": 1.05}},
        "table": [{"name": f"t{index:02}"} | table for index, table in enumerate(tables)],
    }
    return lower(parse_spec(spec), [load_hardware("h100-80gb")])


def judge_of(problem: Problem) -> Judge:
    return Judge(problem, StepCost(Roofline(3.35e12, 5e7), problem.cluster))


def varied(count: int = 12) -> Judge:
    rng = np.random.default_rng(5)
    return judge_of(
        problem_of(
            *(
                {
                    "rows": int(np.exp(rng.uniform(1, 16))),
                    "dim": int(rng.choice([8, 32, 128])),
                    "pooling": float(np.exp(rng.uniform(-3, 4))),
                }
                for _ in range(count)
            )
        )
    )


JUDGE = varied()


def option(problem: Problem, block: int, type: str, units: int | None = None) -> int:
    """The option of a block by its type (and number of units)."""
    found = [o for o in problem.options_of(block) if problem.option_type[o] == type]
    return next(o for o in found if units is None or problem.option_units[o] == units)


@given(st.integers(0, 2**32))
def test_sums_are_the_same_bits_in_any_order_of_adding_and_removing(seed):
    rng = np.random.default_rng(seed)
    problem = JUDGE.problem
    chosen = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
    chosen = np.concatenate([problem.units_of(option) for option in chosen])
    latents = JUDGE.latents[0]
    expected = latents[chosen].sum(axis=0)
    for _ in range(5):
        z = np.zeros_like(expected)
        for index in rng.permutation(chosen):
            z += latents[index]
        assert np.array_equal(z, expected)
    for index in rng.permutation(chosen):
        z -= latents[index]
    assert np.array_equal(z, np.zeros_like(z))


@given(st.integers(0, 2**32), st.floats(1e-9, 1e9))
def test_sums_are_exact_for_any_cost_model(seed, scale):
    class Own:
        def encode(self, shards):
            values = np.random.default_rng(seed).normal(0, 1, (len(shards), 5))
            return scale * values * 10.0 ** np.arange(-6, 4, 2)

        def score(self, z):
            return z.max(axis=(-1, -2))

    judge = Judge(JUDGE.problem, Own())
    rng = np.random.default_rng(seed)
    problem = judge.problem
    chosen = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
    some = judge.latents[0, np.concatenate([problem.units_of(option) for option in chosen])]
    order = rng.permutation(len(some))
    assert np.array_equal(np.cumsum(some, axis=0)[-1], np.cumsum(some[order], axis=0)[-1])


def test_rounding_to_the_grid_changes_next_to_nothing():
    encoded = JUDGE.cost.encode(JUDGE.problem.shards)
    exact = np.stack([encoded[list(shards)].sum(axis=0) for shards in JUDGE.problem.unit_shards])
    assert np.abs(JUDGE.latents[0] - exact).max(axis=0) == pytest.approx(0, abs=1e-8 * exact.max())
    assert (JUDGE.latents >= 0).all()


def test_a_group_is_encoded_as_the_sum_of_its_tables():
    apart, together = (
        judge_of(problem_of(*[{"dim": 8 * i} | more for i in (1, 2, 3)])) for more in ({}, {"group": "g"})
    )
    whole = [apart.problem.first_unit[option(apart.problem, block, "table_wise")] for block in range(3)]
    assert together.latents[0, 0] == pytest.approx(apart.latents[0, whole].sum(axis=0), rel=1e-7)


def test_loads_follow_the_placement():
    judge = judge_of(problem_of({}, {}, {}))
    problem = judge.problem
    one, two, three = (
        option(problem, 0, "table_wise"),
        option(problem, 1, "column_wise", 2),
        option(problem, 2, "row_wise"),
    )
    judgement = judge.judge(Placement((one, two, three), ((3,), (0, 3), (0,))))
    latents, memory = judge.latents[0, problem.first_unit], problem.unit_memory[0, problem.first_unit]
    on_all = latents[three]
    expected = [on_all + latents[two], on_all, on_all, on_all + latents[one] + latents[two]]
    assert np.array_equal(judgement.z, expected)
    assert judgement.memory[0].tolist() == [
        memory[three] + memory[two],
        memory[three],
        memory[three],
        memory[three] + memory[one] + memory[two],
    ]
    assert judgement.feasible
    assert judgement.step_time_ms == pytest.approx(float(judge.cost.score(judgement.z)), abs=1e-9)


def test_memory_pins_and_exclusions_decide_feasibility():
    problem = problem_of(
        {"pin": [1]}, {"apart": "hot"}, {"apart": "hot"}, {"rows": 100_000, "sharding": ["table_wise"]}, memory="20MB"
    )
    judge = judge_of(problem)
    options = tuple(option(problem, block, "table_wise") for block in range(4))

    def feasible(*devices: int, judge: Judge = judge) -> bool:
        return judge.judge(Placement(options, tuple((d,) for d in devices))).feasible

    assert feasible(1, 0, 2, 3)
    assert not feasible(0, 0, 2, 3)
    assert not feasible(1, 2, 2, 3)
    limit = int(judge.judge(Placement(options, ((1,), (0,), (3,), (3,)))).memory.max())

    def with_memory(size: int) -> Judge:
        kind = dataclasses.replace(problem.cluster.kinds[0], memory_bytes=size, reserve_bytes=0)
        cluster = dataclasses.replace(problem.cluster, kinds=(kind,))
        return judge_of(dataclasses.replace(problem, cluster=cluster))

    exact, short = with_memory(limit), with_memory(limit - 1)
    assert feasible(1, 0, 3, 3, judge=exact)
    assert not feasible(1, 0, 3, 3, judge=short)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_what_is_feasible_breaks_no_constraint(seed):
    """Any option of every table anywhere: on several hosts, pieces together, too much on a rank."""
    rng = np.random.default_rng(seed)
    if (problem := random_problem(rng)) is None:
        return
    options = tuple(int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks)))
    places = []
    for option in options:
        count = problem.cluster.devices // int(problem.site_size[problem.option_site[option]])
        chosen = rng.choice(count, problem.option_units[option], replace=rng.random() < 0.1)
        places.append(problem.sorted_places(option, chosen.tolist()))
    placement, judge = Placement(options, tuple(places)), Judge(problem, random_cost(rng, problem))
    assert judge.judge(placement).feasible == (broken(problem, placement) == [])


def test_loads_are_those_of_the_hosts_that_units_are_on():
    """A grid and the rows of a host on hosts that differ, in uneven column blocks."""
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 4096},
        "cluster": {
            "device": "h100-80gb",
            "hosts": 2,
            "devices_per_host": 2,
            "host": [{"hosts": [1], "device": "a100-40gb"}],
        },
        "table": [{"name": f"t{i}", "rows": 1000, "dim": 20, "pooling": 2.0} for i in range(2)],
    }
    loaded = parse_spec(spec)
    problem = lower(loaded, devices_of(loaded))
    judge = Judge(problem, step_cost([Roofline(3e12, 5e7), Roofline(1e12, 4e7)], problem))
    grid, rows = option(problem, 0, "grid_shard"), option(problem, 1, "table_row_wise")
    wide, narrow = problem.units_of(grid)
    (unit,) = problem.units_of(rows)
    z, memory = judge.loads(Placement((grid, rows), ((1, 0), (1,))))
    fast, slow = judge.latents
    expected = [fast[narrow], fast[narrow], slow[wide] + slow[unit], slow[wide] + slow[unit]]
    assert np.array_equal(z, expected)
    (bytes,) = problem.unit_memory
    assert memory[0].tolist() == [bytes[narrow]] * 2 + [bytes[wide] + bytes[unit]] * 2


def test_two_pieces_of_a_table_on_one_device_are_not_feasible():
    judge = judge_of(problem_of({}))
    two = option(judge.problem, 0, "column_wise", 2)
    assert judge.judge(Placement((two,), ((0, 1),))).feasible
    assert not judge.judge(Placement((two,), ((1, 1),))).feasible


class OwnCost:
    """Sum over devices of squared load: neither a StepCost nor a maximum."""

    def encode(self, shards):
        return np.stack([shards.lookups / 1e3, shards.dim / 10.0], axis=1)

    def score(self, z):
        return (z**2).sum(axis=(-1, -2))


GUIDES = {
    "step cost": lambda z: Changes.of(JUDGE, z),
    "with targets": lambda z: Changes.of(JUDGE, z, JUDGE.cost.heads(z.mean(axis=0))),
    "own cost": lambda z: Changes.of(Judge(JUDGE.problem, OwnCost()), z),
}


def loads_of(rng: np.random.Generator, devices: int = 5) -> np.ndarray:
    """Loads of devices with six units each, one of them perhaps empty."""
    z = JUDGE.latents[0, rng.integers(0, JUDGE.latents.shape[1], (devices, 6))].sum(axis=1)
    z[rng.integers(devices)] *= rng.integers(0, 2)
    return z


@pytest.mark.parametrize("guide", GUIDES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_candidates_score_as_if_they_were_computed_afresh(guide, seed):
    rng = np.random.default_rng(seed)
    z = loads_of(rng)
    pairs = np.array(list(itertools.permutations(range(5), 2)))
    loads = z[pairs] * rng.integers(0, 3, (len(pairs), 2, 1))
    whole = np.repeat(z[None], len(pairs), axis=0)
    whole[np.arange(len(pairs))[:, None], pairs] = loads
    changes = GUIDES[guide](z)
    afresh = changes.whole(whole)
    # What two devices change never alters which phases are used; fixed costs are those of the placement.
    same = [np.array_equal(JUDGE.cost.present(w).max(axis=0), JUDGE.cost.present(z).max(axis=0)) for w in whole]
    assert changes.some_devices(pairs, loads)[same] == pytest.approx(afresh[same], rel=1e-6, abs=1e-6 * afresh.max())
    assert changes.guide == pytest.approx(float(changes.whole(z[None])[0]), rel=1e-9, abs=1e-9)
    whole[0, pairs[0]] = less = 0.95 * z[pairs[0]]
    changes.put(pairs[0], less)
    assert np.array_equal(changes.z, whole[0])
    assert changes.guide == pytest.approx(GUIDES[guide](z).whole(whole[:1])[0], rel=1e-6)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_the_guide_is_a_little_above_the_step_time_and_falls_with_it(seed):
    rng = np.random.default_rng(seed)
    z = loads_of(rng)
    changes = Changes.of(JUDGE, z)
    step = float(JUDGE.step_ms(z))
    assert step <= changes.guide <= step * 1.02
    cheaper = z.copy()
    cheaper[changes.costly()[0]] *= 0.5
    assert changes.whole(cheaper[None])[0] < changes.guide


@pytest.mark.parametrize("guide", GUIDES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_of_all_exchanges_the_best_deserves_a_look(guide, seed):
    """Small ones, of which the first order says all."""
    rng = np.random.default_rng(seed)
    z = loads_of(rng)
    changes = GUIDES[guide](z)
    first = int(changes.costly()[0])
    pair = np.array([first, (first + 1) % 5])
    given, taken = (np.concatenate([np.zeros((1, z.shape[1])), 2e-4 * rng.random((4, 1)) * z[d]]) for d in pair)
    possible = rng.random((5, 5)) < 0.8
    found = changes.likely(pair, np.stack([given] * 2), np.stack([taken] * 2), possible, rng)
    assert possible.ravel()[found].all()
    assert len(set(found.tolist())) == len(found) <= LIKELY
    out, back = np.divmod(np.arange(25), 5)
    change = (taken[back] - given[out])[:, None] * np.array([[1.0], [-1.0]])
    guides = np.where(possible.ravel(), changes.some_devices(np.tile(pair, (25, 1)), z[pair] + change), np.inf)
    if guides.min() < changes.guide * (1 - 1e-6):
        assert changes.guide - guides[found].min() >= 0.8 * (changes.guide - guides.min())


def test_costly_devices_come_first():
    z = np.zeros((4, JUDGE.latents.shape[2]))
    z[2] = JUDGE.latents[0].sum(axis=0)
    z[1] = JUDGE.latents[0, 0]
    assert Changes.of(JUDGE, z).costly()[0] == 2
    assert len(Changes.of(JUDGE, np.tile(z[2], (4, 1))).costly()) == 0
    assert Changes.of(Judge(JUDGE.problem, OwnCost()), z[:, :2]).costly()[0] == 2


def test_phases_of_a_device_add_up_to_its_own_step():
    z = JUDGE.latents[0, :3]
    assert JUDGE.phase_ms(z).sum(axis=-1) == pytest.approx(JUDGE.device_ms(z))
    own = Judge(JUDGE.problem, OwnCost())
    assert own.phase_ms(own.latents[0, :3]).shape == (3, 1)


def test_a_partial_placement_becomes_what_the_judge_loads():
    rng = np.random.default_rng(1)
    problem = JUDGE.problem
    chosen = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
    partial = Partial(JUDGE, chosen)
    for block, index in enumerate(chosen):
        for unit in problem.units_of(index).tolist() if problem.option_site[index] != Site.CLUSTER else ():
            fitting = np.flatnonzero(partial.fits(block, unit))
            assert not set(fitting) & set(partial.places[block])
            partial.add(block, unit, int(rng.choice(fitting)))
    z, memory = JUDGE.loads(partial.placement())
    assert np.array_equal(partial.z, z)
    assert np.array_equal(partial.memory, memory)
