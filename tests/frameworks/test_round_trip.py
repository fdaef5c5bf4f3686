"""Plans of shardc as TorchRec's, and back."""

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, CacheAlgorithm
from torchrec.distributed.types import (
    CacheParams,
    CacheStatistics,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    KeyValueParams,
    MultiPassPrefetchConfig,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import DataType

from shardc.diagnostics import DiagnosticError
from shardc.frameworks.torchrec import from_sharding_plan, to_sharding_plan
from shardc.plan import Plan, plan_bytes, read_plan

HOSTS, LOCAL = 2, 2
WORLD = HOSTS * LOCAL


def document(tables: dict[str, dict], placement: Callable[[int], str], hosts: int = HOSTS, local: int = LOCAL) -> Plan:
    """A plan with these tables; each shard is rank, offsets and sizes."""
    placed = {}
    for name, table in tables.items():
        shards = table.get("shards", ())
        placed[name] = table | {
            "ranks": [rank for rank, _, _ in shards] if shards else list(range(hosts * local)),
            "shards": [
                {"shard_offsets": offsets, "shard_sizes": sizes, "placement": placement(rank)}
                for rank, offsets, sizes in shards
            ],
        }
    return Plan.model_validate(
        {
            "format": 1,
            "model": {
                "name": "m",
                "module": "a.b",
                "global_batch": 8,
                "optimizer": "sgd",
                "weights": "fp32",
                "outputs": "fp32",
            },
            "cluster": {"device": "gpu", "hosts": hosts, "devices_per_host": local},
            "digests": {"spec": "", "profile": None},
            "tool": {"version": "0", "seed": 0},
            "plan": {"a.b": placed},
            "score": {"step_time_ms": 0.0, "phases": {}, "balance": 1.0, "devices": []},
            "bound": None,
            "chosen": {"strategy": "by hand", "reason": "only"},
            "candidates": [],
        }
    )


def cpu(rank: int) -> str:
    return f"rank:{rank}/cpu"


def cuda(rank: int) -> str:
    return f"rank:{rank}/cuda:{rank % LOCAL}"


def every_type() -> dict[str, dict]:
    """A table of each sharding type, each with the members that a table may have."""
    rows = [(rank, [3 * rank, 0], [3 if rank < 3 else 1, 8]) for rank in range(WORLD)]
    on_host = [(2, [0, 0], [5, 8]), (3, [5, 0], [5, 8])]
    grid = [(rank, [5 * (rank % 2), 4 * (rank // 2)], [5, 4]) for rank in range(WORLD)]
    columns = [(3, [0, 0], [10, 8]), (0, [0, 8], [10, 12])]
    fused = {"compute_kernel": "fused"}
    return {
        "tw": {"sharding_type": "table_wise", "shards": [(1, [0, 0], [10, 8])], "output_dtype": "fp16"} | fused,
        "cw": {"sharding_type": "column_wise", "shards": columns, "stochastic_rounding": False} | fused,
        "twcw": {"sharding_type": "table_column_wise", "shards": [(1, [0, 0], [7, 4]), (0, [0, 4], [7, 4])]} | fused,
        "rw": {"sharding_type": "row_wise", "shards": rows, "bounds_check_mode": "v2_warning"} | fused,
        "twrw": {"sharding_type": "table_row_wise", "shards": on_host, "enforce_hbm": True} | fused,
        "grid": {"sharding_type": "grid_shard", "shards": grid, "output_dtype": "bf16"} | fused,
        "dp": {"sharding_type": "data_parallel", "compute_kernel": "dense"},
    }


@pytest.mark.parametrize("placement", [cpu, cuda])
def test_what_is_read_back_is_what_was_written(placement, tmp_path):
    plan = document(every_type(), placement)
    found = to_sharding_plan(plan)
    assert from_sharding_plan(found) == plan.plan
    assert found.plan["a.b"]["rw"].bounds_check_mode is BoundsCheckMode.V2_WARNING
    assert found.plan["a.b"]["tw"].output_dtype is DataType.FP16
    path = tmp_path / "plan.json"
    path.write_bytes(plan_bytes(plan.model_copy(update={"plan": from_sharding_plan(found)})))
    read = read_plan(path)
    assert read.digest
    assert read.model_copy(update={"digest": None}) == plan


def test_caches():
    caches = {
        "share": {"load_factor": 0.25},
        "all": {
            "load_factor": 0.5,
            "algorithm": "lfu",
            "reserved_memory": 1.5,
            "precision": "fp16",
            "prefetch_pipeline": True,
            "multipass_prefetch": {"num_passes": 3, "min_splitable_pass_size": 1000},
        },
    }
    tables = {
        name: {
            "sharding_type": "table_wise",
            "compute_kernel": "fused_uvm_caching",
            "shards": [(0, [0, 0], [10, 8])],
            "cache_params": cache,
        }
        for name, cache in caches.items()
    }
    plan = document(tables, cuda)
    found = to_sharding_plan(plan)
    assert from_sharding_plan(found) == plan.plan
    assert found.plan["a.b"]["share"].cache_params == CacheParams(load_factor=0.25)
    assert found.plan["a.b"]["all"].cache_params == CacheParams(
        algorithm=CacheAlgorithm.LFU,
        load_factor=0.5,
        reserved_memory=1.5,
        precision=DataType.FP16,
        prefetch_pipeline=True,
        multipass_prefetch_config=MultiPassPrefetchConfig(3, 1000),
    )
    members = json.loads(plan_bytes(plan))["plan"]["a.b"]
    assert {name: table["cache_params"] for name, table in members.items()} == caches
    assert members["share"].keys() == {"cache_params", "compute_kernel", "ranks", "sharding_type", "shards"}
    # There are no caches on CPUs.
    moved = from_sharding_plan(to_sharding_plan(plan, "cpu"))["a.b"]
    assert {(table.compute_kernel, table.cache_params) for table in moved.values()} == {("fused", None)}
    with pytest.raises(DiagnosticError, match="needs the compute kernel fused, not fused_uvm_caching"):
        to_sharding_plan(document(tables, cpu))


def test_members_are_all_that_torchrec_has():
    """A field that a newer TorchRec adds would be lost."""
    assert {each.name for each in dataclasses.fields(ParameterSharding)} == {
        *("sharding_type", "compute_kernel", "ranks", "sharding_spec", "cache_params", "enforce_hbm"),
        *("stochastic_rounding", "bounds_check_mode", "output_dtype", "key_value_params"),
    }
    assert {each.name for each in dataclasses.fields(CacheParams)} == {
        *("algorithm", "load_factor", "reserved_memory", "precision", "prefetch_pipeline", "stats"),
        "multipass_prefetch_config",
    }


@pytest.mark.parametrize("enumeration", [DataType, BoundsCheckMode, CacheAlgorithm])
def test_every_name_of_torchrec_and_fbgemm_is_one_of_a_plan(enumeration):
    for member in enumeration:
        sharding = ParameterSharding(
            "table_wise",
            "fused_uvm_caching",
            [0],
            EnumerableShardingSpec([ShardMetadata([0, 0], [4, 4], "rank:0/cuda:0")]),
            output_dtype=member if enumeration is DataType else None,
            bounds_check_mode=member if enumeration is BoundsCheckMode else None,
            cache_params=CacheParams(algorithm=member) if enumeration is CacheAlgorithm else None,
        )
        tables = from_sharding_plan(ShardingPlan({"a.b": EmbeddingModuleShardingPlan({"t": sharding})}))
        plan = document(every_type(), cuda).model_copy(update={"plan": tables})
        assert to_sharding_plan(plan).plan["a.b"]["t"] == sharding


def test_reads_what_torchrec_serializes():
    """TorchRec leaves out all but types, kernels, ranks and shards."""
    plan = document(every_type(), cuda)
    serialized = json.loads(json.dumps(to_sharding_plan(plan)._serialize()))
    only = {"output_dtype": None, "stochastic_rounding": None, "bounds_check_mode": None, "enforce_hbm": None}
    expected = {name: table.model_copy(update=only) for name, table in plan.plan["a.b"].items()}
    assert from_sharding_plan(serialized) == {"a.b": expected}


@pytest.mark.parametrize("path", ["a.b", "", "plan"])
def test_reads_what_was_exported(path):
    tables = {path: document(every_type(), cuda).plan["a.b"]}
    exported = {name: table.model_dump(mode="json") for name, table in tables[path].items()}
    assert from_sharding_plan({path: exported}) == tables


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "a NoneType is not a plan of TorchRec"),
        ("x", "a str is not a plan of TorchRec"),
        ({}, "an empty mapping is not a plan of TorchRec"),
        ({"plan": 5}, 'module "plan" has a int, not a plan of tables'),
        ({"plan": {"a": 5}}, 'module "a" has a int, not a plan of tables'),
        ({"format": 1, "plan": {}}, 'module "format" has a int, not a plan of tables'),
        ({"a": {}}, 'module "a" has no tables'),
        (ShardingPlan({}), "a ShardingPlan without modules is no plan"),
        (ShardingPlan({"a": EmbeddingModuleShardingPlan({})}), 'module "a" has no tables'),
        ({"a": {"t": {}}}, 'module "a", table "t": it is empty: expected sharding_type'),
        ({"a": {"t": 5}}, 'module "a", table "t": it is a int, not a ParameterSharding'),
        ({"a": {"t": {"ranks": [0]}}}, 'module "a", table "t": sharding_type: Field required'),
        ({"a": {"t": {"sharding_type": "table_wise", "color": 1}}}, 'module "a", table "t": a plan has no color'),
        ({"a": {"t": {"shards": 5}}}, 'module "a", table "t": shards: expected a list of shard_offsets'),
        ({"a": {"t": {"shards": [{"rank": 1}]}}}, 'module "a", table "t": a plan has no shards.rank'),
        ({"a": {"t": {"cache_params": {"stats": 1}}}}, 'module "a", table "t": a plan has no cache_params.stats'),
        ({"a": {"t": {"shards": [{"shard_sizes": [1, 4]}]}}}, 'module "a", table "t": placement: Field required'),
    ],
)
def test_what_is_no_plan_is_refused(found, says):
    with pytest.raises(DiagnosticError, match="SH302") as raised:
        from_sharding_plan(found)
    assert any(each.message.startswith(says) for each in raised.value.diagnostics), str(raised.value)


def test_caches_that_torchrec_does_not_serialize_are_told():
    shards = [(0, [0, 0], [10, 8])]
    cached = {"sharding_type": "table_wise", "compute_kernel": "fused_uvm_caching", "shards": shards}
    plan = document({"t": cached | {"cache_params": {"load_factor": 0.1}}, "u": cached}, cuda)
    with pytest.warns(UserWarning, match='no cache_params for tables "t", "u"') as caught:
        from_sharding_plan(to_sharding_plan(plan)._serialize())
    assert caught[0].filename == __file__
    assert from_sharding_plan(to_sharding_plan(plan)) == plan.plan  # where it is what the plan says


@pytest.mark.parametrize("of_many", [{"hosts": 2**62}, {"devices_per_host": 65_537}])
def test_a_plan_for_more_devices_than_there_are(of_many):
    plan = document(every_type(), cpu)
    huge = plan.model_copy(update={"cluster": plan.cluster.model_copy(update=of_many)})
    with pytest.raises(DiagnosticError, match=r"SH306 the plan is for .* devices, more than 65536"):
        to_sharding_plan(huge)


def test_several_modules_keep_their_paths():
    plan = document(every_type(), cpu)
    tables = {"a.b": plan.plan["a.b"], "": {"tw": plan.plan["a.b"]["tw"]}}
    found = to_sharding_plan(plan.model_copy(update={"plan": tables}))
    assert list(found.plan) == ["a.b", ""]
    assert from_sharding_plan(found) == tables


class Statistics(CacheStatistics):
    expected_lookups, cacheability = 1.0, 0.5

    def expected_miss_rate(self, clf: float) -> float:
        return 1.0 - clf


def test_what_a_plan_has_no_words_for_is_named_all_at_once():
    shards = EnumerableShardingSpec([ShardMetadata([0, 0], [4, 4], "rank:0/cuda:0")])
    sharding = ParameterSharding("table_wise", "fused", [0], shards)
    odd = {
        "ssd": dataclasses.replace(sharding, key_value_params=KeyValueParams()),
        "stats": dataclasses.replace(sharding, cache_params=CacheParams(stats=Statistics())),
        "kernel": dataclasses.replace(sharding, compute_kernel="key_value"),
        "nowhere": ParameterSharding("data_parallel", "dense"),
    }
    with pytest.raises(DiagnosticError) as raised:
        from_sharding_plan(ShardingPlan({"a": EmbeddingModuleShardingPlan(odd)}))
    found = [(each.code, each.message) for each in raised.value.diagnostics]
    assert [code for code, _ in found] == ["SH302"] * 4
    for (_, message), name, reason in zip(
        found, odd, ("key_value_params", "cache_params.stats", "compute_kernel", "on which ranks"), strict=True
    ):
        assert f'module "a", table "{name}"' in message
        assert reason in message


def test_ranks_that_torchrec_left_out_are_those_of_the_placements():
    shards = EnumerableShardingSpec(
        [ShardMetadata([0, 0], [4, 4], "rank:1/cpu"), ShardMetadata([0, 4], [4, 4], "rank:0/cpu")]
    )
    plan = ShardingPlan(
        {"a": EmbeddingModuleShardingPlan({"t": ParameterSharding("column_wise", "fused", None, shards)})}
    )
    assert from_sharding_plan(plan)["a"]["t"].ranks == (1, 0)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.data())
def test_any_plan_comes_back(data):
    dim = 4 * data.draw(st.integers(1, 8))
    rows = data.draw(st.integers(1, 50))
    ranks = data.draw(st.permutations(range(WORLD)))
    pieces = data.draw(st.integers(1, min(WORLD, dim // 4)))
    cuts = sorted(
        data.draw(st.sets(st.integers(1, dim // 4 - 1), min_size=pieces - 1, max_size=pieces - 1)) if pieces > 1 else ()
    )
    starts = [0, *(4 * cut for cut in cuts)]
    ends = [*starts[1:], dim]
    shards = [(rank, [0, a], [rows, b - a]) for rank, a, b in zip(ranks, starts, ends, strict=False)]
    optional = {
        "output_dtype": st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
        "bounds_check_mode": st.sampled_from(["fatal", "warning", "ignore", "none"]),
        "enforce_hbm": st.booleans(),
        "stochastic_rounding": st.booleans(),
    }
    table = {"sharding_type": "column_wise", "compute_kernel": "fused", "shards": shards}
    table |= data.draw(st.fixed_dictionaries({}, optional=optional))
    plan = document({"t": table}, data.draw(st.sampled_from([cpu, cuda])))
    assert from_sharding_plan(to_sharding_plan(plan)) == plan.plan
