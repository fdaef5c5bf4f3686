"""`shardc export`: what each form holds, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from shardc.passes.place import EVALUATIONS
from shardc.plan import read_plan

SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
optimizer = "sgd"
weights = "fp16"
[cluster]
device = "h100-80gb"
devices_per_host = 2
[compile]
effort = "fast"
[defaults]
rows = 1001
dim = 16
pooling = 2
[[table]]
name = "whole"
sharding = ["table_wise"]
[[table]]
name = '=cmd("a, b")'
sharding = ["row_wise"]
[[table]]
name = "größe"
sharding = ["column_wise"]
[[table]]
name = "copies"
sharding = ["data_parallel"]
"""


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with a compiled plan, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EVALUATIONS, "fast", 100)

    Path("model.toml").write_text(SPEC, encoding="utf-8")
    assert run_command("compile", "model.toml", "--quiet").code == 0
    return run_command


def edited(change) -> Path:
    """A copy of the plan with a change."""
    document = json.loads(Path("model.plan.json").read_text(encoding="utf-8"))
    change(document)
    path = Path("edited.plan.json")
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_there_is_help_with_an_example(shardc_):
    done = shardc_("export", "--help")
    assert (done.code, done.err) == (0, "")
    assert "Example:\n    shardc export" in done.out


def test_torchrec_is_the_plan_member(shardc_):
    done = shardc_("export", "model.plan.json", "--to", "torchrec")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(Path("model.plan.json").read_text(encoding="utf-8"))["plan"]


def test_csv_has_a_row_for_each_shard(shardc_):
    done = shardc_("export", "model.plan.json", "--to", "csv")
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    plan = read_plan("model.plan.json").plan["ebc"]
    for name, table in plan.items():
        written = [row for row in rows if row["table"].removeprefix("'") == name]
        assert [int(row["rank"]) for row in written] == list(table.ranks)
        assert {(row["sharding_type"], row["kernel"]) for row in written} == {
            (table.sharding_type, table.compute_kernel)
        }
        for row, shard in zip(written, table.shards, strict=bool(table.shards)):
            assert (int(row["row_offset"]), int(row["column_offset"])) == shard.shard_offsets
            assert (int(row["rows"]), int(row["columns"])) == shard.shard_sizes
        if table.shards:
            assert sum(int(row["weight_bytes"]) for row in written) == 1001 * 16 * 2
        else:
            columns = ("row_offset", "column_offset", "rows", "columns", "weight_bytes")
            assert [[row[name] for name in columns] for row in written] == [["0", "0", "1001", "16", "32032"]] * 2


def test_an_older_plan_does_not_say_how_large_replicas_are(shardc_):
    older = edited(lambda document: document["plan"]["ebc"]["copies"].pop("shape"))
    rows = list(csv.DictReader(io.StringIO(shardc_("export", str(older), "--to", "csv").out)))
    assert [row["rows"] + row["weight_bytes"] for row in rows if row["table"] == "copies"] == ["", ""]


def test_a_spreadsheet_runs_no_table_name(shardc_):
    rows = list(csv.DictReader(io.StringIO(shardc_("export", "model.plan.json", "--to", "csv").out)))
    assert '\'=cmd("a, b")' in {row["table"] for row in rows}


def test_hugectr_warns_on_stderr_unless_quiet(shardc_):
    done = shardc_("export", "model.plan.json", "--to", "hugectr")
    assert done.code == 0
    assert set(json.loads(done.out)) == {"shard_matrix", "shard_strategy"}
    assert done.err.startswith("SH704 warning: HugeCTR keeps weights as fp32, not fp16\n")
    assert shardc_("export", "model.plan.json", "--to", "hugectr", "-q").err == ""


def test_pytorch_has_every_table(shardc_):
    done = shardc_("export", "model.plan.json", "--to", "pytorch")
    document = json.loads(done.out)
    assert (done.code, document["format"], document["ranks"]) == (0, 1, 2)
    assert set(document["modules"]["ebc"]) == set(read_plan("model.plan.json").plan["ebc"])


def test_names_in_csv_start_no_line_and_no_command_of_a_log(shardc_):
    document = json.loads(Path("model.plan.json").read_text())
    (tables,) = document["plan"].values()
    document["plan"] = {"::error::m": {f"a\r\n::error::x\x1b\u202e{name}": table for name, table in tables.items()}}
    Path("hostile.plan.json").write_text(json.dumps(document))
    _, *lines = shardc_("export", "hostile.plan.json", "--to", "csv").out.split("\n")[:-1]
    assert lines and all(line.startswith("\\::error::m,") for line in lines)
    assert all(r"a\r\n::error::x\x1b\u202e" in line for line in lines)


