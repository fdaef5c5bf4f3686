"""A sweep as a table for people, as JSON, CSV and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shardc.render.layout import Glyphs, filled, glyphs_of, rendered, table
from shardc.sweep import SCALING, Ranked, Sweep, series
from shardc.units import format_ms

_FORMAT = 1
_LEAST_BAR, _MOST_BAR, _BESIDE = 8, 40, 34  # columns
_SHORT = {"cluster.devices_per_host": "devices/host", "cluster.hosts": "hosts", "cluster.device": "device"}

# --- Text -------------------------------------------------------------------------------------------------------------


def sweep_table(sweep: Sweep, *, width: int, color: bool, unicode: bool) -> str:
    """A sweep for people: a row for each configuration that has a plan, and why others have none.

    Args:
        sweep: what was found.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    glyphs = glyphs_of(unicode)
    scaling = "global batch grows with devices" if sweep.weak else "global batch stays"
    done = f"{len(sweep.ranked)} of {sweep.planned}" if len(sweep.ranked) < sweep.planned else str(sweep.planned)
    head = Text.assemble((sweep.title, "bold"), f"  {done} configuration{'s' * (sweep.planned != 1)}; {scaling}")
    sections: list[RenderableType] = [head]
    if any(each.point.samples_per_s for each in sweep.ranked):
        sections += ["", _table(sweep), "", _chart(sweep, glyphs, filled(width))]
        sections += ["", Text(_legend(sweep), "dim")]
    if reasons := list(_reasons(sweep, glyphs)):
        sections += ["", *reasons]
    return rendered(sections, width=width, color=color)


def _shown(sweep: Sweep) -> list[str]:
    """What is varied, but for the number of devices: that has a column of its own."""
    scaling = [key for key in sweep.keys if key in SCALING]
    return [key for key in sweep.keys if key not in SCALING or len(scaling) > 1]


def _table(sweep: Sweep) -> Table:
    usable = [each for each in sweep.ranked if each.point.samples_per_s]
    priced = any(each.dollars_per_hour is not None for each in usable)
    names = [_SHORT.get(key, key) for key in _shown(sweep)]
    columns = [*((name, "right") for name in names), ("devices", "right"), ("step time", "right"), ("gap", "right")]
    columns += [("memory", "right"), ("efficiency", "right")]
    columns += [("$/hour", "right"), ("$/1e9", "right")] if priced else []
    rows = table(*columns)
    for each in usable:
        point = each.point
        rows.add_row(
            *(point.varied[key] for key in _shown(sweep)),
            str(point.devices),
            format_ms(point.step_time_ms or 0.0),
            "" if point.gap is None else f"{point.gap:.1%}",
            f"{point.memory or 0.0:.0%}",
            "" if each.efficiency is None else f"{each.efficiency:.0%}",
            *([_dollars(each.dollars_per_hour), _dollars(each.dollars_per_billion)] if priced else []),
            style="bold green" if each.fastest or each.cheapest else "",
        )
    return rows


def _chart(sweep: Sweep, glyphs: Glyphs, width: int) -> Table:
    """Throughput as bars."""
    usable = [each for each in sweep.ranked if each.point.samples_per_s]
    most = max(each.point.samples_per_s or 0.0 for each in usable)
    labels = [[*(each.point.varied[key] for key in _shown(sweep)), str(each.point.devices)] for each in usable]
    taken = sum(max(map(len, column)) + 2 for column in zip(*labels, strict=True))
    room = min(max(width - taken - _BESIDE, _LEAST_BAR), _MOST_BAR)
    names = [_SHORT.get(key, key) for key in _shown(sweep)]
    rows = table(*((name, "right") for name in (*names, "devices")), ("samples/s", "right"), ("", "left"), ("", "left"))
    for each, label in zip(usable, labels, strict=True):
        rate = each.point.samples_per_s or 0.0
        bar = Text(glyphs.forward * max(1, round(room * rate / most)), "cyan" if each.pareto else "dim")
        rows.add_row(*label, _rate(rate), bar, _marks(each))
    return rows


