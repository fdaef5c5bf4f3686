import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import load_hardware
from shardc.memory import device_bytes_for, shard_bytes
from shardc.passes.lower import lower
from shardc.problem import Collective, Link, Optimizer, Problem, ShardingType, Shards, Site
from shardc.spec import Bins, load_spec, parse_size, parse_spec


def taken(shards: Shards, index: np.ndarray) -> Shards:
    """The shards at `index`, in that order."""
    return Shards(*(getattr(shards, name)[index] for name in Shards.__slots__))


HARDWARE = load_hardware("h100-80gb")


def spec_of(*tables: dict, devices: int = 8, model: dict | None = None, **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1000} | (model or {}),
        "cluster": {"device": "h100-80gb", "devices_per_host": devices} | cluster,
        "defaults": {"rows": 1000, "dim": 64, "pooling": 3.0},
        "table": [{"name": f"t{index}"} | table for index, table in enumerate(tables)],
    }


def lowered(*tables: dict, **settings) -> Problem:
    return lower(parse_spec(spec_of(*tables, **settings)), [HARDWARE])


def faults(*tables: dict, **settings) -> list[Diagnostic]:
    with pytest.raises(DiagnosticError) as caught:
        lowered(*tables, **settings)
    assert caught.value.exit_code == 1
    return list(caught.value.diagnostics)


@pytest.mark.parametrize("ranks", [[0], [0, 2]])
def test_ranks_with_too_little_memory_are_named_and_what_they_are_to_be_given_is_enough(ranks):
    table = {"rows": 400_000_000, "dim": 128, "sharding": ["row_wise"]}

    def with_(memory: str) -> dict:
        return {"devices": 4, "rank": [{"ranks": ranks, "memory": memory}]}

    (found,) = faults(table, **with_("5GiB"))
    named = "rank 0" if len(ranks) == 1 else "ranks 0, 2"
    assert f"and {named} ha" in found.message
    (enough,) = re.findall(rf"give {named} ([0-9.]+) GiB or more", found.help)
    lowered(table, **with_(f"{enough}GiB"))
    faults(table, **with_(f"{float(enough) - 0.1}GiB"))


def offered(problem: Problem, block: int = 0) -> list[tuple[str, int]]:
    return [(str(problem.option_type[o]), int(problem.option_units[o])) for o in problem.options_of(block)]


def shard(problem: Problem, block: int, type: str, units: int):
    option = problem.options_of(block)[offered(problem, block).index((type, units))]
    ((index,),) = {problem.unit_shards[unit] for unit in problem.units_of(option)}
    return {name: getattr(problem.shards, name)[index] for name in problem.shards.__slots__}


def widths(problem: Problem, option: int) -> list[int]:
    """The columns of each unit of an option, in their order."""
    return [int(problem.shards.dim[problem.unit_shards[unit][0]]) for unit in problem.units_of(option)]


# --- Options ----------------------------------------------------------------------------------------------------------


def test_every_type_offers_its_ways():
    assert offered(lowered({})) == [
        ("table_wise", 1),
        ("column_wise", 2),
        ("column_wise", 3),
        ("column_wise", 4),
        ("column_wise", 6),
        ("column_wise", 8),
        ("row_wise", 1),
        ("data_parallel", 1),
    ]


@pytest.mark.parametrize(
    ("dim", "devices", "pieces"),
    [
        (4, 8, []),
        (8, 8, [[4, 4]]),
        (12, 8, [[8, 4], [4, 4, 4]]),
        (48, 8, [[24, 24], [16, 16, 16], [12, 12, 12, 12], [8, 8, 8, 8, 8, 8]]),
        (64, 3, [[32, 32], [24, 20, 20]]),
        (20, 8, [[12, 8], [8, 8, 4], [4, 4, 4, 4, 4]]),
        (128, 4, [[64, 64], [44, 44, 40], [32, 32, 32, 32]]),
        (64, 1, []),
    ],
)
def test_column_pieces_are_as_equal_as_whole_vectors_of_four_allow(dim, devices, pieces):
    """The widest come first, and more pieces are offered only where that makes the widest narrower."""
    problem = lowered({"dim": dim, "sharding": ["table_wise", "column_wise"]}, devices=devices)
    assert [widths(problem, option) for option in problem.options_of(0)] == [[dim], *pieces]


