"""Checks a plan against its spec, from the emitted document alone and independently of every placer."""

from __future__ import annotations

from bisect import bisect, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from math import isclose
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

from shardc.diagnostics import Diagnostic, first_of, quoted_tables
from shardc.memory import host_bytes, shard_bytes
from shardc.plan import Plan, PlanCluster, PlanShard, TablePlan
from shardc.problem import BYTES_PER_ELEMENT, Cluster, Ints, Memory
from shardc.units import format_bytes
from shardc.vocabulary import MAX_DEVICES

if TYPE_CHECKING:
    from shardc.spec import LoadedSpec, Table

_NAMED = 5
_KERNELS = {"cuda": ("fused", "fused_uvm", "fused_uvm_caching"), "cpu": ("fused",)}  # of tables with shards
_STATED = 1e-5  # relative: plans state six digits


def verify(plan: Plan, loaded: LoadedSpec, cluster: Cluster) -> list[Diagnostic]:
    """Return everything that is wrong with a plan; nothing when it can run and keeps what the spec asks.

    A plan for another cluster is not looked into, and memory and constraints are judged only where the shards make
    sense by themselves: what would be said of them otherwise is noise.

    Args:
        plan: the plan as read or emitted.
        loaded: the spec.
        cluster: the devices of the spec, with the figures of their hardware profile.

    Returns:
        Findings with the codes SH304 to SH310.
    """
    if findings := list(_other_cluster(plan, loaded, cluster)):
        return findings
    broken = (_broken_shards(table, placed, loaded, cluster) for table, placed in _placed(plan, loaded))
    if findings := first_of(
        chain(_other_model(plan, loaded), _other_tables(plan, loaded), chain.from_iterable(broken))
    ):
        return findings
    return first_of(chain(_broken_constraints(plan, loaded), _memory_findings(plan, loaded, cluster)))


def verify_alone(plan: Plan) -> list[Diagnostic]:
    """Return what is wrong with a plan whatever its spec: nothing when its shards make up tables that TorchRec runs.

    Returns:
        Findings with the codes SH305 and SH306.
    """
    if too_many := too_many_devices(plan):
        return [too_many]
    placed = [(name, table) for tables in plan.plan.values() for name, table in tables.items()]
    on_cpu = any(shard.placement.endswith("/cpu") for _, table in placed for shard in table.shards)
    hosts = (0,) * plan.cluster.hosts
    cluster = Cluster("cpu" if on_cpu else "cuda", plan.cluster.devices_per_host, kinds=(), host_kind=hosts)
    return first_of(
        Diagnostic(code, f"table {_quoted(name)}: {fault}")
        for name, table in placed
        for code, fault in shard_faults(table, cluster)
    )


def too_many_devices(plan: Plan) -> Diagnostic | None:
    """Return SH306 for a plan for more devices than any spec may have: it would take memory for each of them."""
    if plan.cluster.devices <= MAX_DEVICES:
        return None
    return Diagnostic("SH306", f"the plan is for {plan.cluster.devices} devices, more than {MAX_DEVICES}")


def device_memory(plan: Plan, loaded: LoadedSpec) -> Ints:
    """Return the bytes that the shards of a plan take of each device, int[2, D] by kind of memory.

    The plan has to be one that `verify` finds no fault with but for memory and constraints; `score` is not looked at.
    """
    return shard_memory(plan, loaded).by_device(plan.cluster.devices)


