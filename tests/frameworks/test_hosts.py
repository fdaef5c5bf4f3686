"""Every sharding type on two hosts of two devices trains as the unsharded model does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.types import ShardedTensor  # noqa: E402
from torchrec.optim.optimizers import in_backward_optimizer_filter  # noqa: E402

import shardc  # noqa: E402
from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402
from shardc.hardware import load_hardware  # noqa: E402
from shardc.passes.lower import lower_cluster  # noqa: E402
from shardc.passes.verify import verify  # noqa: E402
from shardc.plan import Plan, plan_bytes, read_plan  # noqa: E402
from shardc.problem import ShardingType  # noqa: E402
from shardc.spec import parse_spec  # noqa: E402

HOSTS, LOCAL, BATCH, RATE, EPS, STEPS = 2, 2, 8, 0.05, 1e-8, 2
RANKS = range(HOSTS * LOCAL)
OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
# Rows, columns and features of the tables of each type. Rows that are no multiple of the devices leave a short last
# block; 20 columns make pieces of different widths.
WHOLE = [(1, 20, 2), (1003, 8, 1), (7, 20, 3)]
SHAPES = {
    "table_wise": WHOLE,
    "column_wise": WHOLE,
    "table_column_wise": WHOLE,
    "row_wise": [(10, 8, 1), (1003, 20, 2), (4, 16, 3)],
    "table_row_wise": [(3, 8, 1), (1003, 20, 2), (2, 16, 3)],
    "grid_shard": [(3, 8, 1), (1003, 20, 2), (2, 16, 3)],
    "data_parallel": WHOLE,
}
# Names whose order is not that of the types, so that outputs have to be put in order.
TABLES = {
    f"t{number}_{type}": (type, rows, dim, [f"f{feature}_t{number}_{type}" for feature in range(features)])
    for number in range(3)
    for type, shapes in SHAPES.items()
    for rows, dim, features in [shapes[number]]
}


def spec(optimizer: str) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": BATCH * len(RANKS), "optimizer": optimizer},
        "cluster": {"device": "h100-80gb", "hosts": HOSTS, "devices_per_host": LOCAL},
        "defaults": {"pooling": 2.0, "access": "uniform"},
        "table": [
            {"name": name, "features": features, "rows": rows, "dim": dim, "sharding": [type]}
            for name, (type, rows, dim, features) in TABLES.items()
        ],
    }


def widths(plan: Plan, type: str) -> set[tuple[int, ...]]:
    """The different widths of the pieces of each table of a type."""
    tables = [table for table in plan.plan["ebc"].values() if table.sharding_type == type]
    return {tuple(sorted({shard.shard_sizes[1] for shard in table.shards})) for table in tables}


def compiled(optimizer: str) -> Plan:
    plan = shardc.compile(spec(optimizer))
    assert {table.sharding_type for table in plan.plan["ebc"].values()} == set(map(str, ShardingType))
    assert (8, 12) in widths(plan, "table_column_wise") & widths(plan, "grid_shard")
    assert any(len(pieces) > 1 for pieces in widths(plan, "column_wise"))
    return plan


def by_hand(optimizer: str) -> Plan:
    """Pieces of unlike widths against the order of ranks and hosts; table_row_wise on one host only."""
    # Of each type the devices or hosts of its pieces: all but the last have four columns.
    places = {
        "table_wise": [2],
        "column_wise": [3, 0, 2],
        "table_column_wise": [3, 2],
        "row_wise": [0],
        "table_row_wise": [1],
        "grid_shard": [1, 0],
    }
    tables = {}
    for name, (type, rows, dim, _) in TABLES.items():
        if type == "data_parallel":
            replicas = {"sharding_type": type, "compute_kernel": "dense", "ranks": list(RANKS), "shape": [rows, dim]}
            tables[name] = replicas
            continue
        devices = {"row_wise": len(RANKS), "table_row_wise": LOCAL, "grid_shard": LOCAL}.get(type, 1)
        block, pieces = -(-rows // devices), places[type][: dim // 4]
        ranks, shards = [], []
        for piece, place in enumerate(pieces):
            first = 4 * piece
            width = 4 if piece + 1 < len(pieces) else dim - first
            for number, rank in enumerate(range(place * devices, (place + 1) * devices)):
                ranks.append(rank)
                shards.append(
                    {
                        "shard_offsets": [number * block, first],
                        "shard_sizes": [min(block, rows - number * block), width],
                        "placement": f"rank:{rank}/cuda:{rank % LOCAL}",
                    }
                )
        tables[name] = {"sharding_type": type, "compute_kernel": "fused", "ranks": ranks, "shards": shards}
    loaded = parse_spec(spec(optimizer))
    plan = Plan.model_validate(shardc.compile(loaded).model_dump() | {"plan": {"ebc": tables}})
    findings = verify(plan, loaded, lower_cluster(loaded, [load_hardware("h100-80gb")]))
    assert {finding.code for finding in findings} <= {"SH310"}  # the score is another plan's
    return plan


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        tables = [
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features)
            for name, (_, rows, dim, features) in TABLES.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))

    def forward(self, features: KeyedJaggedTensor) -> dict:
        return self.ebc(features).to_dict()


def batch(first: int, last: int, step: int) -> KeyedJaggedTensor:
    """Samples of a step's global batch: lookups of varying number, of any row."""
    generator = torch.Generator().manual_seed(step)
    keys, values, lengths = [], [], []
    for _, rows, _, features in TABLES.values():
        for feature in features:
            counts = torch.randint(6, (BATCH * len(RANKS),), generator=generator)
            indices = torch.randint(rows, (int(counts.sum()),), generator=generator)
            keys.append(feature)
            values += indices.split(counts.tolist())[first:last]
            lengths.append(counts[first:last])
    return KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))


