"""Collectives between devices, measured by the ranks that torchrun started: gloo between CPUs, NCCL between GPUs.

The sizes of all collectives take turns, so that a machine whose speed drifts is equally slow for each. Before every run
the ranks wait for each other, and a run takes as long as its slowest rank. What a size takes is the lower quartile of
its runs: whatever else a machine does only adds time. (With two processes on two busy cores, the fit to one measurement
predicted another one's sizes within 11 to 19 % by quartiles, within 16 to 42 % by medians.) Ranks of one host measure
the links within it, ranks of several hosts those between them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import shardc
from shardc.cost.model import shares_sent
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import alone_in, write_atomic
from shardc.learn.fit_collectives import fit_link, held_out_error
from shardc.measure.benchmark import local_device, local_rank
from shardc.problem import Collective, Floats, Ints
from shardc.profile_folder import CollectiveFit, MeasuredCollectives, read_profile, save_collectives

_SIZES, _WARM_UPS, _RUNS = 24, 2, 25
_QUANTILE = 0.25
_MESSAGE_BYTES = {"cpu": (2**12, 2**24), "cuda": (2**12, 2**29)}
_ELEMENT_BYTES = 4
_TIMEOUT = timedelta(minutes=2)  # after which a rank gives up waiting for the others


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that torchrun started, as many on each host."""

    rank: int
    world_size: int
    per_host: int

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.world_size // self.per_host


def measure_collectives(
    folder: Path, *, progress: Callable[[str, int, int], None], sizes: int = _SIZES, runs: int = _RUNS
) -> MeasuredCollectives | None:
    """Measure the collectives of a training step, and make their latencies and bandwidths part of a profile.

    Every rank calls it. The first one writes the profile, last and whole, and beside it every single time; nothing is
    written if any rank fails or is interrupted.

    Args:
        folder: holds the profile that `shardc profile` made of the devices that the ranks run on.
        progress: called with the stage ("measure"), and how many runs are done and in all.
        sizes: messages of each collective, evenly spread on a logarithmic scale.
        runs: runs of each of them.

    Returns:
        What was measured, on the first rank; None on the others.

    Raises:
        DiagnosticError: SH902 unless torchrun started several ranks; SH001, SH601 and SH503 on the first rank for a
            folder without a profile of this device, SH004 for one that another process makes a profile in; SH506 when
            the ranks cannot communicate.
        SystemExit: on the other ranks when the first one refuses the folder.
        ModuleNotFoundError: without torch and FBGEMM.
    """
    ranks = _started_ranks(folder)
    device = torch.device(local_device().type)
    with ExitStack() as until_written:
        with _connected(ranks, device):
            _check_folder(folder, ranks, device, until_written)
            messages = _messages(device, ranks.world_size, sizes)
            times = _measure(messages, ranks, device, runs, progress)
        if ranks.rank:
            return None
        between = "inter_host" if ranks.hosts > 1 else "intra_host"
        found = _fitted(messages, times, ranks, device)
        points = [
            {"collective": collective, "bytes": size, "ms": row}
            for collective, ms in times.items()
            for size, row in zip(messages.tolist(), ms.round(6).tolist(), strict=True)
        ]
        raw = {**found.model_dump(mode="json", exclude={"fits", "message_bytes"}), "points": points}
        write_atomic(folder / f"collectives_{between}.json", json.dumps(raw).encode() + b"\n")
        save_collectives(folder, found)
    return found


def _started_ranks(folder: Path) -> Ranks:
    try:
        rank, size, per_host = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    except (KeyError, ValueError):
        rank, size, per_host = 0, 1, 1
    if size > 1:
        return Ranks(rank, size, per_host)
    devices = max(torch.cuda.device_count(), 2)
    fix = f"torchrun --nproc-per-node {devices} -m shardc profile --collectives -o {folder}"
    raise DiagnosticError(Diagnostic("SH902", "collectives need several ranks to measure", help=fix), exit_code=2)


