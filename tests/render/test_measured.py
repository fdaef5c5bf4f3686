from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from shardc.calibration import Calibration
from shardc.plan import DeviceScore, Plan
from shardc.render.measured import measured_report


def plan(devices: int = 2, **tables: str) -> Plan:
    """A plan of tables with their sharding types; its devices are predicted to take 1 and 2 ms."""
    scores = [
        {"rank": rank, "forward_ms": 1.0, "backward_ms": 2.0, "memory_bytes": 0, "memory_limit_bytes": 1}
        for rank in range(devices)
    ]
    placed = {
        name: {"sharding_type": type, "compute_kernel": "dense" if type == "data_parallel" else "fused", "ranks": [0]}
        for name, type in (tables or {f"table_{i}": "table_wise" for i in range(9)}).items()
    }
    return Plan.model_validate(
        {
            "format": 1,
            "model": {"name": "model", "module": "ebc", "global_batch": 1, "optimizer": "sgd"}
            | {"weights": "fp32", "outputs": "fp32"},
            "cluster": {"device": "cpu-epyc", "hosts": 1, "devices_per_host": devices},
            "digests": {"spec": "", "profile": None},
            "tool": {"version": "1", "seed": 0},
            "plan": {"ebc": placed},
            "score": {"step_time_ms": 4.0, "phases": {}, "balance": 1.0, "devices": scores},
            "bound": None,
            "chosen": {"strategy": "a", "reason": "b"},
            "candidates": [],
        }
    )


def found(measured_ms: list[tuple[float, float]], of: Plan | None = None, **changes: object) -> Calibration:
    one = Calibration(
        plan=of or plan(len(measured_ms)),
        device="some processor",
        measured_ms=np.array(measured_ms),
        predicted_steps_ms=(4.0, 3.9),
        corrected_steps_ms=(5.0, 4.5),
        improves=True,
        moved=("table_0", "table_1"),
        timed=(),
        warnings=(),
        notes=(),
    )
    return replace(one, **changes)


def shown(of: Calibration, *, width: int = 80, color: bool = False, unicode: bool = True) -> str:
    return measured_report(of, width=width, color=color, unicode=unicode)


UNEVEN = [(0.8, 2.5), (1.25, 4.0)]


def test_a_report():
    assert shown(found(UNEVEN)) == EXPECTED.strip("\n")


def test_a_plan_that_stays_says_so():
    text = shown(found(UNEVEN, improves=False, corrected_steps_ms=(5.0, 5.0), moved=()))
    assert text.splitlines()[-1] == "with costs corrected by these measurements the plan stays the best known"


def test_of_many_tables_that_move_the_first_are_named():
    text = " ".join(shown(found(UNEVEN, moved=tuple(f"table_{i}" for i in range(7)))).split())
    assert text.endswith("7 of 9 tables elsewhere (table_0, table_1, table_2, table_3, table_4, …)")


def test_devices_that_could_not_be_measured_are_left_out_of_the_totals():
    text = shown(found([*UNEVEN, (np.nan, np.nan), (0.8, 2.5)]))
    assert re.search(r"^ +2 +too large +1\.00 ms +too large +2\.00 ms$", text, re.MULTILINE)
    assert "mean error 23.3% forward, 30.0% backward\nbalance 0.63, predicted 1.00\n" in text
    assert "slowest device 1 with 5.25 ms" in text
    assert "left out: 1 of 4 devices\n" in text


def test_an_empty_device_has_no_error():
    devices = (DeviceScore(rank=1, forward_ms=0, backward_ms=0, memory_bytes=0, memory_limit_bytes=1),)
    of = plan(1)
    of = of.model_copy(update={"score": of.score.model_copy(update={"devices": of.score.devices + devices})})
    text = shown(found([(1.0, 4.0), (0.0, 0.0)], of))
    assert re.search(r"^ +1 +0\.00 ms +0\.00 ms +0\.00 ms +0\.00 ms$", text, re.MULTILINE)
    assert "mean error 0.0% forward, 50.0% backward\nbalance 0.00, predicted 0.00\n" in text


def test_of_many_devices_the_extremes_are_shown():
    text = shown(found([(1.0 + rank, 1.0) for rank in range(32)]))
    ranks = [int(line.split()[0]) for line in text.splitlines()[3:] if re.match(r" *\d+  ", line)]
    assert ranks == [*range(31, 19, -1), 2, 1, 0]
    assert re.search(r"^ +… +17 more$", text, re.MULTILINE)


def test_dense_updates_are_said_not_to_be_measured():
    note = "note: data-parallel tables were measured with sparse updates"
    assert note in shown(found(UNEVEN, plan(2, a="table_wise", b="data_parallel")))
    assert note not in shown(found(UNEVEN))


@pytest.mark.parametrize("width", [72, 80, 120])
def test_lines_keep_the_width(width):
    names = tuple(f"a_table_with_quite_a_long_name_{i}" for i in range(9))
    text = shown(found([*UNEVEN, (np.nan, np.nan)], moved=names), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_ascii_and_color_say_the_same():
    of = found([(1.0 + rank, 1.0) for rank in range(32)])
    assert shown(of, unicode=False).isascii()
    assert shown(of, unicode=False).split() == shown(of).replace("…", "...").replace("×", "x").split()
    colored = shown(of, color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).split() == shown(of).split()


EXPECTED = """
model  2 × cpu-epyc, measured on some processor

device   forward  predicted   error  backward  predicted   error
     0  0.800 ms    1.00 ms  +25.0%   2.50 ms    2.00 ms  -20.0%
     1   1.25 ms    1.00 ms  -20.0%   4.00 ms    2.00 ms  -50.0%

mean error 22.5% forward, 35.0% backward
balance 0.63, predicted 1.00
slowest device 1 with 5.25 ms, predicted 0 with 3.00 ms

step time  this plan  compiled anew
predicted    4.00 ms        3.90 ms   -2.5%
corrected    5.00 ms        4.50 ms  -10.0%

with costs corrected by these measurements a new compile takes 10.0% less: 2 of
9 tables elsewhere (table_0, table_1)
"""
