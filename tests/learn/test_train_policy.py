"""Training on a tiny budget: what it writes, that it repeats and goes on, and what it says when it cannot."""

import csv
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from shardc.diagnostics import DiagnosticError
from shardc.files import alone_in
from shardc.hardware import load_hardware
from shardc.learn import train_policy as training
from shardc.learn.train_policy import advantages, balance, checkpoint_path, draw_tasks, kinds, returns, train_policy
from shardc.placers.episode import play
from shardc.placers.peers import load_peer
from shardc.placers.policy import METADATA, load_policy

HARDWARE = [load_hardware("h100-80gb")]


def make_small() -> None:
    """So that a step takes a blink."""
    training._GROUPS, training._VALIDATION_GROUPS, training._TEST_GROUPS = 6, 1, 1
    training._CLUSTERS, training._LARGER, training._MOST_TABLES, training._TOGETHER = ((4, 1),), (), 18, 2


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in ("_GROUPS", "_VALIDATION_GROUPS", "_TEST_GROUPS", "_CLUSTERS", "_LARGER", "_MOST_TABLES", "_TOGETHER"):
        monkeypatch.setattr(training, name, getattr(training, name))
    make_small()


def train(out: Path, **changes) -> dict[str, str]:
    return train_policy(out, **{"profiles": ["h100-80gb"], "steps": 4, "seed": 5} | changes)


# --- What it writes ---------------------------------------------------------------------------------------------------


