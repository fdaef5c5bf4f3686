"""A plan as one HTML page that needs nothing else: no network, no fonts, and no script to be read.

The page's policy permits its own style and script, by their hashes, and nothing else. The script only adds to it:
hints under the pointer, sorting and filtering.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import shardc
from shardc.contents import Contents, Held
from shardc.cost.model import PHASES
from shardc.diagnostics import Diagnostic
from shardc.moves import tables_of
from shardc.passes.verify import extent
from shardc.plan import DeviceScore, Plan, TablePlan
from shardc.plan_diff import diff
from shardc.problem import ShardingType
from shardc.render.charts import Part, Row, bar, key, small_bar, table_map
from shardc.render.difference import difference
from shardc.render.markup import Markup, el, join
from shardc.render.words import OUTCOMES, WHY, device_counts, phase_name, rank_ranges
from shardc.units import compact, format_bytes, format_ms

MARK = b'<meta name="generator" content="shardc report '
"""What the first kilobyte of every report has: how one is told from another file."""

_HERE = Path(__file__).parent
_COLORS = 8  # of tables that are told apart; the others are grey
_LONG = 80  # characters of a name that is shown in full
_SHORT = 40  # of one that is shown where there is little room
_MANY_DEVICES = 24  # beyond, they scroll
_LEAST_PART = 0.004  # of the longest bar: thinner parts are one
_LISTED, _LISTED_IN_ALL = 12, 4000  # tables that are listed below a device
_STRONG, _CLEAR = 0.10, 0.02  # shares of a device, on the map
_TYPE_COLORS = dict(zip(map(str, ShardingType), ("c0", "c2", "c6", "c1", "c3", "c4", "r0"), strict=True))
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path fill="#2f6fde" d="M1 2h9v3H1z"/>'
    '<path fill="#0d8069" d="M1 7h14v3H1z"/><path fill="#c2570c" d="M1 12h6v3H1z"/></svg>'
)


def report_html(plan: Plan, contents: Contents, base: Plan | None = None) -> str:
    """Return the page, the same for the same arguments.

    Args:
        plan: the plan.
        contents: what its devices hold.
        base: a plan to tell the difference to.
    """
    view = _View(plan, contents)
    sections = [
        ("Changes", "changes", difference(diff(base, plan), view.name_of) if base else None),
        ("Step", "step", _step(plan)),
        ("Devices", "devices", _devices(view)),
        ("Memory", "memory", _memory(view)),
        ("Map", "map", _map(view)),
        ("Tables", "tables", _tables(view)),
        ("Strategies", "strategies", _strategies(plan)),
        ("Origin", "origin", _origin(plan)),
    ]
    shown = [(title, name, content) for title, name, content in sections if content]
    links = el("ul", [el("li", el("a", title, href=f"#{name}")) for title, name, _ in shown])
    blocks = [el("section", content, id=name, aria_labelledby=f"{name}-title") for _, name, content in shown]
    body = el(
        "body",
        el("a", "Skip to the report", class_="skip", href="#main"),
        el("header", _title(plan), _figures(view, base)),
        el("nav", links, aria_label="Sections"),
        el("main", _notices(contents.warnings), blocks, id="main"),
        el("footer", el("p", f"Made by shardc {shardc.__version__} from the plan alone and what lies beside it.")),
        el("script", Markup(_piece("report.js"))),
    )
    html = el("html", _head(plan), body, lang="en")
    return f"<!doctype html>\n{html}\n"


# --- What all sections look at ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A plan and what its devices hold, with what several sections need of them."""

    plan: Plan
    contents: Contents

    @cached_property
    def tables(self) -> dict[str, TablePlan]:
        return tables_of(self.plan)

    @cached_property
    def number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.tables)}

    @cached_property
    def devices(self) -> list[DeviceScore]:
        """The devices by rank; one that the plan says nothing of takes no time."""
        stated = {device.rank: device for device in self.plan.score.devices}
        none = {"forward_ms": None, "backward_ms": None, "memory_bytes": 0, "memory_limit_bytes": 0}
        return [
            stated.get(rank) or DeviceScore.model_validate({"rank": rank, **none})
            for rank in range(self.plan.cluster.devices)
        ]

    @cached_property
    def ms(self) -> dict[str, float]:
        """Time of each table over all devices."""
        sums = dict.fromkeys(self.tables, 0.0)
        for part in chain.from_iterable(self.contents.devices):
            sums[part.table] += part.ms
        return sums

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Device memory of each table over all devices."""
        sums = dict.fromkeys(self.tables, 0)
        for part in chain.from_iterable(self.contents.devices):
            sums[part.table] += part.bytes
        return sums

    @cached_property
    def ordered(self) -> list[str]:
        """Names, the table first that takes most of the time, or of the memory where that is not known."""
        weight = self.ms if self.contents.timed else self.bytes
        return sorted(self.tables, key=lambda name: (-weight[name], -self.bytes[name], name))

    @cached_property
    def color(self) -> dict[str, str]:
        """Class of the colour of each table: one of its own for those that take most of a device."""
        longest = max(max(map(_compute_ms, self.devices)), 1e-300)
        largest = max(max(device.memory_bytes for device in self.devices), 1)
        weight = dict.fromkeys(self.tables, 0.0)
        for part in chain.from_iterable(self.contents.devices):
            weight[part.table] = max(weight[part.table], part.ms / longest, part.bytes / largest)
        ranked = sorted(self.tables, key=lambda name: (-weight[name], name))
        apart = set(ranked[:_COLORS])
        own = {name: f"c{number}" for number, name in enumerate(name for name in self.ordered if name in apart)}
        return own | {name: f"r{number % 2}" for number, name in enumerate(ranked[_COLORS:])}

    @cached_property
    def critical(self) -> dict[str, float]:
        """Share of each table in the time of the costliest device of the forward and of the backward pass."""
        shares = dict.fromkeys(self.tables, 0.0)
        most = 0.0
        for phase in range(2):
            total = [sum(part.passes[phase] for part in held) for held in self.contents.devices]
            rank = max(range(len(total)), key=total.__getitem__)
            most += total[rank]
            for part in self.contents.devices[rank]:
                shares[part.table] += part.passes[phase]
        return {name: share / max(most, 1e-300) for name, share in shares.items()}

    @property
    def timed(self) -> bool:
        """Whether the plan says what a device's time is."""
        return any(device.forward_ms is not None for device in self.devices)

    def name_of(self, name: str) -> Markup:
        """A name where there is little room."""
        return el("bdi", _shortened(name, _SHORT))


