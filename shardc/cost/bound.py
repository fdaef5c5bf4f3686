"""A certified lower bound on the step time of every placement and every choice of sharding options.

For any placement and any convex, non-decreasing phase cost h, the costliest device costs at least h at the mean load
(Jensen), and at least what a single unit costs alone; a phase's fixed cost is due if any block takes part. All of these
are convex in the *mix* of options, a share for each option of a block, so the best mix bounds the best choice. The mix
is improved by mirror descent; what certifies the bound is not that it converged but the linearisations met on the way:
each is below the function everywhere, so is their mean, and its minimum over all mixes is reached by one option a
block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardc.cost.model import StepCost
from shardc.problem import Floats, Ints, Problem

_ITERATIONS = 1000
_RATE = 128.0
_SOFTNESS = 0.1
# Mixes are rounded far above what processors differ by, so that a thousand steps of descent are the same everywhere.
_GRID = 2.0**-20
_SAFETY = 1e-9  # relative: far more than float64 loses on the way
_ROUNDING = 1e-9  # ms: more than the judge rounds a step time down by


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A bound and the mix of options that came closest to it.

    Attributes:
        step_time_ms: no placement of the problem is faster than this.
        mix: float[O], for each block a share of each of its options.
    """

    step_time_ms: float
    mix: Floats


def lower_bound(problem: Problem, cost: StepCost, latents: Floats) -> LowerBound:
    """Bound the step time from below.

    Args:
        problem: the problem.
        cost: its cost model; the form of its heads is what the certificate rests on.
        latents: float[O, K], latents of one unit of each option (see `shardc.judge.Judge.latents`).
    """
    devices = problem.cluster.devices
    spread = problem.option_units == 0
    share = np.where(spread, 1.0, problem.option_units / devices)
    mean = latents * share[:, None]  # [O, K], what an option adds to the mean load
    present = cost.present(latents)
    certain = _certain(present, problem.option_block, len(problem.blocks))
    # [O, 2 P]: what one unit costs the device that holds it, and the fixed costs that depend on the choice of options.
    alone = np.concatenate([cost.heads(latents), present * cost.constants * (1.0 - certain)], axis=1)
    fixed = float(cost.constants @ certain)
    starts = np.searchsorted(problem.option_block, np.arange(len(problem.blocks)))

    logits = np.zeros(len(share))
    slope_sum, level_sum, weight, scale = np.zeros(len(share)), 0.0, 0, np.zeros(len(starts))
    best, best_mix, best_value = -np.inf, np.zeros(len(share)), np.inf
    for step in range(1, _ITERATIONS + 1):
        mix = _normalised(logits, problem.option_block, starts)
        softness = _SOFTNESS / np.sqrt(step)
        value, level, slope = _relaxed(cost, mean, alone, mix, problem.option_block, len(problem.blocks), softness)
        slope_sum, level_sum, weight = slope_sum + step * slope, level_sum + step * level, weight + step
        for slopes, base in ((slope, level), (slope_sum / weight, level_sum / weight)):
            best = max(best, base + float(np.minimum.reduceat(slopes, starts).sum()))
        if value < best_value:
            best_value, best_mix = value, mix
        spans = np.maximum.reduceat(slope, starts) - np.minimum.reduceat(slope, starts)
        scale += (step * spans) ** 2
        logits = -slope_sum * (_RATE / np.sqrt(np.maximum(scale, 1e-300)))[problem.option_block]
    return LowerBound(max(0.0, (best + fixed) * (1.0 - _SAFETY) - _ROUNDING), best_mix)


def _relaxed(
    cost: StepCost, mean: Floats, alone: Floats, mix: Floats, block: Ints, blocks: int, softness: float
) -> tuple[float, float, Floats]:
    """The convex relaxation at a mix, and a linear function below it everywhere: level + slope float[O] @ mix.

    Each phase is the largest of its mean load's cost and every block's single cost. Any weighted mean of these is below
    their maximum; weights that favour the large ones softly make the slopes change gradually, so descent converges.
    """
    load = mix @ mean
    phases = len(cost.phases)
    averages, slopes = np.zeros(2 * phases), np.zeros((2 * phases, len(load)))
    averages[:phases], slopes[:phases] = cost.heads(load), cost.slopes(load)
    singles = np.zeros((blocks, alone.shape[1]))
    np.add.at(singles, block, mix[:, None] * alone)
    terms = np.concatenate([averages[None], singles])  # [1 + B, P]
    largest = terms.max(axis=0)
    weights = np.exp((terms - largest) / (softness * largest.sum() + 1e-300))
    weights /= weights.sum(axis=0)
    slope = mean @ (weights[0] @ slopes) + (alone * weights[1:][block]).sum(axis=1)
    level = float(weights[0] @ (averages - slopes @ load))
    return float(largest.sum()), level, slope


def _certain(present: Floats, block: Ints, blocks: int) -> Floats:
    """float[P]: 1.0 for the phases that some block takes part in whatever its option."""
    least = np.ones((blocks, present.shape[1]))
    np.minimum.at(least, block, present)
    return np.asarray(least.max(axis=0))


def _normalised(logits: Floats, block: Ints, starts: Ints) -> Floats:
    weights = np.exp(logits - np.maximum.reduceat(logits, starts)[block])
    return np.asarray(np.rint(weights / np.add.reduceat(weights, starts)[block] / _GRID) * _GRID)
