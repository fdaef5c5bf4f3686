from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from brute_force import random_spec, ways_of
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc import cli
from shardc.diagnostics import DiagnosticError
from shardc.explain import Alternative, Lifted, Situation, explain_plan, explain_table, situate
from shardc.pipeline import run
from shardc.plan import plan_bytes, read_plan
from shardc.problem import Placement
from shardc.render.explain import explained_text
from shardc.settings import parse_settings
from shardc.spec import SHARDING_TYPES, load_spec, parse_spec


def spec_of(*tables: dict, **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 65536},
        "cluster": {"device": "h100-80gb", "devices_per_host": 4} | cluster,
        "defaults": {"rows": 1_000_000, "dim": 64, "access": {"zipf": 1.05}},
        "table": [{"name": f"t{index}"} | table for index, table in enumerate(tables)],
        "compile": {"effort": "fast"},
    }


def explained(spec: dict) -> Situation:
    loaded = parse_spec(spec)
    return situate(run(loaded).plan, loaded)


def block_of(situation: Situation, name: str) -> int:
    problem = situation.problem
    return next(b for b, members in enumerate(problem.blocks) if any(problem.tables[t].name == name for t in members))


def with_block(placement: Placement, block: int, option: int, places: tuple[int, ...]) -> Placement:
    options, all_places = list(placement.option), list(placement.places)
    options[block], all_places[block] = option, places
    return Placement(tuple(options), tuple(all_places))


def true_ways(situation: Situation, block: int) -> list[tuple[Alternative, bool]]:
    """Every way to place a block, all others being where they are, as the judge itself weighs it; and if it is fine."""
    problem, found = situation.problem, []
    for option, places in ways_of(problem, block):
        judgement = situation.judge.judge(with_block(situation.placement, block, option, places))
        ranks: set[int] = set()
        for place in places:
            devices = problem.devices_of(option, place)
            ranks |= set(range(devices.start, devices.stop))
        pieces = int(problem.option_units[option] * problem.site_size[problem.option_site[option]])
        cached = min(problem.cached_of(option)) < 1.0
        way = Alternative(
            str(problem.option_type[option]), pieces, tuple(sorted(ranks)), cached, judgement.step_time_ms
        )
        found.append((way, judgement.feasible))
    return found


def assert_true(situation: Situation, name: str) -> None:
    """Every figure that is stated of a table is the judge's own, and nothing that is allowed is left out."""
    found = explain_table(situation, name)
    ways = true_ways(situation, block_of(situation, name))
    stated = [found.here, *found.elsewhere, *found.otherwise]
    for way in stated:
        if way.step_time_ms is not None:
            alike = [(true, fine) for true, fine in ways if replace(way, obstacle=None) == true]
            if way.obstacle is None:
                assert any(fine for _, fine in alike) or way == found.here, way
            else:
                assert not any(fine for _, fine in alike), way
    for true, fine in ways:
        if fine and true.pieces == 1:  # every place of a whole table is looked at
            alike = [way for way in stated if way.sharding_type == true.sharding_type and way.cached == true.cached]
            assert min(way.step_time_ms or 0.0 for way in alike if way.obstacle is None) <= (true.step_time_ms or 0.0)
    offered = {way.sharding_type for way in stated}
    assert offered | set(found.missing) == set(SHARDING_TYPES)
    assert not offered & set(found.missing)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_stated_of_a_table_is_what_the_judge_says(seed):
    spec = random_spec(np.random.default_rng(seed))
    try:
        situation = explained(spec)
    except DiagnosticError:  # nothing fits
        return
    for table in situation.problem.tables:
        assert_true(situation, table.name)


def test_times_of_tables_add_up_to_those_of_the_slowest_devices():
    situation = explained(spec_of(*({"pooling": p} for p in (40, 30, 20, 10, 5, 3))))
    found = explain_plan(situation, helps=False)
    assert sum(phase.ms for phase in found.phases) == pytest.approx(found.step_time_ms)
    assert situation.tables_ms.sum() == pytest.approx(found.step_time_ms)
    for phase in found.phases:
        assert phase.slowest[0][1] == phase.ms >= phase.slowest[1][1]
        assert phase.mean_ms <= phase.ms
    shares = [explain_table(situation, table.name).share for table in situation.problem.tables]
    assert sum(shares) == pytest.approx(1.0)