@given(st.integers(1, 200).map(lambda n: 4 * n), st.integers(1, 40))
def test_column_widths_are_always_divisible_by_four(dim, devices):
    problem = lowered({"dim": dim}, devices=devices)
    for option in problem.options_of(0):
        if problem.option_type[option] is ShardingType.COLUMN_WISE:
            pieces = widths(problem, option)
            assert all(width % 4 == 0 for width in pieces)
            assert sum(pieces) == dim
            assert pieces == sorted(pieces, reverse=True)
            assert pieces[0] - pieces[-1] <= 4
            assert 2 <= len(pieces) == problem.option_units[option] <= devices


def test_only_allowed_types_are_offered():
    assert offered(lowered({"sharding": ["row_wise"]})) == [("row_wise", 1)]
    assert offered(lowered({"sharding": ["data_parallel", "table_wise"]})) == [("table_wise", 1), ("data_parallel", 1)]


def test_a_pin_leaves_no_more_pieces_than_ranks():
    problem = lowered({"pin": [1, 6]})
    assert offered(problem) == [("table_wise", 1), ("column_wise", 2)]
    assert np.flatnonzero(problem.allowed[0]).tolist() == [1, 6]
    assert ("row_wise", 1) in offered(lowered({"pin": [0, 1]}, devices=2))


def test_tables_kept_apart_are_not_spread_over_all_devices():
    problem = lowered({"apart": "hot"}, {"apart": "hot"}, {})
    assert {type for type, _ in offered(problem, 0)} == {"table_wise", "column_wise"}
    assert {type for type, _ in offered(problem, 2)} == {"table_wise", "column_wise", "row_wise", "data_parallel"}
    common = set(problem.labels[0]) & set(problem.labels[1])
    assert len(common) == 1
    assert not common & set(problem.labels[2])
    assert len({labels[0] for labels in problem.labels}) == 3


def test_a_group_is_one_block_of_whole_tables_on_the_ranks_that_all_allow():
    problem = lowered({"group": "g", "pin": [1, 2]}, {}, {"group": "g", "pin": [2, 3], "dim": 8, "apart": "hot"})
    assert problem.blocks == ((0, 2), (1,))
    assert offered(problem, 0) == [("table_wise", 1)]
    assert np.flatnonzero(problem.allowed[0]).tolist() == [2]
    (first,) = problem.options_of(0)
    assert problem.shards.dim[list(problem.unit_shards[problem.first_unit[first]])].tolist() == [64, 8]
    assert len(problem.labels[0]) == 2
    alone = [lowered({"dim": dim}) for dim in (64, 8)]
    assert problem.unit_memory[0, problem.first_unit[first]] == sum(int(one.unit_memory[0, 0]) for one in alone)


def test_a_group_of_one_is_a_table_like_any_other():
    assert offered(lowered({"group": "g"})) == offered(lowered({}))


def test_the_order_of_listing_has_no_influence():
    tables = [{"name": name, "rows": rows} for name, rows in (("b", 10), ("a", 2000), ("c", 30))]
    one, other = (lowered(*tables[::step]) for step in (1, -1))
    assert [table.name for table in one.tables] == ["a", "b", "c"]
    for field in dataclasses.fields(Problem):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "shards":
            assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__slots__)
        else:
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


# --- Several hosts ----------------------------------------------------------------------------------------------------

TWO_HOSTS = {"devices": 4, "hosts": 2}


def test_two_hosts_offer_rows_within_a_host_and_grids():
    problem = lowered({}, **TWO_HOSTS)
    assert offered(problem) == [
        ("table_wise", 1),
        *(("column_wise", count) for count in (2, 3, 4, 6, 8)),
        ("row_wise", 1),
        ("table_row_wise", 1),
        ("grid_shard", 2),
        ("data_parallel", 1),
    ]
    sites = {
        type: {Site(problem.option_site[o]) for o in problem.options_of(0) if problem.option_type[o] == type}
        for type in problem.option_type
    }
    assert sites == {
        "table_wise": {Site.DEVICE},
        "column_wise": {Site.DEVICE},
        "row_wise": {Site.CLUSTER},
        "table_row_wise": {Site.HOST},
        "grid_shard": {Site.HOST},
        "data_parallel": {Site.CLUSTER},
    }


