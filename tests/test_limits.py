"""What comes from strangers takes bounded time and memory, shows nothing of other files, and runs no code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shardc import files
from shardc.check.find import find
from shardc.diagnostics import DiagnosticError
from shardc.spec import load_spec, parse_spec
from shardc.vocabulary import MAX_TABLES

HEAD = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 2
"""
TABLE = '[[table]]\nname = "a"\nrows = 1000\ndim = 16\npooling = 2\n'
IN_FILE = '[tables]\nfile = "{}"\n'
SECRET = "token: hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a secret beside it."""
    folder = tmp_path / "specs"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text(SECRET + "\n")
    monkeypatch.chdir(folder)
    return folder


def refused(run_command, *arguments: str, code: str) -> str:
    done = run_command(*arguments)
    assert done.code in (1, 2)
    assert code in done.out + done.err
    assert SECRET not in done.out + done.err
    assert "SH901" not in done.err
    return done.out + done.err


# --- Size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x = [" + "1," * 10 * 2**20 + "]", "#" * (17 * 2**20)])
def test_a_spec_that_is_too_large_is_refused_before_it_is_parsed(run_command, text):
    Path("model.toml").write_text(HEAD + text)
    assert "larger than 16 MiB" in refused(run_command, "validate", "model.toml", code="SH002")


def test_a_device_without_end_is_no_spec(run_command):
    assert "larger than 16 MiB" in refused(run_command, "validate", "/dev/zero", code="SH002")
    assert "larger than 64 MiB" in refused(run_command, "diff", "/dev/zero", "/dev/zero", code="SH002")


