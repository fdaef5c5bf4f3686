"""Fuzzes shardc for as long as it is told to: `make fuzz`.

    python tests/fuzz/fuzz.py --specs 100000 --plans 20000 --seed 0

Cases are made in batches, each of which the seed, the kind and the batch's number decide. How far it is stands in
progress.json in the folder of findings: killed, the same command goes on with the next batch. A case that breaks an
invariant is written there as a folder: its files, the command that was run in it, and what was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from fuzz_cases import KINDS, Case
from fuzz_run import Outcome, quick_commands, run_case
from hypothesis import HealthCheck, Phase, given, seed, settings

BATCH = 500
_KEPT = 200
"""Findings that are written at most."""


def main() -> int:
    """Run what the command line asks for; the exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Fuzz shardc.")
    parser.add_argument("--specs", type=int, default=100_000, help="a tenth of them valid")
    others = {"plans": 20_000, "profiles": 2_000, "campaigns": 5_000, "index-files": 5_000, "arguments": 10_000}
    for name, default in others.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder of findings and progress")
    given = parser.parse_args()
    wanted = {
        "plans": given.plans,
        "valid-specs": given.specs // 10,
        "broken-specs": given.specs - given.specs // 10,
        "profiles": given.profiles,
        "campaigns": given.campaigns,
        "index-files": given.index_files,
        "arguments": given.arguments,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    log = _Log(given.out, given.seed)
    with quick_commands():
        for kind, count in wanted.items():
            while (left := count - log.done(kind)) > 0:
                _batch(kind, min(BATCH, left), log)
    found = sum(log.wrong.values())
    print(f"{sum(map(log.done, wanted)):,} cases, {found} of them wrong" + (f": see {given.out}" if found else ""))
    return 1 if found else 0


class _Log:
    """What has been run, kept on disk."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.seed = folder, number
        self.path = folder / f"progress-{number}.json"
        document = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.batches: Counter[str] = Counter(document.get("batches", {}))
        self.counts: dict[str, Counter[str]] = {
            kind: Counter(counts) for kind, counts in document.get("counts", {}).items()
        }
        self.wrong: Counter[str] = Counter(document.get("wrong", {}))

    def done(self, kind: str) -> int:
        """Cases of a kind that were run."""
        return self.counts.get(kind, Counter())["cases"]

    def finish(self, kind: str, counts: Counter[str], wrong: Counter[str]) -> None:
        """Write a batch down."""
        self.batches[kind] += 1
        self.counts.setdefault(kind, Counter()).update(counts)
        self.wrong.update(wrong)
        document = {"batches": self.batches, "counts": self.counts, "wrong": self.wrong}
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(document, indent=1, sort_keys=True))
        os.replace(beside, self.path)

    def keep(self, kind: str, number: int, case: Case, outcome: Outcome) -> None:
        """Write a case down that something is wrong with."""
        folder = self.folder / f"{kind}-{self.seed}-{self.batches[kind]}-{number}"
        if len(list(self.folder.iterdir())) > _KEPT:
            return
        for name, data in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        folder.mkdir(exist_ok=True)
        (folder / "command.txt").write_text(shlex.join(case.arguments) + "\n", errors="backslashreplace")
        (folder / "wrong.txt").write_text("\n".join([*outcome.wrong, "", outcome.text]), errors="backslashreplace")


def _batch(kind: str, size: int, log: _Log) -> None:
    """Run some cases of a kind, and say how they fared."""
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    torchrec = importlib.util.find_spec("torchrec") is not None
    number = int.from_bytes(hashlib.sha256(f"{log.seed} {kind} {log.batches[kind]}".encode()).digest()[:8])
    start = time.monotonic()

    @seed(number)
    @settings(
        max_examples=size,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def run(case: Case) -> None:
        outcome = run_case(case, torchrec=torchrec)
        counts["cases"] += 1
        counts[f"exit {outcome.code}"] += 1
        counts["plans emitted"] += outcome.emitted
        if outcome.wrong:
            wrong.update(each.partition(":")[0] for each in outcome.wrong)
            log.keep(kind, counts["cases"], case, outcome)

    run()
    log.finish(kind, counts, wrong)
    total, rate = log.counts[kind], counts["cases"] / (time.monotonic() - start)
    exits = ", ".join(f"{name} {total[name]:,}" for name in sorted(total) if name.startswith("exit"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    emitted = total["plans emitted"]
    print(
        f"{kind} {total['cases']:,}: {exits}; {emitted:,} plans verified; {rate:.0f}/s, {memory} MiB;"
        f" {sum(log.wrong.values())} wrong in all",
        file=sys.stderr,
        flush=True,
    )
    for reason, times in wrong.items():
        print(f"  {times} × {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