def _marks(each: Ranked) -> str:
    marks = ["fastest"] * each.fastest + ["cheapest"] * each.cheapest
    return " ".join([*(["*"] if each.pareto else []), *marks])


def _legend(sweep: Sweep) -> str:
    priced = any(each.dollars_per_billion is not None for each in sweep.ranked)
    than = "cheaper" if priced else "smaller"
    text = f"samples/s are of the embeddings alone. * no other is faster and {than}. memory: the fullest device's. "
    return text + "efficiency: samples/s a device, to the fewest devices" + ". $/1e9: of a billion samples" * priced


def _reasons(sweep: Sweep, glyphs: Glyphs) -> Iterator[Text]:
    for each in sweep.ranked:
        if found := each.point.reason:
            which = ", ".join(f"{_SHORT.get(key, key)} {value}" for key, value in each.point.varied.items())
            yield Text.assemble((f"{which}: ", "yellow"), f"{found.code} {found.message}")


def _rate(rate: float) -> str:
    """Samples a second with three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= 0.9995 * size:
            return f"{rate / size:.3g}{unit}"
    return f"{rate:.3g}"


def _dollars(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}" if amount < 999.5 else f"{amount:,.0f}"


# --- Data -------------------------------------------------------------------------------------------------------------


def sweep_json(sweep: Sweep) -> str:
    """Everything that was found; figures that there are none of are null."""
    document = {
        "format": _FORMAT,
        "title": sweep.title,
        "weak": sweep.weak,
        "planned": sweep.planned,
        "configurations": [_figures(each) | {"varied": dict(each.point.varied)} for each in sweep.ranked],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def sweep_csv(sweep: Sweep) -> str:
    """A row for each configuration; figures that there are none of are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [_figures(each) for each in sweep.ranked]
    writer.writerow([*sweep.keys, *(figures[0] if figures else [])])
    for each, row in zip(sweep.ranked, figures, strict=True):
        writer.writerow([*each.point.varied.values(), *("" if value is None else value for value in row.values())])
    return text.getvalue().removesuffix("\n")


def _figures(each: Ranked) -> dict[str, Any]:
    point = each.point
    rate = point.samples_per_s
    return {
        "devices": point.devices or None,
        "global_batch": point.global_batch or None,
        "step_time_ms": point.step_time_ms,
        "bound_ms": point.bound_ms,
        "gap": point.gap,
        "samples_per_s": rate,
        "samples_per_s_per_device": rate / point.devices if rate else None,
        "efficiency": each.efficiency,
        "memory": point.memory,
        "memory_headroom": None if point.memory is None else 1.0 - point.memory,
        "balance": point.balance,
        "dollars_per_hour": each.dollars_per_hour,
        "dollars_per_billion_samples": each.dollars_per_billion,
        "pareto": each.pareto,
        "fastest": each.fastest,
        "cheapest": each.cheapest,
        "reason": f"{point.reason.code} {point.reason.message}" if point.reason else None,
    }


