"""Runs a function in processes that pose as the ranks of some hosts."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist

# Imports the rank's modules once instead of once a rank.
_PRELOAD = ["torchrec.distributed.model_parallel", "torchrec.models.dlrm", "shardc", "pytest"]


def run_ranks(function: Callable[..., None], arguments: tuple, *, hosts: int, devices: int, folder: Path) -> None:
    """Call `function(rank, *arguments)` on each of so many devices of each host, connected by gloo.

    Raises what a rank raises. The folder is an empty one of the test's.
    """
    multiprocessing.set_forkserver_preload(_PRELOAD)
    store = folder / "store"
    torch.multiprocessing.start_processes(
        _run, (function, arguments, hosts, devices, str(store)), nprocs=hosts * devices, start_method="forkserver"
    )


def _run(rank: int, function: Callable[..., None], arguments: tuple, hosts: int, devices: int, store: str) -> None:
    # As torchrun does: TorchRec reads from these which ranks are of one host.
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(hosts * devices),
        LOCAL_RANK=str(rank % devices),
        LOCAL_WORLD_SIZE=str(devices),
        GROUP_RANK=str(rank // devices),
        GROUP_WORLD_SIZE=str(hosts),
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=hosts * devices)
    function(rank, *arguments)
    dist.destroy_process_group()
