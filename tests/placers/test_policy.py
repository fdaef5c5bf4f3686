import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from brute_force import broken

from shardc import pipeline
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.passes.profile import profile
from shardc.pipeline import POLICY
from shardc.placers.episode import FEATURES, offered_options
from shardc.placers.greedy import HEURISTICS, heuristic_greedy
from shardc.placers.policy import (
    POLICY_FORMAT,
    Policy,
    initial,
    load_policy,
    place_by_policy,
    scores,
    weights_digest,
)
from shardc.placers.random import place_at_random
from shardc.spec import parse_spec
from shardc.suites import packed, problems


def judge_of(spec: dict) -> Judge:
    loaded = parse_spec(spec)
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware)
    return Judge(problem, profile(problem, hardware, loaded).cost)


# --- What it does -----------------------------------------------------------------------------------------------------


def test_alone_it_is_better_than_the_papers_heuristics():
    policy = load_policy(POLICY)
    for spec in problems("metasyn", count=4):
        judge = judge_of(spec)
        options = [int(option) for option in judge.problem.first_option]
        others = [heuristic_greedy(judge, options, name) for name in HEURISTICS] + [place_at_random(judge, options, 0)]
        (mine,) = place_by_policy(judge, [[[option] for option in options]], policy)
        best = min(judge.judge(placement).step_time_ms for placement in others)
        assert judge.judge(mine).step_time_ms < best


def test_it_places_what_hardly_fits():
    policy = load_policy(POLICY)
    for spec in [spec for spec in problems("tight") if spec["model"]["name"].endswith(("99.0%", "99.5%"))]:
        judge = judge_of(spec)
        (placement,) = place_by_policy(judge, [offered_options(judge.problem)], policy)
        assert placement is not None, spec["model"]["name"]
        assert not broken(judge.problem, placement)


def test_it_chooses_how_to_shard():
    tables = [{"name": "huge", "rows": 40_000_000, "dim": 128, "pooling": 100, "access": "uniform"}]
    tables += [{"name": f"t{i}", "rows": 1000, "dim": 16, "pooling": 1} for i in range(12)]
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 65_536},
        "cluster": {"device": "h100-80gb", "devices_per_host": 8},
        "table": tables,
    }
    judge = judge_of(spec)
    policy = load_policy(POLICY)
    as_whole = [[int(option)] for option in judge.problem.first_option]
    whole, free = place_by_policy(judge, [as_whole, offered_options(judge.problem)], policy)
    assert judge.judge(free).step_time_ms < 0.6 * judge.judge(whole).step_time_ms


@pytest.mark.parametrize(("fill", "mixed"), [(0.97, False), (0.99, False), (0.97, True)])
def test_it_finds_room_where_there_is_hardly_any(fill, mixed):
    for seed in range(3):
        spec, _ = packed("p", np.random.default_rng(seed), fill, mixed=mixed)
        judge = judge_of(spec)
        (placement,) = place_by_policy(judge, [offered_options(judge.problem)], load_policy(POLICY))
        assert placement is not None
        assert judge.judge(placement).feasible
        assert broken(judge.problem, placement) == []


def test_the_order_in_which_tables_are_listed_has_no_influence():
    (spec,) = problems("metasyn", count=1)
    turned = spec | {"table": spec["table"][::-1]}
    found = []
    for one in (spec, turned):
        judge = judge_of(one)
        found += place_by_policy(judge, [offered_options(judge.problem)], load_policy(POLICY))
    assert found[0] == found[1]


def test_the_best_of_several_rollouts_is_no_worse_than_the_greedy_one():
    policy, better = load_policy(POLICY), 0
    for spec in problems("metasyn", count=3):
        judge = judge_of(spec)
        options = [[int(option)] for option in judge.problem.first_option]
        (once,) = place_by_policy(judge, [options], policy)
        (often,) = place_by_policy(judge, [options], policy.varied(16, seed=0), rollouts=16)
        one, best = (judge.judge(placement).step_time_ms for placement in (once, often))
        assert best <= one
        better += best < one
    assert better


