"""The whole way from a spec to a verified plan, through the public functions."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tomli
import torch

import shardc
from shardc import pipeline
from shardc.cost.model import StepCost
from shardc.cost.roofline import Roofline
from shardc.diagnostics import DiagnosticError
from shardc.hardware import PROFILES
from shardc.passes.place import Why
from shardc.passes.verify import verify
from shardc.placers.policy import POLICY_FORMAT, load_policy, weights_digest
from shardc.plan import plan_bytes
from shardc.problem import Shards
from shardc.units import format_bytes


def taken(shards: Shards, index: np.ndarray) -> Shards:
    """The shards at `index`, in that order."""
    return Shards(*(getattr(shards, name)[index] for name in Shards.__slots__))


HEAD = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 4096
[cluster]
device = "h100-80gb"
devices_per_host = 4
[compile]
effort = "fast"
[defaults]
dim = 16
pooling = 4
"""


def table(name: str, **values: str) -> str:
    given = {"rows": "1000"} | values
    return f'[[table]]\nname = "{name}"\n' + "".join(f"{key} = {value}\n" for key, value in given.items())


def write(folder, *tables: str) -> str:
    (folder / "model.toml").write_text(HEAD + "".join(tables))
    return str(folder / "model.toml")


@pytest.fixture
def two(tmp_path) -> str:
    return write(tmp_path, table("a"), table("b", rows="200_000"))


@pytest.fixture
def five(tmp_path) -> str:
    """Tables that no placement brings near the lower bound."""
    return write(tmp_path, *(table(name, sharding='["table_wise"]') for name in "abcde"))


def codes(compiled: pipeline.Compiled) -> list[str]:
    return [warning.code for warning in compiled.warnings]


def test_a_path_a_mapping_and_a_loaded_spec_give_one_plan(two):
    with open(two, "rb") as file:
        mapping = tomli.load(file)
    plans = [plan_bytes(shardc.compile(spec)) for spec in (two, mapping, pipeline.load(two))]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": -1}, "SH104 expected seed as an integer from 0 to 4294967295, found -1"),
        ({"seed": 2**32}, "SH104 expected seed as an integer from 0 to 4294967295, found 4294967296"),
        ({"seed": True}, "SH104 expected seed as an integer from 0 to 4294967295, found True"),
        ({"seed": 1.5}, "SH103 expected seed as an integer, found 1.5"),
        ({"seed": "1"}, "SH103 expected seed as an integer, found '1'"),
        ({"cost": 5}, "SH103 expected cost as a cost model with encode and score, found 5"),
    ],
)
def test_arguments_that_cannot_be_meant(two, given, says):
    with pytest.raises(DiagnosticError) as raised:
        shardc.compile(two, **given)
    assert str(raised.value) == says


def test_an_integer_of_numpy_is_a_seed(two):
    assert shardc.compile(two, seed=np.int64(7)).tool.seed == 7


def test_a_saved_plan_is_the_one_that_the_command_writes(two, tmp_path, run_command):
    path = tmp_path / "saved.json"
    path.write_text("old")
    shardc.compile(two).save(path)
    assert run_command("compile", str(two), "-o", str(tmp_path / "written.json")).code == 0
    assert path.read_bytes() == (tmp_path / "written.json").read_bytes()
    assert shardc.load_plan(path) == shardc.load_plan(tmp_path / "written.json")
    with pytest.raises(DiagnosticError, match="SH004"):
        shardc.compile(two).save(tmp_path / "none" / "plan.json")


def test_the_plan_verifies_and_says_what_it_is(two):
    loaded = pipeline.load(two)
    compiled = pipeline.run(loaded)
    assert verify(compiled.plan, loaded, compiled.choice.judge.problem.cluster) == []
    assert compiled.plan.score.step_time_ms == pytest.approx(compiled.choice.judgement.step_time_ms)
    assert compiled.plan.bound.step_time_ms <= compiled.plan.score.step_time_ms
    assert compiled.plan.tool.version == shardc.__version__
    assert sum(compiled.plan.score.phases.values()) == pytest.approx(compiled.plan.score.step_time_ms, rel=1e-4)
    assert compiled.plan.digests.spec == loaded.digest()


def test_costs_of_a_data_sheet_come_with_a_warning(two):
    (found,) = [w for w in pipeline.run(pipeline.load(two)).warnings if w.code == "SH501"]
    assert found.severity == "warning"
    assert found.location.line == HEAD.split("\n").index('device = "h100-80gb"') + 1


# --- Recorded lookups -------------------------------------------------------------------------------------------------


