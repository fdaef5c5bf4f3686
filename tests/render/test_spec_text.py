from __future__ import annotations

from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from shardc.render.spec import spec_toml, tables_csv
from shardc.spec import Spec, TableSpec, TablesSpec, load_spec, parse_spec

ROOT = Path(__file__).parents[2]
BINS = [0.25, 0.75, *[0] * 15]
FULL = {
    "format": 1,
    "model": {"name": 'a "b" \\ ü', "module": "m.ebc", "global_batch": 65536, "optimizer": "adam"},
    "cluster": {"device": "h100-80gb", "hosts": 2, "devices_per_host": 4, "reserve": "10GiB"},
    "defaults": {"dim": 64, "access": "uniform"},
    "table": [
        {"name": "x", "rows": 40_000_000, "pooling": 1.5, "features": ["f", "g"], "pin": [0, 3], "group": "a,b"},
        {"name": "y", "rows": 3, "pooling": 1e-05, "access": {"bins": BINS}, "sharding": ["row_wise"]},
        {"name": "z", "rows": 3, "pooling": 2, "access": {"indices": "f.pt.gz", "table": 3}, "apart": "s"},
        {"name": "w", "rows": 3, "pooling": 20, "access": {"zipf": 1.05}},
    ],
    "compile": {"effort": "fast"},
    "budget": {"gap": "20%"},
}


def written(folder: Path, text: str, csv: str | None = None) -> Path:
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    if csv is not None:
        (folder / "more.csv").write_text(csv, encoding="utf-8")
    return path


def test_a_written_spec_reads_the_same(tmp_path):
    spec = parse_spec(FULL)
    again = load_spec(written(tmp_path, spec_toml(spec.spec, "About\n\nthis spec")))
    assert (again.spec, again.tables) == (spec.spec, spec.tables)


def test_a_written_table_file_reads_the_same(tmp_path):
    spec = parse_spec(FULL)
    short = spec.spec.model_copy(update={"table": (), "tables": TablesSpec(file="more.csv")})
    again = load_spec(written(tmp_path, spec_toml(short), tables_csv(spec.spec.table)))
    assert again.tables == spec.tables


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_can_be_written(example, tmp_path):
    spec = load_spec(example)
    assert load_spec(written(tmp_path, spec_toml(spec.spec))).digest() == spec.digest()


def test_the_text_is_laid_out_to_be_read():
    spec = Spec.model_validate({**FULL, "table": FULL["table"][:1]})
    assert spec_toml(spec, "About\n\nthis spec") == (
        "# About\n"
        "#\n"
        "# this spec\n"
        "format = 1\n"
        "\n"
        "[model]\n"
        'name = "a \\"b\\" \\\\ ü"\n'
        'module = "m.ebc"\n'
        "global_batch = 65_536\n"
        'optimizer = "adam"\n'
        "\n"
        "[cluster]\n"
        'device = "h100-80gb"\n'
        "hosts = 2\n"
        "devices_per_host = 4\n"
        'reserve = "10GiB"\n'
        "\n"
        "[defaults]\n"
        "dim = 64\n"
        "access = { zipf = 0 }\n"
        "\n"
        "[[table]]\n"
        'name = "x"\n'
        "rows = 40_000_000\n"
        "pooling = 1.5\n"
        'features = ["f", "g"]\n'
        "pin = [0, 3]\n"
        'group = "a,b"\n'
        "\n"
        "[compile]\n"
        'effort = "fast"\n'
        "\n"
        "[budget]\n"
        'gap = "20%"\n'
    )


def test_notes_stand_behind_their_values():
    spec = Spec.model_validate({**FULL, "table": FULL["table"][:2]})
    notes = {("model", "optimizer"): "assumed", ("table", 1, "access"): "measured"}
    with_notes = spec_toml(spec, notes=notes).splitlines()
    assert 'optimizer = "adam"                    # assumed' in with_notes
    assert f"access = {{ bins = [0.25, 0.75{', 0' * 15}] }}  # measured" in with_notes
    stripped = [line.partition("  #")[0].rstrip() for line in with_notes]
    assert stripped == spec_toml(spec).splitlines()


def test_a_table_file_has_the_columns_that_it_needs():
    tables = [TableSpec(name="a", rows=10, pooling=1.5), TableSpec(name="b", rows=20, features=("f", "g"))]
    assert tables_csv(tables) == "name,rows,pooling,features\na,10,1.5,\nb,20,,f;g\n"


def test_what_a_table_file_cannot_say_is_refused():
    with pytest.raises(ValueError, match="cannot hold"):
        tables_csv([TableSpec(name="a", features=("f;g",))])


@given(st.text(st.characters(exclude_categories=("C", "Z"))), st.floats(1e-6, 1e6))
def test_any_text_and_number_survives(text, number):
    spec = Spec.model_validate(
        {**FULL, "table": [{"name": "a", "rows": 1, "pooling": number, "group": text or "g", "access": {"zipf": 1}}]}
    )
    table = tomli.loads(spec_toml(spec))["table"][0]
    assert (table["pooling"], table["group"]) == (number, text or "g")
