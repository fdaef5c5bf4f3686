"""What shardc tells its user: one diagnostic type, one table of codes, one renderer for terminals."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

CODES: dict[str, str] = {
    "SH001": "no such file",
    "SH002": "not a readable file",
    "SH003": "not UTF-8 text",
    "SH004": "cannot write the file",
    "SH100": "TOML syntax error",
    "SH101": "unknown key",
    "SH102": "missing key",
    "SH103": "wrong type",
    "SH104": "value out of range or not allowed",
    "SH105": "duplicate name",
    "SH106": "contradictory placement constraints",
    "SH107": "unknown device",
    "SH108": "bad CSV table file",
    "SH109": "spec of a newer or unknown format",
    "SH112": "hosts of different device types in one cluster",
    "SH113": "tables may be in host memory, and cannot",
    "SH114": "optimizer that the devices do not have",
    "SH201": "a table fits on no allowed device",
    "SH202": "the model as a whole exceeds the memory",
    "SH203": "no feasible placement found",
    "SH301": "plan missing",
    "SH302": "plan unreadable or not a plan",
    "SH303": "plan of a newer format",
    "SH304": "tables of plan and spec differ",
    "SH305": "shards leave a gap or overlap",
    "SH306": "plan breaks a TorchRec rule",
    "SH307": "memory limit exceeded",
    "SH308": "pin, group, apart or allowed sharding type violated",
    "SH309": "cluster of plan and spec differ",
    "SH310": "stated figures do not match the plan",
    "SH311": "spec changed since its plan was compiled",
    "SH312": "plan changed after it was compiled",
    "SH313": "plan without its spec",
    "SH320": "revision not read from git",
    "SH321": "nothing found that moves so few bytes",
    "SH322": "base plan of no use, or only in part",
    "SH330": "a setting that cannot be read",
    "SH331": "a setting of what the spec does not have",
    "SH332": "spec of the plan not found",
    "SH333": "no such table to explain",
    "SH334": "plan explained by another spec or other costs than its own",
    "SH335": "configurations that cannot be swept",
    "SH340": "a report lacks what only the spec tells, or tells it as of now",
    "SH401": "step time over budget",
    "SH402": "optimality gap over budget",
    "SH403": "a better plan exists",
    "SH404": "degree of balance below budget",
    "SH405": "memory headroom below budget",
    "SH406": "hardware profile newer than the plan",
    "SH407": "too much would have to move",
    "SH408": "a device's time changes too much",
    "SH409": "a device's memory changes too much",
    "SH410": "nothing to compare with",
    "SH501": "device profile not measured",
    "SH502": "tables, optimizer or dtype outside what the profile measured",
    "SH503": "local device differs from the spec's device",
    "SH504": "shard skipped while measuring",
    "SH505": "costs are TorchRec's estimates",
    "SH506": "ranks could not communicate",
    "SH507": "costs have no quantiles",
    "SH508": "search ended early",
    "SH509": "communication assumed, not measured",
    "SH510": "device profile inexact",
    "SH511": "tables of different widths share a cache that may not fit",
    "SH601": "profile unreadable",
    "SH602": "weights missing or not matching",
    "SH603": "measurements unreadable",
    "SH604": "needs an optional dependency that is not installed",
    "SH605": "process group is not the plan's",
    "SH606": "training diverged",
    "SH610": "plan and PyTorch model differ",
    "SH611": "TorchRec setting that shardc cannot honour",
    "SH701": "the code that builds the model failed",
    "SH702": "the model has no embedding tables, or some that a spec cannot describe",
    "SH703": "the framework cannot run the plan",
    "SH704": "the framework runs the plan otherwise than it was planned",
    "SH705": "planner inputs that a spec cannot express",
    "SH901": "internal error",
    "SH902": "wrong usage",
    "SH903": "cannot write to stdout",
    "SH904": "more findings than are told",
}
"""Every stable code with its meaning; codes are never renumbered or reused."""

Severity = Literal["error", "warning"]

MOST_FINDINGS = 1000
"""Findings of one file that are told; what is wrong with a stranger's may be millions of things."""

_NAMED = 5
"""Tables that a message names."""

_WINDOW = 160
"""Characters of a source line that are shown; a longer line is cut around the carets."""


