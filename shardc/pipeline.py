"""All wiring in one place: TOML file -> Spec -> Problem -> CostModel -> Placement -> Plan."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardc.cost.model import CostModel
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import PROFILES, Hardware, devices_of
from shardc.judge import Judge
from shardc.passes.emit import emit
from shardc.passes.infeasible import Origin
from shardc.passes.lower import lower
from shardc.passes.place import Choice, place
from shardc.passes.profile import Measure, profile
from shardc.passes.verify import verify, wide_caches
from shardc.placers.local_search import Watch
from shardc.placers.policy import Policy, load_policy
from shardc.plan import Digests, Plan
from shardc.spec import Bins, IndexFile, LoadedSpec, load_spec, parse_spec

SpecLike = str | os.PathLike[str] | Mapping[str, Any] | LoadedSpec
POLICY = PROFILES / "policy.safetensors"
PEERS = {kind: PROFILES / f"{kind}.safetensors" for kind in ("autoshard", "dreamshard")}
"""Weights of the papers' policies, which only take part in benchmarks."""


@dataclass(frozen=True)
class Prepared:
    """A problem and its costs, before anything is placed.

    Attributes:
        judge: the problem under its cost model.
        digests: of what they were made from.
        warnings: how far to trust the costs.
        pessimistic: the cost model of the times that nine of ten devices stay below, if the profile tells.
        hardware: the profiles that the spec names, in the order of their first host.
        recorded: bins of the tables whose accesses were read from an index file.
    """

    judge: Judge
    digests: Digests
    warnings: tuple[Diagnostic, ...]
    pessimistic: CostModel | None
    hardware: tuple[Hardware, ...]
    recorded: Mapping[str, Bins]


@dataclass(frozen=True)
class Compiled:
    """A plan and what led to it.

    Attributes:
        plan: the verified plan.
        choice: the outcome of the placement pass.
        warnings: how far to trust it.
        pessimistic: the cost model of the times that nine of ten devices stay below, if the profile tells.
    """

    plan: Plan
    choice: Choice
    warnings: tuple[Diagnostic, ...]
    pessimistic: CostModel | None = None


def compile(spec: SpecLike, cost: CostModel | None = None, seed: int | None = None) -> Plan:
    """Compile a spec to a plan.

    Args:
        spec: path of a TOML file, its content as a mapping, or a loaded spec.
        cost: any object with `encode` and `score` (see `shardc.cost.model`); None for what the spec says.
        seed: of every random choice; None for the spec's own (0 unless it says otherwise).

    Raises:
        DiagnosticError: everything that is wrong with the spec, or that makes it infeasible.
    """
    return run(load(spec), cost=cost, seed=seed).plan


def load(spec: SpecLike) -> LoadedSpec:
    """A validated spec, from whatever names or holds it."""
    if isinstance(spec, LoadedSpec):
        return spec
    return parse_spec(spec) if isinstance(spec, Mapping) else load_spec(spec)


def run(
    loaded: LoadedSpec,
    *,
    cost: CostModel | None = None,
    seed: int | None = None,
    effort: str | None = None,
    measure: Measure | None = None,
    watch: Watch = lambda done, step_ms: True,
) -> Compiled:
    """The five passes.

    Args:
        loaded: the validated spec.
        cost: a cost model instead of the one that the spec names.
        seed: instead of the spec's.
        effort: instead of the spec's.
        measure: measures the spec's own shards (see `shardc.passes.profile`).
        watch: told of the search for a placement as it goes on, and may end it.
    """
    seed = loaded.spec.compile.seed if seed is None else seed
    prepared = prepare(loaded, cost=cost, measure=measure)
    problem = prepared.judge.problem
    policy, missing = find_policy(loaded, prepared.hardware)
    effort = effort or loaded.spec.compile.effort
    origin = Origin(loaded, prepared.hardware, prepared.recorded)
    choice = place(problem, prepared.judge.cost, policy=policy, effort=effort, seed=seed, origin=origin, watch=watch)
    p90_ms = None
    if prepared.pessimistic:
        p90_ms = Judge(problem, prepared.pessimistic).judge(choice.placement).step_time_ms
    plan = emit(loaded, choice, digests=prepared.digests, seed=seed, p90_ms=p90_ms)
    if faults := verify(plan, loaded, problem.cluster):
        raise DiagnosticError(Diagnostic("SH901", "the emitted plan does not verify"), *faults, exit_code=2)
    warnings = (*prepared.warnings, *wide_caches(plan, loaded, problem.cluster), *missing)
    return Compiled(plan, choice, warnings, prepared.pessimistic)


