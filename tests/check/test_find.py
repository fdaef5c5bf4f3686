from __future__ import annotations

import os
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
    assert find(["b/gone.plan.json"]) == (["b/gone.toml"], [], [])


def test_a_link_is_a_spec_unless_it_leads_out_of_the_folder(folder):
    Path("links").mkdir()
    Path("links/m.toml").symlink_to("../a.toml")
    Path("links/project.toml").symlink_to("../pyproject.toml")
    Path("links/.#lock.toml").symlink_to("nobody@nowhere.1")
    assert "links/m.toml" in find(["."]).specs
    assert find(["."]).unseen == []
    assert find(["links/m.toml", "links/*.toml"]).specs == ["links/m.toml", "links/project.toml"]
    with pytest.raises(DiagnosticError) as caught:
        find(["links"])
    left_out, none = caught.value.diagnostics
    assert (none.code, caught.value.exit_code) == ("SH001", 2)
    assert (left_out.code, left_out.severity) == ("SH002", "warning")
    assert left_out.message == "links/m.toml is left out: it is a link that leads out of links"
    Path("links/b.toml").write_text("format = 1\n")
    assert find(["links", "links"]) == (["links/b.toml"], [], [left_out])


def test_links_to_folders_are_not_looked_into(folder):
    Path("b/again").symlink_to("..")
    assert find(["."]).specs == ["a.toml", "new.toml", "b/c.toml"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_a_spec_that_is_not_utf_8_is_not_passed_over(folder, encoding):
    start = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")
    Path("wide.toml").write_bytes(f"{start}# é\r\nformat = 1\r\n[model]\r\n".encode(encoding))
    Path("other.toml").write_bytes(f"{start}[tool]\r\nformat = 1\r\n".encode(encoding))
    assert [name for name in find(["."]).specs if name in ("wide.toml", "other.toml")] == ["wide.toml"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo("pipe.toml")
    assert "pipe.toml" not in find(["."]).specs
