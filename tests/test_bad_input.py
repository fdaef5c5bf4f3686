"""Bad input through every command that reads it: told clearly, and nothing lost."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardc.passes.place import EVALUATIONS

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
sharding = ["table_wise", "column_wise"]
""" + "".join(f'[[table]]\nname = "t{i}"\nrows = {1000 * (i + 1)}\npooling = {i + 1}\n' for i in range(6))

Change = Callable[[str], str]


def edited(change: Callable[[dict], object]) -> Change:
    def apply(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return apply


def without_ranks(document: dict) -> None:
    document["plan"]["ebc"]["t0"]["ranks"] = []


NO_PLANS: dict[str, tuple[Change, str]] = {
    "empty": (lambda text: "", "SH302"),
    "truncated": (lambda text: text[: len(text) // 2], "SH302"),
    "a merge conflict": (lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> branch\n", "SH302"),
    "a list": (lambda text: f"[{text}]", "SH302"),
    "no score": (edited(lambda document: document.pop("score")), "SH302"),
    "text for a number": (edited(lambda document: document["cluster"].update(hosts="1")), "SH302"),
    "NaN": (lambda text: text.replace('"balance": ', '"balance": NaN, "was": '), "SH302"),
    "a key that is there twice": (lambda text: text.replace('"format": 1', '"format": 1, "format": 1'), "SH302"),
    "a newer format": (edited(lambda document: document.update(format=2)), "SH303"),
    "shards that make up no table": (edited(without_ranks), "SH306"),
}

READERS = {
    "check": "check model.toml",
    "check --frozen": "check --frozen model.toml",
    "check --base": "check good.toml --base model.plan.json",
    "diff, old": "diff model.plan.json good.plan.json",
    "diff, new": "diff good.plan.json model.plan.json",
    "migrate": "migrate good.plan.json model.plan.json",
    "explain": "explain model.plan.json",
    "explain of its spec": "explain model.toml",
    "report": "report model.plan.json",
    "report --base": "report good.plan.json --base model.plan.json",
    "export": "export model.plan.json --to csv",
    "compile --base": "compile good.toml --base model.plan.json",
}


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with two equal specs and their plans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 100)
    for name in ("model", "good"):
        Path(f"{name}.toml").write_text(SPEC)
    run_command("compile", "-q", "good.toml")
    Path("model.plan.json").write_bytes(Path("good.plan.json").read_bytes())
    return run_command


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir()}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("kind", NO_PLANS)
def test_what_is_no_plan_is_refused_by_name_and_stays(shardc_, kind, command):
    change, code = NO_PLANS[kind]
    path = Path("model.plan.json")
    path.write_text(change(path.read_text()))
    before = files()
    done = shardc_(*READERS[command].split())
    said = done.err + done.out
    if command == "check --base":  # of another plan, which is checked all the same
        assert done.code == 0
        assert said.startswith(f"SH410 warning: model.plan.json cannot be used: {code} ")
    else:
        assert done.code == (1 if command in ("check", "check --frozen") else 2)
        assert said.startswith(f"{code} ")
    assert "model.plan.json" in said or 'table "t0" of the plan' in said
    assert files() == before


# --- Plans that were edited, or are of something else -----------------------------------------------------------------


def moved_by_hand(document: dict) -> None:
    """Put a table on another rank, consistently, and leave the digest as it is."""
    table = document["plan"]["ebc"]["t0"]
    rank = (table["ranks"][0] + 1) % 4
    table["ranks"] = [rank]
    table["shards"][0]["placement"] = f"rank:{rank}/cuda:{rank}"


@pytest.mark.parametrize(
    ("change", "finding", "difference"),
    [
        (moved_by_hand, "SH310 ", "1 moved;"),
        (lambda document: document["tool"].update(seed=7), "SH312 model.plan.json is not what shardc wrote", "seed"),
    ],
)
@pytest.mark.parametrize("frozen", [["--frozen"], []])
def test_an_edit_that_makes_sense_is_found_by_check_and_compared_by_diff(shardc_, change, finding, difference, frozen):
    path = Path("model.plan.json")
    path.write_text(edited(change)(path.read_text()))
    done = shardc_("check", *frozen, "model.toml")
    assert (done.code, done.err) == (1, "")
    assert finding in done.out
    assert difference in shardc_("diff", "good.plan.json", "model.plan.json").out


def test_a_table_moved_by_hand_is_named_weighed_and_can_be_kept(shardc_):
    path = Path("model.plan.json")
    old = json.loads(path.read_text())["plan"]["ebc"]["t0"]["ranks"][0]
    path.write_text(edited(moved_by_hand)(path.read_text()))
    keep = "shardc compile model.toml --base model.plan.json --max-moved 0"
    frozen = shardc_("check", "--frozen", "model.toml")
    assert frozen.out.startswith(
        "SH312 model.plan.json is not what shardc wrote: it was edited, or merged, after it was "
    )
    assert "SH310 device " in frozen.out and "figures are not edited by hand: SH312 says how to go on" in frozen.out
    assert keep in frozen.out
    done = shardc_("check", "model.toml")
    where = f'table "t0" is on device {(old + 1) % 4}; by the memory that is stated it was on device {old}'
    assert f"{keep}\nnote: {where}\n" in done.out
    assert "SH403 a newly compiled plan takes " in done.out
    moved = json.loads(path.read_text())["plan"]
    assert shardc_(*keep.split()[1:], "-q").code == 0
    assert json.loads(path.read_text())["plan"] == moved
    assert shardc_("check", "--frozen", "model.toml").code == 0
    assert re.findall("SH[0-9]+", shardc_("check", "model.toml", "--format", "concise").out) == ["SH403"]


def test_a_plan_of_another_model_is_named_as_that(shardc_):
    Path("model.toml").write_text(SPEC.replace('"m"', '"n"').replace('name = "t', 'name = "u'))
    for command in ("check model.toml", "check --frozen model.toml", "explain model.plan.json"):
        done = shardc_(*command.split())
        assert done.code == 1
        assert 'SH304 the plan, of the model "m", has none of the tables of "n"' in done.out + done.err


def test_two_plans_that_share_no_table(shardc_):
    Path("model.toml").write_text(SPEC.replace('"m"', '"n"').replace('name = "t', 'name = "u'))
    shardc_("compile", "-q", "model.toml")
    done = shardc_("diff", "good.plan.json", "model.plan.json")
    assert (done.code, done.err) == (0, "")
    assert "the plans share no table; 6 added, 6 removed" in done.out
    done = shardc_("migrate", "good.plan.json", "model.plan.json", "--format", "csv")
    assert {row["table"] for row in csv.DictReader(done.out.splitlines())} == {f"u{i}" for i in range(6)}
    done = shardc_("report", "model.plan.json", "--base", "good.plan.json", "-o", "-")
    assert done.code == 0
    assert "The plans share no table" in done.out
    done = shardc_("compile", "model.toml", "--base", "good.plan.json", "--max-moved", "0")
    assert done.code == 0
    assert "SH322 warning: the base has none of the tables" in done.err
    assert shardc_("check", "model.toml", "--base", "good.plan.json").code == 0


# --- Specs as editors and other systems write them --------------------------------------------------------------------

TEXTS = {
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "both": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "Unicode names": lambda text: text.replace('name = "t', 'name = "名前 é😀 ').replace('"m"', '"größe"').encode(),
}

COMMANDS = (
    "validate model.toml",
    "compile -q model.toml",
    "check model.toml",
    "check --frozen model.toml",
    "check model.toml -q --format github",
    "check model.toml -q --format sarif",
    "check model.toml -q --format junit",
    "diff good.plan.json model.plan.json",
    "diff good.plan.json model.plan.json --format markdown",
    "diff good.plan.json model.plan.json --format json",
    "migrate good.plan.json model.plan.json",
    "explain model.plan.json -q",
    "report model.plan.json -q",
    "compile -q model.toml --base model.plan.json -o near.json",
    "sweep model.toml --devices 2,4 -q",
)


@pytest.mark.parametrize("kind", TEXTS)
def test_every_command_reads_specs_as_editors_write_them(shardc_, kind):
    written = TEXTS[kind](SPEC)
    Path("model.toml").write_bytes(written)
    for command in COMMANDS:
        done = shardc_(*command.split())
        assert (command, done.code, done.err) == (command, 0, "")
    assert Path("model.toml").read_bytes() == written
    same = kind != "Unicode names"
    assert (Path("model.plan.json").read_bytes() == Path("good.plan.json").read_bytes()) == same
    assert Path("near.json").read_bytes() == Path("model.plan.json").read_bytes()


def test_a_table_is_explained_by_its_unicode_name(shardc_):
    Path("model.toml").write_bytes(TEXTS["Unicode names"](SPEC))
    shardc_("compile", "-q", "model.toml")
    done = shardc_("explain", "model.plan.json", "名前 é😀 3", "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("名前 é😀 3  4,000 rows × 32")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_places_in_specs_are_the_same_whatever_ends_lines(shardc_, end):
    Path("model.toml").write_bytes(SPEC.replace("rows = 3000", "rowz = 3000").replace("\n", end).encode())
    done = shardc_("check", "model.toml", "--format", "concise")
    assert done.out.startswith("model.toml:24:1: SH101 ")


def test_three_thousand_tables_pass_through_every_command(shardc_):
    rows = "".join(f"t{i:05},{1000 + 37 * i % 9973},{1 + i % 7}\n" for i in range(3_000))
    Path("tables.csv").write_text(f"name,rows,pooling\n{rows}")
    head = SPEC.partition("[[table]]")[0].replace(', "column_wise"', "")  # a search would take a minute
    Path("model.toml").write_text(head + '[tables]\nfile = "tables.csv"\n')
    Path("model.plan.json").unlink()
    for command in (
        "validate model.toml",
        "compile -q model.toml",
        "check --frozen model.toml",
        "diff good.plan.json model.plan.json",
        "migrate good.plan.json model.plan.json",
        "report model.plan.json -q",
        "explain model.plan.json t01500 -q",
    ):
        done = shardc_(*command.split())
        assert (command, done.code, done.err) == (command, 0, "")
        assert len(done.out) < 1_000_000
    Path("tables.csv").write_text(f"name,rows,pooling\n{rows}".replace("t01500,", "t01499,"))
    done = shardc_("check", "--frozen", "model.toml", "--format", "concise")
    assert done.code == 1
    assert done.out.startswith("tables.csv:1502:1: SH105 ")


# --- Disks and folders that take nothing ------------------------------------------------------------------------------

WRITERS = {
    "compile": ("compile -q model.toml", "model.plan.json"),
    "compile -o": ("compile -q model.toml -o other.json", "other.json"),
    "check --update": ("check --update model.toml", "model.plan.json"),
    "report": ("report -q model.plan.json", "model.report.html"),
    "export": ("export model.plan.json --to csv -o shards.csv", "shards.csv"),
    "sweep": ("sweep -q model.toml --devices 2 --picture sweep.svg", "sweep.svg"),
}


@pytest.fixture
def outdated(shardc_):
    """The same, and a spec that its plan does not fit any more."""
    Path("model.toml").write_text(SPEC.replace("rows = 3000", "rows = 3001"))
    return shardc_


@pytest.fixture
def read_only(tmp_path):
    """Make a folder read-only while a test runs, for the superuser too."""
    mounted = []

    def make(folder: Path) -> None:
        if os.geteuid() != 0:
            folder.chmod(0o500)
            return
        for options in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("nothing may be mounted here")
            mounted.append(folder)

    if os.name != "posix":
        pytest.skip("needs permissions")
    yield make
    if mounted:
        subprocess.run(["umount", "-l", mounted[0]], check=True)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("command", WRITERS)
def test_in_a_read_only_folder_nothing_is_written_and_the_file_is_named(outdated, read_only, tmp_path, command):
    before = files()
    read_only(tmp_path)
    os.chdir(tmp_path)  # into what is mounted there now
    arguments, target = WRITERS[command]
    done = outdated(*arguments.split())
    assert done.code == 2
    reason = "read-only file system" if os.geteuid() == 0 else "permission denied"
    assert f"SH004 cannot write {target}: {reason}\n" in done.err
    assert files() == before


@pytest.fixture
def full_disk(tmp_path, outdated):
    """The folder's files on a disk that has no room any more."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only the superuser may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    for path in filter(Path.is_file, tmp_path.iterdir()):
        shutil.copy(path, disk)
    with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("command", WRITERS)
def test_on_a_full_disk_nothing_is_lost_and_the_file_is_named(outdated, full_disk, monkeypatch, command):
    monkeypatch.chdir(full_disk)
    before = files()
    arguments, target = WRITERS[command]
    done = outdated(*arguments.split())
    assert done.code == 2
    assert f"SH004 cannot write {target}: no space left on device\n" in done.err
    assert files() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command",
    ["compile -q model.toml -o", "report -q model.plan.json --force -o", "export model.plan.json --to csv -o"],
)
def test_a_device_that_is_full(shardc_, command):
    done = shardc_(*command.split(), "/dev/full")
    assert done.code == 2
    assert "SH004 cannot write /dev/full: no space left on device\n" in done.err
