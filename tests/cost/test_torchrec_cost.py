"""The estimates against TorchRec's own: every option that shardc offers, whole plans, and its planner's choice.

Not test_torchrec.py: that is the name of the tests of `shardc.frameworks.torchrec`, and pytest wants distinct ones.
"""

import copy
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import pytest
from brute_force import best_of_all

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology  # noqa: E402
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator  # noqa: E402
from torchrec.distributed.planner.perf_models import NoopPerfModel  # noqa: E402
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator  # noqa: E402
from torchrec.distributed.planner.types import Shard, ShardingOption  # noqa: E402
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name  # noqa: E402
from torchrec.distributed.types import CacheParams, ParameterSharding  # noqa: E402
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingBagCollection  # noqa: E402

from shardc.cost.torchrec import VERSION, Machine, torchrec_cost  # noqa: E402
from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.judge import Judge  # noqa: E402
from shardc.passes.emit import _shards as placed_shards  # noqa: E402
from shardc.passes.lower import lower  # noqa: E402
from shardc.pipeline import device_of, devices_of, load, run  # noqa: E402
from shardc.plan import TablePlan  # noqa: E402
from shardc.problem import Placement, Problem  # noqa: E402
from shardc.spec import SHARDING_TYPES, LoadedSpec  # noqa: E402

# MLPerf's DLRM-DCNv2.
ROWS = [40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10]
ROWS += [2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36]
POOLING = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]
BATCH = 2048  # of a device
DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


class AnySharder(EmbeddingBagCollectionSharder):
    """TorchRec lists row-wise for GPUs only, but runs and estimates it on a CPU too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)


def spec_of(tables: list[dict], *, samples: int, hosts: int, local: int, device: str, weights: str, **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": samples * hosts * local, "weights": weights},
        "cluster": {"device": device, "hosts": hosts, "devices_per_host": local, "memory": "1000TB"} | cluster,
        "table": tables,
        "compile": {"cost": "torchrec", "effort": "fast"},
    }


def random_spec(seed: int, *, cached: bool = False) -> LoadedSpec:
    rng = np.random.default_rng(seed)
    tables = []
    for index in range(8):
        # TorchRec sums over features one by one; up to three equal ones this is exact, whatever the Python.
        features = [f"f{index}_{number}" for number in range(int(rng.integers(1, 4)))]
        tables.append(
            {
                "name": f"t{index}",
                "features": features,
                "rows": int(np.exp(rng.uniform(0, 16))),
                "dim": 4 * int(rng.integers(1, 65)),
                "pooling": float(rng.choice([0.3, 1.0, 3.7, len(features), 40.0]) * rng.choice([1.0, rng.random()])),
            }
        )
        if cached:
            kernels = [["fused_uvm_caching"], ["fused", "fused_uvm_caching"]][int(rng.integers(2))]
            tables[-1] |= {"kernels": kernels, "cache_ratio": round(float(rng.uniform(0.01, 0.99)), 3)}
        if rng.random() < 0.4:  # what is left to a freer type where that is allowed
            tables[-1]["sharding"] = ["table_wise", "table_column_wise", "table_row_wise", "grid_shard"]
    return load(
        spec_of(
            tables,
            samples=int(rng.integers(1, 5000)),
            hosts=int(rng.integers(1, 4)),
            local=int(rng.choice([1, 2, 8])),
            device=str(rng.choice(["h100-80gb", "h100-80gb" if cached else "cpu-epyc"])),
            weights=str(rng.choice(list(DTYPES))),
            **{"host_memory": "1000TB"} if cached else {},
        )
    )


def topology(loaded: LoadedSpec, **more: object) -> Topology:
    cluster = loaded.spec.cluster
    device_type = device_of(loaded).device_type
    return Topology(cluster.devices, device_type, local_world_size=cluster.devices_per_host, **more)


def collection(loaded: LoadedSpec) -> torch.nn.Module:
    model = torch.nn.Module()
    model.ebc = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.rows,
                embedding_dim=table.dim,
                feature_names=list(table.features),
                data_type=DTYPES[loaded.spec.model.weights],
            )
            for table in loaded.tables
        ],
    )
    return model


def constraints(loaded: LoadedSpec, **more: object) -> dict:
    return {
        table.name: ParameterConstraints(
            pooling_factors=[table.pooling / len(table.features)] * len(table.features),
            compute_kernels=[*table.kernels, "dense"],
            cache_params=CacheParams(load_factor=table.cache_ratio) if table.may_be_cached else None,
            **more,
        )
        for table in loaded.tables
    }


Options = dict[tuple[str, str, str], ShardingOption]
IN_COLUMNS = ("column_wise", "table_column_wise", "grid_shard")


def enumerated(loaded: LoadedSpec, topology: Topology) -> Options:
    """TorchRec's options with its estimates, by table, sharding type and kernel."""
    limits = constraints(loaded, sharding_types=list(SHARDING_TYPES))  # a grid is listed only where it is named
    enumerator = EmbeddingEnumerator(
        topology,
        batch_size=loaded.spec.model.global_batch // loaded.spec.cluster.devices,
        constraints=limits,
        estimator=EmbeddingPerfEstimator(topology, constraints=limits),
    )
    found = enumerator.enumerate(collection(loaded), [AnySharder()])
    return {(option.name, option.sharding_type, option.compute_kernel): option for option in found}


