"""Pictures in a page: bars in parts, and the map of which device holds which table.

All sizes are attributes, so that no style has to be inline. What a part is stands in its title, which browsers show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardc.render.markup import Markup, el

_CELL, _ROW = 64, 20  # pixels
_NAMED_ROWS = 120  # more have no room for names
_MOST_WIDTH = 896
_LABELS = 8
_RULED_DEVICES = 32


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar.

    Attributes:
        value: its length, in the unit of the bar.
        color: class of its colour.
        title: what it is; lines end in a line feed.
        table: number of the table that it stands for.
    """

    value: float
    color: str
    title: str
    table: int | None = None


def bar(
    parts: Iterable[Part], full: float, *, kind: str, start: float = 0.0, track: float = 0.0, limit: float | None = None
) -> Markup:
    """A bar across all the width there is, for the eye: its numbers have to stand beside it.

    Args:
        parts: one after the other.
        full: what all the width stands for.
        kind: classes of the picture.
        start: where the first part begins.
        track: what is drawn as a background, from 0.
        limit: where a line is drawn.
    """
    scale = 100.0 / max(full, 1e-300)
    drawn: list[Markup] = []
    if track:
        drawn.append(el("rect", width=_percent(track * scale), height="100%", class_="tr"))
    at = start
    for part in parts:
        title = el("title", part.title)
        rect = el("rect", x=_percent(at * scale), width=_percent(part.value * scale), height="100%", class_=part.color)
        drawn.append(el("g", rect, title, class_="seg", data_t=part.table))
        at += part.value
    if limit is not None:
        x = _percent(limit * scale)
        drawn.append(el("line", x1=x, x2=x, y1="0", y2="100%", class_="lim"))
    return el("svg", drawn, class_=f"bar {kind}", width="100%", height=16, aria_hidden="true")


def small_bar(share: float, color: str) -> Markup:
    """A bar in a cell of a table, for a share of 1."""
    filled = el("rect", width=_percent(min(share, 1.0) * 100.0), height="100%", class_=color)
    track = el("rect", width="100%", height="100%", class_="tr")
    return el("svg", track, filled, class_="bar", width=56, height=8, aria_hidden="true")


def swatch(color: str) -> Markup:
    """The sign of a colour in a key."""
    return el("svg", el("rect", width=12, height=12, rx=2, class_=color), width=12, height=12, aria_hidden="true")


@dataclass(frozen=True, slots=True)
class Row:
    """A table on the map.

    Attributes:
        number: of the table.
        name: short enough for a label.
        color: class of its colour.
        levels: for each device that holds it how strong it is drawn: 1, 2 or 3.
    """

    number: int
    name: Markup
    color: str
    levels: dict[int, int]


def table_map(rows: Sequence[Row], devices: int, per_host: int, label: str) -> Markup:
    """The map: a row for each table, with its name where there are not too many, and a column for each device.

    Args:
        rows: the tables, from the top.
        devices: number of devices.
        per_host: devices of each host; there is a line between hosts.
        label: what the map says, in words.
    """
    named = len(rows) <= _NAMED_ROWS
    height = len(rows) * (_ROW if named else 6 if len(rows) <= 4 * _NAMED_ROWS else 2)
    width = devices * max(1, min(_CELL, _MOST_WIDTH // devices))
    paths: dict[tuple[str, int], list[str]] = {}
    for y, row in enumerate(rows):
        for first, length, level in _runs(row.levels):
            paths.setdefault((row.color, level), []).append(f"M{first} {y}h{length}v1h-{length}z")
    cells = [el("path", d="".join(runs), class_=f"{color} o{level}") for (color, level), runs in sorted(paths.items())]
    rules = []
    if named:
        rules.append(el("path", d="".join(f"M0 {y}h{devices}" for y in range(1, len(rows))), class_="rule"))
    if devices <= _RULED_DEVICES:
        rules.append(el("path", d="".join(f"M{x} 0v{len(rows)}" for x in range(1, devices)), class_="rule"))
    if per_host < devices and devices // per_host <= _RULED_DEVICES:
        borders = "".join(f"M{x} 0v{len(rows)}" for x in range(per_host, devices, per_host))
        rules.append(el("path", d=borders, class_="rule host-rule"))
    grid = el(
        "svg",
        cells,
        rules,
        **{"class_": "grid", "role": "img", "aria_label": label, "preserveAspectRatio": "none"},
        viewBox=f"0 0 {devices} {len(rows)}",
        width=width,
        height=height,
        data_devices=devices,
        data_tables=len(rows),
        data_order=" ".join(str(row.number) for row in rows),
    )
    names = el("ol", [el("li", row.name) for row in rows], aria_hidden="true") if named else None
    return el("div", _axis(devices, per_host, width), names, grid, class_="map" if named else "map plain")


def _axis(devices: int, per_host: int, width: int) -> Markup:
    """Ranks above the map, as many as there is room for on a narrow screen."""
    step = 1
    while devices / step > _LABELS:
        step = per_host if step < per_host and devices / per_host <= 4 * _LABELS and per_host / step < 4 else step * 2
    labels = [
        el("text", rank, x=_percent((rank + 0.5) / devices * 100.0), y=11, text_anchor="middle")
        for rank in range(0, devices, step)
    ]
    return el("svg", labels, class_="axis", width=width, height=16, aria_hidden="true")


def _runs(levels: dict[int, int]) -> Iterable[tuple[int, int, int]]:
    """First device, number and level of neighbours of one level."""
    runs: list[tuple[int, int, int]] = []
    for device, level in sorted(levels.items()):
        if runs and runs[-1][2] == level and runs[-1][0] + runs[-1][1] == device:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, level)
        else:
            runs.append((device, 1, level))
    return runs


def key(*entries: tuple[str, object]) -> Markup:
    """What colours mean, from their classes."""
    return el("ul", [el("li", swatch(color), el("span", what)) for color, what in entries], class_="key")


def _percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"
