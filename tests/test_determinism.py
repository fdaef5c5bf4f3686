"""One spec, profile, seed and version give the same bytes, whatever the process looks like."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardc

ROOT = Path(shardc.__file__).parents[1]
HEAD = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 16384
[cluster]
device = "a100-80gb"
hosts = 2
devices_per_host = 4
memory = "4GB"
[compile]
effort = "fast"
"""
COMPILE = """\
import sys
import shardc
from shardc.plan import plan_bytes
sys.stdout.buffer.write(plan_bytes(shardc.compile(sys.argv[1])))
"""


def tables() -> list[str]:
    rng = np.random.default_rng(4)
    found = []
    for index in range(60):
        extra = {0: 'group = "g"\n', 1: 'group = "g"\n', 2: 'apart = "a"\n', 3: 'apart = "a"\n', 4: "pin = [5, 1]\n"}
        found.append(
            f'[[table]]\nname = "t{index}"\nrows = {int(np.exp(rng.uniform(2, 15)))}\n'
            f"dim = {rng.choice([8, 16, 64, 128])}\npooling = {rng.uniform(0.1, 40):.3f}\n"
            f"access = {{ zipf = {rng.uniform(0, 1.5):.2f} }}\n" + extra.get(index, "")
        )
    return [*found, found[7].replace('"t7"', '"twin_of_t7"')]


def compiled(folder: Path, sections: list[str], **environment: str) -> bytes:
    spec = folder / "model.toml"
    spec.write_text(HEAD + "".join(sections))
    keep = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(spec)],
        env={**keep, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def first_difference(one: bytes, other: bytes) -> str:
    for number, (a, b) in enumerate(zip(one.splitlines(), other.splitlines(), strict=False), start=1):
        if a != b:
            return f"line {number}: {a.decode()} / {b.decode()}"
    return f"{len(one)} and {len(other)} bytes"


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> bytes:
    return compiled(tmp_path_factory.mktemp("first"), tables(), PYTHONHASHSEED="0", OPENBLAS_NUM_THREADS="1")


def threads(count: int) -> dict[str, str]:
    return {name: str(count) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


@pytest.mark.parametrize(
    ("order", "environment"),
    [
        ("as written", {"PYTHONHASHSEED": "12345", **threads(2)}),
        ("reversed", {"PYTHONHASHSEED": "0", **threads(1)}),
        ("shuffled", {"PYTHONHASHSEED": "7", **threads(2)}),
        ("as written", {"OPENBLAS_CORETYPE": "Nehalem"}),
        ("as written", {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "AVX512F"}),
    ],
)
def test_the_same_bytes_everywhere(tmp_path, plan, order, environment):
    sections = tables()
    if order == "reversed":
        sections.reverse()
    elif order == "shuffled":
        random.Random(3).shuffle(sections)
    again = compiled(tmp_path, sections, **environment)
    assert plan == again, f"{order}, {environment}: {first_difference(plan, again)}"


def test_the_folder_and_the_name_of_the_file_are_not_in_the_plan(plan):
    assert b"model.toml" not in plan
    assert str(Path.home()).encode() not in plan
    assert os.uname().nodename.encode() not in plan or len(os.uname().nodename) < 4


def test_another_seed_is_recorded(tmp_path):
    head, section = HEAD.replace('effort = "fast"', 'effort = "fast"\nseed = 9'), tables()[0]
    (tmp_path / "model.toml").write_text(head + section)
    plan = shardc.compile(tmp_path / "model.toml")
    assert plan.tool.seed == 9
    assert shardc.compile(tmp_path / "model.toml", seed=2).tool.seed == 2


def test_many_small_specs_in_other_surroundings(tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("determinism.py")), "--runs", "9", "--seed", "1"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 runs of 10 specs in 1 processes: the same bytes" in done.stdout
