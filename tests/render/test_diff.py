from __future__ import annotations

import json
import re

import pytest
from plans import plan, replicated, sharded, whole

from shardc.plan import Plan
from shardc.plan_diff import PlanDiff, diff
from shardc.render.diff import diff_json, diff_markdown, diff_text, summary_line

NAMES = ("old", "new")


@pytest.fixture(scope="module")
def found() -> PlanDiff:
    """Tables that moved, are gone, new, split, cached, and larger."""
    cached = {"compute_kernel": "fused_uvm_caching", "cache_params": {"load_factor": 0.2}}
    old = {"a": whole(0), "b": whole(1), "c": whole(2), "d": whole(3), "e": whole(0), "f": whole(1), "g": replicated(8)}
    new = {
        "a": whole(2),
        "c": sharded("column_wise", [(2, 0, 0, 1000, 8), (3, 0, 8, 1000, 8)]),
        "d": whole(3) | cached,
        "e": whole(0),
        "f": whole(1, rows=3_000_000),
        "g": replicated(8),
        "h": whole(0),
    }
    times = (0.4, 0.5, 0.5, 0.6)
    memory = [9_000, 200_000_000, 10_000, 12_000]
    return diff(plan(old), plan(new, step_ms=1.1, ms=times, memory=memory, digests__spec="sha256:ffeeddccbb"))


def text(found: PlanDiff, *, width: int = 80, color: bool = False, unicode: bool = True) -> str:
    return diff_text(found, NAMES, width=width, color=color, unicode=unicode)


def test_a_difference_for_people(found):
    assert text(found) == EXPECTED.strip("\n")


def test_ascii_says_the_same(found):
    plain = text(found, width=120, unicode=False)
    assert plain.isascii()
    assert text(found, width=120).translate(str.maketrans({"→": "->", "█": "#"})).split() == plain.split()


def test_color_is_for_terminals_only(found):
    assert "\x1b[" not in text(found)
    assert "\x1b[" in text(found, color=True)


