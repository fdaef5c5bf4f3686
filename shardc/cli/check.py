"""`shardc check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import MeasureOption, QuietOption, a_value, configure, count, echo, measuring, report
from shardc.diagnostics import Diagnostic, DiagnosticError, concise, shown

if TYPE_CHECKING:
    from shardc.check.context import CheckReport
    from shardc.check.find import Found
    from shardc.check.outcome import Outcome


class Format(StrEnum):
    """How findings are told."""

    FULL = "full"
    CONCISE = "concise"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"
    JUNIT = "junit"


PEOPLE = (Format.FULL, Format.CONCISE)
"""Formats that are told spec by spec."""

FormatOption = Annotated[Format, typer.Option("--format", help="How to tell what was found.")]


SpecsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SPEC...]", help="Spec files, folders or globs; the current folder unless given."),
]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a spec is checked for; it travels to other processes."""

    measure: bool
    frozen: bool
    base: str | None
    update: bool
    quiet: bool


def check(
    specs: SpecsArgument = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Compute nothing: is the plan of this spec, and does it keep the budget?")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REV|PATH",
            callback=a_value,
            help="Compare with the plans at a git revision or in a folder, each where it is now, or with one plan:"
            " a file, - for stdin, or REV:PATH. A revision comes before a file or folder of its name: that is ./NAME.",
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write a new plan where it is missing, wrong or could be better.")
    ] = False,
    format: FormatOption = Format.FULL,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Specs at a time; default: cores.")] = None,
    measure: MeasureOption = False,
    quiet: QuietOption = False,
) -> int:
    """Check committed plans against their specs, hardware profiles and budgets.

    Compiles each spec again, in memory, and exits with 1 if its plan is missing, no longer fits the spec, is over the
    budget, or could be better.
    """
    with stopping(format):
        if frozen and (update or measure):
            raise DiagnosticError(
                Diagnostic("SH902", "--frozen computes nothing: not with --update, --measure"), exit_code=2
            )
        found = named(specs)
        if base:
            _base_is_there(base, found.specs)
    wanted = _Wanted(measure, frozen, base, update, quiet)
    outcomes = []
    tell_unseen(found.unseen, format)
    for outcome in _outcomes(found.specs, wanted, 1 if measure else jobs):
        tell_findings(outcome, format)
        if format in PEOPLE and not quiet:
            _tell(outcome)
        outcomes.append(outcome)
    for outcome in map(_lone, found.lone):
        tell_findings(outcome, format)
        outcomes.append(outcome)
    return tell_end(outcomes, found.unseen, format, quiet)


def _lone(plan: str) -> Outcome:
    """A warning that a plan has no spec, told of the plan."""
    from shardc.check.outcome import Outcome
    from shardc.plan import default_spec_path

    message = f"{plan} has no spec: there is no {default_spec_path(plan)}"
    fix = "remove the plan, or restore its spec"
    return Outcome(plan, plan, 0, (Diagnostic("SH313", message, help=fix, severity="warning"),))


def _base_is_there(base: str, names: list[str]) -> None:
    """Make sure that there is a base, which all specs share.

    Raises:
        DiagnosticError: SH410, or SH902 when it is one plan for several specs; exit code 2.
    """
    from shardc.check.base import base_is_there
    from shardc.plan import default_plan_path

    base_is_there(base, [default_plan_path(name) for name in names])


def _outcomes(names: list[str], wanted: _Wanted, jobs: int | None) -> Iterator[Outcome]:
    """Check specs, several at a time, and yield what became of them in their order."""
    one = partial(_outcome, wanted=wanted)
    if len(names) < 2 or jobs == 1:
        yield from map(one, names)
        return
    from shardc.workers import as_done, cores

    _import(wanted.frozen)  # once, before the processes part
    done: dict[int, Outcome] = {}
    told = 0
    for number, outcome in as_done(one, names, jobs or cores(), "fork" if sys.platform == "linux" else "spawn"):
        done[number] = outcome
        while told in done:
            yield done.pop(told)
            told += 1


def _outcome(spec: str, wanted: _Wanted) -> Outcome:
    from shardc.check.outcome import Outcome
    from shardc.plan import default_plan_path

    path = default_plan_path(spec)
    try:
        found = _checked(spec, path, wanted)
    except DiagnosticError as error:
        return Outcome(spec, path, error.exit_code, error.diagnostics)
    code = 1 if found.failed else 0
    return Outcome(spec, path, code, found.findings, found.notes, found.step_time_ms, found.gap, found.updated)


