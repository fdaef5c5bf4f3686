from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardc.diagnostics import Diagnostic, DiagnosticError, render
from shardc.spec import Bins, IndexFile, LoadedSpec, Zipf, load_spec, parse_size, parse_spec, spec_schema

HEAD = """\
format = 1
[model]
name = "m"
module = "sparse.0.ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 4
"""
TABLE = """\
[[table]]
name = "{}"
rows = 100
dim = 16
pooling = 2
"""
TWO_HOSTS = """\
hosts = 2
reserve = '10GB'
memory = '80GB'
intra_host_bandwidth = '450GB/s'
inter_host_bandwidth = '50GB/s'
[[cluster.host]]
hosts = [1]
reserve = '5GB'
memory = '60GB'
intra_host_bandwidth = '300GB/s'
inter_host_bandwidth = '20GB/s'
[[cluster.rank]]
ranks = [2]
memory = '40GB'
"""
HEAD_LINES = HEAD.count("\n")


def tables(*names: str, **extra: str) -> str:
    """Write valid tables; `extra` maps a name to further lines of that table."""
    return "".join(TABLE.format(name) + extra.get(name, "") + "\n" for name in names)


class Folder:
    """A folder with a spec, and what reading it reports."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, text: str, **others: str) -> LoadedSpec:
        (self.path / "model.toml").write_text(text, encoding="utf-8", newline="")
        for name, content in others.items():
            (self.path / f"{name}.csv").write_text(content, encoding="utf-8", newline="")
        return load_spec(self.path / "model.toml")

    def errors(self, text: str, **others: str) -> list[Diagnostic]:
        with pytest.raises(DiagnosticError) as caught:
            self.load(text, **others)
        self.exit_code = caught.value.exit_code
        return list(caught.value.diagnostics)

    def error(self, text: str, **others: str) -> Diagnostic:
        (found,) = self.errors(text, **others)
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def place(found: Diagnostic) -> tuple[int, str]:
    """Return the line below the head of the spec (or of the file) and the marked text."""
    assert found.location is not None
    at = found.location
    line = at.line - (HEAD_LINES if at.file.endswith(".toml") else 0)
    return line, at.text[at.column - 1 :][: at.length]


# --- What is valid ----------------------------------------------------------------------------------------------------


def test_sizes_are_exact():
    sizes = {"1000000000000B": 10**12, "9007199254740993B": 2**53 + 1, "0.5KiB": 512, "1.5 GB": 1_500_000_000}
    assert {text: parse_size(text) for text in sizes} == sizes
    refused = ("0B", "0.4B", "9223372036854775808B", "999999999999PiB", "1e3B")
    assert not any(map(parse_size, refused))


def test_more_elements_than_int64_has_bytes_for(tmp_path):
    tables = [{"name": f"t{n}", "rows": 10**12, "dim": 8192, "pooling": 1} for n in range(40)]
    head = {"format": 1, "model": {"name": "m", "module": "", "global_batch": 1}}
    with pytest.raises(DiagnosticError, match=r'SH104 table "t35" is one too many: expected at most 2\*\*58 elements'):
        parse_spec({**head, "cluster": {"device": "h100-80gb", "devices_per_host": 8}, "table": tables})


def test_defaults_fill_in_and_tables_are_sorted(folder):
    loaded = folder.load(
        HEAD
        + """
        [defaults]
        dim = 128
        access = { zipf = 1.05 }
        [[table]]
        name = "b"
        rows = 40_000_000
        pooling = 3
        [[table]]
        name = "a"
        features = ["f", "g"]
        rows = 10
        dim = 64
        pooling = 0.5
        access = "uniform"
        sharding = ["row_wise", "table_wise"]
        pin = [3, 1]
        group = "user"
        apart = "hot"
        """
    )
    a, b = loaded.tables
    assert (a.name, a.features, a.rows, a.dim, a.pooling) == ("a", ("f", "g"), 10, 64, 0.5)
    assert (a.access, a.sharding, a.pin) == (Zipf(0.0), ("table_wise", "row_wise"), (1, 3))
    assert (a.group, a.apart, a.origin) == ("user", "hot", ("table", 1))
    assert (b.features, b.dim, b.pooling, b.access, b.pin) == (("b",), 128, 3.0, Zipf(1.05), None)
    assert type(b.pooling) is float
    assert b.sharding == (
        "table_wise",
        "column_wise",
        "table_column_wise",
        "row_wise",
        "table_row_wise",
        "grid_shard",
        "data_parallel",
    )
    assert loaded.spec.compile.effort == "balanced"
    assert loaded.spec.model.optimizer == "rowwise_adagrad"


def test_access_forms(folder):
    bins = [0.1] * 10 + [0.0] * 7
    names = {"a": f"access = {{ bins = {bins} }}", "b": 'access = { indices = "x/i.npy" }', "c": "access = {zipf = 0}"}
    a, b, c = folder.load(HEAD + tables(*names, **names)).tables
    assert (a.access, b.access, c.access) == (Bins(tuple(bins)), IndexFile("x/i.npy"), Zipf(0.0))


def test_units(folder):
    cluster = parse_spec(
        data(
            cluster={"reserve": "10GiB", "memory": "72.5 GiB", "intra_host_bandwidth": "450GB/s"},
            budget={"gap": "5%"},
        )
    ).spec
    (kind,) = cluster.cluster.kinds
    assert kind.memory_bytes == int(72.5 * 2**30)
    assert kind.intra_bytes_per_s == 450e9
    assert kind.inter_bytes_per_s is None
    assert kind.reserve_bytes(80 * 2**30) == 10 * 2**30
    assert (cluster.budget.limit("gap"), cluster.budget.limit("step_time")) == (0.05, 0.02)
    assert cluster.budget.limit("improvement") == pytest.approx(0.001)
    plain = parse_spec(data()).spec
    assert plain.cluster.kinds[0].reserve_bytes(1000) == 150
    assert plain.cluster.kinds[0].memory_bytes is None
    assert plain.budget.limit("gap") is None


def test_where_later_findings_hang(folder):
    loaded = folder.load(
        HEAD + "[defaults]\ndim = 8\n[tables]\nfile = 'more.csv'\n" + TABLE.format("a").replace("dim = 16\n", ""),
        more="name,rows,pooling,pin\nb,7,1,2\n",
    )
    a, b = loaded.tables
    assert str(loaded.at("cluster", "device")).endswith("model.toml:7:10")
    assert str(loaded.at("cluster", "device", key=True)).endswith("model.toml:7:1")
    assert str(loaded.at_table(a)).endswith("model.toml:13:1")
    assert str(loaded.at_table(a, "rows")).endswith("model.toml:15:8")
    assert str(loaded.at_table(a, "dim")).endswith("model.toml:10:7")
    assert str(loaded.at_table(a, "pin")).endswith("model.toml:13:1")
    assert str(loaded.at_table(b, "pin")).endswith("more.csv:2:7")
    assert str(loaded.at_table(b, "dim")).endswith("model.toml:10:7")
    assert str(loaded.at_table(b)).endswith("more.csv:2:1")
    assert loaded.resolve("x/i.npy") == str(folder.path / "x/i.npy")


def test_tables_may_be_in_the_model_itself(folder):
    assert folder.load((HEAD + tables("x")).replace("sparse.0.ebc", "")).spec.model.module == ""


def test_without_a_file_there_are_no_places():
    loaded = parse_spec(data())
    assert loaded.at("model") is None
    assert loaded.at_table(loaded.tables[0], "dim") is None
    with pytest.raises(DiagnosticError) as caught:
        parse_spec(data(table=[{"name": "x", "dmi": 3, "rows": 1, "dim": 4, "pooling": 1}]))
    assert str(caught.value) == 'SH101 unknown key "dmi" in table "x"'


# --- The digest -------------------------------------------------------------------------------------------------------


def test_digest_ignores_order_formatting_and_budget(folder):
    text = HEAD + tables("a", "b", "c", b="pin = [2, 0]\nsharding = ['row_wise', 'table_wise']")
    digest = folder.load(text).digest()
    other = HEAD.replace("global_batch = 1024", "global_batch = 1_024 # samples")
    other += tables("c", "b", "a", b="sharding = ['table_wise', 'row_wise']\npin = [0, 2]").replace("100", "1_00")
    assert folder.load(other + "[budget]\nstep_time = '9%'\n").digest() == digest
    in_file = HEAD + "[tables]\nfile = 'more.csv'\n" + tables("c")
    more = "rows,name,dim,pooling,pin,sharding\n100,b,16,2,2;0,row_wise;table_wise\n100,a,16,2.0,,\n"
    assert folder.load(in_file, more=more).digest() == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1024", "1025"),
        ("h100-80gb", "a100"),
        ("devices_per_host = 4", "devices_per_host = 5"),
        ("devices_per_host = 4", "devices_per_host = 4\nreserve = '16%'"),
        ("devices_per_host = 4", "devices_per_host = 4\nmemory = '1TB'"),
        ("dim = 16", "dim = 20"),
        ("pooling = 2", "pooling = 2.5"),
        ("pooling = 2", "pooling = 2\ngroup = 'g'"),
        ("pooling = 2", "pooling = 2\naccess = { zipf = 1 }"),
        ("[[table]]", "[compile]\nseed = 1\n[[table]]"),
        ("[[table]]", "[[cluster.host]]\nhosts = [0]\nmemory = '1TB'\n[[table]]"),
        ("[[table]]", "[[cluster.host]]\nhosts = [0]\ndevice = 'a100-40gb'\n[[table]]"),
        ("[[table]]", "[[cluster.rank]]\nranks = [3]\nmemory = '1TB'\n[[table]]"),
    ],
)
def test_digest_changes_with_what_decides_the_plan(folder, old, new):
    text = HEAD + tables("a")
    assert folder.load(text).digest() != folder.load(text.replace(old, new)).digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hosts = [1]", "hosts = [0]"),
        ("hosts = [1]", "hosts = [0, 1]"),
        ("memory = '60GB'", "memory = '61GB'"),
        ("reserve = '5GB'", "reserve = '6GB'"),
        ("intra_host_bandwidth = '300GB/s'", "intra_host_bandwidth = '301GB/s'"),
        ("inter_host_bandwidth = '20GB/s'", "inter_host_bandwidth = '21GB/s'"),
        ("ranks = [2]", "ranks = [1]"),
        ("memory = '40GB'", "memory = '41GB'"),
    ],
)
def test_digest_changes_with_hosts_and_ranks_that_differ(folder, old, new):
    text = HEAD + TWO_HOSTS + tables("a")
    assert text.count(old) == 1
    assert folder.load(text).digest() != folder.load(text.replace(old, new)).digest()


def test_digest_ignores_how_hosts_and_ranks_are_listed(folder):
    digest = folder.load(HEAD + TWO_HOSTS + tables("a")).digest()
    # The defaults are those of the second host, and the first one differs.
    swapped = """hosts = 2
