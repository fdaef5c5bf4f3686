"""`shardc check`."""

from __future__ import annotations

from shardc.cli.console import MeasureOption, QuietOption, SpecArguments, count, echo, measuring, report
from shardc.diagnostics import DiagnosticError


def check(specs: SpecArguments, measure: MeasureOption = False, quiet: QuietOption = False) -> int:
    """Check committed plans against their specs, hardware profiles and budgets.

    Compiles each spec again, in memory, and exits with 1 if its plan is missing, no longer fits the spec, is over the
    budget, or could be better.
    """
    from shardc.check.checks import check as check_plan
    from shardc.spec import load_spec
    from shardc.units import format_ms

    code, failed = 0, 0
    for spec in specs:
        try:
            loaded = load_spec(spec)
            with measuring(loaded, measure, quiet) as measured:
                found = check_plan(loaded, measured)
        except DiagnosticError as error:
            report(error)
            code, failed = max(code, error.exit_code), failed + 1
            continue
        if found.findings:
            report(DiagnosticError(*found.findings))
            code, failed = max(code, 1), failed + 1
        elif found.step_time_ms is not None and not quiet:
            gap = "" if found.gap is None else f"  gap {found.gap:.1%}"
            echo(f"ok {spec}  {format_ms(found.step_time_ms)}{gap}")
        if not quiet:
            for note in found.notes:
                echo(f"note: {spec}: {note}")
    if not quiet:
        echo(f"{count(len(specs), 'spec')} checked, {failed or 'none'} with findings")
    return code