def test_it_writes_weights_and_a_curve_and_repeats_for_a_seed(tmp_path):
    seen = []
    for name in ("one", "two"):
        metadata = train(tmp_path / f"{name}.safetensors", progress=lambda *update: seen.append(update))
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (metadata["seed"], metadata["steps"], metadata["profiles"]) == ("5", "4", "h100-80gb")
    assert seen[-1][:2] == (4, 4)
    load_policy(tmp_path / "one.safetensors")
    rows = list(csv.DictReader((tmp_path / "one.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["gap"]) >= 0 for row in rows)
    ElementTree.fromstring((tmp_path / "one.svg").read_text())
    assert not checkpoint_path(tmp_path / "one.safetensors").exists()


@pytest.mark.parametrize("kind", ["autoshard", "dreamshard"])
def test_the_papers_policies_are_trained_by_the_same_command(kind, tmp_path):
    train(tmp_path / "w.safetensors", kind=kind, steps=2)
    load_peer(tmp_path / "w.safetensors", kind)


@pytest.mark.parametrize("kind", ["shardc", "dreamshard"])
def test_training_improves_what_it_is_trained_for(kind):
    how = kinds()[kind]
    tasks = [draw_tasks([0, g], HARDWARE, whole=True, count=4) for g in range(6)]
    first = how.initial(np.random.default_rng(0))
    memory = how.memory(sum(array.size for array in first.values()))
    state = training._State(0, first, memory, first, np.inf, [])
    settings = training.Settings(kind, (), (), 60, 0, 1, "")

    def cost(weights) -> float:
        return float(np.mean([returns(how, group, play(group, how.scorer(weights))) for group in tasks]))

    for state.step in range(1, 61):
        how.learn(how, state, tasks if kind == "shardc" else [tasks[state.step % 6]], settings, training._Ranks(0, 1))
    assert cost(state.weights) < cost(first)


# --- Interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shardc", "dreamshard"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(kind, tmp_path):
    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, note: str) -> None:
        if step == 2:
            raise Killed

    out = tmp_path / "cut.safetensors"
    with pytest.raises(Killed):
        train(out, kind=kind, progress=kill)
    assert not out.exists()
    steps = []
    train(out, kind=kind, progress=lambda step, *_: steps.append(step))
    assert steps == [2, 3, 4]
    train(tmp_path / "whole.safetensors", kind=kind)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, note: str) -> None:
        if step:
            raise Killed

    out = tmp_path / "w.safetensors"
    with pytest.raises(Killed):
        train(out, progress=kill)
    with pytest.raises(DiagnosticError, match=r"SH602.*another run: seed, steps differ"):
        train(out, seed=6, steps=5)
    content = checkpoint_path(out).read_bytes()
    nested = safetensors.numpy.save({}, {METADATA: '{"settings":' * 30_000})
    other = safetensors.numpy.save({}, {METADATA: '{"settings": 1}'})
    flipped = bytearray(content)
    flipped[-100] ^= 1  # a low bit of a weight: structure and sizes stay
    further = content.replace(b'\\"step\\": 1', b'\\"step\\": 3')
    assert further != content
    for damaged in (content[: len(content) // 2], nested, other, bytes(flipped), further):
        checkpoint_path(out).write_bytes(damaged)
        with pytest.raises(DiagnosticError, match="SH602"):
            train(out)
    with pytest.raises(DiagnosticError, match=r"SH602.*another run: kind"):
        checkpoint_path(out).write_bytes(content)
        train(out, kind="dreamshard")


def test_tasks_that_nothing_fits_are_refused_and_the_checkpoint_stays(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, note: str) -> None:
        if step:
            raise Killed

    out = tmp_path / "w.safetensors"
    with pytest.raises(Killed):
        train(out, progress=kill)
    before = checkpoint_path(out).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(training, "_FILL", (3.0, 4.0))
        with pytest.raises(DiagnosticError, match=r"SH20.*does not fit"):
            train(out, progress=lambda *_: pytest.fail("it trained"))
    assert checkpoint_path(out).read_bytes() == before
    assert not out.exists()
    train(out)


@pytest.mark.parametrize(
    ("kind", "what"), [("dreamshard", "advantages"), ("dreamshard", "returns"), ("shardc", "returns")]
)
def test_what_is_no_longer_finite_ends_training_and_the_checkpoint_stays(kind, what, tmp_path, monkeypatch):
    def once(*arguments):
        found = original(*arguments)
        return found * np.nan if steps and steps[-1] == 2 else found

    steps, original = [], getattr(training, what)
    monkeypatch.setattr(training, what, once)
    out = tmp_path / "w.safetensors"
    with pytest.raises(DiagnosticError, match=r"SH606.*after step 3"):
        train(out, kind=kind, progress=lambda step, *_: steps.append(step))
    arrays = safetensors.numpy.load_file(checkpoint_path(out))
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not out.exists()


def test_validation_that_is_not_finite_ends_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "balance", lambda cost, z: balance(cost, z) * np.nan)
    with pytest.raises(DiagnosticError, match="SH606"):
        train(tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


# --- What it refuses --------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "w.csv").mkdir()
    for out, code in (
        (tmp_path / "file" / "w.safetensors", "SH004"),
        (tmp_path / "w.safetensors", "SH004"),
        (tmp_path, "SH902"),
        (Path(), "SH902"),
    ):
        with pytest.raises(DiagnosticError, match=code):
            train(out, progress=lambda *_: pytest.fail("it trained"))


def test_two_runs_do_not_write_into_one_folder_at_once(tmp_path):
    with alone_in(tmp_path), pytest.raises(DiagnosticError, match=r"SH004.*another process"):
        train(tmp_path / "w.safetensors", progress=lambda *_: pytest.fail("it trained"))


def test_nothing_that_is_there_is_overwritten_unless_it_is_told_to(tmp_path, run_command):
    table = tmp_path / "model.csv"
    table.write_text("name,rows\n")
    command = ("train", "policy", "--steps", "1", "--profile", "h100-80gb", "-q", "-o")
    for name, code in (("model.safetensors", "SH004"), ("w.checkpoint", "SH902"), ("w.csv", "SH902"), ("-", "SH902")):
        done = run_command(*command, str(tmp_path / name))
        assert (done.code, code in done.err) == (2, True), done
    assert [path.name for path in tmp_path.iterdir()] == ["model.csv"]
    assert table.read_text() == "name,rows\n"
    assert run_command(*command, str(tmp_path / "model.safetensors"), "--force").code == 0
    assert table.read_text().startswith("step,")


def test_no_tasks_and_no_profiles_are_refused():
    for hardware, count in ((HARDWARE, 0), ([], 4)):
        with pytest.raises(DiagnosticError, match=r"SH902.*no tasks"):
            draw_tasks([0], hardware, whole=True, count=count)


# --- Rewards ----------------------------------------------------------------------------------------------------------


def test_a_rollout_that_got_stuck_is_charged_more_than_any_other():
    how = kinds()["dreamshard"]
    for seed in range(40):
        tasks = draw_tasks([seed], HARDWARE, whole=True, count=2)
        played = play(
            tasks, how.scorer(how.initial(np.random.default_rng(0))), rollouts=8, rng=np.random.default_rng(0)
        )
        costs = returns(how, tasks, played)
        if some := [n for n in range(2) if 0 < played.stuck[n].sum() < 8]:
            break
    assert some
    for task in some:
        assert costs[task][played.stuck[task]].min() > costs[task][~played.stuck[task]].max() + 1
    assert advantages(how, tasks, played).mean(axis=1) == pytest.approx([0, 0], abs=1e-9)


# --- Processes --------------------------------------------------------------------------------------------------------


_SCRIPT = """
import sys
from pathlib import Path
from test_train_policy import make_small, training
make_small()
training.train_policy(Path(sys.argv[1]), profiles=["h100-80gb"], steps=3, seed=5, kind=sys.argv[2])
"""


def environment(**more: str) -> dict[str, str]:
    tests = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parents[1])))} | more


@pytest.mark.parametrize("kind", ["shardc", "dreamshard"])
def test_every_process_trains_the_same_weights(kind, tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path / name), kind]
        subprocess.run(command, check=True, env=environment(PYTHONHASHSEED=str(len(name) + ord(name[0]))))
    train(tmp_path / "here.safetensors", kind=kind, steps=3)
    written = [path.read_bytes() for path in tmp_path.glob("*.safetensors")]
    assert (len(written), len(set(written))) == (3, 1)


@pytest.mark.parametrize("kind", ["shardc", "dreamshard"])
def test_two_ranks_train_together(kind, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(script), str(tmp_path / "w.safetensors"), kind]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    content = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["shardc"])
    assert metadata["ranks"] == "2"
    train(tmp_path / "alone.safetensors", kind=kind, steps=3)
    assert safetensors.numpy.load_file(tmp_path / "alone.safetensors").keys() == safetensors.numpy.load(content).keys()
