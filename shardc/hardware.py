"""Hardware profiles: what is known of a device. Limits, bandwidths, and the cost of the fused operator on it.

A profile is either a row of `profiles/gpus.toml` (data-sheet figures, not measured) or a folder that `shardc profile`
made: `profile.json`, which says what was measured where and how well it was learned, and `weights.safetensors`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
import tomli
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, ValidationError

from shardc.cost.fused import FusedCost, fits, operator_kind
from shardc.cost.model import ComputeCost
from shardc.cost.roofline import ASSUMPTIONS, Roofline
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.files import read_bytes, read_text, write_atomic
from shardc.problem import Collective, Floats, Link, Optimizer
from shardc.spec import MAX_MEMORY, LoadedSpec, parse_bandwidth, parse_size

PROFILES = Path(__file__).parent / "profiles"
# Of a collective, and what it takes longer between hosts: NCCL expects 14 microseconds of a step over the network where
# it expects 3.4 over NVLink (src/graph/tuning.cc).
ROOFLINE_LATENCY_MS, ROOFLINE_NETWORK_LATENCY_MS = 0.02, 0.01
_DOCUMENT, _WEIGHTS = "profile.json", "weights.safetensors"


class Errors(BaseModel):
    """How well the cost model predicts sets of tables that it never saw; pairs are forward and backward."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    test_sets: int = Field(description="Held-out sets of tables.")
    mean_relative_error: tuple[NonNegativeFloat, NonNegativeFloat]
    mean_absolute_error_ms: tuple[float, float]
    total_relative_error: float = Field(description="Of forward plus backward time.")
    kendall_tau: float = Field(description="Rank correlation of forward plus backward time.")
    noise: tuple[float, float] | None = Field(
        description="Mean relative difference of two measurements of one set; null if none was measured twice."
    )
    margins: dict[Annotated[float, Field(gt=0, lt=1)], tuple[PositiveFloat, PositiveFloat]] = Field(
        min_length=1,
        description="By quantile: factors on the largest of the models' predictions that so many sets stay below.",
    )


class Measured(BaseModel):
    """What was measured, on what, with what."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    device: str = Field(description="Name of the measured device.")
    versions: dict[str, str] = Field(description="Versions of shardc, torch and fbgemm_gpu.")
    seed: int
    sets: int = Field(description="Sets of tables trained on.")
    disturbed: int = Field(description="Sets left out: something else slowed the device down while they were measured.")
    tables_per_set: tuple[int, int]
    batch: tuple[int, int]
    rows: tuple[int, int]
    dim: tuple[int, int]
    pooling: tuple[float, float]
    weights: tuple[str, ...]
    optimizers: tuple[str, ...]
    reference_ms: tuple[PositiveFloat, PositiveFloat] = Field(description="The reference set's own time.")
    errors: Errors


class CollectiveFit(BaseModel):
    """What a collective was measured to take: a fixed time, and the bytes that a device sends over a bandwidth."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    latency_ms: float = Field(ge=0)
    bandwidth: float = Field(gt=0, description="bytes/s that a device sends over the link: to its host, or to others.")
    mean_relative_error: float = Field(ge=0, description="On message sizes that were held out of the fit.")


class MeasuredCollectives(BaseModel):
    """Collectives between some ranks: what was measured, on what, with what."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    world_size: int = Field(ge=2, description="Ranks that took part.")
    hosts: int = Field(ge=1)
    backend: str = Field(description="gloo or nccl.")
    versions: dict[str, str] = Field(description="Versions of shardc and torch.")
    message_bytes: tuple[int, int] = Field(description="Smallest and largest message of a rank.")
    fits: dict[Collective, CollectiveFit] = Field(description="The collectives that the backend has.")


class ProfileDocument(BaseModel):
    """`profile.json` of a measured hardware profile."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    name: str
    device_type: Literal["cpu", "cuda"]
    memory_bytes: int = Field(gt=0, le=MAX_MEMORY)
    intra_host_bandwidth: float = Field(gt=0, description="bytes/s")
    inter_host_bandwidth: float = Field(gt=0, description="bytes/s")
    latency_ms: float = Field(ge=0)
    network_latency_ms: float = Field(0.0, ge=0, description="What a collective takes longer when it crosses hosts.")
    host_bandwidth: PositiveFloat | None = Field(
        None, description="bytes/s between a device and the memory of its host, in one direction; null if unknown."
    )
    communication: Literal["assumed", "measured"] = "assumed"
    intra_host: MeasuredCollectives | None = Field(None, description="Collectives between devices of one host.")
    inter_host: MeasuredCollectives | None = Field(None, description="Collectives between devices of several hosts.")
    measured: Measured
    weights_digest: str


