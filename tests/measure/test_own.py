import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from shardc.cost.roofline import Roofline
from shardc.diagnostics import DiagnosticError
from shardc.hardware import Hardware
from shardc.measure import benchmark, own
from shardc.measure.campaign import RETRIES
from shardc.measure.workload import Timing, Workload
from shardc.problem import Optimizer, Shards
from shardc.profile_folder import Measured

HERE = benchmark.LocalDevice("cpu", "some processor (1 thread)", 2**34)
MEASURED = Measured.model_construct(device=HERE.name, reference_ms=(2.0, 3.0))
HARDWARE = Hardware(
    "cpu-here",
    "cpu",
    HERE.name,
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
    MEASURED,
)


def shards(rows=(100, 200, 300), optimizer=Optimizer.SGD, weight_bytes=4) -> Shards:
    count = len(rows)
    return Shards(
        rows=np.array(rows),
        dim=np.full(count, 8),
        pooling=np.full(count, 2.0),
        bags=np.full(count, 64),
        bins=np.tile(np.eye(17)[0], (count, 1)),
        unique=np.full(count, 50.0),
        weight_bytes=np.full(count, weight_bytes),
        output_bytes=np.full(count, 4),
        optimizer=np.full(count, list(Optimizer).index(optimizer)),
        type=np.zeros(count, dtype=np.int64),
        cached=np.ones(count),
    )


ABSURD = [b"[1e300, 1.0]", b"[1.0, 1e-300]", b'["1", "2"]', b"[true, 1]", b"[" * 5000]


class FakeBench:
    seen: ClassVar[list[Workload]] = []
    disturbed: ClassVar[int] = 0

    def time(self, workload: Workload, *, seed: int) -> Timing:
        self.seen.append(workload)
        (table,) = workload.tables
        if table.rows == 666:
            raise MemoryError
        slower = 1.0 if len(self.seen) > self.disturbed else 1.5
        return Timing(6, table.rows / 100, table.rows / 10, 0.0, 0.0, 2.1 * slower, 3.1 * slower)


@pytest.fixture(autouse=True)
def seen(monkeypatch, tmp_path) -> list[Workload]:
    """A bench that answers at once and remembers what it was asked, and a cache of our own."""
    monkeypatch.setattr(FakeBench, "seen", [])
    monkeypatch.setattr(benchmark, "Bench", FakeBench)
    monkeypatch.setattr(benchmark, "local_device", lambda: HERE)
    monkeypatch.setenv("SHARDC_CACHE", str(tmp_path / "cache"))
    return FakeBench.seen


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.json"))


def fault(*arguments) -> tuple[str, str]:
    with pytest.raises(DiagnosticError) as caught:
        own.measure_shards(*arguments)
    (found,) = caught.value.diagnostics
    return found.code, found.message


def test_ratios_become_times_by_the_profiles_own_clock(seen):
    assert own.measure_shards(shards(), HARDWARE).tolist() == [[2, 30], [4, 60], [6, 90]]
    assert [w.tables[0].rows for w in seen] == [100, 200, 300]


def test_without_a_measured_profile_the_reference_of_now_counts():
    assert own.measure_shards(shards((100,)), dataclasses.replace(HARDWARE, measured=None)).tolist() == [[2.1, 31]]


def test_what_was_disturbed_is_measured_again_and_kept_only_if_that_helped(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeBench, "disturbed", 1)
    own.measure_shards(shards((100,)), HARDWARE)
    assert (len(seen), len(entries(tmp_path))) == (2, 1)
    monkeypatch.setattr(FakeBench, "disturbed", 100)
    assert np.isfinite(own.measure_shards(shards((200,)), HARDWARE)).all()
    assert (len(seen), len(entries(tmp_path))) == (2 + 1 + RETRIES, 1)


def test_nothing_is_measured_twice(seen):
    first = own.measure_shards(shards(), HARDWARE)
    del seen[:]
    assert np.array_equal(own.measure_shards(shards(), HARDWARE), first)
    assert np.array_equal(own.measure_shards(shards((300, 100)), HARDWARE), first[[2, 0]])
    assert seen == []


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": np.array([101])},
        {"dim": np.array([12])},
        {"pooling": np.array([2.5])},
        {"bags": np.array([65])},
        {"bins": np.eye(17)[1:2]},
        {"weight_bytes": np.array([2])},
        {"optimizer": np.array([list(Optimizer).index(Optimizer.ADAGRAD)])},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_decides_a_time_decides_where_it_is_cached(seen, changed):
    own.measure_shards(shards((100,)), HARDWARE)
    own.measure_shards(dataclasses.replace(shards((100,)), **changed), HARDWARE)
    assert len(seen) == 2


