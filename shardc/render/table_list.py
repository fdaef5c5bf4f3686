"""The tables of a plan: a map of which device holds which, and a list to sort and to filter."""

from __future__ import annotations

from collections import Counter

from shardc.passes.verify import extent
from shardc.problem import ShardingType
from shardc.render.charts import Row, key, small_bar, table_map
from shardc.render.markup import Markup, el, join
from shardc.render.view import LONG, MANY_DEVICES, SHORT, View, counted, heading, shortened
from shardc.render.words import rank_ranges
from shardc.units import compact, format_bytes

_STRONG, _CLEAR = 0.10, 0.02  # shares of a device, on the map
_TYPE_COLORS = dict(zip(map(str, ShardingType), ("c0", "c2", "c6", "c1", "c3", "c4", "r0"), strict=True))


def map_section(view: View) -> Markup:
    """Which device holds which table."""
    timed, cluster = view.contents.timed, view.plan.cluster
    levels: dict[str, dict[int, int]] = {name: {} for name in view.tables}
    for rank, held in enumerate(view.contents.devices):
        total = max(sum((part.ms if timed else part.bytes) for part in held), 1e-300)
        for part in held:
            share = (part.ms if timed else part.bytes) / total
            levels[part.table][rank] = 3 if share > _STRONG else 2 if share > _CLEAR else 1
    rows = [
        Row(view.number[name], view.name_of(name), _TYPE_COLORS[view.tables[name].sharding_type], levels[name])
        for name in view.listed
    ]
    types = _types(view)
    what = "compute time" if timed else "weights"
    label = (
        f"Map of {counted(len(rows), 'table')} and {counted(cluster.devices, 'device')}; "
        "the list of tables below names the devices of each"
    )
    picture = table_map(rows, cluster.devices, cluster.devices_per_host, label)
    lead = (
        f"A row for each table, those with most {'time' if timed else 'bytes'} first; a column for each device. Full "
        f"colour: more than {_STRONG:.0%} of the device's {what}; lighter: more than {_CLEAR:.0%}; pale: less."
        f"{view.unlisted}"
    )
    many = len(rows) > MANY_DEVICES * 2
    framed = el("div", picture, class_="scroll", tabindex=0, role="region", aria_label="Table map") if many else picture
    return join(
        heading("Table map", "map"),
        el("p", lead, class_="lead"),
        framed,
        key(*((_TYPE_COLORS[type], f"{type} ({count:,})") for type, count in types.items())),
    )


def _types(view: View) -> dict[str, int]:
    """How many tables there are of each sharding type, in TorchRec's order."""
    counts = Counter(str(table.sharding_type) for table in view.tables.values())
    return {str(type): counts[str(type)] for type in ShardingType if counts[str(type)]}


def tables_section(view: View) -> Markup:
    """The tables, to sort and to filter."""
    timed, pooling = view.contents.timed, view.contents.pooling
    columns = [
        ("Table", None),
        *([("Time", "n"), ("Critical time", "n")] if timed else []),
        ("Sharding", None),
        ("Devices", None),
        ("Memory", "n"),
        ("Rows", "n"),
        ("Dim", "n"),
        *([("Pooling", "n")] if pooling else []),
    ]
    sorted_by = "Time" if timed else "Memory"
    head = [
        el("th", name, scope="col", class_=kind, aria_sort="descending" if name == sorted_by else None)
        for name, kind in columns
    ]
    total, heaviest = max(sum(view.ms.values()), 1e-300), max(max(view.ms.values(), default=0.0), 1e-300)
    rows = []
    for name in view.listed:
        table = view.tables[name]
        height, width = extent(table) or (0, 0)
        cached = f", {table.cached:.0%} cached" if table.cached < 1.0 else ""
        cells = [el("th", _full_name(name), scope="row")]
        if timed:
            ms, critical = view.ms[name], view.critical[name]
            shown = (small_bar(ms / heaviest, "c0"), el("span", f"{ms / total:.1%}"))
            cells += [el("td", shown, class_="n", data_v=f"{ms:.6g}"), _number(critical, f"{critical:.1%}")]
        cells += [
            el("td", f"{table.sharding_type}{cached}", class_="type"),
            el("td", rank_ranges(table.ranks), class_="ranks"),
            _number(view.bytes[name], format_bytes(view.bytes[name])),
            _number(height, compact(height) if height else "unknown"),
            _number(width, str(width) if width else "unknown"),
        ]
        if pooling:
            cells.append(_number(pooling[name], f"{pooling[name]:.4g}"))
        rows.append(el("tr", cells, data_t=view.number[name], data_type=table.sharding_type))
    words = (
        "Time is a table's share of the compute time of all devices; critical time, of the costliest ones of the "
        "forward and the backward pass."
        if timed
        else "Memory is that of the weights, on all devices."
    )
    options = [el("option", "all sharding types", value="")]
    options += [el("option", f"{type} ({count:,})", value=type) for type, count in _types(view).items()]
    tools = el(
        "div",
        el(
            "input",
            type="search",
            id="search",
            placeholder="Find a table",
            aria_label="Find a table",
            autocomplete="off",
        ),
        el("select", options, id="type", aria_label="Sharding type"),
        el("span", id="shown", class_="soft", role="status"),
        class_="tools needs-script",
        hidden=True,
    )
    return join(
        heading("Tables", "tables", tools),
        el("p", words + view.unlisted, class_="lead"),
        el(
            "div",
            el(
                "table",
                el("caption", "Tables of the plan", class_="unseen"),
                el("thead", el("tr", head)),
                el("tbody", rows),
                id="table-list",
            ),
            class_="scroll list",
            tabindex=0,
            role="region",
            aria_label="List of tables",
        ),
    )


def _number(value: float, shown: str) -> Markup:
    return el("td", shown, class_="n", data_v=f"{value:.6g}" if isinstance(value, float) else value)


def _full_name(name: str) -> Markup:
    """A name, or what opens to it where it is very long."""
    if len(name) <= LONG:
        return el("bdi", shortened(name, 2 * LONG))
    whole = el("bdi", shortened(name, 2 * len(name)))
    return el("details", el("summary", el("bdi", shortened(name, SHORT))), whole, class_="long")
