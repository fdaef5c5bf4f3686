"""What differs between two plans, for people, for a pull request and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shardc.diagnostics import Diagnostic, shown
from shardc.passes.verify import extent
from shardc.plan import TablePlan, canonical_json
from shardc.plan_diff import STATED, Change, DeviceChange, PlanDiff, Share, TableChange
from shardc.render.layout import (
    MOST,
    Glyphs,
    extremes,
    filled,
    glyphs_of,
    rendered,
    shortened,
    table,
    tabular,
)
from shardc.render.markdown import code, row
from shardc.units import compact_beside, format_bytes, format_ms

_TABLES, _FLOWS = 20, 8  # shown to people
_LISTED = 200  # of each kind in a comment, which may have 65,536 characters
_WIDE, _NAME, _SHORT_NAME = 100, 24, 14  # columns from which names have more room, and what they have
_FIGURES = 44  # columns of a device's figures
_FIRST = (Change.ADDED, Change.REMOVED, Change.RESIZED)
_SIGNS = {Change.ADDED: "+", Change.REMOVED: "-"}
_STYLES = {Change.ADDED: "green", Change.REMOVED: "red"}


def summary_line(diff: PlanDiff, arrow: str = "->") -> str:
    """Everything in one line: tables, bytes, step time."""
    if not diff.differ:
        return "the plans are the same"
    counts = [f"{diff.count(change)} {change}" for change in Change if diff.count(change)]
    parts = []
    if not diff.shared and diff.tables:
        parts.append("the plans share no table")
    elif any(setting.what == "module" for setting in diff.settings):
        parts.append("the module is renamed")
    parts.append(", ".join(counts) if counts else "every table stays where it is")
    if diff.moved_bytes:
        parts.append(f"{format_bytes(diff.moved_bytes)} ({_percent(diff.moved_share)} of all shards) between devices")
    parts.append(_step(diff, arrow))
    return "; ".join(parts)


def diff_text(diff: PlanDiff, names: tuple[str, str], *, width: int, color: bool, unicode: bool) -> str:
    """What differs, for people.

    Args:
        diff: the difference.
        names: what the plans are called.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    glyphs, wide = glyphs_of(unicode), tabular(width)
    sections: list[RenderableType] = [
        Text(shown(f"{names[0]} {glyphs.arrow} {names[1]}"), "dim"),
        Text(summary_line(diff, glyphs.arrow), "bold"),
    ]
    if diff.settings:
        rows = table(("", "left"), ("", "left"))
        rows.show_header = False
        for what, old, new in diff.settings:
            rows.add_row(what, shown(f"{old} {glyphs.arrow} {new}"))
        sections += ["", rows]
    sections += [Text(note, "yellow") for note in _notes(diff)]
    if diff.tables:
        sections += ["", _tables(diff, glyphs, wide)]
    if diff.flows:
        sections += ["", _flows(diff, glyphs, width)]
    for rows in (_times(diff, glyphs, wide), _memory(diff, glyphs, wide)):
        rows.columns[-1].no_wrap = False  # names give way, figures do not
        if rows.row_count:
            sections += ["", rows]
    return rendered(sections, width=width, color=color)


def diff_json(diff: PlanDiff, names: tuple[str, str], warnings: Sequence[Diagnostic] = ()) -> str:
    """What differs, and how far to trust the plans' figures, for programs. Members are added, never renamed."""
    scores = [{"step_time_ms": plan.score.step_time_ms, "phases": plan.score.phases} for plan in (diff.old, diff.new)]
    return canonical_json(
        {
            "format": 1,
            "old": {"name": names[0], **scores[0]},
            "new": {"name": names[1], **scores[1]},
            "summary": summary_line(diff),
            "differ": diff.differ,
            "comparable": diff.comparable,
            "warnings": [{"code": found.code, "message": found.message, "help": found.help} for found in warnings],
            "shared_tables": diff.shared,
            "settings": [setting._asdict() for setting in diff.settings],
            "tables": [
                {
                    "name": changed.name,
                    "changes": list(map(str, changed.changes)),
                    "old": _placed_json(changed.old),
                    "new": _placed_json(changed.new),
                    "moved_bytes": changed.moved_bytes,
                }
                for changed in diff.tables
            ],
            "moved_bytes": diff.moved_bytes,
            "moved_share": diff.moved_share,
            "added_bytes": diff.added_bytes,
            "model_bytes": diff.model_bytes,
            "held_bytes": diff.held_bytes,
            "flows": [flow._asdict() for flow in diff.flows],
            "devices": [
                {
                    "rank": device.rank,
                    "old_ms": device.old_ms,
                    "new_ms": device.new_ms,
                    "old_memory_bytes": device.old_bytes,
                    "new_memory_bytes": device.new_bytes,
                    "time_explained_by": [share._asdict() for share in device.of_time],
                    "time_explained_by_spec": device.of_spec,
                    "memory_explained_by": [share._asdict() for share in device.of_memory],
                }
                for device in diff.devices
            ],
        }
    )


