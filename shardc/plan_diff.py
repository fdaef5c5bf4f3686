"""What differs between two plans: tables, bytes that move, times and memory of devices, and what explains them.

Everything is told from the two documents alone. What a plan does not say is how often a table is looked up; which
tables explain a device's time is therefore told by what the columns that a lookup reads on it have become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from shardc.moves import Pieces, Transfers, Weighing, additions, pieces_of, tables_of, transfers
from shardc.passes.verify import extent
from shardc.plan import DeviceScore, Plan, TablePlan
from shardc.problem import Floats, Ints

STATED = 1e-5
"""Relative: plans state six digits, and what differs by less is equal."""

_EXPLAINING = 3  # tables that a device names
_LEAST_MS = 1e-6


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
    """

    rank: int
    old_ms: float | None
    new_ms: float | None
    old_bytes: int | None
    new_bytes: int | None
    of_time: tuple[Share, ...]
    of_memory: tuple[Share, ...]

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
        devices: the devices of either plan, by rank.
        settings: changes of model, cluster and digests.
        comparable: whether both state times by the same costs.
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
    devices: tuple[DeviceChange, ...]
    settings: tuple[Setting, ...]
    comparable: bool

    @property
    def moved_share(self) -> float:
        """Moved bytes as a share of the model's."""
        return self.moved_bytes / max(self.model_bytes, 1)

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


