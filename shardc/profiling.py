"""`shardc profile`: measure the local device, fit a cost model, install a hardware profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardc
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import make_folder, read_text, write_atomic
from shardc.hardware import ProfileDocument, save_profile
from shardc.measure.campaign import (
    CPU_RANGE,
    CUDA_RANGE,
    Measurement,
    Range,
    missing_sets,
    read_journal,
    run_campaign,
    to_entry,
)

if TYPE_CHECKING:
    from shardc.measure.benchmark import LocalDevice

MINIMUM_SETS = 100
Progress = Callable[[str, int, int], None]

# Until a profile's collectives are measured: what its kind of device usually reaches.
_ASSUMED = {
    "cpu": {"intra_host_bandwidth": 5e9, "inter_host_bandwidth": 1.25e9, "latency_ms": 0.5},
    "cuda": {"intra_host_bandwidth": 300e9, "inter_host_bandwidth": 25e9, "latency_ms": 0.02},
}


def make_profile(folder: Path, *, name: str, sets: int, seed: int, progress: Progress) -> ProfileDocument:
    """Measure `sets` sets of tables, fit the fused cost model to them, and write the profile.

    What a folder already holds is not measured again, so an interrupted campaign is resumed by the same call, and a
    larger `sets` adds to a finished one. The profile is written last, and whole.

    Args:
        folder: the profile's folder; made if need be.
        name: name of the profile.
        sets: sets of tables to measure, repeats for the noise included.
        seed: of the design of the campaign and of training.
        progress: called with the stage ("measure" or "fit"), and how much of it is done and in all.

    Raises:
        DiagnosticError: SH902 for fewer than `MINIMUM_SETS` sets, SH603 for a folder with another campaign.
        ModuleNotFoundError: without torch, FBGEMM and pyarrow.
    """
    if sets < MINIMUM_SETS:
        message = f"{sets} sets are too few to learn from and to test on"
        raise DiagnosticError(Diagnostic("SH902", message, help=f"--sets {MINIMUM_SETS} or more"), exit_code=2)
    from shardc.learn.fit_cost import fit_cost, reference_ms
    from shardc.measure.benchmark import REVISION, Bench, local_device, versions

    device = local_device()
    sizes = CPU_RANGE if device.type == "cpu" else CUDA_RANGE
    make_folder(folder)
    identity = {"device": device.name, "seed": seed, "revision": REVISION, "sizes": repr(sizes), **versions()}
    _same_campaign(folder, identity)
    measurements = _measure(folder, Bench, sizes, seed=seed, sets=sets, progress=progress)
    arrays, report = fit_cost(measurements, seed=seed, progress=lambda epoch, epochs, _: progress("fit", epoch, epochs))
    write_atomic(folder / "measurements.parquet", measurements_parquet(measurements))
    measured = {
        "device": device.name,
        "versions": {"shardc": shardc.__version__, **versions()},
        "seed": seed,
        "sets": report.train_sets,
        "tables_per_set": (1, sizes.tables),
        "batch": sizes.batch,
        "weights": sorted({m.workload.weights for m in measurements}),
        "optimizers": sorted({m.workload.optimizer for m in measurements}),
        "reference_ms": tuple(reference_ms(measurements)),
        "errors": {
            "test_sets": report.test_sets,
            "mean_relative_error": report.mean_relative_error,
            "mean_absolute_error_ms": report.mean_absolute_error_ms,
            "kendall_tau": report.kendall_tau,
            "noise": report.noise,
        },
    }
    return save_profile(folder, _document(name, device, measured), arrays)


def _same_campaign(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse to mix measurements of two devices, versions or designs in one folder."""
    path = folder / "campaign.json"
    if not path.exists():
        write_atomic(path, json.dumps(identity, indent=2, sort_keys=True).encode() + b"\n")
        return
    try:
        found = json.loads(read_text(path, "campaign"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        message = f"{path} is damaged"
        raise DiagnosticError(Diagnostic("SH603", message, help="measure into a new folder"), exit_code=2)
    if found != identity:
        other = ", ".join(f"{key} {found.get(key)!r}" for key in identity if found.get(key) != identity[key])
        message = f"{folder} holds a campaign of another kind: {other}"
        raise DiagnosticError(Diagnostic("SH603", message, help="measure into a new folder"), exit_code=2)


def _measure(
    folder: Path, bench: Callable[[], Any], sizes: Range, *, seed: int, sets: int, progress: Progress
) -> list[Measurement]:
    if missing := missing_sets(folder, sets):
        for done, _ in enumerate(run_campaign(folder, bench(), sizes, seed=seed, sets=sets), sets - len(missing) + 1):
            progress("measure", done, sets)
    progress("measure", sets, sets)
    return [m for m in read_journal(folder) if m.index < sets]


def _document(name: str, device: LocalDevice, measured: dict[str, Any]) -> dict[str, Any]:
    head = {"name": name, "device_type": device.type, "memory_bytes": device.memory_bytes}
    return {**head, **_ASSUMED[device.type], "communication": "assumed", "measured": measured}


def measurements_parquet(measurements: list[Measurement]) -> bytes:
    """The campaign as a Parquet file, one row a set.

    Columns: index, batch, weights, optimizer; tables, a list of {rows, dim, pooling, zipf or bins}; the fields of
    `shardc.measure.workload.Timing`.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([to_entry(m) for m in measurements])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