def diff_markdown(diff: PlanDiff, names: tuple[str, str], warnings: Sequence[Diagnostic] = ()) -> str:
    """What differs, as a comment of a pull request: a line, warnings, a small table, and the rest folded away."""
    arrow = "→"
    lines = [f"**{code(diff.new.model.name)}**: {summary_line(diff, arrow)}", ""]
    lines += [f"> **{found.code}** {code(found.message)}\n" for found in warnings]
    if not diff.differ:
        return "\n".join(lines).rstrip("\n") + "\n"
    lines += [
        row(("", *map(code, names), "")),
        "|---|---:|---:|---:|",
        *(row(cells) for cells in _figures(diff)),
        "",
    ]
    lines += [f"> {note}\n" for note in _notes(diff)]
    if diff.settings:
        lines += ["Changed: " + "; ".join(f"{what} {code(a)} {arrow} {code(b)}" for what, a, b in diff.settings), ""]
    if diff.tables:
        rows = [
            (code(c.name), ", ".join(c.changes), *_from_to(c), format_bytes(c.moved_bytes) if c.moved_bytes else "")
            for c in _by_bytes(diff)
        ]
        lines += _folded(f"{_count(len(rows), 'table')}", ("table", "change", "from", "to", "moves"), rows, right=1)
    if diff.flows:
        pairs = [(str(a), str(b), format_bytes(bytes)) for a, b, bytes in diff.flows]
        title = f"{format_bytes(diff.moved_bytes)} between {_count(len(pairs), 'pair')} of devices"
        lines += _folded(title, ("from device", "to device", "bytes"), pairs, right=3)
    devices = [device for device in diff.devices if _time_differs(device) or _memory_differs(device)]
    if devices:
        of_devices = [
            (
                str(device.rank),
                _from_to_ms(device, arrow),
                _of_spec(diff) if device.of_spec else _because(device.of_time, device.more_ms or 0.0, quoted=True),
                _from_to_bytes(device, arrow),
                _because(device.of_memory, device.more_bytes, quoted=True),
            )
            for device in devices
        ]
        header = ("device", "forward + backward", "because of", "memory", "because of")
        lines += _folded(_count(len(devices), "device"), header, of_devices, right=0)
    return "\n".join(lines).rstrip("\n") + "\n"


# --- Parts ------------------------------------------------------------------------------------------------------------


def _notes(diff: PlanDiff) -> Iterator[str]:
    costs = [plan.digests.cost for plan in (diff.old, diff.new)]
    if costs[0] != costs[1]:
        yield f"times are not comparable: they are by other costs ({costs[0]}, then {costs[1]})"
    elif not diff.comparable:
        yield "times are not comparable: the hardware profile is another"
    elif diff.old.digests.measurements != diff.new.digests.measurements:
        yield "times are by other local measurements"
    elif diff.old.digests.spec != diff.new.digests.spec:
        yield "the spec is another: tables that stay may cost more or less than before, which plans do not say"
    if not diff.shared and diff.tables:
        yield "no table has the same name in both plans: nothing is taken over, all weights are new"


def _step(diff: PlanDiff, arrow: str) -> str:
    old, new = diff.old.score.step_time_ms, diff.new.score.step_time_ms
    if diff.comparable and abs(new - old) <= STATED * old:
        return f"{format_ms(new)} a step as before"
    change = f" ({_signed(new / old - 1.0)})" if diff.comparable and old else ""
    return f"{format_ms(old)} {arrow} {format_ms(new)} a step{change or ', by other costs' * (not diff.comparable)}"


