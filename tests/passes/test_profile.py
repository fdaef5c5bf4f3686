"""The cost-profiling pass: what a plan is judged by, and how far to trust it."""

import json
import shutil
from dataclasses import replace

import pytest

from shardc.diagnostics import DiagnosticError
from shardc.hardware import PROFILES
from shardc.pipeline import run
from shardc.spec import parse_spec


def spec(*, rows=5000, dim=16, pooling=2.0, batch=1024, device="cpu-epyc", cluster=None, **compile_):
    tables = [
        {"name": f"t{i}", "features": [f"f{i}"], "rows": rows + i, "dim": dim, "pooling": pooling} for i in range(6)
    ]
    return parse_spec(
        {
            "format": 1,
            "model": {"name": "m", "module": "ebc", "global_batch": batch},
            "cluster": {"device": device, "devices_per_host": 2} | (cluster or {}),
            "table": tables,
            "compile": compile_,
        }
    )


def codes(compiled):
    return [(w.code, w.message) for w in compiled.warnings]


def test_a_spec_like_what_was_measured_gets_no_warning():
    assert codes(run(spec())) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rows": 90_000_000}, ["rows", "t0 (9e+07), t1 (9e+07), t2 (9e+07) and 3 more"]),
        ({"dim": 1024}, ["dim", "t0 (1024)"]),
        ({"pooling": 700.0}, ["pooling", "t0 (700)"]),
        ({"batch": 65536}, ["batches", "65536"]),
    ],
)
def test_a_spec_beyond_what_was_measured_is_told_which_tables_and_features(changed, words):
    warnings = [message for code, message in codes(run(spec(**changed))) if code == "SH502"]
    assert any(all(word in message for word in words) for message in warnings), warnings


def test_links_that_nobody_measured_are_told_of_unless_the_spec_knows_them():
    (found,) = codes(run(spec(cluster={"hosts": 2})))
    assert found[0] == "SH509"
    assert "between hosts" in found[1]
    assert codes(run(spec(cluster={"hosts": 2, "inter_host_bandwidth": "10GB/s"}))) == []


def test_a_profile_that_predicts_badly_is_said_to(tmp_path):
    folder = shutil.copytree(PROFILES / "cpu-epyc", tmp_path / "bad")
    document = json.loads((folder / "profile.json").read_text())
    document["measured"]["errors"]["mean_relative_error"] = [0.05, 0.4]
    (folder / "profile.json").write_text(json.dumps(document))
    ((code, message),) = codes(run(spec(device=str(folder))))
    assert code == "SH510"
    assert "40% backward" in message


def test_more_tables_on_a_device_than_were_measured_are_told_of():
    many = spec(cluster={"devices_per_host": 1})
    tables = tuple(replace(many.tables[0], name=f"t{i:03}", features=(f"f{i}",)) for i in range(100))
    (found,) = codes(run(replace(many, tables=tables)))
    assert found[0] == "SH502"
    assert "64 tables on a device" in found[1]


def test_a_quantile_makes_a_plan_pessimistic():
    usual, pessimist, worst = run(spec()).plan, run(spec(quantile=0.9)).plan, run(spec(quantile=0.99)).plan
    assert usual.score.step_time_ms < usual.score.step_time_p90_ms
    assert usual.score.step_time_ms < pessimist.score.step_time_ms < worst.score.step_time_ms
    assert pessimist.score.step_time_ms <= usual.score.step_time_p90_ms * 1.0001  # it planned for just that
    assert pessimist.bound is not None  # the largest of convex costs is convex
    assert usual.digests.spec != pessimist.digests.spec


@pytest.mark.parametrize("without", [{"device": "h100-80gb"}, {"cost": "torchrec"}])
def test_there_is_no_quantile_of_costs_that_nobody_measured(without):
    with pytest.raises(DiagnosticError, match="SH507"):
        run(spec(quantile=0.9, **without))
    assert run(spec(**without)).plan.score.step_time_p90_ms is None


@pytest.mark.parametrize("quantile", [0.2, 1.0, "most"])
def test_a_quantile_is_between_a_half_and_one(quantile):
    with pytest.raises(DiagnosticError, match="quantile"):
        spec(quantile=quantile)


def test_a_profile_that_does_not_know_the_link_to_the_host_is_refused_and_told_what_to_add(tmp_path):
    folder = shutil.copytree(PROFILES / "cpu-epyc", tmp_path / "gpu")
    document = json.loads((folder / "profile.json").read_text())
    document |= {"name": "gpu", "device_type": "cuda"}
    (folder / "profile.json").write_text(json.dumps(document))
    cached = spec(device=str(folder), cluster={"host_memory": "1TB"})
    cached = replace(cached, tables=tuple(replace(t, kernels=("fused_uvm_caching",)) for t in cached.tables))
    with pytest.raises(DiagnosticError, match="SH113") as refused:
        run(cached)
    assert "host_bandwidth" in refused.value.diagnostics[0].help
    forward = []
    for bandwidth in (32e9, 64e9):
        (folder / "profile.json").write_text(json.dumps(document | {"host_bandwidth": bandwidth}))
        forward.append(run(cached).plan.score.phases["forward"])
    assert forward[1] < forward[0]
