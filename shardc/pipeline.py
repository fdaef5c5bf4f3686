"""All wiring in one place: TOML file -> Spec -> Problem -> CostModel -> Placement -> Plan."""

from __future__ import annotations

import hashlib
import os
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import shardc
from shardc.cost.model import CostModel
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import DOCUMENT, PROFILES, Hardware, devices_of
from shardc.judge import Judge
from shardc.moves import tables_of
from shardc.passes.emit import emit
from shardc.passes.infeasible import Origin
from shardc.passes.lower import lower
from shardc.passes.place import Choice, Why, place
from shardc.passes.profile import Measure, profile
from shardc.passes.replan import Migration, base_faults, replan
from shardc.passes.restore import placement_of
from shardc.passes.verify import verify, wide_caches
from shardc.placers.local_search import Ended, Watch
from shardc.placers.policy import Policy, load_policy
from shardc.plan import Digests, Plan, PlanMigration, plan_bytes
from shardc.problem import Placement, Problem
from shardc.spec import MAX_SEED, Bins, IndexFile, LoadedSpec, MoveBudget, load_spec, parse_spec

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
        prepared: what it was placed from.
        migration: how it came out of its base; None without one, or where nothing has changed since.
    """

    plan: Plan
    choice: Choice
    warnings: tuple[Diagnostic, ...]
    prepared: Prepared
    migration: Migration | None = None


def _never_ends(done: float, step_ms: float) -> bool:
    return True


def compile(spec: SpecLike, cost: CostModel | None = None, seed: int | None = None) -> Plan:
    """Compile a spec to a plan.

    Args:
        spec: path of a TOML file, its content as a mapping, or a loaded spec.
        cost: any object with `encode` and `score` (see `shardc.cost.model`); None for what the spec says.
        seed: of every random choice; None for the spec's own (0 unless it says otherwise).

    Raises:
        DiagnosticError: everything that is wrong with the spec, or that makes it infeasible; SH103 and SH104 for
            another seed or cost than these.
    """
    if cost is not None and not is_cost_model(cost):
        message = f"expected cost as a cost model with encode and score, found {reprlib.repr(cost)}"
        raise DiagnosticError(Diagnostic("SH103", message))
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
    base: Plan | None = None,
    budget: MoveBudget = MoveBudget(),  # noqa: B008 - frozen
    known: Plan | None = None,
    watch: Watch = _never_ends,
    watch_alone: Watch | None = None,
) -> Compiled:
    """The five passes, and what may stay of a base.

    Args:
        loaded: the validated spec.
        cost: a cost model instead of the one that the spec names.
        seed: instead of the spec's.
        effort: instead of the spec's.
        measure: measures the spec's own shards (see `shardc.passes.profile`).
        base: a plan to stay close to. Nothing is placed anew where spec, costs and version are those of the base.
        budget: what of it may move.
        known: a plan that is improved if it fits and nothing else that fits is found; None for the base.
        watch: told of the search for a placement as it goes on, and may end it; by raising `Ended` at once.
        watch_alone: instead of it while tables are placed without the base, to leave time for what comes after.

    Raises:
        DiagnosticError: everything that is wrong with spec or base, or that makes the spec infeasible.
        Ended: by `watch`, before there was any placement.
    """
    if base and (faults := base_faults(base)):
        raise DiagnosticError(*faults)
    seed = loaded.spec.compile.seed if seed is None else valid_seed(seed)
    prepared = prepare(loaded, cost=cost, measure=measure)
    problem = prepared.judge.problem
    policy, missing = find_policy(loaded, prepared.hardware)
    prepared = replace(prepared, digests=prepared.digests.model_copy(update={"policy": policy and policy.digest}))
    if base and base.digests == prepared.digests and (same := _unchanged(base, loaded, prepared)):
        return same
    effort = effort or loaded.spec.compile.effort
    origin = Origin(loaded, prepared.hardware, prepared.recorded)
    choice = place(
        problem,
        prepared.judge.cost,
        policy=policy,
        effort=effort,
        seed=seed,
        origin=origin,
        known=_placement_if_any(known or base, problem),
        watch=watch_alone or watch,
    )
    finish = partial(_finished, loaded, prepared, choice, base, budget, effort, seed, watch, missing)
    try:
        return finish()
    except Ended:  # what was placed is kept
        return finish()


def _finished(
    loaded: LoadedSpec,
    prepared: Prepared,
    choice: Choice,
    base: Plan | None,
    budget: MoveBudget,
    effort: str,
    seed: int,
    watch: Watch,
    missing: Sequence[Diagnostic],
) -> Compiled:
    """The passes after placement, with warnings of what was missing for that; the arguments are those of `run`."""
    migration, stated = None, None
    if base:
        choice, migration = replan(choice, base, budget, effort=effort, seed=seed, watch=watch)
        stated = PlanMigration(
            base=_plan_digest(base),
            moved_bytes=migration.chosen.moved_bytes,
            model_bytes=migration.total_bytes,
            held_bytes=migration.chosen.held_bytes,
        )
    p90_ms = _pessimistic_ms(prepared, choice)
    plan = emit(loaded, choice, digests=prepared.digests, seed=seed, p90_ms=p90_ms, migration=stated)
    cluster = prepared.judge.problem.cluster
    if faults := verify(plan, loaded, cluster):
        raise DiagnosticError(Diagnostic("SH901", "the emitted plan does not verify"), *faults, exit_code=2)
    doubts = (*prepared.warnings, *wide_caches(plan, loaded, cluster), *missing)
    doubts += migration.warnings if migration else ()
    return Compiled(plan, choice, doubts, prepared, migration)


def near(compiled: Compiled, loaded: LoadedSpec, base: Plan, budget: MoveBudget) -> Compiled:
    """A compiled spec, compiled near a base: what `run` gives with one, without placing tables once more.

    Args:
        compiled: the spec compiled without a base, with the seed and the effort that it says.
        loaded: the spec.
        base: a plan to stay close to.
        budget: what of it may move.

    Raises:
        DiagnosticError: SH305 or SH306 for a base that makes no sense, SH321 when nothing was found within the budget.
    """
    if faults := base_faults(base):
        raise DiagnosticError(*faults)
    prepared, how = compiled.prepared, loaded.spec.compile
    if base.digests == prepared.digests and (same := _unchanged(base, loaded, prepared)):
        return same
    return _finished(loaded, prepared, compiled.choice, base, budget, how.effort, how.seed, _never_ends, ())


def is_cost_model(value: object) -> bool:
    """Whether something can be asked for costs: it has what `shardc.cost.model.CostModel` has."""
    return all(callable(getattr(value, name, None)) for name in ("encode", "score"))


def valid_seed(seed: object) -> int:
    """A seed that was given from Python.

    Raises:
        DiagnosticError: SH103 for another thing than an integer, SH104 for one that is no seed.
    """
    try:
        number = -1 if isinstance(seed, bool) else index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise DiagnosticError(Diagnostic("SH103", f"expected seed as an integer, found {reprlib.repr(seed)}")) from None
    if not 0 <= number <= MAX_SEED:
        message = f"expected seed as an integer from 0 to {MAX_SEED}, found {reprlib.repr(seed)}"
        raise DiagnosticError(Diagnostic("SH104", message))
    return number


def _unchanged(base: Plan, loaded: LoadedSpec, prepared: Prepared) -> Compiled | None:
    """A base of the same digests, if compiling it once more with this version has nothing else to go on; or None.

    What such a plan states has to be what it has: one that was edited is no result of any compile.
    """
    if base.tool.version != shardc.__version__:
        return None
    judge = prepared.judge
    if base.chosen.reason not in list(Why) or verify(base, loaded, judge.problem.cluster):
        return None
    try:
        placement = placement_of(base, judge.problem)
    except DiagnosticError:
        return None
    choice = Choice(
        judge,
        placement,
        judge.judge(placement),
        base.chosen.strategy,
        Why(base.chosen.reason),
        candidates=(),
        bound=None,
    )
    p90_ms = _pessimistic_ms(prepared, choice)
    again = emit(loaded, choice, digests=base.digests, seed=base.tool.seed, p90_ms=p90_ms)
    kept = ("chosen", "candidates", "bound", "migration", "plan")  # of equal columns those of `restore` are in order
    again = again.model_copy(update={name: getattr(base, name) for name in kept})
    doubts = (*prepared.warnings, *wide_caches(base, loaded, judge.problem.cluster))
    return Compiled(base, choice, doubts, prepared) if plan_bytes(again) == plan_bytes(base) else None


def _placement_if_any(plan: Plan | None, problem: Problem) -> Placement | None:
    """The placement that a plan writes down, if it is one of this problem, whether or not it fits."""
    if plan is None or plan.cluster.devices != problem.cluster.devices or base_faults(plan):
        return None
    if {info.name for info in problem.tables} != tables_of(plan).keys():
        return None
    try:
        return placement_of(plan, problem)
    except DiagnosticError:
        return None


def _pessimistic_ms(prepared: Prepared, choice: Choice) -> float | None:
    if prepared.pessimistic is None:
        return None
    return Judge(choice.judge.problem, prepared.pessimistic).judge(choice.placement).step_time_ms


def _plan_digest(plan: Plan) -> str:
    return "sha256:" + hashlib.sha256(plan_bytes(plan)).hexdigest()


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
    if len(hardware) == 1 and os.path.lexists(own):
        try:
            policy = load_policy(own)
            if hardware[0].digest in policy.metadata.get("digests", "").split():
                return policy, ()
            message = f"policy weights {own}: trained for another profile than this"
        except DiagnosticError as error:
            message = error.diagnostics[0].message
        trained = own.parent if (own.parent / DOCUMENT).exists() else device
        command = ["shardc", "train", "policy", "--profile", str(trained), "-o", str(own), "--force"]
        fix = f"make them anew: {shlex.join(command)}"
        warnings.append(Diagnostic("SH602", f"{message}; the shipped policy is used", help=fix, severity="warning"))
    try:
        return load_policy(Path(POLICY)), tuple(warnings)
    except DiagnosticError as error:
        found = error.diagnostics[0]
        message = f"{found.message}; tables are placed without a policy, by heuristics and local search"
        return None, (*warnings, replace(found, message=message, severity="warning"))


def read_recorded_accesses(loaded: LoadedSpec) -> dict[str, Bins]:
    """Bins of the tables whose accesses are recorded in an index file."""
    if not any(isinstance(table.access, IndexFile) for table in loaded.tables):
        return {}
    from shardc.measure.index_file import read_accesses

    return read_accesses(loaded)
