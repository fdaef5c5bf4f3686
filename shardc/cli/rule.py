"""`shardc rule`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from shardc.cli.console import configure, echo, width
from shardc.diagnostics import CODES, Diagnostic, DiagnosticError

_PROSE = 120  # columns

if TYPE_CHECKING:
    from shardc.rules import Rule


class Format(StrEnum):
    """How rules are shown."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


def rule(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            autocompletion=lambda incomplete: [code for code in CODES if code.startswith(incomplete)],
            help="A diagnostic code: SH101; all unless given.",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="How it is shown.")] = Format.TEXT,
) -> None:
    """Say what a diagnostic code means, what provokes it and what to do about it; or list all codes."""
    from shardc.rules import read_rules

    rules = read_rules()
    if code is None:
        shown: Rule | list[Rule] = list(rules.values())
    elif code.upper() in rules:
        shown = rules[code.upper()]
    else:
        raise _unknown(code, list(rules))
    configure(sys.stdout, encoding=None if format is Format.TEXT else "utf-8")
    echo(_as_json(shown) if format is Format.JSON else _as_prose(shown, format))


def _unknown(code: str, codes: Sequence[str]) -> DiagnosticError:
    def alike(known: str) -> int:  # from either end, as letters are added and the prefix is left out
        asked = code.upper()
        pairs = (zip(known, asked, strict=False), zip(reversed(known), reversed(asked), strict=False))
        return max(sum(ours == theirs for ours, theirs in each) for each in pairs)

    close = max(codes, key=alike)
    hint = f"did you mean {close}? " if alike(close) > 1 else ""
    message = f'no diagnostic has the code "{code}"'
    return DiagnosticError(Diagnostic("SH902", message, help=f"{hint}shardc rule lists all codes"), exit_code=2)


def _as_json(shown: Rule | list[Rule]) -> str:
    import json
    from dataclasses import asdict

    value = [asdict(each) for each in shown] if isinstance(shown, list) else asdict(shown)
    return json.dumps(value, indent=2, ensure_ascii=False)


def _as_prose(shown: Rule | list[Rule], format: Format) -> str:
    markdown = format is Format.MARKDOWN
    if isinstance(shown, list):
        return _listed(shown, markdown)
    return f"## {shown.code}: {shown.title}\n\n{shown.markdown}" if markdown else "\n\n".join(_text(shown))


def _listed(rules: Iterable[Rule], markdown: bool) -> str:
    """All codes below the names of their families."""
    heading, entry = ("**{}**\n", "- `{}` {}") if markdown else ("{}", "  {}  {}")
    return "\n\n".join(
        "\n".join([heading.format(family), *(entry.format(each.code, each.title) for each in members)])
        for family, members in groupby(rules, lambda each: each.family)
    )


def _text(rule: Rule) -> Iterable[str]:
    columns = min(width(), _PROSE)
    yield f"{rule.code}: {rule.title}"
    yield textwrap.fill(rule.meaning, columns, break_on_hyphens=False)
    if rule.example:
        yield "Example:\n" + textwrap.indent(rule.example.text, "    ")
    yield textwrap.fill(f"Fix: {rule.fix}", columns, break_on_hyphens=False)
