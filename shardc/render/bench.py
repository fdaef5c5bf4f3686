"""A comparison of strategies as a table for people, as JSON, and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from xml.sax.saxutils import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shardc.bench import REFERENCE, Comparison, Failure, Result, Spread, Summary
from shardc.render.layout import Glyphs, glyphs_of, rendered, table, tabular
from shardc.units import format_ms

FAILURES = {
    Failure.NOTHING_FITS: "found nothing that fits",
    Failure.OUT_OF_MEMORY: "out of memory",
    Failure.BREAKS_CONSTRAINTS: "breaks a constraint",
    Failure.NO_OPTION: "plan is no option",
    Failure.CRASHED: "crashed",
    Failure.INTERRUPTED: "interrupted",
}
"""Failures in plain words."""

_FORMAT = 1
_WITH_LEAST = 78  # columns

# --- Text -------------------------------------------------------------------------------------------------------------


def comparison_table(comparison: Comparison, *, width: int, color: bool, unicode: bool) -> str:
    """A comparison for people: of one problem every strategy's figures, of several their means.

    Args:
        comparison: what the benchmark found.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    glyphs, results = glyphs_of(unicode), comparison.results
    rows = _of_one(results[0], glyphs) if len(results) == 1 else _of_many(comparison, glyphs, tabular(width))
    sections: list[RenderableType] = [Text.assemble((comparison.title, "bold"), f"  {_what(comparison, glyphs)}"), ""]
    sections += [rows, ""]
    if failures := [Text(line, "yellow") for line in _failures(comparison)]:
        sections += [*failures, ""]
    sections.append(Text(comparison.machine, "dim"))
    return rendered(sections, width=width, color=color)


def _failures(comparison: Comparison) -> Iterator[str]:
    """A line for every strategy that failed: of one problem in detail, of several how often for which reason."""
    for number, summary in enumerate(comparison.summaries):
        reasons = [f"{count} {FAILURES[failure]}" for failure, count in summary.failures.items()]
        if len(comparison.results) == 1:
            reasons = [comparison.results[0].runs[number].detail]
        if summary.failures and summary.failures.keys() != {Failure.INTERRUPTED}:
            yield f"{summary.strategy} failed: {', '.join(reasons)}"


def _what(comparison: Comparison, glyphs: Glyphs) -> str:
    results, cut = comparison.results, ", interrupted" * comparison.interrupted
    if len(results) == 1:
        only = results[0]
        bound = f", bound {format_ms(only.bound_ms)}" if only.bound_ms else ""
        return f"{only.tables} tables on {only.devices} devices{bound}{cut}"
    compared = len(comparison.compared)
    if not all(summary.placed for summary in comparison.summaries):
        which = f"the {compared} placed by all that placed any"
    else:
        which = "all" if compared == len(results) else f"the {compared} that all placed"
    return f"{len(results)} problems{cut}; means over {which}; {glyphs.times} {_reference(comparison)}"


def _reference(comparison: Comparison) -> str:
    """What step times are ratios to."""
    return f"{REFERENCE}'s step time" if any(s.strategy == REFERENCE for s in comparison.summaries) else "the best"


def _of_one(result: Result, glyphs: Glyphs) -> Table:
    rows = table(
        ("strategy", "left"),
        ("step time", "right"),
        ("ratio", "right"),
        ("gap", "right"),
        ("balance", "right"),
        ("planning", "right"),
    )
    for run in sorted(result.runs, key=lambda run: math.inf if run.step_time_ms is None else run.step_time_ms):
        if run.step_time_ms is None or run.balance is None:
            if run.failure is not Failure.INTERRUPTED:
                rows.add_row(run.strategy, "failed", "", "", "", _seconds(run.seconds), style="dim")
        else:
            gap = result.gap(run.strategy)
            rows.add_row(
                run.strategy,
                format_ms(run.step_time_ms),
                f"{result.ratio(run.strategy):.3f}{glyphs.times}",
                "" if gap is None else f"{gap:.1%}",
                f"{run.balance:.2f}",
                _seconds(run.seconds),
                style="bold green" if run.step_time_ms == min(result.step_ms.values()) else "",
            )
    return rows