def test_recorded_lookups_decide_the_access_distribution(tmp_path):
    os.mkdir(tmp_path / "data")
    torch.save(torch.arange(900), tmp_path / "data" / "cold.pt")
    torch.save(torch.full((900,), 7), tmp_path / "data" / "hot.pt")
    path = write(
        tmp_path,
        table("cold", access='{ indices = "data/cold.pt" }'),
        table("hot", access='{ indices = "data/hot.pt" }'),
        table("uniform"),
    )
    compiled = pipeline.run(pipeline.load(path))
    problem = compiled.choice.judge.problem
    cold, hot = (
        taken(problem.shards, np.array(problem.unit_shards[problem.first_unit[problem.options_of(block)[0]]]))
        for block in range(2)
    )
    assert cold.bins[0, 0] == 1  # each row once
    assert hot.bins[0, 10] == 1  # one row 900 times: (512, 1024]
    assert hot.unique[0] < cold.unique[0]


def test_unreadable_lookups_are_reported_where_they_are_named(tmp_path):
    path = write(tmp_path, table("a", access='{ indices = "none.pt" }'))
    with pytest.raises(DiagnosticError) as caught:
        shardc.compile(path)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.exit_code) == ("SH001", 2)
    assert found.location is not None
    assert "none.pt" in found.location.text


# --- Cost models ------------------------------------------------------------------------------------------------------


class Lookups:
    def encode(self, shards):
        return shards.lookups[:, None]

    def score(self, z):
        return z[..., 0].max(axis=-1)


def test_an_own_cost_replaces_the_profile_and_its_warning(two):
    compiled = pipeline.run(pipeline.load(two), cost=Lookups())
    assert "SH501" not in codes(compiled)
    assert compiled.plan.digests.profile is None
    assert compiled.plan.digests.cost == "own"
    document = json.loads(plan_bytes(compiled.plan))
    assert document["bound"] is None
    assert document["score"]["devices"][0]["forward_ms"] is None
    # The cheapest way to look up 4 x 4096 twice: each table on a device of its own, or less.
    assert compiled.plan.score.step_time_ms <= 4 * 4096


def test_an_own_step_cost_is_bounded_too(two):
    loaded = pipeline.load(two)
    cluster = pipeline.run(loaded).choice.judge.problem.cluster
    slow = StepCost(Roofline(memory_bandwidth=1e9, cache_bytes=1.0), cluster)
    plan = shardc.compile(two, cost=slow)
    assert plan.bound is not None
    assert plan.score.step_time_ms > 10 * shardc.compile(two).score.step_time_ms


def test_torchrecs_estimates_are_one_phase_with_a_bound_and_a_warning(tmp_path):
    spec = HEAD.replace('effort = "fast"', 'effort = "fast"\ncost = "torchrec"') + table("a") + table("b")
    (tmp_path / "model.toml").write_text(spec)
    compiled = pipeline.run(pipeline.load(tmp_path / "model.toml"))
    (warning,) = compiled.warnings
    assert warning.code == "SH505"
    assert warning.location.text == 'cost = "torchrec"'
    score, bound, digests = compiled.plan.score, compiled.plan.bound, compiled.plan.digests
    assert score.phases == {"step": score.step_time_ms}
    assert max(d.forward_ms + d.backward_ms for d in score.devices) == pytest.approx(score.step_time_ms)
    assert bound.step_time_ms <= score.step_time_ms
    assert digests.cost == "torchrec"
    by_profile = pipeline.run(pipeline.load(write(tmp_path, table("a"), table("b")))).plan
    assert by_profile.digests.cost == "profile"
    assert by_profile.digests.profile != digests.profile
    assert by_profile.score.devices[0].memory_limit_bytes == score.devices[0].memory_limit_bytes


def test_measuring_has_nothing_to_correct_in_torchrecs_estimates(two):
    with open(two, "rb") as file:
        spec = tomli.load(file)
    spec["compile"]["cost"] = "torchrec"

    def measure(shards):
        raise AssertionError("measured in vain")

    compiled = pipeline.run(pipeline.load(spec), measure=measure)
    assert compiled.plan.digests.measurements is None
    assert "nothing was measured" in compiled.warnings[0].notes[0]


# --- The policy -------------------------------------------------------------------------------------------------------


def test_without_the_policys_weights_there_is_a_plan_a_warning_and_a_reason(five, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "POLICY", tmp_path / "none.safetensors")
    compiled = pipeline.run(pipeline.load(five))
    found = {w.code: w for w in compiled.warnings}["SH602"]
    assert found.severity == "warning"
    assert "none.safetensors" in found.message
    assert compiled.choice.why is Why.NO_POLICY
    assert compiled.plan.chosen.reason == "no_policy"
    assert {c.strategy: c.reason for c in compiled.plan.candidates}["rl_policy"] == "no_policy"
    assert {c.strategy: c.step_time_ms for c in compiled.plan.candidates}["rl_policy"] is None


