"""Processes that work in one place at the same time: nothing is corrupted, nobody waits for ever, and nobody lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardc.hardware import load_hardware
from shardc.plan import is_as_written, read_plan

TESTS = Path(__file__).parent
SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 2
[compile]
effort = "fast"
[defaults]
dim = 16
pooling = 2
"""
TABLES = "".join(f'[[table]]\nname = "t{number}"\nrows = {10 ** (number % 6 + 1)}\n' for number in range(20))
PATIENCE_S = 120


def start(*arguments: str, **options) -> subprocess.Popen:
    """Start Python with what the tests import."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS / "crash", TESTS / "measure")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


@pytest.mark.parametrize(
    ("command", "count"),
    [(("compile", "model.toml", "-q"), 2), (("compile", "model.toml", "-q"), 8), (("check", ".", "--update"), 2)],
)
def test_one_spec_in_many_processes_at_once(tmp_path, command, count):
    """Whoever reads the plan meanwhile reads the old one or the new one."""
    spec, plan = tmp_path / "model.toml", tmp_path / "model.plan.json"
    spec.write_text(SPEC + TABLES.replace("1000000", "2000000"))
    assert ended(start("-m", "shardc", "compile", "model.toml", "-q", cwd=tmp_path)) == (0, "")
    old = plan.read_bytes()
    spec.write_text(SPEC + TABLES)
    processes = [start("-m", "shardc", *command, cwd=tmp_path) for _ in range(count)]
    seen = {old}
    while any(process.poll() is None for process in processes):
        seen.add(plan.read_bytes())
        time.sleep(0.001)
    assert [code for code, _ in map(ended, processes)] == [0] * count
    new = plan.read_bytes()
    assert seen <= {old, new} and old != new
    assert is_as_written(new.decode())
    assert sorted(os.listdir(tmp_path)) == ["model.plan.json", "model.toml"]
    read_plan(plan)


# --- Profiles ---------------------------------------------------------------------------------------------------------

pytest.importorskip("torch")
pytest.importorskip("fbgemm_gpu", reason="FBGEMM is not installed")

# A process that forks those of a test, so that torch is imported once; each takes so long for a set of tables.
PROFILES = """\
import os, signal, sys, time
from pathlib import Path
import kills

kills.make_small()
quick, folder = kills._Bench.time, Path("here").resolve()
folder.mkdir()

def begin(name, seconds):
    def slow(self, workload, *, seed):
        time.sleep(seconds)
        return quick(self, workload, seed=seed)
    def before():
        kills._Bench.time = slow
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
    return kills._child(("profile", "-o", "profile", "--sets", "100"), folder, before)

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def until_it_measures():
    for _ in range(10_000):
        if (folder / "profile" / "measurements.jsonl").exists():
            return
        time.sleep(0.01)

"""


def profiling(folder: Path, script: str) -> tuple[list[int], dict[str, str]]:
    """Run some processes of a script; their exit codes, and what each said."""
    code, said = ended(start("-c", PROFILES + script, cwd=folder))
    assert code == 0, said
    here = folder / "here"
    return json.loads(said), {path.name: path.read_text() for path in here.iterdir() if path.is_file()}


def test_a_second_profile_into_a_folder_is_refused_and_may_go_on_once_the_first_is_gone(tmp_path):
    codes, said = profiling(
        tmp_path,
        """\
first = begin("first", 100)
until_it_measures()
refused = code(begin("second", 0))
os.kill(first, signal.SIGKILL)
print([code(first), refused, code(begin("third", 0))])
""",
    )
    assert codes == [-signal.SIGKILL, 2, 0]
    assert "SH004 cannot write to profile: another process is doing so" in said["second"]
    assert "wait until it has ended" in said["second"]
    assert (tmp_path / "here" / "profile" / "profile.json").exists()


def test_of_many_profiles_into_one_folder_one_is_made_and_loses_nothing(tmp_path):
    codes, said = profiling(tmp_path, "print([*map(code, [begin(str(number), 0.005) for number in range(4)])])")
    assert 0 in codes
    assert all(code == 0 or (code == 2 and "another process is" in said[str(n)]) for n, code in enumerate(codes))
    lines = (tmp_path / "here" / "profile" / "measurements.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(100))
    assert load_hardware(str(tmp_path / "here" / "profile")).measured is not None


# --- The cache of measurements ----------------------------------------------------------------------------------------

CACHE = """\
import os, sys, time
import numpy as np
import test_own
from shardc.measure import benchmark, own
from shardc.measure.workload import Timing

def measure(number):
    class Bench:
        def time(self, workload, *, seed):
            time.sleep(0.0005)
            return Timing(6, workload.tables[0].rows / 100, float(number), 0.0, 0.0, 2.0, 3.0)
    benchmark.Bench, benchmark.local_device = Bench, lambda: test_own.HERE
    rows = np.random.default_rng(number).permutation(200) + 1
    ms = own.measure_shards(test_own.shards(rows.tolist()), test_own.HARDWARE)
    assert (ms[:, 0] == 2 * rows / 100).all(), "another shard's time"
    assert set((ms[:, 1] / 3).round().tolist()) <= {1, 2, 3, 4}, "nobody's time"

children = []
for number in (1, 2, 3, 4):
    if not (pid := os.fork()):
        measure(number)
        os._exit(0)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
measure(9)  # finds everything that the others have written
"""


def test_a_cache_that_many_write_has_whole_entries_of_somebodys_measurements(tmp_path):
    code, said = ended(start("-c", CACHE, env={"SHARDC_CACHE": str(tmp_path / "cache")}))
    assert code == 0, said
    entries = sorted((tmp_path / "cache").rglob("*.json"))
    assert len(entries) == 200
    assert {round(json.loads(entry.read_bytes())[1] / 3) for entry in entries} <= {1, 2, 3, 4}
    assert not list((tmp_path / "cache").rglob(".*"))
