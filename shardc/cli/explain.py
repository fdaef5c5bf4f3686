"""`shardc explain`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import QuietOption, SetOption, configure, echo, in_color, in_unicode, tell, width
from shardc.diagnostics import Diagnostic, DiagnosticError, shown

if TYPE_CHECKING:
    from shardc.plan import Plan
    from shardc.spec import LoadedSpec

_INFEASIBLE = {"SH201", "SH202", "SH203"}


class Format(StrEnum):
    """How an explanation is shown."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


def explain(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan (JSON), or a spec (TOML): its plan, or why it has none.")
    ],
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="Explain where this table is.")] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="SPEC", help="The plan's spec; default PLAN's name with .toml.")
    ] = None,
    settings: SetOption = None,
    format: Annotated[Format, typer.Option(help="How it is shown.")] = Format.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Say why a plan is as it is: what a step waits for, and what would help; or why a table is where it is.

    All figures are of today's spec and costs. What would help has been tried.
    """
    from shardc.explain import explain_plan, explain_table, situate
    from shardc.render.explain import explained_json, explained_markdown, explained_text

    read, loaded = _read(plan, spec, settings)
    try:
        situation = situate(read or _compiled(loaded, quiet), loaded)
    except DiagnosticError as error:
        if {found.code for found in error.diagnostics} <= _INFEASIBLE and format is not Format.TEXT:
            _tell_infeasible(error, format)
            raise typer.Exit(1) from None
        raise
    explained = explain_table(situation, table) if table is not None else explain_plan(situation)
    # That it is about another spec than the plan's own is part of what is said.
    tell([warning for warning in situation.warnings if not quiet or warning.code == "SH334"])
    configure(sys.stdout, encoding=None if format is Format.TEXT else "utf-8")
    match format:
        case Format.JSON:
            echo(explained_json(explained, situation.warnings))
        case Format.MARKDOWN:
            echo(explained_markdown(explained))
        case Format.TEXT:
            color, unicode = in_color(sys.stdout), in_unicode(sys.stdout)
            echo(explained_text(explained, width=width(), color=color, unicode=unicode))


def _read(path: Path, spec: Path | None, settings: list[str] | None) -> tuple[Plan | None, LoadedSpec]:
    """The plan, None for a spec that has none yet, and the spec.

    Raises:
        DiagnosticError: SH332, exit code 2, where nobody knows which spec the plan is of.
    """
    from shardc.given_plan import read_given
    from shardc.plan import default_plan_path, default_spec_path, stray_link
    from shardc.settings import parse_settings
    from shardc.spec import load_spec

    changed = parse_settings(settings)
    if path.suffix.lower() == ".toml" and spec is None:
        loaded = load_spec(path, changed)
        beside = default_plan_path(path)
        if link := stray_link(beside, path):
            raise DiagnosticError(link, exit_code=2)
        return (read_given(beside) if os.path.exists(beside) else None), loaded
    read = read_given(str(path))
    of_plan = str(spec) if spec else default_spec_path(path)
    if of_plan is None or not (spec or os.path.exists(of_plan)):
        missing = f"there is no {of_plan}" if of_plan else "it is not named after its spec"
        message = f"{path} is explained by its spec, and {missing}"
        raise DiagnosticError(Diagnostic("SH332", message, help="name the spec: --spec SPEC"), exit_code=2)
    return read, load_spec(of_plan, changed)


def _compiled(loaded: LoadedSpec, quiet: bool) -> Plan:
    """A plan of the spec, which has none that is committed."""
    from shardc.pipeline import run

    if not quiet:
        echo(f"{shown(str(loaded.path))} has no plan yet: this is what compiling it gives", sys.stderr)
    return run(loaded).plan


def _tell_infeasible(error: DiagnosticError, format: Format) -> None:
    from shardc.render.explain import infeasible_json, infeasible_markdown

    configure(sys.stdout, encoding="utf-8")
    form = infeasible_json if format is Format.JSON else infeasible_markdown
    echo(form(error.diagnostics))
