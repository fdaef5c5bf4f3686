"""Kills shardc with SIGKILL at random points, and fills its disk: `make kills`.

    python tests/crash/kills.py --kills 500 --full 200 --seed 0

Commands run in forked processes, in folders that have an older result. A kill comes after a random time, or in the
middle of a random file operation. What counts: a file is the old one or the new one, never a broken one; what had been
measured is kept; the same command run again completes, with the bytes that an uninterrupted run writes. A disk that is
full from some page or file on (a small tmpfs, where one can be mounted) or some byte on (a limit on the size of files)
is a diagnostic and exit code 2, and leaves the old files.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch._dynamo  # noqa: F401 (the forked processes would each import it)

import shardc.check.checks
import shardc.learn.fit_cost as fitting
import shardc.learn.train_policy as training
import shardc.measure.benchmark as benchmark
import shardc.profiling  # noqa: F401
from shardc import cli
from shardc.measure.campaign import JOURNALS
from shardc.measure.workload import Timing, Workload
from shardc.plan import read_plan

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
seed = {seed}
[defaults]
dim = 16
pooling = 2
[[table]]
name = "a"
rows = 1000
[[table]]
name = "b"
rows = {rows}
"""
_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.chmod"}


@dataclass(frozen=True)
class Scenario:
    """A command that writes files.

    Attributes:
        arguments: of the command line.
        prepare: makes the folder that it starts from.
        results: files that are the old ones or the new ones; an old one may be missing.
        sound: raises where what a kill left is broken.
    """

    arguments: tuple[str, ...]
    prepare: Callable[[Path], None]
    results: tuple[str, ...]
    sound: Callable[[Path], None] = lambda folder: None


class _Bench:
    """Measures nothing, and says at once what came out."""

    def time(self, workload: Workload, *, seed: int) -> Timing:
        work = 1.0 + workload.weight_bytes / 1e9 + len(workload.tables)
        return Timing(9, work, 1.5 * work, 0.01, 0.01, 0.6, 1.2)


def make_small() -> None:
    """Let training and profiling take a blink: what they compute does not matter here."""
    training._GROUPS, training._VALIDATION_GROUPS, training._TEST_GROUPS = 2, 1, 1
    training._CLUSTERS, training._MOST_TABLES, training._TOGETHER = ((4, 1),), 18, 1
    training._LARGER = ()
    training.lower_bound = functools.partial(training.lower_bound, patience=0)  # type: ignore[attr-defined]
    training.kinds = _few(training.kinds)  # type: ignore[assignment]
    benchmark.Bench = _Bench  # type: ignore[assignment,misc]
    fitting.fit_cost.__kwdefaults__["epochs"] = 1


def _few(kinds: Callable[[], dict[str, training.Kind]]) -> Callable[[], dict[str, training.Kind]]:
    from dataclasses import replace

    return lambda: {name: replace(kind, groups=1, rollouts=2) for name, kind in kinds().items()}


def _spec(folder: Path, rows: int = 2000) -> None:
    (folder / "model.toml").write_text(SPEC.format(seed=0, rows=rows))


def _with_old_plan(folder: Path) -> None:
    _spec(folder, 5_000_000)
    _quietly(("compile", "model.toml", "-q"), folder)
    _spec(folder)


def _plan_is_whole(folder: Path) -> None:
    read_plan(folder / "model.plan.json")


def _journal_is_whole(folder: Path) -> None:
    for journal in folder.glob("profile/" + JOURNALS):
        *whole, _ = journal.read_bytes().split(b"\n")
        for line in whole:
            json.loads(line)


