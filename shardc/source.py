"""Where in a file a value was written: exact ranges in TOML and CSV text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import tomli

from shardc.diagnostics import Diagnostic, DiagnosticError, Location

if TYPE_CHECKING:
    from tree_sitter import Node

Path = tuple[str | int, ...]
"""Keys and indices from the top of a document, as in ``("table", 3, "dim")``."""


class _Span(NamedTuple):
    """A range of a document; rows are 0-based, columns are bytes within the row (tree-sitter's points)."""

    row: int
    column: int
    end_row: int
    end_column: int


@dataclass(slots=True)
class _Entry:
    """What is known of one key of a document: where it is, where its value is, and what is below it.

    What is below stays `unread` until something there is asked for: of a hundred thousand tables few have faults.
    """

    key: _Span | None = None
    value: _Span | None = None
    of_tables: bool = False
    children: dict[str | int, _Entry] = field(default_factory=dict)
    unread: list[Node] = field(default_factory=list)

    def child(self, part: str | int) -> _Entry | None:
        """The entry of a key or an index below."""
        for node in self.unread:
            _read(self, node)
        self.unread.clear()
        return self.children.get(part)


class Source:
    """A TOML document that knows where each of its values stands; parsed for positions only when asked."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = self.text.split("\n")
        self._entries: dict[str | int, _Entry | None] = {}

    def __reduce__(self) -> tuple[type[Source], tuple[str, str]]:
        # What has been parsed stays here: a parser's nodes cannot go to another process.
        return Source, (self.file, self.text)

    def line(self, number: int, column: int = 1, length: int = 1) -> Location:
        """Return a location on a line by its 1-based number."""
        text = self._lines[number - 1] if number <= len(self._lines) else ""
        return Location(self.file, number, column, length, text)

    def find(self, path: Path, *, key: bool = False) -> Location | None:
        """Return the range of the value (or of the key) at a path, None when the document has no such path."""
        entry = self._top_level(path[0]) if path else None
        for part in path[1:]:
            entry = entry.child(part) if entry else None
        span = entry and ((key and entry.key) or entry.value)
        return self._location(span) if span else None

    def locate(self, path: Path, *, key: bool = False) -> Location:
        """Return the range of the value (or of the key) at a path, else of the nearest thing that encloses it.

        A table stands for its header: a key missing from ``[[table]]`` is located at that header.
        """
        found = self.find(path, key=key)
        while found is None and path:
            path = path[:-1]
            found = self.find(path)
        return found or self.line(1)

    def _location(self, span: _Span) -> Location:
        text = self._lines[span.row]
        # A location has one line; a longer value is marked to the end of its first.
        start, end = span.column, span.end_column if span.end_row == span.row else len(text.rstrip())
        if not text.isascii():
            data = text.encode()
            start = len(data[: span.column].decode(errors="ignore"))
            if span.end_row == span.row:
                end = start + len(data[span.column : span.end_column].decode(errors="ignore"))
        return Location(self.file, span.row + 1, start + 1, end - start, text)

    def _top_level(self, name: str | int) -> _Entry | None:
        """The entry of a top-level key, made of the nodes that are about it."""
        if name not in self._entries:
            root = _Entry()
            for node in self._nodes.get(name, ()):
                if node.type == "pair":
                    _add_value(*_pair(root, node))
                else:
                    _add_table(root, node)
            self._entries[name] = root.children.get(name)
        return self._entries[name]

    @cached_property
    def _nodes(self) -> dict[str | int, list[Node]]:
        """The sections and pairs of the document by the top-level key that they are about."""
        # Positions are needed for errors and warnings only, and mostly of one section.
        import tree_sitter
        import tree_sitter_toml

        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
        nodes: dict[str | int, list[Node]] = {}
        for node in _named(parser.parse(self.text.encode()).root_node):
            key = next((child for child in node.children if child.type.endswith("_key")), None)
            if key is not None and node.type in ("pair", "table", "table_array_element"):
                nodes.setdefault(_key_spans(key)[0][0], []).append(node)
        return nodes


def _add_table(root: _Entry, node: Node) -> None:
    """Record a ``[table]`` or ``[[table]]`` section, its pairs unread."""
    header = _span(node.children[0], node.children[2]) if len(node.children) > 2 else _span(node)
    key = next((child for child in _named(node) if child.type.endswith("_key")), None)
    if key is None:
        return
    entry = _descend(root, key, header)
    if node.type == "table_array_element":
        entry.of_tables = True
        entry = entry.children.setdefault(len(entry.children), _Entry(_key_spans(key)[-1][1], header))
    else:
        entry.value = header
    entry.unread.append(node)


def _pair(parent: _Entry, node: Node) -> tuple[_Entry, Node]:
    """Return the entry of a ``key = value``, made below its parent, and the value."""
    key, *rest = [child for child in node.named_children if child.type != "comment"]
    return _descend(parent, key, None), rest[-1] if rest else key


def _add_value(entry: _Entry, node: Node) -> None:
    """Record a value; what is in an array or an inline table stays unread."""
    entry.value = _span(node)
    if node.type in ("array", "inline_table"):
        entry.unread.append(node)


def _read(entry: _Entry, node: Node) -> None:
    """Record the elements of an array, or the pairs of an inline table or a section."""
    inner = [child for child in _named(node) if child.type != "comment"]
    if node.type == "array":
        for index, child in enumerate(inner):
            _add_value(entry.children.setdefault(index, _Entry()), child)
    else:
        for child in inner:
            if child.type == "pair":
                _add_value(*_pair(entry, child))


def _descend(entry: _Entry, key: Node, value: _Span | None) -> _Entry:
    """Return the entry of a bare, quoted or dotted key below another, made on the way.

    A table that only a longer key implies stands where that key names it first, or at the given header.
    """
    for name, span in _key_spans(key):
        if entry.of_tables:
            entry = entry.children[len(entry.children) - 1]
        entry = entry.children.setdefault(name, _Entry(span, value or span))
    return entry


def _key_spans(node: Node) -> list[tuple[str, _Span]]:
    """Return the parts of a key; dotted keys nest to the left, as deep as they are long."""
    parts: list[tuple[str, _Span]] = []
    pending = [node]
    while pending:
        part = pending.pop()
        if part.type == "dotted_key":
            pending += reversed(part.named_children)
        elif part.type in ("bare_key", "quoted_key"):
            parts.append((_key_name(part), _span(part)))
    return parts


def _key_name(node: Node) -> str:
    text = (node.text or b"").decode(errors="replace")
    return next(iter(tomli.loads(f"{text} = 0"))) if node.type == "quoted_key" else text


def _named(node: Node) -> Iterator[Node]:
    """Yield the named children, looking into what the parser could not fit into its grammar."""
    for child in node.named_children:
        if child.type == "ERROR":
            yield from _named(child)
        else:
            yield child


def _span(first: Node, last: Node | None = None) -> _Span:
    return _Span(*first.start_point, *(last or first).end_point)


class Cell(NamedTuple):
    """One cell of a CSV file: its value, unquoted and stripped, and where that stands (1-based)."""

    value: str
    line: int
    column: int
    length: int


_CELL = re.compile(r'[ \t]*+(?:"([^"]*+(?:""[^"]*+)*+)"[ \t]*+|([^",\n][^,\n]*+|))(,|\n|\Z)')


class CsvSource:
    """A comma-separated file with a header row, and where each of its cells stands.

    Blank lines are skipped. Cells may be quoted as in RFC 4180, with commas, doubled quotes and line ends inside.

    Raises:
        DiagnosticError: SH108 when there is no header, or a quoted cell does not end.
    """

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = text.split("\n")
        rows = [row for row in self._cells(text) if len(row) > 1 or row[0].length]
        if not rows:
            raise DiagnosticError(Diagnostic("SH108", "the file has no header row", Location(file, 1, 1, 1, "")))
        self.header, *self.rows = rows

    def find(self, path: Path, *, key: bool = False) -> Location | None:
        """Return the range of a cell by (row, column name), row 0 being the first below the header.

        With `key`, that of the column's header. None for an empty cell or a column the file does not have. A longer
        path leads into a cell, which is then marked whole.
        """
        names = [cell.value for cell in self.header]
        if len(path) < 2 or path[1] not in names:
            return None
        index = names.index(str(path[1]))
        row = self.header if key and len(path) == 2 else self.rows[int(path[0])]
        return self.cell(row[index]) if index < len(row) and row[index].length else None

    def locate(self, path: Path, *, key: bool = False) -> Location:
        """Return the range of a cell by (row, column name), else of its row."""
        if found := self.find(path, key=key):
            return found
        first = self.rows[int(path[0])][0] if path else self.header[0]
        return Location(self.file, first.line, 1, len(self._lines[first.line - 1]), self._lines[first.line - 1])

    def cell(self, cell: Cell) -> Location:
        """Return the range of a cell of `header` or `rows`."""
        return Location(self.file, cell.line, cell.column, cell.length, self._lines[cell.line - 1])

    def _cells(self, text: str) -> Iterator[list[Cell]]:
        row: list[Cell] = []
        line, line_start, position = 1, 0, 0
        while True:
            match = _CELL.match(text, position)
            if match is None:
                at = Location(self.file, line, position - line_start + 1, 1, self._lines[line - 1])
                advice = 'close it with "; a quote inside a quoted cell is written twice'
                raise DiagnosticError(Diagnostic("SH108", "a quoted cell does not end where it should", at, advice))
            quoted, bare, end = match.groups()
            group = 2 if quoted is None else 1
            value = bare.rstrip() if quoted is None else quoted.replace('""', '"').strip()
            # Quotes belong to the cell as it is written, spaces around it do not.
            start = match.start(group) - (group == 1)
            written = text[start : match.end(group) + (group == 1)].rstrip()
            row.append(Cell(value, line, start - line_start + 1, len(written.partition("\n")[0])))
            if breaks := written.count("\n"):
                line += breaks
                line_start = start + written.rindex("\n") + 1
            position = match.end()
            if end == "\n":
                line, line_start = line + 1, position
            if end != ",":
                yield row
                row = []
                if position >= len(text):
                    return
