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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import journal, read_bytes, write_atomic
from shardc.measure.design import FIRST_OWN, Range, draw_workload
from shardc.measure.parquet import read_parquet
from shardc.measure.workload import Load, Timing, Workload
from shardc.problem import ACCESS_BINS, BYTES_PER_ELEMENT, Optimizer
from shardc.spec import Bins, Zipf

if TYPE_CHECKING:
    from shardc.measure.benchmark import Bench

JOURNALS, PARQUET = "measurements*.jsonl", "measurements.parquet"
_DISTURBED = 1.1  # times the reference's quiet time: with less, two measurements of a set differ by half as much
_QUIET = 10  # percentile of the reference's times in the campaign
_MOST = 2**63  # of any amount that is written down
_MOST_BYTES = 2**30  # of a journal; 20,000 sets have a tenth of it
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
    with journal(folder / share.journal) as add:
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
            add(json.dumps(entry, separators=(",", ":")).encode())
            yield result


def missing_sets(folder: Path, sets: int) -> list[int]:
    """Numbers of the first `sets` sets that the folder has no measurement of: those that were skipped, too."""
    done = {measurement.index for measurement in _read_measurements(folder)}
    return [index for index in range(sets) if index not in done]


def disturbed_sets(folder: Path, sets: int) -> list[int]:
    """Numbers of the first `sets` sets that were measured only while disturbed, `RETRIES` + 1 times at most."""
    tries: dict[int, list[bool]] = {}
    for measurement in _read_measurements(folder):
        tries.setdefault(measurement.index, []).append(measurement.disturbed)
    return [i for i, found in sorted(tries.items()) if i < sets and all(found) and len(found) <= RETRIES]


def read_campaign(folder: Path) -> list[Measurement]:
    """The finished measurements of a campaign, by their number: of each set the one that was disturbed least.

    Raises:
        DiagnosticError: SH603 when a line other than the last of a journal, or the Parquet file, is damaged.
    """
    measurements = sorted(_read_measurements(folder), key=lambda m: m.disturbance, reverse=True)
    best = {measurement.index: measurement for measurement in measurements}
    return [best[index] for index in sorted(best)]


def append(folder: Path, timed: Sequence[tuple[Workload, Timing]]) -> list[int]:
    """Add sets that are not of the design to a campaign, in a journal of their own; returns their numbers."""
    known = [measurement.index for measurement in _read_measurements(folder)]
    first = max([FIRST_OWN - 1, *known]) + 1
    numbers = list(range(first, first + len(timed)))
    lines = [
        json.dumps(to_entry(Measurement(number, *each)), separators=(",", ":"))
        for number, each in zip(numbers, timed, strict=True)
    ]
    own = folder / JOURNALS.replace("*", ".own")
    before = own.read_bytes() if own.exists() else b""
    whole = before[: before.rfind(b"\n") + 1]
    write_atomic(own, whole + "".join(f"{line}\n" for line in lines).encode())
    return numbers


def _read_measurements(folder: Path) -> list[Measurement]:
    """All measurements, each with the reference's time relative to its quiet time in this campaign."""
    path = folder / PARQUET
    measurements = [_from_entry(row, f"{path}: set {row['index']}") for row in read_parquet(path)]
    for path in sorted(folder.glob(JOURNALS)):
        measurements += _read_lines(path)
    least: dict[int, float] = {}
    for measurement in measurements:
        least[measurement.index] = min(measurement.timing.reference_ms, least.get(measurement.index, np.inf))
    quiet = float(np.percentile(list(least.values()), _QUIET)) if least else 1.0
    return [replace(m, disturbance=m.timing.reference_ms / quiet) for m in measurements]


def _read_lines(path: Path) -> list[Measurement]:
    measurements = []
    for number, line in enumerate(read_bytes(path, "measurements", _MOST_BYTES).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # torn by a crash while it was written: measured again
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(where, f"not a measurement: {error}") from error
        if not isinstance(entry, dict) or type(entry.get("index")) is not int or entry["index"] < 0:
            raise _damaged(where, "not a measurement: it has no index")
        if "skipped" not in entry:
            measurements.append(_from_entry(entry, where))
    return measurements


def _damaged(where: str, reason: str) -> DiagnosticError:
    fix = "delete the damaged lines: their sets will be measured again"
    return DiagnosticError(Diagnostic("SH603", f"{where}: {reason}", help=fix), exit_code=2)


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


def _from_entry(entry: dict[str, Any], where: str) -> Measurement:
    """The measurement that a line or a row holds.

    Raises:
        DiagnosticError: SH603 when a value is missing, or none that can be measured.
    """
    try:
        tables = tuple(
            Load(t["rows"], t["dim"], t["pooling"], Bins(tuple(t["bins"])) if t.get("bins") else Zipf(t["zipf"]))
            for t in entry["tables"]
        )
        timing = Timing(**{name: entry[name] for name in Timing.__dataclass_fields__})
        workload = Workload(tables, entry["batch"], entry["weights"], entry["optimizer"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, "the measurement lacks a value, or has one of another kind") from error
    times = timing.forward_ratio, timing.backward_ratio, timing.reference_forward_ms, timing.reference_backward_ms
    sound = (
        len(tables) > 0
        and all(map(_is_load, tables))
        and _is_count(workload.batch)
        and workload.weights in BYTES_PER_ELEMENT
        and workload.optimizer in list(Optimizer)
        and all(_is_amount(value) and value > 0 for value in times)
    )
    if not sound:
        raise _damaged(where, "no such set or times can be measured")
    return Measurement(entry["index"], workload, timing)


def _is_load(load: Load) -> bool:
    access = load.access.shares if isinstance(load.access, Bins) else (load.access.exponent,)
    sound = all(map(_is_amount, access)) and (isinstance(load.access, Zipf) or len(access) == ACCESS_BINS)
    some = isinstance(load.access, Zipf) or (sound and sum(access) > 0)
    return (
        sound
        and some
        and _is_count(load.rows)
        and _is_count(load.dim)
        and _is_amount(load.pooling)
        and load.pooling > 0
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST
