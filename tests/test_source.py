from __future__ import annotations

import pickle

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardc.diagnostics import DiagnosticError, Location
from shardc.source import CsvSource, Source

TOML = """\
format = 1
a.b."c d" = 2

[model]  # the model
name = 'né' # comment
inline = { p = 1, q.r = [10, 22] }

[[table]]
name = "x"
access = { bins = [1,
  # comment
  3] }
[[table]]
name = '''y
z'''
[[table.sub]]
y = 1
[x.y]
m = -5.5
[x]
z = 1979-05-27
"""


def marked(at: Location) -> tuple[int, str]:
    assert at.file == "m.toml"
    return at.line, at.text[at.column - 1 :][: at.length]


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("format",), (1, "1"), (1, "format")),
        (("a",), (2, "a"), (2, "a")),
        (("a", "b"), (2, "b"), (2, "b")),
        (("a", "b", "c d"), (2, "2"), (2, '"c d"')),
        (("model",), (4, "[model]"), (4, "model")),
        (("model", "name"), (5, "'né'"), (5, "name")),
        (("model", "inline"), (6, "{ p = 1, q.r = [10, 22] }"), (6, "inline")),
        (("model", "inline", "p"), (6, "1"), (6, "p")),
        (("model", "inline", "q"), (6, "q"), (6, "q")),
        (("model", "inline", "q", "r"), (6, "[10, 22]"), (6, "r")),
        (("model", "inline", "q", "r", 1), (6, "22"), (6, "22")),
        (("table",), (8, "[[table]]"), (8, "table")),
        (("table", 0), (8, "[[table]]"), (8, "table")),
        (("table", 0, "access", "bins"), (10, "[1,"), (10, "bins")),
        (("table", 0, "access", "bins", 1), (12, "3"), (12, "3")),
        (("table", 1), (13, "[[table]]"), (13, "table")),
        (("table", 1, "name"), (14, "'''y"), (14, "name")),
        (("table", 1, "sub", 0), (16, "[[table.sub]]"), (16, "sub")),
        (("table", 1, "sub", 0, "y"), (17, "1"), (17, "y")),
        (("x",), (20, "[x]"), (18, "x")),
        (("x", "y"), (18, "[x.y]"), (18, "y")),
        (("x", "y", "m"), (19, "-5.5"), (19, "m")),
        (("x", "z"), (21, "1979-05-27"), (21, "z")),
    ],
)
@pytest.mark.parametrize("form", ["plain", "windows"])
def test_exact_range_of_values_and_keys(path, value, key, form):
    text = TOML if form == "plain" else "\ufeff" + TOML.replace("\n", "\r\n")
    source = Source("m.toml", text)
    assert marked(source.locate(path)) == value
    assert marked(source.locate(path, key=True)) == key


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        (("table", 1, "dim"), (13, "[[table]]")),
        (("table", 9), (8, "[[table]]")),
        (("model", "inline", "z"), (6, "{ p = 1, q.r = [10, 22] }")),
        (("model", "name", 3, "deep"), (5, "'né'")),
        (("cluster", "hosts"), (1, "f")),
        ((), (1, "f")),
    ],
)
def test_a_missing_key_is_located_at_what_encloses_it(path, nearest):
    assert marked(Source("m.toml", TOML).locate(path, key=True)) == nearest
    assert Source("m.toml", TOML).find(path) is None


def test_columns_count_characters():
    at = Source("m.toml", '"ключ 😀" = { "中" = 7 }').locate(("ключ 😀", "中"))
    assert (at.column, at.length) == (20, 1)


def test_an_escaped_key_is_found_by_its_name():
    assert Source("m.toml", '"\\u0061\\t" = 1').locate(("a\t",)).column == 14


def test_an_empty_document_has_a_place():
    assert str(Source("m.toml", "").locate(("model",))) == "m.toml:1:1"


KEYS = st.text("ab.é\"'\\ \t", max_size=4)
SCALARS = st.integers(0, 99) | st.text('é"\\\n\t#=[]{}', max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def written(value: object) -> str:
    """Write a value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if c not in '"\\' and c.isprintable() else f"\\u{ord(c):04x}" for c in value) + '"'
    return str(value)


def paths(value: object, path: tuple[str | int, ...] = ()):
    yield path, value
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*path, key))


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), st.lists(st.dictionaries(KEYS, VALUES), max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_marked_parses_to_the_value_at_the_path(top, tables):
    text = "\n".join(f"{written(key)} = {written(value)}" for key, value in top.items())
    for table in tables:
        text += "\n[[tables]]\n" + "\n".join(f"{written(key)} = {written(value)}" for key, value in table.items())
    source = Source("m.toml", text)
    for path, value in paths({**top, "tables": tables}):
        if len(path) == 0 or (path[0] == "tables" and len(path) < 3):
            continue
        at = source.find(path)
        assert at is not None
        assert tomli.loads("x = " + at.text[at.column - 1 :][: at.length])["x"] == value


CSV = '\ufeffname, rows,"dim"\r\n\r\na,"1,2" ,3\r\n  "b ""q""\r\nz", 4 ,\r\nc\r\n'


def test_csv_cells_and_where_they_stand():
    source = CsvSource("t.csv", CSV)
    assert [cell.value for cell in source.header] == ["name", "rows", "dim"]
    assert [[cell.value for cell in row] for row in source.rows] == [["a", "1,2", "3"], ['b "q"\nz', "4", ""], ["c"]]
    places = {(0, "name"): (3, 1, 1), (0, "rows"): (3, 3, 5), (0, "dim"): (3, 10, 1), (1, "name"): (4, 3, 8)}
    for path, place in {**places, (1, "rows"): (5, 5, 1)}.items():
        at = source.locate(path)
        assert (at.line, at.column, at.length) == place
    header = source.locate((0, "dim"), key=True)
    assert (header.line, header.column, header.length) == (1, 12, 5)


def test_csv_falls_back_to_the_row():
    source = CsvSource("t.csv", CSV)
    for column in ("dim", "pin"):
        assert source.find((2, column)) is None
        at = source.locate((2, column))
        assert (at.line, at.column, at.text[: at.length]) == (6, 1, "c")


@pytest.mark.parametrize(
    ("text", "line", "column"), [("", 1, 1), ("\n \n", 1, 1), ('a\nb,"c\nd', 2, 3), ('a\n"x"y,1', 2, 1)]
)
def test_bad_csv_is_located(text, line, column):
    with pytest.raises(DiagnosticError) as caught:
        CsvSource("t.csv", text)
    (found,) = caught.value.diagnostics
    assert found.code == "SH108"
    assert found.location is not None
    assert (found.location.line, found.location.column) == (line, column)


def test_a_document_that_has_been_searched_goes_to_another_process():
    source = Source("s.toml", "[model]\nname = 'a'\n")
    at = source.find(("model", "name"))
    assert pickle.loads(pickle.dumps(source)).find(("model", "name")) == at


CELLS = st.text('ab,"\n é', max_size=5).map(str.strip)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=4))
@settings(deadline=None)
def test_csv_reads_back_what_was_written(rows):
    text = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    source = CsvSource("t.csv", text)
    assert [[cell.value for cell in row] for row in (source.header, *source.rows)] == rows
    for row in (source.header, *source.rows):
        assert all(source.cell(cell).text[cell.column - 1] == '"' for cell in row)
