"""How long checks of committed plans take, whole processes. Exit code 1 when a bar is missed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SPECS, TABLES, RUNS = 50, 100, 7
MOST_SECONDS = {"one spec": 0.3, "a folder": 2.0}
HEAD = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 65536
[cluster]
device = "h100-80gb"
devices_per_host = 8
[compile]
effort = "fast"
[defaults]
dim = 64
"""


def main() -> int:
    """Print both times; 1 if a bar was missed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process would compile shardc anew
    with tempfile.TemporaryDirectory() as folder:
        for number in range(SPECS):
            tables = (
                f'[[table]]\nname = "t{index:03}"\nrows = {1000 + 7919 * index * (number + 1)}\n'
                f"pooling = {1 + (index * number) % 17}\naccess = {{ zipf = 1.05 }}\n"
                for index in range(TABLES)
            )
            (Path(folder) / f"m{number:02}.toml").write_text(HEAD + "".join(tables))
        _run("check", "--update", "-q", folder)
        fine = [_time(what, path) for what, path in (("one spec", f"{folder}/m00.toml"), ("a folder", folder))]
    return 0 if all(fine) else 1


def _time(what: str, path: str) -> bool:
    seconds = median(_run("check", "--frozen", "-q", path) for _ in range(RUNS))
    most = MOST_SECONDS[what]
    verdict = "fine" if seconds <= most else "MISSED"
    print(f"shardc check --frozen, {what:<8} {seconds:6.3f} s   bar {most:.1f} s   {verdict}")
    return seconds <= most


def _run(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "shardc", *arguments], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