@dataclass(frozen=True)
class Hardware:
    """A device as the passes use it.

    Attributes:
        name: name of the profile.
        device_type: cpu or cuda.
        device_name: words of the name that such a device has on its machine.
        memory_bytes: memory of one device.
        intra_host_bandwidth: bytes/s from one device to the others of its host.
        inter_host_bandwidth: bytes/s from one device to other hosts.
        latency_ms: fixed time of a collective within a host.
        network_latency_ms: what it takes longer when it crosses hosts.
        intra_host: measured collectives between devices of one host.
        inter_host: measured collectives between several hosts.
        host_bandwidth: bytes/s between a device and the memory of its host, in one direction; None if unknown.
        compute: cost of the fused operator, for an optimizer and a dtype of weights: the best estimate, or a
            quantile of it if `measured`.
        digest: of everything that decides a cost, but for `host_bandwidth`, which few costs rest on.
        measured: what the cost was learned from; None for data-sheet figures.
    """

    name: str
    device_type: str
    device_name: str
    memory_bytes: int
    intra_host_bandwidth: float
    inter_host_bandwidth: float
    latency_ms: float
    network_latency_ms: float
    intra_host: Mapping[Collective, Link]
    inter_host: Mapping[Collective, Link]
    host_bandwidth: float | None
    compute: Callable[[Optimizer, str, float | None], ComputeCost]
    digest: str
    measured: Measured | None

    def describes(self, device_type: str, device_name: str) -> bool:
        """Whether a device of that type and name is one that this profile is of."""
        named = re.search(rf"(?<!\w){re.escape(self.device_name)}(?!\w)", device_name)
        return self.device_type == device_type and named is not None


