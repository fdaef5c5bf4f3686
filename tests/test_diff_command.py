"""`shardc diff`, `shardc migrate` and `shardc compile --base`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from plans import plan, replicated, sharded, whole

from shardc.passes.place import EVALUATIONS
from shardc.plan import plan_bytes, read_plan

ROOT = Path(__file__).parents[1]
SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 4096
[cluster]
device = "h100-80gb"
devices_per_host = 4
[compile]
effort = "fast"
[defaults]
dim = 32
""" + "".join(
    f'[[table]]\nname = "t{i}"\nrows = {1000 * (i + 1)}\npooling = {i + 1}\nsharding = ["table_wise"]\n'
    for i in range(8)
)


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with two plans that differ in one table, and a spec with its plan."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 200)
    Path("old.plan.json").write_bytes(plan_bytes(plan({"a": whole(0), "b": whole(1)})))
    Path("new.plan.json").write_bytes(plan_bytes(plan({"a": whole(2), "b": whole(1)})))
    Path("model.toml").write_text(SPEC)
    return run_command


@pytest.fixture
def repository(shardc_, tmp_path):
    """The same in a git repository, in which old.plan.json is committed, and another in a folder."""
    Path("sub").mkdir()
    Path("sub/model.plan.json").write_bytes(Path("new.plan.json").read_bytes())
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "old.plan.json", "sub"], [*identity, "commit", "-q", "-m", "plans"]):
        subprocess.run(["git", *command], check=True, cwd=tmp_path, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    return shardc_


# --- diff -------------------------------------------------------------------------------------------------------------


def test_a_difference_is_told_and_is_no_failure(shardc_):
    done = shardc_("diff", "old.plan.json", "new.plan.json")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "old.plan.json → new.plan.json\n1 moved; 66.4 KiB (50.0% of all shards) between devices;"
    )


def test_exit_code_tells_whether_plans_differ(shardc_):
    assert shardc_("diff", "--exit-code", "old.plan.json", "new.plan.json").code == 1
    same = shardc_("diff", "--exit-code", "old.plan.json", "old.plan.json")
    assert (same.code, same.out) == (0, "old.plan.json → old.plan.json\nthe plans are the same\n")


def test_json_and_markdown_go_to_stdout(shardc_):
    document = json.loads(shardc_("diff", "old.plan.json", "new.plan.json", "--format", "json").out)
    assert [table["name"] for table in document["tables"]] == ["a"]
    assert shardc_("diff", "old.plan.json", "new.plan.json", "--format", "markdown").out.startswith("**`m`**: 1 moved;")


@pytest.fixture
def edited(shardc_):
    """The same, and a plan in which somebody has written another step time."""
    text = Path("old.plan.json").read_text()
    Path("ed.json").write_text(text.replace('"step_time_ms": 1.0', '"step_time_ms": 0.1'))
    assert Path("ed.json").read_text() != text
    return shardc_


EDITED = "ed.json was edited after it was compiled: its figures may not be its placement's"


@pytest.mark.parametrize("arguments", [["old.plan.json", "ed.json"], ["ed.json", "old.plan.json"]])
def test_figures_of_an_edited_plan_come_with_a_warning(edited, arguments):
    done = edited("diff", *arguments)
    assert (done.code, done.err.count("SH312")) == (0, 1)
    assert done.err.startswith(f"SH312 warning: {EDITED}\nhelp: shardc compile SPEC --base PLAN --max-moved 0 ")
    document = json.loads(edited("diff", *arguments, "--format", "json").out)
    assert [(found["code"], found["message"]) for found in document["warnings"]] == [("SH312", EDITED)]
    comment = edited("diff", *arguments, "--format", "markdown")
    assert f"\n> **SH312** `{EDITED}`\n" in comment.out
    assert EDITED in comment.err


def test_an_edited_plan_is_told_once_and_another_layout_is_no_edit(edited):
    assert edited("diff", "ed.json", "ed.json").err.count("SH312") == 1
    Path("one-line.json").write_text(json.dumps(json.loads(Path("old.plan.json").read_text())))
    assert edited("diff", "old.plan.json", "one-line.json").err == ""
    document = json.loads(edited("diff", "old.plan.json", "one-line.json", "--format", "json").out)
    assert document["warnings"] == []


