"""Checks where there is little to go by: costs without device times, plans without a bound, folders without git."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from test_checks import Committed, spec_text

import shardc
from shardc.check.base import read_base
from shardc.check.checks import check
from shardc.check.context import Base, CheckReport
from shardc.check.find import find
from shardc.check.frozen import check_frozen
from shardc.diagnostics import DiagnosticError
from shardc.hardware import PROFILES
from shardc.passes.place import EVALUATIONS
from shardc.pipeline import load
from shardc.plan import Plan, plan_bytes, read_plan


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Committed:
    monkeypatch.setitem(EVALUATIONS, "fast", 1000)
    return Committed(tmp_path)


def codes(report: CheckReport) -> list[str]:
    return [finding.code for finding in report.findings]


class Lookups:
    """A cost of somebody's own: it knows no times of devices, and no bound."""

    def encode(self, shards):
        return shards.lookups[:, None]

    def score(self, z):
        return z[..., 0].max(axis=-1)


def test_without_times_of_devices_neither_their_balance_nor_their_change_is_judged(committed):
    budget = '[budget]\nbalance = "99.9%"\ndevice_time = "0%"\n'
    committed.rewrite([("a", 40), ("b", 1)], budget)
    committed.plan.write_bytes(plan_bytes(shardc.compile(committed.spec, cost=Lookups())))
    plan = read_plan(committed.plan)
    report = check_frozen(load(committed.spec), Base("the plan before", plan, "before.json"))
    assert [(finding.code, finding.notes) for finding in report.findings] == [("SH404", ()), ("SH410", ())]
    assert report.gap is None


def test_enough_memory_left_free_is_no_finding(committed):
    committed.rewrite(extra='[budget]\nheadroom = "10%"\n')
    committed.compile()
    assert committed.codes() == []
    committed.rewrite(extra='[budget]\nheadroom = "99.9%"\n')
    assert committed.codes() == ["SH405"]


def test_a_plan_without_a_bound_has_no_gap_to_contradict(committed):
    committed.edit(lambda document: document.update(bound=None))
    report = check_frozen(load(committed.spec))
    assert codes(report) == []
    assert report.gap is None


def test_of_recorded_accesses_a_frozen_check_says_that_it_reads_none(committed):
    pytest.importorskip("torch")
    import torch

    torch.save(torch.arange(1000), committed.spec.parent / "a.pt")
    committed.spec.write_text(spec_text().replace("pooling = 40", 'pooling = 40\naccess = { indices = "a.pt" }'))
    committed.compile()
    (note,) = check_frozen(load(committed.spec)).notes
    assert note.startswith("accesses are recorded in files, which --frozen does not read")
    assert check(load(committed.spec)).notes == ()


def test_a_damaged_device_is_no_finding_about_the_plan(committed):
    folder = committed.spec.parent / "device"
    folder.mkdir()
    committed.spec.write_text(spec_text().replace("h100-80gb", "device"))
    (folder / "profile.json").write_bytes((PROFILES / "cpu-epyc" / "profile.json").read_bytes()[:-10])
    for checked in (check, check_frozen):
        with pytest.raises(DiagnosticError, match="SH601") as caught:
            checked(load(committed.spec))
        assert caught.value.exit_code == 2


def test_without_git_there_is_no_revision_to_compare_with(committed, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(
        DiagnosticError, match="SH410 nothing to compare with: main is no file or folder, and there is no git"
    ):
        read_base("main", str(committed.plan))


@pytest.fixture(params=["modes", "errors"])
def closed(committed, monkeypatch, request) -> str:
    """Make a spec and a folder that cannot be read beside the committed spec, and return why not."""
    monkeypatch.chdir(committed.spec.parent)
    Path("closed").mkdir()
    if request.param == "modes":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        Path("secret.toml").write_text(spec_text())
        for name in ("closed", "secret.toml"):
            Path(name).chmod(0)
        return "permission denied"
    Path("secret.toml").symlink_to("secret.toml")
    look = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return "too many levels of symbolic links"


def test_what_cannot_be_read_is_told(closed, run_command):
    found = find(["."])
    assert found.specs == ["model.toml", "secret.toml"]
    assert [finding.message for finding in found.unseen] == [f"cannot look into the folder closed: {closed}"]
    with pytest.raises(DiagnosticError) as caught:
        find(["closed"])
    assert [finding.message for finding in caught.value.diagnostics] == [
        f"cannot look into the folder closed: {closed}"
    ]
    for command in ("validate", "check --frozen --jobs 1"):
        done = run_command(*command.split(), ".")
        assert done.code == 2
        assert f"SH002 cannot read the spec secret.toml: {closed}\n" in done.err
        assert f"SH002 cannot look into the folder closed: {closed}\n" in done.err


def test_devices_are_not_compared_with_those_of_a_base_that_has_others(committed):
    base = Base("the plan before", read_plan(committed.plan), "before.json")
    committed.rewrite(extra='[budget]\ndevice_time = "0%"\ndevice_memory = "0%"\n')
    committed.spec.write_text(committed.spec.read_text().replace("devices_per_host = 2", "devices_per_host = 3"))
    committed.compile()
    assert codes(check(load(committed.spec), base=base)) == ["SH410"]


def test_a_base_without_loads_has_no_time_to_change_by(committed):
    """As an older plan of no tables on any device of its model that took time."""
    committed.rewrite(extra='[budget]\ndevice_time = "0%"\n')
    committed.compile()
    document = json.loads(committed.plan.read_text())
    for device in document["score"]["devices"]:
        device |= {"forward_ms": 0.0, "backward_ms": 0.0}
    base = Base("the plan before", Plan.model_validate(document), "before.json")
    assert codes(check(load(committed.spec), base=base)) == []
