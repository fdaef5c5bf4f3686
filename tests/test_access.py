"""The closed forms are checked against streams that are drawn and counted."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc import access
from shardc.access import BIN_COUNTS, BIN_EDGES, bins_histogram, histograms, zipf_histogram, zipf_mass
from shardc.problem import ACCESS_BINS
from shardc.spec import Bins, Zipf


def drawn_ranks(rng: np.random.Generator, rows: int, lookups: int, exponent: float) -> np.ndarray:
    """Ranks by rejection-free inversion on a table of cumulated masses: independent of `zipf_mass`."""
    edges = np.arange(1.0, rows + 2.0)
    power = 1.0 - exponent
    primitive = np.log(edges) if power == 0 else edges**power / power
    cumulated = (primitive[1:] - primitive[0]) / (primitive[-1] - primitive[0])
    return np.minimum(np.searchsorted(cumulated, rng.random(lookups), side="right"), rows - 1)


def counted(ranks: np.ndarray) -> tuple[np.ndarray, int]:
    """Histogram and number of distinct rows of one drawn step."""
    counts = np.unique(ranks, return_counts=True)[1]
    edges = [0, *(2**k for k in range(16)), np.inf]
    inside = [(counts > low) & (counts <= high) for low, high in itertools.pairwise(edges)]
    return np.array([member.sum() for member in inside], dtype=float), len(counts)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.05, 1.6])
@pytest.mark.parametrize(("rows", "lookups"), [(50, 4000), (1000, 200), (3000, 50_000), (200_000, 30_000)])
def test_zipf_histogram_is_what_drawn_streams_show(rows, lookups, exponent):
    rng = np.random.default_rng(0)
    steps = [counted(drawn_ranks(rng, rows, lookups, exponent)) for _ in range(60)]
    bins = np.sum([step[0] for step in steps], axis=0)
    found = zipf_histogram(np.array([rows]), np.array([lookups]), np.array([exponent]))
    assert np.abs(found.bins[0] - bins / bins.sum()).max() < 0.03
    assert found.unique[0] == pytest.approx(np.mean([step[1] for step in steps]), rel=0.03)


def test_zipf_mass_of_whole_ranks_is_what_a_table_of_masses_says():
    rows = 40
    for exponent in (0.0, 0.3, 1.0, 2.0):
        density = np.array([np.mean(np.linspace(r, r + 1, 10_001)[:-1] ** -exponent) for r in range(1, rows + 1)])
        mass = zipf_mass(np.arange(rows + 1.0), np.full(rows + 1, float(rows)), np.full(rows + 1, exponent))
        assert np.diff(mass) == pytest.approx(density / density.sum(), rel=2e-3)
        assert (mass[0], mass[-1]) == (0.0, pytest.approx(1.0))


@given(
    rows=st.integers(1, 10**12),
    lookups=st.floats(0.01, 1e12),
    exponent=st.floats(0, 5),
)
def test_any_table_has_a_distribution_of_bins_and_no_more_unique_rows_than_there_can_be(rows, lookups, exponent):
    found = zipf_histogram(np.array([float(rows)]), np.array([lookups]), np.array([exponent]))
    assert found.bins.shape == (1, ACCESS_BINS)
    assert (found.bins >= 0).all()
    assert found.bins.sum() == pytest.approx(1)
    assert 0 < found.unique[0] <= min(rows, lookups) * (1 + 1e-12)


@given(rows=st.integers(1, 10**9), lookups=st.floats(1, 1e9), exponent=st.floats(0, 3))
def test_more_lookups_touch_more_rows_and_a_steeper_law_fewer(rows, lookups, exponent):
    base, more, steeper = zipf_histogram(
        np.full(3, float(rows)), np.array([lookups, 2 * lookups, lookups]), np.array([exponent, exponent, exponent + 1])
    ).unique
    assert base <= more * (1 + 1e-9)
    # Segments of ranks are taken as flat, which costs a little exactness.
    assert steeper <= base * 1.05


def test_interpolated_bins_are_those_of_the_poisson_law():
    """Rows of one expectation: what a table of shares says between its points, and what the law itself says."""
    expected = np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(1e6), 20_000))
    found = access._rows_by_bin(expected[:, None], np.ones((len(expected), 1)))
    below = np.stack([access._poisson_cdf(expected, edge) for edge in (0.0, *BIN_EDGES)], axis=1)
    shares = np.diff(np.concatenate([below, np.ones((len(expected), 1))], axis=1), axis=1)
    rare = expected < 1e-5  # where a difference from one has no digits left
    assert np.abs(found - shares).max() < 0.1  # at the edges of the highest bins, of one segment out of 64
    assert np.abs(found - shares).mean() < 1e-4
    assert found[~rare].sum(axis=1) == pytest.approx(1 - np.exp(-expected[~rare]), rel=1e-4)
    assert found[rare].sum(axis=1) == pytest.approx(expected[rare], rel=1e-4)


def test_a_table_of_one_row_has_one_unique_row():
    found = zipf_histogram(np.array([1.0]), np.array([3000.0]), np.array([1.05]))
    assert found.unique[0] == pytest.approx(1)
    assert found.bins[0, 12] + found.bins[0, 11] == pytest.approx(1)  # about 3000 accesses: (1024, 2048], (2048, 4096]
    assert found.bins[0].argmax() == 12


def test_a_uniform_huge_table_repeats_no_row():
    found = zipf_histogram(np.array([1e12]), np.array([1e5]), np.array([0.0]))
    assert found.unique[0] == pytest.approx(1e5, rel=1e-3)
    assert found.bins[0, 0] == pytest.approx(1, abs=1e-3)


def test_representative_counts_lie_in_their_bins():
    assert np.array_equal(np.searchsorted(BIN_EDGES, BIN_COUNTS), np.arange(ACCESS_BINS))


@given(st.integers(1, 10**6), st.lists(st.floats(0, 1), min_size=17, max_size=17).filter(lambda s: sum(s) > 0.1))
def test_bins_say_how_many_unique_rows_there_are(unique, weights):
    shares = np.array(weights) / sum(weights)
    lookups = unique * float(shares @ BIN_COUNTS)  # that many rows, accessed as often as their bins say
    found = bins_histogram(shares[None], np.array([1e12]), np.array([lookups]))
    assert found.unique[0] == pytest.approx(unique)
    assert np.array_equal(found.bins, shares[None])


def test_bins_never_claim_more_rows_than_the_table_has():
    shares = np.eye(ACCESS_BINS)[:1]
    assert bins_histogram(shares, np.array([10.0]), np.array([1e6])).unique[0] == 10


def test_laws_and_bins_are_mixed_in_the_order_given():
    shares = (0.5, 0.5, *[0.0] * 15)
    rows, lookups = np.array([100.0, 1e6, 100.0, 1e6]), np.array([1000.0, 300.0, 1000.0, 600.0])
    found = histograms([Zipf(1.0), Bins(shares), Zipf(0.0), Bins(tuple(2e-4 + s for s in shares))], rows, lookups)
    alone = zipf_histogram(rows[[0, 2]], lookups[[0, 2]], np.array([1.0, 0.0]))
    assert np.array_equal(found.bins[[0, 2]], alone.bins)
    assert np.array_equal(found.unique[[0, 2]], alone.unique)
    assert found.bins[1] == pytest.approx(shares)
    assert found.unique[1] == pytest.approx(200)
    assert found.bins[3].sum() == pytest.approx(1)  # shares that sum to almost one are made to sum to one
