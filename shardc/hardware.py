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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tomli

from shardc.cost.roofline import ASSUMPTIONS, Roofline
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.problem import Collective, Link, Optimizer
from shardc.spec import LoadedSpec, parse_bandwidth, parse_size

if TYPE_CHECKING:
    from shardc.cost.model import ComputeCost
    from shardc.profile_folder import Measured

PROFILES = Path(__file__).parent / "profiles"
# Of a collective, and what it takes longer between hosts: NCCL expects 14 microseconds of a step over the network where
# it expects 3.4 over NVLink (src/graph/tuning.cc).
ROOFLINE_LATENCY_MS, ROOFLINE_NETWORK_LATENCY_MS = 0.02, 0.01
DOCUMENT = "profile.json"


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
        if os.path.exists(folder / DOCUMENT):  # a name may be too long to be one of a file
            # Few specs name a measured profile, and what reads one takes long to import.
            from shardc.profile_folder import load_folder

            return load_folder(folder)
    if os.path.isdir(folder := Path(base) / device):
        raise damaged_profile("SH601", folder, f"there is no {DOCUMENT} in it")
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


def profile_digest(hardware: Sequence[Hardware], loaded: LoadedSpec) -> str:
    """Digest of everything beside the spec that decides a cost or a limit.

    Args:
        hardware: the profiles that the spec names, in the order of `ClusterSpec.device_names`.
        loaded: the spec.
    """
    digests = [device.digest for device in hardware]
    if loaded.spec.compile.cost == "torchrec":
        from shardc.cost.torchrec import ASSUMPTIONS, CACHING_ASSUMPTIONS

        assumptions = [ASSUMPTIONS, CACHING_ASSUMPTIONS] if loaded.cached_tables else [ASSUMPTIONS]
        return sha256(json.dumps([digests, *assumptions]).encode())
    digest = digests[0] if len(digests) == 1 else sha256(json.dumps(digests).encode())
    return (
        sha256(json.dumps([digest, [each.host_bandwidth for each in hardware]]).encode())
        if loaded.cached_tables
        else digest
    )


def hardware_names() -> list[str]:
    """Names of the shipped profiles: measured ones first."""
    measured = sorted(path.parent.name for path in PROFILES.glob(f"*/{DOCUMENT}"))
    return measured + sorted(_gpus())


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
        digest=sha256(json.dumps([name, of_every_cost, latencies, ASSUMPTIONS], sort_keys=True).encode()),
        measured=None,
    )


def _given(value: int | None) -> int:
    if value is None:
        raise ValueError("profiles/gpus.toml: not a size or bandwidth")
    return value


def damaged_profile(code: str, folder: Path, reason: str) -> DiagnosticError:
    """What is raised for a measured profile that cannot be used."""
    fix = "make the profile with `shardc profile`, which goes on where it was interrupted, or restore the folder"
    return DiagnosticError(Diagnostic(code, f"hardware profile {folder}: {reason}", help=fix), exit_code=2)


def sha256(content: bytes) -> str:
    """Return the digest of a profile's content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()
