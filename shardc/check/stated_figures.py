"""SH310: a plan states other figures than it has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from shardc.check.context import STATED, Context
from shardc.check.edited import accepting
from shardc.diagnostics import Diagnostic
from shardc.plan import Plan, is_as_written

_NEGLIGIBLE = 1e-6  # a nanosecond, or a millionth of a share
_QUOTIENT = 3e-5  # of a share that is computed from two stated numbers


def stated_figures(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if stated figures contradict each other, or today's where nothing has changed since."""
    plan, today = context.plan, context.figures
    true, negligible = dict(_implied(plan)), _QUOTIENT
    same_costs = plan.digests.of_costs == today.digests.of_costs
    if not context.frozen and same_costs and plan.tool.version == today.tool.version:
        true = _numbers(today.model_dump(include={"score", "bound"}))
        negligible = _NEGLIGIBLE
    stated = _numbers(plan.model_dump(include={"score", "bound"}))
    wrong = [where for where in true if not _agree(stated.get(where), true[where], negligible)]
    if wrong or context.faults:
        message = context.faults[0].message if context.faults else ""
        if wrong:
            message = f"{context.path} states {wrong[0]} = {stated.get(wrong[0])}, truly {true[wrong[0]]:.6g}"
        more = max(len(wrong), len(context.faults)) - 1
        message += f" and {more} more" if more else ""
        at = None if wrong else context.faults[0].location
        way = "SH312 says how to go on" if is_as_written(context.text) is False else accepting(context)
        yield Diagnostic("SH310", message, at, help=f"figures are not edited by hand: {way}")


def _implied(plan: Plan) -> Iterator[tuple[str, float]]:
    """Yield the figures of a plan that follow from its others, whatever the costs."""
    score, bound = plan.score, plan.bound
    yield "score.step_time_ms", sum(score.phases.values())
    times = [(device.forward_ms, device.backward_ms) for device in score.devices]
    totals = [forward + backward for forward, backward in times if forward is not None and backward is not None]
    if totals and len(totals) == len(times) and max(totals) > 0:
        yield "score.balance", min(totals) / max(totals)
    if bound and bound.step_time_ms > 0:
        yield "bound.gap", max(0.0, score.step_time_ms / bound.step_time_ms - 1.0)


def _numbers(value: Any, where: str = "") -> dict[str, float]:
    """The numbers in nested data, by where they are."""
    if isinstance(value, dict):
        items = [(f"{where}.{key}".removeprefix("."), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {where: float(value)} if isinstance(value, int | float) else {}
    return {key: number for path, item in items for key, number in _numbers(item, path).items()}


def _agree(stated: float | None, true: float, negligible: float) -> bool:
    """Whether two numbers are one but for rounding; a gap close to 0 magnifies what is lost in the last digits."""
    return stated is not None and math.isclose(stated, true, rel_tol=STATED, abs_tol=negligible)
