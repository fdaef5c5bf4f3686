"""Reading the plan that is committed beside a spec."""

from __future__ import annotations

import shlex

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_text
from shardc.plan import Plan, default_plan_path, parse_plan, stray_link
from shardc.spec import LoadedSpec


def plan_path(loaded: LoadedSpec) -> str:
    """Where the plan of a spec is.

    Raises:
        ValueError: the spec was not read from a file.
    """
    if loaded.path is None:
        raise ValueError("only a spec that was read from a file has a committed plan")
    return default_plan_path(loaded.path)


def read_committed(loaded: LoadedSpec) -> tuple[str, Plan]:
    """The text of a spec's plan, and the plan.

    Raises:
        DiagnosticError: SH301 to SH303, or SH002 and SH003 where there is something that cannot be read (exit code 1).
    """
    path = plan_path(loaded)
    if link := stray_link(path, loaded.path or ""):
        raise DiagnosticError(link)
    try:
        text = read_text(path, "plan")
    except DiagnosticError as error:
        (finding,) = error.diagnostics
        if finding.code == "SH001":
            missing = f"{loaded.path} has no plan: there is no {path}"
            finding = Diagnostic("SH301", missing, help=f"run shardc compile {shlex.quote(loaded.path or '')}")
        raise DiagnosticError(finding) from None
    return text, parse_plan(path, text)