def _of_many(comparison: Comparison, glyphs: Glyphs, width: int) -> Table:
    wide = width >= _WITH_LEAST
    rows = table(
        ("strategy", "left"),
        ("ratio", "right"),
        *([("least", "right")] if wide else []),
        ("most", "right"),
        ("gap", "right"),
        ("balance", "right"),
        ("planning", "right"),
        ("placed", "right"),
    )
    ranked = sorted(comparison.summaries, key=lambda s: s.ratio.mean if s.ratio else math.inf)
    for summary in ranked:
        ratio = summary.ratio
        figures = ["", "", ""] if ratio is None else [f"{ratio.mean:.3f}{glyphs.times}", *_ends(ratio)]
        rows.add_row(
            summary.strategy,
            *(figures if wide else [figures[0], figures[2]]),
            f"{summary.gap.mean:.1%}" if summary.gap else "",
            f"{summary.balance.mean:.2f}" if summary.balance else "",
            _seconds(summary.seconds.mean) if summary.seconds else "",
            f"{summary.placed}/{len(comparison.results)}",
            style="bold green" if summary is ranked[0] and ratio else "" if summary.placed else "dim",
        )
    return rows


def _ends(spread: Spread) -> list[str]:
    return [f"{spread.least:.3f}", f"{spread.most:.3f}"]


def _seconds(seconds: float) -> str:
    return format_ms(1e3 * seconds) if seconds < 1.0 else f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"


# --- JSON -------------------------------------------------------------------------------------------------------------