def test_what_a_freer_type_can_do_as_well_is_left_to_that():
    assert offered(lowered({"sharding": ["table_column_wise"]}, **TWO_HOSTS)) == [
        ("table_column_wise", count) for count in (2, 3, 4)
    ]
    assert {type for type, _ in offered(lowered({"sharding": ["column_wise", "table_column_wise"]}, **TWO_HOSTS))} == {
        "column_wise"
    }
    rows = {"sharding": ["row_wise", "table_row_wise"]}
    assert offered(lowered(rows)) == [("row_wise", 1)]
    assert offered(lowered(rows, **TWO_HOSTS)) == [("row_wise", 1), ("table_row_wise", 1)]
    assert offered(lowered({"sharding": ["table_row_wise"]})) == [("table_row_wise", 1)]


def test_only_column_blocks_on_one_host_keep_to_one():
    problem = lowered({"sharding": ["table_column_wise"]}, {}, **TWO_HOSTS)
    one_host = {problem.option_type[o] for o in np.flatnonzero(problem.option_one_host)}
    assert one_host == {"table_column_wise"}


@pytest.mark.parametrize(("dim", "hosts", "pieces"), [(64, 2, [[32, 32]]), (20, 3, [[12, 8], [8, 8, 4]]), (4, 2, [])])
def test_a_grid_has_no_more_column_blocks_than_hosts(dim, hosts, pieces):
    problem = lowered({"dim": dim, "sharding": ["grid_shard", "table_wise"]}, devices=2, hosts=hosts)
    assert [widths(problem, option) for option in problem.options_of(0)] == [[dim], *pieces]


def test_blocks_of_rows_are_those_of_a_hosts_devices():
    problem = lowered({"rows": 1001, "pooling": 4.0}, **TWO_HOSTS)
    whole, rows, grid = (
        shard(problem, 0, *way) for way in (("table_wise", 1), ("table_row_wise", 1), ("grid_shard", 2))
    )
    assert (rows["rows"], rows["dim"], rows["bags"]) == (251, 64, 1000)  # ceil(1001 / 4)
    assert (grid["rows"], grid["dim"], grid["bags"]) == (251, 32, 1000)
    for piece in (rows, grid):
        assert piece["pooling"] == pytest.approx(4 * 251 / 1001)
        assert piece["unique"] == pytest.approx(whole["unique"] * 251 / 1001)


def test_rows_are_not_spread_where_a_device_would_get_none():
    types = ["table_wise", "row_wise", "table_row_wise", "grid_shard"]
    tiny, small = (lowered({"rows": rows, "sharding": types}, **TWO_HOSTS) for rows in (5, 7))
    assert offered(tiny) == [("table_wise", 1)]  # 2 + 2 + 1 + 0
    assert offered(small) == [("table_wise", 1), ("table_row_wise", 1), ("grid_shard", 2)]  # 2 + 2 + 2 + 1


def test_a_pin_leaves_whole_hosts_to_types_that_need_them():
    types = ["table_column_wise", "table_row_wise", "grid_shard", "row_wise"]

    def left(*ranks: int) -> list[tuple[str, int]]:
        return offered(lowered({"pin": list(ranks), "sharding": types}, **TWO_HOSTS))

    columns = [("table_column_wise", count) for count in (2, 3, 4)]
    assert left(4, 5, 6, 7) == [*columns, ("table_row_wise", 1)]
    assert left(0, 1, 2, 5, 6) == columns[:2]  # three of one host
    assert left(*range(8)) == [*columns, ("row_wise", 1), ("table_row_wise", 1), ("grid_shard", 2)]
    (found,) = faults({"pin": [0, 4], "sharding": types}, **TWO_HOSTS)
    assert (found.code, "pin" in found.message) == ("SH201", True)


def test_tables_kept_apart_may_have_a_host_each():
    problem = lowered({"apart": "hot"}, {"apart": "hot"}, **TWO_HOSTS)
    assert {type for type, _ in offered(problem)} == {"table_wise", "column_wise", "table_row_wise", "grid_shard"}


def test_hosts_and_ranks_have_limits_of_their_own():
    problem = lowered(
        {},
        devices=2,
        hosts=3,
        memory="1GB",
        reserve="10%",
        host=[{"hosts": [1], "memory": "2GB"}, {"hosts": [2], "reserve": "0.3GB"}],
        rank=[{"ranks": [0, 3], "memory": "0.5GB"}],
    )
    # A reserve that is a share is one of the rank's own memory.
    assert problem.cluster.memory_limit[0].tolist() == [
        450 * 10**6,
        9 * 10**8,
        18 * 10**8,
        450 * 10**6,
        7 * 10**8,
        7 * 10**8,
    ]
    assert problem.cluster.host_kind == (0, 1, 2)
    assert problem.cluster.kind.tolist() == [0, 0, 1, 1, 2, 2]