reserve = '5GB'
memory = '60GB'
intra_host_bandwidth = '300GB/s'
inter_host_bandwidth = '20GB/s'
"""
    host = """[[cluster.host]]
hosts = [0]
reserve = '10GB'
memory = '80000MB'
intra_host_bandwidth = '450GB/s'
inter_host_bandwidth = '50GB/s'
"""
    rank = "[[cluster.rank]]\nranks = [2]\nmemory = '40000MB'\n"
    assert folder.load(HEAD + swapped + rank + host + tables("a")).digest() == digest


@given(st.permutations(["a", "b", "c", "d"]))
@settings(deadline=None)
def test_digest_of_any_order_is_the_same(names):
    def spec(order):
        return parse_spec(data(table=[{"name": n, "rows": ord(n), "dim": 4, "pooling": 1} for n in order]))

    assert spec(names).digest() == spec("abcd").digest()
    assert spec(names).tables == spec("abcd").tables


# --- Errors in one value ----------------------------------------------------------------------------------------------

TABLE_ERRORS = [
    # what is added to a table (line 6), code, marked text, substring of message or help
    ("dmi = 3", "SH101", "dmi", 'did you mean "dim"?'),
    ("quux = 3", "SH101", "quux", "known keys: "),
    ("access = { zpf = 1 }", "SH101", "zpf", 'did you mean "zipf"?'),
    ("access = 'unifrm'", "SH104", "'unifrm'", 'write "uniform"'),
    ("access = 3", "SH103", "3", "found an integer"),
    ("access = {}", "SH104", "{}", "found none"),
    ("access = { zipf = 1, indices = 'f' }", "SH104", "{ zipf = 1, indices = 'f' }", "found zipf and indices"),
    ("access = { zipf = 1, table = 3 }", "SH104", "3", "goes with indices"),
    ("access = { indices = 'f', table = -1 }", "SH104", "-1", "at least 0"),
    ("access = { indices = 'f', table = '3' }", "SH103", "'3'", "expected an integer, found a string"),
    ("access = { zipf = 5.5 }", "SH104", "5.5", "at most 5"),
    ("access = { zipf = -1 }", "SH104", "-1", "at least 0"),
    ("access = { zipf = inf }", "SH104", "inf", "finite"),
    ("access = { bins = [1.0] }", "SH104", "[1.0]", "expected 17 shares, found 1"),
    (f"access = {{ bins = {[0.1] * 17} }}", "SH104", str([0.1] * 17), "found a sum of 1.7"),
    (f"access = {{ bins = {[-0.5] + [1.5 / 16] * 16} }}", "SH104", "-0.5", "at least 0"),
    ("sharding = ['row_wize']", "SH104", "'row_wize'", 'did you mean "row_wise"?'),
    (
        "sharding = ['row_wise', 'grid']",
        "SH104",
        "'grid'",
        '"grid_shard", "data_parallel", found "grid"',
    ),
    ("sharding = ['row_wise', 'row_wise']", "SH105", "'row_wise'", "twice"),
    ("sharding = []", "SH104", "[]", "at least one"),
    ("sharding = [1]", "SH103", "1", "found an integer"),
    ("features = 'f'", "SH103", "'f'", "expected an array, found a string"),
    ("features = []", "SH104", "[]", "at least one"),
    ("features = ['']", "SH104", "''", "empty"),
    ("features = ['f', 'f']", "SH105", "'f'", "twice"),
    ("pin = []", "SH104", "[]", "at least one"),
    ("pin = [0, 0]", "SH105", "0", "twice"),
    ("pin = [0, -1]", "SH104", "-1", "at least 0"),
    ("pin = [0, 4]", "SH104", "4", "a rank from 0 to 3"),
    ("pin = [true]", "SH103", "true", "expected an integer, found a boolean"),
    ("pin = 3", "SH103", "3", "expected an array"),
    ("group = 1979-05-27", "SH103", "1979-05-27", "expected a string, found a date"),
    ('group = "a\\u0000b"', "SH104", '"a\\u0000b"', "control"),
    (f"apart = '{'x' * 201}'", "SH104", f"'{'x' * 201}'", "at most 200"),
    ("pin = [0]\nsharding = ['row_wise']", "SH106", "[0]", "needs every rank"),
    ("group = 'g'\nsharding = ['column_wise']", "SH106", "['column_wise']", 'allow "table_wise"'),
    ("apart = 'g'\nsharding = ['row_wise']", "SH106", "['row_wise']", "uses every device"),
]


@pytest.mark.parametrize(("line", "code", "text", "says"), TABLE_ERRORS)
def test_an_error_of_a_table_is_exact(folder, line, code, text, says):
    found = folder.error(HEAD + tables("ok", "x", x=line))
    assert (found.code, folder.exit_code) == (code, 1)
    where, marked = place(found)
    assert marked == text
    assert where in (12, 13)
    assert says in f"{found.message} {found.help}"
    assert '"x"' in found.message


REPLACED = [
    # what is replaced, by what, code, marked text, substring of message or help
    ("dim = 16", "dim = 130", "SH104", "130", "use 128 or 132"),
    ("dim = 16", "dim = 0", "SH104", "0", "at least 4"),
    ("dim = 16", "dim = 8196", "SH104", "8196", "at most 8192"),
    ("dim = 16", "dim = 16.0", "SH103", "16.0", "write 16"),
    ("dim = 16", "dim = '16'", "SH103", "'16'", "expected an integer, found a string"),
    ("dim = 16", "dim = true", "SH103", "true", "found a boolean"),
    ("dim = 16", "", "SH102", "[[table]]", "add it here or under [defaults]"),
    ("rows = 100", "rows = 1.5", "SH103", "1.5", "found the number 1.5"),
    ("rows = 100", "rows = -1", "SH104", "-1", "at least 1"),
    ("rows = 100", "rows = 9223372036854775808", "SH104", "9223372036854775808", "beyond 64 bits"),
    ("rows = 100", "", "SH102", "[[table]]", 'missing key "rows" in table "x"'),
    ("pooling = 2", "pooling = 0", "SH104", "0", "more than 0"),
    ("pooling = 2", "pooling = nan", "SH104", "nan", "finite"),
    ("pooling = 2", "pooling = -inf", "SH104", "-inf", "finite"),
    ("pooling = 2", "pooling = 1e7", "SH104", "1e7", "at most 1000000"),
    ("pooling = 2", "pooling = true", "SH103", "true", "expected a number"),
    ("pooling = 2", "", "SH102", "[[table]]", "lookups"),
    ('name = "x"', "", "SH102", "[[table]]", 'missing key "name" in table number 1'),
    ('name = "x"', 'name = ""', "SH104", '""', "empty"),
    ('name = "x"', 'name = "a.b"', "SH104", '"a.b"', "TorchRec"),
    ('name = "x"', 'name = "a/b"', "SH104", '"a/b"', "TorchRec"),
    ("format = 1", "format = 2", "SH109", "2", "a newer shardc"),
    ("format = 1", "format = 0", "SH109", "0", "not one that this shardc reads"),
    ("format = 1", "format = true", "SH103", "true", "found a boolean"),
    ("format = 1", "", "SH102", "", 'missing key "format"'),
    ('module = "sparse.0.ebc"', 'module = "a..b"', "SH104", '"a..b"', "sparse_arch"),
    ('module = "sparse.0.ebc"', f'module = "{"a" * 201}"', "SH104", f'"{"a" * 201}"', "at most 200 characters"),
    ('module = "sparse.0.ebc"', "", "SH102", "[model]", 'missing key "module" in [model]'),
    ("global_batch = 1024", "global_batch = 0", "SH104", "0", "at least 1"),
    ("global_batch = 1024", "global_batch = 2147483649", "SH104", "2147483649", "at most 2147483648"),
    ("[cluster]", "optimizer = 'adagard'\n[cluster]", "SH104", "'adagard'", 'did you mean "adagrad"?'),
    ("[cluster]", "weights = 16\n[cluster]", "SH103", "16", '"fp16"'),
    ("[cluster]", "wights = 'fp16'\n[cluster]", "SH101", "wights", 'did you mean "weights"?'),
    ("devices_per_host = 4", "", "SH102", "[cluster]", "add devices_per_host"),
    ("devices_per_host = 4", "devices_per_host = 0", "SH104", "0", "at least 1"),
    ("devices_per_host = 4", "devices_per_host = 4\nhosts = 0", "SH104", "0", "at least 1"),
    ("devices_per_host = 4", "devices_per_host = 40000\nhosts = 2", "SH104", "40000", "found 80000"),
    ("devices_per_host = 4", "devices_per_host = 4\nmemory = 3", "SH103", "3", '"72GiB"'),
    ("devices_per_host = 4", "devices_per_host = 4\nmemory = '1.01PiB'", "SH104", "'1.01PiB'", "at most 1 PiB"),
    ("devices_per_host = 4", "devices_per_host = 8192\nmemory = '1PiB'", "SH104", "'1PiB'", "at most 4 EiB on all"),
    ("devices_per_host = 4", "devices_per_host = 4\nmemory = '-3GiB'", "SH104", "'-3GiB'", '"72GiB"'),
    ("devices_per_host = 4", "devices_per_host = 4\nmemory = '0GiB'", "SH104", "'0GiB'", "above zero"),
    ("devices_per_host = 4", "devices_per_host = 4\nreserve = '100%'", "SH104", "'100%'", '"15%"'),
    ("devices_per_host = 4", "devices_per_host = 4\nreserve = '-5%'", "SH104", "'-5%'", '"15%"'),
    (
        "devices_per_host = 4",
        "devices_per_host = 4\nreserve = '9GB'\nmemory = '8GB'",
        "SH104",
        "'9GB'",
        "below the memory of 8GB",
    ),
    (
        "devices_per_host = 4",
        "devices_per_host = 4\nintra_host_bandwidth = '400Gb/s'",
        "SH104",
        "'400Gb/s'",
        "bytes, not bits",
    ),
    ("[model]", "[modle]", "SH101", "modle", 'did you mean "model"?'),
    ("[[table]]", "[budget]\nstep_time = 2\n[[table]]", "SH103", "2", '"2%"'),
    ("[[table]]", "[budget]\nbalance = 1.5\n[[table]]", "SH104", "1.5", '"80%" or 0.8'),
    ("[[table]]", "[budget]\nbalance = '101%'\n[[table]]", "SH104", "'101%'", "a fraction from 0 to 1"),
    ("[[table]]", "[budget]\nheadroom = true\n[[table]]", "SH103", "true", "found a boolean"),
    ("[[table]]", "[budget]\nmoved = '1GB/s'\n[[table]]", "SH104", "'1GB/s'", '"2GiB"'),
    ("[[table]]", "[budget]\nmoved = '101%'\n[[table]]", "SH104", "'101%'", "from 0% to 100% or a size"),
    ("[[table]]", "[compile]\nseed = -1\n[[table]]", "SH104", "-1", "at least 0"),
    ("[[table]]", "[compile]\neffort = 'max'\n[[table]]", "SH104", "'max'", '"thorough"'),
    ("[[table]]", "[defaults]\npin = [1]\n[[table]]", "SH101", "pin", "known keys: rows, dim"),
    ("[[table]]", "[defaults]\npooling = 'x'\n[[table]]", "SH103", "'x'", "defaults.pooling"),
    ("[[table]]", "[table]", "SH103", "[table]", "two brackets"),
]


@pytest.mark.parametrize(("old", "new", "code", "text", "says"), REPLACED)
def test_an_error_is_exact(folder, old, new, code, text, says):
    spec = HEAD + tables("x")
    assert spec.count(old) == 1
    changed = spec.replace(old, new)
    found = [f for f in folder.errors(changed) if says in f"{f.message} {f.help}"]
    assert [f.code for f in found] == [code]
    assert folder.exit_code == 1
    assert found[0].location is not None
    if text:
        assert place(found[0])[1] == text
        assert found[0].location.text == changed.splitlines()[found[0].location.line - 1]


@pytest.mark.parametrize("text", [HEAD, "table = []\n" + HEAD])
def test_no_tables_at_all(folder, text):
    assert "SH102 the spec has no tables" in [f"{f.code} {f.message}" for f in folder.errors(text)]


def test_a_newer_format_says_only_that(folder):
    found = folder.error(HEAD.replace("format = 1", "format = 2\nfuture = true") + "[novel]\nkey = 1\n")
    assert found.code == "SH109"
    assert str(found.location).endswith("model.toml:1:10")


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("format = \n", 1, 10, "invalid value"),
        ("format = 1\nformat = 2\n", 2, 1, "cannot overwrite"),
        ("[model]\nname = 'x'\n[cluster]\n[model]\n", 4, 1, 'cannot declare "model" twice'),
        ("[model\nx = 1", 1, 7, "expected"),
        ("name = 'é", 1, 10, "expected"),
        ("x = \x01", 1, 5, "invalid"),
        ("\ufeffx = 1 y", 1, 7, "newline"),
        ("a = 1\r\nb = '\r\n'", 2, 6, "character"),
        ("a = 1\nx = " + "9" * 5000, 2, 5, "number"),
        ("x = " + "[" * 5000, 1, 1, "nested too deeply"),
        ("x = " + "{a = " * 5000, 1, 1, "nested too deeply"),
    ],
)
def test_toml_syntax(folder, text, line, column, says):
    found = folder.error(text)
    assert (found.code, folder.exit_code) == ("SH100", 1)
    assert found.location is not None
    assert (found.location.line, found.location.column) == (line, column)
    assert says in found.message


@pytest.mark.parametrize("depth", [100, 300])
def test_deep_nesting_where_a_string_belongs(folder, depth):
    for value in ("[" * depth + "]" * depth, "{a = " * depth + "1" + "}" * depth):
        found = folder.error(HEAD + tables("x", x=f"group = {value}"))
        assert (found.code, place(found)[1]) == ("SH103", value)


def test_unreadable_spec(folder):
    for path, code in ((folder.path / "none.toml", "SH001"), (folder.path, "SH002")):
        with pytest.raises(DiagnosticError) as caught:
            load_spec(path)
        assert (caught.value.diagnostics[0].code, caught.value.exit_code) == (code, 2)


# --- Several errors, and errors between tables ------------------------------------------------------------------------


def test_every_error_is_reported_at_once_in_the_order_of_the_file(folder):
    text = (
        HEAD.replace("global_batch", "global_bach")
        + tables("a", "b", a="pin = [7]", b="group = 3")
        + tables("a", "c", a="x = 1", c="sharding = ['row_wise']\ngroup = 'g'")
        + "[budget]\ngap = 5\n[tables]\nfile = 'more.csv'\n"
    )
    found = folder.errors(text, more="name,rows,dim,pooling\nd,0,5,x\n")
    assert [(f.code, f.location.line) for f in found if f.location] == [
        ("SH102", 2),
        ("SH101", 5),
        ("SH104", 14),
        ("SH103", 20),
        ("SH105", 22),
        ("SH101", 26),
        ("SH106", 32),
        ("SH103", 35),
        ("SH104", 2),
        ("SH104", 2),
        ("SH103", 2),
    ]
    assert "pydantic" not in render(found, color=False)


def test_duplicate_names_point_at_each_other(folder):
    found = folder.error(HEAD + tables("a", "b", "a"))
    assert (found.code, place(found)) == ("SH105", (14, '"a"'))
    assert found.notes[0].endswith("model.toml:10:8")


def test_features_may_be_shared_between_tables(folder):
    assert len(folder.load(HEAD + tables("a", "b", a="features = ['f']", b="features = ['f']")).tables) == 2


@pytest.mark.parametrize(
    ("extra", "line", "says"),
    [
        ({"a": "group='g'\npin=[0,1]", "b": "group='g'\npin=[2]"}, 14, 'the others of group "g"'),
        ({"a": "group='g'\napart='s'", "b": "group='g'\napart='s'"}, 14, 'with and apart from table "a"'),
        ({"a": "apart='s'\npin=[1]", "b": "apart='s'\npin=[1]"}, 13, '2 of the set "s" share 1 pinned rank'),
        ({"a": "apart='s'\npin=[1]", "b": "group='g'\napart='s'", "c": "group='g'\npin=[1]"}, 14, "share 1 pinned"),
    ],
)
def test_contradictory_constraints(folder, extra, line, says):
    found = folder.error(HEAD + tables("a", "b", "c", **extra))
    assert found.code == "SH106"
    assert says in found.message
    assert place(found)[0] == line


def test_constraints_that_can_be_met(folder):
    extra = {"a": "apart='s'\npin=[1]", "b": "apart='s'\ngroup='g'\npin=[1,2]", "c": "group='g'\npin=[2,3]"}
    assert len(folder.load(HEAD + tables("a", "b", "c", **extra)).tables) == 3
    assert folder.load(HEAD + tables("a", a="pin=[0,1,2,3]\nsharding=['row_wise']")).tables[0].pin == (0, 1, 2, 3)


def test_an_apart_set_larger_than_the_cluster(folder):
    names = [*"abcde"]
    found = folder.error(HEAD + tables(*names, **dict.fromkeys(names, "apart = 's'")))
    assert (found.code, place(found)) == ("SH106", (30, "'s'"))
    assert '5 of the set "s" share 4 devices' in found.message
    assert 'table "e"' in found.message
    folder.load(HEAD + tables(*names, **dict.fromkeys(names[:4], "apart = 's'"), e="group = 'g'"))


CACHED = "kernels = ['fused', 'fused_uvm_caching']"
ROOM = HEAD + "host_memory = '1TiB'\n"


def test_kernels_and_the_share_that_is_cached(folder):
    text = "[defaults]\ncache_ratio = 0.1\n[tables]\nfile = 'more.csv'\n"
    more = (
        "name,rows,dim,pooling,kernels,cache_ratio\nc,1,4,1,fused_uvm_caching,0.5\nd,1,4,1,fused_uvm_caching;fused,\n"
    )
    loaded = folder.load(ROOM + text + tables("a", "b", b="kernels = ['fused_uvm_caching', 'fused']"), more=more)
    found = {table.name: (table.kernels, table.cache_ratio) for table in loaded.tables}
    both = ("fused", "fused_uvm_caching")
    assert found == {"a": (("fused",), 0.1), "b": (both, 0.1), "c": (both[1:], 0.5), "d": (both, 0.1)}
    assert [table.name for table in loaded.cached_tables] == ["b", "c", "d"]
    assert folder.load(ROOM + tables("a")).tables[0].cache_ratio == 0.2
    assert folder.load(ROOM + tables("a")).spec.cluster.kinds[0].host_memory_bytes == 2**40


@pytest.mark.parametrize(
    ("line", "code", "text", "says"),
    [
        ("kernels = []", "SH104", "[]", "at least one element"),
        ("kernels = ['fused', 'fused']", "SH105", "'fused'", "twice"),
        ("kernels = ['fused_uvm']", "SH104", "'fused_uvm'", '"fused_uvm_caching"'),
        ("kernels = 'fused'", "SH103", "'fused'", "an array"),
        ("cache_ratio = 0", "SH104", "0", "more than 0"),
        ("cache_ratio = 1.0", "SH104", "1.0", "less than 1"),
        ("cache_ratio = '20%'", "SH103", "'20%'", "a number"),
    ],
)
def test_an_error_of_a_kernel_is_exact(folder, line, code, text, says):
    found = folder.error(ROOM + tables("a", a=line))
    assert (found.code, place(found)[1]) == (code, text)
    assert says in found.message


def test_a_cached_table_needs_host_memory(folder):
    """Told once, where the first of them has it from; with the others' names."""
    names = "abcdefgh"
    found = folder.error(HEAD + f"[defaults]\n{CACHED}\n" + tables(*names, b=CACHED, c="kernels = ['fused']"))
    assert (found.code, place(found)) == ("SH113", (2, "['fused', 'fused_uvm_caching']"))
    assert found.message.startswith('tables "a", "b", "d", ')
    assert " more may be in host memory, and none is given for tables" in found.message
    assert 'host_memory = "1TiB" under [cluster]' in found.help
    alone = folder.error(HEAD + tables("a", "b", b=CACHED))
    assert alone.message == 'table "b" may be in host memory, and none is given for tables'
    host = "[[cluster.host]]\nhosts = [0]\nhost_memory = '64GB'\n"
    assert folder.load(HEAD + host + tables("a", a=CACHED)).spec.cluster.kinds[0].host_memory_bytes == 64 * 10**9


