from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

import shardc
from shardc import cli
from shardc.check.document import check_schema
from shardc.cli.console import in_color
from shardc.passes.place import EVALUATIONS
from shardc.plan import plan_schema, read_plan
from shardc.profiling import MINIMUM_SETS
from shardc.spec import spec_schema

ROOT = Path(__file__).parents[1]
SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 2
memory = "1GiB"
[compile]
effort = "fast"
[[table]]
name = "a"
rows = 1000
dim = 16
pooling = 2
[[table]]
name = "b"
rows = 2000
dim = 16
pooling = 1
"""


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with a valid spec, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDC_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 100)
    Path("model.toml").write_text(SPEC)

    return run_command


def process(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=False, **options)


# --- Every command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "compile",
        "validate",
        "check",
        "diff",
        "migrate",
        "measure",
        "rule",
        "schema",
        "profile",
        "devices",
        "train",
        "train policy",
    ],
)
def test_every_command_has_help_with_an_example(shardc_, command):
    done = shardc_(*command.split(), "--help")
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"Usage: shardc {command}")
    assert command == "train" or f"Example:\n    shardc {command}" in done.out


def test_version(shardc_):
    assert str(shardc_("--version")) == f"exit code 0\n--- stdout\nshardc {shardc.__version__}\n--- stderr\n"


@pytest.mark.parametrize("arguments", ["--help", "validate model.toml", "rule SH101"])
def test_what_should_be_quick_imports_nothing_heavy(tmp_path, arguments):
    (tmp_path / "model.toml").write_text(SPEC)
    code = f"""
