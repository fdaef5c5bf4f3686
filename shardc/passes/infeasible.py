"""infeasible: why nothing fits, which tables are at fault, and the least changes of the spec that help.

A cause is proven where that is cheap. Pieces that are weighed by a dual feasible function (Fekete and Schepers, 2001:
at most 1 for whatever fits on a device together) and weigh more than all devices do, cannot be placed. The identity
gives total memory; that a device has at most k pieces of more than a (k+1)-th of it, the pigeonhole bounds; and small
pieces ignored while large ones count as whole devices, Martello and Toth's bound L2 (1990). All are asked of all
devices, and of every set of ranks that tables are pinned to. Where a block may be sharded in several ways, it weighs
what its lightest option does.

Changes are made to the spec, which is lowered and placed again: what is offered has been found to work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import Hardware
from shardc.memory import device_bytes_for, host_bytes, rounded_up
from shardc.passes.lower import lower
from shardc.placers.feasible import Fit, fit
from shardc.problem import Bools, Cluster, Floats, Ints, Kernel, Memory, Problem, ShardingType, Site, distinct
from shardc.spec import Bins, ClusterSpec, LoadedSpec, Table, parse_size
from shardc.units import format_bytes
from shardc.vocabulary import MAX_DEVICES

EVALUATIONS = 3000
"""Candidates that are scored to find out whether a change helps: fewer than any compile scores."""

_NAMED = 5  # tables
_OFFERED = 4  # changes
_MOST_PARTS = 8  # pieces of a device that pigeonhole bounds tell apart
_LEAST_SIZES = 64  # below which small pieces are ignored, in turn
_SLACK = 1e-9
_MORE_MEMORY = (1.0, 1.1, 1.5, 3.0, 10.0)  # times what the best placement that was found lacks
_TIMES = (1.25, 1.5, 2, 4, 8, 16)  # what there is of a kind of memory
_MORE_DEVICES = (1, 2, 4, 8)
_SEVERAL = 4  # tables that are changed alike
_PRECISION = 0.01  # of memory that is offered: so much less is not known to be enough
_HALVINGS, _LEAST_HALVINGS = 4e7, 6  # of ranges of amounts: options by devices by tables by halvings, and at least


@dataclass(frozen=True, slots=True)
class Origin:
    """What a problem was lowered from: the spec, the profiles of its devices, and recorded accesses."""

    loaded: LoadedSpec
    hardware: Sequence[Hardware]
    accesses: Mapping[str, Bins]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why no placement can fit, in words, and the blocks at fault, those most at fault first."""

    code: str
    message: str
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a spec that helps: what to do, and the spec with it."""

    what: str
    loaded: LoadedSpec


# --- Causes -----------------------------------------------------------------------------------------------------------


def find_cause(problem: Problem) -> Cause | None:
    """A proof that nothing fits, where one is cheap; None proves nothing."""
    return _too_large(problem) or _too_many_apart(problem) or _badly_packed(problem)


def _too_large(problem: Problem) -> Cause | None:
    """The smallest options together exceed the memory of all devices, or cached ones that of all hosts."""
    for kind, limits in zip(Memory, problem.cluster.memory_limit, strict=False):
        weights = _Weights(problem, kind).least(problem.unit_memory[kind])
        least, room = int(weights.sum()), int(limits.sum())
        if least > room:
            return Cause("SH202", _lacking(problem.cluster, kind, least, room), _heaviest(weights))
    return None


def _lacking(cluster: Cluster, kind: Memory, least: int, room: int) -> str:
    """Say how much more memory tables need than there is."""
    needed, there = format_bytes(least), format_bytes(room)
    short = f", {format_bytes(least - room)} less" * (needed == there)
    if kind is Memory.HOST:
        hosts = f"{cluster.hosts} host{'s have' if cluster.hosts > 1 else ' has'}"
        return f"cached tables need at least {needed} of all hosts together, and {hosts} {there}{short}"
    limits = cluster.memory_limit[kind]
    each = f" ({format_bytes(int(limits[0]))} each)" * (len(set(limits.tolist())) == 1)
    return (
        f"the model needs at least {needed} on all devices together, and {cluster.devices} devices have "
        f"{there} for tables{each}{short}"
    )


def _too_many_apart(problem: Problem) -> Cause | None:
    """Tables that are kept apart need more devices than they may go to."""
    of_option = problem.option_units * problem.site_size[problem.option_site]
    needed = np.minimum.reduceat(of_option, problem.first_option)
    for label in sorted({label for labels in problem.labels for label in labels[1:]}):
        members = np.array([label in labels for labels in problem.labels])
        for ranks in _rank_sets(problem):
            inside = members & ~problem.allowed[:, ~ranks].any(axis=1)
            if needed[inside].sum() > ranks.sum():
                blocks = _heaviest(np.where(inside, needed, 0))
                message = (
                    f"tables that are kept apart need {int(needed[inside].sum())} devices, and may go to "
                    f"{int(ranks.sum())}: {_names(problem, blocks)}"
                )
                return Cause("SH203", message, blocks)
    return None


def _badly_packed(problem: Problem) -> Cause | None:
    """Pieces weigh more than some devices do."""
    weights, memory = _Weights(problem, Memory.DEVICE), problem.unit_memory[Memory.DEVICE]
    if (weights.limits < 0).any():
        rank, blocks = int(weights.limits.argmin()), _heaviest(weights.least(memory) * weights.spread)
        message = f"tables that only go onto all devices need more memory than rank {rank} has"
        return Cause("SH203", f"{message}: {_names(problem, blocks)}", blocks)
    for ranks in _rank_sets(problem):
        inside = ~problem.allowed[:, ~ranks].any(axis=1) & ~weights.spread
        limits = weights.limits[ranks]
        where = f"the {len(limits)} devices" if ranks.all() else f"their rank{'s' * (len(limits) > 1)} {_ranges(ranks)}"
        if limits.min() < limits.max():
            where += f" (rank {np.flatnonzero(ranks)[limits.argmin()]} has {format_bytes(int(limits.min()))})"
        for message, of_units, of_devices in _weighings(problem, limits):
            own = np.where(inside, weights.least(of_units), 0)
            if own.sum() > of_devices.sum() + _SLACK:
                blocks = _heaviest(own)
                return Cause("SH203", f"{message.format(where=where)}: {_names(problem, blocks)}", blocks)
    return None


def _weighings(problem: Problem, limits: Ints) -> Iterator[tuple[str, Floats | Ints, Floats | Ints]]:
    """Weights of units [U], and what devices hold of them at most, [D]; and what is wrong if that is too little."""
    most, memory = int(limits.max()), problem.unit_memory[Memory.DEVICE]
    room = format_bytes(int(limits.sum()))
    yield f"tables need more memory than there is on {{where}}, {room}", memory, limits
    if most == 0:
        return
    for parts in range(1, _MOST_PARTS + 1):
        message = (
            f"pieces of half a device's {format_bytes(most)} for tables and more are too many for {{where}}"
            if parts == 1
            else "pieces cannot be packed onto {where}, whatever goes with which"
        )
        yield message, _by_parts(memory, most, parts), _by_parts(limits, most, parts)
    sizes = distinct(memory[memory * 2 <= most])
    for which in distinct(np.linspace(0, len(sizes) - 1, _LEAST_SIZES).astype(int)) if len(sizes) else ():
        small = int(sizes[which])
        message = f"pieces of {format_bytes(small)} and more cannot be packed onto {{where}}, whatever goes with which"
        yield message, _by_large(memory, most, small), _by_large(limits, most, small)


class _Weights:
    """What blocks weigh at least, by a weight of units, and what they take of one kind of memory.

    Attributes:
        spread: bool[B], blocks that can only be on all devices; they are taken from the devices' room.
        limits: int[D], the room that is left.
    """

    def __init__(self, problem: Problem, kind: Memory) -> None:
        self._problem = problem
        everywhere = problem.option_site == Site.CLUSTER
        self.spread = np.logical_and.reduceat(everywhere, problem.first_option)
        self._devices = problem.site_size[problem.option_site]
        on_each = np.where(self.spread, self.least(problem.unit_memory[kind]) // problem.cluster.devices, 0)
        self.limits = problem.cluster.memory_limit[kind] - int(on_each.sum())

    def least(self, weight: Floats | Ints) -> Floats:
        """[B], from the weights [U] of units."""
        problem = self._problem
        of_option = np.add.reduceat(weight * problem.unit_count, problem.first_unit) * self._devices
        return np.asarray(np.minimum.reduceat(of_option, problem.first_option))


def _by_parts(size: Ints, most: int, parts: int) -> Floats:
    """Weights that are at most 1 together in `most`: so many equal parts, each of more than 1/(parts + 1)."""
    pieces, rest = np.divmod((parts + 1) * np.minimum(size, most), most)
    return np.asarray(np.where(rest == 0, pieces / (parts + 1), pieces / parts))


def _by_large(size: Ints, most: int, small: int) -> Floats:
    """Weights that are at most 1 together in `most`: 0 below a size, 1 where only less than it would be left."""
    return np.asarray(np.where(size < small, 0.0, np.where(size > most - small, 1.0, size / most)))


def _rank_sets(problem: Problem) -> Iterator[Bools]:
    """All devices, and every set that some block is pinned to; bool[D]."""
    yield np.ones(problem.cluster.devices, dtype=bool)
    for allowed in distinct(problem.allowed, axis=0):
        if not allowed.all():
            yield allowed


def _heaviest(weight: Floats | Ints) -> tuple[int, ...]:
    order = np.argsort(-np.asarray(weight), kind="stable")
    return tuple(int(block) for block in order if weight[block] > 0)


def _names(problem: Problem, blocks: Sequence[int]) -> str:
    names = [problem.tables[t].name for block in blocks for t in problem.blocks[block]]
    more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return ", ".join(names[:_NAMED]) + more


def _ranges(ranks: Bools) -> str:
    numbers = np.flatnonzero(ranks).tolist()
    return ", ".join(map(str, numbers)) if len(numbers) < 9 else f"{numbers[0]} to {numbers[-1]}"


# --- Explanations -----------------------------------------------------------------------------------------------------


def explain(
    problem: Problem, cause: Cause | None, best: Fit | None, origin: Origin | None, *, seed: int, proven: bool = False
) -> Diagnostic:
    """Say why nothing fits, which tables are at fault, and what helps.

    Args:
        problem: the problem that no placement was found for.
        cause: what `find_cause` found.
        best: the placement whose fullest device was least full; None if pins and exclusions leave none.
        origin: what the problem was lowered from; without it, changes are offered that have not been tried.
        seed: of the compile.
        proven: whether the exact solver says that nothing fits.
    """
    if cause is None:
        cause = _unknown(problem, best, proven)
    if origin is None:
        usual = "allow more sharding types, loosen pins, groups and apart sets, or use more devices"
        return Diagnostic(cause.code, cause.message, help=f"{_enough(problem, best)}; or {usual}" if best else usual)
    tables = _at_fault(problem, cause, origin)[:_NAMED]
    located = [(t, origin.loaded.at_table(t, "pin" if t.pin is not None else "rows")) for t in tables]
    found = changes(problem, cause, best, origin, seed)
    return Diagnostic(
        cause.code,
        cause.message,
        located[0][1],
        help="; or ".join(change.what for change in found) or "nothing that was tried is enough by itself",
        notes=tuple(f'table "{table.name}" is at {at}' for table, at in located[1:] if at is not None),
    )


def _unknown(problem: Problem, best: Fit | None, proven: bool) -> Cause:
    """Tables that are hard to place, where nothing is known to be at fault."""
    blocks = _heaviest(np.minimum.reduceat(problem.unit_fill[problem.first_unit], problem.first_option))[:_NAMED]
    found = "no placement was found that fits" + ", and HiGHS holds that there is none" * proven
    if best is None:
        return Cause(
            "SH203", f"{found}: pins, groups and exclusions leave none, however much memory there were", blocks
        )
    limit = int(problem.cluster.memory_limit[best.memory].max())
    lacks, of_host = format_bytes(int(np.ceil((best.fullest - 1.0) * limit))), " of its host's memory"
    message = (
        f"{found}: a device has {format_bytes(limit)}{of_host * (best.memory is Memory.HOST)} for tables, and the best "
        f"that was found lacks {lacks} on one; the hardest to place are {_names(problem, blocks[:3])}"
    )
    return Cause("SH203", message, blocks)


# --- Changes ----------------------------------------------------------------------------------------------------------


def changes(problem: Problem, cause: Cause, best: Fit | None, origin: Origin, seed: int) -> list[Change]:
    """The least changes of the spec that make it fit, a few; each has been tried.

    Args:
        problem: the problem that no placement was found for.
        cause: why, and which blocks are at fault.
        best: the placement whose fullest device was least full; None if pins and exclusions leave none.
        origin: what the problem was lowered from.
        seed: of the compile.
    """
    trial = _Trial(problem, origin, seed)
    ways: tuple[Callable[[], Change | None], ...] = (
        lambda: _without_pin(problem, cause, origin, trial),
        lambda: trial.first(_not_apart(problem, cause, origin)),
        lambda: _split(problem, cause, origin, trial),
        lambda: _cached(problem, cause, origin, trial),
        lambda: _with_host_memory(problem, best, origin, trial),
        lambda: trial.first(_like_others(origin)),
        lambda: _with_memory(problem, best, origin, trial),
        lambda: _with_devices(problem, origin, trial),
    )
    found = (way() for way in ways)
    return list(islice((change for change in found if change is not None), _OFFERED))


def starts(problem: Problem) -> list[tuple[int, ...]]:
    """Options to look for a placement with: tables as whole as they fit, then in pieces as small as can be."""
    largest = problem.unit_fill[problem.first_unit]
    blocks = range(len(problem.blocks))
    smallest = tuple(min(problem.options_of(b), key=lambda o: (float(largest[o]), o)) for b in blocks)
    return list(dict.fromkeys([tuple(map(int, problem.first_option)), smallest]))


class _Trial:
    """Tries changes; how close it comes to the least that works depends on the size of the problem."""

    def __init__(self, problem: Problem, origin: Origin, seed: int) -> None:
        self._origin, self._seed = origin, seed
        size = len(problem.option_block) * problem.cluster.devices
        self._left = max(_LEAST_HALVINGS, int(_HALVINGS / (size * len(problem.blocks))))

    def works(self, change: Change) -> bool:
        """Whether a compile of the spec would find a placement then: by the search that it falls back on, cut short."""
        try:
            problem = lower(change.loaded, self._origin.hardware, self._origin.accesses)
        except DiagnosticError:
            return False
        if find_cause(problem) is not None:
            return False
        found = fit(problem, starts(problem), evaluations=EVALUATIONS, seed=self._seed)
        return found is not None and found.fits

    def first(self, changes: Iterable[Change]) -> Change | None:
        """The first change that works."""
        return next(filter(self.works, changes), None)

    def few(self, ways: Iterable[tuple[Sequence[Table], Callable[[Sequence[Table]], Change]]]) -> Change | None:
        """The first change of some tables that works, of no more of them than it takes."""
        for tables, changed in ways:
            if self.works(best := changed(tables)):
                break
        else:
            return None
        for table in tables[: len(tables) if len(tables) > 1 else 0]:
            fewer = [other for other in tables if other is not table]
            if fewer and self.works(change := changed(fewer)):
                best, tables = change, fewer
        return best

    def least(
        self, changed: Callable[[int], Change], amounts: Iterable[int], *, low: int, beside: int = 0, share: float = 0.0
    ) -> Change | None:
        """The change by the least amount that works.

        Args:
            changed: a change by an amount.
            amounts: to try until one works, ascending.
            low: an amount that does not work.
            beside: what there is beside the amount.
            share: of both together: by so much the amount may be more than the least, but by no less than 1.
        """
        for high in amounts:
            if self.works(best := changed(high)):
                break
            low = high
        else:
            return None
        while high - low > max(1, (beside + high) * share) and self._left > 0:
            self._left -= 1
            middle = (low + high) // 2
            if self.works(change := changed(middle)):
                best, high = change, middle
            else:
                low = middle
        return best


def _at_fault(problem: Problem, cause: Cause, origin: Origin) -> list[Table]:
    return [origin.loaded.tables[t] for block in cause.blocks for t in problem.blocks[block]]


def _quoted(tables: Sequence[Table]) -> str:
    return ", ".join(f'"{table.name}"' for table in tables)


def _with_tables(origin: Origin, *changed: Table) -> LoadedSpec:
    by_name = {table.name: table for table in changed}
    return replace(origin.loaded, tables=tuple(by_name.get(t.name, t) for t in origin.loaded.tables))


def _with_cluster(origin: Origin, **changed: object) -> LoadedSpec:
    spec = origin.loaded.spec
    return replace(origin.loaded, spec=spec.model_copy(update={"cluster": spec.cluster.model_copy(update=changed)}))


def _size(size: int) -> str:
    """Bytes as a spec says them, of which it takes twelve digits: as many, or a few more."""
    return f"{-(-size // 1024)}KiB"


def _without_pin(problem: Problem, cause: Cause, origin: Origin, trial: _Trial) -> Change | None:
    """No pin for one of the tables at fault, or for some of them."""
    pinned = [table for table in _at_fault(problem, cause, origin) if table.pin is not None]

    def changed(tables: Sequence[Table]) -> Change:
        what = "the pin of table" if len(tables) == 1 else "the pins of tables"
        free = [replace(table, pin=None) for table in tables]
        return Change(f"remove {what} {_quoted(tables)}", _with_tables(origin, *free))

    several = (pinned[:count] for count in range(2, min(_SEVERAL, len(pinned)) + 1))
    return trial.few((tables, changed) for tables in (*([table] for table in pinned[:_NAMED]), *several))


def _not_apart(problem: Problem, cause: Cause, origin: Origin) -> Iterator[Change]:
    for table in [table for table in _at_fault(problem, cause, origin) if table.apart is not None][:_NAMED]:
        what = f'take table "{table.name}" out of the set "{table.apart}" that is kept apart'
        yield Change(what, _with_tables(origin, replace(table, apart=None)))


def _split(problem: Problem, cause: Cause, origin: Origin, trial: _Trial) -> Change | None:
    """Another sharding type for one of the tables at fault, or for some of them."""
    types = (ShardingType.COLUMN_WISE, ShardingType.ROW_WISE)
    tables = {
        type: [t for t in _at_fault(problem, cause, origin) if t.group is None and type not in t.sharding]
        for type in types
    }

    def allowed(type: ShardingType, tables: Sequence[Table]) -> Change:
        some = [replace(table, sharding=(*table.sharding, str(type))) for table in tables]
        return Change(f"allow {type} for {_quoted(some)}", _with_tables(origin, *some))

    counts = range(1, _SEVERAL + 1)
    return trial.few(
        (tables[type][:count], partial(allowed, type))
        for count in counts
        for type in types
        if count <= len(tables[type])
    )


def _cached(problem: Problem, cause: Cause, origin: Origin, trial: _Trial) -> Change | None:
    """Some tables at fault in host memory, if devices can have a cache: as few as will do, and as little of it."""
    model, cluster = origin.loaded.spec.model, problem.cluster
    if cluster.device_type == "cpu" or len(cluster.memory_limit) > 1:
        return None
    tables = _at_fault(problem, cause, origin)
    sizes = [int(host_bytes(t.rows, t.dim, weights=model.weights, optimizer=model.optimizer, cached=0)) for t in tables]

    def most(count: int) -> int:
        """All of them on one device, which has its share of a host's memory only."""
        return sum(sizes[:count]) * cluster.devices_per_host

    def changed(count: int, size: int) -> Change:
        some = [replace(table, kernels=(*table.kernels, str(Kernel.FUSED_UVM_CACHING))) for table in tables[:count]]
        enough = rounded_up(size)
        what = f"let {_quoted(some) if count <= _NAMED else f'{count} tables'} be cached: "
        what += f'kernels = ["fused", "fused_uvm_caching"], and host_memory of {format_bytes(enough)}'
        loaded = _with_cluster(origin, host_memory=_size(enough))
        return Change(what, replace(loaded, tables=_with_tables(origin, *some).tables))

    counts = sorted({*(count for count in (1, 2, 4, 8, 16, 32, 64) if count < len(tables)), len(tables)} - {0})
    found = trial.least(lambda count: changed(count, most(count)), counts, low=0)
    if found is None:
        return None
    fewest = len(found.loaded.cached_tables)
    return trial.least(lambda size: changed(fewest, size), [most(fewest)], low=0, share=_PRECISION) or found


