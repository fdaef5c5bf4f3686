from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tomli
from brute_force import broken, problem_of, random_cost, random_spec, ways_of
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.check.checks import check, restate
from shardc.check.context import Base, CheckReport
from shardc.check.frozen import check_frozen
from shardc.judge import Judge
from shardc.passes.emit import emit
from shardc.passes.lower import lower_cluster
from shardc.passes.place import EVALUATIONS, Choice, Why
from shardc.passes.restore import placement_of
from shardc.passes.verify import verify
from shardc.pipeline import devices_of, load, run
from shardc.plan import Digests, default_plan_path, default_spec_path, plan_bytes, read_plan
from shardc.problem import Placement
from shardc.spec import SHARDING_TYPES

SPEC = """\
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
"""
TABLES = [("a", 40), ("b", 30), ("c", 20), ("d", 10)]


def spec_text(tables=TABLES, extra: str = "") -> str:
    return SPEC + extra + "".join(f'[[table]]\nname = "{name}"\npooling = {pooling}\n' for name, pooling in tables)


class Committed:
    """A folder with a spec and its compiled plan."""

    def __init__(self, folder: Path) -> None:
        self.spec = folder / "model.toml"
        self.plan = folder / "model.plan.json"
        self.spec.write_text(spec_text())
        self.compile()

    def compile(self) -> None:
        self.plan.write_bytes(plan_bytes(run(load(self.spec)).plan))

    def rewrite(self, tables=TABLES, extra: str = "") -> None:
        self.spec.write_text(spec_text(tables, extra))

    def edit(self, change) -> None:
        document = json.loads(self.plan.read_text())
        change(document)
        document.pop("digest", None)  # what finds other edits has tests of its own
        self.plan.write_text(json.dumps(document))

    def move(self, name: str, rank: int) -> None:
        """Move a table by hand, leaving the stated figures as they are but for the memory, which verify counts."""

        def change(document: dict) -> None:
            placed = document["plan"]["ebc"][name]
            placed["ranks"] = [rank]
            placed["shards"][0]["placement"] = f"rank:{rank}/cuda:{rank}"

        self.edit(change)

    def move_all(self, rank: int) -> None:
        """Put every table on one device, and state the memory that this takes."""
        for name, _ in TABLES:
            self.move(name, rank)

        def account(document: dict) -> None:
            devices = document["score"]["devices"]
            total = sum(device["memory_bytes"] for device in devices)
            for device in devices:
                device["memory_bytes"] = total if device["rank"] == rank else 0

        self.edit(account)

    def check(self) -> CheckReport:
        return check(load(self.spec))

    def codes(self) -> list[str]:
        return [finding.code for finding in self.check().findings]


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Committed:
    monkeypatch.setitem(EVALUATIONS, "fast", 1000)
    return Committed(tmp_path)


def test_the_plan_is_beside_the_spec():
    assert default_plan_path("examples/model.toml") == "examples/model.plan.json"
    assert default_plan_path(Path("a.b.toml")) == "a.b.plan.json"
    assert default_spec_path("examples/model.plan.json") == "examples/model.toml"
    assert default_spec_path(Path("a.b.json")) is None


def test_a_plan_just_compiled_has_no_findings(committed):
    report = committed.check()
    assert report.findings == ()
    assert report.notes == ()
    plan = read_plan(committed.plan)
    assert report.step_time_ms == pytest.approx(plan.score.step_time_ms, rel=1e-5)
    assert report.gap == pytest.approx(plan.bound.gap, abs=1e-5)


def test_checking_changes_no_file(committed):
    before = {path.name: path.read_bytes() for path in committed.spec.parent.iterdir()}
    committed.check()
    assert {path.name: path.read_bytes() for path in committed.spec.parent.iterdir()} == before


def test_a_missing_plan(committed):
    committed.plan.unlink()
    (finding,) = committed.check().findings
    assert finding.code == "SH301"
    assert finding.help == f"run shardc compile {committed.spec}"


