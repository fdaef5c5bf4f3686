"""What differs between two plans: tables, bytes that move, times and memory of devices, and what explains them.

Everything is told from the two documents alone. What a plan does not say is how often a table is looked up; which
tables explain a device's time is therefore told by what the columns that a lookup reads on it have become.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from shardc.moves import Pieces, Transfers, Weighing, additions, holdings, pieces_of, tables_of, transfers
from shardc.passes.verify import extent
from shardc.plan import DeviceScore, Plan, TablePlan
from shardc.problem import Bools, Floats, Ints, distinct

STATED = 1e-5
"""Relative: plans state six digits, and what differs by less is equal."""

_EXPLAINING = 3  # tables that a device names
_MOSTLY = 0.5  # of a change of time: less than that is left for tables to explain
_LEAST_MS = 1e-6
_NO_COLUMN = 1e-9
_NOWHERE = Pieces(np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64), False)


class Change(StrEnum):
    """What has become of a table. Output format: added to, never renamed."""

    ADDED = "added"
    REMOVED = "removed"
    RESIZED = "resized"
    RESHARDED = "resharded"
    MOVED = "moved"
    CACHED = "cached"
    SETTINGS = "settings"


class TableChange(NamedTuple):
    """A table that differs.

    Attributes:
        name: the table.
        changes: how, in the order of `Change`.
        old: how it was sharded; None if it is new.
        new: how it is sharded; None if it is gone.
        moved_bytes: what devices get of it from other devices.
    """

    name: str
    changes: tuple[Change, ...]
    old: TablePlan | None
    new: TablePlan | None
    moved_bytes: int


class Flow(NamedTuple):
    """Bytes that go from one rank to another."""

    source: int
    target: int
    bytes: int


class Share(NamedTuple):
    """What a table is more or less on a device.

    Attributes:
        table: its name.
        columns: columns that a lookup reads there, on average over the rows of the table.
        bytes: weights and optimizer state.
    """

    table: str
    columns: float
    bytes: int


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """One device before and after.

    Attributes:
        rank: the device.
        old_ms: time of its forward and backward pass; None if there was none, or it is unknown.
        new_ms: the same in the new plan.
        old_bytes: memory that its shards took; None if there was none.
        new_bytes: the same in the new plan.
        of_time: tables that explain the time, those that change most first.
        of_memory: tables that explain the memory.
        of_spec: whether the time has changed because the spec makes the same tables cost otherwise.
    """

    rank: int
    old_ms: float | None
    new_ms: float | None
    old_bytes: int | None
    new_bytes: int | None
    of_time: tuple[Share, ...]
    of_memory: tuple[Share, ...]
    of_spec: bool = False

    @property
    def more_ms(self) -> float | None:
        """How much longer it takes; None if either is unknown."""
        return None if self.old_ms is None or self.new_ms is None else self.new_ms - self.old_ms

    @property
    def more_bytes(self) -> int:
        """How much more memory it takes."""
        return (self.new_bytes or 0) - (self.old_bytes or 0)


class Setting(NamedTuple):
    """Something that plans are for or made from, before and after."""

    what: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What differs between two plans.

    Attributes:
        old: the first plan.
        new: the second plan.
        differ: whether anything does, be it only how a plan came about.
        shared: tables that both have.
        tables: the tables that differ, by name.
        flows: bytes by pair of ranks, most first.
        moved_bytes: all of them; weights and optimizer state.
        added_bytes: bytes of the new plan that no device of the old one has, each once.
        model_bytes: bytes of the new plan's tables, each once.
        held_bytes: bytes of all its shards, each replica too (see `shardc.moves.holdings`).
        devices: the devices of either plan, by rank.
        settings: changes of model, cluster and digests.
        comparable: whether both state times by the same costs.
        recosted: settings of the model that make every table cost otherwise.
    """

    old: Plan
    new: Plan
    differ: bool
    shared: int
    tables: tuple[TableChange, ...]
    flows: tuple[Flow, ...]
    moved_bytes: int
    added_bytes: int
    model_bytes: int
    held_bytes: int
    devices: tuple[DeviceChange, ...]
    settings: tuple[Setting, ...]
    comparable: bool
    recosted: tuple[Setting, ...]

    @property
    def moved_share(self) -> float:
        """Moved bytes as a share of those of all shards of the new plan, each replica too: from 0 to 1."""
        return self.moved_bytes / max(self.held_bytes, 1)

    def count(self, change: Change) -> int:
        """How many tables have changed in a way."""
        return sum(change in table.changes for table in self.tables)


