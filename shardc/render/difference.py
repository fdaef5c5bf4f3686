"""How a plan differs from another, as a section of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shardc.contents import tables_of
from shardc.passes.verify import extent
from shardc.plan import DeviceScore, Plan, TablePlan
from shardc.problem import BYTES_PER_ELEMENT
from shardc.render.charts import Part, bar, key
from shardc.render.markup import Markup, el, join
from shardc.render.words import rank_ranges
from shardc.units import compact, format_bytes, format_ms

_SAME = 5e-4  # relative: changes that are shown as none
_MANY = 24  # rows: beyond, they scroll
_WORDS = ("added", "removed", "resized", "resharded", "moved")


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a table.

    Attributes:
        table: its name.
        what: added, removed, resized, resharded or moved.
        old: how it was sharded.
        new: how it is sharded.
        moved: bytes of weights that a device holds now and did not before.
    """

    table: str
    what: str
    old: TablePlan | None
    new: TablePlan | None
    moved: int


def changes(base: Plan, plan: Plan) -> list[Change]:
    """The tables that differ between two plans, those first of which most bytes move."""
    before, after = tables_of(base), tables_of(plan)
    element = BYTES_PER_ELEMENT[plan.model.weights]
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if what := _what(old, new):
            moved = _moved(old, new) * element if old and new and what != "resized" else 0
            found.append(Change(name, what, old, new, moved))
    return sorted(found, key=lambda change: (-change.moved, _WORDS.index(change.what), change.table))


def _what(old: TablePlan | None, new: TablePlan | None) -> str | None:
    if old is None or new is None:
        return "added" if old is None else "removed"
    if extent(old) != extent(new) and None not in (extent(old), extent(new)):
        return "resized"
    shapes = [sorted((s.shard_offsets, s.shard_sizes) for s in table.shards) for table in (old, new)]
    if (old.sharding_type, old.cached, shapes[0]) != (new.sharding_type, new.cached, shapes[1]):
        return "resharded"
    return "moved" if _holders(old) != _holders(new) else None


def _holders(table: TablePlan) -> list[tuple[object, ...]]:
    if not table.shards:
        return [(rank,) for rank in sorted(table.ranks)]
    return sorted((shard.shard_offsets, shard.rank) for shard in table.shards)


def _moved(old: TablePlan, new: TablePlan) -> int:
    """Elements that a device holds now and did not before."""
    held: dict[int, list[tuple[int, int, int, int]]] = {}
    for rank, *box in _boxes(old):
        held.setdefault(rank, []).append((box[0], box[1], box[2], box[3]))
    moved = 0
    for rank, top, left, bottom, right in _boxes(new):
        moved += (bottom - top) * (right - left)
        for first_row, first_column, last_row, last_column in held.get(rank, ()):
            high = min(bottom, last_row) - max(top, first_row)
            wide = min(right, last_column) - max(left, first_column)
            moved -= max(0, high) * max(0, wide)
    return moved


def _boxes(table: TablePlan) -> Iterator[tuple[int, int, int, int, int]]:
    """Rank, and first and last row and column, of all that devices hold."""
    if not table.shards:
        rows, columns = extent(table) or (0, 0)
        yield from ((rank, 0, 0, rows, columns) for rank in table.ranks)
    for shard in table.shards:
        (top, left), (height, width) = shard.shard_offsets, shard.shard_sizes
        yield shard.rank, top, left, top + height, left + width


def difference(base: Plan, plan: Plan, name_of: Callable[[str], Markup]) -> Markup:
    """The section: what moves, and what becomes of each device.

    Args:
        base: the plan before.
        plan: the plan now.
        name_of: a table's name as markup.
    """
    found = changes(base, plan)
    moved = sum(change.moved for change in found)
    counts = Counter(change.what for change in found)
    words = ", ".join(f"{counts[what]:,} {what}" for what in _WORDS if counts[what]) or "no table has changed"
    tables = f"Tables: {words}." if counts else "No table has moved or is sharded in another way."
    bytes = f" {format_bytes(moved)} of weights move between devices." if moved else ""
    if base.model.name != plan.model.name:
        bytes += f" The plan before is for another model, {base.model.name[:80]}."
    if base.digests.cost != plan.digests.cost:
        bytes += " The two plans state their times by different kinds of costs."
    return join(
        el("div", el("h2", "Changes", id="changes-title"), class_="head"),
        el("p", f"{tables}{bytes}", class_="lead"),
        _device_changes(base, plan),
        _table_changes(found, name_of) if found else None,
    )


