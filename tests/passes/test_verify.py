"""Each rule is broken in turn by editing a valid plan; the finding has to name it."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.diagnostics import Diagnostic
from shardc.memory import shard_bytes
from shardc.passes.verify import device_memory, verify, verify_alone
from shardc.plan import Plan
from shardc.problem import Cluster, HostKind
from shardc.spec import LoadedSpec, load_spec, parse_spec

BATCH = 64
LIMIT = 10_000_000

SPEC = """\
format = 1

[model]
name = "ranker"
module = "ebc"
global_batch = 64
optimizer = "rowwise_adagrad"

[cluster]
device = "gpu"
hosts = 2
devices_per_host = 2

[defaults]
dim = 16
pooling = 2

[[table]]
name = "ads"
rows = 1000
pin = [1, 2]

[[table]]
name = "country"
rows = 200
sharding = ["data_parallel", "row_wise"]

[[table]]
name = "item"
rows = 5000
dim = 64
apart = "hot"

[[table]]
name = "page"
rows = 10
pooling = 0.7

[[table]]
name = "query"
rows = 7

[[table]]
name = "user"
rows = 3000
group = "person"
apart = "hot"

[[table]]
name = "visit"
rows = 400
group = "person"
"""

KIND = HostKind(
    device="gpu",
    memory_bytes=LIMIT + 1000,
    reserve_bytes=1000,
    intra_host_bandwidth=1e9,
    inter_host_bandwidth=1e9,
    latency_ms=0.01,
)
CLUSTER = Cluster(device_type="cuda", devices_per_host=2, kinds=(KIND,), host_kind=(0, 0))


def placed(sharding_type: str, *shards: tuple[int, tuple[int, int], tuple[int, int]]) -> dict:
    return {
        "sharding_type": sharding_type,
        "compute_kernel": "fused",
        "ranks": [rank for rank, _, _ in shards],
        "shards": [
            {"shard_offsets": list(offsets), "shard_sizes": list(sizes), "placement": f"rank:{rank}/cuda:{rank % 2}"}
            for rank, offsets, sizes in shards
        ],
    }


def replicas(rows: int = 200, dim: int = 16) -> dict:
    shape = [rows, dim]
    return {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": [0, 1, 2, 3], "shape": shape}


def document() -> dict:
    return {
        "format": 1,
        "model": {
            "name": "ranker",
            "module": "ebc",
            "global_batch": BATCH,
            "optimizer": "rowwise_adagrad",
            "weights": "fp32",
            "outputs": "fp32",
        },
        "cluster": {"device": "gpu", "hosts": 2, "devices_per_host": 2},
        "digests": {"spec": "", "profile": None},
        "tool": {"version": "0", "seed": 0},
        "plan": {
            "ebc": {
                "ads": placed("table_wise", (2, (0, 0), (1000, 16))),
                "country": replicas(),
                "item": placed("column_wise", (3, (0, 0), (5000, 32)), (0, (0, 32), (5000, 32))),
                # What TorchRec itself writes for 10 and for 7 rows on four ranks: a short last block.
                "page": placed(
                    "row_wise", (0, (0, 0), (3, 16)), (1, (3, 0), (3, 16)), (2, (6, 0), (3, 16)), (3, (9, 0), (1, 16))
                ),
                "query": placed(
                    "row_wise", (0, (0, 0), (2, 16)), (1, (2, 0), (2, 16)), (2, (4, 0), (2, 16)), (3, (6, 0), (1, 16))
                ),
                "user": placed("table_wise", (1, (0, 0), (3000, 16))),
                "visit": placed("table_wise", (1, (0, 0), (400, 16))),
            }
        },
        "score": {
            "step_time_ms": 1.0,
            "phases": {},
            "balance": 1.0,
            "devices": [
                {
                    "rank": rank,
                    "forward_ms": None,
                    "backward_ms": None,
                    "memory_bytes": size,
                    "memory_limit_bytes": LIMIT,
                }
                for rank, size in enumerate(expected_memory())
            ],
        },
        "bound": None,
        "chosen": {"strategy": "by hand", "reason": "only"},
        "candidates": [],
    }


def expected_memory() -> list[int]:
    def size(rows: int, dim: int, pooling: float, *, batch: int = BATCH, dense: bool = False) -> int:
        return shard_bytes(
            rows,
            dim,
            weights="fp32",
            outputs="fp32",
            optimizer="rowwise_adagrad",
            bags=batch,
            pooling=pooling,
            dense=dense,
        )

    everywhere = size(200, 16, 2.0, batch=BATCH // 4, dense=True)
    page = [size(rows, 16, 0.7 * rows / 10) for rows in (3, 3, 3, 1)]
    query = [size(rows, 16, 2.0 * rows / 7) for rows in (2, 2, 2, 1)]
    half_item = size(5000, 32, 2.0)
    alone = [half_item, size(3000, 16, 2.0) + size(400, 16, 2.0), size(1000, 16, 2.0), half_item]
    return [sum(sizes) + everywhere for sizes in zip(alone, page, query, strict=True)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedSpec:
    path: Path = tmp_path_factory.mktemp("spec") / "ranker.toml"
    path.write_text(SPEC)
    return load_spec(path)


def check(loaded: LoadedSpec, content: dict, cluster: Cluster = CLUSTER) -> list[Diagnostic]:
    return verify(Plan.model_validate(content), loaded, cluster)


def test_a_valid_plan_has_no_findings(loaded: LoadedSpec) -> None:
    assert check(loaded, document()) == []


def test_a_block_without_rows_is_refused() -> None:
    content = document()
    content["plan"]["ebc"]["query"] = placed(
        "row_wise", (0, (0, 0), (2, 16)), (1, (2, 0), (2, 16)), (2, (4, 0), (1, 16)), (3, (5, 0), (0, 16))
    )
    (finding,) = check(parse_spec(tomllib.loads(SPEC.replace("rows = 7", "rows = 5"))), content)
    assert (finding.code, finding.message) == (
        "SH306",
        'table "query" of the plan: shard 3 has no rows, as 5 are too few for 4 ranks',
    )


def test_memory_counts_every_shard_and_replica(loaded: LoadedSpec) -> None:
    assert device_memory(Plan.model_validate(document()), loaded).tolist() == [expected_memory(), [0] * 4]


def test_a_plan_for_cpu_processes_is_valid(loaded: LoadedSpec) -> None:
    content = document()
    for table in content["plan"]["ebc"].values():
        for shard in table.get("shards", []):
            shard["placement"] = shard["placement"].split("/")[0] + "/cpu"
    cpus = dataclasses.replace(CLUSTER, device_type="cpu")
    assert verify(Plan.model_validate(content), loaded, cpus) == []
    assert {finding.code for finding in check(loaded, content)} == {"SH306"}


Edit = Callable[[dict], object]


def table(name: str, **members: object) -> Edit:
    return lambda content: content["plan"]["ebc"][name].update(members)


def shard(name: str, number: int, **members: object) -> Edit:
    return lambda content: content["plan"]["ebc"][name]["shards"][number].update(members)


def replace(name: str, value: dict) -> Edit:
    return lambda content: content["plan"]["ebc"].__setitem__(name, value)


def blocks(*rows: int) -> dict:
    firsts = [sum(rows[:rank]) for rank in range(len(rows))]
    return placed("row_wise", *((rank, (firsts[rank], 0), (size, 16)) for rank, size in enumerate(rows)))


def columns(*pieces: tuple[int, int], kind: str = "column_wise") -> dict:
    firsts = [sum(width for _, width in pieces[:number]) for number in range(len(pieces))]
    return placed(kind, *((rank, (0, firsts[i]), (5000, width)) for i, (rank, width) in enumerate(pieces)))


Piece = tuple[int, int, int, int, int]


def by_rows(kind: str, *pieces: Piece) -> dict:
    """From rank, first row, rows, first column and columns of each shard."""
    return placed(kind, *((rank, (row, column), (rows, columns)) for rank, row, rows, column, columns in pieces))


def grid(first: int, second: int, width: int = 32) -> list[Piece]:
    """5000 x 64 in two column blocks, on two hosts."""
    blocks = ((first, 0, width), (second, width, 64 - width))
    return [(2 * host + i, 2500 * i, 2500, column, wide) for host, column, wide in blocks for i in range(2)]


@pytest.mark.parametrize(
    "item",
    [
        columns((3, 32), (2, 32), kind="table_column_wise"),
        columns((3, 24), (0, 20), (1, 20)),
        by_rows("table_row_wise", (2, 0, 2500, 0, 64), (3, 2500, 2500, 0, 64)),
        by_rows("grid_shard", *grid(1, 0)),
        by_rows("grid_shard", *grid(0, 1, 40)),
    ],
    ids=lambda item: f"{item['sharding_type']} on {item['ranks']}",
)
def test_what_torchrec_runs_has_no_fault_of_its_own(loaded: LoadedSpec, item: dict) -> None:
    content = document()
    content["plan"]["ebc"]["item"] = item
    # What is left is what the table of the same apart set, and the stated memory, have to say.
    assert {finding.code for finding in check(loaded, content)} <= {"SH308", "SH310"}


@pytest.mark.parametrize(
    ("edit", "code", "names"),
    [
        # The cluster, the model and the tables are the spec's.
        (lambda c: c["cluster"].update(device="cpu"), "SH309", 'device = "cpu"'),
        (lambda c: c["cluster"].update(hosts=4, devices_per_host=1), "SH309", "hosts = 4"),
        (lambda c: c["model"].update(global_batch=128), "SH310", "global_batch = 128"),
        (lambda c: c["model"].update(optimizer="sgd"), "SH310", 'optimizer = "sgd"'),
        (lambda c: c["plan"].update(other=c["plan"].pop("ebc")), "SH304", '"other"'),
        (lambda c: c["plan"]["ebc"].pop("user"), "SH304", 'does not place table "user"'),
        (lambda c: c["plan"]["ebc"].update(ghost=replicas()), "SH304", 'places table "ghost"'),
        (replace("ads", placed("table_wise", (2, (0, 0), (999, 16)))), "SH304", "999 x 16 in the plan, 1000 x 16"),
        (replace("ads", placed("table_wise", (2, (0, 0), (1000, 20)))), "SH304", "1000 x 20 in the plan"),
        (replace("item", columns((3, 32), (0, 36))), "SH304", "5000 x 68 in the plan"),
        (table("country", shape=[201, 16]), "SH304", "201 x 16 in the plan, 200 x 16 in the spec"),
        (table("country", shape=None), "SH304", "does not state its shape"),
        (table("country", shape=[200, 20]), "SH304", "200 x 20 in the plan, 200 x 16 in the spec"),
        # Shards cover the table once.
        (replace("ads", placed("table_wise", (2, (0, 4), (1000, 12)))), "SH305", "leave a gap"),
        (replace("ads", placed("table_wise", (2, (1, 0), (1000, 16)))), "SH305", "leave a gap"),
        (replace("ads", placed("table_wise")), "SH305", "no shards"),
        (shard("item", 1, shard_offsets=[0, 28]), "SH305", "shards 0 and 1 overlap"),
        (shard("item", 1, shard_offsets=[0, 36]), "SH305", "leave a gap"),
        (shard("page", 1, shard_sizes=[2, 16]), "SH305", "leave a gap"),
        # What TorchRec needs.
        (table("item", ranks=[3]), "SH306", "not as many ranks (1) as shards (2)"),
        (table("page", ranks=[]), "SH306", "not as many ranks (0) as shards (4)"),
        (
            replace("ads", placed("table_wise", (1, (0, 0), (500, 16)), (2, (500, 0), (500, 16)))),
            "SH306",
            "has one shard, not 2",
        ),
        (table("ads", compute_kernel="dense"), "SH306", "needs the compute kernel fused"),
        (table("ads", ranks=[1]), "SH306", 'placement "rank:2/cuda:0", expected "rank:1/cuda:1"'),
        (table("ads", ranks=[2, 1]), "SH306", "not as many ranks (2) as shards (1)"),
        (shard("ads", 0, placement="rank:2/cuda:2"), "SH306", 'expected "rank:2/cuda:0"'),
        (replace("ads", placed("table_wise", (4, (0, 0), (1000, 16)))), "SH306", "rank 4 is none of the 4 devices"),
        (shard("ads", 0, placement="rank:2/cpu"), "SH306", 'placement "rank:2/cpu", expected "rank:2/cuda:0"'),
        (replace("item", columns((3, 30), (0, 34))), "SH306", "30 columns, not a multiple of 4"),
        (replace("item", columns((3, 64), (0, 0))), "SH306", "0 columns, not a multiple of 4"),
        (replace("item", columns((3, 32), (3, 32))), "SH306", "two shards on rank 3"),
        (
            replace("item", placed("column_wise", (3, (0, 32), (5000, 32)), (0, (0, 0), (5000, 32)))),
            "SH306",
            "shard 0 is not 5000 rows from row 0 and column 0",
        ),
        (
            replace("item", placed("column_wise", (3, (0, 0), (2500, 64)), (0, (2500, 0), (2500, 64)))),
            "SH306",
            "shard 0 is not 5000 rows from row 0 and column 0, as column_wise has them",
        ),
        (replace("page", blocks(3, 3, 2, 2)), "SH306", "shard 2 is not 3 rows from row 6"),
        (replace("query", blocks(2, 1, 1, 1)), "SH306", "shard 1 is not 2 rows from row 2"),
        (replace("page", blocks(5, 5)), "SH306", "one shard on every rank"),
        (
            replace(
                "query",
                placed(
                    "row_wise", (1, (0, 0), (2, 16)), (0, (2, 0), (2, 16)), (2, (4, 0), (2, 16)), (3, (6, 0), (1, 16))
                ),
            ),
            "SH306",
            "one shard on every rank of 4, in their order",
        ),
        # Column blocks on one host, rows over the devices of a host, and grids: blocks of 2500 rows on two devices.
        (replace("item", columns((1, 32), (2, 32), kind="table_column_wise")), "SH306", "hosts 0 and 1"),
        (replace("item", columns((3, 32), (3, 32), kind="table_column_wise")), "SH306", "two shards on rank 3"),
        (
            replace("item", by_rows("table_row_wise", (1, 0, 2500, 0, 64), (2, 2500, 2500, 0, 64))),
            "SH306",
            "table_row_wise keeps to one host, but has shards on hosts 0 and 1",
        ),
        (
            replace("item", by_rows("table_row_wise", (1, 0, 2500, 0, 64), (0, 2500, 2500, 0, 64))),
            "SH306",
            "one shard on every rank of 2, in their order",
        ),
        (
            replace("item", by_rows("table_row_wise", (2, 0, 2600, 0, 64), (3, 2600, 2400, 0, 64))),
            "SH306",
            "shard 1 is not 2500 rows from row 2500",
        ),
        (
            replace("item", by_rows("table_row_wise", *grid(1, 0))),
            "SH306",
            "table_row_wise has one shard on every rank of 2, not 4",
        ),
        (replace("item", by_rows("grid_shard", *grid(1, 1))), "SH306", "two column blocks on the host of rank 2"),
        (replace("item", by_rows("grid_shard", *grid(1, 0)[:3])), "SH306", "one shard on every rank of 2, not 3"),
        (
            replace("item", by_rows("grid_shard", *grid(1, 0)[::2], *grid(1, 0)[1::2])),
            "SH306",
            "shard 1 is not 2500 rows from row 2500 and column 0",
        ),
        (replace("item", by_rows("grid_shard", *grid(1, 0, 30))), "SH306", "30 columns, not a multiple of 4"),
        (table("ads", shape=[1000, 16]), "SH306", "has no shape beside its shards"),
        (table("country", ranks=[0, 1, 2]), "SH306", "data_parallel is on every rank"),
        (table("country", compute_kernel="fused"), "SH306", "needs the compute kernel dense"),
        (table("country", shards=placed("", (0, (0, 0), (200, 16)))["shards"]), "SH306", "data_parallel has no shards"),
        # What the spec asks of single tables.
        (replace("country", placed("table_wise", (0, (0, 0), (200, 16)))), "SH308", '"country" is table_wise'),
        (replace("ads", placed("table_wise", (3, (0, 0), (1000, 16)))), "SH308", '"ads" is on device 3, but pinned'),
        (replace("visit", placed("table_wise", (2, (0, 0), (400, 16)))), "SH308", 'not on the device of "user"'),
        (replace("visit", blocks(100, 100, 100, 100)), "SH308", "a group is placed whole"),
        (replace("item", columns((0, 32), (1, 32))), "SH308", '"user" shares device 1 with "item"'),
        # What the plan states.
        (lambda c: c["score"]["devices"][2].update(memory_bytes=1), "SH310", "device 2 has memory_bytes = 1"),
        (lambda c: c["score"]["devices"][0].update(memory_limit_bytes=1), "SH310", "memory_limit_bytes = 1"),
        (lambda c: c["score"]["devices"].pop(), "SH310", "does not list the devices 0 to 3"),
        (lambda c: c["score"]["devices"].reverse(), "SH310", "does not list the devices 0 to 3"),
    ],
)
def test_a_broken_rule_is_named(loaded: LoadedSpec, edit: Edit, code: str, names: str) -> None:
    content = document()
    edit(content)
    found = check(loaded, content)
    assert any(finding.code == code and names in finding.message for finding in found), found


def test_without_its_spec_a_plan_is_judged_by_its_shards(loaded: LoadedSpec) -> None:
    content = document()
    assert verify_alone(Plan.model_validate(content)) == []
    content["plan"]["ebc"]["ads"]["shards"][0]["shard_sizes"] = [999, 16]  # another table, but a whole one
    assert verify_alone(Plan.model_validate(content)) == []
    content["plan"]["ebc"]["item"]["shards"][1]["shard_offsets"] = [0, 28]
    content["plan"]["ebc"]["page"]["shards"].reverse()
    found = {finding.code: finding.message for finding in verify_alone(Plan.model_validate(content))}
    assert found["SH305"] == 'table "item": shards 0 and 1 overlap'
    assert found["SH306"].startswith('table "page": ')


def test_a_table_in_very_many_shards() -> None:
    count = 30_000
    content = document()
    content["cluster"]["hosts"] = count
    content["cluster"]["devices_per_host"] = 1
    shards = [(rank, (0, 4 * rank), (10, 4)) for rank in range(count)]
    content["plan"]["ebc"] = {"wide": placed("column_wise", *shards)}
    for shard in content["plan"]["ebc"]["wide"]["shards"]:
        shard["placement"] = shard["placement"].partition("cuda:")[0] + "cuda:0"
    assert verify_alone(Plan.model_validate(content)) == []
    content["plan"]["ebc"]["wide"]["shards"][-1]["shard_offsets"] = [0, 4 * 77 + 2]
    assert 'table "wide": shards 77 and 29999 overlap' in [
        f.message for f in verify_alone(Plan.model_validate(content))
    ]
    for shard in content["plan"]["ebc"]["wide"]["shards"]:
        shard["placement"] = "rank:0/cuda:0"
    assert [f.code for f in verify_alone(Plan.model_validate(content))][-2:] == ["SH306", "SH904"]


def test_shards_in_a_staircase_overlap_only_where_they_meet() -> None:
    def found(*areas: tuple[tuple[int, int], tuple[int, int]]) -> list[str]:
        content = document()
        shards = [(rank % 4, *area) for rank, area in enumerate(areas)]
        content["plan"]["ebc"] = {"t": placed("grid_shard", *shards)}
        return [f.message for f in verify_alone(Plan.model_validate(content)) if f.code == "SH305"]

    tiles = [((0, 0), (5, 4)), ((0, 4), (2, 8)), ((2, 4), (3, 4)), ((2, 8), (8, 4)), ((5, 0), (5, 8))]
    assert found(*tiles) == []
    assert found(*tiles[:4], ((5, 0), (5, 12))) == ['table "t": shards 3 and 4 overlap']
    assert found(*tiles[:2], ((1, 4), (4, 4)), *tiles[3:]) == ['table "t": shards 1 and 2 overlap']
    assert found(*tiles[:2], *tiles[3:])[0].startswith('table "t": its shards leave a gap')


def test_findings_stand_where_the_spec_asks(loaded: LoadedSpec) -> None:
    content = document()
    content["plan"]["ebc"]["ads"] = placed("table_wise", (3, (0, 0), (1000, 16)))
    finding = next(finding for finding in check(loaded, content) if finding.code == "SH308")
    assert finding.location is not None
    assert finding.location.text == "pin = [1, 2]"


def test_a_replicated_table_is_apart_from_no_other(loaded: LoadedSpec) -> None:
    content = document()
    content["plan"]["ebc"]["item"] = replicas(5000, 64)
    messages = [finding.message for finding in check(loaded, content) if finding.code == "SH308"]
    assert messages == ['table "user" shares device 1 with "item", of the same apart set']


def test_a_device_over_its_limit_is_named_with_its_largest_tables(loaded: LoadedSpec) -> None:
    less = dataclasses.replace(KIND, memory_bytes=KIND.reserve_bytes + expected_memory()[3] - 1)
    small = dataclasses.replace(CLUSTER, kinds=(less,))
    content = document()
    for device in content["score"]["devices"]:
        device["memory_limit_bytes"] = expected_memory()[3] - 1
    found = check(loaded, content, small)
    assert [finding.code for finding in found] == ["SH307"] * 2
    assert [finding.message.split(" needs")[0] for finding in found] == ["device 0", "device 3"]
    assert "over its limit" in found[1].message
    assert found[1].notes[0].startswith('its largest tables: "item" (')


def rectangle_cuts(height: int, width: int) -> st.SearchStrategy[list[tuple[int, int, int, int]]]:
    """Partitions of a rectangle by cuts from edge to edge, as (row, column, rows, columns)."""

    @st.composite
    def cut(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
        pieces = [(0, 0, height, width)]
        for _ in range(draw(st.integers(0, 8))):
            row, column, rows, columns = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
            if draw(st.booleans()) and rows > 1:
                at = draw(st.integers(1, rows - 1))
                pieces += [(row, column, at, columns), (row + at, column, rows - at, columns)]
            elif columns > 1:
                at = draw(st.integers(1, columns - 1))
                pieces += [(row, column, rows, at), (row, column + at, rows, columns - at)]
            else:
                pieces.append((row, column, rows, columns))
        return draw(st.permutations(pieces))

    return cut()


ONE_TABLE = parse_spec(
    {
        "format": 1,
        "model": {"name": "ranker", "module": "ebc", "global_batch": BATCH},
        "cluster": {"device": "gpu", "hosts": 2, "devices_per_host": 2},
        "table": [{"name": "t", "rows": 24, "dim": 12, "pooling": 1}],
    }
)


def coverage_codes(pieces: list[tuple[int, int, int, int]]) -> set[str]:
    content = document()
    shards = [(0, (row, column), (rows, columns)) for row, column, rows, columns in pieces]
    content["plan"]["ebc"] = {"t": placed("table_wise", *shards)}
    return {finding.code for finding in check(ONE_TABLE, content)} & {"SH304", "SH305"}


@given(rectangle_cuts(24, 12))
def test_every_exact_cover_is_accepted(pieces: list[tuple[int, int, int, int]]) -> None:
    assert coverage_codes(pieces) == set()


@given(rectangle_cuts(24, 12), st.data())
def test_no_other_cover_is(pieces: list[tuple[int, int, int, int]], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(pieces) - 1))
    changed = list(pieces[number])
    axis = data.draw(st.integers(0, 3))
    changed[axis] = data.draw(st.integers(0, 30).filter(lambda value: value != changed[axis]))
    assert coverage_codes([*pieces[:number], (*changed,), *pieces[number + 1 :]])


@given(rectangle_cuts(24, 12), st.data())
def test_a_lost_or_doubled_shard_is_found(pieces: list[tuple[int, int, int, int]], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(pieces) - 1))
    assert coverage_codes([*pieces[:number], *pieces[number + 1 :]])
    assert coverage_codes([*pieces, pieces[number]])


# --- Tables in host memory --------------------------------------------------------------------------------------------

WITH_HOST = dataclasses.replace(CLUSTER, kinds=(dataclasses.replace(KIND, host_memory_bytes=700_000),))


def cached_spec(**changes: object) -> LoadedSpec:
    spec = tomllib.loads(SPEC)
    spec["cluster"]["host_memory"] = "1400KB"
    item = next(table for table in spec["table"] if table["name"] == "item")
    item |= {"kernels": ["fused", "fused_uvm_caching"], "cache_ratio": 0.25} | changes
    return parse_spec(spec)


def cached_document() -> dict:
    """The plan with a table in host memory, 640,000 bytes of each of two devices, and what that takes."""
    content = document()
    content["plan"]["ebc"]["item"] |= {"compute_kernel": "fused_uvm_caching", "cache_params": {"load_factor": 0.25}}
    memory = device_memory(Plan.model_validate(content), cached_spec()).tolist()
    for device, on_device, in_host in zip(content["score"]["devices"], *memory, strict=True):
        device |= {"memory_bytes": on_device, "host_memory_bytes": in_host, "host_memory_limit_bytes": 700_000}
    return content


def test_a_plan_with_a_table_in_host_memory_is_valid() -> None:
    content = cached_document()
    assert check(cached_spec(), content, WITH_HOST) == []
    assert [device["host_memory_bytes"] for device in content["score"]["devices"]] == [640_000, 0, 0, 640_000]
    assert content["score"]["devices"][0]["memory_bytes"] < document()["score"]["devices"][0]["memory_bytes"]


def test_a_plan_that_overfills_a_host_is_named_with_its_largest_tables() -> None:
    less = dataclasses.replace(WITH_HOST.kinds[0], host_memory_bytes=639_999)
    content = cached_document()
    for device in content["score"]["devices"]:
        device["host_memory_limit_bytes"] = 639_999
    found = check(cached_spec(), content, dataclasses.replace(WITH_HOST, kinds=(less,)))
    assert [finding.code for finding in found] == ["SH307"] * 2
    assert found[1].message.startswith("device 3 needs of its host's memory 625 KiB")
    assert found[1].notes[0].startswith('its largest tables: "item" (')


@pytest.mark.parametrize(
    ("edit", "code", "names"),
    [
        (table("item", cache_params=None), "SH308", "caches no stated share of its rows, the spec has 0.25"),
        (table("item", compute_kernel="fused"), "SH306", "fused has no cache_params"),
        (table("country", cache_params={"load_factor": 0.5}), "SH306", "dense has no cache_params"),
        (table("country", compute_kernel="fused_uvm_caching"), "SH306", "needs the compute kernel dense"),
        (
            table("item", compute_kernel="dense", cache_params=None),
            "SH306",
            "needs the compute kernel fused or fused_uvm_caching, not dense",
        ),
        (table("item", cache_params={"load_factor": 0.3}), "SH308", "caches 0.3 of its rows, the spec has 0.25"),
        (
            table("ads", compute_kernel="fused_uvm_caching", cache_params={"load_factor": 0.2}),
            "SH308",
            '"ads" has the kernel fused_uvm_caching, which the spec does not allow',
        ),
        (lambda c: c["score"]["devices"][0].update(host_memory_bytes=1), "SH310", "device 0 has host_memory_bytes = 1"),
        (lambda c: c["score"]["devices"][1].pop("host_memory_limit_bytes"), "SH310", "host_memory_limit_bytes = None"),
    ],
)
def test_a_broken_rule_of_a_cache_is_named(edit: Edit, code: str, names: str) -> None:
    content = cached_document()
    edit(content)
    found = check(cached_spec(), content, WITH_HOST)
    assert any(finding.code == code and names in finding.message for finding in found), found


def test_a_replica_of_what_has_to_be_in_host_memory_is_named() -> None:
    spec = tomllib.loads(SPEC)
    spec["cluster"]["host_memory"] = "1400KB"
    next(t for t in spec["table"] if t["name"] == "country")["kernels"] = ["fused_uvm_caching"]
    found = check(parse_spec(spec), document(), WITH_HOST)
    assert any(f.code == "SH308" and '"country" has the kernel dense, which' in f.message for f in found), found


def test_stated_host_memory_where_tables_may_use_none_is_wrong(loaded: LoadedSpec) -> None:
    content = document()
    content["score"]["devices"][0]["host_memory_bytes"] = 0
    assert [finding.code for finding in check(loaded, content)] == ["SH310"]
