import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from shardc.cost.roofline import Roofline
from shardc.hardware import Hardware
from shardc.measure import benchmark
from shardc.measure.plan import device_operators, measure_devices
from shardc.measure.workload import Timing, Workload
from shardc.passes.lower import lower
from shardc.problem import Placement, Problem, ShardingType
from shardc.profile_folder import Measured
from shardc.spec import parse_spec

HARDWARE = Hardware(
    "cpu-here",
    "cpu",
    "some processor",
    2**34,
    1e10,
    1e9,
    0.1,
    0.0,
    {},
    {},
    None,
    lambda *_: Roofline(1e10, 1e6),
    "sha256:0",
    Measured.model_construct(reference_ms=(2.0, 3.0)),
)
TABLES = [
    {"name": "twin_a", "rows": 1000},
    {"name": "twin_b", "rows": 1000},
    {"name": "wide", "rows": 500, "dim": 32},
    {"name": "tall", "rows": 4001},
    {"name": "tiny", "rows": 7},
    {"name": "shared", "rows": 300, "pooling": 4, "features": ["x", "y"]},
]


def problem(tables: Sequence[dict[str, object]] = TABLES, devices: int = 3) -> Problem:
    loaded = parse_spec(
        {
            "format": 1,
            "model": {"name": "m", "module": "ebc", "global_batch": 96},
            "cluster": {"device": "cpu-here", "devices_per_host": devices},
            "defaults": {"dim": 16, "pooling": 2, "access": "uniform"},
            "table": tables,
        }
    )
    return lower(loaded, [HARDWARE])


def placed(of: Problem, **where: tuple[str, Sequence[int]]) -> Placement:
    """Every table as its sharding type and the places of its units."""
    options, places = [], []
    for block, (index,) in enumerate(of.blocks):
        type, on = where[of.tables[index].name]
        same = (o for o in of.options_of(block) if of.option_type[o] == type and of.option_units[o] == len(on))
        options.append(next(same))
        places.append(tuple(on))
    return Placement(tuple(options), tuple(places))


@pytest.fixture(scope="module")
def whole() -> Problem:
    return problem()


@pytest.fixture(scope="module")
def mixed(whole) -> Placement:
    return placed(
        whole,
        twin_a=(ShardingType.TABLE_WISE, [0]),
        twin_b=(ShardingType.TABLE_WISE, [1]),
        wide=(ShardingType.COLUMN_WISE, [0, 2]),
        tall=(ShardingType.ROW_WISE, [0]),
        tiny=(ShardingType.DATA_PARALLEL, [0]),
        shared=(ShardingType.TABLE_WISE, [0]),
    )


class FakeBench:
    """Answers at once: a thousandth of the rows forward, a hundredth backward, by the profile's own clock."""

    seen: ClassVar[list[Workload]] = []
    slow: ClassVar[list[float]] = []

    def time(self, workload: Workload, *, seed: int) -> Timing:
        self.seen.append(workload)
        if any(table.rows == 500 for table in workload.tables):
            raise MemoryError
        rows = sum(table.rows for table in workload.tables)
        slower = self.slow.pop(0) if self.slow else 1.0
        return Timing(6, slower * rows / 1000, slower * rows / 100, 0.0, 0.0, 2.0 * slower, 3.0 * slower)


@pytest.fixture
def seen(monkeypatch) -> list[Workload]:
    monkeypatch.setattr(FakeBench, "seen", [])
    monkeypatch.setattr(FakeBench, "slow", [])
    monkeypatch.setattr(benchmark, "Bench", FakeBench)
    return FakeBench.seen


def test_devices_hold_the_shards_of_their_units_and_of_spread_options(whole, mixed):
    held = whole.held(mixed)
    tables = [{whole.tables[whole.shard_table[s]].name for s in np.flatnonzero(device)} for device in held]
    assert tables == [
        {"twin_a", "wide", "tall", "tiny", "shared"},
        {"twin_b", "tall", "tiny"},
        {"wide", "tall", "tiny"},
    ]


def test_a_device_runs_one_operator_for_each_sharding_type_and_number_of_bags(whole, mixed):
    operators = device_operators(whole, whole.held(mixed))
    assert [{(w.batch, *((t.rows, t.dim) for t in w.tables)) for w in of_device} for of_device in operators] == [
        {(96, (1000, 16)), (192, (300, 16)), (96, (500, 16)), (96, (1334, 16)), (32, (7, 16))},
        {(96, (1000, 16)), (96, (1334, 16)), (32, (7, 16))},
        {(96, (500, 16)), (96, (1334, 16)), (32, (7, 16))},
    ]