def load_hardware(device: str, *, base: str = "", at: Location | None = None) -> Hardware:
    """The profile of that name, or in that folder.

    Args:
        device: a shipped name, or the path of a profile folder.
        base: folder that a relative path starts from.
        at: where the device is named, for diagnostics.

    Raises:
        DiagnosticError: SH107 for an unknown device, SH601 and SH602 for a damaged profile, or a folder without.
    """
    gpus = _gpus()
    if device in gpus:
        return _data_sheet(device, gpus[device])
    for folder in (PROFILES / device, Path(base) / device):
        if os.path.exists(folder / _DOCUMENT):  # a name may be too long to be one of a file
            return _measured(folder)
    if os.path.isdir(folder := Path(base) / device):
        raise _damaged("SH601", folder, f"there is no {_DOCUMENT} in it")
    close = difflib.get_close_matches(device, shipped := hardware_names(), n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    raise DiagnosticError(
        Diagnostic(
            "SH107",
            f'unknown device "{device}"',
            at,
            help=f"{hint}shipped: {', '.join(shipped)}; or a folder that `shardc profile` made",
        )
    )


def devices_of(loaded: LoadedSpec) -> tuple[Hardware, ...]:
    """The hardware profiles that a spec names, in the order of their first host.

    Raises:
        DiagnosticError: as of `load_hardware`.
    """
    base = os.path.dirname(loaded.path or "")
    names = loaded.spec.cluster.device_names
    return tuple(load_hardware(name, base=base, at=loaded.at_device(name)) for name in names)


def hardware_names() -> list[str]:
    """Names of the shipped profiles: measured ones first."""
    measured = sorted(path.parent.name for path in PROFILES.glob("*/profile.json"))
    return measured + sorted(_gpus())


def save_profile(folder: Path, document: dict[str, Any], arrays: dict[str, Floats]) -> ProfileDocument:
    """Write a measured profile: the weights first, then the document that names their digest.

    Collectives that the folder's profile was measured with on the same device stay part of it; one that cannot be read
    is replaced.
    """
    weights = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    checked = ProfileDocument(**document, weights_digest=_sha256(weights))
    with suppress(DiagnosticError):
        previous = read_profile(folder)
        if previous.measured.device == checked.measured.device:
            for measured in filter(None, (previous.intra_host, previous.inter_host)):
                checked = with_collectives(checked, measured)
    write_atomic(folder / _WEIGHTS, weights)
    _write_document(folder, checked)
    return checked


def read_profile(folder: Path) -> ProfileDocument:
    """The document of a measured profile.

    Raises:
        DiagnosticError: SH001 to SH003 when it cannot be read, SH601 when it is not a profile.
    """
    return _parsed(folder, read_text(folder / _DOCUMENT, "hardware profile"))


def save_collectives(folder: Path, measured: MeasuredCollectives) -> ProfileDocument:
    """Make measured collectives part of the profile in a folder.

    Raises:
        DiagnosticError: as of `read_profile`, and SH004 when it cannot be written.
    """
    document = with_collectives(read_profile(folder), measured)
    _write_document(folder, document)
    return document


def with_collectives(document: ProfileDocument, measured: MeasuredCollectives) -> ProfileDocument:
    """A profile whose assumptions about one kind of link give way to what was measured.

    The all-to-all's figures become those of the link: what a collective takes that the backend does not have, and what
    is shown to people.
    """
    within = measured if measured.hosts == 1 else document.intra_host
    between = measured if measured.hosts > 1 else document.inter_host
    changes: dict[str, Any] = {"communication": "measured", "intra_host": within, "inter_host": between}
    latency_ms = document.latency_ms
    if within and (exchange := within.fits.get(Collective.ALL_TO_ALL)):
        latency_ms = exchange.latency_ms
        changes |= {"intra_host_bandwidth": exchange.bandwidth, "latency_ms": latency_ms}
    if between and (exchange := between.fits.get(Collective.ALL_TO_ALL)):
        longer = max(0.0, exchange.latency_ms - latency_ms)
        changes |= {"inter_host_bandwidth": exchange.bandwidth, "network_latency_ms": longer}
    return document.model_copy(update=changes)


def _write_document(folder: Path, document: ProfileDocument) -> None:
    write_atomic(folder / _DOCUMENT, document.model_dump_json(indent=2).encode() + b"\n")


@cache
def _gpus() -> dict[str, dict[str, str]]:
    return tomli.loads((PROFILES / "gpus.toml").read_text(encoding="utf-8"))


def _data_sheet(name: str, figures: dict[str, str]) -> Hardware:
    latencies = ROOFLINE_LATENCY_MS, ROOFLINE_NETWORK_LATENCY_MS
    of_every_cost = {key: figure for key, figure in figures.items() if key != "host_bandwidth"}
    return Hardware(
        name=name,
        device_type="cuda",
        device_name=figures["driver_name"],
        memory_bytes=_given(parse_size(figures["memory"])),
        intra_host_bandwidth=_given(parse_bandwidth(figures["intra_host_bandwidth"])),
        inter_host_bandwidth=_given(parse_bandwidth(figures["inter_host_bandwidth"])),
        latency_ms=ROOFLINE_LATENCY_MS,
        network_latency_ms=ROOFLINE_NETWORK_LATENCY_MS,
        intra_host={},
        inter_host={},
        host_bandwidth=_given(parse_bandwidth(figures["host_bandwidth"])),
        compute=lambda optimizer, weights, quantile: Roofline(
            memory_bandwidth=_given(parse_bandwidth(figures["memory_bandwidth"])),
            cache_bytes=_given(parse_size(figures["cache"])),
        ),
        digest=_sha256(json.dumps([name, of_every_cost, latencies, ASSUMPTIONS], sort_keys=True).encode()),
        measured=None,
    )


def _given(value: int | None) -> int:
    if value is None:
        raise ValueError("profiles/gpus.toml: not a size or bandwidth")
    return value


def _parsed(folder: Path, text: str) -> ProfileDocument:
    try:
        return ProfileDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise _damaged("SH601", folder, f"{_DOCUMENT}: {where}: {first['msg'].lower()}") from error


def _measured(folder: Path) -> Hardware:
    text = read_text(folder / _DOCUMENT, "hardware profile")
    document = _parsed(folder, text)
    try:
        content = read_bytes(folder / _WEIGHTS, "weights")
    except DiagnosticError as error:
        raise _damaged("SH602", folder, error.diagnostics[0].message) from error
    if _sha256(content) != document.weights_digest:
        raise _damaged("SH602", folder, f"{_WEIGHTS} is not the file that profile.json was written with")
    try:
        weights = {name: array.astype(np.float64) for name, array in safetensors.numpy.load(content).items()}
    except safetensors.SafetensorError as error:
        raise _damaged("SH602", folder, f"{_WEIGHTS}: {error}") from error
    if not fits(weights):
        raise _damaged("SH602", folder, f"{_WEIGHTS} does not hold a cost model of this version")
    return Hardware(
        name=document.name,
        device_type=document.device_type,
        device_name=document.measured.device,
        memory_bytes=document.memory_bytes,
        intra_host_bandwidth=document.intra_host_bandwidth,
        inter_host_bandwidth=document.inter_host_bandwidth,
        latency_ms=document.latency_ms,
        network_latency_ms=document.network_latency_ms,
        intra_host=_links(document.intra_host),
        inter_host=_links(document.inter_host),
        host_bandwidth=document.host_bandwidth,
        compute=lambda optimizer, dtype, quantile: _fused(
            weights, document.measured, operator_kind(optimizer, dtype), quantile
        ),
        digest=_sha256(text.encode() + content),
        measured=document.measured,
    )


def _fused(weights: dict[str, Floats], measured: Measured, kind: int, quantile: float | None) -> FusedCost:
    """The first model's estimate; or the largest of all models', and as much more as covers that share of sets."""
    if quantile is None:
        return FusedCost(weights, kind)
    known = sorted(measured.errors.margins)
    forward, backward = (
        float(np.interp(quantile, known, [measured.errors.margins[q][phase] for q in known])) for phase in (0, 1)
    )
    return FusedCost(weights, kind, members=len(weights["fixed"]), margin=(forward, backward))


def _links(measured: MeasuredCollectives | None) -> dict[Collective, Link]:
    return {c: Link(fit.latency_ms, fit.bandwidth) for c, fit in measured.fits.items()} if measured else {}


def _damaged(code: str, folder: Path, reason: str) -> DiagnosticError:
    fix = "make the profile with `shardc profile`, which goes on where it was interrupted, or restore the folder"
    return DiagnosticError(Diagnostic(code, f"hardware profile {folder}: {reason}", help=fix), exit_code=2)


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
