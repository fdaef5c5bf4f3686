"""Plans for HugeCTR, read back by the rules that HugeCTR shards by."""

from __future__ import annotations

import json

import pytest

import shardc
from shardc.diagnostics import DiagnosticError
from shardc.frameworks.hugectr import hugectr_differences, hugectr_shard
from shardc.plan import Plan

MODULE = "ebc"
TYPES = {
    "table_wise": {},
    "column_wise": {"dim": 64},
    "table_column_wise": {"dim": 32},
    "row_wise": {"rows": 1003},
    "table_row_wise": {"rows": 1001},
    "grid_shard": {"dim": 64, "rows": 1001},
    "data_parallel": {},
}


def spec(**tables: dict) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": MODULE, "global_batch": 1024, "optimizer": "sgd"},
        "cluster": {"device": "h100-80gb", "hosts": 2, "devices_per_host": 2},
        "compile": {"effort": "fast"},
        "table": [{"name": name, "rows": 1000, "dim": 16, "pooling": 2, **table} for name, table in tables.items()],
    }


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan for two hosts of two GPUs, with a table of every sharding type."""
    tables = {f"of_{kind}": {"sharding": [kind], **extra} for kind, extra in TYPES.items()}
    plan = shardc.compile(spec(**tables))
    assert {table.sharding_type for table in plan.plan[MODULE].values()} == set(TYPES)
    return plan


def by_hand(*tables: tuple[str, str, list], devices: int = 4, **model: str) -> Plan:
    """A plan of tables given as name, sharding type and pieces (rank, offsets, sizes)."""
    plan = shardc.compile(spec(any={}))
    document = plan.model_dump()
    document["model"].update(model)
    document["plan"] = {
        MODULE: {
            name: {
                "sharding_type": kind,
                "compute_kernel": "fused",
                "ranks": [rank for rank, _, _ in pieces],
                "shards": [
                    {"shard_offsets": offsets, "shard_sizes": sizes, "placement": f"rank:{rank}/cuda:{rank % 2}"}
                    for rank, offsets, sizes in pieces
                ],
            }
            for name, kind, pieces in tables
        }
    }
    return Plan.model_validate(document)


def held(arguments: dict, sizes: dict[str, tuple[int, int]]) -> dict[tuple[int, str], tuple[range, range]]:
    """Rows and columns of each table on each GPU, by HugeCTR's rules: key k is on the k % n-th GPU of n."""
    matrix, found = arguments["shard_matrix"], {}
    for how, tables in arguments["shard_strategy"]:
        for entry in tables:
            name, columns = entry if isinstance(entry, list) else (entry, 1)
            gpus = [gpu for gpu, names in enumerate(matrix) if name in names]
            rows, dim = sizes[name]
            if how == "dp":
                assert columns == 1
                assert gpus == list(range(len(matrix)))
                found |= {(gpu, name): (range(rows), range(dim)) for gpu in gpus}
                continue
            assert len(gpus) % columns == 0
            assert dim % columns == 0
            row_blocks, width = len(gpus) // columns, dim // columns
            for place, gpu in enumerate(gpus):
                block, first = divmod(place, row_blocks)
                found[gpu, name] = (range(first, rows, row_blocks), range(block * width, (block + 1) * width))
    return found


def test_hugectr_would_hold_on_each_gpu_what_the_plan_says(plan):
    arguments = json.loads(hugectr_shard(plan))
    sizes = {f"of_{kind}": (extra.get("rows", 1000), extra.get("dim", 16)) for kind, extra in TYPES.items()}
    found = held(arguments, sizes)
    for name, table in plan.plan[MODULE].items():
        rows, dim = sizes[name]
        pieces = {gpu: piece for (gpu, other), piece in found.items() if other == name}
        assert sorted(pieces) == sorted(table.ranks)
        if not table.shards:
            continue
        for rank, shard in zip(table.ranks, table.shards, strict=True):
            assert len(pieces[rank][1]) == shard.shard_sizes[1]
        most = max(shard.shard_sizes[0] for shard in table.shards)
        assert max(len(part) for part, _ in pieces.values()) == most
        cells = [(row, column) for part, columns in pieces.values() for row in part for column in columns]
        assert len(cells) == len(set(cells)) == rows * dim


