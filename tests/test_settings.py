from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.diagnostics import DiagnosticError
from shardc.plan import default_plan_path, read_plan
from shardc.settings import parse_setting, parse_settings, parse_varied, setting_text, split_values
from shardc.spec import load_spec

SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 4096
[cluster]
device = "h100-80gb"
devices_per_host = 2
[defaults]
rows = 1000
dim = 64
pooling = 2
[[table]]
name = "user_a"
[[table]]
name = "user_b"
pin = [1]
[tables]
file = "more.csv"
[compile]
effort = "fast"
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "more.csv").write_text("name,dim\nitem,32\n")
    path = tmp_path / "model.toml"
    path.write_text(SPEC)
    return path


def changed(path, *texts):
    return load_spec(path, parse_settings(texts))


def refused(path, *texts):
    with pytest.raises(DiagnosticError) as caught:
        changed(path, *texts)
    return caught.value.diagnostics[0], caught.value.exit_code


def dims(loaded):
    return {table.name: table.dim for table in loaded.tables}


def test_keys_of_sections_tables_patterns_and_table_files_are_set(spec):
    loaded = changed(spec, "cluster.hosts=3", "table.user_*.dim=128", "table.item.dim=16", "cluster.reserve=20%")
    assert (loaded.spec.cluster.hosts, loaded.spec.cluster.reserve) == (3, "20%")
    assert dims(loaded) == {"item": 16, "user_a": 128, "user_b": 128}


def test_the_last_setting_of_a_key_counts_and_none_is_as_if_it_were_written(spec):
    assert dims(changed(spec, "table.*.dim=8", "table.item.dim=16"))["item"] == 16
    assert changed(spec, "defaults.dim=64").digest() == load_spec(spec).digest()
    spec.write_text(SPEC.replace("devices_per_host = 2", "devices_per_host = 4"))
    written = load_spec(spec).digest()
    spec.write_text(SPEC)
    assert changed(spec, "cluster.devices_per_host=4").digest() == written


def test_a_key_without_value_is_taken_out(spec):
    assert [table.pin for table in load_spec(spec).tables if table.name == "user_b"] == [(1,)]
    assert [table.pin for table in changed(spec, "table.user_b.pin=").tables if table.name == "user_b"] == [None]


def test_settings_add_up_also_those_of_rows_of_a_table_file(spec):
    loaded = changed(spec, "table.item.dim=16").changed(parse_settings(["cluster.hosts=2"]))
    assert (dims(loaded)["item"], loaded.spec.cluster.hosts) == (16, 2)


@pytest.mark.parametrize(
    ("text", "code", "marked"),
    [
        ("cluster.hostz=2", "SH101", "hostz"),
        ("clusters.hosts=2", "SH101", "clusters"),
        ("cluster.hosts=two", "SH103", "two"),
        ("cluster.hosts=0", "SH104", "0"),
        ("table.user_b.pin=[7]", "SH104", "[7]"),
        ("table.item.dim=30", "SH104", "30"),
        ("table.item.dims=32", "SH101", "dims"),
        ("compile.effort=long", "SH104", "long"),
        ("table.user_c.dim=8", "SH331", "user_c"),
        ("table.x*.dim=8", "SH331", "x*"),
        ("model.name.first=1", "SH331", "name"),
        ("cluster", "SH330", None),
        ("=3", "SH330", None),
        ("a..b=3", "SH330", None),
        ("table.item.pin=[1", "SH330", "[1"),
        ("cluster.hosts=1\n[model]", "SH330", None),
    ],
)
def test_what_is_wrong_with_a_setting_is_marked_in_it(spec, text, code, marked):
    finding, exit_code = refused(spec, text)
    assert finding.code == code
    at = finding.location
    assert at.file == "--set"
    assert exit_code == (2 if code in ("SH330", "SH331") else 1)
    if marked:
        assert at.text[at.column - 1 : at.column - 1 + at.length] == marked


def test_a_setting_can_be_about_names_that_are_no_bare_keys(spec):
    spec.write_text(SPEC.replace("user_a", "a b*"))
    assert dims(changed(spec, 'table."a b*".dim=8')) == {"a b*": 8, "item": 32, "user_b": 64}
    assert dims(changed(spec, setting_text(("table", "a b*", "dim"), 8)))["a b*"] == 8


NAMES = st.text(st.characters(exclude_characters="./\"'\\", exclude_categories=["C", "Z"]), min_size=1)


@given(NAMES, st.one_of(st.integers(-(10**9), 10**9), st.booleans(), NAMES, st.lists(st.integers(0, 99))))
def test_what_is_written_as_a_setting_is_read_again(name, value):
    setting = parse_setting(setting_text(("table", name, "key"), value))
    assert (setting.keys, setting.value) == (("table", name, "key"), value)
    assert setting.names(name)


def test_values_to_vary_are_separated_by_commas_outside_of_brackets_and_quotes():
    assert split_values('[0,1],[2],"a,b",{a=1,b=2},3') == ["[0,1]", "[2]", '"a,b"', "{a=1,b=2}", "3"]
    assert [setting.value for setting in parse_varied("table.t.pin=[0,1],[2]")] == [[0, 1], [2]]
    for text in ("cluster.hosts=1,,2", "cluster.hosts", "cluster.hosts="):
        with pytest.raises(DiagnosticError, match="SH330"):
            parse_varied(text)


def test_a_what_if_replaces_no_plan_unless_it_is_told_where_to(spec, run_command, tmp_path):
    assert run_command("compile", str(spec), "-q").code == 0
    plan = tmp_path / "model.plan.json"
    before = plan.read_bytes()
    asked = run_command("compile", str(spec), "--set", "cluster.devices_per_host=4", "--set", "table.item.dim=64")
    assert asked.code == 0
    assert "4 × h100-80gb" in asked.out
    assert "no plan was written" in asked.out
    assert f"{default_plan_path(spec)} states" in asked.out
    assert plan.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.plan.json", "model.toml", "more.csv"]
    other = tmp_path / "other.plan.json"
    assert run_command("compile", str(spec), "-q", "--set", "cluster.devices_per_host=4", "-o", str(other)).code == 0
    assert read_plan(other).cluster.devices == 4
    assert plan.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("compile {} --set cluster.hosts=abc", "SH103"),
        ("compile {} --set cluster.hosts=0", "SH104"),
        ("compile {} --set cluster.device=h10", "SH107"),
        ("compile {} --set table.zzz.dim=4", "SH331"),
        ("compile {} --set hosts", "SH330"),
        ("compile {} --effort much", "SH902"),
        ("explain {} --set cluster.hosts=abc", "SH103"),
        ("sweep {} --devices 1 --set cluster.hosts=abc", "SH103"),
        ("sweep {} --devices a", "SH103"),
    ],
)
def test_whatever_is_wrong_with_an_option_the_exit_code_is_2(spec, run_command, arguments, code):
    done = run_command(*arguments.format(spec).split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"{code} ")


def test_what_is_wrong_with_the_spec_itself_is_a_finding_whatever_is_set(spec, run_command):
    spec.write_text(spec.read_text().replace("global_batch = ", "global_batch = -"))
    assert run_command("compile", str(spec), "--set", "cluster.hosts=2").code == 1


def test_a_bad_setting_ends_a_compile_with_its_place(spec, run_command, tmp_path):
    done = run_command("compile", str(spec), "--set", "cluster.device_per_host=4")
    assert done.code == 2
    assert 'unknown key "device_per_host" in [cluster]' in done.err
    assert "--set:1:9" in done.err
    assert 'did you mean "devices_per_host"?' in done.err
    assert not (tmp_path / "model.plan.json").exists()
