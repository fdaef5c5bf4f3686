"""What plans say that tables take of each device, held against what FBGEMM and TorchRec allocate for them."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.modules.embedding_configs import DataType  # noqa: E402
from torchrec.optim import RowWiseAdagrad  # noqa: E402
from torchrec.optim.optimizers import in_backward_optimizer_filter  # noqa: E402

import shardc  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402
from shardc.plan import Plan, plan_bytes, read_plan  # noqa: E402
from shardc.problem import ShardingType  # noqa: E402

HOSTS, LOCAL, BATCH = 2, 2, 2
WITHIN, BESIDE = 0.03, 2000  # of what is allocated, and bytes: an operator without tables has some, too
RANKS = HOSTS * LOCAL
OPTIMIZERS = {
    "sgd": (EmbOptimType.EXACT_SGD, torch.optim.SGD),
    "rowwise_adagrad": (EmbOptimType.EXACT_ROWWISE_ADAGRAD, RowWiseAdagrad),
    "adagrad": (EmbOptimType.EXACT_ADAGRAD, torch.optim.Adagrad),
}
# A short last block of rows, columns in pieces of two widths, and two features.
TABLES = {"narrow": (40_001, 20, ["f0"]), "wide": (12_002, 72, ["f1", "f2"])}


def compiled(type: str, optimizer: str, weights: str) -> Plan:
    """Two tables of one sharding type, and so few samples that tables are nearly all there is."""
    spec = {
        "format": 1,
        "model": {
            "name": f"{type}, {optimizer}, {weights}",
            "module": "ebc",
            "global_batch": BATCH * RANKS,
            "optimizer": optimizer,
            "weights": weights,
        },
        "cluster": {"device": "h100-80gb", "hosts": HOSTS, "devices_per_host": LOCAL},
        "compile": {"effort": "fast"},
        "defaults": {"pooling": 2.0, "access": "uniform", "sharding": [type]},
        "table": [
            {"name": name, "rows": rows, "dim": dim, "features": features}
            for name, (rows, dim, features) in TABLES.items()
        ],
    }
    return shardc.compile(spec)


class Model(torch.nn.Module):
    def __init__(self, weights: DataType) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features, data_type=weights
            )
            for name, (rows, dim, features) in TABLES.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))

    def forward(self, features: KeyedJaggedTensor) -> dict:
        return self.ebc(features).to_dict()


def allocated(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of all tensors that a model, its gradients and its optimizers hold on to, each counted once."""
    storages: dict[int, int] = {}

    def count(value: object) -> None:
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()

    # A sharded collection keeps the modules that look up in a list, where modules() does not see them.
    lookups = [lookup for module in model.modules() for lookup in getattr(module, "_lookups", ())]
    for module in (each for top in (model, *lookups) for each in top.modules()):
        for members in (vars(module), module._parameters, module._buffers):
            for value in members.values():
                count(value)
                count(getattr(value, "grad", None))
    for state in optimizer.state.values() if optimizer else ():
        for value in state.values():
            count(value)
    storages.pop(0, None)
    return sum(storages.values())


def train(rank: int, folder: str) -> None:
    """One rank: a step by each plan, after which everything is allocated."""
    wrong = []
    for path in sorted(Path(folder).glob("*.plan.json")):
        plan = read_plan(path)
        fused, dense = OPTIMIZERS[plan.model.optimizer]
        sharder = EmbeddingBagCollectionSharder({"optimizer": fused, "learning_rate": 0.1})
        model = DistributedModelParallel(
            Model(DataType.FP16 if plan.model.weights == "fp16" else DataType.FP32),
            device=torch.device("cpu"),
            plan=load_plan(plan, device_type="cpu"),
            sharders=[sharder],
        )
        replicas = dict(in_backward_optimizer_filter(model.named_parameters())).values()
        optimizer = dense(replicas, lr=0.1) if replicas else None
        lengths = torch.full((3 * BATCH,), 2, dtype=torch.int64)
        values = torch.arange(3 * BATCH * 2) * 97 + rank
        pooled = model(KeyedJaggedTensor(["f0", "f1", "f2"], values, lengths=lengths))
        sum(value.float().square().sum() for value in pooled.values()).backward()
        if optimizer:
            optimizer.step()
        stated, found = plan.score.devices[rank].memory_bytes, allocated(model, optimizer)
        if not found - BESIDE <= stated <= found * (1 + WITHIN) + BESIDE:  # never less
            wrong.append(f"{plan.model.name}: rank {rank} states {stated}, and {found} are allocated")
    assert not wrong, "\n".join(wrong)


def test_devices_hold_what_the_plan_says(tmp_path: Path) -> None:
    """Weights, gradients of replicas and optimizer state, of every sharding type: no less, and 3 % more at most."""
    variants = [(optimizer, "fp32") for optimizer in OPTIMIZERS] + [("rowwise_adagrad", "fp16")]
    for type in ShardingType:
        for optimizer, weights in variants:
            path = tmp_path / f"{type}-{optimizer}-{weights}.plan.json"
            path.write_bytes(plan_bytes(compiled(type, optimizer, weights)))
    run_ranks(train, (str(tmp_path),), hosts=HOSTS, devices=LOCAL, folder=tmp_path)