def test_a_pin_that_binds_is_named_with_what_it_costs_and_lifting_it_helps_as_much_as_is_said():
    tables = [{"pooling": 60, "pin": [0]}, {"pooling": 60, "pin": [0]}, {"pooling": 5}, {"pooling": 5}]
    spec = spec_of(*tables) | {"defaults": {"rows": 1_000_000, "dim": 64, "sharding": ["table_wise"]}}
    situation = explained(spec)
    found = explain_table(situation, "t0")
    (pin,) = [constraint for constraint in found.constraints if constraint.kind is Lifted.PIN]
    assert (pin.what, pin.setting, pin.binding) == ("pin = [0]", "table.t0.pin=", True)
    assert all(way.obstacle == "pin" for way in found.elsewhere)
    assert pin.best is not None
    # Of a spec without the pin, the judge says the same of that place.
    free = situate(situation.plan, situation.loaded.changed(parse_settings(["table.t0.pin="])))
    assert pin.best.step_time_ms in [way.step_time_ms for way in explain_table(free, "t0").elsewhere]
    helps = explain_plan(situation).helps
    released = next(help for help in helps if "pin" in help.what)
    assert released.arguments[0] == "--set"
    again = run(situation.loaded.changed(parse_settings(released.arguments[1::2])))
    assert again.plan.score.step_time_ms <= released.step_time_ms * 1.001
    assert released.step_time_ms < 0.8 * situation.judgement.step_time_ms


HELPED = [
    spec_of({"pooling": 90, "sharding": ["table_wise"]}, {"pooling": 5}, {"pooling": 5}),
    spec_of({"pooling": 30, "group": "g"}, {"pooling": 30, "group": "g"}, {"pooling": 5}),
    spec_of({"pooling": 30}, {"pooling": 30}, {"pooling": 5}, devices_per_host=1),
    spec_of(*({"rows": 40_000_000, "pooling": p} for p in (60, 9, 3)), memory="16GB", devices_per_host=3),
]


@pytest.mark.parametrize("spec", HELPED)
def test_what_is_said_to_help_does_when_it_is_compiled(spec):
    situation = explained(spec)
    found = explain_plan(situation)
    assert found.helps
    assert [help.step_time_ms for help in found.helps] == sorted(help.step_time_ms for help in found.helps)
    for help in found.helps:
        assert help.step_time_ms < found.step_time_ms
        if help.arguments[:1] == ("--set",):
            changed = situation.loaded.changed(parse_settings([a for a in help.arguments if a != "--set"]))
            assert run(changed).plan.score.step_time_ms <= help.step_time_ms * 1.01, help


def test_memory_that_binds_is_found():
    # Two of these tables fit on a device, and the one with many lookups had better be alone.
    tables = [{"rows": 40_000_000, "pooling": p, "sharding": ["table_wise"]} for p in (60, 20, 20, 20)]
    situation = explained(spec_of(*tables, devices_per_host=2, memory="26GB", reserve="1%"))
    found = explain_plan(situation)
    (memory,) = [help for help in found.helps if help.what.startswith("give devices")]
    assert memory.arguments[1].startswith("cluster.memory=")
    (heavy,) = explain_table(situation, "t0").here.ranks
    light = next(n for n in ("t1", "t2", "t3") if explain_table(situation, n).here.ranks == (heavy,))
    table = explain_table(situation, light)
    assert [way.obstacle for way in table.elsewhere] == ["memory: lacks 5.21 GiB"]
    (limit,) = [constraint for constraint in table.constraints if constraint.kind is Lifted.MEMORY]
    assert limit.binding
    assert limit.best is not None
    assert limit.best.ranks == (1 - heavy,)
    # What cannot be had has no share of the step time beside it, as if it could.
    text = explained_text(table, width=100, color=False, unicode=True)
    (other,) = (line for line in text.splitlines() if "lacks" in line)
    assert other.endswith(" ms    does not fit: memory: lacks 5.21 GiB")


