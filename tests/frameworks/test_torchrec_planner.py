import pytest

pytest.importorskip("torchrec", reason="TorchRec is not installed")

from brute_force import broken

from shardc.bench import Failure, compare
from shardc.diagnostics import DiagnosticError
from shardc.frameworks.torchrec_planner import plan_with_torchrec
from shardc.passes.lower import lower
from shardc.pipeline import devices_of
from shardc.problem import Problem
from shardc.spec import parse_spec


def spec_of(*tables: dict, hosts: int = 1, local: int = 2, device: str = "h100-80gb", **cluster) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1024},
        "cluster": {"device": device, "hosts": hosts, "devices_per_host": local} | cluster,
        "defaults": {"rows": 100_000, "dim": 64, "pooling": 5.0},
        "compile": {"effort": "fast", "cost": "torchrec"},
        "table": [{"name": f"t{number}"} | table for number, table in enumerate(tables)],
    }


def problem_of(spec: dict) -> Problem:
    loaded = parse_spec(spec)
    return lower(loaded, devices_of(loaded))


@pytest.mark.parametrize("device", ["h100-80gb", "cpu-epyc"])
@pytest.mark.parametrize(
    "type",
    ["table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"],
)
def test_a_plan_of_each_type_is_a_placement_of_ours(type, device):
    tables = [{"dim": 256, "sharding": [type], "features": ["a", "b"]}, {"dim": 256, "sharding": [type]}]
    problem = problem_of(spec_of(*tables, hosts=2, device=device))
    placement = plan_with_torchrec(problem).placement
    assert {problem.option_type[option] for option in placement.option} == {type}
    assert not broken(problem, placement)


def test_columns_that_stay_together_are_a_whole_table():
    """TorchRec does not cut tables of 128 columns or fewer, and may leave the pieces of others on one device."""
    both = ["table_wise", "column_wise"]
    problem = problem_of(spec_of({"sharding": both}, {"dim": 256, "sharding": both}, {"dim": 256, "sharding": both}))
    placement = plan_with_torchrec(problem).placement
    assert not broken(problem, placement)
    assert problem.option_type[placement.option[0]] == "table_wise"


def test_devices_that_have_less_memory_get_less():
    tables = [{"rows": 1_000_000, "sharding": ["table_wise"]}] * 3  # 256 MB each, and what they need beside it
    spec = spec_of(*tables, memory="700MB", reserve="0%", rank=[{"ranks": [0], "memory": "300MB"}])
    problem = problem_of(spec)
    placement = plan_with_torchrec(problem).placement
    assert not broken(problem, placement)
    assert sorted(places[0] for places in placement.places) == [0, 1, 1]


def test_no_plan_where_nothing_fits():
    problem = problem_of(spec_of(*[{"rows": 1_000_000, "sharding": ["table_wise"]}] * 3, memory="300MB", reserve="0%"))
    with pytest.raises(DiagnosticError, match="SH203 TorchRec's planner found no plan"):
        plan_with_torchrec(problem)


def test_it_is_judged_as_all_others_are():
    spec = parse_spec(spec_of(*({"pooling": float(n)} for n in range(1, 9))))
    (result,) = compare("s", [("p", spec)], ["shardc", "torchrec_planner"]).results
    assert result.bound_ms <= result.step_ms["torchrec_planner"]
    assert result.ratio("torchrec_planner") >= 1.0


def test_what_the_planner_has_no_words_for_it_breaks_and_that_is_a_failure():
    tables = [{"pin": [1], "sharding": ["table_wise"]}] * 4
    spec = parse_spec(spec_of(*tables))
    run = compare("s", [("p", spec)], ["torchrec_planner"]).results[0].runs[0]
    assert run.failure is Failure.BREAKS_CONSTRAINTS
    assert run.step_time_ms is None


def test_a_planner_that_crashes_has_failed_and_the_others_go_on(monkeypatch):
    from torchrec.distributed.planner import EmbeddingShardingPlanner

    def crash(*_):
        raise KeyError("t0")

    monkeypatch.setattr(EmbeddingShardingPlanner, "plan", crash)
    spec = parse_spec(spec_of({}, {}))
    theirs, ours = compare("s", [("p", spec)], ["torchrec_planner", "shardc"]).results[0].runs
    assert (theirs.failure, theirs.detail) == (Failure.CRASHED, "TorchRec's planner failed: KeyError: 't0'")
    assert ours.failure is None


def test_a_cached_table_is_cached_in_its_plan_too():
    tables = [{"kernels": ["fused_uvm_caching"], "sharding": ["table_wise"]}, {"sharding": ["table_wise"]}]
    problem = problem_of(spec_of(*tables, host_memory="1TB"))
    placement = plan_with_torchrec(problem).placement
    assert not broken(problem, placement)
    assert [problem.cached_of(option) for option in placement.option] == [(0.2,), (1.0,)]


def test_what_fits_on_no_device_is_cached_in_its_plan():
    both = {"rows": 1_000_000, "sharding": ["table_wise"], "kernels": ["fused", "fused_uvm_caching"]}  # 256 MB each
    problem = problem_of(spec_of(*[both] * 4, memory="400MB", reserve="0%", host_memory="1TB"))
    placement = plan_with_torchrec(problem).placement
    assert not broken(problem, placement)
    assert sorted(problem.cached_of(option)[0] for option in placement.option) == [0.2, 0.2, 1.0, 1.0]
