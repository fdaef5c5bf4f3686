"""What the README says about speed and quality, measured on this machine; run by `make bench`.

Exit code 1 when a bar is missed or a command imports what only measuring and training need.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardc.passes.place import Choice

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "examples/dlrm-dcnv2.toml"
RUNS = 7
HEAVY = {"torch", "fbgemm_gpu", "torchrec", "pyarrow"}

COMMANDS: tuple[tuple[tuple[str, ...], float, float | None], ...] = (
    (("compile", EXAMPLE, "-o", "-"), 1.5, 400.0),
    (("validate", EXAMPLE), 0.4, None),
    (("--help",), 0.4, None),
)
"""Arguments, most seconds of the whole process, most MB of memory."""

TASKS, TABLES, DEVICES = 20, 80, 8
MEAN_POOLING, MOST_ROWS = 15.8, 12_000_000

MANY_TABLES, MANY_HOSTS, CANDIDATES = 1000, 16, 10_000
MOST_MS = 50.0


def main() -> int:
    """Print all tables; 1 if a bar was missed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process would compile shardc anew
    print(_machine(), end="\n\n")
    # Linux counts the memory of the process that starts another as the other's: nothing large is imported before.
    fine = [_time_command(*command) for command in COMMANDS]
    print()
    sys.path.insert(0, str(ROOT))
    from shardc import pipeline
    from shardc.spec import SHARDING_TYPES, parse_spec

    _compare("DLRM-DCNv2", [pipeline.run(pipeline.load(ROOT / EXAMPLE)).choice])
    for name, types in (("table-wise", SHARDING_TYPES[:1]), ("all sharding types", SHARDING_TYPES)):
        title = f"{TASKS} random tasks of {TABLES} tables on {DEVICES} devices, {name}"
        _compare(title, [pipeline.run(parse_spec(random_task(seed, types))).choice for seed in range(TASKS)])
    fine += _time_costs()
    return 0 if all(fine) else 1


def random_task(seed: int, types: Sequence[str], tables: int = TABLES) -> dict[str, Any]:
    """A spec in the spirit of the synthetic tasks of the field: sizes over orders of magnitude, skewed pooling."""
    import numpy as np

    rng = np.random.default_rng(seed)
    pooling = rng.lognormal(0.0, 1.0, tables)
    pooling *= MEAN_POOLING / pooling.mean()
    tables = [
        {
            "name": f"t{index:04}",
            "rows": int(np.exp(rng.uniform(np.log(1000), np.log(MOST_ROWS)))),
            "dim": int(rng.choice([16, 32])),
            "pooling": float(pooling[index].round(3)),
            "access": {"zipf": round(rng.uniform(0.6, 1.3), 3)},
            "sharding": list(types),
        }
        for index in range(tables)
    ]
    return {
        "format": 1,
        "model": {"name": f"task-{seed}", "module": "ebc", "global_batch": 65_536},
        "cluster": {"device": "v100-16gb", "devices_per_host": DEVICES},
        "table": tables,
    }


def _time_costs() -> list[bool]:
    """Time to encode many tables with all their options, and to score candidates that change two devices each."""
    import numpy as np

    from shardc import pipeline
    from shardc.judge import Changes, Judge
    from shardc.passes.lower import histograms, lower
    from shardc.passes.profile import profile
    from shardc.spec import SHARDING_TYPES, parse_spec

    task = random_task(0, SHARDING_TYPES, MANY_TABLES)
    task["cluster"] = {"device": "cpu-epyc", "hosts": MANY_HOSTS, "devices_per_host": 8, "memory": "1 TB"}
    loaded = parse_spec(task)
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware)
    cost = profile(problem, hardware, loaded).cost
    accesses = [table.access for table in loaded.tables]
    rows = np.array([float(table.rows) for table in loaded.tables])
    lookups = np.array([table.pooling for table in loaded.tables]) * problem.global_batch

    def encode() -> None:
        histograms(accesses, rows, lookups)
        cost.encode(problem.shards)

    rng = np.random.default_rng(0)
    judge = Judge(problem, cost)
    whole = judge.latents[0, problem.first_unit[problem.first_option]]
    where = rng.integers(problem.cluster.devices, size=MANY_TABLES)
    z = np.zeros((problem.cluster.devices, whole.shape[1]))
    np.add.at(z, where, whole)
    changes = Changes.of(judge, z)
    tables = rng.integers(MANY_TABLES, size=CANDIDATES)
    to = where[tables] + rng.integers(1, len(z), size=CANDIDATES)
    devices = np.stack([where[tables], to % len(z)], axis=1)
    loads = z[devices] + whole[tables, None] * np.array([-1.0, 1.0])[:, None]
    shards = f"encode {MANY_TABLES:,} tables: {len(problem.shards):,} shards of {len(problem.option_type):,} options"
    scored = f"score {CANDIDATES:,} candidates that change 2 of {len(z)} devices"
    return [
        _time_call(shards, encode),
        _time_call(scored, lambda: changes.some_devices(devices, loads)),
    ]


