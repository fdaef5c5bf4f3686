"""`shardc measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import QuietOption, count, echo, in_color, in_unicode, progress, tell, width
from shardc.diagnostics import Diagnostic, DiagnosticError

if TYPE_CHECKING:
    from shardc.calibration import Calibration


def measure(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that shardc compiled (JSON).")],
    spec: Annotated[
        Path | None, typer.Option(metavar="SPEC", help="The plan's spec; default PLAN's name with .toml.")
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Add what was measured to the profile in this folder, and learn it again."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Measure what a plan puts on each device, on this machine's, and compare it with the predictions.

    The device has to be of the plan's kind. Also says what a new compile would change if costs were as measured.
    """
    from shardc.calibration import calibrate_plan
    from shardc.given_plan import read_given
    from shardc.plan import default_spec_path
    from shardc.spec import load_spec

    path = spec or default_spec_path(plan)
    if path is None:
        message = f"{plan} is not named after its spec"
        raise DiagnosticError(Diagnostic("SH902", message, help="name the spec: --spec SPEC"), exit_code=2)
    read, loaded = read_given(str(plan)), load_spec(path)
    if update:
        from shardc.profiling import require_campaign

        require_campaign(update)  # refused before minutes are spent on measuring
    with progress(quiet) as advance:
        found = calibrate_plan(read, loaded, progress=advance)
    if not quiet:
        _show(found)
    if update:
        _update(update, found, quiet)


def _show(found: Calibration) -> None:
    from shardc.render.measured import measured_report

    tell(found.warnings)
    echo(measured_report(found, width=width(), color=in_color(sys.stdout), unicode=in_unicode(sys.stdout)))
    for note in found.notes:
        echo(f"note: {note}")


def _update(folder: Path, found: Calibration, quiet: bool) -> None:
    from shardc.passes.profile import inexact
    from shardc.profiling import add_measurements

    with progress(quiet) as advance:
        document, used = add_measurements(folder, found.timed, progress=advance)
    if not quiet:
        forward, backward = document.measured.errors.mean_relative_error
        echo(f"\n{folder}: {count(len(found.timed), 'measured set')} added, learned again")
        if left_out := len(found.timed) - used:
            echo(f"{left_out} of them left out: something else slowed the device down meanwhile")
        echo(f"mean error on held-out sets: {forward:.1%} forward, {backward:.1%} backward")
        tell(inexact(document.name, document.measured, None))
