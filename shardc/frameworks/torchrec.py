"""Plans as TorchRec has them: reading, checking and writing its `ShardingPlan`, and a planner in place of its own.

    model = DistributedModelParallel(model, plan=load_plan("model.plan.json", model=model, sharders=sharders))

A plan that TorchRec would run wrong (row-wise blocks that are not its own, ranks that disagree with placements) never
becomes a `ShardingPlan`: TorchRec itself trains such plans without a word.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from shardc.diagnostics import Diagnostic, DiagnosticError, quoted_tables
from shardc.passes.verify import extent, shard_faults, too_many_devices
from shardc.plan import CacheParams, Plan, PlanShard, TablePlan, read_plan
from shardc.problem import Cluster, ShardingType

if TYPE_CHECKING:
    from torch import nn
    from torchrec.distributed import types
    from torchrec.distributed.types import ModuleSharder, ShardingPlan

    from shardc.frameworks.sharding_planner import ShardcPlanner as ShardcPlanner

INSTALL = "pip install --no-deps torchrec==1.9.2 && pip install tensordict torchmetrics==1.0.3 pyre-extensions tqdm"

_EXPECTED = "expected a ShardingPlan, what its _serialize() returns, or what `shardc export --to torchrec` writes"

DeviceType = Literal["cuda", "cpu"]
Tables = Mapping[str, Mapping[str, TablePlan]]
"""Module path → table → how it is sharded: the member `plan` of a plan."""


def __getattr__(name: str) -> Any:
    """`ShardcPlanner` is one of TorchRec's planners: its module imports TorchRec, and so is imported when asked for."""
    if name != "ShardcPlanner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_torchrec("planning in TorchRec")
    from shardc.frameworks.sharding_planner import ShardcPlanner

    return ShardcPlanner


def load_plan(
    plan: str | os.PathLike[str] | Plan,
    device_type: DeviceType | None = None,
    *,
    model: nn.Module | None = None,
    sharders: Sequence[ModuleSharder[Any]] | None = None,
) -> ShardingPlan:
    """Return a plan as TorchRec takes it, after checking it against the process group and the model.

    Nothing is allocated: the model may still be on the meta device.

    Args:
        plan: a plan, or the path of its file.
        device_type: kind of device to place the shards on instead of the plan's own: with "cpu" a plan for GPUs runs
            on as many CPU processes, for a test or a debugger. There are no caches on CPUs: tables that have one on
            GPUs have the kernel fused there, which looks up and learns the same.
        model: the model that the plan is for, before it is sharded; None to compare nothing.
        sharders: what will shard the model; None for TorchRec's default ones.

    Raises:
        DiagnosticError: SH604 when TorchRec is not installed, SH605 when the process group's ranks are not those of the
            plan, SH103 when the model is none of PyTorch's or a sharder none of TorchRec's, SH610 with everything in
            which plan and model differ, everything that `to_sharding_plan` raises, and everything that `read_plan`
            raises. A `UserWarning` names data-parallel tables whose shape an older plan does not state.
    """
    document = plan if isinstance(plan, Plan) else read_plan(plan)
    require_torchrec("loading a plan for TorchRec")
    if found := _not_of_group(document):
        raise DiagnosticError(found, exit_code=2)
    sharding_plan = to_sharding_plan(document, device_type)
    if model is not None and (unsaid := _without_shape(document.plan)):
        message = f"the plan does not say how large {quoted_tables(unsaid)} may be: not compared with the model"
        warnings.warn(message, stacklevel=2)
    if model is not None:
        from shardc.frameworks.torchrec_model import differences, require_model, require_sharders

        require_model(model)
        require_sharders(sharders)
        target = device_type or _device_type(document.plan)
        tables = _on(device_type, document.plan)
        if faults := list(differences(tables, document.model.weights, model, sharders, target)):
            raise DiagnosticError(*faults, exit_code=2)
    return sharding_plan


