from __future__ import annotations

import pickle
import re

import pytest

from shardc.diagnostics import CODES, Diagnostic, DiagnosticError, Location, concise, render

LINE = 'dmi = 128  # "é"'
AT = Location("model.toml", 17, 1, 3, LINE)


def carets(text: str, column: int, length: int) -> str:
    """Render a location and return what stands below the source line, after the gutter."""
    shown = render([Diagnostic("SH101", "m", Location("f", 1, column, length, text))], color=False)
    return shown.splitlines()[4].removeprefix("  | ")


def source(text: str, column: int = 1, length: int = 1) -> str:
    shown = render([Diagnostic("SH101", "m", Location("f", 1, column, length, text))], color=False)
    return shown.splitlines()[3].removeprefix("1 | ")


def test_full_form():
    found = Diagnostic("SH101", 'unknown key "dmi"', AT, help='did you mean "dim"?', notes=("a note",))
    assert render([found], color=False) == (
        'SH101 unknown key "dmi"\n'
        "  --> model.toml:17:1\n"
        "   |\n"
        f"17 | {LINE}\n"
        "   | ^^^\n"
        'help: did you mean "dim"?\n'
        "note: a note"
    )


def test_several_are_separated_by_a_blank_line_and_a_warning_says_so():
    shown = render([Diagnostic("SH202", "too big"), Diagnostic("SH501", "guess", severity="warning")], color=False)
    assert shown == "SH202 too big\n\nSH501 warning: guess"


def test_color_adds_nothing_but_escape_sequences():
    found = [Diagnostic("SH101", "m", AT, help="h", notes=("n",)), Diagnostic("SH501", "w", severity="warning")]
    colored = render(found, color=True)
    assert colored != render(found, color=False)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == render(found, color=False)


def test_concise():
    assert concise(Diagnostic("SH101", "m", AT)) == "model.toml:17:1: SH101 m"
    assert concise(Diagnostic("SH501", "m", AT, severity="warning")) == "model.toml:17:1: SH501 warning: m"
    assert concise(Diagnostic("SH202", "m")) == "SH202 m"


def test_unknown_code_is_refused():
    with pytest.raises(ValueError, match="SH999"):
        Diagnostic("SH999", "m")


def test_codes_are_well_formed():
    assert all(re.fullmatch(r"SH\d{3}", code) and meaning for code, meaning in CODES.items())
    assert list(CODES) == sorted(CODES)


def test_error_carries_diagnostics_and_exit_code_through_pickle():
    error = DiagnosticError(Diagnostic("SH101", "a", AT), Diagnostic("SH202", "b"), exit_code=2)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.diagnostics, copy.exit_code) == (error.diagnostics, 2)
    assert str(error) == "model.toml:17:1: SH101 a\nSH202 b"
    assert DiagnosticError(Diagnostic("SH202", "b")).exit_code == 1


@pytest.mark.parametrize(
    ("text", "column", "length", "expected"),
    [
        ("a = 1", 5, 1, "    ^"),
        ("\tx = 12", 6, 2, "\t    ^^"),
        ('"中" = 1', 7, 1, "       ^"),
        ('"中" = 1', 2, 1, " ^^"),
        ('"e\u0301" = 1', 8, 1, "      ^"),
        ("a\x1b = 1", 6, 1, "        ^"),
        ("a = 1", 1, 0, "^"),
        ("", 1, 1, "^"),
        ("abc", 2, 99, " ^^"),
    ],
)
def test_carets_stand_below_the_value(text, column, length, expected):
    assert carets(text, column, length) == expected


def test_control_characters_are_shown_not_obeyed():
    hostile = "a\x1b[2J\r\x07\u202eb\u2028c\x85"
    found = Diagnostic("SH101", hostile, Location(hostile, 1, 1, 1, hostile), help=hostile, notes=(hostile,))
    for shown in (render([found], color=False), concise(found)):
        assert not set(shown) & set("\x1b\r\x07\u202e\u2028\x85")
        assert r"a\x1b[2J\r\x07\u202eb\u2028c\x85" in shown
    assert "\nforged" not in concise(Diagnostic("SH101", "x\nforged"))


def test_tabs_of_the_source_are_kept():
    assert source("\tx = 1") == "\tx = 1"


def test_a_long_line_is_cut_around_the_carets():
    text = "x" * 5000 + "BAD" + "y" * 5000
    shown, below = source(text, 5001, 3), carets(text, 5001, 3)
    assert len(shown) < 200
    assert shown[0] == shown[-1] == "…"
    assert shown[below.index("^") : below.rindex("^") + 1] == "BAD"
