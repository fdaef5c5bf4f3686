"""Explanations of a plan or a table: for a terminal, as JSON, and as Markdown for a review."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shardc.diagnostics import Diagnostic, shown
from shardc.explain import Alternative, BoundExplained, Cause, Constraint, PlanExplained, TableExplained
from shardc.render.layout import MOST, Glyphs, glyphs_of, rendered, shortened, table
from shardc.render.markdown import code, row
from shardc.render.words import phase_name
from shardc.units import format_bytes, format_ms

Explained = PlanExplained | TableExplained
Row = tuple[str, ...]
Columns = tuple[tuple[str, str], ...]

_FORMAT = 1
_BEST, _WORST = 4, 2  # devices that are listed
_TABLES = 2  # of a phase
_NAME = 20  # characters of a name in a terminal
_NEGLIGIBLE = 0.0005  # of the step time


@dataclass(frozen=True, slots=True)
class _Form:
    """What an explanation is written with.

    Attributes:
        glyphs: characters beyond letters.
        name: how what the spec calls something is put, and commands and changes that have names in them.
        longest: characters of a name in a column.
    """

    glyphs: Glyphs
    name: Callable[[str], str]
    longest: int = sys.maxsize


def explained_text(explained: Explained, *, width: int, color: bool, unicode: bool) -> str:
    """An explanation for people.

    Args:
        explained: of a plan or a table.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    sections: list[RenderableType] = []
    form = _Form(glyphs_of(unicode), shown, width if width > MOST else _NAME)
    for title, columns, rows in _sections(explained, form):
        if columns:
            made: Table = table(*columns)
            for cells in rows:
                made.add_row(*cells)
            made.columns[-1].no_wrap = False
            sections += ["", *([Text(title, "bold")] if title else []), made]
        else:
            sections += [*([""] if title else []), *([Text(title, "bold")] if title else []), *map(Text, _lines(rows))]
    return rendered(sections, width=width, color=color).lstrip("\n")


def explained_markdown(explained: Explained) -> str:
    """The same for a comment on a pull request."""
    lines: list[str] = []
    for title, columns, rows in _sections(explained, _Form(glyphs_of(True), code)):
        lines += [f"**{title}**", ""] if title else []
        if columns:
            lines.append(row(name for name, _ in columns))
            lines.append("|" + "|".join(" ---: " if justify == "right" else " --- " for _, justify in columns) + "|")
            lines += map(row, rows)
        else:
            lines += [f"{line}  " for line in _lines(rows)]
        lines.append("")
    return "\n".join(lines).rstrip()


def explained_json(explained: Explained, warnings: Sequence[Diagnostic]) -> str:
    """Everything that was found; figures that there are none of are null."""
    kind = "plan" if isinstance(explained, PlanExplained) else "table"
    document = {"format": _FORMAT, "warnings": _findings(warnings), kind: asdict(explained)}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def infeasible_json(findings: Sequence[Diagnostic]) -> str:
    """Why there is no plan."""
    return json.dumps({"format": _FORMAT, "infeasible": _findings(findings)}, indent=2, ensure_ascii=False)


def infeasible_markdown(findings: Sequence[Diagnostic]) -> str:
    """Why there is no plan, for a comment on a pull request."""
    lines = []
    for found in findings:
        at = f" ({found.location})" if found.location else ""
        lines += [f"- **{found.code}** {code(found.message + at)}"]
        lines += [f"  - {code(way)}" for way in (found.help or "").split("; or ") if way]
    return "\n".join(lines)


def _findings(diagnostics: Sequence[Diagnostic]) -> list[dict[str, object]]:
    return [
        {
            "code": found.code,
            "message": found.message,
            "at": str(found.location) if found.location else None,
            "help": found.help,
            "notes": list(found.notes),
        }
        for found in diagnostics
    ]


def _lines(rows: Sequence[Row]) -> list[str]:
    return ["".join(parts) for parts in rows]


def _sections(explained: Explained, form: _Form) -> Iterator[tuple[str, Columns, list[Row]]]:
    """What is said, one part after the other: a title, columns (none for plain lines), and rows."""
    return _of_plan(explained, form) if isinstance(explained, PlanExplained) else _of_table(explained, form)


# --- A plan -----------------------------------------------------------------------------------------------------------


