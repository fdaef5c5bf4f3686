"""HTML from data: everything is escaped unless it is markup already."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_VOID = {"input", "meta", "link", "rect", "path", "line", "br"}

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is HTML."""


def text(value: object) -> Markup:
    r"""A value as text in HTML, in an element or an attribute.

    Characters that are not seen, or that change the order of others, become escapes like \u202e: a name cannot look
    like another one.
    """
    plain = str(value)
    if not (plain.isascii() and plain.isprintable()):
        plain = "".join(
            c if c == "\n" or unicodedata.category(c) not in _UNSEEN else c.encode("unicode_escape").decode()
            for c in plain
        )
    return Markup(escape(plain))


def el(tag: str, *content: object, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        tag: its name.
        content: text, markup, iterables of both; None is left out.
        attributes: by name, with - for _ and without one at the end; True is an attribute without a value, False and
            None are none.
    """
    head = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(_plain(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Markup(f"<{tag}{head}>") if tag not in {"rect", "path", "line"} else Markup(f"<{tag}{head}/>")
    return Markup(f"<{tag}{head}>{_inner(content)}</{tag}>")


def join(*content: object) -> Markup:
    """Content one after the other."""
    return Markup(_inner(content))


def _inner(content: Iterable[object]) -> str:
    parts: list[str] = []
    for part in content:
        if part is None:
            continue
        if isinstance(part, Markup):
            parts.append(part)
        elif isinstance(part, str | int):
            parts.append(text(part))
        elif isinstance(part, Iterable):
            parts.append(_inner(part))
        else:
            raise TypeError(f"no content of a page: {type(part).__name__}")
    return "".join(parts)


def _plain(value: Attribute) -> str:
    """A number with as many decimals as a picture needs."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
