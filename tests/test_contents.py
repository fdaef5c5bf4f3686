"""What devices hold: the parts of a device add up to what the plan states of it."""

from __future__ import annotations

import pytest

from shardc.contents import contents, contents_alone
from shardc.passes.place import EVALUATIONS
from shardc.pipeline import load, run

CLUSTERS = {
    "one host": {"device": "h100-80gb", "devices_per_host": 4},
    "hosts that differ": {
        "device": "h100-80gb",
        "hosts": 2,
        "devices_per_host": 2,
        "host": [{"hosts": [1], "device": "a100-40gb"}],
    },
}
TABLES = [
    {"name": "small", "rows": 100, "sharding": ["table_wise"]},
    {"name": "rows", "rows": 2_000_000, "sharding": ["row_wise"]},
    {"name": "columns", "rows": 3_000_000, "sharding": ["column_wise"]},
    {"name": "copies", "rows": 50, "sharding": ["data_parallel"]},
]


def spec(cluster: str = "one host", **extra) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 4096},
        "cluster": CLUSTERS[cluster],
        "defaults": {"dim": 32, "pooling": 3},
        "table": TABLES,
        "compile": {"effort": "fast", **extra},
    }


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(EVALUATIONS, "fast", 100)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_times_and_bytes_of_tables_add_up_to_those_of_their_device(cluster):
    loaded = load(spec(cluster))
    plan = run(loaded).plan
    found = contents(plan, loaded)
    assert found.timed
    for device, held in zip(plan.score.devices, found.devices, strict=True):
        assert sum(part.forward_ms for part in held) == pytest.approx(device.forward_ms, rel=1e-6)
        assert sum(part.backward_ms for part in held) == pytest.approx(device.backward_ms, rel=1e-6)
        assert sum(part.bytes for part in held) == device.memory_bytes
        assert {"rows", "copies"} <= {part.table for part in held}


def test_times_by_torchrecs_estimates_add_up_too():
    loaded = load(spec(cost="torchrec"))
    plan = run(loaded).plan
    found = contents(plan, loaded)
    assert found.timed and not found.split
    for device, held in zip(plan.score.devices, found.devices, strict=True):
        assert sum(part.ms for part in held) == pytest.approx(device.forward_ms + device.backward_ms, rel=1e-6)


def test_without_a_spec_the_bytes_of_weights_are_known():
    plan = run(load(spec())).plan
    found = contents_alone(plan)
    assert not found.timed
    total = sum(part.bytes for held in found.devices for part in held)
    assert total == 32 * 4 * (100 + 2_000_000 + 3_000_000 + 4 * 50)


def test_a_plan_that_no_longer_fits_its_spec_is_looked_at_alone():
    plan = run(load(spec())).plan
    changed = spec()
    changed["table"] = [*TABLES[1:], {"name": "other", "rows": 10}]
    found = contents(plan, load(changed))
    assert not found.timed
    assert {warning.code for warning in found.warnings} == {"SH304"}


def test_a_spec_that_has_changed_is_told():
    plan = run(load(spec())).plan
    changed = spec()
    changed["defaults"] = {"dim": 32, "pooling": 5}
    found = contents(plan, load(changed))
    assert found.timed
    assert "SH340" in {warning.code for warning in found.warnings}
