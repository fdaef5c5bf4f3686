import json
import os
import signal
import subprocess
import sys
import time

import pytest

from shardc.diagnostics import DiagnosticError
from shardc.measure.campaign import (
    RETRIES,
    Measurement,
    Share,
    disturbed_sets,
    missing_sets,
    read_campaign,
    run_campaign,
)
from shardc.measure.design import CPU_RANGE, draw_workload
from shardc.measure.workload import Timing, Workload
from shardc.spec import Bins, Zipf

JOURNAL = Share().journal


class FakeBench:
    """Answers at once; a workload that it is told to refuse does not fit in memory."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.seen: list[int] = []

    def time(self, workload: Workload, *, seed: int) -> Timing:
        self.seen.append(seed)
        if seed in self.refused:
            raise MemoryError("5 MiB do not fit in the 4 MiB that are free")
        return Timing(9, 0.1 + seed, len(workload.tables) / 3, 0.01, 0.02, 1.5, 2.5)


def run(folder, sets, bench=None, seed=0):
    bench = bench or FakeBench()
    missing = missing_sets(folder, sets)
    return list(run_campaign(folder, bench, CPU_RANGE, seed=seed, numbers=missing)), bench


def test_what_is_read_is_what_was_measured(tmp_path):
    results, bench = run(tmp_path, 25)
    assert bench.seen == list(range(25))
    assert read_campaign(tmp_path) == results
    assert all(isinstance(result, Measurement) for result in results)
    kinds = {type(table.access) for result in results for table in result.workload.tables}
    assert kinds == {Zipf, Bins}


def test_sets_are_those_of_the_design(tmp_path):
    run(tmp_path, 30)
    for measurement in read_campaign(tmp_path):
        assert measurement.workload == draw_workload(0, measurement.index, CPU_RANGE)


def test_processes_share_a_campaign_and_another_number_of_them_finishes_it(tmp_path):
    missing = missing_sets(tmp_path, 20)
    for rank in range(3):
        share = Share(rank, 3)
        for result in list(run_campaign(tmp_path, FakeBench(), CPU_RANGE, seed=0, numbers=missing[:12], share=share)):
            assert result.index % 3 == rank
    assert sorted(path.name for path in tmp_path.iterdir()) == [Share(rank, 3).journal for rank in (1, 2, 0)]
    assert missing_sets(tmp_path, 20) == list(range(12, 20))
    _, bench = run(tmp_path, 20)
    assert bench.seen == list(range(12, 20))
    assert [m.index for m in read_campaign(tmp_path)] == list(range(20))


_KILLED = """
import sys
from pathlib import Path
from shardc.measure.campaign import missing_sets, run_campaign
from shardc.measure.design import CPU_RANGE
from tests.measure.test_campaign import FakeBench
folder = Path(sys.argv[1])
for result in run_campaign(folder, FakeBench(), CPU_RANGE, seed=0, numbers=missing_sets(folder, 10**6)):
    print(result.index, flush=True)
