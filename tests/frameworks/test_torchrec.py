import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.types import ShardedTensor  # noqa: E402
from torchrec.models.dlrm import DLRM_DCN  # noqa: E402
from torchrec.modules.embedding_configs import EmbeddingBagConfig  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingBagCollection  # noqa: E402
from torchrec.optim.optimizers import in_backward_optimizer_filter  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

import shardc  # noqa: E402
from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402
from shardc.plan import Plan, plan_bytes  # noqa: E402

# MLPerf's DLRM-DCNv2, scaled down to what two processes on one core train in a moment.
FULL_ROWS = [40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10]
FULL_ROWS += [2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36]
FULL_POOLING = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]
ROWS = [min(rows, 2001) for rows in FULL_ROWS]
ROWS[2] = 3  # row-wise in the plan below: a short last block
POOLING = [min(pooling, 5) for pooling in FULL_POOLING]
DIM, DENSE, BATCH, DEVICES, RATE = 16, 13, 64, 2, 0.5
MODULE = "sparse_arch.embedding_bag_collection"


def whole_table(table: int) -> dict:
    rank = table // 4 % 2
    return placed("table_wise", [(rank, [0, 0], [ROWS[table], DIM])])


def columns(table: int) -> dict:
    # Every second one in uneven pieces and against the order of ranks.
    first, ranks = (8, (0, 1)) if table // 4 % 2 else (4, (1, 0))
    pieces = [(ranks[0], [0, 0], [ROWS[table], first]), (ranks[1], [0, first], [ROWS[table], DIM - first])]
    return placed("column_wise", pieces)


def rows(table: int) -> dict:
    block = -(-ROWS[table] // DEVICES)
    return placed("row_wise", [(0, [0, 0], [block, DIM]), (1, [block, 0], [ROWS[table] - block, DIM])])


def replicas(table: int) -> dict:
    return {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": [0, 1]}


def placed(sharding_type: str, pieces: list) -> dict:
    return {
        "sharding_type": sharding_type,
        "compute_kernel": "fused",
        "ranks": [rank for rank, _, _ in pieces],
        "shards": [
            {"shard_offsets": offsets, "shard_sizes": sizes, "placement": f"rank:{rank}/cuda:{rank}"}
            for rank, offsets, sizes in pieces
        ],
    }


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan for two GPUs in which every sharding type has tables of every size."""
    kinds = [whole_table, columns, rows, replicas]
    tables = {f"t_cat_{table}": kinds[table % 4](table) for table in range(len(ROWS))}
    document = {
        "format": 1,
        "model": {
            "name": "dlrm",
            "module": MODULE,
            "global_batch": BATCH,
            "optimizer": "sgd",
            "weights": "fp32",
            "outputs": "fp32",
        },
        "cluster": {"device": "gpu", "hosts": 1, "devices_per_host": DEVICES},
        "digests": {"spec": "", "profile": None},
        "tool": {"version": "0", "seed": 0},
        "plan": {MODULE: tables},
        "score": {"step_time_ms": 0.0, "phases": {}, "balance": 1.0, "devices": []},
        "bound": None,
        "chosen": {"strategy": "by hand", "reason": "only"},
        "candidates": [],
    }
    return Plan.model_validate(document)


@pytest.fixture(scope="module")
def compiled() -> Plan:
    """A plan that shardc compiled for the same model, its tables held to one sharding type in turn."""
    kinds = ["table_wise", "column_wise", "row_wise", "data_parallel"]
    spec = {
        "format": 1,
        "model": {"name": "dlrm", "module": MODULE, "global_batch": BATCH, "optimizer": "sgd"},
        "cluster": {"device": "h100-80gb", "devices_per_host": DEVICES},
        "defaults": {"dim": DIM, "access": "uniform"},
        "table": [
            {
                "name": f"t_cat_{i}",
                "features": [f"cat_{i}"],
                "rows": ROWS[i],
                "pooling": POOLING[i],
                "sharding": [kinds[i % 4] if ROWS[i] > 1 else "table_wise"],
            }
            for i in range(len(ROWS))
        ],
    }
    compiled = shardc.compile(spec)
    assert {table.sharding_type for table in compiled.plan[MODULE].values()} == set(kinds)
    return compiled


def dlrm() -> DLRM_DCN:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t_cat_{i}", embedding_dim=DIM, num_embeddings=ROWS[i], feature_names=[f"cat_{i}"])
        for i in range(len(ROWS))
    ]
    return DLRM_DCN(
        EmbeddingBagCollection(tables=tables, device=torch.device("cpu")),
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[32, DIM],
        over_arch_layer_sizes=[32, 1],
        dcn_num_layers=2,
        dcn_low_rank_dim=8,
    )


def batch(first: int, last: int) -> tuple:
    """Samples of the global batch: dense features, lookups of varying number, labels."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.rand(BATCH, DENSE, generator=generator)
    labels = torch.randint(2, (BATCH,), generator=generator).float()
    values, lengths = [], []
    for table, pooling in enumerate(POOLING):
        counts = torch.randint(2 * pooling + 1, (BATCH,), generator=generator)
        indices = torch.randint(ROWS[table], (int(counts.sum()),), generator=generator)
        values += indices.split(counts.tolist())[first:last]
        lengths.append(counts[first:last])
    keys = [f"cat_{table}" for table in range(len(ROWS))]
    sparse = KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))
    return dense[first:last], sparse, labels[first:last]


