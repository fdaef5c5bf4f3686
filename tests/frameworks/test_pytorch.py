"""Plans in plain PyTorch's terms, against what real DTensors hold on gloo ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ranks import run_ranks  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402

import shardc  # noqa: E402
from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks.pytorch import pytorch_placements  # noqa: E402
from shardc.plan import Plan, plan_bytes, read_plan  # noqa: E402

MODULE = "ebc"
PLACEMENTS = {"Shard(0)": Shard(0), "Shard(1)": Shard(1), "Replicate()": Replicate()}
TYPES = {
    "table_wise": {},
    "column_wise": {"dim": 64},
    "table_column_wise": {"dim": 32},
    "row_wise": {"rows": 103},
    "table_row_wise": {"rows": 101},
    "grid_shard": {"dim": 64, "rows": 101},
    "data_parallel": {"rows": 7},
}
SIZES = {kind: (extra.get("rows", 100), extra.get("dim", 16)) for kind, extra in TYPES.items()}


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan for two hosts of two devices; tables are named after their sharding types."""
    plan = shardc.compile(
        {
            "format": 1,
            "model": {"name": "m", "module": MODULE, "global_batch": 1024},
            "cluster": {"device": "h100-80gb", "hosts": 2, "devices_per_host": 2},
            "compile": {"effort": "fast"},
            "table": [
                {"name": kind, "rows": SIZES[kind][0], "dim": SIZES[kind][1], "pooling": 2, "sharding": [kind]}
                for kind in TYPES
            ],
        }
    )
    assert {name: table.sharding_type for name, table in plan.plan[MODULE].items()} == {kind: kind for kind in TYPES}
    return plan


def exported(plan: Plan) -> dict:
    return json.loads(pytorch_placements(plan))["modules"][MODULE]


def changed(plan: Plan, name: str, pieces: list[tuple]) -> Plan:
    """The plan with other column blocks: rank, first column, columns."""
    rows, table = SIZES[name][0], plan.plan[MODULE][name]
    shards = tuple(
        table.shards[0].model_copy(
            update={
                "shard_offsets": (0, column),
                "shard_sizes": (rows, width),
                "placement": f"rank:{rank}/cuda:{rank % 2}",
            }
        )
        for rank, column, width in pieces
    )
    table = table.model_copy(update={"ranks": tuple(rank for rank, _, _ in pieces), "shards": shards})
    return plan.model_copy(update={"plan": {MODULE: {**plan.plan[MODULE], name: table}}})


def compare_with_dtensors(rank: int, path: Path) -> None:
    """One rank: what it holds of each table as a DTensor is what the plan says."""
    plan = read_plan(path)
    for name, entry in exported(plan).items():
        rows, columns = SIZES[name]
        whole = torch.arange(rows * columns).reshape(rows, columns)
        mesh = DeviceMesh("cpu", torch.tensor(entry["mesh"]))
        mine = distribute_tensor(whole, mesh, [PLACEMENTS[word] for word in entry["placements"]]).to_local()
        table = plan.plan[MODULE][name]
        expected = torch.empty(0, dtype=whole.dtype) if table.shards else whole
        for shard in table.shards:
            if shard.rank == rank:
                (row, column), (height, width) = shard.shard_offsets, shard.shard_sizes
                expected = whole[row : row + height, column : column + width]
        assert torch.equal(mine, expected), name


def test_dtensors_of_the_placements_hold_the_plans_shards(plan, tmp_path):
    plan = changed(plan, "column_wise", [(1, 0, 32), (3, 32, 32)])  # on some ranks
    assert exported(plan)["column_wise"] == {"mesh": [1, 3], "placements": ["Shard(1)"], "shape": [100, 64]}
    assert len(exported(plan)["grid_shard"]["mesh"]) == 2
    path = tmp_path / "plan.json"
    path.write_bytes(plan_bytes(plan))
    run_ranks(compare_with_dtensors, (path,), hosts=2, devices=2, folder=tmp_path)


def test_the_usual_tables_are_said_in_the_usual_words(plan):
    tables = exported(plan)
    assert tables["row_wise"] == {"mesh": [0, 1, 2, 3], "placements": ["Shard(0)"], "shape": [103, 16]}
    assert tables["data_parallel"] == {"mesh": [0, 1, 2, 3], "placements": ["Replicate()"], "shape": [7, 16]}
    older = plan.plan[MODULE]["data_parallel"].model_copy(update={"shape": None})
    older = plan.model_copy(update={"plan": {MODULE: {"data_parallel": older}}})
    assert exported(older)["data_parallel"]["shape"] is None
    (owner,) = plan.plan[MODULE]["table_wise"].ranks
    assert tables["table_wise"] == {"mesh": [owner], "placements": ["Replicate()"], "shape": [100, 16]}


@pytest.mark.parametrize("pieces", [[(0, 0, 40), (2, 40, 24)], [(2, 0, 32), (0, 32, 32)]], ids=["uneven", "order"])
def test_columns_that_a_dtensor_would_hold_otherwise_are_listed(plan, pieces):
    table = exported(changed(plan, "column_wise", pieces))["column_wise"]
    listed = [{"rank": rank, "offsets": [0, column], "sizes": [100, width]} for rank, column, width in pieces]
    assert table == {"shape": [100, 64], "shards": listed}


def test_tables_cached_from_host_memory_are_refused(plan):
    table = plan.plan[MODULE]["row_wise"].model_copy(update={"compute_kernel": "fused_uvm_caching"})
    with pytest.raises(DiagnosticError, match=r'not all in device memory: table "row_wise"'):
        pytorch_placements(plan.model_copy(update={"plan": {MODULE: {"row_wise": table}}}))
