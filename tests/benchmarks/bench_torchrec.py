"""`ShardcPlanner` beside TorchRec's own planner: seconds to plan, and steps a second under the plans of both.

python tests/benchmarks/bench_torchrec.py            # 26 tables on 8 ranks, 100 on 8, then a DLRM on two CPU processes
python tests/benchmarks/bench_torchrec.py --large    # and 300 tables on 16 ranks, which takes TorchRec minutes

Exit code 1 when a plan of shardc costs more than TorchRec's, in TorchRec's own estimates.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "frameworks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torch import distributed  # noqa: E402
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.planner import (  # noqa: E402
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.stats import NoopEmbeddingStats  # noqa: E402
from torchrec.models.dlrm import DLRM_DCN  # noqa: E402
from torchrec.optim.optimizers import in_backward_optimizer_filter  # noqa: E402
from torchrec_rating import rank_times  # noqa: E402

from shardc.frameworks.torchrec import ShardcPlanner, from_sharding_plan  # noqa: E402

BATCH = 2048
CASES = ((26, 8, 3), (100, 8, 3))  # tables, ranks, repetitions
LARGE = (300, 16, 1)

# MLPerf's DLRM-DCNv2 with fewer rows, on so many CPU processes.
RANKS, MOST_ROWS, DIM, DENSE, SAMPLES = 2, 50_000, 64, 13, 256
ROWS = [40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10]
ROWS += [2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36]
POOLING = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]
ROUNDS, STEPS, WARM_UP = 200, 1, 5
PLANNERS = ("TorchRec", 'shardc, cost="torchrec"', 'shardc, cost="cpu-epyc"')


def main() -> int:
    """Print both tables; 1 if a plan costs more than TorchRec's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also plan 300 tables on 16 ranks")
    parser.add_argument("--no-training", action="store_true", help="only plan")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    machine = f"{found.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}, TorchRec {version('torchrec')}\n")
    print(f"planning, batch {BATCH} a rank: every sharding type and kernel that the sharder offers on GPUs")
    print(f"  {'tables/ranks':<14} {'shardc':>9} {'TorchRec':>10} {'ratio':>7}   cost in TorchRec's estimates")
    torch.set_num_threads(1)
    fine = [_plan(*case) for case in (*CASES, *([LARGE] if arguments.large else []))]
    if not arguments.no_training:
        _train()
    return 0 if all(fine) else 1


def _plan(tables: int, ranks: int, repetitions: int) -> bool:
    """One line: seconds to plan (the medians of alternating runs), and what both plans cost."""
    model, constraints = _synthetic(tables)
    topology = Topology(ranks, "cuda", local_world_size=8, created_by_factory=True)
    sharders = [EmbeddingBagCollectionSharder()]
    seconds: dict[str, list[float]] = {"shardc": [], "TorchRec": []}
    costs: dict[str, float] = {}
    bound = 0.0
    for _ in range(repetitions):
        planners = {
            "shardc": ShardcPlanner(topology, BATCH, constraints),
            "TorchRec": EmbeddingShardingPlanner(
                topology, BATCH, constraints=constraints, stats=[NoopEmbeddingStats()], debug=False
            ),
        }
        for name, planner in planners.items():
            start = time.perf_counter()
            plan = planner.plan(model, sharders)
            seconds[name].append(time.perf_counter() - start)
            costs[name] = float(rank_times(plan, model, sharders, topology, constraints, BATCH).sum(axis=1).max())
            if name == "shardc":
                bound = planner.choice.bound.step_time_ms
    ours, theirs = (median(each) for each in seconds.values())
    less = 1 - costs["shardc"] / costs["TorchRec"]
    print(
        f"  {f'{tables}/{ranks}':<14} {ours:>7.2f} s {theirs:>8.1f} s {theirs / ours:>6.0f}x"
        f"   {costs['shardc']:.3f} ms and {costs['TorchRec']:.3f} ms ({less:.1%} less), bound {bound:.3f} ms",
        flush=True,
    )
    return costs["shardc"] <= costs["TorchRec"]


def _synthetic(tables: int) -> tuple[torch.nn.Module, dict[str, ParameterConstraints]]:
    """Tables of sizes over orders of magnitude, and their poolings."""
    rng = np.random.default_rng(tables)
    model = torch.nn.Module()
    configs = [
        EmbeddingBagConfig(
            name=f"t{index}",
            num_embeddings=int(10 ** rng.uniform(2, 7)),
            embedding_dim=int(rng.choice([32, 64, 128, 256])),
            feature_names=[f"f{index}"],
        )
        for index in range(tables)
    ]
    model.ebc = EmbeddingBagCollection(device=torch.device("meta"), tables=configs)
    poolings = np.maximum(1.0, rng.lognormal(1.5, 1.2, tables).round(1))
    return model, {f"t{i}": ParameterConstraints(pooling_factors=[float(p)]) for i, p in enumerate(poolings)}


