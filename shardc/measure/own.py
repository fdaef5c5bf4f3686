"""Measuring a spec's own shards on the local device, with a content-addressed cache.

A cached measurement is found by everything that decides it: the shard, the device, the versions. So a changed table is
measured again and an unchanged one never twice, whatever spec it appears in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.files import make_folder, write_atomic
from shardc.hardware import Hardware
from shardc.measure.campaign import RETRIES
from shardc.measure.workload import Load, Timing, Workload
from shardc.problem import BYTES_PER_ELEMENT, Floats, Optimizer, Shards
from shardc.spec import Bins

if TYPE_CHECKING:
    from shardc.measure.benchmark import Bench, LocalDevice

DISTURBED = 1.1
"""Times what the reference set took when the device was profiled, from which on something else slows it down."""

_PLAUSIBLE_MS = (1e-6, 1e7)
"""What a shard's forward or backward pass takes: more than no time, less than hours."""

_ENTRY_BYTES = 1000


def cache_folder() -> Path:
    """Where measurements are kept: $SHARDC_CACHE, or `shardc` in the user's cache folder."""
    if given := os.environ.get("SHARDC_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardc"


def measure_shards(
    shards: Shards,
    hardware: Hardware,
    *,
    at: Location | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """Forward and backward ms of each shard alone, float[S, 2].

    NaN where one does not fit in local memory, or is in the host's: what is measured is the operator on the device.

    Args:
        shards: what to measure.
        hardware: the profile that the spec names; the local device has to be of its kind.
        at: where the spec names it, for diagnostics.
        progress: called with shards done and in all.

    Raises:
        DiagnosticError: SH503 when the local device is of another kind, or FBGEMM lacks the optimizer on it.
        ModuleNotFoundError: without torch and FBGEMM.
    """
    from shardc.measure.benchmark import REVISION, Bench, versions

    device = require_device(hardware, {list(Optimizer)[index] for index in shards.optimizer}, at)
    clock = hardware.measured.reference_ms if hardware.measured else None
    identity = {"device": device.name, "versions": versions(), "revision": REVISION, "reference_ms": clock}
    ms = np.full((len(shards), 2), np.nan)
    bench: Bench | None = None
    on_device = np.flatnonzero(shards.cached == 1.0).tolist()
    for done, index in enumerate(on_device, start=1):
        workload = workload_of(shards, [index])
        key = hashlib.sha256(json.dumps([identity, _content(workload)], sort_keys=True).encode()).hexdigest()
        entry = cache_folder() / "measurements" / key[:2] / f"{key}.json"
        if (cached := _read(entry)) is not None:
            ms[index] = cached
        elif workload.weight_bytes * 1.25 < device.memory_bytes / 2:
            bench = bench or Bench()
            with suppress(MemoryError):
                timing = time_undisturbed(bench, workload, hardware)
                ms[index] = milliseconds(timing, hardware)
                if disturbance(timing, hardware) <= DISTURBED:  # or else it is better measured again next time
                    make_folder(entry.parent)
                    write_atomic(entry, json.dumps(ms[index].tolist()).encode())
        progress(done, len(on_device))
    return ms


def require_device(hardware: Hardware, optimizers: Collection[Optimizer], at: Location | None) -> LocalDevice:
    """The local device, which has to be one that a profile is of, and to have the optimizers.

    Raises:
        DiagnosticError: SH503 when it is of another kind, or FBGEMM lacks an optimizer on it.
    """
    from shardc.measure.benchmark import local_device

    device = local_device()
    if not hardware.describes(device.type, device.name):
        message = f"{hardware.name} is a profile of {hardware.device_name}, and this machine has {device.name}"
        fix = "run this where such a device is, or name a profile of this one"
        raise DiagnosticError(Diagnostic("SH503", message, at, help=fix))
    if device.type == "cpu" and Optimizer.ADAM in optimizers:
        message = "FBGEMM has no adam on a CPU: shards that are trained with it cannot be measured here"
        raise DiagnosticError(Diagnostic("SH503", message, at, help="compile without measuring, or measure on a GPU"))
    return device


def workload_of(shards: Shards, members: Sequence[int]) -> Workload:
    """The workload of a fused operator that serves these shards, which have to have one number of bags.

    Its tables are in an order that only their content decides, so that equal sets are equal workloads.
    """
    names = {size: name for name, size in reversed(BYTES_PER_ELEMENT.items())}
    (kind,) = {(int(shards.bags[i]), int(shards.weight_bytes[i]), int(shards.optimizer[i])) for i in members}
    bags, weight_bytes, optimizer = kind
    loads = (
        Load(
            rows=int(shards.rows[index]),
            dim=int(shards.dim[index]),
            pooling=float(shards.pooling[index]),
            access=Bins(tuple(map(float, shards.bins[index].round(9)))),
        )
        for index in members
    )
    return Workload(tuple(sorted(loads, key=repr)), bags, names[weight_bytes], str(list(Optimizer)[optimizer]))


def milliseconds(timing: Timing, hardware: Hardware) -> tuple[float, float]:
    """Forward and backward ms of a workload that was timed on a device of the profile.

    A profile's own clock is its `reference_ms`: ratios to it hold while the speed of a shared machine drifts.
    """
    now = timing.reference_forward_ms, timing.reference_backward_ms
    forward, backward = hardware.measured.reference_ms if hardware.measured else now
    return timing.forward_ratio * forward, timing.backward_ratio * backward


def time_undisturbed(bench: Bench, workload: Workload, hardware: Hardware) -> Timing:
    """The timing that was disturbed least, of `RETRIES` + 1 at most.

    Raises:
        MemoryError: when the device's memory does not hold the workload.
    """
    timing = bench.time(workload, seed=0)
    for _ in range(RETRIES):
        if disturbance(timing, hardware) <= DISTURBED:
            break
        timing = min(timing, bench.time(workload, seed=0), key=partial(disturbance, hardware=hardware))
    return timing


def disturbance(timing: Timing, hardware: Hardware) -> float:
    """The reference set's time relative to what it took when the device was profiled; 1 where no profile says."""
    return 1.0 if hardware.measured is None else timing.reference_ms / sum(hardware.measured.reference_ms)


def _content(workload: Workload) -> list[object]:
    return [asdict(table) for table in workload.tables] + [workload.batch, workload.weights, workload.optimizer]


def _read(entry: Path) -> tuple[float, float] | None:
    """A cached measurement; None when there is none, or it is none that can be, and has to be made again."""
    try:
        with entry.open("rb") as file:
            forward, backward = json.loads(file.read(_ENTRY_BYTES))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    times = forward, backward
    sound = all(type(time) in (int, float) and _PLAUSIBLE_MS[0] < time < _PLAUSIBLE_MS[1] for time in times)
    return (float(forward), float(backward)) if sound else None
