from __future__ import annotations

from pathlib import Path

import pytest

from shardc.check.find import find_specs
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
    assert find_specs(["./a.toml", "a.toml", str(Path("a.toml").absolute()), "b/../a.toml", "."]) == [
        "./a.toml",
        "new.toml",
        "b/c.toml",
    ]


def test_a_file_that_says_format_elsewhere_is_no_spec(folder):
    Path("other.toml").write_text("[tool]\nformat = 1\n")
    assert "other.toml" not in find_specs(["."])


def test_specs_below_a_folder(folder):
    assert find_specs(["."]) == ["a.toml", "new.toml", "b/c.toml"]


def test_globs_plans_and_files_are_each_once(folder):
    assert find_specs(["**/c.*", "new.plan.json", "new.toml", "missing.toml"]) == [
        "b/c.toml",
        "new.toml",
        "missing.toml",
    ]


@pytest.mark.parametrize("nothing", [".hidden/x*.toml", "empty"])
def test_nothing_to_check_is_no_success(folder, nothing):
    Path("empty").mkdir()
    with pytest.raises(DiagnosticError) as caught:
        find_specs([nothing])
    assert caught.value.exit_code == 2