def _of_plan(plan: PlanExplained, form: _Form) -> Iterator[tuple[str, Columns, list[Row]]]:
    over = "" if plan.feasible else "; it breaks limits of the spec as it is now"
    where = f"{plan.devices} {form.glyphs.times} {form.name(plan.device)}"
    yield "", (), [(f"{form.name(plan.model)}  {format_ms(plan.step_time_ms)} a step on {where}{over}",)]
    columns: Columns = (("phase", "left"), ("time", "right"), ("rank", "left"), ("slack", "right"))
    rows: list[Row] = []
    for phase in plan.phases:
        tied = phase.slack_ms <= _NEGLIGIBLE * phase.ms and len(phase.slowest) > 1
        slowest = ", ".join(str(rank) for rank, _ in phase.slowest[: 1 + tied])
        shares = [
            f"{form.name(shortened(name, form.longest, form.glyphs))} {ms / max(phase.ms, 1e-300):.0%}"
            for name, ms in phase.tables[:_TABLES]
        ]
        slack = "none" if tied or phase.slack_ms <= 0 else format_ms(phase.slack_ms)
        rows.append((phase_name(phase.name), format_ms(phase.ms), slowest, slack, ", ".join(shares)))
    yield "What a step waits for", (*columns, ("what of", "left")), rows
    waiting = sum(phase.ms - phase.mean_ms for phase in plan.phases)
    share = waiting / max(plan.step_time_ms, 1e-300)
    yield "", (), [(f"the average device waits {format_ms(waiting)} of it for slower ones ({share:.1%})",)]
    yield "How far from the best", (), list(_bound(plan.bound, form))
    if plan.helps:
        columns = (("change", "left"), ("step time", "right"), ("", "right"), ("shardc compile SPEC", "left"))
        rows = [
            (
                form.name(help.what),
                format_ms(help.step_time_ms),
                _change(help.step_time_ms, plan.step_time_ms),
                form.name(shlex.join(help.arguments)) if help.arguments else "",
            )
            for help in plan.helps
        ]
        yield "What would help, each tried", columns, rows
    elif plan.feasible:
        yield "What would help, each tried", (), [("nothing that was tried",)]
    if plan.idle:
        yield "", (), [("", "tried without effect: " + "; ".join(map(form.name, plan.idle)))]


def _bound(bound: BoundExplained, form: _Form) -> Iterator[Row]:
    yield (f"{bound.gap:.1%} above the lower bound of {format_ms(bound.step_time_ms)}: no plan is faster than that",)
    alone = f'"{form.name(bound.table)}" takes {format_ms(bound.table_ms)} by itself, however it is sharded'
    if bound.cause is Cause.LARGEST_TABLE:
        yield (f"the largest table makes it: {alone}",)
    else:
        yield (f"the work of all tables makes it, evenly spread; {alone}",)
    most = f"{phase_name(bound.phase)} takes most of it, {format_ms(bound.phase_ms)}"
    yield (most + f"; {format_ms(bound.fixed_ms)} are fixed costs of starting phases" * (bound.fixed_ms > 0),)


# --- A table ----------------------------------------------------------------------------------------------------------


def _of_table(explained: TableExplained, form: _Form) -> Iterator[tuple[str, Columns, list[Row]]]:
    here, glyphs = explained.here, form.glyphs
    size = f"{explained.rows:,} rows {glyphs.times} {explained.dim}, pooling {explained.pooling:.4g}"
    taken = explained.memory_bytes / max(explained.memory_limit_bytes, 1)
    lines = [
        f"{form.name(explained.name)}  {size}",
        f"{_way(here)} on {_where(here)}: {format_bytes(explained.memory_bytes)} of a device's "
        f"{format_bytes(explained.memory_limit_bytes)} ({taken:.1%})",
        f"{explained.share:.1%} of the critical compute time; of the {format_ms(explained.step_time_ms)} of a step:",
    ]
    phases = [f"{phase_name(name)} {format_ms(ms)}" for name, ms in explained.phases_ms.items()]
    lines.append("  " + (", ".join(phases) or "nothing: no phase waits for a device that holds it"))
    if explained.with_tables:
        lines.append(f"it goes with its group: {', '.join(map(form.name, explained.with_tables))}")
    yield "", (), [(line,) for line in lines]
    yield "Why here", (), [(line,) for line in _why(explained, form)]
    columns = (("all else as it is", "left"), ("ranks", "left"), ("step time", "right"), ("", "right"), ("", "left"))
    if explained.elsewhere:
        yield "On another device", columns, list(_listed(explained, explained.elsewhere, glyphs))
    others = len(explained.elsewhere)
    if others > 1:
        allowed = [w.step_time_ms or 0.0 for w in explained.elsewhere if w.obstacle is None and w.step_time_ms]
        if allowed:
            spread = f"{format_ms(min(allowed))} to {format_ms(max(allowed))}"
            yield "", (), [(f"{len(allowed)} of {others} other places are allowed, and take {spread}",)]
    rows = list(_by_type(explained, glyphs))
    rows += [(type, "", "", "", reason) for type, reason in explained.missing.items()]
    if rows:
        yield "Sharded in another way", columns, rows


