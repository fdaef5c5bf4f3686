"""What `ShardcPlanner` is given has an effect or is refused; nothing is ignored."""

import copy
import dataclasses
import inspect
import logging
from collections.abc import Mapping

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed")

from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode  # noqa: E402
from torchrec import (  # noqa: E402
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry  # noqa: E402
from torchrec.distributed.fp_embeddingbag import FeatureProcessedEmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology  # noqa: E402
from torchrec.distributed.planner.stats import NoopEmbeddingStats  # noqa: E402
from torchrec.distributed.planner.storage_reservations import (  # noqa: E402
    FixedPercentageStorageReservation,
    HeuristicalStorageReservation,
)
from torchrec.distributed.planner.types import CustomTopologyData, GeneralizedCommsBandwidth  # noqa: E402
from torchrec.distributed.types import CacheParams, KeyValueParams, ShardingPlan, ShardingPlanner  # noqa: E402
from torchrec.modules.embedding_configs import DataType  # noqa: E402
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection  # noqa: E402
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection  # noqa: E402
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward  # noqa: E402
from torchrec_rating import rank_times  # noqa: E402

from shardc.diagnostics import DiagnosticError  # noqa: E402
from shardc.frameworks import torchrec_constraints  # noqa: E402
from shardc.frameworks.torchrec import ShardcPlanner, from_sharding_plan  # noqa: E402
from shardc.hardware import PROFILES  # noqa: E402

GIB = 1024**3
META = torch.device("meta")


def bag(name: str, rows: int = 10_000, dim: int = 64, features: int = 1, **more: object) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(rows, dim, name=name, feature_names=[f"{name}_{i}" for i in range(features)], **more)


def bags(*tables: EmbeddingBagConfig, weighted: bool = False) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(list(tables), is_weighted=weighted, device=META)


def sequences(*names: str, dim: int = 64, rows: int = 10_000) -> EmbeddingCollection:
    tables = [EmbeddingConfig(rows, dim, name=name, feature_names=[f"{name}_s"]) for name in names]
    return EmbeddingCollection(tables, device=META)


def model(**modules: torch.nn.Module) -> torch.nn.Module:
    whole = torch.nn.Module()
    for name, module in modules.items():
        whole.add_module(name, module)
    return whole


def sharders(**fused: object) -> list:
    return [EmbeddingBagCollectionSharder(fused or None), EmbeddingCollectionSharder(fused or None)]


def topology(ranks: int = 4, device: str = "cuda", local: int | None = None, **more: object) -> Topology:
    return Topology(ranks, device, local_world_size=local, created_by_factory=True, **more)


def planner(where: Topology | None = None, constraints: Mapping | None = None, **more: object) -> ShardcPlanner:
    more = {"storage_reservation": FixedPercentageStorageReservation(0.0), "effort": "fast", "batch_size": 64} | more
    return ShardcPlanner(where or topology(), constraints=constraints, **more)


def planned(whole: torch.nn.Module, where: Topology | None = None, constraints: Mapping | None = None, **more) -> dict:
    return from_sharding_plan(planner(where, constraints, **more).plan(whole, sharders()))


def refused(whole: torch.nn.Module, where: Topology | None = None, constraints: Mapping | None = None, **more) -> list:
    with pytest.raises(DiagnosticError) as raised:
        planned(whole, where, constraints, **more)
    assert {finding.code for finding in raised.value.diagnostics} == {"SH611"}
    return [finding.message for finding in raised.value.diagnostics]


# --- Every field of ParameterConstraints ------------------------------------------------------------------------------


def test_every_field_of_a_constraint_has_an_effect_or_is_refused():
    """A field that a newer TorchRec adds belongs into one of the two."""
    known = {*torchrec_constraints.HONOURED, *torchrec_constraints.REFUSED}
    assert {each.name for each in dataclasses.fields(ParameterConstraints)} == known


def test_a_field_that_is_not_known_is_refused_where_it_is_set():
    newer = dataclasses.make_dataclass("Newer", [("color", str | None, None)], bases=(ParameterConstraints,))
    assert planned(model(ebc=bags(bag("t"))), constraints={"t": newer()})
    (message,) = refused(model(ebc=bags(bag("t"))), constraints={"t": newer(color="red")})
    assert message == 'module "ebc", table "t": color: this version of shardc does not know it'


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cache_params", CacheParams(load_factor=0.1)),
        ("key_value_params", KeyValueParams()),
        ("use_virtual_table", True),
        ("device_group", "cpu"),
        ("feature_names", ["other"]),
        ("is_weighted", True),
        ("min_partition", 0),
        ("output_dtype", DataType.INT8),
        ("compute_kernels", ["fused_uvm"]),
        ("sharding_types", ["diagonal"]),
        ("pooling_factors", [1.0, 2.0, 3.0]),
        ("pooling_factors", [float("nan")]),
        ("pooling_factors", [0.0]),
        ("num_poolings", [1.0, 2.0]),
        ("batch_sizes", [8, 8]),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(field, value):
    (message,) = refused(model(ebc=bags(bag("t"))), constraints={"t": ParameterConstraints(**{field: value})})
    assert message.startswith('module "ebc", table "t": ')
    assert field in message


def test_everything_is_refused_at_once():
    found = refused(
        model(a=bags(bag("t")), b=bags(bag("u"), bag("v", dim=6))),
        topology(uneven_sharding_perf_multiplier=2.0),
        {
            "t": ParameterConstraints(cache_params=CacheParams(), sharding_types=["row_wises"]),
            "u": ParameterConstraints(device_group="cpu"),
            "w": ParameterConstraints(),
        },
    )
    assert [message.split(": ")[:2] for message in found] == [
        ["topology", "uneven_sharding_perf_multiplier"],
        ["constraints", 'no module that is sharded has a table "w"'],
        ['module "a", table "t"', "cache_params"],
        ['module "a", table "t"', "sharding_types and compute_kernels"],
        ['module "b", table "u"', "device_group"],
        ['module "b", table "v"', "shape"],
    ]


@pytest.mark.parametrize(
    "type",
    ["table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"],
)
def test_sharding_types(type):
    tables = planned(
        model(ebc=bags(bag("t", dim=256), bag("free"))),
        topology(4, local=2),
        {"t": ParameterConstraints(sharding_types=[type])},
    )
    assert tables["ebc"]["t"].sharding_type == type


def test_compute_kernels_decide_the_sharding_type():
    whole = model(ebc=bags(bag("t", rows=10)))
    for kernels, types in ((["dense"], {"data_parallel"}), (["fused", "fused_uvm"], {"table_wise", "column_wise"})):
        limits = ParameterConstraints(
            compute_kernels=kernels, sharding_types=["data_parallel", "table_wise", "column_wise"]
        )
        table = planned(whole, constraints={"t": limits})["ebc"]["t"]
        assert table.sharding_type in types
        assert table.compute_kernel == kernels[0]


def test_min_partition_is_the_least_width_of_column_blocks():
    for least, widths in ((None, [32] * 8), (64, [64] * 4), (100, [128, 128])):
        limits = ParameterConstraints(sharding_types=["column_wise"], min_partition=least, pooling_factors=[1000.0])
        table = planned(model(ebc=bags(bag("t", dim=256))), topology(8), {"t": limits})["ebc"]["t"]
        assert [shard.shard_sizes[1] for shard in table.shards] == widths


def test_members_that_only_the_kernel_needs_are_passed_on():
    limits = ParameterConstraints(
        sharding_types=["table_wise"],
        enforce_hbm=True,
        stochastic_rounding=False,
        bounds_check_mode=BoundsCheckMode.WARNING,
        output_dtype=DataType.FP16,
        device_group="cuda",
        feature_names=["t_0"],
    )
    sharding = planner(constraints={"t": limits}).plan(model(ebc=bags(bag("t"))), sharders()).plan["ebc"]["t"]
    assert (sharding.enforce_hbm, sharding.stochastic_rounding) == (True, False)
    assert (sharding.bounds_check_mode, sharding.output_dtype) == (BoundsCheckMode.WARNING, DataType.FP16)


# --- TorchRec's estimates, with everything that has a say in them -----------------------------------------------------


class Links(GeneralizedCommsBandwidth):
    """A bandwidth of its own for every collective."""

    intra_host_bw, inter_host_bw = 1e8, 1e6

    def get_bw(self, local_world_size, world_size, collective_type) -> float:
        return 1e6 * (1 + len(collective_type.value)) * (1 + local_world_size) / (1 + world_size)


QUANTISED = QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.BF16)
TRAFFIC = ParameterConstraints(pooling_factors=[3.3, 0.4], num_poolings=[1.0, 2.5], batch_sizes=[64, 16])
VARIANTS = {
    "hosts": ({}, {}),
    "one host": ({"local": None}, {}),
    "cpu": ({"device": "cpu"}, {}),
    "pods": ({"pod_size": 2, "local": 2}, {}),
    "bandwidths": ({"hbm_mem_bw": 1e9, "intra_host_bw": 3e8, "inter_host_bw": 2e7}, {}),
    "memory of cpus": ({"device": "cpu", "ddr_mem_bw": 1e8}, {}),
    "every collective": ({"generalized_comms_bandwidths": Links()}, {}),
    "multipliers": ({"bwd_compute_multiplier": 2.7, "weighted_feature_bwd_compute_multiplier": 1.3}, {}),
    "quantised": ({}, {"qcomm_codecs_registry": get_qcomm_codecs_registry(QUANTISED)}),
}
IN_SEQUENCES = ("table_wise", "column_wise", "row_wise", "data_parallel")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "type", ["table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"]
)
def test_a_rank_costs_what_torchrec_estimates(type, variant):
    changed, quantised = VARIANTS[variant]
    where = topology(**({"ranks": 8, "local": 2} | changed))

    class AnySharder(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return super().sharding_types("cuda")

    modules = {
        "plain": bags(bag("t", dim=256), bag("u", dim=128, features=2, data_type=DataType.FP32)),
        "weighted": bags(bag("t", dim=64), bag("w", dim=256), weighted=True),
    }
    if type in IN_SEQUENCES and not (type == "data_parallel" and where.compute_device == "cpu"):
        modules["encoder"] = sequences("t", "s", dim=32)
    whole = model(**modules)
    constraints = {
        "t": ParameterConstraints(sharding_types=[type], pooling_factors=[2.7], is_weighted=False),
        "u": dataclasses.replace(TRAFFIC, sharding_types=[type]),
        "w": ParameterConstraints(sharding_types=[type], pooling_factors=[0.3], num_poolings=[3.0]),
        "s": ParameterConstraints(sharding_types=[type], pooling_factors=[7.7], is_weighted=True),
    }
    constraints = {name: each for name, each in constraints.items() if name != "s" or "encoder" in modules}
    by = [AnySharder(**quantised), EmbeddingCollectionSharder(**quantised)]
    if type == "grid_shard" and where.world_size == where.intra_group_size:
        with pytest.raises(DiagnosticError, match="no allowed sharding type has a way"):
            planner(where, constraints).plan(whole, by)
        return
    made = planner(where, constraints)
    plan = made.plan(whole, by)
    assert {table.sharding_type for tables in from_sharding_plan(plan).values() for table in tables.values()} == {type}
    judge, placement = made.choice.judge, made.choice.placement
    found = judge.problem.held(placement).astype(float) @ judge.cost.latents
    expected = rank_times(plan, whole, by, where, constraints, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert made.choice.judgement.step_time_ms == pytest.approx(expected.sum(axis=1).max(), rel=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(6))
def test_no_plan_of_torchrecs_planner_costs_less(seed):
    """The same inputs for both: tables, poolings, types, kernels, and memory that is loose or tight."""
    rng = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(10)]
    rows = {name: int(10 ** rng.uniform(3, 6.5)) for name in names}
    whole = model(
        ebc=bags(*(bag(name, rows=rows[name], dim=int(rng.choice([16, 64, 128, 256]))) for name in names[:7])),
        ec=sequences(*names[7:], rows=rows[names[7]]),
    )
    size = sum(parameter.numel() * 4 for parameter in whole.parameters())
    ranks, local = ((4, None), (4, 2), (8, 4))[seed % 3]
    where = topology(ranks, local=local, hbm_cap=int(size * (2.0 if seed % 2 else 0.6)) + GIB // 8)
    constraints = {name: ParameterConstraints(pooling_factors=[float(rng.lognormal(1.5, 1.0))]) for name in names}
    reserve = FixedPercentageStorageReservation(0.0)
    theirs = EmbeddingShardingPlanner(
        where, 256, storage_reservation=reserve, constraints=constraints, stats=[NoopEmbeddingStats()], debug=False
    ).plan(whole, sharders())
    ours = ShardcPlanner(where, 256, constraints, reserve).plan(whole, sharders())
    cost = {
        name: rank_times(plan, whole, sharders(), where, constraints, 256).sum(axis=1).max()
        for name, plan in (("ours", ours), ("theirs", theirs))
    }
    assert cost["ours"] <= cost["theirs"] * (1 + 1e-9)


# --- Topology and storage ---------------------------------------------------------------------------------------------


def test_devices_of_less_memory_hold_less():
    """Three tables of 1 GiB, four ranks of which one has room for none of them."""
    caps = CustomTopologyData({"hbm_cap": [1 * GIB, 2 * GIB, 2 * GIB, 2 * GIB]}, 4)
    whole = model(ebc=bags(*(bag(f"t{i}", rows=4 * 2**20, dim=64) for i in range(3))))
    limits = {f"t{i}": ParameterConstraints(sharding_types=["table_wise"]) for i in range(3)}
    tables = planned(whole, topology(4, custom_topology_data=caps), limits)["ebc"]
    assert sorted(rank for table in tables.values() for rank in table.ranks) == [1, 2, 3]


def test_every_figure_of_a_topology_has_an_effect_or_is_refused():
    """A figure that a newer TorchRec adds belongs into one of these."""
    tested = {"world_size", "compute_device", "hbm_cap", "ddr_cap", "local_world_size", "pod_size", "hbm_mem_bw"}
    tested |= {"ddr_mem_bw", "intra_host_bw", "inter_host_bw", "bwd_compute_multiplier", "custom_topology_data"}
    tested |= {"weighted_feature_bwd_compute_multiplier", "generalized_comms_bandwidths"}
    refused = {"uneven_sharding_perf_multiplier"}
    of_other_kernels = {
        "ssd_cap",
        "ssd_mem_bw",
        "hbm_to_ddr_mem_bw",
    }  # TorchRec's estimates of others have none of them
    parameters = set(inspect.signature(Topology.__init__).parameters) - {"self", "created_by_factory"}
    assert parameters == tested | refused | of_other_kernels


def test_memory_of_cpus():
    whole = model(ebc=bags(bag("t", rows=4 * 2**20)))
    limits = {"t": ParameterConstraints(sharding_types=["table_wise"])}
    assert planned(whole, topology(2, "cpu", ddr_cap=2 * GIB), limits)
    with pytest.raises(DiagnosticError, match="SH201"):
        planned(whole, topology(2, "cpu", ddr_cap=GIB), limits)


def test_hosts_and_pods():
    """Row blocks go to all ranks of a pod; placements count devices of a host."""
    limits = {"t": ParameterConstraints(sharding_types=["table_row_wise"])}
    whole = model(ebc=bags(bag("t")))
    for pods, ranks in ((None, 2), (2, 4)):
        made = planner(topology(8, local=2, pod_size=pods), limits).plan(whole, sharders()).plan["ebc"]["t"]
        assert len(made.ranks) == ranks
        assert [str(s.placement) for s in made.sharding_spec.shards] == [f"rank:{r}/cuda:{r % 2}" for r in made.ranks]


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (topology(4, "tpu"), "compute_device"),
        (topology(4, "mtia"), "compute_device"),
        (topology(6, local=4), "world_size"),
        (topology(uneven_sharding_perf_multiplier=1.5), "uneven_sharding_perf_multiplier"),
        (topology(hbm_mem_bw=0.0), "memory"),
        (topology(inter_host_bw=-1.0), "all_reduce"),
    ],
)
def test_topologies_that_are_refused(where, named):
    assert any(f"topology: {named}" in message for message in refused(model(ebc=bags(bag("t"))), where))


