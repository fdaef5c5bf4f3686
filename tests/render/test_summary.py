from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from shardc.cost.model import StepCost
from shardc.diagnostics import Diagnostic
from shardc.passes.lower import lower_cluster
from shardc.passes.place import Outcome, Why
from shardc.pipeline import Compiled, devices_of, load, run
from shardc.plan import Bound, Candidate, Chosen, Plan
from shardc.render.summary import WHY, summary, table_shares
from shardc.units import format_bytes, format_ms


class Linear:
    """A compute cost with round numbers: a millionth of a ms for each element that is gathered, twice that backward."""

    constants = np.array([0.01, 0.02])

    def encode(self, shards):
        return (shards.lookups * shards.dim)[:, None] * 1e-6

    def heads(self, z):
        return z[..., :1] * np.array([1.0, 2.0])

    def slopes(self, z):
        return np.array([[1.0], [2.0]])


def compiled(tables: int = 3, devices: int = 2, **extra: object) -> Compiled:
    loaded = load(
        {
            "format": 1,
            "model": {"name": "model", "module": "ebc", "global_batch": 1000},
            "cluster": {
                "device": "h100-80gb",
                "devices_per_host": devices,
                "memory": "1GiB",
                "intra_host_bandwidth": "100GB/s",
            },
            "defaults": {"rows": 1_000_000, "dim": 32, "sharding": ["table_wise"]},
            "table": [{"name": f"table_{i}", "pooling": tables + 1 - i} for i in range(tables)],
            "compile": {"effort": "fast"},
            **extra,
        }
    )
    return run(loaded, cost=StepCost(Linear(), lower_cluster(loaded, devices_of(loaded))))


def shown(of: Compiled, previous: Plan | None = None, *, width: int = 80, color=False, unicode=True) -> str:
    return summary(of, previous, width=width, color=color, unicode=unicode)


@pytest.fixture(scope="module")
def small() -> Compiled:
    """Three tables where they are pinned, under round figures: no change of a placer or a bound changes it."""
    pins = [{"name": f"table_{i}", "pooling": 4 - i, "pin": [i % 2]} for i in range(3)]
    found = compiled(table=pins)
    candidates = (
        Candidate(strategy="size_greedy", step_time_ms=0.8, feasible=True, reason=Outcome.COSTLIER),
        Candidate(strategy="dim_greedy", step_time_ms=None, feasible=False, reason=Outcome.INFEASIBLE),
        Candidate(strategy="rl_policy", step_time_ms=None, feasible=False, reason=Outcome.NO_POLICY),
        Candidate(strategy="cost_greedy+search", step_time_ms=0.6688, feasible=True, reason=Outcome.CHOSEN),
        Candidate(strategy="size_greedy+search", step_time_ms=0.6688, feasible=True, reason=Outcome.EQUAL),
    )
    fixed = {
        "bound": Bound(step_time_ms=0.5, gap=0.346),
        "chosen": Chosen(strategy="cost_greedy+search", reason=Why.NO_POLICY),
        "candidates": candidates,
    }
    warning = Diagnostic("SH501", "not measured", severity="warning")
    return replace(found, plan=found.plan.model_copy(update=fixed), warnings=(warning,))


@pytest.fixture(scope="module")
def large() -> Compiled:
    return compiled(tables=40, devices=32)


def test_a_summary(small):
    assert shown(small, width=72) == EXPECTED.strip("\n")


def test_ascii_says_the_same(small):
    ascii_only = shown(small, unicode=False)
    assert ascii_only.isascii()
    translated = shown(small).translate(str.maketrans({"█": "#", "▒": "=", "·": ".", "×": "x", "…": "..."}))
    assert translated.split() == ascii_only.split()


@pytest.mark.parametrize("width", [72, 80, 120])
def test_lines_keep_the_width_and_use_it(large, width):
    lines = shown(large, width=width).splitlines()
    assert max(map(len, lines)) <= width
    bars = [line for line in lines if "█" in line]
    assert max(map(len, bars)) >= width - 6


def test_color_changes_nothing_but_color(small):
    colored = shown(small, color=True)
    assert "\x1b[" in colored
    assert "\x1b[" not in shown(small)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).split() == shown(small).split()


