"""Checks of a committed plan: that it fits its spec, is as fast as it says, keeps the budget, and is still the best.

The spec is compiled again in memory, and the committed placement is weighed by the same judge under today's costs.
"""

from __future__ import annotations

from dataclasses import replace

from shardc.check.better_plan import better_plan
from shardc.check.context import Base, CheckReport, Context
from shardc.check.edited import unsigned
from shardc.check.fit import misfit
from shardc.check.read import plan_path, read_committed
from shardc.check.run import run_checks
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import write_atomic
from shardc.judge import Judge
from shardc.passes.emit import emit
from shardc.passes.profile import Measure
from shardc.passes.restore import placement_of
from shardc.pipeline import Compiled, near, run
from shardc.plan import PROFILE_CHANGED, Plan, is_as_written, parse_plan, plan_bytes
from shardc.spec import LoadedSpec
from shardc.units import format_ms

_REPLACED = {"SH003", "SH301", "SH302", "SH304", "SH305", "SH306", "SH307", "SH308", "SH309", "SH310"}
"""Findings about a plan for which `update` compiles another: not SH303, which a newer shardc may read."""

_CURED = {"SH310", "SH312", "SH401", "SH406"}
"""Findings about what a plan states, which end when it is stated anew."""


def check(
    loaded: LoadedSpec, measure: Measure | None = None, *, base: Base | None = None, update: bool = False
) -> CheckReport:
    """Check the plan that is committed beside a spec.

    Args:
        loaded: a spec that was read from a file.
        measure: measures the spec's own shards (see `shardc.passes.profile`), for a plan that was compiled so.
        base: an older plan to compare with.
        update: write a new plan where the old one is missing, at fault or out of date, and report on the new one.

    Raises:
        DiagnosticError: the spec cannot be compiled any more, or another file than the plan cannot be read, or the
            plan cannot be written (exit code 2).
    """
    path = plan_path(loaded)
    try:
        text, plan = read_committed(loaded)
        compiled = run(loaded, measure=measure, known=plan)
        faults = misfits(plan, loaded, compiled)
        if any(fault.code != "SH310" for fault in faults):
            raise DiagnosticError(*faults)
        today = restate(plan, loaded, compiled)
    except DiagnosticError as error:
        if error.exit_code != 1:
            raise
        report = CheckReport(path, error.diagnostics)
        return _compile_instead(report, loaded, measure, base) if update else report
    same_costs = plan.digests.cost == today.digests.cost
    if same_costs and plan.digests.measurements and not today.digests.measurements:
        note = "the plan was compiled with --measure: it fits the spec, and its times are checked only with --measure"
        return CheckReport(
            path, tuple(faults), (note,), plan.score.step_time_ms, plan.bound.gap if plan.bound else None
        )
    anew, notes = _anew(compiled, loaded, base)
    context = Context(loaded, path, text, plan, today, today.digests, anew or today, base, tuple(faults))
    report = _report(context)
    report = replace(report, notes=report.notes + notes)
    if not update:
        return report
    if anew and any(better_plan(context)):
        was, now = today.score.step_time_ms, anew.score.step_time_ms
        return _write(context, anew, f"a step takes {format_ms(now)} instead of {format_ms(was)}")
    if anew and (over := [found for found in report.findings if found.code == "SH407"]):
        return _write(context, anew, f"{over[0].code} {over[0].message}")
    changed = plan.digests != today.digests or is_as_written(text) is not True
    if changed or _CURED & {f.code for f in report.findings}:
        return _write(context, today, "its placement stays, with today's figures")
    return report


def _compile_instead(
    report: CheckReport, loaded: LoadedSpec, measure: Measure | None, base: Base | None
) -> CheckReport:
    """Write a new plan where there is none that fits the spec; not in place of one that a newer shardc may read."""
    first = report.findings[0]
    if not all(finding.code in _REPLACED for finding in report.findings):
        return report
    plan, notes = _anew(run(loaded, measure=measure), loaded, base)
    if plan is None:
        return replace(report, notes=report.notes + notes)
    context = Context(loaded, report.path, "", plan, plan, plan.digests, plan, base)
    return _write(context, plan, f"{first.code} {first.message}")


def _anew(compiled: Compiled, loaded: LoadedSpec, base: Base | None) -> tuple[Plan | None, tuple[str, ...]]:
    """The plan that compiling gives, from the base and within the budget of moved bytes if there are both.

    None, and a note, where nothing was found within that budget.
    """
    budget = loaded.spec.budget.may_move
    if budget is None or base is None or base.plan is None:
        return compiled.plan, ()
    try:
        return near(compiled, loaded, base.plan, budget).plan, ()
    except DiagnosticError as error:
        (finding,) = error.diagnostics
        if finding.code != "SH321":
            raise
        return None, (f"{finding.message}; the budget allows to move {loaded.spec.budget.moved} from {base.name}",)


def _write(context: Context, plan: Plan, why: str) -> CheckReport:
    """Write a plan in place of the committed one, and report on it."""
    content = plan_bytes(plan)
    write_atomic(context.path, content)
    text = content.decode()
    written = parse_plan(context.path, text)
    return replace(_report(replace(context, text=text, plan=written, figures=plan)), updated=why)


def _report(context: Context) -> CheckReport:
    plan, today = context.plan, context.figures
    notes = [note for note in plan.digests.changes(today.digests) if note != PROFILE_CHANGED]  # SH406 says it
    notes += unsigned(plan)
    gap = today.bound.gap if today.bound else None
    return CheckReport(context.path, run_checks(context), tuple(notes), today.score.step_time_ms, gap)


def restate(plan: Plan, loaded: LoadedSpec, compiled: Compiled) -> Plan:
    """A plan's placement with today's score, bound and digests, but for that of the policy that took part in it.

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
    pessimistic = compiled.prepared.pessimistic
    p90_ms = Judge(judge.problem, pessimistic).judge(placement).step_time_ms if pessimistic else None
    digests = compiled.plan.digests.model_copy(update={"policy": plan.digests.policy})
    today = emit(loaded, choice, digests=digests, seed=tool.seed, p90_ms=p90_ms)
    return today.model_copy(update={"chosen": plan.chosen})


def misfits(plan: Plan, loaded: LoadedSpec, compiled: Compiled) -> list[Diagnostic]:
    """SH304 to SH310 where a plan does not fit its spec."""
    return misfit(plan, loaded, compiled.choice.judge.problem.cluster, compiled.plan.digests)
