"""`shardc profile` as a whole: two processes measure a campaign, one model comes out, and more can be added."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardc.diagnostics import DiagnosticError
from shardc.hardware import load_hardware
from shardc.measure.campaign import PARQUET, Share, read_campaign
from shardc.measure.design import FIRST_OWN, is_own
from shardc.measure.workload import Load, Timing, Workload
from shardc.profiling import MINIMUM_SETS, add_measurements, make_profile
from shardc.spec import Zipf

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs as many GPUs as processes")

ARGUMENTS = ("profile", "--name", "test", "--sets", str(MINIMUM_SETS), "-o")
STEADY = """
import math
import shardc.measure.campaign
shardc.measure.campaign._DISTURBED = math.inf
from shardc.cli import main
main()
"""
"""The command, for which nothing counts as disturbed: other tests run beside it."""


@pytest.fixture(autouse=True)
def steady(monkeypatch) -> None:
    """Count nothing as disturbed in this process either."""
    monkeypatch.setattr("shardc.measure.campaign._DISTURBED", math.inf)


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> Path:
    """A profile that two processes measured."""
    folder = tmp_path_factory.mktemp("profile") / "test"
    script = folder.with_name("steady_shardc.py")
    script.write_text(STEADY)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), *ARGUMENTS, str(folder)],
        check=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    return folder


@pytest.fixture
def folder(profiled, tmp_path) -> Path:
    return Path(shutil.copytree(profiled, tmp_path / "copy"))


def test_two_processes_share_a_campaign_and_one_profile_comes_out(profiled):
    shares = [{json.loads(line)["index"] for line in (profiled / Share(rank, 2).journal).open()} for rank in (0, 1)]
    assert all(len(share) >= MINIMUM_SETS // 2 for share in shares)
    assert shares[0] | shares[1] == set(range(MINIMUM_SETS))
    measured = load_hardware(str(profiled)).measured
    assert measured is not None
    assert measured.errors.test_sets + measured.sets + measured.disturbed >= MINIMUM_SETS - 5  # five are repeats
    assert [m.index for m in read_campaign(profiled)] == list(range(MINIMUM_SETS))


def test_a_finished_campaign_is_not_measured_again_and_its_fit_is_the_same(folder, monkeypatch):
    monkeypatch.setattr("shardc.profiling.disturbed_sets", lambda folder, sets: [])
    monkeypatch.setattr("shardc.measure.benchmark.Bench", None)  # nothing to measure with
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_profile(folder, name="test", sets=MINIMUM_SETS, seed=0, progress=silent)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before
    for journal in folder.glob("*.jsonl"):
        journal.unlink()
    # The Parquet file alone holds what is needed to go on.
    make_profile(folder, name="test", sets=MINIMUM_SETS, seed=0, progress=silent)
    assert (folder / "weights.safetensors").read_bytes() == before["weights.safetensors"]


def test_sets_of_a_plan_are_added(folder):
    own = Workload((Load(1000, 16, 2.0, Zipf(1.0)),), 128)
    before = len(read_campaign(folder))
    for count in (1, 2):
        document, used = add_measurements(folder, [(own, Timing(9, 1.0, 1.0, 0.0, 0.0, 0.6, 1.2))], progress=silent)
        added = [m for m in read_campaign(folder) if is_own(m.index)]
        assert [m.index for m in added] == [FIRST_OWN + i for i in range(count)]
        assert {m.workload for m in added} == {own}
        assert used == sum(not m.disturbed for m in added[-1:])
        assert len(read_campaign(folder)) == before + count
    assert document.name == "test"
    assert load_hardware(str(folder)).measured == document.measured


@pytest.mark.parametrize("missing", ["campaign.json", "measurements*"])
def test_sets_are_not_added_to_a_profile_without_its_campaign(folder, missing):
    for path in folder.glob(missing):
        path.unlink()
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    own = Workload((Load(1000, 16, 2.0, Zipf(1.0)),), 128)
    with pytest.raises(DiagnosticError, match="SH603"):
        add_measurements(folder, [(own, Timing(9, 1.0, 1.0, 0.0, 0.0, 0.6, 1.2))], progress=silent)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other columns"])
def test_a_damaged_parquet_file_is_named_and_the_profile_left_alone(folder, damage):
    import pyarrow
    import pyarrow.parquet

    path = folder / PARQUET
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        path.write_bytes(b"PAR1 but not really")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"index": [1, 2]}), path)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(DiagnosticError) as caught:
        make_profile(folder, name="test", sets=MINIMUM_SETS, seed=0, progress=silent)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.exit_code) == ("SH603", 2)
    assert str(path) in found.message
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_a_profile_that_cannot_be_read_is_made_again_from_its_measurements(folder, monkeypatch):
    monkeypatch.setattr("shardc.profiling.disturbed_sets", lambda folder, sets: [])
    before = (folder / "profile.json").read_bytes()
    (folder / "profile.json").write_bytes(before[:100])
    make_profile(folder, name="test", sets=MINIMUM_SETS, seed=0, progress=silent)
    assert (folder / "profile.json").read_bytes() == before


def test_measurements_of_an_unknown_campaign_are_not_taken_over(folder):
    (folder / "campaign.json").unlink()
    with pytest.raises(DiagnosticError, match=r"SH603.*campaign\.json is missing"):
        make_profile(folder, name="test", sets=MINIMUM_SETS, seed=5, progress=silent)


def test_another_campaign_is_not_mixed_in(folder):
    with pytest.raises(DiagnosticError, match=r"SH603.*seed 0"):
        make_profile(folder, name="test", sets=MINIMUM_SETS, seed=1, progress=silent)