def loss(pooled: dict) -> "torch.Tensor":
    """A mean over samples whose gradients differ from output to output."""
    return sum(
        (1 + number / len(pooled)) * pooled[key].square().sum(1).mean() for number, key in enumerate(sorted(pooled))
    )


def pieces(model: "torch.nn.Module", whole: dict) -> Iterator[tuple]:
    """Yield what this rank holds of every table: its name, the weights, the same part of `whole`, its offsets."""
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                part = whole[name]
                for axis, start in enumerate(shard.metadata.shard_offsets):
                    part = part.narrow(axis, start, shard.metadata.shard_sizes[axis])
                yield name, shard.tensor, part, tuple(shard.metadata.shard_offsets)
        else:
            yield name, value, whole[name], None


def train(rank: int, path: str) -> None:
    """One rank: train some steps by the plan, and compare them with those of the unsharded model.

    Row-wise Adagrad on a piece keeps the mean square over the columns of that piece; so does what is expected of it.
    """
    document = read_plan(path)
    single, adagrad = Model(), document.model.optimizer == "rowwise_adagrad"
    fused = {"optimizer": OPTIMIZERS[document.model.optimizer], "learning_rate": RATE, "eps": EPS}
    model = DistributedModelParallel(
        Model(),
        device=torch.device("cpu"),
        plan=load_plan(document, device_type="cpu"),
        sharders=[EmbeddingBagCollectionSharder(fused)],
    )
    dense = torch.optim.SGD(dict(in_backward_optimizer_filter(model.named_parameters())).values(), lr=RATE)
    first, last = rank * BATCH, (rank + 1) * BATCH
    states: dict = {}
    with torch.no_grad():
        for _, mine, part, _ in pieces(model, single.state_dict()):
            mine.copy_(part)
    for step in range(STEPS):
        expected, pooled = single(batch(0, BATCH * len(RANKS), step)), model(batch(first, last, step))
        assert list(pooled) and pooled.keys() == expected.keys()
        for key, value in pooled.items():
            torch.testing.assert_close(value, expected[key][first:last], rtol=1e-5, atol=1e-5)
        loss(pooled).backward()
        loss(expected).backward()
        dense.step()
        dense.zero_grad()
        before = {name: value.clone() for name, value in single.state_dict().items()}
        gradients = {name: parameter.grad for name, parameter in single.named_parameters()}
        with torch.no_grad():
            for name, weights in single.state_dict().items():
                table = document.plan["ebc"][name.split(".")[2]]
                extents = [(shard.shard_offsets, shard.shard_sizes) for shard in table.shards]
                for (row, column), (rows, columns) in extents or [((0, 0), tuple(weights.shape))]:
                    at = (slice(row, row + rows), slice(column, column + columns))
                    change = gradients[name][at]
                    if adagrad and table.shards:
                        key = (name, row, column)
                        states[key] = states.get(key, 0.0) + change.square().mean(1, keepdim=True)
                        change = change / (states[key].sqrt() + EPS)
                    weights[at] -= RATE * change
        single.zero_grad()
        after = single.state_dict()
        for name, mine, part, offsets in pieces(model, after):
            torch.testing.assert_close(
                mine, part, rtol=1e-4, atol=1e-6, msg=lambda text, at=(step, name, offsets): f"{at}: {text}"
            )
        # A step that changed nothing would prove nothing.
        assert all(not torch.equal(after[name], before[name]) for name in before)
    assert model.state_dict().keys() == single.state_dict().keys()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("plan", [compiled, by_hand])
def test_trains_on_two_hosts_as_the_unsharded_model_does(plan, optimizer: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_bytes(plan(optimizer)))
    run_ranks(train, (str(path),), hosts=HOSTS, devices=LOCAL, folder=tmp_path)


def load_elsewhere(rank: int, path: str) -> None:
    """One rank of a group that is not the plan's: of another number of ranks, or of other hosts."""
    with pytest.raises(DiagnosticError) as raised:
        load_plan(path, device_type="cpu")
    (finding,) = raised.value.diagnostics
    assert (finding.code, raised.value.exit_code) == ("SH605", 2)


@pytest.mark.parametrize(("hosts", "devices"), [(1, 2), (1, 4)])
def test_a_process_group_that_is_not_the_plans_is_refused(hosts: int, devices: int, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(plan_bytes(compiled("sgd")))
    run_ranks(load_elsewhere, (str(path),), hosts=hosts, devices=devices, folder=tmp_path)