"""


def test_a_killed_campaign_loses_at_most_the_set_in_flight(tmp_path):
    said: list[int] = []
    for number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd(), text=True
        )
        assert process.stdout is not None
        said.append(int(process.stdout.readline()))  # it runs
        time.sleep(0.05 * number)
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
        kept = [m.index for m in read_campaign(tmp_path)]
        assert kept == list(range(len(kept)))
        assert said == list(range(len(said)))
        assert 0 <= len(kept) - len(said) <= number + 1  # written down before it is said
        said = list(kept)


def test_an_interrupted_campaign_goes_on_where_it_stopped(tmp_path):
    interrupted = run_campaign(tmp_path, FakeBench(), CPU_RANGE, seed=0, numbers=range(10))
    for _ in range(4):
        next(interrupted)
    interrupted.close()
    results, bench = run(tmp_path, 10)
    assert bench.seen == [4, 5, 6, 7, 8, 9]
    assert [result.index for result in results] == [4, 5, 6, 7, 8, 9]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, 10)
    assert (whole / JOURNAL).read_bytes() == (tmp_path / JOURNAL).read_bytes()


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_torn_last_line_is_measured_again(tmp_path, kept):
    run(tmp_path, 3)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    assert [m.index for m in read_campaign(tmp_path)] == [0, 1]
    _, bench = run(tmp_path, 3)
    assert bench.seen == [2]
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff\xfe", b"nonsense"])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_overwritten(tmp_path, damage):
    run(tmp_path, 3)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines()
    lines[1] = damage
    journal.write_bytes(b"\n".join(lines) + b"\n")
    before = journal.read_bytes()
    for reading in (lambda: read_campaign(tmp_path), lambda: run(tmp_path, 5)):
        with pytest.raises(DiagnosticError) as caught:
            reading()
        (found,) = caught.value.diagnostics
        assert (found.code, caught.value.exit_code) == ("SH603", 2)
        assert f"{JOURNAL}:2:" in found.message
    assert journal.read_bytes() == before


def test_what_does_not_fit_is_skipped_and_said_and_tried_when_there_may_be_room(tmp_path):
    results, _ = run(tmp_path, 4, FakeBench(refused=(2,)))
    assert [isinstance(result, str) for result in results] == [False, False, True, False]
    assert results[2] == "set 2 skipped: 5 MiB do not fit in the 4 MiB that are free"
    assert [m.index for m in read_campaign(tmp_path)] == [0, 1, 3]
    assert run(tmp_path, 4)[1].seen == [2]
    assert run(tmp_path, 4)[1].seen == []


@pytest.mark.parametrize(
    "damage",
    [
        {"forward_ratio": -1.0},
        {"backward_ratio": float("nan")},
        {"reference_forward_ms": None},
        {"forward_ratio": "fast"},
        {"batch": 0},
        {"optimizer": "magic"},
        {"tables": []},
        {"index": -1},
        {"reference_backward_ms": -1.0},
        {"tables": [{"rows": 5, "dim": 4, "pooling": 1.0, "zipf": "steep"}]},
        {"tables": [{"rows": 5.5, "dim": 4, "pooling": 1.0, "zipf": 1.0}]},
        {"tables": [{"rows": 5, "dim": 4, "pooling": 1.0, "bins": [0] * 17}]},
    ],
)
def test_what_nobody_can_have_measured_is_named_with_its_line(tmp_path, damage):
    run(tmp_path, 3)
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | damage)
    (tmp_path / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DiagnosticError, match=rf"SH603 {tmp_path / JOURNAL}:2"):
        read_campaign(tmp_path)


def test_each_measurement_is_on_disk_before_the_next_begins(tmp_path):
    running = run_campaign(tmp_path, FakeBench(), CPU_RANGE, seed=0, numbers=range(3))
    for done, _ in enumerate(running, start=1):
        assert len(read_campaign(tmp_path)) == done


def test_bins_of_a_wrong_length_are_refused(tmp_path):
    run(tmp_path, 1)
    entry = json.loads((tmp_path / JOURNAL).read_text())
    entry["tables"] = [{"rows": 5, "dim": 4, "pooling": 1.0, "bins": [0.5, 0.5]}]
    (tmp_path / JOURNAL).write_text(json.dumps(entry) + "\n")
    with pytest.raises(DiagnosticError, match="SH603"):
        read_campaign(tmp_path)


def test_an_empty_folder_holds_no_measurements(tmp_path):
    assert read_campaign(tmp_path) == []


class DisturbedBench(FakeBench):
    """A machine that something else slows down while it measures certain sets."""

    def __init__(self, slow: dict[int, float]) -> None:
        super().__init__()
        self.slow = slow

    def time(self, workload: Workload, *, seed: int) -> Timing:
        factor = self.slow.get(seed, 1.0)
        return Timing(9, factor, factor, 0.01, 0.02, 1.5 * factor, 2.5 * factor)


def test_disturbed_sets_are_measured_again_and_the_least_disturbed_counts(tmp_path):
    def measure(numbers, slow):
        list(run_campaign(tmp_path, DisturbedBench(slow), CPU_RANGE, seed=0, numbers=numbers))
        return disturbed_sets(tmp_path, 40)

    assert measure(range(40), {3: 1.5, 7: 1.05, 9: 1.3}) == [3, 9]  # as drift of 5 % divides out, it is no disturbance
    assert measure([3, 9], {3: 1.2}) == [3]
    assert disturbed_sets(tmp_path, 3) == []
    assert measure([3], {3: 2.0}) == []  # after so many tries
    assert RETRIES == 2
    kept = {m.index: m.timing.forward_ratio for m in read_campaign(tmp_path)}
    assert (kept[3], kept[7], kept[9]) == (1.2, 1.05, 1.0)
    assert missing_sets(tmp_path, 40) == []
