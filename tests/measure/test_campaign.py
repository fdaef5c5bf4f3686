import dataclasses
import json

import pytest

from shardc.diagnostics import DiagnosticError
from shardc.measure.campaign import (
    CPU_RANGE,
    CUDA_RANGE,
    JOURNAL,
    REPEAT_EVERY,
    Measurement,
    draw_workload,
    is_repeat,
    read_journal,
    run_campaign,
)
from shardc.measure.workload import Timing, Workload
from shardc.spec import Bins, Zipf


class FakeBench:
    """Answers at once; a workload that it is told to refuse does not fit in memory."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.seen: list[int] = []

    def time(self, workload: Workload, *, seed: int, runs: int = 12) -> Timing:
        self.seen.append(seed)
        if seed in self.refused:
            raise MemoryError
        return Timing(0.1 * seed, len(workload.tables) / 3, 0.01, 0.02, 1.5, 2.5)


def run(folder, sets, bench=None, seed=0):
    bench = bench or FakeBench()
    return list(run_campaign(folder, bench, CPU_RANGE, seed=seed, sets=sets)), bench


def test_what_is_read_is_what_was_measured(tmp_path):
    results, bench = run(tmp_path, 25)
    assert bench.seen == list(range(25))
    assert read_journal(tmp_path) == results
    assert all(isinstance(result, Measurement) for result in results)
    kinds = {type(table.access) for result in results for table in result.workload.tables}
    assert kinds == {Zipf, Bins}


def test_a_set_depends_only_on_the_seed_and_its_number(tmp_path):
    run(tmp_path, 30)
    for measurement in read_journal(tmp_path):
        assert measurement.workload == draw_workload(0, measurement.index, CPU_RANGE)
    assert draw_workload(0, 3, CPU_RANGE) != draw_workload(1, 3, CPU_RANGE)
    assert draw_workload(0, 3, CPU_RANGE) != draw_workload(0, 4, CPU_RANGE)


@pytest.mark.parametrize("sizes", [CPU_RANGE, CUDA_RANGE], ids=["cpu", "cuda"])
def test_every_set_is_within_the_range(sizes):
    for index in range(60):
        workload = draw_workload(7, index, sizes)
        assert 1 <= len(workload.tables) <= sizes.tables
        assert sizes.batch[0] <= workload.batch <= sizes.batch[1]
        assert all(1 <= t.rows <= sizes.rows and t.dim % 4 == 0 for t in workload.tables)
        assert sum(t.pooling for t in workload.tables) * workload.batch <= sizes.lookups
        assert workload.weight_bytes <= sizes.weight_bytes


def test_repeats_measure_a_set_again_that_is_trained_on():
    repeats = [index for index in range(10 * REPEAT_EVERY) if is_repeat(index)]
    assert len(repeats) == 10
    for index in repeats:
        twins = [
            other for other in range(index) if draw_workload(2, other, CPU_RANGE) == draw_workload(2, index, CPU_RANGE)
        ]
        assert len(twins) == 1
        assert not is_repeat(twins[0])


def test_an_interrupted_campaign_goes_on_where_it_stopped(tmp_path):
    interrupted = run_campaign(tmp_path, FakeBench(), CPU_RANGE, seed=0, sets=10)
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
    assert [m.index for m in read_journal(tmp_path)] == [0, 1]
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
    for reading in (lambda: read_journal(tmp_path), lambda: run(tmp_path, 5)):
        with pytest.raises(DiagnosticError) as caught:
            reading()
        (found,) = caught.value.diagnostics
        assert (found.code, caught.value.exit_code) == ("SH603", 2)
        assert f"{JOURNAL}:2:" in found.message
    assert journal.read_bytes() == before


def test_what_does_not_fit_is_skipped_once_and_said(tmp_path):
    results, _ = run(tmp_path, 4, FakeBench(refused=(2,)))
    assert [isinstance(result, str) for result in results] == [False, False, True, False]
    assert "set 2 skipped" in results[2]
    assert [m.index for m in read_journal(tmp_path)] == [0, 1, 3]
    assert run(tmp_path, 4)[1].seen == []


def test_each_measurement_is_on_disk_before_the_next_begins(tmp_path):
    for done, _ in enumerate(run_campaign(tmp_path, FakeBench(), CPU_RANGE, seed=0, sets=3), start=1):
        assert len(read_journal(tmp_path)) == done


def test_bins_of_a_wrong_length_are_refused(tmp_path):
    run(tmp_path, 1)
    entry = json.loads((tmp_path / JOURNAL).read_text())
    entry["tables"] = [{"rows": 5, "dim": 4, "pooling": 1.0, "bins": [0.5, 0.5]}]
    (tmp_path / JOURNAL).write_text(json.dumps(entry) + "\n")
    with pytest.raises(DiagnosticError, match="SH603"):
        read_journal(tmp_path)


def test_an_empty_folder_holds_no_measurements(tmp_path):
    assert read_journal(tmp_path) == []


def test_weight_bytes_count_the_dtype():
    workload = draw_workload(0, 0, CPU_RANGE)
    full, half = (dataclasses.replace(workload, weights=weights).weight_bytes for weights in ("fp32", "fp16"))
    assert full == 2 * half == 4 * sum(t.rows * t.dim for t in workload.tables)
