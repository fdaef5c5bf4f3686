from __future__ import annotations

import copy

import numpy as np
import pytest
from brute_force import random_spec, with_host_memory

from shardc import pipeline
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge
from shardc.passes.place import EVALUATIONS, Outcome, Why
from shardc.passes.replan import MIGRATION, base_of, worthwhile
from shardc.passes.verify import verify
from shardc.pipeline import Compiled, prepare
from shardc.placers.migrate import Point, near
from shardc.plan import Plan, plan_bytes
from shardc.plan_diff import diff
from shardc.problem import Placement
from shardc.spec import MoveBudget, parse_spec


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 300)


def compiled(spec: dict, base: Plan | None = None, **how) -> Compiled:
    return pipeline.run(parse_spec(spec), effort="fast", base=base, **how)


def many(tables: int = 30, devices: int = 4, **extra: object) -> dict:
    rng = np.random.default_rng(5)
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 8192},
        "cluster": {"device": "a100-40gb", "devices_per_host": devices},
        "table": [
            {
                "name": f"t{i:02}",
                "rows": int(np.exp(rng.uniform(7, 16))),
                "dim": int(rng.choice([16, 32, 64])),
                "pooling": round(float(rng.lognormal(1, 1)), 2),
            }
            for i in range(tables)
        ],
        **extra,
    }


def changed(spec: dict, rng: np.random.Generator) -> dict:
    """The spec with something of one table, or of the cluster, changed."""
    spec = copy.deepcopy(spec)
    tables, which = spec["table"], int(rng.integers(len(spec["table"])))
    match int(rng.integers(8)):
        case 0:
            tables[which]["rows"] = int(tables[which]["rows"] * rng.uniform(0.3, 2)) + 1
        case 1:
            tables[which]["dim"] = int(rng.choice([4, 8, 16, 32]))
        case 2:
            tables[which]["pooling"] = float(rng.choice([0.5, 3.0, 30.0]))
        case 3:
            tables.append({"name": "new", "rows": 1000, "dim": 8, "pooling": 2.0})
        case 4 if len(tables) > 1:
            del tables[which]
        case 5:
            tables[which]["pin"] = [0]
        case 6:
            tables[which]["sharding"] = ["row_wise", "table_wise"]
        case _:
            spec["cluster"] = {key: value for key, value in spec["cluster"].items() if key not in ("rank", "host")}
            spec["cluster"]["hosts"] = 1
    return spec


@pytest.mark.parametrize("seed", range(60))
def test_whatever_changes_the_plan_keeps_every_rule_and_states_the_bytes_that_move(seed):
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    if seed % 3 == 0:
        spec = with_host_memory(rng, spec)
    after = changed(spec, rng)
    try:
        base, alone = compiled(spec).plan, compiled(after)
    except DiagnosticError:
        return  # contradictory, or infeasible with or without a base
    found = compiled(after, base)
    if found.migration is None:
        assert plan_bytes(found.plan) == plan_bytes(base)
        return
    assert verify(found.plan, parse_spec(after), found.choice.judge.problem.cluster) == []
    difference = diff(base, found.plan)
    assert found.plan.migration.moved_bytes == found.migration.chosen.moved_bytes == difference.moved_bytes
    assert found.plan.migration.model_bytes == found.migration.total_bytes == difference.model_bytes
    assert found.plan.migration.held_bytes == found.migration.chosen.held_bytes == difference.held_bytes
    assert found.migration.chosen.moved_share == difference.moved_share <= 1.0
    judge, front = found.choice.judge, found.migration.front
    for point in front:
        judgement = judge.judge(point.placement)
        assert (judgement.feasible, judgement.step_time_ms) == (True, point.step_time_ms)
    assert [p.moved_bytes for p in front] == sorted({p.moved_bytes for p in front})
    assert [p.step_time_ms for p in front] == sorted({p.step_time_ms for p in front}, reverse=True)
    assert front[-1].step_time_ms <= alone.choice.judgement.step_time_ms * (1 + 1e-5)


@pytest.mark.parametrize("effort", [None, *EVALUATIONS])
def test_an_unchanged_spec_has_the_plan_that_it_had_byte_for_byte(effort):
    base = compiled(many()).plan
    again = pipeline.run(parse_spec(many()), effort=effort, seed=7, base=base)
    assert plan_bytes(again.plan) == plan_bytes(base)
    assert again.migration is None


def test_a_plan_near_a_base_is_a_base_itself():
    base = compiled(many()).plan
    spec = many()
    spec["table"][3]["pooling"] = 50.0
    second = compiled(spec, base).plan
    assert second.migration.base.startswith("sha256:")
    assert plan_bytes(compiled(spec, second).plan) == plan_bytes(second)


def test_the_same_base_and_spec_give_the_same_bytes():
    base = compiled(many()).plan
    spec = many()
    spec["table"][3]["pooling"] = 50.0
    assert plan_bytes(compiled(spec, base).plan) == plan_bytes(compiled(spec, base).plan)