def _with_host_memory(problem: Problem, best: Fit | None, origin: Origin, trial: _Trial) -> Change | None:
    """More memory of hosts for tables that may be cached."""
    cluster = problem.cluster
    if len(cluster.memory_limit) < 2:
        return None
    now = int(cluster.memory_limit[Memory.HOST].max()) * cluster.devices_per_host
    amounts = {int(now * times) for times in _TIMES}
    if best is not None and best.memory is Memory.HOST:
        amounts.add(int(now * best.fullest) + cluster.devices_per_host)

    def changed(size: int) -> Change:
        own = tuple(host.model_copy(update={"host_memory": None}) for host in origin.loaded.spec.cluster.host)
        what, enough = _for_hosts(size)
        return Change(what, _with_cluster(origin, host_memory=enough, host=own))

    return trial.least(changed, sorted(amounts), low=now, share=_PRECISION)


def _like_others(origin: Origin) -> Iterator[Change]:
    """As much memory for single ranks as the others have."""
    if ranks := sorted({rank for entry in origin.loaded.spec.cluster.rank for rank in entry.ranks}):
        named = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_NAMED]))}{' …' * (len(ranks) > _NAMED)}"
        yield Change(f"give {named} as much memory as the others have", _with_cluster(origin, rank=()))


def _enough(problem: Problem, best: Fit) -> str:
    """What gives devices of the first kind room for the best placement so far, in words."""
    cluster, limit = problem.cluster, int(problem.cluster.memory_limit[best.memory].max())
    more = _lacks(problem, best)
    if best.memory is Memory.HOST:
        return _for_hosts((limit + more) * cluster.devices_per_host)[0]
    return _for_devices(problem, more)[0]


