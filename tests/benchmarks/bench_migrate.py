"""What moves when one table of a large spec changes and the spec is compiled with its old plan as the base.

Exit code 1 when fewer than 95 % of the changes of any kind of problem keep both bars: bytes that move, and step time
beside the plan that is compiled without a base.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from shardc import pipeline
from shardc.bench import machine
from shardc.plan_diff import diff
from shardc.spec import SHARDING_TYPES, parse_spec
from shardc.suites import metasyn_pool, metasyn_task

TABLES, DEVICES = 300, 16
MOST_MOVED, MOST_SLOWER, SHARE = 0.02, 0.01, 0.95
CHANGES = ("rows", "dim", "pooling", "added", "removed")


def main() -> int:
    """Print a table; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="changes of each kind of problem")
    parser.add_argument("--verbose", action="store_true", help="print every trial")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    print(
        f"one of {TABLES} tables changed, {DEVICES} devices: what moves, and the step time beside a plan without base"
    )
    print(f"{'':44} {'fine':>7}   moved: median, most   slower: median, most   seconds with, without a base")
    fine = [
        _trials(f"{name}, {costs}", spec | {"compile": how}, options.trials, options.verbose)
        for name, spec in _specs()
        for costs, how in (("data sheet", {}), ("TorchRec's estimates", {"cost": "torchrec"}))
    ]
    return 0 if all(fine) else 1


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Tables with the statistics of AutoShard's data; of all sizes; all of one size, where none is cheap to move."""
    cluster = {"device": "h100-80gb", "hosts": 2, "devices_per_host": 8}
    task = metasyn_task("metasyn", np.random.default_rng(1), TABLES, DEVICES, SHARDING_TYPES, metasyn_pool())
    yield "metasyn tables", task | {"cluster": cluster}
    for name, rows in (("tables of 1k to 40M rows", None), ("tables of 2M rows", 2_000_000)):
        rng = np.random.default_rng(2)
        tables = [
            {
                "name": f"t{number:03}",
                "rows": rows or int(np.exp(rng.uniform(np.log(1000), np.log(40_000_000)))),
                "dim": 64 if rows else int(rng.choice([16, 32, 64, 128, 256])),
                "pooling": round(float(rng.lognormal(1.5, 1.0)), 3),
                "access": {"zipf": round(float(rng.uniform(0.6, 1.3)), 3)},
            }
            for number in range(TABLES)
        ]
        model = {"name": "tables", "module": "ebc", "global_batch": 65_536}
        yield name, {"format": 1, "model": model, "cluster": cluster, "table": tables}


def _changed(spec: dict[str, Any], trial: int) -> dict[str, Any]:
    """The spec with one table changed, added or removed."""
    rng, new = np.random.default_rng([7, trial]), copy.deepcopy(spec)
    tables, change = new["table"], CHANGES[trial % len(CHANGES)]
    table = tables[int(rng.integers(len(tables)))]
    factor = float(np.exp(rng.choice([-1, 1]) * rng.uniform(np.log(1.1), np.log(4.0))))
    if change == "rows":
        table["rows"] = max(1, int(table["rows"] * factor))
    elif change == "dim":
        table["dim"] = int(rng.choice([dim for dim in (16, 32, 64, 128, 256) if dim != table["dim"]]))
    elif change == "pooling":
        table["pooling"] = round(table["pooling"] * factor, 3)
    elif change == "added":
        tables.append(copy.deepcopy(table) | {"name": "zz_new"})
    else:
        tables.remove(table)
    return new


def _trials(name: str, spec: dict[str, Any], trials: int, verbose: bool) -> bool:
    base = pipeline.run(parse_spec(spec)).plan
    moved, slower, seconds = [], [], []
    for trial in range(trials):
        after = parse_spec(_changed(spec, trial))
        times = [time.perf_counter()]
        found = pipeline.run(after, base=base).plan
        times.append(time.perf_counter())
        alone = pipeline.run(after).plan
        times.append(time.perf_counter())
        moved.append(diff(base, found).moved_share)
        slower.append(found.score.step_time_ms / alone.score.step_time_ms - 1.0)
        seconds.append(np.diff(times))
        if verbose:
            print(f"  {trial:3} {CHANGES[trial % len(CHANGES)]:8} moved {moved[-1]:7.3%}, slower {slower[-1]:+.3%}")
    kept = sum(m <= MOST_MOVED and s <= MOST_SLOWER for m, s in zip(moved, slower, strict=True))
    with_base, without = np.median(seconds, axis=0)
    print(
        f"{name:44} {kept:3}/{trials:<3}   {median(moved):7.2%} {max(moved):8.2%}      {median(slower):+7.2%}"
        f" {max(slower):+8.2%}      {with_base:5.1f} {without:5.1f}",
        flush=True,
    )
    return kept >= SHARE * trials


if __name__ == "__main__":
    sys.exit(main())