@pytest.mark.parametrize("arguments", [["ed.json"], ["old.plan.json", "--base", "ed.json"]])
def test_a_report_of_an_edited_plan_says_so(edited, arguments):
    done = edited("report", *arguments, "-o", "page.html")
    assert (done.code, EDITED in done.err) == (0, True)
    assert "SH312" in Path("page.html").read_text()


def test_what_is_computed_from_shards_needs_no_warning(edited):
    assert edited("migrate", "ed.json", "new.plan.json").err == ""


LONG = [f"the_embedding_table_of_a_feature_with_a_name_that_is_long_{i}" for i in range(30)]


def test_nothing_is_cut_where_the_output_is_a_file_or_a_pipe(shardc_, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    for name, start in (("old", 0), ("new", 1)):
        tables = {table: whole((start + i) % 4, rows=10**6 * (i + 1)) for i, table in enumerate(LONG)}
        Path(f"{name}.plan.json").write_bytes(plan_bytes(plan(tables, ms=[start + 1.0 + rank for rank in range(4)])))
    done = shardc_("diff", "old.plan.json", "new.plan.json")
    assert sum(name in done.out for name in LONG) >= 20
    assert done.out.count("…") == 1 and "… 10 more" in done.out
    assert max(len(line) for line in done.out.splitlines() if "█" in line) <= 120
    monkeypatch.setenv("COLUMNS", "80")
    limited = shardc_("diff", "old.plan.json", "new.plan.json").out
    assert max(map(len, limited.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "50")
    prose = shardc_("diff", "old.plan.json", "new.plan.json").out.split("\n\n")[0]
    assert max(map(len, prose.splitlines())) <= 50


def test_what_is_cut_is_marked_in_ascii_too(shardc_):
    for name, start in (("old", 0), ("new", 1)):
        tables = {table: whole((start + i) % 4, rows=10**6 * (i + 1)) for i, table in enumerate(LONG)}
        Path(f"{name}.plan.json").write_bytes(plan_bytes(plan(tables)))
    Path("bad.toml").write_text(SPEC.replace('name = "m"', f"name = 1 # {'x' * 200}"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "72", "PYTHONPATH": str(ROOT)}
    for arguments in (["diff", "old.plan.json", "new.plan.json"], ["validate", "bad.toml"]):
        done = subprocess.run(
            [sys.executable, "-m", "shardc", *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert "\\u" not in done.stdout
        assert re.search(r"\.\.\.|~", done.stdout)


def test_a_plan_of_a_revision(repository):
    done = repository("diff", "HEAD:old.plan.json", "new.plan.json")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("HEAD:old.plan.json → new.plan.json\n1 moved;")


def test_paths_of_revisions_are_gits(repository, monkeypatch):
    monkeypatch.chdir("sub")
    for name in ("HEAD:sub/model.plan.json", "HEAD:./model.plan.json"):
        assert "the plans are the same" in repository("diff", name, "model.plan.json").out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HEAD:model.plan.json", "git says: path 'model.plan.json' does not exist in 'HEAD'"),
        ("nowhere:old.plan.json", "git says: "),
        ("HEAD:--output=x", "git says: "),
    ],
)
def test_what_git_does_not_have_is_told_in_its_words(repository, name, said):
    done = repository("diff", name, "new.plan.json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"SH320 cannot read {name}: there is no such file, and git says: ")
    assert said in done.err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("name", "inside"), [("HEAD:", "HEAD:"), ("HEAD:sub", "HEAD:sub/"), ("HEAD:sub/", "HEAD:sub/")]
)
def test_a_folder_of_a_revision_is_no_plan(repository, name, inside):
    done = repository("diff", name, "new.plan.json")
    assert (done.code, done.err) == (
        2,
        f"SH320 cannot read {name}: it is a folder\nhelp: name a file in it: {inside}model.plan.json\n\n",
    )


def test_without_git_a_revision_cannot_be_read(shardc_, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = shardc_("diff", "HEAD:old.plan.json", "new.plan.json")
    assert (done.code, done.err.split()[0]) == (2, "SH320")


def test_a_file_comes_before_a_revision(shardc_):
    Path("HEAD:old.plan.json").write_bytes(Path("new.plan.json").read_bytes())
    assert "the plans are the same" in shardc_("diff", "HEAD:old.plan.json", "new.plan.json").out


def test_a_plan_from_stdin():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shardc", "diff", "-", str(ROOT / "examples/dlrm-dcnv2.plan.json")]
    data = (ROOT / "examples/dlrm-dcnv2.plan.json").read_bytes()
    for text in (data, b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")):
        done = subprocess.run(command, input=text, capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"the plans are the same" in done.stdout
    broken = subprocess.run(command, input=data[:1000], capture_output=True, env=environment, check=False)
    assert broken.returncode == 2
    assert re.match(rb"SH302 not JSON: .*\n *--> stdin:", broken.stderr)
    latin = subprocess.run(command, input=b"\xff{}", capture_output=True, env=environment, check=False)
    assert (latin.returncode, latin.stderr.split()[0]) == (2, b"SH003")


def test_stdin_cannot_be_both(shardc_):
    for command in ("diff", "migrate"):
        done = shardc_(command, "-", "-")
        assert (done.code, done.err.split()[0]) == (2, "SH902")


@pytest.mark.parametrize("command", ["diff", "migrate"])
@pytest.mark.parametrize(
    ("content", "code", "exit_code"),
    [
        (None, "SH001", 2),
        ("", "SH302", 2),
        ("{}", "SH302", 2),
        ('{"format": 99}', "SH303", 2),
        ("[1, 2]", "SH302", 2),
    ],
)
def test_what_is_no_plan_is_refused(shardc_, command, content, code, exit_code):
    if content is not None:
        Path("bad.json").write_text(content)
    done = shardc_(command, "bad.json", "new.plan.json")
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.startswith(f"{code} ")


def test_a_plan_edited_so_that_shards_make_up_no_table_is_refused(shardc_):
    gap = sharded("column_wise", [(0, 0, 0, 1000, 8), (1, 0, 12, 1000, 4)])
    Path("bad.json").write_bytes(plan_bytes(plan({"a": gap})))
    done = shardc_("diff", "old.plan.json", "bad.json")
    assert done.code == 2
    assert 'SH305 bad.json: table "a": its shards leave a gap' in done.err


def test_plans_of_a_thousand_devices_and_replicas_are_compared(shardc_):
    old, new = (plan({"a": replicated(devices=n), "b": whole(0)}, ms=(0.1,) * n) for n in (4, 1024))
    Path("few.json").write_bytes(plan_bytes(old))
    Path("many.json").write_bytes(plan_bytes(new))
    document = json.loads(shardc_("diff", "few.json", "many.json", "--format", "json").out)
    assert document["moved_bytes"] == 1020 * 68_000


# --- migrate ----------------------------------------------------------------------------------------------------------


def test_moves_are_listed_by_table(shardc_):
    columns = sharded("column_wise", [(0, 0, 0, 1500, 8), (3, 0, 8, 1500, 8)])
    Path("split.json").write_bytes(plan_bytes(plan({"a": columns, "b": whole(1), "c": whole(0, rows=10)})))
    done = shardc_("migrate", "old.plan.json", "split.json")
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines() if "→" in line] == [
        ["a", "0-999", "8-15", "0", "→", "3", "35.2", "KiB"],
        ["1,000-1,499", "0-7", "new", "→", "0", "17.6", "KiB"],
        ["1,000-1,499", "8-15", "new", "→", "3", "17.6", "KiB"],
        ["c", "0-9", "0-15", "new", "→", "0", "680", "B"],
    ]
    assert done.out.splitlines()[-1] == "1 piece of 35.2 KiB to move, 3 pieces of 35.8 KiB to initialize"


def test_moves_as_csv_and_json_are_the_same(shardc_):
    rows = list(
        csv.DictReader(io.StringIO(shardc_("migrate", "old.plan.json", "new.plan.json", "--format", "csv").out))
    )
    document = json.loads(shardc_("migrate", "old.plan.json", "new.plan.json", "--format", "json").out)
    assert [{key: str(value) for key, value in move.items()} for move in document["moves"]] == rows
    assert rows == [
        {
            "action": "move",
            "table": "a",
            "row": "0",
            "column": "0",
            "rows": "1000",
            "columns": "16",
            "source": "0",
            "target": "2",
            "bytes": "68000",
        }
    ]
    assert (document["moved_bytes"], document["new_bytes"]) == (68_000, 0)


def test_names_in_csv_are_no_commands_for_a_terminal(shardc_):
    for name, rank in (("old", 0), ("new", 1)):
        Path(f"{name}.plan.json").write_bytes(plan_bytes(plan({"a\x1b[2J": whole(rank)})))
    done = shardc_("migrate", "old.plan.json", "new.plan.json", "--format", "csv")
    assert r"a\x1b[2J" in done.out and "\x1b" not in done.out


def test_where_nothing_moves_that_is_said(shardc_):
    assert shardc_("migrate", "old.plan.json", "old.plan.json").out == "nothing moves\n"


# --- compile --base ---------------------------------------------------------------------------------------------------


def test_an_unchanged_spec_keeps_its_plan_byte_for_byte(shardc_):
    shardc_("compile", "model.toml")
    before = Path("model.plan.json").read_bytes()
    done = shardc_("compile", "model.toml", "--base", "model.plan.json", "--max-moved", "50%", "--seed", "3")
    assert done.code == 0
    assert "nothing has changed since the base was compiled: the plan is the base" in done.out
    assert Path("model.plan.json").read_bytes() == before


def test_the_front_is_printed_and_the_plan_says_what_moves(shardc_):
    shardc_("compile", "model.toml", "-o", "base.json")
    Path("model.toml").write_text(SPEC.replace("pooling = 3", "pooling = 30"))
    done = shardc_("compile", "model.toml", "--base", "base.json")
    assert done.code == 0
    assert re.search(r"\nmoves [\d.]+ \w+, [\d.]+% of all shards\n", done.out)
    assert len(re.findall(r" chosen", done.out.split("\nmoves ")[1])) == 1
    assert "without a base" in done.out
    moved = read_plan("model.plan.json").migration.moved_bytes
    listed = json.loads(shardc_("migrate", "base.json", "model.plan.json", "--format", "json").out)
    assert listed["moved_bytes"] == moved


def test_a_plan_without_a_base_does_not_mention_one(shardc_):
    shardc_("compile", "model.toml")
    assert b"migration" not in Path("model.plan.json").read_bytes()


def test_a_budget_is_kept(shardc_):
    shardc_("compile", "model.toml", "-o", "base.json")
    Path("model.toml").write_text(SPEC.replace("pooling = 3", "pooling = 30"))
    for limit, most in (("0", 0), ("0%", 0), ("0B", 0), ("200KiB", 200 * 1024), ("100%", 2**40), ("100.0%", 2**40)):
        done = shardc_("compile", "model.toml", "--base", "base.json", "--max-moved", limit, "-q")
        assert (done.code, done.out) == (0, "")
        assert read_plan("model.plan.json").migration.moved_bytes <= most


def test_a_time_limit_leaves_time_for_the_search_near_the_base(shardc_, monkeypatch):
    head = SPEC[: SPEC.index("[[table]]")].replace("4096", "65536")
    tables = [f'[[table]]\nname = "t{i}"\nrows = {30_000 * (i + 1)}\npooling = {7 * i % 13 + 1}\n' for i in range(24)]
    Path("model.toml").write_text(head + "".join(tables))
    shardc_("compile", "model.toml", "-o", "base.json")
    Path("model.toml").write_text(head + "".join(tables).replace("pooling = 8\n", "pooling = 40\n"))
    near_base = "compile", "model.toml", "--base", "base.json", "--effort", "thorough", "--max-moved", "50%"
    shardc_(*near_base, "--time-limit", "0", "-o", "at_once.json")
    clock = count()
    monkeypatch.setattr("shardc.cli.search.time.monotonic", lambda: next(clock) / 1000)  # a millisecond a step
    done = shardc_(*near_base, "--time-limit", "1", "-o", "later.json")
    assert "SH508 warning: the time limit ended the search" in done.err
    assert read_plan("later.json").migration.moved_bytes > 0
    assert read_plan("later.json").score.step_time_ms < read_plan("at_once.json").score.step_time_ms


def test_what_has_to_move_is_more_than_the_budget(shardc_):
    shardc_("compile", "model.toml")
    before = Path("model.plan.json").read_bytes()
    rank = read_plan("model.plan.json").plan["ebc"]["t7"].ranks[0]
    Path("model.toml").write_text(SPEC + f"pin = [{(rank + 1) % 4}]\n")
    done = shardc_("compile", "model.toml", "--base", "model.plan.json", "--max-moved", "1KiB")
    assert done.code == 1
    assert "SH321 no plan was found that moves 1 KiB or less" in done.err
    assert "help: allow it: --max-moved 2MiB" in done.err
    assert Path("model.plan.json").read_bytes() == before


@pytest.mark.parametrize(
    "limit", ["much", "-1%", "", "5", "120%", "100.1%", "nan%", "5%%", "2gib", "1e9B", "5 percent"]
)
def test_a_budget_that_means_nothing_is_wrong_usage(shardc_, limit):
    Path("model.plan.json").write_text("as it was")
    done = shardc_("compile", "model.toml", "--base", "old.plan.json", "--max-moved", limit)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH902 ")
    assert f'{limit!r} is not a percentage up to 100% such as "5%", or a size such as "2GiB"' in done.err
    assert Path("model.plan.json").read_text() == "as it was"


def test_a_budget_needs_a_base(shardc_):
    done = shardc_("compile", "model.toml", "--max-moved", "5%")
    assert (done.code, done.err.split()[0]) == (2, "SH902")
    assert "there is no --base" in done.err


@pytest.mark.parametrize(
    ("content", "code", "exit_code"),
    [(None, "SH001", 2), ("{", "SH302", 2), ('{"format": 2}', "SH303", 2), (SPEC, "SH302", 2)],
)
def test_a_base_that_is_no_plan_leaves_the_old_plan_as_it_is(shardc_, content, code, exit_code):
    Path("model.plan.json").write_text("as it was")
    if content is not None:
        Path("base.json").write_text(content)
    done = shardc_("compile", "model.toml", "--base", "base.json")
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.startswith(f"{code} ")
    assert Path("model.plan.json").read_text() == "as it was"


def test_a_base_of_other_tables_is_warned_of(shardc_):
    done = shardc_("compile", "model.toml", "--base", "old.plan.json")
    assert done.code == 0
    assert "SH322 warning: the base has none of the tables: all of them are placed anew" in done.err
    assert read_plan("model.plan.json").migration.moved_bytes == 0


def test_a_base_from_a_revision(repository):
    repository("compile", "model.toml")
    subprocess.run(["git", "add", "model.plan.json"], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, "commit", "-q", "-m", "plan"], check=True)
    before = Path("model.plan.json").read_bytes()
    Path("model.plan.json").unlink()
    assert repository("compile", "model.toml", "--base", "HEAD:model.plan.json", "-q").code == 0
    assert Path("model.plan.json").read_bytes() == before


# --- report of what diff takes ----------------------------------------------------------------------------------------


def test_a_report_of_revisions_and_stdin(repository):
    done = repository("report", "HEAD:old.plan.json", "--base", "HEAD:sub/model.plan.json", "-q")
    assert (done.code, done.err) == (0, "")
    assert Path("old.report.html").read_text().startswith("<!doctype html>")
    assert "moved" in Path("old.report.html").read_text()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shardc", "report", "-", "-q"]
    text = Path("old.plan.json").read_bytes()
    piped = subprocess.run(command, input=text, capture_output=True, env=environment, check=True)
    assert piped.stdout.startswith(b"<!doctype html>")
    broken = subprocess.run(command, input=text[:99], capture_output=True, env=environment, check=False)
    assert (broken.returncode, broken.stdout) == (2, b"")
    assert repository("report", "-", "--base", "-").code == 2
