from __future__ import annotations

import copy

import numpy as np
import pytest
from plans import plan, replicated, sharded, whole

from shardc.memory import optimizer_state_bytes
from shardc.plan_diff import Change, diff, movements

BYTES = 1000 * 16 * 4 + 1000 * 4  # of a table: weights and a value of state for each row


def changes(old: dict, new: dict) -> tuple[Change, ...]:
    (changed,) = diff(plan({"t": old}), plan({"t": new})).tables
    assert changed.name == "t"
    return changed.changes


def test_plans_that_are_the_same_do_not_differ():
    found = diff(plan({"a": whole(0)}), plan({"a": whole(0)}))
    assert (found.differ, found.tables, found.flows, found.settings) == (False, (), (), ())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (whole(0), whole(3), [Change.MOVED]),
        (whole(0), sharded("column_wise", [(0, 0, 0, 1000, 8), (1, 0, 8, 1000, 8)]), [Change.RESHARDED]),
        (whole(0), replicated(), [Change.RESHARDED]),
        (whole(0), whole(0, rows=2000), [Change.RESIZED]),
        (whole(0), whole(2, dim=32), [Change.RESIZED, Change.MOVED]),
        (replicated(), replicated(2000), [Change.RESIZED]),
        (
            sharded("column_wise", [(0, 0, 0, 1000, 8), (1, 0, 8, 1000, 8)]),
            sharded("column_wise", [(1, 0, 0, 1000, 8), (0, 0, 8, 1000, 8)]),
            [Change.MOVED],
        ),
        (
            sharded("column_wise", [(0, 0, 0, 1000, 8), (1, 0, 8, 1000, 8)]),
            sharded("column_wise", [(0, 0, 0, 1000, 4), (1, 0, 4, 1000, 12)]),
            [Change.RESHARDED],
        ),
        (
            whole(0),
            whole(0) | {"compute_kernel": "fused_uvm_caching", "cache_params": {"load_factor": 0.2}},
            [Change.CACHED],
        ),
        (whole(0), whole(0) | {"stochastic_rounding": True}, [Change.SETTINGS]),
        (whole(0), whole(0) | {"compute_kernel": "fused_uvm"}, [Change.SETTINGS]),
    ],
)
def test_what_has_become_of_a_table_is_named(old, new, expected):
    assert list(changes(old, new)) == expected


def test_tables_that_come_and_go_do_not_move():
    found = diff(plan({"old": whole(0), "kept": whole(1)}), plan({"new": whole(0), "kept": whole(1)}))
    assert [(table.name, table.changes) for table in found.tables] == [
        ("new", (Change.ADDED,)),
        ("old", (Change.REMOVED,)),
    ]
    assert (found.moved_bytes, found.added_bytes, found.shared) == (0, BYTES, 1)


def test_bytes_are_summed_by_pair_of_devices_the_largest_first():
    old = plan({"a": whole(0), "b": whole(0), "c": whole(1, rows=10)})
    new = plan({"a": whole(2), "b": whole(2), "c": whole(3, rows=10)})
    found = diff(old, new)
    assert found.flows == ((0, 2, 2 * BYTES), (1, 3, 10 * 16 * 4 + 10 * 4))
    assert found.moved_bytes == sum(flow.bytes for flow in found.flows)
    assert found.moved_share == pytest.approx(1.0)


def test_the_moved_share_is_of_all_shards_and_replicas_count_on_both_sides():
    assert diff(plan({"a": whole(1)}), plan({"a": replicated()})).moved_share == pytest.approx(3 / 4)
    old, new = plan({"a": whole(1), "b": whole(0)}), plan({"a": replicated(), "b": whole(0)})
    found = diff(old, new)
    assert (found.moved_bytes, found.model_bytes, found.held_bytes) == (3 * BYTES, 2 * BYTES, 5 * BYTES)
    assert diff(new, old).moved_share == 0.0


def test_a_table_put_together_elsewhere_moves_all_of_it_and_not_more():
    halves = {"a": sharded("column_wise", [(0, 0, 0, 1000, 8), (1, 0, 8, 1000, 8)])}
    assert diff(plan(halves), plan({"a": whole(2)})).moved_share == pytest.approx(1.0)