def to_sharding_plan(plan: Plan, device_type: DeviceType | None = None) -> ShardingPlan:
    """Return a plan as TorchRec has it; `from_sharding_plan` gives back the same tables, unless they move to CPUs.

    TorchRec has no word for the shape of a data-parallel table, which is lost.

    Args:
        plan: the plan.
        device_type: as of `load_plan`. A plan for GPUs can be converted on a machine without any.

    Raises:
        DiagnosticError: SH604 when TorchRec is not installed, SH104 for another kind of device, SH306 with everything
            in the plan that TorchRec would refuse or train wrong.
    """
    require_torchrec("a plan for TorchRec")
    if device_type not in (None, "cuda", "cpu"):
        message = f'a plan cannot be placed on devices of the type "{device_type}"'
        raise DiagnosticError(Diagnostic("SH104", message, help='expected "cuda" or "cpu"'), exit_code=2)
    if too_many := too_many_devices(plan):
        raise DiagnosticError(too_many, exit_code=2)
    cluster = plan.cluster
    own = _device_type(plan.plan)
    devices = Cluster(own, cluster.devices_per_host, kinds=(), host_kind=(0,) * cluster.hosts)
    tables = _on(device_type, plan.plan)
    if faults := list(_faults(tables, devices)):
        raise DiagnosticError(*faults, exit_code=2)
    return sharding_plan(tables, placement_on(device_type, cluster.devices_per_host))


def sharding_plan(tables: Tables, placement: Callable[[PlanShard], str]) -> ShardingPlan:
    """Return tables as TorchRec has them, unchecked; `placement` says where each shard goes."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
    from torchrec.distributed import types
    from torchrec.modules.embedding_configs import DataType

    def parameter(table: TablePlan) -> types.ParameterSharding:
        shards = [
            types.ShardMetadata(list(shard.shard_offsets), list(shard.shard_sizes), placement(shard))
            for shard in table.shards
        ]
        return types.ParameterSharding(
            sharding_type=table.sharding_type,
            compute_kernel=table.compute_kernel,
            ranks=list(table.ranks),
            sharding_spec=types.EnumerableShardingSpec(shards) if shards else None,
            cache_params=_cache_params(table.cache_params) if table.cache_params else None,
            enforce_hbm=table.enforce_hbm,
            stochastic_rounding=table.stochastic_rounding,
            bounds_check_mode=BoundsCheckMode[table.bounds_check_mode.upper()] if table.bounds_check_mode else None,
            output_dtype=DataType[table.output_dtype.upper()] if table.output_dtype else None,
        )

    return types.ShardingPlan(
        {
            module: types.EmbeddingModuleShardingPlan({name: parameter(table) for name, table in of_module.items()})
            for module, of_module in tables.items()
        }
    )


def from_sharding_plan(plan: ShardingPlan | Mapping[str, Any]) -> dict[str, dict[str, TablePlan]]:
    """Return the tables of one of TorchRec's plans, as the member `plan` of a plan has them.

    TorchRec's `_serialize()` leaves out parameters of caches, rounding, bounds checks and output types. TorchRec runs a
    table without the first with caches of its own default size, so a `UserWarning` names the tables of a mapping that
    have a caching kernel and no `cache_params`; all else that is left out has TorchRec's default without a word.

    Args:
        plan: a `ShardingPlan`; what its `_serialize()` returns; or what `shardc export --to torchrec` writes, parsed.

    Raises:
        DiagnosticError: SH302 with everything that is none of these, or that a plan of shardc has no words for.
    """
    tables: dict[str, dict[str, TablePlan]] = {}
    faults = []
    for path, of_module in _modules(plan).items():
        tables[path] = {}
        if not isinstance(of_module, Mapping):
            message = f'module "{path}" has a {type(of_module).__name__}, not a plan of tables'
            faults.append(Diagnostic("SH302", message, help=_EXPECTED))
            continue
        if not of_module:
            faults.append(Diagnostic("SH302", f'module "{path}" has no tables', help=_EXPECTED))
        for name, sharding in of_module.items():
            try:
                members = _known(sharding) if isinstance(sharding, Mapping) else _members(sharding)
                tables[path][name] = TablePlan.model_validate(_with_placements(members))
            except (ValidationError, ValueError) as error:
                reasons = [str(error)]
                if isinstance(error, ValidationError):
                    details = error.errors(include_url=False, include_context=False, include_input=False)
                    reasons = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details]
                faults += [Diagnostic("SH302", f"{_named(path, name)}: {reason}") for reason in reasons]
    if faults:
        raise DiagnosticError(*faults)
    if isinstance(plan, Mapping):
        _warn_of_caches(tables)
    return tables


def require_torchrec(purpose: str) -> None:
    """Import what converting plans needs.

    Raises:
        DiagnosticError: SH604, exit code 2, when TorchRec is not installed, or does not load.
    """
    try:
        import torchrec.distributed  # noqa: F401
    except (ImportError, OSError) as error:  # a library that FBGEMM links to may be missing
        raise DiagnosticError(
            Diagnostic("SH604", f"{purpose} needs torchrec: {error}", help=INSTALL), exit_code=2
        ) from error


def _on(device_type: DeviceType | None, tables: Tables) -> Tables:
    """The tables of a plan as devices of a kind have them."""
    if device_type != "cpu":
        return tables
    fused = {"compute_kernel": "fused", "cache_params": None}
    return {
        path: {
            name: table.model_copy(update=fused) if table.compute_kernel.startswith("fused") else table
            for name, table in of_module.items()
        }
        for path, of_module in tables.items()
    }


def _device_type(tables: Tables) -> DeviceType:
    """The kind of device of a plan's first shard; plans of replicas alone say nothing of it, and run on any."""
    shards = (shard for of_module in tables.values() for table in of_module.values() for shard in table.shards)
    first = next(shards, None)
    return "cuda" if first and "/cuda:" in first.placement else "cpu"


