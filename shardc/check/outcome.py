"""What became of one spec under a command that looks at several; it travels between processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardc.diagnostics import Diagnostic


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one spec.

    Attributes:
        spec: its file; that of the plan where a plan has no spec.
        plan: file of its plan.
        exit_code: 0 fine, 1 findings that are errors, 2 could not run.
        findings: errors and warnings.
        notes: what has changed without being wrong.
        step_time_ms: step time of its plan; None if it was not weighed.
        gap: how far that is above its lower bound, as a share; None without a bound.
        updated: why a new plan was written; None if none was.
    """

    spec: str
    plan: str
    exit_code: int
    findings: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()
    step_time_ms: float | None = None
    gap: float | None = None
    updated: str | None = None


def exit_code(outcomes: Iterable[Outcome], apart: Iterable[Diagnostic]) -> int:
    """Return the exit code of a command that came to these outcomes.

    Args:
        outcomes: one for each spec.
        apart: findings about no spec, of which an error says that something could not be run.
    """
    stopped = any(finding.severity == "error" for finding in apart)
    return 2 if stopped else max((outcome.exit_code for outcome in outcomes), default=0)
