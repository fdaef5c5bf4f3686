"""`shardc validate`."""

from __future__ import annotations

from shardc.cli.console import QuietOption, SpecArguments, count, echo, report
from shardc.diagnostics import DiagnosticError


def validate(specs: SpecArguments, quiet: QuietOption = False) -> int:
    """Say whether specs are valid, and everything that is wrong where they are not."""
    from shardc.spec import load_spec

    code = 0
    for spec in specs:
        try:
            loaded = load_spec(spec)
        except DiagnosticError as error:
            report(error)
            code = max(code, error.exit_code)
        else:
            if not quiet:
                tables, devices = count(len(loaded.tables), "table"), count(loaded.spec.cluster.devices, "device")
                echo(f"ok {spec}: {tables}, {devices}")
    return code
