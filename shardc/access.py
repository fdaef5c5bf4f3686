"""Access distributions: which rows of a table a step touches, and how often.

AutoShard (2208.06399, section 3.1) describes a table's accesses by 17 bins: the share of the *unique* indices of a
batch whose access count lies in (0,1], (1,2], (2,4] ... (16384,32768], (32768,inf). A bounded Zipf law is turned into
these bins in closed form: a row with expectation x is accessed Poisson(x) times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from shardc.problem import ACCESS_BINS, Floats
from shardc.spec import Access, Bins, Zipf

BIN_EDGES: Floats = np.exp2(np.arange(ACCESS_BINS - 1, dtype=np.float64))
"""Upper edges of all bins but the last: 1, 2, 4 ... 32768."""

BIN_COUNTS: Floats = np.concatenate([[1.0, 2.0], (BIN_EDGES[1:-1] + BIN_EDGES[2:] + 1) / 2, [49152.0]])
"""A representative access count for each bin: the mean of those it holds, or 1.5 x the last edge."""

_SEGMENTS = 64
# Bins are interpolated between expectations that differ by 0.6 %, which is how wide the sharpest edge between two bins
# is: a share of a table is off by 0.02 at most and 1e-5 on average, and its unique rows by a few millionths.
_POINTS = 4096
_LEAST_EXPECTED, _MOST_EXPECTED = 1e-6, 1e5
_AT_ONCE = 256  # tables, so that what is looked up for them stays in the cache


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bins and unique rows of S index streams.

    Attributes:
        bins: float[S, 17], share of unique indices by access count; rows sum to 1.
        unique: float[S], expected number of distinct rows.
    """

    bins: Floats
    unique: Floats


def histograms(accesses: Sequence[Access], rows: Floats, lookups: Floats) -> Histogram:
    """Histogram of S tables.

    Args:
        accesses: Zipf laws or bins, S of them.
        rows: float[S].
        lookups: float[S], accesses of one step.
    """
    exponent = np.array([access.exponent if isinstance(access, Zipf) else 0.0 for access in accesses])
    found = zipf_histogram(rows, lookups, exponent)
    binned = [i for i, access in enumerate(accesses) if isinstance(access, Bins)]
    if not binned:
        return found
    shares = np.array([access.shares for access in accesses if isinstance(access, Bins)])
    given = bins_histogram(shares / shares.sum(axis=1, keepdims=True), rows[binned], lookups[binned])
    bins, unique = found.bins.copy(), found.unique.copy()
    bins[binned], unique[binned] = given.bins, given.unique
    return Histogram(bins, unique)


def zipf_mass(rank: Floats, rows: Floats, exponent: Floats) -> Floats:
    """Probability that one access goes to a rank below `rank` (0 ... rows) of a bounded Zipf law.

    The law is the continuous one (density proportional to x**-exponent on [1, rows + 1)), whose inverse is closed form:
    `shardc.measure.streams` draws from exactly this law.
    """
    power = 1.0 - exponent
    flat = np.abs(power) < 1e-9
    power = np.where(flat, 1.0, power)
    share = np.expm1(power * np.log1p(rank)) / np.expm1(power * np.log1p(rows))
    return np.asarray(np.where(flat, np.log1p(rank) / np.log1p(rows), share))


def zipf_histogram(rows: Floats, lookups: Floats, exponent: Floats) -> Histogram:
    """Expected bins of `lookups` accesses to tables of `rows` rows under a bounded Zipf law.

    Args:
        rows: float[S], rows of each table.
        lookups: float[S], accesses of one step.
        exponent: float[S], Zipf exponent; 0 is uniform.
    """
    steps = np.linspace(0.0, 1.0, _SEGMENTS + 1)
    # Whole ranks up to the first few, then segments that grow geometrically: the head of the law is where counts vary.
    edges = np.expm1(steps * np.log1p(rows)[:, None])
    edges = np.maximum.accumulate(np.round(edges), axis=1)
    size = np.diff(edges, axis=1)
    mass = np.diff(zipf_mass(edges, rows[:, None], exponent[:, None]), axis=1)
    expected = lookups[:, None] * mass / np.maximum(size, 1.0)
    counts = np.empty((len(size), ACCESS_BINS))
    for part in (slice(start, start + _AT_ONCE) for start in range(0, len(size), _AT_ONCE)):
        counts[part] = _rows_by_bin(expected[part], size[part])
    # Fewer accesses than one: a step touches a row only sometimes, but the shares still have to be a distribution.
    unique = np.minimum(np.maximum(counts.sum(axis=1), 1e-12), np.minimum(rows, lookups))
    return Histogram(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300), unique)


def bins_histogram(bins: Floats, rows: Floats, lookups: Floats) -> Histogram:
    """Histogram of tables whose bins are given: the unique rows follow from the number of accesses."""
    unique = lookups / (bins @ BIN_COUNTS)
    return Histogram(bins, np.minimum(unique, rows))


def _rows_by_bin(expected: Floats, size: Floats) -> Floats:
    """Rows in each bin, float[S, 17], of segments with so many rows float[S, G] of the same expectation float[S, G]."""
    shares = _shares_by_expectation()
    first, last = np.log(_LEAST_EXPECTED), np.log(_MOST_EXPECTED)
    place = (np.log(np.clip(expected, _LEAST_EXPECTED, _MOST_EXPECTED)) - first) * ((_POINTS - 1) / (last - first))
    below = np.minimum(place.astype(np.int64), _POINTS - 2)
    above = size * np.minimum(expected / _LEAST_EXPECTED, 1.0)  # rarer rows are accessed once, if at all
    part = above * (place - below)
    above -= part
    counts = np.einsum("sg,sgb->sb", above, shares[below]) + np.einsum("sg,sgb->sb", part, shares[below + 1])
    return np.asarray(counts)


@cache
def _shares_by_expectation() -> Floats:
    """Probability of each bin, float[_POINTS, 17], of a row by its expectation; the rest is that it is not accessed."""
    expected = np.geomspace(_LEAST_EXPECTED, _MOST_EXPECTED, _POINTS)
    below = [_poisson_cdf(expected, edge) for edge in (0.0, *BIN_EDGES)]
    return np.asarray(np.clip(np.diff(np.stack([*below, np.ones(_POINTS)], axis=1), axis=1), 0.0, 1.0))


def _poisson_cdf(mean: Floats, count: float) -> Floats:
    """P(N <= count) for N ~ Poisson(mean): exact up to 4, beyond by Wilson and Hilferty's cube-root approximation."""
    if count <= 4:
        term = total = np.exp(-mean)
        for k in range(1, int(count) + 1):
            term = term * mean / k
            total = total + term
        return total
    freedom = count + 1.0
    spread = 1.0 / (9.0 * freedom)
    score = (np.cbrt(mean / freedom) - (1.0 - spread)) / np.sqrt(spread)
    # Normal tail by its tanh approximation (absolute error below 4e-4).
    return np.asarray(0.5 * (1.0 - np.tanh(np.sqrt(2.0 / np.pi) * score * (1.0 + 0.044715 * score * score))))
