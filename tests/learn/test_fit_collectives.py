import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.learn.fit_collectives import fit_link, held_out_error

SENT = np.geomspace(1e3, 1e8, 24)


def ms_of(latency_ms: float, bandwidth: float) -> np.ndarray:
    return latency_ms + 1e3 * SENT / bandwidth


@given(st.floats(1e-3, 10), st.floats(1e8, 1e11))
def test_exact_times_give_back_what_made_them(latency_ms, bandwidth):
    ms = ms_of(latency_ms, bandwidth)
    link = fit_link(SENT, ms)
    assert link.latency_ms + 1e3 * SENT / link.bandwidth == pytest.approx(ms, rel=1e-6)
    assert held_out_error(SENT, ms) < 1e-6


@given(st.integers(0, 10**6))
def test_noise_and_a_few_wild_times_move_little(seed):
    rng = np.random.default_rng(seed)
    ms = ms_of(0.3, 1e9) * np.exp(rng.normal(0, 0.05, len(SENT)))
    ms[rng.choice(len(SENT), 3, replace=False)] *= 20
    link = fit_link(SENT, ms)
    assert link.latency_ms == pytest.approx(0.3, rel=0.2)
    assert link.bandwidth == pytest.approx(1e9, rel=0.2)


@given(st.integers(0, 10**6))
def test_nothing_is_negative_whatever_was_measured(seed):
    ms = np.exp(np.random.default_rng(seed).uniform(-5, 5, len(SENT)))
    link = fit_link(SENT, ms)
    assert link.latency_ms >= 0
    assert 0 < link.bandwidth < np.inf


def test_times_that_do_not_grow_are_latency_and_times_without_latency_are_bandwidth():
    flat, steep = fit_link(SENT, np.full(len(SENT), 0.5)), fit_link(SENT, ms_of(0.0, 2e9))
    assert flat.latency_ms == pytest.approx(0.5)
    assert 1e3 * SENT.max() / flat.bandwidth < 1e-3
    assert steep.latency_ms == pytest.approx(0.0, abs=1e-9)
    assert steep.bandwidth == pytest.approx(2e9)


def test_the_held_out_error_is_that_of_sizes_not_seen():
    """A kink that a line cannot follow shows in the error."""
    bent = np.maximum(ms_of(0.3, 1e9), 3 * (ms_of(0.3, 1e9) - 10))
    assert held_out_error(SENT, bent) > 10 * held_out_error(SENT, ms_of(0.3, 1e9) * 1.001)
    assert held_out_error(SENT, bent) > 0.05
