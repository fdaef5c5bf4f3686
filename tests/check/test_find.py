from __future__ import annotations

from pathlib import Path

import pytest

from shardc.check.find import find
from shardc.diagnostics import DiagnosticError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/c.toml", ".hidden/d.toml", "venv/e.toml", "a.toml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"\xef\xbb\xbfformat = 1 # spec\r\n")
    Path("venv/pyvenv.cfg").touch()
    Path("pyproject.toml").write_text("[project]\n")
    Path("new.toml").write_text("format = 2\n")
    Path("new.plan.json").write_text("{}")


def test_a_spec_is_once_whatever_it_is_called(folder):
    assert find(["./a.toml", "a.toml", str(Path("a.toml").absolute()), "b/../a.toml", "."]).specs == [
        "./a.toml",
        "new.toml",
        "b/c.toml",
    ]


def test_a_file_that_says_format_elsewhere_is_no_spec(folder):
    Path("other.toml").write_text("[tool]\nformat = 1\n")
    assert "other.toml" not in find(["."]).specs


def test_a_spec_with_the_lines_of_an_old_mac_is_not_passed_over(folder):
    Path("mac.toml").write_bytes(b"# a\rformat = 1\r[model]\r")
    assert "mac.toml" in find(["."]).specs


def test_specs_below_a_folder(folder):
    assert find(["."]).specs == ["a.toml", "new.toml", "b/c.toml"]


def test_globs_plans_and_files_are_each_once(folder):
    assert find(["**/c.*", "new.plan.json", "new.toml", "missing.toml"]).specs == [
        "b/c.toml",
        "new.toml",
        "missing.toml",
    ]


@pytest.mark.parametrize("nothing", [".hidden/x*.toml", "empty"])
def test_nothing_to_check_is_no_success(folder, nothing):
    Path("empty").mkdir()
    with pytest.raises(DiagnosticError) as caught:
        find([nothing])
    assert caught.value.exit_code == 2


def test_plans_of_a_folder_without_a_spec(folder):
    plan = (Path(__file__).parents[2] / "examples/dlrm-small.plan.json").read_bytes()
    for name in ("b/gone.plan.json", "a.plan.json", ".hidden/x.plan.json"):
        Path(name).write_bytes(plan)
    Path("terraform.plan.json").write_text("{}")
    assert find(["."]).lone == ["b/gone.plan.json"]
    assert find([".", "b"]).lone == ["b/gone.plan.json"]
    assert find(["b/gone.plan.json"]) == (["b/gone.toml"], [])
