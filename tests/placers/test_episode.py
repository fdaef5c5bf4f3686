"""The environment against the judge, and against brute force's idea of the constraints."""

from dataclasses import replace

import numpy as np
import pytest
from brute_force import broken, random_problem

from shardc.cost.model import step_cost
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.learn.train_policy import draw_tasks
from shardc.placers.episode import FEATURES, Task, offered_options, play
from shardc.placers.greedy import cost_greedy
from shardc.problem import Problem

HARDWARE = load_hardware("a100-40gb")


class Linear:
    """Scores candidates by a sum of features."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def start(self, tasks, rollouts):
        pass

    def scores(self, step, features, mask, devices):
        return features @ self.weights

    def placed(self, step, devices):
        pass


def greedy() -> Linear:
    return Linear(-np.eye(len(FEATURES))[FEATURES.index("total_after")])


def judge_of(problem: Problem) -> Judge:
    kinds = [
        load_hardware(kind.device).compute(problem.optimizer, problem.weights, None) for kind in problem.cluster.kinds
    ]
    return Judge(problem, step_cost(kinds, problem))


def test_what_is_summed_up_is_what_the_judge_finds():
    for seed in range(6):
        tasks = draw_tasks([seed], [HARDWARE], whole=False, count=2)
        scorer = Linear(np.random.default_rng(seed).normal(size=len(FEATURES)))
        played = play(tasks, scorer, rollouts=3, rng=np.random.default_rng(0))
        for n, task in enumerate(tasks):
            for r in range(3):
                judgement = task.judge.judge(played.placement(n, r))
                assert judgement.z == pytest.approx(played.z[n, r])
                assert judgement.feasible != played.stuck[n, r]
                share = (judgement.memory / task.judge.problem.cluster.memory_limit).max()
                assert played.fullest[n, r] == pytest.approx(share)


def test_whoever_takes_the_least_total_cost_is_cost_greedy():
    """The environment that trains and the placers that compile must not drift apart."""
    for seed in range(4):
        (task,) = draw_tasks([seed], [HARDWARE], whole=True, count=1)
        problem = task.judge.problem
        expected = cost_greedy(task.judge, [int(option) for option in problem.first_option])
        played = play([task], greedy())
        if expected is not None and not played.stuck.any():
            found = task.judge.judge(played.placement(0, 0)).step_time_ms
            assert found == pytest.approx(task.judge.judge(expected).step_time_ms, rel=0.02)


def test_every_constraint_is_kept_by_any_scores():
    placed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng)
        if problem is None:
            continue
        judge = judge_of(problem)
        task = Task.of(judge, offered_options(problem))
        played = play([task], Linear(rng.normal(size=len(FEATURES))), rollouts=2, rng=rng)
        for rollout in range(2):
            placement = played.placement(0, rollout)
            if placement is not None and not played.stuck[0, rollout]:
                placed += 1
                assert broken(problem, placement) == []
                assert judge.judge(placement).feasible
    assert placed > 100


def test_tasks_of_different_sizes_are_played_together_as_they_are_alone():
    drawn = [draw_tasks([seed], [HARDWARE], whole=True, count=1)[0] for seed in range(12)]
    alike = [t for t in drawn if (t.judge.problem.cluster.devices, t.judge.problem.cluster.hosts) == (8, 1)]
    small, *_, large = sorted(alike, key=lambda task: len(task.order))
    assert len(small.order) < len(large.order)
    together = play([small, large], greedy())
    for index, task in enumerate((small, large)):
        assert together.placement(index, 0) == play([task], greedy()).placement(0, 0)


def test_what_was_chosen_was_possible():
    tasks = draw_tasks([5], [HARDWARE], whole=False, count=2)
    played = play(tasks, greedy(), rollouts=4, rng=np.random.default_rng(0), record=True)
    assert np.take_along_axis(played.masks, played.choices[..., None], axis=-1).all()
    assert np.isfinite(played.features).all()


def test_without_room_a_rollout_is_stuck_and_goes_on():
    (task,) = draw_tasks([0], [HARDWARE], whole=True, count=1)
    cluster = task.judge.problem.cluster
    kind = replace(cluster.kinds[0], memory_bytes=int(cluster.kinds[0].memory_bytes * 0.2))
    problem = replace(task.judge.problem, cluster=replace(cluster, kinds=(kind,)))
    judge = Judge(problem, task.judge.cost)
    played = play([Task.of(judge, offered_options(problem))], greedy())
    assert played.stuck.all()
    assert played.fullest[0, 0] > 1
    assert played.placement(0, 0) is not None
