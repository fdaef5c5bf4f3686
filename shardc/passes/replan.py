"""replan: of a choice and the plan before it, the placement that is worth the bytes that have to move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shardc.diagnostics import Diagnostic, DiagnosticError, quoted_tables
from shardc.moves import Weighing, pieces_of, tables_of
from shardc.passes.place import EVALUATIONS, Choice, Outcome, Proposal, Why
from shardc.passes.restore import ways_of
from shardc.passes.verify import verify_alone
from shardc.placers.local_search import Watch
from shardc.placers.migrate import Base, Point, cost_of, near
from shardc.plan import Plan
from shardc.problem import Problem
from shardc.spec import MoveBudget
from shardc.units import format_bytes

MIGRATION = "migration"
"""Name of the strategy."""

_CLOSE = 1e-4  # relative: a plan this close to the lower bound is not searched further
_HARDLY, _NEARLY = 0.02, 0.01  # a share of bytes that hardly matters, and step time that is nearly the same


@dataclass(frozen=True, slots=True)
class Migration:
    """How a plan came out of the one before it.

    Attributes:
        total_bytes: of all tables, each once: weights and optimizer state.
        front: trades of step time against moved bytes, the fewest bytes first and the fastest last.
        chosen: the one that was chosen, of the front.
        alone: the placement that was found without a base.
        budget: what was allowed to move.
        warnings: what of the base could not be used.
    """

    total_bytes: int
    front: tuple[Point, ...]
    chosen: Point
    alone: Point
    budget: MoveBudget
    warnings: tuple[Diagnostic, ...]


def replan(
    choice: Choice,
    base: Plan,
    budget: MoveBudget,
    *,
    effort: str,
    seed: int,
    watch: Watch = lambda done, step_ms: True,
) -> tuple[Choice, Migration]:
    """Choose a placement near a base, or the one chosen without it.

    With a budget it is the fastest placement within that, so a higher one never gives a slower plan. Without a budget
    it is a plan nearly as fast as the fastest that was found, within 1 % of it, that moves hardly anything, at most 2 %
    of all bytes; where there are several of these, or none, it is the one of them, or of all, of which each percent of
    the bytes makes a step a percent faster.

    Args:
        choice: the outcome of the placement pass.
        base: a plan that `base_faults` finds nothing wrong with.
        budget: how much may move.
        effort: how much local search may score, a key of `EVALUATIONS`.
        seed: of every random choice.
        watch: told of local search as it goes on, and may end it.

    Raises:
        DiagnosticError: SH321 when nothing was found within the budget.
    """
    judge, problem, bound = choice.judge, choice.judge.problem, choice.bound
    where = base_of(base, problem)
    efforts = ("balanced", effort) if effort == "thorough" else (effort,)  # there is something soon
    front, (alone,) = near(
        judge,
        where,
        [choice.placement],
        evaluations=[int(EVALUATIONS[each] * max(len(problem.blocks) / 100, 1.0) ** 0.5) for each in efforts],
        seed=seed,
        targets=bound.phase_ms if bound else None,
        enough_ms=bound.step_time_ms * (1.0 + _CLOSE) if bound else 0.0,
        watch=watch,
    )
    within = [point for point in front if budget.allows(point.moved_bytes, point.held_bytes)]
    if not within:
        raise DiagnosticError(_too_little(front[0], budget))
    chosen = within[-1] if budget.given else worthwhile(front)
    total, unusable = int(where.sizes(problem).sum()), tuple(_unusable(base, problem, where))
    return _with(choice, chosen, alone), Migration(total, front, chosen, alone, budget, unusable)


def worthwhile(front: Sequence[Point]) -> Point:
    """Of the points that hardly move anything and are nearly as fast as any, or else of all, the best bargain."""
    enough_ms = (1.0 + _NEARLY) * front[-1].step_time_ms
    good = [point for point in front if point.moved_share <= _HARDLY and point.step_time_ms <= enough_ms]
    return min(good or front, key=cost_of)


def base_of(base: Plan, problem: Problem) -> Base:
    """Where a plan has the tables of a problem, those that it has."""
    tables = tables_of(base)
    known = [(info, tables.get(info.name)) for info in problem.tables]
    return Base(
        pieces=tuple(None if placed is None else pieces_of(placed, (info.rows, info.dim)) for info, placed in known),
        ways=ways_of(base, problem),
        weighing=Weighing.of(base.model.optimizer, problem.weights, problem.optimizer),
    )


def base_faults(base: Plan) -> list[Diagnostic]:
    """Why a plan cannot be a base: SH305 or SH306 where its shards make up no tables."""
    return verify_alone(base)


def _with(choice: Choice, chosen: Point, alone: Point) -> Choice:
    """A choice with a point in place of its placement."""
    judgement = choice.judge.judge(chosen.placement)
    if chosen is alone or chosen.placement == alone.placement:
        return replace(choice, placement=chosen.placement, judgement=judgement)

    def outcome(proposal: Proposal, before: Outcome) -> Outcome:
        if proposal.placement is None:
            return before
        if proposal.step_time_ms < chosen.step_time_ms:
            return Outcome.MOVES_MORE
        return Outcome.EQUAL if proposal.step_time_ms == chosen.step_time_ms else Outcome.COSTLIER

    own = Proposal(MIGRATION, chosen.placement, chosen.step_time_ms)
    candidates = *((p, outcome(p, before)) for p, before in choice.candidates), (own, Outcome.CHOSEN)
    return replace(
        choice,
        placement=chosen.placement,
        judgement=judgement,
        strategy=MIGRATION,
        why=Why.NEAR_BASE,
        candidates=candidates,
    )


def _too_little(least: Point, budget: MoveBudget) -> Diagnostic:
    needed = f"{format_bytes(least.moved_bytes)} ({least.moved_share:.1%} of all shards)"
    message = f"no plan was found that moves {budget} or less: {needed} is the least"
    return Diagnostic("SH321", message, help=f"allow it: --max-moved {-(-least.moved_bytes // 2**20)}MiB")


def _unusable(base: Plan, problem: Problem, where: Base) -> Iterator[Diagnostic]:
    """SH322 for what of a base says nothing of a problem."""
    known = [info.name for info, pieces in zip(problem.tables, where.pieces, strict=True) if pieces is not None]
    devices, before = problem.cluster.devices, base.cluster.devices
    if not known:
        yield _warning("the base has none of the tables: all of them are placed anew")
        return
    if devices != before:
        ranks = f"rank {devices}" if before - devices == 1 else f"ranks {devices} to {before - 1}"
        lost = f"what was on {ranks} is placed anew" if devices < before else "ranks are added"
        yield _warning(f"the base is for {before} devices, the spec for {devices}: {lost}")
    if lost_ways := [
        problem.tables[table].name
        for members, way in zip(problem.blocks, where.ways, strict=True)
        for table in members
        if way is None and problem.tables[table].name in known
    ]:
        yield _warning(
            f"{quoted_tables(lost_ways)} cannot stay as the base has {'it' if len(lost_ways) == 1 else 'them'}"
        )


def _warning(message: str) -> Diagnostic:
    return Diagnostic("SH322", message, severity="warning")