def test_of_many_devices_the_extremes_are_shown(large):
    text = shown(large)
    assert "… 17 more" in text
    rows = text[text.index("device  ") : text.index("table  ")].strip().splitlines()[1:]
    ranks = [int(row.split()[0]) for row in rows if "more" not in row]
    assert len(ranks) == 15
    compute = [device.forward_ms + device.backward_ms for device in large.plan.score.devices]
    costliest, cheapest = sorted(ranks[:12], key=lambda r: -compute[r]), ranks[12:]
    assert max(compute[r] for r in set(range(32)) - set(costliest)) <= compute[costliest[-1]]
    assert max(compute[r] for r in cheapest) <= min(compute[r] for r in costliest)


def test_of_many_tables_the_important_ones_are_shown(large):
    text = shown(large)
    assert "… 3" in text[text.index("critical time") :]


def test_shares_add_up_to_the_compute_time_without_launches(small):
    cost = small.choice.judge.cost
    shares = table_shares(small.choice, cost)
    assert shares.sum() == pytest.approx(1.0)
    assert (shares >= 0).all()


@pytest.mark.parametrize(
    ("factor", "line"),
    [
        (1.0, "as fast as the plan that it replaces"),
        (2.0, "50.0% faster than the plan that it replaces"),
        (0.8, "25.0% slower than the plan that it replaces"),
    ],
)
def test_replacing_a_plan_says_what_changes(small, factor, line):
    score = small.plan.score.model_copy(update={"step_time_ms": small.plan.score.step_time_ms * factor})
    previous = small.plan.model_copy(update={"score": score})
    third = shown(small, previous).splitlines()[2]
    assert line in third
    assert ("→" in third) == (factor != 1.0)


def test_a_change_of_the_spec_is_named(small):
    digests = small.plan.digests.model_copy(update={"spec": "sha256:0"})
    score = small.plan.score.model_copy(update={"step_time_ms": 1.0})
    previous = small.plan.model_copy(update={"digests": digests, "score": score})
    assert "spec or profile have changed" in shown(small, previous, width=120)


def test_a_cost_model_without_phases_has_no_tables_and_no_bound():
    class Sum:
        def encode(self, shards):
            return (shards.lookups * shards.dim)[:, None] * 1e-6

        def score(self, z):
            return z[..., 0].max(axis=-1)

    loaded = load(
        {
            "format": 1,
            "model": {"name": "model", "module": "ebc", "global_batch": 1000},
            "cluster": {"device": "h100-80gb", "devices_per_host": 2},
            "defaults": {"rows": 1000, "dim": 32, "pooling": 1, "sharding": ["table_wise"]},
            "table": [{"name": "a"}, {"name": "b"}],
        }
    )
    text = shown(run(loaded, cost=Sum(), effort="fast"))
    assert "no bound" in text
    assert "critical time" not in text


def test_a_step_of_one_phase_is_not_drawn_as_several():
    loaded = load(
        {
            "format": 1,
            "model": {"name": "model", "module": "ebc", "global_batch": 1000},
            "cluster": {"device": "h100-80gb", "devices_per_host": 2},
            "defaults": {"rows": 1000, "dim": 32, "sharding": ["table_wise"]},
            "table": [{"name": "a", "pooling": 9, "pin": [0]}, {"name": "b", "pooling": 1, "pin": [1]}],
            "compile": {"cost": "torchrec"},
        }
    )
    found = run(loaded, effort="fast")
    text = shown(found)
    assert text.splitlines()[0].endswith("2 tables on 2 × h100-80gb, TorchRec's estimates")
    assert "in a step" not in text
    costliest = text[text.index("device  ") :].splitlines()[1]
    assert re.match(r" +0  █+▒+ ", costliest)
    assert costliest.split()[2:4] == text.splitlines()[1].split()[:2]
    assert re.search(r"^a .* 100\.0%$", text, re.MULTILINE)
    digests = found.plan.digests.model_copy(update={"cost": "profile"})
    previous = found.plan.model_copy(update={"digests": digests})
    assert "by other costs (profile)" in shown(found, previous).splitlines()[2]


