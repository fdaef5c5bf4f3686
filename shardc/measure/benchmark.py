"""The benchmark: FBGEMM's table-batched embeddings on the local device, forward and backward apart.

Machines are shared and their speed drifts, so a set of tables is never timed alone: a fixed *reference set* runs
before every run, and what is reported is the median of the ratios (the reference's own time is calibrated over the
whole campaign). The same code runs on a CPU, timed by the clock on one thread, and on a GPU, timed by events. Cached
rows are flushed before each phase: in training, the work of the dense layers lies between.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fbgemm_gpu
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from shardc.measure.streams import draw_bag_lengths, draw_indices
from shardc.measure.workload import Load, Timing, Workload
from shardc.spec import Zipf

_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
_DTYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16}
REVISION = 2
"""Of the benchmark: raised when it starts to measure something else, so that old measurements are not mixed in."""

_RUNS = (6, 18)  # fewest and most runs of a measurement
_PRECISE = 0.016  # relative standard error of a median ratio at which no more runs are needed
_BATCHES = 3  # independently drawn index batches that the runs rotate through, so that no run finds its rows cached


REFERENCE = Workload(
    tables=tuple(Load(rows, dim, 8.0, Zipf(0.8)) for rows, dim in ((200_000, 16), (100_000, 32), (50_000, 64))),
    batch=512,
)
"""The set every measurement is a ratio to: about a millisecond on one CPU core, and larger than its private caches."""


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """The device that measurements are made on."""

    type: str
    name: str
    memory_bytes: int


def local_device() -> LocalDevice:
    """The CUDA device of this process's local rank, or else one CPU core with the machine's memory."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(local_rank())
        return LocalDevice("cuda", found.name, found.total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return LocalDevice("cpu", f"{_cpu_name()} (1 thread)", memory)


def local_rank() -> int:
    """Number of this process among those that torchrun started on this machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def versions() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    return {"torch": torch.__version__, "fbgemm_gpu": str(fbgemm_gpu.__version__)}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Bench:
    """Times workloads against the reference set: on one thread and one core, or on the current CUDA device."""

    def __init__(self, seed: int = 0) -> None:
        self.device = torch.device(local_device().type)
        if self.device.type == "cuda":
            torch.cuda.set_device(local_rank())
        self._flush = torch.ones(_flush_bytes(self.device) // 4, device=self.device)
        self._reference = _Operator(REFERENCE, self.device, seed)

    def time(self, workload: Workload, *, seed: int) -> Timing:
        """Median ratios of `workload` to the reference over alternating runs, after warm-up, until they are precise.

        Raises:
            MemoryError: when the tables do not fit in the memory that is free, with the figures.
        """
        needed, free = _needed_bytes(workload), _free_bytes(self.device)
        if needed > free:
            raise MemoryError(f"{needed >> 20} MiB do not fit in the {free >> 20} MiB that are free")
        try:
            with _steady(self.device):
                return self._time(_Operator(workload, self.device, seed))
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        except RuntimeError as error:  # how torch says it on a CPU
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise

    def _time(self, operator: _Operator) -> Timing:
        for number in range(_BATCHES):
            self._step_both(operator, number)
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        fewest, most = _RUNS
        while True:
            pairs += [self._step_both(operator, number) for number in range(fewest)]
            reference, target = np.array(pairs).transpose(1, 2, 0)  # [2 phases, runs] each
            ratio = target / reference
            low, median, high = np.percentile(ratio, [25, 50, 75], axis=1)
            # Of the median of a normal distribution, whose interquartile range is 1.35 standard deviations.
            error = 1.2533 / 1.3490 * (high - low) / median / np.sqrt(len(pairs))
            if len(pairs) >= most or error.max() <= _PRECISE:
                spread = (high - low) / 2 / median
                values = np.concatenate([median, spread, np.median(reference, axis=1)])
                return Timing(len(pairs), *map(float, values))

    def _step_both(self, operator: _Operator, number: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Forward and backward ms of the reference, then of the workload."""
        batch = number % _BATCHES
        return self._reference.step(batch, self._flush), operator.step(batch, self._flush)


@contextmanager
def _steady(device: torch.device) -> Iterator[None]:
    """One thread that stays on one core, another one for each local rank, while a CPU is timed; then as it was."""
    if device.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {sorted(cores)[-1 - local_rank() % len(cores)]})
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


class _Operator:
    """A fused operator with its weights and a few batches of inputs on the device."""

    def __init__(self, workload: Workload, device: torch.device, seed: int) -> None:
        cuda = device.type == "cuda"
        place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        self._device = device
        self._embeddings = SplitTableBatchedEmbeddingBagsCodegen(
            [(t.rows, t.dim, *place) for t in workload.tables],
            optimizer=_OPTIMIZERS[workload.optimizer],
            weights_precision=_DTYPES[workload.weights],
            learning_rate=0.01,
        )
        generator = torch.Generator(device).manual_seed(seed)
        self._inputs = [_draw_inputs(workload, generator) for _ in range(_BATCHES)]
        self._gradient = torch.randn(workload.batch, sum(t.dim for t in workload.tables), device=device) * 1e-3

    def step(self, number: int, flush: torch.Tensor) -> tuple[float, float]:
        """Forward and backward time of one step, ms."""
        indices, offsets = self._inputs[number]
        flush.sum()
        start = self._now()
        output = self._embeddings(indices, offsets)
        middle = self._now()
        flush.sum()
        resume = self._now()
        output.backward(self._gradient)
        stop = self._now()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return _elapsed_ms(start, middle), _elapsed_ms(resume, stop)

    def _now(self) -> torch.cuda.Event | int:
        """A point in the device's time: the clock (CPU), or an event in the stream (CUDA)."""
        if self._device.type == "cpu":
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _elapsed_ms(start: torch.cuda.Event | int, stop: torch.cuda.Event | int) -> float:
    if isinstance(start, int) or isinstance(stop, int):
        return (stop - start) / 1e6  # type: ignore[operator]
    return float(start.elapsed_time(stop))


def _draw_inputs(workload: Workload, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and offsets of one batch in FBGEMM's layout: all samples of the first table, then of the next."""
    lengths = [draw_bag_lengths(t.pooling, workload.batch, generator) for t in workload.tables]
    indices = [
        draw_indices(t.access, t.rows, int(length.sum()), generator)
        for t, length in zip(workload.tables, lengths, strict=True)
    ]
    offsets = torch.cat([lengths[0].new_zeros(1), torch.cat(lengths).cumsum(0)])
    return torch.cat(indices), offsets


def _needed_bytes(workload: Workload) -> int:
    """Bytes of weights, their optimizer state and dense copies, inputs, outputs and gradients, a little generously."""
    values = {"sgd": 0.0, "rowwise_adagrad": 0.0, "adagrad": 1.0, "adam": 2.0}[workload.optimizer]
    state = sum(4 * t.rows * (1 + values * t.dim) for t in workload.tables)
    lookups = workload.batch * sum(t.pooling for t in workload.tables)
    outputs = workload.batch * sum(t.dim for t in workload.tables) * 4
    return int(1.25 * (workload.weight_bytes + state) + _BATCHES * 16 * lookups + 4 * outputs) + (64 << 20)


def _free_bytes(device: torch.device) -> int:
    """Memory of the device that can be had without pushing anything out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return local_device().memory_bytes


def _flush_bytes(device: torch.device) -> int:
    """Bytes to read before each phase, so that it finds no rows cached: twice the GPU's L2; 32 MiB on a CPU."""
    if device.type == "cuda":
        return 2 * int(torch.cuda.get_device_properties(device).L2_cache_size)
    return 32 << 20