def _why(explained: TableExplained, form: _Form) -> Iterator[str]:
    runner_up, now = explained.runner_up, explained.step_time_ms
    if runner_up is None or runner_up.step_time_ms is None:
        yield "nothing else is allowed"
    else:
        change = _change(runner_up.step_time_ms, now)
        what = f"{_way(runner_up)} on {_where(runner_up)}, {format_ms(runner_up.step_time_ms)} ({change})"
        better = runner_up.step_time_ms < now * (1 - 1e-6)
        yield f"{'faster would be' if better else 'nothing that is allowed is faster; runner-up:'} {what}"
    for constraint in explained.constraints:
        yield _constraint(constraint, now, form)


def _constraint(constraint: Constraint, now: float, form: _Form) -> str:
    best, given = constraint.best, form.name(constraint.what)
    if best is None or best.step_time_ms is None:
        return f"{given} keeps nothing away: without it there is no other place"
    what = f"{_way(best)} on {_where(best)}, {format_ms(best.step_time_ms)} ({_change(best.step_time_ms, now)})"
    if constraint.binding:
        setting = f": {form.name(f'--set {shlex.quote(constraint.setting)}')}" if constraint.setting else ""
        return f"binding: {given}; without it {what}{setting}"
    return f"{given} does not bind: the best other place without it is {what}"


def _listed(explained: TableExplained, ways: Sequence[Alternative], glyphs: Glyphs) -> Iterator[Row]:
    shown = list(ways)
    if len(shown) > _BEST + _WORST + 1:
        shown = [*ways[:_BEST], *ways[-_WORST:]]
    for number, way in enumerate(shown):
        if len(shown) < len(ways) and number == _BEST:
            yield (f"{glyphs.more} {len(ways) - len(shown)} more", "", "", "", "")
        yield _row(explained, way)


def _by_type(explained: TableExplained, glyphs: Glyphs) -> Iterator[Row]:
    """The best of each sharding type, and what there is beside it."""

    def kind(way: Alternative) -> tuple[str, bool]:
        return way.sharding_type, way.cached

    order = list(dict.fromkeys(map(kind, explained.otherwise)))
    ways = sorted(explained.otherwise, key=lambda way: order.index(kind(way)))
    for _, of_kind in groupby(ways, key=kind):
        best, *others = of_kind
        *figures, reason = _row(explained, best)
        if times := [way.step_time_ms for way in others if way.step_time_ms and way.obstacle is None]:
            pieces = ", ".join(str(way.pieces) for way in sorted(others, key=lambda way: way.pieces)[:4])
            pieces += glyphs.more * (len(others) > 4)
            reason = reason or f"in {pieces}: {format_ms(min(times))} and more"
        yield (*figures, reason)


def _row(explained: TableExplained, way: Alternative) -> Row:
    if way.step_time_ms is None:
        return (_way(way), "", "", "", way.obstacle or "")
    figures = (_way(way), _ranks(way.ranks), format_ms(way.step_time_ms))
    if way.obstacle is not None:  # a share beside it would read as if it could be had
        return (
            *figures,
            "",
            f"{'not allowed' if way.obstacle in ('pin', 'apart') else 'does not fit'}: {way.obstacle}",
        )
    runner_up = "runner-up" if way == explained.runner_up else ""
    return (*figures, _change(way.step_time_ms, explained.step_time_ms), runner_up)


def _way(way: Alternative) -> str:
    pieces = f" in {way.pieces}" if way.sharding_type in ("column_wise", "table_column_wise") else ""
    return way.sharding_type + pieces + ", cached" * way.cached


def _where(way: Alternative) -> str:
    shown = _ranks(way.ranks)
    return shown if shown.endswith("ranks") else f"rank{'s' * (len(way.ranks) > 1)} {shown}"


def _change(ms: float, now: float) -> str:
    return f"{ms / now - 1:+.1%}" if now else ""


def _ranks(ranks: Sequence[int]) -> str:
    """Ranks with runs joined, the first few of many."""
    runs = []
    for _, run in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        members = [rank for _, rank in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(runs) if len(runs) <= 6 else f"{len(ranks)} ranks"
