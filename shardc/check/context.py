"""What every check of a committed plan looks at, and what checking it comes to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from shardc.diagnostics import Diagnostic, Location
from shardc.plan import Digests, Plan
from shardc.spec import LoadedSpec

STATED = 1e-5
"""Relative: plans state six digits."""


@dataclass(frozen=True, slots=True)
class Base:
    """An older plan that a plan is compared with.

    Attributes:
        name: what to call it: a file, or a file at a git revision.
        plan: the older plan; None where there is no such file, or none that can be used.
        argument: what `shardc compile --base` reads it from.
        fault: why what is there cannot be used.
    """

    name: str
    plan: Plan | None
    argument: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """A committed plan that fits its spec, and what it is held against.

    Attributes:
        loaded: the spec.
        path: file of the plan.
        text: the document in it.
        plan: the same, read.
        figures: the plan with the figures that count: today's, or those that it states if nothing is computed.
        digests: of what a plan would be compiled from today.
        compiled: the spec compiled anew, within the budget of bytes that move; None if nothing is computed.
        base: what to compare with; None if nothing was named.
        faults: SH310 where stated figures are not those of the plan's shards.
    """

    loaded: LoadedSpec
    path: str
    text: str
    plan: Plan
    figures: Plan
    digests: Digests
    compiled: Plan | None = None
    base: Base | None = None
    faults: tuple[Diagnostic, ...] = ()

    @property
    def frozen(self) -> bool:
        """Whether nothing is computed: the plan's own figures are taken as they are."""
        return self.compiled is None

    @property
    def recompile(self) -> str:
        """The advice to compile the spec again, near the base if the budget wants that."""
        near = ""
        if self.before and self.has_limit("moved") and self.base:
            near = f" --base {shlex.quote(self.base.argument)} --max-moved {shlex.quote(self.allowed('moved'))}"
        return f"run shardc compile {shlex.quote(self.loaded.path or '')}{near} and review the diff"

    @property
    def before(self) -> Plan | None:
        """The older plan to compare with; None if there is none."""
        return self.base.plan if self.base else None

    @property
    def base_name(self) -> str:
        """What to call the base."""
        return self.base.name if self.base else "the base"

    def has_limit(self, name: str) -> bool:
        """Whether the budget has such a limit."""
        return getattr(self.loaded.spec.budget, name) is not None

    def limit(self, name: str) -> float | None:
        """A limit of the budget as a fraction; None where there is none."""
        return self.loaded.spec.budget.limit(name)

    def allowed(self, name: str) -> str:
        """A limit of the budget as it is written."""
        written = getattr(self.loaded.spec.budget, name)
        return written if isinstance(written, str) else f"{written:g}"

    def at(self, name: str) -> Location | None:
        """Where the spec sets a limit; None where it leaves it at its default."""
        return self.loaded.at("budget", name) if name in self.loaded.spec.budget.model_fields_set else None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What became of checking one plan.

    Attributes:
        path: the plan.
        findings: what is wrong, errors and warnings; nothing when the plan may stay.
        notes: what has changed without being wrong.
        step_time_ms: step time of the plan, under today's costs or as it states; None if it cannot be weighed.
        gap: how far that is above its lower bound, as a share; None without a bound.
        updated: why a new plan was written in place of the old one; None if none was.
    """

    path: str
    findings: tuple[Diagnostic, ...]
    notes: tuple[str, ...] = ()
    step_time_ms: float | None = None
    gap: float | None = None
    updated: str | None = None

    @property
    def failed(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)