# --- A picture --------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 84, 200, 64, 64
_COLOURS = ("#2da44e", "#0969da", "#bf8700", "#cf5b56", "#8250df", "#1b7c83", "#bc4c00", "#6e7781")
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #6e7681 } .title { font-size: 15px; font-weight: 600 }
.right { text-anchor: end } .middle { text-anchor: middle } .small { font-size: 11px }
.grid { stroke: #8b949e; stroke-opacity: 0.3 } .ideal { stroke-dasharray: 3 4; stroke-opacity: 0.6 }
.line { fill: none; stroke-width: 2 } .failed { stroke: #cf5b56; stroke-width: 2 }
@media (prefers-color-scheme: light) { text { fill: #1f2328 } }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
"""


def sweep_picture(sweep: Sweep) -> str:
    """A self-contained SVG without background: samples a second over devices, a line for each series.

    Dashed is what perfect scaling from the fewest devices would be; points that no other beats are filled, crosses are
    configurations without a plan.
    """
    usable = [each for each in sweep.ranked if each.point.samples_per_s]
    counts = sorted({each.point.devices for each in sweep.ranked if each.point.devices}) or [1]
    most = max((each.point.samples_per_s or 0.0 for each in usable), default=1.0)
    span = max(counts[-1] - counts[0], 1)
    bottom = _HEIGHT - _BOTTOM

    def x(devices: float) -> float:
        return _LEFT + 16 + (devices - counts[0]) / span * (_WIDTH - _LEFT - _RIGHT - 32)

    def y(rate: float) -> float:
        return bottom - rate / (1.08 * most) * (bottom - _TOP)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">',
        f"<title>{escape(sweep.title)}: samples a second by devices</title>",
        f"<style>\n{_STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(sweep.title)}: samples/s of the embeddings, by devices</text>',
    ]
    for part in range(5):
        rate = most * part / 4
        lines.append(f'<path class="grid" d="M{_LEFT} {y(rate):.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="right small" x="{_LEFT - 8}" y="{y(rate) + 4:.1f}">{_rate(rate)}</text>')
    shown = counts if len(counts) <= 12 else counts[:: -(-len(counts) // 12)]
    lines += [f'<text class="middle small" x="{x(n):.1f}" y="{bottom + 18}">{n}</text>' for n in shown]
    lines.append(f'<text class="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 42}">devices</text>')
    groups: dict[tuple[tuple[str, str], ...], list[Ranked]] = {}
    for each in usable:
        groups.setdefault(series(each.point), []).append(each)
    for number, (key, members) in enumerate(groups.items()):
        lines += _series(key, sorted(members, key=lambda each: each.point.devices), number, x, y, most)
    for each in sweep.ranked:
        if each.point.reason and each.point.devices:
            at = x(each.point.devices)
            title = escape(f"{each.point.reason.code} {each.point.reason.message}")
            cross = f"M{at - 5:.1f} {bottom - 5}l10 10m0 -10l-10 10"
            lines.append(f'<path class="failed" d="{cross}"><title>{title}</title></path>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _series(
    key: tuple[tuple[str, str], ...], members: list[Ranked], number: int, x: Any, y: Any, most: float
) -> Iterator[str]:
    """A line through the points that differ in how many devices there are, and its name."""
    colour = _COLOURS[number % len(_COLOURS)]
    points = [(each.point.devices, each.point.samples_per_s or 0.0) for each in members]
    first = points[0]
    name = ", ".join(value for _, value in key) or "as the spec says"
    for _, other in pairwise(points):
        ideal = min(first[1] * other[0] / first[0], 1.08 * most)
        devices = first[0] * ideal / first[1]
        yield (
            f'<path class="line ideal" stroke="{colour}" '
            f'd="M{x(first[0]):.1f} {y(first[1]):.1f}L{x(devices):.1f} {y(ideal):.1f}"/>'
        )
        break
    joined = " ".join(f"{x(devices):.1f},{y(rate):.1f}" for devices, rate in points)
    yield f'<polyline class="line" stroke="{colour}" points="{joined}"/>'
    for each, (devices, rate) in zip(members, points, strict=True):
        fill = colour if each.pareto else "none"
        title = escape(f"{name}, {devices} devices: {_rate(rate)} samples/s, {format_ms(each.point.step_time_ms or 0)}")
        yield (
            f'<circle cx="{x(devices):.1f}" cy="{y(rate):.1f}" r="5" stroke="{colour}" stroke-width="2" fill="{fill}">'
            f"<title>{title}</title></circle>"
        )
    top = _TOP + 20 * number
    yield f'<path class="line" stroke="{colour}" d="M{_WIDTH - _RIGHT + 16} {top}h20"/>'
    yield f'<text class="small" x="{_WIDTH - _RIGHT + 42}" y="{top + 4}">{escape(name)}</text>'