def _shortened(name: str, length: int) -> str:
    """A name on one line, without its middle where it is long."""
    name = name.replace("\n", "\\n")
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _heading(title: str, name: str, *tools: object) -> Markup:
    return el("div", el("h2", title, id=f"{name}-title"), *tools, class_="head")


def _compute_ms(device: DeviceScore) -> float:
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# --- Head and headline ------------------------------------------------------------------------------------------------


def _head(plan: Plan) -> Markup:
    style, script = _piece("report.css"), _piece("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="generator", content=f"shardc report {shardc.__version__}"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{_shortened(plan.model.name, _LONG)}: sharding plan"),
        el("link", rel="icon", href=f"data:image/svg+xml,{quote(_ICON)}"),
        el("style", Markup(style)),
    )


def _piece(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _title(plan: Plan) -> Markup:
    cluster = plan.cluster
    hosts = f" on {cluster.hosts} hosts" if cluster.hosts > 1 else ""
    tables = sum(map(len, plan.plan.values()))
    where = f"{_counted(tables, 'table')} on {_shortened(device_counts(cluster), _SHORT)}{hosts}"
    return join(
        el("h1", el("bdi", _shortened(plan.model.name, _LONG))),
        el("p", where + ", by TorchRec's estimates" * (plan.digests.cost == "torchrec"), class_="soft"),
    )


def _figures(view: _View, base: Plan | None) -> Markup:
    plan, score = view.plan, view.plan.score
    fullest = max(
        view.devices, key=lambda device: (device.memory_bytes / max(device.memory_limit_bytes, 1), -device.rank)
    )
    shards = sum(len(table.shards) or len(table.ranks) for table in view.tables.values())
    old = base.score if base else None
    p90 = None if score.step_time_p90_ms is None else f"p90 {format_ms(score.step_time_p90_ms)}"
    figures: list[tuple[str, str, object, object]] = [
        (
            "Step time",
            format_ms(score.step_time_ms),
            p90,
            _was(old.step_time_ms, score.step_time_ms) if old else None,
        ),
        (
            "Above the lower bound",
            f"{plan.bound.gap:.1%}" if plan.bound else "unknown",
            f"bound {format_ms(plan.bound.step_time_ms)}" if plan.bound else "no certificate",
            None,
        ),
        (
            "Balance",
            f"{score.balance:.2f}",
            "least over most busy device",
            el("dd", f"was {old.balance:.2f}") if old else None,
        ),
        ("Devices", f"{plan.cluster.devices:,}", _counted(plan.cluster.hosts, "host"), None),
        (
            "Tables",
            f"{len(view.tables):,}",
            f"{_counted(shards, 'shard')}, {format_bytes(sum(view.bytes.values()))}",
            None,
        ),
        (
            f"Fullest device ({fullest.rank})",
            f"{fullest.memory_bytes / max(fullest.memory_limit_bytes, 1):.0%}",
            f"{format_bytes(fullest.memory_bytes)} of {format_bytes(fullest.memory_limit_bytes)}",
            None,
        ),
    ]
    cards = (
        el("div", el("dt", name), el("dd", value), el("dd", beside) if beside else None, was)
        for name, value, beside, was in figures
    )
    return el("dl", cards, class_="figures")


def _was(old: float, new: float) -> Markup:
    """What a time was before, and how much it has changed."""
    change = new / old - 1.0 if old else 0.0
    direction = "good" if change < -5e-4 else "bad" if change > 5e-4 else None
    return el("dd", f"was {format_ms(old)} ({change:+.1%})", class_=direction)


def _notices(warnings: Sequence[Diagnostic]) -> Iterator[Markup]:
    """What to know before trusting the figures."""
    for warning in warnings:
        at = f" ({warning.location})" if warning.location else ""
        yield el(
            "div",
            el("p", el("strong", f"{warning.code} "), f"{warning.message}{at}"),
            el("p", f"Help: {warning.help}") if warning.help else None,
            class_="notice",
            role="note",
        )


# --- A step -----------------------------------------------------------------------------------------------------------


def _step(plan: Plan) -> Markup | None:
    """The phases of a step, one after the other."""
    score = plan.score
    order = {name: place for place, name in enumerate(PHASES)}
    in_order = sorted(score.phases.items(), key=lambda phase: order.get(phase[0], len(order)))
    phases = [(phase_name(name), ms) for name, ms in in_order if ms > 0]
    if len(phases) < 2:
        return None
    step = max(score.step_time_ms, 1e-300)
    parts = [Part(ms, _phase_color(name), f"{name}\n{format_ms(ms)}, {ms / step:.0%} of a step") for name, ms in phases]
    rows, start = [], 0.0
    for (name, ms), part in zip(phases, parts, strict=True):
        drawn = bar([part], step, kind="phase", start=start)
        rows.append(
            el(
                "tr",
                el("th", name, scope="row"),
                el("td", drawn),
                el("td", format_ms(ms), class_="n"),
                el("td", f"{ms / step:.0%}", class_="n"),
            )
        )
        start += ms
    head = el("tr", *(el("th", name, scope="col", class_=kind) for name, kind in _PHASE_HEAD))
    talk = sum(ms for name, ms in phases if _phase_color(name) == "co")
    longest, most = max(phases, key=lambda phase: phase[1])
    lead = f"The longest phase is {longest} ({most / step:.0%}); communication takes {talk / step:.0%} of a step. "
    return join(
        _heading("A step", "step"),
        el("p", lead, "Each phase ends when the last device is done.", class_="lead"),
        el("div", bar(parts, step, kind="phase"), class_="steps"),
        el(
            "table",
            el("caption", "Phases of a step, one after the other", class_="unseen"),
            el("thead", head),
            el("tbody", rows),
            class_="phases",
        ),
        key(("fw", "forward"), ("bw", "backward"), ("co", "communication")),
    )


_PHASE_HEAD = (("Phase", None), ("In a step", None), ("Time", "n"), ("Share", "n"))


def _phase_color(name: str) -> str:
    return {"forward": "fw", "backward": "bw"}.get(name, "co")


# --- Devices ----------------------------------------------------------------------------------------------------------


def _devices(view: _View) -> Markup | None:
    """The compute time of every device, by table and by phase."""
    if not view.timed:
        return None
    devices, timed = view.devices, view.contents.timed
    longest = max(max(map(_compute_ms, devices)), 1e-300)
    most = max(devices, key=lambda device: (_compute_ms(device), -device.rank))
    least = min(devices, key=lambda device: (_compute_ms(device), device.rank))
    talk = "with their" if view.plan.digests.cost == "torchrec" else "without"
    lead = (
        f"Time of the lookups and their backward pass on each device, {talk} communication. Device {most.rank} takes "
        f"longest ({format_ms(_compute_ms(most))}), device {least.rank} shortest ({format_ms(_compute_ms(least))})."
    )
    if not timed:
        lead += " Which tables it goes to is known only with the spec beside the plan."
    rows = []
    for device, held in zip(devices, view.contents.devices, strict=True):
        phases = [
            Part(ms or 0.0, color, f"device {device.rank}: {name}\n{format_ms(ms or 0.0)}")
            for name, color, ms in (("forward", "fw", device.forward_ms), ("backward", "bw", device.backward_ms))
        ]
        both = f"{format_ms(device.forward_ms or 0.0).removesuffix(' ms')} + {format_ms(device.backward_ms or 0.0)}"
        pictures = [bar(phases, longest, kind="by-phase")]
        if timed:
            parts = _parts(view, device.rank, held, longest)
            pictures.insert(0, bar(parts, longest, kind="by-table"))
        rows.append(
            _device(view, device.rank, held, pictures, format_ms(_compute_ms(device)), both, _compute_ms(device), "ms")
        )
    toggle = el(
        "fieldset",
        el("legend", "Divide bars", class_="unseen"),
        el("input", type="radio", name="view", id="view-table", checked=True),
        el("label", "by table", for_="view-table"),
        el("input", type="radio", name="view", id="view-phase"),
        el("label", "by phase", for_="view-phase"),
    )
    phases_key = el("div", key(("fw", "forward"), ("bw", "backward")), class_="by-phase")
    tables_key = el("div", _table_key(view, view.ms), class_="by-table") if timed else None
    return join(
        _heading("Devices", "devices", el("div", _order("device-list"), toggle if timed else None, class_="tools")),
        el("p", lead, class_="lead"),
        _over("time", "forward + backward"),
        _device_list(view, "device-list", "Time of devices", rows),
        tables_key,
        phases_key,
    )


def _memory(view: _View) -> Markup:
    """The memory of every device, by table, and its limit."""
    devices = view.devices
    full = 1.01 * max(max(device.memory_bytes, device.memory_limit_bytes) for device in devices)
    known = view.contents.timed or bool(view.contents.pooling)
    rows = []
    for device, held in zip(devices, view.contents.devices, strict=True):
        parts = _parts(view, device.rank, held, full, of="bytes")
        if (rest := device.memory_bytes - sum(part.bytes for part in held)) > 0:
            what = f"device {device.rank}: optimizer state, inputs and outputs\n{format_bytes(rest)}"
            parts.append(Part(rest, "rr", what))
        limit = device.memory_limit_bytes
        picture = bar(parts, full, kind="bytes", track=limit, limit=limit)
        beside = f"{device.memory_bytes / max(limit, 1):.0%} of {format_bytes(limit)}"
        if device.host_memory_limit_bytes is not None:
            in_host = format_bytes(device.host_memory_bytes or 0)
            beside += f", host {in_host} of {format_bytes(device.host_memory_limit_bytes)}"
        value = format_bytes(device.memory_bytes)
        rows.append(_device(view, device.rank, held, [picture], value, beside, device.memory_bytes, "bytes"))
    limits = {device.memory_limit_bytes for device in devices}
    span = " to ".join(format_bytes(limit) for limit in sorted({min(limits), max(limits)}))
    lead = f"Tables may take {span} of a device: the line at the end of a bar."
    if hosted := any(device.host_memory_limit_bytes is not None for device in devices):
        hosts = [device.host_memory_limit_bytes or 0 for device in devices]
        lead += f" Cached tables may also take {format_bytes(max(hosts))} of its host for each device."
    bars = _device_list(view, "memory-list", "Memory of devices", rows)
    lead += "" if known else " Bytes of tables are those of their weights."
    return join(
        _heading("Memory", "memory", el("div", _order("memory-list"), class_="tools")),
        el("p", lead, class_="lead"),
        el("div", _over("memory", "of the limit"), bars, class_="hosted" if hosted else None),
        _table_key(view, view.bytes, rest=not known),
    )


def _parts(view: _View, rank: int, held: Sequence[Held], full: float, of: str = "ms") -> list[Part]:
    """What a device holds as parts of a bar: tables with a colour of their own first, then the others by size."""

    def value(part: Held) -> float:
        return part.ms if of == "ms" else part.bytes

    def title(part: Held) -> str:
        lines = [f"{_shortened(part.table, _SHORT)}", f"device {rank}: {format_bytes(part.bytes)}"]
        if view.contents.timed:
            lines[1] += f", {format_ms(part.ms)}"
        if view.contents.split:
            lines.append(f"forward {format_ms(part.forward_ms)}, backward {format_ms(part.backward_ms)}")
        return "\n".join(lines)

    colored = {name: color for name, color in view.color.items() if color.startswith("c")}
    least = _LEAST_PART * full
    first = [part for name in colored for part in held if part.table == name and value(part) > 0]
    others = sorted((part for part in held if part.table not in colored), key=lambda part: (-value(part), part.table))
    shown = [part for part in others if value(part) >= least]
    parts = [
        Part(value(part), colored.get(part.table) or f"r{place % 2}", title(part), view.number[part.table])
        for place, part in enumerate([*first, *shown])
    ]
    small = [part for part in others if 0 < value(part) < least]
    if small:
        total = sum(map(value, small))
        size = format_ms(total) if of == "ms" else format_bytes(total)
        parts.append(Part(total, "rr", f"{_counted(len(small), 'small table')}\ndevice {rank}: {size} together"))
    return parts


def _device(
    view: _View,
    rank: int,
    held: Sequence[Held],
    pictures: Sequence[Markup],
    value: str,
    beside: str,
    weight: float,
    of: str,
) -> Markup:
    """A device's bar, which opens to a list of its largest tables."""
    timed = of == "ms" and view.contents.timed
    most = max(3, min(_LISTED, _LISTED_IN_ALL // len(view.devices)))
    ranked = sorted(held, key=lambda part: (-(part.ms if timed else part.bytes), part.table))
    total = max(sum((part.ms if timed else part.bytes) for part in held), 1e-300)
    names = ("Table", *(("Time", "Share") if timed else ("Share",)), "Memory")
    head = el("tr", [el("th", name, scope="col", class_="n" if number else None) for number, name in enumerate(names)])
    rows = []
    for part in ranked[:most]:
        share = f"{(part.ms if timed else part.bytes) / total:.1%}"
        cells = [*([format_ms(part.ms)] if timed else []), share, format_bytes(part.bytes)]
        name = el("th", view.name_of(part.table), scope="row")
        rows.append(el("tr", name, [el("td", cell, class_="n") for cell in cells]))
    more = len(held) - most
    caption = f"Device {rank}: {_counted(len(held), 'table')}" + (f", the largest {most}" if more > 0 else "")
    listed = el("table", el("caption", f"{caption}. {value}: {beside}"), el("thead", head), el("tbody", rows))
    summary = el(
        "summary",
        el("span", el("span", "device ", class_="unseen"), rank, class_="rank"),
        el("div", *pictures),
        el("span", value, el("small", beside, class_="soft"), class_="value"),
    )
    return el("details", summary, listed, class_="dev", data_v=weight)


def _device_list(view: _View, name: str, label: str, rows: Sequence[Markup]) -> Markup:
    """Devices host by host; many of them scroll."""
    local, hosts = view.plan.cluster.devices_per_host, view.plan.cluster.hosts
    kinds = view.plan.cluster.host_devices
    content: list[Markup] = []
    for rank, row in enumerate(rows):
        if hosts > 1 and rank % local == 0:
            host = rank // local
            device = f", {_shortened(kinds[host], _SHORT)}" if host < len(kinds) else ""
            content.append(el("div", f"Host {host}{device}", class_="host"))
        content.append(row)
    if len(rows) <= _MANY_DEVICES:
        return el("div", content, id=name, class_="devices")
    return el("div", content, id=name, class_="devices scroll", tabindex=0, role="region", aria_label=label)


def _over(value: str, beside: str) -> Markup:
    """What stands beside the bars of devices."""
    figures = el("span", value, el("small", beside), class_="value")
    return el("div", el("span", "rank"), el("span"), figures, class_="over", aria_hidden="true")


def _order(name: str) -> Markup:
    """How devices are sorted; only with a script."""
    options = (el("option", "by rank", value="rank"), el("option", "largest first", value="largest"))
    select = el("select", options, class_="order", data_list=name)
    return el("label", el("span", "Devices ", class_="unseen"), select, class_="bare needs-script", hidden=True)


def _table_key(view: _View, weight: dict[str, float] | dict[str, int], rest: bool = False) -> Markup:
    """The tables that have a colour of their own, with their share."""
    total = max(sum(weight.values()), 1e-300)
    own = sorted((n for n in view.color if view.color[n].startswith("c")), key=lambda n: (-weight[n], n))
    entries: list[tuple[str, object]] = [
        (view.color[name], (view.name_of(name), f" {weight[name] / total:.1%}")) for name in own
    ]
    if others := len(view.tables) - len(own):
        share = max(0.0, 1.0 - sum(weight[name] for name in own) / total)
        entries.append(("r0", f"{_counted(others, 'other table')} {share:.1%}"))
    if rest:
        entries.append(("rr", "optimizer state, inputs and outputs"))
    return key(*entries)


# --- Tables -----------------------------------------------------------------------------------------------------------


def _map(view: _View) -> Markup:
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
        for name in view.ordered
    ]
    types = _types(view)
    what = "compute time" if timed else "weights"
    label = (
        f"Map of {_counted(len(rows), 'table')} and {_counted(cluster.devices, 'device')}; "
        "the list of tables below names the devices of each"
    )
    picture = table_map(rows, cluster.devices, cluster.devices_per_host, label)
    lead = (
        f"A row for each table, those with most {'time' if timed else 'bytes'} first; a column for each device. Full "
        f"colour: more than {_STRONG:.0%} of the device's {what}; lighter: more than {_CLEAR:.0%}; pale: less."
    )
    many = len(rows) > _MANY_DEVICES * 2
    framed = el("div", picture, class_="scroll", tabindex=0, role="region", aria_label="Table map") if many else picture
    return join(
        _heading("Table map", "map"),
        el("p", lead, class_="lead"),
        framed,
        key(*((_TYPE_COLORS[type], f"{type} ({count:,})") for type, count in types.items())),
    )


def _types(view: _View) -> dict[str, int]:
    """How many tables there are of each sharding type, in TorchRec's order."""
    counts = Counter(str(table.sharding_type) for table in view.tables.values())
    return {str(type): counts[str(type)] for type in ShardingType if counts[str(type)]}


def _tables(view: _View) -> Markup:
    """All tables, to sort and to filter."""
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
    for name in view.ordered:
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
        _heading("Tables", "tables", tools),
        el("p", words, class_="lead"),
        el(
            "div",
            el(
                "table",
                el("caption", "All tables of the plan", class_="unseen"),
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
    if len(name) <= _LONG:
        return el("bdi", _shortened(name, 2 * _LONG))
    whole = el("bdi", _shortened(name, 2 * len(name)))
    return el("details", el("summary", el("bdi", _shortened(name, _SHORT))), whole, class_="long")


# --- Where it comes from ----------------------------------------------------------------------------------------------


def _strategies(plan: Plan) -> Markup | None:
    """Every strategy that was tried, the best first, and why one was chosen."""
    if not plan.candidates:
        return None
    best = max(plan.score.step_time_ms, 1e-300)
    slowest = max([best, *(candidate.step_time_ms or 0.0 for candidate in plan.candidates)])
    tried = sorted(plan.candidates, key=lambda c: float("inf") if c.step_time_ms is None else c.step_time_ms)
    outcomes = {str(outcome): words for outcome, words in OUTCOMES.items()}
    rows = []
    for candidate in tried:
        ms = candidate.step_time_ms
        chosen = candidate.strategy == plan.chosen.strategy
        words = outcomes.get(candidate.reason, candidate.reason.replace("_", " "))
        words = words.replace("{over:.1%}", f"{(ms or 0.0) / best - 1.0:.1%}")
        drawn = None if ms is None else small_bar(ms / slowest, "c2" if chosen else "r0")
        rows.append(
            el(
                "tr",
                el("th", _shortened(candidate.strategy, _SHORT), scope="row"),
                el("td", "" if ms is None else format_ms(ms), class_="n"),
                el("td", drawn, class_="wide-only"),
                el("td", words, class_="chosen" if chosen else None),
            )
        )
    reason = next(
        (words for why, words in WHY.items() if why == plan.chosen.reason), plan.chosen.reason.replace("_", " ")
    )
    head = el(
        "tr",
        el("th", "Strategy", scope="col"),
        el("th", "Step time", scope="col", class_="n"),
        el("td", class_="wide-only"),
        el("th", "Outcome", scope="col"),
    )
    return join(
        _heading("Strategies", "strategies"),
        el("p", el("strong", _shortened(plan.chosen.strategy, _SHORT)), f" was chosen: {reason}.", class_="lead"),
        el(
            "table",
            el("caption", "What was tried", class_="unseen"),
            el("thead", head),
            el("tbody", rows),
            class_="snug",
        ),
    )


def _origin(plan: Plan) -> Markup:
    """What the plan was compiled from and by."""
    model, cluster, digests, tool = plan.model, plan.cluster, plan.digests, plan.tool
    costs = {"profile": "of the hardware profile", "torchrec": "TorchRec's estimates", "own": "of an own cost model"}
    facts: list[tuple[str, object]] = [
        ("Model", el("bdi", model.name)),
        ("Module", el("bdi", model.module)),
        ("Global batch", f"{model.global_batch:,} samples"),
        ("Optimizer", model.optimizer),
        ("Weights, outputs", f"{model.weights}, {model.outputs}"),
        ("Cluster", f"{_counted(cluster.hosts, 'host')}, {device_counts(cluster)}"),
        ("Costs", costs[digests.cost]),
        ("Spec", el("code", digests.spec)),
        ("Hardware profile", el("code", digests.profile) if digests.profile else "none"),
        ("Measurements", el("code", digests.measurements) if digests.measurements else "none"),
        ("RL policy", el("code", digests.policy) if digests.policy else "none"),
        ("Compiled by", f"{tool.name} {tool.version}, seed {tool.seed}, plan format {plan.format}"),
    ]
    if cluster.host_devices:
        facts.insert(6, ("Devices by host", ", ".join(cluster.host_devices)))
    rows = [(el("dt", name), el("dd", value)) for name, value in facts]
    return join(_heading("Origin", "origin"), el("dl", rows, class_="facts"))