def test_another_device_version_or_clock_is_measured_again(seen, monkeypatch):
    one = shards((100,))
    assert own.measure_shards(one, HARDWARE).tolist() == [[2, 30]]
    faster = dataclasses.replace(HARDWARE, measured=MEASURED.model_copy(update={"reference_ms": (1.9, 3.0)}))
    assert own.measure_shards(one, faster).tolist() == [[1.9, 30]]
    monkeypatch.setattr(benchmark, "versions", lambda: {"torch": "99"})
    own.measure_shards(one, HARDWARE)
    monkeypatch.setattr(benchmark, "local_device", lambda: dataclasses.replace(HERE, name="other"))
    own.measure_shards(one, dataclasses.replace(HARDWARE, device_name="other", measured=None))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "damage", [b"", b"[1.0]", b"[1.0, -2.0]", b"[NaN, 1]", b"null", b'["x", 1]', b"\xff{", *ABSURD]
)
def test_a_damaged_entry_is_measured_again(tmp_path, seen, damage):
    first = own.measure_shards(shards(), HARDWARE)
    entries(tmp_path)[1].write_bytes(damage)
    del seen[:]
    assert np.array_equal(own.measure_shards(shards(), HARDWARE), first)
    assert len(seen) == 1
    own.measure_shards(shards(), HARDWARE)
    assert len(seen) == 1


def test_what_does_not_fit_is_missing_and_not_cached(tmp_path, seen):
    found = own.measure_shards(shards((100, 666, 10**12)), HARDWARE)
    assert np.isnan(found).tolist() == [[False, False], [True, True], [True, True]]
    assert [w.tables[0].rows for w in seen] == [100, 666]  # the last one is not even tried
    assert len(entries(tmp_path)) == 1


def test_an_interrupted_run_keeps_what_it_measured(seen):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        own.measure_shards(shards(), HARDWARE, progress=stop)
    own.measure_shards(shards(), HARDWARE)
    assert [w.tables[0].rows for w in seen] == [100, 200, 300]


def test_another_device_is_refused(seen):
    gpu = dataclasses.replace(HARDWARE, name="h100-80gb", device_type="cuda", measured=None)
    code, message = fault(shards(), gpu)
    assert code == "SH503"
    assert "h100-80gb" in message
    assert HERE.name in message
    elsewhere = dataclasses.replace(HARDWARE, device_name="another processor")
    assert fault(shards(), elsewhere)[0] == "SH503"
    assert seen == []


def test_an_optimizer_that_fbgemm_lacks_on_a_cpu_is_refused(seen):
    code, message = fault(shards(optimizer=Optimizer.ADAM), HARDWARE)
    assert (code, "adam" in message, seen) == ("SH503", True, [])


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("SHARDC_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert own.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("SHARDC_CACHE")
    assert own.cache_folder() == Path("/caches/shardc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert own.cache_folder() == Path.home() / ".cache" / "shardc"


@pytest.fixture
def one_core() -> Iterator[None]:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="timed on the GPU where there is one")
def test_shards_are_really_measured(monkeypatch, tmp_path, one_core):
    monkeypatch.undo()
    monkeypatch.setenv("SHARDC_CACHE", str(tmp_path))
    device = benchmark.local_device()
    here = dataclasses.replace(HARDWARE, device_name=device.name)
    ms = own.measure_shards(shards((100,), weight_bytes=2), here)
    assert np.isfinite(ms).all()
    assert (ms > 0).all()


def test_what_is_in_host_memory_is_not_measured(seen):
    cached = dataclasses.replace(shards(), cached=np.array([1.0, 0.2, 1.0]))
    shown: list[tuple[int, int]] = []
    ms = own.measure_shards(cached, HARDWARE, progress=lambda done, total: shown.append((done, total)))
    assert np.isnan(ms).all(axis=1).tolist() == [False, True, False]
    assert [workload.tables[0].rows for workload in seen] == [100, 300]
    assert shown == [(1, 2), (2, 2)]