SCENARIOS = {
    "compile": Scenario(("compile", "model.toml"), _with_old_plan, ("model.plan.json",), _plan_is_whole),
    "check --update": Scenario(
        ("check", "model.toml", "--update"), _with_old_plan, ("model.plan.json",), _plan_is_whole
    ),
    "train policy": Scenario(
        ("train", "policy", "-o", "p.safetensors", "--steps", "4", "--profile", "h100-80gb", "--force"),
        lambda folder: None,
        ("p.safetensors",),
    ),
    "profile": Scenario(
        ("profile", "-o", "profile", "--sets", "100"),
        lambda folder: None,
        ("profile/profile.json", "profile/weights.safetensors"),
        _journal_is_whole,
    ),
}
_ORDER = ["compile", "check --update", "profile", "compile", "check --update", "train policy", "compile", "profile"]


# --- Running commands -------------------------------------------------------------------------------------------------


def _child(arguments: tuple[str, ...], folder: Path, before: Callable[[], None]) -> int:
    """Fork a process that runs a command; its output goes to said.txt beside the folder."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.chdir(folder)
        said = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8") for fd in (1, 2))  # noqa: SIM115
        before()
        cli.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def _quietly(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """Run a command to its end; exit code and output."""
    _, status = os.waitpid(_child(arguments, folder, lambda: None), 0)
    return os.waitstatus_to_exitcode(status), Path(f"{folder}.txt").read_text(errors="replace")


def _kill_at_event(number: int) -> Callable[[], None]:
    """Let the process kill itself before its n-th change of a file, or in the middle of writing one."""

    def install() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event not in _FILE_EVENTS or (event == "open" and not _is_write(arguments)):
                return
            seen += 1
            if seen >= number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return install


def _is_write(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _full_from(size: int) -> Callable[[], None]:
    """Let no file grow beyond a size: what a full disk does, in one process alone."""

    def install() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return install


# --- Trials -----------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """A scenario's folder before its command, what the command writes, and how long it takes."""

    start: Path
    results: dict[str, bytes]
    seconds: float


def reference(scenario: Scenario, where: Path) -> Reference:
    """Run a scenario once, uninterrupted."""
    start, done = where / "start", where / "done"
    start.mkdir(parents=True)
    scenario.prepare(start)
    shutil.copytree(start, done)
    began = time.monotonic()
    code, said = _quietly(scenario.arguments, done)
    if code != 0:
        raise RuntimeError(f"{scenario.arguments}: exit code {code}\n{said}")
    return Reference(start, {name: (done / name).read_bytes() for name in scenario.results}, time.monotonic() - began)


def kill(scenario: Scenario, usual: Reference, folder: Path, draw: random.Random) -> tuple[int, list[str]]:
    """Kill a command up to three times in a row, and let it complete; return how often it died, and what is wrong."""
    shutil.copytree(usual.start, folder)
    wrong: list[str] = []
    kills = 0
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        lines = _lines(folder)
        by_event = draw.random() < 0.5
        pid = _child(scenario.arguments, folder, _kill_at_event(draw.randint(1, 30)) if by_event else lambda: None)
        if not by_event:
            time.sleep(draw.uniform(0, usual.seconds))
            os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        wrong += _faults(scenario, usual, folder)
        if missing := [line for line in lines if line not in _lines(folder)]:
            wrong.append(f"{len(missing)} measurements lost")
        for name, data in _old(scenario, usual).items():
            now = (folder / name).read_bytes() if (folder / name).exists() else None
            if now not in (data, usual.results[name]):
                wrong.append(f"{name} is neither the old nor the new one")
    code, said = _quietly(scenario.arguments, folder)
    if code != 0:
        wrong.append(f"the next run has exit code {code}: {said[-500:]}")
    wrong += [
        f"{name} is another after all"
        for name, data in usual.results.items()
        if not (folder / name).exists() or (folder / name).read_bytes() != data
    ]
    return kills, wrong


