"""Measuring a plan: by a bench that says what it is told to, or with FBGEMM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from shardc import calibration
from shardc.calibration import Calibration, calibrate_plan
from shardc.diagnostics import DiagnosticError
from shardc.hardware import Hardware
from shardc.measure import benchmark
from shardc.measure.plan import measure_devices
from shardc.measure.workload import Timing, Workload
from shardc.passes.place import EVALUATIONS
from shardc.pipeline import load, run
from shardc.plan import Plan
from shardc.spec import LoadedSpec

HERE = benchmark.LocalDevice("cpu", "some processor (1 thread)", 2**34)


class Linear:
    """A compute cost with round numbers: a millionth of a ms for each element that is gathered, twice that backward."""

    constants = np.array([0.01, 0.02])

    def encode(self, shards):
        return (shards.lookups * shards.dim)[:, None] * [1e-6, 2e-6]

    def heads(self, z):
        return z

    def slopes(self, z):
        return np.eye(2)


HARDWARE = Hardware(
    "cpu-here",
    "cpu",
    "some processor",
    2**34,
    1e12,
    1e12,
    1e-6,
    0.0,
    {},
    {},
    None,
    lambda *_: Linear(),
    "sha256:0",
    None,
)


class FakeBench:
    """Takes as long as `Linear` says, times what the dims of a set are told to be slower."""

    slower: ClassVar[dict[int, float]] = {}
    too_large: ClassVar[set[int]] = set()

    def time(self, workload: Workload, *, seed: int) -> Timing:
        if self.too_large & {table.rows for table in workload.tables}:
            raise MemoryError
        ms = sum(t.pooling * t.dim * self.slower.get(t.rows, 1.0) for t in workload.tables) * workload.batch * 1e-6
        return Timing(6, 0.01 + ms, 0.02 + 2 * ms, 0.0, 0.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def bench(monkeypatch, tmp_path) -> type[FakeBench]:
    monkeypatch.setattr(FakeBench, "slower", {})
    monkeypatch.setattr(FakeBench, "too_large", set())
    monkeypatch.setattr(benchmark, "Bench", FakeBench)
    monkeypatch.setattr(benchmark, "local_device", lambda: HERE)
    monkeypatch.setattr("shardc.hardware.load_hardware", lambda *_, **__: HARDWARE)
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 2000)
    monkeypatch.setenv("SHARDC_CACHE", str(tmp_path / "cache"))
    return FakeBench


def spec(**extra: Any) -> LoadedSpec:
    """Eight tables, told apart by their rows, on two devices."""
    return load(
        {
            "format": 1,
            "model": {"name": "model", "module": "ebc", "global_batch": 1000, "optimizer": "sgd"},
            "cluster": {"device": "cpu-here", "devices_per_host": 2},
            "defaults": {"dim": 32, "pooling": 4, "sharding": ["table_wise"]},
            "table": [{"name": f"table_{i}", "rows": 1000 + i} for i in range(8)],
            "compile": {"effort": "fast"},
            **extra,
        }
    )


def calibrated(of: LoadedSpec, plan: Plan | None = None) -> Calibration:
    return calibrate_plan(plan or run(of).plan, of, progress=lambda stage, done, total: None)


def rows_on(plan: Plan, rank: int) -> set[int]:
    return {1000 + int(name[-1]) for name, table in plan.plan["ebc"].items() if rank in table.ranks}


def fault(of: LoadedSpec, plan: Plan | None = None) -> tuple[int, list[str]]:
    with pytest.raises(DiagnosticError) as caught:
        calibrated(of, plan)
    return caught.value.exit_code, [found.code for found in caught.value.diagnostics]


def test_right_predictions_leave_the_plan_as_it_is():
    found = calibrated(spec())
    assert found.measured_ms == pytest.approx(found.predicted_ms, rel=1e-6)
    assert found.corrected_steps_ms == pytest.approx(found.predicted_steps_ms, rel=1e-6)
    assert not found.improves
    assert found.device == HERE.name
    assert [warning.code for warning in found.warnings] == ["SH501", "SH602"]


def test_a_device_that_is_slower_than_predicted_gets_fewer_tables(bench):
    plan = run(spec()).plan
    bench.slower = dict.fromkeys(rows_on(plan, 1), 3.0)
    found = calibrated(spec(), plan)
    assert found.measured_ms[0] == pytest.approx(found.predicted_ms[0], rel=1e-6)
    assert found.measured_ms[1] == pytest.approx([0.01 + 3 * 0.512, 0.02 + 3 * 1.024])
    old, new = found.corrected_steps_ms
    assert found.improves
    assert new == pytest.approx(0.03 + 0.384 * (4 + 3 * 4) / 2, rel=0.01)
    assert old == pytest.approx(0.03 + 0.384 * 3 * 4, rel=0.01)
    assert set(found.moved) < set(plan.plan["ebc"])


def test_operators_that_were_measured_are_handed_on():
    (first, timing), (second, _) = calibrated(spec()).timed
    assert {table.rows for workload in (first, second) for table in workload.tables} == set(range(1000, 1008))
    assert timing.runs == 6


def test_a_device_that_is_too_large_is_left_out(bench):
    plan = run(spec()).plan
    bench.too_large = {1000}
    bench.slower = dict.fromkeys(range(1000, 1008), 2.0)
    found = calibrated(spec(), plan)
    unknown = 0 if 1000 in rows_on(plan, 0) else 1
    assert np.isnan(found.measured_ms).any(axis=1).tolist() == [unknown == 0, unknown == 1]
    assert found.corrected_steps_ms[0] == pytest.approx(2 * found.predicted_steps_ms[0], rel=0.05)
    bench.too_large = set(range(1000, 1008))
    assert fault(spec(), plan) == (2, ["SH504"])


def test_a_plan_that_does_not_fit_its_spec_is_refused():
    plan = run(spec()).plan
    assert fault(spec(table=[{"name": "another", "rows": 1000}]), plan) == (1, ["SH304"])
    assert fault(spec(cluster={"device": "cpu-here", "devices_per_host": 3}), plan) == (1, ["SH309"])


def test_another_device_is_refused(monkeypatch):
    plan = run(spec()).plan
    monkeypatch.setattr(benchmark, "local_device", lambda: benchmark.LocalDevice("cuda", "some GPU", 2**34))
    assert fault(spec(), plan) == (1, ["SH503"])


def test_an_optimizer_that_cannot_be_measured_is_refused():
    model = {"name": "model", "module": "ebc", "global_batch": 1000, "optimizer": "adam"}
    assert fault(spec(model=model)) == (1, ["SH114"])


def test_estimates_of_torchrec_are_refused():
    assert fault(spec(compile={"effort": "fast", "cost": "torchrec"})) == (2, ["SH505"])


def test_a_plan_with_measured_shards_is_weighed_by_them(bench):
    from shardc.measure.own import measure_shards

    bench.slower = dict.fromkeys(range(1000, 1008), 2.0)
    plan = run(spec(), measure=lambda shards: measure_shards(shards, HARDWARE)).plan
    found = calibrated(spec(), plan)
    assert found.predicted_ms == pytest.approx(found.measured_ms, rel=1e-6)
    assert not found.improves
    assert found.notes == ()


def test_what_has_changed_since_the_plan_was_compiled_is_noted():
    plan = run(spec()).plan
    older = plan.model_copy(update={"digests": plan.digests.model_copy(update={"spec": "sha256:0"})})
    assert calibrated(spec(), older).notes == ("the spec has changed since its plan was compiled",)


def test_a_disturbed_measurement_is_noted(monkeypatch):
    monkeypatch.setattr(
        calibration, "measure_devices", lambda *given, **by: replace(measure_devices(*given, **by), disturbance=2.5)
    )
    (note,) = calibrated(spec()).notes
    assert "2.5 times as long" in note


def test_a_plan_is_really_measured(monkeypatch):
    monkeypatch.undo()
    device = benchmark.local_device()
    monkeypatch.setattr("shardc.hardware.load_hardware", lambda *_, **__: _local(device))
    monkeypatch.setitem(EVALUATIONS, "fast", 100)
    found = calibrated(spec(defaults={"dim": 8, "pooling": 2}))
    assert np.isfinite(found.measured_ms).all()
    assert (found.measured_ms > 0).all()
    assert found.device == device.name


def _local(device: benchmark.LocalDevice) -> Hardware:
    return replace(HARDWARE, device_type=device.type, device_name=device.name)
