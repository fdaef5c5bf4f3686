"""SH304 to SH310: a plan does not fit its spec."""

from __future__ import annotations

from shardc.diagnostics import Diagnostic
from shardc.passes.verify import verify
from shardc.plan import Digests, Plan
from shardc.problem import Cluster
from shardc.spec import LoadedSpec


def misfit(plan: Plan, loaded: LoadedSpec, cluster: Cluster, digests: Digests) -> list[Diagnostic]:
    """Yield what keeps a plan from being one of its spec.

    A spec or a profile that has changed makes stated figures differ, which is no fault: they are weighed anew.

    Args:
        plan: the committed plan.
        loaded: its spec.
        cluster: the devices of the spec.
        digests: of what it would be compiled from today.
    """
    unchanged = plan.digests.of_costs == digests.of_costs
    return [fault for fault in verify(plan, loaded, cluster) if unchanged or fault.code != "SH310"]