def estimated(loaded: LoadedSpec, problem: Problem, topology: Topology) -> list[ShardingOption]:
    """TorchRec's counterpart of every option, with its estimates.

    TorchRec itself would cut columns into blocks of one width and a rest, so those are given to its estimator.
    """
    found, limits = enumerated(loaded, topology), constraints(loaded)
    estimator, sharder = EmbeddingPerfEstimator(topology, constraints=limits), AnySharder()
    counterparts = []
    for option, type in enumerate(problem.option_type):
        (table,) = problem.blocks[problem.option_block[option]]
        kernel = "fused" if min(problem.cached_of(option)) == 1.0 else "fused_uvm_caching"
        kernel = "dense" if type == "data_parallel" else kernel
        theirs = copy.copy(found[problem.tables[table].name, type, kernel])
        theirs.shards = [Shard(list(shard.size), list(shard.offset), perf=shard.perf) for shard in theirs.shards]
        if type in IN_COLUMNS:
            places = tuple(range(int(problem.option_units[option])))
            pieces = placed_shards(problem, table, option, places)
            theirs.shards = [Shard(list(piece.shard_sizes), list(piece.shard_offsets)) for piece in pieces]
            data = build_sharder_data_map({sharder_name(sharder.module_type): sharder})
            estimator.estimate([theirs], data)
        counterparts.append(theirs)
    return counterparts


def latent_shards(problem: Problem, option: int) -> list[int]:
    """The problem's shard that each of TorchRec's shards of an option is, in their order."""
    on = int(problem.site_size[problem.option_site[option]])
    return [problem.unit_shards[unit][0] for unit in problem.units_of(option) for _ in range(on)]


def assert_same_costs(loaded: LoadedSpec, topology: Topology) -> set[str]:
    """Hold every option against TorchRec's estimate; the sharding types that there were."""
    problem = lower(loaded, devices_of(loaded))
    cluster = loaded.spec.cluster.kinds[0]
    links = {"intra_host": cluster.intra_bytes_per_s, "inter_host": cluster.inter_bytes_per_s}
    cost = torchrec_cost(problem, Machine.of(problem.cluster, **links))
    latents = cost.encode(problem.shards)
    for option, counterpart in enumerate(estimated(loaded, problem, topology)):
        for shard, theirs in zip(latent_shards(problem, option), counterpart.shards, strict=True):
            perf = theirs.perf
            expected = [perf.fwd_compute + perf.fwd_comms, perf.bwd_compute + perf.bwd_comms]
            assert latents[shard] == pytest.approx(expected, rel=1e-12)
            assert latents[shard].sum() == pytest.approx(perf.total, rel=1e-12)
    return set(problem.option_type)


@pytest.mark.parametrize("type", SHARDING_TYPES)
def test_a_cached_table_costs_what_torchrec_estimates_by_the_share_that_is_cached(type):
    tables = [
        {
            **{"name": f"t{ratio}".replace(".", "_"), "rows": 10_001, "dim": 64, "pooling": 3.0, "sharding": [type]},
            **{"kernels": ["fused", "fused_uvm_caching"], "cache_ratio": ratio},
        }
        for ratio in (0.01, 0.2, 0.75)
    ]
    loaded = load(spec_of(tables, samples=512, hosts=2, local=4, device="h100-80gb", weights="fp16", host_memory="1TB"))
    assert assert_same_costs(loaded, topology(loaded)) == {type}


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("type", SHARDING_TYPES)
def test_each_type_costs_what_torchrec_estimates(type, hosts):
    """Widths that divide evenly among two, three and four devices, and some that do not."""
    tables = [
        {"name": f"t{dim}", "rows": 10_001, "dim": dim, "pooling": 3.0, "sharding": [type]}
        for dim in (44, 64, 128, 260)
    ]
    loaded = load(spec_of(tables, samples=512, hosts=hosts, local=4, device="h100-80gb", weights="fp16"))
    if type == "grid_shard" and hosts == 1:
        with pytest.raises(DiagnosticError, match="SH201"):
            lower(loaded, devices_of(loaded))
        return
    assert assert_same_costs(loaded, topology(loaded)) == {type}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("seed", range(16))
def test_every_option_costs_what_torchrec_estimates(seed, cached):
    loaded = random_spec(seed, cached=cached)
    assert_same_costs(loaded, topology(loaded))