def test_what_has_to_be_in_host_memory_is_not_data_parallel(folder):
    """As TorchRec's planner finds no way to shard a table by such constraints: its replicas have the kernel dense."""
    only = "kernels = ['fused_uvm_caching']\nsharding = ['data_parallel']"
    found = folder.error(ROOM + tables("a", a=only))
    assert (found.code, place(found)[1]) == ("SH106", "['fused_uvm_caching']")
    assert "data_parallel keeps it on the devices" in found.message
    folder.load(ROOM + tables("a", a=only.replace("['fused_uvm", "['fused', 'fused_uvm")))


def test_what_is_said_of_host_memory_decides_no_plan_in_which_no_table_uses_it(folder):
    plain = folder.load(HEAD + tables("a")).digest()
    assert folder.load(ROOM + tables("a", a="kernels = ['fused']\ncache_ratio = 0.7")).digest() == plain
    cached = [
        folder.load(text + tables("a", a=CACHED + more)).digest()
        for text in (ROOM, ROOM.replace("1TiB", "2TiB"))
        for more in ("", "\ncache_ratio = 0.3")
    ]
    assert len({plain, *cached}) == 5


# --- The table file ---------------------------------------------------------------------------------------------------

NAMES_FILE = HEAD + "[tables]\nfile = 'more.csv'\n"


