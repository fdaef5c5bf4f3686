"""Checks of a committed plan: that it fits its spec, is as fast as it says, keeps the budget, and is still the best.

The spec is compiled again in memory, and the committed placement is weighed by the same judge under today's costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.passes.emit import emit
from shardc.passes.profile import Measure
from shardc.passes.restore import placement_of
from shardc.passes.verify import verify
from shardc.pipeline import Compiled, run
from shardc.plan import Plan, default_plan_path, read_plan
from shardc.spec import LoadedSpec
from shardc.units import format_ms

_STATED = 1e-5  # relative: plans state six digits
_NEGLIGIBLE = 1e-6  # a nanosecond, or a millionth of a share


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What became of checking one plan.

    Attributes:
        path: the plan.
        findings: what is wrong; nothing when the plan may stay.
        notes: what has changed without being wrong.
        step_time_ms: step time of the committed plan under today's costs; None if it cannot be weighed.
        gap: how far that is above its lower bound, as a share; None without a bound.
    """

    path: str
    findings: tuple[Diagnostic, ...]
    notes: tuple[str, ...] = ()
    step_time_ms: float | None = None
    gap: float | None = None


def check(loaded: LoadedSpec, measure: Measure | None = None) -> CheckReport:
    """Check the plan that is committed beside a spec.

    Args:
        loaded: a spec that was read from a file.
        measure: measures the spec's own shards (see `shardc.passes.profile`), for a plan that was compiled so.

    Raises:
        DiagnosticError: the spec cannot be compiled any more, or the plan file cannot be read (exit code 2).
    """
    if loaded.path is None:
        raise ValueError("only a spec that was read from a file has a committed plan")
    path = default_plan_path(loaded.path)
    try:
        plan = _read(path, loaded.path)
        compiled = run(loaded, measure=measure)
        if faults := misfits(plan, loaded, compiled):
            raise DiagnosticError(*faults)
        today = restate(plan, loaded, compiled)
    except DiagnosticError as error:
        if error.exit_code != 1:
            raise
        return CheckReport(path, error.diagnostics)
    same_costs = plan.digests.cost == today.digests.cost
    if same_costs and plan.digests.measurements and not today.digests.measurements:
        note = "the plan was compiled with --measure: it fits the spec, and its times are checked only with --measure"
        return CheckReport(path, (), (note,), plan.score.step_time_ms, plan.bound.gap if plan.bound else None)
    findings = (
        *stated_figures(path, plan, today),
        *step_time_budget(path, plan, today, loaded),
        *gap_budget(path, today, loaded),
        *better_plan(path, today, compiled.plan, loaded),
    )
    gap = today.bound.gap if today.bound else None
    return CheckReport(path, findings, tuple(changes(plan, today)), today.score.step_time_ms, gap)


def restate(plan: Plan, loaded: LoadedSpec, compiled: Compiled) -> Plan:
    """A plan's placement with today's digests, score and bound.

    Args:
        plan: a plan that has no `misfits`.
        loaded: its spec.
        compiled: the spec compiled today.

    Raises:
        DiagnosticError: SH308, see `shardc.passes.restore`.
    """
    judge, tool = compiled.choice.judge, compiled.plan.tool
    placement = placement_of(plan, judge.problem)
    choice = replace(compiled.choice, placement=placement, judgement=judge.judge(placement))
    return emit(loaded, choice, digests=compiled.plan.digests, seed=tool.seed)


# --- The checks: each looks at one thing ------------------------------------------------------------------------------


def misfits(plan: Plan, loaded: LoadedSpec, compiled: Compiled) -> list[Diagnostic]:
    """SH304 to SH310 where a plan does not fit its spec.

    A spec or a profile that has changed makes stated figures differ, which is no fault: they are weighed anew.
    """
    faults = verify(plan, loaded, compiled.choice.judge.problem.cluster)
    unchanged = plan.digests == compiled.plan.digests
    return [fault for fault in faults if unchanged or fault.code != "SH310"]


