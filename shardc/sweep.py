"""Sweeps: one spec compiled for several clusters, or with anything else varied, so that people can choose.

Every configuration is a compile of its own, in a process of its own. A configuration that nothing fits is a result too.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.hardware import devices_of
from shardc.pipeline import run
from shardc.settings import Setting, parse_setting, setting_text
from shardc.spec import LoadedSpec
from shardc.workers import as_done, cores

MOST = 1000
"""Configurations of one sweep."""

SCALING = ("cluster.hosts", "cluster.devices_per_host")
"""What changes the number of devices, and nothing else."""

_REFUSED = {
    "SH100",
    "SH101",
    "SH103",
    "SH107",
    "SH330",
    "SH331",
}  # what is wrong with the request, not with one cluster


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of a sweep, before it is compiled.

    Attributes:
        varied: what is varied: keys and their values as text.
        loaded: the spec with it; None where the spec is not valid with it.
        reason: what is wrong with it then.
    """

    varied: Mapping[str, str]
    loaded: LoadedSpec | None
    reason: Diagnostic | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """What became of one configuration.

    Attributes:
        varied: as of the configuration.
        devices: how many there are; 0 where the spec is not valid.
        device_count: devices by the name of their profile.
        global_batch: samples of a step.
        step_time_ms: step time of the tables; None where there is no plan.
        bound_ms: lower bound.
        memory: share of its memory that the fullest device uses.
        balance: least over greatest compute time of a device.
        reason: why there is no plan.
    """

    varied: Mapping[str, str]
    devices: int
    device_count: Mapping[str, int]
    global_batch: int
    step_time_ms: float | None = None
    bound_ms: float | None = None
    memory: float | None = None
    balance: float | None = None
    reason: Diagnostic | None = None

    @property
    def samples_per_s(self) -> float | None:
        """Samples a second, if the tables were all that a step is about."""
        return 1e3 * self.global_batch / self.step_time_ms if self.step_time_ms else None

    @property
    def gap(self) -> float | None:
        """How far the step time is above its lower bound."""
        return self.step_time_ms / self.bound_ms - 1.0 if self.step_time_ms and self.bound_ms else None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A point in comparison to the others.

    Attributes:
        point: the point.
        efficiency: samples a second and device, as a share of those with the fewest devices, all else being equal.
        dollars_per_hour: what its devices cost, as far as prices are known.
        dollars_per_billion: what a billion samples cost then.
        pareto: no other one has as many samples a second for as little (dollars, or devices without prices).
        fastest: no other one has more samples a second.
        cheapest: no other one has cheaper samples.
    """

    point: Point
    efficiency: float | None
    dollars_per_hour: float | None
    dollars_per_billion: float | None
    pareto: bool = False
    fastest: bool = False
    cheapest: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        title: what was swept.
        weak: whether the global batch grows with the number of devices.
        keys: what is varied.
        ranked: the points, in the order of the grid.
        planned: how many there would have been.
    """

    title: str
    weak: bool
    keys: tuple[str, ...]
    ranked: tuple[Ranked, ...]
    planned: int


def grid(
    loaded: LoadedSpec, varied: Sequence[Sequence[Setting]], *, weak: bool, fixed: Sequence[Setting] = ()
) -> list[Configuration]:
    """Every combination of what is varied, each once.

    Args:
        loaded: the spec.
        varied: for each key its settings.
        weak: whether the global batch grows with the number of devices, from that of the spec.
        fixed: settings that the spec has been changed by.

    Raises:
        DiagnosticError: SH335 for a key that is varied twice, or set and varied, or too many configurations; and what
            is wrong whatever the cluster is like, such as unknown keys and devices, and values that no configuration
            can have; exit code 2.
    """
    varied = [list({repr(setting.value): setting for setting in settings}.values()) for settings in varied]
    for settings in varied:
        if any(setting.keys == settings[0].keys for setting in fixed):
            message = f"{'.'.join(settings[0].keys)} is set and varied"
            raise DiagnosticError(Diagnostic("SH335", message, help="leave out either"), exit_code=2)
    keys = [".".join(settings[0].keys) for settings in varied]
    if weak:
        keys.append("model.global_batch")
    for number, key in enumerate(keys):
        if key in keys[:number]:
            complaint = "goes with --weak, which sets it" if weak and number == len(keys) - 1 else "is varied twice"
            raise DiagnosticError(Diagnostic("SH335", f"{key} {complaint}"), exit_code=2)
    count = int(np.prod([float(len(settings)) for settings in varied]))
    if not varied or count > MOST:
        message = f"{count:,} configurations: at most {MOST:,} are compiled" if varied else "nothing is varied"
        fix = "for example --devices 4,8,16 or --vary cluster.hosts=1,2,4"
        raise DiagnosticError(Diagnostic("SH335", message, help=fix), exit_code=2)
    combinations = list(product(*varied))
    found = [_configuration(loaded, settings, weak=weak) for settings in combinations]
    refused = [each.reason for each in found if each.reason is not None and each.reason.code in _REFUSED]
    for setting in (setting for settings in varied for setting in settings):
        having = [each.reason for each, settings in zip(found, combinations, strict=True) if setting in settings]
        refused += [reason for reason in having[:1] if reason and all(_is_about(reason, setting) for reason in having)]
    if refused:
        raise DiagnosticError(*dict.fromkeys(refused), exit_code=2)
    return found