def _table_changes(found: list[Change], name_of: Callable[[str], Markup]) -> Markup:
    head = [el("th", name, scope="col", class_="n" if name == "Moves" else None) for name in _CHANGE_HEAD]
    rows = [
        el(
            "tr",
            el("th", name_of(change.table), scope="row"),
            el("td", change.what),
            el("td", _how(change.old, change.what)),
            el("td", _how(change.new, change.what)),
            el("td", format_bytes(change.moved) if change.moved else "", class_="n"),
        )
        for change in found
    ]
    caption = el("caption", "Tables that changed", class_="unseen")
    table = el("table", caption, el("thead", el("tr", head)), el("tbody", rows))
    return join(el("h3", "Tables"), _framed(table, len(rows), "Tables that changed"))


_CHANGE_HEAD = ("Table", "Change", "Before", "Now", "Moves")


def _how(table: TablePlan | None, what: str) -> str:
    """How a table is sharded; its size where that is what has changed."""
    if table is None:
        return "–"
    size = "×".join(compact(number) for number in extent(table) or ()) if what == "resized" else ""
    cached = f", {table.cached:.0%} cached" * (table.cached < 1.0)
    return f"{table.sharding_type}{cached} on {rank_ranges(table.ranks)}" + f" ({size})" * bool(size)


def _device_changes(base: Plan, plan: Plan) -> Markup:
    before = {device.rank: device for device in base.score.devices}
    after = {device.rank: device for device in plan.score.devices}
    ranks = sorted(before.keys() | after.keys())
    both = [*before.values(), *after.values()]
    longest, largest = max(map(_ms, both)), max(device.memory_bytes for device in both)
    rows = []
    for rank in ranks:
        old, new = before.get(rank), after.get(rank)
        times, memory = [[None if d is None else of(d) for d in (old, new)] for of in (_ms, lambda d: d.memory_bytes)]
        rows.append(
            el(
                "tr",
                el("th", rank, scope="row", class_="n"),
                el("td", _pair(times, longest, "c0"), class_="wide-only"),
                el("td", _from_to(times, format_ms), class_="n"),
                _delta(times, judged=True),
                el("td", _pair(memory, largest, "c2"), class_="wide-only"),
                el("td", _from_to(memory, format_bytes), class_="n"),
                _delta(memory, judged=False),
            )
        )
    figures = [
        (None, "wide-only"),
        ("Time", "n"),
        ("Change", "n"),
        (None, "wide-only"),
        ("Memory", "n"),
        ("Change", "n"),
    ]
    head = [
        el("th", name, scope="col", class_=kind) if name else el("td", class_=kind)
        for name, kind in [("Device", "n"), *figures]
    ]
    table = el(
        "table",
        el("caption", "Devices before and now", class_="unseen"),
        el("thead", el("tr", head)),
        el("tbody", rows),
        class_="pairs",
    )
    return join(
        el("h3", "Devices"),
        _framed(table, len(rows), "Devices before and now"),
        key(("r0", "before"), ("c0", "time now"), ("c2", "memory now")),
    )


def _ms(device: DeviceScore) -> float:
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


def _pair(values: list[float | None], full: float, color: str) -> Markup:
    """Two bars, before above now."""
    return join(
        *(
            bar([Part(value or 0.0, shade, "")], full, kind="thin") if value is not None else None
            for value, shade in zip(values, ("r0", color), strict=True)
        )
    )


def _from_to(values: list[float | None], form: Callable[[float], str]) -> str:
    return " → ".join("–" if value is None else form(value) for value in values)


def _delta(values: list[float | None], *, judged: bool) -> Markup:
    """How much a value has changed, in the colour of good or bad news where it is either."""
    old, new = values
    if not old or new is None:
        return el("td", "", class_="n")
    change = new / old - 1.0
    if abs(change) <= _SAME:
        return el("td", "same", class_="n soft")
    news = ("good" if change < 0 else "bad") if judged else ""
    return el("td", f"{change:+.1%}", class_=f"n {news}".rstrip())


def _framed(table: Markup, rows: int, label: str) -> Markup:
    kind = "scroll" if rows > _MANY else "wide"
    return el("div", table, class_=kind, tabindex=0, role="region", aria_label=label)
