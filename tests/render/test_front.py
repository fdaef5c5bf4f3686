from __future__ import annotations

import pytest

from shardc.passes.replan import Migration
from shardc.placers.migrate import Point
from shardc.problem import Placement
from shardc.render.front import front_text
from shardc.spec import MoveBudget


def point(moved: int, step_ms: float) -> Point:
    return Point(moved, 100 * 2**20, step_ms, Placement((moved,), ((0,),)))


def migration(count: int = 4, budget: MoveBudget = MoveBudget(), alone_ms: float = 1.06) -> Migration:  # noqa: B008 - frozen
    front = [point(number * 2**20, 1.2 - 0.2 * number / max(count - 1, 1)) for number in range(count)]
    alone = point(90 * 2**20, alone_ms)
    if alone_ms < front[-1].step_time_ms:
        front.append(alone)
    return Migration(100 * 2**20, tuple(front), front[1], alone, budget, ())


def shown(of: Migration, *, width: int = 80, unicode: bool = True) -> str:
    return front_text(of, width=width, color=False, unicode=unicode)


def test_the_chosen_trade_and_the_plan_without_a_base_are_marked():
    assert shown(migration(alone_ms=0.9)) == EXPECTED.strip("\n")


def test_of_many_trades_some_are_shown_and_always_the_chosen_one():
    of = migration(100)
    lines = shown(of).splitlines()
    assert len(lines) <= 15
    assert any("chosen" in line and "1 MiB" in line for line in lines)


def test_a_plan_without_a_base_that_is_slower_and_moves_more_is_no_trade():
    *rows, last = shown(migration(alone_ms=1.06)).splitlines()
    assert not any("without a base" in row for row in rows)
    assert last == "without a base: moves 90 MiB, 90.00%; 1.06 ms  +6.00%"


def test_rows_move_more_and_are_faster_from_one_to_the_next():
    for of in (migration(), migration(100), migration(alone_ms=0.9)):
        rows = [row.split() for row in shown(of).splitlines()[2:] if not row.startswith("without")]
        moved, steps = [float(row[2].rstrip("%")) for row in rows], [float(row[3]) for row in rows]
        assert moved == sorted(set(moved))
        assert steps == sorted(set(steps), reverse=True)


@pytest.mark.parametrize(
    ("budget", "said"),
    [(MoveBudget(bytes=2**21), "2 MiB"), (MoveBudget(share=0.07), "7%"), (MoveBudget(bytes=0), "0 B")],
)
def test_a_budget_is_named(budget, said):
    assert shown(migration(budget=budget)).startswith(f"moves 1 MiB, 1.00% of all shards; up to {said} was allowed\n")


def test_a_single_trade_has_no_bars():
    only = point(0, 1.0)
    assert shown(Migration(100, (only,), only, only, MoveBudget(), ())).splitlines()[-1].split() == [
        *("0", "B", "0.00%", "1", "ms", "chosen", "and", "without", "a", "base")
    ]


def test_ascii_says_the_same():
    assert shown(migration(), unicode=False) == shown(migration()).replace("█", "#")


EXPECTED = """
moves 1 MiB, 1.00% of all shards
 moves           step time
   0 B   0.00%      1.2 ms  +33.33%  █████████████████
 1 MiB   1.00%  1.13333 ms  +25.93%  █████████████      chosen
 2 MiB   2.00%  1.06667 ms  +18.52%  █████████
 3 MiB   3.00%        1 ms  +11.11%  ██████
90 MiB  90.00%      0.9 ms                              without a base
"""
