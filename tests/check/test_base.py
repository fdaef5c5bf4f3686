from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from shardc.check.base import read_base
from shardc.diagnostics import DiagnosticError

PLAN = (Path(__file__).parents[2] / "examples/dlrm-small.plan.json").read_text()


def git(*arguments: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *arguments], check=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/m.plan.json").write_text(PLAN)
    git("init", "-qb", "main")
    git("add", ".")
    git("commit", "-qm", "a plan")
    Path("models/m.plan.json").write_text("{}")


def test_a_plan_at_a_revision(repository):
    base = read_base("HEAD", "models/m.plan.json")
    assert base.name == "models/m.plan.json at HEAD"
    assert base.plan.model.module in base.plan.plan
    assert base.argument == "HEAD:./models/m.plan.json"
    assert read_base("HEAD", "models/new.plan.json").plan is None


def test_a_plan_in_a_folder(repository):
    Path("old/models").mkdir(parents=True)
    Path("old/models/m.plan.json").write_text(PLAN)
    assert read_base("old", "models/m.plan.json").name == "old/models/m.plan.json"
    assert read_base("old", "models/new.plan.json").plan is None


@pytest.mark.parametrize("base", ["no-such-branch", "--output=x"])
def test_neither_file_nor_revision(repository, base):
    with pytest.raises(DiagnosticError) as caught:
        read_base(base, "models/m.plan.json")
    assert (caught.value.exit_code, caught.value.diagnostics[0].code) == (2, "SH410")
    assert not Path("x").exists()


def test_a_base_whose_shards_make_up_no_table_is_refused_by_name(repository):
    document = json.loads(PLAN)
    (tables,) = document["plan"].values()
    next(table for table in tables.values() if "shards" in table)["ranks"] = []
    Path("edited.json").write_text(json.dumps(document))
    base = read_base("edited.json", "models/m.plan.json")
    assert base.plan is None
    assert base.fault.startswith("edited.json cannot be used: SH306 table ")


def test_a_base_that_is_truncated_is_of_no_use(repository):
    Path("models/m.plan.json").write_text(PLAN[:500])
    git("commit", "-qam", "damaged")
    Path("copy").mkdir()
    Path("copy/x.plan.json").write_text("{}")
    for base, path, name in (
        ("HEAD", "models/m.plan.json", "models/m.plan.json at HEAD"),
        ("HEAD:models/m.plan.json", "x.plan.json", "HEAD:models/m.plan.json"),
        ("models/m.plan.json", "models/m.plan.json", "models/m.plan.json"),
        ("copy", "x.plan.json", "copy/x.plan.json"),
    ):
        found = read_base(base, path)
        assert (found.plan, found.name) == (None, name)
        assert found.fault.startswith(f"{name} cannot be used: SH302 ")


def test_a_base_that_was_edited_is_of_no_use(repository):
    step = json.loads(PLAN)["score"]["step_time_ms"]
    Path("edited.json").write_text(PLAN.replace(f'"step_time_ms": {step}', '"step_time_ms": 0.1'))
    base = read_base("edited.json", "models/m.plan.json")
    assert base.plan is None
    assert base.fault.startswith("edited.json was edited after it was compiled")


def test_one_plan_of_a_revision(repository):
    base = read_base("HEAD:models/m.plan.json", "models/new.plan.json")
    assert (base.name, base.argument) == ("HEAD:models/m.plan.json",) * 2
    assert base.plan.model.module in base.plan.plan


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("HEAD:models", "HEAD:models is a folder of a revision"),
        ("HEAD:models/n.plan.json", "there is no HEAD:models/n.plan.json"),
        ("no-such-branch:m.plan.json", "no-such-branch:m.plan.json is no file, folder or git revision here"),
    ],
)
def test_what_a_revision_does_not_have_as_a_file(repository, base, said):
    with pytest.raises(DiagnosticError, match=f"SH410 nothing to compare with: {said}$"):
        read_base(base, "models/m.plan.json")


def test_a_revision_comes_before_a_folder_of_its_name(repository):
    git("branch", "old")
    Path("old/models").mkdir(parents=True)
    assert read_base("old", "models/m.plan.json").name == "models/m.plan.json at old"
    assert read_base("./old", "models/m.plan.json").name == "./old/models/m.plan.json"
    assert (
        read_base("main@{2020-01-01 10:00:00}", "models/m.plan.json").name
        == "models/m.plan.json at main@{2020-01-01 10:00:00}"
    )


def test_without_git_that_is_what_is_told(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DiagnosticError) as error:
        read_base("HEAD", "models/m.plan.json")
    assert (
        error.value.diagnostics[0].message == "nothing to compare with: HEAD is no file or folder, and there is no git"
    )