def comparison_json(comparison: Comparison) -> str:
    """Everything that was found; figures that there are none of are null."""
    document = {
        "format": _FORMAT,
        "title": comparison.title,
        "machine": comparison.machine,
        "warnings": [{"code": d.code, "message": d.message} for d in comparison.warnings],
        "interrupted": comparison.interrupted,
        "compared": len(comparison.compared),
        "summary": [asdict(summary) for summary in comparison.summaries],
        "problems": [_problem(result) for result in comparison.results],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _problem(result: Result) -> dict[str, Any]:
    return {
        "problem": result.problem,
        "tables": result.tables,
        "devices": result.devices,
        "bound_ms": result.bound_ms,
        "runs": [
            asdict(run)
            | {
                "ratio": result.ratio(run.strategy) if run.failure is None else None,
                "gap": result.gap(run.strategy) if run.failure is None else None,
            }
            for run in result.runs
        ],
    }


# --- A picture --------------------------------------------------------------------------------------------------------

_WIDTH, _ROW, _TOP, _BOTTOM = 940, 34, 64, 58
_LEFT, _RIGHT = 164, 320
_PLANNING, _PLACED, _FAILURES = (_WIDTH - _RIGHT + offset for offset in (18, 92, 140))
_LOG_FROM = 4.0  # ratios: beyond, the axis is logarithmic

# Without a colour scheme to go by, as in some viewers, everything has contrast on white and on black alike.
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #6e7681 }
.title { font-size: 15px; font-weight: 600 }
.right { text-anchor: end } .middle { text-anchor: middle } .small { font-size: 11px }
.grid { stroke: #8b949e; stroke-opacity: 0.3 } .reach { stroke: #8b949e; stroke-width: 6; stroke-opacity: 0.45 }
.dot { fill: #6e7681 } .best { fill: #2da44e } .failed { fill: #cf5b56 }
.bound { stroke: #bf8700; stroke-width: 2 } .bound-text { fill: #bf8700 }
@media (prefers-color-scheme: light) { text { fill: #1f2328 } .failed { fill: #b42318 } .bound-text { fill: #7d5800 } }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .dot { fill: #adbac7 } .failed { fill: #ff7b72 } }
"""


def comparison_picture(comparison: Comparison) -> str:
    """A self-contained SVG without background: a dot for each strategy's mean step time, a bar from least to most.

    Beside it stand planning time and failures. What is compared, and the lower bound, are as in the table.
    """
    ranked = sorted(comparison.summaries, key=lambda s: s.ratio.mean if s.ratio else math.inf)
    bounds = [r.bound_ms / ms for r in comparison.compared if r.bound_ms and (ms := _reference_ms(r))]
    bound = sum(bounds) / len(bounds) if bounds else None
    axis = _Axis(ranked, bound)
    height = _TOP + _ROW * len(ranked) + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img">',
        f"<title>{escape(comparison.title)}: step time by strategy</title>",
        f"<style>\n{_STYLE}</style>",
        _text(16, 26, f"{comparison.title}: {_what(comparison, glyphs_of(True))}", "title"),
        _text(_PLANNING, _TOP - 12, "planning", "small"),
        _text(_PLACED, _TOP - 12, "placed", "small"),
    ]
    end = _TOP + _ROW * len(ranked)
    for tick in axis.ticks:
        lines.append(f'<path class="grid" d="M{axis.x(tick):.1f} {_TOP - 4}V{end}"/>')
        lines.append(_text(axis.x(tick), end + 16, f"{tick:g}×", "middle small"))
    if bound is not None:
        lines.append(f'<path class="bound" stroke-dasharray="4 3" d="M{axis.x(bound):.1f} {_TOP - 4}V{end}"/>')
        lines.append(_text(axis.x(bound), _TOP - 12, "lower bound", "middle small bound-text"))
    best = ranked[0].ratio.mean if ranked and ranked[0].ratio else None
    for number, summary in enumerate(ranked):
        lines += _row(summary, axis, _TOP + _ROW * number + _ROW // 2, len(comparison.results), best)
    lines.append(_text(16, height - 12, comparison.machine, "small"))
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


class _Axis:
    """Ratios as places on the x axis: linear, or logarithmic where they are far apart."""

    def __init__(self, summaries: list[Summary], bound: float | None) -> None:
        spreads = [s.ratio for s in summaries if s.ratio]
        low = min([1.0, *(s.least for s in spreads), *([] if bound is None else [bound])])
        high = max([1.0, *(s.most for s in spreads)])
        self._log = high / max(low, 1e-9) > _LOG_FROM
        if self._log:
            steps = [m * 10.0**e for e in range(-9, 10) for m in (1, 1.5, 2, 3, 5, 7)]
        else:
            size = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if s >= (high - low) / 7 or s == 0.5)
            first, last = math.floor(low / size + 1e-9) - 1, math.ceil(high / size - 1e-9) + 1
            steps = [round(number * size, 6) for number in range(first, last + 1)]
        self._low = max(s for s in steps if s <= low)
        self._high = min(s for s in steps if s >= high and s > self._low)
        self.ticks = [s for s in steps if self._low <= s <= self._high]

    def x(self, ratio: float) -> float:
        """Pixels from the left."""
        low, high, at = self._low, self._high, ratio
        if self._log:
            low, high, at = math.log(low), math.log(high), math.log(ratio)
        return _LEFT + (at - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _row(summary: Summary, axis: _Axis, y: int, problems: int, best: float | None) -> Iterator[str]:
    yield _text(_LEFT - 12, y + 4, summary.strategy, "right")
    ratio = summary.ratio
    if ratio:
        kind = "best" if ratio.mean == best else "dot"
        title = f"{summary.strategy}: mean {ratio.mean:.3f}×, {ratio.least:.3f}× to {ratio.most:.3f}×"
        least, most = axis.x(ratio.least), axis.x(ratio.most)
        yield f'<path class="reach" stroke-linecap="round" d="M{least:.1f} {y}H{most:.1f}"/>'
        yield f'<circle class="{kind}" cx="{axis.x(ratio.mean):.1f}" cy="{y}" r="6"><title>{title}</title></circle>'
    if summary.seconds:
        yield _text(_PLANNING, y + 4, _seconds(summary.seconds.mean))
    yield _text(_PLACED, y + 4, f"{summary.placed}/{problems}", "failed" if summary.failures else "")
    for line, (failure, count) in enumerate(summary.failures.items()):
        below = 4 + 12 * line - 6 * (len(summary.failures) - 1)
        yield _text(_FAILURES, y + below, f"{count} {FAILURES[failure]}", "small failed")


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{attribute}>{escape(text)}</text>'


def _reference_ms(result: Result) -> float | None:
    """Step time that ratios of a problem are to."""
    return result.step_ms.get(REFERENCE, min(result.step_ms.values(), default=0.0)) or None
