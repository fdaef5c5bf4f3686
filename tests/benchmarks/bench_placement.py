"""How good placements are, and how long they take; run by `make bench-placement`.

Times are of this machine, and bars that they are held against of two quiet cores. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench_cli import ROOT, _machine, _run, random_task

RUNS = 3
SIZES = ((100, 1, 0.8, None), (856, 16, 2.0, 400.0), (1000, 128, 8.0, None))
"""Tables, hosts of 8 devices, most seconds of the whole process, most MB."""

GROWTH = ((50, 1), (100, 1), (200, 2), (400, 4), (800, 8), (1600, 16))
TORCHREC = ((100, 1), (300, 2), (856, 8))
SEEDS = 3
MOST_GAP = 0.01
TASKS = 200  # of each suite that the beam is compared on
TIMES = 100  # the effort that plans are held against
MEDIAN_LOSS, WORST_LOSS = 0.01, 0.03


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all figures; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS, help="problems of each suite for the beam search")
    parser.add_argument("--no-effort", action="store_true", help="leave out plans of a hundred times the effort")
    options = parser.parse_args(arguments)
    print(_machine(), end="\n\n")
    fine = list(_whole_processes())
    sys.path.insert(0, str(ROOT))
    _growth()
    fine += _torchrec_costs()
    fine += _beam(options.tasks)
    if not options.no_effort:
        fine.append(_effort())
    return 0 if all(fine) else 1


def task(tables: int, hosts: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A random task with all sharding types, for hosts of eight H100s."""
    from shardc.spec import SHARDING_TYPES

    spec = random_task(seed, SHARDING_TYPES, tables)
    spec["cluster"] = {"device": "h100-80gb", "hosts": hosts, "devices_per_host": 8}
    return spec | more


def _toml(spec: dict[str, Any]) -> str:
    """A spec as TOML: JSON's strings, numbers and lists are TOML's too."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(of_key)}" for key, of_key in value.items()) + "}"
        return json.dumps(value)

    lines = [f"format = {spec['format']}"]
    for name in ("model", "cluster"):
        lines += [f"[{name}]", *(f"{key} = {inline(value)}" for key, value in spec[name].items())]
    for table in spec["table"]:
        lines += ["[[table]]", *(f"{key} = {inline(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _whole_processes() -> Iterator[bool]:
    """`shardc compile` as a process, from the file to the plan."""
    with tempfile.TemporaryDirectory() as folder:
        for tables, hosts, most_seconds, most_mb in SIZES:
            path = Path(folder) / f"{tables}.toml"
            path.write_text(_toml(task(tables, hosts)))
            runs = [_run([sys.executable, "-m", "shardc", "compile", str(path), "-o", "-"]) for _ in range(RUNS)]
            seconds, mb = median(run[0] for run in runs), max(run[1] for run in runs)
            fine = seconds <= most_seconds and (most_mb is None or mb <= most_mb)
            title = f"compile {tables:,} tables on {hosts * 8:,} devices"
            bars = f"bar {most_seconds:.1f} s" + (f", {most_mb:.0f} MB" if most_mb else "")
            print(f"{title:<44} {seconds:6.2f} s {mb:6.0f} MB   {bars:<16} {'fine' if fine else 'MISSED'}")
            yield fine
    print()


def _growth() -> None:
    """Time of placing, and what it is for each table and each doubling of the devices."""
    print("time of all passes   tables  devices       ms   µs / (tables x log2 devices)")
    for tables, hosts in GROWTH:
        ms = min(_compiled(task(tables, hosts))[1] for _ in range(RUNS))
        print(f"{'':<18} {tables:>8,} {hosts * 8:>8,} {ms:8.0f}   {1e3 * ms / tables / math.log2(hosts * 8):8.0f}")
    print()


def _compiled(spec: dict[str, Any], effort: str | None = None) -> tuple[Any, float]:
    """A plan, and the processor time that it took in ms: neighbours do not count."""
    from shardc import pipeline
    from shardc.spec import parse_spec

    loaded = parse_spec(spec)
    start = time.process_time()
    plan = pipeline.run(loaded, effort=effort).plan
    return plan, 1e3 * (time.process_time() - start)


def _torchrec_costs() -> Iterator[bool]:
    """How far plans are above the bound in TorchRec's own estimates."""
    for tables, hosts in TORCHREC:
        found = [_compiled(task(tables, hosts, seed, compile={"cost": "torchrec"})) for seed in range(SEEDS)]
        gaps = [plan.bound.gap for plan, _ in found]
        fine = max(gaps) <= MOST_GAP
        title = f"torchrec costs, {tables} tables on {hosts * 8} devices"
        gap, ms = f"{100 * mean(gaps):.3f} % (most {100 * max(gaps):.3f} %)", mean(ms for _, ms in found)
        print(f"{title:<44} gap {gap}, {ms:.0f} ms   bar {100 * MOST_GAP:.0f} %   {'fine' if fine else 'MISSED'}")
        yield fine
    print()