def _time_call(title: str, call: Callable[[], object]) -> bool:
    """Median time of a call, held against its bar."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    fine = median(times) <= MOST_MS
    print(f"{title:<64} {median(times):6.1f} ms   bar {MOST_MS:.0f} ms   {'fine' if fine else 'MISSED'}")
    return fine


def _machine() -> str:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}, numpy {importlib.metadata.version('numpy')}"


def _time_command(arguments: tuple[str, ...], most_seconds: float, most_mb: float | None) -> bool:
    """Median time and peak memory of the whole process, held against its bars."""
    measured = [_run([sys.executable, "-m", "shardc", *arguments]) for _ in range(RUNS)]
    seconds, mb = median(s for s, _ in measured), max(mb for _, mb in measured)
    heavy = _heavy_imports(arguments)
    fine = seconds <= most_seconds and (most_mb is None or mb <= most_mb) and not heavy
    bars = f"bar {most_seconds:.1f} s" + (f", {most_mb:.0f} MB" if most_mb else "")
    notes = f"imports {', '.join(sorted(heavy))}" if heavy else "no heavy imports"
    command = "shardc " + " ".join(arguments)
    print(f"{command:<44} {seconds:6.3f} s {mb:6.0f} MB   {bars:<19} {'fine' if fine else 'MISSED'}, {notes}")
    return fine


def _run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return seconds, usage.ru_maxrss * scale / 1e6


def _heavy_imports(arguments: tuple[str, ...]) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "shardc", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return HEAVY & {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def _compare(title: str, choices: list[Choice]) -> None:
    """Step time of every strategy, and the bound, as ratios to the plan."""
    ratios: dict[str, list[float]] = defaultdict(list)
    wins: dict[str, int] = defaultdict(int)
    for choice in choices:
        step = choice.judgement.step_time_ms
        wins[choice.strategy] += 1
        for proposal, _ in choice.candidates:
            if not proposal.strategy.endswith("+search"):
                ratios[proposal.strategy].append(proposal.step_time_ms / step)
    times = [choice.judgement.step_time_ms for choice in choices]
    print(f"{title}: the plan takes {mean(times):.3f} ms ({', '.join(f'{w} {n}' for w, n in sorted(wins.items()))})")
    print(f"  {'strategy':<22} {'mean':>7} {'least':>7} {'most':>7}   step time, ratio to the plan")
    for strategy, values in ratios.items():
        placed = [value for value in values if value < inf]
        missing = f"   none in {len(values) - len(placed)}" if len(placed) < len(values) else ""
        print(f"  {strategy:<22} {_spread(placed)}{missing}")
    bounds = [c.bound.step_time_ms / c.judgement.step_time_ms for c in choices if c.bound]
    gaps = [100 * (1 / bound - 1) for bound in bounds]
    print(f"  {'lower bound':<22} {_spread(bounds)}   gap {mean(gaps):.2f} % (most {max(gaps):.2f} %)\n")


def _spread(values: list[float]) -> str:
    return f"{mean(values):7.3f} {min(values):7.3f} {max(values):7.3f}" if values else f"{'-':>7} {'-':>7} {'-':>7}"


if __name__ == "__main__":
    sys.exit(main())
