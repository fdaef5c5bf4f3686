"""place: the placement ladder. Heuristics, cost-greedy, the RL policy, local search; the judge picks.

Every rung proposes for several starting choices of sharding options; the best proposals are improved by local search.
The plan records what each rung reached and, when the RL policy did not win, why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import numpy as np

from shardc.cost.bound import LowerBound, lower_bound
from shardc.cost.model import CostModel, PhasedCost
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge, Judgement
from shardc.passes.infeasible import Origin, explain, find_cause, starts
from shardc.placers.episode import offered_options
from shardc.placers.exact import Status, fits, require_highs, solve
from shardc.placers.feasible import fit
from shardc.placers.greedy import HEURISTICS, cost_greedy, heuristic_greedy
from shardc.placers.local_search import Ended, Watch, improve
from shardc.placers.policy import Policy, place_by_policy
from shardc.problem import Placement, Problem, Site

Options = tuple[int, ...]
"""An option for each block."""

EVALUATIONS = {"fast": 10_000, "balanced": 60_000, "thorough": 2_000_000}
"""Candidates that local search scores for a hundred tables, by effort; more for more tables, or fewer."""

_CLOSE = 1e-4  # relative: a plan this close to the lower bound is not searched further
_PATIENCE = {"fast": 2, "balanced": 2, "thorough": 20}  # of the lower bound, by effort
_CLEARLY = 0.95  # of the step time with the bound's options: a policy's own that are better by less are a worse start
_ON_ONE_HOST, _ON_HOSTS, _MOST_TIMES = 1.5, 3.0, 4.5  # times the effort, among few devices
_NEAR = 1.03  # times the lower bound: what starts nearer has the right options, and may reach it without the policy
_SOON = 2  # a part of the fast effort
_FAR = 1.2  # times the lower bound
_CAPS = (0.5, 0.7)  # of the lower bound: what a unit may cost a device by itself, in turn
_HUGE_MS = 1e12
_MANY = 64  # devices: where there are more, the bound's mix of options tells little of what can be placed
_FEW, _SEVERAL = 4, 8  # tables a device
_POLICY = "rl_policy"
_COST_GREEDY = "cost_greedy"
_MEMORY = "memory_search"
_KNOWN = "known_plan"
_EXACT = "exact"
_MOST_PLACES = 4000  # of all units, that the exact solver has to choose from
_NODES = 500_000  # of its search tree, for one place; fewer for more, of which each takes longer
_MOST_NODES = 3000
_FIT_PLACES, _FIT_NODES = 1000, 30  # of its search for any placement


class Why(StrEnum):
    """Why the chosen strategy is not the plain RL policy, or that it is. Plan format: added to, never renamed."""

    POLICY_BEST = "policy_best"
    NO_POLICY = "no_policy"
    POLICY_INFEASIBLE = "policy_infeasible"
    HEURISTIC_BETTER = "heuristic_better"
    SEARCH_BETTER = "search_better"
    EXACT_BETTER = "exact_better"
    NEAR_BASE = "near_base"
    BOUND_REACHED = "bound_reached"
    INTERRUPTED = "interrupted"


class Outcome(StrEnum):
    """What became of a candidate. Plan format: added to, never renamed."""

    CHOSEN = "chosen"
    COSTLIER = "costlier"
    EQUAL = "equal"
    INFEASIBLE = "infeasible"
    NO_POLICY = "no_policy"
    NO_SOLVER = "no_solver"
    MOVES_MORE = "moves_more"


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
    origin: Origin | None = None,
    known: Placement | None = None,
    watch: Watch = lambda done, step_ms: True,
) -> Choice:
    """Choose a placement.

    Args:
        problem: the lowered problem.
        cost: the cost model that every placement is judged by.
        policy: weights of the RL policy; None if there are none.
        effort: how much local search may score, a key of `EVALUATIONS`.
        seed: of every random choice.
        origin: what the problem was lowered from, for a diagnostic that says where to change it.
        known: a placement that is improved if it fits and nothing else that fits is found.
        watch: told of local search as it goes on, and may end it; by raising `Ended` also all that comes before.

    Raises:
        DiagnosticError: SH202 when the model as a whole exceeds the memory, SH203 when nothing fits for another
            reason, or no strategy found a placement that fits.
        Ended: by `watch`, before there was any placement.
    """
    if effort != "thorough":
        return _place(problem, cost, policy, effort, seed, origin, known, watch)
    # What less effort finds comes first: more of it is never worse, and there is a plan soon.
    try:
        watch_first = partial(_at_the_start, watch)
        earlier = _place(problem, cost, policy, "balanced", seed, None, known, watch_first)
    except DiagnosticError:
        return _place(problem, cost, policy, effort, seed, origin, known, watch)
    if not watch(0.0, earlier.judgement.step_time_ms):
        return earlier
    try:
        found = _place(problem, cost, policy, effort, seed, origin, known, watch)
    except Ended:
        return earlier
    if earlier.judgement.step_time_ms < found.judgement.step_time_ms:
        return replace(earlier, bound=found.bound)
    return found


def _place(
    problem: Problem,
    cost: CostModel,
    policy: Policy | None,
    effort: str,
    seed: int,
    origin: Origin | None,
    known: Placement | None,
    watch: Watch,
) -> Choice:
    """Climb the ladder once; the arguments and errors are those of `place`."""
    judge = Judge(problem, cost)
    cause = find_cause(problem)
    if cause is not None:
        found_fit = fit(problem, starts(problem), evaluations=EVALUATIONS["fast"], seed=seed)
        raise DiagnosticError(explain(problem, cause, found_fit, origin, seed=seed))
    bound = None
    if isinstance(cost, PhasedCost):
        bound = lower_bound(problem, cost, judge.latents, patience=_PATIENCE[effort])
    proposals: list[Proposal] = []
    try:
        for proposal in _ladder(judge, policy, bound, effort, seed, origin, known, watch):
            proposals.append(proposal)
    except Ended:
        if not any(p.placement for p in proposals):
            raise
    return _choose(judge, proposals, policy, bound)


def _ladder(
    judge: Judge,
    policy: Policy | None,
    bound: LowerBound | None,
    effort: str,
    seed: int,
    origin: Origin | None,
    known: Placement | None,
    watch: Watch,
) -> Iterator[Proposal]:
    """What every rung of the ladder finds; the arguments and errors are those of `place`."""
    problem = judge.problem
    evaluations, fast = _evaluations(problem, effort), _evaluations(problem, "fast")
    enough_ms = bound.step_time_ms * (1.0 + _CLOSE) if bound else 0.0

    devices = problem.cluster.devices
    several = devices <= _MANY and len(problem.blocks) >= _SEVERAL * devices

    def searched(start: Proposal, evaluations: int, watch: Watch) -> Proposal:
        if start.placement is None:
            raise ValueError("the placement that fits does not keep the constraints")
        targets = bound.phase_ms if bound else None
        near = bound is not None and start.step_time_ms <= _NEAR * bound.step_time_ms
        found = improve(
            judge,
            start.placement,
            evaluations=evaluations,
            seed=seed,
            targets=targets,
            enough_ms=enough_ms,
            refine=near and several,
            watch=watch,
        )
        return _judged(judge, f"{start.strategy}+search", found)

    choices = _sharding_choices(problem, bound)
    options = choices[0]
    by_cost = _judged(judge, _COST_GREEDY, cost_greedy(judge, options))
    if bound and by_cost.step_time_ms <= _NEAR * bound.step_time_ms:
        soon = searched(by_cost, fast // _SOON, watch)
        if soon.step_time_ms <= enough_ms or not watch(0.0, soon.step_time_ms):
            yield from (by_cost, soon)
            return
    proposals = []
    for name in HEURISTICS:
        proposals.append(_judged(judge, f"{name}_greedy", heuristic_greedy(judge, options, name)))
        yield proposals[-1]
    by_policy = _by_policy(judge, options, policy)
    proposals += [_in_pieces_too(judge, by_cost, bound, by_policy.step_time_ms), by_policy]
    yield from proposals[-2:]
    if not any(p.placement for p in proposals):
        given = _judged(judge, _KNOWN, known)
        proposals.append(given if given.placement else _anything(judge, choices, evaluations, seed, origin))
        yield proposals[-1]
    start = min(proposals, key=lambda p: p.step_time_ms)
    # What the least effort finds counts for all: more is never worse.
    best = searched(start, fast, watch if effort == "fast" else partial(_at_the_start, watch))
    if effort != "fast" and best.step_time_ms > enough_ms and watch(0.0, best.step_time_ms):
        best = min(best, searched(start, evaluations, watch), key=lambda p: p.step_time_ms)
    yield best
    if effort == "thorough" and bound and _places(problem) <= _MOST_PLACES and watch(1.0, best.step_time_ms):
        yield _exact(judge, best, bound, seed, watch)


def _at_the_start(watch: Watch, _done: float, step_ms: float) -> bool:
    """Watch a search that comes before the one whose progress is told."""
    return watch(0.0, step_ms)


def _evaluations(problem: Problem, effort: str) -> int:
    """How many candidates local search scores."""
    # Many tables have more to look at; few have deep local optima, and are scored faster.
    blocks, cluster = len(problem.blocks), problem.cluster
    many, few = blocks / 100, 100 / blocks
    if cluster.devices > _MANY or len(problem.option_block) == blocks:
        # All takes longer and brings less; or there is nothing but places to choose.
        return int(EVALUATIONS[effort] * max(many, min(2.0, few)) ** 0.5)
    # On several hosts there are more ways to shard.
    times = max(many**0.5, few) * (_ON_HOSTS if cluster.hosts > 1 else _ON_ONE_HOST)
    return int(EVALUATIONS[effort] * min(times, max(many, 1.0) ** 0.5 * _MOST_TIMES))


def _exact(judge: Judge, best: Proposal, bound: LowerBound, seed: int, watch: Watch) -> Proposal:
    """What the exact solver makes of the best placement so far."""
    try:
        require_highs()
    except DiagnosticError:
        return Proposal(_EXACT, None, float("inf"))
    if best.placement is None:
        raise ValueError("there is no placement to begin with")
    nodes = min(_MOST_NODES, _NODES // _places(judge.problem))
    solved = solve(judge, best.placement, bound_ms=bound.step_time_ms, nodes=nodes, seed=seed, watch=watch)
    return _judged(judge, _EXACT, solved.placement)


def _anything(judge: Judge, choices: Sequence[Options], evaluations: int, seed: int, origin: Origin | None) -> Proposal:
    """Any placement that fits: a search's, or of a small problem the exact solver's."""
    problem = judge.problem
    found = fit(problem, choices, evaluations=evaluations, seed=seed)
    if found is not None and found.fits:
        return _judged(judge, _MEMORY, found.placement)
    solved = None
    if _places(problem) <= _FIT_PLACES:
        with suppress(DiagnosticError):
            solved = fits(problem, nodes=_FIT_NODES, seed=seed)
    if solved is None or solved.placement is None:
        proven = solved is not None and solved.status is Status.INFEASIBLE
        raise DiagnosticError(explain(problem, None, found, origin, seed=seed, proven=proven))
    return _judged(judge, _EXACT, solved.placement)


def _places(problem: Problem) -> int:
    """Places of all units: how many decisions there are."""
    return int((problem.cluster.devices // problem.site_size)[problem.option_site[problem.unit_option]].sum())


def _in_pieces_too(judge: Judge, found: Proposal, bound: LowerBound | None, policy_ms: float) -> Proposal:
    """What cost-greedy found, or finds with what is costly in pieces, where that may be the best start.

    It may be where the first is far above the bound, and the policy no better than it.
    """
    if bound is None or found.step_time_ms <= _FAR * bound.step_time_ms or policy_ms < found.step_time_ms:
        return found
    capped = (_no_costlier(judge, share * bound.step_time_ms) for share in _CAPS)
    others = [_judged(judge, _COST_GREEDY, cost_greedy(judge, choice)) for choice in capped]
    return min([found, *others], key=lambda proposal: proposal.step_time_ms)


def _no_costlier(judge: Judge, most_ms: float) -> Options:
    """For each block the option of least work whose largest unit costs a device no more, or else the least there is."""
    problem = judge.problem
    of_unit = judge.single_ms[problem.first_unit]
    dislike = np.where(of_unit <= most_ms, judge.option_ms, _HUGE_MS + of_unit)
    return tuple(min(problem.options_of(b), key=lambda o: (float(dislike[o]), o)) for b in range(len(problem.blocks)))


def _by_policy(judge: Judge, options: Options, policy: Policy | None) -> Proposal:
    """The policy with the bound's options, or with its own where these are clearly better.

    Local search ends better from the bound's options, unless its start is much worse (see `_CLEARLY`). Among many
    devices it is. Where these hold few tables each, a collective of all devices for some of them is a large part of
    the step, and whether it pays shows at the end only: so the policy also plays without.
    """
    if policy is None:
        return Proposal(_POLICY, None, float("inf"))
    problem, free = judge.problem, offered_options(judge.problem)
    many = problem.cluster.devices > _MANY
    offers = [free] if many else [free, [[option] for option in options]]
    if many and len(problem.blocks) < _FEW * problem.cluster.devices:
        types = np.array(problem.option_type)
        for type in sorted(set(types[problem.option_site == Site.CLUSTER])):
            offers.append([[o for o in of_block if types[o] != type] or of_block for of_block in free])
    found = [_judged(judge, _POLICY, placement) for placement in place_by_policy(judge, offers, policy)]
    if many:
        return min(found, key=lambda proposal: proposal.step_time_ms)
    own, given = found
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
    first_option = problem.first_option
    choices = starts(problem)
    if bound is not None:
        # Rounded, so that what processors differ by does not choose between options that are alike.
        mix = np.round(bound.mix, 3)
        preferred = np.flatnonzero(mix == np.maximum.reduceat(mix, first_option)[problem.option_block])
        first = np.unique(problem.option_block[preferred], return_index=True)[1]
        choices.insert(0, tuple(map(int, preferred[first])))
    return list(dict.fromkeys(choices))


def _choose(judge: Judge, proposals: list[Proposal], policy: Policy | None, bound: LowerBound | None) -> Choice:
    """The judge picks; of equals, the earliest rung."""
    best = min(proposals, key=lambda p: p.step_time_ms)
    if best.placement is None:
        raise ValueError("no feasible proposal to choose from")

    def outcome(proposal: Proposal) -> Outcome:
        if proposal is best:
            return Outcome.CHOSEN
        if proposal.placement is None:
            if proposal.strategy == _EXACT:  # which has a placement to start from
                return Outcome.NO_SOLVER
            return Outcome.NO_POLICY if proposal.strategy == _POLICY and policy is None else Outcome.INFEASIBLE
        return Outcome.EQUAL if proposal.step_time_ms == best.step_time_ms else Outcome.COSTLIER

    outcomes = {p.strategy: outcome(p) for p in proposals}
    if best.strategy == _POLICY:
        why = Why.POLICY_BEST
    elif best.strategy == _EXACT:
        why = Why.EXACT_BETTER
    elif _POLICY not in outcomes:
        near = bound is not None and best.step_time_ms <= bound.step_time_ms * (1.0 + _CLOSE)
        why = Why.BOUND_REACHED if near else Why.INTERRUPTED
    elif outcomes[_POLICY] is Outcome.NO_POLICY:
        why = Why.NO_POLICY
    elif outcomes[_POLICY] is Outcome.INFEASIBLE:
        why = Why.POLICY_INFEASIBLE
    else:
        why = Why.SEARCH_BETTER if best.strategy.endswith("+search") else Why.HEURISTIC_BETTER
    candidates = tuple((p, outcomes[p.strategy]) for p in proposals)
    return Choice(judge, best.placement, judge.judge(best.placement), best.strategy, why, candidates, bound)