def _beam(tasks: int) -> Iterator[bool]:
    """shardc's plans against NeuroShard's beam search, under the same costs."""
    from shardc.bench import compare
    from shardc.spec import parse_spec
    from shardc.suites import problems

    for name in ("metasyn-varied", "metasyn-types"):
        some = [spec for seed in range(-(-tasks // 50)) for spec in problems(name, seed)][:tasks]
        named = [(f"{name} {number}", parse_spec(spec)) for number, spec in enumerate(some)]
        results = compare(name, named, ["shardc", "neuroshard_beam"]).results
        ratios = [result.step_ms["neuroshard_beam"] / result.step_ms["shardc"] for result in results]
        below = sum(ratio >= 1.0 for ratio in ratios) / len(ratios)
        ours, theirs = (mean(result.runs[i].seconds for result in results) for i in (0, 1))
        fine = below >= 0.95 and min(ratios) > 1 / 1.001
        above = 100 * max(0.0, 1 / min(ratios) - 1)
        print(
            f"{name:<16} {len(ratios)} tasks: not above the beam on {100 * below:.1f} %, most above {above:.3f} %, "
            f"the beam is {mean(ratios):.3f}x; {ours:.2f} s against {theirs:.2f} s"
            f"   {'fine' if fine else 'MISSED'}"
        )
        yield fine
    print()


def _effort() -> bool:
    """What a hundred times the effort still finds."""
    from shardc import pipeline
    from shardc.passes import place
    from shardc.placers import local_search

    specs = {"dlrm-dcnv2": pipeline.load(ROOT / "examples/dlrm-dcnv2.toml")}
    sizes = [(26, 1), (26, 1), (60, 1), (60, 2), (100, 1), (100, 2), (120, 4), (80, 1), (80, 1), (200, 2)]
    for seed, (tables, hosts) in enumerate(sizes):
        specs[f"{tables}/{hosts * 8}"] = pipeline.load(task(tables, hosts, seed))
    plain = {name: pipeline.run(spec).plan.score.step_time_ms for name, spec in specs.items()}
    usual = place.EVALUATIONS["balanced"], local_search._PATIENCE
    place.EVALUATIONS["balanced"], local_search._PATIENCE = usual[0] * TIMES, 10**9
    losses = []
    for name, spec in specs.items():
        best = pipeline.run(spec).plan.score.step_time_ms
        losses.append(plain[name] / best - 1)
        print(f"{TIMES}x the effort, {name:<12} {best:.4f} ms against {plain[name]:.4f} ms: {100 * losses[-1]:.2f} %")
    place.EVALUATIONS["balanced"], local_search._PATIENCE = usual
    fine = median(losses) <= MEDIAN_LOSS and max(losses) <= WORST_LOSS
    print(f"median {100 * median(losses):.2f} %, worst {100 * max(losses):.2f} %   {'fine' if fine else 'MISSED'}")
    return fine


if __name__ == "__main__":
    sys.exit(main())