def test_hosts_that_say_the_same_are_of_one_kind():
    cluster = lowered({}, devices=1, hosts=3, memory="1GB", host=[{"hosts": [0, 2], "memory": "2GB"}]).cluster
    assert (len(cluster.kinds), cluster.host_kind) == (2, (0, 1, 0))
    cluster = lowered({}, devices=1, hosts=3, memory="1GB", host=[{"hosts": [0, 2], "memory": "1GB"}]).cluster
    assert (len(cluster.kinds), cluster.host_kind) == (1, (0, 0, 0))


def test_a_host_has_the_figures_of_its_own_device():
    spec = spec_of({}, devices=2, hosts=2, reserve="0%", host=[{"hosts": [0], "device": "a100-40gb"}])
    loaded = parse_spec(spec)
    assert loaded.spec.cluster.device_names == ("a100-40gb", "h100-80gb")
    cluster = lower(loaded, [load_hardware(name) for name in loaded.spec.cluster.device_names]).cluster
    assert [kind.device for kind in cluster.kinds] == ["a100-40gb", "h100-80gb"]
    assert cluster.memory_limit[0].tolist() == [40 * 10**9] * 2 + [80 * 10**9] * 2
    assert cluster.kinds[0].intra_host_bandwidth < cluster.kinds[1].intra_host_bandwidth == 450e9


def test_a_cluster_of_cpus_and_gpus_is_refused():
    loaded = parse_spec(spec_of({}, devices=2, hosts=2, host=[{"hosts": [1], "device": "cpu-epyc"}]))
    with pytest.raises(DiagnosticError) as caught:
        lower(loaded, [load_hardware("h100-80gb"), load_hardware("cpu-epyc")])
    (found,) = caught.value.diagnostics
    assert found.code == "SH112"
    assert "cpu" in found.message
    assert "cuda" in found.message


def test_what_fits_only_larger_hosts_or_ranks_is_offered():
    wide = {"rows": 10**6, "dim": 128}  # 512 MB of weights, 128 on each of four devices, 64 on each of eight
    small = {"devices": 4, "hosts": 2, "memory": "100MB", "reserve": "1MB"}
    by_rows = ("row_wise", 1)
    columns = [("column_wise", count) for count in (7, 8)]
    assert offered(lowered(wide, **small)) == [*columns, by_rows, ("grid_shard", 2)]
    larger = lowered(wide, **small, host=[{"hosts": [1], "memory": "200MB"}])
    assert offered(larger) == [  # of five pieces only four would find room
        *(("column_wise", count) for count in (3, 4, 6, 7, 8)),
        by_rows,
        ("table_row_wise", 1),
        ("grid_shard", 2),
    ]
    # One large device takes the table whole; a unit on a whole host is as large as the least device there allows.
    one = lowered(wide, **small, rank=[{"ranks": [5], "memory": "1GB"}])
    assert offered(one)[:2] == [("table_wise", 1), columns[0]]  # of two halves one would be too large
    assert ("table_row_wise", 1) not in offered(one)
    # One that is small rules out what is on every device.
    less = lowered(wide, **small, rank=[{"ranks": [5], "memory": "10MB"}])
    assert by_rows not in offered(less)
    assert columns[0] in offered(less)  # seven pieces, on all others


# --- Shards -----------------------------------------------------------------------------------------------------------


def test_adam_on_cpus_is_refused():
    loaded = parse_spec(spec_of({}, model={"optimizer": "adam"}, device="cpu-epyc"))
    with pytest.raises(DiagnosticError) as caught:
        lower(loaded, [load_hardware("cpu-epyc")])
    (found,) = caught.value.diagnostics
    assert (found.code, "rowwise_adagrad" in found.help) == ("SH114", True)


