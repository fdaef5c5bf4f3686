"""Train a placement policy against the cost model.

The environment is `shardc.placers.episode` (DreamShard's estimated MDP, 2210.02023, section 3.3): tasks are played many
times at once, and the one judge says what each came to. All rollouts of a task see the blocks in one order, so the mean
over them is the baseline of each. Candidates without room are masked, in playing and in the loss alike; a rollout that
gets stuck goes on without regard to memory, and is charged more than all others.

shardc's own policy has few weights and is used greedily, so exploring is better done in its weights than in its
actions: each rollout is greedy by weights of its own, drawn around the present ones, and these move towards the weights
that did better (an evolution strategy: separable CMA-ES, Ros and Hansen 2008). With sampled actions (REINFORCE), the
noise of eighty choices hides what one of them is worth. On this network, the same tasks and 80 seconds of one core, in
one try, the gap of validation tasks fell from 7.4 % to 6.4 %; by REINFORCE to 6.8 %, at the better of two rates.

AutoShard's and DreamShard's policies (`shardc.placers.peers`), whose weights are a hundred times as many, learn by
REINFORCE. AutoShard's own algorithm is IMPALA, actors and a learner apart, with V-trace for the lag between them: with
an environment that is array work there is no lag to correct, and the mean of the other rollouts of the same task is a
better baseline than a value network. It learns little from tasks in which the largest tables decide, and is spared
them. DreamShard's is REINFORCE like this, while its cost network learns from the hardware; here the cost model is there
already.

Under torchrun, every rank plays tasks of its own, and what they found (how weights fared, or gradients) is averaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import shardc
from shardc.cost.bound import lower_bound
from shardc.cost.model import StepCost
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import alone_in, make_folder, read_bytes, write_atomic
from shardc.hardware import Hardware, load_hardware
from shardc.judge import Judge
from shardc.passes.infeasible import find_cause
from shardc.passes.lower import lower
from shardc.placers import peers, policy
from shardc.placers.episode import Played, Scorer, Task, offered_options, play
from shardc.placers.policy import METADATA, POLICY_FORMAT, Weights, weights_digest
from shardc.problem import Floats, Memory, Problem
from shardc.render.curve import curve_picture
from shardc.spec import SHARDING_TYPES, parse_spec
from shardc.suites import TablePool, metasyn_split

_TOGETHER = 4  # tasks that are played at once
_GROUPS, _VALIDATION_GROUPS, _TEST_GROUPS = 64, 10, 10
_CLUSTERS = ((4, 1), (8, 1), (8, 1), (8, 1), (8, 2), (16, 2))  # devices and hosts
_LARGER = ((32, 4),)  # more of them, of wide tasks
_MOST_TABLES = 160
_FEW = 0.25  # share of wide tasks with one to four tables a device
_FILL = (0.4, 0.95)  # of the memory of a task
_SPREAD = 0.1  # standard deviation of the weights that rollouts differ by
_BALANCE = 0.2  # of what shardc's policy is charged: evens out devices that are not the costliest
_STUCK = 2.0  # charged to a rollout that ran out of room: so many times the level more than the others
_MOST_GAP = 0.2  # that a validation task counts for at most, and one that has no room for a greedy rollout
_SIZE = 0.3  # of the first step of an evolution strategy
_MOST_GAIN = 3.0  # standard deviations that a task counts for at most
_ENTROPY, _CLIP, _MOMENTS = 1e-3, 1.0, {"mean": 0.9, "square": 0.99}  # of policy gradients, with Adam
_REPORTS = 40  # of a run, at least
_COLUMNS = ("step", "cost", "spread", "stuck", "step_time", "gap", "balance")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of policy and how it is trained.

    Attributes:
        initial: weights before training.
        scorer: plays with weights.
        memory: what the way of learning remembers at first, for so many weights.
        learn: makes one step of a run, and says how its rollouts fared: mean cost, its standard deviation over the
            rollouts of a task, and the share of rollouts that got stuck.
        costs: what is minimised, float[N, R], from step time over the level and degree of balance.
        whole: whether it only places tables as whole as they may be.
        wide: whether it is trained on wide tasks, see `draw_tasks`.
        rollouts: of each task.
        groups: how many groups of tasks are played in a step.
    """

    initial: Callable[[np.random.Generator], dict[str, Floats]]
    scorer: Callable[[Weights], Scorer]
    memory: Callable[[int], dict[str, Floats]]
    learn: Callable[[Kind, _State, Sequence[Sequence[Task]], Settings, _Ranks], tuple[float, float, float]]
    costs: Callable[[Floats, Floats], Floats]
    whole: bool
    wide: bool
    rollouts: int
    groups: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a training run, and so its result.

    Attributes:
        kind: of policy, a key of `kinds()`.
        profiles: hardware profiles whose cost models the tasks are drawn from.
        digests: their digests.
        steps: gradient steps.
        seed: of tasks, rollouts and weights.
        ranks: processes that train together.
        version: of shardc.
    """

    kind: str
    profiles: tuple[str, ...]
    digests: tuple[str, ...]
    steps: int
    seed: int
    ranks: int
    version: str


@dataclass
class _State:
    """A training run as it stands; all of it is in a checkpoint.

    Attributes:
        step: steps that are done.
        weights: of the policy.
        memory: what the way of learning keeps from step to step.
        best: the weights that did best on validation tasks.
        best_cost: how they did, by what is minimised.
        curve: a row of `_COLUMNS` for every report.
    """

    step: int
    weights: dict[str, Floats]
    memory: dict[str, Floats]
    best: dict[str, Floats]
    best_cost: float
    curve: list[tuple[float, ...]]


def train_policy(
    out: Path,
    *,
    profiles: Sequence[str],
    steps: int,
    seed: int,
    kind: str = "shardc",
    progress: Callable[[int, int, str], None] = lambda step, steps, note: None,
) -> dict[str, str] | None:
    """Train a policy and write the weights that did best on held-out tasks; a run that was interrupted goes on.

    Beside the weights lie the learning curve, as a table (.csv) and as a picture (.svg), and while the run lasts, a
    checkpoint (.checkpoint). A run gives the same bytes for the same settings, interrupted or not.

    Args:
        out: the safetensors file to write.
        profiles: hardware profiles whose cost models the tasks are drawn from.
        steps: gradient steps.
        seed: of tasks, rollouts and weights.
        kind: of policy, a key of `kinds()`.
        progress: called with steps that are done, steps, and how validation tasks fared last.

    Returns:
        The metadata written with the weights; None on all ranks but the first.

    Raises:
        DiagnosticError: SH004 when nothing can be written at `out`, or another run is doing so, SH602 when there is a
            checkpoint that is damaged or of another run, SH202 or SH203 when tasks do not fit in memory, SH606 when
            training diverged; earlier checkpoints are kept.
    """
    hardware = [load_hardware(name) for name in profiles]
    with _Ranks.together() as ranks, _alone_at(out, ranks):
        digests = tuple(one.digest for one in hardware)
        settings = Settings(kind, tuple(profiles), digests, steps, seed, ranks.count, shardc.__version__)
        how = kinds()[kind]
        state = _start(out, settings, reads=ranks.first)
        _share(state, ranks)
        draw = partial(draw_tasks, hardware=hardware, whole=how.whole, wide=how.wide)
        train = [draw([seed, 0, group]) for group in range(_GROUPS)]
        validation = [draw([seed, 1, group]) for group in range(_VALIDATION_GROUPS)]
        bounds = [_bounds(group) for group in validation if ranks.first]
        note = "from the checkpoint" if state.step else ""
        while state.step < steps:
            if ranks.first:
                progress(state.step, steps, note)
            state.step += 1
            which = np.random.default_rng([seed, 2, state.step, ranks.rank]).choice(_GROUPS, how.groups, replace=False)
            fared = how.learn(how, state, [train[group] for group in which], settings, ranks)
            if not _are_finite(fared, *state.weights.values()):
                raise DiagnosticError(_diverged(state.step), exit_code=2)
            if not ranks.first or (state.step % max(1, steps // _REPORTS) and state.step != steps):
                continue
            figures = evaluate(validation, bounds, how.scorer(state.weights))
            if not _are_finite(figures):
                raise DiagnosticError(_diverged(state.step), exit_code=2)
            state.curve.append((state.step, *fared, *figures))
            cost = float(how.costs(np.array(1.0 + figures[1]), np.array(figures[2])))
            if cost < state.best_cost:
                state.best, state.best_cost = dict(state.weights), cost
            _save(out, settings, state)
            note = f"{figures[1]:.2%} above the bound, balance {figures[2]:.3f}"
        if ranks.first:
            progress(state.step, steps, note)
        return _finish(out, settings, state, hardware) if ranks.first else None


# --- Tasks ------------------------------------------------------------------------------------------------------------


def draw_tasks(
    seed: Sequence[int],
    hardware: Sequence[Hardware],
    *,
    whole: bool,
    wide: bool = True,
    count: int = _TOGETHER,
    pool: TablePool | None = None,
) -> list[Task]:
    """Random tasks that can be played at once: 16 to 160 tables on 4 to 16 devices, with ample or tight memory.

    Half of them are made of tables with AutoShard's statistics, half of tables whose sizes vary over orders of
    magnitude. Mostly whole tables; then with every option to choose from, or with one given, as a lower bound does.

    Args:
        seed: of everything that is random.
        hardware: profiles, one of which is drawn.
        whole: whether all tables are to be placed as whole as they may be.
        wide: whether some have so few tables a device that the largest ones decide, or 32 devices.
        count: how many tasks.
        pool: tables to draw from in the first half; the training tables unless said otherwise.

    Raises:
        DiagnosticError: SH902 for no tasks or no profiles, SH202 or SH203 for tables that do not fit.
    """
    if count < 1 or not hardware:
        raise DiagnosticError(Diagnostic("SH902", "there are no tasks to train on"), exit_code=2)
    rng = np.random.default_rng(seed)
    device = hardware[int(rng.integers(len(hardware)))]
    clusters = (*_CLUSTERS, *_LARGER) if wide else _CLUSTERS
    devices, hosts = clusters[int(rng.integers(len(clusters)))]
    freedom = "whole" if whole else str(rng.choice(["whole", "all", "given"], p=[0.55, 0.3, 0.15]))
    published = bool(rng.random() < 0.5)
    few = wide and bool(rng.random() < _FEW)
    fewest, most = (devices, 4 * devices) if few else (4 * devices, min(12 * devices, _MOST_TABLES))
    tables = int(rng.integers(fewest, most + 1))
    types = SHARDING_TYPES[:1] if freedom == "whole" else SHARDING_TYPES
    pool = pool or metasyn_split("train")
    tasks = []
    for _ in range(count):
        kind = _published_tables(rng, tables, pool) if published else _varied_tables(rng, tables, device.device_type)
        batch = (256, 65_536) if device.device_type == "cpu" else (16_384, 131_072)
        model = {
            "name": "task",
            "module": "task",
            "global_batch": int(np.exp(rng.uniform(*np.log(batch)))),
            "optimizer": "rowwise_adagrad",
        }
        cluster = {"device": device.name, "hosts": hosts, "devices_per_host": devices // hosts}
        cluster |= {"memory": "1PB", "reserve": "0%"}
        spec = {"format": 1, "model": model, "cluster": cluster}
        loaded = parse_spec(spec | {"table": [table | {"sharding": list(types)} for table in kind]})
        problem = lower(loaded, [device])
        offered = offered_options(problem)
        cost = StepCost(device.compute(problem.optimizer, problem.weights, None), problem.cluster)
        if freedom == "given":
            mix = lower_bound(problem, cost, Judge(problem, cost).latents).mix.round(3)
            offered = [[max(problem.options_of(block), key=lambda o: mix[o])] for block in range(tables)]
        problem = _with_memory(problem, offered, rng)
        tasks.append(Task.of(Judge(problem, cost), offered))
    return tasks


def _published_tables(rng: np.random.Generator, count: int, pool: TablePool) -> list[dict[str, Any]]:
    return [
        {
            "name": f"t{number}",
            "rows": int(pool.rows[which]),
            "dim": int(rng.choice([16, 32])),
            "pooling": float(pool.pooling[which]),
            "access": {"bins": pool.bins[which].tolist()},
        }
        for number, which in enumerate(rng.choice(len(pool.rows), count, replace=count > len(pool.rows)))
    ]


def _varied_tables(rng: np.random.Generator, count: int, device_type: str) -> list[dict[str, Any]]:
    largest = 4e6 if device_type == "cpu" else 4e7
    return [
        {
            "name": f"t{number}",
            "rows": int(np.exp(rng.uniform(np.log(100), np.log(largest)))),
            "dim": int(rng.choice([8, 16, 32, 64, 128])),
            "pooling": float(np.clip(rng.lognormal(1.5, 1.2), 0.2, 150)),
            "access": {"zipf": float(rng.uniform(0, 1.4))},
        }
        for number in range(count)
    ]


def _with_memory(problem: Problem, offered: Sequence[Sequence[int]], rng: np.random.Generator) -> Problem:
    """The problem with as much memory as the least options fill to a share in `_FILL`; the least if nothing else fits.

    Raises:
        DiagnosticError: SH202 or SH203 when nothing fits all the same.
    """
    size = problem.site_size[problem.option_site]
    memory = problem.unit_memory[Memory.DEVICE]
    total = np.add.reduceat(memory * problem.unit_count, problem.first_unit) * size
    largest = memory[problem.first_unit]
    even = sum(min(int(total[o]) for o in options) for options in offered) / problem.cluster.devices
    alone = 1.1 * max(min(int(largest[o]) for o in options) for options in offered)
    cause = None
    for fill in (rng.uniform(*_FILL), _FILL[0]):
        kind = replace(problem.cluster.kinds[0], memory_bytes=int(max(even / fill, alone)))
        limited = replace(problem, cluster=replace(problem.cluster, kinds=(kind,)))
        if (cause := find_cause(limited)) is None:
            return limited
    assert cause is not None
    raise DiagnosticError(Diagnostic(cause.code, f"a task to train on does not fit: {cause.message}"), exit_code=2)


# --- Learning ---------------------------------------------------------------------------------------------------------


def kinds() -> dict[str, Kind]:
    """Policies by name, and how they are trained."""
    peer = partial(Kind, memory=_moments, whole=True, rollouts=8, groups=1)
    return {
        "shardc": Kind(
            policy.initial,
            policy.Policy,
            _distribution,
            evolve,
            lambda step, balance: step + _BALANCE * (1.0 - balance),
            whole=False,
            wide=True,
            rollouts=20,
            groups=6,
        ),
        "autoshard": peer(
            peers.autoshard_initial,
            peers.AutoShard,
            learn=partial(reinforce, peers.autoshard_replayed, 1e-3),
            costs=lambda step, balance: 1.0 - balance,
            wide=False,
        ),
        "dreamshard": peer(
            peers.dreamshard_initial,
            peers.DreamShard,
            learn=partial(reinforce, peers.dreamshard_replayed, 1e-3),
            costs=lambda step, balance: step,
            wide=True,
        ),
    }


def _distribution(count: int) -> dict[str, Floats]:
    """Of an evolution strategy: variances, paths of the mean, and the size of a step."""
    return {"scale": np.ones(count), "path": np.zeros(count), "steps": np.zeros(count), "size": np.full(1, _SIZE)}


def _moments(count: int) -> dict[str, Floats]:
    """Of Adam."""
    return {name: np.zeros(count) for name in _MOMENTS}


def evolve(
    how: Kind, state: _State, groups: Sequence[Sequence[Task]], settings: Settings, ranks: _Ranks
) -> tuple[float, float, float]:
    """One generation of separable CMA-ES (Ros and Hansen 2008; constants as in Hansen's tutorial, 1604.00772)."""
    count, members = sum(array.size for array in state.weights.values()), how.rollouts
    memory = state.memory
    share = np.log(members / 2 + 0.5) - np.log(np.arange(1, members // 2 + 1))
    share /= share.sum()
    effective = 1.0 / float((share**2).sum())
    rate_path = (4 + effective / count) / (count + 4 + 2 * effective / count)
    rate_steps = (effective + 2) / (count + effective + 5)
    separable = (count + 2) / 3
    rate_one = min(1.0, separable * 2 / ((count + 1.3) ** 2 + effective))
    rate_many = separable * 2 * (effective - 2 + 1 / effective) / ((count + 2) ** 2 + effective)
    rate_many = min(1.0 - rate_one, rate_many)
    damping = 1 + rate_steps + 2 * max(0.0, np.sqrt((effective - 1) / (count + 1)) - 1)
    usual = np.sqrt(count) * (1 - 1 / (4 * count) + 1 / (21 * count**2))  # length of a normal vector

    half = np.random.default_rng([settings.seed, 3, state.step]).normal(size=(members // 2, count))
    drawn = np.concatenate([half, -half])
    center = np.concatenate([array.ravel() for array in state.weights.values()])
    population = center + memory["size"] * np.sqrt(memory["scale"]) * drawn
    scorer = how.scorer(_split(population, state.weights))
    games = [(tasks, play(tasks, scorer, rollouts=members)) for tasks in groups]
    gains = [np.clip(advantages(how, *game), -_MOST_GAIN, _MOST_GAIN).mean(axis=0) for game in games]
    best = np.argsort(-ranks.mean(np.mean(gains, axis=0)), kind="stable")[: members // 2]

    moved = share @ drawn[best]
    spread = np.sqrt(memory["scale"])
    steps = (1 - rate_steps) * memory["steps"] + np.sqrt(rate_steps * (2 - rate_steps) * effective) * moved
    length = float(np.sqrt((steps**2).sum()))
    settled = length / np.sqrt(1 - (1 - rate_steps) ** (2 * state.step)) < (1.4 + 2 / (count + 1)) * usual
    path = (1 - rate_path) * memory["path"]
    path += settled * np.sqrt(rate_path * (2 - rate_path) * effective) * spread * moved
    scale = (1 - rate_one - rate_many) * memory["scale"] + rate_one * path**2
    scale += rate_many * memory["scale"] * (share @ drawn[best] ** 2)
    state.weights = {
        name: array[0]
        for name, array in _split((center + memory["size"] * spread * moved)[None], state.weights).items()
    }
    size = memory["size"] * np.exp(rate_steps / damping * (length / usual - 1))
    state.memory = {"scale": scale, "path": path, "steps": steps, "size": size}
    return _fared(how, games)


def reinforce(
    replayed: Callable[[Any, Sequence[Task], Played, Any], Any],
    rate: float,
    how: Kind,
    state: _State,
    groups: Sequence[Sequence[Task]],
    settings: Settings,
    ranks: _Ranks,
) -> tuple[float, float, float]:
    """One step of Adam along the policy gradient: sampled rollouts, their mean as baseline, an entropy bonus.

    Args:
        replayed: scores of all candidates of recorded games, [T, N, R, C], from weights as tensors.
        rate: learning rate at first; it falls to a tenth.
        how: the kind of policy.
        state: the run.
        groups: tasks to play.
        settings: of the run.
        ranks: which also play.
    """
    import torch

    torch.set_num_threads(1)  # as fast for matrices this small, and the result does not depend on their number

    def tensor(array: Any) -> Any:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.float() if made.is_floating_point() else made

    rng = np.random.default_rng([settings.seed, 3, state.step, ranks.rank])
    parameters = {name: tensor(array).requires_grad_() for name, array in state.weights.items()}
    games = []
    for tasks in groups:
        played = play(tasks, how.scorer(state.weights), rollouts=how.rollouts, rng=rng, record=True)
        mask, counted = tensor(played.masks), tensor(played.counted)
        logits = replayed(parameters, tasks, played, tensor).masked_fill(~mask, -torch.inf)
        log_all = torch.log_softmax(logits, dim=-1)
        log_taken = log_all.gather(-1, tensor(played.choices)[..., None])[..., 0]
        entropy = -(log_all.exp() * log_all.masked_fill(~mask, 0.0)).sum(dim=-1)
        gain = log_taken * tensor(advantages(how, tasks, played)) + _ENTROPY * entropy
        (-(gain * counted).sum() / counted.sum().clamp(min=1)).backward()
        games.append((tasks, played))
    found = np.concatenate([value.grad.numpy().astype(np.float64).ravel() for value in parameters.values()])
    gradient = ranks.mean(found)
    gradient *= min(1.0, _CLIP / max(float(np.sqrt((gradient**2).sum())), 1e-12))
    for (name, decay), value in zip(_MOMENTS.items(), (gradient, gradient**2), strict=True):
        state.memory[name] = decay * state.memory[name] + (1.0 - decay) * value
    mean, square = (state.memory[name] / (1.0 - decay**state.step) for name, decay in _MOMENTS.items())
    rate *= 1.0 - 0.9 * state.step / settings.steps
    change = _split((rate * mean / (np.sqrt(square) + 1e-8))[None], state.weights)
    state.weights = {name: array - change[name][0] for name, array in state.weights.items()}
    return _fared(how, games)


def _fared(how: Kind, games: Sequence[tuple[Sequence[Task], Played]]) -> tuple[float, float, float]:
    """Mean cost, its standard deviation over the rollouts of a task, and the share of rollouts that got stuck."""
    costs = np.concatenate([returns(how, *game) for game in games])
    stuck = np.mean([played.stuck.mean() for _, played in games])
    return float(costs.mean()), float(costs.std(axis=1).mean()), float(stuck)


def _split(flat: Floats, like: Mapping[str, Floats]) -> dict[str, Floats]:
    """Arrays by name, float[R, ...], from float[R, count]."""
    stops = np.cumsum([array.size for array in like.values()])
    parts = np.split(flat, stops[:-1], axis=1)
    return {name: part.reshape(-1, *array.shape) for (name, array), part in zip(like.items(), parts, strict=True)}


def _are_finite(*arrays: Any) -> bool:
    return all(np.isfinite(array).all() for array in arrays)


def _diverged(step: int) -> Diagnostic:
    message = f"training diverged: weights, or what rollouts cost, are no longer finite after step {step}"
    fix = "the last checkpoint was kept; train with another seed, or on other profiles"
    return Diagnostic("SH606", message, help=fix)


def advantages(how: Kind, tasks: Sequence[Task], played: Played) -> Floats:
    """How much better than the mean over rollouts each rollout of a task was, in standard deviations, float[N, R]."""
    costs = returns(how, tasks, played)
    return np.asarray((costs.mean(axis=1, keepdims=True) - costs) / (costs.std(axis=1, keepdims=True) + 1e-6))


def returns(how: Kind, tasks: Sequence[Task], played: Played) -> Floats:
    """What each rollout is charged, float[N, R]: those that got stuck more than all others, the fuller the more."""
    cost = tasks[0].judge.cost
    step_ms = np.stack([task.judge.step_ms(z) for task, z in zip(tasks, played.z, strict=True)])
    even = np.array([task.level_ms.sum() for task in tasks])[:, None]
    costs = how.costs(step_ms / even, balance(cost, played.z))
    worst = np.where(played.stuck, -np.inf, costs).max(axis=1, keepdims=True)
    punished = np.where(np.isfinite(worst), worst, 0.0) + _STUCK + np.clip(played.fullest - 1.0, 0.0, 1.0)
    return np.where(played.stuck, punished, costs)


def balance(cost: Any, z: Floats) -> Floats:
    """Degree of balance float[...] of loads float[..., D, K]: the least over the greatest compute time (AutoShard)."""
    compute = cost.passes(z).sum(axis=-1)
    return np.asarray(compute.min(axis=-1) / np.maximum(compute.max(axis=-1), 1e-9))


def evaluate(groups: Sequence[Sequence[Task]], bounds: Sequence[Floats], scorer: Scorer) -> tuple[float, float, float]:
    """Greedy rollouts of groups of tasks: step time over the level, gap to the lower bound, degree of balance.

    Step times are means over the tasks in which the rollout found room. A gap counts as `_MOST_GAP` at most; no room
    counts as that, and as no balance.
    """
    ratios, gaps, balances = [], [], []
    for tasks, bound in zip(groups, bounds, strict=True):
        played = play(tasks, scorer)
        step_ms = np.array([float(task.judge.step_ms(z[0])) for task, z in zip(tasks, played.z, strict=True)])
        room = ~played.stuck[:, 0]
        gaps += np.where(room, np.minimum(step_ms / bound - 1.0, _MOST_GAP), _MOST_GAP).tolist()
        ratios += (step_ms / [task.level_ms.sum() for task in tasks])[room].tolist()
        balances += np.where(room, balance(tasks[0].judge.cost, played.z[:, 0]), 0.0).tolist()
    return float(np.mean(ratios or [0.0])), float(np.mean(gaps)), float(np.mean(balances))


def _bounds(tasks: Sequence[Task]) -> Floats:
    """Certified lower bounds of the step times of tasks, float[N] ms, of options that they may choose from or not."""
    found = []
    for task in tasks:
        cost = task.judge.cost
        assert isinstance(cost, StepCost)
        found.append(lower_bound(task.judge.problem, cost, task.judge.latents).step_time_ms)
    return np.array(found)


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The processes that train together, and which of them this is."""

    rank: int
    count: int

    @staticmethod
    @contextmanager
    def together() -> Iterator[_Ranks]:
        """The ranks of torchrun, which form a group while this lasts; or this process alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield _Ranks(0, 1)
            return
        from torch import distributed

        distributed.init_process_group("gloo")
        try:
            yield _Ranks(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes."""
        return self.rank == 0

    def mean(self, array: Floats) -> Floats:
        """The mean over all ranks."""
        if self.count == 1:
            return array
        import torch

        summed = torch.from_numpy(np.array(array, dtype=np.float64))
        torch.distributed.all_reduce(summed)
        return np.asarray(summed.numpy() / self.count)

    def of_first(self, array: Floats) -> Floats:
        """What the first rank has."""
        return self.mean(array * float(self.first * self.count))


def _share(state: _State, ranks: _Ranks) -> None:
    """Give all ranks the state of the first, which may have read it from a checkpoint that only its machine has."""
    state.step = int(ranks.of_first(np.array([float(state.step)]))[0])
    state.weights = {name: ranks.of_first(array) for name, array in state.weights.items()}
    state.memory = {name: ranks.of_first(array) for name, array in state.memory.items()}


# --- Files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _alone_at(out: Path, ranks: _Ranks) -> Iterator[None]:
    """Keep other runs from the folder of `out`, of which the first rank makes sure that it can be written in."""
    if not ranks.first:
        yield
        return
    _require_writable(out)
    with alone_in(out.parent):
        yield


def _require_writable(out: Path) -> None:
    """Find out before training what would prevent the weights and what lies beside them from being written."""
    _require_name(out)
    for path in (out, *_beside(out)):
        if path.is_dir():
            raise DiagnosticError(Diagnostic("SH004", f"cannot write {path}: is a directory"), exit_code=2)
    make_folder(out.parent)
    if not os.access(out.parent, os.W_OK):
        message = f"cannot write {out}: no permission to write in its folder"
        raise DiagnosticError(Diagnostic("SH004", message), exit_code=2)


def _beside(out: Path) -> list[Path]:
    """The checkpoint, and the learning curve as a table and as a picture."""
    return [checkpoint_path(out), out.with_suffix(".csv"), out.with_suffix(".svg")]


def require_new(out: Path) -> None:
    """Make sure that training overwrites no weights, and no files beside them that are not of the same run.

    Raises:
        DiagnosticError: SH902 for a name that is not of weights, SH004 for what is there already; exit code 2.
    """
    _require_name(out)
    kept = [out] if checkpoint_path(out).exists() else [out, *_beside(out)]
    if found := next((path for path in kept if os.path.lexists(path)), None):
        message = f"{found} is there already"
        raise DiagnosticError(Diagnostic("SH004", message, help="name another file with -o; or --force"), exit_code=2)


def _require_name(out: Path) -> None:
    if out.suffix != ".safetensors":
        fix = "its checkpoint (.checkpoint) and learning curve (.csv, .svg) lie beside it"
        message = f"weights go into a file that ends in .safetensors, not {out}"
        raise DiagnosticError(Diagnostic("SH902", message, help=fix), exit_code=2)


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of a run lies that writes its weights to `out`."""
    return out.with_suffix(".checkpoint")


def _start(out: Path, settings: Settings, *, reads: bool) -> _State:
    """A new run, or the one that was interrupted, if the checkpoint is read.

    Raises:
        DiagnosticError: SH602 when the checkpoint is damaged or of a run with other settings.
    """
    how = kinds()[settings.kind]
    weights = how.initial(np.random.default_rng([settings.seed, 4]))
    memory = how.memory(sum(array.size for array in weights.values()))
    path = checkpoint_path(out)
    if not reads or not path.exists():
        return _State(0, weights, memory, dict(weights), float("inf"), [])
    fix = f"to start anew, delete {path}"
    wanted = json.loads(json.dumps(asdict(settings)))
    try:
        content = read_bytes(path, "checkpoint")
        arrays = safetensors.numpy.load(content)
        with safetensors.safe_open(path, framework="numpy") as file:
            document = json.loads(file.metadata()[METADATA])
        digest, saved = document.pop("digest"), dict(document["settings"])
        if digest != _checkpoint_digest(arrays, document):
            raise ValueError("damaged, or altered since it was written")
        differing = sorted(key for key in wanted if saved.get(key) != wanted[key])
        state = None if differing else _resumed(arrays, document, weights, memory)
    except DiagnosticError as error:
        message = error.diagnostics[0].message
        raise DiagnosticError(Diagnostic("SH602", message, help=fix), exit_code=2) from error
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DiagnosticError(Diagnostic("SH602", f"checkpoint {path}: {error}", help=fix), exit_code=2) from error
    if state is None:
        message = f"checkpoint {path} is of another run: {', '.join(differing)} differ"
        raise DiagnosticError(Diagnostic("SH602", message, help=f"name another file with -o; or {fix}"), exit_code=2)
    return state


def _resumed(
    arrays: Mapping[str, Any], document: dict[str, Any], weights: Mapping[str, Floats], memory: Mapping[str, Floats]
) -> _State:
    return _State(
        step=int(document["step"]),
        weights={name: arrays[f"weights/{name}"].reshape(array.shape) for name, array in weights.items()},
        memory={name: arrays[f"memory/{name}"].reshape(array.shape) for name, array in memory.items()},
        best={name: arrays[f"best/{name}"].reshape(array.shape) for name, array in weights.items()},
        best_cost=float(document["best_cost"]),
        curve=[tuple(row) for row in document["curve"]],
    )


def _checkpoint_digest(arrays: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Of everything in a checkpoint, in full precision."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}\n".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return "sha256:" + digest.hexdigest()


def _save(out: Path, settings: Settings, state: _State) -> None:
    """Write a checkpoint and the learning curve."""
    parts = {"weights": state.weights, "memory": state.memory, "best": state.best}
    arrays = {f"{part}/{name}": np.ascontiguousarray(array) for part, of in parts.items() for name, array in of.items()}
    document = {"settings": asdict(settings), "step": state.step, "best_cost": state.best_cost, "curve": state.curve}
    document["digest"] = _checkpoint_digest(arrays, document)
    content = safetensors.numpy.save(arrays, {METADATA: json.dumps(document, sort_keys=True)})
    write_atomic(checkpoint_path(out), content)
    rows = [",".join(_COLUMNS), *(",".join(f"{value:.6g}" for value in row) for row in state.curve)]
    write_atomic(out.with_suffix(".csv"), "\n".join([*rows, ""]).encode())
    picture = curve_picture(
        f"{settings.kind}: {settings.steps} steps, seed {settings.seed}",
        [row[0] for row in state.curve],
        {
            "gap to the lower bound": [row[_COLUMNS.index("gap")] for row in state.curve],
            "degree of balance": [row[_COLUMNS.index("balance")] for row in state.curve],
            "spread of rollouts": [row[_COLUMNS.index("spread")] for row in state.curve],
        },
    )
    write_atomic(out.with_suffix(".svg"), picture.encode())


def _finish(out: Path, settings: Settings, state: _State, hardware: Sequence[Hardware]) -> dict[str, str]:
    """Try the best weights on tasks that were never seen, made of tables that were never seen; write them."""
    how = kinds()[settings.kind]
    held_out = metasyn_split("test")
    test = [
        draw_tasks([settings.seed, 4, group], hardware, whole=how.whole, wide=how.wide, pool=held_out)
        for group in range(_TEST_GROUPS)
    ]
    _, gap, balanced = evaluate(test, [_bounds(group) for group in test], how.scorer(state.best))
    arrays: dict[str, Any] = {name: array.astype(np.float32) for name, array in state.best.items()}
    metadata = {
        "format": POLICY_FORMAT,
        "kind": settings.kind,
        "version": settings.version,
        "profiles": " ".join(settings.profiles),
        "digests": " ".join(settings.digests),
        "seed": str(settings.seed),
        "steps": str(settings.steps),
        "ranks": str(settings.ranks),
        "test_tasks": str(sum(map(len, test))),
        "gap": f"{gap:.4f}",
        "balance": f"{balanced:.4f}",
        "weights": weights_digest(arrays),
    }
    write_atomic(out, safetensors.numpy.save(arrays, {METADATA: json.dumps(metadata, sort_keys=True)}))
    checkpoint_path(out).unlink(missing_ok=True)
    return metadata
