from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shardc.diagnostics import CODES
from shardc.passes.place import EVALUATIONS
from shardc.rules import parse_rules, read_rules

ROOT = Path(__file__).parents[1]
RULES = read_rules()
BASE = {
    "": "format = 1",
    "[model]": 'name = "m"\nmodule = "ebc"\nglobal_batch = 1024',
    "[cluster]": 'device = "h100-80gb"\ndevices_per_host = 2',
    "[defaults]": "dim = 16\npooling = 2",
    "[compile]": 'effort = "fast"',
    "[[table]]": 'name = "user_id"\nrows = 1000',
}
"""A valid spec by section: what an example is put into."""


def spec_with(fragment: str) -> str:
    """Put a fragment into the spec above: its keys instead of those, its tables instead of that one."""
    title, sections = "", [("", [])]
    for line in fragment.splitlines():
        if line.startswith("["):
            title = line
            sections.append((title, []))
        elif line:
            sections[-1][1].append(line)
    written = {title for title, _ in sections}
    kept = {title: lines.splitlines() for title, lines in BASE.items() if title != "[[table]]" or title not in written}
    for title, lines in sections:
        keys = {line.partition(" =")[0] for line in lines}
        if title in kept:
            lines[:0] = [line for line in kept.pop(title) if line.partition(" =")[0] not in keys]
    top = kept.pop("", [])
    return (
        "\n".join(
            [*top, *sections[0][1], *("\n".join([title, *lines]) for title, lines in [*kept.items(), *sections[1:]])]
        )
        + "\n"
    )


def examples(language: str) -> list[str]:
    return [code for code, rule in RULES.items() if rule.example and rule.example.language == language]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that has nothing but a valid spec."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 100)
    Path("model.toml").write_text(spec_with(""))
    return tmp_path


# --- The entries ------------------------------------------------------------------------------------------------------


def test_every_code_has_an_entry_of_its_own_meaning():
    assert {code: rule.title for code, rule in RULES.items()} == CODES
    assert list(RULES) == list(CODES)


def test_every_entry_says_what_to_do():
    assert not [code for code, rule in RULES.items() if len(rule.fix) < 10 or len(rule.meaning) < 40]


def test_examples_are_of_specs_or_commands():
    languages = {rule.example.language for rule in RULES.values() if rule.example}
    assert languages == {"toml", "console"}


def test_the_spec_that_examples_change_is_fine(folder, run_command):
    assert run_command("compile", "model.toml").code == 0


@pytest.mark.parametrize("code", examples("toml"))
def test_the_fragment_provokes_its_code(folder, run_command, code):
    Path("model.toml").write_text(spec_with(RULES[code].example.text))
    compiled = run_command("compile", "model.toml")
    said = compiled.out + compiled.err
    if compiled.code == 0:
        said += run_command("check", "model.toml").out
    assert re.search(rf"^{code} ", said, re.MULTILINE), said


@pytest.mark.parametrize("code", examples("console"))
def test_the_commands_provoke_their_code(folder, run_command, code):
    said = ""
    for line in RULES[code].example.text.splitlines():
        assert line.startswith("$ ")
        if line.startswith("$ shardc ") and ">" not in line:
            done = run_command(*shlex.split(line)[2:])
            said = done.out + done.err
        else:
            said = in_shell(line[2:])
    assert re.search(rf"^{code} ", said, re.MULTILINE), said


def in_shell(line: str) -> str:
    script = f'shardc() {{ "$PYTHON" -m shardc "$@"; }}\n{line}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False).stderr


def test_every_code_is_tested_somewhere():
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    tested = set(re.findall(r"SH\d{3}", "".join(path.read_text() for path in files)))
    assert not CODES.keys() - tested


@pytest.mark.parametrize(
    "text",
    [
        "## SH101: unknown key\n\nWhy.\n\nFix: this.\n",
        "# Specs\n\n## SH101: unknown key\n\nWhy.\n",
        "# Specs\n\n## SH101: unknown key\n\nWhy.\n\nMore.\n\nFix: this.\n",
        "# Specs\n\n" + "## SH101: unknown key\n\nWhy.\n\nFix: this.\n\n" * 2,
        "# Specs\n\n## Overview\n\nWhy.\n\nFix: this.\n",
    ],
)
def test_a_malformed_document_is_refused(text):
    with pytest.raises(ValueError, match=r"SH101|Overview"):
        parse_rules(text)


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_rule_is_printed_with_its_example(run_command):
    done = run_command("rule", "SH101")
    assert done.code == 0
    assert done.out.startswith("SH101: unknown key\n\n")
    assert "\nExample:\n    [model]\n    global_bach = 1024\n\nFix: " in done.out


def test_a_code_may_be_in_lower_case(run_command):
    assert run_command("rule", "sh101").out == run_command("rule", "SH101").out


def test_all_codes_are_listed_by_family(run_command):
    done = run_command("rule")
    assert dict(re.findall(r"^  (SH\d{3})  (.*)$", done.out, re.MULTILINE)) == CODES
    headings = re.findall(r"^\S.*$", done.out, re.MULTILINE)
    assert len(headings) == len(set(headings)) > 5


@pytest.mark.parametrize("code", ["SH101", "SH403"])
def test_json_has_the_whole_entry(run_command, code):
    read = json.loads(run_command("rule", code, "--format", "json").out)
    assert read["code"] == code
    assert read["title"] == CODES[code]
    assert read["fix"]
    assert (read["example"] is None) == (RULES[code].example is None)
    assert read in json.loads(run_command("rule", "--format", "json").out)


@pytest.mark.parametrize("code", list(CODES))
def test_markdown_of_an_entry_reads_as_that_entry(run_command, code):
    rule = RULES[code]
    printed = run_command("rule", code, "--format", "markdown").out
    assert parse_rules(f"# {rule.family}\n\n{printed}") == {code: rule}


def test_markdown_lists_all_codes(run_command):
    listed = run_command("rule", "--format", "markdown").out
    assert dict(re.findall(r"^- `(SH\d{3})` (.*)$", listed, re.MULTILINE)) == CODES


@pytest.mark.parametrize(
    ("code", "hint"),
    [("SH1O1", "did you mean SH101? "), ("101", "did you mean SH101? "), ("SH1011", "did you mean SH101? "), ("x", "")],
)
def test_an_unknown_code_is_told_with_the_closest(run_command, code, hint):
    done = run_command("rule", code)
    assert (done.code, done.out) == (2, "")
    assert done.err == f'SH902 no diagnostic has the code "{code}"\nhelp: {hint}shardc rule lists all codes\n\n'
