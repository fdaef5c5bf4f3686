"""How long `shardc diff` takes of two plans of 1,000 tables, as a whole process.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from shardc import pipeline
from shardc.bench import machine
from shardc.plan import plan_bytes
from shardc.spec import parse_spec

ROOT = Path(__file__).resolve().parents[2]
TABLES, RUNS = 1000, 9
MOST_SECONDS = 0.5


def main() -> int:
    """Print a table; 1 if a bar was missed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process would compile shardc anew
    print(machine(), end="\n\n")
    fine = []
    with tempfile.TemporaryDirectory() as folder:
        for devices in (16, 128):
            old, new = (Path(folder, f"{devices}-{seed}.plan.json") for seed in (0, 1))
            _compile(old, devices, seed=0)
            _compile(new, devices, seed=1)
            for form in ("text", "json", "markdown"):
                fine.append(_time(form, old, new, devices))
    return 0 if all(fine) else 1


def _compile(path: Path, devices: int, seed: int) -> None:
    """A plan of tables of all sizes; of another seed, so that most tables are elsewhere."""
    rng = np.random.default_rng(3)
    tables = [
        {
            "name": f"t{number:04}",
            "rows": int(np.exp(rng.uniform(np.log(1000), np.log(20_000_000)))),
            "dim": int(rng.choice([16, 32, 64, 128])),
            "pooling": round(float(rng.lognormal(1.5, 1.0)), 3),
        }
        for number in range(TABLES)
    ]
    spec = {
        "format": 1,
        "model": {"name": "large", "module": "ebc", "global_batch": 65_536},
        "cluster": {"device": "h100-80gb", "hosts": devices // 8, "devices_per_host": 8},
        "compile": {"seed": seed, "effort": "fast"},
        "table": tables,
    }
    path.write_bytes(plan_bytes(pipeline.run(parse_spec(spec)).plan))


def _time(form: str, old: Path, new: Path, devices: int) -> bool:
    """Median time of the whole process, held against the bar."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "shardc", "diff", old, new, "--format", form],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds.append(time.perf_counter() - start)
    fine = median(seconds) <= MOST_SECONDS
    size = (old.stat().st_size + new.stat().st_size) / 2**20
    print(
        f"diff --format {form:8} of {TABLES:,} tables on {devices:3} devices, {size:.2f} MiB in all"
        f"  {median(seconds):.3f} s   bar {MOST_SECONDS} s   {'fine' if fine else 'MISSED'}"
    )
    return fine


if __name__ == "__main__":
    sys.exit(main())
