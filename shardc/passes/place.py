"""place: the placement ladder. Heuristics, cost-greedy, the RL policy, local search; the judge picks.

Every rung proposes for several starting choices of sharding options; the best proposals are improved by local search.
The plan records what each rung reached and, when the RL policy did not win, why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from shardc.cost.bound import LowerBound, lower_bound
from shardc.cost.model import CostModel, PhasedCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.judge import Judge, Judgement
from shardc.memory import device_bytes_for
from shardc.placers.episode import offered_options
from shardc.placers.feasible import Fit, fit
from shardc.placers.greedy import HEURISTICS, cost_greedy, heuristic_greedy
from shardc.placers.local_search import Watch, improve
from shardc.placers.policy import Policy, place_by_policy
from shardc.problem import Placement, Problem
from shardc.units import format_bytes

Options = tuple[int, ...]
"""An option for each block."""

EVALUATIONS = {"fast": 10_000, "balanced": 60_000, "thorough": 2_000_000}
"""Candidates that local search scores for a hundred tables, by effort; more for more tables."""

_CLOSE = 1e-4  # relative: a plan this close to the lower bound is not searched further
_PATIENCE = {"fast": 2, "balanced": 2, "thorough": 20}  # of the lower bound, by effort
_CLEARLY = 0.95  # of the step time with the bound's options: a policy's own that are better by less are a worse start
_POLICY = "rl_policy"
_COST_GREEDY = "cost_greedy"
_MEMORY = "memory_search"


class Why(StrEnum):
    """Why the chosen strategy is not the plain RL policy, or that it is. Plan format: added to, never renamed."""

    POLICY_BEST = "policy_best"
    NO_POLICY = "no_policy"
    POLICY_INFEASIBLE = "policy_infeasible"
    HEURISTIC_BETTER = "heuristic_better"
    SEARCH_BETTER = "search_better"


class Outcome(StrEnum):
    """What became of a candidate. Plan format: added to, never renamed."""

    CHOSEN = "chosen"
    COSTLIER = "costlier"
    EQUAL = "equal"
    INFEASIBLE = "infeasible"
    NO_POLICY = "no_policy"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The best that one strategy found; None if it found nothing that fits."""

    strategy: str
    placement: Placement | None
    step_time_ms: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome of the placement pass.

    Attributes:
        judge: the problem and the cost model it was judged by.
        placement: the placement that was chosen.
        judgement: what it costs.
        strategy: the strategy that found it.
        why: the named condition on which it was chosen.
        candidates: what every strategy reached and what became of it, in the order of the ladder.
        bound: certified lower bound, or None if the cost model certifies nothing.
    """

    judge: Judge
    placement: Placement
    judgement: Judgement
    strategy: str
    why: Why
    candidates: tuple[tuple[Proposal, Outcome], ...]
    bound: LowerBound | None


def place(
    problem: Problem,
    cost: CostModel,
    *,
    policy: Policy | None,
    effort: str = "balanced",
    seed: int = 0,
    watch: Watch = lambda done, step_ms: True,
) -> Choice:
    """Choose a placement.

    Args:
        problem: the lowered problem.
        cost: the cost model that every placement is judged by.
        policy: weights of the RL policy; None if there are none.
        effort: how much local search may score, a key of `EVALUATIONS`.
        seed: of every random choice.
        watch: told of local search as it goes on, and may end it.

    Raises:
        DiagnosticError: SH202 when the model as a whole exceeds the memory, SH203 when no strategy found a placement
            that fits.
    """
    judge = Judge(problem, cost)
    _check_total_memory(problem)
    bound = None
    if isinstance(cost, PhasedCost):
        bound = lower_bound(problem, cost, judge.latents, patience=_PATIENCE[effort])
    evaluations = int(EVALUATIONS[effort] * max(1.0, len(problem.blocks) / 100) ** 0.5)
    choices = _sharding_choices(problem, bound)
    proposals = _propose(judge, choices[0], policy)
    if not any(p.placement for p in proposals):
        found_fit = fit(problem, choices, evaluations=evaluations, seed=seed)
        if found_fit is None or not found_fit.fits:
            raise DiagnosticError(_none_found(problem, found_fit))
        proposals.append(_judged(judge, _MEMORY, found_fit.placement))
    start = min(proposals, key=lambda p: p.step_time_ms)
    if start.placement is None:
        raise ValueError("the placement that fits does not keep the constraints")
    found = improve(
        judge,
        start.placement,
        evaluations=evaluations,
        seed=seed,
        targets=bound.phase_ms if bound else None,
        enough_ms=bound.step_time_ms * (1.0 + _CLOSE) if bound else 0.0,
        watch=watch,
    )
    proposals.append(_judged(judge, f"{start.strategy}+search", found))
    return _choose(judge, proposals, policy, bound)


def _propose(judge: Judge, options: Options, policy: Policy | None) -> list[Proposal]:
    """Every rung of the ladder below local search."""
    proposals = [_judged(judge, f"{name}_greedy", heuristic_greedy(judge, options, name)) for name in HEURISTICS]
    proposals.append(_judged(judge, _COST_GREEDY, cost_greedy(judge, options)))
    proposals.append(_by_policy(judge, options, policy))
    return proposals


def _by_policy(judge: Judge, options: Options, policy: Policy | None) -> Proposal:
    """The policy with the bound's options, or with its own where these are clearly better.

    Local search ends better from the bound's options, unless its start is much worse (see `_CLEARLY`).
    """
    if policy is None:
        return Proposal(_POLICY, None, float("inf"))
    choices = [[option] for option in options], offered_options(judge.problem)
    given, own = (_judged(judge, _POLICY, place_by_policy(judge, choice, policy)) for choice in choices)
    return own if own.step_time_ms < _CLEARLY * given.step_time_ms else given


def _judged(judge: Judge, strategy: str, placement: Placement | None) -> Proposal:
    judgement = judge.judge(placement) if placement else None
    if judgement is None or not judgement.feasible:
        return Proposal(strategy, None, float("inf"))
    return Proposal(strategy, placement, judgement.step_time_ms)


def _sharding_choices(problem: Problem, bound: LowerBound | None) -> list[Options]:
    """Options to place tables with, until they can be placed.

    First those that the lower bound mixes most of; then tables as whole as they fit; then in pieces as small as can be.
    """
    starts = problem.first_option
    choices = [tuple(map(int, starts)), _smallest_memory(problem)]
    if bound is not None:
        # Rounded, so that what processors differ by does not choose between options that are alike.
        mix = np.round(bound.mix, 3)
        preferred = np.flatnonzero(mix == np.maximum.reduceat(mix, starts)[problem.option_block])
        first = np.unique(problem.option_block[preferred], return_index=True)[1]
        choices.insert(0, tuple(map(int, preferred[first])))
    return list(dict.fromkeys(choices))


def _smallest_memory(problem: Problem) -> Options:
    """For each block the option that puts least on a single device: where memory is tight, small pieces fit."""
    largest = problem.unit_memory[problem.first_unit]
    return tuple(min(problem.options_of(b), key=lambda o: (int(largest[o]), o)) for b in range(len(problem.blocks)))


def _choose(judge: Judge, proposals: list[Proposal], policy: Policy | None, bound: LowerBound | None) -> Choice:
    """The judge picks; of equals, the earliest rung."""
    best = min(proposals, key=lambda p: p.step_time_ms)
    if best.placement is None:
        raise ValueError("no feasible proposal to choose from")

    def outcome(proposal: Proposal) -> Outcome:
        if proposal is best:
            return Outcome.CHOSEN
        if proposal.placement is None:
            return Outcome.NO_POLICY if proposal.strategy == _POLICY and policy is None else Outcome.INFEASIBLE
        return Outcome.EQUAL if proposal.step_time_ms == best.step_time_ms else Outcome.COSTLIER

    outcomes = {p.strategy: outcome(p) for p in proposals}
    if best.strategy == _POLICY:
        why = Why.POLICY_BEST
    elif outcomes[_POLICY] is Outcome.NO_POLICY:
        why = Why.NO_POLICY
    elif outcomes[_POLICY] is Outcome.INFEASIBLE:
        why = Why.POLICY_INFEASIBLE
    else:
        why = Why.SEARCH_BETTER if best.strategy.endswith("+search") else Why.HEURISTIC_BETTER
    candidates = tuple((p, outcomes[p.strategy]) for p in proposals)
    return Choice(judge, best.placement, judge.judge(best.placement), best.strategy, why, candidates, bound)


def _check_total_memory(problem: Problem) -> None:
    """Refuse a model whose smallest options together exceed the memory of all devices."""
    cluster = problem.cluster
    of_units = problem.unit_memory * problem.unit_count
    total = np.add.reduceat(of_units, problem.first_unit) * problem.site_size[problem.option_site]
    least = int(np.minimum.reduceat(total, problem.first_option).sum())
    room = int(cluster.memory_limit.sum())
    if least <= room:
        return
    each = f" ({format_bytes(int(cluster.memory_limit[0]))} each)" * (len(set(cluster.memory_limit.tolist())) == 1)
    message = (
        f"the model needs at least {format_bytes(least)} on all devices together, and {cluster.devices} devices have "
        f"{format_bytes(room)} for tables{each}"
    )
    kind = cluster.kinds[0]
    enough = device_bytes_for(-(-least // cluster.devices), kind.memory_bytes, kind.reserve_bytes)
    more = f"use {-(-least * cluster.devices // room)} devices" if room else "lower the reserve"
    fix = f"{more}; or give each device {format_bytes(enough)} or more"
    raise DiagnosticError(Diagnostic("SH202", message, help=fix))


def _none_found(problem: Problem, best: Fit | None) -> Diagnostic:
    """Say how close the search came, and what would help."""
    fix = "allow more sharding types, loosen pins and groups, give devices more memory, or use more devices"
    limit = int(problem.cluster.memory_limit.max())
    if best is None:
        message = "no placement keeps every pin, group and exclusion, however much memory devices had"
        return Diagnostic("SH203", message, help="loosen pins, groups and apart sets, or use more devices")
    needed = int(np.ceil(best.fullest * limit))
    largest = int(np.argmax(problem.unit_memory[problem.first_unit[list(_smallest_memory(problem))]]))
    names = ", ".join(problem.tables[t].name for t in problem.blocks[largest])
    message = (
        f"no placement was found that fits: a device has {format_bytes(limit)} for tables, and the best that was found "
        f"puts {format_bytes(needed)} on one; the hardest to place is {names}"
    )
    kind = problem.cluster.kinds[0]
    enough = format_bytes(device_bytes_for(needed, kind.memory_bytes, kind.reserve_bytes))
    return Diagnostic("SH203", message, help=f"give each device {enough}; or {fix}")
