"""TorchRec's own planner on a problem: what a user would run instead, and its plan as a placement.

The planner is told what a careful user could tell it: poolings, the optimizer, the memory that tables may take of each
rank, and the sharding types and kernels that the problem has options of. Those are fewer than a spec allows, since
options that others can replace are left out, and the planner takes a fraction of the time. What it has no words for
(pins, groups, sets kept apart) it does not know of, and its plans may break.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.frameworks.torchrec import require_torchrec as require
from shardc.problem import Kernel, Optimizer, Placement, Problem, ShardingType, Site

if TYPE_CHECKING:
    from torchrec.distributed.planner import Topology
    from torchrec.distributed.types import ParameterSharding
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

_MODULE = "ebc"


class Planned(NamedTuple):
    """What the planner made of a problem, and the seconds that its `plan` took."""

    placement: Placement
    seconds: float


def require_torchrec() -> None:
    """Import what planning needs.

    Raises:
        DiagnosticError: SH604, exit code 2, when TorchRec is not installed, or does not load.
    """
    require("the strategy torchrec_planner")


def plan_with_torchrec(
    problem: Problem, *, intra_host: float | None = None, inter_host: float | None = None
) -> Planned:
    """Run TorchRec's planner.

    Args:
        problem: the problem.
        intra_host: bytes/s of a device to others of its host; None for what TorchRec assumes.
        inter_host: bytes/s of a device to other hosts; None for what TorchRec assumes.

    Raises:
        DiagnosticError: SH203 when the planner finds no plan, SH308 when its plan is no choice among the problem's
            options, SH901 when the planner itself fails, SH604 when TorchRec is not installed.
    """
    require_torchrec()
    import torch
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.stats import NoopEmbeddingStats
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError
    from torchrec.distributed.types import CacheParams

    class AnySharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
        """TorchRec lists row-wise for GPUs only, but runs and estimates it on a CPU too."""

        def sharding_types(self, compute_device_type: str) -> list[str]:
            return [str(type) for type in ShardingType]

    constraints = {}
    for block, members in enumerate(problem.blocks):
        types = list(dict.fromkeys(str(problem.option_type[option]) for option in problem.options_of(block)))
        shares = [problem.cached_of(option) for option in problem.options_of(block)]
        for table, of_table in zip((problem.tables[t] for t in members), zip(*shares, strict=True), strict=True):
            cached = min(of_table)
            kernels = [Kernel.FUSED] * (max(of_table) == 1.0) + [Kernel.FUSED_UVM_CACHING] * (cached < 1.0)
            constraints[table.name] = ParameterConstraints(
                sharding_types=types,
                compute_kernels=[*map(str, kernels), str(Kernel.DENSE)],
                pooling_factors=[table.pooling / len(table.features)] * len(table.features),
                cache_params=CacheParams(load_factor=cached) if cached < 1.0 else None,
            )
    model = torch.nn.Module()
    model.add_module(_MODULE, _collection(problem))
    with _silence():
        planner = EmbeddingShardingPlanner(
            topology=_topology(problem, intra_host, inter_host),
            batch_size=-(-problem.global_batch // problem.cluster.devices),
            storage_reservation=FixedPercentageStorageReservation(0.0),  # the problem's limits are without reserve
            constraints=constraints,
            stats=[NoopEmbeddingStats()],
            debug=False,
        )
        start = time.perf_counter()
        try:
            plan = planner.plan(model, [AnySharder()])
        except PlannerError as error:
            reason = str(error).strip().partition("\n")[0].rstrip(":")
            raise DiagnosticError(Diagnostic("SH203", f"TorchRec's planner found no plan: {reason}")) from error
        except Exception as error:  # whatever it trips over is its failure, and not this process's
            message = f"TorchRec's planner failed: {type(error).__name__}: {error}"
            raise DiagnosticError(Diagnostic("SH901", message)) from error
        seconds = time.perf_counter() - start
    return Planned(_placement(problem, plan.plan[_MODULE]), seconds)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep TorchRec from logging: what it would say of a plan is about training with it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _collection(problem: Problem) -> EmbeddingBagCollection:
    """The tables, without storage, as an optimizer fused into the backward pass has them."""
    import torch
    from torchrec import optim
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    dtypes = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}
    optimizers = {
        Optimizer.SGD: torch.optim.SGD,
        Optimizer.ROWWISE_ADAGRAD: optim.RowWiseAdagrad,
        Optimizer.ADAGRAD: torch.optim.Adagrad,
        Optimizer.ADAM: torch.optim.Adam,
    }
    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.rows,
                embedding_dim=table.dim,
                feature_names=list(table.features),
                data_type=dtypes[problem.weights],
            )
            for table in problem.tables
        ],
    )
    optim.apply_optimizer_in_backward(optimizers[problem.optimizer], collection.parameters(), {"lr": 0.01})
    return collection


def _topology(problem: Problem, intra_host: float | None, inter_host: float | None) -> Topology:
    """The devices, with the memory that tables may take of each; TorchRec counts bytes/ms."""
    from torchrec.distributed.planner import Topology
    from torchrec.distributed.planner.types import CustomTopologyData

    cluster = problem.cluster
    capacities = ["ddr_cap"] if cluster.device_type == "cpu" else ["hbm_cap", "ddr_cap"]
    limits = dict(zip(capacities, cluster.memory_limit.tolist(), strict=False))
    bandwidths = {"intra_host_bw": intra_host, "inter_host_bw": inter_host}
    return Topology(
        cluster.devices,
        cluster.device_type,
        local_world_size=cluster.devices_per_host,
        custom_topology_data=CustomTopologyData(limits, cluster.devices),
        **{name: given / 1000 for name, given in bandwidths.items() if given},
    )


def _placement(problem: Problem, plan: dict[str, ParameterSharding]) -> Placement:
    """A plan as options and places.

    Raises:
        DiagnosticError: SH308 for every block that is sharded in a way that is no option of the problem.
    """
    options, places, faults = [], [], []
    for block, members in enumerate(problem.blocks):
        sharded = [plan[problem.tables[t].name] for t in members]
        found = ((option, _places(problem, option, sharded)) for option in problem.options_of(block))
        option, of_units = next(((o, p) for o, p in found if p is not None), (None, None))
        if option is None or of_units is None:
            name, first = problem.tables[members[0]].name, sharded[0]
            message = f'TorchRec\'s plan has table "{name}" {first.sharding_type} on ranks {first.ranks}: no option'
            faults.append(Diagnostic("SH308", message))
        else:
            options.append(option)
            places.append(of_units)
    if faults:
        raise DiagnosticError(*faults)
    return Placement(tuple(options), tuple(places))


def _places(problem: Problem, option: int, sharded: list[ParameterSharding]) -> tuple[int, ...] | None:
    """Places of an option's units if a block's tables are sharded in this way, all on the same ranks; None if not.

    Column blocks that all lie on one device, which TorchRec lists and plans, are the whole table there.
    """
    first, type = sharded[0], problem.option_type[option]
    cached = [s.compute_kernel == Kernel.FUSED_UVM_CACHING for s in sharded]
    if any(s.ranks != first.ranks for s in sharded) or cached != [share < 1.0 for share in problem.cached_of(option)]:
        return None
    in_columns = first.sharding_type in (ShardingType.COLUMN_WISE, ShardingType.TABLE_COLUMN_WISE)
    if type is ShardingType.TABLE_WISE and in_columns and len(set(first.ranks)) == 1:
        return (int(first.ranks[0]),)
    if any(s.sharding_type != type for s in sharded):
        return None
    if problem.option_site[option] == Site.CLUSTER:
        return (0,)
    size = int(problem.site_size[problem.option_site[option]])
    units = problem.units_of(option)
    if len(sharded) > 1:
        return tuple(rank // size for rank in first.ranks)
    widths = [int(problem.shards.dim[problem.unit_shards[unit][0]]) for unit in units]
    columns = sorted((-shard.shard_sizes[1], shard.placement.rank() // size) for shard in first.sharding_spec.shards)
    pieces = columns[::size]  # a host's blocks of rows are as wide and at the same place
    places = tuple(place for _, place in pieces)
    fits = [-width for width, _ in pieces] == widths and len(set(places)) == len(places)
    return places if fits else None
