"""Compiles the same specs in many processes that differ in all that should not matter: `make determinism`.

    python tests/determinism.py --runs 1000 --seed 0

A process differs from the others in its hash seed, locale, time zone, threads, processor features and folder, and lists
the tables of each spec in another order. Each compile of a spec is a run; the first plan that is another than the
reference's is named with its first difference. `--python` adds interpreters, such as those of other environments.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]


def specs() -> dict[str, tuple[str, list[str]]]:
    """Heads and tables of specs, by name: small ones of every kind, and some with tens and hundreds of tables."""
    from fuzz_cases import spec_document, toml_text
    from test_determinism import HEAD, tables

    found = {"sixty": (HEAD, tables())}
    many = [text.replace('name = "', f'name = "{copy}_') for copy in range(4) for text in tables()]
    found["hundreds"] = (HEAD.replace('memory = "4GB"', 'memory = "16GB"'), many)
    for number in range(8):
        document = spec_document(random.Random(number).choice)
        document["cluster"] = {"device": document["cluster"]["device"], "hosts": 2, "devices_per_host": 2}
        for index, table in enumerate(document["table"]):
            table["rows"] = min(table["rows"], 10**6) + index
            for name in ("pin", "apart", "group", "kernels", "cache_ratio"):
                table.pop(name, None)
        parts = [toml_text({"table": [table]}) for table in document.pop("table")]
        found[f"small-{number}"] = (toml_text(document), parts)
    return found


def compile_all(order: int, out: Path) -> None:
    """Compile every spec with its tables in some order, and write the plans."""
    from shardc.pipeline import compile
    from shardc.plan import plan_bytes

    shuffled = random.Random(order)
    for name, (head, tables) in specs().items():
        if name == "hundreds" and order % 8:  # takes as long as all others
            continue
        if order:
            shuffled.shuffle(tables)
        spec = out / f"{name}.toml"
        spec.write_text(head + "".join(tables), encoding="utf-8")
        (out / f"{name}.plan.json").write_bytes(plan_bytes(compile(spec)))


def surroundings(draw: random.Random) -> dict[str, str]:
    """What a process may find around it."""
    threads = draw.choice(["1", "2", "3", "8"])
    found = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    found["PYTHONHASHSEED"] = str(draw.randrange(2**32))
    locale = draw.choice(["C", "POSIX", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8", "ja_JP.eucJP", ""])
    found |= {"LC_ALL": locale, "LANG": locale, "TZ": draw.choice(["UTC", "Asia/Kolkata", "America/St_Johns", "x"])}
    found["PYTHONUTF8"] = draw.choice(["0", "1"])
    # A kernel that the processor lacks instructions for would end the process.
    cpus = Path("/proc/cpuinfo")
    vectors = "avx512f" in cpus.read_text() if cpus.exists() else False
    if kernel := draw.choice(["", "", "Nehalem", "Haswell", *(["SkylakeX"] if vectors else [])]):
        found["OPENBLAS_CORETYPE"] = kernel
    if draw.random() < 0.3:
        found["NPY_DISABLE_CPU_FEATURES"] = "AVX512F"
    return found


def run(python: str, order: int, out: Path, around: dict[str, str]) -> dict[str, bytes]:
    """Plans by spec that a process with these surroundings compiles.

    Raises:
        RuntimeError: the process failed.
    """
    out.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment = {**keep, "PYTHONPATH": os.pathsep.join(FOLDERS), **around}
    command = [python, __file__, "--order", str(order), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=out)
    if done.returncode:
        raise RuntimeError(f"{around}: {done.stderr.decode(errors='replace')}")
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.plan.json"))}


def main() -> int:
    """Run what the command line asks for; the exit code is 1 at the first difference."""
    parser = argparse.ArgumentParser(description="Compile specs in many surroundings.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", action="append", default=[], help="another interpreter that has shardc's packages")
    parser.add_argument("--order", type=int, help=argparse.SUPPRESS)
    parser.add_argument("out", type=Path, nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.order is not None:
        compile_all(given.order, given.out)
        return 0
    from test_determinism import first_difference

    pythons = [sys.executable, *given.python]
    runs = process = 0
    with tempfile.TemporaryDirectory(prefix="shardc-determinism-") as where:
        wanted = run(sys.executable, 0, Path(where) / "reference", {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})
        while runs < given.runs:
            process += 1
            draw = random.Random(f"{given.seed} {process}")
            around, python = surroundings(draw), pythons[process % len(pythons)]
            found = run(python, process, Path(where) / f"{process}-{draw.randrange(10**6)}", around)
            for name, plan in found.items():
                if plan != wanted[name]:
                    print(f"{name}: {first_difference(wanted[name], plan)}\nby {python} with {around}")
                    return 1
            runs += len(found)
            if process % 10 == 0:
                print(f"{runs} runs in {process} processes: all the same", file=sys.stderr, flush=True)
    print(f"{runs} runs of {len(wanted)} specs in {process} processes: the same bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
