"""`shardc compile`."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from shardc.cli.console import (
    EffortOption,
    ForceOption,
    MeasureOption,
    QuietOption,
    SetOption,
    SpecArgument,
    SpecSeedOption,
    a_value,
    configure,
    echo,
    in_color,
    in_unicode,
    may_write,
    measuring,
    not_an_input,
    tell,
    width,
)
from shardc.cli.search import searching
from shardc.diagnostics import Diagnostic, DiagnosticError, shown

if TYPE_CHECKING:
    from shardc.pipeline import Compiled
    from shardc.plan import Plan
    from shardc.spec import MoveBudget


_KEPT = ".interrupted"  # ends the name of what an interrupted search has found
_WITHOUT_BASE = 0.5  # share of the time limit for placing tables without the base, which comes before
_ENDED_EARLY = Diagnostic(
    "SH508",
    "the time limit ended the search: how far it gets in that time differs from run to run, and so may the plan",
    help="--effort fast searches less, and the same every time",
    severity="warning",
)


def compile(
    spec: SpecArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PLAN",
            help="Where the plan goes; default SPEC's name with .plan.json, or nowhere with --set; - for stdout.",
        ),
    ] = None,
    settings: SetOption = None,
    effort: EffortOption = None,
    seed: SpecSeedOption = None,
    measure: MeasureOption = False,
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="End local search then; costs, bound and first placements come before."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN",
            callback=a_value,
            help="Stay close to this plan: a file, - for stdin, or REV:PATH for a file of a git revision. Unless"
            " something has changed, the plan is the same, byte for byte.",
        ),
    ] = None,
    max_moved: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help="The most that may move from --base, for the fastest plan within it: 5% of all shards' bytes, or 2GiB."
            " Default: what is worth it, at most 2% if that is within 1% of the fastest plan.",
        ),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compile a spec to a sharding plan.

    Ctrl-C ends the search, and keeps the best plan so far beside the old one. With --set, a plan is only written where
    -o says: what would be otherwise does not replace what is. The exit code is 1 if the spec is not valid or nothing
    fits, 2 if an option is wrong, also a value of --set that a spec may not have.
    """
    from shardc.pipeline import run
    from shardc.placers.local_search import Ended
    from shardc.plan import default_plan_path, may_be_plan, plan_bytes
    from shardc.settings import parse_settings
    from shardc.spec import MoveBudget, load_spec

    loaded = load_spec(spec, parse_settings(settings))
    target = str(output) if output else default_plan_path(spec)
    what_if = bool(settings) and output is None
    not_an_input(target, "plan", loaded.files)
    if not what_if:
        own_place = output is None or os.path.abspath(target) == os.path.abspath(default_plan_path(spec))
        if own_place:
            _is_own_file(target, spec)
        may_write(target, force=force or own_place, own=may_be_plan)
        if target != "-":
            may_write(f"{target}{_KEPT}", force=force, own=may_be_plan)
    budget = _budget(max_moved, base) if max_moved is not None else MoveBudget()
    near = _read_base(base) if base else None
    previous = None if target == "-" else _existing_plan(target)
    with measuring(loaded, measure, quiet) as measured, searching(quiet, time_limit) as watch:
        try:
            compiled = run(
                loaded,
                seed=seed,
                effort=effort,
                measure=measured,
                base=near,
                budget=budget,
                watch=watch,
                watch_alone=watch.until(_WITHOUT_BASE) if near else None,
            )
        except Ended:
            old = f"; {shown(target)} is as it was" if os.path.exists(target) else ""
            echo(f"interrupted: there is no plan yet{old}", sys.stderr)
            raise typer.Exit(130) from None
    if watch.interrupted:
        if not what_if:
            _offer(compiled.plan, target)
        raise typer.Exit(130)
    if target == "-":
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(plan_bytes(compiled.plan).decode().removesuffix("\n"))
    elif not what_if:
        compiled.plan.save(target)
    if quiet:
        return
    tell((*compiled.warnings, *([_ENDED_EARLY] if watch.timed_out else [])))
    stream = sys.stderr if target == "-" else sys.stdout
    _summarise(compiled, None if what_if else previous, stream)
    if near:
        _say_what_moves(compiled, stream)
    if what_if:
        echo(f"\n{_compared(compiled.plan, previous, target)}no plan was written: -o FILE writes it")
    elif target != "-":
        echo(f"\nplan written to {shown(target)}")


