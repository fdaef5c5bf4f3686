"""Train the RL placement policy against the cost model: REINFORCE with the other rollouts as baseline.

The environment is the judge (DreamShard's estimated MDP, 2210.02023, section 3): an episode places the units of one
random task in descending cost, the reward comes at the end and is the step time. All rollouts of a task share the order
of units, so the mean over them is the baseline. Devices without room are masked, in sampling and in the loss alike;
a rollout that gets stuck is punished, and its steps up to there are learned from.

It differs from AutoShard's IMPALA with an LSTM in that the state has no memory beyond the sums on the devices, and from
DreamShard in that features are ratios to an even load, so that one policy serves every profile and any size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

import shardc
from shardc.cost.model import StepCost
from shardc.files import write_atomic
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.placers.greedy import cost_greedy, placing_order
from shardc.placers.policy import (
    METADATA,
    POLICY_FEATURES,
    POLICY_FORMAT,
    Policy,
    device_features,
    even_load_ms,
    filled,
    place_by_policy,
)
from shardc.problem import Bools, Floats, Ints, Memory
from shardc.spec import parse_spec

_HIDDEN = 32
_ROLLOUTS = 16
_TASKS_PER_STEP = 4
_TASKS, _VALIDATION_TASKS, _TEST_TASKS = 96, 24, 24
_ENTROPY = 1e-3
_LEARNING_RATE = 5e-3
_STUCK = 2.0  # reward of a rollout that ran out of room: so many times an even load below the others
_REPORT_EVERY = 10


class PolicyNetwork(torch.nn.Module):
    """The trainable form of `shardc.placers.policy.Policy`; starts as cost-greedy with some exploration."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(POLICY_FEATURES, _HIDDEN)
        self.mix = torch.nn.Linear(2 * _HIDDEN, _HIDDEN)
        self.score = torch.nn.Linear(_HIDDEN, 1, bias=False)
        self.greed = torch.nn.Parameter(torch.tensor([30.0]))
        torch.nn.init.zeros_(self.score.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores [..., D] of devices from features [..., D, 12]."""
        hidden = torch.relu(self.hidden(features))
        context = hidden.mean(dim=-2, keepdim=True).expand_as(hidden)
        mixed = torch.relu(self.mix(torch.cat([hidden, context], dim=-1)))
        return torch.as_tensor(self.score(mixed).squeeze(-1) - self.greed * features[..., 0])

    def exported(self) -> Policy:
        """The same policy in numpy."""
        weights = {name: value.detach().numpy().astype(np.float64) for name, value in self.state_dict().items()}
        return Policy(weights)


@dataclass(frozen=True)
class Task:
    """A random problem to place: its costs, and an option for each block."""

    judge: Judge
    options: tuple[int, ...]
    even_ms: Floats


@dataclass(frozen=True)
class Episode:
    """What R rollouts of one task went through, for U units on D devices.

    Attributes:
        features: float[U, R, D, 12].
        masks: bool[U, R, D], devices that had room.
        actions: int[U, R].
        taken: bool[U, R], whether the rollout was still going.
        returns: float[R], less is better: step time over even load.
    """

    features: Floats
    masks: Bools
    actions: Ints
    taken: Bools
    returns: Floats


def train_policy(
    out: Path,
    *,
    profiles: Sequence[str],
    steps: int,
    seed: int,
    progress: Callable[[int, int, float], None] = lambda step, steps, ratio: None,
) -> dict[str, str]:
    """Train a policy and write the weights that did best on held-out tasks.

    Args:
        out: the safetensors file to write.
        profiles: hardware profiles whose cost models the tasks are drawn from.
        steps: gradient steps.
        seed: of tasks, rollouts and weights.
        progress: called with step, steps, and the step time over cost-greedy's, mean over validation tasks.

    Returns:
        The metadata written with the weights.
    """
    torch.set_num_threads(1)  # as fast for matrices this small, and the result does not depend on how many there are
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train = [draw_task(rng, profiles) for _ in range(_TASKS)]
    validation = [draw_task(rng, profiles) for _ in range(_VALIDATION_TASKS)]  # to choose the best weights
    test = [draw_task(rng, profiles) for _ in range(_TEST_TASKS)]  # seen once, at the end
    network = PolicyNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    best_ratio, best = np.inf, network.exported()
    for step in range(1, steps + 1):
        policy = network.exported()
        chosen = rng.choice(len(train), _TASKS_PER_STEP, replace=False)
        episodes = [rollout(train[i], policy, rng) for i in chosen]
        loss = torch.stack([policy_loss(network, episode) for episode in episodes]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if not all(torch.isfinite(p).all() for p in network.parameters()):
            raise FloatingPointError(f"weights became infinite at step {step}: lower the learning rate")
        if step % _REPORT_EVERY == 0 or step == steps:
            ratio = greedy_ratio(validation, network.exported())
            if ratio < best_ratio:
                best_ratio, best = ratio, network.exported()
            progress(step, steps, ratio)
    metadata = {
        "format": POLICY_FORMAT,
        "version": shardc.__version__,
        "profiles": " ".join(profiles),
        "digests": " ".join(load_hardware(name).digest for name in profiles),
        "seed": str(seed),
        "steps": str(steps),
        "test_tasks": str(len(test)),
        "step_time_over_cost_greedy": f"{greedy_ratio(test, best):.4f}",
    }
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in best.weights.items()}
    write_atomic(out, safetensors.torch.save(tensors, {METADATA: json.dumps(metadata, sort_keys=True)}))
    return metadata


def draw_task(rng: np.random.Generator, profiles: Sequence[str]) -> Task:
    """A random task: 10 to 192 tables on 2 to 16 devices, whole or in columns, with ample or tight memory."""
    profile = profiles[int(rng.integers(len(profiles)))]
    hardware = load_hardware(profile)
    devices = int(rng.choice([2, 4, 8, 16]))
    count = int(rng.integers(5 * devices, 12 * devices + 1))
    largest = 4e6 if hardware.device_type == "cpu" else 4e7
    tables = [
        {
            "name": f"t{i}",
            "rows": int(np.exp(rng.uniform(np.log(100), np.log(largest)))),
            "dim": int(rng.choice([8, 16, 32, 64, 128])),
            "pooling": float(np.clip(rng.lognormal(1.5, 1.2), 0.2, 150)),
            "access": {"zipf": float(rng.uniform(0, 1.4))},
            "sharding": ["table_wise", "column_wise"],
        }
        for i in range(count)
    ]
    batch = int(np.exp(rng.uniform(np.log(256), np.log(4096)))) if hardware.device_type == "cpu" else 65536
    model = {"name": "task", "module": "task", "global_batch": batch, "optimizer": "rowwise_adagrad"}
    cluster = {"device": profile, "devices_per_host": devices, "memory": "1PB", "reserve": "0%"}
    loaded = parse_spec({"format": 1, "model": model, "cluster": cluster, "table": tables})
    problem = lower(loaded, [hardware])
    # Mostly whole tables; some in a few columns, so that the policy meets units of one table that must not share.
    options = tuple(
        int(rng.choice(problem.options_of(b)[:3])) if rng.random() < 0.2 else problem.options_of(b)[0]
        for b in range(len(problem.blocks))
    )
    used = np.isin(problem.unit_option, options)
    memory = problem.unit_memory[Memory.DEVICE]
    even = float((problem.unit_count * memory)[used].sum()) / devices
    room = int(max(even / rng.uniform(0.4, 0.92), memory[used].max() * 1.1))
    kind = replace(problem.cluster.kinds[0], memory_bytes=room)
    problem = replace(problem, cluster=replace(problem.cluster, kinds=(kind,)))
    judge = Judge(problem, StepCost(hardware.compute(problem.optimizer, problem.weights, None), problem.cluster))
    return Task(judge, options, even_load_ms(judge, options))


def rollout(task: Task, policy: Policy, rng: np.random.Generator, rollouts: int = _ROLLOUTS) -> Episode:
    """Play a task many times at once, sampling devices from the policy."""
    judge, problem = task.judge, task.judge.problem
    devices, options = problem.cluster.devices, task.options
    latents, work = judge.latents[0], judge.single_ms * problem.unit_count
    z = np.zeros((rollouts, devices, latents.shape[1]))
    memory = np.zeros((rollouts, *problem.cluster.memory_limit.shape))
    going = np.ones(rollouts, dtype=bool)
    everyone = np.arange(rollouts)
    left = float(work[np.isin(problem.unit_option, options)].sum())
    total = max(left, 1e-9)
    steps: list[tuple[Floats, Bools, Ints, Bools]] = []
    for block in placing_order(judge, options, judge.single_ms):
        holds = np.zeros((rollouts, devices), dtype=bool)  # units of one block go to distinct devices
        for unit in map(int, problem.units_of(options[block])):
            room = (memory + problem.unit_memory[:, unit, None] <= problem.cluster.memory_limit).all(axis=1)
            mask = room & ~holds & problem.allowed[block]
            going = going & mask.any(axis=1)
            mask[~going] = True  # a stuck rollout plays on without counting
            features = device_features(judge, z, filled(problem, memory, unit), unit, task.even_ms, left / total)
            action = _sample(policy.logits(features), mask, rng)
            steps.append((features, mask, action, going))
            z[everyone, action] += latents[unit]
            memory[everyone, :, action] += problem.unit_memory[:, unit]
            holds[everyone, action] = True
            left -= float(judge.single_ms[unit])
    returns = np.where(going, judge.step_ms(z) / task.even_ms.sum(), np.nan)
    worst = np.nanmax(returns) if going.any() else 0.0
    returns = np.where(going, returns, worst + _STUCK)
    features, masks, actions, taken = map(np.stack, zip(*steps, strict=True))
    return Episode(features, masks, actions, taken, returns)


def policy_loss(network: PolicyNetwork, episode: Episode) -> torch.Tensor:
    """REINFORCE with the mean of the rollouts as baseline, less an entropy bonus."""
    mask, taken = torch.from_numpy(episode.masks), torch.from_numpy(episode.taken)
    logits = network(torch.from_numpy(episode.features).float()).masked_fill(~mask, -torch.inf)
    log_all = torch.log_softmax(logits, dim=-1)
    log_taken = log_all.gather(-1, torch.from_numpy(episode.actions)[..., None])[..., 0]
    returns = episode.returns
    advantage = torch.from_numpy((returns.mean() - returns) / (returns.std() + 1e-8)).float()
    entropy = -(log_all.exp() * log_all.masked_fill(~mask, 0.0)).sum(dim=-1)
    steps = taken.sum().clamp(min=1)
    return -((log_taken * advantage + _ENTROPY * entropy) * taken).sum() / steps


def greedy_ratio(tasks: Sequence[Task], policy: Policy) -> float:
    """Step time of the policy's greedy rollouts over cost-greedy's: geometric mean over tasks that both can place."""
    logs = []
    for task in tasks:
        by_policy = place_by_policy(task.judge, task.options, policy)
        by_cost = cost_greedy(task.judge, task.options)
        if by_policy is not None and by_cost is not None:
            logs.append(np.log(task.judge.judge(by_policy).step_time_ms / task.judge.judge(by_cost).step_time_ms))
    return float(np.exp(np.mean(logs))) if logs else float("inf")


def _sample(logits: Floats, mask: Bools, rng: np.random.Generator) -> NDArray[np.int64]:
    """A device for each rollout, int[R], by the masked softmax of its scores (Gumbel's trick)."""
    noise = -np.log(-np.log(rng.random(logits.shape)))
    return np.asarray(np.where(mask, logits + noise, -np.inf).argmax(axis=-1))
