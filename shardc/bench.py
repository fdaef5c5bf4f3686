"""Strategies side by side: each places the same problems, and one judge weighs what they propose.

A strategy that finds no placement, or one that does not fit, has failed, and the failure is part of the result.
Averages are over the problems that every strategy placed, so that none looks better for having failed where it is hard.

Strategies that do not choose how to shard (heuristics, cost-greedy, the RL policy alone, random) place each table as
whole as it may be, as in their papers. In `shardc compile` they start from the options that the lower bound prefers.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from shardc import pipeline
from shardc.cost.bound import LowerBound, lower_bound
from shardc.cost.model import PhasedCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.frameworks.torchrec_planner import plan_with_torchrec, require_torchrec
from shardc.hardware import devices_of
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.passes.place import place
from shardc.passes.profile import profile
from shardc.placers.beam import neuroshard_beam
from shardc.placers.episode import offered_options
from shardc.placers.exact import require_highs, solve
from shardc.placers.greedy import HEURISTICS, cost_greedy, heuristic_greedy
from shardc.placers.peers import load_peer
from shardc.placers.policy import Policy, load_policy, place_by_policy
from shardc.placers.random import place_at_random
from shardc.problem import Placement, Problem
from shardc.spec import LoadedSpec

REFERENCE = "shardc"
"""The strategy whose step time others are ratios to, where it placed the problem."""

EXACT_SECONDS = 60.0
"""What the exact solver may take for one problem: unlike other strategies, how far it gets depends on the machine."""


_ROLLOUTS = 16


class Failure(StrEnum):
    """Why a strategy has no step time. Part of the JSON output: added to, never renamed."""

    NOTHING_FITS = "nothing_fits"
    OUT_OF_MEMORY = "out_of_memory"
    BREAKS_CONSTRAINTS = "breaks_constraints"
    NO_OPTION = "no_option"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


_FAILURES = {"SH308": Failure.NO_OPTION, "SH901": Failure.CRASHED}  # by the code of a diagnostic


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy on one problem.

    Attributes:
        strategy: its name.
        seconds: wall time of planning.
        step_time_ms: predicted step time; None if it failed.
        balance: degree of balance, the least over the greatest compute time of a device (AutoShard).
        failure: why it failed; None if it did not.
        detail: the failure in words.
    """

    strategy: str
    seconds: float
    step_time_ms: float | None = None
    balance: float | None = None
    failure: Failure | None = None
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """All strategies on one problem.

    Attributes:
        problem: its name.
        tables: number of tables.
        devices: number of devices.
        bound_ms: certified lower bound of the step time; None if no strategy placed the problem.
        runs: one a strategy.
    """

    problem: str
    tables: int
    devices: int
    bound_ms: float | None
    runs: tuple[Run, ...]

    @cached_property
    def step_ms(self) -> Mapping[str, float]:
        """Step times of the strategies that placed the problem."""
        return {run.strategy: run.step_time_ms for run in self.runs if run.step_time_ms is not None}

    def ratio(self, strategy: str) -> float:
        """Step time over the reference's: shardc's, or else the best there is.

        Raises:
            KeyError: the strategy did not place the problem.
        """
        reference = self.step_ms.get(REFERENCE, min(self.step_ms.values()))
        return self.step_ms[strategy] / reference if reference else 1.0

    def gap(self, strategy: str) -> float | None:
        """How far the step time is above the bound, as a share; None if the bound is 0.

        Raises:
            KeyError: the strategy did not place the problem.
        """
        return max(0.0, self.step_ms[strategy] / self.bound_ms - 1.0) if self.bound_ms else None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, least and most of some figures."""

    mean: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """The spread of figures; None if there are none."""
        return Spread(float(np.mean(values)), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Summary:
    """One strategy over all problems.

    Attributes:
        strategy: its name.
        placed: problems that it placed.
        failures: how often it failed for which reason.
        ratio: step time over the reference's, of the problems that are compared; None if there are none.
        balance: degree of balance, of the same.
        gap: how far above the bound, of the same.
        seconds: wall time of planning, of the same.
    """

    strategy: str
    placed: int
    failures: Mapping[Failure, int]
    ratio: Spread | None
    balance: Spread | None
    gap: Spread | None
    seconds: Spread | None


@dataclass(frozen=True)
class Comparison:
    """What a benchmark found.

    Attributes:
        title: what the problems are.
        machine: what it ran on.
        results: one a problem.
        warnings: how far to trust the costs, without repetitions.
        interrupted: whether Ctrl-C ended it: problems are missing, and strategies in the last one.
    """

    title: str
    machine: str
    results: tuple[Result, ...]
    warnings: tuple[Diagnostic, ...]
    interrupted: bool = False

    @cached_property
    def compared(self) -> tuple[Result, ...]:
        """Problems that figures are averaged over: those placed by all strategies, but for such as placed none."""
        able = {strategy for result in self.results for strategy in result.step_ms}
        return tuple(result for result in self.results if able and able == set(result.step_ms))

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """One a strategy, in the order that they ran."""
        names = [run.strategy for run in self.results[0].runs] if self.results else []
        return tuple(self._summary(index, name) for index, name in enumerate(names))

    def _summary(self, index: int, name: str) -> Summary:
        runs = [result.runs[index] for result in self.results]
        both = [(result, result.runs[index]) for result in self.compared if name in result.step_ms]
        gaps = [gap for result, _ in both if (gap := result.gap(name)) is not None]
        return Summary(
            strategy=name,
            placed=sum(run.failure is None for run in runs),
            failures=dict(Counter(run.failure for run in runs if run.failure is not None)),
            ratio=Spread.of([result.ratio(name) for result, _ in both]),
            balance=Spread.of([run.balance for _, run in both if run.balance is not None]),
            gap=Spread.of(gaps),
            seconds=Spread.of([run.seconds for _, run in both]),
        )


# --- Strategies -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A problem as strategies get it.

    Attributes:
        loaded: the spec that it was lowered from.
        problem: the problem.
        cost: what placements are judged by.
        policy: weights of the RL policy; None if there are none.
        effort: how long shardc searches.
        seed: of every random choice.
    """

    loaded: LoadedSpec
    problem: Problem
    cost: PhasedCost
    policy: Policy | None
    effort: str
    seed: int

    def judge(self) -> Judge:
        """A judge that knows nothing yet: encoding the tables is part of planning."""
        return Judge(self.problem, self.cost)

    @property
    def whole(self) -> list[int]:
        """The option of each block that strategies without a choice of their own place: as whole as it may be."""
        return [int(option) for option in self.problem.first_option]