@pytest.mark.parametrize(
    "name", ["hbm_mem_bw", "ddr_mem_bw", "bwd_compute_multiplier", "weighted_feature_bwd_compute_multiplier"]
)
def test_speed_is_up_to_the_profile(name):
    where = topology(**{name: 123.0})
    assert planned(model(ebc=bags(bag("t"))), where)
    (message,) = refused(model(ebc=bags(bag("t"))), where, cost="h100-80gb")
    assert message == f"topology: {name}: what a step takes is up to h100-80gb"


def test_links_of_a_topology_are_the_profiles():
    whole = model(ebc=bags(*(bag(f"t{i}") for i in range(4))))
    limits = {f"t{i}": ParameterConstraints(sharding_types=["table_wise"]) for i in range(4)}
    times = {}
    for bandwidth in (None, 1e4):
        made = planner(topology(**({"intra_host_bw": bandwidth} if bandwidth else {})), limits, cost="h100-80gb")
        made.plan(whole, sharders())
        times[bandwidth] = made.choice.judgement.step_time_ms
    assert times[1e4] > 2 * times[None]
    (message,) = refused(whole, topology(generalized_comms_bandwidths=Links()), limits, cost="h100-80gb")
    assert "generalized_comms_bandwidths" in message


def test_another_kind_of_device_than_the_profiles():
    (message,) = refused(model(ebc=bags(bag("t"))), topology(4, "cpu"), cost="h100-80gb")
    assert message == 'topology: compute_device: "cpu", but h100-80gb is a "cuda" device'