def wide_caches(plan: Plan, loaded: LoadedSpec, cluster: Cluster) -> list[Diagnostic]:
    """Return a warning if caches take more than a device has because tables of different widths share one.

    FBGEMM makes one cache for all cached tables of an operator, as wide as the widest of them, and TorchRec has one
    operator for each sharding type. It depends on which tables meet on a device, so no table's bytes count it.

    Args:
        plan: a plan that `verify` finds no fault with.
        loaded: the spec.
        cluster: the devices of the spec.
    """
    caches: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for table, placed in _placed(plan, loaded):
        for shard in placed.shards if placed.cache_params else ():
            rows, width = shard.shard_sizes
            caches.setdefault((shard.rank, placed.sharding_type), []).append((rows * table.cache_ratio, width))
    if not caches:
        return []
    more = np.zeros(cluster.devices)
    for (rank, _), parts in caches.items():
        widest = max(width for _, width in parts)
        more[rank] += BYTES_PER_ELEMENT[loaded.spec.model.weights] * sum(
            rows * (widest - width) for rows, width in parts
        )
    needed = device_memory(plan, loaded)[Memory.DEVICE] + more
    excess = np.where(more > 0, needed - cluster.memory_limit[Memory.DEVICE], 0)
    rank = int(excess.argmax())
    if excess[rank] <= 0:
        return []
    message = (
        f"cached tables of different widths share a cache as wide as the widest: device {rank} may need "
        f"{format_bytes(int(more[rank]))} more than is counted, {format_bytes(int(excess[rank]))} over its limit"
    )
    fix = "cache tables of one dim, lower cache_ratio, or raise the reserve"
    return [Diagnostic("SH511", message, loaded.at("cluster"), help=fix, severity="warning")]


def _placed(plan: Plan, loaded: LoadedSpec) -> Iterator[tuple[Table, TablePlan]]:
    """Yield the tables of the spec that the plan places."""
    placed = plan.plan.get(loaded.spec.model.module, {})
    for table in loaded.tables:
        if table.name in placed:
            yield table, placed[table.name]


def plan_cluster(cluster: Cluster) -> PlanCluster:
    """What a plan says of its cluster."""
    devices = [cluster.kinds[kind].device for kind in cluster.host_kind]
    return PlanCluster(
        device=devices[0],
        hosts=cluster.hosts,
        devices_per_host=cluster.devices_per_host,
        host_devices=tuple(devices) if len(set(devices)) > 1 else (),
    )


def _other_cluster(plan: Plan, loaded: LoadedSpec, cluster: Cluster) -> Iterator[Diagnostic]:
    expected = plan_cluster(cluster)
    for name in ("device", "hosts", "devices_per_host", "host_devices"):
        stated, wanted = getattr(plan.cluster, name), getattr(expected, name)
        if stated != wanted:
            message = f"the plan is for {name} = {_quoted(stated)}, the spec has {_quoted(wanted)}"
            at = loaded.at("cluster", "host" if name == "host_devices" else name)
            yield Diagnostic("SH309", message, at, help="compile the spec again")