def _lacks(problem: Problem, best: Fit) -> int:
    """Bytes that the fullest device of a placement lacks."""
    return int(np.ceil((best.fullest - 1.0) * int(problem.cluster.memory_limit[best.memory].max())))


def _for_hosts(size: int) -> tuple[str, str]:
    """So much memory of each host, rounded up to what is shown; in words and as a spec says it."""
    enough = rounded_up(size)
    return f"give each host {format_bytes(enough)} of host_memory or more", _size(enough)


def _for_devices(problem: Problem, more: int) -> tuple[str, str]:
    """Memory that leaves so many bytes more for tables on devices of the first kind; in words and as a spec says it."""
    kind = problem.cluster.kinds[0]
    room = max(0, kind.memory_bytes - kind.reserve_bytes)
    enough = device_bytes_for(room + more, kind.memory_bytes, kind.reserve_bytes)
    return f"give each device {format_bytes(enough)} or more", _size(enough)


def _with_memory(problem: Problem, best: Fit | None, origin: Origin, trial: _Trial) -> Change | None:
    """More memory on every device: what the best placement so far lacks on one, or more, or less."""
    spec, cluster = origin.loaded.spec.cluster, problem.cluster
    limit = int(cluster.memory_limit[Memory.DEVICE].max())
    if best is None:
        return None
    if best.memory is Memory.DEVICE:
        amounts = [int(_lacks(problem, best) * factor) for factor in _MORE_MEMORY]
    else:
        amounts = [int(limit * (times - 1.0)) for times in _TIMES]

    def changed(more: int) -> Change:
        if len(cluster.kinds) == 1 and not spec.rank:
            what, size = _for_devices(problem, more)
            own = tuple(host.model_copy(update={"memory": None}) for host in spec.host)  # as the others
            return Change(what, _with_cluster(origin, memory=size, host=own))
        # Rounded up to what is shown; where a part of a device's memory is reserved, as much of what it has more.
        share = min(1.0 - kind.reserve_bytes / max(kind.memory_bytes, 1) for kind in cluster.kinds)
        enough = device_bytes_for(int(np.ceil(more / max(share, _SLACK))) + 2, 1 << 60, 0)
        what = f"give each device {format_bytes(enough)} more"
        return Change(what, _with_cluster(origin, **_all_larger(spec, cluster, enough)))

    return trial.least(changed, amounts, low=0, beside=limit, share=_PRECISION)


