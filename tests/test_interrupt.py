"""Ctrl-C while a spec is compiled: a real signal, sent when a pass is at work, and what becomes of the plan."""

import signal
from pathlib import Path

import pytest

from shardc import pipeline
from shardc.judge import Judge
from shardc.passes import infeasible, place
from shardc.passes.lower import lower
from shardc.passes.profile import profile
from shardc.passes.verify import verify
from shardc.placers import exact, local_search, migrate, random
from shardc.plan import read_plan
from shardc.spec import load_spec

SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 8192
[cluster]
device = "h100-80gb"
devices_per_host = 4
memory = "{memory}"
reserve = "0%"
[defaults]
rows = 100_000
dim = 64
"""


@pytest.fixture
def compile_(tmp_path, monkeypatch, run_command):
    """Compile a spec of twenty tables that has a plan already, in this process."""
    monkeypatch.chdir(tmp_path)
    write("80GB")
    Path("model.plan.json").write_text("the old plan")
    return lambda *arguments: run_command("compile", "model.toml", *arguments)


def write(memory: str) -> None:
    tables = (f'[[table]]\nname = "t{number}"\npooling = {number + 1}\n' for number in range(20))
    Path("model.toml").write_text(SPEC.format(memory=memory) + "".join(tables))


def interrupt_in(monkeypatch, module, name: str, *, call: int = 1) -> None:
    """Send this process SIGINT when a function is called for the nth time."""
    original, calls = getattr(module, name), []

    def interrupted(*given, **more):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*given, **more)

    monkeypatch.setattr(module, name, interrupted)


def offered() -> Path:
    """The plan that is offered, which fits the spec; the old one is as it was."""
    assert Path("model.plan.json").read_text() == "the old plan"
    kept = Path("model.plan.json.interrupted")
    loaded = load_spec("model.toml")
    assert verify(read_plan(str(kept)), loaded, lower(loaded, pipeline.devices_of(loaded), {}).cluster) == []
    return kept


@pytest.mark.parametrize(
    ("module", "name"),
    [(pipeline, "lower"), (pipeline, "profile"), (place, "lower_bound"), (place, "cost_greedy")],
)
def test_before_there_is_a_placement_that_is_said(compile_, monkeypatch, module, name):
    interrupt_in(monkeypatch, module, name)
    done = compile_()
    assert done.code == 130
    assert done.err.endswith("\ninterrupted: there is no plan yet; model.plan.json is as it was\n")
    assert sorted(path.name for path in Path().iterdir()) == ["model.plan.json", "model.toml"]
    assert Path("model.plan.json").read_text() == "the old plan"


@pytest.mark.parametrize(("name", "call"), [("heuristic_greedy", 2), ("place_by_policy", 1)])
def test_while_tables_are_placed_first_the_best_so_far_is_offered(compile_, monkeypatch, name, call):
    interrupt_in(monkeypatch, place, name, call=call)
    done = compile_()
    assert done.code == 130
    assert "interrupted: model.plan.json is as it was; the best plan so far (" in done.err
    plan = read_plan(str(offered()))
    assert plan.chosen.reason == place.Why.INTERRUPTED
    assert not plan.chosen.strategy.endswith("+search")
    assert len(plan.candidates) < 6


@pytest.mark.parametrize("call", [1, 50])
def test_in_local_search_what_it_found_so_far_is_offered(compile_, monkeypatch, call):
    interrupt_in(monkeypatch, local_search._Search, "_exchange_some", call=call)
    assert compile_().code == 130
    plan = read_plan(str(offered()))
    (searched,) = (candidate for candidate in plan.candidates if candidate.strategy.endswith("+search"))
    others = [candidate.step_time_ms for candidate in plan.candidates if candidate is not searched]
    assert searched.step_time_ms <= min(others)


@pytest.mark.parametrize("name", ["_Program", "_Highs"])
def test_in_the_exact_solver_what_local_search_found_is_offered(compile_, monkeypatch, name):
    pytest.importorskip("highspy")
    interrupt_in(monkeypatch, exact, name)
    monkeypatch.setitem(place.EVALUATIONS, "thorough", 1000)
    assert compile_("--effort", "thorough").code == 130
    assert read_plan(str(offered())).score.step_time_ms > 0


def test_in_emission_the_plan_is_offered(compile_, monkeypatch):
    interrupt_in(monkeypatch, pipeline, "emit")
    assert compile_().code == 130
    offered()


@pytest.mark.parametrize(("name", "call"), [("point", 1), ("_let_go", 1), ("_let_go", 2), ("_homeward", 2)])
def test_near_a_base_what_was_found_so_far_is_offered(compile_, monkeypatch, name, call):
    monkeypatch.setitem(place.EVALUATIONS, "fast", 500)
    assert compile_("--effort", "fast", "-o", "base.json").code == 0
    write("70GB")
    interrupt_in(monkeypatch, migrate._Near, name, call=call)
    assert compile_("--effort", "fast", "--base", "base.json").code == 130
    plan = read_plan(str(offered()))
    assert plan.migration.moved_bytes == 0


def test_while_it_is_found_out_why_nothing_fits_there_is_no_plan(compile_, monkeypatch):
    write("100MB")
    interrupt_in(monkeypatch, infeasible, "changes")
    done = compile_()
    assert done.code == 130
    assert done.err.endswith("interrupted: there is no plan yet; model.plan.json is as it was\n")


def test_the_second_time_ends_everything(compile_, monkeypatch):
    interrupt_in(monkeypatch, place, "cost_greedy")
    interrupt_in(monkeypatch, pipeline, "emit")
    assert compile_().code == 130
    assert sorted(path.name for path in Path().iterdir()) == ["model.plan.json", "model.toml"]


def test_what_highs_has_found_is_kept(compile_, monkeypatch):
    """A search that is ended when HiGHS has an own placement has that."""
    pytest.importorskip("highspy")
    loaded = load_spec("model.toml")
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware, {})
    judge = Judge(problem, profile(problem, hardware, loaded).cost)
    solvers, create = [], exact._Highs.__init__

    def spy(self, *given) -> None:
        solvers.append(self)
        create(self, *given)

    def ask(done: float, step_ms: float) -> bool:
        known = solvers[0].ended().placement
        if known is not None and judge.judge(known).step_time_ms < start_ms:
            raise local_search.Ended
        return True

    monkeypatch.setattr(exact._Highs, "__init__", spy)
    start = random.place_at_random(judge, list(problem.first_option), 0)
    start_ms = judge.judge(start).step_time_ms
    found = exact.solve(judge, start, watch=ask)
    assert found.status is exact.Status.LIMIT
    assert judge.judge(found.placement).step_time_ms == found.step_time_ms < start_ms
    with pytest.raises(local_search.Ended):
        interrupted_alone(monkeypatch, judge)


def interrupted_alone(monkeypatch, judge: Judge) -> None:
    """A search that nobody watches does not swallow what it is ended by."""

    def ended(*given):
        raise local_search.Ended

    monkeypatch.setattr(exact._Highs, "_run", ended)
    exact.solve(judge)