def test_what_is_not_a_plan(committed):
    committed.plan.write_text("{")
    assert committed.codes() == ["SH302"]
    committed.plan.write_text('{"format": 2}')
    assert committed.codes() == ["SH303"]


def test_a_plan_that_cannot_be_read_is_a_finding_of_its_spec(committed):
    committed.plan.write_bytes(b"{\xff}")
    assert committed.codes() == codes_frozen(committed) == ["SH003"]
    assert check(load(committed.spec), update=True).updated.startswith("SH003")
    assert committed.codes() == []
    committed.plan.unlink()
    committed.plan.symlink_to(committed.plan.name)
    assert committed.codes() == codes_frozen(committed) == ["SH002"]
    committed.plan.unlink()
    committed.plan.mkdir()
    assert committed.codes() == codes_frozen(committed) == ["SH002"]
    assert check(load(committed.spec), update=True).updated is None


def codes_frozen(committed) -> list[str]:
    return [finding.code for finding in check_frozen(load(committed.spec)).findings]


def test_a_spec_that_fits_no_longer(committed):
    committed.rewrite([*TABLES[:3], ("e", 1)])
    assert committed.codes() == ["SH304", "SH304"]
    committed.rewrite()
    committed.spec.write_text(committed.spec.read_text().replace("devices_per_host = 2", "devices_per_host = 4"))
    assert committed.codes() == ["SH309"]


def test_a_spec_that_is_infeasible_now(committed):
    committed.spec.write_text(committed.spec.read_text().replace("= 2\n", '= 2\nmemory = "1MiB"\n', 1))
    assert committed.codes() == ["SH201"] * len(TABLES)


def test_a_spec_changed_within_the_budget_is_a_note(committed):
    committed.rewrite([("a", 40.01), *TABLES[1:]])
    report = committed.check()
    assert report.findings == ()
    assert report.notes == ("the spec has changed since its plan was compiled",)


def test_a_plan_that_has_become_slower(committed):
    slower = [(name, 1.5 * pooling) for name, pooling in TABLES]
    committed.rewrite(slower)
    (finding,) = committed.check().findings
    assert finding.code == "SH401"
    assert str(committed.plan) in finding.message
    assert "2% is allowed" in finding.help
    assert finding.location is None
    committed.rewrite(slower, '[budget]\nstep_time = "200%"\n')
    assert committed.codes() == []
    committed.rewrite(slower, '[budget]\nstep_time = "3%"\n')
    (finding,) = committed.check().findings
    assert finding.location.text == 'step_time = "3%"'


def test_times_by_other_costs_are_named_and_not_compared(committed):
    """TorchRec's estimates of this plan are far from the profile's; they make it neither slower nor worse."""
    stated = read_plan(committed.plan).score.step_time_ms
    committed.spec.write_text(committed.spec.read_text() + '\n[budget]\nimprovement = "900%"\n')
    committed.spec.write_text(committed.spec.read_text().replace("[compile]\n", '[compile]\ncost = "torchrec"\n'))
    report = committed.check()
    assert report.step_time_ms > 1.5 * stated
    assert report.findings == ()
    assert report.notes == (
        "the spec has changed since its plan was compiled",
        "the plan states its times by other costs (profile, now torchrec)",
    )
    committed.compile()
    assert committed.check().notes == ()


def test_a_gap_over_the_budget(committed):
    committed.rewrite(extra='[budget]\ngap = "0%"\n')
    (finding,) = committed.check().findings
    assert finding.code == "SH402"
    assert finding.location.text == 'gap = "0%"'
    committed.rewrite(extra='[budget]\ngap = "500%"\n')
    assert committed.codes() == []


def test_a_better_plan(committed):
    committed.move_all(0)
    committed.rewrite([("a", 40.01), *TABLES[1:]], '[budget]\nstep_time = "900%"\n')
    report = committed.check()
    (finding,) = report.findings
    assert finding.code == "SH403"
    assert finding.help == f"run shardc compile {committed.spec} and review the diff"
    extra = '[budget]\nstep_time = "900%"\nimprovement = "900%"\n'
    committed.rewrite([("a", 40.01), *TABLES[1:]], extra)
    assert committed.codes() == []