def _faults(tables: Tables, cluster: Cluster) -> Iterator[Diagnostic]:
    """Yield everything that makes a plan no plan for TorchRec."""
    for path, of_module in tables.items():
        for name, table in of_module.items():
            for code, fault in shard_faults(table, cluster):
                yield Diagnostic(code, f"{_named(path, name)}: {fault}")


def _named(path: str, table: str) -> str:
    return f'module "{path}", table "{table}"'


def placement_on(device_type: DeviceType | None, devices_per_host: int) -> Callable[[PlanShard], str]:
    """Where each shard goes on devices of a kind, None for where its plan says, in TorchRec's words."""
    match device_type:
        case None:
            return lambda shard: shard.placement
        case "cpu":
            return lambda shard: f"rank:{shard.rank}/cpu"
        case "cuda":
            return lambda shard: f"rank:{shard.rank}/cuda:{shard.rank % devices_per_host}"


def _cache_params(cache: CacheParams) -> types.CacheParams:
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import CacheAlgorithm
    from torchrec.distributed import types
    from torchrec.modules.embedding_configs import DataType

    passes = cache.multipass_prefetch
    return types.CacheParams(
        algorithm=CacheAlgorithm[cache.algorithm.upper()] if cache.algorithm else None,
        load_factor=cache.load_factor,
        reserved_memory=cache.reserved_memory,
        precision=DataType[cache.precision.upper()] if cache.precision else None,
        prefetch_pipeline=cache.prefetch_pipeline,
        multipass_prefetch_config=types.MultiPassPrefetchConfig(**passes.model_dump()) if passes else None,
    )


def _modules(plan: ShardingPlan | Mapping[str, Any]) -> Mapping[str, Any]:
    """The modules of one of TorchRec's plans, in whatever form.

    Raises:
        DiagnosticError: SH302 for anything else.
    """
    torchrec = sys.modules.get("torchrec.distributed.types")  # whoever made a plan has imported it
    if torchrec is not None and isinstance(plan, torchrec.ShardingPlan):
        modules: Mapping[str, Any] = plan.plan
        if not modules:
            raise DiagnosticError(Diagnostic("SH302", "a ShardingPlan without modules is no plan", help=_EXPECTED))
        return modules
    if not isinstance(plan, Mapping) or not plan:
        found = "an empty mapping" if isinstance(plan, Mapping) else f"a {type(plan).__name__}"
        raise DiagnosticError(Diagnostic("SH302", f"{found} is not a plan of TorchRec", help=_EXPECTED))
    inner = plan.get("plan")
    if len(plan) > 1 or not isinstance(inner, Mapping):
        return plan
    # Tables of a module with the path "plan" are no modules of what was serialized.
    of_module = any(isinstance(each, Mapping) and isinstance(each.get("sharding_type"), str) for each in inner.values())
    return plan if of_module else inner


