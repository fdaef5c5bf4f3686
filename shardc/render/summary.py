"""The summary of a compile for people: what a step costs, what each device does, and why this plan was chosen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shardc.cost.model import PhasedCost
from shardc.passes.place import Choice, Outcome, Why
from shardc.pipeline import Compiled
from shardc.plan import DeviceScore, Plan
from shardc.problem import Floats
from shardc.render.layout import MOST, Glyphs, extremes, filled, glyphs_of, rendered, shortened, table, tabular
from shardc.render.words import OUTCOMES, WHY, device_counts, phase_name, rank_ranges
from shardc.shares import critical_ms
from shardc.units import compact, format_bytes, format_ms

_MAX_TABLES = 8
_NARROW = 12  # columns of headers where there is not much room
_NAME, _LEAST_NAME, _RANKS = 22, 10, 12  # columns of tables' names, and of ranks
_STATED = 1e-5  # relative: plans state six digits


def summary(compiled: Compiled, previous: Plan | None, *, width: int, color: bool, unicode: bool) -> str:
    """Summarise a compile.

    Args:
        compiled: the plan and the choice that led to it.
        previous: the plan that this one replaces.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    plan, glyphs = compiled.plan, glyphs_of(unicode)
    sections: list[RenderableType] = [_headline(plan, glyphs)]
    if previous:
        sections.append(_change(previous, plan, glyphs))
    if len(plan.score.phases) > 1:
        sections += ["", _phases(plan, glyphs, filled(width))]
    sections += ["", _devices(plan, glyphs, filled(width)), ""]
    if isinstance(compiled.choice.judge.cost, PhasedCost):
        sections += [_tables(compiled.choice, compiled.choice.judge.cost, plan, glyphs, tabular(width)), ""]
    sections += [f"{plan.chosen.strategy} was chosen: {WHY[Why(plan.chosen.reason)]}", _strategies(plan)]
    if count := len(compiled.warnings):
        sections += ["", Text(f"{count} warning{'s' * (count > 1)}", "yellow")]
    return rendered(sections, width=width, color=color)


def table_shares(choice: Choice, cost: PhasedCost) -> Floats:
    """What each table contributes to the compute time of the critical devices, float[T]; at most 1 in all.

    Critical are the costliest device of the forward and that of the backward pass, or of a step that is one phase.
    """
    z, computing = choice.judgement.z, list(cost.computing)
    of_tables = critical_ms(choice.judge.problem, cost, choice.placement, z)[computing].sum(axis=0)
    return np.asarray(of_tables / max(float(cost.device_ms(z)[:, computing].max(axis=0).sum()), 1e-300))


def _headline(plan: Plan, glyphs: Glyphs) -> RenderableType:
    tables, cluster, score = len(plan.plan[plan.model.module]), plan.cluster, plan.score
    hosts = f" on {cluster.hosts} hosts" if cluster.hosts > 1 else ""
    where = f"{tables} table{'s' * (tables > 1)} on {device_counts(cluster, glyphs.times)}{hosts}"
    where += ", TorchRec's estimates" * (plan.digests.cost == "torchrec")
    bound = (
        f"{plan.bound.gap:.1%} above the bound of {format_ms(plan.bound.step_time_ms)}" if plan.bound else "no bound"
    )
    rest = f", {bound}, balance {score.balance:.2f}"
    if score.step_time_p90_ms is not None:
        rest = f" (p90 {format_ms(score.step_time_p90_ms)}){rest}"
    return Group(
        Text.assemble((plan.model.name, "bold"), f"  {where}"),
        Text.assemble((f"{format_ms(score.step_time_ms)} a step", "bold green"), rest),
    )


def _change(previous: Plan, plan: Plan, glyphs: Glyphs) -> Text:
    """How the step time differs from that of the plan before."""
    old, new = previous.score.step_time_ms, plan.score.step_time_ms
    if previous.digests.cost != plan.digests.cost:
        return Text(f"the plan that it replaces states {format_ms(old)} by other costs ({previous.digests.cost})")
    if abs(new - old) <= _STATED * old:
        return Text(f"as fast as the plan that it replaces ({format_ms(old)})")
    faster = new < old
    change = f"{abs(new - old) / old:.1%} {'faster' if faster else 'slower'}" if old else "slower"
    since = ", but spec or profile have changed since" if previous.digests.of_costs != plan.digests.of_costs else ""
    line = f"{format_ms(old)} {glyphs.arrow} {format_ms(new)}"
    return Text(f"{line}, {change} than the plan that it replaces{since}", "green" if faster else "yellow")


def _phases(plan: Plan, glyphs: Glyphs, width: int) -> Table:
    """The phases of a step, one after the other on a common time axis."""
    rows = table(("phase", "left"), ("in a step", "left"), ("time", "right"), ("share", "right"))
    step, start = max(plan.score.step_time_ms, 1e-300), 0.0
    for name, ms in plan.score.phases.items():
        if ms > 0:
            glyph, style = (glyphs.backward, "blue") if name.startswith("backward") else (glyphs.forward, "cyan")
            bar = _bar(width - 44, (start / step, " ", ""), (ms / step, glyph, style))
            rows.add_row(phase_name(name), bar, format_ms(ms), f"{ms / step:.0%}")
            start += ms
    return rows


