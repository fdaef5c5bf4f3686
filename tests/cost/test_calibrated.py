import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.cost.calibrated import calibrate, calibrate_devices
from shardc.cost.roofline import Roofline
from shardc.problem import Shards

BASE = Roofline(memory_bandwidth=1e10, cache_bytes=1e5)


def shards(count: int = 6) -> Shards:
    rng = np.random.default_rng(count)
    rows = rng.integers(1, 10**6, count)
    return Shards(
        rows=rows,
        dim=4 * rng.integers(1, 32, count),
        pooling=rng.uniform(0.1, 20, count),
        bags=np.full(count, 512),
        bins=np.tile(np.eye(17)[0], (count, 1)),
        unique=np.minimum(rows, 1000.0),
        weight_bytes=np.full(count, 4),
        output_bytes=np.full(count, 4),
        optimizer=np.zeros(count, dtype=np.int64),
        type=np.zeros(count, dtype=np.int64),
        cached=np.ones(count),
    )


def predicted(cost, of: Shards) -> np.ndarray:
    return cost.heads(cost.encode(of)) + cost.constants


@given(st.lists(st.floats(0.11, 9), min_size=12, max_size=12))
def test_every_measured_shard_alone_costs_what_was_measured(factors):
    some = shards()
    measured = BASE.constants + BASE.heads(BASE.encode(some)) * np.array(factors).reshape(6, 2)
    assert predicted(calibrate(BASE, some, measured), some) == pytest.approx(measured, rel=1e-9)


def test_a_right_model_is_left_alone():
    some = shards()
    assert calibrate(BASE, some, predicted(BASE, some)).latents == pytest.approx(BASE.encode(some), rel=1e-9)


def test_forward_and_backward_are_corrected_apart():
    some = shards()
    measured = predicted(BASE, some)
    measured[:, 1] += 3 * BASE.heads(BASE.encode(some))[:, 1]
    latents = calibrate(BASE, some, measured).latents
    assert latents[:, :2] == pytest.approx(BASE.encode(some)[:, :2], rel=1e-9)
    assert latents[:, 2:] == pytest.approx(4 * BASE.encode(some)[:, 2:], rel=1e-9)


def test_what_could_not_be_measured_is_corrected_as_the_others_usually_are():
    some = shards(7)
    factors = np.array([2.0, 2.0, 2.0, 5.0, 0.1, 2.0, np.nan])[:, None]
    measured = BASE.constants + BASE.heads(BASE.encode(some)) * factors
    latents = calibrate(BASE, some, measured).latents
    assert np.isfinite(latents).all()
    assert latents[6] == pytest.approx(2 * BASE.encode(some)[6], rel=1e-9)


def test_without_any_measurement_the_model_is_as_it_was():
    some = shards()
    assert calibrate(BASE, some, np.full((6, 2), np.nan)).latents == pytest.approx(BASE.encode(some))


@pytest.mark.parametrize("extreme", [0.0, 1e-6, 1e12])
def test_impossible_measurements_leave_a_usable_model(extreme):
    some = shards()
    latents = calibrate(BASE, some, np.full((6, 2), extreme)).latents
    assert np.isfinite(latents).all()
    assert (latents >= 0).all()
    assert (latents <= 1001 * BASE.encode(some)).all()


def test_bounds_stay_certified():
    """Heads and slopes are the base's, so they are as convex; only the latents changed, and none became negative."""
    some = shards()
    cost = calibrate(BASE, some, predicted(BASE, some) * 1.7)
    z = cost.encode(some).sum(axis=0)
    assert np.array_equal(cost.heads(z), BASE.heads(z))
    assert np.array_equal(cost.slopes(z), BASE.slopes(z))
    assert (cost.latents >= 0).all()


def test_other_shards_are_refused():
    some = shards()
    cost = calibrate(BASE, some, predicted(BASE, some))
    with pytest.raises(ValueError, match="only the shards"):
        cost.encode(dataclasses.replace(some))


# --- By measurements of whole devices ---------------------------------------------------------------------------------

TABLES = np.array([0, 0, 1, 2, 2, 3])  # of the six shards
HELD = np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=bool)


def of_devices(cost, of: Shards, held: np.ndarray = HELD) -> np.ndarray:
    return cost.heads(held @ cost.encode(of)) + cost.constants * held.any(axis=1)[:, None]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.11, 9), min_size=6, max_size=6))
def test_every_measured_device_costs_what_was_measured(factors):
    some = shards()
    measured = BASE.constants + (of_devices(BASE, some) - BASE.constants) * np.array(factors).reshape(3, 2)
    assert of_devices(calibrate_devices(BASE, some, TABLES, HELD, measured), some) == pytest.approx(measured, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.7, 1.5), min_size=6, max_size=6))
def test_devices_that_share_a_table_cost_what_was_measured_too(factors):
    some = shards()
    held = HELD | np.eye(6, dtype=bool)[4]
    measured = of_devices(BASE, some, held) * np.array(factors).reshape(3, 2)
    cost = calibrate_devices(BASE, some, TABLES, held, measured)
    assert of_devices(cost, some, held) == pytest.approx(measured, rel=0.1)
    assert (cost.latents >= 0).all()


def test_right_predictions_of_devices_leave_the_model_alone():
    some = shards()
    cost = calibrate_devices(BASE, some, TABLES, HELD, of_devices(BASE, some))
    assert cost.latents == pytest.approx(BASE.encode(some), rel=1e-9)


def test_all_ways_to_shard_a_table_are_corrected_alike():
    some = shards()
    measured = BASE.constants + (of_devices(BASE, some) - BASE.constants) * [[2.0, 2.0], [3.0, 3.0], [0.5, 0.5]]
    factors = calibrate_devices(BASE, some, TABLES, HELD, measured).latents / BASE.encode(some)
    assert factors == pytest.approx(np.array([2, 2, 2, 3, 3, 0.5])[:, None] * np.ones(4), rel=1e-9)


def test_tables_of_devices_that_could_not_be_measured_are_corrected_as_the_others_usually_are():
    some = shards()
    measured = BASE.constants + (of_devices(BASE, some) - BASE.constants) * [[2.0, 2.0], [np.nan, 1.0], [2.0, 2.0]]
    factors = calibrate_devices(BASE, some, TABLES, HELD, measured).latents / BASE.encode(some)
    assert factors == pytest.approx(2 * np.ones((6, 4)), rel=1e-9)


@pytest.mark.parametrize("held", [HELD, np.zeros_like(HELD)])
def test_without_any_measured_device_the_model_is_as_it_was(held):
    some = shards()
    cost = calibrate_devices(BASE, some, TABLES, held, np.full((3, 2), np.nan))
    assert cost.latents == pytest.approx(BASE.encode(some))


def test_an_empty_device_says_nothing():
    some = shards()
    held = np.concatenate([HELD, np.zeros((1, 6), dtype=bool)])
    cost = calibrate_devices(BASE, some, TABLES, held, of_devices(BASE, some, held))
    assert cost.latents == pytest.approx(BASE.encode(some), rel=1e-9)


@pytest.mark.parametrize("extreme", [0.0, 1e-6, 1e12])
def test_impossible_measurements_of_devices_leave_a_usable_model(extreme):
    some = shards()
    latents = calibrate_devices(BASE, some, TABLES, HELD, np.full((3, 2), extreme)).latents
    assert (latents >= 0.099 * BASE.encode(some)).all()
    assert (latents <= 10.1 * BASE.encode(some)).all()
