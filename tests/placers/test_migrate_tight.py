"""Plans near a base that cannot stay as it is: too full, or where devices are taken away."""

from __future__ import annotations

import pytest

from shardc import pipeline
from shardc.passes.place import EVALUATIONS
from shardc.passes.verify import verify
from shardc.pipeline import Compiled
from shardc.plan import Plan
from shardc.plan_diff import diff
from shardc.spec import parse_spec


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 300)


def spec_of(*tables: dict, hosts: int = 1, devices: int = 2, **cluster: object) -> dict:
    defaults = {"rows": 100_000, "dim": 64, "pooling": 2.0, "sharding": ["table_wise"]}
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1024, "optimizer": "sgd"},
        "cluster": {"device": "a100-40gb", "hosts": hosts, "devices_per_host": devices, "reserve": "0%"} | cluster,
        "table": [defaults | table for table in tables],
    }


def near(spec: dict, base: Plan) -> Compiled:
    found = pipeline.run(parse_spec(spec), effort="fast", base=base)
    assert verify(found.plan, parse_spec(spec), found.choice.judge.problem.cluster) == []
    return found


def test_where_what_stays_leaves_no_room_for_a_new_table_the_smallest_move_first():
    """Six tables of 26 MB, three on each device of 110 MB; a new one of 78 MB has room if two of them move."""
    six = [{"name": f"t{number}"} for number in range(6)]
    base = pipeline.run(parse_spec(spec_of(*six, memory="110MB")), effort="fast").plan
    assert [len({n for n, t in base.plan["ebc"].items() if rank in t.ranks}) for rank in (0, 1)] == [3, 3]
    new = {"name": "new", "rows": 290_000}
    found = near(spec_of(*six, new, memory="135MB"), base)
    moved = diff(base, found.plan).moved_bytes
    assert moved == found.plan.migration.moved_bytes
    assert moved < 6 * 26_000_000


def test_columns_of_a_host_that_loses_a_device_stay_where_they_may():
    table = {"name": "wide", "dim": 128, "sharding": ["table_column_wise"]}
    others = [{"name": f"t{number}", "rows": 1000} for number in range(4)]
    cluster = {"hosts": 2, "devices": 4}
    base = pipeline.run(parse_spec(spec_of(table | {"pin": [4, 5, 6]}, *others, **cluster)), effort="fast").plan
    assert set(base.plan["ebc"]["wide"].ranks) <= {4, 5, 6}
    for pin, least in (([0, 1, 2, 3, 5, 6, 7], 1 / 3), ([0, 1, 2, 3], 0.97)):
        found = near(spec_of(table | {"pin": pin}, *others, **cluster), base)
        assert set(found.plan.plan["ebc"]["wide"].ranks) <= set(pin)
        assert found.migration.front[0].moved_share < least + 0.02