def test_the_bound_is_explained_by_the_largest_table_where_that_makes_it():
    alone = explained(spec_of({"pooling": 100, "sharding": ["table_wise"]}, *({"pooling": 1} for _ in range(3))))
    found = explain_plan(alone, helps=False).bound
    assert (found.cause, found.table) == ("largest_table", "t0")
    many = explained(spec_of(*({"pooling": 10} for _ in range(24))))
    assert explain_plan(many, helps=False).bound.cause == "total_work"
    for situation in (alone, many):
        bound = explain_plan(situation, helps=False).bound
        assert bound.step_time_ms <= situation.judgement.step_time_ms
        assert bound.table_ms <= situation.judgement.step_time_ms


@pytest.mark.parametrize("change", [{"device": "cpu-epyc", "memory": "100GB"}, {}])
def test_measured_costs_and_estimates_of_torchrec_are_explained(change):
    spec = spec_of(*({"pooling": p} for p in (30, 20, 10)), **change)
    if not change:
        spec["compile"]["cost"] = "torchrec"
    situation = explained(spec)
    assert_true(situation, "t0")
    assert explain_plan(situation).phases


# --- The command ------------------------------------------------------------------------------------------------------

TEXT = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 65536
[cluster]
device = "h100-80gb"
devices_per_host = 2
[defaults]
rows = 1_000_000
dim = 64
sharding = ["table_wise"]
[compile]
effort = "fast"
[[table]]
name = "big"
pooling = 40
[[table]]
name = "other"
pooling = 30
pin = [0]
[[table]]
name = "third"
pooling = 10
"""


@pytest.fixture
def committed(tmp_path):
    spec = tmp_path / "model.toml"
    spec.write_text(TEXT)
    plan = tmp_path / "model.plan.json"
    plan.write_bytes(plan_bytes(run(load_spec(spec)).plan))
    return spec, plan


def test_a_plan_and_a_table_are_explained_as_text_json_and_markdown(committed, run_command):
    spec, plan = committed
    step_ms = read_plan(plan).score.step_time_ms
    text = run_command("explain", str(plan), "-q")
    assert text.code == 0
    for words in ("What a step waits for", "How far from the best", "lower bound", "What would help", "--set"):
        assert words in text.out
    document = json.loads(run_command("explain", str(spec), "--format", "json", "-q").out)
    assert document["plan"]["step_time_ms"] == pytest.approx(step_ms, rel=1e-5)
    assert document["plan"]["helps"][0]["step_time_ms"] < step_ms
    table = run_command("explain", str(plan), "other", "-q")
    assert "pin = [0]" in table.out
    document = json.loads(run_command("explain", str(plan), "other", "--format", "json", "-q").out)
    assert document["table"]["here"]["ranks"] == [0]
    assert [constraint["kind"] for constraint in document["table"]["constraints"]][:1] == ["pin"]
    assert document["warnings"][0]["code"] == "SH501"
    markdown = run_command("explain", str(plan), "other", "--format", "markdown", "-q").out
    assert "**Why here**" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    for line in rows:
        assert line.replace("\\|", "").count("|") == 6


def test_a_spec_without_plan_is_compiled_in_memory(committed, run_command):
    spec, plan = committed
    plan.unlink()
    done = run_command("explain", str(spec), "big")
    assert done.code == 0
    assert "has no plan yet" in done.err
    assert not plan.exists()


def test_a_plan_of_another_spec_is_explained_by_todays_with_a_warning(committed, run_command):
    spec, plan = committed
    spec.write_text(TEXT.replace("pooling = 40", "pooling = 80"))
    done = run_command("explain", str(plan), "big")
    assert done.code == 0
    assert "SH334 warning: the spec has changed since its plan was compiled" in done.err
    assert "pooling 80" in done.out
    quiet = run_command("explain", str(plan), "big", "-q").err
    assert "SH334" in quiet and "SH501" not in quiet
    spec.write_text(TEXT.replace("pin = [0]", "pin = [0]").replace('name = "third"', 'name = "new"'))
    assert "SH304" in run_command("explain", str(plan)).err
    same = run_command("explain", str(plan), "--set", "table.new.name=third", "-q")
    assert same.code == 0


def test_a_plan_that_breaks_the_spec_of_today_is_explained_and_says_so(committed, run_command):
    spec, plan = committed
    spec.write_text(TEXT.replace("pin = [0]", "pin = [1]").replace('name = "big"', 'name = "big"\npin = [0]'))
    document = json.loads(plan.read_text())
    at = {name: of["ranks"][0] for name, of in document["plan"]["ebc"].items()}
    assert at["other"] == 0
    done = run_command("explain", str(plan))
    assert done.code == 0
    assert "SH308 warning" in done.err
    assert "breaks limits of the spec as it is now" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{plan}", "bgi"], 2, ["SH333", 'did you mean "big"?']),
        (["{plan}", "zzzz"], 2, ["SH333", "there are: "]),
        (["{folder}/none.plan.json"], 2, ["SH001"]),
        (["{folder}/none.toml"], 2, ["SH001"]),
        (["{spec}", "big", "--format", "yaml"], 2, ["SH902"]),
        (["{plan}", "--set", "cluster.host"], 2, ["SH330"]),
        (["{renamed}"], 2, ["SH332", "not named after its spec", "--spec"]),
        (["{orphan}"], 2, ["SH332", "there is no", "--spec"]),
        (["{broken}"], 2, ["SH302"]),
        (["{spec}", "--spec", "{spec}"], 2, ["SH302"]),
    ],
)
def test_what_cannot_be_explained_is_told(committed, run_command, tmp_path, arguments, code, words):
    spec, plan = committed
    names = {"spec": spec, "plan": plan, "folder": tmp_path}
    for name, file in (("renamed", "plan.json"), ("orphan", "orphan.plan.json")):
        names[name] = tmp_path / file
        names[name].write_bytes(plan.read_bytes())
    names["broken"] = tmp_path / "broken.plan.json"
    names["broken"].write_bytes(plan.read_bytes()[:200])
    (tmp_path / "broken.toml").write_text(TEXT)
    done = run_command("explain", *(argument.format(**names) for argument in arguments))
    assert done.code == code
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_a_spec_that_nothing_fits_is_explained_with_ways_out(committed, run_command, form):
    spec, plan = committed
    plan.unlink()
    spec.write_text(TEXT.replace("rows = 1_000_000", "rows = 500_000_000").replace("dim = 64", "dim = 128"))
    done = run_command("explain", str(spec), "--format", form, "-q")
    assert done.code == 1
    shown = done.err if form == "text" else done.out
    assert "SH201" in shown
    assert "give a device 283 GiB" in shown
    if form == "json":
        assert json.loads(shown)["infeasible"][0]["help"]


def test_output_is_ascii_where_the_stream_is(committed, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with pytest.raises(SystemExit):
        cli.main(["explain", str(committed[1]), "-q"])
    assert "What a step waits for" in capfd.readouterr().out


@pytest.mark.parametrize("command", [(), ("other",)])
def test_nothing_in_a_name_is_live_in_a_comment(tmp_path, run_command, command):
    live = "![p](https://evil.example/t.png) [Approve](https://evil.example) @octocat `x` <b> a|b"
    (tmp_path / "model.toml").write_text(
        TEXT.replace('name = "m"', f'name = "{live}"').replace('"other"', f'"{live[:3]}"')
    )
    done = run_command(
        "explain", str(tmp_path / "model.toml"), *[live[:3] for _ in command], "--format", "markdown", "-q"
    )
    assert done.code == 0
    without_spans = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", done.out)
    assert not set("`@[]<") & set(without_spans.replace("[0]", ""))
    assert "http" not in without_spans
    assert command or live in done.out