def _checked(spec: str, path: str, wanted: _Wanted) -> CheckReport:
    from shardc.spec import load_spec

    loaded, base = load_spec(spec), None
    if wanted.base:
        from shardc.check.base import read_base

        base = read_base(wanted.base, path)
    if wanted.frozen:
        from shardc.check.frozen import check_frozen

        return check_frozen(loaded, base)
    from shardc.check.checks import check as check_plan

    with measuring(loaded, wanted.measure, wanted.quiet) as measured:
        return check_plan(loaded, measured, base=base, update=wanted.update)


def _import(frozen: bool) -> None:
    import shardc.check.frozen

    if not frozen:
        import shardc.check.checks  # noqa: F401


@contextmanager
def stopping(format: Format) -> Iterator[None]:
    """Tell machines too why nothing could be run; people are told wherever the error ends."""
    try:
        yield
    except DiagnosticError as error:
        if format not in PEOPLE:
            _tell_machine([], error.diagnostics, format)
        raise


def named(arguments: list[str] | None) -> Found:
    """Return the specs that are meant, and plans without one.

    Raises:
        DiagnosticError: as of `shardc.check.find.find`.
    """
    from shardc.check.find import find

    return find(arguments or ["."])


def tell_unseen(unseen: Sequence[Diagnostic], format: Format) -> None:
    """Show what was not looked at; nothing in a format for machines."""
    for finding in unseen if format in PEOPLE else ():
        exit_code = 2 if finding.severity == "error" else 1
        if format is Format.FULL:
            report(DiagnosticError(finding, exit_code=exit_code))
        else:
            echo(concise(finding), sys.stderr if exit_code == 2 else sys.stdout)


def tell_findings(outcome: Outcome, format: Format) -> None:
    """Show what is wrong with one spec; nothing in a format for machines, which is one text for all specs."""
    if format is Format.CONCISE:
        for finding in outcome.findings:
            where = "" if finding.location else f"{shown(outcome.spec)}: "
            echo(where + concise(finding), sys.stderr if outcome.exit_code == 2 else sys.stdout)
    elif format is Format.FULL and outcome.findings:
        report(DiagnosticError(*outcome.findings, exit_code=max(outcome.exit_code, 1)))


def tell_end(outcomes: list[Outcome], unseen: Sequence[Diagnostic], format: Format, quiet: bool) -> int:
    """Show what comes after the last spec, and return the exit code.

    In a format for machines that is everything; then, how many specs have findings.
    """
    from shardc.check.outcome import exit_code

    if format not in PEOPLE:
        _tell_machine(outcomes, unseen, format)
    if not quiet:
        echo(_summary(outcomes, unseen), sys.stdout if format in PEOPLE else sys.stderr)
    return exit_code(outcomes, unseen)


def _tell_machine(outcomes: list[Outcome], apart: Sequence[Diagnostic], format: Format) -> None:
    from shardc.render import findings

    # A file's name need not be UTF-8.
    configure(sys.stdout, encoding="utf-8", errors="backslashreplace")
    as_text = {
        Format.JSON: findings.as_json,
        Format.GITHUB: findings.as_github,
        Format.SARIF: findings.as_sarif,
        Format.JUNIT: findings.as_junit,
    }
    if text := as_text[format](outcomes, apart):
        echo(text, commands=format is Format.GITHUB)


def _tell(outcome: Outcome) -> None:
    from shardc.units import format_ms

    if outcome.updated:
        echo(shown(f"wrote {outcome.plan}: {outcome.updated}"))
    if outcome.exit_code == 0 and outcome.step_time_ms is not None:
        gap = "" if outcome.gap is None else f"  gap {outcome.gap:.1%}"
        echo(f"ok {shown(outcome.spec)}  {format_ms(outcome.step_time_ms)}{gap}")
    for note in outcome.notes:
        echo(shown(f"note: {outcome.spec}: {note}"))


def _summary(outcomes: list[Outcome], unseen: Sequence[Diagnostic]) -> str:
    """How many specs there are of each kind, each counted once, by its worst finding; apart, what is no spec."""
    specs = [outcome for outcome in outcomes if outcome.spec != outcome.plan]
    failed = sum(outcome.exit_code > 0 for outcome in specs)
    warned = sum(outcome.exit_code == 0 and bool(outcome.findings) for outcome in specs)
    written = sum(outcome.updated is not None for outcome in specs)
    lone = len(outcomes) - len(specs)
    parts = [f"{count(len(specs), 'spec')} checked", f"{failed or 'none'} with findings"]
    parts += [f"{warned} with warnings only"] * bool(warned) + [f"{count(written, 'plan')} written"] * bool(written)
    apart = [f"{count(lone, 'plan')} without a spec"] * bool(lone) + [f"{len(unseen)} not looked at"] * bool(unseen)
    return "; ".join([", ".join(parts), *apart])
