"""`shardc validate`."""

from __future__ import annotations

from shardc.cli.check import (
    PEOPLE,
    Format,
    FormatOption,
    SpecsArgument,
    named,
    stopping,
    tell_end,
    tell_findings,
    tell_unseen,
)
from shardc.cli.console import QuietOption, count, echo
from shardc.diagnostics import DiagnosticError, shown


def validate(specs: SpecsArgument = None, format: FormatOption = Format.FULL, quiet: QuietOption = False) -> int:
    """Say whether specs are valid, and everything that is wrong where they are not."""
    from shardc.check.outcome import Outcome
    from shardc.plan import default_plan_path
    from shardc.spec import load_spec

    with stopping(format):
        found = named(specs)
    tell_unseen(found.unseen, format)
    outcomes = []
    for spec in found.specs:
        plan = default_plan_path(spec)
        try:
            loaded = load_spec(spec)
        except DiagnosticError as error:
            outcomes.append(Outcome(spec, plan, error.exit_code, error.diagnostics))
            tell_findings(outcomes[-1], format)
        else:
            outcomes.append(Outcome(spec, plan, 0))
            if format in PEOPLE and not quiet:
                tables, devices = count(len(loaded.tables), "table"), count(loaded.spec.cluster.devices, "device")
                echo(f"ok {shown(spec)}: {tables}, {devices}")
    return tell_end(outcomes, found.unseen, format, quiet or format in PEOPLE)
