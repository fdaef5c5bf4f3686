"""A plan as one HTML page that needs nothing else: no network, no fonts, and no script to be read.

The page's policy permits its own style and script, by their hashes, and nothing else. The script only adds to it:
hints under the pointer, sorting and filtering.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import shardc
from shardc.contents import Contents
from shardc.cost.model import PHASES
from shardc.diagnostics import Diagnostic
from shardc.plan import Plan
from shardc.plan_diff import diff
from shardc.render.charts import Part, bar, key, small_bar
from shardc.render.device_bars import devices_section, memory_section
from shardc.render.difference import difference
from shardc.render.markup import Markup, el, join
from shardc.render.table_list import map_section, tables_section
from shardc.render.view import LONG, SHORT, View, counted, heading, shortened
from shardc.render.words import OUTCOMES, WHY, device_counts, phase_name
from shardc.units import format_bytes, format_ms

MARK = b'<meta name="generator" content="shardc report '
"""What the first kilobyte of every report has: how one is told from another file."""

_HERE = Path(__file__).parent
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
    view = View(plan, contents)
    sections = [
        ("Changes", "changes", difference(diff(base, plan), view.name_of) if base else None),
        ("Step", "step", _step(plan)),
        ("Devices", "devices", devices_section(view)),
        ("Memory", "memory", memory_section(view)),
        ("Map", "map", map_section(view)),
        ("Tables", "tables", tables_section(view)),
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
        el("title", f"{shortened(plan.model.name, LONG)}: sharding plan"),
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
    where = f"{counted(tables, 'table')} on {shortened(device_counts(cluster), SHORT)}{hosts}"
    return join(
        el("h1", el("bdi", shortened(plan.model.name, LONG))),
        el("p", where + ", by TorchRec's estimates" * (plan.digests.cost == "torchrec"), class_="soft"),
    )


def _figures(view: View, base: Plan | None) -> Markup:
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
        ("Devices", f"{plan.cluster.devices:,}", counted(plan.cluster.hosts, "host"), None),
        (
            "Tables",
            f"{len(view.tables):,}",
            f"{counted(shards, 'shard')}, {format_bytes(sum(view.bytes.values()))}",
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
        heading("A step", "step"),
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
                el("th", shortened(candidate.strategy, SHORT), scope="row"),
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
    caption = el("caption", "What was tried", class_="unseen")
    table = el("table", caption, el("thead", head), el("tbody", rows), class_="snug")
    return join(
        heading("Strategies", "strategies"),
        el("p", el("strong", shortened(plan.chosen.strategy, SHORT)), f" was chosen: {reason}.", class_="lead"),
        el("div", table, class_="wide", tabindex=0, role="region", aria_label="What was tried"),
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
        ("Cluster", f"{counted(cluster.hosts, 'host')}, {device_counts(cluster)}"),
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
    return join(heading("Origin", "origin"), el("dl", rows, class_="facts"))
