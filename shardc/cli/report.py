"""`shardc report`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import (
    ForceOption,
    QuietOption,
    a_value,
    configure,
    echo,
    files_of,
    may_write,
    not_an_input,
    tell,
)
from shardc.cli.diff import FORMS, not_both_stdin
from shardc.diagnostics import Diagnostic, DiagnosticError, shown

if TYPE_CHECKING:
    from shardc.contents import Contents
    from shardc.plan import Plan

_HEAD = 1024  # bytes of a file in which a report says what it is


def report(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help=FORMS)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="HTML",
            help="Where the page goes; default PLAN's name with .report.html, in this folder for a git revision's plan,"
            " and stdout (-) for one from stdin.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="OLD",
            callback=a_value,
            help="A plan to show the difference to, such as HEAD:model.plan.json; as PLAN.",
        ),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a page about a plan, to look at in a browser: one HTML file that needs nothing else.

    How the time of devices divides among tables is shown where the spec lies beside the plan.
    """
    from shardc.files import write_atomic
    from shardc.given_plan import read_stated
    from shardc.render.html import report_html

    if base:
        not_both_stdin(base, plan)
    read, warnings = read_stated(plan)
    old, warnings_of_old = read_stated(base) if base else (None, ())
    target = output or _target(plan)
    to_stdout = str(target) == "-"
    if not to_stdout:
        _may_write(target, plan, base, force)
    contents = _contents(read, plan)
    contents = replace(contents, warnings=tuple(dict.fromkeys((*warnings, *warnings_of_old, *contents.warnings))))
    if not quiet:
        tell(contents.warnings)
    page = report_html(read, contents, old)
    if to_stdout:
        configure(sys.stdout, encoding="utf-8", newline="\n")
        echo(page.removesuffix("\n"))
        return
    write_atomic(target, page.encode())
    if not quiet:
        echo(shown(f"report written to {target}"))


def _target(plan: str) -> Path:
    """Where the page goes unless somebody says."""
    from shardc.given_plan import STDIN, is_file

    if plan == STDIN:
        return Path(STDIN)
    path = Path(plan if is_file(plan) else os.path.basename(plan.partition(":")[2]))
    return path.with_name(path.name.removesuffix(".json").removesuffix(".plan") + ".report.html")


def _contents(plan: Plan, name: str) -> Contents:
    """What the devices hold, by the spec beside the plan if there is one that can be read."""
    from shardc.contents import contents, contents_alone
    from shardc.given_plan import is_file
    from shardc.plan import default_spec_path
    from shardc.spec import load_spec

    spec = default_spec_path(name) if is_file(name) else None
    if spec is None or not os.path.isfile(spec):
        where = f"there is no {spec}" if spec else "the spec of a plan that is no file named *.plan.json is not known"
        message = f"which tables take the time of devices is not shown: {where}"
        return contents_alone(plan, Diagnostic("SH340", message, severity="warning"))
    try:
        return contents(plan, load_spec(spec))
    except DiagnosticError as error:
        message = f"which tables take the time of devices is not shown: {spec} cannot be compiled"
        why = (replace(finding, severity="warning") for finding in error.diagnostics)
        return contents_alone(plan, Diagnostic("SH340", message, severity="warning"), *why)


def _may_write(target: Path, plan: str, base: str | None, force: bool) -> None:
    """Make sure that nothing is replaced but an older report, or what is to be replaced.

    Raises:
        DiagnosticError: SH902 where it is one of the plans, the spec or what that refers to, SH004 where it is another.
    """
    from shardc.render.html import MARK

    if target.exists():
        not_an_input(target, "report", files_of(plan) | ({base: "base"} if base else {}))
    may_write(target, force=force, own=lambda content: MARK in content[:_HEAD])