def stated_figures(path: str, plan: Plan, today: Plan) -> Iterator[Diagnostic]:
    """SH310 where a plan states other figures than it has, though what they are computed from has not changed."""
    if plan.digests != today.digests or plan.tool.version != today.tool.version:
        return
    stated, true = (_numbers(p.model_dump(include={"score", "bound"})) for p in (plan, today))
    wrong = [where for where in true if not _agree(stated.get(where), true[where])]
    if wrong:
        first, more = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        message = f"{path} states {first} = {stated.get(first)}, truly {true[first]:.6g}{more}"
        yield Diagnostic("SH310", message, help="a plan is not edited by hand: compile the spec again")


def step_time_budget(path: str, plan: Plan, today: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    """SH401 when a plan has become slower than it says by more than the budget, by the same kind of costs."""
    if plan.digests.cost != today.digests.cost:
        return
    stated, now = plan.score.step_time_ms, today.score.step_time_ms
    budget = loaded.spec.budget
    if now > stated * (1 + budget.step_time_fraction) * (1 + _STATED):
        slower = f"{now / stated - 1:.1%} more" if stated else "more"
        message = f"{path} takes {format_ms(now)} a step, {slower} than the {format_ms(stated)} that it states"
        fix = f"{budget.step_time} is allowed; see what changed, or {_recompile(loaded)}"
        yield Diagnostic("SH401", message, _budget_at(loaded, "step_time"), help=fix)


def gap_budget(path: str, today: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    """SH402 when a plan is further above its lower bound than the budget allows."""
    allowed = loaded.spec.budget.gap_fraction
    if allowed is not None and today.bound and today.bound.gap > allowed:
        bound = format_ms(today.bound.step_time_ms)
        message = (
            f"{path} is {today.bound.gap:.1%} above its lower bound of {bound}, {loaded.spec.budget.gap} is allowed"
        )
        fix = 'search longer (effort = "thorough"), allow more sharding types, or raise the budget'
        yield Diagnostic("SH402", message, _budget_at(loaded, "gap"), help=fix)


def better_plan(path: str, today: Plan, new: Plan, loaded: LoadedSpec) -> Iterator[Diagnostic]:
    """SH403 when compiling again gives a plan that is better by more than the budget."""
    committed, compiled = today.score.step_time_ms, new.score.step_time_ms
    budget = loaded.spec.budget
    if committed - compiled > committed * (budget.improvement_fraction + _STATED):
        better = f"{1 - compiled / committed:.1%} less than the {format_ms(committed)} of {path}"
        message = f"a newly compiled plan takes {format_ms(compiled)} a step, {better}"
        yield Diagnostic("SH403", message, _budget_at(loaded, "improvement"), help=_recompile(loaded))


def changes(plan: Plan, today: Plan) -> Iterator[str]:
    """What has changed since a plan was compiled."""
    if plan.digests.spec != today.digests.spec:
        yield "the spec has changed since its plan was compiled"
    if plan.digests.cost != today.digests.cost:
        yield f"the plan states its times by other costs ({plan.digests.cost}, now {today.digests.cost})"
    elif plan.digests.profile != today.digests.profile:
        yield "the hardware profile has changed since the plan was compiled"
    if plan.digests.measurements != today.digests.measurements:
        yield "the local measurements are not those that the plan was compiled with"


def _read(path: str, spec: str) -> Plan:
    try:
        return read_plan(path)
    except DiagnosticError as error:
        if error.diagnostics[0].code != "SH001":
            raise
        missing = Diagnostic("SH301", f"{spec} has no plan: there is no {path}", help=f"run shardc compile {spec}")
        raise DiagnosticError(missing) from None


def _budget_at(loaded: LoadedSpec, key: str) -> Location | None:
    """Where the spec sets a budget; None where it leaves it at its default."""
    return loaded.at("budget", key) if key in loaded.spec.budget.model_fields_set else None


def _recompile(loaded: LoadedSpec) -> str:
    return f"run shardc compile {loaded.path} and review the diff"


def _numbers(value: Any, where: str = "") -> dict[str, float]:
    """The numbers in nested data, by where they are."""
    if isinstance(value, dict):
        items = [(f"{where}.{key}".removeprefix("."), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {where: float(value)} if isinstance(value, int | float) else {}
    return {key: number for path, item in items for key, number in _numbers(item, path).items()}


def _agree(stated: float | None, true: float) -> bool:
    """Whether two numbers are one but for rounding; a gap close to 0 magnifies what is lost in the last digits."""
    return stated is not None and math.isclose(stated, true, rel_tol=_STATED, abs_tol=_NEGLIGIBLE)