def test_shards_are_what_each_device_gets():
    problem = lowered({"rows": 1001, "dim": 64, "pooling": 4.0}, model={"weights": "fp16", "optimizer": "adam"})
    whole = shard(problem, 0, "table_wise", 1)
    assert (whole["rows"], whole["dim"], whole["pooling"], whole["bags"]) == (1001, 64, 4.0, 1000)
    assert (whole["weight_bytes"], whole["output_bytes"]) == (2, 4)
    assert list(Optimizer)[whole["optimizer"]] is Optimizer.ADAM
    columns = shard(problem, 0, "column_wise", 4)
    assert (columns["rows"], columns["dim"], columns["pooling"], columns["bags"]) == (1001, 16, 4.0, 1000)
    assert columns["unique"] == whole["unique"]
    rows = shard(problem, 0, "row_wise", 1)
    assert (rows["rows"], rows["dim"], rows["bags"]) == (126, 64, 1000)  # ceil(1001 / 8)
    assert rows["pooling"] == pytest.approx(4 * 126 / 1001)
    assert rows["unique"] == pytest.approx(whole["unique"] * 126 / 1001)
    replica = shard(problem, 0, "data_parallel", 1)
    assert (replica["rows"], replica["dim"], replica["pooling"], replica["bags"]) == (1001, 64, 4.0, 125)
    assert replica["unique"] < whole["unique"]
    assert [list(ShardingType)[piece["type"]] for piece in (whole, columns, rows, replica)] == [
        ShardingType.TABLE_WISE,
        ShardingType.COLUMN_WISE,
        ShardingType.ROW_WISE,
        ShardingType.DATA_PARALLEL,
    ]


def test_measured_bins_replace_the_index_file():
    spec = spec_of({"access": {"indices": "x.pt"}})
    bins = Bins((0.25, 0.75, *[0.0] * 15))
    problem = lower(parse_spec(spec), [HARDWARE], {"t0": bins})
    assert problem.shards.bins == pytest.approx(np.tile(bins.shares, (len(problem.shards), 1)))


def test_the_cluster_is_the_profiles_unless_the_spec_says_otherwise():
    usual = lowered({}, devices=4, hosts=2, reserve="10%").cluster
    assert (usual.hosts, usual.devices_per_host, usual.devices) == (2, 4, 8)
    (kind,) = usual.kinds
    assert (kind.memory_bytes, kind.reserve_bytes) == (80 * 10**9, 8 * 10**9)
    assert (kind.intra_host_bandwidth, kind.inter_host_bandwidth) == (450e9, 50e9)
    assert usual.memory_limit[0].tolist() == [72 * 10**9] * 8
    own = lowered(
        {}, memory="1GiB", reserve="24MiB", intra_host_bandwidth="7GB/s", inter_host_bandwidth="2GB/s"
    ).cluster
    assert own.memory_limit[0].tolist() == [1000 * 2**20] * 8
    assert (own.kinds[0].intra_host_bandwidth, own.kinds[0].inter_host_bandwidth) == (7e9, 2e9)


def test_a_bandwidth_of_the_spec_replaces_measured_ones_but_not_their_latencies():
    measured = dataclasses.replace(
        HARDWARE,
        intra_host={Collective.ALL_TO_ALL: Link(0.03, 3e9), Collective.ALL_REDUCE: Link(0.04, 4e9)},
        inter_host={Collective.ALL_TO_ALL: Link(0.05, 1e9)},
    )
    loaded = parse_spec(spec_of({}, intra_host_bandwidth="7GB/s"))
    (usual,), (own,) = (lower(spec, [measured]).cluster.kinds for spec in (parse_spec(spec_of({})), loaded))
    assert (usual.intra_host, usual.inter_host) == (measured.intra_host, measured.inter_host)
    assert own.within_host(Collective.ALL_TO_ALL) == Link(0.03, 7e9)
    assert own.within_host(Collective.ALL_REDUCE) == Link(0.04, 7e9)
    assert own.within_host(Collective.ALL_GATHER) == Link(own.latency_ms, 7e9)
    assert own.between_hosts(Collective.ALL_TO_ALL) == Link(0.05, 1e9)
    assert own.between_hosts(Collective.ALL_GATHER) == Link(own.latency_ms + own.network_latency_ms, 50e9)


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_counted_by_the_one_function():
    problem = lowered({"rows": 1001}, model={"weights": "bf16", "outputs": "fp16", "optimizer": "adagrad"})
    common = {"weights": "bf16", "outputs": "fp16", "optimizer": "adagrad"}
    expected = {
        ("table_wise", 1): shard_bytes(1001, 64, bags=1000, pooling=3.0, **common),
        ("column_wise", 2): shard_bytes(1001, 32, bags=1000, pooling=3.0, **common),
        ("row_wise", 1): shard_bytes(126, 64, bags=1000, pooling=3.0 * 126 / 1001, **common),
        ("data_parallel", 1): shard_bytes(1001, 64, bags=125, pooling=3.0, dense=True, **common),
    }
    found = dict(zip(offered(problem), problem.unit_memory[0, problem.first_unit].tolist(), strict=True))
    assert {key: found[key] for key in expected} == expected