@dataclass(frozen=True, slots=True)
class Location:
    """A range on one line of a text file; line and column are 1-based and count characters."""

    file: str
    line: int
    column: int
    length: int
    text: str

    def __str__(self) -> str:
        """Return ``file:line:column``."""
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: a stable code, what is wrong, where, and what to do about it."""

    code: str
    message: str
    location: Location | None = None
    help: str | None = None
    severity: Severity = "error"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"no diagnostic code {self.code}")


class DiagnosticError(Exception):
    """Carries diagnostics to whoever shows them.

    Attributes:
        diagnostics: at least one finding, in the order to show.
        exit_code: 1 for findings, 2 when shardc could not run at all.
    """

    def __init__(self, *diagnostics: Diagnostic, exit_code: int = 1) -> None:
        super().__init__(*diagnostics)
        self.diagnostics = diagnostics
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "\n".join(map(concise, self.diagnostics))


def first_of(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Return findings; of very many the first, and that there are more, which are not looked for."""
    told = list(islice(findings, MOST_FINDINGS + 1))
    if len(told) > MOST_FINDINGS:
        fix = "mend these first: the rest is looked for then"
        told[MOST_FINDINGS:] = [Diagnostic("SH904", f"there are more than these {MOST_FINDINGS:,} findings", help=fix)]
    return told


def quoted_tables(names: Sequence[str]) -> str:
    """Return tables in words, the first few by name: table "a", or tables "a", "b" and 7 more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"table{'s' * (len(names) > 1)} " + ", ".join(f'"{name}"' for name in names[:_NAMED]) + more


def concise(diagnostic: Diagnostic) -> str:
    """Return the one-line form ``file:line:col: CODE message``."""
    where = f"{diagnostic.location}: " if diagnostic.location else ""
    return shown(where + _headline(diagnostic))


def render(diagnostics: Iterable[Diagnostic], *, color: bool) -> str:
    """Return the full form: headline, position, source line with carets, help and notes; blank lines between."""
    return "\n\n".join(_full(diagnostic, color) for diagnostic in diagnostics)


def _headline(diagnostic: Diagnostic) -> str:
    mark = "warning: " if diagnostic.severity == "warning" else ""
    return f"{diagnostic.code} {mark}{diagnostic.message}"


def _full(diagnostic: Diagnostic, color: bool) -> str:
    def paint(text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if color else text

    loud = "1;31" if diagnostic.severity == "error" else "1;33"
    code, _, message = _headline(diagnostic).partition(" ")
    lines = [f"{paint(code, loud)} {paint(shown(message), '1')}"]
    if at := diagnostic.location:
        number = str(at.line)
        gutter = paint(" " * len(number) + " |", "1;34")
        source, padding, carets = _underlined(at)
        lines += [
            f"{' ' * len(number)}{paint('-->', '1;34')} {shown(str(at))}",
            gutter,
            f"{paint(f'{number} |', '1;34')} {source}".rstrip(),
            f"{gutter} {padding}{paint(carets, loud)}",
        ]
    if diagnostic.help:
        lines.append(f"{paint('help', '1;36')}: {shown(diagnostic.help)}")
    lines += [f"{paint('note', '1;36')}: {shown(note)}" for note in diagnostic.notes]
    return "\n".join(lines)


def _underlined(at: Location) -> tuple[str, str, str]:
    """Return the source line as shown, the padding below it, and the carets."""
    start = at.column - 1
    end = start + max(at.length, 1)
    first = max(0, start - _WINDOW // 2) if len(at.text) > _WINDOW else 0
    last = first + _WINDOW
    head = "…" if first else ""
    tail = "…" if len(at.text) > last else ""
    before, marked = at.text[first:start], at.text[start : min(end, last)]
    # A tab is as wide below as above only when it is a tab in both lines.
    padding = " " * len(head) + "".join("\t" if c == "\t" else " " * _width(c) for c in before)
    source = head + shown(at.text[first:last], keep="\t") + tail
    return source, padding, "^" * max(1, sum(map(_width, marked)))


def _width(character: str) -> int:
    """Return the terminal cells that a character takes as `shown` writes it."""
    if character == "\t":
        return 1
    escaped = shown(character)
    if escaped != character:
        return len(escaped)
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shown(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey rather than print: control, format and separator characters.

    All that strangers may have written goes through here before people see it: names of files too. Runners of GitHub
    obey "##[", wherever it stands in a line.
    """
    text = text.replace("##[", "##\\[")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _obeyed(c) else c.encode("unicode_escape").decode() for c in text)


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
