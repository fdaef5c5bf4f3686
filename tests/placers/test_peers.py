import numpy as np
import pytest
import torch

from shardc import pipeline
from shardc.diagnostics import DiagnosticError
from shardc.hardware import load_hardware
from shardc.judge import Judge
from shardc.learn.train_policy import draw_tasks, kinds
from shardc.passes.lower import lower
from shardc.passes.profile import profile
from shardc.pipeline import PEERS, POLICY
from shardc.placers.episode import Task, play
from shardc.placers.peers import load_peer, table_features
from shardc.placers.policy import place_by_policy
from shardc.placers.random import place_at_random
from shardc.spec import parse_spec
from shardc.suites import problems

PAPERS = ("autoshard", "dreamshard")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return draw_tasks([1], [load_hardware("h100-80gb")], whole=True, count=2)


def tensor(array):
    made = torch.from_numpy(np.ascontiguousarray(array))
    return made.float() if made.is_floating_point() else made


class Listening:
    """Keeps the scores that another gave."""

    def __init__(self, scorer) -> None:
        self._scorer, self.seen = scorer, []
        self.start, self.placed = scorer.start, scorer.placed

    def scores(self, step, features, mask, devices):
        self.seen.append(self._scorer.scores(step, features, mask, devices))
        return self.seen[-1]


@pytest.mark.parametrize("kind", PAPERS)
def test_torch_gives_the_scores_that_placing_by_numpy_gave(kind, tasks):
    how = kinds()[kind]
    weights = how.initial(np.random.default_rng(0))
    scorer = Listening(how.scorer(weights))
    played = play(tasks, scorer, rollouts=3, rng=np.random.default_rng(0), record=True)
    replayed = how.learn.args[0]({n: tensor(a) for n, a in weights.items()}, tasks, played, tensor)
    assert replayed.numpy() == pytest.approx(np.stack(scorer.seen), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", PAPERS)
def test_the_shipped_weights_are_small_and_better_than_random(kind, tasks):
    assert PEERS[kind].stat().st_size < 1e6
    peer = load_peer(PEERS[kind], kind)
    ratios = []
    for task in tasks:
        options = [int(option) for option in task.judge.problem.first_option]
        (found,) = place_by_policy(task.judge, [[[option] for option in options]], peer)
        other = place_at_random(task.judge, options, 0)
        ratios.append(task.judge.judge(found).step_time_ms / task.judge.judge(other).step_time_ms)
    assert np.mean(ratios) < 1


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize(("suite", "number"), [("metasyn-varied", 8), ("tight", 10)])
def test_they_place_tables_of_any_kind_on_any_number_of_devices(kind, suite, number):
    """On 40 devices, of which some are looked at; and with a table that has to be sharded by rows."""
    loaded = parse_spec(problems(suite, count=number + 1)[number])
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware)
    judge = Judge(problem, profile(problem, hardware, loaded).cost)
    whole = [[int(option)] for option in problem.first_option]
    (placement,) = place_by_policy(judge, [whole], load_peer(PEERS[kind], kind))
    assert placement is None or judge.judge(placement).feasible


@pytest.mark.parametrize("kind", PAPERS)
def test_other_weights_are_refused(kind):
    with pytest.raises(DiagnosticError, match=f"kind shardc, expected {kind}"):
        load_peer(POLICY, kind)


def test_tables_look_the_same_in_every_task(tasks):
    """Features are scaled alike everywhere, unlike in the papers' prototypes."""
    features = table_features(tasks[0].judge.problem)
    shards = tasks[0].judge.problem.shards
    assert features.shape == (len(tasks[0].order), 21)
    assert features[:, 4:].sum(axis=1) == pytest.approx(np.ones(len(features)), abs=0.1)
    largest = np.argmax(features[:, 1])
    assert shards.rows[tasks[0].judge.problem.unit_shards[largest][0]] == shards.rows.max()
