"""Train a small DLRM-DCNv2 by a plan that shardc compiled, on CPU processes or GPUs.

torchrun --nproc-per-node 2 examples/train_dlrm.py --plan examples/dlrm-small.plan.json
"""

import argparse
import gc
import os
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.models.dlrm import DLRM_DCN
from torchrec.optim.optimizers import in_backward_optimizer_filter

from shardc.frameworks.torchrec import load_plan
from shardc.plan import read_plan
from shardc.spec import Table, load_spec

DENSE_FEATURES = 13
LEARNING_RATE = 0.5


def build_model(tables: tuple[Table, ...]) -> DLRM_DCN:
    """DLRM-DCNv2, its embedding tables on "meta": only the shards are ever allocated."""
    configs = [EmbeddingBagConfig(t.rows, t.dim, name=t.name, feature_names=list(t.features)) for t in tables]
    return DLRM_DCN(
        EmbeddingBagCollection(tables=configs, device=torch.device("meta")),
        dense_in_features=DENSE_FEATURES,
        dense_arch_layer_sizes=[64, tables[0].dim],
        over_arch_layer_sizes=[64, 1],
        dcn_num_layers=2,
        dcn_low_rank_dim=32,
    )


def random_batch(tables: tuple[Table, ...], size: int) -> tuple[torch.Tensor, KeyedJaggedTensor, torch.Tensor]:
    """Random dense features and lookups; the first feature decides the labels, so that there is something to learn."""
    dense = torch.rand(size, DENSE_FEATURES)
    lookups = {feature: torch.poisson(torch.full((size,), t.pooling)).long() for t in tables for feature in t.features}
    rows = {feature: t.rows for t in tables for feature in t.features}
    sparse = KeyedJaggedTensor(
        keys=list(lookups),
        values=torch.cat([torch.randint(rows[feature], (int(n.sum()),)) for feature, n in lookups.items()]),
        lengths=torch.cat(list(lookups.values())),
    )
    return dense, sparse, (dense[:, 0] > 0.5).float()


def main() -> None:
    """Train, and print on rank 0 what was placed and how training went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--spec", type=Path, default=Path(__file__).with_name("dlrm-small.toml"))
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, int(os.environ["LOCAL_RANK"])) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    torch.manual_seed(dist.get_rank())

    plan = read_plan(arguments.plan)
    if dist.get_world_size() != plan.cluster.devices:
        raise SystemExit(f"the plan is for {plan.cluster.devices} devices: torchrun --nproc-per-node does not match")
    loaded = load_spec(arguments.spec)
    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": LEARNING_RATE})
    model = build_model(loaded.tables)
    sharding_plan = load_plan(plan, device_type, model=model, sharders=[sharder])
    model = DistributedModelParallel(model, device=device, plan=sharding_plan, sharders=[sharder])
    # Sharded tables are updated in the backward pass; this is for the rest, data-parallel tables included.
    dense_parameters = dict(in_backward_optimizer_filter(model.named_parameters())).values()
    optimizer = torch.optim.SGD(dense_parameters, lr=LEARNING_RATE)

    losses = []
    start = time.perf_counter()
    for _ in range(arguments.steps):
        batch = random_batch(loaded.tables, plan.model.global_batch // dist.get_world_size())
        dense, sparse, labels = (part.to(device) for part in batch)
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(dense, sparse).squeeze(1), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start

    if dist.get_rank() == 0:
        kinds = Counter(table.sharding_type for tables in plan.plan.values() for table in tables.values())
        print("tables:", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
        print(f"loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
        print(f"speed: {arguments.steps / seconds:.1f} steps/s")
    # The model holds process groups: they have to end, on all ranks, before the interpreter does.
    del model, optimizer, dense_parameters, loss
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