def test_a_plan_edited_by_hand_is_no_plan_to_keep():
    base = compiled(many()).plan
    edited = base.model_copy(update={"score": base.score.model_copy(update={"step_time_ms": 0.001})})
    found = compiled(many(), edited)
    assert found.migration is not None
    assert found.plan.score.step_time_ms > 0.001


def test_a_base_without_the_rows_of_its_tables_is_refused():
    base = compiled(many()).plan
    tables = dict(base.plan["ebc"])
    name = next(name for name, placed in tables.items() if placed.shards)
    tables[name] = tables[name].model_copy(update={"shards": (), "ranks": ()})
    with pytest.raises(DiagnosticError) as raised:
        compiled(many(), base.model_copy(update={"plan": {"ebc": tables}}))
    assert {finding.code for finding in raised.value.diagnostics} == {"SH305", "SH306"}


def test_nothing_moves_where_nothing_may_and_nothing_has_to():
    base, spec = compiled(many()).plan, many()
    spec["table"][7]["pooling"] = 60.0
    found = compiled(spec, base, budget=MoveBudget(bytes=0))
    assert found.migration.chosen.moved_bytes == 0
    assert diff(base, found.plan).flows == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_higher_limit_never_gives_a_slower_plan(seed):
    rng = np.random.default_rng(seed)
    base, spec = compiled(many()).plan, many()
    spec["table"][int(rng.integers(30))]["pooling"] = 60.0
    spec["table"].append({"name": "new", "rows": 200_000, "dim": 64, "pooling": 10.0})
    steps = []
    for share in (0.0, 0.001, 0.01, 0.02, 0.05, 0.2, 0.5, 1.0):
        found = compiled(spec, base, budget=MoveBudget(share=share))
        assert diff(base, found.plan).moved_share <= share
        steps.append(found.choice.judgement.step_time_ms)
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < steps[0]
    assert steps[-1] <= compiled(spec).choice.judgement.step_time_ms * (1 + 1e-5)
    most = compiled(spec, base, budget=MoveBudget(bytes=2**50)).choice.judgement.step_time_ms
    assert most == steps[-1]


def trades(*points: tuple[float, float]) -> list[Point]:
    """A front of moved shares and step times."""
    return [Point(int(share * 1e6), 1_000_000, step_ms, Placement((), ())) for share, step_ms in points]


@pytest.mark.parametrize(
    ("front", "chosen"),
    [
        ([(0.0, 1.015), (0.019, 1.0), (0.8, 0.999)], 1),  # 1 % slower is too slow where 2 % of the bytes make it up
        ([(0.0, 1.009), (0.019, 1.0)], 0),  # of two that are good, the one that is worth its bytes
        ([(0.0, 1.009), (0.001, 1.0)], 1),
        ([(0.0, 1.5), (0.04, 1.1), (0.8, 1.0)], 1),  # of none that is good too
        ([(0.0, 1.04), (0.05, 1.0)], 0),
        ([(0.7, 1.0)], 0),
    ],
)
def test_without_a_limit_a_plan_is_chosen_that_is_worth_its_bytes(front, chosen):
    points = trades(*front)
    assert worthwhile(points) is points[chosen]


def test_a_search_that_ends_in_time_without_a_base_goes_on_near_it():
    base, spec = compiled(many()).plan, many()
    spec["table"][7]["pooling"] = 60.0
    loaded = parse_spec(spec)
    asked = 0

    def for_a_while(done: float, step_ms: float) -> bool:
        nonlocal asked
        asked += 1
        return asked < 300

    stopped = pipeline.run(loaded, effort="thorough", base=base, watch=lambda done, step_ms: False).plan
    found = pipeline.run(
        loaded, effort="thorough", base=base, watch=for_a_while, watch_alone=lambda done, step_ms: False
    ).plan
    assert found.score.step_time_ms < stopped.score.step_time_ms


def test_what_has_to_move_is_told_when_the_budget_is_too_small():
    base, spec = compiled(many()).plan, many()
    name, placed = next((n, p) for n, p in sorted(base.plan["ebc"].items()) if p.sharding_type == "table_wise")
    table = next(table for table in spec["table"] if table["name"] == name)
    table["pin"] = [(placed.ranks[0] + 1) % 4]
    with pytest.raises(DiagnosticError) as raised:
        compiled(spec, base, budget=MoveBudget(bytes=0))
    (finding,) = raised.value.diagnostics
    assert finding.code == "SH321"
    allowed = int(finding.help.split()[-1].removesuffix("MiB")) * 2**20
    assert compiled(spec, base, budget=MoveBudget(bytes=allowed)).plan.plan["ebc"][name].ranks == tuple(table["pin"])


