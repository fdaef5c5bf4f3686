"""Reads a plan into TorchRec's own `ShardingPlan`, for `DistributedModelParallel(model, plan=...)`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.plan import Plan, PlanShard, TablePlan, read_plan
from shardc.problem import Kernel, ShardingType

if TYPE_CHECKING:
    from torchrec.distributed.types import ShardingPlan

INSTALL = "pip install --no-deps torchrec==1.9.2 && pip install tensordict torchmetrics==1.0.3 pyre-extensions tqdm"


def load_plan(plan: str | os.PathLike[str] | Plan, device_type: Literal["cuda", "cpu"] | None = None) -> ShardingPlan:
    """Return the plan as TorchRec takes it.

    Args:
        plan: a plan, or the path of its file.
        device_type: kind of device to place the shards on instead of the plan's own: with "cpu" a plan for GPUs runs
            on as many CPU processes, for a test or a debugger. There is no cache on CPUs: tables that have one on GPUs
            have the kernel fused there, which looks up and learns the same.

    Raises:
        DiagnosticError: SH604 when TorchRec is not installed, SH605 when the process group's ranks are not those of the
            plan, and everything that `read_plan` raises.
    """
    document = plan if isinstance(plan, Plan) else read_plan(plan)
    try:
        from torchrec.distributed import types
    except ImportError as error:
        message = f"loading a plan for TorchRec needs torchrec: {error}"
        raise DiagnosticError(Diagnostic("SH604", message, help=INSTALL), exit_code=2) from error

    if found := _other_ranks(document):
        raise DiagnosticError(found, exit_code=2)

    uncached = device_type == "cpu"

    def placement(shard: PlanShard) -> str:
        match device_type:
            case None:
                return shard.placement
            case "cpu":
                return f"rank:{shard.rank}/cpu"
            case "cuda":
                return f"rank:{shard.rank}/cuda:{shard.rank % document.cluster.devices_per_host}"

    def parameter(table: TablePlan) -> types.ParameterSharding:
        shards = [
            types.ShardMetadata(list(shard.shard_offsets), list(shard.shard_sizes), placement(shard))
            for shard in table.shards
        ]
        return types.ParameterSharding(
            sharding_type=table.sharding_type,
            compute_kernel=str(Kernel.FUSED) if uncached and table.cache_params else table.compute_kernel,
            ranks=list(table.ranks),
            cache_params=types.CacheParams(load_factor=table.cached) if table.cache_params and not uncached else None,
            sharding_spec=types.EnumerableShardingSpec(shards) if shards else None,
        )

    modules = {
        module: types.EmbeddingModuleShardingPlan({name: parameter(table) for name, table in tables.items()})
        for module, tables in document.plan.items()
    }
    return types.ShardingPlan(modules)


def _other_ranks(plan: Plan) -> Diagnostic | None:
    """What keeps the ranks of the process group, if there is one yet, from being those of the plan.

    TorchRec reads from the environment which ranks are of one host. Told otherwise than the plan was, it sends the
    pieces of table_row_wise and grid_shard elsewhere, and crashes, hangs, or returns outputs of another shape.
    """
    from torch import distributed
    from torchrec.distributed.comm import get_topology_group_world_size

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    ranks, local = plan.cluster.devices, plan.cluster.devices_per_host
    if (world := distributed.get_world_size()) != ranks:
        return Diagnostic("SH605", f"the plan is for {ranks} ranks, the process group has {world}")
    by_host = {ShardingType.TABLE_ROW_WISE, ShardingType.GRID_SHARD}
    types = {table.sharding_type for tables in plan.plan.values() for table in tables.values()}
    if types & by_host and (found := get_topology_group_world_size(world)) != local:
        message = f"the plan is for hosts of {local} ranks, TorchRec takes {found} ranks for a host"
        return Diagnostic("SH605", message, help=f"start with torchrun, or set LOCAL_WORLD_SIZE={local}")
    return None