def test_tables_of_one_type_share_an_operator_whatever_their_order():
    both = problem([*TABLES[:2], {"name": "other", "rows": 50}, {"name": "again", "rows": 50}], devices=2)
    type = ShardingType.TABLE_WISE
    where = placed(both, twin_a=(type, [0]), other=(type, [0]), twin_b=(type, [1]), again=(type, [1]))
    first, second = device_operators(both, both.held(where))
    assert first == second
    assert [len(workload.tables) for workload in first] == [2]


def test_a_device_takes_the_sum_of_its_operators_by_the_profiles_clock(whole, mixed, seen):
    calls = []
    found = measure_devices(whole, whole.held(mixed), HARDWARE, progress=lambda *at: calls.append(at))
    rows = 1000 + 1334 + 7
    assert found.ms[1] == pytest.approx([2.0 * rows / 1000, 3.0 * rows / 100])
    assert len(seen) == len(set(seen)) == 5  # equal operators, such as those of the twins, are run once
    assert calls == [(done, 5) for done in range(1, 6)]
    assert {workload.batch for workload, _ in found.timed} == {32, 96, 192}


def test_a_device_that_does_not_fit_is_unknown(whole, mixed, seen):
    found = measure_devices(whole, whole.held(mixed), HARDWARE)
    assert np.isnan(found.ms).tolist() == [[True, True], [False, False], [True, True]]
    assert len(found.timed) == 4


def test_an_empty_device_takes_no_time(seen):
    one = problem(TABLES[:1])
    found = measure_devices(one, one.held(placed(one, twin_a=(ShardingType.TABLE_WISE, [1]))), HARDWARE)
    assert (found.ms > 0).tolist() == [[False, False], [True, True], [False, False]]
    assert np.isfinite(found.ms).all()


@pytest.mark.parametrize(
    ("slow", "runs", "counts"), [([1.05], 1, 1.05), ([2.0, 1.0], 2, 1.0), ([2.0, 1.4, 3.0, 1.0], 3, 1.4)]
)
def test_a_disturbed_operator_is_measured_again(seen, slow, runs, counts):
    one = problem(TABLES[:1], devices=1)
    FakeBench.slow = list(slow)
    held = one.held(placed(one, twin_a=(ShardingType.TABLE_WISE, [0])))
    found = measure_devices(one, held, HARDWARE)
    assert len(seen) == runs
    assert found.disturbance == pytest.approx(counts)
    assert found.ms[0] == pytest.approx([2.0 * counts, 30.0 * counts])


def test_without_a_measured_profile_the_reference_of_now_counts(seen):
    one = problem(TABLES[:1], devices=1)
    held = one.held(placed(one, twin_a=(ShardingType.TABLE_WISE, [0])))
    FakeBench.slow = [4.0]
    found = measure_devices(one, held, replace(HARDWARE, measured=None))
    assert (len(seen), found.disturbance) == (1, 1.0)
    assert found.ms[0] == pytest.approx([32.0, 480.0])


@pytest.fixture
def one_core() -> Iterator[None]:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def test_devices_are_really_measured(whole, mixed, one_core):
    found = measure_devices(whole, whole.held(mixed), replace(HARDWARE, measured=None))
    assert np.isfinite(found.ms).all()
    assert (found.ms > 0).all()
    assert len(found.timed) == 6 - 1  # the twins' operators are equal


def test_a_device_with_tables_in_host_memory_is_not_measured(whole, mixed, seen):
    """Not even what else it holds: that time would pass for the time of all."""
    held = whole.held(mixed)
    before = measure_devices(whole, held, HARDWARE).ms
    (first,) = np.flatnonzero(held[0] & (whole.shard_table == 0))  # twin_a, on device 0 only
    cached = np.where(np.arange(len(whole.shards)) == first, 0.2, 1.0)
    ms = measure_devices(replace(whole, shards=replace(whole.shards, cached=cached)), held, HARDWARE).ms
    assert np.isnan(ms[0]).all()
    assert np.array_equal(ms[1:], before[1:], equal_nan=True)
    assert np.isfinite(ms[1]).all()