def test_a_plan_worsened_by_hand(committed):
    committed.move_all(1)
    findings = committed.check().findings
    assert [finding.code for finding in findings] == ["SH310", "SH401", "SH403"]
    assert "truly" in findings[0].message


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("score", "step_time_ms"), "score.step_time_ms"),
        (("score", "balance"), "score.balance"),
        (("score", "phases", "forward"), "score.phases.forward"),
        (("score", "devices", 0, "backward_ms"), "score.devices[0].backward_ms"),
        (("bound", "step_time_ms"), "bound.step_time_ms"),
    ],
)
def test_stated_figures_that_are_not_true(committed, path, where):
    def change(document: dict) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] *= 0.999

    committed.edit(change)
    findings = committed.check().findings
    assert findings[0].code == "SH310"
    assert f"states {where} = " in findings[0].message


def test_a_missing_figure_is_not_true(committed):
    committed.edit(lambda document: document["score"]["phases"].pop("forward"))
    (finding,) = committed.check().findings
    assert finding.code == "SH310"
    assert "score.phases.forward = None" in finding.message


def test_stated_figures_may_differ_once_the_profile_has_changed(committed):
    def change(document: dict) -> None:
        document["score"]["devices"][0]["memory_limit_bytes"] += 1
        document["digests"]["profile"] = "sha256:0"

    committed.edit(change)
    report = committed.check()
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("SH406", "warning")
    assert finding.location.text == 'device = "h100-80gb"'
    assert not report.failed


@pytest.mark.parametrize("policy", [None, "sha256:0"])
def test_a_plan_of_another_policy_is_as_good_and_held_to_what_it_states(policy, committed):
    def older(document: dict) -> None:
        document["digests"]["policy"] = policy

    committed.edit(older)
    assert committed.codes() == []
    assert check_frozen(load(committed.spec)).findings == ()

    def slower(document: dict) -> None:
        document["score"]["devices"][0]["forward_ms"] *= 1.01

    committed.edit(slower)
    assert committed.codes() == ["SH310"]


def test_a_digest_edited_by_hand_does_not_hide_other_edits(committed):
    """Other digests make stated figures incomparable with today's; the plan's own tells of it."""
    text = committed.plan.read_text()
    spec = json.loads(text)["digests"]["spec"]
    committed.plan.write_text(text.replace(spec, "sha256:00").replace('"seed": 0', '"seed": 1'))
    assert "SH312" in committed.codes()
    committed.plan.write_text(json.dumps(json.loads(text), indent=4))  # a formatter is no edit
    assert committed.codes() == []


def test_a_plan_without_a_digest_may_stay_but_it_is_told(committed):
    """The first versions wrote none, and removing it is the simplest way to hide an edit."""
    committed.edit(lambda document: None)
    for report in (committed.check(), check_frozen(load(committed.spec))):
        assert report.findings == ()
        (note,) = report.notes
        assert "the plan has no digest" in note
    assert check(load(committed.spec), update=True).updated is not None
    assert committed.check().notes == ()


def test_figures_that_contradict_each_other_are_found_whatever_the_digests(committed):
    def change(document: dict) -> None:
        document["score"]["step_time_ms"] *= 0.99
        document["digests"]["profile"] = "sha256:0"

    committed.edit(change)
    findings = committed.check().findings
    assert [finding.code for finding in findings] == ["SH310", "SH406"]


def test_budgets_of_a_plan_and_their_severities(committed):
    tight = '[budget]\nbalance = "100%"\nheadroom = "100%"\n'
    committed.rewrite(extra=tight)
    assert committed.codes() == ["SH404", "SH405"]
    committed.rewrite(extra=tight + 'severity = { SH404 = "warning", SH405 = "off" }\n')
    report = committed.check()
    assert [(f.code, f.severity) for f in report.findings] == [("SH404", "warning")]
    assert not report.failed