def _figures(diff: PlanDiff) -> Iterator[tuple[str, str, str, str]]:
    """The rows of the small table: what, before, after, change."""
    old, new = diff.old.score, diff.new.score
    change = _signed(new.step_time_ms / old.step_time_ms - 1.0) if old.step_time_ms and diff.comparable else ""
    yield "step time", format_ms(old.step_time_ms), format_ms(new.step_time_ms), change
    for name in dict.fromkeys([*old.phases, *new.phases]):
        before, after = old.phases.get(name, 0.0), new.phases.get(name, 0.0)
        if diff.comparable and abs(after - before) > STATED * max(old.step_time_ms, new.step_time_ms):
            yield name.replace("_", " "), format_ms(before), format_ms(after), f"{after - before:+.3g} ms"
    yield "balance", f"{old.balance:.2f}", f"{new.balance:.2f}", ""
    most = [max((device.memory_bytes for device in score.devices), default=0) for score in (old, new)]
    yield "fullest device", format_bytes(most[0]), format_bytes(most[1]), _signed_bytes(most[1] - most[0])
    yield "bytes that move", "", format_bytes(diff.moved_bytes), _percent(diff.moved_share)


def _by_bytes(diff: PlanDiff) -> list[TableChange]:
    """Tables: those that are new, gone or of another size, then those of which most bytes move."""

    def order(changed: TableChange) -> tuple[int, int, str]:
        first = changed.changes[0]
        return (_FIRST.index(first) if first in _FIRST else len(_FIRST), -changed.moved_bytes, changed.name)

    return sorted(diff.tables, key=order)


def _tables(diff: PlanDiff, glyphs: Glyphs, width: int) -> Table:
    rows = table(
        ("", "left"), ("table", "left"), ("change", "left"), ("from", "left"), ("to", "left"), ("moves", "right")
    )
    changed = _by_bytes(diff)
    longest = width if width > MOST else _NAME if width >= _WIDE else _SHORT_NAME
    for column in rows.columns[3:5]:
        column.no_wrap = False  # where a table goes is what it is about
    for entry in changed[:_TABLES]:
        first = entry.changes[0]
        name = shortened(shown(entry.name), longest, glyphs)
        old, new = (shortened(text, MOST, glyphs) for text in _from_to(entry))
        moves = format_bytes(entry.moved_bytes) if entry.moved_bytes else ""
        rows.add_row(_SIGNS.get(first, "~"), name, ", ".join(entry.changes), old, new, moves, style=_STYLES.get(first))
    if rest := changed[_TABLES:]:
        moved = sum(entry.moved_bytes for entry in rest)
        rows.add_row("", f"{glyphs.more} {len(rest)} more", "", "", "", format_bytes(moved) if moved else "")
    return rows


def _flows(diff: PlanDiff, glyphs: Glyphs, width: int) -> Table:
    """Bytes by pair of devices; where pairs are many, the largest."""
    rows = table(("from", "right"), ("to", "right"), ("bytes", "right"), ("", "left"))
    most = diff.flows[0].bytes
    for source, target, bytes in diff.flows[:_FLOWS]:
        length = max(1, round((filled(width) - 34) * bytes / max(most, 1)))
        rows.add_row(str(source), str(target), format_bytes(bytes), Text(glyphs.forward * length, "cyan"))
    if rest := diff.flows[_FLOWS:]:
        total = sum(flow.bytes for flow in rest)
        rows.add_row("", "", format_bytes(total), f"between {_count(len(rest), 'more pair')} of devices")
    return rows


def _times(diff: PlanDiff, glyphs: Glyphs, width: int) -> Table:
    rows = table(("device", "right"), ("forward + backward", "left"), ("", "right"), ("because of", "left"))
    found = [device for device in diff.devices if _time_differs(device)] if diff.comparable else []
    for device in _largest(found, [abs(device.more_ms or 0.0) for device in found]):
        if device is None:
            rows.add_row(glyphs.more, f"{len(found)} devices in all")
            continue
        more = "" if not (device.old_ms and device.more_ms) else _signed(device.more_ms / device.old_ms)
        style = "" if device.more_ms is None else "red" if device.more_ms > 0 else "green"
        because = _some_of(_because(device.of_time, device.more_ms or 0.0), width, glyphs)
        if device.more_ms is not None and not because:
            because = _of_spec(diff) if device.of_spec else "its tables are the same: what they cost is not"
        rows.add_row(str(device.rank), _from_to_ms(device, glyphs.arrow), Text(more, style), because)
    return rows


def _memory(diff: PlanDiff, glyphs: Glyphs, width: int) -> Table:
    rows = table(("device", "right"), ("memory", "left"), ("", "right"), ("because of", "left"))
    found = [device for device in diff.devices if _memory_differs(device)]
    for device in _largest(found, [abs(device.more_bytes) for device in found]):
        if device is None:
            rows.add_row(glyphs.more, f"{len(found)} devices in all")
            continue
        style = "red" if device.more_bytes > 0 else "green"
        because = _some_of(_because(device.of_memory, device.more_bytes), width, glyphs) or "buffers of its tables"
        more = Text(_signed_bytes(device.more_bytes), style)
        rows.add_row(str(device.rank), _from_to_bytes(device, glyphs.arrow), more, because)
    return rows


