"""Why nothing fits: claims of proof against brute force, and every change that is offered tried."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from brute_force import best_of_all, random_spec, random_tables
from hypothesis import given, settings
from hypothesis import strategies as st

import shardc
from shardc import pipeline
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.judge import Judge
from shardc.passes import infeasible
from shardc.passes.infeasible import Origin, find_cause
from shardc.passes.lower import lower
from shardc.passes.place import place
from shardc.passes.profile import profile
from shardc.spec import LoadedSpec, parse_size, parse_spec


def origin_of(spec: dict) -> Origin:
    loaded = parse_spec(spec)
    return Origin(loaded, pipeline.devices_of(loaded), {})


def tight_spec(seed: int) -> dict:
    """A small random spec with about as much memory as its tables take, some of which keep whole, or to few ranks."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng) | {"table": random_tables(rng, int(rng.integers(3, 7)), devices=2)}
    sizes = []
    for table in spec["table"]:
        table |= {"rows": int(np.exp(rng.uniform(10.5, 11.5))), "dim": int(rng.choice([16, 32, 64]))}
        if rng.random() < 0.85:
            table["sharding"] = ["table_wise"]
        sizes.append(4.0 * table["rows"] * table["dim"])
    spec["model"] |= {"global_batch": 100, "optimizer": "sgd"}
    devices = spec["cluster"]["hosts"] * spec["cluster"]["devices_per_host"]
    memory = max(1.05 * max(sizes), sum(sizes) / devices * rng.uniform(0.7, 1.3))
    spec["cluster"] |= {"memory": f"{int(memory)}B"}
    spec["cluster"].pop("rank", None)
    for host in spec["cluster"].get("host", ()):
        host.pop("memory", None)
    spec["compile"] = {"effort": "fast"}
    return spec


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_what_brute_force_cannot_place_is_refused_and_no_claim_is_wrong(seed):
    spec = tight_spec(seed)
    try:
        origin = origin_of(spec)
        problem = lower(origin.loaded, origin.hardware, {})
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} <= {"SH106", "SH201"}
        return
    best = best_of_all(Judge(problem, profile(problem, origin.hardware, origin.loaded).cost))
    if best is None:
        return
    cause = find_cause(problem)
    if best[1] is not None:
        assert cause is None
    try:
        plan = pipeline.run(origin.loaded).plan
    except DiagnosticError as error:
        (found,) = error.diagnostics
        assert found.code in ("SH202", "SH203")
        assert "HiGHS holds" not in found.message or best[1] is None
        assert found.help
    else:
        assert best[1] is not None
        assert plan.score.step_time_ms >= best[0] * (1 - 1e-9)


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_change_that_is_offered_compiles(seed):
    offered: list[infeasible.Change] = []

    def spy(*given, **more):
        offered.extend(found := original(*given, **more))
        return found

    original = infeasible.changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infeasible, "changes", spy)
        try:
            pipeline.run(parse_spec(tight_spec(seed)))
        except DiagnosticError:
            for change in offered:
                pipeline.run(change.loaded)


def smaller(change: infeasible.Change, before: LoadedSpec) -> Iterator[LoadedSpec]:
    """The spec with a step less of what a change offers: a table, a device, a host, or some percents of memory."""
    changed, cluster = change.loaded, change.loaded.spec.cluster

    def with_cluster(**fields: object) -> LoadedSpec:
        return replace(changed, spec=changed.spec.model_copy(update={"cluster": cluster.model_copy(update=fields)}))

    for field in ("hosts", "devices_per_host"):
        if (number := getattr(cluster, field)) > getattr(before.spec.cluster, field) + 1:
            yield with_cluster(**{field: number - 1})
    for field in ("memory", "host_memory"):
        now, then = (parse_size(getattr(c, field) or "") or 0 for c in (before.spec.cluster, cluster))
        if then * 0.96 > now and not cluster.host:
            yield with_cluster(**{field: f"{int(then * 0.96)}B"})
    others = [(own, other) for own, other in zip(before.tables, changed.tables, strict=True) if own != other]
    for own, _ in others[: len(others) if len(others) > 1 else 0]:
        yield replace(changed, tables=tuple(own if t.name == own.name else t for t in changed.tables))


@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_of_every_change_that_is_offered_a_step_less_does_not_do(seed):
    offered: list[infeasible.Change] = []

    def spy(*given, **more):
        offered.extend(found := original(*given, **more))
        return found

    original = infeasible.changes
    try:
        loaded = parse_spec(tight_spec(seed))
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} == {"SH106"}
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infeasible, "changes", spy)
        with contextlib.suppress(DiagnosticError):
            pipeline.run(loaded)
        patch.setattr(infeasible, "changes", lambda *given, **more: [])
        for change in offered:
            for less in smaller(change, loaded):
                with pytest.raises(DiagnosticError):
                    pipeline.run(less)


# --- What people see --------------------------------------------------------------------------------------------------

HEAD = """format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 4
memory = "{memory}"
reserve = "0%"
[defaults]
dim = 64
pooling = 1
sharding = ["table_wise"]
"""


def refused(tmp_path, memory: str, *tables: str) -> Diagnostic:
    path = tmp_path / "model.toml"
    path.write_text(HEAD.format(memory=memory) + "".join(f"[[table]]\n{table}\n" for table in tables))
    with pytest.raises(DiagnosticError) as caught:
        shardc.compile(path)
    (found,) = caught.value.diagnostics
    assert caught.value.exit_code == 1
    return found


