"""Hardware profiles: what is known of a device. Limits, bandwidths, and the cost of the fused operator on it.

A profile is either a row of `profiles/gpus.toml` (data-sheet figures, not measured) or a folder that `shardc profile`
made: `profile.json`, which says what was measured where and how well it was learned, and `weights.safetensors`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
import tomli
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shardc.cost.fused import FusedCost, fits, operator_kind
from shardc.cost.model import ComputeCost
from shardc.cost.roofline import ASSUMPTIONS, Roofline
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.files import read_text, write_atomic
from shardc.problem import Floats, Optimizer
from shardc.spec import parse_bandwidth, parse_size

PROFILES = Path(__file__).parent / "profiles"
ROOFLINE_LATENCY_MS = 0.02
_WEIGHTS = "weights.safetensors"


class Errors(BaseModel):
    """How well the cost model predicts sets of tables that it never saw; pairs are forward and backward."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    test_sets: int = Field(description="Held-out sets of tables.")
    mean_relative_error: tuple[float, float]
    mean_absolute_error_ms: tuple[float, float]
    kendall_tau: float = Field(description="Rank correlation of forward plus backward time.")
    noise: tuple[float, float] = Field(description="Mean relative difference of two measurements of one set.")


class Measured(BaseModel):
    """What was measured, on what, with what."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    device: str = Field(description="Name of the measured device.")
    versions: dict[str, str] = Field(description="Versions of shardc, torch and fbgemm_gpu.")
    seed: int
    sets: int = Field(description="Sets of tables trained on.")
    tables_per_set: tuple[int, int]
    batch: tuple[int, int]
    weights: tuple[str, ...]
    optimizers: tuple[str, ...]
    reference_ms: tuple[float, float] = Field(description="The reference set's own time.")
    errors: Errors


class ProfileDocument(BaseModel):
    """`profile.json` of a measured hardware profile."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    name: str
    device_type: Literal["cpu", "cuda"]
    memory_bytes: int = Field(gt=0)
    intra_host_bandwidth: float = Field(gt=0, description="bytes/s")
    inter_host_bandwidth: float = Field(gt=0, description="bytes/s")
    latency_ms: float = Field(ge=0)
    communication: Literal["assumed", "measured"] = "assumed"
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
        latency_ms: fixed time of a collective.
        compute: cost of the fused operator, for an optimizer and a dtype of weights.
        digest: of everything that decides a cost.
        measured: what the cost was learned from; None for data-sheet figures.
    """

    name: str
    device_type: str
    device_name: str
    memory_bytes: int
    intra_host_bandwidth: float
    inter_host_bandwidth: float
    latency_ms: float
    compute: Callable[[Optimizer, str], ComputeCost]
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
        DiagnosticError: SH107 for an unknown device, SH601 and SH602 for a damaged profile.
    """
    gpus = _gpus()
    if device in gpus:
        return _data_sheet(device, gpus[device])
    for folder in (PROFILES / device, Path(base) / device):
        if (folder / "profile.json").exists():
            return _measured(folder)
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


def hardware_names() -> list[str]:
    """Names of the shipped profiles: measured ones first."""
    measured = sorted(path.parent.name for path in PROFILES.glob("*/profile.json"))
    return measured + sorted(_gpus())


def save_profile(folder: Path, document: dict[str, Any], arrays: dict[str, Floats]) -> ProfileDocument:
    """Write a measured profile: the weights first, then the document that names their digest."""
    weights = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    checked = ProfileDocument(**document, weights_digest=_sha256(weights))
    write_atomic(folder / _WEIGHTS, weights)
    write_atomic(folder / "profile.json", checked.model_dump_json(indent=2).encode() + b"\n")
    return checked


@cache
def _gpus() -> dict[str, dict[str, str]]:
    return tomli.loads((PROFILES / "gpus.toml").read_text(encoding="utf-8"))


def _data_sheet(name: str, figures: dict[str, str]) -> Hardware:
    return Hardware(
        name=name,
        device_type="cuda",
        device_name=figures["driver_name"],
        memory_bytes=_given(parse_size(figures["memory"])),
        intra_host_bandwidth=_given(parse_bandwidth(figures["intra_host_bandwidth"])),
        inter_host_bandwidth=_given(parse_bandwidth(figures["inter_host_bandwidth"])),
        latency_ms=ROOFLINE_LATENCY_MS,
        compute=lambda optimizer, weights: Roofline(
            memory_bandwidth=_given(parse_bandwidth(figures["memory_bandwidth"])),
            cache_bytes=_given(parse_size(figures["cache"])),
        ),
        digest=_sha256(json.dumps([name, figures, ROOFLINE_LATENCY_MS, ASSUMPTIONS], sort_keys=True).encode()),
        measured=None,
    )


def _given(value: int | None) -> int:
    if value is None:
        raise ValueError("profiles/gpus.toml: not a size or bandwidth")
    return value


def _measured(folder: Path) -> Hardware:
    text = read_text(folder / "profile.json", "hardware profile")
    try:
        document = ProfileDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise _damaged("SH601", folder, f"profile.json: {where}: {first['msg'].lower()}") from error
    try:
        content = (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise _damaged("SH602", folder, f"{_WEIGHTS}: {(error.strerror or 'unreadable').lower()}") from error
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
        compute=lambda optimizer, dtype: FusedCost(weights, operator_kind(optimizer, dtype)),
        digest=_sha256(text.encode() + content),
        measured=document.measured,
    )


def _damaged(code: str, folder: Path, reason: str) -> DiagnosticError:
    fix = "make the profile again with `shardc profile`, or restore the folder"
    return DiagnosticError(Diagnostic(code, f"hardware profile {folder}: {reason}", help=fix), exit_code=2)


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