def test_bytes_of_a_shard_are_those_of_its_parts():
    count = {"weights": "fp32", "outputs": "fp32", "bags": 10, "pooling": 2.5}
    by_hand = {"sgd": 0, "rowwise_adagrad": 100, "adagrad": 800, "adam": 1600}
    for optimizer, values in by_hand.items():
        # Weights and state, 25 indices and 10 offsets, outputs and their gradient.
        assert shard_bytes(100, 8, optimizer=optimizer, **count) == 4 * (800 + values) + 8 * 35 + 2 * 4 * 80
    dense = shard_bytes(100, 8, optimizer="sgd", dense=True, **count)
    assert dense == shard_bytes(100, 8, optimizer="sgd", **count) + 3200


def test_options_that_fit_no_device_are_left_out():
    wide = {"rows": 10**6, "dim": 128}  # 512 MB of weights
    assert offered(lowered(wide, memory="200MB", reserve="1MB")) == [
        ("column_wise", 3),
        ("column_wise", 4),
        ("column_wise", 5),
        ("column_wise", 6),
        ("column_wise", 7),
        ("column_wise", 8),
        ("row_wise", 1),
    ]


# --- What fits nowhere ------------------------------------------------------------------------------------------------


def enlarged(help: str) -> str:
    """The device memory that a help asks for, as a spec takes it."""
    (size,) = re.findall(r"device ([\d.]+ [KMGT]?i?B) or more", help)
    assert parse_size(size)
    return size


@pytest.mark.parametrize("reserve", ["0%", "15%", "90%", "300MB"])
@pytest.mark.parametrize("rows", [123_457, 1_234_567, 12_345_678])
def test_a_table_that_fits_nowhere_is_named_with_the_memory_that_suffices(rows, reserve):
    table = {"rows": rows, "sharding": ["table_wise"]}
    (found,) = faults({}, table, memory="310MB" if reserve == "300MB" else "20MB", reserve=reserve)
    assert found.code == "SH201"
    assert '"t1"' in found.message
    lowered({}, table, memory=enlarged(found.help), reserve=reserve)


def test_a_sharding_type_that_would_help_is_named_and_does():
    table = {"rows": 10**6, "sharding": ["table_wise"]}
    (found,) = faults(table, memory="100MB")
    (type,) = re.findall(r"allow (\w+)", found.help)
    lowered(table | {"sharding": ["table_wise", type]}, memory="100MB")


def test_advice_about_a_pinned_table_can_be_followed():
    table = {"rows": 10**6, "sharding": ["table_wise"], "pin": [0, 1, 2, 3]}
    (found,) = faults(table, memory="100MB")
    assert "allow column_wise" in found.help  # not row_wise, which the pin rules out
    assert "pin" not in found.help
    lowered(table | {"sharding": ["column_wise"]}, memory="100MB")
    (found,) = faults(table | {"pin": [0]}, memory="100MB")
    (type,) = re.findall(r"allow (\w+) and remove the pin", found.help)
    lowered({"rows": 10**6, "sharding": [type]}, memory="100MB")


def test_where_no_sharding_helps_only_memory_is_asked_for():
    (found,) = faults({"rows": 10**9}, memory="100MB")
    assert "allow" not in found.help
    assert enlarged(found.help)


