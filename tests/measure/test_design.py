import dataclasses

import numpy as np
import pytest

from shardc.measure.design import CPU_RANGE, CUDA_RANGE, REPEAT_EVERY, _sobol, draw_workload, is_repeat, repeated
from shardc.spec import Bins, Zipf


@pytest.fixture(scope="module")
def drawn():
    return [draw_workload(0, index, CPU_RANGE) for index in range(512)]


def test_a_set_depends_only_on_the_seed_and_its_number(drawn):
    assert draw_workload(0, 300, CPU_RANGE) == drawn[300]
    assert draw_workload(1, 300, CPU_RANGE) != drawn[300]
    assert len(set(drawn)) == sum(not is_repeat(index) for index in range(512))


@pytest.mark.parametrize("sizes", [CPU_RANGE, CUDA_RANGE], ids=["cpu", "cuda"])
def test_every_set_is_within_the_range(sizes):
    for index in range(200):
        workload = draw_workload(7, index, sizes)
        assert 1 <= len(workload.tables) <= sizes.tables
        assert sizes.batch[0] <= workload.batch <= sizes.batch[1]
        assert all(3 <= t.rows <= sizes.rows and t.dim % 4 == 0 and 4 <= t.dim <= 512 for t in workload.tables)
        assert all(0.05 <= t.pooling <= 200 for t in workload.tables)
        # Rounding and the smallest pooling and batch can lie a little above.
        assert sum(t.pooling for t in workload.tables) * workload.batch <= 1.05 * sizes.lookups
        assert sum(t.pooling * t.dim for t in workload.tables) * workload.batch * 4 <= 1.05 * sizes.gathered_bytes
        assert workload.weight_bytes <= 1.05 * sizes.weight_bytes


def test_points_fill_the_space_evenly():
    """Of 512 points each eighth of a coordinate, and each quarter of a quarter of two, holds exactly its share."""
    points = _sobol(3, 0)[:512]
    for coordinate in points.T:
        assert np.bincount((8 * coordinate).astype(int), minlength=8).tolist() == [64] * 8
    square = (4 * points[:, 0]).astype(int) * 4 + (4 * points[:, 1]).astype(int)
    assert np.bincount(square, minlength=16).tolist() == [32] * 16


def test_sets_cover_what_models_have(drawn):
    kinds = {(w.weights, w.optimizer) for w in drawn}
    assert len(kinds) == 4
    alike = [w for w in drawn if len(w.tables) > 8 and len({t.dim for t in w.tables}) == 1]
    mixed = [w for w in drawn if len(w.tables) > 8 and len({t.dim for t in w.tables}) > 5]
    assert alike
    assert mixed
    tables_of_all = [t for w in drawn for t in w.tables]
    assert {type(t.access) for t in tables_of_all} == {Zipf, Bins}
    assert any(t.dim & (t.dim - 1) for t in tables_of_all)
    assert min(t.pooling for t in tables_of_all) == 0.05
    assert max(t.pooling for t in tables_of_all) > 150


def test_repeats_measure_sets_of_the_whole_campaign_again():
    repeats = [index for index in range(100 * REPEAT_EVERY) if is_repeat(index)]
    assert len(repeats) == 100
    for index in repeats:
        assert not is_repeat(repeated(index))
        assert index // 2 - 1 <= repeated(index) < index
    assert draw_workload(2, repeats[7], CPU_RANGE) == draw_workload(2, repeated(repeats[7]), CPU_RANGE)


def test_weight_bytes_count_the_dtype(drawn):
    full, half = (dataclasses.replace(drawn[0], weights=weights).weight_bytes for weights in ("fp32", "fp16"))
    assert full == 2 * half == 4 * sum(t.rows * t.dim for t in drawn[0].tables)
