from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from shardc.check.base import read_base
from shardc.diagnostics import DiagnosticError

PLAN = (Path(__file__).parents[2] / "examples/dlrm-small.plan.json").read_text()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/m.plan.json").write_text(PLAN)
    name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for arguments in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a plan"]):
        subprocess.run(["git", *arguments], check=True)
    Path("models/m.plan.json").write_text("{}")


def test_a_plan_at_a_revision(repository):
    base = read_base("HEAD", "models/m.plan.json")
    assert base.name == "m.plan.json at HEAD"
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
    with pytest.raises(DiagnosticError) as error:
        read_base("edited.json", "models/m.plan.json")
    (finding,) = error.value.diagnostics
    assert finding.code == "SH306"
    assert finding.message.startswith("edited.json: table ")


def test_without_git_that_is_what_is_told(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DiagnosticError) as error:
        read_base("HEAD", "models/m.plan.json")
    assert (
        error.value.diagnostics[0].message == "nothing to compare with: HEAD is no file or folder, and there is no git"
    )