def test_reserves():
    """A table of 1 GiB on ranks of 1.2 GiB: what is left of them decides."""
    whole = model(ebc=bags(bag("t", rows=4 * 2**20)), dense=torch.nn.Linear(1000, 1000))
    where = topology(2, hbm_cap=round(1.2 * GIB))
    limits = {"t": ParameterConstraints(sharding_types=["table_wise"])}
    for reserve in (FixedPercentageStorageReservation(0.0), FixedPercentageStorageReservation(0.1)):
        assert planned(whole, where, limits, storage_reservation=reserve)
    with pytest.warns(FutureWarning):
        heuristic = HeuristicalStorageReservation(percentage=0.1, dense_tensor_estimate=GIB // 2)
    for reserve in (FixedPercentageStorageReservation(0.2), heuristic, None):
        if reserve is None:  # 15 %, and 6 times the dense parameters
            where = topology(2, hbm_cap=round(1.18 * GIB))
        with pytest.raises(DiagnosticError, match='SH201 table "ebc/t" fits on no device'):
            planned(whole, where, limits, storage_reservation=reserve)
    with pytest.warns(FutureWarning):
        too_much = HeuristicalStorageReservation(percentage=0.1, dense_tensor_estimate=2 * GIB)
    with pytest.raises(DiagnosticError, match="SH202 nothing is left for tables"):
        planned(whole, where, limits, storage_reservation=too_much)


def test_optimizer_states_need_memory():
    """1 GiB of weights, and as much again for Adam's first moment, and for its second."""
    where = topology(2, hbm_cap=2 * GIB)
    limits = {"t": ParameterConstraints(sharding_types=["table_wise"])}
    whole = model(ebc=bags(bag("t", rows=4 * 2**20)))
    for optimizer, fits in ((EmbOptimType.EXACT_ROWWISE_ADAGRAD, True), (EmbOptimType.ADAM, False)):
        made = planner(where, limits)
        if fits:
            made.plan(whole, sharders(optimizer=optimizer))
            assert made.choice.judge.problem.optimizer == "rowwise_adagrad"
        else:
            with pytest.raises(DiagnosticError, match="SH201"):
                made.plan(whole, sharders(optimizer=optimizer))
    apply_optimizer_in_backward(RowWiseAdagrad, whole.parameters(), {"lr": 0.1})
    made = planner(where, limits)
    made.plan(whole, sharders(optimizer=EmbOptimType.ADAM))  # the parameters' own comes first, as in TorchRec
    assert (made.choice.judge.problem.optimizer, made.warnings) == ("rowwise_adagrad", ())


def test_unknown_optimizers_are_counted_as_what_keeps_most(caplog):
    made = planner()
    with caplog.at_level(logging.WARNING):
        made.plan(model(ebc=bags(bag("t"))), sharders(optimizer=EmbOptimType.LAMB))
    assert made.choice.judge.problem.optimizer == "adam"
    assert [warning.code for warning in made.warnings] == ["SH611"]
    assert "SH611 warning: tables have several optimizers, or one that is not known" in caplog.text


# --- Costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost", "device"), [("h100-80gb", "cuda"), (str(PROFILES / "cpu-epyc"), "cpu")])
def test_costs_of_a_profile(cost, device):
    whole = model(ebc=bags(bag("t"), bag("w"), weighted=True), encoder=sequences("t", "s"))
    made = planner(topology(2, device), cost=cost)
    assert isinstance(made.plan(whole, sharders()), ShardingPlan)
    assert "forward" in made.choice.judge.cost.phases
    assert any("not measured with weighted lookups" in warning.message for warning in made.warnings)


def test_an_own_cost_model():
    class Rows:
        """A device takes as long as it has rows."""

        def encode(self, shards):
            return shards.rows[:, None].astype(float)

        def score(self, z):
            return z[..., 0].max(axis=-1)

    whole = model(ebc=bags(*(bag(f"t{i}", rows=rows) for i, rows in enumerate((600, 500, 300, 200, 100)))))
    limits = {f"t{i}": ParameterConstraints(sharding_types=["table_wise"]) for i in range(5)}
    made = planner(topology(2), limits, cost=Rows())
    made.plan(whole, sharders())
    assert made.choice.judgement.step_time_ms == pytest.approx(900)
    (message,) = refused(whole, topology(2, intra_host_bw=1.0), limits, cost=Rows())
    assert message == "topology: intra_host_bw: what a step takes is up to the cost model"


def test_unknown_profiles_and_efforts():
    with pytest.raises(DiagnosticError, match='SH107 unknown device "h100"'):
        ShardcPlanner(topology(), cost="h100")
    with pytest.raises(DiagnosticError, match=r'SH104 expected effort as one of .*, found "most"'):
        ShardcPlanner(topology(), effort="most")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"topology": "x"}, "SH103 expected topology as a Topology, found 'x'"),
        ({"batch_size": 0}, "SH104 expected batch_size as a positive integer, found 0"),
        ({"batch_size": 1.5}, "SH103 expected batch_size as a positive integer, found 1.5"),
        ({"batch_size": "512"}, "SH103 expected batch_size as a positive integer, found '512'"),
        ({"batch_size": True}, "SH103 expected batch_size as a positive integer, found True"),
        ({"batch_size": 10**12}, f"SH104 expected a batch_size of at most {2**29} on 4 ranks, found 1000000000000"),
        (
            {"constraints": []},
            "SH103 expected constraints as a mapping of table names to ParameterConstraints, found []",
        ),
        ({"constraints": {"t": {}}}, 'SH103 expected constraints of table "t" as ParameterConstraints, found {}'),
        ({"constraints": {1: ParameterConstraints()}}, "SH103 expected names of tables in constraints, found 1"),
        ({"cost": 5}, "SH103 expected cost as a name, or a cost model with encode and score, found 5"),
        ({"storage_reservation": 0.15}, "SH103 expected storage_reservation as one of TorchRec's, found 0.15"),
        ({"seed": 1.5}, "SH103 expected seed as an integer, found 1.5"),
        ({"seed": -1}, "SH104 expected seed as an integer from 0 to 4294967295, found -1"),
        ({"effort": []}, 'SH104 expected effort as one of fast, balanced, thorough, found "[]"'),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, says):
    with pytest.raises(DiagnosticError) as raised:
        ShardcPlanner(**({"topology": topology()} | arguments))
    assert str(raised.value) == says