def test_tables_pinned_to_a_full_rank_are_named_with_their_places_and_a_pin_to_remove(tmp_path):
    pinned = [f'name = "{name}"\nrows = 1_000_000\npin = [2]' for name in "abc"]
    found = refused(tmp_path, "600MB", *pinned, 'name = "d"\nrows = 10')
    assert found.code == "SH203"
    assert "rank 2" in found.message
    assert all(name in found.message.rpartition(": ")[2].split(", ") for name in "abc")
    assert found.location.text == "pin = [2]"
    assert found.location.line == 18
    assert [note.partition(" is at ")[0] for note in found.notes] == ['table "b"', 'table "c"']
    assert found.notes[0].endswith("model.toml:22:7")
    assert 'remove the pin of table "a"' in found.help


def test_too_many_large_tables_are_counted_and_one_is_split(tmp_path):
    """Five tables of 256 MB on four devices of 400 MB."""
    found = refused(tmp_path, "400MB", *(f'name = "t{i}"\nrows = 1_000_000' for i in range(5)))
    assert found.code == "SH203"
    assert "pieces of half a device's" in found.message
    assert "too many for the 4 devices" in found.message
    assert found.help.startswith('allow column_wise for "t0"; or let "t0" be cached: ')
    assert "; or give each device " in found.help
    assert found.help.endswith("; or use 5 devices")


def test_pieces_kept_apart_on_too_few_devices_are_refused_however_much_memory_there_is(tmp_path):
    """Three tables that are each cut in two."""
    found = refused(
        tmp_path, "80GB", *(f'name = "t{i}"\nrows = 1000\napart = "hot"\nsharding = ["column_wise"]' for i in range(3))
    )
    assert found.message == "tables that are kept apart need 6 devices, and may go to 4: t0, t1, t2"
    assert found.help == 'take table "t0" out of the set "hot" that is kept apart; or use 6 devices'


def test_what_no_counting_proves_highs_is_asked_about(tmp_path, monkeypatch):
    """Eleven tables that fill four devices to 98 %, and that no counting argument tells apart from such as fit."""
    pytest.importorskip("highspy")
    sizes = [8, 8, 6, 5, 4, 3, 3, 3, 3, 3, 2]
    tables = [f'name = "t{i:02}"\nrows = {size}00_000' for i, size in enumerate(sizes)]
    found = refused(tmp_path, "318MB", *tables)
    assert found.message.startswith("no placement was found that fits, and HiGHS holds that there is none: ")
    monkeypatch.setitem(sys.modules, "highspy", None)
    without = refused(tmp_path, "318MB", *tables)
    assert without.message.startswith("no placement was found that fits: ")
    assert (without.code, without.help) == (found.code, found.help)


def test_pieces_that_leave_no_room_for_each_other(tmp_path):
    """Four of 0.65 and two of 0.4 of a device, on four: all together they take 85 % of the memory."""
    rows = [650_000] * 4 + [400_000] * 2
    tables = [f'name = "t{i}"\nrows = {count}' for i, count in enumerate(rows)]
    found = refused(tmp_path, "262MB", *tables)
    assert found.code == "SH203"
    assert "pieces" in found.message
    assert "for the 4 devices" in found.message or "onto the 4 devices" in found.message


def test_a_problem_too_large_for_highs_is_not_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr("shardc.passes.place._FIT_PLACES", 10)
    sizes = [8, 8, 6, 5, 4, 3, 3, 3, 3, 3, 2]
    found = refused(tmp_path, "318MB", *(f'name = "t{i:02}"\nrows = {size}00_000' for i, size in enumerate(sizes)))
    assert found.message.startswith("no placement was found that fits: ")


def test_replicas_that_one_small_rank_cannot_hold_together(tmp_path):
    path = tmp_path / "model.toml"
    tables = (f'[[table]]\nname = "{name}"\nrows = 500_000\nsharding = ["data_parallel"]\n' for name in "abc")
    small = '[[cluster.rank]]\nranks = [2]\nmemory = "700MB"\n'
    path.write_text(HEAD.format(memory="2GB").replace("[defaults]", small + "[defaults]") + "".join(tables))
    with pytest.raises(DiagnosticError) as caught:
        shardc.compile(path)
    (found,) = caught.value.diagnostics
    assert found.code == "SH203"
    assert found.message == "tables that only go onto all devices need more memory than rank 2 has: a, b, c"
    assert "give rank 2 as much memory as the others have" in found.help


def test_hosts_too_small_for_what_is_cached_are_told_what_would_do(tmp_path):
    """Three tables of 256 MB that have to be in the memory of one of two hosts, of which each has 400 MB."""
    path, own = tmp_path / "model.toml", 'kernels = ["fused_uvm_caching"]\ncache_ratio = 0.1\n'
    hosts = 'devices_per_host = 1\nhosts = 2\nhost_memory = "400MB"'
    tables = (f'[[table]]\nname = "{name}"\nrows = 1_000_000\n{own}' for name in "abc")
    path.write_text(HEAD.format(memory="2GB").replace("devices_per_host = 4", hosts) + "".join(tables))
    with pytest.raises(DiagnosticError) as caught:
        shardc.compile(path)
    (found,) = caught.value.diagnostics
    assert found.code == "SH203"
    assert "a device has 381 MiB of its host's memory for tables" in found.message
    assert "give each host 489 MiB of host_memory or more" in found.help
    # The same where nothing can be tried, for want of the spec.
    loaded = pipeline.load(path)
    problem = lower(loaded, pipeline.devices_of(loaded))
    with pytest.raises(DiagnosticError, match="of its host's memory") as caught:
        place(problem, profile(problem, pipeline.devices_of(loaded), loaded).cost, policy=None)
    assert caught.value.diagnostics[0].help.startswith("give each host 489 MiB of host_memory or more; or ")
    path.write_text(path.read_text().replace("400MB", "489MiB"))
    assert set(shardc.compile(path).plan["ebc"]) == set("abc")
