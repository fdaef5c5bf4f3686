"""The folder of a measured hardware profile: what `profile.json` says, and how the folder is read and written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shardc.cost.fused import FusedCost, operator_kind, unfit
from shardc.diagnostics import DiagnosticError
from shardc.files import read_bytes, read_text, write_atomic
from shardc.hardware import DOCUMENT, Hardware, damaged_profile, sha256
from shardc.plan import Count, Positive
from shardc.problem import Collective, Floats, Link
from shardc.spec import MAX_MEMORY

_WEIGHTS = "weights.safetensors"


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("expected the smaller end first")
    return ends


# What a machine can be, with much to spare. Beyond it sums and products would no longer be finite, and no cost certain.
Bandwidth = Annotated[float, Field(ge=1e3, le=1e18)]
Latency = Annotated[float, Field(ge=0, le=1e6)]
Time = Annotated[float, Field(ge=1e-6, le=1e9)]
Error = Annotated[float, Field(ge=0, le=1e9)]
Margin = Annotated[float, Field(ge=1e-3, le=1e3)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
Pooling = Annotated[float, Field(ge=0, le=1e9)]


class Errors(BaseModel):
    """How well the cost model predicts sets of tables that it never saw; pairs are forward and backward."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    test_sets: Count = Field(description="Held-out sets of tables.")
    mean_relative_error: tuple[Error, Error]
    mean_absolute_error_ms: tuple[Error, Error]
    total_relative_error: Error = Field(description="Of forward plus backward time.")
    kendall_tau: float = Field(ge=-1, le=1, description="Rank correlation of forward plus backward time.")
    noise: tuple[Error, Error] | None = Field(
        description="Mean relative difference of two measurements of one set; null if none was measured twice."
    )
    margins: dict[Annotated[float, Field(gt=0, lt=1)], tuple[Margin, Margin]] = Field(
        min_length=1,
        description="By quantile: factors on the largest of the models' predictions that so many sets stay below.",
    )


class Measured(BaseModel):
    """What was measured, on what, with what."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    device: str = Field(description="Name of the measured device.")
    versions: dict[str, str] = Field(description="Versions of shardc, torch and fbgemm_gpu.")
    seed: Count
    sets: Count = Field(description="Sets of tables trained on.")
    disturbed: Count = Field(
        description="Sets left out: something else slowed the device down while they were measured."
    )
    tables_per_set: Range
    batch: Range
    rows: Range
    dim: Range
    pooling: Annotated[tuple[Pooling, Pooling], AfterValidator(_ascending)]
    weights: tuple[str, ...]
    optimizers: tuple[str, ...]
    reference_ms: tuple[Time, Time] = Field(description="The reference set's own time.")
    errors: Errors


class CollectiveFit(BaseModel):
    """What a collective was measured to take: a fixed time, and the bytes that a device sends over a bandwidth."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    latency_ms: Latency
    bandwidth: Bandwidth = Field(description="bytes/s that a device sends over the link: to its host, or to others.")
    mean_relative_error: Error = Field(description="On message sizes that were held out of the fit.")


class MeasuredCollectives(BaseModel):
    """Collectives between some ranks: what was measured, on what, with what."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    world_size: int = Field(ge=2, description="Ranks that took part.")
    hosts: int = Field(ge=1)
    backend: str = Field(description="gloo or nccl.")
    versions: dict[str, str] = Field(description="Versions of shardc and torch.")
    message_bytes: Range = Field(description="Smallest and largest message of a rank.")
    fits: dict[Collective, CollectiveFit] = Field(description="The collectives that the backend has.")


class ProfileDocument(BaseModel):
    """`profile.json` of a measured hardware profile."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    name: str
    device_type: Literal["cpu", "cuda"]
    memory_bytes: int = Field(gt=0, le=MAX_MEMORY)
    intra_host_bandwidth: Bandwidth = Field(description="bytes/s")
    inter_host_bandwidth: Bandwidth = Field(description="bytes/s")
    latency_ms: Latency
    network_latency_ms: Latency = Field(0.0, description="What a collective takes longer when it crosses hosts.")
    host_bandwidth: Bandwidth | None = Field(
        None, description="bytes/s between a device and the memory of its host, in one direction; null if unknown."
    )
    communication: Literal["assumed", "measured"] = "assumed"
    intra_host: MeasuredCollectives | None = Field(None, description="Collectives between devices of one host.")
    inter_host: MeasuredCollectives | None = Field(None, description="Collectives between devices of several hosts.")
    measured: Measured
    weights_digest: str


def load_folder(folder: Path) -> Hardware:
    """The device that a measured profile is of.

    Raises:
        DiagnosticError: SH601 and SH602 for a damaged profile.
    """
    text = read_text(folder / DOCUMENT, "hardware profile")
    document = _parsed(folder, text)
    try:
        content = read_bytes(folder / _WEIGHTS, "weights")
    except DiagnosticError as error:
        raise damaged_profile("SH602", folder, error.diagnostics[0].message) from error
    if sha256(content) != document.weights_digest:
        raise damaged_profile("SH602", folder, f"{_WEIGHTS} is not the file that profile.json was written with")
    try:
        weights = {name: array.astype(np.float64) for name, array in safetensors.numpy.load(content).items()}
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that numpy has not
        raise damaged_profile("SH602", folder, f"{_WEIGHTS}: {error}") from error
    if reason := unfit(weights):
        raise damaged_profile("SH602", folder, f"{_WEIGHTS} {reason}")
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
        digest=sha256(text.encode() + content),
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


def save_profile(folder: Path, document: dict[str, Any], arrays: dict[str, Floats]) -> ProfileDocument:
    """Write a measured profile: the weights first, then the document that names their digest.

    Collectives that the folder's profile was measured with on the same device stay part of it; one that cannot be read
    is replaced.
    """
    weights = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    checked = ProfileDocument(**document, weights_digest=sha256(weights))
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
    return _parsed(folder, read_text(folder / DOCUMENT, "hardware profile"))


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
    write_atomic(folder / DOCUMENT, document.model_dump_json(indent=2).encode() + b"\n")


def _parsed(folder: Path, text: str) -> ProfileDocument:
    try:
        return ProfileDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise damaged_profile(
            "SH601", folder, f"{DOCUMENT}: {where}: {first['msg'].lower().removeprefix('value error, ')}"
        ) from error