def fill(scenario: Scenario, usual: Reference, folder: Path, draw: random.Random) -> tuple[int, list[str]]:
    """Run a command on a disk that may get full, then on one with room; return if it was full, and what is wrong."""
    mounted = draw.random() < 0.5 and _mount(folder)
    shutil.copytree(usual.start, folder, dirs_exist_ok=True)
    try:
        return _fill(scenario, usual, folder, draw, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _fill(
    scenario: Scenario, usual: Reference, folder: Path, draw: random.Random, *, mounted: bool
) -> tuple[int, list[str]]:
    sizes = [len(data) for data in usual.results.values()]
    limited = _full_from(draw.choice([0, 1, 100, draw.randint(0, max(sizes))]))
    if mounted:
        disk = os.statvfs(folder)
        pages = disk.f_blocks - disk.f_bfree + draw.randint(0, sum(sizes) // disk.f_bsize + 2)
        # No limit at all is what a size of 0 means.
        _resize(folder, max(pages, 1) * disk.f_bsize, disk.f_files - disk.f_ffree + draw.choice([0, 1, 2, 100]))
    pid = _child(scenario.arguments, folder, (lambda: None) if mounted else limited)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = Path(f"{folder}.txt").read_text(errors="replace")
    wrong = _faults(scenario, usual, folder)
    if code not in (0, 2) or "Traceback" in said or "SH901" in said:
        wrong.append(f"exit code {code}: {said[-500:]}")
    if full := code == 2:
        wrong += [
            f"{name} is not the old one"
            for name, data in _old(scenario, usual).items()
            if ((folder / name).read_bytes() if (folder / name).exists() else None) not in (data, usual.results[name])
        ]
        if left := [path.name for path in folder.rglob("*.tmp")]:
            wrong.append(f"left over: {left}")
    if mounted:
        _resize(folder, 2**26, 1000)
    code, said = _quietly(scenario.arguments, folder)
    if code != 0 or any((folder / name).read_bytes() != data for name, data in usual.results.items()):
        wrong.append(f"the next run has exit code {code}, or other results: {said[-500:]}")
    return full, wrong


def _mount(folder: Path) -> bool:
    """Mount an empty tmpfs, if this process may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=1000", "shardc-kills", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _resize(folder: Path, size: int, files: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size},nr_inodes={files}", str(folder)], check=True)


def _old(scenario: Scenario, usual: Reference) -> dict[str, bytes | None]:
    return {
        name: (usual.start / name).read_bytes() if (usual.start / name).exists() else None for name in scenario.results
    }


def _faults(scenario: Scenario, usual: Reference, folder: Path) -> list[str]:
    try:
        scenario.sound(folder)
    except Exception as error:
        return [f"broken: {type(error).__name__}: {error}"]
    return []


def _lines(folder: Path) -> list[bytes]:
    """Whole lines of the journals of measurements."""
    return [
        line
        for journal in sorted(folder.glob("profile/" + JOURNALS))
        for line in journal.read_bytes().split(b"\n")[:-1]
    ]


def main() -> int:
    """Run what the command line asks for; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="Kill shardc, and fill its disk.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--full", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_small()
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    counts: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="shardc-kills-", dir=shared) as where:
        usual = {name: reference(each, Path(where) / f"of-{i}") for i, (name, each) in enumerate(SCENARIOS.items())}
        for trial, wanted in ((kill, given.kills), (fill, given.full)):
            done = number = 0
            while done < wanted:
                name, folder = _ORDER[number % len(_ORDER)], Path(where) / f"{trial.__name__}-{number}"
                draw = random.Random(f"{given.seed} {trial.__name__} {number}")
                times, wrong = trial(SCENARIOS[name], usual[name], folder, draw)
                done, number = done + times, number + 1
                counts[f"{trial.__name__} {name}"] += times
                for each in wrong:
                    failed += 1
                    print(f"{trial.__name__} {number - 1}, {name}: {each}", flush=True)
                shutil.rmtree(folder)
                if number % 20 == 0:
                    print(f"{trial.__name__}: {done} of {wanted}, {failed} wrong so far", file=sys.stderr, flush=True)
    print(", ".join(f"{count} × {name}" for name, count in counts.items()) + f": {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
