"""Settings of the command line: KEY=VALUE in place of what a spec says, to ask what would be otherwise.

A key is written as in TOML, with tables by their name: `cluster.hosts`, `table.user_id.pooling`, `table."a b".dim`. A
name may be a pattern for several tables, `table.user_*.dim`. A value is TOML too; what does not look like TOML is a
string, so that `cluster.device=a100-40gb` needs no quotes of its own. Without a value the key is taken out of the spec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import tomli

from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.source import Path

_PART = re.compile(r'\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s."\'=]+))\s*(\.|=|$)')
_LIKE_TOML = re.compile(r"""["'\[{]""")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One KEY=VALUE.

    Attributes:
        option: the option that it was given with.
        text: as it was written.
        keys: the parts of the key.
        spans: where each of them stands in the text.
        literal: which of them were quoted, and so are no pattern.
        value: what the key is to have; None to take it out.
    """

    option: str
    text: str
    keys: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    literal: tuple[bool, ...]
    value: Any

    @property
    def of_table(self) -> bool:
        """Whether it is about tables by their name."""
        return len(self.keys) > 2 and self.keys[0] == "table"

    def names(self, table: object) -> bool:
        """Whether it is about a table of this name."""
        if not isinstance(table, str):
            return False
        return table == self.keys[1] or (not self.literal[1] and fnmatchcase(table, self.keys[1]))

    def at(self, part: int | None = None) -> Location:
        """Where the value stands, or a part of the key."""
        last = self.spans[-1][1]
        start = min(self.text.find("=", last) + 1, max(len(self.text) - 1, 0))
        start, end = (start, len(self.text)) if part is None else self.spans[min(part, len(self.spans) - 1)]
        return Location(self.option, 1, start + 1, max(end - start, 1), self.text)


def parse_setting(text: str, option: str = "--set") -> Setting:
    """Read KEY=VALUE.

    Raises:
        DiagnosticError: SH330, exit code 2.
    """
    keys, spans, literal, position = [], [], [], 0
    while match := _PART.match(text, position):
        group = next(number for number in (1, 2, 3) if match[number] is not None)
        keys.append(match[group])
        spans.append(match.span(group))
        literal.append(group != 3)
        position = match.end()
        if match[4] != ".":
            break
    if not match or match[4] != "=":
        what = "expected = and a value after the key" if match else "expected a key like cluster.hosts"
        raise _unreadable(option, text, what, len(text) if match else position)
    return Setting(option, text, tuple(keys), tuple(spans), tuple(literal), _value(option, text, position))


def parse_settings(texts: Iterable[str] | None, option: str = "--set") -> tuple[Setting, ...]:
    """Read several of KEY=VALUE; see `parse_setting`."""
    return tuple(parse_setting(text, option) for text in texts or ())


def parse_varied(text: str, option: str = "--vary") -> tuple[Setting, ...]:
    """Read KEY=VALUE,VALUE: one setting for each value.

    Raises:
        DiagnosticError: SH330, exit code 2.
    """
    key, equals, values = text.partition("=")
    if not equals:
        parse_setting(text, option)
    parts = split_values(values)
    if not all(parts):
        raise _unreadable(option, text, "expected a value between commas", len(text))
    return tuple(parse_setting(f"{key}={part}", option) for part in parts)


def split_values(text: str) -> list[str]:
    """The parts between commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in _OPENING) - (character in _CLOSING) if not quote else 0
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def setting_text(keys: Sequence[str], value: Any = None) -> str:
    """KEY=VALUE as `parse_setting` reads it; None to take the key out."""
    key = ".".join(part if _BARE.fullmatch(part) else f'"{part}"' if '"' not in part else f"'{part}'" for part in keys)
    if isinstance(value, str) and not _LIKE_TOML.match(value) and _value("", value, 0) == value:
        return f"{key}={value}"
    return f"{key}=" + ("" if value is None else json.dumps(value, ensure_ascii=False))


def apply(settings: Iterable[Setting], document: dict[str, Any]) -> Iterator[tuple[Path, Setting]]:
    """Change a spec, of nested dicts, in place, but for what is said of single tables.

    Yields:
        The path of each key that was set, and its setting.

    Raises:
        DiagnosticError: SH331, exit code 2, where the way to a key leads through what is no section.
    """
    for setting in settings:
        if setting.of_table:
            continue
        path: Path = ()
        inner: Any = document
        for part, key in enumerate(setting.keys[:-1]):
            name: str | int = int(key) if isinstance(inner, list) and key.isascii() and key.isdigit() else key
            if isinstance(inner, dict):
                inner = inner.setdefault(name, {})
            elif isinstance(inner, list) and isinstance(name, int) and name < len(inner):
                inner = inner[name]
            else:
                inner = None
            path = (*path, name)
            if not isinstance(inner, dict | list):
                message = f"the spec has no section {'.'.join(setting.keys[: part + 1])}"
                raise DiagnosticError(Diagnostic("SH331", message, setting.at(part)), exit_code=2)
        if not isinstance(inner, dict):
            message = f"{'.'.join(setting.keys[:-1])} has several entries: their numbers come next, from 0"
            raise DiagnosticError(Diagnostic("SH331", message, setting.at(len(setting.keys) - 1)), exit_code=2)
        _set(inner, setting.keys[-1], setting.value)
        yield (*path, setting.keys[-1]), setting


def apply_to_table(settings: Iterable[Setting], entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[Setting]]:
    """A table's entry as settings have it, and those that are about it."""
    about = [setting for setting in settings if setting.of_table and setting.names(entry.get("name"))]
    changed = dict(entry)
    for setting in about:
        inner = changed
        for key in setting.keys[2:-1]:
            inner[key] = dict(inner[key]) if isinstance(inner.get(key), dict) else {}
            inner = inner[key]
        _set(inner, setting.keys[-1], setting.value)
    return changed, about


def _set(section: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        section.pop(key, None)
    else:
        section[key] = value


def _value(option: str, text: str, start: int) -> Any:
    written = text[start:].strip()
    if not written:
        return None
    if "\n" not in written:
        try:
            return tomli.loads(f"value = {written}")["value"]
        except (ValueError, RecursionError):  # tomli's own error is a ValueError
            if not _LIKE_TOML.match(written):
                return written
    raise _unreadable(option, text, "expected a TOML value", start)


def _unreadable(option: str, text: str, complaint: str, start: int) -> DiagnosticError:
    start = min(start, max(len(text) - 1, 0))
    shown = text.partition("\n")[0]
    at = Location(option, 1, min(start, len(shown)) + 1, max(len(shown) - start, 1), shown)
    fix = "for example cluster.hosts=2, table.user_id.pooling=3 or 'table.user_*.sharding=[\"row_wise\"]'"
    return DiagnosticError(Diagnostic("SH330", f"{option}: {complaint}", at, help=fix), exit_code=2)