def _largest(devices: Sequence[DeviceChange], amounts: Sequence[float]) -> list[DeviceChange | None]:
    """Devices by rank; of many those that change most, and None for the others."""
    most, least = extremes(amounts)
    shown: list[DeviceChange | None] = [devices[position] for position in sorted(most)]
    return [*shown, None] if least else shown


def _time_differs(device: DeviceChange) -> bool:
    if device.more_ms is None:
        return device.old_ms != device.new_ms
    return abs(device.more_ms) > 5e-4 * max(device.old_ms or 0.0, device.new_ms or 0.0)  # what can be seen


def _memory_differs(device: DeviceChange) -> bool:
    return abs(device.more_bytes) > 5e-4 * max(device.old_bytes or 0, device.new_bytes or 0)


def _from_to_ms(device: DeviceChange, arrow: str) -> str:
    old, new = ("-" if ms is None else format_ms(ms) for ms in (device.old_ms, device.new_ms))
    return f"{old} {arrow} {new}"


def _from_to_bytes(device: DeviceChange, arrow: str) -> str:
    old, new = ("-" if bytes is None else format_bytes(bytes) for bytes in (device.old_bytes, device.new_bytes))
    return f"{old} {arrow} {new}"


def _because(shares: Sequence[Share], more: float, *, quoted: bool = False) -> str:
    """The tables that explain a change: what came or grew is +, what went or shrank is -."""
    sign = "+" if more > 0 else "-"
    return ", ".join(f"{sign} {code(share.table) if quoted else shown(share.table)}" for share in shares)


def _of_spec(diff: PlanDiff) -> str:
    """That a time has changed with the spec, rather than with what a device holds."""
    known = ", ".join(setting.what for setting in diff.recosted)
    return f"the spec: {known}" if known else "the spec"


def _some_of(tables: str, width: int, glyphs: Glyphs) -> str:
    """As many of the tables that explain a change as there is room for beside its figures, the first cut if need be."""
    room = width - _FIGURES
    first, *others = tables.split(", ")
    shown = shortened(first, room, glyphs)
    for other in others:
        if len(f"{shown}, {other}") > room:
            break
        shown += f", {other}"
    return shown


def _from_to(changed: TableChange) -> tuple[str, str]:
    """How a table is sharded and where, before and after, with its rows and columns if they matter."""
    plans = (changed.old, changed.new)
    sizes = [extent(placed) if placed and changed.changes[0] in _FIRST else None for placed in plans]
    rows = [size[0] for size in sizes if size]
    texts = [f"{compact_beside(size[0], rows)} x {size[1]} " if size else "" for size in sizes]
    old, new = (text + _placed(placed) if placed else "" for text, placed in zip(texts, plans, strict=True))
    return old, new


def _placed(placed: TablePlan) -> str:
    """How a table is sharded and where."""
    cached = f", {placed.cached:.0%} cached" if placed.cached < 1.0 else ""
    return f"{placed.sharding_type} {_ranges(placed.ranks)}{cached}"


def _placed_json(placed: TablePlan | None) -> dict[str, Any] | None:
    if placed is None:
        return None
    return {
        "sharding_type": placed.sharding_type,
        "compute_kernel": placed.compute_kernel,
        "ranks": list(placed.ranks),
        "pieces": len(placed.shards) or len(placed.ranks),
        "cached": placed.cached,
    }


def _ranges(ranks: Sequence[int]) -> str:
    """Ranks with runs joined, in the order of pieces: 0-3, 6."""
    runs = []
    for _, run in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        members = [rank for _, rank in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(runs)


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> list[str]:
    """A table that opens at a click; its last `right` columns are numbers."""
    left = len(header) - right
    lines = [f"<details><summary>{title}</summary>", "", row(header)]
    lines.append("|" + "---|" * left + "---:|" * right)
    lines += [row(cells) for cells in rows[:_LISTED]]
    if len(rows) > _LISTED:
        lines += ["", f"and {len(rows) - _LISTED} more"]
    return [*lines, "", "</details>", ""]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%" if share > 0 else "0%"


def _signed(share: float) -> str:
    return f"{share:+.1%}" if abs(share) >= 0.0005 else f"{share:+.2%}"


def _signed_bytes(count: int) -> str:
    return f"{'+' if count > 0 else '-' if count < 0 else ''}{format_bytes(abs(count))}"