class Movement(NamedTuple):
    """What of one table moves, or is new.

    Attributes:
        table: its name.
        moves: rectangles that go from rank to rank, with their bytes int[M].
        added: rectangles that no rank has yet, with their bytes.
    """

    table: str
    moves: tuple[Transfers, Ints]
    added: tuple[Transfers, Ints]


class _Both(NamedTuple):
    """A table of either plan: how it is sharded there, and where it is."""

    old: TablePlan | None
    new: TablePlan | None
    was: Pieces
    now: Pieces


def diff(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans that `shardc.passes.verify.verify_alone` finds no fault with."""
    before, after = tables_of(old), tables_of(new)
    weighing, differing = Weighing.between(old, new), _differing(before, after)
    found = {movement.table: movement for movement in _movements(differing, weighing, new.cluster.devices_per_host)}
    changed = {name: _changes(both) for name, both in differing.items()}
    flows = _flows(found.values())
    return PlanDiff(
        old=old,
        new=new,
        differ=old != new,
        shared=len(before.keys() & after.keys()),
        tables=tuple(
            TableChange(name, changes, both.old, both.new, int(found[name].moves[1].sum()) if name in found else 0)
            for (name, both), changes in zip(differing.items(), changed.values(), strict=True)
            if changes
        ),
        flows=flows,
        moved_bytes=sum(flow.bytes for flow in flows),
        added_bytes=_added(differing, weighing),
        model_bytes=_bytes([extent(placed) or (0, 0) for placed in after.values()], weighing),
        held_bytes=_held_bytes(after, differing, weighing),
        devices=_devices(old, new, differing, weighing),
        settings=tuple(_settings(old, new)),
        comparable=old.digests.cost == new.digests.cost and old.digests.profile == new.digests.profile,
        recosted=tuple(_recosted(old, new)),
    )


def movements(old: Plan, new: Plan) -> list[Movement]:
    """What of each table moves or is new, tables by name; those of which nothing does are left out."""
    differing = _differing(tables_of(old), tables_of(new))
    return list(_movements(differing, Weighing.between(old, new), new.cluster.devices_per_host))


def _differing(before: Mapping[str, TablePlan], after: Mapping[str, TablePlan]) -> dict[str, _Both]:
    """The tables that are not the same in both, by name."""
    found = {}
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new:
            found[name] = _Both(old, new, _pieces(old, new), _pieces(new, old))
    return found


def _pieces(placed: TablePlan | None, other: TablePlan | None) -> Pieces:
    """Where a table is; as large as in the other plan if this one is too old to say of replicas."""
    if placed is None:
        return _NOWHERE
    return pieces_of(placed, extent(placed) or (other and extent(other)) or (0, 0))


def _movements(differing: Mapping[str, _Both], weighing: Weighing, devices_per_host: int) -> Iterator[Movement]:
    for name, both in differing.items():
        moves = transfers(both.was, both.now, devices_per_host)
        added = additions(both.was, both.now)
        if len(moves.area) or len(added.area):
            yield Movement(name, (moves, weighing.bytes(moves.area)), (added, weighing.bytes(added.area)))


def _added(differing: Mapping[str, _Both], weighing: Weighing) -> int:
    """Bytes of rows and columns that tables did not have before, each once."""
    sizes = [(both.was.extent, both.now.extent) for both in differing.values()]
    kept = [(min(was[0], now[0]), min(was[1], now[1])) for was, now in sizes]
    return _bytes([now for _, now in sizes], weighing) - _bytes(kept, weighing)


def _held_bytes(after: Mapping[str, TablePlan], differing: Mapping[str, _Both], weighing: Weighing) -> int:
    """Bytes of all shards after, those of tables that are the same as they are."""
    same = [_pieces(placed, None) for name, placed in after.items() if name not in differing]
    areas = [np.repeat(pieces.area, len(pieces.rank) if pieces.replicas else 1, axis=0) for pieces in same]
    areas += [holdings(both.was, both.now) for both in differing.values()]
    return int(weighing.bytes(np.concatenate([np.zeros((0, 4), dtype=np.int64), *areas])).sum())


def _bytes(sizes: Sequence[tuple[int, int]], weighing: Weighing) -> int:
    """Bytes of tables of so many rows and columns."""
    return int(weighing.bytes(np.array([(0, 0, *size) for size in sizes], dtype=np.int64).reshape(-1, 4)).sum())


def _flows(found: Iterable[Movement]) -> tuple[Flow, ...]:
    moves = [(transfers.source, transfers.target, bytes) for _, (transfers, bytes), _ in found]
    if not moves:
        return ()
    sources, targets, sizes = (np.concatenate(parts) for parts in zip(*moves, strict=True))
    ranks = int(max(sources.max(initial=0), targets.max(initial=0))) + 1
    pairs, total = _summed(sources * ranks + targets, sizes)
    order = np.argsort(-total, kind="stable")
    order = order[total[order] > 0]
    return tuple(
        Flow(pair // ranks, pair % ranks, bytes)
        for pair, bytes in zip(pairs[order].tolist(), total[order].tolist(), strict=True)
    )


def _summed(keys: Ints, amounts: Ints) -> tuple[Ints, Ints]:
    """The distinct keys, ascending, and the sum of each one's amounts."""
    found = distinct(keys)
    total = np.zeros(len(found), dtype=amounts.dtype)
    np.add.at(total, np.searchsorted(found, keys), amounts)
    return found, total


def _changes(both: _Both) -> tuple[Change, ...]:
    old, new = both.old, both.new
    if old is None or new is None:
        return (Change.ADDED if old is None else Change.REMOVED,)
    found = []
    same_size = both.was.extent == both.now.extent
    if not same_size:
        found.append(Change.RESIZED)
    recut = len(old.ranks) != len(new.ranks) or (same_size and _cut(old) != _cut(new))
    if old.sharding_type != new.sharding_type or (recut and old.sharding_type != "data_parallel"):
        found.append(Change.RESHARDED)
    elif old.ranks != new.ranks:
        found.append(Change.MOVED)
    if old.cached != new.cached:
        found.append(Change.CACHED)
    if any(getattr(old, name) != getattr(new, name) for name in _set_beside(old, new)):
        found.append(Change.SETTINGS)
    return tuple(found)


def _set_beside(old: TablePlan, new: TablePlan) -> Iterator[str]:
    """The members that neither the sharding type, nor pieces and ranks, nor the cached share tell."""
    yield from ("enforce_hbm", "stochastic_rounding", "bounds_check_mode", "output_dtype")
    if old.cached == new.cached:
        yield "cache_params"
        if (old.sharding_type == "data_parallel") == (new.sharding_type == "data_parallel"):
            yield "compute_kernel"


def _cut(placed: TablePlan) -> list[tuple[int, ...]]:
    """Which pieces a table is in, wherever they are."""
    return sorted((*shard.shard_offsets, *shard.shard_sizes) for shard in placed.shards)


# --- Devices ----------------------------------------------------------------------------------------------------------


def _devices(old: Plan, new: Plan, differing: Mapping[str, _Both], weighing: Weighing) -> tuple[DeviceChange, ...]:
    before = {device.rank: device for device in old.score.devices}
    after = {device.rank: device for device in new.score.devices}
    count = max(old.cluster.devices, new.cluster.devices)
    ranks, tables, columns, bytes = _more_held(list(differing.values()), weighing)
    starts = np.searchsorted(ranks, np.arange(count + 1))
    respecified = _respecified(old, new, differing, np.diff(starts) > 0)
    names, devices = list(differing), []
    for rank in sorted(before.keys() | after.keys()):
        was, now = before.get(rank), after.get(rank)
        there = slice(starts[rank], starts[rank + 1]) if rank < count else slice(0)
        shares = [
            Share(names[table], more_columns, more_bytes)
            for table, more_columns, more_bytes in zip(
                tables[there].tolist(), columns[there].tolist(), bytes[there].tolist(), strict=True
            )
        ]
        old_ms, new_ms = (None if device is None else _compute_ms(device) for device in (was, now))
        old_bytes, new_bytes = (None if device is None else device.memory_bytes for device in (was, now))
        more_ms = 0.0 if old_ms is None or new_ms is None else new_ms - old_ms
        of_spec = rank in respecified and abs(more_ms) > _LEAST_MS
        to_explain = 0.0 if of_spec or abs(more_ms) <= _LEAST_MS else more_ms
        of_time = _explaining(shares, [share.columns for share in shares], to_explain)
        of_memory = _explaining(shares, [share.bytes for share in shares], (new_bytes or 0) - (old_bytes or 0))
        devices.append(DeviceChange(rank, old_ms, new_ms, old_bytes, new_bytes, of_time, of_memory, of_spec))
    return tuple(devices)


def _respecified(old: Plan, new: Plan, differing: Mapping[str, _Both], touched: Bools) -> set[int]:
    """The ranks whose time has changed because another spec makes their tables cost otherwise.

    Plans do not say what tables cost. Where both have the same tables, all of them together cost as much more as all
    devices take longer; else as those take whose tables are the same. What is mostly that is not for any table.

    Args:
        old: the plan before.
        new: the plan after.
        differing: tables that differ.
        touched: bool[D], whether a device has other tables than before, or other parts of them.
    """
    if old.digests.spec == new.digests.spec:
        return set()
    times = np.zeros((len(touched), 2))
    for which, plan in enumerate((old, new)):
        for device in plan.score.devices:
            if device.rank < len(times):
                times[device.rank, which] = _compute_ms(device) or 0.0
    times[(times == 0.0).any(axis=1)] = 0.0  # of devices that only one plan has
    more = times[:, 1] - times[:, 0]
    if any(_recosted(old, new)):
        return set(np.flatnonzero(more).tolist())
    ratio = 1.0
    same = all(both.old and both.new and both.was.extent == both.now.extent for both in differing.values())
    if same and old.cluster.devices == new.cluster.devices:
        ratio = float(times[:, 1].sum() / max(times[:, 0].sum(), _LEAST_MS))
    elif (alike := ~touched & times.all(axis=1)).any():
        ratio = float(np.median(times[alike, 1] / times[alike, 0]))
    rest = np.abs(times[:, 1] - ratio * times[:, 0])
    return set(np.flatnonzero((more != 0) & (~touched | (rest < _MOSTLY * np.abs(more)))).tolist())


def _explaining(shares: Sequence[Share], amounts: Sequence[float], more: float) -> tuple[Share, ...]:
    """The tables that change most in the direction in which a device changes; none if it does not."""
    sign = float(np.sign(more))
    ranked = sorted(zip(amounts, shares, strict=True), key=lambda pair: (-abs(pair[0]), pair[1].table))
    return tuple(share for amount, share in ranked if amount * sign > 0)[:_EXPLAINING]


def _more_held(differing: Sequence[_Both], weighing: Weighing) -> tuple[Ints, Ints, Floats, Ints]:
    """What devices have more of tables than before: N ranks, tables, columns and bytes, by rank and then by table.

    Only what differs is there: of many tables and devices most are nowhere near each other.
    """
    held = [_held([both.now for both in differing], weighing), _held([both.was for both in differing], weighing)]
    keys = [rank * len(differing) + table for rank, table, _, _ in held]
    found = distinct(np.concatenate(keys))
    columns, bytes = np.zeros((2, len(found))), np.zeros((2, len(found)), dtype=np.int64)
    for side, (_, _, of_piece, bytes_of_piece) in enumerate(held):
        at = np.searchsorted(found, keys[side])
        np.add.at(columns[side], at, of_piece)
        np.add.at(bytes[side], at, bytes_of_piece)
    more_columns, more_bytes = columns[0] - columns[1], bytes[0] - bytes[1]
    differ = (np.abs(more_columns) > _NO_COLUMN) | (more_bytes != 0)
    ranks, tables = np.divmod(found[differ], max(len(differing), 1))
    return ranks, tables, more_columns[differ], more_bytes[differ]


def _held(tables: Sequence[Pieces], weighing: Weighing) -> tuple[Ints, Ints, Floats, Ints]:
    """Of every piece that a device holds its rank, its table, columns that a lookup reads on average, and bytes.

    Of replicas a device only looks up its own samples: its share of the columns is that of the samples.
    """
    area = np.concatenate([_NOWHERE.area, *(pieces.area for pieces in tables)])
    count = np.array([len(pieces.area) for pieces in tables], dtype=np.int64)
    copies = np.array([len(pieces.rank) if pieces.replicas else 1 for pieces in tables], dtype=np.int64)
    rows = np.array([max(pieces.extent[0], 1) for pieces in tables], dtype=np.int64)
    width = area[:, 2] * area[:, 3] / np.repeat(rows * copies, count)
    each = np.repeat(copies, count)
    rank = np.concatenate([_NOWHERE.rank, *(pieces.rank for pieces in tables)])
    table = np.repeat(np.repeat(np.arange(len(tables)), count), each)
    return rank, table, np.repeat(width, each), np.repeat(weighing.bytes(area), each)


def _compute_ms(device: DeviceScore) -> float | None:
    if device.forward_ms is None and device.backward_ms is None:
        return None
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


# --- What plans are for -----------------------------------------------------------------------------------------------


def _recosted(old: Plan, new: Plan) -> Iterator[Setting]:
    """The settings of the model that make every table cost otherwise."""
    for name in ("global_batch", "optimizer", "weights", "outputs"):
        before, after = (getattr(plan.model, name) for plan in (old, new))
        if before != after:
            yield Setting(name.replace("_", " "), str(before), str(after))


def _settings(old: Plan, new: Plan) -> list[Setting]:
    """Changes of what plans are for and made from."""
    found = []
    for what, before, after in (
        ("model", old.model.name, new.model.name),
        ("module", _module(old), _module(new)),
    ):
        if before != after:
            found.append(Setting(what, before, after))
    found += _recosted(old, new)
    if old.cluster != new.cluster:
        found.append(Setting("cluster", *(_cluster(plan) for plan in (old, new))))
    for name in ("spec", "profile", "measurements", "cost", "policy"):
        before, after = (getattr(plan.digests, name) for plan in (old, new))
        if before != after:
            found.append(Setting("costs" if name == "cost" else name, *(_short(v) for v in (before, after))))
    if old.tool.version != new.tool.version:
        found.append(Setting("shardc", old.tool.version, new.tool.version))
    if old.tool.seed != new.tool.seed:
        found.append(Setting("seed", str(old.tool.seed), str(new.tool.seed)))
    return found


def _module(plan: Plan) -> str:
    """The module that a plan is for; where its tables are of others, those too."""
    modules = list(plan.plan)
    return plan.model.module + ("" if modules == [plan.model.module] else f" with tables of {', '.join(modules)}")


def _cluster(plan: Plan) -> str:
    cluster = plan.cluster
    names = ", ".join(dict.fromkeys(cluster.host_devices)) or cluster.device
    return f"{cluster.hosts} x {cluster.devices_per_host} {names}"


def _short(digest: str | None) -> str:
    """As much of a digest as tells it from another."""
    return "none" if digest is None else digest.removeprefix("sha256:")[:8]
