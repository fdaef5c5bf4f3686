"""What the cost model charges for communication is what TorchRec sends, byte for byte."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torchrec", reason="TorchRec is not installed")

import shardc
from shardc.cost.model import PHASES, StepCost
from shardc.cost.roofline import Roofline
from shardc.hardware import load_hardware
from shardc.passes.lower import lower
from shardc.plan import plan_bytes
from shardc.problem import Cluster, ShardingType
from shardc.spec import parse_spec

BATCH, ROWS, DIM = 32, 100, 8  # of one rank
TYPES = ["table_wise", "table_wise", "table_wise", "column_wise", "row_wise", "row_wise", "data_parallel"]

# One step of two ranks. Every sample looks up the first and the last row: each rank gets half of a row-wise table's.
PROGRAM = """
import json, os, socket, sys
import torch
from torch import distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from shardc.frameworks.torchrec import load_plan

plan, tables, batch, rows, dim = sys.argv[1], *map(int, sys.argv[2:6])
log = []

def logged(name):
    function = getattr(dist, name)
    def call(output, input, *arguments, **options):
        log.append((name, output.is_floating_point(), output.nbytes, input.nbytes))
        return function(output, input, *arguments, **options)
    setattr(dist, name, call)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        names = [(f"t{i}", f"f{i}") for i in range(tables)]
        configs = [EmbeddingBagConfig(rows, dim, name=table, feature_names=[feature]) for table, feature in names]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    def forward(self, features):
        return self.ebc(features).values()

def run(rank):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    for name in ("all_to_all_single", "reduce_scatter_tensor", "all_gather_into_tensor"):
        logged(name)
    sharder = EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.1})
    device = torch.device("cpu")
    model = DistributedModelParallel(Model(), device=device, plan=load_plan(plan, "cpu"), sharders=[sharder])
    lengths = torch.full((tables * batch,), 2)
    values = torch.tensor([0, rows - 1]).repeat(len(lengths))
    features = KeyedJaggedTensor(keys=[f"f{i}" for i in range(tables)], values=values, lengths=lengths)
    for _ in range(2):
        log.clear()  # the first step also sets things up
        model(features).sum().backward()
    print(json.dumps(log), flush=True)
    os._exit(0)

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
for rank in range(2):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.dup2(writer, 1)
        run(rank)
    os.close(writer)
    children = [*(children if rank else []), (child, reader)]
print(json.dumps([json.load(os.fdopen(reader)) for _, reader in children]))
"""


@pytest.fixture(scope="module")
def problem_and_plan():
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 2 * BATCH, "optimizer": "sgd"},
        "cluster": {"device": "h100-80gb", "devices_per_host": 2},
        "defaults": {"rows": ROWS, "dim": DIM, "pooling": 2.0, "access": "uniform"},
        "table": [
            {"name": f"t{i}", "features": [f"f{i}"], "sharding": [type]} | ({"pin": [0]} if i < 3 else {})
            for i, type in enumerate(TYPES)
        ],
    }
    return lower(parse_spec(spec), load_hardware("h100-80gb")), shardc.compile(spec)


@pytest.fixture(scope="module")
def messages(problem_and_plan, tmp_path_factory) -> list[list[tuple[str, bool, int, int]]]:
    """For each rank: collective, whether it carries outputs (else indices), bytes received and sent."""
    path = tmp_path_factory.mktemp("messages") / "plan.json"
    path.write_bytes(plan_bytes(problem_and_plan[1]))
    command = [sys.executable, "-c", PROGRAM, str(path), *map(str, (len(TYPES), BATCH, ROWS, DIM))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def charged(problem_and_plan) -> list[dict[str, float]]:
    """Bytes by phase and rank: ms on links that take one for each byte that is charged."""
    problem, plan = problem_and_plan
    cluster = Cluster("d", "cpu", 1, 2, 2**30, 0, 500.0, 500.0, 0.0)  # half of a message leaves a device
    cost = StepCost(Roofline(1e12, 1e6), cluster)
    latents = cost.encode(problem.shards)
    z = np.zeros((2, latents.shape[1]))
    for option, shards in enumerate(problem.option_shards):
        table = f"t{problem.option_block[option]}"
        z[sorted(set(plan.plan["ebc"][table].ranks))] += latents[list(shards)].sum(axis=0)
    return [dict(zip(PHASES, ms, strict=True)) for ms in cost.device_ms(z)]


def test_every_table_has_one_way(problem_and_plan):
    assert list(map(ShardingType, TYPES)) == list(problem_and_plan[0].option_type)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_charged_is_what_is_sent(messages, charged, rank):
    exchanges = [(outputs, *sizes) for name, outputs, *sizes in messages[rank] if name == "all_to_all_single"]
    sizes = 3 * 2 * 8  # bytes: how much will come of each of three tensors, from each of two ranks
    indices = [received for outputs, received, _ in exchanges if not outputs and received != sizes]
    # TorchRec has an all-to-all for whole tables and another one for columns; a rank sends its outputs, and gets their
    # gradients back.
    forward, backward = (
        [message for outputs, *message in exchanges if outputs][half] for half in (slice(0, 2), slice(2, 4))
    )
    ms = charged[rank]
    assert ms["input_all_to_all"] == sum(indices)
    assert ms["forward_all_to_all"] == sum(sent for _, sent in forward)
    assert ms["backward_all_to_all"] == sum(received for received, _ in backward)
    others = {name: (received, sent) for name, _, received, sent in messages[rank] if name != "all_to_all_single"}
    assert set(others) == {"reduce_scatter_tensor", "all_gather_into_tensor"}
    assert ms["forward_reduce_scatter"] == others["reduce_scatter_tensor"][1]
    assert ms["backward_all_gather"] == others["all_gather_into_tensor"][0]


def test_indices_take_three_collectives_for_each_sharding_type(messages):
    for log in messages:
        exchanges = [outputs for name, outputs, *_ in log if name == "all_to_all_single"]
        assert exchanges.count(False) == 3 * len({"table_wise", "column_wise", "row_wise"})
