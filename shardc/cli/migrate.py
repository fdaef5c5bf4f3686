"""`shardc migrate`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from shardc.cli.console import configure, echo, in_color, in_unicode, width
from shardc.cli.diff import NewPlan, OldPlan, not_both_stdin


class ListFormat(StrEnum):
    """How a list of moves is written."""

    TEXT = "text"
    CSV = "csv"
    JSON = "json"


def migrate(
    old: OldPlan,
    new: NewPlan,
    format: Annotated[ListFormat, typer.Option(help="text for people, csv or json for a script that moves.")] = (
        ListFormat.TEXT
    ),
) -> None:
    """List which rows and columns of which table go from which rank to which, for a new plan to replace an old one.

    What a rank holds already, it keeps; what no rank has yet, because the table is new or has grown, is listed as new.
    """
    from shardc.given_plan import read_given
    from shardc.plan_diff import movements
    from shardc.render.migrate import moves_csv, moves_json, moves_text

    not_both_stdin(old, new)
    before, after = read_given(old), read_given(new)
    found = movements(before, after)
    match format:
        case ListFormat.TEXT:
            stream = sys.stdout
            text = moves_text(found, width=width(), color=in_color(stream), unicode=in_unicode(stream))
        case ListFormat.CSV:
            text = moves_csv(found)
        case ListFormat.JSON:
            text = moves_json(found)
    if format is not ListFormat.TEXT:
        configure(sys.stdout, encoding="utf-8", newline="\n")
    echo(text.removesuffix("\n"))