@dataclass(frozen=True, slots=True)
class Answer:
    """A strategy's placement of a case, None if it found none; its wall time; and shardc's lower bound."""

    placement: Placement | None
    seconds: float
    bound: LowerBound | None = None


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to place tables.

    Attributes:
        meaning: what it does, in a few words.
        answer: places a case.
        require: raises a DiagnosticError when something that it needs is missing.
        slow: whether it runs only where it is named.
    """

    meaning: str
    answer: Callable[[Case], Answer]
    require: Callable[[], object] = lambda: None
    slow: bool = False


def _timed(propose: Callable[[Case], Placement | None], case: Case) -> Answer:
    start = time.perf_counter()
    placement = propose(case)
    return Answer(placement, time.perf_counter() - start)


def _shardc(case: Case) -> Answer:
    start = time.perf_counter()
    choice = place(case.problem, case.cost, policy=case.policy, effort=case.effort, seed=case.seed)
    return Answer(choice.placement, time.perf_counter() - start, choice.bound)


def _exact(case: Case) -> Answer:
    """From shardc's plan, or from nothing where shardc found none."""
    start, judge = time.perf_counter(), case.judge()
    try:
        choice = place(case.problem, case.cost, policy=case.policy, effort=case.effort, seed=case.seed)
        found, bound = choice.placement, choice.bound
    except DiagnosticError:
        found, bound = None, None
    known = bound.step_time_ms if bound else 0.0
    solved = solve(judge, found, bound_ms=known, seconds=EXACT_SECONDS, seed=case.seed)
    return Answer(solved.placement, time.perf_counter() - start, bound)