@pytest.mark.parametrize("form", ["plain", "windows"])
def test_csv(folder, form):
    more = (
        "name,features,rows,dim,pooling,access,sharding,pin,group,apart\n"
        'a,f;g,40_000_000,128,1.5,zipf=1.05,row_wise; table_wise,0;3,"g,1",s\n'
        "\n"
        f"b,,10,4,2,bins={';'.join(['.1'] * 10 + ['0'] * 7)},,,,\n"
        "c,,10,4,2,uniform,,,,\n"
        "d,,10,4,2,indices=x.npy,,,,\n"
        "f,,10,4,2, indices = x;y.pt.gz ; table = 3 ,,,,\n"
    )
    text = NAMES_FILE + tables("e")
    if form == "windows":
        more, text = "\ufeff" + more.replace("\n", "\r\n"), "\ufeff" + text.replace("\n", "\r\n")
    a, b, c, d, e, f = folder.load(text, more=more).tables
    assert (a.features, a.rows, a.dim, a.pooling, a.access) == (("f", "g"), 40_000_000, 128, 1.5, Zipf(1.05))
    assert (a.sharding, a.pin, a.group, a.apart) == (("table_wise", "row_wise"), (0, 3), "g,1", "s")
    assert (b.features, b.pin, b.group, b.access) == (("b",), None, None, Bins((0.1,) * 10 + (0.0,) * 7))
    assert (c.access, d.access, e.origin) == (Zipf(0.0), IndexFile("x.npy"), ("table", 0))
    assert f.access == IndexFile("x;y.pt.gz", table=3)


