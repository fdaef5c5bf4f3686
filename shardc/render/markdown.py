"""Markdown for comments of pull requests, in which nothing that strangers wrote is a link, a picture or a mention."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shardc.diagnostics import shown


def code(text: str) -> str:
    """Text as a code span, in which nothing is markup, whatever backticks it has."""
    text = shown(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def row(cells: Iterable[str]) -> str:
    """A row of a table. A bar would end a cell in a code span too, unless an odd number of backslashes precedes it."""
    return "| " + " | ".join(re.sub(r"\\*\|", _within, cell) for cell in cells) + " |"


def _within(bar: re.Match[str]) -> str:
    return "\\" * (len(bar[0]) - 1 | 1) + "|"