def _devices(plan: Plan, glyphs: Glyphs, width: int) -> Table:
    """Compute time and memory of the devices: all, or where they are many the costliest and the cheapest."""
    devices = plan.score.devices
    limit = _range([device.memory_limit_bytes for device in devices])
    in_hosts = [device.host_memory_limit_bytes for device in devices if device.host_memory_limit_bytes is not None]
    headers = ["device", f"forward {glyphs.forward} backward {glyphs.backward}", "time", f"memory of {limit}", ""]
    headers += [f"of {_range(in_hosts)} in its host"] if in_hosts else []
    costliest, cheapest = extremes(list(map(_compute_ms, devices)))
    longest = max(max(map(_compute_ms, devices)), 1e-300)
    most = max(len(format_bytes(byte)) for d in devices for byte in (d.memory_bytes, d.host_memory_bytes or 0))
    most_time = max(len(format_ms(_compute_ms(device))) for device in devices)
    bars = width - 34 - sum(len(header) + 2 for header in headers[5:])
    widths = [6, bars - bars * 3 // 8, most_time, bars * 3 // 8, most, most][: len(headers)]
    if sum(map(max, widths, map(len, headers))) + 2 * (len(headers) - 1) > width:  # bars give way, figures do not
        headers = ["\n".join(textwrap.wrap(header, _NARROW)) for header in headers]
        wide = [max(map(len, header.split("\n"))) for header in headers]
        taken = sum(max(widths[n], wide[n]) for n in range(len(headers)) if n not in (1, 3))
        bars = width - taken - 2 * (len(headers) - 1)
        widths[3] = max(bars * 3 // 8, wide[3])
        widths[1] = bars - widths[3]
    rows = table(*zip(headers, ("right", "left", "right", "left", "right", "right"), strict=False))
    for position, rank in enumerate([*costliest, *cheapest]):
        if cheapest and position == len(costliest):
            rows.add_row("", f"{glyphs.more} {len(devices) - len(costliest) - len(cheapest)} more")
        device = devices[rank]
        passes = (
            ((device.forward_ms or 0.0) / longest, glyphs.forward, "cyan"),
            ((device.backward_ms or 0.0) / longest, glyphs.backward, "blue"),
        )
        filled = device.memory_bytes / max(device.memory_limit_bytes, 1)
        style = "red" if filled > 0.95 else "yellow" if filled > 0.85 else "green"
        rows.add_row(
            str(device.rank),
            _bar(widths[1], *passes),
            format_ms(_compute_ms(device)),
            _bar(widths[3], (filled, glyphs.forward, style), (1.0 - filled, glyphs.track, "dim")),
            format_bytes(device.memory_bytes),
            *([format_bytes(device.host_memory_bytes or 0)] if in_hosts else []),
        )
    return rows


def _range(limits: Sequence[int]) -> str:
    """Bytes of the least and the most, or of all."""
    return " to ".join(format_bytes(limit) for limit in sorted({min(limits), max(limits)}))


def _compute_ms(device: DeviceScore) -> float:
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


def _tables(choice: Choice, cost: PhasedCost, plan: Plan, glyphs: Glyphs, width: int) -> Table:
    """The tables that take most of the critical devices' time."""
    headers = ["table", "rows", "dim", "pooling", "sharding", "ranks", "critical time"]
    found: list[list[str]] = []
    shares = table_shares(choice, cost)
    order = np.argsort(-shares, kind="stable")
    shown = [int(index) for index in order[:_MAX_TABLES] if shares[index] >= 0.001]
    for index in shown:
        info = choice.judge.problem.tables[index]
        placed = plan.plan[plan.model.module][info.name]
        found.append(
            [
                info.name,
                compact(info.rows),
                str(info.dim),
                f"{info.pooling:.4g}",
                placed.sharding_type + f", {placed.cached:.0%} cached" * (placed.cached < 1.0),
                shortened(rank_ranges(placed.ranks), MOST if width > MOST else _RANKS, glyphs),
                f"{shares[index]:.1%}",
            ]
        )

    room = width - sum(2 + max(map(len, column)) for column in list(zip(headers, *found, strict=True))[1:])
    if room < _LEAST_NAME:  # names give way, figures do not
        headers[-1] = headers[-1].replace(" ", "\n")
    rows = table(*((header, "left" if header in ("table", "sharding", "ranks") else "right") for header in headers))
    for name, *figures in found:
        rows.add_row(shortened(name, room if width > MOST else min(max(room, _LEAST_NAME), _NAME), glyphs), *figures)
    if (rest := len(shares) - len(shown)) > 0:
        others = max(0.0, 1.0 - float(shares[shown].sum()))
        rows.add_row(f"{glyphs.more} {rest} more", *[""] * 5, f"{others:.1%}")
    return rows


def _strategies(plan: Plan) -> Table:
    """Every strategy that was tried, the best first."""
    rows = table(("strategy", "left"), ("step time", "right"), ("", "left"))
    best = max(plan.score.step_time_ms, 1e-300)
    tried = sorted(plan.candidates, key=lambda c: float("inf") if c.step_time_ms is None else c.step_time_ms)
    for candidate in tried:
        outcome, ms = Outcome(candidate.reason), candidate.step_time_ms
        words = OUTCOMES[outcome].format(over=(ms or 0.0) / best - 1.0)
        style = "bold green" if outcome is Outcome.CHOSEN else "dim" if ms is None else ""
        rows.add_row(candidate.strategy, "" if ms is None else format_ms(ms), words, style=style)
    return rows


def _bar(width: int, *parts: tuple[float, str, str]) -> Text:
    """Parts of a bar as shares of its width, each with its character and style; a part above 0 is never invisible."""
    bar, end, cells = Text(), 0.0, 0
    for share, glyph, style in parts:
        end += share
        length = min(max(round(end * width) - cells, int(share > 0 and glyph != " ")), width - cells)
        bar.append(glyph * length, style)
        cells += max(length, 0)
    return bar
