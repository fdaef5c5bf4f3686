"""What TorchRec's planners are given (a model, a topology, constraints, a reserve) as a problem of shardc's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shardc.cost.torchrec import Inputs, Machine
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.frameworks.torchrec_constraints import PRECISIONS, VECTOR, AskedTable, ask
from shardc.frameworks.torchrec_model import ModelTable
from shardc.hardware import Hardware
from shardc.passes.lower import lower_cluster, lower_onto
from shardc.problem import Cluster, HostKind, Optimizer, Problem
from shardc.spec import LoadedSpec, Spec

if TYPE_CHECKING:
    from torchrec.distributed.planner import ParameterConstraints, Topology
    from torchrec.distributed.planner.types import CollectiveType


@dataclass(frozen=True)
class Asked:
    """A problem as TorchRec's types state it.

    Attributes:
        tables: the model's tables by their name in the problem, which is made of the module's path and their own.
        loaded: what a spec would say.
        problem: the problem.
        machine: the devices, as TorchRec's estimates see them.
        inputs: for each of the problem's tables what TorchRec's estimates have reach it.
        members: by the table's name in the problem, members of its plan that pass on what was asked for.
        warnings: what is counted otherwise than it is.
    """

    tables: Mapping[str, ModelTable]
    loaded: LoadedSpec
    problem: Problem
    machine: Machine
    inputs: Sequence[Inputs]
    members: Mapping[str, Mapping[str, Any]]
    warnings: tuple[Diagnostic, ...]


def problem_of(
    tables: Sequence[ModelTable],
    topology: Topology,
    constraints: Mapping[str, ParameterConstraints],
    batch_size: int,
    *,
    reserve: Callable[[], Topology],
    hardware: Hardware | None,
    estimates: bool,
) -> Asked:
    """Turn what a planner was given into a problem.

    Args:
        tables: the model's tables.
        topology: the devices.
        constraints: of tables, by their name in whatever module.
        batch_size: samples of a device.
        reserve: returns the topology with the storage that tables may take.
        hardware: the profile that costs come from, if they do.
        estimates: whether costs are TorchRec's estimates.

    Raises:
        DiagnosticError: SH611 with everything that cannot be honoured, and everything that `lower` raises.
    """
    from torchrec.distributed.planner import ParameterConstraints

    faults = [*_topology_faults(topology, hardware, estimates), *_other_faults(tables, constraints)]
    of_label = {f"{table.path}/{table.name}" if table.path else table.name: table for table in tables}
    asked: dict[str, AskedTable] = {}
    free = ParameterConstraints()
    for label, table in sorted(of_label.items()):
        limits = constraints.get(table.name) or free
        match ask(label, table, limits, topology.compute_device, batch_size):
            case AskedTable() as found:
                asked[label] = found
            case list() as refused:
                faults += refused
    if faults:
        raise DiagnosticError(*faults)
    _cut_sequences_alike(of_label, asked, topology.world_size)
    loaded = LoadedSpec(
        _spec(tables[0].dtype, asked, topology, batch_size, hardware), tuple(each.table for each in asked.values())
    )
    return Asked(
        tables=of_label,
        loaded=loaded,
        problem=lower_onto(loaded, _cluster(loaded, topology, reserve(), hardware)),
        machine=machine_of(topology),
        inputs=[each.inputs for each in asked.values()],
        members={label: each.members for label, each in asked.items()},
        warnings=tuple(_warnings(asked, hardware)),
    )


def _cut_sequences_alike(tables: Mapping[str, ModelTable], asked: dict[str, AskedTable], devices: int) -> None:
    """Give the tables of each sequence collection one width of column blocks: FBGEMM's operator has one.

    That of the fewest blocks; or, as TorchRec does where a least width is asked for, of the most.
    """
    of_path: dict[str, list[str]] = {}
    for label, each in asked.items():
        if not each.table.pooled:
            of_path.setdefault(tables[label].path, []).append(label)
    for labels in of_path.values():
        dim = asked[labels[0]].table.dim
        least = max(asked[label].table.least_width for label in labels)
        widths = [dim // count for count in range(2, devices + 1) if dim % (VECTOR * count) == 0]
        widths = [width for width in widths if width >= least] or [dim]
        width = widths[0] if least == VECTOR else widths[-1]
        for label in labels:
            asked[label] = replace(asked[label], table=replace(asked[label].table, least_width=width))


def machine_of(topology: Topology) -> Machine:
    """Devices as TorchRec's estimates see them."""
    from torchrec.distributed.planner.types import CollectiveType

    world, local, group = topology.world_size, topology.local_world_size, topology.intra_group_size

    def link(collective: CollectiveType, devices: int, of_host: int) -> float:
        links = topology.comms_bandwidths
        return float(links.get_bw(world_size=devices, local_world_size=of_host, collective_type=collective))

    return Machine(
        devices=world,
        devices_per_host=local,
        group=group,
        memory=topology.ddr_mem_bw if topology.compute_device == "cpu" else topology.hbm_mem_bw,
        all_to_all=link(CollectiveType.ALL_TO_ALL, world, local),
        reduce_scatter=link(CollectiveType.REDUCE_SCATTER, world, local),
        all_gather=link(CollectiveType.ALL_GATHER, world, local),
        all_reduce=link(CollectiveType.ALL_REDUCE, world, local),
        group_reduce_scatter=link(CollectiveType.REDUCE_SCATTER, group, min(group, local)),
        group_all_gather=link(CollectiveType.ALL_GATHER, group, min(group, local)),
        between_groups=link(CollectiveType.ALL_TO_ALL, max(1, world // group), 1),
        backward=topology.bwd_compute_multiplier,
        weighted_backward=topology.weighted_feature_bwd_compute_multiplier,
    )


def _topology_faults(topology: Topology, hardware: Hardware | None, estimates: bool) -> Iterator[Diagnostic]:
    """Yield what a topology says that has no effect on a plan."""
    from torchrec.distributed.planner.types import BasicCommsBandwidths

    device, world, group = topology.compute_device, topology.world_size, topology.intra_group_size
    if device not in ("cpu", "cuda"):
        yield _refused(f'topology: compute_device: "{device}", expected cpu or cuda')
        return
    if world % topology.local_world_size or world % group:
        yield _refused(
            f"topology: world_size: {world} ranks are no groups of {group} on hosts of {topology.local_world_size}"
        )
    if topology.uneven_sharding_perf_multiplier != 1.0:
        yield _refused("topology: uneven_sharding_perf_multiplier: blocks of rows are even")
    if hardware is not None and hardware.device_type != device:
        yield _refused(
            f'topology: compute_device: "{device}", but {hardware.name} is a "{hardware.device_type}" device'
        )
    if strange := [name for name, value in asdict(machine_of(topology)).items() if not 0 < value < math.inf]:
        yield _refused(f"topology: {', '.join(strange)}: expected finite figures above zero")
        return
    if estimates:
        return
    whose = "the cost model" if hardware is None else hardware.name
    named = ["hbm_mem_bw", "ddr_mem_bw", "bwd_compute_multiplier", "weighted_feature_bwd_compute_multiplier"]
    if type(topology.comms_bandwidths) is not BasicCommsBandwidths:
        yield _refused(f"topology: generalized_comms_bandwidths: what a collective takes is up to {whose}")
    elif hardware is None:
        named += ["intra_host_bw", "inter_host_bw"]
    for name in named:
        if name in _set_bandwidths(topology):
            fix = 'leave it to TorchRec\'s default, or use cost="torchrec"'
            yield _refused(f"topology: {name}: what a step takes is up to {whose}", fix)


def _set_bandwidths(topology: Topology) -> list[str]:
    """Names of the figures of speed that are not TorchRec's defaults."""
    from torchrec.distributed.planner import constants

    usual = {
        "hbm_mem_bw": constants.HBM_MEM_BW,
        "ddr_mem_bw": constants.DDR_MEM_BW,
        "intra_host_bw": constants.INTRA_NODE_BANDWIDTH,
        "inter_host_bw": constants.CROSS_NODE_BANDWIDTH,
        "bwd_compute_multiplier": constants.BWD_COMPUTE_MULTIPLIER,
        "weighted_feature_bwd_compute_multiplier": constants.WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER,
    }
    return [name for name, value in usual.items() if getattr(topology, name) != value]


def _other_faults(tables: Sequence[ModelTable], constraints: Mapping[str, Any]) -> Iterator[Diagnostic]:
    if not tables:
        advice = (
            "sharders are instances, such as EmbeddingBagCollectionSharder(), of the type of module that has tables"
        )
        yield _refused("no sharder finds a table in the model", advice)
    known = {table.name for table in tables}
    for name in constraints:
        if name not in known:
            yield _refused(f'constraints: no module that is sharded has a table "{name}"')
    if len(dtypes := {table.dtype: table.label for table in tables}) > 1:
        found = " and ".join(f"{dtype} ({label})" for dtype, label in sorted(dtypes.items()))
        yield _refused(f"data_type: weights are {found}: one plan has weights of one type")


def _spec(
    weights: str,
    asked: Mapping[str, AskedTable],
    topology: Topology,
    batch_size: int,
    hardware: Hardware | None,
) -> Spec:
    """What a spec would say of the model and the cluster."""
    group = topology.intra_group_size
    cluster: dict[str, Any] = {
        "device": topology.compute_device if hardware is None else hardware.name,
        "hosts": topology.world_size // group,
        "devices_per_host": group,
    }
    for name in ("intra_host", "inter_host"):
        if hardware is not None and f"{name}_bw" in _set_bandwidths(topology):
            cluster[f"{name}_bandwidth"] = f"{getattr(topology, f'{name}_bw') / 1e6:.9f}GB/s"  # TorchRec has bytes/ms
    model = {
        "name": "model",
        "module": "model",
        "global_batch": batch_size * topology.world_size,
        "optimizer": str(_heaviest(asked)),
        "weights": weights,
        "outputs": max((each.outputs for each in asked.values()), key=PRECISIONS.index),
    }
    return Spec.model_validate({"format": 1, "model": model, "cluster": cluster})


def _heaviest(asked: Mapping[str, AskedTable]) -> Optimizer:
    """The optimizer of all tables; of several, or unknown ones, that which keeps most."""
    return max((each.optimizer or Optimizer.ADAM for each in asked.values()), key=list(Optimizer).index)


def _cluster(loaded: LoadedSpec, topology: Topology, reserved: Topology, hardware: Hardware | None) -> Cluster:
    """The devices, with the storage that is left of each."""

    def storage(of: Topology) -> list[int]:
        return [
            max(0, int(each.storage.ddr if of.compute_device == "cpu" else each.storage.hbm)) for each in of.devices
        ]

    memory, limits, group = storage(topology)[0], storage(reserved), topology.intra_group_size
    if hardware is None:
        kind = HostKind(
            device=topology.compute_device,
            memory_bytes=memory,
            reserve_bytes=0,
            intra_host_bandwidth=topology.intra_host_bw * 1e3,
            inter_host_bandwidth=topology.inter_host_bw * 1e3,
            latency_ms=0.0,
        )
        cluster = Cluster(topology.compute_device, group, (kind,), (0,) * (topology.world_size // group))
    else:
        cluster = lower_cluster(loaded, [hardware])
    kinds = tuple(
        replace(kind, memory_bytes=memory, reserve_bytes=max(0, memory - limits[0])) for kind in cluster.kinds
    )
    return replace(cluster, kinds=kinds, rank_limit=dict(enumerate(limits)))


def _warnings(asked: Mapping[str, AskedTable], hardware: Hardware | None) -> Iterator[Diagnostic]:
    optimizers = {each.optimizer for each in asked.values()}
    if len(optimizers) > 1 or None in optimizers:
        message = f"tables have several optimizers, or one that is not known: all are counted as {_heaviest(asked)}"
        yield Diagnostic("SH611", message, severity="warning")
    if hardware is not None and any(each.inputs.weighted for each in asked.values()):
        message = f"{hardware.name} was not measured with weighted lookups: they cost what others do"
        yield Diagnostic("SH502", message, severity="warning")


def _refused(message: str, help: str | None = None) -> Diagnostic:
    return Diagnostic("SH611", message, help=help)