def test_a_plan_compared_with_an_older_one(committed):
    committed.rewrite(extra='[budget]\nmoved = "0%"\ndevice_time = "0%"\ndevice_memory = "0%"\n')
    base = Base("old", read_plan(committed.plan), "old")
    assert check(load(committed.spec), base=base).findings == ()
    committed.move_all(0)
    codes = {finding.code for finding in check(load(committed.spec), base=base).findings}
    assert {"SH407", "SH408", "SH409"} <= codes


@pytest.mark.parametrize(
    ("limit", "allowed"), [("300MiB", True), ("26%", True), ("200 MiB", False), ("24%", False), ("0", False)]
)
def test_what_moves_is_limited_as_a_share_or_as_bytes(committed, limit, allowed):
    base = Base("old", read_plan(committed.plan), "old")
    committed.move("a", 1 - base.plan.plan["ebc"]["a"].ranks[0])  # 248 MiB, a quarter of all
    committed.plan.write_bytes(plan_bytes(restated(read_plan(committed.plan), committed.spec)))
    committed.rewrite(extra=f'[budget]\nmoved = "{limit}"\n')
    loaded = load(committed.spec)
    for report in (check(loaded, base=base), check_frozen(loaded, base)):
        found = [finding for finding in report.findings if finding.code == "SH407"]
        assert len(found) == (not allowed)
        for finding in found:
            assert finding.message.startswith("25.0% of all shards (248 MiB) would have to move from old to ")
            assert finding.message.endswith(f", {limit} is allowed")
            assert f"--base old --max-moved {shlex.quote(limit)} and" in finding.help
    assert "SH410" in {finding.code for finding in check(loaded).findings}  # nothing to compare with


def test_a_share_is_a_percentage_or_a_fraction(committed):
    committed.rewrite(extra="[budget]\nbalance = 1\nheadroom = 0.999\n")
    findings = committed.check().findings
    assert [finding.code for finding in findings] == ["SH404", "SH405"]
    assert "1 is asked for" in findings[0].message
    assert "0.999 is asked for" in findings[1].message
    committed.rewrite(extra="[budget]\nbalance = 0.01\nheadroom = 0.01\n")
    assert committed.codes() == []


def near_spec(pooling: int, extra: str = "") -> str:
    """Eight tables on four devices, of which one has changed: the best placement of all is far from the old one."""
    spec = SPEC.replace("devices_per_host = 2", "devices_per_host = 4") + extra
    lookups = [pooling, 34, 31, 27, 22, 17, 11, 6]
    return spec + "".join(f'[[table]]\nname = "t{i}"\npooling = {n}\n' for i, n in enumerate(lookups))


@pytest.fixture
def replanned(committed, run_command, monkeypatch):
    """A plan compiled near an older one, with the budget that it was compiled with."""
    monkeypatch.chdir(committed.spec.parent)
    committed.spec.write_text(near_spec(20))
    committed.compile()
    Path("old.json").write_bytes(committed.plan.read_bytes())
    committed.spec.write_text(near_spec(60, '[budget]\nmoved = "26%"\nimprovement = "0%"\n'))
    assert run_command("compile", "-q", "model.toml", "--base", "old.json", "--max-moved", "26%").code == 0
    return run_command


def test_a_plan_chosen_within_the_budget_of_moved_bytes_is_the_best_there_is(replanned, committed):
    alone = run(load(committed.spec)).plan.score.step_time_ms
    assert alone < 0.99 * read_plan(committed.plan).score.step_time_ms  # what moves everything is faster
    done = replanned("check", "model.toml", "--base", "old.json")
    assert (done.code, "1 spec checked, none with findings" in done.out) == (0, True)
    assert "SH403" in replanned("check", "model.toml", "--format", "concise").out  # nothing says what may move


def test_what_is_better_within_the_budget_of_moved_bytes_is_told_and_written(replanned, committed):
    good = committed.plan.read_bytes()
    committed.plan.write_bytes(plan_bytes(restated(read_plan(Path("old.json")), committed.spec)))
    done = replanned("check", "model.toml", "--base", "old.json")
    assert done.code == 1
    assert "SH403 a newly compiled plan that moves no more than 26% from old.json takes " in done.out
    assert "help: run shardc compile model.toml --base old.json --max-moved 26% and review the diff" in done.out
    assert replanned("check", "model.toml", "--base", "old.json", "--update").code == 0
    assert committed.plan.read_bytes() == good