@pytest.mark.parametrize(
    ("header", "row", "code", "line", "column", "text", "says"),
    [
        ("name,rows,dim,pooling", "a,10,6,1", "SH104", 2, 6, "6", "use 4 or 8"),
        ("name,rows,dim,pooling", "a, 1x ,4,1", "SH103", 2, 4, "1x", "expected an integer, found a string"),
        ("name,rows,dim,access", "a,10,4,indices=f;table=x", "SH103", 2, 8, "indices=f;table=x", "expected an integer"),
        ("name,rows,dim,pooling", "a,10,4,nan", "SH104", 2, 8, "nan", "finite"),
        ("name,rows,dim,pooling", "a,10,4", "SH108", 2, 1, "a,10,4", "expected 4 cells, found 3"),
        ("name,rows,dim,pooling", "a,10,4,1,2", "SH108", 2, 1, "a,10,4,1,2", "expected 4 cells, found 5"),
        ("name,rows,dim,pooling", "a,10,,1", "SH102", 2, 1, "a,10,,1", 'missing key "dim" in table "a"'),
        ("name,rows,dim,pooling", ",10,4,1", "SH102", 2, 1, ",10,4,1", "table number 1"),
        ("name,rows,dim,pooling", '"a,b.c",10,4,1', "SH104", 2, 1, '"a,b.c"', "TorchRec"),
        ("name,rows,dim,pooling,pin", '"x",10,4,1,0;9', "SH104", 2, 12, "0;9", "a rank from 0 to 3"),
        ("name,rows,dim,pooling,pin", "x,10,4,1,0;a", "SH103", 2, 10, "0;a", "expected an integer"),
        ("name,rows,dim,pooling,access", "x,10,4,1,zpf=1", "SH101", 2, 10, "zpf=1", 'did you mean "zipf"?'),
        ("name,rows,dim,pooling,access", "x,10,4,1,zipf", "SH104", 2, 10, "zipf", "access distribution"),
        ("name,rows,dim,pooling,dims", "x,10,4,1,3", "SH101", 1, 23, "dims", 'did you mean "dim"?'),
        ("name,rows,dim,pooling,dim", "x,10,4,1,4", "SH105", 1, 23, "dim", "twice"),
        ("name,rows,dim,pooling", 'x,10,4,"1', "SH108", 2, 8, '"', "does not end"),
        ("name,rows,dim,pooling", "e,10,4,1", "SH105", 2, 1, "e", "twice"),
    ],
)
def test_an_error_of_the_table_file_is_exact(folder, header, row, code, line, column, text, says):
    found = folder.error(NAMES_FILE + tables("e"), more=f"{header}\n{row}\n")
    assert (found.code, folder.exit_code) == (code, 1)
    assert found.location is not None
    assert found.location.file == str(folder.path / "more.csv")
    assert (found.location.line, found.location.column, place(found)[1]) == (line, column, text)
    assert says in f"{found.message} {found.help}"


