"""The devices of a plan as bars, by table and by phase: their time, and their memory."""

from __future__ import annotations

from collections.abc import Sequence

from shardc.contents import Held
from shardc.render.charts import Part, bar, key
from shardc.render.markup import Markup, el, join
from shardc.render.view import MANY_DEVICES, SHORT, View, compute_ms, counted, heading, shortened
from shardc.units import format_bytes, format_ms

_LEAST_PART = 0.004  # of the longest bar: thinner parts are one
_LISTED, _LISTED_IN_ALL = 12, 4000  # tables that are listed below a device


def devices_section(view: View) -> Markup | None:
    """The compute time of every device, by table and by phase."""
    if not view.timed:
        return None
    devices, timed = view.devices, view.contents.timed
    longest = max(max(map(compute_ms, devices)), 1e-300)
    most = max(devices, key=lambda device: (compute_ms(device), -device.rank))
    least = min(devices, key=lambda device: (compute_ms(device), device.rank))
    talk = "with their" if view.plan.digests.cost == "torchrec" else "without"
    lead = (
        f"Time of the lookups and their backward pass on each device, {talk} communication. Device {most.rank} takes "
        f"longest ({format_ms(compute_ms(most))}), device {least.rank} shortest ({format_ms(compute_ms(least))})."
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
            _device(view, device.rank, held, pictures, format_ms(compute_ms(device)), both, compute_ms(device), "ms")
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
        heading("Devices", "devices", el("div", _order("device-list"), toggle if timed else None, class_="tools")),
        el("p", lead, class_="lead"),
        _over("time", "forward + backward"),
        _device_list(view, "device-list", "Time of devices", rows),
        tables_key,
        phases_key,
    )


def memory_section(view: View) -> Markup:
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
        heading("Memory", "memory", el("div", _order("memory-list"), class_="tools")),
        el("p", lead, class_="lead"),
        el("div", _over("memory", "of the limit"), bars, class_="hosted" if hosted else None),
        _table_key(view, view.bytes, rest=not known),
    )


def _parts(view: View, rank: int, held: Sequence[Held], full: float, of: str = "ms") -> list[Part]:
    """What a device holds as parts of a bar: tables with a colour of their own first, then the others by size."""

    def value(part: Held) -> float:
        return part.ms if of == "ms" else part.bytes

    def title(part: Held) -> str:
        lines = [f"{shortened(part.table, SHORT)}", f"device {rank}: {format_bytes(part.bytes)}"]
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
        parts.append(Part(total, "rr", f"{counted(len(small), 'small table')}\ndevice {rank}: {size} together"))
    return parts


def _device(
    view: View,
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
    caption = f"Device {rank}: {counted(len(held), 'table')}" + (f", the largest {most}" if more > 0 else "")
    listed = el("table", el("caption", f"{caption}. {value}: {beside}"), el("thead", head), el("tbody", rows))
    summary = el(
        "summary",
        el("span", el("span", "device ", class_="unseen"), rank, class_="rank"),
        el("div", *pictures),
        el("span", value, el("small", beside, class_="soft"), class_="value"),
    )
    return el("details", summary, listed, class_="dev", data_v=weight)


def _device_list(view: View, name: str, label: str, rows: Sequence[Markup]) -> Markup:
    """Devices host by host; many of them scroll."""
    local, hosts = view.plan.cluster.devices_per_host, view.plan.cluster.hosts
    kinds = view.plan.cluster.host_devices
    content: list[Markup] = []
    for rank, row in enumerate(rows):
        if hosts > 1 and rank % local == 0:
            host = rank // local
            device = f", {shortened(kinds[host], SHORT)}" if host < len(kinds) else ""
            content.append(el("div", f"Host {host}{device}", class_="host"))
        content.append(row)
    if len(rows) <= MANY_DEVICES:
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


def _table_key(view: View, weight: dict[str, float] | dict[str, int], rest: bool = False) -> Markup:
    """The tables that have a colour of their own, with their share."""
    total = max(sum(weight.values()), 1e-300)
    own = sorted((n for n in view.color if view.color[n].startswith("c")), key=lambda n: (-weight[n], n))
    entries: list[tuple[str, object]] = [
        (view.color[name], (view.name_of(name), f" {weight[name] / total:.1%}")) for name in own
    ]
    if others := len(view.tables) - len(own):
        share = max(0.0, 1.0 - sum(weight[name] for name in own) / total)
        entries.append(("r0", f"{counted(others, 'other table')} {share:.1%}"))
    if rest:
        entries.append(("rr", "optimizer state, inputs and outputs"))
    return key(*entries)