def _all_larger(spec: ClusterSpec, cluster: Cluster, more: int) -> dict[str, object]:
    """What a cluster's section says if every device has so many bytes more."""

    def of_host(number: int) -> str:
        return _size(cluster.kinds[cluster.host_kind[number]].memory_bytes + more)

    own = {number for entry in spec.host for number in entry.hosts}
    usual = next((number for number in range(spec.hosts) if number not in own), 0)
    return {
        "memory": of_host(usual),
        "host": tuple(entry.model_copy(update={"memory": of_host(entry.hosts[0])}) for entry in spec.host),
        "rank": tuple(
            entry.model_copy(update={"memory": _size((parse_size(entry.memory) or 0) + more)}) for entry in spec.rank
        ),
    }


def _with_devices(problem: Problem, origin: Origin, trial: _Trial) -> Change | None:
    """More devices on the only host, or more hosts: as many as the model's size asks for, or more."""
    spec, room = origin.loaded.spec.cluster, max(int(problem.cluster.memory_limit[Memory.DEVICE].sum()), 1)
    least = _Weights(problem, Memory.DEVICE).least(problem.unit_memory[Memory.DEVICE])
    field, what = ("devices_per_host", "devices") if spec.hosts == 1 else ("hosts", "hosts")
    now = int(getattr(spec, field))
    low = max(now, -(-int(least.sum()) * now // room) - 1)
    numbers = (low + more for more in _MORE_DEVICES)

    def changed(number: int) -> Change:
        return Change(f"use {number} {what}", _with_cluster(origin, **{field: number}))

    return trial.least(changed, (n for n in numbers if n * spec.devices // now <= MAX_DEVICES), low=low)