def diff(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans that `shardc.passes.verify.verify_alone` finds no fault with."""
    before, after = tables_of(old), tables_of(new)
    found = {movement.table: movement for movement in movements(old, new)}
    weighing = Weighing.between(old, new)
    changed = []
    for name in sorted(before.keys() | after.keys()):
        changes = _changes(before.get(name), after.get(name))
        if changes:
            moved = int(found[name].moves[1].sum()) if name in found else 0
            changed.append(TableChange(name, changes, before.get(name), after.get(name), moved))
    sizes = {name: extent(placed) or (0, 0) for name, placed in after.items()}
    whole = np.array([[0, 0, *size] for size in sizes.values()], dtype=np.int64).reshape(-1, 4)
    total = int(weighing.bytes(whole).sum())
    flows = _flows(found)
    return PlanDiff(
        old=old,
        new=new,
        differ=old != new,
        shared=len(before.keys() & after.keys()),
        tables=tuple(changed),
        flows=flows,
        moved_bytes=sum(flow.bytes for flow in flows),
        added_bytes=sum(_added(before.get(name), sizes[name], weighing) for name in after),
        model_bytes=total,
        devices=_devices(old, new, changed, weighing),
        settings=tuple(_settings(old, new)),
        comparable=old.digests.cost == new.digests.cost and old.digests.profile == new.digests.profile,
    )


def movements(old: Plan, new: Plan) -> list[Movement]:
    """What of each table moves or is new, tables by name; those of which nothing does are left out."""
    before, after = tables_of(old), tables_of(new)
    weighing, local, found = Weighing.between(old, new), new.cluster.devices_per_host, []
    for name in sorted(after):
        now, then = after[name], before.get(name)
        if then is not None and (then.ranks, then.shards, then.shape) == (now.ranks, now.shards, now.shape):
            continue
        pieces, earlier = _both_pieces(now, then)
        moves = transfers(earlier, pieces, local)
        added = additions(earlier, pieces)
        if len(moves.area) or len(added.area):
            found.append(Movement(name, (moves, weighing.bytes(moves.area)), (added, weighing.bytes(added.area))))
    return found


def _both_pieces(now: TablePlan, then: TablePlan | None) -> tuple[Pieces, Pieces]:
    """Where a table is, and where it was; as large as in the other plan if one is too old to say of replicas."""
    size = extent(now) or (then and extent(then)) or (0, 0)
    pieces = pieces_of(now, size)
    nowhere = Pieces(np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64), False)
    return pieces, pieces_of(then, size) if then else nowhere


def _added(then: TablePlan | None, size: tuple[int, int], weighing: Weighing) -> int:
    """Bytes of a table of so many rows and columns that it did not have before."""
    rows, columns = size
    kept = min(rows, (was := (extent(then) or size) if then else (0, 0))[0]), min(columns, was[1])
    return int(np.diff(weighing.bytes(np.array([[0, 0, *kept], [0, 0, rows, columns]])))[0])


def _flows(found: Mapping[str, Movement]) -> tuple[Flow, ...]:
    if not found:
        return ()
    sources, targets, sizes = (
        np.concatenate(parts)
        for parts in zip(*((m.moves[0].source, m.moves[0].target, m.moves[1]) for m in found.values()), strict=True)
    )
    ranks = int(max(sources.max(initial=0), targets.max(initial=0))) + 1
    pairs, which = np.unique(sources * ranks + targets, return_inverse=True)
    total = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(total, which, sizes)
    order = np.lexsort((pairs, -total))
    return tuple(
        Flow(int(pair) // ranks, int(pair) % ranks, int(bytes))
        for pair, bytes in zip(pairs[order], total[order], strict=True)
    )


def _changes(old: TablePlan | None, new: TablePlan | None) -> tuple[Change, ...]:
    if old is None or new is None:
        return (Change.ADDED if old is None else Change.REMOVED,)
    if old == new:
        return ()
    found = []
    before, after = extent(old), extent(new)
    if before and after and before != after:
        found.append(Change.RESIZED)
    replicas = old.sharding_type == new.sharding_type == "data_parallel"
    recut = len(old.ranks) != len(new.ranks) or (before == after and _cut(old) != _cut(new))
    if old.sharding_type != new.sharding_type or (recut and not replicas):
        found.append(Change.RESHARDED)
    elif old.ranks != new.ranks:
        found.append(Change.MOVED)
    if old.cached != new.cached:
        found.append(Change.CACHED)
    known = {"sharding_type", "ranks", "shards", "shape"}
    others = [placed.model_dump(exclude=known) for placed in (old, new)]
    if Change.CACHED in found:
        for members in others:
            members.pop("cache_params", None)
            members.pop("compute_kernel", None)
    if old.sharding_type != new.sharding_type and "data_parallel" in (old.sharding_type, new.sharding_type):
        for members in others:
            members.pop("compute_kernel", None)  # which goes with the type
    if others[0] != others[1]:
        found.append(Change.SETTINGS)
    return tuple(found)


def _cut(placed: TablePlan) -> list[tuple[int, ...]]:
    """Which pieces a table is in, wherever they are."""
    return sorted((*shard.shard_offsets, *shard.shard_sizes) for shard in placed.shards)


# --- Devices ----------------------------------------------------------------------------------------------------------


def _devices(old: Plan, new: Plan, changed: list[TableChange], weighing: Weighing) -> tuple[DeviceChange, ...]:
    before = {device.rank: device for device in old.score.devices}
    after = {device.rank: device for device in new.score.devices}
    count = max([old.cluster.devices, new.cluster.devices, *before, *after]) + 1
    columns, bytes = np.zeros((len(changed), count)), np.zeros((len(changed), count), dtype=np.int64)
    for row, table in enumerate(changed):
        for sign, placed, other in ((1, table.new, table.old), (-1, table.old, table.new)):
            if placed is not None:
                size = extent(placed) or (other and extent(other)) or (0, 0)
                of_columns, of_bytes = _held(pieces_of(placed, size), weighing, count)
                columns[row] += sign * of_columns
                bytes[row] += sign * of_bytes
    devices = []
    for rank in sorted(before.keys() | after.keys()):
        was, now = before.get(rank), after.get(rank)
        shares = [
            Share(changed[row].name, float(columns[row, rank]), int(bytes[row, rank]))
            for row in np.flatnonzero((np.abs(columns[:, rank]) > 1e-9) | (bytes[:, rank] != 0)).tolist()
        ]
        old_ms, new_ms = (None if device is None else _compute_ms(device) for device in (was, now))
        old_bytes, new_bytes = (None if device is None else device.memory_bytes for device in (was, now))
        more_ms = 0.0 if old_ms is None or new_ms is None else new_ms - old_ms
        of_time = _explaining(shares, [share.columns for share in shares], more_ms if abs(more_ms) > _LEAST_MS else 0.0)
        of_memory = _explaining(shares, [share.bytes for share in shares], (new_bytes or 0) - (old_bytes or 0))
        devices.append(DeviceChange(rank, old_ms, new_ms, old_bytes, new_bytes, of_time, of_memory))
    return tuple(devices)


def _explaining(shares: Sequence[Share], amounts: Sequence[float], more: float) -> tuple[Share, ...]:
    """The tables that change most in the direction in which a device changes; none if it does not."""
    sign = float(np.sign(more))
    ranked = sorted(zip(amounts, shares, strict=True), key=lambda pair: (-abs(pair[0]), pair[1].table))
    return tuple(share for amount, share in ranked if amount * sign > 0)[:_EXPLAINING]


def _held(pieces: Pieces, weighing: Weighing, devices: int) -> tuple[Floats, Ints]:
    """Columns that a lookup reads on each device, on average, and the bytes that it holds."""
    rows = max(pieces.extent[0], 1)
    width = pieces.area[:, 2] * pieces.area[:, 3] / rows
    bytes = weighing.bytes(pieces.area)
    if pieces.replicas:  # each device looks up its own samples
        count = len(pieces.rank)
        width, bytes = np.repeat(width / max(count, 1), count), np.repeat(bytes, count)
    columns, total = np.zeros(devices), np.zeros(devices, dtype=np.int64)
    there = pieces.rank < devices
    np.add.at(columns, pieces.rank[there], width[there])
    np.add.at(total, pieces.rank[there], bytes[there])
    return columns, total


def _compute_ms(device: DeviceScore) -> float | None:
    if device.forward_ms is None and device.backward_ms is None:
        return None
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


# --- What plans are for -----------------------------------------------------------------------------------------------


def _settings(old: Plan, new: Plan) -> list[Setting]:
    """Changes of what plans are for and made from."""
    found = []
    for name in ("name", "module", "global_batch", "optimizer", "weights", "outputs"):
        before, after = (getattr(plan.model, name) for plan in (old, new))
        if before != after:
            found.append(Setting("model" if name == "name" else name.replace("_", " "), str(before), str(after)))
    if old.cluster != new.cluster:
        found.append(Setting("cluster", *(_cluster(plan) for plan in (old, new))))
    for name in ("spec", "profile", "measurements", "cost"):
        before, after = (getattr(plan.digests, name) for plan in (old, new))
        if before != after:
            found.append(Setting("costs" if name == "cost" else name, *(_short(v) for v in (before, after))))
    if old.tool.version != new.tool.version:
        found.append(Setting("shardc", old.tool.version, new.tool.version))
    if old.tool.seed != new.tool.seed:
        found.append(Setting("seed", str(old.tool.seed), str(new.tool.seed)))
    return found


def _cluster(plan: Plan) -> str:
    cluster = plan.cluster
    names = ", ".join(dict.fromkeys(cluster.host_devices)) or cluster.device
    return f"{cluster.hosts} x {cluster.devices_per_host} {names}"


def _short(digest: str | None) -> str:
    """As much of a digest as tells it from another."""
    return "none" if digest is None else digest.removeprefix("sha256:")[:8]