def _train() -> None:
    print(f"\ntraining DLRM-DCNv2 (26 tables of {MOST_ROWS:,} rows at most, {DIM} columns), {SAMPLES} samples a rank,")
    print(f"on {RANKS} gloo CPU ranks: {ROUNDS} rounds, in each {STEPS} step(s) under each plan in turn; medians")
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(_compare, (), hosts=1, devices=RANKS, folder=Path(folder))


def _compare(rank: int) -> None:
    """Train under each plan in turn, in blocks, and print on the first rank how fast each went."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05})
    topology = Topology(RANKS, "cpu", created_by_factory=True)
    constraints = {f"t_cat_{i}": ParameterConstraints(pooling_factors=[float(p)]) for i, p in enumerate(POOLING)}
    made: dict[str, Any] = {
        PLANNERS[0]: EmbeddingShardingPlanner(
            topology, SAMPLES, constraints=constraints, stats=[NoopEmbeddingStats()], debug=False
        ),
        PLANNERS[1]: ShardcPlanner(topology, SAMPLES, constraints),
        PLANNERS[2]: ShardcPlanner(topology, SAMPLES, constraints, cost="cpu-epyc"),
    }
    runs, kinds = {}, {}
    for name, planner in made.items():
        plan = planner.collective_plan(_dlrm("meta"), [sharder], distributed.group.WORLD)
        (tables,) = from_sharding_plan(plan).values()
        types = [table.sharding_type for table in tables.values()]
        kinds[name] = ", ".join(f"{types.count(type)} {type}" for type in dict.fromkeys(types))
        model = DistributedModelParallel(_dlrm("cpu"), device=torch.device("cpu"), plan=plan, sharders=[sharder])
        dense = dict(in_backward_optimizer_filter(model.named_parameters())).values()
        runs[name] = (model, torch.optim.SGD(dense, lr=0.05))
    batches = [_batch(rank)]  # the same for all plans
    for model, optimizer in runs.values():
        _steps(model, optimizer, batches, WARM_UP)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        order = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
        for name in order:
            distributed.barrier()
            start = time.perf_counter()
            _steps(*runs[name], batches, STEPS)
            distributed.barrier()
            rates[name].append(STEPS / (time.perf_counter() - start))
    if rank == 0:
        print(f"  {'plan':<26} {'steps/s':>8} {'ratio':>7}  quartiles      tables")
        first = np.array(rates[PLANNERS[0]])
        for name, found in rates.items():
            low, middle, high = np.quantile(np.array(found) / first, [0.25, 0.5, 0.75])
            print(f"  {name:<26} {median(found):>8.2f} {middle:>6.2f}x  {low:.2f} to {high:.2f}   {kinds[name]}")
    del runs, model, optimizer, dense
    gc.collect()
    distributed.barrier()


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple], count: int) -> None:
    for number in range(count):
        dense, sparse, labels = batches[number % len(batches)]
        optimizer.zero_grad()
        logits = model(dense, sparse).squeeze(1)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()


def _dlrm(device: str) -> DLRM_DCN:
    tables = [
        EmbeddingBagConfig(min(rows, MOST_ROWS), DIM, name=f"t_cat_{i}", feature_names=[f"cat_{i}"])
        for i, rows in enumerate(ROWS)
    ]
    return DLRM_DCN(
        EmbeddingBagCollection(tables=tables, device=torch.device(device)),
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[32, DIM],
        over_arch_layer_sizes=[32, 1],
        dcn_num_layers=1,
        dcn_low_rank_dim=16,
    )


def _batch(seed: int) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    lengths = [torch.full((SAMPLES,), pooling) for pooling in POOLING]
    values = [
        torch.randint(min(rows, MOST_ROWS), (SAMPLES * pooling,), generator=generator)
        for rows, pooling in zip(ROWS, POOLING, strict=True)
    ]
    keys = [f"cat_{i}" for i in range(len(ROWS))]
    sparse = KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))
    labels = torch.randint(2, (SAMPLES,), generator=generator).float()
    return torch.rand(SAMPLES, DENSE, generator=generator), sparse, labels


if __name__ == "__main__":
    sys.exit(main())