@pytest.mark.parametrize("width", [72, 80, 120])
def test_lines_keep_the_width_and_long_lists_are_cut(width):
    old = plan({f"a_table_with_a_long_name_{i:03}": whole(0, rows=1000 + i) for i in range(90)})
    new = plan({f"a_table_with_a_long_name_{i:03}": whole(1 + i % 3, rows=1000 + i) for i in range(90)})
    lines = text(diff(old, new), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("… 70 more" in line for line in lines)


@pytest.mark.parametrize("width", [72, 80])
def test_no_figure_is_cropped_by_names(width):
    def placed(first: int) -> dict:
        return plan(
            {f"a_table_with_a_really_long_name_{i}": whole((first + i) % 4, rows=10**6 * (i + 1)) for i in range(6)},
            ms=[12.345 + (first + rank) % 4 for rank in range(4)],
            memory=[123_456_789 * (1 + (first + rank) % 4) for rank in range(4)],
        )

    found = diff(placed(0), placed(1))
    lines = text(found, width=width).splitlines()
    assert max(map(len, lines)) <= width
    (change,) = [device for device in found.devices if device.rank == 2]
    before, after = (f"{ms:.1f} ms" for ms in (change.old_ms, change.new_ms))
    assert any(re.match(rf"     2  {before} → {after}  +\+\d+\.\d%  \+ a_table", line) for line in lines)
    assert any(re.match(r"     2  353 MiB → 471 MiB  +\+118 MiB  \+ a_table", line) for line in lines)


@pytest.mark.parametrize("width", [40, 72, 80])
def test_where_a_table_goes_is_never_cut(width):
    pieces = [(rank, 0, 8 * at, 1000, 8) for at, rank in enumerate((0, 2, 4, 6, 1, 3, 5, 7))]
    name, times = "a_table_with_a_long_name", (0.5,) * 8
    old = plan({"b": whole(0, dim=64)}, ms=times)
    new = plan({name: whole(7, rows=100_000, dim=32), "b": sharded("column_wise", pieces)}, ms=times)
    lines = text(diff(old, new), width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 72)
    start = next(number for number, line in enumerate(lines) if line.endswith("moves"))
    column = lines[start].index("to ")
    goes = " ".join(line[column : lines[start].index("moves") - 2].strip() for line in lines[start + 1 :][:8])
    assert "100k x 32 table_wise 7 column_wise 0, 2, 4, 6, 1, 3, 5, 7" in " ".join(goes.split())


def test_the_first_line_says_it_all(found):
    assert summary_line(found) == (
        "1 added, 1 removed, 1 resized, 1 resharded, 1 moved, 1 cached; "
        "102 KiB (less than 0.1% of all shards) between devices; 1.00 ms -> 1.10 ms a step (+10.0%)"
    )


def test_nothing_to_tell():
    same = diff(plan({"a": whole(0)}), plan({"a": whole(0)}))
    assert text(same).splitlines() == ["old → new", "the plans are the same"]
    assert diff_markdown(same, NAMES) == "**`m`**: the plans are the same\n"


def test_a_plan_that_only_came_about_otherwise_says_so():
    found = diff(plan({"a": whole(0)}), plan({"a": whole(0)}, tool__seed=7))
    assert text(found).splitlines() == [
        "old → new",
        "every table stays where it is; 1.00 ms a step as before",
        "",
        "seed  0 → 7",
    ]


def test_times_by_other_costs_are_not_compared():
    found = diff(plan({"a": whole(0)}), plan({"a": whole(1)}, step_ms=7.0, ms=(3.0,) * 4, digests__cost="torchrec"))
    shown = " ".join(text(found).split())
    assert "times are not comparable: they are by other costs (profile, then torchrec)" in shown
    assert "1.00 ms → 7.00 ms a step, by other costs" in shown
    assert "%" not in shown.replace("(100.0% of all shards)", "")
    assert "forward + backward" not in shown


def test_what_the_spec_makes_slower_says_which_setting():
    old = plan({"a": whole(0)}, ms=[1.0] * 4)
    new = plan({"a": whole(1)}, ms=[1.2] * 4, model__global_batch=1024, digests__spec="sha256:another")
    found = diff(old, new)
    assert "     0  2.00 ms → 2.40 ms   +20.0%  the spec: global batch\n" in text(found)
    assert "| 0 | 2.00 ms → 2.40 ms | the spec: global batch |" in diff_markdown(found, NAMES)
    assert {device["time_explained_by_spec"] for device in json.loads(diff_json(found, NAMES))["devices"]} == {True}


def test_a_module_that_is_renamed_is_told_as_that():
    old, new = plan({"a": whole(0)}), plan({"a": whole(0)}, model__module="arch.ebc", digests__spec="sha256:another")
    renamed = Plan.model_validate({**new.model_dump(), "plan": {"arch.ebc": new.model_dump()["plan"]["ebc"]}})
    assert summary_line(diff(old, renamed)).startswith("the module is renamed; every table stays where it is; ")


def test_a_table_of_a_row_more_is_told_with_all_its_digits():
    found = diff(plan({"a": whole(0, rows=98_000)}), plan({"a": whole(0, rows=98_001)}))
    assert "98000 x 16 table_wise 0" in text(found) and "98001 x 16 table_wise 0" in text(found)


def test_plans_that_share_no_table():
    shown = " ".join(text(diff(plan({"a": whole(0)}), plan({"b": whole(1)}))).split())
    assert "the plans share no table; 1 added, 1 removed; 1.00 ms a step as before" in shown
    assert "no table has the same name in both plans: nothing is taken over, all weights are new" in shown


def test_a_comment_for_a_pull_request(found):
    comment = diff_markdown(found, NAMES)
    assert comment.startswith("**`m`**: 1 added, 1 removed,")
    assert "| step time | 1.00 ms | 1.10 ms | +10.0% |" in comment
    assert comment.count("<details>") == comment.count("</details>") == 3
    assert "| `c` | resharded | table_wise 2 | column_wise 2-3 | 35.2 KiB |" in comment
    assert "| 0 | 2 | 66.4 KiB |" in comment
    tables = [line for line in comment.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in tables)


def test_names_of_tables_do_nothing_in_a_comment():
    name = "<img src=x> | `x` @team [l](u)\nnext"
    comment = diff_markdown(diff(plan({name: whole(0)}), plan({name: whole(1)})), NAMES)
    assert "``<img src=x> \\| `x` @team [l](u)\\nnext``" in comment


def test_names_of_tables_do_nothing_in_a_terminal():
    name = "a\x1b[31m\r\u202eb"
    shown = text(diff(plan({name: whole(0)}, ms=(0.1,) * 4), plan({name: whole(1)}, ms=(0.1, 0.2, 0.1, 0.1))))
    assert not set("\x1b\r\u202e") & set(shown)
    assert r"+ a\x1b[31m\r\u202eb" in shown


def test_a_comment_stays_below_the_limit_of_github():
    tables = [{f"table_{i:04}_{'x' * 40}": whole(rank) for i in range(2000)} for rank in (0, 1)]
    comment = diff_markdown(diff(*map(plan, tables)), NAMES)
    assert len(comment) < 65_536
    assert "and 1800 more" in comment


def test_a_difference_for_programs(found):
    document = json.loads(diff_json(found, NAMES))
    assert document["summary"] == summary_line(found)
    assert (document["differ"], document["comparable"], document["shared_tables"]) == (True, True, 6)
    assert document["moved_bytes"] == sum(flow["bytes"] for flow in document["flows"]) == found.moved_bytes
    by_name = {table["name"]: table for table in document["tables"]}
    assert sorted(by_name) == ["a", "b", "c", "d", "f", "h"]
    assert by_name["c"]["new"] == {
        "cached": 1.0,
        "compute_kernel": "fused",
        "pieces": 2,
        "ranks": [2, 3],
        "sharding_type": "column_wise",
    }
    assert by_name["b"]["new"] is None
    assert document["devices"][1]["memory_explained_by"][0]["table"] == "f"


EXPECTED = """
old → new
1 added, 1 removed, 1 resized, 1 resharded, 1 moved, 1 cached; 102 KiB (less
than 0.1% of all shards) between devices; 1.00 ms → 1.10 ms a step (+10.0%)

spec  00112233 → ffeeddcc
the spec is another: tables that stay may cost more or less than before, which
plans do not say

   table  change     from                  to                           moves
+  h      added                            1k x 16 table_wise 0
-  b      removed    1k x 16 table_wise 1
~  f      resized    1k x 16 table_wise 1  3M x 16 table_wise 1
~  a      moved      table_wise 0          table_wise 2              66.4 KiB
~  c      resharded  table_wise 2          column_wise 2-3           35.2 KiB
~  d      cached     table_wise 3          table_wise 3, 20% cached

from  to     bytes
   0   2  66.4 KiB  ██████████████████████████████████████████████
   2   3  35.2 KiB  ████████████████████████

device  forward + backward          because of
     0  1.00 ms → 0.800 ms  -20.0%  - a
     3  1.00 ms → 1.20 ms   +20.0%  + c

device  memory                           because of
     0  9.77 KiB → 8.79 KiB  -0.977 KiB  - a
     1  9.77 KiB → 191 MiB     +191 MiB  + f
     3  9.77 KiB → 11.7 KiB   +1.95 KiB  + c
"""