@pytest.mark.parametrize("limit", ["26%", "530 MiB"])
def test_a_plan_that_moves_too_much_is_replaced_by_one_within_the_budget(replanned, committed, limit):
    committed.spec.write_text(near_spec(60, f'[budget]\nmoved = "{limit}"\nimprovement = "0%"\n'))
    good = committed.plan.read_bytes()
    committed.compile()  # without a base
    done = replanned("check", "model.toml", "--base", "old.json", "--format", "concise")
    assert (done.code, "SH407" in done.out, "SH403" in done.out) == (1, True, False)
    done = replanned("check", "model.toml", "--base", "old.json", "--update", "-q")
    assert (done.code, committed.plan.read_bytes() == good) == (0, True)
    committed.plan.unlink()
    assert replanned("check", "model.toml", "--base", "old.json", "--update").code == 0
    assert committed.plan.read_bytes() == good


def test_where_nothing_moves_so_little_that_is_told_and_nothing_written(replanned, committed):
    text = near_spec(60, '[budget]\nmoved = "0%"\n').replace('"t7"\n', '"t7"\npin = [{}]\n')
    rank = next(iter(read_plan(Path("old.json")).plan["ebc"]["t7"].ranks))
    committed.spec.write_text(text.format((rank + 1) % 4))
    committed.plan.unlink()
    done = replanned("check", "model.toml", "--base", "old.json", "--update")
    assert (done.code, committed.plan.exists()) == (1, False)
    assert "SH301" in done.out
    assert "note: model.toml: no plan was found that moves 0% or less: " in done.out


def restated(plan, spec):
    loaded = load(spec)
    return restate(plan, loaded, run(loaded))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ([], "moved, device_time are not checked for model.plan.json: there is no --base"),
        (
            ["--base", "empty"],
            "moved, device_time are not checked for model.plan.json: there is no empty/model.plan.json",
        ),
    ],
)
@pytest.mark.parametrize("frozen", [[], ["--frozen"]])
def test_budgets_that_are_not_checked_are_told(committed, run_command, monkeypatch, base, said, frozen):
    monkeypatch.chdir(committed.spec.parent)
    Path("empty").mkdir()
    committed.rewrite(extra='[budget]\nmoved = "1%"\ndevice_time = "5%"\n')
    done = run_command("check", "model.toml", *base, *frozen)
    assert (done.code, done.err) == (0, "")
    assert f"SH410 warning: {said}\n  --> model.toml:16:9\n" in done.out
    assert "1 spec checked, none with findings, 1 with warnings only" in done.out
    (finding,) = json.loads(run_command("check", "model.toml", *base, *frozen, "--format", "json").out)["specs"][0][
        "findings"
    ]
    assert (finding["code"], finding["severity"], finding["message"]) == ("SH410", "warning", said)
    committed.rewrite(extra='[budget]\nmoved = "1%"\nseverity = { SH410 = "error" }\n')
    assert run_command("check", "model.toml", *base, *frozen).code == 1


@pytest.mark.parametrize(("budget", "line"), [("", 1), ('[budget]\nmoved = "1%"\n', 16)])
@pytest.mark.parametrize("frozen", [[], ["--frozen"]])
def test_a_base_that_cannot_be_used_does_not_stop_what_repairs_it(
    committed, run_command, monkeypatch, budget, line, frozen
):
    monkeypatch.chdir(committed.spec.parent)
    committed.rewrite(extra=budget)
    committed.compile()
    Path("old.json").write_text(committed.plan.read_text()[:500])
    done = run_command("check", "model.toml", "--base", "old.json", *frozen, "--format", "json")
    assert done.code == 0
    (finding,) = json.loads(done.out)["specs"][0]["findings"]
    assert (finding["code"], finding["severity"]) == ("SH410", "warning")
    assert (finding["location"]["file"], finding["location"]["line"]) == ("model.toml", line)
    assert "old.json cannot be used: SH302 not JSON" in finding["message"]