def test_a_missing_table_file_is_located_in_the_spec(folder):
    found = folder.error(NAMES_FILE)
    assert (found.code, folder.exit_code, place(found)) == ("SH001", 2, (2, "'more.csv'"))
    assert "more.csv" in found.message


def test_a_table_file_without_rows(folder):
    assert folder.error(NAMES_FILE, more="name,rows\n").code == "SH102"
    assert folder.error(NAMES_FILE, more="").code == "SH108"


# --- Whatever comes in ------------------------------------------------------------------------------------------------


HOST, RANK = "[[cluster.host]]\n", "[[cluster.rank]]\n"
CLUSTER_ERRORS = [
    # what follows `hosts = 2`, code, line below the head, marked text, substring of message or help
    (HOST + "hosts = [2]\nmemory = '1GB'", "SH104", 3, "2", "a host from 0 to 1"),
    (HOST + "hosts = [-1]\nmemory = '1GB'", "SH104", 3, "-1", "at least 0"),
    (HOST + "hosts = [1, 1]", "SH105", 3, "1", "twice"),
    (HOST + "hosts = [1]\n" + HOST + "hosts = [0, 1]", "SH105", 5, "1", "host 1 is in two [[cluster.host]]"),
    (HOST + "hosts = []", "SH104", 3, "[]", "at least one"),
    (HOST + "memory = '1GB'", "SH102", 2, "[[cluster.host]]", "add hosts"),
    (HOST + "hosts = [1]\nmemroy = '1GB'", "SH101", 4, "memroy", 'did you mean "memory"?'),
    (HOST + "hosts = [1]\ndevice = 3", "SH103", 4, "3", "expected a string"),
    (HOST + "hosts = [1]\nreserve = '100%'", "SH104", 4, "'100%'", '"15%"'),
    (HOST + "hosts = [1]\nreserve = '2GB'\nmemory = '1GB'", "SH104", 2, "[[cluster.host]]", "below the memory of 1GB"),
    (
        HOST + "hosts = [0]\n" + HOST + "hosts = [1]\nmemory = '1GB'\nreserve = '1GB'",
        "SH104",
        4,
        "[[cluster.host]]",
        "1GB",
    ),
    (RANK + "ranks = [3, 8]\nmemory = '1GB'", "SH104", 3, "8", "a rank from 0 to 7"),
    (RANK + "ranks = [3, 3]\nmemory = '1GB'", "SH105", 3, "3", "twice"),
    (
        RANK + "ranks = [3]\nmemory = '1GB'\n" + RANK + "ranks = [4, 3]\nmemory = '1GB'",
        "SH105",
        6,
        "3",
        "rank 3 is in two [[cluster.rank]]",
    ),
    (RANK + "ranks = [3]", "SH102", 2, "[[cluster.rank]]", "add memory"),
    (RANK + "memory = '1GB'", "SH102", 2, "[[cluster.rank]]", "add ranks"),
    (RANK + "ranks = [3]\nmemory = 3", "SH103", 4, "3", '"72GiB"'),
    (RANK + "ranks = 3\nmemory = '1GB'", "SH103", 3, "3", "expected an array"),
    (RANK + "ranks = [3]\nmemory = '1GB'\nreserve = '1%'", "SH101", 5, "reserve", "known keys: ranks, memory"),
    ("[cluster.rank]\nranks = [3]\nmemory = '1GB'", "SH103", 2, "[cluster.rank]", "expected an array"),
]