def test_damaged_weights_are_as_good_as_none(five, tmp_path, monkeypatch):
    (tmp_path / "policy.safetensors").write_bytes(b"not safetensors")
    monkeypatch.setattr(pipeline, "POLICY", tmp_path / "policy.safetensors")
    compiled = pipeline.run(pipeline.load(five))
    assert "SH602" in codes(compiled)
    assert compiled.choice.why is Why.NO_POLICY


def test_a_policy_in_the_profiles_folder_is_used_if_it_was_trained_for_it(two, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(PROFILES / "cpu-epyc", folder)
    spec = Path(two)
    spec.write_text(spec.read_text().replace("h100-80gb", str(folder)))
    loaded = pipeline.load(spec)
    hardware = pipeline.devices_of(loaded)
    assert pipeline.find_policy(loaded, hardware)[0].metadata["kind"] == "shardc"
    arrays = safetensors.numpy.load_file(pipeline.POLICY)
    for digests, mine in ((hardware[0].digest, True), ("sha256:0", False)):
        metadata = {"format": POLICY_FORMAT, "kind": "shardc", "seed": "mine", "digests": f"sha256:1 {digests}"}
        metadata["weights"] = weights_digest(arrays)
        content = safetensors.numpy.save(arrays, {"shardc": json.dumps(metadata)})
        (folder / "policy.safetensors").write_bytes(content)
        policy, warnings = pipeline.find_policy(loaded, hardware)
        assert (policy.metadata["seed"] == "mine") is mine
        assert [w.code for w in warnings] == ([] if mine else ["SH602"])
    (folder / "policy.safetensors").write_bytes(b"damaged")
    policy, warnings = pipeline.find_policy(loaded, hardware)
    assert policy is not None
    assert [(w.code, w.severity) for w in warnings] == [("SH602", "warning")]


def test_altered_weights_are_as_good_as_none(five, tmp_path, monkeypatch):
    content = bytearray(pipeline.POLICY.read_bytes())
    content[-2] ^= 1
    (tmp_path / "policy.safetensors").write_bytes(content)
    monkeypatch.setattr(pipeline, "POLICY", tmp_path / "policy.safetensors")
    compiled = pipeline.run(pipeline.load(five))
    assert "SH602" in codes(compiled)
    assert compiled.choice.why is Why.NO_POLICY
    assert compiled.plan.digests.policy is None
    assert b'"policy"' not in plan_bytes(compiled.plan)


def test_a_plan_names_the_policy_that_took_part(two, tmp_path, monkeypatch):
    loaded = pipeline.load(two)
    plan = pipeline.run(loaded).plan
    assert plan.digests.policy == load_policy(pipeline.POLICY).digest
    assert pipeline.run(loaded, base=plan).plan == plan
    monkeypatch.setattr(pipeline, "POLICY", tmp_path / "none.safetensors")
    without = pipeline.run(loaded, base=plan).plan  # placed anew: another plan may come of it
    assert without.digests.policy is None


# --- Measuring --------------------------------------------------------------------------------------------------------


def test_measured_shards_change_costs_and_digests(two):
    loaded = pipeline.load(two)
    usual = pipeline.run(loaded)

    def measure(shards):
        return np.full((len(shards), 2), 5.0)

    measured = pipeline.run(loaded, measure=measure)
    assert measured.plan.digests != usual.plan.digests
    assert measured.plan.digests.spec == usual.plan.digests.spec
    assert measured.plan.score.step_time_ms > usual.plan.score.step_time_ms
    assert "SH501" not in codes(measured)

    def partly(shards):
        return np.where(np.arange(len(shards))[:, None] == 0, np.nan, 5.0)

    assert "SH504" in codes(pipeline.run(loaded, measure=partly))


@pytest.mark.parametrize(
    ("written", "instead", "code"),
    [
        ('device = "h100-80gb"', 'device = "h100"', "SH107"),
        ("pooling = 4", "pooling = -4", "SH104"),
        ("devices_per_host = 4", 'devices_per_host = 4\nmemory = "1KB"', "SH201"),
    ],
)
def test_what_is_wrong_is_an_error_with_a_code(tmp_path, written, instead, code):
    path = tmp_path / "model.toml"
    path.write_text((HEAD + table("a")).replace(written, instead))
    with pytest.raises(DiagnosticError, match=code):
        shardc.compile(path)


TWICE = 2 * 80 * 10**9 // (128 * 4)  # rows of a table that takes twice the memory of the device


@pytest.mark.parametrize("devices", [1, 8])
def test_a_table_twice_as_large_as_a_device_is_kept_in_host_memory(devices):
    spec = tomli.loads(HEAD)
    spec["cluster"]["devices_per_host"] = devices
    large = {"name": "large", "rows": TWICE, "dim": 128, "sharding": ["table_wise"], "access": {"zipf": 1.05}}
    spec["table"] = [large, {"name": "small", "rows": 1000}]
    with pytest.raises(DiagnosticError, match="SH201") as refused:
        shardc.compile(spec)
    assert 'kernels = ["fused", "fused_uvm_caching"]' in refused.value.diagnostics[0].help

    spec["cluster"]["host_memory"] = "2TB"
    large["kernels"] = ["fused", "fused_uvm_caching"]
    compiled = pipeline.run(pipeline.load(spec))
    plan = compiled.plan
    assert verify(plan, pipeline.load(spec), compiled.choice.judge.problem.cluster) == []
    placed = plan.plan["ebc"]["large"]
    assert (placed.compute_kernel, placed.cached) == ("fused_uvm_caching", 0.2)
    assert plan.plan["ebc"]["small"].compute_kernel in ("fused", "dense")
    (holder,) = (device for device in plan.score.devices if device.host_memory_bytes)
    assert (holder.rank, holder.host_memory_bytes) == (placed.ranks[0], TWICE * 128 * 4)
    assert holder.memory_bytes < 0.3 * TWICE * 128 * 4
    assert plan.bound.step_time_ms <= plan.score.step_time_ms
    assert plan.score.phases["forward"] > plan.score.phases["backward"]  # what misses the cache is fetched then
    assert "SH501" in codes(compiled)


def test_a_model_larger_than_all_devices_is_partly_cached():
    spec = tomli.loads(HEAD)
    spec["table"] = [{"name": f"t{i}", "rows": TWICE // 2, "dim": 128} for i in range(5)]  # 80 GB, on 4 x 68 GB
    with pytest.raises(DiagnosticError, match="SH202") as refused:
        shardc.compile(spec)
    assert 'kernels = ["fused", "fused_uvm_caching"]' in refused.value.diagnostics[0].help
    spec["cluster"]["host_memory"] = "1TB"
    spec["defaults"]["kernels"] = ["fused", "fused_uvm_caching"]
    tables = shardc.compile(spec).plan["ebc"].values()
    assert {table.compute_kernel for table in tables} == {"fused", "fused_uvm_caching"}
    spec["cluster"]["host_memory"] = "100GB"
    spec["defaults"]["kernels"] = ["fused_uvm_caching"]
    with pytest.raises(DiagnosticError, match="SH202 cached tables need at least 373 GiB") as refused:
        shardc.compile(spec)
    assert "give each host 373 GiB of host_memory or more" in refused.value.diagnostics[0].help


def test_torchrecs_estimates_place_cached_tables_too():
    spec = tomli.loads(HEAD)
    spec["cluster"]["host_memory"] = "1TB"
    spec["compile"]["cost"] = "torchrec"
    spec["table"] = [{"name": f"t{i}", "rows": TWICE // 2, "dim": 128} for i in range(5)]
    spec["defaults"]["kernels"] = ["fused", "fused_uvm_caching"]
    plan = shardc.compile(spec)
    assert {table.compute_kernel for table in plan.plan["ebc"].values()} == {"fused", "fused_uvm_caching"}
    assert plan.bound.step_time_ms <= plan.score.step_time_ms


def test_tables_of_different_widths_that_share_a_cache_that_may_not_fit_are_told_of():
    """FBGEMM's cache is as wide as the widest table: 200 GB of narrow rows are cached as wide as 2 MB of others."""
    spec = tomli.loads(HEAD)
    spec["cluster"] |= {"devices_per_host": 1, "host_memory": "1TB"}
    spec["defaults"] |= {"kernels": ["fused_uvm_caching"], "sharding": ["table_wise"]}
    spec["table"] = [{"name": "narrow", "rows": 400_000_000, "dim": 16}, {"name": "wide", "rows": 1000, "dim": 512}]
    compiled = pipeline.run(pipeline.load(spec))
    (warning,) = (found for found in compiled.warnings if found.code == "SH511")
    more = 0.2 * 400_000_000 * (512 - 16) * 4
    assert f"device 0 may need {format_bytes(int(more))} more than is counted" in warning.message
    for alike in ({"dim": 16}, {"kernels": ["fused"]}):
        spec["table"][1] |= alike
        assert "SH511" not in codes(pipeline.run(pipeline.load(spec)))
