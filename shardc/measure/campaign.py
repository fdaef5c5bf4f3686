"""The measuring campaign: the sets of a design (`shardc.measure.design`), written down as they are finished.

Each finished measurement is one line of a journal, flushed at once; a line torn by a crash is dropped, and a campaign
that was interrupted goes on with the sets that no journal has. Several processes, each with a device of its own, share
a campaign: each measures every n-th of the missing sets and writes a journal of its own.

Ratios to the reference set divide the drift of a shared machine out, but only in part: what else runs there slows
large sets more than small ones. So sets during which the reference itself was slower than usual are measured again,
after all others, and the measurement that was disturbed least counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import write_atomic
from shardc.measure.design import FIRST_OWN, Range, draw_workload
from shardc.measure.parquet import read_parquet
from shardc.measure.workload import Load, Timing, Workload
from shardc.problem import ACCESS_BINS
from shardc.spec import Bins, Zipf

if TYPE_CHECKING:
    from shardc.measure.benchmark import Bench

JOURNALS, PARQUET = "measurements*.jsonl", "measurements.parquet"
_DISTURBED = 1.1  # times the reference's quiet time: with less, two measurements of a set differ by half as much
_QUIET = 10  # percentile of the reference's times in the campaign
RETRIES = 2  # more measurements of a disturbed set at most


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured set of tables: what was run, and how it compares with the reference set.

    Attributes:
        index: its number in the campaign.
        workload: what was run.
        timing: how long it took.
        disturbance: the reference set's time relative to its quiet time in the campaign.
    """

    index: int
    workload: Workload
    timing: Timing
    disturbance: float = 1.0

    @property
    def disturbed(self) -> bool:
        """Whether something else slowed the device down meanwhile."""
        return self.disturbance > _DISTURBED


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a campaign a process measures: every `of`-th of the sets, from the `rank`-th on."""

    rank: int = 0
    of: int = 1

    @property
    def journal(self) -> str:
        """Name of the process's journal."""
        return JOURNALS.replace("*", f".{self.rank}" if self.rank else "")


def run_campaign(
    folder: Path, bench: Bench, sizes: Range, *, seed: int, numbers: Sequence[int], share: Share = Share()
) -> Iterator[Measurement | str]:
    """Measure a share of the sets of these numbers; yields each one, or why it was skipped, once it is written down."""
    journal = folder / share.journal
    with journal.open("ab") as out:
        _end_torn_line(journal, out)
        for index in numbers[share.rank :: share.of]:
            workload = draw_workload(seed, index, sizes)
            try:
                timing = bench.time(workload, seed=index)
            except MemoryError as error:
                entry: dict[str, Any] = {"index": index, "skipped": "out of memory"}
                result: Measurement | str = f"set {index} skipped: {error}"
            else:
                result = Measurement(index, workload, timing)
                entry = to_entry(result)
            out.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
            yield result


def missing_sets(folder: Path, sets: int) -> list[int]:
    """Numbers of the first `sets` sets that the folder has neither measured nor skipped."""
    done = {entry["index"] for entry, _ in _read_entries(folder)}
    return [index for index in range(sets) if index not in done]


def disturbed_sets(folder: Path, sets: int) -> list[int]:
    """Numbers of the first `sets` sets that were measured only while disturbed, `RETRIES` + 1 times at most."""
    tries: dict[int, list[float]] = {}
    for entry, disturbance in _read_entries(folder):
        if "skipped" not in entry:
            tries.setdefault(entry["index"], []).append(disturbance)
    return [i for i, found in sorted(tries.items()) if i < sets and min(found) > _DISTURBED and len(found) <= RETRIES]