def test_bandwidths_of_the_spec_replace_torchrecs():
    tables = [{"name": f"t{i}", "rows": 1000, "dim": dim, "pooling": 3.0} for i, dim in enumerate((32, 64, 128))]
    more = {"intra_host_bandwidth": "450GB/s", "inter_host_bandwidth": "50GB/s"}
    for hosts in (1, 2):
        loaded = load(spec_of(tables, samples=512, hosts=hosts, local=4, device="h100-80gb", weights="fp32", **more))
        assert assert_same_costs(loaded, topology(loaded, intra_host_bw=450e6, inter_host_bw=50e6)) >= {
            "table_wise",
            "column_wise",
            "row_wise",
            "data_parallel",
            *(["table_row_wise", "grid_shard"] if hosts > 1 else []),
        }


@pytest.mark.parametrize("seed", range(5))
def test_a_step_takes_what_torchrec_rates_the_plan(seed):
    loaded, rng = random_spec(100 + seed), np.random.default_rng(seed)
    problem, machine = lower(loaded, devices_of(loaded)), topology(loaded)
    devices = problem.cluster.devices
    cost, options = torchrec_cost(problem), estimated(loaded, problem, machine)
    chosen = [int(rng.choice(list(problem.options_of(block)))) for block in range(len(problem.blocks))]
    where = [random_places(rng, problem, option) for option in chosen]
    plan = [options[option] for option in chosen]
    latents, z = cost.encode(problem.shards), np.zeros((devices, 2))
    for option, places, theirs in zip(chosen, where, plan, strict=True):
        ranks = [rank for place in places for rank in range(devices)[problem.devices_of(option, place)]]
        for number, shard, rank in zip(latent_shards(problem, option), theirs.shards, ranks, strict=True):
            shard.rank = rank
            z[rank] += latents[number]
    rated = NoopPerfModel(machine).rate(plan)
    assert cost.score(z) == pytest.approx(rated, rel=1e-9)
    judgement = Judge(problem, cost).judge(Placement(tuple(chosen), tuple(where)))
    assert judgement.step_time_ms == pytest.approx(rated, rel=1e-6, abs=1e-8)  # latents are rounded for the search


def random_places(rng: np.random.Generator, problem: Problem, option: int) -> tuple[int, ...]:
    """Places of an option's units, those of one kind ascending."""
    first, count = 0, problem.cluster.devices // int(problem.site_size[problem.option_site[option]])
    if problem.option_one_host[option]:
        count = problem.cluster.devices_per_host
        first = count * int(rng.integers(problem.cluster.hosts))
    places = first + rng.permutation(count)[: problem.option_units[option]]
    return problem.sorted_places(option, places.tolist())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_plan_is_better_than_the_one_that_torchrecs_planner_makes():
    """26 tables on eight GPUs, from the same options under the same memory limit."""
    types = ["table_wise", "row_wise", "data_parallel"]
    tables = [
        {"name": f"t{i:02}", "rows": rows, "dim": 128, "pooling": pooling, "sharding": types}
        for i, (rows, pooling) in enumerate(zip(ROWS, POOLING, strict=True))
    ]
    loaded = load(spec_of(tables, samples=BATCH, hosts=1, local=8, device="h100-80gb", weights="fp32", memory="80GB"))
    compiled = run(loaded)
    machine = topology(loaded, hbm_cap=80 * 10**9)
    planner = EmbeddingShardingPlanner(
        topology=machine, batch_size=BATCH, constraints=constraints(loaded, sharding_types=types)
    )
    theirs = planner.plan(collection(loaded), [EmbeddingBagCollectionSharder()]).plan["ebc"]
    options = enumerated(loaded, machine)

    def rated(plan: Mapping[str, TablePlan | ParameterSharding]) -> float:
        chosen = [
            copy.copy(options[name, placed.sharding_type, placed.compute_kernel]) for name, placed in plan.items()
        ]
        for option, placed in zip(chosen, plan.values(), strict=True):
            for shard, rank in zip(option.shards, placed.ranks, strict=True):
                shard.rank = rank
        return NoopPerfModel(machine).rate(chosen)

    step_time = compiled.plan.score.step_time_ms
    assert step_time == pytest.approx(rated(compiled.plan.plan["ebc"]), rel=1e-5)  # latents are rounded
    assert step_time < rated(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_below_the_best_of_all_placements(seed):
    rng = np.random.default_rng(seed)
    tables = [
        {"name": f"t{i}", "rows": int(10 ** rng.uniform(1, 6)), "dim": int(rng.choice([16, 64])), "pooling": pooling}
        for i, pooling in enumerate((40.0, 9.0, 3.0, 1.0))
    ]
    loaded = load(spec_of(tables, samples=512, hosts=1, local=3, device="h100-80gb", weights="fp32"))
    compiled = run(loaded)
    judge = compiled.choice.judge
    best, _ = best_of_all(judge)
    assert 0.5 * best < compiled.choice.bound.step_time_ms <= best
    assert compiled.plan.score.step_time_ms == pytest.approx(best, rel=1e-5)


def test_the_formulas_are_those_of_the_installed_version():
    assert version("torchrec") == VERSION


def test_only_the_problems_own_shards_are_known():
    first, second = (lower(random_spec(0), devices_of(random_spec(0))) for _ in range(2))
    with pytest.raises(ValueError, match="one problem's shards"):
        torchrec_cost(first).encode(second.shards)
