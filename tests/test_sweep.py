from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.pipeline import run
from shardc.render.sweep import sweep_picture
from shardc.settings import parse_settings, parse_varied
from shardc.spec import load_spec
from shardc.sweep import MOST, Point, compile_all, grid, ranked

TEXT = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 65536
[cluster]
device = "h100-80gb"
devices_per_host = 2
[defaults]
rows = 20_000_000
dim = 128
pooling = 10
[compile]
effort = "fast"
""" + "".join(f'[[table]]\nname = "t{number}"\n' for number in range(8))


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text(TEXT)
    return path


def point(devices: int, step_ms: float | None, device: str = "a", batch: int = 1000) -> Point:
    varied = {"cluster.device": device, "cluster.devices_per_host": str(devices)}
    reason = None if step_ms else Diagnostic("SH202", "too large")
    return Point(varied, devices, {device: devices}, batch, step_ms, memory=0.5 if step_ms else None, reason=reason)


def test_every_configuration_is_what_a_compile_with_the_same_settings_gives(spec):
    loaded = load_spec(spec)
    varied = [parse_varied("cluster.device=h100-80gb,l4-24gb"), parse_varied("cluster.devices_per_host=2,4")]
    configurations = grid(loaded, varied, weak=False)
    assert [dict(each.varied) for each in configurations] == [
        {"cluster.device": device, "cluster.devices_per_host": count}
        for device in ("h100-80gb", "l4-24gb")
        for count in ("2", "4")
    ]
    points = dict(compile_all(configurations, effort=None, seed=None, workers=2))
    for number, each in enumerate(configurations):
        texts = [f"{key}={value}" for key, value in each.varied.items()]
        try:
            expected = run(loaded.changed(parse_settings(texts))).plan
        except DiagnosticError as error:
            assert points[number].reason == error.diagnostics[0]
            continue
        assert points[number].step_time_ms == expected.score.step_time_ms
        assert points[number].gap == pytest.approx(expected.bound.gap, rel=1e-3, abs=1e-6)
    assert {bool(found.reason) for found in points.values()} == {True, False}


def test_the_global_batch_stays_or_grows_with_the_devices(spec):
    loaded = load_spec(spec)
    varied = [parse_varied("cluster.devices_per_host=1,2,3")]
    for weak, batches in ((False, [65536] * 3), (True, [32768, 65536, 98304])):
        specs = [each.loaded.spec for each in grid(loaded, varied, weak=weak)]
        assert [each.model.global_batch for each in specs] == batches


def test_a_value_that_is_there_twice_is_one_configuration(spec):
    found = grid(load_spec(spec), [parse_varied("cluster.devices_per_host=4,2, 4")], weak=False)
    assert [each.loaded.spec.cluster.devices for each in found] == [4, 2]


def test_efficiency_is_to_the_fewest_devices_of_the_same_kind():
    points = [point(2, 10.0), point(4, 5.0), point(8, 5.0), point(2, None, "b"), point(4, 8.0, "b"), point(8, 8.0, "b")]
    found = ranked("m", points, {}, weak=False).ranked
    assert [each.efficiency for each in found] == [1.0, 1.0, 0.5, None, 1.0, 0.5]


def test_the_best_and_what_nothing_beats_are_marked():
    points = [point(2, 10.0), point(4, 5.0), point(8, 5.0), point(8, 4.0, "b"), point(16, None, "b")]
    found = ranked("m", points, {}, weak=False).ranked
    assert [each.pareto for each in found] == [True, True, False, True, False]
    assert [each.fastest for each in found] == [False, False, False, True, False]
    assert not any(each.cheapest for each in found)
    priced = ranked("m", points, {"a": 1.0, "b": 10.0}, weak=False).ranked
    assert [each.dollars_per_hour for each in priced] == [2.0, 4.0, 8.0, 80.0, 160.0]
    # 1,000 samples in 10 ms for $2 an hour: a billion take 10^7 / 3,600 of it.
    assert priced[0].dollars_per_billion == pytest.approx(2.0 * 1e9 / (1e5 * 3600))
    assert [each.cheapest for each in priced] == [True, True, False, False, False]
    assert [each.pareto for each in priced] == [True, True, False, True, False]
    cheap = ranked("m", points, {"a": 10.0, "b": 1.0}, weak=False).ranked
    assert [each.pareto for each in cheap] == [False, False, False, True, False]


def test_a_picture_has_a_point_for_each_plan_and_a_cross_for_each_that_fails():
    points = [point(2, 10.0), point(4, 5.0), point(8, 4.0, "b<&"), point(16, None, "b<&")]
    picture = ET.fromstring(sweep_picture(ranked("m<&", points, {}, weak=False)))
    tag = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f".//{tag}circle")) == 3
    assert len([path for path in picture.iter(f"{tag}path") if path.get("class") == "failed"]) == 1
    ET.fromstring(sweep_picture(ranked("m", [point(4, None)], {}, weak=False)))


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_sweep_prints_a_table_json_or_csv_and_draws_a_picture(spec, run_command, tmp_path):
    picture = tmp_path / "sweep.svg"
    arguments = ["sweep", str(spec), "--devices", "1,2,4", "--price", "h100-80gb=3", "-q"]
    text = run_command(*arguments, "--picture", str(picture))
    assert text.code == 0
    for words in ("3 configurations", "samples/s", "efficiency", "$/1e9", "fastest", "SH20"):
        assert words in text.out
    ET.parse(picture)
    document = json.loads(run_command(*arguments, "--format", "json").out)
    done = document["configurations"]
    assert [each["varied"]["cluster.devices_per_host"] for each in done] == ["1", "2", "4"]
    assert done[0]["step_time_ms"] is None
    assert done[0]["reason"].startswith("SH20")
    assert done[2]["samples_per_s"] == pytest.approx(65536 / done[2]["step_time_ms"] * 1e3)
    assert done[2]["memory_headroom"] == pytest.approx(1 - done[2]["memory"])
    rows = list(csv.DictReader(io.StringIO(run_command(*arguments, "--format", "csv").out)))
    assert [row["step_time_ms"] == "" for row in rows] == [True, False, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.toml", "sweep.svg"]


def test_where_nothing_fits_the_exit_code_is_1(spec, run_command):
    done = run_command("sweep", str(spec), "--devices", "1", "--device", "v100-16gb", "-q")
    assert done.code == 1
    assert "SH20" in done.out


def test_a_cluster_that_contradicts_the_spec_is_listed_with_its_reason(spec, run_command):
    spec.write_text(TEXT + "pin = [3]\n")
    done = run_command("sweep", str(spec), "--set", "cluster.hosts=2", "--devices", "1,2", "-q")
    assert done.code == 0
    assert "devices/host 1: SH104 pin[0] of table" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], "SH335", "nothing is varied"),
        (["--vary", "cluster.host=2,4"], "SH103", "expected an array"),
        (["--vary", "cluster.hostz=2,4"], "SH101", 'did you mean "host"?'),
        (["--vary", "cluster.hosts"], "SH330", "expected = and a value"),
        (["--hosts", "1,,2"], "SH330", "between commas"),
        (["--device", "h100"], "SH107", " --> --device:1:16\n"),
        (["--devices", "4,x"], "SH103", " --> --devices:1:26\n"),
        (["--devices", "3,0"], "SH104", " --> --devices:1:26\n"),
        (["--devices", "2,4", "--set", "cluster.devices_per_host=4"], "SH335", "is set and varied"),
        (["--hosts", "1,2", "--vary", "cluster.hosts=3"], "SH335", "varied twice"),
        (["--weak", "--vary", "model.global_batch=1,2"], "SH335", "--weak"),
        (["--vary", f"compile.seed={','.join(map(str, range(MOST + 1)))}"], "SH335", "at most"),
        (["--hosts", "1", "--price", "h100-80gb"], "SH335", "dollars an hour"),
        (["--hosts", "1", "--price", "h100-80gb=-1"], "SH335", "dollars an hour"),
        (["--hosts", "1", "--price", "h100=1"], "SH335", 'did you mean "h100-80gb"?'),
        (["--vary", "table.x.dim=4,8"], "SH331", "no table"),
    ],
)
def test_what_cannot_be_swept_is_told_before_anything_is_compiled(spec, run_command, arguments, code, words):
    done = run_command("sweep", str(spec), *arguments)
    assert done.code == 2
    assert code in done.err
    assert words in done.err
    assert done.out == ""


def test_ctrl_c_shows_what_is_done_so_far(spec):
    spec.write_text(TEXT + "".join(f'[[table]]\nname = "u{n}"\n' for n in range(300)))
    seeds = ",".join(map(str, range(200)))
    command = [sys.executable, "-m", "shardc", "sweep", str(spec), "--vary", f"compile.seed={seeds}", "--hosts", "40"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        assert any("sweep" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted:" in err
    assert "of 200 configurations" in out
    assert "step time" in out
