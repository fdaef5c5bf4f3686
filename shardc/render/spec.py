"""Writing specs: the text of a spec file and of a table file, as `shardc.spec` reads them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardc.source import Path
from shardc.spec import Spec, TableSpec

_NOTE_COLUMN = 36


def spec_toml(spec: Spec, comment: str = "", notes: Mapping[Path, str] | None = None) -> str:
    """The TOML text of a spec: what it sets, and none of the defaults that it leaves alone.

    Args:
        spec: the spec; its tables become `[[table]]` sections.
        comment: lines for the top of the file, without "#".
        notes: what to say behind single values, by their path: ``("table", 3, "dim")``.
    """
    notes = notes or {}
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, value in _set(spec).items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *_lines(value, (name,), notes)]
        elif name == "table":
            for number, table in enumerate(value):
                table = {"name": table["name"], **table}
                lines += ["", "[[table]]", *_lines(table, (name, number), notes)]
        else:
            lines += _pairs({name: value})
    return "\n".join(lines) + "\n"


def tables_csv(tables: Sequence[TableSpec]) -> str:
    """The text of a table file: one row a table, and a column for each key that any of them sets.

    Raises:
        ValueError: a feature contains ";", which separates the elements of a list there.
    """
    rows = [_set(table) for table in tables]
    columns = ["name", *(key for key in TableSpec.model_fields if key != "name" and any(key in row for row in rows))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([_cell(row.get(key)) for key in columns] for row in rows)])
    return text.getvalue()


def _set(section: Spec | TableSpec) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True, exclude_none=True)


def _lines(section: Mapping[str, Any], path: Path, notes: Mapping[Path, str]) -> list[str]:
    remarks = [notes.get((*path, key)) for key in section]
    pairs = zip(_pairs(section), remarks, strict=True)
    return [f"{pair:<{_NOTE_COLUMN}}  # {remark}" if remark else pair for pair, remark in pairs]


def _pairs(section: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in section.items()]


def _toml(value: Any) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)  # its escapes are TOML's
        case int():
            return f"{value:_}"
        case float():
            return _number(value)
        case Mapping():
            return f"{{ {', '.join(_pairs(value))} }}"
    return f"[{', '.join(map(_toml, value))}]"


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return _number(value)
        case Mapping():  # of an access distribution
            return ";".join(f"{key}={_cell(part)}" for key, part in value.items())
        case list() | tuple():
            cells = [_cell(part) for part in value]
            if any(";" in cell for cell in cells):
                raise ValueError(f'a table file cannot hold ";" in {cells}')
            return ";".join(cells)
    return str(value)


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")
