"""`shardc check --frozen`: a committed plan against its spec, without computing anything.

Nothing of this imports the placers: a folder full of specs is checked in the time that one compile takes to start.
"""

from __future__ import annotations

from dataclasses import replace

from shardc.check.context import Base, CheckReport, Context
from shardc.check.edited import edited, unsigned
from shardc.check.fit import misfit
from shardc.check.read import plan_path, read_committed
from shardc.check.run import run_checks
from shardc.check.stated_figures import stated_figures
from shardc.diagnostics import DiagnosticError
from shardc.hardware import devices_of, profile_digest
from shardc.passes.lower import lower_cluster
from shardc.plan import Digests
from shardc.spec import IndexFile, LoadedSpec


def check_frozen(loaded: LoadedSpec, base: Base | None = None) -> CheckReport:
    """Check that the plan beside a spec is of this spec, and that what it states keeps the budget.

    Args:
        loaded: a spec that was read from a file.
        base: an older plan to compare with.

    Raises:
        DiagnosticError: the hardware profile cannot be read (exit code 2).
    """
    path = plan_path(loaded)
    try:
        text, plan = read_committed(loaded)
        hardware = devices_of(loaded)
        cluster = lower_cluster(loaded, hardware)
    except DiagnosticError as error:
        if error.exit_code != 1:
            raise
        return CheckReport(path, error.diagnostics)
    recorded = any(isinstance(table.access, IndexFile) for table in loaded.tables)
    digests = Digests(
        spec=plan.digests.spec if recorded else loaded.digest(),
        profile=profile_digest(hardware, loaded),
        measurements=plan.digests.measurements,
        cost=loaded.spec.compile.cost,
        policy=plan.digests.policy,
    )
    context = Context(loaded, path, text, plan, figures=plan, digests=digests, base=base)
    if faults := misfit(plan, loaded, cluster, digests):
        if all(fault.code == "SH310" for fault in faults):
            faults = [*edited(context), *stated_figures(replace(context, faults=tuple(faults)))]
        return CheckReport(path, tuple(faults))
    findings = run_checks(context)
    notes = list(unsigned(plan))
    if recorded:
        notes.append("accesses are recorded in files, which --frozen does not read: the spec may have changed")
    return CheckReport(path, findings, tuple(notes), plan.score.step_time_ms, plan.bound.gap if plan.bound else None)