def loss(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels)


def local_parts(model: "torch.nn.Module", whole: dict) -> list[tuple]:
    """Pair what this rank holds of every parameter with the same part of `whole`."""
    pairs = []
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                part = whole[name]
                for axis, start in enumerate(shard.metadata.shard_offsets):
                    part = part.narrow(axis, start, shard.metadata.shard_sizes[axis])
                pairs.append((name, shard.tensor, part))
        else:
            pairs.append((name, value, whole[name]))
    return pairs


def train_one_step(rank: int, path: Path) -> None:
    """One rank: train a step by the plan, and compare everything with the same step of the unsharded model."""
    single = dlrm()
    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": RATE})
    model = DistributedModelParallel(
        dlrm(), device=torch.device("cpu"), plan=load_plan(path, device_type="cpu"), sharders=[sharder]
    )
    with torch.no_grad():
        for _, mine, part in local_parts(model, single.state_dict()):
            mine.copy_(part)

    first, last = rank * BATCH // DEVICES, (rank + 1) * BATCH // DEVICES
    dense, sparse, labels = batch(first, last)
    whole_dense, whole_sparse, whole_labels = batch(0, BATCH)
    expected = single.sparse_arch.embedding_bag_collection(whole_sparse).to_dict()
    pooled = model.module.sparse_arch.embedding_bag_collection(sparse).to_dict()
    assert pooled.keys() == expected.keys()
    for key, value in pooled.items():
        torch.testing.assert_close(value, expected[key][first:last], rtol=1e-6, atol=1e-6)

    dense_optimizer = torch.optim.SGD(dict(in_backward_optimizer_filter(model.named_parameters())).values(), lr=RATE)
    logits = model(dense, sparse)
    loss(logits, labels).backward()
    dense_optimizer.step()

    before = {name: value.clone() for name, value in single.state_dict().items()}
    whole_logits = single(whole_dense, whole_sparse)
    torch.testing.assert_close(logits, whole_logits[first:last], rtol=1e-5, atol=1e-6)
    loss(whole_logits, whole_labels).backward()
    torch.optim.SGD(single.parameters(), lr=RATE).step()

    after = single.state_dict()
    for name, mine, part in local_parts(model, after):
        torch.testing.assert_close(mine, part, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    # A step that changed nothing would prove nothing.
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert model.state_dict().keys() == after.keys()


@pytest.mark.parametrize("source", ["compiled", "plan"])
def test_trains_a_step_as_the_unsharded_model_does(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = tmp_path / "dlrm.plan.json"
    path.write_bytes(plan_bytes(request.getfixturevalue(source)))
    run_ranks(train_one_step, (path,), hosts=1, devices=DEVICES, folder=tmp_path)


def test_the_plan_as_torchrec_has_it(plan: Plan) -> None:
    tables = load_plan(plan).plan[MODULE]
    assert list(tables) == list(plan.plan[MODULE])
    assert tables["t_cat_3"].sharding_spec is None
    assert (tables["t_cat_3"].compute_kernel, tables["t_cat_3"].ranks) == ("dense", [0, 1])
    table = tables["t_cat_1"]
    assert (table.sharding_type, table.compute_kernel, table.ranks) == ("column_wise", "fused", [1, 0])
    shards = table.sharding_spec.shards
    assert [shard.shard_offsets for shard in shards] == [[0, 0], [0, 4]]
    assert [shard.shard_sizes for shard in shards] == [[2001, 4], [2001, 12]]
    assert [str(shard.placement) for shard in shards] == ["rank:1/cuda:1", "rank:0/cuda:0"]


def test_moves_a_plan_to_another_kind_of_device(plan: Plan) -> None:
    document = plan.model_dump()
    document["cluster"].update(hosts=2, devices_per_host=1)
    for table in document["plan"][MODULE].values():
        for shard in table.get("shards", ()):
            shard["placement"] = shard["placement"].partition(":")[0] + f":{shard['placement'][5]}/cuda:0"
    for kind, expected in (("cpu", ["rank:0/cpu", "rank:1/cpu"]), ("cuda", ["rank:0/cuda:0", "rank:1/cuda:0"])):
        shards = load_plan(Plan.model_validate(document), kind).plan[MODULE]["t_cat_2"].sharding_spec.shards
        assert [str(shard.placement) for shard in shards] == expected


def test_says_what_to_install(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec.distributed", None)
    for needing in (lambda: load_plan(plan), lambda: shardc.frameworks.torchrec.ShardcPlanner):
        with pytest.raises(DiagnosticError) as raised:
            needing()
        (finding,) = raised.value.diagnostics
        assert (finding.code, raised.value.exit_code) == ("SH604", 2)
    assert "pip install --no-deps torchrec==1.9.2" in finding.help


def test_costs_no_import_of_torch_before_it_is_called() -> None:
    code = "import sys, shardc.frameworks.torchrec; assert 'torch' not in sys.modules and 'torchrec' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.fixture(scope="module")
def cached() -> Plan:
    """A plan in which some tables are in host memory."""
    tables = [
        {"name": "hot", "rows": 1000, "kernels": ["fused"]},
        {"name": "cold", "rows": 1000, "kernels": ["fused_uvm_caching"], "cache_ratio": 0.1},
        {"name": "columns", "rows": 1000, "kernels": ["fused_uvm_caching"], "sharding": ["column_wise"]},
        {"name": "replica", "rows": 10, "kernels": ["fused", "fused_uvm_caching"], "sharding": ["data_parallel"]},
    ]
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": BATCH},
        "cluster": {"device": "h100-80gb", "devices_per_host": DEVICES, "host_memory": "1TB"},
        "defaults": {"dim": DIM, "pooling": 2, "sharding": ["table_wise"]},
        "table": tables,
    }
    return shardc.compile(spec)


def test_caches_as_torchrec_has_them(cached: Plan) -> None:
    """What TorchRec hands to FBGEMM's operator on a GPU. A CPU has no such cache, so this cannot be run on one."""
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel, compute_kernel_to_embedding_location
    from torchrec.distributed.utils import add_params_from_parameter_sharding

    tables = load_plan(cached).plan["ebc"]
    kernels = {name: table.compute_kernel for name, table in tables.items()}
    assert kernels == {"hot": "fused", "cold": "fused_uvm_caching", "columns": "fused_uvm_caching", "replica": "dense"}
    factors = {name: table.cache_params and table.cache_params.load_factor for name, table in tables.items()}
    assert factors == {"hot": None, "cold": 0.1, "columns": 0.2, "replica": None}
    for name in ("cold", "columns"):
        location = compute_kernel_to_embedding_location(EmbeddingComputeKernel(kernels[name]))
        assert location.name == "MANAGED_CACHING"
        assert add_params_from_parameter_sharding({}, tables[name])["cache_load_factor"] == factors[name]
    assert "cache_load_factor" not in add_params_from_parameter_sharding({}, tables["hot"])


def test_on_cpus_a_cached_table_is_a_table_like_any_other(cached: Plan) -> None:
    tables = load_plan(cached, device_type="cpu").plan["ebc"]
    assert {table.compute_kernel for table in tables.values()} == {"fused", "dense"}
    assert all(table.cache_params is None for table in tables.values())


def look_up(rank: int, path: Path) -> None:
    """One rank: the plan's tables, cached ones among them, look up what the unsharded ones do."""
    features = ("hot", "cold", "columns", "replica")
    configs = [
        EmbeddingBagConfig(name=n, embedding_dim=DIM, num_embeddings=10 if n == "replica" else 1000, feature_names=[n])
        for n in features
    ]
    model = torch.nn.Module()
    torch.manual_seed(0)
    model.ebc = EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    lengths = torch.ones(4 * BATCH // DEVICES, dtype=torch.int64)
    sparse = KeyedJaggedTensor(list(features), torch.arange(len(lengths)) % 10, lengths=lengths)
    expected = {name: value.detach().clone() for name, value in model.ebc(sparse).to_dict().items()}
    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": RATE})
    sharded = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=load_plan(path, device_type="cpu"), sharders=[sharder]
    )
    with torch.no_grad():
        for _, mine, part in local_parts(sharded, whole):
            mine.copy_(part)
    found = sharded.module.ebc(sparse).to_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_plan_with_caches_runs_on_cpu_processes_without_them(cached: Plan, tmp_path: Path) -> None:
    path = tmp_path / "cached.plan.json"
    path.write_bytes(plan_bytes(cached))
    run_ranks(look_up, (path,), hosts=1, devices=DEVICES, folder=tmp_path)
