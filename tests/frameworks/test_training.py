"""Models of several collections, planned by `ShardcPlanner`, train on real ranks as the unsharded ones do."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torch.distributed import checkpoint  # noqa: E402
from torchrec import (  # noqa: E402
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embedding import EmbeddingCollectionSharder  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.planner import ParameterConstraints, Topology  # noqa: E402
from torchrec.distributed.types import ShardedTensor  # noqa: E402
from torchrec.modules.embedding_configs import DataType  # noqa: E402
from torchrec.optim.optimizers import in_backward_optimizer_filter  # noqa: E402

from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks.torchrec import ShardcPlanner, from_sharding_plan  # noqa: E402
from shardc.plan import TablePlan  # noqa: E402
from shardc.problem import ShardingType  # noqa: E402

RATE, EPS, STEPS, BATCH = 0.05, 1e-8, 3, 4
OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
BAGS, SEQUENCES = "sparse.bags", "history.encoder.sequences"
WEIGHTED = "sparse.weighted"


@dataclass(frozen=True)
class Shape:
    """A table: its rows, columns and number of features."""

    rows: int
    dim: int
    features: int = 1


# One name in all three collections; rows that leave a short last block; 20 columns make pieces of different widths.
SHAPES = {
    BAGS: {"shared": Shape(1003, 20, 2), "a": Shape(7, 8), "b": Shape(50, 16, 3)},
    WEIGHTED: {"shared": Shape(11, 8, 2), "c": Shape(303, 20)},
    SEQUENCES: {"shared": Shape(101, 16, 2), "d": Shape(10, 16)},  # a sequence collection has tables of one width
}
Shapes = dict[str, dict[str, Shape]]


class AnyBagSharder(EmbeddingBagCollectionSharder):
    """TorchRec lists row-wise types for GPUs only, but runs them on a CPU too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return super().sharding_types("cuda")


def sharders(optimizer: str) -> list:
    fused = {"optimizer": OPTIMIZERS[optimizer], "learning_rate": RATE, "eps": EPS}
    return [AnyBagSharder(dict(fused)), EmbeddingCollectionSharder(dict(fused))]


def features(path: str, table: str, shape: Shape) -> list[str]:
    return [f"{path.split('.')[-1]}_{table}_{number}" for number in range(shape.features)]