def _is_about(reason: Diagnostic | None, setting: Setting) -> bool:
    """Say whether what is wrong is the value of a setting."""
    at = reason.location if reason else None
    return at is not None and (at.file, at.text) == (setting.option, setting.text)


def _configuration(loaded: LoadedSpec, settings: Sequence[Setting], *, weak: bool) -> Configuration:
    varied = {".".join(setting.keys): setting.text.partition("=")[2] for setting in settings}
    try:
        changed = loaded.changed(settings)
        if weak:
            spec = loaded.spec
            batch = max(1, round(spec.model.global_batch * changed.spec.cluster.devices / spec.cluster.devices))
            text = setting_text(("model", "global_batch"), batch)
            changed = changed.changed([parse_setting(text, "--weak")])
        devices_of(changed)
    except DiagnosticError as error:
        return Configuration(varied, None, error.diagnostics[0])
    return Configuration(varied, changed)


def compile_all(
    configurations: Sequence[Configuration], *, effort: str | None, seed: int | None, workers: int | None = None
) -> Iterator[tuple[int, Point]]:
    """Compile configurations, several at once; yields their numbers and what became of them, as they are done.

    Args:
        configurations: of a grid.
        effort: instead of the spec's.
        seed: instead of the spec's.
        workers: processes; None for as many as there are cores.

    Raises:
        DiagnosticError: what is wrong with more than one cluster, such as an unreadable profile; exit code 2.
    """
    for number, configuration in enumerate(configurations):
        if configuration.loaded is None:
            yield number, Point(configuration.varied, 0, {}, 0, reason=configuration.reason)
    todo = {number: each for number, each in enumerate(configurations) if each.loaded is not None}
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    numbers, one = list(todo), partial(_compiled, effort=effort, seed=seed)
    for position, point in as_done(one, list(todo.values()), workers or cores(), method):
        yield numbers[position], point


def _compiled(configuration: Configuration, effort: str | None, seed: int | None) -> Point:
    """One configuration compiled."""
    loaded = configuration.loaded
    if loaded is None:
        raise ValueError("only a valid spec can be compiled")
    cluster, kinds = loaded.spec.cluster, loaded.spec.cluster.kinds
    count: dict[str, int] = {}
    for kind in cluster.host_kind:
        count[kinds[kind].device] = count.get(kinds[kind].device, 0) + cluster.devices_per_host
    point = Point(configuration.varied, cluster.devices, count, loaded.spec.model.global_batch)
    try:
        score = (plan := run(loaded, effort=effort, seed=seed).plan).score
    except DiagnosticError as error:
        if error.exit_code != 1:
            raise
        return replace(point, reason=error.diagnostics[0])
    return replace(
        point,
        step_time_ms=score.step_time_ms,
        bound_ms=plan.bound.step_time_ms if plan.bound else None,
        memory=max(device.memory_bytes / max(device.memory_limit_bytes, 1) for device in score.devices),
        balance=score.balance,
    )


def ranked(
    title: str, points: Sequence[Point], prices: Mapping[str, float], *, weak: bool, planned: int | None = None
) -> Sweep:
    """Compare points with each other.

    Args:
        title: what was swept.
        points: what became of configurations.
        prices: dollars an hour of a device, by the name of its profile.
        weak: whether the global batch grew with the number of devices.
        planned: how many points there would have been; None for as many as there are.
    """
    found = [_alone(point, points, prices) for point in points]
    usable = [each for each in found if each.point.samples_per_s]
    priced = bool(usable) and all(each.dollars_per_hour is not None for each in usable)

    def costs(each: Ranked) -> float:
        return (each.dollars_per_hour or 0.0) if priced else float(each.point.devices)

    def speed(each: Ranked) -> float:
        return each.point.samples_per_s or 0.0

    def beaten(each: Ranked) -> bool:
        return any(
            speed(other) >= speed(each)
            and costs(other) <= costs(each)
            and (speed(other) > speed(each) or costs(other) < costs(each))
            for other in usable
        )

    most = max(map(speed, usable), default=0.0)
    least = min((each.dollars_per_billion for each in usable if each.dollars_per_billion is not None), default=None)
    marked = tuple(
        replace(
            each,
            pareto=bool(each.point.samples_per_s) and not beaten(each),
            fastest=bool(each.point.samples_per_s) and speed(each) == most,
            cheapest=least is not None and each.dollars_per_billion == least,
        )
        for each in found
    )
    keys = tuple(points[0].varied) if points else ()
    return Sweep(title, weak, keys, marked, len(points) if planned is None else planned)


def _alone(point: Point, points: Sequence[Point], prices: Mapping[str, float]) -> Ranked:
    """A point's efficiency and what it costs."""
    hourly = None
    if point.device_count and all(name in prices for name in point.device_count):
        hourly = sum(prices[name] * count for name, count in point.device_count.items())
    per_billion, rate = None, point.samples_per_s
    if hourly is not None and rate:
        per_billion = hourly / (rate * 3600.0) * 1e9
    alike = [each for each in points if each.samples_per_s and series(each) == series(point)]
    efficiency = None
    if rate and alike:
        least = min(alike, key=lambda each: each.devices)
        efficiency = (rate / point.devices) / ((least.samples_per_s or 1.0) / least.devices)
    return Ranked(point, efficiency, hourly, per_billion)


def series(point: Point) -> tuple[tuple[str, str], ...]:
    """What a point has in common with those that only differ in how many devices there are."""
    return tuple((key, value) for key, value in point.varied.items() if key not in SCALING)
