"""shardc's plans beside optima that HiGHS proves, and its placements beside HiGHS's where memory is tight.

Run by `make bench-exact`. Exit code 1 when a plan is further from its optimum than the bar, or shardc finds no
placement where HiGHS does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from bench_cli import random_task

from shardc import pipeline
from shardc.bench import machine
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.passes.place import place
from shardc.passes.profile import profile
from shardc.placers.exact import fits, solve
from shardc.placers.policy import load_policy
from shardc.spec import SHARDING_TYPES, parse_spec
from shardc.suites import packed, problems

SEEDS = 5
GAP = 1e-3  # of HiGHS: what an optimum is proven to
BAR = 0.01  # of a plan above its optimum
SECONDS = 60.0  # of HiGHS for one problem
FILLS = (0.97, 0.99, 0.995, 0.999)
TASKS = 4  # of each fill

COSTS = (
    ("TorchRec's estimates, all sharding types, 26 tables", {"cost": "torchrec"}, "v100-16gb", SHARDING_TYPES, 26, 8),
    ("roofline, table-wise, 26 tables", {}, "v100-16gb", SHARDING_TYPES[:1], 26, 8),
    ("learned costs, table-wise, 26 tables", {}, "cpu-epyc", SHARDING_TYPES[:1], 26, 8),
    ("learned costs, all sharding types, 12 tables", {}, "cpu-epyc", SHARDING_TYPES, 12, 4),
)
"""What is said of them, how they are compiled, device, sharding types, tables, devices."""


def main() -> int:
    """Print all tables; 1 if a bar was missed."""
    print(machine(), end="\n\n")
    fine = [_optima(*costs) for costs in COSTS]
    fine.append(_tight("tight suite", ((spec["model"]["name"], spec) for spec in problems("tight"))))
    fine.append(_tight("few tables a device, fuller", _fuller()))
    return 0 if all(fine) else 1


def _lowered(spec: dict[str, Any]) -> Judge:
    loaded = parse_spec(spec)
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware)
    return Judge(problem, profile(problem, hardware, loaded).cost)


def _optima(
    title: str, settings: dict[str, str], device: str, types: tuple[str, ...], tables: int, devices: int
) -> bool:
    """Plans of a balanced compile, and the bound that they come with, beside what HiGHS proves."""
    print(f"{title} on {devices} devices: how far above the proven bound, %")
    print(f"  {'seed':<6} {'balanced':>9} {'in s':>7} {'HiGHS':>9} {'in s':>7} {'nodes':>7} {'old bound':>10}")
    policy, above = load_policy(Path(pipeline.POLICY)), []
    for seed in range(SEEDS):
        task = random_task(seed, types, tables)
        task |= {"compile": settings, "cluster": {"device": device, "devices_per_host": devices}}
        judge = _lowered(task)
        start = time.perf_counter()
        choice = place(judge.problem, judge.cost, policy=policy)
        planned = time.perf_counter() - start
        known = choice.bound.step_time_ms if choice.bound else 0.0
        start = time.perf_counter()
        found = solve(judge, choice.placement, gap=GAP, bound_ms=known, seconds=SECONDS)
        proven = time.perf_counter() - start
        ours = choice.judgement.step_time_ms
        above.append(ours / found.step_time_ms - 1.0)
        percent = [100 * (ms / found.bound_ms - 1.0) for ms in (ours, found.step_time_ms)]
        print(
            f"  {seed:<6} {percent[0]:>9.3f} {planned:>7.2f} {percent[1]:>9.3f} {proven:>7.1f} {found.nodes:>7} "
            f"{100 * (known / found.bound_ms - 1.0):>10.3f}  {found.status}",
            flush=True,
        )
    fine = max(above) <= BAR
    print(
        f"  balanced over the best that is known: mean {100 * mean(above):.2f} %, most {100 * max(above):.2f} %   "
        f"bar {100 * BAR:.0f} %   {'fine' if fine else 'MISSED'}\n"
    )
    return fine


def _fuller() -> Iterator[tuple[str, dict[str, Any]]]:
    """Packings that are fuller than those of the suite; one placement exists at least."""
    for fill in FILLS:
        for number in range(TASKS):
            rng = np.random.default_rng([7, int(1e4 * fill), number])
            name = f"{fill:.1%}-{number}"
            yield name, packed(name, rng, fill, mixed=number % 2 == 1)[0]


def _tight(title: str, tasks: Iterator[tuple[str, dict[str, Any]]]) -> bool:
    """Whether shardc places what HiGHS does; without HiGHS's help."""
    policy, counts = load_policy(Path(pipeline.POLICY)), {"both": 0, "shardc": 0, "HiGHS": 0, "neither": 0}
    print(f"{title}: is a placement found, and in how many seconds")
    for name, spec in tasks:
        judge = _lowered(spec)
        start = time.perf_counter()
        try:
            choice = place(judge.problem, judge.cost, policy=policy)
            ours = all(proposal.strategy != "exact" for proposal, _ in choice.candidates)
        except DiagnosticError:
            ours = False
        planned = time.perf_counter() - start
        start = time.perf_counter()
        theirs = fits(judge.problem, nodes=1_000_000, seconds=SECONDS).placement is not None
        solved = time.perf_counter() - start
        which = {(True, True): "both", (True, False): "shardc", (False, True): "HiGHS", (False, False): "neither"}
        counts[which[ours, theirs]] += 1
        devices, blocks = judge.problem.cluster.devices, len(judge.problem.blocks)
        print(
            f"  {name:<24} {blocks:>3} tables on {devices:>2}   shardc {'yes' if ours else 'no':<3} {planned:>6.2f}   "
            f"HiGHS {'yes' if theirs else 'no':<3} {solved:>6.2f}",
            flush=True,
        )
    print("  placed by " + ", ".join(f"{who}: {count}" for who, count in counts.items()) + "\n")
    return counts["HiGHS"] == 0


if __name__ == "__main__":
    sys.exit(main())