def test_a_base_that_does_not_compare_is_told(committed):
    before = Base("old", read_plan(committed.plan), "old")
    committed.spec.write_text(
        spec_text(extra='[budget]\nmoved = "100%"\ndevice_time = "900%"\ndevice_memory = "900%"\n').replace(
            "devices_per_host = 2", "devices_per_host = 4"
        )
    )
    committed.compile()
    (finding,) = check(load(committed.spec), base=before).findings
    assert finding.message.endswith("old is for 2 devices, not 4")
    assert finding.message.startswith("device_time, device_memory are not checked for ")


def test_frozen_checks_take_stated_figures(committed):
    assert check_frozen(load(committed.spec)).findings == ()
    committed.rewrite([("a", 40.01), *TABLES[1:]], '[budget]\nheadroom = "100%"\n')
    assert [finding.code for finding in check_frozen(load(committed.spec)).findings] == ["SH311", "SH405"]
    committed.rewrite([*TABLES[:3], ("e", 1)])
    assert {finding.code for finding in check_frozen(load(committed.spec)).findings} == {"SH304"}


def test_update_writes_a_plan_that_passes(committed):
    good = committed.plan.read_bytes()
    assert check(load(committed.spec), update=True).updated is None
    committed.move_all(1)
    assert "instead of" in check(load(committed.spec), update=True).updated
    assert committed.plan.read_bytes() == good
    committed.plan.unlink()
    assert check(load(committed.spec), update=True).updated.startswith("SH301")
    assert committed.plan.read_bytes() == good
    committed.plan.write_text('{"format": 2}')
    report = check(load(committed.spec), update=True)
    assert (report.failed, report.updated) == (True, None)


def test_a_placement_survives_emission(committed, tmp_path):
    text = spec_text([*TABLES, ("e", 5), ("f", 5), ("g", 5)])
    for name, kind in (("e", "column_wise"), ("f", "row_wise"), ("g", "data_parallel")):
        text = text.replace(f'"{name}"\n', f'"{name}"\nsharding = ["{kind}"]\n')
    for name in ("a", "d"):
        text = text.replace(f'"{name}"\n', f'"{name}"\ngroup = "together"\n')
    committed.spec.write_text(text)
    compiled = run(load(committed.spec))
    assert placement_of(compiled.plan, compiled.choice.judge.problem) == compiled.choice.placement


def several_hosts(*tables: dict, **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1000},
        "cluster": {"device": "h100-80gb", "hosts": 2, "devices_per_host": 3} | cluster,
        "defaults": {"rows": 1001, "dim": 64, "pooling": 3},
        "table": [{"name": f"t{i}"} | table for i, table in enumerate(tables)],
        "compile": {"effort": "fast"},
    }