def _rl_policy(rollouts: int, case: Case) -> Placement | None:
    policy, judge = case.policy or load_policy(Path(pipeline.POLICY)), case.judge()
    scorer = policy if rollouts == 1 else policy.varied(rollouts, case.seed)
    return place_by_policy(judge, [offered_options(judge.problem)], scorer, rollouts=rollouts)[0]


def _peer(kind: str, case: Case) -> Placement | None:
    whole = [[option] for option in case.whole]
    return place_by_policy(case.judge(), [whole], load_peer(pipeline.PEERS[kind], kind))[0]


def _heuristic(name: str, case: Case) -> Placement | None:
    return heuristic_greedy(case.judge(), case.whole, name)


def _torchrec(case: Case) -> Answer:
    kinds = case.loaded.spec.cluster.kinds
    planned = plan_with_torchrec(
        case.problem,
        intra_host=min((kind.intra_bytes_per_s for kind in kinds if kind.intra_bytes_per_s), default=None),
        inter_host=min((kind.inter_bytes_per_s for kind in kinds if kind.inter_bytes_per_s), default=None),
    )
    return Answer(planned.placement, planned.seconds)


def _placer(propose: Callable[[Case], Placement | None], meaning: str) -> Strategy:
    return Strategy(meaning, partial(_timed, propose))


STRATEGIES: Mapping[str, Strategy] = {
    REFERENCE: Strategy("shardc compile: heuristics, policy, lower bound, local search", _shardc),
    "exact": Strategy(
        f"HiGHS, from shardc's plan, for {EXACT_SECONDS:.0f} s at most; only where it is named",
        _exact,
        require_highs,
        slow=True,
    ),
    "neuroshard_beam": _placer(
        lambda case: neuroshard_beam(case.judge(), case.whole),
        "NeuroShard: beam search over column-wise halvings, greedy inside",
    ),
    "torchrec_planner": Strategy("TorchRec's EmbeddingShardingPlanner", _torchrec, require_torchrec),
    "rl_policy": Strategy(
        "shardc's RL policy alone, in one greedy rollout",
        partial(_timed, partial(_rl_policy, 1)),
        lambda: load_policy(Path(pipeline.POLICY)),
    ),
    "rl_policy_16": Strategy(
        f"the best of {_ROLLOUTS} rollouts of the RL policy with weights that differ",
        partial(_timed, partial(_rl_policy, _ROLLOUTS)),
        lambda: load_policy(Path(pipeline.POLICY)),
    ),
    **{
        kind: Strategy(
            f"{paper}'s policy, trained on shardc's costs",
            partial(_timed, partial(_peer, kind)),
            partial(load_peer, pipeline.PEERS[kind], kind),
        )
        for kind, paper in (("autoshard", "AutoShard"), ("dreamshard", "DreamShard"))
    },
    "cost_greedy": _placer(
        lambda case: cost_greedy(case.judge(), case.whole), "costliest table first, each where it costs least"
    ),
    **{
        f"{name}_greedy": _placer(partial(_heuristic, name), f"largest {name.replace('_', '-')} first, balanced")
        for name in HEURISTICS
    },
    "random": _placer(lambda case: place_at_random(case.judge(), case.whole, case.seed), "any device that has room"),
}
"""Strategies by name, in the order that they run and are shown."""


# --- Running them -----------------------------------------------------------------------------------------------------


def usable(names: Sequence[str] = ()) -> tuple[list[str], list[Diagnostic]]:
    """Strategies to run: those named, or else all that can run here but the slow, with notes on those that cannot.

    Raises:
        DiagnosticError: exit code 2, what a strategy that was named needs is missing.
    """
    found, notes = [], []
    for name in names or [name for name, strategy in STRATEGIES.items() if not strategy.slow]:
        try:
            STRATEGIES[name].require()
        except DiagnosticError as error:
            if names:
                raise
            missing = error.diagnostics[0]
            left_out = f"{name} is left out: {missing.message}"
            notes.append(Diagnostic(missing.code, left_out, help=missing.help, severity="warning"))
        else:
            found.append(name)
    return found, notes


