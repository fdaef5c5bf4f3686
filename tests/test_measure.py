"""`shardc measure`, with a bench that answers at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import shardc.profiling
from shardc.cost.roofline import Roofline
from shardc.hardware import Hardware
from shardc.measure import benchmark
from shardc.measure.workload import Timing, Workload
from shardc.passes.place import EVALUATIONS
from shardc.pipeline import run
from shardc.plan import plan_bytes
from shardc.spec import load_spec

HERE = benchmark.LocalDevice("cpu", "some processor (1 thread)", 2**34)
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
    None,
)
SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
optimizer = "sgd"
[cluster]
device = "cpu-here"
devices_per_host = 2
[defaults]
dim = 16
pooling = 2
sharding = ["table_wise"]
[compile]
effort = "fast"
[[table]]
name = "a"
rows = 1000
[[table]]
name = "b"
rows = 2000
"""


class FakeBench:
    def time(self, workload: Workload, *, seed: int) -> Timing:
        return Timing(6, 1.0, 2.0, 0.0, 0.0, 0.5, 0.5)


@pytest.fixture
def shardc_(tmp_path, monkeypatch, run_command):
    """Run a command in a folder with a spec and its plan, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(benchmark, "Bench", FakeBench)
    monkeypatch.setattr(benchmark, "local_device", lambda: HERE)
    monkeypatch.setattr("shardc.hardware.load_hardware", lambda *_, **__: HARDWARE)
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(EVALUATIONS, "fast", 100)
    Path("model.toml").write_text(SPEC)
    Path("model.plan.json").write_bytes(plan_bytes(run(load_spec("model.toml")).plan))

    return run_command


def test_measuring_a_plan(shardc_):
    done = shardc_("measure", "model.plan.json")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "m  2 × cpu-here, measured on some processor (1 thread)"
    assert [line.split()[1:3] for line in lines[3:5]] == [["0.500", "ms"]] * 2
    assert "SH501" in done.err
    assert done.err.splitlines()[:2] == ["measure devices 1/2", "measure devices 2/2"]


def test_what_has_changed_is_noted(shardc_):
    Path("model.toml").write_text(SPEC.replace("pooling = 2", "pooling = 3"))
    done = shardc_("measure", "model.plan.json")
    assert (done.code, done.out.splitlines()[-1]) == (0, "note: the spec has changed since its plan was compiled")


def test_quietly(shardc_):
    done = shardc_("measure", "-q", "model.plan.json")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_the_spec_is_beside_the_plan_or_named(shardc_):
    Path("model.plan.json").rename("other.json")
    done = shardc_("measure", "other.json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH902 other.json is not named after its spec\nhelp: name the spec: --spec SPEC")
    assert shardc_("measure", "other.json", "--spec", "model.toml").code == 0
    Path("other.json").rename("other.plan.json")
    done = shardc_("measure", "other.plan.json")
    assert (done.code, done.err) == (2, "SH001 cannot read the spec other.toml: no such file\n\n")


def test_a_plan_of_another_spec_is_refused(shardc_):
    Path("model.toml").write_text(SPEC.replace('"b"', '"c"'))
    done = shardc_("measure", "model.plan.json")
    assert (done.code, done.out) == (1, "")
    assert done.err.count("SH304 ") == 2


def test_updating_a_profile(shardc_, monkeypatch):
    def add_measurements(folder, timed, *, progress):
        assert folder == Path("gpu")
        assert {table.rows for workload, _ in timed for table in workload.tables} == {1000, 2000}
        assert [timing.forward_ratio for _, timing in timed] == [1.0, 1.0]
        progress("fit", 1, 1, "")
        errors = SimpleNamespace(mean_relative_error=(0.041, 0.052))
        return SimpleNamespace(name="gpu", measured=SimpleNamespace(errors=errors)), 1

    monkeypatch.setattr(shardc.profiling, "add_measurements", add_measurements)
    monkeypatch.setattr(shardc.profiling, "require_campaign", lambda folder: None)
    done = shardc_("measure", "model.plan.json", "--update", "gpu")
    assert done.code == 0
    assert done.out.endswith(
        "\ngpu: 2 measured sets added, learned again\n"
        "1 of them left out: something else slowed the device down meanwhile\n"
        "mean error on held-out sets: 4.1% forward, 5.2% backward\n"
    )
    assert done.err.splitlines()[-1] == "fit 1/1"
    assert shardc_("measure", "-q", "model.plan.json", "--update", "gpu").out == ""


def test_a_folder_without_a_profile_is_refused_before_anything_is_measured(shardc_, monkeypatch):
    monkeypatch.setattr(benchmark, "Bench", None)
    done = shardc_("measure", "model.plan.json", "--update", "gpu")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("SH001 cannot read the hardware profile gpu/profile.json")