def _known(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table's members as a mapping has them.

    Raises:
        ValueError: for members that are no part of a plan, which would be lost.
    """
    if not members:
        raise ValueError("it is empty: expected sharding_type, compute_kernel, ranks and shards")
    shards = members.get("shards")
    if not isinstance(shards, Sequence | None) or not all(isinstance(shard, Mapping) for shard in shards or ()):
        raise ValueError("shards: expected a list of shard_offsets, shard_sizes and placement")
    strange = [str(name) for name in members if name not in TablePlan.model_fields]
    strange += [f"shards.{name}" for shard in shards or () for name in shard if name not in PlanShard.model_fields]
    if isinstance(cache := members.get("cache_params"), Mapping):
        strange += [f"cache_params.{name}" for name in cache if name not in CacheParams.model_fields]
    if strange:
        raise ValueError(f"a plan has no {', '.join(dict.fromkeys(strange))}")
    return members


def _warn_of_caches(tables: Tables) -> None:
    unsaid = [
        name
        for of_module in tables.values()
        for name, table in of_module.items()
        if table.compute_kernel == "fused_uvm_caching" and table.cache_params is None
    ]
    if unsaid:
        message = f"no cache_params for {quoted_tables(unsaid)}: TorchRec gives caches its default size"
        warnings.warn(message, stacklevel=3)


def _without_shape(tables: Tables) -> list[str]:
    return [name for of_module in tables.values() for name, table in of_module.items() if extent(table) is None]


def _members(sharding: types.ParameterSharding) -> dict[str, Any]:
    """A table's sharding as members of a plan.

    Raises:
        ValueError: for what a plan has no words for.
    """
    from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding

    if not isinstance(sharding, ParameterSharding):
        raise ValueError(f"it is a {type(sharding).__name__}, not a ParameterSharding or a mapping of its members")
    spec, cache = sharding.sharding_spec, sharding.cache_params
    if spec is not None and not isinstance(spec, EnumerableShardingSpec):
        raise ValueError(f"its sharding_spec is a {type(spec).__name__}, not a list of shards")
    if sharding.key_value_params is not None:
        raise ValueError("a plan has no key_value_params")
    if cache is not None and cache.stats is not None:
        raise ValueError("a plan has no cache_params.stats")
    passes = cache.multipass_prefetch_config if cache is not None else None
    return {
        "sharding_type": sharding.sharding_type,
        "compute_kernel": sharding.compute_kernel,
        "ranks": sharding.ranks,
        "shards": [
            {name: getattr(shard, name) for name in ("shard_offsets", "shard_sizes", "placement")}
            for shard in (spec.shards if spec is not None else ())
        ],
        "cache_params": cache
        and {
            "algorithm": cache.algorithm and cache.algorithm.name.lower(),
            "load_factor": cache.load_factor,
            "reserved_memory": cache.reserved_memory,
            "precision": cache.precision and cache.precision.name.lower(),
            "prefetch_pipeline": cache.prefetch_pipeline,
            "multipass_prefetch": passes and passes._asdict(),
        },
        "enforce_hbm": sharding.enforce_hbm,
        "stochastic_rounding": sharding.stochastic_rounding,
        "bounds_check_mode": None if sharding.bounds_check_mode is None else sharding.bounds_check_mode.name.lower(),
        "output_dtype": sharding.output_dtype and sharding.output_dtype.name.lower(),
    }


def _with_placements(members: Mapping[str, Any]) -> dict[str, Any]:
    """Members with placements as text, and ranks in the order of the shards where TorchRec left them out."""
    shards = [
        {name: str(value) if name == "placement" else value for name, value in shard.items()}
        for shard in members.get("shards") or ()
    ]
    ranks = members.get("ranks")
    if ranks is None and shards:
        ranks = [PlanShard.model_validate(shard).rank for shard in shards]
    if ranks is None:
        raise ValueError("it does not say on which ranks it is")
    return {**members, "ranks": ranks, "shards": shards}


def other_ranks(what: str, ranks: int, world: int, per_host: int | None) -> Diagnostic | None:
    """Return what keeps the ranks of a process group from being those that something is for; None if nothing does.

    TorchRec reads from the environment which ranks are of one host. Told otherwise than the plan was, it sends the
    pieces of table_row_wise and grid_shard elsewhere, and crashes, hangs, or returns outputs of another shape.

    Args:
        what: is for the ranks: the plan, the topology.
        ranks: that it is for.
        world: ranks of the group.
        per_host: ranks of a host (of a pod, if TorchRec knows of pods); None if hosts make no difference.
    """
    from torchrec.distributed.comm import get_topology_group_world_size

    if world != ranks:
        return Diagnostic("SH605", f"{what} is for {ranks} ranks, the process group has {world}")
    if per_host is not None and (found := get_topology_group_world_size(world)) != per_host:
        message = f"{what} is for hosts of {per_host} ranks, TorchRec takes {found} ranks for a host"
        return Diagnostic("SH605", message, help=f"start with torchrun, or set LOCAL_WORLD_SIZE={per_host}")
    return None


def _not_of_group(plan: Plan) -> Diagnostic | None:
    """What keeps the ranks of the process group, if there is one yet, from being those of the plan."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    by_host = {ShardingType.TABLE_ROW_WISE, ShardingType.GRID_SHARD}
    types = {table.sharding_type for tables in plan.plan.values() for table in tables.values()}
    per_host = plan.cluster.devices_per_host if types & by_host else None
    return other_ranks("the plan", plan.cluster.devices, distributed.get_world_size(), per_host)