def test_what_is_no_model_is_refused():
    with pytest.raises(DiagnosticError, match=r"SH103 expected a model \(torch.nn.Module\), found a str"):
        planner().plan("x", sharders())


@pytest.mark.parametrize("wrong", ["x", 5, [EmbeddingBagCollectionSharder], [None]])
def test_what_are_no_sharders_is_refused(wrong):
    with pytest.raises(DiagnosticError, match="SH103 expected sharders as a list of TorchRec's sharders"):
        planner().plan(model(ebc=bags(bag("t"))), wrong)


def test_planning_together_needs_a_process_group():
    with pytest.raises(DiagnosticError, match="SH605 there is no process group to plan with"):
        planner().collective_plan(model(ebc=bags(bag("t"))), sharders())


# --- Models -----------------------------------------------------------------------------------------------------------


def test_modules_compete_for_the_devices():
    """Four tables of 1 GiB in three modules, two of one name, on four ranks with room for one each."""
    rows = 4 * 2**20
    whole = model(a=bags(bag("t", rows=rows)), b=model(c=bags(bag("t", rows=rows), bag("u", rows=rows))))
    whole.add_module("d", sequences("v", rows=rows))
    limits = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in "tuv"}
    tables = planned(whole, topology(4, hbm_cap=round(1.2 * GIB)), limits)
    assert {path: set(of_module) for path, of_module in tables.items()} == {"a": {"t"}, "b.c": {"t", "u"}, "d": {"v"}}
    assert sorted(rank for of_module in tables.values() for table in of_module.values() for rank in table.ranks) == [
        0,
        1,
        2,
        3,
    ]