@pytest.mark.parametrize("form", ["torchrec", "hugectr", "pytorch", "csv"])
def test_a_file_holds_what_stdout_does(shardc_, form):
    out = shardc_("export", "model.plan.json", "--to", form, "-o", "-").out
    done = shardc_("export", "model.plan.json", "--to", form, "-o", "result", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert Path("result").read_bytes() == out.encode()


@pytest.mark.parametrize("form", ["torchrec", "hugectr", "pytorch", "csv"])
def test_a_file_is_replaced_only_when_told(shardc_, form):
    Path("result").write_text("mine")
    done = shardc_("export", "model.plan.json", "--to", form, "-o", "result", "-q")
    assert (done.code, done.out) == (2, "")
    assert done.err == "SH004 cannot write result: it is there already\nhelp: --force replaces it\n\n"
    assert Path("result").read_text() == "mine"
    assert shardc_("export", "model.plan.json", "--to", form, "-o", "result", "-q", "--force").code == 0
    assert Path("result").read_text(encoding="utf-8") == shardc_("export", "model.plan.json", "--to", form, "-q").out


def test_a_device_is_no_file_to_replace(shardc_):
    assert shardc_("export", "model.plan.json", "--to", "csv", "-o", "/dev/null").code == 0


def test_a_refused_plan_leaves_an_existing_file_alone(shardc_):
    def unequal(document: dict) -> None:
        first, second = document["plan"]["ebc"]["größe"]["shards"]
        first["shard_sizes"], second["shard_sizes"], second["shard_offsets"] = [1001, 12], [1001, 4], [0, 12]

    Path("result").write_text("mine")
    done = shardc_("export", str(edited(unequal)), "--to", "hugectr", "-o", "result")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith('SH703 HugeCTR cannot run column blocks of different widths: table "größe"\nhelp: allow')
    assert Path("result").read_text() == "mine"
    assert shardc_("export", "edited.plan.json", "--to", "pytorch").code == 0


def test_the_plan_is_not_replaced_by_its_other_form(shardc_):
    before = Path("model.plan.json").read_bytes()
    Path("link").symlink_to("model.plan.json")
    for target in ("model.plan.json", "link"):
        done = shardc_("export", "model.plan.json", "--to", "csv", "-o", target, "--force")
        assert (done.code, done.err.partition(":")[0]) == (2, f"SH902 {target} is the plan itself")
    assert Path("model.plan.json").read_bytes() == before


@pytest.mark.parametrize("target", ["model.toml", "tables.csv"])
def test_what_the_plan_is_of_is_not_replaced_either(shardc_, target):
    head, *_ = Path("model.toml").read_text(encoding="utf-8").split("[[table]]")
    Path("tables.csv").write_text("name,rows,dim,pooling\na,1000,16,2\n")
    Path("model.toml").write_text(f'{head}[tables]\nfile = "tables.csv"\n')
    before = Path(target).read_bytes()
    for command in (("export", "model.plan.json", "--to", "csv"), ("report", "model.plan.json")):
        done = shardc_(*command, "-o", target, "--force")
        assert (done.code, done.err.partition(" itself")[0].partition(" is the ")[0]) == (2, f"SH902 {target}")
    assert Path(target).read_bytes() == before


def overlapping(document: dict) -> None:
    document["plan"]["ebc"]["größe"]["shards"][1]["shard_offsets"] = [0, 4]


def no_ranks(document: dict) -> None:
    document["plan"]["ebc"]["größe"]["ranks"] = []


def elsewhere(document: dict) -> None:
    table = document["plan"]["ebc"]["whole"]
    table["ranks"], table["shards"][0]["placement"] = [7], "rank:7/cuda:1"


def endless(document: dict) -> None:
    document["cluster"]["hosts"] = 2**62


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (overlapping, 'SH305 edited.plan.json: table "größe": shards 0 and 1 overlap'),
        (no_ranks, 'SH306 edited.plan.json: table "größe": not as many ranks (0) as shards (2)'),
        (elsewhere, 'SH306 edited.plan.json: table "whole": rank 7 is none of the 2 devices'),
        (endless, "SH306 edited.plan.json: the plan is for 9223372036854775808 devices, more than 65536"),
        (lambda document: document.update(format=2), "SH303 edited.plan.json has plan format 2"),
        (lambda document: document.pop("plan"), "SH302 edited.plan.json is not a plan: plan: missing"),
    ],
)
@pytest.mark.parametrize("form", ["torchrec", "hugectr", "pytorch", "csv"])
def test_a_damaged_plan_is_refused_in_every_form(shardc_, form, change, says):
    done = shardc_("export", str(edited(change)), "--to", form)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("none.json --to csv", "SH001 cannot read the plan none.json: no such file"),
        (". --to csv", "SH002 cannot read the plan .: is a directory"),
        ("model.plan.json --to csv -o none/x.csv", "SH004 cannot write none/x.csv: no such folder"),
        ("model.plan.json --to excel", "SH902 Invalid value for '--to'"),
        ("model.plan.json", "SH902 Missing option '--to'"),
    ],
)
def test_what_cannot_be_done(shardc_, arguments, says):
    done = shardc_("export", *arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)
