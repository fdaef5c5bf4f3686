"""`shardc profile`: measure the local device, fit a cost model, install a hardware profile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import shardc
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import alone_in, make_folder, read_text, write_atomic
from shardc.measure.campaign import (
    JOURNALS,
    PARQUET,
    RETRIES,
    Share,
    append,
    disturbed_sets,
    missing_sets,
    read_campaign,
    run_campaign,
    to_entry,
)
from shardc.measure.design import CPU_RANGE, CUDA_RANGE, DESIGN, FIRST_OWN, Range, is_own
from shardc.measure.parquet import parquet_bytes
from shardc.measure.workload import Timing, Workload
from shardc.profile_folder import ProfileDocument, read_profile, save_profile

if TYPE_CHECKING:
    from shardc.measure.benchmark import LocalDevice

MINIMUM_SETS = 100
_CAMPAIGN = "campaign.json"


class Progress(Protocol):
    """Shows how much of a stage ("measure" or "fit") is done."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """Show that `done` of `total` are done, and a word on the last."""


# Until a profile's collectives are measured: what its kind of device usually reaches.
_ASSUMED = {
    "cpu": {"intra_host_bandwidth": 5e9, "inter_host_bandwidth": 1.25e9, "latency_ms": 0.5},
    "cuda": {"intra_host_bandwidth": 300e9, "inter_host_bandwidth": 25e9, "latency_ms": 0.02},
}


def make_profile(folder: Path, *, name: str, sets: int, seed: int, progress: Progress) -> ProfileDocument | None:
    """Measure `sets` sets of tables, fit the fused cost model to them, and write the profile.

    What a folder already holds is not measured again, so an interrupted campaign is resumed by the same call, and a
    larger `sets` adds to a finished one. The profile is written last, and whole. Processes that torchrun started each
    measure a share of the sets on a device of their own; the first one writes the profile, the others return None.

    Args:
        folder: the profile's folder; made if need be.
        name: name of the profile.
        sets: sets of tables to measure, repeats for the noise included.
        seed: of the design of the campaign and of training.
        progress: shows how far it is.

    Raises:
        DiagnosticError: SH902 for fewer than `MINIMUM_SETS` sets, SH603 for a folder with another campaign, SH004 for
            one that another process makes a profile in.
        ModuleNotFoundError: without torch, FBGEMM and pyarrow.
    """
    if sets < MINIMUM_SETS:
        message = f"{sets} sets are too few to learn from and to test on"
        raise DiagnosticError(Diagnostic("SH902", message, help=f"--sets {MINIMUM_SETS} or more"), exit_code=2)
    from shardc.measure.benchmark import local_device

    device = local_device()
    sizes = CPU_RANGE if device.type == "cpu" else CUDA_RANGE
    make_folder(folder)
    with ExitStack() as until_written:
        with _processes() as share:
            if share.rank == 0:
                until_written.enter_context(alone_in(folder))
                _same_campaign(folder, _identity(seed))
            _measure(folder, sizes, share, seed=seed, sets=sets, progress=progress)
            if share.rank != 0:
                return None
        return _fit(folder, name, device, seed=seed, sets=sets, progress=progress)


def require_campaign(folder: Path) -> ProfileDocument:
    """The profile of a folder that has its measurements too, of the local device and these versions.

    Raises:
        DiagnosticError: SH601 and SH603 for any other folder.
        ModuleNotFoundError: without torch, FBGEMM and pyarrow.
    """
    document = read_profile(folder)
    if not (folder / _CAMPAIGN).exists() or len(missing_sets(folder, MINIMUM_SETS)) == MINIMUM_SETS:
        message = f"{folder} does not hold the measurements that its profile was learned from"
        raise DiagnosticError(Diagnostic("SH603", message, help="restore them, or profile anew"), exit_code=2)
    _same_campaign(folder, _identity(document.measured.seed))
    return document


def add_measurements(
    folder: Path, timed: Sequence[tuple[Workload, Timing]], *, progress: Progress
) -> tuple[ProfileDocument, int]:
    """Add measured sets, such as what a plan puts on its devices, to a profile of the local device, and fit it again.

    Returns:
        The profile, and how many of the sets it is learned from: those that nothing disturbed.

    Raises:
        DiagnosticError: as of `require_campaign`, and SH004 for a folder that another process makes a profile in.
        ModuleNotFoundError: without torch, FBGEMM and pyarrow.
    """
    from shardc.measure.benchmark import local_device

    with alone_in(folder):
        document = require_campaign(folder)
        added = set(append(folder, timed))
        used = sum(m.index in added and not m.disturbed for m in read_campaign(folder))
        return _fit(folder, document.name, local_device(), seed=document.measured.seed, progress=progress), used


def _fit(
    folder: Path, name: str, device: LocalDevice, *, seed: int, progress: Progress, sets: int = FIRST_OWN
) -> ProfileDocument:
    """Fit the cost model to a campaign, and write the profile.

    Args:
        folder: of the campaign and of the profile.
        name: of the profile.
        device: that was measured.
        seed: of training.
        progress: shows how far it is.
        sets: of the design's sets only the first so many are used.
    """
    from shardc.learn.fit_cost import QUANTILES, fit_cost, reference_ms
    from shardc.measure.benchmark import versions

    campaign = read_campaign(folder)
    measurements = [m for m in campaign if m.index < sets or is_own(m.index)]
    arrays, report = fit_cost(measurements, seed=seed, progress=lambda done, total, _: progress("fit", done, total, ""))
    write_atomic(folder / PARQUET, parquet_bytes([to_entry(m) for m in campaign]))
    steady = [m for m in measurements if not m.disturbed]
    tables = [t for m in steady for t in m.workload.tables]
    measured = {
        "device": device.name,
        "versions": {"shardc": shardc.__version__, **versions()},
        "seed": seed,
        "sets": report.train_sets,
        "disturbed": len(measurements) - len(steady),
        "tables_per_set": _range(len(m.workload.tables) for m in steady),
        "batch": _range(m.workload.batch for m in steady),
        "rows": _range(t.rows for t in tables),
        "dim": _range(t.dim for t in tables),
        "pooling": _range(t.pooling for t in tables),
        "weights": sorted({m.workload.weights for m in steady}),
        "optimizers": sorted({m.workload.optimizer for m in steady}),
        "reference_ms": tuple(reference_ms(steady)),
        "errors": {
            "test_sets": report.test_sets,
            "mean_relative_error": report.mean_relative_error,
            "total_relative_error": report.total_relative_error,
            "mean_absolute_error_ms": report.mean_absolute_error_ms,
            "kendall_tau": report.kendall_tau,
            "noise": report.noise,
            "margins": dict(zip(QUANTILES, report.margins, strict=True)),
        },
    }
    return save_profile(folder, _document(name, device, measured), arrays)


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = sorted(values)
    return found[0], found[-1]


def _identity(seed: int) -> dict[str, Any]:
    """What all measurements of a campaign have in common."""
    from shardc.measure.benchmark import REVISION, local_device, versions

    return {"device": local_device().name, "seed": seed, "benchmark": REVISION, "design": DESIGN, **versions()}


def _same_campaign(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse to mix measurements of two devices, versions or designs in one folder."""
    path = folder / _CAMPAIGN
    if not path.exists() and ((folder / PARQUET).exists() or any(folder.glob(JOURNALS))):
        message = f"{folder} does not say which campaign its measurements are of: {_CAMPAIGN} is missing"
        raise DiagnosticError(Diagnostic("SH603", message, help="restore it, or use a new folder"), exit_code=2)
    if not path.exists():
        write_atomic(path, json.dumps(identity, indent=2, sort_keys=True).encode() + b"\n")
        return
    try:
        found = json.loads(read_text(path, "campaign"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        message = f"{path} is damaged"
        raise DiagnosticError(Diagnostic("SH603", message, help="measure into a new folder"), exit_code=2)
    if found != identity:
        other = ", ".join(f"{key} {found.get(key)!r}" for key in identity if found.get(key) != identity[key])
        message = f"{folder} holds a campaign of another kind: {other}"
        raise DiagnosticError(Diagnostic("SH603", message, help="measure into a new folder"), exit_code=2)


@contextmanager
def _processes() -> Iterator[Share]:
    """This process's share of the work, and all processes that torchrun started, connected."""
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        yield Share()
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # until the slowest has done its share
    try:
        yield Share(torch.distributed.get_rank(), size)
    finally:
        torch.distributed.destroy_process_group()


def _wait_for_all(share: Share) -> None:
    if share.of > 1:
        import torch.distributed

        torch.distributed.barrier()


def _measure(folder: Path, sizes: Range, share: Share, *, seed: int, sets: int, progress: Progress) -> None:
    """Measure this process's share of the first `sets` sets: those that are missing, then those that were disturbed."""
    from shardc.measure.benchmark import Bench

    bench: Bench | None = None
    for stage, find in (("measure", missing_sets), *[("measure again", disturbed_sets)] * RETRIES):
        wanted = find(folder, sets)
        _wait_for_all(share)  # nobody writes before everybody has found the same sets
        total = sets if find is missing_sets else len(wanted)
        progress(stage, total - len(wanted), total, "")
        bench = bench or (Bench() if wanted else None)
        if bench is not None:
            results = run_campaign(folder, bench, sizes, seed=seed, numbers=wanted, share=share)
            for done, result in enumerate(results, start=1):
                note = result if isinstance(result, str) else ""
                progress(stage, min(total - len(wanted) + done * share.of, total), total, note)
        _wait_for_all(share)


def _document(name: str, device: LocalDevice, measured: dict[str, Any]) -> dict[str, Any]:
    head = {"name": name, "device_type": device.type, "memory_bytes": device.memory_bytes}
    return {**head, **_ASSUMED[device.type], "communication": "assumed", "measured": measured}