def test_a_pipe_that_nobody_writes_to_is_refused(run_command, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    os.mkfifo("model.toml")
    assert "nobody writes to" in refused(run_command, "validate", "model.toml", code="SH002")


def test_a_pipe_that_somebody_writes_to_is_read():
    os.mkfifo("model.toml")

    def write() -> None:
        with open("model.toml", "w") as pipe:  # waits for the reader
            for part in (HEAD, TABLE):
                pipe.write(part)
                pipe.flush()
                time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    assert load_spec("model.toml").tables[0].name == "a"
    writer.join()


def test_more_tables_than_there_may_be_are_refused_at_once():
    Path("model.toml").write_text(HEAD + IN_FILE.format("t.csv"))
    Path("t.csv").write_text("name,rows,dim,pooling\n" + "a,x,-1,\n" * (MAX_TABLES + 1))
    with pytest.raises(DiagnosticError, match="SH104 expected at most 131072 tables, found 131073") as raised:
        load_spec("model.toml")
    assert len(raised.value.diagnostics) == 1
    with pytest.raises(DiagnosticError, match="SH104 expected at most 131072 tables, found 131073"):
        parse_spec({"format": 1, "table": [{}] * (MAX_TABLES + 1)})


@pytest.mark.parametrize("format", ["full", "concise", "json", "github", "sarif", "junit"])
def test_of_very_many_faults_the_first_thousand_are_told_and_that_there_are_more(run_command, format):
    Path("model.toml").write_text(HEAD + "".join(TABLE.replace('"a"', f'"t{n}"') + "x=1\ny=1\n" for n in range(5000)))
    done = run_command("validate", "--format", format, "model.toml")
    assert done.code == 1
    assert 1000 <= done.out.count("unknown key ") <= 4000  # some formats say each twice
    assert " table " in done.out and "t4999" not in done.out
    assert "there are more than these 1,000 findings" in done.out
    if format == "concise":
        assert done.out.count("\n") == 1001 and done.out.splitlines()[-1].startswith("model.toml: SH904 ")


def test_very_many_faults_of_a_table_file(run_command):
    Path("model.toml").write_text(HEAD + IN_FILE.format("t.csv"))
    Path("t.csv").write_text("name,rows,dim,pooling\n" + "".join(f"t{n},x,16,1\n" for n in range(20_000)))
    said = run_command("validate", "--format", "concise", "model.toml").out.splitlines()
    assert said[0].startswith("t.csv:2:4: SH103 ") and said[999].startswith("t.csv:1001:6: SH103 ")
    assert said[1000:] == ["model.toml: SH904 there are more than these 1,000 findings"]


def test_of_an_array_and_a_section_full_of_faults_one_is_told(run_command):
    Path("model.toml").write_text(HEAD + TABLE + f"pin = [{'[],' * 100_000}]\n" + TABLE.replace('"a"', '"b"'))
    assert refused(run_command, "validate", "--format", "concise", "model.toml", code="SH103").count("\n") == 1
    Path("model.toml").write_text(HEAD + TABLE + "".join(f"k{n} = 1\n" for n in range(100_000)))
    said = refused(run_command, "validate", "--format", "concise", "model.toml", code="SH104")
    assert said == 'model.toml:9:1: SH104 table "a": expected at most 1000 keys, found 100004\n'


def test_a_table_of_very_many_features():
    Path("model.toml").write_text(HEAD + TABLE + f"features = {[f'f{n}' for n in range(100_000)]}\n")
    assert len(load_spec("model.toml").tables[0].features) == 100_000
    Path("model.toml").write_text(HEAD + TABLE + f"features = {[f'f{n % 99_999}' for n in range(100_000)]}\n")
    with pytest.raises(DiagnosticError, match=r'SH105 features\[99999\] of table "a": .* found "f0" twice'):
        load_spec("model.toml")


def test_a_hundred_thousand_tables():
    tables = [{"name": f"t{n}", "rows": 1000, "dim": 16, "pooling": 2} for n in range(100_000)]
    model = {"name": "m", "module": "", "global_batch": 1}
    cluster = {"device": "h100-80gb", "devices_per_host": 8}
    assert len(parse_spec({"format": 1, "model": model, "cluster": cluster, "table": tables}).tables) == 100_000


def test_many_tables_that_fit_nowhere_are_not_all_explained(run_command):
    tables = "".join(TABLE.replace('"a"', f'"t{n}"').replace("1000", "1_000_000_000_000") for n in range(300))
    Path("model.toml").write_text(HEAD + tables)
    said = refused(run_command, "compile", "model.toml", code="SH201")
    assert said.count("fits on no device") == 20
    assert "SH201 280 more tables fit on no device" in said


def test_weights_that_are_too_large_are_not_read(run_command):
    Path("device").mkdir()
    profile = Path(files.__file__).parent / "profiles" / "cpu-epyc" / "profile.json"
    Path("device/profile.json").write_bytes(profile.read_bytes())
    with open("device/weights.safetensors", "wb") as file:
        file.truncate(10**12)
    Path("model.toml").write_text(HEAD.replace("h100-80gb", "device") + TABLE)
    assert "larger than 64 MiB" in refused(run_command, "compile", "model.toml", code="SH602")


@pytest.mark.parametrize("command", [("diff", "HEAD:./x", "x"), ("check", "x.toml", "--frozen", "--base", "HEAD")])
def test_of_a_huge_file_of_a_revision_no_more_is_read_than_a_plan_may_have(run_command, command):
    def git(*arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.compression=1")
        subprocess.run(["git", *names, *arguments], check=True, capture_output=True)

    with open("x", "wb") as file:
        file.truncate(files.MAX_BYTES + 10**6)
    os.link("x", "x.plan.json")
    git("init")
    git("add", "x", "x.plan.json")
    git("commit", "-m", "x")
    os.remove("x.plan.json")
    Path("x.toml").write_text(HEAD + TABLE)
    assert run_command("compile", "x.toml", "-q").code == 0
    done = run_command(*command)
    assert done.code == (2 if command[0] == "diff" else 0)
    assert "SH002 cannot read the plan" in done.out + done.err
    assert "larger than 64 MiB" in done.out + done.err


def test_a_parquet_file_that_unpacks_to_very_much_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    from shardc.measure import parquet

    def write(**values: object) -> Path:
        times = dict.fromkeys(parquet.schema().names, 1) | {"weights": "fp32", "optimizer": "sgd"}
        row = times | {"tables": [{"rows": 1, "dim": 4, "pooling": 1.0, "zipf": 1.0, "bins": None}]} | values
        table = pyarrow.Table.from_pylist([row] * 100, schema=parquet.schema())
        pyarrow.parquet.write_table(table, tmp_path / "measurements.parquet", compression="zstd")
        return tmp_path / "measurements.parquet"

    assert len(parquet.read_parquet(write())) == 100
    path = write(weights="x" * 100_000)  # which is written once, and read a hundred times
    assert path.stat().st_size < 200_000
    with pytest.raises(DiagnosticError, match=r"SH603 .*no dtype or optimizer has such a name"):
        parquet.read_parquet(path)
    many = [{"rows": 1, "dim": 4, "pooling": 1.0, "zipf": None, "bins": [0.0] * 1000}] * 4
    monkeypatch.setattr(parquet, "_MOST_VALUES", 2**18)
    path = write(tables=many)
    assert path.stat().st_size < 10_000
    with pytest.raises(DiagnosticError, match=r"SH603 .*it unpacks to 4\d{5} values and \d+ MiB, more than a campaign"):
        parquet.read_parquet(path)


# --- Other files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.csv", "link.csv", "folder/secret.csv", "/proc/self/environ", "/dev/zero"])
def test_a_table_file_is_in_the_folder_of_its_spec(here, run_command, name):
    Path("link.csv").symlink_to("../secret.csv")
    Path("folder").symlink_to("..")
    Path("model.toml").write_text(HEAD + IN_FILE.format(name))
    assert "is not in the spec's folder" in refused(run_command, "validate", "model.toml", code="SH002")
    os.chdir("..")
    refused(run_command, "validate", "specs/model.toml", code="SH002")


@pytest.mark.parametrize("name", [".env", ".git/config", "link.csv"])
def test_a_hidden_file_is_no_table_file(run_command, name):
    Path(".git").mkdir()
    for secret in (".env", ".git/config"):
        Path(secret).write_text(SECRET + "\n")
    Path("link.csv").symlink_to(".env")
    Path("model.toml").write_text(HEAD + IN_FILE.format(name))
    assert "is hidden" in refused(run_command, "validate", "model.toml", code="SH002")


def test_a_table_file_below_the_folder_is_read():
    Path("below").mkdir()
    Path("below/t.csv").write_text("name,rows,dim,pooling\na,10,4,1\n")
    Path("model.toml").write_text(HEAD + IN_FILE.format("below/../below/t.csv"))
    assert [table.name for table in load_spec("model.toml").tables] == ["a"]


def test_links_out_of_a_folder_are_no_specs_of_it(run_command):
    Path("leak.toml").symlink_to("../secret.csv")
    Path("leak.plan.json").write_text("{}")
    with pytest.raises(DiagnosticError, match="SH001 there is no spec in"):
        find(["."])
    Path("model.toml").write_text(HEAD + TABLE)
    Path("model.plan.json").symlink_to("../secret.csv")
    said = refused(run_command, "check", ".", "--frozen", code="SH002")
    assert "leak.toml is left out: it is a link that leads out of ." in said
    assert "model.plan.json is a link that leads out of the spec's folder" in said


@pytest.mark.parametrize("link", ["model.plan.json", "model.plan.json.interrupted"])
def test_a_plan_that_leads_out_of_its_folder_is_neither_written_nor_quoted(run_command, link):
    Path("model.toml").write_text(HEAD + TABLE)
    Path(link).symlink_to("../secret.csv")
    said = refused(run_command, "compile", "model.toml", "--force", code="SH002")
    assert f"{link} is a link that leads out of the spec's folder\nhelp: -o names another file" in said
    assert Path("../secret.csv").read_text() == SECRET + "\n"
    if link == "model.plan.json":
        refused(run_command, "explain", "model.toml", code="SH002")
    assert run_command("compile", "model.toml", "-q", "-o", "other.plan.json").code == 0


@pytest.mark.parametrize(
    "arguments", ["compile model.toml", "explain model.toml", "check model.toml", "check model.toml --update"]
)
def test_a_plan_that_is_a_link_to_another_file_is_neither_replaced_nor_quoted(run_command, arguments):
    Path("model.toml").write_text(HEAD + TABLE)
    Path(".env").write_text(SECRET)
    Path("model.plan.json").symlink_to(".env")
    assert "is a link to a file that is no plan" in refused(run_command, *arguments.split(), code="SH002")
    assert Path(".env").read_text() == SECRET


def test_a_plan_may_be_a_link_to_a_plan(run_command):
    Path("model.toml").write_text(HEAD + TABLE)
    Path("plans").mkdir()
    Path("model.plan.json").symlink_to("plans/m.json")
    for _ in range(2):
        assert run_command("compile", "model.toml", "-q").code == 0
    assert run_command("check", "model.toml").code == 0
    assert Path("model.plan.json").is_symlink()
    assert Path("plans/m.json").is_file()


def test_advice_to_copy_runs_nothing_of_a_file_name(run_command):
    Path("m $(touch x).toml").write_text(HEAD + TABLE)
    assert "shardc compile 'm $(touch x).toml'" in refused(run_command, "check", ".", code="SH301")


def test_commands_for_runners_of_github_are_defused(run_command):
    Path("model.toml").write_text((HEAD + TABLE).replace('"a"', '"##[error]x"').replace("pooling", "poling"))
    assert "##[" not in refused(run_command, "validate", "model.toml", code="SH101")


def test_what_an_interrupted_search_finds_replaces_nothing_else(run_command):
    Path("model.toml").write_text(HEAD + TABLE)
    Path("model.plan.json.interrupted").write_text("mine")
    refused(run_command, "compile", "model.toml", code="SH004")
    assert Path("model.plan.json.interrupted").read_text() == "mine"


def test_a_pipe_in_a_plans_place_is_refused_at_once(run_command):
    Path("model.toml").write_text(HEAD + TABLE)
    os.mkfifo("model.plan.json")
    assert "it is no regular file" in refused(run_command, "compile", "model.toml", code="SH004")


# --- Code -------------------------------------------------------------------------------------------------------------


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["lookups.pt", "device/profile.json", "device/weights.safetensors", "t.csv"])
def test_no_file_runs_code(run_command, name):
    if name == "lookups.pt":
        pytest.importorskip("torch")
    Path("device").mkdir()
    Path(name).write_bytes(pickle.dumps(Evil()))
    pickle.loads(Path(name).read_bytes())  # it would
    os.rmdir("executed")
    access = 'access = { indices = "lookups.pt" }\n' if name == "lookups.pt" else ""
    device = "device" if "device" in name else "h100-80gb"
    tables = IN_FILE.format("t.csv") if name == "t.csv" else TABLE + access
    Path("model.toml").write_text(HEAD.replace("h100-80gb", device) + tables)
    done = run_command("compile", "model.toml")
    assert done.code in (1, 2)
    assert "SH901" not in done.err
    assert not Path("executed").exists()


def test_init_says_that_it_runs_code(run_command):
    assert "imports and runs that code" in " ".join(run_command("init", "--help").out.split())
    Path("evil.py").write_text("import os\nos.mkdir('executed')\n")
    sys.modules.pop("evil", None)
    Path("model.toml").write_text(HEAD.replace('"m"', '"evil"').replace('"ebc"', '"evil"') + TABLE)
    assert run_command("compile", "-q", "model.toml").code == 0
    assert not Path("executed").exists()
