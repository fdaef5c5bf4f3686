"""Why nothing fits: claims of proof against brute force, and every change that is offered tried."""

import numpy as np
import pytest
from brute_force import best_of_all, random_spec, random_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc import pipeline
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge
from shardc.passes import infeasible
from shardc.passes.infeasible import Origin, find_cause
from shardc.passes.lower import lower
from shardc.passes.profile import profile
from shardc.spec import parse_spec


def origin_of(spec: dict) -> Origin:
    loaded = parse_spec(spec)
    return Origin(loaded, pipeline.devices_of(loaded), {})


def tight_spec(seed: int) -> dict:
    """A small random spec with about as much memory as its tables take, some of which keep whole, or to few ranks."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng) | {"table": random_tables(rng, int(rng.integers(3, 7)), devices=2)}
    sizes = []
    for table in spec["table"]:
        table |= {"rows": int(np.exp(rng.uniform(10.5, 11.5))), "dim": int(rng.choice([16, 32, 64]))}
        if rng.random() < 0.85:
            table["sharding"] = ["table_wise"]
        sizes.append(4.0 * table["rows"] * table["dim"])
    spec["model"] |= {"global_batch": 100, "optimizer": "sgd"}
    devices = spec["cluster"]["hosts"] * spec["cluster"]["devices_per_host"]
    memory = max(1.05 * max(sizes), sum(sizes) / devices * rng.uniform(0.7, 1.3))
    spec["cluster"] |= {"memory": f"{int(memory)}B"}
    spec["cluster"].pop("rank", None)
    for host in spec["cluster"].get("host", ()):
        host.pop("memory", None)
    spec["compile"] = {"effort": "fast"}
    return spec


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_what_brute_force_cannot_place_is_refused_and_no_claim_is_wrong(seed):
    spec = tight_spec(seed)
    try:
        origin = origin_of(spec)
        problem = lower(origin.loaded, origin.hardware, {})
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} <= {"SH106", "SH201"}
        return
    best = best_of_all(Judge(problem, profile(problem, origin.hardware, origin.loaded).cost))
    if best is None:
        return
    cause = find_cause(problem)
    if best[1] is not None:
        assert cause is None
    try:
        plan = pipeline.run(origin.loaded).plan
    except DiagnosticError as error:
        (found,) = error.diagnostics
        assert found.code in ("SH202", "SH203")
        assert "HiGHS proves" not in found.message or best[1] is None
        assert found.help
    else:
        assert best[1] is not None
        assert plan.score.step_time_ms >= best[0] * (1 - 1e-9)


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_change_that_is_offered_compiles(seed):
    offered: list[infeasible.Change] = []

    def spy(*given, **more):
        offered.extend(found := original(*given, **more))
        return found

    original = infeasible.changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infeasible, "changes", spy)
        try:
            pipeline.run(parse_spec(tight_spec(seed)))
        except DiagnosticError:
            for change in offered:
                pipeline.run(change.loaded)
