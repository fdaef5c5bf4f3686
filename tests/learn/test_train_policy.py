import numpy as np
import pytest
import torch

from shardc.learn.train_policy import PolicyNetwork, draw_task, policy_loss, rollout, train_policy
from shardc.placers.policy import POLICY_FEATURES, load_policy, place_by_policy


@pytest.fixture(scope="module")
def task():
    return draw_task(np.random.default_rng(1), ["h100-80gb"])


def scrambled(seed: int = 0) -> PolicyNetwork:
    torch.manual_seed(seed)
    network = PolicyNetwork()
    torch.nn.init.normal_(network.score.weight)
    return network


def test_torch_and_numpy_give_the_same_scores():
    network = scrambled()
    features = np.random.default_rng(0).normal(size=(4, 7, POLICY_FEATURES))
    expected = network(torch.from_numpy(features).float()).detach().numpy()
    assert network.exported().logits(features) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_rollouts_respect_memory_and_are_decided_by_the_seed(task):
    policy = scrambled().exported()
    first, again, other = (rollout(task, policy, np.random.default_rng(seed), 4) for seed in (0, 0, 1))
    assert np.array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)
    chosen = np.take_along_axis(first.masks, first.actions[..., None], axis=-1)
    assert chosen.all()
    assert np.isfinite(first.returns).all()


def test_a_greedy_rollout_of_the_environment_is_what_the_compiler_places(task):
    """The environment that trains and the placer that compiles must not drift apart."""
    policy = PolicyNetwork().exported()
    certain = policy.weights | {"greed": policy.weights["greed"] * 1e9}
    policy = type(policy)(certain)
    episode = rollout(task, policy, np.random.default_rng(0), 1)
    placement = place_by_policy(task.judge, task.options, policy)
    assert placement is not None
    expected = task.judge.judge(placement).step_time_ms / task.even_ms.sum()
    assert episode.returns[0] == pytest.approx(expected, rel=1e-6)


def test_a_step_makes_better_actions_likelier(task):
    network = scrambled()
    episode = rollout(task, network.exported(), np.random.default_rng(0), 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = policy_loss(network, episode)
    optimizer.zero_grad()
    before.backward()
    optimizer.step()
    assert policy_loss(network, episode) < before


def test_training_writes_weights_that_load_and_repeats_for_a_seed(tmp_path, monkeypatch):
    import shardc.learn.train_policy as module

    monkeypatch.setattr(module, "_TASKS", 4)
    monkeypatch.setattr(module, "_VALIDATION_TASKS", 2)
    monkeypatch.setattr(module, "_TEST_TASKS", 2)
    threads = torch.get_num_threads()
    paths = [tmp_path / name for name in ("one", "two")]
    seen = []
    for path in paths:
        metadata = train_policy(
            path, profiles=["h100-80gb"], steps=3, seed=5, progress=lambda *update: seen.append(update)
        )
    torch.set_num_threads(threads)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (metadata["seed"], metadata["steps"], metadata["profiles"]) == ("5", "3", "h100-80gb")
    assert float(metadata["step_time_over_cost_greedy"]) > 0
    assert seen[0][:2] == (3, 3)
    load_policy(paths[0])