@contextmanager
def _connected(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """All ranks, connected; what goes wrong between them as a diagnostic."""
    try:
        if device.type == "cuda":
            torch.cuda.set_device(local_rank())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        yield
        dist.destroy_process_group()  # not after a failure: it would wait for ranks that are gone
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise DiagnosticError(Diagnostic("SH506", f"rank {ranks.rank}: {reason}"), exit_code=2) from error


def _check_folder(folder: Path, ranks: Ranks, device: torch.device, until_written: ExitStack) -> None:
    """Let all ranks go on or none: the folder, which the first one locks, may exist only where that is."""
    refusal: DiagnosticError | None = None
    if ranks.rank == 0:
        try:
            _check_profile(folder)
            until_written.enter_context(alone_in(folder))
        except DiagnosticError as error:
            refusal = error
    refused = torch.tensor([refusal is not None], dtype=torch.int32, device=device)
    dist.broadcast(refused, 0)
    if refusal:
        raise refusal
    if refused.item():
        raise SystemExit(2)


def _check_profile(folder: Path) -> None:
    if not (folder / "profile.json").exists():
        finding = Diagnostic("SH001", f"there is no profile in {folder}", help=f"first: shardc profile -o {folder}")
        raise DiagnosticError(finding, exit_code=2)
    profiled, here = read_profile(folder), local_device()
    if (profiled.device_type, profiled.measured.device) != (here.type, here.name):
        message = f"{folder} is a profile of {profiled.measured.device}, and this machine has {here.name}"
        raise DiagnosticError(Diagnostic("SH503", message, help="name a profile of this machine's device"), exit_code=2)


def _messages(device: torch.device, world_size: int, sizes: int) -> Ints:
    """Bytes of messages, int[N], evenly spread on a logarithmic scale; each has a part for every rank."""
    part = _ELEMENT_BYTES * world_size
    return np.ceil(np.geomspace(*_MESSAGE_BYTES[device.type], sizes) / part).astype(np.int64) * part


def _measure(
    messages: Ints, ranks: Ranks, device: torch.device, runs: int, progress: Callable[[str, int, int], None]
) -> dict[Collective, Floats]:
    """Ms of every run of every message, float[N, runs], of each collective that the backend has."""
    calls = _calls(int(messages.max()) // _ELEMENT_BYTES, ranks.world_size, device)
    calls = {collective: call for collective, call in calls.items() if _works(call, ranks.world_size, device)}
    ms = torch.zeros(len(calls), len(messages), runs, dtype=torch.float64, device=device)
    for run in range(-_WARM_UPS, runs):
        for size, message in enumerate(messages.tolist()):
            for number, call in enumerate(calls.values()):
                ms[number, size, max(run, 0)] = _time_ms(call, message // _ELEMENT_BYTES, device)
        if ranks.rank == 0:
            progress("measure", run + _WARM_UPS + 1, runs + _WARM_UPS)
    dist.all_reduce(ms, dist.ReduceOp.MAX)
    return dict(zip(calls, ms.cpu().numpy(), strict=True))


def _calls(most: int, ranks: int, device: torch.device) -> dict[Collective, Callable[[int], Any]]:
    """What runs each collective on messages of n elements a rank, n at most `most` and divisible by the ranks."""
    source, target = torch.zeros(most, device=device), torch.zeros(most, device=device)
    # torch 2.13 gave these two other names, and warns of the old ones.
    reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    return {
        Collective.ALL_TO_ALL: lambda n: dist.all_to_all_single(target[:n], source[:n]),
        Collective.REDUCE_SCATTER: lambda n: reduce_scatter(target[: n // ranks], source[:n]),
        Collective.ALL_GATHER: lambda n: all_gather(target[:n], source[: n // ranks]),
        Collective.ALL_REDUCE: lambda n: dist.all_reduce(source[:n]),
    }


def _works(call: Callable[[int], Any], elements: int, device: torch.device) -> bool:
    """Whether every rank's backend has a collective: not every gloo has all of them."""
    try:
        call(elements)
    except (RuntimeError, NotImplementedError):
        works = torch.zeros(1, device=device)
    else:
        works = torch.ones(1, device=device)
    dist.all_reduce(works, dist.ReduceOp.MIN)
    return bool(works.item())


def _time_ms(call: Callable[[int], Any], elements: int, device: torch.device) -> float:
    dist.barrier()
    if device.type == "cpu":
        start = time.perf_counter_ns()
        call(elements)
        return (time.perf_counter_ns() - start) / 1e6
    torch.cuda.synchronize()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    call(elements)
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))


def _fitted(messages: Ints, times: dict[Collective, Floats], ranks: Ranks, device: torch.device) -> MeasuredCollectives:
    fits = {}
    for collective, ms in times.items():
        inside, outside = shares_sent(collective, ranks.hosts, ranks.per_host)
        sent = messages.astype(np.float64) * (outside if ranks.hosts > 1 else inside)
        taken: Floats = np.quantile(ms, _QUANTILE, axis=1)
        link, error = fit_link(sent, taken), held_out_error(sent, taken)
        fits[collective] = CollectiveFit(
            latency_ms=link.latency_ms, bandwidth=link.bandwidth, mean_relative_error=error
        )
    return MeasuredCollectives(
        world_size=ranks.world_size,
        hosts=ranks.hosts,
        backend="nccl" if device.type == "cuda" else "gloo",
        versions={"shardc": shardc.__version__, "torch": str(torch.__version__)},
        message_bytes=(int(messages.min()), int(messages.max())),
        fits=fits,
    )