def prepare(loaded: LoadedSpec, *, cost: CostModel | None = None, measure: Measure | None = None) -> Prepared:
    """The passes before placement; the arguments are those of `run`."""
    hardware = devices_of(loaded)
    recorded = read_recorded_accesses(loaded)
    problem = lower(loaded, hardware, recorded)
    spec = _digest(loaded, recorded)
    if cost is not None:
        digests = Digests(spec=spec, profile=None, measurements=None, cost="own")
        return Prepared(Judge(problem, cost), digests, (), None, hardware, recorded)
    profiled = profile(problem, hardware, loaded, measure)
    measured = profiled.measured
    digests = Digests(
        spec=spec,
        profile=profiled.digest,
        measurements=None if measured is None else "sha256:" + hashlib.sha256(measured.tobytes()).hexdigest(),
        cost=loaded.spec.compile.cost,
    )
    judge = Judge(problem, profiled.cost)
    return Prepared(judge, digests, profiled.warnings, profiled.pessimistic, hardware, recorded)


def place_again(compiled: Compiled, loaded: LoadedSpec, cost: CostModel) -> Choice:
    """Place the tables of a compiled spec once more, under other costs.

    Args:
        compiled: the spec compiled.
        loaded: the spec.
        cost: instead of the cost model that it was compiled with.
    """
    problem, how = compiled.choice.judge.problem, loaded.spec.compile
    policy, _ = find_policy(loaded, devices_of(loaded))
    return place(problem, cost, policy=policy, effort=how.effort, seed=how.seed)


def device_of(loaded: LoadedSpec) -> Hardware:
    """The one hardware profile that a spec names, for what can only be done on one kind of device.

    Raises:
        DiagnosticError: SH503 when hosts have different devices.
    """
    hardware = devices_of(loaded)
    if len(hardware) > 1:
        message = f"the hosts have different devices ({', '.join(h.name for h in hardware)}); one kind can be measured"
        raise DiagnosticError(Diagnostic("SH503", message, loaded.at("cluster", "host")))
    return hardware[0]


def _digest(loaded: LoadedSpec, recorded: Mapping[str, Bins]) -> str:
    """Digest of the spec and of the recorded accesses that it refers to."""
    if not recorded:
        return loaded.digest()
    content = repr((loaded.digest(), sorted((name, bins.shares) for name, bins in recorded.items())))
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def find_policy(loaded: LoadedSpec, hardware: Sequence[Hardware]) -> tuple[Policy | None, tuple[Diagnostic, ...]]:
    """The RL policy for a spec, and warnings.

    It is the one that lies in the folder of the spec's profile and was trained for it, or else the shipped one, which
    serves any device. Without one the ladder goes on, and the plan and a warning say so.
    """
    device = loaded.spec.cluster.device_names[0]
    own = Path(os.path.dirname(loaded.path or "")) / device / "policy.safetensors"
    warnings: list[Diagnostic] = []
    for path in ([own] if len(hardware) == 1 and own.exists() else []) + [Path(POLICY)]:
        try:
            policy = load_policy(path)
        except DiagnosticError as error:
            warnings += [replace(diagnostic, severity="warning") for diagnostic in error.diagnostics]
            continue
        if path != own or hardware[0].digest in policy.metadata.get("digests", "").split():
            return policy, tuple(warnings)
        message = f"policy weights {path}: trained for another profile than this; the shipped policy is used instead"
        fix = f"make them anew with `shardc train policy --profile {device} -o {path}`"
        warnings.append(Diagnostic("SH602", message, help=fix, severity="warning"))
    return None, tuple(warnings)


def read_recorded_accesses(loaded: LoadedSpec) -> dict[str, Bins]:
    """Bins of the tables whose accesses are recorded in an index file."""
    if not any(isinstance(table.access, IndexFile) for table in loaded.tables):
        return {}
    from shardc.measure.index_file import read_accesses

    return read_accesses(loaded)
