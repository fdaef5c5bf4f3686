"""What the cost model charges for communication is what TorchRec sends, byte for byte."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from ranks import run_ranks  # noqa: E402
from torch import distributed as dist  # noqa: E402
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402

from shardc import pipeline  # noqa: E402
from shardc.cost.model import PHASES, StepCost  # noqa: E402
from shardc.cost.roofline import Roofline  # noqa: E402
from shardc.frameworks.torchrec import load_plan  # noqa: E402
from shardc.plan import plan_bytes, read_plan  # noqa: E402
from shardc.problem import Cluster, HostKind, ShardingType  # noqa: E402

HOSTS, LOCAL, BATCH, ROWS, DIM = 2, 2, 32, 100, 20  # the batch is of one rank
RANKS = HOSTS * LOCAL
# Of each table its type, its number of features, and the ranks it is pinned to.
TABLES = [
    ("table_wise", 1, [0]),
    ("table_wise", 1, [3]),
    ("table_wise", 2, [3]),
    ("column_wise", 2, [0, 3]),
    ("table_column_wise", 1, [2, 3]),
    ("row_wise", 1, None),
    ("row_wise", 2, None),
    ("table_row_wise", 1, [0, 1]),
    ("table_row_wise", 2, [2, 3]),
    ("table_row_wise", 1, [2, 3]),
    ("grid_shard", 1, None),
    ("grid_shard", 2, None),
    ("data_parallel", 1, None),
]
FEATURES = [[f"f{feature}_t{table}" for feature in range(count)] for table, (_, count, _) in enumerate(TABLES)]
# Each rank gets one lookup of a row-wise table in each bag, and two of one in rows of a host.
BAG = [0, ROWS // 4, ROWS // 2, ROWS - 1]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=f"t{i}", num_embeddings=ROWS, embedding_dim=DIM, feature_names=features)
            for i, features in enumerate(FEATURES)
        ]
        self.ebc = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))

    def forward(self, features: KeyedJaggedTensor) -> "torch.Tensor":
        return self.ebc(features).values()


def record(rank: int, folder: Path) -> None:
    """One rank: train a step, and write down the collectives of embeddings that it takes part in."""
    log: list[dict] = []

    def logged(name: str) -> None:
        function = getattr(dist, name)

        def call(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
            ranks = dist.get_process_group_ranks(group or dist.group.WORLD)

            def by_rank(tensor, splits):
                each = splits or [tensor.numel() // len(ranks)] * len(ranks)
                sizes = dict.fromkeys(range(RANKS), 0) | dict(zip(ranks, each, strict=True))
                return [size * tensor.element_size() for size in sizes.values()]

            log.append(
                {
                    "collective": name,
                    "ranks": ranks,
                    "outputs": output.is_floating_point(),
                    "even": output_split_sizes is None,
                    "received": by_rank(output, output_split_sizes),
                    "sent": by_rank(input, input_split_sizes),
                    "message": max(output.nbytes, input.nbytes),
                }
            )
            splits = (output_split_sizes, input_split_sizes) if name == "all_to_all_single" else ()
            return function(output, input, *splits, group=group, async_op=async_op)

        setattr(dist, name, call)

    for name in ("all_to_all_single", "reduce_scatter_tensor", "all_gather_into_tensor"):
        logged(name)
    model = DistributedModelParallel(
        Model(),
        device=torch.device("cpu"),
        plan=load_plan(read_plan(folder / "plan.json"), "cpu"),
        sharders=[EmbeddingBagCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.1})],
    )
    keys = [feature for features in FEATURES for feature in features]
    lengths = torch.full((len(keys) * BATCH,), len(BAG))
    features = KeyedJaggedTensor(keys, torch.tensor(BAG).repeat(len(lengths)), lengths=lengths)
    for _ in range(2):
        log.clear()  # the first step also sets things up
        model(features).sum().backward()
    (folder / f"{rank}.json").write_text(json.dumps(log))


@pytest.fixture(scope="module")
def compiled() -> pipeline.Compiled:
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": RANKS * BATCH, "optimizer": "sgd"},
        "cluster": {"device": "h100-80gb", "hosts": HOSTS, "devices_per_host": LOCAL},
        "defaults": {"rows": ROWS, "dim": DIM, "access": "uniform"},
        "table": [
            {"name": f"t{i}", "features": features, "sharding": [type], "pooling": float(len(BAG) * len(features))}
            | ({"pin": pin} if pin else {})
            for i, (features, (type, _, pin)) in enumerate(zip(FEATURES, TABLES, strict=True))
        ],
    }
    return pipeline.run(pipeline.load(spec))


@pytest.fixture(scope="module")
def messages(compiled, tmp_path_factory) -> list[list[dict]]:
    """The collectives of each rank, in their order."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "plan.json").write_bytes(plan_bytes(compiled.plan))
    run_ranks(record, (folder,), hosts=HOSTS, devices=LOCAL, folder=folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def charged(compiled: pipeline.Compiled, *, within: bool) -> list[dict[str, float]]:
    """By rank and phase, the bytes charged for the links of a host, or for those between hosts.

    They are the ms that phases take where one kind of link takes one for each byte, and the other none.
    """
    slow, fast = 1e3, float("inf")
    kind = HostKind("d", 2**30, 0, slow if within else fast, fast if within else slow, 0.0)
    cost = StepCost(Roofline(1e12, 1e6), Cluster("cpu", LOCAL, (kind,), (0,) * HOSTS))
    choice = compiled.choice
    z = choice.judge.problem.held(choice.placement).astype(float) @ cost.encode(choice.judge.problem.shards)
    return [dict(zip(PHASES, ms, strict=True)) for ms in cost.device_ms(z)]


def over(sizes: list[int], rank: int, *, within: bool) -> int:
    """What of the bytes for each rank goes to the other ranks of one rank's host, or to those of other hosts."""
    return sum(size for to, size in enumerate(sizes) if to != rank and (to // LOCAL == rank // LOCAL) == within)


def ring(logs: list[dict], *, within: bool) -> float:
    """Bytes that a rank sends in a ring of all ranks; the devices of a host share those to other hosts."""
    count = {len(log["ranks"]) for log in logs}.pop()
    sent = sum(log["message"] for log in logs) * (count - 1) / count
    return sent if within else sent / LOCAL * (count > LOCAL)


def test_tables_have_the_ways_they_are_held_to(compiled):
    problem = compiled.choice.judge.problem
    chosen = [problem.option_type[option] for option in compiled.choice.placement.option]
    order = [f"t{i}" for i in range(len(TABLES))]
    assert [chosen[[t.name for t in problem.tables].index(name)] for name in order] == [
        ShardingType(type) for type, _, _ in TABLES
    ]


@pytest.mark.parametrize("within", [True, False], ids=["within hosts", "between hosts"])
@pytest.mark.parametrize("rank", range(RANKS))
def test_what_is_charged_is_what_is_sent(messages, compiled, rank, within):
    everyone = list(range(RANKS))
    host = [other for other in everyone if other // LOCAL == rank // LOCAL]
    cross = [other for other in everyone if other % LOCAL == rank % LOCAL]

    def of(collective: str, ranks: list[int], *, outputs: bool = True) -> list[dict]:
        logs = [log for log in messages[rank] if log["collective"] == collective and log["ranks"] == ranks]
        return [log for log in logs if log["outputs"] == outputs]

    def halves(logs: list[dict]) -> tuple[int, int]:
        # A rank sends its outputs, and gets their gradients back. Each sharding type has an all-to-all of its own.
        middle = len(logs) // 2
        return (
            sum(over(log["sent"], rank, within=within) for log in logs[:middle]),
            sum(over(log["received"], rank, within=within) for log in logs[middle:]),
        )

    # Beside indices and lengths the ranks tell each other how many will come.
    inputs = [log for log in of("all_to_all_single", everyone, outputs=False) if not log["even"]]
    sent = {"input_all_to_all": sum(over(log["received"], rank, within=within) for log in inputs)}
    sent["forward_all_to_all"], sent["backward_all_to_all"] = halves(of("all_to_all_single", everyone))
    sent["forward_cross_host_all_to_all"], sent["backward_cross_host_all_to_all"] = halves(
        of("all_to_all_single", cross)
    )
    for phase, collective, ranks in (
        ("forward_reduce_scatter", "reduce_scatter_tensor", everyone),
        ("forward_host_reduce_scatter", "reduce_scatter_tensor", host),
        ("backward_host_all_gather", "all_gather_into_tensor", host),
        ("backward_all_gather", "all_gather_into_tensor", everyone),
    ):
        sent[phase] = ring(of(collective, ranks), within=within)
    ms = charged(compiled, within=within)[rank]
    assert sent == {phase: ms[phase] for phase in sent}
    assert set(PHASES) - set(sent) == {"forward", "backward", "all_reduce"}
    # Nothing is sent between other ranks.
    assert {tuple(log["ranks"]) for log in messages[rank]} == {tuple(everyone), tuple(host), tuple(cross)}


@pytest.mark.parametrize("within", [True, False], ids=["within hosts", "between hosts"])
def test_every_phase_of_communication_is_charged_for(compiled, within):
    sent = {phase for ms in charged(compiled, within=within) for phase, size in ms.items() if size > 0}
    other = {"forward_host_reduce_scatter", "backward_host_all_gather"}
    if within:
        other = {"forward_cross_host_all_to_all", "backward_cross_host_all_to_all"}
    assert sent - {"forward", "backward"} == set(PHASES) - {"forward", "backward"} - other


def test_indices_take_three_collectives_for_each_sharding_type(messages):
    for log in messages:
        exchanges = [entry["outputs"] for entry in log if entry["collective"] == "all_to_all_single"]
        assert exchanges.count(False) == 3 * len({type for type, _, _ in TABLES} - {"data_parallel"})