def test_a_table_that_becomes_replicas_goes_to_every_other_device():
    assert diff(plan({"a": whole(1)}), plan({"a": replicated()})).flows == tuple((1, rank, BYTES) for rank in (0, 2, 3))
    assert diff(plan({"a": replicated()}), plan({"a": whole(1)})).flows == ()


def test_replicas_of_a_plan_that_does_not_say_their_size_are_as_large_as_in_the_other():
    assert diff(plan({"a": replicated(None)}), plan({"a": replicated()})).moved_bytes == 0
    assert diff(plan({"a": replicated(None)}), plan({"a": whole(2)})).moved_bytes == 0
    assert diff(plan({"a": whole(1)}), plan({"a": replicated(None)})).moved_bytes == 3 * BYTES


def test_only_the_rows_that_were_there_move_and_the_others_are_new():
    found = diff(plan({"a": whole(0)}), plan({"a": whole(1, rows=1500)}))
    assert (found.moved_bytes, found.added_bytes) == (BYTES, BYTES // 2)
    ((name, (moves, _), (added, _)),) = movements(found.old, found.new)
    assert name == "a"
    assert moves.area.tolist() == [[0, 0, 1000, 16]]
    assert added.area.tolist() == [[1000, 0, 500, 16]]


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adagrad", "adam"])
def test_optimizer_state_moves_with_its_weights(optimizer):
    old, new = (plan({"a": whole(rank)}, model__optimizer=optimizer) for rank in (0, 1))
    assert diff(old, new).moved_bytes == 64_000 + optimizer_state_bytes(1000, 16, optimizer)
    other = plan({"a": whole(1)}, model__optimizer="adagrad" if optimizer == "adam" else "adam")
    assert diff(old, other).moved_bytes == 64_000


@pytest.mark.parametrize("seed", range(40))
def test_bytes_are_those_that_owners_of_single_rows_tell(seed):
    rng = np.random.default_rng(seed)
    tables: list[dict[str, dict]] = [{}, {}]
    expected = np.zeros((4, 4), dtype=int)
    for name in "abcdef":
        rows = int(rng.integers(8, 40))
        owners = []
        for of_plan in tables:
            if rng.random() < 0.5:
                rank = int(rng.integers(4))
                of_plan[name] = whole(rank, rows)
                owners.append(np.full(rows, rank))
            else:
                block = -(-rows // 4)
                starts = [min(rank * block, rows) for rank in range(5)]
                pieces = [(rank, starts[rank], 0, starts[rank + 1] - starts[rank], 16) for rank in range(4)]
                of_plan[name] = sharded("row_wise", pieces)
                owners.append(np.minimum(np.arange(rows) // block, 3))
        np.add.at(expected, tuple(owners), 16 * 4 + 4)
    np.fill_diagonal(expected, 0)
    found = diff(*map(plan, tables))
    assert {(source, target): size for source, target, size in found.flows} == {
        (int(a), int(b)): int(expected[a, b]) for a, b in np.argwhere(expected)
    }


TABLES = {name: whole(rank, rows) for rank, (name, rows) in enumerate([("a", 5000), ("b", 4000), ("c", 6000)])}
OTHER_SPEC = {"digests__spec": "sha256:another"}


def causes(old, new) -> list[tuple[list[str], bool]]:
    return [([share.table for share in device.of_time], device.of_spec) for device in diff(old, new).devices]


@pytest.mark.parametrize(("name", "value"), [("global_batch", 640), ("weights", "fp16"), ("optimizer", "sgd")])
def test_small_tables_are_not_blamed_for_what_the_spec_makes_every_table_cost(name, value):
    member = {f"model__{name}": value}
    old = plan({**TABLES, "small": whole(0, 10)}, ms=[1.0, 1.1, 0.9, 0.8])
    new = plan({**TABLES, "small": whole(1, 10)}, ms=[1.3, 1.4, 1.2, 1.1], **OTHER_SPEC, **member)
    assert causes(old, new) == [([], True)] * 4
    assert [setting.what.replace(" ", "_") for setting in diff(old, new).recosted] == [name]


def test_what_all_devices_take_longer_alike_is_for_the_spec():
    old = plan({**TABLES, "small": whole(0, 10)}, ms=[1.0, 1.1, 0.9, 0.8])
    new = plan({**TABLES, "small": whole(1, 10)}, ms=[1.18, 1.30, 1.06, 0.94], **OTHER_SPEC)
    assert causes(old, new) == [([], True)] * 4


def test_tables_that_move_or_are_new_explain_times_though_the_spec_is_another():
    old = plan(TABLES, ms=[1.0, 1.0, 1.0, 0.5])
    moved = plan({**TABLES, "c": whole(3, 6000)}, ms=[1.0, 1.0, 0.5, 1.0], **OTHER_SPEC)
    assert causes(old, moved) == [([], False), ([], False), (["c"], False), (["c"], False)]
    added = plan({**TABLES, "new": whole(3)}, ms=[1.2, 1.2, 1.2, 1.1], **OTHER_SPEC)
    assert causes(old, added) == [([], True), ([], True), ([], True), (["new"], False)]


def test_devices_are_explained_by_the_tables_that_came_and_went():
    old = plan({"wide": whole(0, 10, 128), "long": whole(1, 100_000, 16), "stays": whole(2)}, ms=(0.9, 0.3, 0.5, 0.1))
    new = plan(
        {"wide": whole(1, 10, 128), "long": whole(0, 100_000, 16), "stays": whole(2)},
        ms=(0.2, 0.8, 0.5, 0.1),
        memory=[9_000_000, 100, 10_000, 10_000],
    )
    first, second, third, _ = diff(old, new).devices
    assert (first.old_ms, first.new_ms, first.more_bytes) == (1.8, 0.4, 9_000_000 - 10_000)
    assert [share.table for share in first.of_time] == ["wide"]  # a lookup reads 112 columns less there
    assert [share.table for share in first.of_memory] == ["long"]
    assert [share.table for share in second.of_time] == ["wide"]
    assert [share.table for share in second.of_memory] == ["long"]
    assert (third.of_time, third.of_memory) == ((), ())


def test_a_device_that_is_no_more_has_no_new_time():
    found = diff(plan({"a": whole(3)}), plan({"a": whole(0)}, ms=(0.5, 0.5)))
    assert [(device.rank, device.new_ms, device.new_bytes) for device in found.devices[2:]] == [
        (2, None, None),
        (3, None, None),
    ]
    assert found.devices[3].more_ms is None


@pytest.mark.parametrize(
    ("members", "what", "comparable"),
    [
        ({"model__global_batch": 1024}, "global batch", True),
        ({"model__name": "other"}, "model", True),
        ({"model__module": "sparse.ebc"}, "module", True),
        ({"digests__spec": "sha256:99"}, "spec", True),
        ({"digests__profile": "sha256:99"}, "profile", False),
        ({"digests__cost": "torchrec"}, "costs", False),
        ({"digests__measurements": "sha256:99"}, "measurements", True),
        ({"digests__policy": "sha256:99"}, "policy", True),
        ({"tool__version": "9.9"}, "shardc", True),
        ({"tool__seed": 3}, "seed", True),
        ({"cluster__device": "a100-40gb"}, "cluster", True),
    ],
)
def test_changes_of_what_a_plan_is_for_are_told(members, what, comparable):
    found = diff(plan({"a": whole(0)}), plan({"a": whole(0)}, **copy.deepcopy(members)))
    assert [setting.what for setting in found.settings] == [what]
    assert (found.differ, found.comparable) == (True, comparable)


def test_tables_of_a_renamed_module_are_the_same_tables():
    old, new = plan({"a": whole(0)}), plan({"a": whole(0)})
    new = new.model_copy(update={"plan": {"sparse": new.plan["ebc"]}})
    found = diff(old, new)
    assert (found.shared, found.tables) == (1, ())
    assert found.settings == (("module", "ebc", "ebc with tables of sparse"),)


def test_plans_that_share_no_table_have_nothing_that_moves():
    found = diff(plan({"a": whole(0)}), plan({"b": whole(1)}))
    assert (found.shared, found.moved_bytes, found.added_bytes, len(found.tables)) == (0, 0, BYTES, 2)