def test_one_changed_table_leaves_the_others_where_they_are():
    base, spec = compiled(many(60, 8)).plan, many(60, 8)
    spec["table"].append({"name": "zz", "rows": 100_000, "dim": 32, "pooling": 4.0})
    found = compiled(spec, base)
    alone = compiled(spec)
    assert found.migration.chosen.moved_bytes <= 0.02 * found.migration.total_bytes
    assert found.migration.chosen.step_time_ms <= 1.02 * alone.choice.judgement.step_time_ms
    assert diff(base, alone.plan).moved_share > 0.2


def test_columns_stay_where_they_are_when_one_of_their_ranks_changes():
    columns = {"name": "wide", "rows": 500_000, "dim": 96, "pooling": 5.0, "sharding": ["column_wise"]}
    spec = many(3, 8, table=[columns, *many(8)["table"]])
    base = compiled(spec).plan
    ranks = base.plan["ebc"]["wide"].ranks
    free = next(rank for rank in range(7, -1, -1) if rank not in ranks)
    after = copy.deepcopy(spec)
    after["table"][0]["pin"] = sorted({*ranks[1:], free})
    found = compiled(after, base, budget=MoveBudget(share=0.9))
    size = found.migration.total_bytes
    least = found.migration.front[0]
    assert diff(base, found.plan).moved_bytes == found.migration.chosen.moved_bytes
    wide = 500_000 * (96 * 4 + 4 * len(ranks)) / len(ranks)
    assert 0 < least.moved_bytes <= wide * 1.05 < size


def test_who_chose_is_said():
    base, spec = compiled(many()).plan, many()
    spec["table"][7]["pooling"] = 60.0
    found = compiled(spec, base, budget=MoveBudget(bytes=0))
    assert (found.plan.chosen.strategy, found.plan.chosen.reason) == (MIGRATION, Why.NEAR_BASE)
    outcomes = {candidate.strategy: candidate.reason for candidate in found.plan.candidates}
    assert outcomes[MIGRATION] == Outcome.CHOSEN
    faster = [c for c in found.plan.candidates if c.step_time_ms and c.step_time_ms < found.plan.score.step_time_ms]
    assert faster
    assert {candidate.reason for candidate in faster} == {Outcome.MOVES_MORE}
    assert found.plan.bound is not None
    assert found.plan.bound.gap > 0


@pytest.mark.parametrize(("devices", "said"), [(2, "ranks 2 to 3 is placed anew"), (8, "ranks are added")])
def test_a_base_for_another_number_of_devices_helps_as_far_as_it_can(devices, said):
    base = compiled(many()).plan
    found = compiled(many(devices=devices), base)
    assert [w.code for w in found.migration.warnings][:1] == ["SH322"]
    assert said in found.migration.warnings[0].message
    assert found.migration.chosen.moved_bytes == diff(base, found.plan).moved_bytes > 0
    kept = [
        name
        for name, placed in found.plan.plan["ebc"].items()
        if placed.sharding_type == "table_wise" and placed.ranks == base.plan["ebc"][name].ranks
    ]
    assert kept


def test_a_base_of_other_tables_is_of_no_use_and_that_is_said():
    base, spec = compiled(many()).plan, many()
    for table in spec["table"]:
        table["name"] = "other_" + table["name"]
    found = compiled(spec, base)
    assert [(w.code, w.severity) for w in found.migration.warnings] == [("SH322", "warning")]
    assert "none of the tables" in found.migration.warnings[0].message
    assert found.migration.chosen.moved_bytes == 0
    assert found.plan.score.step_time_ms <= compiled(spec).plan.score.step_time_ms


def test_tables_of_a_renamed_module_stay_where_they_are():
    base, spec = compiled(many()).plan, many(model={"name": "m", "module": "sparse.ebc", "global_batch": 8192})
    found = compiled(spec, base, budget=MoveBudget(bytes=0))
    assert found.plan.plan["sparse.ebc"] == base.plan["ebc"]


def test_where_memory_no_longer_suffices_only_some_tables_give_way():
    base, spec = compiled(many()).plan, many()
    full = max(device.memory_bytes for device in base.score.devices)
    rank = next(device.rank for device in base.score.devices if device.memory_bytes == full)
    spec["cluster"]["rank"] = [{"ranks": [rank], "memory": f"{int(full * 0.9)}B"}]
    found = compiled(spec, base)
    assert found.plan.score.devices[rank].memory_bytes <= 0.9 * full
    assert 0 < found.migration.chosen.moved_bytes < 0.5 * found.migration.total_bytes


def test_the_search_ends_when_it_is_told_to():
    base, spec = compiled(many()).plan, many()
    spec["table"][7]["pooling"] = 60.0
    prepared = prepare(parse_spec(spec))
    asked = []

    def watch(done: float, step_ms: float) -> bool:
        asked.append(done)
        return False

    judge: Judge = prepared.judge
    alone = compiled(spec).choice.placement
    front, _ = near(judge, base_of(base, judge.problem), [alone], evaluations=[100_000], seed=0, watch=watch)
    assert len(asked) == 1
    assert all(judge.judge(point.placement).feasible for point in front)
