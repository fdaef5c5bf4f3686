"""What the sections of a report look at: a plan and what its devices hold, with colours, orders and short names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from shardc.contents import Contents
from shardc.moves import tables_of
from shardc.plan import DeviceScore, Plan, TablePlan
from shardc.render.markup import Markup, el

LONG = 80
"""Characters of a name that is shown in full."""

SHORT = 40
"""Characters of a name that is shown where there is little room."""

MOST_TABLES = 10_000
"""Tables that a page lists."""

MANY_DEVICES = 24
"""Rows beyond which a list scrolls."""

_COLORS = 8  # of tables that are told apart; the others are grey


@dataclass(frozen=True)
class View:
    """A plan and what its devices hold, with what several sections need of them."""

    plan: Plan
    contents: Contents

    @cached_property
    def tables(self) -> dict[str, TablePlan]:
        """The tables by name."""
        return tables_of(self.plan)

    @cached_property
    def number(self) -> dict[str, int]:
        """The number by which the script knows each table."""
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

    @property
    def listed(self) -> list[str]:
        """The first of these: what a browser can still show."""
        return self.ordered[:MOST_TABLES]

    @property
    def unlisted(self) -> str:
        """That there are more tables than are listed, as a sentence; nothing if there are not."""
        if len(self.tables) <= MOST_TABLES:
            return ""
        what = "time" if self.contents.timed else "bytes"
        return f" Of {len(self.tables):,} tables only the {MOST_TABLES:,} with most {what} are listed."

    @cached_property
    def color(self) -> dict[str, str]:
        """Class of the colour of each table: one of its own for those that take most of a device."""
        longest = max(max(map(compute_ms, self.devices)), 1e-300)
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
        return el("bdi", shortened(name, SHORT))


def shortened(name: str, length: int) -> str:
    """A name on one line, without its middle where it is long."""
    name = name.replace("\n", "\\n")
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def heading(title: str, name: str, *tools: object) -> Markup:
    """The title of a section, and what stands beside it."""
    return el("div", el("h2", title, id=f"{name}-title"), *tools, class_="head")


def compute_ms(device: DeviceScore) -> float:
    """Forward and backward time of a device, ms; 0 where they are unknown."""
    return (device.forward_ms or 0.0) + (device.backward_ms or 0.0)


def counted(number: int, what: str) -> str:
    """A number of things in words, such as "1 table" or "2 tables"."""
    return f"{number:,} {what}{'s' * (number != 1)}"
