"""The measuring campaign: random sets of tables, one after the other, written down as they are finished.

Set number i of a campaign depends only on the seed and on i, so a campaign that was interrupted goes on where it
stopped. Each finished measurement is one line of a journal, flushed at once; a line torn by a crash is dropped.
Every set draws fresh tables: no table of a held-out set was ever seen in training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.measure.workload import Load, Timing, Workload
from shardc.problem import ACCESS_BINS
from shardc.spec import Bins, Zipf

if TYPE_CHECKING:
    from shardc.measure.benchmark import Bench

JOURNAL = "measurements.jsonl"
REPEAT_EVERY = 20

# Mean and standard deviation of the 17 bins over the tables of the public access dataset (AutoShard, table 4).
_BINS_MEAN = (
    0.225,
    0.104,
    0.126,
    0.106,
    0.082,
    0.056,
    0.039,
    0.033,
    0.031,
    0.027,
    0.027,
    0.022,
    0.019,
    0.015,
    0.006,
    0.008,
    0.033,
)
_BINS_STD = (
    0.227,
    0.069,
    0.092,
    0.076,
    0.059,
    0.051,
    0.048,
    0.057,
    0.067,
    0.064,
    0.074,
    0.069,
    0.070,
    0.081,
    0.043,
    0.051,
    0.123,
)
_DIMS = (4, 8, 16, 32, 64, 128, 256, 512)
_DIM_ODDS = (0.06, 0.1, 0.18, 0.2, 0.2, 0.16, 0.07, 0.03)


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes that a campaign covers, chosen for what the device can run in a few dozen milliseconds.

    Attributes:
        tables: most tables in a set.
        batch: smallest and largest batch.
        rows: most rows of a table.
        lookups: most lookups of a set in one step.
        gathered_bytes: most bytes of embedding rows that a set reads in one step.
        weight_bytes: most bytes of weights of a set.
    """

    tables: int
    batch: tuple[int, int]
    rows: int
    lookups: float
    gathered_bytes: float
    weight_bytes: float


CPU_RANGE = Range(32, (64, 4096), 4_000_000, 6e5, 6e7, 3 * 2**29)
CUDA_RANGE = Range(64, (1024, 65536), 40_000_000, 1.5e8, 3e10, 40 * 2**30)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured set of tables: what was run, and how it compares with the reference set."""

    index: int
    workload: Workload
    timing: Timing


def is_repeat(index: int) -> bool:
    """Whether this set was measured before: repeats tell the noise and take no part in training."""
    return index % REPEAT_EVERY == REPEAT_EVERY - 1


def draw_workload(seed: int, index: int, sizes: Range) -> Workload:
    """The set of tables that a campaign measures as its number `index`."""
    if is_repeat(index):
        return draw_workload(seed, index - REPEAT_EVERY // 2, sizes)
    rng = np.random.default_rng([seed, index])
    while True:
        count = int(np.exp(rng.uniform(0, np.log(sizes.tables + 1))))
        batch = int(np.exp(rng.uniform(*np.log(sizes.batch))))
        pooling_scale = rng.uniform(np.log(0.3), np.log(30))
        tables = tuple(
            Load(
                rows=int(np.exp(rng.uniform(np.log(3), np.log(sizes.rows)))),
                dim=int(rng.choice(_DIMS, p=_DIM_ODDS)),
                pooling=float(np.clip(np.exp(rng.normal(pooling_scale, 1.2)), 0.05, 200).round(3)),
                access=_draw_access(rng),
            )
            for _ in range(count)
        )
        workload = Workload(
            tables,
            batch,
            weights=str(rng.choice(["fp32", "fp16"], p=[0.75, 0.25])),
            optimizer=str(rng.choice(["sgd", "rowwise_adagrad"])),
        )
        lookups = sum(t.pooling for t in tables) * batch
        gathered = sum(t.pooling * t.dim for t in tables) * batch * 4.0
        outputs = sum(t.dim for t in tables) * batch * 4.0
        fits = workload.weight_bytes <= sizes.weight_bytes
        if fits and lookups <= sizes.lookups and gathered + outputs <= sizes.gathered_bytes:
            return workload


def _draw_access(rng: np.random.Generator) -> Zipf | Bins:
    if rng.random() < 0.7:
        return Zipf(round(rng.uniform(0, 1.6), 3))
    mean, std = np.array(_BINS_MEAN), np.array(_BINS_STD)
    shape = (mean / std) ** 2
    shares = rng.gamma(shape, mean / shape)
    return Bins(tuple(map(float, (shares / shares.sum()).round(6))))


def run_campaign(folder: Path, bench: Bench, sizes: Range, *, seed: int, sets: int) -> Iterator[Measurement | str]:
    """Measure sets until the campaign's journal holds `sets`; yields each one, or why it was skipped, as it is done."""
    journal = folder / JOURNAL
    missing = missing_sets(folder, sets)
    with journal.open("ab") as out:
        _end_torn_line(journal, out)
        for index in missing:
            workload = draw_workload(seed, index, sizes)
            try:
                timing = bench.time(workload, seed=index)
            except MemoryError:
                entry: dict[str, Any] = {"index": index, "skipped": "out of memory"}
                result: Measurement | str = f"set {index} skipped: {workload.weight_bytes >> 20} MiB do not fit"
            else:
                result = Measurement(index, workload, timing)
                entry = to_entry(result)
            out.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
            yield result


def missing_sets(folder: Path, sets: int) -> list[int]:
    """Numbers of the first `sets` sets that the journal has neither measured nor skipped."""
    done = {entry["index"] for entry in _read_lines(folder / JOURNAL)}
    return [index for index in range(sets) if index not in done]


def read_journal(folder: Path) -> list[Measurement]:
    """The finished measurements of a campaign, by their number.

    Raises:
        DiagnosticError: SH603 when a line other than the last is damaged.
    """
    journal = folder / JOURNAL
    entries = {entry["index"]: entry for entry in _read_lines(journal) if "skipped" not in entry}
    try:
        return [_from_entry(entries[index]) for index in sorted(entries)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(str(journal), f"a measurement lacks or has a wrong {error}") from error


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
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
    """A measurement as a line of the journal, and as a row of the Parquet file."""
    workload = measurement.workload
    tables = [
        {"rows": t.rows, "dim": t.dim, "pooling": t.pooling}
        | ({"zipf": t.access.exponent} if isinstance(t.access, Zipf) else {"bins": t.access.shares})
        for t in workload.tables
    ]
    head = {"index": measurement.index, "batch": workload.batch, "weights": workload.weights}
    return {**head, "optimizer": workload.optimizer, "tables": tables, **asdict(measurement.timing)}


def _from_entry(entry: dict[str, Any]) -> Measurement:
    tables = tuple(
        Load(t["rows"], t["dim"], t["pooling"], Zipf(t["zipf"]) if "zipf" in t else Bins(tuple(t["bins"])))
        for t in entry["tables"]
    )
    if any(isinstance(t.access, Bins) and len(t.access.shares) != ACCESS_BINS for t in tables):
        raise ValueError(f"bins: {ACCESS_BINS} shares are expected")
    timing = Timing(**{name: entry[name] for name in Timing.__dataclass_fields__})
    return Measurement(entry["index"], Workload(tables, entry["batch"], entry["weights"], entry["optimizer"]), timing)
