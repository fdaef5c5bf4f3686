"""Random placement, the yardstick of the papers (AutoShard, 2208.06399); memory, pins and exclusions are kept.

The papers' prototypes ignore memory here. Units go in descending memory, so that it fails only where any placer that
takes one unit after the other easily does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardc.judge import Judge, Partial
from shardc.placers.greedy import place_largest_first
from shardc.problem import Bools, Placement


def place_at_random(judge: Judge, options: Sequence[int], seed: int) -> Placement | None:
    """Each unit to any of the places that have room for it; None if a unit fits nowhere any more."""
    rng = np.random.default_rng(seed)

    def any_place(partial: Partial, block: int, unit: int, fits: Bools) -> int:
        return int(rng.choice(np.flatnonzero(fits)))

    return place_largest_first(judge, options, judge.problem.unit_fill, any_place)