def test_each_table_is_in_one_strategy_and_empty_ones_are_left_out(plan):
    arguments = json.loads(hugectr_shard(plan))
    assert set(arguments) == {"shard_matrix", "shard_strategy"}
    strategies = dict(arguments["shard_strategy"])
    assert strategies["dp"] == ["of_data_parallel"]
    names = [entry[0] if isinstance(entry, list) else entry for entry in strategies["mp"]]
    assert sorted([*names, "of_data_parallel"]) == sorted(plan.plan[MODULE])
    one = json.loads(hugectr_shard(by_hand(("a", "table_wise", [(2, [0, 0], [10, 8])]))))
    assert one == {"shard_matrix": [[], [], ["a"], []], "shard_strategy": [["mp", ["a"]]]}


def test_columns_against_the_order_of_ranks_are_even_all_the_same():
    pieces = [(3, [0, 0], [10, 8]), (1, [0, 8], [10, 8])]
    arguments = json.loads(hugectr_shard(by_hand(("a", "column_wise", pieces))))
    assert arguments == {"shard_matrix": [[], ["a"], [], ["a"]], "shard_strategy": [["mp", [["a", 2]]]]}


@pytest.mark.parametrize(
    ("table", "says", "advice"),
    [
        (
            ("u", "column_wise", [(0, [0, 0], [10, 8]), (1, [0, 8], [10, 4])]),
            'column blocks of different widths: table "u"',
            "row_wise",
        ),
        (
            (
                "g",
                "grid_shard",
                [(0, [0, 0], [5, 8]), (1, [5, 0], [5, 8]), (2, [0, 8], [5, 4]), (3, [5, 8], [5, 4])],
            ),
            'column blocks of different widths: table "g"',
            "row_wise",
        ),
        (("w", "table_wise", [(0, [0, 0], [10, 512])]), 'vectors of more than 256 elements: table "w"', "column_wise"),
    ],
)
def test_what_hugectr_cannot_run_is_refused_by_name(table, says, advice):
    with pytest.raises(DiagnosticError) as raised:
        hugectr_shard(by_hand(("fine", "table_wise", [(0, [0, 0], [10, 8])]), table))
    (finding,) = raised.value.diagnostics
    assert (finding.code, finding.message) == ("SH703", f"HugeCTR cannot run {says}")
    assert advice in finding.help


def test_wide_vectors_in_narrower_blocks_are_fine():
    pieces = [(0, [0, 0], [10, 256]), (1, [0, 256], [10, 256])]
    assert '["w", 2]' in hugectr_shard(by_hand(("w", "column_wise", pieces)))


def test_tables_of_one_name_in_two_modules_are_refused(plan):
    twice = {MODULE: plan.plan[MODULE], "other": {"of_row_wise": plan.plan[MODULE]["of_row_wise"]}}
    with pytest.raises(DiagnosticError, match=r'tables of one name: table "of_row_wise"'):
        hugectr_shard(plan.model_copy(update={"plan": twice}))


def test_tables_cached_from_host_memory_are_refused(plan):
    tables = dict(plan.plan[MODULE])
    tables["of_row_wise"] = tables["of_row_wise"].model_copy(update={"compute_kernel": "fused_uvm_caching"})
    with pytest.raises(DiagnosticError, match=r'not all in device memory: table "of_row_wise"'):
        hugectr_shard(plan.model_copy(update={"plan": {MODULE: tables}}))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"optimizer": "rowwise_adagrad"}, ["no row-wise Adagrad"]),
        ({"optimizer": "adam", "weights": "fp16"}, ["dynamic tables only", "as fp32, not fp16"]),
        ({"optimizer": "adagrad"}, []),
    ],
)
def test_what_takes_other_memory_there_is_told(model, says):
    found = hugectr_differences(by_hand(("a", "table_wise", [(0, [0, 0], [10, 8])]), **model))
    assert [finding.severity for finding in found] == ["warning"] * len(says)
    assert all(part in finding.message for part, finding in zip(says, found, strict=True))
