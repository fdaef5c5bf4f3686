from __future__ import annotations

from shardc.passes.replan import Migration
from shardc.placers.migrate import Point
from shardc.problem import Placement
from shardc.render.front import front_text


def point(moved: int, step_ms: float) -> Point:
    return Point(moved, step_ms, Placement((moved,), ((0,),)))


def migration(count: int = 4, most: int | None = None) -> Migration:
    front = tuple(point(number * 2**20, 1.2 - 0.2 * number / max(count - 1, 1)) for number in range(count))
    alone = point(90 * 2**20, 1.06)
    return Migration(100 * 2**20, front, front[1], alone, most, ())


def shown(of: Migration, *, width: int = 80, unicode: bool = True) -> str:
    return front_text(of, width=width, color=False, unicode=unicode)


def test_the_chosen_trade_and_the_plan_without_a_base_are_marked():
    assert shown(migration()) == EXPECTED.strip("\n")


def test_of_many_trades_some_are_shown_and_always_the_chosen_one():
    of = migration(100)
    lines = shown(of).splitlines()
    assert len(lines) <= 15
    assert any("chosen" in line and "1 MiB" in line for line in lines)


def test_a_budget_is_named():
    assert shown(migration(most=2**21)).startswith(
        "moves 1 MiB, 1.00% of the model's bytes; up to 2 MiB were allowed\n"
    )


def test_a_single_trade_has_no_bars():
    only = point(0, 1.0)
    assert shown(Migration(100, (only,), only, only, None, ())).splitlines()[-1].split() == [
        *("0", "B", "0.00%", "1", "ms", "chosen", "and", "without", "a", "base")
    ]


def test_ascii_says_the_same():
    assert shown(migration(), unicode=False) == shown(migration()).replace("█", "#")


EXPECTED = """
moves 1 MiB, 1.00% of the model's bytes
 moves          step time
   0 B   0.00%     1.2 ms  +20.00%  ██████████████████
 1 MiB   1.00%  1.1333 ms  +13.33%  ████████████        chosen
 2 MiB   2.00%  1.0667 ms   +6.67%  ██████
 3 MiB   3.00%       1 ms
90 MiB  90.00%    1.06 ms   +6.00%  █████               without a base
"""
