"""A few hundred cases of each kind, the same ones each time; `make fuzz` runs as many as it is told."""

from __future__ import annotations

import importlib.util

import pytest
from fuzz_cases import KINDS, Case
from fuzz_run import quick_commands, run_case
from hypothesis import HealthCheck, given, settings

TORCHREC = importlib.util.find_spec("torchrec") is not None
EXAMPLES = {"valid-specs": 40, "broken-specs": 250, "plans": 150, "profiles": 40, "campaigns": 80}
EXAMPLES |= {"index-files": 60, "arguments": 120}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_in_is_taken_or_refused_with_a_diagnostic(kind):
    if kind in ("index-files", "campaigns"):
        pytest.importorskip("torch")

    @settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def run(case: Case) -> None:
        outcome = run_case(case, torchrec=TORCHREC)
        assert not outcome.wrong, f"{outcome.wrong}\n{outcome.text}"

    with quick_commands():
        run()