@pytest.mark.parametrize(("lines", "code", "line", "text", "says"), CLUSTER_ERRORS)
def test_an_error_of_a_host_or_rank_is_exact(folder, lines, code, line, text, says):
    found = folder.error(f"{HEAD}hosts = 2\n{lines}\n{tables('x')}")
    assert (found.code, folder.exit_code) == (code, 1)
    assert place(found) == (line, text)
    assert says in f"{found.message} {found.help}"


def test_hosts_that_differ_keep_what_they_do_not_say(folder):
    cluster = folder.load(HEAD + TWO_HOSTS.replace("reserve = '5GB'\n", "") + tables("x")).spec.cluster
    first, second = (cluster.kinds[kind] for kind in cluster.host_kind)
    assert (first.memory_bytes, second.memory_bytes) == (80 * 10**9, 60 * 10**9)
    assert second.device == first.device == "h100-80gb"
    assert second.reserve_bytes(60 * 10**9) == 10 * 10**9
    assert (second.intra_bytes_per_s, second.inter_bytes_per_s) == (300e9, 20e9)
    assert cluster.rank_limit_bytes == {2: 30 * 10**9}


def data(**sections: Any) -> dict[str, Any]:
    """Return a valid spec as a dict, with sections merged or replaced."""
    base: dict[str, Any] = tomli.loads(HEAD + tables("x"))
    for name, value in sections.items():
        old = base.get(name)
        base[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return base


KNOWN = """
format model cluster defaults table tables compile budget name module global_batch device hosts devices_per_host reserve
memory host hosts rank ranks rows dim pooling access zipf bins indices sharding pin group apart seed gap features file
"""
KEYS = st.sampled_from(KNOWN.split()) | st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 8)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["uniform", "row_wise", "5%", "1GiB", "x", "g"])
    | st.dates()
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=20)
TABLES = st.fixed_dictionaries(
    {"name": st.sampled_from("abc"), "rows": st.integers(1, 9), "dim": st.just(4), "pooling": st.just(1.0)},
    optional={
        "pin": st.lists(st.integers(0, 4), max_size=3),
        "group": st.sampled_from("gh"),
        "apart": st.sampled_from("st"),
        "sharding": st.lists(
            st.sampled_from(["table_wise", "table_column_wise", "row_wise", "grid_shard"]), max_size=3
        ),
        "access": VALUES,
    },
)


