"""`shardc diff`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from shardc.cli.console import configure, echo, in_color, in_unicode, tell, width
from shardc.diagnostics import Diagnostic, DiagnosticError

FORMS = "A plan: a file, - for stdin, or REV:PATH for a file of a git revision."
"""What names a plan."""

OldPlan = Annotated[str, typer.Argument(metavar="OLD", help=FORMS)]
NewPlan = Annotated[str, typer.Argument(metavar="NEW", help=FORMS)]


class DiffFormat(StrEnum):
    """How a difference is written."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


def diff(
    old: OldPlan,
    new: NewPlan,
    format: Annotated[
        DiffFormat, typer.Option(help="text for people, json for programs, markdown for a comment of a pull request.")
    ] = DiffFormat.TEXT,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if the plans differ.")] = False,
) -> int:
    """Say what differs between two plans: tables, bytes that move, and what becomes of the devices.

    Moved bytes are weights and optimizer state that a device does not hold and gets from another one. Without
    --exit-code the exit code is 0 whether the plans differ or not. Figures are those that the plans state; a plan that
    was edited is a warning.
    """
    from shardc.given_plan import STDIN, read_stated
    from shardc.plan_diff import diff as compare
    from shardc.render.diff import diff_json, diff_markdown, diff_text

    not_both_stdin(old, new)
    (before, warned), (after, warned_too) = read_stated(old), read_stated(new)
    found, warnings = compare(before, after), tuple(dict.fromkeys(warned + warned_too))
    tell(warnings)
    names = tuple("stdin" if name == STDIN else name for name in (old, new))
    match format:
        case DiffFormat.TEXT:
            stream = sys.stdout
            text = diff_text(
                found, (names[0], names[1]), width=width(), color=in_color(stream), unicode=in_unicode(stream)
            )
        case DiffFormat.JSON:
            text = diff_json(found, (names[0], names[1]), warnings)
        case DiffFormat.MARKDOWN:
            text = diff_markdown(found, (names[0], names[1]), warnings)
    if format is not DiffFormat.TEXT:
        configure(sys.stdout, encoding="utf-8", newline="\n")
    echo(text.removesuffix("\n"))
    return int(exit_code and found.differ)


def not_both_stdin(old: str, new: str) -> None:
    """Refuse to read two plans from one stdin.

    Raises:
        DiagnosticError: SH902, exit code 2.
    """
    if old == new == "-":
        raise DiagnosticError(Diagnostic("SH902", "stdin can be one of the plans, not both"), exit_code=2)
