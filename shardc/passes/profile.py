"""profile: a hardware profile becomes the cost model that every placement of a problem is judged by.

The fused operator's cost comes from the profile: learned from measurements, or a roofline over data-sheet figures. On
request the problem's own shards are measured on the local device, and the profile's predictions corrected by them. A
spec may have TorchRec's estimates instead: then the profile says only how much memory a device has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardc.cost.model import ComputeCost, PhasedCost, step_cost
from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.hardware import Hardware, damaged_profile, profile_digest
from shardc.problem import Floats, HostKind, Problem, Shards
from shardc.spec import LoadedSpec

if TYPE_CHECKING:
    from shardc.profile_folder import Measured

_PESSIMISTIC = 0.9
_NAMED = 3  # tables in a warning
_INEXACT = 0.1  # mean relative error on held-out sets
_LONGEST_MS = 1e18  # of all tables on one device: the largest model of a spec takes a thousandth of it on a CPU

Measure = Callable[[Shards], Floats]
"""Measures S shards one by one: forward and backward ms, float[S, 2]; NaN for a shard that could not be measured."""


@dataclass(frozen=True, slots=True)
class Profiled:
    """A cost model and how far to trust it.

    Attributes:
        cost: the cost model.
        digest: of everything beside the spec that decides a cost or a limit.
        warnings: what the profile did not measure.
        measured: float[S, 2] ms of the problem's own shards, if they were measured.
        pessimistic: the cost model of the times that nine of ten devices stay below, if the profile tells.
    """

    cost: PhasedCost
    digest: str
    warnings: tuple[Diagnostic, ...]
    measured: Floats | None = None
    pessimistic: PhasedCost | None = None


def profile(
    problem: Problem, hardware: Sequence[Hardware], loaded: LoadedSpec, measure: Measure | None = None
) -> Profiled:
    """Build the cost model of a problem.

    Args:
        problem: the lowered problem.
        hardware: the profiles that the spec names, in the order of `ClusterSpec.device_names`.
        loaded: the spec, for the place of warnings.
        measure: measures the problem's own shards, of a cluster with one kind of device; None to rely on the profile
            alone.

    Raises:
        DiagnosticError: SH507 when a quantile is asked for of costs that nobody measured, SH113 when tables may be in
            host memory and the profile does not say how fast the link to it is, SH602 when its weights give no times.
    """
    quantile, cluster = loaded.spec.compile.quantile, problem.cluster
    all_measured = all(device.measured is not None for device in hardware)
    if quantile is not None and not (all_measured and loaded.spec.compile.cost == "profile"):
        message = "how far measured times may be above these costs is not known, so there is no quantile to plan with"
        fix = "leave `quantile` out, or name the profile of a measured device"
        raise DiagnosticError(Diagnostic("SH507", message, loaded.at("compile", "quantile"), help=fix))
    if loaded.spec.compile.cost == "torchrec":
        return _torchrec(problem, hardware, loaded, measuring=measure is not None)
    by_name = dict(zip(loaded.spec.cluster.device_names, hardware, strict=True))
    if cached := loaded.cached_tables:
        for name in (name for name, device in by_name.items() if device.host_bandwidth is None):
            message = (
                f'table "{cached[0].name}" may be in host memory, and the profile {name} does not know the link to it'
            )
            fix = 'give `"host_bandwidth"` in its profile.json, bytes/s in one direction'
            raise DiagnosticError(Diagnostic("SH113", message, loaded.at_table(cached[0], "kernels"), help=fix))
    warnings: list[Diagnostic] = []
    for name, device in by_name.items():
        warnings += _unmeasured(device, problem, loaded, loaded.at_device(name), measuring=measure is not None)
    digest = profile_digest(hardware, loaded)

    def compute(kind: HostKind, quantile: float | None) -> ComputeCost:
        device = by_name[kind.device]
        cost = device.compute(problem.optimizer, problem.weights, quantile)
        return cost if device.measured is None else _believable(cost, problem.shards, device)

    if measure is None:
        pessimistic = None
        if all_measured:
            pessimistic = step_cost([compute(kind, _PESSIMISTIC) for kind in cluster.kinds], problem)
        cost = step_cost([compute(kind, quantile) for kind in cluster.kinds], problem)
        return Profiled(cost, digest, tuple(warnings), pessimistic=pessimistic)
    measured = measure(problem.shards)
    missing = int(np.isnan(measured).any(axis=1).sum())
    if missing:
        why = "too large to measure here" + " or in host memory" * bool(cached)
        message = f"{missing} of {len(measured)} shards were {why}: their cost is predicted"
        warnings.append(Diagnostic("SH504", message, severity="warning"))
    from shardc.cost.calibrated import calibrate  # few plans are made of such measurements

    calibrated = [calibrate(compute(kind, quantile), problem.shards, measured) for kind in cluster.kinds]
    return Profiled(step_cost(calibrated, problem), digest, tuple(warnings), measured)


def _believable(cost: ComputeCost, shards: Shards, hardware: Hardware) -> ComputeCost:
    """The learned cost, if it gives times: weights that are each in range may not, all in all.

    Raises:
        DiagnosticError: SH602 when all shards on one device would take no time, or one that is no number.
    """
    with np.errstate(all="ignore"):
        ms = cost.heads(cost.encode(shards).sum(axis=0)) + cost.constants
    if not ((ms > 0) & (ms < _LONGEST_MS)).all():
        forward, backward = ms
        reason = f"by its weights, the tables would take {forward:.3g} ms forward and {backward:.3g} ms backward"
        raise damaged_profile("SH602", Path(hardware.name), reason)
    return cost


def _torchrec(problem: Problem, hardware: Sequence[Hardware], loaded: LoadedSpec, *, measuring: bool) -> Profiled:
    """TorchRec's estimates, with its own bandwidths unless the spec gives them; where hosts differ, the least given."""
    from shardc.cost.torchrec import VERSION, Machine, torchrec_cost

    kinds = loaded.spec.cluster.kinds
    machine = Machine.of(
        problem.cluster,
        intra_host=min((kind.intra_bytes_per_s for kind in kinds if kind.intra_bytes_per_s), default=None),
        inter_host=min((kind.inter_bytes_per_s for kind in kinds if kind.inter_bytes_per_s), default=None),
    )
    cost = torchrec_cost(problem, machine)
    names = " and ".join(device.name for device in hardware)
    warning = Diagnostic(
        "SH505",
        f"costs are estimates of TorchRec {VERSION}, which are not made for {names} and know no access pattern",
        loaded.at("compile", "cost"),
        help='cost = "profile" takes what is known of the device',
        severity="warning",
        notes=("nothing was measured: measurements correct a profile's costs",) if measuring else (),
    )
    return Profiled(cost, profile_digest(hardware, loaded), (warning,))