def outcome(read, *args) -> LoadedSpec | None:
    """Read a spec that may be wrong in any way; nothing but diagnostics that render may come of it."""
    try:
        return read(*args)
    except DiagnosticError as error:
        assert error.diagnostics
        shown = render(error.diagnostics, color=False)
        assert "pydantic" not in shown
        assert "Input should" not in shown
        return None


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.lists(TABLES, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_data_is_a_spec_or_diagnostics(changes, entries):
    outcome(parse_spec, changes)
    loaded = outcome(parse_spec, data(table=entries, **{k: v for k, v in changes.items() if k != "table"}))
    if loaded:
        assert [t.name for t in loaded.tables] == sorted(e["name"] for e in entries)
        assert all(math.isfinite(t.pooling) for t in loaded.tables)
        assert loaded.digest().startswith("sha256:")


@given(st.binary(max_size=80), st.integers(0, len(HEAD + tables("x", "y"))), st.integers(0, 20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_a_spec_or_diagnostics(tmp_path_factory, junk, start, length):
    path = tmp_path_factory.getbasetemp() / "junk.toml"
    text = (HEAD + tables("x", "y")).encode()
    for content in (junk, text[:start] + junk + text[start + length :]):
        path.write_bytes(content)
        outcome(load_spec, path)


@given(st.text('ab,"\n;=.1_é', max_size=40))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_table_file_is_read_or_refused(tmp_path_factory, junk):
    folder = Folder(tmp_path_factory.getbasetemp())
    outcome(lambda: folder.load(NAMES_FILE, more=junk))
    outcome(lambda: folder.load(NAMES_FILE, more="name,rows,dim,pooling,access,pin\n" + junk))


def test_every_line_of_a_large_broken_spec_is_located(folder):
    names = [f"t{i}" for i in range(300)]
    random.Random(0).shuffle(names)
    found = folder.errors(HEAD + tables(*names, **dict.fromkeys(names, "colour = 1")))
    assert [place(f) for f in found] == [(6 + 6 * i, "colour") for i in range(300)]


# --- The schema -------------------------------------------------------------------------------------------------------


def properties(node: Any):
    if isinstance(node, dict):
        yield from node.get("properties", {}).items()
        for value in node.values():
            yield from properties(value)
    elif isinstance(node, list):
        for value in node:
            yield from properties(value)


def test_schema_is_draft_07_and_documents_every_key():
    schema = spec_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    text = json.dumps(schema)
    assert not [word for word in ("$defs", "prefixItems", "null") if f'"{word}"' in text or f" {word}" in text]
    assert all(value.get("description") for _, value in properties(schema))
    assert {"rows", "zipf", "improvement", "inter_host_bandwidth"} <= {name for name, _ in properties(schema)}
    for section in (schema, *schema["definitions"].values()):
        assert section.get("additionalProperties") is False or "anyOf" in section


@pytest.mark.parametrize(
    "extra", ["", "access = 'uniform'", "access = { zipf = 1 }", "pin = [1]\nsharding = ['row_wise']"]
)
def test_schema_accepts_what_is_valid(extra):
    jsonschema.Draft7Validator(spec_schema()).validate(tomli.loads(HEAD + tables("x", x=extra)))


@pytest.mark.parametrize(
    "extra", ["colour = 1", "access = 'zipf'", "access = {}", "access = { bins = [1] }", "pin = []", "group = ''"]
)
def test_schema_refuses_what_is_not(extra):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(spec_schema()).validate(tomli.loads(HEAD + tables("x", x=extra)))


def test_reading_a_valid_spec_imports_nothing_heavy(folder):
    folder.load(HEAD + tables("x"))
    code = (
        "import sys, shardc.spec; shardc.spec.load_spec(sys.argv[1]); "
        "print(sorted({'numpy', 'torch', 'rich', 'tree_sitter', 'tree_sitter_toml', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path / "model.toml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
