"""How a plan differs from another, as a section of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardc.passes.verify import extent
from shardc.plan import TablePlan
from shardc.plan_diff import Change, DeviceChange, PlanDiff, TableChange
from shardc.render.charts import Part, bar, key
from shardc.render.markup import Markup, el, join
from shardc.render.words import rank_ranges
from shardc.units import compact_beside, format_bytes, format_ms

_SAME = 5e-4  # relative: changes that are shown as none
_MANY = 24  # rows: beyond, they scroll


def difference(diff: PlanDiff, name_of: Callable[[str], Markup]) -> Markup:
    """The section: what moves, and what becomes of each device.

    Args:
        diff: of the plan before and the plan now.
        name_of: a table's name as markup.
    """
    found = sorted(diff.tables, key=lambda changed: (-changed.moved_bytes, changed.name))
    counts = ", ".join(f"{diff.count(change):,} {change}" for change in Change if diff.count(change))
    words = [f"Tables: {counts}." if counts else "No table has moved or is sharded in another way."]
    if diff.moved_bytes:
        words.append(f"{format_bytes(diff.moved_bytes)} move between devices, {diff.moved_share:.1%} of all shards.")
    if diff.tables and not diff.shared:
        words.append("The plans share no table: nothing is taken over.")
    if diff.old.model.name != diff.new.model.name:
        words.append(f"The plan before is for another model, {diff.old.model.name[:80]}.")
    if diff.old.digests.cost != diff.new.digests.cost:
        words.append("The two plans state their times by different kinds of costs.")
    return join(
        el("div", el("h2", "Changes", id="changes-title"), class_="head"),
        el("p", " ".join(words), class_="lead"),
        _device_changes(diff.devices),
        _table_changes(found, name_of) if found else None,
    )


def _table_changes(found: Sequence[TableChange], name_of: Callable[[str], Markup]) -> Markup:
    head = [el("th", name, scope="col", class_="n" if name == "Moves" else None) for name in _CHANGE_HEAD]
    rows = [
        el(
            "tr",
            el("th", name_of(changed.name), scope="row"),
            el("td", ", ".join(changed.changes)),
            el("td", _how(changed.old, changed)),
            el("td", _how(changed.new, changed)),
            el("td", format_bytes(changed.moved_bytes) if changed.moved_bytes else "", class_="n"),
        )
        for changed in found
    ]
    caption = el("caption", "Tables that changed", class_="unseen")
    table = el("table", caption, el("thead", el("tr", head)), el("tbody", rows))
    return join(el("h3", "Tables"), _framed(table, len(rows), "Tables that changed"))


_CHANGE_HEAD = ("Table", "Change", "Before", "Now", "Moves")


def _how(table: TablePlan | None, changed: TableChange) -> str:
    """How a table is sharded; its size where that has changed."""
    if table is None:
        return "–"
    size = ""
    if Change.RESIZED in changed.changes:
        sizes = [extent(placed) or (0, 0) for placed in (changed.old, changed.new) if placed]
        size = "×".join(map(compact_beside, extent(table) or (), zip(*sizes, strict=True)))
    cached = f", {table.cached:.0%} cached" * (table.cached < 1.0)
    return f"{table.sharding_type}{cached} on {rank_ranges(table.ranks)}" + f" ({size})" * bool(size)


def _device_changes(devices: Sequence[DeviceChange]) -> Markup:
    longest = max(ms or 0.0 for device in devices for ms in (device.old_ms, device.new_ms))
    largest = max(bytes or 0 for device in devices for bytes in (device.old_bytes, device.new_bytes))
    rows = []
    for device in devices:
        times, memory = (device.old_ms, device.new_ms), (device.old_bytes, device.new_bytes)
        rows.append(
            el(
                "tr",
                el("th", device.rank, scope="row", class_="n"),
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


def _pair(values: Sequence[float | None], full: float, color: str) -> Markup:
    """Two bars, before above now."""
    return join(
        *(
            bar([Part(value or 0.0, shade, "")], full, kind="thin") if value is not None else None
            for value, shade in zip(values, ("r0", color), strict=True)
        )
    )


def _from_to(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    return " → ".join("–" if value is None else form(value) for value in values)


def _delta(values: Sequence[float | None], *, judged: bool) -> Markup:
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