def _is_own_file(plan: str, spec: Path) -> None:
    """Make sure that what is beside a spec, and is replaced unasked, is a plan's place and leads nowhere else.

    Raises:
        DiagnosticError: SH002 or SH004, exit code 2.
    """
    from shardc.plan import stray_link

    fault = stray_link(plan, spec) or stray_link(f"{plan}{_KEPT}", spec)
    if not fault and os.path.exists(plan) and not (os.path.isfile(plan) or os.path.isdir(plan)):
        fault = Diagnostic("SH004", f"cannot write {plan}: it is no regular file")
    if fault:
        raise DiagnosticError(replace(fault, help="-o names another file"), exit_code=2)


def _offer(plan: Plan, target: str) -> None:
    """Keep the best plan of an interrupted search in a file of its own, and say how to take it."""
    from shardc.units import format_ms

    if target == "-":
        return
    kept = f"{target}{_KEPT}"
    plan.save(kept)
    step_time = format_ms(plan.score.step_time_ms)
    old = f"{shown(target)} is as it was; " if os.path.exists(target) else ""
    echo(f"interrupted: {old}the best plan so far ({step_time} a step) is {shown(kept)}", sys.stderr)
    echo(shown(f"to take it: mv {shlex.quote(kept)} {shlex.quote(target)}"), sys.stderr)


def _compared(plan: Plan, present: Plan | None, path: str) -> str:
    """What would change in comparison to the plan that there is, if they can be compared."""
    from shardc.units import format_ms

    if present is None or present.digests.cost != plan.digests.cost or not present.score.step_time_ms:
        return ""
    now, then = present.score.step_time_ms, plan.score.step_time_ms
    return f"{path} states {format_ms(now)} a step; it would be {format_ms(then)}, {then / now - 1:+.1%}\n"


def _summarise(compiled: Compiled, previous: Plan | None, stream: TextIO) -> None:
    from shardc.render.summary import summary

    echo(summary(compiled, previous, width=width(stream), color=in_color(stream), unicode=in_unicode(stream)), stream)


def _say_what_moves(compiled: Compiled, stream: TextIO) -> None:
    from shardc.render.front import front_text

    if compiled.migration is None:
        echo("\nnothing has changed since the base was compiled: the plan is the base", stream)
        return
    text = front_text(compiled.migration, width=width(stream), color=in_color(stream), unicode=in_unicode(stream))
    echo("\n" + text, stream)


def _budget(text: str, base: str | None) -> MoveBudget:
    from shardc.spec import MoveBudget

    if base is None:
        raise typer.BadParameter("there is no --base that anything would move from", param_hint="'--max-moved'")
    budget = MoveBudget.parse(text)
    if budget is None:
        wanted = 'a percentage up to 100% such as "5%", or a size such as "2GiB"; 0 for nothing that need not move'
        raise typer.BadParameter(f"{text!r} is not {wanted}", param_hint="'--max-moved'")
    return budget


def _read_base(name: str) -> Plan:
    from shardc.given_plan import read_given

    return read_given(name)


def _existing_plan(path: str) -> Plan | None:
    """The plan that is about to be replaced; None if there is none that can be read."""
    from shardc.plan import read_plan

    if not os.path.isfile(path):  # a pipe would wait for a writer
        return None
    try:
        return read_plan(path)
    except DiagnosticError:
        return None
