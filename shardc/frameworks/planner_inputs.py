"""Takes over what TorchRec's planner is told: its topology, constraints and batch size, as members of a spec."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from shardc.diagnostics import Diagnostic, DiagnosticError, quoted_tables
from shardc.frameworks.model import Collection, FoundTable

if TYPE_CHECKING:
    from torch import nn
    from torchrec.distributed.planner import ParameterConstraints, Topology

_IN_COLUMNS = ("column_wise", "table_column_wise", "grid_shard")
_TYPES = ("table_wise", *_IN_COLUMNS, "row_wise", "table_row_wise", "data_parallel")
_UNSTATED = 1.0  # the pooling factor of constraints that do not say one
# What changes memory or costs in TorchRec's planner, and what a spec does not say of a single table.
_UNSAID = (
    "num_poolings",
    "batch_sizes",
    "cache_params",
    "enforce_hbm",
    "output_dtype",
    "device_group",
    "key_value_params",
    "use_virtual_table",
)


class PlannerInputs(NamedTuple):
    """What a function may return instead of a model alone; any tuple of these four, in this order.

    Attributes:
        model: the model.
        topology: the devices.
        constraints: by table name, as `EmbeddingShardingPlanner` takes them; None for none.
        batch_size: samples of a step on one rank.
    """

    model: nn.Module
    topology: Topology
    constraints: Mapping[str, ParameterConstraints] | None
    batch_size: int


@dataclass(frozen=True, slots=True)
class PlannerFacts:
    """Planner inputs in a spec's words.

    Attributes:
        device_type: cuda or cpu.
        cluster: members of `[cluster]`.
        global_batch: samples of a step over all ranks.
        tables: members of single tables, by name.
        notes: what to say of members of `[cluster]`.
        warnings: what a spec cannot say, and is left out (SH705).
    """

    device_type: str
    cluster: dict[str, Any]
    global_batch: int
    tables: dict[str, dict[str, Any]]
    notes: dict[str, str] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()


def as_planner_inputs(returned: Any) -> PlannerInputs | None:
    """Return what a function returned as planner inputs, None if it is something else."""
    from torch import nn

    torchrec = sys.modules.get("torchrec.distributed.planner")  # whoever made a topology has imported it
    if torchrec is None or not isinstance(returned, tuple) or len(returned) != len(PlannerInputs._fields):
        return None
    inputs = PlannerInputs(*returned)
    limits = {} if inputs.constraints is None else inputs.constraints
    fits = (
        isinstance(inputs.model, nn.Module)
        and isinstance(inputs.topology, torchrec.Topology)
        and isinstance(limits, Mapping)
        and all(isinstance(limit, torchrec.ParameterConstraints) for limit in limits.values())
        and type(inputs.batch_size) is int
    )
    return inputs if fits else None


def planner_facts(inputs: PlannerInputs, collection: Collection) -> PlannerFacts:
    """Say in a spec's words what TorchRec's planner was told.

    Raises:
        DiagnosticError: SH705 when the ranks are no whole hosts, or a constraint makes no sense for its table.
    """
    topology, limits = inputs.topology, dict(inputs.constraints or {})
    found = {table.name: table for table in collection.tables}
    findings: list[Diagnostic] = []
    if topology.world_size % topology.local_world_size:
        message = f"{topology.world_size} ranks are no whole hosts of {topology.local_world_size}"
        findings.append(Diagnostic("SH705", message, help="give Topology a local_world_size"))
    tables = {}
    for name in found.keys() & limits.keys():
        try:
            tables[name] = _table(found[name], limits[name])
        except ValueError as error:
            findings.append(Diagnostic("SH705", f'constraints of table "{name}": {error}'))
    if findings:
        raise DiagnosticError(*findings)
    cluster, notes = _cluster(topology)
    warnings = tuple(
        Diagnostic("SH705", message, help=fix, severity="warning") for message, fix in _left_out(found, limits)
    )
    return PlannerFacts(
        device_type="cpu" if topology.compute_device == "cpu" else "cuda",
        cluster=cluster,
        global_batch=inputs.batch_size * topology.world_size,
        tables=tables,
        notes=notes,
        warnings=warnings,
    )


def _cluster(topology: Topology) -> tuple[dict[str, Any], dict[str, str]]:
    from torchrec.distributed.planner import constants

    on_cpu = topology.compute_device == "cpu"
    sizes = [int(device.storage.ddr if on_cpu else device.storage.hbm) for device in topology.devices]
    usual = max(set(sizes), key=lambda size: (sizes.count(size), size))
    local = topology.local_world_size
    cluster: dict[str, Any] = {"hosts": topology.world_size // local, "devices_per_host": local}
    cluster["memory"] = _size(usual)
    notes = dict.fromkeys(cluster, "of the topology")
    if usual == (constants.DDR_CAP if on_cpu else constants.HBM_CAP):
        notes["memory"] = "of the topology, TorchRec's default; without this line, the device's own"
    # Otherwise the device's own figures are better than those that TorchRec assumes of any device.
    for name, bandwidth, assumed in (
        ("intra_host_bandwidth", topology.intra_host_bw, constants.INTRA_NODE_BANDWIDTH),
        ("inter_host_bandwidth", topology.inter_host_bw, constants.CROSS_NODE_BANDWIDTH),
    ):
        if bandwidth != assumed:
            cluster[name] = f"{bandwidth / 1e6:.6f}".rstrip("0").rstrip(".") + "GB/s"  # TorchRec counts bytes/ms
            notes[name] = "of the topology"
    others = sorted(set(sizes) - {usual})
    ranks = [{"ranks": [r for r, own in enumerate(sizes) if own == size], "memory": _size(size)} for size in others]
    return {**cluster, **({"rank": ranks} if ranks else {})}, notes


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size // 1024}KiB"


def _table(table: FoundTable, limit: ParameterConstraints) -> dict[str, Any]:
    """The members of a table that its constraints state.

    Raises:
        ValueError: they cannot be meant for this table.
    """
    # A plain module does not say its features: it has one.
    features, factors = len(table.features) or 1, list(map(float, limit.pooling_factors))
    if len(factors) not in (1, features):
        raise ValueError(f"{len(factors)} pooling_factors for {features} features")
    members: dict[str, Any] = {}
    if factors != [_UNSTATED]:
        # A spec counts the lookups of all features; one factor for several features is of each.
        members["pooling"] = sum(factors) * (features if len(factors) == 1 else 1)
    types = list(dict.fromkeys(map(str, limit.sharding_types or _TYPES)))
    if unknown := [kind for kind in types if kind not in _TYPES]:
        raise ValueError(f"no sharding type {unknown[0]}")
    if limit.min_partition and table.dim < 2 * limit.min_partition:
        types = [kind for kind in types if kind not in _IN_COLUMNS]
    if not types:
        raise ValueError(f"min_partition {limit.min_partition} leaves no sharding type, with {table.dim} columns")
    return {**members, "sharding": types} if len(types) < len(_TYPES) else members


def _left_out(
    tables: Mapping[str, FoundTable], limits: Mapping[str, ParameterConstraints]
) -> Iterator[tuple[str, str | None]]:
    """Yield what a spec does not say of the constraints, with what to do about it."""
    if unknown := sorted(limits.keys() - tables.keys()):
        yield f"there are constraints of {quoted_tables(unknown)}, which the model does not have", None
    known = {name: limit for name, limit in limits.items() if name in tables}
    kernels = [n for n, limit in known.items() if limit.compute_kernels and "fused" not in limit.compute_kernels]
    if kernels:
        yield f"left out: compute_kernels without fused, of {quoted_tables(kernels)}", None
    narrow = [n for n, limit in known.items() if 0 < 2 * (limit.min_partition or 0) <= tables[n].dim]
    if narrow:
        yield f"left out: min_partition of {quoted_tables(narrow)}", "without column_wise, they are not cut narrower"
    for name in _UNSAID:
        if of := [n for n, limit in known.items() if getattr(limit, name, None) not in (None, False)]:
            yield f"left out: {name} of {quoted_tables(of)}", None