def test_every_table_that_fits_nowhere_is_reported_where_it_stands(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text(
        """format = 1
[model]
name = "m"
module = "ebc"
global_batch = 8
[cluster]
device = "h100-80gb"
devices_per_host = 2
memory = "1MB"
[[table]]
name = "big"
rows = 1_000_000
dim = 4
pooling = 1
[[table]]
name = "bigger"
rows = 2_000_000
dim = 4
pooling = 1
[[table]]
name = "small"
rows = 10
dim = 4
pooling = 1
"""
    )
    with pytest.raises(DiagnosticError) as caught:
        lower(load_spec(path), [HARDWARE])
    found = caught.value.diagnostics
    assert [d.code for d in found] == ["SH201", "SH201"]
    assert [d.location.line for d in found if d.location] == [12, 17]
    assert "1_000_000" in found[0].location.text


def test_a_group_that_fits_nowhere_is_named_as_a_group():
    half = {"rows": 150_000, "group": "users"}
    lowered({"rows": 150_000}, memory="60MB", reserve="1%")
    (found,) = faults(half, half, memory="60MB", reserve="1%")
    assert 'group "users"' in found.message
    assert "take tables out of the group" in found.help


@pytest.mark.parametrize(
    ("memory", "help", "change"),
    [
        ("70MB", "use 4 hosts", {"hosts": 4}),
        ("100MB", 'keep less state: optimizer = "rowwise_adagrad"', {"model": {"optimizer": "rowwise_adagrad"}}),
        ("165MB", 'halve the weights: weights = "fp16"', {"model": {"optimizer": "adam", "weights": "fp16"}}),
    ],
)
def test_what_is_offered_for_a_table_that_fits_nowhere_helps(memory, help, change):
    table = {"rows": 1_000_000, "dim": 16, "sharding": ["row_wise"]}  # 64 MB of weights, 128 MB of Adam's state
    settings = {"devices": 1, "memory": memory, "reserve": "0%"}
    (found,) = faults(table, **settings, model={"optimizer": "adam"})
    assert help in found.help.split("; or ")
    lowered(table, **settings | {"model": {"optimizer": "adam"}} | change)


def test_a_pin_that_no_offered_type_can_keep_says_so():
    (found,) = faults({"dim": 20, "sharding": ["column_wise"], "pin": [1]})
    assert (found.code, "pin" in found.message, "pin" in found.help) == ("SH201", True, True)


def test_a_table_that_cannot_be_split_as_asked_says_so():
    (found,) = faults({"dim": 4, "sharding": ["column_wise"]})
    assert (found.code, "pin" in found.message, "pin" in found.help) == ("SH201", False, False)
    assert "allow table_wise" in found.help


@given(
    tables=st.integers(1, 10**13),
    memory=st.integers(10**3, 10**12),
    share=st.floats(0, 0.9),
    percent=st.booleans(),
)
def test_the_memory_asked_for_leaves_enough_beside_the_reserve(tables, memory, share, percent):
    reserve = round(share * memory)
    asked = device_bytes_for(tables, memory, reserve)
    left = asked - (round(share * asked) if percent else reserve)
    assert left >= tables


def test_each_feature_of_a_table_is_pooled_into_an_output_of_its_own():
    one, two = ({"name": "t", "rows": 1000, "pooling": 6.0, "features": features} for features in (["a"], ["a", "b"]))
    shards = [taken(lowered(table).shards, np.array([0])) for table in (one, two)]
    assert shards[0].lookups == shards[1].lookups
    assert 2 * shards[0].bags == shards[1].bags


# --- Kernels ----------------------------------------------------------------------------------------------------------

BOTH = {"kernels": ["fused", "fused_uvm_caching"]}
ONLY = {"kernels": ["fused_uvm_caching"]}


def test_every_way_to_shard_a_table_is_offered_with_a_cache_too_but_replicas():
    plain = offered(lowered({}))
    problem = lowered(BOTH | {"cache_ratio": 0.3}, host_memory="1TiB")
    shares = [problem.cached_of(option)[0] for option in problem.options_of(0)]
    of_share = {
        share: [way for way, found in zip(offered(problem), shares, strict=True) if found == share]
        for share in set(shares)
    }
    assert of_share == {1.0: plain, 0.3: [way for way in plain if way[0] != "data_parallel"]}
    assert offered(problem)[: len(plain)] == plain  # those on devices come first
    only = lowered(ONLY, host_memory="1TiB")
    assert offered(only) == of_share[0.3]
    assert {only.cached_of(option)[0] for option in only.options_of(0)} == {0.2}


def test_units_take_memory_of_the_device_and_of_its_host():
    problem = lowered(ONLY | {"sharding": ["row_wise"], "rows": 8000}, host_memory="1TiB", model={"optimizer": "adam"})
    assert problem.unit_memory.tolist() == [
        [
            int(
                shard_bytes(
                    1000,
                    64,
                    weights="fp32",
                    outputs="fp32",
                    optimizer="adam",
                    bags=1000,
                    pooling=3.0 / 8,
                    cached=0.2,
                )
            )
        ],
        [1000 * 64 * 4 * 3],
    ]
    assert problem.cluster.memory_limit[1].tolist() == [2**40 // 8] * 8
    assert len(lowered({}, host_memory="1TiB").cluster.memory_limit) == 1  # no table uses it


def test_hosts_may_have_different_memory_for_tables():
    host = [{"hosts": [1], "host_memory": "100GB"}]
    problem = lowered(BOTH, devices=2, hosts=3, host_memory="1TB", host=host)
    assert problem.cluster.memory_limit[1].tolist() == [500 * 10**9] * 2 + [50 * 10**9] * 2 + [500 * 10**9] * 2
    problem = lowered(BOTH, devices=2, hosts=2, host=host)
    assert problem.cluster.memory_limit[1].tolist() == [0] * 2 + [50 * 10**9] * 2


def test_a_group_is_on_the_device_as_far_as_it_may_be_or_cached_as_far_as_it_may_be():
    group = {"group": "g", "sharding": ["table_wise"]}
    problem = lowered(group | BOTH, group, group | ONLY, host_memory="1TiB")
    assert [problem.cached_of(option) for option in problem.options_of(0)] == [(1.0, 1.0, 0.2), (0.2, 1.0, 0.2)]
    alike = lowered(group, group | ONLY, host_memory="1TiB")
    assert [alike.cached_of(option) for option in alike.options_of(0)] == [(1.0, 0.2)]


def test_cpus_have_no_cache():
    loaded = parse_spec(spec_of(BOTH, device="cpu-epyc", host_memory="1TiB"))
    with pytest.raises(DiagnosticError, match='SH113 table "t0" may be cached on a device'):
        lower(loaded, [load_hardware("cpu-epyc")])


def test_a_table_too_large_for_the_host_is_told_what_it_needs():
    table = ONLY | {"rows": 10**9, "sharding": ["table_wise"]}  # 256 GB
    (found,) = faults(table, host_memory="1TB", devices=8)
    assert found.code == "SH201"
    assert "fits in no host" in found.message
    (enough,) = re.findall(r"give a host ([\d.]+ [KMGT]?i?B) of host_memory", found.help)
    lowered(table, host_memory=enough, devices=8)


def test_a_cache_is_suggested_where_it_would_help():
    table = {"rows": 10**9, "sharding": ["table_wise"]}
    (found,) = faults(table, devices=1)
    (enough,) = re.findall(
        r'kernels = \["fused", "fused_uvm_caching"\], and host_memory of ([\d.]+ \w+) or', found.help
    )
    lowered(table | BOTH, devices=1, host_memory=enough)
    (found,) = faults({"rows": 10**11}, devices=1)  # the cache alone is too large
    assert "cached" not in found.help


def test_a_type_without_a_way_is_told_with_the_reason():
    reasons = [
        ({"dim": 4, "sharding": ["column_wise"]}, {}, "column_wise cuts no column block narrower than 4"),
        ({"rows": 5, "sharding": ["row_wise"]}, {}, "row_wise would leave one of 8 devices without any of the 5 rows"),
        ({"sharding": ["column_wise"]}, {"devices": 1}, "column_wise needs several devices"),
        ({"sharding": ["grid_shard"]}, {}, "grid_shard needs several hosts"),
        ({"sharding": ["column_wise"], "pin": [1]}, {}, "column_wise needs 2 devices, and its pin leaves 1"),
        (
            {"sharding": ["table_row_wise"], "pin": [1, 9]},
            {"hosts": 2},
            "table_row_wise needs all devices of 1 host, and its pin leaves 2",
        ),
    ]
    for table, settings, reason in reasons:
        (found,) = faults(table, **settings)
        assert reason in found.message
    (found,) = faults({"rows": 5, "dim": 4, "sharding": ["row_wise", "column_wise"]})
    assert "column_wise cuts" in found.message
    assert "row_wise would leave" in found.message


def test_where_some_devices_are_too_small_they_are_named():
    # A row-wise table needs all devices, a column-wise one of 8 vectors as many as there are.
    row_wise = {"rows": 1_000_000_000, "dim": 64, "sharding": ["row_wise"]}
    for table in (row_wise, {"rows": 4_000_000_000, "dim": 32, "sharding": ["column_wise"]}):

        def settings(memory: str) -> dict:
            return {"memory": "79GiB", "reserve": "0%", "rank": [{"ranks": [7], "memory": memory}]}

        (found,) = faults(table, **settings("9GiB"))
        assert found.code == "SH201"
        assert "rank 7 has 9 GiB for tables" in found.message
        lowered(table, **settings(re.search(r"give rank 7 ([\d.]+ GiB) or more$", found.help)[1].replace(" ", "")))
    hosts = {"hosts": 2, "host": [{"hosts": [1], "memory": "9GiB"}]}
    (found,) = faults(row_wise, memory="70GiB", devices=4, **hosts)
    assert "ranks 4, 5, 6, 7 have " in found.message
    assert "give ranks 4, 5, 6, 7 " in found.help