def _other_model(plan: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    for name in ("name", "global_batch", "optimizer", "weights", "outputs"):
        stated, wanted = getattr(plan.model, name), getattr(loaded.spec.model, name)
        if stated != wanted:
            message = f"the plan states {name} = {_quoted(stated)}, the spec has {_quoted(wanted)}"
            yield Diagnostic("SH310", message, loaded.at("model", name), help="compile the spec again")


def _other_tables(plan: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    module = loaded.spec.model.module
    for name in sorted({plan.model.module, *plan.plan} - {module}):
        message = f"the plan has tables of module {_quoted(name)}, those of the spec are in {_quoted(module)}"
        yield Diagnostic("SH304", message, loaded.at("model", "module"))
    wanted = {table.name: table for table in loaded.tables}
    stated = plan.plan.get(module, {})
    if stated and not stated.keys() & wanted.keys():
        theirs, ours = _quoted(plan.model.name), _quoted(loaded.spec.model.name)
        message = f"the plan, of the model {theirs}, has none of the tables of {ours}"
        fix = _compile_again(wanted, stated)
        yield Diagnostic("SH304", message, loaded.at("model", "name"), help=fix)
        return
    missing, extra = [name for name in wanted if name not in stated], sorted(stated.keys() - wanted.keys())
    if missing:
        message = f"the plan does not place {quoted_tables(missing)}"
        yield Diagnostic("SH304", message, loaded.at_table(wanted[missing[0]]), help=_compile_again(missing, extra))
    if extra:
        message = f"the plan places {quoted_tables(extra)}, which the spec does not have"
        yield Diagnostic("SH304", message, help=_compile_again(missing, extra))


def _compile_again(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """The advice where names differ; also in what, where they look the same."""
    alike = sorted({normalize("NFC", name) for name in ours} & {normalize("NFC", name) for name in theirs})
    if not alike:
        return "compile the spec again"
    return f"compile the spec again: spec and plan write {quoted_tables(alike)} in different Unicode normalizations"


def _broken_shards(table: Table, placed: TablePlan, loaded: LoadedSpec, cluster: Cluster) -> Iterator[Diagnostic]:
    """Check one table by itself: that its shards make up the table, as TorchRec wants them."""
    fault = None
    if placed.sharding_type != "data_parallel":
        fault = _cover_fault(placed.shards, *_extent(placed.shards))
    if fault:
        yield Diagnostic("SH305", f"table {_quoted(table.name)} of the plan: {fault}", loaded.at_table(table))
    elif (size := extent(placed)) is None:
        message = f"is {table.rows} x {table.dim} in the spec, and the plan does not state its shape"
        at, fix = loaded.at_table(table), "compile the spec again"
        yield Diagnostic("SH304", f"table {_quoted(table.name)} {message}", at, help=fix)
    elif size != (table.rows, table.dim):
        message = f"{size[0]} x {size[1]} in the plan, {table.rows} x {table.dim} in the spec"
        field = "rows" if size[0] != table.rows else "dim"
        yield Diagnostic("SH304", f"table {_quoted(table.name)} is {message}", loaded.at_table(table, field))
    for fault in _rule_faults(table.rows, placed, cluster, ("fused", "fused_uvm_caching")):
        yield Diagnostic("SH306", f"table {_quoted(table.name)} of the plan: {fault}", loaded.at_table(table))


def _extent(shards: Sequence[PlanShard]) -> tuple[int, int]:
    """Return rows and columns of the table that the shards are pieces of, if they are of one."""
    ends = [_ends(shard) for shard in shards]
    return max((row for row, _ in ends), default=0), max((column for _, column in ends), default=0)


def _ends(shard: PlanShard) -> tuple[int, int]:
    (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
    return row + rows, column + columns


def _cover_fault(shards: Sequence[PlanShard], height: int, width: int) -> str | None:
    """Say what keeps the shards, all within height x width, from covering that exactly once; None if nothing does."""
    area = 0
    # A sweep down the rows. What reaches below the current first row is kept by its columns, which are disjoint: a new
    # shard can only overlap what begins last before its columns end.
    above: list[tuple[int, int, int]] = []  # first column, column behind the last, number
    ends: list[tuple[int, tuple[int, int, int]]] = []  # a heap, by the row behind the last
    numbered = [(number, shard) for number, shard in enumerate(shards) if 0 not in shard.shard_sizes]
    for number, shard in sorted(numbered, key=lambda item: item[1].shard_offsets):
        row, column = shard.shard_offsets
        while ends and ends[0][0] <= row:
            del above[bisect(above, heappop(ends)[1]) - 1]
        bottom, right = _ends(shard)
        at = bisect(above, (right,))
        if at and above[at - 1][1] > column:
            first, second = sorted((number, above[at - 1][2]))
            return f"shards {first} and {second} overlap"
        entry = (column, right, number)
        insort(above, entry)
        heappush(ends, (bottom, entry))
        area += shard.shard_sizes[0] * shard.shard_sizes[1]
    if area == 0:
        return "the plan has no shards for it"
    return f"its shards leave a gap: {area} of {height * width} elements are covered" if area < height * width else None


def shard_faults(placed: TablePlan, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the shards of a table by themselves, whatever table it is: SH305 or SH306, and why.

    Args:
        placed: the table.
        cluster: the devices; only their number, hosts and type count.
    """
    height, width = _extent(placed.shards)
    if placed.sharding_type != "data_parallel" and (fault := _cover_fault(placed.shards, height, width)):
        yield "SH305", fault
    for fault in _rule_faults(height, placed, cluster, _KERNELS[cluster.device_type]):
        yield "SH306", fault


def extent(placed: TablePlan) -> tuple[int, int] | None:
    """Return rows and columns of the table: of what its shards make up, or what is stated of a data-parallel one.

    None for a data-parallel table of an older plan, which states none.
    """
    if placed.shards or placed.shape is None:
        return _extent(placed.shards) if placed.shards else None
    rows, columns = placed.shape
    return rows, columns


def _rule_faults(rows: int, placed: TablePlan, cluster: Cluster, kernels: Collection[str]) -> Iterator[str]:
    """Yield what TorchRec would refuse, or silently train wrong (see the rules in its sharding modules)."""
    kind, ranks, shards = placed.sharding_type, placed.ranks, placed.shards
    devices, local = cluster.devices, cluster.devices_per_host
    kernels = ("dense",) if kind == "data_parallel" else kernels
    if placed.compute_kernel not in kernels:
        yield f"{kind} needs the compute kernel {' or '.join(kernels)}, not {placed.compute_kernel}"
    if placed.cache_params and placed.compute_kernel != "fused_uvm_caching":
        yield f"{placed.compute_kernel} has no cache_params"
    if placed.shape and kind != "data_parallel":
        yield f"{kind} has no shape beside its shards"
    if any(rank >= devices for rank in ranks):
        yield f"rank {max(ranks)} is none of the {devices} devices"
    if kind == "data_parallel":
        if shards:
            yield "data_parallel has no shards"
        if len(ranks) != devices or ranks != tuple(range(devices)):
            yield "data_parallel is on every rank, in their order"
        return
    if len(ranks) != len(shards):
        yield f"not as many ranks ({len(ranks)}) as shards ({len(shards)})"
        return
    for number, (rank, shard) in enumerate(zip(ranks, shards, strict=True)):
        expected = f"rank:{rank}/cpu" if cluster.device_type == "cpu" else f"rank:{rank}/cuda:{rank % local}"
        if shard.placement != expected:
            yield f"shard {number} has the placement {_quoted(shard.placement)}, expected {_quoted(expected)}"
    if kind == "table_wise" and len(shards) != 1:
        yield f"table_wise has one shard, not {len(shards)}"
    if kind in ("column_wise", "table_column_wise") and (twice := _twice(ranks)):
        yield f"{kind} has two shards on rank {twice[0]}"
    hosts = sorted({rank // local for rank in ranks})
    if kind in ("table_column_wise", "table_row_wise") and len(hosts) > 1:
        yield f"{kind} keeps to one host, but has shards on hosts {hosts[0]} and {hosts[1]}"
    if kind != "table_wise":
        yield from _block_faults(rows, placed, {"row_wise": devices, "table_row_wise": local, "grid_shard": local})


def _block_faults(rows: int, placed: TablePlan, spread: Mapping[str, int]) -> Iterator[str]:
    """Faults of a table in column blocks, each of them in blocks of rows on `spread` devices, by sharding type."""
    kind, count, column = placed.sharding_type, spread.get(placed.sharding_type, 1), 0
    if len(placed.shards) % count or (kind in ("row_wise", "table_row_wise") and len(placed.shards) != count):
        yield f"{kind} has one shard on every rank of {count}, not {len(placed.shards)}"
        return
    block, firsts = -(-rows // count), []
    for start in range(0, len(placed.shards), count):
        width = placed.shards[start].shard_sizes[1]
        ranks = placed.ranks[start : start + count]
        firsts.append(ranks[0])
        if ranks[0] % count or ranks != tuple(range(ranks[0], ranks[0] + count)):
            yield f"{kind} has one shard on every rank of {count}, in their order"
        if width % 4 or not width:
            yield f"shard {start} has {width} columns, not a multiple of 4"
        for number in range(start, start + count):
            shard, first = placed.shards[number], min((number - start) * block, rows)
            if first == rows:
                yield f"shard {number} has no rows, as {rows} are too few for {count} ranks"
            if shard.shard_offsets != (first, column) or shard.shard_sizes != (min(block, rows - first), width):
                wanted = f"{min(block, rows - first)} rows from row {first} and column {column}"
                yield f"shard {number} is not {wanted}, as {kind} has them"
        column += width
    if kind == "grid_shard" and (twice := _twice(firsts)):
        yield f"grid_shard has two column blocks on the host of rank {twice[0]}"


def _twice(ranks: Sequence[int]) -> list[int]:
    return [rank for rank, count in Counter(ranks).items() if count > 1]


def _broken_constraints(plan: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    groups: dict[str, tuple[Table, TablePlan]] = {}
    taken: dict[str, dict[int, Table]] = {}
    sizes = Counter(table.group for table in loaded.tables)
    for table, placed in _placed(plan, loaded):
        faults = []
        if placed.sharding_type not in table.sharding:
            faults.append(("sharding", f"is {placed.sharding_type}, which the spec does not allow"))
        on_devices = ("dense",) if "fused" in table.kernels else ()
        if placed.compute_kernel not in (*on_devices, *table.kernels):
            faults.append(("kernels", f"has the kernel {placed.compute_kernel}, which the spec does not allow"))
        elif placed.compute_kernel == "fused_uvm_caching" and not isclose(
            placed.cached, table.cache_ratio, rel_tol=_STATED
        ):
            stated = f"{placed.cached:g}" if placed.cached < 1.0 else "no stated share"
            faults.append(("cache_ratio", f"caches {stated} of its rows, the spec has {table.cache_ratio:g}"))
        if table.pin and (outside := sorted(set(placed.ranks) - set(table.pin))):
            faults.append(("pin", f"is on device {outside[0]}, but pinned to {', '.join(map(str, table.pin))}"))
        if table.group and sizes[table.group] > 1:
            first, wanted = groups.setdefault(table.group, (table, placed))
            if placed.sharding_type != "table_wise":
                faults.append(("group", f"is {placed.sharding_type}, but a group is placed whole on one device"))
            elif wanted.sharding_type == "table_wise" and placed.ranks != wanted.ranks:
                faults.append(("group", f"is not on the device of {_quoted(first.name)}, of the same group"))
        if table.apart:
            others = taken.setdefault(table.apart, {})
            if shared := [rank for rank in placed.ranks if rank in others]:
                neighbour = _quoted(others[shared[0]].name)
                faults.append(("apart", f"shares device {shared[0]} with {neighbour}, of the same apart set"))
            others.update(dict.fromkeys(placed.ranks, table))
        for field, fault in faults:
            yield Diagnostic("SH308", f"table {_quoted(table.name)} {fault}", loaded.at_table(table, field))


def _memory_findings(plan: Plan, loaded: LoadedSpec, cluster: Cluster) -> Iterator[Diagnostic]:
    shards = shard_memory(plan, loaded)
    needed = shards.by_device(cluster.devices)
    for kind, limits in zip(Memory, cluster.memory_limit, strict=False):
        for rank in np.flatnonzero(needed[kind] > limits).tolist():
            yield _overfull(rank, kind, shards, int(limits[rank]), loaded)
    if [device.rank for device in plan.score.devices] != list(range(cluster.devices)):
        yield Diagnostic("SH310", f"the score does not list the devices 0 to {cluster.devices - 1} in order")
        return
    for device in plan.score.devices:
        for kind, prefix in zip(Memory, ("", "host_"), strict=True):
            used = kind < len(cluster.memory_limit)
            true = {
                "memory_bytes": int(needed[kind, device.rank]) if used else None,
                "memory_limit_bytes": int(cluster.memory_limit[kind, device.rank]) if used else None,
            }
            for name, bytes in true.items():
                if (stated := getattr(device, prefix + name)) != bytes:
                    message = f"device {device.rank} has {prefix}{name} = {stated} in the plan, truly {bytes}"
                    yield Diagnostic("SH310", message)


def _overfull(rank: int, kind: Memory, shards: ShardMemory, limit: int, loaded: LoadedSpec) -> Diagnostic:
    """That the tables on a device take more memory of one kind than it may give them."""
    tables: Counter[str] = Counter()
    for shard in np.flatnonzero((shards.rank == rank) & (shards.bytes[kind] > 0)).tolist():
        tables[shards.table[shard]] += int(shards.bytes[kind, shard])
    needs, at = ("needs", loaded.at("cluster"))
    if kind is Memory.HOST:
        needs, at = "needs of its host's memory", loaded.at("cluster", "host_memory")
    largest = ", ".join(f"{_quoted(name)} ({format_bytes(size)})" for name, size in tables.most_common(_NAMED))
    message = (
        f"device {rank} {needs} {format_bytes(tables.total())}, {format_bytes(tables.total() - limit)} over its limit"
        f" of {format_bytes(limit)}"
    )
    return Diagnostic("SH307", message, at, notes=(f"its largest tables: {largest}",))


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """What N shards take, replicas of data-parallel tables included.

    Attributes:
        table: the table of each.
        rank: int[N], its device.
        bytes: int[2, N], by kind of memory.
    """

    table: tuple[str, ...]
    rank: Ints
    bytes: Ints

    def by_device(self, devices: int) -> Ints:
        """Bytes of all shards of each device, int[2, D]."""
        total = np.zeros((len(Memory), devices), dtype=np.int64)
        for of_kind, bytes in zip(total, self.bytes, strict=True):
            np.add.at(of_kind, self.rank, bytes)
        return total


def shard_memory(plan: Plan, loaded: LoadedSpec) -> ShardMemory:
    """Return what every shard of a plan takes; the plan has to be as for `device_memory`."""
    model, devices = loaded.spec.model, plan.cluster.devices
    tables, placed = zip(*_placed(plan, loaded), strict=True)
    extents = [
        extent
        for table, how in zip(tables, placed, strict=True)
        for extent in ([shard.shard_sizes for shard in how.shards] or [(table.rows, table.dim)] * len(how.ranks))
    ]
    rows, dims = np.array(extents).T
    of_table = np.repeat(np.arange(len(tables)), [len(how.ranks) for how in placed])
    features = np.array([len(table.features) for table in tables])[of_table]
    whole = np.array([table.rows for table in tables])[of_table]
    dense = np.array([how.sharding_type == "data_parallel" for how in placed])[of_table]
    cached = np.where(
        [how.compute_kernel == "fused_uvm_caching" for how in placed], [table.cache_ratio for table in tables], 1.0
    )[of_table]
    on_device = shard_bytes(
        rows,
        dims,
        weights=model.weights,
        outputs=model.outputs,
        optimizer=model.optimizer,
        bags=features * np.where(dense, -(-model.global_batch // devices), model.global_batch),
        pooling=np.array([table.pooling for table in tables])[of_table] / features * rows / whole,
        dense=dense,
        cached=cached,
    )
    in_host = host_bytes(rows, dims, weights=model.weights, optimizer=model.optimizer, cached=cached)
    rank = np.array([rank for how in placed for rank in how.ranks])
    return ShardMemory(tuple(tables[table].name for table in of_table), rank, np.stack([on_device, in_host]))


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
