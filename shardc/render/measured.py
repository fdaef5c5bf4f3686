"""What measuring a plan found, for people: predictions beside measurements, and what these would change."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shardc.calibration import Calibration
from shardc.render.layout import Glyphs, extremes, glyphs_of, rendered, table
from shardc.units import format_ms

_MAX_NAMES = 5


def measured_report(found: Calibration, *, width: int, color: bool, unicode: bool) -> str:
    """Report on a measured plan.

    Args:
        found: what was measured, and what follows.
        width: columns of the output.
        color: whether the output shows colour.
        unicode: whether it shows more than ASCII.
    """
    glyphs = glyphs_of(unicode)
    sections: list[RenderableType] = [_headline(found, glyphs), "", _devices(found, glyphs), ""]
    sections += [_overall(found), "", _steps(found), "", _changes(found, glyphs)]
    placed = found.plan.plan[found.plan.model.module].values()
    if any(of_table.compute_kernel == "dense" for of_table in placed):
        sections += ["note: data-parallel tables were measured with sparse updates: TorchRec updates them densely"]
    return rendered(sections, width=width, color=color)


def _headline(found: Calibration, glyphs: Glyphs) -> Text:
    cluster = found.plan.cluster
    where = f"  {cluster.devices} {glyphs.times} {cluster.device}, measured on {found.device}"
    return Text.assemble((found.plan.model.name, "bold"), where)


def _devices(found: Calibration, glyphs: Glyphs) -> Table:
    """Both passes of the devices: all, or where they are many the costliest and the cheapest."""
    phase = (("predicted", "right"), ("error", "right"))
    rows = table(("device", "right"), ("forward", "right"), *phase, ("backward", "right"), *phase)
    predicted, measured = found.predicted_ms, found.measured_ms
    costliest, cheapest = extremes(np.where(np.isnan(measured), predicted, measured).sum(axis=1).tolist())
    for position, rank in enumerate([*costliest, *cheapest]):
        if cheapest and position == len(costliest):
            rows.add_row(glyphs.more, f"{len(measured) - len(costliest) - len(cheapest)} more")
        pairs = zip(predicted[rank].tolist(), measured[rank].tolist(), strict=True)
        cells = [cell for pair in pairs for cell in _cells(*pair)]
        rows.add_row(str(rank), *cells)
    return rows


def _cells(predicted: float, measured: float) -> tuple[str, str, str]:
    """What was measured, what was predicted, and how far the prediction is off."""
    if np.isnan(measured):
        return "too large", format_ms(predicted), ""
    return format_ms(measured), format_ms(predicted), f"{predicted / measured - 1:+.1%}" if measured else ""


def _overall(found: Calibration) -> Group:
    """Error, balance and the slowest device, of those that were measured, and how many were not."""
    known = np.flatnonzero(np.isfinite(found.measured_ms).all(axis=1))
    predicted, measured = found.predicted_ms[known], found.measured_ms[known]
    busy = (measured > 0).all(axis=1)
    forward, backward = np.abs(predicted[busy] / measured[busy] - 1).mean(axis=0)
    totals = measured.sum(axis=1), predicted.sum(axis=1)
    balance, expected = (ms.min() / ms.max() for ms in totals)
    slowest, expected_slowest = (f"{known[ms.argmax()]} with {format_ms(ms.max())}" for ms in totals)
    lines = [
        f"mean error {forward:.1%} forward, {backward:.1%} backward",
        f"balance {balance:.2f}, predicted {expected:.2f}",
        f"slowest device {slowest}, predicted {expected_slowest}",
    ]
    if missing := len(found.measured_ms) - len(known):
        lines.append(f"too large for the memory here, and left out: {missing} of {len(found.measured_ms)} devices")
    return Group(*lines)


def _steps(found: Calibration) -> Table:
    """Step times by both costs, of this plan and of the one that is best by each."""
    rows = table(("step time", "left"), ("this plan", "right"), ("compiled anew", "right"), ("", "right"))
    for name, (old, new) in (("predicted", found.predicted_steps_ms), ("corrected", found.corrected_steps_ms)):
        rows.add_row(name, format_ms(old), format_ms(new), f"{new / old - 1:+.1%}" if old else "")
    return rows


def _changes(found: Calibration, glyphs: Glyphs) -> Text:
    """What a compile by the corrected costs would change."""
    if not found.improves:
        return Text("with costs corrected by these measurements the plan stays the best known", "green")
    tables = len(found.plan.plan[found.plan.model.module])
    names = ", ".join([*found.moved[:_MAX_NAMES], *[glyphs.more] * (len(found.moved) > _MAX_NAMES)])
    less = f"{1 - found.corrected_steps_ms[1] / found.corrected_steps_ms[0]:.1%}"
    change = f"with costs corrected by these measurements a new compile takes {less} less"
    return Text(f"{change}: {len(found.moved)} of {tables} tables elsewhere ({names})", "yellow")
