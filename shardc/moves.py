"""Which bytes go where when one plan takes the place of another: the geometry of shards.

A weight is a row and a column of a table, and so is its optimizer state: what both plans have by these numbers is
taken to be the same. A device keeps what it holds already, and gets the rest of its new shards from a device that holds
it: of replicas, from one on its own host if there is one. Ranks are the same devices before and after; whether a rank
keeps a shard in its own memory or in its host's makes no difference. What no old shard has is new, and does not move.

Counted are the weights and the optimizer state that belongs to them: one value a row of every rectangle that moves
(row-wise Adagrad, whose column blocks have a state each), one (Adagrad) or two (Adam) a weight.

A moved share is always the same: bytes that move, of the bytes of all shards of the new plan, each replica counted. So
it is at most 1, also where tables become replicas, of which each that moves counts as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shardc.memory import optimizer_state_bytes
from shardc.plan import Plan, TablePlan
from shardc.problem import BYTES_PER_ELEMENT, Ints

_PAIRS = 1024  # of rectangles that are all looked at
_NOTHING = np.zeros((0, 4), dtype=np.int64)


class Pieces(NamedTuple):
    """Where a table is: N rectangles that cover it once, or one rectangle that every rank has a replica of.

    Attributes:
        rank: int[N], or of replicas int[D], the ranks that have one.
        area: int[N, 4], first row, first column, rows and columns.
        replicas: whether every rank has the one rectangle.
    """

    rank: Ints
    area: Ints
    replicas: bool

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the table."""
        if len(self.area) <= 1:  # most tables are in one piece, and numpy takes its time for each of them
            first_row, first_column, rows, columns = self.area[0].tolist() if len(self.area) else (0, 0, 0, 0)
            return first_row + rows, first_column + columns
        rows, columns = (self.area[:, :2] + self.area[:, 2:]).max(axis=0).tolist()
        return rows, columns


class Transfers(NamedTuple):
    """Rectangles of one table that go from rank to rank; each array has M entries.

    Attributes:
        source: int[M], the rank that a rectangle is taken from.
        target: int[M], the rank that gets it.
        area: int[M, 4], first row, first column, rows and columns.
    """

    source: Ints
    target: Ints
    area: Ints


_NO_TRANSFERS = Transfers(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), _NOTHING)


@dataclass(frozen=True, slots=True)
class Weighing:
    """What a rectangle of weights amounts to.

    Attributes:
        element: bytes of one weight.
        optimizer: whose state moves with the weights; "sgd", which has none, where the optimizer itself changes.
    """

    element: int
    optimizer: str

    @staticmethod
    def between(old: Plan, new: Plan) -> Weighing:
        """For a change from one plan to another."""
        return Weighing.of(old.model.optimizer, new.model.weights, new.model.optimizer)

    @staticmethod
    def of(before: str, weights: str, optimizer: str) -> Weighing:
        """For a change of optimizers; weights count as the new plan has them."""
        return Weighing(BYTES_PER_ELEMENT[weights], optimizer if before == optimizer else "sgd")

    def bytes(self, area: Ints) -> Ints:
        """Bytes of rectangles, int[M] for int[M, 4]."""
        rows, columns = area[:, 2], area[:, 3]
        return np.asarray(rows * columns * self.element + optimizer_state_bytes(rows, columns, self.optimizer))

    def bytes_shared(self, first: Ints, second: Ints) -> Ints:
        """Bytes of what each two rectangles have in common, int[M, N] for int[M, 4] and int[N, 4]."""
        one = np.repeat(np.arange(len(first)), len(second))
        both = _intersections(first[one], second[np.tile(np.arange(len(second)), len(first))])
        return (self.bytes(both) * (both[:, 2:] > 0).all(axis=1)).reshape(len(first), len(second))


def tables_of(plan: Plan) -> dict[str, TablePlan]:
    """The tables of a plan by name, whatever their module; of several modules that share a name, with their module."""
    names = [name for tables in plan.plan.values() for name in tables]
    if len(set(names)) == len(names):
        return {name: placed for tables in plan.plan.values() for name, placed in tables.items()}
    return {f"{module}.{name}": placed for module, tables in plan.plan.items() for name, placed in tables.items()}


def pieces_of(placed: TablePlan, extent: tuple[int, int] = (0, 0)) -> Pieces:
    """Where a table of a plan is.

    Args:
        placed: the table, of a plan that `shardc.passes.verify.verify_alone` finds no fault with.
        extent: rows and columns of a data-parallel table whose plan is too old to say.
    """
    if placed.sharding_type == "data_parallel":
        rows, columns = placed.shape or extent
        return Pieces(np.array(placed.ranks, dtype=np.int64), np.array([[0, 0, rows, columns]]), True)
    area = [(*shard.shard_offsets, *shard.shard_sizes) for shard in placed.shards]
    return Pieces(np.array(placed.ranks, dtype=np.int64), np.array(area, dtype=np.int64).reshape(-1, 4), False)


