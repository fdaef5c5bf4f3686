import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.access import BIN_COUNTS, BIN_EDGES, zipf_histogram
from shardc.measure.streams import draw_bag_lengths, draw_indices
from shardc.problem import ACCESS_BINS
from shardc.spec import Bins, Zipf

MIXED = (0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.03, *[0.0] * 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bins_of(indices: torch.Tensor) -> np.ndarray:
    counts = np.unique(indices.numpy(), return_counts=True)[1]
    return np.bincount(np.searchsorted(BIN_EDGES, counts), minlength=ACCESS_BINS) / len(counts)


@given(pooling=st.floats(0.01, 50), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_bags_are_whole_numbers_next_to_the_pooling_factor(pooling, seed):
    lengths = draw_bag_lengths(pooling, 4000, generator(seed))
    assert set(lengths.tolist()) <= {int(pooling), int(pooling) + 1}
    assert lengths.double().mean() == pytest.approx(pooling, abs=0.04)  # five standard deviations


@given(
    rows=st.integers(1, 10**9),
    lookups=st.integers(0, 500),
    access=st.one_of(
        st.floats(0, 5).map(Zipf), st.integers(0, 16).map(lambda k: Bins(tuple(np.eye(ACCESS_BINS)[k].tolist())))
    ),
)
def test_every_index_is_a_row_and_there_are_as_many_as_asked_for(rows, lookups, access):
    indices = draw_indices(access, rows, lookups, generator())
    assert (indices.dtype, len(indices)) == (torch.int64, lookups)
    assert not lookups or (int(indices.min()) >= 0 and int(indices.max()) < rows)


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.3])
def test_a_law_gives_the_bins_that_the_cost_model_is_told(exponent):
    rows, lookups = 20_000, 60_000
    expected = zipf_histogram(np.array([rows]), np.array([lookups]), np.array([exponent]))
    drawn = draw_indices(Zipf(exponent), rows, lookups, generator())
    assert np.abs(bins_of(drawn) - expected.bins[0]).max() < 0.03
    assert len(drawn.unique()) == pytest.approx(expected.unique[0], rel=0.03)


def test_asked_for_bins_come_out():
    lookups = round(3000 * float(np.array(MIXED) @ BIN_COUNTS))
    drawn = draw_indices(Bins(MIXED), 10**7, lookups, generator())
    assert np.abs(bins_of(drawn) - MIXED).max() < 0.08
    assert len(drawn.unique()) == pytest.approx(3000, rel=0.02)


def test_asked_for_bins_come_out_for_any_number_of_lookups():
    shares = (0.5, 0.5, *[0.0] * 15)
    for lookups in (999, 1000, 1001):  # 667 rows, of which 334 are accessed twice, are 1001 accesses
        assert np.abs(bins_of(draw_indices(Bins(shares), 10**7, lookups, generator())) - shares).max() < 0.05


def test_popular_rows_are_the_same_in_every_batch_and_are_scattered():
    for access in (Zipf(1.2), Bins(MIXED)):
        first, second = (draw_indices(access, 100_000, 20_000, generator(seed)) for seed in (1, 2))
        popular = [torch.bincount(batch, minlength=100_000).topk(5).indices.tolist() for batch in (first, second)]
        assert set(popular[0]) & set(popular[1])
        assert np.std(popular[0]) > 1000


def test_the_order_is_random_and_decided_by_the_seed():
    one, same, other = (draw_indices(Bins(MIXED), 1000, 5000, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    # Accesses to one row are spread over the batch instead of following one another.
    assert (one[1:] == one[:-1]).float().mean() < 0.1