def test_the_model_may_be_the_collection():
    assert planned(bags(bag("t"))).keys() == {""}


def test_sequences_are_cut_alike():
    """FBGEMM's operator of lookups that are not pooled has tables of one width."""
    limits = {name: ParameterConstraints(sharding_types=["column_wise"]) for name in "ab"}
    for least, width in ((None, 48), (20, 24)):
        limits["a"] = dataclasses.replace(limits["a"], min_partition=least)
        tables = planned(model(ec=sequences("a", "b", dim=96)), topology(4), limits)["ec"]
        assert {shard.shard_sizes[1] for table in tables.values() for shard in table.shards} == {width}


def test_sequences_are_no_replicas_on_cpus():
    limits = {"s": ParameterConstraints(sharding_types=["data_parallel"])}
    assert planned(model(ec=sequences("s")), topology(2, "cuda"), limits)
    (message,) = refused(model(ec=sequences("s")), topology(2, "cpu"), limits)
    assert message.endswith("FBGEMM's dense operator pools the lookups of sequences on CPUs")


def test_types_that_a_sharder_lists_for_gpus_only():
    """Help says how to have them on CPUs, and that helps."""

    class Everything(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return super().sharding_types("cuda")

    limits = {"t": ParameterConstraints(sharding_types=["row_wise"])}
    made = planner(topology(2, "cpu"), limits)
    with pytest.raises(DiagnosticError) as raised:
        made.plan(bags(bag("t")), sharders())
    (finding,) = raised.value.diagnostics
    assert "EmbeddingBagCollectionSharder has " in finding.message
    assert "override `sharding_types`" in finding.help
    assert from_sharding_plan(made.plan(bags(bag("t")), [Everything()]))[""]["t"].sharding_type == "row_wise"


def test_the_sharder_decides_what_is_allowed():
    class Whole(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return ["table_wise"]

    whole = model(ebc=bags(*(bag(f"t{i}") for i in range(4))))
    tables = from_sharding_plan(planner().plan(whole, [Whole()]))["ebc"]
    assert {table.sharding_type for table in tables.values()} == {"table_wise"}
    with pytest.raises(DiagnosticError, match="Whole has table_wise on cuda, not row_wise"):
        planner(constraints={"t0": ParameterConstraints(sharding_types=["row_wise"])}).plan(whole, [Whole()])


def test_other_modules_are_refused():
    collection = bags(bag("t"), weighted=True)
    processed = FeatureProcessedEmbeddingBagCollection(
        collection, PositionWeightedModuleCollection({"t_0": 10}, device=META)
    )
    with pytest.raises(DiagnosticError) as raised:
        planner().plan(model(fp=processed), [FeatureProcessedEmbeddingBagCollectionSharder()])
    assert "FeatureProcessedEmbeddingBagCollection: tables of EmbeddingBagCollection" in str(raised.value)
    for other in (torch.nn.Linear(2, 2), bags()):
        with pytest.raises(DiagnosticError, match="SH611 no sharder finds a table in the model"):
            planner().plan(model(other=other), sharders())


def test_weights_are_of_one_type():
    half = bags(bag("t", data_type=DataType.FP16))
    made = planner()
    made.plan(model(a=half), sharders(output_dtype=SparseType.BF16))
    assert (made.choice.judge.problem.weights, made.choice.judge.problem.outputs) == ("fp16", "bf16")
    (message,) = refused(model(a=half, b=bags(bag("u"))))
    assert "weights are fp16" in message
    assert "fp32" in message


def test_it_is_one_of_torchrecs_planners_and_leaves_its_inputs_alone():
    where, limits = topology(), {"t": ParameterConstraints(pooling_factors=[3.0])}
    before = copy.deepcopy(where), copy.deepcopy(limits)
    made = planner(where, limits, storage_reservation=FixedPercentageStorageReservation(0.5))
    assert isinstance(made, ShardingPlanner)
    first, second = (made.plan(model(ebc=bags(bag("t"), bag("u"))), sharders()) for _ in range(2))
    assert first == second
    assert where._hash() == before[0]._hash()
    assert limits == before[1]