def transfers(old: Pieces, new: Pieces, devices_per_host: int) -> Transfers:
    """What has to move for a table to be where it is to be.

    Args:
        old: where it is.
        new: where it is to be.
        devices_per_host: how many ranks share a host, from which a replica is taken rather than from elsewhere.
    """
    first, second = _overlaps(old.area, new.area)
    area = _intersections(old.area[first], new.area[second])
    if new.replicas:
        target = np.tile(new.rank, len(area))
        first, area = np.repeat(first, len(new.rank)), np.repeat(area, len(new.rank), axis=0)
    else:
        target = new.rank[second]
    if old.replicas:
        lacking = ~np.isin(target, old.rank)
        return Transfers(_holders(old.rank, target[lacking], devices_per_host), target[lacking], area[lacking])
    source = old.rank[first]
    lacking = source != target
    return Transfers(source[lacking], target[lacking], area[lacking])


def additions(old: Pieces, new: Pieces) -> Transfers:
    """What of a table no rank holds yet: rows and columns beyond those that it had; each is its own source."""
    rows, columns = old.extent
    if new.extent[0] <= rows and new.extent[1] <= columns:
        return _NO_TRANSFERS
    ranks, areas = [], []
    below, beside = new.area.copy(), new.area.copy()
    below[:, 2] += below[:, 0]
    below[:, 0] = np.maximum(below[:, 0], rows)
    below[:, 2] -= below[:, 0]
    beside[:, 2] = np.minimum(beside[:, 0] + beside[:, 2], rows) - beside[:, 0]
    beside[:, 3] += beside[:, 1]
    beside[:, 1] = np.maximum(beside[:, 1], columns)
    beside[:, 3] -= beside[:, 1]
    for area in (below, beside):
        there = (area[:, 2:] > 0).all(axis=1)
        if new.replicas:
            ranks += [new.rank] * int(there.sum())
            areas += [np.repeat(area[there], len(new.rank), axis=0)]
        else:
            ranks += [new.rank[there]]
            areas += [area[there]]
    rank = np.concatenate([np.zeros(0, dtype=np.int64), *ranks])
    return Transfers(rank, rank, np.concatenate([_NOTHING, *areas]))


def holdings(old: Pieces, new: Pieces) -> Ints:
    """int[N, 4], all that the new ranks hold, each replica too, in the rectangles in which it stays, moves or is new.

    What moves is a part of it, whatever is cut or put together: bytes that move are at most the bytes of these.
    """
    first, second = _overlaps(old.area, new.area)
    area = _intersections(old.area[first], new.area[second])
    copies = len(new.rank) if new.replicas else 1
    return np.concatenate([np.repeat(area, copies, axis=0), additions(old, new).area])


def _overlaps(old: Ints, new: Ints) -> tuple[Ints, Ints]:
    """Indices of all pairs of an old and a new rectangle that have anything in common."""
    if len(old) * len(new) > _PAIRS:
        return _overlaps_of_many(old, new)
    first, second = np.repeat(np.arange(len(old)), len(new)), np.tile(np.arange(len(new)), len(old))
    meet = (_intersections(old[first], new[second])[:, 2:] > 0).all(axis=1)
    return first[meet], second[meet]


def _overlaps_of_many(old: Ints, new: Ints) -> tuple[Ints, Ints]:
    """As `_overlaps`: both are painted on the grid of their edges.

    A thousand blocks of rows against as many are a few thousand cells then, not a million pairs.
    """
    edges = []
    for axis in (0, 1):
        starts_and_ends = [at for areas in (old, new) for at in (areas[:, axis], areas[:, axis] + areas[:, 2 + axis])]
        edges.append(_distinct(np.concatenate(starts_and_ends)))
    grids = []
    for areas in (old, new):
        grid = np.full((len(edges[0]) - 1, len(edges[1]) - 1), -1)
        starts = [np.searchsorted(edges[axis], areas[:, axis]).tolist() for axis in (0, 1)]
        ends = [np.searchsorted(edges[axis], areas[:, axis] + areas[:, 2 + axis]).tolist() for axis in (0, 1)]
        for number, (top, left, bottom, right) in enumerate(zip(*starts, *ends, strict=True)):
            grid[top:bottom, left:right] = number
        grids.append(grid)
    both = (grids[0] >= 0) & (grids[1] >= 0)
    pairs = _distinct(grids[0][both] * len(new) + grids[1][both])
    return pairs // len(new), pairs % len(new)


def _distinct(values: Ints) -> Ints:
    """The distinct values, ascending; np.unique would import masked arrays, which takes longer than a whole diff."""
    ordered = np.sort(values)
    return np.asarray(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]])


def _intersections(first: Ints, second: Ints) -> Ints:
    start = np.maximum(first[:, :2], second[:, :2])
    end = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    return np.concatenate([start, end - start], axis=1)


def _holders(ranks: Ints, targets: Ints, devices_per_host: int) -> Ints:
    """For each target a rank to copy from: one on its host if there is one, and not always the same."""
    hosts = ranks // devices_per_host
    found = []
    for target in targets.tolist():
        near = ranks[hosts == target // devices_per_host]
        choice = near if len(near) else ranks
        found.append(int(choice[target % len(choice)]))
    return np.array(found, dtype=np.int64)