import sys
from shardc.cli import main
try:
    main({arguments.split()!r})
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"numpy", "torch", "fbgemm_gpu", "rich", "safetensors", "pyarrow", "tree_sitter"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command."),
        ("bogus", "No such command 'bogus'."),
        ("compile", "Missing argument 'SPEC'."),
        ("compile --bogus model.toml", "No such option"),
        ("compile --seed -1 model.toml", "'--seed'"),
        ("compile --effort much model.toml", "'much' is not one of"),
        ("schema csv", "'csv' is not one of"),
        ("profile", "Missing option '--output'"),
    ],
)
def test_wrong_usage(shardc_, arguments, message):
    done = shardc_(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH902 ")
    assert message in done.err
    assert "--help" in done.err


# --- validate, schema, devices ----------------------------------------------------------------------------------------


def test_validate(shardc_):
    assert str(shardc_("validate", "model.toml")) == (
        "exit code 0\n--- stdout\nok model.toml: 2 tables, 2 devices\n--- stderr\n"
    )
    assert str(shardc_("validate", "-q", "model.toml")) == "exit code 0\n--- stdout\n--- stderr\n"


def test_validate_goes_on_after_an_invalid_spec(shardc_):
    Path("bad.toml").write_text(SPEC.replace("pooling = 1", "poolin = 1"))
    done = shardc_("validate", "bad.toml", "missing.toml", "model.toml")
    assert done.code == 2
    assert (
        done.out
        == """\
SH101 unknown key "poolin" in table "b"
  --> bad.toml:21:1
   |
21 | poolin = 1
   | ^^^^^^
help: did you mean "pooling"?

ok model.toml: 2 tables, 2 devices
"""
    )
    assert done.err == "SH001 cannot read the spec missing.toml: no such file\n\n"
    assert shardc_("validate", "bad.toml", "model.toml").code == 1


@pytest.mark.parametrize(
    ("document", "expected"), [("spec", spec_schema()), ("plan", plan_schema()), ("check", check_schema())]
)
def test_schema(shardc_, document, expected):
    done = shardc_("schema", document)
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == expected


def test_devices(shardc_):
    done = shardc_("devices")
    assert (done.code, done.err) == (0, "")
    (line,) = [line for line in done.out.splitlines() if line.startswith("h100-80gb")]
    assert re.split(" {2,}", line) == ["h100-80gb", "data sheet", "74.5 GiB", "450 GB/s", "50 GB/s", "unknown"]


# --- compile ----------------------------------------------------------------------------------------------------------


def test_compile_writes_the_plan_beside_the_spec(shardc_):
    done = shardc_("compile", "model.toml")
    assert done.code == 0
    assert done.out.startswith("m  2 tables on 2 × h100-80gb\n")
    assert done.out.endswith("\n\nplan written to model.plan.json\n")
    codes = [line.split()[0] for line in done.err.splitlines() if line.startswith("SH")]
    assert codes == ["SH501", "SH602"]
    assert read_plan("model.plan.json").model.name == "m"


def test_compile_quietly(shardc_):
    assert str(shardc_("compile", "-q", "model.toml")) == "exit code 0\n--- stdout\n--- stderr\n"
    assert Path("model.plan.json").exists()


def test_a_time_limit_that_ends_the_search_is_told(shardc_):
    done = shardc_("compile", "model.toml", "--effort", "thorough", "--time-limit", "0")
    assert done.code == 0
    assert "SH508 warning: the time limit ended the search" in done.err
    assert Path("model.plan.json").exists()
    assert "SH508" not in shardc_("compile", "model.toml").err


def test_compile_to_stdout(shardc_):
    shardc_("compile", "-q", "model.toml", "-o", "plan.json")
    done = shardc_("compile", "model.toml", "-o", "-")
    assert done.code == 0
    assert done.out.encode() == Path("plan.json").read_bytes()
    assert "a step" in done.err
    assert not Path("model.plan.json").exists()
    assert not Path("-").exists()


def test_a_plan_on_stdout_is_utf8_whatever_the_terminal_is(tmp_path):
    (tmp_path / "model.toml").write_text(SPEC.replace('name = "a"', 'name = "ä"'), encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = process("-m", "shardc", "compile", "model.toml", "-o", "-", cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0
    assert "ä" in json.loads(done.stdout.decode())["plan"]["ebc"]
    assert done.stderr.isascii()


def test_compile_says_what_it_replaces(shardc_):
    shardc_("compile", "-q", "model.toml")
    before = Path("model.plan.json").read_bytes()
    assert "as fast as the plan that it replaces" in shardc_("compile", "model.toml").out
    assert Path("model.plan.json").read_bytes() == before
    Path("model.toml").write_text(SPEC.replace("pooling = 2", "pooling = 2000"))
    done = shardc_("compile", "model.toml")
    assert "slower than the plan that it replaces, but spec or profile have changed since" in done.out.replace(
        "\n", " "
    )


def test_the_seed_and_the_effort_of_the_command_line_win(shardc_, monkeypatch):
    import shardc.pipeline

    asked = {}
    original = shardc.pipeline.run

    def run(loaded, **options):
        asked.update(options)
        return original(loaded, seed=options["seed"])

    monkeypatch.setattr(shardc.pipeline, "run", run)
    shardc_("compile", "-q", "model.toml", "--seed", "7", "--effort", "balanced")
    assert (asked["seed"], asked["effort"]) == (7, "balanced")
    assert read_plan("model.plan.json").tool.seed == 7


def test_measure_hands_the_shards_to_the_benchmark(shardc_, monkeypatch):
    import numpy as np

    import shardc.measure.own

    def measure_shards(shards, hardware, *, at, progress):
        for done in range(len(shards)):
            progress(done + 1, len(shards))
        return np.tile([0.1, 0.2], (len(shards), 1))

    monkeypatch.setattr(shardc.measure.own, "measure_shards", measure_shards)
    done = shardc_("compile", "model.toml", "--measure")
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if line.startswith("measure ")]
    assert 1 < len(lines) <= 10
    assert re.fullmatch(r"measure (\d+)/\1", lines[-1])
    assert "SH501" not in done.err


def test_a_closed_pipe_is_no_error(tmp_path):
    (tmp_path / "model.toml").write_text(SPEC)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "shardc", "compile", "model.toml", "-o", "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert b"Broken" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("arguments", ["--help", "--version", "validate model.toml", "compile model.toml -o -"])
def test_a_stdout_that_cannot_be_written(tmp_path, arguments, buffering):
    (tmp_path / "model.toml").write_text(SPEC)
    command = [sys.executable, "-m", "shardc", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffering}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == f"SH903 cannot write to stdout: {os.strerror(errno.ENOSPC)}\n\n".encode()


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD_SPECS = {
    "not TOML": (SPEC.replace("= 1024", "="), "SH100"),
    "unknown key": (SPEC.replace("dim =", "dimm ="), "SH101"),
    "wrong type": (SPEC.replace("= 1000\n", '= "many"\n'), "SH103"),
    "negative size": (SPEC.replace("= 1000\n", "= -1000\n"), "SH104"),
    "dim not divisible by 4": (SPEC.replace("dim = 16", "dim = 18", 1), "SH104"),
    "duplicate names": (SPEC.replace('"b"', '"a"'), "SH105"),
    "pin outside the cluster": (SPEC.replace("pooling = 2", "pooling = 2\npin = [2]"), "SH104"),
    "contradictory groups": (
        SPEC.replace("pooling = 2", 'pooling = 2\ngroup = "g"\npin = [0]').replace(
            "pooling = 1", 'pooling = 1\ngroup = "g"\npin = [1]'
        ),
        "SH106",
    ),
    "unknown device": (SPEC.replace("h100-80gb", "h100"), "SH107"),
    "a table fits nowhere": (
        SPEC.replace("rows = 1000\n", 'rows = 100_000_000\nsharding = ["table_wise"]\n'),
        "SH201",
    ),
    "the model fits nowhere": (
        SPEC.replace("rows = 1000\n", "rows = 14_000_000\n").replace("rows = 2000\n", "rows = 14_000_000\n"),
        "SH202",
    ),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_bad_spec_is_diagnosed_and_the_plan_left_alone(shardc_, name):
    text, code = BAD_SPECS[name]
    Path("model.plan.json").write_bytes(b"a plan")
    Path("model.toml").write_text(text)
    done = shardc_("compile", "model.toml")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"{code} ")
    assert Path("model.plan.json").read_bytes() == b"a plan"
    assert sorted(path.name for path in Path().iterdir()) == ["model.plan.json", "model.toml"]


def test_unreadable_files(shardc_):
    Path("latin.toml").write_bytes(SPEC.replace('"m"', '"ä"').encode("latin-1"))
    Path("folder.toml").mkdir()
    assert str(shardc_("compile", "missing.toml")) == (
        "exit code 2\n--- stdout\n--- stderr\nSH001 cannot read the spec missing.toml: no such file\n\n"
    )
    assert str(shardc_("compile", "folder.toml")) == (
        "exit code 2\n--- stdout\n--- stderr\nSH002 cannot read the spec folder.toml: is a directory\n\n"
    )
    done = shardc_("compile", "latin.toml")
    assert done.code == 2
    assert done.err.startswith("SH003 the spec is not UTF-8: byte 0xe4\n --> latin.toml:3:9\n")


def test_a_plan_that_cannot_be_written(shardc_):
    Path("folder").mkdir()
    for target in ("nowhere/plan.json", "folder"):
        done = shardc_("compile", "-q", "model.toml", "-o", target)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"SH004 cannot write {target}: ")


def test_a_plan_never_replaces_its_spec(shardc_):
    done = shardc_("compile", "model.toml", "-o", "./model.toml")
    assert done.code == 2
    assert done.err.startswith("SH902 model.toml is the spec itself")
    assert Path("model.toml").read_text() == SPEC


@pytest.mark.parametrize("command", ["compile model.toml -o", "sweep model.toml --devices 1,2 --picture"])
@pytest.mark.parametrize(
    ("target", "what"), [("tables.csv", "spec's table file"), ("link", "spec's table file"), ("model.toml", "spec")]
)
def test_nothing_replaces_what_it_is_made_of(shardc_, command, target, what):
    spec = SPEC.partition("[[table]]")[0] + '[tables]\nfile = "tables.csv"\n'
    rows = "name,rows,dim,pooling\na,1000,16,2\n"
    Path("model.toml").write_text(spec)
    Path("tables.csv").write_text(rows)
    Path("link").symlink_to("tables.csv")
    done = shardc_(*command.split(), target)
    assert done.code == 2
    assert done.err.startswith(f"SH902 {target} is the {what} itself: the ")
    assert Path("tables.csv").read_text() == rows
    assert Path("model.toml").read_text() == spec


def test_a_plan_does_not_replace_recorded_lookups(shardc_):
    Path("model.toml").write_text(SPEC.replace("pooling = 1\n", 'pooling = 1\naccess = { indices = "b.pt" }\n'))
    Path("b.pt").write_bytes(b"x")
    done = shardc_("compile", "model.toml", "-o", "b.pt")
    assert done.err.startswith("SH902 b.pt is the index file of some tables itself")
    assert Path("b.pt").read_bytes() == b"x"


OUTPUTS = {
    "compile -q model.toml -o": "out.json",
    "sweep -q model.toml --devices 1,2 --picture": "out.svg",
    "bench -q model.toml --strategy lookup_greedy --picture": "out.svg",
    "report -q model.plan.json -o": "out.html",
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_replaces_its_own_kind_and_nothing_else_unless_forced(shardc_, command):
    shardc_("compile", "-q", "model.toml")
    arguments, target = command.split(), Path(OUTPUTS[command])
    for theirs in ('{"a": 1}', SPEC, "name,rows\n", "<p>a page</p>"):
        target.write_text(theirs)
        done = shardc_(*arguments, str(target))
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(
            f"SH004 cannot write {target}: it is there already, and is no file of that kind\nhelp:"
        )
        assert target.read_text() == theirs
    assert shardc_(*arguments, str(target), "--force").code == 0
    for older in (target.read_bytes() + b"\n\n", b""):  # or an empty file, as of mktemp
        target.write_bytes(older)
        assert shardc_(*arguments, str(target)).code == 0
        assert target.read_bytes().strip() and target.read_bytes() != older


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_a_file_is_refused_before_anything_is_computed(shardc_, command, monkeypatch):
    shardc_("compile", "-q", "model.toml")
    Path("folder.svg").mkdir()
    monkeypatch.setattr("shardc.pipeline.place", None)
    done = shardc_(*command.split(), "folder.svg")
    assert (done.code, done.err) == (
        2,
        "SH004 cannot write folder.svg: is a directory\nhelp: name a file in it: folder.svg/NAME\n\n",
    )
    done = shardc_(*command.split(), "nowhere/out.svg")
    assert (done.code, done.err) == (2, "SH004 cannot write nowhere/out.svg: no such folder\n\n")
    done = shardc_(*command.split(), ".")
    assert (done.code, done.err.split("\n")[0]) == (2, "SH004 cannot write .: is a directory")


def test_a_plan_that_is_no_plan_any_more_is_compiled_anew(shardc_):
    shardc_("compile", "-q", "model.toml")
    good = Path("model.plan.json").read_bytes()
    for broken in (b"not a plan", good[: len(good) // 2]):
        for target in ("model.plan.json", "other.json"):
            Path(target).write_bytes(good[: len(good) // 2] if target == "other.json" else broken)
            assert shardc_("compile", "-q", "model.toml", "-o", target).code == 0
            assert Path(target).read_bytes() == good


@pytest.mark.parametrize("command", ["sweep model.toml --devices 1,2", "bench model.toml --strategy lookup_greedy"])
@pytest.mark.parametrize("name", ["model.plan.json", "out.png", "out", "-"])
def test_a_picture_is_svg_by_name(shardc_, command, name):
    shardc_("compile", "-q", "model.toml")
    plan = Path("model.plan.json").read_bytes()
    done = shardc_(*command.split(), "--picture", name)
    assert (done.code, done.err.split("\n")[0]) == (2, f"SH902 {name} cannot be the picture: it is SVG")
    assert Path("model.plan.json").read_bytes() == plan


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "compile model.toml", "report model.plan.json"])
def test_a_forgotten_base_is_not_the_next_option(shardc_, command):
    done = shardc_(*command.split(), "--base", "--quiet")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH902 Invalid value for '--base': expected a value, found the option --quiet\n")


def test_check(shardc_):
    shardc_("compile", "-q", "model.toml")
    done = shardc_("check", "model.toml")
    assert (done.code, done.err) == (0, "")
    first, last = done.out.splitlines()
    assert re.fullmatch(r"ok model\.toml  [0-9.]+ ms  gap [0-9.]+%", first)
    assert last == "1 spec checked, none with findings"
    assert str(shardc_("check", "-q", "model.toml")) == "exit code 0\n--- stdout\n--- stderr\n"


def test_check_finds(shardc_):
    Path("other.toml").write_text(SPEC)
    shardc_("compile", "-q", "other.toml")
    Path("other.toml").write_text(SPEC.replace("effort", "seed = 1\neffort"))
    done = shardc_("check", "model.toml", "other.toml")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[:3] == [
        "SH301 model.toml has no plan: there is no model.plan.json",
        "help: run shardc compile model.toml",
        "",
    ]
    assert lines[3].startswith("ok other.toml  ")
    assert lines[4:] == [
        "note: other.toml: the spec has changed since its plan was compiled",
        "2 specs checked, 1 with findings",
    ]


def test_check_that_could_not_run(shardc_):
    done = shardc_("check", "missing.toml", "model.toml")
    assert done.code == 2
    assert done.err == "SH001 cannot read the spec missing.toml: no such file\n\n"
    assert "SH301" in done.out


def test_a_wrong_base_is_told_once(shardc_):
    Path("other.toml").write_text(SPEC)
    done = shardc_("check", "--frozen", "--base", "no-such-branch", ".")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("SH410 nothing to compare with") == 1
    done = shardc_("check", "--frozen", "--format", "json", "--base", "no-such-branch", ".")
    (told,) = json.loads(done.out)["diagnostics"]
    assert (told["code"], told["severity"], told["location"]) == ("SH410", "error", None)
    assert done.err.count("SH410 nothing to compare with") == 1


def test_a_plan_whose_spec_is_gone_is_a_warning(shardc_):
    shardc_("compile", "-q", "model.toml")
    Path("gone.plan.json").write_bytes(Path("model.plan.json").read_bytes())
    done = shardc_("check", "--frozen", ".")
    assert done.code == 0
    assert "SH313 warning: gone.plan.json has no spec: there is no gone.toml\n" in done.out
    assert done.out.endswith("\n1 spec checked, none with findings; 1 plan without a spec\n")
    assert "SH313" not in shardc_("check", "--frozen", "model.toml").out
    assert "file=gone.plan.json," in shardc_("check", "--frozen", "--format", "github", ".").out


# --- Formats of findings, jobs, shell completion ----------------------------------------------------------------------

INVALID = SPEC.replace("pooling = 1", "poolin = 1")
FINDING = {
    "code": "SH101",
    "severity": "error",
    "message": 'unknown key "poolin" in table "b"',
    "help": 'did you mean "pooling"?',
    "notes": [],
    "location": {"file": "bad.toml", "line": 21, "column": 1, "length": 6},
}
UNREAD = "cannot read the spec missing.toml: no such file"
COUNTED = "3 specs checked, 2 with findings\n"


@pytest.fixture
def three(shardc_, monkeypatch):
    """Check or validate a spec that is fine, one with a finding, and one that cannot be read."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    shardc_("compile", "-q", "model.toml")
    Path("bad.toml").write_text(INVALID)

    def run(command: str, format: str):
        return shardc_(command, "--format", format, "model.toml", "bad.toml", "missing.toml")

    return run


def test_check_in_full(three):
    done = three("check", "full")
    assert done.code == 2
    ok, *rest = done.out.splitlines()
    assert ok.startswith("ok model.toml  ")
    assert rest == [
        'SH101 unknown key "poolin" in table "b"',
        "  --> bad.toml:21:1",
        "   |",
        "21 | poolin = 1",
        "   | ^^^^^^",
        'help: did you mean "pooling"?',
        "",
        COUNTED.rstrip(),
    ]
    assert done.err == f"SH001 {UNREAD}\n\n"


def test_check_concisely(three):
    done = three("check", "concise")
    assert done.code == 2
    assert done.out.splitlines()[1:] == [
        'bad.toml:21:1: SH101 unknown key "poolin" in table "b"',
        COUNTED.rstrip(),
    ]
    assert done.err == f"missing.toml: SH001 {UNREAD}\n"


def test_validate_concisely(three):
    assert str(three("validate", "concise")) == (
        "exit code 2\n--- stdout\nok model.toml: 2 tables, 2 devices\n"
        'bad.toml:21:1: SH101 unknown key "poolin" in table "b"\n'
        f"--- stderr\nmissing.toml: SH001 {UNREAD}\n"
    )


@pytest.mark.parametrize("command", ["check", "validate"])
def test_findings_as_json(three, command):
    done = three(command, "json")
    assert (done.code, done.err) == (2, COUNTED)
    document = json.loads(done.out)
    assert document["exit_code"] == 2
    fine, bad, missing = document["specs"]
    assert [spec["spec"] for spec in document["specs"]] == ["model.toml", "bad.toml", "missing.toml"]
    assert [spec["exit_code"] for spec in document["specs"]] == [0, 1, 2]
    assert (fine["findings"], bad["findings"]) == ([], [FINDING])
    assert (fine["step_time_ms"] is None) == (command == "validate")
    assert [(found["code"], found["location"]) for found in missing["findings"]] == [("SH001", None)]


@pytest.mark.parametrize("command", ["check", "validate"])
def test_findings_as_github_annotations(three, command):
    assert str(three(command, "github")) == (
        "exit code 2\n--- stdout\n"
        "::error file=bad.toml,line=21,col=1,endColumn=7,title=SH101 unknown key::"
        'unknown key "poolin" in table "b"%0Ahelp: did you mean "pooling"?\n'
        f"::error file=missing.toml,line=1,title=SH001 no such file::{UNREAD}\n"
        f"--- stderr\n{COUNTED}"
    )


@pytest.mark.parametrize("command", ["check", "validate"])
def test_findings_as_sarif(three, command):
    done = three(command, "sarif")
    assert (done.code, done.err) == (2, COUNTED)
    (run,) = json.loads(done.out)["runs"]
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 2, "toolExecutionNotifications": []}]
    assert [
        (result["ruleId"], result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])
        for result in run["results"]
    ] == [("SH101", "bad.toml"), ("SH001", "missing.toml")]


@pytest.mark.parametrize("command", ["check", "validate"])
def test_findings_as_junit(three, command):
    assert (
        str(three(command, "junit"))
        == f"""\
exit code 2
--- stdout
<?xml version="1.0" encoding="utf-8"?>
<testsuites name="shardc" tests="3" failures="1" errors="1">
  <testsuite name="model.toml" tests="1" failures="0" errors="0">
    <testcase classname="model.toml" name="check"/>
  </testsuite>
  <testsuite name="bad.toml" tests="1" failures="1" errors="0">
    <testcase classname="bad.toml" name="SH101 poolin in b"><failure type="SH101" \
message='bad.toml:21:1: SH101 unknown key "poolin" in table "b"'>SH101 unknown key "poolin" in table "b"
  --&gt; bad.toml:21:1
   |
21 | poolin = 1
   | ^^^^^^
help: did you mean "pooling"?</failure></testcase>
  </testsuite>
  <testsuite name="missing.toml" tests="1" failures="0" errors="1">
    <testcase classname="missing.toml" name="SH001"><error type="SH001" message="SH001 {UNREAD}">SH001 {UNREAD}\
</error></testcase>
  </testsuite>
</testsuites>
--- stderr
{COUNTED}"""
    )


@pytest.mark.parametrize("format", ["json", "github", "sarif", "junit"])
def test_findings_of_a_file_whose_name_is_not_text(tmp_path, format):
    try:
        (tmp_path / os.fsdecode(b"\xff.toml")).write_text(INVALID)
    except OSError:
        pytest.skip("the file system takes only names that are text")
    done = process("-m", "shardc", "check", "--format", format, b"\xff.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, b"1 spec checked, 1 with findings\n")
    assert b"SH101" in done.stdout
    done.stdout.decode()


@pytest.mark.parametrize("command", ["check", "validate"])
@pytest.mark.parametrize("format", ["json", "sarif", "junit", "github"])
def test_where_there_is_no_spec_machines_get_a_document_all_the_same(shardc_, command, format):
    Path("empty").mkdir()
    done = shardc_(command, "empty", "--format", format)
    assert (done.code, done.err) == (2, "SH001 there is no spec in empty\n\n")
    match format:
        case "json":
            document = json.loads(done.out)
            (told,) = document.pop("diagnostics")
            assert document == {"format": 1, "exit_code": 2, "specs": []}
            assert (told["code"], told["message"]) == ("SH001", "there is no spec in empty")
        case "sarif":
            (run,) = json.loads(done.out)["runs"]
            assert (run["results"], run["invocations"][0]["exitCode"]) == ([], 2)
            assert run["invocations"][0]["toolExecutionNotifications"] == [
                {"descriptor": {"id": "SH001"}, "level": "error", "message": {"text": "there is no spec in empty"}}
            ]
        case "junit":
            root = ElementTree.fromstring(done.out)
            assert [root.get(name) for name in ("tests", "failures", "errors")] == ["1", "0", "1"]
            assert root.find("testsuite/testcase/error").get("message") == "SH001 there is no spec in empty"
        case "github":
            assert done.out == "::error title=SH001 no such file::there is no spec in empty\n"


@pytest.mark.parametrize("arguments", ["--base one.json model.toml other.toml", "--frozen --update"])
def test_machines_are_told_of_arguments_that_do_not_go_together(shardc_, arguments):
    for name in ("other.toml", "one.json"):
        Path(name).write_text(SPEC)
    done = shardc_("check", *arguments.split(), "--format", "json")
    assert (done.code, [told["code"] for told in json.loads(done.out)["diagnostics"]]) == (2, ["SH902"])
    assert done.err.startswith("SH902 ")


@pytest.mark.parametrize("command", ["check", "validate"])
def test_a_link_that_is_left_out_is_told_and_fails_nothing(shardc_, command):
    shardc_("compile", "-q", "model.toml")
    Path("models").mkdir()
    for name in ("model.toml", "model.plan.json"):
        Path(name).rename(f"models/{name}")
    Path("out.toml").write_text(SPEC)
    Path("models/out.toml").symlink_to("../out.toml")
    told = "SH002 warning: models/out.toml is left out: it is a link that leads out of models\n"
    for format in ("full", "concise"):
        done = shardc_(command, "models", "--format", format)
        assert (done.code, done.err) == (0, "")
        assert told in done.out
    if command == "check":
        assert done.out.endswith("\n1 spec checked, none with findings; 1 not looked at\n")
    assert shardc_(command, "models", "--format", "github").out.startswith("::warning title=SH002 ")
    root = ElementTree.fromstring(shardc_(command, "models", "--format", "junit").out)
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["2", "0", "0"]


def test_each_spec_is_counted_once_by_its_worst(shardc_):
    budget = '[budget]\nmoved = "1%"\n'
    for name, text in (("warned", SPEC + budget), ("both", SPEC + budget + 'headroom = "100%"\n')):
        Path(f"{name}.toml").write_text(text)
        shardc_("compile", "-q", f"{name}.toml")
    Path("gone.plan.json").write_bytes(Path("both.plan.json").read_bytes())
    done = shardc_("check", "--frozen", ".")
    assert done.out.endswith("\n3 specs checked, 2 with findings, 1 with warnings only; 1 plan without a spec\n")


def test_a_base_that_is_not_set_is_no_base(shardc_):
    done = shardc_("check", "--base", "", "model.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH902 Invalid value for '--base': expected a value, found an empty one")


def test_a_base_from_stdin(shardc_, tmp_path):
    shardc_("compile", "-q", "model.toml")
    Path("model.toml").write_text(SPEC + '[budget]\nmoved = "1%"\n')
    plan = Path("model.plan.json").read_bytes()
    for text, code in ((plan, b""), (plan[:100], b"SH410 warning: moved is not checked for model.plan.json: stdin ")):
        command = [sys.executable, "-m", "shardc", "check", "model.toml", "--base", "-"]
        done = subprocess.run(command, input=text, capture_output=True, check=True)
        assert done.stdout.startswith(code)
        assert (b"SH410" in done.stdout) == bool(code)


def test_validate_takes_folders_and_leaves_other_files_alone(shardc_):
    Path("pyproject.toml").write_text("[project]\nname = 1\n")
    Path("bad.toml").write_text("format = 1\n[modle]\n")
    done = shardc_("validate", "--format", "concise")
    assert done.code == 1
    assert "ok model.toml" in done.out and "bad.toml:2:2: SH101" in done.out and "pyproject" not in done.out


def test_what_a_merge_or_an_editor_left_behind_is_told_as_that(shardc_):
    Path("empty.toml").write_text("\n")
    assert shardc_("validate", "empty.toml").out.startswith("SH102 the spec empty.toml is empty\nhelp: ")
    Path("merged.toml").write_text(f"{SPEC}<<<<<<< HEAD\nrows = 1\n=======\nrows = 2\n>>>>>>> other\n")
    done = shardc_("validate", "merged.toml", "--format", "concise")
    line = SPEC.count("\n") + 1
    assert done.out.startswith(f"merged.toml:{line}:1: SH100 the spec has conflicts of a merge\n")
    shardc_("compile", "-q", "model.toml")
    plan = Path("model.plan.json").read_text().split("\n")
    Path("model.plan.json").write_text("\n".join([*plan[:5], "<<<<<<< HEAD", *plan[5:7], "=======", *plan[5:]]))
    done = shardc_("check", "--frozen", "--format", "concise")
    assert "model.plan.json:6:1: SH302 the plan has conflicts of a merge\n" in done.out


def test_which_severities_can_be_set_is_told(shardc_):
    Path("model.toml").write_text(SPEC + '[budget]\nseverity = { SH101 = "off" }\n')
    done = shardc_("validate", "model.toml")
    assert done.out.startswith("SH101 the severity of SH101 cannot be set: it is not about a budget\n")
    assert "help: codes whose severity can be set: SH311, SH401, " in done.out


def test_jobs_change_nothing_but_the_time(shardc_):
    names = [f"m{index}.toml" for index in range(5)]
    for name in names:
        Path(name).write_text(SPEC)
        shardc_("compile", "-q", name)
    Path("m1.toml").write_text(INVALID)
    Path("m3.plan.json").unlink()
    alone, together = (str(shardc_("check", "--jobs", jobs, *names, "missing.toml")) for jobs in "13")
    assert alone == together
    assert re.findall(r"SH\d+|m\d\.toml  ", alone) == ["m0.toml  ", "SH101", "m2.toml  ", "SH301", "m4.toml  ", "SH001"]


def completed(folder: Path, line: str) -> list[str]:
    """What bash offers for the last word of a command line, by the script of --show-completion; [] for files."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "shardc"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shardc "$@"\n')
    command.chmod(0o755)
    script = f"""
eval "$(_SHARDC_COMPLETE=source_bash shardc)"
complete -p shardc | grep -q -- '-o default' || exit 3
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shardc_completion shardc
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=folder, env=environment, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("shardc che", ["check"]),
        ("shardc check --fo", ["--format"]),
        ("shardc check --format s", ["sarif"]),
        ("shardc import ''", ["dlrm"]),
        ("shardc check mod", []),
        ("shardc compile mod", []),
        ("shardc validate mod", []),
        ("shardc rule SH90", ["SH901", "SH902", "SH903", "SH904"]),
    ],
)
def test_completion_in_bash(tmp_path, line, offered):
    (tmp_path / "model.toml").write_text(SPEC)
    assert completed(tmp_path, line) == offered


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({"_SHARDC_COMPLETE": "source_zsh"}, "#compdef shardc\n"),
        ({"_SHARDC_COMPLETE": "source_fish"}, "complete --command shardc "),
        ({"_SHARDC_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "shardc che"}, '"check":"Check committed plans'),
        (
            {
                "_SHARDC_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "shardc check --fr",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "--frozen\tCompute nothing",
        ),
    ],
)
def test_completion_in_other_shells(tmp_path, environment, printed):
    """Neither shell has to be there: their scripts ask shardc in these ways."""
    done = process("-m", "shardc", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert printed in done.stdout.decode()


def test_completion_imports_nothing_heavy(tmp_path):
    environment = {"_SHARDC_COMPLETE": "complete_bash", "COMP_WORDS": "shardc che", "COMP_CWORD": "1"}
    code = """
import sys
from shardc.cli import main
try:
    main([])
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"numpy", "torch", "rich", "safetensors", "tree_sitter"} & set(sys.modules)
assert not heavy, heavy
"""
    done = process("-c", code, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, b"check\n"), done.stderr.decode()


# --- profile and train ------------------------------------------------------------------------------------------------


def fake(monkeypatch, name: str, **members) -> None:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_profile(shardc_, monkeypatch):
    def make_profile(folder, *, name, sets, seed, progress):
        assert (folder, name, sets, seed) == (Path("gpu"), "gpu", 200, 3)
        for done in range(sets):
            progress("measure", done + 1, sets, "set 7 skipped: too large" if done == 7 else "")
        progress("fit", 1, 1, "")
        errors = SimpleNamespace(
            test_sets=20,
            mean_relative_error=(0.041, 0.052),
            total_relative_error=0.038,
            noise=(0.011, 0.1),
            kendall_tau=0.9512,
        )
        measured = SimpleNamespace(device="A GPU", sets=180, disturbed=1, errors=errors)
        return SimpleNamespace(name=name, measured=measured)

    fake(monkeypatch, "shardc.profiling", make_profile=make_profile)
    done = shardc_("profile", "-o", "gpu", "--sets", "200", "--seed", "3")
    assert done.code == 0
    assert (
        done.out
        == """\
gpu: A GPU, learned from 180 sets of tables
set 7 skipped: too large
1 set left out: something else slowed the device down meanwhile
on 20 held-out sets (rank correlation 0.951):
  forward   mean error  4.1%   two measurements of one set differ by  1.1%
  backward  mean error  5.2%   two measurements of one set differ by 10.0%
  both      mean error  3.8%
"""
    )
    assert done.err.splitlines() == [*(f"measure {20 * i}/200" for i in range(1, 11)), "fit 1/1"]


def test_profile_says_how_many_sets_it_needs(shardc_):
    assert f"Sets of tables to measure, {MINIMUM_SETS} or more." in shardc_("profile", "--help").out
    done = shardc_("profile", "-o", "gpu", "--sets", str(MINIMUM_SETS - 1))
    assert done.code == 2
    assert done.err.startswith("SH902 ")
    assert not Path("gpu").exists()


def test_an_interrupted_profile_says_that_it_can_go_on(shardc_, monkeypatch):
    def make_profile(folder, **options):
        raise KeyboardInterrupt

    fake(monkeypatch, "shardc.profiling", make_profile=make_profile)
    done = shardc_("profile", "-o", "gpu")
    assert (done.code, done.out) == (130, "")
    assert done.err == "interrupted: the same command goes on where this one stopped\n"


def test_profile_of_collectives(shardc_, monkeypatch):
    def measure_collectives(folder, *, progress):
        assert folder == Path("gpu")
        progress("measure", 10, 10)
        fits = {
            "all_to_all": SimpleNamespace(latency_ms=0.0213, bandwidth=123.4e9, mean_relative_error=0.0712),
            "reduce_scatter": SimpleNamespace(latency_ms=0.5, bandwidth=1.25e9, mean_relative_error=0.1),
        }
        return SimpleNamespace(world_size=8, hosts=1, backend="nccl", fits=fits)

    fake(monkeypatch, "shardc.measure.collectives", measure_collectives=measure_collectives)
    assert str(shardc_("profile", "-o", "gpu", "--collectives")) == (
        "exit code 0\n--- stdout\n"
        "collectives of 8 ranks on 1 host (nccl), mean error on held-out sizes:\n"
        "  all-to-all       0.021 ms + bytes / 123.4 GB/s      7.1%\n"
        "  reduce-scatter   0.500 ms + bytes / 1.25 GB/s      10.0%\n"
        "--- stderr\nmeasure 10/10\n"
    )
    assert shardc_("profile", "-o", "gpu", "--collectives", "--quiet").out == ""


def test_ranks_but_the_first_say_nothing_of_collectives(shardc_, monkeypatch):
    fake(monkeypatch, "shardc.measure.collectives", measure_collectives=lambda folder, *, progress: None)
    done = shardc_("profile", "-o", "gpu", "--collectives")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_train_policy(shardc_, monkeypatch):
    def train_policy(out, *, profiles, steps, seed, kind, progress):
        found = (out, list(profiles), steps, seed, kind)
        assert found == (Path("weights"), ["h100-80gb", "l4-24gb"], 10, 1, "autoshard")
        progress(10, steps, "2.00% above the bound")
        return {"steps": "10"}

    kinds = {"autoshard": None}
    fake(monkeypatch, "shardc.learn.train_policy", train_policy=train_policy, kinds=lambda: kinds, require_new=Path)
    arguments = "train policy -o weights --kind autoshard --profile h100-80gb --profile l4-24gb --steps 10 --seed 1"
    assert str(shardc_(*arguments.split())) == (
        "exit code 0\n--- stdout\nsteps: 10\nweights written to weights; the learning curve lies beside them\n"
        "--- stderr\ntrain 10/10 2.00% above the bound\n"
    )


def test_train_policy_of_an_unknown_kind(shardc_):
    refused = shardc_("train", "policy", "--kind", "alpha")
    assert (refused.code, "SH902" in refused.err, "autoshard, dreamshard" in refused.err) == (2, True, True)


@pytest.mark.parametrize("missing", ["torch", "fbgemm_gpu.split_table_batched_embeddings_ops_training", "pyarrow"])
def test_a_missing_optional_dependency(shardc_, monkeypatch, missing):
    def make_profile(folder, **options):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    fake(monkeypatch, "shardc.profiling", make_profile=make_profile)
    done = shardc_("profile", "-o", "gpu")
    assert done.code == 2
    assert done.err.startswith(f"SH604 {missing} is not installed\n")
    assert "pip install 'shardc[cpu]'" in done.err


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_an_internal_error(shardc_, monkeypatch, capfd):
    def broken(path):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("shardc.spec.load_spec", broken)
    done = shardc_("validate", "model.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH901 ZeroDivisionError: division by zero\nhelp: this is a bug in shardc")
    monkeypatch.setenv("SHARDC_DEBUG", "1")
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "model.toml"])
    assert stop.value.code == 2
    assert "Traceback" in capfd.readouterr().err


def test_an_interrupt(shardc_, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("shardc.spec.load_spec", interrupted)
    assert str(shardc_("validate", "model.toml")) == "exit code 130\n--- stdout\n--- stderr\n"


def test_an_interrupt_while_starting(tmp_path):
    code = """
import sys
class Interrupted:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from shardc.cli import main
main(["--help"])
"""
    done = process("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


class Terminal:
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_color_is_for_terminals_that_want_it(monkeypatch, environment, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_color(Terminal()) is expected


@pytest.mark.parametrize("form", ["full", "concise", "github"])
@pytest.mark.parametrize("command", [("check", "--frozen"), ("validate",)])
def test_names_of_files_are_no_commands_for_a_terminal_or_a_log(shardc_, command, form):
    shutil.copy("model.toml", "x\n::error::pwned\x1b[31m\u202e.toml")
    shutil.copy("model.toml", "::warning::pwned\x9b.toml")
    Path("::error::pwned.toml").write_text("format = 2\n")
    done = shardc_(*command, ".", "--format", form)
    assert not set("\x1b\x9b\u202e") & set(done.out + done.err)
    commands = [line for line in (done.out + done.err).splitlines() if line.lstrip().startswith("::")]
    assert all(form == "github" and " file=" in line.split("::")[1] for line in commands)
    assert r"\x1b[31m\u202e.toml" in done.out + done.err or form == "github"