def compare(
    title: str,
    specs: Iterable[tuple[str, LoadedSpec]],
    strategies: Sequence[str],
    *,
    seed: int | None = None,
    effort: str | None = None,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> Comparison:
    """Run strategies on problems; Ctrl-C ends that, and what was found so far is compared.

    Args:
        title: what the problems are.
        specs: names and specs of the problems.
        strategies: names of strategies.
        seed: of every random choice, instead of the specs' own.
        effort: how long shardc searches, instead of what the specs say.
        progress: told how many strategies have run, over all problems, and which one on which problem is next.

    Raises:
        DiagnosticError: a spec has no problem that could be placed at all (see `shardc.passes.lower`).
    """
    results: list[Result] = []
    warnings: dict[tuple[str, str], Diagnostic] = {}
    interrupted = False
    for number, (name, loaded) in enumerate(specs):
        runs: list[Run] = []
        bound: LowerBound | None = None
        try:
            hardware = devices_of(loaded)
            problem = lower(loaded, hardware, pipeline.read_recorded_accesses(loaded))
            profiled = profile(problem, hardware, loaded)
            for warning in profiled.warnings:
                warnings.setdefault((warning.code, warning.message), warning)
            policy, _ = pipeline.find_policy(loaded, hardware)
            how, own = loaded.spec.compile, profiled.cost
            case = Case(loaded, problem, own, policy, effort or how.effort, how.seed if seed is None else seed)
            judge = case.judge()
            for strategy in strategies:
                progress(number * len(strategies) + len(runs), f"{name} {strategy}")
                run, found = _run(strategy, case, judge)
                runs.append(run)
                bound = bound or found
            if bound is None and any(run.failure is None for run in runs):
                bound = lower_bound(problem, case.cost, judge.latents)
        except KeyboardInterrupt:
            interrupted = True
            if not runs:
                break
            missing = strategies[len(runs) :]
            runs += [Run(strategy, 0.0, failure=Failure.INTERRUPTED, detail="interrupted") for strategy in missing]
        known = bound.step_time_ms if bound else None
        results.append(Result(name, len(problem.tables), problem.cluster.devices, known, tuple(runs)))
        if interrupted:
            break
    return Comparison(title, machine(), tuple(results), tuple(warnings.values()), interrupted)


def _run(strategy: str, case: Case, judge: Judge) -> tuple[Run, LowerBound | None]:
    """One strategy on one case, weighed by a judge."""
    start = time.perf_counter()
    try:
        answer = STRATEGIES[strategy].answer(case)
    except DiagnosticError as error:
        if error.exit_code != 1:
            raise
        first = error.diagnostics[0]
        failure = _FAILURES.get(first.code, Failure.NOTHING_FITS)
        return Run(strategy, time.perf_counter() - start, failure=failure, detail=first.message), None
    if answer.placement is None:
        detail = "a table fits nowhere any more"
        return Run(strategy, answer.seconds, failure=Failure.NOTHING_FITS, detail=detail), None
    judgement = judge.judge(answer.placement)
    if not judgement.feasible:
        over = np.flatnonzero((judgement.memory > case.problem.cluster.memory_limit).any(axis=0))
        failure = Failure.OUT_OF_MEMORY if len(over) else Failure.BREAKS_CONSTRAINTS
        detail = f"{len(over)} devices hold more than they can" if len(over) else "breaks a pin, group or apart set"
        return Run(strategy, answer.seconds, failure=failure, detail=detail), None
    compute = judge.rounded(case.cost.passes(judgement.z)).sum(axis=1)
    balance = float(compute.min() / compute.max()) if compute.max() > 0 else 1.0
    return Run(strategy, answer.seconds, judgement.step_time_ms, balance), answer.bound


def machine() -> str:
    """What this runs on, in one line."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{model}, {cores} core{'s' * (cores != 1)}, Python {platform.python_version()}, numpy {np.__version__}"