def _unmeasured(
    hardware: Hardware, problem: Problem, loaded: LoadedSpec, at: Location | None, *, measuring: bool
) -> list[Diagnostic]:
    """Warnings about what the profile, named at a place of the spec, never saw."""
    if hardware.measured is None:
        if measuring:
            return []
        message = f"costs of {hardware.name} are computed from its data sheet, not measured"
        fix = "run `shardc profile` on such a device and name the folder it makes"
        return [Diagnostic("SH501", message, at, help=fix, severity="warning")]
    found = []
    seen = {"optimizer": hardware.measured.optimizers, "weights": hardware.measured.weights, "outputs": ("fp32",)}
    asked = {"optimizer": str(problem.optimizer), "weights": problem.weights, "outputs": problem.outputs}
    for key, value in asked.items():
        if value not in seen[key]:
            message = f'{hardware.name} was not measured with {key} "{value}": costs are extrapolated'
            fix = f"measured: {', '.join(seen[key])}"
            found.append(Diagnostic("SH502", message, loaded.at("model", key), help=fix, severity="warning"))
    found += inexact(hardware.name, hardware.measured, at)
    found += _out_of_range(hardware.name, hardware.measured, problem, loaded)
    found += _assumed_links(hardware, problem, loaded, at)
    return found


def _assumed_links(hardware: Hardware, problem: Problem, loaded: LoadedSpec, at: Location | None) -> list[Diagnostic]:
    """A warning if communication rests on nothing but what such devices usually reach."""
    cluster, spec = problem.cluster, loaded.spec.cluster
    links = {
        "devices of a host": (cluster.devices_per_host, hardware.intra_host, spec.intra_host_bandwidth),
        "hosts": (cluster.hosts, hardware.inter_host, spec.inter_host_bandwidth),
    }
    assumed = [between for between, (count, measured, given) in links.items() if count > 1 and not (measured or given)]
    if not assumed:
        return []
    message = f"{hardware.name} has no measured collectives between {' and '.join(assumed)}: their bandwidth is assumed"
    fix = "measure them with `shardc profile --collectives`, or give the bandwidths under [cluster]"
    return [Diagnostic("SH509", message, at, help=fix, severity="warning")]


def inexact(name: str, measured: Measured, at: Location | None) -> list[Diagnostic]:
    """A warning if the profile predicts badly what it never saw."""
    forward, backward = measured.errors.mean_relative_error
    if max(forward, backward) <= _INEXACT:
        return []
    message = f"{name} predicts held-out sets with a mean error of {forward:.0%} forward and {backward:.0%} backward"
    fix = "profile the device again with more --sets, when nothing else runs there"
    return [Diagnostic("SH510", message, at, help=fix, severity="warning")]


def _out_of_range(name: str, measured: Measured, problem: Problem, loaded: LoadedSpec) -> list[Diagnostic]:
    """Warnings that name tables beyond what was measured, one for each feature; costs are extrapolated there."""
    found = []
    batch = int(problem.shards.bags.min()), int(problem.shards.bags.max())
    if batch[0] < measured.batch[0] or batch[1] > measured.batch[1]:
        asked_for = f"{batch[0]}" if batch[0] == batch[1] else f"{batch[0]} to {batch[1]}"
        message = f"{name} was measured with batches of {measured.batch[0]} to {measured.batch[1]}, here they are"
        at = loaded.at("model", "global_batch")
        found.append(Diagnostic("SH502", f"{message} {asked_for}: extrapolated", at, severity="warning"))
    each, most = len(loaded.tables) / problem.cluster.devices, measured.tables_per_set[1]
    if each > most:
        message = f"{name} was measured with {most} tables on a device at most, here they are {each:.0f} on average"
        found.append(Diagnostic("SH502", f"{message}: extrapolated", loaded.at("cluster"), severity="warning"))
    for key, (low, high) in (("rows", measured.rows), ("dim", measured.dim), ("pooling", measured.pooling)):
        beyond = [t for t in loaded.tables if not low <= getattr(t, key) <= high]
        if beyond:
            some = ", ".join(f"{t.name} ({getattr(t, key):g})" for t in beyond[:_NAMED])
            more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
            message = (
                f"{name} was measured with {key} of {low:,.10g} to {high:,.10g}, here they are beyond: {some}{more}"
            )
            found.append(Diagnostic("SH502", message, loaded.at_table(beyond[0], key), severity="warning"))
    return found