def test_names_are_shown_as_they_are_or_cut():
    name = "[bold]" + "x" * 40
    found = compiled(table=[{"name": name, "pooling": 1}])
    assert name[:21] + "…" in shown(found)


def test_every_reason_has_words():
    assert WHY.keys() == set(Why)


EXPECTED = """
model  3 tables on 2 × h100-80gb
0.709 ms a step, 34.6% above the bound of 0.500 ms, balance 0.52

phase                in a step                          time  share
input all-to-all     ██                            0.0603 ms     9%
forward                ████████                     0.202 ms    28%
forward all-to-all             █                   0.0213 ms     3%
backward all-to-all             ▒                  0.0213 ms     3%
backward                         ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒   0.404 ms    57%

device  forward █ backward ▒          time  memory of 870 MiB
     0  ████████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  0.606 ms  ████··········     252 MiB
     1  ████▒▒▒▒▒▒▒▒▒             0.318 ms  ██············     126 MiB

table     rows  dim  pooling  sharding    ranks  critical time
table_0     1M   32        4  table_wise  0              66.7%
table_2     1M   32        2  table_wise  0              33.3%
… 1 more                                                  0.0%

cost_greedy+search was chosen: there is no trained RL policy
strategy            step time
cost_greedy+search   0.669 ms  chosen
size_greedy+search   0.669 ms  equal
size_greedy          0.800 ms  +12.9%
dim_greedy                     found nothing that fits
rl_policy                      not tried

1 warning
"""


def test_what_is_in_host_memory_is_shown_by_device_and_by_table():
    cluster = {"device": "h100-80gb", "devices_per_host": 2, "memory": "1GiB", "host_memory": "10GiB"}
    tables = [
        {"name": "large", "rows": 10_000_000, "pooling": 3, "pin": [1], "kernels": ["fused_uvm_caching"]},
        {"name": "small", "pooling": 2, "pin": [0]},
    ]
    text = shown(compiled(cluster=cluster, table=tables), width=100)
    header, *devices = text[text.index("device ") :].splitlines()[:3]
    assert header.endswith("of 5 GiB in its host")
    assert [line.split()[-2:] for line in devices] == [["0", "B"], ["1.19", "GiB"]]
    assert max(map(len, text.splitlines())) <= 100
    assert "table_wise, 20% cached" in text


@pytest.mark.parametrize("width", [72, 80, 100])
def test_no_figure_is_cropped_where_hosts_and_devices_have_memory_of_their_own(width):
    cluster = {
        "device": "h100-80gb",
        "hosts": 2,
        "devices_per_host": 2,
        "memory": "1.1GiB",
        "host_memory": "100GiB",
        "host": [{"hosts": [1], "host_memory": "120GiB", "memory": "1.22GiB"}],
    }
    wide = {"rows": 2_345_000, "dim": 1024, "pooling": 12.34, "kernels": ["fused_uvm_caching"], "cache_ratio": 0.05}
    ways = ["table_column_wise", "column_wise", "row_wise", "table_wise"]
    tables = [wide | {"name": f"a_table_with_a_long_name_{way}", "sharding": [way]} for way in ways]
    compiled_ = compiled(cluster=cluster, table=[*tables, {"name": "small", "pooling": 2}])
    text = shown(compiled_, width=width)
    assert max(map(len, text.splitlines())) <= width
    for device in compiled_.plan.score.devices:
        line = next(line for line in text.splitlines() if line.startswith(f"{device.rank:6}  "))
        assert line.endswith(f"{format_bytes(device.host_memory_bytes)}")
        assert format_bytes(device.memory_bytes) in line
        assert format_ms((device.forward_ms or 0.0) + (device.backward_ms or 0.0)) in line
    shares = table_shares(compiled_.choice, compiled_.choice.judge.cost)
    for info, share in zip(compiled_.choice.judge.problem.tables, shares, strict=True):
        if info.name != "small" and share >= 0.001:
            way = compiled_.plan.plan["ebc"][info.name].sharding_type
            assert re.search(rf"M +1024 +12\.34  {way}, 5% cached +\S.* {share:.1%}$", text, re.MULTILINE)