# --- The network ------------------------------------------------------------------------------------------------------


def test_scores_follow_the_candidates_when_they_change_places():
    features, mask = np.random.default_rng(0).normal(size=(2, 3, 5, len(FEATURES))), np.ones((2, 3, 5), dtype=bool)
    mask[..., 1] = False
    weights, order = load_policy(POLICY).weights, [3, 0, 4, 1, 2]
    turned = scores(weights, features[:, :, order], mask[:, :, order])
    assert turned == pytest.approx(scores(weights, features, mask)[:, :, order], rel=1e-9)


def test_rollouts_can_have_weights_of_their_own():
    features, mask = np.random.default_rng(0).normal(size=(2, 3, 5, len(FEATURES))), np.ones((2, 3, 5), dtype=bool)
    rng = np.random.default_rng(1)
    several = {name: rng.normal(size=(3, *array.shape)) for name, array in initial(rng).items()}
    together = scores(several, features, mask)
    for rollout in range(3):
        alone = {name: array[rollout] for name, array in several.items()}
        one = slice(rollout, rollout + 1)
        assert together[:, one] == pytest.approx(scores(alone, features[:, one], mask[:, one]))


# --- Its weights ------------------------------------------------------------------------------------------------------


def test_the_shipped_weights_are_small_and_say_what_made_them():
    policy = load_policy(POLICY)
    assert POLICY.stat().st_size < 1e6
    assert {"seed", "steps", "profiles", "digests", "gap"} <= set(policy.metadata)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop("score"), "not the arrays of a policy"),
        (lambda arrays: arrays.update({"direct": np.zeros(3, np.float32)}), "not the arrays of a policy"),
        (lambda arrays: arrays.update(score=np.full((4, 1), np.nan, np.float32)), "not finite"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change, reason):
    arrays = safetensors.numpy.load_file(POLICY)
    change(arrays)
    path = tmp_path / "policy.safetensors"
    metadata = {"format": POLICY_FORMAT, "kind": "shardc", "weights": weights_digest(arrays)}
    path.write_bytes(safetensors.numpy.save(arrays, {"shardc": json.dumps(metadata)}))
    with pytest.raises(DiagnosticError, match=reason):
        load_policy(path)


def test_weights_that_were_altered_are_refused(tmp_path: Path):
    """One bit of one number, which leaves a policy that would place tables."""
    content = bytearray(POLICY.read_bytes())
    content[-1] ^= 1
    path = tmp_path / "policy.safetensors"
    path.write_bytes(content)
    with pytest.raises(DiagnosticError, match=r"SH602.*not the weights that training wrote"):
        load_policy(path)


def test_the_digest_tells_weights_apart():
    policy = load_policy(POLICY)
    assert policy.digest == policy.metadata["weights"]
    assert policy.digest != Policy(initial(np.random.default_rng(0))).digest


def test_rollouts_differ_in_the_same_way_in_every_process():
    """Of arrays that come in another order in each, as safetensors returns them."""
    script = "from shardc.pipeline import POLICY; from shardc.placers.policy import load_policy; "
    script += "print(load_policy(POLICY).varied(4, seed=0).digest)"
    expected = load_policy(POLICY).varied(4, seed=0).digest
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        assert run.stdout.strip() == expected


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"nonsense",
        safetensors.numpy.save({}, {"shardc": '{"format": "99"}'}),
        safetensors.numpy.save({}, {"shardc": "[]"}),
        safetensors.numpy.save({}, {"shardc": json.dumps({"format": POLICY_FORMAT, "kind": "autoshard"})}),
        safetensors.numpy.save({}, {"shardc": "[" * 100_000}),
        safetensors.numpy.save({"direct": np.zeros(1, np.float32)}).replace(
            b'"F32","shape":[1]', b'"BF16","shape":[2]'
        ),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content):
    path = tmp_path / "policy.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DiagnosticError, match="SH602"):
        load_policy(path)