def read_campaign(folder: Path) -> list[Measurement]:
    """The finished measurements of a campaign, by their number: of each set the one that was disturbed least.

    Raises:
        DiagnosticError: SH603 when a line other than the last of a journal, or the Parquet file, is damaged.
    """
    entries = [(disturbance, entry) for entry, disturbance in _read_entries(folder) if "skipped" not in entry]
    best = {entry["index"]: (entry, found) for found, entry in sorted(entries, key=lambda each: each[0], reverse=True)}
    try:
        return [_from_entry(*best[index]) for index in sorted(best)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(str(folder), f"a measurement lacks or has a wrong {error}") from error


def append(folder: Path, timed: Sequence[tuple[Workload, Timing]]) -> None:
    """Add sets that are not of the design to a campaign, in a journal of their own."""
    known = [entry["index"] for entry, _ in _read_entries(folder)]
    number = max([FIRST_OWN - 1, *known]) + 1
    lines = [
        json.dumps(to_entry(Measurement(number + i, *each)), separators=(",", ":")) for i, each in enumerate(timed)
    ]
    journal = folder / JOURNALS.replace("*", ".own")
    before = journal.read_text(encoding="utf-8") if journal.exists() else ""
    write_atomic(journal, "".join([before, *(f"{line}\n" for line in lines)]).encode())


def _read_entries(folder: Path) -> list[tuple[dict[str, Any], float]]:
    """All entries, each with the reference's time relative to its quiet time in this campaign; 1 for a skipped set."""
    entries = read_parquet(folder / PARQUET)
    for journal in sorted(folder.glob(JOURNALS)):
        entries += _read_lines(journal)
    least: dict[int, float] = {}
    try:
        for entry in entries:
            if "skipped" not in entry:
                least[entry["index"]] = min(_reference_ms(entry), least.get(entry["index"], np.inf))
        quiet = float(np.percentile(list(least.values()), _QUIET)) if least else 1.0
        return [(entry, 1.0 if "skipped" in entry else _reference_ms(entry) / quiet) for entry in entries]
    except (KeyError, TypeError) as error:
        raise _damaged(str(folder / JOURNALS), f"a measurement lacks or has a wrong {error}") from error


def _reference_ms(entry: dict[str, Any]) -> float:
    return float(entry["reference_forward_ms"] + entry["reference_backward_ms"])


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(journal.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # torn by a crash while it was written: measured again
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise _damaged(f"{journal}:{number}", f"not a measurement: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("index"), int):
            raise _damaged(f"{journal}:{number}", "not a measurement: it has no index")
        entries.append(entry)
    return entries


def _damaged(where: str, reason: str) -> DiagnosticError:
    fix = "delete the damaged lines: their sets will be measured again"
    return DiagnosticError(Diagnostic("SH603", f"{where}: {reason}", help=fix), exit_code=2)


def _end_torn_line(journal: Path, out: Any) -> None:
    """Cut a half-written last line off, so that what follows starts on a line of its own."""
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        out.truncate(content.rfind(b"\n") + 1)


def to_entry(measurement: Measurement) -> dict[str, Any]:
    """A measurement as a line of the journal."""
    workload = measurement.workload
    tables = [
        {"rows": t.rows, "dim": t.dim, "pooling": t.pooling}
        | ({"zipf": t.access.exponent} if isinstance(t.access, Zipf) else {"bins": t.access.shares})
        for t in workload.tables
    ]
    head = {"index": measurement.index, "batch": workload.batch, "weights": workload.weights}
    return {**head, "optimizer": workload.optimizer, "tables": tables, **asdict(measurement.timing)}


def _from_entry(entry: dict[str, Any], disturbance: float) -> Measurement:
    tables = tuple(
        Load(t["rows"], t["dim"], t["pooling"], Bins(tuple(t["bins"])) if t.get("bins") else Zipf(t["zipf"]))
        for t in entry["tables"]
    )
    if any(isinstance(t.access, Bins) and len(t.access.shares) != ACCESS_BINS for t in tables):
        raise ValueError(f"bins: {ACCESS_BINS} shares are expected")
    timing = Timing(**{name: entry[name] for name in Timing.__dataclass_fields__})
    workload = Workload(tables, entry["batch"], entry["weights"], entry["optimizer"])
    return Measurement(entry["index"], workload, timing, disturbance)
