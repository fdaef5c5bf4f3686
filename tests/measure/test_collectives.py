"""Real collectives: two processes with gloo, as torchrun would start them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fbgemm_gpu")

import torch

from shardc.diagnostics import DiagnosticError
from shardc.hardware import PROFILES, load_hardware
from shardc.measure.benchmark import local_device
from shardc.measure.collectives import measure_collectives
from shardc.problem import Collective
from shardc.profile_folder import MeasuredCollectives, read_profile

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="two ranks on one GPU, which NCCL refuses")

# Importing torch and FBGEMM takes longer than all that is tested here: once, then every rank is a fork.
PROGRAM = """
import json, os, socket, sys
from pathlib import Path
from shardc.diagnostics import DiagnosticError
from shardc.measure import collectives

def dies(*_):
    os._exit(9)

def lacks(*_):
    raise RuntimeError("no such thing")

def run(rank, scenario):
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": scenario["per_host"], "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    if rank == scenario["dies"]:
        collectives._time_ms = dies
    if lacking := scenario["lacks"]:
        calls = collectives._calls
        collectives._calls = lambda *a: calls(*a) | {collectives.Collective(lacking): lacks}
    folder = Path(scenario["folder"])
    try:
        found = collectives.measure_collectives(folder, progress=lambda *_: None, sizes=6, runs=3)
        code, words = 0, found.model_dump_json() if found else ""
    except DiagnosticError as error:
        (finding,) = error.diagnostics
        code, words = error.exit_code, f"{error} {finding.help}"
    except SystemExit as exit:
        code, words = exit.code, ""
    (folder.parent / f"{folder.name}.{rank}").write_text(words)
    os._exit(code)

for scenario in json.loads(sys.argv[1]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if not (child := os.fork()):
            run(rank, scenario)
        children.append(child)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a profile folder that two ranks measured for: exit codes, what each had to say, files before."""

    folder: Path
    codes: tuple[int, ...]
    words: tuple[str, ...]
    before: dict[str, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def profile_of(device: str, folder: Path) -> None:
    document = json.loads((PROFILES / "cpu-epyc" / "profile.json").read_text())
    document["measured"]["device"] = device
    for member in ("network_latency_ms", "intra_host", "inter_host"):
        document.pop(member, None)
    (folder / "profile.json").write_text(json.dumps(document))
    shutil.copy(PROFILES / "cpu-epyc" / "weights.safetensors", folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    usual = {"per_host": 2, "dies": None, "lacks": None}
    scenarios = {
        "one host": {},
        "two hosts": {"per_host": 1},
        "lacking": {"lacks": "reduce_scatter"},
        "first dies": {"dies": 0},
        "second dies": {"dies": 1},
        "no profile": {},
        "another device": {},
    }
    base = tmp_path_factory.mktemp("collectives")
    for name, changes in scenarios.items():
        folder = base / name
        folder.mkdir()
        if name != "no profile":
            profile_of("Cray-1" if name == "another device" else local_device().name, folder)
        scenarios[name] = usual | changes | {"folder": str(folder)}
    before = {name: contents(base / name) for name in scenarios}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(scenarios.values()))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun sets it
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    codes = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    found = {}
    for (name, scenario), pair in zip(scenarios.items(), codes, strict=True):
        said = [Path(f"{scenario['folder']}.{rank}") for rank in range(2)]
        words = tuple(path.read_text() if path.exists() else "" for path in said)
        found[name] = Outcome(base / name, pair, words, before[name])
    return found


@pytest.mark.parametrize(("hosts", "between"), [(1, "intra_host"), (2, "inter_host")])
def test_two_ranks_measure_the_links_between_them(outcomes, hosts, between):
    outcome = outcomes["one host" if hosts == 1 else "two hosts"]
    assert (outcome.codes, outcome.words[1]) == ((0, 0), "")
    found = MeasuredCollectives.model_validate_json(outcome.words[0])
    document, hardware = read_profile(outcome.folder), load_hardware(str(outcome.folder))
    assert getattr(document, between) == found
    assert document.communication == "measured"
    assert (found.world_size, found.hosts, found.backend) == (2, hosts, "gloo")
    assert set(found.fits) == set(getattr(hardware, between)) == set(Collective)
    # Between two processes of one machine: more than 10 MB/s, less than memory has.
    assert all(1e7 < fit.bandwidth < 1e12 and fit.latency_ms < 100 for fit in found.fits.values())


def test_every_single_time_is_kept(outcomes):
    raw = json.loads((outcomes["one host"].folder / "collectives_intra_host.json").read_text())
    assert (raw["world_size"], raw["hosts"], raw["backend"]) == (2, 1, "gloo")
    points = {(point["collective"], point["bytes"]): point["ms"] for point in raw["points"]}
    assert {collective for collective, _ in points} == set(Collective)
    assert len(points) == 4 * 6
    assert all(len(ms) == 3 and min(ms) > 0 for ms in points.values())
    sizes = sorted({size for _, size in points})
    fewest, most = ([np.median(ms) for (_, of), ms in points.items() if of == size] for size in (sizes[0], sizes[-1]))
    assert sum(most) > sum(fewest)  # 16 MiB take longer than 4 KiB


def test_a_collective_that_the_backend_lacks_is_left_out(outcomes):
    outcome = outcomes["lacking"]
    assert outcome.codes == (0, 0)
    found = MeasuredCollectives.model_validate_json(outcome.words[0])
    assert set(found.fits) == set(Collective) - {Collective.REDUCE_SCATTER}


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_takes_the_other_with_it_and_nothing_is_written(outcomes, dead):
    outcome = outcomes["second dies" if dead else "first dies"]
    assert (outcome.codes[dead], outcome.codes[1 - dead]) == (9, 2)
    assert f"SH506 rank {1 - dead}: " in outcome.words[1 - dead]
    assert contents(outcome.folder) == outcome.before


@pytest.mark.parametrize(
    ("name", "expected"),
    [("no profile", "SH001 there is no profile in {0} first: shardc profile -o {0}"), ("another device", "Cray-1")],
)
def test_the_first_rank_says_for_all_what_is_wrong_with_the_folder(outcomes, name, expected):
    outcome = outcomes[name]
    assert outcome.codes == (2, 2)
    assert expected.format(outcome.folder) in outcome.words[0]
    assert outcome.words[1] == ""
    assert contents(outcome.folder) == outcome.before


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}])
def test_one_process_alone_is_told_how_to_start_several(tmp_path, environment, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DiagnosticError) as caught:
        measure_collectives(tmp_path, progress=lambda *_: None)
    (finding,) = caught.value.diagnostics
    assert (finding.code, caught.value.exit_code) == ("SH902", 2)
    assert finding.help == f"torchrun --nproc-per-node 2 -m shardc profile --collectives -o {tmp_path}"
