"""All checks of a committed plan, in the order in which their findings are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from shardc.check.balance import balance
from shardc.check.better_plan import better_plan
from shardc.check.compared import compared
from shardc.check.context import Context
from shardc.check.device_memory import device_memory
from shardc.check.device_time import device_time
from shardc.check.edited import edited
from shardc.check.gap import gap
from shardc.check.headroom import headroom
from shardc.check.moved import moved
from shardc.check.profile_changed import profile_changed
from shardc.check.spec_changed import spec_changed
from shardc.check.stated_figures import stated_figures
from shardc.check.step_time import step_time
from shardc.diagnostics import Diagnostic
from shardc.spec import BudgetSpec

CHECKS: tuple[Callable[[Context], Iterator[Diagnostic]], ...] = (
    edited,
    stated_figures,
    spec_changed,
    profile_changed,
    step_time,
    gap,
    balance,
    headroom,
    better_plan,
    moved,
    device_time,
    device_memory,
    compared,
)


def run_checks(context: Context) -> tuple[Diagnostic, ...]:
    """Findings of all checks, each as severe as the spec has it."""
    found = (finding for check in CHECKS for finding in check(context))
    return tuple(graded(found, context.loaded.spec.budget))


def graded(findings: Iterable[Diagnostic], budget: BudgetSpec) -> Iterator[Diagnostic]:
    """Yield findings with the severities that a spec gives their codes, without those that are off."""
    for finding in findings:
        grade = budget.grade(finding.code)
        if grade != "off":
            yield replace(finding, severity=grade)