@pytest.mark.parametrize("type", SHARDING_TYPES)
def test_a_plan_of_any_type_is_read_back(type, tmp_path):
    """On hosts that differ, in columns that are of one width and that are not."""
    tables = [{"dim": dim, "sharding": [type]} for dim in (20, 44, 64, 128)]
    loaded = load(several_hosts(*tables, host=[{"hosts": [1], "device": "a100-40gb"}]))
    compiled = run(loaded)
    problem, path = compiled.choice.judge.problem, tmp_path / "m.plan.json"
    path.write_bytes(plan_bytes(compiled.plan))
    plan = read_plan(path)
    assert {placed.sharding_type for placed in plan.plan["ebc"].values()} == {type}
    assert verify(compiled.plan, loaded, problem.cluster) == []
    assert plan.cluster.host_devices == ("h100-80gb", "a100-40gb")
    assert placement_of(plan, problem) == compiled.choice.placement


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_placement_is_read_back_from_its_plan(seed):
    """Whatever a placer may come up with, not only what it does."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    if (problem := problem_of(spec)) is None:
        return
    ways = [list(ways_of(problem, block)) for block in range(len(problem.blocks))]
    if not all(ways):
        return
    placement = Placement(*zip(*(of_block[rng.integers(len(of_block))] for of_block in ways), strict=True))
    loaded, judge = load(spec), Judge(problem, random_cost(rng, problem))
    choice = Choice(
        judge=judge,
        placement=placement,
        judgement=judge.judge(placement),
        bound=None,
        strategy="by hand",
        why=Why.HEURISTIC_BETTER,
        candidates=(),
    )
    plan = emit(loaded, choice, digests=Digests(spec="", profile=None), seed=0)
    # A placement that breaks no constraint is a plan without faults, and the other way round: only a last block of
    # rows, which the search charges as a full one, may let a plan fit where its placement does not.
    faults = {finding.code for finding in verify(plan, loaded, problem.cluster)}
    wrong = broken(problem, placement)
    assert faults <= {"SH307", "SH308"}
    assert ("SH308" in faults) == any("bytes" not in fault for fault in wrong)
    assert "SH307" not in faults or any("bytes" in fault for fault in wrong)
    assert placement_of(plan, problem) == placement


def test_hosts_and_ranks_that_are_not_the_plans(tmp_path):
    """Another device makes it a plan for another cluster, less memory one that does not fit."""
    table = {"rows": 10**6, "sharding": ["table_row_wise"], "pin": [3, 4, 5]}
    loaded = load(several_hosts(table))
    compiled = run(loaded)
    assert compiled.plan.plan["ebc"]["t0"].ranks == (3, 4, 5)

    def faults(**cluster) -> list[str]:
        other = load(several_hosts(table, **cluster))
        found = verify(compiled.plan, other, lower_cluster(other, devices_of(other)))
        return [f"{finding.code} {finding.message}" for finding in found if finding.code != "SH310"]

    assert faults() == []
    (found,) = faults(host=[{"hosts": [1], "device": "a100-40gb"}])
    assert found.startswith("SH309 the plan is for host_devices")
    (found,) = faults(rank=[{"ranks": [4], "memory": "100MB"}])
    assert found.startswith("SH307 device 4 needs")
    assert faults(rank=[{"ranks": [1], "memory": "1MB"}]) == []


def test_a_sharding_that_is_no_option(committed):
    """Columns of widths that are far apart: TorchRec runs them, shardc does not make them."""
    committed.spec.write_text(spec_text().replace('sharding = ["table_wise"]', 'sharding = ["column_wise"]'))
    committed.compile()

    def change(document: dict) -> None:
        document["digests"]["profile"] = "sha256:0"
        for shard, offset, width in zip(document["plan"]["ebc"]["a"]["shards"], (0, 48), (48, 16), strict=True):
            shard["shard_offsets"][1], shard["shard_sizes"][1] = offset, width

    committed.edit(change)
    (finding,) = committed.check().findings
    assert finding.code == "SH308"
    assert 'table "a": column_wise in 2 pieces' in finding.message


def test_a_spec_that_is_no_file_has_no_plan():
    with pytest.raises(ValueError, match="read from a file"):
        check(load(tomli.loads(spec_text())))


def test_a_plan_with_cached_tables_has_no_findings_and_other_caches_do(committed):
    """The share that is cached has more digits than plans state."""
    room = 'host_memory = "1TiB"\n[defaults]\nkernels = ["fused_uvm_caching"]\ncache_ratio = 0.123456789\n'
    text = spec_text().replace("[defaults]\n", room)
    committed.spec.write_text(text)
    committed.compile()
    placed = json.loads(committed.plan.read_text())["plan"]["ebc"]["a"]
    assert (placed["compute_kernel"], placed["cache_params"]) == ("fused_uvm_caching", {"load_factor": 0.123457})
    assert committed.codes() == []
    committed.spec.write_text(text.replace("0.123456789", "0.2"))
    assert set(committed.codes()) == {"SH308"}
    committed.spec.write_text(spec_text())
    assert set(committed.codes()) == {"SH308"}
