"""Words and short forms that output for people has in common, in a terminal or in a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from shardc.passes.place import Outcome, Why
from shardc.plan import PlanCluster
from shardc.problem import Collective

WHY = {
    Why.POLICY_BEST: "nothing did better than the RL policy",
    Why.NO_POLICY: "there is no trained RL policy",
    Why.POLICY_INFEASIBLE: "the RL policy found no placement that fits",
    Why.HEURISTIC_BETTER: "the RL policy did no better than a heuristic",
    Why.SEARCH_BETTER: "the RL policy alone did no better than local search",
    Why.EXACT_BETTER: "HiGHS found a better placement than local search",
    Why.NEAR_BASE: "of what is near the base, it is worth the bytes that move",
    Why.BOUND_REACHED: "it reaches the lower bound, without the RL policy",
    Why.INTERRUPTED: "placing was interrupted before the RL policy had its turn",
}
"""Reasons for a choice, in plain words."""

OUTCOMES = {
    Outcome.CHOSEN: "chosen",
    Outcome.COSTLIER: "+{over:.1%}",
    Outcome.EQUAL: "equal",
    Outcome.INFEASIBLE: "found nothing that fits",
    Outcome.NO_POLICY: "not tried",
    Outcome.NO_SOLVER: "not tried: pip install highspy",
    Outcome.MOVES_MORE: "{over:.1%}, but moves more",
}
"""What became of a candidate that takes a share of `over` longer than the plan."""


def phase_name(name: str) -> str:
    """A phase as people write it: forward all-to-all for forward_all_to_all."""
    words = name.replace("_", " ")
    for collective in Collective:
        words = words.replace(collective.replace("_", " "), collective.replace("_", "-"))
    return words


def device_counts(cluster: PlanCluster, times: str = "×") -> str:
    """The devices of a cluster: 16 × h100-80gb, or 8 × h100-80gb, 8 × a100-40gb."""
    hosts = Counter(cluster.host_devices or (cluster.device,) * cluster.hosts)
    return ", ".join(f"{count * cluster.devices_per_host} {times} {name}" for name, count in hosts.items())


def rank_ranges(ranks: Sequence[int]) -> str:
    """Ranks with runs joined: 0-3, 6."""

    def runs() -> Iterator[str]:
        for _, run in groupby(enumerate(sorted(ranks)), key=lambda pair: pair[1] - pair[0]):
            members = [rank for _, rank in run]
            yield str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}"

    return ", ".join(runs())
