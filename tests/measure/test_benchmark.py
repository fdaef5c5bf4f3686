"""The benchmark itself, on the processor: what it times has to be what a training step computes."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardc.access import BIN_EDGES
from shardc.measure import benchmark
from shardc.measure.benchmark import REFERENCE, Bench, local_device, versions
from shardc.measure.workload import Load, Timing, Workload
from shardc.spec import Bins, Zipf

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="timed on the GPU where there is one")

MIXED = Bins((0.4, 0.3, 0.2, 0.1, *[0.0] * 13))
SMALL = Workload((Load(1000, 8, 2.5, Zipf(1.05)), Load(7, 4, 0.4, Zipf(0.0)), Load(300, 16, 6.0, MIXED)), batch=32)


@pytest.fixture
def bench():
    """A Bench pins the process to one core and torch to one thread: undone afterwards."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield Bench()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def operator(workload: Workload, seed: int = 0) -> benchmark._Operator:
    return benchmark._Operator(workload, torch.device("cpu"), seed)


def pooled_by_torch(workload: Workload, weights: list[torch.Tensor], indices, offsets) -> torch.Tensor:
    """Pooled sums [batch, sum of dims] by torch's own operator, table by table."""
    outputs = []
    for number, weight in enumerate(weights):
        own = offsets[number * workload.batch : (number + 1) * workload.batch + 1]
        rows = indices[own[0] : own[-1]]
        outputs.append(
            torch.nn.functional.embedding_bag(rows, weight, own - own[0], mode="sum", include_last_offset=True)
        )
    return torch.cat(outputs, dim=1)


@given(
    tables=st.lists(
        st.builds(
            Load,
            st.integers(1, 300),
            st.sampled_from([4, 8, 20]),
            st.floats(0.05, 9),
            st.just(Zipf(0.9)) | st.just(MIXED),
        ),
        min_size=1,
        max_size=4,
    ),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_the_operator_computes_pooled_sums(tables, batch, seed):
    workload = Workload(tuple(tables), batch)
    timed = operator(workload, seed)
    embeddings, (indices, offsets) = timed._embeddings, timed._inputs[0]
    with torch.no_grad():
        for weight in embeddings.split_embedding_weights():
            weight.copy_(torch.randn(weight.shape))
    weights = [weight.clone() for weight in embeddings.split_embedding_weights()]
    assert [tuple(weight.shape) for weight in weights] == [(t.rows, t.dim) for t in tables]
    assert torch.allclose(embeddings(indices, offsets), pooled_by_torch(workload, weights, indices, offsets), atol=1e-4)


def test_a_step_trains_the_weights_as_sgd_does():
    timed = operator(dataclasses.replace(SMALL, optimizer="sgd"))
    before = [weight.clone() for weight in timed._embeddings.split_embedding_weights()]
    plain = [weight.clone().requires_grad_() for weight in before]
    timed.step(1, torch.ones(8))
    pooled_by_torch(SMALL, plain, *timed._inputs[1]).backward(timed._gradient)
    for weight, expected in zip(timed._embeddings.split_embedding_weights(), plain, strict=True):
        assert expected.grad is not None
        assert torch.allclose(weight, expected - 0.01 * expected.grad, atol=1e-6)
        assert not torch.equal(weight, expected)


def test_inputs_have_the_asked_for_pooling_and_bins():
    workload = Workload((Load(10**6, 4, 3.3, MIXED), Load(50, 4, 0.5, Zipf(0.0))), batch=5000)
    for indices, offsets in operator(workload)._inputs:
        assert (offsets[0], offsets[-1], len(offsets)) == (0, len(indices), 2 * 5000 + 1)
        lengths = offsets.diff().double().view(2, 5000)
        assert lengths.mean(dim=1).tolist() == pytest.approx([3.3, 0.5], abs=0.05)
        assert lengths[0].unique().tolist() == [3, 4]
        counts = np.unique(indices[: offsets[5000]].numpy(), return_counts=True)[1]
        shares = np.bincount(np.searchsorted(BIN_EDGES, counts), minlength=17) / len(counts)
        assert np.abs(shares - MIXED.shares).max() < 0.1


def test_inputs_are_decided_by_the_seed_and_differ_between_runs():
    one, same, other = (operator(SMALL, seed)._inputs for seed in (5, 5, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0][:10], other[0][0][:10])
    assert not torch.equal(one[0][0][:10], one[1][0][:10])


def test_a_timing_is_positive_and_a_larger_workload_has_a_larger_ratio(bench):
    load = Load(20_000, 32, 20.0, Zipf(0.8))
    small, large = (bench.time(Workload((load,) * tables, 256), seed=1) for tables in (1, 20))
    for timing in (small, large):
        values = np.array(dataclasses.astuple(timing))
        assert np.isfinite(values).all()
        assert (values[[0, 1, 2, 5, 6]] > 0).all()
        assert (values[3:5] >= 0).all()
    assert large.forward_ratio > 1.5 * small.forward_ratio
    assert large.backward_ratio > 1.5 * small.backward_ratio
    assert isinstance(small, Timing)


def test_the_reference_set_is_about_as_costly_as_itself(bench):
    timing = bench.time(REFERENCE, seed=3)
    assert 0.1 < timing.forward_ratio < 10
    assert 0.1 < timing.backward_ratio < 10


def test_what_does_not_fit_is_a_memory_error(bench):
    with pytest.raises(MemoryError, match=r"MiB do not fit in the .* MiB that are free"):
        bench.time(Workload((Load(2**40, 512, 1.0, Zipf(0.0)),), 1), seed=0)


def test_the_local_device_has_a_name_and_a_size():
    device = local_device()
    assert device.type == "cpu"
    assert device.name.endswith("(1 thread)")
    assert device.memory_bytes > 2**28
    assert set(versions()) == {"torch", "fbgemm_gpu"}
