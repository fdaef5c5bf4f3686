"""Where in a JSON document something stands. Parsers do not say, so it is looked for once anything is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shardc.diagnostics import Location

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@dataclass(slots=True)
class _Container:
    """An object or array that is open, and where in it we are."""

    at: str | int
    names: set[str] | None = None


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a document.

    Attributes:
        token: its first token.
        key: the token of its key; None in an array.
        again: whether its object had that key already.
    """

    token: re.Match[str]
    key: re.Match[str] | None
    again: bool


@dataclass(slots=True)
class JsonText:
    """A document that is valid JSON up to what is looked for."""

    file: str
    text: str
    _open: list[_Container] = field(default_factory=list, init=False)

    def duplicate(self) -> tuple[str, Location | None]:
        """The first key that is in its object already, and where; of a document that has one."""
        found = next(value for value in self._values() if value.again)
        return str(self._open[-1].at), self._location(found.key)

    def first(self, pattern: str) -> Location | None:
        """Where the first number, or what stands in place of one, is that begins as a pattern describes."""
        wanted = re.compile(pattern)
        return self._location(next((v.token for v in self._values() if wanted.match(v.token[0])), None))

    def locate(self, path: Sequence[str | int]) -> Location | None:
        """Where the value at a path is, else the nearest thing that encloses it; of objects and arrays the key."""
        nearest, depth = None, 0
        for value in self._values():
            if depth < len(self._open) <= len(path) and all(
                container.at == part for container, part in zip(self._open, path, strict=False)
            ):
                depth = len(self._open)
                nearest = value.key if value.key and value.token[0] in ("{", "[") else value.token
                if depth == len(path):
                    break
        return self._location(nearest)

    def _values(self) -> Iterator[_Value]:
        """Yield all values in their order; meanwhile `_open` leads to each of them."""
        self._open.clear()
        key: re.Match[str] | None = None
        for token in _TOKEN.finditer(self.text):
            mark, inner = token[0], self._open[-1] if self._open else None
            if mark in ("}", "]"):
                self._open.pop()
            elif mark == ",":
                key = None
                if inner and isinstance(inner.at, int):
                    inner.at += 1
            elif mark != ":":
                again = False
                if inner and inner.names is not None:
                    if key is None:
                        key = token
                        continue
                    name: str = json.loads(key[0])
                    again = name in inner.names
                    inner.names.add(name)
                    inner.at = name
                yield _Value(token, key, again)
                if mark in ("{", "["):
                    self._open.append(_Container("", set()) if mark == "{" else _Container(0))
                    key = None

    def _location(self, token: re.Match[str] | None) -> Location | None:
        if token is None:
            return None
        start = self.text.rfind("\n", 0, token.start()) + 1
        end = self.text.find("\n", start)
        line = self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")
        number = self.text.count("\n", 0, start) + 1
        return Location(self.file, number, token.start() - start + 1, len(token[0]), line)