class Model(torch.nn.Module):
    """Collections anywhere in a tree of modules."""

    def __init__(self, shapes: Shapes, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.paths = tuple(shapes)
        for path, tables in shapes.items():
            kind = EmbeddingConfig if path == SEQUENCES else EmbeddingBagConfig
            configs = [
                kind(
                    name=name,
                    num_embeddings=shape.rows,
                    embedding_dim=shape.dim,
                    feature_names=features(path, name, shape),
                )
                for name, shape in tables.items()
            ]
            if path == SEQUENCES:
                collection = EmbeddingCollection(tables=configs, device=torch.device(device))
            else:
                weighted = path == WEIGHTED
                collection = EmbeddingBagCollection(configs, is_weighted=weighted, device=torch.device(device))
            self._put(path, collection)

    def _put(self, path: str, collection: "torch.nn.Module") -> None:
        parent: torch.nn.Module = self
        *above, last = path.split(".")
        for name in above:
            if not hasattr(parent, name):
                parent.add_module(name, torch.nn.Module())
            parent = getattr(parent, name)
        parent.add_module(last, collection)

    def forward(self, batch: dict) -> dict:
        """Outputs by feature: pooled ones a sample, or one a lookup."""
        found = {}
        for path in self.paths:
            outputs = self.get_submodule(path)(batch[path])
            if path == SEQUENCES:
                found |= {feature: jagged.values() for feature, jagged in outputs.items()}
            else:
                found |= outputs.to_dict()
        return found


def batch_of(shapes: Shapes, first: int, last: int, total: int, step: int) -> tuple[dict, dict]:
    """Some samples of a step's global batch; and for each sequence feature which of all lookups they have."""
    generator = torch.Generator().manual_seed(step)
    batch, mine = {}, {}
    for path, tables in shapes.items():
        keys, values, lengths, weights = [], [], [], []
        for name, shape in tables.items():
            for feature in features(path, name, shape):
                counts = torch.randint(4, (total,), generator=generator)
                indices = torch.randint(shape.rows, (int(counts.sum()),), generator=generator)
                scores = torch.rand(int(counts.sum()), generator=generator)
                start, stop = int(counts[:first].sum()), int(counts[:last].sum())
                keys.append(feature)
                values.append(indices[start:stop])
                weights.append(scores[start:stop])
                lengths.append(counts[first:last])
                mine[feature] = slice(start, stop) if path == SEQUENCES else slice(first, last)
        batch[path] = KeyedJaggedTensor(
            keys, torch.cat(values), torch.cat(weights) if path == WEIGHTED else None, lengths=torch.cat(lengths)
        )
    return batch, mine


def loss(outputs: dict, samples: int) -> "torch.Tensor":
    """A mean over samples whose gradients differ from output to output."""
    return sum(
        (1 + number / len(outputs)) * outputs[key].square().sum() / samples
        for number, key in enumerate(sorted(outputs))
    )


def pieces(model: "torch.nn.Module", whole: dict) -> Iterator[tuple]:
    """Yield what this rank holds of every table: its name, the weights, the same part of `whole`."""
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                part = whole[name]
                for axis, start in enumerate(shard.metadata.shard_offsets):
                    part = part.narrow(axis, start, shard.metadata.shard_sizes[axis])
                yield name, shard.tensor, part
        else:
            yield name, value, whole[name]


def planned(model: Model, constraints: dict, optimizer: str, world: int, local: int) -> tuple:
    """A plan of all ranks, and its tables by the name of their weights."""
    topology = Topology(world, "cpu", local_world_size=local, created_by_factory=True)
    planner = ShardcPlanner(topology, batch_size=BATCH, constraints=constraints, effort="fast")
    plan = planner.collective_plan(model, sharders(optimizer), torch.distributed.group.WORLD)
    tables = {}
    for path, of_module in from_sharding_plan(plan).items():
        kind = "embeddings" if path == SEQUENCES else "embedding_bags"
        tables |= {f"{path}.{kind}.{name}.weight": table for name, table in of_module.items()}
    return plan, tables


def train(rank: int, world: int, local: int, shapes: Shapes, constraints: dict, optimizer: str) -> set[str]:
    """Some steps, each compared with those of the unsharded model; the sharding types that there were.

    Row-wise Adagrad on a piece keeps the mean square over the columns of that piece; so does what is expected of it.
    """
    single = Model(shapes)
    plan, tables = planned(Model(shapes, "meta"), constraints, optimizer, world, local)
    model = DistributedModelParallel(Model(shapes), device=torch.device("cpu"), plan=plan, sharders=sharders(optimizer))
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    dense_optimizer = torch.optim.SGD(dense.values(), lr=RATE) if dense else None
    first, last, total = rank * BATCH, (rank + 1) * BATCH, world * BATCH
    states: dict = {}
    with torch.no_grad():
        for _, mine, part in pieces(model, single.state_dict()):
            mine.copy_(part)
    for step in range(STEPS):
        expected = single(batch_of(shapes, 0, total, total, step)[0])
        batch, own = batch_of(shapes, first, last, total, step)
        outputs = model(batch)
        assert outputs.keys() == expected.keys()
        for key, value in outputs.items():
            torch.testing.assert_close(value, expected[key][own[key]], rtol=1e-5, atol=1e-5)
        loss(outputs, BATCH).backward()
        loss(expected, total).backward()
        if dense_optimizer:
            dense_optimizer.step()
            dense_optimizer.zero_grad()
        before = {name: value.clone() for name, value in single.state_dict().items()}
        with torch.no_grad():
            for name, weights in single.named_parameters():
                update(name, weights, tables[name], optimizer, states)
        single.zero_grad()
        after = single.state_dict()
        for name, mine, part in pieces(model, after):
            torch.testing.assert_close(
                mine, part, rtol=1e-4, atol=1e-6, msg=lambda text, at=(step, name, tables[name]): f"{at}: {text}"
            )
        # A step that changed nothing would prove nothing.
        assert all(not torch.equal(after[name], before[name]) for name in before)
    return {table.sharding_type for table in tables.values()}


def update(name: str, weights: "torch.Tensor", table: TablePlan, optimizer: str, states: dict) -> None:
    """A step of the unsharded table, as its pieces take it."""
    extents = [(shard.shard_offsets, shard.shard_sizes) for shard in table.shards]
    for (row, column), (rows, columns) in extents or [((0, 0), tuple(weights.shape))]:
        at = (slice(row, row + rows), slice(column, column + columns))
        change = weights.grad[at]
        if optimizer == "rowwise_adagrad" and table.shards:
            key = (name, row, column)
            states[key] = states.get(key, 0.0) + change.square().mean(1, keepdim=True)
            change = change / (states[key].sqrt() + EPS)
        weights[at] -= RATE * change


def limited(shapes: Shapes, types: list[str]) -> dict:
    """Constraints that give the tables these sharding types in turn; those that a sequence collection has not, to none.

    Constraints are by name, so tables of one name in several collections get the same.
    """
    in_sequences = {"table_wise", "column_wise", "row_wise"}
    names = sorted({name for tables in shapes.values() for name in tables})
    both = {name: [types[i % len(types)]] for i, name in enumerate(names)}
    for name in shapes.get(SEQUENCES, {}):
        if not in_sequences & set(both[name]):
            both[name] = ["table_wise"]
    return {name: ParameterConstraints(sharding_types=allowed) for name, allowed in both.items()}


def without_sequences(shapes: Shapes) -> Shapes:
    return {path: tables for path, tables in shapes.items() if path != SEQUENCES}


@settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def random_models_train(rank: int, world: int, local: int, data: st.DataObject) -> None:
    """Whatever a model is made of, its plan runs; the same examples on all ranks."""
    shape = st.builds(Shape, st.integers(1, 60), st.sampled_from([4, 8, 12, 20]), st.integers(1, 2))
    shapes: Shapes = {}
    for path in data.draw(st.lists(st.sampled_from([BAGS, WEIGHTED, SEQUENCES]), min_size=1, unique=True)):
        tables = data.draw(st.dictionaries(st.sampled_from("abcd"), shape, min_size=1))
        if path == SEQUENCES:
            tables = {name: Shape(each.rows, 8, each.features) for name, each in tables.items()}
        shapes[path] = tables
    optimizer = data.draw(st.sampled_from(list(OPTIMIZERS)))
    train(rank, world, local, shapes, {}, optimizer)


def checkpoints_move(rank: int, world: int, local: int, folder: Path) -> None:
    """Weights saved under one plan, loaded under another: the same outputs."""
    batch, _ = batch_of(SHAPES, rank * BATCH, (rank + 1) * BATCH, world * BATCH, 0)
    outputs = []
    for types in (["row_wise", "column_wise"], ["column_wise", "data_parallel", "table_wise"]):
        plan, _ = planned(Model(SHAPES, "meta"), limited(SHAPES, types), "sgd", world, local)
        model = DistributedModelParallel(Model(SHAPES), device=torch.device("cpu"), plan=plan, sharders=sharders("sgd"))
        state = model.state_dict()
        if outputs:
            with torch.no_grad():
                for value in state.values():
                    for tensor in (
                        [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
                    ):
                        tensor.zero_()
            checkpoint.load(state, checkpoint_id=folder)
            model.load_state_dict(state)
        else:
            checkpoint.save(state, checkpoint_id=folder)
        outputs.append(model(batch))
    assert outputs[0].keys() == outputs[1].keys()
    for key, value in outputs[0].items():
        assert value.abs().sum() > 0
        torch.testing.assert_close(outputs[1][key], value, rtol=1e-6, atol=1e-6)


def failures_reach_all_ranks(rank: int, world: int) -> None:
    """What keeps the first rank from planning keeps all of them from waiting."""
    topology = Topology(world, "cpu", created_by_factory=True)
    model = Model(SHAPES, "meta")
    with pytest.raises(DiagnosticError, match='SH611 constraints: no module that is sharded has a table "z"'):
        ShardcPlanner(topology, constraints={"z": ParameterConstraints()}).collective_plan(model, sharders("sgd"))

    class Broken:
        def encode(self, shards):
            raise RuntimeError("no such cost")

        def score(self, z):
            raise AssertionError

    with pytest.raises(RuntimeError if rank == 0 else DiagnosticError, match="no such cost"):
        ShardcPlanner(topology, cost=Broken()).collective_plan(model, sharders("sgd"))
    with pytest.raises(
        DiagnosticError, match=f"SH605 the topology is for {world + 1} ranks, the process group has {world}"
    ):
        ShardcPlanner(Topology(world + 1, "cpu", created_by_factory=True)).collective_plan(model, sharders("sgd"))


def other_hosts_are_refused(rank: int, world: int) -> None:
    """TorchRec takes the ranks for those of one host, the topology does not."""
    topology = Topology(world, "cpu", local_world_size=1, created_by_factory=True)
    with pytest.raises(DiagnosticError) as raised:
        ShardcPlanner(topology).collective_plan(Model(SHAPES, "meta"), sharders("sgd"))
    (finding,) = raised.value.diagnostics
    assert (finding.code, raised.value.exit_code) == ("SH605", 2)
    assert finding.message == f"the topology is for hosts of 1 ranks, TorchRec takes {world} ranks for a host"


def on_two_ranks(rank: int, folder: Path) -> None:
    types = ["table_wise", "column_wise", "row_wise", "data_parallel"]
    for optimizer, type in itertools.product(OPTIMIZERS, types):
        shapes = without_sequences(SHAPES) if type == "data_parallel" else SHAPES
        assert train(rank, 2, 2, shapes, limited(shapes, [type]), optimizer) == {type}
    for optimizer in OPTIMIZERS:
        constraints = limited(SHAPES, types[::-1])
        if optimizer == "sgd":  # what is passed on to the kernels
            more = {"bounds_check_mode": BoundsCheckMode.WARNING, "output_dtype": DataType.FP32}
            constraints = {name: replace(each, stochastic_rounding=False, **more) for name, each in constraints.items()}
        assert train(rank, 2, 2, SHAPES, constraints, optimizer) == set(types)
    checkpoints_move(rank, 2, 2, folder / "checkpoint")
    failures_reach_all_ranks(rank, 2)
    other_hosts_are_refused(rank, 2)
    random_models_train(rank, 2, 2)


def on_four_ranks(rank: int) -> None:
    bags = without_sequences(SHAPES)
    for optimizer, type in itertools.product(OPTIMIZERS, ShardingType):
        assert train(rank, 4, 2, bags, limited(bags, [type]), optimizer) == {type}
    for optimizer in OPTIMIZERS:
        types = train(rank, 4, 2, SHAPES, limited(SHAPES, list(map(str, ShardingType))), optimizer)
        assert len(types) >= 4


def test_two_ranks(tmp_path: Path) -> None:
    run_ranks(on_two_ranks, (tmp_path,), hosts=1, devices=2, folder=tmp_path)


def test_two_hosts_of_two_ranks(tmp_path: Path) -> None:
    run_ranks(on_four_ranks, (), hosts=2, devices=2, folder=tmp_path)
